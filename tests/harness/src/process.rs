//! Starting processes that cannot outlive the test, and waiting for their end without polling.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::PATIENCE;

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on the one thread of this process that starts other processes.
///
/// The kernel's parent-death signal comes when the *thread* that started a process ends, so a thread
/// that lives as long as this process must do it. Programs and scripts are written there too: a
/// process started meanwhile by another thread would inherit the open file for a moment, and
/// running the script would fail with "text file busy".
pub(crate) fn on_keeper<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    static KEEPER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        Mutex::new(sender)
    });
    let (answer, answered) = mpsc::sync_channel(1);
    keeper
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(Box::new(move || {
            let _ = answer.send(job());
        }))
        .expect("the keeper thread lives as long as the process");
    answered.recv().expect("the keeper's job does not panic")
}

/// A command that runs `program` and dies with the test process. Its environment is empty but for
/// what every program needs; `as_user` also gives up root.
pub(crate) fn command(program: &Path, as_user: Option<u32>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(uid) = as_user {
        command.args([
            format!("--reuid={uid}"),
            format!("--regid={uid}"),
            "--clear-groups".to_owned(),
        ]);
    }
    command.arg("--").arg(program).env_clear();
    for name in ["PATH", "TMPDIR", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A running process; killed and reaped when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let shown = format!("{:?}", command.get_program());
        let child = on_keeper(move || command.spawn())
            .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        let pidfd = pidfd_open(pid_of(&child), PidfdFlags::empty())
            .unwrap_or_else(|error| panic!("cannot watch process {}: {error}", child.id()));
        Self { child, pidfd, status: None }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A handle to wait on from another thread.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// The exit status, if it ends within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.status.is_none() && wait_readable(&self.pidfd, limit) {
            self.status = self.child.wait().ok();
        }
        self.status
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.wait(Duration::ZERO).is_none()
    }

    /// Stops it, and waits until all its threads have stopped.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stopped = waitid(
                WaitId::PidFd(self.pidfd.as_fd()),
                WaitIdOptions::STOPPED | WaitIdOptions::NOHANG,
            );
            match stopped {
                Ok(Some(_)) => return,
                Ok(None) => {}
                Err(error) => panic!("cannot stop process {}: {error}", self.pid()),
            }
            assert!(Instant::now() < deadline, "process {} did not stop", self.pid());
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn kill(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::KILL);
        self.wait(Duration::from_secs(10))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("a child's process id is positive")
}

/// Waits until `fd` is readable (a pidfd is when its process has ended); false when `limit` passed.
pub(crate) fn wait_readable(fd: impl AsFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a bounded time");
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll failed: {error}"),
        }
    }
}

/// The last `lines` lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A new temporary folder that other users may look into.
pub(crate) fn open_temp_dir(prefix: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap_or_else(|error| panic!("cannot make a temporary folder: {error}"))
}
