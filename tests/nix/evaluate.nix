# Evaluates the module in machines that are made of stand-ins.
{ lib }:

let
  pkgs = import ./stand-ins/pkgs.nix { inherit lib; };
  systemd = import ./stand-ins/systemd.nix { inherit lib pkgs; };

  nixos =
    modules:
    lib.evalModules {
      modules = [ ./stand-ins/nixos.nix ] ++ modules;
      specialArgs = {
        inherit pkgs;
        inherit (systemd) utils;
      };
    };

  # A machine that enables the module, with these modules besides.
  evaluated =
    modules:
    nixos (
      [
        ../../nix/module.nix
        { services.tailscale-autoconnect.enable = true; }
      ]
      ++ modules
    );
in
{
  inherit pkgs systemd;
  inherit (evaluated [ ]) options;

  package = pkgs.callPackage ../../nix/package.nix { };
  machine = modules: (evaluated modules).config;

  # The host of a flake, with these modules besides.
  host =
    flake: agenix: modules:
    let
      system = (import flake).outputs {
        nixpkgs.lib.nixosSystem = system: system;
        agenix.nixosModules.default = agenix;
        tailscale-autoconnect.nixosModules.default = ../../nix/module.nix;
      };
    in
    (nixos (system.nixosConfigurations.host.modules ++ modules)).config;
}
