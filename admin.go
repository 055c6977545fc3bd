package main

// This file is the administration of users, for superadmins, for the admins
// of an organisation and for the operator's shell, which calls the same
// functions, and what other administration shares with it: who asks, lists of
// any length, commands of the shell. Each change is decided inside the
// transaction that makes it, on the actor and the target as the database has
// them then; rbac.go holds the rules. Bodies and answers of users in JSON are
// here too.

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxLimit is the largest ?limit= of a list.
const maxLimit = 1000

// caller is who asks for a change, and from where.
type caller struct {
	ctx    context.Context
	by     principal
	need   permission // asked again inside the change
	target string     // id of what is to change: a user, or what the path names
	client string     // as clientKey names it; for the hashing queue
	event  func(name string, args ...any)
}

func (x *exchange) caller(p principal) caller {
	return caller{
		ctx:    x.ctx,
		by:     p,
		need:   x.route.need,
		target: x.r.PathValue("id"),
		client: clientKey(x.clientIP()),
		event:  x.event,
	}
}

// recheck asks the permission of the route again, inside the change. The
// attack: an org_admin is demoted while its request waits for bcrypt or for
// the writer.
func (c caller) recheck(actor user) error {
	if !allows(actor.role, c.need) {
		return errRoleTooLow
	}
	return nil
}

// shellCall is a command of the operator's shell for the files below shell.go.
type shellCall struct {
	caller
	words []string // after the name of the command

	role, org, description string // the options of these names; may be empty

	// print shows a row in columns, or its body as JSON when that was asked
	// for. A nil body is a line for people alone.
	print func(body any, columns ...string)
}

// --- users as JSON ---

// profile is a user in lists.
type profile struct {
	ID          string `json:"id"`
	Email       string `json:"email"`
	DisplayName string `json:"display_name"`
	Role        string `json:"role"`
	OrgID       string `json:"org_id"`
	Status      string `json:"status"`
}

func newProfile(u user) profile {
	return profile{u.id, u.email, u.displayName, u.role, u.orgID, u.status}
}

// fullProfile adds the times, in RFC 3339 UTC; last_login_at is null before
// the first login.
type fullProfile struct {
	profile
	CreatedAt   string  `json:"created_at"`
	LastLoginAt *string `json:"last_login_at"`
}

func newFullProfile(u user) fullProfile {
	p := fullProfile{profile: newProfile(u), CreatedAt: rfc3339(u.createdAt)}
	if u.lastLoginAt != 0 {
		p.LastLoginAt = new(rfc3339(u.lastLoginAt))
	}
	return p
}

// loneProfile adds what is read of a single user only.
type loneProfile struct {
	fullProfile
	EmailVerified bool         `json:"email_verified"`
	Groups        []membership `json:"groups"`
}

func newLoneProfile(u user) loneProfile {
	return loneProfile{newFullProfile(u), u.verifiedAt != 0, u.memberships()}
}

// unixTime is a time in unix seconds that is RFC 3339 UTC in JSON.
type unixTime int64

func (t unixTime) String() string { return rfc3339(int64(t)) }

func (t unixTime) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// asIs is for rows that are written as they are stored.
func asIs[T any](row T) T { return row }

func rfc3339(unix int64) string { return time.Unix(unix, 0).UTC().Format(time.RFC3339) }

// userAnswer is the success body of changes to a user: whose, and what was set.
type userAnswer struct {
	ID     string `json:"id"`
	Email  string `json:"email"`
	Role   string `json:"role,omitempty"`
	Status string `json:"status,omitempty"`
	OrgID  string `json:"org_id,omitempty"`

	EmailVerified *bool `json:"email_verified,omitempty"`
}

func userNotFound(id string) error {
	return refusal(404, "user_not_found", "User not found: "+id)
}

// --- lists ---

// handleListUsers writes all users the caller may see, or one page of them.
func (s *server) handleListUsers(x *exchange, p principal) error {
	q := x.r.URL.Query()
	filter := userFilter{
		everyOrg:    p.role == superadmin,
		orgID:       p.orgID,
		emailPrefix: q.Get("email"),
		role:        q.Get("role"),
		status:      q.Get("status"),
	}
	if filter.role != "" && !knownRole(filter.role) {
		return invalidField("role", "must be "+strings.Join(slices.Sorted(maps.Keys(roles)), " or "))
	}
	if filter.status != "" {
		if err := checkStatus(filter.status); err != nil {
			return err
		}
	}
	return streamList(x, `{"users":[`, usersWhere(filter), newProfile, "email", "role", "status")
}

// checkQuery refuses a query with another parameter than those that are
// allowed, or with one twice: a misspelt filter would show what it was to hide.
func checkQuery(x *exchange, allowed ...string) error {
	q, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return invalidField("query", "is not well encoded")
	}
	for _, name := range slices.Sorted(maps.Keys(q)) {
		if !slices.Contains(allowed, name) {
			there := cmp.Or(strings.Join(allowed, ", "), "none")
			return invalidField(cleanText(name), "is no parameter of this path; there are: "+there)
		}
		if len(q[name]) > 1 {
			return invalidField(name, "occurs more than once")
		}
	}
	return nil
}

// queryNumber parses an optional whole number of a query.
func queryNumber(q url.Values, name string, lo, hi, absent int64) (int64, error) {
	if q.Get(name) == "" {
		return absent, nil
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil || n < lo || n > hi {
		return 0, invalidField(name, fmt.Sprintf("must be a whole number from %d to %d", lo, hi))
	}
	return n, nil
}

// streamList answers with a whole list, or with one page of it by ?limit= and
// ?after=. head is the answer up to the first row, body is a row as JSON, and
// filters are the other parameters. Rows go out as they are read.
func streamList[T, J any](
	x *exchange, head string, l rowList[T], body func(T) J, filters ...string,
) error {
	if err := checkQuery(x, append(filters, "limit", "after")...); err != nil {
		return err
	}
	q := x.r.URL.Query()
	after, err := queryNumber(q, "after", 0, math.MaxInt64, 0)
	if err != nil {
		return err
	}
	limit, err := queryNumber(q, "limit", 1, maxLimit, math.MaxInt64)
	if err != nil {
		return err
	}
	total, err := l.count(x.s.store.reads)
	if err != nil {
		return err
	}
	page, err := l.page(x.s.store.reads, after, int(min(limit, pageRows)))
	if err != nil {
		return err
	}
	x.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriterSize(x, 32<<10)
	out.WriteString(head)
	written, last := writePages(x, out, l, body, page, limit)
	fmt.Fprintf(out, `],"total":%d`, max(total, written))
	if written == limit {
		fmt.Fprintf(out, `,"next":"%d"`, last)
	}
	out.WriteString("}")
	out.Flush()
	return nil
}

// writePages writes pages from the given one on until the rows or the limit
// end. It returns how many rows there were and the seq of the last. Once it has
// begun, a failure can only be shown by cutting the connection.
func writePages[T, J any](
	x *exchange, out *bufio.Writer, l rowList[T], body func(T) J, page []T, limit int64,
) (written, last int64) {
	for len(page) > 0 {
		// Each page has the time of a whole answer. Deadlines are machine time,
		// whatever the injected clock says.
		http.NewResponseController(x).SetWriteDeadline(time.Now().Add(writeTimeout))
		for _, row := range page {
			if written > 0 {
				out.WriteByte(',')
			}
			text, _ := json.Marshal(body(row)) // texts only: cannot fail
			out.Write(text)
			written++
		}
		last = l.last(page)
		left := min(limit-written, pageRows)
		if left == 0 || out.Flush() != nil {
			break
		}
		var err error
		if page, err = l.page(x.s.store.reads, last, int(left)); err != nil {
			x.logFailure(errInternal.because(err))
			panic(http.ErrAbortHandler)
		}
	}
	return written, last
}

// handleGetUser answers 404 both for nobody and for users the caller may not
// see.
func (s *server) handleGetUser(x *exchange, p principal) error {
	id := x.r.PathValue("id")
	u, err := s.store.userByID(id)
	if errors.Is(err, errNotFound) || (err == nil && !mayReadUser(p.user, u)) {
		return userNotFound(id)
	}
	if err != nil {
		return err
	}
	return writeJSON(x, newLoneProfile(u))
}

// --- adding users ---

// handleCreateUser adds a user with a role and organisation, within what the
// actor may grant. Unlike registration it works while registration is off, and
// it is not throttled.
func (s *server) handleCreateUser(x *exchange, p principal) error {
	u := user{role: viewer, orgID: p.orgID}
	var password string
	err := decode(x,
		need("email", &u.email),
		need("password", &password),
		maybe("display_name", &u.displayName),
		maybe("role", &u.role),
		maybe("org_id", &u.orgID))
	if err != nil {
		return err
	}
	if err := checkRole(u.role); err != nil {
		return err
	}
	if field, err := checkNewUser(u, password, s.cfg.passwordMinLength); err != nil {
		return invalidField(field, err.Error())
	}
	mayCreate := func(_ *queries, actor user) error {
		if !mayGrant(actor, u.role) || !mayEditUser(actor, u) {
			return forbidden("You may not create this user")
		}
		return nil
	}
	u, err = s.addUser(x.caller(p), u, password, mayCreate)
	if err != nil {
		return err
	}
	return writeJSON(x, userAnswer{ID: u.id, Email: u.email, Role: u.role, Status: u.status})
}

// addUser hashes and stores a user that passed checkNewUser. allowed is asked
// inside the change.
func (s *server) addUser(c caller, u user, password string, allowed actorRule) (user, error) {
	hash, err := s.hasher.hash(c.ctx, c.client, password)
	if err != nil {
		return u, err
	}
	u.id, u.passwordHash = newID(), hash
	u.status, u.createdAt = statusActive, s.now().Unix()
	err = s.store.createUser(c.ctx, c.by, u, allowed)
	if errors.Is(err, errConflict) {
		return u, refusal(409, "user_exists", "User already exists: "+u.email)
	}
	if err == nil {
		c.event("user.created",
			"user", u.id, "role", u.role, "org", u.orgID, "actor", c.by.id)
	}
	return u, err
}

// --- changing users ---

// editOther runs a change to another user after the rules that hold for all
// of them. It is the only way of this file to change a user, so no endpoint
// can forget a rule; all are asked inside the transaction.
func (s *server) editOther(c caller, change userChange) (before, after user, err error) {
	guarded := func(actor user, target *user) (userEdit, error) {
		if err := c.recheck(actor); err != nil {
			return userEdit{}, err
		}
		if !mayReadUser(actor, *target) {
			return userEdit{}, userNotFound(c.target)
		}
		if !mayEditUser(actor, *target) {
			return userEdit{}, forbidden("You may not change this user")
		}
		return change(actor, target)
	}
	before, after, err = s.store.editUser(c.ctx, c.by, c.target, guarded)
	if errors.Is(err, errNotFound) {
		err = userNotFound(c.target)
	}
	return before, after, err
}

// userAttribute is a text of a user that admins set by PUT /users/{id}/…, and
// operators in the shell.
type userAttribute struct {
	member string // of the body, which may also be the bare value
	event  string
	field  func(*user) *string
	check  func(value string) error
}

// userAttributes are named by the last part of their path.
var userAttributes = map[string]userAttribute{
	"role":   {"role", "user.role_changed", func(u *user) *string { return &u.role }, checkRole},
	"status": {"status", "user.status_changed", func(u *user) *string { return &u.status }, checkStatus},
	"org":    {"org_id", "user.org_changed", func(u *user) *string { return &u.orgID }, checkOrg},
}

func checkRole(v string) error {
	if !knownRole(v) {
		return &apiError{status: 422, code: "invalid_role",
			field: "role", detail: "Invalid role: " + v}
	}
	return nil
}

func checkStatus(v string) error {
	if v != statusActive && v != statusSuspended {
		return invalidField("status", "must be active or suspended")
	}
	return nil
}

func checkOrg(v string) error {
	if err := checkTag(v); err != nil {
		return invalidField("org_id", err.Error())
	}
	return nil
}

// checkDescription is for groups and service tokens.
func checkDescription(v string) error {
	if err := checkName(v, 0, 500); err != nil {
		return invalidField("description", err.Error())
	}
	return nil
}

// handleSet answers PUT /users/{id}/NAME for the attribute of that name.
func (s *server) handleSet(name string) handler {
	a := userAttributes[name]
	return func(x *exchange, p principal) error {
		var set user // nothing but the attribute
		if err := decode(x, needOrBare(a.member, a.field(&set))); err != nil {
			return err
		}
		u, err := s.setAttribute(x.caller(p), a, *a.field(&set))
		if err != nil {
			return err
		}
		answer := userAnswer{ID: u.id, Email: u.email}
		answer.Role, answer.Status, answer.OrgID = set.role, set.status, set.orgID
		return writeJSON(x, answer)
	}
}

// setAttribute changes one text of a user. A new role or organisation holds
// for the user's very next request, because they are read from the database
// each time; suspension ends the user's sessions in the same transaction.
func (s *server) setAttribute(c caller, a userAttribute, value string) (user, error) {
	if err := a.check(value); err != nil {
		return user{}, err
	}
	before, after, err := s.editOther(c, func(actor user, target *user) (userEdit, error) {
		if a.member == "role" && !mayGrant(actor, value) {
			return userEdit{}, forbidden("You may not grant this role")
		}
		*a.field(target) = value
		return userEdit{}, nil // which ends the sessions of a suspended user
	})
	if err == nil {
		from := *a.field(&before)
		c.event(a.event, "user", c.target, "from", from, "to", value, "actor", c.by.id)
	}
	return after, err
}

// handleVerifyEmail says whether a superadmin vouches for a user's email.
func (s *server) handleVerifyEmail(x *exchange, p principal) error {
	var verified bool
	if err := decode(x, need("email_verified", &verified)); err != nil {
		return err
	}
	u, err := s.verifyEmail(x.caller(p), verified)
	if err != nil {
		return err
	}
	return writeJSON(x, userAnswer{ID: u.id, Email: u.email, EmailVerified: &verified})
}

// verifyEmail sets or clears the mark. Nobody can register it: other programs
// join accounts by an email that is verified.
func (s *server) verifyEmail(c caller, verified bool) (user, error) {
	_, u, err := s.editOther(c, func(_ user, target *user) (userEdit, error) {
		if target.verifiedAt = 0; verified {
			target.verifiedAt = s.now().Unix()
		}
		return userEdit{}, nil
	})
	if err == nil {
		c.event("user.email_verified", "user", c.target, "to", verified, "actor", c.by.id)
	}
	return u, err
}

// handleResetPassword sets a password without knowing the old one.
func (s *server) handleResetPassword(x *exchange, p principal) error {
	var password string
	if err := decode(x, need("new_password", &password)); err != nil {
		return err
	}
	if err := checkNewPassword(password, s.cfg.passwordMinLength); err != nil {
		return invalidField("new_password", err.Error())
	}
	if _, err := s.resetPassword(x.caller(p), password); err != nil {
		return err
	}
	return writeMessage(x, "Password reset")
}

// resetPassword sets a password that passed checkNewPassword and ends the
// user's sessions: anybody who knew the old one is out. An own password needs
// the old one, otherwise a stolen access token would become the account.
func (s *server) resetPassword(c caller, password string) (user, error) {
	if c.target == c.by.id {
		return user{}, forbidden("Change your own password at " +
			"/api/v1/auth/me/password, which asks for the old one")
	}
	hash, err := s.hasher.hash(c.ctx, c.client, password)
	if err != nil {
		return user{}, err
	}
	_, u, err := s.editOther(c, func(_ user, target *user) (userEdit, error) {
		target.passwordHash = hash
		return userEdit{endSessions: true}, nil
	})
	if err == nil {
		c.event("password.reset", "user", c.target, "actor", c.by.id)
	}
	return u, err
}

// handleDeleteUser removes a user.
func (s *server) handleDeleteUser(x *exchange, p principal) error {
	if _, err := s.deleteUser(x.caller(p)); err != nil {
		return err
	}
	return writeMessage(x, "User deleted")
}

// deleteUser removes a user and returns what it was; editUser ends the
// sessions.
func (s *server) deleteUser(c caller) (user, error) {
	u, _, err := s.editOther(c, func(user, *user) (userEdit, error) {
		return userEdit{remove: true}, nil
	})
	if err == nil {
		c.event("user.deleted", "user", c.target, "actor", c.by.id)
	}
	return u, err
}
