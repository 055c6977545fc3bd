// This file puts applications behind Debian's Caddy and nginx, with the blocks
// that docs/forward-auth.md prints, and visits them as browsers and attackers
// do. What counts is what reaches the application.

// Package forward tests forward auth through real proxies.
package forward

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"ci/program"
)

const (
	email    = "ada@example.com"
	password = "battery staple"
)

// remote are the headers that say who the user is.
var remote = []string{
	"Remote-User", "Remote-Email", "Remote-Name", "Remote-Groups", "Remote-Role", "Remote-Org",
}

// proxy is a program that asks the server. Its configuration is made from the
// blocks of the documentation.
type proxy struct {
	name    string
	start   func(t *testing.T, dir, port, conf string)
	program int // status for a program without a login
}

var proxies = []proxy{
	{"caddy", program.StartCaddy, http.StatusUnauthorized},
	{"nginx", program.StartNginx, http.StatusFound},
}

// seen is a request as it reached the application.
type seen struct {
	Method, URI, Body string
	Header            http.Header
}

// world is a server, a proxy, and three applications that are one program: app
// and wiki are for staff, panel is for admins.
type world struct {
	*testing.T
	server   *program.Server
	front    string // port of the proxy
	user     string // id of ada, who is in staff
	requests *atomic.Int64
	browser  *http.Client
}

func newWorld(t *testing.T, p proxy) *world {
	w := &world{T: t, front: program.FreePort(t), requests: &atomic.Int64{}, browser: program.Local()}
	app := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.requests.Add(1)
		body, _ := io.ReadAll(r.Body) // the proxy is done with it
		_ = json.NewEncoder(rw).Encode(seen{r.Method, r.RequestURI, string(body), r.Header})
	}))
	t.Cleanup(app.Close)
	_, behind, _ := strings.Cut(app.URL, "http://127.0.0.1:")
	here, dir := program.FreePort(t), t.TempDir()

	ports := strings.NewReplacer(":8100", ":"+here, ":8080", ":"+behind)
	application := program.Block(t, p.name+" application")
	panel := strings.NewReplacer("app.example.com", "panel.example.com", "group=staff", "group=admins")
	conf := program.Block(t, p.name+" login") + application +
		strings.ReplaceAll(application, "app.example.com", "wiki.example.com") +
		panel.Replace(application)
	program.Certificate(t, dir, "*.example.com")
	p.start(t, dir, w.front, ports.Replace(conf))

	w.server = program.Start(t, here, w.url("auth", ""), program.Block(t, "yaml forward-auth"))
	w.user = w.server.Register(t, email, password)
	admin := w.server.Call(t, "POST", "/api/v1/auth/login", "", map[string]string{
		"email": program.AdminEmail, "password": program.AdminPassword})
	bearer := fmt.Sprint(admin["access_token"])
	staff := w.server.Call(t, "POST", "/api/v1/groups", bearer, map[string]string{"name": "staff"})
	w.server.Call(t, "POST", fmt.Sprintf("/api/v1/groups/%s/members", staff["id"]), bearer, w.user)
	program.Await(t, "the proxy", func() bool {
		return program.Answers(w.url("auth", "/healthz"), http.StatusOK)
	})
	return w
}

// in is the same world for a subtest, and forget a browser that was never here.
func (w *world) in(t *testing.T) *world { inner := *w; inner.T = t; return &inner }
func (w *world) forget()                { w.browser = program.Local() }

func (w *world) url(host, path string) string {
	return "https://" + host + ".example.com:" + w.front + path
}

// send sends a request as the browser does; headers are "Name: value" and are
// not corrected. It follows redirects when it asks for a page.
func (w *world) send(method, address, body string, headers ...string) (*http.Response, string) {
	w.Helper()
	r, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	r.Header.Set("Accept", "text/html")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header[name] = append(r.Header[name], value)
	}
	resp, err := w.browser.Do(r)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return resp, string(page)
}

// reach is send for requests that are to reach the application.
func (w *world) reach(method, address, body string, headers ...string) (got seen) {
	w.Helper()
	resp, page := w.send(method, address, body, headers...)
	if err := json.Unmarshal([]byte(page), &got); err != nil || resp.StatusCode != http.StatusOK {
		w.Fatalf("%s %s = %s at %s\n%.300s", method, address, resp.Status, resp.Request.URL, page)
	}
	return got
}

var formAction = regexp.MustCompile(`<form[^>]*\baction="([^"]*)"`)

// submit sends the form of a page and returns what is shown in the end.
func (w *world) submit(resp *http.Response, page string, form url.Values) (*http.Response, string) {
	w.Helper()
	m := formAction.FindStringSubmatch(page)
	if m == nil {
		w.Fatalf("%s at %s has no form\n%.300s", resp.Status, resp.Request.URL, page)
	}
	action, err := resp.Request.URL.Parse(html.UnescapeString(m[1]))
	if err != nil {
		w.Fatal(err)
	}
	return w.send("POST", action.String(), form.Encode(), "Content-Type: application/x-www-form-urlencoded",
		"Origin: "+w.url("auth", ""))
}

// enter opens a page of the application and logs in.
func (w *world) enter(host, path string) {
	w.Helper()
	resp, page := w.send("GET", w.url(host, path), "")
	if !strings.HasPrefix(resp.Request.URL.String(), w.url("auth", "/oauth2/forward?")) {
		w.Fatalf("signed out: %s at %s", resp.Status, resp.Request.URL)
	}
	resp, page = w.submit(resp, page, url.Values{"email": {email}, "password": {password}})
	if got := resp.Request.URL.String(); got != w.url(host, path) || resp.StatusCode != http.StatusOK {
		w.Fatalf("after the login: %s at %s\n%.300s", resp.Status, got, page)
	}
}

// isOut checks that a page of the application leads to the login.
func (w *world) isOut(host string) {
	w.Helper()
	before := w.requests.Load()
	resp, page := w.send("GET", w.url(host, "/"), "")
	if !strings.Contains(page, `name="password"`) || w.requests.Load() != before {
		w.Errorf("%s: %s at %s; want the login page", host, resp.Status, resp.Request.URL)
	}
}

func TestForward_Stories(t *testing.T) {
	stories := []struct {
		name string
		tell func(*world, proxy)
	}{
		{"login and back", loginAndBack},
		{"program without a login", programWithout},
		{"wrong group", wrongGroup},
		{"forged headers", forgedHeaders},
		{"forged origin", forgedOrigin},
		{"foreign rd", foreignReturn},
		{"two subdomains", twoSubdomains},
		{"logout", logout},
		{"suspension", suspension}, // the last, because it stays
	}
	for _, p := range proxies {
		t.Run(p.name, func(t *testing.T) {
			if _, err := exec.LookPath(p.name); err != nil {
				t.Skip("no " + p.name + " in PATH")
			}
			w := newWorld(t, p)
			for _, story := range stories {
				t.Run(story.name, func(t *testing.T) {
					w := w.in(t)
					w.forget()
					story.tell(w, p)
				})
			}
		})
	}
}

func loginAndBack(w *world, _ proxy) {
	w.isOut("app")
	w.enter("app", "/a%20b/c?d=e&f=%26")
	got := w.reach("POST", w.url("app", "/form?x"), "some text", "Content-Type: text/plain")
	if got.Method != "POST" || got.URI != "/form?x" || got.Body != "some text" {
		w.Errorf("the application got %s %s %q", got.Method, got.URI, got.Body)
	}
	want := map[string]string{"Remote-User": w.user, "Remote-Name": "Ada Lovelace", "Remote-Groups": "staff",
		"Remote-Role": "viewer", "Remote-Org": "default", "Remote-Email": ""} // it is not verified
	for _, name := range remote {
		if text := strings.Join(got.Header[name], " and "); text != want[name] {
			w.Errorf("%s is %q; want %q", name, text, want[name])
		}
	}
}

func programWithout(w *world, p proxy) {
	w.browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	before := w.requests.Load()
	resp, _ := w.send("POST", w.url("app", "/"), "{}", "Accept: application/json")
	if resp.StatusCode != p.program || w.requests.Load() != before {
		w.Errorf("a program gets %s; want %d", resp.Status, p.program)
	}
	login := w.server.Call(w.T, "POST", "/api/v1/auth/login", "", map[string]string{
		"email": email, "password": password})
	got := w.reach("GET", w.url("app", "/"), "", fmt.Sprint("Authorization: Bearer ", login["access_token"]))
	if user := got.Header.Get("Remote-User"); user != w.user {
		w.Errorf("Remote-User is %q; want %q", user, w.user)
	}
}

func wrongGroup(w *world, _ proxy) {
	w.enter("app", "/")
	before := w.requests.Load()
	resp, _ := w.send("GET", w.url("panel", "/?group=staff"), "")
	if resp.StatusCode != http.StatusForbidden || w.requests.Load() != before {
		w.Errorf("panel answers %s at %s; want 403", resp.Status, resp.Request.URL)
	}
}

// forgedHeaders sends each header in the spellings that some applications take
// for it, alone and twice, beside a good login and without one.
func forgedHeaders(w *world, _ proxy) {
	forgeries := func(name string) []string {
		under := strings.ReplaceAll(name, "-", "_")
		return []string{name, strings.ToLower(name), strings.ToUpper(name), under, strings.ToUpper(under)}
	}
	var all []string
	for _, name := range remote {
		for _, forged := range forgeries(name) {
			all = append(all, forged+": forged")
		}
	}
	before := w.requests.Load()
	if resp, _ := w.send("GET", w.url("app", "/"), "", all...); w.requests.Load() != before {
		w.Errorf("without a login: %s", resp.Status)
	}
	w.enter("app", "/")
	honest := w.reach("GET", w.url("app", "/"), "")
	for _, forged := range append(all, "all") {
		headers := []string{forged, forged}
		if forged == "all" {
			headers = all
		}
		got := w.reach("GET", w.url("app", "/"), "", headers...)
		for _, name := range remote {
			if text, want := got.Header[name], honest.Header[name]; fmt.Sprint(text) != fmt.Sprint(want) {
				w.Errorf("with %s: %s is %q; want %q", forged, name, text, want)
			}
		}
		for name, values := range got.Header {
			if strings.Contains(strings.Join(values, " "), "forged") {
				w.Errorf("with %s: the application got %s: %q", forged, name, values)
			}
		}
	}
}

// forgedOrigin: a client that says where it came from is not believed.
func forgedOrigin(w *world, _ proxy) {
	w.browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	want := w.url("auth", "/oauth2/forward?rd="+url.QueryEscape(w.url("app", "/x?y")))
	for _, forged := range []string{
		"X-Forwarded-Host: wiki.example.com", "X-Forwarded-Uri: /evil", "X-Forwarded-Proto: http",
		"X_Forwarded_Host: wiki.example.com", "X-Original-URL: https://wiki.example.com/",
		"X-Forwarded-Prefix: /evil", "Forwarded: host=wiki.example.com", "X-Rewrite-Url: /evil",
	} {
		resp, _ := w.send("GET", w.url("app", "/x?y"), "", forged)
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusFound || got != want {
			w.Errorf("with %s: %s to %q; want 302 to %q", forged, resp.Status, got, want)
		}
	}
}

func foreignReturn(w *world, _ proxy) {
	w.enter("app", "/")
	for _, to := range []string{
		"https://evil.example/", "http://app.example.com/", "//evil.example", "javascript:alert(1)", "",
		"https://example.com.evil.example/", "https://app.example.com@evil.example/",
		`https://evil.example\.example.com/`,
	} {
		resp, _ := w.send("GET", w.url("auth", "/oauth2/forward?rd="+url.QueryEscape(to)), "")
		if resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Location") != "" {
			w.Errorf("rd=%s: %s at %s; want 400", to, resp.Status, resp.Request.URL)
		}
	}
}

func twoSubdomains(w *world, _ proxy) {
	w.isOut("wiki")
	w.enter("app", "/")
	if got := w.reach("GET", w.url("wiki", "/page"), ""); got.Header.Get("Remote-User") != w.user {
		w.Errorf("the wiki got %v", got.Header)
	}
}

func logout(w *world, _ proxy) {
	w.enter("app", "/")
	w.reach("GET", w.url("wiki", "/"), "")
	elsewhere := w.in(w.T)
	elsewhere.forget()
	elsewhere.enter("wiki", "/")
	resp, page := w.send("GET", w.url("auth", "/oauth2/logout"), "")
	if _, page = w.submit(resp, page, url.Values{}); !strings.Contains(page, "You are logged out") {
		w.Fatalf("after the logout: %.300s", page)
	}
	w.isOut("app")
	w.isOut("wiki")
	elsewhere.reach("GET", w.url("app", "/"), "")
}

func suspension(w *world, _ proxy) {
	w.enter("app", "/")
	w.server.Suspend(w.T, w.user)
	w.isOut("app")
}
