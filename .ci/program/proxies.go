// This file starts the reverse proxies that documents show, with the blocks
// that they print.

package program

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var siteAddress = regexp.MustCompile(`(?m)^(\w+\.example\.com) \{$`)

// StartCaddy serves these sites at a port of 127.0.0.1, with the directory's
// certificate.
func StartCaddy(t *testing.T, dir, port, sites string) {
	t.Helper()
	here := "https://$1:" + port + " {\n\tbind 127.0.0.1\n\ttls cert.pem key.pem"
	conf := "{\n\tadmin off\n\tauto_https off\n}\n" + siteAddress.ReplaceAllString(sites, here)
	write(t, dir, "Caddyfile", conf)
	home := []string{"XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}
	Run(t, dir, home, "caddy", "run", "--adapter", "caddyfile", "--config", "Caddyfile")
}

var certificateLine = regexp.MustCompile(`(?m)^\s*ssl_certificate(_key)? .*\n`)

// StartNginx serves these server blocks at a port of 127.0.0.1, with the
// directory's certificate.
func StartNginx(t *testing.T, dir, port, servers string) {
	t.Helper()
	servers = certificateLine.ReplaceAllString(servers, "")
	servers = strings.ReplaceAll(servers, "listen 443 ssl;", "listen 127.0.0.1:"+port+" ssl;")
	write(t, dir, "nginx.conf", `
		daemon off; pid nginx.pid; error_log stderr;
		events {}
		http {
			access_log off; client_body_temp_path body; proxy_temp_path proxy;
			fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
			ssl_certificate cert.pem; ssl_certificate_key key.pem;
			`+servers+`
		}`)
	Run(t, dir, nil, "nginx", "-p", dir, "-c", "nginx.conf", "-e", "stderr")
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
