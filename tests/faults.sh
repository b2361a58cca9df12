#!/usr/bin/env bash
# Plays random faults on real daemons, each schedule derived from its seed alone (tests/faults/main.rs
# says more), and ends with a table and a count. Exit code 1 if the program breaks an invariant.
#
#   tests/faults.sh                     200 schedules
#   tests/faults.sh --seed N            one of them again
#   tests/faults.sh --minutes N         new ones for so long
#   tests/faults.sh --contender all     also the scripts that people use instead (tests/peers);
#                                       with --write, the table goes into README.md
#   tests/faults.sh --help              all options
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

need cc:build-essential jq:jq ip:iproute2
need_cargo
# A path that was given stands for a file where the script was called.
results=()
[[ " $* " == *" --results "* ]] || results=(--results "$dir/results.jsonl")
cd -- "$root"
# What the daemons leave lying about if this is ended early.
export TMPDIR=$dir
take_write "$@"
! $write || has_markers faults
start tied cargo bench --quiet --locked --profile dev --bench faults -- \
    "${results[@]}" --table "$dir/faults.md" "${arguments[@]}"
finish "$started"
! $write || into_readme faults "$dir/faults.md"
