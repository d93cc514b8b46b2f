package proxypod

import (
	"context"
	"errors"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// tokenSeconds is how long a token is good that is handed out: an hour, as the shortest that a pod itself gets.
const tokenSeconds int64 = 3600

// token is one of the proxy's ServiceAccount, made for a process on the laptop.
type token struct {
	text    string
	pod     string // UID
	expires time.Time
}

// makeToken asks for one with the audience; "" is the API server's. One that is bound ends with the proxy's pod.
func (p *Proxy) makeToken(ctx context.Context, audience string, bound bool) (token, error) {
	pods, err := p.Pods(ctx)
	if err != nil {
		return token{}, err
	}
	if len(pods) == 0 {
		return token{}, errors.New("a token: the proxy has no pod")
	}
	pod, seconds := pods[0], tokenSeconds
	r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if bound {
		r.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	if audience != "" {
		r.Spec.Audiences = []string{audience}
	}
	account := pod.Spec.ServiceAccountName
	r, err = p.Kube.Clientset.CoreV1().ServiceAccounts(p.Namespace).CreateToken(ctx, account, r, metav1.CreateOptions{FieldManager: FieldManager})
	if err != nil {
		return token{}, kube.Explain(err, "create a token of serviceaccount "+account+" in "+p.Namespace)
	}
	return token{r.Status.Token, string(pod.UID), r.Status.ExpirationTimestamp.Time}, nil
}

// good tells whether the token has a fifth of its hour left, and is bound to a pod that there is.
func (p *Proxy) good(ctx context.Context, t token) bool {
	if time.Until(t.expires) < time.Duration(tokenSeconds)*time.Second/5 {
		return false
	}
	pods, err := p.Pods(ctx)
	return err != nil || len(pods) > 0 && string(pods[0].UID) == t.pod
}

// Tokens makes tokens, one for each audience, and makes one anew when it is no longer good. Bound ones end with the proxy's pod.
func (p *Proxy) Tokens(bound bool) func(ctx context.Context, audience string) (string, error) {
	have := map[string]token{}
	return func(ctx context.Context, audience string) (string, error) {
		t, ok := have[audience]
		if !ok || !p.good(ctx, t) {
			var err error
			if t, err = p.makeToken(ctx, audience, bound); err != nil {
				return "", err
			}
			have[audience] = t
		}
		return t.text, nil
	}
}
