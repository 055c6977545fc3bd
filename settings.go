package main

// This file is what a setting is and what its text may be: the row of a
// table, how the text becomes a value, how it is shown, and the checks. It is
// pure: it opens no file and reads no environment. No error shows a value,
// because it may be a secret.

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setting is a row of the table and what was read for it; at first that is
// the default.
type setting struct {
	settingRow
	env    string // the environment variable: AUTH_ISSUER for auth.issuer; "" if there is none
	text   string // as written
	source string // "" for the default, else application.yaml:13 or AUTH_ISSUER
}

// settingRow says what a setting is. check gets the text of a value and
// returns what is allowed when the text is not; it begins with "must".
type settingRow struct {
	key      string // section.name, as in the file
	target   any    // points to the field; its type decides how the text is read
	fallback string // the text of the default
	check    func(text string) error
}

// Targets besides *string, *bool, *int, *[]string and *[]netip.Prefix.
type (
	secretText struct{ field *string }   // never shown
	commaList  struct{ field *[]string } // items that may contain blanks
	span       struct {                  // written as a whole number of units
		field *time.Duration
		unit  time.Duration
	}
)

// store puts the text into the config. The text has passed check, so every
// conversion that is needed succeeds.
func (s *setting) store() {
	n, _ := strconv.Atoi(s.text)
	switch t := s.target.(type) {
	case *string:
		*t = s.text
	case secretText:
		*t.field = s.text
	case *bool:
		*t = boolWords[strings.ToLower(s.text)]
	case *int:
		*t = n
	case span:
		*t.field = time.Duration(n) * t.unit
	case *[]string:
		*t = listItems(s.text)
	case commaList:
		*t.field = commaItems(s.text)
	case *[]netip.Prefix:
		*t, _ = parsePrefixes(s.text)
	default:
		panic(s.key + " has a target of an unknown type")
	}
}

// isList reports whether the value may be a sequence in the file.
func (s *setting) isList() bool {
	switch s.target.(type) {
	case *[]string, commaList, *[]netip.Prefix:
		return true
	}
	return false
}

// shown is the value as YAML; a list is one text, as in the environment. A
// secret is redacted.
func (s *setting) shown() string {
	switch s.target.(type) {
	case *bool, *int, span:
		return s.text
	case secretText:
		if s.text != "" {
			return "<redacted>"
		}
	}
	return strconv.Quote(s.text)
}

// print writes the setting as a line of YAML with its source.
func (s *setting) print(w io.Writer, indent, name string) {
	fmt.Fprintf(w, "%s%-34s # %s\n", indent, name+": "+s.shown(), cmp.Or(s.source, "default"))
}

// at names the setting for faults and notes, with the source of its value:
// "application.yaml:13: auth.issuer (AUTH_ISSUER)" from the file,
// "AUTH_ISSUER (auth.issuer)" from the environment.
func (s *setting) at() string {
	name := s.key
	if s.env != "" {
		name += " (" + s.env + ")"
	}
	switch {
	case s.source == "":
		return name
	case s.env != "" && strings.HasPrefix(s.source, s.env):
		return s.source + " (" + s.key + ")"
	}
	return s.source + ": " + name
}

// --- how texts are read ---

// listItems splits a list at commas and blanks.
func listItems(text string) []string {
	return strings.Fields(strings.ReplaceAll(text, ",", " "))
}

// commaItems splits a list at commas.
func commaItems(text string) (items []string) {
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// boolWords are the texts of booleans in lower case. YAML 1.1 and so the
// Python server take yes and on too.
var boolWords = map[string]bool{
	"true":  true,
	"yes":   true,
	"on":    true,
	"1":     true,
	"false": false,
	"no":    false,
	"off":   false,
	"0":     false,
}

// parsePrefixes refuses ::ffff:10.0.0.0/104, which would match nothing: IPv4
// addresses of clients are compared in their short form. A single address
// needs its /32: /8 by mistake would let sixteen million hosts choose the
// address that is throttled.
func parsePrefixes(text string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, item := range listItems(text) {
		prefix, err := netip.ParsePrefix(item)
		if err != nil || prefix.Addr().Is4In6() {
			return nil, errors.New("must list CIDRs such as 10.0.0.0/8 or 127.0.0.1/32")
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

// --- what is allowed ---

// checkNothing is for texts that can be wrong only beside another setting, if
// at all; see comparePairs.
func checkNothing(string) error { return nil }

// checkNotEmpty is for texts without which the server cannot work.
func checkNotEmpty(text string) error {
	if text == "" {
		return errors.New("must be set")
	}
	return nil
}

func checkBool(text string) error {
	if _, known := boolWords[strings.ToLower(text)]; !known {
		return errors.New("must be true or false")
	}
	return nil
}

// checkTrue is for auth_client.enabled: the Python server can be left without
// a guard, this one cannot.
func checkTrue(text string) error {
	if !boolWords[strings.ToLower(text)] {
		return errors.New("must be true: this server always guards its own endpoints")
	}
	return nil
}

// checkNumber takes digits alone: "15m" would be a guess at the unit, which is
// part of the key.
func checkNumber(lowest, highest int) func(string) error {
	return func(text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < lowest || n > highest {
			return fmt.Errorf("must be a whole number from %d to %d", lowest, highest)
		}
		return nil
	}
}

// checkOneOf takes one of a few words.
func checkOneOf(allowed ...string) func(string) error {
	return func(text string) error {
		if !slices.Contains(allowed, text) {
			return errors.New("must be " + strings.Join(allowed, " or "))
		}
		return nil
	}
}

// checkIssuer follows OpenID Connect Discovery 1.0 section 3 and RFC 8414
// section 2: a URL without query and fragment. A user or password in it would
// stand in every token.
func checkIssuer(text string) error {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" ||
		u.User != nil || strings.ContainsAny(text, "?# ") {
		return errors.New("must be an http or https URL with a host and without user, query and " +
			"fragment, such as https://auth.example.com")
	}
	return nil
}

// checkAlgorithm shows the value, because an algorithm is no secret.
func checkAlgorithm(text string) error {
	var usable []string
	hint := ""
	for _, a := range signingAlgorithms {
		if a.needs == "" {
			usable = append(usable, a.name)
		} else if a.name == text {
			hint = ", which needs a program that was built with " + a.needs
		}
	}
	if slices.Contains(usable, text) {
		return nil
	}
	return fmt.Errorf("must be %s, not %q%s", strings.Join(usable, " or "), text, hint)
}

// checkDatabaseURL takes SQLAlchemy's spelling, as the Python server does.
func checkDatabaseURL(text string) error {
	if !sqliteURL.MatchString(text) {
		return errors.New("must be sqlite:///FILE or sqlite:////ABSOLUTE/FILE; this server stores " +
			"in SQLite and nothing else")
	}
	return nil
}

// checkListen accepts what net.Listen does, but no name instead of the port.
func checkListen(text string) error {
	_, port, _ := net.SplitHostPort(text) // port is empty when it fails
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New("must be host:port with a port from 0 to 65535, such as localhost:8100")
	}
	return nil
}

// checkCookieDomain takes the name of a domain in one spelling, or nothing. A
// dot must be in it: browsers keep no cookie for a whole top-level domain.
func checkCookieDomain(text string) error {
	if text != "" && !domainName.MatchString(text) {
		return errors.New("must be a domain in lower case such as example.com, with no scheme, port or " +
			"dot in front")
	}
	return nil
}

var domainName = regexp.MustCompile(`^(?:[a-z0-9-]+\.)+[a-z][a-z0-9-]*$`)

// inDomain reports whether a host without port is the domain or below it.
func inDomain(host, domain string) bool {
	return strings.HasSuffix("."+strings.ToLower(host), "."+domain)
}

// checkListenOrOff is for addresses of what can be left out.
func checkListenOrOff(text string) error {
	if text == "" {
		return nil
	}
	return checkListen(text)
}

func checkProxies(text string) error {
	_, err := parsePrefixes(text)
	return err
}

// checkOrigins accepts origins as browsers send them (RFC 6454 section 6.2),
// because they are compared as text.
func checkOrigins(text string) error {
	for _, item := range listItems(text) {
		u, err := url.Parse(item)
		if item != "*" && (err != nil || u.Host == "" || u.Scheme+"://"+u.Host != item) {
			return errors.New("must list origins such as https://app.example.com, with no path")
		}
	}
	return nil
}

// checkAdminPassword refuses what bcrypt cannot keep apart. Short ones pass,
// because files of the Python server have them.
func checkAdminPassword(text string) error {
	if len(text) > maxPasswordBytes || strings.ContainsRune(text, 0) {
		return errors.New("must have at most 72 bytes, none of them NUL")
	}
	return nil
}

// loopbackHost reports whether a host without port names the own machine
// (RFC 6761 section 6.3, RFC 1122 section 3.2.1.3).
func loopbackHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback() // of ::ffff:127.0.0.1 too
	}
	return inDomain(host, "localhost")
}

// sqliteURL does not match :memory:, because each connection would have a
// database of its own.
var sqliteURL = regexp.MustCompile(`^sqlite(?:\+[a-z0-9_]+)?:///([^?#:][^?#]*)$`)
