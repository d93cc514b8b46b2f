package swap

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/probe"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/route"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

// Facts is what is read from the cluster before a plan is made.
type Facts struct {
	Workload *kube.Workload
	Services []corev1.Service // all of the namespace
	Pods     []corev1.Pod     // likewise
	// Copies are those of its ReplicaSets that have a copy of its record.
	Copies []appsv1.ReplicaSet
	// MayPatchServices tells whether endpoints can be moved before the original is scaled to 0.
	MayPatchServices bool
	// MayPodProxy tells whether the tunnel may go through the API server's proxy to the pod; false when it was not asked.
	MayPodProxy bool
	// LimitCPU is whether a quota of the namespace wants a CPU limit of every container.
	LimitCPU bool
	// Source is where the proxy comes from, settled: image, or ConfigMap names and architecture.
	Source proxypod.Source
	// Standby is what GatherStandby has read, which mode standby takes.
	Standby StandbyFacts
	// Flags are the Client's.
	Flags string
}

// Options is what the user asked for.
type Options struct {
	Container string   // empty: the default container
	Ports     []string // --port flags
	PodProxy  bool     // the tunnel goes through the API server's proxy to the pod where that works
	Mode      Mode     // MakePlan's; NewPlan takes what is not ModeStandby for ModeReplace
	Owner     string   // "user@host"
	Client    tunnel.Fingerprint
	Now       time.Time
	// SelfRestore and RestoreAfter are AddKeeper's: after how long a silence the keeper gives back, in whole seconds.
	SelfRestore  SelfRestore
	RestoreAfter time.Duration
	// Choice is which requests come to the laptop; what is not all of them takes ModeStandby.
	Choice route.Choice
	// TakeOver has Join displace who has the same requests, if their machine is gone.
	TakeOver bool
	// Version is this bridge's, for people with another one.
	Version string
	// ToPod are TCP ports of the pod's other containers that Program finds at its own 127.0.0.1. They take ModeReplace.
	ToPod []int32
	// Init has the pod's init containers run in the proxy's too, sidecars or not. It takes ModeReplace.
	Init bool
	// NoProbes has the target's probes not run on the laptop, ExecProbes has their commands run there.
	NoProbes, ExecProbes bool
}

// Plan is everything a swap will create and change. Making it touches nothing.
type Plan struct {
	// Notes are what the user should know, a sentence each.
	Notes []string
	// Undo has every change, in order, with what was there before.
	Undo  Undo
	Lease *coordinationv1.Lease
	Proxy *appsv1.Deployment
	// Standby is what else proxies take that stand before the originals; nil: the original is stopped (mode replace).
	Standby *Standby
	// Keeper is added by AddKeeper; nil: nobody gives back when this machine is gone.
	Keeper *Keeper
	// Choice is which requests come to the laptop, in mode standby.
	Choice route.Choice
	Ports  []Port
	Own    proxypod.Ports
	// Probes are the target's that are run on the laptop.
	Probes []*probe.Probe
	// Services whose endpoints move, by name.
	Services []string
	// Replicas of the original before.
	Replicas int32

	owner     string          // who this machine's is, "user@host"
	with      []member.Member // who else shares the swap that is joined
	target    *kube.Workload
	selector  *metav1.LabelSelector // of the original's pods
	container string                // whose place the proxy takes
	beside    []string              // Services before it that stay as they are, by name
	joined    []string              // those of them that have the proxy beside the original, and where that can be waited for
	have      []Port                // what --port chose from
	toPod     []int32
	init      bool                  // Options.Init
	grace     time.Duration         // that the pod gives a container to end
	place     atomic.Pointer[place] // of the local process; nil: it is on this machine
	source    proxypod.Source
	podProxy  bool                // was asked for
	noKeeper  string              // why there is none
	forKeeper bool                // bridge chose mode replace because there is to be one
	stale     string              // what the target has in the place of the record's copy
	copies    []appsv1.ReplicaSet // that have a copy of one that is over
	why       string              // this mode, if that was bridge's choice; "" if the user's
	flags     string              // Facts.Flags
}

// older are the records that the target and its ReplicaSets have.
func (p *Plan) older() (texts []string) {
	if p.stale != "" {
		texts = append(texts, p.stale)
	}
	for _, rs := range p.copies {
		if text := rs.Annotations[proxypod.UndoAnnotation]; text != "" {
			texts = append(texts, text)
		}
	}
	return texts
}

// NewPlan works out a swap in the mode of o, replace or standby.
func NewPlan(f Facts, o Options) (*Plan, error) {
	d := f.Workload
	template := d.Template
	p := &Plan{Replicas: d.Replicas, target: d, selector: d.Selector, source: f.Source, podProxy: o.PodProxy, owner: o.Owner, Choice: o.Choice, init: o.Init, noKeeper: "there is no keeper", flags: f.Flags}
	if d.Labels[proxypod.ManagedByLabel] == proxypod.ManagedBy && d.Labels[proxypod.ProxyLabel]+d.Labels[proxypod.KeeperLabel] != "" {
		return nil, hint.Newf(hint.Usage, "name the workload that is swapped: see bridge status",
			"%s is bridge's own", d.Target())
	}

	p.stale, p.copies = d.Annotations[proxypod.UndoAnnotation], f.Copies
	for _, record := range p.older() {
		if f.held(record) {
			return nil, hint.Newf(hint.Conflict, fmt.Sprintf("give it back first: bridge restore %s %s -n %s%s", d.Kind, d.Name, d.Namespace, f.Flags),
				"%s in %s has the record of an earlier swap, which was not given back", d.Target(), d.Namespace)
		}
	}
	if p.stale != "" {
		p.Notes = append(p.Notes, fmt.Sprintf("the annotation %s of %s is of a swap of which nothing is there any more (kubectl rollout undo brings old ones back), or another's: this swap's takes its place",
			proxypod.UndoAnnotation, d.Target()))
	}

	app, err := proxypod.AppContainer(template, o.Container)
	if err != nil {
		return nil, hint.New(hint.Usage, err, "")
	}
	standby := o.Mode == ModeStandby
	if !standby {
		if err := stoppable(d, f.Flags); err != nil {
			return nil, err
		}
		template = p.withoutClaims(template, app.Name)
	}
	selecting := selecting(f.Services, template.Labels)
	services := p.apart(p.aside(selecting, standby), f.Services, standby)
	if standby {
		selecting = services
	} else if f.MayPatchServices {
		p.joined = p.beside
	}
	have, notes := podPorts(app, selecting, others(template.Spec, app.Name))
	p.Notes = append(p.Notes, notes...)
	p.container, p.have = app.Name, have
	if p.Ports, err = mapPorts(o.Ports, have); err != nil {
		return nil, hint.New(hint.Usage, err, "")
	}
	for _, q := range p.Ports {
		if c, taken := others(template.Spec, app.Name)[q.at()]; taken {
			return nil, hint.Newf(hint.Usage, "to stand in for that container: --container "+c,
				"port %d of the pod is container %q's, which goes on in the proxy's pod", q.Remote, c)
		}
	}
	if err := p.checkToPod(o.ToPod, template.Spec); err != nil {
		return nil, err
	}
	if standby {
		if err := p.standBy(f, o, services); err != nil {
			return nil, err
		}
	}
	for _, q := range have {
		mapped := slices.ContainsFunc(p.Ports, func(r Port) bool { return r.at() == q.at() })
		switch {
		case mapped:
		case standby && q.UDP:
			p.Notes = append(p.Notes, fmt.Sprintf("port %s stays with the originals: in mode standby only TCP comes to this machine", q.remote()))
		case standby:
			p.Notes = append(p.Notes, fmt.Sprintf("port %s goes to the originals: no --port maps it", q.remote()))
		default:
			p.Notes = append(p.Notes, fmt.Sprintf("port %s is refused while swapped: no --port maps it", q.remote()))
		}
	}
	p.probeLikeThePod(app, template.Spec, o)

	lease := leaseName(d.Target())
	var tcp, udp []int32
	for _, q := range p.Ports {
		if q.UDP {
			udp = append(udp, q.Remote)
		} else {
			tcp = append(tcp, q.Remote)
		}
	}
	p.Own = proxypod.FreePorts(&template.Spec, slices.Concat(tcp, udp, o.ToPod, p.Standby.passed()), o.PodProxy && f.MayPodProxy)
	switch {
	case p.Own.PodProxy != 0:
		p.Notes = append(p.Notes, p.Own.PodProxyNote())
	case o.PodProxy:
		p.Notes = append(p.Notes, fmt.Sprintf("your account may not %s in %s, so the tunnel goes by port-forward; ask for a Role with that, or leave out --carrier",
			rights.PodProxy()[0], d.Namespace))
	}
	p.Proxy, notes, err = proxypod.Deployment(proxypod.Spec{
		Name: lease, Namespace: d.Namespace, Lease: lease,
		Template: template, Container: app.Name,
		Source: f.Source, Ports: p.Own, Client: o.Client, Listen: tcp, ListenUDP: udp, ToPod: o.ToPod, Init: o.Init, LimitCPU: f.LimitCPU, Standby: p.Standby.pods(o.Choice),
		Labels: ownLabels(d),
	})
	if err != nil {
		return nil, hint.Newf(hint.Usage, "", "%s: %w", d.Target(), err)
	}
	p.Notes = append(p.Notes, notes...)

	var moved []corev1.Service
	for _, s := range services {
		shared, err := sharedWith(s, d, f.Pods)
		if err != nil {
			return nil, err
		}
		if len(shared) > 0 && standby {
			p.Notes = append(p.Notes, fmt.Sprintf("service/%s also selects %s: its callers stay with them and the originals", s.Name, strings.Join(shared, ", ")))
			continue
		}
		if len(shared) > 0 {
			p.Notes = append(p.Notes, fmt.Sprintf("service/%s also selects %s: the laptop gets a share of its callers beside them, and requests that the original has not answered when it is stopped are lost", s.Name, strings.Join(shared, ", ")))
			continue
		}
		moved = append(moved, s)
	}
	if standby {
		if err := p.standBefore(f, moved); err != nil {
			return nil, err
		}
	}
	if p.Undo, err = newUndo(f, o, moved, p); err != nil {
		return nil, err
	}
	for _, c := range p.Undo.Changes {
		if c.Object.Kind == "Service" {
			p.Services = append(p.Services, c.Object.Name)
		}
	}
	if !standby {
		p.noteHeadless(selecting)
	}
	if len(services) > 0 && !f.MayPatchServices && !standby {
		p.Notes = append(p.Notes, "your account may not patch Services, so the original is stopped while some callers still reach it: "+
			"requests it has not answered when it gets SIGTERM are lost")
	}
	if len(selecting) == 0 {
		p.Notes = append(p.Notes, "no Service selects this workload: only callers of the pod's own address will reach the laptop")
	}
	record, err := p.Undo.Marshal()
	if err != nil {
		return nil, err
	}
	p.Lease = newLease(&p.Undo, record, o.Owner, o.Client.String(), o.Now)
	return p, p.firstMember(o)
}

// checkToPod says what keeps a program on the laptop from a port of the pod's other containers, some of which only admission may add.
func (p *Plan) checkToPod(ports []int32, pod corev1.PodSpec) error {
	p.toPod = ports
	others := slices.ContainsFunc(pod.Containers, func(c corev1.Container) bool { return c.Name != p.container }) ||
		slices.ContainsFunc(pod.InitContainers, func(c corev1.Container) bool { return c.RestartPolicy != nil }) // a sidecar
	for _, port := range ports {
		switch {
		case slices.ContainsFunc(p.Ports, func(q Port) bool { return q.at() == at{port, false} }):
			return hint.Newf(hint.Usage, "leave it out, or name with --port what is to come here", "--to-pod %d: that port of the pod comes to this machine", port)
		case !others:
			p.Notes = append(p.Notes, fmt.Sprintf("--to-pod %d: the template has no other container; it answers if one is added to the proxy's pod, as by a mesh", port))
		}
	}
	return nil
}

// held tells whether a copy of the target's record has anything to take back, or cannot be read.
func (f Facts) held(record string) bool {
	u, err := undo.Parse(record)
	if err != nil {
		return true
	}
	if u.Target.UID != string(f.Workload.UID) {
		return false // it came with a copy of another
	}
	return slices.ContainsFunc(u.Changes, func(c Change) bool {
		if c.Field() == undo.Replicas {
			return c.Held(fmt.Append(nil, f.Workload.Replicas))
		}
		return slices.ContainsFunc(f.Services, func(s corev1.Service) bool {
			now, err := json.Marshal(s.Spec.Selector)
			return string(s.UID) == c.Object.UID && (err != nil || c.Held(now))
		})
	})
}

// selecting are the Services that select pods with these labels.
func selecting(services []corev1.Service, podLabels map[string]string) []corev1.Service {
	return slices.DeleteFunc(slices.Clone(services), func(s corev1.Service) bool {
		return len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName ||
			!labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(podLabels))
	})
}

// newUndo records p's changes, of which only the proxy, its own objects and the mode are known yet.
func newUndo(f Facts, o Options, services []corev1.Service, p *Plan) (Undo, error) {
	d, lease := f.Workload, p.Proxy.Name
	target := objectOf(d)
	u := undo.New(target, o.Owner, o.Now)
	if f.MayPatchServices {
		for _, s := range services {
			set := map[string]string{}
			if p.Standby == nil {
				// Beside what is there, so that whoever applies a manifest meanwhile takes no caller away. In standby the
				// proxies have no label of the original's, and one more would select nobody.
				set = maps.Clone(s.Spec.Selector)
			}
			if hash, owned := s.Spec.Selector[kube.RolloutHashLabel]; owned {
				set[kube.RolloutHashLabel] = hash // its controller would put it there
			}
			set[proxypod.ProxyLabel] = proxypod.LabelValue(lease)
			c, err := newChange(Object{APIVersion: "v1", Kind: "Service", Namespace: s.Namespace, Name: s.Name, UID: string(s.UID)},
				"spec.selector", s.Spec.Selector, set, s.ManagedFields)
			if err != nil {
				return Undo{}, err
			}
			u.Changes = append(u.Changes, c)
		}
	}
	if p.Standby == nil {
		c, err := newChange(target, "spec.replicas", p.Replicas, 0, d.ManagedFields)
		if err != nil {
			return Undo{}, err
		}
		u.Changes = append(u.Changes, c)
	}
	u.Created = p.Standby.objects()
	for _, name := range f.Source.ConfigMaps {
		u.Created = append(u.Created, Object{APIVersion: "v1", Kind: "ConfigMap", Namespace: d.Namespace, Name: name})
	}
	u.Created = append(u.Created, Object{APIVersion: "apps/v1", Kind: "Deployment", Namespace: d.Namespace, Name: lease})
	return u, nil
}

func newChange(o Object, path string, before, set any, managed []metav1.ManagedFieldsEntry) (Change, error) {
	owners, err := ownersOf(managed, path)
	if err != nil {
		return Change{}, fmt.Errorf("%s: %w", o, err)
	}
	c := Change{Object: o, Path: path, Owners: owners}
	if c.Before, err = json.Marshal(before); err != nil {
		return Change{}, err
	}
	c.Set, err = json.Marshal(set)
	return c, err
}

// newLease is the claim on u's target, held by holder; client is the fingerprint of its key, if it has one.
func newLease(u *Undo, record, holder, client string, now time.Time) *coordinationv1.Lease {
	seconds := int32(proxypod.LeaseSeconds)
	stamp := metav1.NewMicroTime(now)
	return &coordinationv1.Lease{
		TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{
			Name: leaseName(targetOf(u.Target)), Namespace: u.Target.Namespace,
			Labels: map[string]string{proxypod.ManagedByLabel: proxypod.ManagedBy, proxypod.KindLabel: proxypod.KindSwap},
			Annotations: map[string]string{
				proxypod.UndoAnnotation: record, proxypod.TargetAnnotation: u.Target.String(), proxypod.ClientAnnotation: client,
			},
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: &holder, LeaseDurationSeconds: &seconds, AcquireTime: &stamp, RenewTime: &stamp,
		},
	}
}
