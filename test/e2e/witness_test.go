//go:build linux

package e2e

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/rights"
)

// withoutDNS drops what the pod at ip asks the cluster's resolver, until the function that it returns is called.
func withoutDNS(t *testing.T, ip string) (pass func()) {
	t.Helper()
	rule := func(op string) error {
		for _, protocol := range []string{"tcp", "udp"} {
			out, err := exec.Command("nsenter", "--net=/run/netns/"+clusterName+"-node1", "iptables", "-w", "-t", "mangle", op, "PREROUTING", "-s", ip, "-p", protocol, "--dport", "53", "-j", "DROP").CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
		}
		return nil
	}
	if err := rule("-I"); err != nil {
		t.Fatal(err)
	}
	dropped := true
	pass = func() {
		if dropped {
			if err := rule("-D"); err != nil {
				t.Error(err)
			}
		}
		dropped = false
	}
	t.Cleanup(pass)
	return pass
}

// A name that was asked for is answered while the cluster's DNS cannot be, past its lifetime, as in a pod; and what becomes of its Service
// is followed.
func TestNamesNeedNoQuestionWhileNothingChanges(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t).withNames()
	domain := "." + w.ns + ".svc.cluster.local."
	const A, AAAA, SRV = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeSRV
	table := []struct {
		name  string
		kind  dnsmessage.Type
		count int // of records
	}{
		{"orders", A, 1}, {"orders", AAAA, 0}, {"_http._tcp.orders", SRV, 1}, {"pods", A, 2}, {"busy.named", A, 1}, {"some", A, someEndpoints}, {"nobody", A, 0},
	}
	var questions []question
	for _, row := range table {
		questions = append(questions, question{"udp", 4096, row.name + domain, row.kind})
	}
	var want []answer
	w.await("the pod's resolver", func() bool {
		want = askAll(t, w.inPod, questions)
		for i, a := range want {
			if len(a.records) != table[i].count {
				return false
			}
		}
		return true
	})
	server := atServer(w.connect(s.kubeconfig, nil).dnsServer())
	pod := w.pods("bridge.internal/proxy")[0].Status.PodIP
	askAll(t, server, questions)
	time.Sleep(50 * time.Second) // until then the watches, which the first questions begin, are new
	var differs []string
	w.await("answers without the cluster's DNS", func() bool {
		askAll(t, server, questions)
		pass := withoutDNS(t, pod)
		defer pass()
		time.Sleep(31 * time.Second) // the lifetime that the cluster gives is over: nothing is kept for longer by itself
		differs = nil
		for i, got := range askAll(t, server, questions) {
			if d := want[i].differs(got); d != "" {
				differs = append(differs, fmt.Sprintf("%v: %s", questions[i], d))
			}
		}
		if len(differs) > 0 {
			t.Logf("not yet: %q", differs)
			return false
		}
		if other := askAll(t, server, []question{{"udp", 4096, "bare" + domain, A}})[0]; other.code != dnsmessage.RCodeServerFailure {
			t.Errorf("a name that was not asked for: %+v: the cluster's DNS is there", other)
		}
		return true
	})

	orders := questions[:1]
	service, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.client.CoreV1().Services(w.ns).Delete(t.Context(), "orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("that it is gone", func() bool { return askAll(t, server, orders)[0].code == dnsmessage.RCodeNameError })
	service.ObjectMeta = metav1.ObjectMeta{Name: "orders"}
	service.Spec.ClusterIP, service.Spec.ClusterIPs = "", nil
	if _, err := s.client.CoreV1().Services(w.ns).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("that it is back", func() bool {
		inPod, got := askAll(t, w.inPod, orders)[0], askAll(t, server, orders)[0]
		return len(got.records) == 1 && !slices.Equal(got.records, want[0].records) && inPod.differs(got) == ""
	})
}

// Who may watch nothing has names all the same.
func TestNamesWithoutTheRightToWatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.connect(w.as("grace", granting("few", rights.Connect.Required(true))), nil, "-v")
	server := atServer(b.dnsServer())
	questions := []question{{"udp", 0, "orders." + w.ns + ".svc.cluster.local.", dnsmessage.TypeA}}
	w.await("the name", func() bool { return len(askAll(t, server, questions)[0].records) == 1 })
	b.says("the rights that are needed: bridge rbac connect -n " + w.ns)
	b.terminate()
}
