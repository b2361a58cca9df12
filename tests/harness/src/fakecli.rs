//! Shell scripts that stand in for the `tailscale` CLI.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{PATIENCE, process};

/// A script in the place of `tailscale`, which also notes how it was called.
pub struct FakeCli {
    dir: TempDir,
    path: PathBuf,
}

impl FakeCli {
    /// Runs this text with `/bin/sh`, with the arguments of the call as `$@`. To let the real CLI
    /// go on, end it with `exec PATH "$@"`.
    pub fn script(text: &str) -> Self {
        let cli = Self::missing();
        let script = format!(
            "#!/bin/sh\n{{ printf '%s\\n' \"$@\"; printf '\\036\\n'; }} >>'{}'\n{text}\n",
            cli.dir.path().join("calls").display()
        );
        let path = cli.path.clone();
        process::on_keeper(move || {
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        })
        .unwrap_or_else(|error| panic!("cannot write a script: {error}"));
        cli
    }

    /// Never ends by itself.
    pub fn hanging() -> Self {
        Self::script("exec sleep 3600")
    }

    /// Never ends by itself, nor by a signal that can be ignored.
    pub fn stubborn() -> Self {
        Self::script("trap '' TERM INT HUP\nexec sleep 3600")
    }

    /// Prints these texts and exits.
    pub fn printing(stdout: &str, stderr: &str, code: i32) -> Self {
        let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        Self::script(&format!(
            "printf %s {}\nprintf %s {} >&2\nexit {code}",
            quote(stdout),
            quote(stderr)
        ))
    }

    /// There is no file at its path.
    pub fn missing() -> Self {
        let dir = process::open_temp_dir("cli-");
        let path = dir.path().join("tailscale");
        Self { dir, path }
    }

    /// For `--tailscale`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The arguments of every call so far.
    pub fn calls(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        text.split_terminator("\u{1e}\n")
            .map(|call| call.lines().map(str::to_owned).collect())
            .collect()
    }

    /// Waits until it has been called `count` times.
    pub fn wait_calls(&self, count: usize) -> Vec<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let calls = self.calls();
            if calls.len() >= count {
                return calls;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for {count} calls of the CLI; there were {calls:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}
