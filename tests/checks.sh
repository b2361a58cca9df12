# shellcheck shell=bash disable=SC2154 # what it uses of common.sh
# Named checks, and one count of them at the end, in the words of cargo's test runner. Sourced after
# common.sh, never run.

passed=0 failed=0 skipped=0

ok() {
    passed=$((passed + 1))
    say "test $1 ... ok"
}

bad() {
    failed=$((failed + 1))
    say "test $1 ... ${red}FAILED$plain"
    sed 's/^/    /'
}

skip() {
    skipped=$((skipped + 1))
    say "test $1 ... ignored, $2"
}

# check NAME COMMAND… passes if the command does; its output is shown if it doesn't.
check() {
    local name=$1
    shift
    if timeout 300 "$@" >"$dir/out" 2>&1; then ok "$name"; else bad "$name" <"$dir/out"; fi
}

# The last line; fails if a check did.
count() {
    local result=ok
    ((failed == 0)) || result=FAILED
    say
    say "test result: $result. $passed passed; $failed failed; $skipped ignored"
    ((failed == 0))
}
