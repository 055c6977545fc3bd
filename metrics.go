package main

// This file counts what the server does and shows it to Prometheus, at an
// address of its own, server.metrics_listen, which is off by default. Labels
// are patterns, names and numbers of this program and ids of configured
// clients. What strangers choose (paths, emails, addresses, made-up ids) never
// becomes one, so memory stays bounded and nothing that is shown is personal.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"runtime"
	runtimemetrics "runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const metricsPath = "/metrics"

// metricBounds are the upper bounds of the buckets of durations, in seconds. A
// login is in one of those from 0.1 to 2.5.
var metricBounds = [...]float64{.001, .005, .025, .1, .5, 2.5, math.Inf(1)}

// metricMethods are the methods that are shown; all others are "other".
var metricMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// meters hold what was counted since the start. Texts that label a value stand
// as they are shown.
type meters struct {
	s       *server
	began   time.Time
	answers counterMap[answerLabels, durations]
	events  counterMap[string, atomic.Int64]
	tokens  counterMap[string, atomic.Int64]
}

type answerLabels struct {
	route, method string
	status        int
}

// durations count answers by the bucket of their duration. How many there were
// is the sum of the buckets, so an answer costs two atomic additions.
type durations struct {
	buckets [len(metricBounds)]atomic.Int64
	nanos   atomic.Int64 // of all together
}

// meter has the server count if server.metrics_listen is set.
func (s *server) meter() {
	if s.cfg.metricsListen == "" {
		return
	}
	m := &meters{s: s, began: s.now()}
	// Prometheus sees no increase in a series that begins at 1.
	for _, name := range alarmingEvents {
		m.events.at(eventLabel(name))
	}
	s.countRequest, s.countEvent, s.monitor = m.countRequest, m.countEvent, m
}

// --- counting ---

// counterMap holds values by their labels, each made at its first use. To find
// one again takes no lock and allocates nothing.
type counterMap[K comparable, V any] struct{ values sync.Map }

func (c *counterMap[K, V]) at(labels K) *V {
	value, known := c.values.Load(labels)
	if !known {
		value, _ = c.values.LoadOrStore(labels, new(V))
	}
	return value.(*V)
}

// countRequest counts an answered request. Its pattern stands for the path, as
// in the log.
func (m *meters) countRequest(x *exchange, took time.Duration) {
	labels := answerLabels{"none", "other", x.status}
	if x.r.Pattern != "" {
		labels.route = x.r.Pattern
	}
	// The text of the table is kept: that of the request would keep its first
	// line in memory, query included.
	if i := slices.Index(metricMethods, x.r.Method); i >= 0 {
		labels.method = metricMethods[i]
	}
	d := m.answers.at(labels)
	bucket, _ := slices.BinarySearch(metricBounds[:], took.Seconds())
	d.buckets[bucket].Add(1)
	d.nanos.Add(int64(took))
}

func eventLabel(name string) string { return fmt.Sprintf("{event=%q}", name) }

// countEvent counts an event of the log, and by token.issued the tokens of each
// client. Service tokens are one client: any number of them can be made.
func (m *meters) countEvent(name string, args []any) {
	m.events.at(eventLabel(name)).Add(1)
	if name != "token.issued" {
		return
	}
	about := map[any]any{}
	for pair := range slices.Chunk(args, 2) {
		about[pair[0]] = pair[1]
	}
	if about["grant"] == "client_credentials" {
		about["client"] = "service tokens"
	}
	m.tokens.at(fmt.Sprintf("{client=%q,grant=%q}", about["client"], about["grant"])).Add(1)
}

// --- what is shown ---

// samples returns a text for each value, sorted by text. The labels in it are
// printable ASCII, which %q quotes as Prometheus wants it.
func (c *counterMap[K, V]) samples(text func(labels K, value *V) string) string {
	var texts []string
	c.values.Range(func(labels, value any) bool {
		texts = append(texts, text(labels.(K), value.(*V)))
		return true
	})
	slices.Sort(texts)
	return strings.Join(texts, "")
}

func countSample(labels string, n *atomic.Int64) string {
	return fmt.Sprintln(labels, n.Load())
}

func answerSample(l answerLabels, d *durations) string {
	total := int64(0)
	for i := range d.buckets {
		total += d.buckets[i].Load()
	}
	return fmt.Sprintf("{route=%q,method=%q,code=\"%d\"} %d\n", l.route, l.method, l.status, total)
}

// histogram is the durations of a route. A bucket contains those below it too,
// so the last one counts everything.
func histogram(route string, d *durations) (lines string) {
	total := int64(0)
	for i, bound := range metricBounds {
		total += d.buckets[i].Load()
		lines += fmt.Sprintf("_bucket{route=%q,le=\"%v\"} %d\n", route, bound, total)
	}
	seconds := time.Duration(d.nanos.Load()).Seconds()
	return lines + fmt.Sprintf("_sum{route=%q} %v\n_count{route=%[1]q} %[3]d\n", route, seconds, total)
}

// byRoute adds the durations of each route up.
func (m *meters) byRoute() *counterMap[string, durations] {
	routes := &counterMap[string, durations]{}
	m.answers.values.Range(func(labels, value any) bool {
		sum, d := routes.at(labels.(answerLabels).route), value.(*durations)
		for i := range d.buckets {
			sum.buckets[i].Add(d.buckets[i].Load())
		}
		sum.nanos.Add(d.nanos.Load())
		return true
	})
	return routes
}

// waiting returns how many jobs no thread has begun. No thread is idle while
// one waits.
func (h *hasher) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	jobs := 0
	for _, c := range h.clients {
		jobs += c.jobs
	}
	return max(0, jobs-h.threads)
}

// ServeHTTP shows everything in the text format 0.0.4 of Prometheus. The calls
// of family and gauge stand in the order of the names.
func (m *meters) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	var out bytes.Buffer
	family := func(name, kind, help, samples string) {
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", name, help, kind)
		for line := range strings.Lines(samples) {
			out.WriteString(name + line)
		}
	}
	gauge := func(name, help string, value any) {
		family(name, "gauge", help, fmt.Sprintln("", value))
	}
	heap := []runtimemetrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	runtimemetrics.Read(heap)
	now := m.s.now()
	age := now.Sub(m.s.keys.current().signing(now).since)

	gauge("go_goroutines", "Goroutines that exist.", runtime.NumGoroutine())
	gauge("go_memstats_heap_alloc_bytes", "Bytes of objects on the heap.", heap[0].Value.Uint64())
	family("pico_auth_build_info", "gauge", "Version of the server, and of the Go that built it.",
		fmt.Sprintf("{version=%q,goversion=%q} 1\n", version, runtime.Version()))
	family("pico_auth_events_total", "counter", "Events of the log.", m.events.samples(countSample))
	gauge("pico_auth_hash_queue", "Password checks that wait for a hashing thread.", m.s.hasher.waiting())
	family("pico_auth_http_request_duration_seconds", "histogram", "Time from a request to its answer.",
		m.byRoute().samples(histogram))
	family("pico_auth_http_requests_total", "counter", "Answered requests.", m.answers.samples(answerSample))
	gauge("pico_auth_signing_key_age_seconds", "Time since the key that signs began to.", age.Seconds())
	family("pico_auth_tokens_total", "counter", "Successes of the token endpoint.",
		m.tokens.samples(countSample))
	gauge("pico_auth_writer_queue", "Changes that wait for the database.", len(m.s.store.writer.queue))
	gauge("process_start_time_seconds", "Unix time of the start.", m.began.Unix())

	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(out.Bytes()) // an error means that the client is gone
}

// serveMetrics answers on the listeners until ctx ends, and waits for nobody
// then. A listener that fails ends no login: Prometheus notices.
func serveMetrics(ctx context.Context, listeners []net.Listener, monitor http.Handler, log *slog.Logger) {
	if monitor == nil {
		return // they are off
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+metricsPath, monitor)
	srv := &http.Server{
		Handler:      mux,
		ErrorLog:     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadTimeout:  10 * time.Second,
		WriteTimeout: writeTimeout,
	}
	for _, ln := range listeners {
		log.Info("metrics", "url", "http://"+ln.Addr().String()+metricsPath)
		go func() {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				log.Error("metrics are served no more", "err", err)
			}
		}()
	}
	<-ctx.Done()
	srv.Close() // an error means that a listener is closed already
}
