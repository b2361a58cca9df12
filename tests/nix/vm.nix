# NixOS machines join a tailnet of headscale: with agenix, with agenix and userborn, with sops-nix, and
# one that comes from services.tailscale.authKeyFile. `nix flake check` runs it, and by itself:
#
#   nix build .#checks.x86_64-linux.vm
{
  package,
  agenix,
  sops-nix,
}:

let
  loginServer = "http://headscale:8080";

  # What all machines that join have.
  client =
    { config, pkgs, ... }:
    {
      imports = [ ../../nix/module.nix ];
      services.openssh.enable = true;
      services.tailscale-autoconnect = {
        inherit package;
        readyAfter = "5s";
      };
      # Ordered after the name that nixpkgs has for the same work.
      systemd.services.consumer = {
        wantedBy = [ "multi-user.target" ];
        wants = [ "tailscaled-autoconnect.service" ];
        after = [ "tailscaled-autoconnect.service" ];
        path = [ config.services.tailscale.package ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
        };
        script = "tailscale ip -4 >/run/consumer";
      };
      environment.systemPackages = with pkgs; [
        age
        sops
        ssh-to-age
      ];
    };

  # With the example. A machine's host key is made when it first boots, so the secret is encrypted in it.
  withAgenix =
    { lib, ... }:
    {
      imports = [
        client
        "${agenix}/modules/age.nix"
        ../../nix/example/tailscale.nix
      ];
      age.secrets.tailscale-token.file = lib.mkForce "/var/lib/tailscale-token.age";
      services.tailscale-autoconnect = { inherit loginServer; };
    };
in
{
  name = "tailscale-autoconnect";

  nodes = {
    headscale =
      { config, ... }:
      {
        services.headscale = {
          enable = true;
          address = "0.0.0.0";
          port = 8080;
          settings = {
            server_url = loginServer;
            dns = {
              base_domain = "tailnet.test";
              override_local_dns = false;
            };
            # There is no other network, so it has to be its own relay.
            derp = {
              urls = [ ];
              server = {
                enabled = true;
                region_id = 999;
                stun_listen_addr = "0.0.0.0:3478";
              };
            };
          };
        };
        networking.firewall = {
          allowedTCPPorts = [ config.services.headscale.port ];
          allowedUDPPorts = [ 3478 ];
        };
        environment.systemPackages = [ config.services.headscale.package ];
      };

    machine = withAgenix;

    # agenix decrypts by a service.
    userborn = {
      imports = [ withAgenix ];
      services.userborn.enable = true;
    };

    sops = {
      imports = [
        client
        "${sops-nix}/modules/sops"
      ];
      sops = {
        validateSopsFiles = false;
        secrets.tailscale-token.sopsFile = "/var/lib/secrets.yaml";
      };
      services.tailscale-autoconnect = {
        enable = true;
        inherit loginServer;
      };
    };

    # One line is added to what it has.
    migrated = {
      imports = [ client ];
      services.tailscale = {
        enable = true;
        authKeyFile = "/var/lib/tailscale-key";
        extraUpFlags = [
          "--login-server=${loginServer}"
          "--hostname=migrated"
        ];
      };
      systemd.services.tailscaled-autoconnect.unitConfig.ConditionPathExists = "/var/lib/tailscale-key";
      specialisation.ours.configuration.services.tailscale-autoconnect.enable = true;
    };
  };

  testScript = ''
    import json
    import re

    UNIT = "tailscale-autoconnect.service"


    def new_key():
        """A key that can be used once."""
        output = headscale.succeed("headscale preauthkeys --user 1 create --expiration 1h")
        return output.strip().splitlines()[-1]


    def nodes():
        return json.loads(headscale.succeed("headscale nodes list --output json")) or []


    def node_key(name):
        [key] = [
            # After headscale 0.29, the latter.
            node.get("node_key") or node["nodeKey"]
            for node in nodes()
            if (node.get("given_name") or node["givenName"]) == name
        ]
        return key


    def encrypt(node, key):
        """What `agenix -e` and a switch do."""
        node.succeed(
            f"echo {key} | age --encrypt --recipients-file /etc/ssh/ssh_host_ed25519_key.pub"
            " --output /var/lib/tailscale-token.age"
        )


    def install(node, key):
        encrypt(node, key)
        node.succeed(
            "/run/current-system/activate",
            f"grep -qx {key} /run/agenix/tailscale-token",
        )


    def show(node, name):
        return node.succeed(f"systemctl show --property={name} --value {UNIT}").strip()


    def wait_connected(node):
        node.wait_until_succeeds(
            f"systemctl show --property=StatusText --value {UNIT} | grep '^connected as '", timeout=120
        )
        status = json.loads(node.succeed("tailscale status --json"))
        assert status["BackendState"] == "Running" and status["Self"]["Online"], status


    def wait_host_key(node):
        node.wait_for_unit("sshd.service")
        node.wait_until_succeeds("test -s /etc/ssh/ssh_host_ed25519_key.pub")


    start_all()
    headscale.wait_for_unit("headscale.service")
    headscale.wait_for_open_port(8080)
    headscale.succeed("headscale users create test")

    with subtest("the boot is not held up while the secret is missing"):
        machine.wait_for_unit("multi-user.target")
        wait_host_key(machine)
        assert nodes() == []

    with subtest("it joins when the secret is there"):
        first = new_key()
        install(machine, first)
        machine.succeed("systemctl start multi-user.target")
        wait_connected(machine)
        assert len(nodes()) == 1, nodes()
        machine.fail(f"journalctl --boot | grep -F {first}")

    with subtest("it reboots with the used key, and the consumer finds its address"):
        before = node_key("machine")
        machine.shutdown()
        machine.start()
        wait_connected(machine)
        machine.wait_for_unit("consumer.service")
        assert re.match(r"100\.", machine.succeed("cat /run/consumer"))
        assert node_key("machine") == before
        machine.fail(f"journalctl --boot --unit {UNIT} | grep 'logging in'")

    with subtest("a key that is refused ends it with one clear message"):
        machine.succeed("tailscale logout")
        install(machine, first)
        machine.execute(f"systemctl restart {UNIT}")
        machine.wait_until_succeeds(f"systemctl is-failed {UNIT}", timeout=120)
        assert show(machine, "ExecMainStatus") == "77", show(machine, "ExecMainStatus")
        assert show(machine, "NRestarts") == "0", show(machine, "NRestarts")

    with subtest("a new key heals it with the next switch"):
        install(machine, new_key())
        machine.succeed("systemctl start multi-user.target")
        wait_connected(machine)

    with subtest("with userborn, it waits for the service that decrypts"):
        wait_host_key(userborn)
        encrypt(userborn, new_key())
        userborn.shutdown()
        userborn.start()
        wait_connected(userborn)
        userborn.wait_for_unit("agenix-install-secrets.service")

    with subtest("sops-nix"):
        wait_host_key(sops)
        sops.succeed(
            f"echo 'tailscale-token: {new_key()}' >/run/plain.yaml",
            "sops --encrypt --age $(ssh-to-age </etc/ssh/ssh_host_ed25519_key.pub) /run/plain.yaml"
            " >/var/lib/secrets.yaml",
        )
        sops.shutdown()
        sops.start()
        wait_connected(sops)

    with subtest("services.tailscale.authKeyFile: the switch to ours leaves the node as it is"):
        migrated.wait_for_unit("multi-user.target")
        migrated.succeed(f"echo {new_key()} >/var/lib/tailscale-key")
        migrated.succeed("systemctl start tailscaled-autoconnect.service")
        before = node_key("migrated")
        migrated.succeed("/run/current-system/specialisation/ours/bin/switch-to-configuration test")
        wait_connected(migrated)
        assert node_key("migrated") == before
        assert "tailscaled-autoconnect.service" in show(migrated, "Names")
        assert "/var/lib/tailscale-key" in migrated.succeed(f"systemctl cat {UNIT}")

    with subtest("and its flags and its key file are used when it has to log in"):
        migrated.succeed("tailscale logout", f"echo {new_key()} >/var/lib/tailscale-key")
        migrated.succeed(f"systemctl restart {UNIT}")
        wait_connected(migrated)
        status = json.loads(migrated.succeed("tailscale status --json"))
        assert status["Self"]["HostName"] == "migrated", status
  '';
}
