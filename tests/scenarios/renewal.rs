//! A node key that no longer counts: expired, deleted, kept off by someone's dead auth key, or not
//! yet approved.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tailnet_harness::{
    Finished, KeyFile, Node, State, Tailnet, needs_version, version_is_at_least,
};

use crate::joined::{Joined, assert_connected, dead_key, has_map_on_disk};
use crate::program;

const APPROVAL: &str = "waiting for an admin to approve this device";

/// The node needs a login: the program makes it, with a good single-use key.
fn logs_in_once(joined: &Joined) -> Finished {
    let key = joined.tailnet.single_use_key();
    let run = joined.program(&KeyFile::new(&key)).run();

    assert_connected(&run);
    assert_eq!(run.stderr.matches("logging in with").count(), 1);
    assert_eq!(joined.tailnet.state().key(&key).uses, 1);
    run
}

/// As above, and it stays the device that it was, with a node key of its own making.
fn renews_its_node_key(joined: &Joined) {
    logs_in_once(joined);
    let device = joined.assert_same_device();
    assert_ne!(device.node_key, joined.device.node_key);
    assert_eq!(joined.tailnet.state().nodes.len(), 1);
}

/// As above, but it was deleted, so it's a device anew.
fn joins_anew(joined: &Joined) {
    logs_in_once(joined);
    assert_ne!(joined.assert_online().id, joined.device.id);
    assert_eq!(joined.tailnet.state().nodes.len(), 1);
}

/// Slow: the register may be slow as well, and is given its time.
#[test]
fn a_node_that_is_deleted_before_its_first_network_map_joins_anew() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let key = tailnet.reusable_key();
    tailnet.policy(serde_json::json!({"map_delay_ms": 2000}));
    let file = KeyFile::new(&key);
    let run = program(&tailnet, &node, &file).limit(Duration::from_secs(180)).spawn();
    let state = tailnet.wait_until(|state| state.key(&key).uses == 1, "the register");
    tailnet.delete(state.nodes[0].id);
    tailnet.policy(serde_json::json!({"map_delay_ms": 0}));

    let run = run.wait();
    run.assert_code(0);
    assert!(Node::is_online(&node.status()));
    assert_eq!(tailnet.state().nodes.len(), 1);
}

#[test]
fn a_node_whose_key_expires_while_it_runs_logs_in_and_stays_the_same_device() {
    let joined = Joined::new();
    joined.expire();
    renews_its_node_key(&joined);
}

#[test]
fn a_node_whose_key_expired_while_it_was_off_logs_in_and_stays_the_same_device() {
    let joined = Joined::new();
    joined.while_off(Tailnet::expire);
    renews_its_node_key(&joined);
}

#[test]
fn a_node_whose_key_expired_while_it_was_off_is_found_out_despite_its_network_map_on_disk() {
    if !has_map_on_disk() {
        return;
    }
    let joined = Joined::with_map_on_disk();
    joined.while_off(Tailnet::expire);
    renews_its_node_key(&joined);
}

#[test]
fn a_node_that_was_deleted_while_it_was_off_joins_anew() {
    let joined = Joined::new();
    joined.while_off(Tailnet::delete);
    joins_anew(&joined);
}

#[test]
fn a_node_that_was_deleted_while_it_was_off_is_found_out_despite_its_network_map_on_disk() {
    if !has_map_on_disk() {
        return;
    }
    let joined = Joined::with_map_on_disk();
    joined.while_off(Tailnet::delete);
    joins_anew(&joined);
}

/// The first version that keeps its network map when its login is restarted. Up to 1.80 the node
/// is off its network until the control server answers, so the program doesn't do it there.
pub const KEEPS_ITS_MAP: (u32, u32) = (1, 82);

pub const RESTARTED: &str = "restarting the login, without an auth key";

/// The slow one: the daemon itself would show nothing for nine minutes.
#[test]
fn a_node_that_is_deleted_while_it_runs_is_found_out_after_half_a_minute() {
    if !needs_version(
        KEEPS_ITS_MAP,
        "an older tailscaled would drop its network map, so that its login isn't restarted",
    ) {
        return;
    }
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    tailnet.delete(joined.device.id);
    let status =
        node.wait_status(|status| status["Self"]["Online"] == false, "the node to be offline");
    assert_eq!(status["BackendState"], "Running");
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);

    let run = joined.program(&file).limit(Duration::from_secs(90)).spawn();
    run.wait_status_text("waiting for the control server");
    // That it is ready meanwhile is no reason to stop, and it's no reason to send the key.
    run.wait_ready();
    assert_eq!(tailnet.state().key(&key).attempts, 0);
    let run = run.wait();

    assert_connected(&run);
    assert!(run.elapsed >= Duration::from_secs(30), "{:?}", run.elapsed);
    assert_eq!(run.stderr.matches(RESTARTED).count(), 1);
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert_ne!(joined.assert_online().id, joined.device.id);
}

#[test]
fn a_node_that_is_deleted_while_it_runs_joins_anew_once_its_daemon_is_restarted() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    tailnet.delete(joined.device.id);
    node.wait_status(|status| status["Self"]["Online"] == false, "the node to be offline");
    let key = tailnet.single_use_key();
    let file = KeyFile::new(&key);

    let run = joined.program(&file).spawn();
    run.wait_status_text("waiting for the control server");
    node.restart();
    let run = run.wait();

    assert_connected(&run);
    assert_eq!(tailnet.state().key(&key).uses, 1);
    assert_ne!(joined.assert_online().id, joined.device.id);
}

/// Slow too: it outlasts the half a minute after which a node is suspected to be deleted.
#[test]
fn a_running_node_stays_on_its_network_while_its_control_server_is_down() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    let file = KeyFile::new(tailnet.single_use_key());
    let sent = joined.registers_with_key();
    tailnet.fault("down");
    node.wait_status(|status| status["Self"]["Online"] == false, "the node to be offline");

    let limit = Duration::from_secs(90);
    let run = joined.program(&file).limit(limit).spawn();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(33) {
        let status = node.status();
        assert_eq!(status["BackendState"], "Running");
        assert_eq!(status["Self"]["TailscaleIPs"], json!(joined.device.addresses));
        thread::sleep(Duration::from_millis(100));
    }
    assert!(run.is_alive());
    let restarts = usize::from(version_is_at_least(KEEPS_ITS_MAP));
    assert_eq!(run.stderr().matches(RESTARTED).count(), restarts);
    tailnet.lift_faults();

    assert_connected(&run.wait());
    assert_eq!(joined.registers_with_key(), sent);
    assert_eq!(joined.assert_same_device().node_key, joined.device.node_key);
}

#[test]
fn an_expired_node_with_a_dead_key_ends_with_77_and_leaves_nothing_behind() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    joined.expire();
    let key = dead_key(tailnet);

    let run = joined.program(&KeyFile::new(&key)).run();

    run.assert_code(77);
    let sentence = "the control server refused the auth key: authkey expired; \
                    make a new key, put it into the key file and start again";
    assert!(run.stderr.contains(sentence), "{}", run.stderr);
    assert_eq!(run.statuses().last(), Some(&sentence));
    assert_eq!(run.ready_at(), None);
    assert_eq!(tailnet.state().key(&key).uses, 0);
    assert!(tailnet.state().key(&key).attempts > 0);
    tailnet.assert_no_key_is_sent();
    assert_eq!(node.backend_state(), "NeedsLogin");
    // A good key makes it the same device again.
    renews_its_node_key(&joined);
}

/// A daemon that asks for a login doesn't hear that it is no longer needed (tailscale 1.98).
#[test]
fn a_node_whose_expiry_was_taken_back_comes_up_on_its_node_key_despite_a_dead_key() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    joined.while_off(Tailnet::expire);
    node.wait_state("NeedsLogin");
    tailnet.unexpire(joined.device.id);
    let key = dead_key(tailnet);

    let run = joined.program(&KeyFile::new(&key)).run();

    assert_connected(&run);
    tailnet.assert_no_key_is_sent();
    assert_eq!(joined.assert_same_device().node_key, joined.device.node_key);
}

/// Someone has sent a dead key from this node, by hand.
fn someone_sends_a_dead_key(joined: &Joined) -> String {
    let dead = dead_key(&joined.tailnet);
    // Its exit code says nothing (tailscale 1.98).
    joined.node.tailscale([
        "up".to_owned(),
        format!("--login-server={}", joined.tailnet.url()),
        format!("--auth-key={dead}"),
    ]);
    joined.node.wait_status(
        |status| {
            let text = status["Health"].to_string();
            status["Self"]["Online"] == false && text.contains("authkey expired")
        },
        "the node to be kept off by the dead key",
    );
    dead
}

#[test]
fn a_node_that_someones_dead_key_keeps_off_is_rescued_without_any_key() {
    let joined = Joined::new();
    let Joined { tailnet, .. } = &joined;
    let key = tailnet.single_use_key();
    someone_sends_a_dead_key(&joined);
    let without_key = tailnet.state().registers.without_key;

    let run = joined.program(&KeyFile::new(&key)).run();

    assert_connected(&run);
    let sentence = "an auth key that was sent earlier keeps this node off its tailnet \
                    (authkey expired); restarting the login without it";
    assert_eq!(run.stderr.matches(sentence).count(), 1, "{}", run.stderr);
    let state = tailnet.state();
    assert_eq!(state.key(&key).attempts, 0);
    assert_eq!(state.registers.without_key, without_key + 1);
    tailnet.assert_no_key_is_sent();
    assert_eq!(joined.assert_same_device().node_key, joined.device.node_key);
}

#[test]
fn a_deleted_node_from_which_someone_sent_a_dead_key_joins_anew() {
    let joined = Joined::new();
    joined.tailnet.delete(joined.device.id);
    joined.node.wait_status(|status| status["Self"]["Online"] == false, "the node to be offline");
    let dead = someone_sends_a_dead_key(&joined);
    assert_eq!(joined.tailnet.state().key(&dead).uses, 0);

    joins_anew(&joined);
    joined.tailnet.assert_no_key_is_sent();
}

#[test]
fn a_node_that_was_stopped_after_someones_dead_key_is_brought_up_without_any_key() {
    let joined = Joined::new();
    let Joined { tailnet, node, .. } = &joined;
    let dead = someone_sends_a_dead_key(&joined);
    node.tailscale_ok(["down"]);
    node.wait_state("Stopped");
    let attempts = tailnet.state().key(&dead).attempts;

    let run = joined.program(&KeyFile::absent()).run();

    assert_connected(&run);
    tailnet.assert_no_key_is_sent();
    // One may have been on its way.
    assert!(tailnet.state().key(&dead).attempts <= attempts + 1);
    assert_eq!(joined.assert_same_device().node_key, joined.device.node_key);
}

#[test]
fn a_stopped_node_whose_key_has_expired_is_brought_up_and_logs_in() {
    let joined = Joined::new();
    joined.node.tailscale_ok(["down"]);
    joined.while_off(Tailnet::expire);
    if version_is_at_least(KEEPS_ITS_MAP) {
        joined.node.wait_state("Stopped");
    } else {
        // Before, it asks for a login now and then although it was stopped.
        let states = ["Stopped", "NeedsLogin"];
        let is_one = |status: &Value| states.iter().any(|state| status["BackendState"] == *state);
        joined.node.wait_status(is_one, "to be stopped");
    }
    renews_its_node_key(&joined);
}

#[test]
fn a_node_that_was_logged_out_logs_in() {
    let joined = Joined::new();
    joined.node.tailscale_ok(["logout"]);
    joined.node.wait_state("NeedsLogin");
    logs_in_once(&joined);
    joined.assert_online();
}

/// A fresh node on a tailnet whose admin approves each device.
struct Unapproved {
    tailnet: Tailnet,
    node: Node,
    key: String,
    file: KeyFile,
}

impl Unapproved {
    fn new() -> Self {
        let tailnet = Tailnet::start();
        tailnet.policy(json!({ "approval": true }));
        let key = tailnet.single_use_key();
        Self { node: Node::start(), file: KeyFile::new(&key), tailnet, key }
    }

    fn program(&self) -> tailnet_harness::Run {
        program(&self.tailnet, &self.node, &self.file)
    }

    /// The key was sent just once, and was good.
    fn assert_one_register(&self) -> State {
        let state = self.tailnet.state();
        let used = state.key(&self.key);
        assert_eq!((used.attempts, used.uses), (1, 1));
        assert_eq!(state.registers.with_key, 1);
        state
    }

    fn approve(&self) {
        let state = self.assert_one_register();
        assert!(!state.nodes[0].approved);
        self.tailnet.approve(state.nodes[0].id);
    }

    fn assert_is_in(&self) {
        self.assert_one_register();
        assert!(Node::is_online(&self.node.status()));
        let device = self.tailnet.device(&self.node).expect("it is known");
        assert!(device.approved && device.online, "{device:?}");
    }

    /// The program gives up on the admin.
    fn runs_out_of_time(&self) {
        let run = self.program().args(["--timeout", "2s"]).run();

        run.assert_code(75);
        let sentence = format!("not connected within the time limit: {APPROVAL}");
        assert!(run.stderr.contains(&sentence), "{}", run.stderr);
        assert!(run.statuses().contains(&APPROVAL));
        assert_eq!(run.statuses().last(), Some(&sentence.as_str()));
        assert_eq!(run.ready_at(), None);
        assert!(run.elapsed >= Duration::from_secs(2), "{:?}", run.elapsed);
        assert_eq!(run.left_behind, Vec::<u32>::new());
        assert_eq!(self.node.backend_state(), "NeedsMachineAuth");
        self.assert_one_register();
    }
}

#[test]
fn a_device_that_waits_for_approval_holds_up_no_boot_and_connects_when_approved() {
    let unapproved = Unapproved::new();

    let run = unapproved.program().args(["--ready-after", "1s"]).spawn();
    assert_eq!(run.wait_status_text(APPROVAL), APPROVAL);
    assert!(run.wait_ready() >= Duration::from_secs(1));
    assert!(run.is_alive());
    assert_eq!(unapproved.node.backend_state(), "NeedsMachineAuth");
    unapproved.approve();

    assert_connected(&run.wait());
    unapproved.assert_is_in();
}

#[test]
fn a_device_that_is_not_approved_in_time_ends_with_75_and_needs_no_key_later() {
    let unapproved = Unapproved::new();
    unapproved.runs_out_of_time();
    // The daemon goes on by itself.
    unapproved.approve();
    unapproved.node.wait_online();
    unapproved.assert_is_in();
}

#[test]
fn a_device_that_still_waits_for_approval_after_a_reboot_sends_no_key_again() {
    let unapproved = Unapproved::new();
    unapproved.runs_out_of_time();
    unapproved.node.restart();

    let run = unapproved.program().spawn();
    run.wait_status_text(APPROVAL);
    unapproved.approve();

    let run = run.wait();
    assert_connected(&run);
    assert!(!run.stderr.contains("logging in"), "{}", run.stderr);
    unapproved.assert_is_in();
}
