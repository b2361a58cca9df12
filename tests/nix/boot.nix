# What of NixOS a machine of the boot tests needs to boot as the host of a flake: its units, and what agenix
# does. The programs are in /usr, and the secret is /etc/tailscale-token.age.
{
  flake,
  lib ? import ./stand-ins/lib.nix,
  agenix ? ./stand-ins/agenix.nix,
  age ? "/usr/bin/age",
  userborn ? false,
  loginServer,
}:

let
  inherit (import ./evaluate.nix { inherit lib; }) host systemd;

  usr = name: {
    type = "derivation";
    outPath = "/usr";
    inherit name;
    meta.mainProgram = name;
  };

  config = host flake agenix [
    {
      age = {
        ageBin = age;
        secrets.tailscale-token.file = lib.mkForce "/etc/tailscale-token.age";
      };
      services = {
        userborn.enable = userborn;
        tailscale = {
          package = usr "tailscale";
          extraSetFlags = [ "--accept-routes" ];
        };
        tailscale-autoconnect = {
          inherit loginServer;
          package = usr "tailscale-autoconnect";
          extraUpFlags = [ "--hostname=nixos" ];
        };
      };
    }
  ];

  inherit (config.systemd) services;
  override = systemd.override "tailscale-autoconnect" services.tailscale-autoconnect;
  installs = services.agenix-install-secrets;
  scripts = config.system.activationScripts;
in
# Files, and links with their targets, in /etc/systemd/system.
{
  files = {
    "tailscale-autoconnect.service" = builtins.readFile ../../units/tailscale-autoconnect.service;
    "tailscale-autoconnect.service.d/overrides.conf" = override.text;
    "tailscaled-set.service" = systemd.oneshot services.tailscaled-set;
  }
  // lib.optionalAttrs userborn {
    "agenix-install-secrets.service" = ''
      [Unit]
      DefaultDependencies=${installs.unitConfig.DefaultDependencies}
      [Service]
      Type=${installs.serviceConfig.Type}
      RemainAfterExit=yes
      ExecStart=/usr/local/sbin/agenix-install
    '';
  };
  links =
    lib.genAttrs (override.wantedBy ++ override.aliases) (
      _: "/etc/systemd/system/tailscale-autoconnect.service"
    )
    // lib.genAttrs (map (
      unit: "${unit}.wants/tailscaled-set.service"
    ) services.tailscaled-set.wantedBy) (_: "/etc/systemd/system/tailscaled-set.service")
    // lib.optionalAttrs userborn (
      lib.genAttrs (map (unit: "${unit}.wants/agenix-install-secrets.service") installs.wantedBy) (
        _: "/etc/systemd/system/agenix-install-secrets.service"
      )
    );
  # By an activation script, or by the service.
  installSecrets =
    if userborn then
      installs.serviceConfig.ExecStart.text
    else
      lib.concatMapStringsSep "\n" (name: scripts.${name}.text or "") [
        "agenixNewGeneration"
        "agenixInstall"
        "agenixChown"
      ];
}
