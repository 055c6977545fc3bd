package main

// This file is the pages that people see and the forms that come back: their
// markup, style and headers. What they say is up to the files above. Pages have
// no script and nothing from elsewhere, work without their style, and show our
// host, so that people see where they type their password. Every text of a
// request goes through html/template, which escapes it for its place.

import (
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
)

// pageStyle holds for light and dark, from 320 pixels on. System fonts and
// colours of enough contrast (WCAG 2.2, 1.4.3).
const pageStyle = `
:root { color-scheme: light dark; --back: #f3f4f6; --card: #fff; --text: #1c2430; --soft: #566070;
	--line: #8a93a2; --main: #1d4ed8; --onmain: #fff; --bad: #b42318; --badback: #fef3f2; }
@media (prefers-color-scheme: dark) { :root { --back: #12161d; --card: #1b212b; --text: #e8ebf0;
	--soft: #a3adbb; --line: #6b7686; --main: #8ab4ff; --onmain: #10203f; --bad: #ffb4ab;
	--badback: #3a1f1d; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: flex; align-items: center; justify-content: center;
	padding: 1rem; background: var(--back); color: var(--text);
	font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { width: 100%; max-width: 25rem; padding: 2rem; background: var(--card); border-radius: .75rem;
	box-shadow: 0 1px 3px rgb(0 0 0 / .2); overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; font-size: 1.375rem; line-height: 1.3; }
p { margin: 0 0 1rem; }
.soft { color: var(--soft); }
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
a { color: var(--main); }
:focus-visible { outline: 3px solid color-mix(in srgb, var(--main) 60%, transparent); outline-offset: 2px; }
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

// writePage writes a page that no other page can frame (clickjacking) and in
// which no script runs; no-store is on every answer (newServer). The style is
// allowed by its hash. There is deliberately no form-action: browsers apply it
// to every redirect that follows a form, those of the client's own site among
// them. The policy for Referer is same-origin, because with no-referrer
// browsers send "Origin: null" with our own forms, and ownForm would refuse
// them.
func (s *server) writePage(x *exchange, status int, p page) error {
	issuer, _ := url.Parse(s.cfg.issuer) // checked by loadConfig
	p.Host, p.Style = issuer.Host, pageStyle
	var body strings.Builder
	if err := pageTemplate.Execute(&body, p); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(pageStyle))
	h := x.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+
		base64.StdEncoding.EncodeToString(sum[:])+"'; img-src data:; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Frame-Options", "DENY")
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
