// Package carry holds the proxies for linux/amd64 and linux/arm64 and cuts them into ConfigMaps with a
// loader that puts them together and executes them inside the target's own image. So a cluster needs no
// registry that has ours. internal/proxypod mounts the parts, internal/image packs the whole proxies.
//
// The proxies are built into bin by `go run ./internal/carry/pack` (make build does it); the loader's
// two executables are in git beside their source, because a fresh machine has no C compiler.
package carry

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"strconv"

	"bridge/internal/hint"
)

// MountPath is where the parts are mounted, all in one folder, readable and executable (0555).
const MountPath = "/.bridge"

// FallbackDirEnv names, for the loader, a writable folder in the container (an emptyDir). It is used
// only where the node refuses to execute from memory (vm.memfd_noexec=2); unset, that is an error.
const FallbackDirEnv = "BRIDGE_LOADER_DIR"

// MaxPart is the size of a part in bytes, keys not counted. The API server refuses ConfigMaps whose
// data is larger than 1 MiB (1048576); the rest is room for keys, metadata and managed fields.
const MaxPart = 900 << 10

// maxPieces is what the loader can number: proxy.000 to proxy.999.
const maxPieces = 1000

// Arches are the architectures that bridge carries a proxy for, as GOARCH and as the label kubernetes.io/arch.
var Arches = []string{"amd64", "arm64"}

//go:embed loader/loader_amd64 loader/loader_arm64 bin
var files embed.FS

// Part is one ConfigMap's binaryData.
type Part struct {
	Name  string            // "0", "1", ...: unique among the parts of one proxy
	Files map[string][]byte // by key, which is the file's name in MountPath; MaxPart bytes at most in all
}

// Parts returns the loader and the compressed proxy for arch ("amd64" or "arm64"), in parts that fit
// into ConfigMaps. The error has a hint when arch is unknown or when bridge was built without its proxy.
func Parts(arch string) ([]Part, error) {
	packed, err := packed(arch)
	if err != nil {
		return nil, err
	}
	loader, err := files.ReadFile("loader/loader_" + arch)
	if err != nil {
		return nil, fmt.Errorf("the loader for %s: %w", arch, err)
	}
	return split(loader, packed, MaxPart)
}

// Command is what the container runs; arguments that follow reach the proxy unchanged.
func Command() []string {
	return []string{MountPath + "/loader"}
}

// Proxy returns the proxy's executable for arch ("amd64" or "arm64"). The errors are those of Parts.
func Proxy(arch string) ([]byte, error) {
	packed, err := packed(arch)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("the carried proxy for %s: %w", arch, err)
	}
	executable, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("the carried proxy for %s: %w", arch, err)
	}
	return executable, nil
}

// packed returns the gzip file that the build left in bin.
func packed(arch string) ([]byte, error) {
	return packedIn(files, arch)
}

func packedIn(files fs.FS, arch string) ([]byte, error) {
	known := false
	for _, a := range Arches {
		known = known || a == arch
	}
	if !known {
		return nil, hint.Newf(hint.Usage, "nodes with amd64 and arm64 are supported; choose one with a nodeSelector on kubernetes.io/arch",
			"no proxy for architecture %q", arch)
	}
	data, err := fs.ReadFile(files, "bin/proxy_linux_"+arch+".gz")
	if err != nil {
		return nil, hint.Newf(hint.Other, "build it with make, which packs the proxy first, or name an image with --proxy-image",
			"this bridge was built without its proxy for %s", arch)
	}
	return data, nil
}

// split puts the loader and the first piece into part 0, and one more piece into each further part.
func split(loader, packed []byte, limit int) ([]Part, error) {
	if len(loader) >= limit {
		return nil, fmt.Errorf("a loader of %d bytes leaves no room in a part of %d", len(loader), limit)
	}
	parts := []Part{{Name: "0", Files: map[string][]byte{"loader": loader}}}
	room := limit - len(loader)
	for i := 0; i == 0 || len(packed) > 0; i++ {
		if i == maxPieces {
			return nil, fmt.Errorf("the proxy is larger than %d parts of %d bytes", maxPieces, limit)
		}
		if i > 0 {
			parts = append(parts, Part{Name: strconv.Itoa(i), Files: map[string][]byte{}})
			room = limit
		}
		n := min(room, len(packed))
		parts[i].Files[fmt.Sprintf("proxy.%03d", i)] = packed[:n:n]
		packed = packed[n:]
	}
	return parts, nil
}
