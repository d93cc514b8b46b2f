package lookout

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// volume looks at the claims of the original's pods that one node at a time can have.
func volume(ctx context.Context, k *kube.Client, s *Subject) (notes []string, _ error) {
	for _, v := range s.Target.Template.Spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			continue
		}
		claim, err := k.Clientset.CoreV1().PersistentVolumeClaims(s.Target.Namespace).Get(ctx, v.PersistentVolumeClaim.ClaimName, metav1.GetOptions{})
		if err != nil {
			return notes, err
		}
		if note := volumeNote(claim, v.Name, s); note != "" {
			notes = append(notes, note)
		}
	}
	return notes, nil
}

func volumeNote(claim *corev1.PersistentVolumeClaim, volume string, s *Subject) string {
	if slices.ContainsFunc(claim.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool {
		return m == corev1.ReadWriteMany || m == corev1.ReadOnlyMany
	}) {
		return ""
	}
	if slices.ContainsFunc(s.Pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == volume }) {
		return fmt.Sprintf("persistentvolumeclaim/%s can be used on one node at a time, and another container keeps it in the proxy's pod: "+
			"the proxy starts only where the original runs, and the original again only where the proxy does", claim.Name)
	}
	return fmt.Sprintf("persistentvolumeclaim/%s can be used on one node at a time: the proxy is without it, and the original gets it again when it is given back", claim.Name)
}
