//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// streams is how many busy connections go through each tunnel.
const streams = 32

// busy is "sample busy", somewhere.
type busy struct {
	t      *testing.T
	orders *io.PipeWriter
	out    *lines
	done   chan error
	asked  int
}

// newBusy starts it and waits until all connections carry.
func newBusy(t *testing.T, run func(ctx context.Context, in io.Reader, out io.Writer) error) *busy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	in, orders := io.Pipe()
	b := &busy{t: t, orders: orders, out: newLines(), done: make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		b.done <- run(ctx, in, b.out)
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		_ = in.Close()
		<-ended
	})
	if _, err := b.out.awaitOr("started", ended); err != nil {
		select {
		case why := <-b.done:
			t.Fatal(err, why)
		default:
			t.Fatal(err)
		}
	}
	return b
}

// busyOut has the laptop's connections, through a connect, to orders in the cluster.
func (w *world) busyOut(kubeconfig string) (*process, *busy) {
	w.t.Helper()
	c := w.connect(kubeconfig, nil)
	proxy := c.socks()
	return c, newBusy(w.t, func(ctx context.Context, in io.Reader, out io.Writer) error {
		cmd := exec.CommandContext(ctx, s.sample, "busy", "--address", "orders."+w.ns+":7000", "--via", proxy, "--connections", fmt.Sprint(streams))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, out
		cmd.WaitDelay = time.Second // when it fails, nobody ends its input
		return cmd.Run()
	})
}

// busyIn has a pod's connections, through a swap, to orders on the laptop.
func (w *world) busyIn(kubeconfig string) (*process, *busy) {
	w.t.Helper()
	// The tunnel is looked at here, also after a longer silence than a swap is left alone.
	c := w.bridgeAs(kubeconfig, nil, append([]string{"swap", "deployment", "orders", "--restore-after", "1h"}, localOrders(w.t)...)...)
	c.says(swapped)
	return c, newBusy(w.t, func(ctx context.Context, in io.Reader, out io.Writer) error {
		return w.exec(ctx, in, out, "busy", "--address", "orders:7000", "--connections", fmt.Sprint(streams))
	})
}

// pulse and busyReport are as test/sample prints them.
type pulse struct{ Carry, Reset int }

type busyReport struct {
	Exact, Reset int
	Wrong        []string
	Bytes        int64
}

// pulse asks which connections carry, and says how long after since the last of them did so.
func (b *busy) pulse(since time.Time) (p pulse, slowest time.Duration) {
	b.t.Helper()
	b.asked++
	name := fmt.Sprintf("pulse %d", b.asked)
	if _, err := fmt.Fprintln(b.orders, name); err != nil {
		b.t.Fatal(err)
	}
	line := b.out.await(b.t, fmt.Sprintf("%q", name))
	slowest = time.Since(since)
	if err := json.Unmarshal([]byte(line), &p); err != nil {
		b.t.Fatalf("%q: %v", line, err)
	}
	return p, slowest
}

// carries is pulse where every connection must have lived on.
func (b *busy) carries(since time.Time) time.Duration {
	b.t.Helper()
	p, slowest := b.pulse(since)
	if p.Carry != streams {
		b.t.Fatalf("%d of %d connections carry, %d were reset", p.Carry, streams, p.Reset)
	}
	return slowest
}

// end ends the connections.
func (b *busy) end() (r busyReport) {
	b.t.Helper()
	_ = b.orders.Close()
	select {
	case err := <-b.done:
		if err != nil {
			b.t.Fatal(err, b.out.all())
		}
	case <-time.After(2 * patience):
		b.t.Fatal("the connections do not end")
	}
	all := b.out.all()
	if err := json.Unmarshal([]byte(all[len(all)-1]), &r); err != nil {
		b.t.Fatalf("%q: %v", all, err)
	}
	return r
}

// exact ends the connections, each of which must have kept every byte in its place.
func (b *busy) exact() {
	b.t.Helper()
	r := b.end()
	if r.Exact != streams {
		b.t.Errorf("%+v, want %d exact", r, streams)
	}
	b.t.Logf("%d connections, %d MiB each way: every one exact", r.Exact, r.Bytes>>20)
}

// gone ends what is left of the connections, each of which must have been reset.
func (b *busy) gone() {
	b.t.Helper()
	if r := b.end(); r.Reset != streams {
		b.t.Errorf("%+v, want %d reset", r, streams)
	}
}

// answers waits until orders answers through a connect's proxy, and says how long after since.
func (w *world) answers(proxy string, since time.Time) time.Duration {
	w.t.Helper()
	w.await("an answer through the proxy", func() bool {
		return exec.Command("curl", "-sS", "--max-time", "5", "-x", "http://"+proxy, "http://orders."+w.ns).Run() == nil
	})
	return time.Since(since)
}

// resets counts the connections that orders' own pods saw reset.
func (w *world) resets() (n int) {
	w.t.Helper()
	for _, pod := range w.pods("app=orders") {
		log, err := s.client.CoreV1().Pods(w.ns).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		n += strings.Count(string(log), "connection reset by peer")
	}
	return n
}

// fault is what happens to a tunnel, and what is promised of it.
type fault struct {
	what    string
	becomes string        // of open connections
	within  time.Duration // the next good byte of the last of them
	from    string        // what that is counted from

	mu   sync.Mutex
	took []time.Duration
}

const (
	goOn     = "go on"
	areReset = "are reset"
	areNew   = "new ones"

	// slack is for a busy machine: a promise is tested with so much of it.
	slack = 3
)

// The faults, as docs/recovery.md has them.
var (
	cutOut      = &fault{what: "carrier cut, connections from the laptop", becomes: goOn, within: 5 * time.Second, from: "the cut"}
	cutIn       = &fault{what: "carrier cut, connections from the cluster", becomes: goOn, within: 5 * time.Second, from: "the cut"}
	hole10      = &fault{what: "all packets lost for 10 s", becomes: goOn, within: 15 * time.Second, from: "the first that passes"}
	hole40      = &fault{what: "all packets lost for 40 s", becomes: goOn, within: 15 * time.Second, from: "the first that passes"}
	hole90      = &fault{what: "all packets lost for 90 s", becomes: areReset, within: 80 * time.Second, from: "the first that is lost"}
	hole90After = &fault{what: "afterwards", becomes: areNew, within: 15 * time.Second, from: "the first that passes"}
	frozen      = &fault{what: "laptop frozen for 20 s", becomes: goOn, within: 10 * time.Second, from: "its waking"}
	frozenLong  = &fault{what: "laptop frozen for " + soak("10 minutes", "90 s"), becomes: areReset, within: 10 * time.Second, from: "its waking"}
	frozenAfter = &fault{what: "afterwards", becomes: areNew, within: 10 * time.Second, from: "its waking"}
	podGone     = &fault{what: "proxy's pod deleted", becomes: areReset, within: 5 * time.Second, from: "the deletion"}
	podAfter    = &fault{what: "afterwards", becomes: areNew, within: 20 * time.Second, from: "the deletion"}
	apiServer   = &fault{what: "API server killed", becomes: goOn, within: 10 * time.Second, from: "its being back"}
	kubelet     = &fault{what: "kubelet killed", becomes: goOn, within: 10 * time.Second, from: "its being back"}
	containerd  = &fault{what: "container runtime killed", becomes: goOn, within: 10 * time.Second, from: "its being back"}
	newAddress  = &fault{what: "laptop's address changed", becomes: goOn, within: 10 * time.Second, from: "the change"}
	loss1       = &fault{what: "1 % of packets lost each way", becomes: goOn, within: 5 * time.Second, from: "any moment"}
	loss5       = &fault{what: "5 % of packets lost each way", becomes: goOn, within: 10 * time.Second, from: "any moment"}

	faults = []*fault{
		cutOut, cutIn, hole10, hole40, hole90, hole90After, frozen, frozenLong, frozenAfter, podGone, podAfter,
		apiServer, kubelet, containerd, newAddress, loss1, loss5,
	}
)

// over notes how long it took.
func (f *fault) over(t *testing.T, took time.Duration) {
	t.Helper()
	t.Logf("%s: %v after %s", f.what, took.Round(time.Millisecond), f.from)
	if took > slack*f.within {
		t.Errorf("%s: %v after %s, want %v (and tested with %d times that)", f.what, took, f.from, f.within, slack)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.took = append(f.took, took)
}

// reportRecoveries prints how long each fault took that was met. The long forms, when all went well, are what
// docs/recovery.md has.
func reportRecoveries(code int) error {
	met := slices.DeleteFunc(slices.Clone(faults), func(f *fault) bool { return len(f.took) == 0 })
	if len(met) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString("| fault | times | open connections | next good byte, median | worst | promised | counted from |\n| --- | ---: | --- | ---: | ---: | ---: | --- |\n")
	for _, f := range met {
		slices.Sort(f.took)
		fmt.Fprintf(&b, "| %s | %d | %s | %.1f s | %.1f s | %.0f s | %s |\n", f.what, len(f.took), f.becomes,
			f.took[len(f.took)/2].Seconds(), f.took[len(f.took)-1].Seconds(), f.within.Seconds(), f.from)
	}
	fmt.Print(b.String())
	if !soak(true, false) || code != 0 || len(met) < len(faults) {
		return nil
	}
	return os.WriteFile(filepath.Join(s.root, "docs", "recovery.md"), []byte(fmt.Sprintf(recoveryText, streams, slack)+b.String()), 0o644)
}

const recoveryText = `# How long a tunnel takes to recover

Written by ` + "`make soak`" + `, from tests with a real Kubernetes on one machine. Under each fault lie %d connections that are busy both
ways; the time is that of the last of them. Connections that go on have lost, doubled or reordered no byte in any of these
runs: the SHA-256 of each is compared at its end. The tests, also the short ones of ` + "`make test`" + `, fail when a time is more than
%d times what is promised.

`

// embedded skips a test that needs the laptop's namespace.
func embedded(t *testing.T) {
	t.Helper()
	if !s.embedded {
		t.Skip("the embedded cluster's laptop only can be treated so")
	}
}

func TestHealCarrierCut(t *testing.T) {
	t.Parallel()
	cuts := soak(100, 20)
	for _, way := range []struct {
		fault *fault
		begin func(w *world, kubeconfig string) (*process, *busy)
	}{{cutOut, (*world).busyOut}, {cutIn, (*world).busyIn}} {
		t.Run(way.fault.what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			p := newPath(t)
			_, b := way.begin(w, p.kubeconfig)
			for range cuts {
				at := time.Now()
				p.cut()
				way.fault.over(t, b.carries(at))
			}
			b.exact()
		})
	}
}

// A path that swallows everything, without a word. Within the resume window connections do not notice; at its
// end all are reset, on both ends, while the path is still dead.
func TestHealBlackHole(t *testing.T) {
	embedded(t)
	t.Parallel()
	for _, c := range []struct {
		fault *fault
		hole  time.Duration
		begin func(w *world, kubeconfig string) (*process, *busy)
	}{{hole10, 10 * time.Second, (*world).busyOut}, {hole40, 40 * time.Second, (*world).busyIn}, {hole90, 90 * time.Second, (*world).busyOut}} {
		t.Run(c.fault.what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			p := newPath(t)
			bridge, b := c.begin(w, p.kubeconfig)
			p.swallow()
			begin := time.Now()
			end := time.After(c.hole)
			if c.fault == hole90 {
				if got, _ := b.pulse(begin); got.Carry > 0 {
					t.Errorf("%d connections carry over a dead path", got.Carry)
				}
				w.await("the resets in the cluster", func() bool { return w.resets() >= streams })
				c.fault.over(t, time.Since(begin))
				b.gone()
				select {
				case <-end:
					t.Error("the path was not dead any more")
				default:
				}
			}
			if c.hole > 15*time.Second { // of silence are dead
				bridge.says("tunnel: degraded (no answer for ")
				bridge.says("tunnel: reconnecting (")
			}
			<-end
			p.pass()
			if c.fault == hole90 {
				hole90After.over(t, w.answers(bridge.socks(), time.Now()))
				return
			}
			c.fault.over(t, b.carries(time.Now()))
			b.exact()
		})
	}
}

func TestHealFrozenLaptop(t *testing.T) {
	t.Parallel()
	for f, sleep := range map[*fault]time.Duration{frozen: 20 * time.Second, frozenLong: soak(10*time.Minute, 90*time.Second)} {
		t.Run(f.what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			bridge, b := w.busyOut(s.kubeconfig)
			bridge.signal(syscall.SIGSTOP)
			end := time.After(sleep)
			if f == frozenLong {
				w.await("the resets in the cluster", func() bool { return w.resets() >= streams })
			}
			<-end
			bridge.signal(syscall.SIGCONT)
			awake := time.Now()
			if f == frozen {
				f.over(t, b.carries(awake))
				b.exact()
				return
			}
			got, took := b.pulse(awake)
			if got.Carry > 0 {
				t.Errorf("%d connections carry, of a session that is over", got.Carry)
			}
			f.over(t, took)
			frozenAfter.over(t, w.answers(bridge.socks(), awake))
			b.gone()
		})
	}
}

func TestHealProxyPodDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	bridge, b := w.busyOut(s.kubeconfig)
	old := w.pods("bridge.internal/proxy")[0]
	at := time.Now()
	if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), old.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, took := b.pulse(at)
	podGone.over(t, took)
	podAfter.over(t, w.answers(bridge.socks(), at))
	w.await("the resets in the cluster", func() bool { return w.resets() >= streams })
	b.gone()
}

// What strikes the whole cluster, one after the other, under connections that live through all of it.
func TestHealCluster(t *testing.T) {
	embedded(t)
	// Not parallel: it strikes every test.
	w := newWorld(t).withOrders()
	bridge, b := w.busyOut(s.kubeconfig)
	beside := newWorld(t).withOrders()
	snapshot := beside.snapshot()
	held := beside.swap()
	for _, c := range []struct {
		fault     *fault
		component string
	}{{apiServer, "kube-apiserver"}, {kubelet, "kubelet-node1"}, {containerd, "containerd-node1"}} {
		if err := s.cluster(t.Context(), "restart", c.component); err != nil {
			t.Fatal(err)
		}
		c.fault.over(t, b.carries(time.Now()))
		beside.answersSteadily("laptop")
	}
	held.says("tunnel: reconnecting")
	held.says("tunnel: ready, after ")
	held.terminate()
	beside.assertGivenBack(snapshot)
	l := newLink(t)
	for _, change := range []func(){l.move, l.back} {
		change()
		newAddress.over(t, b.carries(time.Now()))
	}

	const lost = "tunnel: reconnecting"
	before := bridge.said(lost)
	defer func() { _ = s.cluster(context.WithoutCancel(t.Context()), "netem", "off") }()
	for f, loss := range map[*fault]string{loss1: "loss=1%", loss5: "loss=5%"} {
		if err := s.cluster(t.Context(), "netem", loss); err != nil {
			t.Fatal(err)
		}
		for range soak(100, 10) {
			f.over(t, b.carries(time.Now()))
		}
	}
	if n := bridge.said(lost) - before; n > 0 {
		t.Errorf("%d carriers were lost with some packets", n)
	}
	b.exact()
}

// link is the laptop's own.
type link struct {
	t        *testing.T
	api      string // the address at the other end
	old, new string // the laptop's
}

func newLink(t *testing.T) *link {
	t.Helper()
	api, err := url.Parse(s.config.Host)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", api.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	old := c.LocalAddr().(*net.UDPAddr).IP.String()
	l := &link{t: t, api: api.Hostname(), old: old + "/30", new: "192.0.2.2/32"} // an address for documentation
	l.ip("-n", clusterName+"-node1", "route", "replace", l.new, "dev", "laptop")
	t.Cleanup(l.back)
	return l
}

func (l *link) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// move gives the laptop another address, as another network would: what was sent from the old one is lost.
func (l *link) move() { l.replace(l.old, l.new) }

func (l *link) back() { l.replace(l.new, l.old) }

func (l *link) replace(from, to string) {
	l.t.Helper()
	source, _, _ := strings.Cut(to, "/")
	l.ip("addr", "replace", to, "dev", "cluster")
	_ = exec.Command("ip", "addr", "del", from, "dev", "cluster").Run() // the clean-up does it again
	l.ip("route", "replace", l.api, "dev", "cluster", "src", source)
	l.ip("route", "replace", "default", "via", l.api, "dev", "cluster", "src", source)
}
