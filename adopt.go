package main

// This file takes over databases of the Python server: it turns their tables
// into ours, once and in one transaction, after copying the file as it was,
// and it knows their refresh and service tokens. What such databases can
// contain: any text as an email or a name, users whose emails differ only in
// case, groups of one name, passwords cut at 72 bytes. Without this file and
// the lines marked `room: adopt` the program is the same for databases of its
// own.

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// pythonTables counts the columns by which a database of the Python server is
// recognized: 14.
const pythonTables = `SELECT
	(SELECT count(*) FROM pragma_table_info('users') WHERE name IN ('id', 'email', 'display_name',
		'password_hash', 'role', 'org_id', 'status', 'created_at', 'last_login_at')) +
	(SELECT count(*) FROM pragma_table_info('refresh_tokens')
		WHERE name IN ('id', 'user_id', 'token_hash', 'expires_at', 'created_at'))`

// renameTables makes room for our tables of these names. Version 0.1.2 has the
// users alone; the others are made, so that one adoption fits every version.
// References that tables of the operator's own may have to users go on meaning
// users (legacy_alter_table); with foreign keys off, no row of theirs is
// deleted with the old table.
const renameTables = `
CREATE TABLE IF NOT EXISTS groups (id, name, description, org_id, created_at);
CREATE TABLE IF NOT EXISTS group_members (group_id, user_id, joined_at);
CREATE TABLE IF NOT EXISTS service_tokens
	(id, name, token_hash, role, org_id, description, created_at, revoked_at);
PRAGMA legacy_alter_table = ON;
ALTER TABLE users RENAME TO python_users;
ALTER TABLE groups RENAME TO python_groups;
ALTER TABLE group_members RENAME TO python_group_members;
ALTER TABLE service_tokens RENAME TO python_service_tokens;
PRAGMA legacy_alter_table = OFF`

// adoption fills our tables but for the groups, which adoptGroups does before;
// email_credentials stay as they are. Users come in order of creation. Of users
// whose emails differ only in case, the one in lower case (or else the oldest)
// answers to every spelling and the others to their own. A refresh token
// becomes a session that is named by its hash, so that rotation and reuse
// need no second mechanism; it lasts 30 days at most. Suspended users bring no
// sessions: to activate them later must not revive tokens. Members of a group
// are users of its organisation. Of living service tokens of one name, all but
// the oldest get their id behind it. $1 is now.
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

INSERT INTO group_members (group_id, user_id, joined_at)
SELECT m.group_id, m.user_id, coalesce(unixepoch(m.joined_at), 0)
FROM python_group_members m JOIN groups g ON g.id = m.group_id
	JOIN users u ON u.id = m.user_id AND u.org_id = g.org_id
ORDER BY m.joined_at, m.user_id;

INSERT INTO service_tokens (id, name, token_hash, role, org_id, description, created_at)
SELECT id, CASE WHEN twin = 1 THEN name ELSE name || '-' || id END,
	unhex(token_hash), role, org_id, description, coalesce(unixepoch(created_at), 0)
FROM (SELECT *, row_number() OVER (PARTITION BY name ORDER BY created_at, id) AS twin
	FROM python_service_tokens WHERE revoked_at IS NULL AND length(unhex(token_hash)) = 32)
ORDER BY created_at, id`

// dropPython removes what is in our tables now.
const dropPython = `
DROP TABLE python_users;
DROP TABLE python_groups;
DROP TABLE python_group_members;
DROP TABLE python_service_tokens;
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
	kept, err := keepCopy(path, ".before-adoption")
	if err != nil {
		return fmt.Errorf("copying the database before its adoption: %w", err)
	}
	if err := convert(t, kept, o); err != nil {
		os.Remove(kept) // the file is as it was
		return fmt.Errorf("adopting the database of the Python server: %w", err)
	}
	return nil
}

// convert runs inside the transaction. kept is the copy of the database.
func convert(t *queries, kept string, o openOptions) error {
	for _, step := range []string{renameTables, migrations[0]} {
		if _, err := t.exec(step); err != nil {
			return err
		}
	}
	if err := adoptGroups(t); err != nil {
		return err
	}
	if _, err := t.exec(adoption, o.now.Unix()); err != nil {
		return err
	}
	if err := keepTokenKeys(t, o); err != nil {
		return err
	}
	if err := reportAdoption(t, kept, o.log); err != nil {
		return err
	}
	_, err := t.exec(dropPython)
	return err
}

// adoptGroups takes the groups over, in order of creation. Names get the form
// that checkTag asks for, as far as their length, and are made unique in
// their organisation.
func adoptGroups(t *queries) error {
	type named struct{ id, name, org string }
	groups, err := queryRows(t, `SELECT id, name, org_id FROM python_groups ORDER BY created_at, id`, nil,
		func(g *named) []any { return []any{&g.id, &g.name, &g.org} })
	taken := map[[2]string]bool{} // organisation and name
	for _, g := range groups {
		name := strings.Map(func(r rune) rune {
			if r == '/' || r == ',' || isControl(r) {
				return '-'
			}
			return r
		}, g.name)
		for taken[[2]string{g.org, name}] {
			name += " (" + g.id + ")"
		}
		taken[[2]string{g.org, name}] = true
		if err == nil {
			_, err = t.exec(`INSERT INTO groups (id, name, description, org_id, created_at)
				SELECT id, $1, description, org_id, coalesce(unixepoch(created_at), 0)
				FROM python_groups WHERE id = $2`, name, g.id)
		}
	}
	return err
}

// reportAdoption logs what is taken over, what differs and what is missing.
func reportAdoption(t *queries, kept string, log *slog.Logger) error {
	var users, sessions, groups, members, lost, tokens int
	err := t.get(`SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM sessions),
		(SELECT count(*) FROM groups), (SELECT count(*) FROM group_members),
		(SELECT count(*) FROM python_group_members), (SELECT count(*) FROM service_tokens)`,
		nil, &users, &sessions, &groups, &members, &lost, &tokens)
	if err != nil {
		return err
	}
	log.Info("adopting the database of the Python server",
		"users", users, "refresh_tokens", sessions, "groups", groups, "memberships", members,
		"service_tokens", tokens, "copy", kept)
	if lost -= members; lost > 0 {
		log.Warn("members of groups were dropped who are not users of the group's organisation",
			"count", lost)
	}
	for _, odd := range []struct{ warning, query string }{
		{"another email differs from this one only in case; each logs in with its own spelling",
			`SELECT email FROM users WHERE lower(email) IN
				(SELECT lower(email) FROM users WHERE email_key <> lower(email)) ORDER BY seq`},
		{"a group has this name now; its old one was taken, or had a slash, comma or control character",
			`SELECT n.name FROM groups n JOIN python_groups p USING (id)
				WHERE n.name <> p.name ORDER BY n.seq`},
		{"a service token has this name now; its old one was taken",
			`SELECT n.name FROM service_tokens n JOIN python_service_tokens p USING (id)
				WHERE n.name <> p.name ORDER BY n.seq`},
	} {
		names, err := queryRows(t, odd.query, nil, func(name *string) []any { return []any{name} })
		if err != nil {
			return err
		}
		for _, name := range names {
			log.Warn(odd.warning, "name", name)
		}
	}
	return nil
}

// keepTokenKeys stores the HMAC keys under which the Python server from 0.3.1
// on stores refresh tokens. It made them of the key file of its algorithm: of
// the text of private.pem, with line ends as Python reads them, or of the bytes
// of its ML-DSA key. Where both files exist, nothing says which was in use, so
// both keys are kept: at worst a token works again that a change of the
// algorithm had ended before its time.
func keepTokenKeys(t *queries, o openOptions) error {
	var keys []byte
	for _, name := range []string{"private.pem", "pqc_secret.bin"} {
		data, err := os.ReadFile(filepath.Join(o.keyDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		text := string(data)
		if name == "private.pem" {
			text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
		} else {
			o.log.Warn("the Python server's ML-DSA key lacks its seed, so no Go program can sign with it: " +
				"a new key is made, access tokens must be refreshed, refresh tokens go on")
		}
		key := sha256.Sum256([]byte("pico-auth/token-hash-key/v1:" + text))
		keys = append(keys, key[:]...)
	}
	if keys == nil {
		return nil
	}
	return t.setSetting(settingLegacyKeys, keys)
}

// pythonHashes are the hashes by which version 0.3.1 and later store a token,
// one for each key of settingLegacyKeys.
func pythonHashes(keys []byte, token string, hashes [][]byte) {
	i := 0
	for key := range slices.Chunk(keys, sha256.Size) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(token))
		hashes[i] = mac.Sum(nil)
		i++
	}
}
