package debug

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	psa "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

func podFrom(t *testing.T, text string) *corev1.Pod {
	t.Helper()
	var p corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	return &p
}

// The API server judges the whole pod when a container is added: with ours it lets in whatever it has let in, by its own rules.
func TestWhatIsAddedPassesPodSecurity(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	passes := func(level psa.Level, spec *corev1.PodSpec) (why string) {
		for _, r := range evaluator.EvaluatePod(psa.LevelVersion{Level: level, Version: psa.LatestVersion()}, &metav1.ObjectMeta{}, spec) {
			if !r.Allowed {
				why += r.ForbiddenReason + " " + r.ForbiddenDetail + "; "
			}
		}
		return why
	}
	in := map[psa.Level]int{}
	for name, text := range map[string]string{
		"nothing said":       `{containers: [{name: app, image: x}]}`,
		"root":               `{containers: [{name: app, image: x, securityContext: {runAsUser: 0}}]}`,
		"privileged":         `{containers: [{name: app, image: x, securityContext: {privileged: true, procMount: Unmasked, allowPrivilegeEscalation: true}}]}`,
		"capabilities":       `{containers: [{name: app, image: x, securityContext: {capabilities: {add: [CHOWN]}}}]}`,
		"restricted already": `{containers: [{name: app, image: x, securityContext: {runAsNonRoot: true, runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}}]}`,
		"by its pod":         `{securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}, containers: [{name: app, image: x, securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [NET_BIND_SERVICE], drop: [ALL]}}}]}`,
	} {
		pod := podFrom(t, `{metadata: {name: it}, spec: `+text+`}`)
		for _, from := range []source{{image: "proxy"}, {image: "busybox", pod: "it", container: "app"}, {}} {
			e := Ephemeral{}
			if from.image == "" {
				e.Image = "busybox"
			}
			c, notes, err := e.container(pod, "app", from)
			if err != nil {
				t.Fatal(err)
			}
			added := pod.Spec.DeepCopy()
			added.EphemeralContainers = []corev1.EphemeralContainer{*c}
			for _, level := range []psa.Level{psa.LevelBaseline, psa.LevelRestricted} {
				if passes(level, &pod.Spec) != "" {
					continue
				}
				in[level]++
				if why := passes(level, added); why != "" {
					t.Errorf("%s, %s, %+v: %s", name, level, from, why)
				}
			}
			of := pod.Spec.Containers[0].SecurityContext
			privileged := of != nil && of.Privileged != nil
			if privileged && (c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged) {
				t.Errorf("%s: it has fewer rights than what it is to look at", name)
			}
			if said := strings.Contains(strings.Join(notes, "\n"), "it is privileged, as container app is"); said != privileged {
				t.Errorf("%s: %q", name, notes)
			}
		}
	}
	if in[psa.LevelBaseline] != 15 || in[psa.LevelRestricted] != 6 {
		t.Errorf("let in: %v", in)
	}
}

// Where processes are shared, process 1 is not the container's, and that is said.
func TestSharedProcessesAreToldOf(t *testing.T) {
	for field, words := range map[string]string{"shareProcessNamespace": "process 1 is none of theirs", "hostPID": "process 1 is the node's"} {
		pod := podFrom(t, mountedYAML)
		yes := true
		if pod.Spec.ShareProcessNamespace = &yes; field == "hostPID" {
			pod.Spec.ShareProcessNamespace, pod.Spec.HostPID = nil, true
		}
		_, notes, err := (&Ephemeral{}).container(pod, "app", source{image: "proxy"})
		if all := strings.Join(notes, "\n"); err != nil || !strings.Contains(all, words) || strings.Contains(all, "/proc/1/root") {
			t.Errorf("%s: %v, %q", field, err, notes)
		}
		made, _, err := copyOf(pod, "app", "dbg", "amd64", nil)
		if err != nil || made.Spec.HostPID || made.Spec.ShareProcessNamespace != nil {
			t.Errorf("%v: the copy's: %+v", err, made.Spec)
		}
	}
}

const mountedYAML = `
metadata: {name: it, uid: u}
spec:
  containers:
  - name: app
    image: x
    volumeMounts:
    - {name: data, mountPath: /data, readOnly: true}
    - {name: data, mountPath: /etc/one.conf, subPath: one.conf}
    - {name: data, mountPath: /var/$(POD), subPathExpr: $(POD)}
  - {name: other, image: y}
status:
  containerStatuses:
  - {name: app, ready: true, restartCount: 0, image: x, imageID: "", user: {linux: {uid: 1234, gid: 99}}}
`

func TestUserAndMountsAreTheTargets(t *testing.T) {
	pod := podFrom(t, mountedYAML)
	c, notes, err := (&Ephemeral{}).container(pod, "app", source{image: "proxy"})
	if err != nil {
		t.Fatal(err)
	}
	if *c.SecurityContext.RunAsUser != 1234 || *c.SecurityContext.RunAsGroup != 99 || c.TargetContainerName != "app" {
		t.Errorf("%+v", c.SecurityContext)
	}
	if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].MountPath != "/data" || !c.VolumeMounts[0].ReadOnly {
		t.Errorf("%+v", c.VolumeMounts)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "/etc/one.conf, /var/$(POD)") {
		t.Errorf("%q", notes)
	}
}

// A container is found again by what it was made from, and by nothing else.
func TestAnEarlierOneIsFoundByItsOptions(t *testing.T) {
	pod := podFrom(t, mountedYAML)
	name := func(e Ephemeral, target string) string {
		c, _, err := e.container(pod, target, source{image: e.ProxyImage})
		if err != nil {
			t.Fatal(err)
		}
		return c.Name
	}
	first := Ephemeral{ProxyImage: "proxy", Owner: "ada"}
	prefix := name(first, "app")
	if len(prefix) != len(namePrefix)+9 || name(Ephemeral{ProxyImage: "proxy", Owner: "bob", Command: []string{"ls"}}, "app") != prefix {
		t.Errorf("%q, and for another command %q: the tools' container is for all", prefix, name(Ephemeral{ProxyImage: "proxy", Owner: "bob", Command: []string{"ls"}}, "app"))
	}
	shell := name(Ephemeral{Image: "busybox", TTY: true, Stdin: true, Owner: "ada"}, "app")
	for what, other := range map[string]string{
		"another container": name(first, "other"), "another image": name(Ephemeral{ProxyImage: "proxy:2"}, "app"), "the user's image": shell,
	} {
		if other == prefix {
			t.Errorf("%s has the same name", what)
		}
	}
	if name(Ephemeral{Image: "busybox", TTY: true, Stdin: true, Owner: "bob"}, "app") == shell {
		t.Error("a terminal is shared")
	}
	status := func(name string, running bool) corev1.ContainerStatus {
		s := corev1.ContainerStatus{Name: name}
		if running {
			s.State.Running = &corev1.ContainerStateRunning{}
		} else {
			s.State.Terminated = &corev1.ContainerStateTerminated{}
		}
		return s
	}
	c, _, err := first.container(pod, "app", source{image: "proxy"})
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string, running bool, change func(*corev1.EphemeralContainer)) {
		was := c.DeepCopy()
		was.Name = name
		change(was)
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, *was)
		pod.Status.EphemeralContainerStatuses = append(pod.Status.EphemeralContainerStatuses, status(name, running))
	}
	as := func(*corev1.EphemeralContainer) {}
	add(prefix+"ended", false, as)
	add(shell+"runs", true, as)
	add(prefix+"image", true, func(c *corev1.EphemeralContainer) { c.Image = "another's" })
	add(prefix+"command", true, func(c *corev1.EphemeralContainer) { c.Command = []string{"another's"} })
	if got := earlier(pod, c); got != "" {
		t.Errorf("%q is not like it, or runs no more", got)
	}
	add(prefix+"runs", true, as)
	if got := earlier(pod, c); got != prefix+"runs" {
		t.Errorf("%q", got)
	}
}

const wholeYAML = `
metadata: {name: orders-0, namespace: shop, uid: u, labels: {app: orders, pod-template-hash: x}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: orders, uid: r, controller: true}]}
spec:
  nodeName: node1
  priority: 0
  resourceClaims: [{name: gpu}]
  resources: {limits: {memory: 64Mi}}
  restartPolicy: Always
  initContainers:
  - {name: prepare, image: p, resources: {claims: [{name: gpu}]}, volumeMounts: [{name: kube-api-access-abc, mountPath: /var/run/secrets}]}
  - {name: mesh, image: m, restartPolicy: Always}
  containers:
  - name: app
    image: x
    command: [/server]
    args: ["--name", "a b\x1b[2J"]
    ports: [{containerPort: 80, hostPort: 80}]
    livenessProbe: {httpGet: {path: /, port: 80}}
    lifecycle: {preStop: {sleep: {seconds: 5}}}
    resources: {limits: {memory: 20Mi}}
    volumeMounts:
    - {name: kube-api-access-abc, mountPath: /var/run/secrets}
    - {name: conf, mountPath: /etc/conf, subPath: a}
  - {name: worker, image: w}
  ephemeralContainers:
  - {name: old, image: o}
  volumes:
  - {name: kube-api-access-abc, projected: {sources: []}}
  - {name: conf, configMap: {name: conf}}
`

func TestACopyIsHeldAndNobodysPod(t *testing.T) {
	pod := podFrom(t, wholeYAML)
	made, notes, err := copyOf(pod, "app", "dbg", "arm64", []string{"dbg-0", "dbg-1"})
	if err != nil {
		t.Fatal(err)
	}
	if pod.Spec.Containers[0].LivenessProbe == nil || pod.Spec.Containers[0].Command[0] != "/server" || len(pod.Spec.Containers[0].VolumeMounts) != 2 {
		t.Error("the pod that is copied was changed")
	}
	spec := made.Spec
	if made.Name != "dbg" || made.Namespace != "shop" || made.Labels["app"] != "" || len(made.OwnerReferences) != 0 || spec.NodeName != "" || spec.RestartPolicy != corev1.RestartPolicyNever || len(spec.EphemeralContainers) != 0 {
		t.Errorf("%+v", made.ObjectMeta)
	}
	if len(spec.Containers) != 1 || len(spec.InitContainers) != 1 || spec.InitContainers[0].Name != "prepare" || len(spec.InitContainers[0].VolumeMounts) != 0 {
		t.Errorf("containers %v, init containers %v", spec.Containers, spec.InitContainers)
	}
	if len(spec.InitContainers[0].Resources.Claims) != 0 || spec.Resources != nil {
		t.Errorf("claims %v, of the pod %v", spec.InitContainers[0].Resources.Claims, spec.Resources)
	}
	c := spec.Containers[0]
	if c.Image != "x" || c.Command[0] != "/.bridge/loader" || !slices.Equal(c.Args, []string{"tool", "hold"}) || c.LivenessProbe != nil || c.Lifecycle != nil || c.Ports[0].HostPort != 0 {
		t.Errorf("%+v", c)
	}
	var mounts []string
	for _, m := range c.VolumeMounts {
		mounts = append(mounts, m.MountPath)
	}
	if fmt.Sprint(mounts) != "[/etc/conf /.bridge]" || spec.NodeSelector[corev1.LabelArchStable] != "arm64" {
		t.Errorf("mounts %v, selector %v", mounts, spec.NodeSelector)
	}
	all := strings.Join(notes, "\n")
	for _, want := range []string{"not in the copy: mesh, worker", `does not run '/server' '--name' 'a b[2J'`, "before it: prepare", "memory limit is 128Mi"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %q", want, all)
		}
	}

	// An init container that fails is held in the place of all that comes after it.
	made, _, err = copyOf(pod, "prepare", "dbg", "amd64", nil)
	if err != nil || len(made.Spec.Containers) != 1 || made.Spec.Containers[0].Name != "prepare" || len(made.Spec.InitContainers) != 0 {
		t.Errorf("%v: %+v", err, made)
	}
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-0"}}})
	made, notes, err = copyOf(pod, "app", "dbg", "amd64", nil)
	if err != nil || made.Spec.NodeName != "node1" || !strings.Contains(strings.Join(notes, "\n"), "on the same node for them: data-0") {
		t.Errorf("%v: node %q, %q", err, made.Spec.NodeName, notes)
	}
}

func TestHopelessIsSaidAtOnce(t *testing.T) {
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "m"}}
	}
	p := podFrom(t, wholeYAML)
	p.Status.Phase = corev1.PodRunning
	for reason, is := range map[string]bool{"ContainerCreating": false, "ErrImagePull": false, "ImagePullBackOff": true, "CreateContainerConfigError": true} {
		if (hopeless(p, waiting(reason)) != "") != is {
			t.Errorf("%s: %q", reason, hopeless(p, waiting(reason)))
		}
	}
	for says, is := range map[string]bool{
		"reading manifest 1 in registry.example/x: manifest unknown": true, "unexpected status: 401 Unauthorized": true, "403 Forbidden": true,
		"dial tcp: lookup registry.example: no such host": false, "open /var/lib/x: permission denied": false,
	} {
		state := waiting("ErrImagePull")
		if state.Waiting.Message = says; (hopeless(p, state) != "") != is {
			t.Errorf("%s: %q", says, hopeless(p, state))
		}
	}
	none := waiting("ErrImagePull")
	none.Waiting.Message = `failed to resolve reference "registry.example/bsybox:1": registry.example/bsybox:1: not found`
	if why := hopeless(p, none); !strings.Contains(why, "bsybox") {
		t.Errorf("an image that is not there: %q", why)
	}
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: "one\n\x1b[2Jtwo"}}
	if why := hopeless(p, ended); why != "it has ended with exit code 1: Error one [2Jtwo" {
		t.Errorf("%q", why)
	}
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "prepare", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 4}}}}
	if why := hopeless(p, waiting("PodInitializing")); !strings.Contains(why, "--container prepare") {
		t.Errorf("%q", why)
	}
}
