//go:build linux

package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

var infinite = math.Inf(1)

// document is docs/benchmarks.md. load is the machine's before the first measure. Of conditions that were not measured it has what
// before has, an earlier document.
func document(s *results, o options, began time.Time, load, before string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Benchmarks

Written by `+"`make bench`"+` (test/bench) on a machine of %d cores (%s/%s, %s). Everything runs on that one machine: a real Kubernetes (test/cluster), and the laptop as a network
namespace that reaches the API server and nothing else. So the laptop, the API server, the kubelet, the container runtime and the pods share its cores, and absolute figures say little. Ratios
of figures from the same run do.

**A cell** is the ratio to kubectl port-forward, the better of its two protocols, then the median of the rounds and in brackets
the best of them. Where more is better (rates) a ratio above 1 is better than kubectl; rows marked ↓ are better below 1. A dash is "does not apply".
The last five tables have no kubectl: there the ratio is to their first column.

`, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	b.WriteString("| variant | what it is |\n| --- | --- |\n")
	var told []*variant
	for _, v := range slices.Concat(variants, entrances, alone, resolvers, farResolvers, standbyVariants) {
		if slices.Contains(told, v) {
			continue
		}
		told = append(told, v)
		fmt.Fprintf(&b, "| %s | %s |\n", v.name, v.what)
	}
	for _, c := range conditions {
		if o.wants(c) {
			fmt.Fprintf(&b, "\n## %s\n\n%s Measured on %s, %s, with a load of %s before.\n\n", c.title(), c.what, began.Format("2 January 2006"), rounds(o.rounds), load)
			table(&b, s, c)
		} else {
			b.WriteString(section(before, c.title()))
		}
	}
	fmt.Fprintf(&b, `
## How it is measured

- The conditions one after the other; in each, round by round, measure by measure, the variants right after each other for %s
  each (longer with a delay), after a start that is not counted.
- Every variant is real programs: kubectl %s, and bridge as it is built for users. All end in the same kind of server; but for
  loopback, relays, link and the entrances alone it is the same pod. All are dialled at a port of the laptop's loopback, bridge connect by SOCKS5; connect -- CMD
  is dialled in CMD's network, connect --tun at the pod's address, a TUN device alone in a network of its own, and those of mode standby from the node's network at the pod's address, as kube-proxy has a caller's pod do.
- Bulk is counted by the receiver and by its clock, within the time. "Up" is from the laptop. MB are 10^6 bytes.
- Requests and echoes are %d bytes there and back, one at a time on a connection. Connections are made by %d at once.
- CPU of the laptop's side is user and system time of the programs between; that of the cluster is all of its control group: the API
  server, the kubelet, the runtime, the pods (the server, too), and what the control plane does anyhow.
- Names are asked for in datagrams, one at a time on a socket, and each answer is looked at. A cached name is a Service's, asked for before; a new one
  was asked for by nobody before, and does not exist. Bridge's server answers from what it knows, or asks the cluster's resolver through the tunnel.
- "Others answer": beside a download that nobody reads, a connection from before and a new one echo within %s.
- Idle connections: the growth of resident memory for each, after one byte each way. Variants that use the API server and the
  kubelet for each connection, and the relays, are asked for %d only.
- A cut carrier: every TCP connection of the program to the API server is reset (ss -K) while it is idle, and a new
  connection is tried until it echoes; "never" is not within %s, or the program ended.
- A delay, the rate and losses are on the link between the laptop and the node, in both directions (cluster netem). Its
  queue is long, so that senders fill it until their windows end: the link itself has a delay beside bulk that is more than its own.

## What is not measured

- More than one machine, other networks than this emulation, several laptops at once, managed clusters' load balancers.
- Open connections over a lost carrier, dead paths without a reset, sleep and wake: those are tests, not figures.
- Traffic from the cluster to the laptop (what a swap takes in time, requests and memory is in [swap-figures.md](swap-figures.md)), UDP.
- Memory of the API server, the kubelet and the runtime.
`, o.time, "1.35", request, dialers, patience, fewIdle, reconnectTimeout)
	failures(&b, s)
	return b.String()
}

func rounds(n int) string {
	if n == 1 {
		return "one round"
	}
	return strconv.Itoa(n) + " rounds"
}

// section is what doc has under the heading title, with it; empty when it has none.
func section(doc, title string) string {
	_, text, found := strings.Cut(doc, "\n## "+title+"\n")
	if !found {
		return ""
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return "\n## " + title + "\n" + text
}

// table has a row for each figure and a column for each variant.
func table(b *strings.Builder, s *results, c condition) {
	b.WriteString("| |")
	for _, v := range c.variants {
		fmt.Fprintf(b, " %s |", v.name)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(c.variants)) + "\n")
	for _, f := range c.figures() {
		if !slices.ContainsFunc(c.variants, func(v *variant) bool { return s.has(key{c.name, v.name, f.name}) }) {
			continue
		}
		arrow := ""
		if f.less {
			arrow = " ↓"
		}
		unit := ""
		if f.unit != "" {
			unit = ", " + f.unit
		}
		fmt.Fprintf(b, "| %s%s%s |", f.name, unit, arrow)
		base := s.base(c, f)
		for _, v := range c.variants {
			fmt.Fprintf(b, " %s |", s.cell(key{c.name, v.name, f.name}, f, base))
		}
		b.WriteString("\n")
	}
}

func (c condition) figures() (all []figure) {
	for _, m := range c.measures {
		all = append(all, m.figures...)
	}
	return slices.Concat(all, startFigures, idleFigures, reconnectFigures)
}

func (s *results) has(k key) bool { return len(s.values[k]) > 0 || len(s.failed[k]) > 0 }

// base is the best median of the variants that c compares with; NaN when there is none.
func (s *results) base(c condition, f figure) float64 {
	best := nan
	for _, name := range c.base {
		v := median(s.values[key{c.name, name, f.name}])
		if math.IsNaN(best) || f.less && v < best || !f.less && v > best {
			best = v
		}
	}
	return best
}

func (s *results) cell(k key, f figure, base float64) string {
	values := s.values[k]
	if len(values) == 0 {
		if len(s.failed[k]) > 0 {
			return "fails"
		}
		return "–"
	}
	mid := median(values)
	switch {
	case math.IsNaN(mid):
		return "–"
	case math.IsInf(mid, 0):
		return "never"
	case f.unit == yes:
		if slices.Min(values) == 1 {
			return "yes"
		}
		return "**no**"
	case f.unit == "":
		return number(mid)
	}
	best := slices.Max(values)
	if f.less {
		best = slices.Min(values)
	}
	text := number(mid)
	if len(values) > 1 {
		text += " (" + number(best) + ")"
	}
	if len(s.failed[k]) > 0 {
		text += fmt.Sprintf(", fails in %d", len(s.failed[k]))
	}
	if ratio := mid / base; base > 0 && !math.IsInf(ratio, 0) && !math.IsInf(base, 0) && !math.IsNaN(ratio) {
		return fmt.Sprintf("**%s** · %s", number(ratio), text)
	}
	return text
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return nan
	}
	v := slices.Sorted(slices.Values(values))
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

// number has two or three digits that mean something.
func number(v float64) string {
	switch {
	case math.Abs(v) >= 10_000:
		n := strconv.FormatInt(int64(v), 10)
		for i := len(n) - 3; i > 0; i -= 3 {
			n = n[:i] + "," + n[i:]
		}
		return n
	case math.Abs(v) >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case math.Abs(v) >= 0.1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// failures lists what went wrong, so that no dash hides it.
func failures(b *strings.Builder, s *results) {
	if len(s.failed) == 0 {
		return
	}
	b.WriteString("\n## What failed in this run\n\n| condition | variant | measure | times | the last error |\n| --- | --- | --- | --- | --- |\n")
	var keys []key
	for k := range s.failed {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	for _, k := range keys {
		errs := s.failed[k]
		last := strings.ReplaceAll(strings.ReplaceAll(errs[len(errs)-1], "\n", " "), "|", "/")
		fmt.Fprintf(b, "| %s | %s | %s | %d | %s |\n", k.condition, k.variant, k.figure, len(errs), last)
	}
}
