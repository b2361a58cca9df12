#!/usr/bin/env bash
# Builds what a test tailnet is made of: the real tailscaled and tailscale, and
# the control server beside this script. Prints the folder that holds all three
# on standard output and everything else on standard error.
#
#   tests/tailnet/build.sh [VERSION]
#
# VERSION is a tailscale release such as 1.80.3; the default is the one that
# go.mod pins, with its sums. Results are kept outside the tree, in
# $TAILNET_CACHE, or ${XDG_CACHE_HOME:-~/.cache}/tailscale-autoconnect-tests.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cache=${TAILNET_CACHE:-${XDG_CACHE_HOME:-${HOME:?is not set: set TAILNET_CACHE to a folder for the built programs}/.cache}/tailscale-autoconnect-tests}

say() { printf '%s\n' "$*" >&2; }

need_go() {
    command -v go >/dev/null && return
    say "build.sh: Go is missing, and a test tailnet is built with it."
    say "Install Go $(sed -n 's/^go //p' "$here/go.mod") or newer (https://go.dev/dl, or your distribution's golang package), see that 'go version' works, and run this again."
    exit 69
}

pinned=$(sed -nE 's/^(require)?[[:space:]]*tailscale\.com v([^[:space:]]+).*/\2/p' "$here/go.mod")
version=${1:-$pinned}
version=${version#v}
if [[ $# -gt 1 || ! $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]; then
    say "usage: build.sh [VERSION]      VERSION as in 1.80.3 (default: $pinned)"
    exit 64
fi

folder=$cache/$version
mkdir -p -- "$folder"

# One build at a time in a folder; the second finds the work done.
exec 9>"$folder/.lock"
flock 9

# What a build that was killed left behind.
rm -rf -- "$folder"/.build.*

# Built into a scratch folder on the same file system, then renamed into place,
# so that a program is either whole or absent.
scratch=
trap '[[ -z $scratch ]] || rm -rf -- "$scratch"' EXIT
new_scratch() {
    [[ -z $scratch ]] || return 0
    scratch=$(mktemp -d -- "$folder/.build.XXXXXX")
}

export CGO_ENABLED=0
# The programs say the plain release as their version, as the packaged ones
# begin with, and never a commit of this repository.
stamp=tailscale.com/version
flags=(-trimpath -buildvcs=false -ldflags="-s -w -X $stamp.longStamp=$version -X $stamp.shortStamp=$version")

if [[ ! -x $folder/tailscaled || ! -x $folder/tailscale ]]; then
    need_go
    new_scratch
    say "build.sh: building tailscaled and tailscale $version (a minute or two, once)"
    programs=(tailscale.com/cmd/tailscaled tailscale.com/cmd/tailscale)
    if [[ $version == "$pinned" ]]; then
        go -C "$here" build "${flags[@]}" -o "$scratch/" "${programs[@]}" >&2
    else
        GOBIN=$scratch go install "${flags[@]}" "${programs[@]/%/@v$version}" >&2
    fi
    mv -f -- "$scratch/tailscaled" "$scratch/tailscale" "$folder/"
fi

# The control server is the same whatever tailscale's version; it is built anew
# when its sources or its dependencies change.
sources=$(cd -- "$here" && sha256sum -- go.mod go.sum control/*.go | sha256sum)
if [[ ! -x $folder/control || $(cat -- "$folder/.control-sources" 2>/dev/null) != "$sources" ]]; then
    need_go
    new_scratch
    say "build.sh: building the control server"
    go -C "$here" build "${flags[@]}" -o "$scratch/control" ./control >&2
    printf '%s\n' "$sources" >"$scratch/sources"
    mv -f -- "$scratch/control" "$folder/control"
    mv -f -- "$scratch/sources" "$folder/.control-sources"
fi

printf '%s\n' "$folder"
