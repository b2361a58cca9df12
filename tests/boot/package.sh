#!/usr/bin/env bash
# Builds the Debian package and prints its path on standard output, and everything else on standard
# error. cargo-deb is installed into the cache of tests/tailnet/build.sh if it is missing.
set -euo pipefail

exec 3>&1 1>&2
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"

need_cargo
# It reads the libraries that the program needs.
need dpkg-shlibdeps:dpkg-dev

tools=$cache/tools
PATH=$tools/bin:$PATH
mkdir -p -- "$tools"
exec 9>"$tools/.lock"
flock 9
if ! command -v cargo-deb >/dev/null; then
    say "package.sh: installing cargo-deb (a few minutes, once)"
    cargo install --locked --quiet --root "$tools" cargo-deb@3.8.0
fi
cd -- "$root"
cargo deb --locked --quiet 1>&3
