# What the module sees of sops-nix.
{ lib, ... }:

{
  options.sops.secrets = lib.mkOption {
    type = lib.types.attrsOf lib.types.anything;
    default = { };
    apply = builtins.mapAttrs (name: secret: { path = "/run/secrets/${name}"; } // secret);
  };
}
