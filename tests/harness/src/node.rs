//! A real `tailscaled` with a folder, a socket and a log of its own.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{self, Process, open_temp_dir, tail};
use crate::run::KEPT_BY_RUNS;
use crate::{Binaries, Cell, Finished, HttpReply, PATIENCE, Run, Running, Tailnet, http};

const HOST: &str = "local-tailscaled.sock";
const STATUS: &str = "/localapi/v0/status";

/// A real `tailscaled`. Dropping it kills it and removes its folder.
pub struct Node {
    process: Mutex<Option<Process>>,
    plan: NodeBuilder,
    binaries: Binaries,
    dir: TempDir,
    socket: PathBuf,
}

/// How a [`Node`] is to be.
#[derive(Clone, Debug, Default)]
pub struct NodeBuilder {
    cached_netmap: bool,
    env: Vec<(OsString, OsString)>,
    flags: Vec<OsString>,
    version: Option<String>,
    cell: Vec<OsString>,
}

impl NodeBuilder {
    /// Keeps the network map on disk (`TS_USE_CACHED_NETMAP`), as the daemon does by default.
    pub fn cached_netmap(mut self, on: bool) -> Self {
        self.cached_netmap = on;
        self
    }

    /// Adds to the daemon's environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Lets the daemon trust the tailnet's own certificate authority.
    pub fn trusts(self, tailnet: &Tailnet) -> Self {
        self.env("SSL_CERT_FILE", tailnet.ca_file())
    }

    /// Adds a flag to the daemon's.
    pub fn flag(mut self, flag: impl Into<OsString>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Runs the daemon in this cell.
    pub fn cell(mut self, cell: &Cell) -> Self {
        self.cell = cell.entrance();
        // Whether the network is up, it is to find out itself.
        self.env("TS_ASSUME_NETWORK_UP_FOR_TEST", "false")
    }

    /// Another version than the one under test, like `1.80.3`.
    pub fn version(mut self, version: &str) -> Self {
        self.version = Some(version.to_owned());
        self
    }

    /// Starts it and waits for its first answer.
    pub fn start(self) -> Node {
        let node = self.create();
        node.launch();
        node
    }

    /// Makes its folder, without starting it.
    pub fn create(self) -> Node {
        let binaries = match &self.version {
            Some(version) => Binaries::version(version),
            None => Binaries::chosen(),
        };
        let dir = open_temp_dir("node-");
        let socket = dir.path().join("tailscaled.sock");
        Node { process: Mutex::new(None), plan: self, binaries, dir, socket }
    }
}

impl Node {
    /// Starts a fresh daemon and waits for its first answer.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// For a daemon that is special in some way.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Starts the daemon and waits for its first answer.
    pub fn launch(&self) {
        self.launch_only();
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.local_get(STATUS) {
            let alive = self.process().as_mut().is_some_and(Process::is_alive);
            assert!(alive, "tailscaled ended as soon as it was started");
            assert!(Instant::now() < deadline, "tailscaled does not answer: {error}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the daemon and waits for nothing.
    pub fn launch_only(&self) {
        let mut process = self.process();
        assert!(process.is_none(), "this tailscaled runs already");
        let dir = self.dir.path();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("a folder of our own");
        let option = |name: &str, value: &Path| {
            let mut option = OsString::from(format!("--{name}="));
            option.push(value);
            option
        };
        let tailscaled = self.binaries.tailscaled();
        let mut command = match self.plan.cell.split_first() {
            None => process::command(&tailscaled, None),
            Some((program, entrance)) => {
                let mut command = process::command(Path::new(program), None);
                command.args(entrance).arg(tailscaled);
                command
            }
        };
        command
            .arg("--tun=userspace-networking")
            .arg("--port=0")
            .arg(option("socket", &self.socket))
            .arg(option("statedir", &self.state_dir()))
            .arg(option("state", &self.state_dir().join("tailscaled.state")))
            .args(&self.plan.flags)
            .env("HOME", dir)
            .env("TS_LOGS_DIR", dir)
            .env("TS_NO_LOGS_NO_SUPPORT", "true")
            .env("TS_DISABLE_PORTMAPPER", "true")
            .env("TS_ASSUME_NETWORK_UP_FOR_TEST", "true")
            .env("TS_USE_CACHED_NETMAP", self.plan.cached_netmap.to_string())
            .envs(self.plan.env.iter().cloned())
            .current_dir(dir)
            .stdout(log.try_clone().expect("a file can be cloned"))
            .stderr(log);
        *process = Some(Process::spawn(command));
    }

    /// Ends it with SIGKILL, as a crash would: its socket stays behind.
    pub fn kill(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }

    /// Ends it with SIGTERM and SIGCONT, as systemd does.
    pub fn terminate(&self) {
        if let Some(mut process) = self.process().take() {
            process.signal(Signal::TERM);
            process.signal(Signal::CONT);
            let ended = process.wait(PATIENCE);
            assert!(ended.is_some(), "tailscaled did not end on SIGTERM");
        }
    }

    /// Ends it with SIGTERM and starts it again on the same state.
    pub fn restart(&self) {
        self.terminate();
        self.launch();
    }

    /// Stops it (SIGSTOP) once, until [`Self::resume`]: connections are made and nothing answers.
    pub fn pause(&self) {
        self.process().as_ref().expect("tailscaled runs").pause();
    }

    /// Lets it go on.
    pub fn resume(&self) {
        let process = self.process();
        process.as_ref().expect("tailscaled runs").signal(Signal::CONT);
    }

    /// Whether the daemon runs.
    pub fn is_alive(&self) -> bool {
        self.process().as_mut().is_some_and(Process::is_alive)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.process().as_ref().expect("tailscaled runs").pid()
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What runs of the program under test keep about it, as their `STATE_DIRECTORY`.
    pub fn kept_by_runs(&self) -> PathBuf {
        self.dir.path().join(KEPT_BY_RUNS)
    }

    /// The folder that holds all that is its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The CLI of its version.
    pub fn cli(&self) -> PathBuf {
        self.binaries.tailscale()
    }

    /// A `PATH` with a `tailscale` in front that finds this node by itself, as on a machine.
    pub fn path(&self) -> String {
        let folder = self.dir.path().join("bin");
        let command = folder.join("tailscale");
        let script = format!(
            "#!/bin/sh\nexec '{}' --socket='{}' \"$@\"\n",
            self.cli().display(),
            self.socket.display()
        );
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", folder.display());
        process::on_keeper(move || {
            fs::create_dir_all(&folder)?;
            fs::write(&command, script)?;
            fs::set_permissions(&command, fs::Permissions::from_mode(0o755))
        })
        .unwrap_or_else(|error| panic!("cannot write a script: {error}"));
        path
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// GET from its local API.
    pub fn local_get(&self, path: &str) -> io::Result<HttpReply> {
        self.local_request("GET", path, None)
    }

    /// Any request to its local API.
    pub fn local_request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<HttpReply> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = body.map(Value::to_string);
        http::ask(stream, HOST, method, path, body.as_deref().map(str::as_bytes))
    }

    /// Its status, with peers.
    pub fn status(&self) -> Value {
        self.json(STATUS)
    }

    /// Its preferences.
    pub fn prefs(&self) -> Value {
        self.json("/localapi/v0/prefs")
    }

    /// Like `Running`.
    pub fn backend_state(&self) -> String {
        text(&self.status()["BackendState"])
    }

    /// Its node key, as it stands in its status.
    pub fn node_key(&self) -> String {
        text(&self.status()["Self"]["PublicKey"])
    }

    /// Whether this status says that it is on the tailnet and the control server hears it.
    pub fn is_online(status: &Value) -> bool {
        status["BackendState"] == "Running" && status["Self"]["Online"] == true
    }

    /// Waits until it is on the tailnet.
    pub fn wait_online(&self) -> Value {
        self.wait_status(Self::is_online, "the node to be Running and online")
    }

    /// Waits for a `BackendState`.
    pub fn wait_state(&self, state: &str) -> Value {
        self.wait_status(|status| status["BackendState"] == state, &format!("the state {state}"))
    }

    /// Waits until its status is as asked for. It looks whenever the daemon's event bus rings, and
    /// now and then besides.
    pub fn wait_status(&self, mut seen: impl FnMut(&Value) -> bool, what: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut bus = None;
        let mut last = Value::Null;
        loop {
            // The bus first: what happens between the two is heard.
            bus = bus.or_else(|| self.listen().ok());
            if let Some(status) = self.local_get(STATUS).ok().filter(|reply| reply.status == 200) {
                last = status.json();
                if seen(&last) {
                    return last;
                }
            }
            assert!(
                Instant::now() < deadline,
                "waited {PATIENCE:?} in vain for {what}; the node's status: {last:#}"
            );
            if !bus.as_mut().is_some_and(rings) {
                bus = None;
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// A stream that brings something whenever the daemon's state changes.
    fn listen(&self) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_millis(250)))?;
        http::send(&mut stream, HOST, "GET", "/localapi/v0/watch-ipn-bus?mask=146", None)?;
        Ok(stream)
    }

    /// Runs the CLI on this node; its exit code may be any.
    pub fn tailscale<A: Into<OsString>>(&self, args: impl IntoIterator<Item = A>) -> Finished {
        self.tailscale_run(args).run()
    }

    /// Runs the CLI on this node; it must succeed. Returns its standard output.
    pub fn tailscale_ok<A: Into<OsString>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let finished = self.tailscale(args);
        finished.assert_code(0);
        finished.stdout.clone()
    }

    /// Starts the CLI on this node.
    pub fn tailscale_spawn<A: Into<OsString>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        self.tailscale_run(args).spawn()
    }

    /// The CLI on this node, to be run with an environment or as a user of its own.
    pub fn tailscale_run<A: Into<OsString>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        Run::new(self.cli()).without_notify().arg("--socket").arg(&self.socket).args(args)
    }

    /// Joins the tailnet with a fresh key, as a set-up for a test, and waits until it is online.
    pub fn join(&self, tailnet: &Tailnet) {
        self.join_with(tailnet, &[]);
    }

    /// As [`Self::join`], with more flags for `tailscale up`. A `--login-server` or `--auth-key`
    /// among them replaces the usual one.
    pub fn join_with(&self, tailnet: &Tailnet, flags: &[&str]) {
        let given = |name: &str| flags.iter().any(|flag| flag.starts_with(name));
        let file = self.dir.path().join("join-key");
        let mut args = vec!["up".to_owned()];
        if !given("--login-server") {
            args.push(format!("--login-server={}", tailnet.url()));
        }
        if !given("--auth-key") {
            fs::write(&file, tailnet.single_use_key()).expect("a folder of our own");
            args.push(format!("--auth-key=file:{}", file.display()));
        }
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.tailscale_ok(args);
        let _ = fs::remove_file(file);
        self.wait_online();
    }

    fn json(&self, path: &str) -> Value {
        match self.local_get(path) {
            Ok(reply) if reply.status == 200 => reply.json(),
            Ok(reply) => panic!("tailscaled answers {path} with {} {}", reply.status, reply.text()),
            Err(error) => panic!("tailscaled does not answer {path}: {error}"),
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("tailscaled.log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let name = self.dir.path().file_name().unwrap_or_default().display();
            eprintln!("--- tailscaled's log ({name}):\n{}", tail(&self.log(), 60));
        }
    }
}

/// Waits for the bus to bring something, but not for long; false if there is no bus any more.
fn rings(bus: &mut UnixStream) -> bool {
    match bus.read(&mut [0; 65536]) {
        Ok(count) => count > 0,
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
        ),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CountingProxy, KeySpec};

    #[test]
    fn a_daemon_can_be_started_paused_killed_and_restarted() {
        let node = Node::builder().create();
        assert!(!node.is_alive() && node.local_get(STATUS).is_err());
        node.launch();
        node.wait_state("NeedsLogin");
        assert_eq!(node.prefs()["LoggedOut"], true);

        let proxy = CountingProxy::start(&node);
        let stream = UnixStream::connect(proxy.socket()).unwrap();
        let reply = http::ask(stream, HOST, "GET", STATUS, None).unwrap();
        assert_eq!((reply.status, proxy.count(STATUS)), (200, 1));

        node.pause();
        let stream = UnixStream::connect(node.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(http::ask(&stream, HOST, "GET", STATUS, None).is_err());
        node.resume();
        node.status();

        node.tailscale_ok(["set", "--operator=nobody"]);
        assert_eq!(node.prefs()["OperatorUser"], "nobody");
        node.kill();
        assert!(!node.is_alive() && node.socket().exists());
        node.launch();
        node.wait_state("NeedsLogin");
        node.restart();
        node.tailscale(["no-such-command"]).assert_code(1);
    }

    #[test]
    fn nodes_join_a_tailnet_and_see_what_its_administrator_does() {
        let tailnet = Tailnet::start();
        let (node, other) = (Node::start(), Node::start());
        node.join(&tailnet);
        other.join_with(&tailnet, &["--hostname=other"]);
        tailnet.wait_until(|state| state.online() == 2, "both nodes to be online");
        assert_eq!(tailnet.state().registers.with_key, 2);
        assert!(tailnet.state().device("other").is_some());
        node.wait_status(
            |status| status["Peer"].as_object().is_some_and(|peers| peers.len() == 1),
            "its peer",
        );

        node.wait_status(
            |_| node.log().contains("derp-900 connected"),
            "its connection to the relay",
        );

        tailnet.fault("down");
        node.wait_status(|status| status["Self"]["Online"] == false, "the node to be offline");
        tailnet.lift_faults();
        node.wait_online();

        let id = tailnet.device_id(&node);
        tailnet.expire(id);
        node.wait_state("NeedsLogin");
        tailnet.unexpire(id);
        node.wait_online();
        node.restart();
        node.wait_online();
    }

    #[test]
    fn another_user_is_refused_by_the_daemon_until_it_is_the_operator() {
        const NOBODY: u32 = 65534;
        assert!(crate::is_root(), "only root can run something as another user");
        let node = Node::start();
        let set = || node.tailscale_run(["set", "--accept-dns=false"]).user(NOBODY).run();
        let refused = set();
        refused.assert_code(1);
        assert!(refused.stderr.contains("Access denied"), "{}", refused.stderr);
        node.tailscale_ok(["set", "--operator=nobody"]);
        set().assert_code(0);
    }

    #[test]
    fn keys_approval_and_tls_work() {
        let tailnet = Tailnet::start();
        tailnet.policy(serde_json::json!({ "approval": true }));
        let node = Node::builder().trusts(&tailnet).start();
        let key = tailnet.key(&KeySpec { tags: vec!["tag:test".to_owned()], ..KeySpec::default() });
        let up = node.tailscale_spawn([
            "up".to_owned(),
            format!("--login-server={}", tailnet.tls_url()),
            format!("--auth-key={key}"),
        ]);
        node.wait_state("NeedsMachineAuth");
        assert!(crate::scan_processes_for(&key).iter().any(|place| place.contains("cmdline")));
        let device = tailnet.device(&node).unwrap();
        assert_eq!(
            (device.approved, device.tags.as_slice()),
            (false, &["tag:test".to_owned()][..])
        );
        tailnet.approve(device.id);
        node.wait_online();
        up.wait().assert_code(0);
        assert_eq!(tailnet.state().key(&key).uses, 1);

        let dead = tailnet.single_use_key();
        tailnet.revoke_key(&dead);
        let fresh = Node::start();
        let up = fresh.tailscale(["up", "--login-server", tailnet.url(), "--auth-key", &dead]);
        up.assert_code(1);
        assert!(up.stderr.contains("not valid"), "{}", up.stderr);
        assert!(tailnet.state().key(&dead).attempts >= 1);
    }
}
