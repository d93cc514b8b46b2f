//go:build unix

package swap

import (
	"context"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

// piped is a listener without a network, so that the clock of what goes through it can be synctest's.
type piped struct {
	conns chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func (p *piped) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

func (p *piped) Close() error {
	p.once.Do(func() { close(p.ended) })
	return nil
}

func (p *piped) Addr() net.Addr { return &net.TCPAddr{} }

func (p *piped) dial(ctx context.Context) (net.Conn, string, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, "pod", nil
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

// bubble runs f under a fake clock. yamux keeps timers in a package-wide pool, and a timer must not
// move between a bubble and the world: two collections empty every sync.Pool.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	empty := func() { runtime.GC(); runtime.GC() }
	empty()
	defer empty() // also when f fails, which ends this
	synctest.Test(t, f)
}

// Of two proxies one may learn of who joins long after the other, or never: the share goes on by the one, whichever that is, and it is said.
func TestOneProxyKnowsOfAJoiner(t *testing.T) {
	for name, knowing := range map[string]int{"the first": 0, "the second": 1} {
		t.Run(name, func(t *testing.T) { bubble(t, func(t *testing.T) { joinsOne(t, knowing) }) })
	}
}

func joinsOne(t *testing.T, knowing int) {
	_, bob, learn := joiner(t)
	learn(knowing)
	close(bob.answers)
	if err := bob.takeUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(bob.said, func(line string) bool { return strings.HasPrefix(line, "note: one proxy alone knows of this machine") }) {
		t.Errorf("said %q", bob.said)
	}
	time.Sleep(10 * time.Minute)
	if state, _ := bob.lines.watch(); state.Phase != tunnel.Degraded || bob.lines.main() != bob.lines.clients[knowing] {
		t.Errorf("by one of two: %v", state)
	}
	learn(1 - knowing)
	if err := bob.lines.waitReady(t.Context()); err != nil {
		t.Error(err)
	}
}

// A second proxy that never comes is waited for, said, and done without.
func TestSecondProxyThatNeverComes(t *testing.T) { bubble(t, secondProxyNeverComes) }

func secondProxyNeverComes(t *testing.T) {
	k, ada, learn := joiner(t)
	learn(0)
	ada.Session.joins = false
	if err := k.Clientset.CoreV1().Pods("shop").Delete(t.Context(), "proxy-b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := ada.awaitProxies(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < secondTimeout || took > secondTimeout+5*time.Second {
		t.Errorf("took %v", took)
	}
	if !slices.ContainsFunc(ada.said, func(line string) bool {
		return strings.HasPrefix(line, "note: one proxy alone is there, and callers depend on it: ")
	}) {
		t.Errorf("said %q", ada.said)
	}
}

// The proxies' pods are patched for as long as a proxy may take to learn of a share, and not for as long as CMD takes to answer.
func TestNudgingEnds(t *testing.T) { bubble(t, nudgingEnds) }

func nudgingEnds(t *testing.T) {
	k, bob, learn := joiner(t)
	learn(0)
	bob.Program = &Program{} // slow to answer
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { _ = bob.takeUp(ctx) })
	count := func() (n int) {
		for _, a := range k.Clientset.(*shop).Actions() {
			if a.GetVerb() == "patch" && a.GetResource().Resource == "pods" {
				n++
			}
		}
		return n
	}
	time.Sleep(10 * time.Minute)
	before := count()
	time.Sleep(5 * time.Minute)
	if after := count(); before == 0 || after > before {
		t.Errorf("%d patches of pods in 10 minutes, %d more in 5", before, after-before)
	}
}

// joiner is bob, whose share is in the list, and whose tunnels to the two proxies run; learn has one of these know of him.
func joiner(t *testing.T) (k *kube.Client, bob *person, learn func(proxy int)) {
	t.Helper()
	k, lease, u, _ := sharedShop(t)
	for _, name := range []string{"proxy-a", "proxy-b"} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Labels: map[string]string{proxypod.ProxyLabel: proxypod.LabelValue(lease.Name)}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		}
		if _, err := k.Clientset.CoreV1().Pods("shop").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	bob = someone(t, k, lease, u, "bob@pc", "b", "bob")
	key := newKey(t)
	bob.claim.share.Client = key.Fingerprint()
	c, err := bob.join(t.Context(), bob.claim.share)
	if err != nil {
		t.Fatal(err)
	}
	bob.claim, bob.ReadyTimeout = c, time.Minute
	bob.stands, bob.answers = make(chan struct{}), make(chan struct{})

	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	t.Cleanup(stop)
	var mu sync.Mutex
	knows := map[int]*tunnel.Server{}
	bob.lines = &lines{changed: make(chan struct{})}
	keys := []tunnel.Key{newKey(t), newKey(t)}
	learn = func(i int) {
		mu.Lock()
		defer mu.Unlock()
		knows[i] = &tunnel.Server{Key: keys[i], Client: key.Fingerprint()}
	}
	for i := range 2 {
		l := &piped{conns: make(chan net.Conn), ended: make(chan struct{})}
		door := &tunnel.Door{Key: keys[i], Server: func(tunnel.Fingerprint) *tunnel.Server {
			mu.Lock()
			defer mu.Unlock()
			return knows[i]
		}}
		running.Go(func() {
			if err := door.Serve(ctx, l); err != nil {
				t.Error(err)
			}
		})
		client := bob.newTunnel()
		client.Key, client.Carrier, client.OnState = key, l.dial, func(tunnel.State) { bob.lines.tell() }
		bob.lines.clients = append(bob.lines.clients, client)
	}
	running.Go(func() { bob.lines.run(ctx, func(err error) { t.Errorf("the share ends: %v", err) }) })
	return k, bob, learn
}
