//! The shell around the policy: does one action at a time, and tells what came of it.

mod changes;
mod telling;

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::Level;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::failure::{self, Connected, Failure, Waiting};
use crate::file_system::{SILENT, in_time};
use crate::key::{AuthKey, KeyFacts, NoKey, Parameters, Problem};
use crate::output;
use crate::output::notify::Notify;
use crate::policy::{Action, Event, Machine, Setup, Situation, Time};
use crate::prefs::Prefs;
use crate::record::{Lock, Record, Store, machine_id};
use crate::tailscaled::{Bus, LocalApi, LocalApiError, REQUEST_LIMIT, Status};
use crate::up::{Ended, NotStarted, Up};

/// How long something is waited for before it's worth a line in the journal.
const WORTH_A_LINE: Duration = Duration::from_secs(3);

/// The longest that the end of a run may take.
const END_LIMIT: Duration = Duration::from_secs(3);

/// How long a bus may take to tell what was there to be read.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(2);

/// What a run is to do, and with what.
#[derive(Clone, Debug)]
pub struct Config {
    pub setup: Setup,
    /// Flags for `tailscale set` after a login: an exit node that is asked for by its name.
    pub exit_node: Vec<String>,
    /// For an OAuth client secret in the key file.
    pub parameters: Parameters,
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
    /// What was said last of a renewal that was put off.
    put_off: String,
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
        let api = LocalApi::new(&config.setup.cli.socket, REQUEST_LIMIT)
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
            put_off: String::new(),
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
                let record = in_time(move || store.read()).await.unwrap_or_default();
                if record.is_copied() {
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
            Action::BringUp => {
                let what = "tailscale is stopped; bringing it up, without an auth key".to_owned();
                self.say_trying(Level::Info, what);
                Event::BroughtUp(self.api.bring_up().await)
            }
            Action::PutBack { prefs, profile } => {
                Event::PutBack(self.put_back(prefs, profile.as_ref()).await)
            }
            Action::TakeBack { prefs, profile } => {
                Event::TookBack(self.take_back(&prefs, profile.as_ref()).await)
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
        let (status, prefs, profile) = tokio::join!(
            self.api.status(),
            if_wanted(wants_prefs, self.api.prefs()),
            if_wanted(follows, self.api.profile()),
        );
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
            self.bus.open(&self.api);
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
        let Config { setup, parameters, store, .. } = self.config.clone();
        // Not in one look: one that is stuck at the key must not hold the lock.
        let lock_and_read = move || store.lock().map(|lock| (lock, store.read()));
        let (lock, record) = match in_time(lock_and_read).await {
            Some(locked) => locked.ok_or(NoKey::Busy)?,
            None => (Lock::default(), Record::default()),
        };
        let now = self.now();
        self.machine.on(Event::RecordAgain(record), now);
        let key = in_time(move || AuthKey::read(&setup.key_file, &parameters)).await;
        let key = key.unwrap_or_else(|| Err(NoKey::File(Problem::silent())))?;
        let facts = key.facts(&self.machine.salt());
        self.key = Some((key, lock));
        Ok(facts)
    }

    async fn write(&mut self, mut record: Record) -> Event {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let asked = record.clone();
        if let Some(login) = record.login.as_mut().filter(|login| login.at == 0) {
            login.at = at;
            record.last.machine = machine_id().unwrap_or_default();
        }
        if let Some(refused) = record.refused.as_mut().filter(|refused| refused.at == 0) {
            refused.at = at;
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
        Event::Written { asked, written: Box::new(record), saved }
    }

    async fn log_in(&mut self, flags: &[String]) -> Result<(), NotStarted> {
        let Some((key, _)) = &self.key else {
            return Err(NotStarted::ForNow("the auth key was let go".to_owned()));
        };
        let path = self.config.setup.key_file.display();
        log::info!("logging in with the auth key from {path}");
        self.up = Some(self.config.setup.cli.up(key, flags).await?);
        Ok(())
    }

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
            self.bus.open(&self.api);
        }
        let timer = until.saturating_sub(self.now());
        let (up, bus) = (&mut self.up, &mut self.bus);
        tokio::select! {
            // What the bus has told is taken in before the end that it led to.
            biased;
            notice = bus.told() => Event::Told(notice),
            () = ended(up) => Event::Ended(match self.up.take() {
                Some(up) => up.said(&self.config.setup.cli.program).await,
                None => Ended::Killed,
            }),
            () = sleep(timer) => Event::Woke,
        }
    }
}

async fn if_wanted<T>(
    is_wanted: bool,
    request: impl Future<Output = Result<T, LocalApiError>>,
) -> Option<T> {
    if is_wanted { request.await.ok() } else { None }
}

/// The end of the CLI, if it runs.
async fn ended(up: &mut Option<Up>) {
    match up {
        Some(up) => up.ended().await,
        None => pending().await,
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
