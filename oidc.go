package main

// This file holds what OpenID Connect Discovery 1.0 and RFC 7517 define: the
// discovery document and the key set. Both are public, contain no secret and
// say only what is true of this server. Every URL is built from the
// configured issuer; the Host header of a request never appears in them, or a
// client that controls it could send others elsewhere.

import (
	"encoding/json"
	"maps"
	"net/http"
	"strings"
)

// providerMetadata is OpenID Connect Discovery 1.0 section 3, as far as it
// applies. There is no authorization endpoint; response_types_supported is
// required there and names the nearest thing, as the Python server does: a
// token straight from the token endpoint.
type providerMetadata struct {
	Issuer                   string   `json:"issuer"`
	TokenEndpoint            string   `json:"token_endpoint"`
	JWKSURI                  string   `json:"jwks_uri"`
	ResponseTypes            []string `json:"response_types_supported"`
	SubjectTypes             []string `json:"subject_types_supported"`
	IDTokenSigningAlgs       []string `json:"id_token_signing_alg_values_supported"`
	ClaimsSupported          []string `json:"claims_supported"`
	TokenEndpointAuthMethods []string `json:"token_endpoint_auth_methods_supported"`
}

// newDiscovery makes the discovery document of a configuration and of the
// algorithms that the key set has at this moment.
func newDiscovery(cfg *config, algorithms []string) document {
	body, _ := json.Marshal(providerMetadata{ // texts only: cannot fail
		Issuer:             cfg.issuer,
		TokenEndpoint:      cfg.baseURL() + loginPath,
		JWKSURI:            cfg.baseURL() + jwksPath,
		ResponseTypes:      []string{"token"},
		SubjectTypes:       []string{"public"},
		IDTokenSigningAlgs: algorithms,
		ClaimsSupported: []string{
			"sub", "email", "role", "org_id", "iss", "aud", "iat", "exp", "jti", "sid"},
		TokenEndpointAuthMethods: []string{"none"},
	})
	return newDocument(body)
}

func (s *server) handleDiscovery(x *exchange, _ principal) error {
	return writeDocument(x, newDiscovery(s.cfg, s.keys.current().algorithms()))
}

func (s *server) handleJWKS(x *exchange, _ principal) error {
	return writeDocument(x, s.keys.current().document)
}

// writeDocument answers with a public document, or 304 when the client has
// these bytes already (RFC 9110 section 13.1.2). Contains is exact here: a tag
// is quoted and of fixed length, and W/ before it compares equal.
func writeDocument(x *exchange, d document) error {
	maps.Copy(x.Header(), d.header)
	have := x.r.Header.Get("If-None-Match")
	if have == "*" || strings.Contains(have, d.etag) {
		delete(x.Header(), "Content-Length")
		writeBody(x, http.StatusNotModified, nil)
		return nil
	}
	x.Write(d.body) // an error means that the client is gone
	return nil
}
