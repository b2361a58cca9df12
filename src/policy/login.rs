//! The login of a run, or the one that a run before has begun: how it stands, and what each state
//! leads to.

use std::time::Duration;

use crate::failure::{Failure, Mistake, Note, Refusal};
use crate::flags;
use crate::policy::put_back::History;
use crate::policy::{CHANGE_PATIENCE, Key, Machine, RETRY_FIRST, Situation, Time, is_same_server};
use crate::prefs::{self, Prefs};
use crate::record::{BegunLogin, Record};
use crate::tailscaled::LocalApiError;
use crate::up::{Ended, LoginError, NotStarted};

/// How long a refusal is looked at before it's believed: it may be an older login's.
pub(super) const DOUBT: Duration = Duration::from_secs(2);
/// The same, where tailscaled shows the very words that it showed before the login.
const STALE_DOUBT: Duration = Duration::from_secs(30);
/// How long a node may take to come up on its node key after a refused auth key.
pub(super) const RECOVERY_PATIENCE: Duration = Duration::from_secs(10);
/// How often the CLI may complain in the same words before they are believed.
const COMPLAINTS: u32 = 3;

/// How a login stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Login {
    /// There is none.
    #[default]
    None,
    /// The record of one that a run before has begun; whether it is still under way is not known yet.
    Found,
    /// The CLI runs, or tailscaled has the key and tries by itself.
    UnderWay,
    /// It seems to have failed. `told` by our own CLI; else it may be somebody else's.
    Doubted { error: LoginError, told: bool },
    /// The CLI has ended, and whether tailscaled has the key is not known yet.
    Broke(Ended),
    /// It has failed, and what it changed is being taken back.
    Failing(Then),
    /// It was refused and taken back. The node may still come up on its node key. `key` is the digest of
    /// the key that was refused, if it is known and the refusal is about it.
    Refused { refusal: Refusal, key: Option<String> },
    /// It failed in passing; the next one comes then.
    Pausing { words: String, until: Time },
    /// The control server has let the node in; whether the settings are as they were is not known yet.
    Came,
    /// It cannot work as things are.
    Impossible(Failure),
}

/// What comes when a failed login has been taken back.
#[derive(Clone, Debug, PartialEq)]
pub enum Then {
    Refused(Refusal),
    /// Another login, after this time at most at first, and later each time.
    Pause(String, Duration),
    Impossible(Failure),
    /// Another login, or the end of a run that ends.
    Anew,
}

impl Machine {
    pub(super) fn come_to(&mut self, login: Login, now: Time) {
        (self.login, self.login_since) = (login, now);
    }

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

    /// What another run has found out meanwhile. Of a login of its own it has told us nothing. What this
    /// run could not write says more.
    pub(super) fn on_record_again(&mut self, again: Record) {
        if again.salt != <[u8; 16]>::default()
            && self.unsaved.is_none()
            && let Some(record) = &mut self.record
        {
            for record in [record, &mut self.stored] {
                record.salt = again.salt;
                record.refused = again.refused.clone();
                record.last.early = again.last.early.clone();
            }
        }
    }

    pub(super) fn on_started(&mut self, started: Result<(), NotStarted>, now: Time) {
        match started {
            Ok(()) => {
                self.before = self.situation.clone();
                self.history = self.known.as_ref().map(|known| self.history_of_login(known));
                self.profile = self.known.as_ref().and_then(|known| known.profile.clone());
                self.come_to(Login::UnderWay, now);
                self.command_runs = true;
                self.logins += 1;
            }
            // No key was sent.
            Err(NotStarted::ForNow(words)) => {
                self.came_to_nothing(Then::Pause(words, RETRY_FIRST), now)
            }
            Err(NotStarted::Final(mistake)) => {
                self.came_to_nothing(Then::Impossible(mistake.into()), now)
            }
        }
    }

    pub(super) fn on_ended(&mut self, ended: Ended, now: Time) {
        self.command_runs = false;
        self.stale();
        if !matches!(self.login, Login::UnderWay | Login::Doubted { .. }) {
            return;
        }
        let login = match ended {
            Ended::Done => return,
            // The control server wants the next register later, and tailscaled sees to that.
            Ended::LoginError(LoginError::Unreachable(words)) => {
                self.notes.push(Note::LoginBroke(words));
                return;
            }
            // Also one that may pass: tailscaled tries again at once, and to take the login back in that
            // moment could burn the key.
            Ended::LoginError(error) => Login::Doubted { error, told: true },
            ended => Login::Broke(ended),
        };
        self.come_to(login, now);
    }

    pub(super) fn on_command_stopped(&mut self, now: Time) {
        self.command_runs = false;
        self.situation = None;
        // What it may have done in its last moment is to be read.
        self.known = None;
        // At the end of a run, what it has sent may come a moment later.
        if self.stopping.is_none() && self.login == Login::UnderWay {
            self.come_to(Login::Broke(Ended::Idle), now);
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
                    self.come_to(Login::Failing(Then::Anew), now);
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
            Login::Failing(then) => then,
            // The run ends beside it.
            _ => Then::Anew,
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
            Then::Pause(words, first) => self.pause(words, first, now),
            Then::Impossible(failure) => self.login = Login::Impossible(failure),
            Then::Anew => self.login = Login::None,
        }
    }

    /// tailscaled no longer has the key.
    pub(super) fn lost_the_key(&mut self, why: &str, now: Time) {
        let is_tailscaleds =
            matches!(self.login, Login::UnderWay | Login::Doubted { told: false, .. });
        if is_tailscaleds && !self.command_runs {
            self.pause(why.to_owned(), RETRY_FIRST, now);
        }
    }

    fn pause(&mut self, words: String, first: Duration, now: Time) {
        self.failures.next(now, first, &mut self.rng);
        let until = self.failures.not_before;
        self.come_to(Login::Pausing { words, until }, now);
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

    // ---- what is seen of it

    pub(super) fn look_at_login(&mut self, situation: &Situation, now: Time) {
        let (error, since) = (situation.login_error(), self.login_since);
        let is_in = (situation.is_connected() && !self.is_leaving())
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
            Login::UnderWay => match error {
                Some(error @ (LoginError::Refused(_) | LoginError::Unknown(_))) => {
                    let before = self.before.as_ref().and_then(Situation::login_error);
                    let is_stale = before.map(LoginError::words) == Some(error.words());
                    if !is_stale || now >= since.saturating_add(STALE_DOUBT) {
                        let error = error.clone();
                        self.come_to(Login::Doubted { error, told: false }, now);
                    }
                }
                // It has lost the key, by a restart or by somebody else's login; or it is to no avail.
                _ if matches!(situation, Situation::AsksForPerson { .. })
                    && (self.has_come() || !self.command_runs)
                    && now >= self.since.max(since).saturating_add(DOUBT) =>
                {
                    let why = "the control server asks for a person".to_owned();
                    self.come_to(Login::Failing(Then::Pause(why, RETRY_FIRST)), now);
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
            Login::Doubted { told, error: doubted } if now >= since.saturating_add(DOUBT) => {
                let is_shown =
                    matches!(error, Some(LoginError::Refused(_) | LoginError::Unknown(_)));
                if *told || is_shown {
                    let error = error.filter(|_| is_shown).unwrap_or(doubted).clone();
                    self.believe(error, *told, now);
                } else if now >= since.saturating_add(RECOVERY_PATIENCE) {
                    self.come_to(Login::UnderWay, now);
                }
            }
            _ => {}
        }
        self.settle_if_done();
    }

    /// The login has failed.
    fn believe(&mut self, error: LoginError, told: bool, now: Time) {
        if self.is_let_in() {
            // It was somebody else's login that failed, after ours.
            self.login = Login::None;
            return;
        }
        // The CLI tells whatever login fails.
        let is_touched = self.history.as_ref().is_some_and(History::is_touched);
        let then = match error {
            // It may be of a key that somebody else has sent meanwhile. Ours is sent once more.
            LoginError::Refused(_) if (!told || is_touched) && self.secondhand == 0 => {
                self.secondhand += 1;
                Then::Anew
            }
            LoginError::Refused(refusal) => Then::Refused(refusal),
            // Each try costs the control server some registers.
            error => Then::Pause(error.words().to_owned(), 4 * RETRY_FIRST),
        };
        self.come_to(Login::Failing(then), now);
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

    pub(super) fn look_at_prefs(&mut self, now: Time) {
        match &self.login {
            Login::Found => {
                if let Some(situation) = self.situation.clone() {
                    self.look_at_found(&situation, now);
                }
            }
            Login::Broke(ended) => self.resolve(ended.clone(), now),
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
        let is_its_profile =
            known.profile.as_ref().is_none_or(|profile| begun.profile.may_be(profile));
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
            self.come_to(Login::Failing(Then::Anew), now);
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
        self.before = self.situation.clone();
        let login = match &self.key {
            Key::Ready(facts) if begun.is_some_and(|begun| begun.key != facts.digest) => {
                Login::Failing(Then::Anew)
            }
            // Without a file nothing better can be done than to let it end.
            Key::Ready(_) | Key::Wanting(_) => Login::UnderWay,
            Key::Unread | Key::Busy => return,
        };
        self.come_to(login, now);
    }

    /// The CLI has ended so, and it is known whether tailscaled has the key.
    fn resolve(&mut self, ended: Ended, now: Time) {
        let has_come = self.has_come();
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
        // What a CLI has sent that was killed may come a moment later, and is taken back in any case.
        let may_have_come = has_come || ended == Ended::Killed;
        let then = match ended {
            Ended::Final(Failure::Refused(refusal)) => Then::Refused(refusal),
            Ended::Final(failure) => Then::Impossible(failure),
            Ended::UnknownFlag(_, said) => Then::Impossible(Mistake::Flags(said).into()),
            Ended::Lost(words) => {
                self.notes.push(Note::LoginBroke(words.clone()));
                if has_come {
                    return self.pause(words, RETRY_FIRST, now);
                }
                Then::Pause(words, RETRY_FIRST)
            }
            ended => {
                let words = ended.to_string();
                self.notes.push(match ended {
                    Ended::Idle => Note::NothingCame,
                    _ => Note::LoginBroke(words.clone()),
                });
                if has_come {
                    // tailscaled tries by itself with a key that it has been given.
                    self.come_to(Login::UnderWay, now);
                    return;
                }
                match matches!(ended, Ended::Unknown(_)) && self.complains(&words) >= COMPLAINTS {
                    true => Then::Impossible(Mistake::Complaint(words).into()),
                    false => Then::Pause(words, RETRY_FIRST),
                }
            }
        };
        match may_have_come {
            true => self.come_to(Login::Failing(then), now),
            false => self.came_to_nothing(then, now),
        }
    }

    /// A login has changed nothing. One of this run that was lost before it may have.
    fn came_to_nothing(&mut self, then: Then, now: Time) {
        if self.history.as_ref().is_some_and(History::is_changed) {
            self.come_to(Login::Failing(then), now);
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
}
