package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
)

// serveTLS answers HTTPS, with a certificate that nobody trusts.
func serveTLS(address string) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, hostname()) }))
	_ = s.Listener.Close()
	s.Listener = ln
	s.StartTLS()
	select {}
}
