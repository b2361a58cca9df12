complete -c tailscale-autoconnect -l authkey-file -d 'File with the auth key or OAuth client secret' -r -F
complete -c tailscale-autoconnect -l authkey-wait -d 'How long to wait for that file' -r -f
complete -c tailscale-autoconnect -l authkey-params -d 'ephemeral=…&preauthorized=… for an OAuth secret' -r -f
complete -c tailscale-autoconnect -l login-server -d 'Control server, if it is not Tailscale\'s' -r -f
complete -c tailscale-autoconnect -l socket -d 'Socket of tailscaled' -r -F
complete -c tailscale-autoconnect -l tailscale -d 'The tailscale command' -r -F
complete -c tailscale-autoconnect -l timeout -d 'Give up after this time [default: never]' -r -f
complete -c tailscale-autoconnect -l ready-after -d 'Tell systemd READY by then' -r -f
complete -c tailscale-autoconnect -l authkey-optional -d 'Without that file, end with 0 and do nothing'
complete -c tailscale-autoconnect -l stay -d 'Stay when connected, and renew the node key in time'
complete -c tailscale-autoconnect -l rejoin -d 'With --stay: join again when deleted'
complete -c tailscale-autoconnect -l check -d 'Say what is wrong, and change nothing'
complete -c tailscale-autoconnect -l metrics -d 'With --check: print metrics for Prometheus'
complete -c tailscale-autoconnect -l json -d 'Print the result as one JSON object'
complete -c tailscale-autoconnect -s v -l verbose -d 'Say more (-vv: all)'
complete -c tailscale-autoconnect -s q -l quiet -d 'Say warnings and errors only'
complete -c tailscale-autoconnect -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tailscale-autoconnect -s V -l version -d 'Print version'
