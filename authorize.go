package main

// This file is the authorization endpoint (RFC 6749 section 4.1, OpenID Connect
// Core section 3.1.2): who is logged in in this browser, whether a client may
// have a code for that user, and the code. Its statements are here too; the
// pages are in pages.go, what becomes of a code in token.go.
//
//	client and redirect_uri are proven? ─ no → page, 400
//	everything else is right?           ─ no → back to the client: an error
//	somebody logged in, lately enough?  ─ no → login page
//	the user need not be asked?         ─ no → "Continue as" page
//	the user is in the client's groups? ─ no → back to the client: an error
//	                                     yes → back to the client: a code
//
// Until client and redirect_uri are proven nobody is sent anywhere (RFC 9700
// section 4.11). Nothing is stored until there is a code: the forms carry the
// request along, and it is checked again each time.
//
// A code is a row of sessions that waits for its exchange. The exchange is
// the first step of the rotation that refresh tokens go through, so one
// mechanism sees to it that each is good once, and that a second use ends
// what the first one got.

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	authorizePath = "/oauth2/authorize"
	loginFormPath = "/oauth2/login"
	continuePath  = "/oauth2/continue"

	// codeTime is how long a code is good. RFC 6749 section 4.1.2 allows ten
	// minutes; clients exchange it at once.
	codeTime = time.Minute

	// maxRequestBytes is for an authorization request. What is in it goes into
	// tokens, which must stay below maxTokenBytes.
	maxRequestBytes = 8 << 10

	// maxPending is how many codes of one user and client may wait, and
	// maxClientSessions how many sessions they may have: applications that
	// log in again and again, such as one page of many tabs, end their own.
	maxPending        = 5
	maxClientSessions = 20
)

// scopes are those that a client can be granted; others are ignored (RFC 6749
// section 3.3).
var scopes = []string{"openid", "profile", "email", "groups", "offline_access"}

var errNotAdmitted = errors.New("user is in none of the client's groups")

// warnOfGroups warns of groups that clients demand and that do not exist. It is
// no fault: they can be made later. Names are as in user.groupNames.
func (s *server) warnOfGroups() {
	for _, c := range s.cfg.clients {
		for _, name := range c.groups {
			exists := true // as long as the database does not say otherwise
			s.store.reads.get(`SELECT EXISTS (SELECT 1 FROM groups
				WHERE CASE WHEN org_id = 'default' THEN name ELSE org_id || '/' || name END = $1)`,
				[]any{name}, &exists)
			if !exists {
				s.log.Warn("a client demands a group that does not exist, so it admits nobody by it; "+
					"make it with pico-auth group add, or correct the setting",
					"setting", c.setting()+".groups", "group", name)
			}
		}
	}
}

// --- the request ---

// authRequest is an authorization request whose client and redirect URI are
// proven.
type authRequest struct {
	client      *oidcClient
	redirectURI string
	query       url.Values // all parameters, as they came
	form        url.Values // of our own page; nil for the request itself
}

// oneOf returns a parameter that occurs once, and "" otherwise.
func oneOf(query url.Values, name string) string {
	if len(query[name]) != 1 {
		return ""
	}
	return query[name][0]
}

// authRequest reads the query of a request to the authorization endpoint, or of
// a form that belongs to one.
func (s *server) authRequest(x *exchange) (a authRequest, err error) {
	if len(x.r.URL.RawQuery) > maxRequestBytes {
		return a, badRequest("This request is too long.")
	}
	query := x.r.URL.Query()
	a = authRequest{
		client:      s.cfg.clients[oneOf(query, "client_id")],
		redirectURI: oneOf(query, "redirect_uri"),
		query:       query,
	}
	if a.client == nil {
		return a, refusal(400, "unknown_client", "The application that sent you here is not known here.").
			because(notListed("client_id", query["client_id"], clientsSection, shownID))
	}
	if !registered(a.client.redirectURIs, a.redirectURI) {
		return a, refusal(400, "invalid_redirect_uri", a.client.name+
			" asked for an answer at an address that is not registered for it.").
			because(notListed("redirect_uri", query["redirect_uri"],
				a.client.setting()+".redirect_uris", cleanText))
	}
	return a, nil
}

// notListed says for the log why the values of a parameter are not the one that
// a setting lists.
func notListed(name string, values []string, setting string, shown func(string) string) error {
	switch {
	case len(values) > 1:
		return fmt.Errorf("the request has %s more than once", name)
	case len(values) == 0 || values[0] == "":
		return fmt.Errorf("the request has no %s", name)
	}
	return fmt.Errorf("%s %s is not in %s", name, shown(values[0]), setting)
}

// oauthFault is an error of RFC 6749 section 4.1.2.1: a code for programs and a
// description for people, both of a fixed list. cause is for the log alone.
type oauthFault struct{ code, description, cause string }

// codeChallenge is the form of a challenge by S256 (RFC 7636 section 4.2).
var codeChallenge = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)

// fault returns what is wrong with the rest of the request; its code is empty
// when nothing is. PKCE binds the code to the program that asked for it: only
// S256 does, because "plain" shows the secret to everybody who sees the request
// (RFC 9700 section 2.1.1).
func (a authRequest) fault() oauthFault {
	invalid := func(description string) oauthFault { return oauthFault{"invalid_request", description, ""} }
	for _, values := range a.query {
		if len(values) > 1 {
			return invalid("a parameter occurs more than once")
		}
		if !isStorable(values[0]) {
			return invalid("a parameter is not text")
		}
	}
	q, prompts := a.query, a.prompts()
	challenge, method := q.Get("code_challenge"), q.Get("code_challenge_method")
	_, ageErr := strconv.ParseUint(q.Get("max_age"), 10, 31)
	_, mayHave := a.client.audienceFor(q.Get("resource"))
	switch {
	case q.Has("request"):
		return oauthFault{"request_not_supported", "request objects are not supported", ""}
	case q.Has("request_uri"):
		return oauthFault{"request_uri_not_supported", "request objects are not supported", ""}
	case q.Get("response_type") == "":
		return invalid("response_type is missing")
	case q.Get("response_type") != "code":
		return oauthFault{"unsupported_response_type", "the only response_type is code", ""}
	case challenge == "" && (method != "" || a.client.pkce == "required"):
		return oauthFault{"invalid_request", "code_challenge is missing: this client must use PKCE",
			a.client.setting() + ".pkce is required"}
	case challenge != "" && (method != "S256" || !codeChallenge.MatchString(challenge)):
		return invalid("code_challenge must be 43 characters made by code_challenge_method S256")
	case slices.Contains(prompts, "none") && len(prompts) > 1:
		return invalid("prompt=none allows no other value")
	case q.Get("max_age") != "" && ageErr != nil:
		return invalid("max_age must be a number of seconds")
	case !mayHave:
		return oauthFault{"invalid_target", "this client has no such resource",
			a.client.setting() + ".audience has no " + cleanText(q.Get("resource"))}
	}
	return oauthFault{}
}

func (a authRequest) prompts() []string { return strings.Fields(a.query.Get("prompt")) }

func (a authRequest) prompt(word string) bool { return slices.Contains(a.prompts(), word) }

// scope is what is granted, in the order of the request.
func (a authRequest) scope() string {
	asked := strings.Fields(a.query.Get("scope"))
	var granted []string
	for _, name := range asked {
		if slices.Contains(scopes, name) && !slices.Contains(granted, name) {
			granted = append(granted, name)
		}
	}
	return strings.Join(granted, " ")
}

// asksUser reports whether the user must agree. Clients are the operator's own,
// so most need no consent.
func (a authRequest) asksUser() bool {
	return a.client.asks(a.redirectURI) || a.prompt("consent") || a.prompt("select_account")
}

// sendBack redirects to the client with parameters and what every answer has:
// the state as it came, and the issuer, by which a client of several providers
// knows who answers (RFC 9207).
func (s *server) sendBack(x *exchange, a authRequest, parameters url.Values) error {
	parameters.Set("iss", s.cfg.issuer)
	if state := oneOf(a.query, "state"); state != "" {
		parameters.Set("state", state)
	}
	return redirect(x, withQuery(a.redirectURI, parameters))
}

// sendFault redirects to the client with an error.
func (s *server) sendFault(x *exchange, a authRequest, f oauthFault) error {
	x.reason = f.code
	if f.cause != "" {
		x.reason += ": " + f.cause
	}
	return s.sendBack(x, a, url.Values{"error": {f.code}, "error_description": {f.description}})
}

// withQuery adds parameters to a URI that may have some.
func withQuery(uri string, parameters url.Values) string {
	separator := "?"
	if strings.Contains(uri, "?") {
		separator = "&"
	}
	return uri + separator + parameters.Encode()
}

// --- the browser's session ---

// browser is who is logged in in a browser; the zero value is nobody.
type browser struct {
	user      user
	sessionID string
	authTime  int64 // unix seconds, when the password was checked
}

// cookieName and the cookie's Secure follow the scheme of the issuer: browsers
// keep neither for plain http. A name with __Host- cannot be set by another
// host of the same domain (RFC 6265bis section 4.1.3.2).
func (s *server) cookieName() string {
	if s.isSecure() {
		return "__Host-pico"
	}
	return "pico"
}

func (s *server) isSecure() bool {
	issuer, _ := url.Parse(s.cfg.issuer) // checked by loadConfig
	return issuer.Scheme == "https"      // however it is spelt
}

// setCookie gives the browser a session, or with an empty token takes it away.
// Lax keeps the cookie out of requests that other sites send, except when the
// user follows a link or a redirect, which is how clients come here. Without
// Max-Age it ends with the browser.
func (s *server) setCookie(x *exchange, token string) {
	cookie := &http.Cookie{
		Name:     s.cookieName(),
		Value:    token,
		Path:     "/",
		Secure:   s.isSecure(),
		HttpOnly: true,
		SameSite: http.SameSiteLaxMode,
	}
	if token == "" {
		cookie.MaxAge = -1
	}
	http.SetCookie(x, cookie)
}

// browser finds out who is logged in in the browser that sends a request.
func (s *server) browser(x *exchange) (b browser, err error) {
	cookie, err := x.r.Cookie(s.cookieName())
	if err != nil {
		return b, nil // there is none
	}
	b, err = s.store.browserByToken(cookie.Value, s.now())
	if errors.Is(err, errNoSession) {
		return browser{}, nil
	}
	x.user = b.user.id
	return b, err
}

// browserByToken finds the session of a cookie, or errNoSession. The cookie is
// made like a refresh token, but it is never replaced: requests of one browser
// run side by side.
func (s *store) browserByToken(token string, now time.Time) (b browser, err error) {
	handle, ok := tokenHandle(token)
	if !ok {
		return b, errNoSession
	}
	targets := append([]any{&b.sessionID, &b.authTime}, userTargets(&b.user)...)
	err = s.reads.get(`SELECT sessions.id, auth_time, `+userColumns+`
		FROM sessions JOIN users ON users.id = user_id
		WHERE sessions.id = $1 AND client_id = '#browser' AND token_hash = $2 AND expires_at > $3
			AND status = 'active'`,
		[]any{sessionIDOf(handle), hashToken(token), now.Unix()}, targets...)
	return b, noSession(err)
}

// mustLogIn reports whether the password is asked for: because nobody is
// logged in, because the client wants it again (prompt, max_age), or because it
// expects another user (id_token_hint; OpenID Connect Core section 3.1.2.1). A
// hint that cannot be verified is taken for another user.
func (s *server) mustLogIn(a authRequest, b browser) bool {
	if b.sessionID == "" || a.prompt("login") {
		return true
	}
	if maxAge := a.query.Get("max_age"); maxAge != "" {
		seconds, _ := strconv.ParseInt(maxAge, 10, 64) // checked by fault
		if seconds == 0 || s.now().Unix()-b.authTime > seconds {
			return true
		}
	}
	hint := a.query.Get("id_token_hint")
	c, err := s.idTokenHint(hint)
	return hint != "" && (err != nil || c.Subject != b.user.id)
}

// idTokenHint verifies an id_token of ours, which may have expired.
func (s *server) idTokenHint(token string) (idClaims, error) {
	if token == "" {
		return idClaims{}, errors.New("there is none")
	}
	want := expected{issuer: s.cfg.issuer, now: s.now(), orExpired: true}
	return verifyToken[idClaims](s.keys.current(), token, want)
}

// --- the endpoint and its forms ---

// authStep answers an authorization request that is right, from a browser in
// which b is logged in.
type authStep func(x *exchange, a authRequest, b browser) error

// authorizing makes a handler of a step. Before each step, that of a form too,
// a form must be ours, client and redirect URI are proven, and the client hears
// what else is wrong.
func (s *server) authorizing(step authStep) handler {
	return func(x *exchange, _ principal) error {
		var form url.Values
		var err error
		if x.r.Method == http.MethodPost {
			if form, err = s.ownForm(x); err != nil {
				return err
			}
		}
		a, err := s.authRequest(x)
		if err != nil {
			return err
		}
		a.form = form
		if f := a.fault(); f.code != "" {
			return s.sendFault(x, a, f)
		}
		b, err := s.browser(x)
		if err != nil {
			return err
		}
		return step(x, a, b)
	}
}

// handleAuthorize answers as the picture at the top says.
func (s *server) handleAuthorize(x *exchange, a authRequest, b browser) error {
	quiet, asks := a.prompt("none"), a.asksUser()
	switch mustLogIn := s.mustLogIn(a, b); {
	case mustLogIn && quiet:
		return s.sendFault(x, a, oauthFault{"login_required", "the user must log in", ""})
	case mustLogIn:
		return s.writeLogin(x, a, a.query.Get("login_hint"), nil)
	case asks && quiet:
		return s.sendFault(x, a, oauthFault{"interaction_required", "the user must be asked", ""})
	case asks:
		return s.writeContinue(x, a, b)
	}
	return s.sendCode(x, a, b)
}

// handleAuthorizePost turns a POST by a client into the same GET (OpenID
// Connect Core section 3.1.2.1). The cookie is missing here, because SameSite
// keeps it out of what another site posts.
func (s *server) handleAuthorizePost(x *exchange, _ principal) error {
	form, err := readForm(x, maxRequestBytes)
	if err != nil {
		return err
	}
	return redirect(x, s.cfg.basePath()+authorizePath+"?"+form.Encode())
}

var errCrossOrigin = refusal(403, "cross_origin",
	"This form was sent from another site. Please go back and try again.")

// ownForm reads a form of our own pages, which must come from them: another
// site could otherwise log its visitors in as somebody it chose, and see what
// they then do (login CSRF). Browsers say where a request comes from
// (Sec-Fetch-Site, Origin), and no page can change that. The issuer is named
// because a proxy may rewrite Host, with which Origin is compared otherwise.
func (s *server) ownForm(x *exchange) (url.Values, error) {
	guard := http.NewCrossOriginProtection()
	if err := guard.AddTrustedOrigin(s.cfg.origin()); err != nil {
		return nil, err
	}
	// A request that has neither header comes from no browser, so no visitor of
	// another site sent it.
	if err := guard.Check(x.r); err != nil {
		return nil, errCrossOrigin.because(err)
	}
	return readForm(x, maxBodyBytes)
}

// handleLoginForm logs a user in and goes on with the authorization. A password
// was just checked, so prompt and max_age are satisfied; and the page named the
// client, so whoever typed the password has agreed.
func (s *server) handleLoginForm(x *exchange, a authRequest, before browser) error {
	b, err := s.logInBrowser(x, before, a.form)
	if err != nil {
		return s.writeLogin(x, a, a.form.Get("email"), err)
	}
	hint, err := s.idTokenHint(a.query.Get("id_token_hint"))
	if err == nil && hint.Subject != b.user.id {
		return s.sendFault(x, a, oauthFault{"login_required", "another user has logged in", ""})
	}
	return s.sendCode(x, a, b)
}

// logInBrowser logs in whoever fills in the login form, by the same rules as
// the JSON login. The session is a new one whatever cookie the browser sent.
func (s *server) logInBrowser(x *exchange, before browser, form url.Values) (browser, error) {
	opened, err := s.logIn(x, passwordLogin{
		email:    form.Get("email"),
		password: form.Get("password"),
		clientID: browserLogin,
		idle:     s.cfg.sessionIdle,
		replaces: before.sessionID,
	})
	if err != nil {
		return browser{}, err
	}
	s.setCookie(x, opened.refreshToken)
	return browser{opened.user, opened.sessionID, s.now().Unix()}, nil
}

// handleContinueForm is the answer to "Continue as". It names the user whom the
// page named, because somebody else may have logged in in another tab.
func (s *server) handleContinueForm(x *exchange, a authRequest, b browser) error {
	switch {
	case a.form.Get("answer") != "yes":
		return s.sendFault(x, a, oauthFault{"access_denied", "the user said no", ""})
	case s.mustLogIn(a, b):
		return s.writeLogin(x, a, "", nil)
	case a.form.Get("user") != b.user.id:
		return s.writeContinue(x, a, b)
	}
	return s.sendCode(x, a, b)
}

// --- its pages ---

// writeLogin shows the login form of an authorization request.
func (s *server) writeLogin(x *exchange, a authRequest, email string, fault error) error {
	p := page{Client: a.client.name, Action: s.formAction(loginFormPath, a.query), Email: email}
	if a.client.asks(a.redirectURI) { // any program can call itself so
		p.Where = withoutPath(a.redirectURI)
	}
	return s.writeLoginForm(x, p, fault)
}

// writeLoginForm shows the login form, with what was wrong with the last try,
// if there was one. What is no refusal of that try gets a page of its own. The
// page has to say whose form it is and where it goes.
func (s *server) writeLoginForm(x *exchange, p page, fault error) error {
	p.Kind, p.Title, p.Email = "login", "Log in", cleanText(p.Email)
	if fault == nil {
		return s.writePage(x, 200, p)
	}
	e := x.refuse(fault)
	switch p.Fault = e.detail; e.status {
	case 429:
		p.Fault = "Too many attempts. Please try again " + inWords(e.retry) + "."
	case 503:
		p.Fault = "This server is busy at the moment. Please try again in a few seconds."
	}
	return s.writePage(x, e.status, p)
}

// inWords says when something is over.
func inWords(wait time.Duration) string {
	if wait <= time.Minute {
		return "in a minute"
	}
	return fmt.Sprintf("in %.0f minutes", math.Ceil(wait.Minutes()))
}

// writeContinue asks whether a client may go on as the user who is logged in.
func (s *server) writeContinue(x *exchange, a authRequest, b browser) error {
	again := maps.Clone(a.query)
	again.Set("prompt", "login")
	return s.writePage(x, 200, page{
		Kind:   "continue",
		Title:  "Continue to " + a.client.name + "?",
		Client: a.client.name,
		Action: s.formAction(continuePath, a.query),
		Email:  b.user.email,
		User:   b.user.id,
		Where:  withoutPath(a.redirectURI),
		Other:  s.formAction(authorizePath, again),
	})
}

// withoutPath is as much of a URI as tells people who is behind it.
func withoutPath(uri string) string {
	u, _ := url.Parse(uri) // it is registered
	return cmp.Or(u.Host, u.Scheme+":")
}

// --- codes ---

// sendCode gives the client a code for the user.
func (s *server) sendCode(x *exchange, a authRequest, b browser) error {
	code := b64.EncodeToString(randomBytes())
	now := s.now()
	err := s.store.issueCode(x.ctx, pendingCode{
		browserID:   b.sessionID,
		client:      a.client,
		codeHash:    hashToken(code),
		redirectURI: a.redirectURI,
		challenge:   a.query.Get("code_challenge"),
		grant: grant{
			scope:    a.scope(),
			resource: a.query.Get("resource"),
			nonce:    a.query.Get("nonce"),
		},
		now:       now,
		idleEnd:   now.Add(s.cfg.sessionIdle).Unix(),
		endsAt:    now.Add(s.cfg.sessionMax).Unix(),
		ip:        x.clientIP(),
		userAgent: cleanText(x.r.UserAgent()),
	})
	x.user = b.user.id
	switch {
	case err == nil:
		x.event("authorize.ok", "user", b.user.id, "client", a.client.id)
		return s.sendBack(x, a, url.Values{"code": {code}})
	case errors.Is(err, errNoSession) && a.prompt("none"): // it ended a moment ago
		return s.sendFault(x, a, oauthFault{"login_required", "the user must log in", ""})
	case errors.Is(err, errNoSession):
		return s.writeLogin(x, a, "", nil)
	case errors.Is(err, errNotAdmitted):
		x.event("authorize.denied", "user", b.user.id, "client", a.client.id)
		return s.sendFault(x, a, oauthFault{"access_denied", "the user may not use this client",
			"the user is in none of " + a.client.setting() + ".groups"})
	case errors.Is(err, errUnavailable):
		f := oauthFault{"temporarily_unavailable", "try again in some seconds", err.Error()}
		return s.sendFault(x, a, f)
	}
	return err
}

// pendingCode is a code that is to be stored.
type pendingCode struct {
	browserID     string
	client        *oidcClient
	codeHash      []byte
	redirectURI   string
	challenge     string // empty: the client does not use PKCE
	grant         grant
	now           time.Time
	idleEnd       int64 // of the browser's session from now on
	endsAt        int64 // of what the client gets for the code
	ip, userAgent string
}

// issueCode stores a code for the user of a browser's session, and lets that
// session live on. errNoSession when it has ended, errNotAdmitted when the user
// may not use the client; both are read inside the change.
//
// The row has an id that no token leads to until the exchange gives it one.
func (s *store) issueCode(ctx context.Context, p pendingCode) error {
	return s.change(ctx, func(t *queries) error {
		u, authTime, err := t.useBrowserSession(p.browserID, p.now.Unix(), p.idleEnd)
		if err != nil {
			return noSession(err)
		}
		if !p.client.admits(u) {
			return errNotAdmitted
		}
		p.grant.authTime = authTime
		return t.insertCode(u.id, p)
	})
}

// useBrowserSession lets a browser's session live on, and returns its user and
// when the password was checked; errNoSession when it has ended. Times are unix
// seconds.
func (t *queries) useBrowserSession(id string, now, idleEnd int64) (u user, authTime int64, err error) {
	var userID string
	err = t.get(`UPDATE sessions
		SET last_used_at = $1, expires_at = CASE WHEN $2 < ends_at THEN $2 ELSE ends_at END
		WHERE id = $3 AND client_id = '#browser' AND expires_at > $1 RETURNING user_id, auth_time`,
		[]any{now, idleEnd, id}, &userID, &authTime)
	if err == nil {
		u, err = t.userWhere(`id = $1 AND status = 'active'`, userID)
	}
	if errors.Is(err, errNotFound) {
		err = errNoSession
	}
	return u, authTime, err
}

// insertCode adds the row, and ends the codes of this user and client that
// nobody came for. Codes push out codes alone, so a client that asks again and
// again costs its user no session.
func (t *queries) insertCode(userID string, p pendingCode) error {
	id, now := sessionIDOf(newID()), p.now.Unix()
	_, err := t.endWhere(`user_id = $1 AND client_id = $2 AND redirect_uri IS NOT NULL AND expires_at <= $3`,
		userID, p.client.id, now)
	if err == nil {
		_, err = t.exec(`INSERT INTO sessions
			(id, user_id, token_hash, created_at, last_used_at, expires_at, ends_at, ip, user_agent,
				client_id, parent_id, auth_time, scope, resource, nonce, code_hash, redirect_uri, challenge)
			VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8,
				$9, $10, $11, $12, $13, $14, $3, $15, $16)`,
			id,
			userID,
			p.codeHash,
			now,
			p.now.Add(codeTime).Unix(),
			p.endsAt,
			p.ip,
			p.userAgent,
			p.client.id,
			p.browserID,
			p.grant.authTime,
			p.grant.scope,
			p.grant.resource,
			p.grant.nonce,
			p.redirectURI,
			p.challenge)
	}
	if err == nil {
		err = t.capSessions(userID, id, maxPending,
			`client_id = $4 AND redirect_uri IS NOT NULL`, p.client.id)
	}
	return err
}

// challengeOf is the challenge that a verifier belongs to, "" for none (RFC
// 7636 section 4.6).
func challengeOf(verifier string) string {
	if verifier == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(verifier))
	return b64.EncodeToString(sum[:])
}
