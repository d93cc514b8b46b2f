package diagnose

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// refusals are why the API server does not take a pod that a controller wants to make, by its words in lower case. A webhook's and a policy's come
// first: their messages may have the words of any other.
var refusals = []struct{ says, id, what, next string }{
	{"failed calling webhook", "pods-refused-webhook", "an admission webhook does not answer", "look at the webhook's own service: kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations"},
	{"admission webhook", "pods-refused-webhook", "an admission webhook refuses them", "its message says what it wants"},
	{"validatingadmissionpolicy '", "pods-refused-policy", "a policy of the cluster refuses them", "its message says what it wants: kubectl get validatingadmissionpolicies"},
	{usedUp, "pods-refused-quota", "a quota of the namespace is used up", "free some of it or raise it: kubectl describe resourcequota%s"},
	{"failed quota", "pods-refused-quota", "a quota of the namespace wants requests or limits that its pods do not have", "set resources.requests and limits; a LimitRange can give defaults: kubectl describe resourcequota%s"},
	{"violates podsecurity", "pods-refused-podsecurity", "the namespace's Pod Security level does not allow such pods", "set what the message names in securityContext; the level is a label: kubectl get namespace%s --show-labels"},
	{"error looking up service account", "pods-refused-serviceaccount", "its ServiceAccount does not exist", "make it, or name another in spec.serviceAccountName: kubectl get serviceaccounts%s"},
	{"no priorityclass with name", "pods-refused-priorityclass", "their PriorityClass does not exist", "name one that does: kubectl get priorityclasses"},
	{"maximum ", "pods-refused-limitrange", "a LimitRange of the namespace does not allow what they ask for", "change their resources: kubectl describe limitrange%s"},
	{"minimum ", "pods-refused-limitrange", "a LimitRange of the namespace does not allow what they ask for", "change their resources: kubectl describe limitrange%s"},
}

const usedUp = "exceeded quota"

var (
	// quotaSays are the words of the quota admission plugin.
	quotaSays = regexp.MustCompile(`exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)`)
	// namedIn is the ServiceAccount or PriorityClass that the words name.
	namedIn = regexp.MustCompile(`serviceaccount "([^"]+)" not found|no PriorityClass with name (\S+) was found`)
)

// explainQuota says which quota it is, and of what there is how much: whatever else is free, more than all of it cannot be had.
func explainQuota(f *Finding, begins, message string) {
	m := quotaSays.FindStringSubmatch(message)
	if m == nil {
		return
	}
	amounts := func(text string) map[string]resource.Quantity {
		out := map[string]resource.Quantity{}
		for one := range strings.SplitSeq(text, ",") {
			name, amount, _ := strings.Cut(one, "=")
			if q, err := resource.ParseQuantity(amount); err == nil {
				out[name] = q
			}
		}
		return out
	}
	requested, used, limited := amounts(m[2]), amounts(m[3]), amounts(m[4])
	never := false
	var short []string
	for _, name := range slices.Sorted(maps.Keys(requested)) {
		want, most, taken := requested[name], limited[name], used[name]
		never = never || want.Cmp(most) > 0 && name != "pods" && !strings.HasPrefix(name, "count/")
		short = append(short, fmt.Sprintf("%s %s asked for, and %s of %s used", name, want.String(), taken.String(), most.String()))
	}
	f.Summary = fmt.Sprintf("%squota %s is used up: %s", begins, m[1], list(short))
	if never {
		f.Summary = fmt.Sprintf("%sone asks for more than quota %s has in all: %s", begins, m[1], list(short))
		f.Next = []string{fmt.Sprintf("ask for less: %s; or raise the quota: kubectl edit resourcequota %s%s", f.edit(), m[1], f.Object.in())}
	}
}

// checkAdmission is about pods that never came to be: who makes them is refused.
func checkAdmission(s *Snapshot) (out []Finding) {
	refused := func(kind string, o metav1.Object, wants, has int32, condition *Evidence) {
		if has >= wants {
			return
		}
		failed := s.eventsOf(kind, o, "FailedCreate")
		var message string
		switch {
		case condition != nil:
			message = condition.Says
		case len(failed) > 0 && !s.madeSince(o, lastSeen(failed[0])):
			message = failed[0].Message
		default:
			return
		}
		lower := strings.ToLower(message)
		f := Finding{
			ID: "pods-refused", Severity: Problem, Direction: Admission, Object: refOf(kind, o), Owner: s.owner(o),
			Summary: fmt.Sprintf("%d of %d pods cannot be made: %s", wants-has, wants, firstLine(message)),
			Why:     "who makes the pods tries again, after ever longer waits",
			Events:  told(failed),
		}
		f.Next = []string{"mend what the message names: " + f.edit()}
		for _, r := range refusals {
			if strings.Contains(lower, r.says) {
				f.ID = r.id
				f.Summary = fmt.Sprintf("%d of %d pods cannot be made: %s", wants-has, wants, r.what)
				if name := namedIn.FindStringSubmatch(message); name != nil {
					f.Summary += " (" + name[1] + name[2] + ")"
				}
				next := r.next
				if strings.Contains(next, "%s") {
					flag := f.Object.in()
					if strings.Contains(next, "get namespace%s") {
						flag = " " + f.Object.Namespace
					}
					next = fmt.Sprintf(next, flag)
				}
				f.Next = []string{next}
				if r.says == usedUp {
					explainQuota(&f, fmt.Sprintf("%d of %d pods cannot be made: ", wants-has, wants), message)
				}
				break
			}
		}
		f.State = []Evidence{{From: f.Object.String() + " status.replicas", Says: fmt.Sprintf("%d of %d", has, wants)}}
		if condition != nil {
			f.State = append(f.State, *condition)
		}
		out = append(out, f)
	}
	failure := func(r Ref, message string, at metav1.Time) *Evidence {
		return &Evidence{From: r.String() + " condition ReplicaFailure", Says: message, At: at.Time}
	}
	for i := range s.ReplicaSets {
		o := &s.ReplicaSets[i]
		var said *Evidence
		for _, c := range o.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
				said = failure(refOf("replicaset", o), c.Message, c.LastTransitionTime)
			}
		}
		refused("replicaset", o, replicas(o.Spec.Replicas), o.Status.Replicas, said)
	}
	for i := range s.StatefulSets {
		o := &s.StatefulSets[i]
		refused("statefulset", o, replicas(o.Spec.Replicas), o.Status.Replicas, nil)
	}
	for i := range s.Controllers {
		o := &s.Controllers[i]
		var said *Evidence
		for _, c := range o.Status.Conditions {
			if c.Type == corev1.ReplicationControllerReplicaFailure && c.Status == corev1.ConditionTrue {
				said = failure(refOf(string(kube.ReplicationController), o), c.Message, c.LastTransitionTime)
			}
		}
		refused(string(kube.ReplicationController), o, replicas(o.Spec.Replicas), o.Status.Replicas, said)
	}
	for i := range s.DaemonSets {
		o := &s.DaemonSets[i]
		refused("daemonset", o, o.Status.DesiredNumberScheduled, o.Status.CurrentNumberScheduled, nil)
	}
	for i := range s.Jobs {
		o := &s.Jobs[i]
		if o.Status.CompletionTime != nil || is(o, batchv1.JobFailed) || o.Spec.Suspend != nil && *o.Spec.Suspend {
			continue
		}
		refused("job", o, atOnceOf(o), o.Status.Active, nil)
	}
	return out
}

// atOnceOf is how many pods of a Job are to run at a time: no more than there is work left for.
func atOnceOf(j *batchv1.Job) int32 {
	wants := replicas(j.Spec.Parallelism)
	switch {
	case j.Spec.Completions != nil:
		wants = min(wants, *j.Spec.Completions-j.Status.Succeeded)
	case j.Status.Succeeded > 0: // of a queue of work, no new ones are made after the first success
		wants = 0
	}
	return wants
}

// madeSince tells whether o has made a pod after that time: then what it was refused before is over.
func (s *Snapshot) madeSince(o metav1.Object, at time.Time) bool {
	return slices.ContainsFunc(s.podsIn[o.GetNamespace()], func(p *pod) bool { return metav1.IsControlledBy(p, o) && p.CreationTimestamp.After(at) })
}
