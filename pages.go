package main

// This file is the pages that people see and the forms that come back: their
// markup and style. What they say is up to the files above. Pages have
// no script and nothing from elsewhere, work without their style, and show our
// host, so that people see where they type their password. Every text of a
// request goes through html/template, which escapes it for its place.

import (
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"strings"
)

// pageStyle is for pages of one card, from 320 pixels on, in system fonts.
const pageStyle = htmlColours + `
body { min-height: 100vh; display: flex; align-items: center; justify-content: center; padding: 1rem; }
main { width: 100%; max-width: 25rem; padding: 2rem; background: var(--card); border-radius: .75rem;
	box-shadow: 0 1px 3px rgb(0 0 0 / .2); overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; font-size: 1.375rem; line-height: 1.3; }
p { margin: 0 0 1rem; }
.host { margin: 1.5rem 0 0; padding-top: 1rem; font-size: .875rem;
	border-top: 1px solid color-mix(in srgb, var(--line) 40%, transparent); }
form + .link { margin: 1rem 0 0; }
.fault { margin-top: .75rem; padding: .75rem; border-radius: .5rem; color: var(--bad);
	background: var(--badback); }
label { display: block; margin: 1rem 0 .25rem; font-weight: 600; }
input { width: 100%; padding: .625rem .75rem; font: inherit; color: inherit; background: transparent;
	border: 1px solid var(--line); border-radius: .5rem; }
button { width: 100%; margin-top: 1.25rem; padding: .625rem 1rem; font: inherit; font-weight: 600;
	color: var(--onmain); background: var(--main); border: 1px solid var(--main); border-radius: .5rem;
	cursor: pointer; }
button.other { margin-top: .75rem; color: var(--text); background: transparent; border-color: var(--line); }
@media (max-width: 24rem) { body { align-items: flex-start; } main { padding: 1.25rem; } }
`

// pageTemplate is the frame with one block for each page.
var pageTemplate = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{{.Title}}</title>
<link rel="icon" href="data:,">
<style>{{.Style}}</style>
</head>
<body>
<main>
<h1>{{.Title}}</h1>
{{- if eq .Kind "login"}}
<p class="soft">to continue to <strong>{{.Client}}</strong>
 {{- if .Where}} at <strong>{{.Where}}</strong>{{end}}</p>
{{- if .Fault}}
<p class="fault" role="alert" id="fault">{{.Fault}}</p>
{{- end}}
<form method="post" action="{{.Action}}">
<label for="email">Email</label>
<input id="email" name="email" type="text" inputmode="email" value="{{.Email}}" autocomplete="username"
 autocapitalize="none" spellcheck="false" required
 {{- if .Fault}} aria-describedby="fault"{{end}}{{if not .Email}} autofocus{{end}}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required
 {{- if .Fault}} aria-describedby="fault"{{end}}{{if .Email}} autofocus{{end}}>
<button type="submit">Log in</button>
</form>
{{- else if eq .Kind "continue"}}
<p>You are logged in as <strong>{{.Email}}</strong>. The answer goes to <strong>{{.Where}}</strong>.</p>
<form method="post" action="{{.Action}}">
<input type="hidden" name="user" value="{{.User}}">
<button type="submit" name="answer" value="yes">Continue as {{.Email}}</button>
<button type="submit" name="answer" value="no" class="other">Cancel</button>
</form>
<p class="link"><a href="{{.Other}}">Log in as somebody else</a></p>
{{- else if eq .Kind "logout"}}
<p>You are logged in as <strong>{{.Email}}</strong>. Logging out here ends it for the applications that you
 reached with this login, too.</p>
<form method="post" action="{{.Action}}">
<button type="submit" autofocus>Log out</button>
</form>
{{- else}}
<p{{if .Fault}} class="fault" role="alert"{{end}}>{{or .Fault .Text}}</p>
{{- if .RequestID}}
<p class="soft">If you ask for help, name the request {{.RequestID}}.</p>
{{- end}}
{{- end}}
<p class="host soft">{{.Host}}</p>
</main>
</body>
</html>
`))

// page is what a page shows. Kind chooses the block; other fields may be empty.
type page struct {
	Kind, Title string
	Client      string // its name, from the configuration
	Action      string // where the form goes
	Email, User string
	Where       string // who gets the answer, if that is not sure from the name
	Other       string // link to log in as somebody else
	Fault, Text string
	RequestID   string
	Host        string       // ours
	Style       template.CSS // pageStyle
}

// writePage writes a page.
func (s *server) writePage(x *exchange, status int, p page) error {
	issuer, _ := url.Parse(s.cfg.issuer) // checked by loadConfig
	p.Host, p.Style = issuer.Host, pageStyle
	var body strings.Builder
	if err := pageTemplate.Execute(&body, p); err != nil {
		return err
	}
	maps.Copy(x.Header(), htmlHeader(pageStyle))
	writeBody(x, status, []byte(body.String()))
	return nil
}

// failPage is the form of errors for pages.
func (s *server) failPage(x *exchange, e *apiError) {
	title := "This did not work"
	if e.status >= 500 {
		title = "Something is wrong here"
	}
	p := page{Kind: "fault", Title: title, Fault: e.detail, RequestID: x.requestID()}
	if err := s.writePage(x, e.status, p); err != nil {
		writeProblem(x, e)
	}
}

// formAction is the path of one of our forms with the query of the request that
// it belongs to.
func (s *server) formAction(path string, query url.Values) string {
	return s.cfg.basePath() + path + "?" + query.Encode()
}

// redirect sends the browser to another page. 303 makes it forget a form that
// it posted, with the password in it (RFC 9700 section 4.12).
func redirect(x *exchange, to string) error {
	x.Header().Set("Location", to)
	writeBody(x, http.StatusSeeOther, nil)
	return nil
}
