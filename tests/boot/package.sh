#!/usr/bin/env bash
# Builds the Debian package and prints its path on standard output, and everything else on standard
# error.
set -euo pipefail

exec 3>&1 1>&2
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"

mkdir -p -- "$cache/tools"
exec 9>"$cache/tools/.lock"
flock 9
need_cargo_deb
cd -- "$root"
cargo deb --locked --quiet 1>&3
