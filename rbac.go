package main

// This file decides who may do what, and what a new user may look like. It
// is pure: no clock, no database, no request. Its callers hand in users and
// principals that were read from the database, never from a token or a
// request body. What is not granted here is denied; a role that this file
// does not know (adopted databases may hold one) manages its own account and
// nothing else.

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// role is the position of a user, stored as this text.
type role = string

const (
	superadmin role = "superadmin" // everything, in every organisation
	orgAdmin   role = "org_admin"  // the users of its own organisation
	operator   role = "operator"   // its own account
	viewer     role = "viewer"     // its own account; what registration gives
)

// Statuses of a user. Only active users hold sessions.
const (
	statusActive    = "active"
	statusSuspended = "suspended"
)

// defaultOrg is the organisation of everybody who registers.
const defaultOrg = "default"

// user is a user as the database knows it: a row of the table users. Times
// are unix seconds.
type user struct {
	seq          int64  // order of creation
	id           string // the sub of tokens
	email        string // as typed
	displayName  string
	passwordHash []byte // bcrypt
	role         role
	orgID        string
	status       string
	createdAt    int64
	lastLoginAt  int64  // 0 before the first login
	verifiedAt   int64  // since when a superadmin vouches for the email; 0: none does
	groups       string // "ID/NAME,ID/NAME"; read with a single user, never in lists
}

// membership is a group that a user is in.
type membership struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// memberships returns the groups of a user, sorted by id; never nil, because
// clients expect a list. Names of groups contain neither / nor a comma.
func (u user) memberships() []membership {
	in := []membership{}
	for text := range strings.SplitSeq(u.groups, ",") {
		if id, name, ok := strings.Cut(text, "/"); ok {
			in = append(in, membership{id, name})
		}
	}
	slices.SortFunc(in, func(a, b membership) int { return strings.Compare(a.ID, b.ID) })
	return in
}

// groupIDs returns the ids of the user's groups, as access tokens have them.
func (u user) groupIDs() []string {
	ids := []string{}
	for _, in := range u.memberships() {
		ids = append(ids, in.ID)
	}
	return ids
}

// groupNames returns the names of the user's groups, as other programs know
// them. Names are unique within an organisation alone, and every org_admin
// makes groups, so outside the default one they begin with it.
func (u user) groupNames() []string {
	names := []string{}
	for _, in := range u.memberships() {
		if u.orgID != defaultOrg {
			in.Name = u.orgID + "/" + in.Name
		}
		names = append(names, in.Name)
	}
	return names
}

// principal is an authenticated caller as the database knew it when the
// request came in. sessionID is empty for the operator's shell and for the
// server itself.
type principal struct {
	user
	sessionID string
}

// isIn reports whether the user is in the group of this id.
func (u user) isIn(groupID string) bool {
	return slices.ContainsFunc(u.memberships(), func(m membership) bool { return m.ID == groupID })
}

// permission is what a route demands of its caller.
type permission int

const (
	denied        permission = iota // the zero value: a route that names no permission is open to nobody
	public                          // no token is read, not even a wrong one
	permSelf                        // the own account and sessions; says nothing about other users
	permUsersRead                   // see users; which ones is up to mayReadUser
	permUsersEdit                   // change users, groups and service tokens; which is up to the rules below
	permOrgEdit                     // move users between organisations; implies nothing within them
	permSettings                    // change how the whole server behaves, such as open registration
)

// roles is the policy: what each role may ask for. Rules about organisations
// and single users follow below.
var roles = map[role][]permission{
	superadmin: {permUsersRead, permUsersEdit, permOrgEdit, permSettings},
	orgAdmin:   {permUsersRead, permUsersEdit},
	operator:   {},
	viewer:     {},
}

// allows reports whether a role holds a permission. Everybody who can log in
// may manage the own account, with an unknown role too.
func allows(r role, need permission) bool {
	return need == permSelf || slices.Contains(roles[r], need)
}

// knownRole reports whether r is one of the four roles.
func knownRole(r role) bool {
	_, ok := roles[r]
	return ok
}

// mayReadOrg reports whether an organisation exists as far as the actor can
// know. What another one holds does not: an answer that tells "forbidden" from
// "not found" would reveal it.
func mayReadOrg(actor user, orgID string) bool {
	return actor.role == superadmin || actor.orgID == orgID
}

// mayReadUser reports whether target exists as far as the actor can know.
func mayReadUser(actor, target user) bool {
	return allows(actor.role, permUsersRead) && mayReadOrg(actor, target.orgID)
}

// mayEditUser reports whether the actor may change target. Superadmins are
// changed by superadmins alone, otherwise an org_admin could take one over by
// resetting its password.
func mayEditUser(actor, target user) bool {
	return mayReadUser(actor, target) && allows(actor.role, permUsersEdit) &&
		(actor.role == superadmin || target.role != superadmin)
}

// mayGrant reports whether the actor may give someone the role r: never one
// above its own.
func mayGrant(actor user, r role) bool {
	return knownRole(r) && (actor.role == superadmin || (actor.role == orgAdmin && r != superadmin))
}

// --- rules for new users ---

// maxPasswordBytes is what bcrypt reads of a password; it ignores the rest.
const maxPasswordBytes = 72

// defaultAdminPassword is published in this source, so it works on the
// server's own machine only, and nobody can choose it as a password.
const defaultAdminPassword = "admin"

// checkNewUser checks what is stored of a new user, however it is added. It
// returns the name of the wrong field, as request bodies call it, and an
// error that is fit for clients.
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
	return "org_id", checkTag(u.orgID)
}

// checkEmail is for new users only; adopted ones keep what they have. ASCII
// leaves no room for letters that look alike. Whether mail arrives is not for
// a pattern to decide. The 254 bytes are RFC 5321 section 4.5.3.1.3.
func checkEmail(email string) error {
	local, domain, _ := strings.Cut(email, "@")
	if local == "" || domain == "" || strings.Contains(domain, "@") || len(email) > 254 {
		return errors.New("must be an address such as name@example.com, at most 254 bytes long")
	}
	for i := range len(email) {
		if email[i] <= ' ' || email[i] >= 0x7f || strings.IndexByte(`<>()[],;:\"`, email[i]) >= 0 {
			return errors.New("must be plain ASCII without spaces, brackets, quotes and control characters")
		}
	}
	return nil
}

// checkNewPassword returns what is wrong with a password that somebody wants
// to set, in words fit for clients. minLength counts characters. There are no
// composition rules: they make passwords worse (NIST SP 800-63B-4 section
// 3.1.1.2).
func checkNewPassword(password string, minLength int) error {
	switch {
	case password == defaultAdminPassword:
		return errors.New("must not be the published default password")
	case utf8.RuneCountInString(password) < minLength:
		return fmt.Errorf("must have at least %d characters", minLength)
	case len(password) > maxPasswordBytes:
		return fmt.Errorf("must have at most %d bytes, because bcrypt ignores the rest", maxPasswordBytes)
	case strings.ContainsRune(password, 0): // bcrypt takes "abc\0abc" for "abc"
		return errors.New("must not contain NUL")
	}
	return nil
}

// isControl reports whether r is a control character, U+0080 to U+009F
// included, which terminals obey.
func isControl(r rune) bool { return r < ' ' || (0x7f <= r && r < 0xa0) }

// checkName is for display names and descriptions: text that can be shown
// anywhere.
func checkName(v string, minBytes, maxBytes int) error {
	if len(v) < minBytes || len(v) > maxBytes || !utf8.ValidString(v) || strings.ContainsFunc(v, isControl) {
		return fmt.Errorf("must have %d to %d bytes and no control characters", minBytes, maxBytes)
	}
	return nil
}

// checkTag is for organisations and groups. "ORG/GROUP" and lists of such
// names have one meaning each, so neither contains / or a comma; and what looks
// alike is alike, so there is nothing invisible (Unicode's class Cf) and no
// blank at an end, which headers lose.
func checkTag(v string) error {
	invisible := func(r rune) bool { return unicode.Is(unicode.Cf, r) }
	odd := strings.ContainsAny(v, "/,") || strings.TrimSpace(v) != v || strings.ContainsFunc(v, invisible)
	if odd || checkName(v, 1, 100) != nil {
		return errors.New("must have 1 to 100 bytes and no slash, comma, control or invisible characters")
	}
	return nil
}

// emailKey is the form in which emails are compared: ASCII letters in lower
// case. Unicode folding would let K (U+212A, the Kelvin sign) log in as k.
func emailKey(email string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, email)
}

// cleanText makes a text of a stranger fit to be stored and shown: valid
// UTF-8, no control characters (see checkName), at most 255 bytes.
func cleanText(v string) string {
	v = strings.Map(func(r rune) rune {
		if isControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, v)
	return strings.ToValidUTF8(v[:min(255, len(v))], "") // the cut can split a character
}
