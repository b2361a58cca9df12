{
  description = "A stand-in for the flake of nixpkgs";

  outputs = _: {
    lib = import ./lib.nix;
    legacyPackages = builtins.listToAttrs (
      map
        (system: {
          name = system;
          value = import ./pkgs.nix {
            lib = import ./lib.nix;
            inherit system;
          };
        })
        [
          "x86_64-linux"
          "aarch64-linux"
        ]
    );
  };
}
