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

use crate::check::report::Report;
use crate::check::seen::Seen;
use crate::failure::Mistake;
use crate::file_system::{FileFacts, LIMIT, SILENT, in_time};
use crate::key::{Look, Problem, belongs_to, look};
use crate::output::terminal::may_color;
use crate::prefs::Prefs;
use crate::record::Record;
use crate::run::{Config, first_unbound};
use crate::tailscaled::{LocalApi, LocalApiError, Status};
use crate::up::{Cli, NotStarted, find};

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
    let record = in_time(move || store.read()).await.unwrap_or_default();
    let program = setup.cli.program.clone();
    let (socket_file, distrust, key, (status, prefs, access), version, command) = tokio::join!(
        socket_file(setup.cli.socket.clone()),
        distrust(&setup.cli),
        key_file(config, &record),
        daemon(&setup.cli.socket),
        setup.cli.version(LIMIT),
        in_time(move || find(&program).map(|(path, _)| path)),
    );
    let mut seen = Seen {
        now: SystemTime::now(),
        setup: setup.clone(),
        socket_file,
        distrust,
        unbound: status.as_ref().ok().and_then(first_unbound),
        status,
        prefs,
        access,
        is_copied: record.is_copied(),
        record,
        key,
        key_has_params: !config.parameters.is_empty(),
        version,
        command: command.flatten(),
    };
    let is_server_known = seen.prefs.is_some() || setup.server.is_some();
    if let Ok(key) = &seen.key.key
        && is_server_known
        && let Err(problem) = belongs_to(key.kind, seen.server_of_login())
    {
        seen.key.key = Err(problem);
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
async fn distrust(cli: &Cli) -> Option<Mistake> {
    match cli.trust_socket().await {
        Err(NotStarted::Final(mistake)) => Some(mistake),
        _ => None,
    }
}

async fn key_file(config: &Config, record: &Record) -> Look {
    let Config { setup, parameters, .. } = config.clone();
    let salt = record.salt;
    let look = in_time(move || look(&setup.key_file, &parameters, &salt)).await;
    look.unwrap_or_else(|| Look::without_key(Problem::silent()))
}

/// The status, the preferences, and what tailscaled says to a change.
type Daemon = (Result<Status, LocalApiError>, Option<Prefs>, Result<(), LocalApiError>);

async fn daemon(socket: &Path) -> Daemon {
    let api = match LocalApi::new(socket, LIMIT) {
        Ok(api) => api,
        Err(error) => return (Err(error.clone()), None, Err(error)),
    };
    let (status, prefs, access) = tokio::join!(api.status(), api.prefs(), api.check_access());
    (status, prefs.ok(), access)
}
