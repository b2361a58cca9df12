//! The parameters of an OAuth client secret, `ephemeral=…&preauthorized=…&baseURL=…`. Pure
//! functions.
//!
//! They are those of tailscale 1.66 to 1.102 (`feature/oauthkey` there), which refuses any other, but
//! not before it is called, and then in words that nobody can tell from a passing failure.

use std::collections::BTreeMap;
use std::fmt;

use reqwest::Url;

use crate::server::http_url;

/// What is wrong with any other, for messages.
pub const NO_OTHERS: &str =
    "it takes ephemeral=true|false, preauthorized=true|false and baseURL=URL, joined by &";

const NAMES: [&str; 3] = ["ephemeral", "preauthorized", "baseURL"];

/// What Go takes for a truth value.
pub const TRUTHS: [&str; 12] =
    ["true", "false", "1", "0", "t", "f", "T", "F", "TRUE", "FALSE", "True", "False"];

/// Parameters that tailscale takes, by their places in [`NAMES`]. Each is kept as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters(BTreeMap<usize, String>);

impl Parameters {
    /// Reads `name=value&name=value`, also with a `?` before it. Of one that is there twice the
    /// first counts, and an empty one is none, as for tailscale.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut given = BTreeMap::new();
        let parts = text.trim_start_matches('?').split('&');
        for part in parts.filter(|part| !part.is_empty()) {
            let (at, value) = meaning(part).ok_or(NO_OTHERS)?;
            let written = part.split_once('=').map_or("", |(_, written)| written);
            let is_right = match NAMES[at] {
                "baseURL" => http_url(&value).is_some(),
                _ => TRUTHS.contains(&value.as_str()),
            };
            match (written, is_right) {
                ("", _) => {}
                (_, false) => return Err(NO_OTHERS),
                (_, true) => {
                    given.entry(at).or_insert_with(|| written.to_owned());
                }
            }
        }
        Ok(Self(given))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether they name an API server.
    pub fn name_api(&self) -> bool {
        self.0.keys().any(|at| NAMES[*at] == "baseURL")
    }

    /// These, and of `others` those that are not among them.
    pub fn or(&self, mut others: Self) -> Self {
        others.0.extend(self.0.clone());
        others
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = self.0.iter().map(|(at, value)| format!("{}={value}", NAMES[*at]));
        f.write_str(&given.collect::<Vec<_>>().join("&"))
    }
}

/// Which one `name=value` gives, and the value that is meant.
fn meaning(part: &str) -> Option<(usize, String)> {
    // What ends the parameters for one parser and not for another.
    if part.contains([';', '#', '?']) || !part.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let url = Url::parse(&format!("oauth:?{part}")).ok()?;
    let (name, value) = url.query_pairs().next()?;
    let at = NAMES.iter().position(|known| *known == name)?;
    Some((at, value.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, &'static str> {
        Parameters::parse(text).map(|all| all.to_string())
    }

    #[test]
    fn what_tailscale_takes_is_taken_as_it_is_written() {
        for text in [
            "",
            "ephemeral=false",
            "ephemeral=1&preauthorized=T",
            "ephemeral=false&preauthorized=true&baseURL=http://127.0.0.1:8080",
            "baseURL=https%3A%2F%2Fapi.example.com",
        ] {
            assert_eq!(read(text).as_deref(), Ok(text));
        }
        for (text, same) in [
            ("?ephemeral=true", "ephemeral=true"),
            ("&preauthorized=true&&ephemeral=true&", "ephemeral=true&preauthorized=true"),
            ("ephemeral=true&ephemeral=false", "ephemeral=true"),
            ("ephemeral=&preauthorized=true", "preauthorized=true"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(same), "{text}");
        }
    }

    #[test]
    fn what_it_does_not_take_is_refused() {
        for text in [
            "ephemeral=no",
            "preauthorized=yes",
            "Ephemeral=true",
            "tags=tag:a",
            "reusable=true",
            "true",
            "=true",
            "baseURL=api.example.com",
            "baseURL=ftp://api.example.com",
            "ephemeral=true;preauthorized=true",
            "ephemeral=true#",
            "ephemeral=true preauthorized=true",
            "ephemeral=true\n",
            "ephemeral=true?",
            "ephemeral=%",
        ] {
            assert_eq!(read(text), Err(NO_OTHERS), "{text}");
        }
    }

    #[test]
    fn one_list_wins_over_another_parameter_by_parameter() {
        let list = |text| Parameters::parse(text).unwrap();
        let both = list("ephemeral=false").or(list("ephemeral=true&preauthorized=true"));
        assert_eq!(both, list("ephemeral=false&preauthorized=true"));
        let both = list("").or(list("baseURL=https://a"));
        assert!(both.name_api() && !both.is_empty());
        assert!(list("").is_empty() && !list("ephemeral=true").name_api());
    }
}
