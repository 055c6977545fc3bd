package main

// This file keeps the signing keys: on disk, in memory, and as the published
// key set. It knows nothing of users, requests or the database. What a key
// does follows from the name of its file and the clock alone, so all servers
// on one directory agree:
//
//	private.pem      the first key; it signs until the first TIME
//	public.pem       its public half, both as the Python server has them; it
//	                 stays as the mark that keys existed
//	key-TIME.pem     signs from TIME (unix seconds) until the next one does
//	new-private.pem  a first key being made: nothing was ever signed with it,
//	                 so a start that finds it begins anew
//	.NAME.RANDOM     a file being written; left by a kill it means nothing
//
// The life of one key:
//
//	from               state    key set  its tokens  ended by
//	24 h before TIME   next     yes      none yet    the clock
//	TIME               signing  yes      accepted    the TIME of the next key
//	that TIME          retired  yes      accepted    the end of its last token
//	some hours later   dropped  no       refused     (its file is removed)
//
// Every change is one file that appears or disappears as a whole. A damaged
// or half missing key is refused and never replaced: a new key in its place
// would make every token that is out worthless without a word.

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
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

// Names in the key directory.
const (
	firstKeyFile    = "private.pem"
	firstPublicFile = "public.pem"
	newKeyFile      = "new-private.pem"
)

const (
	// publishLead is how long a key is in the key set before it signs: longer
	// than any client keeps a copy of the key set.
	publishLead = 24 * time.Hour
	// takeoverDelay is how long a key made in an emergency waits before it
	// signs, so that every server has read its file by then: they look every
	// two seconds.
	takeoverDelay = 5 * time.Second
)

// --- the key set ---

// publishedKey is one member of the key set.
type publishedKey struct {
	signingKey
	kid     string
	jwk     map[string]string // RFC 7517 section 4
	headers map[string]string // by typ: encoded protected headers of the tokens it signs
	since   time.Time         // when it begins to sign
	file    string            // name in the directory
}

// keySet is what the directory held at one moment. It never changes; a change
// of the directory makes a new one.
type keySet struct {
	keys     []publishedKey                   // in the order in which they sign; at least one
	byHeader map[string]map[string]signingKey // by typ, then by header
	document document                         // the published key set
	verified [cacheSlots]atomic.Pointer[verifiedToken]
}

// newKeySet prepares what signing, verifying and publishing need.
func newKeySet(keys []publishedKey) *keySet {
	s := &keySet{keys: keys, byHeader: map[string]map[string]signingKey{}}
	var jwks []map[string]string
	for _, key := range keys {
		for typ, header := range key.headers {
			if s.byHeader[typ] == nil {
				s.byHeader[typ] = map[string]signingKey{}
			}
			s.byHeader[typ][header] = key.signingKey
		}
		jwks = append(jwks, key.jwk)
	}
	body, _ := json.Marshal(map[string]any{"keys": jwks}) // RFC 7517 section 5; cannot fail
	s.document = newDocument(body)
	return s
}

// signingIndex finds the last key whose time has come. The first key is used
// whatever its time, so that a clock set back never leaves us without one.
func (s *keySet) signingIndex(now time.Time) int {
	i := len(s.keys) - 1
	for i > 0 && s.keys[i].since.After(now) {
		i--
	}
	return i
}

// signing returns the key that signs at this moment.
func (s *keySet) signing(now time.Time) publishedKey {
	return s.keys[s.signingIndex(now)]
}

// planned reports whether a key of this algorithm waits to take over. One that
// waits for more than twice publishLead was made while the clock was ahead; it
// does not count, because it can be years away.
func (s *keySet) planned(now time.Time, algorithm string) bool {
	soon := now.Add(2 * publishLead)
	return slices.ContainsFunc(s.keys[s.signingIndex(now)+1:], func(key publishedKey) bool {
		return key.algorithm.name == algorithm && !key.since.After(soon)
	})
}

// algorithms returns those of all keys, each once.
func (s *keySet) algorithms() (names []string) {
	for _, key := range s.keys {
		if !slices.Contains(names, key.algorithm.name) {
			names = append(names, key.algorithm.name)
		}
	}
	return names
}

// keyInfo is a key as the operator sees it.
type keyInfo struct {
	kid       string
	algorithm string
	state     string    // signing, next or retired
	at        time.Time // signing: since; next: signs from; retired: its last token ends
}

// list returns all keys in the order in which they sign. validFor is how long
// a token is accepted from its signature on.
func (s *keySet) list(now time.Time, validFor time.Duration) []keyInfo {
	var infos []keyInfo
	signing := s.signingIndex(now)
	for i, key := range s.keys {
		info := keyInfo{key.kid, key.algorithm.name, "signing", key.since}
		if i > signing {
			info.state = "next"
		} else if i < signing {
			info.state, info.at = "retired", s.keys[i+1].since.Add(validFor)
		}
		infos = append(infos, info)
	}
	return infos
}

// signToken makes a token. The key is chosen by the clock at every signature,
// so that all servers change keys in the same second.
func signToken[C tokenClaims](s *keySet, now time.Time, c C) (string, error) {
	key := s.signing(now)
	return signJWT(key.signingKey, key.headers[c.typ()], c)
}

// verifiedToken remembers the claims of a token by the SHA-256 of its text.
// It holds no decision: the session is read from the database all the same.
type verifiedToken struct {
	id     [sha256.Size]byte
	claims any // of the type that is the token's kind
}

// cacheSlots tokens of about 0.5 KB are remembered, 4 MB in all. Each has one
// slot; a token that finds it taken replaces the other.
const cacheSlots = 8192

// verifyToken is verifyJWT with a memory: verifying takes 25 µs, a look-up 1
// µs. A remembered token was verified with the keys of this very set, as the
// same kind of token, and for the same issuer and audience, which do not change
// while the server runs, so only the clock can have turned against it. The
// whole token is hashed: with another signature it is another token. The memory
// ends with the key set, so a dropped key's tokens are forgotten at once.
func verifyToken[C tokenClaims](s *keySet, token string, want expected) (C, error) {
	var buffer [1024]byte // keeps the copy of a usual token on the stack
	id := sha256.Sum256(append(buffer[:0], token...))
	slot := &s.verified[binary.LittleEndian.Uint16(id[:])%cacheSlots]
	if v := slot.Load(); v != nil && v.id == id {
		if c, sameKind := v.claims.(C); sameKind {
			return asExpected(c, want)
		}
	}
	var kind C
	c, err := verifyJWT[C](token, want, s.byHeader[kind.typ()])
	if err == nil && !want.orExpired {
		slot.Store(&verifiedToken{id, c})
	}
	return c, err
}

// --- the directory ---

// keyring follows the key directory. Methods that change it must not run in
// two processes at once; their callers hold the database's write lock.
type keyring struct {
	dir       string
	algorithm string   // of keys made here
	bits      int      // size of RSA keys made here
	notes     []string // odd things found at opening, each with its remedy
	set       atomic.Pointer[keySet]

	mu         sync.Mutex // guards notes, what follows, and loading
	stamp      string     // what the directory looked like when set was loaded
	firstSince time.Time  // since when the first key signs
}

// openKeyring loads the keys of dir. It makes and changes nothing, not even
// dir itself. Errors name the file and what to do about it.
func openKeyring(dir, algorithm string, bits int) (*keyring, error) {
	k := &keyring{dir: dir, algorithm: algorithm, bits: bits}
	_, err := k.reload()
	return k, err
}

func (k *keyring) path(name string) string {
	return filepath.Join(k.dir, name)
}

// current returns the key set of this moment, nil while there is no key.
// Callers keep it for one request.
func (k *keyring) current() *keySet {
	return k.set.Load()
}

// empty reports whether there is no key yet.
func (k *keyring) empty() bool {
	return k.current() == nil
}

// firstKeyTime returns when private.pem was last changed, false if there is
// none.
func (k *keyring) firstKeyTime() (changed time.Time, exists bool) {
	info, err := os.Stat(k.path(firstKeyFile))
	if err != nil {
		return changed, false
	}
	return info.ModTime(), true
}

// setFirstSince says since when the first key signs. The time of its file
// will not do: copying or restoring it would start another 90 days.
func (k *keyring) setFirstSince(t time.Time) error {
	k.mu.Lock()
	k.firstSince = t
	k.stamp = "" // so that reload reads everything again
	k.mu.Unlock()
	_, err := k.reload()
	return err
}

// reload makes the key set anew if the directory has changed since the last
// time, and reports whether it had. On an error the keys in memory stay in
// use.
func (k *keyring) reload() (changed bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for range 3 { // another process may remove or rename a file that was just listed
		names, stamp, listErr := k.keyFiles()
		if listErr != nil || stamp == k.stamp {
			return false, listErr
		}
		var set *keySet
		if set, err = k.load(names); err == nil {
			k.set.Store(set)
			k.stamp = stamp
			return true, nil
		}
	}
	return false, err
}

// keyFiles returns the names of the key files, and a text that changes when
// one of them does. Kubernetes mounts secrets as links and changes where they
// lead, maybe to a file of the same size and time, so the target counts too.
func (k *keyring) keyFiles() (names []string, stamp string, err error) {
	entries, err := os.ReadDir(k.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	stamp = "directory"
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasSuffix(name, ".pem") {
			continue
		}
		names = append(names, name)
		if info, err := os.Stat(k.path(name)); err == nil {
			target, _ := filepath.EvalSymlinks(k.path(name))
			stamp += fmt.Sprintln(name, target, info.Size(), info.ModTime(), info.Mode())
		}
	}
	return names, stamp, err
}

// load reads the key files. It returns nil if there is no key yet, which only
// a directory without a trace of one counts as.
func (k *keyring) load(names []string) (*keySet, error) {
	k.notes = nil
	if err := k.checkMode("", 0o002, "put keys into", "chmod 700"); err != nil {
		return nil, err
	}
	var keys []publishedKey
	for _, name := range names {
		if name != firstKeyFile && !strings.HasPrefix(name, "key-") {
			continue
		}
		key, err := k.readKey(name)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		lost := slices.Contains(names, firstPublicFile) && !slices.Contains(names, newKeyFile)
		if lost || !k.empty() {
			return nil, fmt.Errorf("%s is missing: restore it from a backup, "+
				"or move public.pem away and start with a new key", k.path(firstKeyFile))
		}
		return nil, nil
	}
	slices.SortFunc(keys, func(a, b publishedKey) int {
		return a.since.Compare(b.since)
	})
	if keys[0].file == firstKeyFile {
		if err := k.checkPublic(keys[0]); err != nil {
			return nil, err
		}
		keys[0].since = k.firstSince
	}
	return newKeySet(keys), nil
}

// checkMode refuses a file, or with no name the directory, that every user of
// the machine may use in this way, and notes that its group may. Windows has
// no such modes.
func (k *keyring) checkMode(name string, others fs.FileMode, use, remedy string) error {
	path := k.path(name)
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS == "windows" {
		return err
	}
	if info.Mode()&others != 0 {
		return fmt.Errorf("every user of this machine can %s %s; if no stranger has: %s %[2]s",
			use, path, remedy)
	}
	if info.Mode()&(others<<3) != 0 {
		note := fmt.Sprintf("the group can %s %s; unless it must: %s %[2]s", use, path, remedy)
		k.notes = append(k.notes, note)
	}
	return nil
}

// readKey reads a private key in PKCS#8 or PKCS#1 form. The first key has no
// TIME; it counts as 0, which comes before all others.
func (k *keyring) readKey(name string) (key publishedKey, err error) {
	path := k.path(name)
	var seconds int64
	fmt.Sscanf(name, "key-%d.pem", &seconds) // what it cannot read differs below
	since := time.Unix(seconds, 0)
	if name != firstKeyFile && name != laterKeyFile(since) {
		return key, fmt.Errorf("%s: the name must be key-TIME.pem with TIME in unix seconds", path)
	}
	if err := k.checkMode(name, 0o007, "read", "chmod 600"); err != nil {
		return key, err
	}
	der, err := k.readPEM(name)
	if err != nil {
		return key, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(der)
	}
	signer, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return key, fmt.Errorf("%s is not a private key in PKCS#8 or PKCS#1 form, without a password, "+
			"that a program built with %s can read: restore it from a backup", path, runtime.Version())
	}
	key, err = newPublishedKey(signer)
	if err != nil {
		return key, fmt.Errorf("%s %w: restore another one from a backup", path, err)
	}
	key.since, key.file = since, name
	return key, nil
}

func laterKeyFile(since time.Time) string {
	return fmt.Sprintf("key-%d.pem", since.Unix())
}

// checkPublic refuses a pair whose halves do not belong together: nobody can
// say which of them other programs trust.
func (k *keyring) checkPublic(key publishedKey) error {
	der, err := k.readPEM(firstPublicFile)
	if err != nil || !bytes.Equal(der, publicDER(key.signer)) {
		return fmt.Errorf("%[1]s is missing or not the public half of %[2]s: "+
			"restore the pair from a backup; if %[2]s is right: openssl pkey -in %[2]s -pubout -out %[1]s",
			k.path(firstPublicFile), k.path(firstKeyFile))
	}
	return nil
}

// publicDER is the public half of a key as SubjectPublicKeyInfo.
func publicDER(key crypto.Signer) []byte {
	der, _ := x509.MarshalPKIXPublicKey(key.Public()) // cannot fail for a key of ours
	return der
}

// newPublishedKey finds the algorithm that a key is for, and what follows
// from both.
func newPublishedKey(signer crypto.Signer) (publishedKey, error) {
	for _, algorithm := range signingAlgorithms {
		jwk, err := algorithm.members(signer.Public())
		if err != nil {
			return publishedKey{}, err
		}
		if jwk == nil {
			continue
		}
		kid := thumbprint(jwk)
		jwk["kid"], jwk["use"], jwk["alg"] = kid, "sig", algorithm.name
		return publishedKey{
			signingKey: signingKey{algorithm, signer},
			kid:        kid,
			jwk:        jwk,
			headers: map[string]string{
				typLogin:  tokenHeader(algorithm.name, kid, typLogin),
				typClient: tokenHeader(algorithm.name, kid, typClient),
				typID:     tokenHeader(algorithm.name, kid, typID),
			},
		}, nil
	}
	return publishedKey{}, errors.New("is a key of no algorithm that this server signs with")
}

// thumbprint is the key id: the RFC 7638 thumbprint of the public key. With
// one kid for every key, as the Python server has it, verifiers would keep
// the old key after a change: they fetch the key set anew only on a kid that
// they do not know. json.Marshal sorts the members, as section 3.3 demands.
func thumbprint(members map[string]string) string {
	text, _ := json.Marshal(members) // texts only: cannot fail
	sum := sha256.Sum256(text)
	return b64.EncodeToString(sum[:])
}

// readPEM returns the content of the only PEM block of a file.
func (k *keyring) readPEM(name string) ([]byte, error) {
	text, err := os.ReadFile(k.path(name))
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s must hold one PEM block: restore it from a backup", k.path(name))
	}
	return block.Bytes, nil
}

// --- changes ---

// newKey is a key that is in no file yet.
type newKey crypto.Signer

// generate makes a key in memory. It takes up to some seconds, so callers
// hold no lock.
func (k *keyring) generate() (newKey, error) {
	for _, algorithm := range signingAlgorithms {
		if algorithm.name == k.algorithm {
			return algorithm.generate(k.bits)
		}
	}
	return nil, errors.New("no algorithm " + k.algorithm) // refused by loadConfig
}

// createFirst makes key the first one, unless there is one by now. Only the
// last step, a rename, makes it count; a start after a kill before that
// begins anew.
func (k *keyring) createFirst(key newKey) (created bool, err error) {
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return false, fmt.Errorf("auth.data_dir (AUTH_DATA_DIR): %w", err)
	}
	if _, err := k.reload(); err != nil || !k.empty() {
		return false, err
	}
	err = k.writePrivate(newKeyFile, key)
	if err == nil {
		err = k.writePEM(firstPublicFile, "PUBLIC KEY", publicDER(key))
	}
	if err == nil {
		err = synced(k.dir, os.Rename(k.path(newKeyFile), k.path(firstKeyFile)))
	}
	if err == nil {
		_, err = k.reload()
	}
	return err == nil, err
}

// publish adds a key to the key set, which signs from the given time on.
func (k *keyring) publish(key newKey, at time.Time) error {
	name := laterKeyFile(at)
	if _, err := os.Lstat(k.path(name)); err == nil {
		return fmt.Errorf("%s is there already: another change of keys was made "+
			"in this second; see: pico-auth key list", k.path(name))
	}
	err := k.writePrivate(name, key)
	if err == nil {
		_, err = k.reload()
	}
	return err
}

// drop removes a key that does not sign: no token of it is accepted any more.
func (k *keyring) drop(kid string, now time.Time) error {
	set := k.current()
	i := slices.IndexFunc(set.keys, func(key publishedKey) bool {
		return key.kid == kid
	})
	if i < 0 {
		return fmt.Errorf("no key %s; see: pico-auth key list", kid)
	}
	key := set.keys[i]
	if i == set.signingIndex(now) {
		return fmt.Errorf("this key signs since %s; drop it when another one signs (pico-auth key list "+
			"tells when), 5 seconds after: pico-auth key rotate --now", key.since.UTC().Format(time.RFC3339))
	}
	err := synced(k.dir, os.Remove(k.path(key.file)))
	if err == nil {
		_, err = k.reload()
	}
	return err
}

// keyPlan is what the configuration and the database say about changing keys.
type keyPlan struct {
	every    time.Duration // how long a key signs; 0: until the operator or a setting changes it
	validFor time.Duration // how long a token signed at this moment is accepted
	horizon  time.Time     // what ended before this is removed; see purge
}

// keyChanges is what is to be done.
type keyChanges struct {
	publishAt time.Time // zero: publish no key
	drop      []string  // kids
}

// due returns what the plan demands at this moment. Another algorithm than the
// signing key's needs a next key at once, whatever its age; a next key of
// another algorithm than ours was planned before the setting came back.
// Callers make the key, take the lock, reload and ask again: another process
// may have been faster.
func (k *keyring) due(now time.Time, plan keyPlan) keyChanges {
	var changes keyChanges
	set := k.current()
	signing, at := set.signing(now), now.Add(publishLead)
	aged := plan.every > 0 && !at.Before(signing.since.Add(plan.every))
	switched := signing.algorithm.name != k.algorithm
	if (aged || switched) && !set.planned(now, k.algorithm) {
		changes.publishAt = at
	}
	for _, key := range set.list(now, plan.validFor) {
		stray := key.state == "next" && key.algorithm != k.algorithm
		ended := key.state == "retired" && plan.horizon.After(key.at)
		if stray || ended {
			changes.drop = append(changes.drop, key.kid)
		}
	}
	return changes
}

// --- files ---

// writePrivate writes a private key in PKCS#8 form.
func (k *keyring) writePrivate(name string, key newKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return k.writePEM(name, "PRIVATE KEY", der)
}

// writePEM puts a file into the directory in one step: it is written aside,
// readable by its owner alone from the first byte, reaches the disk, and is
// renamed. On an error nothing is left, least of all a part of a private key.
func (k *keyring) writePEM(name, kind string, der []byte) error {
	f, err := os.CreateTemp(k.dir, "."+name+".*")
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	err = cmp.Or(err, f.Sync(), f.Close())
	if err == nil {
		err = synced(k.dir, os.Rename(f.Name(), k.path(name)))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// --- the published document ---

// document is a public answer made once. header is all that depends on the
// document; it must not be changed.
type document struct {
	body   []byte
	etag   string // RFC 9110 section 8.8.3
	header map[string][]string
}

// newDocument makes a JSON document that caches may keep for 300 s, as long
// as clients of the Python server keep a key set.
func newDocument(body []byte) document {
	sum := sha256.Sum256(body)
	etag := `"` + b64.EncodeToString(sum[:12]) + `"`
	header := map[string][]string{
		"Content-Type":   {"application/json"},
		"Content-Length": {strconv.Itoa(len(body))},
		"Cache-Control":  {"public, max-age=300"},
		"Etag":           {etag},
	}
	return document{body, etag, header}
}
