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

// handleDiscovery describes the server (OpenID Connect Discovery 1.0 section 3,
// RFC 8414 section 2) and the algorithms that its key set has at this moment.
// Without clients there is no authorization endpoint; response_types_supported
// is required all the same and names the nearest thing, as the Python server
// does: a token straight from the token endpoint.
func (s *server) handleDiscovery(x *exchange, _ principal) error {
	m := map[string]any{
		"issuer":                                s.cfg.issuer,
		"token_endpoint":                        s.cfg.baseURL() + loginPath,
		"jwks_uri":                              s.cfg.baseURL() + jwksPath,
		"response_types_supported":              []string{"token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": s.keys.current().algorithms(),
		"token_endpoint_auth_methods_supported": []string{"none"},
		"claims_supported": []string{
			"sub", "email", "role", "org_id", "iss", "aud", "iat", "exp", "jti", "sid", "groups"},
	}
	if s.describe != nil {
		s.describe(m)
	}
	body, _ := json.Marshal(m) // texts only: cannot fail
	return writeDocument(x, newDocument(body))
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
