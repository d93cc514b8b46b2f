package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Services are those of a namespace, or of all for "": at most most. more tells that there are others.
func (c *Client) Services(ctx context.Context, namespace string, most int64) (list []corev1.Service, more bool, err error) {
	l, err := c.Clientset.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{Limit: most})
	if err != nil {
		return nil, false, err
	}
	return l.Items, l.Continue != "", nil
}
