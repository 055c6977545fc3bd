package main

// This file is the list of endpoints: which there are, who may call each, how
// each group behaves, and the server that answers them. It decides nothing
// else.

import (
	"crypto/rand"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
)

// newServer makes the handler of all requests. now is the clock of every
// decision.
func newServer(cfg *config, st *store, keys *keyring, h *hasher, now func() time.Time,
	log *slog.Logger) *server {
	s := &server{
		cfg:      cfg,
		store:    st,
		keys:     keys,
		hasher:   h,
		throttle: newThrottle(cfg.throttle, now),
		now:      now,
		log:      log,
		mux:      http.NewServeMux(),
		routes:   map[string]*route{},
		off:      map[string]string{},
		idPrefix: strings.ToLower(rand.Text()[:8]),

		clientOrigins: slices.Clone(cfg.corsOrigins),
		signpost:      discoveryPath,
		unrouted:      &route{kind: &routeKind{fail: writeProblem}},
		always: http.Header{
			"Cache-Control":           {"no-store"}, // RFC 6749 section 5.1: any answer may concern a token
			"X-Content-Type-Options":  {"nosniff"},
			"Content-Security-Policy": {"default-src 'none'"},
		},
	}
	s.signpost = openapiPath                                            // room: openapi
	s.clientOrigins = append(s.clientOrigins, cfg.clients.origins()...) // room: provider
	s.describe = s.describeProvider                                     // room: provider
	s.meter()                                                           // room: metrics
	for _, rt := range s.routeTable() {
		if rt.kind.off == "" {
			s.addRoute(&rt)
		} else {
			s.off[rt.path()] = rt.kind.off
		}
	}
	return s
}

// routeTable is every endpoint with what its callers need: api is for programs
// with tokens of the JSON login, a document is for everybody and cacheable, and
// a monitor is polled.
func (s *server) routeTable() []route {
	api := &routeKind{fail: writeProblem}
	document := &routeKind{fail: writeProblem, cors: corsAnyone, quiet: true}
	monitor := &routeKind{fail: writeProblem, quiet: true}
	routes := []route{
		{"POST /api/v1/auth/register", public, api, s.handleRegister},
		{"POST " + loginPath, public, api, s.handleLogin},
		{"POST /api/v1/auth/refresh", public, api, s.handleRefresh},
		{"POST /api/v1/auth/logout", public, api, s.handleLogout},

		{"GET /api/v1/auth/me", permSelf, api, s.handleMe},
		{"PUT /api/v1/auth/me", permSelf, api, s.handleRename},
		{"POST /api/v1/auth/me/password", permSelf, api, s.handleChangePassword},
		{"GET /api/v1/auth/me/sessions", permSelf, api, s.handleSessions},
		{"DELETE /api/v1/auth/me/sessions/{id}", permSelf, api, s.handleRevokeSession},

		{"GET /api/v1/auth/users", permUsersRead, api, s.handleListUsers},
		{"POST /api/v1/auth/users", permUsersEdit, api, s.handleCreateUser},
		{"GET /api/v1/auth/users/registration", permSettings, api, s.handleGetRegistration},
		{"PUT /api/v1/auth/users/registration", permSettings, api, s.handleSetRegistration},
		{"GET /api/v1/auth/users/{id}", permUsersRead, api, s.handleGetUser},
		{"DELETE /api/v1/auth/users/{id}", permUsersEdit, api, s.handleDeleteUser},
		{"PUT /api/v1/auth/users/{id}/role", permUsersEdit, api, s.handleSet("role")},
		{"PUT /api/v1/auth/users/{id}/status", permUsersEdit, api, s.handleSet("status")},
		{"PUT /api/v1/auth/users/{id}/org", permOrgEdit, api, s.handleSet("org")},
		{"PUT /api/v1/auth/users/{id}/email-verified", permOrgEdit, api, s.handleVerifyEmail},
		{"PUT /api/v1/auth/users/{id}/password", permUsersEdit, api, s.handleResetPassword},

		{"GET /api/v1/groups", permSelf, api, s.handleListGroups},                             // room: groups
		{"POST /api/v1/groups", permUsersEdit, api, s.handleCreateGroup},                      // room: groups
		{"GET /api/v1/groups/{id}", permSelf, api, s.handleGetGroup},                          // room: groups
		{"PUT /api/v1/groups/{id}", permUsersEdit, api, s.handleChangeGroup},                  // room: groups
		{"DELETE /api/v1/groups/{id}", permUsersEdit, api, s.handleDeleteGroup},               // room: groups
		{"POST /api/v1/groups/{id}/members", permUsersEdit, api, s.handleJoinGroup},           // room: groups
		{"DELETE /api/v1/groups/{id}/members/{user}", permUsersEdit, api, s.handleLeaveGroup}, // room: groups

		{"GET " + servicePath, permUsersEdit, api, s.handleListServices},              // room: servicetokens
		{"POST " + servicePath, permUsersEdit, api, s.handleMakeService},              // room: servicetokens
		{"POST " + servicePath + "/validate", public, api, s.handleCheckService},      // room: servicetokens
		{"DELETE " + servicePath + "/{name}", permUsersEdit, api, s.handleEndService}, // room: servicetokens

		{"GET " + openapiPath, public, document, serveOnce(s.makeOpenAPI)}, // room: openapi
		{"GET " + docsPath, public, document, serveOnce(s.makeDocs)},       // room: openapi

		{"GET " + jwksPath, public, document, s.handleJWKS},
		{"GET " + discoveryPath, public, document, s.handleDiscovery},
		{"GET " + healthPath, public, monitor, s.handleHealth},
	}
	routes = append(routes, s.providerRoutes()...) // room: provider
	routes = append(routes, s.forwardRoutes()...)  // room: forwardauth
	return routes
}
