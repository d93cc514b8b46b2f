// Package debug puts tools where a container is: an ephemeral container beside it, or a copy of its pod in which its program is held.
// cmd/bridge calls it, and runs what the user wants there.
package debug

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/logs"
	"bridge/internal/tools"
)

const (
	// readyTimeout is how long a container may take to run, lookEvery how often is looked.
	readyTimeout = 90 * time.Second
	lookEvery    = 300 * time.Millisecond
	namePrefix   = kube.DebugPrefix
)

// proxyPath is the program in the proxy's own image.
func proxyPath() []string { return []string{"/proxy"} }

// Place is where the user's program can be run.
type Place struct {
	Pod, Container string
	uid            types.UID // the pod's
	// tools is the command that a tool's name and arguments come after; nil where the image is the user's.
	tools []string
}

// Run runs the user's command, with the tools' program before it where it is one of them, or without one their prompt, and returns its exit code.
// A tool without standard input ends when ctx does, or this machine is gone.
func (p *Place) Run(ctx context.Context, k *kube.Client, user []string, s kube.Streams) (code int, err error) {
	switch {
	case len(user) == 0:
		user = p.tool(tools.Prompt)
	case !slices.Contains(tools.Names(), user[0]):
	case s.Stdin == nil:
		over := make(silence)
		defer close(over)
		s.Stdin = over
		user = p.tool(append([]string{tools.Attended}, user...)...)
	default:
		user = p.tool(user...)
	}
	return k.Run(ctx, k.Namespace, p.Pod, p.Container, user, s)
}

// tool is the command of a tool.
func (p *Place) tool(args ...string) []string {
	return slices.Concat(p.tools, []string{"tool"}, args)
}

// silence is read without a byte until it is closed.
type silence chan struct{}

func (s silence) Read([]byte) (int, error) {
	<-s
	return 0, io.EOF
}

// Ephemeral is a container to be added to a running pod.
type Ephemeral struct {
	Kube      *kube.Client
	Target    kube.Target
	Container string // whose processes and mounts it has; "" for the default one
	// Image is the user's, which runs Command, or what it runs by itself, with these streams. Empty takes the tools, which are in ProxyImage, or
	// are carried, by the shell of an image that the node has: the container is only there then, and what is to be run is run in it.
	Image, ProxyImage string
	Arch              string // of the tools that are carried; "" asks the container
	Command           []string
	Stdin, TTY        bool
	// Owner is who may find it again, "user@host", where it has a terminal.
	Owner string
	Say   func(string)
}

// Start adds the container, or finds one like it that runs, and waits until it runs, or with the user's image has run.
func (e *Ephemeral) Start(ctx context.Context) (*Place, error) {
	pod, err := e.Kube.RunningPod(ctx, e.Kube.Namespace, e.Target)
	if err != nil {
		return nil, e.orCopy(ctx, err)
	}
	target, err := kube.ContainerName(pod, e.Container)
	if err != nil {
		return nil, err
	}
	if err := e.Kube.NotRunning(pod, target); err != nil {
		if !hasStarted(pod, target) {
			return nil, err // neither would a copy
		}
		return nil, hint.New(0, err, fmt.Sprintf("debug a copy of it, in which its program is held: bridge debug pod/%s -n %s%s -c %s --copy-to NAME", pod.Name, pod.Namespace, e.Kube.Flags, target))
	}
	place := &Place{Pod: pod.Name, uid: pod.UID}
	var from []source
	if e.Image == "" {
		from = sources(ctx, e.Kube, pod, target, e.ProxyImage)
	}
	c, s, notes, err := e.choose(ctx, pod, target, from, &place.Container)
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		e.Say("note: " + n)
	}
	beside := fmt.Sprintf("beside container %s of pod/%s", target, pod.Name)
	if place.Container != "" {
		e.Say("container " + place.Container + " is there already, " + beside)
	} else {
		if err := add(ctx, e.Kube, pod, c, e.Say); err != nil {
			return nil, kube.Explain(err, "add a container to pod "+pod.Namespace+"/"+pod.Name)
		}
		place.Container = c.Name
		e.Say("container " + c.Name + " " + beside + s.from(pod.Name) + "; it stays there, as the API has no way to remove it, until the pod goes")
		if err := s.await(ctx, e.Kube, pod, c.Name, e.Image != "", needImage); err != nil {
			return nil, err
		}
	}
	if e.Image == "" {
		place.tools, err = s.bring(ctx, e.Kube, pod, c, place.Container, e.Arch, e.Say)
	}
	return place, err
}

// orCopy is err, of finding a pod that runs, with a copy as a way out where there is one whose program was begun.
func (e *Ephemeral) orCopy(ctx context.Context, err error) error {
	pods, _ := e.Kube.Pods(ctx, e.Kube.Namespace, e.Target)
	if !slices.ContainsFunc(pods, func(p corev1.Pod) bool {
		name, err := kube.ContainerName(&p, e.Container)
		return err == nil && hasStarted(&p, name)
	}) {
		return err
	}
	of := ""
	if e.Container != "" {
		of = " -c " + e.Container
	}
	return hint.New(0, err, strings.TrimSpace(fmt.Sprintf("%s\nin a copy of such a pod its program is held: bridge debug %s -n %s%s%s --copy-to NAME", hint.Of(err), e.Target, e.Kube.Namespace, e.Kube.Flags, of)))
}

// hasStarted tells whether a container's image is there, and its program was begun.
func hasStarted(pod *corev1.Pod, container string) bool {
	status, _ := kube.ContainerStatus(pod, container)
	waits := status.State.Waiting
	return status.State.Terminated != nil || status.LastTerminationState.Terminated != nil || waits != nil && waits.Reason == "RunContainerError"
}

const needImage = "name an image: --image busybox, or any that the nodes can pull; or the tools' with --proxy-image (bridge image push makes it).\n" +
	"Without an image: --copy-to NAME"

// choose takes the container to be added, and where its tools come from: from is empty for the user's image. Of one that is there already the
// name goes to there.
func (e *Ephemeral) choose(ctx context.Context, pod *corev1.Pod, target string, from []source, there *string) (c *corev1.EphemeralContainer, s source, notes []string, err error) {
	if e.Image != "" {
		c, notes, err = e.container(pod, target, s)
		// Without a terminal it is a program that ends, and is run anew.
		if err == nil && e.TTY {
			*there = earlier(pod, c)
		}
		return c, s, notes, err
	}
	var fit []source
	for _, s := range from {
		if c, notes, err = e.container(pod, target, s); err != nil {
			return nil, s, nil, err
		}
		if *there = earlier(pod, c); *there != "" {
			return c, s, notes, nil
		}
		if s.startsAs(c, pod, target) {
			fit = append(fit, s)
		}
	}
	if s, e.Arch, err = choose(ctx, e.Kube, pod, fit, e.Arch, needImage); hint.CodeOf(err) == hint.Usage && len(fit) < len(from) {
		err = hint.Newf(hint.Usage, "name the tools' image, whose user is not root, with --proxy-image (bridge image push makes it), or one with such a user by number with --image.\nWithout an image: --copy-to NAME",
			"the tools are carried into a running pod by a shell; container %s of pod %s/%s may not run as root, and says not as whom, so that its own image alone may be used, and that has none", target, pod.Namespace, pod.Name)
	}
	if err != nil {
		return nil, s, nil, err
	}
	c, notes, err = e.container(pod, target, s)
	return c, s, notes, err
}

// patchOf adds a container to a pod.
func patchOf(c *corev1.EphemeralContainer) ([]byte, error) {
	return json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []corev1.EphemeralContainer{*c}}})
}

// add adds a container to a pod, with a name of its own, which begins as it has one.
func add(ctx context.Context, k *kube.Client, pod *corev1.Pod, c *corev1.EphemeralContainer, say func(string)) error {
	c.Name += strings.ToLower(rand.Text()[:5])
	patch, err := patchOf(c)
	if err != nil {
		return err
	}
	_, err = k.Clientset.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "ephemeralcontainers")
	if err != nil && unclear(err) {
		say("whether container " + c.Name + " was added is not known; if it was, it stays until the pod goes")
	}
	return err
}

// nameAs begins c's name as that of whatever is like it, and the same owner's.
func nameAs(c *corev1.EphemeralContainer, owner string) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	c.Name = fmt.Sprintf("%s%x-", namePrefix, sha256.Sum256(append(text, owner...)))[:len(namePrefix)+8] + "-"
	return nil
}

// earlier is one of our containers that runs and is like c, whose name begins theirs.
func earlier(pod *corev1.Pod, c *corev1.EphemeralContainer) string {
	for _, was := range pod.Spec.EphemeralContainers {
		// Anybody who may add a container may give it such a name.
		if !strings.HasPrefix(was.Name, c.Name) || was.Image != c.Image || was.TargetContainerName != c.TargetContainerName ||
			!slices.Equal(was.Command, c.Command) || !slices.Equal(was.Args, c.Args) {
			continue
		}
		if state, _ := kube.ContainerState(pod, was.Name); state.Running != nil {
			return was.Name
		}
	}
	return ""
}

// container is what is added beside a container of pod, with the tools from s unless the image is the user's. Its name has no end yet.
func (e *Ephemeral) container(pod *corev1.Pod, target string, s source) (c *corev1.EphemeralContainer, notes []string, err error) {
	if pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows {
		return nil, nil, hint.Newf(hint.Usage, "bridge exec runs what is there", "pod/%s runs on Windows; what bridge brings are programs for Linux", pod.Name)
	}
	i := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == target })
	if i < 0 {
		if i = slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == target }); i < 0 {
			return nil, nil, hint.Newf(hint.Usage, "name one of its own with --container", "container %s of pod/%s is an ephemeral one itself", target, pod.Name)
		}
		i += len(pod.Spec.Containers)
	}
	of := slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers)[i]
	c = &corev1.EphemeralContainer{TargetContainerName: target}
	c.Image, c.ImagePullPolicy = e.Image, corev1.PullIfNotPresent
	c.Stdin, c.StdinOnce, c.TTY = e.Stdin, e.Stdin && !e.TTY, e.TTY
	c.Command = e.Command
	owner := e.Owner
	if e.Image == "" {
		s.hold(c)
		c.Stdin, c.StdinOnce, c.TTY, owner = false, false, false, ""
	}
	c.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	c.SecurityContext = securityContext(&of, userOf(pod, target), e.Image == "" && !s.carried())
	if p := c.SecurityContext.Privileged; p != nil && *p {
		notes = append(notes, "it is privileged, as container "+target+" is")
	}
	where := " (below /proc/1/root it is there)"
	switch share := pod.Spec.ShareProcessNamespace; {
	case pod.Spec.HostPID:
		where = ""
		notes = append(notes, "the pod has the node's processes: process 1 is the node's; find the container's with ps, and its files at /proc/PID/root")
	case share != nil && *share:
		where = ""
		notes = append(notes, "the pod's containers share their processes: process 1 is none of theirs; find the container's with ps, and its files at /proc/PID/root")
	}
	var missing []string
	for _, m := range of.VolumeMounts {
		if m.SubPath != "" || m.SubPathExpr != "" {
			missing = append(missing, m.MountPath)
			continue
		}
		c.VolumeMounts = append(c.VolumeMounts, m)
	}
	for _, d := range of.VolumeDevices {
		missing = append(missing, d.DevicePath)
	}
	if len(missing) > 0 {
		notes = append(notes, fmt.Sprintf("not mounted, since the API refuses parts of volumes and devices here: %s%s", strings.Join(missing, ", "), where))
	}
	return c, notes, nameAs(c, owner)
}

// await waits until a container runs, or, where that will do, has ended.
func await(ctx context.Context, k *kube.Client, namespace string, uid types.UID, pod, container string, mayEnd bool) error {
	var last error
	// Each look has a time of its own: what the last one has found is to be told at the end, and not that there was no time for another.
	err := wait.PollUntilContextTimeout(ctx, lookEvery, readyTimeout, true, func(context.Context) (bool, error) {
		p, err := k.Clientset.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			last = kube.Explain(err, "look at pod "+namespace+"/"+pod)
			return false, kube.IgnoreTransient(last)
		}
		if p.UID != uid || p.DeletionTimestamp != nil {
			return false, hint.Newf(hint.Other, "", "pod %s/%s goes, or is another one", namespace, pod)
		}
		if last = k.NotRunning(p, container); last == nil {
			return true, nil
		}
		state, _ := kube.ContainerState(p, container)
		if t := state.Terminated; t != nil && mayEnd && t.Reason != "StartError" && t.Reason != "ContainerCannotRun" {
			return true, nil
		}
		if why := hopeless(p, state); why != "" {
			next := fmt.Sprintf("bridge diagnose pod/%s -n %s%s", pod, namespace, k.Flags)
			if w := state.Waiting; w != nil && strings.Contains(w.Reason, "Image") {
				next = "correct the image's name, or name one that the node can pull; kubectl describe pod " + pod + " -n " + namespace + k.Flags + " has all that it says"
			}
			return false, hint.Newf(hint.ProxyNotReady, next, "container %s of pod %s/%s does not run: %s", container, namespace, pod, why)
		}
		return false, nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return hint.New(hint.ProxyNotReady, fmt.Errorf("%w, after %s", last, readyTimeout), fmt.Sprintf("bridge diagnose pod/%s -n %s%s says why", pod, namespace, k.Flags))
	}
	return err
}

// hopeless is why a container will not run, "" while it may, in one line.
func hopeless(p *corev1.Pod, state corev1.ContainerState) string {
	return hint.Printable(strings.Join(strings.Fields(whyHopeless(p, state)), " "))
}

// noImage are runtimes' words for an image that is not there, not for this node or not for who asks, in lower case.
var noImage = []string{": not found", "manifest unknown", "unauthorized", "403 forbidden", "access denied", "access to the resource is denied", "no match for platform"}

func whyHopeless(p *corev1.Pod, state corev1.ContainerState) string {
	if t := state.Terminated; t != nil {
		return fmt.Sprintf("it has ended with exit code %d: %s %s", t.ExitCode, t.Reason, t.Message)
	}
	for _, s := range p.Status.InitContainerStatuses {
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 && p.Spec.RestartPolicy == corev1.RestartPolicyNever {
			return fmt.Sprintf("init container %s has ended with exit code %d; --container %s holds that one", s.Name, t.ExitCode, s.Name)
		}
	}
	if kube.Ended(p) {
		return fmt.Sprintf("the pod has ended: %s %s", p.Status.Reason, p.Status.Message)
	}
	if w := state.Waiting; w != nil {
		switch w.Reason {
		case "ErrImagePull": // which may be followed by a success, unless there is no such image
			if slices.ContainsFunc(noImage, func(says string) bool { return strings.Contains(strings.ToLower(w.Message), says) }) {
				return w.Reason + " " + w.Message
			}
		case "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			return w.Reason + " " + w.Message
		}
	}
	return ""
}

// ExitCode waits until a container has ended, and returns how.
func ExitCode(ctx context.Context, k *kube.Client, p *Place) (code int, err error) {
	err = wait.PollUntilContextCancel(ctx, lookEvery, true, func(ctx context.Context) (bool, error) {
		pod, err := k.Clientset.CoreV1().Pods(k.Namespace).Get(ctx, p.Pod, metav1.GetOptions{})
		if err != nil {
			return false, kube.IgnoreTransient(kube.Explain(err, "look at pod/"+p.Pod))
		}
		if pod.UID != p.uid || !slices.Contains(kube.ContainerNames(pod), p.Container) {
			return false, hint.Newf(hint.Other, "", "pod/%s is another one by now: how the program in container %s has ended is not known", p.Pod, p.Container)
		}
		state, _ := kube.ContainerState(pod, p.Container)
		if state.Terminated == nil {
			return false, nil
		}
		code = int(state.Terminated.ExitCode)
		return true, nil
	})
	return code, err
}

// attachEnd is how long a program is waited for whose streams have ended.
const attachEnd = 10 * time.Second

// Attach joins the streams of the program that the user's image runs, and returns its exit code.
func (p *Place) Attach(ctx context.Context, k *kube.Client, s kube.Streams, say func(string)) (code int, err error) {
	if !s.TTY {
		return p.pipe(ctx, k, s, say)
	}
	seen := &counter{Writer: s.Stdout}
	out := s.Stdout
	s.Stdout = seen
	err = k.Attach(ctx, k.Namespace, p.Pod, p.Container, s)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	bounded, cancel := context.WithTimeout(ctx, attachEnd)
	defer cancel()
	code, err2 := ExitCode(bounded, k, p)
	switch {
	case err2 == nil && kube.BeforeUpgrade(err) && seen.n.Load() == 0:
		return p.Output(ctx, k, out, say) // it had ended before
	case err != nil:
		return 0, err
	case wait.Interrupted(err2):
		return 0, hint.Newf(hint.Other, "the same command again joins it, where it has a terminal", "the connection to container %s of pod/%s has ended, and its program goes on", p.Container, p.Pod)
	}
	return code, err2
}

// pipe gives a program without a terminal its input. What it prints is taken from its log: that has also what was printed before.
func (p *Place) pipe(ctx context.Context, k *kube.Client, s kube.Streams, say func(string)) (code int, err error) {
	attaching, detach := context.WithCancel(ctx)
	defer detach()
	attached := make(chan error, 1)
	go func() {
		attached <- k.Attach(attaching, k.Namespace, p.Pod, p.Container, kube.Streams{Stdin: s.Stdin, Stdout: io.Discard, Stderr: io.Discard})
	}()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		code, err := p.Output(reading, k, s.Stdout, say)
		ended <- end{code, err}
	}()
	var e end
	select {
	case e = <-ended:
		// The streams of a program that has ended do, too, and say whether they were cut before.
		defer time.AfterFunc(attachEnd, detach).Stop()
		err = <-attached
		if errors.Is(err, context.Canceled) {
			err = nil
		}
	case err = <-attached:
		detach()
		if err != nil {
			// It may have ended before it had any input.
			defer time.AfterFunc(attachEnd, stop).Stop()
		}
		e = <-ended
	}
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case reading.Err() != nil, err != nil && !kube.BeforeUpgrade(err):
		return 0, err // its input was cut off
	}
	return e.code, e.err
}

// counter knows how much was written.
type counter struct {
	io.Writer
	n atomic.Int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// Output prints what the program prints that the user's image runs, and returns its exit code.
func (p *Place) Output(ctx context.Context, k *kube.Client, out io.Writer, say func(string)) (code int, err error) {
	l := logs.Log{Kube: k, Target: kube.Target{Kind: kube.Pod, Name: p.Pod}, UID: p.uid, Out: out, Say: say, Options: logs.Options{Container: p.Container, Follow: true, Tail: -1}}
	if err := l.Run(ctx); err != nil {
		return 0, err
	}
	return ExitCode(ctx, k, p)
}
