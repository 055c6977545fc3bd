package main

// This file is forward auth: a reverse proxy asks here, for each request to an
// application behind it, whether the request may pass and whose it is. It knows
// no rules about paths or hosts, which two programs could read differently:
// what an application demands stands in the URL that its operator gives the
// proxy.
//
//	nobody is known, a page is asked for → 302 to the login here, and back
//	nobody is known, otherwise           → 401
//	the user lacks what is demanded      → 403
//	otherwise                            → 200, and who it is in six headers
//
// The login sets a cookie that all hosts of forward_auth.cookie_domain get. It
// opens nothing but this answer, so an application that steals it gets neither
// the login in this browser nor anything under /api/.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	forwardAuthPath = "/forward-auth"   // for proxies
	forwardPath     = "/oauth2/forward" // for browsers
	forwardCookie   = "pico-forward"

	// forwardStep is how often use of the cookie is written down.
	forwardStep = 5 * time.Minute
)

// --- what proxies ask ---

// handleForwardAuth answers as the picture at the top says.
func (s *server) handleForwardAuth(x *exchange, _ principal) error {
	demands, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil { // an unreadable demand must not be none
		return badRequest("the query in the URL of forward auth cannot be read")
	}
	u, err := s.forwardUser(x)
	if err != nil {
		return s.sendToLogin(x, demands.Has("nginx"), err)
	}
	x.user = u.id
	if err := checkDemands(u, demands); err != nil {
		return err
	}
	if u.verifiedAt == 0 { // anybody can register any address
		u.email = ""
	}
	// A proxy could let a header that is missing here pass from the client, so
	// each is always set.
	for name, items := range map[string][]string{
		"Remote-User":   {u.id},
		"Remote-Email":  {u.email},
		"Remote-Name":   {u.displayName},
		"Remote-Groups": u.groupNames(),
		"Remote-Role":   {u.role},
		"Remote-Org":    {u.orgID},
	} {
		for i, item := range items {
			items[i] = oddInHeader.ReplaceAllStringFunc(item, url.PathEscape)
		}
		x.Header().Set(name, strings.Join(items, ","))
	}
	writeBody(x, 200, nil)
	return nil
}

// oddInHeader is what is percent-encoded in a header: what headers cannot
// carry, the comma between the items of a list, and the percent sign.
var oddInHeader = regexp.MustCompile(`[^ -~]|[,%]`)

// checkDemands refuses a user who lacks what the query demands: one of its
// groups and one of its roles, as far as it names any. A misspelt demand is
// refused, and an empty one is met by nobody: neither must open anything.
func checkDemands(u user, demands url.Values) error {
	for name, values := range demands {
		var has []string
		switch name {
		case "nginx":
			continue
		case "group":
			has = u.groupNames()
		case "role":
			has = []string{u.role}
		default:
			return badRequest("forward auth knows group, role and nginx, and no " + cleanText(name))
		}
		wanted := commaItems(strings.Join(values, ","))
		if !slices.ContainsFunc(wanted, func(one string) bool { return slices.Contains(has, one) }) {
			return forbidden("You are logged in, but you may not use this application")
		}
	}
	return nil
}

// forwardUser finds out whose request it is: by the cookie, or else by a bearer
// token. Applications may have tokens of their own in the same header, so a
// good cookie counts first.
func (s *server) forwardUser(x *exchange) (user, error) {
	cookie, err := x.r.Cookie(forwardCookie)
	if err != nil { // there is none
		return s.forwardBearer(x.r)
	}
	now := s.now()
	f, err := s.store.forwardByToken(cookie.Value, now)
	if errors.Is(err, errNoSession) {
		return s.forwardBearer(x.r)
	}
	if err == nil && now.Unix()-f.lastUsedAt >= int64(forwardStep/time.Second) {
		err = s.store.useForward(x.ctx, f, now, now.Add(s.cfg.sessionIdle))
		if errors.Is(err, errUnavailable) { // nobody is shut out because the disk is full
			err = nil
		}
	}
	return f.user, err
}

// forwardBearer takes the tokens that every service takes: those of logins, and
// of clients those that are meant for auth.audience.
func (s *server) forwardBearer(r *http.Request) (user, error) {
	p, err := s.authenticate(r, false)
	if !errors.Is(err, errUnknownKey) {
		return p.user, err
	}
	token, _ := bearerToken(r) // there is one, whose header is no login's
	want := expected{s.cfg.issuer, s.cfg.audience, s.now(), false}
	c, err := verifyToken[clientClaims](s.keys.current(), token, want)
	if err != nil {
		return user{}, err
	}
	return s.tokenHolder(c)
}

// wantsPage reports whether a person waits for the answer.
func wantsPage(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

// failForward is the form of errors for whoever is behind the proxy.
func (s *server) failForward(x *exchange, e *apiError) {
	if wantsPage(x.r) {
		s.failPage(x, e)
		return
	}
	writeProblem(x, e)
}

// sendToLogin answers a request of nobody: a browser that wants a page is sent
// to the login and from there back. nginx passes nothing on but a 401, so it
// gets that and the same Location. Where the browser came from is in headers
// that anybody can send, so they count from trusted proxies only.
func (s *server) sendToLogin(x *exchange, nginx bool, err error) error {
	e, h := answerTo(err), x.r.Header
	method := cmp.Or(h.Get("X-Forwarded-Method"), x.r.Method)
	if e.status != 401 || !nginx && (method != "GET" || !wantsPage(x.r)) {
		return err
	}
	peer, _ := parseHop(x.r.RemoteAddr)
	if !s.isProxy(peer) {
		return e.because(fmt.Errorf("%s is not in server.trusted_proxies (SERVER_TRUSTED_PROXIES)", peer))
	}
	from := h.Get("X-Forwarded-Proto") + "://" + h.Get("X-Forwarded-Host") + h.Get("X-Forwarded-Uri")
	x.Header().Set("Location", s.cfg.baseURL()+forwardPath+"?"+url.Values{"rd": {from}}.Encode())
	if nginx {
		return err
	}
	writeBody(x, http.StatusFound, nil)
	return nil
}

// --- the login ---

// forwardTarget is a URL in which every program sees the same host: without
// user, backslash and control characters, and with a plain name.
var forwardTarget = regexp.MustCompile(
	`^https://([A-Za-z0-9.-]+)(?::\d{1,5})?(?:[/?#][^\\\x00-\x1f\x7f-\x{9f}]*)?$`)

// forwardReturn reads where a login leads back to, and the host of that. Only
// hosts that get the cookie can be named, or this would be an open redirect
// (RFC 9700 section 4.11).
func (s *server) forwardReturn(x *exchange) (target, host string, err error) {
	target = oneOf(x.r.URL.Query(), "rd")
	m := forwardTarget.FindStringSubmatch(target)
	if m == nil || !inDomain(m[1], s.cfg.cookieDomain) {
		return "", "", refusal(400, "invalid_redirect_uri", "You cannot get back to where you came from.").
			because(errors.New("rd is not https within forward_auth.cookie_domain"))
	}
	return target, m[1], nil
}

// handleForward gives a browser in which somebody is logged in the cookie and
// leads it back to the application. Any other gets the login form.
func (s *server) handleForward(x *exchange, _ principal) error {
	target, host, err := s.forwardReturn(x)
	if err != nil {
		return err
	}
	b, err := s.browser(x)
	if err != nil {
		return err
	}
	now, handle := s.now(), newID()
	token := newRefreshToken(handle)
	if err = errNoSession; b.sessionID != "" {
		err = s.store.openForward(x.ctx, b.sessionID, hashToken(token), session{
			id:         sessionIDOf(handle),
			lastUsedAt: now.Unix(),
			expiresAt:  now.Add(s.cfg.sessionIdle).Unix(),
			ip:         x.clientIP(),
			userAgent:  cleanText(x.r.UserAgent()),
		})
	}
	switch {
	case errors.Is(err, errNoSession):
		return s.writeForwardLogin(x, host, "", nil)
	case err != nil:
		return err
	}
	x.event("authorize.ok", "user", b.user.id, "client", "#forward")
	http.SetCookie(x, &http.Cookie{
		Name:     forwardCookie,
		Value:    token,
		Domain:   s.cfg.cookieDomain,
		Path:     "/",
		Secure:   true,
		HttpOnly: true,
		SameSite: http.SameSiteLaxMode,
	})
	return redirect(x, target)
}

// handleForwardForm is the login form that comes back.
func (s *server) handleForwardForm(x *exchange, _ principal) error {
	form, err := s.ownForm(x)
	if err != nil {
		return err
	}
	_, host, err := s.forwardReturn(x)
	if err != nil {
		return err
	}
	before, err := s.browser(x)
	if err != nil {
		return err
	}
	if _, err := s.logInBrowser(x, before, form); err != nil {
		return s.writeForwardLogin(x, host, form.Get("email"), err)
	}
	return redirect(x, s.formAction(forwardPath, x.r.URL.Query()))
}

// writeForwardLogin shows the login form for an application on a host.
func (s *server) writeForwardLogin(x *exchange, host, email string, fault error) error {
	p := page{Client: host, Action: s.formAction(forwardPath, x.r.URL.Query()), Email: email}
	return s.writeLoginForm(x, p, fault)
}

// forwardRoutes are the part of forward auth in the route table.
func (s *server) forwardRoutes() []route {
	forward := &routeKind{fail: s.failForward, cors: corsNobody, quiet: true}
	if s.cfg.cookieDomain == "" {
		forward.off = "forward_auth.cookie_domain (FORWARD_AUTH_COOKIE_DOMAIN)"
	}
	return []route{
		{forwardAuthPath, public, forward, s.handleForwardAuth},
		{"GET " + forwardPath, public, forward, s.handleForward},
		{"POST " + forwardPath, public, forward, s.handleForwardForm},
	}
}

// --- what is stored ---

// forwardSession is the session of a forward cookie. It is a child of the
// session of the browser in which it was made, good only while that is there,
// and no statement makes it last longer.
type forwardSession struct {
	id, browserID string
	lastUsedAt    int64 // unix seconds
	user          user
}

// forwardByToken finds the session of a cookie, or errNoSession.
func (s *store) forwardByToken(token string, now time.Time) (f forwardSession, err error) {
	handle, ok := tokenHandle(token)
	if !ok {
		return f, errNoSession
	}
	targets := append([]any{&f.id, &f.browserID, &f.lastUsedAt}, loneUserTargets(&f.user)...)
	err = s.reads.get(`SELECT f.id, b.id, f.last_used_at, `+loneUserColumns+`
		FROM sessions f JOIN sessions b ON b.id = f.parent_id JOIN users ON users.id = f.user_id
		WHERE f.id = $1 AND f.client_id = '#forward' AND f.token_hash = $2 AND f.expires_at > $3
			AND status = 'active'`,
		[]any{sessionIDOf(handle), hashToken(token), now.Unix()}, targets...)
	return f, noSession(err)
}

// openForward stores the session of a new cookie, in place of the one that the
// browser's session had, and lets that one live on; errNoSession when it has
// ended. Those go too whose browser's session is no more, so that a user has no
// more of them than of those.
func (s *store) openForward(ctx context.Context, browserID string, tokenHash []byte, f session) error {
	return s.change(ctx, func(t *queries) error {
		u, _, err := t.useBrowserSession(browserID, f.lastUsedAt, f.expiresAt)
		if err == nil {
			_, err = t.endWhere(`user_id = $1 AND client_id = '#forward' AND parent_id NOT IN
				(SELECT id FROM sessions WHERE user_id = $1 AND client_id = '#browser' AND id <> $2)`,
				u.id, browserID)
		}
		if err == nil {
			_, err = t.exec(`INSERT INTO sessions (id, user_id, token_hash, created_at, last_used_at,
					expires_at, ends_at, ip, user_agent, client_id, parent_id, auth_time)
				SELECT $1, user_id, $2, last_used_at, last_used_at,
					expires_at, ends_at, $3, $4, '#forward', id, auth_time
				FROM sessions WHERE id = $5`, f.id, tokenHash, f.ip, f.userAgent, browserID)
		}
		return err
	})
}

// useForward lets the session of a cookie and that of its browser live on until
// idleEnd.
func (s *store) useForward(ctx context.Context, f forwardSession, now, idleEnd time.Time) error {
	return s.change(ctx, func(t *queries) error {
		_, err := t.exec(`UPDATE sessions
			SET last_used_at = $1, expires_at = CASE WHEN $2 < ends_at THEN $2 ELSE ends_at END
			WHERE id IN ($3, $4) AND expires_at > $1`, now.Unix(), idleEnd.Unix(), f.id, f.browserID)
		return err
	})
}
