//! Login servers, as their URLs name them. Pure functions.

use reqwest::Url;

/// What an option for a login server takes, for messages.
pub const WANTED: &str = "takes an http or https URL, such as https://headscale.example.com";

/// An http or https URL with a host. It is held to what both Go and the browsers take for one.
pub fn http_url(text: &str) -> Option<Url> {
    let (scheme, rest) = text.split_once("://")?;
    let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    // The parser for browsers would look for the host behind more slashes, and drop white space.
    let is_odd = rest.starts_with('/')
        || text.contains(|c: char| c == '\\' || c.is_whitespace() || c.is_control());
    Url::parse(text).ok().filter(|_| is_http && !is_odd)
}

/// Whether a login server is that of Tailscale's own service.
pub fn is_tailscales(login_server: &str) -> bool {
    let url = http_url(login_server);
    let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
    host == "tailscale.com" || host.ends_with(".tailscale.com")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::samples::any_text;

    #[test]
    fn a_login_server_is_an_http_or_https_url_with_a_host() {
        for url in [
            "https://headscale.example.com",
            "http://127.0.0.1:8080",
            "HTTPS://Headscale.Example.com/",
            "https://[fd7a::1]:443/path",
            "https://user:word@host_1",
        ] {
            assert!(http_url(url).is_some(), "{url}");
        }
        for text in [
            "",
            "headscale.example.com",
            "headscale.example.com:8080",
            "https:headscale.example.com",
            "https://",
            "https:///headscale.example.com",
            "https://:443",
            "https://a b",
            "https://a\\b",
            " https://a",
            "https://a\n",
            "https://a:port",
            "ftp://a",
            "://a",
        ] {
            assert!(http_url(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn tailscales_own_servers_are_known_by_their_host() {
        for server in [
            "https://controlplane.tailscale.com",
            "https://login.tailscale.com:443/",
            "https://LOGIN.Tailscale.com",
        ] {
            assert!(is_tailscales(server), "{server}");
        }
        for server in [
            "",
            "https://tailscale.com.example.org",
            "https://eviltailscale.com",
            "https://login.tailscale.com:x@example.org",
            "https://example.org/.tailscale.com",
        ] {
            assert!(!is_tailscales(server), "{server}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_server_or_not(text in any_text(), host in "[a-z.:/@\\[\\]0-9-]{0,20}") {
            is_tailscales(&text);
            let url = http_url(&format!("https://{host}"));
            prop_assert!(url.is_none_or(|url| url.host_str().is_some_and(|host| !host.is_empty())));
        }
    }
}
