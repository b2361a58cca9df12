# services.tailscale-autoconnect: joins the machine to its tailnet at boot, with an auth key from a
# file such as agenix or sops-nix decrypts. It overrides what is NixOS' own in the unit that the package
# ships, which has the ordering: after tailscaled, and after the units that decrypt secrets.
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
    concatStringsSep
    elemAt
    filter
    filterAttrs
    getExe
    isBool
    literalExpression
    mapAttrsToList
    mkDefault
    mkEnableOption
    mkIf
    mkOption
    optional
    optionals
    types
    ;

  cfg = config.services.tailscale-autoconnect;
  inherit (config.services) tailscale;

  # The secrets of agenix and of sops-nix. Neither has to be there.
  ageSecrets = if options ? age then config.age.secrets else { };
  sopsSecrets = if options ? sops then config.sops.secrets else { };

  # The encrypted files that the auth key comes from.
  behindKey = filter (secret: secret.path == cfg.authKeyFile);
  encrypted =
    map (secret: secret.file) (behindKey (attrValues ageSecrets))
    ++ map (secret: secret.sopsFile) (behindKey (attrValues sopsSecrets));

  parameters = concatStringsSep "&" (
    mapAttrsToList (name: value: "${name}=${if isBool value then boolToString value else value}") (
      filterAttrs (_: value: value != null) cfg.authKeyParameters
    )
  );

  command = [
    (getExe cfg.package)
    "--authkey-file"
    cfg.authKeyFile
  ]
  ++ option "--authkey-params" parameters
  ++ option "--login-server" cfg.loginServer
  ++ option "--ready-after" cfg.readyAfter
  ++ option "--timeout" cfg.timeout
  ++ optionals (cfg.extraUpFlags != [ ]) ([ "--" ] ++ cfg.extraUpFlags);

  option =
    name: value:
    optionals (value != null && value != "") [
      name
      value
    ];

  # `--name`, `-name` and `--name=value` are the flag `name`.
  flagName =
    word:
    let
      found = builtins.match "--?([^=]+)(=.*)?" word;
    in
    if found == null then null else elemAt found 0;
  flags = map flagName cfg.extraUpFlags;

  # The program refuses these; said here, a rebuild fails instead of a boot.
  refusedFlags = {
    auth-key = "the key comes from authKeyFile";
    authkey = "the key comes from authKeyFile";
    force-reauth = "it would spend the auth key on a node that is logged in";
    json = "the output is not for a program";
    reset = "it would lose the node's settings; give the flags that you want changed";
    timeout = "use services.tailscale-autoconnect.timeout";
  };
in
{
  options.services.tailscale-autoconnect = {
    enable = mkEnableOption ''
      tailscale-autoconnect, which joins this machine to its tailnet at boot and enables
      {option}`services.tailscale`.

      A service that needs the tailnet says
      `wants = after = [ "tailscale-autoconnect.service" ]`. It is then started when the machine is
      connected and its addresses can be used, or after
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
      default = "tailscale-token";
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
      default = (ageSecrets.${cfg.authKeySecret} or sopsSecrets.${cfg.authKeySecret} or { }).path or null;
      defaultText = literalExpression "config.age.secrets.\${authKeySecret}.path, or that of sops";
      example = "/run/secrets/tailscale";
      description = ''
        File with the auth key or OAuth client secret. It is read only when the machine has to log in,
        and waited for if it isn't there yet.
      '';
    };

    authKeyParameters = {
      ephemeral = mkOption {
        type = types.nullOr types.bool;
        default = tailscale.authKeyParameters.ephemeral or null;
        defaultText = literalExpression "config.services.tailscale.authKeyParameters.ephemeral";
        description = "With an OAuth client secret: whether the node is ephemeral.";
      };
      preauthorized = mkOption {
        type = types.nullOr types.bool;
        default = tailscale.authKeyParameters.preauthorized or null;
        defaultText = literalExpression "config.services.tailscale.authKeyParameters.preauthorized";
        description = "With an OAuth client secret: whether the device needs no approval.";
      };
      baseURL = mkOption {
        type = types.nullOr types.str;
        default = tailscale.authKeyParameters.baseURL or null;
        defaultText = literalExpression "config.services.tailscale.authKeyParameters.baseURL";
        description = "With an OAuth client secret: base URL of the Tailscale API.";
      };
    };

    loginServer = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "https://headscale.example.com";
      description = "URL of the control server, if it isn't Tailscale's.";
    };

    extraUpFlags = mkOption {
      type = types.listOf types.str;
      default = tailscale.extraUpFlags;
      defaultText = literalExpression "config.services.tailscale.extraUpFlags";
      example = [
        "--ssh"
        "--advertise-tags=tag:server"
      ];
      description = "Flags for {command}`tailscale up` when the machine logs in.";
    };

    readyAfter = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "infinity";
      description = ''
        How long the services that are ordered after this one wait at most for the machine to be
        connected (`15s` if null); the work goes on behind them. With `infinity` they wait until it
        is, and so does a target that wants them, such as `multi-user.target`.
      '';
    };

    timeout = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "10min";
      description = "When to give up and let systemd try again later; null: keep trying.";
    };

    trustInterface = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the firewall lets everything in that comes over the tailnet. Every service of this
        machine is then open to every device that the tailnet's access rules let through, those of
        other people included.
      '';
    };

    looseReversePath = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether the firewall's reverse path filter is `"loose"` unless it is set elsewhere. Exit nodes
        and subnet routes need that.
      '';
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.authKeyFile != null;
        message = ''
          services.tailscale-autoconnect has no auth key. Declare the secret ${cfg.authKeySecret} with agenix (age.secrets.${cfg.authKeySecret}.file) or sops-nix, name another one in services.tailscale-autoconnect.authKeySecret, or give the path of a file in services.tailscale-autoconnect.authKeyFile.
        '';
      }
      {
        assertion = tailscale.authKeyFile == null;
        message = ''
          services.tailscale.authKeyFile and services.tailscale-autoconnect are both set, and two programs would spend the auth key. Remove services.tailscale.authKeyFile; services.tailscale-autoconnect.authKeyFile takes its place.
        '';
      }
      {
        assertion = cfg.loginServer == null || !any (name: name == "login-server") flags;
        message = ''
          The control server is given twice: by services.tailscale-autoconnect.loginServer and by --login-server in its extraUpFlags. Give it once.
        '';
      }
    ]
    ++ mapAttrsToList (name: why: {
      assertion = !any (flag: flag == name) flags;
      message = ''
        services.tailscale-autoconnect.extraUpFlags may not contain --${name}: ${why}.
      '';
    }) refusedFlags;

    warnings = optional (config.systemd.services ? tailscaled-autoconnect) ''
      systemd.services.tailscaled-autoconnect has no effect: it is another name of tailscale-autoconnect.service. Set systemd.services.tailscale-autoconnect instead.
    '';

    services.tailscale.enable = true;

    environment.systemPackages = [
      cfg.package
      tailscale.package
    ];

    systemd.packages = [ cfg.package ];
    systemd.services.tailscale-autoconnect = {
      # A package's own links are not followed.
      wantedBy = [
        "multi-user.target"
        "tailscaled.service"
      ];
      # The name that services.tailscale has for the same work, which others are ordered after.
      aliases = [ "tailscaled-autoconnect.service" ];
      # The tailscale of the tailscaled that runs.
      path = [ tailscale.package ];
      restartTriggers = encrypted;
      serviceConfig.ExecStart = [
        ""
        (utils.escapeSystemdExecArgs command)
      ];
    };

    networking.firewall = {
      checkReversePath = mkIf cfg.looseReversePath (mkDefault "loose");
      trustedInterfaces = optional cfg.trustInterface tailscale.interfaceName;
    };
  };
}
