//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	point "bridge/internal/fault"
	"bridge/internal/hint"
)

// How a bridge comes to a fault point.
const (
	making    = "while it swaps"
	ending    = "while it gives back"
	takingUp  = "while it takes up"
	restoring = "while it restores"
	orphaned  = "while it restores without a Lease"
)

// stage is a point at which bridge is killed, and what is promised of that moment.
type stage struct {
	point point.Point
	how   string
	// answers is who has to answer callers although bridge is dead. Nobody does once the Service is moved to the proxy, until
	// it is moved back: then the original is stopped, or no endpoint of it.
	answers string
	// recorded is whether the target, or a ReplicaSet of it, has a copy of the record.
	recorded bool
	// nothing is whether there is nothing to give back.
	nothing bool
	// unkept is whether there is no keeper at all: it is made after the proxy, and goes with the Lease.
	unkept bool
}

const original = "original"

// stages are all moments, in order.
func stages() (all []stage) {
	for _, p := range []point.Point{point.PlanRead, point.SessionKept} {
		all = append(all, stage{point: p, how: making, answers: original, nothing: true})
	}
	for _, p := range []point.Point{point.Claimed, point.MapCreated, point.ProxyCreated} {
		all = append(all, stage{point: p, how: making, answers: original, unkept: true})
	}
	for _, p := range []point.Point{point.ProxyReady, point.Checked} {
		all = append(all, stage{point: p, how: making, answers: original})
	}
	for _, p := range []point.Point{point.Recorded, point.Reachable} {
		all = append(all, stage{point: p, how: making, answers: original, recorded: true})
	}
	for _, p := range []point.Point{point.Moved, point.Alone, point.Scaled, point.Stopped, point.SessionHeld, point.Watched} {
		all = append(all, stage{point: p, how: making, recorded: true})
	}
	all = append(all, stage{point: point.Beat, how: making, answers: original, unkept: true})
	for _, p := range []point.Point{point.TakeUpRead, point.TakeUpReady} {
		all = append(all, stage{point: p, how: takingUp, recorded: true})
	}
	all = append(all,
		stage{point: point.RestoreTaken, how: restoring, recorded: true},
		stage{point: point.SessionEnding, how: ending, recorded: true},
		stage{point: point.RestoreCreated, how: orphaned, recorded: true, unkept: true},
	)
	for _, how := range []string{ending, restoring} {
		for _, p := range []point.Point{point.ScaledBack, point.OriginalReady} {
			all = append(all, stage{point: p, how: how, recorded: true})
		}
		for _, p := range []point.Point{
			point.MovedBack, point.Settled, point.RecordRemoved, point.ProxyDeleted, point.ProxyGone, point.MapDeleted, point.UndoneAgain, point.OwnersBack, point.Closed,
		} {
			all = append(all, stage{point: p, how: how, answers: original, recorded: true})
		}
		all = append(all,
			stage{point: point.CopiesGone, how: how, answers: original},
			stage{point: point.Released, how: how, answers: original, nothing: true},
		)
	}
	return append(all, stage{point: point.SessionForgotten, how: ending, answers: original, nothing: true})
}

// proxied is whether the proxy's pod runs for certain.
func (st stage) proxied() bool {
	return st.how == takingUp || slices.Contains([]point.Point{
		point.ProxyReady, point.Checked, point.Recorded, point.Reachable, point.Moved, point.Alone, point.Scaled, point.Stopped, point.SessionHeld,
		point.Watched, point.SessionEnding, point.RestoreTaken, point.ScaledBack, point.OriginalReady, point.MovedBack, point.Settled,
	}, st.point)
}

// What else happens after the kill, and how it is given back.
const (
	leaseDeleted  = "Lease deleted"
	podDeleted    = "proxy's pod deleted"
	processKilled = "proxy's process killed"
	keeperDeleted = "keeper's pod deleted"

	byRestore    = "restore"
	byRestoreAll = "restore --all"
	byKeeper     = "nothing"
	bySwap       = "swap again"
)

// Killed at every point, whatever else is lost with it, everything is given back: the objects of the namespace, the ownership
// of their fields, what is kept on the laptop, and the service answers.
func TestKilledAtEachPoint(t *testing.T) {
	t.Parallel()
	type trial struct {
		stage
		also, way string
	}
	var trials []trial
	ways := []string{byRestore, byRestoreAll, bySwap, byKeeper}
	also := []string{"", leaseDeleted, podDeleted, processKilled, keeperDeleted}
	twice := func(p point.Point) bool { // while it gives back and while it restores, which is the same code
		is := func(st stage) bool { return st.point == p }
		all := stages()
		return slices.ContainsFunc(all[slices.IndexFunc(all, is)+1:], is)
	}
	for i, st := range stages() {
		for j, lost := range also {
			for k, way := range ways {
				keeps := way == byKeeper && lost == keeperDeleted // of who gives back in another way a keeper is no part
				// In long, each point with each thing that is lost, and each way: of all three together there would be no more than of two.
				// In short, each point once and one of the ways after it, and every now and then with something else lost.
				long := keeps && !st.nothing && !st.unkept || lost != keeperDeleted && k == (i+j)%len(ways)
				short := k == i%len(ways) && j == []int{0, 0, 1, 0, 2, 1, 3}[i%7] && (!twice(st.point) || st.how == []string{ending, restoring}[slices.Index(point.Points(), st.point)%2]) || keeps && st.point == point.Scaled
				if !soak(long, short) || lost == keeperDeleted && (!keeps || st.nothing || st.unkept) {
					continue
				}
				if way == byKeeper && (st.nothing || st.unkept || lost == leaseDeleted) ||
					way == bySwap && lost == leaseDeleted && st.recorded { // it is refused: TestSwapOverAnOrphanedRecordIsRefused
					if lost == leaseDeleted && soak(true, false) && !st.nothing && !st.unkept {
						trials = append(trials, trial{st, "", way})
					}
					way = byRestore
				}
				trials = append(trials, trial{st, lost, way})
			}
		}
	}
	for _, p := range point.Points() {
		if !slices.ContainsFunc(trials, func(c trial) bool { return c.point == p }) {
			t.Errorf("bridge is killed at %s in no trial", p)
		}
	}
	for _, c := range trials {
		t.Run(strings.TrimSpace(fmt.Sprintf("%s %s %s, then %s", c.point, c.how, c.also, c.way)), func(t *testing.T) {
			t.Parallel()
			if c.also == processKilled {
				embedded(t)
			}
			w := newWorld(t).withOrders()
			before := w.snapshot()
			local := localOrders(t)
			args := swapArgs(local)
			if c.way == byKeeper {
				args = append(args, soon...)
			}
			w.killedAt(c.stage, args)
			w.loseAt(c.stage, c.also) // before a keeper has done anything
			if c.answers != "" {
				w.answersSteadily(c.answers)
			}
			w.giveBack(c.stage, c.also, c.way, args)
			if c.also == leaseDeleted || c.way == byKeeper {
				w.awaitSnapshot(before, func() bool { return w.lease() == nil })
			}
			w.answersSteadily(original)
			w.assertGivenBack(before)
		})
	}
}

// stages are all moments of this kind of swap: of what stands by, of what may be shared, and of a workload whose record no controller copies.
func (c shape) stages() (all []stage) {
	for _, st := range stages() {
		if c.kind == "rollout" && !st.recorded && st.point != point.CopiesGone {
			continue // there it is as a deployment
		}
		if c.kind != "deployment" && c.kind != "rollout" && st.point == point.RecordRemoved {
			st.recorded = false // there it comes after all else
		}
		if c.stands && slices.Contains([]point.Point{point.Scaled, point.Stopped, point.ScaledBack}, st.point) {
			continue
		}
		if c.stands && st.how != orphaned { // with the Lease the proxies go
			st.answers = original
		}
		all = append(all, st)
		if c.stands && st.point == point.Claimed {
			for _, p := range point.StandbyPoints() {
				all = append(all, stage{point: p, how: making, answers: original, unkept: true})
			}
		}
		if c.shared && st.point == point.Alone {
			all = append(all, stage{point: point.Shared, how: making, answers: original, recorded: true})
		}
	}
	return all
}

// shape is a kind of swap, each with steps, or with places where the record is, of its own.
type shape struct {
	name, kind, workload, manifest string
	stands, shared                 bool
}

func shapes() []shape {
	return []shape{
		{"a deployment", "deployment", "orders", ordersYAML, false, false},
		{"a deployment that stands by", "deployment", "orders", ordersYAML, true, false},
		{"a statefulset", "statefulset", "db", db(), false, false},
		{"a pod", "pod", "web", webYAML, true, false},
		{"a deployment that may be shared", "deployment", "orders", ordersYAML, true, true},
		{"a rollout", "rollout", "orders", rolloutYAML(basic), false, false},
	}
}

// world has the workload, and swap swaps it.
func (c shape) world(t *testing.T) (w *world, swap []string) {
	t.Helper()
	w = newWorld(t)
	switch c.kind {
	case "pod":
		w.withWeb()
	case "rollout":
		w.withRollout(basic)
	default:
		w.withKind(c.manifest, c.workload)
	}
	swap = slices.Concat([]string{"swap", c.kind, c.workload}, localOrders(t))
	if c.stands {
		w.admitClientsOnly(c.workload)
		swap = append(swap, standing...)
	}
	if c.shared {
		swap = append(swap, "--header", "x-user=ada")
	}
	return w, swap
}

// bare is the text of what is swapped where a snapshot does not have it.
func (c shape) bare(w *world) string {
	w.t.Helper()
	if c.kind != "pod" {
		return ""
	}
	return w.web()
}

// answers waits until that one answers all requests.
func (c shape) answers(w *world, name string) {
	w.t.Helper()
	w.answersAt("http://"+c.workload, name)
	if c.shared {
		w.await("an answer to ada's requests by "+name, func() bool { return w.asks("x-user: ada") == name })
	}
}

// Of the other shapes it is the same, at each point once: by the keeper alone or by restore from elsewhere, and without the Lease or the proxies.
func TestKilledAtEachPointOf(t *testing.T) {
	t.Parallel()
	type moment struct {
		shape          string
		point          point.Point
		how, also, way string
	}
	short := []moment{
		{"a deployment that stands by", point.Serving, making, "", byRestore},
		{"a deployment that stands by", point.Moved, making, leaseDeleted, byRestoreAll},
		{"a statefulset", point.RecordRemoved, ending, leaseDeleted, byRestore},
		{"a pod", point.Alone, making, leaseDeleted, byRestoreAll},
		{"a deployment that may be shared", point.Shared, making, leaseDeleted, byRestoreAll},
	}
	seen := map[moment]bool{}
	for _, c := range shapes()[1:] {
		for i, st := range c.stages() {
			if seen[moment{shape: c.name, point: st.point}] {
				continue // while it restores it does the same as while it gives back
			}
			seen[moment{shape: c.name, point: st.point}] = true
			for _, also := range []string{"", leaseDeleted, podDeleted} {
				way := []string{byKeeper, byRestore}[i%2]
				if also == leaseDeleted {
					way = []string{byRestoreAll, byRestore}[i%2]
				}
				if way == byKeeper && (st.nothing || st.unkept) {
					way = byRestore
				}
				if i := slices.IndexFunc(short, func(m moment) bool { return m == moment{c.name, st.point, st.how, also, m.way} }); i >= 0 {
					way = short[i].way
					seen[short[i]] = true
				} else if !soak(true, false) || also == podDeleted && (i%3 != 0 || !st.proxied() || c.shared || c.kind == "pod") {
					continue // the proxies are the same of all that stands by, and as a deployment's, which lose their pods at each point
				}
				t.Run(strings.TrimSpace(fmt.Sprintf("%s, %s %s %s, then %s", c.name, st.point, st.how, also, way)), func(t *testing.T) {
					t.Parallel()
					w, args := c.world(t)
					before, bare := w.snapshot(), c.bare(w)
					if way == byKeeper {
						args = append(args, soon...)
					}
					w.killedAt(st, args)
					if also == podDeleted {
						w.loseAt(st, also)
					}
					if st.answers != "" {
						c.answers(w, st.answers)
					}
					if also == leaseDeleted { // with it the proxies go, on which callers depend in standby
						w.loseAt(st, also)
					}
					w.giveBack(st, also, way, args)
					if also == leaseDeleted || way == byKeeper {
						w.awaitSnapshot(before, func() bool { return c.bare(w) == bare && w.lease() == nil })
					}
					c.answers(w, original)
					if now := c.bare(w); now != bare {
						t.Errorf("it is not as it was:\n%s\nbefore:\n%s", now, bare)
					}
					w.assertManifest(before, c.manifest)
				})
			}
		}
	}
	for _, m := range short {
		if !seen[m] {
			t.Errorf("%+v was not tried", m)
		}
	}
}

// admitClientsOnly adds a network policy for which standby needs some of its own.
func (w *world) admitClientsOnly(app string) {
	w.t.Helper()
	of := func(app string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	}
	client := of("client")
	_, err := s.client.NetworkingV1().NetworkPolicies(w.ns).Create(w.t.Context(), &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "clients"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: of(app), Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &client}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
}

// faulty starts bridge with a fault.
func (w *world) faulty(p point.Point, action string, args ...string) *process {
	w.t.Helper()
	return w.bridgeAs(s.kubeconfig, []string{point.Env + "=" + string(p) + ":" + action}, args...)
}

func swapArgs(local []string) []string {
	return append([]string{"swap", "deployment", "orders"}, local...)
}

// killedAt has a bridge die at the stage's point.
func (w *world) killedAt(st stage, swap []string) {
	w.t.Helper()
	var b *process
	switch st.how {
	case making:
		b = w.faulty(st.point, "kill", swap...)
	case ending:
		b = w.faulty(st.point, "kill", swap...)
		b.says("swapped: ")
		b.signal(syscall.SIGTERM)
	default:
		first := w.bridge(swap...)
		first.says("swapped: ")
		first.kill()
		switch st.how {
		case takingUp:
			b = w.faulty(st.point, "kill", swap...)
		case orphaned:
			w.lose(leaseDeleted)
			fallthrough
		case restoring:
			b = w.elsewhere().faulty(st.point, "kill", "restore", swap[1], swap[2])
		}
	}
	b.dies(st.point)
}

// dies waits for the end that the fault makes.
func (p *process) dies(at point.Point) {
	p.t.Helper()
	p.ends()
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
		p.t.Fatalf("it never came to %s: %v; it said:\n%s", at, p.cmd.ProcessState, strings.Join(p.stderr.all(), "\n"))
	}
}

// lose has something else go than bridge, if it is there, and is how many of it there were.
func (w *world) lose(what string) (n int) {
	w.t.Helper()
	switch what {
	case leaseDeleted:
		l := w.lease()
		if l == nil {
			return 0
		}
		err := s.client.CoordinationV1().Leases(w.ns).Delete(w.t.Context(), l.Name, metav1.DeleteOptions{})
		if err != nil && !strings.Contains(err.Error(), "not found") {
			w.t.Fatal(err)
		}
		return 1
	case podDeleted:
		for _, p := range w.pods("bridge.internal/proxy") {
			err := s.client.CoreV1().Pods(w.ns).Delete(w.t.Context(), p.Name, metav1.DeleteOptions{})
			if err != nil && !strings.Contains(err.Error(), "not found") {
				w.t.Fatal(err)
			}
			n++
		}
	case processKilled:
		for _, p := range w.pods("bridge.internal/proxy") {
			n += w.killIn(string(p.UID))
		}
	case keeperDeleted:
		n = len(w.pods("bridge.internal/keeper"))
		w.deleteKeeper()
	}
	return n
}

// loseAt is lose of what is lost beside a bridge that was killed at that stage; proxy and keeper, where they have to be, have been there.
func (w *world) loseAt(st stage, what string) {
	w.t.Helper()
	early := what == keeperDeleted && st.point == point.ProxyReady // its pod is awaited next
	if n := w.lose(what); n == 0 && st.proxied() && !early && what != "" && what != leaseDeleted {
		w.t.Errorf("%s: there is none at %s", what, st.point)
	}
}

// killIn kills the proxy's process in the pod, as the kernel would when memory is short, and is how many it found.
func (w *world) killIn(uid string) int {
	w.t.Helper()
	ids := processesIn(w.t, uid, "--tunnel")
	for _, id := range ids {
		var pid int
		if _, err := fmt.Sscan(id, &pid); err != nil {
			w.t.Fatal(err)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
	}
	return len(ids)
}

// processesIn are those in the pod with this UID that have the argument.
func processesIn(t *testing.T, uid, argument string) (ids []string) {
	t.Helper()
	for _, id := range processes(t) {
		group, err := os.ReadFile("/proc/" + id + "/cgroup")
		if err != nil || !strings.Contains(strings.ReplaceAll(string(group), "_", "-"), uid) {
			continue
		}
		command, err := os.ReadFile("/proc/" + id + "/cmdline")
		if err == nil && bytes.Contains(command, append([]byte{0}, argument...)) {
			ids = append(ids, id)
		}
	}
	return ids
}

// processes are the numbers in /proc.
func processes(t *testing.T) (ids []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if c := e.Name()[0]; c >= '0' && c <= '9' {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// giveBack gives back in one of the ways what swap has swapped, and checks how that ends.
func (w *world) giveBack(st stage, also, way string, swap []string) {
	w.t.Helper()
	switch way {
	case byRestore:
		code := 0
		if st.nothing || also == leaseDeleted && !st.recorded {
			code = int(hint.NotFound)
		}
		w.elsewhere().bridge("restore", swap[1], swap[2]).exits(code)
	case byKeeper:
	case byRestoreAll:
		w.elsewhere().bridge("restore", "--all", "--held").exits(0)
	case bySwap:
		b := w.bridge(swap...)
		if st.how == restoring || st.how == orphaned {
			if !st.nothing && also != leaseDeleted {
				// It was being given back by somebody who died at it.
				b.exits(int(hint.Conflict))
				w.bridge("restore", swap[1], swap[2]).exits(0)
				return
			}
		}
		b.says("swapped: ")
		w.answersAt("http://"+swap[2], "laptop")
		b.terminate()
		w.assertNothingKept()
	}
}

func (w *world) answersSteadily(name string) {
	w.t.Helper()
	w.answersAt("http://orders", name)
}

// answersAt waits for a few answers in a row by that name, and no failure in between: a Service may send a caller to the
// proxy until that is known to be gone.
func (w *world) answersAt(url, name string) {
	w.t.Helper()
	w.await("nothing but answers of "+url+" by "+name, func() bool {
		for range 5 {
			out := newLines()
			if w.exec(w.t.Context(), nil, out, "get", "--url", url) != nil || !slices.Contains(out.all(), name) {
				return false
			}
		}
		return true
	})
}

// A step that fails ends in a clean end: a swap gives back by itself; giving back says what to do, and can be done again.
func TestErrorAtEachPoint(t *testing.T) {
	t.Parallel()
	ignored := []point.Point{point.SessionKept, point.SessionHeld, point.Beat, point.SessionEnding, point.SessionForgotten}
	short := []point.Point{point.Moved, point.ProxyGone}
	for _, st := range stages() {
		if slices.Contains(ignored, st.point) || st.how == takingUp || st.how == orphaned || !soak(true, slices.Contains(short, st.point)) {
			continue
		}
		t.Run(fmt.Sprintf("%s %s", st.point, st.how), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			asks := "asks for an error at " + string(st.point)
			switch st.how {
			case making:
				b := w.faulty(st.point, "error", swapArgs(localOrders(t))...)
				b.says(asks)
				if st.point == point.Checked { // which giving back asks, too
					b.exits(int(hint.RestoreIncomplete))
					w.giveBack(st, "", byRestore, swapArgs(nil))
				} else {
					b.exits(int(hint.Other))
				}
			case ending:
				b := w.faulty(st.point, "error", swapArgs(localOrders(t))...)
				b.says(swapped)
				b.signal(syscall.SIGTERM)
				b.exits(int(hint.RestoreIncomplete))
				b.says(asks)
				w.giveBack(st, "", byRestore, swapArgs(nil))
			case restoring:
				w.swap().kill()
				b := w.faulty(st.point, "error", "restore", "deployment", "orders")
				b.ends()
				if code := b.cmd.ProcessState.ExitCode(); code == 0 {
					t.Errorf("exit code 0; it said:\n%s", strings.Join(b.stderr.all(), "\n"))
				}
				b.says(asks)
				w.giveBack(st, "", byRestore, swapArgs(nil))
			}
			w.answersSteadily(original)
			w.assertGivenBack(before)
		})
	}
	for _, p := range point.StandbyPoints() {
		if !soak(true, p == point.Serving) {
			continue
		}
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			w, args := shapes()[1].world(t)
			before := w.snapshot()
			b := w.faulty(p, "error", args...)
			b.says("asks for an error at " + string(p))
			b.exits(int(hint.Other))
			w.answersSteadily(original)
			w.assertGivenBack(before)
		})
	}
}

// ends waits for the end.
func (p *process) ends() {
	p.t.Helper()
	(&world{t: p.t}).await("its end", p.hasEnded)
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// stopped tells whether a signal has stopped it.
func (p *process) stopped() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && strings.HasPrefix(state, "T")
}

// stops waits until its fault has stopped it.
func (p *process) stops(at point.Point) {
	p.t.Helper()
	(&world{t: p.t}).await(string(at), func() bool {
		if p.hasEnded() {
			p.t.Fatalf("it never came to %s; it said:\n%s", at, strings.Join(p.stderr.all(), "\n"))
		}
		return p.stopped()
	})
}

// resumes has it go on, whenever its fault stops it, to its end.
func (p *process) resumes(code int) {
	p.t.Helper()
	p.goesOnToItsEnd()
	p.exits(code)
}

func (p *process) goesOnToItsEnd() {
	p.t.Helper()
	(&world{t: p.t}).await("its end", func() bool {
		if !p.hasEnded() && p.stopped() {
			_ = p.cmd.Process.Signal(syscall.SIGCONT)
		}
		return p.hasEnded()
	})
}

// Whoever is frozen at any point, and wakes up when another has given back, finds nothing to do, and both say so.
func TestFrozenRestoreWakesUp(t *testing.T) {
	t.Parallel()
	short := []point.Point{point.Checked, point.ProxyGone}
	points := stages()
	points = append(points, stage{point: point.Checked, how: restoring})
	for _, st := range points {
		if st.how != restoring || !soak(true, slices.Contains(short, st.point)) {
			continue
		}
		t.Run("at "+string(st.point), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			w.swap().kill()
			frozen := w.elsewhere().faulty(st.point, "stop", "restore", "deployment", "orders")
			frozen.stops(st.point)
			w.giveBack(st, "", byRestore, swapArgs(nil))
			frozen.resumes(0)
			w.answersSteadily(original)
			w.assertGivenBack(before)
		})
	}
}

// A laptop that is frozen at any point, and wakes up long after somebody else has given back and a third has swapped anew,
// changes nothing of that.
func TestFrozenSwapWakesUp(t *testing.T) {
	t.Parallel()
	type moment struct {
		how   string
		point point.Point
		nth   int // time that it comes there
	}
	for _, m := range soak([]moment{
		{making, point.Claimed, 1}, {making, point.ProxyReady, 1}, {making, point.Checked, 1}, {making, point.Checked, 2}, {making, point.Checked, 3},
		{making, point.Recorded, 1}, {making, point.Moved, 1}, {making, point.Scaled, 1}, {making, point.Watched, 1},
		{ending, point.ScaledBack, 1}, {ending, point.MovedBack, 1}, {ending, point.Settled, 1}, {ending, point.RecordRemoved, 1},
		{ending, point.ProxyGone, 1}, {ending, point.OwnersBack, 1}, {ending, point.CopiesGone, 1},
	}, []moment{{making, point.Checked, 2}, {ending, point.Settled, 1}}) {
		t.Run(fmt.Sprintf("at %s %d, %s", m.point, m.nth, m.how), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			frozen := w.faulty(m.point, "stop", swapArgs(localOrders(t))...)
			code := int(hint.Conflict)
			if m.how == ending {
				frozen.says(swapped)
				frozen.signal(syscall.SIGTERM)
				code = 128 + int(syscall.SIGTERM)
			}
			frozen.stops(m.point)
			for range m.nth - 1 {
				frozen.signal(syscall.SIGCONT)
				frozen.stops(m.point)
			}
			w.elsewhere().bridge("restore", "deployment", "orders").exits(0)
			b := w.elsewhere().swap()
			frozen.resumes(code)
			l := w.load("--url", "http://orders")
			w.check("--what", "half-close", "--address", "orders:7000")
			if r := l.end(t); r.Failed > 0 || r.By["laptop"] != r.Requests {
				t.Errorf("the new swap after the old one woke up: %+v", r)
			}
			b.terminate()
			w.assertGivenBack(before)
		})
	}
}

// The proxy's pod, or its process, is lost at any step: another takes its place, and bridge goes on.
func TestProxyLostAtEachStep(t *testing.T) {
	t.Parallel()
	type moment struct {
		how, lost string
		point     point.Point
	}
	var moments []moment
	for _, lost := range []string{podDeleted, processKilled} {
		for _, p := range []point.Point{point.ProxyReady, point.Recorded, point.Reachable, point.Moved, point.Alone, point.Scaled, point.SessionHeld} {
			moments = append(moments, moment{making, lost, p})
		}
		for _, p := range []point.Point{point.SessionEnding, point.ScaledBack, point.MovedBack, point.RecordRemoved} {
			moments = append(moments, moment{ending, lost, p})
		}
	}
	for _, m := range soak(moments, []moment{
		{making, podDeleted, point.ProxyReady}, {making, podDeleted, point.Moved}, {making, processKilled, point.SessionHeld}, {ending, podDeleted, point.ScaledBack},
	}) {
		t.Run(fmt.Sprintf("%s at %s, %s", m.lost, m.point, m.how), func(t *testing.T) {
			if m.lost == processKilled {
				embedded(t)
			}
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			b := w.faulty(m.point, "stop", swapArgs(localOrders(t))...)
			if m.how == ending {
				b.says(swapped)
				b.signal(syscall.SIGTERM)
			}
			b.stops(m.point)
			if w.lose(m.lost) == 0 {
				t.Fatalf("%s: there is none", m.lost)
			}
			if m.how == ending {
				b.resumes(128 + int(syscall.SIGTERM))
			} else {
				b.signal(syscall.SIGCONT)
				b.says(swapped)
				w.answersSteadily("laptop")
				b.terminate()
			}
			w.answersSteadily(original)
			w.assertGivenBack(before)
		})
	}
}
