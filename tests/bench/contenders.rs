//! Who is compared, and how each is started.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tailnet_harness::{Binaries, Node, Run, Tailnet};
use tempfile::TempDir;

/// A way to join a machine to its tailnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The program under test.
    Ours,
    /// Plain `tailscale up`: less than that cannot join.
    Up,
    /// `tests/peers/seed.sh`
    Script,
    /// `tests/peers/nixpkgs.sh`
    Nixpkgs,
}

impl Contender {
    /// All, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Ours, Self::Up, Self::Script, Self::Nixpkgs];

    /// Its name in the chart, and without the backquotes in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "tailscale-autoconnect",
            Self::Up => "tailscale up",
            Self::Script => "the script",
            Self::Nixpkgs => "nixpkgs’ service",
        }
    }

    /// Its place in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The script that it is, if it is one.
    pub fn script(self) -> Option<PathBuf> {
        let name = match self {
            Self::Ours | Self::Up => return None,
            Self::Script => "seed.sh",
            Self::Nixpkgs => "nixpkgs.sh",
        };
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
        Some(peers.join(name))
    }
}

/// What all contenders find when they are started.
pub struct Field {
    /// The program under test.
    pub program: PathBuf,
    /// The `tailscale` command.
    pub cli: PathBuf,
    /// Whether one round of each has to do: it shows that all works, and compares nothing.
    pub quick: bool,
    /// A folder in `PATH`, whose `tailscale` is that of the node that is named in the environment:
    /// the scripts know of one tailscaled only.
    bin: TempDir,
}

const SOCKET: &str = "BENCH_SOCKET";

impl Field {
    pub fn new(program: &Path, quick: bool) -> Self {
        let cli = Binaries::chosen().tailscale();
        let bin = TempDir::new().expect("a temporary folder can be made");
        let tailscale = bin.path().join("tailscale");
        let script = format!("#!/bin/sh\nexec '{}' --socket=\"${SOCKET}\" \"$@\"\n", cli.display());
        fs::write(&tailscale, script).expect("a folder of our own");
        fs::set_permissions(&tailscale, fs::Permissions::from_mode(0o755)).expect("it is ours");
        Self { program: program.to_owned(), cli, quick, bin }
    }

    /// How many rounds there are to be, where so many are wanted.
    pub fn rounds(&self, wanted: usize) -> usize {
        if self.quick { 1 } else { wanted }
    }

    /// A contender, as its unit would start it; systemd listens.
    pub fn run(&self, who: Contender, tailnet: &Tailnet, node: &Node, key: &Path) -> Run {
        let [program, args @ ..] = &self.words(who, tailnet, node, key)[..] else {
            unreachable!("a program is the first word")
        };
        self.env(node)
            .into_iter()
            .fold(Run::new(program).args(args), |run, (name, value)| run.env(name, value))
    }

    /// The same as a plain child, for what is too short for [`Run`]'s own doings.
    pub fn command(
        &self,
        who: Contender,
        tailnet: &Tailnet,
        node: &Node,
        key: &Path,
        notify: &Path,
    ) -> Command {
        let words = self.words(who, tailnet, node, key);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .envs(self.env(node))
            .env("NOTIFY_SOCKET", notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn words(&self, who: Contender, tailnet: &Tailnet, node: &Node, key: &Path) -> Vec<OsString> {
        let server = OsString::from(format!("--login-server={}", tailnet.url()));
        let mut words: Vec<OsString> = Vec::new();
        match who {
            Contender::Ours => {
                words.push((&self.program).into());
                words.extend(["--socket".into(), node.socket().into()]);
                words.extend(["--tailscale".into(), (&self.cli).into()]);
                words.extend(["--authkey-file".into(), key.into()]);
            }
            Contender::Up => {
                words.push((&self.cli).into());
                words.extend(["--socket".into(), node.socket().into(), "up".into()]);
                words.push(format!("--auth-key=file:{}", key.display()).into());
            }
            Contender::Script | Contender::Nixpkgs => {
                words.extend(who.script().map(OsString::from));
                words.push(key.into());
            }
        }
        words.push(server);
        words
    }

    fn env(&self, node: &Node) -> [(&'static str, OsString); 2] {
        let mut path = OsString::from(self.bin.path());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        [("PATH", path), (SOCKET, node.socket().into())]
    }
}
