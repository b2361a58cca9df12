//! A place of its own for a daemon: a network with one cable, which can be pulled, and a disk that
//! can be full or read-only. Only root can make one. The kernel takes all of it away when its last
//! process has ended, however that happens.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::PATIENCE;
use crate::process::{self, Process};

/// Where a [`Tailnet`](crate::Tailnet) on the other end of the cable is reached.
pub(crate) const CONTROL_ADDRESS: &str = "10.77.0.1";
/// The address of the cell's own end.
const ADDRESS: &str = "10.77.0.2/24";

/// Small enough to be filled in no time, and large enough for a daemon's state.
const DISK_SIZE: &str = "size=1m";

/// A network namespace and a mount namespace, held by a process that does nothing.
pub struct Cell {
    holder: Process,
}

impl Cell {
    /// A cell without a cable, on the disks of everybody.
    #[allow(clippy::new_without_default, reason = "it starts a process")]
    pub fn new() -> Self {
        let mut command = process::command(Path::new("unshare"), None);
        command
            .args(["--net", "--mount", "--"])
            .args(["sh", "-ec", "ip link set lo up; echo; exec cat"])
            // It ends when this pipe is closed.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut holder = Process::spawn(command);
        let stdout = holder.child.stdout.take().expect("its output is a pipe");
        let ready = process::wait_readable(&stdout, PATIENCE);
        assert!(ready && holder.is_alive(), "cannot make namespaces");
        // Kept, or it would end of a broken pipe.
        holder.child.stdout = Some(stdout);
        Self { holder }
    }

    /// The command that runs another in the cell.
    pub(crate) fn entrance(&self) -> Vec<OsString> {
        let pid = self.holder.pid();
        vec![
            "nsenter".into(),
            format!("--net=/proc/{pid}/ns/net").into(),
            format!("--mount=/proc/{pid}/ns/mnt").into(),
            "--".into(),
        ]
    }

    /// Takes the end `eth0` of a cable out of another network.
    pub(crate) fn plug_in(&self, network: &Path) {
        let pid = self.holder.pid().to_string();
        let network = format!("--net={}", network.display());
        run(["nsenter", &network, "--", "ip", "link", "set", "eth0", "netns", &pid])
            .unwrap_or_else(|error| panic!("{error}"));
        self.must(&["ip", "addr", "add", ADDRESS, "dev", "eth0"]);
        self.link_up();
    }

    /// Takes the interface down. Its routes go with it.
    pub fn link_down(&self) {
        self.must(&["ip", "link", "set", "eth0", "down"]);
    }

    /// Brings the interface up, with its default route.
    pub fn link_up(&self) {
        self.must(&["ip", "link", "set", "eth0", "up"]);
        self.must(&["ip", "route", "replace", "default", "via", CONTROL_ADDRESS]);
    }

    /// Puts a small disk of its own on this folder, seen in the cell only.
    pub fn mount(&self, folder: &Path) {
        fs::create_dir_all(folder).expect("a folder of our own");
        let folder = folder.to_str().expect("a plain path");
        self.must(&["mount", "-t", "tmpfs", "-o", DISK_SIZE, "tmpfs", folder]);
    }

    /// Fills that disk.
    pub fn fill(&self, folder: &Path) {
        let mut file = fs::File::create(self.filler(folder)).expect("the disk can be written");
        let mut size = 64 * 1024;
        while size > 0 {
            // The rest goes in ever smaller pieces.
            if file.write_all(&vec![b'x'; size]).is_err() {
                size /= 2;
            }
        }
    }

    /// Makes room on it again.
    pub fn make_room(&self, folder: &Path) {
        let _ = fs::remove_file(self.filler(folder));
    }

    /// Makes that disk read-only, or writable again. False if that cannot be now: a file on it is
    /// being written.
    pub fn read_only(&self, folder: &Path, read_only: bool) -> bool {
        let how = if read_only { "remount,ro" } else { "remount,rw" };
        let folder = folder.to_str().expect("a plain path");
        let deadline = Instant::now() + Duration::from_millis(200);
        while let Err(error) = self.run(&["mount", "-o", how, folder]) {
            if Instant::now() > deadline {
                assert!(read_only, "{error}");
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Where that disk is seen from outside.
    pub fn inside(&self, folder: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        root.join(folder.strip_prefix("/").expect("an absolute path"))
    }

    fn filler(&self, folder: &Path) -> PathBuf {
        self.inside(folder).join("filler")
    }

    fn must(&self, words: &[&str]) {
        self.run(words).unwrap_or_else(|error| panic!("{error}"));
    }

    fn run(&self, words: &[&str]) -> io::Result<()> {
        run(self.entrance().into_iter().chain(words.iter().map(OsString::from)))
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.holder.kill();
    }
}

fn run<W: Into<OsString>>(words: impl IntoIterator<Item = W>) -> io::Result<()> {
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    let mut command = process::command(Path::new(&words[0]), None);
    command.args(&words[1..]);
    command.stderr(Stdio::piped());
    let mut process = Process::spawn(command);
    let mut said = String::new();
    if let Some(mut stderr) = process.child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    match process.wait(PATIENCE) {
        Some(status) if status.success() => Ok(()),
        _ => Err(io::Error::other(format!("{words:?}: {}", said.trim()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Node, Tailnet, is_root};

    #[test]
    fn a_node_in_a_cell_joins_over_its_cable_and_loses_its_disk_with_it() {
        if !is_root() {
            return;
        }
        let cell = Cell::new();
        let tailnet = Tailnet::start_linked(&cell);
        let node = Node::builder().cell(&cell).create();
        cell.mount(&node.state_dir());
        node.launch();
        node.join(&tailnet);
        // Seen in the cell only.
        assert_eq!(fs::read_dir(node.state_dir()).unwrap().count(), 0);

        cell.link_down();
        node.restart();
        assert!(!Node::is_online(&node.status()));
        cell.link_up();
        node.wait_online();

        cell.fill(&node.state_dir());
        assert!(fs::write(cell.filler(&node.state_dir()).with_file_name("one"), "more").is_err());
        cell.make_room(&node.state_dir());
        assert!(cell.read_only(&node.state_dir(), true));
        assert!(fs::write(cell.filler(&node.state_dir()), "x").is_err());
        assert!(cell.read_only(&node.state_dir(), false));
        node.restart();
        node.wait_online();
    }
}
