package main

// This file keeps the signing keys: on disk, in memory, and as the published key set. It
// knows nothing of users, requests or the database. The directory is the truth:
//
//	private.pem, public.pem    the pair that signs now; private.pem decides, public.pem must agree
//	next-TIME.pem              a private key already published, which signs from TIME (unix seconds) on
//	retired-TIME-KID.pem       a public key whose last token has expired at TIME
//	new-RANDOM.pem             a first key on its way to private.pem
//	.NAME.RANDOM               a file being written; left by a kill it means nothing and may be deleted
//
// Invariants: each file appears whole or not at all (written aside, synced, then linked or renamed);
// a damaged or half missing pair is refused and never replaced, because replacing it would silently
// end every session's trust; and after a kill at any step the next load finishes what was begun.

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	minKeyBits = 2048 // NIST SP 800-131A: below is disallowed
	maxKeyBits = 8192 // above, one signature takes a noticeable part of a second
	// publishLead is how long a key is in the key set before it signs: longer than any client caches a key set.
	publishLead = 24 * time.Hour
)

// keyState is what a key is used for.
type keyState string

const (
	keySigning keyState = "signing"
	keyNext    keyState = "next"
	keyRetired keyState = "retired"
)

// publishedKey is one member of the key set. private is nil for retired keys.
type publishedKey struct {
	kid     string
	state   keyState
	at      time.Time // signing: since; next: signs from; retired: published until
	file    string    // name in the directory
	public  *rsa.PublicKey
	private *rsa.PrivateKey
}

// keySet is one consistent view of the directory. It never changes; a change makes a new one.
// Verified tokens are remembered here, so that they are forgotten with the keys that verified them.
type keySet struct {
	keys     []publishedKey // the signing key first
	header   string         // encoded protected header of the signing key
	byHead   map[string]*rsa.PublicKey
	document document // the published key set
	pemText  string   // private.pem as text, which legacyTokenKey needs
	seen     tokenCache
}

// signing is the key that signs new tokens.
func (s *keySet) signing() publishedKey { return s.keys[0] }

// sign makes an access token.
func (s *keySet) sign(c claims) (string, error) { return signJWT(s.signing().private, s.header, c) }

// verify is verifyJWT with a memory. A remembered token was verified under this very key set and
// with the same issuer and audience, which do not change while the server runs; only time can
// have invalidated it since. The key is the whole token, so a changed signature is a miss; what is kept are
// claims and never decisions, since the session is read all the same. Verifying costs 25 µs, a look-up 1 µs.
func (s *keySet) verify(token string, want expected) (claims, error) {
	id := sha256.Sum256([]byte(token))
	if c, ok := s.seen.get(id); ok {
		if c.expired(want.now) && !want.orExpired {
			return claims{}, errExpired
		}
		return c, nil
	}
	c, err := verifyJWT(token, want, s.byHead)
	if err == nil && !want.orExpired {
		s.seen.put(id, c)
	}
	return c, err
}

// tokenCache remembers the claims of verified tokens by the SHA-256 of the whole token. It holds
// at most two generations: when the newer is full it becomes the older one and that is dropped.
type tokenCache struct {
	mu         sync.Mutex
	young, old map[[32]byte]claims
}

// cacheGeneration entries of about 0.5 KB each keep the cache below 4 MB.
const cacheGeneration = 4096

func (t *tokenCache) get(id [32]byte) (claims, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, ok := t.young[id]
	if !ok {
		c, ok = t.old[id]
	}
	return c, ok
}

func (t *tokenCache) put(id [32]byte, c claims) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.young == nil || len(t.young) >= cacheGeneration {
		t.old, t.young = t.young, map[[32]byte]claims{}
	}
	t.young[id] = c
}

// keyring follows a directory. Methods that change it must not run in two processes at once;
// their callers hold the database's write lock.
type keyring struct {
	dir     string
	bits    int // of keys made here
	set     atomic.Pointer[keySet]
	mu      sync.Mutex // guards stamp and loading
	stamp   string     // what the directory looked like when set was loaded
	created bool       // this call to openKeyring made the first pair

	groupReadable bool // private.pem's group can read it, as mounted secrets often need
}

// openKeyring loads the keys of dir, or makes the first pair when there is no trace of one.
// Errors name the file and what to do; nothing that exists is overwritten.
func openKeyring(dir string, bits int) (*keyring, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("auth.data_dir (AUTH_DATA_DIR): %w", err)
	}
	k := &keyring{dir: dir, bits: bits}
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if runtime.GOOS != "windows" && info.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("%s can be written by every user of this machine, who could replace the keys: chmod 700 %s", dir, dir)
	}
	empty, err := k.hasNoKeys()
	if err != nil {
		return nil, err
	}
	if empty {
		if err := k.createFirst(); err != nil {
			return nil, fmt.Errorf("making the first signing key: %w", err)
		}
	}
	_, err = k.reload()
	return k, err
}

// current is the key set of this moment; callers keep it for one request.
func (k *keyring) current() *keySet { return k.set.Load() }

func (k *keyring) path(name string) string { return filepath.Join(k.dir, name) }

// hasNoKeys tells a first start from a directory that lost a file: only the first may make a key.
func (k *keyring) hasNoKeys() (bool, error) {
	entries, err := os.ReadDir(k.dir)
	return !slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		kind, _, _ := strings.Cut(strings.TrimSuffix(e.Name(), ".pem"), "-")
		return slices.Contains([]string{"private", "public", "next", "retired"}, kind)
	}), err
}

// createFirst makes the first pair. Linking fails when the name is taken, so that of two servers
// starting at once exactly one key wins, and the loser loads it.
func (k *keyring) createFirst() error {
	key, data, err := k.generate()
	if err != nil {
		return err
	}
	aside := k.path("new-" + rand.Text() + ".pem")
	if err := writeSynced(aside, data, 0o600); err != nil {
		return err
	}
	defer os.Remove(aside)
	if err := os.Link(aside, k.path("private.pem")); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	k.created = true
	return k.writeWhole("public.pem", encodePublic(&key.PublicKey), 0o644)
}

// reload makes the key set anew if the directory has changed since the last time, and tells
// whether it had. On an error the keys in memory stay in use.
func (k *keyring) reload() (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for range 5 { // another process may be changing the files while they are read
		stamp, err := k.look()
		if err != nil {
			return false, err
		}
		if stamp == k.stamp {
			return changed, nil
		}
		set, loadErr := k.load()
		if again, err := k.look(); err != nil || again != stamp {
			continue
		}
		if loadErr != nil {
			return false, loadErr
		}
		k.set.Store(set)
		k.stamp, changed = stamp, true
	}
	return changed, fmt.Errorf("%s keeps changing while it is read", k.dir)
}

// look describes the key files by name, size and time of change.
func (k *keyring) look() (string, error) {
	entries, err := os.ReadDir(k.dir)
	var b strings.Builder
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), ".pem") {
			fmt.Fprintln(&b, e.Name(), info.Size(), info.ModTime().UnixNano(), info.Mode())
		}
	}
	return b.String(), err
}

// load reads the directory, after finishing a change that a kill has left half done.
func (k *keyring) load() (*keySet, error) {
	private, text, err := k.readPrivate("private.pem")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing but other key files are there: restore it from a backup, or move them all away to start with a new key", k.path("private.pem"))
	} else if err != nil {
		return nil, err
	}
	if err := k.finish(private, text); err != nil {
		return nil, err
	}
	public, err := k.readPublic("public.pem")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%[1]s is missing: restore it, or make it again with: openssl pkey -in %[2]s -pubout -out %[1]s",
			k.path("public.pem"), k.path("private.pem"))
	} else if err != nil {
		return nil, err
	}
	if !public.Equal(&private.PublicKey) {
		return nil, fmt.Errorf("%s does not belong to private.pem: restore the pair from a backup", k.path("public.pem"))
	}
	info, err := os.Stat(k.path("private.pem"))
	if err != nil {
		return nil, err
	}
	k.groupReadable = runtime.GOOS != "windows" && info.Mode().Perm()&0o070 != 0
	keys := []publishedKey{{kid: thumbprint(public), state: keySigning, at: info.ModTime(), file: "private.pem", public: public, private: private}}
	others, err := k.loadOthers()
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if !slices.ContainsFunc(keys, func(have publishedKey) bool { return have.kid == o.kid }) {
			keys = append(keys, o)
		}
	}
	return newKeySet(keys, string(text)), nil
}

// loadOthers reads the next and the retired keys.
func (k *keyring) loadOthers() ([]publishedKey, error) {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return nil, err
	}
	var keys []publishedKey
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".pem")
		kind, rest, _ := strings.Cut(name, "-")
		stamp, _, _ := strings.Cut(rest, "-")
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		if name == e.Name() || (kind != "next" && kind != "retired") {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: the name must be next-TIME.pem or retired-TIME-KID.pem with TIME in unix seconds", k.path(e.Name()))
		}
		key := publishedKey{state: keyState(kind), at: time.Unix(seconds, 0), file: e.Name()}
		if key.state == keyNext {
			key.private, _, err = k.readPrivate(e.Name())
			if err == nil {
				key.public = &key.private.PublicKey
			}
		} else {
			key.public, err = k.readPublic(e.Name())
		}
		if err != nil {
			return nil, err
		}
		key.kid = thumbprint(key.public)
		keys = append(keys, key)
	}
	// Of two files of one key, which a kill can leave, the one that is published longer counts.
	slices.SortStableFunc(keys, func(a, b publishedKey) int { return b.at.Compare(a.at) })
	return keys, nil
}

// finish completes a change that stopped after private.pem was put in place: its twin, under
// the name it had before, is still there. It may run in several processes at once.
func (k *keyring) finish(private *rsa.PrivateKey, text []byte) error {
	twins, err := fs.Glob(os.DirFS(k.dir), "ne[wx]*-*.pem") // new-… and next-…
	if err != nil {
		return err
	}
	for _, twin := range twins {
		data, err := os.ReadFile(k.path(twin))
		if err != nil || !bytes.Equal(data, text) {
			continue
		}
		if err := k.writeWhole("public.pem", encodePublic(&private.PublicKey), 0o644); err != nil {
			return err
		}
		if err := os.Remove(k.path(twin)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// generate makes a key and its PEM text.
func (k *keyring) generate() (*rsa.PrivateKey, []byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, k.bits)
	if err != nil {
		return nil, nil, err
	}
	data, err := encodePrivate(key)
	return key, data, err
}

// publishNext makes the key that will sign from the given time on and adds it to the key set.
func (k *keyring) publishNext(at time.Time) error {
	_, data, err := k.generate()
	if err != nil {
		return err
	}
	if err := k.writeWhole(fmt.Sprintf("next-%d.pem", at.Unix()), data, 0o600); err != nil {
		return err
	}
	_, err = k.reload()
	return err
}

// promote makes the next key sign as of now. The old one stays published until the given time.
func (k *keyring) promote(now, until time.Time) error {
	next, ok := k.next()
	if !ok {
		return errors.New("there is no next key")
	}
	old := k.current().signing()
	retired := fmt.Sprintf("retired-%d-%s.pem", until.Unix(), old.kid)
	if err := k.writeWhole(retired, encodePublic(old.public), 0o644); err != nil {
		return err
	}
	if _, err := k.removeFiles(old.kid, retired); err != nil { // of attempts that were cut short
		return err
	}
	data, err := os.ReadFile(k.path(next.file))
	if err != nil {
		return err
	}
	if err := k.writeWhole("private.pem", data, 0o600); err != nil {
		return err
	}
	if err := os.Chtimes(k.path("private.pem"), now, now); err != nil { // its age decides when it retires
		return err
	}
	_, err = k.reload() // finish() writes public.pem and removes next-TIME.pem
	return err
}

// next is the earliest next key.
func (k *keyring) next() (publishedKey, bool) {
	var found publishedKey
	for _, key := range k.current().keys {
		if key.state == keyNext && (found.kid == "" || key.at.Before(found.at)) {
			found = key
		}
	}
	return found, found.kid != ""
}

// errKeyInUse refuses to drop the key that signs.
var errKeyInUse = errors.New("this key signs now; first run: pico-auth key rotate --now")

// drop removes a next or retired key from the key set: tokens it signed are refused from now on.
func (k *keyring) drop(kid string) error {
	if kid == k.current().signing().kid {
		return errKeyInUse
	}
	n, err := k.removeFiles(kid, "")
	if err == nil && n == 0 {
		err = fmt.Errorf("no key %s; see: pico-auth key list", kid)
	}
	if err != nil {
		return err
	}
	_, err = k.reload()
	return err
}

// removeFiles removes all next and retired files of a key but one: a kill can have left several.
func (k *keyring) removeFiles(kid, except string) (removed int, err error) {
	others, err := k.loadOthers()
	for _, key := range others {
		if key.kid == kid && key.file != except && err == nil {
			err = os.Remove(k.path(key.file))
			removed++
		}
	}
	return removed, err
}

// keyPlan is when keys change by themselves.
type keyPlan struct {
	every    time.Duration // 0: never by themselves
	validFor time.Duration // how long a token signed now is accepted: lifetime plus skew
	horizon  time.Time     // retired keys are dropped when this has passed; see store.purge
}

// keyStep is one change that is due, under the name of its event.
type keyStep struct {
	event string
	do    func() error
}

// due returns the changes that the plan demands now. They are carried out under the database's write
// lock, after reload and after asking again, because another process may have been faster.
func (k *keyring) due(now time.Time, plan keyPlan) []keyStep {
	var steps []keyStep
	next, exists := k.next()
	switch {
	case exists && !now.Before(next.at):
		steps = append(steps, keyStep{"key.rotated", func() error { return k.promote(now, now.Add(plan.validFor)) }})
	case exists && next.at.After(now.Add(2*publishLead)):
		// The clock was ahead when this key was made; without this it would wait for that time.
		steps = append(steps, keyStep{"key.rescheduled", func() error { return k.reschedule(next, now.Add(publishLead)) }})
	case !exists && plan.every > 0 && !now.Before(k.current().signing().at.Add(plan.every-publishLead)):
		steps = append(steps, keyStep{"key.published", func() error { return k.publishNext(now.Add(publishLead)) }})
	}
	for _, key := range k.current().keys {
		if key.state == keyRetired && plan.horizon.After(key.at) {
			steps = append(steps, keyStep{"key.dropped", func() error { return k.drop(key.kid) }})
		}
	}
	return steps
}

// reschedule changes when the next key begins to sign.
func (k *keyring) reschedule(next publishedKey, at time.Time) error {
	if err := os.Rename(k.path(next.file), k.path(fmt.Sprintf("next-%d.pem", at.Unix()))); err != nil {
		return err
	}
	_, err := k.reload()
	return err
}

// readPrivate reads an RSA private key in PKCS#8 or PKCS#1 form and returns the file's text too.
func (k *keyring) readPrivate(name string) (*rsa.PrivateKey, []byte, error) {
	path := k.path(name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		return nil, nil, fmt.Errorf("%s can be read by every user of this machine; if no stranger can have copied it: chmod 600 %s", path, path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	der, err := onePEM(path, text, "PRIVATE KEY", "RSA PRIVATE KEY")
	if err != nil {
		return nil, nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(der)
	}
	key, isRSA := parsed.(*rsa.PrivateKey)
	if err != nil || !isRSA {
		return nil, nil, fmt.Errorf("%s is not an RSA private key in PKCS#8 or PKCS#1 form; restore it from a backup", path)
	}
	return key, text, checkSize(path, &key.PublicKey)
}

// readPublic reads an RSA public key in SubjectPublicKeyInfo form.
func (k *keyring) readPublic(name string) (*rsa.PublicKey, error) {
	path := k.path(name)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	der, err := onePEM(path, text, "PUBLIC KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	key, isRSA := parsed.(*rsa.PublicKey)
	if err != nil || !isRSA {
		return nil, fmt.Errorf("%s is not an RSA public key in SubjectPublicKeyInfo form; restore it from a backup", path)
	}
	return key, checkSize(path, key)
}

// onePEM returns the content of the only PEM block of a file, which must have one of the given types.
func onePEM(path string, text []byte, types ...string) ([]byte, error) {
	block, rest := pem.Decode(text)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 || !slices.Contains(types, block.Type) || block.Headers["DEK-Info"] != "" {
		return nil, fmt.Errorf("%s must hold one unencrypted PEM block %q; restore it from a backup", path, types[0])
	}
	return block.Bytes, nil
}

// checkSize refuses keys that are too short to trust or too long to use.
func checkSize(path string, key *rsa.PublicKey) error {
	if bits := key.N.BitLen(); bits < minKeyBits || bits > maxKeyBits {
		return fmt.Errorf("%s has %d bits; keys here have %d to %d (RFC 7518 section 3.3 sets the lower bound)", path, bits, minKeyBits, maxKeyBits)
	}
	return nil
}

// encodePrivate and encodePublic write the forms pico-auth writes: PKCS#8 and SubjectPublicKeyInfo.
func encodePrivate(key *rsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func encodePublic(key *rsa.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic(err) // an *rsa.PublicKey always has this form
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// writeWhole replaces a file of the directory in one step.
func (k *keyring) writeWhole(name string, data []byte, mode os.FileMode) error {
	aside := k.path("." + name + "." + rand.Text())
	if err := writeSynced(aside, data, mode); err != nil {
		return err
	}
	if err := os.Rename(aside, k.path(name)); err != nil {
		return errors.Join(err, os.Remove(aside))
	}
	return syncDir(k.dir)
}

// writeSynced creates a file that must not exist yet, with its mode from the first byte, and
// returns when its content has reached the disk.
func writeSynced(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return cmp.Or(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path)))
}

// syncDir makes a new name durable. Windows cannot sync directories and does not need it.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// thumbprint is the key id: the RFC 7638 thumbprint of the public key. A constant kid would leave
// verifiers on a stale key after a change, because they ask for the key set only on an unknown kid.
func thumbprint(key *rsa.PublicKey) string {
	n, e := jwkNumbers(key)
	sum := sha256.Sum256([]byte(`{"e":"` + e + `","kty":"RSA","n":"` + n + `"}`))
	return b64.EncodeToString(sum[:])
}

// jwkNumbers are modulus and exponent as RFC 7518 section 6.3.1 writes them, without leading zeros.
func jwkNumbers(key *rsa.PublicKey) (n, e string) {
	return b64.EncodeToString(key.N.Bytes()), b64.EncodeToString(big.NewInt(int64(key.E)).Bytes())
}

// jwk is the public form of a key (RFC 7517 section 4). It is filled field by field from a public
// key, so that no member of a private key can ever slip in.
type jwk struct {
	KeyType   string `json:"kty"`
	KeyID     string `json:"kid"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	N         string `json:"n"`
	E         string `json:"e"`
}

// newKeySet prepares what signing, verifying and publishing need. keys[0] signs.
func newKeySet(keys []publishedKey, pemText string) *keySet {
	s := &keySet{keys: keys, header: headerFor(keys[0].kid), byHead: map[string]*rsa.PublicKey{}, pemText: pemText}
	var doc struct {
		Keys []jwk `json:"keys"`
	}
	for _, key := range keys {
		n, e := jwkNumbers(key.public)
		doc.Keys = append(doc.Keys, jwk{"RSA", key.kid, "sig", "RS256", n, e})
		s.byHead[headerFor(key.kid)] = key.public
	}
	body, _ := json.Marshal(doc) // texts only: cannot fail
	s.document = newDocument(body)
	return s
}

// document is a public answer made once: its bytes and their entity tag (RFC 9110 section 8.8.3).
type document struct {
	body   []byte
	etag   string
	header map[string][]string // cacheable for 300 s, as long as pico-client-auth keeps a key set
}

func newDocument(body []byte) document {
	sum := sha256.Sum256(body)
	etag := `"` + b64.EncodeToString(sum[:12]) + `"`
	return document{body, etag, map[string][]string{"Cache-Control": {"public, max-age=300"}, "Etag": {etag},
		"Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))}}}
}

// legacyTokenKey is the HMAC key under which pico-auth from 0.3.1 on stores refresh tokens: it
// depends on the text of the key file, with line ends as Python reads them.
func legacyTokenKey(pemText string) []byte {
	text := strings.ReplaceAll(strings.ReplaceAll(pemText, "\r\n", "\n"), "\r", "\n")
	sum := sha256.Sum256([]byte("pico-auth/token-hash-key/v1:" + text))
	return sum[:]
}
