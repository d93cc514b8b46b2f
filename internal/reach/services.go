package reach

import (
	"cmp"
	"context"
	"crypto/sha256"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/internal/kube"
)

// Services are those of k's namespace that selector, which may be empty, selects, each at a loopback address of its own with all its ports; without OwnAddresses
// all at 127.0.0.1.
func Services(ctx context.Context, k *kube.Client, selector string) ([]Target, error) {
	targets, err := services(ctx, k, selector)
	if err == nil && len(targets) == 0 {
		err = hint.Newf(hint.NotFound, "kubectl get services --show-labels -n "+k.Namespace, "no Service with a TCP or UDP port in %s%s", k.Namespace, selected(selector))
	}
	return targets, err
}

// maxServices bounds the Services at once: each has listeners and watches of its own.
const maxServices = 500

// services is Services, of which there may be none.
func services(ctx context.Context, k *kube.Client, selector string) ([]Target, error) {
	if _, err := labels.Parse(selector); err != nil {
		return nil, hint.Newf(hint.Usage, "write it as kubectl does: app=orders,tier!=test", "--selector: %w", err)
	}
	list, err := k.Clientset.CoreV1().Services(k.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, kube.Explain(err, "list services in "+k.Namespace)
	}
	targets := targetsOf(list.Items)
	if len(targets) > maxServices {
		return nil, hint.Newf(hint.Usage, "choose some of them by their labels: -l app=orders", "%s has %d Services%s, and forward takes %d at most", k.Namespace, len(targets), selected(selector), maxServices)
	}
	return targets, nil
}

// followEvery is how often the Services of a namespace are listed again.
const followEvery = 5 * time.Second

// FollowServices tells changed what Services gives, again and again until ctx is done. A list that fails changes nothing, and neither do
// more Services than there may be, which is warned of once.
func FollowServices(ctx context.Context, k *kube.Client, selector string, changed func([]Target), log *slog.Logger) {
	every := time.NewTicker(followEvery)
	defer every.Stop()
	for warned := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		targets, err := services(ctx, k, selector)
		if hint.CodeOf(err) == hint.Usage && !warned {
			warned = true
			log.Warn("services that come are not forwarded", "error", err)
		}
		if err != nil {
			log.Debug("services are not listed", "error", err)
			continue
		}
		changed(targets)
	}
}

func selected(selector string) string {
	if selector == "" {
		return ""
	}
	return " has the labels " + selector
}

// targetsOf are the services in the order of their names.
func targetsOf(services []corev1.Service) (targets []Target) {
	slices.SortFunc(services, func(a, b corev1.Service) int { return cmp.Compare(a.Name, b.Name) })
	taken := map[netip.Addr]bool{}
	for _, s := range services {
		t := Target{Object: kube.Target{Kind: kube.Service, Name: s.Name}}
		for _, p := range s.Spec.Ports {
			network := strings.ToLower(cmp.Or(string(p.Protocol), "tcp"))
			if network != "tcp" && network != "udp" {
				continue
			}
			t.Ports = append(t.Ports, forward.Port{Local: int(p.Port), Remote: strconv.Itoa(int(p.Port)), Network: network})
		}
		if len(t.Ports) == 0 {
			continue
		}
		t.Address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if OwnAddresses() {
			t.Address = ownAddress(s.Namespace, s.Name, taken)
		}
		targets = append(targets, t)
	}
	return targets
}

// OwnAddresses is whether this machine's loopback has more addresses than one for each family, without setting any up.
func OwnAddresses() bool { return runtime.GOOS == "linux" || runtime.GOOS == "windows" }

// ownAddress is an address in 127.0.0.0/8 that a Service has in every run, unless another, whose name comes first, has it.
// 127.0.0.0/16 is left to others: resolvers and distributions have addresses there.
func ownAddress(namespace, name string, taken map[netip.Addr]bool) netip.Addr {
	sum := sha256.Sum256([]byte(namespace + "/" + name))
	for i := 0; ; i++ {
		// 1 to 255, 0 to 255, 1 to 254: with the step, which is prime to all of them, each comes up in turn.
		n := (int(sum[0])<<16 | int(sum[1])<<8 | int(sum[2])) + i*addressStep
		a := netip.AddrFrom4([4]byte{127, byte(1 + n/(254*256)%255), byte(n / 254), byte(1 + n%254)})
		if !taken[a] {
			taken[a] = true
			return a
		}
	}
}

// addressStep is how far the next address is that is tried.
const addressStep = 7919
