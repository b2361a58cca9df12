//! The login of this run: starting `tailscale up`, following it to its end, and looking after the
//! node's settings and the auth key meanwhile.

use std::future::pending;
use std::time::{Duration, Instant};

use crate::authkey::AuthKey;
use crate::decide;
use crate::localapi::{LocalApi, LocalApiError, Prefs, Status};
use crate::login::{Cli, Login, NotStarted};
use crate::outcome::Failure;
use crate::settings;
use crate::trust::We;
use crate::verdict::{LoginError, Verdict, last_login_error};

/// The time between two logins that failed in passing doubles from one to the other.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// How often a login is started again because the CLI wants other settings mentioned: an admin
/// may be changing them meanwhile.
const MOST_SETTINGS_ROUNDS: u32 = 3;

/// How long tailscaled is asked to forget a refused key.
const FORGET_PATIENCE: Duration = Duration::from_secs(30);

/// How often the preferences are looked at while nothing in the status shows the login.
const PREFS_EVERY: Duration = Duration::from_millis(50);

/// All logins of this run, one after the other.
pub struct Attempt<'a> {
    cli: &'a Cli,
    progress: Progress,
    /// How many logins were started.
    count: u32,
    /// One of them has come to the node.
    came: bool,
    touched: Option<Touched>,
}

enum Progress {
    NotTried,
    InFlight {
        login: Login,
        started: Instant,
        /// How often the CLI has wanted settings mentioned.
        rounds: u32,
    },
    WithDaemon {
        since: Instant,
    },
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
    /// The preferences need not be looked at before then.
    look_at: Instant,
    sight: Sight,
    /// tailscaled has shown a sign of the login.
    begun: bool,
    /// An earlier login has left settings changed.
    in_debt: bool,
    /// The settings are as they were.
    settled: bool,
}

impl Touched {
    /// Settings that a login has changed may still have to be put back.
    fn owes(&self) -> bool {
        (self.begun || self.in_debt) && !self.settled
    }
}

/// The part of a status that a login changes.
#[derive(PartialEq)]
struct Sight {
    state: String,
    online: bool,
    auth_url: String,
    error: Option<LoginError>,
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

impl<'a> Attempt<'a> {
    /// None yet.
    pub fn new(cli: &'a Cli) -> Self {
        Self {
            cli,
            progress: Progress::NotTried,
            count: 0,
            came: false,
            touched: None,
        }
    }

    /// How many logins were started in this run.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether a login of this run has come to the node.
    pub fn was_made(&self) -> bool {
        self.came
    }

    /// How it stands, for the policy.
    pub fn state(&self) -> decide::Login {
        match &self.progress {
            Progress::NotTried => decide::Login::NotTried,
            Progress::InFlight { started, .. } => decide::Login::InFlight {
                lasted: started.elapsed(),
                begun: self.has_begun(),
            },
            Progress::WithDaemon { since } => decide::Login::WithDaemon {
                lasted: since.elapsed(),
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
        }
    }

    /// Whether the CLI runs.
    pub fn is_running(&self) -> bool {
        matches!(self.progress, Progress::InFlight { .. })
    }

    /// Whether the key has no use before the next login, which is to read it anew.
    pub fn is_paused(&self) -> bool {
        matches!(&self.progress, Progress::Failed { retry_at, .. } if Instant::now() < *retry_at)
    }

    /// Starts a login with `key` on the node that `status` and `prefs` show.
    pub async fn start(&mut self, key: &AuthKey, status: &Status, prefs: Prefs) {
        let (prefs, in_debt) = match self.touched.take() {
            Some(touched) if touched.owes() => (touched.prefs, true),
            _ => (settings::chosen(prefs, status.major_and_minor()), false),
        };
        let kept = match We::now().are_root() {
            true => None,
            false => settings::operator_to_keep(&prefs, &self.cli.asked()),
        };
        self.touched = Some(Touched {
            prefs,
            look_at: Instant::now() + PREFS_EVERY,
            sight: Sight::of(status),
            begun: false,
            in_debt,
            settled: false,
        });
        self.count += 1;
        self.run_cli(key, kept.as_slice(), 0).await;
    }

    async fn run_cli(&mut self, key: &AuthKey, kept: &[String], rounds: u32) {
        self.progress = match self.cli.up(key, kept).await {
            Ok(login) => Progress::InFlight {
                login,
                started: Instant::now(),
                rounds,
            },
            Err(NotStarted::Ever(failure)) => Progress::Impossible(failure),
            Err(NotStarted::ForNow(error)) => {
                // No key was sent.
                self.count = self.count.saturating_sub(1);
                self.forget_what_never_came();
                return self.retry_later(&error, None);
            }
        };
    }

    /// Waits for the end of the CLI, if it runs. Nothing is lost if this is dropped.
    pub async fn cli_ended(&mut self) {
        match &mut self.progress {
            Progress::InFlight { login, .. } => login.ended().await,
            _ => pending().await,
        }
    }

    /// Takes in what the end of the CLI means. `key` is the one that it was started with.
    pub async fn judge(&mut self, api: &LocalApi, key: Option<&AuthKey>) {
        let Some((login, rounds)) = self.hand_over() else {
            return;
        };
        match login.verdict().await {
            Verdict::Done => self.mark_begun(),
            Verdict::KeepSettings(flags) => self.start_keeping(key, flags, rounds + 1).await,
            Verdict::Refused(refusal) => {
                self.mark_begun();
                self.refused(refusal, false);
            }
            Verdict::Impossible(failure) => self.progress = Progress::Impossible(failure),
            Verdict::Transient {
                error,
                lost_the_key,
                retry_after,
            } => {
                log::warn!("the login did not come to an end: {error}");
                self.try_to_look_closely(api).await;
                // tailscaled tries by itself with a key that it has been given.
                if lost_the_key || !self.has_begun() {
                    self.forget_what_never_came();
                    self.retry_later(&error, retry_after);
                }
            }
        }
    }

    /// The CLI wants settings mentioned that it would reset otherwise.
    async fn start_keeping(&mut self, key: Option<&AuthKey>, flags: Vec<String>, rounds: u32) {
        let kept = settings::flags_to_add(flags, &self.cli.asked());
        match key {
            Some(key) if rounds <= MOST_SETTINGS_ROUNDS && !kept.is_empty() => {
                log::info!("keeping the node's settings: {}", kept.join(" "));
                self.run_cli(key, &kept, rounds).await;
            }
            _ => {
                self.progress = Progress::Impossible(Failure::Misconfigured(
                    "`tailscale up` wants settings mentioned that it does not name; \
                     give them as flags after `--`"
                        .to_owned(),
                ));
            }
        }
    }

    /// Whether [`Attempt::follow`] has a use for the preferences now.
    pub fn wants_prefs(&self) -> bool {
        let may_be_lost = matches!(self.progress, Progress::WithDaemon { .. });
        self.touched.as_ref().is_some_and(|touched| {
            (may_be_lost || !touched.settled) && Instant::now() >= touched.look_at
        })
    }

    /// Looks whether the login has come to the node, and then puts back the settings that it has
    /// changed; and whether tailscaled still has the key. `prefs` are about as old as `status`;
    /// they are handed back if they still hold.
    pub async fn follow(
        &mut self,
        api: &LocalApi,
        status: &Status,
        prefs: Option<Prefs>,
    ) -> Option<Prefs> {
        let Some(touched) = &mut self.touched else {
            return prefs;
        };
        let had_begun = touched.begun;
        touched.begun |= Sight::of(status) != touched.sight;
        self.came |= touched.begun;
        // Those at hand may have been read a little before the status, and before the login.
        let prefs = if touched.begun && !had_begun {
            api.prefs().await.ok()?
        } else {
            prefs?
        };
        touched.look_at = Instant::now() + PREFS_EVERY;
        touched.begun |= settings::login_reached(&touched.prefs, &prefs);
        self.came |= touched.begun;
        let is_due = touched.begun || touched.in_debt;
        let changed = is_due && self.settle(api, &prefs).await;
        // A restart that nobody saw: a new node is logged out again then. (Others ask for a
        // person, which shows in the status.)
        if status.backend_state == "NeedsLogin" && settings::is_logged_out(&prefs) {
            self.daemon_is_gone();
        }
        (!changed).then_some(prefs)
    }

    /// Follows it now, whether or not the preferences are due.
    async fn look_closely(&mut self, api: &LocalApi) -> Result<(), LocalApiError> {
        let status = api.status().await?;
        let prefs = api.prefs().await?;
        self.follow(api, &status, Some(prefs)).await;
        Ok(())
    }

    async fn try_to_look_closely(&mut self, api: &LocalApi) {
        if let Err(error) = self.look_closely(api).await {
            log::debug!("cannot look after the settings: {error}");
        }
    }

    /// The node is connected: ends the CLI, and sees to it that the settings are as they were.
    /// That has to be done again if tailscaled went away meanwhile.
    pub async fn complete(&mut self, api: &LocalApi) -> Result<(), LocalApiError> {
        self.end_cli().await;
        if !self.is_unsettled() {
            return Ok(());
        }
        match self.look_closely(api).await {
            Err(LocalApiError::Denied(why) | LocalApiError::BadAnswer(why)) => {
                log::warn!("connected, but the settings cannot be compared: {why}");
                Ok(())
            }
            other => other,
        }
    }

    fn is_unsettled(&self) -> bool {
        self.touched
            .as_ref()
            .is_some_and(|touched| !touched.settled)
    }

    /// A tailscaled that goes away takes the key with it.
    pub fn daemon_is_gone(&mut self) {
        self.lose_key("tailscaled was restarted");
    }

    /// tailscaled no longer has the key.
    pub fn lose_key(&mut self, why: &str) {
        if matches!(self.progress, Progress::WithDaemon { .. }) {
            self.retry_later(why, None);
        }
    }

    /// Puts back the settings that the login changed and nobody asked for, and says whether there
    /// were any. It's done once, as early as can be: what changes later was changed by an admin.
    async fn settle(&mut self, api: &LocalApi, now: &Prefs) -> bool {
        // As long as it runs, the CLI may yet change them.
        let is_over = !self.is_running();
        let Some(touched) = self.touched.as_mut().filter(|touched| !touched.settled) else {
            return false;
        };
        let lost = settings::lost(&touched.prefs, now, &self.cli.asked());
        if lost.is_empty() {
            // It changes them all at once, those that it is meant to change among them.
            touched.settled = is_over || settings::login_reached(&touched.prefs, now);
            return false;
        }
        match put_back(api, lost).await {
            Ok(()) => touched.settled = true,
            Err(error) => log::debug!("cannot put the settings back for now: {error}"),
        }
        true
    }

    /// Ends a CLI of which nothing comes.
    pub async fn abandon(&mut self, api: &LocalApi) {
        self.end_cli().await;
        self.try_to_look_closely(api).await;
        self.forget_what_never_came();
        log::warn!("nothing comes of `tailscale up`, which was ended");
        self.retry_later("nothing came of `tailscale up`", None);
    }

    /// The key was refused: makes tailscaled forget it, which would go on sending it and would
    /// keep a node with a valid node key off its tailnet.
    pub async fn forget(&mut self, api: &LocalApi, refusal: String) -> Result<(), LocalApiError> {
        self.end_cli().await;
        match api.restart_login().await {
            // It may go on with the key when it wakes up, or has got over what ails it.
            Err(error @ (LocalApiError::NoAnswer | LocalApiError::BadAnswer(_)))
                if self.refused_for() < FORGET_PATIENCE =>
            {
                self.refused(refusal, false);
                return Err(error);
            }
            // It took the key with it.
            Err(LocalApiError::Unreachable(why)) => log::debug!("cannot restart the login: {why}"),
            Err(error) => log::warn!("tailscaled may go on sending the refused key: {error}"),
            Ok(()) => {}
        }
        self.try_to_look_closely(api).await;
        self.take_back_want_running(api).await;
        self.refused(refusal, true);
        Ok(())
    }

    /// `up` has said that the node wants to run. Where it did not before, that would look like a
    /// login under way to the next run.
    async fn take_back_want_running(&self, api: &LocalApi) {
        let wanted = |touched: &Touched| touched.prefs.get("WantRunning") != Some(&false.into());
        if self.touched.as_ref().is_none_or(wanted) {
            return;
        }
        if let Err(error) = api.edit_prefs(&settings::want_running(false)).await {
            log::debug!("cannot take back WantRunning: {error}");
        }
    }

    /// The run ends: nothing of the login may stay behind but its success.
    pub async fn shut_down(&mut self, api: &LocalApi) {
        self.end_cli().await;
        if self.is_unsettled() {
            self.try_to_look_closely(api).await;
        }
    }

    // ---- small steps

    async fn end_cli(&mut self) {
        if let Some((login, _)) = self.hand_over() {
            login.stop().await;
        }
    }

    /// Takes out a CLI that runs, with the number of its rounds; from then on tailscaled has the
    /// key.
    fn hand_over(&mut self) -> Option<(Login, u32)> {
        let since = Instant::now();
        match std::mem::replace(&mut self.progress, Progress::WithDaemon { since }) {
            Progress::InFlight { login, rounds, .. } => Some((login, rounds)),
            other => {
                self.progress = other;
                None
            }
        }
    }

    /// A login that has ended without a sign has changed nothing; what changes from now on is
    /// somebody else's doing.
    fn forget_what_never_came(&mut self) {
        if let Some(touched) = self.touched.take() {
            self.touched = touched.owes().then_some(touched);
        }
    }

    fn has_begun(&self) -> bool {
        self.touched.as_ref().is_some_and(|touched| touched.begun)
    }

    fn mark_begun(&mut self) {
        self.came = true;
        if let Some(touched) = &mut self.touched {
            touched.begun = true;
            touched.look_at = Instant::now();
        }
    }

    /// The refusal that tailscaled showed before the login.
    fn stale_refusal(&self) -> Option<String> {
        match &self.touched.as_ref()?.sight.error {
            Some(LoginError::Refused(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn refused(&mut self, refusal: String, forgotten: bool) {
        let at = match self.progress {
            Progress::Refused { at, .. } if !forgotten => at,
            _ => Instant::now(),
        };
        self.progress = Progress::Refused {
            refusal,
            at,
            forgotten,
        };
    }

    fn refused_for(&self) -> Duration {
        match &self.progress {
            Progress::Refused { at, .. } => at.elapsed(),
            _ => Duration::ZERO,
        }
    }

    fn retry_later(&mut self, error: &str, at_least: Option<Duration>) {
        let doublings = self.count.saturating_sub(1).min(16);
        let longest = (RETRY_FIRST * 2u32.pow(doublings)).min(RETRY_LONGEST);
        // Half of it by chance, so that many machines don't come back at once.
        let delay = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.progress = Progress::Failed {
            error: error.to_owned(),
            retry_at: Instant::now() + delay.max(at_least.unwrap_or_default()),
        };
    }
}

/// An error is one of a tailscaled that is away or stands still: it has to be done again.
async fn put_back(api: &LocalApi, lost: Prefs) -> Result<(), LocalApiError> {
    let names: Vec<&str> = lost.keys().map(String::as_str).collect();
    log::info!(
        "putting back settings that the login changed: {}",
        names.join(", ")
    );
    match api.edit_prefs(&settings::masked(&lost)).await {
        Err(LocalApiError::BadAnswer(_) | LocalApiError::Denied(_)) => {}
        done => return done,
    }
    // One that tailscaled doesn't take must not cost the others.
    for (name, old) in lost {
        let one = Prefs::from_iter([(name.clone(), old)]);
        match api.edit_prefs(&settings::masked(&one)).await {
            Err(error @ (LocalApiError::BadAnswer(_) | LocalApiError::Denied(_))) => log::warn!(
                "the login changed the setting {name}, which cannot be put back: {error}"
            ),
            done => done?,
        }
    }
    Ok(())
}
