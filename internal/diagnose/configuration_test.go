package diagnose

import (
	"slices"
	"strings"
	"testing"
)

func TestWhatPodsReferTo(t *testing.T) {
	settings := "\n---\nkind: ConfigMap\nmetadata: {name: setting}\n"
	const creating = `ContainerCreating`
	volume := "volumes: [{name: settings, configMap: {name: settings}}]"
	try(t, []tried{
		{"no ConfigMap", withPod("envFrom: [{configMapRef: {name: settings}}]", "", waits("CreateContainerConfigError", `configmap "settings" not found`)), "configmap-absent", "kubectl create configmap settings -n shop"},
		{"one of a name that is near", withPod("envFrom: [{configMapRef: {name: settings}}]", "", waits("CreateContainerConfigError", `configmap "settings" not found`)) + settings, "configmap-absent", "if configmap/setting is meant"},
		{"no Secret", withPod("env: [{name: KEY, valueFrom: {secretKeyRef: {name: key, key: key}}}]", "", waits("CreateContainerConfigError", `secret "key" not found`)), "secret-absent", "secret/key does not exist in shop"},
		{"an optional one", withPod("envFrom: [{configMapRef: {name: settings, optional: true}}]", "", running), "", ""},
		{"no key", withPod("", "", waits("CreateContainerConfigError", `couldn''t find key level in ConfigMap shop/settings`)), "config-key-absent", "configmap/settings has no key level"},
		{"no ConfigMap for a volume", withPod("", volume, waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "settings" : configmap "settings" not found`), "configmap-absent", ""},
		{"no ConfigMap for a volume, and no event yet", withPod("", volume, waits(creating, "")), "configmap-absent", "spec.volumes[settings]"},
		{"a ConfigMap that came after its pod", withPod("", "volumes: [{name: settings, configMap: {name: setting}}]", waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "settings" : configmap "setting" not found`) + settings, "pod-not-ready", ""},
		{"no keys for a volume", withPod("", "volumes: [{name: all, projected: {sources: [{configMap: {name: it, items: [{key: level, path: o}]}}]}}]", waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "all" : [references non-existent config key: other, references non-existent config key: level]`) + "\n---\nkind: ConfigMap\nmetadata: {name: it}\n", "config-key-absent", "takes key level, which configmap/it has not"},
		{"no key for a volume that is not known", withPod("", "", waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "all" : references non-existent config key: level`), "config-key-absent", "which its ConfigMap or Secret has not"},
		{"no key for a volume, of a ConfigMap", withPod("", "volumes: [{name: settings, configMap: {name: it, items: [{key: level, path: l}]}}]", waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "settings" : references non-existent config key: level`) + "\n---\nkind: ConfigMap\nmetadata: {name: it}\n", "config-key-absent", "volume settings takes key level, which configmap/it has not"},
		{"no key for a volume, of two sources", withPod("", "volumes: [{name: all, projected: {sources: [{configMap: {name: it, items: [{key: other, path: o}]}}, {secret: {name: key, items: [{key: level, path: l}]}}]}}]", waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "all" : references non-existent secret key: level`) + "\n---\nkind: ConfigMap\nmetadata: {name: it}\n---\nkind: Secret\nmetadata: {name: key}\n", "config-key-absent", "kubectl describe secret key -n shop"},
		{"no key for a volume", withPod("", "", waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "settings" : configmap references non-existent config key: level`), "config-key-absent", ""},
		{"a volume", withPod("", "", waits(creating, "")) + event("Pod/it", "FailedAttachVolume", `AttachVolume.Attach failed for volume "pvc-1" : the disk is used by another node`), "volume-mount-failed", "used by another node"},
		{"a volume, told twice", withPod("", "", waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "data" : hostPath type check failed: /data is not a directory`) + event("Pod/it", "FailedMount", `Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[]: context deadline exceeded`), "volume-mount-failed", "is not a directory"},
		{"volumes that are late, twice", withPod("", "", waits(creating, "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "settings" : failed to sync configmap cache: timed out waiting for the condition`) + strings.Replace(event("Pod/it", "FailedMount", `Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[]: context deadline exceeded`), "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:59:30Z", 1), "volume-mount-failed", "unmounted volumes=[data]"},
		{"volumes that are late, and why", withPod("", "", waits(creating, "")) + event("Pod/it", "FailedMount", `Unable to attach or mount volumes: unmounted volumes=[data tmp], unattached volumes=[], failed to process volumes=[]: context deadline exceeded`) + event("Pod/it", "FailedMount", `Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: error processing PVC shop/data: PVC is being deleted`), "volume-mount-failed", "PVC is being deleted"},
		{"a volume, while a container runs", strings.NewReplacer("containers: [{", "containers: [{name: b, image: x}, {", "containerStatuses: [{", `containerStatuses: [{name: b, ready: true, started: true, restartCount: 0, image: "", imageID: "", state: {running: {startedAt: "2026-11-28T11:00:00Z"}}}, {`).Replace(withPod("", "", waits(creating, ""))) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "settings" : timed out`), "pod-not-ready", ""},
		{"it runs without, for now", withPod("", volume, running), "configmap-absent", "does not exist"},
		{"a projected volume's", withPod("", "volumes: [{name: all, projected: {sources: [{configMap: {name: settings}}, {secret: {name: key}}, {secret: {name: token, optional: true}}]}}]", waits(creating, "")), "configmap-absent secret-absent", "spec.volumes[all]"},
		{"a projected volume's, which are there", withPod("", "volumes: [{name: all, projected: {sources: [{configMap: {name: setting}}, {secret: {name: key}}]}}]", running) + settings + "\n---\nkind: Secret\nmetadata: {name: key}\n", "", ""},
		{"root", withPod("", "", waits("CreateContainerConfigError", `container has runAsNonRoot and image will run as root (pod: "it_shop(u1)", container: app)`)), "run-as-root-refused", "runAsUser"},
		{"no command", withPod("", "", waits("CreateContainerError", `failed to generate container "x" spec: no command specified`)), "program-no-command", ""},
		{"something else", withPod("", "", waits("CreateContainerError", `the moon is full`)), "container-create-failed", "the moon is full"},
		{"two at once", withPod("envFrom: [{configMapRef: {name: a}}, {secretRef: {name: b}}]", "", waits("CreateContainerConfigError", `configmap "a" not found`)), "configmap-absent secret-absent", ""},
	})
}

// What a pod that runs refers to may have been deleted since: it does not start again. What each pod has is not looked for.
func TestWhatWasDeletedSince(t *testing.T) {
	pod := func(spec string) map[string]string {
		return map[string]string{"pods": `{"metadata":{"name":"it","namespace":"shop"},"spec":{` + spec + `},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}],
			"containerStatuses":[{"name":"app","ready":true,"started":true,"state":{"running":{"startedAt":"2026-11-28T11:00:00Z"}}}]}}`}
	}
	const token = `"volumes":[{"name":"kube-api-access-1","projected":{"sources":[{"configMap":{"name":"kube-root-ca.crt"}}]}}]`
	for _, tt := range []struct {
		spec, ids string
		asked     bool
	}{
		{`"containers":[{"name":"app","envFrom":[{"secretRef":{"name":"key"}}]}]`, "secret-absent", true},
		{`"containers":[{"name":"app","envFrom":[{"secretRef":{"name":"key","optional":true}}]}],` + token, "", false},
	} {
		k, asked := apiServer(t, pod(tt.spec))
		r, err := Run(t.Context(), k, Options{NoDial: true})
		if err != nil || strings.Join(ids(r.Findings), " ") != tt.ids {
			t.Errorf("%s: %v, %+v", tt.spec, err, r)
		}
		if got := slices.Contains(*asked, "/api/v1/namespaces/shop/secrets"); got != tt.asked {
			t.Errorf("%s: the names of Secrets were asked for: %v", tt.spec, got)
		}
	}
}

func TestNearest(t *testing.T) {
	for _, c := range []struct {
		want string
		have []string
		like string
	}{
		{"htpp", []string{"grpc", "http"}, "http"},
		{"orders", []string{"order", "payments"}, "order"},
		{"a", []string{"b"}, "b"},
		{"it", []string{"ti"}, "ti"},
		{"web", []string{"api"}, ""},
		{"orders", []string{"payments"}, ""},
		{"orders", []string{"orders"}, ""},
		{"orders", nil, ""},
	} {
		if got := nearest(c.want, c.have); got != c.like {
			t.Errorf("%s among %q: %q, want %q", c.want, c.have, got, c.like)
		}
	}
}

func TestMisspelt(t *testing.T) {
	for _, c := range []struct {
		want, have string
		yes        bool
	}{
		{"frontned", "frontend", true},
		{"ordres-api", "orders-api", true},
		{"ordersapi", "orders-api", true},
		{"orders_api", "orders-api", true},
		{"payment-2", "payments-2", true},
		{"orders-api", "orders-web", false},
		{"fronetdn", "frontend", false},
		{"shard-1", "shard-2", false},
		{"shard-12", "shard-21", false},
		{"shard1", "shard", false},
		{"v1.0", "v1.1", false},
		{"zone-a", "zone-b", false},
		{"it", "itt", false},
		{"orders", "", false},
		{"orders", "orders", false},
	} {
		if got := misspelt(c.want, c.have); got != c.yes {
			t.Errorf("%s of %s: %v", c.want, c.have, got)
		}
	}
}
