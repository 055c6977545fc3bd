// This file holds what people do in a browser: sign in, come back, sign out,
// and what a page of somebody else's must not achieve. Every story runs at
// every kind of address that a server can have.

package browser

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ci/program"
)

const (
	email    = "ada@example.com"
	password = "battery staple"
)

// place is a kind of address at which browsers see the server.
type place struct {
	name  string
	https bool
	host  string // of the issuer
	proxy bool   // through nginx, which sends another Host to the server
}

// Over http, at a name that is not loopback, browsers send no Sec-Fetch-Site:
// the server compares Origin with Host, and behind a proxy that changes Host it
// has only its issuer to compare with.
var places = []place{
	{"http on loopback", false, "localhost", false},
	{"http at a name", false, "auth.test", false},
	{"http at a name behind nginx", false, "auth.test", true},
	{"https behind nginx", true, "auth.test", true},
}

// world is a server at a place, two applications, and somebody's browser.
type world struct {
	*window
	server   *program.Server
	notes    *app
	calendar *app // on another origin than notes
}

func newWorld(t *testing.T, at place, env ...string) *world {
	t.Helper()
	w := &world{notes: newApp(t, "notes", at.https), calendar: newApp(t, "calendar", at.https)}
	yaml := program.Clients(w.notes.client(""), w.calendar.client("ask: true"))
	port := program.FreePort(t)
	issuer := "http://" + at.host + ":" + port
	if at.proxy {
		issuer = proxied(t, at, port)
		env = append(env, "SERVER_TRUSTED_PROXIES=127.0.0.1/32")
	}
	w.server = program.Start(t, port, issuer, yaml, env...)
	w.notes.issuer, w.calendar.issuer = issuer, issuer
	w.server.Register(t, email, password)
	w.window = openWindow(t)
	return w
}

// in is the same world for a subtest.
func (w *world) in(t *testing.T) *world {
	inner, window := *w, *w.window
	window.t = t
	inner.window = &window
	return &inner
}

// proxied starts nginx in front of a port and returns the address that it
// serves.
func proxied(t *testing.T, at place, port string) string {
	t.Helper()
	dir, front := t.TempDir(), program.FreePort(t)
	scheme, listen := "http", "listen 127.0.0.1:"+front
	if at.https {
		scheme, listen = "https", listen+" ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem"
		program.Certificate(t, dir, at.host)
	}
	conf := fmt.Sprintf(`
		daemon off; pid nginx.pid; error_log stderr;
		events {}
		http {
			access_log off; client_body_temp_path body; proxy_temp_path proxy;
			fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
			server {
				%s;
				location / {
					proxy_pass http://127.0.0.1:%s;
					proxy_set_header Host backend.internal;
					proxy_set_header X-Forwarded-For $remote_addr;
				}
			}
		}`, listen, port)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	program.Run(t, dir, nil, "nginx", "-p", dir, "-c", "nginx.conf", "-e", "stderr")
	address := scheme + "://" + at.host + ":" + front
	program.Await(t, "nginx", func() bool {
		return program.Answers(address, http.StatusBadGateway) // the server is not there yet
	})
	return address
}

// start goes to an application and asks it to sign in.
func (w *world) start(a *app, more url.Values) { w.open(a.URL + "/start?" + more.Encode()) }

// signIn fills the form that is shown in and sends it.
func (w *world) signIn(email, password string) {
	w.t.Helper()
	w.typeText("input[name=email]", email)
	w.typeText("input[name=password]", password)
	w.click("button[type=submit]")
}

// enter signs in to the first application.
func (w *world) enter() {
	w.t.Helper()
	w.start(w.notes, nil)
	w.signIn(email, password)
	w.shows("#user", email)
}

// forget makes the browser one that was never here.
func (w *world) forget() { w.devtools("Network.clearBrowserCookies", map[string]any{}) }

func (w *world) shows(css, text string) {
	w.t.Helper()
	if got := w.text(css); got != text {
		w.t.Fatalf("%s shows %q; want %q", css, got, text)
	}
}

func TestBrowser_Stories(t *testing.T) {
	stories := []struct {
		name string
		tell func(*world)
	}{
		{"wrong password, then right", wrongThenRight},
		{"keyboard alone", keyboardAlone},
		{"single sign-on", singleSignOn},
		{"answer no", answerNo},
		{"sign in again", signInAgain},
		{"sign out from the application", signOutWithHint},
		{"sign out after a question", signOutAfterQuestion},
		{"redirects over two origins", twoOrigins},
		{"login form on another origin", forgedLogin},
		{"login form in a frame", framedLogin},
	}
	for _, at := range places {
		t.Run(at.name, func(t *testing.T) {
			w := newWorld(t, at, "THROTTLE_PAIR_FAILURES=0")
			for _, story := range stories {
				t.Run(story.name, func(t *testing.T) {
					w := w.in(t)
					w.forget()
					story.tell(w)
				})
			}
			t.Run("cookie", func(t *testing.T) { w.in(t).checkCookie(at) })
		})
	}
}

func wrongThenRight(w *world) {
	w.start(w.notes, nil)
	w.signIn(email, "wrong password")
	if w.text("[role=alert]") == "" {
		w.t.Error("the alert is empty")
	}
	if got := w.value("input[name=email]"); got != email {
		w.t.Errorf("after a wrong password the form has the email %q; want %q", got, email)
	}
	if got := w.value("input[name=password]"); got != "" {
		w.t.Errorf("after a wrong password the form has the password %q", got)
	}
	w.typeText("input[name=password]", password)
	w.click("button[type=submit]")
	w.shows("#user", email)
}

// keyboardAlone types where the focus is when the page opens.
func keyboardAlone(w *world) {
	w.start(w.notes, nil)
	w.find("input[name=email]:focus")
	w.typeText(":focus", email+keyTab)
	w.find("input[name=password]:focus")
	w.typeText(":focus", password+keyEnter)
	w.shows("#user", email)
}

// singleSignOn comes to a second application, which asks before it continues,
// and back to the first, where no page is shown any more.
func singleSignOn(w *world) {
	w.start(w.calendar, url.Values{"prompt": {"none"}})
	w.shows("#error", "login_required")
	w.enter()
	w.start(w.calendar, url.Values{"prompt": {"none"}})
	w.shows("#error", "interaction_required")
	w.start(w.calendar, nil)
	w.click("button[name=answer][value=yes]")
	w.shows("#user", email)
	w.start(w.notes, nil)
	w.shows("#user", email)
	w.start(w.notes, url.Values{"prompt": {"none"}})
	w.shows("#user", email)
}

func answerNo(w *world) {
	w.enter()
	w.start(w.calendar, nil)
	w.click("button[name=answer][value=no]")
	w.shows("#error", "access_denied")
}

func signInAgain(w *world) {
	w.enter()
	w.start(w.notes, url.Values{"prompt": {"login"}})
	w.signIn(email, password)
	w.shows("#user", email)
}

func signOutWithHint(w *world) {
	w.enter()
	w.open(w.notes.URL + "/leave")
	w.shows("#bye", "so long")
	w.start(w.notes, url.Values{"prompt": {"none"}})
	w.shows("#error", "login_required")
}

func signOutAfterQuestion(w *world) {
	w.enter()
	w.open(w.server.Issuer + "/oauth2/logout")
	w.find("form[action*='/oauth2/logout/confirm']")
	w.start(w.notes, url.Values{"prompt": {"none"}}) // the question alone ends nothing
	w.shows("#user", email)
	w.open(w.server.Issuer + "/oauth2/logout?" + url.Values{
		"client_id":                {w.notes.id},
		"post_logout_redirect_uri": {w.notes.URL + "/bye"},
		"state":                    {"asked"},
	}.Encode())
	w.click("form[action*='/oauth2/logout/confirm'] button")
	w.shows("#bye", "asked")
	w.start(w.notes, url.Values{"prompt": {"none"}})
	w.shows("#error", "login_required")
}

// twoOrigins follows the application to a third origin after the login form.
// Chromium holds every redirect after a form against its page's form-action.
func twoOrigins(w *world) {
	port := w.calendar.URL[strings.LastIndex(w.calendar.URL, ":"):]
	scheme, _, _ := strings.Cut(w.calendar.URL, ":")
	w.notes.next = scheme + "://localhost" + port + "/landed"
	defer func() { w.notes.next = "" }()
	w.start(w.notes, nil)
	w.signIn(email, password)
	w.shows("#landed", "here")
	if got := w.get("/url"); got != w.notes.next {
		w.t.Errorf("the way ends at %s; want %s", got, w.notes.next)
	}
}

// forgedLogin is login CSRF: the visitor would work in the attacker's account.
func forgedLogin(w *world) {
	w.open(w.calendar.URL + "/forge?" + url.Values{"email": {email}, "password": {password}}.Encode())
	w.click("button")
	w.find("[role=alert]")
	w.start(w.notes, url.Values{"prompt": {"none"}})
	w.shows("#error", "login_required")
}

// framedLogin is clickjacking: the form must not show inside a page of somebody
// else's.
func framedLogin(w *world) {
	w.open(w.notes.URL + "/landed")
	w.call("POST", "/execute/async", map[string]any{
		"script": `const f = document.createElement("iframe");
			f.onload = arguments[1]; f.src = arguments[0]; document.body.append(f)`,
		"args": []string{w.notes.request(nil)},
	}, nil)
	w.call("POST", "/frame", map[string]any{"id": 0}, nil)
	if n := w.number(`document.querySelectorAll("input").length`); n != 0 {
		w.t.Errorf("%v inputs of the login form show in a frame of another origin", n)
	}
	w.call("POST", "/frame", map[string]any{"id": nil}, nil)
}

// checkCookie signs in once more and looks at what the browser keeps.
func (w *world) checkCookie(at place) {
	w.forget()
	w.enter()
	w.open(w.server.Issuer + "/healthz")
	want := cookie{Name: "pico", HTTPOnly: true, SameSite: "Lax"}
	if at.https {
		want.Name, want.Secure = "__Host-pico", true
	}
	got := w.cookies()
	if len(got) != 1 {
		w.t.Fatalf("cookies %+v; want one", got)
	}
	if got[0].Value == "" {
		w.t.Error("the cookie is empty")
	}
	got[0].Value = ""
	if got[0] != want {
		w.t.Errorf("cookie %+v; want %+v", got[0], want)
	}
}
