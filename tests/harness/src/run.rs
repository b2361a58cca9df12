//! Runs the program under test, or any other, and keeps everything that it says: standard output,
//! standard error and what it tells systemd, each with its time.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{self, Process, open_temp_dir, tail, wait_readable};
use crate::terminal::{self, Screen};
use crate::{Binaries, Node, PATIENCE, RUN_LIMIT, proc};

/// Marks the processes of one run, so that those it leaves behind can be told from others.
const MARK: &str = "TAILNET_HARNESS_RUN";

/// The folder beside a socket that is the `STATE_DIRECTORY` of the runs on it.
pub(crate) const KEPT_BY_RUNS: &str = "autoconnect-state";

/// The last datagram on the notify socket; sent by us, when the program has ended.
const END: &[u8] = b"\0end of notifications";

/// A program to be run.
///
/// Its environment is empty but for `PATH`, `HOME` and `TMPDIR` (folders of its own),
/// `STATE_DIRECTORY`, `NOTIFY_SOCKET` and what the test adds. `STATE_DIRECTORY`, which systemd sets,
/// is beside the socket: what a run remembers is there for the next run on the same node, and for
/// no other. Without a socket it's the run's own.
#[derive(Clone, Debug)]
pub struct Run {
    program: PathBuf,
    args: Vec<OsString>,
    up_flags: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    socket: Option<PathBuf>,
    tailscale: Option<PathBuf>,
    notify: bool,
    user: Option<u32>,
    columns: Option<u16>,
    limit: Duration,
}

impl Run {
    /// Runs this program: `env!("CARGO_BIN_EXE_tailscale-autoconnect")`, mostly.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            up_flags: Vec::new(),
            env: Vec::new(),
            socket: None,
            tailscale: None,
            notify: true,
            user: None,
            columns: None,
            limit: RUN_LIMIT,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds flags for `tailscale up`: they stand at the end, after `--`.
    pub fn up_flags<A: Into<OsString>>(mut self, flags: impl IntoIterator<Item = A>) -> Self {
        self.up_flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// `--socket` of this node.
    pub fn node(self, node: &Node) -> Self {
        self.socket(node.socket())
    }

    /// `--socket`.
    pub fn socket(mut self, socket: impl AsRef<Path>) -> Self {
        self.socket = Some(socket.as_ref().to_owned());
        self.arg("--socket").arg(socket.as_ref())
    }

    /// `--tailscale` with the CLI of the version under test.
    pub fn cli(self) -> Self {
        self.tailscale(Binaries::chosen().tailscale())
    }

    /// `--tailscale`.
    pub fn tailscale(mut self, path: impl Into<PathBuf>) -> Self {
        self.tailscale = Some(path.into());
        self
    }

    /// `--authkey-file`.
    pub fn authkey_file(self, path: impl AsRef<Path>) -> Self {
        self.arg("--authkey-file").arg(path.as_ref())
    }

    /// `--login-server`.
    pub fn login_server(self, url: &str) -> Self {
        self.arg("--login-server").arg(url)
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs it without `NOTIFY_SOCKET`, as from a shell.
    pub fn without_notify(mut self) -> Self {
        self.notify = false;
        self
    }

    /// Runs it as another user (tests that run as root only). The program and the CLI are copied to
    /// where that user can reach them.
    pub fn user(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// Runs it in the foreground of a terminal of this width, which is its standard input and its
    /// standard error; its standard output goes elsewhere.
    pub fn terminal(mut self, columns: u16) -> Self {
        self.columns = Some(columns);
        self.env("TERM", "xterm-256color")
    }

    /// How long it may take, instead of [`RUN_LIMIT`].
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Finished {
        self.spawn().wait()
    }

    /// Starts it.
    pub fn spawn(self) -> Running {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{run}", std::process::id());
        let dir = open_temp_dir("run-");
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("a folder of our own can be written");
        let board = Arc::new(Board::new());

        let reachable = |path: PathBuf| match self.user {
            Some(_) => copy_for_anyone(&path, dir.path()),
            None => path,
        };
        let program = reachable(self.program);
        let mut command = match self.columns {
            // It makes the terminal its controlling one.
            Some(_) => process::command(Path::new("setsid"), self.user),
            None => process::command(&program, self.user),
        };
        let terminal = self.columns.map(terminal::open);
        if terminal.is_some() {
            command.arg("--ctty").arg(&program);
        }
        command.args(&self.args);
        if let Some(tailscale) = self.tailscale {
            command.arg("--tailscale").arg(reachable(tailscale));
        }
        if !self.up_flags.is_empty() {
            command.arg("--").args(&self.up_flags);
        }
        let shown = format!("{:?}", command.get_args().collect::<Vec<_>>());
        let state = state_folder(self.socket.as_deref(), dir.path(), self.user);
        command
            .env("HOME", home)
            .env("TMPDIR", dir.path())
            .env("STATE_DIRECTORY", state)
            .env(MARK, &mark)
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let master = match terminal {
            Some((master, slave)) => {
                let input = slave.try_clone().expect("a file descriptor can be cloned");
                command.stdin(input).stderr(slave);
                Some(master)
            }
            None => {
                command.process_group(0);
                None
            }
        };

        let notify = self.notify.then(|| {
            let path = dir.path().join("notify");
            let socket = UnixDatagram::bind(&path).expect("a datagram socket can be bound");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("it is ours");
            command.env("NOTIFY_SOCKET", &path);
            board.read_notifications(socket.try_clone().expect("a socket can be cloned"));
            (socket, path)
        });
        board.now().notify_ended = notify.is_none();
        command.envs(self.env);

        let mut process = Process::spawn(command);
        board.read(process.child.stdout.take(), |now| &mut now.stdout);
        match &master {
            Some(master) => {
                let output = master.try_clone().expect("a file descriptor can be cloned");
                board.read(Some(output), |now| &mut now.stderr);
            }
            None => board.read(process.child.stderr.take(), |now| &mut now.stderr),
        }
        board.watch_exit(&process, notify.as_ref().map(|(_, path)| path.clone()));
        Running {
            process: Mutex::new(process),
            board,
            terminal: master,
            columns: self.columns,
            notify: notify.map(|(socket, _)| socket),
            mark,
            shown,
            limit: self.limit,
            dir: Arc::new(dir),
        }
    }
}

/// The folder for what is to outlive a run, made as systemd makes it.
fn state_folder(socket: Option<&Path>, own: &Path, user: Option<u32>) -> PathBuf {
    let beside = socket.and_then(Path::parent).filter(|at| at.is_dir());
    let folder = beside.unwrap_or(own).join(KEPT_BY_RUNS);
    let owner = user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    fs::create_dir_all(&folder)
        .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)))
        .and_then(|()| chown(&folder, Some(owner), None))
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
    folder
}

/// Puts a program where every user can run it.
fn copy_for_anyone(program: &Path, dir: &Path) -> PathBuf {
    let Some(name) = program.file_name().filter(|_| program.exists()) else {
        return program.to_owned();
    };
    let copy = dir.join(name);
    let (from, to) = (program.to_owned(), copy.clone());
    process::on_keeper(move || {
        fs::copy(&from, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
    })
    .unwrap_or_else(|error| panic!("cannot copy {}: {error}", program.display()));
    copy
}

/// One datagram that the program sent to its `NOTIFY_SOCKET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Since the program was started.
    pub at: Duration,
    /// All of it: `NAME=value` lines.
    pub text: String,
}

impl Notification {
    /// The value of one of its lines.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

/// What was heard from a program so far. Everything that waits for news of it waits here.
struct Board {
    now: Mutex<Heard>,
    changed: Condvar,
}

struct Heard {
    started: Instant,
    stdout: Stream,
    stderr: Stream,
    notifications: Vec<Notification>,
    notify_ended: bool,
    exited: Option<Instant>,
}

#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Heard {
    /// Whether nothing more will come. Output may be held open by a process left behind, so after
    /// the program's end it has a second.
    fn is_complete(&self) -> bool {
        let whole = self.stdout.ended && self.stderr.ended && self.notify_ended;
        self.exited.is_some_and(|at| whole || at.elapsed() > Duration::from_secs(1))
    }
}

impl Board {
    fn new() -> Self {
        Self {
            now: Mutex::new(Heard {
                started: Instant::now(),
                stdout: Stream::default(),
                stderr: Stream::default(),
                notifications: Vec::new(),
                notify_ended: false,
                exited: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn now(&self) -> MutexGuard<'_, Heard> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.now());
        self.changed.notify_all();
    }

    /// Waits until `seen` gives something; nothing when the program has ended, all was heard and it
    /// still doesn't, or when `limit` passed.
    fn wait<T>(&self, limit: Duration, mut seen: impl FnMut(&Heard) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut now = self.now();
        loop {
            if let Some(found) = seen(&now) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || now.is_complete() {
                return None;
            }
            // All news ring, but for the second that passes after the end.
            let nap = left.min(Duration::from_millis(500));
            now = self.changed.wait_timeout(now, nap).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn read(
        self: &Arc<Self>,
        source: Option<impl Read + Send + 'static>,
        stream: fn(&mut Heard) -> &mut Stream,
    ) {
        let board = Arc::clone(self);
        let mut source = source.expect("its output is a pipe");
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                board.change(|now| stream(now).bytes.extend_from_slice(&buffer[..count]));
            }
            board.change(|now| stream(now).ended = true);
        });
    }

    fn read_notifications(self: &Arc<Self>, socket: UnixDatagram) {
        let board = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            // Zero bytes: the socket was shut down.
            while let Ok(count @ 1..) = socket.recv(&mut buffer) {
                if &buffer[..count] == END {
                    break;
                }
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                board.change(|now| {
                    let at = now.started.elapsed();
                    now.notifications.push(Notification { at, text });
                });
            }
            board.change(|now| now.notify_ended = true);
        });
    }

    /// Notes the time of the end, and has the notifications read to their end then.
    fn watch_exit(self: &Arc<Self>, process: &Process, notify: Option<PathBuf>) {
        let board = Arc::clone(self);
        let pidfd = process.pidfd().expect("a file descriptor can be cloned");
        thread::spawn(move || {
            while !wait_readable(&pidfd, Duration::from_secs(3600)) {}
            board.change(|now| now.exited = Some(Instant::now()));
            if let Some(path) = notify {
                let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(END, path));
                if sent.is_err() {
                    board.change(|now| now.notify_ended = true);
                }
            }
        });
    }
}

/// A program that runs. When it is dropped, it is killed with everything that it started.
pub struct Running {
    process: Mutex<Process>,
    board: Arc<Board>,
    terminal: Option<fs::File>,
    columns: Option<u16>,
    notify: Option<UnixDatagram>,
    mark: String,
    shown: String,
    limit: Duration,
    dir: Arc<TempDir>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Its children that run now.
    pub fn children(&self) -> Vec<u32> {
        proc::children_of(self.pid())
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        self.process().is_alive()
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Kills it and waits for its end.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        self.board.now().stdout.text()
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        self.board.now().stderr.text()
    }

    /// Waits until its terminal shows a line with this.
    pub fn wait_on_screen(&self, text: &str) {
        let what = format!("{text:?} on the terminal");
        self.await_news(&what, |now| {
            let screen = screen(self.columns, &now.stderr.bytes);
            screen.now().contains(text).then_some(())
        });
    }

    /// Types this on its terminal.
    pub fn type_in(&self, keys: &str) {
        let mut terminal = self.terminal.as_ref().expect("a run on a terminal");
        terminal.write_all(keys.as_bytes()).expect("a terminal takes input");
    }

    /// What it told systemd so far.
    pub fn notifications(&self) -> Vec<Notification> {
        self.board.now().notifications.clone()
    }

    /// The most memory that it has had resident up to now. (That of a program that has ended is
    /// known to its parent's `wait4` only, which cannot be called without `unsafe`.)
    pub fn peak_rss_kib(&self) -> u64 {
        self.memory().unwrap_or_else(|| self.fail("no memory to be measured: it has ended"))
    }

    fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        peak.trim().strip_suffix("kB")?.trim().parse().ok()
    }

    /// Waits for its end as [`Self::wait`] does, and says how much memory it has had resident at
    /// most, up to a few milliseconds before its end.
    pub fn wait_measured(self) -> (Finished, u64) {
        let mut peak = 0;
        let deadline = Instant::now() + self.limit;
        while self.is_alive() && Instant::now() < deadline {
            peak = peak.max(self.memory().unwrap_or_default());
            thread::sleep(Duration::from_millis(5));
        }
        (self.wait(), peak)
    }

    /// Waits until its standard error is as asked for, and returns it.
    pub fn wait_stderr(&self, mut seen: impl FnMut(&str) -> bool, what: &str) -> String {
        self.await_news(what, |now| Some(now.stderr.text()).filter(|text| seen(text)))
    }

    /// Waits for a `STATUS=` that contains `text`, also one that came already; returns it whole.
    pub fn wait_status_text(&self, text: &str) -> String {
        self.await_news(&format!("a STATUS= with {text:?}"), |now| {
            let mut statuses = now.notifications.iter().filter_map(|one| one.get("STATUS"));
            statuses.find(|status| status.contains(text)).map(str::to_owned)
        })
    }

    /// Waits for `READY=1`; says when it came.
    pub fn wait_ready(&self) -> Duration {
        self.await_news("READY=1", |now| ready_at(&now.notifications))
    }

    /// Waits until it has at least one child, and returns the children.
    pub fn wait_children(&self) -> Vec<u32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let children = self.children();
            if !children.is_empty() {
                return children;
            }
            if Instant::now() > deadline || !self.is_alive() {
                self.fail("waited in vain for a child process");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end; past its limit it is killed and the test fails.
    pub fn wait(self) -> Finished {
        let exit = self.process().wait(self.limit);
        let Some(exit) = exit else {
            self.fail(&format!("did not end within {:?}", self.limit));
        };
        let ours = self.descendants();
        self.board.wait(Duration::from_secs(5), |_| None::<()>);

        let now = self.board.now();
        let exited = now.exited.unwrap_or_else(Instant::now);
        let finished = Finished {
            code: exit.code(),
            signal: exit.signal(),
            stdout: now.stdout.text(),
            stderr: now.stderr.text(),
            screen_bytes: now.stderr.bytes.clone(),
            columns: self.columns,
            elapsed: exited.duration_since(now.started),
            notifications: now.notifications.clone(),
            left_behind: ours,
            dir: Arc::clone(&self.dir),
            _echo: EchoOnFailure(self.report(&now)),
        };
        drop(now);
        finished
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn await_news<T>(&self, what: &str, seen: impl FnMut(&Heard) -> Option<T>) -> T {
        match self.board.wait(PATIENCE, seen) {
            Some(found) => found,
            None => self.fail(&format!("waited in vain for {what}")),
        }
    }

    fn fail(&self, why: &str) -> ! {
        let ended = if self.is_alive() { "still runs" } else { "has ended" };
        panic!("{why}; the program {ended}: {}", self.shown)
    }

    /// The processes that come from it, by its process group or by the mark that they inherited.
    fn descendants(&self) -> Vec<u32> {
        let pid = self.pid();
        let mark = format!("{MARK}={}", self.mark);
        proc::processes()
            .into_iter()
            .filter(|one| one.pid != pid && !one.zombie)
            .filter(|one| one.group == pid || proc::environ_of(one.pid).contains(&mark))
            .map(|one| one.pid)
            .collect()
    }

    fn report(&self, now: &Heard) -> String {
        let mut text = format!("--- {}\n", self.shown);
        for (name, stream) in [("stdout", &now.stdout), ("stderr", &now.stderr)] {
            if !stream.bytes.is_empty() {
                let _ = writeln!(text, "--- its {name}:\n{}", tail(&stream.text(), 60));
            }
        }
        for Notification { at, text: sent } in &now.notifications {
            let _ = writeln!(
                text,
                "--- notified after {at:?}: {}",
                sent.trim_end().replace('\n', " | ")
            );
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it was waited for, `Finished` reports it.
        if thread::panicking() {
            eprint!("{}", self.report(&self.board.now()));
        }
        self.process().kill();
        for pid in self.descendants() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        if let Some(socket) = &self.notify {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The number of the signal that ended it.
    pub signal: Option<i32>,
    /// All its standard output.
    pub stdout: String,
    /// All its standard error.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
    /// What it told systemd.
    pub notifications: Vec<Notification>,
    /// The processes that it started and that still ran when it had ended.
    pub left_behind: Vec<u32>,
    screen_bytes: Vec<u8>,
    columns: Option<u16>,
    dir: Arc<TempDir>,
    _echo: EchoOnFailure,
}

impl Finished {
    /// Panics, showing everything that it said, if it did not end with this exit code.
    pub fn assert_code(&self, code: i32) -> &Self {
        assert!(
            self.code == Some(code),
            "expected exit code {code}, got {}",
            match (self.code, self.signal) {
                (Some(code), _) => code.to_string(),
                (None, signal) => format!("signal {}", signal.unwrap_or_default()),
            },
        );
        self
    }

    /// Where it ran, with all that it wrote there, to `HOME` or to `TMPDIR`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What its terminal has shown.
    pub fn screen(&self) -> Screen {
        screen(self.columns, &self.screen_bytes)
    }

    /// The `STATUS=` texts, in order.
    pub fn statuses(&self) -> Vec<&str> {
        self.notifications.iter().filter_map(|one| one.get("STATUS")).collect()
    }

    /// When `READY=1` came.
    pub fn ready_at(&self) -> Option<Duration> {
        ready_at(&self.notifications)
    }

    /// Standard output and standard error.
    pub fn output(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("standard output is not JSON ({error}): {:?}", self.stdout)
        })
    }
}

fn screen(columns: Option<u16>, output: &[u8]) -> Screen {
    Screen::of(columns.expect("a run on a terminal"), output)
}

fn ready_at(notifications: &[Notification]) -> Option<Duration> {
    notifications.iter().find(|one| one.get("READY") == Some("1")).map(|one| one.at)
}

/// Prints what a program said if it is dropped by a failing test.
#[derive(Debug)]
struct EchoOnFailure(String);

impl Drop for EchoOnFailure {
    fn drop(&mut self) {
        if thread::panicking() {
            eprint!("{}", self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FakeCli;

    fn shell(script: &str) -> Run {
        Run::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn output_code_and_signal_are_kept() {
        let run = shell("echo out; echo err >&2; exit 78").run();
        run.assert_code(78);
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(run.left_behind, Vec::<u32>::new());

        let running = shell("echo up >&2; sleep 60").spawn();
        running.wait_stderr(|text| text.contains("up"), "the script to be up");
        running.signal(Signal::TERM);
        let finished = running.wait();
        assert_eq!((finished.code, finished.signal), (None, Some(15)));
        assert!(finished.elapsed < Duration::from_secs(5), "{:?}", finished.elapsed);
    }

    #[test]
    fn a_terminal_shows_what_is_written_to_it_and_takes_what_is_typed() {
        let script = r#"
            test -t 0 && test -t 2 && ! test -t 1 && stty size || exit 1
            printf '12345\n123456\n\033[31mred' >&2
            read -r word
            printf '\r\033[K%s?' "$word" >&2
        "#;
        let running = shell(script).terminal(5).spawn();
        running.wait_on_screen("red");
        running.type_in("on\n");
        let run = running.wait();
        run.assert_code(0);
        assert_eq!(run.stdout, "40 5\n");
        let screen = run.screen();
        let lines = ["12345", "6", "redon"];
        assert!(lines.iter().all(|line| screen.shown().contains(&(*line).to_owned())));
        assert_eq!(screen.now(), "12345\n123456\nredon\non?");
        assert_eq!(screen.colored(), ["redon", "on?"]);
        assert!(screen.has_wrapped() && !screen.is_left_clean());
    }

    #[test]
    fn a_child_that_is_left_behind_is_named_and_killed() {
        let finished = shell("sleep 60 & echo $!").run();
        let pid = finished.stdout.trim().parse().unwrap();
        assert_eq!(finished.left_behind, [pid]);
        let deadline = Instant::now() + PATIENCE;
        while !proc::environ_of(pid).is_empty() {
            assert!(Instant::now() < deadline, "process {pid} still runs");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    #[should_panic(expected = "did not end within 100ms")]
    fn a_run_past_its_limit_fails_the_test() {
        shell("sleep 60").limit(Duration::from_millis(100)).run();
    }

    #[test]
    fn flags_for_up_come_last() {
        let cli = FakeCli::printing("", "", 0);
        let run = Run::new(cli.path()).up_flags(["--ssh"]).tailscale("/x").login_server("http://y");
        run.arg("-v").run().assert_code(0);
        assert_eq!(
            cli.calls(),
            [["--login-server", "http://y", "-v", "--tailscale", "/x", "--", "--ssh"]]
        );
    }

    #[test]
    fn notifications_are_kept_in_order_even_when_the_program_ends_at_once() {
        // The shell cannot send datagrams, so this program stands in for itself.
        let run = Run::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "run::tests::notifying_program"])
            .env("PLAY", "notifying program")
            .run();
        run.assert_code(0);
        assert_eq!(run.statuses(), ["waiting for tailscaled", "connected"]);
        assert!(run.ready_at().is_some());

        let running = Run::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "run::tests::notifying_program"])
            .env("PLAY", "notifying program, then wait")
            .spawn();
        assert_eq!(running.wait_status_text("wait"), "waiting for tailscaled");
        running.wait_ready();
        assert!(running.is_alive());
        assert!(running.peak_rss_kib() > 100);
    }

    #[test]
    #[ignore = "not a test: run as a program by the test above"]
    fn notifying_program() {
        let Ok(play) = std::env::var("PLAY") else {
            return;
        };
        let path = std::env::var_os("NOTIFY_SOCKET").unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        for text in ["STATUS=waiting for tailscaled\n", "READY=1\nSTATUS=connected\n"] {
            socket.send_to(text.as_bytes(), &path).unwrap();
        }
        if play.ends_with("wait") {
            thread::sleep(Duration::from_secs(60));
        }
    }
}
