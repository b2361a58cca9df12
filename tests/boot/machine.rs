//! A Debian machine with the package installed, booted by systemd-nspawn under an overlay.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tailnet_harness::Tailnet;

/// The unit under test.
pub const UNIT: &str = "tailscale-autoconnect.service";

/// How long a wait lasts at most: the cores are few, and machines boot side by side.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// How often what cannot be waited for by an event is looked at.
const LOOK: Duration = Duration::from_millis(30);

/// The environment of tailscaled, in `/etc/default/tailscaled`.
pub const DAEMON_ENVIRONMENT: &str = "PORT=0\nFLAGS=\n\
    TS_NO_LOGS_NO_SUPPORT=true\nTS_DISABLE_PORTMAPPER=true\n\
    TS_ASSUME_NETWORK_UP_FOR_TEST=true\nTS_USE_CACHED_NETMAP=false\n";

const UNITS: &str = "usr/lib/systemd/system";

/// A release of Debian, for its systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debian {
    /// systemd 252.
    Bookworm,
    /// systemd 257.
    Trixie,
}

/// One machine. Everything of it is gone when this is dropped, and when the test is killed.
pub struct Machine {
    name: String,
    keeper: Child,
    commands: Option<ChildStdin>,
    events: Receiver<String>,
    /// The process whose mount namespace has the root, and where in it that is.
    keeper_pid: u32,
    root: String,
    leader: Option<u32>,
}

/// The properties of a unit.
pub struct Unit(BTreeMap<String, String>);

impl Unit {
    /// A property, empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A property that is a number.
    pub fn number(&self, name: &str) -> u64 {
        let text = self.get(name);
        text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}"))
    }

    /// A time since the kernel booted.
    pub fn time(&self, name: &str) -> Duration {
        Duration::from_micros(self.number(&format!("{name}TimestampMonotonic")))
    }

    pub fn is(&self, name: &str, value: &str) -> bool {
        self.get(name) == value
    }

    /// How its main process has ended, as in `exited 77`.
    pub fn end(&self) -> String {
        let code = match self.get("ExecMainCode") {
            "1" => "exited",
            "2" => "killed",
            "3" => "dumped",
            other => other,
        };
        format!("{code} {}", self.get("ExecMainStatus"))
    }
}

impl Machine {
    /// A machine that may join `tailnet`, with tailscaled and the package installed.
    pub fn new(debian: Debian, tailnet: &Tailnet) -> Self {
        let machine = Self::bare(debian, tailnet);
        machine.install_package();
        machine
    }

    /// The same without the package.
    pub fn bare(debian: Debian, tailnet: &Tailnet) -> Self {
        Self::with_options(debian, tailnet, &tailnet.network(), &[])
    }

    /// A machine with the package, started with further options of systemd-nspawn.
    pub fn contained(debian: Debian, tailnet: &Tailnet, options: &[&str]) -> Self {
        let machine = Self::with_options(debian, tailnet, &tailnet.network(), options);
        machine.install_package();
        machine
    }

    /// The same in a user namespace. It cannot enter the tailnet's network, so it has an empty one.
    pub fn in_user_namespace(debian: Debian, tailnet: &Tailnet, options: &[&str]) -> Self {
        let options = [&["--private-users=identity"], options].concat();
        let machine = Self::with_options(debian, tailnet, Path::new("-"), &options);
        machine.install_package();
        machine
    }

    fn with_options(debian: Debian, tailnet: &Tailnet, network: &Path, options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("boot{}x{count}", std::process::id());
        let mut keeper = keeper(debian, &name, network)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash is there");
        let commands = keeper.stdin.take();
        let stdout = keeper.stdout.take().expect("its output is a pipe");
        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut machine = Self {
            name,
            keeper,
            commands,
            events,
            keeper_pid: 0,
            root: String::new(),
            leader: None,
        };
        let ready = machine.event("ready ", PATIENCE);
        let (pid, root) = ready.split_once(' ').expect("a process and a folder");
        machine.keeper_pid = pid.parse().expect("a process number");
        machine.root = root.to_owned();

        machine.write("etc/default/tailscaled", DAEMON_ENVIRONMENT);
        machine.drop_in("10-server", &setting("LOGIN_SERVER", tailnet.url()));
        machine
    }

    /// Copies the package to `/root` of the machine, and says where it is there.
    pub fn put_package(&self) -> String {
        let name = package().file_name().expect("a file").to_string_lossy();
        let place = format!("/root/{name}");
        fs::copy(package(), self.path(&place[1..])).expect("the root can be written to");
        place
    }

    fn install_package(&self) {
        let place = self.put_package();
        self.offline(&["dpkg", "--install", &place]);
        self.offline(&["rm", &place]);
        // One with a line taken out, to see which test notices.
        if let Some(unit) = std::env::var_os("BOOT_UNIT") {
            let text = fs::read_to_string(&unit).expect("BOOT_UNIT names a unit file");
            self.write(&format!("{UNITS}/{UNIT}"), &text);
            self.offline(&["systemctl", "reenable", UNIT]);
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    // ---- its files

    /// Where a file of the root is. What is mounted in the booted machine is not there.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.keeper_pid, self.root)).join(path)
    }

    /// All that was written to the root.
    pub fn written(&self) -> PathBuf {
        self.path("../upper")
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        let written =
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }

    pub fn write_script(&self, path: &str, text: &str) {
        self.write(path, text);
        fs::set_permissions(self.path(path), Permissions::from_mode(0o755)).expect("it is ours");
    }

    /// A drop-in for the unit under test.
    pub fn drop_in(&self, name: &str, text: &str) {
        self.drop_in_of(UNIT, name, text);
    }

    pub fn drop_in_of(&self, unit: &str, name: &str, text: &str) {
        self.write(&format!("etc/systemd/system/{unit}.d/{name}.conf"), text);
    }

    /// A unit that this target or unit wants.
    pub fn unit(&self, name: &str, wanted_by: &str, text: &str) {
        self.write(&format!("etc/systemd/system/{name}"), text);
        let wants = self.path(&format!("etc/systemd/system/{wanted_by}.wants"));
        let link = fs::create_dir_all(&wants)
            .and_then(|()| symlink(format!("/etc/systemd/system/{name}"), wants.join(name)));
        link.unwrap_or_else(|error| panic!("cannot enable {name}: {error}"));
    }

    pub fn remove_unit(&self, name: &str, wanted_by: &str) {
        for path in [name.to_owned(), format!("{wanted_by}.wants/{name}")] {
            fs::remove_file(self.path("etc/systemd/system").join(path)).expect("it was made");
        }
    }

    /// Runs a command in the root, booted or not, apart from systemd.
    pub fn offline(&self, command: &[&str]) -> String {
        self.offline_with(command, "")
    }

    pub fn offline_with(&self, command: &[&str], input: &str) -> String {
        let mut enter = bounded(Duration::from_secs(60), "nsenter");
        enter
            .arg(format!("--mount=/proc/{}/ns/mnt", self.keeper_pid))
            .args(["--", "chroot", &self.root])
            .args(CLEAN)
            .args(command);
        expect_success(&run(enter, input), command)
    }

    // ---- booting

    pub fn boot(&mut self) {
        assert!(self.leader.is_none(), "it is on");
        count_boot(&self.name);
        self.command("boot");
        let container: u32 = self.event("booted ", PATIENCE).parse().expect("a process number");
        self.leader = Some(self.wait("its init", || init_of(container)));
        let manager = self.inside("run/systemd/private");
        self.wait("its service manager", || manager.exists().then_some(()));
    }

    /// Boots and waits until the boot is over, our unit's start aside.
    pub fn boot_to_the_end(&mut self) {
        self.boot();
        self.wait_unit("multi-user.target", "reached", |unit| unit.is("ActiveState", "active"));
    }

    /// How long the boot took until multi-user.target was reached.
    pub fn boot_time(&self) -> Duration {
        let manager = Unit(properties(&self.run(&["systemctl", "show"])));
        self.show("multi-user.target").time("ActiveEnter") - manager.time("Userspace")
    }

    /// Powers it off, and says how long that took.
    pub fn power_off(&mut self) -> Duration {
        let begin = Instant::now();
        let leader = self.leader.expect("it is on");
        // SIGRTMIN+4 asks systemd to power off.
        let sent = Command::new("kill").args(["-s", "RTMIN+4", &leader.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
        let code = self.event("ended ", PATIENCE);
        self.leader = None;
        assert_eq!(code, "0", "{}", self.console());
        begin.elapsed()
    }

    /// Cuts its power: nothing in it sees it coming. What it has written stays, synced or not.
    pub fn cut_power(&mut self) {
        let leader = self.leader.take().expect("it is on");
        let killed = Command::new("kill").args(["-s", "KILL", &leader.to_string()]).status();
        assert!(killed.is_ok_and(|status| status.success()));
        self.event("ended ", PATIENCE);
    }

    pub fn reboot(&mut self) {
        self.power_off();
        self.boot();
    }

    fn command(&mut self, command: &str) {
        let commands = self.commands.as_mut().expect("open until the end");
        writeln!(commands, "{command}").expect("the keeper listens");
    }

    /// The rest of the keeper's next line, which begins with this.
    fn event(&self, kind: &str, limit: Duration) -> String {
        match self.events.recv_timeout(limit) {
            Ok(line) if line.starts_with(kind) => line[kind.len()..].to_owned(),
            other => panic!("no {kind:?} of {}: {other:?}\n{}", self.name, self.console()),
        }
    }

    /// What the machine printed on its console.
    pub fn console(&self) -> String {
        fs::read_to_string(self.path("../console")).unwrap_or_default()
    }

    // ---- the booted machine

    /// Where a file of the booted machine is.
    pub fn inside(&self, path: &str) -> PathBuf {
        let leader = self.leader.expect("it is on");
        Path::new(&format!("/proc/{leader}/root")).join(path)
    }

    /// A command to be run in the booted machine.
    fn entering(&self, command: &[&str]) -> Command {
        let leader = self.leader.expect("it is on").to_string();
        let mut enter = bounded(PATIENCE, "nsenter");
        enter
            .args(["--target", &leader])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["--root", "--wd", "--"])
            .args(CLEAN)
            .args(command);
        enter
    }

    /// Runs a command, however it ends.
    pub fn try_run(&self, command: &[&str]) -> Output {
        run(self.entering(command), "")
    }

    /// Runs a command that has to end well, and returns its output.
    pub fn run(&self, command: &[&str]) -> String {
        expect_success(&self.try_run(command), command)
    }

    /// Starts a command.
    pub fn spawn(&self, command: &[&str]) -> Child {
        self.entering(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nsenter is there")
    }

    pub fn systemctl(&self, verb: &str, unit: &str) {
        self.run(&["systemctl", verb, unit]);
    }

    pub fn show(&self, unit: &str) -> Unit {
        Unit(properties(&self.run(&["systemctl", "show", unit])))
    }

    /// Our unit.
    pub fn ours(&self) -> Unit {
        self.show(UNIT)
    }

    /// Waits for a state of a unit.
    pub fn wait_unit(&self, unit: &str, what: &str, seen: impl Fn(&Unit) -> bool) -> Unit {
        self.wait(&format!("{unit} {what}"), || {
            let now = self.show(unit);
            seen(&now).then_some(now)
        })
    }

    pub fn wait_ours(&self, what: &str, seen: impl Fn(&Unit) -> bool) -> Unit {
        self.wait_unit(UNIT, what, seen)
    }

    /// Waits until our unit says that it waits for this.
    pub fn wait_status_text(&self, text: &str) -> Unit {
        self.wait_ours(&format!("to say {text:?}"), |unit| unit.get("StatusText").contains(text))
    }

    /// Waits until our unit is connected and stays, in another run than `before`.
    pub fn wait_connected_after(&self, before: &str) -> Unit {
        self.wait_ours("connected", |unit| {
            !unit.is("InvocationID", before)
                && unit.is("SubState", "running")
                && unit.get("StatusText").starts_with("connected as ")
        })
    }

    pub fn wait_connected(&self) -> Unit {
        self.wait_connected_after("")
    }

    /// Waits until our unit, which does not stay, has connected and ended in another run than `before`.
    pub fn wait_done_after(&self, before: &str) -> Unit {
        self.wait_ours("done", |unit| {
            !unit.is("InvocationID", before)
                && unit.is("ActiveState", "inactive")
                && unit.is("Result", "success")
                && unit.end() == "exited 0"
                && unit.get("StatusText").starts_with("connected as ")
        })
    }

    /// Waits for anything.
    pub fn wait<T>(&self, what: &str, seen: impl Fn() -> Option<T>) -> T {
        self.wait_for(PATIENCE, what, seen)
    }

    pub fn wait_for<T>(&self, limit: Duration, what: &str, seen: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(seen) = seen() {
                return seen;
            }
            assert!(Instant::now() < deadline, "{}: waited in vain for {what}", self.name);
            thread::sleep(LOOK);
        }
    }

    /// The messages of a unit and of systemd about it, in this boot.
    pub fn journal(&self, unit: &str) -> String {
        self.run(&[
            "journalctl",
            "--boot",
            "--no-pager",
            "--output=short-monotonic",
            "--unit",
            unit,
        ])
    }

    /// Those of them that are errors.
    pub fn errors_of(&self, unit: &str) -> String {
        self.run(&["journalctl", "--boot", "--no-pager", "--priority=err", "--unit", unit])
    }

    /// Waits until the journal has systemd's line about our exit status, and `systemctl status`
    /// says why.
    pub fn wait_exit_shown(&self, status: &str, why: &str) {
        let (number, _) = status.split_once('/').expect("a number and a name");
        let line = format!("Main process exited, code=exited, status={status}");
        self.wait(&format!("{line:?} and {why:?}"), || {
            let output = self.try_run(&["systemctl", "status", "--no-pager", UNIT]);
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            let shown = shown.contains(why) && shown.contains(&format!("status={number}"));
            (shown && self.journal(UNIT).contains(&line)).then_some(())
        });
    }

    /// tailscaled's status, as JSON.
    pub fn tailscale_status(&self) -> serde_json::Value {
        let status = self.run(&["tailscale", "status", "--json"]);
        serde_json::from_str(&status).expect("JSON")
    }

    pub fn is_online(&self) -> bool {
        let status = self.tailscale_status();
        status["BackendState"] == "Running" && status["Self"]["Online"] == true
    }

    /// tailscaled's preferences without its keys, and without what it keeps there itself.
    pub fn settings(&self) -> serde_json::Value {
        let prefs = self.run(&["tailscale", "debug", "prefs"]);
        let mut prefs: serde_json::Value = serde_json::from_str(&prefs).expect("JSON");
        let all = prefs.as_object_mut().expect("preferences");
        for own in ["Config", "ControlURL", "InternalExitNodePrior", "LoggedOut", "WantRunning"] {
            all.remove(own);
        }
        prefs
    }

    /// The processes of our unit, as the machine numbers them.
    pub fn processes_of(&self, unit: &str) -> Vec<String> {
        let group = self.show(unit).get("ControlGroup").to_owned();
        if group.is_empty() {
            return Vec::new();
        }
        let script = format!(
            "cat /sys/fs/cgroup{group}/cgroup.procs /sys/fs/cgroup/systemd{group}/cgroup.procs 2>/dev/null | sort -un"
        );
        let processes = self.run(&["sh", "-c", &script]);
        processes.lines().map(str::to_owned).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            let journal = self.leader.map(|_| {
                let command = ["journalctl", "--no-pager", "--output=short-monotonic", "-n", "150"];
                String::from_utf8_lossy(&self.try_run(&command).stdout).into_owned()
            });
            eprintln!("--- {}\n{}\n{}", self.name, self.console(), journal.unwrap_or_default());
        }
        // The keeper ends the machine when its standard input is closed.
        drop(self.commands.take());
        let _ = self.keeper.wait();
    }
}

/// Adds a line to the file that `BOOT_LOG` names, for tests/run.sh to count.
fn count_boot(name: &str) {
    if let Some(log) = std::env::var_os("BOOT_LOG") {
        let log = fs::OpenOptions::new().create(true).append(true).open(log);
        log.and_then(|mut log| writeln!(log, "{name}")).expect("BOOT_LOG names a file");
    }
}

/// The command of a keeper.
pub fn keeper(debian: Debian, name: &str, network: &Path) -> Command {
    let mut keeper = Command::new(script("keeper.sh"));
    keeper.arg(root(debian)).arg(name).arg(network);
    keeper
}

/// The first block of code in this section of README.md, as it stands there.
pub fn block_of_the_readme(section: &str) -> &'static str {
    let heading = format!("\n## {section}");
    let (_, text) = include_str!("../../README.md").split_once(&heading).expect("a section");
    let (_, block) = text.split_once("\n```").expect("a block of code");
    let (_, block) = block.split_once('\n').expect("its language");
    block.split_once("```").expect("its end").0
}

/// An `Environment=` that stands for an option of the program.
pub fn setting(option: &str, value: &str) -> String {
    format!("[Service]\nEnvironment=TAILSCALE_AUTOCONNECT_{option}={value}\n")
}

const CLEAN: [&str; 4] = [
    "env",
    "-i",
    "LC_ALL=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
];

fn bounded(limit: Duration, program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=1").arg(limit.as_secs().to_string()).arg(program);
    command
}

fn run(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout is there");
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().expect("its output is text")
}

fn expect_success(output: &Output, command: &[&str]) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

fn properties(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The process that is number 1 in the container, once it is systemd.
fn init_of(container: u32) -> Option<u32> {
    let children =
        fs::read_to_string(format!("/proc/{container}/task/{container}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
        let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let is_first = |line: &str| line.starts_with("NSpid:") && line.ends_with("\t1");
        read("status").lines().any(is_first) && read("comm").trim() == "systemd"
    })
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot").join(name)
}

/// What a script makes, once in this process.
fn made(script_name: &str, argument: Option<&str>) -> PathBuf {
    let output = Command::new(script(script_name))
        .args(argument)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("bash is there");
    assert!(
        output.status.success(),
        "tests/boot/{script_name} failed ({}); what it said stands above",
        output.status
    );
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

fn root(debian: Debian) -> PathBuf {
    static ROOTS: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let release = match debian {
        Debian::Bookworm => "bookworm",
        Debian::Trixie => "trixie",
    };
    let mut roots = ROOTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let root = roots.entry(release).or_insert_with(|| made("root.sh", Some(release)));
    root.clone()
}

/// The package, which is built once.
pub fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| made("package.sh", None))
}
