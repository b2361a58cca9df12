#!/usr/bin/env bash
# Runs every check and every test, and ends with one count of them all. A step that fails doesn't
# stop those after it.
#
#   tests/run.sh           all steps
#   tests/run.sh STEP…     only these
#   tests/run.sh --list    what there is
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# A step is a function step_NAME. With exit code 77 it could not be run, and the last line that it
# printed says why.
skipped_code=77
deny_version=0.20.2

steps=(format clippy scripts go deny advisories build tests harness scenarios boot nix manual demo measure)
declare -A about=(
    [format]="the Rust code is formatted"
    [clippy]="no lint complains of the Rust code"
    [scripts]="shellcheck finds nothing in the scripts"
    [go]="the control server of the test tailnet: gofmt, go vet, its tests"
    [deny]="licences and sources of the dependencies"
    [advisories]="no dependency has a known vulnerability"
    [build]="the program, real tailscaled, the control server"
    [tests]="cargo test: all that needs no daemons"
    [harness]="the tests of the test harness"
    [scenarios]="the program on real daemons"
    [boot]="the Debian package on machines that boot real systemd"
    [nix]="tests/nix/run.sh: the NixOS module, the flake and the example"
    [manual]="tests/manual.sh: the manual page and the completions, in what reads them"
    [demo]="tests/demo.sh"
    [measure]="tests/measure.sh: the numbers that must be kept"
)

step_format() { cargo fmt --all --check -- --color=never; }

step_clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

step_scripts() {
    find tests units .ci \( -name '*.sh' -o -path .ci/run \) -exec shellcheck --external-sources {} +
}

step_go() {
    local unformatted
    cd tests/tailnet
    unformatted=$(gofmt -l .)
    [[ -z $unformatted ]] || { say "not formatted: $unformatted" && return 1; }
    go vet ./...
    go test -v ./...
}

step_deny() {
    have_cargo_deny || return
    cargo deny check licenses bans sources
}

step_advisories() {
    have_cargo_deny || return
    if ! timeout 120 cargo deny fetch db; then
        say "the database of advisories cannot be had"
        return "$skipped_code"
    fi
    cargo deny check --disable-fetch advisories
}

have_cargo_deny() {
    PATH=$cache/tools/bin:$PATH
    ! command -v cargo-deny >/dev/null || return 0
    printf 'installing cargo-deny (a few minutes, once) … ' >&3
    cargo install --locked --root "$cache/tools" "cargo-deny@$deny_version" && return
    say "cargo-deny cannot be installed"
    return "$skipped_code"
}

step_build() {
    cargo build --release --locked
    tests/tailnet/build.sh
}

step_tests() { cargo test --locked --no-fail-fast; }

# What it skips is no test, but a program for one.
step_harness() {
    cargo test --locked --no-fail-fast --package tailnet-harness -- --include-ignored --skip notifying_program
}

step_scenarios() { cargo test --locked --test scenarios -- --include-ignored --test-threads=8; }

step_boot() {
    if ((EUID)); then
        say "only root can boot machines"
        return "$skipped_code"
    fi
    BOOT_LOG=$boots cargo test --locked --test boot -- --include-ignored --test-threads=4
}

step_nix() { tests/nix/run.sh; }

step_manual() { tests/manual.sh; }

step_demo() { tests/demo.sh; }

step_measure() { tests/measure.sh; }

main() {
    local step
    case ${1-} in
        --list)
            for step in "${steps[@]}"; do printf '%-12s%s\n' "$step" "${about[$step]}"; done
            return ;;
        -*)
            say "usage: tests/run.sh [--list | STEP…]" >&2
            return 64 ;;
    esac
    (($# == 0)) || steps=("$@")
    for step in "${steps[@]}"; do
        [[ -v about[$step] ]] || { say "No step is called $step: see tests/run.sh --list." >&2 && return 64; }
    done

    need_cargo
    need age:age cc:build-essential jq:jq nix-instantiate:nix-bin shellcheck:shellcheck /usr/bin/time:time
    cd -- "$root"
    boots=$dir/boots # a line for each machine that was booted
    touch "$boots"
    # All that the steps leave lying about goes with this script.
    export TMPDIR=$dir/tmp
    mkdir -m 1777 "$TMPDIR"
    exec 3>&1

    for step in "${steps[@]}"; do
        run_step "$step"
    done
    summary
}

passed=0 failed=0 skipped=0
ignored_at_first=0 # by the step `tests`: what later steps run
on_daemons=0 booted=0
failures=() skips=()

run_step() {
    local step=$1 out=$dir/out code=0 begin ok bad ignored
    printf '%-12s' "$step"
    begin=$(now)
    start "step_$step" >"$out" 2>&1
    finish "$started" || code=$?
    # What the test runners counted; a check that counts nothing counts as one.
    read -r ok bad ignored < <(awk '
        /^test result: / { ok += $4; bad += $6; ignored += $8 }
        /^--- PASS: /    { ok++ }
        /^--- FAIL: /    { bad++ }
        /^--- SKIP: /    { ignored++ }
        END              { print ok + 0, bad + 0, ignored + 0 }' "$out")
    case $step in
        tests) ignored_at_first=$ignored ignored=0 ;;
        scenarios) on_daemons=$((ok + bad)) ;;
        boot) booted=$((ok + bad)) ;;
    esac
    if ((code == skipped_code)); then
        skip 1 "$step: $(tail -n 1 "$out")"
        printf '%sskipped%s' "$dim" "$plain"
    elif ((code == 0)); then
        ((ok + ignored)) || ok=1
        printf '%sok%s     ' "$green" "$plain"
    else
        ((bad)) || bad=1
        failures+=("$step")
        printf '%sFAILED%s ' "$red" "$plain"
    fi
    ((ignored == 0)) || skip "$ignored" "$step: $ignored ignored$(reasons "$out")"
    passed=$((passed + ok)) failed=$((failed + bad))
    printf ' %7s\n' "$(seconds_since "$begin")"
    # All of it when it failed, and else what is worth reading: the numbers, and the test runners'
    # own closing lines.
    if [[ $step == measure ]] || ((code && code != skipped_code)); then
        sed 's/^/    /' "$out"
    else
        sed -nE 's/^(test result: |ok  )/    &/p' "$out"
    fi
}

# Which tests were ignored, and why, as the test runners say.
reasons() { sed -nE 's/^test (.*) \.\.\. ignored, (.*)/; \1: \2/p' "$1" | tr -d '\n'; }

skip() {
    skipped=$((skipped + $1))
    skips+=("$2")
}

seconds_since() {
    local tenths=$((($(now) - $1) / 100000))
    printf '%d.%d s' $((tenths / 10)) $((tenths % 10))
}

summary() {
    local line not_run=$((ignored_at_first - on_daemons - booted))
    ((not_run <= 0)) || skip "$not_run" "tests: $not_run were ignored, and no other step ran them"
    say
    ((on_daemons == 0)) || say "Scenario tests on real daemons: $on_daemons."
    ((booted == 0)) || say "Machines booted with real systemd: $(wc -l <"$boots")."
    for line in "${skips[@]}"; do say "Skipped: $line."; done
    for line in "${failures[@]}"; do say "${red}Failed: $line.$plain"; done
    say "$passed passed, $failed failed, $skipped skipped"
    ((failed == 0))
}

main "$@"
