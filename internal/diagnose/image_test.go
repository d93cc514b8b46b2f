package diagnose

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestImagesThatDoNotCome(t *testing.T) {
	// The texts are containerd's, 1.6 and 1.7, unless they say whose they are.
	pull := func(said string) string {
		return withPod("", "", waits("ImagePullBackOff", `Back-off pulling image "registry.example/app:1": ErrImagePull: `+said))
	}
	const head = `failed to pull and unpack image "registry.example/app:1": failed to resolve reference "registry.example/app:1": `
	refused := head + `pulling from host registry.example failed with status code [manifests 1]: 401 Unauthorized`
	withSecret := withPod("", "imagePullSecrets: [{name: pull}]", waits("ErrImagePull", refused))
	secret := func(kind, config string) string {
		return withSecret + "\n---\nkind: Secret\nmetadata: {name: pull}\ntype: " + kind + "\nstringData: {.dockerconfigjson: '" + config + "'}\n"
	}
	try(t, []tried{
		{"malformed", withPod("", "", waits("InvalidImageName", `couldn''t parse image name "Bad": invalid reference format`)), "image-name-invalid", "in lower case"},
		{"never pulled", withPod("imagePullPolicy: Never", "", waits("ErrImageNeverPull", `Container image "registry.example/app:1" is not present with pull policy of Never`)), "image-never-pull", "IfNotPresent"},
		{"absent", pull(`rpc error: code = NotFound desc = ` + head + `registry.example/app:1: not found`), "image-not-found", "kubectl set image pod/it -n shop app=registry.example/app:TAG"},
		{"absent, in cri-o's words", pull(`reading manifest 1 in registry.example/app: manifest unknown`), "image-not-found", ""},
		{"no variant", pull(`rpc error: code = NotFound desc = failed to pull and unpack image "registry.example/app:1": no match for platform in manifest: not found`), "image-architecture", "architecture"},
		{"rate limit", pull(head + `unexpected status code [manifests 1]: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit.`), "image-rate-limit", "limits"},
		{"refused connection", pull(head + `failed to do request: Head "https://registry.example/v2/app/manifests/1": dial tcp 10.0.0.1:443: connect: connection refused`), "registry-unreachable", "registry.example"},
		{"no such host", pull(head + `failed to do request: Head "https://registry.example/v2/app/manifests/1": dial tcp: lookup registry.example on 10.0.0.2:53: no such host`), "registry-unreachable", ""},
		{"a handshake that does not end", pull(head + `failed to do request: Head "https://registry.example/v2/app/manifests/1": net/http: TLS handshake timeout`), "registry-unreachable", ""},
		{"404 in a digest", pull(`failed to pull and unpack image "registry.example/app:1": failed to copy: sha256:0404d6e1: the disk is on fire`), "image-pull-failed", ""},
		{"unknown authority", pull(head + `failed to do request: Head "https://registry.example/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority`), "registry-tls", ""},
		{"plain HTTP", pull(head + `failed to do request: Head "https://registry.example/v2/": http: server gave HTTP response to HTTPS client`), "registry-tls", ""},
		{"denied, Docker Hub", pull(head + `pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed`), "image-pull-secret-none", "names no imagePullSecrets"},
		{"something else", pull(`the disk is on fire`), "image-pull-failed", ""},
		{"the cause is in the event", withPod("", "", waits("ImagePullBackOff", `Back-off pulling image "registry.example/app:1"`)) + event("Pod/it", "Failed", `Failed to pull image "registry.example/app:1": `+head+`registry.example/app:1: not found`), "image-not-found", ""},
		{"a secret that is not there", withSecret, "image-unauthorized", "registry.example"},
		{"a secret of another type", secret("Opaque", "{}"), "image-pull-secret-type", "has the type Opaque"},
		{"a secret for another registry", secret("kubernetes.io/dockerconfigjson", `{"auths":{"other.example":{}}}`), "image-pull-secret-host", "is for other.example"},
		{"a secret that is not accepted", secret("kubernetes.io/dockerconfigjson", `{"auths":{"https://registry.example/v1/":{}}}`), "image-unauthorized", "is not accepted"},
		{"it runs", withPod("", "", running), "", ""},
	})
}

func TestAnAbsentPullSecret(t *testing.T) {
	s := load(t, withPod("", "imagePullSecrets: [{name: pull}]", waits("ErrImagePull", "401 Unauthorized")))
	s.PullSecrets[Ref{"secret", "shop", "pull"}] = pullSecret{absent: true}
	if found := s.report(nil).Findings; len(found) != 1 || found[0].ID != "image-pull-secret-absent" {
		t.Errorf("found %+v", found)
	}
	s.Secrets = []metav1.PartialObjectMetadata{{ObjectMeta: metav1.ObjectMeta{Name: "pull", Namespace: "ci"}}}
	if f := s.report(nil).Findings[0]; !strings.Contains(f.Summary, "does not exist in shop, but in ci") || len(f.Next) != 2 || !strings.Contains(f.Next[1], "-n ci") {
		t.Errorf("one of that name is elsewhere: %+v", f)
	}
}

func TestRegistryOf(t *testing.T) {
	for image, want := range map[string]string{
		"nginx": "docker.io", "library/nginx:1": "docker.io", "localhost/x": "localhost", "localhost:5000/x:1": "localhost:5000", "example.org/a/b@sha256:0": "example.org",
	} {
		if got := registryOf(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
	for image, want := range map[string]string{"nginx": "nginx", "nginx:1": "nginx", "localhost:5000/x": "localhost:5000/x", "localhost:5000/x:1@sha256:0": "localhost:5000/x"} {
		if got := withoutTag(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}
