//! The version of tailscale under test: where versions differ, a test says so by it.

use std::io::Write;
use std::panic::Location;
use std::process::Command;
use std::sync::OnceLock;
use std::{io, thread};

use crate::Binaries;

/// Whether the version under test is `minimum`, like `(1, 98)`, or newer. If it isn't, this says
/// for the test that it is skipped, and why; then the test has to return.
///
/// libtest knows no test that finds out that it cannot run, and counts it as passed. So
/// `tests/run.sh` counts these lines, which are written past libtest's capture, and takes them off.
#[must_use = "a test that is skipped returns"]
#[track_caller]
pub fn needs_version(minimum: (u32, u32), because: &str) -> bool {
    let applies = version_is_at_least(minimum);
    if !applies {
        let place = Location::caller();
        let this = thread::current();
        let test = match this.name() {
            // With --test-threads=1 a test has no thread of its own.
            None | Some("main") => format!("{}:{}", place.file(), place.line()),
            Some(name) => name.to_owned(),
        };
        let (major, minor) = minimum;
        let line =
            format!("skipped on {}: {test}: needs {major}.{minor}: {because}\n", under_test());
        io::stderr().write_all(line.as_bytes()).expect("standard error can be written");
    }
    applies
}

/// Whether the version under test is `minimum`, like `(1, 98)`, or newer.
pub fn version_is_at_least(minimum: (u32, u32)) -> bool {
    major_and_minor(under_test()) >= minimum
}

/// What `tailscaled` says itself, so that it holds for `TAILNET_BIN` too.
fn under_test() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let tailscaled = Binaries::chosen().tailscaled();
        let output = Command::new(&tailscaled)
            .arg("--version")
            .output()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", tailscaled.display()));
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().next().unwrap_or_default().trim().to_owned()
    })
}

fn major_and_minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => panic!("{version:?} is no version of tailscale"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(major_and_minor("1.66.4"), (1, 66));
        assert_eq!(major_and_minor("1.102.5-t1a2b3c-g4d5e"), (1, 102));
        assert!(major_and_minor("1.102.5") > major_and_minor("1.98.10"));
    }

    #[test]
    fn the_daemon_says_its_version() {
        let (major, minor) = major_and_minor(under_test());
        assert!(version_is_at_least((major, minor)));
        assert!(!version_is_at_least((major, minor + 1)));
        assert_eq!(crate::Node::start().status()["Version"], under_test());
    }
}
