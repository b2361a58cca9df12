#!/usr/bin/env bash
# Tests of what packages install beside the program, in the programs that read it: the manual page
# in man and mandoc, the completions in bash, zsh and fish.
# shellcheck disable=SC2016 # what stands in single quotes is for another shell
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=tests/checks.sh
source "$root/tests/checks.sh"

name=tailscale-autoconnect
page=$root/units/$name.8
completions=$root/units/completions
# What a user completes in.
place=$dir/place
export LC_ALL=C.UTF-8

# have COMMAND:PACKAGE NAME fails, and skips this test, if the command isn't there and can't be had.
have() {
    ! need "$1" >&2 || return 0
    skip "$2" "${1%%:*} is missing"
    return 1
}

# rendered WIDTH prints the page as man shows it.
rendered() { MANWIDTH=$1 man --encoding=UTF-8 --local-file "$page"; }

manual() {
    have man:man-db "man: the page" || return 0
    export page
    check "man: no warning" bash -c '
        man --warnings --encoding=UTF-8 --local-file "$page" 2>&1 >/dev/null | tee /dev/stderr | wc -c | grep -qx 0'
    check "man: no warning on a terminal without UTF-8" bash -c '
        man --warnings --encoding=ascii --local-file "$page" 2>&1 >/dev/null | tee /dev/stderr | wc -c | grep -qx 0'
    rendered 80 >"$dir/80"
    check "man: no line is longer than the terminal is wide" bash -c '(($(wc -L <"$1") <= 80))' - "$dir/80"
    check "man: all sections are there, in the usual order" diff "$dir/80.sections" - < <(
        grep -E '^[A-Z]+( [A-Z]+)*$' "$dir/80"
    )
    # They are to be typed and searched for.
    rendered 50 >"$dir/50" 2>/dev/null # it says that they are too long for the lines
    check "man: names of options, variables and files are not broken up" bash -euc '
        for word in --authkey-params TAILSCALE_AUTOCONNECT_AUTHKEY_PARAMS /var/run/tailscale/tailscaled.sock; do
            grep -F -- "$word" "$1"
        done' - "$dir/50"
    check "man: whatis knows it" bash -c '
        lexgrog "$page" | grep -F "tailscale-autoconnect - join this machine to its tailnet"'
}

lint() {
    have mandoc:mandoc "mandoc: lint" || return 0
    # It has no date, so that one version makes one page.
    check "mandoc: lint finds nothing but the date" bash -c '
        ! mandoc -T lint -W warning "$1" | grep -v "WARNING: missing date, using \"\": TH"' - "$page"
}

bash_completes() {
    check "bash: options, files, and nothing for a time" bash -euo pipefail -c '
        cd "$2"
        source "$1"
        function=$(complete -p tailscale-autoconnect | sed -E "s/.* -F ([^ ]*) .*/\1/")
        # ask WORD… says what is offered for the last one.
        ask() {
            COMP_WORDS=(tailscale-autoconnect "$@") COMP_CWORD=$# COMPREPLY=()
            # compopt only works in a completion that readline asks for.
            compopt() { :; }
            "$function" tailscale-autoconnect "${@: -1}" "${COMP_WORDS[-2]}"
            printf "%s\n" "${COMPREPLY[@]}"
        }
        diff <(ask --authkey) <(printf "%s\n" --authkey-file --authkey-wait --authkey-optional --authkey-params)
        diff <(ask --authkey-file sec) <(echo "secret file")
        diff <(ask --timeout 9) <(echo 9)
        ' - "$completions/$name.bash" "$place"
}

zsh_completes() {
    have zsh:zsh "zsh: options and files" || return 0
    # It only knows what it completes on a terminal.
    check "zsh: options and files" timeout 60 zsh -f -c '
        zmodload zsh/zpty
        zpty shell "TERM=dumb COLUMNS=500 zsh -f -i"
        zpty -w shell "fpath=($1 \$fpath); cd $2; autoload -Uz compinit; compinit -u -D; print SET\"\"UP"
        zpty -r -m shell out "*SETUP*"
        zpty -n -w shell "tailscale-autoconnect --authkey-f"$'"'\\t'"'
        zpty -r -m shell out "*--authkey-file=*" && print -r -- $out
        zpty -n -w shell sec$'"'\\t'"'
        zpty -r -m shell out "*secret\\\\ file*" && print -r -- $out
        zpty -d shell' - "$completions" "$place"
    check "zsh: it can be sourced too" zsh -f -c '
        autoload -Uz compinit && compinit -u -D && source "$1" &&
        [[ $_comps[tailscale-autoconnect] == _tailscale-autoconnect ]]' - "$completions/_$name"
}

fish_completes() {
    have fish:fish "fish: options and files" || return 0
    check "fish: options and files" bash -euo pipefail -c '
        cd "$2"
        ask() { HOME=$2 fish --no-config -c "source $1; complete -C \"tailscale-autoconnect $3\""; }
        diff <(ask "$1" "$2" --authkey | cut -f 1 | sort) \
            <(printf "%s\n" --authkey-file --authkey-optional --authkey-params --authkey-wait)
        diff <(ask "$1" "$2" "--authkey-file sec") <(echo "secret file")
        diff <(ask "$1" "$2" "--timeout ") /dev/null' - "$completions/$name.fish" "$place"
}

main() {
    mkdir "$place"
    touch "$place/secret file" "$place/other"
    printf '%s\n' NAME SYNOPSIS DESCRIPTION OPTIONS BEHAVIOR 'AUTH KEY' LOGIN STAYING 'EXIT STATUS' 'STATUS TEXTS' 'JOURNAL FIELDS' DIAGNOSIS VERDICTS JSON METRICS FILES ENVIRONMENT \
        EXAMPLES 'SEE ALSO' >"$dir/80.sections"
    manual
    lint
    bash_completes
    zsh_completes
    fish_completes
    count
}

main "$@"
