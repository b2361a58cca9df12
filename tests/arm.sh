#!/usr/bin/env bash
# Builds the program and its Debian package for arm64 with Debian's own cross toolchain, and runs
# the program under qemu. Exit code 77 if the toolchain cannot be had.
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
need_cargo
cd -- "$root"
# For cargo-deb.
tests/boot/package.sh >/dev/null
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
    ' sh "$toolchain" "$root" "$build" "${CARGO_HOME:-$HOME/.cargo}" "$cache/tools/bin" "$@"
    finish "$started"
}

in_root cargo build --quiet --release --locked --target "$target"
in_root cargo-deb deb --quiet --locked --no-build --no-strip --target "$target" --output /build/tailscale-autoconnect_arm64.deb

package=$build/tailscale-autoconnect_arm64.deb
dpkg-deb --info "$package" | sed -n 's/^ \(Package\|Version\|Architecture\|Depends\)/\1/p'
[[ $(dpkg-deb --field "$package" Architecture) == arm64 ]]

# The program of the package, as a user would run it.
dpkg-deb --extract "$package" "$build/unpacked"
arm() { in_root qemu-aarch64 -L /usr/aarch64-linux-gnu /build/unpacked/usr/bin/tailscale-autoconnect "$@"; }
version=$(arm --version)
say "$version"
[[ $version == "tailscale-autoconnect $(dpkg-deb --field "$package" Version | sed 's/-[0-9]*$//')" ]]
code=0
arm --check --socket /nonexistent/tailscaled.sock || code=$?
[[ $code == 69 ]]
