#!/bin/sh
# check.sh: prove that the committed loaders are what the committed source compiles to.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
want=12.2.0
for compiler in x86_64-linux-gnu-gcc aarch64-linux-gnu-gcc; do
	have=$($compiler -dumpfullversion)
	if [ "$have" != $want ]; then
		echo "check-loader: $compiler is $have; the committed loaders are made by $want (Debian 12), and other versions give other bytes" >&2
		exit 1
	fi
done
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$here/build.sh" "$fresh"
for arch in amd64 arm64; do
	if ! cmp "$here/loader_$arch" "$fresh/loader_$arch"; then
		echo "check-loader: loader_$arch is not what loader.c compiles to; run make loader and commit the result" >&2
		exit 1
	fi
done
echo "check-loader: both loaders are what loader.c compiles to"
