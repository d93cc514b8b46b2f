package diagnose

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// startPatience is how long a pod may be on its way before that is worth a word: volumes, images and programs take seconds.
const startPatience = 15 * time.Second

// checkConfiguration is about containers that cannot be made from what their pod refers to.
func checkConfiguration(s *Snapshot) (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.DeletionTimestamp != nil {
			continue
		}
		// A reference to what is not there holds up containers that have not started; those that run meet it at the next start.
		missing := s.missingRefs(p)
		for _, c := range containersOf(p) {
			reason, message := c.waiting()
			if reason != "CreateContainerConfigError" && reason != "CreateContainerError" {
				continue
			}
			f := s.ofContainer(p, c, "container-create-failed", Problem, Configuration)
			f.Why = "the container is not made before that is mended; the kubelet tries again by itself"
			f.Summary = fmt.Sprintf("%s cannot be made: %s", c.what(), firstLine(message))
			f.Next = []string{"mend what the message names: " + f.edit()}
			f.Events = told(s.eventsIn(p, c, "Failed"))
			s.explainConfig(&f, p, c, message)
			missing = slices.DeleteFunc(missing, func(m missingRef) bool { return strings.Contains(f.Summary, m.ref()+" does not exist") })
			out = append(out, f)
		}
		out = append(out, s.mountFindings(p, &missing)...)
		for _, m := range missing {
			f := s.ofPod(p, m.id, Warning, Configuration)
			f.Summary = fmt.Sprintf("%s, which %s refers to, does not exist", m.ref(), m.by)
			f.Why = "a container that refers to it does not start; one that runs already does not start again"
			f.State = []Evidence{{From: fmt.Sprintf("%s %s", f.Object, m.by), Says: m.ref()}}
			f.Next = s.nextForMissing(m.kind, m.name, p.Namespace, &f)
			if unready(*p) {
				f.Severity = Problem
			}
			out = append(out, f)
		}
	}
	return out
}

var (
	// The kubelet's words for what a container's environment refers to.
	absentObject = regexp.MustCompile(`(configmap|secret) "([^"]+)" not found`)
	absentKey    = regexp.MustCompile(`couldn't find key (\S+) in (ConfigMap|Secret) [^/\s]+/(\S+)`)
	// And for what a volume takes of one.
	absentItem = regexp.MustCompile(`for volume "([^"]+)".*references non-existent (?:config|secret) key: ([-._a-zA-Z0-9]+)`)
)

func (s *Snapshot) explainConfig(f *Finding, p *pod, c container, message string) {
	if m := absentKey.FindStringSubmatch(message); m != nil {
		key, kind, name := m[1], strings.ToLower(m[2]), strings.TrimRight(m[3], ".,")
		f.ID = "config-key-absent"
		f.Summary = fmt.Sprintf("%s cannot be made: %s/%s has no key %s", c.what(), kind, name, key)
		f.Next = []string{fmt.Sprintf("look which keys it has: kubectl describe %s %s%s", kind, name, inOf(p)), "correct the key, add it, or mark the reference optional: " + f.edit()}
		return
	}
	if m := absentObject.FindStringSubmatch(message); m != nil {
		f.ID = m[1] + "-absent"
		f.Summary = fmt.Sprintf("%s cannot be made: %s/%s does not exist in %s", c.what(), m[1], m[2], p.Namespace)
		f.Next = s.nextForMissing(m[1], m[2], p.Namespace, f)
		return
	}
	lower := strings.ToLower(message)
	switch {
	case strings.Contains(lower, "runasnonroot"):
		f.ID = "run-as-root-refused"
		f.Summary = fmt.Sprintf("%s has runAsNonRoot, and its image runs as root or as a user without a number", c.what())
		f.Next = []string{"set securityContext.runAsUser to a number above 0 that the image can run as: " + f.edit()}
	case strings.Contains(lower, "no command specified"):
		f.ID = "program-no-command"
		f.Summary = fmt.Sprintf("%s has no command, and neither has its image", c.what())
		f.Next = []string{"set command: " + f.edit()}
	case strings.Contains(lower, "subpath"):
		f.ID = "mount-subpath"
		f.Summary = fmt.Sprintf("%s has a subPath that cannot be mounted: %s", c.what(), firstLine(message))
	}
}

// mountLate tells whether an event says of volumes that they are not mounted in time, and not why.
func mountLate(e *corev1.Event) bool {
	return strings.Contains(e.Message, "timed out waiting for the condition") ||
		strings.HasPrefix(e.Message, "Unable to attach or mount volumes") && strings.HasSuffix(strings.TrimSpace(e.Message), "context deadline exceeded")
}

// mountFindings are about volumes that the kubelet cannot mount. What they say is missing is taken from missing.
func (s *Snapshot) mountFindings(p *pod, missing *[]missingRef) (out []Finding) {
	waits := slices.ContainsFunc(containersOf(p), func(c container) bool {
		reason, _ := c.waiting()
		return reason == "ContainerCreating" || reason == "PodInitializing"
	})
	if !waits || hasRun(p) || p.Spec.NodeName == "" || s.Now.Sub(p.CreationTimestamp.Time) < startPatience && len(*missing) == 0 {
		return nil
	}
	failed := s.eventsOf("pod", p, "FailedMount", "FailedAttachVolume", "FailedMapVolume")
	said := slices.ContainsFunc(failed, func(e *corev1.Event) bool { return !mountLate(e) }) // by one of them why, or else by the newest
	seen := map[string]bool{}
	for _, e := range failed {
		id, summary := "volume-mount-failed", "a volume cannot be mounted: "+firstLine(e.Message)
		next := []string{"kubectl describe pod " + p.Name + inOf(p)}
		f := s.ofPod(p, id, Problem, Storage)
		if m := absentObject.FindStringSubmatch(e.Message); m != nil {
			if s.named[Ref{m[1], p.Namespace, m[2]}] {
				continue // it has come since
			}
			f.ID, f.Direction = m[1]+"-absent", Configuration
			summary = fmt.Sprintf("%s/%s, which a volume is made of, does not exist in %s", m[1], m[2], p.Namespace)
			next = s.nextForMissing(m[1], m[2], p.Namespace, &f)
			*missing = slices.DeleteFunc(*missing, func(r missingRef) bool { return r.kind == m[1] && r.name == m[2] })
		} else if m := absentItem.FindStringSubmatch(e.Message); m != nil {
			f.ID, f.Direction = "config-key-absent", Configuration
			from, what := sourceOf(p, m[1], m[2]), "its ConfigMap or Secret"
			next = []string{"correct the key in the volume's items, or add it: " + f.edit()}
			if from != (Ref{}) {
				what = from.String()
				next = append([]string{fmt.Sprintf("look which keys it has: kubectl describe %s %s%s", from.Kind, from.Name, from.in())}, next...)
			}
			summary = fmt.Sprintf("volume %s takes key %s, which %s has not", m[1], m[2], what)
		} else if says := tinyLimit(p); says != "" && strings.Contains(e.Message, "no space left on device") { // a volume in memory is as large at most
			summary, next = says, []string{"raise resources.limits.memory: " + f.edit()}
		} else if mountLate(e) {
			if said {
				continue
			}
			said = true
		}
		if seen[summary] {
			continue
		}
		seen[summary] = true
		f.Summary, f.Next = summary, next
		f.Why = "no container of the pod starts before all its volumes are mounted"
		f.State = []Evidence{{From: f.Object.String() + " status.phase", Says: string(p.Status.Phase), At: p.CreationTimestamp.Time}}
		f.Events = told([]*corev1.Event{e})
		f.because = append(f.because, claimsOf(p)...)
		out = append(out, f)
	}
	return out
}

// sourceOf is the ConfigMap or Secret from which a volume of p takes a key; the zero value where that is not known.
func sourceOf(p *pod, volume, key string) Ref {
	takes := func(items []corev1.KeyToPath) bool {
		return slices.ContainsFunc(items, func(i corev1.KeyToPath) bool { return i.Key == key })
	}
	for _, v := range p.Spec.Volumes {
		switch {
		case v.Name != volume:
		case v.ConfigMap != nil:
			return Ref{"configmap", p.Namespace, v.ConfigMap.Name}
		case v.Secret != nil:
			return Ref{"secret", p.Namespace, v.Secret.SecretName}
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if c := src.ConfigMap; c != nil && takes(c.Items) {
					return Ref{"configmap", p.Namespace, c.Name}
				}
				if c := src.Secret; c != nil && takes(c.Items) {
					return Ref{"secret", p.Namespace, c.Name}
				}
			}
		}
	}
	return Ref{}
}

// missingRef is a ConfigMap or Secret that a pod refers to.
type missingRef struct {
	id, kind, name string
	by             string // the field
}

func (m missingRef) ref() string { return m.kind + "/" + m.name }

// missingRefs are those of p that are not there, among the kinds that could be read.
func (s *Snapshot) missingRefs(p *pod) []missingRef {
	return slices.DeleteFunc(refsOf(p), func(m missingRef) bool {
		r := configMaps
		if m.kind == "secret" {
			r = secrets
		}
		return !s.has(r) || s.named[Ref{m.kind, p.Namespace, m.name}]
	})
}

// rootCA is what each namespace's controller manager makes, and each pod has with its token.
const rootCA = "kube-root-ca.crt"

// refer tells whether a pod has to have a ConfigMap, or a Secret, of somebody's.
func refer(pods []corev1.Pod, kind string) bool {
	return slices.ContainsFunc(pods, func(p corev1.Pod) bool {
		return slices.ContainsFunc(refsOf(&p), func(m missingRef) bool { return m.kind == kind && m.name != rootCA })
	})
}

// refsOf are the ConfigMaps and Secrets that a pod which has not ended refers to and that are not optional, each once.
func refsOf(p *pod) (out []missingRef) {
	absent := func(kind, name, by string, optional *bool) {
		m := missingRef{kind + "-absent", kind, name, by}
		if name != "" && (optional == nil || !*optional) && !slices.ContainsFunc(out, func(o missingRef) bool { return o.ref() == m.ref() }) {
			out = append(out, m)
		}
	}
	if over(p) {
		return nil
	}
	for _, v := range p.Spec.Volumes {
		by := fmt.Sprintf("spec.volumes[%s]", v.Name)
		switch {
		case v.ConfigMap != nil:
			absent("configmap", v.ConfigMap.Name, by, v.ConfigMap.Optional)
		case v.Secret != nil:
			absent("secret", v.Secret.SecretName, by, v.Secret.Optional)
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if src.ConfigMap != nil {
					absent("configmap", src.ConfigMap.Name, by, src.ConfigMap.Optional)
				}
				if src.Secret != nil {
					absent("secret", src.Secret.Name, by, src.Secret.Optional)
				}
			}
		}
	}
	for _, c := range containersOf(p) {
		for _, e := range c.Env {
			by := fmt.Sprintf("env[%s] of %s", e.Name, c.what())
			if e.ValueFrom == nil {
				continue
			}
			if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
				absent("configmap", r.Name, by, r.Optional)
			}
			if r := e.ValueFrom.SecretKeyRef; r != nil {
				absent("secret", r.Name, by, r.Optional)
			}
		}
		for _, e := range c.EnvFrom {
			if r := e.ConfigMapRef; r != nil {
				absent("configmap", r.Name, "envFrom of "+c.what(), r.Optional)
			}
			if r := e.SecretRef; r != nil {
				absent("secret", r.Name, "envFrom of "+c.what(), r.Optional)
			}
		}
	}
	return out
}

// nextForMissing proposes the object whose name is nearest, if one is near, and making it. A kind is "configmap", "secret", or "certificate", which is a Secret with one.
func (s *Snapshot) nextForMissing(kind, name, namespace string, f *Finding) (next []string) {
	there, create := s.Secrets, "kubectl create secret generic "+name
	switch kind {
	case "configmap":
		there, create = s.ConfigMaps, "kubectl create configmap "+name
	case "certificate":
		kind, create = "secret", fmt.Sprintf("kubectl create secret tls %s --cert FILE --key FILE", name)
	}
	var have []string
	for _, o := range there {
		if o.Namespace == namespace {
			have = append(have, o.Name)
		}
	}
	if like := nearest(name, have); like != "" {
		next = append(next, fmt.Sprintf("if %s/%s is meant: %s", kind, like, f.edit()))
	}
	return append(next, "make it: "+create+" -n "+namespace)
}
