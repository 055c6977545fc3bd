package main

// This file is the API document: openapi.json as it stands, for programs
// (OpenAPI 3.1), and the same as a page for people. The tests hold openapi.json
// against the code. What of it does not exist in this server, such as the
// provider without clients, is left out. Without this file, openapi.json and
// the lines marked `room: openapi` there is no such document.

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

const (
	openapiPath = "/openapi.json"
	docsPath    = "/docs"
)

//go:embed openapi.json
var openapiSource []byte

// apiNode is a JSON object of the document.
type apiNode = map[string]any

// apiDocument is what this file reads and changes of openapi.json.
type apiDocument struct {
	OpenAPI    string                        `json:"openapi"`
	Info       apiNode                       `json:"info"`
	Servers    []apiNode                     `json:"servers"`
	Tags       []apiNode                     `json:"tags"`
	Paths      map[string]map[string]apiNode `json:"paths"` // then the method
	Components map[string]map[string]apiNode `json:"components"`
}

// apiDocument is the document of this server.
func (s *server) apiDocument() (d apiDocument) {
	json.Unmarshal(openapiSource, &d) // the tests see that it can be read
	d.Info["title"], d.Info["version"] = s.cfg.apiTitle, s.cfg.apiVersion
	d.Servers = []apiNode{{"url": s.cfg.baseURL()}}
	maps.DeleteFunc(d.Paths, func(path string, methods map[string]apiNode) bool {
		maps.DeleteFunc(methods, func(method string, _ apiNode) bool {
			anyMethod := s.routes[path]
			return anyMethod == nil && s.routes[strings.ToUpper(method)+" "+path] == nil
		})
		return len(methods) == 0
	})
	return d
}

// follow returns what a node refers to, or the node itself.
func (d apiDocument) follow(node any) apiNode {
	n, _ := node.(apiNode)
	if ref, ok := n["$ref"].(string); ok { // #/components/KIND/NAME
		return d.Components[path.Base(path.Dir(ref))][path.Base(ref)]
	}
	return n
}

// serveOnce serves a document that is made when it is first asked for, so that
// the start does not wait for it.
func serveOnce(make func() document) handler {
	once := sync.OnceValue(make)
	return func(x *exchange, _ principal) error { return writeDocument(x, once()) }
}

func (s *server) makeOpenAPI() document {
	body, _ := json.Marshal(s.apiDocument()) // it came from JSON: cannot fail
	return newDocument(body)
}

// --- the page ---

// docsOperation is an operation with what it refers to.
type docsOperation struct {
	Method, Path, Curl string
	Node               apiNode
	Parameters         []apiNode
	Responses          map[string]apiNode
}

// operation gathers what the page shows of an operation.
func (d apiDocument) operation(method, path string, node apiNode) docsOperation {
	o := docsOperation{
		Method:    strings.ToUpper(method),
		Path:      path,
		Node:      node,
		Responses: map[string]apiNode{},
	}
	parameters, _ := node["parameters"].([]any)
	for _, one := range parameters {
		o.Parameters = append(o.Parameters, d.follow(one))
	}
	for status, one := range node["responses"].(apiNode) {
		o.Responses[status] = d.follow(one)
	}
	o.Curl = o.curl(d.Servers[0]["url"].(string))
	return o
}

// makeDocs makes the page: the operations by their tag, sorted by path.
func (s *server) makeDocs() document {
	d, byTag := s.apiDocument(), map[any][]docsOperation{}
	for _, path := range slices.Sorted(maps.Keys(d.Paths)) {
		for _, method := range []string{"get", "post", "put", "delete"} {
			if node := d.Paths[path][method]; node != nil {
				tag := node["tags"].([]any)[0]
				byTag[tag] = append(byTag[tag], d.operation(method, path, node))
			}
		}
	}
	var body strings.Builder
	docsTemplate.Execute(&body, map[string]any{ // the tests see that it can be rendered
		"Document":   d,
		"Operations": byTag,
		"Style":      template.CSS(docsStyle),
	})
	page := newDocument([]byte(body.String()))
	maps.Copy(page.header, htmlHeader(docsStyle))
	return page
}

var pathParameter = regexp.MustCompile(`{\w+}`)

// curl is a command that does the operation, with the example of its body.
// Where there must be a bearer, it is $TOKEN.
func (o docsOperation) curl(base string) string {
	query := url.Values{}
	for _, p := range o.Parameters {
		if p["in"] == "query" && p["required"] == true {
			query.Set(p["name"].(string), p["example"].(string))
		}
	}
	address := base + pathParameter.ReplaceAllStringFunc(o.Path, func(name string) string {
		return strings.ToUpper(strings.Trim(name, "{}"))
	})
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	command := "curl -X " + o.Method + " '" + address + "'"
	if security, _ := o.Node["security"].([]any); len(security) == 1 {
		command += ` -H "Authorization: Bearer $TOKEN"`
	}
	request, _ := o.Node["requestBody"].(apiNode)
	content, _ := request["content"].(apiNode)
	for kind, one := range content {
		example := one.(apiNode)["example"].(apiNode)
		data, _ := json.Marshal(example) // it came from JSON: cannot fail
		if kind != "application/json" {
			form := url.Values{}
			for name, value := range example {
				form.Set(name, value.(string))
			}
			data = []byte(form.Encode())
		}
		command += " -H 'Content-Type: " + kind + "' -d '" + string(data) + "'"
	}
	return command
}

// docsMember is a member of an object.
type docsMember struct {
	Name     string
	Required bool
	Schema   any
}

// docsMembers are those of a schema: first the required ones, in its order.
func docsMembers(schema apiNode) (members []docsMember) {
	properties, _ := schema["properties"].(apiNode)
	required, _ := schema["required"].([]any)
	for _, name := range required {
		members = append(members, docsMember{name.(string), true, properties[name.(string)]})
	}
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if !slices.Contains(required, any(name)) {
			members = append(members, docsMember{name, false, properties[name]})
		}
	}
	return members
}

const docsStyle = htmlColours + `
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.3; margin: 2rem 0 .5rem; }
h1 { margin-top: 0; }
h4 { margin: 1.25rem 0 .25rem; }
p { margin: 0 0 .75rem; }
details { margin: .5rem 0; padding: .625rem .875rem; background: var(--card); border-radius: .5rem;
	border: 1px solid color-mix(in srgb, var(--line) 40%, transparent); }
summary { cursor: pointer; }
details[open] > summary { margin-bottom: .75rem; }
code, pre { font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { margin: 0; padding: .625rem .75rem; background: var(--back); border-radius: .375rem;
	white-space: pre-wrap; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top;
	border-bottom: 1px solid color-mix(in srgb, var(--line) 30%, transparent); }
th { font-weight: 600; color: var(--soft); }
td:first-child { width: 30%; }
@media (max-width: 40rem) { thead { display: none; } tr { display: block; padding: .3rem 0;
	border-bottom: 1px solid color-mix(in srgb, var(--line) 30%, transparent); }
	td, td:first-child { display: block; width: auto; border: 0; padding: 0; } }
`

// docsTemplate shows the document. The link to openapi.json is relative,
// because a proxy may have put this server below a path.
var docsTemplate = template.Must(template.New("docs").Funcs(template.FuncMap{
	"base":    path.Base,
	"members": docsMembers,
}).Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Document.Info.title}}</title>
<link rel="icon" href="data:,">
<style>{{.Style}}</style>
</head>
<body>
<main>
<h1>{{.Document.Info.title}} <span class="soft">{{.Document.Info.version}}</span></h1>
<p>{{.Document.Info.description}}</p>
<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI {{.Document.OpenAPI}}).</p>
<p>The commands below take an access token from the environment. This one gets it:</p>
<pre>TOKEN=$(curl -sS '{{(index .Document.Servers 0).url}}/api/v1/auth/login' \
  -H 'Content-Type: application/json' \
  -d '{"email":"EMAIL","password":"PASSWORD"}' | sed 's/.*"access_token":"\([^"]*\)".*/\1/')</pre>
{{- range .Document.Tags}}
{{- $operations := index $.Operations .name}}
{{- if $operations}}
<h2 id="{{.name}}">{{.name}}</h2>
<p class="soft">{{.description}}</p>
{{- range $operations}}
<details id="{{.Node.operationId}}">
<summary><code><strong>{{.Method}}</strong> {{.Path}}</code>
<span class="soft">{{.Node.summary}}</span></summary>
{{- with .Node.description}}
<p>{{.}}</p>
{{- end}}
{{- with .Node.security}}
<p>Authentication: {{range $i, $one := .}}{{if $i}}, or {{end}}{{range $name, $scopes := $one}}
<a href="#{{$name}}">{{$name}}</a>{{else}}none{{end}}{{end}}.</p>
{{- end}}
<pre>{{.Curl}}</pre>
{{- with .Parameters}}
<h4>Parameters</h4>
<table>
<thead><tr><th>name</th><th>type</th><th>meaning</th></tr></thead>
<tbody>
{{- range .}}
<tr><td><code>{{.name}}</code> <span class="soft">{{.in}}{{if not .required}}, optional{{end}}</span></td>
<td>{{template "type" .schema}}</td><td>{{.description}}</td></tr>
{{- end}}
</tbody>
</table>
{{- end}}
{{- with .Node.requestBody}}
{{- range $kind, $content := .content}}
<h4>Body <span class="soft">{{$kind}}</span></h4>
{{template "schema" $content.schema}}
{{- end}}
{{- end}}
<h4>Answers</h4>
<table>
<thead><tr><th>status</th><th>body</th><th>meaning</th></tr></thead>
<tbody>
{{- range $status, $response := .Responses}}
<tr><td><code>{{$status}}</code></td>
<td>{{range $kind, $content := $response.content}}{{template "body" $content.schema}}{{end}}</td>
<td>{{$response.description}}</td></tr>
{{- end}}
</tbody>
</table>
</details>
{{- end}}
{{- end}}
{{- end}}
<h2>Authentication</h2>
{{- range $name, $scheme := .Document.Components.securitySchemes}}
<p id="{{$name}}"><code>{{$name}}</code> ({{or $scheme.scheme $scheme.in}}): {{$scheme.description}}.</p>
{{- end}}
<h2>Schemas</h2>
{{- range $name, $schema := .Document.Components.schemas}}
<details id="{{$name}}">
<summary><code>{{$name}}</code></summary>
{{template "schema" $schema}}
</details>
{{- end}}
</main>
</body>
</html>

{{- define "type"}}
{{- if index . "$ref"}}{{$name := base (index . "$ref")}}<a href="#{{$name}}">{{$name}}</a>
{{- else if .enum}}{{range $i, $value := .enum}}{{if $i}}, {{end}}<code>{{$value}}</code>{{end}}
{{- else if .const}}<code>{{.const}}</code>
{{- else if .oneOf}}{{range $i, $one := .oneOf}}{{if $i}} or {{end}}{{template "type" $one}}{{end}}
{{- else if .items}}list of {{template "type" .items}}
{{- else}}{{.type}}{{with .format}} ({{.}}){{end}}
{{- end}}
{{- end}}

{{- define "body"}}
{{- range .allOf}}{{range .properties}}{{template "type" .}}{{end}}
{{- else}}{{template "type" .}}
{{- end}}
{{- end}}

{{- define "schema"}}
{{- if .properties}}
{{- with .description}}<p>{{.}}</p>{{end}}
<table>
<thead><tr><th>member</th><th>type</th><th>meaning</th></tr></thead>
<tbody>
{{- range members .}}
<tr><td><code>{{.Name}}</code>{{if not .Required}} <span class="soft">optional</span>{{end}}</td>
<td>{{template "type" .Schema}}</td><td>{{.Schema.description}}</td></tr>
{{- end}}
</tbody>
</table>
{{- else if .oneOf}}
{{- range $i, $one := .oneOf}}{{if $i}}<p>or</p>{{end}}{{template "schema" $one}}{{end}}
{{- else}}<p>{{template "type" .}}{{with .description}}: {{.}}{{end}}</p>
{{- end}}
{{- end}}
`))
