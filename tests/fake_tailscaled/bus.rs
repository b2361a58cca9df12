//! The doorbell: with it, without it, and with one that never falls silent.

use std::thread;
use std::time::Duration;

use serde_json::json;
use tailnet_harness::{FakeTailscaled, Response, status_json};

use crate::{BUS, STATUS, connect, program};

/// More requests in a second than this are a spin.
const SPIN: usize = 25;

/// A daemon that waits for approval, with this bus.
fn with_bus(bus: Response) -> FakeTailscaled {
    FakeTailscaled::start(move |request| match request {
        _ if request.is_status() => Response::json(status_json("NeedsMachineAuth", json!({}))),
        _ if request.is_bus() => bus.clone(),
        _ => Response::status(404, "404 page not found\n"),
    })
}

/// Without a bus the timer alone does the work, at a pace that gets slower.
fn the_timer_does(bus: Response) {
    let fake = with_bus(bus);
    let run = program(&fake).spawn();
    fake.wait_count(STATUS, 2);
    let first = requests_in_a_second(&fake);
    assert!((2..=SPIN).contains(&first.0), "{first:?}");
    assert!(first.1 <= SPIN, "{first:?}");
    thread::sleep(Duration::from_secs(1));
    let later = requests_in_a_second(&fake);
    assert!((1..first.0).contains(&later.0), "{first:?}, {later:?}");
    assert!(later.1 <= 10, "{first:?}, {later:?}");
    connect(&fake);
    run.wait().assert_code(0);
}

/// Those for the status and those for the bus.
fn requests_in_a_second(fake: &FakeTailscaled) -> (usize, usize) {
    let count = || (fake.count(STATUS), fake.count(BUS));
    let before = count();
    thread::sleep(Duration::from_secs(1));
    let after = count();
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn without_permission_for_the_bus_the_timer_does() {
    the_timer_does(Response::status(403, "watch ipn bus access denied\n"));
}

#[test]
fn without_a_bus_in_the_daemon_the_timer_does() {
    the_timer_does(Response::status(404, "404 page not found\n"));
}

#[test]
fn with_a_bus_that_ends_at_once_the_timer_does() {
    the_timer_does(Response::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
}

#[test]
fn with_a_bus_that_hangs_up_the_timer_does() {
    the_timer_does(Response::close());
}

#[test]
fn a_silent_bus_is_opened_once_and_the_timer_runs_beside_it() {
    let fake = with_bus(Response::stream());
    let run = program(&fake).spawn();
    fake.wait_stream();
    fake.wait_count(STATUS, 10);
    assert_eq!(fake.count(BUS), 1);
    fake.end_streams();
    fake.wait_count(BUS, 2);
    connect(&fake);
    run.wait().assert_code(0);
}

#[test]
fn a_bus_that_never_answers_does_not_stop_the_timer() {
    let fake = with_bus(Response::never());
    let run = program(&fake).spawn();
    fake.wait_count(BUS, 1);
    // Five seconds each, if each had to wait for the bus first.
    fake.wait_count(STATUS, 10);
    assert!(fake.count(BUS) <= 3, "{} buses", fake.count(BUS));
    connect(&fake);
    run.wait().assert_code(0);
}

#[test]
fn the_doorbell_is_answered_with_a_look_at_the_status() {
    let fake = with_bus(Response::stream());
    let run = program(&fake).spawn();
    fake.wait_stream();
    // By now the timer alone looks only three times a second.
    fake.wait_count(STATUS, 22);
    let before = fake.count(STATUS);
    for ring in 1..=10 {
        fake.ring();
        fake.wait_count(STATUS, before + ring);
    }
    let took = {
        let requests = fake.requests();
        let mut times = requests.iter().filter(|one| one.is_status()).skip(before);
        let first = times.next().map(|one| one.at).unwrap_or_default();
        let last = times.nth(8).map(|one| one.at).unwrap_or_default();
        last - first
    };
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(run);
}

#[test]
fn a_bus_that_floods_does_not_make_us_spin() {
    let fake = with_bus(Response::endless());
    let run = program(&fake).spawn();
    fake.wait_count(STATUS, 2);
    let (looks, buses) = requests_in_a_second(&fake);
    assert!((2..=4 * SPIN).contains(&looks), "{looks} looks in a second");
    assert!(buses <= SPIN, "{buses} buses in a second");
    connect(&fake);
    run.wait().assert_code(0);
}
