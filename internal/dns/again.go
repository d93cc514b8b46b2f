package dns

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// confirmEvery is how often an answer is asked for again that may be given past its lifetime, while nobody waits for it. It is given until
	// maxUnconfirmed after it was asked for: two such questions may be lost.
	confirmEvery   = 30 * time.Second
	maxUnconfirmed = 3 * confirmEvery

	// confirmFor is for how long after its last client.
	confirmFor = 10 * time.Minute

	// maxConfirmed of them are asked for in each confirmPause. That is enough for some 120 questions: of a name A and AAAA are two, and
	// each name that a short one may stand for has its own.
	confirmPause = time.Second
	maxConfirmed = 4

	// usualLife is the longest that the usual resolver of a cluster remembers an answer, unless it has given a longer lifetime, and hearTime
	// what it needs to hear of a change, and what the caches before it add: of a lifetime each makes 5 s if there is less left.
	usualLife = 30 * time.Second
	hearTime  = 15 * time.Second
)

// object is the Service whose objects make the answers about a name.
type object struct{ namespace, service string }

// objectOf is the one of SERVICE.NS.svc, HOST.SERVICE.NS.svc and _PORT._PROTO.SERVICE.NS.svc. What old resolvers take for "all" has none.
func (c *cache) objectOf(name string) (o object, ok bool) {
	labels := dns.SplitDomainName(strings.ToLower(name))
	n := len(labels) - dns.CountLabel(c.zone)
	if !dns.IsSubDomain(c.zone, name) || n < 3 || n > 5 || labels[n-1] != "svc" {
		return o, false
	}
	o = object{labels[n-2], labels[n-3]}
	all := []string{"*", "any"}
	return o, !slices.Contains(all, o.namespace) && !slices.Contains(all, o.service)
}

// decided tells whether m says no more than o's objects can: an alias, and an SRV record of an ExternalName, lead to what others say.
func (c *cache) decided(m *dns.Msg, o object) bool {
	others := func(name string) bool {
		of, ok := c.objectOf(name)
		return !ok || of != o
	}
	return !slices.ContainsFunc(said(m), func(rr dns.RR) bool {
		srv, ok := rr.(*dns.SRV)
		return others(rr.Header().Name) || ok && others(srv.Target) || !ok && !isAddress(rr)
	})
}

// said are the records of m without OPT, which speaks of the hop behind us.
func said(m *dns.Msg) []dns.RR {
	return slices.DeleteFunc(slices.Concat(m.Answer, m.Extra), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
}

// remember completes e, the answer to q, which was sent at asked, with what it takes to give it again. old is the answer before it, if
// any. mu is held.
func (c *cache) remember(e, old entry, q *dns.Msg, asked time.Time) entry {
	e.asked, e.tried, e.used = asked, asked, asked
	if c.unchanged == nil {
		return e
	}
	o, ok := c.objectOf(q.Question[0].Name)
	if !ok || !c.decided(e.m, o) {
		return e
	}
	if life := e.until.Sub(e.stored); life > max(c.longest[o.namespace], usualLife) {
		if len(c.longest) >= maxCached {
			clear(c.longest) // their next answers tell
		}
		c.longest[o.namespace] = life
	}
	since, ok := c.unchanged(o.namespace, o.service, e.m.Rcode == dns.RcodeSuccess)
	e.q, e.object = q, o
	if old.q != nil {
		e.used, e.odd = old.used, old.odd
		if ok && c.settled(o, old.asked, since) && !same(old.m, e.m) {
			e.odd = e.stored
		}
	}
	return e
}

// settled tells whether an answer about o that was asked for then can be no older than a change at since.
func (c *cache) settled(o object, asked, since time.Time) bool {
	return !asked.Before(since.Add(max(c.longest[o.namespace], usualLife) + hearTime))
}

// again tells whether e, whose lifetime is over, is still what the cluster says. mu is held.
func (c *cache) again(e entry, now time.Time) bool {
	// By both clocks: one stands still while the laptop sleeps.
	if e.q == nil || now.Sub(e.asked) > maxUnconfirmed || now.Round(0).Sub(e.asked.Round(0)) > maxUnconfirmed {
		return false
	}
	since, ok := c.unchanged(e.object.namespace, e.object.service, false)
	return ok && c.settled(e.object, e.asked, since) && since.After(e.odd)
}

// confirm asks again for what may be given past its lifetime, until ctx is done.
func (c *cache) confirm(ctx context.Context) {
	tick := time.NewTicker(confirmPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, q := range c.due(time.Now()) {
			short, cancel := context.WithTimeout(ctx, expansionTime) // a short name's client may come to wait for it
			_, _ = c.fetch(short, key(q), q)                         // what failed is not confirmed
			cancel()
		}
	}
}

// due are the questions that are to be asked again now, those first that a client had last: of too many some are then asked in time, and
// not each too late.
func (c *cache) due(now time.Time) (questions []*dns.Msg) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var due []entry
	for _, e := range c.entries {
		if e.q == nil || now.Sub(e.used) > confirmFor {
			continue
		}
		since, ok := c.unchanged(e.object.namespace, e.object.service, false)
		if ok && since.After(e.odd) && (now.Sub(e.tried) >= confirmEvery || c.settled(e.object, now, since) && !c.settled(e.object, e.tried, since)) {
			due = append(due, e)
		}
	}
	slices.SortFunc(due, func(a, b entry) int { return b.used.Compare(a.used) })
	for _, e := range due[:min(maxConfirmed, len(due))] {
		e.tried = now
		c.entries[key(e.q)] = e
		questions = append(questions, e.q)
	}
	return questions
}

// same tells whether two answers say the same, without order, lifetimes, and the SOA record's time.
func same(a, b *dns.Msg) bool {
	left := said(b)
	for _, rr := range said(a) {
		i := slices.IndexFunc(left, func(other dns.RR) bool { return dns.IsDuplicate(rr, other) })
		if i < 0 {
			return false
		}
		left = slices.Delete(left, i, i+1)
	}
	return len(left) == 0 && a.Rcode == b.Rcode
}
