package main

// This file is the list of endpoints and what each does, in the order of the table. A handler reads
// its input, asks the lower rooms, and answers; decisions about users are made inside the change
// that carries them out (store.editUser), by the rules in rbac.go. Every event that matters to
// security is logged here under its stable name.

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

// routes is every endpoint with what its callers need.
func (s *server) routes() []route {
	return []route{
		{"POST /api/v1/auth/register", public, s.handleRegister},
		{"POST " + loginPath, public, s.handleLogin},
		{"POST /api/v1/auth/refresh", public, s.handleRefresh},
		{"POST /api/v1/auth/logout", public, s.handleLogout},

		{"GET /api/v1/auth/me", permSelf, s.handleMe},
		{"POST /api/v1/auth/me/password", permSelf, s.handleChangePassword},
		{"GET /api/v1/auth/me/sessions", permSelf, s.handleSessions},
		{"DELETE /api/v1/auth/me/sessions/{id}", permSelf, s.handleRevokeSession},

		{"GET /api/v1/auth/users", permUsersRead, s.handleListUsers},
		{"POST /api/v1/auth/users", permUsersEdit, s.handleCreateUser},
		{"GET /api/v1/auth/users/registration", permSettings, s.handleGetRegistration},
		{"PUT /api/v1/auth/users/registration", permSettings, s.handleSetRegistration},
		{"GET /api/v1/auth/users/{id}", permUsersRead, s.handleGetUser},
		{"DELETE /api/v1/auth/users/{id}", permUsersEdit, s.handleDeleteUser},
		{"PUT /api/v1/auth/users/{id}/role", permUsersEdit, s.handleSetRole},
		{"PUT /api/v1/auth/users/{id}/status", permUsersEdit, s.handleSetStatus},
		{"PUT /api/v1/auth/users/{id}/password", permUsersEdit, s.handleResetPassword},
		{"PUT /api/v1/auth/users/{id}/org", permOrgEdit, s.handleSetOrg},

		{"GET " + jwksPath, public, s.handleJWKS},
		{"GET " + discoveryPath, public, s.handleDiscovery},
		{"GET /healthz", public, s.handleHealth},
	}
}

// --- register, login, refresh, logout ---

// handleRegister makes a viewer of the default organisation, whatever else the body asks for. A taken email is
// told (409), as pico-auth does; the throttle bounds how many can be tried.
func (s *server) handleRegister(w *response, r *http.Request, _ principal) error {
	var u user
	var password string
	if err := decode(w, r, needText("email", &u.email), needText("password", &password), maybeText("display_name", &u.displayName)); err != nil {
		return err
	}
	if enabled, err := s.registrationEnabled(); err != nil {
		return err
	} else if !enabled {
		return &apiError{status: http.StatusForbidden, code: "registration_disabled", detail: "Public registration is disabled"}
	}
	u.role, u.orgID = viewer, defaultOrg
	if field, err := checkNewUser(u, password, s.cfg.passwordMinLength); err != nil {
		return invalidField(field, err.Error())
	}
	if v := s.throttle.registered(s.throttle.clientKey(w.clientIP())); v.rule != "" {
		s.event(w, "registration.throttled")
		return tooMany(v)
	}
	return s.addUser(w, r, principal{}, u, password)
}

// addUser hashes, stores and answers for register and for admins. A principal without a session may do it.
func (s *server) addUser(w *response, r *http.Request, by principal, u user, password string) error {
	hash, err := s.hasher.hash(r.Context(), password)
	if err != nil {
		return err
	}
	u.id, u.passwordHash, u.defaultPassword = newID(), hash, password == defaultAdminPassword
	u.status, u.createdAt = statusActive, s.now().Unix()
	err = s.store.createUser(r.Context(), by, u, func(actor user) error { return mayCreate(actor, u) })
	if errors.Is(err, errConflict) {
		return &apiError{status: http.StatusConflict, code: "user_exists", detail: "User already exists: " + u.email}
	}
	if err != nil {
		return err
	}
	s.event(w, "user.created", "user", u.id, "role", u.role, "org", u.orgID, "actor", by.id)
	return writeJSON(w, struct {
		ID     string `json:"id"`
		Email  string `json:"email"`
		Role   string `json:"role"`
		Status string `json:"status"`
	}{u.id, u.email, u.role, u.status})
}

// mayCreate is the rule for admins who add a user: a role they may grant, in an organisation whose users they may edit.
func mayCreate(actor, u user) error {
	if !mayGrant(actor, u.role) || !mayEditUser(actor, u) {
		return forbidden("You may not create this user")
	}
	return nil
}

// tokenResponse is the success body of login and refresh (RFC 6749 section 5.1).
type tokenResponse struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // seconds
}

// handleLogin opens a session. What it learns before the password is compared changes neither the time
// nor the answer; what concerns the account is told only afterwards (ASVS 5.0, 6.3.8).
func (s *server) handleLogin(w *response, r *http.Request, _ principal) error {
	var email, password string
	if err := decode(w, r, needText("email", &email), needText("password", &password)); err != nil {
		return err
	}
	err := s.logIn(w, r, email, password)
	if errors.Is(err, errChanged) { // perhaps a simultaneous login renewed the hash; look again
		err = s.logIn(w, r, email, password)
	}
	if errors.Is(err, errChanged) {
		return badCredentials(err)
	}
	return err
}

// logIn is one attempt; errChanged when the account changed while its password was being compared.
func (s *server) logIn(w *response, r *http.Request, email, password string) error {
	u, err := s.store.userByLogin(email)
	if err != nil && !errors.Is(err, errNotFound) {
		return err
	}
	if err := s.verifyPassword(w, r, u, email, "password", password); err != nil {
		return err
	}
	w.user = u.id
	if err := s.mayLogIn(w, r, u, password); err != nil {
		return err
	}
	l, refresh, err := s.newLogin(w, r, u, password)
	if err != nil {
		return err
	}
	fresh, err := s.store.openSession(r.Context(), l)
	if err != nil {
		return err
	}
	s.event(w, "login.ok", "user", u.id, "session", l.session.id)
	return s.writeTokens(w, fresh, l.session.id, refresh)
}

// verifyPassword compares under the throttle. An unknown user (a zero one) takes the same time and
// gets the same answer as a wrong password. field is what the body calls the password.
func (s *server) verifyPassword(w *response, r *http.Request, u user, email, field, password string) error {
	if strings.ContainsRune(password, 0) { // bcrypt repeats the key with a NUL between, so abc NUL abc would pass for abc
		return invalidField(field, "must not contain NUL")
	}
	a := attempt{email: cmp.Or(u.id, emailKey(email)), address: s.throttle.clientKey(w.clientIP())}
	v := s.throttle.blocked(a)
	if v.rule == "account" && u.id != "" {
		since := s.now().AddDate(0, 0, -s.cfg.throttle.knownAddressDays)
		known, err := s.store.knownAddress(u.id, a.address, since)
		if err != nil {
			return err
		}
		a.known = known
		v = s.throttle.blocked(a)
	}
	ok := false
	if v.rule == "" {
		var err error
		if ok, err = s.hasher.compare(r.Context(), u.passwordHash, password); err != nil {
			return err
		}
		if ok && u.id != "" {
			v = s.throttle.succeeded(a)
		} else {
			v = s.throttle.failed(a)
		}
	}
	switch {
	case v.rule != "":
		s.event(w, "login.throttled", "user", u.id, "rule", v.rule)
		return tooMany(v)
	case u.id == "":
		s.event(w, "login.failed", "reason", "unknown email")
		return badCredentials(errNotFound)
	case !ok:
		s.event(w, "login.failed", "user", u.id, "reason", "wrong password")
		return badCredentials(nil)
	}
	return nil
}

// mayLogIn holds what is told only to whoever knew the password.
func (s *server) mayLogIn(w *response, r *http.Request, u user, password string) error {
	switch {
	case u.status != statusActive:
		s.event(w, "login.failed", "user", u.id, "reason", "suspended")
		return suspended()
	case password == "": // databases of pico-auth can contain these
		s.event(w, "login.failed", "user", u.id, "reason", "empty password")
		return &apiError{status: http.StatusForbidden, code: "password_reset_required", detail: "This account has an empty password; have an administrator reset it"}
	case password == defaultAdminPassword && (s.cfg.exposed() != "" || foreign(r)):
		// A proxy in front makes a loopback listener public, and this password is known to everybody.
		s.event(w, "login.failed", "user", u.id, "reason", "default password from elsewhere")
		return &apiError{status: http.StatusForbidden, code: "default_password", detail: "The default password works on the server's own machine only; change it there first"}
	}
	return nil
}

// newLogin prepares the session and its refresh token, and a new hash where the stored one is outdated:
// this is the only moment at which the password is known. Passwords that today's rules refuse keep
// their old hash, because a new one would cut or forbid them.
func (s *server) newLogin(w *response, r *http.Request, u user, password string) (login, string, error) {
	l := login{user: u, isDefault: password == defaultAdminPassword, address: s.throttle.clientKey(w.clientIP())}
	if outdated(u.passwordHash, s.cfg.bcryptCost) && checkNewPassword(password, s.cfg.passwordMinLength) == nil {
		hash, err := s.hasher.hash(r.Context(), password)
		if err != nil {
			return l, "", err
		}
		l.newHash = hash
	}
	now, handle := s.now(), newID()
	id, refresh := sessionIDOf(handle), newRefreshToken(handle)
	l.tokenHash = hashToken(refresh)
	l.session = session{id: id, createdAt: now.Unix(), ip: w.clientIP(), userAgent: cleanText(r.UserAgent()),
		endsAt: now.Add(s.cfg.sessionMax()).Unix(), expiresAt: now.Add(min(s.cfg.refreshTTL(), s.cfg.sessionMax())).Unix()}
	return l, refresh, nil
}

// writeTokens makes an access token from the user as the database has it now.
func (s *server) writeTokens(w *response, u user, sessionID, refresh string) error {
	now := s.now()
	access, err := s.keys.current().sign(claims{
		Subject: u.id, Email: u.email, Role: u.role, OrgID: u.orgID, Issuer: s.cfg.issuer, Audience: audience{s.cfg.audience},
		IssuedAt: now.Unix(), ExpiresAt: now.Add(s.cfg.accessTTL()).Unix(), ID: newID(), SessionID: sessionID,
	})
	if err != nil {
		return err
	}
	return writeJSON(w, tokenResponse{access, refresh, "Bearer", int64(s.cfg.accessTTL() / time.Second)})
}

// handleRefresh exchanges a refresh token for its successor and an access token with the role, email and
// organisation of this moment. The exchange is one statement in the store; nothing that happens
// after it can bring the old token back, and nothing before it has consumed it.
func (s *server) handleRefresh(w *response, r *http.Request, _ principal) error {
	var token string
	if err := decodeBare(w, r, needText("refresh_token", &token)); err != nil {
		return err
	}
	candidates := s.candidates(token)
	if candidates == nil {
		return invalidToken(errMalformed)
	}
	successor, err := s.prepareSuccessor(token, candidates)
	if err != nil {
		return err
	}
	done, err := s.store.rotate(r.Context(), rotation{candidates: candidates, now: s.now(), idle: s.cfg.refreshTTL(), grace: s.cfg.reuseGrace(),
		ip: w.clientIP(), userAgent: cleanText(r.UserAgent())})
	w.user = done.user.id
	switch {
	case errors.Is(err, errReuse):
		s.event(w, "refresh.reuse", "user", done.user.id, "session", done.sessionID)
		return invalidToken(err)
	case errors.Is(err, errNoSession), errors.Is(err, errSessionExpired):
		return invalidToken(err)
	case errors.Is(err, errSuspended):
		return suspended()
	case err != nil:
		return err
	}
	if done.repeat != nil { // the client asks again within the grace: the same answer once more
		if successor, err = openToken(token, done.repeat); err != nil {
			return err
		}
		s.event(w, "refresh.repeated", "user", done.user.id, "session", done.sessionID)
	} else {
		s.event(w, "refresh.ok", "user", done.user.id, "session", done.sessionID)
	}
	return s.writeTokens(w, done.user, done.sessionID, successor)
}

// candidates are the sessions that a refresh token can belong to: one for our own tokens, up to two for
// pico-auth's and their successors, none for anything else.
func (s *server) candidates(token string) []candidate {
	handle, ok := refreshTokenHandle(token)
	if !ok {
		return nil
	}
	all := []candidate{{sessionID: sessionIDOf(handle), hash: hashToken(token)}}
	if id, hash, ok := s.store.legacySession(handle); ok {
		if handle != token { // already one of ours, which are stored as SHA-256
			hash = hashToken(token)
		}
		all = append(all, candidate{sessionID: id, hash: hash})
	}
	return all
}

// prepareSuccessor makes the token that would replace the presented one, for whichever candidate applies.
func (s *server) prepareSuccessor(token string, all []candidate) (successor string, err error) {
	handle, _ := refreshTokenHandle(token)
	successor = newRefreshToken(handle)
	for i := range all {
		all[i].successorHash = hashToken(successor)
		if s.cfg.reuseGraceSeconds > 0 && err == nil {
			all[i].sealed, err = sealToken(token, successor)
		}
	}
	return successor, err
}

// handleLogout ends the session of the bearer token, also of an expired one, or of the refresh token in the
// body, or both, or, with {"all": true}, every session of the bearer. It is idempotent and says the same of
// unknown tokens: there is nothing to learn here (RFC 7009 section 2.2).
func (s *server) handleLogout(w *response, r *http.Request, _ principal) error {
	var token string
	var all bool
	if r.ContentLength != 0 {
		if err := decode(w, r, maybeText("refresh_token", &token), maybeBool("all", &all)); err != nil {
			return err
		}
	}
	if r.Header.Get("Authorization") == "" && (all || token == "") {
		return invalidField("refresh_token", "is missing; send it, or an access token as bearer, which all needs")
	}
	p, err := s.identify(r, true)
	if e := asAPIError(err); err != nil && e.status != http.StatusUnauthorized {
		return err
	}
	if err == nil {
		w.user = p.id
		if err := s.logoutBearer(w, r, p, all); err != nil {
			return err
		}
	}
	for _, c := range s.candidates(token) { // an older token counts too: a refresh may be under way meanwhile
		owner, err := s.store.endSession(r.Context(), c.sessionID, "")
		if err != nil {
			return err
		}
		if owner != "" {
			s.event(w, "session.revoked", "user", owner, "session", c.sessionID, "reason", "logout")
		}
	}
	return writeMessage(w, "Logged out")
}

// logoutBearer ends the caller's session, or all of them.
func (s *server) logoutBearer(w *response, r *http.Request, p principal, all bool) error {
	if all {
		n, err := s.store.endSessions(r.Context(), p.id)
		if err == nil {
			s.event(w, "session.revoked", "user", p.id, "count", n, "reason", "logout from everywhere")
		}
		return err
	}
	_, err := s.store.endSession(r.Context(), p.sessionID, p.id)
	if err == nil {
		s.event(w, "session.revoked", "user", p.id, "session", p.sessionID, "reason", "logout")
	}
	return err
}

// --- the caller's own account ---

// profile is a user as JSON; lists leave the times out.
type profile struct {
	ID          string `json:"id"`
	Email       string `json:"email"`
	DisplayName string `json:"display_name"`
	Role        string `json:"role"`
	OrgID       string `json:"org_id"`
	Status      string `json:"status"`
}

// fullProfile adds the times, in RFC 3339 UTC; last_login_at is null before the first login.
type fullProfile struct {
	profile
	CreatedAt   string  `json:"created_at"`
	LastLoginAt *string `json:"last_login_at"`
}

func newProfile(u user) profile {
	return profile{u.id, u.email, u.displayName, u.role, u.orgID, u.status}
}

func newFullProfile(u user) fullProfile {
	p := fullProfile{profile: newProfile(u), CreatedAt: rfc3339(u.createdAt)}
	if u.lastLoginAt.Valid {
		at := rfc3339(u.lastLoginAt.Int64)
		p.LastLoginAt = &at
	}
	return p
}

func rfc3339(unix int64) string { return time.Unix(unix, 0).UTC().Format(time.RFC3339) }

// handleMe answers with the caller's row, which authenticate has just read.
func (s *server) handleMe(w *response, r *http.Request, p principal) error {
	return writeJSON(w, newFullProfile(p.user))
}

// handleChangePassword ends all sessions, the caller's too: whoever else knew the password is out.
func (s *server) handleChangePassword(w *response, r *http.Request, p principal) error {
	var oldPassword, newPassword string
	if err := decode(w, r, needText("old_password", &oldPassword), needText("new_password", &newPassword)); err != nil {
		return err
	}
	if err := checkNewPassword(newPassword, s.cfg.passwordMinLength); err != nil {
		return invalidField("new_password", err.Error())
	}
	if err := s.verifyPassword(w, r, p.user, p.email, "old_password", oldPassword); err != nil {
		return err
	}
	hash, err := s.hasher.hash(r.Context(), newPassword)
	if err != nil {
		return err
	}
	_, _, err = s.store.editUser(r.Context(), p, p.id, func(_ user, target *user) (edit, error) {
		if !bytes.Equal(target.passwordHash, p.passwordHash) { // somebody else changed it meanwhile
			return edit{}, errChanged
		}
		target.passwordHash, target.defaultPassword = hash, newPassword == defaultAdminPassword
		return edit{endSessions: true}, nil
	})
	if err != nil {
		return err
	}
	s.event(w, "password.changed", "user", p.id)
	return writeMessage(w, "Password changed")
}

// sessionInfo is a session as its owner sees it.
type sessionInfo struct {
	ID         string `json:"id"`
	CreatedAt  string `json:"created_at"`
	LastUsedAt string `json:"last_used_at"`
	ExpiresAt  string `json:"expires_at"`
	IP         string `json:"ip"`
	UserAgent  string `json:"user_agent"`
	Current    bool   `json:"current"`
}

// handleSessions lists where the caller is logged in, so that a stranger's session can be seen and ended.
func (s *server) handleSessions(w *response, r *http.Request, p principal) error {
	sessions, err := s.store.sessionsOf(p.id, s.now())
	if err != nil {
		return err
	}
	list := make([]sessionInfo, 0, len(sessions))
	for _, x := range sessions {
		list = append(list, sessionInfo{x.id, rfc3339(x.createdAt), rfc3339(x.lastUsedAt), rfc3339(x.expiresAt), x.ip, x.userAgent, x.id == p.sessionID})
	}
	return writeJSON(w, struct {
		Sessions []sessionInfo `json:"sessions"`
		Total    int           `json:"total"`
	}{list, len(list)})
}

// handleRevokeSession ends one of the caller's own sessions. Somebody else's is as unknown as none.
func (s *server) handleRevokeSession(w *response, r *http.Request, p principal) error {
	id := r.PathValue("id")
	owner, err := s.store.endSession(r.Context(), id, p.id)
	if err != nil {
		return err
	}
	if owner == "" {
		return &apiError{status: http.StatusNotFound, code: "session_not_found", detail: "Session not found: " + id}
	}
	s.event(w, "session.revoked", "user", p.id, "session", id, "reason", "revoked by its user")
	return writeMessage(w, "Session revoked")
}

// --- rules for new users ---

// newID makes an id of 128 random bits for users, sessions and tokens.
func newID() string { return strings.ToLower(rand.Text()) }

// checkNewUser holds for everybody who is added, by whatever way. field is what is wrong, as bodies call it.
func checkNewUser(u user, password string, minLength int) (field string, err error) {
	if err := checkEmail(u.email); err != nil {
		return "email", err
	}
	if err := checkNewPassword(password, minLength); err != nil {
		return "password", err
	}
	if err := checkName(u.displayName, 0, 255); err != nil {
		return "display_name", err
	}
	return "org_id", checkName(u.orgID, 1, 100)
}

func invalidRole(r string) error {
	return &apiError{status: http.StatusUnprocessableEntity, code: "invalid_role", field: "role", detail: "Invalid role: " + r}
}

// checkEmail is for new users only; adopted ones keep what they have. ASCII leaves no room for letters that
// look alike, and whether mail arrives is not for a pattern to tell (RFC 5321 section 4.5.3.1.3: 254 bytes).
func checkEmail(email string) error {
	local, domain, _ := strings.Cut(email, "@")
	if local == "" || domain == "" || strings.Contains(domain, "@") || len(email) > 254 {
		return errors.New("must be an address such as name@example.com, at most 254 bytes long")
	}
	for i := range len(email) {
		if email[i] <= ' ' || email[i] >= 0x7f || strings.IndexByte(`<>()[],;:\"`, email[i]) >= 0 {
			return errors.New("must consist of plain ASCII without spaces, brackets, quotes and control characters")
		}
	}
	return nil
}

// checkName is for display names and organisations: text that can be shown anywhere.
func checkName(v string, minBytes, maxBytes int) error {
	if len(v) < minBytes || len(v) > maxBytes || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || (0x7f <= r && r < 0xa0) }) {
		return fmt.Errorf("must have %d to %d bytes and no control characters", minBytes, maxBytes)
	}
	return nil
}
