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
  inherit (lib)
    getExe
    hasInfix
    mkDefault
    mkForce
    mkIf
    mkMerge
    ;

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

  # The same, and what it is warned of.
  said = config: {
    objections = objections config;
    inherit (config) warnings;
  };
  nothing = {
    objections = [ ];
    warnings = [ ];
  };

  # The unit that the package ships.
  shipped = builtins.readFile ../../units/tailscale-autoconnect.service;
  hosts = import ./hosts.nix {
    inherit agenix lib;
    mkHost =
      modules:
      let
        config = machine modules;
      in
      {
        inherit config;
        arguments = arguments config;
        said = said config;
      };
  };
in
hosts
// {
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
  "a file under /tmp or a home is a key file: the unit sees it" = {
    got = {
      paths =
        map
          (
            authKeyFile:
            said (machine [
              (settings { inherit authKeyFile; })
            ])
          )
          [
            "/tmp/token"
            "/root/token"
            "/home/me/token"
          ];
      hidden = hasInfix "ProtectHome=yes" shipped || hasInfix "PrivateTmp=yes" shipped;
    };
    want = {
      paths = [
        nothing
        nothing
        nothing
      ];
      hidden = false;
    };
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

  "services.tailscale.authKeyFile is taken over, and its unit gives way" = {
    got =
      let
        config = machine [
          { services.tailscale.authKeyFile = "/run/keys/tailscale"; }
        ];
      in
      {
        arguments = arguments config;
        inherit (config.systemd.services.tailscaled-autoconnect) enable wantedBy;
        said = said config;
      };
    want = {
      arguments = ''"--authkey-file" "/run/keys/tailscale"'';
      enable = false;
      wantedBy = [ ];
      said = nothing;
    };
  };
  "a secret of agenix or sops comes before services.tailscale.authKeyFile" = {
    got =
      map
        (
          secrets:
          arguments (machine [
            secrets
            { services.tailscale.authKeyFile = "/run/keys/tailscale"; }
          ])
        )
        [
          age
          sops
        ];
    want = [
      ''"--authkey-file" "/run/agenix/tailscale-token"''
      ''"--authkey-file" "/run/secrets/tailscale-token"''
    ];
  };
  "a secret that is named and not there is not replaced by services.tailscale.authKeyFile" = {
    got = builtins.length (
      objections (machine [
        age
        { services.tailscale.authKeyFile = "/run/keys/tailscale"; }
        (settings { authKeySecret = "other"; })
      ])
    );
    want = 1;
  };
  "services.tailscale.authKeyFile in the Nix store is refused" = {
    fails = arguments (machine [ { services.tailscale.authKeyFile = ./cases.nix; } ]);
    says = "of a file outside the Nix store, where every user could read it'";
  };
  "nixpkgs' own unit: ordering, conditions and bind paths move to ours" = {
    got =
      let
        config = machine [
          age
          {
            services.tailscale.authKeyFile = "/run/keys/tailscale";
            systemd.services.tailscaled-autoconnect = mkMerge [
              {
                after = [ "vpn.service" ];
                wants = mkIf true [ "vpn.service" ];
                unitConfig.ConditionPathExists = "/etc/joined";
              }
              (mkIf true {
                serviceConfig.BindReadOnlyPaths = [ "/persist/keys" ];
              })
              (mkIf false { wants = [ "never.service" ]; })
            ];
          }
          { systemd.services.tailscaled-autoconnect.wantedBy = mkForce [ ]; }
        ];
        unit = service config;
      in
      {
        inherit (unit) wants unitConfig wantedBy;
        after = builtins.elem "vpn.service" unit.after;
        inherit (unit.serviceConfig) BindReadOnlyPaths;
        said = said config;
      };
    want = {
      wants = [ "vpn.service" ];
      unitConfig.ConditionPathExists = "/etc/joined";
      # By hand only.
      wantedBy = [ ];
      after = true;
      BindReadOnlyPaths = [ "/persist/keys" ];
      said = nothing;
    };
  };
  "nixpkgs' own unit: what is lost is warned of, with its file" = {
    got = said (machine [
      age
      {
        _file = "/etc/nixos/fixes.nix";
        systemd.services.tailscaled-autoconnect = {
          after = [ "vpn.service" ];
          preStart = "sleep 5";
          serviceConfig.Restart = mkForce "on-failure";
        };
      }
      {
        _file = "/etc/nixos/other.nix";
        systemd.services.tailscaled-autoconnect.script = mkForce "tailscale up";
      }
    ]);
    want = {
      objections = [ ];
      warnings = [
        ''
          /etc/nixos/other.nix sets script on systemd.services.tailscaled-autoconnect, which has no effect: tailscale-autoconnect.service takes the place of that unit. Remove it there, or set it on systemd.services.tailscale-autoconnect.
        ''
        ''
          /etc/nixos/fixes.nix sets preStart, serviceConfig.Restart on systemd.services.tailscaled-autoconnect, which has no effect: tailscale-autoconnect.service takes the place of that unit. Remove it there, or set it on systemd.services.tailscale-autoconnect.
        ''
      ];
    };
  };
  "the script that ours replaces is refused, with its file" = {
    got = said (machine [
      age
      {
        _file = "/etc/nixos/tailscale.nix";
        systemd.services.tailscale-autoconnect = {
          description = "Automatic connection to Tailscale";
          after = [ "tailscale.service" ];
          wantedBy = [ "multi-user.target" ];
          serviceConfig.Type = "oneshot";
          script = "sleep 2";
        };
      }
    ]);
    want = {
      warnings = [ ];
      objections = [
        ''
          /etc/nixos/tailscale.nix defines a service of its own as systemd.services.tailscale-autoconnect (script, serviceConfig.Type). Remove it there: services.tailscale-autoconnect does its work. Move the flags of its `tailscale up` to services.tailscale-autoconnect.extraUpFlags, except for the auth key.
        ''
      ];
    };
  };
  "a second command in our unit is refused, another one in its place is not" = {
    got =
      map
        (
          ExecStart:
          builtins.length (
            objections (machine [
              age
              { systemd.services.tailscale-autoconnect.serviceConfig = { inherit ExecStart; }; }
            ])
          )
        )
        [
          [ "/bin/join" ]
          (mkForce [
            ""
            "/bin/join"
          ])
        ];
    want = [
      1
      0
    ];
  };
  "what is set on our unit stays" = {
    got =
      let
        config = machine [
          age
          {
            systemd.services.tailscale-autoconnect = {
              after = [ "vpn.service" ];
              environment.TAILSCALE_AUTOCONNECT_AUTHKEY_WAIT = "5min";
              serviceConfig.Nice = 5;
            };
          }
        ];
      in
      {
        after = builtins.elem "vpn.service" (service config).after;
        inherit (service config) environment;
        inherit ((service config).serviceConfig) Nice;
        said = said config;
      };
    want = {
      after = true;
      environment.TAILSCALE_AUTOCONNECT_AUTHKEY_WAIT = "5min";
      Nice = 5;
      said = nothing;
    };
  };
  "tailscale set does not hold up a boot either" = {
    got =
      let
        set =
          (machine [
            age
            { services.tailscale.extraSetFlags = [ "--ssh" ]; }
          ]).systemd.services.tailscaled-set;
      in
      {
        inherit (set)
          after
          before
          conflicts
          requires
          unitConfig
          ;
      };
    want = {
      after = [
        "sysinit.target"
        "basic.target"
        "tailscaled.service"
        "tailscaled-autoconnect.service"
      ];
      before = [ "shutdown.target" ];
      conflicts = [ "shutdown.target" ];
      requires = [ "sysinit.target" ];
      unitConfig.DefaultDependencies = false;
    };
  };
  "no unit for tailscale set where nothing is to be set" = {
    got = (machine [ age ]).systemd.services ? tailscaled-set;
    want = false;
  };
  "the unit waits for the secrets of other programs" = {
    got = (service (machine [ file ])).after;
    want = [
      "opnix-secrets.service"
      "pass-install-secrets.service"
      "vaultix-activate.service"
    ];
  };
  "tailscale forced off: says so" = {
    got = objections (machine [
      age
      { services.tailscale.enable = mkForce false; }
    ]);
    want = [
      ''
        services.tailscale-autoconnect needs tailscaled, and services.tailscale.enable is forced to be false. Remove that, or disable services.tailscale-autoconnect.
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
  "a key that may be absent, and a machine that joins again" = {
    got = arguments (machine [
      age
      (settings {
        authKeyOptional = true;
        rejoin = true;
        extraUpFlags = [ "--ssh" ];
      })
    ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token" "--authkey-optional" "--rejoin" "--" "--ssh"'';
  };
  "the unit stays, unless it is not to" = {
    got = {
      environments =
        map
          (
            stay:
            (service (machine [
              age
              (settings { inherit stay; })
            ])).environment
          )
          [
            true
            false
          ];
      shipped = hasInfix "Environment=TAILSCALE_AUTOCONNECT_STAY=true\n" shipped;
    };
    want = {
      environments = [
        { }
        { TAILSCALE_AUTOCONNECT_STAY = "false"; }
      ];
      shipped = true;
    };
  };
  "metrics are made with the options of the unit" = {
    got =
      let
        config = machine [
          age
          (settings {
            metricsFile = "/var/lib/node exporter/tailnet.prom";
            stay = false;
            loginServer = "https://headscale.example.com";
            extraUpFlags = [ "--ssh" ];
          })
          { systemd.services.tailscale-autoconnect.environment.TAILSCALE_AUTOCONNECT_SOCKET = "/run/ts"; }
        ];
        unit = config.systemd.services.tailscale-autoconnect-metrics;
      in
      {
        inherit (unit) environment script;
        path = map (p: p.name) unit.path;
        inherit (config.systemd.timers.tailscale-autoconnect-metrics) wantedBy;
        said = said config;
      };
    want = {
      environment = {
        TAILSCALE_AUTOCONNECT_SOCKET = "/run/ts";
        TAILSCALE_AUTOCONNECT_STAY = "false";
      };
      script = ''
        file='/var/lib/node exporter/tailnet.prom'
        mkdir -p "$(dirname "$file")"
        ${
          lib.escapeShellArgs [
            (getExe package)
            "--authkey-file"
            "/run/agenix/tailscale-token"
            "--login-server"
            "https://headscale.example.com"
            "--check"
            "--metrics"
            "--"
            "--ssh"
          ]
        } >"$file.new" || true
        test -s "$file.new"
        mv "$file.new" "$file"
      '';
      path = [ "tailscale" ];
      wantedBy = [ "timers.target" ];
      said = nothing;
    };
  };
  "no metrics unless their file is named" = {
    got =
      let
        inherit (machine [ age ]) systemd;
      in
      systemd.services ? tailscale-autoconnect-metrics || systemd.timers ? tailscale-autoconnect-metrics;
    want = false;
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
  "flags of services.tailscale are taken over, and ours come after them" = {
    got = arguments (machine [
      age
      { services.tailscale.extraUpFlags = [ "--ssh" ]; }
      (upFlags [ "--accept-routes" ])
    ]);
    want = ''"--authkey-file" "/run/agenix/tailscale-token" "--" "--ssh" "--accept-routes"'';
  };
  "refused flags of services.tailscale are left out, and their file is named" = {
    got =
      let
        config = machine [
          age
          {
            _file = "/etc/nixos/profile.nix";
            services.tailscale.extraUpFlags = [
              "--reset"
              "--auth-key"
              "file:/run/keys/tailscale"
              "--ssh"
            ];
          }
          {
            _file = "/etc/nixos/host.nix";
            services.tailscale.extraUpFlags = [
              (mkIf true "-force-reauth=true")
              (mkIf false "--json")
              "--hostname"
              "x"
              "--timeout=5s"
            ];
          }
        ];
      in
      {
        arguments = arguments config;
        said = said config;
      };
    want = {
      arguments = ''"--authkey-file" "/run/agenix/tailscale-token" "--" "--hostname" "x" "--ssh"'';
      said = {
        objections = [ ];
        warnings = [
          ''
            /etc/nixos/host.nix sets --force-reauth in services.tailscale.extraUpFlags. services.tailscale-autoconnect leaves it out: it would spend the auth key on a node that is logged in.
          ''
          ''
            /etc/nixos/host.nix sets --timeout in services.tailscale.extraUpFlags. services.tailscale-autoconnect leaves it out: use services.tailscale-autoconnect.timeout.
          ''
          ''
            /etc/nixos/profile.nix sets --reset in services.tailscale.extraUpFlags. services.tailscale-autoconnect leaves it out: it would lose the node's settings; give the flags that you want changed.
          ''
          ''
            /etc/nixos/profile.nix sets --auth-key in services.tailscale.extraUpFlags. services.tailscale-autoconnect leaves it out: the key comes from authKeyFile.
          ''
        ];
      };
    };
  };
  "several words in one item, and empty items, are refused, and no key is shown" = {
    got =
      map
        (
          flags:
          objections (machine [
            age
            flags
          ])
        )
        [
          (upFlags [ "--advertise-tags tag:a" ])
          (upFlags [ "--hostname=x --ssh" ])
          (upFlags [ "--ssh\n" ])
          { services.tailscale.extraUpFlags = [ "--auth-key tskey-auth-secret" ]; }
          (upFlags [ "" ])
        ];
    want = map (text: [ text ]) (
      map
        (first: ''
          The flags for `tailscale up` have an item of several words, which begins with ${first}. Write a flag and its value as --flag=value, and each flag as an item of its own.
        '')
        [
          "--advertise-tags"
          "--hostname"
          "--ssh"
          "--auth-key"
        ]
      ++ [
        ''
          The flags for `tailscale up` have an empty item. Leave it out; an empty value is written --flag=.
        ''
      ]
    );
  };
  "times are times" = {
    got =
      map
        (
          readyAfter:
          arguments (machine [
            age
            (settings {
              inherit readyAfter;
              timeout = readyAfter;
            })
          ])
        )
        [
          90
          "90"
          "1h 30min"
          "infinity"
        ];
    want =
      map
        (
          time:
          ''"--authkey-file" "/run/agenix/tailscale-token" "--ready-after" "${time}" "--timeout" "${time}"''
        )
        [
          "90"
          "90"
          "1h 30min"
          "infinity"
        ];
  };
  "what is no time is refused" = {
    fails = arguments (machine [
      age
      (settings { readyAfter = "5 minuten"; })
    ]);
    says = "time such as 90s, 5min, 1h 30min or infinity";
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
  "the control server given twice is refused, in every spelling" = {
    got =
      map
        (
          flags:
          objections (machine [
            age
            (settings { loginServer = "https://headscale.example.com"; })
            flags
          ])
        )
        [
          (upFlags [ "-login-server=https://headscale.example.com" ])
          (upFlags [
            "--login-server"
            "https://headscale.example.com"
          ])
          { services.tailscale.extraUpFlags = [ "--login-server=https://headscale.example.com" ]; }
        ];
    want = builtins.genList (_: [
      ''
        The control server is given twice: by services.tailscale-autoconnect.loginServer and by --login-server in the flags for `tailscale up`. Give it once.
      ''
    ]) 3;
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
        services.tailscale-autoconnect.extraUpFlags may not contain --reset: it would lose the node's settings; give the flags that you want changed.
      ''
      ''
        services.tailscale-autoconnect.extraUpFlags may not contain --auth-key: the key comes from authKeyFile.
      ''
      ''
        services.tailscale-autoconnect.extraUpFlags may not contain --json: the output is not for a program.
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
        row = "flag\\(\"([a-z-]+)\", [A-Za-z]+\\)[\n ]*\\.refused\\(";
        rows = builtins.filter builtins.isList (builtins.split row source);
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
  "the firewall: anyone's default and NixOS' own come before the loose reverse path" = {
    got =
      map
        (
          checkReversePath:
          (machine [
            age
            { networking.firewall = { inherit checkReversePath; }; }
          ]).networking.firewall.checkReversePath
        )
        [
          # Of NixOS, on a kernel without the filter.
          (mkDefault false)
          (mkDefault "strict")
        ];
    want = [
      false
      "strict"
    ];
  };
  "the firewall: useRoutingFeatures stays" = {
    got =
      (machine [
        age
        { services.tailscale.useRoutingFeatures = "both"; }
      ]).networking.firewall.checkReversePath;
    want = "loose";
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

  "the firewall: userspace networking has no interface to trust, and says so" = {
    got =
      let
        config = machine [
          age
          (settings { trustInterface = true; })
          { services.tailscale.interfaceName = "userspace-networking"; }
        ];
      in
      {
        inherit (config.networking.firewall) trustedInterfaces;
        said = said config;
      };
    want = {
      trustedInterfaces = [ ];
      said = {
        objections = [ ];
        warnings = [
          ''
            services.tailscale-autoconnect.trustInterface has no effect, since userspace-networking is not the name of an interface. With userspace networking, connections from the tailnet come from tailscaled on this machine, and the firewall does not see them.
          ''
        ];
      };
    };
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
  "the module is one of NixOS" = {
    got =
      (import ../../nix/module.nix {
        inherit lib pkgs;
        config = { };
        options = { };
        utils = { };
      })._class;
    want = "nixos";
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
