//! What a machine learns from each event.

use std::net::IpAddr;

use super::*;

impl Machine {
    /// Takes in what has happened.
    pub fn on(&mut self, event: Event, now: Time) {
        match event {
            Event::Record(record) => self.on_record(record),
            Event::RecordAgain(record) => self.on_record_again(record),
            Event::Seen { status, unbound, prefs } => self.on_seen(status, unbound, prefs, now),
            Event::Prefs { prefs: Ok(prefs), profile, live } => {
                self.on_prefs(prefs, profile, live, now)
            }
            Event::Prefs { prefs: Err(error), .. } => {
                self.situation = None;
                self.objected(&error, now);
            }
            Event::Clock(clock) => self.clock = clock,
            Event::Renewed(result) => self.on_renewal_sent(result, now),
            Event::Postponed(obstacle) => self.on_postponed(obstacle, now),
            Event::Pinged => self.on_pinged(),
            Event::Told(notice) => self.on_told(notice),
            Event::Key(key) => self.on_key(key, now),
            Event::Released => self.key = Key::Unread,
            Event::Written { asked, written, saved } => {
                self.unsaved = (!saved).then_some(now);
                if self.record.as_ref() == Some(&asked) || asked.login.is_some() {
                    self.record = Some((*written).clone());
                }
                self.stored = *written;
            }
            Event::Started(started) => self.on_started(started, now),
            Event::Ended(ended) => self.on_ended(ended, now),
            Event::CommandStopped => self.on_command_stopped(now),
            Event::Restarted(result) => self.on_restarted(result, now),
            Event::BroughtUp(result) => self.on_brought_up(result, now),
            Event::PutBack(result) => self.on_put_back(result, now),
            Event::TookBack(result) => self.on_took_back(result, now),
            Event::Woke => self.stale(),
            Event::Stop => self.stop(None, now),
            Event::TimeUp(waiting) => {
                let waiting = waiting.unwrap_or(Waiting::Settling);
                let failure = Failure::timed_out(waiting, self.answered, &self.setup.cli.socket);
                self.stop(Some(failure), now);
            }
        }
    }

    /// What was seen may no longer hold.
    pub(super) fn stale(&mut self) {
        self.situation = None;
        if !self.is_told {
            self.known = None;
        }
        // The file is looked at again, in case that it has changed.
        if !matches!(self.key, Key::Ready(_)) {
            self.key = Key::Unread;
        }
    }

    fn on_seen(
        &mut self,
        status: Result<Status, LocalApiError>,
        unbound: Option<IpAddr>,
        prefs: Option<Prefs>,
        now: Time,
    ) {
        let situation = Situation::of(status.as_ref(), unbound);
        match status {
            Ok(status) => self.status = Some(status),
            // A tailscaled that goes away takes the key with it.
            Err(LocalApiError::Unreachable(_)) => {
                self.known = None;
                self.is_told = false;
                self.server = None;
                self.others_login = false;
                self.lost_the_key("tailscaled was restarted", now);
            }
            Err(_) => {}
        }
        self.answered |= situation != Situation::NoDaemon;
        self.looked = now;
        let kind = Some(std::mem::discriminant(&situation));
        if kind != self.kind {
            self.kind = kind;
            self.since = now;
        }
        match prefs {
            Some(prefs) if self.is_elsewhere(&prefs) => self.known = None,
            Some(prefs) => self.learn(&prefs, true),
            None => {}
        }
        if situation.is_connected() || situation == Situation::NeedsApproval {
            self.offline = Backoff::default();
        }
        self.look_for_others_login();
        self.look_at_login(&situation, now);
        self.look_after(&situation, now);
        self.note_what_is_odd(&situation, now);
        self.situation = Some(situation);
    }

    /// What an admin should know of a node that is connected.
    fn note_what_is_odd(&mut self, situation: &Situation, now: Time) {
        if situation.is_connected() && self.is_asked_elsewhere() {
            let own = self.server.clone().unwrap_or_default();
            let asked = self.setup.server.clone().unwrap_or_default();
            self.notes.push(Note::Elsewhere { own, asked });
        }
        if situation.is_connected()
            && let Some(words) = self.status.as_ref().and_then(locked_out)
        {
            self.notes.push(Note::LockedOut(words));
        }
        if let Situation::AddressPending(address) = situation
            && self.lasted(now) >= ADDRESS_PATIENCE
        {
            self.notes.push(Note::NoAddress(*address));
        }
    }

    fn on_prefs(&mut self, prefs: Prefs, profile: Option<Profile>, live: bool, now: Time) {
        self.objection = None;
        if self.history.is_some() && !self.is_of(profile.as_ref()) {
            self.other_profile();
        }
        self.learn(&prefs, true);
        let has_profile = profile.as_ref().is_some_and(|profile| !profile.id.is_empty());
        if self.history.is_none() && self.login != Login::Found && has_profile {
            // What was looked at before may be of another profile.
            self.situation = None;
        }
        self.known = Some(Known { prefs, profile });
        self.is_told = live;
        self.look_for_others_login();
        self.look_at_prefs(now);
    }

    /// On a node without a node key it shows in the preferences. One that gets its node key meanwhile
    /// is under way all the same.
    fn look_for_others_login(&mut self) {
        if let (Some(status), Some(known)) = (&self.status, &self.known)
            && !status.have_node_key
        {
            self.others_login = prefs::login_under_way(&known.prefs);
        }
    }

    /// What the preferences of the node are. `gap`: they may have been others since they were told last.
    fn learn(&mut self, prefs: &Prefs, gap: bool) {
        self.server = Some(prefs::text(prefs, "ControlURL").to_owned());
        match &mut self.history {
            Some(history) if gap => history.told_after_a_gap(prefs.clone()),
            Some(history) => history.told(prefs.clone()),
            None => {}
        }
    }

    fn on_told(&mut self, notice: Notice) {
        let mut gap = notice.after_a_gap;
        for prefs in notice.prefs {
            if self.is_elsewhere(&prefs) {
                // They are nobody's change of these. The profile is to be asked for.
                self.known = None;
                break;
            }
            self.learn(&prefs, gap);
            // What was read before the bus was opened may be another profile's.
            if let Some(known) = self.known.as_mut().filter(|_| !gap) {
                let is_out =
                    !prefs::login_under_way(&prefs) && prefs::login_under_way(&known.prefs);
                let is_other = prefs.get("Config") != known.prefs.get("Config");
                known.prefs = prefs;
                if is_out || is_other {
                    // It may be another profile's: that is asked for again.
                    self.known = None;
                }
            }
            gap = false;
        }
        self.keep_record();
        // While the CLI runs, its end is the news, and each look slows the login.
        if !self.command_runs || notice.running {
            self.stale();
        }
    }

    /// The record of a login follows what somebody changes beside it, so that a run after a kill does
    /// not undo that.
    fn keep_record(&mut self) {
        if let (Some(history), Some(record)) = (&self.history, &mut self.record)
            && let Some(login) = &mut record.login
        {
            login.before = history.without_the_login();
        }
    }

    /// Whether these preferences may be of another profile than the login's.
    fn is_elsewhere(&self, prefs: &Prefs) -> bool {
        let begun = self.record.as_ref().and_then(|record| record.login.as_ref());
        let server = begun.map_or("", |begun| &begun.server);
        self.history.as_ref().is_some_and(|history| history.is_elsewhere(prefs, server))
    }

    fn on_key(&mut self, key: Result<KeyFacts, NoKey>, now: Time) {
        self.key = match key {
            Ok(facts) => {
                self.key_wanted_since = None;
                Key::Ready(facts)
            }
            Err(NoKey::Busy) => Key::Busy,
            Err(NoKey::File(problem)) => {
                self.key_wanted_since.get_or_insert(now);
                Key::Wanting(problem)
            }
        };
        self.look_at_key(now);
    }

    fn on_restarted(&mut self, result: Result<(), LocalApiError>, now: Time) {
        let is_stranded = matches!(self.situation, Some(Situation::ConnectedWithDeadKey(_)))
            || matches!(self.login_error(), Some(LoginError::Refused(_)));
        self.situation = None;
        if result.as_ref().err().is_none_or(LocalApiError::is_refusal)
            && let Stay::Begun(Keeping::Failed { words, refused }) = self.stay.clone()
        {
            return self.on_renewal_failed(words, refused, now);
        }
        match result {
            Ok(()) => {
                self.objection = None;
                match is_stranded {
                    true => self.stranded.next(now, RETRY_FIRST, &mut self.rng),
                    false => self.offline.next(now, 2 * OFFLINE_PATIENCE, &mut self.rng),
                }
                // Whatever the cause of the next one, it does not come at once.
                let soonest = now.saturating_add(RETRY_FIRST / 2);
                for backoff in [&mut self.stranded, &mut self.offline] {
                    backoff.not_before = backoff.not_before.max(soonest);
                }
                self.lost_the_key("an auth key was refused, perhaps another one", now);
            }
            Err(error) if error.is_refusal() => {
                // The node may come online without it.
                self.notes.push(Note::CannotRestart(error.to_string()));
                self.stranded.not_before = now.saturating_add(RETRY_LONGEST);
                self.offline.not_before = now.saturating_add(RETRY_LONGEST);
            }
            Err(error) => self.objected(&error, now),
        }
    }

    fn on_brought_up(&mut self, result: Result<(), LocalApiError>, now: Time) {
        self.situation = None;
        match result {
            Ok(()) => {
                self.objection = None;
                self.brought_up = true;
            }
            Err(error) if error.is_refusal() => {
                self.login = Login::Impossible(Failure::of_change(&error));
            }
            Err(error) => self.objected(&error, now),
        }
    }

    fn on_put_back(&mut self, result: Result<Option<Vec<String>>, LocalApiError>, now: Time) {
        self.situation = None;
        match result {
            Ok(Some(not_taken)) => {
                self.objection = None;
                if let Some(history) = &mut self.history {
                    if let Some(known) = &mut self.known {
                        known.prefs.extend(history.owed());
                    }
                    history.put_back();
                    history.give_up(&not_taken);
                }
                if !not_taken.is_empty() {
                    self.notes.push(Note::NotPutBack(not_taken));
                }
            }
            Ok(None) => self.other_profile(),
            Err(error) => self.objected(&error, now),
        }
    }

    /// Another profile is in use than the one that the login was for. Nothing of the login's is this
    /// one's; the record stays for the other.
    pub(super) fn other_profile(&mut self) {
        self.notes.push(Note::OtherProfile);
        self.history = None;
        self.login = Login::None;
        self.known = None;
    }

    /// tailscaled did not take a change or a question for now. It's tried again after a look.
    pub(super) fn objected(&mut self, error: &LocalApiError, now: Time) {
        let since = self.objection.take().map_or(now, |objection| objection.since);
        self.objection = Some(Objection { since, last: now, words: error.to_string() });
    }

    fn stop(&mut self, failure: Option<Failure>, now: Time) {
        self.stopping.get_or_insert(Stopping { since: now, failure });
        self.stale();
    }
}
