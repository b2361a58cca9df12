//! The node's addresses, which may come to the interface later than the daemon says.

use std::time::Duration;

use serde_json::{Value, json};
use tailnet_harness::{FakeTailscaled, status_json};

use crate::{STATUS, program, stays};

/// No machine has this one.
const NOBODYS: &str = "100.127.255.1";

fn running_with(tun: bool, addresses: &[&str]) -> Value {
    status_json("Running", json!({ "TUN": tun, "TailscaleIPs": addresses }))
}

#[test]
fn addresses_on_the_interface_are_not_waited_for() {
    let fake = FakeTailscaled::with_status(running_with(true, &["127.0.0.2", "127.0.0.3"]));
    let run = program(&fake).run();
    run.assert_code(0);
    assert_eq!(fake.requests().len(), 1);
    assert!(run.stdout.ends_with("(127.0.0.2, 127.0.0.3)\n"), "{}", run.stdout);
}

#[test]
fn without_an_interface_no_address_is_waited_for() {
    let fake = FakeTailscaled::with_status(running_with(false, &[NOBODYS]));
    program(&fake).run().assert_code(0);
    assert_eq!(fake.requests().len(), 1);
}

#[test]
fn an_address_that_comes_later_is_waited_for() {
    let fake = FakeTailscaled::with_status(running_with(true, &["127.0.0.2", NOBODYS]));
    let run = program(&fake).spawn();
    assert_eq!(run.wait_status_text("address"), format!("waiting for the address {NOBODYS}"));
    let few = fake.count(STATUS);
    fake.wait_count(STATUS, few + 2);
    assert!(run.is_alive());
    fake.script(stays(running_with(true, &["127.0.0.2"])));
    fake.ring();
    let run = run.wait();
    run.assert_code(0);
    assert!(!run.stderr.contains("is not on the interface"), "{}", run.stderr);
}

#[test]
fn an_address_that_never_comes_is_waited_for_ten_seconds() {
    let fake = FakeTailscaled::with_status(running_with(true, &[NOBODYS]));
    let run = program(&fake).run();
    run.assert_code(0);
    let tens = Duration::from_secs(10)..Duration::from_secs(20);
    assert!(tens.contains(&run.elapsed), "{:?}", run.elapsed);
    let warning = format!("connected, but the address {NOBODYS} is not on the interface yet");
    assert!(run.stderr.contains(&warning), "{}", run.stderr);
    assert!(run.ready_at().is_some());
}
