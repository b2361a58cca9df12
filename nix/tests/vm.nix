# A NixOS machine with agenix joins a tailnet of headscale, reboots, and gets new keys, good and bad
# ones. Run it with `nix flake check`, or by itself:
#
#   nix build .#checks.x86_64-linux.vm
{
  package,
  agenix ? builtins.fetchTarball {
    url = "https://github.com/ryantm/agenix/archive/b027ee29d959fda4b60b57566d64c98a202e0feb.tar.gz";
    sha256 = "sha256-9VnK6Oqai65puVJ4WYtCTvlJeXxMzAp/69HhQuTdl/I=";
  },
}:

{
  name = "tailscale-autoconnect";

  nodes.headscale =
    { config, ... }:
    {
      services.headscale = {
        enable = true;
        address = "0.0.0.0";
        port = 8080;
        settings = {
          server_url = "http://headscale:8080";
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

  nodes.machine =
    {
      config,
      lib,
      pkgs,
      ...
    }:
    {
      imports = [
        "${agenix}/modules/age.nix"
        ../module.nix
        ../example/tailscale.nix
      ];

      # The machine's host key is made when it first boots, so the secret is encrypted in it.
      age.secrets.tailscale-token.file = lib.mkForce "/var/lib/tailscale-token.age";

      services.tailscale-autoconnect = {
        inherit package;
        loginServer = "http://headscale:8080";
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

      environment.systemPackages = [ pkgs.age ];
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


    def encrypt(key):
        """What `agenix -e` and a switch do."""
        machine.succeed(
            f"echo {key} | age --encrypt --recipients-file /etc/ssh/ssh_host_ed25519_key.pub"
            " --output /var/lib/tailscale-token.age",
            "/run/current-system/activate",
            f"grep -qx {key} /run/agenix/tailscale-token",
        )


    def show(name):
        return machine.succeed(f"systemctl show --property={name} --value {UNIT}").strip()


    def wait_connected():
        machine.wait_until_succeeds(
            f"systemctl show --property=StatusText --value {UNIT} | grep '^connected as '", timeout=120
        )
        status = json.loads(machine.succeed("tailscale status --json"))
        assert status["BackendState"] == "Running" and status["Self"]["Online"], status


    start_all()
    headscale.wait_for_unit("headscale.service")
    headscale.wait_for_open_port(8080)
    headscale.succeed("headscale users create test")

    with subtest("the boot is not held up while the secret is missing"):
        machine.wait_for_unit("multi-user.target")
        machine.wait_for_unit("sshd.service")
        machine.wait_until_succeeds("test -s /etc/ssh/ssh_host_ed25519_key.pub")
        assert nodes() == []

    with subtest("it joins when the secret is there"):
        first = new_key()
        encrypt(first)
        machine.succeed("systemctl start multi-user.target")
        wait_connected()
        assert len(nodes()) == 1, nodes()
        machine.fail(f"journalctl --boot | grep -F {first}")

    with subtest("it reboots with the used key, and the consumer finds its address"):
        node_key = nodes()[0]["node_key"]
        machine.shutdown()
        machine.start()
        wait_connected()
        machine.wait_for_unit("consumer.service")
        assert re.match(r"100\.", machine.succeed("cat /run/consumer"))
        assert [node["node_key"] for node in nodes()] == [node_key], nodes()
        machine.fail(f"journalctl --boot --unit {UNIT} | grep 'logging in'")

    with subtest("a key that is refused ends it with one clear message"):
        machine.succeed("tailscale logout")
        encrypt(first)
        machine.execute(f"systemctl restart {UNIT}")
        machine.wait_until_succeeds(f"systemctl is-failed {UNIT}", timeout=120)
        assert show("ExecMainStatus") == "77", show("ExecMainStatus")
        assert show("NRestarts") == "0", show("NRestarts")

    with subtest("a new key heals it with the next switch"):
        encrypt(new_key())
        machine.succeed("systemctl start multi-user.target")
        wait_connected()
  '';
}
