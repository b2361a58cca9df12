//! The loop: observe, decide, act, until the node is connected or cannot be.

use std::io;
use std::mem::{Discriminant, discriminant};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use log::Level;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::attempt::Attempt;
use crate::authkey::{AuthKey, KeyFileError, KeySource, NoKey};
use crate::blocking;
use crate::bus::Bus;
use crate::decide::{
    Action, Key, Login, Situation, Tried, Waiting, decide, situation, without_status,
};
use crate::localapi::{LocalApi, LocalApiError, Prefs, Status};
use crate::login::Cli;
use crate::messages;
use crate::notify::Notify;
use crate::outcome::{Connected, Failure};
use crate::settings;
use crate::verdict::{locked, says_locked};

/// The timer behind the doorbell: a tenth of the time already waited, within these limits.
const TIMER_LEAST: Duration = Duration::from_millis(50);
/// Without a tailscaled nothing can ring, and to look for its socket costs next to nothing.
const TIMER_LEAST_WITHOUT_DAEMON: Duration = Duration::from_millis(10);
const TIMER_MOST: Duration = Duration::from_secs(2);

/// How long something is waited for before it's worth a line in the journal.
const WORTH_A_LINE: Duration = Duration::from_secs(3);

/// The longest that the end of a run may take.
const SHUT_DOWN_LIMIT: Duration = Duration::from_millis(700);

/// What a run is to do.
pub struct Config {
    pub socket: PathBuf,
    pub key: KeySource,
    /// How long the key file is waited for once it is needed.
    pub authkey_wait: Duration,
    pub cli: Cli,
}

/// One run.
pub struct Connect<'a> {
    config: &'a Config,
    notify: &'a Notify,
    api: LocalApi,
    bus: Bus,
    /// tailscaled has answered, whatever it said.
    answered: bool,
    /// The last status.
    status: Option<Status>,
    /// The node's preferences now, looked at only where a login is about to be started.
    prefs: Option<Prefs>,
    situation: Situation,
    /// How the login of this run stands.
    login: Discriminant<Login>,
    /// When both became what they are.
    since: Instant,
    /// The preferences of a node without a node key looked as if a login were under way.
    others_login: bool,
    waiting: Option<Wait>,
    brought_up: bool,
    rescued: bool,
    /// What was said last of a change that is being tried.
    trying: String,
    key: KeyState,
    /// A look at the key file that has not come to an end yet.
    reading: Option<JoinHandle<Result<AuthKey, NoKey>>>,
    /// Since when the key file has been waited for.
    key_wanted_since: Option<Instant>,
    refused_key: Option<AuthKey>,
    attempt: Attempt<'a>,
}

/// Something that is being waited for.
struct Wait {
    what: Waiting,
    since: Instant,
    /// What the journal has of it.
    logged: Option<Waiting>,
}

enum KeyState {
    Unread,
    Ready(AuthKey),
    Busy,
    Wanting(KeyFileError),
}

impl<'a> Connect<'a> {
    pub fn new(config: &'a Config, notify: &'a Notify) -> Result<Self, Failure> {
        let api = LocalApi::new(&config.socket)
            .map_err(|error| Failure::Internal(format!("cannot make an HTTP client: {error}")))?;
        Ok(Self {
            config,
            notify,
            api,
            bus: Bus::default(),
            answered: false,
            status: None,
            prefs: None,
            situation: Situation::NoDaemon,
            login: discriminant(&Login::NotTried),
            since: Instant::now(),
            others_login: false,
            waiting: None,
            brought_up: false,
            rescued: false,
            trying: String::new(),
            key: KeyState::Unread,
            reading: None,
            key_wanted_since: None,
            refused_key: None,
            attempt: Attempt::new(&config.cli),
        })
    }

    /// Runs until the node is connected or cannot be. May be dropped at any time; then
    /// [`Connect::shut_down`] is due.
    pub async fn run(&mut self) -> Result<Connected, Failure> {
        loop {
            self.observe().await;
            let action = decide(&self.situation, self.since.elapsed(), &self.tried());
            self.note(&action);
            match action {
                Action::Wait(waiting) => self.wait(waiting).await,
                Action::BringUp => self.bring_up().await?,
                Action::ReadKey => self.read_key().await,
                Action::LogIn => self.log_in().await,
                Action::AbandonLogin => self.attempt.abandon(&self.api).await,
                Action::Rescue { refusal } => self.rescue(refusal).await,
                Action::ForgetKey { refusal } => self.forget_key(refusal).await,
                Action::Finish => match self.attempt.complete(&self.api).await {
                    Ok(()) => return Ok(self.connected()),
                    Err(error) => self.wait_after(&error).await,
                },
                Action::Fail(failure) => return Err(failure),
            }
        }
    }

    /// Ends the login that may be under way, puts back the settings that it changed, and lets go
    /// of the key file.
    pub async fn shut_down(&mut self) {
        let ending = self.attempt.shut_down(&self.api);
        if timeout(SHUT_DOWN_LIMIT, ending).await.is_err() {
            log::warn!("tailscaled did not answer in time to look after the node's settings");
        }
        self.key = KeyState::Unread;
    }

    /// The failure that it is if the time is up now.
    pub fn timed_out(&self) -> Failure {
        let waiting = self.waiting.as_ref().map(|wait| wait.what.clone());
        let waiting = waiting.unwrap_or(Waiting::Settling);
        Failure::timed_out(waiting, self.answered, &self.config.socket)
    }

    // ---- observe

    async fn observe(&mut self) {
        self.prefs = None;
        let about_to_log_in = matches!(self.key, KeyState::Ready(_)) && !self.attempt.is_running();
        let wants_prefs = about_to_log_in || self.attempt.wants_prefs();
        let prefs = async {
            match wants_prefs {
                true => self.api.prefs().await.ok(),
                false => None,
            }
        };
        let (status, prefs) = tokio::join!(self.api.status(), prefs);
        let situation = match status {
            Ok(status) => {
                self.prefs = self.attempt.follow(&self.api, &status, prefs).await;
                let situation = situation(&status, first_unbound(&status));
                self.status = Some(status);
                situation
            }
            Err(error) => {
                if let LocalApiError::Unreachable(why) = &error {
                    log::debug!("tailscaled: {why}");
                    self.bus.drop_dead();
                    self.attempt.daemon_is_gone();
                }
                without_status(&error)
            }
        };
        self.answered |= situation != Situation::NoDaemon;
        let login = discriminant(&self.attempt.state());
        if situation != self.situation || login != self.login {
            self.since = Instant::now();
        }
        self.login = login;
        if situation != self.situation {
            log::debug!("{situation:?}");
            self.situation = situation;
            self.bus.something_changed();
        }
        self.look_for_others_login();
    }

    /// A login that gets its node key meanwhile is under way all the same.
    fn look_for_others_login(&mut self) {
        let has_node_key = |status: &Status| status.have_node_key;
        match (&self.situation, &self.prefs) {
            // A tailscaled that went away took the login with it.
            (Situation::NoDaemon, _) => self.others_login = false,
            (_, Some(prefs)) if !self.status.as_ref().is_some_and(has_node_key) => {
                self.others_login = settings::login_under_way(prefs);
            }
            _ => {}
        }
    }

    fn tried(&self) -> Tried {
        let key = match &self.key {
            KeyState::Unread => Key::Unread,
            KeyState::Busy => Key::Busy,
            KeyState::Ready(key) => Key::Ready {
                refused: self
                    .refused_key
                    .as_ref()
                    .is_some_and(|refused| refused.is_same_as(key)),
            },
            KeyState::Wanting(error) => Key::Wanting {
                error: error.clone(),
                overdue: self
                    .key_wanted_since
                    .is_some_and(|since| since.elapsed() >= self.config.authkey_wait),
            },
        };
        Tried {
            brought_up: self.brought_up,
            rescued: self.rescued,
            others_login: self.others_login,
            login: self.attempt.state(),
            key,
        }
    }

    /// What every message from now on is about.
    fn note(&self, action: &Action) {
        let state = match (&self.situation, &self.status) {
            (Situation::NoDaemon | Situation::Denied(_) | Situation::Unintelligible(_), _) => "",
            (_, status) => status.as_ref().map_or("", |status| &status.backend_state),
        };
        // The login that is about to start counts.
        let attempt = self.attempt.count() + u32::from(*action == Action::LogIn);
        messages::context(state, action.name(), attempt);
        log::trace!("{:?}, so {action:?}", self.situation);
    }

    // ---- act

    /// Waits for the doorbell, the end of the CLI or the timer, whichever comes first.
    async fn wait(&mut self, waiting: Waiting) {
        let timer = self.say(waiting);
        // While the CLI runs, its end is the news: one more on the bus would only slow the login.
        if self.situation != Situation::NoDaemon && !self.attempt.is_running() {
            self.bus.open(&self.api, timer);
        }
        let cli_ended = tokio::select! {
            () = self.attempt.cli_ended() => true,
            () = self.bus.ring() => false,
            () = sleep(timer) => false,
        };
        if cli_ended {
            let key = match &self.key {
                KeyState::Ready(key) => Some(key),
                _ => None,
            };
            self.attempt.judge(&self.api, key).await;
        }
        // The file is looked at again, in case that it has changed.
        if self.attempt.is_paused() || !matches!(self.key, KeyState::Ready(_)) {
            self.key = KeyState::Unread;
        }
    }

    /// Says what is being waited for, where it's news, and returns how long the timer runs.
    fn say(&mut self, what: Waiting) -> Duration {
        let text = what.to_string();
        self.notify.status(&text);
        let (since, mut logged) = match self.waiting.take() {
            Some(wait) if discriminant(&wait.what) == discriminant(&what) => {
                (wait.since, wait.logged)
            }
            _ => {
                log::debug!("{text}");
                (Instant::now(), None)
            }
        };
        messages::waiting(&text, since);
        let waited = since.elapsed();
        if waited >= WORTH_A_LINE && is_news(logged.as_ref(), &what) {
            log::info!("{text}");
            logged = Some(what.clone());
        }
        self.waiting = Some(Wait {
            what,
            since,
            logged,
        });
        let least = if self.situation == Situation::NoDaemon {
            TIMER_LEAST_WITHOUT_DAEMON
        } else {
            TIMER_LEAST
        };
        (waited / 10).clamp(least, TIMER_MOST)
    }

    async fn bring_up(&mut self) -> Result<(), Failure> {
        self.say_trying(
            Level::Info,
            "tailscale is stopped; bringing it up, without an auth key".to_owned(),
        );
        // tailscaled remembers the auth key of its last login, and would send it again.
        let brought_up = match self.api.restart_login().await {
            Ok(()) => self.api.edit_prefs(&settings::want_running(true)).await,
            error => error,
        };
        match brought_up {
            Ok(()) => self.brought_up = true,
            Err(LocalApiError::Denied(why)) => return Err(Failure::Denied(why)),
            Err(LocalApiError::BadAnswer(why)) if says_locked(&why) => return Err(locked()),
            Err(error) => self.wait_after(&error).await,
        }
        Ok(())
    }

    async fn read_key(&mut self) {
        let source = &self.config.key;
        let mut reading = self.reading.take().unwrap_or_else(|| {
            let source = source.clone();
            spawn_blocking(move || AuthKey::read(&source))
        });
        let read = match timeout(blocking::LIMIT, &mut reading).await {
            Ok(read) => read.unwrap_or_else(|_| Err(KeyFileError::silent(&source.path).into())),
            Err(_) => {
                self.reading = Some(reading);
                Err(KeyFileError::silent(&source.path).into())
            }
        };
        self.key = match read {
            Ok(key) => {
                self.key_wanted_since = None;
                KeyState::Ready(key)
            }
            Err(NoKey::Busy) => KeyState::Busy,
            Err(NoKey::File(error)) => {
                self.key_wanted_since.get_or_insert_with(Instant::now);
                KeyState::Wanting(error)
            }
        };
    }

    async fn log_in(&mut self) {
        let (KeyState::Ready(key), Some(status)) = (&self.key, &self.status) else {
            return;
        };
        let Some(prefs) = self.prefs.take() else {
            return self
                .wait(Waiting::Answer("no preferences".to_owned()))
                .await;
        };
        let path = self.config.key.path.display();
        log::info!("logging in with the auth key from {path}");
        self.attempt.start(key, status, prefs).await;
        if self.attempt.is_running() {
            self.wait(Waiting::LoggingIn).await;
        }
    }

    /// A key that someone else sent was refused; or the node has been offline for long.
    async fn rescue(&mut self, refusal: Option<String>) {
        match refusal {
            Some(refusal) => self.say_trying(
                Level::Warn,
                format!(
                    "an auth key that was sent earlier keeps this node off its tailnet \
                     ({refusal}); restarting the login without it"
                ),
            ),
            None => self.say_trying(
                Level::Info,
                "still not online; restarting the login, without an auth key".to_owned(),
            ),
        }
        let why = match self.api.restart_login().await {
            Ok(()) => {
                self.rescued = true;
                return self
                    .attempt
                    .lose_key("an auth key was refused, perhaps another one");
            }
            Err(LocalApiError::Denied(why)) => why,
            Err(LocalApiError::BadAnswer(why)) if says_locked(&why) => why,
            Err(error) => return self.wait_after(&error).await,
        };
        // The node may come online without it.
        log::warn!("tailscaled does not let us restart the login: {why}");
        self.rescued = true;
    }

    /// Says that a change is being tried: once, however often it is.
    fn say_trying(&mut self, level: Level, what: String) {
        if self.trying != what {
            log::log!(level, "{what}");
            self.trying = what;
        }
    }

    async fn forget_key(&mut self, refusal: String) {
        if let Err(error) = self.attempt.forget(&self.api, refusal).await {
            return self.wait_after(&error).await;
        }
        // The secret may have been replaced since it was read.
        if let KeyState::Ready(mut key) = std::mem::replace(&mut self.key, KeyState::Unread) {
            key.unlock();
            self.refused_key = Some(key);
        }
    }

    /// A request has failed, and is made again after a look at how things stand then. No ring
    /// makes that sooner: what is asked of tailscaled may ring by itself.
    async fn wait_after(&mut self, error: &LocalApiError) {
        let timer = self.say(Waiting::Answer(error.to_string()));
        sleep(timer).await;
    }

    fn connected(&self) -> Connected {
        if let Situation::AddressPending(address) = self.situation {
            log::warn!("connected, but the address {address} is not on the interface yet");
        }
        let none = Status::default();
        let status = self.status.as_ref().unwrap_or(&none);
        Connected::of(status, self.attempt.was_made())
    }
}

/// Whether the journal, which has this of a wait, has not heard what is in the way. Other words for
/// it are no news.
fn is_news(logged: Option<&Waiting>, now: &Waiting) -> bool {
    match (logged, now) {
        (None, _) | (Some(Waiting::ControlServer(None)), Waiting::ControlServer(Some(_))) => true,
        (Some(Waiting::KeyFile(before)), Waiting::KeyFile(now)) => {
            discriminant(before) != discriminant(now)
        }
        _ => false,
    }
}

/// The first of the node's addresses that no socket can be bound to yet; with userspace
/// networking there is nothing to bind to.
pub fn first_unbound(status: &Status) -> Option<IpAddr> {
    if !status.tun || !status.node.online {
        return None;
    }
    let bindable = |address: IpAddr| match UdpSocket::bind((address, 0)) {
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        Ok(_) => true,
    };
    // With IPv6 switched off, tailscaled gives the interface no IPv6 address either.
    let has_ipv6 = bindable(IpAddr::V6(Ipv6Addr::LOCALHOST));
    status
        .tailscale_ips
        .iter()
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .filter(|address| address.is_ipv4() || has_ipv6)
        .find(|address| !bindable(*address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_news_again_when_its_reason_becomes_known_or_another_kind() {
        let server = |why: Option<&str>| Waiting::ControlServer(why.map(str::to_owned));
        let missing = || Waiting::KeyFile(KeyFileError::Missing("/k".into()));
        let unreadable = |reason: &str| {
            Waiting::KeyFile(KeyFileError::Unreadable {
                path: "/k".into(),
                reason: reason.to_owned(),
                remedy: "",
            })
        };
        for (logged, now, news) in [
            (None, server(None), true),
            (Some(server(None)), server(Some("no route")), true),
            (Some(server(Some("no route"))), server(Some("EOF")), false),
            (Some(server(Some("no route"))), server(None), false),
            (Some(missing()), unreadable("permission denied"), true),
            (
                Some(unreadable("permission denied")),
                unreadable("EIO"),
                false,
            ),
            (Some(missing()), missing(), false),
            (Some(Waiting::Settling), Waiting::Settling, false),
        ] {
            assert_eq!(is_news(logged.as_ref(), &now), news, "{logged:?}, {now:?}");
        }
    }
}
