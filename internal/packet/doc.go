// Package packet makes connections of IP packets: what programs send through a device of this machine becomes
// dial(ctx, network, address), for TCP a connection, for UDP a flow of datagrams (internal/flow), and for echo requests one of echoes (internal/ping). internal/connect runs it on a
// TUN device; it alone imports gVisor, whose stack it is. It works on Linux.
//
// A connection is dialled before its handshake goes on: a program whose target refuses sees a refusal, not a connection that ends.
// An echo is answered when its target has answered. Other ICMP is not carried.
package packet
