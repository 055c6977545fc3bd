// This file holds what the clients that people use do with the server: the Go
// libraries, openid-client of Node, and oauth2-proxy. Nothing here looks into
// the server; what these clients accept is the measure.

// Package interop tests the server with OpenID Connect clients of others.
package interop

import (
	"context"
	"crypto/rand"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"ci/program"
)

const (
	email    = "ada@example.com"
	password = "battery staple"
	callback = "http://127.0.0.1:9/callback" // never asked: the tests read Location
	bye      = "http://127.0.0.1:9/bye"
	audience = "https://api.example.com"
)

var formAction = regexp.MustCompile(`<form[^>]*\baction="([^"]*)"`)

// browse returns a client that keeps cookies and does not leave for the
// callback: it returns the redirect that would.
func browse() *http.Client {
	c := program.Local()
	c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}
	return c
}

// visit opens an address and fills in the login form, if one is shown. The
// answer is what a browser shows in the end, or the redirect to callback.
func visit(t *testing.T, browser *http.Client, address string) (*http.Response, string) {
	t.Helper()
	resp, page := read(t)(browser.Get(address))
	form := formAction.FindStringSubmatch(page)
	if form == nil {
		return resp, page
	}
	action, err := resp.Request.URL.Parse(html.UnescapeString(form[1]))
	if err != nil {
		t.Fatal(err)
	}
	return read(t)(browser.PostForm(action.String(), url.Values{"email": {email}, "password": {password}}))
}

// read returns an answer with its body.
func read(t *testing.T) func(*http.Response, error) (*http.Response, string) {
	return func(resp *http.Response, err error) (*http.Response, string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
}

// newSecret is one that the server takes: 52 characters.
func newSecret() string { return rand.Text() + rand.Text() }

// start runs the server with one client and one user.
func start(t *testing.T, c program.Client) *program.Server {
	t.Helper()
	s := program.Start(t, program.FreePort(t), "", program.Clients(c))
	s.Register(t, email, password)
	return s
}

func TestInterop_GoOIDC(t *testing.T) {
	styles := map[string]oauth2.AuthStyle{
		"auto-detect": oauth2.AuthStyleAutoDetect,
		"basic":       oauth2.AuthStyleInHeader,
		"post":        oauth2.AuthStyleInParams,
	}
	for name, style := range styles {
		t.Run(name, func(t *testing.T) {
			client := program.Client{ID: "notes", Secret: newSecret(), Returns: []string{callback}}
			signInWithGo(t, start(t, client), client, style)
		})
	}
}

// signInWithGo goes through everything that a Go application does: discovery,
// the code flow with PKCE and nonce, the tokens, userinfo, refresh.
func signInWithGo(t *testing.T, s *program.Server, c program.Client, style oauth2.AuthStyle) {
	ctx := oidc.ClientContext(t.Context(), program.Local())
	provider, err := oidc.NewProvider(ctx, s.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	endpoint := provider.Endpoint()
	endpoint.AuthStyle = style
	config := oauth2.Config{
		ClientID:     c.ID,
		ClientSecret: c.Secret,
		Endpoint:     endpoint,
		RedirectURL:  callback,
		Scopes:       []string{oidc.ScopeOpenID, "email", "profile", "groups"},
	}
	state, nonce, verifier := rand.Text(), rand.Text(), oauth2.GenerateVerifier()
	request := config.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier))
	resp, page := visit(t, browse(), request)
	back, err := resp.Location()
	if err != nil {
		t.Fatalf("the login ends with %s: %v\n%s", resp.Status, err, page)
	}
	if got := back.Query(); got.Get("state") != state || got.Get("iss") != s.Issuer {
		t.Fatalf("redirected to %s", back)
	}
	if style == oauth2.AuthStyleAutoDetect {
		wrongStyleFirst(ctx, t, config, back.Query().Get("code"), verifier)
	}
	tokens, err := config.Exchange(ctx, back.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	first := verifyTokens(ctx, t, provider, c.ID, tokens)
	if first["nonce"] != nonce {
		t.Errorf("nonce %v; want %s", first["nonce"], nonce)
	}
	old := tokens.RefreshToken
	tokens.Expiry = time.Now() // x/oauth2 refreshes what has run out
	fresh, err := config.TokenSource(ctx, tokens).Token()
	if err != nil {
		t.Fatal(err)
	}
	if fresh.RefreshToken == old {
		t.Error("the refresh token stayed the same")
	}
	second := verifyTokens(ctx, t, provider, c.ID, fresh)
	for _, claims := range []map[string]any{first, second} {
		maps.DeleteFunc(claims, func(name string, _ any) bool {
			return slices.Contains([]string{"iat", "exp", "jti", "nonce", "at_hash"}, name)
		})
	}
	if fmt.Sprint(first) != fmt.Sprint(second) {
		t.Errorf("claims after the refresh:\n%v\nbefore:\n%v", second, first)
	}
	ctx = oidc.ClientContext(t.Context(), program.Local())
	if _, err := config.TokenSource(ctx, &oauth2.Token{RefreshToken: old}).Token(); err == nil {
		t.Error("the old refresh token still works")
	}
}

// wrongStyleFirst does what x/oauth2's auto-detection does with a server that
// takes one style only: the same code is presented again after a refusal.
func wrongStyleFirst(ctx context.Context, t *testing.T, config oauth2.Config, code, verifier string) {
	t.Helper()
	config.ClientSecret = "wrong" + config.ClientSecret
	if _, err := config.Exchange(ctx, code, oauth2.VerifierOption(verifier)); err == nil {
		t.Error("a wrong secret was taken")
	}
}

// verifyTokens verifies an answer of the token endpoint as go-oidc does, asks
// userinfo, and returns the claims of the id_token.
func verifyTokens(
	ctx context.Context, t *testing.T, p *oidc.Provider, id string, tokens *oauth2.Token,
) map[string]any {
	t.Helper()
	raw, _ := tokens.Extra("id_token").(string)
	token, err := p.Verifier(&oidc.Config{ClientID: id}).Verify(ctx, raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := token.VerifyAccessToken(tokens.AccessToken); err != nil {
		t.Error(err)
	}
	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	info, err := p.UserInfo(ctx, oauth2.StaticTokenSource(tokens))
	if err != nil {
		t.Fatal(err)
	}
	var more map[string]any
	if err := info.Claims(&more); err != nil {
		t.Fatal(err)
	}
	for _, claim := range []string{"sub", "email", "name", "preferred_username", "groups", "email_verified"} {
		if fmt.Sprint(claims[claim]) != fmt.Sprint(more[claim]) {
			t.Errorf("%s is %v in the id_token and %v at userinfo", claim, claims[claim], more[claim])
		}
	}
	if claims["email"] != email || claims["name"] == "" || len(token.Audience) != 1 {
		t.Errorf("claims %v", claims)
	}
	if info.EmailVerified || claims["email_verified"] != nil {
		t.Error("the email of somebody who registered counts as verified")
	}
	return claims
}

func TestInterop_OpenIDClient(t *testing.T) {
	if _, err := os.Stat("node_modules"); err != nil {
		t.Skip("npm ci has not run here; it needs Node.js 20 or newer")
	}
	for _, method := range []string{"basic", "post", "none"} {
		t.Run(method, func(t *testing.T) {
			returns := []string{callback, bye}
			client := program.Client{ID: "notes", Returns: returns, More: "audience: " + audience}
			if method != "none" {
				client.Secret = newSecret()
			}
			s := start(t, client)
			cmd := exec.CommandContext(t.Context(), "node", "openid-client.mjs")
			cmd.Env = append(os.Environ(),
				"ISSUER="+s.Issuer,
				"ID="+client.ID,
				"SECRET="+client.Secret,
				"METHOD="+method,
				"CALLBACK="+callback,
				"BYE="+bye,
				"AUDIENCE="+audience,
				"EMAIL="+email,
				"PASSWORD="+password)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
