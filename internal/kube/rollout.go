package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/hint"
)

// Rollouts are Argo's, a custom resource. Bridge knows of one what is here, and links none of Argo's types.

// RolloutHashLabel is on the pods of a Rollout, with another value after each update, and in the selectors of the Services that are its own.
const RolloutHashLabel = "rollouts-pod-template-hash"

// A Rollout's controller has seen a change within a second, unless it is busy or away.
const (
	seenWithin = 5 * time.Second
	seenPoll   = 250 * time.Millisecond
)

// rollout is what matters here of a Rollout.
type rollout struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Replicas    *int32                 `json:"replicas"`
		Selector    *metav1.LabelSelector  `json:"selector"`
		Template    corev1.PodTemplateSpec `json:"template"`
		WorkloadRef *templateRef           `json:"workloadRef"`
		Strategy    struct {
			BlueGreen struct {
				Active  string `json:"activeService"`
				Preview string `json:"previewService"`
			} `json:"blueGreen"`
			Canary struct {
				Stable   string `json:"stableService"`
				Canary   string `json:"canaryService"`
				PingPong struct {
					Ping string `json:"pingService"`
					Pong string `json:"pongService"`
				} `json:"pingPong"`
				TrafficRouting struct {
					Istio struct {
						DestinationRule struct {
							Name string `json:"name"`
						} `json:"destinationRule"`
					} `json:"istio"`
				} `json:"trafficRouting"`
			} `json:"canary"`
		} `json:"strategy"`
	} `json:"spec"`
	Status struct {
		// AvailableReplicas are Ready for minReadySeconds: before that the controller sends no callers to them.
		AvailableReplicas int32 `json:"availableReplicas"`
		// ObservedGeneration is a number as text.
		ObservedGeneration string `json:"observedGeneration"`
		// StableRS is the hash of the pods that an update would replace, CurrentPodHash that of the template as it is now.
		StableRS       string `json:"stableRS"`
		CurrentPodHash string `json:"currentPodHash"`
	} `json:"status"`
}

// templateRef names the workload whose template a Rollout has.
type templateRef struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
}

// rollout reads one as a Workload; it is never nil.
func (c *Client) rollout(ctx context.Context, namespace, name string) (*Workload, error) {
	r := c.anyClient().Get().AbsPath("/apis", Rollout.APIVersion(), "namespaces", namespace, Rollout.Resource(), name).Do(ctx)
	err := r.Error() // in the API server's words, which DoRaw does not tell
	if apierrors.IsNotFound(err) {
		switch none := c.Serves(ctx, Rollout); {
		case hint.CodeOf(none) == hint.NotFound:
			return &Workload{}, fmt.Errorf("%w: %w", none, err)
		case none != nil:
			return &Workload{}, none
		}
	}
	if err != nil {
		return &Workload{}, err
	}
	b, err := r.Raw()
	if err != nil {
		return &Workload{}, err
	}
	w, err := rolloutOf(b)
	if err != nil {
		return &Workload{}, fmt.Errorf("rollout/%s: %w", name, err)
	}
	return w, nil
}

// Settled is Workload, but gives a Rollout's controller seenWithin to see what has just been changed in it, its scale for instance.
func (c *Client) Settled(ctx context.Context, namespace string, t Target) (w *Workload, err error) {
	_ = wait.PollUntilContextTimeout(ctx, seenPoll, seenWithin, true, func(context.Context) (bool, error) {
		w, err = c.Workload(ctx, namespace, t)
		return err != nil || !w.Unseen, nil
	})
	return w, err
}

// rolloutOf takes from a Rollout, in JSON, what a Workload has.
func rolloutOf(b []byte) (*Workload, error) {
	var o rollout
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, err
	}
	w := &Workload{
		Kind: Rollout, ObjectMeta: o.ObjectMeta, Selector: o.Spec.Selector, Template: o.Spec.Template, Replicas: 1, Ready: o.Status.AvailableReplicas,
		Hash: o.Status.StableRS, Updating: o.Status.StableRS == "" || o.Status.StableRS != o.Status.CurrentPodHash, Current: o.Status.CurrentPodHash, ref: o.Spec.WorkloadRef,
		Subsets: o.Spec.Strategy.Canary.TrafficRouting.Istio.DestinationRule.Name,
	}
	if o.Spec.Replicas != nil {
		w.Replicas = *o.Spec.Replicas
	}
	var err error
	switch w.Observed, err = strconv.ParseInt(o.Status.ObservedGeneration, 10, 64); {
	case err != nil:
		w.Observed = 0 // before its controller has seen it
	case w.Observed < w.Generation:
		w.Updating, w.Unseen = true, true // for all that is known: the status is of the spec before
	}
	blueGreen, canary := o.Spec.Strategy.BlueGreen, o.Spec.Strategy.Canary
	for _, name := range []string{blueGreen.Active, blueGreen.Preview, canary.Stable, canary.Canary, canary.PingPong.Ping, canary.PingPong.Pong} {
		if name != "" {
			w.Owned = append(w.Owned, name)
		}
	}
	w.label()
	return w, nil
}

// label puts the hash of the pods that serve on the template, as their controller does.
func (w *Workload) label() {
	w.Template.Name = ""
	if w.Hash == "" {
		return
	}
	if w.Template.Labels == nil {
		w.Template.Labels = map[string]string{}
	}
	w.Template.Labels[RolloutHashLabel] = w.Hash
}

// Complete reads the template, and the selector, that a Rollout has from a Deployment (workloadRef). All others have their own.
func (c *Client) Complete(ctx context.Context, w *Workload) error {
	if w.ref == nil {
		return nil
	}
	of, err := ParseTarget(w.ref.Kind, w.ref.Name)
	if err != nil || of.Kind != Deployment || w.ref.APIVersion != Deployment.APIVersion() {
		return hint.Newf(hint.Usage, "swap a rollout that has a template of its own, or a deployment's", "%s has its template from %s %s (%s), which bridge does not follow",
			w.Target(), hint.Printable(w.ref.Kind), hint.Printable(w.ref.Name), hint.Printable(w.ref.APIVersion))
	}
	d, err := c.Workload(ctx, w.Namespace, of)
	if err != nil {
		return Explain(err, fmt.Sprintf("read %s, from which %s has its template", hint.Printable(of.String()), w.Target()))
	}
	w.Template = d.Template
	w.label()
	if w.Selector == nil {
		w.Selector = d.Selector
	}
	if d.Replicas > 0 {
		w.Beside = of.String()
	}
	return nil
}

// Serves is an error, with the code NotFound, when the cluster does not have the kind; all but Rollouts it has.
func (c *Client) Serves(ctx context.Context, kind Kind) error {
	if kind != Rollout {
		return nil
	}
	// What there is at all, everybody may ask. Argo's other programs have kinds in the same group.
	b, err := c.anyClient().Get().AbsPath("/apis", kind.APIVersion()).DoRaw(ctx)
	none := apierrors.IsNotFound(err)
	if err == nil {
		var list metav1.APIResourceList
		err = json.Unmarshal(b, &list)
		if err == nil && !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == kind.Resource() }) {
			none, err = true, fmt.Errorf("%s has no %s", kind.APIVersion(), kind.Resource())
		}
	}
	if none {
		return hint.New(hint.NotFound, fmt.Errorf("this cluster has no Argo Rollouts: %w", err), "kubectl api-resources lists the kinds there are")
	}
	return Explain(err, "ask for the API of Argo Rollouts")
}
