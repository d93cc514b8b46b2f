package dns

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// maxCached is how many answers are kept, and maxCachedRecords how long one may be: a few MiB.
	maxCached        = 2048
	maxCachedRecords = 128

	// maxLifetime bounds what a resolver may have us remember.
	maxLifetime = time.Hour

	// evictionSample is how many entries are looked at for an expired one when the cache is full.
	evictionSample = 16
)

// cache remembers answers for as long as their records say (RFC 2308 for empty ones), and asks a
// question once that many ask at the same time. Errors and SERVFAIL are not remembered. What is known to be unchanged
// it gives again (again.go).
type cache struct {
	next      func(context.Context, *dns.Msg) (*dns.Msg, error)
	zone      string
	unchanged Unchanged // nil: nothing is given again
	flight    flight[fetched]

	mu      sync.Mutex
	entries map[string]entry
	longest map[string]time.Duration // by namespace, of the lifetimes of what may be given again, where it is longer than usualLife
}

type entry struct {
	m      *dns.Msg // shared, never changed
	stored time.Time
	until  time.Time
	used   time.Time // by a client

	// What it takes to give it again.
	q      *dns.Msg // the question, or nil: it is not
	object object   // whose answer it is
	asked  time.Time
	tried  time.Time // to ask anew
	odd    time.Time // when it had become another one and the object had not
}

func (e entry) expired(now time.Time) bool { return !now.Before(e.until) }

func newCache(next func(context.Context, *dns.Msg) (*dns.Msg, error)) *cache {
	return &cache{next: next, entries: make(map[string]entry), longest: make(map[string]time.Duration)}
}

// key is what an answer depends on.
func key(q *dns.Msg) string {
	var flags byte
	if q.CheckingDisabled {
		flags |= 1
	}
	if q.AuthenticatedData {
		flags |= 2
	}
	if q.RecursionDesired {
		flags |= 4
	}
	if opt := q.IsEdns0(); opt != nil && opt.Do() {
		flags |= 8
	}
	t := q.Question[0].Qtype
	return strings.ToLower(q.Question[0].Name) + string([]byte{byte(t >> 8), byte(t), flags})
}

// fetched is what one flight brings to all who wait for it.
type fetched struct {
	m     *dns.Msg
	until time.Time
}

// ask answers q; the answer is the caller's to change. It may be remembered until then, which may be past.
func (c *cache) ask(ctx context.Context, q *dns.Msg) (m *dns.Msg, until time.Time, err error) {
	k := key(q)
	m, until = c.get(k)
	if m == nil {
		f, err := c.fetch(ctx, k, q)
		if err != nil {
			return nil, time.Time{}, err
		}
		m, until = f.m.Copy(), f.until
	}
	spell(m, q.Question[0].Name)
	shuffle(m.Answer)
	return m, until, nil
}

// spell writes name in m in this client's case, not the first one's.
func spell(m *dns.Msg, name string) {
	for _, rr := range m.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, name) {
			h.Name = name
		}
	}
}

// fetch asks next, once when many do. The answer is shared.
func (c *cache) fetch(ctx context.Context, k string, q *dns.Msg) (fetched, error) {
	return c.flight.do(ctx, k, func() (fetched, error) {
		asked := time.Now()
		m, err := c.next(ctx, q)
		if err != nil {
			return fetched{}, err
		}
		return fetched{m, c.put(k, q, m, asked)}, nil
	})
}

// flight asks a question once that many ask at the same time. What it brings is shared.
type flight[T any] struct{ group singleflight.Group }

// do asks, or waits for who does already, and asks itself when that one had no time left.
func (f *flight[T]) do(ctx context.Context, k string, ask func() (T, error)) (T, error) {
	asked := false
	once := func() (any, error) {
		asked = true
		return ask()
	}
	v, err, _ := f.group.Do(k, once)
	if err != nil && !asked && ctx.Err() == nil {
		v, err, _ = f.group.Do(k, once)
	}
	if err != nil {
		var none T
		return none, err
	}
	return v.(T), nil
}

// shuffle gives the addresses another order, so that clients spread over them as they do in a pod. Aliases stay before them.
func shuffle(rrs []dns.RR) {
	first := 0
	for first < len(rrs) && !isAddress(rrs[first]) {
		first++
	}
	rrs = rrs[first:]
	if addressesOf(rrs) == len(rrs) {
		rand.Shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
	}
}

// get returns a copy with its lifetimes shortened by its age, or nil.
func (c *cache) get(k string) (*dns.Msg, time.Time) {
	now := time.Now()
	c.mu.Lock()
	e, ok := c.entries[k]
	if ok {
		e.used = now
		if e.expired(now) {
			if ok = c.again(e, now); ok {
				// As if it had been asked for now, but for no longer than that may be believed.
				life, left := e.until.Sub(e.stored), e.asked.Add(maxUnconfirmed).Sub(now)
				e.until = now.Add(min(life, left))
				e.stored = e.until.Add(-life)
			}
		}
		c.entries[k] = e // also what is not to be given: the next answer is compared with it
	}
	c.mu.Unlock()
	if !ok {
		return nil, time.Time{}
	}
	m := e.m.Copy()
	age := uint32(now.Sub(e.stored).Seconds())
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(age, h.Ttl)
			}
		}
	}
	return m, e.until
}

// put remembers m, the answer to q, which was sent at asked, and returns until when: the zero time when it does not.
func (c *cache) put(k string, q, m *dns.Msg, asked time.Time) time.Time {
	life := lifetime(m)
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.entries[k]
	if life <= 0 || m.Truncated || len(m.Answer)+len(m.Ns)+len(m.Extra) > maxCachedRecords {
		if ok {
			old.asked = time.Time{} // it has its lifetime, and is not given again
			c.entries[k] = old
		}
		return time.Time{}
	}
	now := time.Now()
	if !ok && len(c.entries) >= maxCached {
		evict(c.entries, now)
	}
	e := c.remember(entry{m: m, stored: now, until: now.Add(life)}, old, q, asked)
	c.entries[k] = e
	return e.until
}

// evict removes one entry, an expired one if a few random ones hold one.
func evict[E interface{ expired(now time.Time) bool }](entries map[string]E, now time.Time) {
	var victim string
	n := 0
	for k, e := range entries {
		victim = k
		if n++; n == evictionSample || e.expired(now) {
			break
		}
	}
	delete(entries, victim)
}

// lifetime is how long m may be remembered; 0 means not at all.
func lifetime(m *dns.Msg) time.Duration {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	var ttl uint32
	known := false
	shorten := func(t uint32) {
		if !known || t < ttl {
			ttl, known = t, true
		}
	}
	for _, rr := range m.Answer {
		shorten(rr.Header().Ttl)
	}
	for _, rr := range m.Ns { // with an empty answer, also at the end of a CNAME, says for how long
		if soa, ok := rr.(*dns.SOA); ok {
			shorten(min(soa.Hdr.Ttl, soa.Minttl))
		}
	}
	return min(time.Duration(ttl)*time.Second, maxLifetime)
}
