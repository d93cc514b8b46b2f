//go:build linux

package e2e

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// lineTo is one by a local end.
func lineTo(t *testing.T, address string) *line {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return newLine(t, c)
}

// The laptop sleeps, and the cluster goes on: whatever has become of what was open, the next connection is answered, by either way, and so is one that was made
// meanwhile.
func TestForwardAfterTheLaptopsSleep(t *testing.T) {
	t.Parallel()
	for _, via := range []string{"pods", "proxy"} {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			f := w.bridge("forward", "svc/orders", ":7000", "--via", via)
			address := f.from("Forwarding from 127.")
			before := lineTo(t, address)
			f.signal(syscall.SIGSTOP)
			slept := time.After(soak(10*time.Minute, 90*time.Second)) // longer than a session outlives its carrier
			// All of its pods are others then.
			if err := s.client.CoreV1().Pods(w.ns).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=orders"}); err != nil {
				t.Fatal(err)
			}
			w.await("the old pods' end", func() bool { return len(w.pods("app=orders")) == 2 })
			w.awaitReady("app=orders", 2)
			meanwhile, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			<-slept
			f.signal(syscall.SIGCONT)
			lineTo(t, address)
			newLine(t, meanwhile)
			_ = before.SetDeadline(time.Now().Add(patience))
			if _, err := before.r.ReadByte(); err == nil {
				t.Error("a connection with a pod that is gone says something")
			}
			f.terminate()
		})
	}
}

// A path to the API server that swallows everything is noticed, what is open is reset, and what comes when it passes again is answered.
func TestForwardOverADeadPath(t *testing.T) {
	embedded(t)
	t.Parallel()
	const noticed = 15 * time.Second
	w := newWorld(t).withOrders()
	p := newPath(t)
	f := w.bridgeAs(p.kubeconfig, nil, "forward", "svc/orders", ":7000")
	address := f.from("Forwarding from 127.")
	l := lineTo(t, address)
	p.swallow()
	dead := time.Now()
	_ = l.SetDeadline(dead.Add(patience))
	_, err := l.r.ReadByte()
	if took := time.Since(dead); !errors.Is(err, syscall.ECONNRESET) || took > slack*noticed {
		t.Errorf("%v after %v, want a reset within %v (and tested with %d times that)", err, took, noticed, slack)
	}
	f.says("the connection through the API server was lost: no answer for ")
	p.pass()
	lineTo(t, address)
	f.terminate()
}
