//! What an adversary found, on real daemons.

use std::time::Duration;

use tailnet_harness::{KeyFile, Node, Signal, Tailnet};

use crate::joined::Joined;
use crate::program;
use crate::put_back::{new_profile, profile, switch_to};
use crate::settings::{assert_kept, set, settings};

/// A login is pending on a new profile, and somebody goes back to the old one, whose control server cannot
/// be reached either: the end of the run must not turn that one off.
#[test]
fn a_login_pending_on_a_new_profile_leaves_the_old_one_alone() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    set(node, &["--ssh", "--hostname=mine"]);
    let (mine, before) = (profile(node), settings(node));
    new_profile(node);
    let other = Tailnet::start();
    let file = KeyFile::new(other.single_use_key());
    other.fault("down");
    let run = program(&other, node, &file).spawn();
    run.wait_status_text("waiting for the control server");

    tailnet.fault("down");
    switch_to(node, &mine);
    std::thread::sleep(Duration::from_secs(1));
    run.signal(Signal::TERM);
    run.wait();
    assert_eq!(profile(node), mine);
    assert_kept(node, &before);
    let prefs = node.prefs();
    assert_eq!(prefs["ControlURL"], tailnet.url());
    assert_eq!((&prefs["WantRunning"], &prefs["LoggedOut"]), (&true.into(), &false.into()));
    tailnet.lift_faults();
    node.wait_online();
    joined.assert_same_device();
}

/// A first login whose answer came after the program was killed, and at whose next boot the key file holds
/// another key.
#[test]
fn a_node_that_joined_after_the_program_was_killed_is_never_taken_back() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    node.wait_state("NeedsLogin");
    set(&node, &["--webclient"]);
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    tailnet.fault("down");
    let run = program(&tailnet, &node, &file).up_flags(["--shields-up"]).spawn();
    run.wait_status_text("waiting for the control server");
    run.kill();
    run.wait();
    tailnet.lift_faults();
    node.wait_online();
    assert_eq!(tailnet.state().key(&key).uses, 1);

    // Rebooted without its control server.
    node.terminate();
    tailnet.fault("down");
    node.launch();
    file.swap(tailnet.single_use_key());
    let run = program(&tailnet, &node, &file).up_flags(["--shields-up"]).spawn();
    std::thread::sleep(Duration::from_secs(12));
    let prefs = node.prefs();
    assert_eq!((&prefs["WantRunning"], &prefs["LoggedOut"]), (&true.into(), &false.into()));
    assert_eq!(prefs["ControlURL"], tailnet.url());
    tailnet.lift_faults();
    run.wait().assert_code(0);
    let prefs = node.prefs();
    assert_eq!((&prefs["ShieldsUp"], &prefs["RunWebClient"]), (&true.into(), &true.into()));
    assert_eq!(tailnet.state().nodes.len(), 1);
}
