//! Answers that a sound daemon doesn't give.

use std::time::Duration;

use serde_json::{Value, json};
use tailnet_harness::{FakeTailscaled, Finished, Request, Response, status_json};

use crate::{STATUS, a_moment, connect, program, stays};

/// Every status is answered with this; the run has half a second.
fn for_a_while(answer: Response) -> (FakeTailscaled, Finished) {
    let fake = FakeTailscaled::start(move |request| match request {
        _ if request.is_status() => answer.clone(),
        _ => Response::status(404, "404 page not found\n"),
    });
    let run = program(&fake).args(a_moment()).run();
    assert_eq!(run.stdout, "");
    (fake, run)
}

fn is_unusable(answer: Response, why: &str) {
    let (_fake, run) = for_a_while(answer);
    run.assert_code(75);
    let waiting = "waiting for a usable answer of tailscaled: ";
    let status = run.statuses().into_iter().find(|one| one.contains(waiting));
    assert!(
        status.is_some_and(|status| status.contains(why)),
        "{why:?} not in {:?}",
        run.statuses()
    );
    let sentence = format!("not connected within the time limit: {waiting}");
    assert!(run.stderr.contains(&sentence), "{}", run.stderr);
}

#[test]
fn broken_json_is_named() {
    let whole = status_json("Running", json!({})).to_string();
    for body in [&whole[..whole.len() / 2], "<html>", "\u{0}\u{1}", "nul"] {
        is_unusable(Response::status(200, body), "status is not what tailscaled sends");
    }
}

#[test]
fn json_of_the_wrong_types_is_named() {
    let wrong: [Value; 5] = [
        json!({ "BackendState": 7 }),
        json!({ "BackendState": "Running", "Self": [] , "TailscaleIPs": "100.64.0.1" }),
        json!({ "BackendState": "Running", "Health": { "a": 1 } }),
        json!([]),
        json!({}),
    ];
    for body in wrong {
        is_unusable(Response::json(body), "status is not what tailscaled sends");
    }
}

#[test]
fn an_empty_body_is_named() {
    is_unusable(Response::status(200, ""), "status is not what tailscaled sends");
}

#[test]
fn an_error_of_the_daemon_is_shown_in_its_words() {
    is_unusable(Response::status(500, "cannot read the state\n"), "cannot read the state");
}

#[test]
fn what_is_not_http_is_waited_out() {
    let (_fake, run) = for_a_while(Response::raw("SSH-2.0-OpenSSH_9.9\r\n"));
    run.assert_code(75);
    let said = run.statuses().join("\n");
    assert!(said.contains("waiting for a usable answer"), "{said}");
}

#[test]
fn an_answer_can_neither_speak_to_systemd_nor_forge_lines_of_the_journal() {
    let forged = "state \u{1b}[31mstore\u{b}\nREADY=1\n<0>tailscale-autoconnect: forged";
    let (_fake, run) = for_a_while(Response::status(500, forged));
    assert_eq!(run.ready_at(), None, "{:?}", run.notifications);
    let said = [&run.stderr].into_iter();
    let said = said.chain(run.notifications.iter().map(|one| &one.text));
    for line in said.flat_map(|text| text.lines()) {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    let ours = |line: &str| line.starts_with("tailscale-autoconnect: ");
    assert!(run.stderr.lines().all(ours), "{}", run.stderr);
    assert!(run.stderr.contains("[31mstore"), "{}", run.stderr);
}

#[test]
fn an_endless_body_is_cut_off() {
    let fake = FakeTailscaled::start(|request| match request {
        _ if request.is_status() => Response::endless(),
        _ => Response::status(404, "404 page not found\n"),
    });
    let run = program(&fake).spawn();
    run.wait_status_text("an answer of more than 1024 KiB");
    let few = fake.count(STATUS);
    fake.wait_count(STATUS, few + 3);
    let memory = run.peak_rss_kib();
    assert!(memory < 64 * 1024, "{memory} KiB");
    connect(&fake);
    run.wait().assert_code(0);
}

#[test]
fn a_status_that_comes_slowly_is_read() {
    let body = status_json("Running", json!({})).to_string();
    let fake = FakeTailscaled::start(move |_| Response::drip(&*body, Duration::from_millis(1)));
    let run = program(&fake).run();
    run.assert_code(0);
    assert_eq!(fake.count(STATUS), 1);
}

#[test]
fn a_status_that_comes_too_slowly_is_no_answer() {
    let (_fake, run) = for_a_while(Response::drip("{}", Duration::from_secs(60)));
    assert_unanswered(&run);
}

#[test]
fn a_daemon_that_never_answers_is_unavailable() {
    let (fake, run) = for_a_while(Response::never());
    assert_unanswered(&run);
    assert_eq!(fake.count(STATUS), 1, "one request at a time");
}

#[test]
fn a_daemon_that_hangs_up_at_once_is_unavailable() {
    let (fake, run) = for_a_while(Response::close());
    assert_unanswered(&run);
    assert!(fake.count(STATUS) >= 2, "it is asked again");
}

#[test]
fn a_request_without_an_answer_is_given_up_and_sent_again() {
    let fake = FakeTailscaled::start(|request| match request {
        _ if request.is_status() && request.nth == 0 => Response::never(),
        _ => stays(status_json("Running", json!({})))(request),
    });
    let run = program(&fake).run();
    run.assert_code(0);
    assert_eq!(run.statuses()[0], "waiting for tailscaled");
    assert_eq!(fake.count(STATUS), 2);
}

fn assert_unanswered(run: &Finished) {
    run.assert_code(69);
    assert!(
        run.stderr.contains("tailscaled did not answer on /")
            && run.stderr.contains("systemctl status tailscaled"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_socket_without_a_daemon_is_unavailable() {
    let fake = FakeTailscaled::with_status(json!({}));
    let run = program(&fake).args(a_moment());
    drop(fake);
    let run = run.run();
    assert_unanswered(&run);
    assert_eq!(run.statuses()[0], "waiting for tailscaled");
}

#[test]
fn being_refused_by_the_daemon_is_final() {
    for code in [401, 403] {
        let fake = FakeTailscaled::start(move |_| Response::status(code, "status access denied\n"));
        let run = program(&fake).run();
        run.assert_code(77);
        assert!(
            run.stderr.contains(
                "tailscaled refused the request (status access denied); \
                 run as root or as the operator user of tailscaled"
            ),
            "{}",
            run.stderr
        );
        assert_eq!(run.ready_at(), None);
    }
}

#[test]
fn a_refusal_while_the_daemon_starts_is_waited_out() {
    let fake = FakeTailscaled::start(|request: &Request| match request.nth {
        0..3 => Response::status(403, "status access denied\n"),
        _ => Response::json(status_json("Running", json!({}))),
    });
    program(&fake).run().assert_code(0);
    assert!(fake.count(STATUS) == 4, "{:?}", fake.requests());
}
