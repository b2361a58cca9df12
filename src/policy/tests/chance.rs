//! What may come of an action, by chance. A step of a sequence is one number, from which all of it
//! follows: so sequences are cheap to make, and are shrunk by leaving steps out.

use std::time::Duration;

use fastrand::Rng;
use serde_json::json;

use super::*;
use crate::failure::{Mistake, Refusal, Refused};
use crate::key::KeyKind;
use crate::record::RefusedKey;
use crate::samples::REFUSAL;

pub const OWN: &str = "https://hs.example.org";
pub const OTHER: &str = "https://hs.example.com";

const WORDS: [&str; 9] = [
    "",
    REFUSAL,
    "authkey already used",
    "requested tags [tag:x] are invalid or not permitted",
    "database is locked (5) (SQLITE_BUSY)",
    "oops",
    "fetch control key: dial tcp: connect: connection refused",
    "register request: http 403: no",
    "\u{85}\0\u{1b}[2J; FILE\n\u{202e}",
];

pub fn one<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())].clone()
}

/// Whether something happens that happens once in so many times.
pub fn once_in(rng: &mut Rng, times: u32) -> bool {
    rng.u32(..times) == 0
}

pub fn words(rng: &mut Rng) -> String {
    one(rng, &WORDS).to_owned()
}

fn server(rng: &mut Rng) -> String {
    one(rng, &["", TAILSCALES_SERVER, "https://login.tailscale.com/", OWN, OTHER]).to_owned()
}

pub fn flags(rng: &mut Rng) -> Vec<String> {
    let flags: &[&str] = one(
        rng,
        &[
            &[][..],
            &["--ssh"],
            &["--advertise-exit-node", "--hostname", "x"],
            &["--advertise-tags=tag:x"],
        ],
    );
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

pub fn status(rng: &mut Rng) -> Status {
    let states =
        ["NoState", "Starting", "Running", "Stopped", "NeedsLogin", "NeedsMachineAuth", "?"];
    let mut status = Status {
        version: one(
            rng,
            &["1.98.10", "1.98.10", "1.80.3-t1", "1.64.2", "", "99999999999.1", "-."],
        )
        .into(),
        backend_state: if rng.bool() { "NeedsLogin".into() } else { one(rng, &states).into() },
        have_node_key: rng.bool(),
        ..Status::default()
    };
    status.node.online = rng.bool();
    status.node.public_key = one(rng, &["", "nodekey:1", "nodekey:1", "nodekey:2"]).into();
    let expiries = [None, Some("2026-11-27T00:00:00Z"), Some("2027-05-26T00:00:00Z"), Some("?")];
    status.node.key_expiry = one(rng, &expiries).map(str::to_owned);
    status.node.expired = once_in(rng, 8);
    if once_in(rng, 3) {
        status.auth_url = "https://x".into();
    }
    if rng.bool() {
        status.health.push(format!("last login error={}", words(rng)));
    }
    if once_in(rng, 4) {
        status.health.push("Tailscale cannot connect because the network is down.".into());
    }
    status
}

pub fn prefs(rng: &mut Rng) -> Prefs {
    let name = one(rng, &["", "x", "y"]);
    let routes = [json!(null), json!(["10.0.0.0/8"]), json!(["0.0.0.0/0", "::/0", "10.0.0.0/8"])];
    let prefs = json!({
        "ControlURL": server(rng), "WantRunning": rng.bool(), "LoggedOut": rng.bool(),
        "RunSSH": rng.bool(), "RunWebClient": rng.bool(), "Hostname": name,
        "AdvertiseRoutes": one(rng, &routes),
        "Config": { "NodeID": one(rng, &["", "n1", "n2"]) },
    });
    serde_json::from_value(prefs).expect("an object")
}

pub fn error(rng: &mut Rng) -> LocalApiError {
    let words = words(rng);
    match rng.u8(..5) {
        0 => LocalApiError::Unreachable(words),
        1 => LocalApiError::NoAnswer,
        2 => LocalApiError::Denied(words),
        3 => LocalApiError::Locked(words),
        _ => LocalApiError::BadAnswer(words),
    }
}

fn mostly<T>(rng: &mut Rng, done: impl FnOnce(&mut Rng) -> T) -> Result<T, LocalApiError> {
    match once_in(rng, 8) {
        true => Err(error(rng)),
        false => Ok(done(rng)),
    }
}

fn profile(rng: &mut Rng) -> Option<Profile> {
    one(rng, &[None, Some(""), Some("a"), Some("a"), Some("b")]).map(named)
}

fn digest(rng: &mut Rng) -> String {
    one(rng, &["d1", "d2"]).to_owned()
}

pub fn record(rng: &mut Rng) -> Record {
    let login = rng.bool().then(|| BegunLogin {
        at: 1,
        profile: profile(rng).unwrap_or_default(),
        server: server(rng),
        flags: flags(rng),
        key: digest(rng),
        before: prefs(rng),
    });
    let refused = once_in(rng, 3).then(|| RefusedKey {
        at: 1,
        digest: digest(rng),
        server: server(rng),
        words: words(rng),
    });
    Record { salt: [rng.bool().into(); 16], login, refused, ..Record::default() }
}

/// A time of the wall clock about the expiries of node keys, and others.
pub fn clock(rng: &mut Rng) -> Event {
    let seconds = match rng.u8(..8) {
        0 => 0,
        1 => u64::MAX,
        _ => 1_779_000_000 + rng.u64(..32_000_000),
    };
    Event::Clock(Duration::from_secs(seconds))
}

pub fn key(rng: &mut Rng) -> Result<KeyFacts, NoKey> {
    let kinds = [KeyKind::Auth, KeyKind::Headscale, KeyKind::OAuthSecret { names_api: true }];
    match rng.u8(..12) {
        0 => Err(NoKey::Busy),
        1 => Err(NoKey::File(Problem::Missing)),
        2 => Err(NoKey::File(Problem::Unusable("is a directory"))),
        _ => Ok(KeyFacts { kind: one(rng, &kinds), digest: digest(rng) }),
    }
}

pub fn ended(rng: &mut Rng) -> Ended {
    let words = words(rng);
    match rng.u8(..17) {
        0 | 1 => Ended::Done,
        2 | 3 => Ended::LoginError(LoginError::of(&words)),
        4 => Ended::LoginError(LoginError::Unreachable(words)),
        5 => Ended::Final(Failure::Refused(Refusal { what: Refused::Key, words })),
        6 => Ended::Final(Failure::Denied(words)),
        7 => Mistake::LockedConfig.into(),
        8 => Ended::UnknownFlag("ssh".into(), words),
        9 => Mistake::Flags(words).into(),
        10 => Mistake::OtherServer.into(),
        11 => Mistake::Settings(words).into(),
        12 => Ended::Lost(words),
        13 => Ended::Unreachable(words),
        14 | 15 => Ended::Killed,
        _ => Ended::Unknown(words),
    }
}

fn started(rng: &mut Rng) -> Result<(), NotStarted> {
    let words = words(rng);
    match rng.u8(..12) {
        0 => Err(NotStarted::ForNow(words)),
        1 => Err(Mistake::NoCommand(words.into()).into()),
        2 => Err(Mistake::Complaint(words).into()),
        3 => Err(Mistake::Untrusted(words).into()),
        _ => Ok(()),
    }
}

fn seen(rng: &mut Rng, wants_prefs: bool) -> Event {
    Event::Seen {
        status: mostly(rng, status),
        unbound: once_in(rng, 8).then_some(IpAddr::from([100, 64, 0, 1])),
        prefs: wants_prefs.then(|| prefs(rng)),
    }
}

fn put_back(rng: &mut Rng) -> Event {
    Event::PutBack(mostly(rng, |rng| match rng.u8(..4) {
        0 => None,
        1 => Some(vec!["RunSSH".to_owned()]),
        _ => Some(Vec::new()),
    }))
}

fn took_back(rng: &mut Rng) -> Event {
    Event::TookBack(mostly(rng, |rng| (!once_in(rng, 4)).then(|| prefs(rng))))
}

/// What comes of this action.
pub fn outcome(rng: &mut Rng, action: &Action, wants_prefs: bool) -> Event {
    match action {
        Action::ReadRecord => Event::Record(record(rng)),
        Action::Look => {
            let has_prefs = wants_prefs && !once_in(rng, 8);
            seen(rng, has_prefs)
        }
        Action::ReadPrefs => {
            let prefs = mostly(rng, prefs);
            Event::Prefs { prefs, profile: profile(rng), live: rng.bool() }
        }
        Action::ReadKey => Event::Key(key(rng)),
        Action::ReleaseKey => Event::Released,
        Action::Write(asked) => Event::Written {
            asked: asked.clone(),
            written: Box::new(asked.clone()),
            saved: rng.bool(),
        },
        Action::LogIn(_) => Event::Started(started(rng)),
        Action::StopCommand => Event::CommandStopped,
        Action::Restart(_) => Event::Restarted(mostly(rng, |_| ())),
        Action::BringUp => Event::BroughtUp(mostly(rng, |_| ())),
        Action::PutBack { .. } => put_back(rng),
        Action::TakeBack { .. } => took_back(rng),
        Action::Renew => Event::Renewed(mostly(rng, |_| ())),
        Action::Postpone(obstacle) => Event::Postponed(*obstacle),
        Action::Ping => Event::Pinged,
        Action::Wait(..) | Action::Finish(_) | Action::Fail(_) | Action::Stopped => Event::Woke,
    }
}

/// What may happen at any time, while the command runs or not.
pub fn unasked(rng: &mut Rng, command_runs: bool) -> Event {
    match rng.u8(..8) {
        0..3 => Event::Told(Notice {
            prefs: (0..rng.u8(..3)).map(|_| prefs(rng)).collect(),
            after_a_gap: rng.bool(),
            running: rng.bool(),
        }),
        3 | 4 if command_runs => Event::Ended(ended(rng)),
        5 if once_in(rng, 4) => Event::Stop,
        7 => clock(rng),
        6 if once_in(rng, 4) => Event::TimeUp(None),
        _ => Event::Woke,
    }
}

/// Any event, even one that has not been asked for.
pub fn event(rng: &mut Rng) -> Event {
    let wait = Action::Wait(Waiting::Settling, Time::ZERO);
    let action = match rng.u8(..16) {
        0 => Action::ReadRecord,
        1 => Action::ReadPrefs,
        2 => Action::ReadKey,
        3 => Action::ReleaseKey,
        4 => Action::Write(record(rng)),
        5 => Action::LogIn(Vec::new()),
        6 => Action::StopCommand,
        7 => Action::Restart(Why::Offline),
        8 => Action::BringUp,
        9 => Action::PutBack { prefs: Prefs::new(), profile: None },
        10 => Action::TakeBack { prefs: Prefs::new(), profile: None },
        11 => Action::Look,
        12 => Action::Renew,
        13 => Action::Postpone(Obstacle::NoKey),
        14 => Action::Ping,
        _ => wait,
    };
    match action {
        Action::Wait(..) => unasked(rng, true),
        action => outcome(rng, &action, true),
    }
}

pub fn distance(rng: &mut Rng) -> Duration {
    match rng.u8(..22) {
        0..8 => Duration::ZERO,
        8..16 => Duration::from_millis(rng.u64(..3000)),
        16..20 => Duration::from_secs(rng.u64(..1000)),
        20 => Duration::from_secs(rng.u64(..)),
        _ => Duration::MAX,
    }
}

pub fn setup(rng: &mut Rng) -> Setup {
    let server = one(rng, &[None, Some(TAILSCALES_SERVER), Some(OWN), Some(OTHER)]);
    Setup {
        server: server.map(str::to_owned),
        flags: flags(rng),
        authkey_wait: Duration::from_secs(one(rng, &[0, 300])),
        stay: rng.bool(),
        rejoin: rng.bool(),
        key_file: "/k".into(),
        ..Setup::default()
    }
}
