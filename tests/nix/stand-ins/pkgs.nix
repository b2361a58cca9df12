# A stand-in for the packages of nixpkgs: derivations that build nothing.
{
  lib,
  system ? "x86_64-linux",
}:

let
  nothing =
    name: attributes:
    derivation {
      inherit name system;
      builder = "/bin/sh";
      args = [
        "-c"
        "echo > $out"
      ];
    }
    // {
      meta.mainProgram = name;
    }
    // attributes;

  callPackage =
    file: given:
    let
      package = import file;
    in
    package (builtins.intersectAttrs (builtins.functionArgs package) pkgs // given);

  pkgs =
    lib.genAttrs [
      "age"
      "clippy"
      "coreutils"
      "deadnix"
      "findutils"
      "getent"
      "gnugrep"
      "gnused"
      "go"
      "installShellFiles"
      "makeBinaryWrapper"
      "mount"
      "nixfmt"
      "nixfmt-tree"
      "rustfmt"
      "shellcheck"
      "systemd"
      "tailscale"
      "versionCheckHook"
    ] (name: nothing name { })
    // {
      inherit callPackage lib;
      mkShell = nothing "shell";
      stdenv = rec {
        buildPlatform.canExecute = platform: platform == hostPlatform;
        hostPlatform = { inherit system; };
      };
      runCommand =
        name: _: script:
        nothing name { inherit script; };
      writeShellScript = name: text: nothing name { inherit text; };
      testers = {
        testVersion = { package }: nothing "${package.pname}-version" { };
        runNixOSTest = test: nothing "vm-test-run-${test.name}" { inherit test; };
      };
      # A package is made of what it says, and of what it says about itself.
      rustPlatform.buildRustPackage =
        what:
        let
          said = what { finalPackage = package; };
          package = nothing "${said.pname}-${said.version}" (said // said.passthru);
        in
        package;
    };
in
pkgs
