# What NixOS makes of a service that a package ships and the configuration overrides.
{ lib, pkgs }:

let
  inherit (lib) concatStringsSep optionals;

  each = name: values: map (value: "${name}=${value}") values;
  joined = name: values: optionals (values != [ ]) [ "${name}=${concatStringsSep " " values}" ];

  # A path as a trigger stands for what is in it.
  trigger = value: if builtins.isPath value then "${value}" else value;

  # NixOS adds these to the path of every service.
  always = with pkgs; [
    coreutils
    findutils
    gnugrep
    gnused
    systemd
  ];
  path =
    packages: concatStringsSep ":" (map (p: "${p}/bin") packages ++ map (p: "${p}/sbin") packages);
in
{
  # What `utils` is to a module of NixOS: quotes words for ExecStart=.
  utils.escapeSystemdExecArgs =
    words:
    concatStringsSep " " (
      map (word: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON word)) words
    );

  # The drop-in `overrides.conf`, and the links that enable the service and give it other names.
  override = name: service: rec {
    lines = [
      "[Unit]"
    ]
    ++ joined "After" (service.after or [ ])
    ++ joined "X-Restart-Triggers" (map trigger (service.restartTriggers or [ ]))
    ++ [
      "[Service]"
      "Environment=\"PATH=${path ((service.path or [ ]) ++ always)}\""
    ]
    ++ each "ExecStart" service.serviceConfig.ExecStart;
    text = concatStringsSep "\n" lines;
    wantedBy = map (unit: "${unit}.wants/${name}.service") service.wantedBy;
    inherit (service) aliases;
  };
}
