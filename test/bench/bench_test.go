//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"bridge/internal/netns"
	"bridge/internal/packet"
)

func TestMain(m *testing.M) {
	netns.Main()
	os.Exit(m.Run())
}

// loopback is a route to a server in this process.
func loopback(t *testing.T) *route {
	t.Helper()
	at := local(freePort())
	done := make(chan error, 1)
	go func() { done <- serve(t.Context(), at) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r := &route{variant: variants[0], dial: tcp(at)}
	for deadline := time.Now().Add(10 * time.Second); once(r) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server does not answer")
		}
	}
	return r
}

func TestEveryMeasureYieldsItsFigures(t *testing.T) {
	r := loopback(t)
	for _, m := range slices.Concat(measures, entranceMeasures, standbyMeasures) {
		t.Run(m.figures[0].name, func(t *testing.T) {
			values, err := m.run(r, pace{20 * time.Millisecond, 200 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if len(values) != len(m.figures) {
				t.Fatalf("%d values for %d figures", len(values), len(m.figures))
			}
			for i, v := range values {
				doesNotApply := strings.HasPrefix(m.figures[i].name, "CPU") // nothing is between
				if math.IsNaN(v) != doesNotApply || v <= 0 {
					t.Errorf("%s: %v", m.figures[i].name, v)
				}
			}
		})
	}
}

// A device with its stack carries what it is measured with, of either MTU.
func TestTheDeviceCarries(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a device takes root")
	}
	direct := loopback(t)
	c, err := direct.dial()
	if err != nil {
		t.Fatal(err)
	}
	to := c.RemoteAddr().String()
	_ = c.Close()
	for _, mtu := range []int{packet.MTU, ethernetMTU} {
		ctx, cancel := context.WithCancel(t.Context())
		said, out := io.Pipe()
		done := make(chan error, 1)
		go func() {
			err := device(ctx, out, mtu, to)
			_ = out.CloseWithError(err)
			done <- err
		}()
		line, err := bufio.NewReader(said).ReadString('\n')
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			cancel()
			t.Skip("there is no device: ", <-done)
		}
		if err != nil {
			cancel()
			t.Fatal(err)
		}
		_, network, _ := strings.Cut(strings.TrimSpace(line), deviceReady+" ")
		r := &route{variant: &variant{bridges: true}, dial: inNetwork(network, elsewhere)}
		for _, m := range entranceMeasures {
			values, err := m.run(r, pace{20 * time.Millisecond, 200 * time.Millisecond})
			if err != nil || slices.ContainsFunc(values[:1], func(v float64) bool { return !(v > 0) }) {
				t.Errorf("%d, %s: %v, %v", mtu, m.figures[0].name, values, err)
			}
			t.Log(mtu, m.figures[0].name, values)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// The redirect alone carries the same, to any address.
func TestTheRedirectCarries(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to dial in another network takes root")
	}
	ctx, cancel := context.WithCancel(t.Context())
	said, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := redirect(ctx, out)
		_ = out.CloseWithError(err)
		done <- err
	}()
	line, err := bufio.NewReader(said).ReadString('\n')
	if err == nil {
		_, network, _ := strings.Cut(strings.TrimSpace(line), redirectReady+" ")
		r := &route{variant: &variant{}, dial: inNetwork(network, elsewhere)}
		for _, m := range entranceMeasures {
			values, err := m.run(r, pace{20 * time.Millisecond, 200 * time.Millisecond})
			if err != nil || !(values[0] > 0) {
				t.Errorf("%s: %v, %v", m.figures[0].name, values, err)
			}
		}
	}
	cancel()
	if ended := <-done; err != nil || ended != nil {
		t.Error(err, ended)
	}
}

// An echo of a question is what answers are compared with; an answer is to be the one that is right.
func TestNamesAreAskedFor(t *testing.T) {
	at := local(freePort())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- echoDatagrams(ctx, at) }()
	r := &route{variant: resolvers[0], dial: datagrams(at)}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := r.ask(fresh, time.Now(), time.Now().Add(time.Millisecond)); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	for _, m := range nameMeasures {
		values, err := m.run(r, pace{20 * time.Millisecond, 100 * time.Millisecond})
		if err != nil || len(values) != len(m.figures) || !(values[0] > 0) {
			t.Errorf("%s: %v, %v", m.figures[0].name, values, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, maxDatagram)
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		buf[2] |= 0x80 // an answer, and no such name
		buf[3] |= byte(dnsmessage.RCodeNameError)
		_, _ = pc.WriteTo(buf[:n], from)
	}()
	r.dial = datagrams(pc.LocalAddr().String())
	if _, err := r.ask(cached(serviceName), time.Now(), time.Now().Add(time.Second)); err == nil {
		t.Error("that there is no such Service counts as its answer")
	}
}

func TestIdleConnectionsAreHeldAtOnce(t *testing.T) {
	values, err := idle(t.Context(), loopback(t), 50)
	if err != nil {
		t.Fatal(err)
	}
	if len(values) != len(idleFigures) || values[0] != 50 || !math.IsNaN(values[2]) {
		t.Errorf("got %v, want 50 connections and no pod between", values)
	}
}

func TestCellsCompareWithTheBetterKubectl(t *testing.T) {
	rate, delay := figure{"rate", megabytes, false}, figure{"delay", micros, true}
	never := figure{"never", millis, true}
	s := &results{values: map[key][]float64{}, failed: map[key][]string{}}
	c := conditions[0]
	set := func(variant string, f figure, values ...float64) { s.values[key{c.name, variant, f.name}] = values }
	set(kubectlWebSocket, rate, 100, 90, 80)
	set(kubectlSPDY, rate, 10, 20, 30)
	set(kubectlWebSocket, delay, 4)
	set(kubectlSPDY, delay, 2)
	set(kubectlSPDY, never, infinite)
	set("a", rate, 180, 170, 300)
	set("a", delay, 1, 3)
	set("a", never, 7)
	s.failed[key{c.name, "a", rate.name}] = []string{"an error"}
	s.failed[key{c.name, "b", rate.name}] = []string{"an error"}
	for _, tt := range []struct {
		variant string
		f       figure
		want    string
	}{
		{"a", rate, "**2.00** · 180 (300), fails in 1"},
		{kubectlSPDY, rate, "**0.22** · 20.0 (30.0)"},
		{"a", delay, "**1.00** · 2.00 (1.00)"},
		{kubectlSPDY, never, "never"},
		{"a", never, "7.00"},
		{"b", rate, "fails"},
		{"c", rate, "–"},
	} {
		if got := s.cell(key{c.name, tt.variant, tt.f.name}, tt.f, s.base(c, tt.f)); got != tt.want {
			t.Errorf("%s of %s: %q, want %q", tt.f.name, tt.variant, got, tt.want)
		}
	}
}

func TestTheDocumentHasATableForEachCondition(t *testing.T) {
	s := &results{values: map[key][]float64{}, failed: map[key][]string{}}
	for _, c := range conditions {
		s.values[key{c.name, c.base[0], c.measures[0].figures[0].name}] = []float64{1234.5}
	}
	o := options{rounds: 5, time: time.Second}
	text := document(s, o, time.Now(), "0.10", "")
	if n := strings.Count(text, "**1.00** · 1234 |"); n != len(conditions) {
		t.Errorf("%d tables have the figure, want %d:\n%s", n, len(conditions), text)
	}
	if strings.Contains(text, "%!") || strings.Contains(text, "NaN") {
		t.Error(text)
	}
	// One condition anew, and the document keeps the others.
	o.only = "^80 ms$"
	again := document(s, o, time.Now(), "0.20", text)
	for _, c := range conditions {
		if same := section(again, c.title()) == section(text, c.title()); same != (c.name != "80 ms") {
			t.Errorf("%s: the same as before is %v", c.name, same)
		}
	}
}

func TestNumbersAreShort(t *testing.T) {
	for v, want := range map[float64]string{0.0123: "0.012", 1.234: "1.23", 12.34: "12.3", 1234.5: "1234", 12345: "12,345", 1234567: "1,234,567"} {
		if got := number(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

func TestOrdersSurviveTheWire(t *testing.T) {
	want := order{orderDown, 1500 * time.Millisecond, 2 * time.Second}
	got, err := readOrder(strings.NewReader(string(want.bytes())))
	if err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}
