# make demo   starts a real Kubernetes on this machine and shows the main job on it
# make test   runs all tests, on that same kind of cluster
# make soak   runs the long forms of the tests, in several hours
# make build  builds bin/bridge
# With KUBECONFIG set, demo and test use that cluster instead; BRIDGE_SAMPLE_IMAGE then names an image
# of test/sample that it can pull.

export GOTOOLCHAIN = local

# A release sets it: make build VERSION=v1.2.3
VERSION ?=

LINT_VERSION = v2.15.0

.PHONY: build proxies demo test unit fuzz e2e soak e2e-programs test-programs bench down sample-image test-cluster test-matrix lint cross tools loader check-loader clean

build: proxies
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $(if $(VERSION),-X main.version=$(VERSION))" -o bin/bridge ./cmd/bridge

# The proxies that bridge carries, for every architecture.
proxies:
	go run ./internal/carry/pack -version "$(VERSION)"

# Leaves the cluster up; make down ends it.
demo: build test-programs
	test/demo/demo.sh

# Writes docs/benchmarks.md, in most of an hour. make bench BENCH=-quick only sees that it works.
bench: build test-programs
	cd test/cluster/kubernetes && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o ../../../bin/kubectl k8s.io/kubernetes/cmd/kubectl
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/bench ./test/bench
	bin/bench $(BENCH)

down: test-programs
	bin/cluster down

test: tools unit fuzz e2e test-cluster

# -race needs cgo, and the checks need a few programs of Debian's.
tools:
	test/tools.sh

unit: proxies
	go vet ./...
	go test -race -timeout 30m $$(go list ./... | grep -v /test/e2e)

# Runs each fuzz target FUZZCOUNT times, two targets at once. By count and not by time, at whose end
# a target may fail by "context deadline exceeded" with nothing found (https://go.dev/issue/75804, mended in Go 1.27).
FUZZCOUNT ?= 100000
fuzz:
	targets=$$(for p in $$(grep -rl '^func Fuzz' --include='*_test.go' cmd internal pkg | xargs -n 1 dirname | sort -u); do \
		list=$$(go test -list '^Fuzz' ./$$p) || exit 1; echo "$$list" | sed -n "s|^Fuzz.*|& ./$$p|p"; \
	done) && echo "$$targets" | xargs -P 2 -L 1 sh -c 'exec go test -run "^$$" -fuzz "^$$0$$" -fuzztime $(FUZZCOUNT)x -fuzzminimizetime 10x -parallel 1 "$$1"'

# Some of these tests start the proxy that is built into them.
e2e: proxies
	go test -race -count=1 -parallel 4 -timeout 70m ./test/e2e
	# Once more on an embedded cluster that has IPv6, too.
	test -n "$$KUBECONFIG" || BRIDGE_E2E_IPV6=1 BRIDGE_E2E_CLUSTER=bridge-e2e-ipv6 go test -race -count=1 -timeout 15m -run '^TestIPv6' ./test/e2e

# The long forms of the same, and of fuzzing: several hours. They write docs/recovery.md and docs/swap-figures.md.
soak: export BRIDGE_SOAK = 1
soak: tools proxies
	go test -race -count=1 -parallel 8 -timeout 1h -run '^TestHeal' ./test/e2e
	go test -race -count=1 -parallel 4 -timeout 4h -skip '^TestHeal' ./test/e2e
	$(MAKE) fuzz FUZZCOUNT=3000000

# What the end-to-end tests run: bridge with the race detector.
e2e-programs: proxies test-programs
	go build -race -o bin/bridge-race ./cmd/bridge

test-programs:
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/sample ./test/sample
	cd test/cluster && CGO_ENABLED=0 go build -o ../../bin/cluster .

# Pushes the image that demo and test need on a cluster of your own: make sample-image IMAGE=...
sample-image:
	go run ./test/sample/push $(IMAGE)

# With a cluster of your own there is no embedded one to test.
test-cluster:
	[ -n "$$KUBECONFIG" ] || { cd test/cluster && go vet ./... && go test -count=1 -timeout 20m ./...; }

# The end-to-end tests on another version of Kubernetes.
test-matrix: tools
	BRIDGE_E2E_KUBERNETES=1.34.4 go test -race -count=1 -parallel 4 -timeout 70m ./test/e2e

# Compiles and vets for the other systems that the laptop may run.
cross:
	for os in darwin windows; do \
		GOOS=$$os CGO_ENABLED=0 go build -o /dev/null ./cmd/bridge && GOOS=$$os CGO_ENABLED=0 go vet ./... || exit 1; \
	done

lint: bin/golangci-lint-$(LINT_VERSION)
	bin/golangci-lint-$(LINT_VERSION) run ./...
	cd test/cluster && ../../bin/golangci-lint-$(LINT_VERSION) run ./...

bin/golangci-lint-$(LINT_VERSION):
	GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv bin/golangci-lint $@

# The loader is committed as it is built, since only C compilers make it (internal/carry/loader).
loader:
	test/tools.sh gcc gcc-aarch64-linux-gnu
	internal/carry/loader/build.sh
check-loader:
	test/tools.sh gcc gcc-aarch64-linux-gnu
	internal/carry/loader/check.sh

clean:
	rm -rf bin internal/carry/bin/proxy_*
