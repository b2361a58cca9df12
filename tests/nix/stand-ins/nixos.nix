# The options of NixOS that the module and the modules of secrets touch, and what services.tailscale
# makes of its own.
{ lib, ... }:

let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  anything = option (types.attrsOf types.anything) { };
  strings = option (types.listOf types.str) [ ];
  no = option types.bool false;

  # Lists are joined, as they are in a section of a unit.
  section = option (types.attrsOf (types.either (types.listOf types.str) types.anything)) { };
  service = types.submodule {
    freeformType = types.attrsOf types.anything;
    options = {
      enable = option types.bool true;
      after = strings;
      aliases = strings;
      before = strings;
      conflicts = strings;
      environment = anything;
      path = option (types.listOf types.package) [ ];
      requires = strings;
      restartTriggers = option (types.listOf types.anything) [ ];
      serviceConfig = section;
      unitConfig = section;
      wantedBy = strings;
      wants = strings;
    };
  };
in
{
  imports = [ ./tailscale.nix ];

  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = strings;
    environment = {
      etc = anything;
      systemPackages = option (types.listOf types.package) [ ];
    };
    networking = {
      hostName = option types.str "nixos";
      firewall = {
        allowedUDPPorts = option (types.listOf types.anything) [ ];
        # NixOS' own default.
        checkReversePath = option types.anything true;
        trustedInterfaces = strings;
      };
    };
    services = {
      openssh = {
        enable = no;
        hostKeys = option (types.listOf types.anything) [
          {
            type = "ed25519";
            path = "/etc/ssh/ssh_host_ed25519_key";
          }
        ];
      };
      userborn.enable = no;
    };
    system.activationScripts = anything;
    systemd = {
      packages = option (types.listOf types.package) [ ];
      services = option (types.attrsOf service) { };
      sysusers.enable = no;
      timers = anything;
    };
    users.users = anything;
  };
}
