//! Measures the numbers that must be kept, on real daemons: `tests/measure.sh` runs it on the
//! release build of the program, whose path is its first argument. A second one names a part: `timed`,
//! or `idle`, which only waits, and may do so beside anything else.
//!
//! What is compared was measured in turns within one run, so that a slow machine is slow for both.
//! A time that is missed is measured again, at most four times, and counts together with those
//! before: more of the same says more, and none of it is thrown away.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tailnet_harness::{
    CountingProxy, KeyFile, Node, PATIENCE, Run, Running, Spread, Tailnet, first_online,
    inhabited_tailnet, milliseconds, peak_memory,
};

const JOINS: usize = 61;
const SECOND_RUNS: usize = 101;
const MEMORY_RUNS: usize = 11;
const REBOOTS: usize = 15;
/// After this time of waiting, the timer has reached its longest step.
const WARM_UP: Duration = Duration::from_secs(22);
/// How long a wait is watched; the environment variable WATCH_SECONDS may give another time.
const WATCH: Duration = Duration::from_secs(30);

/// How often a time that is missed is measured again.
const RETRIES: usize = 4;

fn main() -> ExitCode {
    // Cargo adds an argument of its own.
    let mut words = std::env::args_os().skip(1).filter(|word| word != "--bench");
    let (Some(program), part) = (words.next(), words.next()) else {
        eprintln!("which program? Run tests/measure.sh");
        return ExitCode::from(64);
    };
    let program = Path::new(&program);
    const TIMED: [Measure; 4] = [fresh_join, second_run, reboot, size];
    const IDLE: [Measure; 2] = [waiting, staying];
    let measures = match part.as_ref().map(|part| part.to_string_lossy()).as_deref() {
        None => [&TIMED[..], &IDLE].concat(),
        Some("timed") => TIMED.to_vec(),
        Some("idle") => IDLE.to_vec(),
        Some(other) => {
            eprintln!("no part is called {other}: timed or idle");
            return ExitCode::from(64);
        }
    };

    println!("{:<46}{:<27}{:<12}", "what", "median (least to most)", "limit");
    let mut kept = true;
    for measure in measures {
        let mut rows = measure(program);
        for _ in 0..RETRIES {
            if rows.iter().all(|row| row.kept() || !row.is_time) {
                break;
            }
            rows.iter().for_each(|row| println!("{row}"));
            println!(
                "A limit was missed, which a busy machine may be the cause of. With as many more:"
            );
            for (row, more) in rows.iter_mut().zip(measure(program)) {
                row.samples.extend(more.samples);
            }
        }
        rows.iter().for_each(|row| println!("{row}"));
        kept &= rows.iter().all(Row::kept);
    }
    if kept {
        ExitCode::SUCCESS
    } else {
        println!("A limit is missed.");
        ExitCode::FAILURE
    }
}

type Measure = fn(&Path) -> Vec<Row>;

/// One line of the table.
struct Row {
    what: &'static str,
    samples: Vec<f64>,
    limit: Option<f64>,
    unit: &'static str,
    /// Whether it depends on how busy the machine is.
    is_time: bool,
    /// Each sample must keep the limit, not only the middle one.
    each: bool,
}

impl Row {
    fn of(
        what: &'static str,
        samples: Vec<f64>,
        limit: impl Into<Option<f64>>,
        unit: &'static str,
    ) -> Self {
        Self {
            what,
            samples,
            limit: limit.into(),
            unit,
            is_time: matches!(unit, "ms" | "×"),
            each: false,
        }
    }

    fn worst(what: &'static str, samples: Vec<f64>, limit: f64, unit: &'static str) -> Self {
        Self { each: true, ..Self::of(what, samples, limit, unit) }
    }

    fn kept(&self) -> bool {
        let spread = Spread::of(&self.samples);
        let measured = match self.each {
            true => spread.most,
            false => spread.median,
        };
        self.limit.is_none_or(|limit| measured <= limit)
    }

    fn measured(&self) -> String {
        let Spread { median, least, most, .. } = Spread::of(&self.samples);
        match self.unit {
            "requests" => format!("{median}"),
            _ if least == most => format!("{median:.2}"),
            _ => format!("{median:.2} ({least:.2} to {most:.2})"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<46}{:<27}", self.what, self.measured())?;
        let Some(limit) = self.limit else {
            return write!(f, "{}", self.unit);
        };
        let limit = format!("{limit} {}", self.unit);
        let verdict = if self.kept() { "ok" } else { "MISSED" };
        write!(f, "{limit:<12}{verdict}")
    }
}

/// A fresh node joins: the program in turns with plain `tailscale up`.
fn fresh_join(program: &Path) -> Vec<Row> {
    let tailnet = inhabited_tailnet();
    let ours = |node: &Node, key: &Path| on_node(program, &tailnet, node, key);
    let plain = |node: &Node, key: &Path| {
        let server = format!("--login-server={}", tailnet.url());
        node.tailscale_run(["up", &format!("--auth-key=file:{}", key.display()), &server])
    };
    let join = |with: &dyn Fn(&Node, &Path) -> Run| {
        let node = Node::start();
        node.wait_state("NeedsLogin");
        let key = KeyFile::new(tailnet.single_use_key());
        let finished = with(&node, key.path()).run();
        finished.assert_code(0);
        node.wait_online();
        // The tailnet stays as small for the next one.
        tailnet.delete(tailnet.device_id(&node));
        milliseconds(finished.elapsed)
    };
    // Each goes first every other time.
    let pairs: Vec<(f64, f64)> = (0..JOINS)
        .map(|round| {
            if round % 2 == 0 {
                let first = join(&ours);
                (first, join(&plain))
            } else {
                let first = join(&plain);
                (join(&ours), first)
            }
        })
        .collect();
    let each = |value: fn(&(f64, f64)) -> f64| pairs.iter().map(value).collect();
    vec![
        Row::of("fresh join", each(|pair| pair.0), None, "ms"),
        Row::of("  the same by `tailscale up`", each(|pair| pair.1), None, "ms"),
        // To be brought down to 1.05. Measured 1.14 to 1.18, of which the start and what has to be known
        // first take about 5 ms: the command could start before all is known that it needs.
        Row::of("  ratio", each(|pair| pair.0 / pair.1), 1.20, "×"),
        Row::of("  difference", each(|pair| pair.0 - pair.1), 60.0, "ms"),
    ]
}

/// The node is connected already, and there is nothing to do.
fn second_run(program: &Path) -> Vec<Row> {
    let tailnet = Tailnet::start();
    let node = Node::start();
    node.join(&tailnet);

    let ours = || {
        let mut command = Command::new(program);
        command
            .args(["--quiet", "--authkey-file", "/nonexistent", "--socket"])
            .arg(node.socket())
            .arg("--tailscale")
            .arg(node.cli());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Cargo's search path for libraries slows the start of a program that is not static.
        command.env_remove("LD_LIBRARY_PATH");
        command
    };
    let client = bare_client();
    let bare = || {
        let mut command = Command::new(&client);
        command.arg(node.socket());
        command
    };
    let wall = |mut command: Command| {
        let start = Instant::now();
        let status = command.status().expect("the program starts");
        let took = start.elapsed();
        assert!(status.success(), "the program ended with {status}");
        milliseconds(took)
    };
    let proxy = CountingProxy::start(&node);
    Run::new(program)
        .socket(proxy.socket())
        .cli()
        .authkey_file("/nonexistent")
        .run()
        .assert_code(0);
    let requests = proxy.requests().len();

    let pairs: Vec<(f64, f64)> = (0..SECOND_RUNS).map(|_| (wall(ours()), wall(bare()))).collect();
    let each = |value: fn(&(f64, f64)) -> f64| pairs.iter().map(value).collect();
    let memory = (0..MEMORY_RUNS).map(|_| peak_memory(&ours())).collect();
    vec![
        Row::of("already running, wall time", each(|pair| pair.0), 10.0, "ms"),
        Row::of("  the same by a bare client in C", each(|pair| pair.1), None, "ms"),
        // Measured 2.5; the rest is for a busy machine.
        Row::of("  ratio", each(|pair| pair.0 / pair.1), 2.8, "×"),
        Row::of("  peak memory", memory, 4.0, "MiB"),
        Row::of("  requests to tailscaled", vec![requests as f64], 2.0, "requests"),
    ]
}

/// The least that can ask tailscaled for its status.
fn bare_client() -> tempfile::TempPath {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/measure/client.c");
    let client = tempfile::NamedTempFile::new().expect("a temporary file").into_temp_path();
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-O2", "-o"]).arg(&client).arg(source);
    assert!(compiler.status().expect("cc is there").success(), "the client is not built");
    client
}

/// A node that has joined boots: the program and the daemon are started together.
fn reboot(program: &Path) -> Vec<Row> {
    let tailnet = Tailnet::start();
    let node = Node::builder().cached_netmap(true).start();
    node.join(&tailnet);
    let boot = || {
        node.terminate();
        thread::scope(|scope| {
            node.launch_only();
            let online = scope.spawn(|| first_online(&node, PATIENCE));
            let start = Instant::now();
            let finished = on_node(program, &tailnet, &node, Path::new("/nonexistent")).run();
            finished.assert_code(0);
            let exit = start + finished.elapsed;
            let online = online.join().expect("asking does not panic");
            let online = online.expect("the node gets online");
            milliseconds(exit.duration_since(online.by))
        })
    };
    let times = (0..REBOOTS).map(|_| boot()).collect();
    vec![Row::of("reboot, exit after status says online", times, 15.0, "ms")]
}

/// Waits that may last for ever cost next to nothing.
fn waiting(program: &Path) -> Vec<Row> {
    let tailnet = Tailnet::start();
    let approving = Tailnet::start();
    approving.policy(json!({ "approval": true }));
    let unreachable = Tailnet::start();
    let [absent, fresh, unapproved, cut_off] = [
        Node::builder().create(),
        Node::start(),
        Node::start(),
        Node::builder().cached_netmap(true).start(),
    ];
    cut_off.join(&unreachable);
    cut_off.terminate();
    unreachable.fault("down");
    cut_off.launch();
    let key = KeyFile::new(approving.single_use_key());
    let none = Path::new("/nonexistent");
    let wait = |tailnet: &Tailnet, node: &Node, key: &Path, status: &str| {
        let run = on_node(program, tailnet, node, key)
            .args(["--authkey-wait", "infinity"])
            .limit(Duration::MAX)
            .spawn();
        run.wait_status_text(status);
        run
    };
    let runs = [
        wait(&tailnet, &absent, none, "waiting for tailscaled"),
        wait(&tailnet, &fresh, none, "waiting for the auth key file"),
        wait(&approving, &unapproved, key.path(), "to approve this device"),
        wait(&unreachable, &cut_off, none, "waiting for the control server"),
    ];

    thread::sleep(WARM_UP);
    let seconds = std::env::var("WATCH_SECONDS").map(|text| text.parse().expect("a number"));
    let watched = seconds.map_or(WATCH, Duration::from_secs);
    let look = || runs.each_ref().map(|run| Upkeep::of(run.pid()));
    let (start, before) = (Instant::now(), look());
    thread::sleep(watched);
    let (after, took) = (look(), start.elapsed());
    assert!(runs.iter().all(Running::is_alive), "a wait has ended");

    let each = |of: &dyn Fn(&Upkeep, &Upkeep) -> f64| -> Vec<f64> {
        before.iter().zip(&after).map(|(one, other)| of(one, other)).collect()
    };
    let cpu = |one: &Upkeep, other: &Upkeep| {
        100.0 * (other.cpu - one.cpu).as_secs_f64() / took.as_secs_f64()
    };
    let wakes =
        |one: &Upkeep, other: &Upkeep| (other.wakes - one.wakes) as f64 * 60.0 / took.as_secs_f64();
    let memory = |one: &Upkeep, other: &Upkeep| other.memory - one.memory;
    let files = |one: &Upkeep, other: &Upkeep| other.files - one.files;
    vec![
        Row::worst("waiting: share of a core", each(&cpu), 0.1, "%"),
        Row::worst("  wake-ups a minute", each(&wakes), 240.0, "times"),
        Row::worst("  memory growth", each(&memory), 64.0, "KiB"),
        Row::worst("  open files more", each(&files), 0.0, "files"),
    ]
}

/// A run that stays with a connected node, watched for two of its looks, which come every two minutes.
fn staying(program: &Path) -> Vec<Row> {
    const WATCHED: Duration = Duration::from_secs(245);
    let (tailnet, node) = (Tailnet::start(), Node::start());
    tailnet.node_keys_live(Duration::from_secs(180 * 24 * 3600));
    let key = KeyFile::new(tailnet.reusable_key());
    let run = on_node(program, &tailnet, &node, key.path());
    let run = run.arg("--stay").limit(Duration::MAX).spawn();
    run.wait_status_text("; node key expires ");
    // What the login has left is told at first.
    thread::sleep(Duration::from_secs(10));
    let (start, before) = (Instant::now(), Upkeep::of(run.pid()));
    thread::sleep(WATCHED);
    let (after, took) = (Upkeep::of(run.pid()), start.elapsed());
    assert!(run.is_alive(), "it has ended");
    let minutes = took.as_secs_f64() / 60.0;
    let wakes = (after.wakes - before.wakes) as f64 / minutes;
    let peak = run.peak_rss_kib() as f64 / 1024.0;
    vec![
        // The answer to a look may come in two parts where the machine is busy.
        Row { is_time: true, ..Row::of("staying: wake-ups a minute", vec![wakes], 4.0, "times") },
        Row::worst("  peak memory", vec![peak], 5.0, "MiB"),
        Row::worst("  memory growth", vec![after.memory - before.memory], 64.0, "KiB"),
        Row::worst("  open files more", vec![after.files - before.files], 0.0, "files"),
    ]
}

/// What a process that waits has used so far.
struct Upkeep {
    cpu: Duration,
    /// How often it has gone to sleep, which is as often as it was woken.
    wakes: u64,
    /// Resident, in KiB.
    memory: f64,
    files: f64,
}

impl Upkeep {
    fn of(process: u32) -> Self {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{process}/{file}")).expect("the program runs")
        };
        let status = read("status");
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            value.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
        };
        let schedstat = read("schedstat");
        let cpu = schedstat.split(' ').next().and_then(|text| text.parse().ok());
        let files = fs::read_dir(format!("/proc/{process}/fd")).expect("the program runs");
        Self {
            cpu: Duration::from_nanos(cpu.expect("nanoseconds")),
            wakes: number("voluntary_ctxt_switches:"),
            memory: number("VmRSS:") as f64,
            files: files.count() as f64,
        }
    }
}

fn size(program: &Path) -> Vec<Row> {
    let bytes = program.metadata().expect("the program is there").len();
    let megabytes = bytes as f64 / 1e6;
    vec![Row::of("size of the program", vec![megabytes], 2.0, "MB")]
}

/// The program as an admin would run it.
fn on_node(program: &Path, tailnet: &Tailnet, node: &Node, key: &Path) -> Run {
    Run::new(program).node(node).cli().authkey_file(key).login_server(tailnet.url())
}
