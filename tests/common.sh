# shellcheck shell=bash disable=SC2034 # its variables are used where it is sourced
# What demo.sh, run.sh and measure.sh share: having what is needed, and starting processes that
# end with the script. Sourced by them, never run.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

bold='' dim='' red='' green='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
fi

# Where tests/tailnet/build.sh keeps what it builds.
cache=${TAILNET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tailscale-autoconnect-tests}

# Nothing here is asked of a person.
exec </dev/null

# A folder for all that the script writes; it goes with the script. Others may look in, since some
# tests run programs as another user.
dir=$(mktemp -d "${TMPDIR:-/tmp}/autoconnect.XXXXXX")
chmod 755 "$dir"

# The process groups that were started and not yet waited for.
groups=()

# start COMMAND… runs it in the background, in a process group of its own whose number is $started.
start() {
    set -m
    "$@" &
    set +m
    started=$!
    groups+=("$started")
}

# As in `start tied COMMAND…`: it also ends when this script is killed.
tied() { exec setpriv --pdeathsig TERM -- "$@"; }

# finish GROUP waits for its end, and returns its exit code.
finish() {
    local code=0
    wait "$1" 2>/dev/null || code=$?
    forget "$1"
    return "$code"
}

# end GROUP asks all processes of a group to end, and kills those that haven't after two seconds.
end() {
    local tries
    kill -TERM -- "-$1" 2>/dev/null || true
    for ((tries = 0; tries < 100; tries++)); do
        kill -0 -- "-$1" 2>/dev/null || break
        sleep 0.02
    done
    kill -KILL -- "-$1" 2>/dev/null || true
    finish "$1" || true
}

forget() {
    local group rest=()
    for group in "${groups[@]}"; do
        [[ $group == "$1" ]] || rest+=("$group")
    done
    groups=("${rest[@]}")
}

clean_up() {
    while ((${#groups[@]})); do
        end "${groups[-1]}"
    done
    cd /
    rm -rf -- "$dir"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%s\n' "$*"; }

# The time in microseconds.
now() { printf '%s' "${EPOCHREALTIME/[^0-9]/}"; }

# need COMMAND:PACKAGE… installs the Debian packages whose commands are missing; without the right
# to do so, it says how.
need() {
    local pair packages=()
    for pair; do
        command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
    done
    ((${#packages[@]})) || return 0
    if ((EUID)) || ! command -v apt-get >/dev/null; then
        say "Missing: ${packages[*]}. Install it and run this again:"
        say "    sudo apt-get install ${packages[*]}"
        return 69
    fi >&2
    say "Installing ${packages[*]} with apt-get." >&2
    local install=(apt-get install --yes --no-install-recommends "${packages[@]}")
    export DEBIAN_FRONTEND=noninteractive
    # The second time with fresh package lists: a new machine has none.
    if ! "${install[@]}" >"$dir/apt.log" 2>&1 &&
        ! { apt-get update && "${install[@]}"; } >"$dir/apt.log" 2>&1; then
        cat -- "$dir/apt.log"
        say "apt-get could not install ${packages[*]}."
        return 69
    fi >&2
}

need_cargo() {
    command -v cargo >/dev/null && return
    say "Missing: cargo. Install Rust (https://rustup.rs, or your distribution's package) and run this again." >&2
    return 69
}

# need_cargo_deb puts cargo-deb into PATH, and installs it into the cache if it is missing.
need_cargo_deb() {
    need_cargo
    # It reads the libraries that a program needs.
    need dpkg-shlibdeps:dpkg-dev
    PATH=$cache/tools/bin:$PATH
    ! command -v cargo-deb >/dev/null || return 0
    say "installing cargo-deb (a few minutes, once)" >&2
    cargo install --locked --quiet --root "$cache/tools" cargo-deb@3.8.0
}

# take_write ARGUMENT… puts into $write whether one of them is --write, and the others into $arguments.
take_write() {
    local argument
    arguments=() write=false
    for argument; do
        case $argument in
            --write) write=true ;;
            *) arguments+=("$argument") ;;
        esac
    done
}

# has_markers NAME fails, and says so, unless README.md has a place for figures of this name.
has_markers() {
    awk -v begin="<!-- $1:begin -->" -v end="<!-- $1:end -->" '
        $0 == begin       { begun = NR }
        $0 == end && begun { ended = NR }
        END               { exit !ended }' "$root/README.md" && return
    say "README.md has no line <!-- $1:begin --> with a line <!-- $1:end --> below it." >&2
    return 1
}

# into_readme NAME FILE puts the figures of this name from the file into README.md. Without any, those that
# are there stay.
into_readme() {
    [[ -s $2 ]] || return 0
    awk -v begin="<!-- $1:begin -->" -v end="<!-- $1:end -->" -v table="$2" '
        $0 == end   { inside = 0 }
        !inside     { print }
        $0 == begin { inside = 1; while ((getline line < table) > 0) print line }' \
        "$root/README.md" >"$dir/readme"
    cat -- "$dir/readme" >"$root/README.md"
    say "Written: README.md"
}

# Where cargo puts what it builds.
target_folder() {
    cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --no-deps |
        sed -nE 's/.*"target_directory":"([^"]*)".*/\1/p'
}
