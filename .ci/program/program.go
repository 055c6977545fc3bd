// This file starts the server under test, and the programs beside it, as
// processes of their own with a directory each, and ends them with their test.
// PICO_AUTH names the program's binary. The tests see nothing but its
// listener and its log.

// Package program runs the server under test and other real programs.
package program

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a program may take to begin, and to end.
const patience = 20 * time.Second

// The account that every server under test has from its configuration.
const (
	AdminEmail    = "root@example.com"
	AdminPassword = "the first of them"
)

// Log is what a process wrote to its standard output and error.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Run starts a command in the directory, with the variables beside those of
// this process. The command and its children end with the test; its log is
// shown when the test fails.
func Run(t *testing.T, dir string, env []string, name string, args ...string) *Log {
	t.Helper()
	log := &Log{}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait() // it says "terminated"
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(name), log)
		}
	})
	return log
}

// Await waits until the condition holds.
func Await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// Answers reports whether a GET of the address answers with this status.
func Answers(address string, status int) bool {
	resp, err := Local().Get(address)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == status
}

// FreePort returns a port of 127.0.0.1 that nobody listens on.
func FreePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// Server is a running server under test.
type Server struct {
	Issuer  string
	Address string // where it listens: host:port of 127.0.0.1
	Log     *Log
}

// Start starts the server with this application.yaml and waits until it is
// healthy. The address, the issuer and what makes tests fast or repeatable come
// from the environment, so that the file can be one that a document shows.
// Further variables of env come last and win. Without an issuer it is localhost
// with this port.
func Start(t *testing.T, port, issuer, yaml string, env ...string) *Server {
	t.Helper()
	binary := os.Getenv("PICO_AUTH")
	if binary == "" {
		t.Fatal("PICO_AUTH does not name the server's binary")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "application.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Server{Issuer: issuer, Address: "127.0.0.1:" + port}
	if issuer == "" {
		s.Issuer = "http://localhost:" + port
	}
	s.Log = Run(t, dir, append([]string{
		"AUTH_ISSUER=" + s.Issuer,
		"AUTH_DATA_DIR=" + filepath.Join(dir, "keys"),
		"AUTH_ADMIN_EMAIL=" + AdminEmail,
		"AUTH_ADMIN_PASSWORD=" + AdminPassword,
		"AUTH_BCRYPT_COST=10",
		"DATABASE_URL=sqlite:///auth.db",
		"SERVER_LISTEN=" + s.Address,
	}, env...), binary, "serve")
	Await(t, "the server", func() bool { return Answers("http://"+s.Address+"/healthz", http.StatusOK) })
	return s
}

// Call sends JSON to a path of the server's API and returns the answer, which
// has to be 200.
func (s *Server) Call(t *testing.T, method, path, bearer string, body any) map[string]any {
	t.Helper()
	sent, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(method, "http://"+s.Address+path, bytes.NewReader(sent))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := Local().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s = %d %v (%v)", method, path, resp.StatusCode, got, err)
	}
	return got
}

// Register makes an account and returns its id.
func (s *Server) Register(t *testing.T, email, password string) string {
	t.Helper()
	made := s.Call(t, "POST", "/api/v1/auth/register", "", map[string]string{
		"email": email, "password": password, "display_name": "Ada Lovelace"})
	return fmt.Sprint(made["id"])
}

// Suspend suspends an account in the name of the first superadmin.
func (s *Server) Suspend(t *testing.T, id string) {
	t.Helper()
	admin := s.Call(t, "POST", "/api/v1/auth/login", "", map[string]string{
		"email": AdminEmail, "password": AdminPassword})
	s.Call(t, "PUT", "/api/v1/auth/users/"+id+"/status", fmt.Sprint(admin["access_token"]),
		map[string]string{"status": "suspended"})
}

// Client is one entry of oidc.clients.
type Client struct {
	ID      string
	Secret  string   // empty for a public client
	Returns []string // redirect_uris and post_logout_redirect_uris
	More    string   // further lines, such as "ask: true"
}

// Clients writes an application.yaml with these clients. JSON is YAML too, so
// texts are quoted as JSON.
func Clients(clients ...Client) string {
	var b strings.Builder
	b.WriteString("oidc:\n  clients:\n")
	for _, c := range clients {
		uris, _ := json.Marshal(c.Returns)
		fmt.Fprintf(&b, "    %s:\n      name: \"The %[1]s\"\n", c.ID)
		if c.Secret != "" {
			fmt.Fprintf(&b, "      secret: %q\n", c.Secret)
		}
		fmt.Fprintf(&b, "      redirect_uris: %s\n      post_logout_redirect_uris: %[1]s\n", uris)
		if c.More != "" {
			fmt.Fprintf(&b, "      %s\n", c.More)
		}
	}
	return b.String()
}

// Certificate makes cert.pem and key.pem for a host in the directory, signed by
// nobody.
func Certificate(t *testing.T, dir, host string) {
	t.Helper()
	out, err := exec.Command("openssl", "req", "-x509", "-nodes",
		"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
		"-subj", "/CN="+host, "-addext", "subjectAltName=DNS:"+host,
		"-keyout", dir+"/key.pem", "-out", dir+"/cert.pem").CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
}

// Block returns the text between ```INFO and ``` of the one Markdown file that
// has it, among those of the project and of this directory.
func Block(t *testing.T, info string) string {
	t.Helper()
	var files, found []string
	for _, pattern := range []string{"*.md", "../../*.md", "../../docs/*.md"} {
		matches, _ := filepath.Glob(pattern) // these patterns are well formed
		files = append(files, matches...)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, after, ok := strings.Cut(string(text), "\n```"+info+"\n"); ok {
			inside, _, _ := strings.Cut(after, "\n```\n")
			found = append(found, inside+"\n")
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d of %v have a block %q; want one", len(found), files, info)
	}
	return found[0]
}
