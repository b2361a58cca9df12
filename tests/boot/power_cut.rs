//! A machine whose power is cut in the middle of a login.

use serde_json::{Value, json};
use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, UNIT, setting};

/// Settings with and without a flag of `tailscale up`.
const SETTINGS: [&str; 6] = [
    "--accept-routes",
    "--hostname=kept",
    "--operator=nobody",
    "--auto-update",
    "--update-check=false",
    "--webclient",
];

/// Runs `tailscale`. In the first boot the program stands still from the moment that it starts `up`, so
/// it sees nothing of the login and puts nothing back.
const FREEZING: &str = r#"#!/bin/sh
case " $* " in
*" up "*) [ ! -e /run/freeze ] || kill -STOP "$PPID" ;;
esac
exec /usr/bin/tailscale "$@"
"#;

/// A new machine whose owner has made settings before its first login, and these settings. Our unit
/// does not start by itself.
fn machine_with_settings(debian: Debian, tailnet: &Tailnet, key: &str) -> (Machine, Value) {
    let mut machine = Machine::new(debian, tailnet);
    machine.secret(key);
    machine.offline(&["systemctl", "disable", UNIT]);
    machine.boot_to_the_end();
    machine.wait_unit("tailscaled.service", "up", |unit| unit.is("ActiveState", "active"));
    let mut set = vec!["tailscale", "set"];
    set.extend(SETTINGS);
    machine.run(&set);
    let settings = machine.settings();
    (machine, settings)
}

fn start(machine: &Machine) {
    machine.run(&["systemctl", "start", "--no-block", UNIT]);
}

/// Cuts the power, and boots with our unit.
fn cut(machine: &mut Machine) {
    machine.cut_power();
    machine.offline(&["systemctl", "enable", UNIT]);
    machine.boot();
}

/// The record of a begun login, if there is one.
fn record(machine: &Machine) -> Option<Value> {
    let directory = machine.inside("var/lib/tailscale-autoconnect");
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut records = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"));
    let record = std::fs::read_to_string(records.next()?).ok()?;
    serde_json::from_str(&record).ok()
}

/// Nothing of a login is left to remember but when it was.
fn assert_login_is_over(machine: &Machine) {
    machine.wait("the end of the login in the record", || {
        let record = record(machine)?;
        (record["login"].is_null() && record["last"]["login"] != 0).then_some(())
    });
}

/// The same, where the program stands still once it has started `tailscale up`.
fn machine_that_freezes(debian: Debian, tailnet: &Tailnet, key: &str) -> (Machine, Value) {
    let (machine, settings) = machine_with_settings(debian, tailnet, key);
    machine.write_script("usr/local/bin/freezing", FREEZING);
    machine.drop_in("20-freezing", &setting("TAILSCALE", "/usr/local/bin/freezing"));
    machine.run(&["systemctl", "daemon-reload"]);
    machine.run(&["touch", "/run/freeze"]);
    (machine, settings)
}

pub fn before_the_answer(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let (mut machine, settings) = machine_that_freezes(debian, &tailnet, &key);
    tailnet.fault("down");

    start(&machine);
    machine.wait("the login's own settings", || (machine.settings() != settings).then_some(()));
    assert!(record(&machine).is_some_and(|record| !record["login"].is_null()));
    cut(&mut machine);
    tailnet.lift_faults();
    machine.wait_connected();

    assert_eq!(machine.settings(), settings);
    let state = tailnet.state();
    assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
    assert!(state.device("kept").is_some(), "{:?}", state.nodes);
    assert!(machine.is_online());
    assert_login_is_over(&machine);
}

#[test]
fn a_power_cut_before_the_answer_loses_no_setting_and_the_key_is_used_once() {
    before_the_answer(Debian::Trixie);
}

pub fn after_the_answer(debian: Debian) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let (mut machine, settings) = machine_that_freezes(debian, &tailnet, &key);

    start(&machine);
    machine.wait("the answer", || machine.is_online().then_some(()));
    assert_ne!(machine.settings(), settings);
    cut(&mut machine);
    machine.wait_connected();

    assert_eq!(machine.settings(), settings);
    let state = tailnet.state();
    assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
    assert_eq!(state.nodes.len(), 1);
    assert!(machine.is_online());
    assert_login_is_over(&machine);
}

#[test]
fn a_power_cut_between_the_answer_and_the_put_back_loses_no_setting_and_sends_no_key_again() {
    after_the_answer(Debian::Trixie);
}

#[test]
fn a_power_cut_while_the_control_server_has_the_key_loses_no_setting() {
    let tailnet = Tailnet::start_apart();
    // The answer is lost with the power, so a key for one login would be spent.
    let key = tailnet.reusable_key();
    let (mut machine, settings) = machine_with_settings(Debian::Trixie, &tailnet, &key);
    tailnet.policy(json!({"register_delay_ms": 3000}));

    start(&machine);
    tailnet.wait_until(|state| state.key(&key).attempts == 1, "the login");
    cut(&mut machine);
    tailnet.policy(json!({"register_delay_ms": 0}));
    machine.wait_connected();

    assert_eq!(machine.settings(), settings);
    // Once by each boot: tailscaled keeps no auth key over a boot.
    assert_eq!(tailnet.state().key(&key).attempts, 2);
    assert!(machine.is_online());
}

#[test]
fn a_power_cut_while_an_approval_is_awaited_sends_no_key_again() {
    let tailnet = Tailnet::start_apart();
    tailnet.policy(json!({"approval": true}));
    let key = tailnet.single_use_key();
    let (mut machine, settings) = machine_with_settings(Debian::Trixie, &tailnet, &key);

    start(&machine);
    machine.wait_status_text("waiting for an admin to approve this device");
    cut(&mut machine);
    machine.wait_status_text("waiting for an admin to approve this device");
    tailnet.assert_no_key_is_sent();
    tailnet.approve(tailnet.state().nodes[0].id);
    machine.wait_connected();

    assert_eq!(machine.settings(), settings);
    let state = tailnet.state();
    assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
    assert!(machine.is_online());
}
