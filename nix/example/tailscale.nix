# A host on its tailnet. Import it beside the modules of agenix and of tailscale-autoconnect.
{
  # `agenix -e tailscale-token.age` makes it. Owner root and mode 0400 are agenix' own defaults.
  age.secrets.tailscale-token.file = ./tailscale-token.age;

  # agenix decrypts with the host key of sshd.
  services.openssh.enable = true;

  services.tailscale-autoconnect = {
    # Also enables services.tailscale and the `tailscale` command, and makes the reverse path filter loose.
    #
    # Nothing more is needed. multi-user.target wants the unit, which comes after tailscaled.service (there
    # is no tailscale.service) and after the service of agenix, if there is one (run-agenix.d.mount says
    # nothing of the secret). The unit waits for tailscaled and for the secret, without `sleep`. It logs in
    # only if the machine is not connected, with a key that no command line shows.
    enable = true;
    # The firewall accepts everything that comes over the tailnet.
    trustInterface = true;
  };

  # For direct connections from outside: opens the port of tailscaled.
  services.tailscale.openFirewall = true;
}
