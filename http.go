package main

// This file is the way of a request through the server: routing, authentication, decoding,
// errors, headers and the log line. Handlers return an error instead of writing one, so what a
// client learns is decided in one place and what the log learns in another. Nothing here decides
// what a user may do (rbac.go) or touches stored data.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const maxBodyBytes = 64 << 10 // of a request

// server answers requests. Its fields are set by newServer and not changed afterwards.
type server struct {
	cfg      *config
	store    *store
	keys     *keyring
	hasher   *hasher
	throttle *throttle
	now      func() time.Time
	log      *slog.Logger

	mux           *http.ServeMux
	always        http.Header    // of every answer; only copied, never changed
	proxies       []netip.Prefix // whose forwarding headers count
	unixProxy     bool           // so do those of a unix socket's peer
	discovery     document
	requestPrefix string // of request ids, so that those of two runs differ
	requests      atomic.Uint64
}

// route binds a pattern of net/http's mux to what its callers need and to its handler.
type route struct {
	pattern string
	need    permission
	handle  handler
}

// handler answers one request. It has either written a whole answer and returns nil, or written nothing.
type handler func(w *response, r *http.Request, p principal) error

func newServer(cfg *config, st *store, keys *keyring, h *hasher, now func() time.Time, log *slog.Logger) *server {
	s := &server{cfg: cfg, store: st, keys: keys, hasher: h, now: now, log: log,
		throttle: newThrottle(cfg.throttle, now), mux: http.NewServeMux(), requestPrefix: strings.ToLower(rand.Text()[:8])}
	s.always = http.Header{
		"Cache-Control":           {"no-store"}, // RFC 6749 section 5.1; every answer may concern a token or a user
		"X-Content-Type-Options":  {"nosniff"},
		"Content-Security-Policy": {"default-src 'none'"},
	}
	for _, p := range cfg.trustedProxies {
		if prefix, err := netip.ParsePrefix(p); err == nil {
			s.proxies = append(s.proxies, prefix.Masked())
		} else {
			s.unixProxy = true
		}
	}
	s.discovery = newDocument(s.discoveryJSON())
	for _, rt := range s.routes() {
		s.mux.HandleFunc(rt.pattern, s.adapt(rt))
	}
	return s
}

// response wraps the http.ResponseWriter. Until a route of ours has taken the request it swallows what is
// written: that is net/http's mux refusing in text/plain, and we say it in our own form.
type response struct {
	http.ResponseWriter
	s      *server
	r      *http.Request
	id     string // see requestID
	client string // see clientIP
	muted  bool   // net/http's mux has the request, and nothing it writes gets out
	polled bool   // a public document or the health check
	status int    // written, or what the mux meant to write
	size   int64
	user   string // for the log
	reason string // for the log: why a request was refused
}

func (w *response) WriteHeader(status int) {
	w.status = status
	if !w.muted {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *response) Write(b []byte) (int, error) {
	if w.muted {
		return len(b), nil
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.size += int64(n)
	return n, err
}

// requestID names the request in the log and in problems. It and clientIP are made when first asked for.
func (w *response) requestID() string {
	if w.id == "" {
		w.id = w.s.requestPrefix + "-" + strconv.FormatUint(w.s.requests.Add(1), 36)
	}
	return w.id
}

// clientIP is the address that the request counts for.
func (w *response) clientIP() string {
	if w.client == "" {
		w.client = w.s.clientAddress(w.r)
	}
	return w.client
}

// Unwrap lets http.ResponseController find the deadlines.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ServeHTTP routes a request, answers for the mux where it refuses, and logs one line.
func (s *server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start := s.now()
	w := &response{ResponseWriter: rw, s: s, r: r}
	defer s.logRequest(w, r, start)
	defer s.recoverPanic(w, r)
	maps.Copy(w.Header(), s.always)
	if s.cors(w, r) {
		return
	}
	// The mux would answer an unclean path with a redirect, which makes clients send their
	// credentials again; an escaped path is a second spelling of a route, or of none.
	if r.URL.RawPath == "" && path.Clean(r.URL.Path) == r.URL.Path {
		w.muted = true
		if s.mux.ServeHTTP(w, r); !w.muted {
			return
		}
		w.muted = false
	}
	s.writeError(w, r, s.muxRefusal(w.status, w.Header().Get("Allow")))
}

// muxRefusal says in our form what the mux said. It has set Allow already (RFC 9110 section 15.5.6).
func (s *server) muxRefusal(status int, allow string) error {
	if status == http.StatusMethodNotAllowed {
		return &apiError{status: http.StatusMethodNotAllowed, code: "method_not_allowed", detail: "This path takes " + allow}
	}
	return &apiError{status: http.StatusNotFound, code: "not_found", detail: "There is nothing at this path; " + s.cfg.baseURL() + discoveryPath + " is a place to start"}
}

// adapt makes a route's handler one for the mux: authentication and permission come first, always.
func (s *server) adapt(rt route) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		w := rw.(*response)
		w.muted = false
		if err := s.admit(rt, w, r); err != nil {
			s.writeError(w, r, err)
		}
	}
}

// admit lets a request through to its handler if the caller holds the permission the route names. This is
// the only call of a handler: a route cannot forget to be guarded.
func (s *server) admit(rt route, w *response, r *http.Request) error {
	if rt.need == public {
		return rt.handle(w, r, principal{})
	}
	p, err := s.authenticate(r)
	if err != nil {
		return err
	}
	w.user = p.id
	if !allows(p.role, rt.need) {
		return forbidden("Your role does not allow this")
	}
	return rt.handle(w, r, p)
}

// authenticate finds out who is calling. The token proves only which session it was made for; that
// the session lives and what its user may do is read from the database on every request, so a
// logout, suspension or demotion takes effect with the next request.
func (s *server) authenticate(r *http.Request) (principal, error) { return s.identify(r, false) }

// identify is authenticate, which may also take an expired token: it still proves which session it was made
// for, and that is enough to end it. Of two Authorization headers a proxy and we might choose differently.
func (s *server) identify(r *http.Request, expired bool) (principal, error) {
	credentials := r.Header.Values("Authorization")
	if len(credentials) == 0 {
		return principal{}, &apiError{status: http.StatusUnauthorized, code: "token_missing", challenge: "Bearer",
			detail: "This needs an access token: send the header Authorization: Bearer ACCESS_TOKEN"}
	}
	scheme, token, _ := strings.Cut(credentials[0], " ")
	if len(credentials) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return principal{}, invalidToken(errMalformed)
	}
	c, err := s.keys.current().verify(strings.TrimLeft(token, " "), expected{s.cfg.issuer, s.cfg.audience, s.now(), expired})
	if err != nil {
		return principal{}, invalidToken(err)
	}
	p, err := s.store.authenticated(c.SessionID, s.now())
	switch {
	case errors.Is(err, errNoSession), errors.Is(err, errSessionExpired), errors.Is(err, errSuspended):
		return principal{}, invalidToken(err)
	case err != nil:
		return principal{}, err
	case p.id != c.Subject:
		return principal{}, invalidToken(errBadClaims)
	}
	return p, nil
}

// --- errors ---

// apiError is an answer other than success. Its cause is for the log alone.
type apiError struct {
	status    int
	code      string // stable, for programs
	detail    string // for people
	field     string // the member of the body it is about
	challenge string // WWW-Authenticate
	retry     time.Duration
	cause     error
}

func (e *apiError) Error() string { return e.code }
func (e *apiError) Unwrap() error { return e.cause }

// invalidToken is the one 401 for every bad token (RFC 6750 section 3.1), except that an expired one says so.
func invalidToken(cause error) error {
	e := &apiError{status: http.StatusUnauthorized, code: "invalid_token", detail: "Invalid token", cause: cause,
		challenge: `Bearer error="invalid_token"`}
	if errors.Is(cause, errExpired) || errors.Is(cause, errSessionExpired) {
		e.code, e.detail = "token_expired", "Token has expired"
	}
	return e
}

// badCredentials is the one answer to everything wrong with email and password; why is for the log.
func badCredentials(cause error) error {
	return &apiError{status: http.StatusUnauthorized, code: "invalid_credentials", detail: "Invalid email or password", challenge: "Bearer", cause: cause}
}

// forbidden is for callers who are known and may not (RFC 6750 section 3.1, insufficient_scope).
func forbidden(detail string) error {
	return &apiError{status: http.StatusForbidden, code: "forbidden", detail: detail, challenge: `Bearer error="insufficient_scope"`}
}

func suspended() error {
	return &apiError{status: http.StatusForbidden, code: "user_suspended", detail: "User account is suspended"}
}

func userNotFound(id string) error {
	return &apiError{status: http.StatusNotFound, code: "user_not_found", detail: "User not found: " + id}
}

// notJSON is for bodies that are no JSON, or JSON that two parsers could read differently.
func notJSON(cause error) error {
	return &apiError{status: http.StatusBadRequest, code: "not_json", detail: "The body is " + cause.Error(), cause: cause}
}

// invalidField is a member that is missing, of the wrong type or out of range.
func invalidField(name, problem string) error {
	return &apiError{status: http.StatusUnprocessableEntity, code: "invalid_field", field: name, detail: name + " " + problem}
}

// tooMany is the answer of the throttle. It does not say which rule, which would tell whether an account exists.
func tooMany(v verdict) error {
	return &apiError{status: http.StatusTooManyRequests, code: "too_many_attempts", retry: v.wait, cause: errors.New(v.rule),
		detail: "Too many attempts; try again later"}
}

// asAPIError gives every error of the lower rooms its answer. What it does not know is a bug or
// a broken disk, of which clients learn nothing.
func asAPIError(err error) *apiError {
	var e *apiError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, errUnavailable):
		return &apiError{status: http.StatusServiceUnavailable, code: "storage_unavailable",
			detail: "Changes cannot be stored at the moment", retry: 5 * time.Second, cause: err}
	case errors.Is(err, errBusy):
		return &apiError{status: http.StatusServiceUnavailable, code: "busy",
			detail: "Too many password checks are waiting", retry: 2 * time.Second, cause: err}
	case errors.Is(err, errLastSuperadmin):
		return &apiError{status: http.StatusConflict, code: "last_superadmin", detail: "This would remove the last active superadmin"}
	case errors.Is(err, errNoSession):
		return invalidToken(err).(*apiError)
	case errors.Is(err, errChanged):
		return &apiError{status: http.StatusConflict, code: "changed_meanwhile", detail: "The account changed in the meantime; try again"}
	case errors.Is(err, context.Canceled):
		return &apiError{status: http.StatusServiceUnavailable, code: "client_gone", detail: "The client went away", cause: err}
	}
	return &apiError{status: http.StatusInternalServerError, code: "internal_error", detail: "internal error", cause: err}
}

// problem is an error on the wire: RFC 9457, and error for clients of the Python server.
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

// writeError is the one place where errors become answers. Clients see status, code and detail; the cause goes
// to the log, and for a 5xx the request id joins the two.
func (s *server) writeError(w *response, r *http.Request, err error) {
	e := asAPIError(err)
	w.reason = e.code
	if e.cause != nil && e.status < 500 {
		w.reason += ": " + e.cause.Error()
	}
	if e.status >= 500 && !errors.Is(err, errBusy) { // a flood is refused in passing; its request lines tell
		level := slog.LevelError
		if e.status == http.StatusServiceUnavailable { // said once by the disk and then by every request
			level = slog.LevelWarn
		}
		s.log.Log(context.Background(), level, "request.failed", "id", w.requestID(), "pattern", r.Pattern, "status", e.status, "err", e.cause)
	}
	h := w.Header()
	h.Set("X-Request-Id", w.requestID())
	if e.challenge != "" {
		h.Set("WWW-Authenticate", e.challenge)
	}
	if e.retry > 0 { // RFC 9110 section 10.2.3: whole seconds
		h.Set("Retry-After", strconv.FormatInt(int64((e.retry+time.Second-1)/time.Second), 10))
	}
	h.Set("Content-Type", "application/problem+json")
	body, _ := json.Marshal(problem{"about:blank", http.StatusText(e.status), e.status, e.detail, e.code, e.field, w.requestID(), e.detail})
	writeBody(w, e.status, body)
}

// recoverPanic turns a bug in a handler into a 500, unless the answer has begun; then the connection
// is cut, so that nobody takes half an answer for a whole one.
func (s *server) recoverPanic(w *response, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler { // a handler's own decision, logged there
		panic(p)
	}
	s.log.Error("panic", "id", w.requestID(), "pattern", r.Pattern, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	if w.size > 0 {
		panic(http.ErrAbortHandler)
	}
	w.muted = false
	s.writeError(w, r, errors.New("panic"))
}

// --- answers ---

// writeJSON answers 200. It marshals before it writes, so that a failure can still become a 500.
func writeJSON(w *response, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	writeBody(w, http.StatusOK, body)
	return nil
}

// writeBody writes status and body at once, with their length, also for HEAD (RFC 9110 section 8.6).
func writeBody(w *response, status int, body []byte) {
	if status != http.StatusNoContent && status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	w.Write(body) // an error means that the client is gone
}

// writeMessage is the success of requests that have nothing to return.
func writeMessage(w *response, text string) error {
	return writeJSON(w, map[string]string{"message": text})
}

// --- decoding ---

// member is one member of a request body that a handler wants. Others are ignored, as the Python
// server ignores them: nothing but what a handler names can reach it.
type member struct {
	name     string
	required bool
	text     *string
	flag     *bool
}

func needText(name string, p *string) member { return member{name: name, required: true, text: p} }
func maybeText(name string, p *string) member {
	return member{name: name, text: p}
}
func needBool(name string, p *bool) member  { return member{name: name, required: true, flag: p} }
func maybeBool(name string, p *bool) member { return member{name: name, flag: p} }

// decode reads a JSON object into members. Names are compared exactly; null counts as absent.
func decode(w *response, r *http.Request, members ...member) error {
	body, err := readJSON(w, r)
	if err != nil {
		return err
	}
	return decodeMembers(body, members...)
}

// decodeBare also accepts the value of its only member as the whole document.
func decodeBare(w *response, r *http.Request, m member) error {
	body, err := readJSON(w, r)
	if err != nil {
		return err
	}
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte(`"`)) {
		return m.set(body)
	}
	return decodeMembers(body, m)
}

func decodeMembers(body []byte, members ...member) error {
	var object map[string]json.RawMessage
	if json.Unmarshal(body, &object) != nil || object == nil {
		return &apiError{status: http.StatusUnprocessableEntity, code: "not_an_object", detail: "The body must be a JSON object"}
	}
	for _, m := range members {
		raw, present := object[m.name]
		if !present || string(raw) == "null" {
			if m.required {
				return invalidField(m.name, "is missing")
			}
			continue
		}
		if err := m.set(raw); err != nil {
			return err
		}
	}
	return nil
}

// set stores one value if it has the right type; numbers and the like are not converted.
func (m member) set(raw json.RawMessage) error {
	if m.text != nil && json.Unmarshal(raw, m.text) != nil {
		return invalidField(m.name, "must be a string")
	}
	if m.flag != nil && json.Unmarshal(raw, m.flag) != nil {
		return invalidField(m.name, "must be true or false")
	}
	return nil
}

// readJSON returns a body that checkJSON accepts. Insisting on the content type also keeps HTML forms of
// other sites from posting here: they cannot send this one.
func readJSON(w *response, r *http.Request) ([]byte, error) {
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset := params["charset"]; err != nil || mediaType != "application/json" || (charset != "" && !strings.EqualFold(charset, "utf-8")) {
		return nil, &apiError{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type", detail: "Send the header Content-Type: application/json"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, &apiError{status: http.StatusRequestEntityTooLarge, code: "body_too_large", detail: fmt.Sprintf("The body is larger than %d bytes", maxBodyBytes)}
	}
	if err != nil {
		return nil, &apiError{status: http.StatusBadRequest, code: "body_unreadable", detail: "The body did not arrive completely", cause: err}
	}
	if len(body) == 0 {
		return nil, notJSON(fmt.Errorf("empty and %w", errNotJSON))
	}
	if err := checkJSON(body); err != nil {
		return nil, notJSON(err)
	}
	return body, nil
}

// --- where a request comes from ---

// clientAddress is the IP address that a request counts for: the peer, or, behind trusted proxies, the
// last address in X-Forwarded-For that is not one of them. Reading from the right matters: everything
// left of what our own proxy appended was written by the client.
func (s *server) clientAddress(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil && !s.unixProxy {
		return "unix"
	}
	client := peer.Addr().Unmap().WithZone("")
	if err == nil && !s.trusted(client) {
		return client.String()
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		ip, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		if client = ip.Unmap().WithZone(""); !s.trusted(client) {
			break
		}
	}
	if !client.IsValid() {
		return "unix"
	}
	return client.String()
}

// trusted tells whether an address is one of server.trusted_proxies.
func (s *server) trusted(ip netip.Addr) bool {
	return slices.ContainsFunc(s.proxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// scheme is how the client reached us: what a trusted proxy says last, or else the connection. It is for the log.
func (s *server) scheme(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if said := r.Header.Values("X-Forwarded-Proto"); len(said) > 0 && (s.trusted(peer.Addr().Unmap()) || err != nil && s.unixProxy) {
		hops := strings.Split(said[len(said)-1], ",")
		if strings.EqualFold(strings.TrimSpace(hops[len(hops)-1]), "https") {
			return "https"
		}
	} else if r.TLS != nil {
		return "https"
	}
	return "http"
}

// foreign tells whether a request may come from another machine although the listener is loopback: its peer is
// not this machine, it names another host, or a proxy has passed it on. nginx, unless told otherwise, shows in nothing
// but HTTP/1.0; a unix socket has a proxy in front of it nearly always.
func foreign(r *http.Request) bool {
	if peer, _, _ := net.SplitHostPort(r.RemoteAddr); !loopbackHost(peer) || !r.ProtoAtLeast(1, 1) {
		return true
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = strings.Trim(r.Host, "[]")
	}
	for _, name := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip"} {
		if _, set := r.Header[name]; set {
			return true
		}
	}
	return !loopbackHost(host)
}

// cors sets the headers for browser applications on other origins (Fetch standard, "HTTP extensions") and
// answers preflights. Credentials are never allowed: there are no cookies, and bearer tokens do not
// need it. The key set and discovery hold no secret and are readable from anywhere.
func (s *server) cors(w *response, r *http.Request) (answered bool) {
	origin := r.Header.Get("Origin")
	open := r.URL.Path == jwksPath || r.URL.Path == discoveryPath
	h := w.Header()
	if len(s.cfg.corsOrigins) > 0 && !open {
		h.Add("Vary", "Origin")
	}
	switch {
	case origin == "":
		return false
	case open || slices.Contains(s.cfg.corsOrigins, "*"):
		h.Set("Access-Control-Allow-Origin", "*")
	case slices.Contains(s.cfg.corsOrigins, origin):
		h.Set("Access-Control-Allow-Origin", origin)
	default:
		return false
	}
	h.Set("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate, X-Request-Id")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
	h.Set("Access-Control-Max-Age", "600")
	writeBody(w, http.StatusNoContent, nil)
	return true
}

// --- log ---

// logRequest writes the one line per request. The pattern stands for the path, which strangers
// choose; headers, query and bodies never appear. What verifiers and monitors fetch all the time is logged at
// level debug, unless it fails: formatting a line costs a fifth of answering such a request.
func (s *server) logRequest(w *response, r *http.Request, start time.Time) {
	level := slog.LevelInfo
	if w.polled && w.status < 400 {
		level = slog.LevelDebug
	}
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 9)
	attrs = append(attrs, slog.String("id", w.requestID()), slog.String("method", knownMethod(r.Method)), slog.String("pattern", r.Pattern),
		slog.Int("status", w.status), slog.Int64("us", s.now().Sub(start).Microseconds()), slog.String("ip", w.clientIP()), slog.String("scheme", s.scheme(r)))
	if w.user != "" {
		attrs = append(attrs, slog.String("user", w.user))
	}
	if w.reason != "" {
		attrs = append(attrs, slog.String("reason", w.reason))
	}
	s.log.LogAttrs(context.Background(), level, "request", attrs...)
}

// knownMethod keeps methods that a client made up out of the log.
func knownMethod(m string) string {
	if slices.Contains([]string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}, m) {
		return m
	}
	return "other"
}

// event logs something security is interested in, under a stable name, with ids and never secrets.
func (s *server) event(w *response, name string, args ...any) {
	s.log.Info(name, append([]any{"id", w.requestID(), "ip", w.clientIP()}, args...)...)
}

// cleanText makes a header of the client fit to be stored and shown: valid UTF-8, no control
// characters, at most 255 bytes.
func cleanText(v string) string {
	v = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, v)
	for len(v) > 255 {
		_, size := utf8.DecodeLastRuneInString(v)
		v = v[:len(v)-size]
	}
	return v
}

// --- net/http's own refusals ---

// problemListener rewrites the few answers that net/http sends without asking a handler, such as
// "400 Bad Request" or "431 Request Header Fields Too Large" in text/plain, into our form. Under TLS it is not used:
// net/http recognises TLS and HTTP/2 by the type *tls.Conn, which cannot be wrapped, so there they stay as they are.
type problemListener struct{ net.Listener }

func (l problemListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return problemConn{c}, nil
}

type problemConn struct{ net.Conn }

// Write looks at whether net/http writes one of these answers: they alone have exactly these headers (server.go, errorHeaders).
func (c problemConn) Write(b []byte) (int, error) {
	const headers = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
	line, _, found := bytes.Cut(b[:min(len(b), 256)], []byte(headers))
	if !found || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) || len(line) < 12 {
		return c.Conn.Write(b)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return c.Conn.Write(b)
	}
	title := http.StatusText(status)
	code := strings.ToLower(strings.ReplaceAll(title, " ", "_"))
	body, _ := json.Marshal(problem{Type: "about:blank", Title: title, Status: status, Detail: title, Code: code, Error: title})
	_, err = fmt.Fprintf(c.Conn, "HTTP/1.1 %d %s\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\n"+
		"X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s", status, title, len(body), body)
	return len(b), err
}
