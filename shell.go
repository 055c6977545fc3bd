package main

// This file is the operator's rescue: users and signing keys from the shell, on the same database and key
// directory as the server, also while it runs. Whoever can read these files is trusted like a superadmin; the
// rule that the last one stays holds here too. Passwords never come from arguments, which every
// user of the machine can see.

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/crypto/bcrypt"
)

const userUsage = `usage:
  pico-auth user add EMAIL [--role ROLE] [--org ORG] [--name NAME] [--password-file FILE | --generate]
  pico-auth user list [--json]
  pico-auth user show EMAIL [--json]
  pico-auth user passwd EMAIL [--password-file FILE | --generate]
  pico-auth user role EMAIL superadmin|org_admin|operator|viewer
  pico-auth user status EMAIL active|suspended
  pico-auth user delete EMAIL

Without --password-file and --generate the password is the first line of standard input.
--json prints the user for scripts, with every one of these`

const keyUsage = `usage:
  pico-auth key list [--json]
  pico-auth key rotate          publish the next key now; it signs in 24 hours
  pico-auth key rotate --now    sign with a new key at once (emergency)
  pico-auth key drop KID        accept no token of this key any more`

// shellFlags are the options of all user and key commands.
type shellFlags struct {
	role, org, name, passwordFile string
	generate, json, atOnce        bool
}

// parseShell takes options before, between and after the other words.
func parseShell(p process, args []string, usage string) (words []string, o shellFlags, err error) {
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.role, "role", viewer, "")
	f.StringVar(&o.org, "org", defaultOrg, "")
	f.StringVar(&o.name, "name", "", "")
	f.StringVar(&o.passwordFile, "password-file", "", "")
	f.BoolVar(&o.generate, "generate", false, "")
	f.BoolVar(&o.json, "json", false, "")
	f.BoolVar(&o.atOnce, "now", false, "")
	for len(args) > 0 {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(p.stdout, usage)
			return nil, o, err
		} else if err != nil {
			return nil, o, usageError{fmt.Errorf("%w\n%s", err, usage)}
		}
		if args = f.Args(); len(args) > 0 {
			words, args = append(words, args[0]), args[1:]
		}
	}
	if len(words) == 0 {
		err = usageError{errors.New(usage)}
	}
	return words, o, err
}

// shell is one command at work.
type shell struct {
	*app
	process
	shellFlags
	ctx       context.Context
	generated string // a new password, to be shown once
}

// openShell opens keys and database for a command. Its events go to standard error, as the server's do.
func openShell(ctx context.Context, p process, cfg *config, o shellFlags) (*shell, error) {
	if _, err := os.Stat(cfg.databasePath()); err != nil {
		return nil, fmt.Errorf("no database yet (%w): database.url (DATABASE_URL) may be relative to the server's working directory; "+
			"run this there, make it absolute, or start the server once", err)
	}
	a, err := openApp(cfg, p.now, newLogger(cfg, p.stderr))
	if err != nil {
		return nil, err
	}
	return &shell{app: a, process: p, shellFlags: o, ctx: ctx}, nil
}

// runUser dispatches `user …`.
func runUser(ctx context.Context, p process, cfg *config, args []string) error {
	words, o, err := parseShell(p, args, userUsage)
	if err != nil {
		return err
	}
	commands := map[string]struct {
		words int
		do    func(*shell, []string) error
	}{
		"add": {2, (*shell).userAdd}, "list": {1, (*shell).userList}, "show": {2, (*shell).userShow}, "passwd": {2, (*shell).userPasswd},
		"role": {3, (*shell).userRole}, "status": {3, (*shell).userStatus}, "delete": {2, (*shell).userDelete},
	}
	command, known := commands[words[0]]
	if !known {
		return usageError{fmt.Errorf("unknown command: user %s\n%s", words[0], userUsage)}
	}
	if len(words) != command.words {
		return usageError{errors.New(userUsage)}
	}
	sh, err := openShell(ctx, p, cfg, o)
	if err != nil {
		return err
	}
	defer sh.store.close()
	return command.do(sh, words[1:])
}

// userAdd applies the rules of registration, except that any role and organisation may be given.
func (sh *shell) userAdd(words []string) error {
	u := user{id: newID(), email: words[0], displayName: sh.name, role: sh.role, orgID: sh.org, status: statusActive, createdAt: sh.app.now().Unix()}
	password, err := sh.newPassword()
	if err != nil {
		return err
	}
	if !knownRole(u.role) {
		return usageError{fmt.Errorf("invalid role %q", u.role)}
	}
	if field, err := checkNewUser(u, password, sh.cfg.passwordMinLength); err != nil {
		return usageError{fmt.Errorf("%s %w", field, err)}
	}
	if u.passwordHash, err = bcrypt.GenerateFromPassword([]byte(password), sh.cfg.bcryptCost); err != nil {
		return err
	}
	u.defaultPassword = password == defaultAdminPassword
	if err := sh.store.createUser(sh.ctx, principal{}, u, nil); errors.Is(err, errConflict) {
		return fmt.Errorf("user already exists: %s", u.email)
	} else if err != nil {
		return err
	}
	sh.log.Info("user.created", "user", u.id, "role", u.role, "org", u.orgID, "actor", "shell")
	return sh.printUser(u)
}

// userList prints page by page, so that its memory does not grow with the users.
func (sh *shell) userList([]string) error {
	table := tabwriter.NewWriter(sh.stdout, 0, 0, 2, ' ', 0)
	if !sh.json {
		fmt.Fprintln(table, "EMAIL\tROLE\tORG\tSTATUS\tID")
	}
	for after := int64(0); ; {
		page, err := sh.store.listUsers(userFilter{everyOrg: true}, after, pageRows)
		if err != nil {
			return err
		}
		for _, u := range page {
			after = u.seq
			if sh.json {
				if err := sh.printUser(u); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", cleanText(u.email), cleanText(u.role), cleanText(u.orgID), u.status, u.id)
		}
		if len(page) < pageRows {
			return table.Flush()
		}
	}
}

func (sh *shell) userShow(words []string) error {
	u, err := sh.find(words[0])
	if err != nil {
		return err
	}
	return sh.printUser(u)
}

// userPasswd is the way back for an operator who lost the admin password.
func (sh *shell) userPasswd(words []string) error {
	u, err := sh.find(words[0])
	if err != nil {
		return err
	}
	password, err := sh.newPassword()
	if err != nil {
		return err
	}
	if err := checkNewPassword(password, sh.cfg.passwordMinLength); err != nil {
		return usageError{fmt.Errorf("the password %w", err)}
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), sh.cfg.bcryptCost)
	if err != nil {
		return err
	}
	return sh.edit(u, "password.reset", edit{endSessions: true}, func(target *user) {
		target.passwordHash, target.defaultPassword = hash, password == defaultAdminPassword
	})
}

func (sh *shell) userRole(words []string) error {
	if !knownRole(words[1]) {
		return usageError{fmt.Errorf("invalid role %q\n%s", words[1], userUsage)}
	}
	u, err := sh.find(words[0])
	if err != nil {
		return err
	}
	return sh.edit(u, "user.role_changed", edit{}, func(target *user) { target.role = words[1] })
}

func (sh *shell) userStatus(words []string) error {
	if words[1] != statusActive && words[1] != statusSuspended {
		return usageError{fmt.Errorf("invalid status %q\n%s", words[1], userUsage)}
	}
	u, err := sh.find(words[0])
	if err != nil {
		return err
	}
	return sh.edit(u, "user.status_changed", edit{endSessions: words[1] == statusSuspended}, func(target *user) { target.status = words[1] })
}

func (sh *shell) userDelete(words []string) error {
	u, err := sh.find(words[0])
	if err != nil {
		return err
	}
	return sh.edit(u, "user.deleted", edit{remove: true}, func(*user) {})
}

// edit changes a user, logs the event and prints the user.
func (sh *shell) edit(u user, event string, do edit, change func(*user)) error {
	_, after, err := sh.store.editUser(sh.ctx, principal{}, u.id, func(_ user, target *user) (edit, error) {
		change(target)
		return do, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", u.email, err)
	}
	sh.log.Info(event, "user", after.id, "role", after.role, "status", after.status, "actor", "shell")
	return sh.printUser(after)
}

// find looks a user up as a login does.
func (sh *shell) find(email string) (user, error) {
	u, err := sh.store.userByLogin(email)
	if errors.Is(err, errNotFound) {
		return u, fmt.Errorf("no user has the email %s; see: pico-auth user list", email)
	}
	return u, err
}

// newPassword makes one, which printUser shows once it is set, or reads one line from a file or standard input.
func (sh *shell) newPassword() (string, error) {
	if sh.generate {
		sh.generated = rand.Text() // 130 bits
		return sh.generated, nil
	}
	in := sh.stdin
	if sh.passwordFile != "" {
		f, err := os.Open(sh.passwordFile)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	} else {
		fmt.Fprintln(sh.stderr, "reading the new password from standard input, one line; it is shown as you type")
	}
	line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

func (sh *shell) printUser(u user) error {
	p := newFullProfile(u)
	if sh.json {
		return json.NewEncoder(sh.stdout).Encode(struct {
			fullProfile
			Password string `json:"password,omitempty"`
		}{p, sh.generated})
	}
	if sh.generated != "" {
		fmt.Fprintf(sh.stdout, "generated password: %s\n", sh.generated)
	}
	last := "never"
	if p.LastLoginAt != nil {
		last = *p.LastLoginAt
	}
	_, err := fmt.Fprintf(sh.stdout, "email:      %s\nid:         %s\nname:       %s\nrole:       %s\norg:        %s\nstatus:     %s\ncreated:    %s\nlast login: %s\n",
		cleanText(p.Email), p.ID, cleanText(p.DisplayName), cleanText(p.Role), cleanText(p.OrgID), p.Status, p.CreatedAt, last)
	return err
}

// runKey dispatches `key …`. Changes happen under the database's write lock, so a running server and a
// second shell wait for each other; the server notices the new files within two seconds.
func runKey(ctx context.Context, p process, cfg *config, args []string) error {
	words, o, err := parseShell(p, args, keyUsage)
	if err != nil {
		return err
	}
	command := words[0]
	if arguments, known := map[string]int{"list": 0, "rotate": 0, "drop": 1}[command]; !known || len(words) != 1+arguments {
		return usageError{fmt.Errorf("not a command: key %s\n%s", strings.Join(words, " "), keyUsage)}
	}
	sh, err := openShell(ctx, p, cfg, o)
	if err != nil {
		return err
	}
	defer sh.store.close()
	if command != "list" {
		err := sh.store.exclusively(ctx, func() error {
			if _, err := sh.keys.reload(); err != nil {
				return err
			}
			if command == "drop" {
				return sh.keyDrop(words[1])
			}
			return sh.keyRotate()
		})
		if err != nil {
			return err
		}
	}
	return sh.keyList()
}

// keyRotate publishes the next key, or in an emergency signs with a new one at once: verifiers that cached the
// key set will then refuse new tokens until they fetch it again.
func (sh *shell) keyRotate() error {
	now := sh.app.now()
	next, exists := sh.keys.next()
	switch {
	case !sh.atOnce && exists:
		fmt.Fprintf(sh.stderr, "the next key is published already and signs from %s; --now makes it sign at once\n", next.at.UTC().Format(time.RFC3339))
		return nil
	case !sh.atOnce:
		if err := sh.keys.publishNext(now.Add(publishLead)); err != nil {
			return err
		}
		sh.log.Info("key.published", "actor", "shell")
		return nil
	case exists: // it has been on disk for a while; after a leak only a key made now is known to nobody
		if err := sh.keys.drop(next.kid); err != nil {
			return err
		}
	}
	if err := sh.keys.publishNext(now); err != nil {
		return err
	}
	if err := sh.keys.promote(now, now.Add(sh.keyPlan().validFor)); err != nil {
		return err
	}
	sh.log.Info("key.rotated", "actor", "shell")
	return nil
}

func (sh *shell) keyDrop(kid string) error {
	if err := sh.keys.drop(kid); err != nil {
		return err
	}
	sh.log.Info("key.dropped", "kid", kid, "actor", "shell")
	return nil
}

func (sh *shell) keyList() error {
	table := tabwriter.NewWriter(sh.stdout, 0, 0, 2, ' ', 0)
	if !sh.json {
		fmt.Fprintln(table, "KID\tSTATE\tTIME")
	}
	meaning := map[keyState]string{keySigning: "since ", keyNext: "signs from ", keyRetired: "published until "}
	for _, k := range sh.keys.current().keys {
		at := k.at.UTC().Format(time.RFC3339)
		if sh.json {
			if err := json.NewEncoder(sh.stdout).Encode(map[string]string{"kid": k.kid, "state": string(k.state), "at": at}); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", k.kid, k.state, meaning[k.state]+at)
	}
	return table.Flush()
}
