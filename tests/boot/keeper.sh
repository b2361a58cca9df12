#!/usr/bin/env bash
# Keeps one machine of the boot tests: a Debian root under an overlay of its own, booted by
# systemd-nspawn as often as it is asked to. Started by tests/boot/machine.rs.
#
#   keeper.sh BASE NAME NETWORK [OPTION…]
#
# NETWORK is the file of a network namespace, or - for an empty network of the machine's own. The options
# are further ones for systemd-nspawn.
#
# Reads commands from standard input:
#   boot    boots the root; says "booted PID" (of systemd-nspawn), later "ended CODE"
# When its standard input ends, because the test has ended or was killed, it kills all that runs in
# the machine. Every mount is in a namespace of its own and every process in a cgroup of its own, so
# nothing is left behind however the test ends.
set -euo pipefail

if [[ ${1:-} != --inside ]]; then
    exec setsid unshare --mount --propagation private -- "${BASH_SOURCE[0]}" --inside "$@"
fi
base=$2 name=$3 network=$4 options=("${@:5}")
case $network in
-) options+=(--private-network) ;;
*) options+=("--network-namespace-path=$network") ;;
esac
place=/tmp

# The test says when to end, by closing our standard input.
trap '' HUP INT TERM

# A cgroup for the machine in each hierarchy that systemd-nspawn uses: the unified one, and that of
# systemd's name where the old ones are in use as well.
cgroups=()
while read -r _ _ _ _ at _ rest; do
    kind=${rest#*- }
    case $kind in
    cgroup2\ *) line='0::' ;;
    cgroup\ *name=systemd*) line='[0-9]+:name=systemd:' ;;
    *) continue ;;
    esac
    own=$(sed -nE "s/^$line//p" /proc/self/cgroup)
    cgroup=$at${own%/}/autoconnect-boot-$name
    mkdir -- "$cgroup"
    cgroups+=("$cgroup")
done </proc/self/mountinfo

end() {
    local cgroup tries machine init
    # The machine's init first, so that systemd-nspawn sees to its end; then whatever is left.
    machine=$(cat "$place/machine" 2>/dev/null || true)
    if [[ -n $machine ]] && read -r init _ <"/proc/$machine/task/$machine/children"; then
        kill -KILL "$init" || true
        for ((tries = 0; tries < 250; tries++)); do
            kill -0 "$machine" || break
            sleep 0.02
        done
    fi 2>/dev/null
    for cgroup in "${cgroups[@]}"; do
        [[ ! -e $cgroup/cgroup.kill ]] || echo 1 >"$cgroup/cgroup.kill"
    done
    for cgroup in "${cgroups[@]}"; do
        for ((tries = 0; tries < 500; tries++)); do
            find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [[ -d $cgroup ]] || break
            sleep 0.02
        done
    done
}
trap end EXIT

# Gone with this namespace; the second holds what systemd-nspawn leaves when it is killed.
mount -t tmpfs -o mode=755 machine "$place"
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 machine /run/systemd/nspawn
mkdir "$place"/{upper,work,root}
mount -t overlay -o "lowerdir=$base,upperdir=$place/upper,workdir=$place/work" machine "$place/root"
# One that is known: a machine without one takes this for its first boot and enables every unit.
tr -d - </proc/sys/kernel/random/uuid >"$place/root/etc/machine-id"
echo "ready $BASHPID $place/root"

run_machine() {
    local cgroup
    for cgroup in "${cgroups[@]}"; do
        echo "$BASHPID" >"$cgroup/cgroup.procs"
    done
    trap - EXIT HUP INT TERM
    exec systemd-nspawn --quiet --register=no --keep-unit --machine="$name" --directory="$place/root" \
        --boot --capability=CAP_NET_ADMIN --console=pipe \
        "${options[@]}" </dev/null >>"$place/console" 2>&1
}

boot() {
    local code=0 machine
    # Bash would say that it was killed, as every machine is in the end.
    exec 2>/dev/null
    run_machine &
    machine=$!
    echo "$machine" >"$place/machine"
    echo "booted $machine"
    wait "$machine" || code=$?
    rm -- "$place/machine"
    echo "ended $code"
}

while read -r command; do
    case $command in
    boot) boot & ;;
    *) echo "unknown command $command" >&2 ;;
    esac
done
