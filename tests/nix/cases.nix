# What the module makes of a configuration. On stand-ins for nixpkgs' lib and for agenix, or on the
# real ones:
#
#   cases.nix { lib = import NIXPKGS_LIB; agenix = AGENIX_MODULE; }
#
# A case holds if what it `got` is what it should (`want`), or if it `fails` and the error `says` this.
{
  lib ? import ./stand-ins/lib.nix,
  agenix ? ./stand-ins/agenix.nix,
}:

let
  inherit (lib) getExe hasInfix mkForce;

  inherit (import ./evaluate.nix { inherit lib; })
    machine
    package
    pkgs
    systemd
    ;

  # Modules of secrets, with a secret of the default name.
  age = {
    imports = [ agenix ];
    services.openssh.enable = true;
    age.secrets.tailscale-token.file = ./cases.nix;
  };
  sops = {
    imports = [ ./stand-ins/sops.nix ];
    sops.secrets.tailscale-token.sopsFile = ./cases.nix;
  };
  # Any other.
  file = {
    services.tailscale-autoconnect.authKeyFile = "/etc/tailscale/token";
  };
  settings = values: { services.tailscale-autoconnect = values; };
  upFlags = extraUpFlags: settings { inherit extraUpFlags; };

  service = config: config.systemd.services.tailscale-autoconnect;
  triggers = config: map toString (service config).restartTriggers;
  overrides = config: (systemd.override "tailscale-autoconnect" (service config)).lines;

  # The command line, after the program.
  arguments =
    config:
    let
      start = (service config).serviceConfig.ExecStart;
      program = systemd.utils.escapeSystemdExecArgs [ (getExe package) ];
    in
    assert builtins.length start == 2 && builtins.head start == "";
    lib.removePrefix "${program} " (builtins.elemAt start 1);

  # What keeps the machine from being built.
  objections = config: map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);

  # The unit that the package ships.
  shipped = builtins.readFile ../../units/tailscale-autoconnect.service;
in
{
  # ---- where the auth key is

  "agenix: its secret is the auth key" = {
    got = arguments (machine [ age ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token"'';
  };
  "agenix: a secret of another name" = {
    got = arguments (machine [
      age
      { age.secrets.other.file = ./cases.nix; }
      (settings { authKeySecret = "other"; })
    ]);
    want = ''"--authkey-file" "/run/agenix/other"'';
  };
  "agenix: a secret that is put elsewhere" = {
    got = arguments (machine [
      age
      { age.secrets.tailscale-token.path = "/etc/token"; }
    ]);
    want = ''"--authkey-file" "/etc/token"'';
  };
  "agenix: nothing stands in its way" = {
    got = objections (machine [ age ]);
    want = [ ];
  };
  "agenix: another .age file starts the service anew" = {
    got = triggers (machine [ age ]);
    want = [ (toString ./cases.nix) ];
  };
  "agenix: the unit depends on what is in the .age file" = {
    got = builtins.elem "X-Restart-Triggers=${./cases.nix}" (overrides (machine [ age ]));
    want = true;
  };
  "agenix: a secret named by its path starts the service anew, others don't" = {
    got = triggers (machine [
      age
      {
        age.secrets.other.file = ./run.sh;
        services.tailscale-autoconnect.authKeyFile = "/run/agenix/other";
      }
    ]);
    want = [ (toString ./run.sh) ];
  };
  "agenix with userborn: its service decrypts, and the unit waits for it" = {
    got =
      let
        config = machine [
          age
          { services.userborn.enable = true; }
        ];
      in
      {
        arguments = arguments config;
        decrypts = config.systemd.services ? agenix-install-secrets;
        scripts = config.system.activationScripts;
        waits = hasInfix "After=agenix-install-secrets.service" shipped;
      };
    want = {
      arguments = ''"--authkey-file" "/run/agenix/tailscale-token"'';
      decrypts = true;
      scripts = { };
      waits = true;
    };
  };
  "sops: its secret is the auth key" = {
    got = arguments (machine [ sops ]);
    want = ''"--authkey-file" "/run/secrets/tailscale-token"'';
  };
  "sops: another file starts the service anew, and the unit waits for the secret" = {
    got = {
      triggers = triggers (machine [ sops ]);
      waits = hasInfix "After=sops-install-secrets.service" shipped;
    };
    want = {
      triggers = [ (toString ./cases.nix) ];
      waits = true;
    };
  };
  "agenix comes before sops" = {
    got = arguments (machine [
      age
      sops
    ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token"'';
  };

  "a plain file, without agenix and sops" = {
    got =
      let
        config = machine [ file ];
      in
      [
        (arguments config)
        (triggers config)
        (objections config)
      ];
    want = [
      ''"--authkey-file" "/etc/tailscale/token"''
      [ ]
      [ ]
    ];
  };
  "a plain file comes before a secret" = {
    got = arguments (machine [
      age
      file
    ]);
    want = ''"--authkey-file" "/etc/tailscale/token"'';
  };

  "no secret: says what to do" = {
    got = objections (machine [ ]);
    want = [
      ''
        services.tailscale-autoconnect has no auth key. Declare the secret tailscale-token with agenix (age.secrets.tailscale-token.file) or sops-nix, name another one in services.tailscale-autoconnect.authKeySecret, or give the path of a file in services.tailscale-autoconnect.authKeyFile.
      ''
    ];
  };
  "no secret of that name: says which" = {
    got = builtins.match ".*Declare the secret other with agenix.*" (
      toString (
        objections (machine [
          age
          (settings { authKeySecret = "other"; })
        ])
      )
    );
    want = [ ];
  };
  "a key file in the Nix store is refused" = {
    fails = arguments (machine [
      (settings { authKeyFile = "${builtins.storeDir}/00000000000000000000000000000000-token"; })
    ]);
    says = "services.tailscale-autoconnect.authKeyFile' is not of type `null or absolute path, given as a string, of a file outside the Nix store, where every user could read it'";
  };
  "a key file that would be copied into the Nix store is refused" = {
    fails = arguments (machine [ (settings { authKeyFile = ./cases.nix; }) ]);
    says = "of a file outside the Nix store, where every user could read it'";
  };
  "a key file without a folder is refused" = {
    fails = arguments (machine [ (settings { authKeyFile = "token"; }) ]);
    says = "absolute path, given as a string";
  };

  # ---- beside services.tailscale

  "services.tailscale.authKeyFile as well: says which one to remove" = {
    got = objections (machine [
      age
      { services.tailscale.authKeyFile = "/run/agenix/tailscale-token"; }
    ]);
    want = [
      ''
        services.tailscale.authKeyFile and services.tailscale-autoconnect are both set, and two programs would spend the auth key. Remove services.tailscale.authKeyFile; services.tailscale-autoconnect.authKeyFile takes its place.
      ''
    ];
  };
  "tailscaled is enabled, and both programs are on the path" = {
    got =
      let
        config = machine [ age ];
      in
      [
        config.services.tailscale.enable
        (map (p: p.name) config.environment.systemPackages)
      ];
    want = [
      true
      [
        package.name
        "tailscale"
      ]
    ];
  };
  "the unit is the package's, with its state, and wanted by what it says" = {
    got =
      let
        config = machine [ age ];
        wanted = "WantedBy=${toString (service config).wantedBy}\n";
      in
      [
        (map (p: p.name) config.systemd.packages)
        (hasInfix wanted shipped)
        (hasInfix "StateDirectory=tailscale-autoconnect\n" shipped)
        (builtins.attrNames (service config).serviceConfig)
      ];
    want = [
      [ package.name ]
      true
      true
      [ "ExecStart" ]
    ];
  };
  "what is ordered after nixpkgs' own unit is ordered after this one" = {
    got = (service (machine [ age ])).aliases;
    want = [ "tailscaled-autoconnect.service" ];
  };
  "settings for nixpkgs' own unit, which would be lost, are warned of" = {
    got = map (config: config.warnings) [
      (machine [
        age
        { systemd.services.tailscaled-autoconnect.after = [ "agenix-install-secrets.service" ]; }
      ])
      (machine [ age ])
    ];
    want = [
      [
        ''
          systemd.services.tailscaled-autoconnect has no effect: it is another name of tailscale-autoconnect.service. Set systemd.services.tailscale-autoconnect instead.
        ''
      ]
      [ ]
    ];
  };
  "the tailscale of the running tailscaled is used" = {
    got =
      map (p: p.name)
        (service (machine [
          age
          { services.tailscale.package = pkgs.getent; }
        ])).path;
    want = [ "getent" ];
  };
  "a package given by the user" = {
    got =
      builtins.elemAt
        (service (machine [
          age
          (settings { package = pkgs.age; })
        ])).serviceConfig.ExecStart
        1;
    want = ''"${pkgs.age}/bin/age" "--authkey-file" "/run/agenix/tailscale-token"'';
  };

  # ---- the command line

  "settings become options" = {
    got = arguments (machine [
      age
      (settings {
        loginServer = "https://headscale.example.com";
        readyAfter = "1min";
        timeout = "1h 30min";
        extraUpFlags = [ "--ssh" ];
      })
    ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token" "--login-server" "https://headscale.example.com" "--ready-after" "1min" "--timeout" "1h 30min" "--" "--ssh"'';
  };
  "flags with spaces, quotes, % and $ survive" = {
    got = arguments (machine [
      age
      (upFlags [
        "--a=two words"
        ''--b="quoted"''
        "--c='single'"
        "--d=100%"
        "--e=$HOME"
        ''--f=back\slash''
      ])
    ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token" "--" "--a=two words" "--b=\"quoted\"" "--c='single'" "--d=100%%" "--e=$$HOME" "--f=back\\slash"'';
  };
  "flags of services.tailscale are taken over" = {
    got = arguments (machine [
      age
      { services.tailscale.extraUpFlags = [ "--ssh" ]; }
    ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token" "--" "--ssh"'';
  };
  "parameters of an OAuth client secret" = {
    got = arguments (machine [
      age
      (settings {
        authKeyParameters = {
          ephemeral = false;
          preauthorized = true;
          baseURL = "https://api.example.com";
        };
      })
    ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token" "--authkey-params" "baseURL=https://api.example.com&ephemeral=false&preauthorized=true"'';
  };
  "parameters of services.tailscale are taken over" = {
    got = arguments (machine [
      age
      { services.tailscale.authKeyParameters.preauthorized = true; }
    ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token" "--authkey-params" "preauthorized=true"'';
  };
  "the control server given twice is refused" = {
    got = objections (machine [
      age
      (settings {
        loginServer = "https://headscale.example.com";
        extraUpFlags = [ "-login-server=https://headscale.example.com" ];
      })
    ]);
    want = [
      ''
        The control server is given twice: by services.tailscale-autoconnect.loginServer and by --login-server in its extraUpFlags. Give it once.
      ''
    ];
  };
  "flags that the program refuses are refused in the rebuild" = {
    got = objections (machine [
      age
      (upFlags [
        "--reset"
        "-auth-key=file:/x"
        "--json=true"
        "--timeout"
        "5s"
        "--ssh"
      ])
    ]);
    want = [
      ''
        services.tailscale-autoconnect.extraUpFlags may not contain --auth-key: the key comes from authKeyFile.
      ''
      ''
        services.tailscale-autoconnect.extraUpFlags may not contain --json: the output is not for a program.
      ''
      ''
        services.tailscale-autoconnect.extraUpFlags may not contain --reset: it would lose the node's settings; give the flags that you want changed.
      ''
      ''
        services.tailscale-autoconnect.extraUpFlags may not contain --timeout: use services.tailscale-autoconnect.timeout.
      ''
    ];
  };
  "all flags that the program refuses are refused" = {
    got =
      let
        source = builtins.readFile ../../src/flags.rs;
        table = builtins.elemAt (builtins.match ".*const REFUSED_FLAGS[^=]*= \\[(.*)\n];\n\n/// One flag.*" source) 0;
        rows = builtins.filter builtins.isList (builtins.split "\\([\n ]*\"([a-z-]+)\"" table);
        names = map builtins.head rows;
      in
      builtins.length (
        objections (machine [
          age
          (upFlags (map (name: "--${name}") names))
        ])
      );
    want = 6;
  };

  # ---- the firewall

  "the firewall: loose reverse path, and no interface is trusted" = {
    got = (machine [ age ]).networking.firewall;
    want = {
      allowedUDPPorts = [ ];
      checkReversePath = "loose";
      trustedInterfaces = [ ];
    };
  };
  "the firewall: the user's own reverse path filter stays" = {
    got =
      (machine [
        age
        { networking.firewall.checkReversePath = "strict"; }
      ]).networking.firewall.checkReversePath;
    want = "strict";
  };
  "the firewall: left alone" = {
    got =
      (machine [
        age
        (settings { looseReversePath = false; })
      ]).networking.firewall.checkReversePath;
    want = true;
  };
  "the firewall: the interface is trusted where that is wished" = {
    got =
      (machine [
        age
        (settings { trustInterface = true; })
        { services.tailscale.interfaceName = "tail1"; }
      ]).networking.firewall.trustedInterfaces;
    want = [ "tail1" ];
  };

  # ---- where it isn't enabled, and the example

  "nothing happens where it isn't enabled" = {
    got =
      let
        config = machine [
          (settings { enable = mkForce false; })
        ];
      in
      [
        (objections config)
        config.systemd.services
        config.systemd.packages
        config.services.tailscale.enable
        config.networking.firewall.checkReversePath
      ];
    want = [
      [ ]
      { }
      [ ]
      false
      true
    ];
  };
  "the example is a machine" = {
    got =
      let
        config = machine [
          { imports = [ agenix ]; }
          ../../nix/example/tailscale.nix
        ];
      in
      {
        arguments = arguments config;
        objections = objections config;
        firewall = config.networking.firewall;
        secret = triggers config;
        inherit (config.services.tailscale) openFirewall;
      };
    want = {
      arguments = ''"--authkey-file" "/run/agenix/tailscale-token"'';
      objections = [ ];
      firewall = {
        allowedUDPPorts = [ ];
        checkReversePath = "loose";
        trustedInterfaces = [ "tailscale0" ];
      };
      secret = [ (toString ../../nix/example/tailscale-token.age) ];
      openFirewall = true;
    };
  };
}
