//! The proxy that only tailscaled knows, for the exchange of an OAuth client secret, which `tailscale
//! up` asks Tailscale's API for by itself.
//!
//! Only what is about a proxy is taken from tailscaled's file. `EnvironmentFile=` in the unit would
//! take all of it, also what is not ours to take (`PATH`, `LD_PRELOAD`), and would let it win over
//! what systemd and the admin say (`NOTIFY_SOCKET`, `STATE_DIRECTORY`, our own options).

use crate::file_system::read_text;

/// Where the packages of Tailscale let tailscaled have its environment from.
const FILE: &str = "/etc/default/tailscaled";

/// As Go knows them.
const VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"];

/// The variables of a proxy that tailscaled has, if we have none ourselves.
pub fn of_tailscaled() -> Vec<(String, String)> {
    if VARIABLES.iter().any(|name| std::env::var_os(name).is_some()) {
        return Vec::new();
    }
    let found = variables(&read_text(FILE).unwrap_or_default());
    if !found.is_empty() {
        log::debug!("the proxy is that of tailscaled, in {FILE}");
    }
    found
}

/// The variables of a proxy in an environment file of systemd's; of one given twice, the last.
fn variables(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let (name, value) = (name.trim(), shell_words::split(value).unwrap_or_default());
        if let ([value], true) = (&value[..], VARIABLES.contains(&name)) {
            found.retain(|(earlier, _)| earlier != name);
            found.push((name.to_owned(), value.clone()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_proxy_is_taken_from_tailscaleds_file() {
        let text = "# a comment\nPORT=\"41641\"\nFLAGS=\"\"\nPATH=/x\nLD_PRELOAD=/x\n\
                    TAILSCALE_AUTOCONNECT_TAILSCALE=/x\nNOTIFY_SOCKET=/x\n\
                    HTTPS_PROXY=http://old:1\nHTTPS_PROXY=\"http://user:p=w@proxy:3128\"\n\
                    no_proxy='localhost,.example'\n#HTTP_PROXY=http://comment:1\nhttp_proxy=\n\
                    HTTP_PROXY=two words\nNO_PROXY='open\n  https_proxy = http://spaced:1\n";
        let found = variables(text);
        let expected = [
            ("HTTPS_PROXY", "http://user:p=w@proxy:3128"),
            ("no_proxy", "localhost,.example"),
            ("https_proxy", "http://spaced:1"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
