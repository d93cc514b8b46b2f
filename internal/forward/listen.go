package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"bridge/internal/hint"
)

// maxAnyPort is how often a free port is looked for that is free on both loopback addresses.
const maxAnyPort = 20

// Listen opens port on all addresses, or on none. "localhost" is 127.0.0.1 and ::1, of which one may
// fail, as for kubectl; otherwise an address is an IP. With port 0 all get the same free one.
func Listen(addresses []string, port int) ([]net.Listener, error) {
	return open(addresses, port, func(family, address string) (net.Listener, int, error) {
		ln, err := net.Listen("tcp"+family, address)
		if err != nil {
			return nil, 0, err
		}
		return ln, ln.Addr().(*net.TCPAddr).Port, nil
	})
}

// ListenUDP is Listen for datagrams.
func ListenUDP(addresses []string, port int) ([]*net.UDPConn, error) {
	return open(addresses, port, func(family, address string) (*net.UDPConn, int, error) {
		c, err := net.ListenPacket("udp"+family, address)
		if err != nil {
			return nil, 0, err
		}
		return c.(*net.UDPConn), c.LocalAddr().(*net.UDPAddr).Port, nil
	})
}

// listenFunc opens "IP:PORT" of a family, "4" or "6", and returns the port.
type listenFunc[T io.Closer] func(family, address string) (T, int, error)

func open[T io.Closer](addresses []string, port int, listen listenFunc[T]) ([]T, error) {
	if len(addresses) == 0 {
		return nil, hint.Newf(hint.Usage, "give IP addresses or localhost", "no address to listen on")
	}
	for try := 1; ; try++ {
		lns, err := openAll(addresses, port, listen)
		if port != 0 || err == nil || !errors.Is(err, syscall.EADDRINUSE) || try == maxAnyPort {
			return lns, err
		}
	}
}

func openAll[T io.Closer](addresses []string, port int, listen listenFunc[T]) (lns []T, err error) {
	defer func() {
		if err != nil {
			closeAll(lns)
			lns = nil
		}
	}()
	one := func(ip string) error {
		family := "4" // never both: 0.0.0.0 would listen on IPv6 too
		if strings.Contains(ip, ":") {
			family = "6"
		}
		ln, number, err := listen(family, net.JoinHostPort(ip, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		port = number
		lns = append(lns, ln)
		return nil
	}
	for _, address := range addresses {
		if address != "localhost" {
			if _, err := netip.ParseAddr(address); err != nil {
				return lns, hint.Newf(hint.Usage, "give IP addresses or localhost", "address %q is not an IP address", address)
			}
			if err := one(address); err != nil {
				return lns, listenError(err)
			}
			continue
		}
		err4, err6 := one("127.0.0.1"), one("::1")
		// One family may be missing on this machine. A port that is taken in one family is no such
		// case: half of the programs that connect to localhost would reach somebody else.
		for _, err := range []error{err4, err6} {
			if err != nil && (errors.Is(err, syscall.EADDRINUSE) || err4 != nil && err6 != nil) {
				return lns, listenError(err)
			}
		}
	}
	return lns, nil
}

func listenError(err error) error {
	var op *net.OpError
	at := ""
	if errors.As(err, &op) && op.Addr != nil {
		at = op.Addr.String()
	}
	another := "give another local port, such as 18080:80, or :80 for any free one"
	if strings.HasSuffix(at, ":18080") {
		another = strings.Replace(another, "18080", "28080", 1)
	}
	return NotOpened(err, another, "check --address")
}

// NotOpened is why a local address is not opened, of a net.OpError, in plain words and with who has it where that can be seen. another is the next step where it takes
// another port, and check where it takes another address.
func NotOpened(err error, another, check string) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Addr == nil {
		return hint.New(hint.Other, fmt.Errorf("listen: %w", err), another)
	}
	words, next := "local address "+op.Addr.String(), another
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		words += " is in use" + holder(op.Addr)
	case errors.Is(err, syscall.EACCES):
		words, next = words+": not allowed", "ports below 1024 need root; "+another
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		words, next = words+" is not one of this machine", check
	default:
		return hint.New(hint.Other, fmt.Errorf("listen: %w", err), another)
	}
	return hint.New(hint.Other, hint.Worded(words, err), next)
}

func closeAll[T io.Closer](lns []T) {
	for _, ln := range lns {
		_ = ln.Close()
	}
}
