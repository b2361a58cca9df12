//! `--check`: why is this machine not on its tailnet? Looks at everything that a run depends on,
//! says what it sees and what a run would do, and changes nothing.
//!
//! This module does the looking, each look with a limit of its own; what it comes to is for the
//! pure parts to say. The verdict is a walk through the policy of a run (`foresee`).

mod finding;
mod foresee;
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
use crate::check::seen::{Access, CliSeen, Owned, Seen};
use crate::file_system::{LIMIT, SILENT, in_time};
use crate::key::{FileFacts, KeyFileError, KeySource, Look, belongs_to, look};
use crate::output::terminal::may_color;
use crate::prefs::Prefs;
use crate::record::Record;
use crate::run::{Config, first_unbound};
use crate::tailscaled::{LocalApi, LocalApiError, Status};
use crate::up::{NotStarted, find};

/// The most of the list of users that is read.
const MOST_USERS: u64 = 1 << 20;

/// Looks at everything, says it, and returns the exit status.
pub async fn run(config: &Config, json: bool) -> ExitCode {
    let report = Report::new(see(config).await);
    let text = match json {
        true => format!("{}\n", report.to_json()),
        false => report.to_text(may_color(&io::stdout())),
    };
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(report.finding.exit.code)
}

async fn see(config: &Config) -> Seen {
    let setup = &config.setup;
    let store = config.store.clone();
    let record = in_time(move || store.read()).await.unwrap_or_default();
    let (socket_file, distrust, key, daemon, cli) = tokio::join!(
        socket_file(setup.socket.clone()),
        distrust(config),
        key_file(config.key.clone(), &record),
        Daemon::see(&setup.socket),
        command(config),
    );
    let (key, key_owner) = key;
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
        key,
        key_owner,
        key_has_params: !config.key.parameters.is_empty(),
        cli,
    };
    let is_server_known = seen.prefs.is_some() || setup.server.is_some();
    if let Ok(kind) = seen.key.kind
        && is_server_known
        && let Err(problem) = belongs_to(kind, seen.server_of_a_login())
    {
        seen.key.kind = Err(KeyFileError::unusable(&setup.key_file, problem));
    }
    seen
}

async fn socket_file(path: PathBuf) -> Result<Owned, String> {
    let look = move || match fs::metadata(&path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            let facts = FileFacts::from(&metadata);
            Ok(Owned { facts, owner: user_name(facts.owner) })
        }
        Ok(_) => Err("it is no socket".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is not there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let seen = in_time(look).await;
    seen.unwrap_or_else(|| Err(SILENT.to_owned()))
}

/// Why an auth key would not be sent to this socket.
async fn distrust(config: &Config) -> Option<String> {
    match timeout(LIMIT, config.cli.trust_socket()).await {
        Ok(Err(NotStarted::Untrusted(why))) => Some(why),
        _ => None,
    }
}

async fn key_file(source: KeySource, record: &Record) -> (Look, String) {
    let path = source.path.clone();
    let salt = record.salt;
    let look = in_time(move || {
        let look = look(&source, &salt);
        let owner = look.file.map(|file| user_name(file.owner));
        (look, owner.unwrap_or_default())
    });
    look.await.unwrap_or_else(|| {
        let look = Look {
            file: None,
            locked: false,
            exposure: Vec::new(),
            kind: Err(KeyFileError::silent(&path)),
            digest: String::new(),
        };
        (look, String::new())
    })
}

/// What tailscaled says.
struct Daemon {
    status: Result<Status, LocalApiError>,
    prefs: Option<Prefs>,
    access: Access,
}

impl Daemon {
    async fn see(socket: &Path) -> Self {
        let unseen = |error| Self { status: Err(error), prefs: None, access: Access::Unknown };
        let api = match LocalApi::new(socket) {
            Ok(api) => api,
            Err(error) => return unseen(LocalApiError::BadAnswer(error.to_string())),
        };
        let (status, prefs) = tokio::join!(answer(api.status()), answer(api.prefs()));
        if let Err(error) = status {
            return unseen(error);
        }
        let access = match &prefs {
            Ok(prefs) => access(&api, prefs).await,
            Err(_) => Access::Unknown,
        };
        Self { status, prefs: prefs.ok(), access }
    }
}

/// Whether tailscaled would take a change: it is asked about the preferences that it has.
async fn access(api: &LocalApi, prefs: &Prefs) -> Access {
    let mut prefs = prefs.clone();
    // What it keeps there of the login is no setting.
    prefs.remove("Config");
    match answer(api.check_prefs(&prefs)).await {
        Ok(()) => Access::Granted,
        Err(LocalApiError::Denied(why)) => Access::Denied(why),
        Err(LocalApiError::Locked(why)) => Access::Locked(why),
        // An objection to a setting, or a version that cannot be asked.
        Err(_) => Access::Unknown,
    }
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
        program: config.cli.program.clone(),
    }
}

/// The name of a user as /etc/passwd has it, or else the number.
fn user_name(uid: u32) -> String {
    if uid == 0 {
        return "root".to_owned();
    }
    let number = uid.to_string();
    let users = fs::File::open("/etc/passwd")
        .and_then(|file| io::read_to_string(io::Read::take(file, MOST_USERS)));
    let users = users.unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&number)).then_some(name)
    });
    name.map_or(number.clone(), str::to_owned)
}
