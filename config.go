package main

// This file turns defaults, application.yaml and the environment into one checked config.
// Every setting is one row of settings(): the same row feeds the YAML reader, the
// environment, `pico-auth config`, the README's table and the search for misspelt
// variables, so that no setting can exist in one of these places only. All faults are
// reported together, each with its place and what is allowed; none ever quotes a value,
// because a value may be a secret. Only this file reads YAML.

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// defaultAdminPassword is published in this source. The server lives with it on loopback only.
const defaultAdminPassword = "admin"

// config holds the checked settings; settings() says what each means, with its unit and range.
// It is not changed after loadConfig.
type config struct {
	dataDir           string // AUTH_DATA_DIR; whoever reads it can sign tokens as anybody
	accessMinutes     int    // other services accept a token for this long after a logout
	refreshDays       int    // idle lifetime of a session
	sessionMaxDays    int    // absolute lifetime of a session
	issuer            string // byte for byte the iss of every token; changing it ends all access tokens
	audience          string // likewise the aud
	algorithm         string // RS256
	autoCreateAdmin   bool
	adminEmail        string
	adminPassword     string // secret; counts only when the admin is created
	registration      bool   // until a superadmin decides otherwise, which the database remembers
	emailToken        string // secret, without effect
	bcryptCost        int    // log2 of rounds; one more doubles the time of every login
	passwordMinLength int    // characters
	reuseGraceSeconds int    // 0: a lost answer costs a login; above: a stolen token works beside its owner for so long
	keyBits           int    // of new keys; 4096 makes every token six times dearer
	keyRotationDays   int    // 0: never by itself

	databaseURL  string // SQLAlchemy's spelling; databasePath is the file
	databaseEcho bool

	clientEnabled    bool     // must be true
	clientIssuer     string   // only compared with issuer
	clientAudience   string   // only compared with audience
	clientAlgorithms []string // must contain RS256

	apiTitle   string
	apiVersion string // without effect

	listen         string
	trustedProxies []string // too wide, and clients choose the address they are throttled by
	corsOrigins    []string
	tlsCertFile    string // both or neither
	tlsKeyFile     string

	logLevel  string // above info the security events are missing
	logFormat string

	throttle throttleLimits

	sources map[string]string // setting key → where its value came from
	notes   []string          // warnings for the start of the server
}

// defaultConfig is what `go run .` uses: pico-auth 0.1.2's defaults, and for everything newer the safe choice.
func defaultConfig() *config {
	return &config{
		dataDir: "~/.pico-auth", accessMinutes: 15, refreshDays: 7, sessionMaxDays: 30,
		issuer: "http://localhost:8100", audience: "pico-bot", algorithm: "RS256",
		autoCreateAdmin: true, adminEmail: "admin@pico.local", adminPassword: defaultAdminPassword,
		registration: true, bcryptCost: 12, passwordMinLength: 8, keyBits: 2048, keyRotationDays: 90,
		databaseURL:   "sqlite+aiosqlite:///auth.db",
		clientEnabled: true, clientIssuer: "http://localhost:8100", clientAudience: "pico-bot",
		clientAlgorithms: []string{"RS256"},
		apiTitle:         "Pico Auth API", apiVersion: "0.1.0",
		listen: "localhost:8100", logLevel: "info", logFormat: "text",
		throttle: throttleLimits{
			enabled: true, pairFailures: 10, pairMinutes: 15, addressFailures: 60, addressMinutes: 15,
			accountFailures: 100, accountMinutes: 60, knownAddressDays: 30,
			registrations: 60, registrationMinutes: 60, ipv6Prefix: 64,
		},
		sources: map[string]string{},
	}
}

// setting is one row of the configuration: a dotted key, what it means, and how its value is
// read from and written as text. set checks the value and returns what is allowed when it is not.
type setting struct {
	key    string // "auth.issuer"
	kind   string // "text", "number", "bool" or "list"
	help   string
	secret bool
	get    func() string
	set    func(string) error
}

// env is the setting's environment variable: auth.issuer → AUTH_ISSUER.
func (s setting) env() string {
	return strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// display is the value as YAML, or <redacted> for a secret that is set.
func (s setting) display() string {
	v := s.get()
	switch {
	case s.secret && v != "":
		return "<redacted>"
	case s.kind == "text":
		return strconv.Quote(v)
	case s.kind == "list":
		items := strings.FieldsFunc(v, func(r rune) bool { return r == ',' })
		for i, item := range items {
			items[i] = strconv.Quote(strings.TrimSpace(item))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return v
}

// text, secret, number, choice, boolean and list make rows of their kind. Each setter checks before it stores, so a
// config never holds a value that is not allowed.
func text(key string, p *string, help string, check func(string) error) setting {
	return setting{key: key, kind: "text", help: help, get: func() string { return *p }, set: func(v string) error {
		if err := check(v); err != nil {
			return err
		}
		*p = v
		return nil
	}}
}

func secret(key string, p *string, help string, check func(string) error) setting {
	s := text(key, p, help, check)
	s.secret = true
	return s
}

func number(key string, p *int, lo, hi int, help string) setting {
	return setting{key: key, kind: "number", help: help, get: func() string { return strconv.Itoa(*p) }, set: func(v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < lo || n > hi {
			return fmt.Errorf("must be a whole number from %d to %d", lo, hi)
		}
		*p = n
		return nil
	}}
}

func choice(key string, p *int, help string, allowed ...int) setting {
	s := number(key, p, allowed[0], allowed[len(allowed)-1], help)
	s.set = func(v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || !slices.Contains(allowed, n) {
			return fmt.Errorf("must be one of %v", allowed)
		}
		*p = n
		return nil
	}
	return s
}

func boolean(key string, p *bool, help string) setting {
	return setting{key: key, kind: "bool", help: help, get: func() string { return strconv.FormatBool(*p) }, set: func(v string) error {
		switch strings.ToLower(v) {
		case "true", "yes", "on", "1":
			*p = true
		case "false", "no", "off", "0":
			*p = false
		default:
			return errors.New("must be true or false")
		}
		return nil
	}}
}

func list(key string, p *[]string, help string, check func(string) error) setting {
	return setting{key: key, kind: "list", help: help, get: func() string { return strings.Join(*p, ", ") }, set: func(v string) error {
		var items []string
		for item := range strings.SplitSeq(v, ",") {
			if item = strings.TrimSpace(item); item == "" {
				continue
			}
			if err := check(item); err != nil {
				return err
			}
			items = append(items, item)
		}
		*p = items
		return nil
	}}
}

// settings is the whole configuration. Order is the order of `pico-auth config` and of the README.
func (c *config) settings() []setting {
	t := &c.throttle
	return []setting{
		text("auth.data_dir", &c.dataDir, "directory of the signing keys (`~` is the home directory)", notEmpty),
		number("auth.access_token_expire_minutes", &c.accessMinutes, 1, 525600, "lifetime of an access token, minutes"),
		number("auth.refresh_token_expire_days", &c.refreshDays, 1, 3650, "idle lifetime of a session, days since its last refresh"),
		number("auth.session_max_days", &c.sessionMaxDays, 1, 3650, "absolute lifetime of a session, days since its login"),
		text("auth.issuer", &c.issuer, "public base URL; the `iss` of every token", checkIssuer),
		text("auth.audience", &c.audience, "the `aud` of every token", notEmpty),
		text("auth.algorithm", &c.algorithm, "signature algorithm; only RS256 exists here", checkAlgorithm),
		boolean("auth.auto_create_admin", &c.autoCreateAdmin, "create the admin below when no user has that email"),
		text("auth.admin_email", &c.adminEmail, "email of the created admin", notEmpty),
		secret("auth.admin_password", &c.adminPassword, "password of the created admin; `admin` works on loopback only", checkAdminPassword),
		boolean("auth.registration_enabled", &c.registration, "anyone may register, until an admin decides otherwise"),
		secret("auth.email_credentials_token", &c.emailToken, "accepted from pico-auth 0.3; no effect", anything),
		number("auth.bcrypt_cost", &c.bcryptCost, 10, 16, "log2 of the bcrypt rounds of new hashes"),
		number("auth.password_min_length", &c.passwordMinLength, 1, 72, "characters a new password needs (at most 72 bytes)"),
		number("auth.refresh_reuse_grace_seconds", &c.reuseGraceSeconds, 0, 60, "seconds in which the last refresh may be repeated; 0 is strict"),
		choice("auth.key_bits", &c.keyBits, "size of new signing keys: 2048, 3072 or 4096 bits", 2048, 3072, 4096),
		number("auth.key_rotation_days", &c.keyRotationDays, 0, 3650, "days a key signs before the next takes over; 0 is never"),

		text("database.url", &c.databaseURL, "`sqlite:///FILE` or `sqlite:////ABSOLUTE`, with or without `+driver`", checkDatabaseURL),
		boolean("database.echo", &c.databaseEcho, "log SQL statements, never their values"),

		boolean("auth_client.enabled", &c.clientEnabled, "must be true: this server guards its own endpoints"),
		text("auth_client.issuer", &c.clientIssuer, "should equal auth.issuer, which is what counts", anything),
		text("auth_client.audience", &c.clientAudience, "should equal auth.audience, which is what counts", anything),
		list("auth_client.accepted_algorithms", &c.clientAlgorithms, "must contain RS256; others have no effect", anything),

		text("fastapi.title", &c.apiTitle, "name in the first log line", anything),
		text("fastapi.version", &c.apiVersion, "accepted from pico-auth; no effect", anything),

		text("server.listen", &c.listen, "`host:port`, `:port` for every interface, or `unix:/path`", checkListen),
		list("server.trusted_proxies", &c.trustedProxies, "CIDRs (or `unix`) whose X-Forwarded-For and -Proto count", checkProxy),
		list("server.cors_origins", &c.corsOrigins, "origins of browser applications, or `*`", checkOrigin),
		text("server.tls_cert_file", &c.tlsCertFile, "PEM certificate chain; with the key below turns TLS on", anything),
		text("server.tls_key_file", &c.tlsKeyFile, "PEM private key of that certificate", anything),

		text("log.level", &c.logLevel, "debug, info, warn or error", oneOf("debug", "info", "warn", "error")),
		text("log.format", &c.logFormat, "text or json", oneOf("text", "json")),

		boolean("throttle.enabled", &t.enabled, "slow password guessing; in the rows below 0 turns one rule off"),
		number("throttle.pair_failures", &t.pairFailures, 0, 1e6, "failed logins of one email from one address …"),
		number("throttle.pair_minutes", &t.pairMinutes, 1, 1440, "… in this many minutes"),
		number("throttle.address_failures", &t.addressFailures, 0, 1e6, "failed logins from one address …"),
		number("throttle.address_minutes", &t.addressMinutes, 1, 1440, "… in this many minutes"),
		number("throttle.account_failures", &t.accountFailures, 0, 1e6, "failed logins of one email from anywhere …"),
		number("throttle.account_minutes", &t.accountMinutes, 1, 1440, "… in this many minutes, except …"),
		number("throttle.known_address_days", &t.knownAddressDays, 0, 365, "… from addresses it logged in from in this many days"),
		number("throttle.registrations", &t.registrations, 0, 1e6, "registrations from one address …"),
		number("throttle.registration_minutes", &t.registrationMinutes, 1, 1440, "… in this many minutes"),
		number("throttle.ipv6_prefix", &t.ipv6Prefix, 32, 128, "bits of an IPv6 address that make one client"),
	}
}

// ignoredKeys are settings of the Python stack that mean nothing here. Files that carry them
// must start this server all the same; the log says that they have no effect.
var ignoredKeys = []string{
	"auth_client.jwks_endpoint", "auth_client.jwks_ttl_seconds", "auth_client.revocation_bearer",
	"auth_client.revocation_endpoint", "auth_client.revocation_ttl_seconds",
	"database.pool_pre_ping", "database.pool_recycle", "database.pool_size", "fastapi.debug",
}

// loadConfig merges defaults, the YAML file and the environment (in that order of precedence,
// lowest first). An empty path means application.yaml in the working directory, if there is one.
// The error joins every fault found.
func loadConfig(path string, environ []string) (*config, error) {
	c := defaultConfig()
	l := loader{settings: c.settings(), config: c, env: map[string]string{}}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		l.env[k] = v
	}
	l.readFile(path)
	l.readEnvironment()
	if len(l.faults) == 0 {
		l.faults = c.validate()
	}
	return c, errors.Join(l.faults...)
}

// loader collects the faults of one loadConfig.
type loader struct {
	*config
	settings []setting
	env      map[string]string
	faults   []error
}

func (l *loader) fault(place, format string, args ...any) {
	l.faults = append(l.faults, fmt.Errorf("%s: %s", place, fmt.Sprintf(format, args...)))
}

func (l *loader) find(key string) (setting, bool) {
	i := slices.IndexFunc(l.settings, func(s setting) bool { return s.key == key })
	if i < 0 {
		return setting{}, false
	}
	return l.settings[i], true
}

// apply gives a setting its text and remembers the source.
func (l *loader) apply(s setting, value, source string) {
	if err := s.set(value); err != nil {
		l.fault(source, "%s (%s) %v", s.key, s.env(), err)
		return
	}
	l.sources[s.key] = source
}

// readFile reads the file that was named, or application.yaml if it is there.
func (l *loader) readFile(path string) {
	name := cmp.Or(path, "application.yaml")
	data, err := os.ReadFile(name)
	if path == "" && errors.Is(err, fs.ErrNotExist) {
		return // no file is a complete configuration
	}
	if err != nil {
		l.fault("-config", "%v", err)
		return
	}
	l.parseYAML(name, data)
}

// quotedInYAML is what yaml.v3 may quote from the document: the name of an unknown anchor, such as a password that begins with *.
var quotedInYAML = regexp.MustCompile(`'.*'|".*"`)

// parseYAML walks the document itself rather than decoding into a struct, so that each
// fault carries its line and yaml.v3 never quotes a value in an error.
func (l *loader) parseYAML(name string, data []byte) {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return // an empty file means defaults
	} else if err != nil {
		l.fault(name, "not YAML: %s", quotedInYAML.ReplaceAllString(err.Error(), "…"))
		return
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		l.fault(name, "must hold one YAML document")
		return
	}
	root := doc.Content[0]
	if root.Tag == "!!null" {
		return // comments only
	}
	l.walk(name, "", root)
}

// walk visits one mapping; prefix is "" at the top and "auth." inside the section auth.
func (l *loader) walk(name, prefix string, m *yaml.Node) {
	if m.Kind != yaml.MappingNode {
		l.fault(fmt.Sprintf("%s:%d", name, m.Line), "expected settings here, such as `auth:` and below it `  issuer: …`")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v := m.Content[i], m.Content[i+1]
		key, place := prefix+k.Value, fmt.Sprintf("%s:%d", name, k.Line)
		if first := seen[key]; first > 0 {
			l.fault(place, "%s stands here and in line %d; keep one", key, first)
			continue
		}
		seen[key] = k.Line
		if v.Kind == yaml.AliasNode {
			v = v.Alias
		}
		s, known := l.find(key)
		switch {
		case known:
			l.readNode(s, v, place)
		case slices.Contains(ignoredKeys, key):
			l.notes = append(l.notes, fmt.Sprintf("%s: %s has no effect in this server", place, key))
		case prefix == "" && l.isSection(key):
			if v.Tag != "!!null" { // an empty section means defaults
				l.walk(name, key+".", v)
			}
		default:
			key, _, _ = strings.Cut(key, ":") // "name:value" without a blank is one long key, and the value may be a secret
			l.fault(place, "unknown setting %s; did you mean %s?", key, l.nearest(key))
		}
	}
}

func (l *loader) isSection(name string) bool {
	return slices.ContainsFunc(l.settings, func(s setting) bool { return strings.HasPrefix(s.key, name+".") })
}

var envReference = regexp.MustCompile(`\$\{ENV:([^}]*)\}`)

// readNode checks the YAML type of one value and applies it. A value that came through
// ${ENV:NAME} is text in YAML whatever it stands for, so only its content is checked.
func (l *loader) readNode(s setting, v *yaml.Node, place string) {
	if v.Kind == yaml.SequenceNode && s.kind == "list" {
		var items []string
		for _, item := range v.Content {
			if item.Kind != yaml.ScalarNode || item.Tag != "!!str" || strings.Contains(item.Value, ",") {
				l.fault(place, "%s (%s) must be a list of texts without commas", s.key, s.env())
				return
			}
			items = append(items, l.expand(item.Value, place))
		}
		l.apply(s, strings.Join(items, ","), place)
		return
	}
	want := map[string]string{"text": "!!str", "list": "!!str", "number": "!!int", "bool": "!!bool"}[s.kind]
	plainBool := s.kind == "bool" && v.Tag == "!!str" && v.Style == 0 // yes and on are truth in YAML 1.1, which Python reads
	if v.Kind != yaml.ScalarNode || (v.Tag != want && !plainBool && !envReference.MatchString(v.Value)) {
		hint := ""
		if s.kind == "text" && v.Kind == yaml.ScalarNode {
			hint = "; put it in quotes"
		}
		l.fault(place, "%s (%s) must be a %s%s", s.key, s.env(), s.kind, hint)
		return
	}
	faults := len(l.faults)
	if value := l.expand(v.Value, place); len(l.faults) == faults {
		l.apply(s, value, place)
	}
}

// expand replaces ${ENV:NAME}. Nothing else that begins with $ is touched: passwords contain it.
func (l *loader) expand(value, place string) string {
	return envReference.ReplaceAllStringFunc(value, func(ref string) string {
		name := envReference.FindStringSubmatch(ref)[1]
		v, set := l.env[name]
		if !set {
			l.fault(place, "${ENV:%s} is used, but the environment has no %s", name, name)
		}
		return v
	})
}

// readEnvironment applies NAME and NAME_FILE for every setting and warns of AUTH_… variables
// that no setting reads, because a misspelt AUTH_ADMIN_PASSWORD must not pass in silence.
func (l *loader) readEnvironment() {
	read := map[string]bool{}
	for _, s := range l.settings {
		name := s.env()
		read[name], read[name+"_FILE"] = true, true
		value, set := l.env[name]
		path, fromFile := l.env[name+"_FILE"]
		switch {
		case set && fromFile:
			l.fault(name, "%s and %s_FILE are both set; keep one", name, name)
		case set:
			l.apply(s, value, name)
		case fromFile:
			data, err := os.ReadFile(path)
			if err != nil {
				l.fault(name+"_FILE", "%v", err)
				continue
			}
			l.apply(s, strings.TrimRight(string(data), "\r\n"), name+"_FILE")
		}
	}
	for name := range l.env {
		near := l.nearestEnv(name)
		if !read[name] && (strings.HasPrefix(name, "AUTH_") || distance(name, near) <= 2) {
			l.notes = append(l.notes, fmt.Sprintf("the environment variable %s is not a setting; did you mean %s?", name, near))
		}
	}
	slices.Sort(l.notes)
}

// nearest is the setting whose key is the fewest edits away; people misspell more than they invent.
func (l *loader) nearest(key string) string {
	return slices.MinFunc(l.settings, func(a, b setting) int { return distance(a.key, key) - distance(b.key, key) }).key
}

func (l *loader) nearestEnv(name string) string {
	return slices.MinFunc(l.settings, func(a, b setting) int { return distance(a.env(), name) - distance(b.env(), name) }).env()
}

// distance is the Levenshtein distance: how many single-character edits turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// validate checks what concerns several settings at once and leaves its warnings in c.notes.
func (c *config) validate() []error {
	var faults []error
	fault := func(key, msg string) {
		faults = append(faults, fmt.Errorf("%s: %s (%s) %s", cmp.Or(c.sources[key], "default"), key, setting{key: key}.env(), msg))
	}
	if !c.clientEnabled {
		fault("auth_client.enabled", "must be true: a login service whose own endpoints are unguarded is never wanted")
	}
	if !slices.Contains(c.clientAlgorithms, "RS256") {
		fault("auth_client.accepted_algorithms", "must contain RS256, which is what this server signs with")
	}
	if (c.tlsCertFile == "") != (c.tlsKeyFile == "") {
		fault("server.tls_cert_file", "and server.tls_key_file (SERVER_TLS_KEY_FILE) must be set together")
	}
	c.warn("auth_client.issuer", c.clientIssuer, "auth.issuer", c.issuer)
	c.warn("auth_client.audience", c.clientAudience, "auth.audience", c.audience)
	if c.refreshDays > c.sessionMaxDays {
		c.notes = append(c.notes, "auth.session_max_days is below auth.refresh_token_expire_days, so sessions end after session_max_days")
	}
	if u, _ := url.Parse(c.issuer); u.Scheme == "http" && !loopbackHost(u.Hostname()) {
		c.notes = append(c.notes, "auth.issuer is public and not https: passwords and tokens would travel in clear")
	}
	if len([]rune(c.adminPassword)) < c.passwordMinLength && c.adminPassword != defaultAdminPassword {
		c.notes = append(c.notes, "auth.admin_password is shorter than auth.password_min_length; choose a longer one")
	}
	return faults
}

// warn notes that two settings which should agree do not; the second one is used. A value that
// nobody wrote down cannot disagree.
func (c *config) warn(key, value, usedKey, used string) {
	if value != used && c.sources[key] != "" {
		c.notes = append(c.notes, fmt.Sprintf("%s: %s differs from %s, which is used", c.sources[key], key, usedKey))
	}
}

// dump writes the merged settings as YAML, each with its source; secrets are redacted.
func (c *config) dump(w io.Writer) {
	section := ""
	for _, s := range c.settings() {
		name, key, _ := strings.Cut(s.key, ".")
		if name != section {
			section = name
			fmt.Fprintf(w, "%s:\n", section)
		}
		fmt.Fprintf(w, "  %-34s # %s\n", key+": "+s.display(), cmp.Or(c.sources[s.key], "default"))
	}
}

// exposed says why this server can be reached from elsewhere, or "" when only its own machine can.
func (c *config) exposed() string {
	if host, _, err := net.SplitHostPort(c.listen); err == nil && !strings.HasPrefix(c.listen, "unix:") && !loopbackHost(host) {
		return "server.listen " + c.listen + " is not loopback"
	}
	if u, err := url.Parse(c.issuer); err == nil && !loopbackHost(u.Hostname()) {
		return "auth.issuer " + c.issuer + " is not loopback"
	}
	return ""
}

// loopbackHost tells whether a host without port names the own machine (RFC 6761 section 6.3, RFC 1122 section 3.2.1.3).
func loopbackHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost")
}

// baseURL is the issuer without a trailing slash, for putting paths behind it.
func (c *config) baseURL() string { return strings.TrimSuffix(c.issuer, "/") }

// dataPath is data_dir with a leading ~ replaced by the home directory.
func (c *config) dataPath() (string, error) {
	rest, tilde := strings.CutPrefix(c.dataDir, "~")
	if !tilde || (rest != "" && rest[0] != '/' && rest[0] != filepath.Separator) {
		return c.dataDir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("auth.data_dir (AUTH_DATA_DIR) begins with ~, but there is no home directory: %w", err)
	}
	return filepath.Join(home, rest), nil
}

var sqliteURL = regexp.MustCompile(`^sqlite(?:\+[a-z0-9_]+)?:///([^?#]+)$`)

// databasePath is the file named by database.url; relative ones start in the working directory.
func (c *config) databasePath() string { return sqliteURL.FindStringSubmatch(c.databaseURL)[1] }

func (c *config) accessTTL() time.Duration  { return time.Duration(c.accessMinutes) * time.Minute }
func (c *config) refreshTTL() time.Duration { return time.Duration(c.refreshDays) * 24 * time.Hour }
func (c *config) sessionMax() time.Duration { return time.Duration(c.sessionMaxDays) * 24 * time.Hour }
func (c *config) reuseGrace() time.Duration { return time.Duration(c.reuseGraceSeconds) * time.Second }
func (c *config) keyRotation() time.Duration {
	return time.Duration(c.keyRotationDays) * 24 * time.Hour
}

func anything(string) error { return nil }

func notEmpty(v string) error {
	if v == "" {
		return errors.New("must not be empty")
	}
	return nil
}

func oneOf(allowed ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
		}
		return nil
	}
}

// checkIssuer follows OpenID Connect Discovery 1.0 section 3 and RFC 8414 section 2: a URL without
// query or fragment. User information would be printed in every token.
func checkIssuer(v string) error {
	u, err := url.Parse(v)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || strings.ContainsAny(v, "?# ") {
		return errors.New("must be an http or https URL with a host and without user, query and fragment, such as https://auth.example.com")
	}
	return nil
}

// checkAlgorithm: pico-auth 0.3 offered ML-DSA too.
func checkAlgorithm(v string) error {
	if v != "RS256" {
		return errors.New("must be RS256: this server signs with nothing else, and a verifier that expects another algorithm would refuse every token")
	}
	return nil
}

// checkDatabaseURL accepts SQLAlchemy's spelling. In-memory databases would be a different one per connection.
func checkDatabaseURL(v string) error {
	m := sqliteURL.FindStringSubmatch(v)
	if m == nil || m[1] == ":memory:" {
		return errors.New("must be sqlite:///FILE or sqlite:////ABSOLUTE/FILE; this server stores in SQLite and nothing else")
	}
	return nil
}

// checkListen accepts what net.Listen takes for tcp with a number as port, and unix sockets.
func checkListen(v string) error {
	if path, ok := strings.CutPrefix(v, "unix:"); ok {
		return notEmpty(path)
	}
	_, port, err := net.SplitHostPort(v)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		return errors.New("must be host:port with a port from 0 to 65535, or unix:/path")
	}
	return nil
}

func checkProxy(v string) error {
	if _, err := netip.ParsePrefix(v); err != nil && v != "unix" {
		return errors.New("must list CIDRs such as 10.0.0.0/8 or 127.0.0.1/32, or unix for the peer of a unix socket")
	}
	return nil
}

// checkOrigin accepts origins as browsers send them (RFC 6454 section 6.2), because they are compared as text.
func checkOrigin(v string) error {
	u, err := url.Parse(v)
	if v != "*" && (err != nil || u.Host == "" || u.Scheme+"://"+u.Host != v) {
		return errors.New("must list origins such as https://app.example.com: scheme, host and port, and no path")
	}
	return nil
}

// checkAdminPassword refuses what bcrypt cannot keep apart. Short ones only get a warning,
// because configurations written for pico-auth have them.
func checkAdminPassword(v string) error {
	if v == "" || len(v) > maxPasswordBytes || strings.ContainsRune(v, 0) {
		return errors.New("must have 1 to 72 bytes, none of them NUL")
	}
	return nil
}
