//! The loop: observe, decide, act, until the node is connected or cannot be.

use std::future::pending;
use std::io;
use std::mem::discriminant;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::authkey::{AuthKey, KeyFileError, KeySource, NoKey};
use crate::decide::{self, Action, Key, Situation, Tried, Waiting, decide, situation};
use crate::localapi::{Doorbell, LocalApi, LocalApiError, Prefs, Status};
use crate::login::{Cli, Login};
use crate::notify::Notify;
use crate::outcome::{Connected, Failure};
use crate::settings;
use crate::verdict::{LoginError, Verdict, last_login_error};

/// The timer behind the doorbell: a tenth of the time already waited, within these limits.
const TIMER_LEAST: Duration = Duration::from_millis(50);
const TIMER_MOST: Duration = Duration::from_secs(2);

/// How many rings without a change are followed at once, and how long each one waits after that.
const VAIN_RINGS: u32 = 30;
const VAIN_REST: Duration = Duration::from_millis(100);

/// How long something is waited for before it's worth a line in the journal.
const WORTH_A_LINE: Duration = Duration::from_secs(3);

/// The time between two logins that failed in passing doubles from one to the other.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// How often a login is started again because the CLI wants other settings mentioned: an admin
/// may be changing them meanwhile.
const MOST_SETTINGS_ROUNDS: u32 = 3;

/// The longest that the end of a run may take.
const SHUT_DOWN_LIMIT: Duration = Duration::from_millis(700);

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
    situation: Situation,
    since: Instant,
    waiting: Option<(Waiting, Instant)>,
    line_due: bool,
    brought_up: bool,
    rescued: bool,
    key: KeyState,
    key_wanted_since: Option<Instant>,
    refused_key: Option<AuthKey>,
    progress: Progress,
    attempts: u32,
    /// What the login of this run does to the node's settings.
    touched: Option<Touched>,
}

/// The doorbell on tailscaled's bus, with what keeps a broken one from making us spin.
#[derive(Default)]
struct Bus {
    doorbell: Option<Doorbell>,
    /// After it was refused or has ended, it's not asked for again until then.
    reopen_at: Option<Instant>,
    /// Rings since the situation last changed.
    vain_rings: u32,
}

enum KeyState {
    Unread,
    Ready(AuthKey),
    Busy,
    Wanting(KeyFileError),
}

/// How the login of this run stands, with what it takes to follow it.
enum Progress {
    NotTried,
    InFlight {
        login: Login,
        started: Instant,
        rounds: u32,
    },
    WithDaemon,
    Failed {
        error: String,
        retry_at: Instant,
    },
    Refused {
        refusal: String,
        at: Instant,
        forgotten: bool,
    },
    Impossible(Failure),
}

/// The node before a login, and how much of the login has come to it.
struct Touched {
    prefs: Prefs,
    sight: Sight,
    /// tailscaled has shown a sign of the login.
    begun: bool,
    /// The settings are as they were.
    settled: bool,
}

/// The part of a status that a login changes.
#[derive(PartialEq)]
struct Sight {
    state: String,
    online: bool,
    auth_url: String,
    error: Option<LoginError>,
}

impl Bus {
    fn close(&mut self, rest: Duration) {
        self.doorbell = None;
        self.reopen_at = Some(Instant::now() + rest);
    }
}

impl Sight {
    fn of(status: &Status) -> Self {
        Self {
            state: status.backend_state.clone(),
            online: status.node.online,
            auth_url: status.auth_url.clone(),
            error: last_login_error(&status.health),
        }
    }
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
            situation: Situation::NoDaemon,
            since: Instant::now(),
            waiting: None,
            line_due: false,
            brought_up: false,
            rescued: false,
            key: KeyState::Unread,
            key_wanted_since: None,
            refused_key: None,
            progress: Progress::NotTried,
            attempts: 0,
            touched: None,
        })
    }

    /// Runs until the node is connected or cannot be. May be dropped at any time; then
    /// [`Connect::shut_down`] is due.
    pub async fn run(&mut self) -> Result<Connected, Failure> {
        loop {
            self.observe().await;
            self.follow_login().await;
            self.watch_key().await;
            match decide(&self.situation, self.since.elapsed(), &self.tried()) {
                Action::Wait(waiting) => self.wait(waiting).await,
                Action::BringUp => self.bring_up().await?,
                Action::ReadKey => self.read_key(),
                Action::LogIn => self.log_in().await,
                Action::AbandonLogin => self.abandon_login().await,
                Action::Rescue { refusal } => self.rescue(refusal).await,
                Action::ForgetKey { refusal } => self.forget_key(refusal).await,
                Action::Finish => return Ok(self.connected()),
                Action::Fail(failure) => return Err(failure),
            }
        }
    }

    /// Ends the login that may be under way and puts back the settings that it changed.
    pub async fn shut_down(&mut self) {
        let ending = async {
            if let Progress::InFlight { login, .. } = self.replace_progress(Progress::WithDaemon) {
                login.stop().await;
            }
            if self
                .touched
                .as_ref()
                .is_some_and(|touched| !touched.settled)
            {
                self.observe().await;
                self.follow_login().await;
            }
        };
        if timeout(SHUT_DOWN_LIMIT, ending).await.is_err() {
            log::warn!("tailscaled did not answer in time to look after the node's settings");
        }
        self.key = KeyState::Unread;
    }

    /// The failure that it is if the time is up now.
    pub fn timed_out(&self) -> Failure {
        let socket = self.config.socket.display().to_string();
        match &self.waiting {
            _ if !self.answered => Failure::TailscaledUnreachable { socket },
            Some((Waiting::KeyFile(error), _)) => Failure::KeyFile(error.clone()),
            Some((waiting, _)) => Failure::TimedOut(waiting.clone()),
            None => Failure::TimedOut(Waiting::Settling),
        }
    }

    // ---- observe

    async fn observe(&mut self) {
        let situation = match self.api.status().await {
            Ok(status) => {
                let unbound = if status.tun && status.node.online {
                    first_unbound(&status.tailscale_ips)
                } else {
                    None
                };
                let situation = situation(&status, unbound);
                self.status = Some(status);
                situation
            }
            Err(LocalApiError::Unreachable(why)) => {
                log::debug!("tailscaled: {why}");
                self.daemon_is_gone();
                Situation::NoDaemon
            }
            Err(LocalApiError::NoAnswer) => Situation::NoDaemon,
            Err(LocalApiError::Denied(why)) => Situation::Denied(why),
            Err(LocalApiError::BadAnswer(why)) => Situation::Unintelligible(why),
        };
        self.answered |= situation != Situation::NoDaemon;
        if situation != self.situation {
            log::debug!("{situation:?}");
            self.situation = situation;
            self.since = Instant::now();
            self.bus.vain_rings = 0;
        }
    }

    /// A tailscaled that goes away takes the key with it.
    fn daemon_is_gone(&mut self) {
        self.bus.doorbell = None;
        self.bus.reopen_at = None;
        self.key_is_lost();
    }

    fn key_is_lost(&mut self) {
        if matches!(self.progress, Progress::WithDaemon) {
            self.retry_later("tailscaled was restarted", None);
        }
    }

    fn tried(&self) -> Tried {
        let login = match &self.progress {
            Progress::NotTried => decide::Login::NotTried,
            Progress::InFlight { started, .. } => decide::Login::InFlight {
                lasted: started.elapsed(),
                begun: self.touched.as_ref().is_some_and(|touched| touched.begun),
            },
            Progress::WithDaemon => decide::Login::WithDaemon {
                stale: self.stale_refusal(),
            },
            Progress::Failed { error, retry_at } => decide::Login::Failed {
                error: error.clone(),
                may_retry: Instant::now() >= *retry_at,
            },
            Progress::Refused {
                refusal,
                at,
                forgotten,
            } => decide::Login::Refused {
                refusal: refusal.clone(),
                ago: at.elapsed(),
                forgotten: *forgotten,
            },
            Progress::Impossible(failure) => decide::Login::Impossible(failure.clone()),
        };
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
            login,
            key,
        }
    }

    /// The refusal that tailscaled showed before the login of this run.
    fn stale_refusal(&self) -> Option<String> {
        match &self.touched.as_ref()?.sight.error {
            Some(LoginError::Refused(text)) => Some(text.clone()),
            _ => None,
        }
    }

    // ---- act

    /// Waits for the doorbell, the end of the CLI or the timer, whichever comes first.
    async fn wait(&mut self, waiting: Waiting) {
        let timer = self.say(waiting);
        self.open_bus(timer).await;
        let rests = self.bus.vain_rings >= VAIN_RINGS;
        let ring = async {
            match &mut self.bus.doorbell {
                Some(doorbell) => {
                    if rests {
                        sleep(VAIN_REST).await;
                    }
                    doorbell.ring().await;
                }
                None => pending().await,
            }
        };
        let cli_end = async {
            match &mut self.progress {
                Progress::InFlight { login, .. } => login.ended().await,
                _ => pending().await,
            }
        };
        tokio::select! {
            () = ring => self.bus.vain_rings += 1,
            () = cli_end => self.judge_login().await,
            () = sleep(timer) => {}
        }
        if self.bus.doorbell.as_ref().is_some_and(Doorbell::is_over) {
            self.bus.close(timer);
        }
        // A key file that was not good is looked at again, in case that it has changed.
        if !matches!(self.key, KeyState::Ready(_)) {
            self.key = KeyState::Unread;
        }
    }

    /// Sees to it that there is a doorbell, if there can be one. `rest` is the time to do without
    /// one where it is refused.
    async fn open_bus(&mut self, rest: Duration) {
        let resting = |at: Instant| Instant::now() < at;
        if self.bus.doorbell.is_some()
            || self.situation == Situation::NoDaemon
            || self.bus.reopen_at.is_some_and(resting)
        {
            return;
        }
        match self.api.watch().await {
            Ok(doorbell) => self.bus.doorbell = Some(doorbell),
            Err(error) => {
                log::debug!("no bus, the timer does: {error}");
                self.bus.close(rest);
            }
        }
    }

    /// Says what is being waited for, where it's news, and returns how long the timer runs.
    fn say(&mut self, waiting: Waiting) -> Duration {
        let text = waiting.to_string();
        self.notify.status(&text);
        let since = match self.waiting.take() {
            Some((before, since)) if discriminant(&before) == discriminant(&waiting) => since,
            _ => {
                log::debug!("{text}");
                self.line_due = true;
                Instant::now()
            }
        };
        let waited = since.elapsed();
        if self.line_due && waited >= WORTH_A_LINE {
            self.line_due = false;
            log::info!("{text}");
        }
        self.waiting = Some((waiting, since));
        (waited / 10).clamp(TIMER_LEAST, TIMER_MOST)
    }

    async fn bring_up(&mut self) -> Result<(), Failure> {
        log::info!("tailscale is stopped; bringing it up, without an auth key");
        match self.api.edit_prefs(&settings::want_running()).await {
            Ok(()) => self.brought_up = true,
            Err(LocalApiError::Denied(why)) => return Err(Failure::Denied(why)),
            Err(error) => self.wait(Waiting::Answer(error.to_string())).await,
        }
        Ok(())
    }

    fn read_key(&mut self) {
        self.key = match AuthKey::read(&self.config.key) {
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
        let sight = Sight::of(status);
        // Settings that an earlier login has left changed are still to be put back.
        let before = match self.touched.take() {
            Some(touched) if !touched.settled => Ok(touched.prefs),
            _ => self.api.prefs().await,
        };
        let prefs = match before {
            Ok(prefs) => prefs,
            Err(error) => return self.wait(Waiting::Answer(error.to_string())).await,
        };
        log::info!(
            "logging in with the auth key from {}",
            self.config.key.path.display()
        );
        self.attempts += 1;
        self.progress = match self.config.cli.up(key, &[]) {
            Ok(login) => Progress::InFlight {
                login,
                started: Instant::now(),
                rounds: 0,
            },
            Err(failure) => Progress::Impossible(failure),
        };
        self.touched = Some(Touched {
            prefs,
            sight,
            begun: false,
            settled: false,
        });
    }

    /// Looks whether the login has come to the node, and puts back the settings when it has.
    async fn follow_login(&mut self) {
        let (Some(touched), Some(status)) = (&mut self.touched, &self.status) else {
            return;
        };
        if touched.settled || self.situation == Situation::NoDaemon {
            return;
        }
        if !touched.begun {
            touched.begun = Sight::of(status) != touched.sight
                || match self.api.prefs().await {
                    Ok(now) => settings::login_reached(&touched.prefs, &now),
                    Err(_) => false,
                };
        }
        if touched.begun {
            self.settle().await;
        }
    }

    /// Notices that tailscaled has lost the key by a restart that nobody saw: on a new node it is
    /// logged out again then. (On others it asks for a person, which shows in the status.)
    async fn watch_key(&mut self) {
        if matches!(self.progress, Progress::WithDaemon)
            && matches!(self.situation, Situation::NeedsLogin { .. })
            && let Ok(prefs) = self.api.prefs().await
            && prefs.get("LoggedOut") == Some(&Value::Bool(true))
        {
            self.key_is_lost();
        }
    }

    /// Puts back the settings that the login changed and nobody asked for. It's done once, as
    /// early as can be: what changes later was changed by an admin.
    async fn settle(&mut self) {
        let Some(touched) = &mut self.touched else {
            return;
        };
        if touched.settled {
            return;
        }
        let Ok(now) = self.api.prefs().await else {
            return;
        };
        touched.settled = true;
        let lost = settings::lost(&touched.prefs, &now, &self.config.cli.asked());
        if lost.is_empty() {
            return;
        }
        let names: Vec<&str> = lost.keys().map(String::as_str).collect();
        log::info!(
            "putting back settings that the login changed: {}",
            names.join(", ")
        );
        if self.api.edit_prefs(&settings::masked(&lost)).await.is_ok() {
            return;
        }
        // One that tailscaled doesn't take must not cost the others.
        for (name, old) in lost {
            let one = Prefs::from_iter([(name.clone(), old)]);
            if let Err(error) = self.api.edit_prefs(&settings::masked(&one)).await {
                log::warn!(
                    "the login changed the setting {name}, which cannot be put back: {error}"
                );
            }
        }
    }

    /// The CLI has ended.
    async fn judge_login(&mut self) {
        let Progress::InFlight { login, rounds, .. } = self.replace_progress(Progress::WithDaemon)
        else {
            return;
        };
        match login.verdict().await {
            Verdict::Done => self.mark_begun(),
            Verdict::KeepSettings(flags) => self.log_in_keeping(flags, rounds + 1),
            Verdict::Refused(refusal) => {
                self.mark_begun();
                self.refused(refusal, false);
            }
            Verdict::Impossible(failure) => self.progress = Progress::Impossible(failure),
            Verdict::Transient {
                error,
                daemon_restarted,
                retry_after,
            } => {
                log::warn!("the login did not come to an end: {error}");
                // tailscaled tries by itself with a key that it has been given.
                self.observe().await;
                self.follow_login().await;
                let begun = self.touched.as_ref().is_some_and(|touched| touched.begun);
                if daemon_restarted || !begun {
                    self.retry_later(&error, retry_after);
                }
            }
        }
    }

    fn log_in_keeping(&mut self, flags: Vec<String>, rounds: u32) {
        let KeyState::Ready(key) = &self.key else {
            return;
        };
        let kept = settings::flags_to_add(flags, &self.config.cli.asked());
        let started = if rounds > MOST_SETTINGS_ROUNDS || kept.is_empty() {
            Err(Failure::Misconfigured(
                "`tailscale up` wants settings mentioned that it does not name; \
                 give them as flags after `--`"
                    .to_owned(),
            ))
        } else {
            log::info!("keeping the node's settings: {}", kept.join(" "));
            self.config.cli.up(key, &kept)
        };
        self.progress = match started {
            Ok(login) => Progress::InFlight {
                login,
                started: Instant::now(),
                rounds,
            },
            Err(failure) => Progress::Impossible(failure),
        };
    }

    async fn abandon_login(&mut self) {
        if let Progress::InFlight { login, .. } = self.replace_progress(Progress::WithDaemon) {
            login.stop().await;
        }
        log::warn!("`tailscale up` did nothing for a long time and was ended");
        self.retry_later("`tailscale up` did nothing", None);
    }

    /// A key that someone else sent was refused; or the node has been offline for long.
    async fn rescue(&mut self, refusal: Option<String>) {
        match refusal {
            Some(refusal) => log::warn!(
                "an auth key that was sent earlier keeps this node off its tailnet ({refusal}); \
                 restarting the login without it"
            ),
            None => log::info!("still not online; restarting the login, without an auth key"),
        }
        match self.api.restart_login().await {
            Ok(()) => self.rescued = true,
            Err(LocalApiError::Denied(why)) => {
                log::warn!("tailscaled does not let us restart the login: {why}");
                self.rescued = true;
            }
            Err(error) => self.wait(Waiting::Answer(error.to_string())).await,
        }
    }

    /// Our key was refused: tailscaled would go on sending it, and a node with a valid node key
    /// would be kept off its tailnet.
    async fn forget_key(&mut self, refusal: String) {
        if let Progress::InFlight { login, .. } = self.replace_progress(Progress::WithDaemon) {
            login.stop().await;
        }
        match self.api.restart_login().await {
            // Not a restart but a stand-still: it may go on with the key when it wakes up.
            Err(error @ LocalApiError::NoAnswer) => {
                self.refused(refusal, false);
                return self.wait(Waiting::Answer(error.to_string())).await;
            }
            Err(error) => log::debug!("cannot restart the login: {error}"),
            Ok(()) => {}
        }
        self.settle().await;
        self.refused(refusal, true);
        // The secret may have been replaced since it was read.
        if let KeyState::Ready(mut key) = std::mem::replace(&mut self.key, KeyState::Unread) {
            key.unlock();
            self.refused_key = Some(key);
        }
    }

    fn connected(&self) -> Connected {
        if let Situation::AddressPending(address) = self.situation {
            log::warn!("connected, but the address {address} is not on the interface yet");
        }
        let (name, addresses) = match &self.status {
            Some(status) => (
                status.node.dns_name.trim_end_matches('.').to_owned(),
                status.tailscale_ips.clone(),
            ),
            None => Default::default(),
        };
        Connected {
            name,
            addresses,
            logged_in: self.attempts > 0,
        }
    }

    // ---- small steps

    fn replace_progress(&mut self, progress: Progress) -> Progress {
        std::mem::replace(&mut self.progress, progress)
    }

    fn mark_begun(&mut self) {
        if let Some(touched) = &mut self.touched {
            touched.begun = true;
        }
    }

    fn refused(&mut self, refusal: String, forgotten: bool) {
        let at = match &self.progress {
            Progress::Refused { at, .. } => *at,
            _ => Instant::now(),
        };
        self.progress = Progress::Refused {
            refusal,
            at,
            forgotten,
        };
    }

    /// The next login may start after a while that grows, and reads the key file anew.
    fn retry_later(&mut self, error: &str, at_least: Option<Duration>) {
        let doublings = self.attempts.saturating_sub(1).min(16);
        let longest = (RETRY_FIRST * 2u32.pow(doublings)).min(RETRY_LONGEST);
        // Half of it by chance, so that many machines don't come back at once.
        let delay = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.progress = Progress::Failed {
            error: error.to_owned(),
            retry_at: Instant::now() + delay.max(at_least.unwrap_or_default()),
        };
        self.key = KeyState::Unread;
    }
}

/// The first of `addresses` that no socket can be bound to yet.
fn first_unbound(addresses: &[String]) -> Option<IpAddr> {
    let bindable = |address: IpAddr| match UdpSocket::bind((address, 0)) {
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        Ok(_) => true,
    };
    // With IPv6 switched off, tailscaled gives the interface no IPv6 address either.
    let has_ipv6 = bindable(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
    addresses
        .iter()
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .filter(|address| address.is_ipv4() || has_ipv6)
        .find(|address| !bindable(*address))
}
