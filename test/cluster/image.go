//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

// writeImage writes a docker archive (the format of "docker save") of an image that has one file, the
// static program, as /name. reference is its name, as pods write it.
func writeImage(file, reference, name, program string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := tarOf(member{name, 0o755, content})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/" + name}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config":   "config.json",
		"RepoTags": []string{reference},
		"Layers":   []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}
	archive, err := tarOf(member{"manifest.json", 0o644, manifest}, member{"config.json", 0o644, config}, member{"layer.tar", 0o644, layer})
	if err != nil {
		return err
	}
	return os.WriteFile(file, archive, 0o644)
}

type member struct {
	name    string
	mode    int64
	content []byte
}

func tarOf(members ...member) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&tar.Header{Name: m.name, Mode: m.mode, Size: int64(len(m.content))}); err != nil {
			return nil, fmt.Errorf("archive %s: %w", m.name, err)
		}
		if _, err := w.Write(m.content); err != nil {
			return nil, fmt.Errorf("archive %s: %w", m.name, err)
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
