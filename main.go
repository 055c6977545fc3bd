// Command pico-auth is a login service in one flat package: registration,
// login, refresh-token rotation, roles, groups, service tokens, administration
// and a published key set, on SQLite, without configuration. With clients in
// its configuration it is an OpenID Provider too. It sends no mail.
//
// To read it, take the files in this order: rbac.go (users, and who may do
// what), jwt.go (tokens), keys.go (signing keys), passwords.go (hashing and
// throttling), backup.go, db.go, accounts.go and refresh.go (storage), http.go
// and body.go (the way of a request), handlers.go, admin.go and oidc.go (the
// endpoints), settings.go and config.go, prompt.go and shell.go (the operator's
// commands), routes.go (the list of endpoints) and main.go, which puts them
// together. Rooms that can be deleted are groups.go, servicetokens.go,
// mldsa.go, the provider (clients.go, pages.go, authorize.go, logout.go,
// token.go) and adopt.go, which takes over databases of the Python server. A
// file uses only files that stand lower in the table of TestStructure_Rooms.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
)

// drainTimeout is for requests in flight when the server is told to stop.
const drainTimeout = 10 * time.Second

// main hands on what the operating system gives, and the clock: nothing is
// decided by another.
func main() {
	p := process{os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr, time.Now}
	err := run(context.Background(), p)
	os.Exit(exitCode(err, p.stderr))
}

// exitCode prints an error and returns the exit status that belongs to it: 2 is
// for what the operator has to correct before the next try.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "pico-auth: %v\n", err)
	if _, wrong := errors.AsType[usageError](err); wrong {
		return 2
	}
	return 1
}

// commands are what run does with a configuration, by the names of their
// command lines, with the number of words that follow. A room that can be
// deleted adds its commands as lines of their own.
var commands = map[string]command{
	"serve":         {0, false, runServer},
	"config":        {0, false, runConfig},
	"healthcheck":   {0, false, runHealthcheck},
	"backup":        inShell(1, shellBackup),
	"user add":      inShell(1, shellUserAdd),
	"user list":     inShell(0, shellUserList),
	"user show":     onUser(1, shellUserShow),
	"user passwd":   onUser(1, shellUserPasswd),
	"user role":     onUser(2, shellUserSet),
	"user status":   onUser(2, shellUserSet),
	"user org":      onUser(2, shellUserSet),
	"user verify":   onUser(1, shellUserVerify),
	"user delete":   onUser(1, shellUserDelete),
	"user sessions": inShell(1, shellUserSessions),
	"key list":      inShell(0, shellKeyList),
	"key rotate":    inShell(0, shellKeyRotate),
	"key drop":      inShell(1, shellKeyDrop),

	"group list":   inRoom(0, shellGroupList),   // room: groups
	"group add":    inRoom(1, shellGroupAdd),    // room: groups
	"group show":   inRoom(1, shellGroupShow),   // room: groups
	"group delete": inRoom(1, shellGroupDelete), // room: groups
	"group join":   inRoom(2, shellGroupJoin),   // room: groups
	"group leave":  inRoom(2, shellGroupLeave),  // room: groups

	"service-token add":    inRoom(1, shellServiceTokenAdd),    // room: servicetokens
	"service-token list":   inRoom(0, shellServiceTokenList),   // room: servicetokens
	"service-token revoke": inRoom(1, shellServiceTokenRevoke), // room: servicetokens

	"client secret": {1, true, runClientSecret}, // room: provider
}

// run does what the command line says. It returns when that is done, or after
// ctx has ended. Help and version need no configuration, not even a usable one.
func run(ctx context.Context, p process) error {
	line, err := parseCommandLine(p.args)
	help := line.help()
	switch {
	case errors.Is(err, flag.ErrHelp) || line.name == "help":
		fmt.Fprintln(p.stdout, help)
		return nil
	case err != nil:
		return usageErrorf("%w\n\n%s", err, help)
	case line.name == "version" || line.about:
		build, known := debug.ReadBuildInfo()
		if !known {
			build = &debug.BuildInfo{}
		}
		fmt.Fprintln(p.stdout, versionLine(build.Settings))
		return nil
	}
	do, known := commands[line.name]
	fault := ""
	switch {
	case line.isGroup():
		fault = "needs a command after it"
	case !known:
		fault = "is no command"
	case len(line.words) != do.words:
		fault = fmt.Sprintf("takes %d words after it, not %d", do.words, len(line.words))
	case line.untaken() != "":
		fault = "takes no " + line.untaken()
	}
	if fault != "" {
		return usageErrorf("%s %s\n\n%s", line.name, fault, help)
	}
	cfg, err := loadConfig(line.config, p.environ)
	if err != nil && !do.anyConfig {
		return usageErrorf("the configuration is not usable:\n%w", err)
	}
	return do.run(ctx, p, cfg, line)
}

// runConfig prints what is in force, and on standard error what is odd about
// it.
func runConfig(_ context.Context, p process, cfg *config, _ commandLine) error {
	cfg.dump(p.stdout)
	for _, note := range cfg.notes {
		fmt.Fprintln(p.stderr, "warning:", note)
	}
	return nil
}

// --- start and stop ---

// runServer serves until ctx ends. Nothing is made or changed before the
// address is bound, so a second start by mistake, or one beside the running
// Python server, changes nothing. Whatever is wrong ends the start before
// anything is served.
func runServer(ctx context.Context, p process, cfg *config, _ commandLine) error {
	ctx, stopSignals := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stopSignals()
	context.AfterFunc(ctx, stopSignals) // a second signal ends the process at once
	log := newLogger(cfg, p.stderr)
	log.Info("pico-auth starts", "version", version, "title", cfg.apiTitle, "issuer", cfg.issuer)
	for _, note := range cfg.notes {
		log.Warn(note)
	}
	certificate, err := loadCertificate(cfg)
	if err != nil {
		return err
	}
	listeners, err := listen(cfg.find("server.listen"))
	defer closeAll(listeners)
	if err != nil {
		return err
	}
	var monitors []net.Listener
	monitors, err = listen(cfg.find("server.metrics_listen")) // room: metrics
	defer closeAll(monitors)
	if err != nil {
		return err
	}
	a, err := openServerApp(ctx, cfg, p.now, log)
	if err != nil {
		return err
	}
	defer a.store.close()

	// Housekeeping and hashing go on while requests in flight are finished, so
	// ctx does not end them.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	defer work.Wait() // before the store is closed
	defer stop()
	cores := runtime.GOMAXPROCS(0)
	// See hasher. This also ends Go's own following of a changed CPU limit.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2 * cores))
	hasher := newHasher(background, cfg.bcryptCost, cores)
	work.Go(func() { a.housekeep(background) })
	work.Go(func() { a.warnOfAdmins(background) })
	address, try := reach(cfg, listeners[0])
	log.Info("listening", "address", address)
	log.Info("try this", "command", try, "log_in", "see README.md")
	handler := newServer(cfg, a.store, a.keys, hasher, p.now, log)
	handler.warnOfGroups()                                                       // room: provider
	work.Go(func() { serveMetrics(background, monitors, handler.monitor, log) }) // room: metrics
	return serve(ctx, listeners, certificate, handler, log)
}

// openServerApp opens or makes everything that the server needs before it can
// serve: keys that exist, database, first key, admin. Its caller closes the
// store, unless there is an error.
func openServerApp(ctx context.Context, cfg *config, now func() time.Time, log *slog.Logger) (*app, error) {
	a, err := openApp(cfg, now, log, openOptions{
		adopt: adoptPython, // room: adopt
	})
	if err != nil {
		return nil, err
	}
	if err = a.ensureKeys(ctx); err == nil {
		err = a.ensureAdmin(ctx)
	}
	if err == nil {
		err = a.checkClientNames()
	}
	if err != nil {
		err = errors.Join(err, a.store.close())
	}
	return a, err
}

// checkClientNames refuses OpenID clients that are called like service tokens:
// both are client_ids of the token endpoint.
func (a *app) checkClientNames() error {
	clients := []string{}
	clients = append(clients, a.cfg.clients.ids()...) // room: provider
	for _, id := range clients {
		taken, err := false, error(nil)
		taken, err = a.store.serviceNameExists(id) // room: servicetokens
		if err != nil {
			return err
		}
		if taken {
			return usageErrorf("oidc.clients.%s is called like a service token; rename the client, "+
				"or revoke the token: pico-auth service-token revoke %[1]s", id)
		}
	}
	return nil
}

// ensureKeys makes the first key if there is none, and warns of what a wrong
// directory would look like.
func (a *app) ensureKeys(ctx context.Context) error {
	empty := a.keys.empty()
	if empty {
		if err := a.makeFirstKey(ctx); err != nil {
			return fmt.Errorf("making the first signing key: %w", err)
		}
	} else if a.store.created {
		a.log.Warn("a new database was made beside keys that existed; if database.url (DATABASE_URL) " +
			"is relative, it depends on the working directory: correct it and start again")
	}
	if err := a.dateFirstKey(ctx, empty); err != nil {
		return err
	}
	now := a.now()
	signing := a.keys.current().signing(now)
	a.log.Info("signing keys", "dir", a.keys.dir, "kid", signing.kid, "algorithm", signing.algorithm.name)
	if signing.algorithm.name != a.keys.algorithm {
		a.log.Warn("auth.algorithm (AUTH_ALGORITHM) has changed: a key for it is published now, and tokens "+
			"are signed with the old one for 24 hours more; to change over in 5 seconds: "+
			"pico-auth key rotate --now", "from", signing.algorithm.name, "to", a.keys.algorithm)
	}
	// The file of the key that should sign was lost, or the clock is wrong. A
	// token that the next key signs before its time would be refused by every
	// verifier that has not fetched the key set lately.
	if signing.since.After(now) && signing.file != firstKeyFile {
		return fmt.Errorf("no key in %s signs yet: restore private.pem from a backup, or correct the clock",
			a.keys.dir)
	}
	return nil
}

// makeFirstKey makes a key, unless another server is faster. Users are counted
// before: another server can have made its admin afterwards.
func (a *app) makeFirstKey(ctx context.Context) error {
	users, err := usersWhere(userFilter{everyOrg: true}).count(a.store.reads)
	if err != nil {
		return err
	}
	key, err := a.keys.generate() // before the lock, because it can take seconds
	if err != nil {
		return err
	}
	return a.store.exclusively(ctx, func() error {
		created, err := a.keys.createFirst(key)
		if created {
			a.log.Info("signing key created")
		}
		if created && users > 0 {
			a.log.Warn("new signing keys were made although the database has users, " +
				"so all earlier tokens are refused; " +
				"if auth.data_dir (AUTH_DATA_DIR) is wrong or was not mounted, correct it and start again")
		}
		return err
	})
}

// loadCertificate returns the TLS configuration, or nil without a certificate.
// It is read before the address is bound, so that a wrong one changes nothing.
// A renewed certificate needs a restart, which takes milliseconds.
func loadCertificate(cfg *config) (*tls.Config, error) {
	if cfg.tlsCertFile == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(cfg.tlsCertFile, cfg.tlsKeyFile)
	if err != nil {
		return nil, usageErrorf("server.tls_cert_file (SERVER_TLS_CERT_FILE), server.tls_key_file: %w", err)
	}
	certificate := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
	}
	return certificate, nil
}

// listen opens the address of a setting, or nothing if that is empty.
// "localhost" means both loopback addresses, as far as this machine has them:
// another user of it could take one that is left free, and get the passwords of
// clients that prefer it. On an error those that are open already are returned
// with it.
func listen(s *setting) (listeners []net.Listener, err error) {
	if s.text == "" {
		return nil, nil
	}
	host, port, _ := net.SplitHostPort(s.text) // checked by loadConfig
	hosts := []string{host}
	if strings.EqualFold(host, "localhost") {
		hosts[0] = "127.0.0.1"
		addresses, _ := net.InterfaceAddrs() // without them there is no IPv6 to speak of
		for _, a := range addresses {
			if a.String() == "::1/128" {
				hosts = append(hosts, "::1")
			}
		}
	}
	for _, host := range hosts {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, port))
		if err != nil {
			hint := "choose another port"
			if s.key == "server.listen" {
				hint = "if it does not run already, choose another port here and in the issuer: " +
					otherPort + " pico-auth"
			}
			return listeners, fmt.Errorf("%s %s: %w; %s", s.at(), s.text, err, hint)
		}
		listeners = append(listeners, ln)
		_, port, _ = net.SplitHostPort(ln.Addr().String()) // 0 has become a number
	}
	return listeners, nil
}

// closeAll does no harm to listeners that serve has closed already.
func closeAll(listeners []net.Listener) {
	for _, ln := range listeners {
		ln.Close()
	}
}

// reach is how a client on this machine reaches the server: an address for
// people and a curl command for bash and zsh. The host of the issuer is used
// where it leads here, because clients compare it with the iss of tokens.
func reach(cfg *config, ln net.Listener) (address, curl string) {
	host, _, _ := net.SplitHostPort(cfg.listen)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	// Another loopback address is not named localhost: that can be somebody
	// else's.
	if onLoopback(host) {
		host = "localhost"
	}
	issuer, _ := url.Parse(cfg.issuer) // checked by loadConfig
	scheme, curl := "http", "curl "
	leadsHere := issuer.Port() == port && loopbackHost(issuer.Hostname())
	if cfg.tlsCertFile != "" {
		// The certificate is for the issuer's name, wherever that name leads.
		scheme, leadsHere = "https", true
		here := "::" + net.JoinHostPort(host, port)
		curl += fmt.Sprintf("--cacert %s --connect-to %s ", shellQuote(cfg.tlsCertFile), shellQuote(here))
	}
	if leadsHere && issuer.Scheme == scheme {
		host = issuer.Hostname()
	}
	address = scheme + "://" + net.JoinHostPort(host, port)
	return address, curl + shellQuote(address+discoveryPath)
}

// onLoopback reports whether a server that listens on this host answers at
// 127.0.0.1.
func onLoopback(host string) bool {
	everywhere := host == "" || net.ParseIP(host).IsUnspecified()
	return everywhere || strings.EqualFold(host, "localhost")
}

// shellQuote quotes a text for bash and zsh.
func shellQuote(v string) string {
	return "'" + strings.ReplaceAll(v, "'", `'\''`) + "'"
}

// serve answers requests until ctx ends, and then waits for those in flight.
// A listener that fails ends the others too: half of localhost would be free
// for somebody else.
func serve(
	ctx context.Context,
	listeners []net.Listener,
	certificate *tls.Config,
	handler http.Handler,
	log *slog.Logger,
) error {
	srv := &http.Server{
		Handler:                      handler,
		TLSConfig:                    certificate,
		DisableGeneralOptionsHandler: true, // OPTIONS * gets our 404 like everything that is no route
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),

		// A client that is slower or sends more is cut off (Slowloris).
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    32<<10 - 4096, // net/http adds 4096
	}
	failed := make(chan error, len(listeners))
	for _, ln := range listeners {
		go func() {
			if certificate != nil {
				failed <- srv.ServeTLS(ln, "", "")
			} else {
				failed <- srv.Serve(ln)
			}
		}()
	}
	select {
	case err := <-failed:
		return errors.Join(err, srv.Close())
	case <-ctx.Done():
	}
	log.Info("stopping", "waiting_at_most", drainTimeout.String())
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		err = fmt.Errorf("requests were still running: %w", err)
		return errors.Join(err, srv.Close())
	}
	log.Info("stopped")
	return nil
}

// --- the first admin, and the published default password ---

// ensureAdmin creates the configured admin if nobody has that email, and
// refuses to go on while a superadmin with the published default password
// could be reached from elsewhere.
func (a *app) ensureAdmin(ctx context.Context) error {
	_, err := a.store.userByLogin(a.cfg.adminEmail)
	if errors.Is(err, errNotFound) {
		err = a.createAdmin(ctx)
	}
	// On loopback the server starts: there mayLogIn sees to it that the default
	// password works on this machine only.
	reason := a.cfg.exposed()
	if err != nil || reason == "" {
		return err
	}
	weak, err := a.defaultPasswordAdmins(ctx)
	if err != nil || len(weak) == 0 {
		return err
	}
	return usageErrorf("%s, but %s still has the published default password; on this machine run: "+
		"pico-auth user passwd %[2]s (AUTH_ADMIN_PASSWORD counts only when the admin is created)",
		reason, weak[0])
}

// createAdmin makes the configured admin. Beyond loopback it needs a password
// that is not published. With the published one it is made only while there
// is no superadmin at all: a default admin that was deleted stays deleted.
func (a *app) createAdmin(ctx context.Context) error {
	if !a.cfg.autoCreateAdmin {
		return nil
	}
	if a.cfg.adminPassword == defaultAdminPassword {
		filter := userFilter{everyOrg: true, role: superadmin}
		superadmins, err := usersWhere(filter).count(a.store.reads)
		if err != nil || superadmins > 0 {
			return err
		}
		if reason := a.cfg.exposed(); reason != "" {
			return usageErrorf("%s, so the first admin needs a password of its own: "+
				"set AUTH_ADMIN_PASSWORD (auth.admin_password), or AUTH_ADMIN_PASSWORD_FILE", reason)
		}
	}
	if err := checkEmail(a.cfg.adminEmail); err != nil {
		return usageErrorf("auth.admin_email (AUTH_ADMIN_EMAIL) %w", err)
	}
	// No hashing thread and no time limit: nobody else is served yet.
	hash, err := hashPassword(a.cfg.adminPassword, a.cfg.bcryptCost)
	if err != nil {
		return err
	}
	admin := user{
		id:           newID(),
		email:        a.cfg.adminEmail,
		displayName:  "Admin",
		passwordHash: hash,
		role:         superadmin,
		orgID:        defaultOrg,
		status:       statusActive,
		createdAt:    a.now().Unix(),
	}
	operator := principal{user: user{id: "configuration", role: superadmin}}
	err = a.store.createUser(ctx, operator, admin, anyActor)
	if errors.Is(err, errConflict) {
		return nil // a second server started at the same time and was faster
	}
	if err == nil {
		source := cmp.Or(a.cfg.source("auth.admin_password"), "the built-in default")
		a.log.Info("admin created", "email", admin.email, "password_from", source)
	}
	return err
}

// settingCleanHashes holds the SHA-256 of the password hashes of superadmins
// that were compared with the default password and differ, so that each costs
// one bcrypt computation once and not at every start.
const settingCleanHashes = "not_the_default_password"

// defaultPasswordAdmins returns the emails of the active superadmins who have
// the published default password. It looks at the first 100: each can take a
// bcrypt computation, and a login with that password is refused anyway.
func (a *app) defaultPasswordAdmins(ctx context.Context) (weak []string, err error) {
	known, err := a.store.setting(settingCleanHashes)
	if err != nil {
		return nil, err
	}
	filter := userFilter{everyOrg: true, role: superadmin, status: statusActive}
	admins, err := usersWhere(filter).page(a.store.reads, 0, 100)
	if err != nil {
		return nil, err
	}
	var clean []byte
	for _, admin := range admins {
		if ctx.Err() != nil { // a stop must not wait for all of them
			return nil, ctx.Err()
		}
		sum := sha256.Sum256(admin.passwordHash)
		isClean := bytes.Contains(known, sum[:])
		if !isClean && matches(admin.passwordHash, defaultAdminPassword) {
			weak = append(weak, admin.email)
		} else {
			clean = append(clean, sum[:]...)
		}
	}
	if bytes.Equal(clean, known) {
		return weak, nil
	}
	err = a.store.change(ctx, func(t *queries) error {
		return t.setSetting(settingCleanHashes, clean)
	})
	return weak, err
}

// warnOfAdmins says what is odd about the superadmins' passwords: the published
// one, and a configured one that is not in use. It runs beside the server,
// because each comparison takes longer than the start.
func (a *app) warnOfAdmins(ctx context.Context) {
	weak, err := a.defaultPasswordAdmins(ctx)
	if err != nil && ctx.Err() == nil {
		a.log.Error("comparing the admins' passwords with the default failed", "err", err)
	}
	for _, email := range weak {
		a.log.Warn("this user has the published default password `admin`, which works on this machine only; "+
			"change it with: pico-auth user passwd "+email, "email", email)
	}
	password := a.cfg.adminPassword
	if password == "" || password == defaultAdminPassword {
		return // none is configured
	}
	admin, err := a.store.userByLogin(a.cfg.adminEmail)
	if err == nil && !matches(admin.passwordHash, password) {
		a.log.Warn("the configured admin password is not that of the existing admin and is not applied; "+
			"to set a new one: pico-auth user passwd "+admin.email,
			"source", a.cfg.source("auth.admin_password"))
	}
}

// --- housekeeping ---

// housekeeper is what housekeeping remembers between two rounds.
type housekeeper struct {
	*app
	signing string               // kid of the key that signs
	purged  time.Time            // of the last purge
	horizon time.Time            // as the last purge returned it
	failed  time.Time            // the last change of keys that failed
	faults  map[string]time.Time // what fails, and when that was last logged
}

// newHousekeeper makes a housekeeper whose first round does everything that is
// due.
func newHousekeeper(a *app) *housekeeper {
	return &housekeeper{app: a, faults: map[string]time.Time{}}
}

// housekeep runs a round every two seconds until ctx ends: so soon are changed
// key files noticed.
func (a *app) housekeep(ctx context.Context) {
	h := newHousekeeper(a)
	tick := time.Tick(2 * time.Second)
	for ctx.Err() == nil {
		h.round(ctx)
		select {
		case <-ctx.Done():
		case <-tick:
		}
	}
}

// round follows the key directory, purges once an hour, and changes keys when
// they are due. Retired keys go by the horizon of the purge, so that a clock
// which jumps ahead for a while drops none.
func (h *housekeeper) round(ctx context.Context) {
	changed, err := h.keys.reload()
	h.report("reading the signing keys (those in memory stay in use)", err)
	now := h.now()
	signing := h.keys.current().signing(now).kid
	if changed {
		h.log.Info("key.reloaded", "kid", signing)
	}
	if h.signing != "" && h.signing != signing {
		h.log.Info("key.rotated", "kid", signing)
	}
	h.signing = signing
	h.report("purging expired sessions", h.purge(ctx))
	if now.Sub(h.failed).Abs() < time.Minute {
		return // each try can make a key, which is dear
	}
	plan := h.keyPlan()
	plan.horizon = h.horizon
	err = h.changeKeys(ctx, func(now time.Time) keyChanges {
		return h.keys.due(now, plan)
	})
	h.report("changing the signing keys", err)
	if err != nil {
		h.failed = now
	}
}

// report logs a lasting fault when it begins and when it ends, and once an
// hour between.
func (h *housekeeper) report(what string, err error) {
	now := h.now()
	last, failing := h.faults[what]
	switch {
	case err == nil && failing:
		delete(h.faults, what)
		h.log.Info(what + " works again")
	case err != nil && now.Sub(last).Abs() >= time.Hour:
		h.faults[what] = now
		h.log.Error(what+" failed", "err", err)
	}
}

// purge removes expired sessions once an hour; after a failure it tries again
// in the next round.
func (h *housekeeper) purge(ctx context.Context) error {
	now := h.now()
	if now.Sub(h.purged).Abs() < purgeStep {
		return nil
	}
	horizon, removed, err := h.store.purge(ctx, now)
	if err == nil {
		h.purged, h.horizon = now, horizon
	}
	if removed > 0 {
		h.log.Info("purged expired sessions", "rows", removed)
	}
	return err
}

// --- healthcheck ---

// runHealthcheck asks the running server whether it can store, for containers
// and monitors. localhost is asked without name resolution. The certificate is
// not verified: nothing is sent that somebody else could read.
func runHealthcheck(_ context.Context, p process, cfg *config, _ commandLine) error {
	host, port, _ := net.SplitHostPort(cfg.listen)
	if onLoopback(host) {
		host = "127.0.0.1"
	}
	scheme := "http"
	if cfg.tlsCertFile != "" {
		scheme = "https"
	}
	client := &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
	}
	address := scheme + "://" + net.JoinHostPort(host, port) + healthPath
	res, err := client.Get(address)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		return fmt.Errorf("%s answers %s", address, res.Status)
	}
	fmt.Fprintln(p.stdout, "ok")
	return nil
}
