package diagnose

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// imageFault is one way in which an image does not come, known by what a runtime says of it.
type imageFault struct {
	id string
	// says are texts of which one is in the runtime's message, in lower case.
	says []string
	what string // behind the image's name
	next func(f *Finding, image string) string
}

// imageFaults are tried in this order: what is more particular comes first, since runtimes put one message into another. The texts
// are those of containerd, and of the registries that it, cri-o and Docker pass on.
var imageFaults = []imageFault{
	{"image-architecture", []string{"no match for platform", "no matching manifest for", "image operating system", "does not match the specified platform"}, "has no variant for the node's architecture",
		func(*Finding, string) string {
			return "build the image for it (docker buildx build --platform), or choose other nodes: nodeSelector kubernetes.io/arch"
		}},
	{"image-rate-limit", []string{"toomanyrequests", "429 too many requests", "pull rate limit"}, "is not handed out now: the registry limits how often you may pull",
		func(*Finding, string) string {
			return "wait, pull with an account (imagePullSecrets), or use a mirror"
		}},
	{"image-unauthorized", []string{"401 unauthorized", "403 forbidden", "unauthorized", "authentication required", "no basic auth credentials", "authorization failed", "access denied", "access to the resource is denied", "failed to authorize"},
		"is not handed out to the node: its registry wants other credentials, or has no such repository", nil}, // pullSecretFault goes on
	{"registry-tls", []string{"x509:", "server gave http response to https client", "tls:"}, "cannot be pulled: the node does not trust its registry's TLS",
		func(*Finding, string) string {
			return "give the node's runtime the registry's certificate authority, or name the registry that is meant"
		}},
	{"registry-unreachable", []string{"no such host", "connection refused", "i/o timeout", "tls handshake timeout", "no route to host", "network is unreachable", "server misbehaving", "deadline exceeded", "connection reset", "temporary failure in name resolution", "unexpected eof"},
		"cannot be pulled: the node does not reach its registry",
		func(_ *Finding, image string) string {
			return "check the registry's name, " + registryOf(image) + ", and that the node reaches it: DNS, proxy, firewall"
		}},
	{"image-not-found", []string{"manifest unknown", "name unknown", "not found"}, "does not exist in its registry: the tag or the repository is misspelt, or was never pushed",
		func(f *Finding, image string) string {
			return fmt.Sprintf("look which tags there are, and name one: kubectl set image %s%s %s=%s:TAG", f.target(), f.Object.in(), f.Container, withoutTag(image))
		}},
}

func checkImages(s *Snapshot) (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		for _, c := range containersOf(p) {
			if f, ok := s.imageFinding(p, c); ok {
				out = append(out, f)
			}
		}
	}
	return out
}

func (s *Snapshot) imageFinding(p *pod, c container) (Finding, bool) {
	reason, message := c.waiting()
	begin := func(id, summary string, next ...string) Finding {
		f := s.ofContainer(p, c, id, Problem, Image)
		f.Summary = fmt.Sprintf("%s: image %s %s", c.what(), c.Image, summary)
		f.Why = "the container does not start before its image is on the node"
		f.Next = next
		return f
	}
	switch reason {
	case "InvalidImageName":
		f := begin("image-name-invalid", "is no valid name")
		f.Next = []string{"write it as REGISTRY/REPOSITORY:TAG, the repository in lower case: " + f.edit()}
		return f, true
	case "ErrImageNeverPull":
		f := begin("image-never-pull", "is not on the node, and imagePullPolicy Never does not let it be pulled")
		f.Next = []string{"load it into the node, or take imagePullPolicy: IfNotPresent: " + f.edit()}
		return f, true
	case "ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError":
	default:
		return Finding{}, false
	}
	pulls := s.eventsOf("pod", p, "Failed", "FailedToRetrieveImagePullSecret")
	pulls = slices.DeleteFunc(pulls, func(e *corev1.Event) bool {
		return e.Reason == "Failed" && !strings.Contains(e.Message, `"`+c.Image+`"`) && !strings.Contains(e.Message, "ErrImagePull")
	})
	// While it waits for the next try, older kubelets say only that; the event has what the runtime said.
	said := message
	if told := strings.TrimPrefix(message, fmt.Sprintf("Back-off pulling image %q", c.Image)); strings.TrimSpace(told) == "" {
		for _, e := range pulls {
			if strings.Contains(e.Message, "Failed to pull image") {
				said = e.Message
				break
			}
		}
	}
	lower := strings.ToLower(strings.ReplaceAll(said, c.Image, "")) // an image may be called anything
	for _, fault := range imageFaults {
		if !slices.ContainsFunc(fault.says, func(text string) bool { return strings.Contains(lower, text) }) {
			continue
		}
		f := begin(fault.id, fault.what)
		if fault.next != nil {
			f.Next = []string{fault.next(&f, c.Image)}
		} else {
			s.pullSecretFault(&f, p, c.Image)
		}
		f.Events = told(pulls)
		return f, true
	}
	f := begin("image-pull-failed", "cannot be pulled", "the runtime's message says why; kubectl describe "+refOf("pod", p).String()+inOf(p))
	f.Events = told(pulls)
	return f, true
}

// inOf is the flag for the pod's namespace.
func inOf(p *pod) string { return refOf("pod", p).in() }

// registryOf is the host an image comes from.
func registryOf(image string) string {
	first, _, slash := strings.Cut(image, "/")
	if slash && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return first
	}
	return "docker.io"
}

func withoutTag(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
		return image[:i]
	}
	return image
}

// pullSecret is what is known of a Secret with credentials for registries: not the credentials.
type pullSecret struct {
	absent bool
	kind   corev1.SecretType
	hosts  []string
	unread string // why it could not be read
}

// pullSecretsWanted are the secrets of pods whose images do not come.
func (s *Snapshot) pullSecretsWanted() (out []Ref) {
	for i := range s.Pods {
		p := &s.Pods[i]
		waits := slices.ContainsFunc(containersOf(p), func(c container) bool {
			reason, _ := c.waiting()
			return reason == "ErrImagePull" || reason == "ImagePullBackOff"
		})
		for _, ref := range p.Spec.ImagePullSecrets {
			if r := (Ref{"secret", p.Namespace, ref.Name}); waits && !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

func (s *Snapshot) readPullSecrets(ctx context.Context, k *kube.Client, wanted []Ref) {
	read := make([]pullSecret, len(wanted))
	atOnce(aFew, len(wanted), func(i int) {
		secret, err := k.Clientset.CoreV1().Secrets(wanted[i].Namespace).Get(ctx, wanted[i].Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			read[i].absent = true
		case err != nil:
			read[i].unread = kube.Explain(err, "get "+wanted[i].String()).Error()
		default:
			read[i] = pullSecretOf(secret)
		}
	})
	s.PullSecrets = map[Ref]pullSecret{}
	for i, r := range wanted {
		s.PullSecrets[r] = read[i]
	}
}

func pullSecretOf(secret *corev1.Secret) pullSecret {
	out := pullSecret{kind: secret.Type}
	var config struct {
		Auths map[string]json.RawMessage `json:"auths"`
	}
	auths := map[string]json.RawMessage{}
	if json.Unmarshal(secret.Data[corev1.DockerConfigJsonKey], &config) == nil {
		auths = config.Auths
	}
	if len(auths) == 0 {
		_ = json.Unmarshal(secret.Data[corev1.DockerConfigKey], &auths) // none then
	}
	for host := range auths {
		out.hosts = append(out.hosts, host)
	}
	slices.Sort(out.hosts)
	return out
}

// covers tells whether the secret has credentials for a registry, as the kubelet matches them: by host, glob parts left out.
func (p pullSecret) covers(registry string) bool {
	return slices.ContainsFunc(p.hosts, func(h string) bool {
		h = strings.TrimPrefix(strings.TrimPrefix(h, "https://"), "http://")
		h, _, _ = strings.Cut(h, "/")
		if h == "index.docker.io" {
			h = "docker.io"
		}
		return h == registry || strings.HasPrefix(h, "*.") && strings.HasSuffix(registry, h[1:])
	})
}

// pullSecretFault finds what is wrong with the credentials of a pod that its registry refused.
func (s *Snapshot) pullSecretFault(f *Finding, p *pod, image string) {
	registry := registryOf(image)
	create := fmt.Sprintf("kubectl create secret docker-registry NAME%s --docker-server=%s --docker-username=USER --docker-password=PASSWORD", inOf(p), registry)
	if len(p.Spec.ImagePullSecrets) == 0 {
		f.ID = "image-pull-secret-none"
		f.Summary += "; the pod names no imagePullSecrets"
		f.Next = []string{create, "name it in spec.imagePullSecrets of the pod's template, or of its ServiceAccount; check the repository's name too"}
		f.State = append(f.State, Evidence{From: f.Object.String() + " spec.imagePullSecrets", Says: "none"})
		return
	}
	var right []string
	for _, ref := range p.Spec.ImagePullSecrets {
		r := Ref{"secret", p.Namespace, ref.Name}
		secret, known := s.PullSecrets[r]
		tells := func(says string) { f.State = append(f.State, Evidence{From: r.String(), Says: says}) }
		switch {
		case !known || secret.unread != "":
			tells("not looked at: " + cmp.Or(secret.unread, "it was not read"))
		case secret.absent:
			f.ID = "image-pull-secret-absent"
			f.Summary += fmt.Sprintf("; the pull secret %s does not exist in %s", ref.Name, p.Namespace)
			f.Next = []string{strings.Replace(create, "NAME", ref.Name, 1)}
			for _, o := range s.Secrets { // of all namespaces where all are looked at
				if o.Name == ref.Name && o.Namespace != p.Namespace {
					f.Summary += fmt.Sprintf(", but in %s, where the pod is not", o.Namespace)
					f.Next = append(f.Next, fmt.Sprintf("or copy that of %s: kubectl get secret %s -n %s -o yaml, and apply it with the other namespace", o.Namespace, ref.Name, o.Namespace))
					break
				}
			}
			tells("does not exist; a pod's pull secrets are in its own namespace")
			return
		case secret.kind != corev1.SecretTypeDockerConfigJson && secret.kind != corev1.SecretTypeDockercfg:
			f.ID = "image-pull-secret-type"
			f.Summary += fmt.Sprintf("; the pull secret %s has the type %s, which the kubelet does not read", ref.Name, secret.kind)
			f.Next = []string{"kubectl delete " + strings.Replace(r.String(), "/", " ", 1) + inOf(p), strings.Replace(create, "NAME", ref.Name, 1)}
			tells("type " + string(secret.kind))
			return
		case !secret.covers(registry):
			f.ID = "image-pull-secret-host"
			f.Summary += fmt.Sprintf("; the pull secret %s is for %s", ref.Name, cmp.Or(list(secret.hosts), "no registry at all"))
			f.Next = []string{"make one for " + registry + ": " + create}
			tells("has credentials for " + cmp.Or(list(secret.hosts), "nothing"))
		default:
			right = append(right, ref.Name)
		}
	}
	if len(right) > 0 {
		f.ID = "image-unauthorized"
		f.Summary += fmt.Sprintf("; what the pull secret %s has for %s is not accepted", list(right), registry)
		f.Next = []string{"check user, password and that this account may pull the repository; then make the secret anew: " + create}
	}
	if len(f.Next) == 0 {
		f.Next = []string{"check that the pull secrets are for " + registry + " and may pull this repository, and the repository's name"}
	}
}
