package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// MaxPACServices is how many Services a proxy auto-config file names. Chromium reads 1 MiB of one, which these fill by half.
	MaxPACServices = 5000
	// pacFresh is how long the Services are not asked for again: what asks for the file may be any program, and often.
	pacFresh = 10 * time.Second
	// pacTime bounds that question. After it the file has the Services known so far.
	pacTime = 5 * time.Second
)

// PAC makes a proxy auto-config file, by which a browser uses the proxy for the cluster's names and addresses and goes directly to
// all else. Set the fields before use.
type PAC struct {
	// Namespace is the one in which the proxy's pod is: its Services have short names.
	Namespace string
	// Services asks for those that there are now, at most MaxPACServices.
	Services func(ctx context.Context) ([]Service, error)
	// Ranges are addresses of the cluster. Those of IPv6 are left out: browsers do not agree on how to tell.
	Ranges []netip.Prefix
	// Direct are hosts to which the browser goes directly in spite of Ranges, such as the API server.
	Direct []string

	mu    sync.Mutex
	known []Service
	asked time.Time
	err   error // what the last question met
}

// Service is what the file has to know of one.
type Service struct {
	Name, Namespace string
	Headless        bool // its pods may have names of their own, below its
}

// Refresh asks for the Services, unless that was done just now. With the error the file has those that were known before.
func (p *PAC) Refresh(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.asked.IsZero() && time.Since(p.asked) < pacFresh {
		return p.err
	}
	ctx, cancel := context.WithTimeout(ctx, pacTime)
	defer cancel()
	list, err := p.Services(ctx)
	if err == nil {
		p.known = list
	}
	p.asked, p.err = time.Now(), err
	return err
}

// file is the file for the proxy at address, in a cluster of that domain.
func (p *PAC) file(address netip.AddrPort, domain string) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	data := pacData{
		Proxy:    "PROXY " + address.String(),
		Names:    map[string]bool{"kubernetes.default": true},
		Headless: map[string]bool{},
		// Not all below domain: that may be one of the internet's, of which the cluster has only these.
		Suffixes: []string{".svc", ".svc." + domain, ".pod." + domain},
		Ranges:   [][2]string{},
		Direct:   map[string]bool{"localhost": true}, // by whatever name a Service goes
	}
	for _, s := range p.known {
		full := s.Name + "." + s.Namespace
		data.Names[full] = true
		if s.Namespace == p.Namespace {
			data.Names[s.Name] = true
		}
		if s.Headless {
			data.Headless[full] = true
		}
	}
	for _, r := range p.Ranges {
		if r.Addr().Is4() {
			mask := net.IP(net.CIDRMask(r.Bits(), r.Addr().BitLen()))
			data.Ranges = append(data.Ranges, [2]string{r.Masked().Addr().String(), mask.String()})
		}
	}
	for _, host := range p.Direct {
		data.Direct[host] = true
	}
	text, err := json.MarshalIndent(data, "", " ")
	if err != nil {
		panic(err) // of strings and booleans there is none
	}
	return bytes.Replace([]byte(pacText), []byte("DATA"), text, 1)
}

// pacData is what the file's program knows: JSON is also JavaScript.
type pacData struct {
	Proxy    string          `json:"proxy"`
	Names    map[string]bool `json:"names"`
	Headless map[string]bool `json:"headless"`
	Suffixes []string        `json:"suffixes"`
	Ranges   [][2]string     `json:"ranges"` // network and mask
	Direct   map[string]bool `json:"direct"`
}

// pacText resolves no names: what a name of the internet resolves to must not lead it into the cluster, and browsers wait for it.
// There is no way past the proxy for the cluster's names: without it they are nobody's.
const pacText = `// bridge connect --pac: the cluster's names and addresses by its proxy, all others directly.
var cluster = DATA;

function FindProxyForURL(url, host) {
  return ofCluster(host.toLowerCase().replace(/\.$/, "")) ? cluster.proxy : "DIRECT";
}

function ofCluster(host) {
  var i, dot = host.indexOf(".");
  if (has(cluster.direct, host)) {
    return false;
  }
  if (/^\d+\.\d+\.\d+\.\d+$/.test(host)) {
    for (i = 0; i < cluster.ranges.length; i++) {
      if (isInNet(host, cluster.ranges[i][0], cluster.ranges[i][1])) {
        return true;
      }
    }
    return false;
  }
  for (i = 0; i < cluster.suffixes.length; i++) {
    if (dnsDomainIs(host, cluster.suffixes[i])) {
      return true;
    }
  }
  return has(cluster.names, host) || dot > 0 && has(cluster.headless, host.slice(dot + 1));
}

function has(set, host) {
  return Object.prototype.hasOwnProperty.call(set, host);
}
`
