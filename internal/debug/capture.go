package debug

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/pcapng"
	"bridge/internal/tools"
)

// Capture is what passes on a port of a pod.
type Capture struct {
	Kube       *kube.Client
	Target     kube.Target
	Port       string // a number, or a name that a container of the pod has given one; of a Service its own port comes first
	ProxyImage string // "": the program is carried, by the shell of an image that the node has
	Arch       string // of the program that is carried; "" asks the container
	// Out gets the capture as pcapng, whole blocks alone, Err what is said of it in the pod.
	Out, Err io.Writer
	Say      func(string)
}

// kubeletPort is where the API server reaches the pods' programs.
const kubeletPort = "10250"

// captureEnd is how long the program in the pod has to write what it has when it is to end.
const captureEnd = 5 * time.Second

// Run captures until ctx ends, which is no error.
func (c *Capture) Run(ctx context.Context) error {
	pod, err := c.Kube.RunningPod(ctx, c.Kube.Namespace, c.Target)
	if err != nil {
		return err
	}
	asked, err := c.behindService(ctx)
	if err != nil {
		return err
	}
	port, err := portOf(pod, asked)
	if err != nil {
		return err
	}
	if pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows {
		return hint.Newf(hint.Usage, "capture at a pod that it talks to", "pod/%s runs on Windows, where bridge sees no packets", pod.Name)
	}
	if pod.Spec.HostNetwork {
		if port == kubeletPort {
			return hint.Newf(hint.Usage, "on the node, tcpdump sees it", "port %s of the node, whose network pod/%s has, is the kubelet's: the capture itself passes there, and would capture itself for ever", port, pod.Name)
		}
		c.Say("note: the pod has the node's network: it is the node's port " + port)
	}
	container, program, err := c.container(ctx, pod)
	if err != nil {
		return err
	}
	return c.copy(ctx, pod, container, append(program, "tool", tools.Capture, port))
}

// behindService is the port of the pods that is asked for: of a Service's own port that behind it, where somebody translates it, which is said.
func (c *Capture) behindService(ctx context.Context) (string, error) {
	if c.Target.Kind != kube.Service {
		return c.Port, nil
	}
	s, err := c.Kube.Clientset.CoreV1().Services(c.Kube.Namespace).Get(ctx, c.Target.Name, metav1.GetOptions{})
	if err != nil {
		return "", kube.Explain(err, "read "+c.Target.String())
	}
	to := targetPort(s, c.Port)
	if to != c.Port {
		c.Say(fmt.Sprintf("port %s of %s is port %s of its pods", c.Port, c.Target, to))
	}
	return to, nil
}

// targetPort is the pods' port behind one of a Service's, by its number or name; a port that the Service has not is as it is.
func targetPort(s *corev1.Service, port string) string {
	for _, p := range s.Spec.Ports {
		switch {
		case port == strconv.Itoa(int(p.Port)) && s.Spec.ClusterIP == corev1.ClusterIPNone:
			return port // its name leads to the pods themselves, at the port that is called
		case port != p.Name && port != strconv.Itoa(int(p.Port)):
		case p.TargetPort.StrVal != "":
			return p.TargetPort.StrVal
		case p.TargetPort.IntVal != 0:
			return strconv.Itoa(int(p.TargetPort.IntVal))
		default:
			return strconv.Itoa(int(p.Port))
		}
	}
	return port
}

// portOf is the number of a port of pod's.
func portOf(pod *corev1.Pod, port string) (string, error) {
	if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
		return strconv.FormatUint(n, 10), nil
	}
	var names []string
	for _, of := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for _, container := range of {
			for _, p := range container.Ports {
				if p.Name == port && port != "" {
					return strconv.Itoa(int(p.ContainerPort)), nil
				}
				names = append(names, strings.TrimSpace(fmt.Sprint(p.ContainerPort, " ", p.Name)))
			}
		}
	}
	next := "it declares none; give the number that its program listens at"
	if len(names) > 0 {
		next = "it declares " + strings.Join(names, ", ")
	}
	return "", hint.Newf(hint.Usage, next, "pod/%s has no port %q", pod.Name, port)
}

// captureRights are the two ways to see packets, which takes CAP_NET_RAW: to ask for that and nothing else, which Pod Security lets pass at level
// privileged alone; and to have what the container runtime gives a root user by itself, without the rest, which level baseline lets pass too, and has it with
// containerd and Docker. Under level restricted there is none: nobody is root, and nobody has it.
func captureRights() []*corev1.SecurityContext {
	yes, no, root := true, false, int64(0)
	with := func(c *corev1.Capabilities) *corev1.SecurityContext {
		return &corev1.SecurityContext{
			Capabilities: c, RunAsUser: &root, RunAsGroup: &root, RunAsNonRoot: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
	}
	return []*corev1.SecurityContext{
		with(&corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_RAW"}}),
		with(&corev1.Capabilities{Drop: []corev1.Capability{"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}}),
	}
}

const needProxyImage = "name the proxy's image with --proxy-image: bridge image push makes it"

// container is one in pod that may see packets, one that is there or one that is added, and the command of the program in it. One that has asked for the right
// comes first: it has it, whatever the runtime.
func (c *Capture) container(ctx context.Context, pod *corev1.Pod) (name string, program []string, err error) {
	target, err := kube.ContainerName(pod, "")
	if err != nil {
		return "", nil, err
	}
	from := sources(ctx, c.Kube, pod, target, c.ProxyImage)
	var chosen source
	var refused error
	for _, rights := range captureRights() {
		for _, s := range from {
			e, err := s.withRights(rights)
			if err != nil {
				return "", nil, err
			}
			if name = earlier(pod, e); name != "" {
				c.Say("container " + name + " is there already, in pod/" + pod.Name)
				program, err = s.bring(ctx, c.Kube, pod, e, name, c.Arch, c.Say)
				return name, program, err
			}
		}
		if refused = c.refused(ctx, pod, rights); refused != nil {
			continue // whatever its image
		}
		if chosen.image == "" {
			if chosen, c.Arch, err = choose(ctx, c.Kube, pod, from, c.Arch, needProxyImage); err != nil {
				return "", nil, err
			}
		}
		e, err := chosen.withRights(rights)
		if err != nil {
			return "", nil, err
		}
		err = add(ctx, c.Kube, pod, e, c.Say)
		if err == nil {
			c.Say("container " + e.Name + " in pod/" + pod.Name + chosen.from(pod.Name) + "; it stays there, as the API has no way to remove it, until the pod goes")
			if err := chosen.await(ctx, c.Kube, pod, e.Name, false, needProxyImage); err != nil {
				return "", nil, err
			}
			program, err = chosen.bring(ctx, c.Kube, pod, e, e.Name, c.Arch, c.Say)
			return e.Name, program, err
		}
		if !byPodSecurity(err) {
			return "", nil, kube.Explain(err, "add a container to pod "+pod.Namespace+"/"+pod.Name)
		}
		refused = err
	}
	return "", nil, hint.New(hint.Forbidden,
		fmt.Errorf("packets are seen with CAP_NET_RAW alone, as root, and the Pod Security level of namespace %s lets no container have that: %w", pod.Namespace, refused),
		fmt.Sprintf("level baseline lets it: an admin can set it with kubectl label namespace %s%s pod-security.kubernetes.io/enforce=baseline --overwrite, and back to what it was when the container is there, which stays until the pod goes.\n"+
			"Or capture at the other end, in a namespace that lets it: at a pod that talks to this one", pod.Namespace, c.Kube.Flags))
}

// refused is why a container with these rights may not be added, where that is the namespace's Pod Security level; nil else. Nothing is changed.
func (c *Capture) refused(ctx context.Context, pod *corev1.Pod, rights *corev1.SecurityContext) error {
	e, err := source{image: pod.Spec.Containers[0].Image}.withRights(rights)
	if err != nil {
		return nil
	}
	e.Name += "trial"
	patch, err := patchOf(e)
	if err != nil {
		return nil
	}
	_, err = c.Kube.Clientset.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, "ephemeralcontainers")
	if byPodSecurity(err) {
		return err
	}
	return nil // what else there is shows when it is added
}

func byPodSecurity(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "violates PodSecurity")
}

// withRights is a container with these rights, and none of a pod's mounts. Its name has no end yet.
func (s source) withRights(rights *corev1.SecurityContext) (*corev1.EphemeralContainer, error) {
	e := &corev1.EphemeralContainer{}
	s.hold(e)
	e.SecurityContext = rights.DeepCopy()
	if s.carried() {
		e.SecurityContext.ReadOnlyRootFilesystem = nil
	}
	e.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	return e, nameAs(e, "")
}

// copy passes on what the program in the pod writes, until it ends; it does when its input ends.
func (c *Capture) copy(ctx context.Context, pod *corev1.Pod, container string, command []string) error {
	running, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	in, end := io.Pipe()
	defer end.Close()
	stop := context.AfterFunc(ctx, func() { _ = end.Close() })
	defer stop()
	late := context.AfterFunc(ctx, func() {
		select {
		case <-running.Done():
		case <-time.After(captureEnd):
			cut(errors.New("the program in the pod has not ended"))
		}
	})
	defer late()
	whole := &pcapng.Whole{Out: c.Out}
	code, err := c.Kube.Run(running, pod.Namespace, pod.Name, container, command,
		kube.Streams{Stdin: in, Stdout: stopping{whole, cut}, Stderr: c.Err})
	var unwritten writeError
	switch {
	case errors.As(context.Cause(running), &unwritten):
		return hint.Newf(hint.Other, "is there room, and does who reads it still run?", "write the capture: %w", unwritten.error)
	case err != nil:
		return hint.New(0, fmt.Errorf("the capture has ended after %d packets, which are whole: %w", whole.Packets, err), "capture again, into another file")
	case code == tools.CaptureDenied:
		return hint.Newf(hint.Forbidden, fmt.Sprintf("where the container runtime gives no CAP_NET_RAW by itself it has to be asked for, which Pod Security lets pass at level privileged alone: "+
			"kubectl label namespace %s%s pod-security.kubernetes.io/enforce=privileged --overwrite. A security module of the node may refuse it, too", pod.Namespace, c.Kube.Flags),
			"container %s in pod %s/%s has not the right to see packets, CAP_NET_RAW", container, pod.Namespace, pod.Name)
	case code != 0 && whole.Packets > 0 || code > 128: // a signal's, as of a pod that ends
		return hint.Newf(hint.Other, fmt.Sprintf("has the pod ended? bridge diagnose pod/%s -n %s%s", pod.Name, pod.Namespace, c.Kube.Flags),
			"the capture was ended in the pod (exit code %d), after %d packets, which are whole", code, whole.Packets)
	case code != 0:
		return hint.Newf(hint.Other, fmt.Sprintf("an image of another version than this bridge does not know it: bridge image push makes one; what became of the pod: bridge diagnose pod/%s -n %s%s", pod.Name, pod.Namespace, c.Kube.Flags),
			"the capture has ended with exit code %d, and no packet", code)
	}
	return nil
}

// writeError is of where the capture goes.
type writeError struct{ error }

// stopping ends what writes to it when that fails.
type stopping struct {
	io.Writer
	stop context.CancelCauseFunc
}

// Write is called with the next part.
func (s stopping) Write(b []byte) (int, error) {
	n, err := s.Writer.Write(b)
	if err != nil {
		s.stop(writeError{err})
	}
	return n, err
}
