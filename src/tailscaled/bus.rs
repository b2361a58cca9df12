//! tailscaled's IPN bus: it says that something has changed, and it is the history of the
//! preferences, since it tells each change of them by itself and in order
//! (ipn/ipnlocal/local.go `WatchNotifications`, seen on 1.66, 1.98 and 1.102).

use std::future::pending;
use std::pin::Pin;
use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

use crate::prefs::Prefs;
use crate::tailscaled::{BASE, LocalApi, LocalApiError, MAX_BODY, REQUEST_LIMIT, classify, swells};

/// The initial state (2), the initial preferences (4), no private keys (16), the initial health
/// (128). Changes of these are always sent. Bits 8 and 256 are refused by 1.104.
const MASK: u32 = 2 | 4 | 16 | 128;

/// How many notices without a change are followed at once, and how long each one waits after that:
/// a bus that never falls silent must not keep us busy.
const MOST_IN_VAIN: u32 = 30;
const REST: Duration = Duration::from_millis(100);

/// For how long a bus that was refused or has ended is not asked for again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// How long the bus is waited for before it's done without, and how long its first words.
const OPENING_LIMIT: Duration = Duration::from_secs(2);
const FIRST_LIMIT: Duration = Duration::from_millis(100);

/// The state Running, in the numbers of ipn/backend.go.
const RUNNING: i64 = 6;

/// What the bus has told at once.
#[derive(Debug, Default, PartialEq)]
pub struct Notice {
    /// Each state that the preferences have been in, in order.
    pub prefs: Vec<Prefs>,
    /// The first of them is how they were when the bus was opened; what was before is not known.
    pub after_a_gap: bool,
    /// The backend has come to Running.
    pub running: bool,
}

/// The answer to the request for a bus, which a tailscaled in trouble may keep to itself.
type Opening = Pin<Box<dyn Future<Output = Result<Response, LocalApiError>>>>;

/// The bus, open or not. At most one is open or being opened.
#[derive(Default)]
pub struct Bus {
    opening: Option<Opening>,
    open: Option<Open>,
    /// It's not asked for again until then.
    reopen_at: Option<Instant>,
    /// The preferences that it has told last.
    last_prefs: Option<Prefs>,
    in_vain: u32,
    /// A bus that is never silent is not listened to before then.
    rests_until: Option<Instant>,
}

/// A bus that is open, or whose end is still to be told.
#[derive(Default)]
struct Open {
    /// None after its end.
    response: Option<Response>,
    /// The start of a line that has not come to its end.
    line: Vec<u8>,
    has_told: bool,
    /// What is to be told next, as far as it has come.
    notice: Option<Notice>,
}

/// A line of the bus, an ipn.Notify. The rest of it is for the status to say.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Notify<'a> {
    state: Option<i64>,
    #[serde(borrow)]
    prefs: Option<&'a RawValue>,
}

impl Bus {
    /// Sees to it that there is a bus, if there can be one: [`Bus::told`] opens it.
    pub fn open(&mut self, api: &LocalApi) {
        let is_there = self.open.is_some() || self.opening.is_some();
        if is_there || self.reopen_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.reopen_at = Some(Instant::now() + REOPEN_AFTER);
        self.opening = Some(Box::pin(api.watch()));
    }

    /// Forgets the bus of a tailscaled that is gone; the next one's may be opened at once.
    pub fn close(&mut self) {
        *self = Self::default();
    }

    /// The preferences with which a bus begins that nothing was heard of yet: what it tells after them
    /// has come after them. None, if there is no such bus, or if it does not begin so.
    pub async fn first_prefs(&mut self) -> Option<Prefs> {
        let _ = timeout(OPENING_LIMIT, self.opened()).await;
        let open = self.open.as_mut().filter(|open| !open.has_told)?;
        let _ = timeout(FIRST_LIMIT, open.read_prefs()).await;
        let notice = open.notice.as_mut().filter(|notice| !notice.prefs.is_empty())?;
        let first = notice.prefs.remove(0);
        if *notice == Notice::default() {
            open.notice = None;
        }
        open.has_told = true;
        self.last_prefs = Some(first.clone());
        Some(first)
    }

    /// The preferences that it has told by now, if any. That it rang is still to be told.
    pub async fn prefs_by_now(&mut self) -> Option<Notice> {
        let open = self.open.as_mut()?;
        open.take_what_is_there().await;
        let prefs = std::mem::take(&mut open.notice.as_mut()?.prefs);
        (!prefs.is_empty()).then(|| self.noticed(Notice { prefs, ..Notice::default() }))
    }

    /// The preferences that it has told last.
    pub fn last_prefs(&self) -> Option<&Prefs> {
        self.last_prefs.as_ref()
    }

    /// Whether it tells each change of the preferences.
    pub fn is_open(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.response.is_some())
    }

    /// Waits until the bus that was asked for is there, or is refused. Nothing is lost if this is
    /// dropped.
    pub async fn opened(&mut self) {
        if let Some(opening) = &mut self.opening {
            let opened = opening.await;
            self.opening = None;
            match opened {
                Ok(response) => {
                    self.last_prefs = None;
                    self.open = Some(Open { response: Some(response), ..Open::default() });
                }
                Err(error) => log::debug!("there is no bus, the status is polled: {error}"),
            }
        }
    }

    /// Waits until something arrives, or until a bus that has told something ends: tailscaled may be
    /// restarting then. Nothing is lost if this is dropped.
    pub async fn told(&mut self) -> Notice {
        self.opened().await;
        let Some(open) = &mut self.open else {
            return pending().await;
        };
        if let Some(until) = self.rests_until {
            sleep(until.saturating_duration_since(Instant::now())).await;
        }
        if open.notice.is_none() {
            open.read().await;
        }
        // What has arrived together is told together.
        open.take_what_is_there().await;
        let is_news = open.has_told || open.notice.is_some();
        let notice = open.notice.take().unwrap_or_default();
        open.has_told = true;
        if open.response.is_none() {
            self.open = None;
            self.reopen_at = Some(Instant::now() + REOPEN_AFTER);
        }
        if !is_news {
            return pending().await;
        }
        self.in_vain += 1;
        self.rests_until = (self.in_vain >= MOST_IN_VAIN).then(|| Instant::now() + REST);
        self.noticed(notice)
    }

    fn noticed(&mut self, mut notice: Notice) -> Notice {
        notice.after_a_gap = self.last_prefs.is_none();
        if let Some(last) = notice.prefs.last() {
            self.last_prefs = Some(last.clone());
        }
        notice
    }

    /// The notices were not in vain: something has changed.
    pub fn something_changed(&mut self) {
        self.in_vain = 0;
        self.rests_until = None;
    }
}

impl Open {
    /// Bounded, for a bus that never falls silent.
    async fn take_what_is_there(&mut self) {
        for _ in 0..64 {
            if self.response.is_none() || timeout(Duration::ZERO, self.read()).await.is_err() {
                break;
            }
        }
    }

    /// Takes in what comes next, if anything can. Nothing is lost if this is dropped.
    async fn read(&mut self) {
        let Some(response) = &mut self.response else {
            return;
        };
        let Ok(Some(chunk)) = response.chunk().await else {
            self.response = None;
            return;
        };
        let notice = self.notice.get_or_insert_default();
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + part.len() > MAX_BODY {
                // What is left of a line that is too long cannot be read, and is passed over.
                self.line = Vec::new();
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                read(&self.line, notice);
                self.line = Vec::new();
            }
        }
    }

    /// Reads until there are preferences.
    async fn read_prefs(&mut self) {
        let has_prefs = |notice: &Notice| !notice.prefs.is_empty();
        while self.response.is_some() && !self.notice.as_ref().is_some_and(has_prefs) {
            self.read().await;
        }
    }
}

fn read(line: &[u8], notice: &mut Notice) {
    let Ok(told) = serde_json::from_slice::<Notify>(line) else {
        return;
    };
    notice.running |= told.state == Some(RUNNING);
    let prefs = told.prefs.map(RawValue::get).filter(|prefs| !swells(prefs.as_bytes()));
    notice.prefs.extend(prefs.and_then(|prefs| serde_json::from_str(prefs).ok()));
}

impl LocalApi {
    /// Opens the bus.
    fn watch(&self) -> impl Future<Output = Result<Response, LocalApiError>> + use<> {
        let request = self.client.get(format!("{BASE}/watch-ipn-bus?mask={MASK}"));
        // Only its beginning has to come in time.
        let request = request.timeout(Duration::MAX);
        async {
            let response = timeout(REQUEST_LIMIT, request.send())
                .await
                .map_err(|_| LocalApiError::NoAnswer)?
                .map_err(classify)?;
            match response.status() {
                StatusCode::OK => Ok(response),
                status => Err(LocalApiError::BadAnswer(format!("watch-ipn-bus: {status}"))),
            }
        }
    }
}
