package kube

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// The ranges are whole when each question has an answer, were it that the account may not ask.
func TestRangesTellWhetherTheyAreWhole(t *testing.T) {
	services := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12"}}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.0.0/24"}}}
	forbidden := apierrors.NewForbidden(schema.GroupResource{}, "", nil)
	for _, c := range []struct {
		services, nodes error
		want            string
	}{
		{nil, nil, "[10.96.0.0/12 10.244.0.0/24] true"},
		{forbidden, nil, "[10.244.0.0/24] true"},
		{nil, apierrors.NewNotFound(schema.GroupResource{}, ""), "[10.96.0.0/12] true"},
		{forbidden, forbidden, "[] true"},
		{context.DeadlineExceeded, nil, "[10.244.0.0/24] false"},
		{nil, context.DeadlineExceeded, "[10.96.0.0/12] false"},
		{forbidden, apierrors.NewInternalError(context.DeadlineExceeded), "[] false"},
	} {
		set := fake.NewClientset(services, node)
		for resource, err := range map[string]error{"servicecidrs": c.services, "nodes": c.nodes} {
			set.PrependReactor("list", resource, func(k8stesting.Action) (bool, runtime.Object, error) { return err != nil, nil, err })
		}
		list, whole := (&Client{Clientset: set}).Ranges(t.Context())
		if got := fmt.Sprint(list, whole); got != c.want {
			t.Errorf("%v, %v: %s, want %s", c.services, c.nodes, got, c.want)
		}
	}
}
