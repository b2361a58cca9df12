//! The control server refuses the key: said in its own words, ended with 77, and no dead key is
//! sent on and on.

use std::thread;
use std::time::Duration;

use serde_json::json;
use tailnet_harness::{Finished, KeyFile, KeySpec, Node, Running, Tailnet};

use crate::joined::{DEAD, dead_key};
use crate::{assert_joined, program};

/// No Tailscale server has made this one.
const UNKNOWN: &str = "hskey-auth-0123456789ab-0123456789abcdef0123456789abcdef0123456789abcdef";

/// How often a race is run that a daemon loses in some of twenty times.
const RACES: usize = 8;

/// A key that the control server does not know is sent once more after half a minute.
const LIMIT: Duration = Duration::from_secs(90);

pub fn assert_refused(run: &Finished, words: &str) {
    run.assert_code(77);
    let sentence = format!("the control server refused the auth key: {words}; ");
    assert!(run.stderr.contains(&sentence), "no {sentence:?}");
    assert!(run.stderr.contains("make a new key"), "no advice");
    assert!(run.statuses().last().unwrap().contains(&sentence));
    // A key that may come to be known is waited for longer than a boot waits.
    let is_early = words.contains("does not exist");
    assert_eq!(run.ready_at().is_some(), is_early, "READY=1");
    assert_eq!((run.stdout.as_str(), run.left_behind.len()), ("", 0));
}

/// The daemon has forgotten the key: no register with one comes any more.
pub fn assert_quiet(tailnet: &Tailnet, node: &Node) {
    tailnet.assert_no_key_is_sent();
    assert_eq!(node.backend_state(), "NeedsLogin");
}

/// Runs the program on a fresh node with this key: the control server refuses it with these words.
fn refused_on_a_fresh_node(tailnet: &Tailnet, key: &str, words: &str) {
    let node = Node::start();
    let uses = tailnet.state().key(key).uses;

    let run = program(tailnet, &node, &KeyFile::new(key)).limit(LIMIT).run();

    assert_refused(&run, words);
    let state = tailnet.state();
    assert!(state.key(key).attempts > uses, "the key was never sent");
    assert_eq!(state.key(key).uses, uses);
    assert_quiet(tailnet, &node);
}

/// Leaves a daemon behind that goes on sending a dead key of somebody else's.
fn with_a_dead_key_in_flight(tailnet: &Tailnet, node: &Node) {
    let dead = dead_key(tailnet);
    let up = node.tailscale([
        "up".to_owned(),
        format!("--login-server={}", tailnet.url()),
        format!("--auth-key={dead}"),
    ]);
    up.assert_code(1);
    tailnet.wait_until(|state| state.key(&dead).attempts > 1, "the dead key to be sent again");
}

/// Runs `race` several times, each on a tailnet and a node of its own, four at a time.
fn many_times(race: impl Fn(&Tailnet, &Node) + Sync) {
    for _ in 0..RACES.div_ceil(4) {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| race(&Tailnet::start(), &Node::start()));
            }
        });
    }
}

#[test]
fn an_unknown_key_is_refused_and_not_sent_again() {
    let words = "invalid key: API key does not exist";
    refused_on_a_fresh_node(&Tailnet::start(), UNKNOWN, words);
}

#[test]
fn a_deleted_key_is_refused_and_not_sent_again() {
    let tailnet = Tailnet::start();
    let words = "invalid key: API key does not exist";
    let key = tailnet.single_use_key();
    tailnet.delete_key(&key);
    refused_on_a_fresh_node(&tailnet, &key, words);
}

#[test]
fn a_key_that_the_control_server_comes_to_know_is_sent_once_more() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let unknown = "invalid key: API key does not exist";
    tailnet.policy(json!({ "refuse_all": unknown }));

    let file = KeyFile::new(&key);
    let run = program(&tailnet, &node, &file).limit(LIMIT).spawn();
    run.wait_status_text(&format!("tried again in 30 s: {unknown}"));
    assert_quiet(&tailnet, &node);
    tailnet.policy(json!({ "refuse_all": "" }));

    assert_joined(&run.wait(), &tailnet, &node, &key);
}

#[test]
fn a_revoked_key_is_refused_and_not_sent_again() {
    let tailnet = Tailnet::start();
    let key = tailnet.single_use_key();
    tailnet.revoke_key(&key);
    let id = key.split('-').nth(2).unwrap();
    let words = format!("invalid key: API key {id} not valid");
    refused_on_a_fresh_node(&tailnet, &key, &words);
}

#[test]
fn an_expired_key_is_refused_and_not_sent_again() {
    let tailnet = Tailnet::start();
    let key = tailnet.single_use_key();
    tailnet.expire_key(&key);
    refused_on_a_fresh_node(&tailnet, &key, "authkey expired");
}

#[test]
fn a_used_key_is_refused_and_not_sent_again() {
    let tailnet = Tailnet::start();
    let key = tailnet.single_use_key();
    let other = Node::start();
    other.join_with(&tailnet, &[&format!("--auth-key={key}")]);
    refused_on_a_fresh_node(&tailnet, &key, "authkey already used");
    assert!(Node::is_online(&other.status()));
}

#[test]
fn tags_that_the_key_does_not_carry_are_refused_and_the_key_is_not_used_up() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);

    let run = program(&tailnet, &node, &file).up_flags(["--advertise-tags=tag:x"]).run();

    run.assert_code(77);
    let words = "requested tags [tag:x] are invalid or not permitted";
    assert!(run.stderr.contains(words), "{}", run.stderr);
    assert!(run.statuses().last().unwrap().contains(words));
    assert_eq!(tailnet.state().key(&key).uses, 0);
    assert_quiet(&tailnet, &node);

    // The same key does without the tags, and one that carries them does with them.
    let run = program(&tailnet, &node, &file).up_flags(["--advertise-tags="]);
    assert_joined(&run.run(), &tailnet, &node, &key);
    let tagged = tailnet.key(&KeySpec { tags: vec!["tag:x".to_owned()], ..KeySpec::default() });
    let other = Node::start();
    let run = program(&tailnet, &other, &KeyFile::new(&tagged))
        .up_flags(["--advertise-tags=tag:x"])
        .run();
    assert_joined(&run, &tailnet, &other, &tagged);
    assert_eq!(tailnet.device(&other).unwrap().tags, ["tag:x"]);
}

#[test]
fn a_good_key_joins_right_after_a_run_with_a_dead_one() {
    many_times(|tailnet, node| {
        let file = KeyFile::new(dead_key(tailnet));
        let run = program(tailnet, node, &file).run();
        assert_refused(&run, DEAD);

        let key = tailnet.single_use_key();
        file.swap(&key);
        let run = program(tailnet, node, &file).run();
        assert_joined(&run, tailnet, node, &key);
        assert_eq!(tailnet.state().key(&key).attempts, 1);
    });
}

#[test]
fn a_good_key_joins_while_the_daemon_still_sends_a_dead_one() {
    many_times(|tailnet, node| {
        with_a_dead_key_in_flight(tailnet, node);

        let key = tailnet.single_use_key();
        let run = program(tailnet, node, &KeyFile::new(&key)).run();

        assert_joined(&run, tailnet, node, &key);
        assert_eq!(tailnet.state().key(&key).attempts, 1);
        assert!(!run.stderr.contains("refused the auth key"));
    });
}

#[test]
fn a_dead_key_that_someone_else_left_in_flight_is_silenced_by_a_refused_run_too() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    with_a_dead_key_in_flight(&tailnet, &node);
    let key = tailnet.single_use_key();
    tailnet.expire_key(&key);

    let run = program(&tailnet, &node, &KeyFile::new(&key)).run();

    assert_refused(&run, "authkey expired");
    assert_quiet(&tailnet, &node);
}

#[test]
fn a_dead_key_on_a_node_whose_node_key_has_expired_is_refused_and_a_good_one_renews_it() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    node.join(&tailnet);
    tailnet.expire(tailnet.device_id(&node));
    node.wait_state("NeedsLogin");
    let file = KeyFile::new(dead_key(&tailnet));

    let run = program(&tailnet, &node, &file).run();

    assert_refused(&run, DEAD);
    assert_quiet(&tailnet, &node);

    let key = tailnet.single_use_key();
    file.swap(&key);
    let run = program(&tailnet, &node, &file).run();
    assert_joined(&run, &tailnet, &node, &key);
    assert!(!tailnet.device(&node).unwrap().expired);
}

/// Starts the program with a dead key and waits until it doubts the refusal.
pub fn doubting(tailnet: &Tailnet, node: &Node, file: &KeyFile) -> Running {
    let run = program(tailnet, node, file).spawn();
    run.wait_status_text("the login seems to be refused, looking again: authkey expired");
    run
}

#[test]
fn a_secret_that_is_replaced_while_the_refusal_is_doubted_joins_in_the_same_run() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let file = KeyFile::new(dead_key(&tailnet));
    let key = tailnet.single_use_key();

    let run = doubting(&tailnet, &node, &file);
    file.swap(&key);
    let run = run.wait();

    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(tailnet.state().key(&key).attempts, 1);
}

#[test]
fn a_secret_that_is_replaced_by_another_dead_one_is_tried_and_refused() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let file = KeyFile::new(dead_key(&tailnet));
    let second = tailnet.single_use_key();
    tailnet.expire_key(&second);

    let run = doubting(&tailnet, &node, &file);
    file.swap(&second);
    let run = run.wait();

    assert_refused(&run, "authkey expired");
    assert!(tailnet.state().key(&second).attempts > 0);
    assert_quiet(&tailnet, &node);
}

#[test]
fn a_rate_limit_is_waited_for_and_the_key_used_once() {
    let tailnet = Tailnet::start();
    let node = Node::start();
    let key = tailnet.single_use_key();
    tailnet.policy(json!({"rate_limit": {"count": 2, "retry_after_s": 1}}));

    let run = program(&tailnet, &node, &KeyFile::new(&key)).run();

    assert_joined(&run, &tailnet, &node, &key);
    let state = tailnet.state();
    assert_eq!(state.registers.rate_limited, 2);
    assert_eq!(state.key(&key).attempts, 3);
}

/// Runs the program with a control server whose refusal repeats the key after `lead`, and
/// looks for any part of the key in everything that the program says.
fn refused_with_an_echo(key: &str, lead: &str) {
    let tailnet = Tailnet::start();
    let node = Node::start();
    tailnet.policy(json!({"refuse_all": format!("{lead}{key} is not a key of ours")}));

    let run = program(&tailnet, &node, &KeyFile::new(key)).args(["-vv", "--json"]).run();

    run.assert_code(77);
    assert!(tailnet.state().key(key).attempts > 0);
    assert_eq!(run.json()["exit_code"], 77);
    let said = format!("{}{:?}", run.output(), run.notifications);
    assert!(said.contains(lead.trim_end()), "its own words are not shown");
    let secret = &key[key.len() - 40..];
    for part in (0..secret.len() - 8).map(|at| &secret[at..at + 8]) {
        assert!(!said.contains(part), "shows {part:?} of the key");
    }
}

#[test]
fn a_key_that_the_control_server_repeats_is_not_shown() {
    refused_with_an_echo(UNKNOWN, "invalid key: not one of ours: ");
}

#[test]
fn a_key_of_no_known_form_that_the_control_server_repeats_is_not_shown() {
    let key = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978";
    refused_with_an_echo(key, "invalid key: not one of ours: ");
}

#[test]
fn a_key_is_not_shown_where_a_long_refusal_is_cut_in_the_middle_of_it() {
    let key = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978";
    let lead = format!("invalid key: {} ", ".".repeat(160));
    refused_with_an_echo(key, &lead);
}
