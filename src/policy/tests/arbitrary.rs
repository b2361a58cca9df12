//! Any events in any order, at any distance in time: what must hold even so.

use proptest::collection::vec;
use proptest::option;
use proptest::sample::select;
use serde_json::json;

use super::*;
use crate::key::KeyFileError;
use crate::record::RefusedKey;
use crate::samples::{REFUSAL, any_text};
use crate::tailscaled::LocalApiError;
use crate::up::{Refusal, Refused};

const OWN: &str = "https://hs.example.org";
const OTHER: &str = "https://hs.example.com";

/// More actions than a machine may do without waiting, if each succeeds.
const MOST_AT_ONCE: usize = 40;

fn some_server() -> impl Strategy<Value = &'static str> {
    select(&["", TAILSCALES_SERVER, OWN, OTHER][..])
}

fn some_flags() -> impl Strategy<Value = Vec<String>> {
    let flags = [
        &[][..],
        &["--ssh"],
        &["--advertise-exit-node", "--hostname", "x"],
    ];
    select(
        flags
            .map(|flags| {
                flags
                    .iter()
                    .map(|flag| (*flag).to_owned())
                    .collect::<Vec<_>>()
            })
            .to_vec(),
    )
}

fn some_words() -> impl Strategy<Value = String> {
    prop_oneof![
        select(
            &[
                REFUSAL,
                "database is locked",
                "dial tcp: connection refused"
            ][..]
        )
        .prop_map(str::to_owned),
        any_text(),
    ]
}

fn some_status() -> impl Strategy<Value = Status> {
    let state = prop_oneof![
        4 => Just("NeedsLogin".to_owned()),
        8 => select(&["NoState", "Starting", "Running", "Stopped", "NeedsMachineAuth", ""][..])
            .prop_map(str::to_owned),
        1 => any_text(),
    ];
    let version = prop_oneof![
        4 => select(&["1.98.10", "1.80.3-t1", "", "1", "99999999999.1", "-.", "1.64.2"][..])
            .prop_map(str::to_owned),
        1 => any_text(),
    ];
    let health = some_words().prop_map(|words| format!("last login error={words}"));
    let health = vec(prop_oneof![health, any_text()], 0..2);
    (state, version, health, any::<[bool; 3]>()).prop_map(
        |(backend_state, version, health, [have_node_key, asks, online])| {
            let mut status = Status {
                version,
                backend_state,
                have_node_key,
                health,
                ..Status::default()
            };
            status.node.online = online;
            if asks {
                status.auth_url = "https://x".into();
            }
            status
        },
    )
}

fn some_prefs() -> impl Strategy<Value = Prefs> {
    (
        some_server(),
        any::<[bool; 4]>(),
        some_words(),
        any::<bool>(),
    )
        .prop_map(|(server, [want, out, ssh, exit], hostname, has_node)| {
            let prefs = json!({
                "ControlURL": server, "WantRunning": want, "LoggedOut": out, "RunSSH": ssh,
                "Hostname": if ssh { "" } else { hostname.as_str() },
                "AdvertiseRoutes": if exit { json!(["0.0.0.0/0", "::/0"]) } else { json!(null) },
                "Config": { "NodeID": if has_node { "n1" } else { "" } },
            });
            serde_json::from_value(prefs).expect("an object")
        })
}

fn some_error() -> impl Strategy<Value = LocalApiError> {
    (0..5u8, some_words()).prop_map(|(kind, words)| match kind {
        0 => LocalApiError::Unreachable(words),
        1 => LocalApiError::NoAnswer,
        2 => LocalApiError::Denied(words),
        3 => LocalApiError::Locked(words),
        _ => LocalApiError::BadAnswer(words),
    })
}

fn some_profile() -> impl Strategy<Value = Option<String>> {
    option::of(select(&["", "a", "b"][..]).prop_map(str::to_owned))
}

fn some_digest() -> impl Strategy<Value = String> {
    select(&["d1", "d2"][..]).prop_map(str::to_owned)
}

fn some_record() -> impl Strategy<Value = Record> {
    let login = (
        some_profile(),
        some_server(),
        some_flags(),
        some_digest(),
        some_prefs(),
    )
        .prop_map(|(profile, server, flags, key, before)| BegunLogin {
            at: 1,
            profile: profile.unwrap_or_default(),
            server: server.to_owned(),
            flags,
            key,
            before,
        });
    let refused =
        (some_digest(), some_server(), some_words()).prop_map(|(digest, server, words)| {
            RefusedKey {
                at: 1,
                digest,
                server: server.to_owned(),
                words,
            }
        });
    (option::of(login), option::of(refused), any::<bool>()).prop_map(
        |(login, refused, is_salted)| Record {
            salt: [is_salted.into(); 16],
            login,
            refused,
        },
    )
}

fn some_key() -> impl Strategy<Value = Result<KeyFacts, NoKey>> {
    let kinds = vec![
        KeyKind::Auth,
        KeyKind::Headscale,
        KeyKind::OAuthSecret { names_api: true },
    ];
    prop_oneof![
        6 => (select(kinds), some_digest())
            .prop_map(|(kind, digest)| Ok(KeyFacts { kind, digest })),
        1 => Just(Err(NoKey::Busy)),
        1 => Just(Err(NoKey::File(KeyFileError::Missing("/k".into())))),
        1 => Just(Err(NoKey::File(KeyFileError::unusable("/k".as_ref(), "is a directory")))),
    ]
}

fn some_end() -> impl Strategy<Value = Ended> {
    (0..16u8, some_words(), any::<i32>()).prop_map(|(kind, words, code)| match kind {
        0 | 1 => Ended::Done,
        2 => Ended::LoginError(LoginError::of(&words)),
        3 => Ended::RateLimited(words),
        4 => Ended::SecretRefused(Refusal {
            what: Refused::Key,
            words,
        }),
        5 => Ended::Denied(words),
        6 => Ended::Locked,
        7 => Ended::UnknownFlag("ssh".into(), words),
        8 => Ended::BadFlags(words),
        9 => Ended::OtherServer,
        10 => Ended::BadSettings(words),
        11 => Ended::Lost(words),
        12 => Ended::Unreachable(words),
        13 => Ended::Mute(code),
        14 => Ended::Killed,
        _ => Ended::Unknown(words),
    })
}

fn some_start() -> impl Strategy<Value = Result<(), NotStarted>> {
    (0..12u8, some_words()).prop_map(|(kind, words)| match kind {
        0 => Err(NotStarted::ForNow(words)),
        1 => Err(NotStarted::NoCommand),
        2 => Err(NotStarted::CannotRun(words)),
        3 => Err(NotStarted::Untrusted(words)),
        _ => Ok(()),
    })
}

/// What may come of any action, and of waiting.
#[derive(Debug)]
struct Outcomes {
    record: Record,
    status: Result<Status, LocalApiError>,
    unbound: Option<IpAddr>,
    prefs: Result<Prefs, LocalApiError>,
    profile: Option<String>,
    live: bool,
    key: Result<KeyFacts, NoKey>,
    started: Result<(), NotStarted>,
    ended: Ended,
    done: Result<(), LocalApiError>,
    not_taken: Option<Vec<String>>,
    notice: Notice,
}

fn some_outcomes() -> impl Strategy<Value = Outcomes> {
    let notice = (vec(some_prefs(), 0..3), any::<[bool; 2]>());
    let notice = notice.prop_map(|(prefs, [after_a_gap, running])| Notice {
        prefs,
        after_a_gap,
        running,
    });
    let rarely = |error| prop_oneof![7 => Just(None), 1 => error];
    let error = || rarely(some_error().prop_map(Some).boxed());
    let seen = (
        some_status(),
        error(),
        option::weighted(0.1, any::<IpAddr>()),
    );
    let told = (some_prefs(), error(), some_profile(), any::<bool>());
    let names = option::weighted(
        0.9,
        vec(select(&["RunSSH", "x"][..]).prop_map(str::to_owned), 0..2),
    );
    (
        some_record(),
        seen,
        told,
        some_key(),
        some_start(),
        some_end(),
        (error(), names),
        notice,
    )
        .prop_map(
            |(record, seen, told, key, started, ended, (refused, not_taken), notice)| Outcomes {
                record,
                status: seen.1.map_or(Ok(seen.0), Err),
                unbound: seen.2,
                prefs: told.1.map_or(Ok(told.0), Err),
                profile: told.2,
                live: told.3,
                key,
                started,
                ended,
                done: refused.map_or(Ok(()), Err),
                not_taken,
                notice,
            },
        )
}

impl Outcomes {
    /// What comes of this action.
    fn of(self, action: &Action) -> Event {
        match action {
            Action::ReadRecord => Event::Record(self.record),
            Action::Look => Event::Seen {
                status: self.status,
                unbound: self.unbound,
                prefs: self.prefs.ok(),
            },
            Action::ReadPrefs => Event::Prefs {
                prefs: self.prefs,
                profile: self.profile,
                live: self.live,
            },
            Action::ReadKey => Event::Key(self.key),
            Action::ReleaseKey => Event::Released,
            Action::Write(asked) => Event::Written {
                asked: asked.clone(),
                written: asked.clone(),
            },
            Action::LogIn(_) => Event::Started(self.started),
            Action::StopCommand => Event::CommandStopped,
            Action::Restart(_) => Event::Restarted(self.done),
            Action::BringUp => Event::BroughtUp(self.done),
            Action::PutBack { .. } => Event::PutBack(self.done.map(|()| self.not_taken)),
            Action::TakeBack { .. } => {
                Event::TookBack(self.done.and_then(|()| self.prefs.map(Some)))
            }
            _ => Event::Woke,
        }
    }

    /// Any event, whether it has been asked for or not.
    fn any(self, which: u8) -> Event {
        match which % 17 {
            0 => Event::Told(self.notice),
            1 => Event::Ended(self.ended),
            2 => Event::Stop,
            3 => Event::TimeUp(None),
            4 => Event::Woke,
            5 => self.of(&Action::ReadRecord),
            6 => self.of(&Action::ReadPrefs),
            7 => self.of(&Action::ReadKey),
            8 => Event::Released,
            9 => {
                let record = self.record;
                Event::Written {
                    asked: record.clone(),
                    written: record,
                }
            }
            10 => Event::Started(self.started),
            11 => Event::CommandStopped,
            12 => Event::Restarted(self.done),
            13 => Event::BroughtUp(self.done),
            14 => Event::PutBack(self.done.map(|()| self.not_taken)),
            15 => Event::TookBack(self.done.and_then(|()| self.prefs.map(Some))),
            _ => self.of(&Action::Look),
        }
    }
}

fn some_distance() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => Just(Duration::ZERO),
        8 => (0..3000u64).prop_map(Duration::from_millis),
        4 => (0..1000u64).prop_map(Duration::from_secs),
        1 => any::<Duration>(),
        1 => Just(Duration::MAX),
    ]
}

fn some_setup() -> impl Strategy<Value = Setup> {
    let server = option::of(select(&[TAILSCALES_SERVER, OWN, OTHER][..]).prop_map(str::to_owned));
    (server, some_flags(), select(&[0, 300][..])).prop_map(|(server, flags, wait)| Setup {
        server,
        flags,
        authkey_wait: Duration::from_secs(wait),
        key_file: "/k".into(),
        ..Setup::default()
    })
}

/// What is known from outside of a machine, to judge it by.
#[derive(Default)]
struct Shadow {
    seen: Option<Situation>,
    command_runs: bool,
    stored: Record,
    key: Option<KeyFacts>,
    /// All that were ever said to be the node's own.
    servers: Vec<String>,
    is_ending: bool,
}

impl Shadow {
    fn on(&mut self, event: &Event) {
        let mut server = |prefs: &Prefs| {
            self.servers
                .push(prefs::text(prefs, "ControlURL").to_owned());
        };
        match event {
            Event::Record(record) => self.stored = record.clone(),
            Event::Written { written, .. } => self.stored = written.clone(),
            Event::Seen {
                status,
                unbound,
                prefs,
            } => {
                self.seen = Some(match status {
                    Ok(status) => Situation::of(status, *unbound),
                    Err(error) => Situation::without_status(error),
                });
                if let Some(prefs) = prefs {
                    server(prefs);
                }
            }
            Event::Prefs {
                prefs: Ok(prefs), ..
            } => server(prefs),
            Event::Told(notice) => {
                notice.prefs.iter().for_each(server);
            }
            Event::Key(key) => self.key = key.clone().ok(),
            Event::Started(Ok(())) => self.command_runs = true,
            Event::Ended(_) | Event::CommandStopped => self.command_runs = false,
            Event::Stop | Event::TimeUp(_) => self.is_ending = true,
            _ => {}
        }
    }

    fn judge(&self, action: &Action, setup: &Setup, now: Time) -> Result<(), TestCaseError> {
        match action {
            Action::Wait(waiting, until) => {
                prop_assert!(!waiting.to_string().is_empty());
                prop_assert!(*until >= now, "{until:?} at {now:?}");
            }
            Action::LogIn(flags) => {
                let begun = self.stored.login.as_ref().expect("a record before a login");
                let server = begun.server.as_str();
                match &setup.server {
                    Some(asked) => prop_assert_eq!(asked, server),
                    None => {
                        let is_own = self.servers.iter().any(|own| own == server);
                        prop_assert!(
                            is_own || server == TAILSCALES_SERVER,
                            "{server} is nobody's"
                        );
                    }
                }
                let is_elsewhere = setup.server.is_some()
                    && self.servers.iter().any(|own| !is_same_server(own, server));
                prop_assert!(!self.command_runs, "two commands at once");
                prop_assert!(!self.is_ending, "a login at the end of a run");
                let seen = self.seen.as_ref().expect("a look before a login");
                prop_assert!(needs_login(seen, is_elsewhere), "a login of {seen:?}");
                let key = self.key.as_ref().expect("a key before a login");
                prop_assert!(
                    belongs_to(key.kind, server).is_ok(),
                    "{key:?} sent to {server}"
                );
                let refused = self.stored.refused.as_ref();
                let is_refused =
                    refused.is_some_and(|it| it.digest == key.digest && it.server == server);
                prop_assert!(!is_refused, "a refused key sent again");
                prop_assert_eq!(&begun.key, &key.digest);
                let is_named = flags.contains(&format!("--login-server={server}"));
                prop_assert!(is_named || server == TAILSCALES_SERVER);
                prop_assert!(flags.ends_with(&setup.flags));
            }
            Action::ReadKey => {
                let seen = self.seen.as_ref().expect("a look before the key is read");
                prop_assert!(!seen.is_connected(), "the key is read of {seen:?}");
            }
            Action::Finish(_) => {
                prop_assert!(self.seen.as_ref().is_some_and(Situation::is_connected))
            }
            Action::Restart(_) | Action::BringUp => prop_assert!(!self.is_ending),
            Action::StopCommand => prop_assert!(self.command_runs),
            Action::Stopped => prop_assert!(self.is_ending),
            _ => {}
        }
        Ok(())
    }
}

/// What is done at once, if each action succeeds and nothing else happens.
fn settle(
    machine: &mut Machine,
    shadow: &mut Shadow,
    setup: &Setup,
    now: Time,
    outcomes: &Outcomes,
) -> Result<(), TestCaseError> {
    let mut prefs = outcomes.prefs.clone().unwrap_or_default();
    let mut done = Vec::new();
    while done.len() < MOST_AT_ONCE {
        let action = machine.next(now);
        shadow.judge(&action, setup, now)?;
        let event = match &action {
            Action::Wait(..) | Action::Finish(_) | Action::Fail(_) | Action::Stopped => {
                return Ok(());
            }
            Action::ReadRecord => Event::Record(outcomes.record.clone()),
            Action::Look => Event::Seen {
                status: outcomes.status.clone(),
                unbound: outcomes.unbound,
                prefs: machine.wants_prefs().then(|| prefs.clone()),
            },
            Action::ReadPrefs => Event::Prefs {
                prefs: Ok(prefs.clone()),
                profile: outcomes.profile.clone(),
                live: outcomes.live,
            },
            Action::ReadKey => Event::Key(outcomes.key.clone()),
            Action::ReleaseKey => Event::Released,
            Action::Write(record) => Event::Written {
                asked: record.clone(),
                written: record.clone(),
            },
            Action::LogIn(_) => Event::Started(Ok(())),
            Action::StopCommand => Event::CommandStopped,
            Action::Restart(_) => Event::Restarted(Ok(())),
            Action::BringUp => Event::BroughtUp(Ok(())),
            Action::PutBack { prefs: put, .. } => {
                prefs.extend(put.clone());
                Event::PutBack(Ok(Some(Vec::new())))
            }
            Action::TakeBack { prefs: before, .. } => {
                prefs = before.clone();
                Event::TookBack(Ok(Some(before.clone())))
            }
        };
        done.push(action.name());
        shadow.on(&event);
        machine.on(event, now);
    }
    Err(TestCaseError::fail(format!("so much at once: {done:?}")))
}

proptest! {
    #![proptest_config(sequences())]

    #[test]
    fn whatever_happens_a_key_goes_only_where_it_may_and_each_wait_has_an_end(
        setup in some_setup(),
        seed: u64,
        steps in vec((some_distance(), some_outcomes(), option::weighted(0.3, any::<u8>())), 1..40),
        at_last in some_outcomes(),
    ) {
        let mut machine = Machine::new(setup.clone(), seed);
        let mut shadow = Shadow::default();
        let mut now = Time::ZERO;
        for (distance, outcomes, odd) in steps {
            now = now.saturating_add(distance);
            let action = machine.next(now);
            shadow.judge(&action, &setup, now)?;
            let event = match (&action, odd) {
                // A machine reads its record before all else.
                (Action::ReadRecord, _) => outcomes.of(&action),
                (_, Some(which)) => outcomes.any(which),
                (Action::Wait(_, until), None) => {
                    now = *until;
                    Event::Woke
                }
                (Action::Finish(_) | Action::Fail(_) | Action::Stopped, None) => break,
                (action, None) => outcomes.of(action),
            };
            shadow.on(&event);
            machine.on(event, now);
            machine.notes();
        }
        // At the end of time, nothing can be put off.
        if now < Duration::MAX / 2 {
            settle(&mut machine, &mut shadow, &setup, now, &at_last)?;
        }
    }
}
