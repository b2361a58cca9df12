//! A node that an auth key keeps off its tailnet, or that goes on sending one: it's freed, as often
//! as that happens, and whatever was done to it before in the same run.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tailnet_harness::{KeyFile, Node, Running, Tailnet, needs_version};

use crate::joined::{Joined, assert_connected, dead_key};
use crate::program;
use crate::renewal::{KEEPS_ITS_MAP, RESTARTED};

/// Waits longer than usual for this in what the program says.
fn wait_long(run: &Running, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(45);
    while !run.stderr().contains(text) {
        assert!(run.is_alive() && Instant::now() < deadline, "no {text:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The slow one: what comes first takes half a minute.
#[test]
fn a_node_that_was_offline_for_long_and_is_then_kept_off_by_someones_dead_key_is_freed() {
    if !needs_version(KEEPS_ITS_MAP, "an older tailscaled's login isn't restarted") {
        return;
    }
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    tailnet.fault("down");
    node.wait_status(|status| status["Self"]["Online"] == false, "the node to be offline");
    let run = joined.program(&KeyFile::absent()).spawn();
    wait_long(&run, RESTARTED);

    let dead = dead_key(tailnet);
    // As `tailscale up` does it, which would be waited for.
    for (path, body) in [("start", json!({ "AuthKey": dead })), ("login-interactive", json!({}))] {
        let path = format!("/localapi/v0/{path}");
        let reply = node.local_request("POST", &path, Some(&body));
        assert_eq!(reply.expect("tailscaled answers").status, 204);
    }
    tailnet.lift_faults();
    tailnet.wait_until(|state| state.key(&dead).attempts > 0, "the dead key");

    assert_connected(&run.wait());
    joined.assert_same_device();
    tailnet.assert_no_key_is_sent();
}

#[test]
fn a_used_key_that_down_and_up_made_tailscaled_send_again_is_silenced() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    assert_connected(&program(&tailnet, &node, &file).run());
    let device = tailnet.device(&node).expect("the node has joined");

    node.tailscale_ok(["down"]);
    node.wait_state("Stopped");
    // It fails if the refusal is there before tailscaled says Running.
    let _ = node.tailscale(["up"]);
    tailnet.wait_until(|state| state.key(&key).attempts > 1, "the used key to be sent again");

    let run = program(&tailnet, &node, &file).run();
    assert_connected(&run);
    tailnet.assert_no_key_is_sent();
    node.wait_online();
    let now = tailnet.device(&node).expect("the node is known");
    assert!(now.online && now.id == device.id, "{now:?}");
}
