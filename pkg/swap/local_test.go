package swap

import (
	"net"
	"net/netip"
	"sync"
	"testing"
)

// Who answers at a local port outside of CMD's network is somebody else, unless it is bridge, that has published the port.
func TestWhatBridgePublishesIsNotElsewhere(t *testing.T) {
	l := listen(t)
	defer func() { _ = l.Close() }()
	local := netip.MustParseAddrPort(l.Addr().String()).Port()
	port, published, p := Port{Local: int32(local)}, new(sync.Map), new(Plan)
	for _, inside := range []bool{false, true} {
		p.place.Store(&place{new(net.Dialer).DialContext, inside, published})
		if got := p.elsewhere(t.Context(), port); got != inside {
			t.Errorf("with a network of its own %v: %v", inside, got)
		}
	}
	published.Store(local, nil)
	if p.elsewhere(t.Context(), port) {
		t.Error("bridge itself is taken for somebody else")
	}
}
