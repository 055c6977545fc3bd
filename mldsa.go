//go:build go1.27

package main

// This file signs tokens with ML-DSA (FIPS 204), as RFC 9964 says. The room
// is this file and nomldsa.go, which takes its place in programs that an
// older Go builds; without both and the lines marked `room: mldsa` the
// program signs with RS256 and ES256.

import (
	"crypto"
	"crypto/mldsa"
	"encoding/base64"
)

const mldsaNeeds = ""

func generateMLDSA65(int) (crypto.Signer, error) { return mldsa.GenerateKey(mldsa.MLDSA65()) }
func generateMLDSA87(int) (crypto.Signer, error) { return mldsa.GenerateKey(mldsa.MLDSA87()) }

// signMLDSA signs the text itself, not a hash of it, with the empty context
// (RFC 9964 section 4). Two signatures of one text differ.
func signMLDSA(key crypto.Signer, input string) ([]byte, error) {
	return key.Sign(nil, []byte(input), nil)
}

func verifyMLDSA(key crypto.PublicKey, input string, signature []byte) error {
	return mldsa.Verify(key.(*mldsa.PublicKey), []byte(input), signature, nil)
}

func membersMLDSA65(key crypto.PublicKey) (map[string]string, error) {
	return membersMLDSA(key, mldsa.MLDSA65())
}

func membersMLDSA87(key crypto.PublicKey) (map[string]string, error) {
	return membersMLDSA(key, mldsa.MLDSA87())
}

// membersMLDSA has alg among the required members: the public key is bytes
// that say nothing of their parameters (RFC 9964 section 6).
func membersMLDSA(key crypto.PublicKey, wanted mldsa.Parameters) (map[string]string, error) {
	public, ok := key.(*mldsa.PublicKey)
	if !ok || public.Parameters() != wanted {
		return nil, nil
	}
	return map[string]string{
		"kty": "AKP",
		"alg": wanted.String(),
		"pub": base64.RawURLEncoding.EncodeToString(public.Bytes()),
	}, nil
}
