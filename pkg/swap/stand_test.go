//go:build unix

package swap

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

// onTarget has the target of u with the record's copy.
func onTarget(t *testing.T, k *kube.Client, u *Undo) {
	t.Helper()
	record, err := u.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	d := deploymentWith(metav1.ObjectMeta{Namespace: "shop", Name: "orders", UID: "uid-orders", Annotations: map[string]string{proxypod.UndoAnnotation: record}})
	d.Spec.Selector = &metav1.LabelSelector{}
	k.Clientset.(*shop).apps = apiServer(t, map[string]any{
		deploymentPath + "orders": d, "/apis/apps/v1/namespaces/shop/replicasets": map[string]any{"kind": "ReplicaSetList", "apiVersion": "apps/v1"},
	}, func(*http.Request) int { return http.StatusOK }).Clientset.AppsV1()
}

// leasesMade is how many Leases were created.
func leasesMade(k *kube.Client) (n int) {
	for _, a := range k.Clientset.(*shop).Actions() {
		if a.GetVerb() == "create" && a.GetResource().Resource == "leases" {
			n++
		}
	}
	return n
}

// Who stands back goes on when the Lease is deleted and the copy of the record is left: with the restorer's Lease its keeper is gone.
func TestLeaseDeletedWhileStandingBack(t *testing.T) {
	k, _, u, ada := sharedShop(t)
	onTarget(t, k, u)
	r := &Restorer{Kube: k, Say: func(string) {}}
	_, c, err := r.takeLease(t.Context(), orders, proxypod.RestoreBy+"eve@pc", swapOf(u))
	if err != nil {
		t.Fatal(err)
	}
	var deleting sync.WaitGroup
	defer deleting.Wait()
	deleting.Go(func() {
		time.Sleep(2 * proxypod.Poll)
		_ = c.release(context.Background()) // as by hand
	})
	before := leasesMade(k)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_ = ada.end(ctx, &proxypod.TakenError{By: proxypod.RestoreBy + "eve@pc"}) // there is no cluster to give it back in
	if leasesMade(k) == before {
		t.Error("the record is on the target, there is no Lease, and nobody has taken it")
	}
}

// A Lease that somebody has made anew from the copy is that of the same swap, and still being given back.
func TestLeaseMadeAnewIsAwaited(t *testing.T) {
	k, lease, u, ada := sharedShop(t)
	if err := k.Clientset.CoordinationV1().Leases("shop").Delete(t.Context(), lease.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	record, err := u.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again := newLease(u, record, proxypod.RestoreBy+"bob@pc", "", time.Now())
	again.UID = "uid-2"
	if _, err := k.Clientset.CoordinationV1().Leases("shop").Create(t.Context(), again, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*proxypod.Poll)
	defer cancel()
	if err := ada.claim.awaitEnd(ctx, u); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it ends while bob is at work: %v", err)
	}
}

func TestTakingItOutlivesAHiccup(t *testing.T) {
	k, lease, u, ada := sharedShop(t)
	onTarget(t, k, u)
	if err := k.Clientset.CoordinationV1().Leases("shop").Delete(t.Context(), lease.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	asked := 0
	k.Clientset.(*shop).PrependReactor("get", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
		if asked++; asked == 1 {
			return true, nil, apierrors.NewServiceUnavailable("starting")
		}
		return false, nil, nil
	})
	before := leasesMade(k)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_ = ada.end(ctx, &proxypod.TakenError{})
	if leasesMade(k) == before {
		t.Errorf("given up after the API server was asked %d times", asked)
	}
}

// Nobody is displaced whose place is not needed any more.
func TestNobodyIsDisplacedWithoutNeed(t *testing.T) {
	k, lease, u, ada := sharedShop(t)
	l := member.New(*ada.claim.share)
	s := &Session{displaces: []member.Member{*ada.claim.share}} // the list was full; since then others have left
	bob := someone(t, k, lease, u, "bob@pc", "b", "bob")
	if err := s.addTo(&l, *bob.claim.share); err != nil || len(l.Members) != 2 {
		t.Errorf("%v: %s", err, l.Owners())
	}
}

// The proxies' pods are patched for as long as a proxy may take to learn of a share, and not for as long as CMD takes to answer.
func TestNudgingEnds(t *testing.T) { synctest.Test(t, nudgingEnds) }

func nudgingEnds(t *testing.T) {
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
	bob := someone(t, k, lease, u, "bob@pc", "b", "bob")
	key := newKey(t)
	bob.claim.share.Client = key.Fingerprint()
	c, err := bob.join(t.Context(), bob.claim.share)
	if err != nil {
		t.Fatal(err)
	}
	bob.claim, bob.ReadyTimeout = c, time.Minute
	bob.stands, bob.answers = make(chan struct{}), make(chan struct{})
	bob.Program = &Program{} // slow to answer
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	bob.lines = &lines{changed: make(chan struct{})}
	keys := []tunnel.Key{newKey(t), newKey(t)}
	for i := range 2 {
		l := &piped{conns: make(chan net.Conn), ended: make(chan struct{})}
		srv := &tunnel.Server{Key: keys[i], Client: key.Fingerprint()}
		if i == 1 {
			srv = nil
		}
		door := &tunnel.Door{Key: keys[i], Server: func(tunnel.Fingerprint) *tunnel.Server { return srv }}
		running.Go(func() { _ = door.Serve(ctx, l) })
		client := bob.newTunnel()
		client.Key, client.Carrier, client.OnState = key, l.dial, func(tunnel.State) { bob.lines.tell() }
		bob.lines.clients = append(bob.lines.clients, client)
	}
	running.Go(func() { bob.lines.run(ctx, func(err error) { t.Errorf("the share ends: %v", err) }) })
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
