//! tailscaled comes late, says nothing, dies or is restarted; and the CLI is killed.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tailnet_harness::{
    FakeCli, FakeTailscaled, Finished, KeyFile, Node, Response, Run, Running, Tailnet,
};

use crate::refusal::{assert_quiet, assert_refused};
use crate::{assert_joined, program};

/// How long the control server holds a register, unless the daemon goes away before.
const HELD: Duration = Duration::from_secs(3);

/// Joins a fresh node whose daemon cannot be used until `appear` was called.
fn joins_when_it_appears(node: &Node, appear: impl FnOnce(&Running)) {
    let tailnet = Tailnet::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);

    let run = program(&tailnet, node, &file).spawn();
    appear(&run);
    let run = run.wait();

    assert_joined(&run, &tailnet, node, &key);
    assert_eq!(tailnet.state().registers.total, 1);
}

#[test]
fn a_daemon_that_comes_late_is_waited_for() {
    let node = Node::builder().create();
    joins_when_it_appears(&node, |run| {
        run.wait_status_text("waiting for tailscaled");
        node.launch();
    });
}

#[test]
fn a_daemon_that_left_a_stale_socket_is_waited_for() {
    let node = Node::start();
    node.kill();
    assert!(node.socket().exists());
    joins_when_it_appears(&node, |run| {
        run.wait_status_text("waiting for tailscaled");
        node.launch();
    });
}

#[test]
fn a_socket_that_never_answers_is_waited_for_until_a_daemon_takes_its_place() {
    let node = Node::builder().create();
    let mute = FakeTailscaled::start_at(node.socket(), |_| Response::never());
    joins_when_it_appears(&node, |run| {
        // The first request has had its time, so that silence alone is what it has to go by.
        run.wait_status_text("waiting for tailscaled");
        drop(mute);
        node.launch();
    });
}

#[test]
fn a_daemon_that_stands_still_is_waited_for() {
    let node = Node::start();
    node.pause();
    joins_when_it_appears(&node, |run| {
        run.wait_status_text("waiting for tailscaled");
        node.resume();
    });
}

/// Starts a join and waits until its register is with the control server, which holds it.
fn in_mid_login(tailnet: &Tailnet, node: &Node, file: &KeyFile) -> Running {
    tailnet.policy(json!({"register_delay_ms": HELD.as_millis()}));
    let run = program(tailnet, node, file).spawn();
    tailnet.wait_until(|state| state.registers.with_key == 1, "the register");
    // The next one is answered at once.
    tailnet.policy(json!({"register_delay_ms": 0}));
    run
}

/// Joins although `accident` happens while the register is under way.
fn joins_in_spite_of(accident: impl FnOnce(&Node, &Running)) -> (Tailnet, String, Finished) {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();

    let file = KeyFile::new(&key);
    let run = in_mid_login(&tailnet, &node, &file);
    accident(&node, &run);
    let run = run.wait();

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.state().nodes.len(), 1);
    (tailnet, key, run)
}

#[test]
fn a_daemon_restarted_in_mid_login_is_logged_in_again() {
    let (tailnet, key, _) = joins_in_spite_of(|node, _| node.restart());
    assert_eq!(tailnet.state().key(&key).attempts, 2);
}

#[test]
fn a_daemon_killed_in_mid_login_and_started_again_is_logged_in_again() {
    let (tailnet, key, _) = joins_in_spite_of(|node, _| {
        node.kill();
        node.launch();
    });
    assert_eq!(tailnet.state().key(&key).attempts, 2);
}

#[test]
fn a_daemon_that_is_gone_for_a_while_in_mid_login_is_waited_for() {
    let (tailnet, key, run) = joins_in_spite_of(|node, run| {
        node.kill();
        run.wait_status_text("waiting for tailscaled");
        node.launch();
    });
    assert_eq!(tailnet.state().key(&key).attempts, 2);
    assert!(run.statuses().contains(&"logging in"));
}

#[test]
fn a_daemon_that_stands_still_in_mid_login_is_waited_for() {
    joins_in_spite_of(|node, run| {
        node.pause();
        run.wait_status_text("waiting for tailscaled");
        node.resume();
    });
}

/// The control server has let the node in and used up the key; its first network map takes a while.
/// Until that has come, tailscaled has its new node key in memory only.
fn before_the_first_map() -> (Tailnet, Node, String, KeyFile, Running) {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    tailnet.policy(json!({"map_delay_ms": 2000}));
    let run = program(&tailnet, &node, &file).spawn();
    tailnet.wait_until(|state| state.key(&key).uses == 1, "the key to be used");
    (tailnet, node, key, file, run)
}

#[test]
fn a_daemon_restarted_before_its_first_network_map_has_lost_its_login_and_says_so() {
    let (tailnet, node, key, _file, run) = before_the_first_map();
    node.restart();
    let run = run.wait();

    assert_refused(&run, "authkey already used");
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert_quiet(&tailnet, &node);
}

/// Ends a run as `systemctl restart` does, and starts the next one.
fn restarted(run: Running, again: Run) -> Finished {
    run.signal(Signal::TERM);
    assert_eq!(run.wait().signal, Some(15));
    again.run()
}

#[test]
fn a_run_started_again_before_the_first_network_map_does_not_send_the_used_key_again() {
    let (tailnet, node, key, file, run) = before_the_first_map();
    let run = restarted(run, program(&tailnet, &node, &file));

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.state().key(&key).attempts, 1);
}

#[test]
fn a_run_started_again_in_mid_login_lets_the_login_come_to_its_end() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);

    let run = in_mid_login(&tailnet, &node, &file);
    let run = restarted(run, program(&tailnet, &node, &file));

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.state().key(&key).attempts, 1);
}

#[test]
fn a_run_started_again_after_a_kill_in_mid_login_lets_the_login_come_to_its_end() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);

    let run = in_mid_login(&tailnet, &node, &file);
    run.signal(Signal::KILL);
    // The command is killed with it.
    drop(run);
    let run = program(&tailnet, &node, &file).run();

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.state().key(&key).attempts, 1);
}

fn end_cli(run: &Running, signal: Signal) {
    let children = run.wait_children();
    let [cli] = children[..] else {
        panic!("the CLI is its only child: {children:?}");
    };
    let cli = i32::try_from(cli).ok().and_then(Pid::from_raw).unwrap();
    kill_process(cli, signal).unwrap();
}

/// The daemon goes on by itself with the key that it was given: no second login is started.
fn joins_without_its_cli(signal: Signal) {
    let (tailnet, key, run) = joins_in_spite_of(|_, run| end_cli(run, signal));
    assert_eq!(tailnet.state().key(&key).attempts, 1);
    assert!(run.elapsed >= HELD, "the register was held");
}

#[test]
fn a_cli_killed_in_mid_login_is_not_needed_any_more() {
    joins_without_its_cli(Signal::KILL);
}

#[test]
fn a_cli_terminated_in_mid_login_is_not_needed_any_more() {
    joins_without_its_cli(Signal::TERM);
}

#[test]
fn a_cli_killed_before_it_did_anything_is_started_again() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let cli = FakeCli::script(&format!(
        "mkdir '{}' 2>/dev/null && kill -KILL $$\nexec '{}' \"$@\"",
        node.dir().join("killed-once").display(),
        node.cli().display()
    ));

    let run = program(&tailnet, &node, &KeyFile::new(&key)).tailscale(cli.path()).run();

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!((cli.calls().len(), tailnet.state().key(&key).attempts), (2, 1));
    assert!(run.stderr.contains("`tailscale up` was killed"));
}

#[test]
fn a_daemon_restarted_after_its_cli_was_killed_in_mid_login_is_logged_in_again() {
    let (tailnet, key, _) = joins_in_spite_of(|node, run| {
        end_cli(run, Signal::KILL);
        run.wait_stderr(
            |text| text.contains("`tailscale up` was killed"),
            "the end of the CLI to be seen",
        );
        node.restart();
    });
    assert_eq!(tailnet.state().key(&key).attempts, 2);
}

/// Runs with a time limit and without a daemon that would answer: ends with 69 and says where it
/// was looked for.
fn times_out_unanswered(node: &Node) {
    let run = Run::new(env!("CARGO_BIN_EXE_tailscale-autoconnect"))
        .node(node)
        .authkey_file("/nonexistent/token")
        .args(["--timeout", "1s"])
        .run();

    run.assert_code(69);
    let sentence =
        format!("tailscaled did not answer on {} within the time limit", node.socket().display());
    assert!(run.stderr.contains(&sentence), "no {sentence:?}");
    assert!(run.stderr.contains("systemctl status tailscaled"));
    assert!(run.statuses().last().unwrap().contains(&sentence));
    assert_eq!(run.ready_at(), None);
    assert!(run.elapsed >= Duration::from_secs(1), "{:?}", run.elapsed);
}

#[test]
fn a_time_limit_without_a_daemon_ends_with_69() {
    let node = Node::builder().create();
    times_out_unanswered(&node);
    // A socket that a killed daemon left, and a daemon that says nothing, are no better.
    node.launch();
    node.pause();
    times_out_unanswered(&node);
    node.kill();
    assert!(node.socket().exists());
    times_out_unanswered(&node);
}

#[test]
fn a_time_limit_after_the_daemon_has_gone_ends_with_75() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let run = program(&tailnet, &node, &KeyFile::absent()).args(["--timeout", "3s"]).spawn();
    run.wait_status_text("waiting for the auth key file");
    node.kill();
    run.wait_status_text("waiting for tailscaled");
    let run = run.wait();

    run.assert_code(75);
    let sentence = "not connected within the time limit: waiting for tailscaled";
    assert!(run.stderr.contains(sentence));
    assert_eq!(run.statuses().last(), Some(&sentence));
    assert_eq!(run.ready_at(), None);
    assert_eq!(tailnet.state().registers.total, 0);
}
