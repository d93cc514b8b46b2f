//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"

	point "bridge/internal/fault"
	"bridge/internal/hint"
)

// soon is the shortest --restore-after.
var soon = []string{"--restore-after", "6s"}

// awaitGivenBack waits until the keeper alone has given everything back: the objects are as before, with their field
// ownership, nothing of bridge's is left, and the service answers.
func (w *world) awaitGivenBack(before string) {
	w.t.Helper()
	w.awaitSnapshot(before, func() bool { return w.lease() == nil })
	w.answeredBy("original")
	w.assertGivenBack(before)
}

// lease is the swap's; nil when there is none.
func (w *world) lease() *coordinationv1.Lease {
	w.t.Helper()
	list, err := s.client.CoordinationV1().Leases(w.ns).List(w.t.Context(), metav1.ListOptions{LabelSelector: "bridge.internal/kind=swap"})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(list.Items) == 0 {
		return nil
	}
	return &list.Items[0]
}

// awaitKeeperAtWork waits until a keeper gives back.
func (w *world) awaitKeeperAtWork() {
	w.t.Helper()
	w.await("the keeper at work", func() bool {
		l := w.lease()
		return l != nil && strings.HasPrefix(*l.Spec.HolderIdentity, "restore by keeper ")
	})
}

// A killed bridge, and nobody does anything.
func TestKeeperGivesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := append(append([]string{"swap", "deployment", "orders"}, localOrders(t)...), soon...)
	b := w.bridge(args...)
	b.says("6s after this machine's last heartbeat a keeper in the cluster gives it back")
	b.says("keeper: ready")
	b.says(swapped)
	if is := w.status().IfLost; is != "given back after 6s" {
		t.Errorf("status: if lost %q", is)
	}
	b.kill()
	w.awaitGivenBack(before)
	w.await("the event that tells so", func() bool {
		list, err := s.client.CoreV1().Events(w.ns).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=GivenBack,involvedObject.name=orders"})
		return err == nil && len(list.Items) == 1 && strings.HasPrefix(list.Items[0].Message, "the keeper has given it back")
	})

	w.apply(fmt.Sprintf(ordersYAML, s.image))
	w.awaitReady("app=orders", 2)
	b = w.bridge(args...)
	b.says("was given back meanwhile; the original serves again since ")
	b.says(swapped)
	b.terminate()
	w.assertGivenBack(before)
}

// The keeper is killed at each of its own steps, and another one goes on; or somebody deletes the Lease then, with which the keeper goes, and
// restores.
func TestKeeperKilledAtEachPoint(t *testing.T) {
	t.Parallel()
	for _, c := range shapes() {
		for i, p := range point.KeeperPoints() {
			for _, also := range []string{"", leaseDeleted} {
				short := c.kind == "deployment" && !c.stands && also == "" && i%3 == 0 || c.workload == "db" && also != "" && p == point.KeeperUnrecorded
				long := !c.shared && (!c.stands || also == "") // where the record is differs with the kind alone, and members are nothing to a keeper
				if !soak(long, short) || p == point.KeeperReleased && also != "" {
					continue
				}
				t.Run(strings.TrimSpace(fmt.Sprintf("%s, %s %s", c.name, p, also)), func(t *testing.T) {
					t.Parallel()
					w, args := c.world(t)
					before, bare := w.snapshot(), c.bare(w)
					b := w.bridge(append(args, soon...)...)
					b.says("swapped: ")
					w.faultyKeeper(string(p) + ":kill")
					b.kill()
					w.await("the keeper's end at "+string(p), func() bool {
						return p == point.KeeperReleased && w.lease() == nil || slices.ContainsFunc(w.pods("bridge.internal/keeper"), func(p corev1.Pod) bool {
							return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount > 0
						})
					})
					switch {
					case also == leaseDeleted:
						w.lose(also)
						b := w.elsewhere().bridge("restore", c.kind, c.workload)
						switch p {
						case point.KeeperCopies, point.KeeperTold:
							b.exits(int(hint.NotFound))
						case point.KeeperOwners: // a keeper that goes on from there may have been faster
							if b.ends(); b.cmd.ProcessState.ExitCode() != int(hint.NotFound) {
								b.exits(0)
							}
						default:
							b.exits(0)
						}
					case p != point.KeeperReleased: // after that it does not come there again
						w.faultyKeeper("")
					}
					w.awaitSnapshot(before, func() bool { return w.lease() == nil && c.bare(w) == bare })
					c.answers(w, original)
					w.assertManifest(before, c.manifest)
				})
			}
		}
	}
}

// faultyKeeper has the keeper's pod replaced by one with this fault, and waits until it is Ready.
func (w *world) faultyKeeper(fault string) {
	w.t.Helper()
	name := w.lease().Annotations["bridge.internal/keeper"]
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"keeper","env":[{"name":%q,"value":%q}]}]}}}}`, point.Env, fault)
	d, err := s.client.AppsV1().Deployments(w.ns).Patch(w.t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.await("another keeper", func() bool {
		now, err := s.client.AppsV1().Deployments(w.ns).Get(w.t.Context(), name, metav1.GetOptions{})
		return err == nil && now.Status.ObservedGeneration >= d.Generation && now.Status.UpdatedReplicas == 1 && now.Status.ReadyReplicas == 1
	})
}

// The keeper's pod goes, before it is needed and in the middle of its work: another one does it.
func TestKeeperDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap(soon...)
	b.kill()
	w.deleteKeeper()
	w.awaitKeeperAtWork()
	w.deleteKeeper()
	w.awaitGivenBack(before)
}

func (w *world) deleteKeeper() {
	w.t.Helper()
	now := int64(0)
	err := s.client.CoreV1().Pods(w.ns).DeleteCollection(w.t.Context(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{LabelSelector: "bridge.internal/keeper"})
	if err != nil {
		w.t.Fatal(err)
	}
}

// A pod of the proxy that does not end, as on a lost node, keeps neither the swap nor its Deployment.
func TestKeeperAndALostNode(t *testing.T) {
	if !soak(true, false) {
		t.Skip("it waits for a minute")
	}
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap(soon...)
	hold := func(finalizers string) {
		w.t.Helper()
		_, err := s.client.CoreV1().Pods(w.ns).Patch(t.Context(), w.proxy().Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":`+finalizers+`}}`), metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	hold(`["test.internal/lost-node"]`)
	b.kill()
	w.awaitKeeperAtWork()
	w.answeredBy("original")
	w.await("the end of the Lease and of the proxy's Deployment", func() bool {
		_, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "bridge-deployment-orders", metav1.GetOptions{})
		return w.lease() == nil && apierrors.IsNotFound(err)
	})
	w.proxy() // is still ending
	hold("null")
	w.awaitGivenBack(before)
}

// editor is a kubeconfig of somebody with the built-in role edit, who may not create Roles.
func (w *world) editor() string {
	w.t.Helper()
	path := w.as("editor")
	_, err := s.client.RbacV1().RoleBindings(w.ns).Create(w.t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "editor"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edit"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: "editor", Namespace: w.ns}},
	}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return path
}

// Who may not create Roles is told at once that nobody gives back, or swaps not at all.
func TestWithoutAKeeper(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	who := w.editor()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders"}, localOrders(t)...)
	b := w.bridgeAs(who, nil, append(args, "--self-restore", "always")...)
	b.exits(int(hint.Forbidden))
	b.says("your account may not create roles.rbac.authorization.k8s.io, create rolebindings.rbac.authorization.k8s.io, and no admin has prepared bridge-keeper")
	b.says("deploy/keeper.yaml")
	w.assertSnapshot(before)

	b = w.bridgeAs(who, nil, slices.Concat(args, soon, []string{"--mode", "replace"})...)
	b.says("nobody gives it back when this machine is gone (your account may not create roles")
	b.says("bridge restore deployment orders -n " + w.ns)
	b.says(swapped)
	if is := w.status().IfLost; is != "stays swapped: it has no keeper" {
		t.Errorf("status: if lost %q", is)
	}
	b.terminate()
	w.assertGivenBack(before)
}

// Where neither anybody would give it back nor the original can stand by, mode auto refuses, with both reasons.
func TestAutoRefusesWhatNobodyGivesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	who := w.editor()
	if err := s.client.CoreV1().Services(w.ns).Delete(t.Context(), "orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	before := w.snapshot()
	b := w.bridgeAs(who, nil, append([]string{"swap", "deployment", "orders"}, localOrders(t)...)...)
	b.exits(int(hint.Usage))
	b.says("nobody would give deployment/orders in " + w.ns + " back when this machine is gone (your account may not create roles")
	b.says("and the original cannot stand by: deployment/orders cannot be swapped in mode standby: no Service selects it")
	b.says("--mode replace swaps all the same")
	w.assertSnapshot(before)
}

// prepare applies deploy/keeper.yaml, with what old says replaced.
func (w *world) prepare(old, new string) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.root, "deploy", "keeper.yaml"))
	if err != nil {
		w.t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		w.t.Fatalf("deploy/keeper.yaml has no %q", old)
	}
	w.apply(strings.Replace(string(b), old, new, 1))
}

// The keeper that an admin has prepared serves those with edit and those with deploy/swap.yaml.
func TestPreparedKeeper(t *testing.T) {
	t.Parallel()
	for name, who := range map[string]func(w *world) string{
		"edit":        (*world).editor,
		"deploy/swap": func(w *world) string { return w.as("ada", deployed(t, "swap")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			w.prepare("", "")
			kubeconfig := who(w)
			before := w.snapshot()
			b := w.bridgeAs(kubeconfig, nil, append(append([]string{"swap", "deployment", "orders", "--self-restore", "always"}, localOrders(t)...), soon...)...)
			b.says("keeper: ready")
			b.says(swapped)
			b.kill()
			w.awaitGivenBack(before)
		})
	}
}

// A keeper that lacks a right is found out before anything is changed.
func TestKeeperProvesItsRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	w.prepare("resources: [\"services\"]\n  verbs: [\"get\", \"patch\"]", "resources: [\"services\"]\n  verbs: [\"get\"]")
	who := w.editor()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders"}, localOrders(t)...)
	b := w.bridgeAs(who, nil, append(args, "--self-restore", "always")...)
	b.exits(int(hint.ProxyNotReady))
	b.says(`cannot patch resource \"services\"`)
	w.assertSnapshot(before)

	// It is what mode replace was chosen for; who insists on that mode is told.
	b = w.bridgeAs(who, nil, args...)
	b.says("mode replace, since a keeper can start the original again: ")
	b.exits(int(hint.ProxyNotReady))
	b.says(`nobody would give deployment/orders in ` + w.ns + ` back when this machine is gone: the keeper's pod is not Ready`)
	b.says("--mode standby")
	w.assertSnapshot(before)

	b = w.bridgeAs(who, nil, append(args, "--mode", "replace")...)
	b.says(`note: nobody gives it back when this machine is gone (the keeper's pod is not Ready`)
	b.says(swapped)
	if is := w.status().IfLost; is != "stays swapped: its keeper is not ready" {
		t.Errorf("status: if lost %q", is)
	}
	b.terminate()
	w.assertSnapshot(before)
}

// Each right of deploy/keeper.yaml that a deployment takes is missed before anything is changed, and without the others a swap has its keeper.
func TestKeeperMissesEachRight(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join(s.root, "deploy", "keeper.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	docs := strings.Split(string(b), "\n---\n") // the account, the Role, the binding
	var role rbacv1.Role
	if err := yaml.Unmarshal([]byte(docs[1]), &role); err != nil {
		t.Fatal(err)
	}
	var each []rbacv1.PolicyRule
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				each = append(each, rbacv1.PolicyRule{APIGroups: rule.APIGroups, Resources: []string{resource}, Verbs: []string{verb}})
			}
		}
	}
	needed := []string{
		"get leases", "patch leases", "delete leases", "get deployments/scale", "patch deployments/scale", "get deployments", "patch deployments", "delete deployments",
		"patch replicasets", "get services", "patch services",
	}
	tried := 0
	for i, without := range each {
		right := without.Verbs[0] + " " + without.Resources[0]
		need := slices.Contains(needed, right)
		if need {
			tried++
		}
		if !soak(true, right == "patch deployments/scale" || right == "list replicasets") {
			continue
		}
		t.Run("without "+right, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			role := role.DeepCopy()
			role.Rules = slices.Delete(slices.Clone(each), i, i+1)
			if _, err := s.client.RbacV1().Roles(w.ns).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			w.apply(docs[0])
			w.apply(docs[2])
			who := w.editor()
			before := w.snapshot()
			b := w.bridgeAs(who, nil, append([]string{"swap", "deployment", "orders", "--self-restore", "always"}, localOrders(t)...)...)
			if need {
				b.exits(int(hint.ProxyNotReady))
				b.says(fmt.Sprintf(`cannot %s resource \"%s\"`, without.Verbs[0], without.Resources[0]))
				w.assertSnapshot(before)
				return
			}
			b.says("keeper: ready")
			b.says(swapped)
			b.terminate()
			w.assertGivenBack(before)
		})
	}
	if tried != len(needed) {
		t.Errorf("deploy/keeper.yaml has %d of %q", tried, needed)
	}
}

// A laptop that was away for longer than that finds the original serving. It says so and leaves it alone, or swaps anew if
// that was asked for.
func TestLaptopComesBackTooLate(t *testing.T) {
	t.Parallel()
	for _, rejoin := range []bool{false, true} {
		t.Run(fmt.Sprintf("rejoin %v", rejoin), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			b := w.swap(append(soon, fmt.Sprintf("--rejoin=%v", rejoin))...)
			b.signal(syscall.SIGSTOP)
			w.await("the namespace as it was", func() bool { return w.lease() == nil && w.snapshot() == before })
			b.signal(syscall.SIGCONT)
			b.says("the original serves again since ")
			if rejoin {
				b.says("swapping anew")
				w.answeredBy("laptop")
				b.terminate()
			} else {
				b.exits(int(hint.Conflict))
				b.says("--rejoin")
				w.answeredBy("original")
			}
			w.assertGivenBack(before)
			for _, line := range b.stderr.all() {
				if strings.Contains(line, "has scaled") || strings.Contains(line, "does not hold") {
					t.Errorf("the keeper is taken for somebody else: %q", line)
				}
			}
		})
	}
}

// One that comes back before takes its swap up, as without a keeper.
func TestLaptopComesBackInTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders"}, localOrders(t)...)
	b := w.bridge(args...)
	b.says(swapped)
	keeper := w.pods("bridge.internal/keeper")
	b.kill()
	b = w.bridge(args...)
	b.says("taking up the swap")
	if first := b.stderr.all()[0]; !strings.Contains(first, "taking up the swap") {
		t.Errorf("its first line is %q", first)
	}
	b.says("1m0s after this machine's last heartbeat a keeper in the cluster gives it back")
	b.says(swapped)
	w.answeredBy("laptop")
	if again := w.pods("bridge.internal/keeper"); len(keeper) != 1 || len(again) != 1 || keeper[0].UID != again[0].UID {
		t.Errorf("the keepers were %v, are %v", keeper, again)
	}
	b.terminate()
	w.assertGivenBack(before)
}

// bridge restore beside the keeper: whoever takes the Lease later goes on, and both end well.
func TestRestoreBesideTheKeeper(t *testing.T) {
	t.Parallel()
	t.Run("after the keeper", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t).withOrders()
		before := w.snapshot()
		w.swap(soon...).kill()
		w.awaitKeeperAtWork()
		w.bridge("restore", "deployment", "orders").exits(0)
		w.assertGivenBack(before)
	})
	t.Run("before the keeper", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t).withOrders()
		before := w.snapshot()
		w.swap(soon...).kill()
		r := w.bridge("restore", "deployment", "orders")
		r.says("giving deployment/orders back")
		r.signal(syscall.SIGSTOP)
		w.awaitKeeperAtWork()
		r.signal(syscall.SIGCONT)
		r.exits(0)
		w.assertGivenBack(before)
	})
}

// The laptop's clock is of no account: a Lease that is renewed is not lapsed, whatever its times say, and one that is not
// renewed is.
func TestKeeperTrustsNoClock(t *testing.T) {
	t.Parallel()
	for name, year := range map[string]int{"behind": 1971, "ahead": 2100} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			w.swap(soon...).kill()
			clock := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for begin := time.Now(); time.Since(begin) < 18*time.Second; <-tick.C {
				clock = clock.Add(time.Microsecond)
				w.renew(clock)
			}
			w.awaitGivenBack(before)
		})
	}
}

// renew is a heartbeat with this time, as a laptop with such a clock would make it. Nobody gives back meanwhile.
func (w *world) renew(clock time.Time) {
	w.t.Helper()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		l := w.lease()
		if l == nil || strings.HasPrefix(*l.Spec.HolderIdentity, "restore by ") {
			w.t.Fatalf("given back although it was renewed: %+v", l)
		}
		stamp := metav1.NewMicroTime(clock)
		l.Spec.RenewTime = &stamp
		_, err := s.client.CoordinationV1().Leases(w.ns).Update(w.t.Context(), l, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// An API server that does not answer for longer than the period lapses nothing while the laptop lives.
func TestAPIServerAwayLapsesNothing(t *testing.T) {
	embedded(t)
	// Not parallel: it stops every test's API server.
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap(soak([]string{}, soon)...)
	uid := w.lease().UID
	p, err := os.FindProcess(apiServerProcess(t))
	if err != nil {
		t.Fatal(err)
	}
	for range soak(3, 1) {
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soak(90*time.Second, 9*time.Second)) // the fault itself
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		w.await("two heartbeats", func() bool {
			l := w.lease()
			if l == nil || l.UID != uid || strings.HasPrefix(*l.Spec.HolderIdentity, "restore by ") {
				t.Fatalf("given back while the laptop lives: %+v", l)
			}
			return l.Spec.RenewTime.Sub(at) > 2*time.Duration(*l.Spec.LeaseDurationSeconds)*time.Second/6
		})
	}
	w.answeredBy("laptop")
	b.terminate()
	w.assertGivenBack(before)
}

// apiServerProcess is the embedded cluster's, as its state has it.
func apiServerProcess(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/var/lib/bridge-cluster", clusterName, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var state struct {
		Processes []struct {
			Name string
			PID  int
		}
	}
	if err := json.Unmarshal(b, &state); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(state.Processes, func(p struct {
		Name string
		PID  int
	}) bool {
		return p.Name == "kube-apiserver"
	})
	if i < 0 {
		t.Fatal("no kube-apiserver in the cluster's state")
	}
	return state.Processes[i].PID
}
