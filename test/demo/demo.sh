#!/usr/bin/env bash
# The main job of bridge on a real Kubernetes, step by step. With KUBECONFIG set it uses that cluster
# (BRIDGE_SAMPLE_IMAGE names test/sample's image there), else it starts the embedded one, where the
# laptop is a network namespace that reaches the API server and nothing else.
set -euo pipefail
cd "$(dirname "$0")/../.."

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
note() { printf '   %s\n' "$*"; }
show() { printf '   $ %s\n' "$*"; "$@" 2>&1 | sed 's/^/   | /'; }

work=$(mktemp -d)
namespace=bridge-demo
pids=() # of what this script has started, to be ended by id
own_cluster=
if [ -n "${KUBECONFIG:-}" ]; then
	laptop=()
	image=${BRIDGE_SAMPLE_IMAGE:?set it to the image of test/sample, which make sample-image IMAGE=... pushes}
	kubectl=(kubectl)
else
	own_cluster=yes
	name=${BRIDGE_CLUSTER_NAME:-bridge}
	image=bridge-sample:dev
	laptop=(nsenter --net=/run/netns/$name-laptop)
	kubectl=(bin/cluster kubectl --name $name)
fi
bridge=("${laptop[@]}" bin/bridge)

finish() {
	code=$?
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
	"${kubectl[@]}" delete namespace "$namespace" --ignore-not-found >/dev/null || true
	rm -rf "$work"
	[ $code = 0 ] || echo "demo: a step failed" >&2
	exit $code
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# await FILE TEXT PID: until FILE has TEXT; fails when PID ends first.
await() {
	for _ in $(seq 600); do
		grep -q -- "$2" "$1" 2>/dev/null && return
		kill -0 "$3" 2>/dev/null || break
		sleep 0.2
	done
	cat "$1" >&2
	echo "demo: no \"$2\"" >&2
	return 1
}
# ask: a request from a pod, to the service by its name.
ask() { "${kubectl[@]}" exec -n "$namespace" deploy/client -- /sample get --url http://orders; }
expect() { # WANT GOT
	[ "$1" = "$2" ] || { echo "demo: answered by \"$2\", not by \"$1\"" >&2; return 1; }
	note "answered by: $2"
}

if [ -n "$own_cluster" ]; then
	step "A real Kubernetes: API server, kubelet, containerd, CoreDNS, in network namespaces of this machine"
	bin/cluster up --name $name
	bin/cluster load --name $name "$image=bin/sample" >/dev/null
	export KUBECONFIG=/var/lib/bridge-cluster/$name/kubeconfig
fi

step "Two services and a client in the cluster"
"${kubectl[@]}" create namespace "$namespace" >/dev/null
sed "s|IMAGE|$image|g" test/demo/shop.yaml | "${kubectl[@]}" apply -n "$namespace" --server-side -f - >/dev/null
"${kubectl[@]}" rollout status -n "$namespace" deployment/orders deployment/payments deployment/client --timeout 2m >/dev/null
show "${kubectl[@]}" get deployment,service -n "$namespace"
note "A pod asks http://orders:"
for _ in $(seq 50); do # the node learns of a new Service a moment after the API has it
	ask >/dev/null 2>&1 && break
	sleep 0.2
done
expect "orders in the cluster" "$(ask)"
before=$("${kubectl[@]}" get deployment,service,lease,configmap -n "$namespace" -o name)

step "orders runs on this laptop, on localhost:3000"
"${laptop[@]}" bin/sample serve --name "orders on the laptop" --http 127.0.0.1:3000 2>"$work/local" &
pids+=($!)
await "$work/local" "listens on" $!
if [ -n "$own_cluster" ]; then
	address=$("${kubectl[@]}" get service orders -n "$namespace" -o 'jsonpath={.spec.clusterIP}')
	if "${laptop[@]}" bin/sample get --url "http://$address" >/dev/null 2>&1; then
		echo "demo: the laptop reaches $address without bridge" >&2
		exit 1
	fi
	note "The laptop cannot reach the Service's address $address by itself: what follows is bridge."
fi

step "bridge swap deployment orders --port 3000:8080"
"${bridge[@]}" swap deployment orders -n "$namespace" --port 3000:8080 2>"$work/swap" &
swap=$!
pids+=($swap)
await "$work/swap" "swapped: " $swap
sed 's/^/   | /' "$work/swap"
note "The same pod asks http://orders again:"
expect "orders on the laptop" "$(ask)"
show "${bridge[@]}" status -n "$namespace"

step "bridge forward svc/payments :80"
"${bridge[@]}" forward svc/payments :80 -n "$namespace" >"$work/forward" 2>&1 &
forward=$!
pids+=($forward)
await "$work/forward" "Forwarding from 127" $forward
sed 's/^/   | /' "$work/forward"
address=$(sed -n 's/^Forwarding from \(127[^ ]*\) .*/\1/p' "$work/forward")
note "The laptop asks http://$address:"
expect "payments in the cluster" "$("${laptop[@]}" bin/sample get --url "http://$address")"
kill $forward; wait $forward || true

step "bridge connect"
"${bridge[@]}" connect -n "$namespace" --listen 127.0.0.1:0 --dns-listen 127.0.0.1:0 >"$work/connect" 2>"$work/connect.err" &
connect=$!
pids+=($connect)
await "$work/connect.err" "connected" $connect
sed 's/^/   | /' "$work/connect"
proxy=$(sed -n 's/.*HTTP_PROXY=\(http:[^ ]*\).*/\1/p' "$work/connect" | head -n 1)
note "The laptop asks http://payments by its name in the cluster, through the proxy:"
expect "payments in the cluster" "$("${laptop[@]}" env http_proxy="$proxy" HTTP_PROXY="$proxy" bin/sample get --url "http://payments.$namespace")"
kill $connect; wait $connect || true

step "Ctrl-C gives everything back"
kill -INT $swap
wait $swap || code=$?
sed -n '/giving/,$s/^/   | /p' "$work/swap"
[ "$code" = 130 ] || { echo "demo: swap ended with $code" >&2; exit 1; }
note "The pod asks http://orders once more:"
expect "orders in the cluster" "$(ask)"
after=$("${kubectl[@]}" get deployment,service,lease,configmap -n "$namespace" -o name)
[ "$before" = "$after" ] || { diff <(echo "$before") <(echo "$after") >&2; exit 1; }
note "The namespace has the objects it had before, and no other."

step "Done: a real pod's traffic came to the laptop, and nothing of bridge is left"
if [ -n "$own_cluster" ]; then
	note "The cluster stays up. Look at it, or play with it as the laptop:"
	note "  bin/cluster kubectl get deployment,service,lease,pod -A"
	note "  export KUBECONFIG=$KUBECONFIG; nsenter --net=/run/netns/$name-laptop bin/bridge help"
	note "End it with: make down"
fi
