//! The tailnet: the control server of the tests, and what its administrator can do.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cell::CONTROL_ADDRESS;
use crate::process::{self, Process, open_temp_dir, tail};
use crate::{Binaries, Cell, Node, PATIENCE, http};

/// A control server with one empty tailnet, on loopback, on ports of its own.
pub struct Tailnet {
    // Declared first, so that it ends before its folder goes.
    process: Process,
    served: Served,
    /// Where it is reached, if that isn't where the test runs.
    network: Option<File>,
    dir: TempDir,
}

/// What `control` prints when it serves.
#[derive(Debug, Deserialize)]
struct Served {
    url: String,
    tls_url: String,
    ca_file: PathBuf,
    admin: String,
    api: String,
}

/// What an auth key is to be; by default single-use and good.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KeySpec {
    /// For any number of devices.
    pub reusable: bool,
    /// Its time has passed.
    pub expired: bool,
    /// The administrator has taken it back.
    pub revoked: bool,
    /// Its devices need no approval.
    pub preapproved: bool,
    /// Its devices vanish when they go offline.
    pub ephemeral: bool,
    /// The tags of its devices, like `tag:server`.
    pub tags: Vec<String>,
}

/// The tailnet as its control server sees it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct State {
    /// Rises with every change.
    pub seq: u64,
    /// How often devices registered.
    pub registers: Registers,
    /// Every auth key that was made here or tried.
    pub keys: BTreeMap<String, KeyUse>,
    /// Every device.
    pub nodes: Vec<Device>,
    /// The login pages that wait for a person.
    pub auth_urls: Vec<String>,
    /// What was asked of the stand-in for Tailscale's API.
    pub api_requests: Vec<ApiRequest>,
}

/// Counts of register requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Registers {
    /// All of them.
    pub total: u64,
    /// Those with an auth key.
    pub with_key: u64,
    /// Those without one.
    pub without_key: u64,
    /// Those answered with 429.
    pub rate_limited: u64,
}

/// What happened to one auth key.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct KeyUse {
    /// Registers that came with it.
    pub attempts: u64,
    /// Those that it was good for.
    pub uses: u64,
}

/// One device of the tailnet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names say it all")]
pub struct Device {
    pub id: u64,
    pub hostname: String,
    pub name: String,
    pub node_key: String,
    pub addresses: Vec<String>,
    pub online: bool,
    pub approved: bool,
    pub expired: bool,
    /// None: never.
    pub expires_in_s: Option<f64>,
    pub tags: Vec<String>,
    pub routes: Vec<String>,
    pub ephemeral: bool,
    pub last_register_had_key: bool,
}

/// A request to the stand-in for Tailscale's API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names say it all")]
pub struct ApiRequest {
    pub path: String,
    pub body: Value,
}

impl State {
    /// What happened to this key; zeros if it was never seen.
    pub fn key(&self, key: &str) -> KeyUse {
        self.keys.get(key).copied().unwrap_or_default()
    }

    /// How many devices are online.
    pub fn online(&self) -> usize {
        self.nodes.iter().filter(|device| device.online).count()
    }

    /// The device with this host name.
    pub fn device(&self, hostname: &str) -> Option<&Device> {
        self.nodes.iter().find(|device| device.hostname == hostname)
    }
}

impl Tailnet {
    /// Starts the control server, having built it if need be.
    pub fn start() -> Self {
        Self::serve(process::command(&Binaries::main().control(), None), false)
    }

    /// The same in a network of its own, which has nothing but a loopback and which only root can
    /// make. A machine that is to join must be started in [`Self::network`].
    pub fn start_apart() -> Self {
        let mut command = process::command(Path::new("unshare"), None);
        command
            .args(["--net", "--", "sh", "-c"])
            .arg("ip link set lo up && exec \"$0\"")
            .arg(Binaries::main().control());
        Self::serve(command, true)
    }

    /// The same in a network of its own with a cable whose other end is plugged into `cell`: what
    /// daemons reach is on [`CONTROL_ADDRESS`] there.
    pub fn start_linked(cell: &Cell) -> Self {
        let mut command = process::command(Path::new("unshare"), None);
        command
            .args(["--net", "--", "sh", "-ec"])
            .arg(
                "ip link set lo up; ip link add cable type veth peer name eth0; \
                 ip addr add \"$TAILNET_ADDRESS/24\" dev cable; ip link set cable up; exec \"$0\"",
            )
            .arg(Binaries::main().control())
            .env("TAILNET_ADDRESS", CONTROL_ADDRESS);
        let tailnet = Self::serve(command, true);
        cell.plug_in(&tailnet.network());
        tailnet
    }

    fn serve(mut command: Command, apart: bool) -> Self {
        let dir = open_temp_dir("tailnet-");
        let log = File::create(dir.path().join("control.log")).expect("a folder of our own");
        command
            .env("HOME", dir.path())
            // It ends when this pipe is closed.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut process = Process::spawn(command);

        let stdout = process.child.stdout.take().expect("its output is a pipe");
        let (sender, first_line) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let served = first_line
            .recv_timeout(PATIENCE)
            .ok()
            .and_then(|line| serde_json::from_str(&line).ok());
        match served {
            Some(served) => {
                let network = format!("/proc/{}/ns/net", process.pid());
                let network = apart.then(|| File::open(network).expect("it runs"));
                Self { process, served, network, dir }
            }
            None => panic!(
                "the control server did not start:\n{}",
                fs::read_to_string(dir.path().join("control.log")).unwrap_or_default()
            ),
        }
    }

    /// The file of the network namespace that [`Self::start_apart`] has made.
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.process.pid()))
    }

    /// The login server, over HTTP.
    pub fn url(&self) -> &str {
        &self.served.url
    }

    /// The same over TLS; the daemon has to trust [`Self::ca_file`].
    pub fn tls_url(&self) -> &str {
        &self.served.tls_url
    }

    /// For the daemon's `SSL_CERT_FILE`.
    pub fn ca_file(&self) -> &Path {
        &self.served.ca_file
    }

    /// The stand-in for `https://api.tailscale.com`.
    pub fn api_url(&self) -> &str {
        &self.served.api
    }

    /// A good key for one device.
    pub fn single_use_key(&self) -> String {
        self.key(&KeySpec::default())
    }

    /// A good key for any number of devices.
    pub fn reusable_key(&self) -> String {
        self.key(&KeySpec { reusable: true, ..KeySpec::default() })
    }

    /// A key as specified.
    pub fn key(&self, spec: &KeySpec) -> String {
        let spec = serde_json::to_value(spec).expect("a plain struct");
        text(&self.post("/keys", &spec), "key")
    }

    /// Deletes a key: the control server no longer knows it.
    pub fn delete_key(&self, key: &str) {
        self.post("/keys/delete", &json!({ "key": key }));
    }

    /// Revokes a key.
    pub fn revoke_key(&self, key: &str) {
        self.post("/keys/revoke", &json!({ "key": key }));
    }

    /// Lets a key expire.
    pub fn expire_key(&self, key: &str) {
        self.post("/keys/expire", &json!({ "key": key }));
    }

    /// The secret of a new OAuth client, which may make keys with these tags.
    pub fn oauth_client(&self, tags: &[&str]) -> String {
        self.new_oauth_client(&json!({ "tags": tags }))
    }

    /// The secret of a new OAuth client that may not make keys.
    pub fn oauth_client_without_scope(&self, tags: &[&str]) -> String {
        self.new_oauth_client(&json!({ "tags": tags, "scopeless": true }))
    }

    fn new_oauth_client(&self, spec: &Value) -> String {
        text(&self.post("/oauth-clients", spec), "secret")
    }

    /// Changes what the control server does, like `json!({"approval": true})`.
    #[allow(clippy::needless_pass_by_value, reason = "reads best with json! in the call")]
    pub fn policy(&self, change: Value) {
        self.post("/policy", &change);
    }

    /// Makes the control server fail: `down`, `hang`, `reset`, `500`, `garbage`, `slow`,
    /// `drop_register_reply`. Open connections are cut.
    pub fn fault(&self, fault: &str) {
        self.policy(json!({ "fault": fault }));
    }

    /// Ends every fault.
    pub fn lift_faults(&self) {
        self.fault("none");
    }

    /// Approves a device.
    pub fn approve(&self, id: u64) {
        self.post_to_node(id, "approve");
    }

    /// Lets a device's node key expire.
    pub fn expire(&self, id: u64) {
        self.post_to_node(id, "expire");
    }

    /// Takes that back.
    pub fn unexpire(&self, id: u64) {
        self.post_to_node(id, "unexpire");
    }

    /// Lets a device's node key expire by itself, in this time from now; none: never.
    pub fn expires_in(&self, id: u64, time: Option<Duration>) {
        let time = time.map(|time| time.as_secs_f64());
        self.post(&format!("/nodes/{id}/expiry"), &json!({ "in_s": time }));
    }

    /// How long node keys live from now on, each from when it is admitted.
    pub fn node_keys_live(&self, time: Duration) {
        self.policy(json!({ "node_expiry_s": time.as_secs_f64() }));
    }

    /// Deletes a device.
    pub fn delete(&self, id: u64) {
        self.post_to_node(id, "delete");
    }

    /// Logs in on a login page, as a person would. Takes its URL or its last part.
    pub fn complete_auth_url(&self, url: &str) {
        self.post(&format!("/auth-urls/{}/complete", last_part(url)), &json!({}));
    }

    /// Refuses the login on a login page.
    pub fn refuse_auth_url(&self, url: &str) {
        self.post(&format!("/auth-urls/{}/refuse", last_part(url)), &json!({}));
    }

    /// What the control server sees now.
    pub fn state(&self) -> State {
        self.read_state("/state", PATIENCE)
    }

    /// Waits until the control server sees what is asked for.
    pub fn wait_until(&self, seen: impl FnMut(&State) -> bool, what: &str) -> State {
        self.wait_until_for(PATIENCE, seen, what)
    }

    /// As [`Self::wait_until`], for a time of its own.
    pub fn wait_until_for(
        &self,
        limit: Duration,
        mut seen: impl FnMut(&State) -> bool,
        what: &str,
    ) -> State {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        while !seen(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited {limit:?} in vain for {what}; the tailnet: {state:#?}"
            );
            state = self.state_after(state.seq, left);
        }
        state
    }

    /// Panics as soon as the control server sees something else than what is asked for, within
    /// `time`.
    pub fn holds_for(&self, time: Duration, mut holds: impl FnMut(&State) -> bool, what: &str) {
        let deadline = Instant::now() + time;
        let mut state = self.state();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                holds(&state),
                "{left:?} before the end, no more: {what}; the tailnet: {state:#?}"
            );
            if left.is_zero() {
                return;
            }
            state = self.state_after(state.seq, left);
        }
    }

    /// Panics if a register with an auth key comes. A daemon that still has a dead key sends it again
    /// within a second.
    pub fn assert_no_key_is_sent(&self) {
        let sent = self.state().registers.with_key;
        self.holds_for(
            Duration::from_secs(3),
            |state| state.registers.with_key == sent,
            "no register with an auth key",
        );
    }

    /// The device that this node is, by its node key.
    pub fn device(&self, node: &Node) -> Option<Device> {
        let key = node.node_key();
        let mut devices = self.state().nodes.into_iter();
        devices.find(|device| device.node_key == key)
    }

    /// The device that this node is; panics if the control server doesn't know it.
    pub fn device_id(&self, node: &Node) -> u64 {
        match self.device(node) {
            Some(device) => device.id,
            None => panic!(
                "no device has the node key {:?}: {:#?}",
                node.node_key(),
                self.state().nodes
            ),
        }
    }

    /// What the control server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("control.log")).unwrap_or_default()
    }

    /// The first state after that number, or the present one when `limit` has passed.
    pub fn state_after(&self, seq: u64, limit: Duration) -> State {
        let path = format!("/state?after={seq}&timeout_ms={}", limit.as_millis().max(1));
        self.read_state(&path, limit + PATIENCE)
    }

    fn read_state(&self, path: &str, limit: Duration) -> State {
        let state = self.admin("GET", path, None, limit);
        serde_json::from_value(state.clone()).unwrap_or_else(|error| {
            panic!("the control server's state cannot be read ({error}): {state}")
        })
    }

    fn post_to_node(&self, id: u64, action: &str) {
        self.post(&format!("/nodes/{id}/{action}"), &json!({}));
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.admin("POST", path, Some(body), PATIENCE)
    }

    fn connect(&self, host: &str) -> io::Result<TcpStream> {
        let Some(network) = &self.network else {
            return TcpStream::connect(host);
        };
        // A thread of its own enters the network; the socket that it makes stays there.
        let connecting = || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpStream::connect(host)
        };
        thread::scope(|scope| scope.spawn(connecting).join()).expect("connecting does not panic")
    }

    fn admin(&self, method: &str, path: &str, body: Option<&Value>, limit: Duration) -> Value {
        let host = self.served.admin.trim_start_matches("http://");
        let body = body.map(Value::to_string);
        let reply = self.connect(host).and_then(|stream| {
            stream.set_read_timeout(Some(limit))?;
            http::ask(stream, host, method, path, body.as_deref().map(str::as_bytes))
        });
        match reply {
            Ok(reply) if reply.status < 300 && reply.body.is_empty() => Value::Null,
            Ok(reply) if reply.status < 300 => reply.json(),
            Ok(reply) => panic!(
                "the control server refused {method} {path} {}: {} {}",
                body.unwrap_or_default(),
                reply.status,
                reply.text()
            ),
            Err(error) => panic!("the control server does not answer {method} {path}: {error}"),
        }
    }
}

impl Drop for Tailnet {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the control server's log:\n{}", tail(&self.log(), 60));
        }
        // Closing its standard input lets it remove its own folder; what is left is killed.
        drop(self.process.child.stdin.take());
        self.process.wait(Duration::from_secs(2));
    }
}

fn text(answer: &Value, name: &str) -> String {
    answer[name]
        .as_str()
        .unwrap_or_else(|| panic!("the control server's answer has no {name}: {answer}"))
        .to_owned()
}

fn last_part(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}
