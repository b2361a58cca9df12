//! What was seen as metrics, in the text format of Prometheus, for the textfile collector of its node
//! exporter.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::check::report::Report;

/// All of them. One that is not known is left out.
pub fn text(report: &Report) -> String {
    let (seen, last) = (&report.seen, &report.seen.record.last);
    let expiry = seen.status.as_ref().ok().and_then(|status| status.node.expiry());
    let (due, obstacle) = seen.renewal().unwrap_or_default();
    let refusal = seen.record.refused.as_ref().map(|refused| refused.at);
    let is_connected = Some(seen.situation().is_connected().into());
    let is_refused = Some(seen.holds_refused_key().into());
    let verdict = format!("{{verdict={}}}", json!(report.finding.kind));
    let reason = obstacle.map(|why| format!("{{reason={}}}", json!(why)));
    let (is_held_up, reason) = (reason.as_ref().map(|_| 1), reason.unwrap_or_default());
    let metrics = [
        gauge("connected", "", is_connected, "Whether the node is on its tailnet."),
        gauge("verdict", &verdict, Some(1), "The verdict of the check."),
        time("node_key_expiry", expiry.map(seconds), "When the node key expires, if it does."),
        time("renewal", due.map(seconds), "From when on the node key is renewed."),
        gauge("not_renewed", &reason, is_held_up, "Why the node key would not be renewed now."),
        time("last_login", Some(last.login), "When the node was logged in last."),
        time("last_renewal", Some(last.renewal), "When the node key was renewed last."),
        time("last_refusal", refusal, "When an auth key was refused last."),
        gauge("key_refused", "", is_refused, "Whether the auth key in the file was refused."),
    ];
    metrics.concat()
}

fn gauge(name: &str, label: &str, value: Option<u64>, help: &str) -> String {
    const PREFIX: &str = "tailscale_autoconnect";
    let Some(value) = value else {
        return String::new();
    };
    format!(
        "# HELP {PREFIX}_{name} {help}\n# TYPE {PREFIX}_{name} gauge\n{PREFIX}_{name}{label} {value}\n"
    )
}

/// A time in seconds since 1970; zero is never.
fn time(name: &str, at: Option<u64>, help: &str) -> String {
    gauge(&format!("{name}_timestamp_seconds"), "", at.filter(|at| *at > 0), help)
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
