#!/usr/bin/env bash
# The script that went from blog to blog, in our own words: what most people have in a oneshot unit.
#
#   seed.sh KEY_FILE [FLAGS FOR `tailscale up`]
#
# As in the original, the unit is Type=oneshot without Restart=, and without a time limit for its
# start; `tailscale` and `jq` come from PATH. Two things differ: the flags at the end, which tests
# need to name a login server, and that KEY_FILE is an argument.
set -eu

key_file=$1
shift

# "Wait for tailscaled to settle."
sleep 2

state=$(tailscale status -json | jq -r .BackendState)
if [ "$state" = Running ]; then
    exit 0
fi

tailscale up -authkey "$(cat "$key_file")" "$@"
