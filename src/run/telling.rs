//! What a run says of what it waits for and does: to systemd, the journal and a terminal.

use std::mem::discriminant;
use std::time::Instant;

use log::Level;

use super::{Run, WORTH_A_LINE, Wait};
use crate::failure::{Note, Waiting};
use crate::output;
use crate::output::journal::{EXPIRES_SOON, RENEWAL_FAILED, RENEWED};
use crate::policy::Why;

impl Run<'_> {
    /// Says what is being waited for, where it's news.
    pub(super) fn say(&mut self, what: Waiting) {
        let text = what.to_string();
        self.notify.status(&text);
        if let Waiting::Staying(..) = &what {
            self.notify.ready();
            if !self.is_staying.replace(true) {
                let text = format!("{text}; staying");
                if !output::result("connected", &text, true) {
                    log::info!("{text}");
                }
                self.waiting = Some(Wait {
                    what: what.clone(),
                    since: Instant::now(),
                    logged: Some(what.clone()),
                });
            }
        }
        let (since, mut logged) = match self.waiting.take() {
            Some(wait) if discriminant(&wait.what) == discriminant(&what) => {
                (wait.since, wait.logged)
            }
            _ => {
                log::debug!("{text}");
                (Instant::now(), None)
            }
        };
        output::waiting(&text, since);
        if since.elapsed() >= WORTH_A_LINE && is_news(logged.as_ref(), &what) {
            log::info!("{text}");
            logged = Some(what.clone());
        }
        self.waiting = Some(Wait { what, since, logged });
    }

    pub(super) fn say_restart(&mut self, why: &Why) {
        let (level, what) = match why {
            Why::Stranded(words) => (
                Level::Warn,
                format!(
                    "an auth key that was sent earlier keeps this node off its tailnet \
                     ({words}); restarting the login without it"
                ),
            ),
            Why::DeadKey(words) => (
                Level::Warn,
                format!(
                    "tailscaled goes on sending an auth key that was refused ({words}); \
                     restarting the login without it"
                ),
            ),
            Why::Renewal => (
                Level::Info,
                "restarting the login on the old node key, without the auth key".to_owned(),
            ),
            Why::Offline => (
                Level::Info,
                "still not online; restarting the login, without an auth key".to_owned(),
            ),
        };
        self.say_trying(level, what);
    }

    /// Says that a change is being tried: once, however often it is.
    pub(super) fn say_trying(&mut self, level: Level, what: String) {
        if self.trying != what {
            log::log!(level, "{what}");
            self.trying = what;
        }
    }

    pub(super) fn say_note(&mut self, note: Note) {
        let text = note.to_string();
        match note {
            Note::Renewed(_) => output::event(Level::Info, &text, RENEWED),
            Note::RenewalFailed { .. } => output::event(Level::Warn, &text, RENEWAL_FAILED),
            Note::NotRenewed { .. } if self.put_off != text => {
                output::event(Level::Warn, &text, EXPIRES_SOON);
                self.put_off = text;
            }
            Note::NotRenewed { .. } => {}
            _ => self.say_trying(Level::Warn, text),
        }
    }
}

/// Whether the journal, which has this of a wait, has not heard what is in the way. Other words for
/// it are no news.
fn is_news(logged: Option<&Waiting>, now: &Waiting) -> bool {
    match (logged, now) {
        (None, _) | (Some(Waiting::ControlServer(None)), Waiting::ControlServer(Some(_))) => true,
        (Some(Waiting::KeyFile(before)), Waiting::KeyFile(now)) => {
            discriminant(&before.problem) != discriminant(&now.problem)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Problem;

    #[test]
    fn a_wait_is_news_again_when_its_reason_becomes_known_or_another_kind() {
        let server = |why: Option<&str>| Waiting::ControlServer(why.map(str::to_owned));
        let file = |problem: Problem| Waiting::KeyFile(problem.at("/k".as_ref()));
        let missing = || file(Problem::Missing);
        let unreadable =
            |reason: &str| file(Problem::Unreadable { reason: reason.to_owned(), remedy: "" });
        for (logged, now, news) in [
            (None, server(None), true),
            (Some(server(None)), server(Some("no route")), true),
            (Some(server(Some("no route"))), server(Some("EOF")), false),
            (Some(server(Some("no route"))), server(None), false),
            (Some(missing()), unreadable("permission denied"), true),
            (Some(unreadable("permission denied")), unreadable("EIO"), false),
            (Some(missing()), missing(), false),
            (Some(Waiting::Settling), Waiting::Settling, false),
        ] {
            assert_eq!(is_news(logged.as_ref(), &now), news, "{logged:?}, {now:?}");
        }
    }
}
