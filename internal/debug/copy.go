package debug

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/tools"
)

const (
	// copyOfAnnotation on a copy names the pod that it is of.
	copyOfAnnotation = proxypod.Prefix + "copy-of"
	// madeByAnnotation on a copy has a random text of who made it, by which it is known when the answer to that is lost.
	madeByAnnotation = proxypod.Prefix + "made-by"
	// createTimeout bounds making the copy, which goes on when bridge is to end, so that it is known what there is to be removed.
	createTimeout = 30 * time.Second
	// heldMemory is what the program takes that holds the place of the container's own, with what is done in it.
	heldMemory = "128Mi"
	// cleanUpTimeout bounds removing the copy.
	cleanUpTimeout = 30 * time.Second
	// goneTimeout bounds waiting for an earlier copy that is being removed.
	goneTimeout = time.Minute
	// maxTries is how often a copy is made anew because the pod that has its name is gone when it is looked at.
	maxTries = 5
	// heldGrace is how long a copy has to end, in seconds: what holds it ends at once.
	heldGrace int64 = 5
)

// Copy is a copy of a pod in which a container's program is held.
type Copy struct {
	Kube      *kube.Client
	Target    kube.Target
	Container string // "" for the default one
	Name      string
	Arch      string // of the program that holds it; "" asks the cluster
	Keep      bool
	// OnCreate is told that the copy is about to be made, and then that it is there, with the command that removes it.
	OnCreate func(remove string, there bool)
	Say      func(string)
}

// Run makes the copy, calls use when it runs, and removes it, unless it is to be kept.
func (c *Copy) Run(ctx context.Context, use func(context.Context, *Place) error) error {
	pod, err := c.pod(ctx)
	if err != nil {
		return err
	}
	container, err := kube.ContainerName(pod, c.Container)
	if err != nil {
		return err
	}
	arch := c.Arch
	if arch == "" {
		arch = proxypod.Arch(ctx, c.Kube, pod.Spec, []corev1.Pod{*pod})
	}
	parts, err := carry.Parts(arch)
	if err != nil {
		return err
	}
	// Names of their own: those of a copy before may not have gone yet, and the user may have some like the pod's.
	mine := rand.Text()
	configMaps := c.Name + "-" + strings.ToLower(mine[:5])
	made, notes, err := copyOf(pod, container, c.Name, arch, proxypod.ConfigMapNames(configMaps, parts))
	if err != nil {
		return err
	}
	made.Annotations[madeByAnnotation] = mine
	ns := pod.Namespace
	remove := fmt.Sprintf("kubectl delete pod %s -n %s%s", c.Name, ns, c.Kube.Flags)
	created, err := c.create(ctx, made, remove, maxTries)
	if err != nil {
		return err
	}
	c.OnCreate(remove, true)
	c.Say(fmt.Sprintf("pod/%s is a copy of pod/%s", c.Name, pod.Name))
	for _, n := range notes {
		c.Say("note: " + n)
	}
	err = c.carryTo(ctx, created, configMaps, parts)
	if err == nil {
		err = await(ctx, c.Kube, ns, created.UID, c.Name, container, false)
		if err != nil && !c.Keep && hint.CodeOf(err) == hint.ProxyNotReady { // the copy goes
			err = hint.New(0, err, fmt.Sprintf("bridge diagnose pod/%s -n %s%s; with --keep the copy stays, and can be looked at", pod.Name, ns, c.Kube.Flags))
		}
	}
	place := &Place{Pod: c.Name, Container: container, uid: created.UID, tools: carry.Command()}
	if err == nil {
		err = use(ctx, place)
	}
	if c.Keep {
		c.Say(fmt.Sprintf("pod/%s is kept. Into it again: bridge exec -it pod/%s -n %s%s -- %s", c.Name, c.Name, ns, c.Kube.Flags, strings.Join(place.tool(tools.Prompt), " ")))
		c.Say("in the end: " + remove)
		return err
	}
	if e := c.remove(ctx, created); e != nil {
		return hint.New(hint.RestoreIncomplete, errors.Join(err, fmt.Errorf("the copy is not removed: %w", e)), "finish with: "+remove)
	}
	return err
}

// create makes the pod, in so many tries. Where the answer does not tell whether it is made, it is looked for, and removed.
func (c *Copy) create(ctx context.Context, made *corev1.Pod, remove string, tries int) (*corev1.Pod, error) {
	ns, pods := made.Namespace, c.Kube.Clientset.CoreV1().Pods(made.Namespace)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	c.OnCreate(remove, false)
	created, err := pods.Create(bounded, made, metav1.CreateOptions{FieldManager: proxypod.FieldManager})
	if err == nil {
		return created, nil
	}
	exists := apierrors.IsAlreadyExists(err)
	if !exists && !unclear(err) {
		return nil, kube.Explain(err, "create pod "+ns+"/"+c.Name)
	}
	cleanUp, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	var there *corev1.Pod
	lookErr := persist(cleanUp, func(ctx context.Context) (err error) {
		there, err = pods.Get(ctx, c.Name, metav1.GetOptions{})
		return err
	})
	mine := lookErr == nil && there.Annotations[madeByAnnotation] == made.Annotations[madeByAnnotation]
	switch {
	case exists && mine: // an answer before was lost
		return there, nil
	case exists && apierrors.IsNotFound(lookErr) && tries > 1: // it has gone just then
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return c.create(ctx, made, remove, tries-1)
	case exists && lookErr != nil:
		return nil, hint.New(hint.Conflict, fmt.Errorf("the name of pod %s in %s is taken, and who has it cannot be seen: %w", c.Name, ns, lookErr), "try again, or give the copy another name")
	case exists && going(there):
		c.Say("waiting for the copy of that name before, which is being removed")
		if err := c.awaitGone(ctx, there); err != nil {
			return nil, err
		}
		return c.create(ctx, made, remove, tries)
	case exists:
		return nil, hint.New(hint.Conflict, fmt.Errorf("there is a pod %s in %s already", c.Name, ns), "give the copy another name; or, if it is a copy that was left behind: "+remove)
	}
	err = kube.Explain(err, "create pod "+ns+"/"+c.Name)
	if mine {
		lookErr = c.remove(ctx, there)
	}
	if lookErr != nil && !apierrors.IsNotFound(lookErr) {
		return nil, hint.New(hint.RestoreIncomplete, fmt.Errorf("%w; whether the copy was made is not known: %w", err, kube.Explain(lookErr, "look for it")), "if it was: "+remove)
	}
	return nil, err
}

// going tells whether a pod is a copy that somebody has removed.
func going(pod *corev1.Pod) bool {
	return pod != nil && pod.DeletionTimestamp != nil && pod.Annotations[copyOfAnnotation] != ""
}

// awaitGone waits until a pod that is being removed is gone.
func (c *Copy) awaitGone(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeoutCause(ctx, goneTimeout, hint.Newf(hint.Conflict, "give the copy another name", "pod %s in %s is being removed, and still there after %v", pod.Name, pod.Namespace, goneTimeout))
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, lookEvery, true, func(ctx context.Context) (bool, error) {
		now, err := c.Kube.Clientset.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && now.UID != pod.UID {
			return true, nil
		}
		return false, kube.IgnoreTransient(err)
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return kube.Explain(err, "look for pod "+pod.Namespace+"/"+pod.Name)
}

// remove deletes the copy, also when ctx has ended.
func (c *Copy) remove(ctx context.Context, pod *corev1.Pod) error {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	err := persist(bounded, func(ctx context.Context) error {
		return c.Kube.Clientset.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return kube.Explain(err, "delete pod "+pod.Namespace+"/"+pod.Name)
}

// persist asks until there is an answer, or ctx ends; the error is the last answer then.
func persist(ctx context.Context, ask func(context.Context) error) (last error) {
	err := wait.PollUntilContextCancel(ctx, lookEvery, true, func(ctx context.Context) (bool, error) {
		e := ask(ctx)
		if last == nil || ctx.Err() == nil {
			last = e
		}
		return e == nil, kube.IgnoreTransient(e)
	})
	if err == nil || last == nil {
		return err
	}
	return last
}

// unclear tells whether a request that has failed may have been carried out nevertheless.
func unclear(err error) bool {
	var status apierrors.APIStatus
	return !errors.As(err, &status) || status.Status().Code >= http.StatusInternalServerError
}

// pod is one of the target's, by preference one that is not well: it is that which is to be looked at.
func (c *Copy) pod(ctx context.Context) (*corev1.Pod, error) {
	list, err := c.Kube.Pods(ctx, c.Kube.Namespace, c.Target)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, hint.Newf(hint.Other, fmt.Sprintf("bridge diagnose %s -n %s%s", c.Target, c.Kube.Namespace, c.Kube.Flags), "%s in %s has no pod to copy", c.Target, c.Kube.Namespace)
	}
	i := slices.IndexFunc(list, func(p corev1.Pod) bool {
		return slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return !s.Ready })
	})
	return &list[max(i, 0)], nil
}

// carryTo makes the ConfigMaps with the program, which go with the pod. The pod waits for them.
func (c *Copy) carryTo(ctx context.Context, pod *corev1.Pod, names string, parts []carry.Part) error {
	for _, cm := range proxypod.ConfigMaps(pod.Namespace, names, parts) {
		cm.Labels = map[string]string{proxypod.ManagedByLabel: proxypod.ManagedBy}
		cm.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}
		if _, err := c.Kube.Clientset.CoreV1().ConfigMaps(pod.Namespace).Create(ctx, cm, metav1.CreateOptions{FieldManager: proxypod.FieldManager}); err != nil {
			return kube.Explain(err, "create configmap "+pod.Namespace+"/"+cm.Name)
		}
	}
	return nil
}

// copyOf is the pod to make. The notes say, one a line, what is another than in pod, and what the container would run.
func copyOf(pod *corev1.Pod, container, name, arch string, configMaps []string) (made *corev1.Pod, notes []string, err error) {
	spec := pod.Spec.DeepCopy()
	if spec.OS != nil && spec.OS.Name == corev1.Windows {
		return nil, nil, hint.Newf(hint.Usage, "kubectl debug --copy-to makes one with an image of yours", "pod/%s runs on Windows; what holds a copy is a program for Linux", pod.Name)
	}
	all := slices.Concat(spec.InitContainers, spec.Containers)
	at := slices.IndexFunc(all, func(c corev1.Container) bool { return c.Name == container })
	if at < 0 {
		return nil, nil, hint.Newf(hint.Usage, "name one of its own with --container", "container %s of pod/%s is an ephemeral one", container, pod.Name)
	}
	held := all[at]
	// What runs before it does so; what runs beside it does not, as two of a kind may be one too many.
	before := all[:min(at, len(spec.InitContainers))]
	var without []string
	for i, c := range all {
		if i != at && (i >= len(before) || kube.Sidecar(c)) {
			without = append(without, c.Name)
		}
	}
	spec.InitContainers = slices.DeleteFunc(slices.Clone(before), kube.Sidecar)
	if len(without) > 0 {
		notes = append(notes, "not in the copy: "+strings.Join(without, ", "))
	}
	instead := (&proxypod.Like{Container: held}).Instead()
	notes = append(notes, fmt.Sprintf("container %s is held, and does not run %s", container, hint.Printable(instead)))
	if len(spec.InitContainers) > 0 {
		var names []string
		for _, c := range spec.InitContainers {
			names = append(names, c.Name)
		}
		notes = append(notes, "run in the copy as they do in the pod, before it: "+strings.Join(names, ", ")+" (-c with the first holds that, and none runs)")
	}

	held.LivenessProbe, held.ReadinessProbe, held.StartupProbe, held.Lifecycle = nil, nil, nil, nil
	held.RestartPolicy, held.ResizePolicy, held.Stdin, held.StdinOnce, held.TTY = nil, nil, false, false, false
	held.Resources.Claims = nil
	if limit, least := held.Resources.Limits[corev1.ResourceMemory], resource.MustParse(heldMemory); !limit.IsZero() && limit.Cmp(least) < 0 {
		held.Resources.Limits[corev1.ResourceMemory] = least
		notes = append(notes, fmt.Sprintf("its memory limit is %s in the copy, and %s in the pod", heldMemory, limit.String()))
	}

	// Admission adds the token's volume anew.
	account := func(name string) bool { return strings.HasPrefix(name, "kube-api-access-") }
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return account(v.Name) })
	unmount := func(c *corev1.Container) {
		c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return account(m.Name) })
	}
	unmount(&held)
	for i := range spec.InitContainers {
		unmount(&spec.InitContainers[i])
		spec.InitContainers[i].Resources.Claims = nil
	}
	var claims []string
	for _, v := range spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			claims = append(claims, v.PersistentVolumeClaim.ClaimName)
		}
	}
	if len(claims) == 0 {
		spec.NodeName = ""
	} else {
		notes = append(notes, "the copy has the same volumes, and is on the same node for them: "+strings.Join(claims, ", "))
	}
	proxypod.Carry(spec, &held, configMaps, arch, "tool", tools.Hold)
	spec.Containers = []corev1.Container{held}
	for _, list := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
		for i := range list {
			for j := range list[i].Ports {
				list[i].Ports[j].HostPort, list[i].Ports[j].HostIP = 0, ""
			}
		}
	}
	// The held container is process 1 in processes of its own; a limit of the whole pod could be below that of its container now.
	spec.ShareProcessNamespace, spec.HostPID, spec.Resources = nil, false, nil
	if spec.HostNetwork {
		spec.Containers[0].Ports = nil // they would be the node's
	}
	spec.EphemeralContainers, spec.ReadinessGates, spec.SchedulingGates, spec.ResourceClaims = nil, nil, nil, nil
	spec.RestartPolicy, spec.ActiveDeadlineSeconds = corev1.RestartPolicyNever, nil
	spec.Priority, spec.PreemptionPolicy, spec.TopologySpreadConstraints = nil, nil, nil
	if spec.Affinity != nil {
		spec.Affinity.PodAntiAffinity = nil
	}
	grace := heldGrace
	spec.TerminationGracePeriodSeconds = &grace
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: pod.Namespace,
			// None of the pod's own labels: no Service and no controller takes it for one of theirs.
			Labels:      map[string]string{proxypod.ManagedByLabel: proxypod.ManagedBy},
			Annotations: map[string]string{copyOfAnnotation: pod.Name},
		},
		Spec: *spec,
	}, notes, nil
}
