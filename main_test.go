package main

// How this program is tested. Almost everything is asked from outside: a real listener, the handler
// that run serves, real SQLite in a temporary directory, a clock that the test moves. Pure rooms
// (rbac, jwt, config) are tested as tables of input and verdict; flows as short stories; races,
// parsers and structure as properties. Nothing sleeps to wait for time to pass.
//
// Names are Test<Room>_<Property>: go test -run TestKeys_ runs a room, go test -v prints the claims.
//
//	harness                       below
//	=== rbac.go ===               role matrix, object rules
//	=== jwt.go ===                vectors, forged tokens, JSON checks, fuzzing
//	=== keys.go ===               first start, damage, rotation, kill at every step
//	=== passwords.go ===          rules, hashing queue, throttle
//	=== db.go, adopt.go ===       writer, schema, adoption, purge
//	=== http.go, oidc.go ===      bad input, errors, headers, CORS, proxies
//	=== handlers.go ===           every endpoint, races, administration
//	=== config.go ===             faults, sources, documents
//	=== main.go, shell.go ===     start, stop, commands, durability
//	=== structure ===             rooms and imports, README
//	=== benchmarks ===

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain lets the test binary be the program: with PICO_AUTH_RUN_MAIN set it runs main, so that
// tests can start, stop and kill real processes without building another binary.
func TestMain(m *testing.M) {
	if os.Getenv("PICO_AUTH_RUN_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// testClock is the time of one test server.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func newTestClock() *testClock { return &testClock{now: time.Now().Truncate(time.Second)} }

func (c *testClock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// syncBuffer is a log that a server writes while a test reads it.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// testKeys is one key directory for all tests: making a key takes 100 ms and more under -race.
var testKeys = sync.OnceValue(func() map[string][]byte {
	dir, err := os.MkdirTemp("", "pico-auth-keys")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if _, err := openKeyring(dir, 2048); err != nil {
		panic(err)
	}
	files := map[string][]byte{}
	for _, name := range []string{"private.pem", "public.pem"} {
		if files[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			panic(err)
		}
	}
	return files
})

// writeTestKeys puts the shared pair into dir.
func writeTestKeys(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range testKeys() {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	adminEmail    = "admin@example.com"
	adminPassword = "correct horse"
	userPassword  = "battery staple"
)

// testServer is a server as run makes it, on a listener of its own. Its admin is adminEmail.
type testServer struct {
	testing.TB
	*app
	srv   *server
	clock *testClock
	logs  *syncBuffer
	url   string
	dir   string
}

// newTestServer starts a server with bcrypt cost 4, which validation would refuse, in t.TempDir().
func newTestServer(t testing.TB, options ...func(*config)) *testServer {
	t.Helper()
	dir := t.TempDir()
	cfg := defaultConfig()
	cfg.dataDir, cfg.databaseURL = filepath.Join(dir, "keys"), "sqlite:///"+filepath.Join(dir, "auth.db")
	cfg.adminEmail, cfg.adminPassword, cfg.bcryptCost = adminEmail, adminPassword, 4
	for _, o := range options {
		o(cfg)
	}
	writeTestKeys(t, cfg.dataDir)
	ts := &testServer{TB: t, clock: newTestClock(), logs: &syncBuffer{}, dir: dir}
	a, err := openApp(cfg, ts.clock.read, newLogger(cfg, ts.logs))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	hasher := newHasher(ctx, cfg.bcryptCost, 2, a.now)
	if err := a.ensureAdmin(ctx, hasher); err != nil {
		t.Fatal(err)
	}
	ts.app, ts.srv = a, newServer(cfg, a.store, a.keys, hasher, a.now, a.log)
	listener := httptest.NewServer(ts.srv)
	ts.url = listener.URL
	t.Cleanup(func() {
		listener.Close()
		cancel()
		if err := a.store.close(); err != nil {
			t.Error(err)
		}
	})
	return ts
}

// answer is a response read to its end.
type answer struct {
	status int
	header http.Header
	body   string
	json   map[string]any // nil when the body is no JSON object
}

func (a answer) text(name string) string {
	s, _ := a.json[name].(string)
	return s
}

// do sends a request and reads the answer. token may be empty; body may be nil, a string sent as it is, or
// anything else, which is sent as JSON. headers are "Name: value" and replace what do would send.
func (ts *testServer) do(method, path, token string, body any, headers ...string) answer {
	ts.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			ts.Fatal(err)
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, ts.url+path, in)
	if err != nil {
		ts.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if req.Header.Set(name, value); name == "Host" {
			req.Host = value
		}
	}
	res, err := noRedirects.Do(req)
	if err != nil {
		ts.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		ts.Fatalf("%s %s: reading the answer: %v", method, path, err)
	}
	a := answer{status: res.StatusCode, header: res.Header, body: string(data)}
	json.Unmarshal(data, &a.json)
	return a
}

var noRedirects = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{MaxIdleConnsPerHost: 100},
}

// want fails the test unless the answer has this status and, if given, this code.
func (ts *testServer) want(a answer, status int, code string, what string) answer {
	ts.Helper()
	if a.status != status || (code != "" && a.text("code") != code) {
		ts.Fatalf("%s = %d %s; want %d %s", what, a.status, a.body, status, code)
	}
	return a
}

const auth = "/api/v1/auth"

type object = map[string]any

// mustUser adds an active user straight to the store and returns its id.
func (ts *testServer) mustUser(email string, r role, org string) string {
	ts.Helper()
	hash, err := ts.srv.hasher.hash(context.Background(), userPassword)
	if err != nil {
		ts.Fatal(err)
	}
	u := user{id: newID(), email: email, passwordHash: hash, role: r, orgID: org, status: statusActive, createdAt: ts.now().Unix()}
	if err := ts.store.createUser(context.Background(), principal{}, u, nil); err != nil {
		ts.Fatal(err)
	}
	return u.id
}

// mustLogin returns the tokens of a new session.
func (ts *testServer) mustLogin(email, password string) (access, refresh string) {
	ts.Helper()
	a := ts.want(ts.do("POST", auth+"/login", "", object{"email": email, "password": password}), 200, "", "login of "+email)
	return a.text("access_token"), a.text("refresh_token")
}

func (ts *testServer) mustAdmin() (access string) {
	ts.Helper()
	access, _ = ts.mustLogin(adminEmail, adminPassword)
	return access
}

// refresh uses a refresh token.
func (ts *testServer) refresh(token string) answer {
	ts.Helper()
	return ts.do("POST", auth+"/refresh", "", object{"refresh_token": token})
}

var discardLog = slog.New(slog.DiscardHandler)

// TestHarness_Works is the shortest story: the harness logs in and out again.
func TestHarness_Works(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	access, refresh := ts.mustLogin("ada@example.com", userPassword)
	ts.want(ts.do("GET", auth+"/me", access, nil), 200, "", "GET /me")
	ts.want(ts.refresh(refresh), 200, "", "refresh")
	ts.want(ts.refresh(refresh), 401, "invalid_token", "second use of a refresh token")
	ts.want(ts.do("GET", auth+"/me", access, nil), 401, "invalid_token", "GET /me after the reuse")
}
