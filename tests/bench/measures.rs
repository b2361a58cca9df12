//! The situations that the contenders are put into, and what is measured there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tailnet_harness::{
    CameOnline, Finished, KeyFile, Node, Running, Tailnet, cpu_time_of_children, first_online,
    inhabited_tailnet, milliseconds, peak_memory,
};

use crate::contenders::{Contender, Field};
use crate::notify::NotifySocket;
use crate::results::{Row, Sample, Unit};

pub const NO_OP: &str = "already running: wall time";
pub const MEMORY: &str = "already running: peak memory";

// Each a multiple of four, so that each contender is the first as often as the others.
const JOINS: usize = 16;
const NO_OPS: usize = 16;
const MEMORY_RUNS: usize = 4;
const REBOOTS: usize = 10;
const LATE_REBOOTS: usize = 3;
const CROWDS: usize = 3;

/// How many nodes join at once; fewer if the memory isn't there.
const CROWD: usize = 50;
/// What a node, and what joins it, take while they do.
const MIB_PER_NODE: usize = 120;
/// How long a crowd may take.
const CROWD_LIMIT: Duration = Duration::from_secs(60);

/// How late the control server is when a node boots: later than the script's two seconds.
const LATE: Duration = Duration::from_secs(3);
/// How long a node may take to be back.
const BACK_LIMIT: Duration = Duration::from_secs(10);

/// No further round is begun when a measure has taken this long, so that all stays bounded on a slow
/// machine. The table's notes say how many there were.
const ENOUGH: Duration = Duration::from_secs(100);

/// Lets all contenders take a turn in each round, beginning with another one each time.
fn in_turns(field: &Field, rounds: usize, mut turn: impl FnMut(Contender)) {
    let start = Instant::now();
    for round in 0..field.rounds(rounds) {
        if start.elapsed() > ENOUGH {
            break;
        }
        let mut order = Contender::ALL;
        order.rotate_left(round % Contender::ALL.len());
        order.into_iter().for_each(&mut turn);
    }
}

/// From the start of a contender on a fresh node to its end.
pub fn fresh_join(field: &Field) -> Vec<Row> {
    let mut row = Row::new(
        "fresh join",
        Unit::Milliseconds,
        "from the start to the exit on a new node with a good auth key; 40 other devices are on the tailnet",
    );
    let tailnet = inhabited_tailnet();
    in_turns(field, JOINS, |who| {
        let node = Node::start();
        node.wait_state("NeedsLogin");
        let key = KeyFile::new(tailnet.single_use_key());
        let finished = field.run(who, &tailnet, &node, key.path()).run();
        let sample = if finished.code == Some(0) && is_back(&node) {
            Sample::Took(milliseconds(finished.elapsed))
        } else {
            Sample::Failed
        };
        row.add(who, sample);
        // The tailnet stays as small for the next one.
        if let Some(device) = tailnet.device(&node) {
            tailnet.delete(device.id);
        }
    });
    vec![row]
}

/// A node that is on the tailnet, and the auth key that it joined with: spent, as in real life.
struct Joined {
    node: Node,
    key: KeyFile,
    systemd: NotifySocket,
}

impl Joined {
    fn new(tailnet: &Tailnet) -> Self {
        let systemd = NotifySocket::new();
        let node = Node::builder().cached_netmap(true).env("NOTIFY_SOCKET", systemd.path()).start();
        let key = KeyFile::new(tailnet.single_use_key());
        node.join_with(tailnet, &[&format!("--auth-key=file:{}", key.path().display())]);
        Self { node, key, systemd }
    }

    /// One for each contender.
    fn for_all(tailnet: &Tailnet) -> [Self; 4] {
        Contender::ALL.map(|_| Self::new(tailnet))
    }

    /// Starts the daemon, and waits as systemd does: until it says that it is ready.
    fn boot(&self) {
        self.systemd.forget();
        self.node.launch_only();
        self.systemd.wait_ready();
    }

    /// What came of it. A node that was knocked off its tailnet is put right again.
    fn judge(&self, code: Option<i32>, value: Option<f64>) -> Sample {
        if !is_back(&self.node) {
            self.node
                .local_request("POST", "/localapi/v0/start", Some(&json!({ "UpdatePrefs": null })))
                .expect("tailscaled answers");
            self.node.wait_online();
            return Sample::KnockedOff;
        }
        match value {
            Some(value) if code == Some(0) && value < 0.0 => Sample::TooEarly,
            Some(value) if code == Some(0) => Sample::Took(value),
            _ => Sample::Failed,
        }
    }
}

/// Whether the node is on the tailnet, or soon is.
fn is_back(node: &Node) -> bool {
    is_back_by(node, Instant::now() + BACK_LIMIT)
}

/// Whether the node is on the tailnet by then; it isn't waited for if its login was refused.
fn is_back_by(node: &Node, deadline: Instant) -> bool {
    loop {
        let status = node.status();
        if Node::is_online(&status) {
            return true;
        }
        let refused = status["Health"].to_string().contains("already used");
        if refused || Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// There is nothing to do: the node is connected.
pub fn already_running(field: &Field) -> Vec<Row> {
    let mut wall = Row::new(
        NO_OP,
        Unit::Milliseconds,
        "the node is connected and the key in the file is spent, as it is in real life. \
         `tailscale up --auth-key` sends it all the same",
    );
    let mut cpu = Row::new(
        "already running: CPU time",
        Unit::Milliseconds,
        "user and system, of all its processes; not tailscaled's",
    );
    let mut memory = Row::new(
        MEMORY,
        Unit::Mebibytes,
        "of its greatest process, not the sum of all. In the column of `tailscale up` stands \
         `tailscale status` alone, the least that the `tailscale` command takes",
    );
    let tailnet = Tailnet::start();
    let nodes = Joined::for_all(&tailnet);
    let command = |who: Contender| {
        let on = &nodes[who.index()];
        let key = on.key.path();
        field.command(who, &tailnet, &on.node, key, on.systemd.path())
    };
    in_turns(field, NO_OPS, |who| {
        let mut command = command(who);
        let used = cpu_time_of_children();
        let start = Instant::now();
        let status = command.status().expect("the contender starts");
        let took = start.elapsed();
        let used = cpu_time_of_children() - used;
        let sample = nodes[who.index()].judge(status.code(), Some(milliseconds(took)));
        if let Sample::Took(_) = sample {
            cpu.add(who, Sample::Took(milliseconds(used)));
        }
        wall.add(who, sample);
    });
    in_turns(field, MEMORY_RUNS, |who| {
        let command = match who {
            Contender::Up => {
                let mut status = Command::new(&field.cli);
                status.arg("--socket").arg(nodes[who.index()].node.socket());
                status.args(["status", "--json", "--peers=false"]);
                status
            }
            _ => command(who),
        };
        memory.add(who, Sample::Took(peak_memory(&command)));
    });
    vec![wall, cpu, memory]
}

/// A node that has joined boots.
pub fn reboot(field: &Field) -> Vec<Row> {
    let mut row = Row::new(
        "reboot: exit after online",
        Unit::Milliseconds,
        "the contender is started when tailscaled has told systemd that it is ready; the key in the \
         file is spent",
    );
    let tailnet = Tailnet::start();
    let nodes = Joined::for_all(&tailnet);
    in_turns(field, REBOOTS, |who| {
        let Joined { node, key, .. } = &nodes[who.index()];
        node.terminate();
        nodes[who.index()].boot();
        thread::scope(|scope| {
            let online = scope.spawn(|| first_online(node, BACK_LIMIT));
            let start = Instant::now();
            let finished = field.run(who, &tailnet, node, key.path()).run();
            let exit = start + finished.elapsed;
            // It may have been online for a moment, so what it comes to is looked at after that.
            let online = online.join().expect("asking does not panic");
            let lag = online.map(|online| lag(exit, online));
            row.add(who, nodes[who.index()].judge(finished.code, lag));
        });
    });
    vec![row]
}

/// A node that has joined boots, and the control server can be reached only some seconds later.
pub fn late_control_server(field: &Field) -> Vec<Row> {
    let mut row = Row::new(
        "reboot, control server 3 s late: exit after online",
        Unit::Milliseconds,
        "as before, and the control server cannot be reached until 3 s after the start",
    );
    let tailnet = Tailnet::start();
    let nodes = Joined::for_all(&tailnet);
    // They do nothing but wait, so they can do it at once.
    for _ in 0..field.rounds(LATE_REBOOTS) {
        nodes.iter().for_each(|on| on.node.terminate());
        tailnet.fault("down");
        nodes.iter().for_each(Joined::boot);
        let start = Instant::now();
        let runs = Contender::ALL.map(|who| {
            let on = &nodes[who.index()];
            field.run(who, &tailnet, &on.node, on.key.path()).spawn()
        });
        thread::sleep(LATE.saturating_sub(start.elapsed()));
        tailnet.lift_faults();
        let online = thread::scope(|scope| {
            let waits = nodes
                .each_ref()
                .map(|Joined { node, .. }| scope.spawn(|| first_online(node, BACK_LIMIT)));
            waits.map(|wait| wait.join().expect("asking does not panic"))
        });
        for ((who, run), online) in Contender::ALL.into_iter().zip(runs).zip(online) {
            let finished = end_by(run, start + CROWD_LIMIT);
            let lag = online.map(|online| lag(start + finished.elapsed, online));
            row.add(who, nodes[who.index()].judge(finished.code, lag));
        }
    }
    vec![row]
}

/// How many milliseconds the exit came after the node was online: what it is at most. So if it's less
/// than nothing, the exit surely came first.
fn lag(exit: Instant, online: CameOnline) -> f64 {
    let from = online.after;
    milliseconds(exit.saturating_duration_since(from))
        - milliseconds(from.saturating_duration_since(exit))
}

/// Many nodes join at once.
pub fn crowd(field: &Field) -> Vec<Row> {
    let mut row = Row::new(
        "50 nodes join at once: until all are online",
        Unit::Milliseconds,
        "all on this machine, each with a key of its own; until the control server sees all of them",
    );
    let mut failures = Row::new("50 nodes join at once: failures", Unit::Failures, "");
    let room = available_mib() / MIB_PER_NODE;
    assert!(room >= CROWD, "{CROWD} nodes at once need {} MiB of memory", CROWD * MIB_PER_NODE);
    in_turns(field, CROWDS, |who| {
        let tailnet = Tailnet::start();
        let nodes: Vec<Node> = (0..CROWD).map(|_| Node::builder().create()).collect();
        nodes.iter().for_each(Node::launch_only);
        for node in &nodes {
            node.wait_state("NeedsLogin");
        }
        let keys: Vec<KeyFile> =
            nodes.iter().map(|_| KeyFile::new(tailnet.single_use_key())).collect();

        let start = Instant::now();
        let deadline = start + CROWD_LIMIT;
        let runs: Vec<Running> = nodes
            .iter()
            .zip(&keys)
            .map(|(node, key)| {
                field.run(who, &tailnet, node, key.path()).limit(2 * CROWD_LIMIT).spawn()
            })
            .collect();
        let mut online = 0;
        while online < CROWD && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            online = tailnet.state().online();
        }
        let took = start.elapsed();
        for (node, run) in nodes.iter().zip(runs) {
            let joined = end_by(run, deadline).code == Some(0) && is_back_by(node, deadline);
            let sample = if joined { Sample::Took(0.0) } else { Sample::Failed };
            failures.add(who, sample);
        }
        row.add(
            who,
            if online == CROWD { Sample::Took(milliseconds(took)) } else { Sample::Failed },
        );
    });
    vec![row, failures]
}

/// Waits for its end until then, and ends it.
fn end_by(run: Running, deadline: Instant) -> Finished {
    while run.is_alive() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
    if run.is_alive() {
        run.kill();
    }
    run.wait()
}

fn available_mib() -> usize {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok()
        })
        .map_or(0, |kib| kib / 1024)
}

/// What has to be put on a machine that has tailscale, bash, coreutils and systemd.
pub fn size(field: &Field) -> Vec<Row> {
    let mut row = Row::new(
        "size on disk",
        Unit::Megabytes,
        "beside tailscale, bash, coreutils and systemd. Of the scripts: the script, jq and the \
         libraries that come with jq",
    );
    let bytes = |path: &Path| {
        let metadata = path.metadata();
        metadata.unwrap_or_else(|error| panic!("{}: {error}", path.display())).len()
    };
    let jq: u64 = jq().iter().map(|path| bytes(path)).sum();
    for who in Contender::ALL {
        let size = match who {
            Contender::Ours => bytes(&field.program),
            Contender::Up => continue,
            Contender::Script | Contender::Nixpkgs => {
                jq + who.script().map_or(0, |script| bytes(&script))
            }
        };
        row.add(who, Sample::Took(size as f64 / 1e6));
    }
    vec![row]
}

/// jq and its own shared libraries: those of the C library are there already.
fn jq() -> Vec<PathBuf> {
    let output = |command: &mut Command| {
        let output = command.output().expect("it starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let jq = output(Command::new("sh").args(["-c", "command -v jq"]));
    let jq = PathBuf::from(jq.trim());
    assert!(jq.is_file(), "jq is missing");
    // As in `libjq.so.1 => /usr/lib/libjq.so.1 (0x…)`. A jq that was linked statically has none.
    let linked = output(Command::new("ldd").arg(&jq));
    let libraries = linked.lines().filter_map(|line| {
        let (name, rest) = line.trim().split_once(" => ")?;
        let of_c = ["libc.", "libm.", "libpthread.", "libdl.", "ld-linux"];
        let path = rest.split_whitespace().next()?;
        (!of_c.iter().any(|start| name.starts_with(start))).then(|| PathBuf::from(path))
    });
    [jq.clone()].into_iter().chain(libraries).collect()
}
