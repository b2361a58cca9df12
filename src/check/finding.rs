//! The verdict of `--check`: one sentence that says what is wrong and the one thing to do next. The
//! sentences are documented in the manual page, and a test compares the two.

use serde::Serialize;

use crate::check::foresee::{End, Foresight, Step};
use crate::check::seen::Seen;
use crate::check::words;
use crate::failure::{
    self, CONNECTED, Connected, Exit, Failure, NOINPUT, NOPERM, TEMPFAIL, Waiting,
};
use crate::policy::{Situation, locked_out};
use crate::tailscaled::LocalApiError;
use crate::up::LoginError;

macro_rules! kinds {
    ($($kind:ident $sentence:expr;)*) => {
        /// Kinds of verdicts. Their names are those in `--json`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Kind {
            $($kind,)*
        }

        impl Kind {
            #[cfg(test)]
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// Its sentence, with braces around what is filled in.
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Self::$kind => $sentence,)*
                }
            }
        }
    };
}

kinds! {
    Connected "{WHO}; there is nothing to do";
    NoAddress "{WHO}, but the address {ADDRESS} is not on the interface; if that lasts, restart \
        tailscaled";
    LockedOut "{WHO}, but tailnet lock keeps the node from its peers ({REASON}); sign it from a \
        trusted node: tailscale lock sign NODE-KEY";
    Copied failure::COPIED;
    NoState "tailscaled cannot open its state ({REASON}); check its log (journalctl -u \
        tailscaled), its disk, its TPM and its --state";
    NoTailscaled "tailscaled is not running ({REASON}); start it (systemctl start tailscaled), or \
        name its socket with --socket";
    MuteTailscaled "tailscaled does not answer; check its log (journalctl -u tailscaled), and \
        restart it";
    NotUnderstood "the answer on the socket is not understood ({REASON}); check that --socket \
        names the socket of tailscaled";
    Settling "tailscaled is still starting; check again in a minute, and if it still is, check its \
        log (journalctl -u tailscaled)";
    UnknownState "tailscaled is in the unknown state {STATE}; check what `tailscale status` says";
    Unreachable "the control server cannot be reached ({REASON}); check this machine's network and \
        firewall, and whether the server is up";
    NoNetwork "this machine has no route to the control server ({REASON}); check its network: ip \
        address, ip route";
    Dns "the name of the control server cannot be resolved ({REASON}); check this machine's DNS: \
        /etc/resolv.conf";
    ServerError "the control server reports an error of its own ({REASON}); wait, or ask its \
        operator";
    Clock "the control server's certificate is not valid at the time of this machine's clock, \
        {CLOCK}; set the clock if it is wrong; if it is right, the server needs a new certificate";
    Certificate "the control server's certificate is not trusted ({REASON}); check its URL, the \
        proxy, and the root certificates of this machine";
    Offline "the node uses its last network map and has no connection to its control server; check \
        this machine's network, DNS and firewall, and check in the admin console whether the node \
        was deleted";
    Stranded "an auth key that was sent earlier was refused ({REASON}) and keeps this node \
        offline; start a run, which restarts the login without a key: systemctl restart \
        tailscale-autoconnect";
    Refused "the control server refused the auth key that was sent last ({REASON}); put a new key \
        into {FILE} if it still holds that one, and start a run: systemctl restart \
        tailscale-autoconnect";
    Stopped "this node was stopped with `tailscale down`; start a run, which brings it up without \
        a key: systemctl restart tailscale-autoconnect";
    NeedsLogin "this node needs a login ({CAUSE}), and no obstacle was found; start a run: \
        systemctl restart tailscale-autoconnect";
    UnderWay "a login seems to be under way; check again in a minute, and if it still is, start a \
        run: systemctl restart tailscale-autoconnect";
    OtherRun "another run is using the auth key; check again in a minute, or check what it waits \
        for: systemctl status tailscale-autoconnect";
    MuteCommand "this node needs a login ({CAUSE}), but the tailscale command {COMMAND} does not \
        answer; repair it, or name another with --tailscale";
    Approval "this device is not approved yet; an admin has to approve it at {PAGE}";
    Waits "a run would be {WAITING}; check again in a minute";
    // What a run would end with, in its own words.
    Failure "{FAILURE}";
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: Kind,
    pub sentence: String,
    /// How a run would end, if it had a time limit.
    pub exit: Exit,
}

/// A kind of verdict, and what only this one says, for the REASON and its like.
type Verdict = (Kind, String);

/// What it all comes to.
pub fn conclude(seen: &Seen, foresight: &Foresight) -> Finding {
    let situation = seen.situation();
    let (kind, reason) = match &foresight.end {
        End::Connected => connected(seen, &situation),
        End::Fails(failure) => (Kind::Failure, failure.to_string()),
        End::Tries => tries(&situation, foresight),
        End::Waits(waiting) => waits(seen, &situation, waiting),
    };
    let exit = match &foresight.end {
        End::Connected => CONNECTED,
        // A run would end well, but not connected.
        End::Fails(Failure::NoKey(_)) => NOINPUT,
        End::Fails(failure) => failure.exit(),
        // As far as is known.
        End::Tries if kind == Kind::Refused => NOPERM,
        End::Tries => TEMPFAIL,
        End::Waits(waiting) => {
            let answered = situation != Situation::NoDaemon;
            Failure::timed_out(waiting.clone(), answered, &seen.setup.cli.socket).exit()
        }
    };
    let sentence = fill(kind.sentence(), |place| match place {
        "WHO" => {
            let status = seen.status.as_ref().ok();
            status.map(|status| Connected::of(status, false).to_string()).unwrap_or_default()
        }
        "CAUSE" => words::cause_of_login(seen).to_owned(),
        "CLOCK" => words::clock(seen.now),
        "COMMAND" => seen.setup.cli.program.display().to_string(),
        "FILE" => seen.setup.key_file.display().to_string(),
        "PAGE" => seen.approval_page(),
        _ => reason.clone(),
    });
    Finding { kind, sentence, exit }
}

/// Puts values in the place of the words in braces. What is put in is not looked at again.
fn fill(sentence: &str, value: impl Fn(&str) -> String) -> String {
    let parts = sentence.split('{').map(|part| match part.split_once('}') {
        Some((place, rest)) => value(place) + rest,
        None => part.to_owned(),
    });
    parts.collect()
}

fn plain(kind: Kind) -> Verdict {
    (kind, String::new())
}

fn connected(seen: &Seen, situation: &Situation) -> Verdict {
    match (situation, seen.status.as_ref().ok().and_then(locked_out)) {
        (Situation::AddressPending(address), _) => (Kind::NoAddress, address.to_string()),
        (_, Some(why)) => (Kind::LockedOut, why),
        (_, None) if seen.is_copied => plain(Kind::Copied),
        (_, None) => plain(Kind::Connected),
    }
}

/// A run would do something.
fn tries(situation: &Situation, foresight: &Foresight) -> Verdict {
    use LoginError::{Refused, Unknown, Unreachable};
    match situation {
        Situation::Stopped => plain(Kind::Stopped),
        Situation::NeedsLogin { error: Some(Refused(refusal)) } => {
            (Kind::Refused, refusal.words.clone())
        }
        Situation::NeedsLogin { error: Some(Unreachable(words) | Unknown(words)) }
        | Situation::AsksForPerson { error: Some(Unreachable(words) | Unknown(words)) } => {
            control_server(words)
        }
        Situation::NeedsLogin { .. }
            if foresight.steps.contains(&Step::Wait(Waiting::LoggingIn)) =>
        {
            plain(Kind::UnderWay)
        }
        _ => plain(Kind::NeedsLogin),
    }
}

/// A run would wait without end.
fn waits(seen: &Seen, situation: &Situation, waiting: &Waiting) -> Verdict {
    if let Some(LoginError::Refused(refusal)) = situation.login_error() {
        return (Kind::Stranded, refusal.words.clone());
    }
    if *situation == Situation::NoDaemon {
        return match &seen.status {
            Err(LocalApiError::Unreachable(why)) => (Kind::NoTailscaled, why.clone()),
            _ => plain(Kind::MuteTailscaled),
        };
    }
    match waiting {
        Waiting::Answer(why) => (Kind::NotUnderstood, why.clone()),
        Waiting::StoreFailed(why) => (Kind::NoState, why.clone()),
        Waiting::Settling => plain(Kind::Settling),
        Waiting::ControlServer(Some(why)) => control_server(why),
        Waiting::ControlServer(None) => plain(Kind::Offline),
        Waiting::LoggingIn => plain(Kind::UnderWay),
        Waiting::Approval => plain(Kind::Approval),
        Waiting::OtherRun => plain(Kind::OtherRun),
        Waiting::Unknown(state) => (Kind::UnknownState, state.clone()),
        Waiting::Retry(..) => plain(Kind::MuteCommand),
        waiting => (Kind::Waits, waiting.to_string()),
    }
}

/// How TLS says that a certificate is not valid now (crypto/x509 `CertificateInvalidError`).
pub const NOT_VALID_NOW: &str = "expired or is not yet valid";

/// Why the control server cannot be used, by words in small letters. The first that fits counts.
const TROUBLES: [(Kind, &[&str]); 6] = [
    (Kind::Clock, &[NOT_VALID_NOW]),
    (Kind::Certificate, &["x509:", "certificate"]),
    // So 1.66 says that nobody answered at an address.
    (Kind::Unreachable, &["invalid ip"]),
    // Words of Go's resolver and of tailscaled's own.
    (
        Kind::Dns,
        &["lookup ", "no such host", "failed to resolve", "server misbehaving", "dns fallback"],
    ),
    (
        Kind::NoNetwork,
        &["network is down", "network down", "network is unreachable", "no route to host"],
    ),
    // It answers, but with no answer that helps.
    (
        Kind::ServerError,
        &["http 5", "status 5", ": 5", "rate limit", "too many requests", "internal server error"],
    ),
];

/// The control server cannot be used, for this reason.
fn control_server(why: &str) -> Verdict {
    let lower = why.to_lowercase();
    let mut troubles = TROUBLES.iter();
    let known = troubles.find(|(_, words)| words.iter().any(|word| lower.contains(word)));
    (known.map_or(Kind::Unreachable, |(kind, _)| *kind), why.to_owned())
}
