//! The login of a run, or the one that a run before has begun: how it stands, and what each state
//! leads to.

use std::time::Duration;

use crate::failure::{Failure, Mistake, Note, Waiting};
use crate::flags;
use crate::policy::put_back::History;
use crate::policy::{
    Action, CHANGE_PATIENCE, Key, Machine, RETRY_FIRST, Situation, Stopping, Time, is_same_server,
};
use crate::prefs::{self, Prefs};
use crate::record::{BegunLogin, Record, RefusedKey};
use crate::tailscaled::LocalApiError;
use crate::up::{Ended, LoginError, NotStarted, Refusal, Refused};

/// How long a refusal is looked at before it's believed: it may be an older login's.
const DOUBT: Duration = Duration::from_secs(2);
/// The same, where tailscaled shows the very words that it showed before the login.
const STALE_DOUBT: Duration = Duration::from_secs(30);
/// How long a node may take to come up on its node key after a refused auth key.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(10);
/// How long the CLI may run without anything of it coming to tailscaled.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// The same where it first has to exchange an OAuth client secret for an auth key.
const EXCHANGE_PATIENCE: Duration = Duration::from_secs(150);
/// How long the CLI may run without a word of the control server. A node that is deleted before its first
/// network map hears none.
const ANSWER_PATIENCE: Duration = Duration::from_secs(90);
/// How long a login may take that tailscaled has to itself, without any sign of it.
const TAILSCALEDS_PATIENCE: Duration = Duration::from_secs(30);
/// How long a login of which nothing is known is looked at before a run ends beside it.
pub(super) const END_PATIENCE: Duration = Duration::from_millis(400);
/// How often the CLI may complain in the same words before they are believed.
const COMPLAINTS: u32 = 3;

/// How a login stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Login {
    /// There is none.
    None,
    /// The record of one that a run before has begun; whether it is still under way is not known yet.
    Found,
    /// The CLI runs, or tailscaled has the key and tries by itself. `before` is what was seen before.
    UnderWay { since: Time, before: Situation },
    /// It seems to have failed. `told` by our own CLI; else it may be somebody else's.
    Doubted { since: Time, before: Situation, error: LoginError, told: bool },
    /// The CLI has ended, and whether tailscaled has the key is not known yet.
    Broke { since: Time, before: Situation, ended: Ended },
    /// It has failed, and what it changed is being taken back.
    Failing { since: Time, then: Then },
    /// It was refused and taken back. The node may still come up on its node key.
    Refused { since: Time, refusal: Refusal },
    /// It failed in passing; the next one comes then.
    Pausing { since: Time, words: String, until: Time },
    /// The control server has let the node in; whether the settings are as they were is not known yet.
    Came,
    /// It cannot work as things are.
    Impossible(Failure),
}

/// What comes when a failed login has been taken back.
#[derive(Clone, Debug, PartialEq)]
pub enum Then {
    Refused(Refusal),
    Pause(String),
    /// A longer pause: the control server was reached, and each try costs it some registers.
    Wait(String),
    Impossible(Failure),
    /// Another login.
    Anew,
    /// The end of the run.
    End,
}

impl Login {
    /// Since when it has stood so; zero if that doesn't matter.
    pub fn since(&self) -> Time {
        match self {
            Self::UnderWay { since, .. }
            | Self::Doubted { since, .. }
            | Self::Broke { since, .. }
            | Self::Failing { since, .. }
            | Self::Refused { since, .. }
            | Self::Pausing { since, .. } => *since,
            _ => Time::ZERO,
        }
    }
}

impl Machine {
    // ---- what happens to it

    pub(super) fn on_record(&mut self, mut record: Record) {
        if record.salt == <[u8; 16]>::default() {
            self.rng.fill(&mut record.salt);
        }
        if record.login.is_some() {
            self.login = Login::Found;
        }
        self.stored = record.clone();
        self.record = Some(record);
    }

    /// What another run has found out meanwhile. Of a login of its own it has told us nothing.
    pub(super) fn on_record_again(&mut self, again: Record) {
        if again.salt != <[u8; 16]>::default()
            && let Some(record) = &mut self.record
        {
            (record.salt, record.refused) = (again.salt, again.refused.clone());
            (self.stored.salt, self.stored.refused) = (again.salt, again.refused);
        }
    }

    pub(super) fn on_started(&mut self, started: Result<(), NotStarted>, now: Time) {
        match started {
            Ok(()) => {
                let before = self.situation.clone().unwrap_or(Situation::NoDaemon);
                self.history = self.known.as_ref().map(|known| self.history_of_login(known));
                self.profile = self.known.as_ref().and_then(|known| known.profile.clone());
                self.login = Login::UnderWay { since: now, before };
                self.command_runs = true;
                self.logins += 1;
            }
            // No key was sent.
            Err(why) => self.came_to_nothing(
                match Failure::not_started(&why, &self.setup.program) {
                    Some(failure) => Then::Impossible(failure),
                    None => Then::Pause(why.words().to_owned()),
                },
                now,
            ),
        }
    }

    pub(super) fn on_ended(&mut self, ended: Ended, now: Time) {
        self.command_runs = false;
        self.stale();
        let (Login::UnderWay { before, .. } | Login::Doubted { before, .. }) = &self.login else {
            return;
        };
        let before = before.clone();
        self.login = match ended {
            Ended::Done => return,
            // Also one that may pass: tailscaled tries again at once, and to take the login back in that
            // moment could burn the key.
            Ended::LoginError(error) => Login::Doubted { since: now, before, error, told: true },
            Ended::RateLimited(words) => {
                self.notes.push(Note::LoginBroke(words));
                return;
            }
            ended => Login::Broke { since: now, before, ended },
        };
    }

    pub(super) fn on_command_stopped(&mut self, now: Time) {
        self.command_runs = false;
        self.situation = None;
        // What it may have done in its last moment is to be read.
        self.known = None;
        // At the end of a run, what it has sent may come a moment later.
        if self.stopping.is_none()
            && let Login::UnderWay { before, .. } = &self.login
        {
            let before = before.clone();
            self.login = Login::Broke { since: now, before, ended: Ended::Idle };
        }
    }

    pub(super) fn on_took_back(&mut self, result: Result<Option<Prefs>, LocalApiError>, now: Time) {
        self.situation = None;
        let is_done = matches!(result, Ok(Some(_)));
        match result {
            Ok(Some(prefs)) => {
                let history = self.history.as_mut();
                if let Some(history) = history.filter(|history| history.has_succeeded(&prefs)) {
                    // It had come to its end in that very moment. Once more, so that it is up.
                    history.resume(&prefs);
                    if let Login::Failing { then, .. } = &mut self.login
                        && *then != Then::End
                    {
                        *then = Then::Anew;
                    }
                    return;
                }
            }
            Ok(None) => return self.other_profile(),
            Err(error) if error.is_refusal() => {
                self.notes.push(Note::NotTakenBack(error.to_string()));
            }
            Err(error) => {
                self.objected(&error, now);
                let since = self.objection.as_ref().map_or(now, |objection| objection.since);
                if now < since.saturating_add(CHANGE_PATIENCE) {
                    return;
                }
                self.notes.push(Note::NotTakenBack(error.to_string()));
            }
        }
        self.objection = None;
        let then = match std::mem::replace(&mut self.login, Login::None) {
            Login::Failing { then, .. } => then,
            // The run ends beside it.
            _ => Then::End,
        };
        let begun = self.record.as_ref().and_then(|record| record.login.clone());
        match is_done {
            true => self.forget_login(),
            // The record of it stays, for the next login or the next run.
            false => self.known = None,
        }
        self.go_on_with(then, begun, now);
    }

    /// Nothing is left of the login that was `begun`, and what comes next is known.
    fn go_on_with(&mut self, then: Then, begun: Option<BegunLogin>, now: Time) {
        match then {
            Then::Refused(refusal) => self.refused(refusal, begun, now),
            Then::Pause(words) => self.pause(words, RETRY_FIRST, now),
            Then::Wait(words) => self.pause(words, 4 * RETRY_FIRST, now),
            Then::Impossible(failure) => self.login = Login::Impossible(failure),
            Then::Anew | Then::End => self.login = Login::None,
        }
    }

    /// A refused key is not sent again before the file holds another. The secret may have been
    /// replaced since it was read, and the file let go: the record of the login tells which it was.
    fn refused(&mut self, refusal: Refusal, begun: Option<BegunLogin>, now: Time) {
        if let (Refused::Key, Some(begun), Some(record)) = (refusal.what, begun, &mut self.record) {
            let (digest, server, words) = (begun.key, begun.server, refusal.words.clone());
            record.refused = Some(RefusedKey { at: 0, digest, server, words });
        }
        self.key = Key::Unread;
        self.login = Login::Refused { since: now, refusal };
    }

    /// tailscaled no longer has the key.
    pub(super) fn lost_the_key(&mut self, why: &str, now: Time) {
        let is_tailscaleds =
            matches!(self.login, Login::UnderWay { .. } | Login::Doubted { told: false, .. });
        if is_tailscaleds && !self.command_runs {
            self.pause(why.to_owned(), RETRY_FIRST, now);
        }
    }

    fn pause(&mut self, words: String, first: Duration, now: Time) {
        self.failures.next(now, first, &mut self.rng);
        let until = self.failures.not_before;
        self.login = Login::Pausing { since: now, words, until };
    }

    /// Nothing is left of a login.
    fn forget_login(&mut self) {
        self.history = None;
        self.known = None;
        self.server = None;
        if let Some(record) = &mut self.record {
            record.login = None;
        }
    }

    /// Whether anything of the login has come to tailscaled.
    fn has_come(&self, before: &Situation) -> bool {
        // An expired node comes to ask for a person by itself.
        let asks = matches!(self.situation, Some(Situation::AsksForPerson { .. }));
        let seen = !asks && self.situation.as_ref().is_some_and(|situation| situation != before);
        seen || self.is_replaced()
    }

    // ---- what is seen of it

    pub(super) fn look_at_login(&mut self, situation: &Situation, now: Time) {
        let error = situation.login_error();
        let is_in = situation.is_connected()
            || (*situation == Situation::NeedsApproval
                && self.is_replaced()
                && !self.is_asked_elsewhere());
        match &self.login {
            // Whatever was thought of it.
            login if is_in && self.history.is_some() && *login != Login::Came => {
                self.login = Login::Came;
                // It may be another profile's.
                self.known = None;
            }
            Login::Came if !is_in && *situation != Situation::NoDaemon => {
                self.login = Login::None;
            }
            Login::Found => self.look_at_found(situation, now),
            Login::UnderWay { since, before } => match error {
                Some(error @ (LoginError::Refused(_) | LoginError::Unknown(_))) => {
                    let is_stale =
                        before.login_error().map(LoginError::words) == Some(error.words());
                    if !is_stale || now >= since.saturating_add(STALE_DOUBT) {
                        let (before, error) = (before.clone(), error.clone());
                        self.login = Login::Doubted { since: now, before, error, told: false };
                    }
                }
                // It has lost the key, by a restart or by somebody else's login; or it is to no avail.
                _ if matches!(situation, Situation::AsksForPerson { .. })
                    && (self.has_come(before) || !self.command_runs)
                    && now >= self.since.max(*since).saturating_add(DOUBT) =>
                {
                    let why = "the control server asks for a person".to_owned();
                    self.login = Login::Failing { since: now, then: Then::Pause(why) };
                }
                None if matches!(situation, Situation::NeedsLogin { .. })
                    && self.is_replaced()
                    && self.is_nobodys() =>
                {
                    // A restart that nobody saw.
                    self.lost_the_key("tailscaled was restarted", now);
                }
                _ => {}
            },
            Login::Doubted { since, before, told, error: doubted }
                if now >= since.saturating_add(DOUBT) =>
            {
                let is_shown =
                    matches!(error, Some(LoginError::Refused(_) | LoginError::Unknown(_)));
                if *told || is_shown {
                    let error = error.filter(|_| is_shown).unwrap_or(doubted).clone();
                    self.believe(error, *told, now);
                } else if now >= since.saturating_add(RECOVERY_PATIENCE) {
                    self.login = Login::UnderWay { since: now, before: before.clone() };
                }
            }
            _ => {}
        }
        self.settle_if_done();
    }

    /// The login has failed.
    fn believe(&mut self, error: LoginError, told: bool, now: Time) {
        let history = self.history.as_ref();
        if self.is_let_in() {
            // It was somebody else's login that failed, after ours.
            self.login = Login::None;
            return;
        }
        // The CLI tells whatever login fails.
        let is_touched = history.is_some_and(History::is_touched);
        let then = match error {
            // It may be of a key that somebody else has sent meanwhile. Ours is sent once more.
            LoginError::Refused(_) if (!told || is_touched) && self.secondhand == 0 => {
                self.secondhand += 1;
                Then::Anew
            }
            LoginError::Refused(refusal) => Then::Refused(refusal),
            error => Then::Wait(error.words().to_owned()),
        };
        self.login = Login::Failing { since: now, then };
    }

    /// The node is in, and nothing is left to put back.
    fn settle_if_done(&mut self) {
        let is_known = self.known.is_some() || self.is_let_in();
        if self.login != Login::Came || !is_known || !self.is_as_before() {
            return;
        }
        (self.login, self.history) = (Login::None, None);
        self.has_logged_in = self.logins > 0;
        if let Some(record) = &mut self.record {
            record.login = None;
            record.last.login = self.clock.as_secs();
        }
    }

    /// The control server has let the node in, and what came of that was told as it came: what
    /// changes from then on is not the doing of the login.
    pub(super) fn is_let_in(&self) -> bool {
        self.history.as_ref().is_some_and(|history| history.has_succeeded(history.last()))
    }

    /// None of the settings has to be put back.
    pub(super) fn is_as_before(&self) -> bool {
        self.history.as_ref().is_none_or(|history| history.owed().is_empty())
    }

    pub(super) fn look_at_prefs(&mut self, now: Time) {
        match &self.login {
            Login::Found => {
                if let Some(situation) = self.situation.clone() {
                    self.look_at_found(&situation, now);
                }
            }
            Login::Broke { before, ended, .. } => {
                let (before, ended) = (before.clone(), ended.clone());
                self.resolve(before, ended, now);
            }
            _ => {}
        }
        self.settle_if_done();
    }

    /// The login of a run before, and the preferences that it has left.
    fn look_at_found(&mut self, situation: &Situation, now: Time) {
        let (Some(record), Some(known), None) = (&self.record, &self.known, &self.history) else {
            return;
        };
        let Some(begun) = record.login.clone() else {
            self.login = Login::None;
            return;
        };
        let server = prefs::text(&known.prefs, "ControlURL");
        let own = prefs::text(&begun.before, "ControlURL");
        let is_its_server = is_same_server(server, &begun.server) || server == own;
        // Its own profile gets its ID with the login.
        let is_its_profile =
            known.profile.as_deref().is_none_or(|profile| profile == begun.profile)
                || begun.profile.is_empty();
        if !is_its_profile || !is_its_server {
            self.login = Login::None;
            return;
        }
        let mut history = History::new(begun.before.clone(), begun.flags.clone(), self.version());
        history.told_after_a_gap(known.prefs.clone());
        // On a node that was logged in before, what has no key yet looks the same.
        let asks = matches!(situation, Situation::AsksForPerson { .. });
        // With a node key, it may have come to its end, and then it is none to be taken back.
        let is_settling =
            matches!(situation, Situation::Settling { .. } | Situation::Offline { .. });
        let is_under_way = prefs::login_under_way(history.last()) && !asks && !is_settling;
        self.profile = Some(begun.profile.clone());
        self.history = Some(history);
        if situation.is_connected() || *situation == Situation::NeedsApproval {
            self.login = Login::Came;
            return;
        }
        let asked = self.setup.server.clone().unwrap_or(begun.server.clone());
        let is_same = is_same_server(&asked, &begun.server) && begun.flags == self.setup.flags;
        if !is_under_way {
            // It never came to tailscaled, or tailscaled has forgotten it, or a node key says more.
            self.login = Login::None;
        } else if !is_same {
            self.login = Login::Failing { since: now, then: Then::Anew };
        } else {
            self.look_at_key(now);
        }
    }

    /// Whether the login of a run before was made with the key that the file holds now.
    pub(super) fn look_at_key(&mut self, now: Time) {
        if self.login != Login::Found || self.history.is_none() {
            return;
        }
        let begun = self.record.as_ref().and_then(|record| record.login.as_ref());
        let before = self.situation.clone().unwrap_or(Situation::NoDaemon);
        self.login = match &self.key {
            Key::Ready(facts) if begun.is_some_and(|begun| begun.key != facts.digest) => {
                Login::Failing { since: now, then: Then::Anew }
            }
            // Without a file nothing better can be done than to let it end.
            Key::Ready(_) | Key::Wanting(_) => Login::UnderWay { since: now, before },
            Key::Unread | Key::Busy => return,
        };
    }

    /// The CLI has ended so, and it is known whether tailscaled has the key.
    fn resolve(&mut self, before: Situation, ended: Ended, now: Time) {
        let has_come = self.has_come(&before);
        if let Ended::UnknownFlag(name, _) = &ended
            && self.history.as_ref().is_some_and(|history| {
                history.ours.iter().any(|flag| flags::name(flag) == Some(name))
            })
            && !self.unknown_flags.contains(name)
        {
            // What has no flag is put back after the login.
            self.unknown_flags.push(name.clone());
            self.login = Login::None;
            return;
        }
        let failure = Failure::of_command(&ended, &self.setup.program);
        let then = match (failure, &ended) {
            (Some(Failure::Refused(refusal)), _) => Then::Refused(refusal),
            (Some(failure), _) => Then::Impossible(failure),
            (None, Ended::Lost(words)) => {
                self.notes.push(Note::LoginBroke(words.clone()));
                if has_come {
                    return self.pause(words.clone(), RETRY_FIRST, now);
                }
                Then::Pause(words.clone())
            }
            (None, ended) => {
                let words = ended.to_string();
                self.notes.push(match ended {
                    Ended::Idle => Note::NothingCame,
                    _ => Note::LoginBroke(words.clone()),
                });
                if has_come {
                    // tailscaled tries by itself with a key that it has been given.
                    self.login = Login::UnderWay { since: now, before };
                    return;
                }
                match ended.is_complaint() && self.complains(&words) >= COMPLAINTS {
                    true => Then::Impossible(Mistake::Complaint(words).into()),
                    false => Then::Pause(words),
                }
            }
        };
        // What a CLI has sent that was killed may come a moment later, and is taken back in any case.
        match has_come || ended == Ended::Killed {
            true => self.login = Login::Failing { since: now, then },
            false => self.came_to_nothing(then, now),
        }
    }

    /// A login has changed nothing. One of this run that was lost before it may have.
    fn came_to_nothing(&mut self, then: Then, now: Time) {
        if self.history.as_ref().is_some_and(History::is_changed) {
            self.login = Login::Failing { since: now, then };
            return;
        }
        // What changes from now on is somebody else's doing.
        self.forget_login();
        self.go_on_with(then, None, now);
    }

    fn complains(&mut self, words: &str) -> u32 {
        let (last, count) = &mut self.complaint;
        if last != words {
            (*last, *count) = (words.to_owned(), 0);
        }
        *count += 1;
        *count
    }

    // ---- what to do about it

    /// What the login asks for in this situation, if anything.
    pub(super) fn for_login(&self, situation: &Situation, now: Time) -> Option<Action> {
        use Situation as S;
        if let Some(action) = self.put_back() {
            return Some(action);
        }
        match &self.login {
            Login::None => None,
            Login::Found if self.history.is_none() => Some(Action::ReadPrefs),
            Login::Found => Some(self.with_key(now, |_| Action::Look)),
            // The node came up without it. It may still be on its way to the preferences.
            Login::Came if self.command_runs && !self.is_replaced() => Some(Action::StopCommand),
            Login::Came => Some(Action::ReadPrefs),
            Login::Broke { .. } => Some(Action::ReadPrefs),
            Login::Failing { .. } => Some(self.take_back()),
            _ if situation.is_connected() => None,
            Login::Impossible(failure) => Some(Action::Fail(failure.clone())),

            Login::UnderWay { since, before } => self.under_way(situation, *since, before, now),
            Login::Doubted { since, error, .. } => {
                let doubted = Waiting::Verdict(error.words().to_owned());
                Some(self.wait_until(doubted, since.saturating_add(DOUBT), now))
            }
            Login::Refused { since, refusal } => {
                self.after_refusal(situation, *since, refusal, now)
            }
            Login::Pausing { words, until, .. } => match situation {
                S::Settling { error: None, .. }
                | S::SettlingNew { error: None, .. }
                | S::NeedsLogin { .. }
                | S::AsksForPerson { .. }
                    if now < *until =>
                {
                    Some(self.wait_for_retry(words, *until, now))
                }
                _ => None,
            },
        }
    }

    fn put_back(&self) -> Option<Action> {
        let may = !matches!(self.login, Login::Failing { .. } | Login::Found);
        let history = self.history.as_ref().filter(|_| may)?;
        let prefs = history.owed();
        (!prefs.is_empty()).then(|| match self.known {
            Some(_) => Action::PutBack { prefs, profile: self.profile.clone() },
            // They may be another profile's by now.
            None => Action::ReadPrefs,
        })
    }

    fn take_back(&self) -> Action {
        match &self.history {
            _ if self.command_runs => Action::StopCommand,
            Some(history) => {
                let (prefs, profile) = (history.without_the_login(), self.profile.clone());
                Action::TakeBack { prefs, profile }
            }
            None => Action::ReadPrefs,
        }
    }

    /// The CLI runs, or has ended and left the key with tailscaled, which tries by itself. A second
    /// login now could burn a single-use key.
    fn under_way(
        &self,
        situation: &Situation,
        since: Time,
        before: &Situation,
        now: Time,
    ) -> Option<Action> {
        use Situation as S;
        let has_come = self.has_come(before);
        let lasted = now.saturating_sub(since.max(self.since));
        let patience = match self.is_replaced() {
            false => Some(self.command_patience()),
            true if *situation == (S::NeedsLogin { error: None }) => Some(ANSWER_PATIENCE),
            true => None,
        };
        let is_idle = self.command_runs && self.needs_key();
        if is_idle && patience.is_some_and(|patience| lasted >= patience) {
            return Some(Action::StopCommand);
        }
        match situation {
            S::Stopped if has_come => Some(self.wait(Waiting::StoppedByOther, now)),
            // Another profile is in use, and the CLI would wait for ever.
            S::NeedsLogin { error: None }
                if self.command_runs
                    && has_come
                    && self.is_nobodys()
                    && lasted >= self.switch_patience() =>
            {
                Some(Action::StopCommand)
            }
            // It has the key and does nothing with it: the CLI was ended before it had said so.
            // Or it has let the node in, which stays offline.
            S::NeedsLogin { error: None }
            | S::SettlingNew { trouble: None, .. }
            | S::Offline { error: None, trouble: None }
            | S::NeedsApproval
                if !self.command_runs && lasted >= TAILSCALEDS_PATIENCE =>
            {
                None
            }
            S::Settling { trouble: Some(why), .. }
            | S::SettlingNew { trouble: Some(why), .. }
            | S::Offline { trouble: Some(why), .. } => {
                Some(self.wait(Waiting::ControlServer(Some(why.clone())), now))
            }
            S::Unknown(_) | S::NoState(_) => None,
            _ => Some(self.wait(
                match situation.login_error() {
                    Some(error) => Waiting::ControlServer(Some(error.words().to_owned())),
                    None => Waiting::LoggingIn,
                },
                now,
            )),
        }
    }

    /// Whether the key may be in use: others must not have it. While the control server is waited
    /// for, it is not.
    pub(super) fn needs_key(&self) -> bool {
        let situation = self.situation.as_ref();
        match &self.login {
            Login::UnderWay { .. } => {
                let error = situation.and_then(Situation::login_error);
                !matches!(error, Some(LoginError::Unreachable(_)))
                    // It has been reached since.
                    || matches!(situation, Some(Situation::AsksForPerson { .. }))
            }
            Login::None | Login::Pausing { .. } | Login::Came => self.is_renewing(),
            _ => true,
        }
    }

    fn is_replaced(&self) -> bool {
        self.history.as_ref().is_some_and(History::is_replaced)
    }

    /// Going by the preferences, nobody is logged in or about to be.
    fn is_nobodys(&self) -> bool {
        self.history.as_ref().is_some_and(|history| !prefs::login_under_way(history.last()))
    }

    /// A command that has not come to the preferences may still be on its way there.
    fn switch_patience(&self) -> Duration {
        match self.is_replaced() {
            true => DOUBT,
            false => self.command_patience(),
        }
    }

    fn command_patience(&self) -> Duration {
        match &self.key {
            Key::Ready(facts) if facts.kind.is_oauth_secret() => EXCHANGE_PATIENCE,
            _ => COMMAND_PATIENCE,
        }
    }

    /// The control server refused our key, and tailscaled has forgotten it.
    fn after_refusal(
        &self,
        situation: &Situation,
        since: Time,
        refusal: &Refusal,
        now: Time,
    ) -> Option<Action> {
        use Situation as S;
        let has_node_key = self.status.as_ref().is_some_and(|status| status.have_node_key);
        let may_recover = match situation {
            // The last refusal is shown until the answer to the node key is there.
            S::Settling { .. } | S::Offline { .. } => true,
            // Either that lets it in, or it asks for a person.
            S::NeedsLogin { .. } => has_node_key,
            _ => false,
        };
        let is_other = |digest: &str| {
            let refused = self.stored.refused.as_ref();
            refused.is_some_and(|refused| refused.digest != digest)
        };
        match &self.key {
            Key::Unread => Some(Action::ReadKey),
            _ if may_recover && now < since.saturating_add(RECOVERY_PATIENCE) => Some(
                self.wait_until(Waiting::Settling, since.saturating_add(RECOVERY_PATIENCE), now),
            ),
            // The secret was replaced in the meantime.
            Key::Ready(facts) if refusal.what == Refused::Key && is_other(&facts.digest) => None,
            _ => Some(Action::Fail(Failure::Refused(refusal.clone()))),
        }
    }

    // ---- the end of a run beside it

    /// What is still to be done before the run ends without a connection.
    pub(super) fn wind_up(&self, stopping: &Stopping, now: Time) -> Action {
        use Situation as S;
        let end = match &stopping.failure {
            None => Action::Stopped,
            Some(failure) => Action::Fail(failure.clone()),
        };
        let Some(record) = &self.record else {
            return end;
        };
        if self.command_runs {
            return Action::StopCommand;
        }
        let was_unsaved = self.unsaved.is_some_and(|unsaved| unsaved < stopping.since);
        if *record != self.stored || was_unsaved {
            return Action::Write(record.clone());
        }
        if let Some(action) = self.wind_up_renewal(stopping.since, now) {
            return action;
        }
        // The next run finds the record.
        let Some(history) = self.history.as_ref().filter(|_| self.login != Login::Found) else {
            return end;
        };
        let is_over = now >= stopping.since.saturating_add(END_PATIENCE);
        let error = match &self.situation {
            None => return Action::Look,
            Some(S::NoDaemon | S::Denied(_) | S::Unintelligible(_)) => return end,
            Some(_) if self.objection.is_some() && is_over => return end,
            Some(situation) => situation.login_error(),
        };
        if let Some(wait) = self.wait_after_objection(now) {
            return wait;
        }
        match &self.login {
            // It has failed.
            Login::Failing { .. } | Login::Doubted { .. } => self.take_back(),
            Login::UnderWay { .. } | Login::Broke { .. } if error.is_some() => self.take_back(),
            // It was to be tried again before anything would be taken back.
            Login::Pausing { .. } if self.is_replaced() => self.take_back(),
            _ if self.known.is_none() => Action::ReadPrefs,
            login => match self.put_back() {
                Some(action) => action,
                None if matches!(login, Login::UnderWay { .. } | Login::Came) && !is_over => {
                    let limit = stopping.since.saturating_add(END_PATIENCE);
                    self.wait_until(Waiting::LoggingIn, limit, now)
                }
                None => match login {
                    // Nothing has come of this one. One that was lost before it has changed something.
                    Login::UnderWay { before, .. }
                        if !self.has_come(before) && history.is_changed() =>
                    {
                        self.take_back()
                    }
                    // It may be on its way to the control server, and is left to end: to break it
                    // off could burn its key.
                    _ => end,
                },
            },
        }
    }
}
