# make demo   starts a real Kubernetes on this machine and shows the main job on it
# make test   runs all tests, on that same kind of cluster
# make build  builds bin/bridge
# With KUBECONFIG set, demo and test use that cluster instead; BRIDGE_SAMPLE_IMAGE then names an image
# of test/sample that it can pull.

export GOTOOLCHAIN = local

LINT_VERSION = v2.15.0

.PHONY: build proxies demo test unit e2e e2e-programs test-cluster test-matrix lint cross tools loader check-loader clean

build: proxies
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/bridge ./cmd/bridge

# The proxies that bridge carries, for every architecture.
proxies:
	go run ./internal/carry/pack

demo: build e2e-programs
	test/demo/demo.sh

test: tools unit e2e test-cluster

# -race needs cgo, and the checks need a few programs of Debian's.
tools:
	test/tools.sh

unit: proxies
	go vet ./...
	go test -race $$(go list ./... | grep -v /test/e2e)

e2e:
	go test -race -count=1 -timeout 40m ./test/e2e

# What the end-to-end tests and the demo run.
e2e-programs: proxies
	go build -race -o bin/bridge-race ./cmd/bridge
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/sample ./test/sample
	cd test/cluster && CGO_ENABLED=0 go build -o ../../bin/cluster .

test-cluster:
	cd test/cluster && go vet ./... && go test -count=1 -timeout 20m ./...

# The end-to-end tests on another version of Kubernetes.
test-matrix: tools
	BRIDGE_E2E_KUBERNETES=1.34.4 go test -race -count=1 -timeout 40m ./test/e2e

# Compiles and vets for the other systems that the laptop may run.
cross:
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go vet ./...
	GOOS=windows CGO_ENABLED=0 go vet ./...

lint: bin/golangci-lint-$(LINT_VERSION)
	bin/golangci-lint-$(LINT_VERSION) run ./...
	cd test/cluster && ../../bin/golangci-lint-$(LINT_VERSION) run ./...

bin/golangci-lint-$(LINT_VERSION):
	GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv bin/golangci-lint $@

# The loader is committed as it is built, since only C compilers make it (internal/carry/loader).
loader:
	internal/carry/loader/build.sh
check-loader:
	test/tools.sh gcc gcc-aarch64-linux-gnu
	internal/carry/loader/build.sh
	git diff --exit-code -- internal/carry/loader

clean:
	rm -rf bin internal/carry/bin/proxy_*
