package main

// This file turns the defaults, application.yaml and the environment into
// one checked config. A setting is one row of a table; the row serves the
// file, the environment, `pico-auth config`, the README's table and the
// search for misspelt names. All faults are reported at once, each with its
// place and what is allowed. No fault shows a value, because it may be a
// secret. Only this file reads YAML; it writes nothing and opens no socket.

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// config holds the checked settings. The comments name the danger of each;
// application.yaml has its meaning and unit, the table below its range.
// Nothing changes a config after loadConfig. The table points into it, so it
// is never copied.
type config struct {
	dataDir           string        // who can read it can sign tokens for anybody
	accessTTL         time.Duration // other services accept a token this long after a logout
	refreshTTL        time.Duration // a stolen refresh token stays good this long unused
	sessionMax        time.Duration // a thief who keeps refreshing is out only after this
	issuer            string        // changing it ends all access tokens
	audience          string        // changing it ends all access tokens
	algorithm         string        // a verifier that lacks it refuses every token
	autoCreateAdmin   bool          // a deleted admin comes back at the next start
	adminEmail        string        // becomes a superadmin
	adminPassword     string        // secret; the default is public
	registration      bool          // strangers get accounts; a superadmin's later decision wins
	bcryptCost        int           // one more doubles the time of every login
	passwordMinLength int           // characters; below 8, guessing is easy
	reuseGrace        time.Duration // a stolen refresh token works beside its owner's this long
	keyBits           int           // 4096 makes every signature about six times slower
	keyRotation       time.Duration // 0: a key that leaked unnoticed is good for ever

	databaseURL  string // the file holds the password hashes; see databasePath
	databaseEcho bool   // makes the log long; values are never logged

	apiTitle, apiVersion string // of the API document

	listen         string         // beyond loopback, passwords need TLS
	trustedProxies []netip.Prefix // too wide, and clients choose the address that is throttled
	corsOrigins    []string       // scripts of these sites may use tokens here; "*" is every site
	tlsCertFile    string         // read at the start only: a renewed one needs a restart
	tlsKeyFile     string         // set exactly when tlsCertFile is
	metricsListen  string         // room: metrics

	logLevel  string // above info, the log lacks the security events
	logFormat string

	throttle throttleLimits

	sessionIdle time.Duration // whoever finds a browser in which somebody logged in can use it so long
	clients     oidcClients   // room: provider

	cookieDomain string // its applications can act as each other's users; "": no forward auth

	settings []*setting // in the order of the README
	notes    []string   // warnings for the start, each with its remedy
}

// throttleLimits are the counts at which guessing is stopped. 0 turns one
// rule off.
type throttleLimits struct {
	enabled         bool // off, passwords are guessed as fast as bcrypt runs
	pairFailures    int  // of one account from one address
	addressFailures int  // too low, and people behind one address lock each other out
	accountFailures int  // too low, and strangers lock an owner out of new addresses
	registrations   int  // from one address
}

// rows is the table of all settings. The names and defaults of auth, database,
// auth_client and fastapi are those of the Python server; what it lacks has
// the safe choice as its default. What each means is said in application.yaml.
// Nothing reads the targets that new makes: those settings are only accepted.
func (c *config) rows() []settingRow {
	const day = 24 * time.Hour
	t := &c.throttle
	count := checkNumber(0, 1e6)
	return []settingRow{
		{"auth.data_dir", &c.dataDir, "~/.pico-auth", checkNotEmpty},
		{"auth.access_token_expire_minutes", span{&c.accessTTL, time.Minute}, "15", checkNumber(1, 525600)},
		{"auth.refresh_token_expire_days", span{&c.refreshTTL, day}, "7", checkNumber(1, 3650)},
		{"auth.session_max_days", span{&c.sessionMax, day}, "30", checkNumber(1, 3650)},
		{"auth.issuer", &c.issuer, "http://localhost:8100", checkIssuer},
		{"auth.audience", &c.audience, "pico-bot", checkNotEmpty},
		{"auth.algorithm", &c.algorithm, "RS256", checkAlgorithm},
		{"auth.auto_create_admin", &c.autoCreateAdmin, "true", checkBool},
		{"auth.admin_email", &c.adminEmail, "admin@pico.local", checkNotEmpty},
		{"auth.admin_password", secretText{&c.adminPassword}, defaultAdminPassword, checkAdminPassword},
		{"auth.registration_enabled", &c.registration, "true", checkBool},
		{"auth.email_credentials_token", secretText{new(string)}, "", checkNothing},
		{"auth.bcrypt_cost", &c.bcryptCost, "12", checkNumber(10, 16)},
		{"auth.password_min_length", &c.passwordMinLength, "8", checkNumber(1, maxPasswordBytes)},
		{"auth.refresh_reuse_grace_seconds", span{&c.reuseGrace, time.Second}, "0", checkNumber(0, 60)},
		{"auth.key_bits", &c.keyBits, "2048", checkOneOf("2048", "3072", "4096")},
		{"auth.key_rotation_days", span{&c.keyRotation, day}, "90", checkNumber(0, 3650)},

		{"database.url", &c.databaseURL, "sqlite+aiosqlite:///auth.db", checkDatabaseURL},
		{"database.echo", &c.databaseEcho, "false", checkBool},

		{"auth_client.enabled", new(bool), "true", checkTrue},
		{"auth_client.issuer", new(string), "http://localhost:8100", checkNothing},
		{"auth_client.audience", new(string), "pico-bot", checkNothing},
		{"auth_client.accepted_algorithms", new([]string), "RS256", checkNothing},

		{"fastapi.title", &c.apiTitle, "Pico Auth API", checkNothing},
		{"fastapi.version", &c.apiVersion, "0.1.0", checkNothing},

		{"server.listen", &c.listen, "localhost:8100", checkListen},
		{"server.trusted_proxies", &c.trustedProxies, "", checkProxies},
		{"server.cors_origins", &c.corsOrigins, "", checkOrigins},
		{"server.tls_cert_file", &c.tlsCertFile, "", checkNothing},
		{"server.tls_key_file", &c.tlsKeyFile, "", checkNothing},
		{"server.metrics_listen", &c.metricsListen, "", checkListenOrOff}, // room: metrics

		{"oidc.session_idle_hours", span{&c.sessionIdle, time.Hour}, "12", checkNumber(1, 8760)},

		{"forward_auth.cookie_domain", &c.cookieDomain, "", checkCookieDomain}, // room: forwardauth

		{"log.level", &c.logLevel, "info", checkOneOf("debug", "info", "warn", "error")},
		{"log.format", &c.logFormat, "text", checkOneOf("text", "json")},

		{"throttle.enabled", &t.enabled, "true", checkBool},
		{"throttle.pair_failures", &t.pairFailures, "10", count},
		{"throttle.address_failures", &t.addressFailures, "60", count},
		{"throttle.account_failures", &t.accountFailures, "100", count},
		{"throttle.registrations", &t.registrations, "60", count},
	}
}

// ignoredKeys are settings of the Python server that mean nothing here. Its
// files start this server all the same.
var ignoredKeys = []string{
	"auth_client.jwks_endpoint", "auth_client.jwks_ttl_seconds", "auth_client.revocation_bearer",
	"auth_client.revocation_endpoint", "auth_client.revocation_ttl_seconds",
	"database.pool_pre_ping", "database.pool_recycle", "database.pool_size", "fastapi.debug",
}

// defaultConfig is what the server runs with when nothing is configured.
func defaultConfig() *config {
	c := &config{}
	c.clients = oidcClients{} // room: provider
	for _, row := range c.rows() {
		s := &setting{settingRow: row, env: envName(row.key), text: row.fallback}
		s.store()
		c.settings = append(c.settings, s)
	}
	return c
}

// findSetting returns the setting of a key, or nil when there is none.
func findSetting(settings []*setting, key string) *setting {
	for _, s := range settings {
		if s.key == key {
			return s
		}
	}
	return nil
}

// find returns a setting of the table.
func (c *config) find(key string) *setting {
	return findSetting(c.settings, key)
}

// sections are the names of the file's sections, in the order of the table.
func (c *config) sections() (names []string) {
	for _, s := range c.settings {
		name, _, _ := strings.Cut(s.key, ".")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// source is the place of a setting's value, such as application.yaml:13 or
// AUTH_ISSUER, and "" for the default.
func (c *config) source(key string) string {
	return c.find(key).source
}

// envName is the environment variable of a key: AUTH_ISSUER for auth.issuer.
func envName(key string) string {
	return strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// nearest is the setting that differs least from a misspelt key or variable.
func nearest(settings []*setting, name string) *setting {
	name = envName(name)
	return slices.MinFunc(settings, func(a, b *setting) int {
		return difference(envName(a.key), name) - difference(envName(b.key), name)
	})
}

// difference is how many bytes of the longer text are left without what both
// share at their beginning and at their end: at most 2 for one slip of the
// keyboard.
func difference(a, b string) int {
	for a != "" && b != "" && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for a != "" && b != "" && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return max(len(a), len(b))
}

// --- reading ---

// loadConfig reads the file and then the environment, which wins. An empty
// path means application.yaml in the working directory, if there is one. The
// error joins all faults.
func loadConfig(path string, environ []string) (*config, error) {
	l := configLoader{
		config: defaultConfig(),
		env:    map[string]string{},
		read:   map[string]bool{},
	}
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		l.env[name] = value
	}
	l.readFile(path)
	l.readEnvironment()
	l.noteMisspelt()
	l.comparePairs()
	l.noteAddress()
	l.clients.check([]string{l.issuer, l.audience}, l.fault)            // room: provider
	l.clients.checkBeside(l.algorithm, l.registration, l.fault, l.note) // room: provider
	return l.config, l.faults
}

// configLoader is the state of one loadConfig. It goes on after a fault, so
// that one start shows all of them.
type configLoader struct {
	*config
	env    map[string]string
	read   map[string]bool // variables that a setting or a ${ENV:…} reads
	faults error
}

// fault adds what stops the start; it shows no value.
func (l *configLoader) fault(text string) {
	l.faults = errors.Join(l.faults, errors.New(text))
}

// note adds a warning for the start; it says what to do.
func (l *configLoader) note(text string) {
	l.notes = append(l.notes, text)
}

// apply gives a setting the text that was read from a source, unless reading
// it failed or the text is not allowed.
func (l *configLoader) apply(s *setting, source, text string, err error) {
	s.source = source
	if strings.HasPrefix(s.key, "log.") {
		text = strings.ToLower(text) // other programs write LOG_LEVEL=INFO
	}
	if err == nil {
		err = s.check(text)
		if err != nil && text == "" {
			err = fmt.Errorf("is empty; it %w", err)
		}
	}
	if err != nil {
		l.fault(s.at() + " " + err.Error())
		return
	}
	s.text = text
	s.store()
}

// quotedInYAML is what yaml.v3 quotes in its errors: a password that begins
// with * is the name of an unknown anchor.
var quotedInYAML = regexp.MustCompile(`'.*'|".*"`)

// readFile reads the only document of the file. Nodes know their line and let
// no error show a value, unlike decoding into a struct.
func (l *configLoader) readFile(path string) {
	name := cmp.Or(path, "application.yaml")
	data, err := os.ReadFile(name)
	if path == "" && errors.Is(err, fs.ErrNotExist) {
		return // the defaults are a complete configuration
	}
	if err != nil {
		l.fault("the configuration cannot be read: " + err.Error())
		return
	}
	var document yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	first := decoder.Decode(&document)
	second := decoder.Decode(&yaml.Node{})
	switch {
	case first != nil && first != io.EOF:
		l.fault(name + " is not YAML: " + quotedInYAML.ReplaceAllString(first.Error(), "…"))
	case second != io.EOF:
		l.fault(name + " must hold one YAML document")
	default:
		for _, root := range document.Content { // one, or none in an empty file
			l.readMapping(name, "", root, l.settings)
		}
	}
}

// readMapping reads the settings of a section; in auth the prefix is "auth.".
// The whole file is read as a section without prefix, which has the sections.
// An unknown key is a fault: it may be a misspelt one, whose default would be
// used in silence.
func (l *configLoader) readMapping(file, prefix string, mapping *yaml.Node, settings []*setting) {
	if mapping.Tag == "!!null" {
		return // an empty section leaves the defaults
	}
	if mapping.Kind != yaml.MappingNode {
		l.fault(fmt.Sprintf("%s:%d: expected settings here, such as `auth:` and below it `  issuer: …`",
			file, mapping.Line))
		return
	}
	places := map[string]string{}
	for pair := range slices.Chunk(mapping.Content, 2) {
		key, value := prefix+pair[0].Value, pair[1]
		place := fmt.Sprintf("%s:%d", file, pair[0].Line)
		if first := places[key]; first != "" {
			remedy := "; keep one"
			if value.Kind == yaml.MappingNode {
				remedy = "; put both under one"
			}
			l.fault(place + ": " + key + " stands here and at " + first + remedy)
			continue
		}
		places[key] = place
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		s := findSetting(settings, key)
		switch {
		case prefix == "" && !slices.Contains(l.sections(), key):
			key, _, _ = strings.Cut(key, ":") // "name:value" without a blank is one long key
			l.fault(place + ": unknown section " + key + "; every setting stands in one of " +
				strings.Join(l.sections(), ", "))
		case prefix == "":
			l.readMapping(file, key+".", value, settings)
		case key == clientsSection || prefix == clientsSection+".": // room: provider
			l.readMapping(file, key+".", value, l.clients.declare(key, place)) // room: provider
		case s != nil:
			text, err := l.nodeText(value, s.isList())
			l.apply(s, place, text, err)
		case slices.Contains(ignoredKeys, key):
			l.note(place + ": " + key + " has no effect in this server; remove the line")
		default:
			key, _, _ = strings.Cut(key, ":")
			near := settings
			near = append(near, &setting{settingRow: settingRow{key: clientsSection}}) // room: provider
			l.fault(place + ": unknown setting " + key + "; did you mean " + nearest(near, key).key + "?")
		}
	}
}

// nodeText returns a value as it is written, whatever its YAML type: a
// password may look like a number. The items of a list are joined by commas.
// null is refused, because it may stand for a value that somebody forgot.
func (l *configLoader) nodeText(node *yaml.Node, list bool) (string, error) {
	items := []*yaml.Node{node}
	if list && node.Kind == yaml.SequenceNode {
		items = node.Content
	}
	var texts []string
	for _, item := range items {
		if item.Kind != yaml.ScalarNode || item.Style&yaml.TaggedStyle != 0 { // such as a password !x
			return "", errors.New("must be a plain value; " +
				"put it in quotes if it begins with an exclamation mark")
		}
		if item.Tag == "!!null" {
			return "", errors.New("has no value; write one or remove the line")
		}
		texts = append(texts, item.Value)
	}
	return l.expand(strings.Join(texts, ","))
}

// envReference is a variable of the environment inside a value.
var envReference = regexp.MustCompile(`\$\{ENV:([^}]*)\}`)

// expand replaces ${ENV:NAME}. Every other $ stays: passwords contain it.
func (l *configLoader) expand(text string) (expanded string, err error) {
	expanded = envReference.ReplaceAllStringFunc(text, func(reference string) string {
		name := envReference.FindStringSubmatch(reference)[1]
		value, set := l.env[name]
		if !set {
			err = fmt.Errorf("uses ${ENV:%s}, but the environment has no %s", name, name)
		}
		l.read[name] = true
		return value
	})
	return expanded, err
}

// readEnvironment applies NAME, or the content of the file that NAME_FILE
// names, for every setting. Containers get secrets as files, because the
// environment of a process is easily seen.
func (l *configLoader) readEnvironment() {
	for _, s := range l.settings {
		name, nameFile := s.env, s.env+"_FILE"
		text, set := l.env[name]
		path, setFile := l.env[nameFile]
		l.read[name], l.read[nameFile] = true, true
		switch {
		case set && setFile:
			l.fault(name + " and " + nameFile + " are both set; keep one")
		case set:
			l.apply(s, name, text, nil)
		case setFile: // no error shows the path: it may be a password in the wrong variable
			data, err := os.ReadFile(path)
			if err != nil {
				err = fmt.Errorf("names a file that cannot be read: %w", errors.Unwrap(err))
			}
			l.apply(s, nameFile, strings.TrimRight(string(data), "\r\n"), err)
		}
	}
}

// --- what the settings are together ---

// noteMisspelt warns of variables that no setting reads: a misspelt
// AUTH_ADMIN_PASSWORD must not pass in silence. Other programs use names such
// as LOG_… too, so outside AUTH_ only near misses count.
func (l *configLoader) noteMisspelt() {
	for _, name := range slices.Sorted(maps.Keys(l.env)) {
		near := nearest(l.settings, name).env
		slip := difference(near, name) <= 2
		if !l.read[name] && (slip || strings.HasPrefix(name, "AUTH_")) {
			l.note("the environment variable " + name + " is not a setting; did you mean " + near + "?")
		}
	}
}

// comparePairs refuses what two settings must not be together, and warns of
// what is hardly meant. A value of auth_client that is the default counts as
// not written: application.yaml has all defaults, and AUTH_ISSUER alone must
// not contradict it.
func (l *configLoader) comparePairs() {
	cert, key := l.find("server.tls_cert_file"), l.find("server.tls_key_file")
	if (cert.text == "") != (key.text == "") {
		l.fault(cert.at() + " and " + key.at() + " must be set together")
	}
	if s := l.find("auth.admin_password"); s.text == "" && l.autoCreateAdmin {
		l.fault(s.at() + " is empty; it must be set while auth.auto_create_admin " +
			"(AUTH_AUTO_CREATE_ADMIN) is true")
	}
	issuer, _ := url.Parse(l.issuer) // passed checkIssuer
	if l.cookieDomain != "" && (issuer.Scheme != "https" || !inDomain(issuer.Hostname(), l.cookieDomain)) {
		l.fault(l.find("forward_auth.cookie_domain").at() + " must be the host of auth.issuer " +
			"(AUTH_ISSUER) or a domain above it, and the issuer https: browsers keep the cookie nowhere else")
	}
	for _, name := range []string{"issuer", "audience"} {
		s, used := l.find("auth_client."+name), l.find("auth."+name)
		if s.text != s.fallback && s.text != used.text {
			l.note(s.at() + " has no effect: this server expects what " + used.key + " says, which is not " +
				"the same; remove it")
		}
	}
	accepted := l.find("auth_client.accepted_algorithms")
	if accepted.text != accepted.fallback && !slices.Contains(listItems(accepted.text), l.algorithm) {
		l.note(accepted.at() + " lacks " + l.algorithm + ", by which this server signs (auth.algorithm); " +
			"services that read the same file would refuse every token; add it")
	}
}

// noteAddress warns when issuer and listener do not fit together. Verifiers
// ask the issuer for the key set, so it must lead here, directly or through a
// proxy. Port 0 is chosen at the start, so nothing is known about it.
func (l *configLoader) noteAddress() {
	issuer, _ := url.Parse(l.issuer) // passed checkIssuer
	host, port, _ := net.SplitHostPort(l.listen)
	private := loopbackHost(host)
	public := !loopbackHost(issuer.Hostname())
	scheme := "http"
	if l.tlsCertFile != "" {
		scheme = "https"
	}
	defaults := map[string]string{"http": "80", "https": "443"}
	issuerPort := cmp.Or(issuer.Port(), defaults[issuer.Scheme])
	direct := issuer.Scheme == scheme && issuerPort == port
	proxied := len(l.trustedProxies) > 0
	if !public && port != "0" && !(private && (direct || proxied)) {
		l.note("auth.issuer (AUTH_ISSUER) does not lead to this server, which serves " + scheme + " at " +
			l.listen + " (server.listen, SERVER_LISTEN), for everybody who can reach it; " +
			"set it to the URL that clients use")
	}
	if public && issuer.Scheme == "http" {
		l.note("auth.issuer (AUTH_ISSUER) is public but not https, so passwords and tokens travel " +
			"in clear; put TLS here or in front and make it an https URL")
	}
	if public && private && !proxied {
		l.note("auth.issuer (AUTH_ISSUER) is public and server.listen (SERVER_LISTEN) is loopback: all " +
			"clients of the proxy count as one for the throttle: set server.trusted_proxies " +
			"(SERVER_TRUSTED_PROXIES)")
	}
}

// --- what follows from the settings ---

// dump writes the settings as YAML, each with its source, and as comments
// what follows from them. Secrets are redacted.
func (c *config) dump(w io.Writer) {
	section := ""
	for _, s := range c.settings {
		name, key, _ := strings.Cut(s.key, ".")
		if name != section {
			section = name
			fmt.Fprintf(w, "%s:\n", section)
			c.clients.dump(w, section) // room: provider
		}
		s.print(w, "  ", key)
	}
	keys, err := c.dataPath()
	if err != nil {
		keys = err.Error()
	}
	database, _ := filepath.Abs(c.databasePath()) // fails only without a working directory
	fmt.Fprintf(w, "# base URL: %q\n# key directory: %q\n# database file: %q\n", c.baseURL(), keys, database)
}

// exposed says why this server can be reached from elsewhere, or "" when
// only its own machine can. The published password of the default admin is
// good for nothing on an exposed server.
func (c *config) exposed() string {
	listener, _, _ := net.SplitHostPort(c.listen)
	issuer, _ := url.Parse(c.issuer) // passed checkIssuer
	switch {
	case !loopbackHost(listener):
		return "server.listen " + c.listen + " is not loopback"
	case !loopbackHost(issuer.Hostname()):
		return "auth.issuer " + c.issuer + " is not loopback"
	}
	return ""
}

// baseURL is the issuer without a slash at its end, to put paths behind it.
func (c *config) baseURL() string {
	return strings.TrimSuffix(c.issuer, "/")
}

// origin is the origin of the issuer as browsers write it (RFC 6454 section
// 6.2): in lower case, without the port that the scheme implies.
func (c *config) origin() string {
	issuer, _ := url.Parse(strings.ToLower(c.issuer)) // passed checkIssuer
	host := strings.TrimSuffix(issuer.Host, map[string]string{"http": ":80", "https": ":443"}[issuer.Scheme])
	return issuer.Scheme + "://" + host
}

// basePath is the path of the issuer, to put paths behind it: a proxy may have
// put this server below one.
func (c *config) basePath() string {
	issuer, _ := url.Parse(c.baseURL()) // passed checkIssuer
	return issuer.EscapedPath()
}

// dataPath is data_dir with a leading ~ replaced by the home directory.
func (c *config) dataPath() (string, error) {
	if c.dataDir != "~" && !strings.HasPrefix(filepath.ToSlash(c.dataDir), "~/") {
		return c.dataDir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("auth.data_dir (AUTH_DATA_DIR) begins with ~ for the home directory, "+
			"which is unknown: %w", err)
	}
	return filepath.Join(home, c.dataDir[1:]), nil
}

// databasePath is the file of database.url. A relative one starts in the
// working directory.
func (c *config) databasePath() string {
	return sqliteURL.FindStringSubmatch(c.databaseURL)[1]
}
