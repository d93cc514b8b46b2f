package kube

import (
	"context"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// rangesTime bounds the question, whose answer is a help and no more.
	rangesTime = 5 * time.Second
	// nodesAtOnce is how many nodes are asked for in one request.
	nodesAtOnce = 500
)

// Ranges are those of the cluster's Services (networking.k8s.io ServiceCIDRs) and pods (the nodes' podCIDRs), as far as the account may
// read them: both belong to no namespace. whole is false when an answer is missing, so that there may be others; that the account may not, or that
// this API server knows none, is an answer.
func (c *Client) Ranges(ctx context.Context) (list []netip.Prefix, whole bool) {
	ctx, cancel := context.WithTimeout(ctx, rangesTime)
	defer cancel()
	add := func(texts []string) {
		for _, text := range texts {
			if p, err := netip.ParsePrefix(text); err == nil {
				list = append(list, p)
			}
		}
	}
	services, err := c.Clientset.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if whole = answered(err); err == nil {
		for _, s := range services.Items {
			add(s.Spec.CIDRs)
		}
	}
	for more := (metav1.ListOptions{Limit: nodesAtOnce}); ; {
		nodes, err := c.Clientset.CoreV1().Nodes().List(ctx, more)
		if err != nil {
			return list, whole && answered(err)
		}
		for _, n := range nodes.Items {
			add(n.Spec.PodCIDRs)
		}
		if more.Continue = nodes.Continue; more.Continue == "" {
			return list, whole
		}
	}
}

// answered tells whether the API server has said what there is, or that nothing is to be had.
func answered(err error) bool {
	return err == nil || apierrors.IsForbidden(err) || apierrors.IsNotFound(err)
}
