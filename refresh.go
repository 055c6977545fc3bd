package main

// This file is refresh tokens: their form, how a session is found by one, and
// their rotation. A token is good once; the row of its session is replaced by
// one compare-and-swap. What a stranger sends is looked up by a read first, so
// that made-up tokens never reach the writer.

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"
)

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
// ours and of the Python server's before 0.3.1, and those of its later ones;
// nil where there is none.
func (s *store) hashesOf(secret string) (hashes [3][]byte) {
	hashes[0] = hashToken(secret)
	pythonHashes(s.legacyKeys, secret, hashes[1:]) // room: adopt
	return hashes
}

// sessionByToken returns the session that a refresh token of a client names
// and the hash by which it would know the token; errNoSession when there is
// none. Anybody
// can send tokens, so every change that a token causes comes through here: it
// is a read, and a flood of made-up tokens never reaches the writer. The read
// is always right: a session is stored before its token leaves the server.
func (s *store) sessionByToken(token, clientID string) (id string, hash []byte, err error) {
	handle, ok := tokenHandle(token)
	if !ok {
		return "", nil, errNoSession
	}
	var ids []any
	for _, h := range s.hashesOf(handle) {
		ids = append(ids, hex.EncodeToString(h))
	}
	err = s.reads.get(`SELECT id FROM sessions WHERE id IN ($1, $2, $3) AND client_id = $4`,
		append(ids, clientID), &id)
	err = noSession(err)
	hash = hashToken(token)
	if handle == token { // one of the Python server: the id is its hash
		hash, _ = hex.DecodeString(id)
	}
	return id, hash, err
}

// endTokenSession ends the session of a refresh token of the JSON login and
// returns it, or errNoSession. An older token of the session counts too,
// because a refresh may be under way.
func (s *store) endTokenSession(ctx context.Context, token string) ([]session, error) {
	id, _, err := s.sessionByToken(token, jsonLogin)
	if err != nil {
		return nil, err
	}
	return s.endSessionsWhere(ctx, `id = $1`, id)
}

// rotation is one use of a refresh token. rotate fills in the rest.
type rotation struct {
	token         string
	clientID      string            // who presents it; another client's token is nobody's
	admits        func(u user) bool // whether the user may use the client now; nil: every one may
	now           func() time.Time  // read inside the change, so that waiting makes no order wrong
	idle, grace   time.Duration
	ip, userAgent string

	sessionID string
	hash      []byte // of the token, as the session would know it
	salt      []byte // of the successor; nil without a grace
	successor string
}

// grant is what an OpenID client was given with a session; empty in others.
type grant struct {
	scope    string // separated by blanks
	resource string // RFC 8707; empty: every audience of the client
	nonce    string
	authTime int64 // unix seconds
}

// narrow restricts a grant to a resource of the client for the tokens of one
// answer, unless the grant named one itself (RFC 8707 section 2.2).
func (g *grant) narrow(resource string) {
	if g.resource == "" {
		g.resource = resource
	}
}

const grantColumns = `scope, resource, nonce, auth_time`

// grantTargets are the scan targets for grantColumns.
func grantTargets(g *grant) []any { return []any{&g.scope, &g.resource, &g.nonce, &g.authTime} }

// rotated is the outcome of a rotation.
type rotated struct {
	user      user
	sessionID string
	grant     grant
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
//	good, but the user has  deleted                     401, errNoSession
//	lost the client's group
//
// A reused token was stolen, or is the owner's whose successor was stolen.
// They cannot be told apart, so the session ends (RFC 9700 section 4.14.2).
// The grace is for clients that lost an answer: it lasts until the successor
// is used, or that long. The user is set with errReuse and errSuspended too.
func (s *store) rotate(ctx context.Context, r rotation) (done rotated, err error) {
	if r.sessionID, r.hash, err = s.sessionByToken(r.token, r.clientID); err != nil {
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
		WHERE id = $7 AND token_hash = $8 AND expires_at > $3 AND client_id = $9 AND redirect_uri IS NULL`,
		hashToken(r.successor),
		r.salt,
		now,
		at.Add(r.idle).Unix(),
		r.ip,
		r.userAgent,
		r.sessionID,
		r.hash,
		r.clientID)
	if err != nil {
		return rotated{}, err
	}
	done.sessionID = r.sessionID
	var expired bool
	var salt []byte // nil unless the token is the parent, in the grace
	targets := slices.Concat([]any{&expired, &salt}, grantTargets(&done.grant), loneUserTargets(&done.user))
	err = t.get(`SELECT expires_at <= $1,
			CASE WHEN parent_hash = $2 AND last_used_at > $3 AND last_used_at <= $1 THEN salt END,
			`+grantColumns+`, `+loneUserColumns+`
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
	case r.admits != nil && !r.admits(done.user):
		done.refusal = errNoSession
		_, err = t.endWhere(`id = $1`, r.sessionID)
	case replaced == 0:
		done.repeated = true
		done.successor, err = successorOf(r.token, salt)
	default:
		done.successor = r.successor
	}
	return done, err
}
