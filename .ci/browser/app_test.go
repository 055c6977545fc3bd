// This file is the application that people sign in to: a client of the server
// as small as one can be, with a page of its own for every way to come back.

package browser

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"ci/program"
)

// app is one application. Its paths are /start, which takes parameters for the
// authorization request, /callback, /leave, which signs out with the id_token,
// /bye, which is shown afterwards, and /forge, a page that posts the login form
// of the server from this origin.
type app struct {
	*httptest.Server
	id     string
	secret string
	issuer string // set before the first use
	next   string // where /callback sends the browser to; empty for a page

	mu       sync.Mutex
	state    string
	verifier string
	idToken  string
}

func newApp(t *testing.T, id string, tls bool) *app {
	t.Helper()
	a := &app{id: id, secret: rand.Text() + rand.Text()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /start", a.start)
	mux.HandleFunc("GET /callback", a.callback)
	mux.HandleFunc("GET /leave", a.leave)
	mux.HandleFunc("GET /forge", a.forge)
	mux.HandleFunc("GET /bye", func(w http.ResponseWriter, r *http.Request) {
		show(w, "bye", r.FormValue("state"))
	})
	mux.HandleFunc("GET /landed", func(w http.ResponseWriter, _ *http.Request) { show(w, "landed", "here") })
	a.Server = httptest.NewUnstartedServer(mux)
	if tls {
		a.StartTLS()
	} else {
		a.Start()
	}
	t.Cleanup(a.Close)
	return a
}

// client is the entry of this application in oidc.clients.
func (a *app) client(more string) program.Client {
	returns := []string{a.URL + "/callback", a.URL + "/bye"}
	return program.Client{ID: a.id, Secret: a.secret, Returns: returns, More: more}
}

// show is a page with one text under an id.
func show(w http.ResponseWriter, id, text string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html><title>%s</title><p id=%[1]q>%s</p>", id, text)
}

// request is the address of a new authorization request.
func (a *app) request(more url.Values) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state, a.verifier = rand.Text(), rand.Text()+rand.Text()
	challenge := sha256.Sum256([]byte(a.verifier))
	q := url.Values{
		"client_id":             {a.id},
		"redirect_uri":          {a.URL + "/callback"},
		"response_type":         {"code"},
		"scope":                 {"openid email profile"},
		"state":                 {a.state},
		"code_challenge":        {base64.RawURLEncoding.EncodeToString(challenge[:])},
		"code_challenge_method": {"S256"},
	}
	for name, values := range more {
		q[name] = values
	}
	return a.issuer + "/oauth2/authorize?" + q.Encode()
}

func (a *app) start(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, a.request(r.URL.Query()), http.StatusSeeOther)
}

// callback shows who signed in, or the error, as the element #user or #error.
func (a *app) callback(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	email, err := a.redeem(q)
	switch {
	case q.Has("error"):
		show(w, "error", q.Get("error"))
	case err != nil:
		show(w, "error", err.Error())
	case a.next != "":
		http.Redirect(w, r, a.next, http.StatusFound)
	default:
		show(w, "user", email)
	}
}

// redeem exchanges the code for the email of who signed in. The id_token comes
// straight from the server; the tests of interop verify it.
func (a *app) redeem(q url.Values) (email string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q.Get("state") != a.state || q.Get("iss") != a.issuer {
		return "", fmt.Errorf("state %q, iss %q", q.Get("state"), q.Get("iss"))
	}
	resp, err := program.Local().PostForm(a.issuer+"/oauth2/token", url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {q.Get("code")},
		"redirect_uri":  {a.URL + "/callback"},
		"code_verifier": {a.verifier},
		"client_id":     {a.id},
		"client_secret": {a.secret},
	})
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var tokens struct {
		Error   string
		IDToken string `json:"id_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&tokens); err != nil || tokens.IDToken == "" {
		return "", fmt.Errorf("token endpoint: %s %s (%v)", resp.Status, tokens.Error, err)
	}
	a.idToken = tokens.IDToken
	claims, err := base64.RawURLEncoding.DecodeString(strings.Split(tokens.IDToken+"..", ".")[1])
	if err != nil {
		return "", err
	}
	var who struct{ Email string }
	return who.Email, json.Unmarshal(claims, &who)
}

func (a *app) leave(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	http.Redirect(w, r, a.issuer+"/oauth2/logout?"+url.Values{
		"id_token_hint":            {a.idToken},
		"post_logout_redirect_uri": {a.URL + "/bye"},
		"state":                    {"so long"},
	}.Encode(), http.StatusSeeOther)
}

// forge shows a button that signs the visitor in to an account of somebody
// else's, as an attacker's page would.
func (a *app) forge(w http.ResponseWriter, r *http.Request) {
	action := strings.Replace(a.request(nil), "/oauth2/authorize?", "/oauth2/login?", 1)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html><form method=post action=%q>", action)
	for _, name := range []string{"email", "password"} {
		fmt.Fprintf(w, "<input name=%s value=%q>", name, r.FormValue(name))
	}
	fmt.Fprint(w, "<button>win</button></form>")
}
