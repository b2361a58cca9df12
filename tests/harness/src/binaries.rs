//! Finds the binaries that the tests need: built once by `tests/tailnet/build.sh`, kept in its cache.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// A folder with `tailscaled` and `tailscale` of one version; with the main version, `control` too.
#[derive(Clone, Debug)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The version that the environment variable `TAILNET_VERSION` names, or else the main one.
    pub fn chosen() -> Self {
        match std::env::var("TAILNET_VERSION") {
            Ok(version) if !version.is_empty() => Self::version(&version),
            _ => Self::main(),
        }
    }

    /// The version that `tests/tailnet/go.mod` pins. The environment variable `TAILNET_BIN` may
    /// name a folder that has the binaries already.
    pub fn main() -> Self {
        match std::env::var_os("TAILNET_BIN") {
            Some(dir) if !dir.is_empty() => Self { dir: dir.into() },
            _ => Self::build(None),
        }
    }

    /// Another version, like `1.80.3`.
    pub fn version(version: &str) -> Self {
        Self::build(Some(version.trim_start_matches('v')))
    }

    /// The daemon.
    pub fn tailscaled(&self) -> PathBuf {
        self.dir.join("tailscaled")
    }

    /// The command line client.
    pub fn tailscale(&self) -> PathBuf {
        self.dir.join("tailscale")
    }

    /// The control server.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control")
    }

    /// Runs the build script once per version and process; it answers at once when all is cached.
    fn build(version: Option<&str>) -> Self {
        static BUILT: Mutex<Option<HashMap<String, Result<PathBuf, String>>>> = Mutex::new(None);
        let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = built
            .get_or_insert_default()
            .entry(version.unwrap_or_default().to_owned())
            .or_insert_with(|| run_build_script(version))
            .clone();
        drop(built);
        match result {
            Ok(dir) => Self { dir },
            Err(why) => panic!("cannot have the binaries of the test tailnet: {why}"),
        }
    }
}

fn run_build_script(version: Option<&str>) -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tailnet/build.sh");
    let output = Command::new(&script)
        .args(version)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{} does not start: {error}", script.display()))?;
    if !output.status.success() {
        return Err(format!(
            "tests/tailnet/build.sh failed ({}); what it said stands above",
            output.status
        ));
    }
    let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if dir.join("tailscaled").is_file() && dir.join("tailscale").is_file() {
        Ok(dir)
    } else {
        Err(format!(
            "tests/tailnet/build.sh names {}, which has no tailscaled and tailscale",
            dir.display()
        ))
    }
}
