package main

// This file makes and reads the server's access tokens: JSON Web Tokens (RFC
// 7519), signed as RFC 7515 and RFC 7518 say. It is pure: keys, the clock and
// what is expected come in as arguments. A token is accepted only if this
// server would write the same bytes itself: the header is compared with those
// of our keys and never parsed, the payload is encoded again and compared,
// and base64url has one spelling. That leaves no room for another alg, for
// kid, jku and x5u tricks, for crit or for duplicate members (RFC 8725
// sections 3.1, 3.2 and 3.10).

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

const (
	// maxTokenBytes bounds the work that a bearer token can cause. The longest
	// token we make holds an email of 10,000 bytes, which adopted databases
	// can contain, and a signature of ML-DSA-87.
	maxTokenBytes = 24 << 10
	// clockSkew is how far in the future iat may lie: the clock may have been
	// set back since the token was made.
	clockSkew = 60 * time.Second
)

// The client gets the same 401 for all of these, except that an expired token
// is called expired.
var (
	errMalformed    = errors.New("token is not in our form")
	errUnknownKey   = errors.New("token header is none of ours")
	errBadSignature = errors.New("token signature does not verify")
	errBadClaims    = errors.New("token claims are not ours")
	errExpired      = errors.New("token has expired")
)

var b64 = base64.RawURLEncoding

// --- RS256 ---

const (
	minKeyBits = 2048 // RFC 7518 section 3.3
	maxKeyBits = 8192 // one signature of a longer key takes a good part of a second
)

func generateRS256(bits int) (crypto.Signer, error) {
	return rsa.GenerateKey(rand.Reader, bits)
}

// signRS256 is RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 section 3.3). Sign of
// an *rsa.PrivateKey is rsa.SignPKCS1v15, unless it is asked for PSS.
func signRS256(key crypto.Signer, input string) ([]byte, error) {
	digest := sha256.Sum256([]byte(input))
	return key.Sign(rand.Reader, digest[:], crypto.SHA256)
}

func verifyRS256(key crypto.PublicKey, input string, signature []byte) error {
	digest := sha256.Sum256([]byte(input))
	return rsa.VerifyPKCS1v15(key.(*rsa.PublicKey), crypto.SHA256, digest[:], signature)
}

// membersRS256 writes modulus and exponent without leading zeros (RFC 7518
// section 6.3.1).
func membersRS256(key crypto.PublicKey) (map[string]string, error) {
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, nil
	}
	if bits := public.N.BitLen(); bits < minKeyBits || bits > maxKeyBits {
		return nil, fmt.Errorf("has %d bits, but RSA keys have %d to %d here", bits, minKeyBits, maxKeyBits)
	}
	return map[string]string{
		"kty": "RSA",
		"n":   b64.EncodeToString(public.N.Bytes()),
		"e":   b64.EncodeToString(big.NewInt(int64(public.E)).Bytes()),
	}, nil
}

// --- ES256 ---

// maxES256 bounds s. Beside every signature (r, s) stands (r, n-s), which is
// just as good. Only the one with the smaller s is ours, so that nobody can
// make a second text of a token.
func maxES256() *big.Int {
	return new(big.Int).Rsh(elliptic.P256().Params().N, 1)
}

func generateES256(int) (crypto.Signer, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// signES256 is ECDSA on P-256 with SHA-256. The signature is r and s in 32
// bytes each, not ASN.1 (RFC 7518 section 3.4).
func signES256(key crypto.Signer, input string) ([]byte, error) {
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key.(*ecdsa.PrivateKey), digest[:])
	if err != nil {
		return nil, err
	}
	if s.Cmp(maxES256()) > 0 {
		s.Sub(elliptic.P256().Params().N, s)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signature, nil
}

// verifyES256 refuses a zero and a number that is not below n before anything
// is computed: such signatures once passed for every text (CVE-2022-21449).
func verifyES256(key crypto.PublicKey, input string, signature []byte) error {
	if len(signature) != 64 {
		return errBadSignature
	}
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if r.Sign() == 0 || s.Sign() == 0 || r.Cmp(elliptic.P256().Params().N) >= 0 || s.Cmp(maxES256()) > 0 {
		return errBadSignature
	}
	digest := sha256.Sum256([]byte(input))
	if !ecdsa.Verify(key.(*ecdsa.PublicKey), digest[:], r, s) {
		return errBadSignature
	}
	return nil
}

// membersES256 writes both coordinates in 32 bytes (RFC 7518 section 6.2.1).
func membersES256(key crypto.PublicKey) (map[string]string, error) {
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, nil
	}
	if public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("is on the curve %s, but ES256 is on P-256", public.Params().Name)
	}
	point, err := public.Bytes() // 4, x, y (SEC 1 section 2.3.3)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"kty": "EC",
		"crv": "P-256",
		"x":   b64.EncodeToString(point[1:33]),
		"y":   b64.EncodeToString(point[33:]),
	}, nil
}

// --- the table ---

// signingAlgorithm is what the server does with keys of one kind.
type signingAlgorithm struct {
	name  string // alg of RFC 7518 section 3.1
	needs string // what the program must be built with; "" if it is
	// generate makes a key. bits is the size of RSA keys.
	generate func(bits int) (crypto.Signer, error)
	sign     func(key crypto.Signer, input string) ([]byte, error)
	verify   func(key crypto.PublicKey, input string, signature []byte) error
	// members returns the required members of the JSON Web Key (RFC 7638
	// section 3.2), nil for a key of another kind, and an error for a key of
	// this kind that is not fit. They are taken one by one from the public
	// key, so that no member of a private key can slip in.
	members func(key crypto.PublicKey) (map[string]string, error)
}

// signingAlgorithms are the values of auth.algorithm.
var signingAlgorithms = []signingAlgorithm{
	{"RS256", "", generateRS256, signRS256, verifyRS256, membersRS256},
	{"ES256", "", generateES256, signES256, verifyES256, membersES256},
	{"ML-DSA-65", mldsaNeeds, generateMLDSA65, signMLDSA, verifyMLDSA, membersMLDSA65}, // room: mldsa
	{"ML-DSA-87", mldsaNeeds, generateMLDSA87, signMLDSA, verifyMLDSA, membersMLDSA87}, // room: mldsa
}

// signingKey is a key that can sign and verify tokens.
type signingKey struct {
	algorithm signingAlgorithm
	signer    crypto.Signer
}

// --- tokens ---

// The typ of each kind of token. An id_token has none, as in the examples of
// OpenID Connect.
const (
	typLogin  = "JWT"
	typClient = "at+jwt"
	typID     = ""
)

// tokenClaims are the claims of one kind of token: a login's, a client's, or an
// id_token. Each kind has a type of its own, and a typ, by which the headers of
// a key differ, so that no token is taken for one of another kind (RFC 8725
// section 3.11).
type tokenClaims interface {
	claims | clientClaims | idClaims
	typ() string
	limits() (issuer string, aud []string, issuedAt, expiresAt int64)
}

// claims are the members of an access token, in the order in which the Python
// server of version 0.1.2 writes them, plus sid and groups.
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
	SessionID string   `json:"sid"`
	Groups    groupIDs `json:"groups"`
}

func (claims) typ() string { return typLogin }

func (c claims) limits() (string, []string, int64, int64) {
	return c.Issuer, c.Audience, c.IssuedAt, c.ExpiresAt
}

// clientClaims are the members of an access token of an OpenID client (RFC 9068
// section 2.2). The endpoints of /api do not accept it. The last four are those
// of a login's token, for clients that have an audience.
type clientClaims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	ClientID  string   `json:"client_id"`
	Scope     string   `json:"scope,omitempty"`
	SessionID string   `json:"sid,omitempty"`       // none for client_credentials
	AuthTime  int64    `json:"auth_time,omitempty"` // unix seconds, as below
	IssuedAt  int64    `json:"iat"`
	ExpiresAt int64    `json:"exp"`
	ID        string   `json:"jti"`
	Email     *string  `json:"email,omitempty"`
	Role      *string  `json:"role,omitempty"`
	OrgID     *string  `json:"org_id,omitempty"`
	Groups    groupIDs `json:"groups,omitzero"`
}

func (clientClaims) typ() string { return typClient }

func (c clientClaims) limits() (string, []string, int64, int64) {
	return c.Issuer, c.Audience, c.IssuedAt, c.ExpiresAt
}

// idClaims are the members of an id_token (OpenID Connect Core section 2). It
// says to a client who logged in, and is accepted nowhere as a bearer token.
type idClaims struct {
	Issuer     string   `json:"iss"`
	Subject    string   `json:"sub"`
	Audience   string   `json:"aud"` // client_id
	ExpiresAt  int64    `json:"exp"`
	IssuedAt   int64    `json:"iat"`
	AuthTime   int64    `json:"auth_time"`
	ACR        string   `json:"acr"`
	AMR        []string `json:"amr"` // RFC 8176
	Nonce      string   `json:"nonce,omitempty"`
	AccessHash string   `json:"at_hash"`
	SessionID  string   `json:"sid"`
	identity
}

// identity is what the scopes of a client let it know of a user (OpenID Connect
// Core section 5.4), in id_tokens and at the userinfo endpoint alike: programs
// look in one place or the other.
type identity struct {
	Email             string   `json:"email,omitempty"`
	EmailVerified     bool     `json:"email_verified,omitempty"` // true or absent
	Name              string   `json:"name,omitempty"`
	PreferredUsername string   `json:"preferred_username,omitempty"`
	Groups            []string `json:"groups,omitzero"` // names
}

func (idClaims) typ() string { return typID }

func (c idClaims) limits() (string, []string, int64, int64) {
	return c.Issuer, []string{c.Audience}, c.IssuedAt, c.ExpiresAt
}

// atHash binds an id_token to the access token beside it (OpenID Connect Core
// section 3.1.3.6): the left half of its SHA-256, because all algorithms that
// clients can verify sign a SHA-256.
func atHash(accessToken string) string {
	sum := sha256.Sum256([]byte(accessToken))
	return b64.EncodeToString(sum[:16])
}

// groupIDs are the ids of a user's groups, sorted. No groups are [], never
// null.
type groupIDs []string

func (g groupIDs) MarshalJSON() ([]byte, error) {
	return json.Marshal(append([]string{}, g...))
}

// audience is one text or a list of them (RFC 7519 section 4.1.3). This
// server writes one.
type audience []string

// MarshalJSON writes a list of one as a text, as the Python server does.
func (a audience) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return json.Marshal(a[0])
	}
	return json.Marshal([]string(a))
}

// UnmarshalJSON reads both forms.
func (a *audience) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		*a = make(audience, 1)
		return json.Unmarshal(data, &(*a)[0])
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// tokenHeader is the encoded protected header of all tokens of one kind that
// one key signs. The three texts are ours and need no escaping.
func tokenHeader(algorithm, kid, typ string) string {
	if typ != "" {
		typ = fmt.Sprintf(`,"typ":%q`, typ)
	}
	header := fmt.Appendf(nil, `{"alg":%q,"kid":%q%s}`, algorithm, kid, typ)
	return b64.EncodeToString(header)
}

// signJWT returns the compact serialisation (RFC 7515 section 3.1) of c,
// signed by key. Adopted databases can hold bytes that are not UTF-8. They
// become the escape \ufffd, which no later encoding writes again, so such
// claims are read and encoded once more: then they hold the character U+FFFD,
// as at every verification.
func signJWT[C tokenClaims](key signingKey, header string, c C) (string, error) {
	payload, _ := json.Marshal(c) // texts and numbers only: none of these can fail
	if bytes.Contains(payload, []byte(`\ufffd`)) {
		json.Unmarshal(payload, &c)
		payload, _ = json.Marshal(c)
	}
	input := header + "." + b64.EncodeToString(payload)
	signature, err := key.algorithm.sign(key.signer, input)
	if err != nil {
		return "", err
	}
	return input + "." + b64.EncodeToString(signature), nil
}

// expected is what the claims of a token are compared with. An empty audience
// is for tokens of clients, whose audience their reader looks at.
type expected struct {
	issuer, audience string
	now              time.Time
	orExpired        bool // accept a token that has expired; for logout alone
}

// verifyJWT returns the claims of a token of ours. keys maps the encoded
// headers of this kind to the keys that sign under them. The checks go from
// cheap to dear, and nothing inside the token is used before its signature
// holds. On any error the claims are zero. A nil error does not mean that the
// session still lives, nor what the user may do: both are read from the
// database.
func verifyJWT[C tokenClaims](token string, want expected, keys map[string]signingKey) (none C, err error) {
	parts := strings.SplitN(token, ".", 4)
	if len(token) > maxTokenBytes || len(parts) != 3 {
		return none, errMalformed
	}
	key, ok := keys[parts[0]] // "none", HS256 with our public key, and foreign kids all end here
	if !ok {
		return none, errUnknownKey
	}
	payload, payloadErr := decodeCanonical(parts[1])
	signature, signatureErr := decodeCanonical(parts[2])
	if payloadErr != nil || signatureErr != nil {
		return none, errMalformed
	}
	input := parts[0] + "." + parts[1]
	if key.algorithm.verify(key.signer.Public(), input, signature) != nil {
		return none, errBadSignature
	}
	return decodeClaims[C](payload, want)
}

// decodeCanonical decodes base64url and refuses every spelling but one. Go's
// decoder skips CR and LF and ignores unused bits of the last character, so
// several texts would carry the same signature.
func decodeCanonical(s string) ([]byte, error) {
	b, err := b64.DecodeString(s)
	if err != nil || b64.EncodeToString(b) != s {
		return nil, errMalformed
	}
	return b, nil
}

// decodeClaims decodes a payload whose signature holds and compares it with
// what is expected. Encoding it again shows everything that this server does
// not write: missing, unknown, duplicate and misspelt members, blanks, text
// after the end, lone surrogates (RFC 7519 section 4, RFC 8725 section 2.4).
func decodeClaims[C tokenClaims](payload []byte, want expected) (none C, err error) {
	var c C
	if json.Unmarshal(payload, &c) != nil {
		return none, errBadClaims
	}
	again, _ := json.Marshal(c) // texts and numbers only: cannot fail
	if !bytes.Equal(again, payload) {
		return none, errBadClaims
	}
	return asExpected(c, want)
}

// asExpected returns the claims of a token that was made here for this reader
// (RFC 8725 sections 3.8 and 3.9) if the clock allows it. A token has expired
// from the very second of exp on (RFC 7519 section 4.1.4: "on or after").
func asExpected[C tokenClaims](c C, want expected) (none C, err error) {
	issuer, aud, issuedAt, expiresAt := c.limits()
	switch {
	case issuer != want.issuer || (want.audience != "" && !slices.Contains(aud, want.audience)):
		return none, errBadClaims
	case time.Unix(issuedAt, 0).After(want.now.Add(clockSkew)):
		return none, errBadClaims
	case want.now.Unix() >= expiresAt && !want.orExpired:
		return none, errExpired
	}
	return c, nil
}
