# services.tailscale of nixpkgs, as far as the module has to do with it: its options, and the units
# that join the tailnet and set preferences.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;
  option = type: default: mkOption { inherit type default; };
  strings = option (types.listOf types.str) [ ];
  cfg = config.services.tailscale;
in
{
  # A definition is told by its file.
  _file = "/nixpkgs/nixos/modules/services/networking/tailscale.nix";

  options.services.tailscale = {
    enable = option types.bool false;
    package = mkOption {
      type = types.package;
      default = pkgs.tailscale;
    };
    interfaceName = option types.str "tailscale0";
    authKeyFile = option (types.nullOr types.anything) null;
    authKeyParameters = option (types.attrsOf types.anything) { };
    extraUpFlags = strings;
    extraSetFlags = strings;
    extraDaemonFlags = strings;
    openFirewall = option types.bool false;
    permitCertUid = option (types.nullOr types.str) null;
    useRoutingFeatures = option types.str "none";
  };

  config = mkIf cfg.enable {
    networking.firewall.checkReversePath = mkIf (
      cfg.useRoutingFeatures == "client" || cfg.useRoutingFeatures == "both"
    ) "loose";

    systemd.services = {
      tailscaled.wantedBy = [ "multi-user.target" ];
      tailscaled-autoconnect = mkIf (cfg.authKeyFile != null) {
        after = [ "tailscaled.service" ];
        wants = [ "tailscaled.service" ];
        wantedBy = [ "multi-user.target" ];
        serviceConfig.Type = "notify";
        script = "tailscale up --auth-key …";
      };
      tailscaled-set = mkIf (cfg.extraSetFlags != [ ]) {
        after = [
          "tailscaled.service"
          "tailscaled-autoconnect.service"
        ];
        wants = [ "tailscaled.service" ];
        wantedBy = [ "multi-user.target" ];
        serviceConfig.Type = "oneshot";
        script = "${cfg.package}/bin/tailscale set ${lib.escapeShellArgs cfg.extraSetFlags}";
      };
    };
  };
}
