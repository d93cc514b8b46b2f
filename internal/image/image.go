// Package image makes the proxy's container image, without Docker: one index for linux/amd64 and
// linux/arm64, each from scratch with the one file /proxy. The tests' own program gets one the same way. cmd/bridge's image commands save it as an
// OCI archive or push it; it alone imports go-containerregistry.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"bridge/internal/hint"
)

// user is the image's user and group: not root, and a number, so that runAsNonRoot can be verified.
const user = "65532:65532"

// Program is what an image is made of: one static executable for each architecture.
type Program struct {
	// Name is the file's, in the image's root, and the entrypoint.
	Name string
	// Executable returns it for "amd64" or "arm64"; carry.Proxy is one.
	Executable func(arch string) ([]byte, error)
}

// Save writes the image as an OCI archive (a tar of an OCI image layout) to w. reference is the name it
// gets where it is imported, "bridge-proxy:1.0" or with a registry. The same executables give the same bytes.
func Save(w io.Writer, p Program, reference string) error {
	tag, err := name.NewTag(reference)
	if err != nil {
		return hint.New(hint.Usage, fmt.Errorf("image name %q: %w", reference, err), "names look like bridge-proxy:1.0 or registry.example.com/team/bridge-proxy:1.0")
	}
	index, err := build(p)
	if err != nil {
		return err
	}
	return writeArchive(w, index, tag)
}

// Push uploads the image to reference and returns it with its digest. Credentials are those of
// docker login; insecure allows plain HTTP. An error has a hint and, for refused credentials, hint.Forbidden.
func Push(ctx context.Context, p Program, reference string, insecure bool) (string, error) {
	var options []name.Option
	if insecure {
		options = append(options, name.Insecure)
	}
	tag, err := name.NewTag(reference, options...)
	if err != nil {
		return "", hint.New(hint.Usage, fmt.Errorf("image name %q: %w", reference, err), "names look like registry.example.com/team/bridge-proxy:1.0")
	}
	index, err := build(p)
	if err != nil {
		return "", err
	}
	if err := remote.WriteIndex(tag, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return "", explain(fmt.Errorf("push %s: %w", reference, err), tag)
	}
	digest, err := index.Digest()
	if err != nil {
		return "", err
	}
	return tag.Context().Digest(digest.String()).Name(), nil
}

// explain adds the likely cause and the next step to an error of the registry or of the way there.
func explain(err error, tag name.Tag) error {
	registry := tag.RegistryStr()
	var answer *transport.Error
	switch {
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		return hint.New(hint.Forbidden, err, "log in with: docker login "+registry)
	case errors.As(err, &answer):
		return hint.New(hint.Other, err, "the registry "+registry+" refused it; does the repository exist?")
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return hint.New(hint.Other, err, registry+" speaks plain HTTP; allow that with --insecure")
	}
	return hint.New(hint.Other, err, "is the registry "+registry+" reachable from here?")
}

// build makes the index of one image for each architecture.
func build(p Program) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		executable, err := p.Executable(arch)
		if err != nil {
			return nil, err
		}
		image, err := buildOne(p.Name, executable, arch)
		if err != nil {
			return nil, fmt.Errorf("image for linux/%s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	return index, nil
}

func buildOne(name string, executable []byte, arch string) (v1.Image, error) {
	packed, err := packLayer(name, executable)
	if err != nil {
		return nil, err
	}
	// Compressed here, once: it would be done again for each question about the layer.
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(packed)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: epoch()}, CreatedBy: "bridge image"},
	})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Created = v1.Time{Time: epoch()}
	config.Config = v1.Config{User: user, Entrypoint: []string{"/" + name}, WorkingDir: "/"}
	return mutate.ConfigFile(image, config)
}

// epoch is the date of everything in the image, so that the same proxy gives the same digest.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// packLayer makes the image's only layer, a compressed tar.
func packLayer(name string, executable []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed) // a tenth larger, and several times as fast
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	if err := writeFile(w, name, 0o755, executable); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func writeFile(w *tar.Writer, path string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(data)), ModTime: epoch()}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// The annotations that name an image in an archive: containerd's, which holds the whole name, and the OCI
// specification's, which holds the tag.
const (
	containerdName = "io.containerd.image.name"
	ociName        = "org.opencontainers.image.ref.name"
)

// writeArchive writes an OCI image layout (image-spec, image-layout.md) as a tar. Files that are
// referred to come before those that refer to them.
func writeArchive(w io.Writer, index v1.ImageIndex, tag name.Tag) error {
	a := archive{w: tar.NewWriter(w), written: map[v1.Hash]bool{}}
	if err := writeFile(a.w, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, entry := range manifest.Manifests {
		image, err := index.Image(entry.Digest)
		if err != nil {
			return err
		}
		if err := a.image(image); err != nil {
			return err
		}
	}
	raw, err := index.RawManifest()
	if err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	if err := a.blob(digest, raw); err != nil {
		return err
	}
	top, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIImageIndex, Size: int64(len(raw)), Digest: digest,
			Annotations: map[string]string{containerdName: fullName(tag), ociName: tag.TagStr()},
		}},
	})
	if err != nil {
		return err
	}
	if err := writeFile(a.w, "index.json", 0o644, top); err != nil {
		return err
	}
	return a.w.Close()
}

// fullName is the name that the kubelet's runtime looks an image up by; Docker Hub has two spellings there.
func fullName(tag name.Tag) string {
	return strings.Replace(tag.Name(), "index.docker.io/", "docker.io/", 1)
}

// archive is a layout being written.
type archive struct {
	w       *tar.Writer
	written map[v1.Hash]bool
}

func (a *archive) blob(digest v1.Hash, data []byte) error {
	if a.written[digest] {
		return nil
	}
	a.written[digest] = true
	return writeFile(a.w, "blobs/"+digest.Algorithm+"/"+digest.Hex, 0o644, data)
}

// image writes an image's layers, its configuration and its manifest.
func (a *archive) image(image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		digest, err := layer.Digest()
		if err != nil {
			return err
		}
		r, err := layer.Compressed()
		if err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
		if err := a.blob(digest, data); err != nil {
			return err
		}
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := image.ConfigName()
	if err != nil {
		return err
	}
	if err := a.blob(digest, config); err != nil {
		return err
	}
	manifest, err := image.RawManifest()
	if err != nil {
		return err
	}
	digest, err = image.Digest()
	if err != nil {
		return err
	}
	return a.blob(digest, manifest)
}
