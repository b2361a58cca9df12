//! A node that is deleted while a run stays with it. The slowest scenarios, in a module whose name
//! lets them begin early.

use std::time::Duration;

use tailnet_harness::Tailnet;

use crate::stay::{Kept, LEFT_ALONE, LIFE, assert_left_alone, renews};

/// tailscaled keeps it to itself, and is looked at every two minutes.
const PATIENCE: Duration = Duration::from_secs(200);

#[test]
fn a_node_that_was_deleted_is_left_alone() {
    if !renews() {
        return;
    }
    let kept = Kept::new(LIFE * 100);
    kept.tailnet.delete(kept.device.id);
    kept.wait_status_for(PATIENCE, "waiting for the control server");
    kept.assert_no_key_is_sent();
    kept.wait_status_for(Duration::from_secs(60), LEFT_ALONE);
    assert_left_alone(&kept, "Running");
    assert!(kept.state().nodes.is_empty());
}

#[test]
fn a_node_that_was_deleted_joins_anew_where_that_is_asked_for() {
    if !renews() {
        return;
    }
    let kept = Kept::with(LIFE * 100, Tailnet::reusable_key, &["--rejoin"]);
    kept.tailnet.delete(kept.device.id);
    kept.tailnet.wait_until_for(PATIENCE, |state| state.online() == 1, "the node to join anew");
    kept.wait_status("connected as ");
    assert_eq!(kept.state().key(&kept.key).uses, 2);
    assert_ne!(kept.state().nodes[0].id, kept.device.id);
}
