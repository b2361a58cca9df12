#!/usr/bin/env bash
# Runs every check and every test, and ends with one count of them all. A step that fails doesn't
# stop those after it.
#
#   tests/run.sh              all steps
#   tests/run.sh STEP…        only these
#   tests/run.sh --list       what there is
#   tests/run.sh --versions   all scenarios on other versions of tailscale, each a step
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# A step is a function step_NAME. With exit code 77 it could not be run, and the last line that it
# printed says why.
skipped_code=77
deny_version=0.20.2
actionlint_version=1.7.12

# Other versions of tailscale than the main one, from the oldest to the newest.
versions=(1.66.4 1.80.3 1.102.5)

# The scenarios that run on the oldest and the newest of them every time.
core=(
    join::a_fresh_node_joins_with_its_key
    join::a_running_node_is_left_alone_and_its_key_file_need_not_exist
    reboot::a_rebooted_node_comes_back_with_the_used_key_that_it_joined_with
    reboot::a_rebooted_node_comes_back_without_a_key_file
    reboot::a_stopped_node_is_brought_up_without_its_dead_key_and_keeps_its_settings
    renewal::a_node_whose_key_expires_while_it_runs_logs_in_and_stays_the_same_device
    renewal::a_node_that_was_deleted_while_it_was_off_joins_anew
    renewal::a_node_that_someones_dead_key_keeps_off_is_rescued_without_any_key
    renewal::a_device_that_waits_for_approval_holds_up_no_boot_and_connects_when_approved
    settings::settings_with_and_without_a_flag_are_kept_together
    settings::settings_made_before_the_first_login_are_kept
    refusal::a_deleted_key_is_refused_and_not_sent_again
    refusal::a_good_key_joins_right_after_a_run_with_a_dead_one
    refusal::a_good_key_joins_while_the_daemon_still_sends_a_dead_one
    control_server::a_control_server_that_is_down_is_waited_for
    control_server::a_reboot_without_the_control_server_is_ready_by_its_time_and_connects_when_it_is_back
    keyfile::two_runs_do_not_spend_one_key_twice
    daemon::a_run_started_again_in_mid_login_lets_the_login_come_to_its_end
    login_command::a_signal_while_the_control_server_has_the_key_loses_nothing
)

steps=(format clippy scripts go deny advisories build oldest tests harness scenarios versions faults boot nix manual demo measure idle)
declare -A about=(
    [format]="the Rust code is formatted"
    [clippy]="no lint complains of the Rust code"
    [scripts]="shellcheck finds nothing in the scripts, actionlint nothing in the workflows"
    [go]="the control server of the test tailnet: gofmt, go vet, its tests"
    [deny]="licenses and sources of the dependencies"
    [advisories]="no dependency has a known vulnerability"
    [build]="the program, real tailscaled, the control server"
    [oldest]="the oldest Rust that Cargo.toml allows can build the program"
    [tests]="cargo test: all that needs no daemons"
    [harness]="the tests of the test harness"
    [scenarios]="the program on real daemons"
    [versions]="the core of the scenarios on tailscale ${versions[0]} and ${versions[-1]}"
    [faults]="tests/faults.sh: random faults on real daemons, from seeds"
    [boot]="the Debian package on machines that boot real systemd"
    [nix]="tests/nix/run.sh: the NixOS module, the flake and the example"
    [manual]="tests/manual.sh: the manual page and the completions, in what reads them"
    [demo]="tests/demo.sh"
    [measure]="tests/measure.sh timed: the times that must be kept"
    [idle]="tests/measure.sh idle: what a run that waits costs; it begins after the build, beside the others"
    [arm]="tests/arm.sh: the Debian package for arm64, and the tests without daemons under qemu (only by name)"
)
for version in "${versions[@]}"; do
    about[$version]="all scenarios on tailscale $version (only with --versions, or by name)"
done

step_format() { cargo fmt --all --check -- --color=never; }

# The first leaves out the tests that `cargo test` leaves out.
step_clippy() {
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo clippy --test '*' --locked -- -D warnings
}

step_scripts() {
    find tests units .ci \( -name '*.sh' -o -path .ci/run \) -exec shellcheck --external-sources {} +
    local linter=$cache/tools/actionlint-$actionlint_version
    [[ -x $linter/actionlint ]] ||
        GOBIN=$linter go install "github.com/rhysd/actionlint/cmd/actionlint@v$actionlint_version"
    "$linter/actionlint" .github/workflows/*.yml
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

step_oldest() {
    local rust
    rust=$(sed -nE 's/^rust-version = "(.*)"/\1/p' Cargo.toml)
    if ! timeout 300 rustup toolchain install --profile minimal --no-self-update "$rust"; then
        say "Rust $rust cannot be had"
        return "$skipped_code"
    fi
    CARGO_TARGET_DIR=$(target_folder)/oldest rustup run "$rust" cargo check --locked
}

# SEQUENCES: of events, for each property of the policy.
step_tests() { SEQUENCES=20000 cargo test --locked --no-fail-fast; }

# What it skips is no test, but a program for one.
step_harness() {
    cargo test --locked --no-fail-fast --package tailnet-harness -- --skip notifying_program
}

step_scenarios() { cargo test --locked --test scenarios -- --test-threads=16; }

step_versions() {
    local version name listed code=0
    listed=$(cargo test --locked --test scenarios -- --list)
    for name in "${core[@]}"; do
        grep -qxF "$name: test" <<<"$listed" || { say "The core names $name, which is no test." && code=1; }
    done
    for version in "${versions[0]}" "${versions[-1]}"; do
        say "on tailscale $version:"
        scenarios_on "$version" --exact "${core[@]}" || code=1
    done
    return "$code"
}

# scenarios_on VERSION [ARGUMENT…], with arguments for the test runner.
scenarios_on() {
    tests/tailnet/build.sh "$1" >/dev/null || return
    TAILNET_VERSION=$1 cargo test --locked --test scenarios -- --test-threads=16 "${@:2}"
}

step_faults() {
    tests/faults.sh --schedules 200
    tests/faults.sh --contender stay --schedules 100
}

step_boot() {
    if ((EUID)); then
        say "only root can boot machines"
        return "$skipped_code"
    fi
    BOOT_LOG=$boots cargo test --locked --test boot -- --test-threads=4
}

step_nix() { tests/nix/run.sh; }

step_manual() { tests/manual.sh; }

step_demo() { tests/demo.sh; }

step_measure() { tests/measure.sh timed; }

# What was begun beside the other steps, to its end.
step_idle() {
    [[ -v aside ]] || run_aside
    until [[ -e $dir/idle.code ]]; do sleep 0.2; done
    cat "$dir/idle"
    return "$(<"$dir/idle.code")"
}

run_aside() {
    local code=0
    tests/measure.sh idle >"$dir/idle" 2>&1 || code=$?
    echo "$code" >"$dir/idle.code"
}

step_arm() { tests/arm.sh; }

main() {
    local step
    case ${1-} in
        --list)
            for step in "${steps[@]}" arm "${versions[@]}"; do printf '%-12s%s\n' "$step" "${about[$step]}"; done
            return ;;
        --versions)
            shift
            set -- "${versions[@]}" "$@" ;;
        -*)
            say "usage: tests/run.sh [--list | --versions | STEP…]" >&2
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
        if [[ $step == build && " ${steps[*]} " == *" idle "* ]]; then
            start run_aside
            aside=$started
        fi
    done
    [[ ! -v aside ]] || finish "$aside"
    summary
}

passed=0 failed=0 skipped=0
on_daemons=0 on_versions=0 booted=0
failures=() skips=()

run_step() {
    local step=$1 out=$dir/out code=0 begin ok bad ignored not_applicable run=("step_$1")
    declare -F "step_$step" >/dev/null || run=(scenarios_on "$step")
    printf '%-12s' "$step"
    begin=$(now)
    start "${run[@]}" >"$out" 2>&1
    finish "$started" || code=$?
    # What the test runners counted; a check that counts nothing counts as one. A test that says
    # that it is skipped, they count as passed.
    read -r ok bad ignored not_applicable < <(awk '
        /^test result: / { ok += $4; bad += $6; ignored += $8 }
        /^--- PASS: /    { ok++ }
        /^--- FAIL: /    { bad++ }
        /^--- SKIP: /    { ignored++ }
        /skipped on [0-9.]+: / { skipped++ }
        END              { print ok - skipped, bad + 0, ignored + skipped, skipped + 0 }' "$out")
    case $step in
        scenarios) on_daemons=$((ok + bad)) ;;
        versions | [0-9]*) on_versions=$((on_versions + ok + bad)) ;;
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
    if [[ $step == measure || $step == idle ]] || ((code && code != skipped_code)); then
        sed 's/^/    /' "$out"
    else
        sed -nE 's/^(test result: |ok  |on tailscale )/    &/p' "$out"
    fi
    ((not_applicable == 0)) || say "    skipped among the passed: $not_applicable"
}

# Which tests were ignored, and why, as the test runners or they themselves say.
reasons() {
    sed -nE 's/^test (.*) \.\.\. ignored, (.*)/; \1: \2/p
        s/^--- SKIP: (.*): (.*)/; \1: \2/p
        s/.*skipped on ([0-9.]+): (.*)/; on \1, \2/p' "$1" | tr -d '\n'
}

skip() {
    skipped=$((skipped + $1))
    skips+=("$2")
}

seconds_since() {
    local tenths=$((($(now) - $1) / 100000))
    printf '%d.%d s' $((tenths / 10)) $((tenths % 10))
}

summary() {
    local line
    say
    ((on_daemons == 0)) || say "Scenario tests on real daemons: $on_daemons."
    ((on_versions == 0)) || say "The same on other versions of tailscale: $on_versions."
    ((booted == 0)) || say "Machines booted with real systemd: $(wc -l <"$boots")."
    for line in "${skips[@]}"; do say "Skipped: $line."; done
    for line in "${failures[@]}"; do say "${red}Failed: $line.$plain"; done
    say "$passed passed, $failed failed, $skipped skipped"
    ((failed == 0))
}

main "$@"
