// This file drives Debian's Chromium through its chromedriver, by the commands
// of W3C WebDriver that the tests need and one of Chromium's own. Whatever goes
// wrong fails the test.

// Package browser tests the server's pages in a real browser.
package browser

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"testing"
	"time"

	"ci/program"
)

// elementKey is the member that holds an element's id (W3C WebDriver,
// section 12.2).
const elementKey = "element-6066-11e4-a52e-4f735466cecf"

// Keys that typeText takes (W3C WebDriver, section 17.4.2).
const (
	keyTab   = "\ue004"
	keyEnter = "\ue007"
)

// window is one browser with a profile of its own: cookies, size, color scheme.
type window struct {
	t       *testing.T
	session string // the address of its WebDriver session
}

var driverReady = regexp.MustCompile(`started successfully on port (\d+)`)

// openWindow starts a browser for this test. Names that end in .test lead to
// 127.0.0.1. Without --no-sandbox Chromium does not run as root, nor where user
// namespaces are forbidden; what it shows here comes from this machine alone.
func openWindow(t *testing.T) *window {
	t.Helper()
	dir, err := os.MkdirTemp("", "w") // a socket in it has to fit into 108 bytes, which t.TempDir may not
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	log := program.Run(t, dir, []string{"HOME=" + dir, "TMPDIR=" + dir}, "chromedriver", "--port=0")
	var port []string
	program.Await(t, "chromedriver", func() bool {
		port = driverReady.FindStringSubmatch(log.String())
		return port != nil
	})
	w := &window{t: t, session: "http://127.0.0.1:" + port[1] + "/session"}
	options := map[string]any{"args": []string{
		"--headless=new",
		"--no-sandbox",
		"--disable-gpu",
		"--disable-quic",
		"--disable-dev-shm-usage",
		"--no-first-run",
		"--disable-background-networking",
		"--disable-component-update",
		"--disable-sync",
		"--user-data-dir=" + dir + "/profile",
		"--host-resolver-rules=MAP *.test 127.0.0.1",
	}}
	var made struct{ SessionID string }
	w.call("POST", "", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"acceptInsecureCerts": true,
		"timeouts":            map[string]int{"implicit": 5_000, "pageLoad": 30_000}, // milliseconds
		"goog:chromeOptions":  options,
	}}}, &made)
	w.session += "/" + made.SessionID
	t.Cleanup(func() { w.call("DELETE", "", nil, nil) })
	return w
}

// call sends one command and decodes the answer's value into out. Only a POST
// has a body.
func (w *window) call(method, path string, in, out any) {
	w.t.Helper()
	var sent []byte
	if method == "POST" {
		sent, _ = json.Marshal(in) // our own maps of texts and numbers
	}
	req, err := http.NewRequest(method, w.session+path, bytes.NewReader(sent))
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Value json.RawMessage }
	err = json.NewDecoder(resp.Body).Decode(&answer)
	if err == nil && resp.StatusCode == http.StatusOK && out != nil {
		err = json.Unmarshal(answer.Value, out)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		w.t.Fatalf("%s %s %s = %d %.300s (%v)", method, path, sent, resp.StatusCode, answer.Value, err)
	}
}

// get asks one text of the session, or of an element.
func (w *window) get(path string) (value string) {
	w.t.Helper()
	w.call("GET", path, nil, &value)
	return value
}

// open goes to an address and waits until the page is loaded.
func (w *window) open(address string) {
	w.t.Helper()
	w.call("POST", "/url", map[string]string{"url": address}, nil)
}

// find waits for the first element of a CSS selector and returns its path. It
// fails where the page that the test expects is not shown.
func (w *window) find(css string) string {
	w.t.Helper()
	ids := []map[string]string{}
	w.call("POST", "/elements", map[string]string{"using": "css selector", "value": css}, &ids)
	if len(ids) == 0 {
		w.t.Fatalf("no %s at %s, titled %q:\n%.2000s", css, w.get("/url"), w.get("/title"), w.get("/source"))
	}
	return "/element/" + ids[0][elementKey]
}

func (w *window) text(css string) string {
	w.t.Helper()
	return w.get(w.find(css) + "/text")
}

// value is what stands in an input now.
func (w *window) value(css string) string {
	w.t.Helper()
	return w.get(w.find(css) + "/property/value")
}

func (w *window) typeText(css, text string) {
	w.t.Helper()
	w.call("POST", w.find(css)+"/value", map[string]string{"text": text}, nil)
}

func (w *window) click(css string) {
	w.t.Helper()
	w.call("POST", w.find(css)+"/click", struct{}{}, nil)
}

// cookie is what the browser stored of one Set-Cookie.
type cookie struct {
	Name     string
	Value    string
	HTTPOnly bool
	Secure   bool
	SameSite string
	Expiry   int64 // seconds since 1970, 0 for the life of the browser
}

// cookies returns those that go with a request to the page shown.
func (w *window) cookies() (all []cookie) {
	w.t.Helper()
	w.call("GET", "/cookie", nil, &all)
	return all
}

// number is the value of a JavaScript expression in the page shown.
func (w *window) number(expression string) (value float64) {
	w.t.Helper()
	w.call("POST", "/execute/sync", map[string]any{"script": "return " + expression, "args": []any{}}, &value)
	return value
}

// devtools sends one command of Chromium's own protocol.
func (w *window) devtools(command string, params map[string]any) {
	w.t.Helper()
	w.call("POST", "/goog/cdp/execute", map[string]any{"cmd": command, "params": params}, nil)
}

// look sets the width in CSS pixels and the color scheme, light or dark.
func (w *window) look(width int, scheme string) {
	w.t.Helper()
	w.devtools("Emulation.setDeviceMetricsOverride", map[string]any{
		"width": width, "height": 640, "deviceScaleFactor": 2, "mobile": false})
	w.devtools("Emulation.setEmulatedMedia", map[string]any{
		"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
}

// screenshot returns the visible page as PNG, and writes it to the file unless
// that is empty.
func (w *window) screenshot(file string) []byte {
	w.t.Helper()
	png, err := base64.StdEncoding.DecodeString(w.get("/screenshot"))
	if err == nil && file != "" {
		err = os.WriteFile(file, png, 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return png
}
