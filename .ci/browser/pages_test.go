// This file looks at every page in light and dark, on a wide and a narrow
// screen. SHOTS names a directory for the pictures; without it none is kept.

package browser

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
)

// pages are the ways to each page of the server, with the element that has to
// be visible on it.
var pages = []struct {
	name string
	open func(*world)
	css  string

	status float64 // of HTTP
}{
	{"login", func(w *world) { w.start(w.notes, nil) }, "input[name=password]", 200},
	{"wrong-password", func(w *world) {
		w.start(w.notes, nil)
		w.signIn(email, "wrong password")
	}, "[role=alert]", 401},
	{"suspended", func(w *world) {
		w.start(w.notes, nil)
		w.signIn("eve@example.com", password)
	}, "[role=alert]", 403},
	{"throttled", func(w *world) {
		for range 3 {
			w.start(w.notes, nil)
			w.signIn("nobody@example.com", "wrong password")
			w.find("[role=alert]")
		}
	}, "[role=alert]", 429},
	{"unknown-client", func(w *world) {
		w.start(w.notes, url.Values{"client_id": {"nobody"}})
	}, "h1", 400},
	{"continue", func(w *world) {
		w.enter()
		w.start(w.calendar, nil)
	}, "button[name=answer][value=yes]", 200},
	{"sign-out", func(w *world) {
		w.enter()
		w.open(w.server.Issuer + "/oauth2/logout")
	}, "form button", 200},
	{"signed-out", func(w *world) {
		w.enter()
		w.open(w.server.Issuer + "/oauth2/logout")
		w.click("form button")
	}, "body:not(:has(form)) h1", 200},
}

var looks = []struct {
	name   string
	width  int
	scheme string
}{
	{"light", 1024, "light"},
	{"dark", 1024, "dark"},
	{"320px", 320, "light"},
	{"320px-dark", 320, "dark"},
}

func TestPages_Look(t *testing.T) {
	w := newWorld(t, places[0], "THROTTLE_PAIR_FAILURES=2")
	w.server.Suspend(t, w.server.Register(t, "eve@example.com", password))
	for _, p := range pages {
		t.Run(p.name, func(t *testing.T) {
			w := w.in(t)
			w.forget()
			p.open(w)
			w.find(p.css)
			status := `performance.getEntriesByType("navigation")[0].responseStatus`
			if got := w.number(status); got != p.status {
				t.Errorf("status %v; want %v", got, p.status)
			}
			shots := map[string][]byte{}
			for _, l := range looks {
				w.look(l.width, l.scheme)
				shots[l.name] = w.screenshot(shotFile(p.name + "-" + l.name))
				if got := w.number("document.documentElement.scrollWidth"); got > float64(l.width) {
					t.Errorf("%s: the page is %v pixels wide; want at most %d", l.name, got, l.width)
				}
			}
			if bytes.Equal(shots["light"], shots["dark"]) {
				t.Error("the page looks the same in dark mode")
			}
			w.checkMarks()
		})
	}
}

// shotFile is the file of one picture, or empty.
func shotFile(name string) string {
	dir := os.Getenv("SHOTS")
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name+".png")
}

// checkMarks holds the page against what screen readers and password managers
// need: a language, a title, one heading, labels, and known kinds of input.
func (w *world) checkMarks() {
	counts := []struct {
		want float64
		css  string
	}{
		{1, "html[lang]:not([lang=''])"},
		{1, "title:not(:empty)"},
		{1, "h1:not(:empty)"},
		{1, "meta[name=viewport]"},
		{0, "script, img, link[rel=stylesheet], [onclick], [style]"},
		{0, "form:not([method=post])"},
	}
	for _, c := range counts {
		if got := w.number(fmt.Sprintf("document.querySelectorAll(%q).length", c.css)); got != c.want {
			w.t.Errorf("%v of %s; want %v", got, c.css, c.want)
		}
	}
	inputs := `[...document.querySelectorAll("input:not([type=hidden])")]`
	if got := w.number(inputs + `.filter(i => !i.labels.length || !i.autocomplete).length`); got != 0 {
		w.t.Errorf("%v inputs lack a label or autocomplete", got)
	}
	if got := w.number(inputs + `.filter(i => i.getBoundingClientRect().height < 24).length`); got != 0 {
		w.t.Errorf("%v inputs are less than 24 pixels high", got)
	}
}
