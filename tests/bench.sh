#!/usr/bin/env bash
# Compares the release build with what people use instead (tests/bench/main.rs says how), prints the
# table, and fails when a promise is missed. It takes about five minutes, and wants a machine that
# has nothing else to do.
#
#   tests/bench.sh           prints only
#   tests/bench.sh --quick   one round of each: shows that it works, and compares nothing
#   tests/bench.sh --write   also puts the table and the chart into tests/bench, and the table into
#                            README.md, unless a promise is missed
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

main() {
    local write=false quick=()
    case "$*" in
        '') ;;
        --quick) quick=(quick) ;;
        --write) write=true ;;
        *)
            say "usage: tests/bench.sh [--quick | --write]" >&2
            return 64 ;;
    esac
    cd -- "$root"
    ! $write || has_markers bench
    need cc:build-essential jq:jq systemd-notify:systemd /usr/bin/time:time
    need_cargo
    # What it leaves lying about if it is ended early.
    export TMPDIR=$dir
    mkdir -- "$dir/results"
    start tied cargo build --quiet --release --locked
    finish "$started"
    # Its own speed doesn't matter, and the tests' build can be used.
    start tied cargo bench --quiet --locked --profile dev --bench bench -- \
        "$(target_folder)/release/tailscale-autoconnect" "$dir/results" "${quick[@]}"
    finish "$started"
    ! $write || write_down
}

write_down() {
    cp -- "$dir/results/results.md" "$dir/results/results.svg" tests/bench/
    say "Written: tests/bench/results.md, tests/bench/results.svg"
    into_readme bench "$dir/results/table.md"
}

main "$@"
