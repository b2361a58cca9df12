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

  # A oneshot of NixOS' own.
  oneshot =
    service:
    concatStringsSep "\n" (
      [ "[Unit]" ]
      ++ joined "After" service.after
      ++ joined "Before" service.before
      ++ joined "Conflicts" service.conflicts
      ++ joined "Requires" service.requires
      ++ joined "Wants" service.wants
      ++ lib.mapAttrsToList (
        name: value: "${name}=${if lib.isBool value then lib.boolToString value else value}"
      ) (service.unitConfig or { })
      ++ [
        "[Service]"
        "Type=oneshot"
        "ExecStart=/bin/sh -c ${builtins.toJSON service.script}"
        ""
      ]
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
