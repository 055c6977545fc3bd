package main

// This file makes and reads tokens as pure functions: RS256 JSON Web Tokens (RFC 7515, 7518, 7519) and,
// at the end, opaque refresh tokens. Keys, the clock and what is expected come in as arguments. Verification accepts only what
// this server itself produces. The protected header is therefore never parsed: it must be, byte
// for byte, the header that signJWT writes for one of our keys. That leaves no room for another
// alg, for kid, jku or x5u tricks, for crit, or for duplicate members (RFC 8725 sections 3.1, 3.2 and 3.10).

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// maxTokenBytes bounds the work a bearer token can cause. The longest token we make holds
	// an email of 10,000 bytes, which adopted databases can contain.
	maxTokenBytes = 24 << 10
	// clockSkew is how far in the future iat may lie: our own clock may have been set back since.
	clockSkew = 60 * time.Second
	// maxJSONDepth is far above what any of our documents needs and far below what costs stack.
	maxJSONDepth = 32
)

// All of these are one 401 for the client, except that an expired token says so.
var (
	errMalformed    = errors.New("token is not in our form")
	errUnknownKey   = errors.New("token header is none of ours")
	errBadSignature = errors.New("token signature does not verify")
	errBadClaims    = errors.New("token claims are not ours")
	errExpired      = errors.New("token has expired")
)

var b64 = base64.RawURLEncoding

// claims are the members of an access token, in the order pico-auth 0.1.2 writes them, plus sid.
type claims struct {
	Subject   string   `json:"sub"`
	Email     string   `json:"email"`
	Role      string   `json:"role"`
	OrgID     string   `json:"org_id"`
	Issuer    string   `json:"iss"`
	Audience  audience `json:"aud"`
	IssuedAt  int64    `json:"iat"` // unix seconds
	ExpiresAt int64    `json:"exp"` // unix seconds
	ID        string   `json:"jti"`
	SessionID string   `json:"sid"` // what makes it an access token: no other token of ours has one
}

// audience is one string or an array of strings (RFC 7519 section 4.1.3). We write one string.
type audience []string

// MarshalJSON writes one audience as a string, as pico-auth does.
func (a audience) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return json.Marshal(a[0])
	}
	return json.Marshal([]string(a))
}

// UnmarshalJSON reads both forms.
func (a *audience) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		*a = make(audience, 1)
		return json.Unmarshal(data, &(*a)[0])
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// headerFor is the encoded protected header of every token signed by the key with this kid.
func headerFor(kid string) string {
	return b64.EncodeToString([]byte(`{"alg":"RS256","kid":"` + kid + `","typ":"JWT"}`))
}

// signJWT returns the compact serialisation (RFC 7515 section 3.1) of c, signed by key.
func signJWT(key *rsa.PrivateKey, header string, c claims) (string, error) {
	payload, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	signingInput := header + "." + b64.EncodeToString(payload)
	sig, err := signRS256(key, signingInput)
	if err != nil {
		return "", err
	}
	return signingInput + "." + b64.EncodeToString(sig), nil
}

// signRS256 is RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 section 3.3).
func signRS256(key *rsa.PrivateKey, signingInput string) ([]byte, error) {
	digest := sha256.Sum256([]byte(signingInput))
	return rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
}

// expected is what verifyJWT compares the claims with.
type expected struct {
	issuer, audience string
	now              time.Time
	orExpired        bool // accept a token that has expired, for logout alone
}

// verifyJWT returns the claims of an access token of ours. keys maps each encoded header to its
// key. The checks go from cheap to dear, and nothing inside the token is believed before its
// signature holds. On any error the claims are zero. A nil error does not say that the session
// still lives or what the user may do: both are read from the database.
func verifyJWT(token string, want expected, keys map[string]*rsa.PublicKey) (claims, error) {
	if len(token) > maxTokenBytes {
		return claims{}, errMalformed
	}
	header, rest, _ := strings.Cut(token, ".")
	payload64, signature64, ok := strings.Cut(rest, ".")
	if !ok {
		return claims{}, errMalformed
	}
	key := keys[header] // byte equality: alg "none", HS256 with our public key, and foreign kids all end here
	if key == nil {
		return claims{}, errUnknownKey
	}
	payload, err := decodeCanonical(payload64)
	if err != nil {
		return claims{}, err
	}
	signature, err := decodeCanonical(signature64)
	if err != nil {
		return claims{}, err
	}
	digest := sha256.Sum256([]byte(token[:len(header)+1+len(payload64)]))
	if rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) != nil {
		return claims{}, errBadSignature
	}
	return checkClaims(payload, want)
}

// decodeCanonical decodes base64url and insists on its one canonical spelling. Go's decoder
// skips CR and LF and ignores stray bits in the last character, so that several texts would
// carry the same signature; encoding again and comparing leaves exactly one.
func decodeCanonical(s string) ([]byte, error) {
	b, err := b64.DecodeString(s)
	if err != nil || b64.EncodeToString(b) != s {
		return nil, errMalformed
	}
	return b, nil
}

// checkClaims decodes a payload whose signature holds and compares it with what we expect.
func checkClaims(payload []byte, want expected) (claims, error) {
	if err := checkJSON(payload); err != nil { // RFC 7519 section 4: claim names are unique
		return claims{}, errBadClaims
	}
	var c claims
	dec := json.NewDecoder(strings.NewReader(string(payload)))
	dec.DisallowUnknownFields() // we never write nbf or anything else, so such a token is not ours
	if dec.Decode(&c) != nil || c.Subject == "" || c.SessionID == "" || c.ID == "" || c.ExpiresAt <= 0 {
		return claims{}, errBadClaims
	}
	audienceOK := false
	for _, a := range c.Audience {
		audienceOK = audienceOK || a == want.audience
	}
	if c.Issuer != want.issuer || !audienceOK { // RFC 8725 sections 3.8 and 3.9
		return claims{}, errBadClaims
	}
	if time.Unix(c.IssuedAt, 0).After(want.now.Add(clockSkew)) {
		return claims{}, errBadClaims
	}
	if c.expired(want.now) && !want.orExpired {
		return claims{}, errExpired
	}
	return c, nil
}

// expired holds from the very second of exp on (RFC 7519 section 4.1.4: "on or after").
func (c claims) expired(now time.Time) bool { return now.Unix() >= c.ExpiresAt }

// --- JSON ---

// errNotJSON is wrapped by every complaint of checkJSON; the text is fit for clients.
var errNotJSON = errors.New("not valid JSON")

// checkJSON accepts one JSON document whose member names are unique, also when case is ignored
// (RFC 8259 section 4 leaves duplicates open; Go takes the last, other parsers the first, and that
// difference is an attack), in valid UTF-8 without lone surrogates (Go would turn both
// into U+FFFD, which makes different texts equal), nested at most maxJSONDepth deep.
func checkJSON(data []byte) error {
	if !utf8.Valid(data) || hasLoneSurrogate(data) {
		return fmt.Errorf("%w: text that is not Unicode", errNotJSON)
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.UseNumber() // 1e999 is JSON, though no float64
	if err := checkValue(dec, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: text after the document", errNotJSON)
	}
	return nil
}

// checkValue consumes one value.
func checkValue(dec *json.Decoder, depth int) error {
	tok, err := dec.Token()
	if err != nil {
		return errNotJSON
	}
	open, isDelim := tok.(json.Delim)
	if !isDelim {
		return nil
	}
	if depth >= maxJSONDepth {
		return fmt.Errorf("%w: nested deeper than %d", errNotJSON, maxJSONDepth)
	}
	seen := map[string]bool{}
	for dec.More() {
		if open == '{' {
			tok, err := dec.Token()
			name, isString := tok.(string)
			if err != nil || !isString {
				return errNotJSON
			}
			folded := strings.ToLower(strings.ToUpper(name)) // encoding/json also takes ſ for s and K (U+212A) for k
			if seen[folded] {
				return fmt.Errorf("%w: a member name occurs twice", errNotJSON)
			}
			seen[folded] = true
		}
		if err := checkValue(dec, depth+1); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil { // the closing delimiter
		return errNotJSON
	}
	return nil
}

// hasLoneSurrogate finds a \uD800–\uDFFF escape that is not half of a pair (RFC 8259 section 8.2).
func hasLoneSurrogate(data []byte) bool {
	for i := 0; i+1 < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		i++ // the escaped character; a backslash here escapes nothing further
		if !isSurrogate(data[i:], "89abAB") {
			if isSurrogate(data[i:], "cdefCDEF") {
				return true
			}
			continue
		}
		if i+5 >= len(data) || data[i+5] != '\\' || !isSurrogate(data[i+6:], "cdefCDEF") {
			return true
		}
		i += 10
	}
	return false
}

// isSurrogate tells whether b begins with uDx.. and x is one of second.
func isSurrogate(b []byte, second string) bool {
	return len(b) >= 5 && b[0] == 'u' && (b[1] == 'd' || b[1] == 'D') && strings.IndexByte(second, b[2]) >= 0
}

// --- refresh tokens ---

// A refresh token is `<handle>.<256 random bits>`. The handle stays the same while a session lives, and the
// session's id is its SHA-256: ids are in every access token and in logs, and whoever reads one there
// must not be able to make up a token that names the session, which would end it.

// newRefreshToken makes a refresh token of the session that the handle names.
func newRefreshToken(handle string) string {
	var secret [32]byte
	rand.Read(secret[:]) // never fails (crypto/rand, Go 1.24)
	return handle + "." + b64.EncodeToString(secret[:])
}

// refreshTokenHandle returns the handle of a refresh token, of which pico-auth's are nothing else.
func refreshTokenHandle(token string) (handle string, ok bool) {
	if isLegacyRefreshToken(token) {
		return token, true
	}
	handle, secret, _ := strings.Cut(token, ".")
	raw, err := decodeCanonical(secret)
	return handle, err == nil && len(raw) == 32 && handle != "" && len(handle) <= 64
}

// sessionIDOf is the id of the session that a handle names.
func sessionIDOf(handle string) string { return hex.EncodeToString(hashToken(handle)) }

// isLegacyRefreshToken tells the form of pico-auth's refresh tokens: a UUID4 without dashes.
func isLegacyRefreshToken(token string) bool {
	raw, err := hex.DecodeString(token)
	return err == nil && len(raw) == 16
}

// hashToken is how a refresh token is stored. A plain hash suffices: 256 random bits cannot be guessed.
func hashToken(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// sealToken encrypts the successor of a refresh token so that only whoever holds the parent can read it: the
// database, which knows the parent's hash alone, opens nothing.
func sealToken(parent, successor string) ([]byte, error) {
	aead, err := sealCipher(parent)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, []byte(successor), nil), nil
}

// openToken decrypts what sealToken sealed under the same parent.
func openToken(parent string, sealed []byte) (string, error) {
	aead, err := sealCipher(parent)
	if err != nil {
		return "", err
	}
	successor, err := aead.Open(nil, nil, sealed, nil)
	return string(successor), err
}

// sealCipher is AES-256-GCM under a key derived from the parent token (RFC 5869).
func sealCipher(parent string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(parent), nil, "pico-auth refresh token successor", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
