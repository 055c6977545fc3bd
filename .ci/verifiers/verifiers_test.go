// Package verifiers shows tokens of a built server to the programs of other
// people that verify them, which know nothing of this one but the address of
// its key set. It is a module of its own, because the server needs none of
// these. Environment: PICO_AUTH is the server's binary, JOSE a directory with
// verify.mjs and the npm package jose, PYTHON a Python with PyJWT. What is
// missing is skipped, and so is an algorithm that the build lacks.
package verifiers

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
	"github.com/coreos/go-oidc/v3/oidc"
)

const email = "admin@pico.local"

// issuer is a server, and what a verifier is told of it.
type issuer struct{ url, audience, algorithm string }

func (from issuer) keys() string { return from.url + "/api/v1/auth/jwks" }

// verifier returns the email in a token that it accepts.
type verifier struct {
	name       string
	algorithms string
	verify     func(t *testing.T, from issuer, token string) (email string, err error)
}

var verifiers = []verifier{
	{"go-oidc", "RS256 ES256", verifyGoOIDC},
	{"README Go", "RS256 ES256", verifyReadmeGo},
	{"jose", "RS256 ES256", verifyJose},
	{"PyJWT", "RS256 ES256", verifyPyJWT},
	{"circl", "ML-DSA-65 ML-DSA-87", verifyCircl},
}

// Each verifier accepts a token of the server and refuses it with other claims.
func TestVerifiers(t *testing.T) {
	for _, algorithm := range strings.Fields("RS256 ES256 ML-DSA-65 ML-DSA-87") {
		t.Run(algorithm, func(t *testing.T) {
			from, _ := start(t, t.TempDir(), algorithm, freePort(t))
			token := login(t, from)
			header, rest, _ := strings.Cut(token, ".")
			payload, signature, _ := strings.Cut(rest, ".")
			text := string(decode(payload))
			if !strings.Contains(string(decode(header)), `"alg":"`+algorithm+`"`) {
				t.Fatalf("the header is %s", decode(header))
			}
			raised := encode([]byte(strings.Replace(text, email, "other@pico.local", 1)))
			for _, v := range verifiers {
				if !strings.Contains(v.algorithms, algorithm) {
					continue
				}
				t.Run(v.name, func(t *testing.T) {
					got, err := v.verify(t, from, token)
					if err != nil || got != email {
						t.Errorf("the token is %q, %v; want %q", got, err, email)
					}
					_, err = v.verify(t, from, header+"."+raised+"."+signature)
					if err == nil {
						t.Error("other claims are accepted")
					}
				})
			}
		})
	}
}

// While the server changes over to ML-DSA, a member of kty AKP in the key set
// does not keep these verifiers from the key that they know.
func TestVerifiers_BesideAnAKPKey(t *testing.T) {
	dir := t.TempDir()
	from, stop := start(t, dir, "RS256", freePort(t))
	token := login(t, from)
	stop()
	start(t, dir, "ML-DSA-65", strings.TrimPrefix(from.url, "http://localhost:"))
	for !strings.Contains(keySet(from), "AKP") {
		time.Sleep(10 * time.Millisecond) // the next key is made in the background
	}
	for _, v := range verifiers[:4] {
		t.Run(v.name, func(t *testing.T) {
			if got, err := v.verify(t, from, token); err != nil || got != email {
				t.Errorf("the token is %q, %v; want %q", got, err, email)
			}
		})
	}
}

// --- the verifiers ---

func verifyGoOIDC(t *testing.T, from issuer, token string) (string, error) {
	config := &oidc.Config{ClientID: from.audience, SupportedSigningAlgs: []string{from.algorithm}}
	keys := oidc.NewRemoteKeySet(t.Context(), from.keys())
	verified, err := oidc.NewVerifier(from.url, keys, config).Verify(t.Context(), token)
	if err != nil {
		return "", err
	}
	var claims struct{ Email string }
	err = verified.Claims(&claims)
	return claims.Email, err
}

func verifyReadmeGo(t *testing.T, from issuer, token string) (string, error) {
	const program = `package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/coreos/go-oidc/v3/oidc"
)

func main() {
	ctx, token := context.Background(), os.Args[1]
%s	if err != nil {
		log.Fatal(err)
	}
	var claims struct{ Email string }
	verified.Claims(&claims)
	fmt.Println(claims.Email)
}
`
	file := t.TempDir() + "/main.go"
	return shown(from, "go", program, file, "go", "run", file, token)
}

func verifyJose(t *testing.T, from issuer, token string) (string, error) {
	const program = `import { createRemoteJWKSet, jwtVerify } from 'jose'
const token = process.argv[2]
%sconsole.log(claims.email)
`
	dir := os.Getenv("JOSE")
	if dir == "" {
		t.Skip("JOSE names no directory with the npm package jose")
	}
	file := dir + "/verify.mjs"
	return shown(from, "js", program, file, "node", file, token)
}

func verifyPyJWT(t *testing.T, from issuer, token string) (string, error) {
	const program = `import sys
import jwt
token = sys.argv[1]
%sprint(claims["email"])
`
	python := os.Getenv("PYTHON")
	if python == "" {
		t.Skip("PYTHON names no Python with PyJWT")
	}
	file := t.TempDir() + "/verify.py"
	return shown(from, "python", program, file, python, file, token)
}

// shown puts the README's lines in a language into a program that prints the
// email, writes it to a file and runs a command. In the lines the issuer and
// the algorithm are those of the server.
func shown(from issuer, language, program, file string, command ...string) (string, error) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		return "", err
	}
	_, lines, _ := strings.Cut(string(readme), "```"+language+" verify\n")
	lines, _, found := strings.Cut(lines, "```\n")
	if !found {
		return "", errors.New("the README shows no such lines")
	}
	lines = strings.ReplaceAll(lines, "http://localhost:8100", from.url)
	lines = strings.ReplaceAll(lines, "RS256", from.algorithm)
	if err := os.WriteFile(file, fmt.Appendf(nil, program, lines), 0o600); err != nil {
		return "", err
	}
	out, err := exec.Command(command[0], command[1:]...).Output()
	if failed := new(exec.ExitError); errors.As(err, &failed) {
		err = fmt.Errorf("%w: %s", err, failed.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// verifyCircl does by hand what no library with a key set does yet: it finds
// the key by kid, computes that kid anew, and verifies the signature.
func verifyCircl(_ *testing.T, from issuer, token string) (string, error) {
	parts := strings.Split(token, ".")
	var header struct{ Alg, Kid string }
	var claims struct{ Iss, Aud, Email string }
	var set struct {
		Keys []struct{ Kid, Kty, Alg, Pub string }
	}
	err := errors.Join(
		json.Unmarshal(decode(parts[0]), &header),
		json.Unmarshal(decode(parts[1]), &claims),
		json.Unmarshal([]byte(keySet(from)), &set))
	if err != nil || claims.Iss != from.url || claims.Aud != from.audience {
		return "", fmt.Errorf("the token is for somebody else: %v, %w", claims, err)
	}
	for _, key := range set.Keys {
		print := sha256.Sum256(fmt.Appendf(nil, `{"alg":%q,"kty":"AKP","pub":%q}`, key.Alg, key.Pub))
		if key.Kid != header.Kid || key.Kid != encode(print[:]) || key.Kty != "AKP" || key.Alg != header.Alg {
			continue
		}
		input, signature := []byte(parts[0]+"."+parts[1]), decode(parts[2])
		if verifyMLDSA(key.Alg, decode(key.Pub), input, signature) {
			return claims.Email, nil
		}
	}
	return "", errors.New("no key of the key set verifies the token")
}

func verifyMLDSA(algorithm string, public, input, signature []byte) bool {
	if algorithm == "ML-DSA-65" {
		key := new(mldsa65.PublicKey)
		return key.UnmarshalBinary(public) == nil && mldsa65.Verify(key, input, nil, signature)
	}
	key := new(mldsa87.PublicKey)
	return key.UnmarshalBinary(public) == nil && mldsa87.Verify(key, input, nil, signature)
}

// --- the server ---

// start runs the server on a port, with its files in dir.
func start(t *testing.T, dir, algorithm, port string) (from issuer, stop func()) {
	binary := os.Getenv("PICO_AUTH")
	if binary == "" {
		t.Skip("PICO_AUTH names no server")
	}
	from = issuer{"http://localhost:" + port, "pico-bot", algorithm}
	server := exec.Command(binary)
	server.Dir = dir
	server.Env = []string{
		"HOME=" + dir,
		"AUTH_ALGORITHM=" + algorithm,
		"AUTH_ISSUER=" + from.url,
		"SERVER_LISTEN=localhost:" + port,
	}
	log, err := server.StderrPipe()
	if err == nil {
		err = server.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		server.Process.Signal(os.Interrupt)
		server.Wait()
	})
	t.Cleanup(stop)
	seen := ""
	for lines := bufio.NewScanner(log); lines.Scan(); {
		seen += lines.Text() + "\n"
		if strings.Contains(seen, "msg=listening") {
			go io.Copy(io.Discard, log)
			return from, stop
		}
	}
	if strings.Contains(seen, "needs a program that was built with") {
		t.Skip(seen)
	}
	t.Fatal(seen)
	return from, stop
}

func freePort(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// login returns an access token of the admin that a new server has.
func login(t *testing.T, from issuer) string {
	body := strings.NewReader(`{"email":"` + email + `","password":"admin"}`)
	res, err := http.Post(from.url+"/api/v1/auth/login", "application/json", body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var tokens struct {
		Access string `json:"access_token"`
	}
	json.NewDecoder(res.Body).Decode(&tokens)
	return tokens.Access
}

func keySet(from issuer) string {
	res, err := http.Get(from.keys())
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return string(body)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func decode(s string) []byte {
	b, _ := base64.RawURLEncoding.DecodeString(s)
	return b
}
