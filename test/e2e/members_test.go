//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	point "bridge/internal/fault"
	"bridge/internal/hint"
)

// localNamed is a person's process for orders, and the flags that map it.
func localNamed(t *testing.T, name string) []string {
	t.Helper()
	http, tcp := freePort(t), freePort(t)
	start(t, s.sample, nil, "serve", "--name", name, "--http", "127.0.0.1:"+http, "--tcp", "127.0.0.1:"+tcp).says("listens on")
	return []string{"--port", http + ":http", "--port", tcp + ":tcp"}
}

// shareArgs have a person swap orders for x-user: their name.
func shareArgs(t *testing.T, name string, flags ...string) []string {
	t.Helper()
	return slices.Concat([]string{"swap", "deployment", "orders", "--header", "x-user=" + name}, localNamed(t, name), flags)
}

// each awaits that the requests of these people are answered by them, of both proxies, and wants the rest answered by the original.
func (w *world) each(people ...string) {
	w.t.Helper()
	for _, name := range people {
		for range 3 { // from one proxy or the other
			w.await("an answer by "+name, func() bool { return w.asks("x-user: "+name) == name })
		}
	}
	if got := w.asks("x-user: nobody"); got != "original" {
		w.t.Errorf("who is nobody's is answered by %q", got)
	}
}

// Two people have the same deployment, each with their own requests; who would have somebody's is refused; the first leaves, the second
// goes on, and when that is killed the keeper gives back. Nobody else's request is lost.
func TestMembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	rest := w.load("--url", "http://orders", "--rate", "50")
	a := w.bridge(shareArgs(t, "ada", "--restore-after", "10s")...)
	a.says("is answered here for --header x-user=ada")
	w.proxies()
	w.each("ada")
	pods := w.proxies()

	pc := w.elsewhere()
	dry := pc.bridge(shareArgs(t, "bob", "--dry-run=server")...)
	dry.exits(0)
	dry.prints("# 2. patch configmap/bridge-deployment-orders-members: tells the proxies")
	b := pc.bridge(shareArgs(t, "bob")...)
	b.says("mode standby: requests of --header x-user=bob come here while this machine can take them; deployment/orders in " + w.ns + " is shared with ")
	if first := b.stderr.all()[0]; !strings.HasPrefix(first, "mode standby: ") {
		t.Errorf("its first line is %q", first)
	}
	b.says("(--header x-user=ada)")
	b.says("is answered here for --header x-user=bob")
	w.each("ada", "bob")
	if now := w.proxies(); !slices.Equal(now, pods) {
		t.Errorf("the proxies are %q, and were %q", now, pods)
	}
	third := w.elsewhere()
	refused := third.beginSwap() // all of it
	refused.says("share it, with a --header of your own")
	refused.exits(int(hint.Conflict))
	refused = third.bridge(slices.Concat([]string{"swap", "deployment", "orders", "--path", "/api"}, localNamed(t, "eve"))...)
	refused.says("some requests could be ")
	refused.says(", who has --header x-user=ada since ")
	refused.exits(int(hint.Conflict))
	refused = third.bridge(shareArgs(t, "ada", "--restore-after", "10s", "--take-over")...)
	refused.says("looking whether ")
	refused.exits(int(hint.Conflict)) // ada is there
	st := third.bridge("status")
	st.exits(0)
	st.prints("--header x-user=ada")
	st.prints("--header x-user=bob")
	if e := third.members(); len(e.Members) != 2 || e.Members[0].State != "ready" || e.Members[1].State != "ready" || e.Members[1].Headers[0].Value != "bob" {
		t.Errorf("status: %+v", e)
	}

	bobs := w.load("--url", "http://orders", "--rate", "50", "--header", "x-user=bob")
	a.signal(syscall.SIGTERM)
	a.says("stays swapped for ")
	a.exits(128 + int(syscall.SIGTERM))
	w.each("bob")
	if got := w.asks("x-user: ada"); got != "original" {
		t.Errorf("who has left answers still: %q", got)
	}
	if e := third.members(); len(e.Members) != 1 {
		t.Errorf("status: %+v", e)
	}
	if r := bobs.end(t); r.Failed > 0 || r.By["bob"] < r.Requests/2 {
		t.Errorf("bob's while ada left: %+v", r)
	}

	b.kill()
	w.await("an answer by original", func() bool { return w.asks("x-user: bob") == "original" })
	w.await("the namespace as it was", func() bool { return w.lease() == nil && w.snapshot() == before })
	// Before the next line, which scales the deployment.
	if r := rest.end(t); r.Failed > 0 || r.By["original"] != r.Requests {
		t.Errorf("all others': %+v", r)
	}
	w.assertGivenBack(before)
}

// The place of one who was killed may be taken while another keeps the swap; who comes back then is told.
func TestMembersTakeOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := shareArgs(t, "ada", "--restore-after", "10s")
	a := w.bridge(args...)
	a.says("is answered here for")
	b := w.elsewhere().bridge(shareArgs(t, "bob")...)
	b.says("is answered here for")
	a.kill()
	w.await("an answer by original", func() bool { return w.asks("x-user: ada") == "original" })
	third := w.elsewhere()
	refused := third.bridge(shareArgs(t, "ada")...)
	refused.says("with --take-over you have the place of one whose machine is gone")
	refused.exits(int(hint.Conflict))
	e := third.bridge(slices.Concat([]string{"swap", "deployment", "orders", "--header", "x-user=ada", "--take-over"}, localNamed(t, "eve"))...)
	e.says("is answered here for --header x-user=ada")
	w.await("an answer by eve", func() bool { return w.asks("x-user: ada") == "eve" })
	w.each("bob")

	again := w.bridge(args...)
	again.says("the share that an earlier bridge of yours had of the swap was taken over meanwhile")
	again.exits(int(hint.Conflict))
	b.terminate()
	w.await("an answer by eve", func() bool { return w.asks("x-user: ada") == "eve" })
	e.terminate()
	w.assertGivenBack(before)
}

// One who is killed takes their share up; a proxy that is replaced knows all of them; restore ends it for all.
func TestMembersComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	a := w.bridge(shareArgs(t, "ada", "--self-restore", "never")...)
	a.says("is answered here for")
	pc := w.elsewhere()
	bobs := shareArgs(t, "bob", "--self-restore", "never")
	b := pc.bridge(bobs...)
	b.says("is answered here for")
	w.each("ada", "bob")
	b.kill()
	w.await("an answer by original", func() bool { return w.asks("x-user: bob") == "original" })
	b = pc.bridge(bobs...)
	b.says("taking up the swap")
	b.says("is answered here for")
	w.each("ada", "bob")

	w.deleteProxies(1)
	w.proxies()
	w.each("ada", "bob")

	r := w.elsewhere().bridge("restore", "deployment", "orders")
	r.says("(--header x-user=bob) (last heartbeat ") // whom it affects
	r.exits(0)
	a.exits(int(hint.Conflict))
	b.exits(int(hint.Conflict))
	w.assertGivenBack(before)
}

// With the Lease deleted under two people everything is given back, once.
func TestMembersWithoutALease(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	a := w.bridge(shareArgs(t, "ada", "--self-restore", "never")...)
	a.says("is answered here for")
	b := w.elsewhere().bridge(shareArgs(t, "bob")...)
	b.says("is answered here for")
	if err := s.client.CoordinationV1().Leases(w.ns).Delete(t.Context(), "bridge-deployment-orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	<-a.ended
	<-b.ended
	w.awaitGivenBack(before)
}

// With a list of members that cannot be read everything is given back, and those who share it are told why.
func TestMembersUnreadable(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	a := w.bridge(shareArgs(t, "ada", "--self-restore", "never")...)
	a.says("is answered here for")
	b := w.elsewhere().bridge(shareArgs(t, "bob")...)
	b.says("is answered here for")
	_, err := s.client.CoordinationV1().Leases(w.ns).Patch(t.Context(), "bridge-deployment-orders", types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"bridge.internal/members":"{"}}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a.exits(int(hint.Conflict))
	b.exits(int(hint.Conflict))
	said := strings.Join(append(a.stderr.all(), b.stderr.all()...), "\n")
	if !strings.Contains(said, "who shares it is not known any more, so it ends for all: annotation bridge.internal/members of lease/bridge-deployment-orders cannot be read") {
		t.Errorf("they say:\n%s", said)
	}
	w.answersSteadily(original)
	w.assertGivenBack(before)
}

// A bridge that stands back for a restorer which dies gives back itself, though that one was called as it is.
func TestRestorerDiesBesideABridge(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"shared": shareArgs(t, "ada"), "alone": swapArgs(localOrders(t))} {
		if !soak(true, name == "shared") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			b := w.bridge(slices.Concat(args, soon, []string{"--self-restore", "never"})...)
			b.says(swapped)
			r := w.elsewhere().faulty(point.RestoreTaken, "kill", "restore", "deployment", "orders")
			r.dies(point.RestoreTaken)
			b.says("no heartbeat of restore by ")
			b.exits(int(hint.Conflict))
			w.answersSteadily(original)
			w.assertGivenBack(before)
		})
	}
}

// Who is killed while joining or leaving costs the other nothing, and the same command goes on from there. When the other is gone too all is given
// back, by the keeper alone, or by restore from elsewhere, also without the Lease.
func TestMembersKilledAtEachPoint(t *testing.T) {
	t.Parallel()
	type end struct{ also, way string }
	for i, p := range []point.Point{point.SessionKept, point.Joined, point.JoinTold, point.TakeUpReady, point.SessionHeld, point.Beat, point.SessionEnding, point.Left, point.LeftTold} {
		for _, e := range []end{{"", byKeeper}, {"", byRestore}, {"", byRestoreAll}, {leaseDeleted, byRestore}, {leaseDeleted, byRestoreAll}} {
			if !soak(true, e == end{"", byKeeper} || p == point.Joined && e == end{leaseDeleted, byRestoreAll}) {
				continue
			}
			again := e.way == byKeeper && soak(true, i%2 == 0)
			t.Run(strings.TrimSpace(fmt.Sprintf("%s %s, then %s", p, e.also, e.way)), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t).withOrders()
				before := w.snapshot()
				a := w.bridge(shareArgs(t, "ada", "--restore-after", "10s")...)
				a.says("is answered here for")
				pc, args := w.elsewhere(), shareArgs(t, "bob")
				b := pc.faulty(p, "kill", args...)
				if slices.Contains([]point.Point{point.SessionEnding, point.Left, point.LeftTold}, p) {
					b.says("is answered here for")
					b.signal(syscall.SIGTERM)
				}
				b.dies(p)
				w.each("ada")
				w.await("an answer by original", func() bool { return w.asks("x-user: bob") == "original" })
				if again {
					b = pc.bridge(args...)
					b.says("is answered here for --header x-user=bob")
					w.each("ada", "bob")
					b.terminate()
					w.each("ada")
				}
				a.kill()
				w.lose(e.also)
				w.giveBack(stage{recorded: true}, e.also, e.way, args)
				w.awaitGivenBack(before)
			})
		}
	}
	t.Run(string(point.Shared), func(t *testing.T) {
		t.Parallel()
		w := newWorld(t).withOrders()
		before := w.snapshot()
		args := shareArgs(t, "ada", "--self-restore", "never")
		a := w.faulty(point.Shared, "kill", args...)
		a.dies(point.Shared)
		b := w.elsewhere().bridge(shareArgs(t, "bob")...)
		b.says("is answered here for --header x-user=bob")
		w.each("bob")
		a = w.bridge(args...)
		a.says("its share of the swap ends first")
		a.says("is answered here for --header x-user=ada")
		w.each("ada", "bob")
		b.terminate()
		a.terminate()
		w.assertGivenBack(before)
	})
}

// Two who begin at once share it: the second by joining the first.
func TestMembersBeginAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	a := w.bridge(shareArgs(t, "ada", "--self-restore", "never")...)
	b := w.elsewhere().bridge(shareArgs(t, "bob", "--self-restore", "never")...)
	a.says("is answered here for --header x-user=ada")
	b.says("is answered here for --header x-user=bob")
	w.each("ada", "bob")
	said := strings.Join(append(a.stderr.all(), b.stderr.all()...), "\n")
	if n := strings.Count(said, "creating the proxy"); n != 1 {
		t.Errorf("%d made it:\n%s", n, said)
	}
	a.terminate()
	b.terminate()
	w.assertGivenBack(before)
}
