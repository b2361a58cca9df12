//! A run that stays: it keeps the node on its tailnet for good, and leaves alone what somebody meant.
//!
//! All times of it are parts of the node key's life, so one of 20 seconds shows what one of 180 days
//! would.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tailnet_harness::{
    Device, KeyFile, KeySpec, Node, Running, Signal, State, Tailnet, needs_version,
    version_is_at_least,
};

use crate::joined::dead_key;
use crate::program;
use crate::renewal::KEEPS_ITS_MAP;

pub const LIFE: Duration = Duration::from_secs(20);
/// For what is to happen in the last part of a life, and to have time there.
const LONG_LIFE: Duration = Duration::from_secs(1000);

pub const LEFT_ALONE: &str = "the node was taken off its tailnet by somebody";
const SENT: &str = "renewing the node key with";

/// A node that was joined by a run that stays.
pub struct Kept {
    run: Running,
    file: KeyFile,
    pub key: String,
    node: Node,
    pub tailnet: Tailnet,
    pub device: Device,
}

impl Kept {
    pub fn new(life: Duration) -> Self {
        Self::with(life, |tailnet| tailnet.reusable_key(), &[])
    }

    pub fn with(life: Duration, key: impl FnOnce(&Tailnet) -> String, options: &[&str]) -> Self {
        let tailnet = Tailnet::start();
        tailnet.node_keys_live(life);
        let key = key(&tailnet);
        Self::on(tailnet, Node::start(), key, options, &[])
    }

    fn on(tailnet: Tailnet, node: Node, key: String, options: &[&str], flags: &[&str]) -> Self {
        let file = KeyFile::new(&key);
        let run = program(&tailnet, &node, &file)
            .arg("--stay")
            .args(options.iter().copied())
            .up_flags(flags.iter().copied())
            .limit(Duration::from_secs(600))
            .spawn();
        run.wait_ready();
        let run_is = |text: &str| {
            wait_until(|| status(&run).contains(text), &format!("the status {text:?}"));
        };
        run_is("connected as ");
        let device = tailnet.device(&node).expect("the node has joined");
        assert_eq!(tailnet.state().key(&key).uses.max(1), 1);
        Self { run, file, key, node, tailnet, device }
    }

    pub fn state(&self) -> State {
        self.tailnet.state()
    }

    fn registers_with_key(&self) -> u64 {
        self.state().registers.with_key
    }

    /// So much is left of the node key's life that it's time for a renewal, whatever the chance.
    fn is_nearly_over(&self) {
        self.tailnet.expires_in(self.device.id, Some(LONG_LIFE / 11));
    }

    pub fn wait_status(&self, text: &str) {
        self.wait_status_for(Duration::from_secs(20), text);
    }

    pub fn wait_status_for(&self, limit: Duration, text: &str) {
        let is_so = || status(&self.run).contains(text);
        wait_for(limit, is_so, || {
            format!("the status {text:?}; it is {:?}; {}", status(&self.run), self.run.stderr())
        });
        assert!(self.run.is_alive());
    }

    /// Where tailscaled does not notice by itself, that is tried after half a minute.
    fn wait_connected_once_unexpired(&self) {
        self.tailnet.unexpire(self.device.id);
        self.wait_status_for(Duration::from_secs(60), "connected as ");
    }

    /// No register with an auth key comes for a while.
    pub fn assert_no_key_is_sent(&self) {
        self.tailnet.assert_no_key_is_sent();
        assert!(self.run.is_alive());
    }

    /// The node is online, and the device that it was.
    fn assert_same_device(&self) -> Device {
        let status = self.node.wait_online();
        let device = self.tailnet.device(&self.node);
        let device = device.unwrap_or_else(|| panic!("it is known: {status:#}"));
        assert_eq!(
            (device.id, &device.name, &device.addresses, &device.tags),
            (self.device.id, &self.device.name, &self.device.addresses, &self.device.tags)
        );
        assert_eq!(self.state().nodes.len(), 1);
        device
    }

    fn wait_renewed(&self) -> Device {
        self.wait_renewed_from(&self.device.node_key)
    }

    fn wait_renewed_from(&self, node_key: &str) -> Device {
        self.tailnet.wait_until_for(
            2 * LIFE,
            |state| state.nodes.iter().all(|device| device.node_key != node_key && device.online),
            "a new node key",
        );
        self.run.wait_stderr(|text| text.contains("the node key was renewed"), "that it says so");
        self.assert_same_device()
    }

    /// Watches the node while something is done.
    fn watched<T>(&self, done: impl FnOnce() -> T) -> (T, Seen) {
        let (over, seen) = (AtomicBool::new(false), Mutex::new(Seen::default()));
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if let Ok(reply) = self.node.local_get("/localapi/v0/status") {
                        seen.lock().unwrap().take(&reply.json());
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            });
            let result = done();
            over.store(true, Ordering::Relaxed);
            result
        });
        (result, seen.into_inner().unwrap())
    }
}

/// What the status of a node has shown.
#[derive(Debug, Default)]
struct Seen {
    states: Vec<String>,
    /// How long it was not online at a stretch, at most.
    longest_off: Duration,
    off_since: Option<Instant>,
}

impl Seen {
    /// A login that is restarted passes through Starting.
    fn has_its_network(&self) -> bool {
        self.states.iter().all(|state| ["Running", "Starting"].contains(&state.as_str()))
    }

    fn take(&mut self, status: &Value) {
        let state = status["BackendState"].as_str().unwrap_or_default().to_owned();
        if self.states.last() != Some(&state) {
            self.states.push(state);
        }
        match Node::is_online(status) {
            true => self.off_since = None,
            false => {
                let since = *self.off_since.get_or_insert_with(Instant::now);
                self.longest_off = self.longest_off.max(since.elapsed());
            }
        }
    }
}

/// What it has told systemd last.
fn status(run: &Running) -> String {
    let notifications = run.notifications();
    let mut statuses = notifications.iter().rev().filter_map(|one| one.get("STATUS"));
    statuses.next().unwrap_or_default().to_owned()
}

fn wait_until(seen: impl FnMut() -> bool, what: &str) {
    wait_for(Duration::from_secs(20), seen, || what.to_owned());
}

fn wait_for(limit: Duration, mut seen: impl FnMut() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + limit;
    while !seen() {
        assert!(Instant::now() < deadline, "waited in vain for {}", what());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the daemon is one whose node key is renewed.
#[track_caller]
pub fn renews() -> bool {
    needs_version(KEEPS_ITS_MAP, "an older tailscaled is off its network while it renews")
}

/// All preferences but the node's own identity.
fn preferences(node: &Node) -> Value {
    let mut prefs = node.prefs();
    prefs.as_object_mut().expect("an object").remove("Config");
    prefs
}

// ---- renewals

#[test]
fn a_node_key_is_renewed_between_70_and_90_percent_of_its_life_and_nothing_else_changes() {
    if !renews() {
        return;
    }
    let kept = Kept::new(LIFE);
    kept.node.tailscale_ok([
        "set",
        "--webclient",
        "--auto-update=false",
        "--accept-dns=false",
        "--advertise-routes=10.0.0.0/8",
        "--shields-up",
    ]);
    let prefs = preferences(&kept.node);
    let mut node_key = kept.device.node_key.clone();

    for round in 1..=2 {
        let device = kept.tailnet.device(&kept.node).expect("it is known");
        let left = Duration::from_secs_f64(device.expires_in_s.expect("it expires"));
        let admitted = Instant::now() - (LIFE - left);
        let (at, seen) = kept.watched(|| {
            let before = kept.registers_with_key();
            let sent = |state: &State| state.registers.with_key > before;
            kept.tailnet.wait_until_for(LIFE, sent, "a register with the key");
            let at = admitted.elapsed();
            let renewed = kept.wait_renewed_from(&node_key);
            node_key = renewed.node_key;
            thread::sleep(Duration::from_millis(500));
            at
        });
        let part = at.as_secs_f64() / LIFE.as_secs_f64();
        assert!((0.69..0.97).contains(&part), "after {part} of the life");
        // On a busy machine tailscaled gets to sending the key with the old node key, too.
        assert!(
            (round..=2 * round).contains(&(kept.registers_with_key() - 1)),
            "{:?}",
            kept.state()
        );
        assert!(seen.has_its_network(), "{seen:?}");
        // tests/renewal.sh measures it. `tailscale up --force-reauth` takes five seconds.
        assert!(seen.longest_off < Duration::from_secs(3), "{seen:?}");
        assert_eq!(preferences(&kept.node), prefs);
    }
    assert_eq!(kept.run.stderr().matches(SENT).count(), 2);
    assert_eq!(kept.run.stderr().matches("the node key was renewed; it expires 20").count(), 2);
    assert_eq!(kept.run.stderr().matches("logging in").count(), 1);
}

#[test]
fn it_says_as_whom_it_is_connected_and_when_the_node_key_expires() {
    let kept = Kept::new(Duration::from_secs(180 * 24 * 3600));
    let expiry = kept.node.status()["Self"]["KeyExpiry"].as_str().expect("it expires").to_owned();
    let words = format!(
        "connected as {} ({}); node key expires {}",
        kept.device.name.trim_end_matches('.'),
        kept.device.addresses.join(", "),
        &expiry[..10]
    );
    kept.wait_status(&words);
    assert_eq!(status(&kept.run), words);
    assert_eq!(kept.run.stderr().matches(&words).count(), 1, "{}", kept.run.stderr());
    kept.assert_no_key_is_sent();
    assert_eq!(status(&kept.run), words);
}

#[test]
fn a_node_key_that_never_expires_is_not_renewed() {
    let kept = Kept::new(LONG_LIFE);
    kept.is_nearly_over();
    kept.tailnet.expires_in(kept.device.id, None);
    wait_until(|| kept.node.status()["Self"]["KeyExpiry"].is_null(), "no expiry");
    let sent = kept.registers_with_key();
    kept.wait_status("connected as ");
    wait_until(|| !status(&kept.run).contains("expires"), "no date");
    kept.assert_no_key_is_sent();
    assert!(kept.registers_with_key() <= sent + 1);
}

#[test]
fn a_node_that_had_joined_before_is_renewed_as_well() {
    if !renews() {
        return;
    }
    let tailnet = Tailnet::start();
    tailnet.node_keys_live(LIFE);
    let node = Node::start();
    node.join(&tailnet);
    let key = tailnet.reusable_key();
    let kept = Kept::on(tailnet, node, key, &[], &[]);
    assert_eq!(kept.state().key(&kept.key).attempts, 0);
    kept.wait_renewed();
}

/// What is wrong with a key that is sent for a renewal.
fn a_dead_key(kill: impl Fn(&Tailnet, &str)) {
    if !renews() {
        return;
    }
    let kept = Kept::new(LIFE);
    kill(&kept.tailnet, &kept.key);
    let before = kept.state().key(&kept.key).attempts;
    let ((), seen) = kept.watched(|| {
        let refusals = |state: &State| state.key(&kept.key).attempts > before;
        kept.tailnet.wait_until_for(LIFE, refusals, "the dead key");
        kept.wait_status(" and is not renewed: the auth key in the file was refused before");
    });
    assert!(seen.has_its_network(), "{seen:?}");
    assert!(seen.longest_off < Duration::from_secs(3), "{seen:?}");
    let stderr = kept.run.stderr();
    assert_eq!(
        stderr.matches("the node key could not be renewed, and expires in").count(),
        1,
        "{stderr}"
    );
    assert_eq!(kept.assert_same_device().node_key, kept.device.node_key);

    // In the file is something new.
    let good = kept.tailnet.reusable_key();
    kept.file.swap(&good);
    kept.wait_renewed();
    assert!((1..=2).contains(&kept.state().key(&good).attempts), "{:?}", kept.state());
    kept.wait_status("; node key expires ");
    assert!(!status(&kept.run).contains("not renewed"));
    assert!(kept.state().key(&kept.key).attempts <= before + 2, "{:?}", kept.state());
}

#[test]
fn a_deleted_key_costs_nothing_and_is_not_sent_again_and_a_new_one_is_tried() {
    a_dead_key(Tailnet::delete_key);
}

#[test]
fn an_expired_key_costs_nothing_and_is_not_sent_again_and_a_new_one_is_tried() {
    a_dead_key(Tailnet::expire_key);
}

#[test]
fn a_revoked_key_costs_nothing_and_is_not_sent_again_and_a_new_one_is_tried() {
    a_dead_key(Tailnet::revoke_key);
}

#[test]
fn a_used_key_is_not_sent_again_in_the_next_run_either() {
    if !renews() {
        return;
    }
    let kept = Kept::with(LONG_LIFE, Tailnet::single_use_key, &[]);
    kept.is_nearly_over();
    kept.wait_status(" and is not renewed: the auth key in the file was refused before");
    let Kept { run, file, key, node, tailnet, .. } = kept;
    let attempts = tailnet.state().key(&key).attempts;
    assert!((2..=3).contains(&attempts), "{attempts}");
    run.signal(Signal::TERM);
    run.wait();

    let run = program(&tailnet, &node, &file).arg("--stay").spawn();
    wait_until(|| status(&run).contains("was refused before"), "the obstacle");
    tailnet.assert_no_key_is_sent();
    assert_eq!(tailnet.state().key(&key).attempts, attempts);
    assert!(Node::is_online(&node.status()));
}

/// What stands against a renewal is said, and the key is not sent.
fn not_renewed(kept: &Kept, why: &str) {
    kept.is_nearly_over();
    kept.wait_status(&format!(" and is not renewed: {why}"));
    kept.assert_no_key_is_sent();
    let stderr = kept.run.stderr();
    assert!(stderr.contains("the node key is not renewed, and expires in"), "{stderr}");
    assert!(!stderr.contains(SENT));
    kept.assert_same_device();
}

#[test]
fn an_oauth_secret_renews_nothing() {
    if !renews() {
        return;
    }
    let kept = Kept::new(LONG_LIFE);
    kept.file.swap(
        kept.tailnet.oauth_client(&["tag:x"]) + &format!("?baseURL={}", kept.tailnet.api_url()),
    );
    not_renewed(&kept, "an OAuth client secret makes tagged keys");
}

#[test]
fn an_old_tailscaled_is_not_renewed() {
    if version_is_at_least(KEEPS_ITS_MAP) {
        return;
    }
    let kept = Kept::new(LONG_LIFE);
    not_renewed(&kept, "this tailscaled is older than 1.82");
}

#[test]
fn a_node_that_is_offline_when_it_is_time_says_how_long_its_node_key_has_left() {
    let kept = Kept::new(LIFE);
    kept.tailnet.fault("down");
    kept.run.wait_stderr(
        |text| {
            text.lines().any(|line| {
                line.contains("the node key is not renewed, and expires in ")
                    && line.contains(": the node is not online")
            })
        },
        "that it says so",
    );
    assert!(!kept.run.stderr().contains(SENT));
}

#[test]
fn a_missing_key_file_is_looked_for_again() {
    if !renews() {
        return;
    }
    let kept = Kept::new(LIFE);
    kept.file.remove();
    kept.tailnet.expires_in(kept.device.id, Some(LIFE / 4));
    kept.wait_status(" and is not renewed: the auth key in the file cannot be used");
    kept.file.write(&kept.key);
    kept.wait_renewed();
}

fn tagged(flags: &[&str]) -> Kept {
    let tailnet = Tailnet::start();
    let key = tailnet.key(&KeySpec {
        reusable: true,
        tags: vec!["tag:x".to_owned()],
        ..KeySpec::default()
    });
    let kept = Kept::on(tailnet, Node::start(), key, &[], flags);
    assert!(!status(&kept.run).contains("expires"));
    kept.tailnet.expires_in(kept.device.id, Some(LONG_LIFE));
    wait_until(|| !kept.node.status()["Self"]["KeyExpiry"].is_null(), "an expiry");
    kept.wait_status("; node key expires ");
    kept
}

#[test]
fn tags_that_the_settings_ask_for_are_kept() {
    if !renews() {
        return;
    }
    let kept = tagged(&["--advertise-tags=tag:x"]);
    assert_eq!(kept.device.tags, ["tag:x"]);
    kept.is_nearly_over();
    assert_eq!(kept.wait_renewed().tags, ["tag:x"]);
}

#[test]
fn a_node_with_tags_of_its_key_alone_is_not_renewed() {
    if !renews() {
        return;
    }
    not_renewed(&tagged(&[]), "the node has tags that its settings do not ask for");
}

/// The control server fails just when it's time; what the network is like, and what comes when it
/// is back.
fn in_trouble(fail: impl Fn(&Tailnet), lift: impl Fn(&Tailnet)) {
    if !renews() {
        return;
    }
    let kept = Kept::new(LONG_LIFE);
    let ((), seen) = kept.watched(|| {
        fail(&kept.tailnet);
        kept.is_nearly_over();
        thread::sleep(Duration::from_secs(15));
        assert!(kept.run.is_alive());
    });
    assert!(seen.has_its_network(), "{seen:?}");
    assert_eq!(kept.node.status()["Self"]["TailscaleIPs"], json!(kept.device.addresses));
    lift(&kept.tailnet);
    kept.tailnet.wait_until_for(
        2 * LIFE,
        |state| {
            state.nodes[0].online
                && state.nodes[0].expires_in_s > Some(LONG_LIFE.as_secs_f64() / 2.0)
        },
        "another life",
    );
    kept.wait_status("; node key expires ");
    kept.assert_same_device();
    kept.assert_no_key_is_sent();
}

fn with_fault(fault: &str) {
    in_trouble(|tailnet| tailnet.fault(fault), Tailnet::lift_faults);
}

#[test]
fn a_control_server_that_is_down_when_it_is_time_costs_nothing() {
    with_fault("down");
}

#[test]
fn a_control_server_that_hangs_when_it_is_time_costs_nothing() {
    with_fault("hang");
}

#[test]
fn a_control_server_that_answers_500_when_it_is_time_costs_nothing() {
    with_fault("500");
}

#[test]
fn a_control_server_that_answers_429_when_it_is_time_costs_nothing() {
    in_trouble(
        |tailnet| tailnet.policy(json!({ "rate_limit": { "count": 1000, "retry_after_s": 1 } })),
        |tailnet| tailnet.policy(json!({ "rate_limit": { "count": 0, "retry_after_s": 0 } })),
    );
}

#[test]
fn a_control_server_that_does_not_answer_registers_when_it_is_time_costs_nothing() {
    in_trouble(
        |tailnet| tailnet.policy(json!({ "register_delay_ms": 60_000 })),
        |tailnet| tailnet.policy(json!({ "register_delay_ms": 0 })),
    );
}

#[test]
fn a_control_server_whose_answers_are_lost_when_it_is_time_costs_nothing() {
    with_fault("drop_register_reply");
}

// ---- what is left alone

/// Something has been done to the node: no key is sent, it's said, and nothing is changed.
pub fn assert_left_alone(kept: &Kept, state: &str) {
    kept.wait_status(LEFT_ALONE);
    kept.assert_no_key_is_sent();
    assert_eq!(kept.node.backend_state(), state);
    assert_eq!(kept.state().key(&kept.key).uses, 1);
}

#[test]
fn a_node_that_an_admin_expired_is_left_alone_and_followed_when_that_is_taken_back() {
    let kept = Kept::new(LIFE * 100);
    kept.tailnet.expire(kept.device.id);
    assert_left_alone(&kept, "NeedsLogin");
    kept.wait_connected_once_unexpired();
    assert_eq!(kept.assert_same_device().node_key, kept.device.node_key);
}

/// tailscaled doesn't notice by itself after a restart.
#[test]
fn a_node_that_was_expired_and_restarted_comes_back_without_a_key_when_that_is_taken_back() {
    let kept = Kept::new(LIFE * 100);
    kept.tailnet.expire(kept.device.id);
    kept.wait_status(LEFT_ALONE);
    kept.node.restart();
    kept.wait_status(LEFT_ALONE);
    kept.node.wait_state("NeedsLogin");
    kept.wait_connected_once_unexpired();
    assert_eq!(kept.assert_same_device().node_key, kept.device.node_key);
    assert_eq!(kept.registers_with_key(), 1);
}

#[test]
fn a_node_that_was_logged_out_is_left_alone() {
    let kept = Kept::new(LIFE * 100);
    kept.node.tailscale_ok(["logout"]);
    assert_left_alone(&kept, "NeedsLogin");
}

#[test]
fn a_person_at_the_login_page_is_left_alone_and_followed() {
    // Longer than the page is left alone.
    let kept = Kept::new(LIFE * 10_000);
    kept.node.tailscale_ok(["logout"]);
    kept.wait_status(LEFT_ALONE);
    let login = kept.node.tailscale_spawn(["login", "--login-server", kept.tailnet.url()]);
    let state = kept.tailnet.wait_until(|state| !state.auth_urls.is_empty(), "a login page");
    assert_left_alone(&kept, "NeedsLogin");
    kept.tailnet.complete_auth_url(&state.auth_urls[0]);
    login.wait().assert_code(0);
    kept.wait_status("connected as ");
    assert_eq!(kept.state().key(&kept.key).uses, 1);
}

#[test]
fn a_node_that_was_stopped_is_left_alone_and_followed_when_it_is_up_again() {
    let kept = Kept::new(LIFE * 100);
    kept.node.tailscale_ok(["down"]);
    assert_left_alone(&kept, "Stopped");
    // It fails if tailscaled sends the used key again and is refused before it says Running.
    let _ = kept.node.tailscale(["up"]);
    kept.wait_status("connected as ");
}

#[test]
fn a_stopped_node_whose_node_key_comes_to_its_end_is_left_alone() {
    let kept = Kept::new(LIFE * 100);
    kept.node.tailscale_ok(["down"]);
    kept.wait_status(LEFT_ALONE);
    kept.tailnet.expires_in(kept.device.id, Some(Duration::from_secs(1)));
    thread::sleep(Duration::from_secs(12));
    assert_left_alone(&kept, "Stopped");
}

#[test]
fn no_other_node_than_a_deleted_one_joins_anew_where_that_is_asked_for() {
    let options = &["--rejoin"];
    let kept = Kept::with(LIFE * 100, Tailnet::reusable_key, options);
    kept.tailnet.expire(kept.device.id);
    assert_left_alone(&kept, "NeedsLogin");
    kept.wait_connected_once_unexpired();
    kept.node.tailscale_ok(["logout"]);
    assert_left_alone(&kept, "NeedsLogin");
}

// ---- what is followed

#[test]
fn a_node_key_that_has_come_to_its_end_is_no_reason_to_stay_away() {
    let options = &["--authkey-wait", "infinity"];
    let kept = Kept::with(LIFE, Tailnet::reusable_key, options);
    kept.file.remove();
    // Since tailscaled gives it ten seconds more.
    kept.tailnet.expires_in(kept.device.id, Some(Duration::from_secs(2)));
    kept.node.wait_state("NeedsLogin");
    kept.wait_status("waiting for the auth key file");
    kept.assert_no_key_is_sent();
    kept.file.write(&kept.key);
    kept.wait_status("connected as ");
    let device = kept.assert_same_device();
    assert_ne!(device.node_key, kept.device.node_key);
    assert_eq!(kept.state().key(&kept.key).uses, 2);
    assert_eq!(kept.run.stderr().matches("logging in with").count(), 2);
    if version_is_at_least(KEEPS_ITS_MAP) {
        kept.wait_renewed_from(&device.node_key);
    }
}

#[test]
fn a_tailscaled_that_is_restarted_or_killed_is_followed() {
    let kept = Kept::new(LIFE);
    for end in [Node::terminate, Node::kill] {
        end(&kept.node);
        kept.wait_status("waiting for tailscaled");
        kept.node.launch();
        kept.wait_status("connected as ");
        kept.node.wait_online();
    }
    assert_eq!(kept.registers_with_key(), 1);
    if version_is_at_least(KEEPS_ITS_MAP) {
        kept.wait_renewed();
        assert_eq!(kept.registers_with_key(), 2);
    }
}

/// Somebody sends a dead key from the node.
fn someone_sends_a_dead_key(kept: &Kept) {
    let dead = dead_key(&kept.tailnet);
    for (path, body) in [("start", json!({ "AuthKey": dead })), ("login-interactive", json!({}))] {
        let path = format!("/localapi/v0/{path}");
        let reply = kept.node.local_request("POST", &path, Some(&body));
        assert_eq!(reply.expect("tailscaled answers").status, 204);
    }
    kept.tailnet.wait_until(|state| state.key(&dead).attempts > 0, "the dead key");
    wait_until(
        || {
            let before = kept.state().key(&dead).attempts;
            thread::sleep(Duration::from_secs(2));
            kept.state().key(&dead).attempts == before
        },
        "the dead key to be sent no more",
    );
    kept.node.wait_online();
    kept.wait_status("connected as ");
}

#[test]
fn a_node_that_someones_dead_key_keeps_off_is_freed_as_often_as_that_happens() {
    let kept = Kept::new(LIFE * 100);
    for _ in 0..3 {
        someone_sends_a_dead_key(&kept);
    }
    assert_eq!(kept.state().key(&kept.key).attempts, 1);
    assert_eq!(kept.assert_same_device().node_key, kept.device.node_key);
}

#[test]
fn the_time_limit_is_one_for_getting_connected() {
    let kept = Kept::with(LIFE * 100, Tailnet::single_use_key, &["--timeout", "3s"]);
    thread::sleep(Duration::from_secs(8));
    assert!(kept.run.is_alive());
    assert!(status(&kept.run).starts_with("connected as "), "{}", status(&kept.run));
    assert!(!kept.run.stderr().contains("did not answer in time"), "{}", kept.run.stderr());
    kept.node.restart();
    kept.wait_status("connected as ");

    // And it is one for that.
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let run = program(&tailnet, &node, &KeyFile::absent());
    run.args(["--stay", "--timeout", "1s"]).run().assert_code(66);
}

#[test]
fn a_signal_ends_it_at_once_and_leaves_the_node_connected() {
    let kept = Kept::new(LIFE * 100);
    let Kept { run, node, tailnet, device, .. } = kept;
    let begin = Instant::now();
    run.signal(Signal::TERM);
    let run = run.wait();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(run.left_behind, Vec::<u32>::new());
    assert!(run.notifications.iter().any(|one| one.get("STOPPING") == Some("1")));
    thread::sleep(Duration::from_secs(1));
    assert!(Node::is_online(&node.status()));
    assert_eq!(tailnet.device_id(&node), device.id);
}

/// The control server has the key and is slow to refuse it.
#[test]
fn a_signal_in_the_middle_of_a_renewal_leaves_the_node_connected() {
    if !renews() {
        return;
    }
    for delay in [0, 100, 1000] {
        let kept = Kept::new(LONG_LIFE);
        kept.tailnet.policy(json!({ "register_delay_ms": delay }));
        kept.is_nearly_over();
        kept.run.wait_stderr(|text| text.contains(SENT), "a renewal");
        let Kept { run, node, tailnet, device, key, .. } = kept;
        run.signal(Signal::TERM);
        run.wait();
        thread::sleep(Duration::from_secs(2));
        node.wait_online();
        assert_eq!(tailnet.device_id(&node), device.id);
        assert!(tailnet.state().key(&key).attempts <= 3);
    }
}

#[test]
fn the_auth_key_file_is_free_for_others_while_it_stays() {
    let kept = Kept::new(LIFE * 100);
    let (node, file) = (Node::start(), KeyFile::new(kept.tailnet.single_use_key()));
    program(&kept.tailnet, &node, &file).run().assert_code(0);
    // Another run on the same node finds nothing to do, and one after a logout may use the key.
    program(&kept.tailnet, &kept.node, &kept.file).run().assert_code(0);
    kept.node.tailscale_ok(["logout"]);
    kept.wait_status(LEFT_ALONE);
    program(&kept.tailnet, &kept.node, &kept.file).run().assert_code(0);
    kept.wait_status("connected as ");
}

#[test]
fn a_check_says_when_the_node_key_is_renewed_and_what_stands_against_it() {
    if !renews() {
        return;
    }
    let life = Duration::from_secs(100 * 24 * 3600);
    let kept = Kept::new(life);
    kept.wait_status("; node key expires ");
    let check = || {
        let run = program(&kept.tailnet, &kept.node, &kept.file).args(["--stay", "--check"]).run();
        run.assert_code(0);
        let lines: Vec<_> = run.stdout.lines().map(|line| line.trim().to_owned()).collect();
        lines.join(" ")
    };
    // The part of the life is known from the record.
    let said = check();
    let (_, days) = said.split_once("renewal         with the auth key, 20").expect("a renewal");
    let (_, days) = days.split_once("(in ").expect("a date");
    let days: u32 = days.split(' ').next().unwrap_or_default().parse().expect("days");
    assert!((69..=90).contains(&days), "{said}");
    kept.file.remove();
    let said = check();
    assert!(
        said.contains("but not as things are: the auth key in the file cannot be used"),
        "{said}"
    );
}

#[test]
fn a_check_and_its_metrics_say_what_has_become_of_renewals() {
    if !renews() {
        return;
    }
    let kept = Kept::new(LIFE);
    let check = |form: &str| {
        let run = program(&kept.tailnet, &kept.node, &kept.file).args(["--stay", "--check"]);
        let run = run.args((!form.is_empty()).then_some(form)).run();
        run.assert_code(0);
        run.stdout
    };
    let check_text = || check("").split_whitespace().collect::<Vec<_>>().join(" ");
    let value = |metrics: &str, name: &str| {
        let named = |line: &&str| line.starts_with(&format!("tailscale_autoconnect_{name} "));
        let line = metrics.lines().find(named)?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let is_recent = |at: Option<f64>| at.is_some_and(|at| (-1.0..60.0).contains(&(now() - at)));

    let metrics = check("--metrics");
    assert_eq!(value(&metrics, "connected"), Some(1.0), "{metrics}");
    assert_eq!(value(&metrics, "verdict{verdict=\"connected\"}"), Some(1.0), "{metrics}");
    let expiry = value(&metrics, "node_key_expiry_timestamp_seconds").expect("it expires");
    let renewal = value(&metrics, "renewal_timestamp_seconds").expect("it is to be renewed");
    assert!((now()..now() + 21.0).contains(&expiry) && renewal < expiry, "{metrics}");
    assert!(is_recent(value(&metrics, "last_login_timestamp_seconds")), "{metrics}");
    for unknown in ["last_renewal", "last_refusal", "not_renewed"] {
        assert!(!metrics.contains(unknown), "{metrics}");
    }
    assert_eq!(value(&metrics, "key_refused"), Some(0.0), "{metrics}");

    kept.tailnet.delete_key(&kept.key);
    kept.wait_status(" and is not renewed: the auth key in the file was refused before");
    let metrics = check("--metrics");
    assert_eq!(value(&metrics, "key_refused"), Some(1.0), "{metrics}");
    assert_eq!(value(&metrics, "not_renewed{reason=\"refused-key\"}"), Some(1.0), "{metrics}");
    assert!(is_recent(value(&metrics, "last_refusal_timestamp_seconds")), "{metrics}");
    let said = check_text();
    assert!(said.contains("refused key") && said.contains("the file still holds it"), "{said}");

    kept.file.swap(kept.tailnet.reusable_key());
    kept.wait_renewed();
    let recorded = || is_recent(value(&check("--metrics"), "last_renewal_timestamp_seconds"));
    wait_until(recorded, "the renewal in the metrics");
    let metrics = check("--metrics");
    assert_eq!(value(&metrics, "key_refused"), Some(0.0), "{metrics}");
    assert!(!metrics.contains("not_renewed"), "{metrics}");
    let said = check_text();
    assert!(said.contains("; the last one was 20"), "{said}");
}
