//! What a schedule has come to: the invariants, and what is counted.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tailnet_harness::State;

use crate::play::{Content, HANG, Settled, World, flags_of};
use crate::schedule::{Bad, Kind, Mistake, Place, Plan, Scene};
use crate::unit::{End, is_final};

/// How far from each other a fault and the use of a key may be seen, and belong together: the
/// register is under way, and the node key is saved with the first network map.
const TOGETHER: Duration = Duration::from_secs(2);

/// More lines than a run says at `-vv` that waits between its steps.
const TALKATIVE: usize = 5000;

/// The result of one schedule.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub seed: u64,
    pub contender: String,
    pub scene: String,
    /// The invariants that do not hold. Those of the peers are counted only.
    pub failures: Vec<String>,
    /// It should have been on the tailnet when the faults were over, and was not.
    pub off_at_first: bool,
    /// Nor was it after one more start.
    pub off: bool,
    /// A single-use key is spent and the node is not in: it needs a new key.
    pub burnt: bool,
    /// That was tailscale's doing.
    pub burnt_by_tailscale: bool,
    pub hang: bool,
    pub lost: Vec<String>,
    /// The disk failed, and tailscaled has forgotten after a start what it could not write to it.
    pub lost_by_disk: bool,
    /// From the end of the faults until it was online.
    pub recovery: Option<f64>,
    pub seconds: f64,
    pub fired: Vec<String>,
    /// All there is to know, if an invariant does not hold.
    pub report: String,
}

pub fn judge(
    world: &mut World,
    first: &Settled,
    second: &Settled,
    quiet: bool,
    touched: Option<String>,
    took: Duration,
) -> Outcome {
    let state = world.tailnet.state();
    let hopeless = match world.schedule.scene {
        Scene::Hopeless(bad) => Some(bad),
        _ => None,
    };
    let mut failures = Vec::new();

    // 1: on the tailnet, if there is a way.
    let device = world.tailnet.device(&world.node);
    let valid_node_key = device.is_some_and(|device| !device.expired);
    let in_file = match &world.content {
        Content::Text(key) => state.key(key),
        Content::Absent => Default::default(),
    };
    let good_key = !world.good_keys.is_empty() && (world.schedule.reusable || in_file.uses == 0);
    let spent = !world.good_keys.is_empty() && !good_key;
    let burnt = hopeless.is_none() && !second.online && spent && !valid_node_key;
    let by_tailscale = burnt && is_explained(world);
    let off = hopeless.is_none() && !second.online && !burnt;
    let off_at_first = hopeless.is_none() && !first.online && first.excuse.is_none() && !burnt;
    if off_at_first {
        failures.push(format!("off the tailnet: {}", first.state));
    }
    if off {
        failures.push(format!("off the tailnet after one more start: {}", second.state));
    }
    if burnt && !by_tailscale {
        failures.push("the key is spent, no fault explains it, and the node isn't in".to_owned());
    }
    if hopeless.is_some() && second.online {
        failures.push("on the tailnet without a good key: the checker is wrong".to_owned());
    }

    // 2: the settings are what the admin said.
    let joined = hopeless.is_none() && !burnt;
    let mut lost: Vec<String> = lost_settings(world, joined);
    lost.extend(flags_unlike(world).filter(|_| joined));
    lost.extend(touched);
    let disks = [Kind::DiskFull, Kind::DiskReadOnly];
    let disk_failed = world.fired.iter().any(|kind| disks.contains(kind));
    let lost_by_disk = !lost.is_empty() && world.schedule.place == Place::OwnDisk && disk_failed;
    if !lost.is_empty() && !lost_by_disk {
        failures.push(format!("settings lost: {}", lost.join(", ")));
    }
    if second.online && !disk_failed {
        failures.extend(record_left(world));
    }

    // 3: keys are sent when they are needed.
    failures.extend(keys_sent_in_vain(world, &state));
    failures.extend(given_up(world, spent));

    // 4 and 5: no key is seen, no process left.
    failures.extend(world.unit.leaks.iter().map(|place| format!("the key in the {place}")));
    for end in &world.unit.ends {
        failures.extend(traces(world, end));
    }
    failures.extend(
        secrets(world)
            .iter()
            .flat_map(|secret| tailnet_harness::scan_files_for(&world.record, secret))
            .map(|path| format!("the key in {}", path.display())),
    );

    // 6: without a good key, the documented end, and quiet.
    if let Some(bad) = hopeless {
        failures.extend(wrong_end(bad, world.unit.ends.last()));
        if !quiet {
            failures.push("the daemon goes on with the key".to_owned());
        }
    }

    // 7: within bounds.
    let hang =
        first.hangs || second.hangs || world.unit.ends.iter().any(|end| end.start_took > HANG);
    if hang {
        failures.push("a start did not end".to_owned());
    }
    if world.unit.ends.iter().any(|end| end.overran) {
        failures.push("it did not end on SIGTERM".to_owned());
    }
    if second.online && second.at_work {
        failures.push("it is at work though the node is online".to_owned());
    }

    if !world.contender.is_ours() {
        failures.clear();
    }
    let report = match failures.is_empty() {
        true => String::new(),
        false => report(world, &failures, &state, first, second),
    };
    Outcome {
        seed: world.schedule.seed,
        contender: world.contender.name().to_owned(),
        scene: world.schedule.scene.to_string(),
        failures,
        off_at_first,
        off,
        burnt,
        burnt_by_tailscale: by_tailscale,
        hang,
        lost,
        lost_by_disk,
        recovery: first.online.then_some(first.took.as_secs_f64()),
        seconds: took.as_secs_f64(),
        fired: world.fired.iter().map(name_of).collect(),
        report,
    }
}

/// A kind of fault without its particulars.
pub fn name_of(kind: &Kind) -> String {
    match kind {
        Kind::RateLimited(_) => "registers rate limited".to_owned(),
        Kind::AdminSet(_) => "`tailscale set`".to_owned(),
        Kind::UnitKilledAgain(_) => "each run killed".to_owned(),
        Kind::RegistersFail(..) => "registers fail".to_owned(),
        Kind::RegisterStatus(_) => "registers answered with a status".to_owned(),
        kind => kind.to_string(),
    }
}

/// Whether something happened around the use of a key that makes tailscale lose what it got for it:
/// the answer, or the node key before it was saved. An admin's command in mid-login does that too.
fn is_explained(world: &World) -> bool {
    let admin = world.admin.said().story;
    let mut causes = world.burning.clone();
    causes.extend(admin.iter().map(|(ended, _)| (*ended - TOGETHER, *ended)));
    are_near_a_use(world, &causes)
}

fn are_near_a_use(world: &World, causes: &[(Instant, Instant)]) -> bool {
    let uses = world.watch.seen().uses;
    uses.values().any(|(used, _)| are_near(*used, causes, TOGETHER))
}

fn are_near(moment: Instant, causes: &[(Instant, Instant)], apart: Duration) -> bool {
    causes.iter().any(|(from, to)| moment + apart >= *from && moment <= *to + apart)
}

/// The settings that are not as the admin said.
fn lost_settings(world: &World, joined: bool) -> Vec<String> {
    // `up` with the key is refused on a node that cannot log in, and resets the settings all the same.
    if !joined {
        return Vec::new();
    }
    let Some(prefs) = world.prefs() else {
        return vec!["tailscaled does not tell them".to_owned()];
    };
    let said = world.admin.said();
    let differs = said.prefs.iter().filter_map(|(pref, values)| {
        let now = shown(&prefs, pref);
        (!values.contains(&now.as_str())).then(|| format!("{pref} is {now}, said was {values:?}"))
    });
    differs.collect()
}

/// What has its zero value may be left out.
fn shown(prefs: &Value, pref: &str) -> String {
    match prefs.get(pref) {
        None | Some(Value::Null) => "false".to_owned(),
        Some(value) => value.to_string(),
    }
}

/// Whether what the flags set is of none of the logins that succeeded.
fn flags_unlike(world: &World) -> Option<String> {
    let prefs = world.prefs()?;
    let names = ["OperatorUser", "RunSSH", "AdvertiseRoutes", "AdvertiseTags"];
    let now = names.map(|pref| match shown(&prefs, pref).as_str() {
        "\"\"" => "false".to_owned(),
        value => value.to_owned(),
    });
    let plan = world.schedule.plan;
    let set_by = |flags: &[&str]| {
        let has = |flag: &str| flags.contains(&flag);
        let text = |is: bool, value: &str| if is { value } else { "false" }.to_owned();
        let operator =
            ["daemon", "nobody"].into_iter().find(|name| has(&format!("--operator={name}")));
        [
            operator.map_or("false".to_owned(), |name| format!("\"{name}\"")),
            text(has("--ssh"), "true"),
            text(has("--advertise-routes=10.2.0.0/16"), "[\"10.2.0.0/16\"]"),
            "false".to_owned(),
        ]
    };
    let seen = world.watch.seen();
    let mut allowed = Vec::new();
    for used in &seen.all_uses {
        let is_after = world.reconfigured.is_some_and(|at| *used > at + TOGETHER);
        let is_before = world.reconfigured.is_none_or(|at| *used + TOGETHER < at);
        let can_be_first = !matches!(plan, Plan::Corrected(_));
        if !is_after && can_be_first {
            allowed.push(set_by(flags_of(plan, false)));
        }
        if !is_before {
            allowed.push(set_by(flags_of(plan, true)));
        }
    }
    // What an admin's own command makes of them is the admin's.
    let admins_up =
        world.fired.iter().any(|kind| matches!(kind, Kind::AdminUp | Kind::AdminUpDead));
    if seen.all_uses.is_empty() || admins_up {
        allowed.push(set_by(&[]));
    }
    (!allowed.contains(&now))
        .then(|| format!("{names:?} are {now:?}, which is none of {allowed:?}"))
}

/// A login whose record stays would undo later what an admin does.
fn record_left(world: &World) -> Option<String> {
    let record = world.records().next()?;
    let text = std::fs::read_to_string(record).ok()?;
    let record: Value = serde_json::from_str(&text).unwrap_or_default();
    (!record["login"].is_null()).then(|| "the record of a login is left".to_owned())
}

/// It must not end for good over words that are not about its key.
fn given_up(world: &World, spent: bool) -> Option<String> {
    let dead = world.fired.contains(&Kind::SecretDead)
        || matches!(world.schedule.scene, Scene::Hopeless(_))
        || matches!(world.schedule.plan, Plan::Corrected(mistake) if mistake != Mistake::NoServer)
        || spent;
    let end = world.unit.ends.iter().find(|end| end.code.is_some_and(is_final))?;
    (!dead).then(|| format!("it gave up with {:?}, and nothing was wrong with its key", end.code))
}

fn secrets(world: &World) -> Vec<String> {
    let mut secrets = world.good_keys.clone();
    if let Content::Text(text) = &world.content {
        secrets.extend(text.lines().map(str::to_owned));
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

fn keys_sent_in_vain(world: &World, state: &State) -> Vec<String> {
    let mut failures = Vec::new();
    let seen = world.watch.seen();
    let said = world.admin.said();
    let sent = state.registers.with_key - seen.before.with_key;
    let had_node_key = matches!(world.schedule.scene, Scene::Reboot(_) | Scene::Stopped { .. });
    // One that is to go to another login server needs a key there, and may be on its way back.
    let moves =
        matches!(world.schedule.plan, Plan::Corrected(Mistake::NoServer | Mistake::OtherServer));
    if had_node_key && !moves && sent > 0 && !said.dead_key {
        failures.push(format!("a node with a good node key sent an auth key {sent} times"));
    }
    for key in &world.good_keys {
        let Some((_, attempts)) = seen.uses.get(key).filter(|_| !world.schedule.reusable) else {
            continue;
        };
        let late = state.key(key).attempts - attempts;
        if late > 0 && !is_explained(world) {
            failures.push(format!("a key that was spent was sent again, {late} times"));
        }
    }
    for (key, attempts) in &world.refused {
        let more: u64 = (world.attempts(key).into_iter().zip(attempts))
            .filter(|(_, before)| **before > 0)
            .map(|(now, before)| now - before)
            .sum();
        if more > 0 {
            failures.push(format!("a key that was refused was sent again, {more} times"));
        }
    }
    if !world.schedule.reusable && state.keys.values().any(|key| key.uses > 1) {
        failures.push("a single-use key was used twice: the control server is wrong".to_owned());
    }
    failures
}

/// What an end of ours leaves that it must not leave.
fn traces(world: &World, end: &End) -> Vec<String> {
    let mut failures = Vec::new();
    let secrets = secrets(world);
    let notified = end.notifications.iter().map(|one| one.text.as_str());
    let said: String =
        [end.stdout.as_str(), end.stderr.as_str()].into_iter().chain(notified).collect();
    if secrets.iter().any(|secret| said.contains(secret)) {
        failures.push("the key in what it said".to_owned());
    }
    failures
        .extend(end.files_with_keys.iter().map(|path| format!("the key in {}", path.display())));
    failures
        .extend(end.left_behind.iter().map(|words| format!("left behind: {}", words.join(" "))));
    if end.stderr.lines().count() > TALKATIVE {
        failures.push("it runs in circles".to_owned());
    }
    if said.contains("panicked") {
        failures.push("it panicked".to_owned());
    }
    failures
}

fn wrong_end(bad: Bad, end: Option<&End>) -> Option<String> {
    let (code, words) = match bad {
        Bad::Unknown | Bad::Revoked | Bad::Expired => (77, "refused"),
        Bad::Missing => (66, "does not exist; is the secret deployed to this machine?"),
        Bad::Empty => (78, "is empty; put an auth key into it"),
        Bad::TwoLines => (78, "line"),
    };
    let end = end?;
    let right = end.code == Some(code) && end.stderr.contains(words);
    (!right).then(|| format!("ended with {:?} {:?} instead of {code}", end.code, end.signal))
}

fn report(
    world: &World,
    failures: &[String],
    state: &State,
    first: &Settled,
    second: &Settled,
) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", world.schedule);
    for failure in failures {
        let _ = writeln!(text, "  FAILED: {failure}");
    }
    let mut story = world.story.clone();
    story.extend(world.admin.said().story);
    story.extend(
        world
            .watch
            .seen()
            .uses
            .iter()
            .map(|(_, (at, attempts))| (*at, format!("a key was used (attempt {attempts})"))),
    );
    story.sort_by_key(|(at, _)| *at);
    for (at, what) in story {
        let _ = writeln!(
            text,
            "  {:>7.3} {what}",
            (at.saturating_duration_since(world.began)).as_secs_f64()
        );
    }
    let _ = writeln!(text, "  after the faults: {first:?}\n  after one more start: {second:?}");
    let _ = writeln!(
        text,
        "  registers: {:?} before: {:?}",
        state.registers,
        world.watch.seen().before
    );
    for (number, end) in world.unit.ends.iter().enumerate() {
        let _ = writeln!(
            text,
            "  start {}: code {:?} signal {:?}{}",
            number + 1,
            end.code,
            end.signal,
            if end.stopped { ", stopped" } else { "" }
        );
        for line in end.stderr.lines() {
            let _ = writeln!(text, "      {line}");
        }
    }
    let _ = writeln!(text, "  the unit now: {}", world.unit.said());
    let log = world.node.log();
    let lines: Vec<&str> = log.lines().collect();
    let _ = writeln!(text, "  tailscaled's log, its last lines:");
    for line in &lines[lines.len().saturating_sub(500)..] {
        let _ = writeln!(text, "      {line}");
    }
    let log = world.tailnet.log();
    let lines: Vec<&str> = log.lines().collect();
    let _ = writeln!(text, "  the control server's log, its last lines:");
    for line in &lines[lines.len().saturating_sub(40)..] {
        let _ = writeln!(text, "      {line}");
    }
    let _ = writeln!(text, "  replay: tests/faults.sh --seed {}", world.schedule.seed);
    text
}
