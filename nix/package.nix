# The package, in the conventions of nixpkgs.
{
  lib,
  rustPlatform,
  installShellFiles,
  makeBinaryWrapper,
  versionCheckHook,
  tailscale,
  testers,
}:

let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage (finalAttrs: {
  pname = manifest.name;
  inherit (manifest) version;

  src = lib.fileset.toSource {
    root = ../.;
    # Cargo wants to see the tests, which the manifest names; they compare the documents with the
    # program.
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../CONTRIBUTING.md
      ../README.md
      ../SECURITY.md
      ../src
      ../tests
      ../units
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [
    installShellFiles
    makeBinaryWrapper
  ];

  # Those that need neither daemons nor containers.
  cargoTestFlags = [
    "--bins"
    "--test=command_line"
  ];

  # The tailscale in PATH comes first: the one that the running tailscaled belongs to.
  postInstall = ''
    install -Dm444 units/tailscale-autoconnect.service -t $out/lib/systemd/system
    substituteInPlace $out/lib/systemd/system/tailscale-autoconnect.service \
      --replace-fail /usr/bin/tailscale-autoconnect $out/bin/tailscale-autoconnect
    installManPage units/tailscale-autoconnect.8
    installShellCompletion --cmd tailscale-autoconnect \
      --bash units/completions/tailscale-autoconnect.bash \
      --fish units/completions/tailscale-autoconnect.fish \
      --zsh units/completions/_tailscale-autoconnect
    wrapProgram $out/bin/tailscale-autoconnect --suffix PATH : ${lib.makeBinPath [ tailscale ]}
  '';

  doInstallCheck = true;
  nativeInstallCheckInputs = [ versionCheckHook ];

  passthru.tests.version = testers.testVersion { package = finalAttrs.finalPackage; };

  meta = {
    inherit (manifest) description;
    homepage = manifest.repository;
    changelog = "${manifest.repository}/blob/v${manifest.version}/CHANGELOG.md";
    license = with lib.licenses; [
      mit
      asl20
    ];
    # A placeholder: nixpkgs wants one of lib.maintainers.
    maintainers = [ ];
    mainProgram = manifest.name;
    platforms = lib.platforms.linux;
  };
})
