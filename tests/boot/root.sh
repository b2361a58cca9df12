#!/usr/bin/env bash
# Makes a Debian root for the boot tests: systemd, age, an SSH host key and the real tailscaled with
# its own unit file. Prints its folder on standard output and everything else on standard error.
#
#   tests/boot/root.sh [trixie|bookworm]
#
# Made once with mmdebstrap and kept in the cache of tests/tailnet/build.sh; made anew when this
# script or tailscale's version changes. The tests boot it under an overlay and never write to it.
set -euo pipefail

release=${1:-trixie}
if [[ $# -gt 1 || ! $release =~ ^[a-z]+$ ]]; then
    echo "usage: root.sh [RELEASE]      RELEASE of Debian (default: trixie)" >&2
    exit 64
fi

# Its words are for people, and only the folder's name goes to standard output.
exec 3>&1 1>&2
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"

if ((EUID)); then
    say "The boot tests boot systemd in containers, which only root can do: sudo tests/run.sh"
    exit 69
fi
need mmdebstrap:mmdebstrap systemd-nspawn:systemd-container ip:iproute2

programs=$("$root/tests/tailnet/build.sh")
roots=$(dirname -- "$programs")/roots
made_of=$({
    sha256sum -- "${BASH_SOURCE[0]}" "$programs/tailscaled" "$programs/tailscale"
} | cut -d' ' -f1 | sha256sum | head -c 16)
made=$roots/$release-$made_of

mkdir -p -- "$roots"
# One at a time; the second finds the work done.
exec 9>"$roots/.lock"
flock 9

if [[ ! -d $made ]]; then
    say "root.sh: making a Debian $release root (half a minute, once)"
    # What a script that was killed left behind, and roots that were not used for a week.
    making=$roots/.making-$release
    rm -rf -- "$making"
    find "$roots" -mindepth 1 -maxdepth 1 -type d -mtime +7 -exec rm -rf -- {} +

    # The mirrors of this machine, if it runs Debian; else mmdebstrap's own.
    mirrors=()
    if command -v apt-get >/dev/null; then
        mapfile -t mirrors < <(apt-get indextargets --format "\$(ORIGIN) \$(REPO_URI) \$(SUITE)" 'Created-By: Packages' |
            awk '$1 == "Debian" && $3 !~ /security|updates|backports/ { print $2 }' | sort -u | head -n 1)
    fi

    # In a mount namespace of its own: what it mounts is gone when it ends, however it does.
    start tied unshare --mount --propagation private \
        mmdebstrap --mode=root --quiet --variant=minbase \
        --include=systemd,systemd-sysv,dbus,iproute2,age,openssh-client,procps,man-db \
        "$release" "$making" "${mirrors[@]}"
    finish "$started"

    chroot "$making" ssh-keygen -q -t ed25519 -N '' -C root@machine -f /etc/ssh/ssh_host_ed25519_key
    source=$(go -C "$root/tests/tailnet" list -m -f '{{.Dir}}' tailscale.com)
    install -m 755 -- "$programs/tailscaled" "$making/usr/sbin/"
    install -m 755 -- "$programs/tailscale" "$making/usr/bin/"
    install -m 644 -- "$source/cmd/tailscaled/tailscaled.service" "$making/usr/lib/systemd/system/"
    systemctl --root="$making" enable --quiet tailscaled.service
    # Nothing on a console, and no work that is not the tests': it would only take time.
    systemctl --root="$making" mask --quiet getty@.service console-getty.service container-getty@.service \
        apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer
    # Nor at each installation of a package.
    rm -f -- "$making/var/lib/man-db/auto-update"
    echo machine >"$making/etc/hostname"

    mv -- "$making" "$made"
fi
touch -- "$made"
printf '%s\n' "$made" >&3
