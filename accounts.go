package main

// This file is what is stored: every statement about users, sessions and the
// addresses they log in from, and the form of refresh tokens. It decides no
// policy: who may do what comes in as a function that is called inside the
// transaction, on users as they are then. One function (endWhere) ends
// sessions, whatever the reason.

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
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
	users.org_id, users.status, users.created_at, coalesce(users.last_login_at, 0)`

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
	}
}

// loneUserColumns add the groups, which would make lists slow.
const loneUserColumns = userColumns + `, coalesce((SELECT string_agg(groups.id || '/' || groups.name, ',')
	FROM group_members JOIN groups ON groups.id = group_id WHERE group_members.user_id = users.id), '')`

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
			actor, _, err = t.userOfSession(by.sessionID)
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
func (s *store) createUser(ctx context.Context, by principal, u user, allowed actorRule) error {
	return s.changeBy(ctx, by, func(t *queries, actor user) error {
		if err := allowed(t, actor); err != nil {
			return err
		}
		_, err := t.exec(`INSERT INTO users
			(id, email, email_key, display_name, password_hash, role, org_id, status, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			u.id,
			u.email,
			emailKey(u.email),
			u.displayName,
			u.passwordHash,
			u.role,
			u.orgID,
			u.status,
			u.createdAt)
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
// decides inside the transaction, on the actor and the target as they are
// then, and may alter the target's role, organisation, status and password
// hash; like every change it may run twice. errNotFound when there is no such
// user, errLastSuperadmin when no active superadmin would be left.
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
			_, err = t.exec(`UPDATE users SET role = $1, org_id = $2, status = $3, password_hash = $4
				WHERE id = $5`, after.role, after.orgID, after.status, after.passwordHash, id)
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
	createdAt     int64
	lastUsedAt    int64
	expiresAt     int64
	endsAt        int64
	ip, userAgent string
}

const sessionColumns = `id, user_id, created_at, last_used_at, expires_at, ends_at, ip, user_agent`

// sessionTargets are the scan targets for sessionColumns.
func sessionTargets(x *session) []any {
	return []any{
		&x.id,
		&x.userID,
		&x.createdAt,
		&x.lastUsedAt,
		&x.expiresAt,
		&x.endsAt,
		&x.ip,
		&x.userAgent,
	}
}

// userOfSession returns the user of a session and when the session expires,
// or errNoSession.
func (t *queries) userOfSession(id string) (u user, expiresAt int64, err error) {
	err = t.get(`SELECT s.expires_at, `+loneUserColumns+`
		FROM sessions s JOIN users ON users.id = s.user_id WHERE s.id = $1`,
		[]any{id}, append([]any{&expiresAt}, loneUserTargets(&u)...)...)
	if errors.Is(err, errNotFound) {
		err = errNoSession
	}
	return u, expiresAt, err
}

// authenticated returns the user of a living session: what a bearer request
// may rely on. Otherwise errNoSession, errSessionExpired or errSuspended.
func (s *store) authenticated(sessionID string, now time.Time) (principal, error) {
	u, expiresAt, err := s.reads.userOfSession(sessionID)
	switch {
	case err != nil:
		return principal{}, err
	case expiresAt <= now.Unix():
		return principal{}, errSessionExpired
	case u.status != statusActive:
		return principal{}, errSuspended
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
}

// What one account can make the server store: a login beyond these limits
// ends the session that was not used for longest, or forgets an address. The
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
				(id, user_id, token_hash, created_at, last_used_at, expires_at, ends_at, ip, user_agent)
				VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8)`,
				x.id,
				u.id,
				l.tokenHash,
				now,
				x.expiresAt,
				x.endsAt,
				x.ip,
				x.userAgent)
		}
		if err == nil {
			_, err = t.endWhere(`id IN (SELECT id FROM sessions WHERE user_id = $1 AND id <> $2
				ORDER BY last_used_at DESC, id LIMIT 1000000 OFFSET $3)`, u.id, x.id, maxSessions-1)
		}
		if err == nil {
			err = t.rememberAddress(u.id, l.address, now)
		}
		return err
	})
	return u, err
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
		FROM sessions WHERE user_id = $1 AND expires_at > $2 ORDER BY created_at DESC, id`
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

// endSession ends one session of a user, if it exists.
func (s *store) endSession(ctx context.Context, sessionID, userID string) (ended bool, err error) {
	sessions, err := s.endSessionsWhere(ctx, `id = $1 AND user_id = $2`, sessionID, userID)
	return len(sessions) > 0, err
}

// endSessions ends all sessions of a user and returns how many there were.
func (s *store) endSessions(ctx context.Context, userID string) (int64, error) {
	sessions, err := s.endSessionsWhere(ctx, `user_id = $1`, userID)
	return int64(len(sessions)), err
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

// --- refresh tokens ---

// A refresh token is `<handle>.<256 bits>`. The handle stays the same while
// the session lives, and the id of the session is its SHA-256: ids are in
// every access token and in logs, and somebody who reads one there must not be
// able to make up a token that names the session, because that would end it.

// newRefreshToken makes the first refresh token of the session that the handle
// names.
func newRefreshToken(handle string) string {
	return handle + "." + b64.EncodeToString(randomBytes())
}

// randomBytes makes 256 random bits.
func randomBytes() []byte {
	b := make([]byte, 32)
	rand.Read(b) // never fails (crypto/rand, Go 1.24)
	return b
}

// successorOf derives the token that replaces a token (RFC 5869). It takes
// the token itself, of which the database has the hash alone: somebody who
// steals the database, with the salt, can derive nothing.
func successorOf(token string, salt []byte) (string, error) {
	handle, _ := tokenHandle(token)
	secret, err := hkdf.Key(sha256.New, []byte(token), salt, "pico-auth refresh token successor", 32)
	return handle + "." + b64.EncodeToString(secret), err
}

// sessionIDOf is the id of the session that a handle names.
func sessionIDOf(handle string) string { return hex.EncodeToString(hashToken(handle)) }

// hashToken is how a refresh token is stored. A plain hash suffices: 256
// random bits cannot be guessed.
func hashToken(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// tokenHandle returns the handle of a refresh token. Those of the Python
// server, 32 hex digits, are nothing else.
func tokenHandle(token string) (handle string, ok bool) {
	if raw, err := hex.DecodeString(token); err == nil && len(raw) == 16 {
		return token, true
	}
	handle, secret, _ := strings.Cut(token, ".")
	raw, err := decodeCanonical(secret)
	return handle, err == nil && len(raw) == 32 && handle != "" && len(handle) <= 64
}

// hashesOf returns the hashes by which the database may know a secret: that of
// ours and of the Python server's before 0.3.1, and those of its later ones; nil
// where there is none.
func (s *store) hashesOf(secret string) (hashes [3][]byte) {
	hashes[0] = hashToken(secret)
	pythonHashes(s.legacyKeys, secret, hashes[1:]) // room: adopt
	return hashes
}

// sessionByToken returns the session that a refresh token names and the hash
// by which it would know the token; errNoSession when there is none. Anybody
// can send tokens, so every change that a token causes comes through here: it
// is a read, and a flood of made-up tokens never reaches the writer. The read
// is always right: a session is stored before its token leaves the server.
func (s *store) sessionByToken(token string) (id string, hash []byte, err error) {
	handle, ok := tokenHandle(token)
	if !ok {
		return "", nil, errNoSession
	}
	var ids []any
	for _, h := range s.hashesOf(handle) {
		ids = append(ids, hex.EncodeToString(h))
	}
	err = s.reads.get(`SELECT id FROM sessions WHERE id IN ($1, $2, $3)`, ids, &id)
	if errors.Is(err, errNotFound) {
		err = errNoSession
	}
	hash = hashToken(token)
	if handle == token { // one of the Python server: the id is its hash
		hash, _ = hex.DecodeString(id)
	}
	return id, hash, err
}

// endTokenSession ends the session of a refresh token and returns whose and
// which it was, or nothing when there was none. An older token of the session
// counts too, because a refresh may be under way meanwhile.
func (s *store) endTokenSession(ctx context.Context, token string) (userID, sessionID string, err error) {
	id, _, err := s.sessionByToken(token)
	if errors.Is(err, errNoSession) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	ended, err := s.endSessionsWhere(ctx, `id = $1`, id)
	for _, x := range ended {
		userID, sessionID = x.userID, x.id
	}
	return userID, sessionID, err
}

// rotation is one use of a refresh token. rotate fills in the rest.
type rotation struct {
	token         string
	now           func() time.Time // read inside the change, so that waiting makes no order wrong
	idle, grace   time.Duration
	ip, userAgent string

	sessionID string
	hash      []byte // of the token, as the session would know it
	salt      []byte // of the successor; nil without a grace
	successor string
}

// rotated is the outcome of a rotation.
type rotated struct {
	user      user
	sessionID string
	successor string
	repeated  bool  // the successor had been given out before
	refusal   error // no error of the change: ending a session must not be rolled back
}

// rotate replaces the current refresh token of a session in one
// compare-and-swap: of any number of concurrent uses of a token exactly one
// wins. What becomes of a token:
//
//	presented token         row       event             answer
//	current                 replaced  refresh.ok        200, its successor
//	parent, in the grace    kept      refresh.repeated  200, the same again
//	parent later, or older  deleted   refresh.reuse     401, errReuse
//	any, session expired    kept                        401, errSessionExpired
//	any, session ended      none                        401, errNoSession
//	good, but the user is   deleted                     403, errSuspended
//	suspended
//
// A reused token was stolen, or is the owner's whose successor was stolen.
// They cannot be told apart, so the session ends (RFC 9700 section 4.14.2).
// The grace is for clients that lost an answer: it lasts until the successor
// is used, or that long. The user is set with errReuse and errSuspended too.
func (s *store) rotate(ctx context.Context, r rotation) (done rotated, err error) {
	if r.sessionID, r.hash, err = s.sessionByToken(r.token); err != nil {
		return done, err
	}
	r.salt = randomBytes()
	if r.successor, err = successorOf(r.token, r.salt); err != nil {
		return done, err
	}
	if r.grace == 0 {
		r.salt = nil
	}
	err = s.change(ctx, func(t *queries) (err error) {
		done, err = t.rotateSession(r)
		return err
	})
	return done, cmp.Or(err, done.refusal)
}

// rotateSession tries to replace the token, and then looks at what is there: a
// token that was replaced, this time or before, is the parent of the current
// one. A clock that was set back makes no parent younger: one that was replaced
// in the future is outside every grace.
func (t *queries) rotateSession(r rotation) (done rotated, err error) {
	at := r.now()
	now := at.Unix()
	replaced, err := t.exec(`UPDATE sessions
		SET token_hash = $1, parent_hash = token_hash, salt = $2, last_used_at = $3,
			expires_at = CASE WHEN $4 < ends_at THEN $4 ELSE ends_at END, ip = $5, user_agent = $6
		WHERE id = $7 AND token_hash = $8 AND expires_at > $3`,
		hashToken(r.successor),
		r.salt,
		now,
		at.Add(r.idle).Unix(),
		r.ip,
		r.userAgent,
		r.sessionID,
		r.hash)
	if err != nil {
		return rotated{}, err
	}
	done.sessionID = r.sessionID
	var expired bool
	var salt []byte // nil unless the token is the parent, in the grace
	targets := append([]any{&expired, &salt}, loneUserTargets(&done.user)...)
	err = t.get(`SELECT expires_at <= $1,
			CASE WHEN parent_hash = $2 AND last_used_at > $3 AND last_used_at <= $1 THEN salt END,
			`+loneUserColumns+`
		FROM sessions JOIN users ON users.id = user_id WHERE sessions.id = $4`,
		[]any{now, r.hash, at.Add(-r.grace).Unix(), r.sessionID}, targets...)
	switch {
	case errors.Is(err, errNotFound):
		return rotated{refusal: errNoSession}, nil
	case err != nil:
		return rotated{}, err
	case replaced == 0 && expired:
		return rotated{refusal: errSessionExpired}, nil
	case replaced == 0 && salt == nil:
		done.refusal = errReuse
		_, err = t.endWhere(`id = $1`, r.sessionID)
	case done.user.status != statusActive:
		// Suspension ends sessions; this holds even if one were left.
		done.refusal = errSuspended
		_, err = t.endWhere(`user_id = $1`, done.user.id)
	case replaced == 0:
		done.repeated = true
		done.successor, err = successorOf(r.token, salt)
	default:
		done.successor = r.successor
	}
	return done, err
}
