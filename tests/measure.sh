#!/usr/bin/env bash
# Measures the numbers that must be kept (tests/measure/main.rs says how) on the release build, and
# fails when one is missed.
#
#   tests/measure.sh          all
#   tests/measure.sh timed    what needs a machine of its own
#   tests/measure.sh idle     what only waits
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

need cc:build-essential /usr/bin/time:time
need_cargo
cd -- "$root"
# What the measurement leaves lying about if it is ended early.
export TMPDIR=$dir
start tied cargo build --quiet --release --locked
finish "$started"
# Its own speed doesn't matter, and the tests' build can be used.
start tied cargo bench --quiet --locked --profile dev --bench measure -- \
    "$(target_folder)/release/tailscale-autoconnect" "$@"
finish "$started"
