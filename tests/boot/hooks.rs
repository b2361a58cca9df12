//! The example units for what is to happen when the machine is connected.

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, UNIT, setting};

const HOOK: &str = include_str!("../../units/examples/tailnet-hook.service");
const DELETE_KEY: &str = include_str!("../../units/examples/tailscale-delete-key.service");

/// Tried more often than an hour of tests has time for.
const OFTEN: &str = "[Service]\nRestartSec=1\n";

pub fn run_when_connected(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.write("etc/tailscale/authkey", &key);
    machine.offline(&["chmod", "0400", "/etc/tailscale/authkey"]);
    machine.drop_in("20-ready", &setting("READY_AFTER", "1s"));
    machine.drop_in("21-key", &setting("AUTHKEY_FILE", "/etc/tailscale/authkey"));
    for (name, text) in
        [("tailnet-hook.service", HOOK), ("tailscale-delete-key.service", DELETE_KEY)]
    {
        machine.write(&format!("etc/systemd/system/{name}"), text);
        machine.drop_in_of(name, "often", OFTEN);
        machine.offline(&["systemctl", "enable", name]);
    }
    tailnet.fault("down");

    machine.boot_to_the_end();
    machine.wait_ours("ready", |unit| unit.is("ActiveState", "active"));
    for hook in ["tailnet-hook.service", "tailscale-delete-key.service"] {
        let tried = machine.wait_unit(hook, "tried", |unit| unit.number("NRestarts") > 0);
        // The exit status of --check, not the one of the command.
        assert!(tried.is("ExecMainStatus", "0"));
    }
    assert!(!machine.inside("run/tailnet-address").exists());
    assert!(machine.inside("etc/tailscale/authkey").exists());

    tailnet.lift_faults();
    machine.wait_connected();
    let address = machine.wait("the hook", || {
        let address = std::fs::read_to_string(machine.inside("run/tailnet-address"));
        address.ok().filter(|address| address.ends_with('\n'))
    });
    assert_eq!(address.trim(), tailnet.state().nodes[0].addresses[0]);
    let key_file = machine.path("etc/tailscale/authkey");
    machine.wait("the deletion", || (!key_file.exists()).then_some(()));

    // The next boot needs no key, and has the hook run again.
    machine.reboot();
    machine.wait_connected();
    let is_there = || machine.inside("run/tailnet-address").exists().then_some(());
    machine.wait("the hook", is_there);
    assert!(machine.is_online());
    assert_eq!(tailnet.state().registers.with_key, 1);
    let skipped = machine.show("tailscale-delete-key.service");
    assert!(skipped.is("ConditionResult", "no"));

    // So has a new run.
    machine.run(&["rm", "/run/tailnet-address"]);
    machine.systemctl("restart", "tailscaled.service");
    machine.wait("the hook", is_there);
}

#[test]
fn the_example_hooks_run_when_the_machine_is_connected_and_not_before() {
    run_when_connected(Debian::Trixie);
}

#[test]
fn systemd_finds_no_fault_with_the_example_units() {
    let tailnet = Tailnet::start_apart();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.write("etc/systemd/system/tailnet-hook.service", HOOK);
    machine.write("etc/systemd/system/tailscale-delete-key.service", DELETE_KEY);
    machine.boot();
    for name in [UNIT, "tailnet-hook.service", "tailscale-delete-key.service"] {
        let verified = machine.try_run(&["systemd-analyze", "verify", name]);
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success(), "{said}");
        assert!(!said.contains(name), "{said}");
    }
}
