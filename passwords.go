package main

// This file guards passwords: hashing and comparing them, the threads that do
// it, and the throttle that slows guessing. It knows neither HTTP nor the
// database; the rules for new passwords are in rbac.go. Invariants: at most
// one bcrypt computation per core runs, no client fills the queue, a
// computation that has begun is used, and memory stays bounded.

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// --- hashes ---

// maxStoredCost is the highest cost that is computed or can be configured. An
// adopted database could hold cost 31, which occupies a core for a day; such a
// hash matches nothing.
const maxStoredCost = 16

// importedHash reports whether the Python server made a hash: it writes $2b$,
// and x/crypto writes $2a$.
func importedHash(hash []byte) bool { return bytes.HasPrefix(hash, []byte("$2b$")) }

// matches reports whether a password, which may be of any length, belongs to
// a hash. The Python server hashed the first 72 bytes of longer passwords, so
// its hashes are compared on those. For hashes of our own a longer password is
// always wrong, after the same time; x/crypto alone would accept any tail.
func matches(hash []byte, password string) bool {
	if cost, err := bcrypt.Cost(hash); err != nil || cost > maxStoredCost {
		return false
	}
	tooLong := len(password) > maxPasswordBytes
	if tooLong {
		password = password[:maxPasswordBytes]
	}
	ok := bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil
	return ok && (!tooLong || importedHash(hash))
}

// outdated reports whether a login should replace a hash, because it was
// imported or does not have the configured cost. With a higher cost, a wrong
// password takes longer than an unknown email, so the account shows.
func outdated(hash []byte, cost int) bool {
	have, err := bcrypt.Cost(hash)
	return err != nil || have != cost || importedHash(hash)
}

// hashPassword returns the bcrypt hash of a password that passed
// checkNewPassword.
func hashPassword(password string, cost int) ([]byte, error) {
	return bcrypt.GenerateFromPassword([]byte(password), cost)
}

// dummyHash returns a hash of the given cost that belongs to no password.
func dummyHash(cost int) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat(".", 53))
}

// --- hashing threads ---

// hasher runs bcrypt on one locked OS thread per core, and main doubles
// GOMAXPROCS. Half of the Go scheduler's slots are then free for requests, and
// the kernel gives them a core sooner than the scheduler would, which
// interrupts a computation every 10 ms. Measured on two cores, bcrypt cost 10,
// 64 clients that log in without pause; p99 in ms of other requests:
//
//	                        key set  profile  refresh  logins/s
//	as it is                    4.2      4.2      6.5      42.2
//	threads not locked          4.7      6.7      9.6      40.9
//	GOMAXPROCS not doubled     22.9     24.9     42.5      40.5
//	threads at nice 19          1.8      2.3      7.3      42.7
//
// There is no niceness, because beside two busy loops of another program one
// login takes 3.1 s at nice 19, 0.46 s at nice 10, and 0.10 s without.
type hasher struct {
	cost    int
	threads int
	queue   chan hashJob // unbuffered: its blocked senders are the queue

	mu      sync.Mutex
	clients map[string]*hashClient // those with a job here
}

// hashJob is what a thread does; it closes done afterwards.
type hashJob struct {
	work func()
	done chan struct{}
}

// hashClient is a client with jobs here. A job needs a seat to stand in the
// common queue and to run, and a client has as many seats as there are
// threads. It can use every core while nobody else wants one, but it cannot
// keep others waiting by logging in, rightly or wrongly, on many connections.
type hashClient struct {
	jobs  int           // with a seat or waiting for one
	seats chan struct{} // holds one element for each seat that is taken
}

// maxHashWait is how long a job waits for its seat and for a thread together.
// Waiting jobs need no other bound: each is a request that is here anyway.
const maxHashWait = 2 * time.Second

// errBusy means that the caller should come back in a few seconds.
var errBusy = errors.New("too many password checks are waiting")

// newHasher starts the threads. They end with ctx, each after its computation.
func newHasher(ctx context.Context, cost, threads int) *hasher {
	h := &hasher{
		cost:    cost,
		threads: threads,
		queue:   make(chan hashJob),
		clients: map[string]*hashClient{},
	}
	for range threads {
		go h.serve(ctx)
	}
	return h
}

// serve is one hashing thread, never unlocked: it ends with its goroutine.
func (h *hasher) serve(ctx context.Context) {
	runtime.LockOSThread()
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-h.queue:
			job.work()
			close(job.done)
		}
	}
}

// do runs work on a hashing thread for a client, as clientKey names it, and
// returns nil after its end. The wait is bounded, the work is not: once a
// thread has taken the job, do waits for the end whatever ctx says. Otherwise
// a slow machine would compute hashes and throw the verdicts away. An error
// means that work did not run and will not: errBusy after maxHashWait, or the
// cause of ctx, which is context.Canceled when the client hung up.
// First come, first served: Go's channels queue their blocked senders.
func (h *hasher) do(ctx context.Context, client string, work func()) error {
	c := h.arrive(client)
	defer h.leave(client)
	ctx, cancel := context.WithTimeoutCause(ctx, maxHashWait, errBusy)
	defer cancel()
	select {
	case c.seats <- struct{}{}:
		defer func() { <-c.seats }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	job := hashJob{work: work, done: make(chan struct{})}
	select {
	case h.queue <- job:
		<-job.done
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// arrive counts a job of a client and returns the client.
func (h *hasher) arrive(client string) *hashClient {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.clients[client]
	if c == nil {
		c = &hashClient{seats: make(chan struct{}, h.threads)}
		h.clients[client] = c
	}
	c.jobs++
	return c
}

// leave ends a job of a client and forgets the client with its last one.
func (h *hasher) leave(client string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.clients[client]
	c.jobs--
	if c.jobs == 0 {
		delete(h.clients, client)
	}
}

// hash returns the bcrypt hash of a password that passed checkNewPassword. Its
// errors are those of do.
func (h *hasher) hash(ctx context.Context, client, password string) (hash []byte, err error) {
	var hashErr error
	err = h.do(ctx, client, func() {
		hash, hashErr = hashPassword(password, h.cost)
	})
	return hash, cmp.Or(err, hashErr)
}

// compare reports whether a password belongs to a hash; its errors are those
// of do. A nil hash stands for an unknown user. It takes as long as a wrong
// password, so that time does not tell who exists; so does what is no hash. A
// wrong password for a hash of a lower cost is compared with dummies as well:
// each cost takes twice as long as the one before, so they add up to the
// difference.
func (h *hasher) compare(ctx context.Context, client string, hash []byte, password string) (bool, error) {
	cost, err := bcrypt.Cost(hash)
	if err != nil || cost > maxStoredCost {
		cost = h.cost
		hash = dummyHash(cost)
	}
	ok := false
	err = h.do(ctx, client, func() {
		ok = matches(hash, password)
		for ; !ok && cost < h.cost; cost++ {
			matches(dummyHash(cost), password)
		}
	})
	return ok, err
}

// --- throttle ---

// The span of a rule begins with the first event that it counts.
const (
	pairSpan         = 15 * time.Minute // a pause, for people who mistyped a password too often
	addressSpan      = 15 * time.Minute // no longer, because many people can share an address
	accountSpan      = time.Hour        // bounds a botnet; the owner meets it at new addresses only
	registrationSpan = time.Hour        // people register once; each answer tells whether an email is taken
	secretSpan       = 15 * time.Minute // a pause, for programs with an old secret
)

// throttle counts events in memory and says how long a client has to wait.
// Its rules are against guessing at one account from one place (pair), at many
// accounts from one place (address), and at one account from many places
// (account). Unknown emails count like known ones, or they would be told apart.
//
// A caller asks blocked before it compares the password, and reports to failed
// or succeeded afterwards. These ask the rules once more and may forbid the
// answer. A burst of simultaneous guesses thus learns no more verdicts than
// the limit, and simultaneous right passwords do not hinder each other.
type throttle struct {
	now           func() time.Time
	seed          maphash.Seed // of this process: nobody can aim at the counts of another key
	logins        []*throttleRule
	registrations []*throttleRule
	secrets       []*throttleRule // of programs, such as service tokens
	mu            sync.Mutex      // for the counts of the rules
}

// throttleRule allows limit events of one key within a span. It remembers at
// most throttleKeys keys; a new one then takes the place of a key with few
// events. So memory is bounded, and strangers who add keys by the million, by
// hanging up while they wait even without costing a hash, cannot flush the
// count of an account that they guess at.
type throttleRule struct {
	name        string
	limit       int // 0 turns the rule off
	span        time.Duration
	sparesKnown bool // does not apply to known addresses
	forgives    bool // a success clears the count
	key         func(attempt) string
	counts      map[uint64]throttleCount
}

// throttleCount is how many events a key has had since the first one.
type throttleCount struct {
	events int
	since  time.Time
}

// throttleKeys is how many keys a rule remembers, in about 6 MB.
const throttleKeys = 1 << 16

// throttleReport changes the count of a key.
type throttleReport func(r *throttleRule, key uint64, now time.Time)

// newThrottle starts with empty counts.
func newThrottle(l throttleLimits, now func() time.Time) *throttle {
	if !l.enabled {
		l = throttleLimits{}
	}
	pair := func(a attempt) string { return a.account() + "\x00" + a.client }
	client := func(a attempt) string { return a.client }
	account := attempt.account
	return &throttle{
		now:  now,
		seed: maphash.MakeSeed(),
		logins: []*throttleRule{ // the narrowest first
			{name: "pair", key: pair, limit: l.pairFailures, span: pairSpan, forgives: true},
			{name: "address", key: client, limit: l.addressFailures, span: addressSpan},
			{name: "account", key: account, limit: l.accountFailures, span: accountSpan, sparesKnown: true},
		},
		registrations: []*throttleRule{
			{name: "registrations", key: client, limit: l.registrations, span: registrationSpan},
		},
		secrets: []*throttleRule{
			{name: "secrets", key: client, limit: l.addressFailures, span: secretSpan},
		},
	}
}

// attempt is one check of a password.
type attempt struct {
	userID string // empty when the email is nobody's
	email  string // as typed; counts only without userID
	client string // as clientKey names it
	known  bool   // a session of this account was opened from there of late
}

// account names the account that an attempt is for. The prefixes keep a login
// whose email is the id of a user, which is no secret, from filling the count
// of that user.
func (a attempt) account() string {
	if a.userID != "" {
		return "id:" + a.userID
	}
	return "email:" + emailKey(a.email)
}

// verdict is what the throttle says; the zero value lets the attempt pass.
type verdict struct {
	rule string        // the name of the rule that forbids
	wait time.Duration // until the rule allows it again
}

// blocked says whether the password of an attempt may be compared at all.
func (t *throttle) blocked(a attempt) verdict {
	return t.judge(t.logins, a, nil)
}

// failed counts a wrong password, or says that the caller must not be told.
func (t *throttle) failed(a attempt) verdict {
	return t.judge(t.logins, a, (*throttleRule).count)
}

// succeeded clears the failures of this account from this client, or says
// that the caller must not be told.
func (t *throttle) succeeded(a attempt) verdict {
	return t.judge(t.logins, a, (*throttleRule).forgive)
}

// registered counts a registration, or forbids it.
func (t *throttle) registered(client string) verdict {
	return t.judge(t.registrations, attempt{client: client}, (*throttleRule).count)
}

// secretFailed counts a wrong secret of a program, or says that the caller must
// not be told. Secrets have 256 bits, so a right one is never refused: that
// would let whoever shares an address with a program stop it.
func (t *throttle) secretFailed(client string) verdict {
	return t.judge(t.secrets, attempt{client: client}, (*throttleRule).count)
}

// judge asks the rules and applies report, if any, to each if none forbids,
// under one lock. Keys are computed before it: an email can have 64 KiB.
func (t *throttle) judge(rules []*throttleRule, a attempt, report throttleReport) verdict {
	keys := make([]uint64, len(rules))
	for i, r := range rules {
		keys[i] = maphash.String(t.seed, r.key(a))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for i, r := range rules {
		wait := r.wait(keys[i], now)
		if wait > 0 && !(r.sparesKnown && a.known) {
			return verdict{r.name, wait}
		}
	}
	if report != nil {
		for i, r := range rules {
			report(r, keys[i], now)
		}
	}
	return verdict{}
}

// current returns the count of a key whose span still runs, or a zero one.
func (r *throttleRule) current(key uint64, now time.Time) throttleCount {
	c := r.counts[key]
	if now.Sub(c.since) >= r.span {
		return throttleCount{}
	}
	return c
}

// wait returns how long a key has to wait; 0 while it is below the limit.
func (r *throttleRule) wait(key uint64, now time.Time) time.Duration {
	c := r.current(key, now)
	if r.limit == 0 || c.events < r.limit {
		return 0
	}
	return c.since.Add(r.span).Sub(now)
}

// count adds one event of a key.
func (r *throttleRule) count(key uint64, now time.Time) {
	if r.limit == 0 {
		return
	}
	c := r.current(key, now)
	if c.events == 0 {
		c.since = now
	}
	c.events++
	if r.counts == nil {
		r.counts = map[uint64]throttleCount{}
	}
	if c.events == 1 && len(r.counts) >= throttleKeys {
		r.makeRoom(now)
	}
	r.counts[key] = c
}

// makeRoom drops the key with the fewest events in its span of some keys that
// chance picks: a map is read from a random place on.
func (r *throttleRule) makeRoom(now time.Time) {
	least, fewest, left := uint64(0), math.MaxInt, 16
	for key := range r.counts {
		if events := r.current(key, now).events; events < fewest {
			least, fewest = key, events
		}
		if left--; left == 0 {
			break
		}
	}
	delete(r.counts, least)
}

// forgive drops the count of a key if a success clears this rule.
func (r *throttleRule) forgive(key uint64, _ time.Time) {
	if r.forgives {
		delete(r.counts, key)
	}
}

// clientKey is the client that an address belongs to: IPv6 addresses by /64,
// because that is the least that one customer of a provider commands (RFC 6177
// section 2). Text that is no address is returned as it is.
func clientKey(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	ip = ip.Unmap()
	if ip.Is4() { // also one written as ::ffff:192.0.2.1, or all of IPv4 would share ::/64
		return ip.String()
	}
	return netip.PrefixFrom(ip, 64).Masked().String()
}
