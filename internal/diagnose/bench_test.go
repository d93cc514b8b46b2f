package diagnose

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/kube"
)

// crowd is a namespace of that many pods, of which each tenth finds no node and each tenth crashes; the first of them are of Jobs, which are
// one CronJob's. All mount a claim and read a ConfigMap.
func crowd(pods, jobs int) *Snapshot {
	s := &Snapshot{Namespace: "shop", Now: now, asked: map[plural]bool{configMaps: true, claims: true, nodes: true, podsElsewhere: true}}
	hour := metav1.NewTime(now.Add(-time.Hour))
	controlled := func(kind, name string) []metav1.OwnerReference {
		yes := true
		return []metav1.OwnerReference{{Kind: kind, Name: name, UID: types.UID(name), Controller: &yes}}
	}
	for i := range 20 {
		s.Nodes = append(s.Nodes, corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node", i)},
			Status:     corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")}},
		})
	}
	for i := range jobs {
		s.Jobs = append(s.Jobs, batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("job", i), Namespace: "shop", UID: types.UID(fmt.Sprint("job", i)), CreationTimestamp: hour, OwnerReferences: controlled("CronJob", "nightly")},
			Status:     batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue}}},
		})
	}
	for i := range pods {
		name := fmt.Sprint("pod", i)
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", CreationTimestamp: hour, Labels: map[string]string{"app": "it"}}}
		if i < jobs {
			p.OwnerReferences = controlled("Job", fmt.Sprint("job", i))
		}
		p.Spec.Containers = []corev1.Container{{
			Name: "app", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}, Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
			},
			EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}},
		}}
		p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
		p.Status.Phase, p.Spec.NodeName = corev1.PodRunning, fmt.Sprint("node", i%20)
		state, ready := corev1.ContainerStatus{Name: "app", Ready: true}, corev1.ConditionTrue
		switch i % 10 {
		case 0:
			p.Status.Phase, p.Spec.NodeName, ready = corev1.PodPending, "", corev1.ConditionFalse
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/20 nodes are available: 20 Insufficient cpu."}}
		case 1:
			ready = corev1.ConditionFalse
			state = corev1.ContainerStatus{Name: "app", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}
		}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{state}
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: ready})
		s.Pods = append(s.Pods, p)
		s.Claims = append(s.Claims, corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}})
		s.ConfigMaps = append(s.ConfigMaps, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}})
	}
	s.AllPods = s.Pods
	return s
}

// What goes through all pods for each pod or Job takes seconds in the larger one.
func BenchmarkReport(b *testing.B) {
	for _, size := range []struct{ pods, jobs int }{{200, 0}, {5000, 1000}} {
		b.Run(fmt.Sprintf("%d pods and %d Jobs", size.pods, size.jobs), func(b *testing.B) {
			s := crowd(size.pods, size.jobs)
			for b.Loop() {
				s.index()
				if len(s.report(nil).Findings) == 0 {
					b.Fatal("nothing was found")
				}
			}
		})
	}
}

// crowdServer is an API server that has 200 pods, a fifth of them broken.
func crowdServer(t testing.TB) (*kube.Client, *[]string) {
	t.Helper()
	s := crowd(200, 0)
	var pods []string
	for i := range s.Pods {
		text, err := json.Marshal(&s.Pods[i])
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, string(text))
	}
	return apiServer(t, map[string]string{"pods": strings.Join(pods, ",")})
}

// The whole of it, over an API server that is 20 ms away.
func BenchmarkRun(b *testing.B) {
	k, asked := crowdServer(b)
	k.Config.Wrap(func(next http.RoundTripper) http.RoundTripper { return away{next} })
	far, err := kube.NewForConfig(k.Config, "shop")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		*asked = nil
		if r, err := Run(b.Context(), far, Options{}); err != nil || len(r.Findings) == 0 {
			b.Fatalf("%v, %+v", err, r)
		}
	}
	b.ReportMetric(float64(len(*asked)), "requests/op")
}

// away is a server that is 20 ms away.
type away struct{ next http.RoundTripper }

// RoundTrip is called for each request.
func (a away) RoundTrip(r *http.Request) (*http.Response, error) {
	time.Sleep(20 * time.Millisecond)
	return a.next.RoundTrip(r)
}
