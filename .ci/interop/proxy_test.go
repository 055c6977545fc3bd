// This file runs oauth2-proxy with the configuration and the command line that
// the documentation prints, on other ports.

package interop

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"ci/program"
)

// TestInterop_OAuth2Proxy signs in through the proxy and reaches what is behind
// it. The proxy refreshes without having asked for offline_access.
func TestInterop_OAuth2Proxy(t *testing.T) {
	if _, err := exec.LookPath("oauth2-proxy"); err != nil {
		t.Skip("no oauth2-proxy in PATH")
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Header.Get("X-Forwarded-Email"), r.Header.Get("X-Forwarded-User"))
	}))
	t.Cleanup(upstream.Close)
	here, front := program.FreePort(t), program.FreePort(t)
	_, behind, _ := strings.Cut(upstream.URL, "http://127.0.0.1:")
	ports := strings.NewReplacer(":8100", ":"+here, ":4180", ":"+front, ":8080", ":"+behind)
	secret := "OAUTH2_PROXY_CLIENT_SECRET=" + newSecret()
	s := program.Start(t, here, "", ports.Replace(program.Block(t, "yaml oauth2-proxy")), secret)
	s.Register(t, email, password)

	log := program.Run(t, t.TempDir(), []string{secret, "OAUTH2_PROXY_COOKIE_REFRESH=1s"},
		"bash", "-euc", ports.Replace(program.Block(t, "sh oauth2-proxy")))
	proxy := "http://localhost:" + front
	program.Await(t, "oauth2-proxy", func() bool { return program.Answers(proxy+"/ping", http.StatusOK) })

	browser := browse()
	if resp, page := visit(t, browser, proxy+"/"); !strings.HasPrefix(page, email+" ") {
		t.Fatalf("behind the proxy: %s at %s\n%s", resp.Status, resp.Request.URL, page)
	}
	refreshed := func() bool {
		resp, page := read(t)(browser.Get(proxy + "/"))
		if !strings.HasPrefix(page, email+" ") {
			t.Fatalf("behind the proxy, later: %s at %s\n%s", resp.Status, resp.Request.URL, page)
		}
		return strings.Contains(log.String(), "Refreshing session")
	}
	program.Await(t, "a refresh by the proxy", refreshed)
	for _, failure := range []string{"Unable to refresh", "not refreshed"} {
		if strings.Contains(log.String(), failure) {
			t.Errorf("the proxy says %q", failure)
		}
	}
}
