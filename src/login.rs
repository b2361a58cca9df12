//! Running `tailscale up`, with the key in an inherited memory file.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::authkey::{self, AuthKey};
use crate::blocking::{SILENT, in_time};
use crate::localapi;
use crate::outcome::Failure;
use crate::redact::excerpt;
use crate::trust::{self, Named, We};
use crate::verdict::{Verdict, judge};

/// How much of the CLI's output is kept, in bytes.
const MAX_OUTPUT: usize = 64 * 1024;

/// How long the output may stay open after the CLI has ended (by a process that it left behind).
const OUTPUT_LIMIT: Duration = Duration::from_secs(1);

/// How long the end of a CLI that was killed is waited for.
const KILL_LIMIT: Duration = Duration::from_millis(400);

/// The `tailscale` CLI and what it's always called with.
#[derive(Clone, Debug)]
pub struct Cli {
    /// A path, or a name to be found in PATH.
    pub program: PathBuf,
    pub socket: PathBuf,
    pub login_server: Option<String>,
    /// The user's flags for `tailscale up`.
    pub flags: Vec<String>,
}

impl Cli {
    /// The flags that the user gives, the login server included.
    pub fn asked(&self) -> Vec<String> {
        let server = self.login_server.iter();
        server
            .map(|url| format!("--login-server={url}"))
            .chain(self.flags.iter().cloned())
            .collect()
    }

    /// Starts `tailscale up` with `key`, with the flags `kept` from the node's settings before
    /// the user's own.
    pub async fn up(&self, key: &AuthKey, kept: &[String]) -> Result<Login, NotStarted> {
        let (program, trusted) = tokio::join!(self.program(), self.trust_socket());
        let program = program?;
        trusted?;
        self.log_in(&program, key, kept)
    }

    /// Where the command is, if it's one that may run with our rights.
    async fn program(&self) -> Result<PathBuf, NotStarted> {
        let program = self.program.clone();
        let found = in_time(move || {
            let (program, named) = find(&program)?;
            let steps = trust::steps(&program);
            Some((program, named, steps))
        });
        let Some(found) = found.await else {
            return Err(NotStarted::ForNow(format!(
                "cannot look at the tailscale command {} ({SILENT})",
                self.program.display()
            )));
        };
        let Some((program, named, steps)) = found else {
            return Err(self.cannot_start(&io::ErrorKind::NotFound.into()).into());
        };
        // One that cannot be looked at cannot be started either, which says why.
        if let Ok(steps) = steps {
            trust::may_run(&program, named, &steps, We::now()).map_err(Failure::Misconfigured)?;
        }
        Ok(program)
    }

    /// Whether the key may be sent to whoever is behind the socket. The CLI opens the socket once
    /// more, so it matters who can put another one there, too.
    pub async fn trust_socket(&self) -> Result<(), NotStarted> {
        let listener = localapi::listener(&self.socket).await;
        let socket = self.socket.clone();
        let steps = in_time(move || trust::steps(&socket)).await;
        let steps = steps.unwrap_or_else(|| Err(io::Error::other(SILENT)));
        let (listener, steps) = match (listener, steps) {
            (Ok(listener), Ok(steps)) => (listener, steps),
            (Err(error), _) | (_, Err(error)) => {
                return Err(NotStarted::ForNow(format!(
                    "cannot see who listens on the socket {} ({error})",
                    self.socket.display()
                )));
            }
        };
        trust::may_have_key(&self.socket, listener, &steps, We::now())
            .map_err(|why| Failure::Misconfigured(why).into())
    }

    fn log_in(&self, program: &Path, key: &AuthKey, kept: &[String]) -> Result<Login, NotStarted> {
        let memfd = key
            .to_inherited_memfd()
            .map_err(|error| Failure::Internal(format!("cannot make a memory file: {error}")))?;
        let mut socket = OsString::from("--socket=");
        socket.push(&self.socket);
        let mut command = Command::new(program);
        command
            .arg(socket)
            .arg("up")
            .arg(format!(
                "--auth-key=file:/proc/self/fd/{}",
                memfd.as_raw_fd()
            ))
            .args(kept)
            .args(self.asked());
        self.start(command)
    }

    /// Asks the command for its version: what it says, or why it says none. It is given `limit`.
    pub async fn version(&self, limit: Duration) -> Result<String, NoVersion> {
        let program = self.program().await.map_err(|why| match why {
            NotStarted::ForNow(_) => NoVersion::Silent,
            NotStarted::Ever(failure) => NoVersion::CannotRun(failure),
        })?;
        let mut command = Command::new(program);
        command.arg("version");
        let mut run = self.start(command).map_err(|why| match why {
            NotStarted::ForNow(why) => NoVersion::Failed(why),
            NotStarted::Ever(failure) => NoVersion::CannotRun(failure),
        })?;
        if timeout(limit, run.ended()).await.is_err() {
            run.stop().await;
            return Err(NoVersion::Silent);
        }
        let (code, output, errors) = run.end().await;
        match (code, output.lines().next()) {
            (Some(0), Some(version)) => Ok(excerpt(version, 60)),
            (Some(0), None) => Err(NoVersion::Failed("it says nothing".to_owned())),
            (Some(code), _) if errors.trim().is_empty() => {
                Err(NoVersion::Failed(format!("it ends with {code}")))
            }
            _ => Err(NoVersion::Failed(excerpt(&errors, 200))),
        }
    }

    fn start(&self, mut command: Command) -> Result<Login, NotStarted> {
        for (name, _) in env::vars_os() {
            if !trust::is_passed_on(&name) {
                command.env_remove(name);
            }
        }
        let mut child = command
            // The command may be a wrapper; it is ended with all that it has started.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.not_started(&error))?;
        let stdout = Output::collect(child.stdout.take());
        let stderr = Output::collect(child.stderr.take());
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Login {
            group,
            child,
            stdout,
            stderr,
        })
    }

    fn not_started(&self, error: &io::Error) -> NotStarted {
        // At the limit of processes or of memory, or while the command is being installed.
        const PASSING: [io::ErrorKind; 4] = [
            io::ErrorKind::WouldBlock,
            io::ErrorKind::OutOfMemory,
            io::ErrorKind::ExecutableFileBusy,
            io::ErrorKind::Interrupted,
        ];
        if PASSING.contains(&error.kind()) {
            let program = self.program.display();
            return NotStarted::ForNow(format!(
                "the tailscale command {program} cannot be started now ({error})"
            ));
        }
        self.cannot_start(error).into()
    }

    fn cannot_start(&self, error: &io::Error) -> Failure {
        let program = self.program.display();
        Failure::Misconfigured(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "the tailscale command was not found ({program}); \
                 install tailscale, or name the command with --tailscale"
            ),
            _ => format!(
                "the tailscale command {program} cannot be run ({error}); \
                 name another with --tailscale"
            ),
        })
    }
}

/// The path of a command, by the PATH of ours.
pub fn find(program: &Path) -> Option<(PathBuf, Named)> {
    trust::find(program, env::var_os("PATH").as_deref())
}

/// Why `tailscale up` was not started.
#[derive(Debug)]
pub enum NotStarted {
    /// It may be tried again.
    ForNow(String),
    Ever(Failure),
}

impl From<Failure> for NotStarted {
    fn from(failure: Failure) -> Self {
        Self::Ever(failure)
    }
}

/// Why the command does not tell its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoVersion {
    /// As a login would end.
    CannotRun(Failure),
    /// It did not end in time.
    Silent,
    /// It failed, with these words.
    Failed(String),
}

/// A `tailscale up` that runs. It is killed when this is dropped.
pub struct Login {
    /// The process group of the CLI and of what it has started.
    group: Option<Pid>,
    child: Child,
    stdout: Output,
    stderr: Output,
}

impl Drop for Login {
    fn drop(&mut self) {
        self.kill_group();
    }
}

impl Login {
    /// Waits for its end. Nothing is lost if this is dropped and called again.
    pub async fn ended(&mut self) {
        if let Err(error) = self.child.wait().await {
            log::debug!("cannot wait for `tailscale up`: {error}");
        }
    }

    /// What its end means. To be called after [`Login::ended`].
    pub async fn verdict(self) -> Verdict {
        let (code, output, errors) = self.end().await;
        for line in output.lines().chain(errors.lines()) {
            log::debug!("tailscale up: {line}");
        }
        judge(code, &errors)
    }

    /// Its exit code and what it wrote to standard output and standard error.
    async fn end(mut self) -> (Option<i32>, String, String) {
        let code = match self.child.wait().await {
            Ok(status) => status.code(),
            Err(_) => None,
        };
        self.kill_group();
        let (output, errors) = tokio::join!(self.stdout.text(), self.stderr.text());
        (code, output, errors)
    }

    /// Ends it and waits until it's gone. One that is stuck in the kernel goes when it can.
    pub async fn stop(mut self) {
        self.kill_group();
        match timeout(KILL_LIMIT, self.child.kill()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("cannot end `tailscale up`: {error}"),
            Err(_) => log::debug!("`tailscale up` was killed, but is stuck"),
        }
    }

    fn kill_group(&mut self) {
        // An empty group is none any more: there is nothing to end.
        if let Some(group) = self.group.take() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What is read of an output, as far as it has come.
struct Output {
    kept: Arc<Mutex<Vec<u8>>>,
    /// Ends with the output.
    reading: JoinHandle<()>,
}

impl Drop for Output {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Output {
    /// Reads `stream` to its end, so that the CLI never waits for us, and keeps the start of it.
    fn collect(stream: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let kept = Arc::default();
        let reading = tokio::spawn(read(stream, Arc::clone(&kept)));
        Self { kept, reading }
    }

    /// What has come by the end of the output, or by the time that is given it.
    async fn text(&mut self) -> String {
        if timeout(OUTPUT_LIMIT, &mut self.reading).await.is_err() {
            log::debug!("a process that the tailscale command left behind holds its output");
        }
        let mut kept = std::mem::take(&mut *lock(&self.kept));
        if kept.len() >= MAX_OUTPUT {
            // What is left of a key that was cut can't be told from other text.
            kept.truncate(MAX_OUTPUT - authkey::MAX_BYTES);
        }
        String::from_utf8_lossy(&kept).into_owned()
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>, kept: Arc<Mutex<Vec<u8>>>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut chunk).await {
        let mut kept = lock(&kept);
        let room = MAX_OUTPUT - kept.len();
        kept.extend_from_slice(&chunk[..length.min(room)]);
    }
}

fn lock(kept: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    kept.lock().unwrap_or_else(|broken| broken.into_inner())
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_command_that_cannot_be_started_now_is_tried_again() {
        let cli = Cli {
            program: "tailscale".into(),
            socket: "/s".into(),
            login_server: None,
            flags: Vec::new(),
        };
        for passing in [Errno::AGAIN, Errno::NOMEM, Errno::TXTBSY, Errno::INTR] {
            let why = cli.not_started(&passing.into());
            assert!(matches!(why, NotStarted::ForNow(_)), "{why:?}");
        }
        for lasting in [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC] {
            let why = cli.not_started(&lasting.into());
            let NotStarted::Ever(failure) = why else {
                panic!("{why:?}");
            };
            assert_eq!(failure.exit().1, 78);
        }
    }

    #[test]
    fn an_output_that_is_let_go_is_read_no_more() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            // As of a process that the command has left behind.
            let (stream, _held) = tokio::io::duplex(1);
            let output = Output::collect(Some(stream));
            let kept = Arc::clone(&output.kept);
            tokio::task::yield_now().await;
            assert_eq!(Arc::strong_count(&kept), 3);
            drop(output);
            tokio::task::yield_now().await;
            assert_eq!(Arc::strong_count(&kept), 1);
        });
    }
}
