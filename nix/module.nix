# services.tailscale-autoconnect: joins the machine to its tailnet at boot, with an auth key from a
# file such as agenix or sops-nix decrypts. It takes the place of services.tailscale.authKeyFile. The
# unit is that of the package, with its ordering and its sandbox; what is NixOS' own is added here.
{
  config,
  lib,
  options,
  pkgs,
  utils,
  ...
}:

let
  inherit (lib)
    any
    attrValues
    boolToString
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    escapeShellArg
    escapeShellArgs
    filter
    filterAttrs
    getExe
    hasPrefix
    hasSuffix
    head
    isAttrs
    isBool
    isString
    literalExpression
    mapAttrsToList
    mkEnableOption
    mkForce
    mkIf
    mkMerge
    mkOption
    mkOverride
    optional
    optionals
    setAttrByPath
    stringLength
    tail
    types
    ;

  cfg = config.services.tailscale-autoconnect;
  inherit (config.services) tailscale;

  # ---- the auth key

  # The secrets of agenix and of sops-nix. Neither has to be there.
  ageSecrets = if options ? age then config.age.secrets else { };
  sopsSecrets = if options ? sops then config.sops.secrets else { };
  secret = ageSecrets.${cfg.authKeySecret} or sopsSecrets.${cfg.authKeySecret} or { };
  usualSecret = "tailscale-token";

  # The encrypted files that the auth key comes from.
  behindKey = filter (secret: secret.path == cfg.authKeyFile);
  encrypted =
    map (secret: secret.file) (behindKey (attrValues ageSecrets))
    ++ map (secret: secret.sopsFile) (behindKey (attrValues sopsSecrets));

  # ---- flags for `tailscale up`

  # `--name`, `-name` and `--name=value` are the flag `name`.
  flagName =
    word:
    let
      found = builtins.match "--?([^=]+)(=.*)?" word;
    in
    if found == null then "" else elemAt found 0;

  # The program refuses these; said here, a rebuild fails instead of a boot.
  refusedFlags = {
    auth-key = "the key comes from authKeyFile";
    authkey = "the key comes from authKeyFile";
    force-reauth = "it would spend the auth key on a node that is logged in";
    json = "the output is not for a program";
    reset = "it would lose the node's settings; give the flags that you want changed";
    timeout = "use services.tailscale-autoconnect.timeout";
  };
  refusedIn = words: filter (name: refusedFlags ? ${name}) (map flagName words);

  # Without those flags, and without their values in words of their own.
  accepted =
    words:
    if words == [ ] then
      [ ]
    else if !refusedFlags ? ${flagName (head words)} then
      [ (head words) ] ++ accepted (tail words)
    else if
      tail words != [ ] && builtins.match ".*=.*" (head words) == null && flagName (elemAt words 1) == ""
    then
      accepted (tail (tail words))
    else
      accepted (tail words);

  upFlags = accepted tailscale.extraUpFlags ++ cfg.extraUpFlags;
  # More than one word in an item: white space in a flag's name, or a flag after white space.
  isSeveral = word: builtins.match "-[^=[:space:]]*[[:space:]].*|.*[[:space:]]-.*" word != null;
  # Not its value, which may be a key.
  firstWord = word: head (builtins.match "([^=[:space:]]*).*" word);

  # ---- the command line

  parameters = concatStringsSep "&" (
    mapAttrsToList (name: value: "${name}=${if isBool value then boolToString value else value}") (
      filterAttrs (_: value: value != null) cfg.authKeyParameters
    )
  );

  # With more options of the program's.
  command =
    more:
    [
      (getExe cfg.package)
      "--authkey-file"
      cfg.authKeyFile
    ]
    ++ optional cfg.authKeyOptional "--authkey-optional"
    ++ option "--authkey-params" parameters
    ++ option "--login-server" cfg.loginServer
    ++ option "--ready-after" cfg.readyAfter
    ++ option "--timeout" cfg.timeout
    ++ optional cfg.rejoin "--rejoin"
    ++ more
    ++ optionals (upFlags != [ ]) ([ "--" ] ++ upFlags);

  option =
    name: value:
    optionals (value != null && value != "") [
      name
      (toString value)
    ];

  duration = types.nullOr (
    types.either types.ints.unsigned (
      types.strMatching "infinity|[0-9]+|([0-9]+ ?(ms|s|sec|m|min|h|d|w) ?)+"
      // {
        description = "time such as 90s, 5min, 1h 30min or infinity";
      }
    )
  );

  # ---- what other files set on units

  here = toString ./module.nix;

  # A value without mkIf, mkMerge and mkForce around it: none, one or several.
  unwrap =
    value:
    if !isAttrs value || !value ? _type then
      [ value ]
    else if value._type == "if" then
      optionals value.condition (unwrap value.content)
    else if value._type == "merge" then
      concatMap unwrap value.contents
    else
      concatMap unwrap (optional (value ? content) value.content);

  # [ { file, settings = [ { path, name, value } … ] } … ]
  othersOn =
    unit:
    map (definition: {
      inherit (definition) file;
      settings = settingsIn [ ] (definition.value.${unit} or { });
    }) (filter (definition: definition.file != here) options.systemd.services.definitionsWithLocations);
  settingsIn =
    parent: value:
    concatMap (
      set:
      concatLists (
        mapAttrsToList (
          key: value:
          let
            path = parent ++ [ key ];
          in
          if key == "serviceConfig" || key == "unitConfig" then
            settingsIn path value
          else
            [
              {
                inherit path value;
                name = concatStringsSep "." path;
              }
            ]
        ) set
      )
    ) (filter isAttrs (unwrap value));
  named = settings: concatStringsSep ", " (map (setting: setting.name) settings);
  # Those definitions that have such settings, and only these of them.
  having =
    condition: definitions:
    filter (definition: definition.settings != [ ]) (
      map (definition: definition // { settings = filter condition definition.settings; }) definitions
    );

  # services.tailscale.authKeyFile makes this unit, which gives way to ours. What means the same on any
  # unit moves to ours. The rest is lost.
  replaced = filter (definition: !hasSuffix "/services/networking/tailscale.nix" definition.file) (
    othersOn "tailscaled-autoconnect"
  );
  moves =
    setting:
    builtins.match "after|before|bindsTo|conflicts|partOf|requiredBy|requires|requisite|wantedBy|wants|unitConfig\\.(Assert|Condition|Requires).*|serviceConfig\\.Bind.*" setting.name
    != null;
  moved = concatMap (definition: definition.settings) (having moves replaced);
  lost = having (setting: !moves setting) replaced;

  # A service of somebody's own under the name of ours, such as the script that ours replaces.
  isOwnCommand =
    setting:
    elem setting.name [
      "script"
      "serviceConfig.Type"
    ]
    # With mkForce, it takes the place of our command.
    || setting.name == "serviceConfig.ExecStart" && setting.value._type or "" != "override";
  merged = having isOwnCommand (othersOn "tailscale-autoconnect");

  # ---- the firewall

  # No rule may have a longer name; `userspace-networking` is none of an interface.
  isInterface = stringLength tailscale.interfaceName <= 15;
in
{
  _class = "nixos";
  _file = here;

  options.services.tailscale-autoconnect = {
    enable = mkEnableOption ''
      tailscale-autoconnect, which joins this machine to its tailnet at boot. It also enables
      {option}`services.tailscale`, and takes the place of {option}`services.tailscale.authKeyFile`.

      A service that needs the tailnet sets `wants` and `after` to
      `[ "tailscale-autoconnect.service" ]`. The service then starts when the machine
      is connected and its addresses can be used, or after
      {option}`services.tailscale-autoconnect.readyAfter`
    '';

    package = mkOption {
      type = types.package;
      default = pkgs.tailscale-autoconnect or (pkgs.callPackage ./package.nix { });
      defaultText = literalExpression "pkgs.tailscale-autoconnect";
      description = "The tailscale-autoconnect package to use.";
    };

    authKeySecret = mkOption {
      type = types.str;
      default = usualSecret;
      example = "tailscale-authkey";
      description = ''
        Name of the secret in {option}`age.secrets` (agenix) or {option}`sops.secrets` (sops-nix) that
        holds the auth key or OAuth client secret.
      '';
    };

    authKeyFile = mkOption {
      type = types.nullOr (
        types.externalPath
        // {
          description = "absolute path, given as a string, of a file outside the Nix store, where every user could read it";
        }
      );
      default = secret.path or (if cfg.authKeySecret == usualSecret then tailscale.authKeyFile else null);
      defaultText = literalExpression "the path of authKeySecret in age.secrets or sops.secrets, or config.services.tailscale.authKeyFile";
      example = "/run/secrets/tailscale";
      description = ''
        File with the auth key or OAuth client secret. The service reads it only when the machine has
        to log in. If the file does not exist yet, the service waits for it.
      '';
    };

    authKeyOptional = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the machine may be without an auth key, as in an image for many machines. If it has to
        log in and the file does not exist, the service ends with success. A file that comes later is
        used by the next start.
      '';
    };

    authKeyParameters = {
      ephemeral = mkOption {
        type = types.nullOr types.bool;
        default = tailscale.authKeyParameters.ephemeral or null;
        defaultText = literalExpression "config.services.tailscale.authKeyParameters.ephemeral";
        description = "Whether the node is ephemeral. Only for an OAuth client secret.";
      };
      preauthorized = mkOption {
        type = types.nullOr types.bool;
        default = tailscale.authKeyParameters.preauthorized or null;
        defaultText = literalExpression "config.services.tailscale.authKeyParameters.preauthorized";
        description = "Whether the device is approved in advance. Only for an OAuth client secret.";
      };
      baseURL = mkOption {
        type = types.nullOr types.str;
        default = tailscale.authKeyParameters.baseURL or null;
        defaultText = literalExpression "config.services.tailscale.authKeyParameters.baseURL";
        description = "Base URL of the Tailscale API. Only for an OAuth client secret.";
      };
    };

    loginServer = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://headscale.example.com";
      description = "URL of the control server, if it is not Tailscale's.";
    };

    extraUpFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "--ssh"
        "--advertise-tags=tag:server"
      ];
      description = ''
        Flags for {command}`tailscale up` when the machine logs in. They come after those of
        {option}`services.tailscale.extraUpFlags`. If a flag is given twice, the last one counts.

        A machine that has joined does not log in again when these flags change. To change its
        settings, use {option}`services.tailscale.extraSetFlags`.
      '';
    };

    readyAfter = mkOption {
      type = duration;
      default = null;
      example = "infinity";
      description = ''
        The longest time that services ordered after this one wait for the connection (`15s` if null).
        This service keeps trying after that. With `infinity`, they wait until the
        machine is connected, and so does a target that wants them, such as `multi-user.target`.
      '';
    };

    timeout = mkOption {
      type = duration;
      default = null;
      example = "10min";
      description = ''
        When to give up, so that systemd tries again later. With null, the service keeps trying.
      '';
    };

    stay = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether the service stays when the machine is connected, and renews its node key in time.
        Otherwise it ends when the machine is connected, and runs again when tailscaled is started or
        restarted.
      '';
    };

    rejoin = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether a machine joins again after it was deleted, as ephemeral machines are. Only for a
        service that stays.
      '';
    };

    metricsFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/var/lib/node-exporter/tailscale-autoconnect.prom";
      description = ''
        File for the textfile collector of the Prometheus node exporter. The module writes it every
        five minutes. Give its directory to the collector.
      '';
    };

    trustInterface = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the firewall accepts everything that comes over the tailnet. Every service of this
        machine is then open to every device that the access rules of the tailnet allow, including
        devices of other people.
      '';
    };

    looseReversePath = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether the reverse path filter of the firewall is `"loose"`, unless it is set elsewhere. Exit
        nodes and subnet routes need that.
      '';
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = tailscale.enable;
        message = ''
          services.tailscale-autoconnect needs tailscaled, and services.tailscale.enable is forced to be false. Remove that, or disable services.tailscale-autoconnect.
        '';
      }
      {
        assertion = cfg.authKeyFile != null;
        message = ''
          services.tailscale-autoconnect has no auth key. Declare the secret ${cfg.authKeySecret} with agenix (age.secrets.${cfg.authKeySecret}.file) or sops-nix, name another one in services.tailscale-autoconnect.authKeySecret, or give the path of a file in services.tailscale-autoconnect.authKeyFile.
        '';
      }
      {
        assertion = cfg.loginServer == null || !any (word: flagName word == "login-server") upFlags;
        message = ''
          The control server is given twice: by services.tailscale-autoconnect.loginServer and by --login-server in the flags for `tailscale up`. Give it once.
        '';
      }
      {
        assertion = !elem "" upFlags;
        message = ''
          The flags for `tailscale up` have an empty item. Leave it out; an empty value is written --flag=.
        '';
      }
    ]
    ++ map (word: {
      assertion = false;
      message = ''
        The flags for `tailscale up` have an item of several words, which begins with ${firstWord word}. Write a flag and its value as --flag=value, and each flag as an item of its own.
      '';
    }) (filter isSeveral upFlags)
    ++ map (name: {
      assertion = false;
      message = ''
        services.tailscale-autoconnect.extraUpFlags may not contain --${name}: ${refusedFlags.${name}}.
      '';
    }) (refusedIn cfg.extraUpFlags)
    ++ map (
      { file, settings }:
      {
        assertion = false;
        message = ''
          ${file} defines a service of its own as systemd.services.tailscale-autoconnect (${named settings}). Remove it there: services.tailscale-autoconnect does its work. Move the flags of its `tailscale up` to services.tailscale-autoconnect.extraUpFlags, except for the auth key.
        '';
      }
    ) merged;

    warnings =
      concatMap (
        { file, value, ... }:
        map (name: ''
          ${file} sets --${name} in services.tailscale.extraUpFlags. services.tailscale-autoconnect leaves it out: ${refusedFlags.${name}}.
        '') (refusedIn (filter isString (concatMap unwrap value)))
      ) options.services.tailscale.extraUpFlags.definitionsWithLocations
      ++ map (
        { file, settings }:
        ''
          ${file} sets ${named settings} on systemd.services.tailscaled-autoconnect, which has no effect: tailscale-autoconnect.service takes the place of that unit. Remove it there, or set it on systemd.services.tailscale-autoconnect.
        ''
      ) lost
      ++ optional (cfg.trustInterface && !isInterface) ''
        services.tailscale-autoconnect.trustInterface has no effect, since ${tailscale.interfaceName} is not the name of an interface. With userspace networking, connections from the tailnet come from tailscaled on this machine, and the firewall does not see them.
      '';

    services.tailscale.enable = true;

    environment.systemPackages = [
      cfg.package
      tailscale.package
    ];

    systemd.packages = [ cfg.package ];
    systemd.services = {
      tailscale-autoconnect = mkMerge (
        [
          {
            # A package's own links are not followed.
            wantedBy = [
              "multi-user.target"
              "tailscaled.service"
            ];
            # The name that services.tailscale has for the same work, which others are ordered after.
            aliases = [ "tailscaled-autoconnect.service" ];
            # What decrypts the secrets of vaultix, opnix and clan. The unit itself names those of
            # agenix and sops-nix.
            after = [
              "opnix-secrets.service"
              "pass-install-secrets.service"
              "vaultix-activate.service"
            ];
            # The tailscale of the tailscaled that runs.
            path = [ tailscale.package ];
            restartTriggers = encrypted;
            # The unit itself says true.
            environment = mkIf (!cfg.stay) { TAILSCALE_AUTOCONNECT_STAY = "false"; };
            serviceConfig.ExecStart = [
              ""
              (utils.escapeSystemdExecArgs (command [ ]))
            ];
          }
        ]
        ++ map (setting: setAttrByPath setting.path setting.value) moved
      );

      tailscaled-autoconnect = mkForce { enable = false; };

      tailscale-autoconnect-metrics = mkIf (cfg.metricsFile != null) {
        description = "Metrics of the connection to the tailnet";
        path = [ tailscale.package ];
        # The options of our unit, so that the check says what that does.
        environment = {
          TAILSCALE_AUTOCONNECT_STAY = boolToString cfg.stay;
        }
        // filterAttrs (
          name: _: hasPrefix "TAILSCALE_AUTOCONNECT_" name
        ) config.systemd.services.tailscale-autoconnect.environment;
        serviceConfig.Type = "oneshot";
        # The exit status says whether the machine is connected, and so does the file. It is renamed when
        # it is whole.
        script = ''
          file=${escapeShellArg cfg.metricsFile}
          mkdir -p "$(dirname "$file")"
          ${
            escapeShellArgs (command [
              "--check"
              "--metrics"
            ])
          } >"$file.new" || true
          test -s "$file.new"
          mv "$file.new" "$file"
        '';
      };

      # It is ordered after ours, and a target that wants it would wait for both. So it has only those
      # default dependencies that concern itself, as ours has.
      tailscaled-set = mkIf (tailscale.extraSetFlags != [ ]) {
        requires = [ "sysinit.target" ];
        after = [
          "sysinit.target"
          "basic.target"
        ];
        conflicts = [ "shutdown.target" ];
        before = [ "shutdown.target" ];
        unitConfig.DefaultDependencies = false;
      };
    };

    systemd.timers.tailscale-autoconnect-metrics = mkIf (cfg.metricsFile != null) {
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnActiveSec = "1min";
        OnUnitActiveSec = "5min";
      };
    };

    networking.firewall = {
      # Weaker than what NixOS sets on a kernel without the filter, and than anyone's mkDefault.
      checkReversePath = mkIf cfg.looseReversePath (mkOverride 1200 "loose");
      trustedInterfaces = optional (cfg.trustInterface && isInterface) tailscale.interfaceName;
    };
  };
}
