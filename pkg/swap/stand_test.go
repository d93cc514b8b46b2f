//go:build unix

package swap

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/proxypod"
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
	_, c, err := r.takeLease(t.Context(), orders, proxypod.RestoreBy+"eve@pc", nil, swapOf(u))
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
