//go:build unix

package swap

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
	"bridge/internal/proxypod"
)

// Who may write a Lease, or annotate a deployment, in one namespace has nobody else change anything in another.
func TestRecordOfAnotherNamespaceIsRefused(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	plan := ordersPlan(t)
	uid := plan.target.UID
	lease := plan.Lease.DeepCopy()
	record := strings.ReplaceAll(lease.Annotations[proxypod.UndoAnnotation], `"namespace":"shop"`, `"namespace":"prod"`)
	lease.Annotations[proxypod.UndoAnnotation] = record
	annotated := map[string]string{proxypod.UndoAnnotation: record}
	controls := true
	for _, c := range []struct {
		name    string
		objects map[string]any
		code    hint.Code
	}{
		{"on the Lease", map[string]any{leasePath + lease.Name: lease}, hint.RestoreIncomplete},
		{"on the target", map[string]any{deploymentPath + "orders": appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{UID: uid, Annotations: annotated}}}, hint.NotFound},
		{"on a ReplicaSet", map[string]any{
			deploymentPath + "orders": appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{UID: uid}},
			"/apis/apps/v1/namespaces/shop/replicasets": appsv1.ReplicaSetList{Items: []appsv1.ReplicaSet{{ObjectMeta: metav1.ObjectMeta{
				Annotations: annotated, OwnerReferences: []metav1.OwnerReference{{UID: uid, Controller: &controls}},
			}}}},
		}, hint.NotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := apiServer(t, c.objects, noWrite(t))
			if err := (&Restorer{Kube: k, Say: func(string) {}}).Restore(t.Context(), "orders", "root@desk"); hint.CodeOf(err) != c.code {
				t.Errorf("%v, code %d, want %d", err, hint.CodeOf(err), c.code)
			}
		})
	}
	k := apiServer(t, map[string]any{leasePath + lease.Name: lease}, noWrite(t))
	s, _ := openSession(t, k)
	s.saved = savedSession{Version: sessionVersion, Target: plan.Undo.Target, Lease: lease.Name, Key: s.key}
	lease.Annotations[proxypod.ClientAnnotation] = s.Fingerprint().String()
	if _, err := s.TakeUp(t.Context(), "orders", Options{}, proxypod.Source{}, func(string) {}); hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), "in prod") {
		t.Errorf("taking it up: %v", err)
	}
}
