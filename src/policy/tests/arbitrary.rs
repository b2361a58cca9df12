//! Any events in any order, at any distance in time: what must hold even so.

use fastrand::Rng;
use proptest::collection::vec;

use super::*;

/// More actions than a machine may do without waiting, if each succeeds.
const MOST_AT_ONCE: usize = 40;

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
            self.servers.push(prefs::text(prefs, "ControlURL").to_owned());
        };
        match event {
            Event::Record(record) => self.stored = record.clone(),
            Event::Written { written, .. } => self.stored = (**written).clone(),
            Event::Seen { status, unbound, prefs } => {
                self.seen = Some(Situation::of(status.as_ref(), *unbound));
                if let Some(prefs) = prefs {
                    server(prefs);
                }
            }
            Event::Prefs { prefs: Ok(prefs), .. } => server(prefs),
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
                        prop_assert!(is_own || server == TAILSCALES_SERVER, "{server} is nobody's");
                    }
                }
                let is_elsewhere = setup.server.is_some()
                    && self.servers.iter().any(|own| !is_same_server(own, server));
                prop_assert!(!self.command_runs, "two commands at once");
                prop_assert!(!self.is_ending, "a login at the end of a run");
                let seen = self.seen.as_ref().expect("a look before a login");
                prop_assert!(needs_login(seen, is_elsewhere), "a login of {seen:?}");
                let key = self.key.as_ref().expect("a key before a login");
                prop_assert!(belongs_to(key.kind, server).is_ok(), "{key:?} sent to {server}");
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
                let is_for_renewal = setup.stay && seen.is_connected();
                prop_assert!(is_for_renewal || !seen.is_connected(), "the key is read of {seen:?}");
            }
            Action::Renew => {
                prop_assert!(setup.stay && !self.is_ending && !self.command_runs);
                let seen = self.seen.as_ref().expect("a look before a renewal");
                prop_assert!(seen.is_connected(), "a renewal of {seen:?}");
                let key = self.key.as_ref().expect("a key before a renewal");
                let server = self.servers.last().expect("a server before a renewal");
                prop_assert!(belongs_to(key.kind, server).is_ok(), "{key:?} sent to {server}");
                prop_assert!(
                    setup.server.as_ref().is_none_or(|asked| is_same_server(asked, server))
                );
                let refused = self.stored.refused.as_ref();
                let is_refused =
                    refused.is_some_and(|it| it.digest == key.digest && it.server == *server);
                prop_assert!(!is_refused, "a refused key sent again");
            }
            Action::Finish(_) => {
                prop_assert!(!setup.stay, "a run that stays has ended");
                prop_assert!(self.seen.as_ref().is_some_and(Situation::is_connected))
            }
            Action::Restart(Why::Renewal) => prop_assert!(setup.stay),
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
    rng: &mut Rng,
) -> Result<(), TestCaseError> {
    let (mut prefs, status, key) = (chance::prefs(rng), chance::status(rng), chance::key(rng));
    let (profile, live) = (rng.bool().then(|| named("a")), rng.bool());
    let mut done = Vec::new();
    while done.len() < MOST_AT_ONCE {
        let action = machine.next(now);
        shadow.judge(&action, setup, now)?;
        let event = match &action {
            Action::Wait(..) | Action::Finish(_) | Action::Fail(_) | Action::Stopped => {
                return Ok(());
            }
            Action::Look => Event::Seen {
                status: Ok(status.clone()),
                unbound: None,
                prefs: machine.wants_prefs().then(|| prefs.clone()),
            },
            Action::ReadPrefs => {
                Event::Prefs { prefs: Ok(prefs.clone()), profile: profile.clone(), live }
            }
            Action::ReadKey => Event::Key(key.clone()),
            Action::LogIn(_) => Event::Started(Ok(())),
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
            action => chance::outcome(rng, action, false),
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
    fn whatever_happens_a_key_goes_only_where_it_may_and_no_wait_or_doing_is_without_end(
        seed: u64,
        steps in vec(any::<u64>(), 1..60),
    ) {
        let mut rng = Rng::with_seed(seed);
        let setup = chance::setup(&mut rng);
        let mut machine = Machine::new(setup.clone(), seed);
        let mut shadow = Shadow::default();
        let mut now = Time::ZERO;
        for step in steps {
            let mut rng = Rng::with_seed(step);
            let action = machine.next(now);
            shadow.judge(&action, &setup, now)?;
            let event = match &action {
                // A machine reads its record before all else.
                Action::ReadRecord => chance::outcome(&mut rng, &action, false),
                _ if chance::once_in(&mut rng, 3) => {
                    now = now.saturating_add(chance::distance(&mut rng));
                    chance::unasked(&mut rng, shadow.command_runs)
                }
                Action::Wait(_, until) => {
                    now = *until;
                    Event::Woke
                }
                Action::Finish(_) | Action::Fail(_) | Action::Stopped => break,
                action => chance::outcome(&mut rng, action, machine.wants_prefs()),
            };
            shadow.on(&event);
            machine.on(event, now);
            machine.notes();
        }
        // At the end of all time nothing can be put off.
        if now < Duration::MAX / 2 {
            settle(&mut machine, &mut shadow, &setup, now, &mut rng)?;
        }
    }

    #[test]
    fn no_event_at_no_time_is_too_much(seed: u64, steps in vec(any::<u64>(), 1..60)) {
        let setup = chance::setup(&mut Rng::with_seed(seed));
        let mut machine = Machine::new(setup, seed);
        let mut now = Time::ZERO;
        for step in steps {
            let mut rng = Rng::with_seed(step);
            now = now.saturating_add(chance::distance(&mut rng));
            let event = match rng.bool() {
                true => chance::event(&mut rng),
                false => chance::outcome(&mut rng, &machine.next(now), true),
            };
            machine.on(event, now);
            if let Action::Wait(_, until) = machine.next(now) {
                prop_assert!(until >= now);
            }
            machine.notes();
        }
    }
}
