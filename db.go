package main

// This file is how anything is stored: the database file, its schema and
// migrations, the one writer, prepared queries, error codes and settings. It
// knows neither users nor rules: what is stored is up to its callers.
//
// SQLite lets one connection write at a time. So one goroutine, the writer,
// owns a connection and makes every change; everything else reads through a
// pool of connections that cannot write. A change runs inside a transaction:
// what it has read cannot change before it has written. Its caller gets the
// answer after the commit, and a commit reaches the disk (synchronous=FULL):
// what was acknowledged survives kill -9 and power loss. SQL never reads the
// clock; times are unix seconds that the caller gives. Statements are written
// so that PostgreSQL understands them too, except those that open a file.

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"modernc.org/sqlite"
)

// applicationID marks our files in the SQLite header, so that a foreign
// database is not taken for ours. It is "pic" in ASCII and a last byte that
// changes with every change of schema 1 before the first release: a file of
// an earlier state is refused untouched, where it would fail later.
const applicationID = 0x70696373

const schema = `
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
`

// migrations[n] takes a file from user_version n to n+1, with foreign keys off.
// Released entries are never changed. The next one could be
//
//	ALTER TABLE users ADD COLUMN phone TEXT NOT NULL DEFAULT ''; -- or empty
//
// The semicolon stands before the comment: SQLite keeps the text of a column,
// and refuses one that ends inside a comment ("incomplete input").
var migrations = []string{schema}

// Names in table settings; other files have more.
const (
	settingRegistration = "registration_enabled" // "true" or "false", once an admin has decided
	settingHealth       = "health_checked_at"    // unix seconds
	settingLegacyKeys   = "legacy_token_keys"    // HMAC keys of adopted tokens // room: adopt
)

var (
	errNotFound    = errors.New("not found")
	errConflict    = errors.New("exists already")
	errUnavailable = errors.New("the database cannot be written at the moment")
	errForeign     = errors.New("is a database of another program; nothing in it was changed")
)

// store is the open database. It is safe for concurrent use, also beside other
// processes on the same file: their writers wait for each other, at most as
// long as dsn says.
type store struct {
	created bool // the database was empty when it was opened
	path    string
	file    os.FileInfo // what path was when it was opened
	reads   *queries
	writer  *writer
	health  healthCheck
	closers []io.Closer // in the order of opening

	legacyKeys []byte // value of settingLegacyKeys; nil when there is none // room: adopt
}

// openOptions say how openStore opens a database.
type openOptions struct {
	now       time.Time
	log       *slog.Logger
	echo      bool    // log every statement, never its values
	mustExist bool    // refuse what is not our database already, and change no schema
	keyDir    string  // of the signing keys, which the Python server used for its tokens
	adopt     adopter // nil: databases of other programs are refused

	migrations []string // nil: those of this program
}

// adopter takes over a database of another program. It runs inside the
// transaction that prepares the schema, with foreign keys off, and leaves the
// tables of schema 1; or it returns errForeign when it does not know the
// database.
type adopter func(t *queries, path string, o openOptions) error

// openStore opens or makes the database at path. Foreign, newer and damaged
// files are refused untouched.
func openStore(path string, o openOptions) (*store, error) {
	s := &store{path: path}
	if o.migrations == nil {
		o.migrations = migrations
	}
	if err := s.open(o); err != nil {
		return nil, fmt.Errorf("database.url (DATABASE_URL) %s: %w", path, errors.Join(err, s.close()))
	}
	return s, nil
}

func (s *store) open(o openOptions) error {
	if err := s.findFile(o); err != nil {
		return err
	}
	writes, err := s.connect("foreign_keys(0)", "synchronous(FULL)", "journal_size_limit(16777216)")
	if err != nil {
		return err
	}
	conn, err := writes.Conn(context.Background())
	if err != nil {
		return err
	}
	t := &queries{prepare: conn.PrepareContext}
	if o.echo {
		t.echo = o.log
	}
	s.writer = &writer{queries: t, queue: make(chan *queuedChange, maxQueuedChanges)}
	go s.writer.run()
	s.closers = append(s.closers, conn, s.writer)
	err = s.change(context.Background(), func(t *queries) error { return s.prepareSchema(t, o) })
	if err != nil {
		return err
	}
	if err := makePrivate(s.path, o.log); err != nil {
		return err
	}
	if err := useWAL(t); err != nil {
		return err
	}
	reads, err := s.connect("query_only(1)")
	if err != nil {
		return err
	}
	size := 2 * runtime.GOMAXPROCS(0)
	reads.SetMaxOpenConns(size)
	reads.SetMaxIdleConns(size)
	s.reads = &queries{prepare: reads.PrepareContext, echo: t.echo}
	if !o.mustExist {
		path, _ := filepath.Abs(s.path) // fails only without a working directory
		o.log.Info("database", "file", path, "created", s.created)
	}
	s.legacyKeys, err = s.setting(settingLegacyKeys) // room: adopt
	return err
}

// connect makes a pool of connections to the file, each with these pragmas.
func (s *store) connect(pragmas ...string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn(s.path, pragmas...))
	if err == nil {
		s.closers = append(s.closers, db)
	}
	return db, err
}

// close carries out the changes that wait and closes the database. The
// writer's connection is closed last: SQLite then empties the write-ahead log
// into the file and removes it.
func (s *store) close() error {
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// findFile makes the file unless it exists, and remembers which one it is.
func (s *store) findFile(o openOptions) (err error) {
	missing := errors.New("there is no database yet; " +
		"start the server once, or run this in its working directory")
	if !o.mustExist {
		missing = makeFile(s.path)
	}
	if s.file, err = os.Stat(s.path); err != nil {
		return cmp.Or(missing, err)
	}
	if !s.file.Mode().IsRegular() {
		return errors.New("is not a file")
	}
	return nil
}

// useWAL turns on write-ahead logging, and foreign keys, which are off while
// the schema is prepared. SQLite does not wait for a lock here, so this tries
// for two seconds, while another server starts.
func useWAL(t *queries) error {
	var err error
	for range 100 {
		if _, err = t.exec(`PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON`); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// --- schema and migrations ---

// prepareSchema brings the file to the newest version in one change. A process
// that starts at the same time waits for the lock and then finds the work done.
func (s *store) prepareSchema(t *queries, o openOptions) error {
	version, err := schemaVersion(t, len(o.migrations))
	if err != nil || version == len(o.migrations) {
		return err
	}
	if o.mustExist {
		return errors.New("holds no tables of this version of pico-auth; " +
			"start the server once: it makes them, or adopts those of the Python server")
	}
	s.created = version == 0
	switch {
	case version == foreignSchema && o.adopt == nil:
		return errForeign
	case version == foreignSchema:
		if err := o.adopt(t, s.path, o); err != nil {
			return err
		}
		return migrate(t, 1, o.migrations)
	case s.created:
		return migrate(t, 0, o.migrations)
	}
	kept, err := keepCopy(s.path, fmt.Sprintf(".before-%d", version))
	if err != nil {
		return fmt.Errorf("copying the database before its migration: %w", err)
	}
	if err := migrate(t, version, o.migrations); err != nil {
		os.Remove(kept) // the file is as it was
		return err
	}
	o.log.Warn("the database has a new form, which older versions refuse; to go back, restore the copy",
		"schema", len(o.migrations), "was", version, "copy", kept)
	return nil
}

// migrate takes the tables from a version to the newest, and marks the file.
func migrate(t *queries, version int, migrations []string) error {
	for ; version < len(migrations); version++ {
		if _, err := t.exec(migrations[version]); err != nil {
			return fmt.Errorf("migration to version %d: %w", version+1, err)
		}
	}
	const marks = `PRAGMA application_id = %d; PRAGMA user_version = %d`
	_, err := t.exec(fmt.Sprintf(marks, applicationID, version))
	return err
}

// foreignSchema is the version of a database that is not ours.
const foreignSchema = -1

// schemaVersion returns the version of our schema in the file, 0 when it is
// empty; newest is the last one that this program knows. The tables are asked
// for as well as the marks, so that a damaged file is recognized before
// anything is written to it.
func schemaVersion(t *queries, newest int) (version int, err error) {
	var id, objects, tables int
	err = t.get(`SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master),
			(SELECT count(*) FROM sqlite_master WHERE type = 'table'
				AND name IN ('users', 'sessions', 'known_addresses', 'settings'))
		FROM pragma_application_id, pragma_user_version`, nil, &id, &version, &objects, &tables)
	switch {
	case err != nil:
		return 0, err
	case id == 0 && version == 0 && objects == 0:
		return 0, nil
	case id != applicationID:
		return foreignSchema, nil
	case version > newest:
		return 0, fmt.Errorf("was written by a newer pico-auth (schema %d, this one knows %d); "+
			"start that version, or restore a backup", version, newest)
	case version < 1 || tables < 4:
		return 0, errors.New("has our mark but not our tables: it is damaged; restore a backup")
	}
	return version, nil
}

// --- the writer ---

// writer owns the only connection that writes. A commit that survives power
// loss waits for the disk, which takes about as long for a hundred changes as
// for one. So the changes that arrive during a commit gather in the queue, and
// the next commit carries them all ("group commit"): one by one this driver
// made 830 durable commits a second, together 9,300 for 32 clients. An idle
// writer takes the first change at once, so nobody waits for company.
type writer struct {
	*queries
	queue  chan *queuedChange
	using  sync.RWMutex // guards closed; every change holds it for reading until it is answered
	closed bool         // by Close, and so is queue
}

// queuedChange is one caller's function and the place for its answer.
type queuedChange struct {
	ctx    context.Context
	apply  func(t *queries) error
	err    error // what apply returned; only the writer touches it
	answer chan error
}

const (
	maxQueuedChanges = 1024 // beyond these callers get errUnavailable
	maxBatch         = 256  // changes in one commit; bounds how long the first one waits
)

// change has the writer run apply inside a transaction and returns after the
// commit. An error of apply undoes what apply did, and only that. Other errors
// are those of the commit, and errUnavailable when the database is full,
// failing or closed, or when too many changes wait.
//
// apply may run twice: when another change in the same transaction fails, all
// of it is rolled back and run again. So apply begins by resetting what it
// captured, and does nothing that the database cannot undo. If ctx ends before
// its turn it is skipped; once begun it is never interrupted, because that
// would roll back the others too (sqlite3_interrupt).
func (s *store) change(ctx context.Context, apply func(t *queries) error) error {
	w, c := s.writer, &queuedChange{ctx: ctx, apply: apply, answer: make(chan error, 1)}
	w.using.RLock()
	defer w.using.RUnlock()
	if w.closed {
		return fmt.Errorf("%w: it is closed", errUnavailable)
	}
	select {
	case w.queue <- c:
		return <-c.answer
	default:
		return fmt.Errorf("%w: too many changes are waiting", errUnavailable)
	}
}

func (w *writer) run() {
	for c := range w.queue {
		w.carryOut(c)
	}
}

// Close waits until everything that was queued before is committed. It closes
// the statements, because SQLite keeps the write-ahead log when a connection
// is closed before them; those of a pool are closed by database/sql.
func (w *writer) Close() error {
	w.using.Lock()
	defer w.using.Unlock()
	w.closed = true
	close(w.queue)
	w.prepared.Range(func(_, statement any) bool { return statement.(*sql.Stmt).Close() == nil })
	return nil
}

// carryOut commits a change together with those that wait behind it. These are
// taken when the transaction is open, so that everything that came while
// another process held the lock goes into the same commit.
func (w *writer) carryOut(first *queuedChange) {
	_, err := w.exec(`BEGIN IMMEDIATE`)
	batch := []*queuedChange{first}
	for len(w.queue) > 0 && len(batch) < maxBatch {
		batch = append(batch, <-w.queue)
	}
	if err == nil {
		err = w.commit(batch)
	}
	for _, c := range batch {
		c.answer <- cmp.Or(err, c.err)
	}
}

// commit applies a batch in the transaction that is open, and commits it. The
// first try does without savepoints, which almost never matter and each cost a
// statement; if a change fails, the whole batch runs again with them. The error
// concerns every change of the batch: that of a commit, of a full or failing
// disk, or of the only change.
func (w *writer) commit(batch []*queuedChange) error {
	err := w.applyAll(batch, false)
	if err != nil && len(batch) > 1 && !errors.Is(err, errUnavailable) {
		if _, err = w.exec(`ROLLBACK; BEGIN IMMEDIATE`); err == nil {
			err = w.applyAll(batch, true)
		}
	}
	if err == nil {
		_, err = w.exec(`COMMIT`)
	}
	if err != nil {
		w.exec(`ROLLBACK`) // fails if SQLite has rolled back already, which is as good
	}
	return err
}

// applyAll runs the changes whose callers still wait, up to the first error.
// Alone, each has a savepoint, to which a change that fails is undone; COMMIT
// releases them. A full or failing disk ends the batch even so, because SQLite
// may have rolled back everything.
func (w *writer) applyAll(batch []*queuedChange, alone bool) error {
	for _, c := range batch {
		if c.err = c.ctx.Err(); c.err != nil {
			continue
		}
		if alone {
			if _, err := w.exec(`SAVEPOINT change`); err != nil {
				return err
			}
		}
		err := w.apply(c)
		c.err = err
		if alone && err != nil && !errors.Is(err, errUnavailable) {
			_, err = w.exec(`ROLLBACK TO change`)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// apply runs a change. A bug in one must not end the process with everybody's.
func (w *writer) apply(c *queuedChange) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a change: %v\n%s", p, debug.Stack())
		}
	}()
	return c.apply(w.queries)
}

// --- queries ---

// queries runs statements, each prepared once: on the pool of readers, or on
// the writer's connection, and then inside its transaction. It keeps the
// errors of database/sql and of the driver to itself. The ctx of a request is
// not handed to the driver: watching it would cost a goroutine per query, and
// no query here is long.
type queries struct {
	prepare  func(ctx context.Context, query string) (*sql.Stmt, error)
	prepared sync.Map     // SQL text to *sql.Stmt
	echo     *slog.Logger // nil: statements are not logged
}

// statement returns the prepared statement for a query that is about to run.
func (t *queries) statement(query string) (*sql.Stmt, error) {
	if t.echo != nil {
		t.echo.Info("sql", "statement", query)
	}
	known, ok := t.prepared.Load(query)
	if !ok {
		var err error
		if known, err = t.prepare(context.Background(), query); err != nil {
			return nil, storageError(err)
		}
		t.prepared.Store(query, known) // readers that race here prepare it twice, which does no harm
	}
	return known.(*sql.Stmt), nil
}

// exec returns how many rows the statement changed.
func (t *queries) exec(query string, args ...any) (changed int64, err error) {
	statement, err := t.statement(query)
	if err != nil {
		return 0, err
	}
	result, err := statement.Exec(args...)
	if err != nil {
		return 0, storageError(err)
	}
	return result.RowsAffected()
}

// get scans the first row of a query; errNotFound when there is none.
func (t *queries) get(query string, args []any, targets ...any) error {
	statement, err := t.statement(query)
	if err != nil {
		return err
	}
	return storageError(statement.QueryRow(args...).Scan(targets...))
}

// queryRows reads every row of a query. targets returns where the columns of
// a row go.
func queryRows[T any](t *queries, query string, args []any, targets func(*T) []any) (found []T, err error) {
	statement, err := t.statement(query)
	if err != nil {
		return nil, err
	}
	rows, err := statement.Query(args...)
	if err != nil {
		return nil, storageError(err)
	}
	defer rows.Close()
	for err == nil && rows.Next() {
		var row T
		err = rows.Scan(targets(&row)...)
		found = append(found, row)
	}
	return found, storageError(cmp.Or(err, rows.Err()))
}

// pageRows is how many rows of a list are read at a time.
const pageRows = 500

// rowList is the rows of a table for which its conditions hold, in the order of
// seq. It is read page by page, so a million rows cost no more memory than a
// page.
type rowList[T any] struct {
	table, columns string         // the first column is the seq
	where          string         // conditions on args, each beginning with AND
	args           []any          // $1 and so on
	targets        func(*T) []any // where the columns of a row go
}

func (l rowList[T]) count(t *queries) (n int64, err error) {
	err = t.get(`SELECT count(*) FROM `+l.table+` WHERE 1 = 1`+l.where, l.args, &n)
	return n, err
}

// page returns up to limit rows after the given seq.
func (l rowList[T]) page(t *queries, after int64, limit int) ([]T, error) {
	n := len(l.args)
	query := fmt.Sprintf(`SELECT %s FROM %s WHERE seq > $%d%s ORDER BY seq LIMIT $%d`,
		l.columns, l.table, n+1, l.where, n+2)
	return queryRows(t, query, append(l.args[:n:n], after, limit), l.targets)
}

// last returns the seq of the last row of a page.
func (l rowList[T]) last(page []T) int64 { return *l.targets(&page[len(page)-1])[0].(*int64) }

// each calls do with every row.
func (l rowList[T]) each(t *queries, do func(T)) error {
	page, err := l.page(t, 0, pageRows)
	for err == nil && len(page) > 0 {
		for _, row := range page {
			do(row)
		}
		page, err = l.page(t, l.last(page), pageRows)
	}
	return err
}

// storageError translates errors by SQLite's result codes, never by their
// text.
func storageError(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return errNotFound
	}
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return err
	}
	switch e.Code() {
	case 2067, 1555: // SQLITE_CONSTRAINT_UNIQUE, SQLITE_CONSTRAINT_PRIMARYKEY
		return errConflict
	}
	switch e.Code() & 0xff {
	case 5, 6, 8, 10, 13, 14: // SQLITE_BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	return err
}

// --- settings, health, the lock ---

// setting reads one row of settings; nil when there is none.
func (s *store) setting(name string) ([]byte, error) { return s.reads.setting(name) }

func (t *queries) setting(name string) (value []byte, err error) {
	err = t.get(`SELECT value FROM settings WHERE name = $1`, []any{name}, &value)
	if errors.Is(err, errNotFound) {
		err = nil
	}
	return value, err
}

func (t *queries) setSetting(name string, value []byte) error {
	_, err := t.exec(`INSERT INTO settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
	return err
}

// healthCheck is the last write that healthy began.
type healthCheck struct {
	sync.Mutex
	at     time.Time
	result func() error // waits for it
}

// healthy returns nil when a write reached the disk, in the file that the next
// start will find. Anybody may ask, so there is at most one write a second, and
// everybody who asks within that second gets its result.
func (s *store) healthy(now time.Time) error {
	if file, err := os.Stat(s.path); err != nil || !os.SameFile(file, s.file) {
		return fmt.Errorf("%w: the database file was removed or replaced", errUnavailable)
	}
	h := &s.health
	h.Lock()
	if now.Sub(h.at).Abs() >= time.Second {
		h.at = now
		h.result = sync.OnceValue(func() error {
			return s.change(context.Background(), func(t *queries) error {
				return t.setSetting(settingHealth, fmt.Append(nil, now.Unix()))
			})
		})
	}
	result := h.result
	h.Unlock()
	return result()
}

// exclusively runs f while no other process can write to the database: the
// lock for the key directory. What f does to files cannot be rolled back, so
// it runs once, also when the change runs again.
func (s *store) exclusively(ctx context.Context, f func() error) error {
	once := sync.OnceValue(f)
	return s.change(ctx, func(*queries) error { return once() })
}
