//! What the service manager is told, and when.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tailnet_harness::{
    FakeTailscaled, Finished, Notification, PATIENCE, Response, Run, Signal, status_json,
};

use crate::{STATUS, a_moment, connect, program, stays};

fn waiting() -> FakeTailscaled {
    FakeTailscaled::with_status(status_json("NeedsMachineAuth", json!({})))
}

/// The places of the notifications that have this line.
fn places(notifications: &[Notification], name: &str) -> Vec<usize> {
    (0..notifications.len()).filter(|place| notifications[*place].get(name).is_some()).collect()
}

#[test]
fn a_run_that_connects_is_ready_and_says_so_once() {
    let fake = FakeTailscaled::with_status(status_json("Running", json!({})));
    let run = program(&fake).run();
    run.assert_code(0);
    assert_eq!(places(&run.notifications, "READY").len(), 1);
    assert_eq!(
        run.statuses(),
        ["connected as fake.tail0000.ts.net (100.64.0.1, fd7a:115c:a1e0::1)"]
    );
}

#[test]
fn a_run_that_fails_says_why_and_never_that_it_is_ready() {
    let fake = waiting();
    let run = program(&fake).args(a_moment()).run();
    run.assert_code(75);
    assert_eq!(run.ready_at(), None);
    assert_eq!(
        run.statuses().last(),
        Some(
            &"not connected within the time limit: \
              waiting for an admin to approve this device"
        )
    );
}

#[test]
fn ready_comes_after_the_grace_while_the_work_goes_on() {
    let fake = waiting();
    let run = program(&fake).args(["--ready-after", "500ms"]).spawn();
    run.wait_status_text("waiting for an admin");
    assert!(run.wait_ready() >= Duration::from_millis(500));
    assert!(run.is_alive());
    // The work has not ended with it.
    let few = fake.count(STATUS);
    fake.wait_count(STATUS, few + 2);
    connect(&fake);
    let run = run.wait();
    run.assert_code(0);
    assert_eq!(places(&run.notifications, "READY").len(), 1);
}

#[test]
fn a_failure_after_ready_keeps_its_exit_code() {
    let fake = waiting();
    let run = program(&fake).args(["--ready-after", "200ms"]).args(a_moment()).run();
    run.assert_code(75);
    assert!(run.ready_at().is_some());
}

#[test]
fn the_start_timeout_is_extended_before_ready_and_not_after() {
    let fake = waiting();
    let run = program(&fake).args(["--ready-after", "400ms"]).args(a_moment()).run();
    let extends = places(&run.notifications, "EXTEND_TIMEOUT_USEC");
    let ready = places(&run.notifications, "READY");
    assert_eq!(extends.len(), 1, "{:?}", run.notifications);
    assert!(extends < ready, "{:?}", run.notifications);
    assert_eq!(run.notifications[extends[0]].get("EXTEND_TIMEOUT_USEC"), Some("60000000"));
}

#[test]
fn without_a_grace_ready_comes_at_once_and_no_time_is_asked_for() {
    let fake = waiting();
    let run = program(&fake).args(["--ready-after", "0"]).args(a_moment()).run();
    run.assert_code(75);
    assert!(run.ready_at().is_some());
    assert!(places(&run.notifications, "EXTEND_TIMEOUT_USEC").is_empty());
}

#[test]
fn a_status_is_sent_only_when_it_is_news() {
    let fake = waiting();
    let run = program(&fake).spawn();
    fake.wait_count(STATUS, 12);
    fake.script(stays(status_json("Starting", json!({}))));
    fake.ring();
    run.wait_status_text("settle");
    let few = fake.count(STATUS);
    fake.wait_count(STATUS, few + 5);
    connect(&fake);
    let run = run.wait();
    run.assert_code(0);
    assert_eq!(
        run.statuses(),
        [
            "waiting for an admin to approve this device",
            "waiting for tailscaled to settle",
            "connected as fake.tail0000.ts.net (100.64.0.1, fd7a:115c:a1e0::1)",
        ]
    );
}

#[test]
fn a_signal_ends_the_wait_at_once_and_is_seen_by_the_service_manager() {
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2), (Signal::HUP, 1)] {
        let fake = waiting();
        let run = program(&fake).spawn();
        fake.wait_stream();
        run.signal(signal);
        let run = run.wait();
        assert_eq!((run.code, run.signal), (None, Some(number)));
        assert_stopped(&run);
    }
}

#[test]
fn an_abstract_socket_of_a_service_manager_hears_it_too() {
    let name = format!("tailscale-autoconnect-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a short name");
    let manager = UnixDatagram::bind_addr(&address).expect("a name of our own");
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let fake = FakeTailscaled::with_status(status_json("Running", json!({})));
    let run = program(&fake).without_notify().env("NOTIFY_SOCKET", format!("@{name}")).run();
    run.assert_code(0);
    let mut told = [0; 4096];
    while let Ok(length) = manager.recv(&mut told) {
        if told[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return;
        }
    }
    panic!("READY=1 was not said");
}

fn assert_stopped(run: &Finished) {
    assert_eq!(places(&run.notifications, "STOPPING").len(), 1);
    assert_eq!(run.ready_at(), None);
    assert_eq!(run.stdout, "");
}

#[test]
fn a_signal_that_was_ignored_before_stays_so() {
    let fake = waiting();
    // As `nohup`, and as a shell without job control for what it runs in the background.
    let run = Run::new("/bin/sh")
        .args(["-c", "trap '' HUP INT; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_tailscale-autoconnect"))
        .socket(fake.socket())
        .spawn();
    fake.wait_stream();
    run.signal(Signal::HUP);
    run.signal(Signal::INT);
    // Longer than an end takes.
    thread::sleep(Duration::from_millis(1500));
    assert!(run.is_alive());
    run.signal(Signal::TERM);
    let run = run.wait();
    assert_eq!((run.code, run.signal), (None, Some(15)));
    assert_stopped(&run);
}

#[test]
fn a_signal_in_an_unanswered_request_ends_it_too() {
    let fake = FakeTailscaled::start(|_| Response::never());
    let run = program(&fake).spawn();
    fake.wait_count(STATUS, 1);
    run.signal(Signal::TERM);
    let run = run.wait();
    assert_eq!(run.signal, Some(15));
    assert!(run.elapsed < Duration::from_secs(4), "{:?}", run.elapsed);
    assert_stopped(&run);
}

#[test]
fn without_a_service_manager_and_with_one_that_is_gone_it_works() {
    let fake = FakeTailscaled::with_status(status_json("Running", json!({})));
    program(&fake).without_notify().run().assert_code(0);
    program(&fake)
        .without_notify()
        .env("NOTIFY_SOCKET", "/nonexistent/notify")
        .run()
        .assert_code(0);
}
