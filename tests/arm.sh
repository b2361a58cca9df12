#!/usr/bin/env bash
# Builds the program and its Debian package for arm64 with Debian's own cross toolchain. Under qemu, it runs
# the unit tests, and the program in the tests of the command line and on a stand-in for tailscaled. Exit
# code 77 if the toolchain cannot be had.
#
# The toolchain is in a Debian root of its own, made once (two gigabytes, some minutes) and kept in
# the cache of tests/tailnet/build.sh: the release of this machine may have too old a compiler.
set -euo pipefail
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

target=aarch64-unknown-linux-gnu

if ((EUID)); then
    say "only root can use the root with the toolchain"
    exit 77
fi
need mmdebstrap:mmdebstrap dpkg-deb:dpkg
need_cargo_deb
cd -- "$root"
build=$(target_folder)/arm
mkdir -p -- "$build" "$cache/roots"

toolchain=$cache/roots/arm-toolchain
exec 9>"$cache/roots/.lock-arm"
flock 9
if [[ ! -d $toolchain ]]; then
    say "arm.sh: making a Debian root with the toolchain (some minutes, once)"
    rm -rf -- "$toolchain.making"
    # Its signature is checked, its age is not: a mirror may stand still for weeks.
    start tied unshare --mount --propagation private \
        mmdebstrap --mode=root --quiet --variant=apt --architectures=amd64,arm64 \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --include=cargo,rustc,libstd-rust-dev:arm64,gcc-aarch64-linux-gnu,libc6-dev-arm64-cross,dpkg-dev,qemu-user-static \
        sid "$toolchain.making"
    if ! finish "$started" >&2; then
        say "Debian's toolchain for arm64 cannot be had"
        exit 77
    fi
    mv -- "$toolchain.making" "$toolchain"
fi

# in_root COMMAND… runs it in the project's folder, with the crates that cargo has fetched here.
in_root() {
    cargo fetch --quiet --locked
    # shellcheck disable=SC2016 # its variables are of the shell in the namespace
    start tied unshare --mount --propagation private sh -euc '
        toolchain=$1 project=$2 build=$3 crates=$4 tools=$5
        shift 5
        cd "$toolchain"
        mkdir -p project build crates tools
        mount --bind "$project" project
        mount --bind "$build" build
        mount --bind "$crates" crates
        mount --bind "$tools" tools
        mount --rbind /dev dev
        mount -t proc proc proc
        exec chroot . env -i PATH=/usr/bin:/bin:/tools HOME=/root CARGO_HOME=/crates CARGO_TARGET_DIR=/build \
            CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CARGO_NET_OFFLINE=true \
            sh -euc "cd /project; \"\$@\"" sh "$@"
    ' sh "$toolchain" "$root" "$build" "${CARGO_HOME:-$HOME/.cargo}" "$(dirname -- "$(command -v cargo-deb)")" "$@"
    finish "$started"
}

in_root cargo build --quiet --release --locked --target "$target"
in_root cargo-deb deb --quiet --locked --no-build --no-strip --target "$target" --output /build/tailscale-autoconnect_arm64.deb

package=$build/tailscale-autoconnect_arm64.deb
dpkg-deb --info "$package" | sed -n 's/^ \(Package\|Version\|Architecture\|Depends\)/\1/p'
[[ $(dpkg-deb --field "$package" Architecture) == arm64 ]]

# The program of the package, as this machine runs it.
dpkg-deb --extract "$package" "$build/unpacked"
arm=$build/program
cat >"$arm" <<END
#!/bin/sh
exec $toolchain/usr/bin/qemu-aarch64 -L $toolchain/usr/aarch64-linux-gnu $build/unpacked/usr/bin/tailscale-autoconnect "\$@"
END
chmod +x "$arm"
version=$("$arm" --version)
say "$version"
[[ $version == "tailscale-autoconnect $(dpkg-deb --field "$package" Version | sed 's/-[0-9]*$//')" ]]

# The unit tests, built for arm64, in the root. Under qemu, they are optimized and each property gets few cases.
in_root env SEQUENCES=20 PROPTEST_CASES=16 CARGO_PROFILE_DEV_OPT_LEVEL=1 \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu' \
    cargo test --quiet --locked --target "$target" --bins

# The tests of the command line and those on a stand-in for tailscaled run here. The program that they
# start is the one of the package: a mount namespace of theirs has it in the place of the one for this
# machine.
left_out=()
leave_out() {
    say "--- SKIP: $1: $2"
    left_out+=(--skip "$1")
}
leave_out a_connected_node_needs_no_time "the program has half a second in it, too little under qemu"
leave_out a_command_that_is_being_written_is_run_later \
    "under qemu, a program is not told that a command cannot be started"
runner="['unshare', '--mount', '--propagation', 'private', 'sh', '-euc',
    'mount --bind \"\$1\" \"\$2\"; shift 2; exec \"\$@\"', 'sh', '$arm', '$(target_folder)/debug/tailscale-autoconnect']"
EMULATED=1 cargo test --quiet --locked --config "target.'cfg(all())'.runner = ${runner//$'\n'/}" \
    --no-fail-fast --test command_line --test fake_tailscaled -- --test-threads=3 "${left_out[@]}"
