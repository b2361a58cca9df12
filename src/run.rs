//! The shell around the policy: does one action at a time, and tells what came of it.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::mem::discriminant;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::Level;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::failure::{self, Connected, Failure, Note, Waiting};
use crate::file_system::{SILENT, in_time};
use crate::key::{AuthKey, KeyFacts, KeySource, NoKey, Problem};
use crate::output;
use crate::output::journal::{EXPIRES_SOON, RENEWAL_FAILED, RENEWED};
use crate::output::notify::Notify;
use crate::policy::{Action, Event, Machine, Setup, Situation, Time, Why};
use crate::prefs::{Prefs, want_running};
use crate::record::{Lock, Record, Store, machine_id};
use crate::tailscaled::{Bus, LocalApi, LocalApiError, Status};
use crate::up::{Cli, Ended, NotStarted, Up};

/// How long something is waited for before it's worth a line in the journal.
const WORTH_A_LINE: Duration = Duration::from_secs(3);

/// The longest that the end of a run may take.
const END_LIMIT: Duration = Duration::from_secs(3);

/// How long a bus may take to tell what was there to be read.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(2);

/// How often an exit node is looked for, with which pause, and how long each may take.
const EXIT_NODE_TRIES: u32 = 4;
const EXIT_NODE_PAUSE: Duration = Duration::from_millis(500);
const EXIT_NODE_LIMIT: Duration = Duration::from_secs(5);

/// For how long a refused or ended bus is not asked for again.
const BUS_REST: Duration = Duration::from_secs(1);

/// What a run is to do, and with what.
#[derive(Clone, Debug)]
pub struct Config {
    pub setup: Setup,
    /// Flags for `tailscale set` after a login: an exit node that is asked for by its name.
    pub exit_node: Vec<String>,
    pub key: KeySource,
    pub cli: Cli,
    pub store: Store,
}

/// How a run ended.
pub type Outcome = Option<Result<Connected, Failure>>;

/// One run.
pub struct Run<'a> {
    config: &'a Config,
    notify: &'a Notify,
    began: Instant,
    machine: Machine,
    api: LocalApi,
    bus: Bus,
    /// The key, and the lock on the place of the record, which go together.
    key: Option<(AuthKey, Lock)>,
    up: Option<Up>,
    waiting: Option<Wait>,
    /// The node has been connected, and we stay.
    is_staying: Rc<Cell<bool>>,
    /// The key of a renewal is on its way to tailscaled.
    is_renewing: bool,
    /// What was seen last.
    seen: Option<Situation>,
    /// What was said last of a change that is being tried.
    trying: String,
}

/// Something that is being waited for.
struct Wait {
    what: Waiting,
    since: Instant,
    /// What the journal has of it.
    logged: Option<Waiting>,
}

impl<'a> Run<'a> {
    pub fn new(config: &'a Config, notify: &'a Notify) -> Result<Self, Failure> {
        let api = LocalApi::new(&config.setup.socket)
            .map_err(|error| Failure::Internal(format!("cannot make an HTTP client: {error}")))?;
        Ok(Self {
            config,
            notify,
            began: Instant::now(),
            machine: Machine::new(config.setup.clone(), fastrand::u64(..)),
            api,
            bus: Bus::default(),
            key: None,
            up: None,
            waiting: None,
            is_staying: Rc::default(),
            is_renewing: false,
            seen: None,
            trying: String::new(),
        })
    }

    /// Runs until the node is connected or cannot be, or until a signal or the time limit of the run.
    /// None: by a signal.
    pub async fn run(
        &mut self,
        signal: impl Future<Output = ()>,
        limit: impl Future<Output = ()>,
    ) -> Outcome {
        let is_staying = Rc::clone(&self.is_staying);
        let limit = async {
            limit.await;
            // There is a limit to getting there, not to staying there.
            if is_staying.get() {
                pending().await
            }
        };
        let is_signal = tokio::select! {
            outcome = self.go_on() => return outcome,
            () = signal => true,
            () = limit => false,
        };
        let event = match is_signal {
            true => Event::Stop,
            false => Event::TimeUp(self.waiting.as_ref().map(|waiting| waiting.what.clone())),
        };
        let now = self.now();
        if std::mem::take(&mut self.is_renewing) {
            // It was broken off, and what has become of it is to be seen.
            self.machine.on(Event::Renewed(Ok(())), now);
        }
        self.machine.on(event, now);
        // What was broken off is begun again.
        if let Ok(outcome) = timeout(END_LIMIT, self.go_on()).await {
            return outcome;
        }
        log::warn!("tailscaled did not answer in time to look after the node's settings");
        match self.machine.next(self.now()) {
            Action::Fail(failure) => Some(Err(failure)),
            _ => self.machine.failure().map(Err),
        }
    }

    /// May be dropped at any time.
    async fn go_on(&mut self) -> Outcome {
        loop {
            let action = self.machine.next(self.now());
            // One that is about to start is counted.
            let logins = self.machine.logins() + u32::from(matches!(action, Action::LogIn(_)));
            output::context(self.machine.backend_state(), action.name(), logins);
            if let Some(situation) = self.machine.situation() {
                log::trace!("{situation:?}, so {action:?}");
            }
            let outcome = match action {
                Action::Finish(connected) => {
                    self.set_exit_node(&connected).await;
                    Some(Ok(connected))
                }
                Action::Fail(failure) => Some(Err(failure)),
                Action::Stopped => None,
                action => {
                    let event = self.act(action).await;
                    self.take_in(event);
                    continue;
                }
            };
            if let Some(up) = self.up.take() {
                up.stop().await;
            }
            return outcome;
        }
    }

    fn take_in(&mut self, event: Event) {
        let now = self.now();
        self.machine.on(event, now);
        if let Some(situation) = self.machine.situation()
            && self.seen.as_ref() != Some(situation)
        {
            log::debug!("{situation:?}");
            self.seen = Some(situation.clone());
            self.bus.something_changed();
        }
        for note in self.machine.notes() {
            self.say_note(note);
        }
    }

    fn now(&self) -> Time {
        self.began.elapsed()
    }

    async fn act(&mut self, action: Action) -> Event {
        match action {
            Action::ReadRecord => {
                let store = self.config.store.clone();
                let read = in_time(move || store.read_of());
                let (record, is_copied) = read.await.unwrap_or_default();
                if is_copied {
                    log::warn!("{}", failure::COPIED);
                }
                Event::Record(record)
            }
            Action::Look => self.look().await,
            Action::ReadPrefs => self.read_prefs().await,
            Action::ReadKey => Event::Key(self.read_key().await),
            Action::ReleaseKey => {
                self.key = None;
                Event::Released
            }
            Action::Write(record) => self.write(record).await,
            Action::LogIn(flags) => Event::Started(self.log_in(&flags).await),
            Action::StopCommand => {
                if let Some(up) = self.up.take() {
                    up.stop().await;
                }
                Event::CommandStopped
            }
            Action::Restart(why) => {
                self.say_restart(&why);
                Event::Restarted(self.api.start(None).await)
            }
            Action::BringUp => Event::BroughtUp(self.api.edit_prefs(&want_running()).await),
            Action::PutBack { prefs, profile } => {
                Event::PutBack(self.put_back(prefs, profile).await)
            }
            Action::TakeBack { prefs, profile } => {
                Event::TookBack(self.take_back(&prefs, profile).await)
            }
            Action::Renew => {
                self.is_renewing = true;
                // What it tells now is waited for.
                self.bus.something_changed();
                let result = self.renew().await;
                self.is_renewing = false;
                Event::Renewed(result)
            }
            Action::Postpone(obstacle) => {
                self.key = None;
                Event::Postponed(obstacle)
            }
            Action::Ping => {
                self.key = None;
                self.api.ping_peers().await;
                Event::Pinged
            }
            Action::Wait(what, until) => self.wait(what, until).await,
            Action::Finish(_) | Action::Fail(_) | Action::Stopped => Event::Woke,
        }
    }

    async fn look(&mut self) -> Event {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.machine.on(Event::Clock(clock), self.now());
        let wants_prefs = self.machine.wants_prefs();
        let follows = wants_prefs && self.machine.follows_login();
        let prefs = async {
            match wants_prefs {
                true => self.api.prefs().await.ok(),
                false => None,
            }
        };
        let profile = async {
            match follows {
                true => self.api.profile().await.ok(),
                false => None,
            }
        };
        let (status, prefs, profile) = tokio::join!(self.api.status(), prefs, profile);
        if let Err(LocalApiError::Unreachable(why)) = &status {
            log::debug!("tailscaled: {why}");
            self.bus.close();
        }
        // What has been told by now was so before.
        if let Some(notice) = self.bus.prefs_by_now().await {
            self.take_in(Event::Told(notice));
        }
        let unbound = status.as_ref().ok().and_then(first_unbound);
        let read = prefs.clone().filter(|_| follows && status.is_ok());
        let seen = Event::Seen { status, unbound, prefs };
        match read {
            Some(prefs) => {
                self.take_in(seen);
                Event::Prefs { prefs: Ok(prefs), profile, live: false }
            }
            None => seen,
        }
    }

    /// The bus is opened before the preferences are read, so that no change is missed.
    async fn read_prefs(&mut self) -> Event {
        if self.machine.wants_bus() {
            self.bus.open(&self.api, BUS_REST);
        }
        let (first, profile) = tokio::join!(self.bus.first_prefs(), self.api.profile());
        let prefs = match first {
            Some(prefs) => Ok(prefs),
            None => self.prefs_after_what_was_told().await,
        };
        Event::Prefs { prefs, profile: profile.ok(), live: self.bus.is_open() }
    }

    /// What an open bus told before these preferences is taken in before them, and what it tells from
    /// now on has come after them.
    async fn prefs_after_what_was_told(&mut self) -> Result<Prefs, LocalApiError> {
        let prefs = self.api.prefs().await?;
        let Some(last) = self.bus.last_prefs() else {
            return Ok(prefs);
        };
        let mut is_told = *last == prefs;
        let until = Instant::now() + CATCH_UP_LIMIT;
        while !is_told && self.bus.is_open() {
            let rest = until.saturating_duration_since(Instant::now());
            let Ok(notice) = timeout(rest, self.bus.told()).await else { break };
            is_told = notice.prefs.contains(&prefs);
            self.take_in(Event::Told(notice));
        }
        Ok(self.bus.last_prefs().filter(|_| is_told).cloned().unwrap_or(prefs))
    }

    async fn read_key(&mut self) -> Result<KeyFacts, NoKey> {
        // Its lock is in the way of the next look.
        self.key = None;
        let (source, store) = (self.config.key.clone(), self.config.store.clone());
        // Not in one look: one that is stuck at the key must not hold the lock.
        let lock_and_read = move || store.lock().map(|lock| (lock, store.read()));
        let (lock, record) = match in_time(lock_and_read).await {
            Some(locked) => locked.ok_or(NoKey::Busy)?,
            None => (Lock::default(), Record::default()),
        };
        let now = self.now();
        self.machine.on(Event::RecordAgain(record), now);
        let silent = || Err(NoKey::File(Problem::silent().at(&self.config.key.path)));
        let key = in_time(move || AuthKey::read(&source)).await.unwrap_or_else(silent)?;
        let facts = key.facts(&self.machine.salt());
        self.key = Some((key, lock));
        Ok(facts)
    }

    async fn write(&mut self, mut record: Record) -> Event {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let asked = record.clone();
        if record.login.as_ref().is_some_and(|login| login.at == 0) {
            record.last.machine = machine_id().unwrap_or_default();
        }
        for at_of in record
            .login
            .iter_mut()
            .map(|login| &mut login.at)
            .chain(record.refused.iter_mut().map(|refused| &mut refused.at))
            .filter(|at| **at == 0)
        {
            *at_of = at;
        }
        let (store, written) = (self.config.store.clone(), record.clone());
        let result = in_time(move || {
            let unsynced = store.write(&written)?;
            match (written.login, written.refused) {
                // A command takes longer to come to tailscaled than a disk to sync.
                (Some(_), _) => {
                    drop(spawn_blocking(|| unsynced.sync()));
                    Ok(())
                }
                (None, Some(_)) => unsynced.sync(),
                // What is left can be found out again.
                (None, None) => Ok(()),
            }
        });
        let result = result.await.unwrap_or_else(|| Err(io::Error::other(SILENT)));
        let saved = result.is_ok();
        if let Err(error) = result {
            self.say_trying(
                Level::Warn,
                format!(
                    "the state directory cannot be written, so this run remembers nothing for the next: {error}"
                ),
            );
        }
        Event::Written { asked, written: record, saved }
    }

    async fn log_in(&mut self, flags: &[String]) -> Result<(), NotStarted> {
        let Some((key, _)) = &self.key else {
            return Err(NotStarted::ForNow("the auth key was let go".to_owned()));
        };
        let path = self.config.key.path.display();
        log::info!("logging in with the auth key from {path}");
        self.up = Some(self.config.cli.up(key, flags).await?);
        Ok(())
    }

    async fn renew(&self) -> Result<(), LocalApiError> {
        let Some((key, _)) = &self.key else {
            return Err(LocalApiError::NoAnswer);
        };
        let trusted = self.config.cli.trust_socket().await;
        if let Err(NotStarted::Untrusted(why) | NotStarted::ForNow(why)) = trusted {
            return Err(LocalApiError::Denied(why));
        }
        log::info!(
            "renewing the node key with the auth key from {}",
            self.config.key.path.display()
        );
        self.api.renew(key.start_request()).await
    }

    /// Whether the profile in use is still this one, which may have been given its ID since. An old
    /// tailscaled, which has no answer, has but one.
    async fn is_profile(
        &self,
        profile: Option<String>,
        or_new: bool,
    ) -> Result<bool, LocalApiError> {
        let Some(profile) = profile.filter(|profile| !(or_new && profile.is_empty())) else {
            return Ok(true);
        };
        match self.api.profile().await {
            Ok(now) => Ok(now == profile),
            Err(error) if error.is_silence() => Err(error),
            Err(_) => Ok(true),
        }
    }

    async fn put_back(
        &self,
        prefs: Prefs,
        profile: Option<String>,
    ) -> Result<Option<Vec<String>>, LocalApiError> {
        if !self.is_profile(profile, true).await? {
            return Ok(None);
        }
        let names: Vec<&str> = prefs.keys().map(String::as_str).collect();
        log::info!("putting back settings that the login changed: {}", names.join(", "));
        match self.api.edit_prefs(&prefs).await {
            Err(error) if !error.is_silence() => {}
            done => return done.map(|()| Some(Vec::new())),
        }
        // One that tailscaled doesn't take must not cost the others.
        let mut not_taken = Vec::new();
        for (name, old) in prefs {
            match self.api.edit_prefs(&Prefs::from_iter([(name.clone(), old)])).await {
                Ok(()) => {}
                Err(error) if error.is_silence() => return Err(error),
                Err(error) => not_taken.push(format!("{name} ({error})")),
            }
        }
        Ok(Some(not_taken))
    }

    /// Also tells the preferences afterwards, which show whether it was too late. A profile that has an
    /// ID by now was logged in, or is another.
    async fn take_back(
        &self,
        prefs: &Prefs,
        profile: Option<String>,
    ) -> Result<Option<Prefs>, LocalApiError> {
        if !self.is_profile(profile, false).await? {
            return Ok(None);
        }
        self.api.start(Some(prefs)).await?;
        self.api.prefs().await.map(Some)
    }

    /// Sets the exit node that is asked for by its name, once this run has logged the node in. It may be
    /// a moment before the node knows its peers.
    async fn set_exit_node(&self, connected: &Connected) {
        let flags = &self.config.exit_node;
        if flags.is_empty() || !connected.logged_in {
            return;
        }
        let set = flags.join(" ");
        let mut result = self.config.cli.set(flags, EXIT_NODE_LIMIT).await;
        for _ in 1..EXIT_NODE_TRIES {
            if result.is_ok() {
                break;
            }
            sleep(EXIT_NODE_PAUSE).await;
            result = self.config.cli.set(flags, EXIT_NODE_LIMIT).await;
        }
        match result {
            Ok(()) => log::info!("set {set}"),
            Err(why) => log::warn!(
                "connected, but without the exit node ({why}); correct its name, and run: tailscale set {set}"
            ),
        }
    }

    // ---- waiting

    /// Waits for the bus, the end of the CLI or the time, whichever comes first.
    async fn wait(&mut self, what: Waiting, until: Time) -> Event {
        if let Waiting::Staying(connected, ..) = &what
            && !self.is_staying.get()
        {
            self.set_exit_node(connected).await;
        }
        self.say(what);
        if !self.machine.wants_bus() {
            self.bus.close();
        } else if self.machine.situation() != Some(&Situation::NoDaemon) {
            self.bus.open(&self.api, BUS_REST);
        }
        let timer = until.saturating_sub(self.now());
        let (up, bus) = (&mut self.up, &mut self.bus);
        tokio::select! {
            // What the bus has told is taken in before the end that it led to.
            biased;
            notice = bus.told() => Event::Told(notice),
            () = ended(up) => Event::Ended(match self.up.take() {
                Some(up) => up.said().await,
                None => Ended::Killed,
            }),
            () = sleep(timer) => Event::Woke,
        }
    }

    /// Says what is being waited for, where it's news.
    fn say(&mut self, what: Waiting) {
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

    fn say_restart(&mut self, why: &Why) {
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
            Why::BringUp => (
                Level::Info,
                "tailscale is stopped; bringing it up, without an auth key".to_owned(),
            ),
        };
        self.say_trying(level, what);
    }

    /// Says that a change is being tried: once, however often it is.
    fn say_trying(&mut self, level: Level, what: String) {
        if self.trying != what {
            log::log!(level, "{what}");
            self.trying = what;
        }
    }

    fn say_note(&mut self, note: Note) {
        let text = note.to_string();
        match note {
            Note::Renewed(_) => output::event(Level::Info, &text, RENEWED),
            Note::RenewalFailed { .. } => output::event(Level::Warn, &text, RENEWAL_FAILED),
            Note::NotRenewed { .. } if self.trying != text => {
                output::event(Level::Warn, &text, EXPIRES_SOON);
                self.trying = text;
            }
            Note::NotRenewed { .. } => {}
            _ => self.say_trying(Level::Warn, text),
        }
    }
}

/// The end of the CLI, if it runs.
async fn ended(up: &mut Option<Up>) {
    match up {
        Some(up) => up.ended().await,
        None => pending().await,
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
