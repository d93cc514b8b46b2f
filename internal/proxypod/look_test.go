package proxypod

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"bridge/internal/kube"
)

func templateOf(t *testing.T, text string) corev1.PodTemplateSpec {
	t.Helper()
	var out corev1.PodTemplateSpec
	if err := yaml.UnmarshalStrict([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

const lookTemplate = `
metadata:
  labels: {app: orders, tier: back}
spec:
  hostNetwork: true
  initContainers: [{name: migrate, image: m}]
  containers:
  - name: app
    image: orders
    resources: {requests: {cpu: 1500m}, limits: {memory: 100Mi}}
    env:
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu}}}
    - {name: CPU_M, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Gi}}}
    - {name: REQUEST, valueFrom: {resourceFieldRef: {resource: requests.memory}}}
    - {name: NODES_CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: OTHERS, valueFrom: {resourceFieldRef: {containerName: sidecar, resource: limits.memory}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    volumeMounts:
    - {name: config, mountPath: /etc/$(X)/}
    - {name: secret, mountPath: /etc/s}
    - {name: pod, mountPath: /etc/pod}
    - {name: all, mountPath: /etc/all}
    - {name: all, mountPath: /etc/one, subPath: dir}
    - {name: all, mountPath: /etc/token, subPath: dir/token}
    - {name: all, mountPath: /etc/unknown, subPathExpr: $(POD)}
    - {name: scratch, mountPath: /tmp}
    - {name: claim, mountPath: /data}
    - {name: host, mountPath: /host}
    volumeDevices: [{name: claim, devicePath: /dev/x}]
  - name: sidecar
    image: s
    resources: {limits: {memory: 1Mi}}
  volumes:
  - {name: config, configMap: {name: c}}
  - {name: secret, secret: {secretName: s}}
  - name: pod
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: memory, resourceFieldRef: {containerName: app, resource: limits.memory}}
      - {path: nodes, resourceFieldRef: {containerName: sidecar, resource: limits.cpu}}
  - name: all
    projected:
      sources:
      - serviceAccountToken: {path: dir/token, audience: "https://vault"}
      - podCertificate: {keyType: ED25519, signerName: x/y, credentialBundlePath: pair}
      - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
  - {name: scratch, emptyDir: {}}
  - {name: claim, persistentVolumeClaim: {claimName: orders}}
  - {name: host, hostPath: {path: /var/log}}
`

func TestLookArgs(t *testing.T) {
	template := templateOf(t, lookTemplate)
	got := lookArgs(template.Spec.Containers[0], &template.Spec)
	want := []string{
		"--files", "/etc/$$(X)", "--files", "/etc/s", "--files", "/etc/pod",
		"--files", "/etc/all", "--token", "/etc/all/dir/token:https://vault", "--absent", "/etc/all/pair:a certificate of the pod's own",
		"--files", "/etc/one", "--token", "/etc/one/token:https://vault",
		"--files", "/etc/token", "--token", "/etc/token:https://vault",
		"--absent", "/etc/unknown:a part of a volume with a token or certificate of the pod's own",
		"--absent", "/tmp:an emptyDir of the pod's", "--absent", `/data:the PersistentVolumeClaim "orders"`, "--absent", "/host:the node's /var/log",
		"--absent", "/dev/x:a device",
		"--files", AccountPath, "--token", AccountPath + "/token:",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	no := false
	template.Spec.AutomountServiceAccountToken = &no
	if got := lookArgs(template.Spec.Containers[1], &template.Spec); got != nil {
		t.Errorf("of a container without any: %q", got)
	}
}

// A pod to look by is nobody's but ours, and its container sees what the target's sees.
func TestAPodToLookBy(t *testing.T) {
	before, template := templateOf(t, lookTemplate), templateOf(t, lookTemplate)
	d, notes, err := Deployment(Spec{Name: "bridge-env-x", Lease: "bridge-env-x", Template: template, Container: "app", Alone: true, Source: Source{Image: "proxy"}})
	if err != nil {
		t.Fatal(err)
	}
	if !equality.Semantic.DeepEqual(before, template) {
		t.Error("the template was changed")
	}
	pod := d.Spec.Template
	if len(pod.Labels) != 1 || pod.Labels[ProxyLabel] != "bridge-env-x" || len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) != 0 || pod.Spec.HostNetwork {
		t.Errorf("the pod has labels %v, %d containers", pod.Labels, len(pod.Spec.Containers))
	}
	env := map[string]string{}
	for _, e := range pod.Spec.Containers[0].Env {
		env[e.Name] = e.Value
		if e.ValueFrom != nil {
			b, _ := yaml.Marshal(e.ValueFrom)
			env[e.Name] = strings.Join(strings.Fields(string(b)), " ")
		}
	}
	for name, want := range map[string]string{
		"CPU": "2", "CPU_M": "1500", "MEMORY": "1", "REQUEST": "104857600", "OTHERS": "1048576", "TIER": "back",
		"NODES_CPU": `resourceFieldRef: divisor: "0" resource: limits.cpu`, "NAME": "fieldRef: fieldPath: metadata.name",
	} {
		if env[name] != want {
			t.Errorf("%s: %q, want %q", name, env[name], want)
		}
	}
	for _, want := range []string{"variable NODES_CPU, limits.cpu", `file nodes of volume "pod", limits.cpu`} {
		if !strings.Contains(strings.Join(notes, "\n"), want) {
			t.Errorf("no word of %s in %q", want, notes)
		}
	}
	for _, v := range pod.Spec.Volumes {
		if v.Name != "pod" {
			continue
		}
		for _, item := range v.DownwardAPI.Items {
			switch want := map[string]string{"labels": "app=\"orders\"\ntier=\"back\"", "memory": "104857600"}[item.Path]; item.Path {
			case "nodes":
				if item.ResourceFieldRef == nil || item.ResourceFieldRef.ContainerName != "app" {
					t.Errorf("nodes: %v", item)
				}
			default:
				key := strings.TrimSuffix(strings.TrimPrefix(item.FieldRef.FieldPath, "metadata.annotations['"), "']")
				if got := pod.Annotations[key]; got != want {
					t.Errorf("%s: %q, want %q", item.Path, got, want)
				}
			}
		}
	}
}

// A bare pod's own node has its image; its labels, if it has any, may be others' too.
func TestPodsLikeABarePodAreThatOne(t *testing.T) {
	for _, c := range []struct {
		kind kube.Kind
		want string
	}{
		{kube.Pod, "metadata.name=lone "},
		{kube.Deployment, " app=orders"},
	} {
		var asked string
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			switch path.Base(r.URL.Path) {
			case "lone":
				_, _ = io.WriteString(w, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"lone"},"spec":{"containers":[{"name":"app"}]}}`)
			case "orders":
				_, _ = io.WriteString(w, `{"apiVersion":"apps/v1","kind":"Deployment","spec":{"selector":{"matchLabels":{"app":"orders"}},"template":{"spec":{"containers":[{"name":"app"}]}}}}`)
			default:
				asked = r.URL.Query().Get("fieldSelector") + " " + r.URL.Query().Get("labelSelector")
				_, _ = io.WriteString(w, `{"apiVersion":"v1","kind":"PodList"}`)
			}
		}))
		t.Cleanup(server.Close)
		k, err := kube.NewForConfig(&rest.Config{Host: server.URL}, "shop")
		if err != nil {
			t.Fatal(err)
		}
		name := map[kube.Kind]string{kube.Pod: "lone", kube.Deployment: "orders"}[c.kind]
		l, err := FindLike(t.Context(), k, kube.Target{Kind: c.kind, Name: name}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.pods(t.Context(), k); err != nil || asked != c.want {
			t.Errorf("%s: asked for pods by %q, want %q: %v", c.kind, asked, c.want, err)
		}
	}
}
