// This file is the HTTP client of these tests. It reaches any name on loopback
// and believes any certificate, since none of them leaves this machine.

package program

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/cookiejar"
)

// Local returns a client with a cookie jar. Every host name leads to
// 127.0.0.1, so that an issuer can have any name.
func Local() *http.Client {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
	jar, _ := cookiejar.New(nil) // it never fails
	return &http.Client{Jar: jar, Transport: &http.Transport{
		DialContext:       dial,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives: true,
	}}
}
