package kube

import "testing"

// Whatever lies between a port-forward and its TCP connection.
func TestTheKernelKnowsEveryCarriersConnection(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		_, c := newForwardServer(t, ws, echoPort)
		conn := dial(t, c, 80)
		if sent, _, ok := retransmitted(conn.(*podConn).c.NetConn()); !ok || sent == 0 {
			t.Errorf("%d packets sent, known: %v", sent, ok)
		}
	})
}
