// Package socks5 is the entrance for programs that know a proxy: one loopback port that speaks
// SOCKS5 (RFC 1928), HTTP CONNECT and plain HTTP proxying (RFC 9110), told apart by the first byte.
// Every connection it makes, and every flow of datagrams (UDP ASSOCIATE), goes through one dial function, names unresolved, so
// that they mean what they mean where the dialling is done. internal/connect starts it, on the tunnel's dial.
package socks5
