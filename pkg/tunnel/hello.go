package tunnel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Protocol is the version of what the two ends say to each other. It is raised when an older end could no longer understand what
// follows the hello.
const Protocol = 2

const (
	helloMagic = "BRDG"
	helloFixed = 8 // magic, version, length
	// maxHello bounds the JSON: a resolver's settings and a version are a few hundred bytes.
	maxHello = 16 << 10
)

// Info is what the pod tells the laptop at the start of each session.
type Info struct {
	Version     string   `json:"version"`               // of the pod's software
	Nameservers []string `json:"nameservers,omitempty"` // from the pod's resolv.conf
	Search      []string `json:"search,omitempty"`
	Ndots       int      `json:"ndots,omitempty"`
}

// VersionError says that the two ends speak different versions of the tunnel's protocol.
type VersionError struct {
	Laptop, Pod               int    // protocol versions
	LaptopVersion, PodVersion string // software versions
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("the laptop's bridge (%s) speaks version %d of the tunnel protocol, the pod's proxy (%s) version %d",
		orUnknown(e.LaptopVersion), e.Laptop, orUnknown(e.PodVersion), e.Pod)
}

// Advice says which end to upgrade, and how.
func (e *VersionError) Advice() string {
	if e.Laptop < e.Pod {
		return fmt.Sprintf("the laptop is the older side: upgrade bridge on the laptop to %s", orUnknown(e.PodVersion))
	}
	return fmt.Sprintf("the pod is the older side: stop this command and start it again, so that bridge starts a proxy of its own version; "+
		"when a proxy image is named (--proxy-image or BRIDGE_PROXY_IMAGE), name the one of %s", orUnknown(e.LaptopVersion))
}

func orUnknown(version string) string {
	if version == "" {
		return "unknown version"
	}
	return version
}

// hello is one end's first message, SPEC.md section 2.
type hello struct {
	protocol int
	info     Info // of the laptop only Version counts
}

func appendHello(b []byte, h hello) ([]byte, error) {
	body, err := json.Marshal(h.info)
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	if len(body) > maxHello {
		return nil, fmt.Errorf("hello: %d bytes, at most %d", len(body), maxHello)
	}
	b = append(b, helloMagic...)
	b = binary.BigEndian.AppendUint16(b, uint16(h.protocol))
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...), nil
}

func readHello(r io.Reader) (hello, error) {
	var fixed [helloFixed]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return hello{}, fmt.Errorf("hello: %w", err)
	}
	if string(fixed[:4]) != helloMagic {
		return hello{}, errors.New("hello: not a bridge")
	}
	h := hello{protocol: int(binary.BigEndian.Uint16(fixed[4:]))}
	size := int(binary.BigEndian.Uint16(fixed[6:]))
	if size > maxHello {
		return hello{}, fmt.Errorf("hello: %d bytes, at most %d", size, maxHello)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return hello{}, fmt.Errorf("hello: %w", err)
	}
	if err := json.Unmarshal(body, &h.info); err != nil {
		return hello{}, fmt.Errorf("hello: %w", err)
	}
	h.info.Version = cleanText(h.info.Version)
	return h, nil
}
