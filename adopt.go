package main

// This file adopts databases of pico-auth, the Python server: it turns their tables into ours, once
// and in one transaction, after copying the file as it was. Together with db.go it holds all SQL.
// What such databases can contain: any text as an email, users whose emails differ only in case,
// passwords cut at 72 bytes, tables of later versions.

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// adoption turns the two tables of pico-auth 0.1.2 into ours; tables of later versions stay as they
// are. Users come in order of creation. Of users whose emails differ only in case, the one in lower case
// (or else the oldest) answers to every spelling and the others to their own. A refresh token becomes a
// session named by its hash, so that rotation and reuse need no second mechanism; it goes on for at most
// 30 days. Suspended
// users bring no sessions: later reactivation must not revive tokens.
const adoption = `
INSERT INTO users (id, email, email_key, display_name, password_hash, default_password, role, org_id, status, created_at, last_login_at)
SELECT id, email, CASE WHEN twin = 1 THEN lower(email) ELSE email END, display_name, CAST(password_hash AS BLOB), 0, role, org_id, status,
	coalesce(unixepoch(created_at), 0), unixepoch(last_login_at)
FROM (SELECT *, row_number() OVER (PARTITION BY lower(email) ORDER BY email <> lower(email), created_at, id) AS twin FROM pico_auth_users)
ORDER BY created_at, id;

INSERT INTO sessions (id, user_id, token_hash, created_at, last_used_at, expires_at, ends_at, ip, user_agent)
SELECT lower(t.token_hash), t.user_id, unhex(t.token_hash), coalesce(unixepoch(t.created_at), 0), coalesce(unixepoch(t.created_at), 0),
	min(unixepoch(t.expires_at), $1 + 30 * 86400), $1 + 30 * 86400, '', 'pico-auth (adopted)'
FROM refresh_tokens t JOIN users u ON u.id = t.user_id
WHERE u.status = 'active' AND unixepoch(t.expires_at) > $1 AND length(unhex(t.token_hash)) = 32
ON CONFLICT DO NOTHING;

DROP TABLE pico_auth_users;
DROP TABLE refresh_tokens;
INSERT INTO settings (name, value) VALUES ('legacy_token_key', $2), ('default_passwords_unchecked', x'01');
`

// adopt runs inside the transaction of prepareSchema, which keeps every writer out, while a
// second connection copies the file as it was.
func adopt(conn *sql.Conn, path string, legacyKey []byte, now time.Time) (opening, error) {
	ctx := context.Background()
	did := opening{adopted: true, copy: path + ".before-adoption"}
	for n := 2; exists(did.copy); n++ { // an earlier copy may be the only one of something
		did.copy = fmt.Sprintf("%s.before-adoption-%d", path, n)
	}
	if err := copyDatabase(path, did.copy); err != nil {
		return did, fmt.Errorf("copying the database before its adoption: %w", err)
	}
	if _, err := conn.ExecContext(ctx, `DROP INDEX IF EXISTS ix_users_email; ALTER TABLE users RENAME TO pico_auth_users`); err != nil {
		return did, err
	}
	if _, err := conn.ExecContext(ctx, migrations[0]); err != nil {
		return did, err
	}
	for statement := range strings.SplitSeq(strings.TrimSpace(adoption), ";\n") {
		// The driver ignores arguments that a statement does not name.
		if _, err := conn.ExecContext(ctx, statement, now.Unix(), legacyKey); err != nil {
			return did, fmt.Errorf("adopting the database of pico-auth: %w", err)
		}
	}
	err := conn.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM sessions)`).Scan(&did.users, &did.sessions)
	if err != nil {
		return did, err
	}
	rows, err := conn.QueryContext(ctx, `SELECT email FROM users
		WHERE lower(email) IN (SELECT lower(email) FROM users WHERE email_key <> lower(email)) ORDER BY seq`)
	if err != nil {
		return did, err
	}
	did.twins, err = collect(rows, func(email *string) []any { return []any{email} })
	return did, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// copyDatabase writes a consistent copy of a database that nobody else is writing to.
func copyDatabase(from, to string) error {
	aside := to + ".part"
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeSynced(aside, nil, 0o600); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", dsn(from))
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.Exec(`VACUUM INTO $1`, aside); err != nil {
		return err
	}
	if err := os.Rename(aside, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// legacySession is the session that an adopted token of pico-auth 0.3.1 or later names: those are stored as
// HMAC-SHA-256. Older ones are stored as SHA-256, which is how sessions are named here anyway.
func (s *store) legacySession(handle string) (sessionID string, hash []byte, ok bool) {
	if s.legacyKey == nil || !isLegacyRefreshToken(handle) {
		return "", nil, false
	}
	mac := hmac.New(sha256.New, s.legacyKey)
	mac.Write([]byte(handle))
	hash = mac.Sum(nil)
	return hex.EncodeToString(hash), hash, true
}
