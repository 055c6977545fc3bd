package main

// This file is what is stored of accounts: the statements about users, sessions
// and the addresses they log in from. It decides no policy: who may do what
// comes in as a function that is called inside the transaction, on users as
// they are then. One function (endWhere) ends sessions, whatever the reason.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	errChanged        = errors.New("changed in the meantime")
	errLastSuperadmin = errors.New("this is the last active superadmin")
	errNoSession      = errors.New("no such session")
	errSessionExpired = errors.New("session has expired")
	errReuse          = errors.New("refresh token was used before")
	errSuspended      = errors.New("user is suspended")
)

// newID makes an id of 128 random bits for users, sessions and tokens.
func newID() string { return strings.ToLower(rand.Text()) }

// --- users ---

const userColumns = `users.seq, users.id, users.email, users.display_name, users.password_hash, users.role,
	users.org_id, users.status, users.created_at, coalesce(users.last_login_at, 0), users.verified_at`

// userTargets are the scan targets for userColumns.
func userTargets(u *user) []any {
	return []any{
		&u.seq,
		&u.id,
		&u.email,
		&u.displayName,
		&u.passwordHash,
		&u.role,
		&u.orgID,
		&u.status,
		&u.createdAt,
		&u.lastLoginAt,
		&u.verifiedAt,
	}
}

// loneUserColumns add the groups, which would make lists slow. EXISTS spares
// users without any the rest: 7 % of the requests a second that read a profile.
const loneUserColumns = userColumns + `, CASE
	WHEN EXISTS (SELECT 1 FROM group_members WHERE group_members.user_id = users.id)
	THEN (SELECT string_agg(groups.id || '/' || groups.name, ',')
		FROM group_members JOIN groups ON groups.id = group_id WHERE group_members.user_id = users.id)
	ELSE '' END`

// loneUserTargets are the scan targets for loneUserColumns.
func loneUserTargets(u *user) []any { return append(userTargets(u), &u.groups) }

// userWhere returns the first user for whom a condition (a constant) holds, or
// errNotFound.
func (t *queries) userWhere(condition string, args ...any) (u user, err error) {
	err = t.get(`SELECT `+loneUserColumns+` FROM users WHERE `+condition, args, loneUserTargets(&u)...)
	return u, err
}

// userByLogin finds who logs in with this email, or errNotFound. The exact
// spelling wins, for adopted users whose emails differ only in case.
func (s *store) userByLogin(email string) (user, error) {
	return s.reads.userWhere(`email_key IN ($1, $2) ORDER BY email_key = $1 DESC LIMIT 1`,
		email, emailKey(email))
}

// userByID finds the subject of a token or the user named in a path, or
// errNotFound.
func (s *store) userByID(id string) (user, error) {
	return s.reads.userWhere(`id = $1`, id)
}

// userNamed finds the user whom an operator names by email or, when nobody has
// that email, by id; or errNotFound.
func (s *store) userNamed(word string) (user, error) {
	u, err := s.userByLogin(word)
	if errors.Is(err, errNotFound) {
		return s.userByID(word)
	}
	return u, err
}

// actorRule runs inside a change: it makes the change, or refuses the actor.
type actorRule func(t *queries, actor user) error

// changeBy is a change by somebody, who is read again inside the transaction:
// a user who was demoted, suspended or logged out since the request was
// authenticated changes nothing any more (errNoSession). The attack: an
// org_admin is demoted while its request waits for bcrypt or for the writer. A
// principal without a session (the shell, the server, nobody) stays as given.
func (s *store) changeBy(ctx context.Context, by principal, apply actorRule) error {
	return s.change(ctx, func(t *queries) (err error) {
		actor := by.user
		if by.sessionID != "" {
			actor, _, err = t.userOfSession(by.sessionID, jsonLogin)
			if err == nil && actor.status != statusActive {
				err = errNoSession
			}
		}
		if err == nil {
			err = apply(t, actor)
		}
		return err
	})
}

// createUser adds a user; its seq and lastLoginAt are ignored. errConflict
// when the email is taken. allowed is always asked, inside the transaction.
// Emails that a superadmin gives are taken as verified, no others: whoever
// registers an address need not own it.
func (s *store) createUser(ctx context.Context, by principal, u user, allowed actorRule) error {
	return s.changeBy(ctx, by, func(t *queries, actor user) error {
		if err := allowed(t, actor); err != nil {
			return err
		}
		if u.verifiedAt = 0; actor.role == superadmin {
			u.verifiedAt = u.createdAt
		}
		_, err := t.exec(`INSERT INTO users
			(id, email, email_key, display_name, password_hash, role, org_id, status, created_at, verified_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			u.id,
			u.email,
			emailKey(u.email),
			u.displayName,
			u.passwordHash,
			u.role,
			u.orgID,
			u.status,
			u.createdAt,
			u.verifiedAt)
		return err
	})
}

// userEdit is what a change to a user does besides changing its row.
type userEdit struct {
	endSessions bool
	remove      bool
}

// userChange alters target inside a change, or refuses the actor.
type userChange func(actor user, target *user) (userEdit, error)

// editUser changes one user and returns it as it was and as it is. A user who
// changes the organisation leaves its groups, whose members are its own. apply
// decides inside the transaction, on the actor and the target as they are then,
// and may alter the target's role, organisation, status, password hash, name
// and verifiedAt; like every change it may run twice. errNotFound when there is
// no such user, errLastSuperadmin when no active superadmin would be left.
func (s *store) editUser(
	ctx context.Context, by principal, id string, apply userChange,
) (before, after user, err error) {
	err = s.changeBy(ctx, by, func(t *queries, actor user) (err error) {
		if before, err = t.userWhere(`id = $1`, id); err != nil {
			return err
		}
		after = before
		edit, err := apply(actor, &after)
		if err == nil {
			_, err = t.exec(`UPDATE users SET role = $1, org_id = $2, status = $3, password_hash = $4,
				verified_at = $5, display_name = $6 WHERE id = $7`,
				after.role,
				after.orgID,
				after.status,
				after.passwordHash,
				after.verifiedAt,
				after.displayName,
				id)
		}
		if err == nil && after.orgID != before.orgID {
			after.groups = ""
			_, err = t.exec(`DELETE FROM group_members WHERE user_id = $1`, id)
		}
		if err == nil && (edit.endSessions || edit.remove || after.status != statusActive) {
			_, err = t.endWhere(`user_id = $1`, id)
		}
		if err == nil && edit.remove {
			_, err = t.exec(`DELETE FROM users WHERE id = $1`, id)
		}
		if err == nil && before.role == superadmin && before.status == statusActive {
			err = t.checkSuperadminLeft() // afterwards, so that no kind of change can miss it
		}
		return err
	})
	return before, after, err
}

func (t *queries) checkSuperadminLeft() error {
	var left int
	err := t.get(`SELECT count(*) FROM users WHERE role = 'superadmin' AND status = 'active'`, nil, &left)
	if err == nil && left == 0 {
		err = errLastSuperadmin
	}
	return err
}

// userFilter selects users of one organisation, or of every one; the other
// fields select all when empty. Groups and service tokens are selected by their
// organisation in the same way.
type userFilter struct {
	everyOrg    bool
	orgID       string
	emailPrefix string
	role        role
	status      string
}

// where returns the conditions of the filter and their values. What a client
// sent is only ever a value.
func (f userFilter) where() (conditions string, values []any) {
	add := func(given bool, condition, value string) {
		if given {
			values = append(values, value)
			conditions += fmt.Sprintf(" AND %s $%d", condition, len(values))
		}
	}
	prefix := emailKey(f.emailPrefix)
	add(!f.everyOrg, "org_id =", f.orgID)
	add(prefix != "", "email_key >=", prefix)
	add(prefix != "", "email_key <", prefix+"\U0010FFFF")
	add(f.role != "", "role =", f.role)
	add(f.status != "", "status =", f.status)
	return conditions, values
}

// usersWhere is the list of the users that a filter selects. Without a role
// and a status, counting them reads an index alone.
func usersWhere(f userFilter) rowList[user] {
	where, args := f.where()
	return rowList[user]{"users", userColumns, where, args, userTargets}
}

// --- sessions ---

// session is a row of sessions without its hashes. Times are unix seconds.
// expiresAt is the only one that is compared with the clock; every statement
// that moves it keeps it within endsAt.
type session struct {
	id, userID    string
	clientID      string // jsonLogin, browserLogin or an OpenID client
	createdAt     int64
	lastUsedAt    int64
	expiresAt     int64
	endsAt        int64
	ip, userAgent string
}

// Values of sessions.client_id that stand for no OpenID client: no client_id is
// empty or has a #.
const (
	jsonLogin    = ""         // a login at /api/v1/auth/login
	browserLogin = "#browser" // a login at the login page, behind its cookie
)

const sessionColumns = `id, user_id, client_id, created_at, last_used_at, expires_at, ends_at, ip, user_agent`

// sessionTargets are the scan targets for sessionColumns.
func sessionTargets(x *session) []any {
	return []any{
		&x.id,
		&x.userID,
		&x.clientID,
		&x.createdAt,
		&x.lastUsedAt,
		&x.expiresAt,
		&x.endsAt,
		&x.ip,
		&x.userAgent,
	}
}

// userOfSession returns the user of a client's session and when the session
// expires, or errNoSession. A code that waits for its exchange is no session.
func (t *queries) userOfSession(id, clientID string) (u user, expiresAt int64, err error) {
	err = t.get(`SELECT s.expires_at, `+loneUserColumns+` FROM sessions s JOIN users ON users.id = s.user_id
		WHERE s.id = $1 AND s.client_id = $2 AND s.redirect_uri IS NULL`,
		[]any{id, clientID}, append([]any{&expiresAt}, loneUserTargets(&u)...)...)
	return u, expiresAt, noSession(err)
}

// noSession calls a row that was not found a session that has ended.
func noSession(err error) error {
	if errors.Is(err, errNotFound) {
		return errNoSession
	}
	return err
}

// authenticated returns the user of a client's living session: what a bearer
// request may rely on. Otherwise errNoSession or errSessionExpired. To a
// bearer, suspension looks like a session that has ended; the log tells them
// apart.
func (s *store) authenticated(sessionID, clientID string, now time.Time) (principal, error) {
	u, expiresAt, err := s.reads.userOfSession(sessionID, clientID)
	switch {
	case err != nil:
		return principal{}, err
	case expiresAt <= now.Unix():
		return principal{}, errSessionExpired
	case u.status != statusActive:
		return principal{}, fmt.Errorf("%w: %w", errNoSession, errSuspended)
	}
	return principal{u, sessionID}, nil
}

// login is a verified password that is to become a session.
type login struct {
	user      user   // as read before the password was compared
	newHash   []byte // replaces an outdated hash; nil keeps it
	session   session
	tokenHash []byte
	address   string // for known_addresses
	replaces  string // id of the browser's session before this one, if any
}

// What one account can make the server store: a login beyond these limits
// ends the session that would expire first, or forgets an address. The
// throttle's rule for accounts spares known addresses, so that strangers cannot
// lock the owner out.
const (
	maxSessions  = 100
	maxAddresses = 100
	addressTime  = 30 * 24 * time.Hour // how long a known address counts
)

// openSession stores a login and returns the user as it is now. The password
// hash and the status must still be the ones on which the decision was made,
// so that no session appears after an acknowledged password change or
// suspension; otherwise errChanged.
func (s *store) openSession(ctx context.Context, l login) (u user, err error) {
	x, now := l.session, l.session.createdAt
	err = s.change(ctx, func(t *queries) error {
		err := t.get(`UPDATE users SET last_login_at = $1, password_hash = coalesce($2, password_hash)
			WHERE id = $3 AND password_hash = $4 AND status = 'active' RETURNING `+loneUserColumns,
			[]any{now, l.newHash, l.user.id, l.user.passwordHash}, loneUserTargets(&u)...)
		if errors.Is(err, errNotFound) {
			err = errChanged
		}
		if err == nil {
			_, err = t.exec(`INSERT INTO sessions
				(id, user_id, token_hash, created_at, last_used_at, auth_time, expires_at, ends_at,
					ip, user_agent, client_id)
				VALUES ($1, $2, $3, $4, $4, $4, $5, $6, $7, $8, $9)`,
				x.id,
				u.id,
				l.tokenHash,
				now,
				x.expiresAt,
				x.endsAt,
				x.ip,
				x.userAgent,
				x.clientID)
		}
		if err == nil && l.replaces != "" {
			err = t.replaceBrowserSession(l.replaces, x.id, u.id)
		}
		if err == nil {
			err = t.capSessions(u.id, x.id, maxSessions, `client_id IN ('', '#browser')`)
		}
		if err == nil {
			err = t.rememberAddress(u.id, l.address, now)
		}
		return err
	})
	return u, err
}

// replaceBrowserSession ends the session that a browser had before a login
// opened another one (session fixation). What clients got in it goes on in the
// new one if the user is the same; otherwise the old user has logged out.
func (t *queries) replaceBrowserSession(old, opened, userID string) error {
	moved, err := t.exec(`UPDATE sessions SET parent_id = $1 WHERE parent_id = $2 AND user_id = $3`,
		opened, old, userID)
	if err == nil && moved == 0 {
		_, err = t.endWhere(oneSession, old)
	} else if err == nil {
		_, err = t.endWhere(`id = $1`, old)
	}
	return err
}

// oneSession is the condition for a session, $1, and for what clients got in it
// if it is a browser's: codes that wait, and sessions unless they were asked
// for to go on without it (offline_access, OpenID Connect Core section 11).
const oneSession = `(id = $1 OR (parent_id = $1
	AND (redirect_uri IS NOT NULL OR ' ' || scope || ' ' NOT LIKE '% offline_access %')))`

// capSessions ends what a user has beyond limit of the sessions for which a
// condition (a constant) holds, the one that expires first first. The session
// keep is one of them and stays.
func (t *queries) capSessions(userID, keep string, limit int, condition string, args ...any) error {
	args = append([]any{userID, keep, limit - 1}, args...)
	_, err := t.endWhere(`id IN (SELECT id FROM sessions WHERE user_id = $1 AND id <> $2 AND `+condition+`
		ORDER BY expires_at DESC, id LIMIT 1000000 OFFSET $3)`, args...)
	return err
}

// rememberAddress notes a login at a time in unix seconds, and forgets what is
// too old or too much by then.
func (t *queries) rememberAddress(userID, address string, at int64) error {
	_, err := t.exec(`INSERT INTO known_addresses (user_id, address, seen_at) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, address) DO UPDATE SET seen_at = excluded.seen_at`, userID, address, at)
	if err == nil {
		_, err = t.exec(`DELETE FROM known_addresses WHERE user_id = $1 AND address <> $2 AND (seen_at <= $3
			OR address IN (SELECT address FROM known_addresses WHERE user_id = $1 AND address <> $2
				ORDER BY seen_at DESC, address LIMIT 1000000 OFFSET $4))`,
			userID, address, at-int64(addressTime/time.Second), maxAddresses-1)
	}
	return err
}

// knownAddress reports whether a session of the user was opened from this
// address after the given time.
func (s *store) knownAddress(userID, address string, since time.Time) (known bool, err error) {
	err = s.reads.get(`SELECT EXISTS (SELECT 1 FROM known_addresses
		WHERE user_id = $1 AND address = $2 AND seen_at > $3)`, []any{userID, address, since.Unix()}, &known)
	return known, err
}

// sessionsOf lists the living sessions of a user, the latest login first.
func (s *store) sessionsOf(userID string, now time.Time) ([]session, error) {
	query := `SELECT ` + sessionColumns + `
		FROM sessions WHERE user_id = $1 AND expires_at > $2 AND redirect_uri IS NULL
		ORDER BY created_at DESC, id`
	return queryRows(s.reads, query, []any{userID, now.Unix()}, sessionTargets)
}

// endWhere ends the sessions for which a condition (a constant) holds, and
// returns them. Every session that ends, ends here.
func (t *queries) endWhere(condition string, args ...any) ([]session, error) {
	query := `DELETE FROM sessions WHERE ` + condition + ` RETURNING ` + sessionColumns
	return queryRows(t, query, args, sessionTargets)
}

// endSessionsWhere is endWhere as a change of its own.
func (s *store) endSessionsWhere(
	ctx context.Context, condition string, args ...any,
) (ended []session, err error) {
	err = s.change(ctx, func(t *queries) (err error) {
		ended, err = t.endWhere(condition, args...)
		return err
	})
	return ended, err
}

// endSession ends one session of a user, if it exists, and what depends on it.
func (s *store) endSession(ctx context.Context, sessionID, userID string) ([]session, error) {
	return s.endSessionsWhere(ctx, oneSession+` AND user_id = $2`, sessionID, userID)
}

// endSessions ends all sessions of a user.
func (s *store) endSessions(ctx context.Context, userID string) ([]session, error) {
	return s.endSessionsWhere(ctx, `user_id = $1`, userID)
}

// purgeStep is how often purge runs, and how often the horizon may move.
const purgeStep = time.Hour

// settingHorizon is "HORIZON MOVED": the horizon of purge and when it last
// moved, in unix seconds.
const settingHorizon = "purge_horizon"

// purge removes the sessions that expired before the horizon and returns the
// horizon, by which retired signing keys go as well.
//
// The horizon is a time that the database remembers. It follows the clock, but
// it moves once an hour at most, whichever server moves it, and two hours
// forward at most; and purge uses it two hours late. So when a clock jumps
// ahead, by a year say, and is put right within the hour, the horizon has
// moved by two hours, and nothing is removed that had not expired before the
// jump. It may move faster than the clock so that it catches up after the
// server was off.
func (s *store) purge(ctx context.Context, now time.Time) (horizon time.Time, removed int64, err error) {
	err = s.change(ctx, func(t *queries) (err error) {
		horizon, err = t.moveHorizon(now)
		return err
	})
	if err != nil {
		return horizon, 0, err
	}
	horizon = horizon.Add(-2 * purgeStep)
	for last := ""; ; { // by pages, because the writer must not scan a million rows at once
		first, earliest := last, int64(0)
		err = s.reads.get(`SELECT coalesce(max(id), ''), coalesce(min(expires_at), 0)
			FROM (SELECT id, expires_at FROM sessions WHERE id > $1 ORDER BY id LIMIT 500) AS page`,
			[]any{first}, &last, &earliest)
		if err != nil || last == "" {
			return horizon, removed, err
		}
		if earliest >= horizon.Unix() {
			continue
		}
		ended, err := s.endSessionsWhere(ctx, `id > $1 AND id <= $2 AND expires_at < $3`,
			first, last, horizon.Unix())
		if err != nil {
			return horizon, removed, err
		}
		removed += int64(len(ended))
	}
}

// moveHorizon lets the horizon follow the clock, as purge says. In a new
// database it begins at now.
func (t *queries) moveHorizon(now time.Time) (time.Time, error) {
	horizon, moved := now.Unix(), int64(0)
	stored, err := t.setting(settingHorizon)
	if stored != nil {
		_, err = fmt.Sscan(string(stored), &horizon, &moved)
	}
	if err == nil && now.Sub(time.Unix(moved, 0)).Abs() >= purgeStep {
		horizon = min(horizon+int64(2*purgeStep/time.Second), now.Unix())
		err = t.setSetting(settingHorizon, fmt.Append(nil, horizon, now.Unix()))
	}
	return time.Unix(horizon, 0), err
}
