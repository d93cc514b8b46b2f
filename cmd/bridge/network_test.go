package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"bridge/internal/connect"
	"bridge/internal/kube"
	"bridge/pkg/swap"
)

// Each port is opened once, and that kubectl does not work in CMD's network is said, whoever has the API server's port there.
func TestPortsOfAProgram(t *testing.T) {
	k := &kube.Client{Config: &rest.Config{Host: "https://127.0.0.1:6443"}}
	const note = "note: the API server is at localhost:6443, which is CMD's own: there kubectl does not reach it"
	for _, tt := range []struct {
		name        string
		n           network
		swapped     []swap.Port
		published   []uint16
		local       []uint16
		said, never string
	}{
		{"nobody has it", network{publish: []int{3000, 3001, 3000}}, nil, []uint16{3000, 3001}, []uint16{6443}, "", note},
		{"asked for", network{localPorts: []int{6443, 5432, 6443}}, nil, nil, []uint16{6443, 5432}, "", note},
		{"published", network{publish: []int{6443}}, nil, []uint16{6443}, nil, note, ""},
		{"swapped", network{localPorts: []int{5432}}, []swap.Port{{Local: 6443, Remote: 8080}}, nil, []uint16{5432}, note, ""},
		{"swapped by UDP", network{}, []swap.Port{{Local: 6443, Remote: 8080, UDP: true}}, nil, []uint16{6443}, "", note},
		{"host", network{outside: true}, []swap.Port{{Local: 6443, Remote: 8080}}, nil, nil, "", note},
	} {
		var said bytes.Buffer
		a := newApp(strings.NewReader(""), &said, &said)
		c, err := a.connectProgram(k, []string{"true"}, tt.n, connect.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := &swap.Program{Program: *c}
		if err := a.apart(tt.n, p, tt.swapped); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if !slices.Equal(p.Publish, tt.published) || !slices.Equal(p.LocalPorts, tt.local) {
			t.Errorf("%s: publish %v, local %v", tt.name, p.Publish, p.LocalPorts)
		}
		if text := said.String(); !strings.Contains(text, tt.said) || tt.never != "" && strings.Contains(text, tt.never) {
			t.Errorf("%s: it said %q", tt.name, text)
		}
	}
}
