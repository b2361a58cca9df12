# Evaluates the module in machines that are made of stand-ins.
{ lib }:

let
  pkgs = import ./stand-ins/pkgs.nix { inherit lib; };
  systemd = import ./stand-ins/systemd.nix { inherit lib pkgs; };

  # A machine that enables the module, with these modules besides.
  evaluated =
    modules:
    lib.evalModules {
      modules = [
        ./stand-ins/nixos.nix
        ../../nix/module.nix
        { services.tailscale-autoconnect.enable = true; }
      ]
      ++ modules;
      specialArgs = {
        inherit pkgs;
        inherit (systemd) utils;
      };
    };
in
{
  inherit pkgs systemd;
  inherit (evaluated [ ]) options;

  package = pkgs.callPackage ../../nix/package.nix { };
  machine = modules: (evaluated modules).config;
}
