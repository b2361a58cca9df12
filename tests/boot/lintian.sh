#!/usr/bin/env bash
# What Debian's checker of packages finds in ours: errors and warnings, save for those that are known.
#
#   tests/boot/lintian.sh PACKAGE
set -euo pipefail
(($# == 1)) || exit 64
# shellcheck source=tests/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../common.sh"

need lintian:lintian

known=(
    # It is not in Debian, which would have a bug for it.
    initial-upload-closes-no-bugs
    # That is what the unit is for: see its last lines.
    systemd-service-file-refers-to-unusual-wantedby-target
)
tags=$(IFS=, && printf '%s' "${known[*]}")
lintian --allow-root --fail-on error,warning --suppress-tags "$tags" "$1"
