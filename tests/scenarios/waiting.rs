//! What is waited for holds nobody else up, and what fails again and again is tried ever more
//! slowly.

use std::fs::File;
use std::thread;
use std::time::Duration;

use serde_json::json;
use tailnet_harness::{FakeCli, KeyFile, Node, Tailnet};

use crate::joined::assert_connected;
use crate::{assert_joined, program};

#[test]
fn two_devices_that_wait_for_approval_with_one_key_file_both_register() {
    let (tailnet, file) = (Tailnet::start(), KeyFile::absent());
    tailnet.policy(json!({ "approval": true }));
    let key = tailnet.reusable_key();
    file.swap(&key);
    let nodes = [Node::start(), Node::start()];

    let runs = nodes.each_ref().map(|node| {
        let run = program(&tailnet, node, &file).spawn();
        run.wait_status_text("waiting for an admin to approve this device");
        run
    });
    let state = tailnet.state();
    assert_eq!((state.nodes.len(), state.key(&key).uses), (2, 2));
    for device in &state.nodes {
        tailnet.approve(device.id);
    }
    for run in runs {
        assert_connected(&run.wait());
    }
    assert_eq!(tailnet.state().registers.with_key, 2);
}

#[test]
fn a_device_with_the_same_key_file_registers_while_another_waits_for_its_control_server() {
    let (lost, tailnet) = (Tailnet::start(), Tailnet::start());
    let key = tailnet.reusable_key();
    let file = KeyFile::new(&key);
    let nodes = [Node::start(), Node::start()];
    lost.fault("down");
    let waiting = program(&lost, &nodes[0], &file).spawn();
    waiting.wait_status_text("waiting for the control server");

    let run = program(&tailnet, &nodes[1], &file).run();

    assert_joined(&run, &tailnet, &nodes[1], &key);
    assert!(waiting.is_alive());
}

#[test]
fn a_command_that_is_busy_for_long_is_tried_ever_more_slowly() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    node.wait_state("NeedsLogin");
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    let cli = FakeCli::script(&format!("exec '{}' \"$@\"", node.cli().display()));
    let writing = File::options().append(true).open(cli.path()).unwrap();

    let run = program(&tailnet, &node, &file)
        .tailscale(cli.path())
        .limit(Duration::from_secs(60))
        .spawn();
    run.wait_status_text("cannot be started now");
    thread::sleep(Duration::from_secs(20));
    let lines = run.stderr().lines().count();
    assert!(lines < 14, "{lines} lines: {}", run.stderr());
    assert!(run.is_alive());
    drop(writing);

    assert_joined(&run.wait(), &tailnet, &node, &key);
    assert_eq!(cli.calls().len(), 1);
}
