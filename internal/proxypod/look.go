package proxypod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/podview"
)

// AccountPath is where every pod has its ServiceAccount's token, ca.crt and namespace, unless that is turned off.
const AccountPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// Like is a container of a workload.
type Like struct {
	Template  corev1.PodTemplateSpec
	Container corev1.Container // of the template
	Selector  *metav1.LabelSelector
	Pod       string // of a bare Pod its name: its labels may be others' too, or none
}

// FindLike reads the workload in k's namespace; container is as AppContainer's name.
func FindLike(ctx context.Context, k *kube.Client, t kube.Target, container string) (*Like, error) {
	w, err := k.Workload(ctx, k.Namespace, t)
	if err == nil {
		err = k.Complete(ctx, w)
	}
	if err != nil {
		return nil, kube.Explain(err, fmt.Sprintf("get %s in %s", t, k.Namespace))
	}
	c, err := AppContainer(w.Template, container)
	l := &Like{Template: w.Template, Container: c, Selector: w.Selector}
	if t.Kind == kube.Pod {
		l.Pod = t.Name
	}
	return l, hint.New(hint.Usage, err, "")
}

// pods are those of the workload.
func (l *Like) pods(ctx context.Context, k *kube.Client) ([]corev1.Pod, error) {
	selector, err := metav1.LabelSelectorAsSelector(l.Selector)
	if err != nil {
		return nil, err
	}
	options := metav1.ListOptions{LabelSelector: selector.String()}
	if l.Pod != "" {
		options = metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, l.Pod).String()}
	}
	list, err := k.Clientset.CoreV1().Pods(k.Namespace).List(ctx, options)
	if err != nil {
		return nil, kube.Explain(err, "list pods in "+k.Namespace)
	}
	return list.Items, nil
}

// Instead says in words what the container runs in the cluster: its command and arguments, as a shell would take them.
func (l *Like) Instead() string {
	var words []string
	for _, w := range slices.Concat(l.Container.Command, l.Container.Args) {
		words = append(words, podview.Quote(w))
	}
	text := strings.Join(words, " ")
	switch {
	case len(l.Container.Command) > 0:
		return text
	case text != "":
		return "the entrypoint of its image, with " + text
	}
	return "what its image says"
}

// AppContainer is the container named, else the default container (the annotation kubectl knows), else
// the first that declares a port, else the first.
func AppContainer(t corev1.PodTemplateSpec, name string) (corev1.Container, error) {
	var names []string
	for _, c := range t.Spec.Containers {
		names = append(names, c.Name)
	}
	if name == "" {
		name = t.Annotations["kubectl.kubernetes.io/default-container"]
	}
	if name != "" {
		if i := slices.Index(names, name); i >= 0 {
			return t.Spec.Containers[i], nil
		}
		return corev1.Container{}, fmt.Errorf("no container %q in the pod template: it has %s", name, strings.Join(names, ", "))
	}
	if i := slices.IndexFunc(t.Spec.Containers, func(c corev1.Container) bool { return len(c.Ports) > 0 }); i >= 0 {
		return t.Spec.Containers[i], nil
	}
	return t.Spec.Containers[0], nil
}

// literal is an argument that arrives as s: the kubelet replaces $(NAME) in arguments, and $$ by $.
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// lookArgs tell the proxy which of the container's files the laptop may have, and of what it is only told.
func lookArgs(c corev1.Container, pod *corev1.PodSpec) (args []string) {
	volumes := map[string]corev1.Volume{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = v
	}
	add := func(flag string, parts ...string) { args = append(args, flag, literal(strings.Join(parts, ":"))) }
	account := false
	for _, m := range c.VolumeMounts {
		at := path.Clean(m.MountPath)
		account = account || at == AccountPath
		v := volumes[m.Name]
		var tokens, kept map[string]string
		if v.Projected != nil {
			tokens, kept = identity(v.Projected)
		}
		switch {
		case m.SubPathExpr != "" && len(tokens)+len(kept) > 0: // only the kubelet knows which part
			add("--absent", at, "a part of a volume with a token or certificate of the pod's own")
			continue
		case keptVolume(v) && v.EmptyDir == nil:
			add("--files", at)
		default:
			add("--absent", at, volumeKind(v))
		}
		for _, file := range slices.Sorted(maps.Keys(tokens)) {
			if in, ok := below(m, file); ok {
				add("--token", path.Join(at, in), tokens[file])
			}
		}
		for _, file := range slices.Sorted(maps.Keys(kept)) {
			if in, ok := below(m, file); ok {
				add("--absent", path.Join(at, in), kept[file])
			}
		}
	}
	for _, d := range c.VolumeDevices {
		add("--absent", path.Clean(d.DevicePath), "a device")
	}
	if !account && (pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken) {
		add("--files", AccountPath)
		add("--token", AccountPath+"/token", "")
	}
	return args
}

// below is the path in mount m of what its volume has at file, "" at the mount itself; false when a subPath leaves it out.
func below(m corev1.VolumeMount, file string) (string, bool) {
	if m.SubPath == "" {
		return file, true
	}
	in, ok := strings.CutPrefix(path.Clean(file), path.Clean(m.SubPath))
	return in, ok && (in == "" || in[0] == '/')
}

// identity are the paths in a projected volume of what proves to others that one is the pod, or its ServiceAccount: a token's
// audience, or why it is kept.
func identity(v *corev1.ProjectedVolumeSource) (tokens, kept map[string]string) {
	tokens, kept = map[string]string{}, map[string]string{}
	for _, s := range v.Sources {
		if t := s.ServiceAccountToken; t != nil {
			tokens[t.Path] = t.Audience
		}
		if t := s.PodCertificate; t != nil {
			for _, p := range []string{t.KeyPath, t.CertificateChainPath, t.CredentialBundlePath} {
				if p != "" {
					kept[p] = "a certificate of the pod's own"
				}
			}
		}
	}
	return tokens, kept
}

// volumeKind says in words what a volume is that stays in the cluster.
func volumeKind(v corev1.Volume) string {
	switch {
	case v.EmptyDir != nil:
		return "an emptyDir of the pod's"
	case v.PersistentVolumeClaim != nil:
		return fmt.Sprintf("the PersistentVolumeClaim %q", v.PersistentVolumeClaim.ClaimName)
	case v.Ephemeral != nil:
		return "a volume of the pod's own (ephemeral)"
	case v.HostPath != nil:
		return "the node's " + v.HostPath.Path
	case v.CSI != nil:
		return "a volume of the driver " + v.CSI.Driver
	case v.Image != nil:
		return "a volume made of an image"
	}
	return "a volume that only the pod has"
}

// literals replaces, in a proxy's pod, references to what is another than in the target's: the resources of a
// container, the pod's name, if the template says what that is, and, where the pod does not have them, the template's labels.
type literals struct {
	template *corev1.PodTemplateSpec // as the workload has it
	proxy    string                  // the container that is the proxy
	alone    bool                    // without the template's labels and other containers
	// annotations are what the files of a downward API refer to instead.
	annotations map[string]string
	notes       []string
}

// literalPrefix begins the keys of those annotations.
const literalPrefix = Prefix + "literal-"

// apply replaces in the proxy's environment, and in the volumes of its pod.
func (l *literals) apply(pod *corev1.PodSpec) {
	for i := range pod.Containers {
		c := &pod.Containers[i]
		if c.Name != l.proxy {
			continue
		}
		c.Env = slices.Clone(c.Env)
		for j, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if text, ok := l.text(e.ValueFrom.FieldRef, e.ValueFrom.ResourceFieldRef, "variable "+e.Name); ok {
				c.Env[j] = corev1.EnvVar{Name: e.Name, Value: text}
			} else if ref := e.ValueFrom.ResourceFieldRef; ref != nil && l.alone {
				own := *ref
				own.ContainerName = "" // the other is not there
				c.Env[j].ValueFrom = &corev1.EnvVarSource{ResourceFieldRef: &own}
			}
		}
	}
	for i := range pod.Volumes {
		v := &pod.Volumes[i]
		if v.DownwardAPI != nil {
			l.files(v.Name, v.DownwardAPI.Items)
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.DownwardAPI != nil {
					l.files(v.Name, s.DownwardAPI.Items)
				}
			}
		}
	}
}

func (l *literals) files(volume string, items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		item := &items[i]
		text, ok := l.text(item.FieldRef, item.ResourceFieldRef, fmt.Sprintf("file %s of volume %q", item.Path, volume))
		if !ok {
			if ref := item.ResourceFieldRef; ref != nil && l.alone {
				ref.ContainerName = l.proxy
			}
			continue
		}
		key := fmt.Sprintf("%s%d", literalPrefix, len(l.annotations))
		if l.annotations == nil {
			l.annotations = map[string]string{}
		}
		l.annotations[key] = text
		item.FieldRef, item.ResourceFieldRef = &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['" + key + "']"}, nil
	}
}

// text is what a reference stands for in the target's pod, if it is known and another one here.
func (l *literals) text(field *corev1.ObjectFieldSelector, res *corev1.ResourceFieldSelector, what string) (string, bool) {
	switch {
	case field != nil && field.FieldPath == "metadata.name" && l.template.Name != "":
		return l.template.Name, true // a StatefulSet's pod is known by it
	case field != nil && l.alone:
		return l.label(field.FieldPath)
	case res != nil:
		name := res.ContainerName
		if name == "" {
			name = l.proxy
		}
		if name != l.proxy && !l.alone {
			return "", false // that container is here as it is there
		}
		i := slices.IndexFunc(l.template.Spec.Containers, func(c corev1.Container) bool { return c.Name == name })
		if i < 0 {
			return "", false
		}
		text, err := resourceText(l.template.Spec.Containers[i].Resources, res)
		if err != nil {
			l.notes = append(l.notes, fmt.Sprintf("%s, %s: %v", what, res.Resource, err))
			return "", false
		}
		return text, true
	}
	return "", false
}

// label is the value of a field that has to do with labels, in the kubelet's words.
func (l *literals) label(fieldPath string) (string, bool) {
	if fieldPath == "metadata.labels" {
		var lines []string
		for _, k := range slices.Sorted(maps.Keys(l.template.Labels)) {
			lines = append(lines, fmt.Sprintf("%s=%q", k, l.template.Labels[k]))
		}
		return strings.Join(lines, "\n"), true
	}
	key, ok := strings.CutPrefix(fieldPath, "metadata.labels['")
	key, ok2 := strings.CutSuffix(key, "']")
	return l.template.Labels[key], ok && ok2
}

// resourceText is the value of a resource, rounded up to whole divisors as the kubelet does. A request that is not set is the limit,
// or 0. A limit that is not set is what the node has, which only the kubelet knows.
func resourceText(r corev1.ResourceRequirements, ref *corev1.ResourceFieldSelector) (string, error) {
	kind, name, _ := strings.Cut(ref.Resource, ".")
	limit, limited := r.Limits[corev1.ResourceName(name)]
	amount := limit
	switch kind {
	case "limits":
		if !limited {
			return "", errors.New("the limit is not set, so it is the node's; here it is the proxy's, if that has one")
		}
	case "requests":
		if request, ok := r.Requests[corev1.ResourceName(name)]; ok {
			amount = request
		}
	default:
		return "", fmt.Errorf("bridge does not know %q", ref.Resource)
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == string(corev1.ResourceCPU) {
		return fmt.Sprint(int64(math.Ceil(float64(amount.MilliValue()) / float64(divisor.MilliValue())))), nil
	}
	return fmt.Sprint(int64(math.Ceil(float64(amount.Value()) / float64(divisor.Value())))), nil
}
