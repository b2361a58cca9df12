//! The machines themselves leave nothing behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tailnet_harness::Tailnet;

use crate::machine::{Debian, Machine, keeper};

/// Whatever of a machine can be seen from outside: cgroups, mounts and processes.
fn traces(name: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<String> =
        mounts.lines().filter(|line| line.contains(name)).map(str::to_owned).collect();
    folders_named(Path::new("/sys/fs/cgroup"), name, 4, &mut found);
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let file = |file| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        if file("cgroup").contains(name) || file("cmdline").contains(name) {
            found.push(format!("{}: {}", process.path().display(), file("cmdline")));
        }
    }
    let nspawn = Path::new("/run/systemd/nspawn");
    folders_named(nspawn, name, 4, &mut found);
    found
}

fn folders_named(folder: &Path, name: &str, depth: u32, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        if entry.file_name().to_string_lossy().contains(name) {
            found.push(path.display().to_string());
        } else if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders_named(&path, name, depth - 1, found);
        }
    }
}

#[test]
fn a_machine_that_is_dropped_while_it_runs_leaves_nothing() {
    let tailnet = Tailnet::start_apart();
    let mut machine = Machine::new(Debian::Trixie, &tailnet);
    machine.boot_to_the_end();
    let name = machine.name().to_owned();
    assert_ne!(traces(&name), Vec::<String>::new(), "the traces can be seen");

    drop(machine);

    // What was killed may still have to be reaped.
    Machine::bare(Debian::Trixie, &tailnet)
        .wait("nothing of it", || traces(&name).is_empty().then_some(()));
}

#[test]
fn a_machine_whose_test_is_killed_leaves_nothing() {
    let tailnet = Tailnet::start_apart();
    let waiting = Machine::bare(Debian::Trixie, &tailnet);
    let name = format!("killed{}", std::process::id());
    let kept = keeper(Debian::Trixie, &name, &tailnet.network());
    // In place of a test: it asks for a boot and is killed.
    let mut test = Command::new("sh")
        .args(["-c", "(echo boot; exec sleep 300) | \"$@\"", "sh"])
        .arg(kept.get_program())
        .args(kept.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("sh is there");
    let output = BufReader::new(test.stdout.take().expect("its output is a pipe"));
    let mut lines = output.lines().map_while(Result::ok);
    let booted = lines.find(|line| line.starts_with("booted "));
    assert!(booted.is_some());
    waiting.wait("the machine", || (traces(&name).len() > 8).then_some(()));

    let killed =
        Command::new("kill").args(["-s", "KILL", "--", &format!("-{}", test.id())]).status();
    assert!(killed.is_ok_and(|status| status.success()));
    let _ = test.wait();

    waiting.wait("nothing of it", || traces(&name).is_empty().then_some(()));
}
