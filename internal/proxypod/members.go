package proxypod

import (
	"context"
	"encoding/json"
	"path"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/kube"
)

const (
	membersVolume = "bridge-members"
	// membersPath is where the proxies have the ConfigMap of Members, whose only key is membersKey.
	membersPath = "/.bridge-members"
	membersKey  = "shares"
)

// MembersName is the name of the ConfigMap that tells a Lease's proxies who has which requests.
func MembersName(lease string) string { return lease + "-members" }

// Members is that ConfigMap. The kubelet writes it where the proxies read it, so they need no right and no restart for it; shares is
// what it says.
func Members(lease, namespace string, shares []byte) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{
			Name: MembersName(lease), Namespace: namespace,
			Labels: map[string]string{ManagedByLabel: ManagedBy, ProxyLabel: LabelValue(lease)},
		},
		Data: map[string]string{membersKey: string(shares)},
	}
}

// MembersOf is what a ConfigMap of Members says.
func MembersOf(m *corev1.ConfigMap) []byte { return []byte(m.Data[membersKey]) }

// membersArgs have the proxy read the ConfigMap, and mountMembers has it there.
func membersArgs() []string { return []string{"--members", path.Join(membersPath, membersKey)} }

func mountMembers(pod *corev1.PodSpec, c *corev1.Container, lease string) {
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: membersVolume, MountPath: membersPath, ReadOnly: true})
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: membersVolume, VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: MembersName(lease)}},
	}})
}

// Nudge has the kubelets look at once for a ConfigMap that has changed, by writing to the proxy's pods. Without it they do so every minute
// or two. why is another one each time.
func (p *Proxy) Nudge(ctx context.Context, why string) error {
	pods, err := p.staying(ctx)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{NudgeAnnotation: why}}})
	if err != nil {
		return err
	}
	for _, pod := range pods {
		_, err := p.Kube.Clientset.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
		if err != nil {
			return kube.Explain(err, "patch pod "+pod.Name+" in "+pod.Namespace)
		}
	}
	return nil
}
