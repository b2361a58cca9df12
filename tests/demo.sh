#!/usr/bin/env bash
# Shows the program at work: a real node joins a real tailnet with an auth key that was decrypted
# from an age file. All of it is on this machine's loopback, and nothing is left behind.
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

secret=run/agenix/tailscale-token
socket=tailscaled.sock

main() {
    need age:age cc:build-essential
    need_cargo
    build
    cd -- "$dir"

    title "A tailnet"
    start_control
    tell "A control server listens on $server. Its tailnet has no machine yet."

    title "A machine"
    start_tailscaled
    local version
    read -r version < <(tailscale version)
    tell "The real tailscaled $version, with userspace networking." \
        "It has never joined a tailnet."

    title "A secret for the machine"
    tell "The machine has an age identity. Its admin makes an auth key that is good for one login" \
        "and encrypts it to the machine, so that it may lie in a Git repository."
    make_key
    typed age-keygen -o host-key
    typed age-keygen -y -o host-key.pub host-key
    typed age --encrypt --recipients-file host-key.pub -o tailscale-token.age <<<"$key"
    typed head -n 1 tailscale-token.age

    title "The machine boots"
    tell "The secret is decrypted as agenix does it: into a new generation, to which a link is turned."
    typed mkdir -p run/agenix.d/1
    typed age --decrypt --identity host-key -o run/agenix.d/1/tailscale-token tailscale-token.age
    typed chmod 0400 run/agenix.d/1/tailscale-token
    typed ln -sfT agenix.d/1 run/agenix

    title "It joins"
    run_program
    local joined=$took
    typed tailscale --socket "$socket" ip
    typed tailscale --socket "$socket" status
    check_joined
    tell "It took $joined ms. The control server's counters: $(counters)."

    title "A second run has nothing to do"
    run_program
    local second=$took
    tell "It took $second ms."

    title "A reboot, without the secret"
    typed rm -r run/agenix.d
    end "$tailscaled"
    start_tailscaled
    run_program
    check_joined
    tell "It took $took ms: a machine that its tailnet knows needs no auth key. Still:" \
        "$(counters)."

    [[ $(counters) == "machines 1, uses of the key 1" ]] || fail "The key was not used exactly once."
    say
    say "${green}Joined in $joined ms, a second run in $second ms, the key used once.$plain"
}

build() {
    local folder
    folder=$(target_folder)
    quietly "Building tailscale-autoconnect" "a minute or two, the first time" \
        cargo build --release --locked --manifest-path "$root/Cargo.toml"
    quietly "Building tailscaled, tailscale and the control server" "a few minutes, the first time" \
        "$root/tests/tailnet/build.sh"
    PATH=$folder/release:$(<"$dir/build.out"):$PATH
    # The demo fails rather than wait forever.
    export TAILSCALE_AUTOCONNECT_TIMEOUT=60s
}

# quietly WHAT HOW_LONG COMMAND… says what is done only if it takes more than a moment, and what it
# printed only if it fails.
quietly() {
    local tries
    start tied "${@:3}" >"$dir/build.out" 2>"$dir/build.err"
    for ((tries = 0; tries < 20; tries++)); do
        kill -0 "$started" 2>/dev/null || break
        sleep 0.05
    done
    ! kill -0 "$started" 2>/dev/null || say "$1 ($2) …"
    finish "$started" || fail "$1 failed." "$dir/build.out" "$dir/build.err"
}

start_control() {
    mkfifo control.in
    # Its standard input stays open until it ends.
    start tied control <>control.in >control.out 2>control.log
    wait_for control.out "The control server did not start."
    server=$(json_text url <control.out)
    admin=$(json_text admin <control.out)
}

start_tailscaled() {
    show tailscaled --tun=userspace-networking --statedir=state --socket="$socket" "&"
    start tied env HOME="$dir" TS_LOGS_DIR="$dir" TS_NO_LOGS_NO_SUPPORT=true \
        TS_DISABLE_PORTMAPPER=true TS_ASSUME_NETWORK_UP_FOR_TEST=true \
        tailscaled --tun=userspace-networking --statedir=state --socket="$socket" >>tailscaled.log 2>&1
    tailscaled=$started
}

make_key() {
    key=$(ask POST /keys '{}' | json_text key)
    [[ -n $key ]] || fail "The control server made no auth key." control.log
}

# Runs the program as an admin would, and measures it.
run_program() {
    local command=(tailscale-autoconnect --authkey-file "$secret" --socket "$socket" --login-server "$server")
    local begin code=0
    show "${command[*]:0:3} \\"$'\n'"       ${command[*]:3}"
    begin=$(now)
    start tied "${command[@]}" >program.out 2>program.err
    finish "$started" || code=$?
    took=$((($(now) - begin + 500) / 1000))
    indent <program.out
    ((code == 0)) || fail "tailscale-autoconnect ended with exit code $code." program.err tailscaled.log
}

# The node must say of itself what the program said of it, and the control server must see it.
check_joined() {
    local address name
    address=$(tailscale --socket "$socket" ip -4)
    name=$(sed -nE 's/^connected as ([^ ]+) .*/\1/p' program.out)
    [[ -n $name && $(<program.out) == *"($address,"* ]] || fail "The node's address is $address." program.out
    [[ $(tailscale --socket "$socket" whois "$address") == *"$name"* ]] || fail "The node's name is not $name."
    [[ $(ask GET /state '') == *"\"$address\""*'"online":true'* ]] || fail "The control server does not see the node."
}

# What the control server counted.
counters() {
    local state machines
    state=$(ask GET /state '')
    machines=$(grep -o '"node_key"' <<<"$state" | wc -l)
    [[ $state =~ \"$key\":\{\"attempts\":[0-9]+,\"uses\":([0-9]+)\} ]] || true
    say "machines $machines, uses of the key ${BASH_REMATCH[1]:-0}"
}

# ask METHOD PATH BODY of the control server's admin endpoint.
ask() {
    local address=${admin#http://} connection
    exec {connection}<>"/dev/tcp/${address/://}"
    printf '%s %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s' "$1" "$2" "${#3}" "$3" >&"$connection"
    cat <&"$connection"
    exec {connection}>&-
}

# The first text of this name in JSON.
json_text() { sed -nE "s/.*[{,]\"$1\":\"([^\"]*)\".*/\1/p"; }

wait_for() {
    local tries
    for ((tries = 0; tries < 500; tries++)); do
        [[ ! -s $1 ]] || return 0
        sleep 0.02
    done
    fail "$2" control.log
}

# Shows a command as a person types it, runs it and shows what it prints.
typed() {
    show "$@"
    "$@" 2>&1 | indent || fail "That failed."
}

chapter=0
title() {
    ((chapter++ == 0)) || say
    say "$bold$chapter. $1$plain"
}
tell() { fmt -w 92 -g 92 <<<"$*" | indent; }
show() { say "   $dim\$ $*$plain"; }
indent() { sed 's/^/   /'; }

# fail WHY [FILE…] shows the end of these files, says why and ends the demo.
fail() {
    local file
    for file in "${@:2}"; do
        [[ ! -s $file ]] || tail -n 30 -- "$file"
    done >&2
    say "$red$1$plain" >&2
    exit 1
}

main
