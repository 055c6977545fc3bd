// This file deploys the server as docs/deploy.md says, with the blocks that it
// prints: as a container, without Docker, as a systemd unit, and behind nginx
// and Caddy.

// Package deploy tests the documented ways to deploy the server.
package deploy

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ci/program"
)

const (
	email    = "ada@example.com"
	password = "battery staple"
	nobody   = 65534 // as the Dockerfile has it
)

// image is what the last stage of the Dockerfile says.
type image struct {
	env          []string
	health, main []string // command lines
}

func readImage(t *testing.T) (im image) {
	t.Helper()
	_, stage, _ := strings.Cut(program.Block(t, "dockerfile deploy"), "FROM scratch\n")
	for line := range strings.Lines(stage) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		var err error
		switch word {
		case "ENV":
			im.env = strings.Fields(rest)
		case "HEALTHCHECK":
			err = json.Unmarshal([]byte(strings.TrimPrefix(rest, "CMD ")), &im.health)
		case "CMD":
			err = json.Unmarshal([]byte(rest), &im.main)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return im
}

// container is a root directory with the binary and /data alone.
type container struct {
	image
	root string
}

// enter takes the root directory, the command and its arguments. Only /data
// can be written, as with docker run --read-only.
const enter = `mount --bind "$1" "$1"
mount --bind "$1/data" "$1/data"
mount -o remount,bind,ro "$1"
exec chroot --userspec=65534:65534 "$@"`

// line is a command line that runs a command inside, with these variables and
// no others.
func (c container) line(env []string, command ...string) []string {
	line := append([]string{"-i"}, env...)
	line = append(line, "unshare", "-m", "sh", "-euc", enter, "sh", c.root)
	return append(line, command...)
}

// ends runs a command inside, which must end, and returns what it wrote.
func (c container) ends(t *testing.T, env []string, command ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "env", c.line(env, command...)...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%v does not end:\n%s", command, out)
	}
	return string(out), err
}

func newContainer(t *testing.T) container {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: only root can make a root directory")
	}
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		t.Skipf("skipped: unshare -m: %v %s", err, out)
	}
	c := container{readImage(t), t.TempDir()}
	binary, err := os.ReadFile(os.Getenv("PICO_AUTH"))
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(c.root, "data")
	for _, err := range []error{
		os.WriteFile(filepath.Join(c.root, "pico-auth"), binary, 0o755),
		os.Mkdir(data, 0o700),
		os.Chown(data, nobody, nobody),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// without is env without a variable.
func without(env []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, name+"=") })
}

// TestDeploy_Container starts the image twice. The first start needs what the
// table demands, and all that is stored is in /data.
func TestDeploy_Container(t *testing.T) {
	c, port := newContainer(t), program.FreePort(t)
	env := append(without(c.env, "SERVER_LISTEN"),
		"SERVER_LISTEN=:"+port,
		"AUTH_ISSUER=https://auth.example.com",
		"AUTH_ADMIN_PASSWORD="+program.AdminPassword)
	if !slices.Contains(c.env, "SERVER_LISTEN=:8100") {
		t.Errorf("the image has %v", c.env)
	}
	for _, name := range []string{"AUTH_ADMIN_PASSWORD", "AUTH_DATA_DIR", "DATABASE_URL"} {
		if out, err := c.ends(t, append(without(env, name), "HOME=/"), c.main...); err == nil {
			t.Errorf("it starts without %s:\n%s", name, out)
		}
	}
	if out, err := c.ends(t, env, c.health...); err == nil {
		t.Errorf("before the start: healthy\n%s", out)
	}
	s := &program.Server{Address: "127.0.0.1:" + port}
	for _, start := range []string{"first", "second"} {
		t.Run(start, func(t *testing.T) {
			s.Log = program.Run(t, "/", nil, "env", c.line(env, c.main...)...)
			program.Await(t, "the container", func() bool {
				return program.Answers("http://"+s.Address+"/healthz", http.StatusOK)
			})
			if out, err := c.ends(t, env, c.health...); err != nil {
				t.Errorf("not healthy: %v\n%s", err, out)
			}
			if start == "first" {
				s.Register(t, email, password)
			}
			s.Call(t, "POST", "/api/v1/auth/login", "", map[string]string{
				"email": email, "password": password})
		})
		if log := s.Log.String(); !strings.Contains(log, "msg=stopped") {
			t.Errorf("after SIGTERM:\n%s", log)
		}
	}
}

var (
	execStart   = regexp.MustCompile(`(?m)^ExecStart=\S+`)
	environment = regexp.MustCompile(`(?m)^Environment=(.*)$`)
)

// TestDeploy_UnitStarts starts the server with the variables that systemd would
// give it.
func TestDeploy_UnitStarts(t *testing.T) {
	unit, dir := program.Block(t, "ini deploy"), t.TempDir()
	specifiers := strings.NewReplacer("%S", dir+"/lib", "%d", dir)
	env := []string{}
	for _, m := range environment.FindAllStringSubmatch(unit, -1) {
		env = append(env, specifiers.Replace(m[1]))
	}
	secret := []byte(program.AdminPassword + "\n")
	if err := os.WriteFile(filepath.Join(dir, "admin-password"), secret, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "lib", "pico-auth"), 0o700); err != nil {
		t.Fatal(err)
	}
	port := program.FreePort(t)
	s := &program.Server{Address: "127.0.0.1:" + port}
	line := append([]string{"-i", "SERVER_LISTEN=localhost:" + port}, env...)
	s.Log = program.Run(t, dir, nil, "env", append(line, os.Getenv("PICO_AUTH"))...)
	program.Await(t, "the service", func() bool {
		return program.Answers("http://"+s.Address+"/healthz", http.StatusOK)
	})
	s.Call(t, "POST", "/api/v1/auth/login", "", map[string]string{
		"email": "admin@pico.local", "password": program.AdminPassword})
	for _, name := range []string{"auth.db", "keys/private.pem"} {
		if _, err := os.Stat(filepath.Join(dir, "lib", "pico-auth", name)); err != nil {
			t.Error(err)
		}
	}
}

// TestDeploy_UnitVerified shows the unit to systemd.
func TestDeploy_UnitVerified(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("skipped: no systemd-analyze in PATH")
	}
	file := filepath.Join(t.TempDir(), "pico-auth.service")
	text := execStart.ReplaceAllString(program.Block(t, "ini deploy"), "ExecStart="+os.Getenv("PICO_AUTH"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemd-analyze", "verify", "--man=no", file).CombinedOutput()
	// An unknown or misspelt line is a complaint, but not an error.
	if err != nil || strings.Contains(string(out), "pico-auth.service") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// from returns a client whose connections come from this address of loopback.
func from(address string) *http.Client {
	client := program.Local()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	client.Transport.(*http.Transport).DialContext =
		func(ctx context.Context, network, to string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(to)
			if err != nil {
				return nil, err
			}
			return dialer.DialContext(ctx, network, "127.0.0.1:"+port)
		}
	return client
}

// login logs in with a forged X-Forwarded-For.
func login(t *testing.T, client *http.Client, address, password string) *http.Response {
	t.Helper()
	body, _ := json.Marshal(map[string]string{"email": program.AdminEmail, "password": password})
	r, err := http.NewRequest("POST", address+"/api/v1/auth/login", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Forwarded-For", "192.0.2.1")
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

// TestDeploy_Proxies: through each proxy people log in over TLS, and the log
// has the client's address, not the proxy's and not the one that the client
// claims to have.
func TestDeploy_Proxies(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, dir, port, conf string){
		"caddy": program.StartCaddy,
		"nginx": program.StartNginx,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skip("skipped: no " + name + " in PATH")
			}
			dir, here, front := t.TempDir(), program.FreePort(t), program.FreePort(t)
			address := "https://auth.example.com:" + front
			program.Certificate(t, dir, "auth.example.com")
			conf := strings.ReplaceAll(program.Block(t, name+" deploy"), ":8100", ":"+here)
			start(t, dir, front, conf)
			s := program.Start(t, here, address, "", "SERVER_TRUSTED_PROXIES=127.0.0.1/32")
			program.Await(t, name, func() bool { return program.Answers(address+"/healthz", http.StatusOK) })
			isInFront(t, s)
		})
	}
}

// isInFront checks what a client of the issuer gets, and what the server knows
// of the client.
func isInFront(t *testing.T, s *program.Server) {
	t.Helper()
	client := from("127.0.0.5")
	good := login(t, client, s.Issuer, program.AdminPassword)
	hsts := good.Header["Strict-Transport-Security"]
	if good.StatusCode != http.StatusOK || len(hsts) != 1 {
		t.Errorf("login: %s, Strict-Transport-Security %q", good.Status, hsts)
	}
	if wrong := login(t, client, s.Issuer, "wrong"); wrong.StatusCode != http.StatusUnauthorized {
		t.Errorf("wrong password: %s", wrong.Status)
	}
	failed := regexp.MustCompile(` msg=login\.failed .*\bip=127\.0\.0\.5 `)
	program.Await(t, failed.String(), func() bool { return failed.MatchString(s.Log.String()) })

	resp, err := client.Get(s.Issuer + "/.well-known/openid-configuration")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var discovery struct{ Issuer string }
	if err := json.NewDecoder(resp.Body).Decode(&discovery); err != nil || discovery.Issuer != s.Issuer {
		t.Errorf("discovery names %q (%v); want %s", discovery.Issuer, err, s.Issuer)
	}
}
