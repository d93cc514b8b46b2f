package kube

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"bridge/internal/hint"
)

// podIn is a pod whose one container is in a state, "": the kubelet has said nothing of it.
func podIn(name, state string, ready bool) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
	p.Status.Phase = corev1.PodRunning
	s := corev1.ContainerStatus{Name: "app"}
	switch state {
	case "running":
		s.State.Running = &corev1.ContainerStateRunning{}
	case "waiting":
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
	case "ended":
		s.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: 3}
		p.Status.Phase = corev1.PodFailed
	}
	if state != "" {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{s}
	}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

func TestRunningPodIsAReadyOne(t *testing.T) {
	going := podIn("going", "running", true)
	going.DeletionTimestamp = &metav1.Time{}
	for _, c := range []struct {
		name string
		pods []corev1.Pod
		want string // the pod, or what is said
	}{
		{"ready", []corev1.Pod{podIn("a", "waiting", false), podIn("b", "running", false), podIn("c", "running", true)}, "c"},
		{"running", []corev1.Pod{podIn("a", "waiting", false), podIn("b", "running", false), going}, "b"},
		{"none runs", []corev1.Pod{podIn("a", "waiting", false), podIn("b", "ended", false), going}, "a: CrashLoopBackOff; b: container app exited with 3; going: terminating"},
		{"none", nil, "has no pod"},
	} {
		p, err := (&Client{Flags: " --context staging"}).running("shop", Target{Deployment, "orders"}, c.pods)
		if err == nil && p.Name != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", c.name, p, err)
		}
		if err != nil && !strings.Contains(hint.Of(err), "bridge diagnose deployment/orders -n shop --context staging") {
			t.Errorf("%s: hint %q", c.name, hint.Of(err))
		}
	}
}

func TestContainerName(t *testing.T) {
	p := podIn("a", "running", true)
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "proxy"})
	p.Spec.InitContainers = []corev1.Container{{Name: "init"}}
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debugger"}}}
	for given, want := range map[string]string{"": "app", "proxy": "proxy", "init": "init", "debugger": "debugger"} {
		if got, err := ContainerName(&p, given); got != want || err != nil {
			t.Errorf("%q: %q, %v", given, got, err)
		}
	}
	p.Annotations = map[string]string{defaultContainer: "proxy"}
	if got, err := ContainerName(&p, ""); got != "proxy" || err != nil {
		t.Errorf("the annotation: %q, %v", got, err)
	}
	p.Annotations[defaultContainer] = "gone"
	if got, err := ContainerName(&p, ""); got != "app" || err != nil {
		t.Errorf("an annotation that names nothing: %q, %v", got, err)
	}
	_, err := ContainerName(&p, "web")
	if hint.CodeOf(err) != hint.Usage || hint.Of(err) != "its containers: app, proxy, init, debugger" {
		t.Errorf("%v: %q", err, hint.Of(err))
	}
}

func TestNotRunningSaysWhy(t *testing.T) {
	for state, want := range map[string]string{"running": "", "waiting": "CrashLoopBackOff", "ended": "exit code 3", "": "no node yet"} {
		p := podIn("a", state, false)
		err := (&Client{Flags: " --context staging"}).NotRunning(&p, "app")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", state, err)
		}
		if err != nil && strings.Count(hint.Of(err), "-n shop --context staging") != 2 {
			t.Errorf("%q: hint %q", state, hint.Of(err))
		}
	}
}

// What is not found is looked for again by a command of that namespace; and where the namespace is not there, that is said.
func TestNotFoundNamesTheNamespace(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		namespace string
		status    int // of the namespace
		says      string
		next      string
	}{
		{"shop", http.StatusOK, `find the pods of deployment/nope in shop: deployments.apps "nope" not found`, "kubectl get deployments -n shop"},
		{"shop", http.StatusForbidden, `find the pods of deployment/nope in shop: deployments.apps "nope" not found`, "kubectl get deployments -n shop"},
		{"shpo", http.StatusNotFound, "find the pods of deployment/nope in shpo: there is no namespace shpo", "kubectl get namespaces"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if !strings.HasSuffix(r.URL.Path, "/deployments/nope") {
				w.WriteHeader(tt.status)
				_ = json.NewEncoder(w).Encode(metav1.Status{Status: "Failure", Code: int32(tt.status), Reason: map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound}[tt.status]})
				return
			}
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: 404, Reason: metav1.StatusReasonNotFound, Message: `deployments.apps "nope" not found`, Details: &metav1.StatusDetails{Name: "nope", Group: "apps", Kind: "deployments"}})
		}))
		k, err := NewForConfig(&rest.Config{Host: server.URL}, tt.namespace)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Pods(t.Context(), tt.namespace, Target{Deployment, "nope"})
		if err == nil || err.Error() != tt.says || !strings.HasSuffix(hint.Of(err), tt.next) || hint.CodeOf(err) != hint.NotFound {
			t.Errorf("it says %v, %q, want %s, %q", err, hint.Of(err), tt.says, tt.next)
		}
		server.Close()
	}
}
