package main

// This file is the OpenID clients: programs that send their users here to log
// in. They stand in application.yaml under oidc.clients, so that an operator
// reviews them like any other setting; nobody can add one over HTTP. Here is
// what a client is, what its settings may be, and how redirect URIs, secrets
// and groups are compared.

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
)

// clientsSection holds a section for each client, named by its client_id.
const clientsSection = "oidc.clients"

// oidcClient is one client (RFC 6749 section 2). One without a secret is
// public: a program on the machine of its user, or a script in a browser.
type oidcClient struct {
	id           string
	place        string // in the configuration, for faults
	settings     []*setting
	name         string // shown on the pages
	secret       string
	secretFile   string
	redirectURIs []string
	logoutURIs   []string // where a logout may return to
	groups       []string // whoever logs in there needs one of them; none: everybody may
	pkce         string   // required or optional
	audience     []string // of its access tokens, besides the issuer
	ask          bool     // show "Continue as" each time
	refresh      bool     // it gets refresh tokens
}

// setting is where the client stands in the configuration.
func (c *oidcClient) setting() string { return clientsSection + "." + c.id }

// rows is the table of a client's settings. They have no environment
// variables, but ${ENV:NAME} works in them as everywhere.
func (c *oidcClient) rows() []settingRow {
	prefix := c.setting() + "."
	return []settingRow{
		{prefix + "name", &c.name, c.id, checkNotEmpty},
		{prefix + "secret", secretText{&c.secret}, "", checkClientSecret},
		{prefix + "secret_file", &c.secretFile, "", checkNotEmpty},
		{prefix + "redirect_uris", commaList{&c.redirectURIs}, "", checkRedirectURIs},
		{prefix + "post_logout_redirect_uris", commaList{&c.logoutURIs}, "", checkRedirectURIs},
		{prefix + "groups", commaList{&c.groups}, "", checkNothing},
		{prefix + "pkce", &c.pkce, "required", checkOneOf("required", "optional")},
		{prefix + "audience", commaList{&c.audience}, "", checkNothing},
		{prefix + "ask", &c.ask, "false", checkBool},
		{prefix + "refresh", &c.refresh, "true", checkBool},
	}
}

// oidcClients are the clients by their ids.
type oidcClients map[string]*oidcClient

// declare adds the client whose section has this key and stands at place in
// the file. It returns the settings that the section may have: none for
// clientsSection itself.
func (all oidcClients) declare(key, place string) []*setting {
	id, isClient := strings.CutPrefix(key, clientsSection+".")
	if !isClient {
		return nil
	}
	c := &oidcClient{id: id, place: place}
	for _, row := range c.rows() {
		s := &setting{settingRow: row, text: row.fallback}
		s.store()
		c.settings = append(c.settings, s)
	}
	all[id] = c
	return c.settings
}

// clientID is what service tokens may be called, too: both are client_ids of
// the token endpoint.
var clientID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

// ids are the client_ids, sorted.
func (all oidcClients) ids() []string { return slices.Sorted(maps.Keys(all)) }

// shownID is a client_id for the log, unless it can be a secret that somebody
// wrote in its place.
func shownID(id string) string {
	if len(id) >= 32 {
		return "(long enough to be a secret)"
	}
	return cleanText(id)
}

// check calls fault for what the settings of a client must not be together. It
// reads secret files. reserved are the issuer and the audience of other tokens.
func (all oidcClients) check(reserved []string, fault func(string)) {
	for _, c := range all {
		reserved = append(reserved, c.audience...)
	}
	for _, id := range all.ids() {
		c := all[id]
		c.check(reserved, func(text string) { fault(c.place + ": " + c.setting() + text) })
	}
}

// checkBeside compares the clients with two settings of other sections.
func (all oidcClients) checkBeside(algorithm string, anybodyRegisters bool, fault, note func(string)) {
	open := ""
	for _, id := range all.ids() {
		if len(all[id].groups) == 0 {
			open += " " + id
		}
	}
	if open != "" && anybodyRegisters {
		note("anybody can register here (auth.registration_enabled, AUTH_REGISTRATION_ENABLED) " +
			"and then log in to these clients, which have no groups:" + open)
	}
	if len(all) > 0 && strings.HasPrefix(algorithm, "ML-DSA") {
		fault("auth.algorithm (AUTH_ALGORITHM) must be RS256 or ES256 while there are clients in " +
			clientsSection + ": none of them can verify " + algorithm)
	}
}

// check is the part of one client; fault puts its name in front.
func (c *oidcClient) check(reserved []string, fault func(string)) {
	if err := checkClientID(c.id); err != nil {
		fault(" " + err.Error())
	}
	// The audience of id_tokens is the client's name. They would be taken for
	// other tokens if that had the same.
	if slices.Contains(reserved, c.id) {
		fault(" must not be called like the issuer or an audience")
	}
	if !c.written("redirect_uris") {
		fault(".redirect_uris is missing; it must list where the client takes its users back")
	}
	if c.written("secret") && c.written("secret_file") {
		fault(".secret and .secret_file are both set; keep one")
	} else if c.secretFile != "" {
		data, err := os.ReadFile(c.secretFile)
		err = errors.Unwrap(err) // without the path, which may be a secret in the wrong place
		c.secret = strings.TrimRight(string(data), "\r\n")
		if err == nil {
			err = checkClientSecret(c.secret)
		}
		if err != nil {
			fault(".secret_file cannot be used: " + err.Error())
		}
	}
	if c.pkce == "optional" && !c.written("secret") && !c.written("secret_file") {
		fault(".pkce must be required, because the client has no secret")
	}
}

// written reports whether the file has a setting of the client, whether its
// value is allowed or not: one fault must not cause another.
func (c *oidcClient) written(name string) bool {
	return slices.ContainsFunc(c.settings, func(s *setting) bool {
		return s.source != "" && strings.HasSuffix(s.key, "."+name)
	})
}

// dump writes the section of the clients below the name of the section oidc.
// Settings without a value are left out, because the file must not have them.
func (all oidcClients) dump(w io.Writer, section string) {
	if section != "oidc" || len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "  clients:\n")
	for _, id := range all.ids() {
		fmt.Fprintf(w, "    %q:\n", id)
		for _, s := range all[id].settings {
			if s.text != "" {
				s.print(w, "      ", strings.TrimPrefix(s.key, clientsSection+"."+id+"."))
			}
		}
	}
}

func checkClientID(id string) error {
	if !clientID.MatchString(id) {
		return errors.New("must be called by 1 to 100 letters, digits, dots, dashes and underscores")
	}
	return nil
}

// checkClientSecret leaves only characters that form-encoding does not change:
// some clients encode their secret in the Authorization header, as RFC 6749
// section 2.3.1 demands, and some do not.
func checkClientSecret(text string) error {
	if !clientSecret.MatchString(text) {
		return errors.New("must have at least 32 characters, all of them letters, digits, dashes or " +
			"underscores; `pico-auth client secret NAME` makes one")
	}
	return nil
}

var clientSecret = regexp.MustCompile(`^[A-Za-z0-9_-]{32,}$`)

// checkRedirectURIs refuses what a code must never be sent to (RFC 9700
// section 4.1, RFC 8252 section 7): plain http beyond this machine, scripts,
// patterns, and URIs that two parsers could read differently.
func checkRedirectURIs(text string) error {
	items := commaItems(text)
	bad, which := slices.IndexFunc(items, isBadRedirect), ""
	if bad >= 0 {
		which = fmt.Sprintf(", which number %d is not", bad+1)
	} else if len(items) > 0 {
		return nil
	}
	return errors.New("must list exact URIs such as https://app.example.com/callback" + which + ": with " +
		"no wildcard, user or fragment; http is for localhost alone, and a scheme of an app has a dot")
}

func isBadRedirect(uri string) bool {
	u, err := url.Parse(uri)
	if err != nil || strings.ContainsAny(uri, "*#\\@ ") || strings.ContainsFunc(uri, isControl) {
		return true
	}
	web := u.Scheme == "https" && u.Hostname() != ""
	local := u.Scheme == "http" && loopbackHost(u.Hostname())
	private := strings.Contains(u.Scheme, ".")
	return !web && !local && !private
}

// loopbackPort splits a loopback URI at its port.
var loopbackPort = regexp.MustCompile(`^(http://(?:127\.0\.0\.1|\[::1\]|localhost)):\d{1,5}(/.*)?$`)

// registered reports whether a URI is one of the list, byte for byte (RFC 9700
// section 4.1.3). A loopback URI that is listed without a port may have any,
// because a program on a user's machine cannot choose one ahead (RFC 8252
// section 7.3). The port is cut out of the text, which is never parsed and
// printed again: parsers differ.
func registered(list []string, uri string) bool {
	if m := loopbackPort.FindStringSubmatch(uri); m != nil && slices.Contains(list, m[1]+m[2]) {
		return true
	}
	return slices.Contains(list, uri)
}

// public reports whether the client cannot keep a secret.
func (c *oidcClient) public() bool { return c.secret == "" }

// asks reports whether the user is asked before a code goes to this URI. Any
// program on a user's machine can pretend to be a public client that returns
// there (RFC 8252 section 8.6).
func (c *oidcClient) asks(redirectURI string) bool {
	return c.ask || (c.public() && !strings.HasPrefix(redirectURI, "https:"))
}

// hasSecret compares in a time that does not depend on the secret.
func (c *oidcClient) hasSecret(secret string) bool {
	want, got := sha256.Sum256([]byte(c.secret)), sha256.Sum256([]byte(secret))
	return !c.public() && subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// admits reports whether a user may log in to the client.
func (c *oidcClient) admits(u user) bool {
	return len(c.groups) == 0 || slices.ContainsFunc(u.groupNames(), func(name string) bool {
		return slices.Contains(c.groups, name)
	})
}

// audienceFor returns the audience of an access token for a resource (RFC 8707
// section 2), or for every one when none is named; false for a foreign one.
// Clients write a slash at its end or not.
func (c *oidcClient) audienceFor(resource string) ([]string, bool) {
	if resource == "" {
		return c.audience, true
	}
	for _, a := range c.audience {
		if strings.TrimSuffix(a, "/") == strings.TrimSuffix(resource, "/") {
			return []string{a}, true
		}
	}
	return nil, false
}

// origins are the origins of the redirect URIs of public clients, whose scripts
// may call the token endpoint.
func (all oidcClients) origins() (origins []string) {
	for _, c := range all {
		for _, uri := range c.redirectURIs {
			if u, err := url.Parse(uri); c.public() && err == nil && u.Host != "" {
				origins = append(origins, u.Scheme+"://"+u.Host)
			}
		}
	}
	return origins
}
