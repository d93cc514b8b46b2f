package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Services are those of all namespaces, if the account may list them and they are not more than most; else those of the client's
// namespace, most of them at most.
func (c *Client) Services(ctx context.Context, most int64) ([]corev1.Service, error) {
	some := metav1.ListOptions{Limit: most}
	all, err := c.Clientset.CoreV1().Services(metav1.NamespaceAll).List(ctx, some)
	switch {
	case err == nil && all.Continue == "":
		return all.Items, nil
	case err != nil && !apierrors.IsForbidden(err):
		return nil, err
	}
	own, err := c.Clientset.CoreV1().Services(c.Namespace).List(ctx, some)
	if err != nil {
		return nil, err
	}
	return own.Items, nil
}
