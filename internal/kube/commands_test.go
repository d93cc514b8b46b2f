package kube

import "testing"

// A command that is proposed goes to the cluster that the user has chosen, once, and words about one stay as they are.
func TestCommandsGoToTheChosenCluster(t *testing.T) {
	const staging = " --context staging"
	for text, want := range map[string]string{
		"kubectl get pods": "kubectl get --context staging pods",
		"look: kubectl logs it -n shop -c app; or bridge diagnose pod/it":                "look: kubectl logs --context staging it -n shop -c app; or bridge diagnose --context staging pod/it",
		"bridge restore deployment it -n shop --context staging":                         "bridge restore deployment it -n shop --context staging",
		"kubectl edit pod it, or bridge status -n shop --context staging":                "kubectl edit --context staging pod it, or bridge status -n shop --context staging",
		"kubectl argo rollouts undo it -n shop":                                          "kubectl argo rollouts --context staging undo it -n shop",
		"is this the right context? kubectl config view --minify":                        "is this the right context? kubectl config --context staging view --minify",
		"write it as kubectl does; bridge reads what kubectl reads":                      "write it as kubectl does; bridge reads what kubectl reads",
		"(bridge rbac swap prints both):\n# What `bridge swap` needs; bridge image push": "(bridge rbac swap prints both):\n# What `bridge swap` needs; bridge image push",
	} {
		if got := Commands(text, staging); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got := Commands(text, ""); got != text {
			t.Errorf("of the usual cluster: %q", got)
		}
	}
}
