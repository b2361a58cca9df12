//! What was seen as metrics, in the text format of Prometheus, for the textfile collector of its node
//! exporter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::parse_rfc3339_weak;

use crate::check::report::Report;

/// What they are called: this and a name of their own.
const PREFIX: &str = "tailscale_autoconnect";

/// All of them. One that is not known is left out.
pub fn text(report: &Report) -> String {
    let (seen, mut text) = (&report.seen, String::new());
    let mut put = |name: &str, help: &str, label: Option<(&str, &str)>, value: Option<u64>| {
        let Some(value) = value else {
            return;
        };
        let label =
            label.map(|(name, value)| format!("{{{name}=\"{value}\"}}")).unwrap_or_default();
        text.push_str(&format!(
            "# HELP {PREFIX}_{name} {help}\n# TYPE {PREFIX}_{name} gauge\n{PREFIX}_{name}{label} {value}\n"
        ));
    };
    let time = |seconds: u64| (seconds > 0).then_some(seconds);
    let (status, record) = (seen.status.as_ref().ok(), &seen.record);
    let expiry = status.and_then(|status| status.node.key_expiry.as_deref());
    let expiry = expiry.and_then(|expiry| parse_rfc3339_weak(expiry).ok());
    let (due, obstacle) = seen.renewal().unwrap_or_default();

    let connected = seen.situation().is_connected();
    put("connected", "Whether the node is on its tailnet.", None, Some(connected.into()));
    let verdict = Some(("verdict", report.finding.kind.name_and_sentence().0));
    put("verdict", "The verdict of the check.", verdict, Some(1));
    put(
        "node_key_expiry_timestamp_seconds",
        "When the node key expires, if it does.",
        None,
        expiry.map(seconds),
    );
    put(
        "renewal_timestamp_seconds",
        "From when on the node key is renewed.",
        None,
        due.map(seconds),
    );
    put(
        "not_renewed",
        "Why the node key would not be renewed now.",
        obstacle.map(|obstacle| ("reason", obstacle.name())),
        obstacle.map(|_| 1),
    );
    put(
        "last_login_timestamp_seconds",
        "When the node was logged in last.",
        None,
        time(record.last.login),
    );
    put(
        "last_renewal_timestamp_seconds",
        "When the node key was renewed last.",
        None,
        time(record.last.renewal),
    );
    put(
        "last_refusal_timestamp_seconds",
        "When an auth key was refused last.",
        None,
        record.refused.as_ref().and_then(|refused| time(refused.at)),
    );
    put(
        "key_refused",
        "Whether the auth key in the file was refused.",
        None,
        Some(u64::from(seen.holds_refused_key())),
    );
    text
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since: Duration| since.as_secs())
}
