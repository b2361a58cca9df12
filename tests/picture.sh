#!/usr/bin/env bash
# Makes tests/picture.svg, the picture in README.md: what a person sees who runs the program on a
# machine. It is recorded on a terminal, from real daemons, in namespaces in which the paths are
# those of any machine. To be run when what the program prints has changed.
set -euo pipefail
# shellcheck source=tests/demo.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/demo.sh"

picture=$root/tests/picture.svg
columns=86
socket=/var/run/tailscale/tailscaled.sock
secret=/run/agenix/tailscale-token
prompt=$'\e[1;32mroot@web1\e[0m:\e[1;34m~\e[0m# '
# Of Debian's own Python, which python3-rich is for.
python=/usr/bin/python3

main() {
    build
    cd -- "$dir"
    furnish_machine
    start_control
    start_tailscaled
    make_key
    (umask 077 && printf '%s\n' "$key" >"$secret")

    record "tailscale-autoconnect --authkey-file $secret"
    must_show "connected as web1."
    record "time tailscale-autoconnect"
    must_show "connected as web1."
    expire_node_key
    rm -- "$secret"
    record "# later: its node key has expired, and the secret is gone"
    record "tailscale-autoconnect --check; echo \"exit status \$?\""
    must_show "exit status 66"

    draw <terminal >picture.svg
    ! grep -e "$dir" -e "$root" -e "@font-face" picture.svg || fail "That does not belong in a picture."
    install -m 644 -- picture.svg "$picture"
    say "Made ${picture#"$root/"}."
}

# Runs main where /run, /usr/local/bin and the name of the machine are its own; with what needs
# root's rights on the real machine done before.
enter_namespaces() {
    local namespaces=(--mount --uts)
    need hostname:hostname script:bsdutils
    "$python" -c 'import rich' 2>/dev/null || need the-library-rich:python3-rich
    need_cargo
    ((EUID == 0)) || namespaces+=(--map-root-user)
    # What takes over has a folder of its own.
    clean_up
    exec unshare "${namespaces[@]}" -- "$root/tests/picture.sh" in-namespaces
}

# A machine with tailscale and agenix, as far as it shows.
furnish_machine() {
    hostname web1
    mkdir bin
    cp -- "$(command -v tailscale-autoconnect)" "$(command -v tailscale)" bin
    mount --bind bin /usr/local/bin
    mount -t tmpfs machine /run
    mkdir /run/agenix /run/tailscale
}

# record COMMAND shows it at a prompt on a terminal, runs it there and keeps what the terminal shows.
record() {
    local run=(env -i TERM=xterm-256color PATH=/usr/local/bin:/usr/bin:/bin TIMEFORMAT='real %Rs'
        TAILSCALE_AUTOCONNECT_LOGIN_SERVER="$server" bash -c "stty cols $columns rows 40; $1")
    [[ ! -s terminal ]] || printf '\n' >>terminal
    printf '%s%s\n' "$prompt" "$1" >>terminal
    start tied timeout 60 script --quiet --return --command "${run[*]@Q}" /dev/null >shown
    finish "$started" || fail "That failed: $1" shown control.log tailscaled.log
    # Of a line that was erased and written again, what stayed.
    sed -E 's/\r$//; s/.*\r\x1b\[K//' shown | tee last >>terminal
}

must_show() {
    grep -qF -- "$1" last || fail "It does not say: $1" last control.log tailscaled.log
}

# Makes an SVG of what a terminal shows. With the reader's own fonts, since GitHub loads no others.
draw() {
    "$python" -c '
import io, re, sys
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

fonts = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace"
template = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
template = template.replace("Fira Code, monospace", fonts)
template = template.replace("<svg ", "<svg xml:space=\"preserve\" ", 1)
terminal = Console(record=True, file=io.StringIO(), width=int(sys.argv[1]), color_system="truecolor")
terminal.print(Text.from_ansi(sys.stdin.read()), highlight=False)
svg = terminal.export_svg(
    title="", theme=MONOKAI, code_format=template, font_aspect_ratio=0.602, unique_id="terminal"
)
print(re.sub("[ \t]+$", "", svg, flags=re.MULTILINE).rstrip())
' "$columns"
}

# Of demo.sh: that daemons start does not belong in the picture.
show() { :; }

if [[ ${1:-} == in-namespaces ]]; then main; else enter_namespaces; fi
