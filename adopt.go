package main

// This file takes over databases of the Python server: it turns their tables
// into ours, once and in one transaction, after copying the file as it was,
// and it knows their refresh tokens. What such databases can contain: any text
// as an email, users whose emails differ only in case, passwords cut at 72
// bytes, tables of later versions. Without this file and the lines marked
// `room: adopt` the program is the same for databases of its own.

import (
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// settingLegacyKey is the HMAC key of adopted refresh tokens. It is missing
// when there was no key file to make it from.
const settingLegacyKey = "legacy_token_key"

// pythonTables counts the columns by which a database of the Python server is
// recognized: 14.
const pythonTables = `SELECT
	(SELECT count(*) FROM pragma_table_info('users') WHERE name IN ('id', 'email', 'display_name',
		'password_hash', 'role', 'org_id', 'status', 'created_at', 'last_login_at')) +
	(SELECT count(*) FROM pragma_table_info('refresh_tokens')
		WHERE name IN ('id', 'user_id', 'token_hash', 'expires_at', 'created_at'))`

// renameUsers makes room for our table of the name. References that tables of
// the operator's own may have to users go on meaning users
// (legacy_alter_table); with foreign keys off, no row of theirs is deleted
// with the old table.
const renameUsers = `PRAGMA legacy_alter_table = ON;
ALTER TABLE users RENAME TO python_users;
PRAGMA legacy_alter_table = OFF`

// adoption turns the two tables of version 0.1.2 into ours; tables of later
// versions stay as they are. Users come in order of creation. Of users whose
// emails differ only in case, the one in lower case (or else the oldest)
// answers to every spelling and the others to their own. A refresh token
// becomes a session that is named by its hash, so that rotation and reuse
// need no second mechanism; it lasts 30 days at most. Suspended users bring no
// sessions: to activate them later must not revive tokens. $1 is now.
const adoption = `
INSERT INTO users
	(id, email, email_key, display_name, password_hash, role, org_id, status, created_at, last_login_at)
SELECT id, email, CASE WHEN twin = 1 THEN lower(email) ELSE email END, display_name,
	CAST(password_hash AS BLOB), role, org_id, status,
	coalesce(unixepoch(created_at), 0), unixepoch(last_login_at)
FROM (SELECT *, row_number() OVER
	(PARTITION BY lower(email) ORDER BY email <> lower(email), created_at, id) AS twin FROM python_users)
ORDER BY created_at, id;

INSERT INTO sessions (id, user_id, token_hash, created_at, last_used_at, expires_at, ends_at, ip, user_agent)
SELECT lower(t.token_hash), t.user_id, unhex(t.token_hash),
	coalesce(unixepoch(t.created_at), 0), coalesce(unixepoch(t.created_at), 0),
	min(unixepoch(t.expires_at), $1 + 30 * 86400), $1 + 30 * 86400, '', 'the Python server (adopted)'
FROM refresh_tokens t JOIN users u ON u.id = t.user_id
WHERE u.status = 'active' AND unixepoch(t.expires_at) > $1 AND length(unhex(t.token_hash)) = 32
ON CONFLICT DO NOTHING;

DROP TABLE python_users;
DROP TABLE refresh_tokens`

// adoptPython is the adopter of databases of the Python server.
func adoptPython(t *queries, path string, o openOptions) error {
	var columns int
	if err := t.get(pythonTables, nil, &columns); err != nil {
		return err
	}
	if columns < 14 {
		return errForeign
	}
	kept, err := copyBeforeAdoption(path)
	if err != nil {
		return fmt.Errorf("copying the database before its adoption: %w", err)
	}
	if err := convert(t, kept, o); err != nil {
		os.Remove(kept) // the file is as it was
		return fmt.Errorf("adopting the database of the Python server: %w", err)
	}
	return nil
}

// convert runs inside the transaction and logs what it takes over. kept is the
// copy of the database.
func convert(t *queries, kept string, o openOptions) error {
	for _, step := range []string{renameUsers, migrations[0], adoption} {
		if _, err := t.exec(step, o.now.Unix()); err != nil {
			return err
		}
	}
	if err := keepTokenKey(t, filepath.Join(o.keyDir, "private.pem")); err != nil {
		return err
	}
	var users, sessions int
	err := t.get(`SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM sessions)`,
		nil, &users, &sessions)
	if err != nil {
		return err
	}
	o.log.Info("adopting the database of the Python server",
		"users", users, "refresh_tokens", sessions, "copy", kept)
	twins, err := queryRows(t, `SELECT email FROM users WHERE lower(email) IN
		(SELECT lower(email) FROM users WHERE email_key <> lower(email)) ORDER BY seq`, nil,
		func(email *string) []any { return []any{email} })
	for _, email := range twins {
		o.log.Warn("another email differs from this one only in case; each logs in with its own spelling",
			"email", email)
	}
	return err
}

// copyBeforeAdoption writes a consistent copy of a database to which nobody
// else is writing, and returns its name. VACUUM INTO accepts an empty file,
// which has the right mode from its first byte. An earlier copy stays: it may
// be the only one of something.
func copyBeforeAdoption(path string) (kept string, err error) {
	kept = path + ".before-adoption"
	for n := 2; fileExists(kept); n++ {
		kept = fmt.Sprintf("%s.before-adoption-%d", path, n)
	}
	aside := kept + ".part"
	os.Remove(aside) // of a start that was killed
	if err := makeFile(aside); err != nil {
		return "", err
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return "", err
	}
	defer db.Close()
	if _, err = db.Exec(`VACUUM INTO $1`, aside); err == nil {
		err = os.Rename(aside, kept)
	}
	return kept, err
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// keepTokenKey stores the HMAC key under which the Python server from 0.3.1 on
// stores refresh tokens: it depends on the text of the key file, with line ends
// as Python reads them. Without such a file there is none.
func keepTokenKey(t *queries, keyFile string) error {
	data, err := os.ReadFile(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(data))
	key := sha256.Sum256([]byte("pico-auth/token-hash-key/v1:" + text))
	return t.setSetting(settingLegacyKey, key[:])
}

// pythonHandleHash is that of tokens adopted from version 0.3.1 or later, which
// are stored as HMAC-SHA-256, and of their successors.
func pythonHandleHash(t *queries, handle string) ([]byte, error) {
	key, err := t.setting(settingLegacyKey)
	if key == nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(handle))
	return mac.Sum(nil), err
}
