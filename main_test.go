package main

// How this program is tested. Almost everything is asked from outside: a real
// listener, the handler that run serves, real SQLite in a temporary directory,
// a clock that the test moves. Pure rooms (rbac, jwt, config) are tested as
// tables of input and verdict, flows as short stories, races, parsers and
// structure as properties. Nothing sleeps to wait for time to pass.
//
// Names are Test<Room>_<Property>: go test -run TestKeys_ runs a room, go test
// -v prints the promises. A row of a table runs alone: -run 'TestX/row'.
//
//	harness                       below
//	=== rbac.go ===               role matrix, object rules
//	=== jwt.go ===                vectors, forged tokens, fuzzing
//	=== keys.go ===               first start, damage, rotation, the clock
//	=== passwords.go ===          hashes, hashing queue, throttle
//	=== backup.go ===             copies of the database
//	=== db.go ===                 writer, schema, files
//	=== accounts.go ===           sessions, refresh tokens, purge
//	=== adopt.go ===              databases of the Python server
//	=== http.go, oidc.go ===      bad input, errors, headers, CORS, proxies
//	=== handlers.go, admin.go ===  every endpoint, races, administration
//	=== groups.go ===             life, refusals, bounds, races
//	=== servicetokens.go ===      life, refusals, throttle
//	=== openapi.go ===            the document against the code
//	=== authorize.go, pages.go ===  who gets a code, forms, cookies, pages
//	=== token.go ===              clients' tokens, logout, conformance, races
//	=== forwardauth.go ===        who may pass a proxy, its cookie
//	=== clients.go ===            settings of clients, redirect URIs
//	=== metrics.go ===            values, bounds, what is not shown, alert rules
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
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
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
	"go/types"
	"hash"
	"html"
	"io"
	"log/slog"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"
	"gopkg.in/yaml.v3"
)

// TestMain lets the test binary be the program, so that tests can start and
// kill real processes without building another binary.
func TestMain(m *testing.M) {
	if os.Getenv("PICO_AUTH_RUN_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// testClock is the time of one test server, in nanoseconds since 1970.
type testClock struct{ atomic.Int64 }

func newTestClock() *testClock {
	c := &testClock{}
	c.Store(time.Now().Truncate(time.Second).UnixNano())
	return c
}

func (c *testClock) read() time.Time { return time.Unix(0, c.Load()) }

func (c *testClock) advance(d time.Duration) { c.Add(int64(d)) }

// syncBuffer is a log that a server writes while a test reads it.
type syncBuffer struct {
	sync.Mutex
	bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.Lock()
	defer b.Unlock()
	return b.Buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.Lock()
	defer b.Unlock()
	return b.Buffer.String()
}

// want compares one thing that a test promises.
func want[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s = %v; want %v", what, got, want)
	}
}

// wantText checks that a text holds every part.
func wantText(t testing.TB, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s = %q; want %q in it", what, text, part)
		}
	}
}

// must and mustOK are for steps that a test is not about.
func must[T any](v T, err error) T {
	mustOK(err)
	return v
}

func mustOK(err error) {
	if err != nil {
		panic(err)
	}
}

// together runs f n times at once and returns what each call returned.
func together[T any](n int, f func(i int) T) []T {
	results := make([]T, n)
	start := make(chan bool)
	var done sync.WaitGroup
	for i := range n {
		done.Go(func() {
			<-start
			results[i] = f(i)
		})
	}
	close(start)
	done.Wait()
	return results
}

const (
	auth          = "/api/v1/auth"
	adminEmail    = "admin@example.com"
	adminPassword = "correct horse"
	userPassword  = "battery staple"
)

type object = map[string]any

// answer is a response read to its end.
type answer struct {
	status int
	header http.Header
	body   string
	json   object // nil when the body is no JSON object
}

// text is a member of the body that is a string.
func (a answer) text(name string) string {
	s, _ := a.json[name].(string)
	return s
}

var noRedirects = &http.Client{
	Transport: &http.Transport{MaxIdleConnsPerHost: 100},
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
}

// do sends a request and reads the answer. token may be empty. body may be
// nil, a string that is sent as it is, or anything else, which is sent as
// JSON. headers are "Name: value" and replace what do would send.
func (ts *testServer) do(method, path, token string, body any, headers ...string) answer {
	ts.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		in = bytes.NewReader(must(json.Marshal(b)))
	}
	req := must(http.NewRequest(method, ts.url+path, in))
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
	var data []byte
	res, err := noRedirects.Do(req)
	if err == nil {
		data, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	if err != nil {
		ts.Fatalf("%s %s: %v", method, path, err)
	}
	a := answer{status: res.StatusCode, header: res.Header, body: string(data)}
	json.Unmarshal(data, &a.json)
	ts.wantDescribed(req, a)
	return a
}

// wantOK ends the test unless the answer is a success.
func (ts *testServer) wantOK(what string, a answer) answer {
	ts.Helper()
	if a.status != 200 {
		ts.Fatalf("%s = %d %s; want 200", what, a.status, a.body)
	}
	return a
}

// wantProblem checks a refusal: its status, its code, and the whole form that
// every problem document has.
func (ts *testServer) wantProblem(what string, a answer, status int, code string) {
	ts.Helper()
	detail := a.text("detail")
	if a.status != status || a.text("code") != code || detail == "" {
		ts.Fatalf("%s = %d %s; want %d %s", what, a.status, a.body, status, code)
	}
	form := maps.Clone(a.json)
	form["type"] = "about:blank"
	form["title"] = http.StatusText(status)
	form["status"] = status
	form["error"] = detail
	form["request_id"] = a.header.Get("X-Request-Id")
	got := fmt.Sprint(a.header["Content-Type"], a.header["Cache-Control"], a.json)
	want(ts, what, got, fmt.Sprint("[application/problem+json] [no-store] ", form))
}

// mustUser adds an active user straight to the store and returns its id.
func (ts *testServer) mustUser(email string, r role, org string) string {
	ts.Helper()
	hash := must(bcrypt.GenerateFromPassword([]byte(userPassword), 4))
	u := user{
		id:           newID(),
		email:        email,
		passwordHash: hash,
		role:         r,
		orgID:        org,
		status:       statusActive,
		createdAt:    ts.now().Unix(),
	}
	mustOK(ts.store.createUser(context.Background(), principal{}, u, anyActor))
	return u.id
}

// mustLogin returns the tokens of a new session.
func (ts *testServer) mustLogin(email, password string) (access, refresh string) {
	ts.Helper()
	a := ts.wantOK("login of "+email, ts.login(email, password))
	return a.text("access_token"), a.text("refresh_token")
}

func (ts *testServer) mustAdmin() (access string) {
	ts.Helper()
	access, _ = ts.mustLogin(adminEmail, adminPassword)
	return access
}

// as adds a user and logs it in.
func (ts *testServer) as(email string, r role, org string) (id, access string) {
	ts.Helper()
	id = ts.mustUser(email, r, org)
	access, _ = ts.mustLogin(email, userPassword)
	return id, access
}

func (ts *testServer) login(email, password string, headers ...string) answer {
	ts.Helper()
	return ts.do("POST", auth+"/login", "", object{"email": email, "password": password}, headers...)
}

func (ts *testServer) refresh(token string) answer {
	ts.Helper()
	return ts.do("POST", auth+"/refresh", "", object{"refresh_token": token})
}

// testKey is one signing key for all tests: making one takes 100 ms, and more
// under -race.
var testKey = sync.OnceValue(func() newKey { return must(generateRS256(2048)) })

// writeTestKeys makes dir a key directory that holds testKey.
func writeTestKeys(dir string) {
	must(must(openKeyring(dir, "RS256", 2048)).createFirst(testKey()))
}

// testServer is a server as run makes it, on a listener of its own and by a
// clock of its own. Its admin is adminEmail.
type testServer struct {
	testing.TB
	*app
	srv   *server
	clock *testClock
	logs  *syncBuffer
	url   string
	dir   string
}

// newTestServer starts a server in t.TempDir(), with a bcrypt cost that the
// configuration would refuse.
func newTestServer(t testing.TB, options ...func(*config)) *testServer {
	t.Helper()
	dir, cfg := t.TempDir(), defaultConfig()
	cfg.dataDir = dir + "/keys"
	cfg.databaseURL = "sqlite:///" + dir + "/auth.db"
	cfg.adminEmail = adminEmail
	cfg.adminPassword = adminPassword
	cfg.bcryptCost = 4
	for _, o := range options {
		o(cfg)
	}
	writeTestKeys(cfg.dataDir)

	ts := &testServer{TB: t, clock: newTestClock(), logs: &syncBuffer{}, dir: dir}
	ctx, cancel := context.WithCancel(context.Background())
	ts.app = must(openServerApp(ctx, cfg, ts.clock.read, newLogger(cfg, ts.logs)))
	ts.srv = newServer(cfg, ts.store, ts.keys, newHasher(ctx, cfg.bcryptCost, 2), ts.now, ts.log)
	listener := httptest.NewServer(ts.srv)
	ts.url = listener.URL
	t.Cleanup(func() {
		listener.Close()
		cancel()
		mustOK(ts.store.close())
	})
	return ts
}

func unthrottled(c *config) { c.throttle.enabled = false }

// === rbac.go ===

// rbacCheck compares a table, in which "" is an empty name, with what cell
// says of each row and column.
func rbacCheck(t *testing.T, table string, cell func(row, column string) string) {
	names := strings.NewReplacer(`""`, "")
	head, rows, _ := strings.Cut(strings.TrimSpace(table), "\n")
	for line := range strings.Lines(rows) {
		row := strings.Fields(line)
		t.Run(row[0], func(t *testing.T) {
			for i, column := range strings.Fields(head)[1:] {
				got := cell(names.Replace(row[0]), names.Replace(column))
				want(t, column, got, row[i+1])
			}
		})
	}
}

// rbacMark is a letter where something is allowed.
func rbacMark(allowed bool, letter string) string {
	if allowed {
		return letter
	}
	return "-"
}

// TestRBAC_Matrix is the policy a second time, written by hand: what each
// role may ask for and, behind a +, which roles it may grant. The last three
// rows are roles that the server does not know.
func TestRBAC_Matrix(t *testing.T) {
	t.Parallel()
	permissions := map[string]permission{
		"denied":   denied,
		"public":   public,
		"self":     permSelf,
		"read":     permUsersRead,
		"edit":     permUsersEdit,
		"org":      permOrgEdit,
		"settings": permSettings,
	}
	rbacCheck(t, `
role        denied public self read edit org settings +superadmin +org_admin +operator +viewer +auditor +""
superadmin  -      -      x    x    x    x   x        x           x          x         x       -        -
org_admin   -      -      x    x    x    -   -        -           x          x         x       -        -
operator    -      -      x    -    -    -   -        -           -          -         -       -        -
viewer      -      -      x    -    -    -   -        -           -          -         -       -        -
auditor     -      -      x    -    -    -   -        -           -          -         -       -        -
Superadmin  -      -      x    -    -    -   -        -           -          -         -       -        -
""          -      -      x    -    -    -   -        -           -          -         -       -        -
`, func(r, column string) string {
		if grant, ok := strings.CutPrefix(column, "+"); ok {
			return rbacMark(mayGrant(user{role: r}, grant), "x")
		}
		return rbacMark(allows(r, permissions[column]), "x")
	})
}

// TestRBAC_UserRules is the same for rules about single users, written
// ROLE@ORG: whom somebody may read (r) and change (w).
func TestRBAC_UserRules(t *testing.T) {
	t.Parallel()
	parse := func(text string) user {
		r, org, _ := strings.Cut(text, "@")
		return user{role: r, orgID: org}
	}
	rbacCheck(t, `
who           viewer@a org_admin@a auditor@a superadmin@a viewer@b superadmin@b viewer@A viewer@
superadmin@a  rw       rw          rw        rw           rw       rw           rw       rw
org_admin@a   rw       rw          rw        r-           --       --           --       --
org_admin@    --       --          --        --           --       --           --       rw
operator@a    --       --          --        --           --       --           --       --
auditor@a     --       --          --        --           --       --           --       --
@             --       --          --        --           --       --           --       --
`, func(actor, target string) string {
		a, b := parse(actor), parse(target)
		return rbacMark(mayReadUser(a, b), "r") + rbacMark(mayEditUser(a, b), "w")
	})
}

// The groups of a user come sorted, and none are a list too.
func TestRBAC_Memberships(t *testing.T) {
	t.Parallel()
	for text, wanted := range map[string]string{
		"":                "[]",
		"b/two":           "[{b two}]",
		"b/two,a/one,c/":  "[{a one} {b two} {c }]",
		"b/t w o,a/ö (b)": "[{a ö (b)} {b t w o}]",
	} {
		in := user{groups: text}.memberships()
		want(t, text, fmt.Sprint(in), wanted)
		want(t, text+" is nil", in == nil, false)
	}
	u := user{groups: "b/two,a/one"}
	want(t, "in a, in one", fmt.Sprint(u.isIn("a"), u.isIn("one")), "true false")
}

// TestRBAC_NamelessOrg: adopted databases can hold an organisation with an
// empty name, and it is one like any other.
func TestRBAC_NamelessOrg(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id, access := ts.as("head@example.com", orgAdmin, "")
	a := ts.wantOK("GET /users", ts.do("GET", auth+"/users", access, nil))
	want(t, "total", fmt.Sprint(a.json["total"]), "1")
	wantText(t, "users", a.body, id)
}

// === jwt.go ===

// jwtSegment and jwtBytes are base64url by other code than the program's.
func jwtSegment[T string | []byte](b T) string {
	return base64.RawURLEncoding.EncodeToString([]byte(b))
}

func jwtBytes(s string) []byte {
	return must(base64.RawURLEncoding.Strict().DecodeString(s))
}

func jwtNumber(s string) *big.Int {
	return new(big.Int).SetBytes(jwtBytes(s))
}

func jwtHeader(alg, kid string) string {
	return jwtSegment(`{"alg":"` + alg + `","kid":"` + kid + `","typ":"JWT"}`)
}

// jwtTable returns the lines of a text without blank ones and comments.
func jwtTable(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines
}

func jwtFile(name string) string {
	return string(must(os.ReadFile("testdata/" + name)))
}

// jwtAlgorithms are those that this build has.
func jwtAlgorithms() []signingAlgorithm {
	return slices.DeleteFunc(slices.Clone(signingAlgorithms), func(a signingAlgorithm) bool {
		return a.needs != ""
	})
}

// jwtEach runs a test for every algorithm of this build.
func jwtEach(t *testing.T, test func(t *testing.T, algorithm string)) {
	for _, a := range jwtAlgorithms() {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			test(t, a.name)
		})
	}
}

// The signature, its check and the key id are what the RFCs print. Of the two
// signatures that ES256 has for each text, RFC 7515 prints the one that we do
// not make.
func TestJWT_KnownAnswers(t *testing.T) {
	t.Parallel()
	var vectors map[string]map[string]string
	mustOK(json.Unmarshal([]byte(jwtFile("jose.json")), &vectors))
	v := vectors["rfc7515_a2"]
	key := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: jwtNumber(v["n"]), E: 65537},
		D:         jwtNumber(v["d"]),
	}
	signature := must(signRS256(key, v["input"]))
	want(t, "signRS256", jwtSegment(signature), v["signature"])
	err := verifyRS256(&key.PublicKey, v["input"], signature)
	want(t, "verifyRS256", err, nil)
	v = vectors["rfc7638_3_1"]
	key.N = jwtNumber(v["n"])
	members := must(membersRS256(&key.PublicKey))
	want(t, "thumbprint", thumbprint(members), v["thumbprint"])

	point := func(v map[string]string) *ecdsa.PublicKey {
		encoded := slices.Concat([]byte{4}, jwtBytes(v["x"]), jwtBytes(v["y"]))
		return must(ecdsa.ParseUncompressedPublicKey(elliptic.P256(), encoded))
	}
	v = vectors["rfc7515_a3"]
	signature = jwtBytes(v["signature"])
	err = verifyES256(point(v), v["input"], signature)
	want(t, "verifyES256, as printed", err, errBadSignature)
	err = verifyES256(point(v), v["input"], jwtTwin(signature))
	want(t, "verifyES256, its twin", err, nil)
	v = vectors["rfc9449_6_1"]
	members = must(membersES256(point(v)))
	want(t, "thumbprint", thumbprint(members), v["thumbprint"])
}

// The keys of the seed 01 01 … have the key ids that other programs compute.
// As PKCS#8 they are nothing but that seed (RFC 9881 section 6).
func TestJWT_KnownMLDSAKeys(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ set, kid string }{
		"ML-DSA-65": {"12", "HSkk5TOX0Mpqu1lx4_U1vVv1G7gA6UFJibKXXVT4Big"},
		"ML-DSA-87": {"13", "LmmWhatIVnE_o9xXCHfv2hS8MRfamWyTu8oNWOmLDNQ"},
	} {
		t.Run(name, func(t *testing.T) {
			if keysOf(name) == nil {
				t.Skip("this build has no ML-DSA")
			}
			der := must(hex.DecodeString("3034020100300b06096086480165030403" + row.set +
				"04228020" + strings.Repeat("01", 32)))
			file := keysPEM("PRIVATE KEY", der)
			k := keysOpen(t, keysFirst)
			path := k.path("key-1800000001.pem")
			mustOK(os.WriteFile(path, file, 0o600))
			must(k.reload())
			key := k.current().signing(keysAt(1))
			want(t, "kid", key.kid, row.kid)
			want(t, "algorithm", key.algorithm.name, name)
			again := keysPKCS8(key.signer)
			want(t, "written again", string(again), string(file))
		})
	}
}

// jwtTwin is the other signature of ES256 that is just as good.
func jwtTwin(signature []byte) []byte {
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(elliptic.P256().Params().N, s)
	return append(bytes.Clone(signature[:32]), s.FillBytes(make([]byte, 32))...)
}

// jwtForger has a good token in parts, and what an attacker could wish for:
// the key that signed it. The server has a key of every algorithm.
type jwtForger struct {
	*testing.T
	keys   *keySet
	want   expected
	key    keysOne
	claims string // the payload as JSON
	// The segments of the token, and the first two with their dot.
	header, payload, signature, input string
}

// jwtKeys is a key set with a key of every algorithm.
func jwtKeys() *keySet {
	var keys []publishedKey
	for _, a := range jwtAlgorithms() {
		keys = append(keys, keysOf(a.name)[0].publishedKey)
	}
	return newKeySet(keys)
}

// jwtSign makes a token of a key, which need not be the one that signs now.
func jwtSign(key keysOne, c claims) string {
	return must(signJWT(key.signingKey, key.headers[typLogin], c))
}

func newJWTForger(t *testing.T, algorithm string) *jwtForger {
	f := &jwtForger{
		T:    t,
		keys: jwtKeys(),
		want: expected{"https://auth.example", "pico-bot", keysAt(0), false},
		key:  keysOf(algorithm)[0],
	}
	parts := strings.Split(jwtSign(f.key, jwtClaims(f.want)), ".")
	f.header = parts[0]
	f.payload = parts[1]
	f.signature = parts[2]
	f.claims = string(jwtBytes(f.payload))
	f.input = f.header + "." + f.payload
	return f
}

func jwtClaims(want expected) claims {
	return claims{
		Subject:   "u1",
		Email:     "ada@example.com",
		Role:      viewer,
		OrgID:     defaultOrg,
		Issuer:    want.issuer,
		Audience:  audience{want.audience},
		IssuedAt:  want.now.Unix(),
		ExpiresAt: want.now.Unix() + 900,
		ID:        "j1",
		SessionID: "s1",
		Groups:    []string{"g1", "g2"},
	}
}

// present shows a token to the server; nil means that it is accepted.
func (f *jwtForger) present(name, token string, err error) {
	f.Helper()
	f.Run(name, func(t *testing.T) {
		c, got := verifyToken[claims](f.keys, token, f.want)
		want(t, "verify", got, err)
		want(t, "claims with it", c.SessionID != "", err == nil)
	})
}

// number is the part of the public key that is not the same for all keys.
func (f *jwtForger) number() string {
	return f.key.jwk["n"] + f.key.jwk["x"] + f.key.jwk["pub"]
}

// signed adds the signature of our key to a text, whatever it is.
func (f *jwtForger) signed(input string) string {
	return input + "." + jwtSegment(must(f.key.algorithm.sign(f.key.newKey, input)))
}

// signedClaims is a token of ours in all but the claims.
func (f *jwtForger) signedClaims(claims string) string {
	return f.signed(f.header + "." + jwtSegment(claims))
}

// with is the claims with one of them set to a JSON text, or without it.
func (f *jwtForger) with(name, raw string) string {
	member := fmt.Sprintf("%q:%s,", name, raw)
	if raw == "-" {
		member = ""
	}
	open := strings.TrimSuffix(f.claims, "}") + ","
	old := regexp.MustCompile(`"` + name + `":("[^"]*"|\d+|\[[^]]*\]),`).FindString(open)
	if old == "" {
		return open + strings.TrimSuffix(member, ",") + "}"
	}
	open = strings.Replace(open, old, member, 1)
	return strings.TrimSuffix(open, ",") + "}"
}

// A header that is not ours byte for byte is refused, although everything
// else is right and our own key signed it.
func TestJWT_ForgedHeader(t *testing.T) {
	t.Parallel()
	jwtEach(t, func(t *testing.T, algorithm string) {
		f, attacker := newJWTForger(t, algorithm), newJWTForger(t, algorithm)
		attacker.key = keysOf(algorithm)[1]
		fill := strings.NewReplacer(
			"KID", f.key.kid,
			"OURS", algorithm,
			`"N"`, `"`+attacker.number()+`"`,
		)
		for _, line := range jwtTable(jwtFile("forged-headers.txt")) {
			input := jwtSegment(fill.Replace(line)) + "." + f.payload
			for signature, token := range map[string]string{
				"our":        f.signed(input),
				"attacker's": attacker.signed(input),
				"old":        input + "." + f.signature,
				"no":         input + ".",
			} {
				f.present(line+" with "+signature+" signature", token, errUnknownKey)
			}
		}
		long := jwtHeader(algorithm, strings.Repeat("a", 64<<10))
		f.present("kid of 64 KB", f.signed(long+"."+f.payload), errMalformed)
	})
}

// The right signature of one key is refused under the header of every other
// key, of ours and of an attacker's, and so is a header that names a key with
// an algorithm that is not its own.
func TestJWT_ForgedKey(t *testing.T) {
	t.Parallel()
	jwtEach(t, func(t *testing.T, algorithm string) {
		f := newJWTForger(t, algorithm)
		for _, a := range jwtAlgorithms() {
			for i, key := range keysOf(a.name)[:2] {
				for _, named := range jwtAlgorithms() {
					verdict := errUnknownKey
					if i == 0 && named.name == a.name { // a header of ours
						verdict = errBadSignature
					}
					if key.kid == f.key.kid && named.name == algorithm {
						verdict = nil
					}
					input := jwtHeader(named.name, key.kid) + "." + f.payload
					name := fmt.Sprint(a.name, " key ", i)
					f.present("under "+named.name+" and the kid of "+name, f.signed(input), verdict)
				}
				if key.kid != f.key.kid {
					signature := must(a.sign(key.newKey, f.input))
					f.present("signed by "+key.kid, f.input+"."+jwtSegment(signature), errBadSignature)
				}
			}
		}
	})
}

// A signature of another algorithm is refused, under a header that names it
// and under ours.
func TestJWT_ForgedAlgorithm(t *testing.T) {
	t.Parallel()
	jwtEach(t, func(t *testing.T, algorithm string) {
		f := newJWTForger(t, algorithm)
		try := func(alg string, sign func(input []byte) []byte) {
			named := jwtHeader(alg, f.key.kid) + "." + f.payload
			signature := jwtSegment(sign([]byte(named)))
			f.present(alg, named+"."+signature, errUnknownKey)
			signature = jwtSegment(sign([]byte(f.input)))
			f.present(alg+" under our header", f.input+"."+signature, errBadSignature)
		}
		// HMAC keyed with what everybody knows of our key (CVE-2016-10555).
		number := f.number()
		spki := publicDER(f.key.newKey)
		secrets := [][]byte{
			{},
			[]byte(number),
			jwtBytes(number),
			f.keys.document.body,
			spki,
			f.key.public,
			bytes.TrimSpace(f.key.public),
		}
		rsaKey, isRSA := f.key.newKey.(*rsa.PrivateKey)
		if isRSA {
			pkcs1 := x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)
			pem := keysPEM("RSA PUBLIC KEY", pkcs1)
			secrets = append(secrets, pkcs1, pem, bytes.TrimSpace(pem))
		}
		hashes := map[string]func() hash.Hash{
			"HS256": sha256.New,
			"HS384": sha512.New384,
			"HS512": sha512.New,
		}
		for alg, newHash := range hashes {
			for _, secret := range secrets {
				try(alg, func(input []byte) []byte {
					mac := hmac.New(newHash, secret)
					mac.Write(input)
					return mac.Sum(nil)
				})
			}
		}
		// Truly signed with our own key.
		for alg, options := range map[string]crypto.SignerOpts{
			"RS384": crypto.SHA384,
			"RS512": crypto.SHA512,
			"PS256": &rsa.PSSOptions{Hash: crypto.SHA256},
		} {
			if isRSA {
				try(alg, func(input []byte) []byte {
					return must(crypto.SignMessage(rsaKey, rand.Reader, input, options))
				})
			}
		}
	})
}

// Only the signatures of exactly these bytes are accepted, each in one form.
func TestJWT_ForgedSignature(t *testing.T) {
	t.Parallel()
	jwtEach(t, func(t *testing.T, algorithm string) {
		f := newJWTForger(t, algorithm)
		good := jwtBytes(f.signature)
		last := len(good) - 1
		forged := map[string][]byte{
			"empty":             nil,
			"cut":               good[:last],
			"cut in front":      good[1:],
			"extended":          append(bytes.Clone(good), 0),
			"extended in front": append([]byte{0}, good...),
			"twice":             append(bytes.Clone(good), good...),
			"all zero":          make([]byte, len(good)),
			"all one":           bytes.Repeat([]byte{255}, len(good)),
			"one bit flipped":   append(bytes.Clone(good[:last]), good[last]^1),
			"first bit flipped": append([]byte{good[0] ^ 128}, good[1:]...),
		}
		switch key := f.key.newKey.(type) {
		case *rsa.PrivateKey:
			forged["the modulus"] = key.N.Bytes()
			plusN := jwtNumber(f.signature) // the same number modulo n
			plusN.Add(plusN, key.N)
			forged["above the modulus"] = plusN.FillBytes(make([]byte, 257))
		case *ecdsa.PrivateKey:
			maps.Copy(forged, jwtES256Forgeries(f, key, good))
		}
		for name, signature := range forged {
			token := f.input + "." + jwtSegment(signature)
			f.present(name, token, errBadSignature)
		}
		raised := jwtSegment(f.with("role", `"superadmin"`))
		token := f.header + "." + raised + "." + f.signature
		f.present("of other claims", token, errBadSignature)
	})
}

// Half of all signatures come out with the larger s; we make none of those, nor
// one that is shorter because a number begins with zeros.
func TestJWT_ES256HasOneForm(t *testing.T) {
	t.Parallel()
	key := keysOf("ES256")[0].newKey
	for i := range 1000 {
		input := fmt.Sprint(i)
		signature := must(signES256(key, input))
		want(t, "length", len(signature), 64)
		err := verifyES256(key.Public(), input, signature)
		want(t, "signature "+input, err, nil)
		err = verifyES256(key.Public(), input, jwtTwin(signature))
		want(t, "twin of "+input, err, errBadSignature)
	}
}

// jwtES256Forgeries are what some verifiers of ECDSA took for a signature.
func jwtES256Forgeries(f *jwtForger, key *ecdsa.PrivateKey, good []byte) map[string][]byte {
	r, s := good[:32], good[32:]
	digest := sha256.Sum256([]byte(f.input))
	n := elliptic.P256().Params().N
	order := n.Bytes()
	zero := make([]byte, 32)
	one := big.NewInt(1).FillBytes(make([]byte, 32))
	plusN := func(b []byte) []byte { // the same number modulo n, where it fits
		sum := new(big.Int).SetBytes(b)
		return sum.Add(sum, n).FillBytes(make([]byte, 33))
	}
	return map[string][]byte{
		"r zero":          slices.Concat(zero, s),
		"s zero":          slices.Concat(r, zero),
		"r the order":     slices.Concat(order, s),
		"s the order":     slices.Concat(r, order),
		"both the order":  slices.Concat(order, order),
		"both one":        slices.Concat(one, one),
		"swapped":         slices.Concat(s, r),
		"malleable":       jwtTwin(good),
		"r plus n":        slices.Concat(plusN(r), s),
		"s plus n":        slices.Concat(r, plusN(s)),
		"DER":             must(key.Sign(rand.Reader, digest[:], crypto.SHA256)),
		"of P-384's size": slices.Concat(make([]byte, 16), r, make([]byte, 16), s),
	}
}

// jwtVerdicts are the words for errors in tables.
var jwtVerdicts = map[string]error{
	"good":      nil,
	"malformed": errMalformed,
	"unknown":   errUnknownKey,
	"signature": errBadSignature,
	"bad":       errBadClaims,
	"expired":   errExpired,
}

// Of all texts that some decoder takes for this token one is accepted, also
// when the signature covers another one. What else is no token is refused,
// however long.
func TestJWT_OneForm(t *testing.T) {
	t.Parallel()
	f := newJWTForger(t, "RS256")
	segments := strings.NewReplacer(
		"H", f.header[:8],
		"h", f.header[8:],
		"P", f.payload[:8],
		"p", f.payload[8:],
		"S", f.signature[:8],
		"s", f.signature[8:],
	)
	for _, line := range jwtTable(jwtFile("tokens.txt")) {
		verdict, form, _ := strings.Cut(line, " ")
		for junk := range strings.SplitSeq(" |\t|=|%|\r|\n|\r\n|\x80", "|") {
			parts := strings.Split(strings.TrimSpace(form), "_")
			for i, part := range parts {
				parts[i] = segments.Replace(part)
			}
			token := strings.Join(parts, junk)
			input, ours := strings.CutSuffix(token, ".*")
			if ours {
				token = f.signed(input)
			}
			name := fmt.Sprintf("%s %q", line, junk)
			f.present(name, token, jwtVerdicts[verdict])
			if len(parts) == 1 {
				break // there is no place for junk
			}
		}
	}
	next := func(s string) string { // sets an unused bit of the last character
		last := len(s) - 1
		return s[:last] + string(s[last]+1)
	}
	want(t, "the payload has unused bits", len(f.claims)%3 != 0, true)
	standard := strings.NewReplacer("-", "+", "_", "/")
	const object = `{"payload":%q,"protected":%q,"signature":%q}`
	for name, token := range map[string]string{
		"stray bits":         f.input + "." + next(f.signature),
		"stray bits, signed": f.signed(next(f.input)),
		"standard alphabet":  f.input + "." + standard.Replace(f.signature),
		"JSON serialisation": fmt.Sprintf(object, f.payload, f.header, f.signature),
		"a megabyte of dots": strings.Repeat(".", 1<<20), // GO-2025-3553
	} {
		f.present(name, token, errMalformed)
	}
}

// Claims that we would not write are refused although our own key signed
// them under our header.
func TestJWT_Claims(t *testing.T) {
	t.Parallel()
	f := newJWTForger(t, "ES256")
	inside := strings.Trim(f.claims, "{}")
	whole := strings.NewReplacer("C", inside, "BOM", "\ufeff", "LF", "\n", "BLANK", " ")
	for _, line := range jwtTable(jwtFile("claims.txt")) {
		parts := strings.Fields(line)
		raw := strings.Join(parts[2:], " ")
		text := whole.Replace(raw)
		if parts[1] != "*" {
			text = f.with(parts[1], raw)
		}
		f.present(line, f.signedClaims(text), jwtVerdicts[parts[0]])
	}
	for old, other := range map[string]string{
		"sub": "Sub",
		",":   ", ",
		"ada": "\xff",
		"@":   "\u2028",
	} {
		text := strings.Replace(f.claims, old, other, 1)
		f.present("claims "+text, f.signedClaims(text), errBadClaims)
	}
}

// What is signed verifies, whatever an adopted database holds, and comes back
// as it was, but for bytes that are not UTF-8.
func FuzzSignJWT(f *testing.F) {
	for _, text := range []string{
		"", "ada@example.com", "a\xffb\xfe\xfec", "\xed\xa0\x80", "\ufffd", `\ufffd`, "<&>", "\u2028\u2029",
		"\x00\x1f\x7f\u009b", `"\`, "é😀", strings.Repeat("a", 10_000),
	} {
		f.Add(text, text[:len(text)%100])
	}
	keys := jwtKeys()
	wanted := expected{"i", "a", keysAt(0), false}
	f.Fuzz(func(t *testing.T, email, other string) {
		c := jwtClaims(wanted)
		c.Email = email
		c.Subject, c.Role, c.OrgID = other, other, other
		for _, a := range jwtAlgorithms() {
			key := keysOf(a.name)[0]
			token := jwtSign(key, c)
			if len(token) > maxTokenBytes {
				t.Skip("no email is that long")
			}
			got, err := verifyToken[claims](keys, token, wanted)
			want(t, "verify", err, nil)
			want(t, "email", got.Email, string([]rune(email)))
			input := func(token string) string { return token[:strings.LastIndex(token, ".")] }
			again := jwtSign(key, got)
			want(t, "signed again", input(again), input(token))
		}
	})
}

// What is accepted is, byte for byte, one of the tokens that were signed.
func FuzzVerifyJWT(f *testing.F) {
	keys := jwtKeys()
	wanted := expected{"i", "a", keysAt(0), false}
	var tokens []string
	for _, a := range jwtAlgorithms() {
		token := jwtSign(keysOf(a.name)[0], jwtClaims(wanted))
		tokens = append(tokens, token)
		header, rest, _ := strings.Cut(token, ".")
		for _, seed := range []string{
			token, "", header + "..", token + "=", token + "\n", header + ".\n" + rest,
			jwtHeader("none", "") + "." + rest,
		} {
			f.Add(seed)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := verifyJWT[claims](s, wanted, keys.byHeader[typLogin])
		want(t, "accepted", err == nil, slices.Contains(tokens, s))
		want(t, "claims with it", c.SessionID != "", err == nil)
	})
}

// Every refused token is the same 401, but for an expired one. Of a good one
// the server believes the session and the user, and no role.
func TestJWT_OverHTTP(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ada, access := ts.as("ada@example.com", viewer, defaultOrg)
	bob := ts.mustUser("bob@example.com", superadmin, defaultOrg)
	key := ts.keys.current().signing(ts.now())
	parts := strings.Split(access, ".")
	payload := string(jwtBytes(parts[1]))
	signed := func(header, payload string) string {
		input := header + "." + jwtSegment(payload)
		signature := must(signRS256(key.signer, input))
		return input + "." + jwtSegment(signature)
	}
	me := func(token string) answer {
		return ts.do("GET", auth+"/me", token, nil)
	}
	ts.wantOK("GET /me", me(access))
	unsigned := jwtHeader("none", key.kid) + "." + parts[1] + "."
	other := tokenHeader("RS256", key.kid, "at+jwt")
	ofBob := strings.Replace(payload, ada, bob, 1)
	for name, token := range map[string]string{
		"alg none":     unsigned,
		"another kind": signed(other, payload),
		"bob's sub":    signed(parts[0], ofBob),
	} {
		a := me(token)
		ts.wantProblem(name, a, 401, "invalid_token")
		wantText(t, name, a.header.Get("WWW-Authenticate"), "Bearer")
	}
	raised := strings.Replace(payload, viewer, superadmin, 1)
	raised = signed(parts[0], raised)
	ts.wantOK("GET /me (raised role)", me(raised))
	users := ts.do("GET", auth+"/users", raised, nil)
	ts.wantProblem("GET /users (raised role)", users, 403, "forbidden")
	ts.clock.advance(ts.cfg.accessTTL - time.Second)
	ts.wantOK("GET /me (one second left)", me(access))
	ts.clock.advance(time.Second)
	expired := me(access)
	ts.wantProblem("GET /me (expired, remembered)", expired, 401, "token_expired")
}

// === keys.go ===

// keysOne is a key for tests, also as texts of files.
type keysOne struct {
	newKey
	publishedKey
	private, public []byte
}

// keysMake makes n keys of an algorithm.
func keysMake(algorithm string, n int) []keysOne {
	k := &keyring{algorithm: algorithm, bits: minKeyBits}
	return together(n, func(int) keysOne {
		key := must(k.generate())
		return keysOne{
			newKey:       key,
			publishedKey: must(newPublishedKey(key)),
			private:      keysPKCS8(key),
			public:       keysPEM("PUBLIC KEY", publicDER(key)),
		}
	})
}

// keysMade are five RSA keys: making one takes 100 ms and more.
var keysMade = sync.OnceValue(func() []keysOne { return keysMake("RS256", 5) })

// keysOthers are two keys of every other algorithm that this build has.
var keysOthers = sync.OnceValue(func() map[string][]keysOne {
	others := map[string][]keysOne{}
	for _, a := range signingAlgorithms[1:] {
		if a.needs == "" {
			others[a.name] = keysMake(a.name, 2)
		}
	}
	return others
})

// keysOf are two keys of an algorithm or more.
func keysOf(algorithm string) []keysOne {
	if algorithm == "RS256" {
		return keysMade()
	}
	return keysOthers()[algorithm]
}

func keysPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func keysPKCS8(key any) []byte {
	return keysPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
}

// keysTexts are what tests put into files, by name.
var keysTexts = sync.OnceValue(func() map[string][]byte {
	a, b, c := keysMade()[0], keysMade()[1], keysMade()[2]
	lf, crlf := []byte("\n"), []byte("\r\n")
	return map[string][]byte{
		"A":        a.private,
		"a":        a.public,
		"B":        b.private,
		"b":        b.public,
		"C":        c.private,
		"empty":    {},
		"half":     a.private[:len(a.private)/2],
		"garbage":  []byte("garbage\n"),
		"locked":   keysPEM("ENCRYPTED PRIVATE KEY", []byte("x")),
		"p384":     keysPKCS8(must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))),
		"ed25519":  keysPKCS8(ed25519.NewKeyFromSeed(make([]byte, 32))),
		"x25519":   keysPKCS8(must(ecdh.X25519().GenerateKey(rand.Reader))),
		"small":    keysPKCS8(must(rsa.GenerateKey(rand.Reader, 1024))),
		"two":      slices.Concat(a.private, b.private),
		"twice":    slices.Concat(a.public, a.public),
		"pkcs1":    keysPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(a.newKey.(*rsa.PrivateKey))),
		"crlf":     bytes.ReplaceAll(a.private, lf, crlf),
		"trimmed":  bytes.TrimSpace(a.private),
		"labelled": append([]byte("Bag Attributes\n"), a.private...),
		"a-crlf":   bytes.ReplaceAll(a.public, lf, crlf),
	}
})

// keysFirst is a directory with the pair of key A.
const keysFirst = "private.pem=A public.pem=a "

// keysDir makes a directory of files, written "NAME=TEXT …". The brackets in
// its name are no pattern.
func keysDir(t testing.TB, files string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys [1]")
	mustOK(os.Mkdir(dir, 0o700))
	for file := range strings.FieldsSeq(files) {
		name, text, _ := strings.Cut(file, "=")
		path := filepath.Join(dir, name)
		mustOK(os.WriteFile(path, keysTexts()[text], 0o600))
	}
	return dir
}

// keysFiles is all of a directory that must not change unasked.
func keysFiles(dir string) (names, all string) {
	for _, entry := range must(os.ReadDir(dir)) {
		info := must(entry.Info())
		text := must(os.ReadFile(filepath.Join(dir, entry.Name())))
		names += entry.Name() + " "
		all += fmt.Sprintln(entry.Name(), info.Mode(), info.ModTime(), string(text))
	}
	return names, all
}

// keysTest is a keyring under test.
type keysTest struct {
	testing.TB
	*keyring
}

// keysOpen opens a directory of files, keysReopen one that is there.
func keysOpen(t testing.TB, files string) keysTest {
	t.Helper()
	return keysReopen(t, keysDir(t, files))
}

func keysReopen(t testing.TB, dir string) keysTest {
	k := must(openKeyring(dir, "RS256", minKeyBits))
	k.setFirstSince(keysAt(0))
	return keysTest{t, k}
}

// keysAt is a moment, in seconds after 1800000000. keysDay is a day of them.
func keysAt(seconds int) time.Time {
	return time.Unix(int64(1_800_000_000+seconds), 0)
}

const keysDay = 24 * 60 * 60

// signing is the number of the key that signs.
func (k keysTest) signing(seconds int) int {
	kid := k.current().signing(keysAt(seconds)).kid
	is := func(one keysOne) bool { return one.kid == kid }
	return slices.IndexFunc(keysMade(), is)
}

func (k keysTest) wantSigning(seconds, number int) {
	k.Helper()
	want(k, "number of the signing key", k.signing(seconds), number)
}

func (k keysTest) wantFiles(wanted string) {
	k.Helper()
	names, _ := keysFiles(k.dir)
	want(k, "files", names, wanted)
}

// mustCreate makes a key the first one, mustPublish a later one.
func (k keysTest) mustCreate(number int) (created bool) {
	return must(k.createFirst(keysMade()[number].newKey))
}

func (k keysTest) mustPublish(number, seconds int) {
	mustOK(k.publish(keysMade()[number].newKey, keysAt(seconds)))
}

// token is good for 15 minutes.
func (k keysTest) token(seconds int) string {
	now := keysAt(seconds)
	c := jwtClaims(expected{"i", "a", now, false})
	return must(signToken(k.current(), now, c))
}

// wantVerdict checks what a server says about such a token.
func (k keysTest) wantVerdict(seconds int, token string, verdict error) {
	k.Helper()
	wanted := expected{"i", "a", keysAt(seconds), false}
	_, err := verifyToken[claims](k.current(), token, wanted)
	want(k, "verify", err, verdict)
}

// keysChild runs the calling test again in a process of its own, which a line
// of shell prepares. It reports whether this is that process.
func keysChild(t *testing.T, prepare string) (child bool) {
	if os.Getenv("KEYS_CHILD") != "" {
		return true
	}
	if runtime.GOOS == "windows" {
		t.Skip("no sh, no modes, no limits")
	}
	script := prepare + `; exec "$0" -test.run "^$1$"`
	cmd := exec.Command("sh", "-c", script, must(os.Executable()), t.Name())
	cmd.Env = append(os.Environ(), "KEYS_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s in a process of its own: %v\n%s", prepare, err, out)
	}
	return false
}

// Opening makes nothing. The first key is made once and then used by all.
// What is made is private from the first byte, even when the umask is 0.
func TestKeys_FirstKey(t *testing.T) {
	t.Parallel()
	if !keysChild(t, "umask 0") {
		return
	}
	dir := filepath.Join(t.TempDir(), "deep", "keys")
	first, second := keysReopen(t, dir), keysReopen(t, dir)
	want(t, "empty", first.empty(), true)
	_, err := os.Stat(dir)
	want(t, "opening makes nothing", os.IsNotExist(err), true)
	want(t, "created", first.mustCreate(0), true)
	want(t, "created again", second.mustCreate(1), false)
	first.wantSigning(0, 0)
	second.wantSigning(0, 0)
	second.wantFiles("private.pem public.pem ")
	for _, name := range []string{"..", "", "private.pem", "public.pem"} {
		info := must(os.Stat(filepath.Join(dir, name)))
		want(t, "rights of others to "+name, info.Mode().Perm()&0o077, 0)
	}
}

// After a kill at any step of createFirst or publish the next start goes on
// as if the step had not been begun, or as if it had been finished.
func TestKeys_KillAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, files := range []string{
		"",
		".new-private.pem.R=half",
		"new-private.pem=B",
		"new-private.pem=B .public.pem.R=half",
		"new-private.pem=B public.pem=b",
		keysFirst,
		keysFirst + ".key-1800000000.pem.R=half",
		keysFirst + "key-1800000000.pem=B",
	} {
		t.Run(files, func(t *testing.T) {
			begun := !strings.HasPrefix(files, keysFirst)
			k := keysOpen(t, files)
			want(t, "empty", k.empty(), begun)
			want(t, "created", k.mustCreate(0), begun)
			keysReopen(t, k.dir).wantSigning(-1, 0)
			k.mustPublish(2, 1)
			keysReopen(t, k.dir).wantSigning(1, 2)
		})
	}
}

// A key that is not whole or not private stops the start with its name, and
// nothing is touched. A running server keeps the keys that it has.
func TestKeys_DamageIsRefused(t *testing.T) {
	t.Parallel()
	for _, line := range jwtTable(`
		private.pem         missing empty half garbage locked p384 ed25519 small a two
		public.pem          missing empty garbage A b twice
		key-1800000000.pem  empty half p384 ed25519 x25519 small a two
		key-x.pem           B
		key-.pem            B
		key-01800000000.pem B
	`) {
		file, texts, _ := strings.Cut(line, " ")
		for text := range strings.FieldsSeq(texts) {
			t.Run(file+" "+text, func(t *testing.T) {
				running := keysOpen(t, keysFirst)
				path := running.path(file)
				os.Remove(path)
				if data, exists := keysTexts()[text]; exists {
					mustOK(os.WriteFile(path, data, 0o600))
				}
				_, before := keysFiles(running.dir)
				k, err := openKeyring(running.dir, "RS256", minKeyBits)
				wantText(t, "openKeyring", fmt.Sprint(err), path)
				_, err = k.createFirst(keysMade()[2].newKey)
				want(t, "a key is made", err == nil, false)
				_, err = running.reload()
				want(t, "a running server takes it", err == nil, false)
				running.wantSigning(0, 0)
				_, after := keysFiles(running.dir)
				want(t, "files", after, before)
			})
		}
	}
}

// Anybody who can put a file into the directory can sign. So one that is open
// to everybody is refused and one that its group can write is noted, as are
// keys that others can read, each with the remedy.
func TestKeys_Modes(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	for _, line := range jwtTable(`
		0o700 0o600 fine
		0o755 0o400 fine
		0o770 0o600 noted   chmod 700 DIR
		0o700 0o440 noted   chmod 600 DIR/private.pem
		0o700 0o604 refused chmod 600 DIR/private.pem
		0o700 0o602 refused chmod 600 DIR/private.pem
		0o707 0o600 refused chmod 700 DIR
	`) {
		t.Run(line, func(t *testing.T) {
			var dirMode, keyMode os.FileMode
			var verdict string
			must(fmt.Sscan(line, &dirMode, &keyMode, &verdict))
			_, remedy, _ := strings.Cut(line, verdict)
			dir := keysDir(t, keysFirst)
			mustOK(os.Chmod(filepath.Join(dir, "private.pem"), keyMode))
			mustOK(os.Chmod(dir, dirMode))
			k, err := openKeyring(dir, "RS256", minKeyBits)
			want(t, "noted", len(k.notes) == 1, verdict == "noted")
			want(t, "refused", err != nil, verdict == "refused")
			remedy = strings.ReplaceAll(strings.TrimSpace(remedy), "DIR", dir)
			wantText(t, "note or error", fmt.Sprint(k.notes, err), remedy)
		})
	}
	dir := keysDir(t, "")
	mustOK(os.Chmod(dir, 0o777))
	_, err := openKeyring(dir, "RS256", minKeyBits)
	want(t, "refused before the first key", err != nil, true)
}

// What openssl, editors and secret mounts make of a key is the same key, and
// stays as it is.
func TestKeys_OtherSpellings(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"pkcs1", "crlf", "trimmed", "labelled"} {
		t.Run(text, func(t *testing.T) {
			dir := keysDir(t, "public.pem=a-crlf old.pem=garbage private.pem="+text)
			_, before := keysFiles(dir)
			keysReopen(t, dir).wantSigning(0, 0)
			_, after := keysFiles(dir)
			want(t, "files", after, before)
		})
	}
}

// Keys that are mounted through symlinks, as Kubernetes does it, are noticed
// when the links lead elsewhere.
func TestKeys_FollowsSymlinks(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("symlinks need a privilege")
	}
	dir := keysDir(t, "")
	link := func(target, name string) {
		mustOK(os.Symlink(target, filepath.Join(dir, name)))
	}
	link(keysDir(t, keysFirst), "..data")
	link("..data/private.pem", "private.pem")
	link("..data/public.pem", "public.pem")
	k := keysReopen(t, dir)
	k.wantSigning(0, 0)
	link(keysDir(t, "private.pem=B public.pem=b"), "..new")
	mustOK(os.Rename(k.path("..new"), k.path("..data")))
	want(t, "changed", must(k.reload()), true)
	k.wantSigning(0, 1)
}

// A write that fails, as on a full disk, leaves nothing: no part of a private
// key, and no new file every two seconds.
func TestKeys_FailedWriteLeavesNothing(t *testing.T) {
	t.Parallel()
	if !keysChild(t, "ulimit -f 1") { // no file above 1024 bytes; a private key has 1700
		return
	}
	k := keysReopen(t, t.TempDir())
	_, err := k.createFirst(keysMade()[0].newKey)
	want(t, "created", err == nil, false)
	err = k.publish(keysMade()[0].newKey, keysAt(0))
	want(t, "published", err == nil, false)
	k.wantFiles("")
}

// What a key does follows from the names of the files and the clock. The
// first key comes before all others, whatever its time.
func TestKeys_LifeOfAKey(t *testing.T) {
	t.Parallel()
	k := keysOpen(t, keysFirst+"key-1800000000.pem=B key-1800009000.pem=C")
	k.setFirstSince(keysAt(50))
	for _, line := range jwtTable(`
		-1000000 signing 50, next 0, next 9000
		-1       signing 50, next 0, next 9000
		0        retired 100, signing 0, next 9000
		8999     retired 100, signing 0, next 9000
		9000     retired 100, retired 9100, signing 9000
	`) {
		t.Run(line, func(t *testing.T) {
			var now int
			must(fmt.Sscan(line, &now))
			var list []string
			for i, info := range k.current().list(keysAt(now), 100*time.Second) {
				at := info.at.Sub(keysAt(0)).Seconds()
				list = append(list, fmt.Sprint(info.state, " ", at))
				want(t, "kid", info.kid, keysMade()[i].kid)
				if info.state == "signing" {
					header, _, _ := strings.Cut(k.token(now), ".")
					want(t, "header", header, jwtHeader("RS256", info.kid))
				}
			}
			want(t, "list", strings.Join(list, ", "), line[9:])
		})
	}
}

// A key is published a day before it is to sign, and dropped when the purge
// horizon has passed its last token. A key that was made while the clock was
// a year ahead does not hold up the next one.
func TestKeys_Due(t *testing.T) {
	t.Parallel()
	for _, line := range jwtTable(`
		# case         now     signs  a later   horizon  publish  drop
		#          day sec     days   key's day sec
		young           89 -1    90     0         0      false    0
		day-before      89  0    90     0         0      true     0
		long-after     500  0    90     0         0      true     0
		never          500  0     0     0         0      false    0
		planned         89  5    90    90         0      false    0
		by-wrong-clock  89  0    90   400         0      true     0
		just-retired    91  0    90    90       960      false    0
		token-expired   91  0    90    90       961      false    1
		not-retired     90 -1    90    90      9999      false    0
	`) {
		t.Run(line, func(t *testing.T) {
			var name string
			var day, second, every, later, horizon, drop int
			var publish bool
			must(fmt.Sscan(line, &name, &day, &second, &every, &later, &horizon, &publish, &drop))
			k := keysOpen(t, keysFirst)
			if later != 0 {
				k.mustPublish(1, later*keysDay)
			}
			now := day*keysDay + second
			plan := keyPlan{
				every:    time.Duration(every) * 24 * time.Hour,
				validFor: 16 * time.Minute,
				horizon:  keysAt(90*keysDay + horizon),
			}
			changes := k.due(keysAt(now), plan)
			var at time.Time
			if publish {
				at = keysAt(now + keysDay)
			}
			want(t, "publish", changes.publishAt, at)
			want(t, "keys to drop", len(changes.drop), drop)
		})
	}
}

// The age of the first key does not depend on when its file was copied, not
// even into the future. reload reports a change once.
func TestKeys_FirstSince(t *testing.T) {
	t.Parallel()
	k := keysOpen(t, keysFirst)
	copied := keysAt(999 * keysDay)
	mustOK(os.Chtimes(k.path("private.pem"), copied, copied))
	want(t, "changed", must(k.reload()), true)
	want(t, "changed again", must(k.reload()), false)
	changed, exists := k.firstKeyTime()
	want(t, "firstKeyTime", changed.Equal(copied), exists)
	since := k.current().signing(copied).since
	want(t, "since", since, keysAt(0))
}

// Two servers on one directory change keys every three days, for ten days.
// They sign with the same key in every second, each key was published a day
// before, and every token is accepted to its end.
func TestKeys_RotateByThemselves(t *testing.T) {
	t.Parallel()
	first := keysOpen(t, keysFirst)
	servers := []keysTest{first, keysReopen(t, first.dir)}
	var published [5]int
	signing, made := 0, 0
	token := first.token(-13 * 60) // the last one, 13 minutes old
	for now := 0; now < 10*keysDay; now += 13 * 60 {
		if s := first.signing(now); s != signing {
			want(t, "signs after", s, signing+1)
			want(t, "published a day before", now-published[s] >= keysDay, true)
			signing = s
		}
		for _, k := range servers {
			k.wantSigning(now, signing)
			must(k.reload())
			plan := keyPlan{72 * time.Hour, 16 * time.Minute, keysAt(now - 2*3600)}
			changes := k.due(keysAt(now), plan)
			if !changes.publishAt.IsZero() {
				made++
				published[made] = now
				mustOK(k.publish(keysMade()[made].newKey, changes.publishAt))
			}
			for _, kid := range changes.drop {
				mustOK(k.drop(kid, keysAt(now)))
			}
			k.wantVerdict(now, token, nil)
		}
		token = servers[now/60%2].token(now)
	}
	want(t, "keys that signed", signing, 3)
	names, _ := keysFiles(first.dir)
	want(t, "public.pem and keys left", strings.Count(names, ".pem"), 2)
}

// While the clock is a year ahead and comes back, no key is lost or replaced,
// no other key signs, and a token of the retired key stays good.
func TestKeys_ClockJump(t *testing.T) {
	t.Parallel()
	k := keysOpen(t, keysFirst+"key-1800000001.pem=B")
	token := k.token(0)
	plan := keyPlan{72 * time.Hour, 16 * time.Minute, keysAt(0)} // the horizon creeps
	changes := k.due(keysAt(365*keysDay), plan)
	want(t, "dropped", len(changes.drop), 0)
	mustOK(k.publish(keysMade()[2].newKey, changes.publishAt))
	err := k.publish(keysMade()[3].newKey, changes.publishAt)
	want(t, "a key is replaced", err == nil, false)
	k.wantSigning(2, 1)
	k.wantVerdict(2, token, nil)
}

// drop ends the trust in a key, also for tokens that were verified before. It
// refuses the key that signs. public.pem stays when the first key goes.
func TestKeys_Drop(t *testing.T) {
	t.Parallel()
	k := keysOpen(t, keysFirst+"key-1800000001.pem=B key-1800009000.pem=C")
	token, now := k.token(0), keysAt(2)
	k.wantVerdict(2, token, nil)
	err := k.drop(keysMade()[1].kid, now)
	wantText(t, "drop", fmt.Sprint(err), "since 2027-01-15T08:00:01Z",
		"key rotate --now", "5 seconds")
	err = k.drop("../private.pem", now)
	wantText(t, "drop", fmt.Sprint(err), "pico-auth key list")
	mustOK(k.drop(keysMade()[0].kid, now))
	k.wantVerdict(2, token, errUnknownKey)
	mustOK(k.drop(keysMade()[2].kid, now))
	k.wantFiles("key-1800000001.pem public.pem ")
	keysReopen(t, k.dir).wantSigning(0, 1) // before its time, for want of another
	// Without its keys the directory is not taken for a new one.
	for _, name := range []string{"key-1800000001.pem", "public.pem"} {
		mustOK(os.Remove(k.path(name)))
		_, err = k.reload()
		want(t, "reload", err != nil, true)
		k.wantSigning(2, 1)
	}
}

// Opening a directory in which another process changes keys never fails and
// never shows a set without the signing key.
func TestKeys_ReadersMeetChanges(t *testing.T) {
	t.Parallel()
	k := keysOpen(t, keysFirst)
	var done atomic.Bool
	together(4, func(i int) error {
		if i > 0 {
			for !done.Load() {
				keysReopen(t, k.dir).wantSigning(0, 0)
			}
			return nil
		}
		for range 50 {
			k.mustPublish(1, keysDay)
			mustOK(k.drop(keysMade()[1].kid, keysAt(0)))
		}
		done.Store(true)
		return nil
	})
}

// The key set is what a foreign client needs to verify a token, and nothing
// else.
func TestKeys_JWKS(t *testing.T) {
	t.Parallel()
	document := keysOpen(t, keysFirst+"key-1800000001.pem=B").current().document
	var keys []map[string]string
	for _, one := range keysMade()[:2] {
		keys = append(keys, map[string]string{
			"alg": "RS256",
			"e":   "AQAB",
			"kid": one.kid,
			"kty": "RSA",
			"n":   jwtSegment(one.newKey.(*rsa.PrivateKey).N.Bytes()),
			"use": "sig",
		})
	}
	body := must(json.Marshal(map[string]any{"keys": keys}))
	want(t, "body", string(document.body), string(body))
}

// Another auth.algorithm is a rotation, also where keys are never rotated: the
// next key is published at once and signs a day later, tokens of the old one
// are good to their end, and key set and discovery follow. A next key whose
// algorithm is no longer wanted is dropped before it signs.
func TestKeys_AlgorithmIsSwitched(t *testing.T) {
	t.Parallel()
	jwtEach(t, func(t *testing.T, algorithm string) {
		if algorithm == "RS256" {
			t.Skip("it is what the others are switched from and to")
		}
		ts := newTestServer(t, func(c *config) {
			c.algorithm = algorithm
			c.keyRotation = 0
		})
		wantText(t, "log", ts.logs.String(),
			"from=RS256 to="+algorithm,
			"pico-auth key rotate --now")
		h := newHousekeeper(ts.app)
		round := func(wait time.Duration, published ...string) {
			t.Helper()
			for ; wait > time.Hour; wait -= time.Hour { // the horizon of a purge follows slowly
				ts.clock.advance(time.Hour)
				h.round(t.Context())
			}
			ts.clock.advance(wait)
			h.round(t.Context())
			discovery := ts.do("GET", discoveryPath, "", nil)
			found := discovery.json["id_token_signing_alg_values_supported"]
			want(t, "discovery", fmt.Sprint(found), fmt.Sprint(published))
			var set struct{ Keys []struct{ Alg string } }
			jwks := ts.ask("GET /jwks", "", nil)
			mustOK(json.Unmarshal([]byte(jwks.body), &set))
			wanted := "[{" + strings.Join(published, "} {") + "}]"
			want(t, "key set", fmt.Sprint(set.Keys), wanted)
		}
		login := func(algorithm string) (access string) {
			t.Helper()
			access = ts.mustAdmin()
			header, _, _ := strings.Cut(access, ".")
			wantText(t, "header", string(jwtBytes(header)), `{"alg":"`+algorithm+`"`)
			return access
		}
		soon := ts.now().Add(time.Hour) // a key of the old algorithm was to take over then
		mustOK(ts.keys.publish(keysMade()[0].newKey, soon))
		round(0, "RS256", algorithm)
		wantText(t, "log", ts.logs.String(), "key.published algorithm="+algorithm)
		ts.keys.algorithm = "RS256" // the setting returns
		round(0, "RS256")
		ts.keys.algorithm = algorithm
		round(0, "RS256", algorithm)
		round(24*time.Hour-time.Second, "RS256", algorithm)
		old := login("RS256")
		round(time.Second, "RS256", algorithm)
		ts.mustAsk("GET /me", login(algorithm), nil)
		ts.clock.advance(15*time.Minute - 2*time.Second)
		ts.mustAsk("GET /me", old, nil)
		ts.clock.advance(time.Second)
		ts.wantProblem("token at its end", ts.ask("GET /me", old, nil), 401, "token_expired")
		round(48*time.Hour, algorithm)
		login(algorithm)

		ts.keys.algorithm = "RS256"
		round(0, algorithm, "RS256")
		login(algorithm)
		round(24*time.Hour, algorithm, "RS256")
		login("RS256")
		round(48*time.Hour, "RS256")
	})
}

// The first key is of the configured algorithm, in the files in which a
// later start finds it.
func TestKeys_FirstKeyOfEveryAlgorithm(t *testing.T) {
	t.Parallel()
	jwtEach(t, func(t *testing.T, algorithm string) {
		k := must(openKeyring(t.TempDir(), algorithm, minKeyBits))
		key := must(k.generate())
		want(t, "created", must(k.createFirst(key)), true)
		again := must(openKeyring(k.dir, algorithm, minKeyBits))
		first := again.current().signing(keysAt(0))
		want(t, "algorithm", first.algorithm.name, algorithm)
		want(t, "kid", first.kid, must(newPublishedKey(key)).kid)
		names, text := keysFiles(k.dir)
		want(t, "files", names, "private.pem public.pem ")
		wantText(t, "PKCS#8 and SubjectPublicKeyInfo", text,
			"-----BEGIN PRIVATE KEY-----", "-----BEGIN PUBLIC KEY-----")
	})
}

// A remembered token ends when it ends. One that was accepted although it had
// expired is not remembered, and none is taken for another in its place.
func TestKeys_Memory(t *testing.T) {
	t.Parallel()
	k := keysOpen(t, keysFirst)
	token, slots := k.token(0), &k.current().verified
	for i := range slots {
		slots[i].Store(&verifiedToken{})
	}
	remembered := func() (n int) {
		for i := range slots {
			c, _ := slots[i].Load().claims.(claims)
			n += len(c.SessionID)
		}
		return n
	}
	late := expected{"i", "a", keysAt(900), true}
	for i := range 2 {
		c, err := verifyToken[claims](k.current(), token, late)
		want(t, "expired, for logout", c.SessionID, "s1")
		want(t, "expired, for logout", err, nil)
		want(t, "remembered", remembered(), i*len(c.SessionID))
		k.wantVerdict(900, token, errExpired)
		k.wantVerdict(899, token, nil)
		k.wantVerdict(-61, token, errBadClaims)
		k.wantVerdict(0, token[:len(token)-8]+"AAAAAAAA", errBadSignature)
	}
}

// === passwords.go ===

// A login brings every hash to the configured cost and to our own form.
func TestPasswords_OutdatedHashes(t *testing.T) {
	t.Parallel()
	own := must(hashPassword("secret words", 4))
	imported := append([]byte("$2b$"), own[4:]...)
	want(t, "same cost", outdated(own, 4), false)
	want(t, "cost raised since", outdated(own, 5), true)
	want(t, "cost lowered since", outdated(dummyHash(12), 10), true)
	want(t, "imported", outdated(imported, 4), true)
	want(t, "no hash", outdated([]byte("x"), 4), true)
}

// Whatever is stored, a wrong password takes the time of the configured cost:
// less would tell unknown emails from known ones.
func TestPasswords_WrongOnesTakeTheSameTime(t *testing.T) {
	t.Parallel()
	fastest := func(runs int, matched func() bool) time.Duration {
		best := time.Hour
		for range runs {
			begin := time.Now()
			want(t, "wrong password matches", matched(), false)
			best = min(best, time.Since(begin))
		}
		return best
	}
	hash4 := must(hashPassword("secret words", 4))
	time4 := fastest(20, func() bool { return matches(hash4, "wrong password") })
	h := newHasher(t.Context(), 7, 1) // takes eight times as long as 4
	for name, hash := range map[string][]byte{
		"lower cost":    hash4,
		"unknown user":  nil,
		"no hash":       []byte("x"),
		"cost of a day": dummyHash(31),
	} {
		t.Run(name, func(t *testing.T) {
			took := fastest(2, func() bool {
				return must(h.compare(t.Context(), "here", hash, "wrong password"))
			})
			if took < 4*time4 {
				t.Errorf("took %v; want about %v", took, 8*time4)
			}
		})
	}
}

// Clients hang up at any moment: a verdict is returned as it was computed, or
// not at all.
func TestPasswords_HangUpsSpoilNoVerdict(t *testing.T) {
	t.Parallel()
	h := newHasher(t.Context(), 4, 2)
	hash := must(h.hash(t.Context(), "here", "secret words"))
	together(60, func(i int) error {
		ctx, hangUp := context.WithCancel(t.Context())
		after := time.Duration(i) * 100 * time.Microsecond
		time.AfterFunc(after, hangUp)
		ok, err := h.compare(ctx, fmt.Sprint(i), hash, "secret words")
		if err != nil {
			want(t, "error", err, context.Canceled)
		}
		want(t, "right password matches", ok, err == nil)
		return nil
	})
}

// passwordsStory is a hasher on the fake clock of a synctest bubble, with jobs
// that sleep instead of computing.
type passwordsStory struct {
	*testing.T
	*hasher
	begin time.Time
	jobs  sync.WaitGroup
}

// passwordsEnd is what do returned, and when: milliseconds of the story.
type passwordsEnd struct {
	at  int64
	err error
}

// passwordsTell tells a story of so many threads and lets all jobs end.
func passwordsTell(t *testing.T, threads int, tell func(s *passwordsStory)) {
	synctest.Test(t, func(t *testing.T) {
		s := &passwordsStory{T: t, begin: time.Now()}
		s.hasher = newHasher(t.Context(), 4, threads)
		tell(s)
		s.jobs.Wait()
		want(t, "clients that are remembered", len(s.clients), 0)
	})
}

// job starts a job and returns when it runs or waits. Its end comes later.
func (s *passwordsStory) job(ctx context.Context, client string, work func()) *passwordsEnd {
	end := &passwordsEnd{}
	s.jobs.Go(func() {
		end.err = s.do(ctx, client, work)
		end.at = time.Since(s.begin).Milliseconds()
	})
	synctest.Wait()
	return end
}

// sleep starts a job that takes so many milliseconds.
func (s *passwordsStory) sleep(client string, ms time.Duration) *passwordsEnd {
	work := func() { time.Sleep(ms * time.Millisecond) }
	return s.job(s.Context(), client, work)
}

// wantEnd lets all jobs end first.
func (s *passwordsStory) wantEnd(what string, end *passwordsEnd, at int64, err error) {
	s.Helper()
	s.jobs.Wait()
	want(s, what, *end, passwordsEnd{at, err})
}

// As many jobs run at once as there are threads, here three every 100 ms:
// more or fewer would be through sooner or later.
func TestPasswords_HasherUsesItsThreads(t *testing.T) {
	t.Parallel()
	passwordsTell(t, 3, func(s *passwordsStory) {
		var last *passwordsEnd
		for i := range 40 {
			last = s.sleep(fmt.Sprint(i), 100)
		}
		s.wantEnd("last of 40 jobs", last, 1400, nil)
	})
}

// First come, first served, whether jobs wait for a thread or for a seat; what
// clients wanted that hung up is not done.
func TestPasswords_HasherServesInOrder(t *testing.T) {
	t.Parallel()
	for _, client := range []string{"everybody", "client #"} {
		t.Run(client, func(t *testing.T) {
			t.Parallel()
			passwordsTell(t, 1, func(s *passwordsStory) {
				leaving, hangUp := context.WithCancel(s.Context())
				var order []int // written by the only thread
				var ends []*passwordsEnd
				for i := range 5 {
					ctx := s.Context()
					if i == 2 {
						ctx = leaving
					}
					name := strings.ReplaceAll(client, "#", fmt.Sprint(i))
					end := s.job(ctx, name, func() {
						order = append(order, i)
						time.Sleep(time.Millisecond)
					})
					ends = append(ends, end)
				}
				hangUp()
				s.wantEnd("client that hung up", ends[2], 0, context.Canceled)
				want(s, "order", fmt.Sprint(order), "[0 1 3 4]")
			})
		})
	}
}

// A job waits two seconds for its seat and for a thread together. One that
// runs is not given up, and its verdict counts, however late it is.
func TestPasswords_HasherBoundsTheWaitAlone(t *testing.T) {
	t.Parallel()
	passwordsTell(t, 1, func(s *passwordsStory) {
		ctx, hangUp := context.WithCancel(s.Context())
		slow := s.job(ctx, "ada", func() {
			time.Sleep(5 * time.Second)
		})
		seat := s.sleep("ada", 0)
		thread := s.sleep("bob", 0)
		time.Sleep(time.Second)
		hangUp()
		s.wantEnd("slow job of a client that hung up", slow, 5000, nil)
		s.wantEnd("job without a seat", seat, 2000, errBusy)
		s.wantEnd("job without a thread", thread, 2000, errBusy)
	})
	passwordsTell(t, 1, func(s *passwordsStory) {
		s.sleep("ada", 1500)
		both := s.sleep("ada", 0) // has its seat after 1.5 s
		s.sleep("bob", 1000)
		s.wantEnd("job that waited for both", both, 2000, errBusy)
	})
}

// One client may use all threads but not fill the queue: another one is served
// as soon as a thread is free.
func TestPasswords_OneClientLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	passwordsTell(t, 2, func(s *passwordsStory) {
		var last *passwordsEnd
		for range 24 {
			last = s.sleep("mallory", 100)
		}
		ada := s.sleep("ada", 100)
		s.wantEnd("job behind 24 of one client", ada, 200, nil)
		s.wantEnd("last of the 24", last, 1300, nil)
	})
}

// passwordsAda is a failed login of ada from here.
var passwordsAda = attempt{userID: "ada", client: "here"}

// passwordsThrottle has the limits of a server without configuration.
func passwordsThrottle() (*throttle, *testClock) {
	clock := newTestClock()
	return newThrottle(throttleLimits{true, 10, 60, 100, 60}, clock.read), clock
}

// passwordsGuesses reports n failures and returns how many were counted, which
// is how many verdicts a guesser learns. "#" is the number of the failure.
func passwordsGuesses(tr *throttle, n int, a attempt) (counted int) {
	email, client := a.email, a.client
	for i := range n {
		number := fmt.Sprint(i)
		a.email = strings.ReplaceAll(email, "#", number)
		a.client = strings.ReplaceAll(client, "#", number)
		if tr.failed(a) == (verdict{}) {
			counted++
		}
	}
	return counted
}

// passwordsAttempt reads "id:ada here known" or "email:ada@example.com here".
func passwordsAttempt(text string) attempt {
	words := strings.Fields(text)
	a := attempt{client: words[1], known: len(words) > 2}
	if id, isID := strings.CutPrefix(words[0], "id:"); isID {
		a.userID = id
	} else {
		a.email = strings.TrimPrefix(words[0], "email:")
	}
	return a
}

// Each rule counts what it is about, and forbids nothing else. The columns are
// who fails 500 times, how many of these are counted, who comes next, and the
// verdict.
func TestPasswords_ThrottleRules(t *testing.T) {
	t.Parallel()
	for _, line := range jwtTable(`
		id:ada here           10  id:ada here           pair 15m0s
		id:ada here           10  id:ada here known     pair 15m0s
		email:no@one.no here  10  email:NO@one.no here  pair 15m0s
		id:ada here           10  id:ada there          0s
		id:ada here           10  id:bob here           0s

		email:#@one.no here   60  id:ada here           address 15m0s
		email:#@one.no here   60  id:ada here known     address 15m0s
		email:#@one.no here   60  id:ada there          0s

		id:ada #              100  id:ada here           account 1h0m0s
		id:ada #              100  id:ada here known     0s
		id:ada #              100  id:bob here           0s
		email:ada #           100  id:ada here           0s
	`) {
		t.Run(line, func(t *testing.T) {
			columns := regexp.MustCompile("  +").Split(line, -1)
			tr, _ := passwordsThrottle()
			counted := passwordsGuesses(tr, 500, passwordsAttempt(columns[0]))
			want(t, "counted", fmt.Sprint(counted), columns[1])
			next := tr.blocked(passwordsAttempt(columns[2]))
			got := strings.TrimSpace(next.rule + " " + next.wait.String())
			want(t, "verdict", got, columns[3])
		})
	}
}

// A limit of 0 turns its rule off, and enabled turns all of them off.
func TestPasswords_ThrottleLimits(t *testing.T) {
	t.Parallel()
	for limits, counted := range map[throttleLimits]int{
		{true, 0, 60, 100, 0}:    60,
		{true, 0, 0, 100, 0}:     100,
		{false, 10, 60, 100, 60}: 500,
	} {
		t.Run(fmt.Sprint(limits), func(t *testing.T) {
			tr := newThrottle(limits, newTestClock().read)
			want(t, "counted of 500 failures",
				passwordsGuesses(tr, 500, passwordsAda), counted)
			for range 100 {
				want(t, "registration", tr.registered("here"), verdict{})
			}
		})
	}
}

// A span begins with the first event and ends on the second. A success clears
// the pair alone.
func TestPasswords_ThrottleSpans(t *testing.T) {
	t.Parallel()
	tr, clock := passwordsThrottle()
	passwordsGuesses(tr, 4, passwordsAda)
	clock.advance(5 * time.Minute)
	want(t, "counted of 20 after 4", passwordsGuesses(tr, 20, passwordsAda), 6)
	want(t, "right password under way", tr.succeeded(passwordsAda),
		verdict{"pair", 10 * time.Minute})
	clock.advance(10*time.Minute - time.Second)
	want(t, "a second before the end", tr.blocked(passwordsAda),
		verdict{"pair", time.Second})
	clock.advance(time.Second)
	counted := 0
	for range 10 {
		counted += passwordsGuesses(tr, 9, passwordsAda)
		tr.succeeded(passwordsAda)
	}
	want(t, "counted of 90 with successes between", counted, 60)
	want(t, "after 60", tr.succeeded(passwordsAda),
		verdict{"address", 15 * time.Minute})

	for range 60 {
		want(t, "registration", tr.registered("here"), verdict{})
	}
	want(t, "61st registration", tr.registered("here"),
		verdict{"registrations", time.Hour})
	want(t, "registration elsewhere", tr.registered("there"), verdict{})
	clock.advance(time.Hour)
	want(t, "registration an hour later", tr.registered("here"), verdict{})
}

// A burst, all of which is compared before the first guess is reported, learns
// no more than the limit; right passwords do not hinder each other.
func TestPasswords_ThrottleBursts(t *testing.T) {
	t.Parallel()
	tr, _ := passwordsThrottle()
	pass := func(ask func(attempt) verdict) (n int) {
		answers := together(200, func(int) verdict { return ask(passwordsAda) })
		for _, v := range answers {
			if v == (verdict{}) {
				n++
			}
		}
		return n
	}
	want(t, "of 200 that ask", pass(tr.blocked), 200)
	want(t, "of 200 right passwords", pass(tr.succeeded), 200)
	want(t, "of 200 wrong passwords", pass(tr.failed), 10)
	want(t, "of 200 right passwords afterwards", pass(tr.succeeded), 0)
}

// Strangers can neither fill the memory with emails and addresses nor flush
// the count of an account.
func TestPasswords_ThrottleMemoryIsBounded(t *testing.T) {
	t.Parallel()
	tr, _ := passwordsThrottle()
	strangers := attempt{email: "#", client: "#"}
	passwordsGuesses(tr, 9, passwordsAda)
	passwordsGuesses(tr, 3*throttleKeys, strangers)
	want(t, "counted of 20 after 9", passwordsGuesses(tr, 20, passwordsAda), 1)
	for _, r := range tr.logins {
		want(t, r.name+": bounded", len(r.counts) <= throttleKeys, true)
	}
}

// An IPv6 client is its /64, and an IPv4 client one address in either form.
func TestPasswords_ClientKeys(t *testing.T) {
	t.Parallel()
	for address, key := range map[string]string{
		"2001:db8:1:2::1":                  "2001:db8:1:2::/64",
		"2001:db8:1:2:ffff:ffff:ffff:ffff": "2001:db8:1:2::/64",
		"2001:db8:1:3::1":                  "2001:db8:1:3::/64",
		"fe80::1%eth0":                     "fe80::/64",
		"192.0.2.1":                        "192.0.2.1",
		"::ffff:192.0.2.1":                 "192.0.2.1",
		"no address":                       "no address",
	} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			want(t, "clientKey", clientKey(address), key)
		})
	}
}

// === backup.go ===

// TestBackup_Restored: a backup made while the server writes holds everybody
// who was stored before it, and the documented steps bring it back.
func TestBackup_Restored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeTestKeys(dir + "/.pico-auth")
	environ := []string{"THROTTLE_ENABLED=false", "AUTH_ADMIN_PASSWORD=" + adminPassword}
	p := launch(t, dir, environ)
	c := p.client()
	register := func(email string) answer {
		return c.do("POST", auth+"/register", "", object{"email": email, "password": userPassword})
	}
	c.wantOK("register", register("ada@example.com"))
	_, refresh := c.mustLogin("ada@example.com", userPassword)
	backup := launch(t, dir, environ, "backup", "copy.db")
	done := make(chan int)
	go func() { done <- backup.exit() }()
	for n, running := 0, true; running; n++ {
		select {
		case code := <-done:
			want(t, "exit status", code, 0)
			running = false
		default:
			c.wantOK("register", register(fmt.Sprintf("u%d@example.com", n)))
		}
	}
	wantText(t, "the copy alone", dbFiles(dir+"/copy.db"), "copy.db -rw-------")
	want(t, "files", strings.Count(dbFiles(dir+"/copy.db"), "\n"), 1)
	c.wantOK("register", register("late@example.com"))

	p.Process.Signal(syscall.SIGTERM)
	want(t, "exit status after SIGTERM", p.exit(), 0)
	mustOK(os.Rename(dir+"/copy.db", dir+"/auth.db"))
	os.Remove(dir + "/auth.db-wal")
	os.Remove(dir + "/auth.db-shm")
	c = launch(t, dir, environ).client()
	c.mustLogin("ada@example.com", userPassword)
	c.wantOK("refresh", c.refresh(refresh))
	c.wantProblem("one who came later", c.login("late@example.com", userPassword), 401, "invalid_credentials")
}

// TestBackup_Refusals leave every file as it was, and no part of a copy.
func TestBackup_Refusals(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	code, out, _ := ts.shell("", "backup "+ts.dir+"/copy.db")
	want(t, "exit status", code, 0)
	wantText(t, "output", out, ts.dir+"/copy.db;", ts.cfg.dataDir)
	before := dbFiles(ts.dir + "/copy.db")
	for _, to := range []string{"/copy.db", "/auth.db", "", "/missing/copy.db"} {
		code, _, errOut := ts.shell("", "backup "+ts.dir+to)
		want(t, "exit status for "+to, code, 1)
		wantText(t, "error", errOut, "no backup was made", ts.dir+to)
	}
	want(t, "the copy", dbFiles(ts.dir+"/copy.db"), before)

	damaged := ts.dir + "/damaged"
	mustOK(os.WriteFile(damaged, bytes.Repeat([]byte("x"), 4096), 0o600))
	err := copyDatabase(damaged, ts.dir+"/part")
	wantText(t, "error", fmt.Sprint(err), "not a database")
	want(t, "what is left of it", dbFiles(ts.dir+"/part"), "")

	ts.cfg.databaseURL = "sqlite:///" + ts.dir + "/none.db"
	code, _, errOut := ts.shell("", "backup "+ts.dir+"/second.db")
	want(t, "exit status without a database", code, 1)
	wantText(t, "error", errOut, "there is no database yet")
	want(t, "files", dbFiles(ts.dir+"/none")+dbFiles(ts.dir+"/second"), "")
}

// === db.go ===

// dbTest is an open store with every statement in its log.
type dbTest struct {
	*store
	logs *syncBuffer
}

func dbOpen(path string, adopt adopter) (dbTest, error) {
	s := dbTest{logs: &syncBuffer{}}
	o := openOptions{now: time.Now(), echo: true, keyDir: filepath.Dir(path), adopt: adopt}
	o.log = slog.New(slog.NewTextHandler(s.logs, nil))
	var err error
	s.store, err = openStore(path, o)
	return s, err
}

// dbNew is a new store, which is closed after the test.
func dbNew(t *testing.T) dbTest {
	s := must(dbOpen(t.TempDir()+"/auth.db", nil))
	t.Cleanup(func() { mustOK(s.close()) })
	return s
}

// dbTwice is a new store that runs every change two times, because another
// change in the same commit fails.
func dbTwice(t *testing.T) dbTest {
	s := dbNew(t)
	w := &writer{queries: s.writer.queries, queue: make(chan *queuedChange, 10)}
	s.writer = w
	go func() {
		for c := range w.queue {
			w.queue <- dbChange(func(*queries) error { return errConflict })
			w.carryOut(c)
		}
	}()
	return s
}

func dbChange(apply func(*queries) error) *queuedChange {
	return &queuedChange{ctx: context.Background(), apply: apply, answer: make(chan error, 1)}
}

// dbFile makes or changes a SQLite file as another program would.
func dbFile(path, statements string, args ...any) {
	db := must(sql.Open("sqlite", dsn(path)))
	defer db.Close()
	must(db.Exec(statements, args...))
}

// dbFiles lists the files whose names begin so, with their modes and hashes.
func dbFiles(path string) (list string) {
	for _, name := range must(filepath.Glob(path + "*")) {
		sum := sha256.Sum256(must(os.ReadFile(name)))
		list += fmt.Sprintf("%s %s %x\n", filepath.Base(name), must(os.Stat(name)).Mode(), sum)
	}
	return list
}

// logged counts a text in the log.
func (s dbTest) logged(text string) int { return strings.Count(s.logs.String(), text) }

// text reads one text.
func (s dbTest) text(query string, args ...any) (text string) {
	mustOK(s.reads.get(query, args, &text))
	return text
}

// dbSet is a change that stored can see.
func dbSet(name string) func(*queries) error {
	return func(t *queries) error { return t.setSetting(name, []byte{}) }
}

func (s dbTest) set(name string) error { return s.change(context.Background(), dbSet(name)) }

func (s dbTest) stored() string {
	return s.text(`SELECT coalesce(group_concat(name, ' '), '') FROM settings`)
}

// busy has the writer wait inside a change until release is called.
func (s dbTest) busy() (release func()) {
	entered, leave := make(chan bool), make(chan bool)
	go s.change(context.Background(), func(*queries) error {
		close(entered)
		<-leave
		return nil
	})
	<-entered
	return func() { close(leave) }
}

// queued waits until n changes are in the queue.
func (s dbTest) queued(n int) {
	for len(s.writer.queue) < n {
		runtime.Gosched()
	}
}

// batch has changes share a commit and returns their errors.
func (s dbTest) batch(changes ...func(*queries) error) (errs []error) {
	release := s.busy()
	var queued []*queuedChange
	for _, apply := range changes {
		c := dbChange(apply)
		s.writer.queue <- c
		queued = append(queued, c)
	}
	release()
	for _, c := range queued {
		errs = append(errs, <-c.answer)
	}
	return errs
}

// Of the changes in one commit, one that fails or panics is undone alone, and
// one whose caller has left does not begin. When the commit itself fails,
// every change is told so and nothing is stored.
func TestDB_ChangesOfABatchFailAlone(t *testing.T) {
	t.Parallel()
	s := dbNew(t)
	errs := s.batch(
		dbSet("first"),
		func(t *queries) error {
			must(t.exec(`INSERT INTO settings (name, value) VALUES ('undone', x'')`))
			_, err := t.exec(`INSERT INTO settings (name, value) VALUES ('first', x'')`)
			return err
		},
		func(t *queries) error {
			mustOK(dbSet("panicked")(t))
			panic("a bug")
		},
		dbSet("last"),
	)
	answers, stack, _ := strings.Cut(fmt.Sprint(errs), "\n")
	want(t, "answers", answers, "[<nil> exists already panic in a change: a bug")
	want(t, "the bug is named by its file, the rest goes on",
		strings.Contains(stack, "main_test.go:") && strings.HasSuffix(stack, " <nil>]"), true)
	left, leave := context.WithCancel(t.Context())
	leave()
	want(t, "caller who has left", s.change(left, dbSet("skipped")),
		context.Canceled)
	errs = s.batch(dbSet("lost"), func(t *queries) error {
		must(t.exec(`PRAGMA defer_foreign_keys = ON`)) // COMMIT finds the violation
		_, err := t.exec(`INSERT INTO known_addresses VALUES ('nobody', '', 0)`)
		return err
	})
	want(t, "both have the same error", errs[0] != nil && errs[0] == errs[1], true)
	want(t, "the next change", s.set("next"), nil)
	want(t, "stored", s.stored(), "first last next")
}

// All changes that wait while another process holds the lock share the next
// commit, and when none fails there are no savepoints.
func TestDB_ChangesGatherBehindALock(t *testing.T) {
	t.Parallel()
	s := dbNew(t)
	other := must(sql.Open("sqlite", dsn(s.path)))
	defer other.Close()
	must(other.Exec(`BEGIN IMMEDIATE`))
	before := s.logged("COMMIT")
	errs := together(100, func(i int) error {
		if i > 0 {
			return s.set("x")
		}
		s.queued(98) // one more is with the writer
		_, err := other.Exec(`COMMIT`)
		return err
	})
	want(t, "errors", errors.Join(errs...), nil)
	want(t, "commits", s.logged("COMMIT")-before, 1)
	want(t, "savepoints", s.logged("SAVEPOINT"), 0)
}

// A full queue refuses at once. What is in it when the store closes is
// committed, and a change that comes later is refused.
func TestDB_EveryChangeIsAnswered(t *testing.T) {
	t.Parallel()
	s := must(dbOpen(t.TempDir()+"/auth.db", nil))
	release := s.busy()
	errs := together(maxQueuedChanges+20, func(i int) error {
		if i > 0 {
			return s.set(fmt.Sprint(i))
		}
		s.queued(maxQueuedChanges)
		err := s.set("refused")
		want(t, "a full queue refuses", errors.Is(err, errUnavailable), true)
		release()
		return s.close()
	})
	late := s.set("late")
	want(t, "a closed store refuses", errors.Is(late, errUnavailable), true)
	want(t, "side files", len(must(filepath.Glob(s.path+"-*"))), 0)
	s = must(dbOpen(s.path, nil))
	defer s.close()
	stored := strings.Fields(s.stored())
	want(t, "those in the queue are stored", len(stored) >= maxQueuedChanges, true)
	for i, err := range errs[1:] {
		want(t, "acknowledged", err == nil,
			slices.Contains(stored, fmt.Sprint(i+1)))
	}
}

// A disk that is full or became read-only stops what must be stored, nothing
// else, and only while it lasts.
func TestDB_UnwritableStorage(t *testing.T) {
	t.Parallel()
	// The triggers make every change need new pages, as on a full disk every
	// commit needs a longer log. max_page_count = 1: no more than there are.
	const full = `CREATE TABLE filler (x);
		CREATE TRIGGER a AFTER INSERT ON users BEGIN INSERT INTO filler VALUES (zeroblob(9000)); END;
		CREATE TRIGGER b AFTER UPDATE ON users BEGIN INSERT INTO filler VALUES (zeroblob(9000)); END;
		CREATE TRIGGER c AFTER UPDATE ON sessions BEGIN INSERT INTO filler VALUES (zeroblob(9000)); END;
		CREATE TRIGGER d AFTER INSERT ON settings BEGIN INSERT INTO filler VALUES (zeroblob(9000)); END;
		PRAGMA max_page_count = 1`
	for stop, mend := range map[string]string{
		full:                    `PRAGMA max_page_count = 1000000`,
		`PRAGMA query_only = 1`: `PRAGMA query_only = 0`,
	} {
		t.Run(mend, func(t *testing.T) {
			t.Parallel()
			s, now := dbNew(t), time.Now()
			u := s.user("ada@example.com", viewer)
			id, token := s.login(u, now)
			attempts := func(is error) {
				now = now.Add(time.Second)
				l, _ := accountsLogin(u, now)
				_, login := s.openSession(t.Context(), l)
				_, refresh := s.use(token, now)
				for _, err := range []error{login, refresh, s.healthy(now)} {
					want(t, "what is stored fails", errors.Is(err, is), true)
				}
				_, err := s.authenticated(id, jsonLogin, now)
				want(t, "a read", err, nil)
			}
			must(s.writer.exec(stop))
			attempts(errUnavailable)
			must(s.writer.exec(mend))
			attempts(nil)
			want(t, "integrity", s.text(`PRAGMA integrity_check`), "ok")
		})
	}
}

// Health checks cost one write a second for everybody; a file that was removed
// or replaced is no healthy database.
func TestDB_HealthIsOneWrite(t *testing.T) {
	t.Parallel()
	s, now := dbNew(t), time.Now()
	for _, err := range together(100, func(int) error { return s.healthy(now) }) {
		want(t, "health, 100 at once", err, nil)
	}
	for writes, later := range []string{"0s", "999ms", "1s", "-1h"} {
		d := must(time.ParseDuration(later))
		want(t, "health", s.healthy(now.Add(d)), nil)
		want(t, "writes "+later+" later", s.logged("INTO settings"), max(1, writes))
	}
	mustOK(os.Rename(s.path, s.path+".moved"))
	want(t, "healthy without the file", s.healthy(now) == nil, false)
	mustOK(os.WriteFile(s.path, nil, 0o600))
	want(t, "healthy with another file", s.healthy(now) == nil, false)
}

// The lock for the key directory keeps other processes from writing, and its
// function runs once even when its change runs twice.
func TestDB_ExclusivelyRunsOnce(t *testing.T) {
	t.Parallel()
	s, runs := dbTwice(t), 0
	other := must(sql.Open("sqlite", dsn(s.path)))
	defer other.Close()
	var refusal error
	err := s.exclusively(t.Context(), func() error {
		runs++
		_, refusal = other.Exec(`PRAGMA busy_timeout = 0; BEGIN IMMEDIATE`)
		return errNotFound
	})
	want(t, "error", err, errNotFound)
	want(t, "another process is refused",
		errors.Is(storageError(refusal), errUnavailable), true)
	want(t, "runs", runs, 1)
}

// Every column of the schema has a comment, and a new file has our marks.
func TestDB_SchemaExplainsItself(t *testing.T) {
	t.Parallel()
	column := regexp.MustCompile(`(?m)^\t([a-z_]+) .*$`)
	for _, table := range strings.Split(schema, "CREATE TABLE ")[1:] {
		body, options, _ := strings.Cut(table, "\n)")
		want(t, body[:9]+" is STRICT", strings.HasPrefix(options, " STRICT"), true)
		for _, c := range column.FindAllString(body, -1) {
			wantText(t, "column", c, " -- ")
		}
	}
	marks := dbNew(t).text(`SELECT application_id || ' ' || user_version || ' ' || journal_mode
		FROM pragma_application_id, pragma_user_version, pragma_journal_mode`)
	want(t, "marks", marks, fmt.Sprint(applicationID, " ", len(migrations), " wal"))
}

// TestDB_Schema1IsFrozen: databases of version 1 have these tables. Since 1.0.0
// neither side changes, a migration does; before it both do, and applicationID.
func TestDB_Schema1IsFrozen(t *testing.T) {
	t.Parallel()
	want(t, "migrations[0]", migrations[0], string(must(os.ReadFile("testdata/schema-1.sql"))))
}

// TestDB_Migration keeps everything that there was, and a copy of the file as
// it was; one that fails changes nothing. The older program then refuses.
func TestDB_Migration(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id, access := ts.as("ada@example.com", viewer, defaultOrg)
	_, refresh := ts.mustLogin("ada@example.com", userPassword)
	path, logs := t.TempDir()+"/auth.db", &syncBuffer{}
	mustOK(copyDatabase(ts.store.path, path))
	before := dbFiles(path)
	open := func(next ...string) (*store, error) {
		return openStore(path, openOptions{
			log:        slog.New(slog.NewTextHandler(logs, nil)),
			migrations: append([]string{schema}, next...),
		})
	}
	const column = `ALTER TABLE users ADD COLUMN phone TEXT NOT NULL DEFAULT ''; -- may be empty`
	_, err := open(column, `ALTER TABLE missing ADD COLUMN n INTEGER`)
	wantText(t, "a migration that fails", fmt.Sprint(err), "migration to version 3", "no such table")
	want(t, "files", dbFiles(path), before)
	mustOK(os.WriteFile(path+".before-1", []byte("of an earlier try"), 0o600))

	s := must(open(column))
	kept := path + ".before-1-2"
	want(t, "warnings", strings.Count(logs.String(), "level=WARN"), 1)
	wantText(t, "log", logs.String(), "schema=2 was=1 copy="+kept+"\n")
	u := must(s.userByID(id))
	want(t, "user", fmt.Sprint(u), fmt.Sprint(must(ts.store.userByID(id))))
	rows := func(q *queries, query string) (n int) {
		mustOK(q.get(query, nil, &n))
		return n
	}
	want(t, "phones", rows(s.reads, `SELECT count(*) FROM users WHERE phone = ''`), 2)
	want(t, "sessions", rows(s.reads, `SELECT count(*) FROM sessions`), 2)
	want(t, "version", rows(s.reads, `SELECT user_version FROM pragma_user_version`), 2)
	mustOK(s.close())
	wantText(t, "copy", dbFiles(kept), "auth.db.before-1-2 -rw-------")

	migrated := dbFiles(path)
	_, err = open()
	wantText(t, "the older program", fmt.Sprint(err), "newer pico-auth (schema 2, this one knows 1)")
	want(t, "files", dbFiles(path), migrated)
	mustOK(os.Rename(kept, path))
	mustOK(must(open()).close())
	restored := newTestServer(t, func(c *config) { c.databaseURL = "sqlite:///" + path })
	restored.wantOK("refresh with the copy", restored.refresh(refresh))
	restored.wantOK("access with the copy", restored.do("GET", auth+"/me", access, nil))
}

// TestDB_AdoptedAndNewFilesAreMigrated too; of these there is nothing to copy.
func TestDB_AdoptedAndNewFilesAreMigrated(t *testing.T) {
	t.Parallel()
	adopted := t.TempDir() + "/auth.db"
	dbFile(adopted, mainPython)
	for _, path := range []string{adopted, t.TempDir() + "/auth.db"} {
		s := must(openStore(path, openOptions{
			log: slog.New(slog.DiscardHandler),
			adopt: func(t *queries, _ string, _ openOptions) error {
				_, err := t.exec(`DROP TABLE users; DROP TABLE refresh_tokens;` + schema)
				return err
			},
			migrations: []string{schema, `CREATE TABLE second (n INTEGER)`, `DROP TABLE second`},
		}))
		var version int
		mustOK(s.reads.get(`SELECT user_version FROM pragma_user_version`, nil, &version))
		want(t, "version", version, 3)
		mustOK(s.close())
		want(t, "files", strings.Count(dbFiles(path), "\n"), 1)
	}
}

// A file that is not our database is refused untouched, by an error that names
// the setting and the file; a shell command makes none.
func TestDB_OtherFilesAreRefusedUntouched(t *testing.T) {
	t.Parallel()
	fill := strings.NewReplacer("SCHEMA", schema, "OURS", fmt.Sprint(applicationID))
	for _, line := range lines(`
		newer            SCHEMA; PRAGMA application_id = OURS; PRAGMA user_version = 99
		damaged          SCHEMA; PRAGMA application_id = OURS
		damaged          SCHEMA; PRAGMA application_id = OURS; PRAGMA user_version = 1; DROP TABLE settings
		damaged          PRAGMA application_id = OURS; PRAGMA user_version = 1
		another program  SCHEMA; PRAGMA application_id = 0x7069636f; PRAGMA user_version = 1
		another program  CREATE TABLE users (id, name)`) {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			c, path := columns(line), t.TempDir()+"/auth.db"
			dbFile(path, fill.Replace(c[1]))
			before := dbFiles(path)
			_, err := dbOpen(path, nil)
			prefix := "database.url (DATABASE_URL) " + path + ": "
			wantText(t, "refusal", fmt.Sprint(err), prefix, c[0])
			want(t, "files", dbFiles(path), before)
		})
	}
	dir := t.TempDir()
	mustOK(os.WriteFile(dir+"/text", []byte("hello"), 0o600))
	mustOK(os.WriteFile(dir+"/empty", nil, 0o600))
	before := dbFiles(dir + "/")
	for name, refusal := range map[string]string{
		"":         "is not a file",
		"/text":    "not a database",
		"/empty":   "start the server once",
		"/missing": "start the server once",
	} {
		_, err := openStore(dir+name, openOptions{mustExist: true})
		wantText(t, "refusal", fmt.Sprint(err), dir+name, refusal)
	}
	want(t, "files", dbFiles(dir+"/"), before)
}

// Database and side files, which hold password hashes, are readable by their
// owner alone; when others had access, the log says so.
func TestDB_FilesAreMadePrivate(t *testing.T) {
	t.Parallel()
	s, dir := dbNew(t), t.TempDir()
	mustOK(s.set("x"))
	private := []string{"auth.db -rw-------", "auth.db-shm -rw-------", "auth.db-wal -rw-------"}
	wantText(t, "new files", dbFiles(s.path), private...)
	want(t, "warnings", s.logged("level=WARN"), 0)

	mustOK(os.CopyFS(dir, os.DirFS(filepath.Dir(s.path)))) // as after a kill, with mode 0644
	s = must(dbOpen(dir+"/auth.db", nil))
	defer s.close()
	want(t, "stored by the killed server", s.stored(), "x")
	wantText(t, "old files", dbFiles(s.path), private...)
	for _, name := range []string{"auth.db", "auth.db-shm", "auth.db-wal"} {
		wantText(t, "log", s.logs.String(), dir+"/"+name+" was=-rw-r--r--")
	}
}

// === accounts.go ===

func accountsAnybody(*queries, user) error { return nil }

// user adds an active user.
func (s dbTest) user(email string, r role) user {
	u := user{id: newID(), email: email, passwordHash: []byte("hash"), role: r, status: statusActive}
	mustOK(s.createUser(context.Background(), principal{}, u, accountsAnybody))
	return must(s.userByID(u.id))
}

// accountsLogin is a login whose session may idle for an hour and lasts for
// two, from an address that is named after the time.
func accountsLogin(u user, at time.Time) (l login, token string) {
	handle := newID()
	token = newRefreshToken(handle)
	l = login{user: u, tokenHash: hashToken(token), address: fmt.Sprint(at.Unix())}
	l.session = session{
		id:        sessionIDOf(handle),
		createdAt: at.Unix(),
		expiresAt: at.Add(time.Hour).Unix(),
		endsAt:    at.Add(2 * time.Hour).Unix(),
	}
	return l, token
}

func (s dbTest) login(u user, at time.Time) (sessionID, token string) {
	l, token := accountsLogin(u, at)
	must(s.openSession(context.Background(), l))
	return l.session.id, token
}

// still is a clock that stands.
func still(at time.Time) func() time.Time {
	return func() time.Time { return at }
}

// use rotates a token with a grace of 10 s.
func (s dbTest) use(token string, at time.Time) (rotated, error) {
	r := rotation{token: token, now: still(at), idle: time.Hour, grace: 10 * time.Second}
	return s.rotate(context.Background(), r)
}

// row is what a session stores of its tokens; "" without a session.
func (s dbTest) row(sessionID string) string {
	return s.text(`SELECT coalesce(max(hex(token_hash) || ' ' || coalesce(hex(parent_hash), '') || ' ' ||
		coalesce(hex(salt), '') || ' ' || last_used_at || ' ' || expires_at), '')
		FROM sessions WHERE id = $1`, sessionID)
}

// What becomes of a refresh token, its session and the client: the table at
// rotate, row by row. The columns are the token, how much later it comes, what
// happened before, the row, the error.
func TestAccounts_RotationOutcomes(t *testing.T) {
	t.Parallel()
	s := dbTwice(t)
	before := map[string]string{
		"ended":     `DELETE FROM sessions WHERE user_id = $1`,
		"suspended": `UPDATE users SET status = 'suspended' WHERE id = $1`,
	}
	for _, line := range lines(`
		current      0s      -          replaced  <nil>
		current      59m59s  -          replaced  <nil>
		parent       0s      -          kept      <nil>
		parent       9s      -          kept      <nil>
		parent       10s     -          deleted   refresh token was used before
		parent       -1s     -          deleted   refresh token was used before
		grandparent  0s      -          deleted   refresh token was used before
		current      1h      -          kept      session has expired
		parent       1h      -          kept      session has expired
		current      0s      ended      deleted   no such session
		current      0s      suspended  deleted   user is suspended
		parent       0s      suspended  deleted   user is suspended`) {
		t.Run(line, func(t *testing.T) {
			c, now := columns(line), time.Now()
			u := s.user(newID(), viewer)
			id, oldest := s.login(u, now)
			parent := must(s.use(oldest, now)).successor
			current := must(s.use(parent, now)).successor
			row := s.row(id)
			dbFile(s.path, before[c[2]], u.id)
			token := map[string]string{
				"current":     current,
				"parent":      parent,
				"grandparent": oldest,
			}[c[0]]
			later := must(time.ParseDuration(c[1]))
			done, err := s.use(token, now.Add(later))
			fate := map[string]string{row: "kept", "": "deleted"}[s.row(id)]
			want(t, "row", cmp.Or(fate, "replaced"), c[3])
			want(t, "error", fmt.Sprint(err), c[4])
			want(t, "repeated", done.repeated, c[3] == "kept" && err == nil)
			want(t, "successor is the current token", done.successor == current,
				done.repeated)
			named := err == nil || err == errReuse || err == errSuspended
			want(t, "user is named", done.user.id == u.id, named)
			want(t, "session is named", done.sessionID == id, named)
		})
	}
}

// A successor is HKDF-SHA256 (RFC 5869) of its parent and the salt in the row,
// which is there for the grace only; no lifetime passes the absolute one.
func TestAccounts_SuccessorIsDerived(t *testing.T) {
	t.Parallel()
	s, now := dbNew(t), time.Unix(60, 0)
	id, token := s.login(s.user("ada@example.com", viewer), time.Unix(0, 0))
	next := must(s.use(token, now)).successor
	row := strings.Fields(s.row(id))
	extracted := adoptHMAC(must(hex.DecodeString(row[2])), token)
	secret := adoptHMAC(extracted, "pico-auth refresh token successor\x01")
	want(t, "successor", next, token[:27]+b64.EncodeToString(secret))
	hashes := fmt.Sprintf("[%X %X]", hashToken(next), hashToken(token))
	want(t, "hashes", fmt.Sprint(row[:2]), hashes)
	want(t, "hex digits of salt", len(row[2]), 64)

	must(s.rotate(t.Context(), rotation{token: next, now: still(now), idle: 3 * time.Hour}))
	row = strings.Fields(s.row(id))
	want(t, "fields of a row without a salt", len(row), 4)
	want(t, "end of the idle lifetime", row[3], "7200")
}

// Tokens that name no session never reach the writer, so that a flood of them
// keeps nobody waiting.
func TestAccounts_MadeUpTokensStayOutOfTheQueue(t *testing.T) {
	t.Parallel()
	s := dbNew(t)
	_, token := s.login(s.user("ada@example.com", viewer), time.Now())
	defer s.busy()()
	handle, secret, _ := strings.Cut(token, ".")
	fill := strings.NewReplacer("HANDLE", handle, "SECRET", secret, "CUT", secret[1:],
		"PYTHON", adoptToken(1))
	for _, made := range lines(`
		.
		x
		PYTHON
		PYTHON.SECRET
		other.SECRET
		HANDLE
		HANDLE.CUT
		HANDLE.SECRET=
		.HANDLE.SECRET
		HANDLE.SECRET.SECRET`) {
		made = fill.Replace(made)
		_, err := s.use(made, time.Now())
		want(t, "use of "+made, err, errNoSession)
		_, err = s.endTokenSession(t.Context(), made)
		want(t, "logout by "+made, err, errNoSession)
	}
	want(t, "changes in the queue", len(s.writer.queue), 0)
}

// Every way to end sessions ends at once those it names and no others, and one
// statement in the source ends them all.
func TestAccounts_SessionsEnd(t *testing.T) {
	t.Parallel()
	s, ctx, now := dbTwice(t), t.Context(), time.Now()
	var u user
	var id, token string
	again := func() {
		u = s.user(newID(), viewer)
		s.login(u, now)
		id, token = s.login(u, now)
	}
	// check compares the outcome of a way, what a bearer of the session is
	// told, and how many of the user's two sessions are left.
	check := func(outcome, promised string) {
		t.Helper()
		_, err := s.authenticated(id, jsonLogin, now)
		left := len(must(s.sessionsOf(u.id, now)))
		want(t, "outcome", fmt.Sprint(outcome, ", ", err, ", ", left), promised)
		again()
	}
	again()
	count := func(ended []session, err error) string { return fmt.Sprint(len(ended), err) }
	check(count(s.endSession(ctx, id, u.id)), "1 <nil>, no such session, 1")
	check(count(s.endSession(ctx, id, "somebody else")), "0 <nil>, <nil>, 2")
	check(count(s.endSessions(ctx, u.id)), "2 <nil>, no such session, 0")
	must(s.use(token, now)) // an older token
	check(count(s.endTokenSession(ctx, token)), "1 <nil>, no such session, 1")
	edit := func(e userEdit, mark string) string {
		apply := func(_ user, target *user) (userEdit, error) {
			target.status += mark // twice, if it saw its own change
			return e, nil
		}
		before, after, err := s.editUser(ctx, principal{}, u.id, apply)
		return fmt.Sprint(before.status, " ", after.status, " ", err)
	}
	check(edit(userEdit{}, "!"), "active active! <nil>, no such session, 0")
	check(edit(userEdit{endSessions: true}, ""), "active active <nil>, no such session, 0")
	check(edit(userEdit{remove: true}, ""), "active active <nil>, no such session, 0")
	check(edit(userEdit{}, ""), "active active <nil>, <nil>, 2")
	source := string(must(os.ReadFile("accounts.go")))
	want(t, "statements that end sessions",
		strings.Count(source, "DELETE FROM sessions"), 1)
}

// Who makes a change is read again inside it: a session that has ended or a
// user who was suspended changes nothing, and a demoted one has the new role.
func TestAccounts_ActorIsReadAgain(t *testing.T) {
	t.Parallel()
	s, now := dbNew(t), time.Now()
	for _, line := range lines(`
		<nil>            superadmin  -
		<nil>            viewer      UPDATE users SET role = 'viewer' WHERE id = $1
		no such session  -           UPDATE users SET status = 'suspended' WHERE id = $1
		no such session  -           DELETE FROM sessions WHERE user_id = $1`) {
		t.Run(line, func(t *testing.T) {
			c := columns(line)
			u := s.user(newID(), superadmin)
			id, _ := s.login(u, now)
			by := must(s.authenticated(id, jsonLogin, now))
			dbFile(s.path, c[2], u.id)
			var asked role
			err := s.changeBy(t.Context(), by, func(q *queries, actor user) error {
				asked = actor.role
				return q.setSetting(line, []byte{})
			})
			want(t, "error", fmt.Sprint(err), c[0])
			want(t, "role of the actor", asked, c[1])
			want(t, "changed", strings.Contains(s.stored(), line), err == nil)
		})
	}
}

// A login is stored only if password and status are still those that were
// checked.
func TestAccounts_LoginNeedsWhatWasChecked(t *testing.T) {
	t.Parallel()
	s, now := dbTwice(t), time.Now()
	l, _ := accountsLogin(s.user("ada@example.com", viewer), now)
	l.newHash = []byte("new")
	u := must(s.openSession(t.Context(), l))
	want(t, "hash", string(u.passwordHash), "new")
	want(t, "time of the login", u.lastLoginAt, now.Unix())
	_, err := s.openSession(t.Context(), l)
	want(t, "login with the hash of before", err, errChanged)
	dbFile(s.path, `UPDATE users SET status = 'suspended'`)
	l, _ = accountsLogin(u, now)
	_, err = s.openSession(t.Context(), l)
	want(t, "login of a user who was suspended", err, errChanged)
}

// No account fills the database with sessions or addresses. The login at a
// time comes from the address of that name.
func TestAccounts_LoginsAreBounded(t *testing.T) {
	t.Parallel()
	s := dbNew(t)
	u, other := s.user("ada@example.com", viewer), s.user("bob@example.com", viewer)
	const oldestAddress = `SELECT address FROM known_addresses WHERE user_id = $1 ORDER BY seen_at`
	s.login(other, time.Unix(1000, 0))
	oldest, _ := s.login(u, time.Unix(1000, 0))
	for i := range int64(maxSessions) {
		s.login(u, time.Unix(1001+i, 0))
	}
	want(t, "session that was not used for longest", s.row(oldest), "")
	want(t, "sessions", len(must(s.sessionsOf(u.id, time.Unix(1000, 0)))),
		maxSessions)
	want(t, "the oldest address", s.text(oldestAddress, u.id), "1001")
	id, _ := s.login(u, time.Unix(940, 0)) // the clock was set back
	want(t, "the new session is there", s.row(id) != "", true)
	s.login(u, time.Unix(1010, 0).Add(addressTime))
	want(t, "the oldest after 30 days", s.text(oldestAddress, u.id), "1011")
	want(t, "that of somebody else", s.text(oldestAddress, other.id), "1000")
}

// Purging removes what expired and nothing else. A clock that jumps ahead for
// less than an hour, here or on another server, costs nobody a session. The
// columns are the clock, the horizon, and how many sessions are removed.
func TestAccounts_PurgeFollowsTheClockSlowly(t *testing.T) {
	t.Parallel()
	s, start := dbTwice(t), time.Unix(1e9, 0)
	other := s.user("bob@example.com", viewer)
	s.login(s.user("ada@example.com", viewer), start) // expires in an hour
	dbFile(s.path, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 1200)
		INSERT INTO sessions (id, user_id, token_hash, created_at, last_used_at, expires_at, ends_at, ip, user_agent)
		SELECT hex(i), $1, x'00', 0, 0, 1000000000 - 7200 - i % 2, 0, '', '' FROM n`, other.id)
	for _, line := range lines(`
		0s        -2h0m0s   600  a new database
		8760h     0s        600  the clock jumps ahead
		8760h1m   0s        0    still ahead
		12m       -1h48m0s  0    right again
		8760h     12m0s     0    another server's clock jumps
		18m       -1h42m0s  0    right again
		77m       -1h42m0s  0    too soon for a move
		78m       -42m0s    0    an hour after the last move
		169h      1h18m0s   1    after a pause of a week
		170h      3h18m0s   0    an hour later`) {
		c := columns(line)
		now := start.Add(must(time.ParseDuration(c[0])))
		horizon, removed, err := s.purge(t.Context(), now)
		outcome := fmt.Sprint(horizon.Sub(start), removed, err)
		want(t, line, outcome, c[1]+" "+c[2]+" <nil>")
	}
}

// === adopt.go ===

// adoptToken is refresh token n of an old database.
func adoptToken(n int) string { return fmt.Sprintf("%032x", n) }

func adoptHMAC(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// adoptDatabase makes a database of the Python server with the users in
// testdata and five tokens: two as usual (the second without an offset), one
// that is expired, one of a suspended user, one of nobody. hash is how the
// version stored tokens.
func adoptDatabase(t *testing.T, hash func(token string) []byte) (path string) {
	path = filepath.Join(t.TempDir(), "auth.db")
	dbFile(path, string(must(os.ReadFile("testdata/python-0.1.2.sql"))))
	soon := time.Now().UTC().Add(48 * time.Hour).Format("2006-01-02T15:04:05.000000+00:00")
	args := []any{soon, "2026-02-20T10:11:12.123456+00:00"}
	for n := range 5 {
		args = append(args, hex.EncodeToString(hash(adoptToken(n))))
	}
	dbFile(path, `INSERT INTO refresh_tokens (expires_at, created_at, token_hash, id, user_id) VALUES
		($1, $2, $3, 0, 'plain'),
		(substr($1, 1, 19), $2, $4, 1, 'whole'),
		($2, $2, $5, 2, 'plain'),
		($1, $2, $6, 3, 'shut'),
		($1, $2, $7, 4, 'nobody')`, args...)
	return path
}

// laterTables adds the tables of version 0.3.2, with four service tokens that
// are stored by hash.
func laterTables(path string, hash func(token string) []byte) {
	var args []any
	for n := range 4 {
		args = append(args, hex.EncodeToString(hash(adoptServiceToken(n))))
	}
	dbFile(path, string(must(os.ReadFile("testdata/python-0.3.2.sql"))), args...)
}

func adoptServiceToken(n int) string { return fmt.Sprintf("pico_svc_%064x", n) }

// Users keep everything, each answers to its own spelling, and the log names
// what was taken over, the copy, and emails that differ only in case. Tables of
// the operator's own stay, also where they refer to users: their rows are not
// deleted, and the reference goes on. The next start does nothing of it.
func TestAdopt_EverybodyIsTakenOver(t *testing.T) {
	t.Parallel()
	path := adoptDatabase(t, hashToken)
	dbFile(path, `CREATE TABLE badges (n INTEGER, owner TEXT REFERENCES users (id) ON DELETE CASCADE);
		INSERT INTO badges VALUES (1, 'plain'), (2, 'whole');
		CREATE VIEW operators AS SELECT id FROM users WHERE role = 'operator'`)
	s := must(dbOpen(path, adoptPython))
	kept := path + ".before-adoption"
	wantText(t, "log", s.logs.String(), "users=16 refresh_tokens=2 groups=0 memberships=0 "+
		"service_tokens=0 copy="+kept,
		"name=Twin@", "name=twin@", "name=Pair@", "name=PAIR@")
	want(t, "warnings for twins", s.logged("differs from this one only in case"), 4)
	wantText(t, "copy", dbFiles(kept), "auth.db.before-adoption -rw-------")
	db := must(sql.Open("sqlite", dsn(kept)))
	defer db.Close()
	users := must(queryRows(&queries{prepare: db.PrepareContext}, `SELECT 0, id, email, display_name,
		CAST(password_hash AS BLOB), role, org_id, status,
		unixepoch(created_at), coalesce(unixepoch(last_login_at), 0), 0 FROM users`, nil, userTargets))
	want(t, "users", len(users), 16)
	for _, old := range users {
		u := must(s.userByLogin(old.email))
		old.seq = u.seq
		want(t, "user "+old.id, fmt.Sprint(u), fmt.Sprint(old))
		old.id = newID()
		err := s.createUser(t.Context(), principal{}, old, accountsAnybody)
		want(t, "its email is taken", errors.Is(err, errConflict), true)
	}
	// A spelling that nobody registered belongs to the one in lower case, or
	// else to the oldest.
	want(t, "TWIN@ is", must(s.userByLogin("TWIN@example.com")).id, "twin-lower")
	want(t, "pair@ is", must(s.userByLogin("pair@example.com")).id, "pair-a")
	want(t, "the oldest user is", s.text(`SELECT id FROM users ORDER BY seq`),
		"UMLAUT")

	const others = `SELECT (SELECT group_concat(n) FROM badges) || ' ' ||
		 (SELECT id FROM operators) || ' ' || (SELECT count(*) FROM pragma_foreign_key_check)`
	want(t, "other tables", s.text(others), "1,2 plain 0")
	must(s.writer.exec(`DELETE FROM users WHERE id = 'whole'`))
	want(t, "other tables when a user was removed", s.text(others),
		"1 plain 0")
	mustOK(s.close())
	s = must(dbOpen(path, adoptPython))
	defer s.close()
	want(t, "adoptions at the next start", s.logged("adopting"), 0)
}

// Groups, members and service tokens of later versions are taken over, with
// other names where ours have a rule, and the log names what is missing or
// changed. Email credentials stay.
func TestAdopt_GroupsAndServiceTokens(t *testing.T) {
	t.Parallel()
	path := adoptDatabase(t, hashToken)
	laterTables(path, hashToken)
	s := must(dbOpen(path, adoptPython))
	defer s.close()
	rows := func(query string) string {
		row := func(text *string) []any { return []any{text} }
		return strings.Join(must(queryRows(s.reads, query, nil, row)), "\n")
	}
	want(t, "groups", rows(`SELECT id || '|' || name || '|' || description || '|' || org_id ||
		'|' || created_at FROM groups ORDER BY seq`), `g1|team|the first|acme|1782864000
g2|team (g2)|the second|acme|1782950400
g3|team||beta|1783123200
g4|a-b-c--d||acme|1783209600
g5|a-b-c--d (g5)||acme|1783296000
g6|||acme|0`)
	want(t, "members", rows(`SELECT group_id || '|' || user_id || '|' || joined_at
		FROM group_members ORDER BY seq`), `g1|shut|1782864000
g1|whole|1782864001
g2|whole|1782950401
g4|whole|1783209601
g6|whole|0`)
	want(t, "groups of a user", fmt.Sprint(must(s.userByID("whole")).memberships()),
		"[{g1 team} {g2 team (g2)} {g4 a-b-c--d} {g6 }]")
	want(t, "service tokens", rows(`SELECT id || '|' || name || '|' || role || '|' || org_id ||
		'|' || description FROM service_tokens ORDER BY seq`), `s1|bot|operator|acme|answers mail
s2|bot-s2|auditor|beta|
s4|ein Name/2|viewer|acme|`)
	wantText(t, "log", s.logs.String(), "groups=6 memberships=5 service_tokens=3 copy=",
		"not users of the group's organisation\" count=3\n",
		`name="team (g2)"`, `name=a-b-c--d`, `name="a-b-c--d (g5)"`, `name=bot-s2`)
	want(t, "warnings of other names", s.logged("has this name now"), 4)
	want(t, "email credentials and leftovers", rows(`SELECT (SELECT email FROM email_credentials) ||
		(SELECT count(*) FROM sqlite_master WHERE name LIKE '%python%' OR name LIKE 'ix%groups%')`),
		"bot@example.com0")
}

// A refresh token of the Python server works once, becomes one of ours and
// ends the session when it comes again, by whatever hash it was stored.
func TestAdopt_RefreshTokens(t *testing.T) {
	t.Parallel()
	const pem = "-----BEGIN\nkey\n-----END\n"
	files := map[string]string{
		"LF":    pem,
		"CRLF":  strings.ReplaceAll(pem, "\n", "\r\n"),
		"other": pem + "\n",
	}
	const secret = "\x00\r\n\xff expanded"
	mldsaKey := sha256.Sum256([]byte("pico-auth/token-hash-key/v1:" + secret))
	key := sha256.Sum256([]byte("pico-auth/token-hash-key/v1:" + pem))
	hashes := map[string]func(token string) []byte{
		"0.1.2": hashToken,
		"0.3.1": func(token string) []byte { return adoptHMAC(key[:], token) },
		"pqc":   func(token string) []byte { return adoptHMAC(mldsaKey[:], token) },
	}
	const works = "<nil>, refresh token was used before, no such session"
	const refused = "no such session, no such session, no such session"
	for _, line := range lines(`
		0.1.2  -      works
		0.1.2  LF     works
		0.3.1  LF     works
		0.3.1  CRLF   works
		0.3.1  other  refused
		0.3.1  -      refused
		pqc    -      works
		pqc    LF     works`) {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			c := columns(line)
			path := adoptDatabase(t, hashes[c[0]])
			if c[1] != "" {
				mustOK(os.WriteFile(filepath.Dir(path)+"/private.pem", []byte(files[c[1]]), 0o600))
			}
			if c[0] == "pqc" {
				mustOK(os.WriteFile(filepath.Dir(path)+"/pqc_secret.bin", []byte(secret), 0o600))
			}
			s := must(dbOpen(path, adoptPython))
			defer s.close()
			want(t, "says that the key is lost", s.logged("lacks its seed") == 1, c[0] == "pqc")
			for n := range 6 {
				old, now := adoptToken(n), time.Now()
				first, err := s.use(old, now)
				again, _ := s.use(old, now)
				second, _ := s.use(first.successor, now)
				_, reuse := s.use(old, now)
				_, ended := s.use(second.successor, now)
				want(t, "in the grace", again.successor, first.successor)
				promised := refused
				if n < 2 && c[2] == "works" {
					promised = works
				}
				want(t, fmt.Sprint("token ", n),
					fmt.Sprint(err, ", ", reuse, ", ", ended), promised)
			}
		})
	}
}

// Only the server adopts: a shell command, which may see another key file,
// says so; without an adopter the file is foreign. A row that our schema
// refuses leaves everything to the Python server. After it is mended, of two
// servers that start at once one adopts; and of two that make a new file, one.
func TestAdopt_AllOrNothing(t *testing.T) {
	t.Parallel()
	path := adoptDatabase(t, hashToken)
	dbFile(path, `UPDATE users SET display_name = x'00ff' WHERE id = 'odd'`)
	before := dbFiles(path)
	for refusal, o := range map[string]openOptions{
		"start the server once": {mustExist: true, adopt: adoptPython},
		"another program":       {},
		"users.display_name":    {adopt: adoptPython},
	} {
		_, err := openStore(path, o)
		wantText(t, "refusal", fmt.Sprint(err), refusal, path)
		want(t, refusal+": files", dbFiles(path), before)
	}
	dbFile(path, `UPDATE users SET display_name = 'mended' WHERE id = 'odd'`)
	for what, path := range map[string]string{
		"created=true":          path + ".new",
		"adopting the database": path,
	} {
		logs := strings.Join(together(2, func(int) string {
			s, err := dbOpen(path, adoptPython)
			if err == nil {
				err = errors.Join(s.healthy(time.Now()), s.close())
			}
			return s.logs.String() + fmt.Sprint("error: ", err)
		}), "")
		want(t, "starts with "+what, strings.Count(logs, what), 1)
		want(t, "starts without an error", strings.Count(logs, "error: <nil>"), 2)
	}
}

// Adopted users log in with what they typed for the Python server, and get a
// hash of our form when their password fits today's rules.
func TestAdopt_EverybodyKeepsLoggingIn(t *testing.T) {
	t.Parallel()
	file := adoptDatabase(t, hashToken)
	ts := newTestServer(t, unthrottled, func(c *config) { c.databaseURL = "sqlite:///" + file })
	for _, c := range []struct {
		id, password string
		code         string // "" for a success
		renewed      bool
	}{
		{"plain", "plain password", "", true},
		{"whole", "plain password", "", true},
		{"short", "pw", "", false},
		{"cut", "x" + strings.Repeat("é", 50), "", false},
		{"twin-upper", "of the upper one", "", true},
		{"twin-lower", "of the lower one", "", true},
		{"pair-b", "of the younger", "", true},
		{"pair-a", "of the older", "", true},
		{"umlaut", "plain password", "", true},
		{"UMLAUT", "other password", "", true},
		{"none", "plain password", "", true},
		{"blanks", "plain password", "", true},
		{"long", "plain password", "", true},
		{"odd", "plain password", "", true},
		{"open", "", "password_reset_required", false},
		{"shut", "plain password", "user_suspended", false},
	} {
		t.Run(c.id, func(t *testing.T) {
			u := must(ts.store.userByID(c.id))
			a := ts.login(u.email, "wrong "+c.password)
			ts.wantProblem("wrong password", a, 401, "invalid_credentials")
			a = ts.login(u.email, c.password)
			if c.code != "" {
				ts.wantProblem("login", a, 403, c.code)
			} else {
				me := ts.wantOK("GET /me", ts.do("GET", auth+"/me", a.text("access_token"), nil))
				want(t, "user", me.text("id"), c.id)
				ts.mustLogin(u.email, c.password)
			}
			hash := must(ts.store.userByID(c.id)).passwordHash
			want(t, "hash renewed", !bytes.HasPrefix(hash, []byte("$2b$")),
				c.renewed)
		})
	}
	first := ts.wantOK("refresh with an old token", ts.refresh(adoptToken(0)))
	ts.wantOK("GET /me", ts.do("GET", auth+"/me", first.text("access_token"), nil))
	ts.wantProblem("the old token again", ts.refresh(adoptToken(0)), 401, "invalid_token")
	ts.wantProblem("its successor", ts.refresh(first.text("refresh_token")), 401, "invalid_token")
}

// A disk that takes no writes is a 503 that says when to come back; what only
// reads goes on, and the same refresh token works afterwards.
func TestDB_UnwritableStorageOverHTTP(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	access, token := ts.mustLogin(adminEmail, adminPassword)
	eve := object{"email": "eve@example.com", "password": userPassword}
	must(ts.store.writer.exec(`PRAGMA query_only = 1`))
	for what, a := range map[string]answer{
		"register": ts.do("POST", auth+"/register", "", eve),
		"login":    ts.login(adminEmail, adminPassword),
		"refresh":  ts.refresh(token),
		"health":   ts.do("GET", "/healthz", "", nil),
	} {
		ts.wantProblem(what, a, 503, "storage_unavailable")
		want(t, what+": Retry-After", a.header.Get("Retry-After"), "5")
	}
	ts.wantOK("GET /me", ts.do("GET", auth+"/me", access, nil))
	ts.wantOK("key set", ts.do("GET", auth+"/jwks", "", nil))
	must(ts.store.writer.exec(`PRAGMA query_only = 0`))
	ts.clock.advance(time.Second) // a health check is kept for so long
	ts.wantOK("health", ts.do("GET", "/healthz", "", nil))
	ts.wantOK("refresh", ts.refresh(token))
	ts.wantOK("register", ts.do("POST", auth+"/register", "", eve))
}

// === http.go, oidc.go ===

// in is the server in the hands of a subtest, which fails there and not in
// the test around it.
func (ts *testServer) in(t testing.TB) *testServer {
	sub := *ts
	sub.TB = t
	return &sub
}

// httpEndpoint is how to ask for a route, about a user that is not there.
func httpEndpoint(r route) (method, path string) {
	method, path, one := strings.Cut(r.pattern, " ")
	if !one { // it takes any method
		method, path = "GET", r.pattern
	}
	return method, regexp.MustCompile(`{\w+}`).ReplaceAllString(path, "nobody")
}

// TestHTTP_Members: every endpoint that reads a body insists on JSON, names
// the member that is wrong, and changes nothing. A member with a question mark
// may be left out.
func TestHTTP_Members(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id, admin := ts.mustUser("ada@example.com", viewer, defaultOrg), ts.mustAdmin()
	covered := map[string]bool{}
	for _, line := range lines(`
		POST /register            {"email":"a@b","password":"p","display_name?":"n"}
		POST /login               {"email":"a@b","password":"p"}
		POST /refresh             {"refresh_token":"x.y"}
		POST /logout              {"refresh_token?":"x.y","all?":true}
		PUT /me                   {"display_name":"n"}
		POST /me/password         {"old_password":"p","new_password":"q"}
		POST /users               {"email":"a@b","password":"p","display_name?":"n","role?":"r","org_id?":"o"}
		PUT /users/registration   {"enabled":true}
		PUT /users/{id}/role      {"role":"viewer"}
		PUT /users/{id}/status    {"status":"active"}
		PUT /users/{id}/password  {"new_password":"q"}
		PUT /users/{id}/org       {"org_id":"o"}
		PUT /users/{id}/email-verified  {"email_verified":true}
		POST /groups              {"name":"n","description?":"d","org_id?":"o"}
		PUT /groups/{id}          {"name?":"n","description?":"d"}
		POST /groups/{id}/members      {"user_id":"u"}
		POST /service-tokens           {"name":"n","role?":"viewer","org_id?":"o","description?":"d"}
		POST /service-tokens/validate  {"token":"x"}`) {
		row := columns(line)
		covered[row[0]] = true
		t.Run(row[0], func(t *testing.T) {
			ts := ts.in(t)
			endpoint := strings.Replace(row[0], "{id}", id, 1)
			good := strings.ReplaceAll(row[1], "?", "")
			form := ts.ask(endpoint, admin, good, "Content-Type: text/plain")
			ts.wantProblem("text/plain", form, 415, "unsupported_media_type")
			var members object
			mustOK(json.Unmarshal([]byte(good), &members))
			for m := range members {
				for _, value := range []any{nil, 7, object{}, []string{"x"}} {
					if value == nil && strings.Contains(row[1], m+"?") {
						continue
					}
					bad := maps.Clone(members)
					bad[m] = value
					a := ts.ask(endpoint, admin, bad)
					ts.wantProblem(fmt.Sprint(m, " is ", value), a, 422, "invalid_field")
					want(t, "field", a.text("field"), m)
				}
			}
		})
	}
	a := ts.ask("GET /users", admin, nil)
	want(t, "users after all this", fmt.Sprint(a.json["total"]), "2")
	// A new endpoint that reads a body has to be added to the table.
	for _, r := range ts.srv.routeTable() {
		endpoint := strings.NewReplacer(auth, "", "/api/v1", "").Replace(r.pattern)
		reads := r.pattern[0] == 'P' && endpoint != r.pattern // others take forms
		want(t, endpoint+" is in the table", covered[endpoint], reads)
	}
}

// TestHTTP_TypeAndSize: a body is application/json in UTF-8, whatever the
// spelling, and 64 KiB long at most.
func TestHTTP_TypeAndSize(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	body := fmt.Sprintf(`{"email":%q,"password":%q,"x":"`, adminEmail, adminPassword)
	body += strings.Repeat("a", 64<<10-len(body)-2) + `"}`
	for status, kinds := range map[int]string{
		200: `
			application/json
			application/json; charset=utf-8
			Application/JSON;charset=UTF-8`,
		415: `
			application/x-www-form-urlencoded
			multipart/form-data; boundary=x
			application/json; charset=latin1
			application/jsonp
			text/json`,
	} {
		for _, kind := range lines(kinds) {
			t.Run(kind, func(t *testing.T) {
				a := ts.in(t).ask("POST /login", "", body, "Content-Type: "+kind)
				want(t, "status", a.status, status)
			})
		}
	}
	ts.wantProblem("64 KiB and a byte", ts.ask("POST /login", "", body+" "), 413, "body_too_large")
}

// httpJSON returns texts that every parser reads alike, and texts that are not
// JSON or that two parsers could read differently.
func httpJSON() (good, bad []string) {
	nested := func(n int, open, end string) string {
		return strings.Repeat(open, n) + "1" + strings.Repeat(end, n)
	}
	good = strings.Fields(`
		{} [] "" null true 1.5e3 1e999 {"a":1,"b":1} [{"a":1},{"a":1}]
		"\ud83d\ude00" "\uD83D\uDE00" "😀" "\\ud800" "\\\\ud800" "\ud83d\ude00\ud83d\ude00" "\ud7ff\ue000"`)
	good = append(good, "\t{\"a\":[1,{\"a\":2}]}\r\n ", nested(32, "[", "]"), nested(32, `{"a":`, "}"))
	bad = strings.Fields(`
		{"a":1,"a":2} {"a":1,"b":2,"a":1} {"a":1,"\u0061":2} [[{"x":{"a":1,"a":1}}]] {"":1,"":2}
		{"email":1,"EMAIL":2} {"a":1,"A":2} {"k":1,"\u212a":2} {"s":1,"ſ":2} {"é":1,"É":2}
		"\ud800" "\udc00" "\udc00\ud800" "\ud83dx" "\ud83d\n" "\ud83d\ud83d\ude00" "\\\ud800" {"\uDFFF":1}
		"a\ufffd" "�" {"x":[{"\uFFFD":1}]}
		{ [ } ] [} {"a":1] {"a"} {"a":} {1:2} {a:1} [1,] {"a":1,} [,1] {,} 'a' nul
		01 [01] +1 .5 NaN "\x" {}{} {}x {}] {},`)
	bad = append(bad, "", " ", `{"a" 1}`, "[1 2]", "1 2", "\"\n\"", "{}\x00", "// a\n{}", "\ufeff{}")
	bad = append(bad, "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "{}\xff") // not UTF-8
	bad = append(bad, nested(33, "[", "]"), nested(33, `{"a":`, "}"), nested(20_000, "[", "]"))
	return good, bad
}

// TestHTTP_StrictJSON: a body is read only if every parser reads it alike. Go
// reads text that is not Unicode as U+FFFD, so two passwords could become one.
func TestHTTP_StrictJSON(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	good, bad := httpJSON()
	for _, text := range slices.Concat(good, bad) {
		t.Run(fmt.Sprintf("%.40q", text), func(t *testing.T) {
			status, code := 422, "not_an_object"
			if slices.Contains(bad, text) {
				status, code = 400, "not_json"
			} else if strings.HasPrefix(strings.TrimSpace(text), "{") {
				code = "invalid_field" // there is no email in it
			}
			ts := ts.in(t)
			ts.wantProblem("login", ts.ask("POST /login", "", text), status, code)
		})
	}
}

// TestHTTP_JSONFaultsHaveAPlace: a fault names the byte and quotes nothing of
// the body, which may hold a password.
func TestHTTP_JSONFaultsHaveAPlace(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	for body, detail := range map[string]string{
		`{"email":"a","password":"secret",}`:           "not valid JSON, near byte 33",
		`{"email":"a" "password":"secret"}`:            "not valid JSON, near byte 13",
		`{"password":"secret\w"}`:                      "not valid JSON, near byte 12",
		`{"password":"secret"`:                         "not valid JSON, near byte 20",
		`{"email":"a","email":"secret"}`:               "a member name occurs twice, near byte 20",
		`{"email":"secret"} {}`:                        "text after the document, near byte 20",
		`{"password":"\ud800secret"}`:                  "not Unicode, or U+FFFD, near byte 26",
		strings.Repeat(" ", 1000) + `{"password":}`:    "near byte 1012",
		`{"a":[` + strings.Repeat("[", 40) + `"secret`: "nested too deep, near byte 37",
	} {
		t.Run(body, func(t *testing.T) {
			ts := ts.in(t)
			a := ts.ask("POST /login", "", body)
			ts.wantProblem("login", a, 400, "not_json")
			text, place, _ := strings.Cut(detail, "near byte ")
			got := a.text("detail")
			// Go 1.27 names the byte before, for some faults.
			before := strconv.Itoa(must(strconv.Atoi(place)) - 1)
			named := strings.HasSuffix(got, text+"near byte "+place) ||
				strings.HasSuffix(got, text+"near byte "+before)
			want(t, "the place and fault of "+got, named, true)
			want(t, "it quotes the body", strings.Contains(a.body, "secret"), false)
		})
	}
}

// FuzzHTTP_Body: the answer to any body is JSON and no failure of ours, and
// what is taken for JSON is JSON.
func FuzzHTTP_Body(f *testing.F) {
	ts := newTestServer(f, unthrottled)
	good, bad := httpJSON()
	login := `{"email":"admin@example.com","password":"correct horse"}`
	for _, text := range slices.Concat(good, bad, []string{login}) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, body string) {
		a := ts.in(t).ask("POST /login", "", body)
		code := a.text("code")
		failed := a.json == nil || a.status >= 500 || (a.status != 200 && code == "")
		read := code != "not_json" && code != "body_too_large"
		if failed || (read && !json.Valid([]byte(body))) {
			t.Errorf("login with %q = %d %s", body, a.status, a.body)
		}
	})
}

// TestHTTP_OnTheWire: what no client library sends, to a server as it is
// started by run.
func TestHTTP_OnTheWire(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.adminPassword = defaultAdminPassword })
	access, _ := ts.mustLogin(adminEmail, defaultAdminPassword)
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	go serve(t.Context(), []net.Listener{ln}, nil, ts.srv, ts.log)
	const post, login = "POST /api/v1/auth/login HTTP/1.", `{"email":"admin@example.com","password":"admin"}`
	kilobytes := func(n int) string { return "GET /healthz HTTP/1.1\r\nX: " + strings.Repeat("x", n<<10) }
	bearer := "\r\nAuthorization: Bearer " + access
	for _, tt := range []struct{ name, head, body, answer string }{
		{"a tunnel", "CONNECT h:443 HTTP/1.1", "", "404 not_found"},
		{"any resource", "OPTIONS * HTTP/1.1", "", "404 not_found"},
		{"31 KB of header", kilobytes(31), "", "200"},
		{"33 KB of header", kilobytes(33), "", "431"},
		// A proxy may have checked the other one of two tokens.
		{"two tokens", "GET /api/v1/auth/me HTTP/1.1" + bearer + bearer, "", "401 invalid_token"},
		// An old proxy speaks HTTP/1.0; the default password is not for it.
		{"HTTP/1.0", post + "0\r\nContent-Length: 48", login, "403 default_password"},
		// Of a length and chunks the chunks count (RFC 9112 section 6.3). If a
		// proxy went by one and we by the other, we would disagree where the
		// next request begins.
		{"two framings", post + "1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
			"30\r\n" + login + "\r\n0\r\n\r\n", "200"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := must(net.Dial("tcp", ln.Addr().String()))
			defer conn.Close()
			const rest = "\r\nHost: localhost\r\nContent-Type: application/json\r\n\r\n"
			must(io.WriteString(conn, tt.head+rest+tt.body))
			res := must(http.ReadResponse(bufio.NewReader(conn), nil))
			var problem struct{ Code string }
			json.NewDecoder(res.Body).Decode(&problem) // not every answer is JSON
			got := fmt.Sprint(res.StatusCode, " ", problem.Code)
			want(t, "answer", strings.TrimSpace(got), tt.answer)
		})
	}
}

// TestHTTP_PathsAreExact: a path that is not spelled as a route is unknown. A
// redirect would have clients send their credentials again. The detail says
// where to look instead.
func TestHTTP_PathsAreExact(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	for detail, paths := range map[string]string{
		"at the same path without the slash at the end": `
			/api/v1/auth/login/ /api/v1/auth/me/ /api/v1/auth/users/ /api/v1/auth/users/x/role/ /healthz/
			/docs/ /.well-known/openid-configuration/`,
		"/healthz; did you mean /healthz?":                    "/health /health.html",
		"/healthz; did you mean /api/v1/auth/jwks?":           "/jwks /jwks.json /.well-known/jwks.json",
		"/healthz; did you mean /api/v1/auth/login?":          "/login /auth/login /api/login /api/v1/log /login.php",
		"/healthz; did you mean /api/v1/auth/users?":          "/users /user /api/v1/users",
		"/healthz; did you mean /openapi.json?":               "/openapi /openapi.yaml /v1/openapi.json",
		"off until the setting oidc.clients is made":          "/oauth2/authorize /oauth2/userinfo /oauth2/logout",
		"forward_auth.cookie_domain (FORWARD_AUTH_COOKIE_DOM": "/forward-auth /oauth2/forward",
		"see http://localhost:8100/openapi.json and http://localhost:8100/healthz": `
			/ // /api /api/ /redoc /favicon.ico /.well-known /API/v1/auth/login /api/v1/auth//login/
			/api//v1/auth/login //api/v1/auth/login /api\v1\auth\login /api/v1/auth/login;x
			/api/../api/v1/auth/login /api/v1/auth/./login /api/v1/auth/login/.. /api/v1/auth/login%00
			/api/v1/auth/%2e/login /api/%2e%2e/api/v1/auth/login /api/v1/auth/%6cogin /api/v1%2fauth/login
			/api/v1/auth/login%20`,
	} {
		for _, path := range strings.Fields(paths) {
			t.Run(path, func(t *testing.T) {
				ts := ts.in(t)
				for _, method := range []string{"GET", "POST", "PUT", "DELETE", "OPTIONS"} {
					a := ts.do(method, path, "", object{"email": adminEmail, "password": adminPassword})
					ts.wantProblem(method, a, 404, "not_found")
					want(t, "Location", a.header.Get("Location"), "")
					wantText(t, "detail", a.text("detail"), detail)
				}
			})
		}
	}
}

// TestHTTP_AllowIsTrue: Allow names exactly the methods that a path does not
// refuse (RFC 9110 section 10.2.1).
func TestHTTP_AllowIsTrue(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, providerClients, forwardDomain)
	for _, r := range ts.srv.routeTable() {
		t.Run(r.pattern, func(t *testing.T) {
			ts := ts.in(t)
			method, path := httpEndpoint(r)
			brew := ts.do("BREW", path, "", nil)
			if path == forwardAuthPath { // it takes any method
				ts.wantProblem("BREW", brew, 401, "token_missing")
				return
			}
			ts.wantProblem("BREW", brew, 405, "method_not_allowed")
			var answered []string
			for _, m := range strings.Fields("DELETE GET HEAD OPTIONS PATCH POST PUT TRACE") {
				if ts.do(m, path, "", nil).status != 405 {
					answered = append(answered, m)
				}
			}
			want(t, "Allow", brew.header.Get("Allow"), strings.Join(answered, ", "))
			want(t, method+" is allowed", slices.Contains(answered, method), true)
		})
	}
}

// TestHTTP_HeadIsGetWithoutBody (RFC 9110 section 9.3.2), for errors too.
func TestHTTP_HeadIsGetWithoutBody(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, providerClients)
	admin := ts.mustAdmin()
	for _, path := range []string{
		auth + "/me", auth + "/users", auth + "/users/nobody",
		jwksPath, discoveryPath, oauthMetadataPath, openapiPath, docsPath, healthPath, "/nowhere",
		authorizePath, logoutPath, userinfoPath,
	} {
		t.Run(path, func(t *testing.T) {
			headers := func(a answer) string {
				a.header.Del("Date")
				if a.status >= 400 { // the length depends on the request id
					a.header.Del("Content-Length")
					a.header.Del("X-Request-Id")
				}
				return fmt.Sprint(a.status, a.header)
			}
			get := ts.in(t).do("GET", path, admin, nil)
			head := ts.in(t).do("HEAD", path, admin, nil)
			want(t, "status and headers", headers(head), headers(get))
			want(t, "body", head.body, "")
		})
	}
}

// TestHTTP_EveryRouteKeepsItsDoor walks all routes without a token, with a
// wrong one and with one of each role.
func TestHTTP_EveryRouteKeepsItsDoor(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, providerClients, forwardDomain)
	tokens := map[role]string{"nobody": "", "stranger": "garbage"}
	challenges := map[string]string{ // RFC 6750 section 3
		"token_missing": `Bearer`,
		"invalid_token": `Bearer error="invalid_token"`,
		"forbidden":     `Bearer error="insufficient_scope"`,
	}
	for _, r := range []role{superadmin, orgAdmin, operator, viewer, "unknown"} {
		_, tokens[r] = ts.as(r+"@example.com", r, defaultOrg)
	}
	for _, r := range ts.srv.routeTable() {
		t.Run(r.pattern, func(t *testing.T) {
			ts := ts.in(t)
			method, path := httpEndpoint(r)
			want(t, "it names a permission", r.need == denied, false)
			for who, token := range tokens {
				switch path { // would end it; take other tokens
				case auth + "/logout", userinfoPath, forwardAuthPath:
					continue
				}
				a := ts.do(method, path, token, nil)
				switch {
				case r.need != public && who == "nobody":
					ts.wantProblem("without a token", a, 401, "token_missing")
				case r.need != public && who == "stranger":
					ts.wantProblem("with a wrong token", a, 401, "invalid_token")
				case r.need != public && !allows(who, r.need):
					ts.wantProblem("as "+who, a, 403, "forbidden")
				case a.status == 401, a.status == 403, a.status >= 500:
					t.Errorf("%s is not let in: %d %s", who, a.status, a.body)
				}
				challenge := challenges[a.text("code")]
				want(t, "challenge for "+who, a.header.Get("WWW-Authenticate"),
					challenge)
				want(t, "sniffing", a.header.Get("X-Content-Type-Options"),
					"nosniff")
				policy, _, _ := strings.Cut(a.header.Get("Content-Security-Policy"), ";")
				want(t, "policy", policy, "default-src 'none'")
			}
		})
	}
}

// TestHTTP_AuthorizationHeader: an access token counts as the one bearer
// credential of a request and in no other form. H, P and S stand for the three
// segments of a good token, F for a refresh token, _ for a blank.
func TestHTTP_AuthorizationHeader(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	token, refresh := ts.mustLogin(adminEmail, adminPassword)
	parts := strings.Split(token, ".")
	fill := strings.NewReplacer("_", " ", "H", parts[0], "P", parts[1], "S", parts[2], "F", refresh)
	for detail, headers := range map[string]string{
		"": "Bearer_H.P.S bEARER_H.P.S BEARER_H.P.S Bearer___H.P.S",
		"Invalid token; send it as Authorization: Bearer ACCESS_TOKEN": `
			Basic_H.P.S H.P.S JWT_H.P.S Bearer:H.P.S "Bearer_H.P.S" F`,
		"Invalid token": `
			Bearer_H.P.S_x Bearer_H.P.S,H.P.S
			Bearer_. Bearer_.. Bearer_... Bearer_H Bearer_H.P Bearer_H..S Bearer_P.S Bearer_F
			Bearer_.H.P.S Bearer_H.P.S. Bearer_H.P.S.P Bearer_H.P.S.a.b Bearer_H.P.S,_Bearer_H.P.S
			Bearer_H.P.Sé Bearer_{"payload":"P","protected":"H","signature":"S"}
			Bearer_{"payload":"P","signatures":[{"protected":"H","signature":"S"}]}`,
	} {
		for _, header := range strings.Fields(headers) {
			t.Run(header, func(t *testing.T) {
				a := ts.in(t).ask("GET /me", "", nil, "Authorization: "+fill.Replace(header))
				want(t, "detail", a.text("detail"), detail)
				want(t, "refused as a bad token", a.text("code") == "invalid_token", detail != "")
			})
		}
	}
	a := ts.ask("GET /me?access_token="+token, "", nil)
	ts.wantProblem("token in the query", a, 401, "token_missing")
	a = ts.ask("GET /me", "", nil, "Authorization: Bearer ")
	ts.wantProblem("no token after Bearer", a, 401, "token_missing")
}

// TestHTTP_InternalErrorsStayInside: a bug costs one request. The client
// learns a request id, the log the rest.
func TestHTTP_InternalErrorsStayInside(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	for path, h := range map[string]handler{
		"/fails":  func(*exchange, principal) error { return errors.New("inner thoughts") },
		"/panics": func(*exchange, principal) error { panic("inner thoughts") },
		"/begins": func(x *exchange, _ principal) error {
			io.WriteString(x, `{"half`)
			panic("inner thoughts")
		},
	} {
		ts.srv.addRoute(&route{"GET " + path, public, ts.srv.unrouted.kind, h})
	}
	for _, path := range []string{"/fails", "/panics"} {
		t.Run(path, func(t *testing.T) {
			ts := ts.in(t)
			a := ts.do("GET", path, "", nil)
			ts.wantProblem("answer", a, 500, "internal_error")
			want(t, "the answer holds what happened",
				strings.Contains(a.body, "thoughts"), false)
			log, id := ts.logs.String(), "request_id="+a.text("request_id")
			wantText(t, "log", log, "level=INFO msg=request "+id)
			inner := regexp.MustCompile("level=ERROR .*" + id + " .*inner thoughts")
			want(t, "the log holds what happened", inner.MatchString(log), true)
		})
	}
	// An answer that has begun is cut, so that half of it does not look whole.
	res, err := noRedirects.Get(ts.url + "/begins")
	if err == nil {
		defer res.Body.Close()
		_, err = io.ReadAll(res.Body)
	}
	want(t, "half an answer is an error", err != nil, true)
	ts.mustAdmin()
}

// TestHTTP_CORS: only listed origins get an answer that a browser shows to the
// page, errors included, and no answer takes credentials. The key set and
// discovery are for everybody. A refusal is logged with what to configure, and
// one warning says it too.
func TestHTTP_CORS(t *testing.T) {
	t.Parallel()
	servers := map[string]*testServer{}
	for name, origins := range map[string][]string{
		"none": nil,
		"two":  {"https://app.example", "https://b.example"},
		"all":  {"*"},
	} {
		servers[name] = newTestServer(t, handlersJSONLog, func(c *config) { c.corsOrigins = origins })
	}
	// The server, the path, the Origin and the Access-Control-Allow-Origin.
	for _, line := range lines(`
		none  /api/v1/auth/me                    https://app.example               -
		none  /api/v1/auth/me                    x" level=ERROR msg="forged        -
		two   /api/v1/auth/me                    https://evil.example              -
		two   /api/v1/auth/me                    null                              -
		two   /api/v1/auth/me                    http://app.example                -
		two   /api/v1/auth/me                    https://app.example.evil.example  -
		two   /api/v1/auth/me                    https://app.example:8443          -
		two   /api/v1/auth/me                    https://APP.example               -
		two   /api/v1/auth/me                    https://app.example               https://app.example
		two   /api/v1/auth/login                 https://b.example                 https://b.example
		two   /nowhere                           https://b.example                 https://b.example
		all   /api/v1/auth/me                    https://evil.example              *
		none  /api/v1/auth/jwks                  https://evil.example              *
		two   /api/v1/auth/jwks                  https://app.example               *
		two   /.well-known/openid-configuration  null                              *`) {
		c := columns(line)
		server, path, origin, allowed := c[0], c[1], c[2], c[3]
		t.Run(line, func(t *testing.T) {
			ts := servers[server].in(t)
			plain := ts.do("GET", path, "", nil, "Origin: "+origin)
			preflight := ts.do("OPTIONS", path, "", nil, "Origin: "+origin,
				"Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization")
			for _, a := range []answer{plain, preflight} {
				want(t, "allowed origin",
					a.header.Get("Access-Control-Allow-Origin"), allowed)
				want(t, "credentials",
					a.header.Get("Access-Control-Allow-Credentials"), "")
				varies := server == "two" && allowed != "*" // a cache must not mix origins up
				want(t, "Vary is Origin", a.header.Get("Vary") == "Origin", varies)
			}
			if path == auth+"/me" {
				ts.wantProblem("GET", plain, 401, "token_missing")
			}
			if allowed != "" {
				want(t, "preflight", fmt.Sprint(preflight.status, preflight.body),
					"204")
				wantText(t, "headers",
					preflight.header.Get("Access-Control-Allow-Headers"), "Authorization")
				wantText(t, "methods",
					preflight.header.Get("Access-Control-Allow-Methods"), "DELETE")
				return
			}
			ts.wantProblem("preflight", preflight, 405, "method_not_allowed")
			wantText(t, "detail", preflight.text("detail"), "This path takes ", "server.cors_origins")
			reason := "origin " + origin + " is not in server.cors_origins"
			line := object{"request_id": preflight.text("request_id"), "reason": reason}
			want(t, "lines with the reason", ts.logged(line), 1)
			warnings := strings.Count(ts.logs.String(), "server.cors_origins (SERVER_CORS_ORIGINS)")
			want(t, "warnings", warnings, 1)
		})
	}
}

// TestHTTP_LogLine: a request's line has these attributes and no others. A
// made-up method is cut, so that nobody writes pages into the log.
func TestHTTP_LogLine(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id := ts.do("BREWCOFFEE", auth+"/me", "", nil).text("request_id")
	wantText(t, "log", ts.logs.String(), "level=INFO msg=request request_id="+id+" method=BREWCOFF"+
		` pattern="" status=405 duration_us=0 ip=127.0.0.1 reason=method_not_allowed`+"\n")
	ts.mustAdmin()
	wantText(t, "log", ts.logs.String(), "msg=login.ok request_id=")
}

// TestHTTP_ForwardedFor: Azure and IIS write the port of a client into
// X-Forwarded-For, others brackets. If that were not understood, all clients
// would count as one, as they do while the proxy is not trusted; one warning
// says so, not one per request.
func TestHTTP_ForwardedFor(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, handlersJSONLog, handlersProxied)
	const warning = "server.trusted_proxies (SERVER_TRUSTED_PROXIES)"
	for _, line := range lines(`
		203.0.113.5:4711                203.0.113.5
		[2001:db8::1]                   2001:db8::1
		[2001:db8::1]:443               2001:db8::1
		[::ffff:203.0.113.5]:443        203.0.113.5
		198.51.100.9, 203.0.113.5:4711  203.0.113.5
		203.0.113.5:4711, 10.0.0.2:80   203.0.113.5
		203.0.113.5, [::ffff:10.0.0.2]  203.0.113.5`) {
		c := columns(line)
		t.Run(c[0], func(t *testing.T) {
			a := ts.in(t).do("GET", "/nowhere", "", nil, "X-Forwarded-For: "+c[0])
			line := object{"request_id": a.text("request_id"), "ip": c[1]}
			want(t, "lines with the ip "+c[1], ts.logged(line), 1)
			want(t, "warnings", strings.Count(ts.logs.String(), warning), 0)
		})
	}
	direct := newTestServer(t)
	for i, header := range []string{"Via: x", "X-Forwarded-For: 203.0.113.5", "X-Forwarded-For: x"} {
		direct.do("GET", "/nowhere", "", nil, header)
		want(t, "warnings", strings.Count(direct.logs.String(), warning), min(i, 1))
	}
	wantText(t, "warning", direct.logs.String(), "peer=127.0.0.1")
}

// TestHTTP_DefaultPasswordStaysHome: the published password is refused as soon
// as anything shows that the request came through a proxy or from a page of
// another machine, until it is changed.
func TestHTTP_DefaultPasswordStaysHome(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, func(c *config) { c.adminPassword = defaultAdminPassword })
	for code, headers := range map[string]string{
		"default_password": `
			Host: auth.example.com
			Host: 10.0.0.1:8100
			Forwarded: for=127.0.0.1
			Via: 1.1 localhost
			X-Real-Ip: 127.0.0.1
			X-Client-Ip: 127.0.0.1
			True-Client-Ip: 127.0.0.1
			X-Forwarded-For: 127.0.0.1
			X-Forwarded-Anything: x
			X-Original-Anything: x
			X-Envoy-Anything: x
			Cf-Anything: x
			Origin: https://app.example
			Origin: http://localhost.example
			Origin: null
			Referer: https://app.example/`,
		"": `
			Host: localhost:8100
			Host: [::1]:8100
			Origin: http://localhost:5173
			Origin: http://[::1]:5173
			Referer: http://127.0.0.1:8100/page`,
	} {
		for _, header := range lines(headers) {
			t.Run(header, func(t *testing.T) {
				a := ts.in(t).login(adminEmail, defaultAdminPassword, header)
				want(t, "code", a.text("code"), code)
			})
		}
	}
	access, _ := ts.mustLogin(adminEmail, defaultAdminPassword)
	change := object{"old_password": defaultAdminPassword, "new_password": userPassword}
	ts.mustAsk("POST /me/password", access, change)
	ts.wantOK("login by a proxy then", ts.login(adminEmail, userPassword, "Via: 1.1 localhost"))
}

// TestOIDC_Discovery: the document is built from the issuer, whatever a
// request says.
func TestOIDC_Discovery(t *testing.T) {
	t.Parallel()
	const form = `{"claims_supported":["sub","email","role","org_id","iss","aud","iat","exp","jti","sid","groups"],` +
		`"id_token_signing_alg_values_supported":["RS256"],` +
		`"issuer":%q,` +
		`"jwks_uri":"%[2]s/api/v1/auth/jwks",` +
		`"response_types_supported":["token"],` +
		`"subject_types_supported":["public"],` +
		`"token_endpoint":"%[2]s/api/v1/auth/login",` +
		`"token_endpoint_auth_methods_supported":["none"]}`
	for issuer, base := range map[string]string{
		"http://localhost:8100":        "http://localhost:8100",
		"https://id.example.com/":      "https://id.example.com",
		"https://id.example.com/auth":  "https://id.example.com/auth",
		"https://id.example.com/auth/": "https://id.example.com/auth",
	} {
		t.Run(issuer, func(t *testing.T) {
			ts := newTestServer(t, func(c *config) { c.issuer = issuer })
			a := ts.do("GET", discoveryPath, "", nil, "Host: evil.example",
				"X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https")
			want(t, "document", a.body, fmt.Sprintf(form, issuer, base))
			want(t, "iss", claimsOf(ts.mustAdmin())["iss"], any(issuer))
		})
	}
}

// TestOIDC_DocumentsAreCacheable: public documents have an entity tag and are
// sent only to those who do not have them yet. A shared cache keeps one
// copy for all, so that copy allows every origin.
func TestOIDC_DocumentsAreCacheable(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, providerClients,
		func(c *config) { c.corsOrigins = []string{"https://app.example"} })
	for _, path := range []string{jwksPath, discoveryPath, oauthMetadataPath, openapiPath, docsPath} {
		first := ts.wantOK(path, ts.do("GET", path, "", nil))
		etag := first.header.Get("ETag")
		want(t, "ETag is quoted", regexp.MustCompile(`^"[^"]+"$`).MatchString(etag),
			true)
		kind := "application/json"
		if path == docsPath {
			kind = "text/html; charset=utf-8"
		}
		want(t, "Content-Type", first.header.Get("Content-Type"), kind)
		for match, status := range map[string]int{
			"": 200, `"x"`: 200, strings.Trim(etag, `"`): 200,
			"*": 304, "TAG": 304, "W/TAG": 304, `"x", TAG`: 304,
		} {
			t.Run(path+" "+match, func(t *testing.T) {
				tags := strings.Replace(match, "TAG", etag, 1)
				a := ts.in(t).do("GET", path, "", nil, "If-None-Match: "+tags)
				want(t, "status", a.status, status)
				want(t, "body is sent", a.body == first.body, status == 200)
				for name, value := range map[string]string{
					"ETag":                        etag,
					"Cache-Control":               "public, max-age=300",
					"Access-Control-Allow-Origin": "*",
					"Vary":                        "",
				} {
					want(t, name, a.header.Get(name), value)
				}
			})
		}
	}
}

// === handlers.go, admin.go ===

func handlersJSONLog(c *config) { c.logFormat = "json" }

// handlersProxied makes X-Forwarded-For count.
func handlersProxied(c *config) {
	here, there := netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.0.0.0/8")
	c.trustedProxies = []netip.Prefix{here, there}
}

// ask sends a request to an endpoint such as "GET /me".
func (ts *testServer) ask(endpoint, token string, body any, headers ...string) answer {
	ts.Helper()
	method, path, _ := strings.Cut(endpoint, " ")
	if !strings.HasPrefix(path, "/groups") {
		path = "/auth" + path
	}
	return ts.do(method, "/api/v1"+path, token, body, headers...)
}

// mustAsk is ask for requests that are to succeed.
func (ts *testServer) mustAsk(endpoint, token string, body any) answer {
	ts.Helper()
	return ts.wantOK(endpoint, ts.ask(endpoint, token, body))
}

// lines are the lines of a table that is written as text.
func lines(table string) (rows []string) {
	for line := range strings.Lines(strings.TrimSpace(table)) {
		rows = append(rows, strings.TrimSpace(line))
	}
	return rows
}

// cells are all cells of a table of single values.
func cells(table string) []string { return columns(strings.Join(lines(table), "  ")) }

// columns are what two or more blanks separate; "-" is nothing.
func columns(line string) []string {
	c := regexp.MustCompile("  +").Split(line, -1)
	for i := range c {
		if c[i] == "-" {
			c[i] = ""
		}
	}
	return c
}

// wantAnswers sends the requests of a table. Its columns are the token, the
// endpoint, the body, the status with the code of a problem, and parts of the
// answer's body. names are words of the table, each followed by what it stands
// for.
func (ts *testServer) wantAnswers(t *testing.T, table string, names ...string) {
	t.Helper()
	fill := strings.NewReplacer(names...)
	for _, line := range lines(table) {
		t.Run(line, func(t *testing.T) {
			ts, c := ts.in(t), columns(fill.Replace(line))
			a := ts.ask(c[1], c[0], c[2])
			status, code, refused := strings.Cut(c[3], " ")
			if refused {
				ts.wantProblem("answer", a, must(strconv.Atoi(status)), code)
			} else {
				ts.wantOK("answer", a)
				headers := fmt.Sprint(a.header["Content-Type"], a.header["Cache-Control"])
				want(t, "headers", headers, "[application/json] [no-store]")
			}
			wantText(t, "answer", a.body, c[4:]...)
		})
	}
}

// wantTokens checks the answer of login and refresh and returns its tokens.
func (ts *testServer) wantTokens(a answer) (access, refresh string) {
	ts.Helper()
	ts.wantOK("login or refresh", a)
	access, refresh = a.text("access_token"), a.text("refresh_token")
	const body = `{"access_token":%q,"refresh_token":%q,"token_type":"Bearer","expires_in":900}`
	want(ts, "tokens", a.body, fmt.Sprintf(body, access, refresh))
	return access, refresh
}

// wantEnded checks that a session has ended for both of its tokens.
func (ts *testServer) wantEnded(access, refresh string) {
	ts.Helper()
	ts.wantProblem("GET /me", ts.ask("GET /me", access, nil), 401, "invalid_token")
	ts.wantProblem("refresh", ts.refresh(refresh), 401, "invalid_token")
}

// claimsOf reads an access token without verifying it.
func claimsOf(access string) (claims object) {
	payload := must(b64.DecodeString(strings.Split(access, ".")[1]))
	mustOK(json.Unmarshal(payload, &claims))
	return claims
}

// sid is the session of an access token.
func sid(access string) string { return claimsOf(access)["sid"].(string) }

// logged counts the lines of a JSON log that have all these attributes.
func (ts *testServer) logged(event object) (n int) {
	for line := range strings.Lines(ts.logs.String()) {
		var got object
		json.Unmarshal([]byte(line), &got)
		both := maps.Clone(got)
		maps.Copy(both, event)
		if maps.Equal(got, both) {
			n++
		}
	}
	return n
}

// handlersOutcome is a status and how long to wait: "429 [900]", "200 []".
func handlersOutcome(a answer) string { return fmt.Sprint(a.status, a.header["Retry-After"]) }

// handlersTally counts outcomes: "map[200 []:1 429 [900]:9]".
func handlersTally(answers []answer) string {
	n := map[string]int{}
	for _, a := range answers {
		n[handlersOutcome(a)]++
	}
	return fmt.Sprint(n)
}

// Registration makes a viewer of the default organisation, whatever else the
// body asks for. An email is taken, and logs in, in every spelling.
func TestRegister_MakesAViewerWhateverIsAsked(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	const wishes = `"role":"superadmin","user":{"role":"superadmin"},"org_id":"acme",` +
		`"status":"suspended","id":"mine","is_admin":true,"password_hash":"$2a$04$"`
	ts.wantAnswers(t, `
		-      POST /register        {"email":"Ada@Example.com",RIGHT,WISHES}  200  VIEWER
		-      POST /register        {"email":"bob@b.example",RIGHT,"Role":"superadmin"}  200  VIEWER
		ADMIN  GET /users/mine       -                                 404 user_not_found
		ADMIN  GET /users?email=ada  -                                 200  PROFILE
		-      POST /login           {"email":"ADA@EXAMPLE.COM",RIGHT}  200
		-      POST /register        {"email":"ada@example.com",RIGHT}  409 user_exists  TAKEN: ada@e
		-      POST /register        {"email":"ADA@EXAMPLE.COM",RIGHT}  409 user_exists  TAKEN: ADA@E`,
		"ADMIN", ts.mustAdmin(), "WISHES", wishes, "VIEWER", `"role":"viewer","status":"active"}`,
		"RIGHT", `"password":"battery staple","display_name":"Ada é"`, "TAKEN", "User already exists",
		"PROFILE", `"display_name":"Ada é","role":"viewer","org_id":"default","status":"active"`)
}

// What is accepted logs in with exactly that; what is refused is named. The
// columns are the field, a word of what is wrong, and values. Characters of
// passwords count, but not above 72 bytes.
func TestRegister_ChecksWhatIsStored(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, unthrottled)
	x := strings.Repeat("x", 244)
	fill := strings.NewReplacer("X244", x, "X72", x[:72], "É32", strings.Repeat("é", 32),
		"語24", strings.Repeat("語", 24))
	for _, line := range lines(`
		email     ok       "X244@b.example"  "a+b.c-d_e'f@b.example"  "x@localhost"
		email     254      "X244x@b.example"
		email     address  ""  "@"  "@b.c"  "a@"  "ab"  "a@b@c"  "a\uff20b.c"
		email     plain    " a@b.c"  "a@b.c "  "a b@c.d"  "Bob <a@b.c>"  "\"a\"@b.c"  "a@[::1]"
		email     plain    "a@b.c\t"  "a@b.c\r\nX: y"  "a@b.c\n"  "a@b.c\x00"  "a@b.c\x7f"  "é@b.c"
		email     plain    "\u212aim@b.c"  "\u0130@b.c"  "\u0131@b.c"  "\u017fam@b.c"  "a\u200b@b.c"
		password  ok       "8 chars."  "\x20\x20\x20\x20\x20\x20\x20\x20"  "X72"  "éééééééé"  "語24"
		password  least    ""  "7 chars"  "ééééééé"  "語語語"
		password  most     "X72x"  "É32ééééx"  "語24語"
		password  NUL      "NUL at \x00 the middle"  "ends in NUL\x00"
		display_name  ok       ""  "Zoë 🦉 O'Hara <z>"  "X244xxxxxxxxxxx"
		display_name  255      "X244xxxxxxxxxxxx"  "É32É32É32É32"
		display_name  control  "a\nb"  "\x00"  "\x1b[31m"  "\u0085"  "\x7f"`) {
		c := columns(line)
		field, problem := c[0], c[1]
		for _, value := range c[2:] {
			t.Run(field+" "+value, func(t *testing.T) {
				ts := ts.in(t)
				body := map[string]string{"email": newID() + "@b.example", "password": userPassword}
				body[field] = must(strconv.Unquote(fill.Replace(value)))
				a := ts.ask("POST /register", "", body)
				if problem == "ok" {
					ts.wantOK("register", a)
					ts.mustLogin(body["email"], body["password"])
					return
				}
				ts.wantProblem("register", a, 422, "invalid_field")
				want(t, "field", a.text("field"), field)
				wantText(t, "detail", a.text("detail"), field+" must ", problem)
			})
		}
	}
}

// An admin decides who may register, for good: the decision outlives the
// process and wins over the configuration.
func TestRegister_CanBeTurnedOff(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	names := []string{"ADMIN", ts.mustAdmin(), "RIGHT", `"password":"battery staple"`}
	ts.wantAnswers(t, `
		ADMIN  GET /users/registration  -                                200  {"registration_enabled":true}
		ADMIN  PUT /users/registration  {"enabled":false}                200  {"registration_enabled":false}
		-      POST /register           {"email":"a@example.com",RIGHT}  403 registration_disabled
		ADMIN  POST /users              {"email":"a@example.com",RIGHT}  200`, names...)
	again := newTestServer(t, func(c *config) {
		c.dataDir, c.databaseURL = ts.cfg.dataDir, ts.cfg.databaseURL
	})
	again.wantAnswers(t, `
		ADMIN  GET /users/registration  -                                200  {"registration_enabled":false}
		ADMIN  PUT /users/registration  {"enabled":true}                 200  {"registration_enabled":true}
		-      POST /register           {"email":"b@example.com",RIGHT}  200`, names...)
}

// The token of a login and the user's own view of itself, to the byte.
func TestLogin_AnswersWithTokens(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id, created := ts.mustUser("Ada@example.com", operator, "acme"), ts.now().Unix()
	ts.clock.advance(time.Hour)
	now := ts.now().Unix()
	access, _ := ts.wantTokens(ts.login("ada@EXAMPLE.com", userPassword))
	fill := strings.NewReplacer("ID", id, "EMAIL", `"email":"Ada@example.com"`,
		"KEY", ts.keys.current().signing(ts.now()).kid, "ROLE", `"role":"operator","org_id":"acme"`,
		"THEN", rfc3339(created), "NOW", rfc3339(now), "IAT", fmt.Sprint(now), "EXP", fmt.Sprint(now+900))
	ts.wantAnswers(t, fill.Replace(`
		ACCESS  GET /me  -  200  {"id":"ID",EMAIL,"display_name":"",ROLE,STATUS}`), "ACCESS", access,
		"STATUS", fill.Replace(`"status":"active","created_at":"THEN","last_login_at":"NOW","email_verified":false,"groups":[]`))
	for i, form := range []string{
		`{"alg":"RS256","kid":"KEY","typ":"JWT"}`,
		`{"sub":"ID",EMAIL,ROLE,"iss":"http://localhost:8100","aud":"pico-bot",` +
			`"iat":IAT,"exp":EXP,"jti":"[a-z2-7]{26}","sid":"[0-9a-f]{64}","groups":\[\]}`,
	} {
		part := must(b64.DecodeString(strings.Split(access, ".")[i]))
		whole := regexp.MustCompile("^" + fill.Replace(form) + "$")
		want(t, fmt.Sprintf("%s is %s", part, form), whole.Match(part), true)
	}
}

// A wrong password reveals nothing: not who exists, and not who is suspended.
// Letters that look like those of an email do not log in.
func TestLogin_RefusalsAreAlike(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, unthrottled)
	ts.mustUser("kiss@example.com", viewer, defaultOrg)
	names := []string{
		"ADMIN", ts.mustAdmin(), "ASLEEP", ts.mustUser("asleep@example.com", viewer, defaultOrg),
		"EMAIL", `"email":"kiss@example.com"`, "RIGHT", `"password":"battery staple"`,
		"LONG", strings.Repeat("x", 5000),
	}
	ts.wantAnswers(t, `
		ADMIN  PUT /users/ASLEEP/status  "suspended"              200
		-      POST /login  {"email":"asleep@example.com",RIGHT}  403 user_suspended  is suspended
		-      POST /login  {EMAIL,"password":"wrong password"}   401 invalid_credentials  Invalid email or
		-      POST /login  {EMAIL,"password":"\u0000"}           422 invalid_field  "password"
		-      POST /login  {EMAIL,"password":"battery staple\u0000x"}  422 invalid_field  "password"
		-      POST /login  {EMAIL,RIGHT}                         200`, names...)
	outcome := func(a answer) string {
		h := a.header.Clone()
		h.Del("Date")
		h.Del("X-Request-Id")
		return fmt.Sprint(a.status, h, strings.ReplaceAll(a.body, a.text("request_id"), ""))
	}
	wrong := outcome(ts.login("kiss@example.com", "wrong password"))
	wantText(t, "answer to a wrong password", wrong, "Www-Authenticate:[Bearer]")
	fill := strings.NewReplacer(names...)
	for _, body := range cells(`
		{"email":"asleep@example.com","password":"wrong password"}  {"email":"nobody@example.com",RIGHT}
		{"email":"","password":""}  {"email":"%",RIGHT}  {"email":"' OR 1=1 --",RIGHT}
		{"email":"LONG",RIGHT}  {"email":"not an email",RIGHT}  {EMAIL,"password":"LONG"}
		{"email":"kiss@example.com ",RIGHT}  {"email":"kiss@example.com\u0000",RIGHT}
		{EMAIL,"password":""}  {EMAIL,"password":"battery staple "}  {EMAIL,"password":"BATTERY STAPLE"}
		{"email":"k\u0130ss@example.com",RIGHT}  {"email":"k\u0131ss@example.com",RIGHT}
		{"email":"ki\u017fs@example.com",RIGHT}  {"email":"ki\u00dfs@example.com",RIGHT}
		{"email":"kiss\u200b@example.com",RIGHT}  {"email":"\u212aiss@example.com",RIGHT}
		{"email":"kiss\uff20example.com",RIGHT}  {"email":"kiss@ex\u0430mple.com",RIGHT}`) {
		t.Run(body, func(t *testing.T) {
			a := ts.in(t).ask("POST /login", "", fill.Replace(body))
			want(t, "answer", outcome(a), wrong)
		})
	}
}

// Hashes of the Python server count as it made them, on 72 bytes. A login, one
// of several at once, renews such a hash and one of another cost, but not for a
// password that today's rules refuse. Whatever else an adopted row holds costs
// no more than a wrong password: cost 31 would take a day. The columns are the
// hash, its password, what is typed, the status, how the hash begins then.
func TestLogin_StoredHashes(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, unthrottled, func(c *config) { c.bcryptCost = 5 })
	fill := strings.NewReplacer("P72", strings.Repeat("p", 72), "É50", strings.Repeat("é", 50))
	for _, line := range lines(`
		$2a$05   secret words  secret words  200  $2a$05
		$2a$04   secret words  secret words  200  $2a$05
		$2a$06   secret words  secret words  200  $2a$05
		$2b$05   secret words  secret words  200  $2a$05
		$2a$04   secret words  secret word   401  $2a$04
		$2a$04   P72           P72tail       401  $2a$04
		$2b$04   P72           P72tail       200  $2b$04
		$2b$04   xÉ50          xÉ50          200  $2b$04
		$2b$04   aP72          bP72          401  $2b$04
		$2b$04   short         short         200  $2b$04
		$2b$04   -             -             403  $2b$04
		!        raw           x             401  !
		$2b$31$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  raw  x  401  $2b$31`) {
		t.Run(line, func(t *testing.T) {
			ts, email := ts.in(t), newID()+"@example.com"
			id := ts.mustUser(email, viewer, defaultOrg)
			c := columns(fill.Replace(line))
			hash, password := []byte(c[0]), c[1]
			if password != "raw" {
				password = password[:min(len(password), 72)]
				cost := must(strconv.Atoi(c[0][4:]))
				hash = must(bcrypt.GenerateFromPassword([]byte(password), cost))
				copy(hash, c[0]) // the Python server writes $2b$
			}
			dbFile(ts.cfg.databasePath(), `UPDATE users SET password_hash = $1 WHERE id = $2`, hash, id)
			answers := together(4, func(int) answer { return ts.login(email, c[2]) })
			want(t, "four logins at once", handlersTally(answers),
				"map["+c[3]+" []:4]")
			stored := must(ts.store.userByID(id)).passwordHash
			want(t, "beginning of the stored hash", string(stored[:len(c[4])]),
				c[4])
		})
	}
}

// A new password, by its owner or by an admin, ends every session: anybody
// who knew the old one is out. Nobody chooses the published default password,
// and no admin sets its own without the old one, or a stolen access token
// would become the account.
func TestLogin_NewPasswordEndsEverySession(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id, access := ts.as("ada@example.com", viewer, defaultOrg)
	_, refresh := ts.mustLogin("ada@example.com", userPassword)
	admin := ts.mustAdmin()
	names := []string{
		"ADMIN", admin, "SELF", claimsOf(admin)["sub"].(string), "ME", access, "ID", id,
		"EVE", `"email":"eve@example.com"`, "OLD", `"old_password":"battery staple"`,
		"NEW", `"new_password":"a new password"`, "PUBLIC", "must not be the published default",
	}
	ts.wantAnswers(t, `
		-      POST /register            {EVE,"password":"admin"}      422 invalid_field  password PUBLIC
		ADMIN  POST /users               {EVE,"password":"admin"}      422 invalid_field  password PUBLIC
		ADMIN  PUT /users/ID/password    {"new_password":"admin"}      422 invalid_field  new_password PUBLIC
		ADMIN  PUT /users/SELF/password  {NEW}                         403 forbidden  /me/password
		ME     POST /me/password         {OLD,"new_password":"admin"}  422 invalid_field  new_password PUBLIC
		ME     POST /me/password         {OLD,"new_password":"short"}  422 invalid_field  new_password must
		ME     POST /me/password         {"old_password":"\u0000",NEW}  422 invalid_field  old_password must
		ME     POST /me/password         {"old_password":"wrong",NEW}  401 invalid_credentials
		ME     POST /me/password         {OLD,NEW}                     200  {"message":"Password changed"}`,
		names...)
	ts.wantEnded(access, refresh)
	access, refresh = ts.mustLogin("ada@example.com", "a new password")
	ts.wantAnswers(t, `
		-      POST /login  {"email":"ada@example.com","password":"battery staple"}  401 invalid_credentials
		ADMIN  PUT /users/ID/password  {"new_password":"battery staple"}  200  {"message":"Password reset"}`,
		names...)
	ts.wantEnded(access, refresh)
	ts.mustLogin("ada@example.com", userPassword)
	ts.mustAdmin()
}

// Whoever needs a hash waits for it under its address, so that an address that
// asks without pause, rightly or wrongly, does not keep others waiting.
func TestLogin_HashesWaitByAddress(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, handlersProxied)
	fill := strings.NewReplacer("ADMIN", ts.mustAdmin(), "ID", ts.mustUser("a@b.c", viewer, defaultOrg))
	h, running, free := ts.srv.hasher, make(chan bool), make(chan bool)
	busy := func() {
		running <- true
		<-free
	}
	for range h.threads {
		go h.do(context.Background(), "busy", busy)
		<-running
	}
	var requests sync.WaitGroup
	for i, line := range lines(`
		-      POST /login             {"email":"a@b.c","password":"wrong"}
		-      POST /register          {"email":"b@b.c","password":"battery staple"}
		ADMIN  PUT /users/ID/password  {"new_password":"a new password"}
		ADMIN  POST /me/password       {"old_password":"correct horse","new_password":"a new password"}`) {
		c := columns(fill.Replace(line))
		requests.Go(func() { ts.ask(c[1], c[0], c[2], fmt.Sprint("X-Forwarded-For: 192.0.2.", i)) })
	}
	var clients []string
	for jobs := 0; jobs < h.threads+4; {
		clients, jobs = nil, 0
		h.mu.Lock()
		for name, c := range h.clients {
			clients = append(clients, name)
			jobs += c.jobs
		}
		h.mu.Unlock()
	}
	close(free)
	requests.Wait()
	slices.Sort(clients)
	want(t, "clients", fmt.Sprint(clients),
		"[192.0.2.0 192.0.2.1 192.0.2.2 192.0.2.3 busy]")
}

// A refresh takes both forms of the body, and its access token says what the
// user is by then. Suspended and deleted users do not come back.
func TestRefresh_FollowsTheUser(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id := ts.mustUser("ada@example.com", viewer, defaultOrg)
	access, refresh := ts.mustLogin("ada@example.com", userPassword)
	admin := ts.mustAdmin()
	ts.mustAsk("PUT /users/"+id+"/role", admin, `"operator"`)
	ts.mustAsk("PUT /users/"+id+"/org", admin, `"acme"`)
	for _, form := range []string{`{"refresh_token":%q,"role":"superadmin"}`, ` %q `} {
		before := claimsOf(access)
		access, refresh = ts.wantTokens(ts.ask("POST /refresh", "", fmt.Sprintf(form, refresh)))
		after := claimsOf(access)
		want(t, "jti stays", after["jti"] == before["jti"], false)
		session := fmt.Sprint("sid:", before["sid"])
		wantText(t, "claims", fmt.Sprint(after), "role:operator", "org_id:acme",
			"sub:"+id, session)
	}
	ts.mustAsk("PUT /users/"+id+"/status", admin, `"suspended"`)
	ts.mustAsk("PUT /users/"+id+"/status", admin, `"active"`)
	ts.wantEnded(access, refresh)
	access, refresh = ts.mustLogin("ada@example.com", userPassword)
	ts.mustAsk("DELETE /users/"+id, admin, nil)
	ts.wantEnded(access, refresh)
}

// A session ends after 7 days without use, and 30 days after its login.
func TestRefresh_ExpiresTwice(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	const day = 24 * time.Hour
	_, idle := ts.mustLogin(adminEmail, adminPassword)
	_, used := ts.mustLogin(adminEmail, adminPassword)
	ts.clock.advance(7*day - time.Second)
	_, used = ts.wantTokens(ts.refresh(used))
	ts.clock.advance(time.Second)
	ts.wantProblem("after 7 idle days", ts.refresh(idle), 401, "token_expired")
	_, used = ts.wantTokens(ts.refresh(used))
	for range 3 { // each use moves the idle end: 28 days pass, less 3 seconds
		ts.clock.advance(7*day - time.Second)
		_, used = ts.wantTokens(ts.refresh(used))
	}
	ts.clock.advance(2*day + 2*time.Second)
	access, used := ts.wantTokens(ts.refresh(used)) // a second before 30 days
	ts.mustAsk("GET /me", access, nil)
	ts.clock.advance(time.Second)
	ts.wantProblem("GET /me then", ts.ask("GET /me", access, nil), 401, "token_expired")
	ts.wantProblem("refresh after 30 days", ts.refresh(used), 401, "token_expired")
}

// A token that this server did not make is invalid, and no reuse of a real
// one, however much they have in common. Verifiers and the log see the sid of
// access tokens, so no refresh token can be made of it.
func TestRefresh_RefusesOddTokens(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	access, refresh := ts.mustLogin(adminEmail, adminPassword)
	want(t, "the sid is in the refresh token",
		strings.Contains(refresh, sid(access)), false)
	handle, secret, _ := strings.Cut(refresh, ".")
	names := []string{
		"TOKEN", refresh, "HANDLE", handle, "SECRET", secret, "ACCESS", access,
		"UPPER", strings.ToUpper(refresh), "MADE", newRefreshToken(sid(access)),
	}
	fill := strings.NewReplacer(names...)
	for _, odd := range cells(`
		" "  "."  "\u0000"  "' OR 1=1 --"  "HANDLE"  "HANDLE."  ".SECRET"  "x.SECRET"  "HANDLE\u0000.SECRET"
		"HANDLE.SECRETA"  " TOKEN"  "TOKEN="  "TOKEN\n"  "UPPER"  "ACCESS"  "MADE"`) {
		t.Run(odd, func(t *testing.T) {
			ts, token := ts.in(t), fill.Replace(odd)
			a := ts.ask("POST /refresh", "", token)
			ts.wantProblem("refresh", a, 401, "invalid_token")
			ts.mustAsk("POST /logout", "", `{"refresh_token":`+token+`}`)
		})
	}
	ts.wantAnswers(t, `
		-  POST /refresh  ""                      401 invalid_token
		-  GET /refresh?refresh_token=TOKEN   -   405 method_not_allowed
		-  POST /refresh?refresh_token=TOKEN  {}  422 invalid_field  "refresh_token"
		-  POST /refresh  "TOKEN"                 200`, names...)
}

// A token that is used again, even at the same time, ends its session, because
// thief and owner cannot be told apart. Other sessions go on. Within its grace
// any number of uses is one rotation, and each gets the same successor.
func TestRefresh_ReuseRevokes(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, handlersJSONLog)
	other, _ := ts.mustLogin(adminEmail, adminPassword)
	access, token := ts.mustLogin(adminEmail, adminPassword)
	answers := together(32, func(int) answer { return ts.refresh(token) })
	want(t, "32 uses at once", handlersTally(answers), "map[200 []:1 401 []:31]")
	won := slices.IndexFunc(answers, func(a answer) bool { return a.status == 200 })
	ts.wantEnded(answers[won].text("access_token"), answers[won].text("refresh_token"))
	ts.wantEnded(access, token)
	want(t, "reuses in the log",
		ts.logged(object{"msg": "refresh.reuse", "session": sid(access)}), 1)
	ts.mustAsk("GET /me", other, nil)
	ts = newTestServer(t, handlersJSONLog, func(c *config) { c.reuseGrace = 10 * time.Second })
	_, token = ts.mustLogin(adminEmail, adminPassword)
	answers = together(100, func(int) answer { return ts.refresh(token) })
	ts.clock.advance(9 * time.Second)
	access, successor := ts.wantTokens(ts.refresh(token))
	for _, a := range answers {
		want(t, "successor", a.text("refresh_token"), successor)
	}
	want(t, "rotations in the log",
		ts.logged(object{"msg": "refresh.ok", "session": sid(access)}), 1)
	ts.clock.advance(time.Second)
	ts.wantProblem("use after the grace", ts.refresh(token), 401, "invalid_token")
	ts.wantEnded(access, successor)
}

// After a change is acknowledged, nothing works that a refresh at the same
// time has made. PICO_AUTH_ROUNDS says how many times that is tried.
func TestRefresh_RacesMintNothing(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, unthrottled)
	admin, rounds := ts.mustAdmin(), 200
	fmt.Sscan(os.Getenv("PICO_AUTH_ROUNDS"), &rounds)
	group, staying := ts.group(admin, "team", defaultOrg), regexp.MustCompile(`/role|/org|/groups`)
	minted := 0
	for _, line := range lines(`
		USER   POST /logout             {}
		USER   POST /logout             {"all":true}
		-      POST /logout             {"refresh_token":"REFRESH"}
		USER   DELETE /me/sessions/SID  -
		USER   POST /me/password        {"old_password":"battery staple","new_password":"a new password"}
		ADMIN  PUT /users/ID/password   {"new_password":"a new password"}
		ADMIN  PUT /users/ID/status     {"status":"suspended"}
		ADMIN  PUT /users/ID/role       "viewer"
		ADMIN  DELETE /groups/GROUP/members/ID  -
		ADMIN  PUT /users/ID/org        "acme"
		ADMIN  DELETE /users/ID         -`) {
		t.Run(line, func(t *testing.T) {
			ts := ts.in(t)
			for range (rounds + 10) / 11 {
				email := newID() + "@example.com"
				id := ts.mustUser(email, orgAdmin, defaultOrg)
				ts.join(admin, group, id)
				access, refresh := ts.mustLogin(email, userPassword)
				fill := strings.NewReplacer("USER", access, "ADMIN", admin, "REFRESH", refresh,
					"SID", sid(access), "/ID", "/"+id, "GROUP", group)
				c, change := columns(fill.Replace(line)), make(chan answer, 1)
				go func() { change <- ts.ask(c[1], c[0], c[2]) }()
				for len(change) == 0 {
					a := ts.refresh(refresh)
					if a.status != 200 {
						ts.wantProblem("a refresh that lost the race", a, 401, "invalid_token")
						break
					}
					access, refresh = a.text("access_token"), a.text("refresh_token")
					minted++
				}
				ts.wantOK("the change", <-change)
				if !staying.MatchString(line) {
					ts.wantEnded(access, refresh)
					continue
				}
				// The others leave the session, but take a right or the group.
				access, _ = ts.wantTokens(ts.refresh(refresh))
				if strings.Contains(line, "/role") {
					ts.wantProblem("GET /users", ts.ask("GET /users", access, nil), 403, "forbidden")
					want(t, "role", claimsOf(access)["role"], any(viewer))
				} else {
					want(t, "groups", groupsIn(access), "[]")
				}
			}
		})
	}
	if minted < rounds/10 {
		t.Errorf("only %d refreshes in %d rounds: this was no race", minted, rounds)
	}
}

// A logout ends one session, by any of its tokens, and again without harm. An
// expired access token still says which session it was made for. The columns
// are the token, the body, and what happens before: refreshes and hours.
func TestLogout_EndsOneSession(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	for _, line := range lines(`
		ACCESS  -                            0  0h
		ACCESS  {"all":false}                0  0h
		ACCESS  -                            0  1h
		-       {"refresh_token":"REFRESH"}  0  0h
		-       {"refresh_token":"REFRESH"}  2  0h`) { // a race, perhaps
		t.Run(line, func(t *testing.T) {
			ts := ts.in(t)
			access, refresh := ts.mustLogin("ada@example.com", userPassword)
			c := columns(strings.NewReplacer("ACCESS", access, "REFRESH", refresh).Replace(line))
			for range must(strconv.Atoi(c[2])) {
				access, refresh = ts.wantTokens(ts.refresh(refresh))
			}
			ts.clock.advance(must(time.ParseDuration(c[3])))
			other, _ := ts.mustLogin("ada@example.com", userPassword)
			for range 2 {
				a := ts.mustAsk("POST /logout", c[0], c[1])
				want(t, "answer", a.body, `{"message":"Logged out"}`)
			}
			want(t, "GET /me", ts.ask("GET /me", access, nil).status, 401)
			ts.wantProblem("refresh", ts.refresh(refresh), 401, "invalid_token")
			ts.mustAsk("GET /me", other, nil)
		})
	}
}

// {"all": true} ends every session of the bearer and nobody else's. It needs a
// valid access token: an expired one, from a log perhaps, is not enough.
func TestLogout_EndsAllSessions(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	expired, older := ts.mustLogin("ada@example.com", userPassword)
	ts.clock.advance(15 * time.Minute)
	access, refresh := ts.mustLogin("ada@example.com", userPassword)
	_, bob := ts.as("bob@example.com", viewer, defaultOrg)
	ts.wantAnswers(t, `
		-        POST /logout      -             422 invalid_field  {\"all\": true} with that
		-        POST /logout      {BOTH}        422 invalid_field  "refresh_token"
		EXPIRED  POST /logout      {BOTH}        401 token_expired
		garbage  POST /logout      {BOTH}        401 invalid_token
		garbage  POST /logout      -             200  {"message":"Logged out"}
		ACCESS   GET /me/sessions  -             200  "total":2
		ACCESS   POST /logout      {BOTH}        200  {"message":"Logged out"}`,
		"EXPIRED", expired, "ACCESS", access, "BOTH", `"all":true,"refresh_token":"`+refresh+`"`)
	ts.wantEnded(access, refresh)
	ts.wantProblem("refresh in the older session", ts.refresh(older), 401, "invalid_token")
	ts.mustAsk("GET /me", bob, nil)
}

// Users see where they are logged in, without control characters, and can end
// it. Somebody else's session does not exist for them.
func TestSessions_BelongToTheirUser(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, handlersProxied)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	_, bob := ts.as("bob@example.com", viewer, defaultOrg)
	start := ts.now()
	old := ts.login("ada@example.com", userPassword, "User-Agent: phone", "X-Forwarded-For: 192.0.2.7")
	ts.clock.advance(time.Minute)
	access, _ := ts.wantTokens(ts.login("ada@example.com", userPassword,
		"User-Agent: lap\u009btop", "X-Forwarded-For: 2001:db8::7"))
	ts.clock.advance(time.Minute)
	body := object{"refresh_token": old.text("refresh_token")}
	oldAccess, refresh := ts.wantTokens(ts.ask("POST /refresh", "", body, "User-Agent: tablet"))
	session := func(access string, created, used int, ip, agent string, current bool) string {
		at := func(minutes int) string { return rfc3339(start.Unix() + int64(minutes)*60) }
		return fmt.Sprintf(`{"id":%q,"created_at":%q,"last_used_at":%q,"expires_at":%q,`+
			`"ip":%q,"user_agent":%q,"current":%t}`,
			sid(access), at(created), at(used), at(used+7*24*60), ip, agent, current)
	}
	ts.wantAnswers(t, `
		ADA  GET /me/sessions         -  200  {"sessions":[LAPTOP,TABLET],"total":2}
		BOB  DELETE /me/sessions/OLD  -  404 session_not_found
		ADA  DELETE /me/sessions/OLD  -  200  {"message":"Session revoked"}
		ADA  DELETE /me/sessions/OLD  -  404 session_not_found
		ADA  GET /me/sessions         -  200  {"sessions":[LAPTOP],"total":1}`,
		"ADA", access, "BOB", bob, "OLD", sid(oldAccess),
		"LAPTOP", session(access, 1, 1, "2001:db8::7", "laptop", true),
		"TABLET", session(oldAccess, 0, 2, "127.0.0.1", "tablet", false))
	ts.wantEnded(oldAccess, refresh)
}

// Everybody changes the own display name, by the rules of registration, and
// nothing else of the account. A session that has ended or whose user was
// suspended when the change has its turn changes nothing.
func TestMe_OwnName(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	id, token := ts.as("ada@example.com", viewer, defaultOrg)
	ts.clock.advance(time.Minute)
	named := func(name string) string { return string(must(json.Marshal(object{"display_name": name}))) }
	for name, bad := range map[string]bool{
		"Ada ♥":                  false,
		strings.Repeat("é", 127): false,
		"":                       false,
		strings.Repeat("é", 128): true,
		"a\nb":                   true,
		"a\u009bb":               true,
	} {
		before := ts.mustAsk("GET /me", token, nil).text("display_name")
		a := ts.ask("PUT /me", token, named(name))
		if bad {
			ts.wantProblem(name, a, 422, "invalid_field")
			want(t, "field", a.text("field"), "display_name")
			name = before
		}
		want(t, "name afterwards", ts.mustAsk("GET /me", token, nil).text("display_name"), name)
	}
	a := ts.mustAsk("PUT /me", token, `{"display_name":"Ada","role":"superadmin","email":"x@y","status":"s"}`)
	me := ts.mustAsk("GET /me", token, nil)
	want(t, "answer", a.body, me.body)
	want(t, "role", me.text("role"), viewer)
	for _, statement := range []string{
		`UPDATE users SET status = 'suspended' WHERE id = $1`,
		`DELETE FROM sessions WHERE user_id = $1`,
	} {
		end := func(q *queries) error {
			_, err := q.exec(statement, id)
			return err
		}
		ts.wantProblem(statement, ts.overtake(end, "PUT /me", token, named("late")), 401, "invalid_token")
		want(t, "name", must(ts.store.userByID(id)).displayName, "Ada")
		mustOK(ts.store.change(context.Background(), func(q *queries) error {
			_, err := q.exec(`UPDATE users SET status = 'active' WHERE id = $1`, id)
			return err
		}))
	}
}

// The life of a user in the hands of an admin, to the byte.
func TestUsers_AreAdministered(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	a := ts.ask("POST /users", admin, `{"email":"ada@example.com","password":"battery staple",`+
		`"display_name":"Ada","role":"operator","org_id":"acme"}`)
	fill := strings.NewReplacer("ID", a.text("id"), "EMAIL", `"email":"ada@example.com"`,
		"NAME", `"email":"ada@example.com","display_name":"Ada"`, "NOW", rfc3339(ts.now().Unix())).Replace
	want(t, "answer", a.body,
		fill(`{"id":"ID",EMAIL,"role":"operator","status":"active"}`))
	ts.wantAnswers(t, fill(`
		ADMIN  POST /users            TWIN                    409 user_exists
		ADMIN  GET /users/ID          -                       200  {"id":"ID",NAME,CREATED}
		ADMIN  PUT /users/ID/role     {"role":"viewer"}       200  {"id":"ID",EMAIL,"role":"viewer"}
		ADMIN  PUT /users/ID/role     "superadmin"            200  {"id":"ID",EMAIL,"role":"superadmin"}
		ADMIN  PUT /users/ID/org      {"org_id":"beta"}       200  {"id":"ID",EMAIL,"org_id":"beta"}
		ADMIN  PUT /users/ID/email-verified  {"email_verified":false}  200  {"id":"ID",EMAIL,"email_verified":false}
		ADMIN  PUT /users/ID/status   {"status":"suspended"}  200  {"id":"ID",EMAIL,"status":"suspended"}
		ADMIN  GET /users?status=suspended  -                 200  {"users":[{"id":"ID",LISTED}],"total":1}
		ADMIN  PUT /users/ID/status   {"status":"active"}     200  {"id":"ID",EMAIL,"status":"active"}
		ADMIN  DELETE /users/ID       -                       200  {"message":"User deleted"}
		ADMIN  GET /users/ID          -                       404 user_not_found  User not found: ID
		-      POST /register         TWIN                    200`),
		"ADMIN", admin, "TWIN", `{"email":"ADA@example.com","password":"battery staple"}`,
		"LISTED", fill(`NAME,"role":"superadmin","org_id":"beta","status":"suspended"`), "CREATED", fill(
			`"role":"operator","org_id":"acme","status":"active","created_at":"NOW",`+
				`"last_login_at":null,"email_verified":true,"groups":[]`))
}

// handlersChanges are the changes of a user that every admin can ask for.
const handlersChanges = `
	PUT /users/ID/role      "operator"
	PUT /users/ID/status    {"status":"suspended"}
	DELETE /users/ID        -
	PUT /users/ID/password  {"new_password":"taken over"}`

// Ids of nobody, roles of no kind, and values out of range are refused.
func TestUsers_OddInput(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ada := ts.mustUser("ada@example.com", viewer, defaultOrg)
	names := []string{
		"ADMIN", ts.mustAdmin(), "ADA", ada, "UPPER", strings.ToUpper(ada),
		"NEW", `"email":"new@example.com","password":"battery staple"`,
		"X101", strings.Repeat("x", 101), "X9999", strings.Repeat("x", 9999),
	}
	calls := append(lines(handlersChanges), "GET /users/ID  -", `PUT /users/ID/org  "beta"`)
	for id := range strings.FieldsSeq("nobody ADA%00 ADA%20 UPPER X9999 %00 %20 ..%00 %25 %27") {
		for _, call := range calls {
			call = strings.ReplaceAll(call, "ID", id)
			ts.wantAnswers(t, "ADMIN  "+call+"  404 user_not_found", names...)
		}
	}
	ts.wantAnswers(t, `
		ADMIN  PUT /users/ADA/role    {"role":"Superadmin"}  422 invalid_role  "Invalid role: Superadmin"
		ADMIN  PUT /users/ADA/role    "viewer\u0000"         422 invalid_role  "Invalid role: viewer\u0000"
		ADMIN  POST /users            {NEW,"role":""}        422 invalid_role  "Invalid role: "
		ADMIN  POST /users            {NEW,"role":"root"}    422 invalid_role  "Invalid role: root"
		ADMIN  PUT /users/ADA/status  {"status":"Active"}    422 invalid_field  "field":"status"
		ADMIN  PUT /users/ADA/org     {"org_id":""}          422 invalid_field  "field":"org_id"
		ADMIN  PUT /users/ADA/org     {"org_id":"a\nb"}      422 invalid_field  "field":"org_id"
		ADMIN  PUT /users/ADA/org     {"org_id":"X101"}      422 invalid_field  "field":"org_id"
		ADMIN  PUT /users/ADA/org     {"org_id":"a/b"}       422 invalid_field  "field":"org_id"
		ADMIN  POST /users            {NEW,"org_id":"a,b"}   422 invalid_field  "field":"org_id"`, names...)
}

// An org_admin sees and changes its own organisation only, no superadmin, and
// grants nothing that it does not have.
func TestUsers_OrgAdminStaysInItsOrganisation(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	self, token := ts.as("org@acme.example", orgAdmin, "acme")
	boss := ts.mustUser("boss@acme.example", superadmin, "acme")
	other := ts.mustUser("other@beta.example", viewer, "beta")
	names := []string{
		"ORG", token, "SELF", self, "ADMIN", admin, "OTHER", other,
		"MINE", ts.mustUser("mine@acme.example", viewer, "acme"),
		"NEW", `"email":"new@acme.example","password":"battery staple"`,
	}
	before := ts.ask("GET /users", admin, nil).body
	for _, call := range lines(handlersChanges) {
		ts.wantAnswers(t, "ORG  "+call+"  404 user_not_found", append(names, "ID", other)...)
		ts.wantAnswers(t, "ORG  "+call+"  403 forbidden", append(names, "ID", boss)...)
	}
	ts.wantAnswers(t, `
		ORG  GET /users/OTHER         -                          404 user_not_found
		ORG  PUT /users/MINE/role     "superadmin"               403 forbidden
		ORG  PUT /users/SELF/role     "superadmin"               403 forbidden
		ORG  PUT /users/MINE/org      {"org_id":"beta"}          403 forbidden
		ORG  PUT /users/SELF/org      {"org_id":"beta"}          403 forbidden
		ORG  PUT /users/SELF/password  {"new_password":"taken over"}  403 forbidden  /me/password
		ORG  POST /users              {NEW,"role":"superadmin"}  403 forbidden
		ORG  POST /users              {NEW,"org_id":"beta"}      403 forbidden`, names...)
	want(t, "users after refusals", ts.ask("GET /users", admin, nil).body, before)
	for _, email := range []string{"other@beta.example", "boss@acme.example", "org@acme.example"} {
		ts.mustLogin(email, userPassword)
	}
	list := ts.ask("GET /users", token, nil).body
	wantText(t, "users of acme", list, `"total":3}`)
	want(t, "beta is in the list", strings.Contains(list, "beta"), false)
	// What it creates is its own. It may step down, and is no admin at once.
	ts.wantAnswers(t, `
		ORG    POST /users               {NEW,"role":"org_admin"}       200
		ADMIN  GET /users?email=new      -               200  "role":"org_admin","org_id":"acme"
		ORG    GET /users?email=other   -                               200  {"users":[],"total":0}
		ORG    PUT /users/MINE/role      "operator"                     200
		ORG    PUT /users/MINE/status    {"status":"suspended"}         200
		ORG    PUT /users/MINE/password  {"new_password":"taken over"}  200
		ORG    DELETE /users/MINE        -                              200
		ORG    PUT /users/SELF/role      "viewer"                       200
		ORG    GET /users                -                              403 forbidden`, names...)
}

// overtake makes the writer busy until the request's change waits behind it,
// and applies another change first.
func (ts *testServer) overtake(change func(*queries) error, endpoint, token, body string) answer {
	busy, free, done := make(chan bool, 10), make(chan bool), make(chan answer, 1)
	go ts.store.change(context.Background(), func(q *queries) error {
		busy <- true
		<-free
		return change(q)
	})
	<-busy
	go func() { done <- ts.ask(endpoint, token, body) }()
	for len(done) == 0 && len(ts.store.writer.queue) == 0 {
		runtime.Gosched()
	}
	close(free)
	return <-done
}

// Every change asks for rights when its turn comes: an admin who is demoted
// (to the role in the first column) while it waits changes nothing, and nobody
// registers once that is turned off.
func TestUsers_WaitingChangesAskAgain(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	for _, line := range lines(`
		viewer     POST /users              {"email":"EMAIL.new","password":"battery staple"}
		viewer     PUT /users/registration  {"enabled":false}
		org_admin  PUT /users/registration  {"enabled":false}
		viewer     PUT /users/ID/role       "operator"
		viewer     PUT /users/ID/status     {"status":"suspended"}
		viewer     PUT /users/ID/password   {"new_password":"taken over"}
		viewer     PUT /users/ID/org        {"org_id":"acme"}
		org_admin  PUT /users/ID/org        {"org_id":"acme"}
		viewer     DELETE /users/ID         -
		viewer     POST /groups                     {"name":"new"}
		viewer     PUT /groups/GROUP                {"name":"new"}
		viewer     DELETE /groups/GROUP             -
		viewer     POST /groups/GROUP/members       "BOSS"
		viewer     DELETE /groups/GROUP/members/ID  -
		viewer     POST /service-tokens             {"name":"new"}
		viewer     DELETE /service-tokens/bot       -`) {
		t.Run(line, func(t *testing.T) {
			ts, email := ts.in(t), newID()+"@example.com"
			id := ts.mustUser(email, viewer, defaultOrg)
			actor, token := ts.as("actor-"+email, superadmin, defaultOrg)
			group := ts.group(admin, email, defaultOrg)
			ts.join(admin, group, id)
			state := func() string {
				text := ""
				for path := range strings.FieldsSeq("/users?email=" + email + " /groups/" + group +
					" /users/registration /groups /service-tokens") {
					text += ts.mustAsk("GET "+path, admin, nil).body
				}
				return text
			}
			before := state()
			fill := strings.NewReplacer("ID", id, "EMAIL", email, "GROUP", group, "BOSS", actor)
			c := columns(fill.Replace(line))
			demote := func(q *queries) error {
				_, err := q.exec(`UPDATE users SET role = $1 WHERE id = $2`, c[0], actor)
				return err
			}
			a := ts.overtake(demote, c[1], token, c[2])
			ts.wantProblem("the change that waited", a, 403, "forbidden")
			want(t, "users and settings", state(), before)
			ts.mustLogin(email, userPassword)
		})
	}
	off := func(q *queries) error { return q.setSetting(settingRegistration, []byte("false")) }
	a := ts.overtake(off, "POST /register", "", `{"email":"eve@example.com","password":"battery staple"}`)
	ts.wantProblem("a registration that waited", a, 403, "registration_disabled")
	ts.wantAnswers(t, `ADMIN  GET /users?email=eve@  -  200  {"users":[],"total":0}`, "ADMIN", admin)
}

// A list refuses a parameter that it does not know, one that is there twice,
// and a value that nothing has: a misspelt filter would show everything.
func TestUsers_ListsKnowTheirParameters(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	group := ts.group(admin, "team", defaultOrg)
	for _, line := range lines(`
		GET /users?emial=w@               emial   there are: email, role, status, limit, after
		GET /users?org_id=acme            org_id  there are: email, role, status, limit, after
		GET /users?role=viewer&role=king  role    role occurs more than once
		GET /users?role=king              role    must be operator or org_admin or superadmin or viewer
		GET /users?status=foo             status  must be active or suspended
		GET /users?limit=1&limit=2        limit   limit occurs more than once
		GET /users?email=%zz              query   query is not well encoded
		GET /users?a%0Ab=1                ab      ab is no parameter
		GET /groups?name=x                name    there are: org_id, limit, after
		GET /groups/GROUP?org_id=x        org_id  there are: limit, after
		GET /service-tokens?name=x        name    there are: limit, after
		GET /me/sessions?limit=1          limit   there are: none`) {
		c := columns(strings.Replace(line, "GROUP", group, 1))
		t.Run(line, func(t *testing.T) {
			a := ts.in(t).ask(c[0], admin, nil)
			ts.in(t).wantProblem("list", a, 422, "invalid_field")
			want(t, "field", a.text("field"), c[1])
			wantText(t, "detail", a.text("detail"), c[2])
		})
	}
}

// Of two superadmins who step down in any way at the same time one stays; a
// third that is suspended does not count.
func TestUsers_TheLastSuperadminStays(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, unthrottled)
	tokens := []string{ts.mustAdmin(), ""}
	asleep := ts.mustUser("asleep@example.com", superadmin, defaultOrg)
	ts.mustAsk("PUT /users/"+asleep+"/status", tokens[0], `"suspended"`)
	ways := lines(handlersChanges)[:3]
	for round := range 27 {
		_, tokens[1] = ts.as(fmt.Sprint(round, "@example.com"), superadmin, defaultOrg)
		answers := together(2, func(i int) answer {
			way, id := ways[[]int{round, round / 3}[i]%3], claimsOf(tokens[i])["sub"].(string)
			c := columns(strings.Replace(way, "ID", id, 1))
			return ts.ask(c[0], tokens[i], c[1])
		})
		want(t, "answers", handlersTally(answers), "map[200 []:1 409 []:1]")
		lost := slices.IndexFunc(answers, func(a answer) bool { return a.status != 200 })
		ts.wantProblem("the second", answers[lost], 409, "last_superadmin")
		tokens[0] = tokens[lost]
	}
}

// A list of any length is complete. Pages of any size make the same list, and
// filters count what they select.
func TestUsers_ListsArePagedAndStreamed(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	dbFile(ts.cfg.databasePath(), `INSERT INTO users
		WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 2999)
		SELECT i + 2, i, printf('U%04d@example.com', i), printf('u%04d@example.com', i),
			printf('%200d', i), x'', iif(i % 2, 'operator', 'viewer'),
			iif(i < 1500, 'acme', 'beta'), 'active', 0, 0, 0 FROM n`)
	admin := ts.mustAdmin()
	list := func(query string) (answer, []string) {
		a := ts.ask("GET /users?"+query, admin, nil)
		return a, regexp.MustCompile(`"email":"[^"]+"`).FindAllString(a.body, -1)
	}
	whole, all := list("")
	distinct := slices.Compact(slices.Sorted(slices.Values(all)))
	got := fmt.Sprint(len(all), len(distinct), whole.json["total"], whole.json["next"])
	want(t, "users, distinct ones, total, next", got, "3001 3001 3001 <nil>")
	for _, limit := range []int{7, 499, 500, 501, 1000} {
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			var paged []string
			for next := "0"; next != ""; {
				a, page := list(fmt.Sprintf("limit=%d&after=%s", limit, next))
				paged, next = append(paged, page...), a.text("next")
				if len(page) > limit || (len(page) == limit) != (next != "") {
					t.Fatalf("a page of %d users, next %q", len(page), next)
				}
			}
			want(t, "the pages are the list", slices.Equal(paged, all), true)
		})
	}
	for _, pair := range cells(`
		email=u00 100  email=U2999@example.com 1  email=0 0  email=%25 0  email=%00 0  email=%ff 0
		email= 3001  role= 3001  role=operator 1500  status=suspended 0
		status=active&role=viewer&email=u1&limit=1000 500  email=u00&role=operator 50`) {
		t.Run(pair, func(t *testing.T) {
			query, n, _ := strings.Cut(pair, " ")
			a, emails := list(query)
			want(t, "users and total", fmt.Sprint(len(emails), a.json["total"]),
				n+" "+n)
		})
	}
	for query := range strings.FieldsSeq(`limit=0 limit=1001 limit=-1 limit=x limit=1e3
		after=-1 after=x after=99999999999999999999`) {
		t.Run(query, func(t *testing.T) {
			a, _ := list(query)
			ts.in(t).wantProblem("list", a, 422, "invalid_field")
			want(t, "field", a.text("field"), query[:5])
		})
	}
	ts.wantAnswers(t, `ADMIN  GET /users?after=9000000  -  200  {"users":[],"total":3001}`, "ADMIN", admin)
	for range 5 { // a client that goes away in the middle of a list
		ctx, leave := context.WithCancel(t.Context())
		req := must(http.NewRequestWithContext(ctx, "GET", ts.url+auth+"/users", nil))
		req.Header.Set("Authorization", "Bearer "+admin)
		must(io.ReadFull(must(noRedirects.Do(req)).Body, make([]byte, 1000)))
		leave()
	}
	// A connection's deadline is the machine's time, not a clock that was set.
	ts.clock.advance(-24 * time.Hour)
	admin = ts.mustAdmin()
	_, then := list("")
	want(t, "users then", len(then), 3001)
	want(t, "errors in the log", strings.Count(ts.logs.String(), "level=ERROR"), 0)
}

// Ten wrong passwords for an email from one address shut it there for 15
// minutes, for the right password too, and for unknown emails alike. An id is
// no email: it stands in tokens, and guessing under it shuts nobody out.
func TestThrottle_PairOfEmailAndAddress(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	bob := ts.mustUser("bob@example.com", viewer, defaultOrg)
	login := func(email, password, outcome string) { // with headers that nobody trusts here
		t.Helper()
		a := ts.login(email, password, "X-Forwarded-For: 192.0.2.1", "X-Real-Ip: 192.0.2.1")
		want(t, "login of "+email+" with "+password, handlersOutcome(a), outcome)
	}
	for _, email := range []string{"ada@example.com", "nobody@example.com", bob} {
		guesses := together(20, func(int) answer { return ts.login(email, "wrong password") })
		want(t, "20 guesses at once", handlersTally(guesses),
			"map[401 []:10 429 [900]:10]")
		login(strings.ToUpper(email), userPassword, "429 [900]")
	}
	for range 2 { // a success forgets the failures before it
		for range 9 {
			login("bob@example.com", "wrong password", "401 []")
		}
		login("bob@example.com", userPassword, "200 []")
	}
	ts.clock.advance(15*time.Minute - time.Second)
	login("ada@example.com", userPassword, "429 [1]")
	ts.clock.advance(time.Second)
	login("ada@example.com", userPassword, "200 []")
	// Wrong old passwords count too, or a stolen token could guess on.
	access, _ := ts.mustLogin("bob@example.com", userPassword)
	guess := object{"old_password": "wrong password", "new_password": "a new password"}
	for range 10 {
		a := ts.ask("POST /me/password", access, guess)
		ts.wantProblem("wrong old password", a, 401, "invalid_credentials")
	}
	guess["old_password"] = userPassword
	want(t, "11th old password",
		handlersOutcome(ts.ask("POST /me/password", access, guess)), "429 [900]")
	login("bob@example.com", userPassword, "429 [900]")
}

// Sixty failures shut an address, and a hundred an account, except to where
// its user has logged in from of late: a stranger can lock nobody out.
func TestThrottle_AddressesAndAccounts(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, handlersProxied)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	ts.mustUser("bob@example.com", viewer, defaultOrg)
	from := func(forwarded, email, password, outcome string) {
		t.Helper()
		a := ts.login(email, password, "X-Forwarded-For: "+forwarded)
		want(t, "login from "+forwarded, handlersOutcome(a), outcome)
	}
	// Over sixty emails, from one IPv6 /64. The header is read from the right,
	// past our own proxy: what is to the left was written by the client.
	for i := range 60 {
		hops := fmt.Sprintf("198.51.100.%d, 2001:db8:0:1::%x, 10.0.0.9", i, i)
		from(hops, fmt.Sprintf("u%d@example.com", i), "wrong", "401 []")
	}
	from("2001:db8:0:1:ffff::1", "bob@example.com", userPassword, "429 [900]")
	from("2001:db8:0:1::1, 2001:db8:0:2::1", "bob@example.com", userPassword, "200 []")
	from("203.0.113.77", "ada@example.com", userPassword, "200 []")
	for _, home := range []string{"200 []", "429 [3600]"} { // known for 30 days
		for i := range 100 {
			from(fmt.Sprintf("100.64.0.%d", i), "ada@example.com", "wrong", "401 []")
		}
		from("100.64.1.1", "ada@example.com", userPassword, "429 [3600]")
		from("203.0.113.77", "ada@example.com", userPassword, home)
		ts.clock.advance(30*24*time.Hour + time.Second)
	}
}

// Every login and every registration within the limit costs a hash, whoever
// exists, or the time would tell. Clients that hang up while theirs waits show
// it. That counts all the same, as does a registration of a taken email.
func TestThrottle_CountsWhatCostsAHash(t *testing.T) {
	t.Parallel()
	hangUp := func(ts *testServer, path, email string) (answer string) {
		gone, leave := context.WithCancel(context.Background())
		leave()
		body := fmt.Sprintf(`{"email":%q,"password":"battery staple"}`, email)
		req := httptest.NewRequestWithContext(gone, "POST", auth+path, strings.NewReader(body))
		req.RemoteAddr = "127.0.0.1:1"
		req.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		ts.srv.ServeHTTP(rec, req)
		return rec.Body.String()
	}
	ts := newTestServer(t, unthrottled)
	for _, path := range []string{"/login", "/register"} {
		for _, email := range []string{adminEmail, "nobody@example.com"} {
			answers := ""
			for range 40 { // an idle hashing thread may be as fast as hanging up
				answers += hangUp(ts, path, email)
			}
			wantText(t, path+" "+email, answers, "client_gone")
		}
	}
	ts = newTestServer(t, func(c *config) { c.throttle.addressFailures, c.throttle.registrations = 5, 2 })
	names := []string{"ADA", `{"email":"ada@example.com","password":"battery staple"}`}
	ts.wantAnswers(t, `
		-  POST /register  ADA  200
		-  POST /register  ADA  409 user_exists
		-  POST /register  ADA  429 too_many_attempts`, names...)
	wantText(t, "one that hangs up", hangUp(ts, "/register", "free@example.com"),
		"too_many_attempts")
	ts.clock.advance(time.Hour)
	ts.wantAnswers(t, `-  POST /register  ADA  409 user_exists`, names...)
	for i := range 5 {
		hangUp(ts, "/login", fmt.Sprintf("u%d@example.com", i))
	}
	want(t, "login then", handlersOutcome(ts.login(adminEmail, adminPassword)),
		"429 [900]")
}

// handlersStory makes every event of the handlers happen. It returns secrets
// that were used, and names, each followed by what it stands for.
func handlersStory(t *testing.T) (ts *testServer, names, secrets []string) {
	ts = newTestServer(t, handlersJSONLog, func(c *config) {
		c.reuseGrace, c.databaseEcho, c.logLevel = 10*time.Second, true, "debug"
		c.throttle.registrations, c.throttle.pairFailures = 1, 2
	}, metricsOn)
	secrets = []string{adminPassword, "password one", "password two", "password three", "a guess"}
	keep := func(access, refresh string) (string, string) {
		secrets = append(secrets, strings.Split(access, ".")[2], strings.Split(refresh, ".")[1])
		return access, refresh
	}
	const one = `{"email":"ada@example.com","password":"password one"}`
	id := ts.mustAsk("POST /register", "", one).text("id")
	admin, _ := keep(ts.mustLogin(adminEmail, adminPassword))
	names = []string{
		"ADMIN", admin, "BOSS", claimsOf(admin)["sub"].(string), "ADA", id, "ONE", one,
		"TWO", `"new_password":"password two"`,
	}
	for i := range 4 {
		access, refresh := keep(ts.mustLogin("ada@example.com", "password one"))
		n := fmt.Sprint(i)
		names = append(names, "SID"+n, sid(access), "TOKEN"+n, access, "REFRESH"+n, refresh)
		if i == 0 {
			keep(ts.wantTokens(ts.refresh(refresh)))
			keep(ts.wantTokens(ts.refresh(refresh)))
		}
	}
	ts.clock.advance(time.Minute)
	ts.wantAnswers(t, `
		-       POST /register            ONE                                  429 too_many_attempts
		-       POST /refresh             "REFRESH0"                           401 invalid_token
		TOKEN2  DELETE /me/sessions/SID1  -                                    200
		-       POST /logout              {"refresh_token":"REFRESH2"}         200
		TOKEN3  PUT /me                   {"display_name":"Ada"}               200
		TOKEN3  POST /me/password         {"old_password":"password one",TWO}  200`, names...)
	access, _ := keep(ts.mustLogin("ada@example.com", "password two"))
	ts.wantAnswers(t, `
		NEWEST  POST /me/password         {"old_password":"a guess",TWO}       401 invalid_credentials
		NEWEST  POST /logout              {"all":true}                         200
		ADMIN   PUT /users/ADA/role       "operator"                           200
		ADMIN   PUT /users/ADA/org        {"org_id":"acme"}                    200
		ADMIN   PUT /users/ADA/email-verified  {"email_verified":true}         200
		ADMIN   PUT /users/ADA/status     {"status":"suspended"}               200
		ADMIN   PUT /users/ADA/password   {"new_password":"password three"}    200
		-       POST /login               RIGHT                                403 user_suspended
		-       POST /login               ONE                                  401 invalid_credentials
		-       POST /login               ONE                                  401 invalid_credentials
		-       POST /login               ONE                                  429 too_many_attempts
		-       POST /login               {"email":"x","password":"a guess"}   401 invalid_credentials`,
		append(names, "NEWEST", access, "RIGHT", strings.Replace(one, "one", "three", 1))...)
	group := ts.group(admin, "team", "acme")
	ts.wantAnswers(t, `
		ADMIN   PUT /groups/GROUP                 {"name":"crew"}                200
		ADMIN   POST /groups/GROUP/members        "ADA"                          200
		ADMIN   DELETE /groups/GROUP/members/ADA  -                              200
		ADMIN   DELETE /groups/GROUP              -                              200
		ADMIN   DELETE /service-tokens/bot        -                              404 service_token_not_found`,
		append(names, "GROUP", group)...)
	names = append(names, "GROUP", group)
	secrets = append(secrets, ts.mustAsk("POST /service-tokens", admin, `{"name":"bot"}`).text("token")[9:])
	ts.mustAsk("DELETE /service-tokens/bot", admin, nil)
	for range 61 {
		ts.ask("POST /service-tokens/validate", "", `{"token":"a guess"}`)
	}
	ts.mustAsk("DELETE /users/"+id, admin, nil)
	ts.mustAsk("PUT /users/registration", admin, object{"enabled": true})
	for _, password := range []string{"", defaultAdminPassword} {
		hash := must(bcrypt.GenerateFromPassword([]byte(password), 4))
		dbFile(ts.cfg.databasePath(), `UPDATE users SET password_hash = $1`, hash)
		a := ts.login(adminEmail, password, "Host: public.example")
		want(t, "status of a login with "+password, a.status, 403)
	}
	return ts, names, secrets
}

// Every event has its name and its ids; what an operator should look at is a
// warning. Each name in the source has been in the log.
func TestEvents_AreNamed(t *testing.T) {
	t.Parallel()
	ts, names, _ := handlersStory(t)
	fill := strings.NewReplacer(names...)
	for _, line := range lines(`
		{"msg":"user.created","user":"ADA","role":"viewer","org":"default","actor":""}
		{"msg":"registration.throttled","level":"WARN"}
		{"msg":"login.ok","user":"ADA","session":"SID0"}
		{"msg":"login.failed","user":"ADA","reason":"wrong password"}
		{"msg":"login.failed","user":"ADA","reason":"suspended"}
		{"msg":"login.failed","user":"","reason":"unknown email"}
		{"msg":"login.failed","user":"BOSS","reason":"empty password"}
		{"msg":"login.failed","user":"BOSS","reason":"default password from elsewhere"}
		{"msg":"login.throttled","user":"ADA","rule":"pair","level":"WARN"}
		{"msg":"refresh.ok","user":"ADA","session":"SID0"}
		{"msg":"refresh.repeated","user":"ADA","session":"SID0"}
		{"msg":"refresh.reuse","user":"ADA","session":"SID0","level":"WARN"}
		{"msg":"session.revoked","user":"ADA","session":"SID1","reason":"revoked by its user"}
		{"msg":"session.revoked","user":"ADA","session":"SID2","reason":"logout"}
		{"msg":"session.revoked","user":"ADA","reason":"logout from everywhere"}
		{"msg":"password.failed","user":"ADA","reason":"wrong password"}
		{"msg":"password.changed","user":"ADA"}
		{"msg":"password.reset","user":"ADA","actor":"BOSS"}
		{"msg":"user.role_changed","user":"ADA","from":"viewer","to":"operator","actor":"BOSS"}
		{"msg":"user.org_changed","user":"ADA","from":"default","to":"acme","actor":"BOSS"}
		{"msg":"user.status_changed","user":"ADA","to":"suspended","actor":"BOSS"}
		{"msg":"user.name_changed","user":"ADA"}
		{"msg":"user.email_verified","user":"ADA","to":true,"actor":"BOSS"}
		{"msg":"user.deleted","user":"ADA","actor":"BOSS"}
		{"msg":"registration.changed","enabled":true,"actor":"BOSS"}
		{"msg":"group.created","group":"GROUP","name":"team","org":"acme","actor":"BOSS"}
		{"msg":"group.changed","group":"GROUP","name":"crew","actor":"BOSS"}
		{"msg":"group.member_added","group":"GROUP","user":"ADA","actor":"BOSS"}
		{"msg":"group.member_removed","group":"GROUP","user":"ADA","actor":"BOSS"}
		{"msg":"group.deleted","group":"GROUP","name":"crew","actor":"BOSS"}
		{"msg":"service_token.created","name":"bot","role":"operator","org":"default","actor":"BOSS"}
		{"msg":"service_token.revoked","name":"bot","actor":"BOSS"}
		{"msg":"service_token.throttled","level":"WARN"}`) {
		event := object{"ip": "127.0.0.1", "level": "INFO"}
		mustOK(json.Unmarshal([]byte(fill.Replace(line)), &event))
		want(t, line+" is logged", ts.logged(event) > 0, true)
	}
	want(t, "failed logins", ts.logged(object{"msg": "login.failed"}), 6)
	var source string
	for _, name := range []string{"handlers.go", "admin.go", "groups.go", "servicetokens.go"} {
		source += string(must(os.ReadFile(name)))
	}
	named := regexp.MustCompile(
		`"(?:login|refresh|registration|session|password|user|group|service_token)\.[a-z_]+"`)
	events := named.FindAllString(source, -1)
	want(t, "the source names events", len(events) >= 16, true)
	for _, name := range events {
		wantText(t, "the log", ts.logs.String(), `"msg":`+name)
	}
}

// No secret is in the log, not even at level debug with every statement, in
// the database, its WAL or a copy of it.
func TestEvents_HoldNoSecret(t *testing.T) {
	t.Parallel()
	ts, _, secrets := handlersStory(t)
	path, log, stored := ts.cfg.databasePath(), ts.logs.String(), ""
	dbFile(path, `VACUUM INTO $1`, path+".copy")
	for _, suffix := range []string{"", "-wal", ".copy"} {
		stored += string(must(os.ReadFile(path + suffix)))
	}
	wantText(t, "the database", stored, adminEmail)
	wantText(t, "the log", log, "INSERT INTO sessions")
	for _, secret := range secrets {
		want(t, secret+" is stored", strings.Contains(stored, secret), false)
		want(t, secret+" is logged", strings.Contains(log, secret), false)
	}
	want(t, "hash or token in the log",
		regexp.MustCompile(`\$2a\$|eyJ`).FindString(log), "")
}

// Whatever strangers put into a request, a line of the log stays one line and
// its message is ours.
func TestEvents_CannotBeForged(t *testing.T) {
	t.Parallel()
	for format, pattern := range map[string]string{ // of a whole line; the first group is its message
		"text": `^time=\S+ level=[A-Z]+ msg=("(?:[^"\\]|\\.)*"|[a-z.]+)` +
			`(?: [a-z_]+=(?:"(?:[^"\\]|\\.)*"|[^\s"=]*))*$`,
		"json": `^\{"time":"[^"]+","level":"[A-Z]+","msg":("(?:[^"\\]|\\.)*")` +
			`(?:,"[a-z_]+":(?:"(?:[^"\\]|\\.)*"|[a-z0-9-]+))*\}$`,
	} {
		t.Run(format, func(t *testing.T) {
			ts := newTestServer(t, func(c *config) { c.logFormat = format })
			ts.wantAnswers(t, `
				ADMIN  POST /users          {NEW,"org_id":"x\" msg=\"forged\" y=\""}  200
				-      POST /login          {"email":"FORGED","password":"FORGED"}   401 invalid_credentials
				-      POST /register       {"email":"FORGED","password":"FORGED"}   422 invalid_field
				-      POST /register       {NEW,"display_name":"FORGED"}            422 invalid_field
				ADMIN  GET /users/%0D%0Atime=1%20level=INFO%20msg=forged  -          404 user_not_found
				-      GET /%0d%0atime=1%20level=INFO%20msg=forged        -          404 not_found
				ADMIN msg=forged  GET /me   -                                        401 invalid_token
				ADMIN  FORGERY /me          -                                        405 method_not_allowed`,
				"NEW", `"email":"x@example.com","password":"battery staple"`, "ADMIN", ts.mustAdmin(),
				"FORGED", `x\r\ntime=1 level=INFO msg=forged\n{\"msg\":\"forged\"}\u2028\u001b[2K\" msg=\"x`)
			whole := regexp.MustCompile(pattern)
			for line := range strings.SplitSeq(strings.TrimSpace(ts.logs.String()), "\n") {
				m := whole.FindStringSubmatch(line)
				if m == nil || strings.Contains(m[1], "forged") {
					t.Errorf("the log has the line %q", line)
				}
			}
		})
	}
}

// === groups.go ===

// group makes a group of an organisation as an admin would, and returns its id.
func (ts *testServer) group(admin, name, org string) string {
	ts.Helper()
	return ts.mustAsk("POST /groups", admin, object{"name": name, "org_id": org}).text("id")
}

// join adds a user to a group.
func (ts *testServer) join(admin, group, user string) {
	ts.Helper()
	ts.mustAsk("POST /groups/"+group+"/members", admin, object{"user_id": user})
}

// groupsIn are the ids that an access token carries.
func groupsIn(access string) string { return fmt.Sprint(claimsOf(access)["groups"]) }

// The life of a group in the hands of an org_admin, to the byte.
func TestGroups_Life(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	_, head := ts.as("head@acme.example", orgAdmin, "acme")
	ada, user := ts.as("ada@acme.example", viewer, "acme")
	bob := ts.mustUser("bob@acme.example", viewer, "acme")
	a := ts.mustAsk("POST /groups", head, `{"name":"Team A","description":"all of us"}`)
	id, now := a.text("id"), rfc3339(ts.now().Unix())
	names := []string{
		"HEAD", head, "USER", user, "ADA", ada, "BOB", bob, "ID", `"id":"` + id + `"`, "GROUP", id,
		"NOW", now, "ALL", `"description":"all of us"`, "BOTH", `"members":[{"user_id":"` + ada +
			`","joined_at":"` + now + `"},{"user_id":"` + bob + `","joined_at":"` + now + `"}],"total":2`,
	}
	want(t, "created", a.body, `{"id":"`+id+`","name":"Team A","org_id":"acme"}`)
	ts.wantAnswers(t, `
		USER  GET /groups  -  200  {"groups":[{ID,"name":"Team A",ALL,"org_id":"acme"}],"total":1}
		HEAD  PUT /groups/GROUP  {"name":"Team B"}  200  {ID,"name":"Team B",ALL}
		HEAD  PUT /groups/GROUP  {"description":"","name":null}  200  {ID,"name":"Team B","description":""}
		HEAD  PUT /groups/GROUP  {}                            200  {ID,"name":"Team B","description":""}
		HEAD  POST /groups/GROUP/members  "ADA"                200  {"message":"Member added"}
		HEAD  POST /groups/GROUP/members  {"user_id":"BOB"}    200  {"message":"Member added"}
		HEAD  POST /groups/GROUP/members  "ADA"  409 member_exists  User ADA is already in group GROUP
		USER  GET /me                 -  200  "groups":[{ID,"name":"Team B"}]}
		HEAD  GET /users/ADA          -  200  "groups":[{ID,"name":"Team B"}]}
		USER  GET /groups/GROUP       -  200  {ID,"name":"Team B","description":"","org_id":"acme",BOTH}
		HEAD  DELETE /groups/GROUP/members/ADA  -  200  {"message":"Member removed"}
		HEAD  DELETE /groups/GROUP/members/ADA  -  404 member_not_found  User ADA is not in group GROUP
		USER  GET /groups/GROUP       -  200  "members":[],"total":0}
		HEAD  GET /groups/GROUP       -  200  "members":[{"user_id":"BOB","joined_at":"NOW"}],"total":1}
		HEAD  POST /groups            {"name":"Team B"}        409 group_exists  Group already exists: Team B
		HEAD  DELETE /groups/GROUP    -  200  {"message":"Group deleted"}
		HEAD  DELETE /groups/GROUP    -  404 group_not_found  Group not found: GROUP
		HEAD  GET /users/BOB          -  200  "groups":[]}
		USER  GET /groups             -  200  {"groups":[],"total":0}`, names...)
	list := ts.mustAsk("GET /users", head, nil)
	want(t, "groups in the list of users", strings.Contains(list.body, "groups"), false)
}

// A group of another organisation is not there; an org_admin changes no
// superadmin's groups; members are users of the organisation, for superadmins
// too; a name is unique in its organisation.
func TestGroups_Refusals(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	_, head := ts.as("head@acme.example", orgAdmin, "acme")
	_, other := ts.as("head@beta.example", orgAdmin, "beta")
	_, operator := ts.as("op@acme.example", operator, "acme")
	ada, viewer := ts.as("ada@acme.example", viewer, "acme")
	boss := ts.mustUser("boss@acme.example", superadmin, "acme")
	mine, theirs := ts.group(admin, "team", "acme"), ts.group(admin, "team", "beta")
	names := []string{
		"ADMIN", admin, "HEAD", head, "OTHER", other, "OPERATOR", operator, "VIEWER", viewer,
		"MINE", mine, "THEIRS", theirs, "ADA", ada, "BOSS", boss,
		"EVE", ts.mustUser("eve@beta.example", "viewer", "beta"),
		"X101", strings.Repeat("x", 101), "X501", strings.Repeat("x", 501),
	}
	ts.join(admin, mine, boss)
	state := func() (text string) {
		for _, path := range []string{"", "/" + mine, "/" + theirs} {
			text += ts.mustAsk("GET /groups"+path, admin, nil).body
		}
		return text
	}
	before := state()
	for _, line := range lines(`
		POST /groups                      {"name":"new"}
		PUT /groups/MINE                  {"name":"new"}
		DELETE /groups/MINE               -
		POST /groups/MINE/members         "ADA"
		DELETE /groups/MINE/members/BOSS  -`) {
		ts.wantAnswers(t, "OPERATOR  "+line+"  403 forbidden", names...)
		ts.wantAnswers(t, "VIEWER  "+line+"  403 forbidden", names...)
		if strings.Contains(line, "MINE") {
			ts.wantAnswers(t, "OTHER  "+line+"  404 group_not_found", names...)
			line = strings.Replace(line, "MINE", "nothing", 1)
			ts.wantAnswers(t, "ADMIN  "+line+"  404 group_not_found", names...)
		}
	}
	ts.wantAnswers(t, `
		VIEWER  GET /groups/THEIRS                 -         404 group_not_found  Group not found: THEIRS
		HEAD    GET /groups/THEIRS                 -         404 group_not_found
		HEAD    POST /groups      {"name":"new","org_id":"beta"}    403 forbidden
		HEAD    POST /groups      {"name":"team"}            409 group_exists
		HEAD    PUT /groups/MINE  {"name":"a/b"}             422 invalid_field  "field":"name"
		HEAD    PUT /groups/MINE  {"name":"a,b"}             422 invalid_field  "field":"name"
		HEAD    PUT /groups/MINE  {"name":""}                422 invalid_field  "field":"name"
		HEAD    POST /groups      {"name":"X101"}            422 invalid_field  "field":"name"
		HEAD    POST /groups      {"name":"a\u009b"}         422 invalid_field  "field":"name"
		HEAD    POST /groups      {"name":"n","description":"X501"}  422 invalid_field  "field":"description"
		ADMIN   POST /groups      {"name":"n","org_id":"a/b"}        422 invalid_field  "field":"org_id"
		HEAD    POST /groups/MINE/members          "EVE"     404 user_not_found  User not found: EVE
		ADMIN   POST /groups/MINE/members          "EVE"     404 user_not_found
		HEAD    POST /groups/MINE/members          "nobody"  404 user_not_found
		HEAD    DELETE /groups/MINE/members/EVE    -         404 member_not_found
		HEAD    DELETE /groups/MINE/members/nobody  -        404 member_not_found
		HEAD    POST /groups/THEIRS/members        "ADA"     404 group_not_found
		HEAD    DELETE /groups/MINE/members/BOSS   -         403 forbidden
		ADMIN   GET /groups?org_id=beta            -         200  "id":"THEIRS"  "total":1}
		ADMIN   GET /groups?org_id=                -         200  {"groups":[],"total":0}
		HEAD    GET /groups?org_id=beta            -         200  "id":"MINE"  "total":1}`, names...)
	want(t, "groups after the refusals", state(), before)
	ts.mustAsk("DELETE /groups/"+mine+"/members/"+boss, admin, nil)
	a := ts.ask("POST /groups/"+mine+"/members", head, object{"user_id": boss})
	ts.wantProblem("a superadmin added by an org_admin", a, 403, "forbidden")
}

// A login and a refresh carry the groups of that moment, sorted. They end with
// the group, with the user and with its place in the organisation.
func TestGroups_FollowTheUser(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	id := ts.mustUser("ada@example.com", viewer, defaultOrg)
	groups := []string{ts.group(admin, "a", defaultOrg), ts.group(admin, "b", defaultOrg)}
	slices.Sort(groups)
	slices.Reverse(groups)
	access, refresh := ts.mustLogin("ada@example.com", userPassword)
	want(t, "groups at first", groupsIn(access), "[]")
	next := func(what, groups string) {
		t.Helper()
		access, refresh = ts.wantTokens(ts.refresh(refresh))
		want(t, "groups refreshed "+what, groupsIn(access), groups)
		fresh, _ := ts.mustLogin("ada@example.com", userPassword)
		want(t, "groups of a login "+what, groupsIn(fresh), groups)
	}
	for _, group := range groups {
		ts.join(admin, group, id)
	}
	next("in both", "["+groups[1]+" "+groups[0]+"]")
	ts.mustAsk("DELETE /groups/"+groups[1], admin, nil)
	next("when one is gone", "["+groups[0]+"]")
	ts.mustAsk("PUT /users/"+id+"/org", admin, `"default"`)
	next("in the same organisation again", "["+groups[0]+"]")
	ts.mustAsk("PUT /users/"+id+"/org", admin, `"acme"`)
	next("in another organisation", "[]")
	ts.mustAsk("PUT /users/"+id+"/org", admin, `"default"`)
	next("after coming back", "[]")
	ts.join(admin, groups[0], id)
	ts.mustAsk("DELETE /users/"+id, admin, nil)
	a := ts.mustAsk("GET /groups/"+groups[0], admin, nil)
	wantText(t, "a group whose user is gone", a.body, `"members":[],"total":0}`)
}

// A user is in a hundred groups at most, also when two come at once, and the
// token with all of them works.
func TestGroups_AtMostAHundred(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin, id := ts.mustAdmin(), ts.mustUser("ada@example.com", viewer, defaultOrg)
	dbFile(ts.cfg.databasePath(), `INSERT INTO groups
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 101)
		SELECT i, 'g' || i, 'name ' || i, '', 'default', 0 FROM n;
		INSERT INTO group_members SELECT seq, id, $1, 0 FROM groups WHERE seq < 100`, id)
	answers := together(2, func(i int) answer {
		return ts.ask(fmt.Sprintf("POST /groups/g%d/members", 100+i), admin, object{"user_id": id})
	})
	want(t, "two at once", handlersTally(answers), "map[200 []:1 409 []:1]")
	lost := slices.IndexFunc(answers, func(a answer) bool { return a.status != 200 })
	ts.wantProblem("the second", answers[lost], 409, "too_many_groups")
	access, _ := ts.mustLogin("ada@example.com", userPassword)
	want(t, "groups", len(claimsOf(access)["groups"].([]any)), 100)
	a := ts.mustAsk("GET /me", access, nil)
	want(t, "groups of the profile", len(a.json["groups"].([]any)), 100)
}

// Of several who make a group of one name, or let one user join, one succeeds.
func TestGroups_Races(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin, id := ts.mustAdmin(), ts.mustUser("ada@example.com", viewer, defaultOrg)
	for _, line := range lines(`
		POST /groups                    {"name":"NEW"}  group_exists
		POST /groups/GROUP/members      "ID"            member_exists
		DELETE /groups/GROUP/members/ID  -              member_not_found
		DELETE /groups/GROUP            -               group_not_found`) {
		t.Run(line, func(t *testing.T) {
			ts := ts.in(t)
			for range 10 {
				group := ts.group(admin, newID(), defaultOrg)
				c := columns(strings.NewReplacer("NEW", newID(), "GROUP", group, "ID", id).Replace(line))
				if strings.Contains(line, "members/") {
					ts.join(admin, group, id)
				}
				won := 0
				for _, a := range together(4, func(int) answer { return ts.ask(c[0], admin, c[1]) }) {
					if a.status == 200 {
						won++
					} else {
						want(t, "code", a.text("code"), c[2])
					}
				}
				want(t, "winners", won, 1)
			}
		})
	}
}

// A list of members is paged as that of users is, and a group of any size is
// deleted, in steps.
func TestGroups_OfAnySize(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	group := ts.group(admin, "all", defaultOrg)
	const size = 2*deleteStep + 1
	dbFile(ts.cfg.databasePath(), fmt.Sprintf(`INSERT INTO users
		WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		SELECT i + 9, i, i, i, '', x'', 'viewer', 'default', 'active', 0, NULL, 0 FROM n;
		INSERT INTO group_members SELECT seq, $1, id, 0 FROM users WHERE seq > 9`, size), group)
	list := func(query string) (answer, int) {
		a := ts.mustAsk("GET /groups/"+group+query, admin, nil)
		return a, strings.Count(a.body, `"user_id"`)
	}
	whole, n := list("")
	want(t, "members and total", fmt.Sprint(n, whole.json["total"]), fmt.Sprint(size, size))
	paged := 0
	for next := "0"; next != ""; {
		a, n := list("?limit=1000&after=" + next)
		paged, next = paged+n, a.text("next")
	}
	want(t, "members of all pages", paged, size)
	ts.mustAsk("DELETE /groups/"+group, admin, nil)
	var left int
	mustOK(ts.store.reads.get(`SELECT count(*) FROM group_members`, nil, &left))
	want(t, "members that are left", left, 0)
}

// TestShell_Groups: the commands do what the endpoints do.
func TestShell_Groups(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, handlersJSONLog)
	id := ts.mustUser("ada@example.com", viewer, "acme")
	sh := func(line string) string {
		t.Helper()
		code, out, errOut := ts.shell("", "group "+line)
		want(t, "exit status of group "+line+": "+errOut, code, 0)
		return out
	}
	var group membership
	mustOK(json.Unmarshal([]byte(sh("add team --org acme --json")), &group))
	want(t, "name", group.Name, "team")
	sh("add other")
	sh("join " + group.ID + " Ada@example.com")
	access, _ := ts.mustLogin("ada@example.com", userPassword)
	want(t, "groups", groupsIn(access), "["+group.ID+"]")
	want(t, "list --org", strings.Join(strings.Fields(sh("list --org acme")), " "),
		"ID ORG NAME DESCRIPTION "+group.ID+" acme team")
	want(t, "objects of list --json", strings.Count(sh("list --json"), "{"), 2)
	want(t, "members", strings.Count(sh("show team --json"), `"user_id":"`+id+`"`), 1)
	wantText(t, "group show", sh("show "+group.ID), "ada@example.com", id)
	sh("leave team " + id)
	sh("join team " + id)
	wantText(t, "add --description", sh("add team --org other --description answers"), "answers")
	sh("leave team --org acme ada@example.com")
	want(t, "groups then", len(must(ts.store.userByID(id)).memberships()), 0)
	for line, refusal := range map[string]string{
		"add team --org acme":                    "1 Group already exists: team",
		"add a/b":                                "2 name must have",
		"add team --org a,b":                     "2 org_id must have",
		"show team":                              "1 several groups are called team; give the id",
		"join nothing ada@example.com":           "1 Group not found: nothing",
		"join " + group.ID + " eve@example.com":  "1 User not found: eve@example.com",
		"leave " + group.ID + " ada@example.com": "1 User " + id + " is not in group",
		"join " + group.ID:                       "2 group join takes 2 words after it, not 1",
		"":                                       "2 group needs a command after it",
	} {
		code, _, errOut := ts.shell("", strings.TrimSpace("group "+line))
		refusal = strings.Replace(refusal, " ", " pico-auth: ", 1)
		wantText(t, "group "+line, fmt.Sprint(code, " ", errOut), refusal)
	}
	sh("delete " + group.ID)
	sh("delete team") // the other one
	want(t, "list then", strings.Contains(sh("list"), "team"), false)
}

// === servicetokens.go ===

// The life of a service token, to the byte. It is shown once, stored as a hash,
// and no bearer of this server.
func TestServiceTokens_Life(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	_, head := ts.as("head@acme.example", orgAdmin, "acme")
	a := ts.mustAsk("POST /service-tokens", head, `{"name":"bot.1","description":"answers mail"}`)
	id, token := a.text("id"), a.text("token")
	form := regexp.MustCompile(`^pico_svc_[0-9a-f]{64}$`)
	want(t, token+" has the form", form.MatchString(token), true)
	want(t, "created", a.body,
		fmt.Sprintf(`{"id":%q,"name":"bot.1","token":%q,"already_exists":false}`, id, token))
	want(t, "stored", ts.store.reads.get(`SELECT seq FROM service_tokens WHERE token_hash = $1`,
		[]any{hashToken(token)}, new(int64)), nil)
	names := []string{
		"HEAD", head, "ADMIN", ts.mustAdmin(), "TOKEN", token, "ID", id,
		"BOT", `"name":"bot.1","role":"operator","org_id":"acme"`,
		"KNOWN", `{"id":"` + id + `","name":"bot.1","already_exists":true}`,
		"LISTED", `"description":"answers mail","created_at":"` + rfc3339(ts.now().Unix()) + `"`,
	}
	ts.wantAnswers(t, `
		-  POST /service-tokens/validate  {"token":"TOKEN"}  200  {"valid":true,BOT}
		-  POST /service-tokens/validate  {"token":"TOKEN0"}  200  {"valid":false}
		-  POST /service-tokens/validate  {"token":""}  200  {"valid":false}
		HEAD  POST /service-tokens  {"name":"bot.1","role":"viewer"}  200  KNOWN
		ADMIN  POST /service-tokens  {"name":"bot.1"}  200  KNOWN
		HEAD  GET /service-tokens  -  200  {"tokens":[{"id":"ID",BOT,LISTED}],"total":1}
		TOKEN  GET /me  -  401 invalid_token
		TOKEN  GET /service-tokens  -  401 invalid_token
		HEAD  DELETE /service-tokens/bot.1  -  200  {"message":"Service token 'bot.1' revoked"}
		HEAD  DELETE /service-tokens/bot.1  -  404 service_token_not_found  token 'bot.1' not found
		-  POST /service-tokens/validate  {"token":"TOKEN"}  200  {"valid":false}
		HEAD  GET /service-tokens  -  200  {"tokens":[],"total":0}
		HEAD  POST /service-tokens  {"name":"bot.1"}  200  "token":"pico_svc_`, names...)
}

// A service token has a role and an organisation that its maker may give; of
// another organisation one learns at most that a name is taken.
func TestServiceTokens_Refusals(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	_, head := ts.as("head@acme.example", orgAdmin, "acme")
	_, op := ts.as("op@acme.example", operator, "acme")
	ts.mustAsk("POST /service-tokens", admin, `{"name":"theirs","org_id":"beta"}`)
	ts.mustAsk("POST /service-tokens", admin, `{"name":"root","org_id":"acme","role":"superadmin"}`)
	before := ts.mustAsk("GET /service-tokens", admin, nil).body
	ts.wantAnswers(t, `
		OP  GET /service-tokens  -  403 forbidden
		OP  POST /service-tokens  {"name":"new"}  403 forbidden
		OP  DELETE /service-tokens/root  -  403 forbidden
		HEAD  POST /service-tokens  {"name":"new","role":"superadmin"}  403 forbidden
		HEAD  POST /service-tokens  {"name":"new","org_id":"beta"}  403 forbidden
		HEAD  POST /service-tokens  {"name":"new","role":"root"}  422 invalid_role
		HEAD  POST /service-tokens  {"name":"theirs"}  409 name_taken
		HEAD  POST /service-tokens  {"name":"a b"}  422 invalid_field  "field":"name"
		HEAD  POST /service-tokens  {"name":"a\n"}  422 invalid_field  "field":"name"
		HEAD  POST /service-tokens  {"name":""}  422 invalid_field  "field":"name"
		HEAD  POST /service-tokens  {"name":"X101"}  422 invalid_field  "field":"name"
		HEAD  POST /service-tokens  {"name":"n","description":"a\u0000"}  422 invalid_field  "description"
		ADMIN  POST /service-tokens  {"name":"n","org_id":"a,b"}  422 invalid_field  "field":"org_id"
		HEAD  DELETE /service-tokens/theirs  -  404 service_token_not_found
		HEAD  DELETE /service-tokens/root  -  403 forbidden
		HEAD  GET /service-tokens  -  200  "name":"root"  "total":1}
		ADMIN  GET /service-tokens?limit=1  -  200  "name":"theirs"  "next":"1"`,
		"ADMIN", admin, "HEAD", head, "OP", op, "X101", strings.Repeat("x", 101))
	want(t, "tokens after the refusals", ts.mustAsk("GET /service-tokens", admin, nil).body, before)
	ts.wantAnswers(t, `
		HEAD  POST /service-tokens  {"name":"equal","role":"org_admin"}  200  "already_exists":false
		ADMIN  DELETE /service-tokens/theirs  -  200
		ADMIN  DELETE /service-tokens/root  -  200`, "ADMIN", admin, "HEAD", head)
	answers := together(4, func(int) answer {
		return ts.ask("POST /service-tokens", admin, `{"name":"race"}`)
	})
	made := slices.DeleteFunc(answers, func(a answer) bool { return a.text("token") == "" })
	want(t, "tokens of one name that are made at once", len(made), 1)
}

// Failed validations of one address end in 429, and a right token is told at
// the same time. They are counted apart from passwords.
func TestServiceTokens_ThrottleSparesTheRight(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, handlersJSONLog, func(c *config) {
		c.throttle.addressFailures, c.databaseEcho = 5, true
	})
	token := ts.mustAsk("POST /service-tokens", ts.mustAdmin(), `{"name":"bot"}`).text("token")
	validate := func(token string) answer {
		return ts.ask("POST /service-tokens/validate", "", object{"token": token})
	}
	// A wrong secret costs the statements that a right one does.
	statements := func(token string) string {
		before := len(ts.logs.String())
		validate(token)
		lines := regexp.MustCompile(`"statement":"[^"]*"`).FindAllString(ts.logs.String()[before:], -1)
		return strings.Join(lines, "\n")
	}
	right := statements(token)
	wantText(t, "statements", right, "FROM service_tokens")
	for _, wrong := range []string{"", "x", "pico_svc_" + strings.Repeat("0", 64), token + "0"} {
		want(t, "statements for "+wrong, statements(wrong), right)
	}
	ts.clock.advance(15 * time.Minute)
	guesses := together(8, func(i int) answer { return validate(fmt.Sprint("guess ", i)) })
	want(t, "guesses", handlersTally(guesses), "map[200 []:5 429 [900]:3]")
	ts.wantProblem("one more", validate("guess"), 429, "too_many_attempts")
	want(t, "warnings", ts.logged(object{"msg": "service_token.throttled", "level": "WARN"}), 4)
	for range 10 {
		wantText(t, "the right token", ts.wantOK("validate", validate(token)).body, `"valid":true`)
	}
	ts.mustLogin(adminEmail, adminPassword)
	ts.clock.advance(15 * time.Minute)
	want(t, "a guess then", validate("guess").body, `{"valid":false}`)
}

// Tokens of the Python server are good by whatever hash they were stored, but
// for revoked ones, and are revoked by their names. A name that is asked for
// must be right too.
func TestServiceTokens_Adopted(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"0.2.0", "0.3.1"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			hash, dir := hashToken, t.TempDir()
			writeTestKeys(dir)
			if version == "0.3.1" {
				pem := must(os.ReadFile(dir + "/private.pem"))
				key := sha256.Sum256(append([]byte("pico-auth/token-hash-key/v1:"), pem...))
				hash = func(token string) []byte { return adoptHMAC(key[:], token) }
			}
			path := adoptDatabase(t, hash)
			laterTables(path, hash)
			ts := newTestServer(t, func(c *config) { c.databaseURL = "sqlite:///" + path })
			ts.wantAnswers(t, `
				-  POST /service-tokens/validate  {"token":"T0"}  200  GOOD"bot","role":"operator",ACME
				-  POST /service-tokens/validate  {"token":"T1"}  200  GOOD"bot-s2","role":"auditor",BETA
				-  POST /service-tokens/validate  {"token":"T2"}  200  {"valid":false}
				-  POST /service-tokens/validate  {"token":"T3"}  200  GOOD"ein Name/2","role":"viewer",ACME
				ADMIN  DELETE /service-tokens/bot-s2  -  200  Service token 'bot-s2' revoked
				-  POST /service-tokens/validate  {"token":"T1"}  200  {"valid":false}`,
				"GOOD", `{"valid":true,"name":`, "ACME", `"org_id":"acme"}`, "BETA", `"org_id":"beta"}`,
				"ADMIN", ts.mustAdmin(), "T0", adoptServiceToken(0), "T1", adoptServiceToken(1),
				"T2", adoptServiceToken(2), "T3", adoptServiceToken(3))
			for name, wanted := range map[string]error{"": nil, "bot": nil, "ein Name/2": errNotFound} {
				_, err := ts.store.serviceTokenBySecret(name, adoptServiceToken(0))
				want(t, "by the name "+name, err, wanted)
			}
		})
	}
}

// TestShell_ServiceTokens: the commands do what the endpoints do, and a token
// is shown once.
func TestShell_ServiceTokens(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	sh := func(line string, status int, parts ...string) string {
		t.Helper()
		code, out, errOut := ts.shell("", strings.TrimSpace("service-token "+line))
		want(t, "exit status of service-token "+line+": "+errOut, code, status)
		wantText(t, "service-token "+line, out+errOut, parts...)
		return strings.TrimSpace(out)
	}
	validate := func(token string) string {
		return ts.ask("POST /service-tokens/validate", "", object{"token": token}).body
	}
	token := sh("add bot", 0, "pico_svc_")
	want(t, "validation", validate(token), `{"valid":true,"name":"bot","role":"operator","org_id":"default"}`)
	sh("add root --role superadmin --org acme --json", 0,
		`"name":"root","token":"pico_svc_`, `"already_exists":false`)
	sh("add bot", 1, "a service token of this name already")
	sh("add a/b", 2, "name must have")
	sh("add new --role root", 2, "nvalid role")
	sh("add told --description answers", 0)
	list := sh("list", 0, "NAME", "bot", "root", "answers")
	want(t, "the list shows a token", strings.Contains(list, "pico_svc"), false)
	want(t, "acme alone", strings.Count(sh("list --org acme --json", 0), "{"), 1)
	sh("revoke bot", 0)
	sh("revoke bot", 1, "Active service token 'bot' not found")
	sh("", 2, "usage:")
	want(t, "validation then", validate(token), `{"valid":false}`)
}

// === openapi.go ===

// openapiFile is openapi.json with all operations.
var openapiFile = sync.OnceValue(func() (d apiDocument) {
	mustOK(json.Unmarshal(openapiSource, &d))
	return d
})

// openapiHandled are uses, as "function used", of errors and of functions whose
// errors never become the answer: the function or its callers see to them.
var openapiHandled = cells(`
	authenticated errSuspended   changeBy userOfSession       changeBy errNoSession
	openSession errChanged       browserByToken errNoSession  browserByToken noSession
	useBrowserSession errNoSession  logOutBrowser userOfSession  readForm readBody
	forwardByToken errNoSession  forwardByToken noSession     handleForward errNoSession
	tokenHandle decodeCanonical  mustLogIn idTokenHint        logoutRequest idTokenHint
	grantCode exchangeCode       grantRefresh rotate          grantRefresh scopeOf
	handleIntrospect introspect  handleRevoke revoke          sendCode issueCode`)

// openapiNever is what the code seems to lead to and never does: a superadmin
// who gets a new password or organisation is still one, only roles can be
// unknown, handleLogout asks who sends a token only, a GET has no form, and the
// login form of an application is answered with one only when something is
// wrong.
var openapiNever = lines(`
	PUT /api/v1/auth/users/{id}/org 409 last_superadmin
	PUT /api/v1/auth/users/{id}/org 422 invalid_role
	PUT /api/v1/auth/users/{id}/status 422 invalid_role
	PUT /api/v1/auth/users/{id}/email-verified 409 last_superadmin
	PUT /api/v1/auth/users/{id}/password 409 last_superadmin
	PUT /api/v1/auth/me 409 last_superadmin
	POST /api/v1/auth/me/password 409 last_superadmin
	POST /api/v1/auth/logout 401 token_missing
	GET /oauth2/authorize 403
	GET /oauth2/userinfo 400 invalid_request
	GET /oauth2/userinfo parameter access_token
	POST /oauth2/forward 200`)

// openapiCode is the source of the program.
type openapiCode struct {
	uses   map[*ast.Ident]types.Object
	bodies map[types.Object]ast.Node // of functions; the values of variables
	named  map[string]ast.Node       // the same, some by their name
	answer map[types.Object]ast.Node // of refusals, by the cause
	met    map[string]bool           // of the exceptions above
}

func openapiRead() openapiCode {
	info := types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	fset, files := structureParse()
	conf := types.Config{Error: func(error) {}} // as in TestStructure_Rooms
	conf.Check("main", fset, files, &info)
	c := openapiCode{
		uses:   info.Uses,
		bodies: map[types.Object]ast.Node{},
		named:  map[string]ast.Node{},
		answer: map[types.Object]ast.Node{},
		met:    map[string]bool{},
	}
	add := func(name *ast.Ident, body ast.Node) {
		c.bodies[info.Defs[name]], c.named[name.Name] = body, body
	}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				add(n.Name, n)
				return false
			case *ast.ValueSpec:
				for i, value := range n.Values {
					add(n.Names[i], value)
				}
			}
			return true
		})
	}
	for _, row := range c.named["refusals"].(*ast.CompositeLit).Elts {
		if cause, ok := row.(*ast.CompositeLit).Elts[0].(*ast.Ident); ok {
			c.answer[info.Uses[cause]] = row.(*ast.CompositeLit).Elts[1]
		}
	}
	return c
}

// isException reports whether a use or a fact is one of the exceptions.
func (c openapiCode) isException(text string) bool {
	c.met[text] = slices.Contains(openapiHandled, text) || slices.Contains(openapiNever, text)
	return c.met[text]
}

// handlers are the handlers that a function of the route table lists and then
// appends from others, in this order.
func (c openapiCode) handlers(table ast.Node) (handlers []ast.Node) {
	ast.Inspect(table, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			if n.Type == nil {
				handlers = append(handlers, n.Elts[3])
			}
		case *ast.SelectorExpr:
			if strings.HasSuffix(n.Sel.Name, "Routes") {
				handlers = append(handlers, c.handlers(c.bodies[c.uses[n.Sel]])...)
			}
		}
		return true
	})
	return handlers
}

// openapiKey is the method and path under which the document has a pattern of
// the mux. One without a method takes any, and is there as GET.
func openapiKey(pattern string) (method, path string) {
	method, path, ok := strings.Cut(pattern, " ")
	if !ok {
		return "GET", pattern
	}
	return method, path
}

// openapiWalk is what a handler leads to.
type openapiWalk struct {
	openapiCode
	seen    map[ast.Node]bool
	refused []*apiError
	facts   map[string]bool // such as "303" and "member email required"
}

// openapiText is a literal or the number of an http.Status…, and "" for any
// other expression.
func openapiText(e ast.Expr) string {
	if name, ok := strings.CutPrefix(types.ExprString(e), "http.Status"); ok {
		for status := range 600 {
			if strings.ReplaceAll(http.StatusText(status), " ", "") == name {
				return strconv.Itoa(status)
			}
		}
	}
	literal, ok := e.(*ast.BasicLit)
	if !ok {
		return ""
	}
	if text, err := strconv.Unquote(literal.Value); err == nil {
		return text
	}
	return literal.Value
}

// walk follows every name in the body of a function or value once.
func (w *openapiWalk) walk(in string, body ast.Node) {
	if body == nil || w.seen[body] {
		return
	}
	w.seen[body] = true
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			w.literal(n)
		case *ast.SwitchStmt: // over the names of a query
			if n.Tag != nil && types.ExprString(n.Tag) == "name" {
				w.names(n.Body.List)
			}
		case *ast.CallExpr:
			name := types.ExprString(n.Fun)
			w.call(name[strings.LastIndex(name, ".")+1:], n.Args)
			return name != "errors.Is" // which answers nothing
		case *ast.Ident:
			used := w.uses[n]
			if function, ok := used.(*types.Func); ok {
				used = function.Origin()
			}
			if !w.isException(in+" "+n.Name) && n.Name != "answerTo" && n.Name != "refuse" {
				w.walk(n.Name, w.answer[used])
				w.walk(n.Name, w.bodies[used])
			}
		}
		return true
	})
}

// names notes the cases of a switch over the names of parameters.
func (w *openapiWalk) names(cases []ast.Stmt) {
	for _, one := range cases {
		for _, name := range one.(*ast.CaseClause).List {
			w.facts["parameter "+openapiText(name)] = true
		}
	}
}

// literal notes an apiError.
func (w *openapiWalk) literal(n *ast.CompositeLit) {
	if n.Type == nil || types.ExprString(n.Type) != "apiError" {
		return
	}
	member := map[string]string{}
	for _, e := range n.Elts {
		pair := e.(*ast.KeyValueExpr)
		member[types.ExprString(pair.Key)] = openapiText(pair.Value)
	}
	if status, err := strconv.Atoi(member["status"]); err == nil {
		w.refused = append(w.refused, &apiError{
			status: status, code: member["code"], challenge: member["challenge"]})
	}
}

// call notes what a call says of the input and of the answer.
func (w *openapiWalk) call(name string, args []ast.Expr) {
	text := func(i int) string { return openapiText(args[i]) }
	switch name {
	case "refusal":
		w.refused = append(w.refused, refusal(must(strconv.Atoi(text(0))), text(1), ""))
	case "need":
		w.facts["member "+text(0)+" required"] = true
	case "needOrBare":
		w.facts["member "+text(0)+" required or bare"] = true
	case "maybe":
		w.facts["member "+text(0)] = true
	case "Get", "Has": // of a form or query, whose names are in lower case
		if name := text(0); name != "" && name == strings.ToLower(name) {
			w.facts["parameter "+name] = true
		}
	case "oneOf", "queryNumber":
		w.facts["parameter "+text(1)] = true
	case "writeDocument", "writeJSON", "streamList", "writePage":
		w.facts["200"] = true
	case "writeBody":
		w.facts[text(1)] = true
	}
}

// factsOf are what the code says of a route: parameters and members of the
// body, statuses and the codes of errors.
func (c openapiCode) factsOf(ts *testServer, rt route, handler ast.Node) (facts []string) {
	w := openapiWalk{c, map[ast.Node]bool{}, []*apiError{errInternal}, map[string]bool{}}
	w.walk("", handler)
	if rt.need != public {
		w.walk("authenticate", c.named["authenticate"])
	}
	if rt.need != public && rt.need != permSelf {
		w.refused = append(w.refused, errRoleTooLow)
	}
	r := &http.Request{Header: http.Header{}}
	if strings.Contains(rt.pattern, forwardPath) { // where browsers ask
		r.Header.Set("Accept", "text/html")
	}
	for _, e := range w.refused {
		rec := httptest.NewRecorder()
		rt.kind.fail(&exchange{ResponseWriter: rec, s: ts.srv, r: r, route: &rt}, e)
		var body map[string]any
		json.Unmarshal(rec.Body.Bytes(), &body)
		code, _ := cmp.Or(body["code"], body["error"]).(string)
		w.facts[strings.TrimSpace(fmt.Sprint(rec.Code, " ", code))] = true
	}
	for _, m := range regexp.MustCompile(`{(\w+)}`).FindAllStringSubmatch(rt.pattern, -1) {
		w.facts["path "+m[1]] = true
	}
	attribute := userAttributes[rt.pattern[strings.LastIndex(rt.pattern, "/")+1:]] // whose name is no literal
	delete(w.facts, "")
	for fact := range w.facts {
		fact = strings.Replace(fact, "member  ", "member "+attribute.member+" ", 1)
		if !c.isException(rt.pattern + " " + fact) {
			facts = append(facts, fact)
		}
	}
	return facts
}

// openapiAt is what a path of names leads to in the document, or nil.
func openapiAt(node any, names ...string) any {
	for _, name := range names {
		node = openapiFile().follow(node)[name]
	}
	return node
}

// openapiCodes are the codes of errors that a body can have.
func openapiCodes(content any) (codes []any) {
	all, _ := openapiAt(content, "schema", "allOf").([]any)
	for _, part := range all {
		for _, name := range []string{"code", "error"} {
			more, _ := openapiAt(part, "properties", name, "enum").([]any)
			codes = append(codes, more...)
		}
	}
	return codes
}

// openapiFacts are what the document says of an operation, in the same words.
func openapiFacts(operation apiNode) (facts []string) {
	parameters, _ := operation["parameters"].([]any)
	for _, p := range parameters {
		in := strings.Replace(openapiAt(p, "in").(string), "query", "parameter", 1)
		facts = append(facts, in+" "+openapiAt(p, "name").(string))
	}
	content, _ := openapiAt(operation["requestBody"], "content").(apiNode)
	for kind, body := range content {
		schema, bare := openapiFile().follow(openapiAt(body, "schema")), ""
		if either, ok := schema["oneOf"].([]any); ok {
			schema, bare = openapiFile().follow(either[0]), " or bare"
		}
		for _, m := range docsMembers(schema) {
			switch {
			case kind != "application/json":
				facts = append(facts, "parameter "+m.Name)
			case m.Required:
				facts = append(facts, "member "+m.Name+" required"+bare)
			default:
				facts = append(facts, "member "+m.Name)
			}
		}
	}
	for status, response := range operation["responses"].(apiNode) {
		codes := 0
		content, _ := openapiAt(response, "content").(apiNode)
		for _, body := range content {
			for _, code := range openapiCodes(body) {
				codes++
				facts = append(facts, status+" "+code.(string))
			}
		}
		if codes == 0 {
			facts = append(facts, status)
		}
	}
	return facts
}

// TestOpenAPI_IsTheCode: the document has the routes, and of each what its
// handler reads and what it can answer, found by following the code.
func TestOpenAPI_IsTheCode(t *testing.T) {
	t.Parallel()
	ts, code := newTestServer(t, providerClients), openapiRead()
	var described, patterns []string
	for path, methods := range openapiFile().Paths {
		for method := range methods {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	handlers, read := code.handlers(code.named["routeTable"]), map[string][]string{} // by GET of the path
	for i, rt := range ts.srv.routeTable() {
		method, path := openapiKey(rt.pattern)
		patterns = append(patterns, method+" "+path)
		facts := code.factsOf(ts, rt, handlers[i])
		if method == "GET" {
			read[path] = facts
		}
		t.Run(rt.pattern, func(t *testing.T) {
			operation := openapiFile().Paths[path][strings.ToLower(method)]
			if operation == nil {
				t.Fatal("it is not in the document")
			}
			if openapiAt(operation["responses"], "303", "description") == "To the same as GET" {
				isOther := func(fact string) bool { return !strings.HasPrefix(fact, "parameter ") }
				facts = append(facts, slices.DeleteFunc(slices.Clone(read[path]), isOther)...)
			}
			structureSame(t, "the document says", openapiFacts(operation), facts)
			bearer := fmt.Sprint(operation["security"]) == "[map[bearer:[]]]"
			want(t, "needs a bearer", bearer, rt.need != public)
		})
	}
	structureSame(t, "operation", described, patterns)
	for _, exception := range slices.Concat(openapiHandled, openapiNever) {
		want(t, "the exception is needed: "+exception, code.met[exception], true)
	}
}

// TestOpenAPI_Served: the document is of this server: its title, version and
// address, and the operations that it has. Every reference leads somewhere, and
// every operation has an id that generators can make a name of.
func TestOpenAPI_Served(t *testing.T) {
	t.Parallel()
	for path, options := range map[string][]func(*config){"": nil, "/auth": {providerClients, forwardDomain}} {
		t.Run("issuer "+path, func(t *testing.T) {
			ts := newTestServer(t, append(options, func(c *config) {
				c.issuer, c.apiTitle, c.apiVersion = "https://id.example.com"+path+"/", "Ours <i>", "7.1"
			})...)
			served := ts.wantOK("document", ts.do("GET", openapiPath, "", nil, "Host: evil.example"))
			wantText(t, "document", served.body, `{"openapi":"3.1.0","info":{`,
				`"title":"Ours \u003ci\u003e","version":"7.1"`,
				`"servers":[{"url":"https://id.example.com`+path+`"}]`)
			var d apiDocument
			mustOK(json.Unmarshal([]byte(served.body), &d))
			var operations, routes, ids []string
			for path, methods := range d.Paths {
				for method, operation := range methods {
					operations = append(operations, strings.ToUpper(method)+" "+path)
					id := operation["operationId"].(string)
					want(t, id+" is a name", regexp.MustCompile(`^[a-z][A-Za-z]+$`).MatchString(id), true)
					want(t, id+" is taken", slices.Contains(ids, id), false)
					ids = append(ids, id)
				}
			}
			for pattern := range ts.srv.routes {
				method, path := openapiKey(pattern)
				routes = append(routes, method+" "+path)
			}
			structureSame(t, "operation", operations, routes)
			for _, m := range regexp.MustCompile(`"\$ref":"([^"]*)"`).FindAllStringSubmatch(served.body, -1) {
				want(t, m[1]+" leads nowhere", d.follow(apiNode{"$ref": m[1]}) == nil, false)
			}
			page := ts.wantOK("page", ts.do("GET", docsPath, "", nil))
			wantText(t, "page", page.body, "<h1>Ours &lt;i&gt;", `href="openapi.json"`,
				"'https://id.example.com"+path+"/api/v1/")
			for _, id := range ids {
				wantText(t, "page", page.body, `<details id="`+id+`">`)
			}
			links := regexp.MustCompile(`href="#([^"]*)"`).FindAllStringSubmatch(page.body, -1)
			for _, link := range links {
				wantText(t, "page", page.body, ` id="`+link[1]+`"`)
			}
			want(t, "has links", len(links) > 50, true)
			want(t, "scripts", strings.Count(strings.ToLower(page.body), "<script"), 0)
		})
	}
}

// TestOpenAPI_ReadmeAgrees: the statuses of the README's table are in the
// document.
func TestOpenAPI_ReadmeAgrees(t *testing.T) {
	t.Parallel()
	row := regexp.MustCompile("(?m)^\\| (any|[A-Z]+) \\| `(\\S+)` \\| [a-z]+ \\| ([^`?\n]*)")
	for _, m := range row.FindAllStringSubmatch(structureRead(t, "README.md"), -1) {
		for _, status := range regexp.MustCompile(`\b[2-5]\d\d\b`).FindAllString(m[3], -1) {
			method := strings.Replace(strings.ToLower(m[1]), "any", "get", 1)
			operation := openapiFile().Paths[m[2]][method]
			want(t, m[1]+" "+m[2]+" has "+status, openapiAt(operation, "responses", status) != nil, true)
		}
	}
}

// openapiFault is what is wrong with a value by a schema, as far as this
// document uses JSON Schema, or "". Members that are not in the schema are
// faults.
func openapiFault(node, value any) string {
	schema := openapiFile().follow(node)
	all, _ := schema["allOf"].([]any)
	for _, part := range all {
		if fault := openapiFault(part, value); fault != "" {
			return fault
		}
	}
	if either, ok := schema["oneOf"].([]any); ok {
		fits := func(one any) bool { return openapiFault(one, value) == "" }
		if !slices.ContainsFunc(either, fits) {
			return fmt.Sprintf("%v is none of %v", value, either)
		}
		return ""
	}
	enum, limited := schema["enum"].([]any)
	if limited && !slices.Contains(enum, value) {
		return fmt.Sprintf("%v is not in %v", value, enum)
	}
	if constant, ok := schema["const"]; ok && constant != value {
		return fmt.Sprintf("%v is not %v", value, constant)
	}
	kinds := map[string]string{"string": "string", "float64": "integer", "bool": "boolean", "<nil>": "null",
		"[]interface {}": "array", "map[string]interface {}": "object"}
	kind := kinds[fmt.Sprintf("%T", value)]
	if schema["type"] != nil && schema["type"] != kind {
		return fmt.Sprintf("%v is no %v", value, schema["type"])
	}
	items, _ := value.([]any)
	for _, item := range items {
		if fault := openapiFault(schema["items"], item); fault != "" {
			return fault
		}
	}
	object, _ := value.(map[string]any)
	properties, _ := schema["properties"].(apiNode)
	for _, m := range docsMembers(schema) {
		if value, ok := object[m.Name]; ok {
			if fault := openapiFault(m.Schema, value); fault != "" {
				return m.Name + ": " + fault
			}
		} else if m.Required && kind == "object" {
			return m.Name + " is missing"
		}
	}
	closed := schema["type"] != nil && properties != nil && schema["additionalProperties"] != true
	for name := range object {
		if closed && properties[name] == nil {
			return name + " is unknown"
		}
	}
	return ""
}

// wantDescribed checks an answer of a documented operation, whatever the test
// is about that asked: its status, its type and its body are in the document,
// and it has the headers that the document calls required.
func (ts *testServer) wantDescribed(r *http.Request, a answer) {
	ts.Helper()
	if ts.srv == nil || a.text("code") == "not_found" || a.status == 405 {
		return
	}
	_, pattern := ts.srv.mux.Handler(r)
	method, path := openapiKey(pattern)
	operation := openapiFile().Paths[path][strings.ToLower(method)]
	if operation == nil {
		return
	}
	response := openapiFile().follow(openapiAt(operation, "responses", fmt.Sprint(a.status)))
	headers, _ := response["headers"].(apiNode)
	for name, header := range headers {
		there := a.header.Values(name) != nil
		want(ts, pattern+": lacks "+name, header.(apiNode)["required"] == true && !there, false)
	}
	content, _ := response["content"].(apiNode)
	kind, _, _ := mime.ParseMediaType(a.header.Get("Content-Type"))
	switch {
	case response == nil:
		ts.Errorf("%s answers %d, which the document does not have", pattern, a.status)
	case content == nil:
		want(ts, pattern+": type", kind, "")
	case content[kind] == nil:
		ts.Errorf("%s answers %d with %s, which the document does not have", pattern, a.status, kind)
	case strings.HasSuffix(kind, "json") && r.Method != "HEAD":
		var value any
		mustOK(json.Unmarshal([]byte(a.body), &value))
		fault := openapiFault(openapiAt(content[kind], "schema"), value)
		want(ts, fmt.Sprint(pattern, " ", a.status, ": fault of the body"), fault, "")
	}
}

// openapiWords are the words of a command; $TOKEN stands for the token.
func openapiWords(command, token string) (words []string) {
	word := regexp.MustCompile(`'([^']*)'|"([^"]*)"|(\S+)`)
	for _, m := range word.FindAllStringSubmatch(command, -1) {
		words = append(words, strings.Replace(m[1]+m[2]+m[3], "$TOKEN", token, 1))
	}
	return words
}

// TestOpenAPI_Commands: every command of the page does something that the
// operation describes, and its body is read: the decoder finds fault neither
// with the example nor, when a member of another type takes its place, with
// anything but that member.
func TestOpenAPI_Commands(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, providerClients, forwardDomain, unthrottled)
	page := ts.wantOK("page", ts.do("GET", docsPath, "", nil))
	commands := regexp.MustCompile(`<pre>(curl .*)</pre>`).FindAllStringSubmatch(page.body, -1)
	want(t, "commands", len(commands), len(ts.srv.routeTable()))
	admin := ts.mustAdmin()
	for _, m := range commands {
		command := html.UnescapeString(m[1])
		t.Run(command[:min(70, len(command))], func(t *testing.T) {
			ts, w := ts.in(t), openapiWords(command, admin)
			method, path, headers, body := w[2], strings.TrimPrefix(w[3], ts.cfg.issuer), []string{}, ""
			for i := 4; i < len(w); i += 2 {
				if w[i] == "-H" {
					headers = append(headers, w[i+1])
				} else {
					body = w[i+1]
				}
			}
			a := ts.do(method, path, "", body, headers...)
			if a.status == 415 || a.status == 422 || a.text("error") == "invalid_request" || a.status >= 500 {
				t.Errorf("the example gets %d %s", a.status, a.body)
			}
			var members object
			json.Unmarshal([]byte(body), &members)
			for name := range members {
				other := maps.Clone(members)
				other[name] = object{}
				a := ts.do(method, path, "", other, headers...)
				ts.wantProblem(name+" of another type", a, 422, "invalid_field")
				want(t, "field", a.text("field"), name)
			}
		})
	}
}

// === authorize.go, pages.go ===

const (
	verifier  = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636 appendix B
	challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
	oddState  = "s t&a+te=%41/é\"<" // comes back as it went

	adaEmail = "ada@example.com"
	formType = "Content-Type: application/x-www-form-urlencoded"
)

// surfer is a browser that follows nothing by itself.
type surfer struct {
	*testServer
	cookie string // name=value
}

// newProvider starts a server with clients and with ada and bob; the browser is
// nobody's yet.
func newProvider(t testing.TB, options ...func(*config)) (*testServer, *surfer) {
	ts := newTestServer(t, append([]func(*config){providerClients}, options...)...)
	ts.mustUser(adaEmail, viewer, defaultOrg)
	ts.mustUser("bob@example.com", viewer, defaultOrg)
	return ts, &surfer{testServer: ts}
}

// in is the browser in the hands of a subtest.
func (b *surfer) in(t testing.TB) *surfer { return &surfer{b.testServer.in(t), b.cookie} }

// do sends a request, with a form if there is one, and keeps the cookie.
func (b *surfer) do(method, path string, form url.Values, headers ...string) answer {
	b.Helper()
	var body any
	if form != nil {
		body = form.Encode()
		headers = append([]string{formType}, headers...)
	}
	if b.cookie != "" {
		headers = append(headers, "Cookie: "+b.cookie)
	}
	a := b.testServer.do(method, path, "", body, headers...)
	if set := a.header.Get("Set-Cookie"); set != "" {
		b.cookie, _, _ = strings.Cut(set, ";")
	}
	return a
}

// changed is a query with some parameters replaced: "name=value", "name=-" for
// without, "+name=value" for one more.
func changed(query url.Values, changes ...string) url.Values {
	for _, change := range changes {
		name, value, _ := strings.Cut(change, "=")
		switch more, again := strings.CutPrefix(name, "+"); {
		case again:
			query.Add(more, value)
		case value == "-":
			query.Del(name)
		default:
			query.Set(name, value)
		}
	}
	return query
}

// authorizeURL is a request for a code that has everything.
func authorizeURL(client, uri string, changes ...string) string {
	return authorizePath + "?" + changed(url.Values{
		"client_id":             {client},
		"redirect_uri":          {uri},
		"response_type":         {"code"},
		"scope":                 {"openid email profile groups"},
		"state":                 {oddState},
		"nonce":                 {"n-1"},
		"code_challenge":        {challenge},
		"code_challenge_method": {"S256"},
	}, changes...).Encode()
}

// authorize is what a client sends its user to.
func (b *surfer) authorize(client string, changes ...string) answer {
	b.Helper()
	return b.do("GET", authorizeURL(client, providerURIs[client], changes...), nil)
}

// actionOf is where the form of a page goes.
func actionOf(a answer) string {
	m := regexp.MustCompile(`<form method="post" action="([^"]*)">`).FindStringSubmatch(a.body)
	if m == nil {
		return "/no-form"
	}
	return html.UnescapeString(m[1])
}

// kindOf names what an answer shows or does.
func kindOf(a answer) string {
	to := must(url.Parse(a.header.Get("Location")))
	switch {
	case a.status == 303 && to.Query().Has("code"):
		return "code"
	case a.status == 303 && to.Query().Has("error"):
		return to.Query().Get("error")
	case a.status == 303:
		return a.header.Get("Location")
	case strings.Contains(a.body, `name="password"`):
		return "login page"
	case strings.Contains(a.body, `value="yes"`):
		return "continue page"
	case strings.Contains(a.body, ">Log out</button>"):
		return "logout page"
	case strings.Contains(a.body, "You are logged out"):
		return "signed out"
	}
	return fmt.Sprint(a.status)
}

// logIn fills in the form of a login page.
func (b *surfer) logIn(page answer, email, password string, headers ...string) answer {
	b.Helper()
	return b.do("POST", actionOf(page), url.Values{"email": {email}, "password": {password}}, headers...)
}

// as logs somebody in by way of the wiki.
func (b *surfer) as(email string) *surfer {
	b.Helper()
	got := kindOf(b.logIn(b.authorize("wiki", "prompt=login"), email, userPassword))
	if got != "code" {
		b.Fatalf("login of %s = %s; want a code", email, got)
	}
	return b
}

// back is the query with which a client gets its user back. It checks what
// every such answer has.
func (b *surfer) back(client string, a answer) url.Values {
	b.Helper()
	to, uri := a.header.Get("Location"), providerURIs[client]
	separator := "?"
	if strings.Contains(uri, "?") {
		separator = "&"
	}
	rest, back := strings.CutPrefix(to, uri+separator)
	query, err := url.ParseQuery(rest)
	if a.status != 303 || !back || err != nil {
		b.Fatalf("%d %s %q; want a redirect to %s", a.status, a.body, to, uri)
	}
	want(b, "iss", fmt.Sprint(query["iss"]), "["+b.cfg.issuer+"]")
	return query
}

// mustCode is a code for a client; the browser must be logged in.
func (b *surfer) mustCode(client string, changes ...string) string {
	b.Helper()
	a := b.authorize(client, changes...)
	if page := kindOf(a); page == "continue page" {
		form := url.Values{"answer": {"yes"}, "user": {b.userOfPage(a)}}
		a = b.do("POST", actionOf(a), form)
	}
	code := b.back(client, a).Get("code")
	if code == "" {
		b.Fatalf("%d %s; want a code", a.status, a.header.Get("Location"))
	}
	return code
}

// userOfPage is the user whom a "Continue as" page names.
func (b *surfer) userOfPage(a answer) string {
	m := regexp.MustCompile(`name="user" value="(\w+)"`).FindStringSubmatch(a.body)
	if m == nil {
		b.Fatalf("%d %s; want a page that names a user", a.status, a.body)
	}
	return m[1]
}

// sessions counts rows.
func (ts *testServer) rowsOf(condition string) (id string) {
	mustOK(ts.store.reads.get(`SELECT id FROM sessions WHERE `+condition, nil, &id))
	return id
}

func (ts *testServer) rows(condition string) (n int64) {
	mustOK(ts.store.reads.get(`SELECT count(*) FROM sessions WHERE `+condition, nil, &n))
	return n
}

// TestAuthorize_FaultsByPlace: until client and redirect URI are proven people
// see a page that says nothing of the request, and the log names the setting to
// change. Afterwards the client hears what is wrong, with state and issuer.
func TestAuthorize_FaultsByPlace(t *testing.T) {
	t.Parallel()
	_, nobody := newProvider(t)
	ada := (&surfer{testServer: nobody.testServer}).as(adaEmail)
	const page = "400"
	for _, line := range lines(`
		nobody  app    client_id=-                        400  the request has no client_id
		nobody  app    client_id=evil<i>                  400  client_id evil<i> is not in oidc.clients
		nobody  app    client_id=#browser                 400  client_id #browser is not in oidc.clients
		nobody  app    +client_id=app                     400  the request has client_id more than once
		nobody  app  redirect_uri=-  400  the request has no redirect_uri
		nobody  app  redirect_uri=https://evil.example/<i>  400  redirect_uri https://evil.example/<i> is not in
		nobody  app    +redirect_uri=https://app.example/cb  400  the request has redirect_uri more than once
		nobody  app  redirect_uri=https://evil.example/,request=x  400  not in oidc.clients.app.redirect_uris
		nobody  app  redirect_uri=https://wiki.example/cb?x=1,prompt=none  400  oidc.clients.app.redirect_uris
		nobody  app    +scope=email                       invalid_request
		nobody  app    +nonce=n                           invalid_request
		nobody  app    +unknown=1,+unknown=2              invalid_request
		nobody  app    response_type=-                    invalid_request
		nobody  app    max_age=x                          invalid_request
		nobody  app    max_age=-1                         invalid_request
		nobody  app    max_age=1.5                        invalid_request
		nobody  app    max_age=99999999999999999999       invalid_request
		nobody  app    prompt=none login                  invalid_request
		nobody  app    code_challenge=-                   invalid_request  oidc.clients.app.pkce is required
		nobody  app  code_challenge=-,code_challenge_method=-  invalid_request  app.pkce is required
		nobody  spa  code_challenge=-,code_challenge_method=-  invalid_request  spa.pkce is required
		nobody  wiki   code_challenge=-                   invalid_request
		nobody  app    code_challenge_method=-            invalid_request
		nobody  app    code_challenge_method=plain        invalid_request
		nobody  wiki   code_challenge_method=plain        invalid_request
		nobody  app    code_challenge_method=s256         invalid_request
		nobody  app    code_challenge=short               invalid_request
		nobody  app    code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw/cM  invalid_request
		nobody  app    response_type=token                unsupported_response_type
		nobody  app    response_type=id_token             unsupported_response_type
		nobody  app    response_type=code id_token        unsupported_response_type
		nobody  app    request=                           request_not_supported
		nobody  app    request=eyJ,response_type=-        request_not_supported
		nobody  app    request_uri=https://evil.example/  request_uri_not_supported
		nobody  app  resource=https://evil.example/  invalid_target  app.audience has no https://evil.example/
		nobody  mcp    resource=https://mcp.example/      invalid_target  oidc.clients.mcp.audience has no
		nobody  app    prompt=none                        login_required
		ada     app    prompt=none,max_age=0              login_required
		ada     app    prompt=none,id_token_hint=x        login_required
		ada     cli    prompt=none                        interaction_required
		ada     asking  prompt=none                       interaction_required
		ada  staff  -  access_denied  the user is in none of oidc.clients.staff.groups
		ada     staff  prompt=none                        access_denied
		ada     wiki   code_challenge=-,code_challenge_method=-  code
		ada     wiki   -                                  code
		ada     wiki   response_mode=form_post,display=page,ui_locales=de,claims={},unknown=1  code
		ada     wiki   scope=-                            code
		ada     mcp    resource=https://mcp.example/mcp/  code`) {
		t.Run(line, func(t *testing.T) {
			c := columns(line)
			b := map[string]*surfer{"nobody": nobody, "ada": ada}[c[0]].in(t)
			changes := []string{"x=-"}
			if c[2] != "" {
				changes = strings.Split(c[2], ",")
			}
			a := b.authorize(c[1], changes...)
			want(t, "outcome", kindOf(a), c[3])
			if len(c) > 4 {
				wantText(t, "log", b.logs.String(), c[4])
			}
			if c[3] == page {
				want(t, "Location", a.header.Get("Location"), "")
				want(t, "the request is in the page", strings.Contains(a.body, "evil"), false)
				wantText(t, "page", a.body, "request "+a.header.Get("X-Request-Id"), `role="alert"`)
				return
			}
			query := b.back(c[1], a)
			want(t, "state", query.Get("state"), oddState)
			query.Del("state")
			query.Del("iss")
			if c[3] == "code" {
				want(t, "members", len(query), 1)
				return
			}
			want(t, "description",
				regexp.MustCompile(`^[ -~]+$`).MatchString(query.Get("error_description")), true)
			want(t, "characters of RFC 6749", strings.ContainsAny(query.Get("error_description"), `"\`),
				false)
			want(t, "members", len(query), 2)
		})
	}
}

// TestAuthorize_StateAndNonce come back byte for byte, and not at all when they
// were not sent.
func TestAuthorize_StateAndNonce(t *testing.T) {
	t.Parallel()
	_, b := newProvider(t)
	b.as(adaEmail)
	for _, text := range []string{
		"-", "x", strings.Repeat("0123456789abcdef",
			8), `{"a":"b c"}`, "é😀", "+ %20&=#?/\\\"'<>", strings.Repeat("s", 2000),
	} {
		t.Run(fmt.Sprintf("%.20s", text), func(t *testing.T) {
			b, sent := b.in(t), strings.Trim(text, "-")
			query := b.back("app", b.authorize("app", "state="+text, "nonce="+text))
			want(t, "state", query.Get("state"), sent)
			want(t, "there is a state", query.Has("state"), sent != "")
			tokens := b.wantOK("token", b.redeem("app", query.Get("code")))
			nonce, sentBack := claimsOf(tokens.text("id_token"))["nonce"]
			want(t, "there is a nonce", sentBack, sent != "")
			if sentBack {
				want(t, "nonce", nonce, any(sent))
			}
			fault := b.back("app", b.authorize("app", "state="+text, "response_type=x"))
			want(t, "state of an error", fault.Get("state"), sent)
			want(t, "an error has a state", fault.Has("state"), sent != "")
		})
	}
}

// TestAuthorize_WhoIsAskedWhat: one login serves every client, unless the
// client wants the password again, expects somebody else, or the user must be
// asked. The columns are seconds since the login, the client, the change, and
// what is shown.
func TestAuthorize_WhoIsAskedWhat(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	want(t, "nobody", kindOf(b.authorize("app")), "login page")
	bob := (&surfer{testServer: ts}).as("bob@example.com")
	bobs := ts.wantOK("token", bob.redeem("app", bob.mustCode("app"))).text("id_token")
	b.as(adaEmail)
	adas := ts.wantOK("token", b.redeem("app", b.mustCode("app"))).text("id_token")
	last := 0
	for _, line := range lines(`
		0      app   -                    code
		0      app   prompt=none          code
		0      app   prompt=login         login page
		0      app   prompt=login consent  login page
		0      app   prompt=consent       continue page
		0      app   prompt=select_account  continue page
		0      app   prompt=create        code
		0      app   max_age=0            login page
		0      app   max_age=             code
		0      app   id_token_hint=ADAS   code
		0      app   id_token_hint=ADAS,prompt=none  code
		0      app   id_token_hint=BOBS   login page
		0      app   id_token_hint=BOBS,prompt=none  login_required
		0      app   id_token_hint=garbage  login page
		0      cli   -                    continue page
		0      cli   redirect_uri=com.example.cli:/cb  continue page
		0      spa   -                    code
		0      asking  -                  continue page
		1      app   max_age=1            code
		2      app   max_age=1            login page
		2      app   max_age=1,prompt=none  login_required
		7200   app   id_token_hint=ADAS   code
		45000  app   -                    code
		88199  app   -                    code
		131400  app  -                    login page`) {
		c := columns(line)
		at := must(time.ParseDuration(c[0] + "s"))
		ts.clock.advance(at - time.Duration(last)*time.Second)
		last = int(at / time.Second)
		change := strings.NewReplacer("ADAS", adas, "BOBS", bobs).Replace(c[2])
		want(t, line, kindOf(b.authorize(c[1], strings.Split(change+",x=-", ",")...)), c[3])
	}
}

// TestAuthorize_SessionsEnd: the browser's session lives for 12 hours after
// its last use, and 30 days in all.
func TestAuthorize_SessionsEnd(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	for range 60 {
		ts.clock.advance(12*time.Hour - time.Second)
		want(t, "used in time", kindOf(b.authorize("app")), "code")
	}
	ts.clock.advance(59 * time.Second)
	want(t, "a second before 30 days", kindOf(b.authorize("app")), "code")
	ts.clock.advance(time.Second)
	want(t, "after 30 days", kindOf(b.authorize("cli")), "login page")
	b.as(adaEmail)
	ts.clock.advance(12 * time.Hour)
	want(t, "12 hours unused", kindOf(b.authorize("app")), "login page")
}

// TestAuthorize_ContinueAs: the answer counts for the user whom the page named
// and under the same rules as the request. Nothing is given before it.
func TestAuthorize_ContinueAs(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	page := b.authorize("cli")
	wantText(t, "page", page.body, "Continue as "+adaEmail, "Continue to cli?", "<strong>127.0.0.1</strong>",
		"Log in as somebody else", "localhost:8100")
	other := regexp.MustCompile(`<a href="([^"]*)">`).FindStringSubmatch(page.body)
	want(t, "somebody else", kindOf(b.do("GET", html.UnescapeString(other[1]), nil)), "login page")
	wantText(t, "page for an app", b.authorize("cli", "redirect_uri=com.example.cli:/cb").body,
		"<strong>com.example.cli:</strong>")
	ada := b.userOfPage(page)
	answer := func(b *surfer, page answer, changes ...string) string {
		form := changed(url.Values{"answer": {"yes"}, "user": {ada}}, changes...)
		return kindOf(b.do("POST", actionOf(page), form))
	}
	want(t, "codes before an answer", ts.rows(`client_id = 'cli'`), 0)
	want(t, "yes", answer(b, page), "code")
	want(t, "yes to the consent that was asked for", answer(b, b.authorize("app", "prompt=consent")), "code")
	want(t, "no", answer(b, page, "answer=no"), "access_denied")
	want(t, "neither", answer(b, page, "answer=-"), "access_denied")
	want(t, "for nobody in particular", answer(b, page, "user=-"), "continue page")
	want(t, "nobody logged in", answer(&surfer{testServer: ts}, page), "login page")
	bob := (&surfer{testServer: ts}).as("bob@example.com")
	want(t, "somebody else logged in since", answer(bob, page), "continue page")
	want(t, "a page with another redirect URI",
		answer(b, pageWith(page, "127.0.0.1", "evil.example")), "400")
	stale := b.authorize("cli", "max_age=60")
	ts.clock.advance(61 * time.Second)
	want(t, "yes, but the login is too old by now", answer(b, stale), "login page")
	want(t, "yes, where a login was asked for",
		answer(b, pageWith(page, "client_id", "prompt=login&amp;client_id")), "login page")
	want(t, "codes of the client", ts.rows(`client_id = 'cli'`), 1)
}

// pageWith is a page that somebody changed.
func pageWith(a answer, old, new string) answer {
	a.body = strings.Replace(a.body, old, new, -1)
	return a
}

// TestAuthorize_FormsAreOurs: forms count only if our own pages sent them.
// Otherwise another site could log its visitors in as somebody it chose. A
// proxy may rewrite Host; browsers without Sec-Fetch-Site send Origin.
func TestAuthorize_FormsAreOurs(t *testing.T) {
	t.Parallel()
	_, b := newProvider(t, func(c *config) { c.issuer = "https://id.example" })
	login, _ := b.authorize("app"), b.cookie
	b.as(adaEmail)
	ask, out := b.authorize("cli"), b.do("GET", logoutPath, nil)
	for _, line := range lines(`
		yes  Accept: text/html
		yes  Sec-Fetch-Site: same-origin
		yes  Sec-Fetch-Site: none
		no   Sec-Fetch-Site: same-site
		no   Sec-Fetch-Site: cross-site
		yes  Origin: https://id.example
		yes  Origin: https://id.example | Sec-Fetch-Site: cross-site
		yes  Origin: https://id.example | Host: internal:8100
		no   Origin: https://evil.example
		no   Origin: https://evil.example | Host: internal:8100
		no   Origin: https://id.example.evil.example
		no   Origin: http://id.example
		no   Origin: null
		no   Origin: https://app.example | Sec-Fetch-Site: cross-site`) {
		for name, form := range map[string]url.Values{
			"login":    {"email": {adaEmail}, "password": {userPassword}},
			"continue": {"answer": {"yes"}, "user": {b.userOfPage(ask)}},
			"logout":   {},
		} {
			t.Run(name+" "+line, func(t *testing.T) {
				b, c := b.in(t), columns(line)
				page := map[string]answer{"login": login, "continue": ask, "logout": out}[name]
				if name != "continue" { // which would end the session
					b.cookie = ""
				}
				a := b.do("POST", actionOf(page), form, strings.Split(c[1], " | ")...)
				if c[0] == "yes" {
					want(t, "accepted", a.status == 303 || kindOf(a) == "signed out", true)
					return
				}
				want(t, "status", a.status, 403)
				want(t, "cookie", a.header.Get("Set-Cookie"), "")
				wantText(t, "page", a.body, "sent from another site")
			})
		}
	}
	a := b.do("POST", authorizePath, url.Values{"client_id": {"app"}},
		"Origin: https://app.example", "Sec-Fetch-Site: cross-site")
	want(t, "a client posts to authorize", a.status, 303)
	a = b.do("POST", logoutPath, url.Values{"state": {"x"}}, "Origin: https://app.example")
	want(t, "a client posts to logout", a.status, 303)
}

// TestAuthorize_Cookie: the cookie follows the scheme of the issuer, ends with
// the browser, and opens nothing but the pages.
func TestAuthorize_Cookie(t *testing.T) {
	t.Parallel()
	for issuer, pattern := range map[string]string{
		"http://localhost:8100":   `^pico=([\w.-]+); Path=/; HttpOnly; SameSite=Lax$`,
		"https://id.example":      `^__Host-pico=([\w.-]+); Path=/; HttpOnly; Secure; SameSite=Lax$`,
		"HTTPS://id.example/base": `^__Host-pico=([\w.-]+); Path=/; HttpOnly; Secure; SameSite=Lax$`,
	} {
		t.Run(issuer, func(t *testing.T) {
			ts, b := newProvider(t, func(c *config) { c.issuer = issuer })
			page := b.authorize("app")
			want(t, "cookie before the login", page.header.Get("Set-Cookie"), "")
			wantText(t, "action", actionOf(page), ts.cfg.basePath()+loginFormPath+"?")
			action := strings.TrimPrefix(actionOf(page), ts.cfg.basePath())
			a := b.do("POST", action, url.Values{"email": {adaEmail}, "password": {userPassword}})
			m := regexp.MustCompile(pattern).FindStringSubmatch(a.header.Get("Set-Cookie"))
			if m == nil {
				t.Fatalf("Set-Cookie: %s", a.header.Get("Set-Cookie"))
			}
			ts = ts.in(t)
			ts.wantProblem("as refresh token", ts.refresh(m[1]), 401, "invalid_token")
			ts.wantProblem("as bearer", ts.ask("GET /me", m[1], nil), 401, "invalid_token")
			ts.mustAsk("POST /logout", "", object{"refresh_token": m[1]})
			want(t, "as refresh token of a client", ts.post(tokenPath, "app",
				"grant_type=refresh_token", "refresh_token="+m[1]).text("error"), "invalid_grant")
			want(t, "revoked", ts.post(revokePath, "app", "token="+m[1]).status, 200)
			want(t, "it lives", kindOf(b.authorize("app")), "code")
			handle, _, _ := strings.Cut(m[1], ".")
			forged := &surfer{b.testServer, ts.srv.cookieName() + "=" + newRefreshToken(handle)}
			want(t, "its handle with another secret", kindOf(forged.authorize("app")), "login page")
			out := b.do("POST", logoutConfirmPath, url.Values{})
			wantText(t, "cookie of a logout", out.header.Get("Set-Cookie"), "=; Path=/; Max-Age=0; HttpOnly")
		})
	}
	_, b := newProvider(t)
	_, refresh := b.mustLogin(adaEmail, userPassword)
	for _, cookie := range []string{"x", "x.y", refresh, strings.Repeat("a", 5000)} {
		b.cookie = "pico=" + cookie
		want(t, "somebody by the cookie "+cookie, kindOf(b.authorize("cli")), "login page")
	}
}

// TestAuthorize_EveryLoginIsANewSession: nobody can plant a cookie and wait for
// a login. What clients of the same user have goes on, that of another ends.
func TestAuthorize_EveryLoginIsANewSession(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	before := b.as(adaEmail).cookie
	online := ts.wantOK("token", b.redeem("app", b.mustCode("app")))
	offline := ts.wantOK("token", b.redeem("app", b.mustCode("app", "scope=openid offline_access")))
	b.as(adaEmail)
	want(t, "the same cookie", b.cookie == before, false)
	want(t, "the old cookie", kindOf((&surfer{ts, before}).authorize("app")), "login page")
	online = ts.wantOK("refresh", ts.refreshAs("app", online.text("refresh_token")))
	b.as(adaEmail)
	online = ts.wantOK("refresh", ts.refreshAs("app", online.text("refresh_token")))
	before = b.cookie
	b.as("bob@example.com")
	want(t, "the old cookie", kindOf((&surfer{ts, before}).authorize("app")), "login page")
	want(t, "after bob", ts.refreshAs("app", online.text("refresh_token")).text("error"), "invalid_grant")
	ts.wantOK("offline after bob", ts.refreshAs("app", offline.text("refresh_token")))
	failed := b.logIn(b.authorize("app", "prompt=login"), adaEmail, "wrong")
	want(t, "a failed login", failed.header.Get("Set-Cookie"), "")
	wantText(t, "who is logged in", b.authorize("app", "prompt=consent").body, "Continue as bob@")
}

// TestAuthorize_LoginPageRefuses by the rules of the JSON login, keeps the
// email, and says when to come back.
func TestAuthorize_LoginPageRefuses(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t, handlersJSONLog, func(c *config) {
		c.throttle.pairFailures = 3
		c.adminPassword = defaultAdminPassword
	})
	ts.mustUser("shut@example.com", viewer, defaultOrg)
	dbFile(ts.cfg.databasePath(), `UPDATE users SET status = 'suspended' WHERE email LIKE 'shut%'`)
	page := b.authorize("app", "login_hint=Ada@Example.com")
	wantText(t, "page", page.body, `value="Ada@Example.com"`, "<strong>The App</strong>",
		"<title>Log in</title>",
		`autocomplete="username"`, `autocomplete="current-password"`, `<html lang="en">`, `<label for="email">`,
		`<label for="password">`, "localhost:8100")
	for _, line := range lines(`
		nobody@example.com  wrong            401  -                          Invalid
		shut@example.com    wrong            401  -                          Invalid
		shut@example.com    battery staple   403  -                          suspended
		ada@example.com     -                401  -                          Invalid
		ada@example.com     wrong            401  -                          Invalid
		ada@example.com     wrong            401  -                          Invalid
		ada@example.com  battery staple  429  900  Please try again in 15 minutes.`) {
		c := columns(line)
		a := b.logIn(page, c[0], c[1])
		want(t, line, handlersOutcome(a), c[2]+" ["+c[3]+"]")
		wantText(t, line, a.body, `value="`+c[0]+`"`, `role="alert"`, c[4], actionOf(page)[:20])
		want(t, "cookie", a.header.Get("Set-Cookie"), "")
	}
	a := b.logIn(page, adminEmail, defaultAdminPassword, "Host: public.example")
	want(t, "default password from elsewhere", a.status, 403)
	want(t, "failures in the log", ts.logged(object{"msg": "login.failed"}), 7)
	want(t, "and throttled", ts.logged(object{"msg": "login.throttled"}), 1)
	must(ts.store.writer.exec(`PRAGMA query_only = 1`))
	a = b.logIn(page, "bob@example.com", userPassword)
	want(t, "disk full", handlersOutcome(a), "503 [5]")
	want(t, "its page", kindOf(a), "login page")
}

// TestAuthorize_DiskTakesNoWrites: the client hears it where no form of ours
// was sent.
func TestAuthorize_DiskTakesNoWrites(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	must(ts.store.writer.exec(`PRAGMA query_only = 1`))
	want(t, "authorize", kindOf(b.authorize("app")), "temporarily_unavailable")
	must(ts.store.writer.exec(`PRAGMA query_only = 0`))
	want(t, "afterwards", kindOf(b.authorize("app")), "code")
}

// TestAuthorize_PagesAreClosed: no page can be framed, cached, scripted or
// made to hold what a request says as anything but text.
func TestAuthorize_PagesAreClosed(t *testing.T) {
	t.Parallel()
	_, b := newProvider(t)
	const markup = `"><script>alert(1)</script><b x='`
	login := b.authorize("app", "login_hint="+markup, "state="+markup, "error="+markup)
	wrong := b.logIn(login, markup, markup)
	b.as(adaEmail)
	form := url.Values{"email": {adaEmail}, "password": {userPassword}}
	for name, a := range map[string]answer{
		"login":          login,
		"wrong":          wrong,
		"unknown client": b.authorize("app", "client_id="+markup),
		"unknown URI":    b.authorize("app", "redirect_uri="+markup),
		"continue":       b.authorize("cli", "state="+markup, "login_hint="+markup),
		"logout":         b.do("GET", logoutPath+"?state="+url.QueryEscape(markup), nil),
		"cross origin":   b.do("POST", actionOf(login), form, "Origin: null"),
		"no form":        b.do("POST", actionOf(login), nil),
		"odd form":       b.do("POST", logoutPath, url.Values{"a": {"1", "2"}}),
		"signed out":     b.in(t).do("POST", logoutConfirmPath, url.Values{}),
	} {
		t.Run(name, func(t *testing.T) {
			for _, header := range lines(`
				Content-Type: text/html; charset=utf-8
				Cache-Control: no-store
				Referrer-Policy: same-origin
				X-Frame-Options: DENY
				X-Content-Type-Options: nosniff
				Access-Control-Allow-Origin:`) {
				name, value, _ := strings.Cut(header, ":")
				want(t, name, a.header.Get(name), strings.TrimSpace(value))
			}
			policy := regexp.MustCompile(`^default-src 'none'; style-src 'sha256-[\w+/]{43}='; img-src data:; ` +
				`base-uri 'none'; frame-ancestors 'none'$`)
			want(t, "policy", policy.MatchString(a.header.Get("Content-Security-Policy")), true)
			want(t, "length", a.header.Get("Content-Length"), fmt.Sprint(len(a.body)))
			for _, odd := range []string{"<script", "<b ", "javascript:", "http:", "https:", "ZgotmplZ",
				" style="} {
				want(t, "the page has "+odd, strings.Contains(a.body, odd), false)
			}
		})
	}
}

// TestAuthorize_PostBecomesGet: a client may post its request. The cookie is
// not sent along then, so the browser asks again.
func TestAuthorize_PostBecomesGet(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"", "/base"} {
		_, b := newProvider(t, func(c *config) { c.issuer = "http://localhost:8100" + base })
		_, query, _ := strings.Cut(authorizeURL("app", providerURIs["app"]), "?")
		form := must(url.ParseQuery(query))
		a := b.do("POST", authorizePath, form)
		want(t, "answer", fmt.Sprint(a.status, a.header.Get("Location")), "303"+base+authorizePath+"?"+query)
		form.Set("state", strings.Repeat("s", 8<<10-len(form.Encode())-len(oddState)))
		form.Set("state", form.Get("state")+strings.Repeat("s", 8<<10-len(form.Encode())))
		want(t, "8 KiB", b.do("POST", authorizePath, form).status, 303)
		form.Set("state", form.Get("state")+"s")
		a = b.do("POST", authorizePath, form)
		want(t, "8 KiB and a byte", kindOf(a), "400")
		wantText(t, "page", a.body, "The body is too large")
		a = b.testServer.do("POST", authorizePath, "", object{"client_id": "app"})
		want(t, "JSON", kindOf(a), "400")
	}
}

// TestAuthorize_StoresOnlyCodes: nobody who is not logged in makes the server
// store anything.
func TestAuthorize_StoresOnlyCodes(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.authorize("app")
	b.authorize("app", "prompt=none")
	b.authorize("app", "client_id=x")
	b.logIn(b.authorize("app"), adaEmail, "wrong")
	b.do("POST", actionOf(b.authorize("app")), url.Values{"email": {"x"}})
	b.do("GET", logoutPath, nil)
	b.do("POST", logoutConfirmPath, url.Values{})
	want(t, "rows", ts.rows(`1 = 1`), 0)
	b.as(adaEmail)
	b.authorize("cli")
	b.authorize("staff")
	want(t, "rows of a login with one code", ts.rows(`1 = 1`), 2)
}

// TestAuthorize_CodesAreCapped: five codes of a user and client wait at most,
// and the sixth pushes out the first. Sessions stay.
func TestAuthorize_CodesAreCapped(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	token := ts.wantOK("token", b.redeem("app", b.mustCode("app"))).text("refresh_token")
	var codes []string
	for range 8 {
		codes = append(codes, b.mustCode("app"))
		ts.clock.advance(time.Second)
	}
	want(t, "codes", ts.rows(`client_id = 'app' AND redirect_uri IS NOT NULL`), 5)
	want(t, "codes of others", ts.rows(`client_id = 'wiki' AND redirect_uri IS NOT NULL`), 1)
	token = ts.wantOK("refresh", ts.refreshAs("app", token)).text("refresh_token")
	ts.clock.advance(time.Second) // or it would expire together with those below
	for i, code := range codes {
		want(t, fmt.Sprint("code ", i), b.redeem("app", code).status == 200, i >= 3)
	}
	for range 19 {
		want(t, "login", b.redeem("app", b.mustCode("app")).status, 200)
		ts.clock.advance(time.Second)
	}
	want(t, "sessions of the client", ts.rows(`client_id = 'app'`), 20)
	want(t, "the oldest", ts.refreshAs("app", token).text("error"), "invalid_grant")
	want(t, "the browser", kindOf(b.authorize("app", "prompt=none")), "code")
}

// FuzzAuthorize: no query makes the server fail, or send anybody to a URI that
// is not registered.
func FuzzAuthorize(f *testing.F) {
	_, b := newProvider(f, unthrottled)
	b.as(adaEmail)
	var uris []string
	for client, uri := range providerURIs {
		_, query, _ := strings.Cut(authorizeURL(client, uri), "?")
		f.Add(query)
		uris = append(uris, uri)
	}
	uris = append(uris, "https://app.example/other", "http://[::1]/cb", "http://localhost:5/cb",
		"com.example.cli:/cb")
	for _, query := range []string{"", "client_id=app", "%zz;=&client_id=app&&",
		"client_id=cli&redirect_uri=http://127.0.0.1:9/cb"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r, err := http.NewRequest("GET", b.url+authorizePath+"?"+query, nil)
		if err != nil {
			t.Skip(err)
		}
		a := b.in(t).do("GET", authorizePath+"?"+r.URL.RawQuery, nil)
		to, known := a.header.Get("Location"), false
		for _, uri := range uris {
			known = known || strings.HasPrefix(to, uri+"?") || strings.HasPrefix(to, uri+"&")
		}
		known = known || regexp.MustCompile(`^http://(127\.0\.0\.1|\[::1\]):\d{1,5}/cb\?`).MatchString(to)
		if a.status >= 500 || (a.status == 303) != known || (to != "") != known {
			t.Errorf("%q: %d %q", query, a.status, to)
		}
	})
}

// === token.go ===

// basic are credentials as RFC 6749 section 2.3.1 encodes them.
func basic(id, secret string) string {
	r := must(http.NewRequest("GET", "/", nil))
	r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
	return "Authorization: " + r.Header.Get("Authorization")
}

// post sends a form as a client.
func (ts *testServer) post(path, client string, pairs ...string) answer {
	ts.Helper()
	form, headers := url.Values{}, []string{formType}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		form.Add(name, value)
	}
	if secret := providerSecrets[client]; secret != "" {
		headers = append(headers, basic(client, secret))
	} else if client != "" {
		form.Set("client_id", client)
	}
	return ts.do("POST", path, "", form.Encode(), headers...)
}

// redeem exchanges a code as the client does; changes are those of changed.
func (ts *testServer) redeem(client, code string, changes ...string) answer {
	ts.Helper()
	form := changed(url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {code},
		"redirect_uri":  {providerURIs[client]},
		"code_verifier": {verifier},
	}, changes...)
	var pairs []string
	for name, values := range form {
		for _, value := range values {
			pairs = append(pairs, name+"="+value)
		}
	}
	return ts.post(tokenPath, client, pairs...)
}

func (ts *testServer) refreshAs(client, token string, pairs ...string) answer {
	ts.Helper()
	return ts.post(tokenPath, client, append(pairs, "grant_type=refresh_token", "refresh_token="+token)...)
}

// TestToken_WrongUsesChangeNothing: a code is worth nothing to anybody but the
// client that got it, with the same URI and the verifier; and whoever tries does
// it no harm. Some clients try a second way of authentication with the same
// code, so wrong secrets cost nothing either.
func TestToken_WrongUsesChangeNothing(t *testing.T) {
	t.Parallel()
	_, b := newProvider(t)
	b.as(adaEmail)
	const other = "0123456789012345678901234567890123456789012"
	for _, line := range lines(`
		app   mcp   -                                      invalid_grant
		app   cli   -                                      invalid_grant
		app   app   redirect_uri=https://app.example/other  invalid_grant
		app   app   redirect_uri=https://app.example/cb/   invalid_grant
		app   app   code_verifier=-                        invalid_grant
		app   app   code_verifier=OTHER                    invalid_grant
		app   app   code_verifier=CHALLENGE                invalid_grant
		app   app   code_verifier=01234567890123456789012345678901234567890é  invalid_grant
		app   app   code_verifier=012345678901234567890123456789012345678901  invalid_grant
		app   app   code_verifier=LONG                     invalid_grant
		app   app   code=-                                 invalid_request
		app   app   +code=x                                invalid_request
		app   app   grant_type=-                           invalid_request
		app   app   grant_type=password                    unsupported_grant_type
		app   app   grant_type=client_credentials          unauthorized_client
		wiki  wiki  redirect_uri=-                         invalid_grant
		wiki  wiki  redirect_uri=https://wiki.example/cb   invalid_grant
		wiki  wiki  code_verifier=OTHER                    invalid_grant
		wiki  app   -                                      invalid_grant
		cli   app   -                                      invalid_grant
		cli   cli   redirect_uri=http://127.0.0.1:5/cb     invalid_grant`) {
		t.Run(line, func(t *testing.T) {
			b, c := b.in(t), columns(strings.NewReplacer("OTHER", other, "CHALLENGE", challenge,
				"LONG", strings.Repeat("a", 129)).Replace(line))
			plain := []string{"x=-"} // PKCE is not for the wiki here
			if c[0] == "wiki" {
				plain = []string{"code_challenge=-", "code_challenge_method=-"}
			}
			code := b.mustCode(c[0], plain...)
			right := func() answer {
				if c[0] == "wiki" {
					return b.redeem("wiki", code, "code_verifier=-")
				}
				return b.redeem(c[0], code)
			}
			change := []string{"redirect_uri=" + providerURIs[c[0]], cmp.Or(c[2], "x=-")}
			if c[0] == "wiki" && !strings.Contains(c[2], "verifier") {
				change = append(change, "code_verifier=-")
			}
			for range 2 {
				b.wantOAuth("wrong use", b.redeem(c[1], code, change...), 400, c[3])
			}
			bad := b.do("POST", tokenPath, url.Values{"grant_type": {"authorization_code"}, "code": {code}},
				basic(c[0], "wrong"))
			b.wantOAuth("wrong secret", bad, 401, "invalid_client")
			tokens := b.wantOK("right use", right())
			b.wantOAuth("wrong use of a used code", b.redeem(c[1], code, change...), 400, c[3])
			info := b.testServer.do("GET", userinfoPath, tokens.text("access_token"), nil)
			second := c[0] == c[1] && strings.Contains(c[2], "redirect_uri") // by who can show the verifier
			want(t, "its tokens live", info.status == 200, !second)
		})
	}
}

// wantOAuth checks an error for OAuth clients (RFC 6749 section 5.2).
func (ts *testServer) wantOAuth(what string, a answer, status int, code string) {
	ts.Helper()
	got := fmt.Sprint(a.header["Content-Type"], a.header["Cache-Control"], len(a.json), a.status)
	want(ts, what, got, fmt.Sprint("[application/json] [no-store] 2 ", status))
	want(ts, what, a.text("error"), code)
	plain := regexp.MustCompile(`^[ !#-\[\]-~]+$`)
	want(ts, what+": description "+a.body, plain.MatchString(a.text("error_description")), true)
	if status == 401 {
		challenge := a.header.Get("WWW-Authenticate")
		want(ts, what+": "+challenge, regexp.MustCompile(`^(Basic realm=|Bearer)`).MatchString(challenge), true)
	}
}

// wantDead checks that a client's session has ended for both of its tokens.
func (ts *testServer) wantDead(client string, tokens answer) {
	ts.Helper()
	access := tokens.text("access_token")
	ts.wantOAuth("userinfo", ts.do("GET", userinfoPath, access, nil), 401, "invalid_token")
	ts.wantOAuth("refresh", ts.refreshAs(client, tokens.text("refresh_token")), 400, "invalid_grant")
	want(ts, "introspection", ts.post(introspectPath, "mcp", "token="+access).body, `{"active":false}`)
}

// TestToken_CodesAreGoodOnce, for a minute, and a second use ends what the first
// one got, at any time and after any number of refreshes.
func TestToken_CodesAreGoodOnce(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t, handlersJSONLog)
	b.as(adaEmail)
	other := ts.wantOK("token", b.redeem("app", b.mustCode("app")))

	code := b.mustCode("app")
	answers := together(50, func(int) answer { return ts.redeem("app", code) })
	want(t, "50 uses at once", handlersTally(answers), "map[200 []:1 400 []:49]")
	won := slices.IndexFunc(answers, func(a answer) bool { return a.status == 200 })
	ts.wantDead("app", answers[won])

	code = b.mustCode("app")
	tokens := ts.wantOK("token", b.redeem("app", code))
	session := sid(tokens.text("access_token"))
	ts.clock.advance(30 * time.Second)
	tokens = ts.wantOK("refresh", ts.refreshAs("app", tokens.text("refresh_token")))
	ts.clock.advance(time.Hour)
	ts.wantOAuth("after 30 seconds", ts.redeem("app", code), 400, "invalid_grant")
	ts.wantDead("app", tokens)
	want(t, "reuses in the log", ts.logged(object{"msg": "refresh.reuse", "session": session, "client": "app",
		"level": "WARN", "reason": "authorization code was used before"}), 1)

	code = b.mustCode("app")
	ts.clock.advance(59 * time.Second)
	ts.wantOK("after 59 seconds", ts.redeem("app", code))
	code = b.mustCode("app")
	ts.clock.advance(time.Minute)
	ts.wantOAuth("after a minute", ts.redeem("app", code), 400, "invalid_grant")
	ts.wantOAuth("without its verifier", ts.redeem("app", b.mustCode("app"), "code_verifier=-"), 400, "invalid_grant")
	want(t, "they say so in the log", ts.logged(object{"msg": "request",
		"reason": "invalid_grant: no code waits for this client with this redirect_uri and code_verifier"}), 50)
	ts.wantOK("another session", ts.refreshAs("app", other.text("refresh_token")))
}

// TestToken_RefreshTokens are good once, for their client, with an idle and an
// absolute end. A second use ends the session.
func TestToken_RefreshTokens(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	first := ts.wantOK("token", b.redeem("app", b.mustCode("app")))
	token := first.text("refresh_token")
	for _, client := range []string{"mcp", "cli"} {
		ts.wantOAuth("by "+client, ts.refreshAs(client, token), 400, "invalid_grant")
	}
	ts.wantOAuth("by no client", ts.post(tokenPath, "", "grant_type=refresh_token", "refresh_token="+token),
		400, "invalid_request")
	ts.wantProblem("by the JSON endpoint", ts.refresh(token), 401, "invalid_token")
	ts.mustAsk("POST /logout", "", object{"refresh_token": token})
	ts.wantOAuth("wider", ts.refreshAs("app", token, "scope=openid offline_access"), 400, "invalid_scope")
	second := ts.wantOK("refresh", ts.refreshAs("app", token))
	want(t, "new refresh token", second.text("refresh_token") == token, false)
	ts.wantOAuth("again", ts.refreshAs("app", token), 400, "invalid_grant")
	ts.wantDead("app", second)

	tokens := ts.wantOK("token", b.redeem("app", b.mustCode("app")))
	answers := together(32, func(int) answer { return ts.refreshAs("app", tokens.text("refresh_token")) })
	want(t, "32 uses at once", handlersTally(answers), "map[200 []:1 400 []:31]")

	const day = 24 * time.Hour
	tokens = ts.wantOK("token", b.redeem("app", b.mustCode("app")))
	for range 4 {
		ts.clock.advance(7*day - time.Second)
		tokens = ts.wantOK("refresh", ts.refreshAs("app", tokens.text("refresh_token")))
	}
	ts.clock.advance(2*day + 3*time.Second)
	tokens = ts.wantOK("refresh", ts.refreshAs("app", tokens.text("refresh_token")))
	ts.clock.advance(time.Second)
	ts.wantOAuth("after 30 days", ts.refreshAs("app", tokens.text("refresh_token")), 400, "invalid_grant")
	ts.wantOAuth("userinfo", ts.do("GET", userinfoPath, tokens.text("access_token"), nil), 401,
		"invalid_token")
	tokens = ts.wantOK("token", b.as(adaEmail).redeem("app", b.mustCode("app")))
	ts.clock.advance(7 * day)
	ts.wantOAuth("after 7 idle days", ts.refreshAs("app", tokens.text("refresh_token")), 400, "invalid_grant")
}

// TestToken_WithoutRefresh: a client that must not refresh has a session as
// long as its access token.
func TestToken_WithoutRefresh(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	tokens := ts.wantOK("token", b.redeem("spa", b.mustCode("spa", "scope=openid offline_access")))
	want(t, "refresh token", tokens.text("refresh_token"), "")
	ts.wantOAuth("refresh", ts.refreshAs("spa", "x.y"), 400, "unauthorized_client")
	ts.clock.advance(15*time.Minute - time.Second)
	ts.wantOK("userinfo", ts.do("GET", userinfoPath, tokens.text("access_token"), nil))
	want(t, "its session", ts.rows(fmt.Sprintf(`client_id = 'spa' AND expires_at > %d`, ts.now().Unix())), 1)
	ts.clock.advance(time.Second)
	want(t, "its session", ts.rows(fmt.Sprintf(`client_id = 'spa' AND expires_at > %d`, ts.now().Unix())), 0)
}

// TestToken_ClientAuthentication: a client shows its secret in one of two ways,
// encoded as the standard says or as it is. Others hear one text.
func TestToken_ClientAuthentication(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t, unthrottled)
	b.as(adaEmail)
	raw := func(text string) string {
		return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(text))
	}
	encoded := strings.ReplaceAll(appSecret, "-", "%2D")
	names := []string{"SECRET", appSecret, "ENCODED", encoded}
	for _, line := range lines(`
		-                        client_id=app&client_secret=SECRET     200
		app:SECRET               -                                      200
		app:SECRET               client_id=app                          200
		app:ENCODED              -                                      200
		%61pp:SECRET             -                                      200
		app:SECRET               client_id=app&client_secret=SECRET     400 invalid_request
		app:SECRET               client_secret=wrong                    400 invalid_request
		app:SECRET               client_id=mcp                          401 invalid_client
		-                        -                                      400 invalid_request
		-                        client_secret=SECRET                   400 invalid_request
		-                        client_id=app                          401 invalid_client
		-                        client_id=app&client_secret=wrong      401 invalid_client
		-                        client_id=app&client_secret=SECRETx    401 invalid_client
		-                        client_id=APP&client_secret=SECRET     401 invalid_client
		-                        client_id=app&client_id=app&client_secret=SECRET  400 invalid_request
		-                        client_id=nobody&client_secret=SECRET  401 invalid_client
		-                        client_id=cli&client_secret=SECRET     401 invalid_client
		-                        client_id=%23browser                   401 invalid_client
		cli:SECRET               -                                      401 invalid_client
		app:wrong                -                                      401 invalid_client
		app:                     -                                      401 invalid_client
		:SECRET                  -                                      400 invalid_request
		nobody:SECRET            -                                      401 invalid_client
		app:%zz                  -                                      401 invalid_client
		app                      -                                      401 invalid_client
		Bearer x                 -                                      401 invalid_client
		Basic !                  client_id=app                          401 invalid_client`) {
		t.Run(line, func(t *testing.T) {
			c := columns(strings.NewReplacer(names...).Replace(line))
			headers := []string{formType}
			switch {
			case strings.Contains(c[0], " "):
				headers = append(headers, "Authorization: "+c[0])
			case c[0] != "":
				headers = append(headers, raw(c[0]))
			}
			ts := ts.in(t)
			form := c[1] + "&grant_type=authorization_code&code_verifier=" + verifier + "&redirect_uri=" +
				url.QueryEscape(providerURIs["app"])
			if c[2] == "200" {
				a := ts.do("POST", tokenPath, "", form+"&code="+b.in(t).mustCode("app"), headers...)
				ts.wantOK("token", a)
				return
			}
			status, code, _ := strings.Cut(c[2], " ")
			for _, path := range []string{tokenPath, revokePath, introspectPath} {
				a := ts.do("POST", path, "", form+"&token=x", headers...)
				ts.wantOAuth(path, a, must(strconv.Atoi(status)), code)
				if status == "401" {
					want(t, "challenge", a.header.Get("WWW-Authenticate"), `Basic realm="pico-auth"`)
					want(t, "detail", a.text("error_description"), "unknown client or wrong secret")
				}
			}
		})
	}
}

// TestToken_OnlyForms: everything at these endpoints is a form, of 64 KiB at
// most, in which nothing occurs twice.
func TestToken_OnlyForms(t *testing.T) {
	t.Parallel()
	ts, _ := newProvider(t)
	good := "client_id=app&client_secret=" + appSecret + "&grant_type=refresh_token&refresh_token=x.y&token=x.y"
	for _, path := range []string{tokenPath, revokePath, introspectPath} {
		for _, line := range lines(`
			application/x-www-form-urlencoded                 -    good
			application/x-www-form-urlencoded;charset=UTF-8   -    good
			Application/X-WWW-Form-Urlencoded ; x=y           -    good
			application/json                                  -    send a form
			text/plain                                        -    send a form
			multipart/form-data; boundary=x                   -    send a form
			application/x-www-form-urlencodedx                -    send a form
			application/x-www-form-urlencoded                 &a=%zz  not well encoded
			application/x-www-form-urlencoded                 &a=1&a=1  more than once
			application/x-www-form-urlencoded                 ;a=1  not well encoded
			application/x-www-form-urlencoded                 LONG  too large`) {
			t.Run(path+" "+line, func(t *testing.T) {
				ts, c := ts.in(t), columns(line)
				body := good + strings.Replace(c[1], "LONG", "&a="+strings.Repeat("a", 64<<10), 1)
				a := ts.do("POST", path, "", body, "Content-Type: "+c[0])
				if c[2] == "good" {
					want(t, "error", strings.Contains(a.body, "invalid_request"), false)
					return
				}
				ts.wantOAuth("answer", a, 400, "invalid_request")
				wantText(t, "answer", a.body, c[2])
			})
		}
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			want(t, method+" "+path, ts.do(method, path+"?"+good, "", nil).status, 405)
		}
	}
}

// TestToken_KindsStayApart: a token of one kind is nothing in the place of
// another, and showing it there ends nothing.
func TestToken_KindsStayApart(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	_, cookie, _ := strings.Cut(b.cookie, "=")
	tokens := ts.wantOK("token", b.redeem("app", b.mustCode("app")))
	login, loginRefresh := ts.mustLogin(adaEmail, userPassword)
	kinds := map[string]string{
		"code":          b.mustCode("app"),
		"refresh token": tokens.text("refresh_token"),
		"access token":  tokens.text("access_token"),
		"id_token":      tokens.text("id_token"),
		"cookie":        cookie,
		"login token":   login,
		"login refresh": loginRefresh,
	}
	places := map[string]func(ts *testServer, token string) bool{
		"code": func(ts *testServer, token string) bool {
			return ts.redeem("app",
				token).status == 200
		},
		"refresh token": func(ts *testServer, token string) bool {
			return ts.refreshAs("app",
				token).status == 200
		},
		"access token": func(ts *testServer, token string) bool {
			return ts.do("GET", userinfoPath, token, nil).status == 200
		},
		"id_token": func(ts *testServer, token string) bool {
			a := b.authorize("app", "prompt=none", "id_token_hint="+token)
			return kindOf(a) == "code"
		},
		"cookie": func(ts *testServer, token string) bool {
			return kindOf((&surfer{ts, "pico=" + token}).authorize("asking")) == "continue page"
		},
		"login token": func(ts *testServer, token string) bool {
			return ts.ask("GET /me", token,
				nil).status == 200
		},
		"login refresh": func(ts *testServer, token string) bool { return ts.refresh(token).status == 200 },
	}
	for _, kind := range []string{"access token", "id_token", "login token"} { // now they are remembered
		want(t, kind, places[kind](ts, kinds[kind]), true)
	}
	for place, accepts := range places {
		for kind, token := range kinds {
			if kind != place {
				t.Run(kind+" as "+place, func(t *testing.T) {
					want(t, "accepted", accepts(ts.in(t), token), false)
				})
			}
		}
	}
	for place, accepts := range places { // none of them has ended
		want(t, place+" in its place", accepts(ts, kinds[place]), true)
	}
	want(t, "failures of ours", strings.Contains(ts.logs.String(), "level=ERROR"), false)
}

// TestToken_PowerlessUnderAPI: no token of a client opens anything but
// userinfo, whoever its user is.
func TestToken_PowerlessUnderAPI(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	dbFile(ts.cfg.databasePath(), `UPDATE users SET role = 'superadmin' WHERE email = $1`, adaEmail)
	b.as(adaEmail)
	tokens := ts.wantOK("token", b.redeem("mcp", b.mustCode("mcp")))
	_, cookie, _ := strings.Cut(b.cookie, "=")
	walked := 0
	for _, r := range ts.srv.routeTable() {
		method, path := httpEndpoint(r)
		bearer := r.need != public || path == auth+"/logout"
		if !bearer || !strings.HasPrefix(path, "/api/") {
			continue
		}
		walked++
		for name, token := range map[string]string{
			"access token": tokens.text("access_token"), "id_token": tokens.text("id_token"), "cookie": cookie,
		} {
			t.Run(r.pattern+" "+name, func(t *testing.T) {
				ts := ts.in(t)
				a := ts.do(method, path, token, object{"all": true}, "Cookie: "+b.cookie)
				ts.wantProblem("answer", a, 401, "invalid_token")
			})
		}
	}
	want(t, "routes", walked > 12, true)
	ts.wantOK("userinfo", ts.do("GET", userinfoPath, tokens.text("access_token"), nil))
}

// TestToken_Claims: what the scopes let a client know, the same in the id_token
// and at userinfo, at the login and at every refresh.
func TestToken_Claims(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	ada := must(ts.store.userByLogin(adaEmail)).id
	dbFile(ts.cfg.databasePath(), `UPDATE users SET display_name = 'Ada L' WHERE id = $1`, ada)
	b.as(adaEmail)
	loggedIn := ts.now().Unix()
	ts.clock.advance(time.Minute)
	const always = "acr:1 amr:[pwd] aud:app auth_time:LOGIN exp:HOUR iat:NOW iss:http://localhost:8100 sid:SID sub:ADA"
	for _, line := range lines(`
		openid                          -
		openid email                    email:ada@example.com
		openid profile                  name:Ada L preferred_username:ada@example.com
		openid groups                   groups:[]
		email openid address phone      email:ada@example.com
		openid offline_access           -
		openid email profile groups  email:ada@example.com groups:[] name:Ada L preferred_username:ada@example.com`) {
		t.Run(line, func(t *testing.T) {
			b, c := b.in(t), columns(line)
			tokens := b.wantOK("token", b.redeem("app", b.mustCode("app", "scope="+c[0])))
			for _, nonce := range []string{"n-1", ""} {
				a := claimsOf(tokens.text("id_token"))
				now, hash := b.now().Unix(), sha256.Sum256([]byte(tokens.text("access_token")))
				want(t, "at_hash", a["at_hash"], any(b64.EncodeToString(hash[:16])))
				if nonce != "" {
					want(t, "nonce", a["nonce"], any(nonce))
				}
				want(t, "there is a nonce", a["nonce"] != nil, nonce != "")
				delete(a, "at_hash")
				delete(a, "nonce")
				for _, name := range []string{"auth_time", "exp", "iat"} {
					a[name] = int64(a[name].(float64))
				}
				fill := strings.NewReplacer("LOGIN", fmt.Sprint(loggedIn), "HOUR", fmt.Sprint(now+3600),
					"NOW", fmt.Sprint(now), "SID", sid(tokens.text("access_token")), "ADA", ada)
				claimed := fmt.Sprint(a)
				all := strings.Fields(fill.Replace(always))
				wantText(t, "id_token", claimed, all...)
				wantText(t, "id_token", claimed, strings.Fields(c[1])...)
				info := b.wantOK("userinfo", b.testServer.do("GET", userinfoPath,
					tokens.text("access_token"), nil))
				want(t, "members of userinfo", fmt.Sprint(info.json),
					strings.Replace("map["+strings.TrimSpace(c[1]+" sub:"+ada)+"]", "[ ", "[", 1))
				want(t, "members of the id_token", len(a), 9+len(info.json)-1)
				_, err := verifyToken[idClaims](b.keys.current(), tokens.text("id_token"),
					expected{b.cfg.issuer, "app", b.now(), false})
				want(t, "signature", err, nil)
				b.clock.advance(time.Second)
				tokens = b.wantOK("refresh", b.refreshAs("app", tokens.text("refresh_token")))
			}
		})
	}
}

// TestToken_AccessTokens are those of RFC 9068. Who the user is stands in them
// only for clients whose tokens others read.
func TestToken_AccessTokens(t *testing.T) {
	t.Parallel()
	_, b := newProvider(t)
	b.as(adaEmail)
	for _, line := range lines(`
		app  -                                     [http://localhost:8100]
		mcp  -                                     [http://localhost:8100 https://mcp.example/mcp pico-bot]
		mcp  resource=https://mcp.example/mcp      [http://localhost:8100 https://mcp.example/mcp]
		mcp  resource=https://mcp.example/mcp/     [http://localhost:8100 https://mcp.example/mcp]
		mcp  resource=pico-bot                     [http://localhost:8100 pico-bot]`) {
		t.Run(line, func(t *testing.T) {
			b, c := b.in(t), columns(line)
			tokens := b.wantOK("token", b.redeem(c[0], b.mustCode(c[0], "scope=openid", cmp.Or(c[1],
				"resource=-"))))
			for range 2 {
				a := claimsOf(tokens.text("access_token"))
				aud := fmt.Sprint(a["aud"])
				want(t, "aud", "["+strings.Trim(aud, "[]")+"]", c[2])
				head := object{}
				raw, _, _ := strings.Cut(tokens.text("access_token"), ".")
				mustOK(json.Unmarshal(must(b64.DecodeString(raw)), &head))
				want(t, "typ", head["typ"], any("at+jwt"))
				members := slices.Sorted(maps.Keys(a))
				wanted := "[aud auth_time client_id exp iat iss jti scope sid sub]"
				if c[0] == "mcp" {
					wanted = "[aud auth_time client_id email exp groups iat iss jti org_id role scope sid sub]"
				}
				want(t, "members", fmt.Sprint(members), wanted)
				want(t, "client_id", a["client_id"], any(c[0]))
				tokens = b.wantOK("refresh", b.refreshAs(c[0], tokens.text("refresh_token")))
			}
			raw, _, _ := strings.Cut(tokens.text("id_token"), ".")
			want(t, "header of the id_token", strings.Contains(string(must(b64.DecodeString(raw))), "typ"),
				false)
			want(t, "aud of the id_token", claimsOf(tokens.text("id_token"))["aud"], any(c[0]))
		})
	}
}

// TestToken_ScopesShrink at a refresh, for that answer alone, and never grow.
func TestToken_ScopesShrink(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	tokens := ts.wantOK("token", b.redeem("app", b.mustCode("app", "scope=openid email unknown")))
	want(t, "granted", tokens.text("scope"), "openid email")
	for _, line := range lines(`
		openid                openid        -
		email                 email         insufficient_scope
		openid email          openid email  -
		email openid unknown  email openid  -
		-                     openid email  -
		openid profile        -             -
		profile               -             -`) {
		c := columns(line)
		a := ts.refreshAs("app", tokens.text("refresh_token"), "scope="+c[0])
		if c[1] == "" {
			ts.wantOAuth(line, a, 400, "invalid_scope")
			continue
		}
		tokens = ts.wantOK(line, a)
		want(t, line, tokens.text("scope"), c[1])
		want(t, line+": id_token", tokens.text("id_token") != "", hasScope(c[1], "openid"))
		info := ts.do("GET", userinfoPath, tokens.text("access_token"), nil)
		want(t, line+": userinfo", info.text("error"), c[2])
		want(t, line+": email", info.text("email") != "", c[1] != "openid" && c[2] == "")
	}
	plain := ts.wantOK("token", b.redeem("app", b.mustCode("app", "scope=email")))
	want(t, "id_token without openid", plain.text("id_token"), "")
	ts.wantOAuth("userinfo", ts.do("GET", userinfoPath, plain.text("access_token"), nil), 403,
		"insufficient_scope")
}

// TestToken_EmailVerified is true or absent: true for those whose email a
// superadmin gave.
func TestToken_EmailVerified(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	admin := ts.mustAdmin()
	ts.mustAsk("POST /users", admin, object{"email": "made@example.com", "password": userPassword})
	ts.mustAsk("POST /register", "", object{"email": "came@example.com", "password": userPassword})
	_, boss := ts.as("boss@example.com", orgAdmin, defaultOrg)
	ts.mustAsk("POST /users", boss, object{"email": "theirs@example.com", "password": userPassword})
	for email, verified := range map[string]any{
		"made@example.com": true, "came@example.com": nil, "theirs@example.com": nil,
	} {
		b.as(email)
		tokens := ts.wantOK("token", b.redeem("app", b.mustCode("app")))
		info := ts.do("GET", userinfoPath, tokens.text("access_token"), nil)
		want(t, email+" in the id_token", claimsOf(tokens.text("id_token"))["email_verified"], verified)
		want(t, email+" at userinfo", info.json["email_verified"], verified)
	}
}

// TestToken_FollowsTheUser: what changes about a user is in the next answer, and
// whoever is suspended gets none.
func TestToken_FollowsTheUser(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	id, admin := must(ts.store.userByLogin(adaEmail)).id, ts.mustAdmin()
	suspend := func(status string) { ts.mustAsk("PUT /users/"+id+"/status", admin, object{"status": status}) }
	b.as(adaEmail)
	tokens := ts.wantOK("token", b.redeem("mcp", b.mustCode("mcp")))
	ts.mustAsk("PUT /users/"+id+"/role", admin, `"operator"`)
	ts.mustAsk("PUT /users/"+id+"/org", admin, `"acme"`)
	tokens = ts.wantOK("refresh", ts.refreshAs("mcp", tokens.text("refresh_token")))
	wantText(t, "claims", fmt.Sprint(claimsOf(tokens.text("access_token"))), "role:operator", "org_id:acme")
	code := b.mustCode("mcp")
	suspend("suspended")
	suspend("active")
	ts.wantDead("mcp", tokens)
	ts.wantOAuth("the code", ts.redeem("mcp", code), 400, "invalid_grant")
	want(t, "the cookie", kindOf(b.authorize("mcp")), "login page")
	b.as(adaEmail)
	code = b.mustCode("mcp")
	// Suspension ends sessions; this holds even if one were left.
	tokens = ts.wantOK("token", b.redeem("mcp", b.mustCode("mcp")))
	dbFile(ts.cfg.databasePath(), `UPDATE users SET status = 'suspended' WHERE id = $1`, id)
	want(t, "introspection", ts.post(introspectPath, "mcp", "token="+tokens.text("access_token")).body,
		`{"active":false}`)
	ts.wantOAuth("userinfo", ts.do("GET", userinfoPath, tokens.text("access_token"), nil), 401,
		"invalid_token")
	ts.wantOAuth("the code", ts.redeem("mcp", code), 400, "invalid_grant")
	ts.wantOAuth("refresh", ts.refreshAs("mcp", tokens.text("refresh_token")), 400, "invalid_grant")
	want(t, "the cookie", kindOf(b.authorize("mcp")), "login page")
	dbFile(ts.cfg.databasePath(), `UPDATE users SET status = 'active' WHERE id = $1`, id)
	b.as(adaEmail)
	tokens = ts.wantOK("token", b.redeem("mcp", b.mustCode("mcp")))
	ts.mustAsk("PUT /users/"+id+"/password", admin, object{"new_password": "another password"})
	ts.wantDead("mcp", tokens)
	want(t, "the cookie", kindOf(b.authorize("mcp")), "login page")
}

// TestToken_Userinfo takes a client's token in the header or in a form, and
// nothing else.
func TestToken_Userinfo(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	token := ts.wantOK("token", b.redeem("app", b.mustCode("app"))).text("access_token")
	login, _ := ts.mustLogin(adaEmail, userPassword)
	get := ts.wantOK("GET", ts.do("GET", userinfoPath, token, nil))
	want(t, "Content-Type", get.header.Get("Content-Type"), "application/json")
	want(t, "POST", ts.do("POST", userinfoPath, token, nil).body, get.body)
	want(t, "form", ts.do("POST", userinfoPath, "", "access_token="+token, formType).body, get.body)
	for name, a := range map[string]answer{
		"nothing":  ts.do("GET", userinfoPath, "", nil),
		"no body":  ts.do("POST", userinfoPath, "", nil),
		"in query": ts.do("GET", userinfoPath+"?access_token="+token, "", nil),
	} {
		ts.wantOAuth(name, a, 401, "invalid_token")
		want(t, name, a.header.Get("WWW-Authenticate"), "Bearer")
	}
	for name, a := range map[string]answer{
		"garbage":       ts.do("GET", userinfoPath, "x", nil),
		"login":         ts.do("GET", userinfoPath, login, nil),
		"empty form":    ts.do("POST", userinfoPath, "", "x=y", formType),
		"login in form": ts.do("POST", userinfoPath, "", "access_token="+login, formType),
	} {
		ts.wantOAuth(name, a, 401, "invalid_token")
		want(t, name, a.header.Get("WWW-Authenticate"), `Bearer error="invalid_token"`)
	}
	ts.wantOAuth("twice", ts.do("POST", userinfoPath, "", "access_token="+token+"&access_token="+token,
		formType),
		400, "invalid_request")
	ts.clock.advance(15 * time.Minute)
	ts.wantOAuth("expired", ts.do("GET", userinfoPath, token, nil), 401, "invalid_token")
}

// TestToken_Revoke: a client ends its own sessions, by any of their tokens, and
// learns nothing about others.
func TestToken_Revoke(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t, handlersJSONLog)
	b.as(adaEmail)
	open := func() answer { return ts.wantOK("token", b.redeem("app", b.mustCode("app"))) }
	revoke := func(client, token string, pairs ...string) {
		t.Helper()
		a := ts.post(revokePath, client, append(pairs, "token="+token)...)
		want(t, "revocation", fmt.Sprint(a.status, a.body), "200")
	}
	for range 2 {
		tokens := open()
		revoke("app", tokens.text("refresh_token"), "token_type_hint=access_token")
		ts.wantDead("app", tokens)
		revoke("app", tokens.text("refresh_token"))
	}
	tokens := open()
	revoke("app", tokens.text("access_token"))
	ts.wantDead("app", tokens)
	tokens = open()
	old := tokens.text("refresh_token")
	tokens = ts.wantOK("refresh", ts.refreshAs("app", old))
	revoke("app", old) // the one before: a refresh may be under way
	ts.wantDead("app", tokens)
	want(t, "revocations in the log", ts.logged(object{"msg": "session.revoked", "client": "app",
		"session": sid(tokens.text("access_token")), "reason": "revoked by the client"}), 1)
	tokens = open()
	ts.clock.advance(15 * time.Minute)
	revoke("app", tokens.text("access_token")) // expired, but it says which session
	ts.wantDead("app", tokens)

	tokens = open()
	code := b.mustCode("app")
	handle, _, _ := strings.Cut(tokens.text("refresh_token"), ".")
	login, loginRefresh := ts.mustLogin(adaEmail, userPassword)
	_, cookie, _ := strings.Cut(b.cookie, "=")
	for _, token := range []string{"x", code, newRefreshToken(handle), cookie, login, loginRefresh,
		tokens.text("id_token")} {
		revoke("app", token)
	}
	for _, token := range []string{tokens.text("refresh_token"), tokens.text("access_token")} {
		revoke("mcp", token)
		revoke("cli", token)
	}
	ts.wantOAuth("nothing", ts.post(revokePath, "app"), 400, "invalid_request")
	ts.wantOK("refresh", ts.refreshAs("app", tokens.text("refresh_token")))
	ts.wantOK("the code", ts.redeem("app", code))
	ts.mustAsk("GET /me", login, nil)
	want(t, "the cookie", kindOf(b.authorize("app")), "code")
}

// TestToken_Introspect: a confidential client learns about its own tokens and
// those that are meant for it; of any other it hears that it is not active and
// not a word more.
func TestToken_Introspect(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	tokens := map[string]string{}
	for _, client := range []string{"app", "mcp", "cli"} {
		a := ts.wantOK("token", b.redeem(client, b.mustCode(client)))
		tokens[client] = a.text("access_token")
		tokens[client+" refresh"], tokens[client+" id"] = a.text("refresh_token"), a.text("id_token")
	}
	tokens["login"], _ = ts.mustLogin(adaEmail, userPassword)
	tokens["garbage"] = "x"
	for _, line := range lines(`
		app  app  client_id:app & username:ada@example.com & scope:openid email profile groups
		mcp   mcp          client_id:mcp & aud:[http://localhost:8100 https://mcp.example/mcp pico-bot]
		mcp   login        username:ada@example.com & aud:pico-bot
		app   mcp          -
		app   cli          -
		app   login        -
		mcp   app          -
		app   app refresh  -
		app   app id       -
		app   garbage      -`) {
		t.Run(line, func(t *testing.T) {
			c := columns(line)
			a := ts.in(t).wantOK("answer", ts.post(introspectPath, c[0], "token="+tokens[c[1]]))
			if c[2] == "" {
				want(t, "answer", a.body, `{"active":false}`)
				return
			}
			want(t, "active", a.json["active"], any(true))
			wantText(t, "answer", fmt.Sprint(a.json), strings.Split(c[2], " & ")...)
		})
	}
	want(t, "no token", ts.post(introspectPath, "app").body, `{"active":false}`)
	ts.wantOAuth("by a public client", ts.post(introspectPath, "cli", "token="+tokens["cli"]), 401,
		"invalid_client")
	ts.clock.advance(15 * time.Minute)
	want(t, "expired", ts.post(introspectPath, "app", "token="+tokens["app"]).body, `{"active":false}`)
}

// TestLogoutPage_AsksOrLeadsBack: a valid id_token of the user who is logged in ends the
// session and leads back; anything less asks first. Nobody is ever sent to a URI
// that is not registered for the client. The columns are who is logged in, the
// query, what is shown, and what is shown after the user agreed; APP is an
// id_token of ada for app, OLD one that has expired.
func TestLogoutPage_AsksOrLeadsBack(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	fresh := func(b *surfer) *surfer { return (&surfer{testServer: b.testServer}).as(adaEmail) }
	tokens := ts.wantOK("token", b.as(adaEmail).redeem("app", b.mustCode("app")))
	hint := tokens.text("id_token")
	parts := strings.Split(hint, ".")
	none := b64.EncodeToString([]byte(`{"alg":"none"}`))
	ts.clock.advance(2 * time.Hour) // it has expired
	bye, wikiBye := url.QueryEscape("https://app.example/bye"), url.QueryEscape("https://wiki.example/bye?x=1")
	fill := strings.NewReplacer("ACCESS", tokens.text("access_token"), "HINT", "id_token_hint="+hint,
		"NONE", "id_token_hint="+none+"."+parts[1]+".", "FOREIGN", "id_token_hint="+parts[0]+"."+parts[1]+"."+parts[0],
		"WIKIBYE", "post_logout_redirect_uri="+wikiBye, "BYE", "post_logout_redirect_uri="+bye, "EVIL",
		"post_logout_redirect_uri=https%3A%2F%2Fevil.example%2F")
	for _, line := range lines(`
		ada     HINT&BYE&state=a+b%2Fc              https://app.example/bye?state=a+b%2Fc  -
		ada     HINT&BYE                            https://app.example/bye                -
		ada     HINT&BYE&client_id=app              https://app.example/bye                -
		ada     HINT                                signed out                             -
		ada     HINT&state=x                        signed out                             -
		ada     HINT&EVIL                           signed out                             -
		ada     HINT&BYEx                           signed out                             -
		ada     HINT&BYE%3Fx=y                      signed out                             -
		ada     HINT&BYE&BYE                        signed out                             -
		ada     HINT&WIKIBYE                        signed out                             -
		ada     HINT&BYE&client_id=wiki             logout page                            signed out
		ada     HINT&HINT&BYE                       logout page                            signed out
		ada     -                                   logout page                            signed out
		ada     state=x                             logout page                            signed out
		ada     BYE                                 logout page                            signed out
		ada  BYE&client_id=app  logout page  https://app.example/bye
		ada  BYE&client_id=app&state=x  logout page  https://app.example/bye?state=x
		ada  WIKIBYE&client_id=wiki&state=x  logout page  https://wiki.example/bye?x=1&state=x
		ada     BYE&client_id=wiki                  logout page                            signed out
		ada     EVIL&client_id=app                  logout page                            signed out
		ada     BYE&client_id=nobody                logout page                            signed out
		ada     NONE&BYE                            logout page                            signed out
		ada     FOREIGN&BYE                         logout page                            signed out
		ada     id_token_hint=ACCESS&BYE            logout page                            signed out
		ada     id_token_hint=x&EVIL                logout page                            signed out
		bob  HINT&BYE  logout page  https://app.example/bye
		nobody  HINT&BYE&state=x                    https://app.example/bye?state=x        -
		nobody  HINT&EVIL                           signed out                             -
		nobody  BYE&client_id=app                   signed out                             -
		nobody  NONE&BYE                            signed out                             -
		nobody  -                                   signed out                             -`) {
		t.Run(line, func(t *testing.T) {
			c := columns(fill.Replace(line))
			b := &surfer{testServer: b.testServer.in(t)}
			switch c[0] {
			case "ada":
				b = fresh(b)
			case "bob":
				b.as("bob@example.com")
			}
			a := b.do("GET", logoutPath+"?"+c[1], nil)
			want(t, "outcome", kindOf(a), c[2])
			if c[2] == "logout page" {
				who := map[string]string{"ada": adaEmail, "bob": "bob@example.com"}[c[0]]
				wantText(t, "page", a.body, "<strong>"+who+"</strong>")
				want(t, "still logged in", kindOf(b.authorize("app", "prompt=none")), "code")
				a = b.do("POST", actionOf(a), url.Values{})
				want(t, "outcome then", kindOf(a), c[3])
			}
			want(t, "logged out", kindOf(b.authorize("app", "prompt=none")), "login_required")
			query := must(url.ParseQuery(c[1]))
			if len(query["id_token_hint"]) > 1 || len(query["post_logout_redirect_uri"]) > 1 {
				return
			}
			a = b.do("POST", logoutPath, query)
			want(t, "answer to POST", fmt.Sprint(a.status, a.header.Get("Location")),
				"303"+logoutPath+"?"+query.Encode())
		})
	}
	wantText(t, "log", ts.logs.String(),
		"post_logout_redirect_uri https://evil.example/ is not in oidc.clients.app.post_logout_redirect_uris")
}

// TestLogoutPage_EndsWhatGrewFromIt: a logout ends what clients got in this browser,
// but for offline access, and nothing of other browsers. Without a cookie a hint
// ends the client's own session.
func TestLogoutPage_EndsWhatGrewFromIt(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t, handlersJSONLog)
	open := func(b *surfer, scope string) answer {
		return ts.wantOK("token", ts.redeem("app", b.mustCode("app", "scope="+scope)))
	}
	phone := (&surfer{testServer: ts}).as(adaEmail)
	onPhone := open(phone, "openid")
	b.as(adaEmail)
	login, _ := ts.mustLogin(adaEmail, userPassword)
	online, offline := open(b, "openid"), open(b, "openid offline_access")
	code := b.mustCode("app", "scope=openid")
	b.do("POST", logoutConfirmPath, url.Values{})
	ts.wantDead("app", online)
	ts.wantOAuth("a code that waited", ts.redeem("app", code), 400, "invalid_grant")
	offline = ts.wantOK("offline", ts.refreshAs("app", offline.text("refresh_token")))
	ts.wantOK("on the phone", ts.refreshAs("app", onPhone.text("refresh_token")))
	ts.mustAsk("GET /me", login, nil)
	nobody := &surfer{testServer: ts}
	nobody.do("GET", logoutPath+"?id_token_hint="+offline.text("id_token"), nil)
	ts.wantDead("app", offline)
	want(t, "logouts in the log", ts.logged(object{"msg": "session.revoked", "client": "app",
		"reason": "logout"}), 3)
	want(t, "of the browser", ts.logged(object{"msg": "session.revoked", "client": "#browser",
		"reason": "logout"}), 1)
	want(t, "phone", kindOf(phone.authorize("app", "prompt=none")), "code")
}

// TestSessions_NameTheirClient: people see which programs they are logged in to,
// and end them; codes that wait are not among them.
func TestSessions_NameTheirClient(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	tokens := ts.wantOK("token", b.redeem("app", b.mustCode("app")))
	b.mustCode("mcp")
	access, _ := ts.mustLogin(adaEmail, userPassword)
	list := ts.mustAsk("GET /me/sessions", access, nil)
	clients := regexp.MustCompile(`"client":"[^"]*"`).FindAllString(list.body, -1)
	slices.Sort(clients)
	want(t, "clients", fmt.Sprint(clients), `["client":"#browser" "client":"app"]`)
	want(t, "sessions", strings.Count(list.body, `"id"`), 3)
	ts.mustAsk("DELETE /me/sessions/"+sid(tokens.text("access_token")), access, nil)
	ts.wantDead("app", tokens)
}

// TestOIDC_ProviderDiscovery: both paths have the same bytes, and every
// endpoint that is named exists.
func TestOIDC_ProviderDiscovery(t *testing.T) {
	t.Parallel()
	for issuer, base := range map[string]string{
		"http://localhost:8100":     "http://localhost:8100",
		"https://id.example.com/a/": "https://id.example.com/a",
	} {
		ts := newTestServer(t, providerClients, func(c *config) { c.issuer = issuer })
		a := ts.wantOK("discovery", ts.do("GET", discoveryPath, "", nil, "Host: evil.example"))
		want(t, "RFC 8414", ts.do("GET", oauthMetadataPath, "", nil).body, a.body)
		for _, line := range lines(`
			issuer                                          ISSUER
			authorization_endpoint                          BASE/oauth2/authorize
			token_endpoint                                  BASE/oauth2/token
			userinfo_endpoint                               BASE/oauth2/userinfo
			revocation_endpoint                             BASE/oauth2/revoke
			introspection_endpoint                          BASE/oauth2/introspect
			end_session_endpoint                            BASE/oauth2/logout
			jwks_uri                                        BASE/api/v1/auth/jwks
			scopes_supported                                [openid profile email groups offline_access]
			response_types_supported                        [code]
			response_modes_supported                        [query]
			grant_types_supported                           [authorization_code client_credentials refresh_token]
			acr_values_supported                            [1]
			subject_types_supported                         [public]
			id_token_signing_alg_values_supported           [RS256]
			claims_supported  [sub iss aud exp iat auth_time acr amr nonce at_hash sid email email_verified name preferred_username groups]
			token_endpoint_auth_methods_supported           [none client_secret_basic client_secret_post]
			revocation_endpoint_auth_methods_supported      [none client_secret_basic client_secret_post]
			introspection_endpoint_auth_methods_supported   [client_secret_basic client_secret_post]
			code_challenge_methods_supported                [S256]
			authorization_response_iss_parameter_supported  true
			claims_parameter_supported                      false
			request_parameter_supported                     false
			request_uri_parameter_supported                 false
			service_documentation                           BASE/docs`) {
			c := columns(strings.NewReplacer("ISSUER", issuer, "BASE", base).Replace(line))
			want(t, c[0], fmt.Sprint(a.json[c[0]]), c[1])
			delete(a.json, c[0])
			if path, ok := strings.CutPrefix(c[1], base); ok && path != "" && path != "/" {
				want(t, c[0]+" exists", ts.do("GET", path, "", nil).status != 404, true)
			}
		}
		want(t, "other members", fmt.Sprint(a.json), "map[]")
	}
}

// TestProvider_IsOffWithoutClients, but for what service tokens need.
func TestProvider_IsOffWithoutClients(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	off := 0
	for _, r := range newTestServer(t, providerClients).srv.routeTable() {
		method, path := httpEndpoint(r)
		if !strings.HasPrefix(path, "/oauth2/") && path != oauthMetadataPath {
			continue
		}
		a := ts.do(method, path, "", nil)
		if path == tokenPath || path == introspectPath || path == revokePath {
			ts.wantOAuth(r.pattern, a, 400, "invalid_request")
			continue
		}
		ts.wantProblem(r.pattern, a, 404, "not_found")
		off++
	}
	want(t, "routes that are off", off, 12)
}

// TestProvider_CORS: scripts of public clients may call what needs no cookie;
// no page is for scripts.
func TestProvider_CORS(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, providerClients,
		func(c *config) { c.corsOrigins = []string{"https://own.example"} })
	for _, line := range lines(`
		https://spa.example   yes  /oauth2/token /oauth2/userinfo /oauth2/revoke /oauth2/introspect
		https://own.example   yes  /oauth2/token /oauth2/userinfo /api/v1/auth/login
		https://spa.example  no  /oauth2/authorize /oauth2/login /oauth2/continue /oauth2/logout /api/v1/auth/login
		https://own.example   no   /oauth2/authorize /oauth2/login /oauth2/logout
		https://app.example   no   /oauth2/token /oauth2/userinfo
		https://evil.example  no   /oauth2/token /oauth2/userinfo /oauth2/authorize
		null                  no   /oauth2/token`) {
		c := columns(line)
		allowed := map[string]string{"yes": c[0], "no": ""}[c[1]]
		for _, path := range strings.Fields(c[2]) {
			a := ts.do("OPTIONS", path, "", nil, "Origin: "+c[0], "Access-Control-Request-Method: POST")
			want(t, line+": preflight of "+path, a.header.Get("Access-Control-Allow-Origin"), allowed)
			want(t, line+": status of "+path, a.status, map[string]int{"yes": 204, "no": 405}[c[1]])
			a = ts.do("POST", path, "", "", "Origin: "+c[0])
			want(t, line+": answer of "+path, a.header.Get("Access-Control-Allow-Origin"), allowed)
			want(t, "credentials", a.header.Get("Access-Control-Allow-Credentials"), "")
		}
	}
}

// TestProvider_HoldsNoSecret: no code, token, cookie or client secret is in the
// database or the log.
func TestProvider_HoldsNoSecret(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t, func(c *config) { c.logLevel, c.databaseEcho = "debug", true })
	b.as(adaEmail)
	code := b.mustCode("app")
	tokens := ts.wantOK("token", b.redeem("app", code))
	again := ts.wantOK("refresh", ts.refreshAs("app", tokens.text("refresh_token")))
	ts.redeem("app", code)
	ts.do("POST", tokenPath, "", "client_id=app&client_secret="+wikiSecret, formType)
	waiting := b.mustCode("app")
	ts.redeem("wiki", waiting)
	_, cookie, _ := strings.Cut(b.cookie, "=")
	b.do("GET", logoutPath+"?id_token_hint="+tokens.text("id_token"), nil)
	path := ts.cfg.databasePath()
	stored := string(must(os.ReadFile(path))) + string(must(os.ReadFile(path+"-wal")))
	wantText(t, "the database", stored, adaEmail)
	wantText(t, "the log", ts.logs.String(), "INSERT INTO sessions", "client.failed", "token.issued",
		"authorize.ok")
	for _, secret := range []string{
		code, waiting, cookie, appSecret, wikiSecret, userPassword, verifier,
		tokens.text("refresh_token"), again.text("refresh_token"), strings.Split(tokens.text("access_token"), ".")[2],
		strings.Split(tokens.text("id_token"), ".")[2],
	} {
		want(t, secret+" is stored", strings.Contains(stored, secret), false)
		want(t, secret+" is logged", strings.Contains(ts.logs.String(), secret), false)
	}
}

// TestProvider_RacesMintNothing: after a change is acknowledged, nothing works
// that a refresh or exchange at the same time has made. PICO_AUTH_ROUNDS says
// how many times that is tried.
func TestProvider_RacesMintNothing(t *testing.T) {
	t.Parallel()
	ts, _ := newProvider(t, unthrottled)
	admin, rounds, minted := ts.mustAdmin(), 100, 0
	fmt.Sscan(os.Getenv("PICO_AUTH_ROUNDS"), &rounds)
	changes := map[string]func(b *surfer, id string, first answer) answer{
		"suspension": func(b *surfer, id string, _ answer) answer {
			return b.ask("PUT /users/"+id+"/status", admin, object{"status": "suspended"})
		},
		"new password": func(b *surfer, id string, _ answer) answer {
			return b.ask("PUT /users/"+id+"/password", admin, object{"new_password": "a new password"})
		},
		"deletion": func(b *surfer, id string, _ answer) answer {
			return b.ask("DELETE /users/"+id, admin,
				nil)
		},
		"revocation": func(b *surfer, _ string, first answer) answer {
			return b.post(revokePath, "app", "token="+first.text("access_token"))
		},
		"logout": func(b *surfer, _ string, _ answer) answer {
			return b.do("POST", logoutConfirmPath,
				url.Values{})
		},
		"logout by a hint": func(b *surfer, _ string, first answer) answer {
			b = &surfer{testServer: b.testServer}
			return b.do("GET", logoutPath+"?id_token_hint="+first.text("id_token"), nil)
		},
		"second use of the code": nil,
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			for range (rounds + len(changes) - 1) / len(changes) {
				b, email := &surfer{testServer: ts.in(t)}, newID()+"@example.com"
				id := b.mustUser(email, viewer, defaultOrg)
				code := b.as(email).mustCode("app")
				tokens := b.wantOK("token", b.redeem("app", code))
				first, done := tokens, make(chan answer, 1)
				go func() {
					if change == nil {
						a := b.redeem("app", code)
						a.status -= 200 // 400 is what it is to be
						done <- a
						return
					}
					done <- change(b.in(t), id, first)
				}()
				for len(done) == 0 {
					a := b.refreshAs("app", tokens.text("refresh_token"))
					if a.status != 200 {
						b.wantOAuth("a refresh that lost the race", a, 400, "invalid_grant")
						break
					}
					tokens, minted = a, minted+1
				}
				b.wantOK("the change", <-done)
				b.wantDead("app", tokens)
				b.wantDead("app", first)
			}
		})
	}
	if minted < rounds/20 {
		t.Errorf("only %d refreshes in %d rounds: this was no race", minted, rounds)
	}
}

// TestProvider_ExchangeRacesRevocation: a code that is exchanged while its user
// is suspended or logs out gives tokens that do not work.
func TestProvider_ExchangeRacesRevocation(t *testing.T) {
	t.Parallel()
	ts, _ := newProvider(t, unthrottled)
	admin, rounds := ts.mustAdmin(), 40
	fmt.Sscan(os.Getenv("PICO_AUTH_ROUNDS"), &rounds)
	for i := range rounds {
		email := newID() + "@example.com"
		id := ts.mustUser(email, viewer, defaultOrg)
		b := (&surfer{testServer: ts}).as(email)
		code := b.mustCode("app")
		answers := together(3, func(n int) answer {
			switch {
			case n == 0:
				return b.redeem("app", code)
			case n == 1:
				return b.in(t).authorize("app")
			case i%2 == 0:
				return ts.ask("PUT /users/"+id+"/status", admin, object{"status": "suspended"})
			}
			return b.in(t).do("POST", logoutConfirmPath, url.Values{})
		})
		want(t, "the change", answers[2].status, 200)
		if answers[0].status == 200 {
			ts.wantDead("app", answers[0])
		} else {
			ts.wantOAuth("exchange", answers[0], 400, "invalid_grant")
		}
		if kindOf(answers[1]) == "code" {
			later := must(url.Parse(answers[1].header.Get("Location"))).Query().Get("code")
			ts.wantOAuth("exchange of a later code", ts.redeem("app", later), 400, "invalid_grant")
		}
		want(t, "the cookie", kindOf(b.authorize("app", "prompt=none")), "login_required")
	}
}

// TestProvider_SurvivesAKill: a code that was given out before the server was
// killed works once, and so does everything else.
func TestProvider_SurvivesAKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeTestKeys(dir + "/.pico-auth")
	mustOK(os.WriteFile(dir+"/application.yaml", []byte(providerFile), 0o600))
	start := func() (*program, *surfer) {
		p := launch(t, dir, []string{"AUTH_ADMIN_PASSWORD=" + adminPassword})
		ts := p.client()
		ts.app = &app{cfg: defaultConfig()}
		return p, &surfer{testServer: ts}
	}
	p, b := start()
	b.mustAsk("POST /register", "", object{"email": adaEmail, "password": userPassword})
	b.as(adaEmail)
	old := b.wantOK("token", b.redeem("app", b.mustCode("app")))
	code, cookie := b.mustCode("app"), b.cookie
	p.Process.Kill()
	p.exit()
	_, b = start()
	b.cookie = cookie
	tokens := b.wantOK("the code after the kill", b.redeem("app", code))
	b.wantOK("userinfo", b.testServer.do("GET", userinfoPath, tokens.text("access_token"), nil))
	b.wantOK("refresh", b.refreshAs("app", old.text("refresh_token")))
	want(t, "the cookie", kindOf(b.authorize("app", "prompt=none")), "code")
	b.wantOAuth("the code again", b.redeem("app", code), 400, "invalid_grant")
	b.wantDead("app", tokens)
}

// FuzzToken: no form and no header of credentials makes the server fail, and
// nothing but the right secret gets tokens.
func FuzzToken(f *testing.F) {
	ts, _ := newProvider(f, unthrottled)
	for _, seed := range [][2]string{
		{"", "grant_type=authorization_code&code=x&client_id=cli"},
		{basic("app", appSecret)[len("Authorization: "):], "grant_type=refresh_token&refresh_token=x.y"},
		{"Basic " + base64.StdEncoding.EncodeToString([]byte("app:%zz")),
			"grant_type=client_credentials&x=%zz"},
		{"Bearer x", "token=eyJhbGciOiJub25lIn0.e30.&client_id=app&client_secret=x"},
		{"Basic", "a=1&a=2"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, credentials, form string) {
		for _, r := range credentials {
			if r < ' ' || r > '~' {
				t.Skip("cannot be sent")
			}
		}
		for _, path := range []string{tokenPath, revokePath, introspectPath, userinfoPath} {
			a := ts.in(t).do("POST", path, "", form, formType, "Authorization: "+credentials)
			if a.status >= 500 || a.json["access_token"] != nil || a.header.Get("Location") != "" {
				t.Errorf("%s with %q, %q: %d %s", path, credentials, form, a.status, a.body)
			}
		}
	})
}

// certifier is a run of the OpenID Foundation's conformance suite against the
// client wiki, which does no PKCE. Another client is app.
type certifier struct {
	*surfer
	shown []string // which pages the user saw
}

// visit sends the user to the authorization endpoint, where ada logs in if she
// is asked to, and returns what the client gets.
func (v *certifier) visit(changes ...string) url.Values {
	v.Helper()
	plain := []string{"code_challenge=-", "code_challenge_method=-", "scope=openid"}
	a := v.authorize("wiki", append(plain, changes...)...)
	v.shown = append(v.shown, kindOf(a))
	switch kindOf(a) {
	case "login page":
		a = v.logIn(a, adaEmail, userPassword)
	case "continue page":
		a = v.do("POST", actionOf(a), url.Values{"answer": {"yes"}, "user": {v.userOfPage(a)}})
	}
	return v.back("wiki", a)
}

func (v *certifier) token(code string) answer { return v.redeem("wiki", code, "code_verifier=-") }

// happy is a whole login. It checks what every module does, and returns the
// answer of the token endpoint and the claims of the id_token.
func (v *certifier) happy(changes ...string) (answer, object) {
	v.Helper()
	query := v.visit(changes...)
	want(v, "length of the code", len(query.Get("code")) >= 22, true)
	tokens := v.wantOK("token", v.token(query.Get("code")))
	want(v, "token_type", tokens.text("token_type"), "Bearer")
	want(v, "expires_in", tokens.json["expires_in"], any(900.0))
	token := tokens.text("id_token")
	_, err := verifyToken[idClaims](v.keys.current(), token, expected{v.cfg.issuer, "wiki", v.now(), false})
	want(v, "id_token", err, nil)
	return tokens, claimsOf(token)
}

func (v *certifier) userinfo(tokens answer) answer {
	v.Helper()
	return v.wantOK("userinfo", v.testServer.do("GET", userinfoPath, tokens.text("access_token"), nil))
}

// silent checks that a request shows no page and is about the same login.
func (v *certifier) silent(first object, changes ...string) {
	v.Helper()
	pages := len(v.shown)
	_, claims := v.happy(changes...)
	want(v, "pages", fmt.Sprint(v.shown[pages:]), "[code]")
	want(v, "sub", claims["sub"], first["sub"])
	want(v, "auth_time", claims["auth_time"], first["auth_time"])
}

// again checks that a request shows the login page and is about a later login.
func (v *certifier) again(first object, changes ...string) {
	v.Helper()
	_, claims := v.happy(changes...)
	want(v, "pages", fmt.Sprint(v.shown[len(v.shown)-1:]), "[login page]")
	want(v, "sub", claims["sub"], first["sub"])
	want(v, "login is later", claims["auth_time"].(float64) > first["auth_time"].(float64), true)
	want(v, "login is now", int64(claims["auth_time"].(float64)), v.now().Unix())
}

// fails checks that the client hears an error and that a used code is not given.
func (v *certifier) fails(code string, changes ...string) {
	v.Helper()
	query := v.visit(changes...)
	want(v, "error", query.Get("error"), code)
	members := slices.DeleteFunc(slices.Sorted(maps.Keys(query)), func(name string) bool {
		return slices.Contains([]string{"error", "error_description", "state", "iss", "x"}, name)
	})
	want(v, "other members", fmt.Sprint(members), "[]")
	want(v, "control characters", strings.ContainsAny(query.Get("error_description"), "\r\n\t"), false)
}

// certificationModules are those of the plans oidcc-basic, oidcc-config and
// oidcc-rp-initiated-logout for clients that are not registered by themselves.
var certificationModules = map[string]func(v *certifier){
	"oidcc-server": func(v *certifier) {
		tokens, claims := v.happy()
		members := fmt.Sprint(slices.Sorted(maps.Keys(claims)))
		want(v, "claims", members, "[acr amr at_hash aud auth_time exp iat iss nonce sid sub]")
		want(v, "nonce", claims["nonce"], any("n-1"))
		want(v, "userinfo", v.userinfo(tokens).text("sub"), claims["sub"].(string))
	},
	"oidcc-response-type-missing": func(v *certifier) { v.fails("invalid_request", "response_type=-") },
	"oidcc-userinfo-get": func(v *certifier) {
		tokens, claims := v.happy()
		a := v.userinfo(tokens)
		want(v, "Content-Type", a.header.Get("Content-Type"), "application/json")
		want(v, "sub", any(a.text("sub")), claims["sub"])
	},
	"oidcc-userinfo-post-header": func(v *certifier) {
		tokens, claims := v.happy()
		a := v.wantOK("POST", v.testServer.do("POST", userinfoPath, tokens.text("access_token"), nil))
		want(v, "sub", any(a.text("sub")), claims["sub"])
	},
	"oidcc-userinfo-post-body": func(v *certifier) {
		tokens, claims := v.happy()
		form := "access_token=" + tokens.text("access_token")
		a := v.wantOK("POST", v.testServer.do("POST", userinfoPath, "", form, formType))
		want(v, "sub", any(a.text("sub")), claims["sub"])
	},
	"oidcc-ensure-request-without-nonce-succeeds-for-code-flow": func(v *certifier) {
		_, claims := v.happy("nonce=-")
		want(v, "nonce", claims["nonce"], nil)
	},
	"oidcc-scope-profile": func(v *certifier) {
		tokens, _ := v.happy("scope=openid profile")
		want(v, "name", v.userinfo(tokens).text("name"), adaEmail)
		want(v, "preferred_username", v.userinfo(tokens).text("preferred_username"), adaEmail)
	},
	"oidcc-scope-email": func(v *certifier) {
		tokens, _ := v.happy("scope=openid email")
		want(v, "email", v.userinfo(tokens).text("email"), adaEmail)
	},
	"oidcc-scope-all": func(v *certifier) {
		tokens, _ := v.happy("scope=openid profile email address phone")
		want(v, "scope", tokens.text("scope"), "openid profile email")
		want(v, "members", len(v.userinfo(tokens).json), 4)
	},
	"oidcc-alternate-happy-flow": func(v *certifier) {
		tokens, _ := v.happy("scope=phone email profile openid")
		want(v, "scope", tokens.text("scope"), "email profile openid")
	},
	"oidcc-display-page":     func(v *certifier) { v.happy("display=page") },
	"oidcc-display-popup":    func(v *certifier) { v.happy("display=popup") },
	"oidcc-ui-locales":       func(v *certifier) { v.happy("ui_locales=se") },
	"oidcc-claims-locales":   func(v *certifier) { v.happy("claims_locales=se") },
	"oidcc-login-hint":       func(v *certifier) { v.happy("login_hint=buffy@localhost") },
	"oidcc-claims-essential": func(v *certifier) { v.happy(`claims={"userinfo":{"name":{"essential":true}}}`) },
	"oidcc-ensure-request-with-unknown-parameter-succeeds": func(v *certifier) { v.happy("extra=foobar") },
	"oidcc-ensure-request-with-acr-values-succeeds": func(v *certifier) {
		_, claims := v.happy("acr_values=1")
		want(v, "acr", claims["acr"], any("1"))
	},
	"oidcc-prompt-login": func(v *certifier) {
		_, first := v.happy()
		v.clock.advance(time.Second)
		v.again(first, "prompt=login")
	},
	"oidcc-prompt-none-not-logged-in": func(v *certifier) {
		state := strings.Repeat("x", 128)
		query := v.visit("prompt=none", "state="+state)
		want(v, "error", query.Get("error"), "login_required")
		want(v, "state", query.Get("state"), state)
		v.fails("login_required", "prompt=none")
	},
	"oidcc-prompt-none-logged-in": func(v *certifier) {
		_, first := v.happy()
		v.clock.advance(time.Second)
		v.silent(first, "prompt=none")
	},
	"oidcc-id-token-hint": func(v *certifier) {
		tokens, first := v.happy()
		v.clock.advance(time.Second)
		v.silent(first, "prompt=none", "id_token_hint="+tokens.text("id_token"))
	},
	"oidcc-max-age-1": func(v *certifier) {
		_, first := v.happy()
		v.clock.advance(2 * time.Second)
		v.again(first, "max_age=1")
	},
	"oidcc-max-age-10000": func(v *certifier) {
		_, first := v.happy("max_age=15000")
		v.clock.advance(time.Second)
		v.silent(first, "max_age=10000")
	},
	"oidcc-codereuse": func(v *certifier) {
		code := v.visit().Get("code")
		v.wantOK("token", v.token(code))
		v.wantOAuth("second use", v.token(code), 400, "invalid_grant")
	},
	"oidcc-codereuse-30seconds": func(v *certifier) {
		code := v.visit().Get("code")
		tokens := v.wantOK("token", v.token(code))
		v.userinfo(tokens)
		v.clock.advance(30 * time.Second)
		v.wantOAuth("second use", v.token(code), 400, "invalid_grant")
		v.wantOAuth("userinfo", v.testServer.do("GET", userinfoPath, tokens.text("access_token"), nil), 401,
			"invalid_token")
	},
	"oidcc-ensure-registered-redirect-uri": func(v *certifier) {
		a := v.authorize("wiki", "redirect_uri=https://wiki.example/cb?x=1/unregistered")
		want(v, "answer", kindOf(a)+a.header.Get("Location"), "400")
	},
	"oidcc-ensure-post-request-succeeds": func(v *certifier) {
		_, query, _ := strings.Cut(authorizeURL("wiki", providerURIs["wiki"]), "?")
		a := v.do("POST", authorizePath, must(url.ParseQuery(query)))
		a = v.do("GET", a.header.Get("Location"), nil)
		v.back("wiki", v.logIn(a, adaEmail, userPassword))
	},
	"oidcc-server-client-secret-post": func(v *certifier) {
		methods := v.testServer.do("GET", discoveryPath, "",
			nil).json["token_endpoint_auth_methods_supported"]
		wantText(v, "methods", fmt.Sprint(methods), "client_secret_post")
		a := v.post(tokenPath, "", "client_id=wiki", "client_secret="+wikiSecret,
			"grant_type=authorization_code",
			"code="+v.visit().Get("code"), "redirect_uri="+providerURIs["wiki"])
		v.wantOK("token", a)
	},
	"oidcc-request-uri-unsigned-supported-correctly-or-rejected-as-unsupported": func(v *certifier) {
		v.fails("request_uri_not_supported", "request_uri=https://client.example/request.jwt")
	},
	"oidcc-unsigned-request-object-supported-correctly-or-rejected-as-unsupported": func(v *certifier) {
		v.fails("request_not_supported", "request=eyJhbGciOiJub25lIn0.e30.")
	},
	"oidcc-ensure-request-object-with-redirect-uri": func(v *certifier) {
		v.fails("request_not_supported", "request=eyJhbGciOiJub25lIn0.e30.")
		a := v.authorize("wiki", "request=eyJhbGciOiJub25lIn0.e30.",
			"redirect_uri=https://wiki.example/other")
		want(v, "unregistered", kindOf(a)+a.header.Get("Location"), "400")
	},
	"oidcc-refresh-token": func(v *certifier) {
		tokens, first := v.happy("scope=openid offline_access", "prompt=consent")
		other := v.wantOK("token", v.redeem("app", v.mustCode("app")))
		v.clock.advance(time.Second)
		a := v.refreshAs("wiki", tokens.text("refresh_token"), "scope=openid")
		claims := claimsOf(v.wantOK("refresh", a).text("id_token"))
		for _, name := range []string{"iss", "sub", "aud", "auth_time", "azp", "acr", "sid"} {
			want(v, name, claims[name], first[name])
		}
		want(v, "iat stays", claims["iat"] == first["iat"], false)
		want(v, "headers", fmt.Sprint(a.header["Cache-Control"], a.text("token_type")), "[no-store]Bearer")
		v.wantOAuth("by client 1", v.refreshAs("wiki", other.text("refresh_token")), 400, "invalid_grant")
		v.wantOK("by client 2", v.refreshAs("app", other.text("refresh_token")))
	},
	"oidcc-ensure-request-with-valid-pkce-succeeds": func(v *certifier) {
		const full = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
		sum := sha256.Sum256([]byte(full))
		query := v.visit("code_challenge="+b64.EncodeToString(sum[:]), "code_challenge_method=S256")
		v.wantOK("token", v.redeem("wiki", query.Get("code"), "code_verifier="+full))
	},

	"oidcc-discovery-endpoint-verification": func(v *certifier) {
		a := v.testServer.do("GET", discoveryPath, "", nil)
		want(v, "Content-Type", a.header.Get("Content-Type"), "application/json")
		want(v, "issuer", a.text("issuer"), v.cfg.issuer)
		wantText(v, "scopes", fmt.Sprint(a.json["scopes_supported"]), "openid")
		keys := v.testServer.do("GET", strings.TrimPrefix(a.text("jwks_uri"), v.cfg.issuer), "", nil)
		want(v, "keys with kids", strings.Count(keys.body, `"kid"`), strings.Count(keys.body, `"kty"`))
	},

	"oidcc-rp-initiated-logout": certifyLogout("HINT&URI&state=a+b",
		"https://wiki.example/bye?x=1&state=a+b"),
	"oidcc-rp-initiated-logout-no-state": certifyLogout("HINT&URI",
		"https://wiki.example/bye?x=1"),
	"oidcc-rp-initiated-logout-no-params": certifyLogout(
		"", "signed out"),
	"oidcc-rp-initiated-logout-only-state": certifyLogout("state=x",
		"signed out"),
	"oidcc-rp-initiated-logout-no-post-logout-redirect-uri": certifyLogout("HINT&state=x",
		"signed out"),
	"oidcc-rp-initiated-logout-no-id-token-hint": certifyLogout("URI&state=x",
		"signed out"),
	"oidcc-rp-initiated-logout-bad-logout-redirect-uri": certifyLogout(
		"HINT&post_logout_redirect_uri=https%3A%2F%2Fwiki.example%2F&state=x", "signed out"),
	"oidcc-rp-initiated-logout-query-added-to-post-logout-redirect-uri": certifyLogout(
		"HINT&URI%26foo%3Dbar&state=x", "signed out"),
	"oidcc-rp-initiated-logout-modified-id-token-hint": certifyLogout("NONE&URI&state=x",
		"signed out"),
	"oidcc-rp-initiated-logout-bad-id-token-hint": certifyLogout(
		"FOREIGN&URI&state=x", "signed out"),
}

// certifyLogout is a module of logout: after it prompt=none finds nobody.
func certifyLogout(query, outcome string) func(v *certifier) {
	return func(v *certifier) {
		tokens, _ := v.happy()
		hint := tokens.text("id_token")
		parts := strings.Split(hint, ".")
		none := b64.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
		a := v.do("GET", logoutPath+"?"+strings.NewReplacer("HINT", "id_token_hint="+hint,
			"NONE", "id_token_hint="+none, "FOREIGN", "id_token_hint="+parts[0]+"."+parts[1]+"."+parts[0],
			"URI", "post_logout_redirect_uri="+url.QueryEscape("https://wiki.example/bye?x=1")).Replace(query), nil)
		if kindOf(a) == "logout page" {
			a = v.do("POST", actionOf(a), url.Values{})
		}
		want(v, "outcome", kindOf(a), outcome)
		v.fails("login_required", "prompt=none")
	}
}

// TestProvider_Certification asks what the modules of the conformance suite ask.
func TestProvider_Certification(t *testing.T) {
	t.Parallel()
	ts, _ := newProvider(t, unthrottled)
	for name, module := range certificationModules {
		t.Run(name, func(t *testing.T) {
			module(&certifier{surfer: &surfer{testServer: ts.in(t)}})
		})
	}
}

// TestToken_Groups: names of groups go to clients; who has none of a client's
// groups gets no code, and no more tokens from the removal on.
func TestToken_Groups(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	admin, ada := ts.mustAdmin(), must(ts.store.userByLogin(adaEmail)).id
	staff, ops := ts.group(admin, "staff", defaultOrg), ts.group(admin, "ops", "other")
	b.as(adaEmail)
	want(t, "without a group", kindOf(b.authorize("staff")), "access_denied")
	want(t, "and without a page", kindOf(b.authorize("staff", "prompt=none")), "access_denied")
	ts.join(admin, staff, ada)
	ts.join(admin, ts.group(admin, "all", defaultOrg), ada)
	tokens := ts.wantOK("token", b.redeem("staff", b.mustCode("staff")))
	for range 2 {
		info := ts.wantOK("userinfo", ts.do("GET", userinfoPath, tokens.text("access_token"), nil))
		for what, claims := range map[string]object{"id_token": claimsOf(tokens.text("id_token")), "userinfo": info.json} {
			names := claims["groups"].([]any)
			slices.SortFunc(names, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
			want(t, "groups of the "+what, fmt.Sprint(names), "[all staff]")
		}
		tokens = ts.wantOK("refresh", ts.refreshAs("staff", tokens.text("refresh_token")))
	}
	code := b.mustCode("staff")
	ts.mustAsk("DELETE /groups/"+staff+"/members/"+ada, admin, nil)
	ts.wantOAuth("a code from before", b.redeem("staff", code), 400, "invalid_grant")
	ts.wantOAuth("refresh", ts.refreshAs("staff", tokens.text("refresh_token")), 400, "invalid_grant")
	ts.wantDead("staff", tokens)
	want(t, "a new code", kindOf(b.authorize("staff")), "access_denied")
	// A group of the same name elsewhere is another one.
	eve := ts.mustUser("eve@example.com", viewer, "other")
	ts.join(admin, ts.group(admin, "staff", "other"), eve)
	b.as("eve@example.com")
	want(t, "staff of another organisation", kindOf(b.authorize("staff")), "access_denied")
	ts.join(admin, ops, eve)
	tokens = ts.wantOK("token", b.redeem("staff", b.mustCode("staff")))
	wantText(t, "claims", fmt.Sprint(claimsOf(tokens.text("id_token"))["groups"]), "other/ops", "other/staff")
	tokens = ts.wantOK("token", b.redeem("app", b.mustCode("app", "scope=openid")))
	want(t, "groups without the scope", claimsOf(tokens.text("id_token"))["groups"], nil)
}

// TestToken_ExchangeRunsAgain: when another change fails, an exchange runs again,
// perhaps with another outcome; nothing of the first run is left in its answer.
func TestToken_ExchangeRunsAgain(t *testing.T) {
	t.Parallel()
	s, ctx, at := dbNew(t), t.Context(), time.Now()
	client := &oidcClient{id: "app", refresh: true}
	u := s.user("ada@example.com", viewer)
	browserID, _ := s.login(u, at)
	must(s.writer.exec(`UPDATE sessions SET client_id = '#browser' WHERE id = $1`, browserID))
	code := pendingCode{browserID: browserID, client: client, codeHash: []byte("code"), redirectURI: "u", now: at,
		idleEnd: at.Unix() + 60, endsAt: at.Unix() + 60}
	mustOK(s.issueCode(ctx, code))
	release := s.busy()
	first, hangUp := context.WithCancel(ctx)
	exchange := func(ctx context.Context, handle string) chan rotated {
		done := make(chan rotated, 1)
		e := codeExchange{codeHash: []byte("code"), client: client, redirectURI: "u", handle: handle, now: still(at)}
		go func() {
			r, _ := s.exchangeCode(ctx, e)
			done <- r
		}()
		return done
	}
	exchange(first, "one")
	s.queued(1)
	two := exchange(ctx, "two")
	s.queued(2)
	failed := make(chan error, 1)
	go func() {
		failed <- s.change(ctx, func(*queries) error {
			hangUp()
			return errConflict
		})
	}()
	s.queued(3)
	release()
	done := <-two
	want(t, "the failing change", <-failed, errConflict)
	want(t, "refusal", done.refusal, nil)
	want(t, "session", done.sessionID, sessionIDOf("two"))
	id, _, err := s.sessionByToken(done.successor, "app")
	want(t, "session of the refresh token", fmt.Sprint(id, err), fmt.Sprint(done.sessionID, nil))
}

// TestToken_Resource: a resource restricts the token of one answer, and never
// widens it (RFC 8707 section 2.2).
func TestToken_Resource(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	code := b.mustCode("mcp")
	ts.wantOAuth("a foreign one", ts.redeem("mcp", code, "resource=https://evil.example"), 400, "invalid_target")
	tokens := ts.wantOK("token", ts.redeem("mcp", code, "resource=https://mcp.example/mcp"))
	aud := func(a answer) string { return fmt.Sprint(claimsOf(a.text("access_token"))["aud"]) }
	want(t, "narrowed", aud(tokens), "[http://localhost:8100 https://mcp.example/mcp]")
	tokens = ts.wantOK("refresh", ts.refreshAs("mcp", tokens.text("refresh_token")))
	want(t, "without one", aud(tokens), "[http://localhost:8100 https://mcp.example/mcp pico-bot]")
	ts.wantOAuth("foreign", ts.refreshAs("mcp", tokens.text("refresh_token"), "resource=x"), 400, "invalid_target")
	code = b.mustCode("mcp", "resource=pico-bot")
	tokens = ts.wantOK("token", ts.redeem("mcp", code, "resource=https://mcp.example/mcp"))
	want(t, "not widened", aud(tokens), "[http://localhost:8100 pico-bot]")
}

// TestToken_ClientsAndGroupsThatWent: userinfo and introspection ask at once
// whether the user may still use the client, and whether there is one.
func TestToken_ClientsAndGroupsThatWent(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	admin, ada := ts.mustAdmin(), must(ts.store.userByLogin(adaEmail)).id
	staff := ts.group(admin, "staff", defaultOrg)
	ts.join(admin, staff, ada)
	b.as(adaEmail)
	tokens := map[string]string{}
	for _, client := range []string{"staff", "mcp"} {
		tokens[client] = ts.wantOK("token", b.redeem(client, b.mustCode(client))).text("access_token")
	}
	ts.wantOK("userinfo", ts.do("GET", userinfoPath, tokens["staff"], nil))
	ts.mustAsk("DELETE /groups/"+staff+"/members/"+ada, admin, nil)
	delete(ts.cfg.clients, "mcp")
	for client, token := range tokens {
		ts.wantOAuth("userinfo of "+client, ts.do("GET", userinfoPath, token, nil), 401, "invalid_token")
	}
	want(t, "introspection", ts.post(introspectPath, "staff", "token="+tokens["staff"]).body, `{"active":false}`)
}

// TestAuthorize_OddRequests: what is too long, or no text, is refused before
// anything else; and a secret in the place of a client_id is not logged.
func TestAuthorize_OddRequests(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	long := b.authorize("app", "nonce="+strings.Repeat("n", 8<<10))
	want(t, "a long one", fmt.Sprint(long.status, long.header["Location"]), "400 []")
	want(t, "NUL", kindOf(b.authorize("app", "nonce=a\x00b")), "invalid_request")
	want(t, "no UTF-8", kindOf(b.authorize("app", "nonce=a\xffb")), "invalid_request")
	ts.wantOAuth("form", ts.post(tokenPath, "app", "grant_type=refresh_token", "refresh_token=\xff"), 400,
		"invalid_request")
	ts.wantOAuth("swapped", ts.do("POST", tokenPath, "", "grant_type=refresh_token", formType,
		basic(appSecret, "app")), 401, "invalid_client")
	b.do("GET", authorizePath+"?client_id="+appSecret, nil)
	want(t, "the log has a secret", strings.Contains(ts.logs.String(), appSecret), false)
}

// TestToken_GroupRaces: of refreshes that race a removal from the client's
// group, none that begins afterwards mints anything.
func TestToken_GroupRaces(t *testing.T) {
	t.Parallel()
	ts, _ := newProvider(t, unthrottled)
	admin, rounds, minted := ts.mustAdmin(), 100, 0
	fmt.Sscan(os.Getenv("PICO_AUTH_ROUNDS"), &rounds)
	group := ts.group(admin, "staff", defaultOrg)
	for round := range rounds / 4 {
		b, email := &surfer{testServer: ts}, newID()+"@example.com"
		id := ts.mustUser(email, viewer, defaultOrg)
		ts.join(admin, group, id)
		tokens := ts.wantOK("token", b.redeem("staff", b.as(email).mustCode("staff")))
		won := make(chan bool, 1)
		together(2, func(i int) answer {
			if i == 0 {
				if round%2 == 0 {
					<-won // in the other rounds the removal may be faster than every refresh
				}
				return ts.wantOK("removal", ts.ask("DELETE /groups/"+group+"/members/"+id, admin, nil))
			}
			for {
				a := ts.refreshAs("staff", tokens.text("refresh_token"))
				if a.status != 200 {
					return a
				}
				tokens, minted = a, minted+1
				select {
				case won <- true:
				default:
				}
			}
		})
		ts.wantOAuth("refresh", ts.refreshAs("staff", tokens.text("refresh_token")), 400, "invalid_grant")
		ts.wantDead("staff", tokens)
	}
	want(t, "refreshes that won", minted > 0, true)
}

// TestToken_ServiceTokens: a service token gets a token that verifiers take like
// a user's, and that opens nothing here.
func TestToken_ServiceTokens(t *testing.T) {
	t.Parallel()
	ts, _ := newProvider(t)
	admin := ts.mustAdmin()
	made := ts.mustAsk("POST /service-tokens", admin, object{"name": "bot.1", "role": "operator", "org_id": "acme"})
	form := func(id, secret, grant string) string {
		return url.Values{"client_id": {id}, "client_secret": {secret}, "grant_type": {grant}}.Encode()
	}
	post := func(path, form string) answer { return ts.do("POST", path, "", form, formType) }
	good := form("bot.1", made.text("token"), "client_credentials")
	a := ts.wantOK("token", post(tokenPath, good))
	access := a.text("access_token")
	now := ts.now().Unix()
	claims := claimsOf(access)
	want(t, "jti", len(claims["jti"].(string)), 26)
	delete(claims, "jti")
	want(t, "claims", string(must(json.Marshal(claims))), fmt.Sprintf(`{"aud":"pico-bot","client_id":"bot.1","email":"",`+
		`"exp":%d,"groups":[],"iat":%d,"iss":"http://localhost:8100","org_id":"acme","role":"operator","sub":%q}`,
		now+900, now, made.text("id")))
	want(t, "members", fmt.Sprint(slices.Sorted(maps.Keys(a.json))), "[access_token expires_in token_type]")
	ts.wantProblem("GET /me", ts.ask("GET /me", access, nil), 401, "invalid_token")
	ts.wantOAuth("userinfo", ts.do("GET", userinfoPath, access, nil), 401, "invalid_token")
	active := func(by string) any { return post(introspectPath, by+"&token="+access).json["active"] }
	want(t, "by itself", active(good), any(true))
	want(t, "by another client", ts.post(introspectPath, "app", "token="+access).json["active"], any(false))
	want(t, "by a client of its audience", ts.post(introspectPath, "mcp", "token="+access).json["active"], any(true))
	for _, line := range lines(`
		bot.1  TOKEN  authorization_code  400 unauthorized_client
		bot.1  TOKEN  refresh_token       400 unauthorized_client
		bot.1  TOKEN  password            400 unsupported_grant_type
		bot.1  x      client_credentials  401 invalid_client
		bot.2  TOKEN  client_credentials  401 invalid_client
		app    TOKEN  client_credentials  401 invalid_client
		app    APP    client_credentials  400 unauthorized_client`) {
		c := columns(strings.NewReplacer("TOKEN", made.text("token"), "APP", appSecret).Replace(line))
		status, code, _ := strings.Cut(c[3], " ")
		ts.wantOAuth(line, post(tokenPath, form(c[0], c[1], c[2])), must(strconv.Atoi(status)), code)
	}
	ts.wantOK("revocation, which changes nothing", post(revokePath, good+"&token="+access))
	want(t, "afterwards", active(good), any(true))
	for range 60 {
		post(tokenPath, form("bot.1", "x", "client_credentials"))
	}
	ts.wantOAuth("guessing", post(tokenPath, form("bot.1", "x", "client_credentials")), 429, "temporarily_unavailable")
	ts.wantOK("the right one meanwhile", post(tokenPath, good))
	ts.mustAsk("DELETE /service-tokens/bot.1", admin, nil)
	want(t, "after its end", ts.post(introspectPath, "mcp", "token="+access).json["active"], any(false))
	ts.wantProblem("a name of a client", ts.ask("POST /service-tokens", admin, object{"name": "app"}), 409, "name_taken")
	dbFile(ts.cfg.databasePath(), `INSERT INTO service_tokens (id, name, token_hash, role, org_id, description, created_at)
		VALUES ('i', 'wiki', x'00', 'viewer', 'default', '', 0)`)
	wantText(t, "start", fmt.Sprint(ts.checkClientNames()), "oidc.clients.wiki is called like a service token")
}

// TestAuthorize_HintAndPlace: somebody else may log in where a hint expects a
// user, but the client does not get that user; and the login page of programs
// that anybody can pretend to be says where the answer goes.
func TestAuthorize_HintAndPlace(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	hint := "id_token_hint=" + ts.wantOK("token", b.redeem("app", b.mustCode("app"))).text("id_token")
	want(t, "the user", kindOf(b.authorize("app", hint)), "code")
	page := b.authorize("app", hint, "prompt=login")
	want(t, "another user", kindOf(b.logIn(page, "bob@example.com", userPassword)), "login_required")
	want(t, "the user again", kindOf(b.logIn(b.authorize("app", hint), adaEmail, userPassword)), "code")
	wantText(t, "page", b.authorize("cli", "prompt=login").body, "at <strong>127.0.0.1</strong>")
	want(t, "where, of others", strings.Contains(b.authorize("app", "prompt=login").body, " at <strong>"), false)
}

// TestSessions_BrowserTakesItsClientsAlong: ending a browser's session in the
// list of sessions is a logout there.
func TestSessions_BrowserTakesItsClientsAlong(t *testing.T) {
	t.Parallel()
	ts, b := newProvider(t)
	b.as(adaEmail)
	tokens := ts.wantOK("token", b.redeem("app", b.mustCode("app")))
	offline := ts.wantOK("token", b.redeem("app", b.mustCode("app", "scope=openid offline_access")))
	code := b.mustCode("app", "scope=openid offline_access")
	access, _ := ts.mustLogin(adaEmail, userPassword)
	list := ts.mustAsk("GET /me/sessions", access, nil)
	wantText(t, "sessions", list.body, `"client":"app"`, `"client":"#browser"`)
	browser := ts.rowsOf(`client_id = '#browser'`)
	ts.mustAsk("DELETE /me/sessions/"+browser, access, nil)
	want(t, "the cookie", kindOf(b.authorize("app")), "login page")
	ts.wantDead("app", tokens)
	ts.wantOAuth("a code that waited", ts.redeem("app", code), 400, "invalid_grant")
	ts.wantOK("offline", ts.refreshAs("app", offline.text("refresh_token")))
	ts.wantOK("the JSON login", ts.ask("GET /me", access, nil))
}

// === forwardauth.go ===

// forwardDomain turns forward auth on, for proxies on this machine.
func forwardDomain(c *config) {
	handlersProxied(c)
	c.issuer, c.cookieDomain = "https://auth.example.com", "example.com"
}

// visitor is a browser that visits applications behind a proxy.
type visitor struct {
	*testServer
	cookies map[string]string
}

// newForward starts a server with forward auth, and with ada and bob.
func newForward(t testing.TB, options ...func(*config)) *visitor {
	ts := newTestServer(t, append([]func(*config){handlersJSONLog, forwardDomain}, options...)...)
	ts.mustUser(adaEmail, viewer, defaultOrg)
	ts.mustUser("bob@example.com", viewer, defaultOrg)
	return (&visitor{testServer: ts}).another()
}

// in is the browser in the hands of a subtest.
func (v *visitor) in(t testing.TB) *visitor { return &visitor{v.testServer.in(t), v.cookies} }

// another is a browser of somebody else's.
func (v *visitor) another() *visitor { return &visitor{v.testServer, map[string]string{}} }

// visit sends a request to this server itself and keeps the cookies.
func (v *visitor) visit(method, path string, form url.Values, headers ...string) answer {
	v.Helper()
	var body any
	if form != nil {
		body = form.Encode()
		headers = append([]string{formType}, headers...)
	}
	cookies := ""
	for name, value := range v.cookies {
		cookies += name + "=" + value + "; "
	}
	path = strings.TrimPrefix(strings.TrimPrefix(path, v.cfg.baseURL()), v.cfg.basePath())
	a := v.do(method, path, "", body, append(headers, "Accept: text/html", "Cookie: "+cookies)...)
	for _, set := range a.header["Set-Cookie"] {
		pair, _, _ := strings.Cut(set, ";")
		name, value, _ := strings.Cut(pair, "=")
		v.cookies[name] = value
	}
	return a
}

// proxied is what a proxy asks when the browser wants a page of the application.
// The host of that gets no cookie but the one of the domain.
func (v *visitor) proxied(query string, headers ...string) answer {
	v.Helper()
	return v.do("GET", forwardAuthPath+"?"+query, "", nil, append([]string{
		"Accept: text/html,*/*",
		"X-Forwarded-Method: GET",
		"X-Forwarded-Proto: https",
		"X-Forwarded-Host: app.example.com:8443",
		"X-Forwarded-Uri: /a?b=c&d",
		"Cookie: other=1; " + forwardCookie + "=" + v.cookies[forwardCookie],
	}, headers...)...)
}

// passes is the status of that.
func (v *visitor) passes(query string, headers ...string) int {
	v.Helper()
	return v.proxied(query, headers...).status
}

// enter logs somebody in who wants a page of an application.
func (v *visitor) enter(email string) *visitor {
	v.Helper()
	page := v.visit("GET", v.proxied("").header.Get("Location"), nil)
	want(v, "without a login", kindOf(page), "login page")
	form := url.Values{"email": {email}, "password": {userPassword}}
	a := v.visit("POST", actionOf(page), form)
	a = v.visit("GET", a.header.Get("Location"), nil)
	want(v, "after the login", kindOf(a), "https://app.example.com:8443/a?b=c&d")
	want(v, "with the cookie", v.passes(""), 200)
	return v
}

// TestForward_LoginAndBack: from the application to the login and back, on the
// host of another application at once, and with or without OpenID clients.
func TestForward_LoginAndBack(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]func(*config){
		"without clients": nil,
		"with clients":    {providerClients},
		"below a path":    {func(c *config) { c.issuer += "/base/" }},
	} {
		t.Run(name, func(t *testing.T) {
			v := newForward(t, options...)
			a := v.proxied("group=staff")
			from := "https://app.example.com:8443/a?b=c&d"
			to := v.cfg.baseURL() + "/oauth2/forward?rd=" + url.QueryEscape(from)
			want(t, "signed out", fmt.Sprint(a.status, a.header["Location"], a.body), "302 ["+to+"]")
			want(t, "stored", a.header.Get("Cache-Control"), "no-store")
			page := v.visit("GET", to, nil)
			wantText(t, "page", page.body, "<strong>app.example.com</strong>", "auth.example.com</p>")
			action := actionOf(page)
			wrong := v.visit("POST", action, url.Values{"email": {adaEmail}, "password": {"wrong"}})
			want(t, "wrong password", fmt.Sprint(wrong.status, kindOf(wrong)), "401login page")
			wantText(t, "page", wrong.body, `value="ada@example.com"`, `role="alert"`, action[:20])
			want(t, "rows before the login", v.rows(`1 = 1`), 0)
			a = v.visit("POST", action, url.Values{"email": {adaEmail}, "password": {userPassword}})
			want(t, "Location", a.header.Get("Location"), action)
			a = v.visit("GET", action, nil)
			want(t, "back", kindOf(a), from)
			cookie := regexp.MustCompile(
				`^pico-forward=\w+\.[\w-]+; Path=/; Domain=example.com; HttpOnly; Secure; SameSite=Lax$`)
			want(t, a.header.Get("Set-Cookie"), cookie.MatchString(a.header.Get("Set-Cookie")), true)
			want(t, "app", v.passes(""), 200)
			want(t, "another host", v.passes("", "X-Forwarded-Host: wiki.example.com"), 200)
			want(t, "logged", v.logged(object{"msg": "authorize.ok", "client": "#forward"}), 1)
			want(t, "rows", v.rows(`1 = 1`), 2)
		})
	}
}

// TestForward_IsOff without a cookie domain. With one and no clients there is
// the login and the logout, and no authorization endpoint.
func TestForward_IsOff(t *testing.T) {
	t.Parallel()
	off, on := newTestServer(t, providerClients), newForward(t)
	for _, line := range lines(`
		GET   /forward-auth            404  401
		PUT   /forward-auth            404  401
		GET   /oauth2/forward          404  400
		POST  /oauth2/forward          404  400
		GET   /oauth2/logout           200  200
		POST  /oauth2/logout           400  400
		POST  /oauth2/logout/confirm   400  400
		GET   /oauth2/authorize        400  404
		POST  /oauth2/login            400  404
		GET   /oauth2/userinfo         401  404`) {
		c := columns(line)
		statuses := fmt.Sprint(off.do(c[0], c[1], "", nil).status, " ", on.do(c[0], c[1], "", nil).status)
		want(t, c[0]+" "+c[1], statuses, c[2]+" "+c[3])
	}
}

// TestForward_Headers are all there, always, and hold nothing that a header
// cannot, or that a list could be torn by.
func TestForward_Headers(t *testing.T) {
	t.Parallel()
	v := newForward(t)
	admin := v.mustAdmin()
	v.enter(adaEmail)
	id, path := must(v.store.userByLogin(adaEmail)).id, v.cfg.databasePath()
	headers := func() string {
		a := v.in(t).wantOK("answer", v.proxied(""))
		want(t, "body", a.body, "")
		text := ""
		for _, name := range strings.Fields("User Email Name Groups Role Org") {
			value, is := a.header["Remote-"+name]
			want(t, "there is one Remote-"+name, is && len(value) == 1, true)
			text += strings.Join(value, "") + "|"
		}
		return text
	}
	want(t, "nothing", headers(), id+"||||viewer|default|")
	v.mustAsk("PUT /users/"+id+"/email-verified", admin, object{"email_verified": true})
	want(t, "verified", headers(), id+"|ada@example.com|||viewer|default|")
	for _, name := range []string{"b", "a & c"} {
		v.join(admin, v.group(admin, name, defaultOrg), id)
	}
	groups := strings.Split(strings.Split(headers(), "|")[3], ",")
	slices.Sort(groups)
	want(t, "groups", fmt.Sprintf("%q", groups), `["a & c" "b"]`)
	dbFile(path, `UPDATE users SET org_id = 'x,y', display_name = $1`,
		"é, 100%\r\nRemote-Role: superadmin\x7f\xff\u2028\"")
	dbFile(path, `DELETE FROM groups WHERE name = 'b'`)
	want(t, "odd", headers(), id+"|ada@example.com|"+
		`%C3%A9%2C 100%25%0D%0ARemote-Role: superadmin%7F%FF%E2%80%A8"|x%2Cy/a & c|viewer|x%2Cy|`)
}

// TestForward_Demands: who may pass stands in the URL of the operator. What is
// misspelt, empty or unreadable there lets nobody pass.
func TestForward_Demands(t *testing.T) {
	t.Parallel()
	v := newForward(t)
	admin := v.mustAdmin()
	bobID := must(v.store.userByLogin("bob@example.com")).id
	v.mustAsk("PUT /users/"+bobID+"/org", admin, `{"org_id":"acme"}`)
	for email, org := range map[string]string{adaEmail: defaultOrg, "bob@example.com": "acme"} {
		v.join(admin, v.group(admin, "staff", org), must(v.store.userByLogin(email)).id)
	}
	dbFile(v.cfg.databasePath(), `UPDATE users SET role = 'operator' WHERE email = $1`, adaEmail)
	ada, bob := v.another().enter(adaEmail), v.another().enter("bob@example.com")
	for _, line := range lines(`
		-                               200  200
		nginx                           200  200
		group=staff                     200  403
		group=staff&nginx               200  403
		group=acme/staff                403  200
		group=acme%2Fstaff              403  200
		group=other&group=staff         200  403
		group=other,staff               200  403
		group=acme/staff,+staff         200  200
		group=Staff                     403  403
		group=*                         403  403
		group=                          403  403
		group                           403  403
		group=,                         403  403
		role=operator                   200  403
		role=operator,viewer            200  200
		role=viewer                     403  200
		role=                           403  403
		group=staff&role=viewer         403  403
		group=acme/staff&role=viewer    403  200
		groups=staff                    400  400
		Group=staff                     400  400
		x                               400  400
		group=staff;role=viewer         400  400
		group=%zz                       400  400`) {
		c := columns(line)
		want(t, line, fmt.Sprint(ada.passes(c[0]), "  ", bob.passes(c[0])), c[1]+"  "+c[2])
	}
	page := bob.proxied("group=staff")
	wantText(t, "page", page.body, "<html", "you may not use this application")
	want(t, "redirect", page.header.Get("Location"), "")
	v.wantProblem("for a program", bob.proxied("group=staff", "Accept: */*"), 403, "forbidden")
}

// TestForward_Nobody: only a browser that wants a page is sent to the login, and
// only a trusted proxy can say from where. nginx gets a 401 with the address.
func TestForward_Nobody(t *testing.T) {
	t.Parallel()
	v := newForward(t)
	for _, line := range lines(`
		-      X: x                               302  yes
		-      Accept: application/json           401  no
		-      Accept: */*                        401  no
		-      X-Forwarded-Method: POST           401  no
		-      X-Forwarded-Method: HEAD           401  no
		nginx  X: x                               401  yes
		nginx  X-Forwarded-Method: POST           401  yes
		nginx  Accept: */*                        401  yes
		-      Cookie: pico-forward=x             302  yes
		-      Cookie: pico-forward=x.y           302  yes
		-      Authorization: Basic YTpi          302  yes
		nginx  Authorization: Bearer x            401  yes`) {
		c := columns(line)
		a := v.proxied(c[0], c[1])
		want(t, line, fmt.Sprint(a.status), c[2])
		want(t, line+": leads to the login", a.header.Get("Location") != "", c[3] == "yes")
		challenge, _, _ := strings.Cut(a.header.Get("WWW-Authenticate"), " ")
		want(t, line+": challenge", challenge == "Bearer", a.status == 401)
		want(t, line+": body", a.body == "", a.status == 302)
	}
	direct := newForward(t, func(c *config) { c.trustedProxies = nil })
	for _, query := range []string{"", "nginx"} {
		a := direct.proxied(query)
		want(t, "from anybody", fmt.Sprint(a.status, a.header["Location"]), "401 []")
		line := object{"request_id": a.header.Get("X-Request-Id"), "pattern": forwardAuthPath,
			"reason": "token_missing: 127.0.0.1 is not in server.trusted_proxies (SERVER_TRUSTED_PROXIES)"}
		want(t, "lines with the reason", direct.logged(line), 1)
	}
	want(t, "a good cookie from anybody", direct.loggedIn().passes(""), 200)
	for _, name := range []string{"X-Forwarded-Host", "X-Forwarded-Uri", "X-Forwarded-Proto"} {
		alias := strings.ReplaceAll(name, "-", "_") + ": evil.example"
		original := strings.Replace(name, "Forwarded", "Original", 1) + ": evil.example"
		to := v.proxied("", alias, original, "X-Original-URL: https://evil.example/").header.Get("Location")
		want(t, alias, to, v.proxied("").header.Get("Location"))
	}
}

// loggedIn opens the login as by hand, where no proxy is believed.
func (v *visitor) loggedIn() *visitor {
	form := url.Values{"email": {adaEmail}, "password": {userPassword}}
	v.visit("GET", v.visit("POST", forwardPath+"?rd=https://example.com/", form).header.Get("Location"), nil)
	return v
}

// TestForward_Return: a login leads to the hosts that get the cookie, and to no
// text that another program could take for another host.
func TestForward_Return(t *testing.T) {
	t.Parallel()
	v := newForward(t).enter(adaEmail)
	nobody := v.another()
	for _, to := range cells(`
		https://example.com  https://example.com/  https://app.example.com/x?y=https://evil.example/#z
		https://a.b.example.com:8443/  https://APP.Example.COM/  https://app.example.com?x
		https://app.example.com#x  https://app.example.com/@evil.example  https://app.example.com/é
		https://app.example.com//evil.example`) {
		a := v.visit("GET", forwardPath+"?rd="+url.QueryEscape(to), nil)
		want(t, to, fmt.Sprint(a.status, a.header["Location"]), "303 ["+to+"]")
	}
	odd := cells(`
		-  /  //app.example.com/  app.example.com  http://app.example.com/  HTTPS://app.example.com/
		javascript:alert(1)  https://evil.example/  https://notexample.com/  https://example.com./
		https://example.com.evil.example/  https://evil.example/.example.com
		https://evil.example?.example.com  https://evil.example#.example.com
		https://user@app.example.com/  https://evil.example:x@app.example.com/
		https://app.example.com@evil.example/
		https://evil.example\.example.com/  https://app.example.com\@evil.example/  https://app.example.com/\x
		https:/app.example.com/  https:app.example.com/  https:///app.example.com/  https:\\app.example.com/
		https://evil.example%2f.example.com/  https://evil.example／.example.com/
		https://evil.ex℀.example.com/
		https://evil.example%00.example.com/  https://app.example.com:/x  https://app.example.com:443:80/
		https://[::1]/  https://[::1].example.com/  https://evil.example;.example.com/`)
	odd = append(odd,
		" https://app.example.com/", "https://app.example.com/\r\nX: y", "https://app.example.com/\t",
		"https://evil.example\n.example.com/", "https://evil.example .example.com/",
		"https://app.example.com/\x00", "https://app.example.com/\u0085",
		"https://evil.example\u3002example.com/")
	for _, to := range odd {
		query := "?rd=" + url.QueryEscape(to)
		form := url.Values{"email": {adaEmail}, "password": {userPassword}}
		for _, a := range []answer{
			v.visit("GET", forwardPath+query, nil),
			nobody.visit("GET", forwardPath+query, nil),
			nobody.visit("POST", forwardPath+query, form),
		} {
			want(t, to, fmt.Sprint(a.status, a.header["Location"], a.header["Set-Cookie"]), "400 [] []")
			wantText(t, "page", a.body, "You cannot get back to where you came from.")
		}
	}
	want(t, "logins", v.logged(object{"msg": "login.ok"}), 1)
	for _, query := range []string{"", "?rd=https://app.example.com&rd=https://app.example.com"} {
		want(t, query, v.visit("GET", forwardPath+query, nil).status, 400)
	}
	form := url.Values{"email": {adaEmail}, "password": {userPassword}}
	a := nobody.visit("POST", forwardPath+"?rd=https://app.example.com", form, "Sec-Fetch-Site: cross-site")
	want(t, "a form of another site", fmt.Sprint(a.status, a.header["Set-Cookie"]), "403 []")
}

// TestForward_CookieLife: it lives as the browser's session does, which its use
// keeps alive, and is written down every five minutes at most.
func TestForward_CookieLife(t *testing.T) {
	t.Parallel()
	v := newForward(t).enter(adaEmail)
	used := func() (at int64) {
		const query = `SELECT max(last_used_at) FROM sessions WHERE client_id = '#forward'`
		mustOK(v.store.reads.get(query, nil, &at))
		return v.now().Unix() - at
	}
	for _, step := range []struct {
		after time.Duration
		age   int64 // of what is written down, afterwards
	}{{299 * time.Second, 299}, {time.Second, 0}, {time.Hour, 0}, {time.Minute, 60}} {
		v.clock.advance(step.after)
		want(t, "passes", v.passes(""), 200)
		want(t, fmt.Sprint("age after ", step.after), used(), step.age)
	}
	for range 5 { // two and a half days of work without a look at the login
		v.clock.advance(12*time.Hour - 2*time.Minute)
		want(t, "used in time", v.passes(""), 200)
	}
	again := forwardPath + "?rd=https://example.com/"
	want(t, "the browser's session", kindOf(v.visit("GET", again, nil)), "https://example.com/")
	v.clock.advance(12 * time.Hour)
	want(t, "too late", v.passes(""), 302)
	want(t, "as is the browser's", kindOf(v.visit("GET", again, nil)), "login page")

	v.enter(adaEmail)
	must(v.store.writer.exec(`PRAGMA query_only = 1`))
	v.clock.advance(time.Hour)
	want(t, "disk full", v.passes(""), 200)
	want(t, "a new cookie", v.visit("GET", again, nil).status, 503)
	must(v.store.writer.exec(`PRAGMA query_only = 0`))
	for range 29*2 + 1 {
		want(t, "within session_max_days", v.passes(""), 200)
		v.clock.advance(12*time.Hour - time.Second)
	}
	v.clock.advance(12 * time.Hour)
	want(t, "after session_max_days", v.passes(""), 302)
}

// TestForward_OnePerBrowser: the browser's session has one cookie, a new one
// takes the place of the old one, and a new login takes it along. What one user
// can make the server store is bounded.
func TestForward_OnePerBrowser(t *testing.T) {
	t.Parallel()
	v := newForward(t, unthrottled).enter(adaEmail)
	again := forwardPath + "?rd=https://example.com/"
	old := v.cookies[forwardCookie]
	v.visit("GET", again, nil)
	want(t, "a new one", v.passes(""), 200)
	want(t, "the old one", v.passes("", "Cookie: pico-forward="+old), 302)
	form := url.Values{"email": {adaEmail}, "password": {userPassword}}
	v.visit("POST", again, form)
	want(t, "after another login", v.passes(""), 200)
	v.visit("GET", again, nil)
	want(t, "and its own", v.passes(""), 200)
	want(t, "rows", v.rows(`1 = 1`), 2)
	form.Set("email", "bob@example.com")
	v.visit("POST", again, form)
	want(t, "after a login of bob", v.passes(""), 302)
	want(t, "rows", v.rows(`1 = 1`), 1)
	for range maxSessions + 5 {
		v.clock.advance(time.Second)
		v.another().enter(adaEmail)
	}
	want(t, "browsers", v.rows(`client_id = '#browser' AND user_id <> ''`), maxSessions+1)
	want(t, "cookies", v.rows(`client_id = '#forward'`), maxSessions)
}

// TestForward_FollowsTheUser: whatever ends or changes a user's login counts for
// the next request.
func TestForward_FollowsTheUser(t *testing.T) {
	t.Parallel()
	v := newForward(t)
	admin, path := v.mustAdmin(), v.cfg.databasePath()
	id := must(v.store.userByLogin(adaEmail)).id
	staff, newPassword := v.group(admin, "staff", defaultOrg), object{"new_password": userPassword}
	v.join(admin, staff, id)
	browser := func() (id string) { // of its session
		mustOK(v.store.reads.get(`SELECT id FROM sessions WHERE client_id = '#browser'`, nil, &id))
		return id
	}
	access := func() string { access, _ := v.mustLogin(adaEmail, userPassword); return access }
	asAda := func(endpoint string, body any) { v.mustAsk(endpoint, access(), body) }
	asAdmin := func(endpoint string, body any) { v.mustAsk(endpoint, admin, body) }
	for _, step := range []struct {
		name, demand string
		do           func()
		status       int
	}{
		{"logout here", "", func() { v.visit("POST", logoutConfirmPath, url.Values{}) }, 302},
		{"logout from everywhere", "", func() { asAda("POST /logout", object{"all": true}) }, 302},
		{"session ended", "", func() { asAda("DELETE /me/sessions/"+browser(), nil) }, 302},
		{"row gone", "", func() { dbFile(path, `DELETE FROM sessions WHERE id = $1`, browser()) }, 302},
		{"another login", "", func() { access() }, 200},
		{"suspended", "", func() { asAdmin("PUT /users/"+id+"/status", `{"status":"suspended"}`) }, 302},
		{"role", "role=viewer", func() { asAdmin("PUT /users/"+id+"/role", `"operator"`) }, 403},
		{"group", "group=staff", func() { asAdmin("DELETE /groups/"+staff+"/members/"+id, nil) }, 403},
		{"password", "", func() { asAdmin("PUT /users/"+id+"/password", newPassword) }, 302},
		{"deleted", "", func() { asAdmin("DELETE /users/"+id, nil) }, 302},
	} {
		t.Run(step.name, func(t *testing.T) {
			clear(v.cookies)
			dbFile(path, `UPDATE users SET status = 'active', role = 'viewer' WHERE id = $1`, id)
			dbFile(path, `DELETE FROM sessions WHERE client_id <> ''`)
			v := v.in(t).enter(adaEmail)
			want(t, "before", v.passes(step.demand), 200)
			step.do()
			want(t, "afterwards", v.passes(step.demand), step.status)
			kept := step.status != 302 || step.name == "row gone"
			want(t, "its row is kept", v.rows(`client_id = '#forward'`) > 0, kept)
		})
	}
	wantText(t, "log", v.logs.String(), `"client":"#forward","reason":"logout"`)
}

// TestForward_Bearer: programs show the tokens that every service takes, and no
// others. Applications may use the same header for tokens of their own.
func TestForward_Bearer(t *testing.T) {
	t.Parallel()
	v := newForward(t, providerClients)
	b := (&surfer{testServer: v.testServer}).as(adaEmail)
	login, refresh := v.mustLogin(adaEmail, userPassword)
	admin := v.mustAdmin()
	service := v.mustAsk("POST /service-tokens", admin, object{"name": "bot", "role": operator}).text("token")
	serviceToken := v.wantOK("token", v.do("POST", tokenPath, "", "grant_type=client_credentials",
		formType, basic("bot", service))).text("access_token")
	tokensOf := func(client string, changes ...string) answer {
		return v.wantOK("token", v.redeem(client, b.mustCode(client, changes...)))
	}
	mcpOnly := tokensOf("mcp", "resource=https://mcp.example/mcp")
	for name, c := range map[string]struct{ token, outcome string }{
		"login":                 {login, "200"},
		"all audiences":         {tokensOf("mcp").text("access_token"), "200"},
		"our audience":          {tokensOf("mcp", "resource=pico-bot").text("access_token"), "200"},
		"another audience":      {mcpOnly.text("access_token"), "401"},
		"no audience":           {tokensOf("app").text("access_token"), "401"},
		"id_token":              {tokensOf("mcp").text("id_token"), "401"},
		"refresh token":         {refresh, "401"},
		"client's refresh":      {tokensOf("mcp").text("refresh_token"), "401"},
		"service token":         {service, "401"},
		"service token's JWT":   {serviceToken, "200"},
		"browser's cookie":      {strings.TrimPrefix(b.cookie, "__Host-pico="), "401"},
		"the application's own": {"abc", "401"},
	} {
		t.Run(name, func(t *testing.T) {
			v := v.in(t)
			a := v.do("DELETE", forwardAuthPath+"?role=viewer,operator", c.token, nil)
			want(t, "outcome", fmt.Sprint(a.status), c.outcome)
			if a.status == 401 {
				v.wantProblem("answer", a, 401, "invalid_token")
			}
		})
	}
	a := v.do("GET", forwardAuthPath, serviceToken, nil)
	want(t, "service", fmt.Sprint(a.header["Remote-Name"], a.header["Remote-Role"], a.header["Remote-Email"]),
		"[bot] [operator] []")
	v.mustAsk("DELETE /service-tokens/bot", admin, nil)
	want(t, "service, revoked", v.do("GET", forwardAuthPath, serviceToken, nil).status, 401)
	online := tokensOf("mcp")
	v.mustAsk("POST /logout", login, object{"all": true})
	for _, token := range []string{login, online.text("access_token")} {
		want(t, "after a logout", v.do("GET", forwardAuthPath, token, nil).status, 401)
	}
	v.enter(adaEmail)
	want(t, "with the cookie, its own token", v.passes("", "Authorization: Bearer abc"), 200)
	want(t, "and the cookie alone counts", v.passes("role=viewer", "Authorization: Bearer "+admin), 200)
}

// TestForward_KindsStayApart: the cookie opens nothing but this answer, nothing
// else is such a cookie, and whoever tries ends nothing.
func TestForward_KindsStayApart(t *testing.T) {
	t.Parallel()
	v := newForward(t, providerClients)
	dbFile(v.cfg.databasePath(), `UPDATE users SET role = 'superadmin' WHERE email = $1`, adaEmail)
	v.enter(adaEmail)
	cookie, walked := v.cookies[forwardCookie], 0
	for _, r := range v.srv.routeTable() {
		method, path := httpEndpoint(r)
		if !strings.HasPrefix(path, "/api/") || r.need == public {
			continue
		}
		walked++
		t.Run(r.pattern, func(t *testing.T) {
			ts := v.testServer.in(t)
			cookies := "Cookie: pico-forward=" + cookie + "; __Host-pico=" + cookie
			ts.wantProblem("cookie", ts.do(method, path, "", nil, cookies), 401, "token_missing")
			ts.wantProblem("bearer", ts.do(method, path, cookie, nil, cookies), 401, "invalid_token")
		})
	}
	want(t, "routes", walked > 20, true)
	b := &surfer{v.testServer, "__Host-pico=" + cookie}
	want(t, "as the browser's", kindOf(b.authorize("app")), "login page")
	want(t, "there, too", kindOf(b.do("GET", forwardPath+"?rd=https://example.com", nil)), "login page")
	v.wantProblem("as refresh token", v.refresh(cookie), 401, "invalid_token")
	v.mustAsk("POST /logout", "", object{"refresh_token": cookie})
	want(t, "of a client", v.refreshAs("app", cookie).text("error"), "invalid_grant")
	want(t, "as a code", v.redeem("app", cookie).text("error"), "invalid_grant")
	want(t, "revoked", v.post(revokePath, "app", "token="+cookie).status, 200)
	b.cookie = "__Host-pico=" + v.cookies["__Host-pico"]
	tokens := v.wantOK("token", v.redeem("app", b.mustCode("app")))
	_, refresh := v.mustLogin(adaEmail, userPassword)
	handle, _, _ := strings.Cut(cookie, ".")
	for name, other := range map[string]string{
		"browser":        v.cookies["__Host-pico"],
		"refresh":        refresh,
		"client":         tokens.text("refresh_token"),
		"code":           b.mustCode("app"),
		"access":         tokens.text("access_token"),
		"another secret": newRefreshToken(handle),
		"handle":         handle,
	} {
		want(t, name+" as the cookie", v.passes("", "Cookie: pico-forward="+other), 302)
	}
	want(t, "the cookie, still", v.passes(""), 200)
	v.wantOK("refresh, still", v.refresh(refresh))
	v.wantOK("client, still", v.refreshAs("app", tokens.text("refresh_token")))
	access, _ := v.mustLogin(adaEmail, userPassword)
	list := v.mustAsk("GET /me/sessions", access, nil)
	wantText(t, "sessions", list.body, `"client":"#forward"`, `"client":"#browser"`)
	for _, secret := range []string{cookie, strings.TrimPrefix(cookie, handle+".")} {
		want(t, "secret in the log", strings.Contains(v.logs.String(), secret), false)
	}
}

// === clients.go ===

const (
	appSecret  = "app-secret-0123456789abcdefghijklmn"
	wikiSecret = "wiki-secret-0123456789abcdefghijklm"
)

// providerFile is the section of the tests' clients. The first one is as most
// are; the others are each odd in one way.
const providerFile = `
oidc:
  clients:
    app:
      name: The App
      secret: ` + appSecret + `
      redirect_uris: ["https://app.example/cb", "https://app.example/other"]
      post_logout_redirect_uris: https://app.example/bye
    wiki: # cannot do PKCE
      secret: ` + wikiSecret + `
      redirect_uris: https://wiki.example/cb?x=1
      post_logout_redirect_uris: https://wiki.example/bye?x=1
      pkce: optional
    cli: # is a program on its user's machine
      redirect_uris: ["http://127.0.0.1/cb", "http://[::1]/cb", "http://localhost:5/cb", com.example.cli:/cb]
    spa: # is a script
      redirect_uris: https://spa.example/cb
      refresh: false
    staff: # is not for everybody
      secret: ` + wikiSecret + `
      redirect_uris: https://staff.example/cb
      groups: [staff, other/ops]
    mcp: # has tokens that others read
      secret: ` + wikiSecret + `
      redirect_uris: https://mcp.example/cb
      audience: ["https://mcp.example/mcp", pico-bot]
    asking:
      secret: ` + wikiSecret + `
      redirect_uris: https://asking.example/cb
      ask: true
`

// providerSecrets are the secrets of those who have one.
var providerSecrets = map[string]string{
	"app":    appSecret,
	"wiki":   wikiSecret,
	"staff":  wikiSecret,
	"mcp":    wikiSecret,
	"asking": wikiSecret,
}

// providerURIs are where their users go back to.
var providerURIs = map[string]string{
	"app":    "https://app.example/cb",
	"wiki":   "https://wiki.example/cb?x=1",
	"cli":    "http://127.0.0.1/cb",
	"spa":    "https://spa.example/cb",
	"staff":  "https://staff.example/cb",
	"mcp":    "https://mcp.example/cb",
	"asking": "https://asking.example/cb",
}

// providerClients configures them.
func providerClients(c *config) {
	file := must(os.CreateTemp("", "*.yaml"))
	defer os.Remove(file.Name())
	must(file.WriteString(providerFile))
	mustOK(file.Close())
	c.clients = must(loadConfig(file.Name(), nil)).clients
}

// TestClients_Faults: whatever is wrong with a client stops the start, with the
// line, the key and what is allowed, and without any value. Lines of the client
// stand between semicolons; the first of them is line 6.
func TestClients_Faults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustOK(os.WriteFile(dir+"/good", []byte(appSecret+"\r\n"), 0o600))
	mustOK(os.WriteFile(dir+"/short", []byte("hunter2"), 0o600))
	fill := strings.NewReplacer("DIR", dir, "SECURE", "secret: hunter2_hunter2-hunter2-hunter2-",
		"URI", "redirect_uris: https://app.example/cb")
	for _, line := range lines(`
		URI                                        -
		URI; SECURE; pkce: optional                -
		URI; secret_file: DIR/good; pkce: optional  -
		URI; secret: "${ENV:APP_SECRET}"           -
		-  PATH:5: oidc.clients.app.redirect_uris is missing; it must list
		URI; secret: hunter2  PATH:7: oidc.clients.app.secret must have at least 32 characters
		URI; secret: hunter2 + hunter2 = hunter2hunter2  PATH:7: oidc.clients.app.secret must have at least 32
		URI; secret: hunter2; pkce: optional       PATH:7: oidc.clients.app.secret must have at least 32
		URI; secret: ""  PATH:7: oidc.clients.app.secret is empty; it must have at least 32
		URI; secret: "${ENV:NONE}"  PATH:7: oidc.clients.app.secret uses ${ENV:NONE}, but the
		URI; secret: !x hunter2                    PATH:7: oidc.clients.app.secret must be a plain value
		URI; SECURE; secret_file: DIR/good  PATH:5: oidc.clients.app.secret and .secret_file are both set
		URI; secret_file: /hunter2; pkce: optional  PATH:5: oidc.clients.app.secret_file cannot be used: no such file
		URI; secret_file: DIR/short                PATH:5: oidc.clients.app.secret_file cannot be used: must have at least 32
		URI; pkce: optional                        PATH:5: oidc.clients.app.pkce must be required, because
		URI; SECURE; pkce: off                     PATH:8: oidc.clients.app.pkce must be required or optional
		URI; name: ""                              PATH:7: oidc.clients.app.name is empty; it must be set
		URI; name:                                 PATH:7: oidc.clients.app.name has no value
		URI; name: a; name: hunter2                PATH:8: oidc.clients.app.name stands here and at PATH:7
		URI; ask: hunter2                          PATH:7: oidc.clients.app.ask must be true or false
		URI; refresh: hunter2                      PATH:7: oidc.clients.app.refresh must be true or false
		URI; nmae: hunter2  PATH:7: unknown setting oidc.clients.app.nmae; did you mean oidc.clients.app.name?
		URI; groups: {hunter2: x}                  PATH:7: oidc.clients.app.groups must be a plain value
		redirect_uris: []  PATH:6: oidc.clients.app.redirect_uris is empty; it must list
		redirect_uris: [https://a.example/, hunter2]  PATH:6: oidc.clients.app.redirect_uris must list exact URIs such as https://app.example.com/callback, which number 2 is not: with
		URI; post_logout_redirect_uris: ""  PATH:7: oidc.clients.app.post_logout_redirect_uris is empty`) {
		t.Run(line, func(t *testing.T) {
			c := columns(line)
			text := "auth:\n  registration_enabled: false\noidc:\n  clients:\n    app:\n"
			for setting := range strings.SplitSeq(fill.Replace(c[0]), "; ") {
				text += "      " + setting + "\n"
			}
			path := configFile(t, text)
			loaded, err := loadConfig(path, []string{"APP_SECRET=" + appSecret})
			if c[1] == "" {
				want(t, "fault", err, nil)
				want(t, "notes", len(loaded.notes), 0)
				return
			}
			report := strings.ReplaceAll(fmt.Sprint(err), path, "PATH")
			wantText(t, "fault", report, c[1])
			want(t, "faults in "+report, strings.Count(report, "\n"), 0)
			want(t, report+" shows a value", strings.Contains(report, "hunter2"), false)
		})
	}
}

// TestClients_RedirectURIs: what a code must not be sent to cannot be
// registered, nor what two programs could read differently.
func TestClients_RedirectURIs(t *testing.T) {
	t.Parallel()
	for verdict, uris := range map[string]string{
		"<nil>": `
			https://app.example  https://app.example/cb?x=1&y=%2F  https://app.example:8443/  HTTPS://app.example/
			http://127.0.0.1/cb  http://127.0.0.1:5123/cb  http://[::1]/cb  http://localhost  http://app.localhost/cb
			com.example.app:/cb  com.example.app://host/cb  app.immich:///oauth-callback
			https://a.example/,https://b.example/`,
		"must list exact URIs": `
			app.example/cb  /cb  //app.example/cb  https:  https:/cb  https://  https://:443/cb  cb
			http://app.example/cb  http://localhost.evil.example/  http://192.168.0.1/  http://0.0.0.0/
			http://127.0.0.1.nip.io/  http://evil.example#@localhost/  ftp://localhost/  ws://localhost/
			https://*.example.com/  https://app.example/*  https://app.example/cb#  https://app.example/#x
			https://u@app.example/  https://u:p@app.example/  https://app.example\@evil.example/  https://a.example\
			javascript:alert(1)  JavaScript:alert(1)  java.script:%0aalert(1)#  data:text/html,x  DATA:text/html;x
			vbscript:x  file:///etc/passwd  blob:https://app.example/x  about:blank  myapp:/cb
			https://app.example/%zz  https://[::1  https://a.example/,http://b.example/`,
	} {
		for _, uri := range strings.Fields(uris) {
			t.Run(uri, func(t *testing.T) {
				wantText(t, "verdict", fmt.Sprint(checkRedirectURIs(uri)), verdict)
			})
		}
	}
	for _, uri := range []string{"https://app.example/a b", "https://app.example/\x7f",
		"https://app.example/\nx"} {
		wantText(t, "verdict", fmt.Sprint(checkRedirectURIs(uri)), "must list exact URIs")
	}
}

// TestClients_Names: a client_id is a plain word, and no audience, because that
// of id_tokens is the client_id.
func TestClients_Names(t *testing.T) {
	t.Parallel()
	for _, line := range lines(`
		grafana          -
		a.b_C-9          -
		""               must be called by 1 to 100 letters
		"#browser"       must be called by 1 to 100 letters
		a b              must be called by 1 to 100 letters
		a:b              must be called by 1 to 100 letters
		é                must be called by 1 to 100 letters
		pico-bot         must not be called like the issuer or an audience
		other            must not be called like the issuer or an audience
		issuer           must not be called like the issuer or an audience`) {
		t.Run(line, func(t *testing.T) {
			c := columns(line)
			_, err := loadConfig(configFile(t, strings.ReplaceAll(`
oidc:
  clients:
    NAME: {redirect_uris: "https://app.example/cb"}
    mcp: {redirect_uris: "https://app.example/cb", audience: [other, issuer]}
`, "NAME", c[0])), []string{"AUTH_REGISTRATION_ENABLED=no"})
			if c[1] == "" {
				want(t, "fault", err, nil)
				return
			}
			wantText(t, "fault", fmt.Sprint(err), ":4: oidc.clients."+strings.Trim(c[0], `"`)+" "+c[1])
			want(t, "faults", strings.Count(fmt.Sprint(err), "\n"), 0)
		})
	}
}

// TestClients_AndTheRest: what clients must not be together with other
// settings, and what is hardly meant.
func TestClients_AndTheRest(t *testing.T) {
	t.Parallel()
	c := must(loadConfig(configFile(t, providerFile), nil))
	wantText(t, "notes", strings.Join(c.notes, "\n"),
		"auth.registration_enabled", "no groups: app asking cli mcp spa wiki")
	c = must(loadConfig(configFile(t, providerFile), []string{"AUTH_REGISTRATION_ENABLED=no"}))
	want(t, "notes", len(c.notes), 0)
	faults := ""
	c.clients.checkBeside("ML-DSA-65", false, func(text string) { faults += text }, nil)
	wantText(t, "fault", faults,
		"auth.algorithm (AUTH_ALGORITHM) must be RS256 or ES256 while there are clients")
	oidcClients{}.checkBeside("ML-DSA-65", true, nil, nil)
	for name, text := range map[string]string{
		"list":         "oidc: {clients: [hunter2]}",
		"text":         "oidc: {clients: hunter2}",
		"client is no": "oidc: {clients: {app: hunter2}}",
	} {
		_, err := loadConfig(configFile(t, text), nil)
		wantText(t, name, fmt.Sprint(err), ":1: expected settings here")
		want(t, name+" shows a value", strings.Contains(fmt.Sprint(err), "hunter2"), false)
	}
	_, err := loadConfig(configFile(t, "oidc: {clients: {app: , app: }}"), nil)
	wantText(t, "twice", fmt.Sprint(err), "oidc.clients.app stands here and at")
	_, err = loadConfig(configFile(t, "oidc: {client: {app: {name: hunter2}}}"), nil)
	wantText(t, "no s", fmt.Sprint(err), "unknown setting oidc.client; did you mean oidc.clients?")
}

// TestClients_GroupsThatDoNotExist: the start warns of a group that nobody can
// be in, once, and names the setting. That of another organisation goes by both
// names.
func TestClients_GroupsThatDoNotExist(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	admin := ts.mustAdmin()
	ts.group(admin, "ops", "other")
	ts.group(admin, "staff", "other")
	p := launch(t, ts.dir, ts.environ(), "-config", configFile(t, providerFile))
	p.client().do("GET", healthPath, "", nil)
	p.Process.Signal(syscall.SIGTERM)
	p.exit()
	wantText(t, "warning", p.log, "level=WARN", "setting=oidc.clients.staff.groups group=staff\n")
	want(t, "warnings", strings.Count(p.log, "demands a group"), 1)
}

// TestClients_DumpReadsBack: `pico-auth config` prints the clients with their
// sources and without their secrets.
func TestClients_DumpReadsBack(t *testing.T) {
	t.Parallel()
	out := configDump(must(loadConfig(configFile(t, providerFile), nil)))
	wantText(t, "dump", out, "oidc:\n", "  clients:\n    \"app\":\n", "      name: \"The App\" ",
		"      secret: <redacted> ", "      pkce: \"optional\" ", "application.yaml:6\n",
		`redirect_uris: "https://app.example/cb,https://app.example/other"`, "  session_idle_hours: 12 ")
	want(t, "secret in dump", regexp.MustCompile(`-secret-`).MatchString(out), false)
	again := strings.ReplaceAll(out, "<redacted>", appSecret)
	c := must(loadConfig(configFile(t, again), nil))
	places := regexp.MustCompile(` +# \S+(\n|$)`)
	want(t, "the same again", places.ReplaceAllString(configDump(c), "\n"), places.ReplaceAllString(out,
		"\n"))
}

// TestClients_RedirectIsExact: a redirect URI is compared byte for byte, but
// for the port of a loopback URI that is registered without one.
func TestClients_RedirectIsExact(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, providerClients)
	for _, line := range lines(`
		app   yes  https://app.example/cb https://app.example/other
		app   no   https://app.example https://app.example/ https://app.example/cb/ https://app.example/cb?
		app  no  https://app.example/cb?x=1 https://app.example/cb# https://app.example/cb#x https://app.example/CB
		app  no  HTTPS://app.example/cb https://APP.example/cb https://app.example:443/cb http://app.example/cb
		app  no  https://app.example.evil.example/cb https://app.example@evil.example/cb https://evil.example/cb
		app   no   https://evil.example@app.example/cb https://a@b@app.example/cb https://app.example/x/..;/cb
		app   no   https://app.example/%63b https://app.example/x/%2e%2e/cb https://app.example/x/../cb
		app  no  https://app.example\@evil.example/cb https://app.example/cb%00 https://app.example/cb%0d%0aX:y
		app  no  https://app.example/cb,https://app.example/other //app.example/cb /cb cb https://wiki.example/cb?x=1
		app   no   javascript:alert(1) data:text/html,x http://127.0.0.1/cb
		wiki  yes  https://wiki.example/cb?x=1
		wiki  no   https://wiki.example/cb https://wiki.example/cb?x=1&y=2 https://wiki.example/cb?x=2
		cli  yes  http://127.0.0.1/cb http://127.0.0.1:5123/cb http://127.0.0.1:80/cb http://[::1]/cb http://[::1]:1/cb
		cli   yes  http://localhost:5/cb com.example.cli:/cb
		cli   no   http://localhost/cb http://localhost:6/cb http://localhost:5:5/cb http://localhost:55/cb
		cli  no  http://127.0.0.1:/cb http://127.0.0.1:x/cb http://127.0.0.1:123456/cb http://127.0.0.1:-1/cb
		cli   no   http://127.0.0.1:5/ http://127.0.0.1:5/cb/ http://127.0.0.1:5/cb?x http://127.0.0.1:5/CB
		cli  no  https://127.0.0.1:5/cb http://127.0.0.2:5/cb http://127.1:5/cb http://[::ffff:127.0.0.1]:5/cb
		cli  no  http://127.0.0.1.nip.io:5/cb http://127.0.0.1:5@evil.example/cb http://127.0.0.1@evil.example/cb
		cli  no  http://evil.example@127.0.0.1:5/cb http://localhost.evil.example:5/cb http://localhost@evil.example/cb
		cli  no  http://evil.example:80/cb http://127.0.0.1:5/x/../cb com.example.cli:/cb/x com.example.cli://cb`) {
		c := columns(line)
		for _, uri := range strings.Fields(c[2]) {
			t.Run(c[0]+" "+uri, func(t *testing.T) {
				a := ts.in(t).do("GET", authorizeURL(c[0], uri, "prompt=none"), "", nil)
				to := a.header.Get("Location")
				if c[1] == "no" {
					want(t, "redirect", fmt.Sprint(a.status, to), "400")
					wantText(t, "log", ts.logs.String(), "is not in oidc.clients."+c[0]+".redirect_uris")
					return
				}
				want(t, "status", a.status, 303)
				want(t, "begin of "+to, strings.HasPrefix(to, uri), true)
				wantText(t, "rest", strings.TrimPrefix(to, uri), "error=login_required")
				must(url.Parse(to))
			})
		}
	}
}

// === metrics.go ===

// metered is a provider whose counts are shown at an address of their own.
type metered struct {
	*testServer
	browser *surfer
	monitor *testServer
}

// metricsShow has a server that counts show its counts, and returns a client.
func metricsShow(ts *testServer) *testServer {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	go serveMetrics(ts.Context(), []net.Listener{ln}, ts.srv.monitor, ts.log)
	return &testServer{TB: ts.TB, url: "http://" + ln.Addr().String()}
}

func metricsOn(c *config) { c.metricsListen = "127.0.0.1:0" }

func newMetered(t testing.TB, options ...func(*config)) metered {
	ts, browser := newProvider(t, append(options, metricsOn)...)
	return metered{ts, browser, metricsShow(ts)}
}

// scrape is what Prometheus gets from a monitor's address.
func (ts *testServer) scrape() string {
	ts.Helper()
	return ts.wantOK("scrape", ts.do("GET", metricsPath, "", nil)).body
}

// metricsIn are the values of a scrape by name and labels.
func metricsIn(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if at := strings.LastIndex(line, " "); line[0] != '#' {
			values[line[:at]] = strings.TrimSpace(line[at:])
		}
	}
	return values
}

// wantMetrics scrapes and compares lines of "series value".
func (m metered) wantMetrics(table string) {
	m.Helper()
	values := metricsIn(m.monitor.scrape())
	for _, line := range lines(table) {
		at := strings.LastIndex(line, " ")
		want(m, line[:at], values[line[:at]], line[at+1:])
	}
}

// slow sends a refresh that takes so long by the clock of the server.
func (m metered) slow(took time.Duration) {
	conn := must(net.Dial("tcp", strings.TrimPrefix(m.url, "http://")))
	defer conn.Close()
	io.WriteString(conn, "POST "+auth+"/refresh HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"+
		"Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	answers := bufio.NewReader(conn)
	want(m, "answer to Expect", must(answers.ReadString('\n')), "HTTP/1.1 100 Continue\r\n")
	m.clock.advance(took)
	io.WriteString(conn, `""`)
	must(io.Copy(io.Discard, answers))
}

// story has requests of every kind answered, and returns what of them must not
// be shown.
func (m metered) story() (hidden []string) {
	m.Helper()
	access, refresh := m.mustLogin(adaEmail, userPassword)
	for range 2 {
		m.login("eve@example.com", "a guess")
		m.do("GET", jwksPath, "", nil)
	}
	m.do("HEAD", jwksPath, "", nil)
	m.do("GET", jwksPath, "", nil, "If-None-Match: *")
	m.do("DELETE", jwksPath, "", nil)
	m.do("GET", "/secret/path?q=hidden", "", nil)
	m.do("OPTIONS", auth+"/me", "", nil, "Origin: https://spa.example", "Access-Control-Request-Method: GET")
	m.wantTokens(m.refresh(refresh))
	m.refresh(refresh)
	m.do("GET", auth+"/users/nobody", m.mustAdmin(), nil)

	code := m.browser.as(adaEmail).mustCode("app")
	tokens := m.wantOK("exchange", m.redeem("app", code))
	m.wantOK("refresh", m.refreshAs("app", tokens.text("refresh_token")))
	m.wantOAuth("exchange", m.redeem("app", "no-code"), 400, "invalid_grant")
	service := m.mustAsk("POST /service-tokens", m.mustAdmin(), object{"name": "bot-name"}).text("token")
	m.wantOK("service", m.post(tokenPath, "", "grant_type=client_credentials", "client_id=bot-name",
		"client_secret="+service))
	m.post(tokenPath, "", "grant_type=client_credentials", "client_id=made-up", "client_secret=x")
	return []string{
		adaEmail, "ada@", "eve@", "@", userPassword, access, refresh, sid(access), m.userID(adaEmail), code,
		tokens.text("access_token"), tokens.text("refresh_token"), service, "bot-name", "made-up",
		"hidden", "/secret", "nobody", "127.0.0.1", "spa.example", m.dir, "default",
	}
}

func (m metered) userID(email string) string { return must(m.store.userByLogin(email)).id }

// TestMetrics_CountAStory: what was asked is counted by route, method and
// status, every event by name, tokens by client and grant.
func TestMetrics_CountAStory(t *testing.T) {
	t.Parallel()
	m := newMetered(t)
	m.wantMetrics(`
		pico_auth_events_total{event="refresh.reuse"} 0
		pico_auth_events_total{event="client.throttled"} 0`)
	m.story()
	m.clock.advance(time.Hour)
	m.wantMetrics(`
		pico_auth_http_requests_total{route="POST /api/v1/auth/login",method="POST",code="200"} 3
		pico_auth_http_requests_total{route="POST /api/v1/auth/login",method="POST",code="401"} 2
		pico_auth_http_requests_total{route="POST /api/v1/auth/refresh",method="POST",code="401"} 1
		pico_auth_http_requests_total{route="GET /api/v1/auth/jwks",method="GET",code="200"} 2
		pico_auth_http_requests_total{route="GET /api/v1/auth/jwks",method="GET",code="304"} 1
		pico_auth_http_requests_total{route="GET /api/v1/auth/jwks",method="HEAD",code="200"} 1
		pico_auth_http_requests_total{route="GET /api/v1/auth/users/{id}",method="GET",code="404"} 1
		pico_auth_http_requests_total{route="none",method="DELETE",code="405"} 1
		pico_auth_http_requests_total{route="none",method="GET",code="404"} 1
		pico_auth_http_requests_total{route="none",method="OPTIONS",code="405"} 1
		pico_auth_http_requests_total{route="POST /oauth2/token",method="POST",code="200"} 3
		pico_auth_http_requests_total{route="POST /oauth2/token",method="POST",code="400"} 1
		pico_auth_http_requests_total{route="POST /oauth2/token",method="POST",code="401"} 1
		pico_auth_http_request_duration_seconds_bucket{route="GET /api/v1/auth/jwks",le="0.001"} 4
		pico_auth_http_request_duration_seconds_count{route="GET /api/v1/auth/jwks"} 4
		pico_auth_http_request_duration_seconds_count{route="none"} 3
		pico_auth_events_total{event="login.ok"} 4
		pico_auth_events_total{event="login.failed"} 2
		pico_auth_events_total{event="refresh.ok"} 1
		pico_auth_events_total{event="refresh.reuse"} 1
		pico_auth_events_total{event="token.issued"} 3
		pico_auth_events_total{event="client.failed"} 1
		pico_auth_tokens_total{client="app",grant="authorization_code"} 1
		pico_auth_tokens_total{client="app",grant="refresh_token"} 1
		pico_auth_tokens_total{client="service tokens",grant="client_credentials"} 1
		pico_auth_build_info{version="` + version + `",goversion="` + runtime.Version() + `"} 1
		pico_auth_hash_queue 0
		pico_auth_writer_queue 0
		process_start_time_seconds ` + fmt.Sprint(m.clock.read().Add(-time.Hour).Unix()))
	values := metricsIn(m.monitor.scrape())
	since := m.keys.current().signing(m.now()).since
	want(t, "age of the key", values["pico_auth_signing_key_age_seconds"],
		fmt.Sprint(m.now().Sub(since).Seconds()))
	for _, name := range []string{"go_goroutines", "go_memstats_heap_alloc_bytes"} {
		want(t, name+" is a positive number", must(strconv.Atoi(values[name])) > 0, true)
	}
}

// TestMetrics_QueuesAreShown: hashing and writing, each with more work than it
// can begin.
func TestMetrics_QueuesAreShown(t *testing.T) {
	t.Parallel()
	m := newMetered(t)
	release := make(chan bool)
	for _, client := range strings.Fields("a b c d e") { // two threads
		go m.srv.hasher.do(t.Context(), client, func() { <-release })
	}
	for here := 0; here < 5; runtime.Gosched() {
		m.srv.hasher.mu.Lock()
		here = len(m.srv.hasher.clients)
		m.srv.hasher.mu.Unlock()
	}
	s := dbTest{store: m.store}
	commit := s.busy()
	for range 4 {
		go s.set("x")
	}
	s.queued(4)
	m.wantMetrics(`
		pico_auth_hash_queue 3
		pico_auth_writer_queue 4`)
	commit()
	close(release)
}

// TestMetrics_BucketsAreCumulative: a bound belongs to its bucket, a bucket
// contains those below, the last one everything.
func TestMetrics_BucketsAreCumulative(t *testing.T) {
	t.Parallel()
	m := newMetered(t)
	for _, took := range []time.Duration{0, 5e6, 5e6 + 1, 100e6, 2500e6, 3e9, time.Hour} {
		m.slow(took)
	}
	var got []string
	const name, route = "pico_auth_http_request_duration_seconds", `route="POST /api/v1/auth/refresh"`
	for line := range strings.Lines(m.monitor.scrape()) {
		rest, found := strings.CutPrefix(strings.TrimSpace(line), name)
		if found && strings.Contains(rest, route) {
			got = append(got, strings.Replace(rest, route, "R", 1))
		}
	}
	want(t, "histogram", strings.Join(got, "\n"), strings.TrimSpace(`
_bucket{R,le="0.001"} 1
_bucket{R,le="0.005"} 2
_bucket{R,le="0.025"} 3
_bucket{R,le="0.1"} 4
_bucket{R,le="0.5"} 4
_bucket{R,le="2.5"} 5
_bucket{R,le="+Inf"} 7
_sum{R} 3605.610000001
_count{R} 7`))
}

// TestMetrics_LabelsStayBounded: strange methods, paths and ids make no series,
// the second hundred as little as the first one.
func TestMetrics_LabelsStayBounded(t *testing.T) {
	t.Parallel()
	m := newMetered(t, unthrottled)
	admin := m.mustAdmin()
	round := func(from int) (series string) {
		for i := range 30 {
			n := fmt.Sprint(from + i)
			m.do("BREW"+n, auth+"/me", "", nil)
			m.do("GET", "/odd"+n, "", nil)
			m.do("GET", auth+"/users/"+n, admin, nil)
			m.do("OPTIONS", "/odd"+n, "", nil,
				"Origin: https://o"+n+".example",
				"Access-Control-Request-Method: X"+n)
			m.login("u"+n+"@example.com", "a guess", "X-Forwarded-For: 10.0.0."+n)
			m.post(tokenPath, "", "grant_type=odd"+n, "client_id=odd"+n, "client_secret=x")
			m.post(tokenPath, "app", "grant_type=odd"+n)
			m.browser.authorize("odd" + n)
			name := "bot" + n
			service := m.mustAsk("POST /service-tokens", admin, object{"name": name}).text("token")
			m.wantOK("token", m.post(tokenPath, "", "grant_type=client_credentials", "client_id="+name,
				"client_secret="+service))
		}
		return strings.Join(slices.Sorted(maps.Keys(metricsIn(m.monitor.scrape()))), "\n")
	}
	first := round(0)
	want(t, "series afterwards", round(100), first)
	wantText(t, "series", first, `{route="none",method="other",code="405"}`)
	allowed := map[string]bool{"none": true}
	for _, r := range m.srv.routeTable() {
		allowed[r.pattern] = true
	}
	routes := regexp.MustCompile(`route="([^"]*)"`).FindAllStringSubmatch(first, -1)
	want(t, "there are routes", len(routes) > 20, true)
	for _, route := range routes {
		want(t, route[1]+" is a pattern", allowed[route[1]], true)
	}
}

// TestMetrics_ShowNothingPersonal: no email, id, address, token or path, after
// every event there is; and each event was counted as often as it was logged.
func TestMetrics_ShowNothingPersonal(t *testing.T) {
	t.Parallel()
	m := newMetered(t)
	hidden := m.story()
	text := m.monitor.scrape()
	ts, names, secrets := handlersStory(t)
	every := metricsShow(ts).scrape()
	for i := 1; i < len(names); i += 2 {
		hidden = append(hidden, names[i])
	}
	for _, value := range append(hidden, append(secrets, "example", "acme", "crew", "bot")...) {
		shown := strings.Contains(text+every, value)
		want(t, fmt.Sprintf("%q is shown", value), shown, false)
	}
	values, events := metricsIn(every), map[string]int{}
	message := regexp.MustCompile(`"msg":"([a-z_]+\.[a-z_]+)"`)
	for _, found := range message.FindAllStringSubmatch(ts.logs.String(), -1) {
		events[found[1]]++
	}
	delete(events, "request.failed") // is no event but an error
	want(t, "there are events", len(events) > 25, true)
	for name, n := range events {
		want(t, name, values[`pico_auth_events_total{event="`+name+`"}`], fmt.Sprint(n))
	}
}

// TestMetrics_FormIsSorted: every family has its two comments and its samples
// below them, families and series in order.
func TestMetrics_FormIsSorted(t *testing.T) {
	t.Parallel()
	m := newMetered(t)
	m.story()
	a := m.monitor.do("GET", metricsPath, "", nil)
	want(t, "type", a.header.Get("Content-Type"), "text/plain; version=0.0.4; charset=utf-8")
	want(t, "last byte", a.body[len(a.body)-1], '\n')
	var families, series []string
	for block := range strings.SplitSeq(a.body, "# HELP ") {
		name, rest, _ := strings.Cut(block, " ")
		if name == "" {
			continue
		}
		families = append(families, name)
		_, rest, _ = strings.Cut(rest, ".\n")
		kind, rest, _ := strings.Cut(rest, "\n")
		comment := regexp.MustCompile(`^# TYPE ` + name + ` (counter|gauge|histogram)$`)
		found := comment.FindStringSubmatch(kind)
		if found == nil {
			t.Fatalf("%s: %q is no TYPE", name, kind)
		}
		want(t, name+" is a counter", strings.HasSuffix(name, "_total"), found[1] == "counter")
		series = nil
		for line := range strings.Lines(rest) {
			want(t, line+" belongs to "+name, strings.HasPrefix(line, name), true)
			series = append(series, line)
		}
		want(t, name+" is sorted", found[1] == "histogram" || slices.IsSorted(series), true)
		want(t, name+" has samples", len(series) > 0, true)
	}
	want(t, "families are sorted", slices.IsSorted(families), true)
	want(t, "families", len(families), 11)
}

// TestMetrics_HaveTheirOwnAddress: the metrics are there and nothing else is,
// and they are nowhere else; by default they are off.
func TestMetrics_HaveTheirOwnAddress(t *testing.T) {
	t.Parallel()
	m := newMetered(t)
	for endpoint, status := range map[string]int{
		"GET " + metricsPath:       200,
		"HEAD " + metricsPath:      200,
		"POST " + metricsPath:      405,
		"GET /":                    404,
		"GET " + healthPath:        404,
		"GET " + jwksPath:          404,
		"POST " + loginPath:        404,
		"GET " + metricsPath + "/": 404,
	} {
		method, path, _ := strings.Cut(endpoint, " ")
		want(t, endpoint, m.monitor.do(method, path, "", nil).status, status)
	}
	m.wantProblem("metrics where requests go", m.do("GET", metricsPath, "", nil), 404, "not_found")
	off := newTestServer(t)
	off.wantProblem("metrics by default", off.do("GET", metricsPath, "", nil), 404, "not_found")
	counts := off.srv.countRequest != nil || off.srv.countEvent != nil || off.srv.monitor != nil
	want(t, "it counts by default", counts, false)
	want(t, "health", m.do("GET", healthPath, "", nil).body, off.do("GET", healthPath, "", nil).body)
}

// TestMetrics_StartAndStop: localhost means both loopback addresses, and no
// scrape and no silent connection keeps the server from stopping.
func TestMetrics_StartAndStop(t *testing.T) {
	t.Parallel()
	p := launch(t, t.TempDir(), []string{"SERVER_METRICS_LISTEN=localhost:0"})
	p.client()
	_, url, _ := strings.Cut(p.wait("msg=metrics"), "url=")
	_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimSpace(url), metricsPath)[len("http://"):])
	for ip := range mainLoopbacks(t) {
		address := net.JoinHostPort(ip, port)
		monitor := &testServer{TB: t, url: "http://" + address}
		wantText(t, "metrics at "+ip, monitor.scrape(), "pico_auth_build_info")
		defer must(net.Dial("tcp", address)).Close()
	}
	p.Process.Signal(syscall.SIGTERM)
	want(t, "exit status", p.exit(), 0)
	p = launch(t, t.TempDir(), nil)
	p.client()
	want(t, "metrics by default", strings.Contains(p.log, "msg=metrics"), false)
}

// TestMetrics_NeverWhereRequestsGo: the address of server.listen is taken, in
// whatever spelling, and the start ends.
func TestMetrics_NeverWhereRequestsGo(t *testing.T) {
	t.Parallel()
	const spellings = "127.0.0.1,127.0.0.1 localhost,127.0.0.1 127.0.0.1,localhost ,127.0.0.1"
	for pair := range strings.FieldsSeq(spellings) {
		t.Run(pair, func(t *testing.T) {
			t.Parallel()
			first, second, _ := strings.Cut(pair, ",")
			listeners := must(listen(&setting{text: first + ":0"}))
			defer closeAll(listeners)
			_, port, _ := net.SplitHostPort(listeners[0].Addr().String())
			more, err := listen(&setting{text: second + ":" + port})
			closeAll(more)
			wantText(t, "the second address", fmt.Sprint(err), "in use")
		})
	}
}

// TestMetrics_ListenersClose with the context: nothing answers afterwards.
func TestMetrics_ListenersClose(t *testing.T) {
	t.Parallel()
	m := newMetered(t)
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan bool)
	go func() {
		serveMetrics(ctx, []net.Listener{ln}, m.srv.monitor, m.log)
		close(ended)
	}()
	address := ln.Addr().String()
	(&testServer{TB: t, url: "http://" + address}).scrape()
	cancel()
	<-ended
	_, err := net.Dial("tcp", address)
	want(t, "it still listens", err == nil, false)
}

// TestMetrics_CountingAllocatesNothing: a counted request costs as much memory
// as an uncounted one. It runs alone, because other tests allocate too.
func TestMetrics_CountingAllocatesNothing(t *testing.T) {
	on, off := newTestServer(t, metricsOn), newTestServer(t)
	cost := func(ts *testServer, path, etag string) float64 {
		r := must(http.NewRequest("GET", path, nil))
		r.Header.Set("If-None-Match", etag)
		return testing.AllocsPerRun(200, func() { ts.srv.ServeHTTP(metricsDiscard{}, r) })
	}
	for _, etag := range []string{"", "*"} {
		want(t, "key set "+etag, cost(on, jwksPath, etag), cost(off, jwksPath, etag))
	}
	x := &exchange{r: must(http.NewRequest("GET", healthPath, nil)), status: 503}
	x.r.Pattern = "GET " + healthPath
	want(t, "allocations", testing.AllocsPerRun(200, func() { on.srv.countRequest(x, time.Second) }), 0)
}

// metricsDiscard is a client that reads nothing.
type metricsDiscard struct{}

func (metricsDiscard) Header() http.Header         { return http.Header{} }
func (metricsDiscard) Write(b []byte) (int, error) { return len(b), nil }
func (metricsDiscard) WriteHeader(int)             {}

// metricsAlerts are the rules in docs/metrics.md.
func metricsAlerts(t *testing.T) string {
	_, rules, found := strings.Cut(structureRead(t, "docs/metrics.md"), "```yaml\n")
	rules, _, _ = strings.Cut(rules, "```\n")
	want(t, "docs/metrics.md has rules", found, true)
	return rules
}

// TestMetrics_Documented: docs/metrics.md lists the families that there are,
// and its rules ask for nothing that does not exist.
func TestMetrics_Documented(t *testing.T) {
	t.Parallel()
	m := newMetered(t)
	m.story()
	text := m.monitor.scrape()
	var families, documented []string
	for _, found := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(text, -1) {
		families = append(families, found[1])
	}
	row := regexp.MustCompile("(?m)^\\| `(\\w+)(?:\\{[a-z,]*\\})?` \\|")
	for _, found := range row.FindAllStringSubmatch(structureRead(t, "docs/metrics.md"), -1) {
		documented = append(documented, found[1])
	}
	structureSame(t, "docs/metrics.md has the family", documented, families)
	rules := metricsAlerts(t)
	want(t, "rules", strings.Count(rules, "- alert: "), 5)
	for _, name := range regexp.MustCompile(`pico_auth_\w+`).FindAllString(rules, -1) {
		want(t, name+" exists", slices.Contains(families, name), true)
	}
	fresh := newMetered(t).monitor.scrape() // a first event must be seen as an increase
	for _, event := range regexp.MustCompile(`event=~?"([^"]+)"`).FindAllStringSubmatch(rules, -1) {
		zero := regexp.MustCompile(`(?m)^pico_auth_events_total{event="` + event[1] + `"} 0$`)
		want(t, event[1]+" begins at 0", zero.MatchString(fresh), true)
	}
}

// TestMetrics_Promtool: Prometheus's own checker has nothing to say against
// the output and the rules.
func TestMetrics_Promtool(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip(err)
	}
	m := newMetered(t)
	fresh := m.monitor.scrape()
	m.story()
	for _, text := range []string{fresh, m.monitor.scrape()} {
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = strings.NewReader(text)
		out, err := check.CombinedOutput()
		want(t, "promtool check metrics", string(out)+fmt.Sprint(err), "<nil>")
	}
	file := filepath.Join(t.TempDir(), "alerts.yaml")
	mustOK(os.WriteFile(file, []byte(metricsAlerts(t)), 0o600))
	out, err := exec.Command("promtool", "check", "rules", file).CombinedOutput()
	want(t, "promtool check rules", err, nil)
	wantText(t, "promtool check rules", string(out), "SUCCESS: 5 rules found")
}

// === config.go ===

// configFile writes a configuration file and returns its path.
func configFile(t testing.TB, text string) string {
	path := filepath.Join(t.TempDir(), "application.yaml")
	mustOK(os.WriteFile(path, []byte(text), 0o600))
	return path
}

func configDump(c *config) string {
	var out strings.Builder
	c.dump(&out)
	return out.String()
}

// configOther is a file with another value for every setting.
const configOther = "testdata/config-other.yaml"

// TestConfig_SourcesInOrder: for every setting the file wins over the
// default, the environment over the file, and NAME_FILE works like NAME.
func TestConfig_SourcesInOrder(t *testing.T) {
	t.Parallel()
	var texts map[string]map[string]string
	data := must(os.ReadFile(configOther))
	mustOK(yaml.Unmarshal(data, &texts))
	defaults, dir := defaultConfig().settings, t.TempDir()
	var direct, files []string
	for _, s := range defaults {
		name := filepath.Join(dir, s.key)
		text := []byte(s.fallback + "\r\n")
		mustOK(os.WriteFile(name, text, 0o600))
		direct = append(direct, s.env+"="+s.fallback)
		files = append(files, s.env+"_FILE="+name)
	}
	inFile := must(loadConfig(configOther, nil))
	inEnvironment := must(loadConfig(configOther, direct))
	inFiles := must(loadConfig(configOther, files))
	for i, s := range defaults {
		section, key, _ := strings.Cut(s.key, ".")
		got := inFile.settings[i]
		want(t, s.key, got.text, texts[section][key])
		wantText(t, s.key, got.source, configOther+":")
		got = inEnvironment.settings[i]
		want(t, s.key, got.text, s.fallback)
		want(t, s.key, got.source, s.env)
		got = inFiles.settings[i]
		want(t, s.key, got.text, s.fallback)
		want(t, s.key, got.source, s.env+"_FILE")
	}
	both := append(direct, files...)
	_, err := loadConfig("", both)
	twice := strings.Count(err.Error(), "_FILE are both set; keep one")
	want(t, "faults when both are set", twice, len(defaults))
}

// TestConfig_ValuesReachTheirField: each row has a field of its own, numbers
// get their unit, and YAML's types do not matter.
func TestConfig_ValuesReachTheirField(t *testing.T) {
	t.Parallel()
	c := must(loadConfig(configOther, []string{"LOG_LEVEL=INFO"}))
	keys := map[any]string{}
	for _, s := range c.settings {
		want(t, "other setting with the field of "+s.key, keys[s.target], "")
		keys[s.target] = s.key
	}
	want(t, "access", c.accessTTL, 33*time.Minute)
	want(t, "session", c.sessionMax, 35*24*time.Hour)
	want(t, "grace", c.reuseGrace, 6*time.Second)
	want(t, "registration", c.registration, false)
	want(t, "level", c.logLevel, "info")
	want(t, "origins", fmt.Sprint(c.corsOrigins), "[https://one.example:1 *]")
	want(t, "proxies", fmt.Sprint(c.trustedProxies), "[10.1.2.3/8 ::1/128]")
}

// TestConfig_FileIsTheDefaults: the application.yaml beside the sources
// explains every setting and changes nothing.
func TestConfig_FileIsTheDefaults(t *testing.T) {
	t.Parallel()
	c := must(loadConfig("application.yaml", nil))
	text := string(must(os.ReadFile("application.yaml")))
	lines := strings.Split(text, "\n")
	for _, s := range c.settings {
		want(t, s.key, s.text, s.fallback)
		place := strings.TrimPrefix(s.source, "application.yaml:")
		line, _ := strconv.Atoi(place)
		above := lines[max(line-2, 0)]
		wantText(t, "line above "+s.key, above, "  # ")
	}
}

// TestConfig_Reports: what is wrong stops the start, what is hardly meant is
// noted. Each report names place and remedy and shows no value. The file says
// how to read it.
func TestConfig_Reports(t *testing.T) {
	t.Parallel()
	for block := range strings.SplitSeq(jwtFile("config-reports.txt"), "\n\n") {
		name, block, _ := strings.Cut(block, "\n")
		t.Run(name, func(t *testing.T) {
			var file string
			var environ, wanted, values, got []string
			for line := range strings.SplitSeq(block, "\n") {
				kind, text, _ := strings.Cut(line, " ")
				switch kind {
				case "$":
					environ = append(environ, text)
				case "!", "?":
					wanted = append(wanted, line)
				case "=":
					values = append(values, text)
				default:
					file += line + "\n"
				}
			}
			path := configFile(t, file)
			c, err := loadConfig(path, environ)
			for _, value := range values {
				key, text, _ := strings.Cut(value, " ")
				want(t, key, c.find(key).text, text)
			}
			if err != nil {
				for fault := range strings.SplitSeq(err.Error(), "\n") {
					got = append(got, "! "+fault)
				}
			}
			for _, note := range c.notes {
				got = append(got, "? "+note)
			}
			text := strings.Join(got, "\n")
			want(t, "number of reports in "+text, len(got), len(wanted))
			for i, part := range wanted[:min(len(got), len(wanted))] {
				part = strings.ReplaceAll(part, "PATH", path)
				wantText(t, "report", got[i], part)
			}
			shown := strings.Contains(text, "hunter2")
			want(t, text+" shows a value", shown, false)
		})
	}
	_, err := loadConfig("/no/file", nil)
	wantText(t, "no file", err.Error(),
		"the configuration cannot be read: open /no/file: no such file")
}

// TestConfig_BadValues: the file and the environment refuse the same values,
// with place, key, variable and what is allowed.
func TestConfig_BadValues(t *testing.T) {
	t.Parallel()
	for _, line := range jwtTable(jwtFile("config-values.txt")) {
		t.Run(line, func(t *testing.T) {
			rule, values, _ := strings.Cut(line, " ::")
			key, allowed, _ := strings.Cut(rule, " ")
			env := defaultConfig().find(key).env
			setting := strings.Replace(key, ".", ":\n  ", 1)
			for value := range strings.SplitSeq(strings.TrimSpace(values), "|") {
				path := configFile(t, fmt.Sprintf("%s: %q", setting, value))
				_, inFile := loadConfig(path, nil)
				_, inEnvironment := loadConfig("", []string{env + "=" + value})
				text := fmt.Sprint(inFile, "\n", inEnvironment)
				wantText(t, value, text, path+":2: "+key+" ("+env+") ")
				wantText(t, value, text, "\n"+env+" ("+key+") ")
				want(t, "times allowed in "+text, strings.Count(text, allowed), 2)
				empty := strings.Contains(text, " is empty; it must")
				want(t, text+" says that it is empty", empty, value == "")
				shown := strings.Contains(text, "hunter2")
				want(t, text+" shows the value", shown, false)
			}
		})
	}
}

// TestConfig_DumpReadsBack: `pico-auth config` prints a file with the same
// settings, their sources and what follows from them, and no secret.
func TestConfig_DumpReadsBack(t *testing.T) {
	t.Parallel()
	environ := []string{"DATABASE_URL=sqlite:///x.db", "AUTH_ADMIN_PASSWORD=hunter2"}
	c := must(loadConfig(configOther, environ))
	out := configDump(c)
	wantText(t, "dump", out,
		`  url: "sqlite:///x.db"              # DATABASE_URL`+"\n",
		"  admin_password: <redacted>         # AUTH_ADMIN_PASSWORD\n",
		"  bcrypt_cost: 11                    # "+configOther+":15\n",
		`  cors_origins: "https://one.example:1,*" # `,
		`# base URL: "https://one.example/base"`,
		`# key directory: "one \"#: `,
		"# database file: "+strconv.Quote(must(filepath.Abs("x.db"))))
	want(t, "secret in dump", strings.Contains(out, "hunter2"), false)
	again := must(loadConfig(configFile(t, out), nil))
	for i, s := range again.settings {
		if s.text != "<redacted>" {
			want(t, s.key, s.text, c.settings[i].text)
		}
	}
}

// TestConfig_WhatFollows: which paths, URL and hosts the settings mean.
func TestConfig_WhatFollows(t *testing.T) {
	t.Parallel()
	c, home := defaultConfig(), must(os.UserHomeDir())
	for dir, path := range map[string]string{
		"~":   home,
		"~/k": home + "/k",
		"~k":  "~k",
	} {
		c.dataDir = dir
		want(t, dir, must(c.dataPath()), path)
	}
	c.databaseURL = "sqlite+x:////a/b.db"
	want(t, "database", c.databasePath(), "/a/b.db")
	for host := range strings.SplitSeq("LOCALHOST a.localhost 127.9.9.9 ::1 ::ffff:127.0.0.1", " ") {
		want(t, host+" is loopback", loopbackHost(host), true)
	}
	for host := range strings.SplitSeq(" 0.0.0.0 :: localhost.example xlocalhost", " ") {
		want(t, host+" is loopback", loopbackHost(host), false)
	}
	c.issuer = "https://x.example/"
	want(t, "base URL", c.baseURL(), "https://x.example")
}

// TestConfig_AlgorithmOfTheBuild: ML-DSA needs a build that has it; the start
// says which.
func TestConfig_AlgorithmOfTheBuild(t *testing.T) {
	t.Parallel()
	for _, a := range signingAlgorithms {
		_, err := loadConfig("", []string{"AUTH_ALGORITHM=" + a.name})
		want(t, a.name+" is allowed", err == nil, a.needs == "")
		if a.needs != "" {
			wantText(t, a.name, err.Error(), "AUTH_ALGORITHM (auth.algorithm) must be RS256 or ES256",
				a.name, "Go 1.27")
		}
	}
}

// FuzzLoadConfig: no file makes it panic, and what it accepts can be printed
// and loaded again.
func FuzzLoadConfig(f *testing.F) {
	f.Add(must(os.ReadFile("application.yaml")))
	f.Add(must(os.ReadFile(configOther)))
	f.Add([]byte(providerFile))
	for _, seed := range jwtTable(`
		auth: &a {issuer: *a}
		auth: {<<: {issuer: x}}
		? [a] : b
		log: {level: "${ENV:}"}
		server: {cors_origins: ['*']}
		auth: {data_dir: "a\nb", audience: "\u2028\x7f\ufeff", issuer: "http://\u0085x"}
		auth_client: {accepted_algorithms: [RS256, 'a: b', '"', "x\ny", '" "', "a\"", '"b']}
	`) {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := configFile(t, string(data))
		c, err := loadConfig(path, nil)
		if err != nil {
			return
		}
		out := strings.ReplaceAll(configDump(c), "secret: <redacted>", "secret: "+appSecret)
		_, err = loadConfig(configFile(t, out), nil)
		want(t, "loading "+out, err, nil)
	})
}

// === main.go, shell.go ===

// runLine runs a command line in this process, by a clock.
func runLine(
	now func() time.Time, environ []string, stdin, line string,
) (code int, stdout, stderr string) {
	var out, errOut strings.Builder
	p := process{strings.Fields(line), environ, strings.NewReader(stdin), &out, &errOut, now}
	code = exitCode(run(context.Background(), p), &errOut)
	return code, out.String(), errOut.String()
}

// shell runs a command line on the files and by the clock of a test server.
func (ts *testServer) shell(stdin, line string) (code int, stdout, stderr string) {
	return runLine(ts.now, ts.environ(), stdin, line)
}

// environ names the files of a test server to other processes.
func (ts *testServer) environ() []string {
	return []string{
		"AUTH_DATA_DIR=" + ts.cfg.dataDir,
		"DATABASE_URL=" + ts.cfg.databaseURL,
		"AUTH_BCRYPT_COST=10",
	}
}

// mainPython makes tables by which a database of the Python server is known.
const mainPython = `
CREATE TABLE users (id, email, display_name, password_hash, role, org_id, status, created_at, last_login_at);
CREATE TABLE refresh_tokens (id, user_id, token_hash, expires_at, created_at);`

// program is this test binary run as the program, in a process of its own.
type program struct {
	testing.TB
	*exec.Cmd
	lines chan string // of its log
	log   string      // what wait has read of it
}

// launch starts the program in dir, which is its home too, on a free port and
// with umask 0.
func launch(t testing.TB, dir string, environ []string, args ...string) *program {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs signals and file modes")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // ends a hang
	script := []string{"-c", `umask 0; exec "$0" "$@"`, must(os.Executable())}
	cmd := exec.CommandContext(ctx, "/bin/sh", append(script, args...)...)
	cmd.Dir = dir
	cmd.Env = append([]string{
		"PICO_AUTH_RUN_MAIN=1",
		"HOME=" + dir,
		"SERVER_LISTEN=127.0.0.1:0",
		"AUTH_BCRYPT_COST=10",
	}, environ...)
	p := &program{TB: t, Cmd: cmd, lines: make(chan string, 1e5)}
	pipe := must(cmd.StderrPipe())
	mustOK(cmd.Start())
	go func() {
		defer close(p.lines)
		scanner := bufio.NewScanner(pipe)
		for scanner.Scan() {
			p.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		p.exit()
	})
	return p
}

// wait reads the log up to a line that contains text, and returns the line;
// "" when the program ended first.
func (p *program) wait(text string) string {
	for line := range strings.Lines(p.log) {
		if strings.Contains(line, text) {
			return line
		}
	}
	for line := range p.lines {
		line += "\n"
		p.log += line
		if strings.Contains(line, text) {
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

// client waits for the program to listen and returns something to send it
// requests with.
func (p *program) client() *testServer {
	p.Helper()
	_, base, found := strings.Cut(p.wait("msg=listening"), "address=")
	if !found {
		p.Fatalf("the program did not start:\n%s", p.log)
	}
	base = strings.TrimSpace(base)
	return &testServer{TB: p.TB, url: base, dir: p.Dir}
}

// mainTree is everything in a directory: names, modes and contents.
func mainTree(dir string) string {
	var tree strings.Builder
	mustOK(filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		data, _ := os.ReadFile(path) // fails for directories
		fmt.Fprintf(&tree, "%s %s\n%s\n", path, info.Mode(), data)
		return err
	}))
	return tree.String()
}

// mainLoopbacks are the loopback addresses of this machine, each with a port
// that is in use.
func mainLoopbacks(t testing.TB) map[string]string {
	used := map[string]string{}
	for _, ip := range []string{"127.0.0.1", "::1"} {
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			continue // no IPv6
		}
		t.Cleanup(func() { ln.Close() })
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		used[ip] = port
	}
	return used
}

// TestMain_FirstMinute: an empty directory, no configuration, SIGTERM, and the
// second start.
func TestMain_FirstMinute(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := launch(t, dir, []string{"SERVER_LISTEN=localhost:0"})
	c := p.client()
	p.wait("published default password")
	wantText(t, "log of the start", p.log,
		"version="+version,
		"issuer=http://localhost:8100",
		"auth.db created=true",
		"dir="+dir+"/.pico-auth kid=",
		"address=http://localhost:",
		`msg="admin created" email=admin@pico.local`,
		`password_from="the built-in default"`,
		"pico-auth user passwd admin@pico.local")
	for _, name := range strings.Fields(".pico-auth/private.pem auth.db auth.db-wal auth.db-shm") {
		info := must(os.Stat(filepath.Join(dir, name)))
		want(t, "mode under umask 0 of "+name, info.Mode(), 0o600)
	}
	_, port, _ := strings.Cut(c.url, "localhost:")
	for ip := range mainLoopbacks(t) {
		c.url = "http://" + net.JoinHostPort(ip, port)
		c.wantOK("health at "+ip, c.do("GET", healthPath, "", nil))
	}
	c.mustAsk("POST /register", "", object{"email": "ada@example.com", "password": userPassword})
	_, refresh := c.mustLogin("ada@example.com", userPassword)
	c.mustLogin("admin@pico.local", "admin")

	// A request whose handler has begun (it asked for the body) is finished
	// after SIGTERM.
	conn := must(net.Dial("tcp", strings.TrimPrefix(c.url, "http://")))
	defer conn.Close()
	const head = "POST " + auth + "/refresh HTTP/1.1\r\nHost: localhost\r\n" +
		"Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
	fmt.Fprintf(conn, head, len(refresh)+2)
	answers := bufio.NewReader(conn)
	want(t, "answer to Expect", must(answers.ReadString('\n')),
		"HTTP/1.1 100 Continue\r\n")
	must(answers.ReadString('\n'))
	p.Process.Signal(syscall.SIGTERM)
	p.wait("msg=stopping")
	fmt.Fprintf(conn, "%q", refresh)
	res := must(http.ReadResponse(answers, nil))
	var tokens tokenAnswer
	mustOK(json.NewDecoder(res.Body).Decode(&tokens))
	want(t, "exit status after SIGTERM", p.exit(), 0)

	p = launch(t, dir, []string{"AUTH_ADMIN_PASSWORD=not the stored one"})
	c = p.client()
	c.wantOK("refresh after the second start", c.refresh(tokens.RefreshToken))
	wantText(t, "warning", p.wait("is not applied"),
		"pico-auth user passwd admin@pico.local",
		"source=AUTH_ADMIN_PASSWORD")
	made := regexp.MustCompile(`created=true|key created`).MatchString(p.log)
	want(t, "the second start made something", made, false)
}

// TestMain_EightFirstStartsAtOnce end with one key and one admin, and all of
// them serve.
func TestMain_EightFirstStartsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var programs []*program
	for range 8 {
		programs = append(programs, launch(t, dir, nil))
	}
	logs, keySets := "", map[string]bool{}
	for _, p := range programs {
		keySets[p.client().mustAsk("GET /jwks", "", nil).body] = true
		logs += p.log
	}
	want(t, "different key sets", len(keySets), 1)
	want(t, "files of keys", len(must(filepath.Glob(dir+"/.pico-auth/*"))), 2)
	for text, times := range map[string]int{
		"auth.db created=true": 1,
		"signing key created":  1,
		`msg="admin created"`:  1,
		"start again":          0, // no warning of a wrong directory
	} {
		want(t, "times that the logs say "+text, strings.Count(logs, text), times)
	}
}

// mainAdmins are an address to listen on, an issuer, the password of the admin
// that exists already, a variable, and what the server does. Of two passwords
// the stored one counts.
const mainAdmins = `
127.0.0.1:0  http://localhost:8100         -      -                             starts
localhost:0  http://127.0.0.1:8100         admin  -                             starts
127.0.0.1:0  http://[::1]:8100             own    -                             starts
0.0.0.0:0    http://localhost:8100         -      -                             refuses
:0           http://localhost:8100         -      -                             refuses
[::]:0       http://localhost:8100         -      AUTH_ADMIN_PASSWORD=admin     refuses
127.0.0.1:0  https://auth.example.com      -      -                             refuses
127.0.0.1:0  http://localhost.example.com  -      -                             refuses
0.0.0.0:0    https://auth.example.com      -      AUTH_ADMIN_PASSWORD=own       starts
0.0.0.0:0    https://auth.example.com      -      AUTH_AUTO_CREATE_ADMIN=false  starts
0.0.0.0:0    https://auth.example.com      own    -                             starts
0.0.0.0:0    http://localhost:8100         admin  -                             refuses
127.0.0.1:0  https://auth.example.com      admin  AUTH_ADMIN_PASSWORD=own       refuses
127.0.0.1:0  https://auth.example.com      admin  AUTH_AUTO_CREATE_ADMIN=false  refuses`

// TestMain_DefaultAdminStaysHome: the published password and anything that can
// be reached from elsewhere exclude each other.
func TestMain_DefaultAdminStaysHome(t *testing.T) {
	t.Parallel()
	for _, row := range lines(mainAdmins) {
		t.Run(row, func(t *testing.T) {
			t.Parallel()
			column := columns(row)
			stored := column[2]
			ts := newTestServer(t, func(c *config) {
				c.autoCreateAdmin = stored != ""
				c.adminEmail = "admin@pico.local"
				c.adminPassword = stored
			})
			p := launch(t, ts.dir, append(ts.environ(),
				"SERVER_LISTEN="+column[0],
				"AUTH_ISSUER="+column[1],
				column[3]))
			starts := p.wait("msg=listening") != ""
			want(t, "the server starts", starts, column[4] == "starts")
			if starts {
				return
			}
			want(t, "exit status", p.exit(), 2)
			wantText(t, "log", p.log, "AUTH_ADMIN_PASSWORD", "not loopback")
			_, err := ts.store.userByLogin("admin@pico.local")
			want(t, "there is an admin", err == nil, stored != "")
		})
	}
}

// TestMain_DefaultPasswordIsFound, also of an adopted superadmin; what was
// compared once is not compared again.
func TestMain_DefaultPasswordIsFound(t *testing.T) {
	t.Parallel()
	hash := must(bcrypt.GenerateFromPassword([]byte("admin"), 4))
	const boss = `INSERT INTO users VALUES
		('id', 'boss@example.com', '', $1, 'superadmin', 'default', 'active', '', NULL)`
	ts := newTestServer(t, func(c *config) {
		c.autoCreateAdmin = false
		dbFile(c.databasePath(), mainPython+boss, string(hash))
	})
	ts.cfg.listen = "0.0.0.0:1"
	err := ts.ensureAdmin(t.Context())
	wantText(t, "exposed start", fmt.Sprint(err),
		"not loopback",
		"pico-auth user passwd boss@example.com")

	code, _, errOut := ts.shell("another long one", "user passwd boss@example.com")
	want(t, "exit status of user passwd: "+errOut, code, 0)
	mustOK(ts.ensureAdmin(t.Context()))

	// Pretend that the other hash was the remembered one, and bring it back.
	sum := sha256.Sum256(hash)
	const compared = `UPDATE settings SET value = $1 WHERE name = $2`
	dbFile(ts.cfg.databasePath(), compared, sum[:], settingCleanHashes)
	dbFile(ts.cfg.databasePath(), `UPDATE users SET password_hash = $1`, hash)
	mustOK(ts.ensureAdmin(t.Context())) // compares nothing
}

// TestMain_DeletedAdminStaysDeleted while there is any superadmin, unless the
// configuration has a password for it. A row is the one user that there is, the
// configured password, and what becomes of the admin.
func TestMain_DeletedAdminStaysDeleted(t *testing.T) {
	t.Parallel()
	for _, row := range lines(`
		viewer      active     admin         is made
		superadmin  active     admin         stays deleted
		superadmin  suspended  admin         stays deleted
		superadmin  active     own password  is made`) {
		t.Run(row, func(t *testing.T) {
			t.Parallel()
			column := columns(row)
			ts := newTestServer(t, func(c *config) { c.autoCreateAdmin = false })
			ts.mustUser("ada@example.com", column[0], defaultOrg)
			dbFile(ts.cfg.databasePath(), `UPDATE users SET status = $1`, column[1])
			ts.cfg.autoCreateAdmin = true
			ts.cfg.adminPassword = column[2]
			mustOK(ts.ensureAdmin(t.Context()))
			_, err := ts.store.userByLogin(adminEmail)
			want(t, "the admin was made", err == nil, column[3] == "is made")
		})
	}
}

// TestMain_WarnsOfAWrongDirectory: keys that were just made for old users, and
// a database that was just made beside old keys, are said once.
func TestMain_WarnsOfAWrongDirectory(t *testing.T) {
	t.Parallel()
	for setting, change := range map[string]func(*config){
		"AUTH_DATA_DIR": func(c *config) { c.dataDir += "-other" },
		"DATABASE_URL":  func(c *config) { c.databaseURL += "-other" },
	} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			ts := newTestServer(t)
			cfg, logs := *ts.cfg, &syncBuffer{}
			change(&cfg)
			log := newLogger(&cfg, logs)
			for range 2 {
				a := must(openServerApp(t.Context(), &cfg, ts.now, log))
				mustOK(a.store.close())
			}
			wantText(t, "log", logs.String(), setting, "start again")
			want(t, "warnings", strings.Count(logs.String(), "level=WARN"), 1)
		})
	}
}

// TestMain_FirstKeyAge is remembered, because copying its file would start it
// anew. A key after a lost one begins its own, which is never in the future.
func TestMain_FirstKeyAge(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	born := ts.keys.current().signing(ts.now()).since
	ts.clock.advance(time.Hour)
	future := ts.now().Add(time.Hour)
	mustOK(os.Chtimes(ts.keys.path(firstKeyFile), future, future))
	for i, since := range []time.Time{born, ts.now()} {
		isNew := i == 1
		mustOK(ts.dateFirstKey(t.Context(), isNew))
		want(t, "since", ts.keys.current().signing(future).since, since)
	}
}

// mainRefusals are a name; what sh does before, in a directory with keys; the
// environment and the arguments of the program; its exit status; and what it
// says. other.db is nobody's database, python.db one of the Python server; V4
// and V6 are ports in use.
const mainRefusals = `
damaged key|echo x >.pico-auth/private.pem|||1|.pico-auth/private.pem & restore it from a backup
strange database|cp other.db auth.db|||1|DATABASE_URL & auth.db & nothing in it was changed
no directory||DATABASE_URL=sqlite:///no/auth.db||1|DATABASE_URL & no/auth.db
no home||HOME=||2|AUTH_DATA_DIR & HOME
typo|echo 'auth: {isuer: x}' >application.yaml|||2|application.yaml:1 & did you mean auth.issuer
in use|rm -r .pico-auth|SERVER_LISTEN=127.0.0.1:V4||1|SERVER_LISTEN & in use
in use, v4|rm -r .pico-auth; cp python.db auth.db|SERVER_LISTEN=localhost:V4||1|SERVER_LISTEN=localhost:8200 AUTH_ISSUER=http://localhost:8200 pico-auth
metrics in use|rm -r .pico-auth; cp python.db auth.db|SERVER_METRICS_LISTEN=localhost:V4||1|SERVER_METRICS_LISTEN & in use
metrics in use, v6|rm -r .pico-auth; cp python.db auth.db|SERVER_METRICS_LISTEN=localhost:V6||1|SERVER_METRICS_LISTEN & in use
in use, v6|rm -r .pico-auth; cp python.db auth.db|SERVER_LISTEN=localhost:V6||1|SERVER_LISTEN=localhost:8200 AUTH_ISSUER=http://localhost:8200 pico-auth
TLS|cp python.db auth.db|SERVER_TLS_CERT_FILE=auth.db SERVER_TLS_KEY_FILE=auth.db||2|SERVER_TLS_CERT_FILE
no database, users|rm -r .pico-auth||user list|1|no database yet & start the server once
no database, keys|rm -r .pico-auth||key list|1|no database yet & start the server once
Python, users|rm -r .pico-auth; cp python.db auth.db||user list|1|auth.db & start the server once & adopts
Python, keys|rm -r .pico-auth; cp python.db auth.db||key list|1|auth.db & start the server once & adopts
no file|||config -config no.yaml|2|no.yaml
no command|||start|2|start is no command & pico-auth healthcheck
no option|||-port 1|2|-port & -config FILE
no argument|||serve fast|2|serve takes 0 words after it, not 1 & pico-auth [-config FILE] [serve]
no option of it|||user list --now|2|user list takes no --now & [--org ORG]
no filter of it|||key list --role viewer|2|key list takes no --role & pico-auth key list
no option of it|||serve --now|2|serve takes no --now & pico-auth [-config FILE] [serve]
half a command|||user|2|user needs a command after it & user add
no key command|||key make|2|key make is no command & key rotate`

// TestMain_RefusalsLeaveNoTrace: what cannot work ends with a status and a
// message that names the thing, before anything is made or changed.
func TestMain_RefusalsLeaveNoTrace(t *testing.T) {
	t.Parallel()
	used := mainLoopbacks(t)
	ports := strings.NewReplacer("V4", used["127.0.0.1"], "V6", used["::1"])
	for _, row := range lines(mainRefusals) {
		column := strings.Split(ports.Replace(row), "|")
		t.Run(column[0], func(t *testing.T) {
			t.Parallel()
			if used["::1"] == "" && strings.Contains(row, "V6") {
				t.Skip("this machine has no IPv6")
			}
			dir := t.TempDir()
			writeTestKeys(dir + "/.pico-auth")
			dbFile(dir+"/other.db", `CREATE TABLE notes (x)`)
			dbFile(dir+"/python.db", mainPython)
			prepare := exec.Command("sh", "-c", column[1])
			prepare.Dir = dir
			mustOK(prepare.Run())
			before := mainTree(dir)
			environ, args := strings.Fields(column[2]), strings.Fields(column[3])
			p := launch(t, dir, environ, args...)
			if p.wait("msg=listening") != "" {
				t.Fatalf("the server runs:\n%s", p.log)
			}
			want(t, "exit status", fmt.Sprint(p.exit()), column[4])
			wantText(t, "message", p.log, strings.Split(column[5], " & ")...)
			want(t, "a stack is shown", strings.Contains(p.log, "goroutine "),
				false)
			want(t, "something was changed", mainTree(dir) != before, false)
		})
	}
}

// TestMain_ForeignAlgorithm: a file of the Python server that asks for ML-DSA
// starts a build that has it; any other build names what can be asked for.
func TestMain_ForeignAlgorithm(t *testing.T) {
	t.Parallel()
	text := strings.Replace(jwtFile("application-0.3.0.yaml"), `"RS256"`, `"ML-DSA-65"`, 1)
	p := launch(t, t.TempDir(), nil, "-config", configFile(t, text))
	if keysOf("ML-DSA-65") == nil {
		want(t, "exit status", p.exit(), 2)
		wantText(t, "message", p.log,
			":7: auth.algorithm (AUTH_ALGORITHM) must be RS256 or ES256, not",
			"ML-DSA-65")
		return
	}
	c := p.client()
	wantText(t, "key set", c.wantOK("key set", c.do("GET", jwksPath, "", nil)).body, `"kty":"AKP"`)
}

// TestMain_ForeignFiles: the original application.yaml of each version of the
// Python server starts this one.
func TestMain_ForeignFiles(t *testing.T) {
	t.Parallel()
	files := must(filepath.Glob("testdata/application-*.yaml"))
	want(t, "foreign files", len(files), 3)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			file := must(filepath.Abs(file))
			c := launch(t, t.TempDir(), nil, "-config", file).client()
			c.wantOK("health", c.do("GET", healthPath, "", nil))
		})
	}
}

// TestMain_TryThis: the command that the first screen shows works as printed.
func TestMain_TryThis(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"localhost:0", "127.0.0.1:0", "[::1]:0", ":0"} {
		t.Run(listen, func(t *testing.T) {
			t.Parallel()
			if listen == "[::1]:0" && mainLoopbacks(t)["::1"] == "" {
				t.Skip("this machine has no IPv6")
			}
			p := launch(t, t.TempDir(), []string{
				"SERVER_LISTEN=" + listen,
				"AUTH_ADMIN_PASSWORD=own password",
			})
			p.tryThis(t)
		})
	}
}

// tryThis pastes the command of the log into the shells of Linux and macOS.
func (p *program) tryThis(t *testing.T) {
	command := regexp.MustCompile(`command="(.*)" `).FindStringSubmatch(p.wait("try this"))[1]
	for _, shell := range []string{"bash", "zsh"} {
		t.Run(shell, func(t *testing.T) {
			try := exec.Command(shell, "-c", "curl --version")
			if try.Run() != nil {
				t.Skip("needs curl and " + shell)
			}
			try = exec.Command(shell, "-c", command)
			try.Dir = p.Dir
			out, _ := try.CombinedOutput()
			wantText(t, command, string(out), `"issuer":`)
		})
	}
}

// TestMain_TLS serves HTTP/2 with the configured certificate, here that of
// net/http/httptest for example.com, to clients, to curl and to healthcheck.
func TestMain_TLS(t *testing.T) {
	t.Parallel()
	owner := httptest.NewUnstartedServer(nil)
	owner.EnableHTTP2 = true
	owner.StartTLS()
	defer owner.Close()
	dir, pair := t.TempDir(), owner.TLS.Certificates[0]
	key := must(x509.MarshalPKCS8PrivateKey(pair.PrivateKey))
	for name, block := range map[string]*pem.Block{
		"/a cert.pem": {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		"/a key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		mustOK(os.WriteFile(dir+name, pem.EncodeToMemory(block), 0o600))
	}
	environ := []string{
		"SERVER_TLS_CERT_FILE=a cert.pem",
		"SERVER_TLS_KEY_FILE=a key.pem",
		"AUTH_ISSUER=https://example.com",
		"AUTH_ADMIN_PASSWORD=own password",
	}
	p := launch(t, dir, append(environ, "SERVER_LISTEN=localhost:0"))
	_, port, _ := strings.Cut(p.client().url, "https://example.com:")
	res := must(owner.Client().Get("https://127.0.0.1:" + port + discoveryPath))
	res.Body.Close()
	want(t, "protocol", res.Proto, "HTTP/2.0")
	p.tryThis(t)
	environ = append(environ, "SERVER_LISTEN=localhost:"+port)
	_, out, errOut := runLine(time.Now, environ, "", "healthcheck")
	want(t, "healthcheck", out+errOut, "ok\n")
}

// TestMain_Healthcheck: 0 only while a write reaches the database. It looks no
// name up, not even localhost.
func TestMain_Healthcheck(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	address := strings.TrimPrefix(ts.url, "http://")
	check := func(listen string) string {
		environ := []string{"SERVER_LISTEN=" + listen}
		code, out, errOut := runLine(time.Now, environ, "", "healthcheck")
		return fmt.Sprint("status ", code, ": ", out, errOut)
	}
	want(t, "healthy", check(address), "status 0: ok\n")
	for _, listen := range []string{"localhost:1", "[::]:1", ":1"} {
		wantText(t, listen, check(listen), "status 1: ",
			"http://127.0.0.1:1/healthz")
	}
	dbFile(ts.cfg.databasePath(), `CREATE TRIGGER full BEFORE INSERT ON settings
		BEGIN SELECT RAISE(ABORT, 'disk is full'); END`)
	ts.clock.advance(time.Second) // a result is kept for so long
	wantText(t, "disk full", check(address), "status 1: ",
		address+"/healthz answers 503")
}

// TestMain_VersionAndHelp need no configuration, not even a usable one.
func TestMain_VersionAndHelp(t *testing.T) {
	t.Parallel()
	for line, says := range map[string]string{
		"version":      "pico-auth " + version + " ",
		"--version":    runtime.Version() + "\n",
		"help":         usage,
		"-h":           usage,
		"serve --help": "\n\n" + usage,
		"user add -h":  "\n\n" + shellUsage["user"],
		"key -h":       shellUsage["key"],
		"foo -h":       usage,
	} {
		t.Run(line, func(t *testing.T) {
			code, out, errOut := runLine(time.Now, []string{"AUTH_ISSUER=x"}, "", line)
			want(t, "exit status and errors", fmt.Sprint(code, errOut), "0")
			wantText(t, "output", out, says)
		})
	}
}

// TestMain_VersionNamesTheCommit in twelve digits, if the build noted it.
func TestMain_VersionNamesTheCommit(t *testing.T) {
	t.Parallel()
	for noted, named := range map[string]string{
		"":                                     "",
		"vcs.modified=true":                    "",
		"vcs.revision=0123456789abcdef":        " commit 0123456789ab",
		"vcs.revision=0123 vcs.modified=false": " commit 0123",
		"vcs.revision=0123 vcs.modified=true":  " commit 0123 with changes",
	} {
		var build []debug.BuildSetting
		for _, setting := range strings.Fields(noted) {
			key, value, _ := strings.Cut(setting, "=")
			build = append(build, debug.BuildSetting{Key: key, Value: value})
		}
		platform := " " + runtime.GOOS + "/" + runtime.GOARCH + " "
		want(t, noted, versionLine(build), "pico-auth "+version+named+platform+runtime.Version())
	}
}

// TestMain_HelpBeginsWithTheCommand: what was asked for stands first, with its
// continuation.
func TestMain_HelpBeginsWithTheCommand(t *testing.T) {
	t.Parallel()
	for line, first := range map[string]string{
		"serve -h":                 "  pico-auth [-config FILE] [serve] ",
		"config -h":                "  pico-auth config ",
		"healthcheck -h":           "  pico-auth healthcheck ",
		"version -h":               "  pico-auth version  ",
		"-config X user add -h":    "  pico-auth user add EMAIL [--role",
		"user show A -config X -h": "  pico-auth user show EMAIL|ID [--json]\n\nusage:",
		"user sessions -h":         "  pico-auth user sessions EMAIL|ID [--json]\n  pico-auth user sessions EMAIL|ID --end ",
		"key rotate -h":            "  pico-auth key rotate  ",
		"client secret -h":         "  pico-auth client secret NAME  print a new secret for an OpenID client, and the\n      ",
		"user -h":                  "usage:\n  pico-auth user add",
		"user foo -h":              "usage:\n  pico-auth user add",
		"-h":                       "pico-auth is a JWT",
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			code, out, errOut := runLine(time.Now, nil, "", line)
			want(t, "exit status and errors", fmt.Sprint(code, errOut), "0")
			want(t, "it begins with "+first+": "+out, strings.HasPrefix(out, first), true)
		})
	}
	wantText(t, "another port", usage, "SERVER_LISTEN=localhost:8200 AUTH_ISSUER=http://localhost:8200 pico-auth")
}

// mainDaily lets keys change every day, so that a change is due at once.
func mainDaily(c *config) { c.keyRotation = 24 * time.Hour }

// TestMain_LastingFaults are logged when they begin, once an hour, and when
// they end; a change of keys that failed waits before it makes another key.
func TestMain_LastingFaults(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, mainDaily)
	h, path := newHousekeeper(ts.app), ts.keys.path("public.pem")
	round := func(when string, wait time.Duration, failures, ends int, planned bool) {
		ts.clock.advance(wait)
		h.round(t.Context())
		logs := ts.logs.String()
		want(t, "failures "+when, strings.Count(logs, "level=ERROR"), failures)
		want(t, "ends "+when, strings.Count(logs, "works again"), ends)
		exists := ts.keys.current().planned(ts.now(), "RS256")
		want(t, "a key is planned "+when, exists, planned)
	}
	whole := must(os.ReadFile(path))
	mustOK(os.WriteFile(path, whole[:99], 0o600))
	round("at the beginning", 0, 2, 0, false)
	round("after a while", 2*time.Second, 2, 0, false)
	round("after an hour", time.Hour, 4, 0, false)
	mustOK(os.WriteFile(path, whole, 0o600))
	round("when the file is mended", 2*time.Second, 4, 1, false)
	round("when the next attempt is due", time.Minute, 4, 2, true)
}

// TestMain_KeysAreMadeOutsideTheLock: making a key can take seconds, in which
// others change the database. Here it fails, and that while another process
// holds the lock.
func TestMain_KeysAreMadeOutsideTheLock(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t, mainDaily)
	ts.keys.bits = 100 // crypto/rsa refuses it
	db := must(sql.Open("sqlite", dsn(ts.cfg.databasePath())))
	defer db.Close()
	must(db.Exec("BEGIN IMMEDIATE"))
	sh := &shell{app: ts.app, caller: caller{ctx: t.Context()}}
	err := shellKeyRotate(sh)
	wantText(t, "key rotate", fmt.Sprint(err), "crypto/rsa")
	h := newHousekeeper(ts.app)
	h.purged = ts.now() // a purge would wait for the lock
	h.round(t.Context())
	wantText(t, "log of a rotation", ts.logs.String(), "level=ERROR", "crypto/rsa")
}

// mortal is a test whose server may die before it answers: that ends the
// goroutine that asked.
type mortal struct{ testing.TB }

func (mortal) Fatalf(string, ...any) { runtime.Goexit() }

// ledger is what a server that will be killed has acknowledged.
type ledger struct {
	*testServer
	admin  string // access token
	mu     sync.Mutex
	users  []*ledgerUser
	acks   atomic.Int64
	killAt int64
	kill   func()
}

// ledgerUser is one user's part. What a request without an answer may have
// changed is "": not known.
type ledgerUser struct {
	email, id, password, role, access string
	live                              string   // refresh token that must work
	spent                             []string // refresh tokens that must not
}

// step makes one request of a user and notes what was acknowledged.
func (l *ledger) step(u *ledgerUser, step string) {
	endpoint, token := "POST /"+step, u.access
	body, used := object{}, u.live
	switch step {
	case "register", "login":
		token = ""
		body = object{"email": u.email, "password": userPassword}
	case "me/password":
		body = object{"old_password": userPassword, "new_password": "changed password"}
		u.live, u.password = "", ""
	case "refresh":
		body = object{"refresh_token": u.live}
		u.live = ""
	case "logout":
		u.live = ""
	default:
		endpoint, token = "PUT /users/"+u.id+"/role", l.admin
		body = object{"role": step}
		u.role = ""
	}
	a := answer{status: 503}
	for a.status == 503 { // bcrypt is slow under -race, and callers that wait for it are refused
		a = l.ask(endpoint, token, body)
	}
	l.wantOK(step+" of "+u.email, a)
	if u.live == "" && used != "" {
		u.spent = append(u.spent, used)
	}
	switch step {
	case "register":
		u.id = a.text("id")
		u.role, u.password = viewer, userPassword
		l.mu.Lock()
		l.users = append(l.users, u)
		l.mu.Unlock()
	case "login", "refresh":
		u.live = a.text("refresh_token")
		u.access = a.text("access_token")
	case "me/password":
		u.password = "changed password"
	case operator, orgAdmin:
		u.role = step
	}
	if l.acks.Add(1) == l.killAt {
		l.kill() // right after an acknowledgement, while others wait for theirs
	}
}

// lives leads users through some requests, one after the other.
func (l *ledger) lives(round, worker int) bool {
	middle := []string{"refresh", "refresh", operator, orgAdmin}
	last := []string{"refresh", "me/password", "logout"}
	for n := 0; ; n++ {
		email := fmt.Sprintf("u%d.%d.%d@example.com", round, worker, n)
		u := &ledgerUser{email: email}
		l.step(u, "register")
		l.step(u, "login")
		for range 5 + mathrand.IntN(15) {
			l.step(u, middle[mathrand.IntN(4)])
		}
		l.step(u, last[mathrand.IntN(3)])
	}
}

// check asks a restarted server for everything that was acknowledged.
func (l *ledger) check() {
	for _, u := range l.users {
		a := l.mustAsk("GET /users/"+u.id, l.admin, nil)
		if u.role != "" {
			want(l, "role of "+u.email, a.text("role"), u.role)
		}
		if u.password != "" {
			l.mustLogin(u.email, u.password)
		}
		if u.live != "" {
			l.wantOK("newest token of "+u.email, l.refresh(u.live))
			u.spent = append(u.spent, u.live)
		}
		for _, token := range u.spent {
			l.wantProblem("spent token of "+u.email, l.refresh(token), 401, "invalid_token")
		}
	}
	l.users = nil
}

// TestMain_KillLosesNothing kills the server under mixed load; the variable
// PICO_AUTH_KILLS says how often.
func TestMain_KillLosesNothing(t *testing.T) {
	t.Parallel()
	kills := 1
	fmt.Sscan(os.Getenv("PICO_AUTH_KILLS"), &kills)
	dir, l := t.TempDir(), &ledger{}
	writeTestKeys(dir + "/.pico-auth")
	for round := range kills + 1 {
		p := launch(t, dir, []string{
			"THROTTLE_ENABLED=false",
			"AUTH_ADMIN_PASSWORD=" + adminPassword,
		})
		l.testServer = p.client()
		if round == 0 {
			l.admin, _ = l.mustLogin("admin@pico.local", adminPassword)
		}
		l.check()
		db := must(sql.Open("sqlite", dsn(dir+"/auth.db")))
		var verdict string
		mustOK(db.QueryRow(`PRAGMA integrity_check`).Scan(&verdict))
		mustOK(db.Close())
		want(t, "integrity_check", verdict, "ok")
		if round == kills {
			return
		}
		l.TB = mortal{t}
		l.kill = func() { p.Process.Kill() }
		l.killAt = l.acks.Load() + 10 + mathrand.Int64N(40)
		together(4, func(i int) bool { return l.lives(round, i) })
		p.exit()
	}
}

// TestShell_Users tells an operator's story beside a running server.
func TestShell_Users(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	sh := func(stdin, line string) string {
		t.Helper()
		code, out, errOut := ts.shell(stdin, "user "+line)
		want(t, "exit status of user "+line+": "+errOut, code, 0)
		want(t, "a given password is shown",
			strings.Contains(out+errOut, userPassword), false)
		return out
	}
	me := func(access string) answer { return ts.ask("GET /me", access, nil) }

	// Two ways to give a password; each logs in at the running server.
	const add = "add ada@example.com --role operator --org acme --name Ada --json"
	out := sh(userPassword+"\r\nsecond line", add)
	wantText(t, "user add --json", out,
		`"role":"operator"`,
		`"org_id":"acme"`,
		`"display_name":"Ada"`,
		`"last_login_at":null`)
	out = sh("", "add eve@example.com --generate")
	form := regexp.MustCompile(`generated password: ([A-Z2-7]{26})\n`)
	generated := form.FindStringSubmatch(out)[1]
	want(t, "times that it is shown", strings.Count(out, generated), 1)
	ts.mustLogin("eve@example.com", generated)

	line := strings.Split(sh("", "list"), "\n")[2]
	fields := strings.Join(strings.Fields(line)[:5], " ")
	want(t, "user list", fields, "ada@example.com operator acme active never")
	for filter, count := range map[string]int{
		"--org acme":                 1,
		"--role superadmin":          1,
		"--role viewer --org acme":   0,
		"--role operator --org acme": 1,
	} {
		listed := sh("", "list --json "+filter)
		want(t, "users of list "+filter, strings.Count(listed, `"email":`), count)
	}
	out = sh("", "list --json")
	want(t, "objects of user list --json", strings.Count(out, "{"), 3)
	out = sh("", "show ADA@example.com")
	wantText(t, "user show", out, "ada@example.com", "never", "acme")
	id := must(ts.store.userByLogin("ada@example.com")).id
	want(t, "user show by id", sh("", "show "+id), out)

	// The server notices every change at once; a new password and a suspension
	// end sessions.
	access, _ := ts.mustLogin("ada@example.com", userPassword)
	sh("another long one\n", "passwd ada@example.com")
	ts.wantProblem("token after user passwd", me(access), 401, "invalid_token")
	access, refresh := ts.mustLogin("ada@example.com", "another long one")
	sh("", "role ada@example.com superadmin")
	sh("", "org ada@example.com other")
	wantText(t, "GET /me", me(access).body, `"role":"superadmin"`,
		`"org_id":"other"`)
	sh("", "status ada@example.com suspended")
	sh("", "status ada@example.com active")
	ts.wantProblem("access token after a suspension", me(access), 401, "invalid_token")
	ts.wantProblem("refresh token after a suspension", ts.refresh(refresh), 401, "invalid_token")
	sessions := strings.Count(sh("", "sessions "+id+" --json"), `"last_used_at":`)
	want(t, "sessions after a suspension", sessions, 0)
	access, _ = ts.mustLogin("ada@example.com", "another long one")
	out = sh("", "sessions ADA@example.com --json")
	wantText(t, "user sessions --json", out, `"ip":"127.0.0.1"`, `"created_at":`, `"user_agent":`)
	row := strings.Fields(strings.Split(sh("", "sessions "+id), "\n")[1])
	wantText(t, "the id of the session", out, `"id":"`+row[4]+`"`)
	want(t, "GET /me of a listed session", me(access).status, 200)
	_, _, log := ts.shell("", "user sessions "+id+" --end")
	wantText(t, "event of user sessions --end", log, "session.revoked", "user="+id, "session="+row[4], "actor=shell")
	ts.wantProblem("access token after user sessions --end", me(access), 401, "invalid_token")
	sh("", "delete "+id)
	a := ts.login("ada@example.com", "another long one")
	ts.wantProblem("login of a deleted user", a, 401, "invalid_credentials")
}

// atTerminal runs a command at a terminal, on the files of a test server, and
// returns what is seen there. talk is what to wait for and what to type, by
// turns. Before the command stand settings of the environment. After it the
// terminal tells its state.
func (ts *testServer) atTerminal(t *testing.T, environ, command string, talk []string) (seen string) {
	t.Helper()
	if _, err := exec.LookPath("script"); err != nil || runtime.GOOS != "linux" {
		t.Skip("needs the script of util-linux")
	}
	line := fmt.Sprintf("trap : INT; %s %s %s; echo status $?; stty -a", environ, must(os.Executable()), command)
	cmd := exec.CommandContext(t.Context(), "script", "-qec", line, "/dev/null")
	cmd.Env = append(os.Environ(), append(ts.environ(), "PICO_AUTH_RUN_MAIN=1", "AUTH_BCRYPT_COST=10")...)
	keyboard, screen := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	mustOK(cmd.Start())
	readUntil := func(text string) {
		for one := make([]byte, 1); !strings.Contains(seen, text); seen += string(one) {
			if _, err := screen.Read(one); err != nil {
				t.Fatalf("no %q: %s", text, seen)
			}
		}
	}
	for turn := range slices.Chunk(talk, 2) {
		if turn[1] != "" {
			readUntil(turn[0])
			must(io.WriteString(keyboard, strings.Replace(turn[1]+"\n", "^C\n", "\x03", 1)))
		}
	}
	readUntil("echok")
	keyboard.Close()
	io.Copy(io.Discard, screen)
	mustOK(cmd.Wait())
	return seen
}

// TestPrompt_AsksBeforeDeleting at a terminal, unless it is told not to.
func TestPrompt_AsksBeforeDeleting(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	for _, row := range []struct{ options, answer, says string }{
		{"", "n", "nothing was deleted"},
		{"", "yes, I think", "nothing was deleted"},
		{"", "y", "status 0"},
		{"--yes", "", "status 0"},
	} {
		t.Run(row.options+row.answer, func(t *testing.T) {
			id := ts.mustUser("ada@example.com", viewer, defaultOrg)
			question := "delete " + id + " for good? [y/N] "
			seen := ts.atTerminal(t, "", "user delete "+id+" "+row.options, []string{question, row.answer})
			wantText(t, "seen", seen, row.says)
			_, err := ts.store.userByID(id)
			want(t, "deleted", errors.Is(err, errNotFound), row.says == "status 0")
			ts.shell("", "user delete "+id)
		})
	}
}

// promptTalks are what comes before the command, the two lines that are typed,
// and what is seen then.
const promptTalks = `
same        -           typed secret  typed secret   status 0
differ      -           typed secret  other secret   the two passwords differ & status 1
short       -           typed         typed          at least 8 characters & status 2
interrupt   -           typed secret  ^C             interrupted & status 1
at once     -           ^C            -              interrupted & status 1
no stty     PATH=/none  typed secret  typed secret   is shown as you type & status 0`

// TestPrompt_HidesThePassword at a terminal, asks for it twice, and leaves a
// terminal that shows what is typed.
func TestPrompt_HidesThePassword(t *testing.T) {
	t.Parallel()
	for _, row := range lines(promptTalks) {
		column := columns(row)
		t.Run(column[0], func(t *testing.T) {
			t.Parallel()
			ts := newTestServer(t)
			ts.mustUser("ada@example.com", viewer, defaultOrg)
			talk := []string{"new password: ", column[2], "the same again: ", column[3]}
			seen := ts.atTerminal(t, column[1], "user passwd ada@example.com", talk)
			wantText(t, "seen", seen, strings.Split(column[4], " & ")...)
			want(t, "echo is on: "+seen, strings.Contains(seen, " iexten echo "), true)
			want(t, "the password is seen: "+seen, strings.Contains(seen, "typed secret"), column[1] != "")
			if strings.Contains(seen, "status 0") {
				ts.mustLogin("ada@example.com", "typed secret")
			} else {
				ts.mustLogin("ada@example.com", userPassword)
			}
		})
	}
}

// shellRefusals are a command, its standard input, its exit status and what it
// says. KID is the key that signs.
const shellRefusals = `
user add ADA@example.com                            battery staple  1  already exists
user add new@example.com                            short           2  at least 8 characters
user add new@example.com                            -               2  at least 8 characters
user add nobody                                     battery staple  2  email must be
user add new@example.com --role root                battery staple  2  nvalid role
user add new@example.com --password hunter2hunter2  -               2  usage:
user add new@example.com --password=hunter2hunter2  -               2  usage:
user add new@example.com hunter2hunter2             -               2  usage:
user passwd ada@example.com hunter2hunter2          -               2  usage:
user passwd ada@example.com                         short           2  at least 8 characters
user passwd nobody@example.com                      battery staple  1  no user has the email or id nobody@
user show nobody@example.com                        -               1  pico-auth user list
user role ada@example.com root                      -               2  nvalid role: root; the roles are superadmin, org_admin,
user list --role root                               -               2  operator and viewer
user role nobody@example.com viewer                 -               1  nobody@example.com
user status ada@example.com gone                    -               2  active or suspended
user role admin@example.com viewer                  -               1  last active superadmin
user status admin@example.com suspended             -               1  last active superadmin
user delete admin@example.com                       -               1  last active superadmin
user delete                                         -               2  user delete takes 1 words after it, not 0
user foo                                            -               2  user foo is no command
-config no.yaml user show ada@example.com           -               2  no.yaml
user show ada@example.com -config no.yaml           -               2  no.yaml
key                                                 -               2  key needs a command after it
key drop -- KID                                     -               1  key rotate --now
key drop nothing                                    -               1  no key nothing
key drop                                            -               2  usage:`

// TestShell_Refusals: what is wrong changes nothing, and the last superadmin
// stays.
func TestShell_Refusals(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	ts.mustUser("ada@example.com", viewer, defaultOrg)
	kid := ts.keys.current().signing(ts.now()).kid
	_, before, _ := ts.shell("", "user list")
	for _, row := range lines(shellRefusals) {
		column := columns(row)
		t.Run(column[0], func(t *testing.T) {
			line := strings.Replace(column[0], "KID", kid, 1)
			code, out, errOut := ts.shell(column[1], line)
			want(t, "exit status", fmt.Sprint(code), column[2])
			wantText(t, "errors", errOut, column[3])
			want(t, "a password is shown", strings.Contains(out+errOut, "hunter2"),
				false)
		})
	}
	_, after, _ := ts.shell("", "user list")
	want(t, "users after the refusals", after, before)
	ts.mustLogin("ada@example.com", userPassword)
}

// TestShell_ClientSecret: the secret can be made while the configuration still
// lacks it, and the block that is printed is one that the server takes.
func TestShell_ClientSecret(t *testing.T) {
	t.Parallel()
	lacking := configFile(t, `oidc: {clients: {app: {secret: "${ENV:NOT_YET}"}}}`)
	secret := func(name string) (code int, out, errOut string) {
		return runLine(time.Now, nil, "", "-config "+lacking+" client secret "+name)
	}
	code, block, errOut := secret("app.1")
	want(t, "exit status: "+errOut, code, 0)
	want(t, "client", must(loadConfig(configFile(t, block), nil)).clients["app.1"].public(), false)
	code, _, errOut = secret("a/b")
	want(t, "exit status of a bad name", code, 2)
	wantText(t, "message", errOut, "must be called by 1 to 100 letters")
}

// TestShell_ListIsSafeToShow: adopted databases can hold anything, and no
// column of it reaches the terminal as a control character.
func TestShell_ListIsSafeToShow(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	const hostile = `UPDATE users SET id = $1 || 'id', email = $1 || 'email',
		role = $1 || 'role', org_id = $1 || 'org', status = $1 || 'status'`
	dbFile(ts.cfg.databasePath(), hostile, "\x1b[31m\r\x7f\u009b2J")
	for _, line := range []string{"user list", "user show " + adminEmail} {
		t.Run(line, func(t *testing.T) {
			_, out, _ := ts.shell("", line)
			wantText(t, "output", out,
				"[31m2Jid", "[31m2Jemail", "[31m2Jrole", "[31m2Jorg", "[31m2Jstatus")
			for _, r := range out {
				if r != '\n' && unicode.IsControl(r) {
					t.Errorf("the output has the control character %q", r)
				}
			}
		})
	}
}

// TestShell_ListIsNotBuffered: users are printed as they are read, so those
// that are deleted after the first line has come out are missing.
func TestShell_ListIsNotBuffered(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	dbFile(ts.cfg.databasePath(), `INSERT INTO users
		WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
		SELECT i, i, i, i, '', x'', 'viewer', 'default', 'active', 0, 0, 0 FROM n`)
	out, in := io.Pipe()
	p := process{[]string{"user", "list"}, ts.environ(), nil, in, io.Discard, ts.now}
	go func() {
		in.CloseWithError(run(t.Context(), p))
	}()
	lines := bufio.NewReader(out)
	must(lines.ReadString('\n'))
	dbFile(ts.cfg.databasePath(), `DELETE FROM users`)
	rest := must(io.ReadAll(lines))
	rows := bytes.Count(rest, []byte("\n"))
	want(t, "more than a page is printed", rows > pageRows, false)
}

// TestShell_Keys: the running server follows a rotation, also one in an
// emergency, and a dropped key's tokens end.
func TestShell_Keys(t *testing.T) {
	t.Parallel()
	ts := newTestServer(t)
	h := newHousekeeper(ts.app)
	keys := func(line string) map[string]string { // state → kid
		t.Helper()
		h.round(t.Context())
		code, out, errOut := ts.shell("", "key "+line+" --json")
		want(t, "exit status of key "+line+": "+errOut, code, 0)
		h.round(t.Context())
		jwks := ts.ask("GET /jwks", "", nil)
		states := map[string]string{}
		for row := range strings.Lines(out) {
			var k struct{ Kid, State string }
			mustOK(json.Unmarshal([]byte(row), &k))
			states[k.State] = k.Kid
			wantText(t, "published keys", jwks.body, k.Kid)
		}
		return states
	}
	signsAfter := func(d time.Duration) string {
		ts.clock.advance(d)
		h.round(t.Context())
		return ts.keys.current().signing(ts.now()).kid
	}
	access := ts.mustAdmin()
	first := keys("list")["signing"]
	planned := keys("rotate")["next"]
	want(t, "signing after key rotate", signsAfter(0), first)
	want(t, "next after a second key rotate", keys("rotate")["next"], planned)

	// A key for another algorithm takes the place of the one that waits.
	ts.clock.advance(time.Second) // the names of key files are times
	_, list, _ := runLine(ts.now, append(ts.environ(), "AUTH_ALGORITHM=ES256"), "", "key rotate")
	wantText(t, "key rotate", list, first+"  RS256      signing", "  ES256      next")
	want(t, "keys after it", strings.Count(list, "\n"), 2)

	// In an emergency only a key that was made now is known to nobody.
	urgent := keys("rotate --now")["next"]
	want(t, "the next key is the old one", urgent == planned, false)
	want(t, "signing after 4 s", signsAfter(4*time.Second), first)
	want(t, "signing after 5 s", signsAfter(time.Second), urgent)
	wantText(t, "log", ts.logs.String(),
		"msg=key.reloaded",
		"msg=key.rotated kid="+urgent)
	_, list, _ = ts.shell("", "key list")
	wantText(t, "key list", list,
		first+"  RS256      retired  published until 2",
		urgent+"  RS256      signing  since 2")
	ts.mustAsk("GET /me", access, nil) // with a token of the retired key
	left := keys("drop -- " + first)   // a kid can begin with a hyphen
	want(t, "keys after key drop", len(left), 1)
	ts.wantProblem("token of the dropped key", ts.ask("GET /me", access, nil), 401, "invalid_token")
}

// === structure ===

// structureFloors says on which floor every file of the program lives. A
// file uses declarations of lower floors only, so no two use each other.
var structureFloors = map[string]int{
	"backup.go":        0,
	"mldsa.go":         0,
	"nomldsa.go":       0,
	"rbac.go":          0,
	"jwt.go":           1,
	"db.go":            1,
	"adopt.go":         2,
	"settings.go":      2,
	"clients.go":       3,
	"accounts.go":      3,
	"keys.go":          3,
	"refresh.go":       4,
	"config.go":        4,
	"passwords.go":     5,
	"http.go":          6,
	"body.go":          7,
	"html.go":          7,
	"oidc.go":          7,
	"openapi.go":       8,
	"pages.go":         8,
	"metrics.go":       7,
	"admin.go":         8,
	"groups.go":        9,
	"servicetokens.go": 9,
	"handlers.go":      9,
	"authorize.go":     10,
	"logout.go":        11,
	"token.go":         12,
	"provider.go":      13,
	"forwardauth.go":   13,
	"routes.go":        14,
	"prompt.go":        14,
	"shell.go":         15,
	"main.go":          16,
}

// structureRooms are the files of each room that can be deleted.
var structureRooms = map[string]string{
	"adopt":         "adopt.go",
	"forwardauth":   "forwardauth.go",
	"groups":        "groups.go",
	"metrics":       "metrics.go",
	"mldsa":         "mldsa.go nomldsa.go",
	"openapi":       "openapi.go openapi.json",
	"provider":      "clients.go pages.go authorize.go logout.go token.go provider.go",
	"servicetokens": "servicetokens.go",
}

// structureNeeds are the rooms that go with another one, which they use.
var structureNeeds = map[string]string{"provider": "forwardauth"}

// structureOnly names the only files that may import a package or hold SQL,
// and the only functions that may mention a name.
var structureOnly = map[string]string{
	"SQL":                        "db.go adopt.go accounts.go refresh.go groups.go servicetokens.go authorize.go token.go forwardauth.go",
	"database/sql":               "backup.go db.go accounts.go",
	"modernc.org/sqlite":         "db.go",
	"gopkg.in/yaml.v3":           "config.go",
	"reflect":                    "config.go",
	"crypto/ecdsa":               "jwt.go",
	"crypto/mldsa":               "mldsa.go",
	"crypto/rsa":                 "jwt.go",
	"crypto/x509":                "keys.go",
	"crypto/tls":                 "main.go",
	"golang.org/x/crypto/bcrypt": "passwords.go",
	"net/http":                   "http.go body.go oidc.go pages.go admin.go handlers.go authorize.go token.go forwardauth.go metrics.go routes.go main.go",
	"html/template":              "pages.go openapi.go",
	"text/template":              "",

	"crypto/md5":     "",
	"crypto/sha1":    "",
	"log":            "",
	"math/rand":      "",
	"math/rand/v2":   "",
	"net/http/pprof": "",
	"os/exec":        "prompt.go",
	"testing":        "",
	"unsafe":         "",

	"time.Now":     "main writePages", // main hands the clock on
	"time.Since":   "",
	"time.Until":   "",
	"os.Exit":      "main",
	".WriteHeader": "WriteHeader writeBody",
}

// structureFiles are the files of the program without its tests.
func structureFiles() []string {
	return slices.DeleteFunc(must(filepath.Glob("*.go")), func(name string) bool {
		return strings.HasSuffix(name, "_test.go")
	})
}

func structureParse() (fset *token.FileSet, files []*ast.File) {
	fset = token.NewFileSet()
	for _, name := range structureFiles() {
		files = append(files, must(parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)))
	}
	return fset, files
}

// structureSame compares two lists, whatever their order.
func structureSame(t *testing.T, what string, got, wanted []string) {
	t.Helper()
	for _, line := range slices.Concat(got, wanted) {
		want(t, what+" "+line, slices.Contains(got, line),
			slices.Contains(wanted, line))
	}
}

// TestStructure_Rooms: a file uses declarations of lower floors only.
func TestStructure_Rooms(t *testing.T) {
	t.Parallel()
	floors := slices.Collect(maps.Keys(structureFloors))
	structureSame(t, "every file has a floor:", floors, structureFiles())
	// Without an importer every import is an empty package. The errors about
	// what it lacks are dropped: only the program's own names count here.
	conf := types.Config{Error: func(error) {}}
	info := types.Info{Uses: map[*ast.Ident]types.Object{}}
	fset, files := structureParse()
	pkg, _ := conf.Check("main", fset, files, &info)
	arrows := 0
	for name, used := range info.Uses {
		at, home := fset.Position(name.Pos()), fset.Position(used.Pos())
		if used.Pkg() != pkg || home.Filename == at.Filename {
			continue
		}
		arrows++
		if structureFloors[home.Filename] >= structureFloors[at.Filename] {
			t.Errorf("%s uses %s of %s, which is not on a lower floor", at, name, home)
		}
	}
	if arrows < 500 {
		t.Errorf("%d uses between files found; the search is broken", arrows)
	}
}

// TestStructure_RoomsOwnTheirTools: SQL and imports that matter for security
// stay in the rooms that are made for them. One function reads the clock, and
// one writes the status of an answer. Package variables are errors, tables and
// regexps.
func TestStructure_RoomsOwnTheirTools(t *testing.T) {
	t.Parallel()
	isSQL := regexp.MustCompile(`(?is)\b(SELECT\s.*\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM` +
		`|(CREATE|DROP|ALTER)\s+(TABLE|INDEX)|PRAGMA\s+\w+|BEGIN\s+IMMEDIATE)\b`)
	fixed := regexp.MustCompile(`^(\[|map\[|&?[a-z]\w*{|errors\.New|refusal|regexp\.MustCompile|template\.Must|base64\.)`)
	fset, files := structureParse()
	check := func(n ast.Node, in, name string) {
		at := fset.Position(n.Pos())
		only, listed := structureOnly[name]
		places := strings.Fields(only)
		if listed && !slices.Contains(places, in) && !slices.Contains(places, at.Filename) {
			t.Errorf("%s: %s in %s; only %q may", at, name, in, only)
		}
	}
	var decls []ast.Decl
	for _, file := range files {
		decls = append(decls, file.Decls...)
	}
	for _, decl := range decls {
		in, kind := "", token.FUNC
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			in = decl.Name.Name
		case *ast.GenDecl:
			kind = decl.Tok
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ImportSpec:
				check(n, in, must(strconv.Unquote(n.Path.Value)))
			case *ast.BasicLit:
				if isSQL.MatchString(n.Value) {
					check(n, in, "SQL")
				}
			case *ast.SelectorExpr:
				check(n, in, types.ExprString(n))
				check(n, in, "."+n.Sel.Name)
			case *ast.ValueSpec:
				isFixed := n.Names[0].Name == "openapiSource" // go:embed fills it
				isFixed = isFixed || n.Values != nil && fixed.MatchString(types.ExprString(n.Values[0]))
				if kind == token.VAR && !isFixed {
					t.Errorf("%s: %s is no error, table or regexp", fset.Position(n.Pos()), n.Names[0])
				}
			}
			return true
		})
	}
}

// structureRead returns a file of the repository. Where the directory was
// copied into somebody's module without it, there is nothing to check.
func structureRead(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Skip(err)
	}
	return string(data)
}

// TestStructure_Modules: three direct modules, and the version of libc that
// SQLite was made with, as its authors demand.
func TestStructure_Modules(t *testing.T) {
	t.Parallel()
	modules, direct := structureRead(t, "go.mod"), []string{}
	require := regexp.MustCompile(`(?m)^(?:require)?\s+(\S+) v\S+$`) // not "// indirect"
	for _, m := range require.FindAllStringSubmatch(modules, -1) {
		direct = append(direct, m[1])
	}
	allowed := []string{"golang.org/x/crypto", "gopkg.in/yaml.v3", "modernc.org/sqlite"}
	structureSame(t, "go.mod requires", direct, allowed)
	its, err := exec.Command("go", "list", "-m", "-f", "{{.GoMod}}", "modernc.org/sqlite").Output()
	if err != nil {
		t.Skip("needs the go command to find modernc.org/sqlite: ", err)
	}
	libc := regexp.MustCompile(`modernc.org/libc v\S+`)
	demanded := structureRead(t, strings.TrimSpace(string(its)))
	want(t, "libc", libc.FindString(modules), libc.FindString(demanded))
}

// TestStructure_ReadmeTables: the README lists exactly the endpoints and the
// files that there are, and docs/settings.md the settings.
func TestStructure_ReadmeTables(t *testing.T) {
	t.Parallel()
	rows := func(file, pattern string) (rows []string) {
		text := strings.ReplaceAll(structureRead(t, file), "`", "")
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			rows = append(rows, strings.Join(m[1:], " "))
		}
		return rows
	}
	var routes, settings []string
	for _, r := range (&server{cfg: defaultConfig()}).routeTable() {
		who, pattern := "anyone", r.pattern
		if r.need != public {
			who = ""
		}
		if !strings.Contains(pattern, " ") {
			pattern = "any " + pattern
		}
		routes = append(routes, pattern+" "+who)
	}
	for _, s := range defaultConfig().settings {
		settings = append(settings, s.key+" "+s.env+" "+s.text)
	}
	endpoint := rows("README.md", `(?m)^\| (GET|POST|PUT|DELETE|any) \| (\S+) \| (anyone)?`)
	structureSame(t, "the README has the endpoint", endpoint, routes)
	setting := rows("docs/settings.md", `(?m)^\| ([a-z_]+\.\w+) \| ([A-Z][A-Z_0-9]+) \| (.*?) ?\|`)
	structureSame(t, "docs/settings.md has the setting", setting, settings)
	_, table, _ := strings.Cut(structureRead(t, "README.md"), "| file | lines |")
	var files, counts []string
	for line := range strings.Lines(table) {
		if c := strings.Split(line, "|"); len(c) > 2 {
			files = append(files, regexp.MustCompile(`[a-z_]+\.go`).FindAllString(c[1], -1)...)
			counts = append(counts, regexp.MustCompile(`\d+`).FindAllString(c[2], -1)...)
		}
	}
	structureSame(t, "the README has the file", files, structureFiles())
	for i, file := range files {
		lines := strings.Count(structureRead(t, file), "\n")
		want(t, "lines of "+file, counts[i], strconv.Itoa(lines))
	}
}

// TestStructure_ReadmeNames: the README names every code of a problem, and
// docs/operate.md every event of the log.
func TestStructure_ReadmeNames(t *testing.T) {
	t.Parallel()
	named, found := structureRead(t, "README.md")+structureRead(t, "docs/operate.md"), 0
	code := regexp.MustCompile(`(?:refusal\(\s*\d+,|\bcode:)\s*("\w+")`)
	event := regexp.MustCompile(`"[a-z]+\.[a-z_]+"`)
	other := regexp.MustCompile(`"auth\.|"oidc\.|"server\.|"vcs\.|\.pem"`) // settings, build, files
	for _, name := range structureFiles() {
		text := structureRead(t, name)
		quoted := event.FindAllString(text, -1)
		for _, m := range code.FindAllStringSubmatch(text, -1) {
			quoted = append(quoted, m[1])
		}
		for _, word := range quoted {
			if name == "config.go" || other.MatchString(word) {
				continue
			}
			found++
			word = strings.ReplaceAll(word, `"`, "`")
			want(t, name+": README or docs/operate.md name "+word, strings.Contains(named, word), true)
		}
	}
	if found < 50 {
		t.Errorf("%d events and codes found; the search is broken", found)
	}
}

// TestStructure_DocsReadable: the README fits its 320 lines, no line but those
// of tables is wider than 140 characters, and every link leads to a file.
func TestStructure_DocsReadable(t *testing.T) {
	t.Parallel()
	readme := structureRead(t, "README.md")
	if n := strings.Count(readme, "\n"); n > 320 {
		t.Errorf("the README has %d lines", n)
	}
	docs := must(filepath.Glob("docs/*.md"))
	for _, name := range append(docs, "README.md") {
		text := structureRead(t, name)
		for line := range strings.Lines(text) {
			if utf8.RuneCountInString(line) > 141 && line[0] != '|' {
				t.Errorf("%s: wider than 140: %s", name, line)
			}
		}
		for _, m := range regexp.MustCompile(`\]\(([^):#]+)\)`).FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for _, name := range docs {
		want(t, "the README leads to "+name, strings.Contains(readme, "]("+name+")"), true)
	}
}

// TestStructure_ReadmeSession pastes the README's session into each shell that
// is here. It prints what the README says, where … is anything.
func TestStructure_ReadmeSession(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip(err)
	}
	_, rest, _ := strings.Cut(structureRead(t, "README.md"), "```sh session\n")
	typed, rest, _ := strings.Cut(rest, "```\n")
	_, rest, _ = strings.Cut(rest, "```json\n")
	printed, _, _ := strings.Cut(rest, "```\n")
	want(t, "lines typed and printed", strings.Count(typed, "\n") > 8 && strings.Count(printed, "\n") > 3, true)
	pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(printed), "…", ".+") + "$"
	for _, name := range []string{"sh", "bash", "zsh"} {
		t.Run(name, func(t *testing.T) {
			shell, err := exec.LookPath(name)
			if err != nil {
				t.Skip(err)
			}
			address := strings.TrimPrefix(launch(t, t.TempDir(), nil).client().url, "http://")
			sh := exec.Command(shell)
			sh.Stdin = strings.NewReader(strings.ReplaceAll(typed, "localhost:8100", address))
			sh.Env = []string{"PATH=" + os.Getenv("PATH")}
			out, err := sh.CombinedOutput()
			if err != nil || !regexp.MustCompile(pattern).Match(out) {
				t.Errorf("the session prints (%v)\n%s\nthe README says\n%s", err, out, printed)
			}
		})
	}
}

// structureSmoke is the test of a program without a room: its schema without
// the room's lines is valid SQL, which a build cannot tell.
const structureSmoke = `package main

import "log/slog"
import "testing"
import "time"

func TestSmoke(t *testing.T) {
	s, err := openStore(t.TempDir()+"/auth.db", openOptions{now: time.Now(), log: slog.Default()})
	if err != nil {
		t.Fatal(err)
	}
	s.close()
}
`

// TestStructure_RoomsCanBeDeleted: without the files of a room and the lines of
// others that end in "// room: NAME" or, in the schema, "-- … room: NAME", the
// program builds and makes its database.
func TestStructure_RoomsCanBeDeleted(t *testing.T) {
	t.Parallel()
	mark := regexp.MustCompile(`(?m)^.*(?:// |--.* )room: ([a-z]+)\n`)
	for _, name := range structureFiles() {
		for _, m := range mark.FindAllStringSubmatch(structureRead(t, name), -1) {
			want(t, "there is the room of "+m[0], structureRooms[m[1]] != "", true)
		}
	}
	if os.Getenv("PICO_AUTH_ROOMS") == "" {
		t.Skip("PICO_AUTH_ROOMS=1 builds the program once for each room")
	}
	for room := range structureRooms {
		t.Run(room, func(t *testing.T) {
			t.Parallel()
			dir, replace := t.TempDir(), map[string]string{}
			for _, name := range must(filepath.Glob("*_test.go")) {
				replace[name] = "" // is not there
			}
			write := func(name, text string) {
				replace[name] = filepath.Join(dir, name)
				mustOK(os.WriteFile(replace[name], []byte(text), 0o600))
			}
			write("smoke_test.go", structureSmoke)
			gone := strings.Fields(room + " " + structureNeeds[room])
			marked := regexp.MustCompile(`(?m)^.*(// |--.* )room: (` + strings.Join(gone, "|") + `)\n`)
			for _, name := range structureFiles() {
				write(name, marked.ReplaceAllString(structureRead(t, name), ""))
			}
			for _, room := range gone {
				for _, name := range strings.Fields(structureRooms[room]) {
					replace[name] = ""
				}
			}
			write("overlay.json", string(must(json.Marshal(object{"Replace": replace}))))
			test := exec.Command("go", "test", "-overlay", replace["overlay.json"], ".")
			out, err := test.CombinedOutput()
			if err != nil {
				t.Errorf("without the room %s: %v\n%s", room, err, out)
			}
		})
	}
}

// === benchmarks ===

// Each figure stands beside a limit that was measured in the same run,
// because machines differ and change their speed.

const benchParallel = 32 // clients

// benchClient is one keep-alive connection. It speaks raw HTTP, to take
// little CPU from the server beside it.
type benchClient struct {
	conn        net.Conn // dialled when first used: servers hang up on silent ones
	r           *bufio.Reader
	address     string
	credentials string // email and password as JSON
	access      string // token of its last login
	refresh     string // token of its last login or refresh
	cookie      string // header of the login page's session
	body        []byte // of the last answer
	took        []time.Duration
}

func newBenchClients(address string, n int) []*benchClient {
	clients := make([]*benchClient, n)
	for i := range clients {
		credentials := fmt.Sprintf(`{"email":"u%d@example.com","password":%q}`, i, userPassword)
		clients[i] = &benchClient{address: address, credentials: credentials}
	}
	return clients
}

// do sends a request, a GET when it has no body, and reads an answer that has
// a Content-Length, as all but lists have. It reports whether the answer is
// 200 or 303. 503 is a refusal under load; anything else ends the benchmark.
func (k *benchClient) do(path, token, body string) (ok bool) {
	began, method, kind := time.Now(), "POST", "application/json"
	if body == "" {
		method = "GET"
	} else if strings.Contains(body, "=") {
		kind = "application/x-www-form-urlencoded"
	}
	extra := k.cookie
	if token != "" {
		extra += "Authorization: Bearer " + token + "\r\n"
	}
	if k.conn == nil {
		k.conn = must(net.Dial("tcp", k.address))
		k.r = bufio.NewReader(k.conn)
	}
	const request = "%s %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
	must(fmt.Fprintf(k.conn, request, method, path, extra, kind, len(body), body))
	line := must(k.r.ReadSlice('\n'))
	status, length := string(line[9:12]), 0
	for len(line) > 2 {
		line = must(k.r.ReadSlice('\n'))
		value, found := bytes.CutPrefix(line, []byte("Content-Length: "))
		if found {
			length = must(strconv.Atoi(string(bytes.TrimSpace(value))))
		}
	}
	k.body = slices.Grow(k.body[:0], length)[:length]
	must(io.ReadFull(k.r, k.body))
	k.took = append(k.took, time.Since(began))
	if status != "200" && status != "303" && status != "503" {
		panic(fmt.Sprintf("%s %s = %s %s", method, path, status, k.body))
	}
	return status != "503"
}

// member is a text in the last answer.
func (k *benchClient) member(name string) string {
	_, rest, _ := strings.Cut(string(k.body), `"`+name+`":"`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// benchRequest reports what do reports.
type benchRequest = func(*benchClient) bool

func benchNothing(*benchClient) bool  { return true }
func benchKeySet(k *benchClient) bool { return k.do(jwksPath, "", "") }
func benchMe(k *benchClient) bool     { return k.do(auth+"/me", k.access, "") }

func benchLogin(k *benchClient) bool {
	ok := k.do(loginPath, "", k.credentials)
	if ok {
		k.access, k.refresh = k.member("access_token"), k.member("refresh_token")
	}
	return ok
}

func benchRefresh(k *benchClient) bool {
	ok := k.do(auth+"/refresh", "", `"`+k.refresh+`"`)
	if ok {
		k.refresh = k.member("refresh_token")
	}
	return ok
}

// benchSignOn has a client log in at the login page and exchange a code.
func benchSignOn(ts *testServer, k *benchClient) {
	b := &surfer{testServer: ts}
	var who struct{ Email, Password string }
	mustOK(json.Unmarshal([]byte(k.credentials), &who))
	a := b.logIn(b.authorize("app"), who.Email, who.Password)
	k.cookie = "Cookie: " + b.cookie + "\r\n"
	code := must(url.Parse(a.header.Get("Location"))).Query().Get("code")
	a = ts.wantOK("token", ts.redeem("app", code))
	k.access, k.refresh = a.text("access_token"), a.text("refresh_token")
}

func benchAuthorize(k *benchClient) bool {
	return k.do(authorizeURL("app", providerURIs["app"]), "", "")
}

func benchToken(k *benchClient) bool {
	ok := k.do(tokenPath, "", "grant_type=refresh_token&client_id=app&client_secret="+appSecret+
		"&refresh_token="+k.refresh)
	if ok {
		k.refresh = k.member("refresh_token")
	}
	return ok
}

func benchUserinfo(k *benchClient) bool { return k.do(userinfoPath, k.access, "") }

// benchUsers registers clients and logs them in, one after the other: a fresh
// server must not refuse one.
func benchUsers(address string, n int) []*benchClient {
	clients := newBenchClients(address, n)
	for _, k := range clients {
		k.do(auth+"/register", "", k.credentials)
		benchLogin(k)
	}
	return clients
}

// benchLog finds the address that the server listens on.
type benchLog chan string

func (l benchLog) Write(line []byte) (int, error) {
	_, address, found := bytes.Cut(line, []byte("address=http://"))
	if found {
		l <- string(bytes.TrimSpace(address))
	}
	return len(line), nil
}

// newBenchServer runs the whole program in this process, with its own
// listener, scheduler settings and log. Its clients are logged in.
func newBenchServer(b *testing.B, settings ...string) (*testServer, []*benchClient) {
	dir, log, cores := b.TempDir(), make(benchLog, 1), runtime.GOMAXPROCS(0)
	environ := []string{
		"AUTH_DATA_DIR=" + dir + "/keys",
		"DATABASE_URL=sqlite:///" + dir + "/auth.db",
		"SERVER_LISTEN=127.0.0.1:0",
		"AUTH_BCRYPT_COST=10",
		"THROTTLE_ENABLED=false",
	}
	environ = append(environ, settings...)
	file := dir + "/application.yaml"
	mustOK(os.WriteFile(file, []byte(providerFile), 0o600))
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() {
		args := []string{"-config", file}
		stopped <- run(ctx, process{args, environ, strings.NewReader(""), io.Discard, log, time.Now})
	}()
	var address string
	select {
	case address = <-log:
	case err := <-stopped:
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stop()
		mustOK(<-stopped)
		runtime.GOMAXPROCS(cores) // run has doubled it
	})
	return &testServer{TB: b, url: "http://" + address, dir: dir}, benchUsers(address, benchParallel)
}

// benchRepeat lets n goroutines repeat f while more holds. It returns how
// often f succeeded in a second.
func benchRepeat(n int, more func() bool, f func(i int) bool) float64 {
	var good atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for i := range n {
		all.Go(func() {
			for more() {
				if f(i) {
					good.Add(1)
				}
			}
		})
	}
	all.Wait()
	return float64(good.Load()) / time.Since(began).Seconds()
}

// benchLimit is what the machine can do at best: n goroutines that repeat f.
type benchLimit struct {
	name string
	n    int
	f    func(i int) bool
}

// report measures the limit for a second and compares a rate with it.
func (l benchLimit) report(b *testing.B, rate float64) {
	end := time.Now().Add(time.Second)
	limit := benchRepeat(l.n, func() bool { return time.Now().Before(end) }, l.f)
	b.ReportMetric(limit, l.name+"/s")
	b.ReportMetric(100*rate/limit, "%of"+l.name)
}

func benchBcrypt() benchLimit {
	hash := must(bcrypt.GenerateFromPassword([]byte(userPassword), 10))
	return benchLimit{"bcrypt", runtime.NumCPU(), func(int) bool {
		return bcrypt.CompareHashAndPassword(hash, []byte(userPassword)) == nil
	}}
}

// benchSigning is signing alone, with a key as the server makes it.
func benchSigning(algorithm string) benchLimit {
	key := keysMake(algorithm, 1)[0]
	return benchLimit{"signing", runtime.NumCPU(), func(int) bool {
		return must(key.algorithm.sign(key.signer, "")) != nil
	}}
}

// benchHTTP is the least that net/http can do: one answer to everything.
func benchHTTP(b *testing.B, name string, srv *http.Server, a answer) benchLimit {
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		maps.Copy(w.Header(), a.header)
		io.WriteString(w, a.body)
	})
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	go srv.Serve(ln)
	b.Cleanup(func() { srv.Close() })
	clients := newBenchClients(ln.Addr().String(), benchParallel)
	return benchLimit{name, benchParallel, func(i int) bool { return clients[i].do("/", "x", "") }}
}

// benchTimes reports the latencies that the clients have noted.
func benchTimes(b *testing.B, clients []*benchClient) {
	var all []time.Duration
	for _, k := range clients {
		all = append(all, k.took...)
	}
	if slices.Sort(all); len(all) > 0 {
		b.ReportMetric(all[(len(all)-1)*50/100].Seconds()*1e3, "p50-ms")
		b.ReportMetric(all[(len(all)-1)*99/100].Seconds()*1e3, "p99-ms")
	}
}

// benchDrive measures requests of parallel clients, and right afterwards the
// limits. It is a sub-benchmark, so that the setup before it runs once.
func benchDrive(b *testing.B, name string, clients []*benchClient, send benchRequest, limits ...benchLimit) {
	b.Run(name, func(b *testing.B) {
		for _, k := range clients {
			k.took = nil
		}
		var sent atomic.Int64
		rate := benchRepeat(len(clients),
			func() bool { return sent.Add(1) <= int64(b.N) },
			func(i int) bool { return send(clients[i]) })
		b.StopTimer()
		b.ReportMetric(rate, "good/s")
		benchTimes(b, clients)
		for _, l := range limits {
			l.report(b, rate)
		}
	})
}

// BenchmarkRequests has two limits for the key set: hello world, and a handler
// that sends the same bytes and headers behind timeouts.
func BenchmarkRequests(b *testing.B) {
	hello := benchHTTP(b, "hello", &http.Server{}, answer{body: "hello"})
	for _, algorithm := range []string{"RS256", "ES256"} {
		b.Run(algorithm, func(b *testing.B) {
			_, clients := newBenchServer(b, "AUTH_ALGORITHM="+algorithm)
			benchDrive(b, "refresh", clients, benchRefresh, benchSigning(algorithm), hello)
		})
	}
	ts, clients := newBenchServer(b)
	a := ts.do("GET", jwksPath, "", nil)
	a.header.Del("Date") // net/http writes its own
	srv := &http.Server{ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute}
	srv.ReadHeaderTimeout = time.Minute
	bare := benchHTTP(b, "bare", srv, a)
	benchDrive(b, "login", clients, benchLogin, benchBcrypt())
	benchDrive(b, "me", clients, benchMe, hello)
	benchDrive(b, "jwks", clients, benchKeySet, bare, hello)
	for _, k := range clients {
		benchSignOn(ts, k)
	}
	benchDrive(b, "authorize", clients, benchAuthorize, hello)
	benchDrive(b, "token", clients, benchToken, benchSigning("RS256"))
	benchDrive(b, "userinfo", clients, benchUserinfo, hello)
}

// BenchmarkFlood asks 200 times a second while 64 others log in without
// pause. The server is a process of its own, because in this one the clients
// would wait for the scheduler together with it.
func BenchmarkFlood(b *testing.B) {
	ts := launch(b, b.TempDir(), []string{"THROTTLE_ENABLED=false"}).client()
	clients := benchUsers(strings.TrimPrefix(ts.url, "http://"), 65)
	benchFlood(b, "alone", clients, benchNothing)
	benchFlood(b, "jwks", clients, benchKeySet)
	benchFlood(b, "me", clients, benchMe)
	benchFlood(b, "refresh", clients, benchRefresh)
}

// benchFlood sends requests of the first client while the others log in.
func benchFlood(b *testing.B, name string, clients []*benchClient, send benchRequest) {
	b.Run(name, func(b *testing.B) {
		probe, flood := clients[0], clients[1:]
		var stop atomic.Bool
		rates := make(chan float64)
		go func() {
			rates <- benchRepeat(len(flood),
				func() bool { return !stop.Load() },
				func(i int) bool { return benchLogin(flood[i]) })
		}()
		ticks := time.NewTicker(5 * time.Millisecond)
		defer ticks.Stop()
		probe.took = nil
		for b.Loop() {
			send(probe)
			<-ticks.C
		}
		stop.Store(true)
		logins := <-rates
		b.ReportMetric(logins, "logins/s")
		benchTimes(b, clients[:1])
		benchBcrypt().report(b, logins)
	})
}

// benchCopies makes copies of a user and its session, with ids, emails and
// tokens of their own.
const benchCopies = `
CREATE TEMP TABLE n AS
	WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) SELECT i FROM n;
CREATE TEMP TABLE u AS SELECT users.* FROM n, users WHERE email = 'u0@example.com';
CREATE TEMP TABLE s AS SELECT sessions.* FROM n, sessions WHERE id = (SELECT min(id) FROM sessions);
UPDATE u SET seq = NULL, id = 'user' || rowid, email = 'user' || rowid, email_key = 'user' || rowid;
UPDATE s SET id = hex(randomblob(16)), user_id = 'user' || rowid;
UPDATE s SET token_hash = randomblob(32), parent_hash = randomblob(32);
INSERT INTO users SELECT * FROM u;
INSERT INTO sessions SELECT * FROM s;
`

// BenchmarkScale compares a nearly empty database with one of PICO_AUTH_SCALE
// users and sessions.
func BenchmarkScale(b *testing.B) {
	many := must(strconv.Atoi(cmp.Or(os.Getenv("PICO_AUTH_SCALE"), "20000")))
	for _, n := range []int{1, many} {
		b.Run(fmt.Sprint(n, "-users"), func(b *testing.B) {
			ts, clients := newBenchServer(b)
			db := must(sql.Open("sqlite", "file:"+ts.dir+"/auth.db?_pragma=busy_timeout(60000)"))
			must(db.Exec(fmt.Sprintf(benchCopies, n)))
			mustOK(db.Close())
			benchDrive(b, "me", clients, benchMe)
			benchDrive(b, "refresh", clients, benchRefresh)
			benchDrive(b, "login", clients, benchLogin)
			benchList(b, "page-first", ts, "?limit=100")
			benchList(b, "page-deep", ts, fmt.Sprint("?limit=100&after=", max(0, n-100)))
			benchList(b, "list", ts, "")
		})
	}
}

// benchList reads a list, and reports by how much the memory in use grew.
func benchList(b *testing.B, name string, ts *testServer, query string) {
	access, _ := ts.mustLogin("admin@pico.local", defaultAdminPassword)
	b.Run(name, func(b *testing.B) {
		var before, now runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		peak := before.HeapInuse
		for b.Loop() {
			req := must(http.NewRequest("GET", ts.url+auth+"/users"+query, nil))
			req.Header.Set("Authorization", "Bearer "+access)
			res := must(noRedirects.Do(req))
			var err error
			for err == nil {
				_, err = io.CopyN(io.Discard, res.Body, 4<<20)
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapInuse)
			}
			res.Body.Close()
			want(b, "status and end of the list", fmt.Sprint(res.StatusCode, err),
				"200 EOF")
		}
		b.ReportMetric(float64(peak-before.HeapInuse)/1e6, "MB-growth")
	})
}
