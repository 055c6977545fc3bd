// Command pico-auth is a JWT login service in one flat package: registration, login, refresh-token
// rotation, roles, user administration, a published key set, on SQLite, without configuration.
// It is not an OAuth authorization server, has no login page and sends no mail.
//
// To read it, take the files in this order: rbac.go (who may do what), jwt.go (tokens), keys.go
// (signing keys), passwords.go (hashing and throttling), db.go (storage) and adopt.go
// (databases of the Python server), http.go (the way of a request), handlers.go, admin.go and oidc.go
// (the endpoints), config.go, shell.go (the operator's commands), and main.go, which puts them together.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const version = "1.0.0"

// Limits of a connection. A client that is slower than these is cut off (Slowloris).
const (
	headerTimeout  = 5 * time.Second
	readTimeout    = 10 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = 60 * time.Second
	drainTimeout   = 10 * time.Second // for requests in flight when the server is told to stop
	maxHeaderBytes = 32<<10 - 4096    // net/http adds 4096
)

// extendWriteDeadline gives an answer that is written in pieces another writeTimeout. Deadlines are machine
// time, whatever the server's clock says.
func extendWriteDeadline(w http.ResponseWriter) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, process{os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr, time.Now})
	stop()
	os.Exit(exitCode(err, os.Stderr))
}

// process is what the operating system gives a program; tests give their own.
type process struct {
	args           []string
	environ        []string
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
}

// usageError is a wrong command line or configuration: exit status 2. All else is 1.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error, stderr io.Writer) int {
	var usage usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "pico-auth: %v\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "pico-auth: %v\n", err)
	return 1
}

const usage = `pico-auth is a JWT login service.

  pico-auth [-config FILE] [serve]     run the server
  pico-auth config                     print the merged settings, secrets redacted
  pico-auth healthcheck                exit 0 if the running server can store changes
  pico-auth version
  pico-auth user add|list|show|passwd|role|status|delete …   manage users
  pico-auth key list|rotate|drop …     manage signing keys

Settings come from application.yaml (or -config FILE) and from environment variables such as
AUTH_ISSUER; the README lists them.
`

// run does what the command line says. It returns when that is done, or after ctx has ended.
func run(ctx context.Context, p process) error {
	flags := flag.NewFlagSet("pico-auth", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	path := flags.String("config", "", "")
	if err := flags.Parse(p.args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(p.stdout, usage)
		return err
	} else if err != nil {
		return usageError{fmt.Errorf("%w\n\n%s", err, usage)}
	}
	command, rest := "serve", []string(nil)
	if flags.NArg() > 0 {
		command, rest = flags.Arg(0), flags.Args()[1:]
	}
	if command == "version" {
		fmt.Fprintf(p.stdout, "pico-auth %s %s/%s %s\n", version, runtime.GOOS, runtime.GOARCH, runtime.Version())
		return nil
	}
	commands := map[string]func(context.Context, process, *config, []string) error{
		"serve": runServer, "config": runConfig, "healthcheck": runHealthcheck, "user": runUser, "key": runKey,
	}
	do, known := commands[command]
	if command == "help" {
		fmt.Fprint(p.stdout, usage)
		return nil
	}
	if !known {
		return usageError{fmt.Errorf("unknown command %q\n\n%s", command, usage)}
	}
	cfg, err := loadConfig(*path, p.environ)
	if err != nil {
		return usageError{fmt.Errorf("the configuration is not usable:\n%w", err)}
	}
	return do(ctx, p, cfg, rest)
}

// runConfig prints what is in force, and on standard error what is odd about it.
func runConfig(_ context.Context, p process, cfg *config, args []string) error {
	if len(args) > 0 {
		return usageError{errors.New("config takes no arguments")}
	}
	cfg.dump(p.stdout)
	for _, note := range cfg.notes {
		fmt.Fprintln(p.stderr, "warning:", note)
	}
	return nil
}

// newLogger writes to standard error in the configured form. slog quotes line breaks in values, so no
// input can forge a line.
func newLogger(cfg *config, w io.Writer) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(cfg.logLevel)) // checked by loadConfig
	options := &slog.HandlerOptions{Level: level}
	if cfg.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// app is everything that lives as long as the process.
type app struct {
	cfg    *config
	log    *slog.Logger
	now    func() time.Time
	keys   *keyring
	store  *store
	did    opening
	purged time.Time // when tick last purged
}

// openApp opens keys and database; whoever calls it closes the store.
func openApp(cfg *config, now func() time.Time, log *slog.Logger) (*app, error) {
	dir, err := cfg.dataPath()
	if err != nil {
		return nil, usageError{err}
	}
	a := &app{cfg: cfg, log: log, now: steadyClock(now)}
	if a.keys, err = openKeyring(dir, cfg.keyBits); err != nil {
		return nil, err
	}
	var echo *slog.Logger
	if cfg.databaseEcho {
		echo = log
	}
	a.store, a.did, err = openStore(cfg.databasePath(), legacyTokenKey(a.keys.current().pemText), a.now(), echo)
	return a, err
}

// runServer serves until ctx ends.
func runServer(ctx context.Context, p process, cfg *config, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("serve takes no arguments, but got %q; options come before the command: pico-auth -config FILE serve", args)}
	}
	log := newLogger(cfg, p.stderr)
	log.Info("pico-auth starts", "version", version, "title", cfg.apiTitle, "issuer", cfg.issuer)
	for _, note := range cfg.notes {
		log.Warn(note)
	}
	a, err := openApp(cfg, p.now, log)
	if err != nil {
		return err
	}
	defer a.store.close()
	a.logOpening()
	// Housekeeping and hashing go on while requests in flight are finished, so ctx does not end them.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var housekeeping sync.WaitGroup
	defer housekeeping.Wait() // before the store is closed
	defer stop()
	cores := runtime.GOMAXPROCS(0)
	hasher := newHasher(background, cfg.bcryptCost, cores, p.now)
	if err := a.ensureAdmin(ctx, hasher); err != nil {
		return err
	}
	ln, err := listen(cfg)
	if err != nil {
		return err
	}
	defer ln.Close()
	runtime.GOMAXPROCS(2 * cores) // see hasher
	housekeeping.Go(func() { a.housekeep(background) })
	address, try := reachedAt(cfg, ln)
	log.Info("listening", "address", address)
	log.Info("try this", "command", try+discoveryPath, "log_in", "see README.md")
	return serve(ctx, ln, newServer(cfg, a.store, a.keys, hasher, a.now, log), log)
}

// reachedAt is how a client on this machine reaches ln: an address for people and the beginning of a curl command.
func reachedAt(cfg *config, ln net.Listener) (address, curl string) {
	scheme, insecure := "http://", ""
	if cfg.tlsCertFile != "" {
		scheme, insecure = "https://", "--cacert "+cfg.tlsCertFile+" "
	}
	if path, ok := strings.CutPrefix(cfg.listen, "unix:"); ok {
		return cfg.listen, "curl " + insecure + "--unix-socket " + path + " " + scheme + "localhost"
	}
	address = scheme + ln.Addr().String()
	return address, "curl " + insecure + address
}

// serve answers requests from ln until ctx ends, and then waits for those in flight.
func serve(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:                      h,
		DisableGeneralOptionsHandler: true, // OPTIONS * gets our 404 like everything that is no route
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	log.Info("stopping", "waiting_at_most", drainTimeout.String())
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		return errors.Join(fmt.Errorf("requests were still running: %w", err), srv.Close())
	}
	log.Info("stopped")
	return nil
}

// listen opens the configured address, with TLS when a certificate is configured.
func listen(cfg *config) (net.Listener, error) {
	network, address := "tcp", cfg.listen
	if path, ok := strings.CutPrefix(cfg.listen, "unix:"); ok {
		network, address = "unix", path
		removeStaleSocket(path)
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("server.listen (SERVER_LISTEN) %s: %w", cfg.listen, err)
	}
	if network == "unix" { // for a proxy of the same group
		if err := os.Chmod(address, 0o660); err != nil {
			return nil, errors.Join(err, ln.Close())
		}
	}
	if cfg.tlsCertFile == "" {
		return problemListener{ln}, nil
	}
	c := &certificate{certFile: cfg.tlsCertFile, keyFile: cfg.tlsKeyFile}
	if _, err := c.get(nil); err != nil {
		return nil, errors.Join(fmt.Errorf("server.tls_cert_file (SERVER_TLS_CERT_FILE): %w", err), ln.Close())
	}
	return tls.NewListener(ln, &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}), nil
}

// removeStaleSocket removes what a killed server left, but not the socket of a running one.
func removeStaleSocket(path string) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return
	}
	os.Remove(path)
}

// certificate is a TLS certificate that follows its files.
type certificate struct {
	certFile, keyFile string
	mu                sync.Mutex
	stamp             [2]time.Time // when the files had last changed as they were loaded
	loaded            *tls.Certificate
}

// get returns the current certificate. While new files do not fit together the old ones stay in use.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stamp [2]time.Time
	for i, name := range []string{c.certFile, c.keyFile} {
		if info, err := os.Stat(name); err == nil {
			stamp[i] = info.ModTime()
		}
	}
	if c.loaded != nil && stamp == c.stamp {
		return c.loaded, nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err == nil {
		c.loaded, c.stamp = &pair, stamp
	} else if c.loaded == nil {
		return nil, err
	}
	return c.loaded, nil
}

// --- start and housekeeping ---

// logOpening says what was found or made, for the first screen and for later questions.
func (a *app) logOpening() {
	signing := a.keys.current().signing()
	a.log.Info("signing keys", "dir", a.keys.dir, "kid", signing.kid, "created", a.keys.created, "published_keys", len(a.keys.current().keys))
	if a.keys.groupReadable {
		a.log.Warn("the group can read the signing keys; unless it must: chmod 600 " + a.keys.path("private.pem"))
	}
	file, _ := filepath.Abs(a.cfg.databasePath()) // fails only without a working directory
	a.log.Info("database", "file", file, "created", a.did.created)
	if a.did.adopted {
		a.log.Info("adopted the database of pico-auth", "users", a.did.users, "refresh_tokens", a.did.sessions, "copy", a.did.copy)
	}
	for _, email := range a.did.twins {
		a.log.Warn("another email differs from this one only in case; each logs in with its own spelling", "email", email)
	}
}

// ensureAdmin creates the configured admin if nobody has that email, and refuses to go on while a
// user with the published default password could be reached from elsewhere.
func (a *app) ensureAdmin(ctx context.Context, h *hasher) error {
	if err := a.checkAdopted(ctx, h); err != nil {
		return err
	}
	admin, err := a.store.userByLogin(a.cfg.adminEmail)
	switch {
	case errors.Is(err, errNotFound) && a.cfg.autoCreateAdmin:
		err = a.createAdmin(ctx, h)
	case errors.Is(err, errNotFound):
		err = nil
	case err == nil && a.cfg.sources["auth.admin_password"] != "" && a.cfg.adminPassword != defaultAdminPassword:
		go a.comparePasswords(ctx, h, admin) // bcrypt takes longer than the whole start otherwise
	}
	if err != nil {
		return err
	}
	email, err := a.store.defaultPasswordUser()
	if errors.Is(err, errNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if reason := a.cfg.exposed(); reason != "" {
		return usageError{fmt.Errorf("%s, but %s still has the published default password; on this machine run: "+
			"pico-auth user passwd %s (AUTH_ADMIN_PASSWORD counts only when the admin is created)", reason, email, email)}
	}
	a.log.Warn("this user has the published default password `admin`, which works on this machine only; change it with: pico-auth user passwd "+email, "email", email)
	return nil
}

// createAdmin makes the first superadmin. Beyond loopback it needs a password that is not published.
func (a *app) createAdmin(ctx context.Context, h *hasher) error {
	if reason := a.cfg.exposed(); reason != "" && a.cfg.adminPassword == defaultAdminPassword {
		return usageError{fmt.Errorf("%s, so the first admin needs a password of its own: set AUTH_ADMIN_PASSWORD (auth.admin_password), or AUTH_ADMIN_PASSWORD_FILE", reason)}
	}
	if err := checkEmail(a.cfg.adminEmail); err != nil {
		return usageError{fmt.Errorf("auth.admin_email (AUTH_ADMIN_EMAIL) %w", err)}
	}
	hash, err := h.hash(ctx, a.cfg.adminPassword)
	if err != nil {
		return err
	}
	err = a.store.createUser(ctx, principal{}, user{id: newID(), email: a.cfg.adminEmail, displayName: "Admin", passwordHash: hash,
		defaultPassword: a.cfg.adminPassword == defaultAdminPassword, role: superadmin, orgID: defaultOrg, status: statusActive, createdAt: a.now().Unix()}, nil)
	if errors.Is(err, errConflict) {
		return nil // a second server started at the same time and was faster
	}
	if err == nil {
		source := cmp.Or(a.cfg.sources["auth.admin_password"], "the built-in default")
		a.log.Info("admin created", "email", a.cfg.adminEmail, "role", superadmin, "password_from", source)
	}
	return err
}

// checkAdopted finds out which adopted superadmins still have the default password. Adoption leaves a note
// that this is to be done, which only its completion removes, whoever adopted and whatever happened since.
func (a *app) checkAdopted(ctx context.Context, h *hasher) error {
	if _, err := a.store.setting(settingUnchecked); errors.Is(err, errNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	const most = 100 // each takes a bcrypt; whoever is beyond can use that password on this machine only
	admins, err := a.store.listUsers(userFilter{everyOrg: true, role: superadmin, status: statusActive}, 0, most)
	if err != nil {
		return err
	}
	for _, admin := range admins {
		isDefault, err := h.compare(ctx, admin.passwordHash, defaultAdminPassword)
		if err == nil && isDefault {
			err = a.store.markDefaultPassword(ctx, admin)
		}
		if err != nil {
			return err
		}
	}
	return a.store.deleteSetting(ctx, settingUnchecked)
}

// comparePasswords tells an operator who changed the configured password that this changes nothing.
func (a *app) comparePasswords(ctx context.Context, h *hasher, admin user) {
	if same, err := h.compare(ctx, admin.passwordHash, a.cfg.adminPassword); err == nil && !same {
		a.log.Warn("the configured admin password is not that of the existing admin and is not applied; to set a new one: pico-auth user passwd "+admin.email,
			"source", a.cfg.sources["auth.admin_password"])
	}
}

// housekeep calls tick until ctx ends. Two seconds is how soon a changed key directory is noticed.
func (a *app) housekeep(ctx context.Context) {
	ticker := time.NewTicker(2 * time.Second)
	defer ticker.Stop()
	for {
		a.tick(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// tick follows the key directory, lets keys change when they are due, and purges once an hour.
func (a *app) tick(ctx context.Context) {
	if changed, err := a.keys.reload(); err != nil {
		a.log.Error("the signing keys cannot be read; those in memory stay in use", "err", err)
	} else if changed {
		a.log.Info("key.reloaded", "kid", a.keys.current().signing().kid, "published", len(a.keys.current().keys))
	}
	now := a.now()
	plan := a.keyPlan()
	if now.Sub(a.purged).Abs() >= purgeStep {
		horizon, removed, err := a.store.purge(ctx, now, time.Duration(a.cfg.throttle.knownAddressDays)*24*time.Hour)
		if err != nil {
			a.log.Error("purging expired rows failed", "err", err)
			return
		}
		a.purged, plan.horizon = now, horizon
		if removed > 0 {
			a.log.Info("purged expired rows", "rows", removed)
		}
	}
	if len(a.keys.due(now, plan)) == 0 {
		return
	}
	err := a.store.exclusively(ctx, func() error { return a.changeKeys(now, plan) })
	if err != nil {
		a.log.Error("changing the signing keys failed", "err", err)
	}
}

// changeKeys carries out what is due now, after another look: it holds the lock, others may have been faster.
func (a *app) changeKeys(now time.Time, plan keyPlan) error {
	if _, err := a.keys.reload(); err != nil {
		return err
	}
	for _, step := range a.keys.due(now, plan) {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.event, err)
		}
		a.log.Info(step.event, "signing", a.keys.current().signing().kid)
	}
	return nil
}

// keyPlan is what the configuration says about changing keys; tick adds the horizon.
func (a *app) keyPlan() keyPlan {
	return keyPlan{every: a.cfg.keyRotation(), validFor: a.cfg.accessTTL() + clockSkew}
}

// maxSetBack is how far back the clock may be set without time going back in the server.
const maxSetBack = 2 * time.Hour

// steadyClock returns a clock that stands still while the given one catches up after it was set
// back, so that nothing that had expired lives again. A step of more than two hours means that the clock
// was wrong before; then its new time is followed.
func steadyClock(now func() time.Time) func() time.Time {
	var mu sync.Mutex
	var latest time.Time
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		t := now()
		// Round(0) drops the monotonic reading, which does not see the clock being set.
		if behind := latest.Round(0).Sub(t.Round(0)); behind <= 0 || behind > maxSetBack {
			latest = t
		}
		return latest
	}
}

// --- healthcheck ---

// runHealthcheck asks the running server whether it can store, for containers and monitors.
func runHealthcheck(ctx context.Context, p process, cfg *config, args []string) error {
	if len(args) > 0 {
		return usageError{errors.New("healthcheck takes no arguments")}
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if path, ok := strings.CutPrefix(cfg.listen, "unix:"); ok {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		host, port, _ := net.SplitHostPort(cfg.listen)
		if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
			host = "localhost"
		}
		return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	}}
	url := "http://localhost/healthz"
	if cfg.tlsCertFile != "" {
		url = "https://localhost/healthz"
		trust, err := trustOnly(cfg.tlsCertFile)
		if err != nil {
			return err
		}
		transport.TLSClientConfig = trust
	}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no answer from %s: %w", cfg.listen, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", cfg.listen, res.Status)
	}
	fmt.Fprintln(p.stdout, "ok")
	return nil
}

// trustOnly accepts exactly the certificate in a file, whatever name it is for.
func trustOnly(certFile string) (*tls.Config, error) {
	data, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", certFile)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // replaced by the comparison below, which is stricter
		VerifyConnection: func(cs tls.ConnectionState) error {
			if slices.ContainsFunc(cs.PeerCertificates[:1], func(c *x509.Certificate) bool { return slices.Equal(c.Raw, block.Bytes) }) {
				return nil
			}
			return errors.New("the server shows another certificate than " + certFile)
		},
	}, nil
}
