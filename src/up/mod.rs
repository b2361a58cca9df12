//! Running `tailscale up`, with the key in an inherited memory file, and reading what it said.

mod proxy;
mod said;

use std::env;
use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

pub use crate::up::said::{Ended, LoginError, last_login_error, trouble};

use crate::failure::Mistake;
use crate::file_system::{SILENT, in_time};
use crate::key::trust::{self, Named, Process};
use crate::key::{self, AuthKey};
use crate::redact::excerpt;
use crate::tailscaled;

/// How much of the CLI's output is kept, in bytes.
const MAX_OUTPUT: usize = 64 * 1024;

/// How long the output may stay open after the CLI has ended (by a process that it left behind).
const OUTPUT_LIMIT: Duration = Duration::from_secs(1);

/// How long the end of a CLI that was killed is waited for.
const KILL_LIMIT: Duration = Duration::from_millis(400);

/// The `tailscale` CLI and the tailscaled that it is called for.
#[derive(Clone, Debug, Default)]
pub struct Cli {
    /// A path, or a name to be found in PATH.
    pub program: PathBuf,
    pub socket: PathBuf,
}

impl Cli {
    /// Starts `tailscale up` with `key` and these flags.
    pub async fn up(&self, key: &AuthKey, flags: &[String]) -> Result<Up, NotStarted> {
        let (program, trusted) = tokio::join!(self.program(), self.trust_socket());
        let program = program?;
        trusted?;
        let memfd = key
            .to_inherited_memfd()
            .map_err(|error| NotStarted::ForNow(format!("cannot make a memory file: {error}")))?;
        let mut command = Command::new(&program);
        command
            .arg(self.socket_flag())
            .arg("up")
            .arg(format!("--auth-key=file:/proc/self/fd/{}", memfd.as_raw_fd()))
            .arg("--reset")
            .args(flags);
        if key.kind.is_oauth_secret() {
            command.envs(in_time(proxy::of_tailscaled).await.unwrap_or_default());
        }
        self.start(command)
    }

    /// Runs `tailscale set` with these flags, for no longer than `limit`. What it complains of, if it does.
    pub async fn set(&self, flags: &[String], limit: Duration) -> Result<(), String> {
        let words = |why: NotStarted| why.to_string();
        let mut command = Command::new(self.program().await.map_err(words)?);
        command.arg(self.socket_flag()).arg("set").args(flags);
        match self.start(command).map_err(words)?.end_within(limit).await {
            None => Err("`tailscale set` does not end".to_owned()),
            Some((Some(0), ..)) => Ok(()),
            Some((_, _, errors)) => Err(excerpt(errors.trim(), 200)),
        }
    }

    fn socket_flag(&self) -> OsString {
        let mut flag = OsString::from("--socket=");
        flag.push(&self.socket);
        flag
    }

    /// Where the command is, if it's one that may run with our rights.
    async fn program(&self) -> Result<PathBuf, NotStarted> {
        let program = self.program.clone();
        let look = move || {
            let (path, named) = find(&program).ok_or(Mistake::NoCommand(program))?;
            // One that cannot be looked at cannot be started either, which says why.
            if let Ok(parts) = trust::path_parts(&path) {
                trust::may_run(&path, named, &parts, Process::current())
                    .map_err(Mistake::Untrusted)?;
            }
            Ok(path)
        };
        in_time(look).await.unwrap_or_else(|| {
            let program = self.program.display();
            let why = format!("cannot look at the tailscale command {program} ({SILENT})");
            Err(NotStarted::ForNow(why))
        })
    }

    /// Whether the key may be sent to whoever is behind the socket. The CLI opens the socket once
    /// more, so it matters who can put another one there, too.
    pub async fn trust_socket(&self) -> Result<(), NotStarted> {
        let listener = tailscaled::listener(&self.socket).await;
        let socket = self.socket.clone();
        let parts = in_time(move || trust::path_parts(&socket)).await;
        let parts = parts.unwrap_or_else(|| Err(io::Error::other(SILENT)));
        match (listener, parts) {
            (Ok(listener), Ok(parts)) => {
                trust::may_have_key(&self.socket, listener, &parts, Process::current())
                    .map_err(|why| Mistake::Untrusted(why).into())
            }
            (Err(error), _) | (_, Err(error)) => Err(NotStarted::ForNow(format!(
                "cannot see who listens on the socket {} ({error})",
                self.socket.display()
            ))),
        }
    }

    /// Asks the command for its version: what it says, or why it says none. It is given `limit`.
    pub async fn version(&self, limit: Duration) -> Result<String, NoVersion> {
        let program = self.program().await.map_err(|why| match why {
            NotStarted::ForNow(_) => NoVersion::Silent,
            NotStarted::Final(mistake) => NoVersion::CannotRun(mistake),
        })?;
        let mut command = Command::new(program);
        command.arg("version");
        let run = self.start(command).map_err(|why| match why {
            NotStarted::ForNow(why) => NoVersion::Failed(why),
            NotStarted::Final(mistake) => NoVersion::CannotRun(mistake),
        })?;
        let (code, output, errors) = run.end_within(limit).await.ok_or(NoVersion::Silent)?;
        match (code, output.lines().next()) {
            (Some(0), Some(version)) => Ok(excerpt(version, 60)),
            (Some(0), None) => Err(NoVersion::Failed("it says nothing".to_owned())),
            (Some(code), _) if errors.trim().is_empty() => {
                Err(NoVersion::Failed(format!("it ends with {code}")))
            }
            _ => Err(NoVersion::Failed(excerpt(&errors, 200))),
        }
    }

    fn start(&self, mut command: Command) -> Result<Up, NotStarted> {
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
            .map_err(|error| not_started(&self.program, &error))?;
        let (stdout, stderr) = (Output::of(child.stdout.take()), Output::of(child.stderr.take()));
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Up { group, child, stdout, stderr })
    }
}

fn not_started(program: &Path, error: &io::Error) -> NotStarted {
    // At the limit of processes or of memory, or while the command is being installed.
    const PASSING: [io::ErrorKind; 4] = [
        io::ErrorKind::WouldBlock,
        io::ErrorKind::OutOfMemory,
        io::ErrorKind::ExecutableFileBusy,
        io::ErrorKind::Interrupted,
    ];
    match error.kind() {
        kind if PASSING.contains(&kind) => NotStarted::ForNow(format!(
            "the tailscale command {} cannot be started now ({error})",
            program.display()
        )),
        io::ErrorKind::NotFound => Mistake::NoCommand(program.to_owned()).into(),
        _ => {
            let (program, error) = (program.to_owned(), error.to_string());
            Mistake::CannotRun { program, error }.into()
        }
    }
}

/// The path of a command, by the PATH of ours.
pub fn find(program: &Path) -> Option<(PathBuf, Named)> {
    trust::find_command(program, env::var_os("PATH").as_deref())
}

/// Why the command was not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    /// It may be tried again.
    #[error("{0}")]
    ForNow(String),
    #[error(transparent)]
    Final(#[from] Mistake),
}

/// Why the command does not tell its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoVersion {
    /// As a login would end.
    CannotRun(Mistake),
    /// It did not end in time.
    Silent,
    /// It failed, with these words.
    Failed(String),
}

/// A `tailscale` command that runs. It is killed when this is dropped.
pub struct Up {
    /// The process group of the CLI and of what it has started.
    group: Option<Pid>,
    child: Child,
    stdout: Output<ChildStdout>,
    stderr: Output<ChildStderr>,
}

impl Drop for Up {
    fn drop(&mut self) {
        self.kill_group();
    }
}

impl Up {
    /// Waits for its end. Nothing is lost if this is dropped and called again.
    pub async fn ended(&mut self) {
        let outputs = async {
            tokio::join!(self.stdout.read(), self.stderr.read());
            pending().await
        };
        let result = tokio::select! {
            result = self.child.wait() => result,
            never = outputs => never,
        };
        if let Err(error) = result {
            log::debug!("cannot wait for `tailscale up`: {error}");
        }
    }

    /// What the end of `program` says. To be called after [`Up::ended`].
    pub async fn said(self, program: &Path) -> Ended {
        let (code, output, errors) = self.end().await;
        for line in output.lines().chain(errors.lines()) {
            log::debug!("tailscale up: {line}");
        }
        said::read(program, code, &errors)
    }

    /// The same as [`Up::end`], unless it takes longer than this; then it is stopped.
    async fn end_within(mut self, limit: Duration) -> Option<(Option<i32>, String, String)> {
        if timeout(limit, self.ended()).await.is_err() {
            self.stop().await;
            return None;
        }
        Some(self.end().await)
    }

    /// Its exit code and what it wrote to standard output and standard error.
    async fn end(mut self) -> (Option<i32>, String, String) {
        let status = self.child.wait().await;
        self.kill_group();
        let rest = async { tokio::join!(self.stdout.read(), self.stderr.read()) };
        if timeout(OUTPUT_LIMIT, rest).await.is_err() {
            log::debug!("a process that the tailscale command left behind holds its output");
        }
        let code = status.ok().and_then(|status| status.code());
        (code, self.stdout.text(), self.stderr.text())
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

/// An output of the command, and the start of what has come of it.
struct Output<Stream> {
    stream: Option<Stream>,
    kept: Vec<u8>,
}

impl<Stream: AsyncRead + Unpin> Output<Stream> {
    fn of(stream: Option<Stream>) -> Self {
        Self { stream, kept: Vec::new() }
    }

    /// Reads to the end, so that the command never waits for us. Nothing is lost if this is dropped.
    async fn read(&mut self) {
        let mut chunk = [0; 4096];
        while let Some(stream) = &mut self.stream
            && let Ok(length @ 1..) = stream.read(&mut chunk).await
        {
            let room = MAX_OUTPUT - self.kept.len();
            self.kept.extend_from_slice(&chunk[..length.min(room)]);
        }
        self.stream = None;
    }

    fn text(&mut self) -> String {
        if self.kept.len() >= MAX_OUTPUT {
            // What is left of a key that was cut can't be told from other text.
            self.kept.truncate(MAX_OUTPUT - key::MAX_BYTES);
        }
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_command_that_cannot_be_started_now_is_tried_again() {
        for passing in [Errno::AGAIN, Errno::NOMEM, Errno::TXTBSY, Errno::INTR] {
            let why = not_started(Path::new("tailscale"), &passing.into());
            assert!(matches!(why, NotStarted::ForNow(_)), "{why:?}");
        }
        for lasting in [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC] {
            let why = not_started(Path::new("tailscale"), &lasting.into());
            assert!(!matches!(why, NotStarted::ForNow(_)), "{why:?}");
        }
    }
}
