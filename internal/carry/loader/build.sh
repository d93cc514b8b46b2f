#!/bin/sh
# build.sh [DIR]: compile the loader for both architectures into DIR (default: beside the source).
# The result depends on the compiler's version only: no build id, no time, no path is in it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
build() {
	"$1" -std=c11 -Wall -Wextra -Werror -Wno-sign-compare -O2 -ffreestanding -fno-builtin -nostdlib -static \
		-fno-pie -no-pie -fno-stack-protector -fno-asynchronous-unwind-tables -fno-ident \
		-fno-tree-loop-distribute-patterns -fomit-frame-pointer $3 \
		-Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,noseparate-code -Wl,-z,norelro -Wl,-s \
		-o "$out/loader_$2" "$here/loader.c"
}
build x86_64-linux-gnu-gcc amd64 -fcf-protection=none
build aarch64-linux-gnu-gcc arm64 -mbranch-protection=none
