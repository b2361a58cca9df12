#!/usr/bin/env bash
# Renews node keys that live for 20 seconds while a TCP stream goes through the node, beside
# `tailscale up --force-reauth` (tests/renewal/main.rs says more). Fails when a limit is missed.
#
#   tests/renewal.sh                       4 renewals
#   tests/renewal.sh --count 50            so many
#   tests/renewal.sh --count 50 --write    also puts the table into README.md, unless a limit is missed
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

take_write "$@"
need cc:build-essential
need_cargo
cd -- "$root"
! $write || has_markers renewal
# What the daemons leave lying about if this is ended early.
export TMPDIR=$dir
start tied cargo build --quiet --release --locked
finish "$started"
# Its own speed doesn't matter, and the tests' build can be used.
start tied cargo bench --quiet --locked --profile dev --bench renewal -- \
    "$(target_folder)/release/tailscale-autoconnect" --table "$dir/renewal.md" "${arguments[@]}"
finish "$started"
! $write || into_readme renewal "$dir/renewal.md"
