//! A machine joins its tailnet when it boots.

use std::time::Duration;

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine};

/// Binds a socket to each address that tailscale names, and says which it could.
const BIND: &str = r#"#!/usr/bin/perl
use strict; use warnings; use Socket qw(:DEFAULT getaddrinfo AI_NUMERICHOST);
for my $address (split ' ', `tailscale ip`) {
    my ($error, $info) = getaddrinfo($address, 0, { flags => AI_NUMERICHOST, socktype => SOCK_STREAM });
    socket(my $socket, $info->{family}, SOCK_STREAM, 0) or die;
    bind($socket, $info->{addr}) or die "cannot bind $address: $!";
    print "bound $address\n";
}
"#;

pub fn first_boot(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret(&key);
    machine.write_script("usr/local/bin/bind", BIND);
    machine.unit(
        "consumer.service",
        "multi-user.target",
        "[Unit]\nWants=tailscale-autoconnect.service\nAfter=tailscale-autoconnect.service\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/local/bin/bind\n",
    );

    machine.boot();
    let ours = machine.wait_connected();
    let consumer =
        machine.wait_unit("consumer.service", "started", |unit| !unit.is("ExecMainCode", "0"));

    let system = machine.run(&["systemctl", "is-system-running", "--wait"]);
    assert_eq!(system, "running\n");
    let console = machine.console();
    assert!(!console.contains("cycle"), "{console}");

    let state = tailnet.state();
    assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
    let device = state.device("machine").expect("it has joined");
    assert!(machine.is_online());
    let who = format!(
        "connected as {} ({})",
        device.name.trim_end_matches('.'),
        device.addresses.join(", ")
    );
    assert!(ours.get("StatusText").starts_with(&who), "{}", ours.get("StatusText"));
    assert_eq!(consumer.end(), "exited 0");
    let bound = machine.journal("consumer.service");
    for address in &device.addresses {
        assert!(bound.contains(&format!("bound {address}")), "{bound}");
    }
    assert_eq!(machine.tailscale_status()["TUN"], true);
}

#[test]
fn a_first_boot_joins_and_a_consumer_finds_the_addresses_in_place() {
    first_boot(Debian::Trixie);
}

pub fn later_boots(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret(&key);
    machine.boot();
    machine.wait_connected();
    let device = tailnet.state().nodes[0].clone();

    // The first time with the used key, then without any.
    for boot in 0..2 {
        if boot == 1 {
            machine.offline(&["rm", "/etc/tailscale-token.age"]);
        }
        machine.reboot();
        machine.wait_connected();

        let state = tailnet.state();
        assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
        assert_eq!(state.registers.with_key, 1);
        assert_eq!(state.nodes.len(), 1);
        assert_eq!(state.nodes[0].node_key, device.node_key);
        assert!(machine.is_online());
        let journal = machine.journal(crate::machine::UNIT);
        assert!(!journal.contains("logging in"), "{journal}");
    }
}

#[test]
fn later_boots_need_no_auth_key() {
    later_boots(Debian::Trixie);
}

#[test]
fn a_secret_that_comes_five_seconds_late_is_used() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.encrypt_secret(&key);

    machine.boot();
    let begun = machine
        .wait_status_text("waiting for the auth key file /run/agenix/tailscale-token (missing)")
        .time("ExecMainStart");
    machine.run(&[
        "systemd-run",
        "--quiet",
        "--on-active=5s",
        "--timer-property=AccuracySec=1ms",
        "/usr/local/sbin/install-secrets",
    ]);
    let ours = machine.wait_connected();

    assert_eq!(ours.number("NRestarts"), 0);
    assert!(ours.time("ActiveEnter") - begun >= Duration::from_secs(5));
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}
