//! What each state of a login asks for, before the situation is looked at, and what is still to be
//! done about it at the end of a run.

use super::login::{DOUBT, Login, RECOVERY_PATIENCE};
use super::*;
use crate::failure::{Refusal, Refused};

/// How long the CLI may run without anything of it coming to tailscaled.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// The same where it first has to exchange an OAuth client secret for an auth key.
const EXCHANGE_PATIENCE: Duration = Duration::from_secs(150);
/// How long the CLI may run without a word of the control server. A node that is deleted before its first
/// network map hears none.
const ANSWER_PATIENCE: Duration = Duration::from_secs(90);
/// How long a login may take that tailscaled has to itself, without any sign of it.
const TAILSCALEDS_PATIENCE: Duration = Duration::from_secs(30);
/// How long a key that the control server does not know is given to come to it.
const EARLY_PAUSE: Duration = Duration::from_secs(30);
/// How long a login of which nothing is known is looked at before a run ends beside it.
pub(super) const END_PATIENCE: Duration = Duration::from_millis(400);

impl Machine {
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
            Login::Broke(_) => Some(Action::ReadPrefs),
            Login::Failing(_) => Some(self.take_back()),
            _ if situation.is_connected() && !self.is_leaving() => None,
            Login::Impossible(failure) => Some(Action::Fail(failure.clone())),

            Login::UnderWay => self.under_way(situation, now),
            Login::Doubted { error, .. } => {
                let doubted = Waiting::Verdict(error.words().to_owned());
                Some(self.wait_until(doubted, self.login_since.saturating_add(DOUBT), now))
            }
            Login::Refused { refusal, key } => {
                self.after_refusal(situation, refusal, key.as_ref(), now)
            }
            Login::Pausing { words, until } => match situation {
                S::Settling { error: None }
                | S::SettlingNew { error: None }
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
    fn under_way(&self, situation: &Situation, now: Time) -> Option<Action> {
        use Situation as S;
        let lasted = now.saturating_sub(self.login_since.max(self.since));
        if self.patience(situation).is_some_and(|patience| lasted >= patience) {
            return self.command_runs.then_some(Action::StopCommand);
        }
        match situation {
            S::Stopped if self.has_come() => Some(self.wait(Waiting::StoppedByOther, now)),
            S::Unknown(_) | S::StoreFailed(_) => None,
            _ if situation.login_error().is_some() => Some(self.wait_for_server(now)),
            _ => Some(self.wait(Waiting::LoggingIn, now)),
        }
    }

    /// How long a login may be in this situation without a sign of anything coming of it.
    fn patience(&self, situation: &Situation) -> Option<Duration> {
        use Situation as S;
        let is_silent = *situation == S::NeedsLogin { error: None };
        match (self.command_runs, self.is_replaced()) {
            (true, false) => self.needs_key().then(|| match &self.key {
                Key::Ready(facts) if facts.kind.is_oauth_secret() => EXCHANGE_PATIENCE,
                _ => COMMAND_PATIENCE,
            }),
            // Another profile is in use, and the CLI would wait for ever.
            (true, true) if is_silent && self.is_nobodys() => Some(DOUBT),
            (true, true) => is_silent.then_some(ANSWER_PATIENCE),
            // It has the key and does nothing with it: the CLI was ended before it had said so.
            // Or it has let the node in, which stays offline.
            (false, _) => matches!(
                situation,
                S::NeedsLogin { error: None }
                    | S::SettlingNew { error: None }
                    | S::Offline { error: None }
                    | S::NeedsApproval
            )
            .then_some(TAILSCALEDS_PATIENCE),
        }
    }

    /// Whether the key may be in use: others must not have it. While the control server is waited
    /// for, it is not.
    pub(super) fn needs_key(&self) -> bool {
        match &self.login {
            Login::UnderWay => {
                !matches!(self.login_error(), Some(LoginError::Unreachable(_)))
                    // It has been reached since.
                    || matches!(self.situation, Some(Situation::AsksForPerson { .. }))
            }
            Login::None | Login::Pausing { .. } | Login::Came => self.is_renewing(),
            _ => true,
        }
    }

    /// Whether anything of the login has come to tailscaled.
    pub(super) fn has_come(&self) -> bool {
        let shows = match &self.situation {
            // An expired node comes to that by itself.
            None | Some(Situation::AsksForPerson { .. }) => false,
            situation => *situation != self.before,
        };
        shows || self.is_replaced()
    }

    /// The control server has let the node in, and what came of that was told as it came: what
    /// changes from then on is not the doing of the login.
    pub(super) fn is_let_in(&self) -> bool {
        self.history.as_ref().is_some_and(|history| history.has_succeeded(history.last()))
    }

    /// The command takes the node to another login server. Until it says that the node is up, tailscaled
    /// may still show it as it is at the old one.
    pub(super) fn is_leaving(&self) -> bool {
        let moves = self.history.as_ref().is_some_and(History::moves);
        moves && self.command_runs && !self.is_let_in()
    }

    /// None of the settings has to be put back.
    pub(super) fn is_as_before(&self) -> bool {
        self.history.as_ref().is_none_or(|history| history.owed().is_empty())
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.history.as_ref().is_some_and(History::is_replaced)
    }

    /// Going by the preferences, nobody is logged in or about to be.
    pub(super) fn is_nobodys(&self) -> bool {
        self.history.as_ref().is_some_and(|history| !prefs::login_under_way(history.last()))
    }

    /// A refused key is not sent again before the file holds another. The secret may have been
    /// replaced since it was read, and the file let go: the record of the login tells which it was.
    pub(super) fn refused(&mut self, refusal: Refusal, begun: Option<BegunLogin>, now: Time) {
        let has_node_key = self.has_node_key();
        let begun = begun.filter(|_| refusal.what.is_key());
        let refused = begun.as_ref().map(|begun| begun.key.clone());
        if let (Some(BegunLogin { key, server, .. }), Some(record)) = (begun, &mut self.record) {
            let is_new = !has_node_key && record.last.login == 0;
            // It may have been made for this node a moment ago.
            let is_early = refusal.what == Refused::UnknownKey
                && is_new
                && record.last.early.as_ref() != Some(&key);
            let words = refusal.words.clone();
            record.last.early = is_early.then(|| key.clone());
            // Another login server may have refused it before.
            record.refused =
                (!is_early).then_some(RefusedKey { at: 0, digest: key, server, words });
        }
        self.key = Key::Unread;
        self.come_to(Login::Refused { refusal, key: refused }, now);
    }

    /// The control server refused our key, and tailscaled has forgotten it.
    fn after_refusal(
        &self,
        situation: &Situation,
        refusal: &Refusal,
        refused: Option<&String>,
        now: Time,
    ) -> Option<Action> {
        use Situation as S;
        let may_recover = match situation {
            // The last refusal is shown until the answer to the node key is there.
            S::Settling { .. } | S::Offline { .. } => true,
            // Either that lets it in, or it asks for a person.
            S::NeedsLogin { .. } => self.has_node_key(),
            _ => false,
        };
        let recovered = self.login_since.saturating_add(RECOVERY_PATIENCE);
        match &self.key {
            Key::Unread => Some(Action::ReadKey),
            _ if may_recover && now < recovered => {
                Some(self.wait_until(Waiting::Settling, recovered, now))
            }
            Key::Ready(facts) if self.stored.last.early.as_ref() == Some(&facts.digest) => {
                let until = self.login_since.saturating_add(EARLY_PAUSE);
                (now < until).then(|| self.wait_for_retry(&refusal.words, until, now))
            }
            // As it was before the login. The node key may be enough.
            _ if *situation == S::Stopped && self.has_node_key() && !self.is_asked_elsewhere() => {
                None
            }
            // The secret was replaced in the meantime.
            Key::Ready(facts) if refused.is_some_and(|refused| *refused != facts.digest) => None,
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
            Login::Failing(_) | Login::Doubted { .. } => self.take_back(),
            Login::UnderWay | Login::Broke(_) if error.is_some() => self.take_back(),
            // It was to be tried again before anything would be taken back.
            Login::Pausing { .. } if self.is_replaced() => self.take_back(),
            _ if self.known.is_none() => Action::ReadPrefs,
            login => match self.put_back() {
                Some(action) => action,
                None if matches!(login, Login::UnderWay | Login::Came) && !is_over => {
                    let limit = stopping.since.saturating_add(END_PATIENCE);
                    self.wait_until(Waiting::LoggingIn, limit, now)
                }
                None => match login {
                    // Nothing has come of this one. One that was lost before it has changed something.
                    Login::UnderWay if !self.has_come() && history.is_changed() => self.take_back(),
                    // It may be on its way to the control server, and is left to end: to break it
                    // off could burn its key.
                    _ => end,
                },
            },
        }
    }
}
