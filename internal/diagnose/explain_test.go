package diagnose

import (
	"context"
	"errors"
	"strings"
	"testing"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// What is not well is explained by what a diagnosis says of it, also after a deadline; who is told to end does not look.
func TestExplain(t *testing.T) {
	const crashing = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"restartPolicy":"Always","containers":[{"name":"app"}]},"status":{"phase":"Running","containerStatuses":[
		{"name":"app","restartCount":1,"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"reason":"Error","exitCode":3}}}]}}`
	own := hint.Newf(hint.ProxyNotReady, "its own step", "it is not Ready")
	unhealthy := &kube.Unhealthy{Target: kube.Target{Kind: kube.Pod, Name: "it"}, Namespace: "shop", Err: own}
	late, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	ended, end := context.WithCancel(t.Context())
	end()
	for name, c := range map[string]struct {
		ctx    context.Context
		err    error
		denied []string
		says   bool
	}{
		"not well":        {late, unhealthy, nil, true},
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
		if name == "interrupted" && len(*asked) > 0 {
			t.Errorf("it asked %q", *asked)
		}
	}
	if Explain(t.Context(), nil, nil) != nil {
		t.Error("no error became one")
	}
}
