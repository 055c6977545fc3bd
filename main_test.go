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
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"hash"
	"io"
	"log/slog"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"gopkg.in/yaml.v3"
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

// must is for steps of a test that are not what it is about.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
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

// === rbac.go ===

// rbacTable writes a line for each row: its name, and a cell for each column.
func rbacTable(rows, columns []string, cell func(row, column string) string) string {
	table := fmt.Sprintf("\n%-13s %s\n", "", strings.Join(columns, " "))
	for _, row := range rows {
		table += fmt.Sprintf("%-13s", row)
		for _, column := range columns {
			table += fmt.Sprintf(" %-*s", len(column), cell(row, column))
		}
		table = strings.TrimRight(table, " ") + "\n"
	}
	return table
}

// TestRBAC_Matrix is the policy a second time, written by hand: whoever changes it does so twice.
func TestRBAC_Matrix(t *testing.T) {
	t.Parallel()
	someone := func(s string) user { // role@org
		r, org, _ := strings.Cut(s, "@")
		return user{role: r, orgID: org}
	}
	mark := func(yes bool, letter string) string { return map[bool]string{true: letter, false: "-"}[yes] }
	permissions := map[string]permission{"denied": denied, "public": public, "self": permSelf, "read": permUsersRead, "edit": permUsersEdit, "org": permOrgEdit, "settings": permSettings}
	got := rbacTable([]string{superadmin, orgAdmin, operator, viewer, "auditor", "Superadmin", ""},
		[]string{"denied", "public", "self", "read", "edit", "org", "settings", "+superadmin", "+org_admin", "+operator", "+viewer", "+auditor", "+"}, func(r, column string) string {
			if grant, isGrant := strings.CutPrefix(column, "+"); isGrant {
				return mark(mayGrant(user{role: r}, grant), "x")
			}
			return mark(allows(r, permissions[column]), "x")
		})
	got += rbacTable([]string{"superadmin@a", "org_admin@a", "org_admin@", "operator@a", "auditor@a", "@"},
		[]string{"viewer@a", "org_admin@a", "auditor@a", "superadmin@a", "viewer@b", "superadmin@b", "viewer@A", "viewer@"}, func(actor, target string) string {
			return mark(mayReadUser(someone(actor), someone(target)), "r") + mark(mayEditUser(someone(actor), someone(target)), "w")
		})
	const want = `
              denied public self read edit org settings +superadmin +org_admin +operator +viewer +auditor +
superadmin    -      -      x    x    x    x   x        x           x          x         x       -        -
org_admin     -      -      x    x    x    -   -        -           x          x         x       -        -
operator      -      -      x    -    -    -   -        -           -          -         -       -        -
viewer        -      -      x    -    -    -   -        -           -          -         -       -        -
auditor       -      -      x    -    -    -   -        -           -          -         -       -        -
Superadmin    -      -      x    -    -    -   -        -           -          -         -       -        -
              -      -      x    -    -    -   -        -           -          -         -       -        -

              viewer@a org_admin@a auditor@a superadmin@a viewer@b superadmin@b viewer@A viewer@
superadmin@a  rw       rw          rw        rw           rw       rw           rw       rw
org_admin@a   rw       rw          rw        r-           --       --           --       --
org_admin@    --       --          --        --           --       --           --       rw
operator@a    --       --          --        --           --       --           --       --
auditor@a     --       --          --        --           --       --           --       --
@             --       --          --        --           --       --           --       --
`
	if got != want {
		t.Errorf("what roles may do (permissions and grants; whom they may read and change) is%s\nwant%s", got, want)
	}
}

// TestRBAC_NamelessOrg: adopted databases can hold an organisation with an empty name; it is one like any other.
func TestRBAC_NamelessOrg(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("head@example.com", orgAdmin, "")
	access, _ := ts.mustLogin("head@example.com", userPassword)
	if a := ts.do("GET", auth+"/users", access, nil); a.status != 200 || a.json["total"] != 1.0 || strings.Contains(a.body, adminEmail) {
		t.Errorf("GET /users (org_admin of the organisation \"\") = %d %s; want itself alone", a.status, a.body)
	}
}

// === jwt.go ===

// segment and unsegment are base64url by other code than decodeCanonical.
func segment[T string | []byte](b T) string { return base64.RawURLEncoding.EncodeToString([]byte(b)) }
func unsegment(s string) []byte             { return must(base64.RawURLEncoding.Strict().DecodeString(s)) }
func bigNumber(s string) *big.Int           { return new(big.Int).SetBytes(unsegment(s)) }

func TestJWT_RFC7515A2(t *testing.T) {
	t.Parallel()
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{E: 65537,
		N: bigNumber("ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ")},
		D: bigNumber("Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ"),
		Primes: []*big.Int{bigNumber("4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc"),
			bigNumber("uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc")}}
	key.Precompute()
	const want = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
	got, err := signRS256(key, segment(`{"alg":"RS256"}`)+"."+segment("{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}"))
	if err != nil || segment(got) != want {
		t.Errorf("signRS256(RFC 7515 A.2) = %s, %v; want %s", segment(got), err, want)
	}
}

// forger is a server, a good token of one of its users in parts, and what an attacker could wish for: our key.
type forger struct {
	*testServer
	key                        *rsa.PrivateKey
	token, refreshToken, kid   string
	header, payload, signature string // segments
	claims                     string // the payload as JSON
}

func newForger(t *testing.T) *forger {
	t.Helper()
	ts := newTestServer(t)
	signing := ts.keys.current().signing()
	f := &forger{testServer: ts, key: signing.private, kid: signing.kid}
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	f.token, f.refreshToken = ts.mustLogin("ada@example.com", userPassword)
	parts := strings.Split(f.token, ".")
	f.header, f.payload, f.signature = parts[0], parts[1], parts[2]
	f.claims = string(unsegment(f.payload))
	f.present("control", 200, f.token)
	f.present("control signed again", 200, f.signed(segment(`{"alg":"RS256","kid":"`+f.kid+`","typ":"JWT"}`), f.payload))
	return f
}

// signed is RS256 with the forger's key over two segments, whatever they are.
func (f *forger) signed(header, payload string) string {
	digest := sha256.Sum256([]byte(header + "." + payload))
	return header + "." + payload + "." + segment(must(rsa.SignPKCS1v15(nil, f.key, crypto.SHA256, digest[:])))
}

// with is the claims with one member set to a JSON text, or removed when that is empty.
func (f *forger) with(name, raw string) string {
	var members map[string]json.RawMessage
	json.Unmarshal([]byte(f.claims), &members)
	if members[name] = json.RawMessage(raw); raw == "" {
		delete(members, name)
	}
	return string(must(json.Marshal(members)))
}

// present shows a token at GET /me. One with CR or LF, which no header can carry, goes to verifyJWT itself.
func (f *forger) present(name string, status int, token string) {
	f.Helper()
	if strings.ContainsAny(token, "\r\n") {
		if c, err := f.keys.current().verify(token, expected{f.cfg.issuer, f.cfg.audience, f.now(), false}); err == nil {
			f.Errorf("verify (%.120q) = %v; want an error", name, c)
		}
		return
	}
	f.check(name, status, f.do("GET", auth+"/me", "", nil, "Authorization: Bearer "+token))
}

func (f *forger) check(name string, status int, a answer) {
	f.Helper()
	challenge, kind := a.header.Get("WWW-Authenticate"), a.header.Get("Content-Type")
	if a.status != status || status == 401 && (!strings.HasPrefix(challenge, "Bearer") || kind != "application/problem+json") {
		f.Errorf("GET /me (%.120q) = %d %s, challenge %q, type %q; want %d", name, a.status, a.body, challenge, kind, status)
	}
}

func TestJWT_ForgedHeader(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	for _, alg := range []string{"none", "None", "NONE", "nOnE", ""} {
		in := segment(`{"alg":"`+alg+`","kid":"`+f.kid+`","typ":"JWT"}`) + "." + f.payload + "."
		f.present("alg "+alg+", no signature", 401, in)
		f.present("alg "+alg+", old signature", 401, in+f.signature)
	}
	// Each of these is truly signed with our own key: only the header can be what is wrong. K stands for our kid.
	for _, head := range []string{
		`{"alg":"none","ALG":"RS256","kid":"K","typ":"JWT"}`, `{"ALG":"RS256","alg":"none","kid":"K","typ":"JWT"}`, `{"alg":"RS256","alg":"none","kid":"K","typ":"JWT"}`, `{"alg":"none","alg":"RS256","kid":"K","typ":"JWT"}`,
		`{"kid":"K","alg":"RS256","typ":"JWT"}`, `{"typ":"JWT","alg":"RS256","kid":"K"}`, `{"alg": "RS256","kid":"K","typ":"JWT"}`, `{"alg":"RS256","kid":"K","typ":"JWT"}{}`, `{"alg":"RS256","kid":"K","typ":"at+jwt"}`,
		`{"alg":"rs256","kid":"K","typ":"JWT"}`, `{"alg":256,"kid":"K","typ":"JWT"}`, `{"alg":["RS256"],"kid":"K","typ":"JWT"}`, `{"kid":"K","typ":"JWT"}`, `{"alg":"ES256","kid":"K","typ":"JWT"}`, `{"alg":"EdDSA","kid":"K","typ":"JWT"}`, ``, `null`, `[]`,

		`{"alg":"RS256","typ":"JWT"}`, `{"alg":"RS256","kid":"unknown","typ":"JWT"}`, `{"alg":"RS256","kid":"","typ":"JWT"}`, `{"alg":"RS256","kid":7,"typ":"JWT"}`, `{"alg":"RS256","kid":null,"typ":"JWT"}`,
		`{"alg":"RS256","kid":"../../../../dev/null","typ":"JWT"}`, `{"alg":"RS256","kid":"' OR 1=1--","typ":"JWT"}`, `{"alg":"RS256","kid":"` + strings.Repeat("a", 64<<10) + `","typ":"JWT"}`,

		`{"alg":"RS256","crit":["exp"],"exp":1,"kid":"K","typ":"JWT"}`, `{"alg":"RS256","b64":false,"crit":["b64"],"kid":"K","typ":"JWT"}`, `{"alg":"RS256","crit":["x"],"kid":"K","typ":"JWT","x":1}`,
		`{"alg":"RS256","crit":[],"kid":"K","typ":"JWT"}`, `{"alg":"RS256","crit":"exp","kid":"K","typ":"JWT"}`, `{"alg":"RS256","b64":false,"kid":"K","typ":"JWT"}`, `{"alg":"RS256","kid":"K","typ":"JWT","zip":"DEF"}`, `{"alg":"RS256","cty":"JWT","kid":"K","typ":"JWT"}`,
	} {
		f.present("header "+head[:min(len(head), 80)], 401, f.signed(segment(strings.ReplaceAll(head, "K", f.kid)), f.payload))
	}
	// The attacker signs validly with a key that the header offers; nobody fetches or believes it.
	trap := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("a header made the server ask for %s", r.URL) }))
	defer trap.Close()
	f.key = keysSpare().key
	n, e := jwkNumbers(&f.key.PublicKey)
	x5c := base64.StdEncoding.EncodeToString(x509.MarshalPKCS1PublicKey(&f.key.PublicKey))
	for _, kid := range []string{f.kid, thumbprint(&f.key.PublicKey)} {
		for _, offer := range []string{"", `"jwk":{"kty":"RSA","n":"` + n + `","e":"` + e + `"},`, `"jku":"` + trap.URL + `",`, `"x5u":"` + trap.URL + `",`, `"x5c":["` + x5c + `"],`} {
			f.present("attacker's key, "+offer, 401, f.signed(segment(`{"alg":"RS256",`+offer+`"kid":"`+kid+`","typ":"JWT"}`), f.payload))
		}
	}
}

// TestJWT_ForgedAlgorithm signs with other algorithms, under a header that says so and under ours, which does not.
func TestJWT_ForgedAlgorithm(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	try := func(alg string, sign func(input []byte) []byte) {
		for _, header := range []string{segment(`{"alg":"` + alg + `","kid":"` + f.kid + `","typ":"JWT"}`), f.header} {
			in := header + "." + f.payload
			f.present(alg, 401, in+"."+segment(sign([]byte(in))))
		}
	}
	// HMAC keyed with what everybody knows of our key (CVE-2016-10555).
	spki, pkcs1 := must(x509.MarshalPKIXPublicKey(&f.key.PublicKey)), x509.MarshalPKCS1PublicKey(&f.key.PublicKey)
	pem1, pem2 := keysPEM("PUBLIC KEY", spki), keysPEM("RSA PUBLIC KEY", pkcs1)
	n, _ := jwkNumbers(&f.key.PublicKey)
	document := []byte(f.do("GET", jwksPath, "", nil).body)
	for _, secret := range [][]byte{pem1, bytes.TrimSpace(pem1), pem2, bytes.TrimSpace(pem2), spki, pkcs1, f.key.N.Bytes(), []byte(n), document, {}} {
		for alg, h := range map[string]func() hash.Hash{"HS256": sha256.New, "HS384": sha512.New384, "HS512": sha512.New} {
			try(alg, func(in []byte) []byte {
				mac := hmac.New(h, secret)
				mac.Write(in)
				return mac.Sum(nil)
			})
		}
	}
	// Truly signed with our own key.
	for alg, opts := range map[string]crypto.SignerOpts{"RS384": crypto.SHA384, "RS512": crypto.SHA512, "PS256": &rsa.PSSOptions{Hash: crypto.SHA256}} {
		try(alg, func(in []byte) []byte { return must(crypto.SignMessage(f.key, rand.Reader, in, opts)) })
	}
}

func TestJWT_ForgedSignature(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	sig := unsegment(f.signature)
	second, _ := f.mustLogin("ada@example.com", userPassword)
	plusN := new(big.Int).Add(new(big.Int).SetBytes(sig), f.key.N) // the same number modulo n
	for name, s := range map[string][]byte{
		"empty": nil, "cut": sig[:255], "cut in front": sig[1:], "extended": append(bytes.Clone(sig), 0), "extended in front": append([]byte{0}, sig...),
		"all zero": make([]byte, 256), "above the modulus": plusN.FillBytes(make([]byte, 257)), "the modulus": f.key.N.Bytes(),
		"all ones": bytes.Repeat([]byte{0xff}, 256), "one bit flipped": append([]byte{sig[0] ^ 1}, sig[1:]...), "one": append(make([]byte, 255), 1), "huge": make([]byte, 12<<10),
	} {
		f.present("signature "+name, 401, f.header+"."+f.payload+"."+segment(s))
	}
	f.present("signature of another token", 401, f.header+"."+f.payload+second[strings.LastIndexByte(second, '.'):])
	// A token of this length would take work to verify; one with the longest email we can have passes.
	long := func(n int) string { return segment(f.with("email", `"`+strings.Repeat("a", n)+`@example.com"`)) }
	f.present("truly signed, with a long email", 200, f.signed(f.header, long(10_000)))
	f.present("truly signed, but too long", 401, f.signed(f.header, long(20_000)))
}

// TestJWT_OneSpelling: of all texts that decoders take for this token only the canonical one is accepted.
func TestJWT_OneSpelling(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	stray := func(s string) string { // sets an unused bit of the last character
		return s[:len(s)-1] + string(alphabet[strings.IndexByte(alphabet, s[len(s)-1])|1])
	}
	standard := strings.NewReplacer("-", "+", "_", "/").Replace(f.signature)
	for name, s := range map[string]string{"=": f.signature + "=", "==": f.signature + "==", "standard alphabet": standard, "stray bits": stray(f.signature)} {
		if f.present("signature with "+name, 401, f.header+"."+f.payload+"."+s); s == f.signature {
			t.Errorf("signature with %s is no second spelling", name)
		}
	}
	for _, junk := range []string{" ", "\t", "=", "%", "\r", "\n", "\r\n"} {
		for i := range 3 {
			parts := strings.Split(f.token, ".")
			parts[i] = parts[i][:8] + junk + parts[i][8:]
			f.present(fmt.Sprintf("%q in segment %d", junk, i), 401, strings.Join(parts, "."))
		}
		// Refused for its spelling even when the signature covers that very spelling.
		f.present(fmt.Sprintf("%q in the payload, signed", junk), 401, f.signed(f.header, f.payload[:8]+junk+f.payload[8:]))
	}
	padded := segment(f.claims + strings.Repeat(" ", (4-len(f.claims)%3)%3)) // leaves four unused bits
	f.present("spaces after the claims", 200, f.signed(f.header, padded))
	f.present("stray bits in the payload, signed", 401, f.signed(f.header, stray(padded)))
	f.present("= after the payload, signed", 401, f.signed(f.header, padded+"=="))
}

func TestJWT_Shape(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	for _, token := range []string{
		"", ".", "..", "...", f.header, f.header + "." + f.payload, f.header + ".." + f.signature, f.payload + "." + f.signature, f.refreshToken, f.kid,
		f.token + ".", f.token + "." + f.payload, f.token + ".a.b", "." + f.token, f.token + " x", f.token + "," + f.token, f.token + ", Bearer " + f.token, f.token + "\x80",
		`{"payload":"` + f.payload + `","protected":"` + f.header + `","signature":"` + f.signature + `"}`,
		`{"payload":"` + f.payload + `","signatures":[{"protected":"` + f.header + `","signature":"` + f.signature + `"}]}`,
	} {
		f.present(token, 401, token)
	}
	for credentials, status := range map[string]int{"bearer " + f.token: 200, "BEARER " + f.token: 200, "Basic " + f.token: 401, "JWT " + f.token: 401,
		f.token: 401, "Bearer:" + f.token: 401, "Bearer": 401, "": 401} {
		f.check(credentials, status, f.do("GET", auth+"/me?access_token="+f.token, "", nil, "Authorization: "+credentials))
	}
	f.check("token in the query", 401, f.do("GET", auth+"/me?access_token="+f.token, "", nil))
	// Two good ones: which of them counts is what attackers play with.
	recorder, r := httptest.NewRecorder(), httptest.NewRequest("GET", auth+"/me", nil)
	r.Header["Authorization"] = []string{"Bearer " + f.token, "Bearer " + f.token}
	f.srv.ServeHTTP(recorder, r)
	f.check("two Authorization headers", 401, answer{status: recorder.Code, header: recorder.Header(), body: recorder.Body.String()})
	// A megabyte of dots (GO-2025-3553) is refused for its length, before anything is split or looked up.
	dots := strings.Repeat(".", 1<<20)
	_, err := verifyJWT(dots, expected{}, f.keys.current().byHead)
	if a := f.do("GET", auth+"/me", dots, nil); a.status != 401 && a.status != 431 || !errors.Is(err, errMalformed) {
		t.Errorf("GET /me (a megabyte of dots) = %d %s, %v; want 401 or 431, and %v", a.status, a.body, err, errMalformed)
	}
}

// TestJWT_Claims signs wrong claims with our own key and header: what is refused is refused for the claims.
func TestJWT_Claims(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	bob := `"` + f.mustUser("bob@example.com", superadmin, defaultOrg) + `"`
	now := f.now().Unix()
	at := func(seconds int64) string { return strconv.FormatInt(now+seconds, 10) }
	for _, c := range []struct {
		member       string
		good, refuse []string // JSON; "" removes the member
	}{
		{"exp", []string{at(1)}, []string{at(0), at(-1), "", `"` + at(60) + `"`, at(60) + ".5", "-1", "null", "1e300", at(60) + "0000000000", "true", "[" + at(60) + "]"}},
		{"iat", []string{at(60)}, []string{at(61), at(400 * 86400), `"` + at(0) + `"`, "9e18"}},
		{"nbf", nil, []string{at(60), at(-60)}},
		{"admin", nil, []string{"true"}},
		{"iss", []string{`"http://localhost:8100"`}, []string{`"http://localhost:8100/"`, `"https://localhost:8100"`, `"http://LOCALHOST:8100"`, "", "null", `["http://localhost:8100"]`, `""`}},
		{"aud", []string{`["pico-bot"]`, `["x","pico-bot"]`}, []string{"", "[]", "1", `"other"`, `"pico"`, `"pico-bot2"`, `"PICO-BOT"`, "null", `["x"]`, `[["pico-bot"]]`, `{"pico-bot":1}`, `["pico-bot",1]`}},
		{"sub", nil, []string{bob, "", `""`, "7"}},
		{"jti", nil, []string{"", `""`, "7"}},
		{"sid", nil, []string{"", `""`, "null", `"unknown"`, `"' OR 1=1--"`, "7"}},
		{"role", []string{`"superadmin"`}, nil}, // no more than a note for other verifiers
	} {
		for _, raw := range c.good {
			f.present(c.member+" "+raw, 200, f.signed(f.header, segment(f.with(c.member, raw))))
		}
		for _, raw := range c.refuse {
			f.present(c.member+" "+raw, 401, f.signed(f.header, segment(f.with(c.member, raw))))
		}
	}
	open := strings.TrimSuffix(f.claims, "}")
	for _, text := range []string{
		`{"sub":` + bob + `,` + f.claims[1:], open + `,"sub":` + bob + `}`, open + `,"SUB":` + bob + `}`, open + `,"\u0073ub":` + bob + `}`, open + `,"exp":` + at(3600) + `}`,
		f.claims + f.claims, f.claims + "x", "\ufeff" + f.claims, "[" + f.claims + "]", "", "null", "[]", "{}", `"a"`, open,
		strings.Replace(f.claims, "ada@", "a\xff@", 1), strings.Replace(f.claims, "ada@", `a\ud800@`, 1),
	} {
		f.present("claims "+text, 401, f.signed(f.header, segment(text)))
	}
	f.want(f.do("GET", auth+"/users", f.signed(f.header, segment(f.with("role", `"superadmin"`))), nil), 403, "forbidden", "GET /users (role raised in the token)")
}

func TestJWT_MemoryEndsWithToken(t *testing.T) {
	t.Parallel()
	f := newForger(t) // has shown the token, so it is remembered
	f.clock.advance(f.cfg.accessTTL() - time.Second)
	f.want(f.do("GET", auth+"/me", f.token, nil), 200, "", "GET /me (one second left)")
	f.clock.advance(time.Second)
	f.want(f.do("GET", auth+"/me", f.token, nil), 401, "token_expired", "GET /me (expired, remembered)")
	// It stays expired when the clock is set back.
	f.clock.advance(-time.Hour)
	f.want(f.do("GET", auth+"/me", f.token, nil), 401, "token_expired", "GET /me (expired, clock back)")
}

// jsonGood and jsonBad are texts that checkJSON takes and refuses.
var (
	jsonGood = []string{`{}`, `[]`, `""`, `null`, ` 1.5e3 `, "\t{\"a\":[1,{\"a\":2}]}\r\n", `{"a":1,"b":1}`, `[{"a":1},{"a":1}]`, jsonNested(32, "[", "]"), jsonNested(32, `{"a":`, "}"),
		`"\ud83d\ude00"`, `"\uD83D\uDE00"`, `"😀"`, `"\\ud800"`, `"\\\\ud800"`, `"\ud83d\ude00\ud83d\ude00"`, `"\ud7ff\ue000"`}
	jsonBad = []string{
		`{"a":1,"a":2}`, `{"a":1,"b":2,"a":1}`, `{"a":1,"\u0061":2}`, `[[{"x":{"a":1,"a":1}}]]`, `{"":1,"":2}`, `{"email":1,"EMAIL":2}`, `{"a":1,"A":2}`, `{"k":1,"\u212a":2}`, `{"s":1,"ſ":2}`, `{"é":1,"É":2}`,
		`"\ud800"`, `"\udc00"`, `"\udc00\ud800"`, `"\ud83dx"`, `"\ud83d\n"`, `"\ud83d\ud83d\ude00"`, `"\\\ud800"`, `{"\uDFFF":1}`, "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "{}\xff", "\ufeff{}",
		``, ` `, `{`, `[`, `}`, `]`, `[}`, `{"a":1]`, `{"a"}`, `{"a":}`, `{"a" 1}`, `{1:2}`, `{a:1}`, `[1,]`, `{"a":1,}`, `[,1]`, `[1 2]`, `{,}`, `'a'`, `nul`, `01`, `[01]`, `+1`, `.5`, `NaN`, "\"\n\"", `"\x"`,
		`{}{}`, `{} {}`, `{}x`, `{}]`, `{},`, `1 2`, `null null`, "{}\x00", "// a\n{}", jsonNested(33, "[", "]"), jsonNested(33, `{"a":`, "}"), jsonNested(20_000, "[", "]"), jsonNested(20_000, "[", ""), jsonNested(20_000, `{"a":`, ""),
	}
)

func jsonNested(n int, a, z string) string { return strings.Repeat(a, n) + "1" + strings.Repeat(z, n) }

func TestJWT_CheckJSON(t *testing.T) {
	t.Parallel()
	for i, text := range slices.Concat(jsonGood, jsonBad) {
		good := i < len(jsonGood)
		if err := checkJSON([]byte(text)); (err == nil) != good || (err != nil && !errors.Is(err, errNotJSON)) {
			t.Errorf("checkJSON(%.80q) = %v; want accepted: %t", text, err, good)
		}
	}
}

func FuzzCheckJSON(f *testing.F) {
	for _, text := range slices.Concat(jsonGood, jsonBad) {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := checkJSON(text); err == nil && !json.Valid(text) {
			t.Errorf("checkJSON(%q) accepts what is not JSON", text)
		}
	})
}

// FuzzVerifyJWT: what is accepted is, byte for byte, the one token that was signed, also when encoded again.
func FuzzVerifyJWT(f *testing.F) {
	dir := f.TempDir()
	writeTestKeys(f, dir)
	keys := must(openKeyring(dir, minKeyBits)).current()
	want := expected{"https://auth.example", "app", time.Unix(1_800_000_000, 0), false}
	token := must(keys.sign(claims{Subject: "u", Email: "ada@example.com", Role: viewer, OrgID: defaultOrg, Issuer: want.issuer,
		Audience: audience{want.audience}, IssuedAt: 1_800_000_000, ExpiresAt: 1_800_000_900, ID: "j", SessionID: "s"}))
	p := strings.Split(token, ".")
	for _, seed := range []string{token, "", p[0] + "..", p[0] + "." + p[1] + ".", token + "=", token + "\n", p[0] + ".\n" + p[1] + "." + p[2], segment(`{"alg":"none"}`) + "." + p[1] + "."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := verifyJWT(s, want, keys.byHead)
		if (err == nil) != (s == token) || (err != nil && fmt.Sprint(c) != fmt.Sprint(claims{})) {
			t.Errorf("verifyJWT(%q) = %v, %v; only %q was signed", s, c, err, token)
		} else if err == nil && must(keys.sign(c)) != s {
			t.Errorf("verifyJWT accepts %q, which encodes again as something else", s)
		}
	})
}

func TestJWT_RefreshTokens(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 10_000 {
		id, secret, _ := strings.Cut(newRefreshToken("session"), ".")
		if id != "session" || len(unsegment(secret)) != 32 || seen[secret] {
			t.Fatalf("newRefreshToken = %s.%s after %d others; want session, dot and 256 bits never seen before", id, secret, len(seen))
		}
		seen[secret] = true
	}
	secret, long := strings.Repeat("A", 43), strings.Repeat("s", 64) // 43 characters are 32 bytes and two unused bits
	for token, want := range map[string]string{
		"s." + secret: "s", newRefreshToken("abc"): "abc", long + "." + secret: long, "": "", ".": "", "s": "", "s.": "", "." + secret: "", secret: "", long + "s." + secret: "",
		"s." + secret + ".": "", "s.." + secret: "", "s." + secret[1:]: "", "s." + secret + "A": "", "s." + secret[1:] + "B": "", "s." + secret + "=": "", "s." + secret + "\n": "", "s.\r\n" + secret: "", "s. " + secret: "",
	} {
		if got, ok := refreshTokenHandle(token); ok != (want != "") || ok && got != want {
			t.Errorf("refreshTokenHandle(%q) = %q, %t; want %q", token, got, ok, want)
		}
	}
	// A sealed successor: what the database knows, the hash of the parent, does not open it; nor does any other token.
	parent, successor := newRefreshToken("s"), newRefreshToken("s")
	sealed := must(sealToken(parent, successor))
	if got, err := openToken(parent, sealed); err != nil || got != successor || bytes.Equal(sealed, must(sealToken(parent, successor))) {
		t.Errorf("openToken(sealToken) = %q, %v; want %q, and another text each time", got, err, successor)
	}
	for _, key := range []string{"", successor, parent + " ", string(hashToken(parent)), hex.EncodeToString(hashToken(parent))} {
		if got, err := openToken(key, sealed); err == nil || got != "" {
			t.Errorf("openToken(%q) = %q, %v; want an error", key, got, err)
		}
	}
}

// === keys.go ===

func keysPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// spareKey is a second key for all tests, also as files.
type spareKey struct {
	key             *rsa.PrivateKey
	private, public []byte
}

var keysSpare = sync.OnceValue(func() spareKey {
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	return spareKey{key, keysPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))), keysPEM("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&key.PublicKey)))}
})

// keysDir makes a key directory of these files; nil stands for none. The brackets in its name are no pattern.
func keysDir(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys [1]")
	must(0, os.Mkdir(dir, 0o700))
	for name, data := range files {
		if data != nil {
			must(0, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
	}
	return dir
}

// keysFiles is everything about the files of a directory that must not change unasked.
func keysFiles(dir string) map[string]string {
	files := map[string]string{}
	for _, e := range must(os.ReadDir(dir)) {
		info := must(e.Info())
		files[e.Name()] = fmt.Sprint(info.Mode(), info.ModTime().UnixNano(), " ", string(must(os.ReadFile(filepath.Join(dir, e.Name())))))
	}
	return files
}

// TestKeys_FirstStartIsPrivate starts the program itself, because the umask belongs to a whole process.
func TestKeys_FirstStartIsPrivate(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no file modes")
	}
	home := t.TempDir()
	dir := filepath.Join(home, "deep", "keys")
	start := func() string {
		cmd := exec.Command("sh", "-c", `umask 0; touch auth.db; exec "$0" key list --json`, must(os.Executable()))
		cmd.Dir = home
		cmd.Env = []string{"PICO_AUTH_RUN_MAIN=1", "HOME=" + home, "AUTH_DATA_DIR=" + dir, "DATABASE_URL=sqlite:///auth.db"}
		return string(must(cmd.Output()))
	}
	first := start()
	for path, want := range map[string]os.FileMode{filepath.Dir(dir): 0o700, dir: 0o700, filepath.Join(dir, "private.pem"): 0o600, filepath.Join(home, "auth.db"): 0o600} {
		if got := must(os.Stat(path)).Mode().Perm(); got != want {
			t.Errorf("under umask 0 %s has mode %o; want %o", path, got, want)
		}
	}
	if second := start(); second != first || !strings.Contains(first, must(openKeyring(dir, minKeyBits)).current().signing().kid) {
		t.Errorf("the first start lists %s, the second %s; want the same key", first, second)
	}
}

func TestKeys_EightFirstStartsAtOnce(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	var rings [8]*keyring
	var wg sync.WaitGroup
	for i := range rings {
		wg.Go(func() { rings[i] = must(openKeyring(dir, minKeyBits)) })
	}
	wg.Wait()
	kid, created := must(openKeyring(dir, minKeyBits)).current().signing().kid, 0
	for _, k := range rings {
		if k.created {
			created++
		}
		if got := k.current().signing().kid; got != kid {
			t.Errorf("one of eight starts signs with %s; want %s", got, kid)
		}
	}
	if names := slices.Sorted(maps.Keys(keysFiles(dir))); created != 1 || !slices.Equal(names, []string{"private.pem", "public.pem"}) {
		t.Errorf("of eight starts %d made a key, and %q are left; want one, and a pair", created, names)
	}
}

// TestKeys_DamageIsRefused: a key that is not whole stops the start with its name, and nothing is touched.
func TestKeys_DamageIsRefused(t *testing.T) {
	t.Parallel()
	private, public, spare := testKeys()["private.pem"], testKeys()["public.pem"], keysSpare()
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ecPrivate, ecPublic := keysPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ec))), keysPEM("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&ec.PublicKey)))
	small := keysPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(must(rsa.GenerateKey(rand.Reader, 1024)))))
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"},
		Bytes: x509.MarshalPKCS1PrivateKey(spare.key)})
	const next, retired = "next-1800000000.pem", "retired-1800000000-x.pem"
	for _, c := range []struct {
		name, file string
		data       []byte // nil: the file is missing
		mode       os.FileMode
	}{
		{"empty", "private.pem", []byte{}, 0o600}, {"cut", "private.pem", private[:len(private)/2], 0o600}, {"garbage", "private.pem", []byte("garbage\n"), 0o600},
		{"cut by a line", "private.pem", private[:bytes.LastIndex(private[:len(private)-1], []byte("\n"))], 0o600}, {"PEM of garbage", "private.pem", keysPEM("PRIVATE KEY", []byte("x")), 0o600},
		{"encrypted PKCS#8", "private.pem", keysPEM("ENCRYPTED PRIVATE KEY", []byte("x")), 0o600}, {"encrypted PKCS#1", "private.pem", encrypted, 0o600},
		{"EC", "private.pem", ecPrivate, 0o600}, {"1024 bits", "private.pem", small, 0o600}, {"a public key", "private.pem", public, 0o600},
		{"twice", "private.pem", slices.Concat(private, private), 0o600}, {"two keys", "private.pem", slices.Concat(private, spare.private), 0o600},
		{"missing", "private.pem", nil, 0}, {"for all to read", "private.pem", private, 0o644}, {"for others to write", "private.pem", private, 0o602},

		{"empty", "public.pem", []byte{}, 0o600}, {"cut", "public.pem", public[:len(public)/2], 0o600}, {"EC", "public.pem", ecPublic, 0o600}, {"missing", "public.pem", nil, 0},
		{"of another key", "public.pem", spare.public, 0o600}, {"a private key", "public.pem", private, 0o600}, {"twice", "public.pem", slices.Concat(public, public), 0o600},

		{"bad name", "next-x.pem", spare.private, 0o600}, {"bad name", "next-.pem", spare.private, 0o600}, {"bad name", "retired-x-y.pem", spare.public, 0o600},
		{"empty", next, []byte{}, 0o600}, {"1024 bits", next, small, 0o600}, {"for all to read", next, spare.private, 0o644}, {"cut", retired, public[:99], 0o600}, {"a private key", retired, spare.private, 0o600},
	} {
		files := maps.Clone(testKeys())
		files[c.file] = c.data
		dir := keysDir(t, files)
		if runtime.GOOS == "windows" && c.mode&0o007 != 0 || c.data != nil && os.Chmod(filepath.Join(dir, c.file), c.mode) != nil {
			continue
		}
		before := keysFiles(dir)
		if _, err := openKeyring(dir, minKeyBits); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, c.file)) {
			t.Errorf("openKeyring (%s %s) = %v; want an error naming the file", c.file, c.name, err)
		}
		if after := keysFiles(dir); !maps.Equal(before, after) {
			t.Errorf("openKeyring (%s %s) changed the directory, which now holds %q", c.file, c.name, slices.Sorted(maps.Keys(after)))
		}
	}
}

// TestKeys_OtherSpellings: what openssl, editors and secret mounts make of a key is the same key, and stays as it is.
func TestKeys_OtherSpellings(t *testing.T) {
	t.Parallel()
	spare := keysSpare()
	crlf := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) }
	for name, private := range map[string][]byte{"PKCS#8": spare.private, "PKCS#1": keysPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(spare.key)),
		"CRLF": crlf(spare.private), "no final newline": bytes.TrimSpace(spare.private)} {
		dir := keysDir(t, map[string][]byte{"private.pem": private, "public.pem": crlf(spare.public), "old.pem": []byte("x")})
		must(0, os.Chmod(filepath.Join(dir, "private.pem"), 0o440))
		before := keysFiles(dir)
		k, err := openKeyring(dir, minKeyBits)
		if err != nil || !k.current().signing().private.Equal(spare.key) || k.current().pemText != string(private) || !maps.Equal(before, keysFiles(dir)) {
			t.Errorf("openKeyring (%s) = %v; want the key, its text, and the files as they were", name, err)
		}
	}
}

// TestKeys_KillAtEveryStep replays the files that a kill would leave behind each step of createFirst and promote.
func TestKeys_KillAtEveryStep(t *testing.T) {
	t.Parallel()
	private, public, spare := testKeys()["private.pem"], testKeys()["public.pem"], keysSpare()
	a, b := must(openKeyring(keysDir(t, testKeys()), minKeyBits)).current().signing().kid, thumbprint(&spare.key.PublicKey)
	retired := "retired-1800000960-" + a + ".pem"
	type step struct {
		file    string
		data    []byte // nil removes it
		signing string // after a restart; "" is any
	}
	for name, steps := range map[string][]step{
		"createFirst": {{"new-R.pem", private[:99], ""}, {"new-R.pem", private, ""}, {"private.pem", private, a}, {".public.pem.R", public[:99], a}, {"public.pem", public, a}, {"new-R.pem", nil, a}},
		"promote": {{"private.pem", private, a}, {"public.pem", public, a}, {"next-1800000000.pem", spare.private, a}, {"." + retired, public[:99], a}, {retired, public, a},
			{".private.pem.R", spare.private[:99], a}, {"private.pem", spare.private, b}, {".public.pem.R", spare.public[:99], b}, {"public.pem", spare.public, b}, {"next-1800000000.pem", nil, b}},
	} {
		files := map[string][]byte{}
		for i, s := range steps {
			if files[s.file] = s.data; name == "promote" && i < 2 {
				continue // where it begins
			}
			k, err := openKeyring(keysDir(t, files), minKeyBits)
			if err != nil || s.signing != "" && k.current().signing().kid != s.signing {
				t.Errorf("killed in %s after writing %s: %v; want %s to sign", name, s.file, err, s.signing)
			}
			if err != nil || name == "createFirst" {
				continue
			}
			// What was begun can be finished, later, and then the old key is published without its private part.
			for _, step := range k.due(time.Unix(1_800_000_100, 0), keyPlan{validFor: 16 * time.Minute}) {
				err = cmp.Or(err, step.do())
			}
			keys, names := k.current().keys, fmt.Sprint(slices.Sorted(maps.Keys(keysFiles(k.dir))))
			if err != nil || len(keys) != 2 || keys[0].kid != b || keys[1].kid != a || keys[1].private != nil || strings.Contains(names, " next-") {
				t.Errorf("killed in %s after writing %s: in the end %v, keys %v in %s; want %s and, retired, %s", name, s.file, err, keys, names, b, a)
			}
			// Dropping it, say after a leak, ends its trust, also when the second attempt has retired it twice.
			if err := k.drop(a); err != nil || k.current().byHead[headerFor(a)] != nil {
				t.Errorf("killed in %s after writing %s: drop = %v, still trusted: %t, of %s", name, s.file, err, k.current().byHead[headerFor(a)] != nil, names)
			}
		}
	}
}

// TestKeys_RotateByThemselves lives through ten days with a new key every three, seven minutes at a time.
func TestKeys_RotateByThemselves(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.keyRotationDays = 3 })
	published, gone := map[string]int64{}, map[string]bool{}
	var signers, tokens []string
	for range 10 * 24 * 60 / 7 {
		ts.tick(t.Context())
		set, now := ts.keys.current(), ts.now()
		want := expected{ts.cfg.issuer, ts.cfg.audience, now, false}
		for _, k := range set.keys {
			published[k.kid] = cmp.Or(published[k.kid], now.Unix())
		}
		// Whatever was signed 7 and 14 minutes ago is accepted: it lives for 15.
		for _, token := range tokens[max(0, len(tokens)-2):] {
			if _, err := verifyJWT(token, want, set.byHead); err != nil {
				t.Fatalf("%s: a token before its end is refused: %v", now, err)
			}
		}
		if kid := set.signing().kid; !slices.Contains(signers, kid) {
			if lead := now.Unix() - published[kid]; len(signers) > 0 && lead < int64(publishLead.Seconds()) {
				t.Errorf("%s: %s signs %d s after it was published; want %s", now, kid, lead, publishLead)
			}
			signers = append(signers, kid)
		}
		for _, k := range signers {
			gone[k] = set.byHead[headerFor(k)] == nil
		}
		tokens = append(tokens, must(set.sign(claims{Subject: "u", ID: "j", SessionID: "s", Issuer: want.issuer, Audience: audience{want.audience},
			IssuedAt: now.Unix(), ExpiresAt: now.Add(ts.cfg.accessTTL()).Unix()})))
		ts.clock.advance(7 * time.Minute)
	}
	if len(signers) != 4 || len(published) != 4 || !gone[signers[0]] || !gone[signers[1]] {
		t.Errorf("in ten days %d keys signed, %d were published, gone are %v; want 4, and the old ones gone", len(signers), len(published), gone)
	}
}

// TestKeys_ClockJumpPurgesNothing: the clock is wrong by a year for a while, just after a rotation.
func TestKeys_ClockJumpPurgesNothing(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.tick(t.Context())
	access := ts.mustAdmin()
	must(0, errors.Join(ts.keys.publishNext(ts.now()), ts.keys.promote(ts.now(), ts.now().Add(ts.keyPlan().validFor))))
	for _, jump := range []time.Duration{365 * 24 * time.Hour, -365 * 24 * time.Hour} {
		ts.clock.advance(jump)
		ts.tick(t.Context())
	}
	if a := ts.do("GET", auth+"/me", access, nil); a.status != 200 {
		t.Errorf("GET /me (token of the retired key, after the clock was a year ahead) = %d %s; want 200", a.status, a.body)
	}
	// A key that was made while the clock was ahead does not wait for that time.
	if next, ok := ts.keys.next(); !ok || next.at.After(ts.now().Add(publishLead)) {
		t.Errorf("the next key signs from %s on, %t; want within %s of %s", next.at, ok, publishLead, ts.now())
	}
}

// TestKeys_ServerFollowsTheShell: another process rotates, drops and damages keys; the server notices by itself, and
// forgets the tokens it had verified with a key together with that key.
func TestKeys_ServerFollowsTheShell(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	key := func(args ...string) error {
		cfg := *f.cfg
		defer f.tick(t.Context())
		return runKey(t.Context(), process{stdout: io.Discard, stderr: io.Discard, now: f.clock.read}, &cfg, args)
	}
	if err := key("drop", f.kid); !errors.Is(err, errKeyInUse) {
		t.Errorf("key drop (the signing key) = %v; want %v", err, errKeyInUse)
	}
	must(0, key("rotate"))
	next, _ := f.keys.next()
	if body := f.do("GET", jwksPath, "", nil).body; next.kid == "" || !strings.Contains(body, next.kid) || f.keys.current().signing().kid != f.kid {
		t.Fatalf("GET jwks (key rotate) = %s; want the key %q added", body, next.kid)
	}
	must(0, key("rotate", "--now"))
	f.want(f.do("GET", auth+"/me", f.token, nil), 200, "", "GET /me (token of the retired key)")
	// The published key has been on disk for a while; in an emergency one made now signs, and that one is gone.
	if token := f.mustAdmin(); strings.HasPrefix(token, headerFor(next.kid)+".") || strings.HasPrefix(token, headerFor(f.kid)+".") {
		t.Errorf("login (key rotate --now) = %s; want it signed by neither %s nor %s", token, next.kid, f.kid)
	}
	must(0, key("drop", f.kid))
	f.want(f.do("GET", auth+"/me", f.token, nil), 401, "invalid_token", "GET /me (token of a dropped key, remembered)")
	must(0, os.WriteFile(f.keys.path("private.pem"), []byte("garbage"), 0o600))
	f.tick(t.Context())
	f.want(f.do("GET", auth+"/me", f.mustAdmin(), nil), 200, "", "GET /me (private.pem damaged under the running server)")
	if !strings.Contains(f.logs.String(), "private.pem must hold") {
		t.Errorf("the log does not name the damaged file:\n%s", f.logs)
	}
}

// TestKeys_JWKS reads the key set as a foreign client would, with code of its own.
func TestKeys_JWKS(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	must(0, ts.keys.publishNext(ts.now().Add(publishLead)))
	parts := strings.Split(ts.mustAdmin(), ".")
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	a := ts.want(ts.do("GET", jwksPath, "", nil), 200, "", "GET jwks")
	keys, _ := a.json["keys"].([]any)
	if len(a.json) != 1 || len(keys) != 2 || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("GET jwks = %s %s; want application/json with two keys and nothing else", a.header.Get("Content-Type"), a.body)
	}
	kids, verified := map[any]bool{}, 0
	for _, raw := range keys {
		k := raw.(object)
		sum := sha256.Sum256(must(json.Marshal(object{"e": k["e"], "kty": k["kty"], "n": k["n"]}))) // sorted: RFC 7638 section 3
		n := unsegment(k["n"].(string))
		if !maps.Equal(k, object{"alg": "RS256", "e": "AQAB", "kid": segment(sum[:]), "kty": "RSA", "n": k["n"], "use": "sig"}) || len(n) != 256 || n[0] == 0 {
			t.Errorf("GET jwks has the key %v; its thumbprint is %s", k, segment(sum[:]))
		}
		kids[k["kid"]] = true
		if rsa.VerifyPKCS1v15(&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}, crypto.SHA256, digest[:], unsegment(parts[2])) == nil {
			verified++
		}
	}
	if verified != 1 || len(kids) != 2 {
		t.Errorf("a token of ours verifies with %d of the published keys %v; want 1 of 2", verified, kids)
	}
}

func TestKeys_KnownAnswers(t *testing.T) {
	t.Parallel()
	// RFC 7638 section 3.1.
	n := bigNumber("0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw")
	if got, want := thumbprint(&rsa.PublicKey{N: n, E: 65537}), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"; got != want {
		t.Errorf("thumbprint(RFC 7638 section 3.1) = %s; want %s", got, want)
	}
	// python3: hashlib.sha256(b"pico-auth/token-hash-key/v1:" + text).hexdigest(); Python reads text with universal newlines.
	for _, newline := range []string{"\n", "\r\n", "\r"} {
		text := strings.ReplaceAll("-----BEGIN PRIVATE KEY-----\nMIIEexample\n-----END PRIVATE KEY-----\n", "\n", newline)
		if got, want := hex.EncodeToString(legacyTokenKey(text)), "fac65fb0d2f00ebb3588de85779a53a30af6c40f9a42e8fcbb991f4fca6ac51c"; got != want {
			t.Errorf("legacyTokenKey(%q) = %s; want %s", text, got, want)
		}
	}
}

// === passwords.go ===

// together runs f n times at once and returns what each returned.
func together[T any](n int, f func(i int) T) []T {
	all, start := make([]T, n), make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { <-start; all[i] = f(i) })
	}
	close(start)
	wg.Wait()
	return all
}

func (a answer) outcome() string { return fmt.Sprint(a.status, " ", a.text("code")) }

// tally counts answers by outcome: "map[200 :1 409 last_superadmin:1]".
func tally(answers []answer) string {
	n := map[string]int{}
	for _, a := range answers {
		n[a.outcome()]++
	}
	return fmt.Sprint(n)
}

func same[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s = %v; want %v", what, got, want)
	}
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for something that another goroutine is about to do.
func until(done func() bool) {
	for !done() {
		runtime.Gosched()
	}
}

func unthrottled(c *config) { c.throttle.enabled = false }

// login is a login; from is the client that a proxy reports.
func (ts *testServer) login(email, password, from string) answer {
	return ts.do("POST", loginPath, "", object{"email": email, "password": password}, "X-Forwarded-For: "+from)
}

func TestPasswords_NewOnesFollowTheRules(t *testing.T) {
	t.Parallel()
	many := strings.Repeat
	for password, ok := range map[string]bool{
		"12345678": true, "1234567": false, "": false, many("語", 8): true, "語語語": false, // characters count, not bytes,
		many("a", 64): true, many("a", 72): true, many("a", 73): false, many("語", 25): false, // but at most 72 bytes
		"aaaaaaaa": true, many(" ", 8): true, "abcd\x00efgh": false, "abcdefgh\x00": false, // no composition rules but NUL
	} {
		same(t, fmt.Sprintf("checkNewPassword(%q) passes", password), checkNewPassword(password, 8) == nil, ok)
	}
}

// hash4 is a hash of our own; asImported makes it one that pico-auth wrote, which cut passwords.
func hash4(t testing.TB, password string) []byte {
	hash, err := bcrypt.GenerateFromPassword([]byte(password[:min(len(password), maxPasswordBytes)]), 4)
	noError(t, err)
	return hash
}

func asImported(hash []byte) []byte { return bytes.Replace(hash, []byte("$2a$"), []byte("$2b$"), 1) }

// TestPasswords_Only72BytesOfImportedHashesCount: x/crypto alone accepts any tail after 72 bytes.
func TestPasswords_Only72BytesOfImportedHashesCount(t *testing.T) {
	t.Parallel()
	full, cut := strings.Repeat("p", 72), "x"+strings.Repeat("é", 50) // byte 72 of cut is in the middle of an é
	for _, c := range []struct {
		name, hashed, typed string
		own, imported       bool
	}{
		{"right", "secret words", "secret words", true, true},
		{"wrong", "secret words", "secret word", false, false},
		{"72 bytes", full, full, true, true},
		{"72 bytes and a tail", full, full + "!", false, true},
		{"72 bytes and another tail", full + "a", full + "b", false, true},
		{"cut in the middle of a character", cut, cut, false, true},
		{"byte 72 differs", full, full[:71] + "q" + "tail", false, false},
		{"empty", "", "", true, true},
		{"something for empty", "", "x", false, false},
		{"empty for something", "x", "", false, false},
	} {
		hash := hash4(t, c.hashed)
		same(t, c.name+": our hash matches", matches(hash, c.typed), c.own)
		same(t, c.name+": imported hash matches", matches(asImported(hash), c.typed), c.imported)
	}
}

// TestPasswords_HashesHaveTheirCost: a dummy that x/crypto refuses to compute would tell that the email is unknown.
func TestPasswords_HashesHaveTheirCost(t *testing.T) {
	t.Parallel()
	for _, cost := range []int{4, 10, 12, 16} {
		got, err := bcrypt.Cost(dummyHash(cost))
		noError(t, err)
		same(t, "cost of a dummy", got, cost)
	}
	for _, password := range []string{"", "x", "admin", strings.Repeat("p", 72)} {
		same(t, "comparing with the dummy", bcrypt.CompareHashAndPassword(dummyHash(4), []byte(password)), bcrypt.ErrMismatchedHashAndPassword)
		same(t, "dummy matches", matches(dummyHash(4), password), false)
	}
	own := hash4(t, "secret words")
	same(t, "outdated(same cost)", outdated(own, 4), false)
	same(t, "outdated(cost since lowered)", outdated(append([]byte("$2a$06"), own[6:]...), 4), false)
	same(t, "outdated(cost since raised)", outdated(own, 5), true)
	same(t, "outdated(imported)", outdated(asImported(own), 4), true)
	same(t, "outdated(no hash)", outdated([]byte("x"), 4), true)
}

func TestPasswords_HasherRunsAtMostItsThreads(t *testing.T) {
	t.Parallel()
	h := newHasher(t.Context(), 4, 3, newTestClock().read)
	var running, tooMany atomic.Int64
	entered, release := make(chan struct{}, 40), make(chan struct{})
	go func() { <-entered; <-entered; <-entered; close(release) }() // three do run at once, or this test hangs
	noError(t, errors.Join(together(40, func(int) error {
		return h.do(context.Background(), func() {
			if running.Add(1) > 3 {
				tooMany.Add(1)
			}
			entered <- struct{}{}
			<-release
			running.Add(-1)
		})
	})...))
	same(t, "more than three at once", tooMany.Load(), 0)
	same(t, "pending at the end", h.pending.Load(), 0)
}

// TestPasswords_HasherServesInOrder: first come, first served, except callers that left.
func TestPasswords_HasherServesInOrder(t *testing.T) {
	t.Parallel()
	h := newHasher(t.Context(), 4, 1, newTestClock().read)
	entered, release := make(chan struct{}), make(chan struct{})
	go h.do(context.Background(), func() { close(entered); <-release })
	<-entered
	leaving, leave := context.WithCancel(t.Context())
	contexts := []context.Context{t.Context(), t.Context(), leaving, t.Context(), t.Context(), leaving, t.Context()}
	var order []int // written by the only thread
	var wg sync.WaitGroup
	for i, ctx := range contexts {
		wg.Go(func() { same(t, "do", h.do(ctx, func() { order = append(order, i) }), ctx.Err()) })
		until(func() bool { return len(h.queue) == i+1 })
	}
	leave()
	until(func() bool { return h.pending.Load() == 6 }) // two have given their places up
	close(release)
	wg.Wait()
	same(t, "order of service", fmt.Sprint(order), "[0 1 3 4 6]")
	same(t, "pending at the end", h.pending.Load(), 0)
}

func TestPasswords_HasherRefusesLongWaitsAtOnce(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pending int64
		threads int
		want    error
	}{{40, 1, nil}, {41, 1, errBusy}, {80, 2, nil}, {81, 2, errBusy}} { // 40 × 50 ms are the limit of 2 s
		h, ran := newHasher(t.Context(), 4, c.threads, newTestClock().read), false
		h.pending.Store(c.pending)
		h.perHash.Store(int64(50 * time.Millisecond))
		same(t, fmt.Sprintf("do with %+v", c), h.do(context.Background(), func() { ran = true }), c.want)
		same(t, "work ran", ran, c.want == nil)
		same(t, "pending at the end", h.pending.Load(), c.pending)
	}
	ts := newTestServer(t)
	ts.srv.hasher.perHash.Store(int64(time.Second))
	ts.srv.hasher.pending.Add(5)
	a := ts.want(ts.login(adminEmail, adminPassword, ""), 503, "busy", "login with a long queue")
	same(t, "Retry-After", a.header.Get("Retry-After"), "2")
	ts.srv.hasher.pending.Add(-5)
	ts.mustAdmin()
}

// newTestThrottle has the default limits, changed, and a function that reports n failures and returns how many were counted.
func newTestThrottle(change func(*throttleLimits)) (*throttle, *testClock, func(n int, email, address string) int) {
	limits, clock := defaultConfig().throttle, newTestClock()
	change(&limits)
	tr := newThrottle(limits, clock.read)
	return tr, clock, func(n int, email, address string) (counted int) {
		for i := range n {
			number := strconv.Itoa(i)
			if tr.failed(attempt{email: strings.ReplaceAll(email, "#", number), address: strings.ReplaceAll(address, "#", number)}).rule == "" {
				counted++
			}
		}
		return counted
	}
}

func TestPasswords_ThrottleRules(t *testing.T) {
	t.Parallel()
	tr, clock, fail := newTestThrottle(func(*throttleLimits) {})
	ada := attempt{email: "ada", address: "here"}
	fail(4, "ada", "here")
	clock.advance(5 * time.Minute) // the window runs from the first failure
	same(t, "counted of 20 after 4", fail(20, "ada", "here"), 6)
	same(t, "a right password that was under way", tr.succeeded(ada), verdict{"pair", 10 * time.Minute})
	same(t, "another address", tr.blocked(attempt{email: "ada", address: "there"}), verdict{})
	clock.advance(10*time.Minute - time.Second)
	same(t, "a second before the end", tr.blocked(ada), verdict{"pair", time.Second})
	clock.advance(time.Second)
	same(t, "counted of 9 after the window", fail(9, "ada", "here"), 9)
	same(t, "success", tr.succeeded(ada), verdict{})
	same(t, "counted of 20 after a success", fail(20, "ada", "here"), 10)

	clock.advance(time.Hour)
	same(t, "counted of 61 over 61 emails from one address", fail(61, "user#", "bad"), 60)
	same(t, "counted of 101 from 101 addresses", fail(101, "ada", "place#"), 100)
	byAddress := verdict{"address", 15 * time.Minute}
	same(t, "new email, bad address", tr.blocked(attempt{email: "new", address: "bad"}), byAddress)
	same(t, "new email, new address", tr.blocked(attempt{email: "new", address: "new"}), verdict{})
	same(t, "ada from a new address", tr.blocked(attempt{email: "ada", address: "new"}), verdict{"account", time.Hour})
	same(t, "ada from a known one, or anybody could lock her out", tr.blocked(attempt{email: "ada", address: "home", known: true}), verdict{})
	same(t, "known, but guessing", tr.blocked(attempt{email: "ada", address: "bad", known: true}), byAddress)
	for i := range 61 {
		same(t, fmt.Sprint("refusal of registration ", i+1), tr.registered("here").rule == "registrations", i == 60)
	}
	same(t, "registration from another address", tr.registered("there"), verdict{})
	clock.advance(time.Hour)
	same(t, "ada after the window", tr.blocked(attempt{email: "ada", address: "bad"}), verdict{})
	same(t, "registration after the window", tr.registered("here"), verdict{})

	for want, change := range map[int]func(*throttleLimits){
		500: func(l *throttleLimits) { l.enabled = false },
		60:  func(l *throttleLimits) { l.pairFailures = 0 },
		100: func(l *throttleLimits) { l.pairFailures, l.addressFailures = 0, 0 },
		499: func(l *throttleLimits) { l.pairFailures, l.addressFailures, l.accountFailures = 499, 0, 0 },
	} {
		_, _, fail := newTestThrottle(change)
		same(t, "counted of 500 with rules turned off", fail(500, "ada", "here"), want)
	}
}

func TestPasswords_ThrottleGroupsAddressesInBoundedMemory(t *testing.T) {
	t.Parallel()
	tr, _, fail := newTestThrottle(func(*throttleLimits) {})
	for address, want := range map[string]string{
		"2001:db8:1:2::1": "2001:db8:1:2::/64", "2001:db8:1:2:ffff:ffff:ffff:ffff": "2001:db8:1:2::/64", "2001:db8:1:3::1": "2001:db8:1:3::/64",
		"fe80::1%eth0": "fe80::/64", "192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "::ffff:192.0.2.1", "unix": "unix", // not ::/64, which all IPv4 would share
	} {
		same(t, "clientKey("+address+")", tr.clientKey(address), want)
	}
	same(t, "counted of a million emails and addresses", fail(1_000_000, "#", "#"), 1_000_000)
	for _, c := range []*counter{&tr.pair, &tr.address, &tr.account} {
		if n := len(c.young) + len(c.old); n > 2*counterGeneration || n < counterGeneration {
			t.Errorf("a counter holds %d entries; want up to %d", n, 2*counterGeneration)
		}
	}
}

// TestPasswords_GuessingOverHTTP: a burst learns no more verdicts than the limit, and known emails are refused like unknown ones.
func TestPasswords_GuessingOverHTTP(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.trustedProxies = []string{"127.0.0.1/32"} })
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	for i, email := range []string{"ada@example.com", "nobody@example.com"} {
		got := tally(together(200, func(int) answer { return ts.login(email, "wrong", fmt.Sprint("192.0.2.", i)) }))
		same(t, "200 guesses at once for "+email, got, "map[401 invalid_credentials:10 429 too_many_attempts:190]")
	}
	a := ts.want(ts.login("ADA@example.com", userPassword, "192.0.2.0"), 429, "too_many_attempts", "right password, blocked pair, other spelling")
	same(t, "Retry-After", a.header.Get("Retry-After"), "900")
	ts.want(ts.login("ada@example.com", userPassword, "198.51.100.1"), 200, "", "right password from elsewhere")
	for i := range 90 { // 100 failures block the account, but not where ada has logged in from
		ts.want(ts.login("ada@example.com", "wrong", fmt.Sprintf("2001:db8:%x::1", i)), 401, "", "wrong password")
	}
	ts.want(ts.login("ada@example.com", userPassword, "203.0.113.1"), 429, "too_many_attempts", "right password from a new address")
	ts.want(ts.login("ada@example.com", userPassword, "198.51.100.1"), 200, "", "right password from a known address")
}

// === db.go, adopt.go ===

// pragma runs SQL on the writer's connection, past the writer; nothing else may be writing.
func (ts *testServer) pragma(statement string) {
	ts.Helper()
	_, err := ts.store.writer.tx.conn.ExecContext(context.Background(), statement)
	noError(ts, err)
}

// batch makes the writer busy, queues changes, calls before and lets the writer go on: the changes share a commit.
func (ts *testServer) batch(changes []*change, before func()) (errs []error) {
	entered, release, first := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		first <- ts.store.writer.do(context.Background(), func(*tx) error { close(entered); <-release; return nil })
	}()
	<-entered
	for _, c := range changes {
		c.ctx, c.answer = cmp.Or(c.ctx, context.Background()), make(chan error, 1)
		ts.store.writer.changes <- c
	}
	before()
	close(release)
	noError(ts, <-first)
	for _, c := range changes {
		errs = append(errs, <-c.answer)
	}
	return errs
}

// logged counts a word in the log.
func (ts *testServer) logged(word string) int { return strings.Count(ts.logs.String(), word) }

// set is a change that a reader can see.
func set(name string) func(*tx) error {
	return func(t *tx) error { return t.setSetting(name, []byte(name)) }
}

func TestDB_ChangesOfABatchFailAlone(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.databaseEcho = true })
	gone, leave := context.WithCancel(context.Background())
	errs := ts.batch([]*change{{apply: set("first")}, {apply: func(t *tx) error {
		_, err := t.exec(`INSERT INTO users SELECT NULL, id, email, email_key, '', x'', 0, '', '', '', 0, NULL FROM users`)
		return errors.Join(set("undone")(t), err)
	}}, {apply: func(t *tx) error { set("panicked")(t); panic("a bug") }}, {apply: set("skipped"), ctx: gone}, {apply: set("last")}}, leave)
	if errs[0] != nil || !errors.Is(errs[1], errConflict) || errs[2] == nil || !errors.Is(errs[3], context.Canceled) || errs[4] != nil {
		t.Errorf("errors of the batch: %v", errs)
	}
	for name, want := range map[string]bool{"first": true, "undone": false, "panicked": false, "skipped": false, "last": true} {
		_, err := ts.store.setting(name)
		same(t, "stored: "+name, err == nil, want)
	}
	err := ts.store.writer.do(context.Background(), func(*tx) error { return errConflict })
	same(t, "errConflict of a lone change", err, errConflict)
	same(t, "savepoints of the four that were begun beside others", ts.logged("SAVEPOINT"), 4)

	var late error
	queue := make([]*change, maxQueuedChanges)
	for i := range queue {
		queue[i] = &change{apply: set("queued")}
	}
	noError(t, errors.Join(ts.batch(queue, func() { late = ts.store.writer.do(context.Background(), set("late")) })...))
	same(t, "one more change in a full queue is errUnavailable", errors.Is(late, errUnavailable), true)
	same(t, "savepoints after batches in which nothing failed", ts.logged("SAVEPOINT"), 4)

	begun := ts.logged("BEGIN")
	errs = ts.batch([]*change{{apply: set("unwritten")}, {apply: set("unwritten")}}, func() { ts.pragma(`PRAGMA query_only = 1`) })
	ts.pragma(`PRAGMA query_only = 0`)
	same(t, "both changes of a batch that could not begin are errUnavailable", errors.Is(errs[0], errUnavailable) && errors.Is(errs[1], errUnavailable), true)
	same(t, "transactions begun, with that of the batch before", ts.logged("BEGIN")-begun, 2) // or every waiting change would wait for the lock in its turn
}

// twoWorlds lets every change of s run twice, because the change behind it fails, and the one before it takes all users
// and settings away from the tries that are named. It returns how many changes there were, for when s is closed.
func (s *store) twoWorlds(emptied ...int) (changes *int) {
	close(s.writer.changes)
	<-s.writer.stopped
	w := &writer{db: s.writer.db, tx: s.writer.tx, changes: make(chan *change, 3), stopped: make(chan struct{})}
	s.writer, changes = w, new(int)
	go func() {
		defer close(w.stopped)
		for c := range w.changes {
			*changes++
			try := 0
			before := func(t *tx) error {
				if try++; !slices.Contains(emptied, try) {
					return nil
				}
				_, err := t.exec(`DELETE FROM users`)
				_, err2 := t.exec(`DELETE FROM settings`)
				return errors.Join(err, err2)
			}
			neighbour := func(apply func(*tx) error) *change {
				return &change{ctx: context.Background(), apply: apply, answer: make(chan error, 1)}
			}
			w.changes <- c
			w.changes <- neighbour(func(*tx) error { return errors.New("fails, so that all run again") })
			w.carryOut(neighbour(before))
		}
	}()
	return changes
}

// TestDB_EveryChangeCanRunTwice: what the first try saw is neither in the answer nor in the database.
func TestDB_EveryChangeCanRunTwice(t *testing.T) {
	t.Parallel()
	const seed = `INSERT INTO users VALUES (1, 'ada', 'ada@x.org', 'ada@x.org', '', x'0a', 0, 'superadmin', 'default', 'active', 0, NULL),
			(2, 'bob', 'bob@x.org', 'bob@x.org', '', x'0b', 0, 'viewer', 'default', 'active', 0, NULL);
		INSERT INTO sessions VALUES ('s1', 'ada', x'11', NULL, NULL, 0, 0, 1000, 9000, '', ''),
			('s2', 'bob', x'22', x'21', x'5ea1', 90, 90, 1000, 9000, '', ''), ('s3', 'bob', x'33', NULL, NULL, 0, 0, 1000, 9000, '', '');
		INSERT INTO known_addresses VALUES ('bob', 'here', 0);
		INSERT INTO settings VALUES ('name', x'00'), ('purge_horizon', CAST('50000' AS BLOB))`
	ctx, ada, bob := context.Background(), principal{sessionID: "s1"}, user{id: "bob", passwordHash: []byte{0x0b}}
	anyone := func(user) error { return nil }
	rotate := func(s *store, hash ...byte) any {
		done, err := s.rotate(ctx, rotation{now: time.Unix(100, 0), idle: time.Hour, grace: time.Minute,
			candidates: []candidate{{sessionID: "none"}, {sessionID: "s2", hash: hash, successorHash: []byte{0x23}}}})
		return []any{done, err}
	}
	purge := func(s *store) any {
		horizon, removed, err := s.purge(ctx, time.Unix(50_000, 0), time.Hour)
		return []any{horizon.Unix(), removed, err}
	}
	cases := map[string]func(s *store) any{
		"createUser": func(s *store) any {
			return s.createUser(ctx, ada, user{id: "eve", email: "eve@x.org", passwordHash: []byte{1}}, anyone)
		},
		"createUser, taken": func(s *store) any {
			return s.createUser(ctx, ada, user{id: "eve", email: "bob@x.org", passwordHash: []byte{1}}, anyone)
		},
		"editUser": func(s *store) any {
			before, after, err := s.editUser(ctx, ada, "bob", func(_ user, target *user) (edit, error) {
				target.role += "!"
				return edit{endSessions: true}, nil
			})
			return []any{before, after, err}
		},
		"editUser, refused": func(s *store) any {
			before, after, err := s.editUser(ctx, ada, "ada", func(user, *user) (edit, error) { return edit{remove: true}, nil })
			return []any{before, after, err}
		},
		"markDefaultPassword": func(s *store) any { return s.markDefaultPassword(ctx, bob) },
		"openSession": func(s *store) any {
			u, err := s.openSession(ctx, login{user: bob, newHash: []byte{2}, session: session{id: "s4"}, tokenHash: []byte{0x44}, address: "there"})
			return []any{u, err}
		},
		"rotate":         func(s *store) any { return rotate(s, 0x22) },
		"rotate, repeat": func(s *store) any { return rotate(s, 0x21) },
		"rotate, reuse":  func(s *store) any { return rotate(s, 0x20) },
		"endSession": func(s *store) any {
			owner, err := s.endSession(ctx, "s2", "")
			return []any{owner, err}
		},
		"endSessions": func(s *store) any {
			n, err := s.endSessions(ctx, "bob")
			return []any{n, err}
		},
		"setSetting":    func(s *store) any { return s.setSetting(ctx, ada, "name", []byte("value"), anyone) },
		"deleteSetting": func(s *store) any { return s.deleteSetting(ctx, "name") },
		"healthy":       func(s *store) any { return s.healthy(ctx, time.Unix(1, 0)) },
		"exclusively": func(s *store) any {
			n := 0
			err := s.exclusively(ctx, func() error { n++; return nil })
			same(t, "runs of what is done exclusively", n, 1)
			return err
		},
		"purge": purge, "purgeTable": purge,
	}
	for _, function := range strings.Split(string(must(os.ReadFile("db.go"))), "\nfunc (s *store) ")[1:] {
		if name, _, _ := strings.Cut(function, "("); strings.Contains(function, ".writer.do(") && cases[name] == nil {
			t.Errorf("%s makes changes and is not in this test", name)
		}
	}
	// outcome is the answer, and what a new connection finds.
	outcome := func(what string, change func(s *store) any, emptied ...int) string {
		path := filepath.Join(t.TempDir(), "auth.db")
		s, _, err := openStore(path, nil, time.Now(), nil)
		noError(t, err)
		_, err = s.writer.tx.conn.ExecContext(context.Background(), seed)
		noError(t, err)
		changes := s.twoWorlds(emptied...)
		found := fmt.Sprintln(change(s))
		noError(t, s.close())
		same(t, what+": made changes", *changes > 0, true)
		db, err := sql.Open("sqlite", dsn(path))
		noError(t, err)
		defer db.Close()
		for _, table := range []string{"users", "sessions", "known_addresses", "settings"} {
			var columns, rows string
			noError(t, db.QueryRow(`SELECT group_concat('quote(' || name || ')', '||'' ''||') FROM pragma_table_info($1)`, table).Scan(&columns))
			noError(t, db.QueryRow(`SELECT coalesce(group_concat(`+columns+`, '; '), '') FROM `+table).Scan(&rows))
			found += table + ": " + rows + "\n"
		}
		return found
	}
	for name, change := range cases {
		full, empty := outcome(name, change), outcome(name, change, 1, 2)
		same(t, name+" where a first try saw nothing", outcome(name, change, 1), full)
		same(t, name+" where a first try saw what is gone", outcome(name, change, 2), empty)
	}
}

// TestDB_FailedCommitIsNoAcknowledgement: all of the batch fails, and the refresh token in it is not used up.
func TestDB_FailedCommitIsNoAcknowledgement(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	_, token := ts.mustLogin(adminEmail, adminPassword)
	handle, _ := refreshTokenHandle(token)
	next := candidate{sessionID: sessionIDOf(handle), hash: hashToken(token), successorHash: hashToken("next")}
	conflict := func(*tx) error { return errConflict } // perhaps with a neighbour that is not stored after all
	for _, last := range []func(*tx) error{set("fine"), conflict} {
		errs := ts.batch([]*change{{apply: func(x *tx) error {
			refusal, err := x.rotateOne(rotation{now: ts.now(), idle: time.Hour}, next, new(rotated))
			return errors.Join(refusal, err)
		}}, {apply: func(x *tx) error { // only COMMIT finds out that a deferred constraint is violated
			_, err := x.exec(`PRAGMA defer_foreign_keys = 1`)
			_, err2 := x.exec(`INSERT INTO known_addresses VALUES ('nobody', '', 0)`)
			return errors.Join(err, err2)
		}}, {apply: last}}, func() {})
		if errs[0] == nil || errors.Is(errs[0], errConflict) || errs[0] != errs[1] || errs[0] != errs[2] {
			t.Fatalf("changes of a commit that failed: %v; want its error for all", errs)
		}
	}
	ts.want(ts.refresh(token), 200, "", "the old token after a commit that failed")
}

// TestDB_UnwritableStorage: a disk that is full or became read-only stops what must be stored, nothing else, and only while it lasts.
func TestDB_UnwritableStorage(t *testing.T) {
	t.Parallel()
	const grow = ` BEGIN INSERT INTO filler VALUES (zeroblob(9000)); END;`
	for name, c := range map[string][3]string{
		// The triggers make every change need new pages, as on a full disk every commit needs a longer WAL.
		"full": {`CREATE TABLE filler (x); CREATE TRIGGER a AFTER INSERT ON users` + grow + `CREATE TRIGGER b AFTER UPDATE ON users` + grow +
			`CREATE TRIGGER c AFTER UPDATE ON sessions` + grow + `CREATE TRIGGER d AFTER UPDATE ON settings` + grow,
			`PRAGMA max_page_count = 1`, `PRAGMA max_page_count = 1000000`}, // 1 means: what it has
		"read-only": {`SELECT 1`, `PRAGMA query_only = 1`, `PRAGMA query_only = 0`},
	} {
		ts := newTestServer(t)
		access, token := ts.mustLogin(adminEmail, adminPassword)
		ask := func(want, retry string) {
			for what, a := range map[string]answer{
				"register": ts.do("POST", auth+"/register", "", object{"email": "new@example.com", "password": userPassword}),
				"login":    ts.login(adminEmail, adminPassword, ""), "refresh": ts.refresh(token), "health": ts.do("GET", "/healthz", "", nil),
			} {
				same(t, name+": "+what, a.outcome()+a.header.Get("Retry-After"), want+retry)
			}
			ts.want(ts.do("GET", auth+"/me", access, nil), 200, "", "GET /me")
			ts.want(ts.do("GET", jwksPath, "", nil), 200, "", "key set")
		}
		ts.want(ts.do("GET", "/healthz", "", nil), 200, "", "health before")
		ts.pragma(c[0])
		ts.pragma(c[1])
		ask("503 storage_unavailable", "5")
		n, err := ts.store.countUsers(userFilter{everyOrg: true})
		noError(t, err)
		same(t, name+": users after a refused registration", n, 1)
		ts.pragma(c[2])
		ask("200 ", "")
		var check string
		noError(t, ts.store.get(`PRAGMA integrity_check`, nil, &check))
		same(t, name+": integrity_check", check, "ok")
	}
}

// TestDB_WaitsForOthers: neither a long reader nor another process's short lock is an error, and what gathers behind the
// lock shares a commit.
func TestDB_WaitsForOthers(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, unthrottled, func(c *config) { c.databaseEcho = true })
	reader, err := ts.store.reads.Begin()
	noError(t, err)
	defer reader.Rollback()
	count := func() (n int) { reader.QueryRow(`SELECT count(*) FROM users`).Scan(&n); return n }
	count() // the snapshot begins with the first read
	same(t, "100 writers", tally(together(100, func(i int) answer {
		return ts.do("POST", auth+"/register", "", object{"email": fmt.Sprint(i, "@example.com"), "password": userPassword})
	})), "map[200 :100]")
	same(t, "users that the reader sees", count(), 1)

	other, err := sql.Open("sqlite", dsn(filepath.Join(ts.dir, "auth.db")))
	noError(t, err)
	defer other.Close()
	other.SetMaxOpenConns(1)
	_, err = other.Exec(`BEGIN IMMEDIATE`)
	noError(t, err)
	begun, commits := ts.logged("BEGIN"), ts.logged("COMMIT")
	queue := make([]*change, maxBatch)
	for i := range queue {
		queue[i] = &change{ctx: context.Background(), apply: set("x"), answer: make(chan error, 1)}
		for ts.store.writer.changes <- queue[i]; ts.logged("BEGIN") == begun; { // then the writer has the first and wants the lock
			runtime.Gosched()
		}
	}
	go other.Exec(`COMMIT`)
	for _, c := range queue {
		noError(t, <-c.answer)
	}
	same(t, "commits of what waited for the lock", ts.logged("COMMIT")-commits, 1)
}

func TestDB_ConcurrentRefresh(t *testing.T) {
	t.Parallel()
	strict, graceful := newTestServer(t), newTestServer(t, func(c *config) { c.reuseGraceSeconds = 10 })
	for _, n := range []int{32, 32, 32, 100} {
		access, token := strict.mustLogin(adminEmail, adminPassword)
		answers := together(n, func(int) answer { return strict.refresh(token) })
		same(t, "uses at once without grace", tally(answers), fmt.Sprintf("map[200 :1 401 invalid_token:%d]", n-1))
		winner := slices.MinFunc(answers, func(a, b answer) int { return a.status - b.status })
		strict.want(strict.refresh(winner.text("refresh_token")), 401, "invalid_token", "the winner's token after the reuse")
		for _, dead := range []string{access, winner.text("access_token")} {
			strict.want(strict.do("GET", auth+"/me", dead, nil), 401, "invalid_token", "access token of a family with reuse")
		}

		_, token = graceful.mustLogin(adminEmail, adminPassword)
		answers = together(n, func(int) answer { return graceful.refresh(token) })
		successor := answers[0].text("refresh_token")
		for _, a := range answers {
			same(t, "use at once with grace", a.outcome()+a.text("refresh_token"), "200 "+successor)
		}
		var once bool
		noError(t, graceful.store.get(`SELECT count(*) FROM sessions WHERE token_hash = $1 AND parent_hash = $2`, []any{hashToken(successor), hashToken(token)}, &once))
		same(t, "row advanced by one rotation", once, true)
		graceful.want(graceful.refresh(successor), 200, "", "the successor")
	}
}

// TestDB_ReuseRevokes: outside its narrow grace, a token that was used ends its session.
func TestDB_ReuseRevokes(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.reuseGraceSeconds = 10 })
	next := func(token string) string {
		return ts.want(ts.refresh(token), 200, "", "refresh").text("refresh_token")
	}
	for _, c := range []struct {
		name     string
		uses     int // rotations after the login
		presents int // which token of the chain comes again
		later    time.Duration
	}{{"grandparent", 2, 0, 0}, {"parent whose successor was used", 3, 1, time.Second}, {"parent after the window", 1, 0, 10 * time.Second}} {
		access, token := ts.mustLogin(adminEmail, adminPassword)
		chain := []string{token}
		for i := range c.uses {
			chain = append(chain, next(chain[i]))
		}
		same(t, c.name+": successor of the parent inside the grace", next(chain[c.uses-1]), chain[c.uses])
		ts.clock.advance(c.later)
		ts.want(ts.refresh(chain[c.presents]), 401, "invalid_token", c.name)
		ts.want(ts.refresh(chain[c.uses]), 401, "invalid_token", "current token after: "+c.name)
		ts.want(ts.do("GET", auth+"/me", access, nil), 401, "invalid_token", "access token after: "+c.name)
	}
	same(t, "events in the log", strings.Count(ts.logs.String(), "msg=refresh.reuse"), 3)
}

// TestDB_LastSuperadminStays: of the last two, each removing itself at the same time, one remains.
func TestDB_LastSuperadminStays(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, unthrottled)
	ways := [][3]string{{"PUT", "/role", `"viewer"`}, {"PUT", "/status", `{"status":"suspended"}`}, {"DELETE", "", `{}`}}
	tokens := [2]string{ts.mustAdmin()}
	ids := [2]string{ts.do("GET", auth+"/me", tokens[0], nil).text("id")}
	for round := range 27 {
		email := fmt.Sprint("super", round, "@example.com")
		ids[1] = ts.mustUser(email, superadmin, defaultOrg)
		tokens[1], _ = ts.mustLogin(email, userPassword)
		answers := together(2, func(i int) answer {
			way := ways[[2]int{round, round / 3}[i]%3]
			return ts.do(way[0], auth+"/users/"+ids[i]+way[1], tokens[i], way[2])
		})
		if got := tally(answers); got != "map[200 :1 409 last_superadmin:1]" {
			t.Fatalf("round %d of the last two superadmins removing themselves: %s", round, got)
		}
		if answers[1].status == 409 {
			ids[0], tokens[0] = ids[1], tokens[1]
		}
	}
}

func TestDB_PurgeTakesWhatExpiredAndNothingElse(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	access, _ := ts.mustLogin(adminEmail, adminPassword)
	const keep = 30 * 24 * time.Hour
	start, year := ts.now(), ts.now().AddDate(1, 0, 0)
	purge := func(at, latest time.Time, want int64) {
		t.Helper()
		if horizon, removed, err := ts.store.purge(context.Background(), at, keep); err != nil || horizon.After(latest) || removed != want {
			t.Fatalf("purge at %v: horizon %v, removed %d, %v; want a horizon up to %v and %d rows", at, horizon, removed, err, latest, want)
		}
	}
	purge(start, start, 0)
	const numbers = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 450) ` // more than two batches
	ts.pragma(fmt.Sprintf(numbers+`INSERT INTO sessions SELECT 'old' || i, (SELECT id FROM users), x'00', NULL, NULL, 0, 0, %d, 0, '', '' FROM n`, start.Add(-3*time.Hour).Unix()))
	ts.pragma(fmt.Sprintf(numbers+`INSERT INTO known_addresses SELECT (SELECT id FROM users), i, %d FROM n`, start.Add(-keep-3*time.Hour).Unix()))
	purge(start.Add(time.Second), start.Add(time.Second), 900)
	purge(year, start.Add(time.Second), 0) // a clock that jumps ahead moves the horizon no further than to the right time,
	purge(start.Add(time.Minute), start.Add(time.Minute), 0)
	ts.want(ts.do("GET", auth+"/me", access, nil), 200, "", "GET /me after the jumps")
	for hours := time.Duration(2); hours <= 7*24; hours += 2 { // and one that is right catches up
		purge(year, start.Add(hours*time.Hour+time.Minute), 0)
	}
	purge(year, start.Add(170*time.Hour+time.Minute), 1)
}

// TestDB_HoldsNoSecrets: who steals the files or reads the log can neither refresh nor log in.
func TestDB_HoldsNoSecrets(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.reuseGraceSeconds, c.databaseEcho, c.logLevel = 10, true, "debug" })
	secrets := []string{adminPassword, "sesame-open-1", "sesame-open-2", "sesame-wrong-3"}
	var access, token string
	use := func(a answer) {
		ts.want(a, 200, "", "login or refresh")
		access, token = a.text("access_token"), a.text("refresh_token")
		secrets = append(secrets, access, strings.Split(access, ".")[2], token, strings.Split(token, ".")[1])
	}
	ts.want(ts.do("POST", auth+"/register", "", object{"email": "eve@example.com", "password": "sesame-open-1"}), 200, "", "register")
	ts.want(ts.login("eve@example.com", "sesame-wrong-3", ""), 401, "", "wrong password")
	use(ts.login("eve@example.com", "sesame-open-1", ""))
	for range 5 {
		parent := token
		use(ts.refresh(parent))
		use(ts.refresh(parent))
	}
	ts.want(ts.do("POST", auth+"/me/password", access, object{"old_password": "sesame-open-1", "new_password": "sesame-open-2"}), 200, "", "password")
	use(ts.login("eve@example.com", "sesame-open-2", ""))
	stored := ts.logs.String()
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(filepath.Join(ts.dir, "auth.db"+suffix))
		noError(t, err)
		stored += string(data)
	}
	if !strings.Contains(stored, "eve@example.com") || !strings.Contains(stored, "INSERT INTO sessions") {
		t.Fatal("the search looks in the wrong place")
	}
	for _, secret := range secrets {
		same(t, secret+" is in the database, its WAL or the log", strings.Contains(stored, secret), false)
	}
}

func TestDB_SchemaExplainsItself(t *testing.T) {
	t.Parallel()
	for _, table := range strings.Split(schema, "CREATE TABLE ")[1:] {
		name, _, _ := strings.Cut(table, " ")
		body, options, _ := strings.Cut(table, "\n)")
		columns := regexp.MustCompile(`(?m)^\t([a-z_]+) .*$`).FindAllStringSubmatch(body, -1)
		same(t, name+" is STRICT and has columns", strings.HasPrefix(options, " STRICT") && len(columns) > 1, true)
		for _, c := range columns {
			same(t, "column "+name+"."+c[1]+" has a comment", strings.Contains(c[0], " -- "), true)
		}
	}
	ts := newTestServer(t)
	var marks string
	noError(t, ts.store.get(`SELECT application_id || ' ' || user_version || ' ' || journal_mode FROM pragma_application_id, pragma_user_version, pragma_journal_mode`, nil, &marks))
	same(t, "marks of a new file", marks, fmt.Sprint(applicationID, " ", len(migrations), " wal"))
}

// execFile makes or changes a SQLite file as another program would.
func execFile(t testing.TB, path, statements string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path))
	noError(t, err)
	defer db.Close()
	_, err = db.Exec(statements, args...)
	noError(t, err)
}

func TestDB_FilesAreRefusedUntouchedOrMadePrivate(t *testing.T) {
	t.Parallel()
	newer := schema + fmt.Sprintf(`PRAGMA user_version = %d; PRAGMA application_id = %d`, len(migrations)+1, applicationID)
	for _, c := range []struct {
		name, refusal string
		make          func(path string)
	}{
		{"new", "", func(string) {}},
		{"readable by others", "", func(path string) { execFile(t, path, `VACUUM`); os.Chmod(path, 0o644) }},
		{"newer schema", "newer", func(path string) { execFile(t, path, newer) }},
		{"foreign database", "neither", func(path string) { execFile(t, path, `CREATE TABLE users (id, name)`) }},
		{"not SQLite", "not a database", func(path string) { os.WriteFile(path, bytes.Repeat([]byte("no database\n"), 500), 0o600) }},
		{"short file", "not a database", func(path string) { os.WriteFile(path, []byte("hello"), 0o600) }},
		{"directory", "not a file", func(path string) { os.Mkdir(path, 0o700) }},
	} {
		path := filepath.Join(t.TempDir(), "auth.db")
		c.make(path)
		before, _ := os.ReadFile(path)
		s, _, err := openStore(path, nil, time.Now(), nil)
		if c.refusal != "" {
			after, _ := os.ReadFile(path)
			if err == nil || !strings.Contains(err.Error(), c.refusal) || !strings.Contains(err.Error(), path) || !bytes.Equal(before, after) {
				t.Errorf("opening (%s): %v, changed %t; want %q, the name of the file, and no change", c.name, err, !bytes.Equal(before, after), c.refusal)
			}
			continue
		}
		noError(t, err)
		for _, suffix := range []string{"", "-wal", "-shm"} {
			info, err := os.Stat(path + suffix)
			noError(t, err)
			same(t, c.name+": mode", info.Mode().Perm(), 0o600)
		}
		noError(t, s.close())
	}
}

// picoAuth is the schema of pico-auth 0.1.2; picoAuthNewer is what later versions added.
const picoAuth = `
CREATE TABLE users (id VARCHAR(36) NOT NULL, email VARCHAR(255) NOT NULL, display_name VARCHAR(255) NOT NULL, password_hash VARCHAR(255) NOT NULL, role VARCHAR(50) NOT NULL, org_id VARCHAR(100) NOT NULL, status VARCHAR(50) NOT NULL, created_at VARCHAR(50) NOT NULL, last_login_at VARCHAR(50), PRIMARY KEY (id));
CREATE UNIQUE INDEX ix_users_email ON users (email);
CREATE TABLE refresh_tokens (id VARCHAR(36) NOT NULL, user_id VARCHAR(36) NOT NULL, token_hash VARCHAR(64) NOT NULL, expires_at VARCHAR(50) NOT NULL, created_at VARCHAR(50) NOT NULL, PRIMARY KEY (id));
CREATE UNIQUE INDEX ix_refresh_tokens_token_hash ON refresh_tokens (token_hash);
CREATE INDEX ix_refresh_tokens_user_id ON refresh_tokens (user_id);`

const picoAuthNewer = `
CREATE TABLE groups (id VARCHAR(36) NOT NULL, name VARCHAR(255) NOT NULL, description VARCHAR(500) NOT NULL, org_id VARCHAR(100) NOT NULL, created_at VARCHAR(50) NOT NULL, updated_at VARCHAR(50) NOT NULL, PRIMARY KEY (id));
CREATE TABLE group_members (group_id VARCHAR(36) NOT NULL, user_id VARCHAR(36) NOT NULL, joined_at VARCHAR(50) NOT NULL, PRIMARY KEY (group_id, user_id));
CREATE TABLE service_tokens (id VARCHAR(36) NOT NULL, name VARCHAR(255) NOT NULL, token_hash VARCHAR(64) NOT NULL, role VARCHAR(50) NOT NULL, org_id VARCHAR(100) NOT NULL, description VARCHAR(500) NOT NULL, created_at VARCHAR(50) NOT NULL, revoked_at VARCHAR(50), PRIMARY KEY (id));
CREATE TABLE email_credentials (id VARCHAR(36) NOT NULL, agent_id VARCHAR(128) NOT NULL, email VARCHAR(256) NOT NULL, imap_host VARCHAR(256) NOT NULL, imap_port INTEGER NOT NULL, smtp_host VARCHAR(256) NOT NULL, smtp_port INTEGER NOT NULL, username VARCHAR(256) NOT NULL, password VARCHAR(512) NOT NULL, use_tls BOOLEAN NOT NULL, created_at VARCHAR(50) NOT NULL, PRIMARY KEY (id));
INSERT INTO groups VALUES ('g1', 'team', '', 'default', 'then', 'then'); INSERT INTO group_members VALUES ('g1', 'plain', 'then');
INSERT INTO service_tokens VALUES ('s1', 'bot', 'hash', 'viewer', 'default', '', 'then', NULL);
INSERT INTO email_credentials VALUES ('e1', 'agent', 'e@example.com', 'i', 1, 's', 2, 'u', 'p', 1, 'then');`

const picoTime = "2026-02-20T10:11:12.123456+00:00"

// picoUsers are the users of an old database and how their logins must end.
var picoUsers = []struct {
	id, email, password, role, status, created string
	login                                      string
	renewed                                    bool // the login makes a hash of today's form
}{
	{"plain", "Plain@example.com", "plain password", "operator", "active", picoTime, "200 ", true},
	{"whole", "whole@example.com", "plain password", "org_admin", "active", "2026-02-20T10:11:13+00:00", "200 ", true},
	{"short", "short@example.com", "pw", "viewer", "active", picoTime, "200 ", false},
	{"cut", "cut@example.com", "x" + strings.Repeat("é", 50), "viewer", "active", picoTime, "200 ", false},
	{"twin-upper", "Twin@example.com", "of the upper one", "viewer", "active", picoTime, "200 ", true},
	{"twin-lower", "twin@example.com", "of the lower one", "viewer", "active", "2026-02-21T00:00:00+00:00", "200 ", true},
	{"pair-b", "Pair@example.com", "of the younger", "viewer", "active", "2026-02-22T00:00:00+00:00", "200 ", true},
	{"pair-a", "PAIR@example.com", "of the older", "viewer", "active", picoTime, "200 ", true},
	{"umlaut", "jürgen@exämple.com", "plain password", "viewer", "active", picoTime, "200 ", true},
	{"UMLAUT", "JÜRGEN@exämple.com", "other password", "viewer", "active", picoTime, "200 ", true},
	{"none", "", "plain password", "viewer", "active", picoTime, "200 ", true},
	{"blanks", "  with blanks ", "plain password", "viewer", "active", picoTime, "200 ", true},
	{"long", strings.Repeat("l", 10_000), "plain password", "viewer", "active", picoTime, "200 ", true},
	{"open", "open@example.com", "", "viewer", "active", picoTime, "403 password_reset_required", false},
	{"shut", "shut@example.com", "plain password", "viewer", "suspended", picoTime, "403 user_suspended", false},
	{"odd", "odd@example.com", "plain password", "auditor", "active", picoTime, "200 ", true},
}

// picoToken is refresh token n of an old database: 1 as usual, 2 without an offset, 3 expired, 4 of a suspended user, 5 of nobody.
func picoToken(n int) string { return fmt.Sprintf("%032x", n) }

// writePicoAuth makes an old database; hash is how its version stored tokens.
func writePicoAuth(t testing.TB, path, tables string, hash func(token string) []byte) {
	t.Helper()
	execFile(t, path, tables)
	for i, u := range picoUsers {
		last := sql.NullString{String: "2026-03-01T00:00:00+00:00", Valid: i%2 == 0}
		execFile(t, path, `INSERT INTO users VALUES ($1, $2, 'Name of ' || $1, $3, $4, 'acme', $5, $6, $7)`,
			u.id, u.email, string(asImported(hash4(t, u.password))), u.role, u.status, u.created, last)
	}
	soon := time.Now().UTC().Add(48 * time.Hour).Format("2006-01-02T15:04:05.000000+00:00")
	for i, x := range [][2]string{{"plain", soon}, {"whole", soon[:19]}, {"plain", picoTime}, {"shut", soon}, {"nobody", soon}} {
		execFile(t, path, `INSERT INTO refresh_tokens VALUES ($1, $2, $3, $4, $5)`, i, x[0], hex.EncodeToString(hash(picoToken(i+1))), x[1], picoTime)
	}
}

// adopted starts a server on an old database.
func adopted(t *testing.T, tables string, hash func(string) []byte) *testServer {
	t.Helper()
	ts := newTestServer(t, func(c *config) { writePicoAuth(t, c.databasePath(), tables, hash) })
	ts.logOpening()
	return ts
}

func TestAdopt_EverybodyKeepsLoggingIn(t *testing.T) {
	t.Parallel()
	ts := adopted(t, picoAuth, hashToken)
	for i, u := range picoUsers {
		created, _ := time.Parse(time.RFC3339, u.created)
		row, err := ts.store.userByLogin(u.email)
		noError(t, err)
		want := user{seq: row.seq, id: u.id, email: u.email, displayName: "Name of " + u.id, passwordHash: row.passwordHash, role: u.role, orgID: "acme",
			status: u.status, createdAt: created.Unix(), lastLoginAt: sql.NullInt64{Int64: 1772323200 * int64(1-i%2), Valid: i%2 == 0}}
		same(t, "adopted user", fmt.Sprintf("%+v", row), fmt.Sprintf("%+v", want))
		ts.want(ts.login(u.email, "wrong "+u.password, ""), 401, "invalid_credentials", "wrong password of "+u.id)
		a := ts.login(u.email, u.password, "")
		same(t, "login of "+u.id, a.outcome(), u.login)
		row, _ = ts.store.userByLogin(u.email)
		same(t, "renewed hash of "+u.id, !imported(row.passwordHash), u.renewed)
		if a.status == 200 {
			me := ts.want(ts.do("GET", auth+"/me", a.text("access_token"), nil), 200, "", "GET /me of "+u.id)
			same(t, "GET /me", me.text("id")+me.text("email")+me.text("created_at"), u.id+u.email+rfc3339(created.Unix()))
			ts.want(ts.login(u.email, u.password, ""), 200, "", "second login of "+u.id)
		}
	}
	// A spelling that nobody registered belongs to the one in lower case, or else to the oldest.
	ts.mustLogin("TWIN@EXAMPLE.COM", "of the lower one")
	ts.mustLogin("pair@example.com", "of the older")
	ts.want(ts.do("POST", auth+"/register", "", object{"email": "pAIR@example.com", "password": userPassword}), 409, "user_exists", "a third twin")
	for _, email := range []string{"Twin@", "twin@", "Pair@", "PAIR@"} {
		same(t, email+" is reported in the log", strings.Contains(ts.logs.String(), "email="+email+"example.com") && len(ts.did.twins) == 4, true)
	}
}

// TestAdopt_DefaultPasswordsAreFound: whichever command adopted the file, and whoever is the configured admin now,
// a server that can be reached from elsewhere does not start while an adopted superadmin has the default password.
func TestAdopt_DefaultPasswordsAreFound(t *testing.T) {
	t.Parallel()
	cfg := defaultConfig()
	dir := t.TempDir()
	cfg.dataDir, cfg.databaseURL, cfg.bcryptCost = filepath.Join(dir, "keys"), "sqlite:///"+filepath.Join(dir, "auth.db"), 4
	cfg.adminEmail, cfg.adminPassword, cfg.listen, cfg.issuer = "ops@example.com", "a password of its own", ":8100", "https://auth.example.com"
	writeTestKeys(t, cfg.dataDir)
	execFile(t, cfg.databasePath(), picoAuth)
	execFile(t, cfg.databasePath(), `INSERT INTO users VALUES ('1', 'admin@pico.local', 'Admin', $1, 'superadmin', 'default', 'active', $2, NULL)`,
		string(asImported(hash4(t, defaultAdminPassword))), picoTime)
	for _, step := range []string{"adopted by a shell command", "at the start after it", "at the next start"} {
		a, err := openApp(cfg, time.Now, discardLog)
		noError(t, err)
		if step != "adopted by a shell command" {
			err := a.ensureAdmin(t.Context(), newHasher(t.Context(), 4, 1, time.Now))
			if exitCode(err, io.Discard) != 2 || !strings.Contains(err.Error(), "admin@pico.local") {
				t.Errorf("%s: %v; want a refusal that names admin@pico.local", step, err)
			}
		}
		noError(t, a.store.close())
	}
}

// TestAdopt_TwinsKeepTheirSpelling: when the twin in lower case is gone, nobody can register the spelling of the other.
func TestAdopt_TwinsKeepTheirSpelling(t *testing.T) {
	t.Parallel()
	ts := adopted(t, picoAuth, hashToken)
	lower, err := ts.store.userByLogin("twin@example.com")
	noError(t, err)
	ts.want(ts.do("DELETE", auth+"/users/"+lower.id, ts.mustAdmin(), nil), 200, "", "DELETE of the lower twin")
	ts.want(ts.do("POST", auth+"/register", "", object{"email": "Twin@example.com", "password": userPassword}), 409, "user_exists", "the other's spelling")
	ts.want(ts.do("POST", auth+"/register", "", object{"email": "twin@example.com", "password": userPassword}), 200, "", "the free spelling")
}

// checkAdoptedTokens: a refresh token of pico-auth works once, becomes one of ours, and revokes when it comes again.
func checkAdoptedTokens(ts *testServer) {
	ts.Helper()
	for n, want := range map[int]int{1: 200, 2: 200, 3: 401, 4: 401, 5: 401, 6: 401} {
		a := ts.want(ts.refresh(picoToken(n)), want, "", "refresh with old token "+strconv.Itoa(n))
		if want != 200 {
			continue
		}
		b := ts.want(ts.refresh(a.text("refresh_token")), 200, "", "refresh with its successor")
		ts.want(ts.do("GET", auth+"/me", b.text("access_token"), nil), 200, "", "GET /me after an adopted refresh")
		ts.want(ts.refresh(picoToken(n)), 401, "invalid_token", "second use of an old token")
		ts.want(ts.refresh(b.text("refresh_token")), 401, "invalid_token", "the successor after that")
	}
}

func TestAdopt_OnceAndWithACopy(t *testing.T) {
	t.Parallel()
	ts := adopted(t, picoAuth, hashToken)
	checkAdoptedTokens(ts)
	copied := filepath.Join(ts.dir, "auth.db.before-adoption")
	did := opening{adopted: true, users: int64(len(picoUsers)), sessions: 2, twins: ts.did.twins, copy: copied}
	same(t, "first start", fmt.Sprintf("%+v", ts.did), fmt.Sprintf("%+v", did))
	s, did, err := openStore(ts.cfg.databasePath(), []byte("key"), time.Now(), nil)
	noError(t, err)
	defer s.close()
	same(t, "second start", fmt.Sprintf("%+v", did), fmt.Sprintf("%+v", opening{}))
	info, err := os.Stat(copied)
	noError(t, err)
	same(t, "mode of the copy", info.Mode().Perm(), 0o600)
	old, err := sql.Open("sqlite", dsn(copied))
	noError(t, err)
	defer old.Close()
	var counts, hash string
	noError(t, old.QueryRow(`SELECT (SELECT count(*) FROM users) || ' ' || (SELECT count(*) FROM refresh_tokens), (SELECT password_hash FROM users WHERE id = 'plain')`).Scan(&counts, &hash))
	same(t, "users and tokens in the copy", counts, fmt.Sprint(len(picoUsers), " 5"))
	same(t, "the copy has the passwords", matches([]byte(hash), "plain password"), true)
}

func TestAdopt_NewerVersions(t *testing.T) {
	t.Parallel()
	key := sha256.Sum256(append([]byte("pico-auth/token-hash-key/v1:"), testKeys()["private.pem"]...))
	ts := adopted(t, picoAuth+picoAuthNewer, func(token string) []byte {
		mac := hmac.New(sha256.New, key[:])
		mac.Write([]byte(token))
		return mac.Sum(nil)
	})
	checkAdoptedTokens(ts)
	var rows string
	noError(t, ts.store.get(`SELECT (SELECT id || name FROM groups) || (SELECT group_id || user_id FROM group_members) ||
		(SELECT id || token_hash FROM service_tokens) || (SELECT id || password || use_tls FROM email_credentials)`, nil, &rows))
	same(t, "tables of later versions", rows, "g1teamg1plains1hashe1p1")
}

// TestAdopt_AllOrNothing: a row that our schema refuses (a BLOB as a name) leaves the file to the Python server. After it
// is mended, two servers that start at once adopt once; likewise with a new file.
func TestAdopt_AllOrNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "auth.db")
	writePicoAuth(t, path, picoAuth, hashToken)
	execFile(t, path, `UPDATE users SET display_name = x'00ff' WHERE id = 'odd'`)
	before, _ := os.ReadFile(path)
	_, _, err := openStore(path, []byte("key"), time.Now(), nil)
	if after, _ := os.ReadFile(path); err == nil || !strings.Contains(err.Error(), "display_name") || !bytes.Equal(before, after) {
		t.Fatalf("adopting a row that does not fit: %v, file changed: %t", err, !bytes.Equal(before, after))
	}
	execFile(t, path, `UPDATE users SET display_name = 'mended' WHERE id = 'odd'`)
	for _, path := range []string{path, filepath.Join(t.TempDir(), "new.db")} {
		var did [2]opening
		noError(t, errors.Join(together(2, func(i int) (err error) {
			var s *store
			if s, did[i], err = openStore(path, []byte("key"), time.Now(), nil); err == nil {
				err = errors.Join(s.healthy(context.Background(), time.Now()), s.close())
			}
			return err
		})...))
		same(t, "exactly one of two servers did it", (did[0].adopted || did[0].created) != (did[1].adopted || did[1].created), true)
	}
}

// === http.go, oidc.go ===

// wantProblem checks an error against design.md section 3: status, code (unless empty), every member, every header.
// more holds names, of headers in upper case and of members in lower case, each followed by its value.
func (ts *testServer) wantProblem(a answer, status int, code, what string, more ...string) {
	ts.Helper()
	if a.status != status || (code != "" && a.text("code") != code) {
		ts.Errorf("%s = %d %.300s; want %d %s", what, a.status, a.body, status, code)
		return
	}
	more = append(more, "request_id", a.header.Get("X-Request-Id"), "type", "about:blank", "title", http.StatusText(status), "error", a.text("detail"), "Content-Type", "application/problem+json",
		"Cache-Control", "no-store", "X-Content-Type-Options", "nosniff", "Content-Security-Policy", "default-src 'none'")
	for pair := range slices.Chunk(more, 2) {
		got := a.text(pair[0])
		if pair[0] < "a" {
			got = a.header.Get(pair[0])
		}
		if got != pair[1] {
			ts.Errorf("%s: %s is %q; want %q", what, pair[0], got, pair[1])
		}
	}
	if a.json["status"] != float64(status) || a.text("detail") == "" || a.text("code") == "" || strings.Contains(a.body, "goroutine") {
		ts.Errorf("%s: %s is not the full problem", what, a.body)
	}
}

// wantBody checks a success to the byte.
func (ts *testServer) wantBody(a answer, body, what string) {
	ts.Helper()
	if a.status != 200 || a.body != body || a.header.Get("Content-Type") != "application/json" || a.header.Get("Cache-Control") != "no-store" {
		ts.Errorf("%s = %d %v %s; want %s", what, a.status, a.header, a.body, body)
	}
}

// record sends a request past the network, for what the client library refuses to send.
func (ts *testServer) record(req *http.Request) answer {
	rec := httptest.NewRecorder()
	ts.srv.ServeHTTP(rec, req)
	a := answer{status: rec.Code, header: rec.Result().Header, body: rec.Body.String()}
	json.Unmarshal(rec.Body.Bytes(), &a.json)
	return a
}

// as adds a user and logs it in.
func (ts *testServer) as(email string, r role, org string) (id, access string) {
	ts.Helper()
	id = ts.mustUser(email, r, org)
	access, _ = ts.mustLogin(email, userPassword)
	return id, access
}

func (ts *testServer) tryLogin(email, password string, headers ...string) answer {
	ts.Helper()
	return ts.do("POST", auth+"/login", "", object{"email": email, "password": password}, headers...)
}

// bodyRoute is an endpoint that reads a body: one it accepts, and which of its members may be left out.
type bodyRoute struct {
	method, path string
	good         object
	optional     []string
}

var bodyRoutes = []bodyRoute{
	{"POST", "/register", object{"email": "new@example.com", "password": userPassword, "display_name": "N"}, []string{"display_name"}},
	{"POST", "/login", object{"email": adminEmail, "password": adminPassword}, nil},
	{"POST", "/refresh", object{"refresh_token": "x.y"}, nil},
	{"POST", "/logout", object{"refresh_token": "x.y", "all": true}, []string{"all"}},
	{"POST", "/me/password", object{"old_password": adminPassword, "new_password": userPassword}, nil},
	{"POST", "/users", object{"email": "new@example.com", "password": userPassword, "display_name": "N", "role": viewer, "org_id": "o"},
		[]string{"display_name", "role", "org_id"}},
	{"PUT", "/users/registration", object{"enabled": true}, nil},
	{"PUT", "/users/{id}/role", object{"role": viewer}, nil},
	{"PUT", "/users/{id}/status", object{"status": statusActive}, nil},
	{"PUT", "/users/{id}/password", object{"new_password": userPassword}, nil},
	{"PUT", "/users/{id}/org", object{"org_id": "o"}, nil},
}

// spoil returns the good body as JSON with one member replaced, or left out when with is empty.
func (r bodyRoute) spoil(name, with string) string {
	var parts []string
	for _, m := range slices.Sorted(maps.Keys(r.good)) {
		value, _ := json.Marshal(r.good[m])
		if m == name {
			value = []byte(with)
		}
		if len(value) > 0 {
			parts = append(parts, fmt.Sprintf("%q:%s", m, value))
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func TestHTTP_BadBodiesAreRefused(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id, admin := ts.mustUser("ada@example.com", viewer, defaultOrg), ts.mustAdmin()
	notJSON := map[string]string{
		"empty": "", "cut off": "{", "BOM": "\ufeff{}", "two documents": "{}{}", "trailing text": "{} x", "bare word": "nul",
		"single quotes": "{'a':1}", "trailing comma": `{"a":1,}`, "invalid UTF-8": "{\"a\":\"\xff\"}",
		"lone surrogate": `{"a":"\ud800"}`, "reversed surrogates": `{"a":"\udc00\ud800"}`, "NUL": "{}\x00",
		"nesting": strings.Repeat("[", 20000) + strings.Repeat("]", 20000), "object nesting": strings.Repeat(`{"a":`, 10000),
	}
	covered := map[string]bool{}
	for _, r := range bodyRoutes {
		covered[r.method+" "+auth+r.path] = true
		token := admin
		if r.path == "/logout" { // with a token almost everything is a wish to log out
			token = ""
		}
		send := func(what, body string, status int, code, field string, headers ...string) {
			t.Helper()
			a := ts.do(r.method, auth+strings.Replace(r.path, "{id}", id, 1), token, body, headers...)
			ts.wantProblem(a, status, code, r.method+" "+r.path+" ("+what+")", "field", field)
		}
		for what, body := range notJSON {
			if r.path != "/logout" || body != "" {
				send(what, body, 400, "not_json", "")
			}
		}
		for _, body := range []string{"null", "[]", "7", "true", `[{"a":1}]`} {
			send(body, body, 422, "not_an_object", "")
		}
		for m := range r.good {
			send("duplicate "+m, strings.Replace(r.spoil("", ""), "{", fmt.Sprintf("{%q:null,", m), 1), 400, "not_json", "")
			send("case twin of "+m, strings.Replace(r.spoil("", ""), "{", fmt.Sprintf("{%q:null,", strings.ToUpper(m)), 1), 400, "not_json", "")
			for _, v := range []string{"", "null", "7", "[]", "{}", `["x"]`} {
				if v != "" && v != "null" || !slices.Contains(r.optional, m) {
					send(m+" is "+v, r.spoil(m, v), 422, "invalid_field", m)
				}
			}
		}
		send("64 KiB and a byte", `{"x":"`+strings.Repeat("a", maxBodyBytes-7)+`"}`, 413, "body_too_large", "")
		for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
			"application/json; charset=latin1", "application/jsonp", "text/json"} {
			send("content type "+kind, r.spoil("", ""), 415, "unsupported_media_type", "", "Content-Type: "+kind)
		}
	}
	// A new route that reads a body has to be added to the table.
	for _, rt := range ts.srv.routes() {
		if (strings.HasPrefix(rt.pattern, "P")) != covered[rt.pattern] {
			t.Errorf("%s: reads a body = %v, but the table of bodies says otherwise", rt.pattern, !covered[rt.pattern])
		}
	}
	body := fmt.Sprintf(`{"email":%q,"password":%q,"x":""}`, adminEmail, adminPassword)
	body = strings.Replace(body, `""`, `"`+strings.Repeat("a", maxBodyBytes-len(body))+`"`, 1)
	for _, kind := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"} {
		ts.want(ts.do("POST", auth+"/login", "", body, "Content-Type: "+kind), 200, "", "login of exactly 64 KiB as "+kind)
	}
	if n, err := ts.store.countUsers(userFilter{everyOrg: true}); n != 2 || err != nil {
		t.Errorf("%d users (%v) after nothing but bad requests; want 2", n, err)
	}
}

func TestHTTP_UncleanPathsAreNeverRedirected(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	for _, path := range []string{"/", "//", "/api", "/api/", "//api/v1/auth/login", "/api//v1/auth/login", "/api/v1/auth/login/", "/api/v1/auth/me/",
		"/api/../api/v1/auth/login", "/api/v1/auth/./login", "/api/v1/auth/%2e/login", "/api/%2e%2e/api/v1/auth/login", "/api/v1/auth/%6cogin", "/api/v1%2fauth/login",
		"/API/v1/auth/login", "/api/v1/auth/login%00", "/api/v1/auth/login%20", "/api/v1/auth/login;x", "/api/v1/auth/users/", "/api/v1/auth/users/x/role/", "/healthz/",
		"/.well-known", "/.well-known/openid-configuration/", `/api\v1\auth\login`, "/api/v1/auth/login/..", "/docs", "/favicon.ico"} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "OPTIONS"} {
			a := ts.do(method, path, "", object{"email": adminEmail, "password": adminPassword})
			ts.wantProblem(a, 404, "not_found", method+" "+path, "Location", "")
		}
	}
}

// Allow names exactly the methods that a path does not refuse (RFC 9110 section 10.2.1).
func TestHTTP_AllowTellsTheTruth(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	methods := []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"}
	for _, rt := range ts.srv.routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		path = strings.ReplaceAll(path, "{id}", "x")
		var known, allow []string
		for _, m := range methods {
			a := ts.do(m, path, "", nil)
			if a.status != 405 {
				known = append(known, m)
				continue
			}
			if allow = strings.Split(a.header.Get("Allow"), ", "); m != "HEAD" {
				ts.wantProblem(a, 405, "method_not_allowed", m+" "+path)
			}
		}
		if slices.Sort(allow); !slices.Equal(allow, slices.Sorted(slices.Values(known))) || !slices.Contains(known, method) {
			t.Errorf("%s: Allow is %q; what is answered is %q", rt.pattern, allow, known)
		}
	}
	// HEAD is GET without its body.
	for _, path := range []string{auth + "/me", auth + "/users", jwksPath, discoveryPath, "/healthz", auth + "/users/nobody", "/nowhere"} {
		admin := ts.mustAdmin()
		get, head := ts.do("GET", path, admin, nil), ts.do("HEAD", path, admin, nil)
		for _, name := range []string{"Content-Type", "Content-Length", "Etag", "Cache-Control"} {
			if get.header.Get(name) != head.header.Get(name) && path != "/nowhere" {
				t.Errorf("HEAD %s: %s is %q; GET has %q", path, name, head.header.Get(name), get.header.Get(name))
			}
		}
		if head.status != get.status || head.body != "" || get.body == "" {
			t.Errorf("HEAD %s = %d %q; GET is %d %q", path, head.status, head.body, get.status, get.body)
		}
	}
}

// net/http refuses some requests before a handler sees them, in text/plain but for our listener.
func TestHTTP_NetHTTPRefusalsAreProblems(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- serve(ctx, problemListener{ln}, ts.srv, discardLog) }()
	get, post := "GET /healthz HTTP/1.1\r\nHost: h\r\n", "POST /healthz HTTP/1.1\r\nHost: h\r\n"
	for request, status := range map[string]int{
		"GARBAGE\r\n\r\n": 400, "GET /healthz HTTP/1.1\r\n\r\n": 400, get + "Host: i\r\n\r\n": 400, get + "X : y\r\n\r\n": 400, get + "X: \x00\r\n\r\n": 400,
		"GET /healthz HTTP/1.1\r\n Host: folded\r\n\r\n": 400, post + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab": 400, post + "Content-Length: -1\r\n\r\n": 400,
		post + "Transfer-Encoding: gzip\r\n\r\n": 501, "GET /healthz HTTP/7.0\r\nHost: h\r\n\r\n": 505, get + "X: " + strings.Repeat("a", 33<<10) + "\r\n\r\n": 431,
		"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n": 404, "CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n": 404,
	} {
		ts.wantProblem(rawExchange(t, ln.Addr().String(), request), status, "", fmt.Sprintf("%.80q", request))
	}
	// Two framings in one request: it may be refused, or the chunks count (RFC 9112 section 6.3); the length never does.
	login := fmt.Sprintf(`{"email":%q,"password":%q}`, adminEmail, adminPassword)
	a := rawExchange(t, ln.Addr().String(), fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", loginPath, len(login), login))
	if a.status != 200 && a.text("code") != "bad_request" {
		t.Errorf("two framings = %d %s; want 200, or net/http's 400", a.status, a.body)
	}
	// The largest header that is no refusal: the limit is not simply low.
	if a := rawExchange(t, ln.Addr().String(), get+"X: "+strings.Repeat("a", 31<<10)+"\r\n\r\n"); a.status != 200 {
		t.Errorf("a header of 31 KB = %d %s; want 200", a.status, a.body)
	}
	if stop(); <-stopped != nil {
		t.Error("serve did not stop in peace")
	}
}

// rawExchange writes bytes and reads one answer.
func rawExchange(t *testing.T, addr, request string) (a answer) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(conn, request)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	data, err := io.ReadAll(res.Body)
	if err != nil || json.Unmarshal(data, &a.json) != nil {
		t.Errorf("%.60q is answered with %q, %v", request, data, err)
	}
	a.status, a.header, a.body = res.StatusCode, res.Header, string(data)
	return a
}

func TestHTTP_EveryRouteKeepsItsDoor(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	tokens := map[role]string{}
	for _, r := range []role{superadmin, orgAdmin, operator, viewer, "auditor"} { // the last one is unknown, as adopted ones can be
		_, tokens[r] = ts.as(r+"@example.com", r, defaultOrg)
	}
	for _, rt := range ts.srv.routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		path = strings.ReplaceAll(path, "{id}", "nobody")
		bare := ts.do(method, path, "", nil)
		for _, h := range []string{"X-Content-Type-Options", "Content-Security-Policy", "Cache-Control"} {
			if bare.header.Get(h) == "" {
				t.Errorf("%s has no header %s", rt.pattern, h)
			}
		}
		if bare.status >= 400 && bare.header.Get("X-Request-Id") == "" {
			t.Errorf("%s: an error without a request id", rt.pattern)
		}
		switch rt.need {
		case denied:
			t.Errorf("%s names no permission", rt.pattern)
			continue
		case public: // a token is not even looked at
			if a := ts.do(method, path, "garbage", nil); bare.status == 401 || (a.status != bare.status && path != auth+"/logout") {
				t.Errorf("%s = %d without a token, %d with a bad one; want the same, and not 401", rt.pattern, bare.status, a.status)
			}
			continue
		}
		ts.wantProblem(bare, 401, "token_missing", rt.pattern+" without a token", "WWW-Authenticate", "Bearer")
		ts.wantProblem(ts.do(method, path, "garbage", nil), 401, "invalid_token", rt.pattern+" with garbage", "WWW-Authenticate", `Bearer error="invalid_token"`)
		for r, token := range tokens {
			a, what := ts.do(method, path, token, nil), rt.pattern+" as "+r
			if !allows(r, rt.need) {
				ts.wantProblem(a, 403, "forbidden", what, "WWW-Authenticate", `Bearer error="insufficient_scope"`)
			} else if a.status == 401 || a.status == 403 || a.status >= 500 {
				t.Errorf("%s = %d %s; want it let in", what, a.status, a.body)
			}
		}
	}
}

func TestHTTP_AuthorizationHeader(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	token, refresh := ts.mustLogin(adminEmail, adminPassword)
	parts := strings.Split(token, ".")
	bearer := func(values ...string) answer {
		req := httptest.NewRequest("GET", auth+"/me", nil)
		req.Header["Authorization"] = values
		return ts.record(req)
	}
	ts.want(bearer("Bearer "+token), 200, "", "Bearer")
	ts.want(bearer("bEARER "+token), 200, "", "scheme in other case")
	ts.wantProblem(bearer("Bearer "+token, "Bearer "+token), 401, "invalid_token", "two headers")
	for _, value := range []string{"", "Bearer", "Bearer ", token, "Basic " + token, "Bearer " + token + ", Bearer " + token, "Bearer " + parts[0], "Bearer " + parts[0] + "." + parts[1],
		"Bearer " + token + ".", "Bearer " + token + ".x.y", `Bearer {"protected":"` + parts[0] + `"}`, "Bearer " + strings.Repeat(".", 1<<20), "Bearer " + refresh} {
		ts.wantProblem(bearer(value), 401, "invalid_token", fmt.Sprintf("%.60s… of %d bytes", value, len(value)))
	}
	ts.wantProblem(ts.do("GET", auth+"/me?access_token="+token, "", nil), 401, "token_missing", "token in the query")
	ts.clock.advance(15 * time.Minute)
	ts.wantProblem(ts.do("GET", auth+"/me", token, nil), 401, "token_expired", "token in the second of its exp")
}

// A bug costs one request: the client learns a request id, the log the rest.
func TestHTTP_InternalErrorsStayInside(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	add := func(path string, h handler) { ts.srv.mux.HandleFunc("GET "+path, ts.srv.adapt(route{path, public, h})) }
	add("/panics", func(*response, *http.Request, principal) error { panic("inner thoughts") })
	add("/fails", func(*response, *http.Request, principal) error { return errors.New("inner thoughts") })
	add("/begins", func(w *response, _ *http.Request, _ principal) error {
		io.WriteString(w, `{"half`)
		panic("inner thoughts")
	})
	for _, path := range []string{"/panics", "/fails"} {
		a := ts.do("GET", path, "", nil)
		id := a.header.Get("X-Request-Id")
		ts.wantProblem(a, 500, "internal_error", path, "detail", "internal error", "request_id", id)
		if strings.Contains(a.body, "thoughts") {
			t.Errorf("%s answers %s", path, a.body)
		}
		if log := ts.logs.String(); !strings.Contains(log, "level=ERROR") || strings.Count(log, "id="+id+" ") < 2 || !strings.Contains(log, "inner thoughts") {
			t.Errorf("%s: the log does not tell what happened to %s: %s", path, id, log)
		}
	}
	// An answer that has begun is cut, so that half of it is not taken for a whole one.
	if res, err := noRedirects.Get(ts.url + "/begins"); err == nil {
		if data, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("half an answer looks whole: %d %s", res.StatusCode, data)
		}
		res.Body.Close()
	}
	ts.mustAdmin()
}

func TestHTTP_CORS(t *testing.T) {
	t.Parallel()
	listed := func(origins ...string) *testServer {
		return newTestServer(t, func(c *config) { c.corsOrigins = origins })
	}
	none, one, all := listed(), listed("https://app.example", "https://b.example"), listed("*")
	for _, c := range []struct {
		ts                 *testServer
		path, origin, want string // want: Access-Control-Allow-Origin
	}{
		{none, auth + "/me", "https://app.example", ""}, {one, auth + "/me", "https://evil.example", ""}, {one, auth + "/me", "null", ""}, {one, auth + "/me", "http://app.example", ""},
		{one, auth + "/me", "https://app.example.evil.example", ""}, {one, auth + "/me", "https://app.example:8443", ""}, {one, auth + "/me", "https://APP.example", ""},
		{one, auth + "/me", "https://app.example", "https://app.example"}, {one, auth + "/login", "https://b.example", "https://b.example"}, {one, "/nowhere", "https://b.example", "https://b.example"},
		{all, auth + "/me", "https://evil.example", "*"}, {none, jwksPath, "https://evil.example", "*"}, {one, discoveryPath, "null", "*"},
	} {
		name := c.origin + " at " + c.path
		plain := c.ts.do("GET", c.path, "", nil, "Origin: "+c.origin)
		preflight := c.ts.do("OPTIONS", c.path, "", nil, "Origin: "+c.origin, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization")
		for _, a := range []answer{plain, preflight} {
			if got := a.header.Get("Access-Control-Allow-Origin"); got != c.want || a.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s: Access-Control-Allow-Origin is %q, credentials %q; want %q and none", name, got, a.header.Get("Access-Control-Allow-Credentials"), c.want)
			}
			if c.ts == one && c.want != "*" && a.header.Get("Vary") != "Origin" { // caches must not give one origin's answer to another
				t.Errorf("%s: Vary is %q", name, a.header.Get("Vary"))
			}
		}
		if granted := preflight.status == 204 && strings.Contains(preflight.header.Get("Access-Control-Allow-Headers"), "Authorization") &&
			strings.Contains(preflight.header.Get("Access-Control-Allow-Methods"), "DELETE") && preflight.body == ""; granted != (c.want != "") {
			t.Errorf("%s: preflight = %d %v", name, preflight.status, preflight.header)
		}
		if c.path == auth+"/me" {
			c.ts.wantProblem(plain, 401, "token_missing", name) // an error has the headers too, or a browser hides it
		}
	}
}

func TestOIDC_DiscoveryIsHonest(t *testing.T) {
	t.Parallel()
	for _, issuer := range []string{"http://localhost:8100", "https://id.example.com/", "https://id.example.com/auth", "https://id.example.com/auth/"} {
		ts := newTestServer(t, func(c *config) { c.issuer = issuer })
		base := strings.TrimSuffix(issuer, "/")
		a := ts.want(ts.do("GET", discoveryPath, "", nil, "Host: evil.example", "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https"), 200, "", "discovery")
		if a.text("issuer") != issuer || a.text("token_endpoint") != base+loginPath || a.text("jwks_uri") != base+jwksPath || strings.Contains(a.body, "evil") {
			t.Errorf("issuer %s: discovery says %s", issuer, a.body)
		}
		for name, want := range map[string]string{"response_types_supported": "[token]", "subject_types_supported": "[public]", "id_token_signing_alg_values_supported": "[RS256]"} {
			if fmt.Sprint(a.json[name]) != want {
				t.Errorf("%s is %v; want %s", name, a.json[name], want)
			}
		}
		// What is advertised answers, and signs as it says: every *_endpoint and *_uri is a route.
		for name, v := range a.json {
			if path, ok := strings.CutPrefix(fmt.Sprint(v), base+"/"); ok && name != "issuer" {
				if got := ts.do("GET", "/"+path, "", nil); got.status == 404 || (got.status == 405 && got.header.Get("Allow") != "POST") {
					t.Errorf("%s: %s = %d %s", name, path, got.status, got.body)
				}
			}
		}
		if iss := payloadOf(t, ts.mustAdmin())["iss"]; iss != issuer {
			t.Errorf("tokens have iss %v; want %s", iss, issuer)
		}
	}
}

func TestOIDC_DocumentsAreCacheable(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	for _, path := range []string{jwksPath, discoveryPath} {
		first := ts.want(ts.do("GET", path, "", nil), 200, "", path)
		etag := first.header.Get("ETag")
		if !regexp.MustCompile(`^"[^"]+"$`).MatchString(etag) || first.header.Get("Cache-Control") != "public, max-age=300" || first.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s comes with %v", path, first.header)
		}
		for match, want := range map[string]int{etag: 304, "W/" + etag: 304, `"x", ` + etag: 304, "*": 304, `"x"`: 200, strings.Trim(etag, `"`): 200} {
			a := ts.do("GET", path, "", nil, "If-None-Match: "+match)
			if a.status != want || (a.body == "") != (want == 304) || a.header.Get("ETag") != etag || a.header.Get("Cache-Control") != "public, max-age=300" {
				t.Errorf("%s with If-None-Match: %s = %d %q %v; want %d", path, match, a.status, a.body, a.header, want)
			}
		}
	}
}

// FuzzDecode: whatever bytes come as a body, the answer is JSON and no failure of ours.
func FuzzDecode(f *testing.F) {
	ts := newTestServer(f)
	for _, seed := range []string{"", "{", `{"email":"a@b","password":"x"}`, `{"email":"admin@example.com","password":"correct horse"}`, "\xff", `{"email":"\ud800"}`,
		`{"email":null,"password":[]}`, `{"a":1,"A":2}`, strings.Repeat("[", 50), `{"password":"\u0000","email":"\u0000"}`, "\ufeff{}", `1e999`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		req := httptest.NewRequest("POST", auth+"/login", bytes.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		a := ts.record(req)
		if a.status >= 500 || a.status < 200 || a.json == nil || (a.status != 200 && a.text("code") == "") {
			t.Errorf("login with %q = %d %s", body, a.status, a.body)
		}
	})
}

// === handlers.go ===

// payloadOf decodes the claims of a token without verifying it.
func payloadOf(t *testing.T, token string) (c object) {
	t.Helper()
	data, err := b64.DecodeString(strings.Split(token+"..", ".")[1])
	if err != nil || json.Unmarshal(data, &c) != nil {
		t.Fatalf("%q has no payload", token)
	}
	return c
}

func userWith(email string, hash []byte) user {
	return user{id: newID(), email: email, passwordHash: hash, role: viewer, orgID: defaultOrg, status: statusActive}
}

// wantDead checks that a session has ended for both of its tokens.
func (ts *testServer) wantDead(access, refresh, what string) {
	ts.Helper()
	ts.wantProblem(ts.do("GET", auth+"/me", access, nil), 401, "invalid_token", "access token, "+what)
	ts.wantProblem(ts.refresh(refresh), 401, "invalid_token", "refresh token, "+what)
}

// countingHasher replaces the hasher by one that counts: it reads its clock twice for each computation.
func (ts *testServer) countingHasher() (computed func() int64) {
	ctx, cancel := context.WithCancel(context.Background())
	ts.Cleanup(cancel)
	var reads atomic.Int64
	ts.srv.hasher = newHasher(ctx, ts.srv.hasher.cost, 1, func() time.Time { reads.Add(1); return ts.now() })
	return func() int64 { return reads.Load() / 2 }
}

func TestRegister_MakesAViewerWhateverIsAsked(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	for i, extra := range []string{`"role":"superadmin"`, `"Role":"superadmin"`, `"org_id":"acme"`, `"status":"suspended"`, `"id":"mine"`, `"is_admin":true`,
		`"password_hash":"$2a$04$"`, `"role":null`, `"user":{"role":"superadmin"}`} {
		email := fmt.Sprintf("Ada%d@Example.com", i)
		a := ts.want(ts.do("POST", auth+"/register", "", fmt.Sprintf(`{%s,"email":%q,"password":%q,"display_name":"Ada é"}`, extra, email, userPassword)), 200, "", extra)
		ts.wantBody(a, fmt.Sprintf(`{"id":%q,"email":%q,"role":"viewer","status":"active"}`, a.text("id"), email), "register with "+extra)
		want := fmt.Sprintf(`{"id":%q,"email":%q,"display_name":"Ada é","role":"viewer","org_id":"default","status":"active","created_at":%q,"last_login_at":null}`,
			a.text("id"), email, ts.now().UTC().Format(time.RFC3339))
		ts.wantBody(ts.do("GET", auth+"/users/"+a.text("id"), admin, nil), want, "user registered with "+extra)
		ts.mustLogin(strings.ToUpper(email), userPassword) // emails are looked up without case
	}
	for _, twin := range []string{"Ada0@Example.com", "ada0@example.com", "ADA0@EXAMPLE.COM"} {
		a := ts.do("POST", auth+"/register", "", object{"email": twin, "password": userPassword})
		ts.wantProblem(a, 409, "user_exists", twin, "error", "User already exists: "+twin)
	}
}

func TestRegister_ChecksWhatIsStored(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.throttle.registrations = 0 })
	long := func(n int) string { return strings.Repeat("a", n-len("@b.example")) + "@b.example" }
	for _, c := range []struct{ field, value, problem string }{
		{"email", long(254), ""}, {"email", "a+b.c-d_e'f@b.example", ""}, {"email", "x@localhost", ""},
		{"email", long(255), "254"}, {"email", "", "address"}, {"email", "@", "address"}, {"email", "@b.c", "address"}, {"email", "a@", "address"}, {"email", "ab", "address"},
		{"email", "a@b@c", "address"}, {"email", " a@b.c", "plain"}, {"email", "a@b.c ", "plain"}, {"email", "a b@c.d", "plain"}, {"email", "a@b.c\t", "plain"}, {"email", "a@b.c\r\nX: y", "plain"},
		{"email", "a@b.c\n", "plain"}, {"email", "a@b.c\x00", "plain"}, {"email", "a@b.c\x7f", "plain"}, {"email", "Bob <a@b.c>", "plain"}, {"email", `"a"@b.c`, "plain"}, {"email", "a@[::1]", "plain"},
		{"email", "é@b.c", "plain"}, {"email", "\u212aim@b.c", "plain"}, {"email", "\u0130@b.c", "plain"}, {"email", "\u0131@b.c", "plain"}, {"email", "\u017fam@b.c", "plain"},
		{"email", "\uff41@b.c", "plain"}, {"email", "a\u200b@b.c", "plain"}, {"email", "a\uff20b.c", "address"}, {"email", "a\u00a0@b.c", "plain"},

		{"password", "8 chars.", ""}, {"password", "aaaaaaaa", ""}, {"password", "пароль12", ""}, {"password", "éééééééé", ""}, {"password", "        ", ""}, {"password", strings.Repeat("é", 36), ""},
		{"password", strings.Repeat("x", 64), ""}, {"password", strings.Repeat("x", 72), ""},
		{"password", "", "at least 8"}, {"password", "7 chars", "at least 8"}, {"password", "ééééééé", "at least 8"}, {"password", strings.Repeat("x", 73), "at most 72"},
		{"password", strings.Repeat("é", 36) + "x", "at most 72"}, {"password", "NUL at \x00 the middle", "NUL"}, {"password", "ends in NUL\x00", "NUL"},

		{"display_name", "", ""}, {"display_name", "Zoë 🦉 O'Hara <z>", ""}, {"display_name", strings.Repeat("x", 255), ""},
		{"display_name", strings.Repeat("x", 256), "255"}, {"display_name", strings.Repeat("é", 128), "255"}, {"display_name", "a\nb", "control"}, {"display_name", "\x00", "control"},
		{"display_name", "\x1b[31m", "control"}, {"display_name", "\u0085", "control"}, {"display_name", "\x7f", "control"},
	} {
		body := object{"email": newID() + "@b.example", "password": userPassword, c.field: c.value}
		a, what := ts.do("POST", auth+"/register", "", body), fmt.Sprintf("%s %q", c.field, c.value)
		if c.problem == "" {
			ts.want(a, 200, "", what)
			ts.want(ts.tryLogin(body["email"].(string), body["password"].(string)), 200, "", "login with "+what)
			continue
		}
		ts.wantProblem(a, 422, "invalid_field", what, "field", c.field)
		if !strings.HasPrefix(a.text("detail"), c.field+" must ") || !strings.Contains(a.text("detail"), c.problem) {
			t.Errorf("%s is refused with %s; want field %s and a word on %q", what, a.body, c.field, c.problem)
		}
	}
}

// An email that is taken costs as much as a free one, and counts as much: time and limits do not tell who exists.
func TestRegister_TakenEmailsCostTheSame(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	computed := ts.countingHasher()
	for i := range 60 {
		status := 409
		if i == 0 {
			status = 200
		}
		ts.want(ts.do("POST", auth+"/register", "", object{"email": "ada@example.com", "password": userPassword}), status, "", "register")
		if computed() != int64(i+1) {
			t.Fatalf("%d registrations cost %d hashes", i+1, computed())
		}
	}
	a := ts.do("POST", auth+"/register", "", object{"email": "free@example.com", "password": userPassword})
	if ts.wantProblem(a, 429, "too_many_attempts", "61st registration", "Retry-After", "3600"); computed() != 60 {
		t.Errorf("the 61st registration cost a hash")
	}
	ts.clock.advance(time.Hour)
	ts.want(ts.do("POST", auth+"/register", "", object{"email": "free@example.com", "password": userPassword}), 200, "", "register an hour later")
	// The same holds for login: one comparison for everybody.
	for i, email := range []string{"ada@example.com", "nobody@example.com"} {
		if ts.want(ts.tryLogin(email, "wrong password"), 401, "", email); computed() != int64(62+i) {
			t.Errorf("login of %s: %d computations; want one", email, computed()-int64(61+i))
		}
	}
}

func TestRegister_CanBeTurnedOff(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin, new := ts.mustAdmin(), object{"email": "ada@example.com", "password": userPassword}
	setting := func(h http.Handler, method string, body any) string {
		data, _ := json.Marshal(body)
		req, rec := httptest.NewRequest(method, auth+"/users/registration", bytes.NewReader(data)), httptest.NewRecorder()
		req.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + admin}}
		h.ServeHTTP(rec, req)
		return rec.Body.String()
	}
	if got := setting(ts.srv, "GET", nil) + setting(ts.srv, "PUT", object{"enabled": false}); got != `{"registration_enabled":true}{"registration_enabled":false}` {
		t.Errorf("GET and PUT registration = %s", got)
	}
	a := ts.do("POST", auth+"/register", "", new)
	ts.wantProblem(a, 403, "registration_disabled", "register", "error", "Public registration is disabled")
	ts.want(ts.do("POST", auth+"/users", admin, new), 200, "", "an admin creates a user all the same")
	// The decision outlives the process, and the setting in the file.
	again, _, err := openStore(ts.cfg.databasePath(), nil, ts.now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if got := setting(newServer(ts.cfg, again, ts.keys, ts.srv.hasher, ts.now, discardLog), "GET", nil); got != `{"registration_enabled":false}` || !ts.cfg.registration {
		t.Errorf("registration after a restart = %s", got)
	}
	setting(ts.srv, "PUT", object{"enabled": true})
	ts.want(ts.do("POST", auth+"/register", "", object{"email": "bob@example.com", "password": userPassword}), 200, "", "register, turned on again")
}

func TestLogin_AnswersWithTokens(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id := ts.mustUser("Ada@example.com", operator, "acme")
	ts.clock.advance(time.Hour)
	a, now := ts.want(ts.tryLogin("ada@EXAMPLE.com", userPassword), 200, "", "login"), ts.now()
	access := a.text("access_token")
	ts.wantBody(a, fmt.Sprintf(`{"access_token":%q,"refresh_token":%q,"token_type":"Bearer","expires_in":900}`, access, a.text("refresh_token")), "login")
	parts := strings.Split(access, ".")
	header, _ := b64.DecodeString(parts[0])
	claims, _ := b64.DecodeString(parts[1])
	kid := ts.do("GET", jwksPath, "", nil).json["keys"].([]any)[0].(object)["kid"]
	if want := fmt.Sprintf(`{"alg":"RS256","kid":%q,"typ":"JWT"}`, kid); string(header) != want {
		t.Errorf("header %s; want %s", header, want)
	}
	want := fmt.Sprintf(`^{"sub":%q,"email":"Ada@example.com","role":"operator","org_id":"acme","iss":"http://localhost:8100","aud":"pico-bot","iat":%d,"exp":%d,"jti":"[a-z2-7]{26}","sid":"[0-9a-f]{64}"}$`,
		id, now.Unix(), now.Unix()+900)
	if !regexp.MustCompile(want).Match(claims) {
		t.Errorf("claims %s; want %s", claims, want)
	}
	want = fmt.Sprintf(`{"id":%q,"email":"Ada@example.com","display_name":"","role":"operator","org_id":"acme","status":"active","created_at":%q,"last_login_at":%q}`,
		id, now.Add(-time.Hour).UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	ts.wantBody(ts.do("GET", auth+"/me", access, nil), want, "GET /me")
}

// Whoever does not know the password learns nothing: not who exists, and not who is suspended.
func TestLogin_RefusalsAreAlike(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	id := ts.mustUser("sus@example.com", viewer, defaultOrg)
	ts.want(ts.do("PUT", auth+"/users/"+id+"/status", ts.mustAdmin(), object{"status": statusSuspended}), 200, "", "suspend")
	normal := func(a answer) string {
		h := a.header.Clone()
		h.Del("Date")
		h.Del("X-Request-Id")
		return fmt.Sprint(a.status, h, strings.ReplaceAll(a.body, a.text("request_id"), ""))
	}
	wrong := ts.tryLogin("ada@example.com", "wrong password")
	ts.wantProblem(wrong, 401, "invalid_credentials", "wrong password", "error", "Invalid email or password", "WWW-Authenticate", "Bearer")
	for _, c := range []struct{ email, password string }{{"nobody@example.com", userPassword}, {"sus@example.com", "wrong password"}, {"", ""}, {"not an email", userPassword},
		{"ada@example.com", ""}, {"ada@example.com", userPassword + " "}, {"ada@example.com", strings.ToUpper(userPassword)}, {"ada@example.com ", userPassword}, {"ada@example.com\x00", userPassword},
		{"%", userPassword}, {"' OR 1=1 --", userPassword}, {"ada@example.com", strings.Repeat("x", 5000)}, {strings.Repeat("x", 5000), userPassword}} {
		if a := ts.tryLogin(c.email, c.password); normal(a) != normal(wrong) {
			t.Errorf("login of %.20q with %.20q = %s; a wrong password gives %s", c.email, c.password, normal(a), normal(wrong))
		}
	}
	ts.wantProblem(ts.tryLogin("sus@example.com", userPassword), 403, "user_suspended", "suspended", "error", "User account is suspended")
}

// Neither look-alikes of an email nor tails of a password get in.
func TestLogin_ComparesExactly(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.throttle.enabled, c.bcryptCost = false, 5 })
	ts.mustUser("kiss@example.com", viewer, defaultOrg)
	for _, email := range []string{"\u212aiss@example.com", "k\u0130ss@example.com", "k\u0131ss@example.com", "ki\u017fs@example.com", "\uff4biss@example.com", "kiss\u200b@example.com",
		"\ufeffkiss@example.com", "ki\u00dfs@example.com", "kiss\uff20example.com", "kiss@ex\u0430mple.com"} {
		ts.wantProblem(ts.tryLogin(email, userPassword), 401, "invalid_credentials", fmt.Sprintf("%+q", email))
	}
	full := strings.Repeat("x", 72)
	ts.want(ts.do("POST", auth+"/register", "", object{"email": "long@example.com", "password": full}), 200, "", "register")
	ts.mustLogin("long@example.com", full)
	for _, tail := range []string{"x", "y", " ", strings.Repeat("z", 100)} {
		ts.wantProblem(ts.tryLogin("long@example.com", full+tail), 401, "invalid_credentials", "72 bytes and a tail")
	}
	for _, password := range []string{userPassword + "\x00", userPassword + "\x00" + userPassword, "\x00"} {
		ts.wantProblem(ts.tryLogin("kiss@example.com", password), 422, "invalid_field", "NUL in a password")
	}
	// A hash of lower cost, or of the Python server, is made anew by the first login, and by no failed one.
	weak := newHasher(t.Context(), 4, 1, ts.now)
	hash, err := weak.hash(t.Context(), userPassword)
	if err != nil {
		t.Fatal(err)
	}
	for email, old := range map[string][]byte{"weak@example.com": hash, "py@example.com": append([]byte("$2b"), hash[3:]...)} {
		ts.store.createUser(t.Context(), principal{}, userWith(email, old), nil)
		ts.want(ts.tryLogin(email, "wrong password"), 401, "", "wrong password")
		if u, err := ts.store.userByLogin(email); err != nil || !bytes.Equal(u.passwordHash, old) {
			t.Errorf("%s: a failed login changed the hash (%v)", email, err)
		}
		ts.mustLogin(email, userPassword)
		if u, err := ts.store.userByLogin(email); err != nil || !bytes.HasPrefix(u.passwordHash, []byte("$2a$05$")) {
			t.Errorf("%s: hash is %.7s after a login (%v); want cost 5", email, u.passwordHash, err)
		}
		ts.mustLogin(email, userPassword)
	}
}

func TestLogin_NewPasswordEndsEverySession(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id, access := ts.as("ada@example.com", viewer, defaultOrg)
	_, refresh := ts.mustLogin("ada@example.com", userPassword)
	change := func(old, new string) answer {
		return ts.do("POST", auth+"/me/password", access, object{"old_password": old, "new_password": new})
	}
	ts.wantProblem(change("wrong password", "a new password"), 401, "invalid_credentials", "wrong old password")
	for _, bad := range []string{"short", strings.Repeat("x", 73), "with a \x00 in it"} {
		ts.wantProblem(change(userPassword, bad), 422, "invalid_field", "new password "+bad, "field", "new_password")
	}
	ts.wantProblem(change("\x00", "a new password"), 422, "invalid_field", "old password with NUL", "field", "old_password")
	ts.wantBody(change(userPassword, "a new password"), `{"message":"Password changed"}`, "change of password")
	ts.wantDead(access, refresh, "after a change of password")
	ts.wantProblem(ts.tryLogin("ada@example.com", userPassword), 401, "invalid_credentials", "the old password")
	access, refresh = ts.mustLogin("ada@example.com", "a new password")
	// An admin's reset does the same.
	ts.wantBody(ts.do("PUT", auth+"/users/"+id+"/password", ts.mustAdmin(), object{"new_password": userPassword}), `{"message":"Password reset"}`, "reset")
	ts.wantDead(access, refresh, "after a reset")
	ts.mustLogin("ada@example.com", userPassword)
}

func TestRefresh_FollowsTheUser(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	id := ts.mustUser("ada@example.com", viewer, defaultOrg)
	access, refresh := ts.mustLogin("ada@example.com", userPassword)
	// Both request forms work, and the next access token says what the user is by then.
	ts.want(ts.do("PUT", auth+"/users/"+id+"/role", admin, object{"role": operator}), 200, "", "role")
	ts.want(ts.do("PUT", auth+"/users/"+id+"/org", admin, object{"org_id": "acme"}), 200, "", "org")
	for _, form := range []string{`{"refresh_token":%q,"role":"superadmin"}`, ` %q `} {
		a := ts.want(ts.do("POST", auth+"/refresh", "", fmt.Sprintf(form, refresh)), 200, "", form)
		ts.wantBody(a, fmt.Sprintf(`{"access_token":%q,"refresh_token":%q,"token_type":"Bearer","expires_in":900}`, a.text("access_token"), a.text("refresh_token")), "refresh")
		before, after := payloadOf(t, access), payloadOf(t, a.text("access_token"))
		if after["role"] != operator || after["org_id"] != "acme" || after["sub"] != id || after["sid"] != before["sid"] || after["jti"] == before["jti"] {
			t.Errorf("refreshed claims %v after %v", after, before)
		}
		access, refresh = a.text("access_token"), a.text("refresh_token")
	}
	// A use of an old token ends that family, newest token included, and no other.
	otherAccess, otherRefresh := ts.mustLogin("ada@example.com", userPassword)
	newest := ts.want(ts.refresh(refresh), 200, "", "refresh")
	ts.wantProblem(ts.refresh(refresh), 401, "invalid_token", "second use")
	ts.wantDead(newest.text("access_token"), newest.text("refresh_token"), "the newest after a reuse")
	ts.want(ts.do("GET", auth+"/me", otherAccess, nil), 200, "", "the other family")
	if log := ts.logs.String(); strings.Count(log, "msg=refresh.reuse") != 1 || !strings.Contains(log, "user="+id+" session="+fmt.Sprint(payloadOf(t, access)["sid"])) {
		t.Errorf("the reuse is not logged once with user and session: %s", log)
	}
	// Whoever is suspended or deleted does not come back, also not when made active again.
	ts.want(ts.do("PUT", auth+"/users/"+id+"/status", admin, object{"status": statusSuspended}), 200, "", "suspend")
	ts.wantDead(otherAccess, otherRefresh, "of a suspended user")
	ts.want(ts.do("PUT", auth+"/users/"+id+"/status", admin, object{"status": statusActive}), 200, "", "activate")
	ts.wantDead(otherAccess, otherRefresh, "from before the suspension")
	access, refresh = ts.mustLogin("ada@example.com", userPassword)
	ts.want(ts.do("DELETE", auth+"/users/"+id, admin, nil), 200, "", "delete")
	ts.wantDead(access, refresh, "of a deleted user")
}

func TestRefresh_ExpiresTwice(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	const day = 24 * time.Hour
	_, idle := ts.mustLogin(adminEmail, adminPassword)
	_, used := ts.mustLogin(adminEmail, adminPassword)
	use := func(what string) {
		t.Helper()
		used = ts.want(ts.refresh(used), 200, "", what).text("refresh_token")
	}
	ts.clock.advance(7*day - time.Second)
	use("refresh in the last second of 7 days")
	ts.clock.advance(time.Second)
	ts.wantProblem(ts.refresh(idle), 401, "token_expired", "refresh after 7 idle days")
	use("refresh of the other session then")
	for range 3 { // each use moves the idle end: 28 days now, less 3 seconds
		ts.clock.advance(7*day - time.Second)
		use("refresh within 7 days of the last")
	}
	ts.clock.advance(2*day + 2*time.Second)
	last := ts.want(ts.refresh(used), 200, "", "refresh a second before 30 days")
	ts.want(ts.do("GET", auth+"/me", last.text("access_token"), nil), 200, "", "GET /me a second before 30 days")
	ts.clock.advance(time.Second)
	ts.wantProblem(ts.do("GET", auth+"/me", last.text("access_token"), nil), 401, "token_expired", "GET /me after 30 days")
	ts.wantProblem(ts.refresh(last.text("refresh_token")), 401, "token_expired", "refresh after 30 days")
	ts.clock.advance(-time.Hour)
	ts.wantProblem(ts.refresh(last.text("refresh_token")), 401, "token_expired", "refresh after the clock was set back")
}

func TestRefresh_RefusesOddTokens(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	access, refresh := ts.mustLogin(adminEmail, adminPassword)
	id, secret, _ := strings.Cut(refresh, ".")
	for _, token := range []string{"", " ", ".", id, id + ".", "." + secret, refresh + "=", refresh + "\n", " " + refresh, refresh[:len(refresh)-1], refresh + "x", strings.ToUpper(refresh),
		id + "\x00." + secret, "x." + secret, id + "." + strings.Repeat("A", 43) + "A", access, strings.Repeat("a", 32), strings.Repeat("x", 10000), "' OR 1=1 --", "\x00"} {
		ts.wantProblem(ts.refresh(token), 401, "invalid_token", fmt.Sprintf("refresh %.50q", token))
	}
	ts.wantProblem(ts.do("GET", auth+"/refresh?refresh_token="+refresh, "", nil), 405, "", "refresh by GET")
	ts.wantProblem(ts.do("POST", auth+"/refresh?refresh_token="+refresh, "", object{}), 422, "invalid_field", "refresh token in the query")
	ts.want(ts.refresh(refresh), 200, "", "the real token after all that") // none of these was a reuse of it
}

func TestRefresh_ConcurrentUses(t *testing.T) {
	t.Parallel()
	for grace, want := range map[int]int{0: 1, 10: 100} {
		ts := newTestServer(t, func(c *config) { c.reuseGraceSeconds = grace })
		_, parent := ts.mustLogin(adminEmail, adminPassword)
		var wg sync.WaitGroup
		answers := make([]answer, 100)
		for i := range answers {
			wg.Go(func() { answers[i] = ts.refresh(parent) })
		}
		wg.Wait()
		won, successors := 0, map[string]bool{}
		for _, a := range answers {
			if a.status == 200 {
				won++
				successors[a.text("refresh_token")] = true
			} else {
				ts.wantProblem(a, 401, "invalid_token", "a concurrent refresh")
			}
		}
		if won != want || len(successors) != 1 {
			t.Errorf("grace %d: %d of 100 won with %d successors; want %d with 1", grace, won, len(successors), want)
		}
		// Without grace the losers were reuses, and the family is dead; with it the family lives until the
		// parent comes again after its successor was used, or after the window.
		for token := range successors {
			if a := ts.refresh(token); (a.status == 200) != (grace > 0) {
				t.Errorf("grace %d: the successor = %d %s", grace, a.status, a.body)
			}
		}
		ts.wantProblem(ts.refresh(parent), 401, "invalid_token", "the grandparent")
		if grace > 0 {
			_, parent = ts.mustLogin(adminEmail, adminPassword)
			child := ts.want(ts.refresh(parent), 200, "", "refresh").text("refresh_token")
			ts.clock.advance(10 * time.Second)
			ts.wantProblem(ts.refresh(parent), 401, "invalid_token", "the parent after the window")
			ts.wantProblem(ts.refresh(child), 401, "invalid_token", "its successor then")
		}
	}
}

// After a change is acknowledged nothing works that a refresh at the same time has minted.
func TestRefresh_RacesMintNothing(t *testing.T) {
	t.Parallel()
	rounds := 200
	if n, err := strconv.Atoi(os.Getenv("PICO_AUTH_ROUNDS")); err == nil {
		rounds = n
	}
	ts := newTestServer(t, func(c *config) { c.throttle.enabled = false })
	admin := ts.mustAdmin()
	changes := []struct { // ID, SID and TOKEN stand for those of the round
		method, path, body string
		byAdmin            bool
	}{
		{"POST", "/logout", `{}`, false}, {"POST", "/logout", `{"refresh_token":"TOKEN"}`, false}, {"POST", "/logout", `{"all":true}`, false}, {"DELETE", "/me/sessions/SID", "", false},
		{"POST", "/me/password", `{"old_password":"` + userPassword + `","new_password":"a new password"}`, false}, {"PUT", "/users/ID/password", `{"new_password":"a new password"}`, true},
		{"PUT", "/users/ID/status", `{"status":"suspended"}`, true}, {"DELETE", "/users/ID", "", true}, {"PUT", "/users/ID/role", `"viewer"`, true},
	}
	minted := 0
	for i := range rounds {
		c, email := changes[i%len(changes)], fmt.Sprintf("u%d@example.com", i)
		id := ts.mustUser(email, orgAdmin, defaultOrg)
		access, refresh := ts.mustLogin(email, userPassword)
		by, fill := access, strings.NewReplacer("/ID", "/"+id, "SID", fmt.Sprint(payloadOf(t, access)["sid"]), "TOKEN", refresh)
		if c.path == "/logout" && strings.Contains(c.body, "TOKEN") {
			by = ""
		} else if c.byAdmin {
			by = admin
		}
		var acknowledged atomic.Bool
		var change answer
		var wg sync.WaitGroup
		wg.Go(func() {
			change = ts.do(c.method, auth+fill.Replace(c.path), by, fill.Replace(c.body))
			acknowledged.Store(true)
		})
		for !acknowledged.Load() {
			a := ts.refresh(refresh)
			if a.status != 200 {
				ts.wantProblem(a, 401, "invalid_token", "a refresh that lost the race")
				break
			}
			access, refresh = a.text("access_token"), a.text("refresh_token")
			minted++
		}
		wg.Wait()
		ts.want(change, 200, "", c.path)
		if strings.HasSuffix(c.path, "/role") { // demotion leaves the session, but takes the right
			ts.want(ts.do("GET", auth+"/users", access, nil), 403, "forbidden", "an admin call after the demotion")
			if a := ts.want(ts.refresh(refresh), 200, "", "refresh"); payloadOf(t, a.text("access_token"))["role"] != viewer {
				t.Fatalf("refresh after the demotion still makes %v", payloadOf(t, a.text("access_token")))
			}
			continue
		}
		ts.wantDead(access, refresh, "after "+c.method+" "+c.path+" "+c.body)
	}
	if minted < rounds/10 {
		t.Errorf("only %d refreshes in %d rounds: this was no race", minted, rounds)
	}
}

func TestLogout_EndsOneSessionOrAll(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	_, bob := ts.as("bob@example.com", viewer, defaultOrg)
	otherAccess, otherRefresh := ts.mustLogin("ada@example.com", userPassword)
	for what, logout := range map[string]func(access, refresh string) answer{
		"bearer":        func(access, _ string) answer { return ts.do("POST", auth+"/logout", access, nil) },
		"bearer and {}": func(access, _ string) answer { return ts.do("POST", auth+"/logout", access, object{"all": false}) },
		"refresh token": func(_, refresh string) answer {
			return ts.do("POST", auth+"/logout", "", object{"refresh_token": refresh})
		},
		"its parent token": func(_, refresh string) answer {
			ts.refresh(refresh)
			return ts.do("POST", auth+"/logout", "", object{"refresh_token": refresh})
		},
	} {
		access, refresh := ts.mustLogin("ada@example.com", userPassword)
		for range 2 { // idempotent
			ts.wantBody(logout(access, refresh), `{"message":"Logged out"}`, "logout by "+what)
		}
		ts.wantDead(access, refresh, "after logout by "+what)
		ts.want(ts.do("GET", auth+"/me", otherAccess, nil), 200, "", "another session after logout by "+what)
	}
	// Tokens that are unknown, expired or garbage are as good as logged out.
	for _, body := range []any{object{"refresh_token": "x"}, object{"refresh_token": newRefreshToken(newID())}, object{"refresh_token": strings.Repeat("a", 32)}} {
		ts.want(ts.do("POST", auth+"/logout", "", body), 200, "", fmt.Sprintf("logout with %v", body))
	}
	ts.want(ts.do("POST", auth+"/logout", "garbage", object{"all": true}), 200, "", "logout with a garbage bearer")
	ts.wantProblem(ts.do("POST", auth+"/logout", "", nil), 422, "invalid_field", "logout of nobody")
	// Nor does whoever is told "Logged out" stay in because a race has rotated the token twice meanwhile.
	access, refresh := ts.mustLogin("ada@example.com", userPassword)
	newest := ts.refresh(ts.refresh(refresh).text("refresh_token"))
	ts.want(ts.do("POST", auth+"/logout", "", object{"refresh_token": refresh}), 200, "", "logout with an outdated token")
	ts.wantDead(access, newest.text("refresh_token"), "after logout by "+"an outdated token")
	// All of one user's, and nobody else's.
	access, refresh = ts.mustLogin("ada@example.com", userPassword)
	ts.want(ts.do("POST", auth+"/logout", access, object{"all": true}), 200, "", "logout from everywhere")
	ts.wantDead(access, refresh, "after logout by "+"all")
	ts.wantDead(otherAccess, otherRefresh, "after logout by "+"all")
	ts.want(ts.do("GET", auth+"/me", bob, nil), 200, "", "another user's session")
	ts.clock.advance(time.Hour)
	ts.want(ts.do("POST", auth+"/logout", bob, nil), 200, "", "logout with an expired token")
}

func TestSessions_BelongToTheirUser(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.trustedProxies = []string{"127.0.0.1/32"} })
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	_, bob := ts.as("bob@example.com", viewer, defaultOrg)
	start := ts.now()
	old := ts.tryLogin("ada@example.com", userPassword, "User-Agent: phone", "X-Forwarded-For: 192.0.2.7")
	ts.clock.advance(time.Minute)
	current := ts.tryLogin("ada@example.com", userPassword, "User-Agent: laptop", "X-Forwarded-For: 2001:db8::7")
	ts.clock.advance(time.Minute)
	old = ts.want(ts.do("POST", auth+"/refresh", "", object{"refresh_token": old.text("refresh_token")}, "User-Agent: tablet"), 200, "", "refresh")
	at := func(d time.Duration) string { return start.Add(d).UTC().Format(time.RFC3339) }
	const week = 7 * 24 * time.Hour
	oldID, currentID := payloadOf(t, old.text("access_token"))["sid"], payloadOf(t, current.text("access_token"))["sid"]
	want := fmt.Sprintf(`{"sessions":[{"id":%q,"created_at":%q,"last_used_at":%q,"expires_at":%q,"ip":"2001:db8::7","user_agent":"laptop","current":true},`+
		`{"id":%q,"created_at":%q,"last_used_at":%q,"expires_at":%q,"ip":"127.0.0.1","user_agent":"tablet","current":false}],"total":2}`,
		currentID, at(time.Minute), at(time.Minute), at(time.Minute+week), oldID, at(0), at(2*time.Minute), at(2*time.Minute+week))
	ts.wantBody(ts.do("GET", auth+"/me/sessions", current.text("access_token"), nil), want, "sessions")
	// Somebody else's session does not exist.
	path := fmt.Sprint(auth, "/me/sessions/", oldID)
	ts.wantProblem(ts.do("DELETE", path, bob, nil), 404, "session_not_found", "another user's session")
	ts.want(ts.do("GET", auth+"/me", old.text("access_token"), nil), 200, "", "the session that was not theirs to end")
	ts.wantBody(ts.do("DELETE", path, current.text("access_token"), nil), `{"message":"Session revoked"}`, "DELETE of a session")
	ts.wantProblem(ts.do("DELETE", path, current.text("access_token"), nil), 404, "session_not_found", "a session ended before")
	ts.wantDead(old.text("access_token"), old.text("refresh_token"), "of the ended session")
	if a := ts.do("GET", auth+"/me/sessions", current.text("access_token"), nil); a.json["total"] != 1.0 {
		t.Errorf("sessions afterwards = %s; want one", a.body)
	}
}
func TestUsers_AreAdministered(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	a := ts.want(ts.do("POST", auth+"/users", admin, object{"email": "ada@example.com", "password": userPassword, "display_name": "Ada", "role": operator, "org_id": "acme"}), 200, "", "create")
	id := a.text("id")
	path := auth + "/users/" + id
	body := func(format string) string { return strings.ReplaceAll(format, "ID", id) }
	created := ts.now().UTC().Format(time.RFC3339)
	ts.wantBody(a, body(`{"id":"ID","email":"ada@example.com","role":"operator","status":"active"}`), "create")
	ts.wantProblem(ts.do("POST", auth+"/users", admin, object{"email": "ADA@example.com", "password": userPassword}), 409, "user_exists", "create a twin")
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", path, "", `{"id":"ID","email":"ada@example.com","display_name":"Ada","role":"operator","org_id":"acme","status":"active","created_at":"` + created + `","last_login_at":null}`},
		{"PUT", path + "/role", `{"role":"viewer"}`, `{"id":"ID","email":"ada@example.com","role":"viewer"}`},
		{"PUT", path + "/role", `"org_admin"`, `{"id":"ID","email":"ada@example.com","role":"org_admin"}`},
		{"PUT", path + "/org", `{"org_id":"beta"}`, `{"id":"ID","email":"ada@example.com","org_id":"beta"}`},
		{"PUT", path + "/status", `{"status":"suspended"}`, `{"id":"ID","email":"ada@example.com","status":"suspended"}`},
		{"GET", auth + "/users?status=suspended", "", `{"users":[{"id":"ID","email":"ada@example.com","display_name":"Ada","role":"org_admin","org_id":"beta","status":"suspended"}],"total":1}`},
		{"PUT", path + "/status", `{"status":"active"}`, `{"id":"ID","email":"ada@example.com","status":"active"}`},
		{"DELETE", path, "", `{"message":"User deleted"}`},
	} {
		var in any
		if c.body != "" {
			in = c.body
		}
		ts.wantBody(ts.do(c.method, c.path, admin, in), body(c.want), c.method+" "+c.path)
	}
	// Ids of nobody, roles of no kind, and everything else out of range.
	ada := ts.mustUser("ada@example.com", viewer, defaultOrg) // the email is free again
	for _, odd := range []string{id, "%00", ada + "%00", "%20", ada + "%20", "..%00", "%25", "%27", strings.ToUpper(ada), strings.Repeat("x", 10000), "registration"} {
		for _, c := range []struct{ method, tail, body string }{{"GET", "", ""}, {"DELETE", "", ""}, {"PUT", "/role", `"viewer"`}, {"PUT", "/status", `{"status":"active"}`}, {"PUT", "/org", `{"org_id":"x"}`}, {"PUT", "/password", `{"new_password":"long enough"}`}} {
			if odd != "registration" || c.tail != "" {
				ts.wantProblem(ts.do(c.method, auth+"/users/"+odd+c.tail, admin, c.body), 404, "user_not_found", fmt.Sprintf("%s /users/%.20s%s", c.method, odd, c.tail))
			}
		}
	}
	ts.wantProblem(ts.do("GET", path, admin, nil), 404, "user_not_found", "a deleted user", "error", "User not found: "+id)
	for _, odd := range []string{"", "Superadmin", "superadmin ", " viewer", "SUPERADMIN", "root", "viewer\x00", "viewer,superadmin"} {
		for _, a := range []answer{ts.do("PUT", auth+"/users/"+ada+"/role", admin, object{"role": odd}), ts.do("POST", auth+"/users", admin, object{"email": newID() + "@b.c", "password": userPassword, "role": odd})} {
			ts.wantProblem(a, 422, "invalid_role", fmt.Sprintf("role %q", odd), "error", "Invalid role: "+odd)
		}
	}
	for _, c := range []struct{ tail, body, field string }{{"/status", `{"status":"deleted"}`, "status"}, {"/status", `{"status":"Active"}`, "status"}, {"/org", `{"org_id":""}`, "org_id"},
		{"/org", `{"org_id":"a\nb"}`, "org_id"}, {"/org", `{"org_id":"` + strings.Repeat("x", 101) + `"}`, "org_id"}, {"/password", `{"new_password":"short"}`, "new_password"}} {
		ts.wantProblem(ts.do("PUT", auth+"/users/"+ada+c.tail, admin, c.body), 422, "invalid_field", c.tail+c.body, "field", c.field)
	}
}

func TestUsers_OrgAdminStaysInItsOrganisation(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	self, token := ts.as("org@acme.example", orgAdmin, "acme")
	mine, boss, other := ts.mustUser("mine@acme.example", viewer, "acme"), ts.mustUser("boss@acme.example", superadmin, "acme"), ts.mustUser("other@beta.example", viewer, "beta")
	edits := []struct{ method, tail, body string }{{"PUT", "/role", `{"role":"operator"}`}, {"PUT", "/status", `{"status":"suspended"}`}, {"PUT", "/password", `{"new_password":"taken over"}`}, {"DELETE", "", ""}}
	before, _ := ts.store.listUsers(userFilter{everyOrg: true}, 0, 100)
	for _, e := range edits {
		ts.wantProblem(ts.do(e.method, auth+"/users/"+other+e.tail, token, e.body), 404, "user_not_found", e.method+e.tail+" in another organisation")
		ts.wantProblem(ts.do(e.method, auth+"/users/"+boss+e.tail, token, e.body), 403, "forbidden", e.method+e.tail+" of a superadmin")
	}
	ts.wantProblem(ts.do("GET", auth+"/users/"+other, token, nil), 404, "user_not_found", "GET in another organisation")
	for _, id := range []string{mine, self} {
		ts.wantProblem(ts.do("PUT", auth+"/users/"+id+"/role", token, `"superadmin"`), 403, "forbidden", "grant superadmin")
		ts.wantProblem(ts.do("PUT", auth+"/users/"+id+"/org", token, object{"org_id": "beta"}), 403, "forbidden", "move between organisations")
	}
	for _, extra := range []object{{"role": superadmin}, {"org_id": "beta"}, {"role": superadmin, "org_id": "beta"}} {
		extra["email"], extra["password"] = "new@acme.example", userPassword
		ts.wantProblem(ts.do("POST", auth+"/users", token, extra), 403, "forbidden", fmt.Sprintf("create %v", extra))
	}
	if after, _ := ts.store.listUsers(userFilter{everyOrg: true}, 0, 100); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("refused requests changed %v to %v", before, after)
	}
	// What it sees, creates and changes is in its own organisation.
	if a := ts.do("GET", auth+"/users", token, nil); a.json["total"] != 3.0 || strings.Contains(a.body, "beta") || ts.do("GET", auth+"/users?org_id=beta&email=other", token, nil).json["total"] != 0.0 {
		t.Errorf("an org_admin of acme lists %s", a.body)
	}
	a := ts.want(ts.do("POST", auth+"/users", token, object{"email": "new@acme.example", "password": userPassword, "role": orgAdmin}), 200, "", "create")
	if u, err := ts.store.userByID(a.text("id")); u.orgID != "acme" || u.role != orgAdmin || err != nil {
		t.Errorf("created %+v, %v", u, err)
	}
	for _, e := range edits {
		ts.want(ts.do(e.method, auth+"/users/"+mine+e.tail, token, e.body), 200, "", e.method+e.tail)
	}
	// It may step down, and is then nobody's admin in the very next call.
	ts.want(ts.do("PUT", auth+"/users/"+self+"/role", token, `"viewer"`), 200, "", "step down")
	ts.wantProblem(ts.do("GET", auth+"/users", token, nil), 403, "forbidden", "list after stepping down")
	ts.wantProblem(ts.do("PUT", auth+"/users/"+self+"/role", token, `"org_admin"`), 403, "forbidden", "step up again")
}

func TestUsers_TheLastSuperadminStays(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	first := payloadOf(t, admin)["sub"].(string)
	remove := []func(token, id string) answer{
		func(token, id string) answer { return ts.do("PUT", auth+"/users/"+id+"/role", token, `"viewer"`) },
		func(token, id string) answer {
			return ts.do("PUT", auth+"/users/"+id+"/status", token, object{"status": statusSuspended})
		},
		func(token, id string) answer { return ts.do("DELETE", auth+"/users/"+id, token, nil) },
	}
	asleep := ts.mustUser("asleep@example.com", superadmin, defaultOrg) // a suspended one does not count
	ts.want(remove[1](admin, asleep), 200, "", "suspend the other")
	for i, f := range remove {
		ts.wantProblem(f(admin, first), 409, "last_superadmin", fmt.Sprintf("removal %d", i))
	}
	ts.want(ts.do("GET", auth+"/me", admin, nil), 200, "", "the session of the last one")
	// Two who remove each other at once, in every way: one stays.
	for i := range 9 {
		second, token := ts.as(fmt.Sprintf("s%d@example.com", i), superadmin, defaultOrg)
		var wg sync.WaitGroup
		wg.Go(func() { remove[i%3](admin, second) })
		wg.Go(func() { remove[i/3](token, first) })
		wg.Wait()
		left, err := ts.store.listUsers(userFilter{everyOrg: true, role: superadmin, status: statusActive}, 0, 10)
		if err != nil || len(left) != 1 {
			t.Fatalf("round %d: %d superadmins are left (%v); want 1", i, len(left), err)
		}
		if left[0].id != first {
			first, admin = left[0].id, token
		}
	}
}

func TestUsers_ListsArePagedAndStreamed(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	var wg sync.WaitGroup
	for i := range 3000 {
		u := user{id: newID(), email: fmt.Sprintf("U%04d@example.com", i), displayName: strings.Repeat("x", 200), passwordHash: []byte("x"), role: []role{viewer, operator}[i%2],
			orgID: []string{"acme", "beta"}[i/1500], status: statusActive}
		if wg.Go(func() { ts.store.createUser(context.Background(), principal{}, u, nil) }); i%100 == 99 {
			wg.Wait()
		}
	}
	admin := ts.mustAdmin()
	emails := func(query string) (list []string, a answer) {
		a = ts.want(ts.do("GET", auth+"/users"+query, admin, nil), 200, "", "GET /users"+query)
		for _, u := range a.json["users"].([]any) {
			list = append(list, u.(object)["email"].(string))
		}
		return list, a
	}
	all, a := emails("")
	distinct := slices.Compact(slices.Sorted(slices.Values(all)))
	if len(all) != 3001 || len(distinct) != 3001 || a.json["total"] != 3001.0 || a.json["next"] != nil {
		t.Errorf("the whole list has %d users, %d different, total %v, next %v; want 3001", len(all), len(distinct), a.json["total"], a.json["next"])
	}
	// Pages of any size make the same list: nothing is lost or repeated.
	for _, limit := range []int{7, 499, 500, 501, 1000} {
		if limit == 7 && testing.Short() {
			continue
		}
		var paged []string
		for next := "0"; next != ""; {
			page, a := emails(fmt.Sprintf("?limit=%d&after=%s", limit, next))
			if paged, next = append(paged, page...), a.text("next"); len(page) > limit || a.json["total"] != 3001.0 || (next == "" && len(page) == limit) {
				t.Fatalf("limit %d: a page of %d, total %v, next %q", limit, len(page), a.json["total"], next)
			}
		}
		if !slices.Equal(paged, all) {
			t.Errorf("limit %d: pages have %d users, in other order or number than the list of %d", limit, len(paged), len(all))
		}
	}
	for query, want := range map[string]int{"?email=u00": 100, "?email=U2999@example.com": 1, "?email=0": 0, "?email=%25": 0, "?email=%00": 0, "?email=%ff": 0, "?email=": 3001, "?role=operator": 1500,
		"?role=root": 0, "?status=suspended": 0, "?status=active&role=viewer&email=u1&limit=1000": 500, "?email=u00&role=operator": 50, "?org_id=acme": 3001, "?after=9000000": 0} {
		if list, a := emails(query); len(list) != want || (a.json["total"] != float64(want) && !strings.Contains(query, "after")) {
			t.Errorf("GET /users%s = %d users, total %v; want %d", query, len(list), a.json["total"], want)
		}
	}
	for query, field := range map[string]string{"limit=0": "limit", "limit=1001": "limit", "limit=-1": "limit", "limit=x": "limit", "limit=1e3": "limit", "after=-1": "after", "after=x": "after", "after=99999999999999999999": "after"} {
		ts.wantProblem(ts.do("GET", auth+"/users?"+query, admin, nil), 422, "invalid_field", query, "field", field)
	}
	// A client that goes away in the middle of a list is nobody else's trouble.
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", ts.url+auth+"/users", nil)
		req.Header.Set("Authorization", "Bearer "+admin)
		if res, err := noRedirects.Do(req); err != nil {
			t.Error(err)
		} else if _, err := io.ReadFull(res.Body, make([]byte, 1000)); err != nil {
			t.Error(err)
		}
		cancel()
	}
	if list, _ := emails("?limit=1000"); len(list) != 1000 || strings.Contains(ts.logs.String(), "level=ERROR") {
		t.Errorf("after clients went away a page has %d users, and the log says %s", len(list), ts.logs.String())
	}
}

// A connection's deadline is the machine's time: it must not be computed from a clock that was set.
func TestUsers_ListSurvivesAClockThatIsBehind(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.clock.advance(-24 * time.Hour)
	if a := ts.do("GET", auth+"/users", ts.mustAdmin(), nil); a.json["total"] != 1.0 {
		t.Errorf("GET /users = %d %s", a.status, a.body)
	}
}
func TestThrottle_PairOfEmailAndAddress(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	_, bob := ts.as("bob@example.com", viewer, defaultOrg)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	for _, email := range []string{"ada@example.com", "nobody@example.com"} { // an unknown email counts alike
		for range 10 {
			ts.wantProblem(ts.tryLogin(email, "wrong password"), 401, "invalid_credentials", email)
		}
		for _, headers := range [][]string{nil, {"X-Forwarded-For: 192.0.2.1"}, {"X-Real-Ip: 192.0.2.1", "Forwarded: for=192.0.2.1"}} { // which nobody trusts here
			ts.wantProblem(ts.tryLogin(strings.ToUpper(email), userPassword, headers...), 429, "too_many_attempts", "11th login of "+email, "Retry-After", "900")
		}
	}
	// Another user is not concerned, and a success forgets the failures before it.
	for range 2 {
		for range 9 {
			ts.wantProblem(ts.tryLogin("bob@example.com", "wrong password"), 401, "invalid_credentials", "bob")
		}
		ts.mustLogin("bob@example.com", userPassword)
	}
	ts.clock.advance(15*time.Minute - time.Second)
	ts.wantProblem(ts.tryLogin("ada@example.com", userPassword), 429, "too_many_attempts", "a second too early", "Retry-After", "1")
	ts.clock.advance(time.Second)
	ts.mustLogin("ada@example.com", userPassword)
	// Wrong old passwords count too, or whoever holds a token could guess on.
	bob, _ = ts.mustLogin("bob@example.com", userPassword)
	change := func(old string) answer {
		return ts.do("POST", auth+"/me/password", bob, object{"old_password": old, "new_password": "a new password"})
	}
	for range 10 {
		ts.wantProblem(change("wrong password"), 401, "invalid_credentials", "wrong old password")
	}
	ts.wantProblem(change(userPassword), 429, "too_many_attempts", "11th old password")
	ts.wantProblem(ts.tryLogin("bob@example.com", userPassword), 429, "too_many_attempts", "login after ten wrong old passwords")
}

func TestThrottle_AddressesAndAccounts(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.trustedProxies = []string{"127.0.0.1/32", "10.0.0.0/8"} })
	for _, email := range []string{"ada@example.com", "bob@example.com"} {
		ts.mustUser(email, viewer, defaultOrg)
	}
	from := func(forwarded, email, password string, status int) {
		t.Helper()
		if a := ts.tryLogin(email, password, "X-Forwarded-For: "+forwarded); a.status != status || (status == 429) != (a.header.Get("Retry-After") != "") {
			t.Fatalf("login of %s from %s = %d %s; want %d", email, forwarded, a.status, a.body, status)
		}
	}
	// Sixty failures over sixty emails, from one IPv6 /64: nobody logs in from there, and everybody from the next.
	for i := range 60 {
		from(fmt.Sprintf("2001:db8:0:1::%x", i), fmt.Sprintf("u%d@example.com", i), "wrong password", 401)
	}
	from("2001:db8:0:1:ffff::1", "bob@example.com", userPassword, 429)
	from("2001:db8:0:2::1", "bob@example.com", userPassword, 200)
	// The header is read from the right, past our own proxies: what the client wrote itself is to the left.
	for i := range 10 {
		from(fmt.Sprintf("198.51.100.%d, 192.0.2.1, 10.0.0.9", i), "bob@example.com", "wrong password", 401)
	}
	from("192.0.2.1", "bob@example.com", userPassword, 429)
	from("203.0.113.5, ::ffff:192.0.2.1", "bob@example.com", userPassword, 429)
	from("192.0.2.1, 203.0.113.5", "bob@example.com", userPassword, 200)
	// A hundred failures from as many addresses shut the account, but not to an address it used of late:
	// a stranger can lock nobody out.
	from("203.0.113.77", "ada@example.com", userPassword, 200)
	for _, home := range []int{200, 429} {
		for i := range 100 {
			from(fmt.Sprintf("100.64.0.%d", i), "ada@example.com", "wrong password", 401)
		}
		from("100.64.1.1", "ada@example.com", userPassword, 429)
		from("203.0.113.77", "ada@example.com", userPassword, home)
		ts.clock.advance(30*24*time.Hour + time.Second)
	}
}

// Every event of the handlers happens here, under its name and with its ids, and no secret appears.
func TestEvents_AreNamedAndHoldNoSecret(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) {
		c.logFormat, c.reuseGraceSeconds, c.throttle.registrations, c.throttle.pairFailures = "json", 10, 1, 1
	})
	var secrets []string
	keep := func(a answer) answer {
		secrets = append(secrets, a.text("access_token"), a.text("refresh_token"))
		return a
	}
	login := func(email, password string, headers ...string) answer {
		secrets = append(secrets, password)
		return keep(ts.tryLogin(email, password, headers...))
	}
	sid := func(a answer) any { return payloadOf(t, a.text("access_token"))["sid"] }
	a := login(adminEmail, adminPassword)
	admin, adminID := a.text("access_token"), payloadOf(t, a.text("access_token"))["sub"]
	new := object{"email": "ada@example.com", "password": "first password"}
	id := ts.do("POST", auth+"/register", "", new).text("id")
	ts.do("POST", auth+"/register", "", new)
	one, two, three := login("ada@example.com", "first password"), login("ada@example.com", "first password"), login("ada@example.com", "first password")
	for range 2 {
		keep(ts.refresh(one.text("refresh_token")))
	}
	ts.clock.advance(time.Minute)
	ts.refresh(one.text("refresh_token"))
	ts.do("DELETE", fmt.Sprint(auth, "/me/sessions/", sid(two)), three.text("access_token"), nil)
	four := login("ada@example.com", "first password")
	ts.do("POST", auth+"/logout", "", object{"refresh_token": four.text("refresh_token")})
	ts.do("POST", auth+"/logout", three.text("access_token"), object{"all": true})
	five := login("ada@example.com", "first password")
	ts.do("POST", auth+"/me/password", five.text("access_token"), object{"old_password": "first password", "new_password": "second password"})
	login("ada@example.com", "guessed password")
	login("ada@example.com", "second password")
	login("nobody@example.com", "guessed password")
	user := auth + "/users/" + id
	for path, body := range map[string]string{"/role": `"operator"`, "/org": `{"org_id":"acme"}`, "/status": `{"status":"suspended"}`, "/password": `{"new_password":"third password"}`} {
		ts.want(ts.do("PUT", user+path, admin, body), 200, "", path)
	}
	ts.clock.advance(14 * time.Minute)
	ts.want(keep(ts.refresh(a.text("refresh_token"))), 200, "", "refresh")
	admin = login(adminEmail, adminPassword).text("access_token")
	ts.clock.advance(time.Minute)
	login("ada@example.com", "third password")
	ts.do("DELETE", user, admin, nil)
	ts.do("PUT", auth+"/users/registration", admin, object{"enabled": true})
	for email, password := range map[string]string{"empty@example.com": "", "default@example.com": defaultAdminPassword} {
		hash, _ := ts.srv.hasher.hash(t.Context(), password)
		ts.store.createUser(t.Context(), principal{}, userWith(email, hash), nil)
		ts.wantProblem(ts.tryLogin(email, password, "Host: public.example"), 403, "", email)
	}

	ts.wantEvents([]object{
		{"msg": "user.created", "user": id, "role": viewer, "org": defaultOrg, "actor": ""}, {"msg": "registration.throttled"}, {"msg": "login.ok", "user": id, "session": sid(one)},
		{"msg": "refresh.ok", "user": id, "session": sid(one)}, {"msg": "refresh.repeated", "user": id, "session": sid(one)}, {"msg": "refresh.reuse", "user": id, "session": sid(one)},
		{"msg": "session.revoked", "user": id, "session": sid(two), "reason": "revoked by its user"}, {"msg": "session.revoked", "user": id, "session": sid(four), "reason": "logout"},
		{"msg": "session.revoked", "user": id, "count": 1.0, "reason": "logout from everywhere"}, {"msg": "password.changed", "user": id},
		{"msg": "login.failed", "user": id, "reason": "wrong password"}, {"msg": "login.failed", "reason": "unknown email"}, {"msg": "login.throttled", "user": id, "rule": "pair"},
		{"msg": "login.failed", "user": id, "reason": "suspended"}, {"msg": "login.failed", "reason": "empty password"}, {"msg": "login.failed", "reason": "default password from elsewhere"},
		{"msg": "user.role_changed", "user": id, "from": viewer, "to": operator, "actor": adminID}, {"msg": "user.org_changed", "user": id, "from": defaultOrg, "to": "acme", "actor": adminID},
		{"msg": "user.status_changed", "user": id, "to": statusSuspended, "actor": adminID}, {"msg": "password.reset", "user": id, "actor": adminID},
		{"msg": "user.deleted", "user": id, "actor": adminID}, {"msg": "registration.changed", "enabled": true, "actor": adminID},
	})
	for _, s := range append(secrets, "second password", "third password", "$2a$", "eyJ") {
		if s != "" && strings.Contains(ts.logs.String(), s) {
			t.Errorf("the log contains %q", s)
		}
	}
}

// wantEvents looks for lines with these attributes, and for every event that a handler can log.
func (ts *testServer) wantEvents(events []object) {
	ts.Helper()
	log := ts.logs.String()
	for _, e := range events {
		if !slices.ContainsFunc(strings.Split(log, "\n"), func(line string) bool {
			var got object
			json.Unmarshal([]byte(line), &got)
			for name, want := range e {
				if got[name] != want {
					return false
				}
			}
			return got["id"] != nil && got["ip"] == "127.0.0.1"
		}) {
			ts.Errorf("no event %v in the log", e)
		}
	}
	var source []byte
	files, _ := filepath.Glob("*.go")
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			ts.Fatal(err)
		}
		source = append(source, data...)
	}
	for _, m := range regexp.MustCompile(`s\.event\(w, "([^"]+)"`).FindAllSubmatch(source, -1) {
		if !strings.Contains(log, fmt.Sprintf(`"msg":%q`, m[1])) {
			ts.Errorf("this test does not make %s happen", m[1])
		}
	}
}

// Whatever strangers put into a request, one line of the log stays one line and says what we say.
func TestEvents_CannotBeForged(t *testing.T) {
	t.Parallel()
	const forged = "x\r\ntime=1 level=INFO msg=forged user=admin\n{\"msg\":\"forged\"}\u2028\x1b[2K\" msg=\"forged"
	line := map[string]*regexp.Regexp{ // a whole line; the first group is its message
		"text": regexp.MustCompile(`^time=\S+ level=[A-Z]+ msg=("(?:[^"\\]|\\.)*"|[a-z.]+)(?: [a-z_]+=(?:"(?:[^"\\]|\\.)*"|[^\s"=]*))*$`),
		"json": regexp.MustCompile(`^\{"time":"[^"]+","level":"[A-Z]+","msg":("(?:[^"\\]|\\.)*")(?:,"[a-z_]+":(?:"(?:[^"\\]|\\.)*"|[a-z0-9-]+))*\}$`),
	}
	for format, whole := range line {
		ts := newTestServer(t, func(c *config) { c.logFormat = format })
		admin := ts.mustAdmin()
		org := `x" msg="forged" y="` // no control character, so an organisation may be called this
		ts.want(ts.do("POST", auth+"/users", admin, object{"email": "ada@example.com", "password": userPassword, "org_id": org}), 200, "", "create")
		ts.tryLogin(forged, forged)
		ts.do("POST", auth+"/register", "", object{"email": "x@example.com", "password": userPassword, "display_name": forged})
		ts.do("POST", auth+"/register", "", object{"email": forged, "password": userPassword})
		ts.do("GET", "/%0d%0atime=1%20level=INFO%20msg=forged", "", nil)
		ts.do("GET", auth+"/users/%0D%0Atime=1%20level=INFO%20msg=forged", admin, nil)
		ts.do("FORGED", auth+"/me", admin+"\tmsg=forged", nil)
		req := httptest.NewRequest("POST", auth+"/login", strings.NewReader(fmt.Sprintf(`{"email":%q,"password":%q}`, adminEmail, adminPassword)))
		req.Header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {forged}, "X-Forwarded-For": {forged}, "X-Forwarded-Proto": {forged}}
		req.RemoteAddr = "127.0.0.1:1"
		ts.want(ts.record(req), 200, "", "login")
		for l := range strings.Lines(strings.TrimSpace(ts.logs.String())) {
			if m := whole.FindStringSubmatch(strings.TrimSuffix(l, "\n")); m == nil || strings.Contains(m[1], "forged") {
				t.Errorf("%s: the log has the line %q", format, l)
			}
		}
		a := ts.do("GET", auth+"/me/sessions", admin, nil)
		if agent := a.json["sessions"].([]any)[0].(object)["user_agent"].(string) + a.json["sessions"].([]any)[1].(object)["user_agent"].(string); !strings.Contains(agent, "forged") || strings.ContainsAny(agent, "\r\n\x1b") {
			t.Errorf("%s: sessions show the user agent %q", format, agent)
		}
	}
}

// TestLogout_ByWhatever: an expired access token still says which session is to end; all ends all, also beside
// a refresh token; and without a bearer it is refused rather than ignored.
func TestLogout_ByWhatever(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	access, refresh := ts.mustLogin(adminEmail, adminPassword)
	ts.clock.advance(ts.cfg.accessTTL())
	ts.want(ts.do("GET", auth+"/me", access, nil), 401, "token_expired", "GET /me after exp")
	ts.want(ts.do("POST", auth+"/logout", access, nil), 200, "", "logout with an expired token")
	ts.want(ts.refresh(refresh), 401, "invalid_token", "refresh after that")

	access, refresh = ts.mustLogin(adminEmail, adminPassword)
	other, _ := ts.mustLogin(adminEmail, adminPassword)
	ts.wantProblem(ts.do("POST", auth+"/logout", "", object{"refresh_token": refresh, "all": true}), 422, "invalid_field", "all without a bearer")
	ts.want(ts.do("POST", auth+"/logout", access, object{"refresh_token": refresh, "all": true}), 200, "", "logout of all")
	ts.want(ts.do("GET", auth+"/me", other, nil), 401, "invalid_token", "GET /me of the other session")
}

// TestRefresh_SessionIDsEndNothing: other services and the log see the sid of access tokens.
func TestRefresh_SessionIDsEndNothing(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	access, refresh := ts.mustLogin(adminEmail, adminPassword)
	c, err := ts.keys.current().verify(access, expected{ts.cfg.issuer, ts.cfg.audience, ts.now(), false})
	if err != nil || strings.Contains(refresh, c.SessionID) {
		t.Fatalf("verify = %v; the refresh token %s must not contain the sid %s", err, refresh, c.SessionID)
	}
	made := newRefreshToken(c.SessionID)
	ts.want(ts.refresh(made), 401, "invalid_token", "refresh with a made-up token")
	ts.want(ts.do("POST", auth+"/logout", "", object{"refresh_token": made}), 200, "", "logout with a made-up token")
	ts.want(ts.do("GET", auth+"/me", access, nil), 200, "", "GET /me after both")
	ts.want(ts.refresh(refresh), 200, "", "refresh after both")
}

// TestLogin_HundredSessions: one account cannot make the server store or list more than maxSessions.
func TestLogin_HundredSessions(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	_, oldest := ts.mustLogin(adminEmail, adminPassword)
	ts.clock.advance(time.Second)
	var access string
	for range maxSessions {
		access, _ = ts.mustLogin(adminEmail, adminPassword)
	}
	if a := ts.do("GET", auth+"/me/sessions", access, nil); a.json["total"] != float64(maxSessions) {
		t.Errorf("GET /me/sessions = %.100s; want a total of %d", a.body, maxSessions)
	}
	ts.want(ts.refresh(oldest), 401, "invalid_token", "refresh of the session that was not used for longest")
}

// TestLogin_SimultaneousRenewal: four right logins at once of a user whose hash is renewed on the way all succeed.
func TestLogin_SimultaneousRenewal(t *testing.T) {
	t.Parallel()
	for range 10 {
		ts := newTestServer(t)
		ts.mustUser("ada@example.com", viewer, defaultOrg)
		ts.pragma(`UPDATE users SET password_hash = CAST(replace(CAST(password_hash AS TEXT), '$2a$', '$2b$') AS BLOB)`)
		for i, a := range together(4, func(int) answer { return ts.tryLogin("ada@example.com", userPassword) }) {
			ts.want(a, 200, "", fmt.Sprint("right login ", i))
		}
	}
}

// TestLogin_HashesOfOthers: what an adopted row can hold as a hash costs no more than a wrong password.
func TestLogin_HashesOfOthers(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	for _, hash := range []string{"", "!", "$2b$31$" + strings.Repeat("a", 53), "$2b$17$" + strings.Repeat("a", 53)} {
		ts.pragma(fmt.Sprintf(`UPDATE users SET password_hash = CAST('%s' AS BLOB) WHERE email LIKE 'ada%%'`, hash))
		ts.want(ts.tryLogin("ada@example.com", userPassword), 401, "invalid_credentials", "login with the hash "+hash)
	}
}

// === config.go ===

// put writes a file and returns its path.
func put(path, text string) string {
	must(0, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// lacks returns the first of some parts, separated by " & ", that text does not contain.
func lacks(text, parts string) string {
	for part := range strings.SplitSeq(parts, " & ") {
		if !strings.Contains(text, part) {
			return strconv.Quote(part)
		}
	}
	return ""
}

// configFile writes an application.yaml and returns its path.
func configFile(t testing.TB, text string) string {
	return put(filepath.Join(t.TempDir(), "application.yaml"), text)
}

// otherValues are two allowed values of a setting, both unlike its default where there is a choice.
func otherValues(s setting) [2]string {
	special := map[string][2]string{
		"auth.issuer": {"https://one.example", "https://two.example/base"}, "auth.algorithm": {"RS256", "RS256"},
		"auth.bcrypt_cost": {"11", "13"}, "auth.key_bits": {"3072", "4096"}, "auth_client.enabled": {"true", "true"},
		"auth_client.accepted_algorithms": {"RS256, one", "RS256, two: 2"}, "database.url": {"sqlite:///one.db", "sqlite+aiosqlite:////two.db"},
		"server.listen": {":1", "unix:/two"}, "server.trusted_proxies": {"10.0.0.0/8, ::1/128", "unix"},
		"server.cors_origins": {"https://one.example:1", "*"}, "log.level": {"warn", "error"}, "log.format": {"json", "json"},
	}
	if v, ok := special[s.key]; ok {
		return v
	}
	switch s.kind {
	case "bool":
		return [2]string{strconv.FormatBool(s.get() != "true"), s.get()}
	case "number":
		return [2]string{"33", "34"}
	}
	return [2]string{`one "#: $HOME ${X} \`, `two 'é' $$`}
}

// everySetting is a file with the first or second of otherValues.
func everySetting(t testing.TB, which int) string {
	var b strings.Builder
	section := ""
	for _, s := range defaultConfig().settings() {
		name, key, _ := strings.Cut(s.key, ".")
		if name != section {
			section = name
			fmt.Fprintf(&b, "%s:\n", name)
		}
		v := otherValues(s)[which]
		if s.kind == "text" || s.kind == "list" {
			v = strconv.Quote(v)
		}
		fmt.Fprintf(&b, "  %s: %s\n", key, v)
	}
	return configFile(t, b.String())
}

// TestConfig_SourcesInOrder walks every setting: default < file < environment, and …_FILE.
func TestConfig_SourcesInOrder(t *testing.T) {
	t.Parallel()
	settings, path, dir := defaultConfig().settings(), everySetting(t, 0), t.TempDir()
	var direct, files []string
	for _, s := range settings {
		direct = append(direct, s.env()+"="+otherValues(s)[1])
		files = append(files, s.env()+"_FILE="+put(filepath.Join(dir, s.key), otherValues(s)[1]+"\r\n"))
	}
	for _, tt := range []struct {
		environ []string
		value   int
		source  func(setting) string
	}{
		{nil, 0, func(setting) string { return path + ":" }},
		{direct, 1, setting.env},
		{files, 1, func(s setting) string { return s.env() + "_FILE" }},
	} {
		c := must(loadConfig(path, tt.environ))
		for i, s := range c.settings() {
			if want, source := otherValues(settings[i])[tt.value], c.sources[s.key]; s.get() != want || !strings.HasPrefix(source, tt.source(s)) {
				t.Errorf("%s = %q from %q; want %q from %q", s.key, s.get(), source, want, tt.source(s))
			}
		}
	}
	if _, err := loadConfig(path, append(direct, files...)); err == nil || strings.Count(err.Error(), "are both set") != len(settings) {
		t.Errorf("NAME and NAME_FILE for every setting: %v; want a fault for each", err)
	}
}

// TestConfig_FileIsTheDefaults: the application.yaml beside the sources documents everything and changes nothing.
func TestConfig_FileIsTheDefaults(t *testing.T) {
	t.Parallel()
	c := must(loadConfig("application.yaml", nil))
	lines := strings.Split(string(must(os.ReadFile("application.yaml"))), "\n")
	defaults, last := defaultConfig().settings(), 0
	for i, s := range c.settings() {
		n, err := strconv.Atoi(strings.TrimPrefix(c.sources[s.key], "application.yaml:"))
		if err != nil || n <= last || s.get() != defaults[i].get() {
			t.Errorf("%s is missing, out of order (source %q) or unlike the default %q", s.key, c.sources[s.key], defaults[i].get())
			continue
		}
		if last = n; !strings.Contains(lines[n-1], " # ") && !strings.HasPrefix(strings.TrimSpace(lines[n-2]), "# ") {
			t.Errorf("%s has no comment", s.key)
		}
	}
	if len(c.notes) > 0 {
		t.Errorf("notes %q; want none", c.notes)
	}
}

// TestConfig_PicoAuthFiles: what the Python server, old and new, reads starts this one.
func TestConfig_PicoAuthFiles(t *testing.T) {
	t.Parallel()
	const old = `
auth: {data_dir: "~/.pico-auth", access_token_expire_minutes: 15, refresh_token_expire_days: 7, issuer: "http://localhost:8100",
  audience: "pico-bot", auto_create_admin: true, admin_email: "admin@pico.local", admin_password: "admin"%s}
database: {url: "sqlite+aiosqlite:///auth.db", echo: false%s}
auth_client: {enabled: true, issuer: "http://localhost:8100", audience: "pico-bot"%s}
fastapi: {title: "Pico Auth API", version: "0.2.0"}`
	for _, file := range []string{fmt.Sprintf(old, "", "", ""), "", "# nothing\n", "---\n", "auth:\n"} {
		if c, err := loadConfig(configFile(t, file), nil); err != nil || len(c.notes) > 0 {
			t.Errorf("%s: %v, notes %q", file, err, c.notes)
		}
	}
	c := must(loadConfig(configFile(t, fmt.Sprintf(old, `, algorithm: RS256, registration_enabled: No, email_credentials_token: ""`,
		", pool_size: 5, pool_pre_ping: true", ", accepted_algorithms: [RS256, ML-DSA-65, ML-DSA-87], jwks_ttl_seconds: 300")), nil))
	if c.registration || strings.Join(c.clientAlgorithms, " ") != "RS256 ML-DSA-65 ML-DSA-87" {
		t.Errorf("file of 0.3.2: registration %v, algorithms %q", c.registration, c.clientAlgorithms)
	}
	if missing := lacks(strings.Join(c.notes, "\n"), "database.pool_size has no effect & database.pool_pre_ping has & auth_client.jwks_ttl_seconds has"); missing != "" {
		t.Errorf("no note %s in %q", missing, c.notes)
	}
}

// TestConfig_BadFiles: a fault names its line and what to do, and never shows a value.
func TestConfig_BadFiles(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"auth:\n  isuer: hunter2":                       ":2 & unknown setting auth.isuer; did you mean auth.issuer?",
		"auht:\n  issuer: hunter2":                      ":1 & unknown setting auht",
		"issuer: hunter2":                               ":1 & unknown setting issuer",
		"auth:\n  audience: a\n  audience: hunter2":     ":3 & auth.audience & line 2",
		"auth:\n  audience: a\nauth:\n  issuer: hunter": ":3 & auth & line 1",
		"auth: hunter2":                                 ":1 & auth",
		"auth: [hunter2]":                               ":1 & auth",
		"- hunter2":                                     ":1 & expected settings",
		"auth:\n  audience: hunter2\n---\nauth:\n":      "one YAML document",

		"auth:\n  admin_password: \"hunter2\n":            "not YAML & line",
		"auth:\n  admin_password: *hunter2":               "not YAML",
		"auth:\n  admin_password: !hunter2 x":             ":2 & auth.admin_password (AUTH_ADMIN_PASSWORD)",
		"auth:\n  admin_password: \"hunter2${ENV:NONE}\"": ":2 & NONE",

		"auth:\n  admin_password: 4711":         ":2 & auth.admin_password (AUTH_ADMIN_PASSWORD) & quotes",
		"auth:\n  audience: [hunter2]":          ":2 & auth.audience (AUTH_AUDIENCE) & text",
		"auth:\n  audience: {hunter2: 1}":       ":2 & auth.audience (AUTH_AUDIENCE) & text",
		"auth:\n  key_bits: \"2048\"":           ":2 & auth.key_bits (AUTH_KEY_BITS) & number",
		"auth:\n  registration_enabled: 1":      ":2 & auth.registration_enabled (AUTH_REGISTRATION_ENABLED) & bool",
		"server:\n  cors_origins: {hunter2: 1}": ":2 & server.cors_origins (SERVER_CORS_ORIGINS) & list",
		"server:\n  cors_origins: [1]":          ":2 & server.cors_origins (SERVER_CORS_ORIGINS) & list",
		"server:\n  tls_key_file: hunter2":      "server.tls_cert_file (SERVER_TLS_CERT_FILE) & together",
	} {
		_, err := loadConfig(configFile(t, file), nil)
		if missing := lacks(fmt.Sprint(err), want); missing != "" || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "4711") {
			t.Errorf("%s\n%v\nwant %s in it and no value", file, err, missing)
		}
	}
	_, err := loadConfig(configFile(t, "auth:\n  isuer: x\n  key_bits: 1\nlog: 5"), []string{"AUTH_ISSUER=x", "LOG_LEVEL=x"})
	if err == nil || strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("five faults: %v; want all of them at once", err)
	}
	_, err = loadConfig(filepath.Join(t.TempDir(), "none.yaml"), []string{"AUTH_ADMIN_PASSWORD_FILE=/no/such"})
	if missing := lacks(fmt.Sprint(err), "none.yaml & AUTH_ADMIN_PASSWORD_FILE & /no/such"); missing != "" {
		t.Errorf("files that are missing: %v; want %s", err, missing)
	}
}

// TestConfig_BadValues are refused in the file and in the environment, naming place, key, variable and what is allowed.
func TestConfig_BadValues(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ key, values, want string }{
		{"auth.access_token_expire_minutes", "0 -1 15m 1.5 1e3 525601 99999999999999999999", "number"},
		{"auth.refresh_reuse_grace_seconds", "-1 61", "from 0 to 60"},
		{"auth.bcrypt_cost", "9 17", "from 10 to 16"},
		{"auth.key_bits", "1024 2049 8192", "2048"},
		{"auth.registration_enabled", "maybe hunter2", "true or false"},
		{"auth.issuer", "auth.example.com ftp://x.example https:// https://x?hunter2 https://x? https://x#hunter2 https://u:hunter2@x", "https://auth.example.com"},
		{"auth.algorithm", "ML-DSA-65 HS256 none rs256", "RS256"},
		{"auth.admin_password", strings.Repeat("hunter2", 11), "72"},
		{"auth_client.accepted_algorithms", "ML-DSA-65", "RS256"},
		{"auth_client.enabled", "false", "must be true"},
		{"database.url", "postgresql://u:hunter2@db/x sqlite:///:memory: sqlite:// auth.db sqlite:///x?mode=memory", "sqlite:///FILE"},
		{"server.listen", "localhost localhost:65536 localhost:http unix:", "must"},
		{"server.trusted_proxies", "10.0.0.0/33 proxy 10.0.0.1", "CIDR"},
		{"server.cors_origins", "https://a.example/ a.example null https://u@a.example", "no path"},
		{"server.tls_cert_file", "x.pem", "together"},
		{"log.level", "loud", "debug, info, warn, error"},
		{"log.format", "xml", "text, json"},
	} {
		l := loader{settings: defaultConfig().settings()}
		s, _ := l.find(tt.key)
		section, key, _ := strings.Cut(tt.key, ".")
		for value := range strings.FieldsSeq(tt.values) {
			inFile := value
			if s.kind == "text" || s.kind == "list" {
				inFile = strconv.Quote(value)
			}
			path := configFile(t, fmt.Sprintf("\n%s:\n  %s: %s", section, key, inFile))
			_, err := loadConfig(path, nil)
			_, envErr := loadConfig("", []string{s.env() + "=" + value})
			for place, err := range map[string]error{path + ":3: ": err, s.env() + ": ": envErr} {
				if text := fmt.Sprint(err); lacks(text, place+s.key+" ("+s.env()+") & "+tt.want) != "" || strings.Contains(text, "hunter2") {
					t.Errorf("%s = %s: %v\nwant %s…%s… without the value", tt.key, value, err, place, tt.want)
				}
			}
		}
	}
}

// TestConfig_ReferencesAndNotes: ${ENV:X} is replaced, every other $ stays; doubtful things are noted.
func TestConfig_ReferencesAndNotes(t *testing.T) {
	t.Parallel()
	c := must(loadConfig(configFile(t, `
auth: {admin_password: "$HOME${X}$${ENV:PART}$", bcrypt_cost: "${ENV:COST}", registration_enabled: "${ENV:OPEN}", issuer: http://public.example}
auth_client: {audience: other}
server: {cors_origins: ["https://${ENV:PART}.example"]}`),
		[]string{"PART=a", "COST=13", "OPEN=off", "HOME=/wrong", "X=wrong", "AUTH_ADMIN_PASWORD=x", "AUTH_ISSUER_FIL=x", "OTHER_ISSUER=x"}))
	if c.adminPassword != "$HOME${X}$a$" || c.bcryptCost != 13 || c.registration || c.corsOrigins[0] != "https://a.example" {
		t.Errorf("password %q, cost %d, registration %v, origins %q", c.adminPassword, c.bcryptCost, c.registration, c.corsOrigins)
	}
	notes := strings.Join(c.notes, "\n")
	if missing := lacks(notes, "AUTH_ADMIN_PASWORD is not a setting; did you mean AUTH_ADMIN_PASSWORD? & AUTH_ISSUER_FIL is not a setting & auth_client.audience differs from auth.audience, which is used & not https"); missing != "" || len(c.notes) != 4 {
		t.Errorf("no note %s, or too many, in:\n%s", missing, notes)
	}
}

// TestConfig_DumpReadsBack: what `pico-auth config` prints is a file with the same settings, without the secrets.
func TestConfig_DumpReadsBack(t *testing.T) {
	t.Parallel()
	settings := defaultConfig().settings()
	for i := range 2 {
		path := everySetting(t, i)
		code, out, errOut := runCommand([]string{"FASTAPI_TITLE=from the environment", "AUTH_ADMIN_PASSWORD=hunter2"}, "", "-config", path, "config")
		if missing := lacks(out, "# FASTAPI_TITLE & # "+path+":3 & # AUTH_ADMIN_PASSWORD"); code != 0 || missing != "" || strings.Contains(out+errOut, "hunter2") {
			t.Errorf("exit status %d; a source is missing (%s) or a secret is shown:\n%s%s", code, missing, out, errOut)
		}
		c, err := loadConfig(configFile(t, out), nil)
		if err != nil {
			t.Errorf("printed settings do not load: %v\n%s", err, out)
			continue
		}
		for n, s := range c.settings() {
			want := otherValues(settings[n])[i]
			if s.key == "fastapi.title" {
				want = "from the environment"
			} else if s.secret {
				want = "<redacted>"
			}
			if s.get() != want {
				t.Errorf("%s = %q after printing and reading; want %q", s.key, s.get(), want)
			}
		}
	}
}

// FuzzLoadConfig: no file makes it panic, and what it accepts can be printed and loaded again.
func FuzzLoadConfig(f *testing.F) {
	for _, seed := range []string{string(must(os.ReadFile("application.yaml"))), "auth: &a\n  issuer: *a", "auth: {<<: {issuer: x}}", "? [a]\n: b", "log:\n  level: ${ENV:}",
		"server: {cors_origins: ['*']}", "auth_client: {accepted_algorithms: [RS256, 'a: b', '\"', \"x\\ny\"]}", "auth: {audience: \"\\u2028\\x7f\\ufeff\"}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := loadConfig(configFile(t, string(data)), nil)
		if err != nil {
			return
		}
		var out strings.Builder
		c.dump(&out)
		if err := yaml.Unmarshal([]byte(out.String()), &map[string]map[string]any{}); err != nil {
			t.Fatalf("printed settings are not YAML: %v\n%s", err, out.String())
		}
		if _, err := loadConfig(configFile(t, out.String()), nil); err != nil {
			t.Fatalf("printed settings do not load: %v\n%s", err, out.String())
		}
	})
}

// === main.go, shell.go ===

// runCommand runs a command line in this process, without a home directory.
func runCommand(environ []string, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errOut strings.Builder
	code = exitCode(run(context.Background(), process{args, environ, strings.NewReader(stdin), &out, &errOut, time.Now}), &errOut)
	return code, out.String(), errOut.String()
}

// program is this test binary run as the program, in a process of its own.
type program struct {
	testing.TB
	*exec.Cmd
	lines chan string // of its log
	log   string      // what wait has read of it
}

// launch starts the program in dir, which is its home too, on a free port and with umask 0.
func launch(t testing.TB, dir string, environ []string, args ...string) *program {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs signals and file modes")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // ends a hang; nothing waits for it
	p := &program{TB: t, Cmd: exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", `umask 0; exec "$0" "$@"`, os.Args[0]}, args...)...), lines: make(chan string, 1e5)}
	p.Dir, p.Env = dir, append([]string{"PICO_AUTH_RUN_MAIN=1", "HOME=" + dir, "SERVER_LISTEN=127.0.0.1:0", "AUTH_BCRYPT_COST=10"}, environ...)
	pipe := must(p.StderrPipe())
	must(0, p.Start())
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(pipe); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() { cancel(); p.exit() })
	return p
}

// wait reads the log up to a line that contains text, and returns it; "" when the program ended first.
func (p *program) wait(text string) string {
	for line := range p.lines {
		if p.log += line + "\n"; strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

// exit waits for the end and returns the exit status, -1 after a signal.
func (p *program) exit() int {
	p.wait("\x00")
	p.Wait()
	return p.ProcessState.ExitCode()
}

// client waits for the program to listen and returns something to send it requests with.
func (p *program) client() *testServer {
	p.Helper()
	_, base, found := strings.Cut(p.wait("msg=listening"), "address=")
	if !found {
		p.Fatalf("the program did not start:\n%s", p.log)
	}
	return &testServer{TB: p.TB, url: base, dir: p.Dir}
}

// TestMain_FirstMinute: an empty directory, no configuration, SIGTERM, and the second start (check C02).
func TestMain_FirstMinute(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := launch(t, dir, nil)
	c := p.client()
	if missing := lacks(p.log, "version="+version+" & issuer=http://localhost:8100 & auth.db created=true & kid= & dir="+dir+`/.pico-auth & msg="admin created" email=admin@pico.local & `+
		`password_from="the built-in default" & level=WARN msg="this user has the published default password`); missing != "" {
		t.Errorf("the log of the start lacks %s:\n%s", missing, p.log)
	}
	for name, want := range map[string]os.FileMode{".pico-auth": 0o700, ".pico-auth/private.pem": 0o600, "auth.db": 0o600, "auth.db-wal": 0o600, "auth.db-shm": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s under umask 0: %v, %v; want mode %o", name, info, err, want)
		}
	}
	c.want(c.do("POST", auth+"/register", "", object{"email": "ada@example.com", "password": userPassword}), 200, "", "register")
	access, refresh := c.mustLogin("ada@example.com", userPassword)
	c.want(c.do("GET", auth+"/me", access, nil), 200, "", "GET /me")
	refresh = c.want(c.refresh(refresh), 200, "", "refresh").text("refresh_token")
	c.mustLogin("admin@pico.local", "admin")

	// A request whose handler has begun (it asked for the body) is finished after SIGTERM.
	conn := must(net.Dial("tcp", strings.TrimPrefix(c.url, "http://")))
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s/refresh HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", auth, len(refresh)+2)
	answers := bufio.NewReader(conn)
	if line := must(answers.ReadString('\n')) + must(answers.ReadString('\n')); line != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Fatalf("answer to Expect: %q", line)
	}
	p.Process.Signal(syscall.SIGTERM)
	p.wait("msg=stopping")
	fmt.Fprintf(conn, "%q", refresh)
	res := must(http.ReadResponse(answers, nil))
	var got tokenResponse
	if must(0, json.NewDecoder(res.Body).Decode(&got)); res.StatusCode != 200 {
		t.Errorf("the request in flight: %s", res.Status)
	}
	if code := p.exit(); code != 0 || lacks(p.log, "msg=stopped") != "" {
		t.Errorf("exit status after SIGTERM = %d; want 0\n%s", code, p.log)
	}

	p = launch(t, dir, []string{"AUTH_ADMIN_PASSWORD=not the stored one"})
	c = p.client()
	c.want(c.refresh(got.RefreshToken), 200, "", "refresh after the second start")
	if missing := lacks(p.wait("is not applied"), "user passwd admin@pico.local & source=AUTH_ADMIN_PASSWORD"); missing != "" || strings.Contains(p.log, "created=true") {
		t.Errorf("the second start made something anew, or does not say that the configured password is not applied (%s):\n%s", missing, p.log)
	}
}

// TestMain_TwoFirstStartsAtOnce end with one key, one admin, and both serving.
func TestMain_TwoFirstStartsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, q := launch(t, dir, nil), launch(t, dir, nil)
	a, b := p.client(), q.client()
	if x, y := a.do("GET", jwksPath, "", nil), b.do("GET", jwksPath, "", nil); x.body != y.body || strings.Count(x.body, `"kid"`) != 1 {
		t.Errorf("key sets:\n%s\n%s", x.body, y.body)
	}
	access, _ := a.mustLogin("admin@pico.local", "admin")
	if list := b.do("GET", auth+"/users", access, nil); list.status != 200 || list.json["total"] != 1.0 {
		t.Errorf("users seen by the other server: %d %s; want one", list.status, list.body)
	}
}

// TestMain_DefaultAdminStaysHome: the published password and anything reachable exclude each other (check C01).
func TestMain_DefaultAdminStaysHome(t *testing.T) {
	t.Parallel()
	const own, none = "AUTH_ADMIN_PASSWORD=own password", "AUTH_AUTO_CREATE_ADMIN=false"
	for _, tt := range []struct {
		listen, issuer, stored, extra string
		starts                        bool
	}{
		{"127.0.0.1:0", "http://localhost:8100", "", "", true},
		{"localhost:0", "http://127.0.0.1:8100", "admin", "", true},
		{"127.0.0.1:0", "http://[::1]:8100", "own", "", true},
		{"unix:s", "http://auth.localhost", "", "", true},

		{"0.0.0.0:0", "http://localhost:8100", "", "", false},
		{":0", "http://localhost:8100", "", "", false},
		{"[::]:0", "http://localhost:8100", "", "AUTH_ADMIN_PASSWORD=admin", false},
		{"127.0.0.1:0", "https://auth.example.com", "", "", false},
		{"127.0.0.1:0", "http://localhost.example.com", "", "", false},
		{"unix:s", "https://auth.example.com", "", "", false},

		{"0.0.0.0:0", "https://auth.example.com", "", own, true},
		{"0.0.0.0:0", "https://auth.example.com", "", none, true},
		{"0.0.0.0:0", "https://auth.example.com", "own", "", true},
		{"0.0.0.0:0", "http://localhost:8100", "admin", "", false},
		{"127.0.0.1:0", "https://auth.example.com", "admin", own, false}, // the stored one counts
		{"127.0.0.1:0", "https://auth.example.com", "admin", none, false},
	} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			writeTestKeys(t, filepath.Join(dir, ".pico-auth"))
			files := []string{"AUTH_DATA_DIR=" + dir + "/.pico-auth", "DATABASE_URL=sqlite:///" + dir + "/auth.db", "AUTH_BCRYPT_COST=10", "AUTH_PASSWORD_MIN_LENGTH=1"}
			if tt.stored != "" {
				put(dir+"/auth.db", "") // the shell makes no database where there is none
				if code, _, errOut := runCommand(files, tt.stored, "user", "add", "admin@pico.local", "--role", "superadmin"); code != 0 {
					t.Fatal(errOut)
				}
			}
			p := launch(t, dir, []string{"SERVER_LISTEN=" + tt.listen, "AUTH_ISSUER=" + tt.issuer, tt.extra})
			if listening := p.wait("msg=listening") != ""; listening != tt.starts {
				t.Fatalf("listening = %v; want %v\n%s", listening, tt.starts, p.log)
			} else if tt.starts {
				return
			}
			if code := p.exit(); code != 2 || lacks(p.log, "AUTH_ADMIN_PASSWORD & not loopback") != "" {
				t.Errorf("exit status %d; want 2 and AUTH_ADMIN_PASSWORD named\n%s", code, p.log)
			}
			if _, users, _ := runCommand(files, "", "user", "list", "--json"); (tt.stored == "") != (users == "") {
				t.Errorf("accounts after the refusal:\n%s", users)
			}
		})
	}
}

// TestMain_DefaultPasswordIsRefusedThroughProxies, until it is changed.
func TestMain_DefaultPasswordIsRefusedThroughProxies(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.adminPassword = defaultAdminPassword })
	headers := []string{"Host: auth.example.com", "Host: 10.0.0.1:8100", "Forwarded: for=1.2.3.4", "Via: 1.1 proxy", "X-Forwarded-For: 127.0.0.1",
		"X-Forwarded-Host: localhost", "X-Forwarded-Proto: https", "X-Real-Ip: 127.0.0.1"}
	for _, h := range headers {
		ts.want(ts.do("POST", loginPath, "", object{"email": adminEmail, "password": "admin"}, h), 403, "default_password", "login with "+h)
	}
	access, _ := ts.mustLogin(adminEmail, "admin")
	ts.want(ts.do("POST", auth+"/me/password", access, object{"old_password": "admin", "new_password": userPassword}), 200, "", "password change")
	for _, h := range headers {
		ts.want(ts.do("POST", loginPath, "", object{"email": adminEmail, "password": userPassword}, h), 200, "", "login after the change with "+h)
	}
}

// TestMain_BadThings: status 1 or 2, a message that names the thing, and no stack trace.
func TestMain_BadThings(t *testing.T) {
	t.Parallel()
	taken := must(net.Listen("tcp", "127.0.0.1:0"))
	defer taken.Close()
	for _, tt := range []struct {
		sh   string // makes the thing bad, in the program's directory
		args string // and environment
		code int
		want string
	}{
		{"echo x >.pico-auth/private.pem", "", 1, ".pico-auth/private.pem & restore it from a backup"},
		{"rm .pico-auth/private.pem", "", 1, "private.pem is missing & restore"},
		{"mkdir auth.db", "", 1, "DATABASE_URL & auth.db is not a file"},
		{"", "DATABASE_URL=sqlite:///no/auth.db", 1, "DATABASE_URL & no/auth.db"},
		{"seq 999 >auth.db", "", 1, "DATABASE_URL & auth.db & not a database"},
		{"cp other.db auth.db", "", 1, "DATABASE_URL & auth.db & nothing was changed"},
		{"cp newer.db auth.db", "", 1, "auth.db & newer pico-auth & restore"},
		{"", "SERVER_LISTEN=" + taken.Addr().String(), 1, "SERVER_LISTEN & " + taken.Addr().String() + " & in use"},
		{"", "SERVER_TLS_CERT_FILE=no.pem SERVER_TLS_KEY_FILE=no.pem", 1, "SERVER_TLS_CERT_FILE & no.pem"},
		{"", "HOME=", 2, "AUTH_DATA_DIR & home"},
		{"", "AUTH_ADMIN_EMAIL=nobody", 2, "AUTH_ADMIN_EMAIL & name@example.com"},
		{"echo 'auth: {isuer: x}' >application.yaml", "", 2, "application.yaml:1 & did you mean auth.issuer"},
		{"", "-config no.yaml", 2, "no.yaml"},
		{"", "start", 2, `unknown command "start" & pico-auth healthcheck`},
		{"", "-port 1", 2, "-port & -config FILE"},
		{"", "serve fast", 2, "serve & fast"},
		{"", "config x", 2, "no arguments"},
		{"", "user", 2, "user add"},
		{"", "key make", 2, "key rotate"},
	} {
		dir := t.TempDir()
		writeTestKeys(t, filepath.Join(dir, ".pico-auth"))
		for name, content := range map[string]string{"other.db": "CREATE TABLE notes (x)", "newer.db": fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = 99", applicationID)} {
			db := must(sql.Open("sqlite", filepath.Join(dir, name)))
			must(db.Exec(content))
			must(0, db.Close())
		}
		must(exec.Command("sh", "-c", "cd "+dir+"; "+tt.sh).Output())
		words := strings.Fields(tt.args)
		isOption := func(w string) bool { return !strings.Contains(w, "=") }
		p := launch(t, dir, slices.DeleteFunc(slices.Clone(words), isOption), slices.DeleteFunc(words, func(w string) bool { return !isOption(w) })...)
		if p.wait("msg=listening") != "" {
			t.Fatalf("%s %s: the server runs", tt.sh, tt.args)
		}
		if code, missing := p.exit(), lacks(p.log, tt.want); code != tt.code || missing != "" || strings.Contains(p.log, "goroutine ") || strings.Contains(p.log, "panic") {
			t.Errorf("%s %s: exit status %d; want %d, %s and no stack\n%s", tt.sh, tt.args, code, tt.code, missing, p.log)
		}
	}
}

// serveOn serves a test server's handler on the listener that its configuration, changed, asks for.
func (ts *testServer) serveOn(change func(*config)) net.Addr {
	cfg := *ts.cfg
	change(&cfg)
	ln := must(listen(&cfg))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, ln, ts.srv, discardLog) }()
	ts.Cleanup(func() { cancel(); must(0, <-done) })
	return ln.Addr()
}

// writeCertificate makes a self-signed certificate with a serial number, and dates its files.
func writeCertificate(dir string, serial int64) (certFile, keyFile string, cert *x509.Certificate) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"auth.example.com"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	certFile = put(dir+"/cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	keyFile = put(dir+"/key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))})))
	for _, name := range []string{certFile, keyFile} { // file times can be too coarse to tell two quick writes apart
		must(0, os.Chtimes(name, time.Time{}, time.Unix(1e9+serial, 0)))
	}
	return certFile, keyFile, must(x509.ParseCertificate(der))
}

// TestMain_TLSFollowsItsFiles: HTTP/2, a new certificate without a restart, a broken one not taken.
func TestMain_TLSFollowsItsFiles(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	certFile, keyFile, cert := writeCertificate(ts.dir, 1)
	address := ts.serveOn(func(c *config) { c.listen, c.tlsCertFile, c.tlsKeyFile = "127.0.0.1:0", certFile, keyFile }).String()
	pool := x509.NewCertPool()
	want := func(serial int64, what string) {
		transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "auth.example.com"}}
		defer transport.CloseIdleConnections()
		res := must((&http.Client{Transport: transport}).Get("https://" + address + discoveryPath))
		if res.Body.Close(); res.ProtoMajor != 2 || res.StatusCode != 200 || res.TLS.PeerCertificates[0].SerialNumber.Int64() != serial {
			t.Errorf("%s: %s %s with certificate %v; want HTTP/2 with %d", what, res.Proto, res.Status, res.TLS.PeerCertificates[0].SerialNumber, serial)
		}
	}
	pool.AddCert(cert)
	want(1, "first certificate")
	_, _, cert = writeCertificate(ts.dir, 2)
	pool.AddCert(cert)
	want(2, "replaced certificate")
	other, _, _ := writeCertificate(t.TempDir(), 3)
	for file, wanted := range map[string]int{certFile: 0, other: 1} {
		if code, out, errOut := runCommand([]string{"SERVER_LISTEN=" + address, "SERVER_TLS_CERT_FILE=" + file, "SERVER_TLS_KEY_FILE=" + keyFile}, "", "healthcheck"); code != wanted {
			t.Errorf("healthcheck expecting %s: %d %s%s; want %d", file, code, out, errOut, wanted)
		}
	}
	put(keyFile, "half a k")
	want(2, "certificate beside a broken key")
}

// TestMain_UnixSocket: a stale socket is replaced, a living one and other files are not.
func TestMain_UnixSocket(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	path := filepath.Join(ts.dir, "s")
	stale := must(net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}))
	stale.SetUnlinkOnClose(false)
	stale.Close()
	ts.serveOn(func(c *config) { c.listen = "unix:" + path })
	for _, name := range []string{path, put(filepath.Join(ts.dir, "plain"), "x")} {
		cfg := *ts.cfg
		cfg.listen = "unix:" + name
		if ln, err := listen(&cfg); err == nil || lacks(err.Error(), "SERVER_LISTEN & "+name) != "" {
			t.Errorf("listen on %s = %v, %v; want an error", name, ln, err)
		}
		must(os.Lstat(name))
	}
	if code, out, errOut := runCommand([]string{"SERVER_LISTEN=unix:" + path}, "", "healthcheck"); code != 0 || out != "ok\n" {
		t.Errorf("healthcheck over the socket: %d %s%s", code, out, errOut)
	}
	if mode := must(os.Stat(path)).Mode().Perm(); mode != 0o660 {
		t.Errorf("mode of the socket: %o; want 660", mode)
	}
}

// TestMain_Healthcheck: 0 only while a write reaches the database.
func TestMain_Healthcheck(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	address := strings.TrimPrefix(ts.url, "http://")
	db := must(sql.Open("sqlite", dsn(ts.cfg.databasePath())))
	defer db.Close()
	for _, tt := range []struct {
		statement, listen string
		code              int
		want              string
	}{
		{"", address, 0, "ok\n"},
		{`CREATE TRIGGER full BEFORE INSERT ON settings BEGIN SELECT RAISE(ABORT, 'disk is full'); END`, address, 1, address + " answers 503"},
		{`DROP TRIGGER full`, address, 0, "ok\n"},
		{"", "127.0.0.1:1", 1, "no answer from 127.0.0.1:1"},
	} {
		must(db.Exec(tt.statement))
		if code, out, errOut := runCommand([]string{"SERVER_LISTEN=" + tt.listen}, "", "healthcheck"); code != tt.code || lacks(out+errOut, tt.want) != "" {
			t.Errorf("after %q: %d %s%s; want %d %s", tt.statement, code, out, errOut, tt.code, tt.want)
		}
	}
}

// TestMain_VersionAndHelp need no configuration, not even a usable one.
func TestMain_VersionAndHelp(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{"version": "pico-auth " + version, "help": usage, "-h": usage, "--help": usage} {
		if code, out, errOut := runCommand([]string{"AUTH_ISSUER=x"}, "", word); code != 0 || !strings.HasPrefix(out, want) || errOut != "" {
			t.Errorf("%s: %d %q %q", word, code, out, errOut)
		}
	}
}

// TestMain_SteadyClock: set back a little it stands still, set back a lot it follows.
func TestMain_SteadyClock(t *testing.T) {
	t.Parallel()
	clock := newTestClock()
	start, steady := clock.read(), steadyClock(clock.read)
	const year = 365 * 24 * 60
	for _, step := range []struct{ move, want time.Duration }{ // in minutes
		{0, 0}, {60, 60}, {-60, 60}, {30, 60}, {31, 61}, // back an hour: stands, then follows
		{-120, 61}, {-60, -119}, // back two hours: stands; three: the clock was wrong before
		{year, year - 119}, {-year, -119},
	} {
		clock.advance(step.move * time.Minute)
		if got := steady().Sub(start); got != step.want*time.Minute {
			t.Errorf("after a step of %d minutes the time is %v; want %v", step.move, got, step.want*time.Minute)
		}
	}

	ts := newTestServer(t)
	access := ts.mustAdmin()
	ts.clock.advance(16 * time.Minute)
	ts.want(ts.do("GET", auth+"/me", access, nil), 401, "token_expired", "expired token")
	ts.clock.advance(-time.Hour)
	ts.want(ts.do("GET", auth+"/me", access, nil), 401, "token_expired", "expired token, clock an hour back")
}

// ledger is what the server has acknowledged in TestMain_KillLosesNothing.
type ledger struct {
	mu      sync.Mutex
	hashing sync.Mutex             // one password at a time: the race detector makes bcrypt slow, and waiting callers are refused
	users   map[string]*ledgerUser // by email
	acks    atomic.Int64
	killAt  int64
	kill    func()
}

// ledgerUser is one user's part. What a request without an answer may have changed becomes "": not known.
type ledgerUser struct {
	email, id, password, role, access string
	live                              string   // refresh token that must work
	spent                             []string // refresh tokens that must not
}

// send makes one request to a server that may die.
func (l *ledger) send(c *testServer, admin, step string, u *ledgerUser) (a answer, err error) {
	method, path, token, body := "POST", "/"+step, u.access, any(object{})
	switch step {
	case "register", "login":
		token, body = "", object{"email": u.email, "password": u.password}
	case "password":
		path, body = "/me/password", object{"old_password": u.password, "new_password": "changed " + u.email}
	case "refresh":
		body = u.live
	case operator, orgAdmin:
		method, path, token, body = "PUT", "/users/"+u.id+"/role", admin, step
	}
	if step == "register" || step == "login" || step == "password" {
		l.hashing.Lock()
		defer l.hashing.Unlock()
	}
	req := must(http.NewRequest(method, c.url+auth+path, bytes.NewReader(must(json.Marshal(body)))))
	req.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + token}}
	res, err := noRedirects.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	a.status, a.body = res.StatusCode, string(data)
	return a, json.Unmarshal(data, &a.json)
}

// live leads one user through some requests; false when one got no answer.
func (l *ledger) live(c *testServer, admin, email string) bool {
	u := &ledgerUser{email: email, password: userPassword}
	steps := []string{"register", "login"}
	for range 5 + mathrand.IntN(15) {
		steps = append(steps, []string{"refresh", "refresh", operator, orgAdmin}[mathrand.IntN(4)])
	}
	for _, step := range append(steps, []string{"refresh", "password", "logout"}[mathrand.IntN(3)]) {
		a, err := l.send(c, admin, step, u)
		if err == nil && a.status != 200 {
			c.Errorf("%s of %s = %d %s; want 200", step, email, a.status, a.body)
			return false
		}
		if err == nil && u.live != "" && step != operator && step != orgAdmin { // without an answer it is spent, or not
			u.spent = append(u.spent, u.live)
		}
		switch step {
		case "register":
			if err == nil {
				u.id, u.role = a.text("id"), viewer
				l.mu.Lock()
				l.users[email] = u
				l.mu.Unlock()
			}
		case operator, orgAdmin:
			u.role = a.text("role")
		case "password":
			if u.live, u.password = "", ""; err == nil {
				u.password = "changed " + email
			}
		default:
			u.live, u.access = a.text("refresh_token"), a.text("access_token")
		}
		if err != nil {
			return false
		}
		if l.acks.Add(1) == l.killAt {
			l.kill() // right after an acknowledgement, while the others wait for theirs
		}
	}
	return true
}

// check asks a restarted server for everything that was acknowledged.
func (l *ledger) check(c *testServer, admin string) {
	c.Helper()
	roles := map[string]any{}
	for _, row := range c.want(c.do("GET", auth+"/users", admin, nil), 200, "", "list of users").json["users"].([]any) {
		roles[row.(object)["email"].(string)] = row.(object)["role"]
	}
	for email, u := range l.users {
		if roles[email] != u.role && (u.role != "" || roles[email] == nil) {
			c.Errorf("%s has role %v; %q was acknowledged", email, roles[email], u.role)
		}
		if u.password != "" {
			c.mustLogin(email, u.password)
		}
		if u.live != "" {
			c.want(c.refresh(u.live), 200, "", "refresh with the newest token of "+email)
			u.spent = append(u.spent, u.live)
		}
		for _, token := range u.spent {
			c.want(c.refresh(token), 401, "", "refresh with a spent token of "+email)
		}
	}
	clear(l.users)
}

// TestMain_KillLosesNothing kills the server under mixed load; PICO_AUTH_KILLS says how often (check D01).
func TestMain_KillLosesNothing(t *testing.T) {
	t.Parallel()
	kills, err := strconv.Atoi(os.Getenv("PICO_AUTH_KILLS"))
	if err != nil {
		kills = 1
	}
	dir, admin := t.TempDir(), ""
	writeTestKeys(t, filepath.Join(dir, ".pico-auth"))
	l := &ledger{users: map[string]*ledgerUser{}}
	for round := range kills + 1 {
		p := launch(t, dir, []string{"THROTTLE_ENABLED=false", "AUTH_ADMIN_PASSWORD=" + adminPassword})
		c := p.client()
		if admin == "" {
			admin, _ = c.mustLogin("admin@pico.local", adminPassword)
		}
		l.check(c, admin)
		var verdict string
		db := must(sql.Open("sqlite", dsn(dir+"/auth.db")))
		if must(0, db.QueryRow(`PRAGMA integrity_check`).Scan(&verdict)); db.Close() != nil || verdict != "ok" {
			t.Fatalf("integrity_check: %q", verdict)
		}
		if round == kills {
			return
		}
		l.killAt, l.kill = l.acks.Load()+10+mathrand.Int64N(40), func() { p.Process.Kill() }
		var clients sync.WaitGroup
		for worker := range 4 {
			clients.Go(func() {
				for n := 0; l.live(c, admin, fmt.Sprintf("u%d.%d.%d@example.com", round, worker, n)); n++ {
				}
			})
		}
		clients.Wait()
		p.exit()
	}
}

// environ names a test server's files to the shell.
func (ts *testServer) environ() []string {
	return []string{"AUTH_DATA_DIR=" + ts.cfg.dataDir, "DATABASE_URL=" + ts.cfg.databaseURL, "AUTH_BCRYPT_COST=10"}
}

// TestShell_Users tells an operator's story beside a running server.
func TestShell_Users(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	sh := func(stdin, args string) (stdout, stderr string) {
		t.Helper()
		code, stdout, stderr := runCommand(ts.environ(), stdin, append([]string{"user"}, strings.Fields(args)...)...)
		if code != 0 || strings.Contains(stdout+stderr, userPassword) {
			t.Errorf("user %s: exit status %d, %s%s; want 0 and no password shown", args, code, stdout, stderr)
		}
		return stdout, stderr
	}
	// Three ways to give a password; each logs in at the running server.
	out, _ := sh(userPassword+"\n", "add ada@example.com --role operator --org acme --name Ada --json")
	if missing := lacks(out, `"role":"operator" & "org_id":"acme" & "display_name":"Ada" & "last_login_at":null`); missing != "" {
		t.Errorf("user add --json lacks %s: %s", missing, out)
	}
	sh("", "add --password-file "+put(ts.dir+"/password", userPassword+"\r\nsecond line")+" bob@example.com")
	ts.mustLogin("bob@example.com", userPassword)
	out, errOut := sh("", "add eve@example.com --generate")
	_, generated, _ := strings.Cut(out, "generated password: ")
	if generated, _, _ = strings.Cut(generated, "\n"); strings.Count(out+errOut, generated) != 1 || len(generated) < 20 {
		t.Errorf("user add --generate: %s%s; want the password once", out, errOut)
	}
	ts.mustLogin("eve@example.com", generated)

	out, _ = sh("", "list")
	if fields := strings.Fields(strings.Split(out, "\n")[2]); !slices.Equal(fields[:4], []string{"ada@example.com", "operator", "acme", "active"}) {
		t.Errorf("user list: %s", out)
	}
	if out, _ = sh("", "list --json"); strings.Count(out, "\n") != 4 || lacks(out, `"email":"eve@example.com"`) != "" {
		t.Errorf("user list --json: %s", out)
	}
	if out, _ = sh("", "show ADA@example.com"); lacks(out, "last login: never & acme") != "" {
		t.Errorf("user show: %s", out)
	}

	// A new password ends sessions, and so does a suspension; the server notices at once.
	access, refresh := ts.mustLogin("ada@example.com", userPassword)
	sh("another long one\n", "passwd ada@example.com")
	ts.want(ts.do("GET", auth+"/me", access, nil), 401, "invalid_token", "access token after user passwd")
	ts.want(ts.refresh(refresh), 401, "invalid_token", "refresh token after user passwd")
	access, refresh = ts.mustLogin("ada@example.com", "another long one")
	sh("", "role ada@example.com superadmin")
	ts.want(ts.do("GET", auth+"/users", access, nil), 200, "", "list of users as a new superadmin")
	sh("", "status ada@example.com suspended")
	sh("", "status ada@example.com active")
	ts.want(ts.do("GET", auth+"/me", access, nil), 401, "invalid_token", "access token from before the suspension")
	ts.want(ts.refresh(refresh), 401, "invalid_token", "refresh token from before the suspension")
	sh("", "delete ada@example.com")
	ts.want(ts.do("POST", loginPath, "", object{"email": "ada@example.com", "password": "another long one"}), 401, "invalid_credentials", "login of a deleted user")
}

// TestShell_Refusals: what is wrong changes nothing, and the last superadmin stays.
func TestShell_Refusals(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	_, before, _ := runCommand(ts.environ(), "", "user", "list")
	for _, tt := range []struct {
		args, stdin string
		code        int
		want        string
	}{
		{"user add ADA@example.com", userPassword, 1, "already exists"},
		{"user add new@example.com", "short", 2, "at least 8 characters"},
		{"user add new@example.com", strings.Repeat("x", 73), 2, "at most 72 bytes"},
		{"user add new@example.com", "", 2, "at least 8 characters"},
		{"user add nobody", userPassword, 2, "email must be"},
		{"user add new@example.com --role root", userPassword, 2, `invalid role "root"`},
		{"user add new@example.com --password-file /no/such", "", 1, "/no/such"},
		{"user add new@example.com --password hunter2hunter2", "", 2, "usage:"},
		{"user add new@example.com --password=hunter2hunter2", "", 2, "usage:"},
		{"user add new@example.com hunter2hunter2", "", 2, "usage:"},
		{"user passwd ada@example.com hunter2hunter2", "", 2, "usage:"},
		{"user passwd ada@example.com", "short", 2, "at least 8 characters"},
		{"user passwd nobody@example.com", userPassword, 1, "no user has the email nobody@example.com"},
		{"user show nobody@example.com", "", 1, "pico-auth user list"},
		{"user role ada@example.com root", "", 2, "invalid role"},
		{"user role nobody@example.com viewer", "", 1, "nobody@example.com"},
		{"user status ada@example.com gone", "", 2, "invalid status"},
		{"user role " + adminEmail + " viewer", "", 1, "last active superadmin"},
		{"user status " + adminEmail + " suspended", "", 1, "last active superadmin"},
		{"user delete " + adminEmail, "", 1, "last active superadmin"},
		{"user delete", "", 2, "usage:"},
		{"key drop " + ts.keys.current().signing().kid, "", 1, "key rotate --now"},
		{"key drop nothing", "", 1, "no key nothing"},
		{"key drop", "", 2, "usage:"},
	} {
		code, out, errOut := runCommand(ts.environ(), tt.stdin, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(errOut, tt.want) || strings.Contains(out+errOut, "hunter2") {
			t.Errorf("%s: exit status %d, %s%s; want %d, %q and no password", tt.args, code, out, errOut, tt.code, tt.want)
		}
	}
	if _, after, _ := runCommand(ts.environ(), "", "user", "list"); after != before {
		t.Errorf("users after the refusals:\n%swant\n%s", after, before)
	}
	ts.mustLogin("ada@example.com", userPassword)
}

// TestShell_Keys: the running server follows a rotation, and a dropped key's tokens end.
func TestShell_Keys(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	keys := func(args ...string) map[string]string { // state → kid
		t.Helper()
		code, out, errOut := runCommand(ts.environ(), "", append([]string{"key"}, args...)...)
		ts.tick(context.Background())
		states := map[string]string{}
		for line := range strings.Lines(out) {
			var k struct{ Kid, State string }
			if json.Unmarshal([]byte(line), &k) != nil || code != 0 {
				t.Fatalf("key %q: %d %s%s", args, code, out, errOut)
			}
			states[k.State] = k.Kid
			if jwks := ts.do("GET", jwksPath, "", nil); !strings.Contains(jwks.body, k.Kid) {
				t.Errorf("after key %q the server does not publish the %s key: %s", args, k.State, jwks.body)
			}
		}
		return states
	}
	old := ts.mustAdmin()
	first := keys("list", "--json")["signing"]
	planned := keys("rotate", "--json")
	if planned["signing"] != first || planned["next"] == "" || keys("rotate", "--json")["next"] != planned["next"] {
		t.Errorf("after key rotate: %v; want a next key, once", planned)
	}
	rotated := keys("rotate", "--now", "--json")
	if now := rotated["signing"]; now == first || now == planned["next"] || rotated["next"] != "" || rotated["retired"] != first {
		t.Errorf("after key rotate --now: %v", rotated)
	}
	ts.want(ts.do("GET", auth+"/me", old, nil), 200, "", "token of the retired key")
	access := ts.mustAdmin()
	if left := keys("drop", first, "--json"); len(left) != 1 {
		t.Errorf("after key drop: %v", left)
	}
	ts.want(ts.do("GET", auth+"/me", old, nil), 401, "invalid_token", "token of the dropped key")
	ts.want(ts.do("GET", auth+"/me", access, nil), 200, "", "token of the new key")
}

// === structure ===

// inspect parses the files of the program and visits every node.
func inspect(t *testing.T, visit func(name, place string, n ast.Node)) {
	t.Helper()
	fset := token.NewFileSet()
	for _, name := range must(filepath.Glob("*.go")) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file := must(parser.ParseFile(fset, name, nil, parser.SkipObjectResolution))
		ast.Inspect(file, func(n ast.Node) bool {
			if n != nil {
				visit(name, fset.Position(n.Pos()).String(), n)
			}
			return true
		})
	}
}

// TestStructure_Rooms: what the compiler cannot keep apart in one package.
func TestStructure_Rooms(t *testing.T) {
	t.Parallel()
	allowed := map[string]string{ // import → files
		"net/http": "http.go handlers.go admin.go oidc.go main.go", "database/sql": "db.go adopt.go", "modernc.org/sqlite": "db.go", "gopkg.in/yaml.v3": "config.go",
		"crypto/rsa": "jwt.go keys.go", "crypto/x509": "keys.go main.go", "crypto/tls": "main.go", "golang.org/x/crypto/bcrypt": "passwords.go shell.go",
		"math/rand": "", "math/rand/v2": "", "unsafe": "", "reflect": "", "os/exec": "", "testing": "", "net/http/pprof": "", "crypto/md5": "", "crypto/sha1": "",
	}
	leaves := strings.Fields("rbac.go jwt.go keys.go passwords.go passwords_linux.go passwords_other.go db.go adopt.go config.go")
	looksLikeSQL := regexp.MustCompile(`(?is)\b(SELECT\s.*\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|(CREATE|DROP|ALTER)\s+(TABLE|INDEX)|PRAGMA\s+\w+|BEGIN\s+IMMEDIATE)\b`)
	seen := map[string]bool{}
	inspect(t, func(name, place string, n ast.Node) {
		seen[name] = true
		switch n := n.(type) {
		case *ast.ImportSpec:
			path := must(strconv.Unquote(n.Path.Value))
			if only, listed := allowed[path]; listed && !slices.Contains(strings.Fields(only), name) {
				t.Errorf("%s: import of %s; only %q may", place, path, only)
			}
		case *ast.Ident:
			if n.Name == "server" && slices.Contains(leaves, name) {
				t.Errorf("%s: a leaf room mentions server", place)
			}
		case *ast.BasicLit:
			if n.Kind == token.STRING && name != "db.go" && name != "adopt.go" && looksLikeSQL.MatchString(n.Value) {
				t.Errorf("%s: SQL outside db.go and adopt.go", place)
			}
		case *ast.SelectorExpr:
			if pkg, ok := n.X.(*ast.Ident); ok && pkg.Name == "time" && name != "main.go" && slices.Contains([]string{"Now", "Since", "Until"}, n.Sel.Name) {
				t.Errorf("%s: time.%s; the clock is read in main.go alone", place, n.Sel.Name)
			}
		}
	})
	for _, name := range append(leaves, "http.go", "handlers.go", "admin.go", "oidc.go", "main.go", "shell.go") {
		if !seen[name] {
			t.Errorf("%s is in this test but not in the program", name)
		}
	}
}

// TestStructure_Modules: three direct modules, and the libc that its SQLite was made with (check S02).
func TestStructure_Modules(t *testing.T) {
	t.Parallel()
	require := regexp.MustCompile(`(?m)^(?:require)?\s+(\S+\.\S+/\S+) (v\S+)( // indirect)?`)
	required := func(path string) (direct []string, versions map[string]string) {
		versions = map[string]string{}
		for _, m := range require.FindAllStringSubmatch(string(must(os.ReadFile(path))), -1) {
			if versions[m[1]] = m[2]; m[3] == "" {
				direct = append(direct, m[1])
			}
		}
		return direct, versions
	}
	direct, versions := required("go.mod")
	if want := []string{"golang.org/x/crypto", "gopkg.in/yaml.v3", "modernc.org/sqlite"}; !slices.Equal(slices.Sorted(slices.Values(direct)), want) {
		t.Errorf("direct modules %q; want %q", direct, want)
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command to find the source of modernc.org/sqlite with")
	}
	dir := must(exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "modernc.org/sqlite").Output())
	const libc = "modernc.org/libc"
	if _, its := required(strings.TrimSpace(string(dir)) + "/go.mod"); versions[libc] == "" || versions[libc] != its[libc] {
		t.Errorf("%s is %q here and %q in modernc.org/sqlite", libc, versions[libc], its[libc])
	}
}

// readmeRows returns the rows of the README's tables whose first cell matches, joined and without backticks.
func readmeRows(first string, columns func(cells []string) string) (rows []string) {
	for line := range strings.Lines(string(must(os.ReadFile("README.md")))) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i, cell := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cell), "`")
		}
		if strings.HasPrefix(line, "|") && len(cells) == 4 && cells[3] != "" && regexp.MustCompile("^(?:"+first+")$").MatchString(cells[0]) {
			rows = append(rows, columns(cells))
		}
	}
	return rows
}

// TestStructure_ReadmeTables equal routes() and settings(), and the README lists every event.
func TestStructure_ReadmeTables(t *testing.T) {
	t.Parallel()
	var routes, settings []string
	for _, rt := range new(server).routes() {
		routes = append(routes, fmt.Sprint(rt.pattern, ", for anyone: ", rt.need == public))
	}
	notEvents := slices.Clone(ignoredKeys)
	for _, s := range defaultConfig().settings() {
		settings, notEvents = append(settings, s.key+" "+s.env()+" "+s.get()), append(notEvents, s.key)
	}
	have := readmeRows("GET|POST|PUT|DELETE", func(c []string) string { return fmt.Sprint(c[0], " ", c[1], ", for anyone: ", c[2] == "anyone") })
	if slices.Sort(routes); !slices.Equal(slices.Sorted(slices.Values(have)), routes) {
		t.Errorf("endpoints in the README:\n%s\nwant:\n%s", strings.Join(have, "\n"), strings.Join(routes, "\n"))
	}
	have = readmeRows(`[a-z_]+\.[a-z0-9_]+`, func(c []string) string { return strings.Join(c[:3], " ") })
	if !slices.Equal(have, settings) {
		t.Errorf("settings in the README:\n%s\nwant:\n%s", strings.Join(have, "\n"), strings.Join(settings, "\n"))
	}
	readme, event, found := string(must(os.ReadFile("README.md"))), regexp.MustCompile(`^"([a-z]+\.[a-z_]+)"$`), 0
	inspect(t, func(_, place string, n ast.Node) {
		lit, _ := n.(*ast.BasicLit)
		if lit == nil {
			return
		}
		if m := event.FindStringSubmatch(lit.Value); m != nil && !slices.Contains(notEvents, m[1]) && !strings.HasSuffix(m[1], ".pem") && !strings.HasSuffix(m[1], ".yaml") {
			if found++; !strings.Contains(readme, "`"+m[1]+"`") {
				t.Errorf("%s: event %s is not in the README", place, m[1])
			}
		}
	})
	if found < 20 {
		t.Errorf("%d events found in the sources; the search is broken", found)
	}
}

// TestStructure_ReadmeTranscript types the README's session into a shell and compares what appears; … stands for
// what differs every time.
func TestStructure_ReadmeTranscript(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"sh", "curl", "sed"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	_, block, _ := strings.Cut(string(must(os.ReadFile("README.md"))), "```console\n")
	block, _, closed := strings.Cut(block, "```")
	base := launch(t, t.TempDir(), nil).client().url
	port, mark := base[strings.LastIndex(base, ":")+1:], "=== next command ===\n"
	script, continued, wanted := "", false, []string{} // the output of each command
	for line := range strings.Lines(block) {
		command, isCommand := strings.CutPrefix(line, "$ ")
		if isCommand {
			script, wanted = script+"printf '\n"+mark+"'\n", append(wanted, "")
		}
		if isCommand || continued {
			script += strings.ReplaceAll(command, "8100", port)
			continued = strings.HasSuffix(line, "\\\n")
		} else {
			wanted[len(wanted)-1] += line
		}
	}
	sh := exec.Command("sh", "-c", script)
	sh.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	out, err := sh.CombinedOutput()
	got := strings.Split(string(out), mark)[1:]
	if err != nil || !closed || len(got) != len(wanted) || len(got) < 8 {
		t.Fatalf("%d commands ran of %d: %v\n%s", len(got), len(wanted), err, out)
	}
	for i, want := range wanted {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(want)), "…", ".+")
		if text := strings.ReplaceAll(strings.TrimSpace(got[i]), port, "8100"); !regexp.MustCompile("^" + pattern + "$").MatchString(text) {
			t.Errorf("command %d of the transcript prints\n%s\nthe README says\n%s", i+1, text, want)
		}
	}
}

// === benchmarks ===

// benchClient is one keep-alive connection. It speaks raw HTTP, to take little CPU from the server beside it.
type benchClient struct {
	net.Conn // dialled when first used: the server hangs up on connections that stay silent
	r        *bufio.Reader
	address  string
	body     []byte
	email    string
	token    string // of its chain of refreshes
	took     []time.Duration
}

func newBenchClients(address string, n int) []*benchClient {
	all := make([]*benchClient, n)
	for i := range all {
		all[i] = &benchClient{address: address, email: fmt.Sprintf("u%d@example.com", i)}
	}
	return all
}

// do sends a request and reads an answer that has a Content-Length, as all but lists have. 0 is an error.
func (k *benchClient) do(request string) (status int) {
	began, length := time.Now(), 0
	if k.Conn == nil {
		var err error
		if k.Conn, err = net.Dial("tcp", k.address); err != nil {
			return 0
		}
		k.r = bufio.NewReader(k)
	}
	io.WriteString(k, request)
	for line := []byte("status"); len(line) > 2; {
		var err error
		if line, err = k.r.ReadSlice('\n'); err != nil {
			return 0
		}
		if value, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
			length, _ = strconv.Atoi(string(bytes.TrimSpace(value)))
		} else if status == 0 {
			status, _ = strconv.Atoi(string(line[9:12]))
		}
	}
	k.body = slices.Grow(k.body[:0], length)[:length]
	if _, err := io.ReadFull(k.r, k.body); err != nil {
		return 0
	}
	k.took = append(k.took, time.Since(began))
	if _, rest, found := bytes.Cut(k.body, []byte(`"refresh_token":"`)); found {
		token, _, _ := bytes.Cut(rest, []byte(`"`))
		k.token = string(token)
	}
	return status
}

// raw is a request for do; GET when it has no body.
func raw(path, token, body string) string {
	method := "POST "
	if body == "" {
		method = "GET "
	}
	return fmt.Sprintf("%s%s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", method, path, token, len(body), body)
}

func rawLogin(k *benchClient) string {
	return raw(loginPath, "", `{"email":"`+k.email+`","password":"`+userPassword+`"}`)
}

func rawRefresh(k *benchClient) string { return raw(auth+"/refresh", "", `"`+k.token+`"`) }

func always(request string) func(*benchClient) string {
	return func(*benchClient) string { return request }
}

const benchParallel = 32

// newBenchServer serves as run does: same scheduler, hashing threads and listener, a text log. Its n clients are logged in.
func newBenchServer(b *testing.B, cost, n int) (*testServer, []*benchClient) {
	ts := newTestServer(b, unthrottled, func(c *config) { c.bcryptCost, c.listen = cost, "127.0.0.1:0" })
	ctx, stop := context.WithCancel(context.Background())
	now, log := steadyClock(time.Now), slog.New(slog.NewTextHandler(io.Discard, nil))
	ts.srv = newServer(ts.cfg, ts.store, ts.keys, newHasher(ctx, cost, runtime.NumCPU(), now), now, log)
	ln, err := listen(ts.cfg)
	noError(b, err)
	stopped, before := make(chan error), runtime.GOMAXPROCS(2*runtime.NumCPU())
	go func() { stopped <- serve(ctx, ln, ts.srv, log) }()
	b.Cleanup(func() {
		stop()
		<-stopped
		runtime.GOMAXPROCS(before)
	})
	ts.url = "http://" + ln.Addr().String()
	clients := newBenchClients(ln.Addr().String(), n)
	hash, err := bcrypt.GenerateFromPassword([]byte(userPassword), cost)
	noError(b, err)
	for _, k := range clients {
		u := user{id: newID(), email: k.email, passwordHash: hash, role: viewer, orgID: defaultOrg, status: statusActive}
		noError(b, ts.store.createUser(context.Background(), principal{}, u, nil))
		same(b, "login", k.do(rawLogin(k)), 200)
	}
	return ts, clients
}

// perSecond is how often n goroutines together can call f in a second: the limit that a benchmark is compared with.
func perSecond(n int, f func(i int)) float64 {
	began, total := time.Now(), 0
	for _, count := range together(n, func(i int) (count int) {
		for ; time.Since(began) < time.Second; count++ {
			f(i)
		}
		return count
	}) {
		total += count
	}
	return float64(total) / time.Since(began).Seconds()
}

func bcryptLimit() float64 {
	return perSecond(runtime.NumCPU(), func(int) { matches(dummyHash(10), userPassword) })
}

func signLimit(ts *testServer) float64 {
	key := ts.keys.current().signing().private
	return perSecond(runtime.NumCPU(), func(int) { signRS256(key, "input") })
}

// newHello is the least that net/http can do, for the same clients.
func newHello(b *testing.B) []*benchClient {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	noError(b, err)
	b.Cleanup(func() { ln.Close() })
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	return newBenchClients(ln.Addr().String(), benchParallel)
}

func helloLimit(b *testing.B) func() float64 {
	clients := newHello(b)
	return func() float64 { return perSecond(benchParallel, func(i int) { clients[i].do(raw("/", "x", "")) }) }
}

// reportTimes takes the latencies that the clients have noted.
func reportTimes(b *testing.B, clients []*benchClient) {
	var all []time.Duration
	for _, k := range clients {
		all, k.took = append(all, k.took...), nil
	}
	slices.Sort(all)
	b.ReportMetric(all[(len(all)-1)*50/100].Seconds()*1e3, "p50-ms")
	b.ReportMetric(all[(len(all)-1)*99/100].Seconds()*1e3, "p99-ms")
}

// drive measures requests of parallel clients, and their limit right afterwards, because a machine changes its speed. It is
// a sub-benchmark, so that the setup before it runs once.
func drive(b *testing.B, name string, clients []*benchClient, limit func() float64, unit string, request func(*benchClient) string) {
	b.Run(name, func(b *testing.B) {
		var refused atomic.Int64
		idle := make(chan *benchClient, len(clients))
		for _, k := range clients {
			k.took = nil
			idle <- k
		}
		b.SetParallelism(max(1, len(clients)/runtime.GOMAXPROCS(0)))
		b.ReportAllocs()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			k := <-idle
			for pb.Next() {
				switch status := k.do(request(k)); status {
				case 200:
				case 503: // refused at once: the machine is too slow for so many logins in two seconds
					refused.Add(1)
				default:
					b.Errorf("status %d: %s", status, k.body)
					return
				}
			}
			idle <- k
		})
		b.StopTimer()
		rate := float64(int64(b.N)-refused.Load()) / b.Elapsed().Seconds()
		b.ReportMetric(rate, "req/s")
		if refused.Load() > 0 {
			b.ReportMetric(float64(refused.Load()), "refused")
		}
		reportTimes(b, clients)
		if limit != nil && b.N > 1 {
			b.ReportMetric(100*rate/limit(), unit)
		}
	})
}

func BenchmarkBcryptLimit(b *testing.B) { b.ReportMetric(bcryptLimit(), "hashes/s") }
func BenchmarkSignLimit(b *testing.B)   { b.ReportMetric(signLimit(newTestServer(b)), "signatures/s") }
func BenchmarkHelloLimit(b *testing.B) {
	drive(b, "32", newHello(b), nil, "", always(raw("/", "x", "")))
}

func BenchmarkLogin(b *testing.B) {
	_, clients := newBenchServer(b, 10, benchParallel)
	drive(b, "32", clients, bcryptLimit, "%ofbcrypt", rawLogin)
}

func BenchmarkRefresh(b *testing.B) {
	ts, clients := newBenchServer(b, 4, benchParallel)
	drive(b, "32", clients, func() float64 { return signLimit(ts) }, "%ofsigning", rawRefresh)
}

func BenchmarkMe(b *testing.B) {
	ts, clients := newBenchServer(b, 4, benchParallel)
	drive(b, "32", clients, helloLimit(b), "%ofhello", always(raw(auth+"/me", ts.mustAdmin(), "")))
}

func BenchmarkJWKS(b *testing.B) {
	_, clients := newBenchServer(b, 4, benchParallel)
	drive(b, "32", clients, helloLimit(b), "%ofhello", always(raw(jwksPath, "x", "")))
}

// BenchmarkFlood asks 200 times a second while 64 others log in without pause. The server is a process of its
// own, because in this one the clients would wait for the scheduler together with it.
func BenchmarkFlood(b *testing.B) {
	limit := bcryptLimit()
	c := launch(b, b.TempDir(), []string{"THROTTLE_ENABLED=false"}).client()
	clients := newBenchClients(strings.TrimPrefix(c.url, "http://"), 65)
	for _, k := range clients {
		body := fmt.Sprintf(`{"email":%q,"password":%q}`, k.email, userPassword)
		same(b, "register", k.do(raw(auth+"/register", "", body)), 200)
	}
	same(b, "login", clients[0].do(rawLogin(clients[0])), 200)
	access, _ := c.mustLogin(clients[0].email, userPassword)
	me := raw(auth+"/me", access, "")
	var logins, stop atomic.Int64
	var wg sync.WaitGroup
	for _, k := range clients[1:] {
		wg.Go(func() {
			for stop.Load() == 0 {
				switch status := k.do(rawLogin(k)); status {
				case 200:
					logins.Add(1)
				case 503: // it would have waited for more than two seconds
				default:
					b.Errorf("login = %d %s", status, k.body)
					return
				}
			}
		})
	}
	defer wg.Wait()
	defer stop.Store(1)
	for name, request := range map[string]func(*benchClient) string{"jwks": always(raw(jwksPath, "x", "")), "me": always(me), "refresh": rawRefresh} {
		b.Run(name, func(b *testing.B) {
			ticks := time.NewTicker(5 * time.Millisecond)
			defer ticks.Stop()
			before := logins.Load()
			for clients[0].took = nil; b.Loop(); <-ticks.C {
				same(b, "status", clients[0].do(request(clients[0])), 200)
			}
			rate := float64(logins.Load()-before) / b.Elapsed().Seconds()
			b.ReportMetric(rate, "logins/s")
			b.ReportMetric(100*rate/limit, "%ofbcrypt")
			reportTimes(b, clients[:1])
		})
	}
}

// BenchmarkScale compares a nearly empty database with one of PICO_AUTH_SCALE users and sessions.
func BenchmarkScale(b *testing.B) {
	rows, err := strconv.Atoi(cmp.Or(os.Getenv("PICO_AUTH_SCALE"), "20000"))
	noError(b, err)
	for _, n := range []int{1, rows} {
		ts, clients := newBenchServer(b, 4, benchParallel)
		access, at := ts.mustAdmin(), fmt.Sprint(n, "-users/")
		ts.pragma(fmt.Sprintf(`BEGIN; CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) SELECT 'user' || i AS id FROM n;
			INSERT INTO users SELECT NULL, id, id, id, 'User', (SELECT password_hash FROM users), 0, 'viewer', 'default', 'active', 0, NULL FROM n;
			INSERT INTO sessions SELECT hex(randomblob(16)), id, randomblob(32), randomblob(32), NULL, 0, 0, 1 << 40, 1 << 40, '192.0.2.1', 'a browser' FROM n; COMMIT`, n))
		drive(b, at+"me", clients, nil, "", always(raw(auth+"/me", access, "")))
		drive(b, at+"refresh", clients, nil, "", rawRefresh)
		drive(b, at+"login", clients, nil, "", rawLogin)
		for name, query := range map[string]string{"page-first": "?limit=100", "page-deep": fmt.Sprint("?limit=100&after=", max(0, n-100)), "list": ""} {
			b.Run(at+name, func(b *testing.B) { benchList(b, ts.url+auth+"/users"+query, access) })
		}
	}
}

// benchList reads a list and reports by how much memory in use has grown at most meanwhile.
func benchList(b *testing.B, url, access string) {
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak uint64
	for buffer := make([]byte, 64<<10); b.Loop(); {
		req, _ := http.NewRequest("GET", url, nil)
		req.Header.Set("Authorization", "Bearer "+access)
		res, err := noRedirects.Do(req)
		noError(b, err)
		for read, next := 0, 0; err == nil; {
			var n int
			n, err = res.Body.Read(buffer)
			if read += n; read >= next {
				runtime.ReadMemStats(&now)
				peak, next = max(peak, now.HeapInuse), read+4<<20
			}
		}
		res.Body.Close()
		same(b, "status and end of the list", fmt.Sprint(res.StatusCode, err), "200 EOF")
	}
	b.ReportMetric((float64(peak)-float64(before.HeapInuse))/1e6, "MB-growth")
}
