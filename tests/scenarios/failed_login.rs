//! A login that failed leaves nothing behind: the preferences, the login server and whether the
//! node is to be connected are as before it, and tailscaled has forgotten the key. So whatever is
//! corrected works at once.

use std::time::Duration;

use serde_json::Value;
use tailnet_harness::{KeyFile, Node, Run, Running, Signal, Tailnet};

use crate::joined::{DEAD, Joined, assert_connected, dead_key};
use crate::refusal::{assert_quiet, assert_refused, doubting};
use crate::settings::{all_preferences, assert_unchanged, set};
use crate::{assert_joined, program, program_without_server};

const TYPO: &str = "--advertise-tags=tag:typo";
const WAITING: &str = "waiting for the control server: ";

/// Flags of a login that leave their mark on the preferences.
const MARKS: [&str; 3] = ["--shields-up", "--accept-routes", "--hostname=marked"];

/// A new node on which an admin has made some settings.
fn fresh() -> (Node, Value) {
    let node = Node::start();
    node.wait_state("NeedsLogin");
    set(&node, &["--hostname=early", "--operator=nobody"]);
    let before = all_preferences(&node);
    (node, before)
}

/// Makes these settings, and the node key expires. What the preferences are then.
fn expired(joined: &Joined, flags: &[&str]) -> Value {
    set(&joined.node, flags);
    joined.expire();
    all_preferences(&joined.node)
}

/// Nothing is left of a login: neither settings nor a key that tailscaled goes on sending.
fn assert_nothing_is_left(tailnet: &Tailnet, node: &Node, before: &Value) {
    assert_unchanged(node, before);
    assert_quiet(tailnet, node);
    assert_unchanged(node, before);
}

/// Ends a run as `systemctl stop` does.
fn stop(run: Running) {
    run.signal(Signal::TERM);
    assert_eq!(run.wait().signal, Some(15));
}

/// A run that has sent tailscaled to a control server that can't be reached, and is ended.
fn stopped_while_waiting(run: Run) {
    let run = run.spawn();
    run.wait_status_text(WAITING);
    stop(run);
}

// ---- ended while the control server could not be reached

#[test]
fn a_run_ended_while_its_control_server_is_down_leaves_nothing_behind() {
    let tailnet = Tailnet::start();
    let (node, before) = fresh();
    let file = KeyFile::new(tailnet.single_use_key());
    tailnet.fault("down");
    stopped_while_waiting(program(&tailnet, &node, &file).up_flags(MARKS));

    tailnet.lift_faults();
    assert_nothing_is_left(&tailnet, &node, &before);
}

#[test]
fn a_login_server_that_was_mistyped_is_corrected_by_the_next_run() {
    let tailnet = Tailnet::start();
    let (node, before) = fresh();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    let mistyped = program_without_server(&node, &file).login_server("http://127.0.0.1:1");
    stopped_while_waiting(mistyped);
    assert_unchanged(&node, &before);

    let run = program(&tailnet, &node, &file).run();
    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(node.prefs()["ControlURL"], tailnet.url());
}

#[test]
fn a_key_and_flags_that_were_changed_while_the_control_server_was_down_are_those_that_count() {
    let tailnet = Tailnet::start();
    let (node, _) = fresh();
    let (old, new) = (tailnet.single_use_key(), tailnet.single_use_key());
    let file = KeyFile::new(&old);
    tailnet.fault("down");
    stopped_while_waiting(program(&tailnet, &node, &file).up_flags(MARKS));

    file.swap(&new);
    let run = program(&tailnet, &node, &file).up_flags(["--hostname=changed"]).spawn();
    run.wait_status_text(WAITING);
    tailnet.lift_faults();

    assert_joined(&run.wait(), &tailnet, &node, &new);
    assert_eq!(tailnet.state().key(&old).attempts, 0);
    let prefs = node.prefs();
    assert_eq!(prefs["Hostname"], "changed");
    assert_eq!((&prefs["ShieldsUp"], &prefs["RouteAll"]), (&false.into(), &false.into()));
}

#[test]
fn a_run_on_an_expired_node_that_was_ended_while_the_control_server_was_down_leaves_nothing_behind()
{
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    let before = expired(&joined, &["--hostname=kept", "--webclient", "--ssh"]);
    let key = tailnet.single_use_key();
    tailnet.fault("down");
    stopped_while_waiting(joined.program(&KeyFile::new(&key)).up_flags(MARKS));

    tailnet.lift_faults();
    assert_nothing_is_left(tailnet, node, &before);
    assert_eq!(tailnet.state().key(&key).attempts, 0);
}

// ---- refused

/// A run that the control server refuses leaves the node as it was.
fn is_refused_without_a_trace(tailnet: &Tailnet, node: &Node, run: Run, words: &str) {
    let before = all_preferences(node);
    run.run().assert_code(77);
    assert!(tailnet.log().contains(words), "it was refused otherwise");
    assert_nothing_is_left(tailnet, node, &before);
}

#[test]
fn tags_that_were_refused_are_not_asked_for_again_when_their_flag_is_gone() {
    let tailnet = Tailnet::start();
    let (node, _) = fresh();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    let with_typo = || program(&tailnet, &node, &file).up_flags([TYPO]);
    is_refused_without_a_trace(&tailnet, &node, with_typo(), "[tag:typo] are invalid");

    let run = program(&tailnet, &node, &file).run();
    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.device(&node).unwrap().tags, Vec::<String>::new());
}

#[test]
fn a_refused_run_leaves_no_flag_and_no_login_server_on_a_new_node() {
    let (wrong, right) = (Tailnet::start(), Tailnet::start());
    let (node, before) = fresh();
    let file = KeyFile::new(dead_key(&wrong));
    let run = program(&wrong, &node, &file).up_flags(MARKS);
    is_refused_without_a_trace(&wrong, &node, run, DEAD);

    let key = right.single_use_key();
    file.swap(&key);
    let run = program(&right, &node, &file).run();
    assert_joined(&run, &right, &node, &key);
    let prefs = node.prefs();
    assert_eq!(prefs["ControlURL"], right.url());
    for setting in ["Hostname", "OperatorUser", "ShieldsUp"] {
        assert_eq!(prefs[setting], before[setting], "{setting}");
    }
}

#[test]
fn a_refused_run_leaves_no_flag_on_an_expired_node() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    let before = expired(&joined, &["--hostname=kept", "--webclient"]);
    let file = KeyFile::new(dead_key(tailnet));
    let run = joined.program(&file).up_flags(MARKS);
    is_refused_without_a_trace(tailnet, node, run, DEAD);

    file.swap(tailnet.single_use_key());
    assert_connected(&joined.program(&file).run());
    joined.assert_same_device();
    for setting in ["Hostname", "RunWebClient", "ShieldsUp", "RouteAll"] {
        assert_eq!(node.prefs()[setting], before[setting], "{setting}");
    }
}

// ---- a refused key is remembered

#[test]
fn a_refused_key_is_not_sent_again_by_a_later_run_until_the_file_holds_another() {
    let tailnet = Tailnet::start();
    let (node, _) = fresh();
    let dead = dead_key(&tailnet);
    let file = KeyFile::new(&dead);
    assert_refused(&program(&tailnet, &node, &file).run(), DEAD);
    let sent = tailnet.state().registers.with_key;

    // Neither flags nor a restart of tailscaled make a dead key good.
    for flags in [&[][..], &["--hostname=other"]] {
        let run = program(&tailnet, &node, &file).up_flags(flags).run();
        run.assert_code(77);
        assert_eq!(tailnet.state().registers.with_key, sent);
        assert!(run.elapsed < Duration::from_secs(2), "{:?}", run.elapsed);
        node.restart();
    }

    let good = tailnet.single_use_key();
    file.swap(&good);
    let run = program(&tailnet, &node, &file).run();
    assert_joined(&run, &tailnet, &node, &good);
}

#[test]
fn a_key_that_one_control_server_has_refused_is_sent_to_another() {
    // The other one does not know it, and may come to.
    const LIMIT: Duration = Duration::from_secs(90);
    let (one, other) = (Tailnet::start(), Tailnet::start());
    let (node, _) = fresh();
    let key = dead_key(&one);
    let file = KeyFile::new(&key);
    for tailnet in [&one, &other] {
        program(tailnet, &node, &file).limit(LIMIT).run().assert_code(77);
        let attempts = tailnet.state().key(&key).attempts;
        assert_ne!(attempts, 0, "it was never sent there");
        program(tailnet, &node, &file).limit(LIMIT).run().assert_code(77);
        assert_eq!(tailnet.state().key(&key).attempts, attempts);
    }
}

// ---- ended while a refusal is looked at

#[test]
fn a_run_ended_while_it_looks_at_a_refusal_leaves_nothing_behind() {
    let tailnet = Tailnet::start();
    let (node, before) = fresh();
    let file = KeyFile::new(dead_key(&tailnet));
    stop(doubting(&tailnet, &node, &file));
    assert_nothing_is_left(&tailnet, &node, &before);
}

#[test]
fn a_run_on_an_expired_node_that_was_ended_while_it_looked_at_a_refusal_leaves_nothing_behind() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    let before = expired(&joined, &["--hostname=kept", "--webclient"]);
    stop(doubting(tailnet, node, &KeyFile::new(dead_key(tailnet))));
    assert_nothing_is_left(tailnet, node, &before);
}
