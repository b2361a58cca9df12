//! What happens in a schedule, derived from its seed alone.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use tailnet_harness::is_root;

/// A scene, up to four faults in it, and how it ends.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub scene: Scene,
    /// Of the good key in the file, where there is one.
    pub reusable: bool,
    /// What the admin set with `tailscale set` before, by number in [`SETTINGS`].
    pub settings: Vec<usize>,
    pub place: Place,
    /// On a disk of its own: what the program remembers lies there too.
    pub record_on_disk: bool,
    pub plan: Plan,
    /// The node has a second profile, on another tailnet.
    pub profiles: bool,
    pub faults: Vec<Fault>,
    pub ending: Ending,
}

/// How the program is configured, and whether that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// No flags.
    Plain,
    /// The same flags all the time.
    Flags,
    /// Other flags from [`Kind::Reconfigured`] on.
    OtherFlags,
    /// It cannot work before [`Kind::Reconfigured`].
    Corrected(Mistake),
}

/// What is wrong with a configuration, besides its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Nothing is at its login server.
    NoServer,
    /// Its login server is another tailnet's.
    OtherServer,
    /// It asks for a tag that the key does not have.
    Tag,
    /// There is a dead key in the file.
    DeadKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// The node has never been on a tailnet.
    Fresh,
    /// The node was, and boots.
    Reboot(Left),
    /// The node was, and the control server does not accept its node key any more.
    Renewal { deleted: bool, live: bool },
    /// The node was, and someone said `tailscale down`.
    Stopped { boot: bool },
    /// The node is new, and there is no good key.
    Hopeless(Bad),
}

/// What the key file of a node that has joined holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Used,
    Absent,
    Unknown,
}

/// What is in the file instead of a good key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    Unknown,
    Revoked,
    Expired,
    Missing,
    Empty,
    TwoLines,
}

/// Where the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where everything runs.
    Host,
    /// In a network of its own.
    OwnNetwork,
    /// On a small disk of its own.
    OwnDisk,
}

/// The one more start at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Boot,
    Restart,
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at: Moment,
    pub kind: Kind,
    /// How long it lasts, where it does.
    pub lasts: Duration,
}

#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// So long after the start; at 0 it is there before it.
    After(Duration),
    /// So long after `tailscale up` was first seen to run.
    CliRuns(Duration),
    /// So long after the control server first heard of the node.
    RegisterSeen(Duration),
    /// So long after the program first wrote down that it begins a login; the scripts do not, and
    /// their CLI stands for it.
    RecordSeen(Duration),
    /// So long after a key was first used.
    KeyUsed(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    DaemonKilled,
    DaemonRestarted,
    DaemonFrozen,
    UnitKilled,
    /// The CLI is killed in the same moment.
    UnitAndCliKilled,
    /// Each run is killed so many milliseconds after its start, with its CLI.
    UnitKilledAgain(u64),
    /// tailscaled, the unit and its CLI are killed at once.
    PowerCut,
    UnitRestarted,
    /// The unit gets its second configuration and is restarted.
    Reconfigured,
    CliKilled,
    /// A fault of the control server, by its name there.
    Control(&'static str),
    /// Registers are answered late: what happens meanwhile happens in mid-login.
    RegistersHeld,
    /// So many registers are answered with 429.
    RateLimited(u8),
    /// So many registers with a key fail, for a reason that passes: one of [`PASSING`].
    RegistersFail(u8, usize),
    /// All of them fail, in words that change all the time.
    WordsChange,
    /// All of them are answered with this HTTP status.
    RegisterStatus(u16),
    LinkDown,
    DiskFull,
    DiskReadOnly,
    SecretAbsent,
    SecretEmpty,
    SecretDead,
    /// A new generation with the same content.
    SecretTurned,
    /// A new generation with another good key.
    SecretRenewed,
    AdminUp,
    AdminUpDead,
    AdminDown,
    /// `tailscale set` of one of [`SETTINGS`].
    AdminSet(usize),
    /// `tailscale switch` to the second profile.
    AdminSwitch,
}

/// What a control server may say that does not mean the key.
pub const PASSING: [&str; 6] = [
    "database is locked (5) (SQLITE_BUSY)",
    "server error, please retry",
    "context deadline exceeded",
    "the moon is in the way",
    "registration is paused for maintenance",
    "dial tcp 192.0.2.7:41234: connect: connection refused",
];
/// HTTP statuses that do not mean the key.
pub const STATUSES: [u16; 5] = [408, 429, 500, 502, 503];

/// A setting that an admin may make, and how it shows in the preferences.
pub struct Setting {
    pub flag: &'static str,
    pub pref: &'static str,
    /// As JSON.
    pub value: &'static str,
    /// Whether `tailscale up` has the flag too. What has none is reset by every `up`.
    pub up_has_it: bool,
}

const fn setting(flag: &'static str, pref: &'static str, value: &'static str) -> Setting {
    Setting { flag, pref, value, up_has_it: true }
}

pub const SETTINGS: [Setting; 7] = [
    setting("--accept-dns=false", "CorpDNS", "false"),
    setting("--accept-routes=true", "RouteAll", "true"),
    setting("--shields-up=true", "ShieldsUp", "true"),
    setting("--hostname=by-the-admin", "Hostname", "\"by-the-admin\""),
    setting("--accept-routes=false", "RouteAll", "false"),
    setting("--shields-up=false", "ShieldsUp", "false"),
    Setting { up_has_it: false, ..setting("--webclient=true", "RunWebClient", "true") },
];
/// Those that make sense on a new node.
const FIRST_SETTINGS: [usize; 5] = [0, 1, 2, 3, 6];

/// Everything of the control server that lasts a while.
const CONTROL: [&str; 7] =
    ["down", "hang", "reset", "500", "garbage", "slow", "drop_register_reply"];

/// All kinds of faults, to see that none is left out.
pub fn kinds() -> impl Iterator<Item = Kind> {
    let others = [
        Kind::DaemonKilled,
        Kind::DaemonRestarted,
        Kind::DaemonFrozen,
        Kind::UnitKilled,
        Kind::UnitAndCliKilled,
        Kind::UnitKilledAgain(1),
        Kind::PowerCut,
        Kind::UnitRestarted,
        Kind::Reconfigured,
        Kind::CliKilled,
        Kind::RegistersHeld,
        Kind::RateLimited(1),
        Kind::RegistersFail(1, 0),
        Kind::WordsChange,
        Kind::RegisterStatus(500),
        Kind::SecretAbsent,
        Kind::SecretEmpty,
        Kind::SecretDead,
        Kind::SecretTurned,
        Kind::SecretRenewed,
        Kind::AdminUp,
        Kind::AdminUpDead,
        Kind::AdminDown,
        Kind::AdminSet(0),
        Kind::AdminSwitch,
    ];
    let for_root = [Kind::LinkDown, Kind::DiskFull, Kind::DiskReadOnly];
    CONTROL
        .into_iter()
        .map(Kind::Control)
        .chain(others)
        .chain(for_root.into_iter().filter(|_| is_root()))
}

impl Schedule {
    pub fn of(seed: u64) -> Self {
        // Seeds that follow each other are to have nothing in common.
        let mut random = Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let scene = draw_scene(&mut random);
        let place = match random.u8(0..100) {
            0..=14 => Place::OwnNetwork,
            15..=26 => Place::OwnDisk,
            _ => Place::Host,
        };
        let count = 1 + usize::from(random.u8(0..100) / 30);
        let mut faults: Vec<Fault> = (0..count).map(|_| draw_fault(&mut random, scene)).collect();
        let needs_key = matches!(scene, Scene::Fresh | Scene::Renewal { .. });
        match place {
            Place::OwnNetwork => faults[0].kind = Kind::LinkDown,
            Place::OwnDisk if random.bool() => faults[0].kind = Kind::DiskFull,
            Place::OwnDisk => faults[0].kind = Kind::DiskReadOnly,
            // The boot that everything else is easier than: the control server isn't there yet.
            Place::Host if matches!(scene, Scene::Reboot(_)) && random.bool() => {
                faults[0].kind = Kind::Control(CONTROL[random.usize(0..CONTROL.len())]);
                faults[0].at = Moment::After(Duration::ZERO);
            }
            // Of itself a login is over in no time.
            Place::Host if needs_key && random.u8(0..4) == 0 => {
                faults[0].kind = Kind::RegistersHeld;
                faults[0].at = Moment::After(Duration::ZERO);
            }
            Place::Host => {}
        }
        let plan = draw_plan(&mut random, scene, place);
        let changes = matches!(plan, Plan::OtherFlags | Plan::Corrected(_));
        let profiles = place == Place::Host
            && plan == Plan::Plain
            && matches!(scene, Scene::Renewal { .. } | Scene::Reboot(_))
            && random.u8(0..4) == 0;
        let strandings = !profiles
            && !changes
            && place == Place::Host
            && !matches!(scene, Scene::Hopeless(_))
            && random.u8(0..12) == 0;
        if changes {
            faults.push(draw_change(&mut random));
        } else if profiles {
            // What else an admin does would be another profile's.
            for fault in faults.iter_mut().filter(|fault| fault.kind.is_admins()) {
                fault.kind = Kind::UnitRestarted;
            }
            let at = draw_moment(&mut random, Kind::AdminSwitch);
            let lasts = Duration::ZERO;
            faults.push(Fault { at, kind: Kind::AdminSwitch, lasts });
        } else if strandings {
            faults.truncate(2);
            faults.extend(draw_strandings(&mut random));
        }
        let ups = [Kind::AdminUp, Kind::AdminUpDead];
        let admin_ups = faults.iter().any(|fault| ups.contains(&fault.kind));
        let dead = |fault: &Fault| fault.kind == Kind::AdminUpDead;
        let sends_dead_key = faults.iter().any(dead);
        let mut settings = Vec::new();
        if random.u8(0..100) < 65 {
            let kept = |number: &usize| SETTINGS[*number].up_has_it || !admin_ups;
            let mut choice: Vec<usize> = FIRST_SETTINGS.into_iter().filter(kept).collect();
            random.shuffle(&mut choice);
            choice.truncate(random.usize(1..=2));
            settings = choice;
        }
        if admin_ups {
            for fault in &mut faults {
                if matches!(fault.kind, Kind::AdminSet(number) if !SETTINGS[number].up_has_it) {
                    fault.kind = Kind::AdminSet(0);
                }
            }
        }
        Self {
            seed,
            scene,
            reusable: random.u8(0..100) < 35,
            settings,
            place,
            record_on_disk: random.bool(),
            plan,
            profiles,
            faults,
            // A boot would make the daemon forget the dead key.
            ending: if sends_dead_key {
                Ending::Restart
            } else if random.bool() {
                Ending::Boot
            } else {
                Ending::Restart
            },
        }
    }
}

fn draw_scene(random: &mut Rng) -> Scene {
    match random.u8(0..100) {
        0..=39 => Scene::Fresh,
        40..=57 => Scene::Reboot(match random.u8(0..3) {
            0 => Left::Used,
            1 => Left::Absent,
            _ => Left::Unknown,
        }),
        // A node that was deleted while it ran shows nothing of it for half a minute.
        58..=61 => Scene::Renewal { deleted: true, live: true },
        62..=77 => Scene::Renewal { deleted: random.bool(), live: false },
        78..=81 => Scene::Renewal { deleted: false, live: true },
        82..=89 => Scene::Stopped { boot: random.bool() },
        _ => Scene::Hopeless(match random.u8(0..6) {
            0 => Bad::Unknown,
            1 => Bad::Revoked,
            2 => Bad::Expired,
            3 => Bad::Missing,
            4 => Bad::Empty,
            _ => Bad::TwoLines,
        }),
    }
}

fn draw_plan(random: &mut Rng, scene: Scene, place: Place) -> Plan {
    if matches!(scene, Scene::Hopeless(_)) {
        return Plan::Plain;
    }
    let needs_key = matches!(scene, Scene::Fresh | Scene::Renewal { .. });
    match random.u8(0..100) {
        0..=14 => Plan::Flags,
        15..=22 => Plan::OtherFlags,
        23..=37 => Plan::Corrected(match random.u8(0..4) {
            0 => Mistake::NoServer,
            1 if place == Place::Host => Mistake::OtherServer,
            2 if needs_key => Mistake::DeadKey,
            _ => Mistake::Tag,
        }),
        _ => Plan::Plain,
    }
}

fn draw_change(random: &mut Rng) -> Fault {
    let ms = Duration::from_millis;
    Fault {
        at: match random.u8(0..10) {
            0..=2 => Moment::After(ms(random.u64(10..500))),
            3..=5 => Moment::After(ms(random.u64(500..4000))),
            6 => Moment::CliRuns(ms(random.u64(0..100))),
            7 => Moment::RecordSeen(ms(random.u64(0..100))),
            _ => Moment::RegisterSeen(ms(random.u64(0..1500))),
        },
        kind: Kind::Reconfigured,
        lasts: Duration::ZERO,
    }
}

/// Somebody's dead key strands the node, it is freed, and is stranded once more later.
fn draw_strandings(random: &mut Rng) -> [Fault; 4] {
    let mut at = random.u64(300..2500);
    let kinds = [Kind::AdminUpDead, Kind::UnitRestarted, Kind::AdminUpDead, Kind::UnitRestarted];
    let gaps = [500..2500, 4000..12_000, 500..2500, 0..1];
    let mut gaps = gaps.into_iter();
    kinds.map(|kind| {
        let fault =
            Fault { at: Moment::After(Duration::from_millis(at)), kind, lasts: Duration::ZERO };
        at += random.u64(gaps.next().expect("one for each"));
        fault
    })
}

fn draw_fault(random: &mut Rng, scene: Scene) -> Fault {
    let ms = Duration::from_millis;
    let kind = match random.u8(0..100) {
        0..=6 => Kind::DaemonKilled,
        7..=13 => Kind::DaemonRestarted,
        14..=19 => Kind::DaemonFrozen,
        20..=25 => Kind::UnitKilled,
        26..=31 => Kind::UnitAndCliKilled,
        32..=34 => Kind::UnitKilledAgain(random.u64(5..300)),
        35..=37 => Kind::PowerCut,
        38..=40 => Kind::UnitRestarted,
        41..=44 => Kind::CliKilled,
        45..=59 => Kind::Control(CONTROL[random.usize(0..CONTROL.len())]),
        60..=61 => Kind::RateLimited(random.u8(1..4)),
        62..=63 => Kind::RegistersHeld,
        64..=66 => Kind::RegistersFail(random.u8(1..4), random.usize(0..PASSING.len())),
        67..=68 => Kind::WordsChange,
        69..=70 => Kind::RegisterStatus(STATUSES[random.usize(0..STATUSES.len())]),
        71..=74 => Kind::SecretAbsent,
        75..=76 => Kind::SecretEmpty,
        77..=79 => Kind::SecretDead,
        80..=81 => Kind::SecretTurned,
        82..=83 => Kind::SecretRenewed,
        84..=85 => Kind::AdminUp,
        86..=89 => Kind::AdminUpDead,
        90..=91 => Kind::AdminDown,
        _ => Kind::AdminSet(random.usize(0..SETTINGS.len())),
    };
    // Another good key in the file would be the end of a scene without one, and what is no answer to
    // its key is none to it.
    let kind = match (kind, scene) {
        (Kind::SecretRenewed, Scene::Hopeless(_)) => Kind::SecretTurned,
        (kind, _) => kind,
    };
    let lasts = ms(match random.u8(0..10) {
        0..=4 => random.u64(200..1000),
        5..=8 => random.u64(1000..2000),
        _ => random.u64(2000..3000),
    });
    let at = draw_moment(random, kind);
    Fault { at, kind, lasts }
}

fn draw_moment(random: &mut Rng, kind: Kind) -> Moment {
    let ms = Duration::from_millis;
    // Nothing runs before the start.
    let before = kind.lasts() && !matches!(kind, Kind::UnitKilledAgain(_))
        || matches!(kind, Kind::RateLimited(_) | Kind::RegistersFail(..) | Kind::SecretRenewed);
    match random.u8(0..100) {
        // It does harm to a node that is in, or about to be.
        0..=61 if kind == Kind::AdminUpDead => Moment::After(ms(random.u64(500..4000))),
        0..=17 if before => Moment::After(Duration::ZERO),
        // A join takes some 50 ms.
        0..=27 => Moment::After(ms(random.u64(1..150))),
        28..=41 => Moment::After(ms(random.u64(150..1500))),
        42..=49 => Moment::After(ms(random.u64(1500..4000))),
        // One of the scripts does nothing for its first two seconds.
        50..=57 => Moment::After(ms(random.u64(2000..2400))),
        58..=69 => Moment::CliRuns(ms(random.u64(0..60))),
        70..=79 => Moment::RegisterSeen(ms(random.u64(0..60))),
        80..=86 => Moment::RecordSeen(ms(random.u64(0..20))),
        _ => Moment::KeyUsed(ms(random.u64(0..60))),
    }
}

impl Kind {
    /// Whether it goes on for [`Fault::lasts`].
    pub fn lasts(self) -> bool {
        matches!(
            self,
            Self::DaemonFrozen
                | Self::UnitKilledAgain(_)
                | Self::Control(_)
                | Self::RegistersHeld
                | Self::WordsChange
                | Self::RegisterStatus(_)
                | Self::LinkDown
                | Self::DiskFull
                | Self::DiskReadOnly
                | Self::SecretAbsent
                | Self::SecretEmpty
                | Self::SecretDead
        )
    }

    /// Whether an admin does it.
    pub fn is_admins(self) -> bool {
        matches!(
            self,
            Self::AdminUp
                | Self::AdminUpDead
                | Self::AdminDown
                | Self::AdminSet(_)
                | Self::AdminSwitch
        )
    }

    /// Whether it can cost tailscale a single-use key that the control server has taken: the answer
    /// gets lost, or the daemon forgets the node key that it was for.
    pub fn can_burn(self) -> bool {
        matches!(
            self,
            Self::DaemonKilled
                | Self::DaemonRestarted
                | Self::DaemonFrozen
                | Self::PowerCut
                | Self::Control(_)
                | Self::LinkDown
                | Self::DiskFull
                | Self::DiskReadOnly
        )
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.scene)?;
        let kind = if self.reusable { "reusable" } else { "single-use" };
        match self.scene {
            Scene::Fresh | Scene::Renewal { .. } => write!(f, " with a {kind} key")?,
            _ => {}
        }
        match self.place {
            Place::Host => {}
            Place::OwnNetwork => f.write_str(", in a network of its own")?,
            Place::OwnDisk if self.record_on_disk => {
                f.write_str(", on a disk of its own with the record")?
            }
            Place::OwnDisk => f.write_str(", on a disk of its own")?,
        }
        match self.plan {
            Plan::Plain => {}
            Plan::Flags => f.write_str(", with flags")?,
            Plan::OtherFlags => f.write_str(", with flags that change")?,
            Plan::Corrected(mistake) => f.write_str(match mistake {
                Mistake::NoServer => ", with no such login server at first",
                Mistake::OtherServer => ", with another login server at first",
                Mistake::Tag => ", with a tag that is refused at first",
                Mistake::DeadKey => ", with a dead key at first",
            })?,
        }
        if self.profiles {
            f.write_str(", with two profiles")?;
        }
        if !self.settings.is_empty() {
            f.write_str(", set before:")?;
            for number in &self.settings {
                write!(f, " {}", SETTINGS[*number].flag)?;
            }
        }
        for fault in &self.faults {
            write!(f, "; {fault}")?;
        }
        f.write_str(match self.ending {
            Ending::Boot => "; then a boot",
            Ending::Restart => "; then a restart of the unit",
        })
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fresh => "fresh join",
            Self::Reboot(Left::Used) => "reboot with the used key",
            Self::Reboot(Left::Absent) => "reboot without a key file",
            Self::Reboot(Left::Unknown) => "reboot with an unknown key",
            Self::Renewal { deleted, live } => match (deleted, live) {
                (false, false) => "node expired while off, renewal",
                (false, true) => "node expired while it ran, renewal",
                (true, false) => "node deleted while off, renewal",
                (true, true) => "node deleted while it ran, renewal",
            },
            Self::Stopped { boot: false } => "stopped node",
            Self::Stopped { boot: true } => "boot of a stopped node",
            Self::Hopeless(bad) => match bad {
                Bad::Unknown => "no good key (unknown)",
                Bad::Revoked => "no good key (revoked)",
                Bad::Expired => "no good key (expired)",
                Bad::Missing => "no key file",
                Bad::Empty => "empty key file",
                Bad::TwoLines => "two lines in the key file",
            },
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        match self.at {
            Moment::After(Duration::ZERO) => f.write_str("from the start"),
            Moment::After(time) => write!(f, "at {time:?}"),
            Moment::CliRuns(time) => write!(f, "{time:?} after the CLI is seen"),
            Moment::RegisterSeen(time) => write!(f, "{time:?} after a register is seen"),
            Moment::RecordSeen(time) => write!(f, "{time:?} after the record is seen"),
            Moment::KeyUsed(time) => write!(f, "{time:?} after a key was used"),
        }?;
        if self.kind.lasts() {
            write!(f, " for {:?}", self.lasts)?;
        }
        Ok(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DaemonKilled => f.write_str("tailscaled killed"),
            Self::DaemonRestarted => f.write_str("tailscaled restarted"),
            Self::DaemonFrozen => f.write_str("tailscaled stands still"),
            Self::UnitKilled => f.write_str("the unit killed"),
            Self::UnitAndCliKilled => f.write_str("the unit and the CLI killed"),
            Self::UnitKilledAgain(ms) => write!(f, "each run killed after {ms}ms"),
            Self::PowerCut => f.write_str("power cut"),
            Self::UnitRestarted => f.write_str("the unit restarted"),
            Self::Reconfigured => f.write_str("another configuration"),
            Self::CliKilled => f.write_str("the CLI killed"),
            Self::Control(fault) => write!(f, "control server: {fault}"),
            Self::RegistersHeld => f.write_str("registers held"),
            Self::RateLimited(count) => write!(f, "{count} registers rate limited"),
            Self::RegistersFail(count, words) => {
                write!(f, "{count} registers fail: {}", PASSING[*words])
            }
            Self::WordsChange => f.write_str("registers fail in words that change"),
            Self::RegisterStatus(status) => write!(f, "registers answered with {status}"),
            Self::LinkDown => f.write_str("interface down"),
            Self::DiskFull => f.write_str("disk full"),
            Self::DiskReadOnly => f.write_str("disk read-only"),
            Self::SecretAbsent => f.write_str("secret absent"),
            Self::SecretEmpty => f.write_str("secret empty"),
            Self::SecretDead => f.write_str("dead key in the secret"),
            Self::SecretTurned => f.write_str("new generation of the secret"),
            Self::SecretRenewed => f.write_str("another good key in the secret"),
            Self::AdminUp => f.write_str("`tailscale up`"),
            Self::AdminUpDead => f.write_str("`tailscale up` with a dead key"),
            Self::AdminDown => f.write_str("`tailscale down`"),
            Self::AdminSet(number) => write!(f, "`tailscale set {}`", SETTINGS[*number].flag),
            Self::AdminSwitch => f.write_str("`tailscale switch`"),
        }
    }
}
