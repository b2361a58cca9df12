//! The drop-ins that units/README.md shows, and where an OAuth client's proxy may be named.

use tailnet_harness::Tailnet;

use crate::machine::{DAEMON_ENVIRONMENT, Debian, Machine, UNIT, Unit};

#[test]
fn the_key_can_be_a_credential() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.write("etc/tailscale/authkey", &key);
    machine.drop_in(
        "20-credential",
        "[Service]\nLoadCredential=authkey:/etc/tailscale/authkey\n\
         Environment=TAILSCALE_AUTOCONNECT_AUTHKEY_FILE=%d/authkey\n",
    );

    machine.boot();
    machine.wait_connected();

    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}

#[test]
fn the_key_can_be_the_secret_of_an_oauth_client() {
    let tailnet = Tailnet::start_apart();
    let secret = tailnet.oauth_client(&["tag:server"]);
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&secret);
    machine.drop_in(
        "20-oauth",
        &format!(
            "[Service]\nEnvironment=\"TAILSCALE_AUTOCONNECT_AUTHKEY_PARAMS=\
             ephemeral=false&preauthorized=true&baseURL={}\"\nExecStart=\n\
             ExecStart=/usr/bin/tailscale-autoconnect -- --advertise-tags=tag:server\n",
            tailnet.api_url()
        ),
    );

    machine.boot();
    machine.wait_connected();

    let state = tailnet.state();
    let device = &state.nodes[0];
    assert_eq!((&device.tags[..], device.ephemeral), (&["tag:server".to_owned()][..], false));
    assert!(!state.api_requests.is_empty());
    assert!(machine.is_online());
}

#[test]
fn what_is_remembered_can_be_kept_in_run() {
    let tailnet = Tailnet::start_apart();
    let dead = tailnet.single_use_key();
    tailnet.revoke_key(&dead);
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&dead);
    machine.drop_in(
        "20-state",
        "[Service]\nStateDirectory=\nRuntimeDirectory=tailscale-autoconnect\n\
         RuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=yes\n",
    );

    machine.boot();
    let failed = |unit: &Unit| unit.is("ActiveState", "failed");
    machine.wait_ours("failed", failed);
    let sent = tailnet.state().key(&dead).attempts;
    let _ = machine.try_run(&["systemctl", "restart", UNIT]);
    machine.wait_ours("failed", failed);
    machine.wait_exit_shown("77/NOPERM", "was refused in an earlier run");

    assert_eq!(tailnet.state().key(&dead).attempts, sent);
    assert!(!machine.inside("var/lib/tailscale-autoconnect").exists());
}

/// A proxy on loopback that passes all that it is asked for on to one server, and says what that was.
const PROXY: &str = r#"#!/usr/bin/perl
use strict; use warnings; use Socket;
my ($port, $server) = @ARGV;
socket(my $listener, PF_INET, SOCK_STREAM, 0) or die;
setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1) or die;
bind($listener, sockaddr_in($port, INADDR_LOOPBACK)) && listen($listener, 5) or die "listen: $!";
while (accept(my $client, $listener)) {
    my ($head, $length) = ('', 0);
    while (my $line = <$client>) {
        print STDERR "asked: $line" if $head eq '';
        $line =~ s{^(\w+) http://[^/]+}{$1 } if $head eq '';
        $length = $1 if $line =~ /^content-length: *(\d+)/i;
        next if $line =~ /^(proxy-)?connection:/i;
        last if $line =~ /^\r?\n$/;
        $head .= $line;
    }
    read($client, my $body, $length) if $length;
    socket(my $upstream, PF_INET, SOCK_STREAM, 0) or die;
    connect($upstream, sockaddr_in($server, INADDR_LOOPBACK)) or die "connect: $!";
    syswrite($upstream, $head . "Connection: close\r\n\r\n" . ($body // ''));
    while (sysread($upstream, my $part, 65536)) { syswrite($client, $part) }
    close($client);
}
"#;

#[test]
fn the_secret_of_an_oauth_client_is_exchanged_by_the_proxy_that_only_tailscaled_knows() {
    let tailnet = Tailnet::start_apart();
    let secret = tailnet.oauth_client(&["tag:server"]);
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&secret);
    let (_, api_port) = tailnet.api_url().rsplit_once(':').expect("a port");
    machine.write_script("usr/local/bin/proxy", PROXY);
    machine.unit(
        "proxy.service",
        "sysinit.target",
        &format!(
            "[Unit]\nDefaultDependencies=no\n\
             [Service]\nExecStart=/usr/local/bin/proxy 3128 {api_port}\n"
        ),
    );
    // What else is in there is tailscaled's alone.
    machine.write(
        "etc/default/tailscaled",
        &format!(
            "{DAEMON_ENVIRONMENT}HTTP_PROXY=\"http://127.0.0.1:3128\"\nPATH=/none:/usr/bin\n\
             TAILSCALE_AUTOCONNECT_TAILSCALE=/none\n"
        ),
    );
    machine.drop_in(
        "20-oauth",
        "[Service]\nEnvironment=\"TAILSCALE_AUTOCONNECT_AUTHKEY_PARAMS=\
         baseURL=http://api.example.test\"\nExecStart=\n\
         ExecStart=/usr/bin/tailscale-autoconnect -- --advertise-tags=tag:server\n",
    );

    machine.boot();
    machine.wait_connected();

    let asked = machine.journal("proxy.service");
    assert!(asked.contains("asked: POST http://api.example.test/"), "{asked}");
    assert_eq!(tailnet.state().nodes[0].tags, ["tag:server"]);
    assert!(machine.is_online());
}
