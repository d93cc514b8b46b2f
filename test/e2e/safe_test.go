//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/pkg/tunnel"
)

const (
	// strangerTime and maxStrangers are SPEC.md's: what a pod grants those whom it does not know.
	strangerTime = 5 * time.Second
	maxStrangers = 8
	// maxAlert is a TLS alert with its record: all that a stranger may get to hear before it has spoken TLS.
	maxAlert = 7
)

// safe is a proxy's pod beside strangers, with a session of its own under way.
type safe struct {
	*direct
	pod            corev1.Pod
	tunnel, health string // ports
	refused        int    // strangers so far
}

// recording keeps the first of what is written to it.
type recording struct {
	mu sync.Mutex
	b  []byte
}

// maxRecording is more than a handshake has.
const maxRecording = 64 << 10

func (r *recording) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b = append(r.b, p[:min(len(p), maxRecording-len(r.b))]...)
	return len(p), nil
}

func (r *recording) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.b)
}

// stranger is a container that is put into the running pod, as whoever may debug pods can.
const stranger = "stranger"

// newSafe adds the stranger to a direct's pod.
func newSafe(d *direct) *safe {
	d.t.Helper()
	pods := d.pods("bridge.internal/proxy")
	if len(pods) != 1 {
		d.t.Fatalf("%d pods of the proxy", len(pods))
	}
	sf := &safe{direct: d, pod: pods[0], tunnel: strconv.Itoa(int(d.ports.Tunnel)), health: strconv.Itoa(int(d.ports.Health))}
	yes, no, user := true, false, int64(1000)
	sf.pod.Spec.EphemeralContainers = append(sf.pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: stranger, Image: s.image, ImagePullPolicy: corev1.PullIfNotPresent, Args: []string{"wait"},
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &user, AllowPrivilegeEscalation: &no,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}})
	pod := s.client.CoreV1().Pods(d.ns)
	if _, err := pod.UpdateEphemeralContainers(d.t.Context(), sf.pod.Name, &sf.pod, metav1.UpdateOptions{}); err != nil {
		d.t.Fatal(err)
	}
	d.await("the stranger", func() bool {
		p, err := pod.Get(d.t.Context(), sf.pod.Name, metav1.GetOptions{})
		return err == nil && len(p.Status.EphemeralContainerStatuses) > 0 && p.Status.EphemeralContainerStatuses[0].State.Running != nil
	})
	return sf
}

// overheard is a carrier whose inside somebody sees who has the laptop's key, as a test does: what the laptop says is written to said too.
func overheard(carrier net.Conn, as *tls.Config, said io.Writer, running *sync.WaitGroup) net.Conn {
	near, far := net.Pipe()
	laptop, pod := tls.Server(far, as), tls.Client(carrier, as)
	pass := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from)
		_, _ = far.Close(), carrier.Close()
	}
	running.Go(func() { pass(io.MultiWriter(pod, said), laptop) })
	running.Go(func() { pass(laptop, pod) })
	return near
}

// withKey speaks TLS as who has that key does, to anybody.
func withKey(t *testing.T, key tunnel.Key) *tls.Config {
	text, err := key.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, private.(ed25519.PrivateKey).Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: private}}}
}

// attachment is how the laptop began the session of which it said that, hello and attach (pkg/tunnel/SPEC.md, 2 and 3), and where the attach begins.
func attachment(t *testing.T, said []byte) (message []byte, attach int) {
	t.Helper()
	const helloHead, attachSize = 8, 37
	if len(said) >= helloHead {
		attach = helloHead + int(binary.BigEndian.Uint16(said[6:]))
	}
	if attach == 0 || len(said) < attach+attachSize || !bytes.HasPrefix(said, []byte("BRDG")) || said[attach] != 1 {
		t.Fatalf("this is no session's beginning: %q", said)
	}
	return said[:attach+attachSize], attach
}

// attaches asks at the port for podproxy, from a neighbour's pod, to go on with that session, and is the pod's verdict; false: it closes without any.
// The error is that of who is not let in.
func (sf *safe) attaches(key tunnel.Key, message []byte) (verdict byte, ok bool, err error) {
	sf.t.Helper()
	c := sf.conn(net.JoinHostPort(sf.ip, strconv.Itoa(int(sf.ports.PodProxy))))
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: "+tunnel.UpgradeProtocol+"\r\n\r\n")
	const yes = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + tunnel.UpgradeProtocol + "\r\n\r\n"
	answer := make([]byte, len(yes))
	if _, err := io.ReadFull(c, answer); err != nil || string(answer) != yes {
		sf.t.Fatalf("the port for podproxy says %q, %v", answer, err)
	}
	within := tls.Client(c, withKey(sf.t, key))
	if _, err := within.Write(message); err != nil {
		return 0, false, err
	}
	var hello [8]byte
	if _, err := io.ReadFull(within, hello[:]); err != nil {
		return 0, false, err
	}
	if _, err := io.CopyN(io.Discard, within, int64(binary.BigEndian.Uint16(hello[6:]))); err != nil {
		return 0, false, err
	}
	var first [1]byte
	n, err := io.ReadFull(within, first[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		sf.t.Error("the pod neither answers nor closes")
	}
	return first[0], n == 1, nil
}

// dial connects to the tunnel's port from the stranger. The connection counts as one that is refused.
func (sf *safe) dial() net.Conn {
	sf.refused++
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(context.WithoutCancel(sf.t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		_ = sf.execIn(ctx, sf.pod.Name, stranger, far, far, "dial", "--address", "127.0.0.1:"+sf.tunnel)
	}()
	sf.t.Cleanup(func() {
		_ = near.Close()
		cancel()
		<-done
	})
	return near
}

// hears reads c to its end, which must come: by itself, and with at most so many bytes before it.
func (sf *safe) hears(what string, c net.Conn, most int) {
	sf.t.Helper()
	begin := time.Now()
	_ = c.SetReadDeadline(begin.Add(slack * strangerTime))
	got, err := io.ReadAll(c)
	if err != nil {
		sf.t.Errorf("%s: not closed after %v: %v", what, time.Since(begin), err)
	}
	if len(got) > most {
		sf.t.Errorf("%s: got %d bytes to hear, at most %d are right: %q", what, len(got), most, got)
	}
	_ = c.Close()
}

// logged waits until the proxy has counted every stranger, and returns the reasons it gave.
func (sf *safe) logged() string {
	sf.t.Helper()
	count := regexp.MustCompile(`msg="tunnel: connection refused" .*count=(\d+)`)
	var log string
	sf.await(fmt.Sprintf("%d strangers in the proxy's log", sf.refused), func() bool {
		b, err := s.client.CoreV1().Pods(sf.ns).GetLogs(sf.pod.Name, &corev1.PodLogOptions{Container: "proxy"}).DoRaw(sf.t.Context())
		if err != nil {
			return false
		}
		log = string(b)
		all := count.FindAllStringSubmatch(log, -1)
		if len(all) == 0 {
			return false
		}
		n, err := strconv.Atoi(all[len(all)-1][1])
		if err != nil || n > sf.refused {
			sf.t.Fatalf("%d strangers were counted, there were %d:\n%s", n, sf.refused, log)
		}
		return n == sf.refused
	})
	return log
}

// beat sends something there and back over one connection until stop is closed, and counts it.
func beat(near, far *tunnel.Stream, stop <-chan struct{}) (n int, err error) {
	var echo sync.WaitGroup
	echo.Go(func() { _, _ = io.Copy(far, far) })
	defer echo.Wait()
	defer near.Reset()
	said, heard := []byte("undisturbed"), make([]byte, len("undisturbed"))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return n, nil
		case <-tick.C:
		}
		if _, err := near.Write(said); err != nil {
			return n, err
		}
		_ = near.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(near, heard); err != nil {
			return n, err
		}
		if !bytes.Equal(said, heard) {
			return n, fmt.Errorf("%q came back as %q", said, heard)
		}
		n++
	}
}

// Whoever is near the tunnel's port and does not hold the session's key gets nothing: neither a pod beside it, nor a
// container in the same pod, with which it shares the loopback. The session that there is does not notice.
func TestSafeFromStrangers(t *testing.T) {
	t.Parallel()
	earlier, now, said := &recording{}, &recording{}, &recording{}
	old := newDirect(t, earlier)
	sf := newSafe(startDirect(t, true, said, now))
	near, far := sf.mustPair()
	before := sf.client.State()
	stop, beats := make(chan struct{}), make(chan error, 1)
	var n int
	go func() {
		var err error
		n, err = beat(near, far, stop)
		beats <- err
	}()

	sf.apply(fmt.Sprintf(clientYAML, s.image))
	sf.awaitReady("app=client", 1)
	if err := sf.exec(t.Context(), nil, io.Discard, "get", "--url", "http://"+net.JoinHostPort(sf.ip, sf.health)); err != nil {
		t.Errorf("a neighbour does not reach the proxy's pod at all, so this proves nothing: %v", err)
	}
	err := sf.exec(t.Context(), nil, io.Discard, "get", "--url", "http://"+net.JoinHostPort(sf.ip, sf.tunnel))
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a neighbour at the tunnel's port: %v, want it refused", err)
	}

	c := sf.dial()
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: proxy\r\n\r\n")
	sf.hears("HTTP", c, maxAlert)

	// TLS lets a client's first message have 64 KiB; this one says that it has 60,000 bytes, and begins to send them.
	c = sf.dial()
	_, _ = c.Write(append([]byte{22, 3, 1, 0x10, 0, 1, 0, 0xea, 0x60}, make([]byte, 0x1000-4)...))
	_, _ = c.Write([]byte{22, 3, 3, 0x10, 0})
	sf.hears("a hello that is too long", c, maxAlert)

	c = sf.dial()
	if got, err := io.ReadAll(tls.Client(c, &tls.Config{InsecureSkipVerify: true})); err == nil || len(got) > 0 {
		t.Errorf("TLS without a certificate: %q, %v", got, err)
	}
	_ = c.Close()

	other, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for what, key := range map[string]tunnel.Key{"somebody's key": other, "an earlier session's key": old.key} {
		client := &tunnel.Client{Key: key, Carrier: func(context.Context) (net.Conn, string, error) { return sf.dial(), "pod", nil }}
		bounded, cancel := context.WithTimeout(t.Context(), patience)
		if err := client.Run(bounded); !errors.Is(err, tunnel.ErrKeyRefused) {
			t.Errorf("%s: %v, want it refused", what, err)
		}
		cancel()
	}

	// At the port for podproxy, which is on the pod's address, nobody goes on with a session whose id they have, and whose key they have not.
	stolen, attach := attachment(t, said.bytes())
	stolen[attach] = 2 // to go on
	for what, key := range map[string]tunnel.Key{"somebody's key": other, "an earlier session's key": old.key} {
		verdict, answered, err := sf.attaches(key, stolen)
		if sf.refused++; err == nil || !strings.Contains(err.Error(), "bad certificate") {
			t.Errorf("a stolen session, with %s: verdict %d (%v), %v, want it refused", what, verdict, answered, err)
		}
	}
	if log := sf.logged(); !strings.Contains(log, "from="+sf.pods("app=client")[0].Status.PodIP) {
		t.Errorf("the proxy's log does not say that it was a neighbour:\n%s", log)
	}

	// The answer to a hello that was good once is a handshake's, which its keys of then do not continue.
	const maxFlight = 4 << 10
	for what, r := range map[string]*recording{"this session": now, "an earlier session": earlier} {
		c := sf.dial()
		go func() { _, _ = c.Write(r.bytes()) }()
		sf.hears("the recording of "+what, c, maxFlight)
	}
	if log := sf.logged(); !strings.Contains(log, "more than 4096 bytes before the handshake was complete") || !strings.Contains(log, "not a key that this proxy knows") {
		t.Errorf("the proxy's log does not say why:\n%s", log)
	}

	// One that trickles, and more that are silent than are let in at once: all are gone when their time is over.
	drip := sf.dial()
	dripped := make(chan struct{})
	go func() {
		defer close(dripped)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for _, b := range append([]byte{22, 3, 1, 0x10, 0}, make([]byte, 0x1000)...) {
			if _, err := drip.Write([]byte{b}); err != nil {
				return
			}
			<-tick.C
		}
	}()
	var silent []net.Conn
	for range maxStrangers + 4 {
		silent = append(silent, sf.dial())
	}
	sf.hears("one that trickles", drip, maxAlert)
	<-dripped
	for _, c := range silent {
		sf.hears("one that is silent", c, 0)
	}
	if log := sf.logged(); !strings.Contains(log, "more than 8 handshakes at once") {
		t.Errorf("the proxy's log does not say that there were too many:\n%s", log)
	}

	// With the key it is let in, which is all that was missing: of another session the pod says that there is none, to this one, which has gone on
	// since, it answers nothing.
	const noSuchSession = 1
	if verdict, answered, err := sf.attaches(sf.key, stolen); err != nil || answered {
		t.Errorf("the session as it began, with its own key: verdict %d (%v), %v, want none", verdict, answered, err)
	}
	stolen[attach+1]++
	if verdict, answered, err := sf.attaches(sf.key, stolen); err != nil || !answered || verdict != noSuchSession {
		t.Errorf("another session, with this one's key: verdict %d (%v), %v, want %d", verdict, answered, err, noSuchSession)
	}

	close(stop)
	if err := <-beats; err != nil {
		t.Errorf("the session was disturbed after %d round trips: %v", n, err)
	}
	if after := sf.client.State(); after.Phase != tunnel.Ready || !after.Since.Equal(before.Since) {
		t.Errorf("the session was disturbed: %+v, then %+v", before, after)
	}
	t.Logf("%d strangers refused, %d round trips undisturbed", sf.refused, n)
}

// Of a swap a neighbour finds the ports that it stands in for, and one of each pod that says whether it is ready and nothing else.
func TestANeighbourFindsNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode    string
		flags   []string
		proxies int
	}{{"replace", nil, 1}, {"standby", standing, 2}, {"shared", []string{"--header", "x-user=ada"}, 2}} {
		if !soak(true, c.mode != "shared") {
			continue
		}
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			b := w.swap(c.flags...)
			w.awaitReady("bridge.internal/proxy", c.proxies)
			for _, p := range w.pods("bridge.internal/proxy") {
				w.findsNothing(p, "7000", "8080")
			}
			keepers := w.pods("bridge.internal/keeper")
			if len(keepers) != 1 {
				t.Fatalf("%d keepers", len(keepers))
			}
			w.findsNothing(keepers[0])
			b.terminate()
		})
	}
}

// findsNothing has the client's pod look at all ports of another, which has these open, and one that says "ready".
func (w *world) findsNothing(p corev1.Pod, open ...string) {
	w.t.Helper()
	out := newLines()
	if err := w.exec(w.t.Context(), nil, out, "ports", "--host", p.Status.PodIP); err != nil {
		w.t.Fatal(err)
	}
	health := 0
	for _, line := range out.all() {
		port, answers, _ := strings.Cut(line, " ")
		if slices.Contains(open, port) {
			open = slices.DeleteFunc(open, func(p string) bool { return p == port })
			continue
		}
		health++
		const want = `"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nConnection: close\r\n\r\nready\n" "" ""`
		if answers != want {
			w.t.Errorf("port %s of %s says %s", port, p.Name, answers)
		}
	}
	if health != 1 || len(open) > 0 {
		w.t.Errorf("%s has %d ports beside the target's, and not %q: %q", p.Name, health, open, out.all())
	}
}
