package main

// This file is what register, login, refresh, logout and the own account do, in
// the order of the route table. A handler reads its input, calls the files
// below and answers. Decisions about users are made inside the change that
// carries them out, by the rules in rbac.go. Every event that matters to
// security is logged under its stable name.

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Answers to somebody who shows a password. The last three are given only
// after the right one.
var (
	errBadCredentials = &apiError{status: 401, code: "invalid_credentials", challenge: "Bearer",
		detail: "Invalid email or password"}
	errRegistrationOff = refusal(403, "registration_disabled", "Public registration is disabled")
	errEmptyPassword   = refusal(403, "password_reset_required",
		"This account has an empty password; have an administrator reset it")
	errDefaultPassword = refusal(403, "default_password",
		"The default password works on the server's own machine only; change it there first")
)

// --- register ---

// handleRegister makes a viewer of the default organisation, whatever else
// the body asks for. A taken email is told (409), as the Python server tells
// it in its way; the throttle bounds how many can be tried.
func (s *server) handleRegister(x *exchange, _ principal) error {
	var u user
	var password string
	err := decode(x,
		need("email", &u.email),
		need("password", &password),
		maybe("display_name", &u.displayName))
	if err != nil {
		return err
	}
	if err := s.registrationOpen(s.store.reads, u); err != nil {
		return err
	}
	u.role, u.orgID = viewer, defaultOrg
	if field, err := checkNewUser(u, password, s.cfg.passwordMinLength); err != nil {
		return invalidField(field, err.Error())
	}
	if v := s.throttle.registered(clientKey(x.clientIP())); v.rule != "" {
		x.event("registration.throttled")
		return tooManyAttempts(v)
	}
	u, err = s.addUser(x.caller(principal{}), u, password, s.registrationOpen)
	if err != nil {
		return err
	}
	return writeJSON(x, userAnswer{ID: u.id, Email: u.email, Role: u.role, Status: u.status})
}

// registrationOpen refuses while registration is off. It is asked again inside
// the change: no user may appear after "off" was acknowledged.
func (s *server) registrationOpen(t *queries, _ user) error {
	enabled, err := s.registrationEnabled(t)
	if err == nil && !enabled {
		return errRegistrationOff
	}
	return err
}

// --- login ---

// tokenAnswer is the success body of login, of refresh and of the token
// endpoint (RFC 6749 section 5.1).
type tokenAnswer struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token,omitempty"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // seconds
	IDToken      string `json:"id_token,omitempty"`
	Scope        string `json:"scope,omitempty"`
}

// newTokenAnswer has what all of them say.
func (s *server) newTokenAnswer() tokenAnswer {
	return tokenAnswer{TokenType: "Bearer", ExpiresIn: int64(s.cfg.accessTTL / time.Second)}
}

// handleLogin verifies a password, opens a session and answers with tokens.
func (s *server) handleLogin(x *exchange, _ principal) error {
	var email, password string
	err := decode(x,
		need("email", &email),
		need("password", &password))
	if err != nil {
		return err
	}
	opened, err := s.logIn(x, passwordLogin{
		email:    email,
		password: password,
		clientID: jsonLogin,
		idle:     s.cfg.refreshTTL,
	})
	if err != nil {
		return err
	}
	return s.writeTokens(x, opened.user, opened.sessionID, opened.refreshToken)
}

// openedSession is what a login leads to.
type openedSession struct {
	user         user // as the database has it now
	sessionID    string
	refreshToken string
}

// passwordLogin is somebody who shows a password, and what for.
type passwordLogin struct {
	email, password string
	clientID        string        // jsonLogin or browserLogin
	idle            time.Duration // idle lifetime of the session
	replaces        string        // id of the browser's session until now, if any
}

// logIn verifies a password and opens a session. What it learns before the
// password is compared changes neither the time nor the answer; what concerns
// the account is said only afterwards (ASVS 5.0, 6.3.8).
func (s *server) logIn(x *exchange, l passwordLogin) (opened openedSession, err error) {
	for range 2 { // perhaps a simultaneous login renewed the hash: look again
		opened, err = s.tryLogIn(x, l)
		if !errors.Is(err, errChanged) {
			return opened, err
		}
	}
	return opened, errBadCredentials
}

// tryLogIn is one attempt; errChanged when the account changed while its
// password was being compared.
func (s *server) tryLogIn(x *exchange, l passwordLogin) (openedSession, error) {
	u, err := s.store.userByLogin(l.email)
	if err != nil && !errors.Is(err, errNotFound) {
		return openedSession{}, err
	}
	if err := s.verifyPassword(x, u, l.email, "password", l.password); err != nil {
		return openedSession{}, err
	}
	x.user = u.id
	if err := s.mayLogIn(x, u, l.password); err != nil {
		return openedSession{}, err
	}
	return s.openSession(x, u, l)
}

// verifyPassword compares under the throttle; member is what the body calls
// the password. An unknown user (a zero one) takes the same time and gets the
// same answer as a wrong password. A client that hangs up before the verdict
// counts as failed: otherwise it could keep the hashing threads busy for ever
// and no rule would see it.
func (s *server) verifyPassword(x *exchange, u user, email, member, password string) error {
	if strings.ContainsRune(password, 0) { // bcrypt takes "abc\0abc" for "abc"
		return invalidField(member, "must not contain NUL")
	}
	a := attempt{userID: u.id, email: email, client: clientKey(x.clientIP())}
	v := s.throttle.blocked(a)
	if v.rule == "account" && u.id != "" {
		var err error
		since := s.now().Add(-addressTime)
		if a.known, err = s.store.knownAddress(u.id, a.client, since); err != nil {
			return err
		}
		v = s.throttle.blocked(a)
	}
	if v.rule != "" {
		return x.throttled(u, v)
	}
	right, err := s.hasher.compare(x.ctx, a.client, u.passwordHash, password)
	right = right && u.id != ""
	switch {
	case errors.Is(err, errBusy):
		return err
	case right:
		v = s.throttle.succeeded(a)
	default:
		v = s.throttle.failed(a)
	}
	switch {
	case err != nil:
		return err
	case v.rule != "":
		return x.throttled(u, v)
	case right:
		return nil
	}
	event, reason := "login.failed", "wrong password"
	if member == "old_password" {
		event = "password.failed"
	} else if u.id == "" {
		reason = "unknown email"
	}
	x.event(event, "user", u.id, "reason", reason)
	return errBadCredentials
}

// throttled logs that a rule of the throttle forbids an attempt.
func (x *exchange) throttled(u user, v verdict) error {
	x.event("login.throttled", "user", u.id, "rule", v.rule)
	return tooManyAttempts(v)
}

// mayLogIn says what only somebody who knew the password may learn.
func (s *server) mayLogIn(x *exchange, u user, password string) error {
	refuse := func(answer *apiError, reason string) error {
		x.event("login.failed", "user", u.id, "reason", reason)
		return answer
	}
	switch {
	case u.status != statusActive:
		return refuse(errUserSuspended, "suspended")
	case password == "": // databases of the Python server can contain these
		return refuse(errEmptyPassword, "empty password")
	case password == defaultAdminPassword && (s.cfg.exposed() != "" || isForeign(x.r)):
		// A proxy in front makes a loopback listener public, and everybody
		// knows this password.
		return refuse(errDefaultPassword, "default password from elsewhere")
	}
	return nil
}

// forwardingHeaders are beginnings of headers that only proxies set.
var forwardingHeaders = []string{"Forwarded", "Via", "X-Forwarded", "X-Original", "X-Envoy",
	"X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "Cf-"}

// isForeign reports whether a request comes from another machine as far as it
// shows: by its peer, its Host, Origin or Referer, HTTP/1.0 (an old default of
// nginx) or a header that proxies set. A proxy that adds nothing cannot be
// told from a local client.
func isForeign(r *http.Request) bool {
	peer, _, _ := net.SplitHostPort(r.RemoteAddr)
	if !loopbackHost(peer) || !r.ProtoAtLeast(1, 1) {
		return true
	}
	for name := range r.Header {
		for _, prefix := range forwardingHeaders {
			if strings.HasPrefix(name, prefix) {
				return true
			}
		}
	}
	for _, origin := range []string{"http://" + r.Host, r.Header.Get("Origin"), r.Header.Get("Referer")} {
		u, err := url.Parse(origin)
		if origin != "" && (err != nil || !loopbackHost(u.Hostname())) {
			return true
		}
	}
	return false
}

// openSession stores a new session and its refresh token, and a new hash where
// the stored one is outdated: only now is the password known. Passwords that
// today's rules refuse keep their old hash, because a new one would cut or
// forbid them; so does every password while the hashing threads are busy.
func (s *server) openSession(x *exchange, u user, p passwordLogin) (openedSession, error) {
	now, handle := s.now(), newID()
	token := newRefreshToken(handle)
	l := login{user: u, tokenHash: hashToken(token), address: clientKey(x.clientIP()), replaces: p.replaces}
	l.session = session{
		id:        sessionIDOf(handle),
		clientID:  p.clientID,
		createdAt: now.Unix(),
		endsAt:    now.Add(s.cfg.sessionMax).Unix(),
		expiresAt: now.Add(min(p.idle, s.cfg.sessionMax)).Unix(),
		ip:        x.clientIP(),
		userAgent: cleanText(x.r.UserAgent()),
	}
	var err error
	if outdated(u.passwordHash, s.cfg.bcryptCost) &&
		checkNewPassword(p.password, s.cfg.passwordMinLength) == nil {
		l.newHash, err = s.hasher.hash(x.ctx, l.address, p.password)
	}
	if err == nil || errors.Is(err, errBusy) {
		u, err = s.store.openSession(x.ctx, l)
	}
	if err != nil {
		return openedSession{}, err
	}
	x.event("login.ok", "user", u.id, "session", l.session.id)
	return openedSession{u, l.session.id, token}, nil
}

// writeTokens answers with a refresh token and an access token made from the
// user as the database has it now.
func (s *server) writeTokens(x *exchange, u user, sessionID, refreshToken string) error {
	now := s.now()
	access, err := signToken(s.keys.current(), now, claims{
		Subject:   u.id,
		Email:     u.email,
		Role:      u.role,
		OrgID:     u.orgID,
		Issuer:    s.cfg.issuer,
		Audience:  audience{s.cfg.audience},
		IssuedAt:  now.Unix(),
		ExpiresAt: now.Add(s.cfg.accessTTL).Unix(),
		ID:        newID(),
		SessionID: sessionID,
		Groups:    u.groupIDs(),
	})
	if err != nil {
		return err
	}
	answer := s.newTokenAnswer()
	answer.AccessToken, answer.RefreshToken = access, refreshToken
	return writeJSON(x, answer)
}

// --- refresh and logout ---

// handleRefresh exchanges a refresh token for its successor and an access
// token with the role, organisation and groups of this moment. store.rotate
// has the table of outcomes.
func (s *server) handleRefresh(x *exchange, _ principal) error {
	var token string
	if err := decode(x, needOrBare("refresh_token", &token)); err != nil {
		return err
	}
	done, err := s.store.rotate(x.ctx, rotation{
		token:     token,
		now:       s.now,
		idle:      s.cfg.refreshTTL,
		grace:     s.cfg.reuseGrace,
		ip:        x.clientIP(),
		userAgent: cleanText(x.r.UserAgent()),
	})
	x.user = done.user.id
	name := "refresh.ok"
	switch {
	case errors.Is(err, errReuse):
		name = "refresh.reuse"
	case err != nil:
		return err
	case done.repeated: // the client asks again within the grace: the same answer once more
		name = "refresh.repeated"
	}
	x.event(name, "user", done.user.id, "session", done.sessionID)
	if err != nil {
		return err
	}
	return s.writeTokens(x, done.user, done.sessionID, done.successor)
}

// handleLogout ends the session of the bearer token, also of an expired one,
// or of the refresh token in the body, or both; with {"all": true} every
// session of the bearer, whose token must not have expired. It can be repeated
// and answers the same for unknown tokens, so it reveals nothing (RFC 7009
// section 2.2).
func (s *server) handleLogout(x *exchange, _ principal) error {
	var token string
	var everywhere bool
	if x.r.ContentLength != 0 {
		err := decode(x,
			maybe("refresh_token", &token),
			maybe("all", &everywhere))
		if err != nil {
			return err
		}
	}
	if x.r.Header.Get("Authorization") == "" && (everywhere || token == "") {
		return invalidField("refresh_token",
			`is missing; send {"refresh_token": "…"}, or an access token as bearer; to end all `+
				`sessions, send {"all": true} with that`)
	}
	p, err := s.authenticate(x.r, !everywhere)
	if err == nil {
		x.user = p.id
		err = x.logOutBearer(p, everywhere)
	} else if !everywhere && answerTo(err).status == 401 {
		err = nil // an unknown token, or none: there is nothing to end
	}
	if err != nil {
		return err
	}
	// An older token of the session counts too: a refresh may be under way.
	ended, err := s.store.endTokenSession(x.ctx, token)
	if err != nil && !errors.Is(err, errNoSession) {
		return err
	}
	x.logEnded(ended, "logout")
	return writeMessage(x, "Logged out")
}

// logEnded logs the sessions that a request has ended.
func (x *exchange) logEnded(ended []session, reason string) {
	for _, one := range ended {
		x.event("session.revoked",
			"user", one.userID, "session", one.id, "client", one.clientID, "reason", reason)
	}
}

// logOutBearer ends the caller's session, or all of them.
func (x *exchange) logOutBearer(p principal, everywhere bool) (err error) {
	var ended []session
	reason := "logout"
	if everywhere {
		reason = "logout from everywhere"
		ended, err = x.s.store.endSessions(x.ctx, p.id)
	} else {
		ended, err = x.s.store.endSession(x.ctx, p.sessionID, p.id)
	}
	if err == nil && len(ended) > 0 {
		x.event("session.revoked", "user", p.id, "session", p.sessionID, "reason", reason)
	}
	return err
}

// --- the caller's own account ---

// handleMe answers with the caller's row, which authenticate has just read.
func (s *server) handleMe(x *exchange, p principal) error {
	return writeJSON(x, newLoneProfile(p.user))
}

// handleRename sets the caller's display name.
func (s *server) handleRename(x *exchange, p principal) error {
	var name string
	if err := decode(x, need("display_name", &name)); err != nil {
		return err
	}
	if err := checkName(name, 0, 255); err != nil {
		return invalidField("display_name", err.Error())
	}
	_, u, err := s.store.editUser(x.ctx, p, p.id, func(_ user, target *user) (userEdit, error) {
		target.displayName = name
		return userEdit{}, nil
	})
	if err != nil {
		return err
	}
	x.event("user.name_changed", "user", p.id)
	return writeJSON(x, newLoneProfile(u))
}

// handleChangePassword ends all sessions, the caller's too: anybody else who
// knew the password is out.
func (s *server) handleChangePassword(x *exchange, p principal) error {
	var oldPassword, newPassword string
	err := decode(x,
		need("old_password", &oldPassword),
		need("new_password", &newPassword))
	if err != nil {
		return err
	}
	if err := checkNewPassword(newPassword, s.cfg.passwordMinLength); err != nil {
		return invalidField("new_password", err.Error())
	}
	if err := s.verifyPassword(x, p.user, p.email, "old_password", oldPassword); err != nil {
		return err
	}
	c := x.caller(p)
	hash, err := s.hasher.hash(c.ctx, c.client, newPassword)
	if err != nil {
		return err
	}
	change := func(_ user, target *user) (userEdit, error) {
		if !bytes.Equal(target.passwordHash, p.passwordHash) { // somebody else changed it meanwhile
			return userEdit{}, errChanged
		}
		target.passwordHash = hash
		return userEdit{endSessions: true}, nil
	}
	_, _, err = s.store.editUser(x.ctx, p, p.id, change)
	if err != nil {
		return err
	}
	x.event("password.changed", "user", p.id)
	return writeMessage(x, "Password changed")
}

// sessionAnswer is a session as its owner sees it.
type sessionAnswer struct {
	ID         string `json:"id"`
	CreatedAt  string `json:"created_at"`
	LastUsedAt string `json:"last_used_at"`
	ExpiresAt  string `json:"expires_at"`
	IP         string `json:"ip"`
	UserAgent  string `json:"user_agent"`
	Client     string `json:"client,omitempty"` // client_id, or #browser or #forward
	Current    bool   `json:"current"`
}

func newSessionAnswer(one session, current string) sessionAnswer {
	return sessionAnswer{
		ID:         one.id,
		CreatedAt:  rfc3339(one.createdAt),
		LastUsedAt: rfc3339(one.lastUsedAt),
		ExpiresAt:  rfc3339(one.expiresAt),
		IP:         one.ip,
		UserAgent:  one.userAgent,
		Client:     one.clientID,
		Current:    one.id == current,
	}
}

// handleSessions lists where the caller is logged in, so that a stranger's
// session can be seen and ended.
func (s *server) handleSessions(x *exchange, p principal) error {
	if err := checkQuery(x); err != nil {
		return err
	}
	sessions, err := s.store.sessionsOf(p.id, s.now())
	if err != nil {
		return err
	}
	answers := make([]sessionAnswer, 0, len(sessions))
	for _, one := range sessions {
		answers = append(answers, newSessionAnswer(one, p.sessionID))
	}
	return writeJSON(x, map[string]any{"sessions": answers, "total": len(answers)})
}

// handleRevokeSession ends one of the caller's own sessions. Somebody else's
// session gets the same 404 as one that does not exist.
func (s *server) handleRevokeSession(x *exchange, p principal) error {
	id := x.r.PathValue("id")
	ended, err := s.store.endSession(x.ctx, id, p.id)
	if err != nil {
		return err
	}
	if len(ended) == 0 {
		return refusal(404, "session_not_found", "Session not found: "+id)
	}
	x.event("session.revoked",
		"user", p.id, "session", id, "reason", "revoked by its user")
	return writeMessage(x, "Session revoked")
}

// --- registration switch and health ---

// registrationEnabled is what an admin last decided, or else the
// configuration. q is the reading pool, or the change that depends on it.
func (s *server) registrationEnabled(q *queries) (bool, error) {
	value, err := q.setting(settingRegistration)
	if value == nil {
		return s.cfg.registration, err
	}
	return string(value) == "true", err
}

// handleGetRegistration answers whether strangers may register.
func (s *server) handleGetRegistration(x *exchange, _ principal) error {
	enabled, err := s.registrationEnabled(s.store.reads)
	if err != nil {
		return err
	}
	return writeJSON(x, map[string]bool{"registration_enabled": enabled})
}

// handleSetRegistration decides it for good: the decision outlives restarts
// and overrides the configuration.
func (s *server) handleSetRegistration(x *exchange, p principal) error {
	var enabled bool
	if err := decode(x, need("enabled", &enabled)); err != nil {
		return err
	}
	err := s.store.changeBy(x.ctx, p, func(t *queries, actor user) error {
		if err := x.caller(p).recheck(actor); err != nil {
			return err
		}
		return t.setSetting(settingRegistration, strconv.AppendBool(nil, enabled))
	})
	if err != nil {
		return err
	}
	x.event("registration.changed", "enabled", enabled, "actor", p.id)
	return writeJSON(x, map[string]bool{"registration_enabled": enabled})
}

// handleHealth is 200 only if a write has reached the disk: a server that
// cannot store is not healthy.
func (s *server) handleHealth(x *exchange, _ principal) error {
	if err := s.store.healthy(s.now()); err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	return writeJSON(x, map[string]string{"status": "ok"})
}
