package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"bridge/internal/carry"
	"bridge/internal/hint"
)

// sample stands for the proxies: which bytes they are does not matter here.
func sample(arch string) ([]byte, error) { return []byte("the proxy for " + arch), nil }

func save(t *testing.T, executables func(arch string) ([]byte, error), reference string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Save(&b, Program{"proxy", executables}, reference); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpack writes a tar's files into a new folder.
func unpack(t *testing.T, archive []byte) string {
	t.Helper()
	folder := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return folder
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(folder, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// checkIndex looks at what a node would get from index: both platforms, the user, the one file.
func checkIndex(t *testing.T, index v1.ImageIndex, executables func(arch string) ([]byte, error)) {
	t.Helper()
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, entry := range manifest.Manifests {
		platforms = append(platforms, entry.Platform.String())
		image, err := index.Image(entry.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{"/proxy"}) ||
			config.Architecture != entry.Platform.Architecture || config.OS != "linux" {
			t.Errorf("%s: configuration %+v", entry.Platform, config)
		}
		layers, err := image.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		size, err := layers[0].Size()
		if err != nil {
			t.Fatal(err)
		}
		if size > 12e6 {
			t.Errorf("%s: %d bytes, more than 12 MB", entry.Platform, size)
		}
		r, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		files := tar.NewReader(r)
		h, err := files.Next()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		want, err := executables(entry.Platform.Architecture)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "proxy" || h.Mode != 0o755 || !bytes.Equal(data, want) {
			t.Errorf("%s: file %s, mode %o, %d bytes", entry.Platform, h.Name, h.Mode, len(data))
		}
		if _, err := files.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: more than one file", entry.Platform)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(platforms, []string{"linux/amd64", "linux/arm64"}) {
		t.Errorf("platforms %q", platforms)
	}
}

func TestSaveWritesALayoutWithBothPlatforms(t *testing.T) {
	for reference, full := range map[string]string{
		"bridge-proxy:1.2":           "docker.io/library/bridge-proxy:1.2",
		"localhost:5000/a/b:x":       "localhost:5000/a/b:x",
		"registry.example.com/proxy": "registry.example.com/proxy:latest",
	} {
		folder, err := layout.ImageIndexFromPath(unpack(t, save(t, sample, reference)))
		if err != nil {
			t.Fatal(err)
		}
		top, err := folder.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		if len(top.Manifests) != 1 {
			t.Fatalf("%d entries in index.json", len(top.Manifests))
		}
		entry := top.Manifests[0]
		_, tag, _ := strings.Cut(full[strings.LastIndex(full, "/"):], ":")
		if entry.Annotations["io.containerd.image.name"] != full || entry.Annotations["org.opencontainers.image.ref.name"] != tag {
			t.Errorf("%s: annotations %v", reference, entry.Annotations)
		}
		index, err := folder.ImageIndex(entry.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkIndex(t, index, sample)
	}
}

func TestSaveIsReproducible(t *testing.T) {
	if !bytes.Equal(save(t, sample, "p:1"), save(t, sample, "p:1")) {
		t.Error("two archives of the same proxies differ")
	}
}

func TestSaveRefusesABadName(t *testing.T) {
	for _, reference := range []string{"", "UPPER:1", "a b", "p:1@sha256:00"} {
		if err := Save(io.Discard, Program{"proxy", sample}, reference); hint.CodeOf(err) != hint.Usage || hint.Of(err) == "" {
			t.Errorf("%q: %v", reference, err)
		}
	}
}

func TestPushBothPlatformsToARegistry(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	reference := strings.TrimPrefix(server.URL, "http://") + "/team/bridge-proxy:1.0"

	executables := carry.Proxy
	if _, err := carry.Proxy("amd64"); err != nil {
		t.Logf("with made-up proxies: %v", err)
		executables = sample
	}
	pushed, err := Push(t.Context(), Program{"proxy", executables}, reference, true)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	checkIndex(t, index, executables)
	digest, err := index.Digest()
	if err != nil || !strings.HasSuffix(pushed, "/team/bridge-proxy@"+digest.String()) {
		t.Errorf("said to be pushed: %s; there is %s, %v", pushed, digest, err)
	}
}

func TestPushExplainsRefusals(t *testing.T) {
	status := func(code int) *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }))
	}
	gone := status(200)
	gone.Close()
	forbidden := status(http.StatusForbidden)
	defer forbidden.Close()
	missing := status(http.StatusNotFound)
	defer missing.Close()
	for _, c := range []struct {
		server *httptest.Server
		code   hint.Code
		words  string
	}{
		{forbidden, hint.Forbidden, "docker login"},
		{missing, hint.Other, "refused"},
		{gone, hint.Other, "reachable"},
	} {
		_, err := Push(t.Context(), Program{"proxy", sample}, strings.TrimPrefix(c.server.URL, "http://")+"/p:1", true)
		if hint.CodeOf(err) != c.code || !strings.Contains(hint.Of(err), c.words) {
			t.Errorf("%v: code %d, hint %q; want code %d, %q", err, hint.CodeOf(err), hint.Of(err), c.code, c.words)
		}
	}
}

func TestErrorsOfTheExecutablesPass(t *testing.T) {
	none := errors.New("no proxy")
	err := Save(io.Discard, Program{"proxy", func(string) ([]byte, error) { return nil, none }}, "p:1")
	if !errors.Is(err, none) {
		t.Error(err)
	}
}
