# What the module sees of other programs for secrets and for machines: only their names and paths.
{ config, lib, ... }:

let
  inherit (lib) mkOption types;
  anything = apply: {
    type = types.attrsOf types.anything;
    default = { };
    inherit apply;
  };
  paths = folder: builtins.mapAttrs (name: secret: { path = "${folder}/${name}"; } // secret);
  as = apply: mkOption (anything apply);
in
{
  options = {
    boot.kernel.sysctl = as (v: v);
    clan.core.vars.generators = as (
      builtins.mapAttrs (
        name: generator: generator // { files = paths "/run/secrets/vars/${name}" generator.files; }
      )
    );
    environment.persistence = as (v: v);
    microvm = as (v: v);
    services.prometheus = as (v: v);
    services.onepassword-secrets = {
      secrets = as (paths "/var/lib/opnix/secrets");
      secretPaths = mkOption {
        type = types.attrsOf types.str;
        default = builtins.mapAttrs (_: secret: secret.path) config.services.onepassword-secrets.secrets;
      };
    };
    vaultix.secrets = as (paths "/run/vaultix");
  };
}
