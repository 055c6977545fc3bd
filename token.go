package main

// This file is what OAuth clients do without a browser: exchange codes, refresh
// and get tokens of their own (RFC 6749), read about the user (OpenID Connect
// Core section 5.3), revoke (RFC 7009) and ask about tokens (RFC 7662). A
// client is authenticated before anything is touched: some clients try a second
// way of authentication with the same code. What a code or token must match is
// in the WHERE of the statement that uses it up, never compared afterwards.

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	tokenPath      = "/oauth2/token"
	userinfoPath   = "/oauth2/userinfo"
	revokePath     = "/oauth2/revoke"
	introspectPath = "/oauth2/introspect"

	// idTokenTime is for clients that verify an id_token on every request, such
	// as kube-apiserver; others read it once.
	idTokenTime = time.Hour
)

// Errors of RFC 6749 section 5.2, and of RFC 6750 section 3.1 at userinfo.
// Clients get the same text whatever the reason, because the reason would help
// a stranger.
var (
	errInvalidClient = &apiError{status: 401, code: "invalid_client", challenge: `Basic realm="pico-auth"`,
		detail: "unknown client or wrong secret"}
	errInvalidGrant = refusal(400, "invalid_grant", "the code or token is not valid for this client")
	errGrantType    = refusal(400, "unsupported_grant_type",
		"grant_type must be authorization_code, refresh_token or client_credentials")
	errUnauthorizedClient = refusal(400, "unauthorized_client", "this client may not use this grant_type")
	errInvalidScope       = refusal(400, "invalid_scope", "the scope is wider than what was granted")
	errInvalidTarget      = refusal(400, "invalid_target", "this client has no such resource")
	errScopeTooNarrow     = &apiError{status: 403, code: "insufficient_scope",
		challenge: `Bearer error="insufficient_scope", scope="openid"`, detail: "this needs the scope openid"}
)

var (
	errCodeReuse = errors.New("authorization code was used before")
	errNoCode    = errors.New("no code waits for this client with this redirect_uri and code_verifier")
)

// writeOAuthError is the form of errors for OAuth clients (RFC 6749 section
// 5.2). Errors that are not OAuth's get the nearest of its codes.
func writeOAuthError(x *exchange, e *apiError) {
	code := e.code
	switch {
	case e.status == 429 || e.status == 503:
		code = "temporarily_unavailable"
	case e.status == 500:
		code = "server_error"
	case strings.HasPrefix(e.challenge, "Bearer") && e.status == 401:
		code = "invalid_token"
	}
	x.Header().Set("Content-Type", "application/json")
	body, _ := json.Marshal(map[string]string{"error": code, "error_description": e.detail}) // cannot fail
	writeBody(x, e.status, body)
}

// --- who calls ---

// tokenCaller is an authenticated client: an OpenID client, or a service token,
// whose name, role and organisation are in service.
type tokenCaller struct {
	client  *oidcClient
	service user
	grant   string // grant_type, at the token endpoint
}

// tokenForm reads a form and authenticates the client that sends it (RFC 6749
// section 2.3.1).
func (s *server) tokenForm(x *exchange) (c tokenCaller, form url.Values, err error) {
	if form, err = readForm(x, maxBodyBytes); err != nil {
		return c, nil, err
	}
	id, secret := form.Get("client_id"), form.Get("client_secret")
	if x.r.Header.Get("Authorization") != "" {
		if secret != "" {
			return c, nil, badRequest("the client authenticates in two ways")
		}
		named := id
		if id, secret, err = basicCredentials(x.r); err != nil || (named != "" && named != id) {
			return c, nil, errInvalidClient
		}
	}
	if id == "" {
		return c, nil, badRequest("client_id is missing")
	}
	c, err = s.authenticateClient(x, id, secret)
	return c, form, err
}

// basicCredentials decodes HTTP Basic. Both parts are form-encoded in it.
func basicCredentials(r *http.Request) (id, secret string, err error) {
	id, secret, ok := r.BasicAuth()
	if !ok {
		return "", "", errInvalidClient
	}
	id, idErr := url.QueryUnescape(id)
	secret, secretErr := url.QueryUnescape(secret)
	return id, secret, cmp.Or(idErr, secretErr)
}

// authenticateClient compares the secret first and counts failures alone, so
// that guessing at a client keeps that client from nothing.
func (s *server) authenticateClient(x *exchange, id, secret string) (c tokenCaller, err error) {
	client := s.cfg.clients[id]
	if client != nil && (client.hasSecret(secret) || (client.public() && secret == "")) {
		return tokenCaller{client: client}, nil
	}
	for _, holder := range []func(id, secret string) (user, error){
		s.store.serviceHolder, // room: servicetokens
	} {
		c.service, err = holder(id, secret)
		if !errors.Is(err, errNotFound) {
			return c, err
		}
	}
	if v := s.throttle.secretFailed(clientKey(x.clientIP())); v.rule != "" {
		x.event("client.throttled", "client", shownID(id))
		return c, tooManyAttempts(v)
	}
	x.event("client.failed", "client", shownID(id))
	return c, errInvalidClient
}

// --- grants ---

// grantTypes are the values of grant_type, and whether they are for service
// tokens or for OpenID clients.
var grantTypes = map[string]struct {
	forService bool
	handle     func(*server, *exchange, tokenCaller, url.Values) error
}{
	"authorization_code": {false, (*server).grantCode},
	"refresh_token":      {false, (*server).grantRefresh},
	"client_credentials": {true, (*server).grantService},
}

// handleToken is the token endpoint.
func (s *server) handleToken(x *exchange, _ principal) error {
	c, form, err := s.tokenForm(x)
	if err != nil {
		return err
	}
	c.grant = form.Get("grant_type")
	grant := grantTypes[c.grant]
	switch {
	case c.grant == "":
		return badRequest("grant_type is missing")
	case grant.handle == nil:
		return errGrantType
	case grant.forService != (c.client == nil):
		return errUnauthorizedClient
	}
	if c.client != nil {
		if _, mayHave := c.client.audienceFor(form.Get("resource")); !mayHave {
			return errInvalidTarget
		}
	}
	return grant.handle(s, x, c, form)
}

// codeVerifier is its whole alphabet (RFC 7636 section 4.1).
var codeVerifier = regexp.MustCompile(`^[A-Za-z0-9._~-]{43,128}$`)

// grantCode exchanges a code for tokens (RFC 6749 section 4.1.3).
func (s *server) grantCode(x *exchange, c tokenCaller, form url.Values) error {
	verifier := form.Get("code_verifier")
	if form.Get("code") == "" {
		return badRequest("code is missing")
	}
	if verifier != "" && !codeVerifier.MatchString(verifier) {
		return errInvalidGrant.because(errNoCode)
	}
	idle := s.cfg.refreshTTL
	if !c.client.refresh {
		idle = s.cfg.accessTTL // userinfo works as long as the access token does
	}
	done, err := s.store.exchangeCode(x.ctx, codeExchange{
		codeHash:    hashToken(form.Get("code")),
		client:      c.client,
		redirectURI: form.Get("redirect_uri"),
		challenge:   challengeOf(verifier),
		handle:      newID(),
		now:         s.now,
		idle:        idle,
		ip:          x.clientIP(),
		userAgent:   cleanText(x.r.UserAgent()),
	})
	if err != nil {
		return x.refuseGrant(c.client, done, err)
	}
	done.grant.narrow(form.Get("resource"))
	return s.writeGrant(x, c, done, done.grant.scope)
}

// grantRefresh exchanges a refresh token for its successor (RFC 6749 section
// 6). The scope of a session never changes, so it can be compared before.
func (s *server) grantRefresh(x *exchange, c tokenCaller, form url.Values) error {
	if !c.client.refresh {
		return errUnauthorizedClient
	}
	token := form.Get("refresh_token")
	granted, err := s.store.scopeOf(token, c.client.id)
	if errors.Is(err, errNoSession) {
		return errInvalidGrant
	}
	if err != nil {
		return err
	}
	scope, within := narrowed(granted, form.Get("scope"))
	if !within {
		return errInvalidScope
	}
	done, err := s.store.rotate(x.ctx, rotation{
		token:     token,
		clientID:  c.client.id,
		admits:    c.client.admits,
		now:       s.now,
		idle:      s.cfg.refreshTTL,
		grace:     s.cfg.reuseGrace,
		ip:        x.clientIP(),
		userAgent: cleanText(x.r.UserAgent()),
	})
	if err != nil {
		return x.refuseGrant(c.client, done, err)
	}
	done.grant.nonce = "" // OpenID Connect Core section 12.2
	done.grant.narrow(form.Get("resource"))
	return s.writeGrant(x, c, done, scope)
}

// narrowed is the part of a granted scope that is asked for, all of it without
// a wish; false when the wish goes beyond it. Scopes that do not exist here
// were not granted and are ignored once more.
func narrowed(granted, wish string) (scope string, within bool) {
	if wish == "" {
		return granted, true
	}
	var kept []string
	for _, name := range strings.Fields(wish) {
		has := slices.Contains(strings.Fields(granted), name)
		if !has && slices.Contains(scopes, name) {
			return "", false
		}
		if has {
			kept = append(kept, name)
		}
	}
	return strings.Join(kept, " "), true
}

// refuseGrant is the answer to a code or refresh token that is not good. All
// reasons are one to the client.
func (x *exchange) refuseGrant(client *oidcClient, done rotated, err error) error {
	x.user = done.user.id
	switch {
	case errors.Is(err, errReuse), errors.Is(err, errCodeReuse):
		x.event("refresh.reuse",
			"user", done.user.id, "session", done.sessionID, "client", client.id, "reason", err)
	case errors.Is(err, errNoCode), errors.Is(err, errNoSession), errors.Is(err, errSessionExpired):
	case errors.Is(err, errSuspended), errors.Is(err, errNotAdmitted):
	default:
		return err
	}
	return errInvalidGrant.because(err)
}

// writeGrant answers with the tokens of an exchange or a refresh.
func (s *server) writeGrant(x *exchange, c tokenCaller, done rotated, scope string) (err error) {
	client := c.client
	x.user = done.user.id
	x.event("token.issued",
		"user", done.user.id, "session", done.sessionID, "client", client.id, "grant", c.grant)
	now := s.now()
	answer := s.newTokenAnswer()
	answer.Scope = scope
	if client.refresh {
		answer.RefreshToken = done.successor
	}
	answer.AccessToken, err = signToken(s.keys.current(), now, s.clientClaims(now, client, done, scope))
	if err == nil && hasScope(scope, "openid") {
		claims := s.idClaims(now, client, done, scope)
		claims.AccessHash = atHash(answer.AccessToken)
		answer.IDToken, err = signToken(s.keys.current(), now, claims)
	}
	if err != nil {
		return err
	}
	return writeJSON(x, answer)
}

// idClaims are the claims of the id_token beside an access token.
func (s *server) idClaims(now time.Time, client *oidcClient, done rotated, scope string) idClaims {
	return idClaims{
		Issuer:    s.cfg.issuer,
		Subject:   done.user.id,
		Audience:  client.id,
		ExpiresAt: now.Add(idTokenTime).Unix(),
		IssuedAt:  now.Unix(),
		AuthTime:  done.grant.authTime,
		ACR:       "1",
		AMR:       []string{"pwd"},
		Nonce:     done.grant.nonce,
		SessionID: done.sessionID,
		identity:  identityOf(done.user, scope),
	}
}

// clientClaims are the claims of a client's access token. Who the user is, as
// a login's token says it, is only in tokens of clients that have an audience:
// the operator named who else reads them.
func (s *server) clientClaims(now time.Time, client *oidcClient, done rotated, scope string) clientClaims {
	others, _ := client.audienceFor(done.grant.resource)
	u := done.user
	c := clientClaims{
		Issuer:    s.cfg.issuer,
		Subject:   u.id,
		Audience:  append(audience{s.cfg.issuer}, others...),
		ClientID:  client.id,
		Scope:     scope,
		SessionID: done.sessionID,
		AuthTime:  done.grant.authTime,
		IssuedAt:  now.Unix(),
		ExpiresAt: now.Add(s.cfg.accessTTL).Unix(),
		ID:        newID(),
	}
	if len(others) > 0 {
		c.Email, c.Role, c.OrgID, c.Groups = &u.email, &u.role, &u.orgID, u.groupIDs()
	}
	return c
}

// grantService answers a service token with a token that every verifier of this
// server's tokens takes without asking (RFC 6749 section 4.4). It is nobody's
// session, so nothing under /api takes it, nor does userinfo.
func (s *server) grantService(x *exchange, c tokenCaller, _ url.Values) error {
	now, service := s.now(), c.service
	token, err := signToken(s.keys.current(), now, clientClaims{
		Issuer:    s.cfg.issuer,
		Subject:   service.id,
		Audience:  audience{s.cfg.audience},
		ClientID:  service.displayName,
		IssuedAt:  now.Unix(),
		ExpiresAt: now.Add(s.cfg.accessTTL).Unix(),
		ID:        newID(),
		Email:     new(""),
		Role:      &service.role,
		OrgID:     &service.orgID,
		Groups:    []string{},
	})
	if err != nil {
		return err
	}
	x.event("token.issued", "service_token", service.id, "client", service.displayName, "grant", c.grant)
	answer := s.newTokenAnswer()
	answer.AccessToken = token
	return writeJSON(x, answer)
}

// codeExchange is one use of a code.
type codeExchange struct {
	codeHash      []byte
	client        *oidcClient
	redirectURI   string
	challenge     string // what the verifier stands for; empty without one
	handle        string // of the refresh token that takes the code's place
	now           func() time.Time
	idle          time.Duration
	ip, userAgent string
}

// exchangeCode replaces a code by the first refresh token of its session, in
// one compare-and-swap: of any number of uses one wins. Client, redirect URI
// and challenge stand in its WHERE, so a code that was stolen on its way is
// worth nothing to anybody else (RFC 9700 section 4.5). The session gets a new
// id: that of the code would be known to whoever saw it. With PKCE the URI may
// be left out, as in OAuth 2.1: the verifier binds the code to the client, too.
//
// A second use with everything right means that the code was stolen from the
// client, or that the client is the thief, so what the first use got ends (RFC
// 6749 section 4.1.2). With anything wrong nothing changes, or a stranger could
// end sessions.
func (s *store) exchangeCode(ctx context.Context, e codeExchange) (done rotated, err error) {
	var id string
	err = s.reads.get(`SELECT id FROM sessions WHERE code_hash = $1 AND client_id = $2 AND challenge = $3`,
		[]any{e.codeHash, e.client.id, e.challenge}, &id)
	if err != nil { // a code that is made up never reaches the writer
		if errors.Is(err, errNotFound) {
			err = errNoCode
		}
		return done, err
	}
	err = s.change(ctx, func(t *queries) (err error) {
		done, err = t.useCode(e)
		return err
	})
	return done, cmp.Or(err, done.refusal)
}

// useCode tries to replace the code, and then looks at what is there.
func (t *queries) useCode(e codeExchange) (done rotated, err error) {
	done.sessionID, done.successor = sessionIDOf(e.handle), newRefreshToken(e.handle)
	at := e.now()
	used, err := t.exec(`UPDATE sessions SET id = $1, token_hash = $2, redirect_uri = NULL, last_used_at = $3,
			expires_at = CASE WHEN $4 < ends_at THEN $4 ELSE ends_at END, ip = $5, user_agent = $6
		WHERE code_hash = $7 AND client_id = $8
			AND (redirect_uri = $9 OR ($9 = '' AND redirect_uri IS NOT NULL AND challenge <> ''))
			AND challenge = $10 AND expires_at > $3`,
		done.sessionID,
		hashToken(done.successor),
		at.Unix(),
		at.Add(e.idle).Unix(),
		e.ip,
		e.userAgent,
		e.codeHash,
		e.client.id,
		e.redirectURI,
		e.challenge)
	if err != nil {
		return done, err
	}
	if used == 0 {
		return t.endReusedCode(e)
	}
	targets := append(grantTargets(&done.grant), loneUserTargets(&done.user)...)
	err = t.get(`SELECT `+grantColumns+`, `+loneUserColumns+` FROM sessions JOIN users ON users.id = user_id
		WHERE sessions.id = $1`, []any{done.sessionID}, targets...)
	switch {
	case err != nil:
		return done, err
	case done.user.status != statusActive:
		done.refusal = errSuspended
	case !e.client.admits(done.user):
		done.refusal = errNotAdmitted
	}
	if done.refusal != nil {
		_, err = t.endWhere(`id = $1`, done.sessionID)
		return done, err
	}
	return done, t.capSessions(done.user.id, done.sessionID, maxClientSessions,
		`client_id = $4 AND redirect_uri IS NULL`, e.client.id)
}

// endReusedCode ends the session of a code that was used before, if client and
// verifier are right.
func (t *queries) endReusedCode(e codeExchange) (done rotated, err error) {
	done.refusal = errNoCode
	ended, err := t.endWhere(`code_hash = $1 AND client_id = $2 AND redirect_uri IS NULL AND challenge = $3`,
		e.codeHash, e.client.id, e.challenge)
	if len(ended) > 0 {
		done.refusal = errCodeReuse
		done.user.id, done.sessionID = ended[0].userID, ended[0].id
	}
	return done, err
}

// scopeOf returns the scope of the session that a client's refresh token names,
// or errNoSession.
func (s *store) scopeOf(token, clientID string) (scope string, err error) {
	id, _, err := s.sessionByToken(token, clientID)
	if err == nil {
		err = s.reads.get(`SELECT scope FROM sessions WHERE id = $1`, []any{id}, &scope)
	}
	return scope, noSession(err)
}

// --- userinfo ---

func hasScope(scope, name string) bool { return slices.Contains(strings.Fields(scope), name) }

// identityOf is what a scope lets a client know (OpenID Connect Core section
// 5.4). A name is never empty, because some clients refuse a login without one.
func identityOf(u user, scope string) (who identity) {
	if hasScope(scope, "email") {
		who.Email, who.EmailVerified = u.email, u.verifiedAt != 0
	}
	if hasScope(scope, "profile") {
		who.Name, who.PreferredUsername = cmp.Or(u.displayName, u.email), u.email
	}
	if hasScope(scope, "groups") {
		who.Groups = u.groupNames()
	}
	return who
}

// handleUserinfo says who the user of a client's access token is now. Tokens of
// the JSON login are not taken: their header is another.
func (s *server) handleUserinfo(x *exchange, _ principal) error {
	token, err := bearerToken(x.r)
	if errors.Is(err, errTokenMissing) && x.r.Method == "POST" && x.r.ContentLength != 0 {
		var form url.Values
		if form, err = readForm(x, maxBodyBytes); err == nil {
			token = form.Get("access_token")
		}
	}
	if err != nil {
		return err
	}
	// Every token of a client is for the issuer, and a service token's is not
	// (RFC 9068 section 4).
	want := expected{issuer: s.cfg.issuer, audience: s.cfg.issuer, now: s.now()}
	c, err := verifyToken[clientClaims](s.keys.current(), token, want)
	if err != nil {
		return err
	}
	p, err := s.clientUser(c)
	if err != nil {
		return err
	}
	if !hasScope(c.Scope, "openid") {
		return errScopeTooNarrow
	}
	x.user = p.id
	return writeJSON(x, struct {
		Subject string `json:"sub"`
		identity
	}{p.id, identityOf(p.user, c.Scope)})
}

// clientToken verifies the access token of a client.
func (s *server) clientToken(token string) (clientClaims, error) {
	want := expected{issuer: s.cfg.issuer, now: s.now()}
	return verifyToken[clientClaims](s.keys.current(), token, want)
}

// clientUser returns the user of a token's session, who must still be admitted
// to a client that still exists; a token of no client has neither.
func (s *server) clientUser(c clientClaims) (principal, error) {
	p, err := s.store.authenticated(c.SessionID, c.ClientID, s.now())
	client := s.cfg.clients[c.ClientID]
	if err == nil && c.ClientID != jsonLogin && (client == nil || !client.admits(p.user)) {
		err = errNoSession
	}
	return p, err
}

// --- revocation and introspection ---

// handleRevoke ends the session of a client's refresh or access token. It
// answers the same for tokens that are unknown or another client's, so it
// reveals nothing (RFC 7009 section 2.2).
func (s *server) handleRevoke(x *exchange, _ principal) error {
	c, form, err := s.tokenForm(x)
	if err != nil {
		return err
	}
	token := form.Get("token")
	if token == "" {
		return badRequest("token is missing")
	}
	if c.client != nil {
		ended, err := s.revoke(x.ctx, c.client, token)
		if err != nil && !errors.Is(err, errNoSession) {
			return err
		}
		x.logEnded(ended, "revoked by the client")
	}
	writeBody(x, 200, nil)
	return nil
}

// revoke ends the session of a token, or returns errNoSession. A refresh token
// must be the current one or the one before it, because its handle alone may
// have been seen by others. Both kinds are looked up before, so that made-up
// tokens never reach the writer.
func (s *server) revoke(ctx context.Context, client *oidcClient, token string) ([]session, error) {
	id, hash, err := s.store.sessionByToken(token, client.id)
	if err == nil {
		return s.store.endSessionsWhere(ctx, `id = $1 AND client_id = $2 AND redirect_uri IS NULL
			AND (token_hash = $3 OR parent_hash = $3)`, id, client.id, hash)
	}
	if !errors.Is(err, errNoSession) {
		return nil, err
	}
	want := expected{issuer: s.cfg.issuer, now: s.now(), orExpired: true}
	c, err := verifyToken[clientClaims](s.keys.current(), token, want)
	if err != nil {
		return nil, errNoSession
	}
	if _, _, err = s.store.reads.userOfSession(c.SessionID, client.id); err != nil {
		return nil, err
	}
	return s.store.endSessionsWhere(ctx, `id = $1 AND client_id = $2`, c.SessionID, client.id)
}

// tokenState is what introspection says of a token that is good. Of any other
// it says {"active":false} and nothing else (RFC 7662 section 2.2).
type tokenState struct {
	Active    bool     `json:"active"`
	Scope     string   `json:"scope,omitempty"`
	ClientID  string   `json:"client_id,omitempty"`
	Username  string   `json:"username,omitempty"`
	TokenType string   `json:"token_type"`
	ExpiresAt int64    `json:"exp"`
	IssuedAt  int64    `json:"iat"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Issuer    string   `json:"iss"`
	ID        string   `json:"jti"`
}

// handleIntrospect says whether an access token is still good: whether its
// session lives, or its service token. A caller learns about its own tokens and
// those that are meant for it.
func (s *server) handleIntrospect(x *exchange, _ principal) error {
	caller, form, err := s.tokenForm(x)
	if err != nil {
		return err
	}
	if caller.client != nil && caller.client.public() {
		return errInvalidClient
	}
	state, err := s.introspect(caller, form.Get("token"))
	if err != nil && answerTo(err).status >= 500 {
		return err
	}
	if !state.Active {
		return writeJSON(x, map[string]bool{"active": false})
	}
	return writeJSON(x, state)
}

// introspect returns an inactive state or an error for tokens that the caller
// learns nothing about.
func (s *server) introspect(caller tokenCaller, token string) (state tokenState, err error) {
	c, err := s.clientToken(token)
	if errors.Is(err, errUnknownKey) { // perhaps one of a login
		c, err = s.loginToken(token)
	}
	if err != nil || !caller.mayAskAbout(c, s.cfg.audience) {
		return state, err
	}
	state = tokenState{
		Scope:     c.Scope,
		ClientID:  c.ClientID,
		TokenType: "Bearer",
		ExpiresAt: c.ExpiresAt,
		IssuedAt:  c.IssuedAt,
		Subject:   c.Subject,
		Audience:  c.Audience,
		Issuer:    c.Issuer,
		ID:        c.ID,
	}
	holder, err := s.tokenHolder(c)
	state.Active, state.Username = err == nil, holder.email
	return state, err
}

// tokenHolder returns the user of an access token whose session lives, or what
// the token of a service token says while that was not revoked.
func (s *server) tokenHolder(c clientClaims) (u user, err error) {
	if c.SessionID != "" {
		p, err := s.clientUser(c)
		return p.user, err
	}
	lives := false
	lives, err = s.store.serviceTokenLives(c.Subject) // room: servicetokens
	if err == nil && !lives {
		err = errNoSession
	}
	return user{id: c.Subject, displayName: c.ClientID, role: *c.Role, orgID: *c.OrgID}, err
}

// loginToken verifies a token of the JSON login, as one of no client.
func (s *server) loginToken(token string) (clientClaims, error) {
	want := expected{issuer: s.cfg.issuer, audience: s.cfg.audience, now: s.now()}
	c, err := verifyToken[claims](s.keys.current(), token, want)
	return clientClaims{
		Issuer:    c.Issuer,
		Subject:   c.Subject,
		Audience:  c.Audience,
		ClientID:  jsonLogin,
		SessionID: c.SessionID,
		IssuedAt:  c.IssuedAt,
		ExpiresAt: c.ExpiresAt,
		ID:        c.ID,
	}, err
}

// mayAskAbout reports whether a token is the caller's own, or meant for it:
// service tokens stand for the services that auth.audience means.
func (c tokenCaller) mayAskAbout(token clientClaims, ours string) bool {
	if c.client == nil {
		return token.ClientID == c.service.displayName || slices.Contains(token.Audience, ours)
	}
	return token.ClientID == c.client.id || slices.ContainsFunc(c.client.audience, func(a string) bool {
		return slices.Contains(token.Audience, a)
	})
}
