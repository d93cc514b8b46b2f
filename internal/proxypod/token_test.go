//go:build unix

package proxypod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"bridge/internal/kube"
	"bridge/internal/podview"
	"bridge/pkg/tunnel"
)

// tokens is a cluster that makes tokens of the ServiceAccount of the proxy's pod: "2 of pod-a for vault" is the second, bound to that pod.
type tokens struct {
	*fake.Clientset
	proxy  *Proxy
	pod    string
	made   int
	asked  authenticationv1.TokenRequestSpec // the last time
	refuse atomic.Bool
}

func newTokens(t *testing.T) *tokens {
	c := &tokens{Clientset: fake.NewClientset()}
	c.proxy = &Proxy{Kube: &kube.Client{Clientset: c.Clientset}, Namespace: "shop", Lease: "l"}
	c.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		create := a.(clienttesting.CreateActionImpl)
		if create.GetSubresource() != "token" || create.Name != "orders" {
			t.Errorf("%s of %q is asked for", create.GetSubresource(), create.Name)
		}
		if c.refuse.Load() {
			return true, nil, errors.New("not now")
		}
		c.made++
		r := create.Object.(*authenticationv1.TokenRequest).DeepCopy()
		c.asked = r.Spec
		pod := types.UID("nobody")
		if r.Spec.BoundObjectRef != nil {
			pod = r.Spec.BoundObjectRef.UID
		}
		audience := "the API server"
		if len(r.Spec.Audiences) > 0 {
			audience = r.Spec.Audiences[0]
		}
		r.Status = authenticationv1.TokenRequestStatus{
			Token: fmt.Sprintf("%d of %s for %s", c.made, pod, audience), ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Duration(*r.Spec.ExpirationSeconds) * time.Second)),
		}
		return true, r, nil
	})
	return c
}

// runs has the proxy's pod be this one.
func (c *tokens) runs(t *testing.T, name string) {
	t.Helper()
	pods := c.CoreV1().Pods("shop")
	err := pods.Delete(t.Context(), c.pod, metav1.DeleteOptions{})
	if err == nil || c.pod == "" {
		c.pod = name
		_, err = pods.Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{ProxyLabel: LabelValue("l")}},
			Spec:       corev1.PodSpec{ServiceAccountName: "orders"},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A token is the same until a fifth of its hour is left, or its pod is another one; then the next one is in its file, which nobody needs to be told.
// It is tried again until it can be had.
func TestTokensAreRefreshed(t *testing.T) {
	folder, err := podview.OpenFolder(filepath.Join(t.TempDir(), "pod"))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	synctest.Test(t, func(t *testing.T) {
		c := newTokens(t)
		c.runs(t, "pod-a")
		var said []string
		m := &podview.Mirror{
			Folder: folder, Account: AccountPath, Tokens: c.proxy.Tokens(true), Say: func(line string) { said = append(said, line) },
			Look: func(_ context.Context, have string) (*tunnel.View, error) {
				if have != "" {
					return nil, nil // as it was
				}
				return &tunnel.View{Sum: "1", Entries: []tunnel.Entry{
					{Type: tunnel.Token, Name: AccountPath + "/token"}, {Type: tunnel.Token, Name: "/etc/vault", Data: []byte("vault")},
				}}, nil
			},
		}
		if _, err := m.First(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { m.Run(ctx) })
		start := time.Now()
		has := func(after time.Duration, account, vault string) {
			t.Helper()
			time.Sleep(time.Until(start.Add(after + time.Second)))
			synctest.Wait()
			for name, want := range map[string]string{AccountPath + "/token": account, "/etc/vault": vault} {
				if b, err := os.ReadFile(filepath.Join(folder.Root(), name)); err != nil || string(b) != want {
					t.Errorf("after %v: %s is %q, %v; want %q", after, name, b, err, want)
				}
			}
		}
		const first, second = "1 of pod-a for the API server", "2 of pod-a for vault"
		has(0, first, second)
		has(48*time.Minute, first, second)
		has(48*time.Minute+10*time.Second, "3 of pod-a for the API server", "4 of pod-a for vault")
		c.runs(t, "pod-b")
		has(49*time.Minute, "5 of pod-b for the API server", "6 of pod-b for vault")
		c.refuse.Store(true)
		has(100*time.Minute, "5 of pod-b for the API server", "6 of pod-b for vault")
		c.refuse.Store(false)
		has(101*time.Minute, "7 of pod-b for the API server", "8 of pod-b for vault")
		stop()
		running.Wait()
		if len(said) != 1 {
			t.Errorf("it says %q, want that it was refused, once", said)
		}
	})
}

// A token for bridge files outlives the proxy's pod, so it is bound to nobody.
func TestTokenThatStays(t *testing.T) {
	c := newTokens(t)
	if _, err := c.proxy.Tokens(false)(t.Context(), ""); err == nil {
		t.Error("a token of a pod that is not there")
	}
	c.runs(t, "pod-a")
	for range 2 {
		if text, err := c.proxy.Tokens(false)(t.Context(), ""); err != nil || c.asked.BoundObjectRef != nil || len(c.asked.Audiences) > 0 || *c.asked.ExpirationSeconds != 3600 {
			t.Errorf("%q, %v: %+v", text, err, c.asked)
		}
	}
}
