#!/bin/sh
# Installs the Debian packages that are missing of those named, or of those the tests need.
set -eu
[ $# -gt 0 ] || set -- gcc libc6-dev curl bind9-dnsutils iptables iproute2 iputils-ping util-linux openssh-client haproxy chromium \
	musl-tools redis-tools nodejs default-jdk-headless postgresql tcpdump busybox-static
missing=
for package; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "tools: please install:$missing" >&2
	exit 1
fi
echo "tools: installing$missing"
apt-get update -qq
# No package is to start its servers.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
