package main

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// Where the cluster could not tell all of its ranges nothing is routed: half of them would look like a broken cluster. That the account may not read them is
// something else.
func TestRangesThatAreNotKnownAreNotRouted(t *testing.T) {
	for want, err := range map[hint.Code]error{
		hint.Unreachable: apierrors.NewInternalError(errors.New("etcd is away")),
		hint.Usage:       apierrors.NewForbidden(schema.GroupResource{Resource: "servicecidrs"}, "", nil),
	} {
		clients := fake.NewClientset(&corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{}}})
		clients.PrependReactor("list", "servicecidrs", func(k8stesting.Action) (bool, runtime.Object, error) { return true, nil, err })
		if got := new(app).planWhole(t.Context(), &kube.Client{Clientset: clients}, nil, network{}, nil); hint.CodeOf(got) != want {
			t.Errorf("%v, code %d, want %d", got, hint.CodeOf(got), want)
		}
	}
}
