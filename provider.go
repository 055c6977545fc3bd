package main

// This file is the list of the OpenID Provider's endpoints, and what discovery
// says of them. Without clients in the configuration there are only those that
// service tokens use.

import (
	"maps"
	"slices"
)

// providerRoutes are the provider's part of the route table. Endpoints of oauth
// answer programs in OAuth's form; scripts of public clients may call them.
// Pages are for people: no script of another site may read them.
func (s *server) providerRoutes() []route {
	off := ""
	if len(s.cfg.clients) == 0 {
		off = clientsSection
	}
	oauth := &routeKind{fail: writeOAuthError, cors: corsClients}
	userinfo := &routeKind{fail: writeOAuthError, cors: corsClients, off: off}
	page := &routeKind{fail: s.failPage, cors: corsNobody, off: off}
	leave := &routeKind{fail: s.failPage, cors: corsNobody, off: off}
	if s.cfg.cookieDomain != "" {
		leave.off = ""
	}
	metadata := &routeKind{fail: writeProblem, cors: corsAnyone, quiet: true, off: off}
	return []route{
		{"GET " + authorizePath, public, page, s.authorizing(s.handleAuthorize)},
		{"POST " + authorizePath, public, page, s.handleAuthorizePost},
		{"POST " + loginFormPath, public, page, s.authorizing(s.handleLoginForm)},
		{"POST " + continuePath, public, page, s.authorizing(s.handleContinueForm)},
		{"POST " + tokenPath, public, oauth, s.handleToken},
		{"GET " + userinfoPath, public, userinfo, s.handleUserinfo},
		{"POST " + userinfoPath, public, userinfo, s.handleUserinfo},
		{"POST " + revokePath, public, oauth, s.handleRevoke},
		{"POST " + introspectPath, public, oauth, s.handleIntrospect},
		{"GET " + logoutPath, public, leave, s.handleLogoutPage},
		{"POST " + logoutPath, public, leave, s.handleLogoutPost},
		{"POST " + logoutConfirmPath, public, leave, s.handleLogoutForm},
		{"GET " + oauthMetadataPath, public, metadata, s.handleDiscovery},
	}
}

// oauthMetadataPath is where clients of plain OAuth look for the same document
// (RFC 8414 section 3).
const oauthMetadataPath = "/.well-known/oauth-authorization-server"

// describeProvider changes what discovery says to what is true with clients.
// Only what every client may ask for is named, because some ask for all of it.
func (s *server) describeProvider(m map[string]any) {
	if len(s.cfg.clients) == 0 {
		return
	}
	base := s.cfg.baseURL()
	secrets := []string{"client_secret_basic", "client_secret_post"}
	methods := append([]string{"none"}, secrets...)
	maps.Copy(m, map[string]any{
		"authorization_endpoint":   base + authorizePath,
		"token_endpoint":           base + tokenPath,
		"userinfo_endpoint":        base + userinfoPath,
		"revocation_endpoint":      base + revokePath,
		"introspection_endpoint":   base + introspectPath,
		"end_session_endpoint":     base + logoutPath,
		"scopes_supported":         scopes,
		"response_types_supported": []string{"code"},
		"response_modes_supported": []string{"query"},
		"grant_types_supported":    slices.Sorted(maps.Keys(grantTypes)),
		"acr_values_supported":     []string{"1"},
		"claims_supported": []string{"sub", "iss", "aud", "exp", "iat", "auth_time", "acr", "amr", "nonce",
			"at_hash", "sid", "email", "email_verified", "name", "preferred_username", "groups"},
		"token_endpoint_auth_methods_supported":          methods,
		"revocation_endpoint_auth_methods_supported":     methods,
		"introspection_endpoint_auth_methods_supported":  secrets,
		"code_challenge_methods_supported":               []string{"S256"},
		"authorization_response_iss_parameter_supported": true,
		"claims_parameter_supported":                     false,
		"request_parameter_supported":                    false,
		"request_uri_parameter_supported":                false,           // absent means true
		"service_documentation":                          base + docsPath, // room: openapi
	})
}
