package kube

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
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
	if _, err := WorkloadOf(&corev1.Service{}); err == nil {
		t.Error("a service is a workload")
	}
}

// A bare pod's template is what it was made from, as far as that can be known, and the pod stays as it was.
func TestTemplateOfABarePod(t *testing.T) {
	usual, own := int64(300), int64(60)
	token := corev1.VolumeMount{Name: "kube-api-access-x7k2m", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web.old", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"team": "shop", corev1.LastAppliedConfigAnnotation: "{}"}},
		Spec: corev1.PodSpec{
			NodeName:   "node1",
			Containers: []corev1.Container{{Name: "app", VolumeMounts: []corev1.VolumeMount{{Name: "config"}, token}}},
			EphemeralContainers: []corev1.EphemeralContainer{
				{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}},
			},
			Volumes: []corev1.Volume{{Name: "config"}, {Name: token.Name}},
			Tolerations: []corev1.Toleration{
				{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &usual},
				{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &own},
			},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	before := pod.DeepCopy()
	w := workloadOf(t, pod)
	if w.Target() != (Target{Pod, "web.old"}) || w.Replicas != 1 || w.Ready != 1 || w.Observed != w.Generation || w.Selector.MatchLabels["app"] != "web" {
		t.Errorf("it is %+v", w)
	}
	s := w.Template.Spec
	if w.Template.Name != "web.old" || s.Hostname != "web" || s.NodeName != "" || len(s.EphemeralContainers) > 0 || len(w.Template.Annotations) != 1 {
		t.Errorf("the template is %+v", w.Template)
	}
	if len(s.Volumes) != 1 || len(s.Containers[0].VolumeMounts) != 1 {
		t.Errorf("its volumes are %+v, mounted %+v", s.Volumes, s.Containers[0].VolumeMounts)
	}
	if len(s.Tolerations) != 1 || s.Tolerations[0].Key != corev1.TaintNodeUnreachable {
		t.Errorf("it tolerates %+v", s.Tolerations)
	}
	if !equality.Semantic.DeepEqual(pod, before) {
		t.Errorf("the pod was changed: %+v", pod)
	}
	now := metav1.Now()
	for what, change := range map[string]func(*corev1.Pod){
		"going":     func(p *corev1.Pod) { p.DeletionTimestamp = &now },
		"ended":     func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"not Ready": func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse },
	} {
		p := before.DeepCopy()
		change(p)
		if w := workloadOf(t, p); w.Ready != 0 {
			t.Errorf("a pod that is %s counts as Ready", what)
		}
	}
}

// What Istio has put into a bare pod it puts into one made from the template, too, and twice the same would not start.
func TestTemplateOfABarePodWithASidecar(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	mount := func(names ...string) (m []corev1.VolumeMount) {
		for _, name := range names {
			m = append(m, corev1.VolumeMount{Name: name})
		}
		return m
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: map[string]string{
			"sidecar.istio.io/status": `{"initContainers":["istio-init","istio-proxy"],"containers":["istio-proxy"],"volumes":["istio-envoy","shared"],"revision":"default"}`,
		}},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "istio-init"}, {Name: "migrate"}, {Name: "istio-proxy", RestartPolicy: &always}},
			Containers: []corev1.Container{
				{Name: "app", VolumeMounts: mount("shared")},
				{Name: "istio-proxy", VolumeMounts: mount("istio-envoy"), Ports: []corev1.ContainerPort{{ContainerPort: 15090}}},
			},
			Volumes: []corev1.Volume{{Name: "istio-envoy"}, {Name: "shared"}},
		},
	}
	s := workloadOf(t, pod).Template.Spec
	if len(s.InitContainers) != 1 || s.InitContainers[0].Name != "migrate" || len(s.Containers) != 1 || s.Containers[0].Name != "app" {
		t.Errorf("its containers are %+v, %+v", s.InitContainers, s.Containers)
	}
	if len(s.Volumes) != 1 || s.Volumes[0].Name != "shared" {
		t.Errorf("its volumes are %+v", s.Volumes)
	}
	pod.Annotations["sidecar.istio.io/status"] = "yes"
	if s := workloadOf(t, pod).Template.Spec; len(s.Containers) != 2 || len(s.Volumes) != 2 {
		t.Errorf("an annotation that is not Istio's has %+v left", s.Containers)
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
