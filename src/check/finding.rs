//! The verdict of `--check`: one sentence that says what is wrong and the one thing to do next. The
//! sentences are documented in the manual page, and a test compares the two.

use crate::check::foresee::{End, Foresight, Step};
use crate::check::seen::Seen;
use crate::check::words;
use crate::failure::{CONNECTED, Connected, Exit, Failure, Waiting};
use crate::policy::{Situation, locked_out};
use crate::tailscaled::LocalApiError;
use crate::up::{LoginError, Refusal, Refused};

macro_rules! kinds {
    ($($kind:ident $name:literal $sentence:literal;)*) => {
        /// Kinds of verdicts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($kind,)*
        }

        impl Kind {
            /// All of them.
            #[cfg(test)]
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// Its name in `--json`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// Its sentence, with capitals for what is filled in.
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Self::$kind => $sentence,)*
                }
            }
        }
    };
}

kinds! {
    Connected "connected" "WHO; there is nothing to do";
    NoAddress "no-address"
        "WHO, but the address ADDRESS is not on the interface; if that lasts, restart tailscaled";
    LockedOut "locked-out"
        "WHO, but tailnet lock keeps the node from its peers (REASON); sign it from a trusted node: \
         tailscale lock sign NODE-KEY";
    NoState "no-state"
        "tailscaled cannot open its state (REASON); check its log (journalctl -u tailscaled), its disk, \
         its TPM and its --state";
    NoTailscaled "no-tailscaled"
        "tailscaled is not running (REASON); start it (systemctl start tailscaled), or name its \
         socket with --socket";
    MuteTailscaled "mute-tailscaled"
        "tailscaled does not answer; check its log (journalctl -u tailscaled), and restart it";
    NotUnderstood "not-understood"
        "the answer on the socket is not understood (REASON); check that --socket names the socket \
         of tailscaled";
    Settling "settling"
        "tailscaled is still starting; check again in a minute, and if it still is, check its log \
         (journalctl -u tailscaled)";
    UnknownState "unknown-state"
        "tailscaled is in the unknown state STATE; check what `tailscale status` says";
    Unreachable "unreachable"
        "the control server cannot be reached (REASON); check this machine's network and firewall, \
         and whether the server is up";
    NoNetwork "no-network"
        "this machine has no route to the control server (REASON); check its network: ip address, \
         ip route";
    Dns "dns"
        "the name of the control server cannot be resolved (REASON); check this machine's DNS: \
         /etc/resolv.conf";
    ServerError "server-error"
        "the control server reports an error of its own (REASON); wait, or ask its operator";
    Clock "clock"
        "the control server's certificate is not valid at the time of this machine's clock, CLOCK; \
         set the clock if it is wrong; if it is right, the server needs a new certificate";
    Certificate "certificate"
        "the control server's certificate is not trusted (REASON); check its URL, the proxy, and \
         the root certificates of this machine";
    Offline "offline"
        "the node uses its last network map and has no connection to its control server; check this \
         machine's network, DNS and firewall, and check in the admin console whether the node was \
         deleted";
    Stranded "stranded"
        "an auth key that was sent earlier was refused (REASON) and keeps this node offline; start a \
         run, which restarts the login without a key: systemctl restart tailscale-autoconnect";
    Refused "refused"
        "the control server refused the auth key that was sent last (REASON); put a new key into \
         FILE if it still holds that one, and start a run: systemctl restart \
         tailscale-autoconnect";
    Stopped "stopped"
        "this node was stopped with `tailscale down`; start a run, which brings it up without a key: \
         systemctl restart tailscale-autoconnect";
    NeedsLogin "needs-login"
        "this node needs a login (CAUSE), and no obstacle was found; start a run: \
         systemctl restart tailscale-autoconnect";
    UnderWay "under-way"
        "a login seems to be under way; check again in a minute, and if it still is, start a run: \
         systemctl restart tailscale-autoconnect";
    OtherRun "other-run"
        "another run is using the auth key; check again in a minute, or check what it waits for: \
         systemctl status tailscale-autoconnect";
    MuteCommand "mute-command"
        "this node needs a login (CAUSE), but the tailscale command COMMAND does not answer; \
         repair it, or name another with --tailscale";
    Approval "approval" "this device is not approved yet; an admin has to approve it at PAGE";
    Waits "waits" "a run would be WAITING; check again in a minute";
    // What a run would end with, in its own words.
    Failure "failure" "FAILURE";
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: Kind,
    pub sentence: String,
    /// As of a run.
    pub exit: Exit,
}

impl Kind {
    fn with(self, exit: Exit, fills: &[(&str, &str)]) -> Finding {
        Finding { kind: self, sentence: fill(self.sentence(), fills), exit }
    }
}

/// What it all comes to.
pub fn conclude(seen: &Seen, foresight: &Foresight) -> Finding {
    let situation = seen.situation();
    let exit = exit(seen, &situation, foresight);
    match (&foresight.end, refusal(&situation)) {
        (End::Connected, _) => connected(seen, &situation, exit),
        (End::Fails(failure), _) => Kind::Failure.with(exit, &[("FAILURE", &failure.to_string())]),
        (End::Tries, Some(text)) => {
            let file = seen.setup.key_file.display().to_string();
            Kind::Refused.with(exit, &[("REASON", text), ("FILE", &file)])
        }
        (End::Tries, None) => tries(seen, &situation, foresight, exit),
        (End::Waits(waiting), _) => waits(seen, &situation, waiting, exit),
    }
}

/// The refusal of a key that tailscaled goes on sending on a node that needs one.
fn refusal(situation: &Situation) -> Option<&String> {
    match situation {
        Situation::NeedsLogin { error: Some(LoginError::Refused(Refusal { words, .. })) } => {
            Some(words)
        }
        _ => None,
    }
}

/// How a run would end, if it had a time limit.
fn exit(seen: &Seen, situation: &Situation, foresight: &Foresight) -> Exit {
    let answered = *situation != Situation::NoDaemon;
    match (&foresight.end, situation) {
        (End::Connected, _) => CONNECTED,
        (End::Fails(failure), _) => failure.exit(),
        (End::Waits(waiting), _) => {
            Failure::timed_out(waiting.clone(), answered, &seen.setup.socket).exit()
        }
        // As far as is known.
        (End::Tries, situation) if let Some(words) = refusal(situation) => {
            let refusal = Refusal { what: Refused::Key, words: words.clone() };
            Failure::Refused(refusal).exit()
        }
        (End::Tries, _) => Failure::TimedOut(Waiting::LoggingIn).exit(),
    }
}

fn connected(seen: &Seen, situation: &Situation, exit: Exit) -> Finding {
    let who = match &seen.status {
        Ok(status) => Connected::of(status, false).to_string(),
        Err(_) => "connected".to_owned(),
    };
    match situation {
        Situation::AddressPending(address) => {
            Kind::NoAddress.with(exit, &[("WHO", &who), ("ADDRESS", &address.to_string())])
        }
        _ => match seen.status.as_ref().ok().and_then(locked_out) {
            Some(why) => Kind::LockedOut.with(exit, &[("WHO", &who), ("REASON", &why)]),
            None => Kind::Connected.with(exit, &[("WHO", &who)]),
        },
    }
}

/// A run would do something.
fn tries(seen: &Seen, situation: &Situation, foresight: &Foresight, exit: Exit) -> Finding {
    let waits_first = foresight.steps.contains(&Step::Wait(Waiting::LoggingIn));
    match situation {
        Situation::Stopped => Kind::Stopped.with(exit, &[]),
        Situation::NeedsLogin { error: Some(error) }
        | Situation::AsksForPerson { error: Some(error) }
            if !matches!(error, LoginError::Refused(_)) =>
        {
            control_server(seen, error.words(), exit)
        }
        Situation::NeedsLogin { .. } if waits_first => Kind::UnderWay.with(exit, &[]),
        _ => Kind::NeedsLogin.with(exit, &[("CAUSE", words::cause_of_login(seen))]),
    }
}

/// A run would wait without end.
fn waits(seen: &Seen, situation: &Situation, waiting: &Waiting, exit: Exit) -> Finding {
    match (situation, waiting) {
        (situation, _) if let Some(LoginError::Refused(refusal)) = situation.login_error() => {
            Kind::Stranded.with(exit, &[("REASON", &refusal.words)])
        }
        (Situation::NoDaemon, _) => match &seen.status {
            Err(LocalApiError::Unreachable(why)) => {
                Kind::NoTailscaled.with(exit, &[("REASON", why)])
            }
            _ => Kind::MuteTailscaled.with(exit, &[]),
        },
        (_, Waiting::Answer(why)) => Kind::NotUnderstood.with(exit, &[("REASON", why)]),
        (_, Waiting::NoState(why)) => Kind::NoState.with(exit, &[("REASON", why)]),
        (_, Waiting::Settling) => Kind::Settling.with(exit, &[]),
        (_, Waiting::ControlServer(Some(why))) => control_server(seen, why, exit),
        (_, Waiting::ControlServer(None)) => Kind::Offline.with(exit, &[]),
        (_, Waiting::LoggingIn) => Kind::UnderWay.with(exit, &[]),
        (_, Waiting::Approval) => Kind::Approval.with(exit, &[("PAGE", &seen.approval_page())]),
        (_, Waiting::OtherRun) => Kind::OtherRun.with(exit, &[]),
        (_, Waiting::Unknown(state)) => Kind::UnknownState.with(exit, &[("STATE", state)]),
        (_, Waiting::Retry(_)) => Kind::MuteCommand.with(
            exit,
            &[
                ("CAUSE", words::cause_of_login(seen)),
                ("COMMAND", &seen.cli.program.display().to_string()),
            ],
        ),
        (_, waiting) => Kind::Waits.with(exit, &[("WAITING", &waiting.to_string())]),
    }
}

/// The control server cannot be used, for this reason.
fn control_server(seen: &Seen, why: &str, exit: Exit) -> Finding {
    let clock = words::clock(seen.now);
    let kind = if complains_of_time(why) {
        Kind::Clock
    } else if complains_of_certificate(why) {
        Kind::Certificate
    } else if has_one_of(why, &NO_NAME) && !why.contains("invalid IP") {
        // (That is how 1.66 says that nobody answered at an address.)
        Kind::Dns
    } else if has_one_of(why, &NO_NETWORK) {
        Kind::NoNetwork
    } else if has_one_of(why, &SERVERS_OWN) {
        Kind::ServerError
    } else {
        Kind::Unreachable
    };
    kind.with(exit, &[("REASON", why), ("CLOCK", &clock)])
}

/// Whether TLS says that a certificate is not valid now (crypto/x509 `CertificateInvalidError`).
pub fn complains_of_time(text: &str) -> bool {
    text.contains("expired or is not yet valid")
}

fn complains_of_certificate(text: &str) -> bool {
    text.contains("x509:") || text.contains("certificate")
}

/// Words of Go's resolver and of tailscaled's own.
const NO_NAME: [&str; 5] =
    ["lookup ", "no such host", "failed to resolve", "server misbehaving", "dns fallback"];

const NO_NETWORK: [&str; 4] =
    ["network is down", "network down", "network is unreachable", "no route to host"];

/// The control server answers, but with no answer that helps.
const SERVERS_OWN: [&str; 6] =
    ["http 5", "status 5", ": 5", "rate limit", "too many requests", "internal server error"];

fn has_one_of(text: &str, words: &[&str]) -> bool {
    let lower = text.to_lowercase();
    words.iter().any(|word| lower.contains(word))
}

/// Puts values in the place of the words in capitals, each once. What is put in is not looked at
/// again.
fn fill(sentence: &str, fills: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = sentence;
    loop {
        let places =
            fills.iter().filter_map(|(name, value)| Some((rest.find(name)?, name.len(), value)));
        let Some((at, length, value)) = places.min_by_key(|(at, _, _)| *at) else {
            filled.push_str(rest);
            return filled;
        };
        filled.push_str(&rest[..at]);
        filled.push_str(value);
        rest = &rest[at + length..];
    }
}
