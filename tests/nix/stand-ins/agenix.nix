# What the module sees of agenix, and what agenix does when the machine boots or is switched. With
# AGENIX_MODULE the tests run on the real one.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;
  cfg = config.age;
  byService = config.services.userborn.enable;

  decrypt = secret: ''
    (
      umask 0377
      ${cfg.ageBin} --decrypt --identity /etc/ssh/ssh_host_ed25519_key --output "$new/${secret.name}" ${secret.file}
    )
  '';

  # All secrets into a new generation, to which the link is then swapped.
  install = ''
    old=$(basename "$(readlink /run/agenix || echo 0)")
    new=/run/agenix.d/$((old + 1))
    mkdir -p /run/agenix.d
    grep -q '/run/agenix.d ramfs' /proc/mounts ||
      mount -t ramfs -o nodev,nosuid,mode=0751 none /run/agenix.d
    mkdir -m 0751 "$new"
    ${lib.concatMapStringsSep "\n" decrypt (builtins.attrValues cfg.secrets)}
    ln -sfT "$new" /run/agenix
    rm -rf "/run/agenix.d/$old"
  '';
in
{
  options.age = {
    ageBin = mkOption {
      type = types.str;
      default = "${pkgs.age}/bin/age";
    };
    secrets = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      apply = builtins.mapAttrs (
        name: secret:
        {
          inherit name;
          path = "/run/agenix/${name}";
        }
        // secret
      );
    };
  };

  config = mkIf (cfg.secrets != { }) {
    systemd.services = mkIf byService {
      agenix-install-secrets = {
        wantedBy = [ "sysinit.target" ];
        unitConfig.DefaultDependencies = "no";
        serviceConfig = {
          Type = "oneshot";
          ExecStart = pkgs.writeShellScript "agenix-install" install;
          RemainAfterExit = true;
        };
      };
    };
    system.activationScripts = mkIf (!byService) { agenixInstall.text = install; };
  };
}
