//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxIdle is what one laptop may ask for: it fits the descriptors of a usual hard limit (20,000, of
	// which a relay needs two each) and the 8,192 that bridge connect takes.
	maxIdle = 8000
	// maxDials bounds a measure of connections: every one leaves a port in TIME_WAIT.
	maxDials = 4000
	// maxSamples bounds a measure of echoes.
	maxSamples = 50_000
	// slack is what a connection may take longer than its order before it counts as hanging.
	slack = drainTimeout + 5*time.Second

	// patience is how long an echo may take beside a connection that is not read.
	patience = 3 * time.Second

	dialers = 16 // connections made at once
	many    = 32 // connections that are busy at once
	beside  = 8  // bulk connections beside an echo
)

// pace is how long a measure takes.
type pace struct {
	warm time.Duration // until it counts: TCP and windows grow
	time time.Duration // counted
}

func (p pace) order(what byte) order { return order{what, p.warm, p.time} }

// figure is one number that a measure yields.
type figure struct {
	name string
	unit string
	less bool // less is better
}

// measure yields its figures for a route, NaN where there is none.
type measure struct {
	figures []figure
	// near is measured without a delay only: the delay would add nothing but itself.
	near bool
	// harms is whether the route may not be as before; it is opened anew.
	harms bool
	run   func(r *route, p pace) ([]float64, error)
}

const (
	perSecond = "/s"
	megabytes = "MB/s"
	micros    = "µs"
	millis    = "ms"
	yes       = "yes/no"
)

// measures in the order of the table. idle and the measures that open the route are in run.go.
var measures = []measure{
	{figures: []figure{{"bulk up, 1 connection", megabytes, false}, {"CPU of the laptop's side, up", "ms/MB", true}, {"CPU of the cluster, up", "ms/MB", true}}, run: bulkAndCPU(orderUp)},
	{figures: []figure{{"bulk down, 1 connection", megabytes, false}, {"CPU of the laptop's side, down", "ms/MB", true}, {"CPU of the cluster, down", "ms/MB", true}}, run: bulkAndCPU(orderDown)},
	{figures: []figure{{"bulk up, 32 connections", megabytes, false}}, run: bulkOnly(orderUp, many)},
	{figures: []figure{{"bulk down, 32 connections", megabytes, false}}, run: bulkOnly(orderDown, many)},
	{figures: []figure{{"128 B requests, 32 connections", perSecond, false}}, run: requests},
	{figures: []figure{{"idle echo, p50", micros, true}, {"idle echo, p99", micros, true}}, run: idleEcho},
	{figures: []figure{{"echo beside 8 uploads, p50", micros, true}, {"echo beside 8 uploads, p99", micros, true}, {"the 8 uploads", megabytes, false}}, run: echoBeside(orderUp)},
	{figures: []figure{{"echo beside 8 downloads, p50", micros, true}, {"echo beside 8 downloads, p99", micros, true}, {"the 8 downloads", megabytes, false}}, run: echoBeside(orderDown)},
	{figures: []figure{{"connections (dial, 1 echo, close)", perSecond, false}}, run: connections},
	{figures: []figure{{"one connection never read: others answer", yes, false}, {"one connection never read: bulk down beside it", megabytes, false}}, near: true, harms: true, run: unread},
}

var farMeasures = slices.DeleteFunc(slices.Clone(measures), func(m measure) bool { return m.near })

var nan = math.NaN()

// connect dials, gives an order and waits for its answer. The connection has a deadline: nothing here
// waits for ever.
func connect(r *route, o order) (net.Conn, error) {
	return connectWithin(r, o, 2*o.warm+o.time+slack)
}

// connectWithin is connect with a deadline for the whole life of the connection.
func connectWithin(r *route, o order, life time.Duration) (net.Conn, error) {
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(life))
	if _, err = c.Write(o.bytes()); err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c, nil
}

// connectAll makes n connections at once.
func connectAll(r *route, o order, n int) (conns []net.Conn, err error) {
	var mu sync.Mutex
	_, err = each(n, func(int) (float64, error) {
		c, err := connect(r, o)
		if err == nil {
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
		return 0, err
	})
	if err != nil {
		closeAll(conns)
	}
	return conns, err
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// each runs f for 0 to n-1 at once and adds up what the calls return.
func each(n int, f func(i int) (float64, error)) (sum float64, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			v, e := f(i)
			mu.Lock()
			defer mu.Unlock()
			sum += v
			err = errors.Join(err, e)
		})
	}
	wg.Wait()
	return sum, first(err)
}

// first is the first of joined errors: 32 connections that fail say the same.
func first(err error) error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return first(j.Unwrap()[0])
	}
	return err
}

// bulk is the rate, in MB/s, at which the receivers of n connections got bytes.
func bulk(r *route, p pace, what byte, n int) (float64, error) {
	conns, err := bulkConns(r, p, what, n)
	if err != nil {
		return 0, err
	}
	return bulkOn(conns, p, what)
}

func bulkConns(r *route, p pace, what byte, n int) ([]net.Conn, error) {
	o := p.order(what)
	if what == orderDown {
		// The server's time begins later than ours, by half a round trip, and must not end before it.
		o.warm += 200 * time.Millisecond
	}
	return connectAll(r, o, n)
}

// bulkOn starts the clock of all conns at once. It closes them.
func bulkOn(conns []net.Conn, p pace, what byte) (float64, error) {
	defer closeAll(conns)
	begin := time.Now().Add(p.warm)
	bytes, err := each(len(conns), func(i int) (float64, error) {
		c := conns[i]
		if _, err := c.Write([]byte{0}); err != nil {
			return 0, fmt.Errorf("start: %w", err)
		}
		if what == orderUp {
			return upload(c)
		}
		return download(c, begin, begin.Add(p.time))
	})
	return bytes / 1e6 / p.time.Seconds(), err
}

// upload returns how much the server counted. When it returns, nothing is under way any more that could
// be in the way of the next measure.
func upload(c net.Conn) (float64, error) {
	var counted atomic.Bool
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		for buf := make([]byte, chunk); !counted.Load(); {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
		_, _ = c.Write([]byte{mark})
	}()
	var count, arrived [8]byte
	_, err := io.ReadFull(c, count[:])
	if err != nil {
		_ = c.SetWriteDeadline(time.Now())
	}
	counted.Store(true)
	<-wrote
	if err == nil {
		_, err = io.ReadFull(c, arrived[:1])
	}
	if err != nil {
		return 0, fmt.Errorf("upload: %w", err)
	}
	return float64(binary.BigEndian.Uint64(count[:])), nil
}

// download counts what comes between begin and end, and reads all there is.
func download(c net.Conn, begin, end time.Time) (float64, error) {
	count := 0
	for buf := make([]byte, chunk); ; {
		n, err := c.Read(buf)
		if err != nil {
			return 0, fmt.Errorf("download: %w", err)
		}
		if now := time.Now(); now.After(begin) && now.Before(end) {
			count += n
		}
		if buf[n-1] == mark {
			return float64(count), nil
		}
	}
}

func bulkOnly(what byte, n int) func(*route, pace) ([]float64, error) {
	return func(r *route, p pace) ([]float64, error) {
		rate, err := bulk(r, p, what, n)
		return []float64{rate}, err
	}
}

// bulkAndCPU adds how much time the programs between and the whole cluster used for each MB, within the
// counted time.
func bulkAndCPU(what byte) func(*route, pace) ([]float64, error) {
	return func(r *route, p pace) ([]float64, error) {
		conns, err := bulkConns(r, p, what, 1)
		if err != nil {
			return nil, err
		}
		var used, cluster time.Duration
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(p.warm)
			before, clusterBefore := cpuTime(r.pids()), clusterTime()
			time.Sleep(p.time)
			used, cluster = cpuTime(r.pids())-before, clusterTime()-clusterBefore
		})
		rate, err := bulkOn(conns, p, what)
		wg.Wait()
		if !r.variant.bridges {
			return []float64{rate, nan, nan}, err
		}
		perMB := func(d time.Duration) float64 { return d.Seconds() * 1e3 / (rate * p.time.Seconds()) }
		return []float64{rate, perMB(used), perMB(cluster)}, err
	}
}

// pingPong sends requests on c, one after the other, until end. It returns how long each took.
func pingPong(c net.Conn, end time.Time) (took []time.Duration, err error) {
	buf := make([]byte, request)
	for time.Now().Before(end) && len(took) < maxSamples {
		began := time.Now()
		if _, err := c.Write(buf); err != nil {
			return took, fmt.Errorf("request: %w", err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return took, fmt.Errorf("answer: %w", err)
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// requests is how many small requests a second many connections do together.
func requests(r *route, p pace) ([]float64, error) {
	conns, err := connectAll(r, p.order(orderEcho), many)
	if err != nil {
		return nil, err
	}
	defer closeAll(conns)
	begin := time.Now().Add(p.warm)
	n, err := each(many, func(i int) (float64, error) {
		if _, err := pingPong(conns[i], begin); err != nil {
			return 0, err
		}
		took, err := pingPong(conns[i], begin.Add(p.time))
		return float64(len(took)), err
	})
	return []float64{n / p.time.Seconds()}, err
}

// quantiles are p50 and p99, in µs.
func quantiles(took []time.Duration) (p50, p99 float64) {
	if len(took) == 0 {
		return nan, nan
	}
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[int(q*float64(len(took)-1)+0.5)].Nanoseconds()) / 1e3
	}
	return at(.5), at(.99)
}

func idleEcho(r *route, p pace) ([]float64, error) {
	c, err := connect(r, p.order(orderEcho))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := pingPong(c, time.Now().Add(p.warm)); err != nil {
		return nil, err
	}
	took, err := pingPong(c, time.Now().Add(p.time))
	p50, p99 := quantiles(took)
	return []float64{p50, p99}, err
}

// echoBeside has one connection echo while others carry bulk, and is the rate of these, too.
func echoBeside(what byte) func(*route, pace) ([]float64, error) {
	return func(r *route, p pace) ([]float64, error) {
		c, err := connect(r, p.order(orderEcho))
		if err != nil {
			return nil, err
		}
		defer c.Close()
		conns, err := bulkConns(r, p, what, beside)
		if err != nil {
			return nil, err
		}
		var rate float64
		var bulkErr error
		var wg sync.WaitGroup
		wg.Go(func() { rate, bulkErr = bulkOn(conns, p, what) })
		time.Sleep(p.warm)
		took, err := pingPong(c, time.Now().Add(p.time))
		wg.Wait()
		p50, p99 := quantiles(took)
		return []float64{p50, p99, rate}, errors.Join(err, bulkErr)
	}
}

// once dials, has a byte back, and closes.
func once(r *route) error {
	c, err := connect(r, order{what: orderEcho})
	if err != nil {
		return err
	}
	return c.Close()
}

// echoes sends a byte and has it back, within a time.
func echoes(c net.Conn, within time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(within))
	b := []byte{'x'}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

func connections(r *route, p pace) ([]float64, error) {
	began := time.Now()
	end := began.Add(p.time)
	var made atomic.Int64
	_, err := each(dialers, func(int) (float64, error) {
		for time.Now().Before(end) && made.Add(1) <= maxDials {
			if err := once(r); err != nil {
				return 0, fmt.Errorf("connection: %w", err)
			}
		}
		return 0, nil
	})
	return []float64{float64(min(made.Load(), maxDials)) / time.Since(began).Seconds()}, err
}

// unread leaves a download unread, and sees whether a connection from before and a new one still echo.
func unread(r *route, p pace) ([]float64, error) {
	before, err := connect(r, p.order(orderEcho))
	if err != nil {
		return nil, err
	}
	defer before.Close()
	const size = 30 * time.Second // more than any buffer on the way holds
	stuck, err := connect(r, order{orderDown, 0, size})
	if err != nil {
		return nil, err
	}
	defer stuck.Close()
	if _, err := stuck.Write([]byte{0}); err != nil {
		return nil, err
	}
	time.Sleep(p.warm + p.time)
	if echoes(before, patience) != nil {
		return []float64{0, 0}, nil
	}
	after, err := connectWithin(r, order{what: orderEcho}, patience)
	if err != nil {
		return []float64{0, 0}, nil //nolint:nilerr // that it fails is the answer
	}
	after.Close()
	rate, err := bulk(r, p, orderDown, 1)
	return []float64{1, rate}, err
}

// idle holds n connections, each after an echo, and is what they cost, in KiB each: on the laptop and
// in the pod between, NaN where there is none.
func idle(ctx context.Context, r *route, n int) ([]float64, error) {
	if r.variant.idle > 0 {
		n = min(n, r.variant.idle)
	}
	far := podProcesses(r.pod)
	if r.pod == "" {
		far = nil
	}
	laptop, pod := memory(r.pids()), memory(far)
	var mu sync.Mutex
	var conns []net.Conn
	defer func() { closeAll(conns) }()
	var asked atomic.Int64
	_, err := each(dialers, func(int) (float64, error) {
		for ctx.Err() == nil && asked.Add(1) <= int64(n) {
			c, err := connect(r, order{orderEcho, 0, time.Minute})
			if err != nil {
				return 0, err
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
		return 0, nil
	})
	if err != nil {
		return nil, fmt.Errorf("after %d connections: %w", len(conns), err)
	}
	perConn := func(bytes int64) float64 { return float64(bytes) / 1024 / float64(n) }
	figures := []float64{float64(n), perConn(memory(r.pids()) - laptop), nan}
	if far != nil {
		figures[2] = perConn(memory(far) - pod)
	}
	return figures, nil
}
