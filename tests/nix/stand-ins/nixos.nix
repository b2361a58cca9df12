# The options of NixOS that the module and the modules of secrets touch.
{ lib, pkgs, ... }:

let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  anything = option (types.attrsOf types.anything) { };
  strings = option (types.listOf types.str) [ ];
  no = option types.bool false;
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = strings;
    environment.systemPackages = option (types.listOf types.package) [ ];
    networking.firewall = {
      allowedUDPPorts = option (types.listOf types.anything) [ ];
      # NixOS' own default.
      checkReversePath = option types.anything true;
      trustedInterfaces = strings;
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
      tailscale = {
        enable = no;
        package = mkOption {
          type = types.package;
          default = pkgs.tailscale;
        };
        interfaceName = option types.str "tailscale0";
        authKeyFile = option (types.nullOr types.str) null;
        authKeyParameters = anything;
        extraUpFlags = strings;
        openFirewall = no;
      };
      userborn.enable = no;
    };
    system.activationScripts = anything;
    systemd = {
      packages = option (types.listOf types.package) [ ];
      services = anything;
      sysusers.enable = no;
    };
    users.users = anything;
  };
}
