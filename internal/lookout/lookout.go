// Package lookout looks, before a swap, for what else in the cluster concerns the workload, and says in one line each what will
// happen: autoscalers, GitOps controllers, disruption budgets, quotas, meshes, policies, volumes. It changes nothing, and reads
// only what the user may. pkg/swap calls it.
package lookout

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"bridge/internal/kube"
)

const (
	// patience bounds all of it: what is not known by then is no reason to wait.
	patience = 5 * time.Second
	// atOnce is how many questions are under way.
	atOnce = 8
)

// Subject is a workload that is about to be swapped.
type Subject struct {
	Target *kube.Workload
	// Services are those whose endpoints move, by name.
	Services []string
	// Pod is the proxy's, and Container the one in it that is the proxy.
	Pod       corev1.PodTemplateSpec
	Container string
	// Keeper is its keeper's pod; nil: there is to be none.
	Keeper *corev1.PodTemplateSpec
	// Standby is whether the original goes on: then bridge does nothing to its replicas and its volumes.
	Standby bool
	// ConfigMaps is how many the swap creates.
	ConfigMaps int
}

// look is one lookout. It returns a line for each thing it finds; with an error too, what it knows without.
type look func(ctx context.Context, k *kube.Client, s *Subject) ([]string, error)

// Look returns what the user should know, a line each, in the same order each time. What may not be read is said in one line at
// the end; a kind of object that the cluster does not have is none.
func Look(ctx context.Context, k *kube.Client, s Subject) []string {
	type lookFor struct {
		what    string
		look    look
		replace bool // concerns mode replace alone
	}
	looks := []lookFor{
		{"autoscalers", autoscaler, false}, {"KEDA's ScaledObjects", keda, false},
		{"", argoCD, false}, {"", flux, false},
		{"disruption budgets", budget, true}, {"quotas", quota, false}, {"limit ranges", limitRange, false},
		{"meshes that the namespace asks for", mesh, false}, {"network policies", policy, true}, {"volume claims", volume, true},
	}
	if s.Standby {
		looks = slices.DeleteFunc(looks, func(l lookFor) bool { return l.replace })
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	found, failed := make([][]string, len(looks)), make([]bool, len(looks))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, l := range looks {
		group.Go(func() error {
			notes, err := l.look(ctx, k, &s)
			found[i], failed[i] = notes, err != nil && !apierrors.IsNotFound(err)
			return nil
		})
	}
	_ = group.Wait()
	notes := slices.Concat(found...)
	var unknown []string
	for i, l := range looks {
		if failed[i] {
			unknown = append(unknown, l.what)
		}
	}
	if len(unknown) > 0 {
		notes = append(notes, "not looked at, since your account may not read them or the API server did not answer: "+strings.Join(unknown, ", "))
	}
	return notes
}

// names joins names of one kind: "networkpolicy/a" or "networkpolicies a, b".
func names(kind, kinds string, list []string) string {
	if len(list) == 1 {
		return kind + "/" + list[0]
	}
	return fmt.Sprintf("%s %s", kinds, strings.Join(list, ", "))
}
