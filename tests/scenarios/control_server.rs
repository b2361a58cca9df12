//! The control server cannot be used: what is being waited for is said, the boot goes on, and the
//! work ends well when it is back.

use std::time::Duration;

use serde_json::json;
use tailnet_harness::{Finished, KeyFile, Node, Run, Running, Tailnet, version_is_at_least};

use crate::joined::has_map_on_disk;
use crate::refusal::{assert_quiet, assert_refused};
use crate::{assert_joined, program, program_without_server};

/// Time enough for a daemon that waits up to 30 s from one try to the next.
const LONG: Duration = Duration::from_secs(60);

/// Starts `run` with a control server that cannot be used, and waits until it has said READY by
/// its time, goes on, and says `status`.
fn waits_with(run: Run, status: &str) -> Running {
    let run = run.args(["--ready-after", "1s"]).limit(LONG).spawn();
    let ready = run.wait_ready();
    assert!(ready >= Duration::from_secs(1), "READY after {ready:?}");
    run.wait_status_text(status);
    assert!(run.is_alive(), "it must not give up");
    run
}

/// A fresh join through a fault: the work goes on until it is lifted.
fn joins_after(fault: &str, status: &str) {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    tailnet.fault(fault);

    let run = waits_with(program(&tailnet, &node, &file), status);
    assert_eq!(tailnet.state().registers.total, 0);
    tailnet.lift_faults();
    let run = run.wait();

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.state().registers.with_key, 1);
}

#[test]
fn a_control_server_that_is_down_is_waited_for() {
    joins_after("down", "waiting for the control server: ");
}

#[test]
fn a_control_server_that_never_answers_is_waited_for() {
    joins_after("hang", "logging in");
}

#[test]
fn a_control_server_that_resets_connections_is_waited_for() {
    joins_after("reset", "waiting for the control server: ");
}

#[test]
fn a_control_server_with_internal_errors_is_waited_for() {
    joins_after("500", "waiting for the control server: ");
}

#[test]
fn a_control_server_that_talks_garbage_is_waited_for() {
    joins_after("garbage", "waiting for the control server: ");
}

#[test]
fn a_slow_control_server_lets_a_node_in_in_the_end() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    tailnet.fault("slow");

    let run = waits_with(program(&tailnet, &node, &file), "logging in").wait();

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.state().registers.with_key, 1);
}

/// A fresh join over TLS: with a bad certificate the key must not be sent. The control server goes
/// by its name, since tailscaled doesn't compare an address with the certificate.
fn joins_after_certificate(certificate: &str, words: &str) {
    let tailnet = Tailnet::start();
    let node = Node::builder().trusts(&tailnet).start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    tailnet.policy(json!({ "certificate": certificate }));

    let url = tailnet.tls_url().replace("127.0.0.1", "localhost");
    let run = waits_with(program_without_server(&node, &file).login_server(&url), words);
    assert_eq!(tailnet.state().registers.total, 0);
    tailnet.policy(json!({"certificate": "good"}));
    let run = run.wait();

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.state().registers.with_key, 1);
    let told = run.statuses().into_iter().find(|text| text.contains(words));
    assert!(told.unwrap().starts_with("waiting for the control server: "));
}

#[test]
fn an_expired_certificate_is_named_and_waited_for() {
    joins_after_certificate("expired", "certificate has expired or is not yet valid");
}

#[test]
fn a_certificate_of_another_name_is_named_and_waited_for() {
    joins_after_certificate(
        "wrong-name",
        "certificate is valid for elsewhere.example.test, not localhost",
    );
}

#[test]
fn a_self_signed_certificate_is_named_and_waited_for() {
    joins_after_certificate("self-signed", "certificate signed by unknown authority");
}

#[test]
fn a_key_used_up_by_a_login_whose_reply_was_lost_is_refused_and_not_sent_again() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    tailnet.fault("drop_register_reply");

    let run = program(&tailnet, &node, &file).limit(LONG).spawn();
    tailnet.wait_until(|state| state.key(&key).uses == 1, "the key to be used up");
    tailnet.lift_faults();
    let run = run.wait();

    // tailscaled makes a new node key for every try: nobody can tell that it was in already.
    assert_refused(&run, "authkey already used");
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert_quiet(&tailnet, &node);

    let fresh = tailnet.single_use_key();
    file.swap(&fresh);
    let run = program(&tailnet, &node, &file).run();
    assert_joined(&run, &tailnet, &node, &fresh);
}

/// How tailscaled says that a control server does not take connections.
///
/// One that has an IPv4 address only was tried on IPv6 too, and only that was told (1.66.4; no
/// more in 1.80.3: `DialContext` in net/dnscache/dnscache.go).
pub fn connection_refused() -> &'static str {
    if version_is_at_least((1, 80)) {
        "connection refused"
    } else {
        "lookup invalid IP: no such host"
    }
}

/// Ends with 75, naming the control server.
fn assert_timed_out(run: &Finished, words: &str) {
    run.assert_code(75);
    let sentence = "not connected within the time limit: waiting for the control server";
    assert!(run.stderr.contains(sentence), "no {sentence:?}");
    assert!(run.stderr.contains(words), "no {words:?}");
    assert!(run.statuses().last().unwrap().contains(sentence));
    assert_eq!((run.ready_at(), run.left_behind.len()), (None, 0));
    assert!(run.elapsed >= Duration::from_secs(2), "{:?}", run.elapsed);
}

#[test]
fn a_time_limit_ends_a_fresh_join_and_a_later_run_connects_with_the_same_key() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    tailnet.fault("down");

    let run = program(&tailnet, &node, &file).args(["--timeout", "2s"]).run();

    assert_timed_out(&run, connection_refused());
    assert_eq!(tailnet.state().registers.total, 0);

    tailnet.lift_faults();
    let run = program(&tailnet, &node, &file).limit(LONG).run();
    assert_joined(&run, &tailnet, &node, &key);
    // The daemon went on with the key by itself; it isn't sent a second time.
    assert_eq!(tailnet.state().key(&key).attempts, 1);
}

/// A node that was on its tailnet boots while the control server is down: its node key stays, and
/// it connects when the control server is back. No auth key is there, and none is asked for.
fn reboots_without_control_server(node: &Node, words: &str) {
    let tailnet = Tailnet::start();
    node.join(&tailnet);
    let before = tailnet.device(node).unwrap();
    let registers = tailnet.state().registers.with_key;
    let file = KeyFile::absent();
    tailnet.fault("down");
    node.restart();

    let run = program(&tailnet, node, &file).args(["--timeout", "2s"]).run();

    assert_timed_out(&run, words);
    assert_eq!(tailnet.state().registers.with_key, registers);

    tailnet.lift_faults();
    let run = program(&tailnet, node, &file).limit(LONG).run();
    run.assert_code(0);
    assert!(run.ready_at().is_some() && Node::is_online(&node.status()));
    let state = tailnet.state();
    assert_eq!(state.registers.with_key, registers);
    assert_eq!(state.nodes.len(), 1);
    assert_eq!(node.node_key(), before.node_key);
}

#[test]
fn a_time_limit_on_a_reboot_leaves_the_node_key_alone_and_a_later_run_connects() {
    reboots_without_control_server(&Node::start(), connection_refused());
}

#[test]
fn a_time_limit_on_a_reboot_with_a_cached_network_map_is_no_different() {
    if !has_map_on_disk() {
        return;
    }
    let node = Node::builder().cached_netmap(true).start();
    reboots_without_control_server(&node, "");
}

#[test]
fn a_reboot_without_the_control_server_is_ready_by_its_time_and_connects_when_it_is_back() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    node.join(&tailnet);
    let registers = tailnet.state().registers.with_key;
    tailnet.fault("down");
    node.restart();

    let run = program(&tailnet, &node, &KeyFile::absent());
    let run = waits_with(run, "waiting for the control server: ");
    tailnet.lift_faults();
    let run = run.wait();

    run.assert_code(0);
    assert!(Node::is_online(&node.status()));
    assert_eq!(tailnet.state().registers.with_key, registers);
}
