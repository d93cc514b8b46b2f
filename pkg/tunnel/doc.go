// Package tunnel carries many connections, both ways, over one byte stream between a laptop and a
// pod: mutual TLS with pinned keys, a multiplexer, and what the multiplexer lacks: exact half-close,
// resets, refusals with their errno, and a session that notices a dead path and dials the next one.
//
// The laptop's commands use [Client], the pod's proxy uses [Server], both use [Splice]. It knows
// nothing of Kubernetes: the caller supplies the carriers. It alone imports hashicorp/yamux.
// SPEC.md, beside the code, has the wire format.
//
// From the wire up: handshake.go (TLS and hello) makes a link of a carrier; mux.go puts yamux on the
// link; session.go runs the control stream and the accept loop on that; stream.go is one connection.
package tunnel
