package kube

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// A connection that swallows everything holds up requests for as long as it takes to notice, and not for client-go's 45 s.
func TestADeadConnectionIsLeftSoon(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("it speaks %s, so this proves nothing", r.Proto)
		}
		_, _ = io.WriteString(w, "{}")
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()

	// The first connection goes through a relay that can die without a word.
	near, far, err := func() (net.Listener, net.Conn, error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		return ln, conn, err
	}()
	if err != nil {
		t.Fatal(err)
	}
	dead := make(chan struct{})
	var relay sync.WaitGroup
	relay.Go(func() {
		conn, err := near.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		relay.Go(func() { _, _ = io.Copy(conn, far) })
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-dead:
			default:
				_, _ = far.Write(buf[:n])
			}
		}
	})
	defer relay.Wait()
	defer far.Close()

	c, err := NewForConfig(&rest.Config{Host: "https://" + near.Addr().String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	get := func() error {
		return c.Clientset.CoreV1().RESTClient().Get().AbsPath("/version").Do(t.Context()).Error()
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	close(dead)
	_ = near.Close()
	start := time.Now()
	if err := get(); err == nil {
		t.Error("a dead connection has answered")
	}
	if took := time.Since(start); took > 25*time.Second {
		t.Errorf("noticed after %v, want 15 s", took)
	}
}
