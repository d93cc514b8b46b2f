package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// health answers probes, each by the next letter of a pattern: S good, F bad, H not at all. The last letter goes on.
type health struct {
	mu      sync.Mutex
	pattern string
}

func (h *health) next() (letter byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	letter = h.pattern[0]
	if len(h.pattern) > 1 {
		h.pattern = h.pattern[1:]
	}
	return letter
}

// http also takes another pattern, by PUT.
func (h *health) http(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		b, err := io.ReadAll(r.Body)
		if err != nil || len(b) == 0 {
			http.Error(w, "no pattern", http.StatusBadRequest)
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.pattern = string(b)
		return
	}
	switch h.next() {
	case 'F':
		w.WriteHeader(http.StatusServiceUnavailable)
	case 'H':
		<-r.Context().Done()
	}
}

// grpc answers the health protocol for every service.
func (h *health) grpc(w http.ResponseWriter, r *http.Request) {
	status := byte(1) // serving
	switch h.next() {
	case 'F':
		status = 2
	case 'H':
		<-r.Context().Done()
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	_, _ = w.Write([]byte{0, 0, 0, 0, 2, 1 << 3, status})
	w.Header().Set("Grpc-Status", "0")
}

func put(url, body string) error {
	r, err := http.NewRequest(http.MethodPut, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("put %s: %s", url, resp.Status)
	}
	return nil
}
