package main

// This file is the list of endpoints and what each does, in the order of the table. A handler reads
// its input, asks the lower rooms, and answers; decisions about users are made inside the change
// that carries them out (store.editUser), by the rules in rbac.go. Every event that matters to
// security is logged here under its stable name.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
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

// handleRegister makes a viewer of the default organisation, whatever else the body asks for. The hash is
// made before the email is looked up, so that a taken one costs as much as a free one.
func (s *server) handleRegister(w *response, r *http.Request, _ principal) error {
	var u user
	var password string
	if err := decode(w, r, needText("email", &u.email), needText("password", &password), maybeText("display_name", &u.displayName)); err != nil {
		return err
	}
	if enabled, err := s.registrationEnabled(r.Context()); err != nil {
		return err
	} else if !enabled {
		return &apiError{status: http.StatusForbidden, code: "registration_disabled", detail: "Public registration is disabled"}
	}
	u.role, u.orgID = viewer, defaultOrg
	if err := s.checkNewUser(u, password); err != nil {
		return err
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
	err = s.store.createUser(r.Context(), by, u, func(actor user) error {
		if !mayGrant(actor, u.role) || !mayEditUser(actor, u) {
			return forbidden("You may not create this user")
		}
		return nil
	})
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

// tokens is the success body of login and refresh.
type tokens struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // seconds
}

func (s *server) handleLogin(w *response, r *http.Request, _ principal) error {
	var email, password string
	if err := decode(w, r, needText("email", &email), needText("password", &password)); err != nil {
		return err
	}
	u, err := s.store.userByLogin(email)
	if err != nil && !errors.Is(err, errNotFound) {
		return err
	}
	if err := s.verifyPassword(w, r, u, email, password); err != nil {
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
	if errors.Is(err, errChanged) { // password or status changed while this login was being checked
		return badCredentials(err)
	}
	if err != nil {
		return err
	}
	s.event(w, "login.ok", "user", u.id, "session", l.session.id)
	return s.writeTokens(w, fresh, l.session.id, refresh)
}

// verifyPassword compares under the throttle. An unknown user (a zero one) takes the same time and
// gets the same answer as a wrong password.
func (s *server) verifyPassword(w *response, r *http.Request, u user, email, password string) error {
	if strings.ContainsRune(password, 0) { // bcrypt would take it for the end, and abc NUL abc for abc
		return invalidField("password", "must not contain NUL")
	}
	a := attempt{email: emailKey(email), address: s.throttle.clientKey(w.clientIP())}
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
	case password == defaultAdminPassword && foreign(r):
		// A proxy in front makes a loopback listener public, and this password is known to everybody.
		s.event(w, "login.failed", "user", u.id, "reason", "default password from elsewhere")
		return &apiError{status: http.StatusForbidden, code: "default_password", detail: "The default password works on the server's own machine only; change it there first"}
	}
	return nil
}

// newLogin prepares the session, and a new hash where the stored one is outdated.
func (s *server) newLogin(w *response, r *http.Request, u user, password string) (login, string, error) {
	l := login{user: u, isDefault: password == defaultAdminPassword, address: s.throttle.clientKey(w.clientIP())}
	if outdated(u.passwordHash, s.cfg.bcryptCost) && checkNewPassword(password, s.cfg.passwordMinLength) == nil {
		hash, err := s.hasher.hash(r.Context(), password)
		if err != nil {
			return l, "", err
		}
		l.newHash = hash
	}
	now, id := s.now(), newID()
	refresh := newRefreshToken(id)
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
	return writeJSON(w, tokens{access, refresh, "Bearer", int64(s.cfg.accessTTL() / time.Second)})
}

func (s *server) handleRefresh(w *response, r *http.Request, _ principal) error {
	var token string
	if err := decodeBare(w, r, needText("refresh_token", &token)); err != nil {
		return err
	}
	candidates, err := s.candidates(token)
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
		if done.successor, err = openToken(token, done.repeat); err != nil {
			return err
		}
		s.event(w, "refresh.repeated", "user", done.user.id, "session", done.sessionID)
	} else {
		s.event(w, "refresh.ok", "user", done.user.id, "session", done.sessionID)
	}
	return s.writeTokens(w, done.user, done.sessionID, done.successor)
}

// candidates are the sessions that a refresh token can belong to, each with its successor: one for our
// own tokens, up to two for pico-auth's, none for anything else.
func (s *server) candidates(token string) ([]candidate, error) {
	var all []candidate
	if id, ok := refreshTokenSession(token); ok {
		all = []candidate{{sessionID: id, hash: hashToken(token)}}
	} else if isLegacyRefreshToken(token) {
		all = s.store.legacyCandidates(token)
	} else {
		return nil, invalidToken(errMalformed)
	}
	for i := range all {
		c := &all[i]
		c.successor = newRefreshToken(c.sessionID)
		c.successorHash = hashToken(c.successor)
		if s.cfg.reuseGraceSeconds > 0 {
			var err error
			if c.sealed, err = sealToken(token, c.successor); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// handleLogout ends the session of the bearer token, or of the refresh token in the body, or, with
// {"all": true}, every session of the bearer. It is idempotent and says the same of unknown
// tokens: there is nothing to learn here (RFC 7009 section 2.2).
func (s *server) handleLogout(w *response, r *http.Request, _ principal) error {
	var token string
	var all bool
	if r.ContentLength != 0 {
		if err := decode(w, r, maybeText("refresh_token", &token), maybeBool("all", &all)); err != nil {
			return err
		}
	}
	if token == "" && r.Header.Get("Authorization") == "" {
		return invalidField("refresh_token", "is missing; send it, or an access token as bearer")
	}
	if token != "" {
		if err := s.logoutToken(w, r, token); err != nil {
			return err
		}
	}
	if p, err := s.authenticate(r); err == nil {
		w.user = p.id
		if err := s.logoutBearer(w, r, p, all); err != nil {
			return err
		}
	} else if errors.Is(err, errUnavailable) {
		return err
	}
	return writeMessage(w, "Logged out")
}

func (s *server) logoutToken(w *response, r *http.Request, token string) error {
	candidates, err := s.candidates(token)
	if err != nil {
		return nil // not a refresh token: as good as logged out
	}
	sessionID, owner, err := s.store.endSessionByToken(r.Context(), candidates)
	if err == nil && owner != "" {
		s.event(w, "session.revoked", "user", owner, "session", sessionID, "reason", "logout")
	}
	return err
}

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
	if err := s.verifyPassword(w, r, p.user, p.email, oldPassword); err != nil {
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

// --- administration ---

const (
	pageRows  = 500 // users read at a time; a page of them is what a list of any length costs in memory
	limitRows = 1000
)

// handleListUsers writes all users the caller may see, or one page of them with ?limit= and ?after=.
// Rows go out as they are read, so a million users cost no more memory than a page.
func (s *server) handleListUsers(w *response, r *http.Request, p principal) error {
	q := r.URL.Query()
	filter := userFilter{orgID: visibleOrg(p.user), emailPrefix: q.Get("email"), role: q.Get("role"), status: q.Get("status")}
	after, err := queryNumber(q.Get("after"), 0, 1<<62)
	if err != nil {
		return invalidField("after", "must be the next value of the previous page")
	}
	limit, err := queryNumber(q.Get("limit"), 1, limitRows)
	if err != nil {
		return invalidField("limit", fmt.Sprintf("must be a whole number from 1 to %d", limitRows))
	}
	total, err := s.store.countUsers(filter)
	if err != nil {
		return err
	}
	first, err := s.store.listUsers(filter, after, int(min(cmpLimit(limit), pageRows)))
	if err != nil {
		return err
	}
	return s.streamUsers(w, r, userList{filter: filter, limit: limit, total: total, page: first})
}

// queryNumber parses an optional whole number of a query; absent is 0.
func queryNumber(v string, lo, hi int64) (int64, error) {
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < lo || n > hi {
		return 0, errors.New("out of range")
	}
	return n, nil
}

func cmpLimit(limit int64) int64 {
	if limit == 0 {
		return 1 << 62
	}
	return limit
}

// userList is a list being written.
type userList struct {
	filter userFilter
	limit  int64 // 0: all
	total  int64
	page   []user
}

// streamUsers writes pages until the rows or the limit end. Once it has begun, a failure can only be
// shown by cutting the connection.
func (s *server) streamUsers(w *response, r *http.Request, l userList) error {
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriterSize(w, 32<<10)
	deadline := http.NewResponseController(w)
	written, last := int64(0), int64(0)
	out.WriteString(`{"users":[`)
	for len(l.page) > 0 {
		deadline.SetWriteDeadline(s.now().Add(writeTimeout)) // each page has the time a whole answer has
		for _, u := range l.page {
			if written > 0 {
				out.WriteByte(',')
			}
			row, _ := json.Marshal(newProfile(u)) // texts only: cannot fail
			out.Write(row)
			written, last = written+1, u.seq
		}
		left := min(cmpLimit(l.limit)-written, pageRows)
		if left == 0 || out.Flush() != nil || r.Context().Err() != nil {
			break
		}
		var err error
		if l.page, err = s.store.listUsers(l.filter, last, int(left)); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	fmt.Fprintf(out, `],"total":%d`, max(l.total, written))
	if l.limit > 0 && written == l.limit {
		fmt.Fprintf(out, `,"next":"%d"`, last)
	}
	out.WriteString("}")
	out.Flush()
	return nil
}

func (s *server) handleCreateUser(w *response, r *http.Request, p principal) error {
	u := user{role: viewer, orgID: p.orgID}
	var password string
	if err := decode(w, r, needText("email", &u.email), needText("password", &password), maybeText("display_name", &u.displayName),
		maybeText("role", &u.role), maybeText("org_id", &u.orgID)); err != nil {
		return err
	}
	if err := s.checkNewUser(u, password); err != nil {
		return err
	}
	if !mayGrant(p.user, u.role) || !mayEditUser(p.user, u) { // asked again inside the change
		return forbidden("You may not create this user")
	}
	return s.addUser(w, r, p, u, password)
}

func (s *server) handleGetUser(w *response, r *http.Request, p principal) error {
	id := r.PathValue("id")
	u, err := s.store.userByID(id)
	if errors.Is(err, errNotFound) || (err == nil && !mayReadUser(p.user, u)) {
		return userNotFound(id)
	}
	if err != nil {
		return err
	}
	return writeJSON(w, newFullProfile(u))
}

// editOther runs a change to the user named in the path, after the rules that hold for all of them.
func (s *server) editOther(r *http.Request, p principal, change func(actor user, target *user) (edit, error)) (before, after user, err error) {
	id := r.PathValue("id")
	before, after, err = s.store.editUser(r.Context(), p, id, func(actor user, target *user) (edit, error) {
		switch {
		case !mayReadUser(actor, *target):
			return edit{}, userNotFound(id)
		case !mayEditUser(actor, *target):
			return edit{}, forbidden("You may not change this user")
		}
		return change(actor, target)
	})
	if errors.Is(err, errNotFound) {
		err = userNotFound(id)
	}
	return before, after, err
}

func (s *server) handleDeleteUser(w *response, r *http.Request, p principal) error {
	_, u, err := s.editOther(r, p, func(user, *user) (edit, error) { return edit{remove: true}, nil })
	if err != nil {
		return err
	}
	s.event(w, "user.deleted", "user", u.id, "actor", p.id)
	return writeMessage(w, "User deleted")
}

func (s *server) handleSetRole(w *response, r *http.Request, p principal) error {
	var wanted role
	if err := decodeBare(w, r, needText("role", &wanted)); err != nil {
		return err
	}
	if !knownRole(wanted) {
		return invalidRole(wanted)
	}
	before, after, err := s.editOther(r, p, func(actor user, target *user) (edit, error) {
		if !mayGrant(actor, wanted) {
			return edit{}, forbidden("You may not grant this role")
		}
		target.role = wanted
		return edit{}, nil
	})
	if err != nil {
		return err
	}
	s.event(w, "user.role_changed", "user", after.id, "from", before.role, "to", after.role, "actor", p.id)
	return writeJSON(w, struct {
		ID    string `json:"id"`
		Email string `json:"email"`
		Role  string `json:"role"`
	}{after.id, after.email, after.role})
}

func (s *server) handleSetStatus(w *response, r *http.Request, p principal) error {
	var status string
	if err := decode(w, r, needText("status", &status)); err != nil {
		return err
	}
	if status != statusActive && status != statusSuspended {
		return invalidField("status", "must be active or suspended")
	}
	_, u, err := s.editOther(r, p, func(_ user, target *user) (edit, error) {
		target.status = status
		return edit{endSessions: status == statusSuspended}, nil
	})
	if err != nil {
		return err
	}
	s.event(w, "user.status_changed", "user", u.id, "to", u.status, "actor", p.id)
	return writeJSON(w, struct {
		ID     string `json:"id"`
		Email  string `json:"email"`
		Status string `json:"status"`
	}{u.id, u.email, u.status})
}

func (s *server) handleResetPassword(w *response, r *http.Request, p principal) error {
	var password string
	if err := decode(w, r, needText("new_password", &password)); err != nil {
		return err
	}
	if err := checkNewPassword(password, s.cfg.passwordMinLength); err != nil {
		return invalidField("new_password", err.Error())
	}
	hash, err := s.hasher.hash(r.Context(), password)
	if err != nil {
		return err
	}
	_, u, err := s.editOther(r, p, func(_ user, target *user) (edit, error) {
		target.passwordHash, target.defaultPassword = hash, password == defaultAdminPassword
		return edit{endSessions: true}, nil
	})
	if err != nil {
		return err
	}
	s.event(w, "password.reset", "user", u.id, "actor", p.id)
	return writeMessage(w, "Password reset")
}

func (s *server) handleSetOrg(w *response, r *http.Request, p principal) error {
	var org string
	if err := decode(w, r, needText("org_id", &org)); err != nil {
		return err
	}
	if err := checkName(org, 1, 100); err != nil {
		return invalidField("org_id", err.Error())
	}
	before, after, err := s.editOther(r, p, func(_ user, target *user) (edit, error) {
		target.orgID = org
		return edit{}, nil
	})
	if err != nil {
		return err
	}
	s.event(w, "user.org_changed", "user", after.id, "from", before.orgID, "to", after.orgID, "actor", p.id)
	return writeJSON(w, struct {
		ID    string `json:"id"`
		Email string `json:"email"`
		OrgID string `json:"org_id"`
	}{after.id, after.email, after.orgID})
}

// registrationEnabled is what an admin last decided, or else the configuration.
func (s *server) registrationEnabled(ctx context.Context) (bool, error) {
	v, err := s.store.setting(settingRegistration)
	if errors.Is(err, errNotFound) {
		return s.cfg.registration, nil
	}
	return string(v) == "true", err
}

func (s *server) handleGetRegistration(w *response, r *http.Request, _ principal) error {
	enabled, err := s.registrationEnabled(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, map[string]bool{"registration_enabled": enabled})
}

func (s *server) handleSetRegistration(w *response, r *http.Request, p principal) error {
	var enabled bool
	if err := decode(w, r, needBool("enabled", &enabled)); err != nil {
		return err
	}
	err := s.store.setSetting(r.Context(), p, settingRegistration, strconv.AppendBool(nil, enabled), func(actor user) error {
		if !allows(actor.role, permSettings) {
			return forbidden("Your role does not allow this")
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.event(w, "registration.changed", "enabled", enabled, "actor", p.id)
	return writeJSON(w, map[string]bool{"registration_enabled": enabled})
}

// handleHealth is 200 only if a write has reached the disk: a server that cannot store is not healthy.
func (s *server) handleHealth(w *response, r *http.Request, _ principal) error {
	w.polled = true
	if err := s.store.healthy(r.Context(), s.now()); err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	return writeJSON(w, map[string]string{"status": "ok"})
}

// --- rules for new users ---

// newID makes an id of 128 random bits for users, sessions and tokens.
func newID() string { return strings.ToLower(rand.Text()) }

// checkNewUser holds for everybody who is added, by whatever way.
func (s *server) checkNewUser(u user, password string) error {
	if err := checkEmail(u.email); err != nil {
		return invalidField("email", err.Error())
	}
	if err := checkNewPassword(password, s.cfg.passwordMinLength); err != nil {
		return invalidField("password", err.Error())
	}
	if err := checkName(u.displayName, 0, 255); err != nil {
		return invalidField("display_name", err.Error())
	}
	if err := checkName(u.orgID, 1, 100); err != nil {
		return invalidField("org_id", err.Error())
	}
	if !knownRole(u.role) {
		return invalidRole(u.role)
	}
	return nil
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
