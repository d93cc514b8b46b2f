//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"bridge/internal/diagnose"
	"bridge/internal/hint"
	"bridge/internal/rights"
)

// What cannot be done has its exit code, its message with the next step, and leaves nothing.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	local := localOrders(t)
	for _, c := range []struct {
		name  string
		args  []string
		code  hint.Code
		words []string
	}{
		{"a missing deployment", append([]string{"swap", "deployment", "payments"}, local...), hint.NotFound, []string{`deployments.apps "payments" not found`, "hint:"}},
		{"nothing to restore", []string{"restore", "deployment", "orders"}, hint.NotFound, []string{"is not swapped", "bridge status"}},
		{"a service", []string{"swap", "svc/orders"}, hint.Usage, []string{"workloads are swapped, and the services before them with them", "name the workload behind it"}},
		{"a daemonset", []string{"swap", "daemonset", "agent"}, hint.Usage, []string{"has a pod on each node", "bridge forward daemonset/agent"}},
		{"a job", []string{"swap", "job/nightly"}, hint.Usage, []string{"job/nightly: nobody calls a job", "bridge connect"}},
		{"a missing statefulset", append([]string{"swap", "sts/db"}, local...), hint.NotFound, []string{`statefulsets.apps "db" not found`}},
		{"a missing pod", append([]string{"swap", "pod/db-0"}, local...), hint.NotFound, []string{`pods "db-0" not found`, "check the name and the namespace"}},
		{"no local process", []string{"swap", "deployment", "orders", "--port", freePort(t) + ":http", "--local-timeout", "1s"}, hint.Other, []string{"nothing listens on localhost:", "--port LOCAL:8080"}},
		{"an image that cannot be pulled", append([]string{"swap", "deployment", "orders", "--proxy-image", "localhost:1/nowhere/bridge-proxy:1"}, local...), hint.ProxyNotReady, []string{"the proxy's pod is not Ready", "localhost:1/nowhere/bridge-proxy:1", "hint: pod/bridge-deployment-orders-", "(registry-unreachable)"}},
		{"a connect by an image that cannot be pulled", []string{"connect", "--proxy-image", "localhost:1/nowhere/bridge-proxy:1"}, hint.ProxyNotReady, []string{"hint: pod/bridge-connect-", "(registry-unreachable)"}},
		{"a forward by an image that cannot be pulled", []string{"forward", "0:orders:80", "--proxy-image", "localhost:1/nowhere/bridge-proxy:1"}, hint.ProxyNotReady, []string{"hint: pod/bridge-forward-", "(registry-unreachable)"}},
		{"forward to a missing service", []string{"forward", "svc/payments", "0:80"}, hint.NotFound, []string{"payments"}},
		{"forward to a port the service does not have", []string{"forward", "svc/orders", "0:81"}, hint.Usage, []string{"81"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := w.snapshot()
			v := &world{t: t, ns: w.ns}
			b := v.bridge(c.args...)
			b.exits(int(c.code))
			for _, words := range c.words {
				b.says(words)
			}
			v.assertSnapshot(before)
		})
	}
}

// A forward that waits in vain for a pod says what is wrong with it.
func TestForwardSaysWhyNothingRuns(t *testing.T) {
	t.Parallel()
	b := readBroken(t, "testdata/broken/two-program-service.yaml")
	if err := b.put(t); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ns: b.ns}
	w.await("the crash", func() bool {
		return slices.ContainsFunc(diagnosed(t, "-n", b.ns, "--no-dial"), func(f diagnose.Finding) bool { return f.ID == "program-exits" })
	})
	p := w.bridge("forward", "deployment/it", "0:8080", "--pod-running-timeout", "1s")
	p.exits(int(hint.Other))
	p.says("(program-exits)")
}

// as is a kubeconfig of a real ServiceAccount that has what roles grant.
func (w *world) as(name string, roles ...rbacv1.Role) (kubeconfig string) {
	w.t.Helper()
	ctx := w.t.Context()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	_, err := s.client.CoreV1().ServiceAccounts(w.ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	must(err)
	for _, role := range roles {
		_, err = s.client.RbacV1().Roles(w.ns).Create(ctx, &role, metav1.CreateOptions{})
		must(err)
		_, err = s.client.RbacV1().RoleBindings(w.ns).Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name + "-" + name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
			Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: w.ns}},
		}, metav1.CreateOptions{})
		must(err)
	}
	token, err := s.client.CoreV1().ServiceAccounts(w.ns).CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	must(err)
	config := clientcmdapi.NewConfig()
	ca := s.config.CAData
	if len(ca) == 0 {
		ca, err = os.ReadFile(s.config.CAFile)
		must(err)
	}
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: s.config.Host, CertificateAuthorityData: ca}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	path := filepath.Join(w.t.TempDir(), name)
	must(clientcmd.WriteToFile(*config, path))
	return path
}

// deployed reads a Role of deploy/.
func deployed(t *testing.T, name string) rbacv1.Role {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.root, "deploy", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var r rbacv1.Role
	if err := yaml.UnmarshalStrict(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestWithoutRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	guest := w.as("guest")
	local := localOrders(t)
	before := w.snapshot()
	for _, args := range [][]string{
		append([]string{"swap", "deployment", "orders"}, local...),
		{"restore", "deployment", "orders"},
		{"status"},
		{"diagnose"},
		{"forward", "svc/orders", "0:80"},
		{"connect"},
	} {
		b := start(t, s.bridge, []string{"KUBECONFIG=" + guest}, append(args, "-n", w.ns)...)
		b.exits(int(hint.Forbidden))
		b.says("may not ")
		b.says("hint:")
	}
	w.assertSnapshot(before)
}

// The Roles in deploy/ are enough for their commands, from beginning to end.
func TestDeployedRolesSuffice(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	kubeconfig := map[string]string{}
	for _, name := range []string{"swap", "forward", "connect", "restore", "status"} {
		kubeconfig[name] = w.as(name, deployed(t, name))
	}
	before := w.snapshot()
	run := func(as string, args ...string) *process {
		return start(t, s.bridge, []string{"KUBECONFIG=" + kubeconfig[as]}, append(args, "-n", w.ns)...)
	}
	for _, mode := range []string{"replace", "standby"} {
		b := run("swap", append([]string{"swap", "deployment", "orders", "--mode", mode}, localOrders(t)...)...)
		b.says(swapped)
		st := run("status", "status")
		st.exits(0)
		st.prints(mode)
		b.kill()
		run("restore", "restore", "deployment", "orders").exits(0)
		w.awaitReady("app=orders", 2)
	}

	f := run("forward", "forward", "svc/orders", "0:80")
	f.assertAnswers(forwarded(f.prints("Forwarding from 127.0.0.1:")), "original")
	f.terminate()

	c := run("connect", "connect", "--listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0")
	c.prints("export ALL_PROXY=")
	c.terminate()
	w.assertSnapshot(before)
}

// Without the right to patch Services a swap still works, and says what that costs.
func TestSwapWithoutMovingEndpoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	role := deployed(t, "swap")
	for i, r := range role.Rules {
		if r.Resources[0] == "services" {
			role.Rules[i].Verbs = []string{"list"}
		}
	}
	who := w.as("ada", role)
	before := w.snapshot()
	b := start(t, s.bridge, []string{"KUBECONFIG=" + who}, append([]string{"swap", "deployment", "orders", "-n", w.ns, "--mode", "replace"}, localOrders(t)...)...)
	b.says("may not patch Services")
	b.says(swapped)
	b.terminate()
	w.assertGivenBack(before)
}

// A quota that has no room for one more pod ends the swap with the cluster's own words.
func TestQuotaLeavesNoRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	w.fullQuota()
	before := w.snapshot()
	b := w.beginSwap()
	b.exits(int(hint.ProxyNotReady))
	b.says("exceeded quota")
	w.assertSnapshot(before)
}

func TestUnreachableServer(t *testing.T) {
	t.Parallel()
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: "https://127.0.0.1:" + freePort(t)}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c"}
	config.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "config")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"swap deployment orders", "restore deployment orders", "status", "forward svc/orders 0:80", "connect"} {
		b := start(t, s.bridge, []string{"KUBECONFIG=" + path}, strings.Fields(args)...)
		b.exits(int(hint.Unreachable))
		b.says("refused the connection")
	}
}

// A tunnel that can never come back ends the swap, after everything was given back.
func TestTunnelLostForGood(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	// Somebody gives the proxy another client's key: its pod is made anew, and lets nobody in.
	d, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "bridge-deployment-orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	args := d.Spec.Template.Spec.Containers[0].Args
	args[slices.Index(args, "--client")+1] = strings.Repeat("1", 64)
	if _, err := s.client.AppsV1().Deployments(w.ns).Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.exits(int(hint.TunnelLost))
	b.says("the tunnel is lost")
	w.assertGivenBack(before)
}

// Rights that vanish during a swap leave it half given back: bridge says what is left and how to go
// on, and that works once the rights are there.
func TestRestoreIncomplete(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	who := w.as("ada", deployed(t, "swap"))
	before := w.snapshot()
	b := start(t, s.bridge, []string{"KUBECONFIG=" + who}, append([]string{"swap", "deployment", "orders", "-n", w.ns, "--mode", "replace"}, localOrders(t)...)...)
	b.says(swapped)
	role, err := s.client.RbacV1().Roles(w.ns).Get(t.Context(), "bridge-swap", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	less := role.DeepCopy()
	less.Rules = slices.DeleteFunc(less.Rules, func(r rbacv1.PolicyRule) bool { return r.Resources[0] == "services" })
	if less, err = s.client.RbacV1().Roles(w.ns).Update(t.Context(), less, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.signal(syscall.SIGTERM)
	b.exits(int(hint.RestoreIncomplete))
	b.says("service/orders: ")
	b.says("bridge restore deployment orders -n " + w.ns)

	less.Rules = role.Rules
	if _, err := s.client.RbacV1().Roles(w.ns).Update(t.Context(), less, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	start(t, s.bridge, []string{"KUBECONFIG=" + who}, "restore", "deployment", "orders", "-n", w.ns).exits(0)
	w.assertSnapshot(before)
}

// Who could begin to give back, and not end it, is refused while whose swap it is still has it: by restore, and by restore --all.
func TestRestoreThatCouldNotEndIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	list := rights.Right{Group: "coordination.k8s.io", Resource: "leases", Verb: "list"}
	who := map[rights.Right]string{}
	for i, missing := range rights.MovingBack() {
		name := fmt.Sprintf("without-%d", i)
		who[missing] = w.as(name, granting(name, append(without(append(rights.Restore.Required(false), rights.Moving()...), missing), list)))
	}
	before := w.snapshot()
	b := w.swap()
	holder := func() string { return *w.lease().Spec.HolderIdentity }
	owner := holder()
	for _, missing := range rights.MovingBack() {
		for _, args := range [][]string{{"restore", "deployment", "orders"}, {"restore", "--all", "--held"}} {
			r := start(t, s.bridge, []string{"KUBECONFIG=" + who[missing], "XDG_STATE_HOME=" + t.TempDir()}, append(args, "-n", w.ns)...)
			r.says("whose callers are moved, in " + w.ns + ": your account may not do this:")
			r.says("  " + missing.String())
			code := hint.Forbidden
			if args[1] == "--all" {
				code = hint.RestoreIncomplete
			}
			r.exits(int(code))
			if now := holder(); now != owner {
				t.Fatalf("%q has %s's swap", now, owner)
			}
		}
	}
	w.answeredBy("laptop")
	b.terminate()
	w.assertSnapshot(before)
}
