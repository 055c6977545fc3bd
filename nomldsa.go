//go:build !go1.27

package main

// This file stands in for mldsa.go where the standard library has no ML-DSA.
// loadConfig refuses the algorithm by mldsaNeeds, and crypto/x509 reads no
// such key, so nothing ever calls the functions.

import (
	"crypto"
	"errors"
)

const mldsaNeeds = "Go 1.27 or newer"

var errNoMLDSA = errors.New("this build has no ML-DSA")

func generateMLDSA65(int) (crypto.Signer, error)                 { return nil, errNoMLDSA }
func generateMLDSA87(int) (crypto.Signer, error)                 { return nil, errNoMLDSA }
func signMLDSA(crypto.Signer, string) ([]byte, error)            { return nil, errNoMLDSA }
func verifyMLDSA(crypto.PublicKey, string, []byte) error         { return errNoMLDSA }
func membersMLDSA65(crypto.PublicKey) (map[string]string, error) { return nil, nil }
func membersMLDSA87(crypto.PublicKey) (map[string]string, error) { return nil, nil }
