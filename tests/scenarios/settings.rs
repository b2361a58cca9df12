//! Settings of a node survive a login, also those that `tailscale up` has no flag for.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tailnet_harness::{FakeCli, KeyFile, KeySpec, Node, PATIENCE, Tailnet, version_is_at_least};

use crate::joined::{Joined, assert_connected, dead_key};
use crate::{assert_joined, program, program_without_server};

/// A setting of `tailscale set` that `tailscale up` has no flag for.
///
/// In a container, an old tailscaled refuses to update itself (1.66.4; no more in 1.80.3:
/// `getUpdateFunction` in clientupdate/clientupdate.go).
pub fn without_a_flag() -> &'static str {
    if version_is_at_least((1, 80)) { "--auto-update" } else { "--update-check=false" }
}

/// All preferences, but for those that a login is meant to change and those that the daemon keeps
/// there itself.
pub fn settings(node: &Node) -> Value {
    let mut prefs = node.prefs();
    let all = prefs.as_object_mut().expect("preferences");
    for own in ["Config", "ControlURL", "InternalExitNodePrior", "LoggedOut", "WantRunning"] {
        all.remove(own);
    }
    prefs
}

/// All preferences without exception, but for the keys and what the daemon keeps there itself.
pub fn all_preferences(node: &Node) -> Value {
    let mut prefs = node.prefs();
    let all = prefs.as_object_mut().expect("preferences");
    for own in ["Config", "InternalExitNodePrior"] {
        all.remove(own);
    }
    prefs
}

/// Asserts that all preferences are as they were; says only what differs.
#[track_caller]
pub fn assert_unchanged(node: &Node, before: &Value) {
    assert_same(&all_preferences(node), before);
}

/// Asserts that the settings are these; says only what differs.
#[track_caller]
pub fn assert_kept(node: &Node, before: &Value) {
    assert_same(&settings(node), before);
}

#[track_caller]
fn assert_same(now: &Value, before: &Value) {
    let names = before.as_object().expect("preferences").keys();
    let changed: Vec<_> = names
        .filter(|name| now[*name] != before[*name])
        .map(|name| format!("{name}: {}, was {}", now[name], before[name]))
        .collect();
    assert!(changed.is_empty(), "{changed:#?}");
}

/// A node with these settings, made with `tailscale set`, whose key has expired.
fn expired_with(flags: &[&str]) -> (Joined, Value) {
    let joined = Joined::new();
    let settings = set_and_expire(&joined, flags);
    (joined, settings)
}

fn set_and_expire(joined: &Joined, flags: &[&str]) -> Value {
    let plain = settings(&joined.node);
    set(&joined.node, flags);
    let settings = settings(&joined.node);
    assert_ne!(settings, plain);
    joined.expire();
    settings
}

pub fn until(holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to that");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn set(node: &Node, flags: &[&str]) {
    node.tailscale_ok(["set"].iter().chain(flags));
}

/// The program logs the node in, with these flags for `up`, and it's the same device as before.
fn renew(joined: &Joined, flags: &[&str]) {
    let key = joined.tailnet.single_use_key();
    let run = joined.program(&KeyFile::new(&key)).up_flags(flags).run();
    assert_connected(&run);
    assert_eq!(joined.tailnet.state().key(&key).uses, 1);
    joined.assert_same_device();
}

/// Settings made with these flags of `tailscale set` are as before after a login.
fn are_kept(flags: &[&str]) {
    let (joined, before) = expired_with(flags);
    renew(&joined, &[]);
    assert_eq!(settings(&joined.node), before);
}

#[test]
fn settings_that_have_a_flag_are_kept() {
    are_kept(&[
        "--accept-routes",
        "--accept-dns=false",
        "--hostname=kept",
        "--shields-up",
        "--ssh",
        "--advertise-routes=192.0.2.0/24,198.51.100.0/24",
        "--operator=nobody",
        "--snat-subnet-routes=false",
    ]);
}

#[test]
fn settings_that_have_no_flag_are_kept() {
    are_kept(&[without_a_flag(), "--update-check=false", "--webclient"]);
}

#[test]
fn settings_with_and_without_a_flag_are_kept_together() {
    are_kept(&["--webclient", "--ssh", without_a_flag(), "--hostname=kept"]);
}

#[test]
fn a_value_that_a_shell_would_take_apart_is_kept() {
    // No name of a machine may look so; an operator is only a name to tailscaled.
    are_kept(&["--operator=o'brien $HOME \"x\" `id` \\ *;#"]);
}

#[test]
fn an_advertised_exit_node_goes_on_being_one() {
    let (joined, before) = expired_with(&["--advertise-exit-node"]);
    renew(&joined, &[]);
    assert_eq!(settings(&joined.node), before);
    let routes = joined.assert_same_device().routes;
    assert!(routes.contains(&"0.0.0.0/0".to_owned()), "{routes:?}");
}

/// A node that may be used as an exit node, by the name `exit`.
fn exit_node(tailnet: &Tailnet) -> Node {
    let exit = Node::start();
    exit.join_with(tailnet, &["--hostname=exit", "--advertise-exit-node"]);
    exit
}

#[test]
fn an_exit_node_is_used_by_its_name_from_the_first_login_on() {
    for stay in [false, true] {
        let (tailnet, node) = (Tailnet::start(), Node::start());
        let exit = exit_node(&tailnet);
        let file = KeyFile::new(tailnet.single_use_key());
        let flags = ["--hostname=user", "--exit-node=exit", "--exit-node-allow-lan-access"];
        let run = program(&tailnet, &node, &file).up_flags(flags);
        let run = run.args(stay.then_some("--stay")).spawn();
        run.wait_ready();
        let prefs = node.prefs();
        assert_eq!(prefs["ExitNodeID"], exit.status()["Self"]["ID"], "{}", run.stderr());
        assert_eq!(prefs["ExitNodeAllowLANAccess"], true);
        assert_eq!(prefs["Hostname"], "user");
        if !stay {
            run.wait().assert_code(0);
        }
    }
}

#[test]
fn an_exit_node_that_nobody_is_costs_a_warning_and_not_the_login() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);
    let run = program(&tailnet, &node, &file).up_flags(["--exit-node", "nobody"]).run();
    assert_joined(&run, &tailnet, &node, &key);
    assert!(run.stderr.contains("connected, but without the exit node ("), "{}", run.stderr);
    assert_eq!(node.prefs()["ExitNodeID"], "");
}

#[test]
fn the_exit_node_that_is_used_is_kept() {
    let joined = Joined::new();
    let _exit = exit_node(&joined.tailnet);
    joined.node.wait_status(
        |status| {
            let peers = status["Peer"].as_object().into_iter().flatten();
            peers.into_iter().any(|(_, peer)| peer["ExitNodeOption"] == true)
        },
        "an exit node",
    );
    let before = set_and_expire(&joined, &["--exit-node=exit", "--exit-node-allow-lan-access"]);
    assert_ne!(before["ExitNodeID"], "");

    renew(&joined, &[]);

    joined
        .node
        .wait_status(|status| status["ExitNodeStatus"]["Online"] == true, "the exit node in use");
    assert_eq!(settings(&joined.node), before);
}

#[test]
fn tags_are_kept() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let tagged =
        || tailnet.key(&KeySpec { tags: vec!["tag:server".to_owned()], ..KeySpec::default() });
    log_in(&tailnet, &node, &tagged(), &["--advertise-tags=tag:server"]);
    let (before, device) = (settings(&node), tailnet.device(&node).expect("it joined"));
    assert_eq!(device.tags, ["tag:server"]);
    tailnet.expire(device.id);
    node.wait_state("NeedsLogin");

    log_in(&tailnet, &node, &tagged(), &[]);

    assert_eq!(settings(&node), before);
    let now = tailnet.device(&node).expect("it logged in");
    assert_eq!((now.id, now.tags), (device.id, device.tags));
}

/// A node that was never logged in, with settings made already; and what becomes of them.
fn fresh_with(flags: &[&str]) -> (Tailnet, Node, Value) {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    set(&node, flags);
    let mut settings = settings(&node);
    if !version_is_at_least((1, 84)) {
        // A new node has it on then, though nobody asked for it, and `up` turns it off.
        assert_eq!(settings["RouteAll"], true);
        settings["RouteAll"] = json!(false);
    }
    (tailnet, node, settings)
}

/// Its first login, with these flags for `up`.
fn first_login(tailnet: &Tailnet, node: &Node, flags: &[&str]) {
    let key = tailnet.single_use_key();
    log_in(tailnet, node, &key, flags);
    assert_eq!(tailnet.state().key(&key).attempts, 1);
}

/// A login with this key and these flags for `up`.
fn log_in(tailnet: &Tailnet, node: &Node, key: &str, flags: &[&str]) {
    let file = KeyFile::new(key);
    let run = program(tailnet, node, &file).up_flags(flags).run();
    assert_connected(&run);
    assert!(Node::is_online(&node.status()));
    assert_eq!(tailnet.state().key(key).uses, 1);
}

#[test]
fn settings_made_before_the_first_login_are_kept() {
    let (tailnet, node, before) =
        fresh_with(&["--hostname=early", "--accept-routes", "--operator=nobody", without_a_flag()]);
    first_login(&tailnet, &node, &[]);
    assert_eq!(settings(&node), before);
    // The tailnet hears of them, too.
    tailnet.wait_until(|state| state.device("early").is_some(), "the device to have its name");
}

#[test]
fn a_new_node_has_the_settings_that_tailscale_up_alone_gives_it() {
    let (tailnet, node, other) = (Tailnet::start(), Node::start(), Node::start());
    first_login(&tailnet, &node, &[]);
    other.join(&tailnet);
    assert_eq!(settings(&node), settings(&other));
    assert_eq!(settings(&node)["RouteAll"], false);
}

#[test]
fn flags_after_the_dashes_are_applied_at_the_first_login() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    first_login(&tailnet, &node, &["--hostname=flagged", "--accept-routes", "--shields-up=true"]);
    let prefs = node.prefs();
    assert_eq!(
        [&prefs["Hostname"], &prefs["RouteAll"], &prefs["ShieldsUp"]],
        [&json!("flagged"), &json!(true), &json!(true)]
    );
    assert!(tailnet.state().device("flagged").is_some());
}

#[test]
fn a_flag_after_the_dashes_wins_over_a_setting_made_before_the_first_login() {
    let (tailnet, node, mut before) = fresh_with(&["--hostname=early", "--accept-routes"]);
    first_login(&tailnet, &node, &["--hostname", "flagged"]);
    before["Hostname"] = json!("flagged");
    assert_eq!(settings(&node), before);
}

#[test]
fn a_flag_after_the_dashes_wins_over_a_kept_setting() {
    let (joined, mut before) = expired_with(&["--ssh", "--accept-routes", "--hostname=kept"]);
    renew(&joined, &["--ssh=false", "--hostname=flagged"]);
    before["RunSSH"] = json!(false);
    before["Hostname"] = json!("flagged");
    assert_eq!(settings(&joined.node), before);
}

#[test]
fn flags_after_the_dashes_change_nothing_on_a_node_that_is_connected() {
    let joined = Joined::new();
    set(&joined.node, &["--ssh"]);
    let (before, sent) = (joined.node.prefs(), joined.registers_with_key());
    let file = KeyFile::absent();
    let run = joined.program(&file).up_flags(["--ssh=false"]).run();
    assert_connected(&run);
    assert_eq!(joined.node.prefs(), before);
    assert_eq!(joined.registers_with_key(), sent);
}

#[test]
fn a_refused_key_leaves_the_settings_of_an_expired_node_as_they_were() {
    let (joined, before) =
        expired_with(&["--ssh", "--hostname=kept", without_a_flag(), "--webclient"]);
    let url = joined.node.prefs()["ControlURL"].clone();
    refused(&joined.tailnet, &joined.node);
    assert_eq!(settings(&joined.node), before);
    assert_eq!(joined.node.prefs()["ControlURL"], url);
    // Nor does the login that follows lose them.
    renew(&joined, &[]);
    assert_eq!(settings(&joined.node), before);
}

#[test]
fn a_refused_key_leaves_the_settings_of_a_fresh_node_as_they_were() {
    let (tailnet, node, before) =
        fresh_with(&["--hostname=early", "--accept-routes", without_a_flag()]);
    let untouched = settings(&node);
    refused(&tailnet, &node);
    assert_eq!(settings(&node), untouched);
    first_login(&tailnet, &node, &[]);
    assert_eq!(settings(&node), before);
}

fn refused(tailnet: &Tailnet, node: &Node) {
    let key = dead_key(tailnet);
    let run = program(tailnet, node, &KeyFile::new(&key)).run();
    run.assert_code(77);
    assert!(run.stderr.contains("the control server refused the auth key: "));
    assert!(tailnet.state().key(&key).attempts > 0);
    assert_eq!(node.backend_state(), "NeedsLogin");
}

#[test]
fn the_login_server_may_stand_after_the_dashes() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let key = tailnet.single_use_key();
    let run = program_without_server(&node, &KeyFile::new(&key))
        .up_flags(["--login-server", tailnet.url(), "--hostname=flagged"])
        .run();
    assert_connected(&run);
    assert!(Node::is_online(&node.status()));
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert_eq!(node.prefs()["ControlURL"], tailnet.url());
    assert!(tailnet.state().device("flagged").is_some());
}

#[test]
fn a_login_server_that_only_the_node_knows_is_kept() {
    let (joined, before) = expired_with(&["--accept-routes"]);
    let Joined { tailnet, node, .. } = &joined;
    let key = tailnet.single_use_key();
    let run = program_without_server(node, &KeyFile::new(&key)).run();
    assert_connected(&run);
    assert_eq!(tailnet.state().key(&key).uses, 1);
    joined.assert_same_device();
    assert_eq!(node.prefs()["ControlURL"], tailnet.url());
    assert_eq!(settings(node), before);
}

#[test]
fn what_an_admin_sets_while_approval_is_pending_is_not_reverted() {
    let (tailnet, node, mut before) = fresh_with(&["--hostname=early", without_a_flag()]);
    tailnet.policy(json!({ "approval": true }));
    let file = KeyFile::new(tailnet.single_use_key());
    let run = program(&tailnet, &node, &file).spawn();
    run.wait_status_text("waiting for an admin to approve this device");
    assert_eq!(settings(&node), before);

    set(&node, &["--hostname=late", "--accept-routes"]);
    tailnet.approve(tailnet.device_id(&node));

    assert_connected(&run.wait());
    before["Hostname"] = json!("late");
    before["RouteAll"] = json!(true);
    assert_eq!(settings(&node), before);
    assert_eq!(tailnet.state().registers.with_key, 1);
    assert!(Node::is_online(&node.status()));
}

#[test]
fn what_an_admin_sets_while_the_control_server_keeps_a_login_waiting_is_not_reverted() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let file = KeyFile::new(tailnet.single_use_key());
    tailnet.fault("hang");
    let run = program(&tailnet, &node, &file).spawn();
    until(|| node.prefs()["WantRunning"] == true);
    // The program has seen that, too.
    run.wait_status_text("logging in");
    thread::sleep(Duration::from_millis(300));

    set(&node, &["--hostname=late", "--shields-up"]);
    tailnet.lift_faults();

    assert_connected(&run.wait());
    let settings = settings(&node);
    assert_eq!(settings["Hostname"], "late");
    assert_eq!(settings["ShieldsUp"], true);
}

#[test]
fn what_an_admin_does_after_a_login_that_never_came_to_the_node_is_not_reverted() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let cli = FakeCli::script("echo EOF >&2; exit 1");
    let file = KeyFile::new(tailnet.single_use_key());
    let run = program(&tailnet, &node, &file).tailscale(cli.path()).arg("--json").spawn();
    run.wait_status_text(" s: EOF");

    let key = format!("--auth-key={}", tailnet.single_use_key());
    let server = format!("--login-server={}", tailnet.url());
    let asked = ["up", &key, &server, "--hostname=admins", "--shields-up"];
    node.tailscale_ok(asked);

    let run = run.wait();
    run.assert_code(0);
    if version_is_at_least((1, 80)) {
        // Before, tailscaled's status differs from one moment to the next by itself.
        assert_eq!(run.json()["logged_in"], false);
    }
    let settings = settings(&node);
    assert_eq!(settings["Hostname"], "admins");
    assert_eq!(settings["ShieldsUp"], true);
    assert!(!run.stderr.contains("putting back"), "{}", run.stderr);
}
