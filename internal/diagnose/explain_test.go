package diagnose

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// What is not well is explained by what a diagnosis says of it; who is told to end does not look.
func TestExplain(t *testing.T) {
	const crashing = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"restartPolicy":"Always","containers":[{"name":"app","resources":{"limits":{"memory":"64Mi"}}}]},"status":{"phase":"Running","containerStatuses":[
		{"name":"app","restartCount":1,"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"reason":"Error","exitCode":3}}}]}}`
	own := hint.Newf(hint.ProxyNotReady, "its own step", "it is not Ready")
	unhealthy := &kube.Unhealthy{Target: kube.Target{Kind: kube.Pod, Name: "it"}, Namespace: "shop", Err: own}
	ended, end := context.WithCancel(t.Context())
	end()
	for name, c := range map[string]struct {
		ctx    context.Context
		err    error
		denied []string
		says   bool
	}{
		"not well":        {t.Context(), unhealthy, nil, true},
		"interrupted":     {ended, unhealthy, nil, false},
		"may not look":    {t.Context(), unhealthy, []string{"pods"}, false},
		"another's error": {t.Context(), errors.New("x"), nil, false},
	} {
		k, asked := apiServer(t, map[string]string{"pods": crashing}, c.denied...)
		err := Explain(c.ctx, k, c.err)
		if !errors.Is(err, c.err) || err.Error() != c.err.Error() || hint.CodeOf(err) != hint.CodeOf(c.err) {
			t.Errorf("%s: it became %v", name, err)
		}
		words := hint.Of(err)
		if c.says != strings.HasPrefix(words, "pod/it: container app ends by itself with exit code 3 (program-exits)\nits log says why") || c.says && !strings.HasSuffix(words, "bridge diagnose pod/it -n shop\nits own step") {
			t.Errorf("%s: %q", name, words)
		}
		if slices.ContainsFunc(*asked, func(path string) bool { return strings.Contains(path, metricsGroup) }) {
			t.Errorf("%s: it waits for metrics", name)
		}
		if name == "interrupted" && len(*asked) > 0 {
			t.Errorf("it asked %q", *asked)
		}
	}
	// A Deployment is explained by its pods also to who may not list Deployments, as with swap's Role; and once.
	owned := func(by, kind, name string) string {
		return strings.Replace(by, `"namespace":"shop"`, `"namespace":"shop","ownerReferences":[{"apiVersion":"apps/v1","kind":"`+kind+`","name":"`+name+`","controller":true}]`, 1)
	}
	k, asked := apiServer(t, map[string]string{
		"pods": owned(crashing, "ReplicaSet", "proxy-1"), "replicasets": owned(`{"metadata":{"name":"proxy-1","namespace":"shop"}}`, "Deployment", "proxy"),
	}, "deployments")
	proxy := &kube.Unhealthy{Target: kube.Target{Kind: kube.Deployment, Name: "proxy"}, Namespace: "shop", Err: own}
	err := Explain(t.Context(), k, proxy)
	if !strings.Contains(hint.Of(err), "program-exits") {
		t.Errorf("without deployments: %q", hint.Of(err))
	}
	before := len(*asked)
	if again := Explain(t.Context(), k, err); hint.Of(again) != hint.Of(err) || len(*asked) != before {
		t.Errorf("it was looked into twice: %v", again)
	}
	// Of what goes with the command its log is told, not how it would be read; and by its pods' names to who may list pods alone.
	for _, denied := range [][]string{nil, {"deployments", "replicasets"}} {
		k, _ := apiServer(t, map[string]string{
			"pods":        owned(strings.Replace(crashing, `"name":"it"`, `"name":"proxy-1-x"`, 1), "ReplicaSet", "proxy-1"),
			"replicasets": owned(`{"metadata":{"name":"proxy-1","namespace":"shop"}}`, "Deployment", "proxy"),
			"container=app&previous=true&tailLines=10": "begins\nno port is free\x1b[2J\n",
		}, denied...)
		goes := &kube.Unhealthy{Target: proxy.Target, Namespace: "shop", Pods: []string{"proxy-1-x"}, Goes: true, Err: own}
		words, want := hint.Of(Explain(t.Context(), k, goes)), "(program-exits)\nits log ends with: no port is free"
		if !strings.Contains(words, want) || strings.ContainsAny(words, "\x1b") || strings.Contains(words, "kubectl") || strings.Contains(words, "bridge diagnose") || !strings.HasSuffix(words, "\nits own step") {
			t.Errorf("denied %q: %q", denied, words)
		}
	}
	// What is near alone is no reason.
	other := &kube.Unhealthy{Target: kube.Target{Kind: kube.Deployment, Name: "other"}, Namespace: "shop", Err: own}
	if err := Explain(t.Context(), k, other); hint.Of(err) != hint.Of(other) {
		t.Errorf("another's is the reason: %q", hint.Of(err))
	}
	if Explain(t.Context(), nil, nil) != nil {
		t.Error("no error became one")
	}
}
