package kube

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func workloadOf(t *testing.T, o runtime.Object) *Workload {
	t.Helper()
	w, err := WorkloadOf(o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// All kinds say the same of themselves; what they leave out is one replica.
func TestWorkloadOfEachKind(t *testing.T) {
	three := int32(3)
	meta := metav1.ObjectMeta{Name: "orders", Generation: 4}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Name: "never-used"}}
	for kind, o := range map[Kind]runtime.Object{
		Deployment: &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: &three, Template: template},
			Status: appsv1.DeploymentStatus{ReadyReplicas: 2, ObservedGeneration: 4}},
		ReplicaSet: &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Replicas: &three, Template: template},
			Status: appsv1.ReplicaSetStatus{ReadyReplicas: 2, ObservedGeneration: 4}},
		StatefulSet: &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: &three, Template: template},
			Status: appsv1.StatefulSetStatus{ReadyReplicas: 2, ObservedGeneration: 4}},
	} {
		w := workloadOf(t, o)
		if w.Target() != (Target{kind, "orders"}) || w.Replicas != 3 || w.Ready != 2 || w.Observed != w.Generation {
			t.Errorf("%s: %+v", kind, w)
		}
		if named := w.Template.Name != ""; named != (kind == StatefulSet) || named != (w.PodName(0) != "") {
			t.Errorf("%s: its pod is named %q", kind, w.Template.Name)
		}
	}
	if w := workloadOf(t, &appsv1.Deployment{}); w.Replicas != 1 {
		t.Errorf("%d replicas, where nobody has said how many", w.Replicas)
	}
	if _, err := WorkloadOf(&corev1.Pod{}); err == nil {
		t.Error("a pod is a workload")
	}
}

// A StatefulSet's template is its first pod's, whatever the number of that, and the object stays as it was.
func TestFirstPodOfAStatefulSet(t *testing.T) {
	o := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			ServiceName: "db-all", Ordinals: &appsv1.StatefulSetOrdinals{Start: 5},
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Hostname: "x", Volumes: []corev1.Volume{
				{Name: "config"}, {Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			}}},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}},
		},
	}
	before := o.DeepCopy()
	w := workloadOf(t, o)
	pod := w.Template
	if w.Governing != "db-all" || pod.Name != "db-5" || pod.Spec.Hostname != "db-5" || pod.Spec.Subdomain != "db-all" ||
		pod.Labels["statefulset.kubernetes.io/pod-name"] != "db-5" || pod.Labels["apps.kubernetes.io/pod-index"] != "5" {
		t.Errorf("the first pod is %+v", pod)
	}
	if v := pod.Spec.Volumes; len(v) != 2 || v[1].Name != "data" || v[1].PersistentVolumeClaim == nil || v[1].PersistentVolumeClaim.ClaimName != "data-db-5" {
		t.Errorf("its volumes are %+v", v)
	}
	if second := w.PodName(1); second != "db-6" {
		t.Errorf("the second is %s", second)
	}
	if o.Spec.Template.Spec.Hostname != "x" || len(o.Spec.Template.Spec.Volumes) != len(before.Spec.Template.Spec.Volumes) ||
		o.Spec.Template.Spec.Volumes[1].EmptyDir == nil || o.Spec.Template.Labels != nil {
		t.Errorf("the object was changed: %+v", o.Spec.Template)
	}

	for policy, drops := range map[appsv1.PersistentVolumeClaimRetentionPolicyType]bool{"": false, "Retain": false, "Delete": true} {
		o.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: "Delete", WhenScaled: policy}
		if w := workloadOf(t, o); (len(w.Dropped) > 0) != drops {
			t.Errorf("whenScaled: %q drops %q", policy, w.Dropped)
		}
	}
	o.Spec.VolumeClaimTemplates = nil
	if w := workloadOf(t, o); len(w.Dropped) > 0 {
		t.Errorf("without a claim it drops %q", w.Dropped)
	}
}
