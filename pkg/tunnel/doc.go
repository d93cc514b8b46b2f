// Package tunnel carries many connections, both ways, between a laptop and a pod, over one byte stream after the
// other: mutual TLS with pinned keys, a session that goes on byte by byte where a lost carrier left it, a
// multiplexer, and what the multiplexer lacks: exact half-close, resets, refusals with their errno.
//
// The laptop's commands use [Client], the pod's proxy uses [Server], both use [Splice]. It knows
// nothing of Kubernetes: the caller supplies the carriers. It alone imports hashicorp/yamux.
// SPEC.md, beside the code, has the wire format.
//
// From the wire up: handshake.go (TLS and hello) makes a link (wire.go) of a carrier; attach.go says which session it
// is for; resume.go makes one byte stream of a session's links; mux.go puts yamux on that; session.go runs
// the control stream and the accept loop; stream.go is one connection, gate.go says whose turn it is to write,
// flight.go how much may be on its way, and window.go how far a stream may go. lane.go is a second carrier, for bulk.
package tunnel
