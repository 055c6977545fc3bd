package main

// This file is the operator's shell: users, signing keys and what else is
// administered, on the same database and key directory as the server, also
// while it runs. Whoever can read these files is trusted like a superadmin;
// every rule holds here too, because the commands call the functions of
// admin.go and of the files beside it. Passwords
// never come from arguments, which every user of the machine can see. What
// all commands share stands first: process, command line, errors, open files.

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// process is what the operating system gives a program; tests give their own.
type process struct {
	args           []string
	environ        []string
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
}

// commandLine is what the arguments say.
type commandLine struct {
	name    string   // of the command, such as "serve" or "user add"
	words   []string // after the name
	usage   string   // of shellUsage, if the command is there
	config  string   // path of the file, if one is named
	options []string // the names of those that were given
	about   bool     // --version, which counts more than name
	shellOptions
}

// shellOptions are the options of all commands that shellUsage explains: what a
// new user, group or token gets, whether its password is made here, whether the
// output is JSON, whether a new key signs at once, whether sessions are ended,
// and whether nothing is asked at a terminal.
type shellOptions struct {
	role, org, displayName, description string
	generate, json, atOnce, end, yes    bool
}

// command is what a name of the command line stands for.
type command struct {
	words     int  // that follow the name
	anyConfig bool // also one that is not usable, because another is being made
	run       func(ctx context.Context, p process, cfg *config, line commandLine) error
}

// parseCommandLine takes options before, between and after the words; the word
// after "--" is never one. On an error (flag.ErrHelp among them) name and
// usage are set as far as the words are known, so that the right explanation
// can be shown.
func parseCommandLine(args []string) (line commandLine, err error) {
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&line.config, "config", "", "")
	f.BoolVar(&line.about, "version", false, "")
	f.StringVar(&line.role, "role", "", "")
	f.StringVar(&line.org, "org", "", "")
	f.StringVar(&line.displayName, "name", "", "")
	f.StringVar(&line.description, "description", "", "")
	f.BoolVar(&line.generate, "generate", false, "")
	f.BoolVar(&line.json, "json", false, "")
	f.BoolVar(&line.atOnce, "now", false, "")
	f.BoolVar(&line.end, "end", false, "")
	f.BoolVar(&line.yes, "yes", false, "")
	var words []string
	for err == nil && len(args) > 0 {
		err = f.Parse(args)
		if args = f.Args(); len(args) > 0 {
			words = append(words, args[0])
			args = args[1:]
		}
	}
	switch {
	case len(words) > 0:
		line.name, words = words[0], words[1:]
	case err == nil:
		line.name = "serve"
	}
	line.usage = shellUsage[line.name]
	if line.usage != "" && len(words) > 0 {
		line.name += " " + words[0]
		words = words[1:]
	}
	line.words = words
	f.Visit(func(option *flag.Flag) { line.options = append(line.options, option.Name) })
	return line, err
}

// versionLine names this program, the commit it was built from, as far as the
// go command noted it in the build, and the version of Go.
func versionLine(build []debug.BuildSetting) string {
	noted := map[string]string{}
	for _, setting := range build {
		noted[setting.Key] = setting.Value
	}
	line := "pico-auth " + version
	if commit := noted["vcs.revision"]; commit != "" {
		line += fmt.Sprintf(" commit %.12s", commit)
		if noted["vcs.modified"] == "true" {
			line += " with changes"
		}
	}
	return fmt.Sprintf("%s %s/%s %s", line, runtime.GOOS, runtime.GOARCH, runtime.Version())
}

// usageError is a wrong command line or configuration: exit status 2. All
// other errors are 1.
type usageError struct{ error }

func usageErrorf(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// newLogger writes to standard error in the configured form. slog quotes line
// breaks in values, so no input can forge a line.
func newLogger(cfg *config, w io.Writer) *slog.Logger {
	var level slog.Level
	level.UnmarshalText([]byte(cfg.logLevel)) // checked by loadConfig
	options := &slog.HandlerOptions{Level: level}
	if cfg.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// --- the open files ---

// app is the open files of one process, and what works on them, in the server
// and in the shell. now is the injected clock.
type app struct {
	cfg   *config
	log   *slog.Logger
	now   func() time.Time
	keys  *keyring
	store *store
}

// openApp reads the keys and then opens the database; its caller closes the
// store. o says what may be made there.
func openApp(cfg *config, now func() time.Time, log *slog.Logger, o openOptions) (*app, error) {
	dir, err := cfg.dataPath()
	if err != nil {
		return nil, usageError{err}
	}
	a := &app{cfg: cfg, log: log, now: now}
	if a.keys, err = openKeyring(dir, cfg.algorithm, cfg.keyBits); err != nil {
		return nil, err
	}
	for _, note := range a.keys.notes {
		log.Warn(note)
	}
	o.now = now()
	o.log = log
	o.echo = cfg.databaseEcho
	o.keyDir = dir
	a.store, err = openStore(cfg.databasePath(), o)
	return a, err
}

// settingFirstKey is since when private.pem signs, in unix seconds. The time
// of the file will not do: copying or restoring it would start its age anew.
const settingFirstKey = "first_key_since"

// dateFirstKey tells the keyring since when private.pem signs, if it is there.
// A process that sees the file for the first time decides it for good.
// isNew says that the file was made since this process began: a time that is
// stored already is that of a key that was lost.
func (a *app) dateFirstKey(ctx context.Context, isNew bool) error {
	written, exists := a.keys.firstKeyTime()
	if !exists {
		return nil
	}
	value, err := a.store.setting(settingFirstKey)
	if err == nil && (value == nil || isNew) {
		value = fmt.Append(nil, min(written.Unix(), a.now().Unix()))
		err = a.store.change(ctx, func(t *queries) error {
			return t.setSetting(settingFirstKey, value)
		})
	}
	if err != nil {
		return err
	}
	var since int64
	if _, err := fmt.Sscan(string(value), &since); err != nil {
		return fmt.Errorf("the setting %s is damaged: %w", settingFirstKey, err)
	}
	return a.keys.setFirstSince(time.Unix(since, 0))
}

// keyPlan is what the configuration says about changing keys. When the clock is
// set back, by clockSkew at most, a token lives that much longer.
func (a *app) keyPlan() keyPlan {
	longest := a.cfg.accessTTL
	longest = max(longest, idTokenTime) // room: provider
	return keyPlan{every: a.cfg.keyRotation, validFor: longest + clockSkew}
}

// changeKeys publishes and drops what decide says, while no other process can
// change keys. A new key is made before that, because it can take seconds, and
// decide is asked again, because another process may have been faster. A
// running server notices the new files within two seconds.
func (a *app) changeKeys(ctx context.Context, decide func(now time.Time) keyChanges) error {
	wanted := decide(a.now())
	var key newKey
	if !wanted.publishAt.IsZero() {
		var err error
		if key, err = a.keys.generate(); err != nil {
			return err
		}
	} else if len(wanted.drop) == 0 {
		return nil
	}
	return a.store.exclusively(ctx, func() error {
		if _, err := a.keys.reload(); err != nil {
			return err
		}
		now := a.now()
		changes := decide(now)
		if key != nil && !changes.publishAt.IsZero() {
			if err := a.keys.publish(key, changes.publishAt); err != nil {
				return err
			}
			a.log.Info("key.published",
				"algorithm", a.keys.algorithm,
				"signs_from", rfc3339(changes.publishAt.Unix()))
		}
		for _, kid := range changes.drop {
			if err := a.keys.drop(kid, now); err != nil {
				return err
			}
			a.log.Info("key.dropped", "kid", kid)
		}
		return nil
	})
}

// --- a command at work ---

// shellUsage explains the commands by the first word of their names.
var shellUsage = map[string]string{
	"user": `usage:
  pico-auth user add EMAIL [--role ROLE] [--org ORG] [--name NAME] [--generate]
  pico-auth user list [--role ROLE] [--org ORG] [--json]
  pico-auth user show EMAIL|ID [--json]
  pico-auth user passwd EMAIL|ID [--generate]
  pico-auth user role EMAIL|ID superadmin|org_admin|operator|viewer
  pico-auth user status EMAIL|ID active|suspended
  pico-auth user org EMAIL|ID ORG
  pico-auth user verify EMAIL|ID  tell other programs that the email is theirs
  pico-auth user delete EMAIL|ID [--yes]
  pico-auth user sessions EMAIL|ID [--json]
  pico-auth user sessions EMAIL|ID --end    log the user out everywhere

--generate makes a password and prints it. Without it the new password is asked
for at a terminal, or is the first line of a pipe. --json prints users as JSON,
one a line; every command above takes it. At a terminal, delete asks unless
there is --yes.`,

	"key": `usage:
  pico-auth key list [--json]
  pico-auth key rotate          publish the next key now; it signs in 24 hours
  pico-auth key rotate --now    sign with a new key in 5 seconds (emergency)
  pico-auth key drop -- KID     accept no token of this key any more`,

	"client": `usage:
  pico-auth client secret NAME  print a new secret for an OpenID client, and the
                                lines of application.yaml to put it in`,

	"group":         groupUsage,        // room: groups
	"service-token": serviceTokenUsage, // room: servicetokens
}

// usage explains everything but the commands of which shellUsage does.
const usage = `pico-auth is a JWT login service.

  pico-auth [-config FILE] [serve]     run the server
  pico-auth config                     print the merged settings, secrets redacted
  pico-auth healthcheck                exit 0 if the running server can store changes
  pico-auth version                    name version, commit and Go; also --version
  pico-auth backup FILE                copy the database, also while the server runs
  pico-auth user add|list|show|passwd|role|status|org|verify|delete|sessions …   manage users
  pico-auth group list|add|show|delete|join|leave …              manage groups
  pico-auth service-token add|list|revoke …                      manage service tokens
  pico-auth key list|rotate|drop …     manage signing keys
  pico-auth client secret NAME         make the secret of an OpenID client

Settings come from application.yaml (or -config FILE) and from environment
variables such as AUTH_ISSUER and SERVER_LISTEN; docs/settings.md lists them.
On another port: ` + otherPort + ` pico-auth`

// otherPort are the two settings that name the port of the server.
const otherPort = "SERVER_LISTEN=localhost:8200 AUTH_ISSUER=http://localhost:8200"

// isGroup reports whether the command line ends after the first word of a
// command that has two.
func (line commandLine) isGroup() bool {
	return shellUsage[line.name] != ""
}

// help explains a command: first its own lines, then those that stand beside
// them.
func (line commandLine) help() string {
	all := cmp.Or(line.usage, usage)
	if line.isGroup() || line.name == "" {
		return all
	}
	return strings.TrimLeft(line.synopsis()+"\n\n"+all, "\n")
}

// synopsis is the lines of the explanation that begin with the command.
func (line commandLine) synopsis() string {
	own := regexp.MustCompile(`(?m)^  pico-auth (?:\[-config FILE\] )?\[?` + regexp.QuoteMeta(line.name) +
		`(?:[] ].*)?$(?:\n {6,}.*)*`) // continuation lines stand further right
	return strings.Join(own.FindAllString(cmp.Or(line.usage, usage), -1), "\n")
}

// untaken returns an option that the synopsis does not name, or "": a filter
// that is ignored would show what it was to hide. Every command of shellUsage
// takes --json.
func (line commandLine) untaken() string {
	for _, name := range line.options {
		everywhere := name == "config" || (name == "json" && line.usage != "")
		if !everywhere && !strings.Contains(line.synopsis(), "--"+name) {
			return "--" + name
		}
	}
	return ""
}

// shell is one command at work.
type shell struct {
	*app
	process
	commandLine
	caller                  // the operator, who may do everything
	srv       *server       // lends the functions of admin.go; it serves nothing
	out       *bufio.Writer // standard output; an error of it shows at the end
	generated string        // a new password, to be shown once
}

// inShell makes a command of a function. Keys and database must exist: only
// the server makes or adopts them. Events go to standard error, under the name
// "shell".
func inShell(words int, do func(*shell) error) command {
	run := func(ctx context.Context, p process, cfg *config, line commandLine) error {
		log := newLogger(cfg, p.stderr)
		a, err := openApp(cfg, p.now, log, openOptions{mustExist: true})
		if err != nil {
			return err
		}
		defer a.store.close()
		if a.keys.empty() {
			return fmt.Errorf("%s holds no keys yet; start the server once", a.keys.dir)
		}
		if err := a.dateFirstKey(ctx, false); err != nil {
			return err
		}
		a.log = log.With("actor", "shell") // events of users name it themselves
		srv := newServer(cfg, a.store, a.keys, newHasher(ctx, cfg.bcryptCost, 1), p.now, log)
		operator := caller{
			ctx:    ctx,
			by:     principal{user: user{id: "shell", role: superadmin}},
			need:   permOrgEdit,
			client: "shell",
			event:  srv.event,
		}
		sh := &shell{
			app:         a,
			process:     p,
			commandLine: line,
			caller:      operator,
			srv:         srv,
			out:         bufio.NewWriter(p.stdout),
		}
		err = cmp.Or(do(sh), sh.out.Flush())
		// What is meant for HTTP clients becomes a text and an exit status.
		if e, ok := errors.AsType[*apiError](err); ok {
			err = errors.New(e.detail)
			if e.code == "invalid_role" {
				err = fmt.Errorf("%w; the roles are superadmin, org_admin, operator and viewer", err)
			}
			if e.status == 422 {
				err = usageError{err}
			}
		}
		return err
	}
	return command{words, false, run}
}

// inRoom makes a command of a function of a file below this one.
func inRoom(words int, do func(*server, shellCall) error) command {
	return inShell(words, func(sh *shell) error {
		return do(sh.srv, shellCall{
			caller:      sh.caller,
			words:       sh.words,
			role:        sh.role,
			org:         sh.org,
			description: sh.description,
			print:       sh.printColumns,
		})
	})
}

// printColumns is the print of a shellCall. A longer value moves the rest of
// its line.
func (sh *shell) printColumns(body any, columns ...string) {
	switch {
	case !sh.json:
		for i, text := range columns {
			columns[i] = fmt.Sprintf("%-20s", cleanText(text))
		}
		fmt.Fprintln(sh.out, strings.TrimRight(strings.Join(columns, "  "), " "))
	case body != nil:
		json.NewEncoder(sh.out).Encode(body)
	}
}

// --- users ---

// anyActor is the rule of users who are made here and at the start.
func anyActor(*queries, user) error {
	return nil
}

// shellUserAdd follows the rules of registration, except that any role and
// organisation may be given.
func shellUserAdd(sh *shell) error {
	u := user{
		email:       sh.words[0],
		displayName: sh.displayName,
		role:        cmp.Or(sh.role, viewer),
		orgID:       cmp.Or(sh.org, defaultOrg),
	}
	if err := checkRole(u.role); err != nil {
		return err
	}
	password, err := sh.newPassword()
	if err != nil {
		return err
	}
	if field, err := checkNewUser(u, password, sh.cfg.passwordMinLength); err != nil {
		return usageErrorf("%s %w", field, err)
	}
	u, err = sh.srv.addUser(sh.caller, u, password, anyActor)
	if err == nil {
		sh.printUser(u)
	}
	return err
}

// shellUserList prints page by page, so its memory does not grow with the
// users.
func shellUserList(sh *shell) error {
	if sh.role != "" {
		if err := checkRole(sh.role); err != nil {
			return err
		}
	}
	sh.printHeader()
	filter := userFilter{everyOrg: sh.org == "", orgID: sh.org, role: sh.role}
	return usersWhere(filter).each(sh.store.reads, sh.printRow)
}

// firstUser is the user whom the first word names.
func (sh *shell) firstUser() (user, error) {
	u, err := sh.store.userNamed(sh.words[0])
	if errors.Is(err, errNotFound) {
		err = fmt.Errorf("no user has the email or id %s; see: pico-auth user list", sh.words[0])
	}
	return u, err
}

// onUser makes a command whose first word is the email or the id of a user. It
// runs do with the user as the target, and prints what do returns.
func onUser(words int, do func(*shell) (user, error)) command {
	return inShell(words, func(sh *shell) error {
		u, err := sh.firstUser()
		if err == nil {
			sh.target = u.id
			u, err = do(sh)
		}
		if err == nil {
			sh.printUser(u)
		}
		return err
	})
}

// shellBackup copies the database. The keys are files that can be copied as
// they are.
func shellBackup(sh *shell) error {
	file, err := filepath.Abs(sh.words[0])
	if err == nil {
		err = copyDatabase(sh.store.path, file)
	}
	if err != nil {
		return fmt.Errorf("no backup was made: %w", err)
	}
	fmt.Fprintf(sh.out, "the database is copied to %s; copy the keys in %s too\n", file, sh.keys.dir)
	return nil
}

// shellUserShow changes nothing.
func shellUserShow(sh *shell) (user, error) {
	return sh.store.userByID(sh.target)
}

// shellUserVerify vouches for the email.
func shellUserVerify(sh *shell) (user, error) {
	return sh.srv.verifyEmail(sh.caller, true)
}

// shellUserDelete returns the user that there was. A script is not asked.
func shellUserDelete(sh *shell) (user, error) {
	if in := terminalOf(sh.stdin); in != nil && !sh.yes {
		question := "delete " + cleanText(sh.words[0]) + " for good? [y/N] "
		answer, err := askLine(sh.ctx, bufio.NewReader(in), sh.stderr, question)
		if err != nil || !strings.EqualFold(answer, "y") {
			return user{}, cmp.Or(err, errors.New("nothing was deleted"))
		}
	}
	return sh.srv.deleteUser(sh.caller)
}

// shellUserPasswd is the way back for an operator who lost the admin password.
func shellUserPasswd(sh *shell) (user, error) {
	password, err := sh.newPassword()
	if err != nil {
		return user{}, err
	}
	if err := checkNewPassword(password, sh.cfg.passwordMinLength); err != nil {
		return user{}, usageErrorf("the password %w", err)
	}
	return sh.srv.resetPassword(sh.caller, password)
}

// shellUserSet sets the attribute that the command is named after.
func shellUserSet(sh *shell) (user, error) {
	attribute := userAttributes[strings.TrimPrefix(sh.name, "user ")]
	return sh.srv.setAttribute(sh.caller, attribute, sh.words[1])
}

// shellUserSessions lists the living sessions of a user, or ends them all and
// lists those that there were.
func shellUserSessions(sh *shell) error {
	u, err := sh.firstUser()
	if err != nil {
		return err
	}
	sessions, err := sh.store.sessionsOf(u.id, sh.app.now())
	if err == nil && sh.end {
		sessions, err = sh.store.endSessions(sh.ctx, u.id)
	}
	if err != nil {
		return err
	}
	sh.printColumns(nil, "CREATED", "LAST USED", "CLIENT", "IP", "ID", "USER AGENT")
	for _, one := range sessions {
		if sh.end {
			sh.event("session.revoked", "user", u.id, "session", one.id, "client", one.clientID,
				"reason", "ended by the operator", "actor", sh.by.id)
		}
		body := newSessionAnswer(one, "")
		client := cmp.Or(one.clientID, "-")
		sh.printColumns(body, body.CreatedAt, body.LastUsedAt, client, one.ip, one.id, one.userAgent)
	}
	return nil
}

// newPassword makes a password, which printUser shows once it is set, asks for
// it, or reads the first line of a pipe. A line has at most 4096 bytes, so that
// a wrong file does not fill the memory; checkNewPassword refuses it anyway.
func (sh *shell) newPassword() (string, error) {
	if sh.generate {
		sh.generated = rand.Text() // 130 bits
		return sh.generated, nil
	}
	if in := terminalOf(sh.stdin); in != nil {
		return askPassword(sh.ctx, in, sh.stderr)
	}
	return readLine(bufio.NewReader(io.LimitReader(sh.stdin, 4096)))
}

// printUser prints one user, and the password that was made for it.
func (sh *shell) printUser(u user) {
	if sh.generated != "" && !sh.json {
		fmt.Fprintf(sh.out, "generated password: %s\n", sh.generated)
	}
	sh.printHeader()
	sh.printRow(u)
}

// userRow is one line of a list; a longer value moves the rest of its line.
const userRow = "%-32s  %-10s  %-12s  %-9s  %-20s  %s\n"

// printHeader names the columns, of which JSON has none.
func (sh *shell) printHeader() {
	if !sh.json {
		fmt.Fprintf(sh.out, userRow, "EMAIL", "ROLE", "ORG", "STATUS", "LAST LOGIN", "ID")
	}
}

// printRow prints a user. An adopted one can hold escape sequences, which a
// terminal must not get.
func (sh *shell) printRow(u user) {
	if sh.json {
		json.NewEncoder(sh.out).Encode(struct {
			fullProfile
			Password string `json:"password,omitempty"`
		}{newFullProfile(u), sh.generated})
		return
	}
	last := "never"
	if u.lastLoginAt != 0 {
		last = rfc3339(u.lastLoginAt)
	}
	fmt.Fprintf(sh.out, userRow,
		cleanText(u.email),
		cleanText(u.role),
		cleanText(u.orgID),
		cleanText(u.status),
		last,
		cleanText(u.id))
}

// --- OpenID clients ---

// runClientSecret prints a new secret of a client and what to paste into
// application.yaml. It stores nothing.
func runClientSecret(_ context.Context, p process, _ *config, line commandLine) error {
	for _, check := range []func(string) error{
		checkClientID, // room: provider
	} {
		if err := check(line.words[0]); err != nil {
			return usageErrorf("the client %w", err)
		}
	}
	_, err := fmt.Fprintf(p.stdout, `oidc:
  clients:
    %q:
      secret: %q
      redirect_uris: ["https://app.example.com/callback"] # where the client takes its users back
`, line.words[0], rand.Text()+rand.Text())
	return err
}

// --- keys ---

// shellKeyRotate publishes the next key unless there is one, or in an emergency
// one that signs almost at once: verifiers that cached the key set then refuse
// new tokens until they fetch it again. The few seconds let every server read
// the file first. Earlier next keys go: they have been on disk for a while, and
// after a leak only a key that is made now is known to nobody.
func shellKeyRotate(sh *shell) error {
	err := sh.changeKeys(sh.ctx, func(now time.Time) (changes keyChanges) {
		if sh.keys.current().planned(now, sh.keys.algorithm) && !sh.atOnce {
			fmt.Fprintln(sh.stderr,
				"the next key is published already; --now replaces it by one that signs in 5 seconds")
			return changes
		}
		changes.publishAt = now.Add(publishLead)
		if sh.atOnce {
			changes.publishAt = now.Add(takeoverDelay)
		}
		for _, k := range sh.keys.current().list(now, 0) {
			if k.state == "next" {
				changes.drop = append(changes.drop, k.kid)
			}
		}
		return changes
	})
	if err != nil {
		return err
	}
	return shellKeyList(sh)
}

// shellKeyDrop removes a key that does not sign; keyring.drop refuses others.
func shellKeyDrop(sh *shell) error {
	named := func(time.Time) keyChanges { return keyChanges{drop: sh.words} }
	if err := sh.changeKeys(sh.ctx, named); err != nil {
		return err
	}
	return shellKeyList(sh)
}

// shellKeyList prints the keys in the order in which they sign. It is the end
// of rotate and drop too, so that their effect is seen.
func shellKeyList(sh *shell) error {
	meaning := map[string]string{"signing": "since", "next": "signs from", "retired": "published until"}
	for _, k := range sh.keys.current().list(sh.app.now(), sh.keyPlan().validFor) {
		at := rfc3339(k.at.Unix())
		if sh.json {
			json.NewEncoder(sh.out).Encode(map[string]string{
				"kid":       k.kid,
				"algorithm": k.algorithm,
				"state":     k.state,
				"at":        at,
			})
		} else {
			fmt.Fprintf(sh.out, "%s  %-9s  %-7s  %s %s\n", k.kid, k.algorithm, k.state, meaning[k.state], at)
		}
	}
	return nil
}
