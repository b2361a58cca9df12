# A host on its tailnet. Import it beside the modules of agenix and of tailscale-autoconnect.
{
  # `agenix -e tailscale-token.age` makes it. Owner root and mode 0400 are agenix' own defaults.
  age.secrets.tailscale-token.file = ./tailscale-token.age;

  # agenix decrypts with the host key of sshd.
  services.openssh.enable = true;

  services.tailscale-autoconnect = {
    # Enables services.tailscale, puts `tailscale` on the path and makes the reverse path filter loose.
    #
    # Nothing more has to be said: the unit is a part of it, wanted by multi-user.target and ordered
    # after tailscaled.service (there is no tailscale.service) and after the service of agenix, if it
    # has one (run-agenix.d.mount says nothing of the secret). It waits for tailscaled to settle and
    # for the secret, without `sleep`, is done if the machine is connected, and else logs in with a
    # key that no command line shows.
    enable = true;
    # Lets in all that comes over the tailnet.
    trustInterface = true;
  };

  # For direct connections from outside: opens the port of tailscaled.
  services.tailscale.openFirewall = true;
}
