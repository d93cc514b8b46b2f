package debug

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A container that has asked for the right comes before one that has what the runtime gives, which may be nothing; where it may not be asked for, that one is taken.
func TestCaptureAsksForTheRightFirst(t *testing.T) {
	c := &Capture{ProxyImage: "proxy", Say: func(string) {}}
	weak, err := (source{image: c.ProxyImage}).withRights(captureRights()[1])
	if err != nil {
		t.Fatal(err)
	}
	weak.Name += "weak1"
	runs := func(name string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	}
	for name, refused := range map[string]bool{"it may": false, "Pod Security refuses": true} {
		pod := named("")
		pod.Namespace = "shop"
		pod.Spec.Containers = []corev1.Container{{Name: "app"}}
		pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{*weak}
		pod.Status.Phase, pod.Status.EphemeralContainerStatuses = corev1.PodRunning, []corev1.ContainerStatus{runs(weak.Name)}
		patches := 0
		s := &server{pod: pod.DeepCopy()}
		s.first = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPatch {
				return false
			}
			trial := r.URL.Query().Get("dryRun") == metav1.DryRunAll
			if !trial {
				patches++
			}
			if refused {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":403,"reason":"Forbidden","message":"pods \"dbg\" is forbidden: violates PodSecurity \"baseline:latest\""}`)
				return true
			}
			if trial {
				return false
			}
			var patch corev1.Pod
			if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
				t.Error(err)
			}
			for _, e := range patch.Spec.EphemeralContainers {
				s.pod.Spec.EphemeralContainers = append(s.pod.Spec.EphemeralContainers, e)
				s.pod.Status.EphemeralContainerStatuses = append(s.pod.Status.EphemeralContainerStatuses, runs(e.Name))
			}
			s.pod.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
			return false
		}
		c.Kube = s.client(t)
		got, program, err := c.container(t.Context(), pod)
		if err != nil || (patches == 0) != refused || patches > 1 || (got == weak.Name) != refused || !slices.Equal(program, proxyPath()) {
			t.Errorf("%s: container %s after %d patches, program %q, %v", name, got, patches, program, err)
		}
	}
}
