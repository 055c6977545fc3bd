package main

// This file is the administration of users: the endpoints for superadmins and for the admins of an
// organisation. Each change is decided inside the transaction that makes it (store.editUser), on the
// actor and the target as the database has them then; rbac.go holds the rules.

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
)

const (
	pageRows = 500  // users read at a time; a page of them is what a list of any length costs in memory
	maxLimit = 1000 // of ?limit=
)

// handleListUsers writes all users the caller may see, or one page of them with ?limit= and ?after=.
// Rows go out as they are read, so a million users cost no more memory than a page.
func (s *server) handleListUsers(w *response, r *http.Request, p principal) error {
	q := r.URL.Query()
	filter := userFilter{everyOrg: p.role == superadmin, orgID: p.orgID, emailPrefix: q.Get("email"), role: q.Get("role"), status: q.Get("status")}
	after, err := queryNumber(q.Get("after"), 0, 1<<62)
	if err != nil {
		return invalidField("after", "must be the next value of the previous page")
	}
	limit, err := queryNumber(q.Get("limit"), 1, maxLimit)
	if err != nil {
		return invalidField("limit", fmt.Sprintf("must be a whole number from 1 to %d", maxLimit))
	}
	total, err := s.store.countUsers(filter)
	if err != nil {
		return err
	}
	first, err := s.store.listUsers(filter, after, int(min(cmp.Or(limit, pageRows), pageRows)))
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
	written, last := int64(0), int64(0)
	out.WriteString(`{"users":[`)
	for len(l.page) > 0 {
		extendWriteDeadline(w) // each page has the time a whole answer has
		for _, u := range l.page {
			if written > 0 {
				out.WriteByte(',')
			}
			row, _ := json.Marshal(newProfile(u)) // texts only: cannot fail
			out.Write(row)
			written, last = written+1, u.seq
		}
		left := min(cmp.Or(l.limit, math.MaxInt64)-written, pageRows)
		if left == 0 || out.Flush() != nil || r.Context().Err() != nil {
			break
		}
		var err error
		if l.page, err = s.store.listUsers(l.filter, last, int(left)); err != nil {
			s.log.Error("request.failed", "id", w.requestID(), "pattern", r.Pattern, "err", err)
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

// handleCreateUser adds a user with a role and organisation, within what the actor may grant. Unlike
// registration it works while registration is off, and it is not throttled.
func (s *server) handleCreateUser(w *response, r *http.Request, p principal) error {
	u := user{role: viewer, orgID: p.orgID}
	var password string
	if err := decode(w, r, needText("email", &u.email), needText("password", &password), maybeText("display_name", &u.displayName),
		maybeText("role", &u.role), maybeText("org_id", &u.orgID)); err != nil {
		return err
	}
	if !knownRole(u.role) {
		return invalidRole(u.role)
	}
	if field, err := checkNewUser(u, password, s.cfg.passwordMinLength); err != nil {
		return invalidField(field, err.Error())
	}
	if err := mayCreate(p.user, u); err != nil { // before a hash is spent; asked again inside the change
		return err
	}
	return s.addUser(w, r, p, u, password)
}

// handleGetUser answers 404 both for nobody and for users the caller may not see.
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

// handleDeleteUser removes a user; the database removes the sessions with it (ON DELETE CASCADE).
func (s *server) handleDeleteUser(w *response, r *http.Request, p principal) error {
	_, u, err := s.editOther(r, p, func(user, *user) (edit, error) { return edit{remove: true}, nil })
	if err != nil {
		return err
	}
	s.event(w, "user.deleted", "user", u.id, "actor", p.id)
	return writeMessage(w, "User deleted")
}

// handleSetRole changes a role, for the user's very next request: sessions go on, because role and
// status are read from the database each time.
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

// handleSetStatus suspends a user, which ends all sessions in the same transaction, or lets the user in again.
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

// handleResetPassword sets a password without knowing the old one and ends the user's sessions: whoever
// knew the old password is out.
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

// handleSetOrg moves a user to another organisation, which then alone sees and administers it.
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
func (s *server) registrationEnabled() (bool, error) {
	v, err := s.store.setting(settingRegistration)
	if errors.Is(err, errNotFound) {
		return s.cfg.registration, nil
	}
	return string(v) == "true", err
}

// handleGetRegistration tells whether strangers may register.
func (s *server) handleGetRegistration(w *response, r *http.Request, _ principal) error {
	enabled, err := s.registrationEnabled()
	if err != nil {
		return err
	}
	return writeJSON(w, map[string]bool{"registration_enabled": enabled})
}

// handleSetRegistration decides it for good: the decision outlives restarts and overrides the configuration.
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
