//! What happens to the services after the boot: stopped, started, restarted and killed.

use std::time::{Duration, Instant};

use serde_json::json;
use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, UNIT};

const DAEMON: &str = "tailscaled.service";

/// A machine that has joined with a key for any number of logins.
fn joined(debian: Debian) -> (Tailnet, Machine, String) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.reusable_key();
    let mut machine = Machine::new(debian, &tailnet);
    machine.secret(&key);
    machine.boot_to_the_end();
    machine.wait_connected();
    (tailnet, machine, key)
}

/// A machine whose login is under way and gets no answer.
fn in_mid_login(fault: &str) -> (Tailnet, Machine, String) {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    tailnet.fault(fault);
    machine.boot_to_the_end();
    machine.wait("the CLI", || (machine.processes_of(UNIT).len() == 2).then_some(()));
    (tailnet, machine, key)
}

fn kill_daemon(machine: &Machine) {
    machine.run(&["systemctl", "kill", "--signal=KILL", "--kill-whom=main", DAEMON]);
}

pub fn daemon_restarts(debian: Debian) {
    let (tailnet, machine, _) = joined(debian);
    let events: [(&str, &dyn Fn()); 3] = [
        ("restarted", &|| machine.systemctl("restart", DAEMON)),
        ("stopped and started", &|| {
            machine.systemctl("stop", DAEMON);
            let ours = machine.ours();
            assert!(ours.is("ActiveState", "inactive") && ours.is("Result", "success"));
            machine.systemctl("start", DAEMON);
        }),
        ("killed", &|| kill_daemon(&machine)),
    ];
    for (what, event) in events {
        let before = machine.show(DAEMON).get("InvocationID").to_owned();
        event();
        machine.wait_unit(DAEMON, "back", |unit| {
            !unit.is("InvocationID", &before) && unit.is("ActiveState", "active")
        });
        // It stays, or is started anew: either way it goes on.
        let is_online =
            || machine.try_run(&["tailscale", "ip"]).status.success() && machine.is_online();
        machine.wait(&format!("it: tailscaled was {what}"), || is_online().then_some(()));
        machine.wait_connected();
    }
    let state = tailnet.state();
    assert_eq!((state.registers.with_key, state.nodes.len()), (1, 1));
}

#[test]
fn it_follows_a_tailscaled_that_is_restarted() {
    daemon_restarts(Debian::Trixie);
}

#[test]
fn while_it_is_at_work_it_follows_tailscaled() {
    let (tailnet, machine, key) = in_mid_login("down");
    let invocation = || machine.ours().get("InvocationID").to_owned();
    let at_work_again = |before: &str| {
        machine.wait_ours("at work again", |unit| {
            !unit.is("InvocationID", before)
                && unit.is("ActiveState", "activating")
                && unit.get("StatusText").starts_with("waiting for the control server")
        });
    };

    let before = invocation();
    machine.systemctl("restart", DAEMON);
    at_work_again(&before);

    let before = invocation();
    machine.systemctl("stop", DAEMON);
    let ours = machine.ours();
    assert!(ours.is("ActiveState", "inactive") && ours.is("Result", "success"));
    assert_eq!(machine.processes_of(UNIT), Vec::<String>::new());
    machine.systemctl("start", DAEMON);
    at_work_again(&before);

    // This it sees by itself, or is started anew: either way it goes on.
    let daemon = machine.show(DAEMON).get("InvocationID").to_owned();
    kill_daemon(&machine);
    machine.wait_unit(DAEMON, "back", |unit| {
        !unit.is("InvocationID", &daemon) && unit.is("ActiveState", "active")
    });
    machine.wait_status_text("waiting for the control server");

    tailnet.lift_faults();
    machine.wait_connected();
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}

#[test]
fn a_stop_in_mid_login_takes_no_time_and_leaves_no_process() {
    let (_tailnet, machine, _) = in_mid_login("hang");

    let begin = Instant::now();
    machine.systemctl("stop", UNIT);
    let took = begin.elapsed();

    assert!(took < Duration::from_secs(1), "{took:?}");
    let ours = machine.ours();
    assert!(ours.is("ActiveState", "inactive") && ours.is("Result", "success"));
    assert_eq!(ours.end(), "killed 15");
    assert_eq!(machine.processes_of(UNIT), Vec::<String>::new());
    let left = machine.try_run(&["pgrep", "-f", "tailscale .*up --auth-key"]);
    assert_eq!(left.status.code(), Some(1), "{left:?}");
}

#[test]
fn killed_in_mid_login_it_is_restarted_and_the_key_is_not_lost() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    tailnet.policy(json!({"register_delay_ms": 3000}));

    machine.boot();
    tailnet.wait_until(|state| state.key(&key).attempts == 1, "the login");
    machine.run(&["systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT]);

    let ours = machine.wait_connected();
    assert_eq!(ours.number("NRestarts"), 1);
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert!(machine.is_online());
}

#[test]
fn what_an_admin_does_with_tailscale_is_left_alone_until_a_restart() {
    let (tailnet, machine, key) = joined(Debian::Trixie);
    let left_alone = |state: &str| {
        let before = machine.ours().get("InvocationID").to_owned();
        let registers = tailnet.state().registers;
        tailnet.holds_for(
            Duration::from_secs(2),
            |now| now.registers == registers,
            "nobody registers",
        );
        let ours = machine.wait_status_text("; left alone until a restart of this service");
        assert!(ours.is("InvocationID", &before) && ours.is("SubState", "running"));
        assert_eq!(machine.tailscale_status()["BackendState"], state);
    };

    machine.run(&["tailscale", "down"]);
    left_alone("Stopped");
    // A restart brings it up, without the key.
    machine.systemctl("restart", UNIT);
    machine.wait_connected();
    assert!(machine.is_online());
    assert_eq!(tailnet.state().key(&key).uses, 1);

    machine.run(&["tailscale", "logout"]);
    left_alone("NeedsLogin");
    // A restart logs in with the key.
    machine.systemctl("restart", UNIT);
    machine.wait_connected();
    assert!(machine.is_online());
    assert_eq!(tailnet.state().key(&key).uses, 2);
}

#[test]
fn no_start_is_refused_for_being_one_too_many() {
    let (tailnet, machine, _) = joined(Debian::Trixie);

    // systemd's own limit is 5 starts in 10 seconds.
    for _ in 0..8 {
        machine.systemctl("restart", UNIT);
    }

    machine.wait_connected();
    assert_eq!(tailnet.state().registers.total, 1);
}

#[test]
fn starts_at_the_same_time_use_the_key_once() {
    let tailnet = Tailnet::start_apart();
    let key = tailnet.single_use_key();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.secret(&key);
    machine.offline(&["systemctl", "disable", UNIT]);
    tailnet.policy(json!({"register_delay_ms": 1500}));
    machine.boot_to_the_end();
    machine.wait_unit(DAEMON, "up", |unit| unit.is("ActiveState", "active"));

    let by_hand = ["tailscale-autoconnect", "--login-server", tailnet.url()];
    let start = ["systemctl", "start", UNIT];
    let mut all: Vec<_> = [&start[..], &start, &by_hand, &by_hand]
        .iter()
        .map(|command| machine.spawn(command))
        .collect();
    for one in &mut all {
        assert!(one.wait().expect("it was started").success());
    }

    let state = tailnet.state();
    assert_eq!((state.key(&key).attempts, state.key(&key).uses), (1, 1));
    assert_eq!(state.nodes.len(), 1);
    assert!(machine.is_online());
}
