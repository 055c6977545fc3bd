
CREATE TABLE users (
	seq           INTEGER PRIMARY KEY,  -- order of creation; pages of users follow it
	id            TEXT NOT NULL UNIQUE, -- random, the subject of tokens
	email         TEXT NOT NULL UNIQUE, -- as typed
	email_key     TEXT NOT NULL UNIQUE, -- in ASCII lower case; of adopted twins all but one stay as typed
	display_name  TEXT NOT NULL,        -- for people; may be empty
	password_hash BLOB NOT NULL,        -- bcrypt, made here or adopted from the Python server
	role          TEXT NOT NULL,        -- see rbac.go; others manage their own account only
	org_id        TEXT NOT NULL,        -- organisation
	status        TEXT NOT NULL,        -- active or suspended
	created_at    INTEGER NOT NULL,     -- unix seconds
	last_login_at INTEGER,              -- unix seconds; null before the first login
	verified_at   INTEGER NOT NULL DEFAULT 0 -- since when a superadmin vouches for the email; 0: none does
) STRICT;
CREATE INDEX users_by_org ON users (org_id, seq);
CREATE INDEX active_superadmins ON users (seq) WHERE role = 'superadmin' AND status = 'active';

-- One row per living session, updated in place: an ended session has no row,
-- so no query can forget to ask whether it was revoked.
CREATE TABLE sessions (
	id           TEXT PRIMARY KEY, -- the sid of access tokens; SHA-256 of the handle in refresh tokens
	user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE, -- whose session
	token_hash   BLOB NOT NULL,    -- SHA-256 of the current refresh token
	parent_hash  BLOB,             -- SHA-256 of the token it replaced; null before the first refresh
	salt         BLOB,             -- derives the current token from its parent; null without a reuse grace
	created_at   INTEGER NOT NULL, -- unix seconds, as are all below
	last_used_at INTEGER NOT NULL, -- when the current token was made
	expires_at   INTEGER NOT NULL, -- end of the idle lifetime, never after ends_at; what is compared
	ends_at      INTEGER NOT NULL, -- end of the absolute lifetime
	ip           TEXT NOT NULL,    -- client of the last login or refresh
	user_agent   TEXT NOT NULL,    -- of that client
	-- What follows is of OpenID clients; a login at the JSON endpoint has the defaults.
	client_id    TEXT NOT NULL DEFAULT '', -- whose tokens; #browser, #forward: a cookie
	parent_id    TEXT,             -- id of the browser's session from which it grew
	auth_time    INTEGER NOT NULL DEFAULT 0,  -- when the password was checked
	scope        TEXT NOT NULL DEFAULT '',    -- granted, separated by blanks
	resource     TEXT NOT NULL DEFAULT '',    -- as the client asked for (RFC 8707)
	nonce        TEXT NOT NULL DEFAULT '',    -- of the authorization request
	code_hash    BLOB,             -- SHA-256 of the authorization code; stays to recognize a second use
	redirect_uri TEXT,             -- where the code was sent; null once it has been exchanged
	challenge    TEXT NOT NULL DEFAULT ''     -- code_challenge of PKCE; empty without; stays with code_hash
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user_id, client_id);
CREATE INDEX sessions_by_parent ON sessions (parent_id) WHERE parent_id IS NOT NULL;
CREATE UNIQUE INDEX sessions_by_code ON sessions (code_hash) WHERE code_hash IS NOT NULL;

-- Where accounts logged in from; the throttle of a whole account spares these
-- addresses.
CREATE TABLE known_addresses (
	user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE, -- who logged in
	address TEXT NOT NULL,    -- IPv4, or the prefix of an IPv6 address
	seen_at INTEGER NOT NULL, -- unix seconds of the last login
	PRIMARY KEY (user_id, address)
) STRICT, WITHOUT ROWID;

-- Deleting a group or a user deletes its rows in group_members.
CREATE TABLE groups (
	seq         INTEGER PRIMARY KEY,  -- order of creation; pages of groups follow it
	id          TEXT NOT NULL UNIQUE, -- random; what access tokens carry
	name        TEXT NOT NULL,        -- for people; without slash and comma
	description TEXT NOT NULL,        -- for people; may be empty
	org_id      TEXT NOT NULL,        -- organisation of the group and its members
	created_at  INTEGER NOT NULL,     -- unix seconds
	UNIQUE (org_id, name)
) STRICT;
CREATE INDEX groups_by_org ON groups (org_id, seq);

CREATE TABLE group_members (
	seq       INTEGER PRIMARY KEY, -- order of joining; pages of members follow it
	group_id  TEXT NOT NULL REFERENCES groups (id) ON DELETE CASCADE, -- which group
	user_id   TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,  -- who is in it
	joined_at INTEGER NOT NULL,    -- unix seconds
	UNIQUE (user_id, group_id)
) STRICT;
CREATE INDEX group_members_by_group ON group_members (group_id, seq);

-- A revoked service token has no row.
CREATE TABLE service_tokens (
	seq         INTEGER PRIMARY KEY,  -- order of creation; pages of tokens follow it
	id          TEXT NOT NULL UNIQUE, -- random
	name        TEXT NOT NULL UNIQUE, -- in all organisations
	token_hash  BLOB NOT NULL UNIQUE, -- SHA-256 of the token; of adopted ones also the HMAC
	role        TEXT NOT NULL,        -- as of a user; see rbac.go
	org_id      TEXT NOT NULL,        -- organisation
	description TEXT NOT NULL,        -- for people; may be empty
	created_at  INTEGER NOT NULL      -- unix seconds
) STRICT;

CREATE TABLE settings (
	name  TEXT PRIMARY KEY, -- one of the setting… constants
	value BLOB NOT NULL     -- see there
) STRICT, WITHOUT ROWID;
