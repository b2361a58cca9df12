//! What to do next: the state table of CONTRIBUTING.md, grouped by what tailscaled shows.

use super::*;

impl Machine {
    /// What to do now.
    pub fn next(&self, now: Time) -> Action {
        let action = match &self.stopping {
            Some(stopping) => self.wind_up(stopping, now),
            None => self.decide(now),
        };
        match action {
            // Others may have the key meanwhile.
            Action::Wait(..) if matches!(self.key, Key::Ready(_)) && !self.needs_key() => {
                Action::ReleaseKey
            }
            Action::Wait(waiting, until) => Action::Wait(waiting, until.max(now)),
            action => action,
        }
    }

    fn decide(&self, now: Time) -> Action {
        use Situation as S;
        let Some(record) = &self.record else {
            return Action::ReadRecord;
        };
        let Some(situation) = &self.situation else {
            return Action::Look;
        };
        if let Some(wait) = self.wait_after_objection(now) {
            return wait;
        }
        // What is to be remembered is so before anything else is done.
        let is_due =
            |unsaved: Time| now >= unsaved.saturating_add(RETRY_FIRST) && record.login.is_some();
        if *record != self.stored || self.unsaved.is_some_and(is_due) {
            return Action::Write(record.clone());
        }
        match situation {
            S::NoDaemon => return self.wait(Waiting::Tailscaled, now),
            S::Denied(_) if self.lasted(now) < SOCKET_PATIENCE => {
                return self.wait(Waiting::Tailscaled, now);
            }
            S::Denied(why) => return Action::Fail(Failure::Denied(why.clone())),
            S::Unintelligible(why) => return self.wait(Waiting::Answer(why.clone()), now),
            _ => {}
        }
        if let Some(action) = self.for_login(situation, now) {
            return action;
        }
        let lasted = self.lasted(now);
        let error = situation.login_error();
        // The control server that this node has is not the one that is asked for.
        let elsewhere = self.is_asked_elsewhere() && !self.is_staying();
        if let S::AddressPending(address) = situation
            && lasted < ADDRESS_PATIENCE
        {
            return self.wait(Waiting::Address(*address), now);
        }
        if let Stay::Begun(keeping) = &self.stay
            && let Some(action) = self.keep(keeping, situation, now)
        {
            return action;
        }
        // A key that somebody sent was refused, and keeps the node off.
        if let S::Settling { .. } | S::SettlingNew { .. } | S::Offline { .. } | S::NeedsLogin { .. } =
            situation
            && let Some(LoginError::Refused(refusal)) = error
            && now >= self.stranded.not_before
        {
            return Action::Restart(Why::Stranded(refusal.words.clone()));
        }
        match situation {
            S::ConnectedWithDeadKey(words) if now >= self.stranded.not_before => {
                Action::Restart(Why::DeadKey(words.clone()))
            }
            S::ConnectedWithDeadKey(_) if self.is_staying() => self.wait(self.staying(), now),
            // The login has just come to its end.
            S::Connected | S::ConnectedWithDeadKey(_) | S::AddressPending(_)
                if self.stay == Stay::Asked =>
            {
                Action::Look
            }
            S::Connected | S::ConnectedWithDeadKey(_) | S::AddressPending(_) => self.finish(),

            // A moment after its start it is not online yet.
            S::Settling { .. } | S::SettlingNew { .. } | S::Offline { .. }
                if elsewhere && (error.is_some() || lasted >= SETTLING_PATIENCE) =>
            {
                self.log_in(now)
            }
            S::Stopped | S::NeedsApproval if elsewhere => self.log_in(now),
            // Nothing comes of it by itself: a login has failed half-way, as on a disk that was full.
            S::SettlingNew { error: None | Some(LoginError::Unknown(_)) }
                if lasted >= SETTLING_PATIENCE =>
            {
                self.log_in_unless_others(lasted, now)
            }
            // An auth key would not help here, and could take the node off.
            S::Settling { .. } | S::Offline { .. } if self.may_restart(lasted, now) => {
                Action::Restart(Why::Offline)
            }
            S::Settling { error: None } | S::SettlingNew { error: None } => {
                let until = self.since.saturating_add(SETTLING_PATIENCE);
                self.wait_until(Waiting::Settling, until, now)
            }
            S::Settling { .. } | S::SettlingNew { .. } | S::Offline { .. } => {
                self.wait_for_server(now)
            }

            S::Stopped if self.brought_up => self.wait(Waiting::StoppedByOther, now),
            S::Stopped => Action::BringUp,
            S::NeedsApproval => self.wait(Waiting::Approval, now),

            S::NeedsLogin { .. } => self.log_in_unless_others(lasted, now),
            S::AsksForPerson { .. } => self.log_in(now),

            S::StoreFailed(words) => self.wait(Waiting::StoreFailed(words.clone()), now),
            S::Unknown(state) => self.wait(Waiting::Unknown(state.clone()), now),
            S::NoDaemon | S::Denied(_) | S::Unintelligible(_) => {
                self.wait(Waiting::Tailscaled, now)
            }
        }
    }

    /// The node is connected, and nothing is left to do. (A login has been seen to before.)
    fn finish(&self) -> Action {
        let none = Status::default();
        Action::Finish(Connected::of(self.status.as_ref().unwrap_or(&none), self.has_logged_in))
    }

    /// Someone's login may be under way: a second one would burn a single-use key.
    fn log_in_unless_others(&self, lasted: Duration, now: Time) -> Action {
        if self.known.is_none() {
            // The preferences are worth asking for only if there is a key.
            return self.with_key(now, |_| Action::ReadPrefs);
        }
        let is_others = self.others_login && self.stranded.tries == 0 && !self.is_asked_elsewhere();
        // One that is told what nobody here knows may never come to its end.
        let is_unreachable = matches!(self.login_error(), Some(LoginError::Unreachable(_)));
        if is_others && self.logins == 0 && (lasted < OTHERS_PATIENCE || is_unreachable) {
            let until = self.since.saturating_add(OTHERS_PATIENCE);
            return match is_unreachable {
                true => self.wait_for_server(now),
                false => self.wait_until(Waiting::LoggingIn, until, now),
            };
        }
        self.log_in(now)
    }

    /// A login is needed and nothing stands against it but, perhaps, the key file.
    pub(super) fn with_key(&self, now: Time, ready: impl FnOnce(&KeyFacts) -> Action) -> Action {
        match &self.key {
            Key::Unread => Action::ReadKey,
            Key::Ready(facts) => ready(facts),
            Key::Busy => self.wait(Waiting::OtherRun, now),
            Key::Wanting(Problem::Missing) if self.setup.authkey_optional => {
                Action::Fail(Failure::NoKey(self.setup.key_file.clone()))
            }
            Key::Wanting(problem) => {
                let error = problem.clone().at(&self.setup.key_file);
                let over =
                    self.key_wanted_since.unwrap_or(now).saturating_add(self.setup.authkey_wait);
                match problem.is_worth_a_wait() && now < over {
                    true => self.wait_until(Waiting::KeyFile(error), over, now),
                    false => Action::Fail(Failure::KeyFile(error)),
                }
            }
        }
    }

    fn log_in(&self, now: Time) -> Action {
        if self.command_runs {
            // Of a login that is over, as on a profile that is no longer in use.
            return Action::StopCommand;
        }
        if let Login::Pausing { words, until } = &self.login
            && now < *until
        {
            return self.wait_for_retry(words, *until, now);
        }
        self.with_key(now, |facts| {
            let Some(known) = &self.known else {
                return Action::ReadPrefs;
            };
            let asked = self.setup.server.as_deref();
            let server = server_of_login(asked, prefs::text(&known.prefs, "ControlURL")).to_owned();
            if let Err(problem) = belongs_to(facts.kind, &server) {
                return Action::Fail(Failure::KeyFile(problem.at(&self.setup.key_file)));
            }
            if let Some(refused) = &self.stored.refused
                && is_refused(facts, &server, refused)
            {
                return Action::Fail(Failure::RefusedBefore {
                    file: self.setup.key_file.clone(),
                    words: refused.words.clone(),
                });
            }
            let history = self.history_of_login(known);
            let login = BegunLogin {
                at: 0,
                profile: known.profile.clone().unwrap_or_default(),
                server: server.clone(),
                flags: self.setup.flags.clone(),
                key: facts.digest.clone(),
                before: history.without_the_login(),
            };
            let is_stored =
                self.stored.login.as_ref().is_some_and(|stored| stored.is_same_as(&login));
            if !is_stored {
                return Action::Write(Record { login: Some(login), ..self.stored.clone() });
            }
            Action::LogIn(self.flags_of_login(&history, &server, &known.prefs))
        })
    }

    /// The history of a login that is about to begin. One that came to nothing before is not to be
    /// seen in it.
    pub(super) fn history_of_login(&self, known: &Known) -> History {
        let version = self.version();
        let flags = self.setup.flags.clone();
        let mut history = match &self.history {
            Some(history)
                if self.is_of(known.profile.as_ref()) && !history.has_succeeded(&known.prefs) =>
            {
                history.again(known.prefs.clone(), flags, version)
            }
            _ => History::new(known.prefs.clone(), flags, version),
        };
        // What the command has no flag for is put back after the login.
        let is_unknown = |flag: &str| self.unknown_flags.iter().any(|unknown| unknown == flag);
        history.ours.retain(|flag| !flags::name(flag).is_some_and(is_unknown));
        history
    }

    fn flags_of_login(&self, history: &History, server: &str, prefs: &Prefs) -> Vec<String> {
        let mut flags = Vec::new();
        let is_given = flags::value(&self.setup.flags, "login-server").is_some();
        if !is_given && (self.setup.server.is_some() || server != TAILSCALES_SERVER) {
            flags.push(format!("--login-server={server}"));
        }
        let runs = self.status.as_ref().is_some_and(|status| status.backend_state == "Running");
        if runs && !is_same_server(prefs::text(prefs, "ControlURL"), server) {
            // `up` of a running node takes another login server only so.
            flags.push("--force-reauth".to_owned());
        }
        flags.extend(history.ours.iter().cloned());
        flags.extend(self.setup.flags.iter().cloned());
        flags
    }

    /// Whether the node is another login server's than the asked one.
    pub(super) fn is_asked_elsewhere(&self) -> bool {
        match (&self.setup.server, &self.server) {
            (Some(asked), Some(own)) => !own.is_empty() && !is_same_server(own, asked),
            _ => false,
        }
    }

    /// Whether a restart of the login without a key is due. Since 1.82 it leaves the network map in
    /// place; before, it cuts a running node off until the control server answers (measured on
    /// 1.80.3, 1.98.10 and 1.102.5).
    fn may_restart(&self, lasted: Duration, now: Time) -> bool {
        let is_cause = match (&self.situation, self.login_error()) {
            // One with a dead key is stranded, which has a back-off of its own.
            (_, Some(LoginError::Refused(_))) => false,
            (Some(Situation::Offline { .. }), _) => self.version() >= (1, 82),
            // tailscaled goes on by itself where the control server cannot be reached.
            (_, error) => matches!(error, Some(LoginError::Unknown(_))),
        };
        is_cause && lasted >= OFFLINE_PATIENCE && now >= self.offline.not_before
    }

    pub(super) fn login_error(&self) -> Option<&LoginError> {
        self.situation.as_ref()?.login_error()
    }

    pub(super) fn version(&self) -> (u32, u32) {
        self.status.as_ref().map_or((0, 0), Status::major_and_minor)
    }

    /// How long what is seen has been of its kind.
    pub(super) fn lasted(&self, now: Time) -> Duration {
        now.saturating_sub(self.since)
    }

    /// What tailscaled did not do is tried again after a look, ever less often; what it says is what is
    /// waited for.
    pub(super) fn wait_after_objection(&self, now: Time) -> Option<Action> {
        let Objection { since, last, words } = self.objection.as_ref()?;
        let pause = (last.saturating_sub(*since) / 10).clamp(LOOK_LEAST, LOOK_MOST);
        let until = last.saturating_add(pause);
        (now < until).then(|| Action::Wait(Waiting::Answer(words.clone()), until))
    }

    /// Waits until the next look, which comes whatever is told meanwhile.
    pub(super) fn wait(&self, what: Waiting, now: Time) -> Action {
        let least = match self.situation {
            Some(Situation::NoDaemon) => LOOK_LEAST_WITHOUT_DAEMON,
            _ if self.command_runs && self.is_told => LOOK_LEAST_BESIDE_COMMAND,
            _ => LOOK_LEAST,
        };
        let since = self.since.max(self.login_since);
        let rest = (now.saturating_sub(since) / 10).clamp(least, LOOK_MOST);
        let look = self.looked.saturating_add(rest).max(now.saturating_add(OVERDUE));
        Action::Wait(what, look)
    }

    /// The same, but no longer than until `limit`, when there is something else to do.
    pub(super) fn wait_until(&self, what: Waiting, limit: Time, now: Time) -> Action {
        match self.wait(what, now) {
            Action::Wait(what, until) if limit > now => Action::Wait(what, until.min(limit)),
            wait => wait,
        }
    }

    /// Waits for the control server, and says why.
    pub(super) fn wait_for_server(&self, now: Time) -> Action {
        let why = self.login_error().map(|error| error.words().to_owned());
        self.wait(Waiting::ControlServer(why), now)
    }

    /// Waits for the next login.
    pub(super) fn wait_for_retry(&self, words: &str, until: Time, now: Time) -> Action {
        let left = Duration::from_secs(until.saturating_sub(now).as_secs() + 1);
        self.wait_until(Waiting::Retry(words.to_owned(), left), until, now)
    }
}
