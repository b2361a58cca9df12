{
  description = "Joins a Linux machine to its tailnet at boot, with an auth key from a file";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # For the test in a VM alone, and only their files.
    agenix = {
      url = "github:ryantm/agenix";
      flake = false;
    };
    sops-nix = {
      url = "github:Mic92/sops-nix";
      flake = false;
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      agenix,
      sops-nix,
    }:
    let
      eachSystem =
        outputs:
        nixpkgs.lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: outputs nixpkgs.legacyPackages.${system} self.packages.${system});
    in
    {
      nixosModules = {
        default.imports = [ ./nix/module.nix ];
        tailscale-autoconnect = self.nixosModules.default;
      };

      overlays.default = final: _prev: {
        tailscale-autoconnect = final.callPackage ./nix/package.nix { };
      };

      packages = eachSystem (
        pkgs: _: {
          default = pkgs.callPackage ./nix/package.nix { };
        }
      );

      checks = eachSystem (
        pkgs: packages: {
          package = packages.default;
          vm = pkgs.testers.runNixOSTest (
            import ./tests/nix/vm.nix {
              inherit agenix sops-nix;
              package = packages.default;
            }
          );
          module = import ./tests/nix/check.nix { inherit pkgs; };
        }
      );

      formatter = eachSystem (pkgs: _: pkgs.nixfmt-tree);

      devShells = eachSystem (
        pkgs: packages: {
          default = pkgs.mkShell {
            inputsFrom = [ packages.default ];
            packages = with pkgs; [
              age
              clippy
              deadnix
              go
              nixfmt
              rustfmt
              shellcheck
            ];
          };
        }
      );
    };
}
