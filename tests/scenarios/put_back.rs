//! Whose settings are put back after a login, and which: those of the node that the login was for,
//! all of them, and nothing that somebody sets while the login is under way, nor after a kill.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tailnet_harness::{
    CountingProxy, FakeCli, Finished, KeyFile, Node, Run, Running, Signal, Tailnet, needs_version,
};

use crate::joined::{Joined, assert_connected};
use crate::settings::{assert_kept, set, settings, until, without_a_flag};
use crate::{program, program_without_server};

const WAITING: &str = "waiting for the control server";

/// How often a race is run.
const RACES: usize = 6;

fn fresh() -> (Tailnet, Node) {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    node.wait_state("NeedsLogin");
    (tailnet, node)
}

/// The program logs the node in with a good key; it's the same device as before.
fn renew(joined: &Joined) -> Finished {
    let key = joined.tailnet.single_use_key();
    let run = joined.program(&KeyFile::new(&key)).run();
    assert_connected(&run);
    assert_eq!(joined.tailnet.state().key(&key).uses, 1);
    joined.assert_same_device();
    run
}

/// These settings outlive an expiry and the login after it.
fn are_kept(joined: &Joined, flags: &[&str]) {
    set(&joined.node, flags);
    joined.expire();
    let before = settings(&joined.node);
    renew(joined);
    assert_kept(&joined.node, &before);
}

fn routes(node: &Node) -> Vec<String> {
    let routes = node.prefs()["AdvertiseRoutes"].clone();
    let mut routes: Vec<String> = serde_json::from_value(routes).unwrap_or_default();
    routes.sort();
    routes
}

// ---- what does not fit on a command line

#[test]
fn an_exit_node_of_the_daemons_choice_and_lan_access_are_kept() {
    if !needs_version(
        (1, 98),
        "`tailscale set` takes no --exit-node=auto:any (1.66.4 doesn't, 1.98.10 does)",
    ) {
        return;
    }
    are_kept(&Joined::new(), &["--exit-node=auto:any", "--exit-node-allow-lan-access"]);
}

#[test]
fn lan_access_without_an_exit_node_is_kept() {
    are_kept(&Joined::new(), &["--exit-node-allow-lan-access"]);
}

#[test]
fn lan_access_is_kept_beside_an_exit_node_that_is_given_up() {
    let joined = Joined::new();
    set(&joined.node, &["--exit-node-allow-lan-access"]);
    joined.expire();
    let before = settings(&joined.node);
    let file = KeyFile::new(joined.tailnet.single_use_key());
    assert_connected(&joined.program(&file).up_flags(["--exit-node="]).run());
    assert_kept(&joined.node, &before);
}

#[test]
fn five_thousand_routes_are_kept() {
    let joined = Joined::new();
    let all: Vec<_> = (0..5000_u32).map(|at| format!("10.{}.{}.0/24", at >> 8, at & 255)).collect();
    are_kept(&joined, &[&format!("--advertise-routes={}", all.join(","))]);
    assert_eq!(routes(&joined.node).len(), all.len());
}

// ---- one preference with two flags

/// With these settings made before, a first login with this flag comes to all the routes.
fn are_both_advertised(setting: &str, flag: &str) {
    let (tailnet, node) = fresh();
    set(&node, &[setting]);
    let file = KeyFile::new(tailnet.single_use_key());
    let run = program(&tailnet, &node, &file).up_flags([flag]).run();
    assert_connected(&run);
    assert_eq!(routes(&node), ["0.0.0.0/0", "10.1.0.0/16", "::/0"]);
    tailnet.wait_until(|state| state.nodes[0].routes.len() == 3, "all the routes");
}

#[test]
fn routes_set_before_the_first_login_live_together_with_an_exit_node_asked_for() {
    are_both_advertised("--advertise-routes=10.1.0.0/16", "--advertise-exit-node");
}

#[test]
fn an_exit_node_set_before_the_first_login_lives_together_with_routes_asked_for() {
    are_both_advertised("--advertise-exit-node", "--advertise-routes=10.1.0.0/16");
}

// ---- what somebody does meanwhile

#[test]
fn what_an_admin_turns_off_while_an_expired_node_waits_for_its_control_server_stays_off() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    set(node, &["--ssh", "--accept-routes", "--hostname=kept"]);
    joined.expire();
    let mut wanted = settings(node);
    let file = KeyFile::new(tailnet.single_use_key());
    tailnet.fault("down");
    let run = joined.program(&file).spawn();
    run.wait_status_text(WAITING);
    assert_kept(node, &wanted);

    set(node, &["--ssh=false", "--accept-routes=false"]);
    wanted["RunSSH"] = json!(false);
    wanted["RouteAll"] = json!(false);
    // What is undone is undone at once.
    thread::sleep(Duration::from_secs(1));
    assert_kept(node, &wanted);
    tailnet.lift_faults();

    assert_connected(&run.wait());
    assert_kept(node, &wanted);
    joined.assert_same_device();
}

const BY_AN_ADMIN: [&str; 4] = ["set", "--shields-up", "--hostname=h", "--operator=nobody"];

fn assert_as_the_admin_set(node: &Node) {
    let prefs = node.prefs();
    let set = ["ShieldsUp", "Hostname", "OperatorUser"].map(|name| prefs[name].clone());
    assert_eq!(set, [json!(true), json!("h"), json!("nobody")]);
}

#[test]
fn what_an_admin_sets_beside_a_first_login_is_kept_whichever_is_first() {
    for _ in 0..RACES {
        let (tailnet, node) = fresh();
        let file = KeyFile::new(tailnet.single_use_key());
        let run = program(&tailnet, &node, &file).spawn();
        let admin = node.tailscale_spawn(BY_AN_ADMIN);
        admin.wait().assert_code(0);
        assert_connected(&run.wait());
        assert_as_the_admin_set(&node);
    }
}

/// A command during which, before it does anything, an admin sets something: as during an exchange
/// of an OAuth client secret.
fn with_an_admin_before(node: &Node) -> FakeCli {
    let (cli, socket) = (node.cli(), node.socket());
    let (cli, socket) = (cli.display(), socket.display());
    let set = BY_AN_ADMIN.join(" ");
    FakeCli::script(&format!("'{cli}' --socket='{socket}' {set} || exit 99\nexec '{cli}' \"$@\""))
}

#[test]
fn what_an_admin_sets_while_the_command_has_not_done_anything_yet_is_kept() {
    let (tailnet, node) = fresh();
    let cli = with_an_admin_before(&node);
    let file = KeyFile::new(tailnet.single_use_key());
    let run = program(&tailnet, &node, &file).tailscale(cli.path());
    assert_connected(&run.run());
    assert_as_the_admin_set(&node);
}

#[test]
fn what_an_admin_sets_while_an_expired_node_is_about_to_log_in_is_kept() {
    let joined = Joined::new();
    set(&joined.node, &["--webclient", "--ssh"]);
    joined.expire();
    let mut wanted = settings(&joined.node);
    let cli = with_an_admin_before(&joined.node);
    let file = KeyFile::new(joined.tailnet.single_use_key());
    let run = joined.program(&file).tailscale(cli.path());
    assert_connected(&run.run());
    wanted["ShieldsUp"] = json!(true);
    wanted["Hostname"] = json!("h");
    wanted["OperatorUser"] = json!("nobody");
    assert_kept(&joined.node, &wanted);
}

// ---- after a kill

/// A command that lets the program see nothing of what it does before it's done.
fn that_stops_the_program(node: &Node) -> FakeCli {
    FakeCli::script(&format!(
        "kill -STOP $PPID\n'{}' \"$@\"\ncode=$?\nkill -CONT $PPID\nexit $code",
        node.cli().display()
    ))
}

/// The command has replaced the settings, nobody has put any back, and all is killed.
pub fn killed_after_the_replacement(run: &Run, node: &Node) {
    let cli = that_stops_the_program(node);
    let run = run.clone().tailscale(cli.path()).spawn();
    until(|| node.prefs()["RunWebClient"] == false);
    kill_all(run);
}

fn kill_all(run: Running) {
    // What it leaves behind is killed with it.
    run.signal(Signal::KILL);
    drop(run);
}

/// An expired node whose settings a killed run has lost; and what they were.
fn lost(flags: &[&str], fault: &str) -> (Joined, KeyFile, Value) {
    let joined = Joined::new();
    set(&joined.node, &["--webclient", without_a_flag(), "--hostname=kept"]);
    joined.expire();
    let before = settings(&joined.node);
    let file = KeyFile::new(joined.tailnet.single_use_key());
    joined.tailnet.fault(fault);
    killed_after_the_replacement(&joined.program(&file).up_flags(flags), &joined.node);
    (joined, file, before)
}

/// The run after it, during which the control server comes back.
fn connects_after_the_fault(joined: &Joined, run: Run) {
    let run = run.spawn();
    run.wait_status_text(WAITING);
    joined.tailnet.lift_faults();
    assert_connected(&run.wait());
    joined.assert_same_device();
}

#[test]
fn what_a_killed_run_has_lost_the_next_one_puts_back() {
    let (joined, file, before) = lost(&[], "down");
    connects_after_the_fault(&joined, joined.program(&file));
    assert_kept(&joined.node, &before);
}

#[test]
fn what_a_killed_run_has_lost_the_next_one_puts_back_also_on_a_node_that_got_connected() {
    let (joined, file, before) = lost(&[], "none");
    joined.node.wait_online();
    let sent = joined.registers_with_key();
    assert_connected(&joined.program(&file).run());
    joined.assert_same_device();
    assert_kept(&joined.node, &before);
    assert_eq!(joined.registers_with_key(), sent);
}

#[test]
fn what_a_killed_run_has_lost_a_run_with_another_key_and_other_flags_puts_back() {
    // Where it does not show, the login is let end: it may have come to its end already.
    if !needs_version(
        (1, 82),
        "an older tailscaled does not show that an expired node needs a login",
    ) {
        return;
    }
    let (joined, file, mut before) = lost(&["--shields-up", "--hostname=first"], "down");
    let key = joined.tailnet.single_use_key();
    file.swap(&key);
    let run = joined.program(&file).up_flags(["--accept-routes"]);
    connects_after_the_fault(&joined, run);
    before["RouteAll"] = json!(true);
    assert_kept(&joined.node, &before);
    assert_eq!(joined.tailnet.state().key(&key).uses, 1);
}

#[test]
fn what_a_killed_run_has_lost_a_run_at_another_server_puts_back() {
    let (other, node) = fresh();
    set(&node, &["--webclient", "--hostname=early"]);
    let mut before = settings(&node);
    // Up to 1.82 a new node has it on, and a login turns it off.
    before["RouteAll"] = json!(false);
    let file = KeyFile::new(other.single_use_key());
    let mistyped = program_without_server(&node, &file).login_server("http://127.0.0.1:1");
    killed_after_the_replacement(&mistyped, &node);

    assert_connected(&program(&other, &node, &file).run());
    assert_kept(&node, &before);
    assert_eq!(node.prefs()["ControlURL"], other.url());
}

#[test]
fn what_an_admin_sets_after_a_run_was_killed_stays() {
    let (joined, file, mut wanted) = lost(&[], "down");
    set(&joined.node, &["--hostname=late", "--accept-routes"]);
    connects_after_the_fault(&joined, joined.program(&file));
    wanted["Hostname"] = json!("late");
    wanted["RouteAll"] = json!(true);
    assert_kept(&joined.node, &wanted);
}

// ---- another profile

#[test]
fn a_login_pending_on_one_profile_leaves_another_alone() {
    let (joined, before, mine, other, theirs) =
        two_profiles(&["--ssh", "--accept-routes", "--operator=nobody"]);
    let Joined { tailnet, node, .. } = &joined;
    let file = KeyFile::new(tailnet.single_use_key());
    tailnet.fault("down");
    let run = program_without_server(node, &file).spawn();
    run.wait_status_text(WAITING);

    // Neither while the run goes on, nor when it ends.
    other.fault("down");
    switch_to(node, &theirs.0);
    thread::sleep(Duration::from_secs(1));
    assert_kept(node, &theirs.1);
    run.signal(Signal::TERM);
    run.wait();
    assert_eq!(profile(node), theirs.0);
    assert_kept(node, &theirs.1);
    assert_eq!(node.prefs()["ControlURL"], other.url());

    // Nor has the other lost anything.
    tailnet.lift_faults();
    switch_to(node, &mine);
    assert_connected(&joined.program(&file).run());
    joined.assert_same_device();
    assert_kept(node, &before);
}

/// A node whose profile has these settings and an expired node key, and all of its settings; the ID of
/// that profile, and another one.
fn two_profiles(flags: &[&str]) -> (Joined, Value, String, Tailnet, (String, Value)) {
    let joined = Joined::new();
    let node = &joined.node;
    set(node, flags);
    let mine = profile(node);
    new_profile(node);
    let other = Tailnet::start();
    node.join(&other);
    let theirs = (profile(node), settings(node));
    switch_to(node, &mine);
    node.wait_online();
    joined.expire();
    let before = settings(node);
    (joined, before, mine, other, theirs)
}

/// Somebody switches to it after the program has seen which one is in use, right before it sends what it
/// puts back.
#[test]
fn a_switch_in_the_moment_of_a_put_back_costs_neither_profile_a_setting() {
    let (joined, before, mine, _other, theirs) = two_profiles(&["--webclient", "--shields-up"]);
    let Joined { tailnet, node, .. } = &joined;
    let file = KeyFile::new(tailnet.reusable_key());
    let proxy = CountingProxy::start(node);
    proxy.squeeze_in("PATCH ", "POST", format!("/localapi/v0/profiles/{}", theirs.0));
    let program = || {
        let run = Run::new(env!("CARGO_BIN_EXE_tailscale-autoconnect")).socket(proxy.socket());
        run.cli().authkey_file(file.path())
    };
    program().run().assert_code(0);
    assert!(proxy.has_squeezed_in());
    assert_eq!(profile(node), theirs.0);
    assert_kept(node, &theirs.1);

    switch_to(node, &mine);
    assert_connected(&program().run());
    assert_kept(node, &before);
}

#[test]
fn a_first_login_that_was_killed_leaves_a_profile_alone_that_was_there_before() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    let theirs = (profile(node), settings(node));
    new_profile(node);
    set(node, &["--webclient", "--hostname=mine"]);
    let file = KeyFile::new(tailnet.reusable_key());
    tailnet.fault("down");
    let run = joined.program(&file).spawn();
    run.wait_status_text(WAITING);
    run.signal(Signal::KILL);
    run.wait();

    tailnet.lift_faults();
    switch_to(node, &theirs.0);
    node.wait_online();
    assert_connected(&joined.program(&file).run());
    assert_eq!(profile(node), theirs.0);
    assert_kept(node, &theirs.1);
}

/// Goes over to a new profile.
pub fn new_profile(node: &Node) {
    let made = node.local_request("PUT", "/localapi/v0/profiles/", None);
    assert_eq!(made.expect("tailscaled answers").status, 201);
}

/// As `tailscale switch`, which waits until the node is online.
pub fn switch_to(node: &Node, profile: &str) {
    let path = format!("/localapi/v0/profiles/{profile}");
    let switched = node.local_request("POST", &path, None);
    assert_eq!(switched.expect("tailscaled answers").status, 204);
}

/// The ID of the profile that is in use.
pub fn profile(node: &Node) -> String {
    let current = node.local_get("/localapi/v0/profiles/current");
    let current = current.expect("tailscaled answers").json();
    current["ID"].as_str().expect("a profile has an ID").to_owned()
}
