package debug

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/tools"
)

const (
	// maxSources is in how many images a shell is looked for, lookTime for how long in each.
	maxSources = 8
	lookTime   = 5 * time.Second
	// carryTime bounds carrying the tools, slowTime is after how long that is said.
	carryTime, slowTime = 5 * time.Minute, 2 * time.Second
	shell               = "/bin/sh"
)

// source is the image of a container that is added to a running pod, and how the tools get into it: no volume can be added there, so that they
// are in the image, or its shell writes them down.
type source struct {
	image string
	// pod and container run that image, which the node has therefore; "" for the proxy's own, which has the tools.
	pod, container string
}

// sources are the images to be had beside a container of pod, the best first: that container's own, those of its pod's others, of those that were
// added to it to debug it, and those of the namespace's other pods on the node.
func sources(ctx context.Context, k *kube.Client, pod *corev1.Pod, target, proxyImage string) (out []source) {
	if proxyImage != "" {
		return []source{{image: proxyImage}}
	}
	take := func(p *corev1.Pod) {
		var its []source
		have := func(name, image string) {
			if state, _ := kube.ContainerState(p, name); state.Running != nil {
				its = append(its, source{image, p.Name, name})
			}
		}
		for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
			have(c.Name, c.Image)
		}
		for _, c := range p.Spec.EphemeralContainers {
			if p == pod && strings.HasPrefix(c.Name, namePrefix) {
				have(c.Name, c.Image)
			}
		}
		if p == pod {
			slices.SortStableFunc(its, func(a, b source) int { return first(a.container == target) - first(b.container == target) })
		}
		for _, s := range its {
			if !slices.ContainsFunc(out, func(had source) bool { return had.image == s.image }) {
				out = append(out, s)
			}
		}
	}
	take(pod)
	// Who may not list them does without.
	if others, err := k.Clientset.CoreV1().Pods(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", pod.Spec.NodeName).String()}); err == nil {
		slices.SortFunc(others.Items, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
		for i := range others.Items {
			if p := &others.Items[i]; p.Spec.NodeName == pod.Spec.NodeName && p.UID != pod.UID && p.DeletionTimestamp == nil {
				take(p)
			}
		}
	}
	return out[:min(len(out), maxSources)]
}

// first sorts what is so before the rest.
func first(so bool) int {
	if so {
		return 0
	}
	return 1
}

// hold has c be there on the image, and do nothing.
func (s source) hold(c *corev1.EphemeralContainer) {
	c.Image, c.ImagePullPolicy = s.image, corev1.PullIfNotPresent
	if s.carried() {
		c.Command, c.Args = []string{shell, "-c", `trap "exit 0" TERM; while :; do sleep 60 & wait $!; done`}, nil
		return
	}
	c.Command, c.Args = nil, []string{"tool", tools.Hold}
}

// startsAs tells whether a container with such a user starts on it beside target: who may not be root and is nobody by number is whom the image says, which is
// known of target's own alone.
func (s source) startsAs(c *corev1.EphemeralContainer, pod *corev1.Pod, target string) bool {
	own := !s.carried() || s.pod == pod.Name && s.container == target
	var user *int64
	var nonRoot *bool
	if sc := pod.Spec.SecurityContext; sc != nil {
		user, nonRoot = sc.RunAsUser, sc.RunAsNonRoot
	}
	if sc := c.SecurityContext; sc != nil {
		user, nonRoot = cmp.Or(sc.RunAsUser, user), cmp.Or(sc.RunAsNonRoot, nonRoot)
	}
	return own || user != nil || nonRoot == nil || !*nonRoot
}

// carried tells whether the tools are, and are not the image's.
func (s source) carried() bool { return s.container != "" }

// from is to be said of a container beside one of pod's: whose image it has, where that is not the proxy's.
func (s source) from(pod string) string {
	switch {
	case !s.carried():
		return ""
	case s.pod == pod:
		return ", on the image of container " + s.container
	}
	return fmt.Sprintf(", on the image of container %s of pod/%s", s.container, s.pod)
}

// maxSilent is how many that do not answer are asked.
const maxSilent = 2

// choose takes the first of the sources that will do, and the architecture of what is to be carried there: arch, unless it is empty. next is what to do where none does.
func choose(ctx context.Context, k *kube.Client, pod *corev1.Pod, from []source, arch, next string) (source, string, error) {
	var unclear error
	silent := 0
	for _, s := range from {
		if !s.carried() {
			return s, arch, nil
		}
		machine, err := s.shellOf(ctx, k, pod.Namespace)
		switch {
		case ctx.Err() != nil:
			return s, "", context.Cause(ctx)
		case machine != "":
			arch = cmp.Or(arch, machine)
			_, err := carry.Parts(arch)
			return s, arch, err
		case err != nil && unclear == nil:
			unclear = hint.New(0, fmt.Errorf("whether container %s of pod %s/%s has a shell is not known: %w", s.container, pod.Namespace, s.pod, err), "try again; or "+next)
		}
		if errors.Is(err, errSilent) {
			silent++
		}
		if silent == maxSilent {
			break
		}
	}
	if unclear != nil {
		return source{}, "", unclear
	}
	return source{}, "", hint.Newf(hint.Usage, next,
		"the tools are carried into a running pod by a shell, and none of the images that run in pod %s/%s or beside it on its node has one", pod.Namespace, pod.Name)
}

var errSilent = fmt.Errorf("no answer in %v", lookTime)

// shellOf is the architecture of the machine, as carry has it, where the image has a shell, and what that needs to write the tools down; "" where it has not.
func (s source) shellOf(ctx context.Context, k *kube.Client, namespace string) (arch string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var out bytes.Buffer
	code, err := k.Exec(ctx, namespace, s.pod, s.container, []string{shell, "-c", "for p in cat chmod head mkdir mv rm sleep tail uname wc; do command -v $p >/dev/null || exit 1; done; uname -m"}, &out)
	switch {
	case err != nil && ctx.Err() != nil:
		return "", hint.New(hint.Unreachable, errSilent, "")
	case kube.NoProgram(err), hint.CodeOf(err) == hint.NotFound, err == nil && code != 0: // or the pod has gone
		return "", nil
	case err != nil:
		return "", err
	}
	return archOf(strings.TrimSpace(out.String())), nil
}

// archOf is what uname calls machine, as carry has it.
func archOf(machine string) string {
	return cmp.Or(map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[machine], machine)
}

//go:embed carry.sh
var carryScript string

// await waits until the container that was added on s runs; next is what to do where the image of another does not.
func (s source) await(ctx context.Context, k *kube.Client, pod *corev1.Pod, name string, mayEnd bool, next string) error {
	err := await(ctx, k, pod.Namespace, pod.UID, pod.Name, name, mayEnd)
	if s.carried() && hint.CodeOf(err) == hint.ProxyNotReady {
		return hint.New(0, err, next)
	}
	return err
}

// bring has the tools where c is, in pod, and returns the command that a tool's name and arguments come after.
func (s source) bring(ctx context.Context, k *kube.Client, pod *corev1.Pod, c *corev1.EphemeralContainer, name, arch string, say func(string)) ([]string, error) {
	if !s.carried() {
		return proxyPath(), nil
	}
	folder, err := s.carry(ctx, k, pod, c, name, arch, say)
	if err != nil {
		return nil, hint.New(0, fmt.Errorf("carry the tools into container %s of pod %s/%s: %w", name, pod.Namespace, pod.Name, err), "")
	}
	// Each has a folder of its own for where executing from memory is refused.
	return []string{shell, "-c", `mkdir -p "$0/$$" && ` + carry.FallbackDirEnv + `="$0/$$" exec "$0/loader" "$@"`, folder}, nil
}

// carry writes the tools down, unless they are there, and returns the folder.
func (s source) carry(ctx context.Context, k *kube.Client, pod *corev1.Pod, c *corev1.EphemeralContainer, name, arch string, say func(string)) (string, error) {
	bounded, cancel := context.WithTimeout(ctx, carryTime)
	defer cancel()
	var out, wrong bytes.Buffer
	run := func(command []string, input io.Reader) (string, error) {
		out.Reset()
		code, err := k.Run(bounded, pod.Namespace, pod.Name, name, command, kube.Streams{Stdin: input, Stdout: &out, Stderr: &wrong})
		switch {
		case err != nil && ctx.Err() == nil && bounded.Err() != nil:
			err = hint.Newf(hint.Unreachable, "the same command again goes on in the same container", "not done in %v", carryTime)
		case err == nil && code != 0:
			err = hint.Newf(hint.Other, "name an image that has them with --proxy-image (bridge image push makes it); or is --arch wrong?",
				"exit code %d: %s", code, hint.Printable(strings.Join(strings.Fields(wrong.String()), " ")))
		}
		return strings.TrimSpace(out.String()), err
	}
	loads := map[string]*load{}
	look := []string{shell, "-c", lookScript, "bridge"}
	for _, a := range carry.Arches {
		if arch != "" && arch != a {
			continue
		}
		l, err := loadFor(a, c.VolumeMounts)
		if err != nil {
			return "", err
		}
		loads[a], look = l, append(look, l.folders...)
	}
	said, err := run(look, nil)
	if err != nil {
		return "", err
	}
	machine, there, _ := strings.Cut(said, "\n")
	if there != "" {
		return there, nil
	}
	arch = cmp.Or(arch, archOf(machine))
	l := loads[arch]
	if l == nil {
		_, err := carry.Parts(arch) // says which there are
		return "", err
	}
	slow := time.AfterFunc(slowTime, func() { say(fmt.Sprintf("carrying the tools there: %.1f MB", float64(len(l.input))/1e6)) })
	defer slow.Stop()
	return run(l.command(), bytes.NewReader(l.input))
}

// lookScript prints the machine, and that of the folders in which the tools are.
const lookScript = `uname -m; for d; do if [ -x "$d/loader" ] && [ -r "$d/proxy.000" ]; then echo "$d"; break; fi; done`

// load are the tools as they are carried.
type load struct {
	input   []byte // the loader, and the packed tools
	loader  int    // how many bytes of it are the loader
	folders []string
}

// loadFor are those for arch, and the folders that they may be in: none of them is in any of the mounts, which are the pod's.
func loadFor(arch string, mounts []corev1.VolumeMount) (*load, error) {
	parts, err := carry.Parts(arch)
	if err != nil {
		return nil, err
	}
	loader := parts[0].Files["loader"]
	l := &load{input: slices.Clone(loader), loader: len(loader)}
	for i, p := range parts {
		l.input = append(l.input, p.Files[fmt.Sprintf("proxy.%03d", i)]...)
	}
	folder := fmt.Sprintf("/.bridge-%x", sha256.Sum256(l.input))[:len("/.bridge-")+16]
	for _, parent := range []string{"/tmp", "/var/tmp", "/run", "/home", ""} {
		if !slices.ContainsFunc(mounts, func(m corev1.VolumeMount) bool {
			at := strings.TrimRight(m.MountPath, "/")
			return parent == at || strings.HasPrefix(parent, at+"/")
		}) {
			l.folders = append(l.folders, parent+folder)
		}
	}
	return l, nil
}

// command writes them down, and prints the folder.
func (l *load) command() []string {
	return append([]string{shell, "-c", carryScript, "bridge", strconv.Itoa(len(l.input)), strconv.Itoa(l.loader), rand.Text()}, l.folders...)
}
