//! `--check`: why is this machine not on its tailnet? Looks at everything that a run depends on,
//! says what it sees and what a run would do, and changes nothing.
//!
//! This module does the looking, each look with a limit of its own; what it comes to is for the
//! pure parts to say. The verdict is a walk through the policy of a run (`foresee`).

mod finding;
mod foresee;
mod metrics;
mod report;
mod seen;
#[cfg(test)]
mod tests;
mod words;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use tokio::time::timeout;

use crate::check::report::Report;
use crate::check::seen::{CliSeen, Seen};
use crate::file_system::{FileFacts, LIMIT, SILENT, in_time};
use crate::key::{KeySource, Look, Problem, belongs_to, look};
use crate::output::terminal::may_color;
use crate::prefs::Prefs;
use crate::record::Record;
use crate::run::{Config, first_unbound};
use crate::tailscaled::{LocalApi, LocalApiError, Status};
use crate::up::{NotStarted, find};

/// How it is said.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    Text,
    Json,
    Metrics,
}

/// Looks at everything, says it, and returns the exit status.
pub async fn run(config: &Config, form: Form) -> ExitCode {
    let report = Report::new(see(config).await);
    let text = match form {
        Form::Json => format!("{}\n", report.to_json()),
        Form::Metrics => metrics::text(&report),
        Form::Text => report.to_text(may_color(&io::stdout())),
    };
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(report.finding.exit.code)
}

async fn see(config: &Config) -> Seen {
    let setup = &config.setup;
    let store = config.store.clone();
    let (record, is_copied) = in_time(move || store.read_of()).await.unwrap_or_default();
    let (socket_file, distrust, key, daemon, cli) = tokio::join!(
        socket_file(setup.socket.clone()),
        distrust(config),
        key_file(config.key.clone(), &record),
        Daemon::see(&setup.socket),
        command(config),
    );
    let mut seen = Seen {
        now: SystemTime::now(),
        setup: setup.clone(),
        socket_file,
        distrust,
        unbound: daemon.status.as_ref().ok().and_then(first_unbound),
        status: daemon.status,
        prefs: daemon.prefs,
        access: daemon.access,
        record,
        is_copied,
        key,
        key_has_params: !config.key.parameters.is_empty(),
        cli,
    };
    let is_server_known = seen.prefs.is_some() || setup.server.is_some();
    if let Ok(key) = &seen.key.key
        && is_server_known
        && let Err(problem) = belongs_to(key.kind, seen.server_of_a_login())
    {
        seen.key.key = Err(Problem::from(problem).at(&setup.key_file));
    }
    seen
}

async fn socket_file(path: PathBuf) -> Result<FileFacts, String> {
    let look = move || match fs::metadata(&path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(FileFacts::from(&metadata)),
        Ok(_) => Err("it is no socket".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is not there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    in_time(look).await.unwrap_or_else(|| Err(SILENT.to_owned()))
}

/// Why an auth key would not be sent to this socket.
async fn distrust(config: &Config) -> Option<String> {
    match timeout(LIMIT, config.cli.trust_socket()).await {
        Ok(Err(NotStarted::Untrusted(why))) => Some(why),
        _ => None,
    }
}

async fn key_file(source: KeySource, record: &Record) -> Look {
    let silent = Problem::silent().at(&source.path);
    let salt = record.salt;
    let look = in_time(move || look(&source, &salt)).await;
    look.unwrap_or_else(|| Look::without_key(silent))
}

/// What tailscaled says.
struct Daemon {
    status: Result<Status, LocalApiError>,
    prefs: Option<Prefs>,
    access: Result<(), LocalApiError>,
}

impl Daemon {
    async fn see(socket: &Path) -> Self {
        let unseen =
            |error| Self { status: Err(error), prefs: None, access: Err(LocalApiError::NoAnswer) };
        let api = match LocalApi::new(socket) {
            Ok(api) => api,
            Err(error) => return unseen(LocalApiError::BadAnswer(error.to_string())),
        };
        let (status, prefs) = tokio::join!(answer(api.status()), answer(api.prefs()));
        match status {
            Err(error) => unseen(error),
            status => {
                let access = access(&api, prefs.clone()).await;
                Self { status, prefs: prefs.ok(), access }
            }
        }
    }
}

/// What tailscaled says to a change: it is asked about the preferences that it has.
async fn access(api: &LocalApi, prefs: Result<Prefs, LocalApiError>) -> Result<(), LocalApiError> {
    let mut prefs = prefs?;
    // What it keeps there of the login is no setting.
    prefs.remove("Config");
    answer(api.check_prefs(&prefs)).await
}

async fn answer<T>(
    request: impl Future<Output = Result<T, LocalApiError>>,
) -> Result<T, LocalApiError> {
    timeout(LIMIT, request).await.unwrap_or(Err(LocalApiError::NoAnswer))
}

async fn command(config: &Config) -> CliSeen {
    let program = config.cli.program.clone();
    CliSeen {
        version: config.cli.version(LIMIT).await,
        found: in_time(move || find(&program).map(|(path, _)| path)).await.flatten(),
    }
}
