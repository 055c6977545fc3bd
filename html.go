package main

// This file is what all pages of this server share, whatever room they are of:
// colours, and headers that keep a page from being framed and changed.

import (
	"crypto/sha256"
	"encoding/base64"
)

// htmlColours hold for light and dark, with enough contrast (WCAG 2.2, 1.4.3).
const htmlColours = `
:root { color-scheme: light dark; --back: #f3f4f6; --card: #fff; --text: #1c2430; --soft: #566070;
	--line: #8a93a2; --main: #1d4ed8; --onmain: #fff; --bad: #b42318; --badback: #fef3f2; }
@media (prefers-color-scheme: dark) { :root { --back: #12161d; --card: #1b212b; --text: #e8ebf0;
	--soft: #a3adbb; --line: #6b7686; --main: #8ab4ff; --onmain: #10203f; --bad: #ffb4ab;
	--badback: #3a1f1d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
	font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
a { color: var(--main); }
.soft { color: var(--soft); }
:focus-visible { outline: 3px solid color-mix(in srgb, var(--main) 60%, transparent); outline-offset: 2px; }
`

// htmlHeader is the header of a page with this style, which is allowed by its
// hash; nothing else is. There is deliberately no form-action: browsers apply
// it to every redirect that follows a form, those of the client's own site
// among them. The policy for Referer is same-origin, because with no-referrer
// browsers send "Origin: null" with our own forms, which are refused then.
func htmlHeader(style string) map[string][]string {
	sum := sha256.Sum256([]byte(style))
	hash := base64.StdEncoding.EncodeToString(sum[:])
	return map[string][]string{
		"Content-Type": {"text/html; charset=utf-8"},
		"Content-Security-Policy": {"default-src 'none'; style-src 'sha256-" + hash +
			"'; img-src data:; base-uri 'none'; frame-ancestors 'none'"},
		"Referrer-Policy": {"same-origin"},
		"X-Frame-Options": {"DENY"},
	}
}
