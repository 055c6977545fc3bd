package main

// This file is the storage: schema, migrations, the one writer, and every SQL statement of the
// program. It alone imports database/sql, and it knows neither HTTP nor policy: who may do what
// comes in as a function that is called inside the transaction.
//
// Concurrency. SQLite lets one connection write at a time, so the store has exactly one writer, a goroutine
// that owns a connection; everything else reads through a pool of connections that cannot
// write. Each change is one function run by the writer inside an immediate transaction: what it
// reads there cannot change before it has written. The answer comes after the commit, and a
// commit reaches the disk (synchronous=FULL): what was acknowledged survives kill -9 and power loss.
// SQL never reads the clock; times are unix seconds given by the caller. Except in adopt.go, statements
// that read or change rows are written as other engines understand them too.

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
)

// applicationID marks our files in the SQLite header ("pico" in ASCII), so that a foreign
// database is told from an empty one of ours.
const applicationID = 0x7069636f

const schema = `
CREATE TABLE users (
	seq              INTEGER PRIMARY KEY,  -- order of creation; pages of users follow it
	id               TEXT NOT NULL UNIQUE, -- random, the subject of tokens
	email            TEXT NOT NULL,        -- as typed
	email_key        TEXT NOT NULL UNIQUE, -- email in ASCII lower case; of adopted case twins all but one keep their spelling
	display_name     TEXT NOT NULL,        -- for people; may be empty
	password_hash    BLOB NOT NULL,        -- bcrypt: $2a$ made here, $2b$ adopted from pico-auth
	default_password INTEGER NOT NULL,     -- 1 while the password is the published default
	role             TEXT NOT NULL,        -- see rbac.go; unknown ones can do nothing
	org_id           TEXT NOT NULL,        -- organisation
	status           TEXT NOT NULL,        -- active or suspended
	created_at       INTEGER NOT NULL,     -- unix seconds
	last_login_at    INTEGER               -- unix seconds; null before the first login
) STRICT;
CREATE INDEX users_by_org ON users (org_id, seq);
CREATE INDEX active_superadmins ON users (seq) WHERE role = 'superadmin' AND status = 'active';
CREATE INDEX default_passwords ON users (seq) WHERE default_password = 1;

-- One row per living session, updated in place: an ended session has no row, so no query can
-- forget to ask whether it was revoked.
CREATE TABLE sessions (
	id           TEXT PRIMARY KEY,  -- the sid of access tokens; SHA-256 of the handle in refresh tokens
	user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE, -- whose session
	token_hash   BLOB NOT NULL,     -- SHA-256 of the current refresh token
	parent_hash  BLOB,              -- SHA-256 of the token it replaced
	sealed       BLOB,              -- the current token, readable only with the parent; null without a reuse grace
	created_at   INTEGER NOT NULL,  -- unix seconds, as are all below
	last_used_at INTEGER NOT NULL,  -- when the current token was made
	expires_at   INTEGER NOT NULL,  -- end of the idle lifetime, never after ends_at; the only one that is compared
	ends_at      INTEGER NOT NULL,  -- end of the absolute lifetime
	ip           TEXT NOT NULL,     -- client of the last login or refresh
	user_agent   TEXT NOT NULL      -- of that client
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user_id);

-- Where accounts logged in from; the throttle of a whole account spares these addresses.
CREATE TABLE known_addresses (
	user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE, -- who logged in
	address TEXT NOT NULL,    -- IPv4, or the prefix of an IPv6 address
	seen_at INTEGER NOT NULL, -- unix seconds of the last login
	PRIMARY KEY (user_id, address)
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (
	name  TEXT PRIMARY KEY, -- one of the setting… constants
	value BLOB NOT NULL     -- see there
) STRICT, WITHOUT ROWID;
`

// migrations[n] takes a file from user_version n to n+1. Entries are never changed once released.
var migrations = []string{schema}

// Names in table settings.
const (
	settingRegistration = "registration_enabled"        // "true" or "false", once an admin has decided
	settingHealth       = "health_checked_at"           // unix seconds
	settingHorizon      = "purge_horizon"               // unix seconds; see purge
	settingLegacyKey    = "legacy_token_key"            // HMAC key of adopted refresh tokens
	settingUnchecked    = "default_passwords_unchecked" // adopted superadmins may have the default password
)

var (
	errNotFound       = errors.New("not found")
	errConflict       = errors.New("exists already")
	errChanged        = errors.New("changed in the meantime")
	errUnavailable    = errors.New("the database cannot be written at the moment")
	errLastSuperadmin = errors.New("this is the last active superadmin")
	errNoSession      = errors.New("no such session")
	errSessionExpired = errors.New("session has expired")
	errReuse          = errors.New("refresh token was used before")
	errSuspended      = errors.New("user is suspended")
)

// user is a row of users.
type user struct {
	seq             int64
	id              string
	email           string
	displayName     string
	passwordHash    []byte
	defaultPassword bool
	role            role
	orgID           string
	status          string
	createdAt       int64         // unix seconds
	lastLoginAt     sql.NullInt64 // unix seconds
}

const userColumns = `u.seq, u.id, u.email, u.display_name, u.password_hash, u.default_password, u.role, u.org_id, u.status, u.created_at, u.last_login_at`

// fields are the scan targets for userColumns.
func (u *user) fields() []any {
	return []any{&u.seq, &u.id, &u.email, &u.displayName, &u.passwordHash, &u.defaultPassword, &u.role, &u.orgID, &u.status, &u.createdAt, &u.lastLoginAt}
}

// session is a row of sessions without its hashes. Times are unix seconds. expiresAt is the only one that is ever
// compared with the clock; every statement that moves it keeps it within endsAt.
type session struct {
	id, userID                               string
	createdAt, lastUsedAt, expiresAt, endsAt int64
	ip, userAgent                            string
}

// store is the open database. It is safe for concurrent use, also beside other processes on the same file: their
// writers wait for each other, at most as long as dsn says.
type store struct {
	reads      *sql.DB
	writer     *writer
	statements sync.Map // SQL text → *sql.Stmt on reads
	echo       *slog.Logger
	path       string
	file       os.FileInfo // what path was when it was opened
	legacyKey  []byte      // HMAC key of adopted refresh tokens; nil when there are none
}

// opening is what openStore did, for the log of the start.
type opening struct {
	created  bool
	adopted  bool
	users    int64    // adopted users
	sessions int64    // adopted refresh tokens
	twins    []string // adopted emails that differ from another only in case
	copy     string   // where the file was copied before adoption
}

// openStore opens or makes the database at path. legacyKey is stored when the file turns out to be one
// of pico-auth; echo, unless nil, gets every statement, never its values. Foreign, newer and
// damaged files are refused untouched.
func openStore(path string, legacyKey []byte, now time.Time, echo *slog.Logger) (*store, opening, error) {
	var did opening
	if err := prepareFile(path); err != nil {
		return nil, did, err
	}
	writes, err := sql.Open("sqlite", dsn(path, "foreign_keys(1)", "synchronous(FULL)", "journal_size_limit(16777216)"))
	if err != nil {
		return nil, did, err
	}
	conn, err := writes.Conn(context.Background())
	if err != nil {
		return nil, did, errors.Join(fmt.Errorf("database.url (DATABASE_URL) %s: %w", path, err), writes.Close())
	}
	if did, err = prepareSchema(conn, path, legacyKey, now); err == nil {
		err = useWAL(conn)
	}
	if err != nil {
		return nil, did, errors.Join(fmt.Errorf("database.url (DATABASE_URL) %s: %w", path, err), conn.Close(), writes.Close())
	}
	reads, err := sql.Open("sqlite", dsn(path, "query_only(1)"))
	if err != nil {
		return nil, did, errors.Join(err, conn.Close(), writes.Close())
	}
	reads.SetMaxOpenConns(2 * runtime.NumCPU())
	reads.SetMaxIdleConns(2 * runtime.NumCPU())
	file, err := os.Stat(path)
	if err != nil {
		return nil, did, errors.Join(err, reads.Close(), conn.Close(), writes.Close())
	}
	s := &store{reads: reads, echo: echo, path: path, file: file, writer: newWriter(writes, conn, echo)}
	if s.legacyKey, err = s.setting(settingLegacyKey); err != nil && !errors.Is(err, errNotFound) {
		return nil, did, errors.Join(err, s.close())
	}
	return s, did, nil
}

// dsn is the data source name of path. busy_timeout (10 s) is set first, because the other
// pragmas can already meet another process's lock.
func dsn(path string, pragmas ...string) string {
	q := url.Values{"_pragma": append([]string{"busy_timeout(10000)"}, pragmas...)}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: filepath.ToSlash(path)}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// prepareFile makes the file with mode 0600 from the first byte (SQLite gives its side files the
// same mode), and takes others' access to an existing one away: it holds password hashes.
func prepareFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return errors.Join(f.Close(), syncDir(filepath.Dir(path)))
	}
	info, statErr := os.Stat(path)
	switch {
	case statErr != nil:
		return fmt.Errorf("database.url (DATABASE_URL): %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("database.url (DATABASE_URL): %s is not a file", path)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		return os.Chmod(path, 0o600)
	}
	return nil
}

// close ends the writer last, and statements before their connections: then SQLite empties the
// write-ahead log into the file and removes it.
func (s *store) close() error {
	s.statements.Range(func(_, st any) bool { return st.(*sql.Stmt).Close() == nil })
	return errors.Join(s.reads.Close(), s.writer.close())
}

// useWAL turns on write-ahead logging. SQLite does not wait for a lock here, so a second server
// that starts at the same time is waited for.
func useWAL(conn *sql.Conn) error {
	var err error
	for range 100 {
		if _, err = conn.ExecContext(context.Background(), `PRAGMA journal_mode = WAL`); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// --- schema, migrations and adoption ---

// prepareSchema brings the file to the newest version in one transaction. A second process that
// starts meanwhile waits for the lock and then finds the work done.
func prepareSchema(conn *sql.Conn, path string, legacyKey []byte, now time.Time) (did opening, err error) {
	ctx := context.Background()
	if ours, version, err := identify(conn); err != nil || (ours && version == len(migrations)) {
		return did, err
	}
	if _, err := conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return did, err
	}
	defer func() {
		if err != nil {
			conn.ExecContext(ctx, `ROLLBACK`)
		}
	}()
	ours, version, err := identify(conn)
	if err != nil {
		return did, err
	}
	if !ours {
		if did, err = takeOver(conn, path, legacyKey, now); err != nil {
			return did, err
		}
		version = 1
	}
	for ; version < len(migrations); version++ {
		if _, err := conn.ExecContext(ctx, migrations[version]); err != nil {
			return did, fmt.Errorf("migration to version %d: %w", version+1, err)
		}
	}
	mark := fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT`, applicationID, len(migrations))
	_, err = conn.ExecContext(ctx, mark)
	return did, err
}

// identify tells whether the file is ours and of which version.
func identify(conn *sql.Conn) (ours bool, version int, err error) {
	var id int
	row := conn.QueryRowContext(context.Background(), `SELECT application_id, user_version FROM pragma_application_id, pragma_user_version`)
	if err := row.Scan(&id, &version); err != nil {
		return false, 0, err
	}
	if id == applicationID && version < 1 {
		return true, version, errors.New("has our mark but no valid version: it is damaged; restore a backup")
	}
	if id == applicationID && version > len(migrations) {
		return true, version, fmt.Errorf("was written by a newer pico-auth (schema %d, this one knows %d); start that version, or restore a backup", version, len(migrations))
	}
	return id == applicationID, version, nil
}

// takeOver makes the first schema in a file that is not ours yet: an empty one or pico-auth's.
func takeOver(conn *sql.Conn, path string, legacyKey []byte, now time.Time) (opening, error) {
	var tables, wanted int
	row := conn.QueryRowContext(context.Background(), `SELECT
		(SELECT count(*) FROM sqlite_master),
		(SELECT count(*) FROM pragma_table_info('users') WHERE name IN ('id','email','display_name','password_hash','role','org_id','status','created_at','last_login_at')) +
		(SELECT count(*) FROM pragma_table_info('refresh_tokens') WHERE name IN ('id','user_id','token_hash','expires_at','created_at'))`)
	if err := row.Scan(&tables, &wanted); err != nil {
		return opening{}, err
	}
	switch {
	case tables == 0:
		_, err := conn.ExecContext(context.Background(), migrations[0])
		return opening{created: true}, err
	case wanted == 9+5:
		return adopt(conn, path, legacyKey, now)
	}
	return opening{}, errors.New("is a SQLite database, but neither of this server nor of pico-auth; nothing was changed")
}

// --- the writer ---

// writer owns the only connection that writes. A commit that survives power loss waits for the disk,
// and the disk takes about as long for one change as for a hundred. So while one commit is under
// way the changes that arrive are gathered, and the next commit carries them all ("group commit"):
// one by one this driver made 830 durable commits a second, together 9,300 for 32 clients. An idle
// writer takes the first change at once, so nobody waits for company. A change that fails is undone
// alone. The caller gets its answer after the commit.
type writer struct {
	db      *sql.DB
	tx      *tx
	changes chan *change
	stopped chan struct{}
}

// change is one caller's function and the place for its answer. The writer owns it from do until answer.
type change struct {
	ctx    context.Context
	apply  func(*tx) error
	err    error // what apply returned
	answer chan error
}

const (
	maxQueuedChanges = 1024 // beyond these callers are told errUnavailable
	maxBatch         = 256  // changes in one commit; bounds how long the first one waits
)

// newWriter starts the goroutine, which owns db and conn from now on.
func newWriter(db *sql.DB, conn *sql.Conn, echo *slog.Logger) *writer {
	w := &writer{db: db, tx: &tx{conn: conn, echo: echo, prepared: map[string]*sql.Stmt{}}, changes: make(chan *change, maxQueuedChanges), stopped: make(chan struct{})}
	go w.run()
	return w
}

// do has the writer apply a change and returns its error, or that of the commit. apply may run twice: when
// a neighbour in the same transaction fails, everything is rolled back and run again. So apply begins by resetting
// what it captured, and does nothing that the database cannot undo. A caller whose ctx ends before its turn
// is skipped; once begun, a change is never interrupted, because that would roll back its neighbours'
// transaction too (sqlite3_interrupt).
func (w *writer) do(ctx context.Context, apply func(*tx) error) error {
	c := &change{ctx: ctx, apply: apply, answer: make(chan error, 1)}
	select {
	case w.changes <- c:
		return <-c.answer
	default:
		return fmt.Errorf("%w: too many changes are waiting", errUnavailable)
	}
}

// behind tells that the queue is far longer than honest clients make it.
func (w *writer) behind() bool { return len(w.changes) > maxQueuedChanges/8 }

func (w *writer) run() {
	defer close(w.stopped)
	for first := range w.changes {
		w.carryOut(first)
	}
}

// carryOut commits a change together with those that wait behind it. They are gathered once the transaction
// is open, or cannot be opened: while another process holds the lock, the whole queue gathers and not one change.
func (w *writer) carryOut(first *change) {
	_, err := w.tx.exec(`BEGIN IMMEDIATE`)
	batch := []*change{first}
	for more := true; more && len(batch) < maxBatch; {
		select {
		case c, open := <-w.changes:
			if more = open; open {
				batch = append(batch, c)
			}
		default:
			more = false
		}
	}
	if err == nil {
		err = w.commit(batch)
	}
	for _, c := range batch {
		c.answer <- dbErr(cmp.Or(err, c.err))
	}
}

// commit applies a batch in the transaction that is open, and commits it. The first try does without savepoints,
// which hardly ever matter and cost two statements a change; if a change fails, the whole batch runs again with
// them. The error returned concerns every change of the batch: that of COMMIT, of a full or failing disk, or of
// the only change.
func (w *writer) commit(batch []*change) error {
	err := w.applyAll(batch)
	if err != nil && len(batch) > 1 && !unavailable(err) {
		w.tx.exec(`ROLLBACK`) // fails only if SQLite has rolled back already, which is as good
		if _, err = w.tx.exec(`BEGIN IMMEDIATE`); err == nil {
			err = w.applyEach(batch)
		}
	}
	if err == nil {
		_, err = w.tx.exec(`COMMIT`)
	}
	if err != nil {
		w.tx.exec(`ROLLBACK`)
	}
	return err
}

// applyAll runs the changes up to the first that fails.
func (w *writer) applyAll(batch []*change) error {
	for _, c := range batch {
		if c.err = c.ctx.Err(); c.err != nil {
			continue
		}
		if c.err = c.applySafely(w.tx); c.err != nil {
			return c.err
		}
	}
	return nil
}

// applyEach runs every change in a savepoint, so that one that fails is undone alone. A full or failing
// disk ends the batch: SQLite may have rolled back everything.
func (w *writer) applyEach(batch []*change) error {
	for _, c := range batch {
		if c.err = c.ctx.Err(); c.err != nil {
			continue
		}
		if _, err := w.tx.exec(`SAVEPOINT change`); err != nil {
			return err
		}
		if c.err = c.applySafely(w.tx); unavailable(c.err) {
			return c.err
		}
		if c.err != nil {
			if _, err := w.tx.exec(`ROLLBACK TO change`); err != nil {
				return err
			}
		}
		if _, err := w.tx.exec(`RELEASE change`); err != nil {
			return err
		}
	}
	return nil
}

// applySafely keeps a bug in one change from ending the process with everybody's.
func (c *change) applySafely(t *tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a change: %v", p)
		}
	}()
	return c.apply(t)
}

func (w *writer) close() error {
	close(w.changes)
	<-w.stopped
	for _, st := range w.tx.prepared {
		st.Close()
	}
	return errors.Join(w.tx.conn.Close(), w.db.Close())
}

// tx runs prepared statements on the writer's connection, inside its transaction.
type tx struct {
	conn     *sql.Conn
	prepared map[string]*sql.Stmt
	echo     *slog.Logger
}

func (t *tx) statement(query string) (*sql.Stmt, error) {
	if t.echo != nil {
		t.echo.Info("sql", "statement", query)
	}
	if s := t.prepared[query]; s != nil {
		return s, nil
	}
	s, err := t.conn.PrepareContext(context.Background(), query)
	if err == nil {
		t.prepared[query] = s
	}
	return s, err
}

// exec returns how many rows the statement changed.
func (t *tx) exec(query string, args ...any) (int64, error) {
	s, err := t.statement(query)
	if err != nil {
		return 0, err
	}
	res, err := s.Exec(args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// get scans the only row of a query; errNotFound when there is none.
func (t *tx) get(query string, args []any, targets ...any) error {
	s, err := t.statement(query)
	if err != nil {
		return err
	}
	return notFound(s.QueryRow(args...).Scan(targets...))
}

// read returns a prepared statement of the reading pool.
func (s *store) read(query string) (*sql.Stmt, error) {
	if s.echo != nil {
		s.echo.Info("sql", "statement", query)
	}
	if st, ok := s.statements.Load(query); ok {
		return st.(*sql.Stmt), nil
	}
	st, err := s.reads.Prepare(query)
	if err != nil {
		return nil, dbErr(err)
	}
	if other, raced := s.statements.LoadOrStore(query, st); raced {
		st.Close()
		return other.(*sql.Stmt), nil
	}
	return st, nil
}

// get is tx.get outside a transaction. The request's ctx is not handed to the driver: watching it
// would cost a goroutine per query, and no query here is long.
func (s *store) get(query string, args []any, targets ...any) error {
	st, err := s.read(query)
	if err != nil {
		return err
	}
	return dbErr(notFound(st.QueryRow(args...).Scan(targets...)))
}

// collect scans all rows; fields gives the scan targets of one value.
func collect[T any](rows *sql.Rows, fields func(*T) []any) ([]T, error) {
	defer rows.Close()
	var all []T
	for rows.Next() {
		var one T
		if err := rows.Scan(fields(&one)...); err != nil {
			return nil, dbErr(err)
		}
		all = append(all, one)
	}
	return all, dbErr(rows.Err())
}

// all reads every row of a query outside a transaction.
func all[T any](s *store, query string, args []any, fields func(*T) []any) ([]T, error) {
	st, err := s.read(query)
	if err != nil {
		return nil, err
	}
	rows, err := st.Query(args...)
	if err != nil {
		return nil, dbErr(err)
	}
	return collect(rows, fields)
}

// notFound keeps database/sql's error inside this file.
func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return errNotFound
	}
	return err
}

// dbErr translates the driver's errors, by SQLite's result codes and never by their text.
func dbErr(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
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

// unavailable tells whether an error of a statement means a full or failing disk, not something about the change.
func unavailable(err error) bool { return errors.Is(dbErr(err), errUnavailable) }

// bit is b for an integer column; not every engine converts a bool.
func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// --- users ---

// emailKey folds ASCII letters only: Unicode folding would let K (U+212A, the Kelvin sign) log in as k.
func emailKey(email string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, email)
}

// userByLogin finds who logs in with this email. The exact spelling wins, for adopted case twins.
func (s *store) userByLogin(email string) (u user, err error) {
	err = s.get(`SELECT `+userColumns+` FROM users u WHERE u.email_key IN ($1, $2) ORDER BY u.email_key = $1 DESC LIMIT 1`,
		[]any{email, emailKey(email)}, u.fields()...)
	return u, err
}

// userByID finds the subject of a token or the user named in a path.
func (s *store) userByID(id string) (u user, err error) {
	err = s.get(`SELECT `+userColumns+` FROM users u WHERE u.id = $1`, []any{id}, u.fields()...)
	return u, err
}

func (t *tx) userByID(id string) (u user, err error) {
	err = t.get(`SELECT `+userColumns+` FROM users u WHERE u.id = $1`, []any{id}, u.fields()...)
	return u, err
}

// createUser adds a user; its seq is ignored. errConflict when the email is taken.
func (s *store) createUser(ctx context.Context, by principal, u user, allowed func(actor user) error) error {
	return s.writer.do(ctx, func(t *tx) error {
		if err := t.recheck(by, allowed); err != nil {
			return err
		}
		var twin bool // an adopted one that answers to exactly this spelling
		if err := t.get(`SELECT EXISTS (SELECT 1 FROM users WHERE email_key = $1)`, []any{u.email}, &twin); err != nil {
			return err
		}
		if twin {
			return errConflict
		}
		_, err := t.exec(`INSERT INTO users (id, email, email_key, display_name, password_hash, default_password, role, org_id, status, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			u.id, u.email, emailKey(u.email), u.displayName, u.passwordHash, bit(u.defaultPassword), u.role, u.orgID, u.status, u.createdAt)
		return err
	})
}

// recheck reads the actor again, inside the transaction: whoever was demoted, suspended or logged out
// since the request was authenticated changes nothing any more. A principal without a session is
// the operator's shell or the server itself, and allowed is not asked; a bearer always has one (checkClaims). The
// attack: an org_admin is demoted while its request waits for bcrypt or for the writer.
func (t *tx) recheck(by principal, allowed func(actor user) error) error {
	if by.sessionID == "" {
		return nil
	}
	var actor user
	err := t.get(`SELECT `+userColumns+` FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.id = $1 AND u.status = 'active'`, []any{by.sessionID}, actor.fields()...)
	if errors.Is(err, errNotFound) {
		return errNoSession
	}
	if err != nil {
		return err
	}
	return allowed(actor)
}

// edit is what a change to a user does besides changing its row.
type edit struct {
	endSessions bool
	remove      bool
}

// editUser changes one user. apply decides inside the transaction, on the actor and the target as
// they are then, and may alter the target's role, organisation, status and password. The last active
// superadmin stays one: that is checked after the change, so no kind of change can miss it.
func (s *store) editUser(ctx context.Context, by principal, id string, apply func(actor user, target *user) (edit, error)) (before, after user, err error) {
	err = s.writer.do(ctx, func(t *tx) error {
		before, after = user{}, user{}
		actor := by.user
		if err := t.recheck(by, func(fresh user) error { actor = fresh; return nil }); err != nil {
			return err
		}
		var err error
		if before, err = t.userByID(id); err != nil {
			return err
		}
		after = before
		do, err := apply(actor, &after)
		if err != nil {
			return err
		}
		return t.saveUser(before, after, do)
	})
	return before, after, err
}

// saveUser writes what editUser's apply decided and then checks that a superadmin is left.
func (t *tx) saveUser(before, after user, do edit) error {
	if do.remove {
		if _, err := t.exec(`DELETE FROM users WHERE id = $1`, after.id); err != nil {
			return err
		}
	} else if _, err := t.exec(`UPDATE users SET role = $1, org_id = $2, status = $3, password_hash = $4, default_password = $5 WHERE id = $6`,
		after.role, after.orgID, after.status, after.passwordHash, bit(after.defaultPassword), after.id); err != nil {
		return err
	}
	if do.endSessions {
		if _, err := t.exec(`DELETE FROM sessions WHERE user_id = $1`, after.id); err != nil {
			return err
		}
	}
	if before.role != superadmin || before.status != statusActive {
		return nil
	}
	var remains bool
	if err := t.get(`SELECT EXISTS (SELECT 1 FROM users WHERE role = 'superadmin' AND status = 'active')`, nil, &remains); err != nil {
		return err
	}
	if !remains {
		return errLastSuperadmin
	}
	return nil
}

// userFilter selects users of one organisation, or of every one; the other fields select all when empty.
type userFilter struct {
	everyOrg                         bool
	orgID, emailPrefix, role, status string
}

// where returns conditions for the filter and their values; values of the request are only ever arguments.
func (f userFilter) where(args ...any) (string, []any) {
	var b strings.Builder
	add := func(condition string, value string) {
		args = append(args, value)
		fmt.Fprintf(&b, " AND "+condition, len(args))
	}
	if !f.everyOrg {
		add("u.org_id = $%d", f.orgID)
	}
	if f.emailPrefix != "" {
		add("u.email_key >= $%d", emailKey(f.emailPrefix))
		add("u.email_key < $%d", emailKey(f.emailPrefix)+"\U0010FFFF")
	}
	if f.role != "" {
		add("u.role = $%d", f.role)
	}
	if f.status != "" {
		add("u.status = $%d", f.status)
	}
	return b.String(), args
}

// listUsers returns up to limit users after the given seq, in order of creation.
func (s *store) listUsers(f userFilter, after int64, limit int) ([]user, error) {
	where, args := f.where(after, limit)
	return all(s, `SELECT `+userColumns+` FROM users u WHERE u.seq > $1`+where+` ORDER BY u.seq LIMIT $2`, args, (*user).fields)
}

// countUsers counts what listUsers would return without limits. It reads an index, not the table.
func (s *store) countUsers(f userFilter) (n int64, err error) {
	where, args := f.where()
	err = s.get(`SELECT count(*) FROM users u WHERE 1 = 1`+where, args, &n)
	return n, err
}

// defaultPasswordUser returns the email of an active user who still has the published default password.
func (s *store) defaultPasswordUser() (email string, err error) {
	err = s.get(`SELECT email FROM users WHERE default_password = 1 AND status = 'active' LIMIT 1`, nil, &email)
	return email, err
}

// markDefaultPassword notes that a user, as read before, has the published default password.
func (s *store) markDefaultPassword(ctx context.Context, u user) error {
	return s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec(`UPDATE users SET default_password = 1 WHERE id = $1 AND password_hash = $2`, u.id, u.passwordHash)
		return err
	})
}

// --- sessions ---

// authenticated returns a living session with its user: what a bearer request may rely on.
func (s *store) authenticated(sessionID string, now time.Time) (p principal, err error) {
	var expires int64
	err = s.get(`SELECT s.expires_at, `+userColumns+` FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.id = $1`,
		[]any{sessionID}, append([]any{&expires}, p.user.fields()...)...)
	switch {
	case errors.Is(err, errNotFound):
		return principal{}, errNoSession
	case err != nil:
		return principal{}, err
	case expires <= now.Unix():
		return principal{}, errSessionExpired
	case p.status != statusActive:
		return principal{}, errSuspended
	}
	p.sessionID = sessionID
	return p, nil
}

// login is a verified password turned into a session.
type login struct {
	user      user   // as read before the password was compared
	newHash   []byte // replaces an outdated hash; nil keeps it
	isDefault bool   // the password is the published default
	session   session
	tokenHash []byte
	address   string // for known_addresses
}

// maxSessions is how many sessions a user can have; a further login ends the one that was not used for
// longest. It bounds what one account can make the server store and list.
const maxSessions = 100

// openSession stores a login. The password hash and the status must still be the ones the decision
// was made on, so that no session appears after an acknowledged password change or suspension;
// otherwise errChanged. It returns the user as it is now.
func (s *store) openSession(ctx context.Context, l login) (u user, err error) {
	err = s.writer.do(ctx, func(t *tx) error {
		u = user{}
		hash := l.newHash
		if hash == nil {
			hash = l.user.passwordHash
		}
		n, err := t.exec(`UPDATE users SET last_login_at = $1, password_hash = $2, default_password = $3 WHERE id = $4 AND password_hash = $5 AND status = 'active'`,
			l.session.createdAt, hash, bit(l.isDefault), l.user.id, l.user.passwordHash)
		if err == nil && n == 0 {
			err = errChanged
		}
		if err != nil {
			return err
		}
		ss := l.session
		if _, err = t.exec(`INSERT INTO sessions (id, user_id, token_hash, created_at, last_used_at, expires_at, ends_at, ip, user_agent)
			VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8)`, ss.id, l.user.id, l.tokenHash, ss.createdAt, ss.expiresAt, ss.endsAt, ss.ip, ss.userAgent); err != nil {
			return err
		}
		if _, err = t.exec(`INSERT INTO known_addresses (user_id, address, seen_at) VALUES ($1, $2, $3)
			ON CONFLICT (user_id, address) DO UPDATE SET seen_at = excluded.seen_at`, l.user.id, l.address, ss.createdAt); err != nil {
			return err
		}
		if _, err = t.exec(`DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE user_id = $1 ORDER BY last_used_at DESC, id = $2 DESC LIMIT 1000000 OFFSET $3)`,
			l.user.id, ss.id, maxSessions); err != nil {
			return err
		}
		u, err = t.userByID(l.user.id)
		return err
	})
	return u, err
}

// knownAddress tells whether a session of the user was opened from this address since the given time.
func (s *store) knownAddress(userID, address string, since time.Time) (known bool, err error) {
	err = s.get(`SELECT EXISTS (SELECT 1 FROM known_addresses WHERE user_id = $1 AND address = $2 AND seen_at > $3)`,
		[]any{userID, address, since.Unix()}, &known)
	return known, err
}

// rotation is one use of a refresh token.
type rotation struct {
	candidates    []candidate // what the presented token can mean
	now           time.Time
	idle, grace   time.Duration
	ip, userAgent string
}

// candidate is a session, the hash that the presented token has for it, and what would replace it.
type candidate struct {
	sessionID     string
	hash          []byte
	successorHash []byte
	sealed        []byte // the successor, for whoever presents the same token again; nil without grace
}

// rotated is the outcome of a rotation.
type rotated struct {
	user      user
	candidate        // the one that applied
	repeat    []byte // set when the token had been rotated within the grace: the sealed successor to repeat
}

// rotate replaces the current refresh token of a session in one compare-and-swap: of any number of
// concurrent uses of a token exactly one wins. A token that is not current is a stolen or replayed one, and
// the session ends (RFC 9700 section 4.14.2), with errReuse. done.user is set unless the error is errNoSession
// or errSessionExpired; with errReuse it is the id only.
func (s *store) rotate(ctx context.Context, r rotation) (done rotated, err error) {
	exists := func(c candidate) bool { return s.sessionExists(c.sessionID) }
	if s.writer.behind() && !slices.ContainsFunc(r.candidates, exists) {
		return done, errNoSession // a flood of made-up tokens must not fill the queue
	}
	var refusal error // stays when the change commits: ending a session must not be rolled back
	err = s.writer.do(ctx, func(t *tx) error {
		done, refusal = rotated{}, errNoSession
		for _, c := range r.candidates {
			done.candidate = c
			var err error
			if refusal, err = t.rotateOne(r, c, &done); err != nil || refusal != errNoSession {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = refusal
	}
	return done, err
}

// sessionExists errs on the side of true: the writer looks again.
func (s *store) sessionExists(id string) bool {
	var found bool
	err := s.get(`SELECT EXISTS (SELECT 1 FROM sessions WHERE id = $1)`, []any{id}, &found)
	return found || err != nil
}

// rotateOne tries one candidate. A refusal is an outcome that commits; an error rolls the change back.
func (t *tx) rotateOne(r rotation, c candidate, done *rotated) (refusal, err error) {
	var userID string
	err = t.get(`UPDATE sessions SET token_hash = $1, parent_hash = token_hash, sealed = $2, last_used_at = $3,
			expires_at = CASE WHEN $4 < ends_at THEN $4 ELSE ends_at END, ip = $5, user_agent = $6
		WHERE id = $7 AND token_hash = $8 AND expires_at > $3 RETURNING user_id`,
		[]any{c.successorHash, c.sealed, r.now.Unix(), r.now.Add(r.idle).Unix(), r.ip, r.userAgent, c.sessionID, c.hash}, &userID)
	if errors.Is(err, errNotFound) {
		userID, refusal, err = t.explainStale(r, c, done)
	}
	if err != nil || refusal != nil {
		return refusal, err
	}
	if done.user, err = t.userByID(userID); err != nil {
		return nil, err
	}
	if done.user.status != statusActive { // suspension ends sessions; this holds even if one were left
		_, err := t.exec(`DELETE FROM sessions WHERE user_id = $1`, userID)
		return errSuspended, err
	}
	return nil, nil
}

// explainStale finds out why a token did not rotate, and acts on it. The order matters. No row: logged out, or never
// ours. Current, or past expires_at: merely too late. The direct parent within the grace: an answer was lost,
// repeat it. All else was used before; thief and owner cannot be told apart (RFC 9700 section 4.14.2), so the session ends.
func (t *tx) explainStale(r rotation, c candidate, done *rotated) (userID string, refusal, err error) {
	var current, parent, sealed []byte
	var lastUsed, expires int64
	err = t.get(`SELECT user_id, token_hash, parent_hash, sealed, last_used_at, expires_at FROM sessions WHERE id = $1`,
		[]any{c.sessionID}, &userID, &current, &parent, &sealed, &lastUsed, &expires)
	switch {
	case errors.Is(err, errNotFound):
		return "", errNoSession, nil
	case err != nil:
		return "", nil, err
	case bytes.Equal(current, c.hash) || expires <= r.now.Unix():
		return userID, errSessionExpired, nil
	case r.grace > 0 && sealed != nil && bytes.Equal(parent, c.hash) && r.now.Unix()-lastUsed < int64(r.grace/time.Second):
		done.repeat = sealed // the direct parent, and its successor is unused or it would be the parent now
		return userID, nil, nil
	}
	done.user.id = userID
	_, err = t.exec(`DELETE FROM sessions WHERE id = $1`, c.sessionID)
	return userID, errReuse, err
}

// endSession ends one session of a user, or any user's when userID is empty. It tells whose it was; "" when there was none.
func (s *store) endSession(ctx context.Context, sessionID, userID string) (owner string, err error) {
	err = s.writer.do(ctx, func(t *tx) error {
		owner = ""
		err := t.get(`DELETE FROM sessions WHERE id = $1 AND ($2 = '' OR user_id = $2) RETURNING user_id`, []any{sessionID, userID}, &owner)
		if errors.Is(err, errNotFound) {
			return nil
		}
		return err
	})
	return owner, err
}

// endSessions ends all sessions of a user and tells how many there were.
func (s *store) endSessions(ctx context.Context, userID string) (n int64, err error) {
	err = s.writer.do(ctx, func(t *tx) (err error) {
		n, err = t.exec(`DELETE FROM sessions WHERE user_id = $1`, userID)
		return err
	})
	return n, err
}

// sessionsOf lists the living sessions of a user, the latest login first.
func (s *store) sessionsOf(userID string, now time.Time) ([]session, error) {
	return all(s, `SELECT id, user_id, created_at, last_used_at, expires_at, ends_at, ip, user_agent
		FROM sessions WHERE user_id = $1 AND expires_at > $2 ORDER BY created_at DESC, id`, []any{userID, now.Unix()}, func(x *session) []any {
		return []any{&x.id, &x.userID, &x.createdAt, &x.lastUsedAt, &x.expiresAt, &x.endsAt, &x.ip, &x.userAgent}
	})
}

// --- settings and housekeeping ---

// setting reads one row of settings, or errNotFound.
func (s *store) setting(name string) (value []byte, err error) {
	err = s.get(`SELECT value FROM settings WHERE name = $1`, []any{name}, &value)
	return value, err
}

func (t *tx) setSetting(name string, value []byte) error {
	_, err := t.exec(`INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
	return err
}

// setSetting is a change by somebody who must still be allowed to make it when it is made.
func (s *store) setSetting(ctx context.Context, by principal, name string, value []byte, allowed func(actor user) error) error {
	return s.writer.do(ctx, func(t *tx) error {
		if err := t.recheck(by, allowed); err != nil {
			return err
		}
		return t.setSetting(name, value)
	})
}

func (s *store) deleteSetting(ctx context.Context, name string) error {
	return s.writer.do(ctx, func(t *tx) error {
		_, err := t.exec(`DELETE FROM settings WHERE name = $1`, name)
		return err
	})
}

// healthy returns nil when a real write reached the disk, in the file that the next start will find.
func (s *store) healthy(ctx context.Context, now time.Time) error {
	if file, err := os.Stat(s.path); err != nil || !os.SameFile(file, s.file) {
		return fmt.Errorf("%w: the database file was removed or replaced", errUnavailable)
	}
	return s.writer.do(ctx, func(t *tx) error { return t.setSetting(settingHealth, fmt.Append(nil, now.Unix())) })
}

// exclusively runs f while no other process can write to the database: the lock for the key directory. What f does
// to files cannot be rolled back, so it runs once, also when the change runs again.
func (s *store) exclusively(ctx context.Context, f func() error) error {
	once := sync.OnceValue(f)
	return s.writer.do(ctx, func(*tx) error { return once() })
}

// purgeStep is how often purge runs; the horizon moves at most twice as far and is used as late.
const purgeStep = time.Hour

// purge removes what expired before the horizon and returns the horizon. The horizon follows the
// clock slowly, so that a clock that jumps ahead for a while costs nobody a session or a key.
func (s *store) purge(ctx context.Context, now time.Time, keepAddresses time.Duration) (horizon time.Time, removed int64, err error) {
	err = s.writer.do(ctx, func(t *tx) error {
		horizon = now
		var stored []byte
		var last int64
		err := t.get(`SELECT value FROM settings WHERE name = $1`, []any{settingHorizon}, &stored)
		if err == nil {
			if _, err := fmt.Sscan(string(stored), &last); err != nil {
				return err
			}
			if limit := time.Unix(last, 0).Add(2 * purgeStep); limit.Before(now) {
				horizon = limit
			}
		} else if !errors.Is(err, errNotFound) {
			return err
		}
		return t.setSetting(settingHorizon, fmt.Append(nil, horizon.Unix()))
	})
	if err != nil {
		return horizon, 0, err
	}
	horizon = horizon.Add(-2 * purgeStep) // one step too far is taken back
	sessions, err := s.purgeTable(ctx, horizon,
		`SELECT id, '' FROM sessions WHERE expires_at < $1 AND id > CAST($2 AS TEXT) || $3 ORDER BY id LIMIT 200`,
		`DELETE FROM sessions WHERE id = CAST($1 AS TEXT) || $2 AND expires_at < $3`)
	if err != nil {
		return horizon, sessions, err
	}
	addresses, err := s.purgeTable(ctx, horizon.Add(-keepAddresses),
		`SELECT user_id, address FROM known_addresses WHERE seen_at < $1 AND (user_id, address) > ($2, $3) ORDER BY user_id, address LIMIT 200`,
		`DELETE FROM known_addresses WHERE user_id = $1 AND address = $2 AND seen_at < $3`)
	return horizon, sessions + addresses, err
}

// purgeTable walks a table once, in the order of its key of two texts. Rows are searched with a reader, because
// the writer must not scan a million of them, and deleted a few at a time, if they are still too old.
func (s *store) purgeTable(ctx context.Context, before time.Time, find, remove string) (removed int64, err error) {
	type key struct{ a, b string }
	for last := (key{}); ; {
		keys, err := all(s, find, []any{before.Unix(), last.a, last.b}, func(k *key) []any { return []any{&k.a, &k.b} })
		if err != nil || len(keys) == 0 {
			return removed, err
		}
		last = keys[len(keys)-1]
		var gone int64
		err = s.writer.do(ctx, func(t *tx) error {
			gone = 0
			for _, k := range keys {
				n, err := t.exec(remove, k.a, k.b, before.Unix())
				if err != nil {
					return err
				}
				gone += n
			}
			return nil
		})
		if err != nil {
			return removed, err
		}
		removed += gone
	}
}
