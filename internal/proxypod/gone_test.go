package proxypod

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"bridge/internal/kube"
)

// proxyOf has the pods that list gives, with its label.
func proxyOf(t *testing.T, list func() ([]corev1.Pod, error)) *Proxy {
	t.Helper()
	k, err := kube.NewForConfig(&rest.Config{Host: "https://127.0.0.1:1"}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	set := fake.NewClientset()
	set.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		pods, err := list()
		if err != nil {
			return true, nil, err
		}
		for i := range pods {
			pods[i].Labels = map[string]string{ProxyLabel: LabelValue("l")}
		}
		return true, &corev1.PodList{Items: pods}, nil
	})
	k.Clientset = set
	return &Proxy{Kube: k, Namespace: "shop", Lease: "l"}
}

// A pod that does not end is left to the cluster when its time is over, also where the last request of that time is not made any more: the client
// spreads its requests, and gives up one whose turn would come too late.
func TestLingeringPodIsLeft(t *testing.T) {
	gaveUp := errors.New("client rate limiter Wait returned an error: rate: Wait(n=1) would exceed context deadline")
	for name, answered := range map[string]time.Duration{"answered until the last": goneTimeout - time.Second, "never": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				lingering, err := proxyOf(t, func() ([]corev1.Pod, error) {
					if time.Since(begin) >= answered {
						return nil, gaveUp
					}
					now := metav1.Now()
					return []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "lost", DeletionTimestamp: &now}}}, nil
				}).WaitGone(t.Context())
				switch {
				case answered > 0 && (err != nil || !slices.Equal(lingering, []string{"lost"})):
					t.Errorf("lingering %q, %v", lingering, err)
				case answered == 0 && !kube.Transient(err):
					t.Errorf("without an answer: %q, %v", lingering, err)
				}
			})
		})
	}
}

// A pod that the garbage collector has not got to in that time is waited for as long again.
func TestPodThatIsNotDeletedYetIsWaitedFor(t *testing.T) {
	for late, gone := range map[time.Duration]bool{goneTimeout * 3 / 2: true, goneTimeout * 3: false} {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			_, err := proxyOf(t, func() ([]corev1.Pod, error) {
				if time.Since(begin) >= late {
					return nil, nil
				}
				return []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "left"}}}, nil
			}).WaitGone(t.Context())
			if (err == nil) != gone || !gone && !errors.Is(err, errUndeleted) {
				t.Errorf("gone after %v: %v", late, err)
			}
		})
	}
}
