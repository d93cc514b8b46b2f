//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// condition is what the laptop's link suffers, and what is compared there. netem acts on each direction: a round trip has twice the
// delay.
type condition struct {
	name  string
	what  string
	netem []string
	warm  time.Duration // at most as long as the time
	time  float64       // times the usual

	variants []*variant
	measures []measure
	base     []string // the variants that the others are compared with: the better of them
	life     bool     // how they start, and what they cost, is measured too
}

var conditions = []condition{
	{"no delay", "The laptop is next to the cluster.", []string{"off"}, 300 * time.Millisecond, 1, variants, measures, kubectls, true},
	{"20 ms", "A round trip of 20 ms, 1 Gbit/s each way.", []string{"delay=10ms", "rate=1gbit"}, time.Second, 1, farVariants, farMeasures, kubectls, false},
	{"80 ms", "A round trip of 80 ms, 1 Gbit/s each way.", []string{"delay=40ms", "rate=1gbit"}, 1500 * time.Millisecond, 1.5, farVariants, farMeasures, kubectls, false},
	{"20 ms, 1 % lost", "A round trip of 20 ms, 1 Gbit/s, and 1 % of the packets are lost each way.", []string{"delay=10ms", "rate=1gbit", "loss=1%"}, time.Second, 2, farVariants, farMeasures, kubectls, false},
	{"entrances", "How a program's connections get into the tunnel: by a local port of forward's, to which the others are compared, by SOCKS5, in a network of its own, and by a device for all of the laptop.", []string{"off"}, 300 * time.Millisecond, 1, entrances, entranceMeasures, []string{throughProxy.name}, false},
	{"entrances alone", "The same without a tunnel: to a server on the laptop, compared to going there directly.", []string{"off"}, 300 * time.Millisecond, 1, alone, entranceMeasures, []string{onLoopback.name}, false},
	{"names", "The DNS server of bridge connect: what it costs to ask, compared to a bare echo of the question on the loopback, the least that is possible.", []string{"off"}, 300 * time.Millisecond, 1, resolvers, nameMeasures, []string{bareEcho}, false},
	{"names, 80 ms", "The same with a round trip of 80 ms, 1 Gbit/s each way, compared to a bare echo there.", []string{"delay=40ms", "rate=1gbit"}, time.Second, 2, farResolvers, nameMeasures, []string{linkEcho}, false},
	{"standby", "In the cluster, from the node to the pods: what it costs callers that a swap in mode standby lies before the original, when that is who answers.", []string{"off"}, 300 * time.Millisecond, 1, standbyVariants, standbyMeasures, []string{direct}, false},
}

// kubectls are what the ways from the laptop are compared with.
var kubectls = []string{kubectlWebSocket, kubectlSPDY}

func (c condition) title() string { return strings.ToUpper(c.name[:1]) + c.name[1:] }

// wants is whether a condition is measured: quick takes the first, and the one that has everything.
func (o options) wants(c condition) bool {
	return matches(o.only, c.name) && (!o.quick || c.netem[0] == "off" || len(c.netem) == 3)
}

// measures is whether m is wanted, and way whether v is.
func (o options) measures(m measure) bool {
	return slices.ContainsFunc(m.figures, func(f figure) bool { return matches(o.what, f.name) })
}
func (o options) way(v *variant) bool { return matches(o.ways, v.name) }

func matches(expression, name string) bool { return regexp.MustCompile(expression).MatchString(name) }

// The measures that open the route themselves, or end it.
var (
	startFigures     = []figure{{"from exec to the first byte back", millis, true}}
	idleFigures      = []figure{{"idle connections held", "", false}, {"memory of one, on the laptop", "KiB", true}, {"memory of one, in the pod between", "KiB", true}}
	reconnectFigures = []figure{{"from a cut carrier to the next echo", millis, true}}
)

const (
	// reconnectTimeout is how long a cut carrier may take to come back before it counts as gone.
	reconnectTimeout = 10 * time.Second
	idleTimeout      = time.Minute
)

// key is one cell of the document.
type key struct{ condition, variant, figure string }

// results has a value for each round in which there was one.
type results struct {
	values map[key][]float64
	failed map[key][]string
}

func (s *results) add(c condition, v *variant, figures []figure, values []float64, err error) {
	for i, f := range figures {
		k := key{c.name, v.name, f.name}
		if err != nil {
			s.failed[k] = append(s.failed[k], err.Error())
		} else {
			s.values[k] = append(s.values[k], values[i])
		}
	}
	if err != nil {
		progress("  %s: %s: %v", v.name, figures[0].name, err)
	}
}

func progress(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }

// runner goes through everything. routes are open between measures.
type runner struct {
	w *world
	o options
	results
	routes map[*variant]*route
}

// inside measures, and writes the document.
func inside(ctx context.Context, o options) (err error) {
	w, err := openWorld(ctx)
	if err != nil {
		return err
	}
	r := &runner{w: w, o: o, results: results{map[key][]float64{}, map[key][]string{}}, routes: map[*variant]*route{}}
	began, load := time.Now(), loadAverage()
	defer func() {
		r.closeAll()
		err = errors.Join(err, w.cluster(context.WithoutCancel(ctx), "netem", "off"))
	}()
	for _, c := range conditions {
		if !o.wants(c) {
			continue
		}
		if err := r.condition(ctx, c); err != nil {
			return err
		}
	}
	if len(r.values) == 0 {
		return errors.New("nothing was measured: what -only, -measures and -variants say fits no name")
	}
	if o.quick {
		_, err := fmt.Println(document(&r.results, o, began, load, ""))
		return err
	}
	before, err := os.ReadFile(o.out)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	text := document(&r.results, o, began, load, string(before))
	return os.WriteFile(o.out, []byte(text), 0o644)
}

func (r *runner) condition(ctx context.Context, c condition) error {
	// What a connection has learnt of the link would be wrong.
	r.closeAll()
	if err := r.w.cluster(ctx, "netem", c.netem...); err != nil {
		return err
	}
	took := time.Duration(c.time * float64(r.o.time))
	p := pace{min(c.warm, took), took}
	for round := range r.o.rounds {
		progress("%s: %s, round %d of %d", time.Now().Format(time.TimeOnly), c.name, round+1, r.o.rounds)
		for _, m := range c.measures {
			if !r.o.measures(m) {
				continue
			}
			for _, v := range c.variants {
				if err := ctx.Err(); err != nil {
					return err
				}
				if r.o.way(v) {
					r.one(ctx, c, v, m, p)
				}
			}
		}
		if !c.life || r.o.what != "" {
			continue
		}
		for _, v := range c.variants {
			if err := ctx.Err(); err != nil {
				return err
			}
			if v.bridges && r.o.way(v) {
				r.life(ctx, c, v, round == 0)
			}
		}
	}
	return nil
}

// one measures one variant, with a route that is as new if that may have been harmed.
func (r *runner) one(ctx context.Context, c condition, v *variant, m measure, p pace) {
	var values []float64
	rt, err := r.route(ctx, v)
	if err == nil {
		values, err = m.run(rt, p)
	}
	r.add(c, v, m.figures, values, err)
	if err != nil || m.harms {
		r.close(v)
	}
}

// life measures how a variant starts, holds idle connections (once is enough) and takes a cut carrier.
func (r *runner) life(ctx context.Context, c condition, v *variant, withIdle bool) {
	r.close(v)
	began := time.Now()
	rt, err := r.route(ctx, v)
	if err == nil {
		err = once(rt)
	}
	r.add(c, v, startFigures, []float64{time.Since(began).Seconds() * 1e3}, err)
	if err != nil {
		return
	}
	if withIdle {
		bounded, cancel := context.WithTimeout(ctx, idleTimeout)
		values, err := idle(bounded, rt, r.o.idle)
		cancel()
		r.add(c, v, idleFigures, values, err)
		r.close(v)
		if rt, err = r.route(ctx, v); err != nil {
			return
		}
	}
	if !v.far {
		return
	}
	took, err := reconnect(ctx, rt)
	r.add(c, v, reconnectFigures, []float64{took}, err)
	r.close(v)
}

// reconnect is how long after its connections were cut a variant echoes again, in ms; infinite when it
// does not.
func reconnect(ctx context.Context, rt *route) (float64, error) {
	held, err := connect(rt, order{orderEcho, 0, reconnectTimeout})
	if err != nil {
		return 0, err
	}
	defer held.Close()
	if err := cutConnections(ctx, rt.pids()); err != nil {
		return 0, err
	}
	for began := time.Now(); time.Since(began) < reconnectTimeout && rt.alive(); time.Sleep(time.Millisecond) {
		if once(rt) == nil {
			return time.Since(began).Seconds() * 1e3, nil
		}
	}
	return infinite, nil
}

func (r *runner) route(ctx context.Context, v *variant) (*route, error) {
	if rt := r.routes[v]; rt != nil {
		if rt.alive() {
			return rt, nil
		}
		progress("  %s had ended: %s", v.name, rt.processes[len(rt.processes)-1].tail())
		r.close(v)
	}
	rt := &route{variant: v}
	if err := v.open(ctx, r.w, rt); err != nil {
		rt.close()
		return nil, err
	}
	r.routes[v] = rt
	return rt, nil
}

func (r *runner) close(v *variant) {
	if rt := r.routes[v]; rt != nil {
		rt.close()
		delete(r.routes, v)
	}
}

func (r *runner) closeAll() {
	for v := range r.routes {
		r.close(v)
	}
}
