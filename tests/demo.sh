#!/usr/bin/env bash
# Shows the program at work: a real node joins a real tailnet with an auth key that was decrypted
# from an age file. All of it is on this machine's loopback, and nothing is left behind.
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

secret=run/agenix/tailscale-token
socket=tailscaled.sock
keys=()

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
    encrypt_key
    typed head -n 1 tailscale-token.age

    title "The machine boots"
    tell "The secret is decrypted as agenix does it: into a new generation, to which a link is turned."
    decrypt_key_into run/agenix.d/1

    title "It joins"
    run_program 0
    local joined=$took
    typed tailscale --socket "$socket" ip
    typed tailscale --socket "$socket" status
    check_joined
    tell "It took $joined ms. The control server's counters: $(counters)."

    title "A second run has nothing to do"
    run_program 0
    local second=$took
    tell "It took $second ms."

    title "A reboot, without the secret"
    typed rm -r run/agenix.d
    end "$tailscaled"
    start_tailscaled
    run_program 0
    check_joined
    tell "It took $took ms: a machine that its tailnet knows needs no auth key. Still:" \
        "$(counters)."

    [[ $(counters) == "machines 1, uses of the key 1" ]] || fail "The key was not used exactly once."

    title "Off its tailnet"
    expire_node_key
    tell "The control server has let the machine's node key expire. Now it does need an auth key," \
        "and the secret is still gone. What is wrong?"
    run_program 66 --check
    check_verdict
    tell "It ended with $code. It changed nothing: $(counters)." \
        "So the admin makes a new key, and the machine gets it as it got the first."
    make_key
    encrypt_key
    decrypt_key_into run/agenix.d/2
    run_program 0
    check_joined
    tell "It took $took ms, and is the same machine as before: $(counters)."

    [[ $(counters) == "machines 1, uses of the keys 1 and 1" ]] || fail "Not every key was used exactly once."
    say
    say "${green}Joined in $joined ms, a second run in $second ms, each key used once.$plain"
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
    keys+=("$key")
}

encrypt_key() {
    typed age --encrypt --recipients-file host-key.pub -o tailscale-token.age <<<"$key"
}

decrypt_key_into() {
    typed mkdir -p "$1"
    typed age --decrypt --identity host-key -o "$1/tailscale-token" tailscale-token.age
    typed chmod 0400 "$1/tailscale-token"
    typed ln -sfT "${1#run/}" run/agenix
}

# As time does, or an admin on the control server's page; and the node has to know of it.
expire_node_key() {
    local id tries
    id=$(ask GET /state '' | sed -nE 's/.*"nodes":\[\{"id":([0-9]+),.*/\1/p')
    [[ $(ask POST "/nodes/$id/expire" '') == *" 200 OK"* ]] || fail "The node key did not expire." control.log
    for ((tries = 0; tries < 250; tries++)); do
        [[ $(tailscale --socket "$socket" status --json) != *'"BackendState": "NeedsLogin"'* ]] || return 0
        sleep 0.02
    done
    fail "The node does not see that its key has expired." control.log tailscaled.log
}

# run_program EXIT_CODE [OPTION…] runs the program as an admin would, and measures it.
run_program() {
    local command=(tailscale-autoconnect "${@:2}" --authkey-file "$secret" --socket "$socket" --login-server "$server")
    local begin first=$(($# + 2))
    code=0
    show "${command[*]:0:first} \\"$'\n'"       ${command[*]:first}"
    begin=$(now)
    start tied "${command[@]}" >program.out 2>program.err
    finish "$started" || code=$?
    took=$((($(now) - begin + 500) / 1000))
    indent <program.out
    ((code == $1)) || fail "tailscale-autoconnect ended with exit code $code, not $1." program.err tailscaled.log
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

# It must say what is wrong and what to look for.
check_verdict() {
    local words
    for words in "node key        expired " "verdict: the auth key file $secret does not exist;"; do
        grep -q "^\(problem  \)\?$words" program.out || fail "--check does not say: $words"
    done
}

# What the control server counted.
counters() {
    local state machines key uses='' plural=''
    state=$(ask GET /state '')
    machines=$(grep -o '"node_key"' <<<"$state" | wc -l)
    for key in "${keys[@]}"; do
        [[ $state =~ \"$key\":\{\"attempts\":[0-9]+,\"uses\":([0-9]+)\} ]] || true
        uses+="${uses:+ and }${BASH_REMATCH[1]:-0}"
    done
    [[ $uses != *and* ]] || plural=s
    say "machines $machines, uses of the key$plural $uses"
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
indent() { sed 's/^./   &/'; }

# fail WHY [FILE…] shows the end of these files, says why and ends the demo.
fail() {
    local file
    for file in "${@:2}"; do
        [[ ! -s $file ]] || tail -n 30 -- "$file"
    done >&2
    say "$red$1$plain" >&2
    exit 1
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main
