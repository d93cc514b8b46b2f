package socks5

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// The file is for who asks by an address of this machine, and for no web page.
func TestPACIsForBrowsersOnly(t *testing.T) {
	const file = "function FindProxyForURL() {}"
	k := &cluster{}
	with := start(t, &Server{Dial: k.dial, PAC: func(context.Context) []byte { return []byte(file) }})
	for _, tt := range []struct {
		name, proxy, request, host string
		status                     int
	}{
		{"", with, "GET /proxy.pac", "127.0.0.1:1080", 200},
		{"with a query", with, "GET /proxy.pac?1", "127.0.0.1:1080", 200},
		{"localhost", with, "GET /proxy.pac", "localhost:1080", 200},
		{"IPv6", with, "GET /proxy.pac", "[::1]:1080", 200},
		{"port 80", with, "GET /proxy.pac", "127.0.0.1", 200},
		{"head", with, "HEAD /proxy.pac", "127.0.0.1:1080", 200},
		{"a name that resolves to us", with, "GET /proxy.pac", "page.example:1080", 400},
		{"a name that looks like an address", with, "GET /proxy.pac", "127.0.0.1.page.example:1080", 400},
		{"another address", with, "GET /proxy.pac", "192.0.2.1:1080", 400},
		{"no host", with, "GET /proxy.pac", "", 400},
		{"another method", with, "POST /proxy.pac", "127.0.0.1:1080", 400},
		{"what pages ask before", with, "OPTIONS /proxy.pac", "127.0.0.1:1080", 400},
		{"another path", with, "GET /proxy.pac/", "127.0.0.1:1080", 400},
		{"the root", with, "GET /", "127.0.0.1:1080", 400},
		{"through the proxy", with, "GET ftp://127.0.0.1/proxy.pac", "127.0.0.1", 400},
		{"none is served", startProxy(t, k.dial), "GET /proxy.pac", "127.0.0.1:1080", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("tcp", tt.proxy)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, tt.request+" HTTP/1.1\r\nHost: "+tt.host+"\r\nOrigin: http://page.example\r\nConnection: close\r\n\r\n")
			method, _, _ := strings.Cut(tt.request, " ")
			resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tt.status {
				t.Fatalf("%s, %v", resp.Status, err)
			}
			if resp.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Error("pages may read it")
			}
			if tt.status != 200 {
				if strings.Contains(string(body), file) {
					t.Errorf("%q", body)
				}
				return
			}
			if want := map[string]string{"GET": file}[method]; string(body) != want {
				t.Errorf("%q", body)
			}
			for name, want := range map[string]string{
				"Content-Type": "application/x-ns-proxy-autoconfig", "X-Content-Type-Options": "nosniff",
				"Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
			} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s: %q", name, got)
				}
			}
		})
	}
	if n := k.dials.Load(); n != 0 {
		t.Errorf("%d dials", n)
	}
}
