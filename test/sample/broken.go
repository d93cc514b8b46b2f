package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// hog takes memory until it is killed for it, or has most of a GiB: then the limit it was to meet is not there. With keep it takes that many
// MiB, and has them for as long as it runs.
func hog(keep int) error {
	const step, steps = 4 << 20, 200
	var taken [][]byte
	for i := range steps {
		if keep > 0 && i*step >= keep<<20 {
			exitOnSIGTERM()
			for {
				time.Sleep(time.Hour)
				runtime.KeepAlive(taken)
			}
		}
		b := make([]byte, step)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		taken = append(taken, b)
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("%d MiB taken and not killed", len(taken)*step>>20)
}

// kill ends it by a signal, which a container's first process does not get.
func kill() error {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		return err
	}
	if err := self.Kill(); err != nil {
		return err
	}
	time.Sleep(time.Minute)
	return errors.New("killed, and still there")
}

// hang takes connections, as the kernel does by itself, and answers none.
func hang(address string) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	defer ln.Close()
	select {}
}

// registry is a container registry that has next to nothing: why an image does not come is in its name. One comes, and has no command.
func registry(address string) error {
	const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,` +
		`"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","platform":{"os":"linux","architecture":"s390x"}}]}`
	server := http.Server{Addr: address, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		repository, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		answer := func(status int, code string) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"said by test/sample"}]}`, code)
		}
		switch repository {
		case "":
			w.WriteHeader(http.StatusOK)
		case "private":
			w.Header().Set("WWW-Authenticate", `Basic realm="sample"`)
			answer(http.StatusUnauthorized, "UNAUTHORIZED")
		case "limited":
			answer(http.StatusTooManyRequests, "TOOMANYREQUESTS")
		case "odd":
			answer(http.StatusTeapot, "UNKNOWN")
		case "empty":
			empty(w, r)
		case "foreign":
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			fmt.Fprint(w, manifest)
		default:
			answer(http.StatusNotFound, "MANIFEST_UNKNOWN")
		}
	})}
	return server.ListenAndServe()
}

// empty serves an image of an empty layer, for this architecture, that names no command.
func empty(w http.ResponseWriter, r *http.Request) {
	digest := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	layer := make([]byte, 1024) // the end of an archive
	config := fmt.Appendf(nil, `{"architecture":%q,"os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%q]}}`, runtime.GOARCH, digest(layer))
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, manifestType, digest(config), len(config), digest(layer), len(layer))
	body := manifest
	switch path.Base(r.URL.Path) {
	case digest(layer):
		body = layer
	case digest(config):
		body = config
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", manifestType)
	}
	w.Header().Set("Docker-Content-Digest", digest(body))
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}
