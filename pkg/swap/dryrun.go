package swap

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/probe"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/undo"
)

// DryRun is a plan for people and programs to read: what a swap would do in the cluster, step by step.
type DryRun struct {
	// Notes are what the user should know, a sentence each.
	Notes []string       `json:"notes"`
	Mode  Mode           `json:"mode"`
	Ports []Port         `json:"ports"`
	Own   proxypod.Ports `json:"proxyPorts"`
	// Probes are the target's that are run on the laptop.
	Probes []*probe.Probe `json:"probes,omitempty"`
	Steps  []Step         `json:"steps"`
	// Undo is the record of how to change all of it back.
	Undo Undo `json:"undo"`

	where string // "deployment/orders in shop"
	tried bool
}

// Step is one request of a swap that changes something.
type Step struct {
	Verb string `json:"verb"` // "create" or "patch"
	Name string `json:"name"` // "deployment/orders"
	Why  string `json:"why"`
	// Object is what is created. Bytes stands for it where it is a part of the carried proxy.
	Object any `json:"object,omitempty"`
	Bytes  int `json:"bytes,omitempty"`
	// Patch is a JSON merge patch (RFC 7396).
	Patch any `json:"patch,omitempty"`
	// Refused is why the API server would not do it; empty also when it was not asked.
	Refused string `json:"refused,omitempty"`

	try func(context.Context) error
}

// dryRun has no steps yet.
func (p *Plan) dryRun(headline string) *DryRun {
	return &DryRun{
		Notes: append([]string{headline}, p.Notes...), Mode: modeOf(&p.Undo), Ports: p.Ports, Own: p.Own, Probes: p.Probes, Undo: p.Undo,
		where: p.Undo.Target.String() + " in " + p.Lease.Namespace,
	}
}

// DryRun is what p does with the carried proxy's parts, if there are any.
func (p *Plan) DryRun(k *kube.Client, parts []carry.Part) (*DryRun, error) {
	u, ns := &p.Undo, p.Lease.Namespace
	d := p.dryRun(p.Headline(k))
	create := metav1.CreateOptions{FieldManager: proxypod.FieldManager, DryRun: []string{metav1.DryRunAll}}
	x := changer{kube: k, dryRun: create.DryRun}

	d.Steps = append(d.Steps, Step{
		Verb: "create", Name: "lease/" + p.Lease.Name, Object: p.Lease,
		Why: "the claim, with the record of how to undo what follows; it owns what is created after it",
		try: func(ctx context.Context) error {
			_, err := k.Clientset.CoordinationV1().Leases(ns).Create(ctx, p.Lease, create)
			return err
		},
	})
	pods := "in one pod"
	if p.Standby != nil {
		d.Steps = append(d.Steps, p.Standby.steps(k, create)...)
		pods = fmt.Sprintf("in %d pods; --originals is the address of service/%s, which has none before it is there", proxypod.StandbyReplicas, p.Standby.Originals.Name)
	}
	for _, m := range proxypod.ConfigMaps(ns, p.Lease.Name, parts) {
		n := 0
		for _, b := range m.BinaryData {
			n += len(b)
		}
		d.Steps = append(d.Steps, Step{
			Verb: "create", Name: "configmap/" + m.Name, Bytes: n, Why: "a part of the proxy's program",
			try: func(ctx context.Context) error {
				_, err := k.Clientset.CoreV1().ConfigMaps(ns).Create(ctx, m, create)
				return err
			},
		})
	}
	d.Steps = append(d.Steps, Step{
		Verb: "create", Name: "deployment/" + p.Proxy.Name, Object: p.Proxy, Why: "the proxy, " + pods,
		try: func(ctx context.Context) error {
			if _, err := k.Clientset.AppsV1().Deployments(ns).Create(ctx, p.Proxy, create); err != nil {
				return err
			}
			return d.tryPod(ctx, k, p.Proxy, create)
		},
	})
	if p.Keeper != nil {
		d.Steps = append(d.Steps, p.Keeper.steps(k, d, create)...)
	}
	for _, rs := range p.copies {
		d.Steps = append(d.Steps, Step{
			Verb: "patch", Name: "replicaset/" + rs.Name, Patch: undo.UnmarkPatch(""), Why: "the copy of an earlier swap's record, which is over, goes",
			try: func(ctx context.Context) error { return x.unmark(ctx, rs, "") },
		})
	}
	mark, err := u.MarkPatch("")
	if err != nil {
		return nil, err
	}
	d.Steps = append(d.Steps, Step{
		Verb: "patch", Name: u.Target.String(), Patch: mark, Why: "a copy of the record, once the proxy is Ready",
		try: func(ctx context.Context) error { return x.record(ctx, p) },
	})
	for _, c := range u.Changes {
		patch, err := c.Patch(c.Before, c.Set, "")
		if err != nil {
			return nil, err
		}
		step := Step{Verb: "patch", Name: c.Object.String(), Patch: patch, try: func(ctx context.Context) error { return x.apply(ctx, c) }}
		switch c.Field() {
		case undo.Replicas:
			step.Name += "/scale"
			step.Why = fmt.Sprintf("the original is stopped; it has %s replicas", c.Before)
		case undo.Selector:
			step.Why = fmt.Sprintf("its callers move to the proxy; the selector is %s", c.Before)
		}
		d.Steps = append(d.Steps, step)
	}
	return d, nil
}

// steps are those that make the keeper.
func (kp *Keeper) steps(k *kube.Client, d *DryRun, create metav1.CreateOptions) (out []Step) {
	ns, name := kp.Deployment.Namespace, kp.Deployment.Name
	if kp.Role != nil {
		out = append(out, Step{
			Verb: "create", Name: "serviceaccount/" + name, Object: kp.Account, Why: "the keeper's",
			try: func(ctx context.Context) error {
				_, err := k.Clientset.CoreV1().ServiceAccounts(ns).Create(ctx, kp.Account, create)
				return err
			},
		}, Step{
			Verb: "create", Name: "role/" + name, Object: kp.Role, Why: "what the keeper may do, with the objects of this swap alone",
			try: func(ctx context.Context) error {
				_, err := k.Clientset.RbacV1().Roles(ns).Create(ctx, kp.Role, create)
				return err
			},
		}, Step{
			Verb: "create", Name: "rolebinding/" + name, Object: kp.Binding, Why: "so it may",
			try: func(ctx context.Context) error {
				_, err := k.Clientset.RbacV1().RoleBindings(ns).Create(ctx, kp.Binding, create)
				if apierrors.IsNotFound(err) {
					return nil // the Role is not there; whether this user may bind it was asked with it
				}
				return err
			},
		})
	}
	return append(out, Step{
		Verb: "create", Name: "deployment/" + name, Object: kp.Deployment, Why: "the keeper, in one pod: it gives back when this machine is gone",
		try: func(ctx context.Context) error {
			if _, err := k.Clientset.AppsV1().Deployments(ns).Create(ctx, kp.Deployment, create); err != nil {
				return err
			}
			like := kp.Deployment.DeepCopy()
			if kp.Account != nil {
				like.Spec.Template.Spec.ServiceAccountName = "" // that is not there yet, and no pod is let in without
			}
			return d.tryPod(ctx, k, like, create)
		},
	})
}

// tryPod has the API server judge a Deployment's pod: quotas and Pod Security do that only when the pod comes, after the Deployment
// was taken. Who may not create pods does not learn it.
func (d *DryRun) tryPod(ctx context.Context, k *kube.Client, of *appsv1.Deployment, create metav1.CreateOptions) error {
	lacking, err := rights.Missing(ctx, k, []rights.Right{{Resource: "pods", Verb: "create"}})
	if err != nil {
		return err
	}
	if len(lacking) > 0 {
		note := fmt.Sprintf("your account may not %s, so no pod itself was tried: a quota or Pod Security may still refuse it", lacking[0])
		if !slices.Contains(d.Notes, note) {
			d.Notes = append(d.Notes, note)
		}
		return nil
	}
	t := of.Spec.Template.DeepCopy()
	pod := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	pod.GenerateName = of.Name + "-"
	_, err = k.Clientset.CoreV1().Pods(of.Namespace).Create(ctx, pod, create)
	return kube.Explain(err, "create its pod")
}

// Try has the API server go through every step without doing it (its dry run). The error names what would be refused, with the
// code of the first; each is in its step too.
func (d *DryRun) Try(ctx context.Context) error {
	d.tried = true
	var lines []string
	var code hint.Code
	for i := range d.Steps {
		s := &d.Steps[i]
		err := kube.Explain(s.try(ctx), s.Verb+" "+s.Name)
		if s.Verb == "create" {
			err = proxyError(err)
		}
		if err == nil {
			continue
		}
		if kube.Transient(err) || ctx.Err() != nil {
			return err
		}
		if code == 0 {
			code = hint.CodeOf(err)
		}
		s.Refused = err.Error()
		lines = append(lines, s.Refused)
	}
	if len(lines) == 0 {
		return nil
	}
	return hint.Newf(code, "", "the cluster would refuse to swap %s:\n  %s", d.where, strings.Join(lines, "\n  "))
}

// YAML is documents of what is created, to be read and applied, and all else in comments. A part of the carried proxy is there
// by its name and size only.
func (d *DryRun) YAML() ([]byte, error) {
	var b bytes.Buffer
	say := func(format string, args ...any) {
		for line := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
			b.WriteString(strings.TrimRight("# "+line, " ") + "\n")
		}
	}
	asked := "the API server was not asked to judge"
	if d.tried {
		asked = "the API server has judged each step"
	}
	say("What a swap of %s does, in this order. Nothing was done; %s.", d.where, asked)
	for _, n := range d.Notes {
		say("note: %s", n)
	}
	for _, p := range d.Ports {
		say("port %s", p)
	}
	for _, p := range d.Probes {
		say("probe %s", p)
	}
	documents := 0
	for i, s := range d.Steps {
		if s.Object != nil {
			if documents++; documents > 1 {
				b.WriteString("---\n")
			}
		}
		say("\n%d. %s %s: %s", i+1, s.Verb, s.Name, s.Why)
		if s.Refused != "" {
			say("REFUSED: %s", s.Refused)
		}
		switch {
		case s.Object != nil:
			text, err := document(s.Object)
			if err != nil {
				return nil, err
			}
			b.Write(text)
		case s.Bytes > 0:
			say("%d bytes, not shown", s.Bytes)
		default:
			text, err := yaml.Marshal(s.Patch)
			if err != nil {
				return nil, err
			}
			say("%s", strings.TrimSpace(string(text)))
		}
	}
	record, err := yaml.Marshal(d.Undo)
	if err != nil {
		return nil, err
	}
	say("\nThe record, by which anybody can give it back:\n%s", strings.TrimSpace(string(record)))
	return b.Bytes(), nil
}

// document is an object as YAML, without the status that nobody has set yet.
func document(object any) ([]byte, error) {
	b, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	delete(fields, "status")
	return yaml.Marshal(fields)
}
