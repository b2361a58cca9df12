use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::samples::any_text;

/// What a status says of the last login, as tailscaled has it since 1.70 and before.
fn of_health(text: &str) -> Option<LoginError> {
    let health =
        vec!["other".to_owned(), format!("You are logged out. The last login error was: {text}")];
    let before_1_70 = vec![format!("not logged in, last login error={text}")];
    let error = last_login_error(&health);
    assert_eq!(last_login_error(&before_1_70), error);
    error
}

/// The end of a command of that name.
fn read(code: Option<i32>, stderr: &str) -> Ended {
    super::read(Path::new("tailscale"), code, stderr)
}

fn of_command(text: &str) -> Ended {
    read(Some(1), &format!("backend error: {text}\n"))
}

#[test]
fn words_that_are_known_to_be_about_the_key_refuse_it() {
    for text in [
        "invalid key: API key kAbc not valid",
        "invalid pre auth key",
        "authkey expired",
        "authkey already used",
        "handling register with auth key: authkey already used",
        "auth-key has already been used",
        "register request: http 401: oops",
        "register request: http 403: database, please retry",
        "register request: http 404: 404 page not found",
    ] {
        let refusal = Refusal { what: Refused::Key, words: text.into() };
        let error = LoginError::Refused(refusal);
        assert_eq!(of_health(text), Some(error.clone()), "{text}");
        assert_eq!(of_command(text), Ended::LoginError(error), "{text}");
    }
}

#[test]
fn a_key_that_is_not_known_is_told_from_one_that_is_refused() {
    for text in [
        "invalid key: API key does not exist",
        "invalid key: unable to validate API key",
        "AuthKey not found",
        "auth-key not found: record not found",
    ] {
        let refusal = Refusal { what: Refused::UnknownKey, words: text.into() };
        assert_eq!(of_health(text), Some(LoginError::Refused(refusal)), "{text}");
    }
}

#[test]
fn tags_that_are_refused_are_told_from_a_key_that_is() {
    for text in [
        "requested tags [tag:x] are invalid or not permitted",
        "handling register with auth key: requested tags [tag:x] are invalid or not permitted",
    ] {
        let refusal = Refusal { what: Refused::Tags, words: text.into() };
        assert_eq!(of_health(text), Some(LoginError::Refused(refusal)));
    }
}

#[test]
fn what_is_not_known_to_be_about_the_key_may_pass() {
    for text in [
        "anything else that a control server may say",
        "database is locked (5) (SQLITE_BUSY)",
        "handling register with auth key: database is locked (5) (SQLITE_BUSY)",
        "server error, please retry",
        "invalid key: temporarily unavailable",
        "node limit reached",
        "",
    ] {
        let error = LoginError::Unknown(text.into());
        assert_eq!(of_health(text), Some(error.clone()));
        assert_eq!(of_command(text), Ended::LoginError(error));
    }
}

#[test]
fn transport_errors_pass() {
    for text in [
        "fetch control key: Get \"http://127.0.0.1:1/key?v=138\": dial tcp 127.0.0.1:1: connect: connection refused",
        "register request: Post \"https://x/machine/register\": EOF",
        "register request: http 500: oops",
        "register request: http 408: oops",
        "register request: http 429: invalid key",
        "register request: http 99999999: oops",
        "getNoiseClient: all connection attempts failed (HTTP: x, HTTPS: y)",
        "fetch control key: Get \"https://x\": x509: certificate has expired or is not yet valid",
        "failed to resolve \"x\": no DNS fallback candidates remain for \"x\"",
        "node registration rate limited; will retry after 2s",
        "EOF",
    ] {
        let error = of_health(text);
        assert!(matches!(error, Some(LoginError::Unreachable(_))), "{text}");
    }
    assert_eq!(last_login_error(&["You are logged out.".to_owned()]), None);
}

#[test]
fn what_keeps_a_node_from_the_control_server_is_found_whatever_the_order() {
    let down = "Tailscale cannot connect because the network is down.".to_owned();
    let routes = "Some peers are advertising routes but --accept-routes is false".to_owned();
    for health in [vec![down.clone(), routes.clone()], vec![routes.clone(), down.clone()]] {
        assert_eq!(trouble(&health), Some(LoginError::Unreachable(down.clone())));
    }
    assert_eq!(trouble(&[routes]), None);
}

#[test]
fn a_rate_limit_is_left_to_tailscaled() {
    let words = "node registration rate limited; will retry after 1m30s";
    assert_eq!(of_command(words), Ended::LoginError(LoginError::Unreachable(words.into())));
}

#[test]
fn a_daemon_that_went_away_or_took_nothing_has_no_key() {
    let full = "500 Internal Server Error: initMachineKeyLocked: write /x: no space left on device";
    let gone = "failed to connect to local tailscaled; it doesn't appear to be running";
    for text in ["EOF", "unexpected EOF", full, gone] {
        assert_eq!(read(Some(1), text), Ended::Lost(text.into()));
    }
    let canceled = Ended::Unreachable("context canceled".into());
    assert_eq!(read(Some(1), "context canceled\n"), canceled);
}

#[test]
fn what_cannot_work_is_told_from_what_is_not_known() {
    let config = "500 Internal Server Error: can't reconfigure tailscaled when using a config \
        file; config file is locked";
    let unknown_flag = "flag provided but not defined: -nope\nUSAGE\n  tailscale up\n";
    let bad_value = "invalid boolean value \"x\" for -ssh\nUSAGE";
    assert!(matches!(
        read(Some(2), bad_value),
        Ended::Final(Failure::Misconfigured(Mistake::Flags(_)))
    ));
    assert_eq!(
        read(Some(1), "can't change --login-server without --force-reauth\n"),
        Mistake::OtherServer.into()
    );
    assert_eq!(read(Some(1), config), Mistake::LockedConfig.into());
    let unknown_flag = read(Some(2), unknown_flag);
    assert!(matches!(unknown_flag, Ended::UnknownFlag(name, _) if name == "nope"));
    for settings in [
        "oauth authkeys require --advertise-tags",
        "10.0.0.1/8 has non-address bits set; expected 10.0.0.0/8",
        "0.0.0.0/0 advertised without its IPv6 counterpart, please also advertise ::/0",
        "tag: \"tag:a_b\": tag names can only contain numbers, letters, or dashes",
        "--exit-node-allow-lan-access can only be used with --exit-node",
        "Cannot advertise an exit node and use an exit node at the same time.",
        "too many non-flag arguments: [\"true\"]",
        "500 Internal Server Error: The Tailscale SSH server has been administratively disabled.",
    ] {
        assert_eq!(read(Some(1), settings), Mistake::Settings(settings.into()).into());
    }
    let unknown = Ended::Unknown("nobody knows this".into());
    assert_eq!(read(Some(1), "warning\nnobody knows this\n\n"), unknown);
}

#[test]
fn no_right_to_log_in_is_not_a_matter_of_configuration() {
    let stderr = "Access denied: checkprefs access denied\n\nUse 'sudo tailscale up …'.\n";
    let denied = Ended::Final(Failure::Denied("checkprefs access denied".into()));
    assert_eq!(read(Some(1), stderr), denied);
}

#[test]
fn a_secret_that_the_api_refuses_is_told_from_an_api_that_cannot_be_reached() {
    for (stderr, what) in [
        ("oauth2: \"invalid_client\"", Refused::Key),
        ("oauth2: cannot fetch token: 401 Unauthorized\nResponse: {}", Refused::Key),
        ("Status: 403, Message: \"calling actor does not have enough permissions\"", Refused::Key),
        ("Status: 400, Message: \"requested tags [tag:x] are invalid\"", Refused::Tags),
    ] {
        let read = read(Some(1), stderr);
        let Ended::Final(Failure::Refused(refusal)) = &read else {
            panic!("{read:?}");
        };
        assert_eq!(refusal.what, what);
    }
    let unreachable = "Post \"https://api\": dial tcp: lookup api: no such host";
    assert_eq!(read(Some(1), unreachable), Ended::Unreachable(unreachable.into()));
}

#[test]
fn an_api_that_is_in_trouble_and_a_command_that_crashed_may_pass() {
    for (stderr, words) in [
        (
            "Post \"https://api\": oauth2: cannot fetch token: 503 Service Unavailable\nResponse: <html>\n</html>\n",
            "Post \"https://api\": oauth2: cannot fetch token: 503 Service Unavailable",
        ),
        ("Status: 500, Message: \"internal error\"\n", "Status: 500, Message: \"internal error\""),
        ("Status: 429, Message: \"slow down\"\n", "Status: 429, Message: \"slow down\""),
        (
            "json.Unmarshal \"<html>\": invalid character '<' looking for beginning of value",
            "json.Unmarshal \"<html>\": invalid character '<' looking for beginning of value",
        ),
    ] {
        assert_eq!(read(Some(1), stderr), Ended::Unreachable(words.into()));
    }
    for words in [
        "runtime: failed to create new OS thread (have 2 already; errno=11)",
        "fatal error: runtime: out of memory",
        "panic: runtime error: invalid memory address or nil pointer dereference",
    ] {
        let stderr = format!("{words}\n\ngoroutine 1 [running]:\nmain.main()\n");
        assert_eq!(read(Some(2), &stderr), Ended::Unreachable(words.into()));
    }
}

#[test]
fn an_end_without_words_is_named() {
    assert_eq!(read(None, ""), Ended::Killed);
    assert!(Ended::Killed.to_string().contains("killed"));
    assert_eq!(read(Some(125), "\n"), Ended::Unknown("`tailscale up` ended with 125".into()));
    let mistake = Mistake::NoTailscale { program: "tailscale".into(), code: 127 };
    assert_eq!(read(Some(127), "\n"), mistake.into());
}

proptest! {
    #[test]
    fn any_end_has_a_meaning_in_few_words(
        code: Option<i32>,
        start in select(&[
            "", "backend error: ", "Access denied: ", "flag provided but not defined: ",
            "can't change --login-server without --force-reauth", "must be ", "Status: 403 ",
            "backend error: rate limit, retry after ", "backend error: register request: http ",
            "500 Internal Server Error: ",
        ][..]),
        text in prop_oneof![any_text(), ".{300,400}", "[0-9]{1,25}(s|h|y|months)"],
    ) {
        let ended = read(code, &format!("{start}{text}"));
        prop_assert_eq!(ended == Ended::Done, code == Some(0));
        let said = ended.to_string();
        // A failure says what to do, too.
        let most = if matches!(ended, Ended::Final(_)) { 400 } else { 201 };
        prop_assert!(said.chars().count() <= most && said.lines().count() <= 1, "{said}");
    }

    #[test]
    fn any_health_has_one_trouble_in_few_words(health in vec(any_text(), 0..4)) {
        let health: Vec<String> = health
            .into_iter()
            .chain(["last login error=\n\n".to_owned()])
            .collect();
        let trouble = trouble(&health).expect("an error");
        let said = trouble.words();
        prop_assert!(said.chars().count() <= 201 && said.lines().count() <= 1, "{said}");
    }
}
