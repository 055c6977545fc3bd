package main

// This file is the way of a request through the server: routing,
// authentication, decoding, errors, headers and the log line. Handlers return
// an error instead of writing one, so what a client learns is decided in one
// place. Nothing here decides what a user may do (rbac.go) or stores anything.
//
//	net/http → ServeHTTP ─┬─ preflight ──────────────────→ 204
//	                      ├─ mux: no route → fail ───────→ 404, 405
//	                      └─ mux: route → admit → handler ─→ answer
//	                                        │        │
//	                         401, 403 ──────┴─ error ┴→ fail → problem
//
// A line in the log follows, but for successes of quiet routes.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// version stands in the first line of the log, in "pico-auth version" and in
// the metrics.
const version = "1.0.0-dev"

// Paths that more than one file names.
const (
	loginPath     = "/api/v1/auth/login"
	jwksPath      = "/api/v1/auth/jwks"
	discoveryPath = "/.well-known/openid-configuration"
	healthPath    = "/healthz"
)

const (
	maxBodyBytes = 64 << 10 // of a request
	maxJSONDepth = 32       // far above what a body needs, far below what costs stack

	// writeTimeout is how long an answer may take, or each piece of a long one.
	writeTimeout = 30 * time.Second
)

// server answers requests. newServer sets its fields; nothing changes them
// afterwards.
type server struct {
	cfg      *config
	store    *store
	keys     *keyring
	hasher   *hasher
	throttle *throttle
	now      func() time.Time
	log      *slog.Logger

	mux      *http.ServeMux
	routes   map[string]*route // by pattern
	off      map[string]string // the setting that a path needs to become one
	unrouted *route            // answers what no route takes
	always   http.Header       // of every answer

	signpost      string                        // the path of a document that unknown paths lead to
	describe      func(metadata map[string]any) // changes what discovery says; may be nil
	clientOrigins []string                      // of corsClients

	// What counts requests and events, and shows the counts to a monitor; nil
	// where nothing is counted.
	countRequest func(x *exchange, took time.Duration)
	countEvent   func(name string, args []any)
	monitor      http.Handler

	idPrefix string // of request ids, so that those of two runs differ
	requests atomic.Uint64

	forwardedWarning, originWarning sync.Once
}

// route binds a pattern of net/http's mux to what its callers need and to its
// handler.
type route struct {
	pattern string
	need    permission
	kind    *routeKind
	handle  handler
}

// path is the pattern without its method.
func (rt *route) path() string { return rt.pattern[strings.Index(rt.pattern, " ")+1:] }

// routeKind is how a group of routes behaves around its handlers.
type routeKind struct {
	cors  corsPolicy
	off   string                     // not "": there are no such routes until this setting is made
	fail  func(*exchange, *apiError) // writes an error in the form the group's clients expect
	quiet bool                       // successes are logged at level debug, because machines poll them
}

// handler answers one request. It has either written a whole answer and
// returns nil, or written nothing and returns an error.
type handler func(x *exchange, p principal) error

// exchange is one request with its answer. It is the http.ResponseWriter of
// the handler and gathers what the log line says.
type exchange struct {
	http.ResponseWriter
	s   *server
	r   *http.Request
	ctx context.Context // of the request: ends when the client goes away

	// route is nil until a route of ours has taken the request. What arrives
	// until then is net/http's mux refusing in text/plain; only its status is
	// kept, and fail says it in our form.
	route *route

	status int // written, or what the mux meant to write
	id     string
	client string
	user   string // id, for the log
	reason string // why the request was refused, for the log
}

func (x *exchange) WriteHeader(status int) {
	x.status = status
	if x.route != nil {
		x.ResponseWriter.WriteHeader(status)
	}
}

func (x *exchange) Write(b []byte) (int, error) {
	if x.route == nil {
		return len(b), nil
	}
	if x.status == 0 {
		x.status = http.StatusOK
	}
	return x.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find the deadlines.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// requestID names the request in the log and in problems.
func (x *exchange) requestID() string {
	if x.id == "" {
		x.id = x.s.idPrefix + "-" + strconv.FormatUint(x.s.requests.Add(1), 36)
	}
	return x.id
}

// clientIP is the address that the request counts for.
func (x *exchange) clientIP() string {
	if x.client == "" {
		x.client = x.s.clientAddress(x.r)
	}
	return x.client
}

// event logs something that a request did and that matters to security.
func (x *exchange) event(name string, args ...any) {
	origin := []any{"request_id", x.requestID(), "ip", x.clientIP()}
	x.s.event(name, append(origin, args...)...)
}

// addRoute has the mux hand requests of a route to admit.
func (s *server) addRoute(rt *route) {
	s.routes[rt.pattern] = rt
	s.mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, _ *http.Request) {
		x := w.(*exchange)
		x.route = rt
		s.allowOrigin(x, rt.kind.cors)
		if err := s.admit(x); err != nil {
			x.fail(err)
		}
	})
}

// ServeHTTP answers one request and logs one line about it.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := s.now()
	x := &exchange{ResponseWriter: w, s: s, r: r, ctx: r.Context()}
	defer s.logRequest(x, start)
	defer s.recoverPanic(x)
	maps.Copy(x.Header(), s.always)
	if s.answeredPreflight(x) {
		return
	}
	// The mux would answer //api/… with a redirect, which makes clients send
	// their credentials again; an escaped path is a second spelling of a route.
	if r.URL.RawPath == "" && path.Clean(r.URL.Path) == r.URL.Path {
		s.mux.ServeHTTP(x, r)
	}
	if x.route == nil {
		refused := s.muxRefusal(x)
		x.route = s.unrouted
		if x.reason == "" { // a refused preflight has been through here
			s.allowOrigin(x, corsConfigured)
		}
		x.fail(refused)
	}
}

// muxRefusal says in our form what the mux said. On 405 the mux has set Allow
// already (RFC 9110 section 15.5.6).
func (s *server) muxRefusal(x *exchange) error {
	if x.status == 405 {
		detail := "This path takes " + x.Header().Get("Allow")
		if x.r.Method == "OPTIONS" {
			detail += "; the origin of a browser application must be in server.cors_origins"
		}
		return refusal(405, "method_not_allowed", detail)
	}
	base := s.cfg.baseURL()
	detail := "There is nothing at this path; see " + base + s.signpost + " and " + base + healthPath
	short, slash := strings.CutSuffix(x.r.URL.Path, "/")
	if slash && path.Clean(short) == short && s.routeAt(short) != s.unrouted {
		detail = "There is nothing at this path, but at the same path without the slash at the end"
	} else if setting := s.off[x.r.URL.Path]; setting != "" {
		detail = "This path is switched off until the setting " + setting + " is made"
	} else if likely := s.likelyPath(x.r.URL.Path); likely != "" {
		detail += "; did you mean " + likely + "?"
	}
	return refusal(404, "not_found", detail)
}

// likelyPath is the path of a route whose last name begins like that of a path
// that people guessed, without what stands behind a dot; "" when there is none.
// Of several it is the one with the shortest name.
func (s *server) likelyPath(guess string) (likely string) {
	name, _, _ := strings.Cut(path.Base(guess), ".")
	for _, rt := range s.routes {
		full := rt.path()
		last, best := path.Base(full), path.Base(likely)
		better := likely == "" || len(last) < len(best) || (len(last) == len(best) && full < likely)
		if better && len(name) > 2 && strings.HasPrefix(last, name) {
			likely = full
		}
	}
	return likely
}

// routeAt returns a route that has the path, for whatever method, or unrouted.
func (s *server) routeAt(path string) *route {
	for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
		_, pattern := s.mux.Handler(&http.Request{Method: method, URL: &url.URL{Path: path}})
		if pattern != "" {
			return s.routes[pattern]
		}
	}
	return s.unrouted
}

// admit lets a request through to its handler if the caller holds the
// permission that the route names. This is the only call of a handler, so no
// route can forget its guard.
func (s *server) admit(x *exchange) error {
	if x.route.need == public {
		return x.route.handle(x, principal{})
	}
	p, err := s.authenticate(x.r, false)
	if err != nil {
		return err
	}
	x.user = p.id
	if !allows(p.role, x.route.need) {
		return errRoleTooLow
	}
	return x.route.handle(x, p)
}

// authenticate finds out who is calling. The token proves only which session
// it was made for; that the session lives and what its user may do is read
// from the database on every request, so a logout, suspension or demotion
// takes effect with the next request. orExpired is for logout: an expired
// token still proves for which session it was made.
func (s *server) authenticate(r *http.Request, orExpired bool) (p principal, err error) {
	token, err := bearerToken(r)
	if err != nil {
		return p, err
	}
	now := s.now()
	want := expected{s.cfg.issuer, s.cfg.audience, now, orExpired}
	c, err := verifyToken[claims](s.keys.current(), token, want)
	if err != nil {
		return p, err
	}
	p, err = s.store.authenticated(c.SessionID, jsonLogin, now)
	if err == nil && p.id != c.Subject {
		err = errBadClaims
	}
	return p, err
}

// bearerToken returns the token of the Authorization header (RFC 6750 section
// 2.1). Two such headers are refused: a proxy may have checked the other one.
func bearerToken(r *http.Request) (string, error) {
	credentials := r.Header.Values("Authorization")
	if len(credentials) == 0 {
		return "", errTokenMissing
	}
	scheme, token, _ := strings.Cut(credentials[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", errNotBearer
	}
	if len(credentials) > 1 {
		return "", errMalformed
	}
	if token = strings.TrimLeft(token, " "); token == "" {
		return "", errTokenMissing
	}
	return token, nil
}

// --- errors ---

// apiError is an answer other than success. Its cause is for the log alone.
type apiError struct {
	status    int
	code      string        // stable, for programs
	detail    string        // for people
	field     string        // the member of the body it is about
	challenge string        // WWW-Authenticate
	retry     time.Duration // Retry-After
	cause     error
}

// refusal is an answer of nothing but a status, a code and a detail.
func refusal(status int, code, detail string) *apiError {
	return &apiError{status: status, code: code, detail: detail}
}

func (e *apiError) Error() string { return e.code }
func (e *apiError) Unwrap() error { return e.cause }

// because returns a copy of e with a cause for the log.
func (e *apiError) because(cause error) *apiError {
	copied := *e
	copied.cause = cause
	return &copied
}

// The answers that are always the same. 401 has the challenges of RFC 6750
// section 3; every bad token gets the same answer, except that an expired one
// says so, and one that is not sent as a bearer.
var (
	errTokenMissing = &apiError{status: 401, code: "token_missing", challenge: "Bearer",
		detail: "This needs an access token: send the header Authorization: Bearer ACCESS_TOKEN"}
	errInvalidToken = &apiError{status: 401, code: "invalid_token",
		challenge: `Bearer error="invalid_token"`, detail: "Invalid token"}
	errNotBearer = &apiError{status: 401, code: "invalid_token", challenge: `Bearer error="invalid_token"`,
		detail: "Invalid token; send it as Authorization: Bearer ACCESS_TOKEN"}
	errTokenExpired = &apiError{status: 401, code: "token_expired",
		challenge: `Bearer error="invalid_token"`, detail: "Token has expired"}
	errRoleTooLow = &apiError{status: 403, code: "forbidden",
		challenge: `Bearer error="insufficient_scope"`, detail: "Your role does not allow this"}
	errUserSuspended = refusal(403, "user_suspended", "User account is suspended")
	errMediaType     = refusal(415, "unsupported_media_type",
		"Send the header Content-Type: application/json")
	errBodyTooLarge   = refusal(413, "body_too_large", "The body is too large")
	errBodyUnreadable = refusal(400, "body_unreadable", "The body did not arrive completely")
	errNotAnObject    = refusal(422, "not_an_object", "The body must be a JSON object")
	errInternal       = refusal(500, "internal_error", "internal error")
)

// refusals gives the errors of the files below their answers. What is not
// here is a bug or a broken disk, and clients learn nothing of it.
var refusals = []struct {
	cause  error
	answer *apiError
}{
	{errMalformed, errInvalidToken},
	{errUnknownKey, errInvalidToken},
	{errBadSignature, errInvalidToken},
	{errBadClaims, errInvalidToken},
	{errExpired, errTokenExpired},
	{errNoSession, errInvalidToken},
	{errReuse, errInvalidToken},
	{errSessionExpired, errTokenExpired},
	{errSuspended, errUserSuspended},
	{errUnavailable, &apiError{status: 503, code: "storage_unavailable", retry: 5 * time.Second,
		detail: "Changes cannot be stored at the moment"}},
	{errBusy, &apiError{status: 503, code: "busy", retry: 2 * time.Second,
		detail: "Too many password checks are waiting"}},
	{errLastSuperadmin, refusal(409, "last_superadmin", "This would remove the last active superadmin")},
	{errChanged, refusal(409, "changed_meanwhile", "The account changed in the meantime; try again")},
	{context.Canceled, refusal(503, "client_gone", "The client went away")},
}

// answerTo returns the answer that an error gets.
func answerTo(err error) *apiError {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	for _, known := range refusals {
		if errors.Is(err, known.cause) {
			return known.answer.because(err)
		}
	}
	return errInternal.because(err)
}

// forbidden is for callers who are known and may not.
func forbidden(detail string) error {
	e := *errRoleTooLow
	e.detail = detail
	return &e
}

// invalidField is for a member that is missing, of the wrong type or out of
// range.
func invalidField(name, problem string) error {
	return &apiError{status: 422, code: "invalid_field",
		field: name, detail: name + " " + problem}
}

// tooManyAttempts does not say which rule forbids, because that would tell
// whether an account exists.
func tooManyAttempts(v verdict) error {
	return &apiError{status: 429, code: "too_many_attempts", retry: v.wait,
		cause: errors.New(v.rule), detail: "Too many attempts; try again later"}
}

// fail answers a request with an error.
func (x *exchange) fail(err error) {
	x.route.kind.fail(x, x.refuse(err))
}

// refuse is the one place where an error becomes an answer; it writes all but
// the status and the body. Clients see status, code and detail; the cause goes
// to the log, and for a 5xx the request id joins the two.
func (x *exchange) refuse(err error) *apiError {
	e := answerTo(err)
	if x.reason == "" { // a preflight may have left a better one
		x.reason = e.code
	}
	if e.status >= 500 {
		x.logFailure(e)
	} else if e.cause != nil {
		x.reason += ": " + e.cause.Error()
	}
	h := x.Header()
	h.Set("X-Request-Id", x.requestID())
	if e.challenge != "" {
		h.Set("WWW-Authenticate", e.challenge)
	}
	if e.retry > 0 { // whole seconds (RFC 9110 section 10.2.3), rounded up
		h.Set("Retry-After", fmt.Sprint(math.Ceil(e.retry.Seconds())))
	}
	return e
}

// logFailure logs the cause of a 5xx. errBusy and clients that hung up are left
// out: one more line for each login would flood the log. A full disk is only a
// warning, because every request repeats it while it lasts.
func (x *exchange) logFailure(e *apiError) {
	log := x.s.log.Error
	if e.status == 503 {
		log = x.s.log.Warn
	}
	if !errors.Is(e, errBusy) && !errors.Is(e, context.Canceled) {
		log("request.failed",
			"request_id", x.requestID(), "pattern", x.r.Pattern, "status", e.status, "err", e.cause)
	}
}

// problem is an error on the wire: RFC 9457, and the member error for clients
// of the Python server.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Code      string `json:"code"`
	Field     string `json:"field,omitempty"`
	RequestID string `json:"request_id"`
	Error     string `json:"error"`
}

// writeProblem is the form of errors for JSON endpoints.
func writeProblem(x *exchange, e *apiError) {
	x.Header().Set("Content-Type", "application/problem+json")
	body, _ := json.Marshal(problem{ // texts only: cannot fail
		"about:blank", http.StatusText(e.status), e.status,
		e.detail, e.code, e.field, x.requestID(), e.detail})
	writeBody(x, e.status, body)
}

// recoverPanic turns a bug in a handler into a 500. Once an answer has begun
// the connection is cut instead, so that nobody takes half an answer for a
// whole one; a handler does that by itself with http.ErrAbortHandler.
func (s *server) recoverPanic(x *exchange) {
	p := recover()
	if p == nil {
		return
	}
	failure := errInternal.because(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
	switch {
	case p == http.ErrAbortHandler:
		panic(p)
	case x.route != nil && x.status > 0:
		x.logFailure(failure)
		panic(http.ErrAbortHandler)
	case x.route == nil:
		x.route = s.unrouted
	}
	x.fail(failure)
}

// --- answers ---

// writeJSON answers 200. It marshals before it writes, so that a failure can
// still become a 500.
func writeJSON(x *exchange, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	x.Header().Set("Content-Type", "application/json")
	writeBody(x, 200, body)
	return nil
}

// writeBody writes status and body at once, with their length, also for HEAD
// (RFC 9110 section 8.6).
func writeBody(x *exchange, status int, body []byte) {
	if status != 204 && status != 304 { // which have no body
		x.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	x.WriteHeader(status)
	x.Write(body) // an error means that the client is gone
}

// writeMessage is the success of requests that have nothing to return.
func writeMessage(x *exchange, text string) error {
	return writeJSON(x, map[string]string{"message": text})
}

// --- where a request comes from ---

// clientAddress is the IP address that a request counts for: the peer, or,
// behind trusted proxies, the last address in X-Forwarded-For that is not one
// of them. Reading from the right matters: everything left of what our own
// proxy appended was written by the client.
func (s *server) clientAddress(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr // cannot happen on a TCP listener
	}
	client := peer.Addr().Unmap().WithZone("")
	forwarded := r.Header.Values("X-Forwarded-For")
	if len(forwarded) > 0 && !s.isProxy(client) {
		s.forwardedWarning.Do(func() {
			s.log.Warn("X-Forwarded-For came from a peer that is not in server.trusted_proxies "+
				"(SERVER_TRUSTED_PROXIES): if it is your proxy, add it, or all its clients count as one",
				"peer", client)
		})
	}
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	for _, hop := range slices.Backward(hops) {
		ip, err := parseHop(strings.TrimSpace(hop))
		if err != nil || !s.isProxy(client) {
			break
		}
		client = ip
	}
	return client.String()
}

// parseHop reads one address of X-Forwarded-For. Azure and IIS append the
// port, and some proxies put IPv6 into brackets.
func parseHop(hop string) (netip.Addr, error) {
	withPort, err := netip.ParseAddrPort(hop)
	ip := withPort.Addr()
	if err != nil {
		ip, err = netip.ParseAddr(strings.Trim(hop, "[]"))
	}
	return ip.Unmap().WithZone(""), err
}

// isProxy reports whether an address is one of server.trusted_proxies.
func (s *server) isProxy(ip netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.trustedProxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// --- CORS ---

// corsPolicy is which other origins may read the answers of a route in a
// browser (Fetch standard, "HTTP extensions"). Credentials are never allowed:
// the only cookie is that of the pages, which no script may read, and bearer
// tokens do not need it.
type corsPolicy int

const (
	corsConfigured corsPolicy = iota // those in server.cors_origins
	corsAnyone                       // all
	corsClients                      // those in server.cors_origins and of public OpenID clients
	corsNobody                       // none: pages, which are for people
)

// allowOrigin sets the CORS headers of an answer, and reports whether scripts
// of the request's origin may read it.
func (s *server) allowOrigin(x *exchange, policy corsPolicy) bool {
	origins, allowed := s.cfg.corsOrigins, "*"
	switch policy {
	case corsNobody:
		return false
	case corsClients:
		origins = s.clientOrigins
	}
	if policy != corsAnyone && !slices.Contains(origins, "*") {
		allowed = x.r.Header.Get("Origin")
		if len(origins) > 0 { // the answer depends on it
			x.Header().Add("Vary", "Origin")
		}
		if !slices.Contains(origins, allowed) {
			return false
		}
	}
	x.Header().Set("Access-Control-Allow-Origin", allowed)
	x.Header().Set("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate, X-Request-Id")
	return true
}

// answeredPreflight answers a preflight of an allowed origin. Of another
// origin it only leaves the reason for the log; the mux answers 405.
func (s *server) answeredPreflight(x *exchange) bool {
	origin := x.r.Header.Get("Origin")
	if x.r.Method != "OPTIONS" || origin == "" || x.r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	rt := s.routeAt(x.r.URL.Path)
	if !s.allowOrigin(x, rt.kind.cors) {
		x.reason = "origin " + cleanText(origin) + " is not in server.cors_origins"
		s.originWarning.Do(func() {
			s.log.Warn("a browser application was refused: if it is yours, add its origin to "+
				"server.cors_origins (SERVER_CORS_ORIGINS)", "origin", cleanText(origin))
		})
		return false
	}
	x.route = rt
	x.Header().Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE")
	x.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
	x.Header().Set("Access-Control-Max-Age", "600")
	writeBody(x, 204, nil)
	return true
}

// --- log ---

// logRequest writes the one line per request. The pattern stands for the
// path, which strangers choose; headers, query and bodies never appear.
// Successes of quiet routes are logged at level debug: formatting a line costs
// a fifth of answering such a request. They are counted like all others.
func (s *server) logRequest(x *exchange, start time.Time) {
	if s.countRequest != nil {
		s.countRequest(x, s.now().Sub(start))
	}
	log := s.log.Info
	if x.route != nil && x.route.kind.quiet && x.status < 400 {
		if !s.log.Enabled(context.Background(), slog.LevelDebug) {
			return
		}
		log = s.log.Debug
	}
	args := []any{
		"request_id", x.requestID(),
		"method", x.r.Method[:min(8, len(x.r.Method))], // a client can make up a long one
		"pattern", x.r.Pattern,
		"status", x.status,
		"duration_us", s.now().Sub(start).Microseconds(),
		"ip", x.clientIP(),
	}
	if x.user != "" {
		args = append(args, "user", x.user)
	}
	if x.reason != "" {
		args = append(args, "reason", x.reason)
	}
	log("request", args...)
}

// alarmingEvents are logged at level WARN: somebody should look at them.
var alarmingEvents = []string{
	"login.throttled",
	"refresh.reuse",
	"registration.throttled",
	"service_token.throttled", // room: servicetokens
	"client.throttled",        // room: provider
}

// event logs something that matters to security under a stable name, with ids
// and never secrets.
func (s *server) event(name string, args ...any) {
	if s.countEvent != nil {
		s.countEvent(name, args)
	}
	log := s.log.Info
	if slices.Contains(alarmingEvents, name) {
		log = s.log.Warn
	}
	log(name, args...)
}
