package main

// This file guards passwords: the rules for new ones, hashing and comparing, the threads that
// do it, and the throttle that slows guessing. It knows nothing of HTTP or the database.
// Invariants: no password is ever cut, except for hashes that pico-auth made from cut ones; at
// most one bcrypt computation per core runs; memory stays bounded whatever strangers send.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"
)

// maxPasswordBytes is what bcrypt reads; it would ignore the rest.
const maxPasswordBytes = 72

// checkNewPassword returns what is wrong with a password somebody wants to set, fit for clients.
// No composition rules: they make passwords worse (NIST SP 800-63B-4 section 3.1.1.2).
func checkNewPassword(password string, minLength int) error {
	switch {
	case utf8.RuneCountInString(password) < minLength:
		return fmt.Errorf("must have at least %d characters", minLength)
	case len(password) > maxPasswordBytes:
		return fmt.Errorf("must have at most %d bytes, which is what bcrypt can tell apart", maxPasswordBytes)
	case strings.ContainsRune(password, 0):
		return errors.New("must not contain NUL") // bcrypt takes abc NUL abc for abc
	}
	return nil
}

// imported tells a hash made by pico-auth ($2b$) from one made here ($2a$, as x/crypto writes it).
func imported(hash []byte) bool { return bytes.HasPrefix(hash, []byte("$2b$")) }

// matches compares a password of any length with a hash. pico-auth hashed the first 72 bytes of
// longer passwords, so its hashes are compared that way; for our own hashes, x/crypto would do the same
// in silence and accept any tail, so a longer password never matches, after the same time.
func matches(hash []byte, password string) bool {
	tooLong := len(password) > maxPasswordBytes
	if tooLong {
		password = password[:maxPasswordBytes]
	}
	ok := bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil
	return ok && (!tooLong || imported(hash))
}

// outdated tells whether a hash should be made anew at the next chance, which is a login.
func outdated(hash []byte, cost int) bool {
	have, err := bcrypt.Cost(hash)
	return err != nil || have < cost || imported(hash)
}

// dummyHash has the given cost and belongs to no password: comparing with it takes an unknown
// email as long as a known one.
func dummyHash(cost int) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat(".", 53))
}

// maxStoredCost bounds what a stored hash can make us compute. An adopted database could hold cost 31, which
// occupies a core for a day; such a hash matches nothing.
const maxStoredCost = 16

// hasher runs bcrypt on threads of its own. Measured on two cores with 64 clients logging in
// without pause, as the 99th percentile of a cheap request meanwhile: unlimited 1,319 ms; a
// semaphore of one per core 35 ms; half the cores 3.3 ms at half the logins; one
// thread per core at nice 19 with as many extra scheduler threads 2.4 ms at 99 % of the
// logins. The kernel then takes a core from hashing the moment a request arrives, which the Go
// scheduler does only every 10 ms. The queue is first come, first served.
type hasher struct {
	cost    int
	threads int
	now     func() time.Time
	queue   chan *hashJob
	pending atomic.Int64 // jobs waiting or running
	perHash atomic.Int64 // nanoseconds of a computation, as a moving average
}

// hashJob is claimed exactly once: by a thread that runs it, or by a caller that went away.
type hashJob struct {
	claimed atomic.Bool
	work    func()
	done    chan struct{}
}

const (
	maxHashWait  = 2 * time.Second // a caller that would wait longer is refused at once
	maxHashQueue = 4096            // jobs; on two cores at cost 4, which only tests use, this many take 2 s
)

// errBusy: the caller should come back in a few seconds.
var errBusy = errors.New("too many password checks are waiting")

// newHasher starts the threads; they end with ctx.
func newHasher(ctx context.Context, cost, threads int, now func() time.Time) *hasher {
	h := &hasher{cost: cost, threads: threads, now: now, queue: make(chan *hashJob, maxHashQueue)}
	h.perHash.Store(int64(55*time.Microsecond) << cost) // a first guess: 56 ms at cost 10
	for range threads {
		go h.run(ctx)
	}
	return h
}

// run is one hashing thread.
func (h *hasher) run(ctx context.Context) {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine and its priority
	lowerThreadPriority()
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-h.queue:
			if !job.claimed.CompareAndSwap(false, true) {
				continue // its caller went away
			}
			start := h.now()
			job.work()
			took := int64(h.now().Sub(start))
			h.perHash.Add((took - h.perHash.Load()) / 8)
			h.pending.Add(-1)
			close(job.done)
		}
	}
}

// do runs work on a hashing thread and returns when it is done. When the queue is longer than
// maxHashWait it returns errBusy at once; when ctx ends first the place in the queue is given up.
func (h *hasher) do(ctx context.Context, work func()) error {
	wait := time.Duration(h.pending.Load() * h.perHash.Load() / int64(h.threads))
	if wait > maxHashWait {
		return errBusy
	}
	job := &hashJob{work: work, done: make(chan struct{})}
	h.pending.Add(1)
	select {
	case h.queue <- job:
	default:
		h.pending.Add(-1)
		return errBusy
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*maxHashWait, errBusy) // the estimate can be wrong
	defer cancel()
	select {
	case <-job.done:
		return nil
	case <-ctx.Done():
		if job.claimed.CompareAndSwap(false, true) {
			h.pending.Add(-1)
		}
		return context.Cause(ctx)
	}
}

// hash returns the bcrypt hash of a password that passed checkNewPassword.
func (h *hasher) hash(ctx context.Context, password string) ([]byte, error) {
	var hash []byte
	var hashErr error
	if err := h.do(ctx, func() { hash, hashErr = bcrypt.GenerateFromPassword([]byte(password), h.cost) }); err != nil {
		return nil, err
	}
	return hash, hashErr
}

// compare tells whether password belongs to hash. A nil hash stands for an unknown user; it, and a hash that is
// none, takes the time of a wrong password. So does a hash of a lower cost: the dummies after it add up to
// the difference, since each cost takes twice as long as the one before.
func (h *hasher) compare(ctx context.Context, hash []byte, password string) (bool, error) {
	cost, err := bcrypt.Cost(hash)
	if err != nil || cost > maxStoredCost {
		hash, cost = dummyHash(h.cost), h.cost
	}
	var ok bool
	err = h.do(ctx, func() {
		ok = matches(hash, password)
		for ; !ok && cost < h.cost; cost++ {
			matches(dummyHash(cost), password)
		}
	})
	return ok && err == nil, err
}

// throttleLimits are the settings of section throttle; a limit of 0 turns its rule off.
type throttleLimits struct {
	enabled                            bool
	pairFailures, pairMinutes          int
	addressFailures, addressMinutes    int
	accountFailures, accountMinutes    int
	knownAddressDays                   int
	registrations, registrationMinutes int
	ipv6Prefix                         int
}

// throttle counts failures and answers how long a caller has to wait. Threat: guessing one
// password from one place (pair), many accounts from one place (address), one account from many
// places (account). Unknown emails count like known ones, or the difference would tell them apart.
//
// A caller asks blocked before the password is compared and reports to failed afterwards. Because
// failed tells again whether the limit was passed meanwhile, a burst of simultaneous guesses learns no
// more verdicts than the limit allows, and simultaneous right passwords do not hinder each other.
type throttle struct {
	limits                              throttleLimits
	now                                 func() time.Time
	seed                                maphash.Seed // of this process, so that nobody can aim at another's counter
	mu                                  sync.Mutex
	pair, address, account, registering counter
}

// newThrottle starts with empty counters; they live in memory only.
func newThrottle(l throttleLimits, now func() time.Time) *throttle {
	minutes := func(n int) time.Duration { return time.Duration(n) * time.Minute }
	t := &throttle{limits: l, now: now, seed: maphash.MakeSeed()}
	if l.enabled {
		t.pair = counter{limit: l.pairFailures, span: minutes(l.pairMinutes)}
		t.address = counter{limit: l.addressFailures, span: minutes(l.addressMinutes)}
		t.account = counter{limit: l.accountFailures, span: minutes(l.accountMinutes)}
		t.registering = counter{limit: l.registrations, span: minutes(l.registrationMinutes)}
	}
	return t
}

// attempt is one login seen by the throttle.
type attempt struct {
	email   string // the id of the user it belongs to, or in lower case when it is nobody's
	address string // the client as clientKey names it
	known   bool   // a session of this account was opened from this address of late
}

// verdict is what the throttle says of an attempt; the zero value lets it pass.
type verdict struct {
	rule string        // "pair", "address" or "account"; "" when none forbids
	wait time.Duration // until it passes again
}

// blocked tells whether an attempt may not even be compared.
func (t *throttle) blocked(a attempt) verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.judge(a)
}

// failed counts a wrong password, unless the limit is reached already: then it forbids telling.
func (t *throttle) failed(a attempt) verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.judge(a); v.rule != "" {
		return v
	}
	now := t.now()
	t.pair.add(t.key(a.email, a.address), now)
	t.address.add(t.key(a.address), now)
	t.account.add(t.key(a.email), now)
	return verdict{}
}

// succeeded forgets the failures of this email from this address.
func (t *throttle) succeeded(a attempt) verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.judge(a); v.rule != "" {
		return v
	}
	delete(t.pair.young, t.key(a.email, a.address))
	delete(t.pair.old, t.key(a.email, a.address))
	return verdict{}
}

// judge looks at the three rules, the narrowest first. Its caller holds mu.
func (t *throttle) judge(a attempt) verdict {
	now := t.now()
	if wait := t.pair.wait(t.key(a.email, a.address), now); wait > 0 {
		return verdict{"pair", wait}
	}
	if wait := t.address.wait(t.key(a.address), now); wait > 0 {
		return verdict{"address", wait}
	}
	if wait := t.account.wait(t.key(a.email), now); wait > 0 && !a.known {
		return verdict{"account", wait}
	}
	return verdict{}
}

// registered counts a registration from an address and tells whether it is one too many.
func (t *throttle) registered(address string) verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, now := t.key(address), t.now()
	if wait := t.registering.wait(key, now); wait > 0 {
		return verdict{"registrations", wait}
	}
	t.registering.add(key, now)
	return verdict{}
}

func (t *throttle) key(parts ...string) uint64 {
	return maphash.String(t.seed, strings.Join(parts, "\x00"))
}

// clientKey is how the throttle counts an address: IPv6 by its prefix, because one customer
// commands at least a /64 (RFC 6177 section 2).
func (t *throttle) clientKey(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Unmap().Is4() {
		return address
	}
	prefix, err := ip.WithZone("").Prefix(t.limits.ipv6Prefix)
	if err != nil {
		return address
	}
	return prefix.String()
}

// counter counts events per key in windows that begin with a key's first event. It keeps two
// generations and drops the older when the younger is full, so memory is bounded. Whoever adds
// counterGeneration new keys within a window flushes it; each costs a bcrypt computation, of which two cores
// do 30,000 in 15 minutes at cost 10, and the rule per address ends that after 60 from one place.
type counter struct {
	limit      int // 0: off
	span       time.Duration
	young, old map[uint64]window
}

// window is what one key did since its first event.
type window struct {
	count int
	since time.Time
}

const counterGeneration = 1 << 15

// get returns the running window of a key, or a zero one.
func (c *counter) get(key uint64, now time.Time) window {
	w, ok := c.young[key]
	if !ok {
		w = c.old[key]
	}
	if now.Sub(w.since) >= c.span {
		return window{}
	}
	return w
}

// wait is how long the key has to wait: 0 while it is below the limit.
func (c *counter) wait(key uint64, now time.Time) time.Duration {
	if c.limit == 0 {
		return 0
	}
	w := c.get(key, now)
	if w.count < c.limit {
		return 0
	}
	return w.since.Add(c.span).Sub(now)
}

// add counts one event of a key.
func (c *counter) add(key uint64, now time.Time) {
	if c.limit == 0 {
		return
	}
	w := c.get(key, now)
	if w.count == 0 {
		w.since = now
	}
	w.count++
	if c.young == nil || len(c.young) >= counterGeneration {
		c.old, c.young = c.young, map[uint64]window{}
	}
	c.young[key] = w
}
