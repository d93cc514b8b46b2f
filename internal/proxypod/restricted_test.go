package proxypod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	psa "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

// What we put into a cluster passes Pod Security "restricted" by the API server's own rules: a connect's pod and a keeper's as a whole, and of
// a swap's, which is the target's template otherwise, the container that is ours, whatever the target's own was allowed to do.
func TestOurContainersAreRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refusals := func(pod corev1.PodTemplateSpec) []policy.CheckResult {
		var out []policy.CheckResult
		for _, r := range evaluator.EvaluatePod(psa.LevelVersion{Level: psa.LevelRestricted, Version: psa.LatestVersion()}, &pod.ObjectMeta, &pod.Spec) {
			if !r.Allowed {
				out = append(out, r)
			}
		}
		return out
	}

	own, container, _, err := (&Own{Image: "bridge-proxy:1"}).template(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, _, err := Deployment(Spec{Name: "c", Namespace: "shop", Lease: "c", Template: own, Container: container, Source: Source{Image: "bridge-proxy:1"}, Pings: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Spec.Template.Spec.SecurityContext.Sysctls; len(s) != 1 || s[0].Name != pingSysctl {
		t.Errorf("a connect's pod has the sysctls %v", s)
	}
	if r := refusals(d.Spec.Template); len(r) > 0 {
		t.Errorf("a connect's pod is refused: %+v", r)
	}

	for name, text := range map[string]string{
		"no security context": `{name: app, image: x}`,
		"root":                `{name: app, image: x, securityContext: {runAsUser: 0, runAsNonRoot: false}}`,
		"privileged":          `{name: app, image: x, securityContext: {privileged: true, allowPrivilegeEscalation: true, procMount: Unmasked}}`,
		"capabilities":        `{name: app, image: x, securityContext: {capabilities: {add: [NET_ADMIN, SYS_ADMIN]}}}`,
		"unconfined":          `{name: app, image: x, securityContext: {seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}, seLinuxOptions: {user: u}}}`,
		"host port":           `{name: app, image: x, ports: [{containerPort: 80, hostPort: 80}]}`,
		"host volume":         `{name: app, image: x, volumeMounts: [{name: host, mountPath: /host}]}`,
	} {
		var c corev1.Container
		if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
			t.Fatal(err)
		}
		template := corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			Containers: []corev1.Container{c},
			Volumes:    []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}},
		}}
		if name != "no security context" && len(refusals(template)) == 0 {
			t.Errorf("%s: the original passes: this proves nothing", name)
		}
		for what, src := range map[string]Source{"carried": {Arch: "amd64", ConfigMaps: []string{"a"}}, "an image": {Image: "bridge-proxy:1"}} {
			d, _, err := Deployment(Spec{
				Name: "s", Namespace: "shop", Lease: "s", Template: template, Container: "app", Source: src,
				Ports: Ports{Tunnel: 27100, Health: 27101, PodProxy: 27102}, Listen: []int32{80}, ListenUDP: []int32{53},
			})
			if err != nil {
				t.Fatal(err)
			}
			if r := refusals(d.Spec.Template); len(r) > 0 {
				t.Errorf("%s, %s: the proxy is refused: %+v", name, what, r)
			}
			d, _, err = Deployment(Spec{
				Name: "s", Namespace: "shop", Lease: "s", Template: template, Container: "app", Source: src,
				Ports: Ports{Tunnel: 27100, Health: 27101}, Listen: []int32{80}, Standby: &Standby{Pass: []corev1.ContainerPort{{ContainerPort: 81}}, Members: true},
			})
			if err != nil {
				t.Fatal(err)
			}
			if r := refusals(d.Spec.Template); len(r) > 0 {
				t.Errorf("%s, %s: a proxy in standby is refused: %+v", name, what, r)
			}
			if r := refusals(Keeper(d, "app", "keeper", nil).Spec.Template); len(r) > 0 {
				t.Errorf("%s, %s: the keeper is refused: %+v", name, what, r)
			}
		}
	}
}
