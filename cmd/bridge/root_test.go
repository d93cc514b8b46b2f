package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// What client-go logs is not shown, its errors neither: they are there with -v, and never its details.
func TestClientGosLogIsForVerbose(t *testing.T) {
	t.Cleanup(klog.ClearLogger)
	for _, verbose := range []bool{false, true} {
		var out bytes.Buffer
		a := newApp(nil, nil, &out)
		if verbose {
			a.level.Set(slog.LevelDebug)
		}
		klog.SetSlogLogger(slog.New(demoted{a.log.Handler()}))
		log := klog.Background()
		log.Error(errors.New("context canceled"), "reading failed")
		log.Info("it waits")
		log.V(1).Info("a Secret")
		text := out.String()
		if strings.Contains(text, "Secret") || strings.Contains(text, "reading failed") != verbose || strings.Contains(text, "it waits") != verbose {
			t.Errorf("verbose %v: %q", verbose, text)
		}
	}
}
