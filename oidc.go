package main

// This file holds what OpenID Connect Discovery 1.0 and RFC 7517 define: the discovery document and the
// key set. Both are public, contain no secret, and say only what is true of this server. Every
// URL is built from the configured issuer; the Host header of a request never appears in them,
// or whoever controls it could send clients elsewhere.

import (
	"encoding/json"
	"maps"
	"net/http"
	"strings"
)

const (
	jwksPath      = "/api/v1/auth/jwks"
	discoveryPath = "/.well-known/openid-configuration"
	loginPath     = "/api/v1/auth/login"
)

// providerMetadata is OpenID Connect Discovery 1.0 section 3, as far as it applies. There is no
// authorization endpoint. response_types_supported is required there and names the nearest
// thing, as pico-auth does: a token straight from the token endpoint.
type providerMetadata struct {
	Issuer                 string   `json:"issuer"`
	TokenEndpoint          string   `json:"token_endpoint"`
	JWKSURI                string   `json:"jwks_uri"`
	ResponseTypes          []string `json:"response_types_supported"`
	SubjectTypes           []string `json:"subject_types_supported"`
	IDTokenSigningAlgs     []string `json:"id_token_signing_alg_values_supported"`
	ClaimsSupported        []string `json:"claims_supported"`
	TokenEndpointAuthKinds []string `json:"token_endpoint_auth_methods_supported"`
}

func (s *server) discoveryJSON() []byte {
	base := s.cfg.baseURL()
	doc, _ := json.Marshal(providerMetadata{ // texts only: cannot fail
		Issuer:                 s.cfg.issuer,
		TokenEndpoint:          base + loginPath,
		JWKSURI:                base + jwksPath,
		ResponseTypes:          []string{"token"},
		SubjectTypes:           []string{"public"},
		IDTokenSigningAlgs:     []string{"RS256"},
		ClaimsSupported:        []string{"sub", "email", "role", "org_id", "iss", "aud", "iat", "exp", "jti", "sid"},
		TokenEndpointAuthKinds: []string{"none"},
	})
	return doc
}

func (s *server) handleDiscovery(w *response, r *http.Request, _ principal) error {
	return writeDocument(w, r, s.discovery)
}

func (s *server) handleJWKS(w *response, r *http.Request, _ principal) error {
	return writeDocument(w, r, s.keys.current().document)
}

// writeDocument answers 304 when the client has these bytes already (RFC 9110 section 13.1.2).
func writeDocument(w *response, r *http.Request, d document) error {
	w.polled = true
	maps.Copy(w.Header(), d.header)
	// Contains is exact: the tag is quoted and of fixed length, and W/ before it compares equal (weak comparison).
	if have := r.Header.Get("If-None-Match"); have != "" && (have == "*" || strings.Contains(have, d.etag)) {
		delete(w.Header(), "Content-Length")
		writeBody(w, http.StatusNotModified, nil)
		return nil
	}
	w.Write(d.body) // an error means that the client is gone
	return nil
}
