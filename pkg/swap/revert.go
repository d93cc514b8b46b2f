package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/undo"
)

// A swap and a controller that keeps a manifest (Argo CD, Flux) want different things of the same fields, and the controller
// comes again. What a person changes is theirs and stays; so the two are told apart by who wrote the field.

// guard sees who takes back what a swap has changed.
type guard struct {
	mu   sync.Mutex
	made []Change

	up   bool            // at the last look the original was scaled up
	ups  int             // how often it was
	said map[Object]bool // that somebody has set it back
}

// changed tells the guard of changes that are made.
func (g *guard) changed(c ...Change) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.made = append(g.made, c...)
}

// watchOthers looks every targetPeriod, until ctx ends, giving back has begun, or (the error, with the code Conflict) a controller has
// taken back a change.
func (s *Swap) watchOthers(ctx context.Context) error {
	for {
		if sleep(ctx, targetPeriod) != nil || s.ending.Load() {
			return nil
		}
		err := s.lookAtOthers(ctx)
		if err == nil || s.ending.Load() {
			continue
		}
		// Whoever gives the swap back takes the Lease before anything else.
		if s.claim.check(ctx) == nil {
			return err
		}
	}
}

// lookAtOthers reads every object that was changed. One that cannot be read is looked at the next time.
func (s *Swap) lookAtOthers(ctx context.Context) error {
	s.guard.mu.Lock()
	made := s.guard.made
	s.guard.mu.Unlock()
	scaled, back, of := "", []string(nil), []Object(nil)
	for _, c := range made {
		switch c.Field() {
		case undo.Replicas:
			d, err := s.Kube.Workload(ctx, c.Object.Namespace, targetOf(c.Object))
			if same(err, c.Object, d.UID) != nil {
				continue
			}
			if d.Replicas > 0 && s.claim.check(ctx) != nil {
				return nil // whoever gives it back, a keeper too, has taken the Lease before
			}
			if err := s.updated(ctx, d); err != nil {
				return err
			}
			if scaled, err = s.scaledBy(d, c); err != nil {
				return err
			}
		case undo.Selector:
			v, err := s.Kube.Clientset.CoreV1().Services(c.Object.Namespace).Get(ctx, c.Object.Name, metav1.GetOptions{})
			if same(err, c.Object, v.UID) != nil {
				continue
			}
			by, err := reselectedBy(v, c)
			switch {
			case err != nil:
				return err
			case controller(by):
				return s.reverted(fmt.Sprintf("%s has set the selector of %s back", by.Manager, c.Object))
			case s.Plan.standby() && mixed(v, c):
				return s.reverted(fmt.Sprintf("the selector of %s was added to, and selects nobody now", c.Object))
			case s.Plan.standby() && lessened(v, c):
				// What a Rollout's controller does to a Service that the rollout does not name any more.
				return s.reverted(fmt.Sprintf("a label was taken out of the selector of %s", c.Object))
			case by.Manager != "":
				back, of = append(back, fmt.Sprintf("%s has set the selector of %s back", by.Manager, c.Object)), append(of, c.Object)
			}
		}
	}
	switch {
	case scaled != "" && len(back) > 0: // the whole manifest was applied again
		return s.reverted(scaled + ", and " + back[0])
	case !s.Plan.standby() || len(back) == 0:
	case len(back) == len(s.Plan.Undo.Changes): // nothing of the swap is left: all callers are with the original
		return s.reverted(strings.Join(back, ", and "))
	default:
		for i, what := range back {
			s.sayOnce(of[i], what+": its callers go to the original, and it stays so when this ends")
		}
	}
	return nil
}

// sayOnce says of an object that somebody has set it back.
func (s *Swap) sayOnce(o Object, line string) {
	if s.guard.said == nil {
		s.guard.said = map[Object]bool{}
	}
	if !s.guard.said[o] && !s.ending.Load() { // else it may be what we have done ourselves
		s.Say(line)
	}
	s.guard.said[o] = true
}

// scaledBy says who has scaled the original up, "" when nobody has. It is an error when that was a controller, or was not the first
// time.
func (s *Swap) scaledBy(d *kube.Workload, c Change) (string, error) {
	g := &s.guard
	up := d.Replicas > 0
	if up && !g.up {
		g.ups++
	}
	if g.up = up; !up {
		return "", nil
	}
	by, err := lastOwner(d.ManagedFields, c.Path)
	if err != nil || by.Manager == proxypod.FieldManager {
		return "", err
	}
	// The API server notes nobody for an update of the scale subresource, as autoscalers make them.
	who, named := "somebody", ""
	if by.Manager != "" {
		who, named = by.Manager, " ("+by.Manager+")"
	}
	what := fmt.Sprintf("%s has scaled %s to %d", who, c.Object, d.Replicas)
	switch {
	case controller(by):
		return "", s.reverted(what)
	case g.ups > 1:
		return "", s.reverted(what + " again")
	}
	s.sayOnce(c.Object, fmt.Sprintf("somebody%s has scaled %s to %d: it stays so when this ends", named, c.Object, d.Replicas))
	return what, nil
}

// reselectedBy says who has set the Service's selector back; nobody when it is bridge's still, or is another one now.
func reselectedBy(v *corev1.Service, c Change) (undo.Owner, error) {
	var before map[string]string
	if err := json.Unmarshal(c.Before, &before); err != nil {
		return undo.Owner{}, err
	}
	if !maps.Equal(before, v.Spec.Selector) {
		return undo.Owner{}, nil
	}
	by, err := lastOwner(v.ManagedFields, c.Path)
	if by.Manager == proxypod.FieldManager {
		by = undo.Owner{}
	}
	return by, err
}

// mixed tells whether somebody has put something into a selector that bridge has replaced, as kubectl apply does with a
// manifest: neither the proxies have those labels, nor the original has bridge's.
func mixed(v *corev1.Service, c Change) bool {
	set, ours := replaced(v, c)
	return ours && !within(v.Spec.Selector, set)
}

// lessened tells whether somebody has taken something out of such a selector: the proxies have what is left.
func lessened(v *corev1.Service, c Change) bool {
	set, ours := replaced(v, c)
	return ours && len(v.Spec.Selector) < len(set) && within(v.Spec.Selector, set)
}

// replaced is the selector that c has set, and whether v's still has bridge's label.
func replaced(v *corev1.Service, c Change) (set map[string]string, ours bool) {
	err := json.Unmarshal(c.Set, &set)
	return set, err == nil && v.Spec.Selector[proxypod.ProxyLabel] == set[proxypod.ProxyLabel]
}

// within tells whether b has all that a has.
func within(a, b map[string]string) bool {
	for key, value := range a {
		if is, has := b[key]; !has || is != value {
			return false
		}
	}
	return true
}

func ownersOf(entries []metav1.ManagedFieldsEntry, path string) ([]undo.Owner, error) {
	b, err := json.Marshal(entries)
	if err != nil {
		return nil, err
	}
	return undo.OwnersOf(b, path)
}

// lastOwner is who owns the field, the latest of them; the zero value when nobody does.
func lastOwner(entries []metav1.ManagedFieldsEntry, path string) (last undo.Owner, err error) {
	owners, err := ownersOf(entries, path)
	for _, o := range owners {
		if last.Manager == "" || last.Time == nil || o.Time != nil && last.Time.Before(*o.Time) {
			last = o
		}
	}
	return last, err
}

// controller tells whether a program wrote the field that will do so again: one that is known, or one that declares fields
// (server-side apply) and is not a person's tool.
func controller(o undo.Owner) bool {
	for _, known := range []string{"argocd", "kustomize-controller", "helm-controller", "fleetagent", "kapp-controller"} {
		if strings.HasPrefix(o.Manager, known) {
			return true
		}
	}
	person := strings.HasPrefix(o.Manager, "kubectl") || o.Manager == "helm"
	return o.Operation == string(metav1.ManagedFieldsOperationApply) && !person && o.Manager != proxypod.FieldManager
}

// reverted is why a swap cannot go on against a controller, and what to do about it.
func (s *Swap) reverted(what string) error {
	u := &s.Plan.Undo
	var fields []string
	if u.Replaces() {
		fields = append(fields, "spec.replicas of "+u.Target.String())
	}
	if _, services := u.Summary(); len(services) > 0 {
		fields = append(fields, "spec.selector of "+serviceList(services))
	}
	return hint.Newf(hint.Conflict, strings.Join([]string{
		"there are three ways out:",
		"- pause what keeps it so while you swap: argocd app set APP --sync-policy none; flux suspend kustomization NAME",
		"- have it leave alone " + strings.Join(fields, " and ") + ": ignoreDifferences of Argo CD; driftDetection.ignore of a Flux HelmRelease",
		"- go another way: bridge connect -n " + u.Target.Namespace + s.Kube.Flags + " changes nothing of others",
	}, "\n"), "%w: %s", errReverted, what)
}

// errReverted says that the cluster does not keep what a swap changes.
var errReverted = errors.New("the swap does not hold")
