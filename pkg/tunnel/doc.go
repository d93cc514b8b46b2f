// Package tunnel carries many connections, both ways, over one byte stream between a laptop and a
// pod: mutual TLS with pinned keys, a multiplexer, and what the multiplexer lacks: exact half-close,
// resets, refusals with their errno, and a session that notices a dead path and dials the next one.
//
// The laptop's commands use [Client], the pod's proxy uses [Server], both use [Splice]. It knows
// nothing of Kubernetes: the caller supplies the carriers. It alone imports hashicorp/yamux.
// SPEC.md, beside the code, has the wire format.
//
// From the wire up: handshake.go (TLS and hello) makes a link (wire.go) of a carrier; batch.go gathers what is
// written to it; mux.go puts yamux on that; session.go runs the control stream and the accept loop; stream.go is one
// connection, gate.go says whose turn it is to write, and window.go how far.
package tunnel
