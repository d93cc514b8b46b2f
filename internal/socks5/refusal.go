package socks5

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
)

// reply is a SOCKS5 reply code (RFC 1928 section 6).
type reply byte

const (
	replySucceeded           reply = 0x00
	replyGeneralFailure      reply = 0x01
	replyNotAllowed          reply = 0x02
	replyNetworkUnreachable  reply = 0x03
	replyHostUnreachable     reply = 0x04
	replyConnectionRefused   reply = 0x05
	replyTTLExpired          reply = 0x06 // the usual reply for "no answer in time"
	replyCommandNotSupported reply = 0x07
	replyAddressNotSupported reply = 0x08
)

// refusal is one reason for not connecting, in each of the languages spoken here.
type refusal struct {
	socks  reply
	status int    // of HTTP
	token  string // the error type of RFC 9209, for the Proxy-Status header
}

// refusalFor translates a dial error. Errors it does not know are general failures.
func refusalFor(err error) refusal {
	var dns *net.DNSError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return refusal{replyHostUnreachable, http.StatusBadGateway, "dns_error"}
	case errors.As(err, &dns) && dns.IsTimeout:
		return refusal{replyHostUnreachable, http.StatusGatewayTimeout, "dns_timeout"}
	case errors.As(err, &dns):
		return refusal{replyHostUnreachable, http.StatusBadGateway, "dns_error"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return refusal{replyConnectionRefused, http.StatusBadGateway, "connection_refused"}
	case errors.Is(err, syscall.EHOSTUNREACH):
		return refusal{replyHostUnreachable, http.StatusBadGateway, "destination_ip_unroutable"}
	case errors.Is(err, syscall.ENETUNREACH):
		return refusal{replyNetworkUnreachable, http.StatusBadGateway, "destination_ip_unroutable"}
	case errors.Is(err, fs.ErrPermission): // EACCES and EPERM
		return refusal{replyNotAllowed, http.StatusBadGateway, "destination_ip_prohibited"}
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return refusal{replyAddressNotSupported, http.StatusBadGateway, "destination_ip_unroutable"}
	case errors.Is(err, syscall.ECONNRESET):
		return refusal{replyGeneralFailure, http.StatusBadGateway, "connection_terminated"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return refusal{replyTTLExpired, http.StatusGatewayTimeout, "connection_timeout"}
	}
	return refusal{replyGeneralFailure, http.StatusBadGateway, "proxy_internal_error"}
}
