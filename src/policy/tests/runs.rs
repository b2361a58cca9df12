//! Whole runs in a [`world`] with faults.

use fastrand::Rng;
use proptest::collection::vec;

use super::world::{World, settings};
use super::*;

/// More actions than a machine does without waiting, even if some fail.
const MOST_AT_ONCE: u32 = 60;
/// More than any end of a run takes, once all is well.
const AT_LAST: Duration = Duration::from_secs(1800);

struct Play {
    world: World,
    machine: Machine,
    happenings: Vec<(Time, u64)>,
    seed: u64,
    /// Of this run.
    began: Time,
    logins: Vec<(Time, String)>,
    at_once: u32,
    stops: Option<(Time, u32)>,
    /// What comes of it is judged, too, and not only what is done.
    judges_outcome: bool,
    /// For people who look for the cause of a failure, in this directory.
    traces: Option<String>,
    trace: Vec<String>,
}

enum End {
    Connected,
    Failed,
    Stopped,
    Waits(Waiting),
}

impl Play {
    fn new(seed: u64, steps: &[u64]) -> Self {
        let world = World::new(seed);
        let mut at = Time::ZERO;
        let mut happenings = Vec::new();
        for step in steps {
            let mut rng = Rng::with_seed(*step);
            at += match rng.u8(..4) {
                0 => Duration::from_millis(rng.u64(..50)),
                1 | 2 => Duration::from_millis(rng.u64(..4000)),
                _ => Duration::from_secs(rng.u64(..100)),
            };
            happenings.push((at, rng.u64(..)));
        }
        happenings.reverse();
        let machine = Machine::new(world.setup.clone(), seed);
        Self {
            world,
            machine,
            happenings,
            seed,
            began: Time::ZERO,
            logins: Vec::new(),
            at_once: 0,
            stops: None,
            judges_outcome: false,
            traces: std::env::var("TRACES").ok(),
            trace: Vec::new(),
        }
    }

    /// The next run, after the one before has ended or was killed.
    fn start_again(&mut self) {
        self.world.kill();
        self.seed = self.seed.wrapping_add(1);
        self.machine = Machine::new(self.world.setup.clone(), self.seed);
        self.began = self.world.now;
        self.logins.clear();
        self.at_once = 0;
        self.stops = None;
        self.trace.push("-- another run".to_owned());
    }

    fn stop(&mut self) {
        let now = self.time();
        self.machine.on(Event::Stop, now);
        self.stops = Some((self.world.now, 0));
        self.at_once = 0;
        self.trace.push("-- stop".to_owned());
    }

    fn time(&self) -> Time {
        self.world.now - self.began
    }

    /// Goes on until the run ends, `until`, or the program is killed.
    fn go_on(&mut self, until: Time) -> Result<Option<End>, TestCaseError> {
        loop {
            let now = self.time();
            let action = self.machine.next(now);
            self.judge(&action, now)?;
            match &action {
                Action::Finish(_) => return Ok(Some(End::Connected)),
                Action::Fail(failure) => {
                    self.trace.push(format!("failed: {failure}"));
                    return Ok(Some(End::Failed));
                }
                Action::Stopped => return Ok(Some(End::Stopped)),
                Action::Wait(waiting, _) if self.world.now >= until => {
                    return Ok(Some(End::Waits(waiting.clone())));
                }
                _ => {}
            }
            let wants_prefs = self.machine.wants_prefs();
            // The world has one time, and each run another.
            let event = match &action {
                Action::Wait(_, until) => {
                    self.world.wait(self.began.saturating_add(*until), &mut self.happenings)
                }
                action => self.world.act(action, wants_prefs, &mut self.happenings),
            };
            if self.world.kills {
                return Ok(None);
            }
            if self.traces.is_some() {
                let at = self.world.now;
                self.trace.push(format!("{at:?} {action:?} -> {}", brief_event(&event)));
            }
            let now = self.time();
            if let Some(notice) = self.world.told_before.take() {
                self.machine.on(Event::Told(notice), now);
            }
            self.machine.on(event, now);
            self.machine.notes();
        }
    }

    fn judge(&mut self, action: &Action, now: Time) -> Result<(), TestCaseError> {
        match action {
            Action::Wait(waiting, until) => {
                prop_assert!(*until > now, "a wait for nothing: {waiting}");
                self.at_once = 0;
            }
            _ => {
                self.at_once += 1;
                prop_assert!(self.at_once < MOST_AT_ONCE, "so much at once");
            }
        }
        if let Action::LogIn(_) = action {
            self.judge_login(now)?;
        }
        if let Some((since, actions)) = &mut self.stops {
            *actions += 1;
            prop_assert!(
                *actions < 60 && self.world.now <= *since + Duration::from_secs(3),
                "an endless end"
            );
            prop_assert!(!matches!(
                action,
                Action::LogIn(_) | Action::Restart(_) | Action::BringUp
            ));
        }
        Ok(())
    }

    fn judge_login(&mut self, now: Time) -> Result<(), TestCaseError> {
        let world = &self.world;
        let begun = world.store.login.as_ref().expect("a record before a login");
        let known = world.known.as_ref().expect("the preferences before a login");
        let own = prefs::text(known, "ControlURL");
        let asked = world.setup.server.as_deref();
        let is_elsewhere =
            asked.is_some_and(|asked| !own.is_empty() && !is_same_server(asked, own));
        let seen = world.seen.as_ref().expect("a look before a login");
        prop_assert!(needs_login(seen, is_elsewhere), "a login of {seen:?}");
        prop_assert!(!world.command_runs(), "two commands at once");
        // Without a bus, a login that changes no preference does not show.
        let is_second = world.is_at_our_login() && world.has_told_all();
        prop_assert!(!is_second, "a login beside one of ours");
        let refused = world.store.refused.as_ref();
        let is_refused =
            refused.is_some_and(|it| it.digest == begun.key && it.server == begun.server);
        prop_assert!(!is_refused, "a refused key sent again");
        // Each key and each flag that is not known may have one login more.
        self.logins.push((now, begun.key.clone()));
        let mut keys: Vec<_> = self.logins.iter().map(|(_, key)| key).collect();
        keys.sort();
        keys.dedup();
        let mut most = 4 + 2 * keys.len();
        let mut slept = Duration::ZERO;
        while slept < now {
            slept += Duration::from_millis(500) * 2u32.pow(u32::try_from(most).unwrap_or(9).min(9));
            most += 1;
        }
        prop_assert!(self.logins.len() <= most, "{} logins by {now:?}", self.logins.len());
        Ok(())
    }

    /// What an end without a connection leaves: all as before, or a record.
    fn judge_failed(&self) -> Result<(), TestCaseError> {
        if !self.judges_outcome {
            return Ok(());
        }
        let profile = self.world.profile();
        let has_lost = !prefs::differences(&profile.wanted, &profile.prefs).is_empty();
        let is_as_before = !(has_lost && self.world.has_told_all())
            && prefs::text(&profile.wanted, "ControlURL")
                == prefs::text(&profile.prefs, "ControlURL");
        prop_assert!(
            is_as_before || self.world.store.login.is_some() || !self.world.up,
            "a failed login leaves {:?}",
            prefs::differences(&profile.prefs, &profile.wanted)
        );
        Ok(())
    }

    /// No setting of the node is lost by its logins, as far as its bus has told of all changes.
    fn judge_settings(&self) -> Result<(), TestCaseError> {
        let profile = self.world.profile();
        let lost = prefs::differences(&settings(&profile.wanted), &settings(&profile.prefs));
        prop_assert!(lost.is_empty() || !self.world.has_told_all(), "settings lost: {:?}", lost);
        Ok(())
    }

    fn play(&mut self) -> Result<(), TestCaseError> {
        let mut rng = Rng::with_seed(self.seed ^ 0x5eed);
        while let Some((at, _)) = self.happenings.first().copied() {
            let stop_at = self.world.now + Duration::from_millis(rng.u64(..60_000));
            let end = self.go_on(at.min(stop_at))?;
            match end {
                Some(End::Waits(_)) if self.world.now >= at => break,
                Some(End::Waits(_)) => {
                    self.stop();
                    self.go_on(Time::MAX)?;
                    if !self.world.kills {
                        self.judge_failed()?;
                    }
                }
                Some(End::Failed | End::Stopped) => self.judge_failed()?,
                Some(End::Connected) => {}
                None => {}
            }
            self.start_again();
            let later = self.world.now + Duration::from_millis(rng.u64(..5000));
            self.world.pass(later, &mut self.happenings, false);
            self.world.kills = false;
        }
        if !self.judges_outcome {
            return Ok(());
        }
        self.world.heal();
        self.trace.push("-- all is well from now on".to_owned());
        let until = self.world.now + AT_LAST;
        for _ in 0..4 {
            match self.go_on(until)? {
                Some(End::Connected) => {
                    prop_assert!(self.world.online, "it says that it is connected");
                    return self.judge_settings();
                }
                Some(End::Waits(Waiting::StoppedByOther)) if self.world.was_stopped => {
                    return Ok(());
                }
                Some(End::Waits(waiting)) => prop_assert!(false, "it waits for ever: {waiting}"),
                // It may be of the key before.
                Some(End::Failed) | None => self.start_again(),
                Some(End::Stopped) => prop_assert!(false, "nobody has stopped it"),
            }
        }
        prop_assert!(false, "it fails again and again");
        Ok(())
    }
}

fn brief(what: &impl std::fmt::Debug) -> String {
    format!("{what:?}").chars().take(900).collect()
}

fn brief_event(event: &Event) -> String {
    match event {
        Event::Seen { status: Ok(status), prefs, .. } => {
            format!("{:?} {prefs:?}", Situation::of(Ok(status), None))
        }
        event => brief(event),
    }
}

fn play(seed: u64, steps: &[u64], judges_outcome: bool) -> Result<(), TestCaseError> {
    let mut play = Play::new(seed, steps);
    play.judges_outcome = judges_outcome;
    let result = play.play();
    // The shortest is the best.
    if let (Err(error), Some(directory)) = (&result, &play.traces) {
        let name = error.to_string().replace(|c: char| !c.is_ascii_lowercase(), "");
        let path = format!("{directory}/{name:.40}");
        let text = format!("{}\n{error}\n", play.trace.join("\n"));
        if std::fs::read(&path).map_or(true, |old| old.len() > text.len()) {
            std::fs::write(path, text).expect("a place for the trace");
        }
    }
    result
}

proptest! {
    // A whole run has many events.
    #![proptest_config(ProptestConfig { cases: sequences().cases / 10, ..sequences() })]

    #[test]
    fn whatever_goes_wrong_no_login_is_one_too_many_and_each_run_ends_when_it_is_told_to(
        seed: u64,
        steps in vec(any::<u64>(), 0..16),
    ) {
        play(seed, &steps, false)?;
    }

    #[test]
    fn whatever_goes_wrong_a_node_connects_once_all_is_well(
        seed: u64,
        steps in vec(any::<u64>(), 0..16),
    ) {
        play(seed, &steps, true)?;
    }
}
