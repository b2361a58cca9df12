#!/usr/bin/env bash
# What the service tailscaled-autoconnect of nixpkgs does (services.tailscale.authKeyFile, nixos-25.05),
# in our own words.
#
#   nixpkgs.sh KEY_FILE [FLAGS FOR `tailscale up`]
#
# As there, the unit is Type=notify without Restart=, so that its start may take
# DefaultTimeoutStartSec (90 s); `tailscale`, `jq` and `systemd-notify` come from PATH, and the shell
# is strict.
set -euo pipefail

key_file=$1
shift

backend_state() { tailscale status --json --peers=false | jq -r .BackendState; }

last=
while state=$(backend_state); do
    if [[ $state != "$last" ]]; then
        case $state in
            NeedsLogin | NeedsMachineAuth | Stopped)
                echo "Sending the auth key"
                tailscale up --auth-key "$(cat "$key_file")" "$@"
                ;;
            Running)
                echo "Tailscale is running"
                systemd-notify --ready
                exit 0
                ;;
            *)
                echo "Waiting for Running, or for systemd's time limit"
                ;;
        esac
        echo "State: $state"
    fi
    last=$state
    sleep 0.5
done
