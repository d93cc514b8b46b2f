package diagnose

import (
	"cmp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Severity says how grave a finding is.
type Severity string

// The severities. A problem is something that does not work; a warning works now, or may be meant so.
const (
	Problem Severity = "problem"
	Warning Severity = "warning"
)

// Direction is the class of a finding's fault: where to look on.
type Direction string

// The directions, in the order in which something starts: what is not admitted is not scheduled, and so on.
const (
	Admission     Direction = "admission"
	Scheduling    Direction = "scheduling"
	Node          Direction = "node"
	Storage       Direction = "storage"
	Configuration Direction = "configuration"
	Image         Direction = "image"
	Program       Direction = "program"
	Probes        Direction = "probes"
	Network       Direction = "network"
	Rollout       Direction = "rollout"
	Autoscaling   Direction = "autoscaling"
	Deletion      Direction = "deletion"
	Bridge        Direction = "bridge"
)

// Ref names an object. A cluster's own has no namespace.
type Ref struct {
	Kind      string `json:"kind"` // "pod", "persistentvolumeclaim"
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String is how kubectl takes it: "pod/orders-0".
func (r Ref) String() string { return r.Kind + "/" + r.Name }

// in is the flag for its namespace, " -n shop".
func (r Ref) in() string {
	if r.Namespace == "" {
		return ""
	}
	return " -n " + r.Namespace
}

// Evidence is one thing that was read.
type Evidence struct {
	// From is the object and the field: "pod/orders-0 status.phase"; for an event, its object and reason.
	From string `json:"from"`
	Says string `json:"says"`
	// At is when that began, or was seen last; zero where the cluster does not say.
	At time.Time `json:"at,omitzero"`
	// Count is how often an event was seen; 0 for what is no event.
	Count int32 `json:"count,omitempty"`
}

// Finding is one thing that is wrong.
type Finding struct {
	ID        string    `json:"id"`
	Severity  Severity  `json:"severity"`
	Direction Direction `json:"direction"`
	Object    Ref       `json:"object"`
	// Owner is the workload that made the object; the zero value for none.
	Owner     Ref    `json:"owner,omitzero"`
	Container string `json:"container,omitempty"`
	// Summary is what is wrong, in one line.
	Summary string     `json:"summary"`
	State   []Evidence `json:"state,omitempty"`
	Events  []Evidence `json:"events,omitempty"`
	// Log is the end of the container's log.
	Log []string `json:"log,omitempty"`
	// Why is why it matters.
	Why string `json:"why"`
	// Next are commands, or the smallest changes, that lead on; the best first.
	Next []string `json:"next"`
	// Also are other objects of Owner's with the same finding.
	Also []Ref `json:"also,omitempty"`
	// Symptoms are the findings that this one explains.
	Symptoms []Finding `json:"symptoms,omitempty"`

	// because are objects whose own faults would explain this.
	because []Ref
	// explains is whether it explains others though it is a warning alone: what it is about does not work for now, or is meant not to.
	explains bool
	log      logWanted
}

// logWanted is which log of its container a finding wants to show.
type logWanted int

const (
	noLog logWanted = iota
	currentLog
	previousLog // of the run before
)

func (f *Finding) logOptions() *corev1.PodLogOptions {
	lines := int64(logLines)
	return &corev1.PodLogOptions{Container: f.Container, Previous: f.log == previousLog, TailLines: &lines}
}

// about are the objects that it is about, and the containers in them.
func (f *Finding) about() []Ref {
	out := append([]Ref{f.Object}, f.Also...)
	if f.Container != "" {
		for _, r := range out[:len(out):len(out)] {
			out = append(out, partOf(r, f.Container))
		}
	}
	return out
}

// explaining tells whether others may stand behind it. What works in spite of a warning is not explained by it.
func (f *Finding) explaining() bool { return f.Severity == Problem || f.explains }

// partOf names one container of a pod, as what a finding is explained by.
func partOf(pod Ref, container string) Ref {
	return Ref{"container", pod.Namespace, pod.Name + "/" + container}
}

// concerns tells whether it, or something it explains, is about one of near.
func (f *Finding) concerns(near map[Ref]bool) bool {
	if near[f.Object] || slices.ContainsFunc(f.Also, func(r Ref) bool { return near[r] }) {
		return true
	}
	return slices.ContainsFunc(f.Symptoms, func(s Finding) bool { return s.concerns(near) })
}

// merge makes one finding of those that several objects of one owner share. Those of one object stay apart.
func merge(found []Finding) (out []Finding) {
	for _, f := range found {
		if f.Owner == (Ref{}) {
			out = append(out, f)
			continue
		}
		same := func(o *Finding) bool {
			return o.ID == f.ID && o.Owner == f.Owner && o.Container == f.Container && o.Object != f.Object && !slices.Contains(o.Also, f.Object)
		}
		i := -1
		for j := range out {
			if o := &out[j]; same(o) && (i < 0 || o.Summary == f.Summary) {
				if i = j; o.Summary == f.Summary {
					break
				}
			}
		}
		if i < 0 {
			out = append(out, f)
			continue
		}
		if f.Severity == Problem && out[i].Severity != Problem { // the graver one is told
			f, out[i] = out[i], f
			out[i].Also, f.Also = f.Also, nil
		}
		out[i].Also = append(out[i].Also, f.Object)
		for _, r := range f.because {
			if !slices.Contains(out[i].because, r) {
				out[i].because = append(out[i].because, r)
			}
		}
	}
	return out
}

var directions = []Direction{Admission, Scheduling, Node, Storage, Configuration, Image, Program, Probes, Network, Rollout, Autoscaling, Deletion, Bridge}

// compare is the order of a report: problems first, then what comes first when something starts.
func compare(a, b Finding) int {
	return cmp.Or(
		strings.Compare(string(a.Severity), string(b.Severity)), // "problem" is before "warning"
		cmp.Compare(slices.Index(directions, a.Direction), slices.Index(directions, b.Direction)),
		strings.Compare(a.Object.Namespace, b.Object.Namespace),
		strings.Compare(a.Object.String(), b.Object.String()),
		strings.Compare(a.ID, b.ID),
		strings.Compare(a.Container, b.Container),
	)
}
