# Hosts of the kinds that people have, to which one import and one `enable = true` are added: what
# becomes of each. As modules, and what is wanted.
{
  lib,
  agenix,
  mkHost,
}:

let
  inherit (lib) mkForce mkIf;
  host =
    {
      modules,
      keyFile,
      options ? "",
      flags ? "",
      warnings ? [ ],
      also ? _: { },
      wantAlso ? { },
    }:
    {
      got =
        let
          config = mkHost modules;
        in
        {
          inherit (config) arguments said;
          also = also config.config;
        };
      want = {
        arguments =
          ''"--authkey-file" "${keyFile}"''
          + lib.optionalString (options != "") " ${options}"
          + lib.optionalString (flags != "") " \"--\" ${flags}";
        said = {
          inherit warnings;
          objections = [ ];
        };
        also = wantAlso;
      };
    };

  tailscale = settings: {
    services.tailscale = {
      enable = true;
    }
    // settings;
  };
  others = ./stand-ins/others.nix;
  sops = ./stand-ins/sops.nix;
  ageHost = {
    imports = [ agenix ];
    services.openssh.enable = true;
  };
in
{
  "host: agenix, authKeyFile and flags" = host {
    modules = [
      ageHost
      (
        { config, ... }:
        {
          age.secrets.tailscale-authkey.file = ./hosts.nix;
          services.tailscale = {
            enable = true;
            openFirewall = true;
            authKeyFile = config.age.secrets.tailscale-authkey.path;
            extraUpFlags = [ "--ssh" ];
          };
        }
      )
    ];
    keyFile = "/run/agenix/tailscale-authkey";
    flags = ''"--ssh"'';
    also = config: map toString config.systemd.services.tailscale-autoconnect.restartTriggers;
    wantAlso = [ (toString ./hosts.nix) ];
  };

  "host: agenix-rekey, with the secret in a place of its own" = host {
    modules = [
      ageHost
      (
        { config, ... }:
        {
          age.secrets.ts = {
            # What agenix-rekey makes for this host.
            file = ./hosts.nix;
            path = "/persist/keys/ts";
          };
          services.tailscale = {
            enable = true;
            authKeyFile = config.age.secrets.ts.path;
          };
        }
      )
    ];
    keyFile = "/persist/keys/ts";
  };

  "host: sops-nix, ordered after its service, which restarts the unit" = host {
    modules = [
      sops
      (
        { config, ... }:
        {
          sops.secrets."tailscale/authkey" = {
            sopsFile = ./hosts.nix;
            restartUnits = [ "tailscaled-autoconnect.service" ];
          };
          services.tailscale = {
            enable = true;
            authKeyFile = config.sops.secrets."tailscale/authkey".path;
            useRoutingFeatures = "client";
          };
          systemd.services.tailscaled-autoconnect = {
            after = [ "sops-install-secrets.service" ];
            requires = [ "sops-install-secrets.service" ];
          };
        }
      )
    ];
    keyFile = "/run/secrets/tailscale/authkey";
    also = config: {
      inherit (config.systemd.services.tailscale-autoconnect) aliases requires;
      inherit (config.networking.firewall) checkReversePath;
    };
    wantAlso = {
      aliases = [ "tailscaled-autoconnect.service" ];
      requires = [ "sops-install-secrets.service" ];
      checkReversePath = "loose";
    };
  };

  "host: opnix" = host {
    modules = [
      others
      (
        { config, ... }:
        {
          services.onepassword-secrets.secrets.tailscaleToken.reference = "op://Homelab/Tailscale/key";
          services.tailscale = {
            enable = true;
            authKeyFile = config.services.onepassword-secrets.secretPaths.tailscaleToken;
          };
        }
      )
    ];
    keyFile = "/var/lib/opnix/secrets/tailscaleToken";
    also =
      config: builtins.elem "opnix-secrets.service" config.systemd.services.tailscale-autoconnect.after;
    wantAlso = true;
  };

  "host: vaultix" = host {
    modules = [
      others
      (
        { config, ... }:
        {
          vaultix.secrets.ts-auth = { };
          services.tailscale = {
            enable = true;
            authKeyFile = config.vaultix.secrets.ts-auth.path;
          };
        }
      )
    ];
    keyFile = "/run/vaultix/ts-auth";
    also =
      config:
      builtins.elem "vaultix-activate.service" config.systemd.services.tailscale-autoconnect.after;
    wantAlso = true;
  };

  "host: clan, with a generated secret" = host {
    modules = [
      others
      (
        { config, ... }:
        {
          clan.core.vars.generators.tailscale.files.auth-key = { };
          services.tailscale = {
            enable = true;
            authKeyFile = config.clan.core.vars.generators.tailscale.files.auth-key.path;
          };
        }
      )
    ];
    keyFile = "/run/secrets/vars/tailscale/auth-key";
    also =
      config:
      builtins.elem "pass-install-secrets.service" config.systemd.services.tailscale-autoconnect.after;
    wantAlso = true;
  };

  "host: headscale, by a flag of a profile" = host {
    modules = [
      (tailscale { authKeyFile = "/etc/tailscale/key"; })
      { services.tailscale.extraUpFlags = [ "--login-server=https://headscale.example.com" ]; }
      {
        services.tailscale.extraUpFlags = [
          (mkIf true "--accept-routes")
          (mkIf false "--ssh")
        ];
      }
    ];
    keyFile = "/etc/tailscale/key";
    flags = ''"--accept-routes" "--login-server=https://headscale.example.com"'';
  };

  "host: an OAuth client and tags" = host {
    modules = [
      (tailscale {
        authKeyFile = "/run/keys/oauth";
        authKeyParameters = {
          ephemeral = false;
          preauthorized = true;
          baseURL = null;
        };
        extraUpFlags = [
          "--advertise-tags"
          "tag:server,tag:ci"
        ];
      })
    ];
    keyFile = "/run/keys/oauth";
    options = ''"--authkey-params" "ephemeral=false&preauthorized=true"'';
    flags = ''"--advertise-tags" "tag:server,tag:ci"'';
  };

  "host: an exit node" = host {
    modules = [
      (tailscale {
        authKeyFile = "/run/keys/ts";
        useRoutingFeatures = "both";
        extraUpFlags = [ "--advertise-exit-node" ];
        extraSetFlags = [ "--advertise-exit-node" ];
      })
    ];
    keyFile = "/run/keys/ts";
    flags = ''"--advertise-exit-node"'';
    also = config: {
      inherit (config.systemd.services.tailscaled-set) wantedBy;
      inherit (config.systemd.services.tailscaled-set.unitConfig) DefaultDependencies;
    };
    wantAlso = {
      wantedBy = [ "multi-user.target" ];
      DefaultDependencies = false;
    };
  };

  "host: a subnet router, whose profile resets" = host {
    modules = [
      others
      {
        _file = "/etc/nixos/router.nix";
        boot.kernel.sysctl."net.ipv4.ip_forward" = 1;
        services.tailscale = {
          enable = true;
          authKeyFile = "/root/tailscale.key";
          extraUpFlags = [
            "--reset"
            "--advertise-routes=192.0.2.0/24,2001:db8::/32"
            "--snat-subnet-routes=false"
          ];
        };
      }
    ];
    keyFile = "/root/tailscale.key";
    flags = ''"--advertise-routes=192.0.2.0/24,2001:db8::/32" "--snat-subnet-routes=false"'';
    warnings = [
      ''
        /etc/nixos/router.nix sets --reset in services.tailscale.extraUpFlags. services.tailscale-autoconnect leaves it out: it would lose the node's settings; give the flags that you want changed.
      ''
    ];
  };

  "host: a container with userspace networking, whose firewall trusts its interface" = host {
    modules = [
      (tailscale {
        authKeyFile = "/run/host/ts";
        interfaceName = "userspace-networking";
      })
      { services.tailscale-autoconnect.trustInterface = true; }
    ];
    keyFile = "/run/host/ts";
    warnings = [
      ''
        services.tailscale-autoconnect.trustInterface has no effect, since userspace-networking is not the name of an interface. With userspace networking, connections from the tailnet come from tailscaled on this machine, and the firewall does not see them.
      ''
    ];
    also = config: config.networking.firewall.trustedInterfaces;
    wantAlso = [ ];
  };

  "host: one of several containers, joined by hand" = host {
    modules = [
      (tailscale {
        authKeyFile = "/run/host/ts";
        interfaceName = "ts-web";
        extraUpFlags = [ "--hostname=web" ];
      })
      {
        systemd.services = {
          tailscaled.wantedBy = mkForce [ ];
          tailscaled-autoconnect.wantedBy = mkForce [ ];
        };
        services.tailscale-autoconnect.trustInterface = true;
      }
    ];
    keyFile = "/run/host/ts";
    flags = ''"--hostname=web"'';
    also = config: {
      inherit (config.networking.firewall) trustedInterfaces;
      inherit (config.systemd.services.tailscale-autoconnect) wantedBy;
    };
    wantAlso = {
      trustedInterfaces = [ "ts-web" ];
      wantedBy = [ ];
    };
  };

  "host: a microvm, with a key that its host shares" = host {
    modules = [
      others
      (tailscale { authKeyFile = "/run/shared/ts"; })
      {
        microvm.shares.secrets = {
          source = "/run/agenix";
          mountPoint = "/run/shared";
        };
        systemd.services.tailscaled-autoconnect.unitConfig.RequiresMountsFor = [ "/run/shared" ];
      }
    ];
    keyFile = "/run/shared/ts";
    also = config: config.systemd.services.tailscale-autoconnect.unitConfig;
    wantAlso.RequiresMountsFor = [ "/run/shared" ];
  };

  "host: impermanence, with a key under /persist and a workaround for the state" = host {
    modules = [
      others
      {
        _file = "/etc/nixos/persist.nix";
        environment.persistence."/persist".directories = [ "/var/lib/tailscale" ];
        services.tailscale = {
          enable = true;
          authKeyFile = "/persist/tailscale.key";
        };
        systemd.services.tailscaled-autoconnect.serviceConfig = {
          BindReadOnlyPaths = [ "/persist/tailscale.key" ];
          Restart = "on-failure";
        };
      }
    ];
    keyFile = "/persist/tailscale.key";
    warnings = [
      ''
        /etc/nixos/persist.nix sets serviceConfig.Restart on systemd.services.tailscaled-autoconnect, which has no effect: tailscale-autoconnect.service takes the place of that unit. Remove it there, or set it on systemd.services.tailscale-autoconnect.
      ''
    ];
    also = config: config.systemd.services.tailscale-autoconnect.serviceConfig.BindReadOnlyPaths;
    wantAlso = [ "/persist/tailscale.key" ];
  };
}
