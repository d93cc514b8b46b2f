package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// MaxPACServices is how many Services of one namespace, and of all, a proxy auto-config file names.
	MaxPACServices = 5000
	// maxPACFile bounds the file, in bytes: of 1 MiB or more Chromium takes nothing, and goes directly to everything.
	maxPACFile = 900 << 10
	// pacFresh is how long the Services are not asked for again: what asks for the file may be any program, and often.
	pacFresh = 10 * time.Second
	// pacTime bounds that question. After it the file has the Services known so far.
	pacTime = 5 * time.Second
	// pacPatience is how long a browser waits for an answer where Services are known already: all its requests, the internet's too,
	// wait for the file.
	pacPatience = time.Second
)

// PAC makes a proxy auto-config file, by which a browser uses the proxy for the cluster's names and addresses and goes directly to
// all else. Set the fields before use.
type PAC struct {
	// Namespace is the one in which the proxy's pod is: its Services have short names.
	Namespace string
	// Services asks for those that there are now in a namespace, or in all for "": MaxPACServices at most, and more tells that
	// there are others.
	Services func(ctx context.Context, namespace string) (list []Service, more bool, err error)
	// Ranges asks for addresses of the cluster; those known before stay beside what is not whole. The field may be nil. Those of IPv6 are left out: browsers do
	// not agree on how to tell.
	Ranges func(ctx context.Context) (list []netip.Prefix, whole bool)
	// Direct are hosts to which the browser goes directly in spite of Ranges, such as the API server.
	Direct []string
	// Log gets what the questions met, at level debug. Nil means none.
	Log *slog.Logger

	mu          sync.Mutex
	own, others []Service // of Namespace, and of all other namespaces
	ranges      []netip.Prefix
	asking      chan struct{} // closed with the answer; nil while nobody asks
	asked       time.Time
	err         error // what the last question met
	wg          sync.WaitGroup
}

// Service is what the file has to know of one.
type Service struct {
	Name, Namespace string
	Headless        bool // its pods may have names of their own, below its
}

// Refresh asks for the Services, unless that was done just now, and waits for the answer. ctx ends the question. The error says why
// not even those of Namespace are known anew; with it the file has those that were known before.
func (p *PAC) Refresh(ctx context.Context) error {
	if asking, _ := p.ask(ctx); asking != nil {
		<-asking
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// await has the Services asked for within ctx, unless that was done just now, and waits for the answer as long as a browser may:
// a client that is gone ends its waiting, not the question.
func (p *PAC) await(ctx, client context.Context) {
	asking, known := p.ask(ctx)
	if asking == nil {
		return
	}
	patience := pacTime
	if known {
		patience = pacPatience
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-asking:
	case <-timer.C:
	case <-client.Done():
	}
}

// ask begins to ask, if it is time to. asking is closed with the answer, and nil when there is no need to wait for one; known tells
// whether there are some already.
func (p *PAC) ask(ctx context.Context) (asking <-chan struct{}, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known = len(p.own)+len(p.others) > 0
	if p.asking == nil {
		if !p.asked.IsZero() && time.Since(p.asked) < pacFresh {
			return nil, known
		}
		p.asking = make(chan struct{})
		p.wg.Go(func() { p.question(ctx) })
	}
	return p.asking, known
}

// wait returns when no question is on its way any more, for which the ctx of ask has to end.
func (p *PAC) wait() { p.wg.Wait() }

// question asks for the Services of Namespace, which is quick and what most may, and in the rest of its time for all others; and for the ranges.
func (p *PAC) question(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, pacTime)
	defer cancel()
	var ranges []netip.Prefix
	var whole bool
	var beside sync.WaitGroup
	if p.Ranges != nil {
		beside.Go(func() { ranges, whole = p.Ranges(ctx) })
	}
	own, _, err := p.Services(ctx, p.Namespace)
	if err == nil {
		p.mu.Lock()
		p.own = own
		p.mu.Unlock()
	}
	var others []Service
	var more bool
	wide := err
	if err == nil {
		others, more, wide = p.Services(ctx, "")
	}
	if wide != nil && p.Log != nil {
		p.Log.Debug("services for the proxy auto-config file", "error", wide)
	}
	beside.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !whole {
		ranges = append(ranges, slices.DeleteFunc(p.ranges, func(r netip.Prefix) bool { return slices.Contains(ranges, r) })...)
	}
	p.ranges = ranges
	switch {
	case more:
		p.others = nil // some of them would be a matter of luck
	case wide == nil:
		p.others = slices.DeleteFunc(others, func(s Service) bool { return s.Namespace == p.Namespace })
	}
	p.asked, p.err = time.Now(), err
	close(p.asking)
	p.asking = nil
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
	for _, host := range p.Direct {
		data.Direct[host] = true
	}
	const perRange, perName = 60, 12 // bytes, with a name's quotes, "true" and line
	room := maxPACFile
	for _, r := range p.ranges {
		if r.Addr().Is4() && room > maxPACFile/2 {
			mask := net.IP(net.CIDRMask(r.Bits(), r.Addr().BitLen()))
			data.Ranges = append(data.Ranges, [2]string{r.Masked().Addr().String(), mask.String()})
			room -= perRange
		}
	}
	for _, s := range slices.Concat(p.own, p.others) {
		names := []string{s.Name + "." + s.Namespace}
		if s.Namespace == p.Namespace {
			names = append(names, s.Name)
		}
		for _, name := range names {
			room -= 2 * (perName + len(name)) // as if it were headless
		}
		if room < 0 {
			break
		}
		for _, name := range names {
			data.Names[name] = true
			if s.Headless {
				data.Headless[name] = true
			}
		}
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
// There is no way past the proxy for the cluster's names: a browser that has the file has an error without the proxy. One that
// cannot get the file goes directly to everything, which nothing in here can change.
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
