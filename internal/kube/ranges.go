package kube

import (
	"context"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// rangesTime bounds the question, whose answer is a help and no more.
	rangesTime = 5 * time.Second
	// nodesAtOnce is how many nodes are asked for in one request.
	nodesAtOnce = 500
)

// Ranges are those of the cluster's Services (networking.k8s.io ServiceCIDRs) and pods (the nodes' podCIDRs), as far as the account may
// read them: both belong to no namespace. Nil when it may not, or the API server does not say.
func (c *Client) Ranges(ctx context.Context) (list []netip.Prefix) {
	ctx, cancel := context.WithTimeout(ctx, rangesTime)
	defer cancel()
	add := func(texts []string) {
		for _, text := range texts {
			if p, err := netip.ParsePrefix(text); err == nil {
				list = append(list, p)
			}
		}
	}
	if services, err := c.Clientset.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{}); err == nil {
		for _, s := range services.Items {
			add(s.Spec.CIDRs)
		}
	}
	for more := (metav1.ListOptions{Limit: nodesAtOnce}); ; {
		nodes, err := c.Clientset.CoreV1().Nodes().List(ctx, more)
		if err != nil {
			return list
		}
		for _, n := range nodes.Items {
			add(n.Spec.PodCIDRs)
		}
		if more.Continue = nodes.Continue; more.Continue == "" {
			return list
		}
	}
}
