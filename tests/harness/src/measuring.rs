//! What `tests/measure` and `tests/bench` share: how long, how much memory, how much of the CPU.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::{Node, Tailnet};

/// Devices that are on the tailnet already, offline: nobody's tailnet is empty.
const DEVICES: usize = 40;

/// How samples of one thing are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it all")]
pub struct Spread {
    pub least: f64,
    pub lower_quartile: f64,
    pub median: f64,
    pub upper_quartile: f64,
    pub most: f64,
}

impl Spread {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        // Between two samples, in proportion.
        let at = |quarters: usize| {
            let (index, rest) =
                ((sorted.len() - 1) * quarters / 4, (sorted.len() - 1) * quarters % 4);
            let next = sorted[(index + 1).min(sorted.len() - 1)];
            sorted[index] + (next - sorted[index]) * rest as f64 / 4.0
        };
        Self {
            least: at(0),
            lower_quartile: at(1),
            median: at(2),
            upper_quartile: at(3),
            most: at(4),
        }
    }
}

/// A tailnet with devices on it.
pub fn inhabited_tailnet() -> Tailnet {
    let tailnet = Tailnet::start();
    for _ in 0..DEVICES {
        Node::start().join(&tailnet);
    }
    tailnet
}

/// A time in milliseconds.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The most memory that a program, or any process that it waited for, has had resident, in MiB: of
/// the greatest process, not the sum of all. The program must succeed.
///
/// It is run by `/usr/bin/time`, which is small: a child's peak begins with what its parent had.
pub fn peak_memory(of: &Command) -> f64 {
    let report = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    let mut timed = Command::new("/usr/bin/time");
    timed
        .args(["--quiet", "--format=%M", "--output"])
        .arg(report.path())
        .arg("--")
        .arg(of.get_program())
        .args(of.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    for (name, value) in of.get_envs() {
        match value {
            Some(value) => timed.env(name, value),
            None => timed.env_remove(name),
        };
    }
    let status = timed.status().expect("/usr/bin/time (Debian's package time) is there");
    assert!(status.success(), "{of:?} ended with {status}");
    let said = std::fs::read_to_string(report.path()).expect("it was written");
    let kib: f64 = said.trim().parse().unwrap_or_else(|_| panic!("{said}"));
    kib / 1024.0
}

/// How much of the CPU all processes have used that this process, or one of those, has waited for.
pub fn cpu_time_of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| {
            let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
            Duration::from_micros(u64::try_from(micros).unwrap_or_default())
        })
        .sum()
}

/// Between which times a node came online, as seen from outside.
#[derive(Clone, Copy, Debug)]
pub struct CameOnline {
    /// It was not online yet.
    pub after: Instant,
    /// It was.
    pub by: Instant,
}

/// Asks for the status as quickly as it can until the node is online, and says when that was;
/// nothing if `limit` passed first.
pub fn first_online(node: &Node, limit: Duration) -> Option<CameOnline> {
    let deadline = Instant::now() + limit;
    let mut after = Instant::now();
    loop {
        let asked = Instant::now();
        let reply = node.local_get("/localapi/v0/status?peers=false");
        let by = Instant::now();
        if reply.is_ok_and(|reply| reply.status == 200 && Node::is_online(&reply.json())) {
            return Some(CameOnline { after, by });
        }
        if by > deadline {
            return None;
        }
        after = asked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_between_the_samples() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.least, spread.lower_quartile, spread.median), (1.0, 1.75, 2.5));
        assert_eq!((spread.upper_quartile, spread.most), (3.25, 4.0));
        let one = Spread::of(&[7.0]);
        assert_eq!((one.least, one.lower_quartile, one.most), (7.0, 7.0, 7.0));
    }

    #[test]
    fn the_cpu_time_of_a_childs_child_counts() {
        let before = cpu_time_of_children();
        let busy = "sh -c 'n=0; while [ $n -lt 200000 ]; do n=$((n + 1)); done'; true";
        Command::new("sh").args(["-c", busy]).status().unwrap();
        assert!(cpu_time_of_children() - before > Duration::from_millis(10));
    }
}
