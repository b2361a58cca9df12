//! Two nodes and a stream between them: what is done to one of them, and what is seen of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tailnet_harness::{Device, KeyFile, Node, Run, Running, Signal, State, Tailnet, milliseconds};

use crate::stream::Stream;

const LIFE: Duration = Duration::from_secs(20);
/// For how long a stall is looked for after a register with the key.
const AFTER: Duration = Duration::from_secs(8);
/// A round ends that long before a node key expires that was not renewed: what follows is tailscaled's.
const BEFORE_EXPIRY: Duration = Duration::from_millis(200);
/// NeedsLogin, in the numbers of ipn/backend.go.
const NEEDS_LOGIN: i64 = 2;

/// One renewal, or what stands for it.
pub struct Round {
    pub over_derp: bool,
    /// Before the node key expired, or as expected of the round.
    pub is_in_time: bool,
    /// The same device with the same preferences, and online.
    pub is_same: bool,
    pub registers: u64,
    pub needed_login: bool,
    /// None: the stream broke.
    pub stall_ms: Option<f64>,
    pub off_ms: f64,
}

pub struct Lane {
    run: Option<Running>,
    stream: Stream,
    states: Arc<Mutex<Vec<i64>>>,
    prefs: Value,
    device: Device,
    file: KeyFile,
    key: String,
    node: Node,
    _peer: Node,
    tailnet: Tailnet,
    over_derp: bool,
}

impl Lane {
    pub fn new(program: &Path, over_derp: bool) -> Self {
        let tailnet = Tailnet::start();
        let derp = if over_derp { "true" } else { "false" };
        let [node, peer] =
            [(), ()].map(|()| Node::builder().env("TS_DEBUG_ALWAYS_USE_DERP", derp).start());
        peer.join(&tailnet);
        tailnet.node_keys_live(LIFE);
        let key = tailnet.reusable_key();
        let file = KeyFile::new(&key);
        let run = Run::new(program)
            .node(&node)
            .cli()
            .authkey_file(file.path())
            .login_server(tailnet.url())
            .up_flags(["--hostname=renewed", "--accept-dns=false"])
            .arg("--stay")
            .spawn();
        node.wait_online();
        node.tailscale_ok(["set", "--webclient", "--auto-update=false"]);
        let device = tailnet.device(&node).expect("it has joined");
        let stream = Stream::open(peer.socket(), &device.addresses[0]);
        let states = watch(&node);
        // A path that is new takes a while to settle.
        thread::sleep(Duration::from_secs(4));
        let prefs = preferences(&node);
        Self {
            run: Some(run),
            stream,
            states,
            prefs,
            device,
            file,
            key,
            node,
            _peer: peer,
            tailnet,
            over_derp,
        }
    }

    /// What is seen from the next register with the key on.
    fn round(&mut self, limit: Duration, is_new: bool, cause: impl FnOnce(&Self)) -> Round {
        let before = self.tailnet.state();
        let now = self.tailnet.device(&self.node).expect("it is known");
        let until_expiry = Duration::from_secs_f64(now.expires_in_s.unwrap_or_default().max(0.0));
        let expiry = Instant::now() + until_expiry;
        self.states.lock().expect("no thread panics").clear();
        cause(self);
        let sent = |state: &State| state.registers.with_key > before.registers.with_key;
        self.tailnet.wait_until_for(limit, sent, "a register with the key");
        let at = Instant::now();
        let mut end = at + AFTER;
        if !is_new {
            end = end.min(expiry - BEFORE_EXPIRY);
        }
        let (mut off_ms, mut off_since) = (0.0_f64, None);
        let mut came = None;
        while Instant::now() < end {
            let is_online = Node::is_online(&self.node.status());
            let since = *off_since.get_or_insert_with(Instant::now);
            if is_online {
                off_since = None;
            } else {
                off_ms = off_ms.max(milliseconds(since.elapsed()));
            }
            let device = self.tailnet.device(&self.node);
            if came.is_none() && is_online && device.is_some_and(|it| it.node_key != now.node_key) {
                came = Some(Instant::now());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let device = self.tailnet.device(&self.node);
        let is_same = device.is_some_and(|it| {
            (it.id, &it.name, &it.addresses)
                == (self.device.id, &self.device.name, &self.device.addresses)
                && it.online
        });
        let stall = self.stream.stall_since(at - Duration::from_millis(200));
        Round {
            over_derp: self.over_derp,
            is_in_time: came.is_some_and(|came| came < expiry) == is_new,
            is_same: is_same && preferences(&self.node) == self.prefs,
            registers: self.tailnet.state().registers.with_key - before.registers.with_key,
            needed_login: self.states.lock().expect("no thread panics").contains(&NEEDS_LOGIN),
            stall_ms: stall.map(milliseconds),
            off_ms,
        }
    }

    /// Nothing is done: what this machine makes of a stream by itself.
    pub fn quiet(&mut self) -> Round {
        let at = Instant::now();
        thread::sleep(AFTER / 2);
        Round {
            over_derp: self.over_derp,
            is_in_time: true,
            is_same: true,
            registers: 0,
            needed_login: false,
            stall_ms: self.stream.stall_since(at).map(milliseconds),
            off_ms: 0.0,
        }
    }

    /// The program renews the node key in time.
    pub fn renewal(&mut self) -> Round {
        self.round(LIFE, true, |_| {})
    }

    /// The program finds a dead key in the file when it is time.
    pub fn dead_key(&mut self) -> Round {
        let dead = self.tailnet.reusable_key();
        self.tailnet.delete_key(&dead);
        let round = self.round(LIFE, false, |lane| lane.file.swap(&dead));
        // It is to live on for what comes.
        self.tailnet.expires_in(self.device.id, Some(50 * LIFE));
        round
    }

    /// Ends the program; from now on node keys live long.
    pub fn end(&mut self) {
        if let Some(run) = self.run.take() {
            run.signal(Signal::TERM);
            run.wait();
        }
        self.file.swap(&self.key);
        self.tailnet.node_keys_live(50 * LIFE);
    }

    /// What people do by hand.
    pub fn force_reauth(&mut self) -> Round {
        let server = format!("--login-server={}", self.tailnet.url());
        let key = format!("--auth-key=file:{}", self.file.path().display());
        let flags = ["--hostname=renewed", "--accept-dns=false"].map(str::to_owned);
        let words =
            ["up".to_owned(), "--force-reauth".to_owned(), server, key].into_iter().chain(flags);
        let mut up = None;
        let round = self.round(LIFE, true, |lane| up = Some(lane.node.tailscale_spawn(words)));
        drop(up);
        round
    }
}

/// All preferences but the node's own identity.
fn preferences(node: &Node) -> Value {
    let mut prefs = node.prefs();
    prefs.as_object_mut().expect("an object").remove("Config");
    prefs
}

/// The states that the IPN bus tells.
fn watch(node: &Node) -> Arc<Mutex<Vec<i64>>> {
    let mut bus = UnixStream::connect(node.socket()).expect("tailscaled runs");
    let request =
        "GET /localapi/v0/watch-ipn-bus?mask=18 HTTP/1.0\r\nHost: local-tailscaled.sock\r\n\r\n";
    bus.write_all(request.as_bytes()).expect("tailscaled runs");
    let states = Arc::<Mutex<Vec<i64>>>::default();
    let told = Arc::clone(&states);
    thread::spawn(move || {
        for line in BufReader::new(bus).lines().map_while(Result::ok) {
            let state =
                serde_json::from_str::<Value>(&line).ok().and_then(|it| it["State"].as_i64());
            told.lock().expect("no thread panics").extend(state);
        }
    });
    states
}
