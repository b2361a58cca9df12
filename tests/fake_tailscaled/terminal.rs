//! What a person sees on a terminal: messages, and a live line below them while it waits.

use std::thread;
use std::time::Duration;

use serde_json::json;
use tailnet_harness::{FakeTailscaled, Finished, Run, Running, Screen, Signal, status_json};

use crate::{connect, program, stays};

/// What erases a live line.
const CLEAR: &str = "\r\u{1b}[K";

const APPROVAL: &str = "waiting for an admin to approve this device";
const CONNECTED: &str = "connected as fake.tail0000.ts.net (100.64.0.1, fd7a:115c:a1e0::1)\n";

fn waiting() -> FakeTailscaled {
    FakeTailscaled::with_status(status_json("NeedsMachineAuth", json!({})))
}

/// Waits long enough for a message about it, then connects.
fn wait_then_connect(fake: &FakeTailscaled, run: Run) -> Finished {
    let run = run.spawn();
    run.wait_status_text(APPROVAL);
    run.wait_stderr(|text| text.contains(": waiting"), "a message");
    connect(fake);
    let run = run.wait();
    run.assert_code(0);
    assert_eq!(run.stdout, CONNECTED);
    run
}

fn live_lines(screen: &Screen) -> Vec<&String> {
    let shown = screen.shown().iter();
    shown.filter(|line| !line.starts_with("tailscale-autoconnect: ")).collect()
}

#[test]
fn a_live_line_says_what_is_waited_for_and_leaves_the_messages_alone() {
    let fake = waiting();
    let run = wait_then_connect(&fake, program(&fake).terminal(80));
    let screen = run.screen();
    let lines = live_lines(&screen);
    // It has waited for three seconds; not all of them need have been drawn under load.
    let seconds = (0..60).filter(|second| {
        let ending = format!(" {APPROVAL} … {second} s");
        lines.iter().any(|line| line.ends_with(&ending))
    });
    assert!(seconds.count() >= 2, "{lines:?}");
    assert_eq!(screen.now(), format!("tailscale-autoconnect: {APPROVAL}"));
    assert!(screen.is_left_clean() && !screen.has_wrapped());
}

#[test]
fn what_is_done_at_once_has_no_live_line() {
    let fake = FakeTailscaled::with_status(status_json("Running", json!({})));
    let run = program(&fake).terminal(80).run();
    run.assert_code(0);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), (CONNECTED, ""));
}

#[test]
fn without_a_terminal_that_can_erase_there_are_plain_lines_only() {
    let fake = waiting();
    for term in ["dumb", ""] {
        fake.script(stays(status_json("NeedsMachineAuth", json!({}))));
        let run = program(&fake).terminal(80).env("TERM", term);
        let run = wait_then_connect(&fake, run);
        let plain = format!("tailscale-autoconnect: {APPROVAL}\r\n");
        assert_eq!(run.stderr, plain, "TERM={term}");
    }
    fake.script(stays(status_json("NeedsMachineAuth", json!({}))));
    let run = wait_then_connect(&fake, program(&fake).env("TERM", "xterm-256color"));
    assert_eq!(run.stderr, format!("tailscale-autoconnect: {APPROVAL}\n"));
}

#[test]
fn quiet_has_no_live_line() {
    let fake = waiting();
    let run = program(&fake).terminal(80).arg("-q").spawn();
    run.wait_status_text(APPROVAL);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(run.stderr(), "");
    connect(&fake);
    let run = run.wait();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), (CONNECTED, ""));
}

#[test]
fn errors_are_red_unless_no_color_is_asked_for() {
    let fake = waiting();
    let error = format!("tailscale-autoconnect: not connected within the time limit: {APPROVAL}");
    for (no_color, colored) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let mut run = program(&fake).terminal(200).args(["--timeout", "2s"]);
        if let Some(value) = no_color {
            run = run.env("NO_COLOR", value);
        }
        let run = run.run();
        run.assert_code(75);
        let screen = run.screen();
        assert_eq!(screen.now(), error);
        assert_eq!(screen.colored().len(), usize::from(colored), "{no_color:?}");
        // The live line is no matter of color.
        assert!(!live_lines(&screen).is_empty(), "{no_color:?}");
        assert!(screen.is_left_clean());
    }
}

#[test]
fn a_live_line_is_cut_and_never_wraps() {
    let fake = waiting();
    let trouble = "x-控制-".repeat(30);
    fake.script(stays(status_json("Starting", json!({ "Health": [trouble] }))));
    for columns in [120, 80, 33, 5, 1] {
        let run = program(&fake).terminal(columns).spawn();
        run.wait_stderr(|text| text.matches(CLEAR).count() >= 2, "a live line");
        run.signal(Signal::TERM);
        let run = run.wait();
        // Messages may wrap.
        let live = run.stderr.split(CLEAR).filter(|line| !line.contains('\n'));
        for line in live {
            let screen = Screen::of(columns, format!("{line}\r").as_bytes());
            assert!(!screen.has_wrapped(), "{columns}: {line}");
            let whole = line.is_empty() || columns < 20 || line.ends_with(" s");
            assert!(whole, "{columns}: {line}");
        }
    }
}

/// Waits for the live line, then sends a signal that ends it.
fn stopped_by(signal: Signal, run: Running) -> Finished {
    run.wait_on_screen(&format!("{APPROVAL} …"));
    run.signal(signal);
    run.wait()
}

#[test]
fn the_live_line_is_gone_when_it_is_told_to_stop() {
    let fake = waiting();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let run = stopped_by(signal, program(&fake).terminal(80).spawn());
        assert_eq!(run.signal, Some(signal.as_raw()));
        let screen = run.screen();
        assert_eq!(screen.now(), "", "{signal:?}");
        assert!(screen.is_left_clean(), "{signal:?}");
    }
    // And so it is for whoever types it.
    let run = program(&fake).terminal(80).spawn();
    run.wait_on_screen(&format!("{APPROVAL} …"));
    run.type_in("\x03");
    let run = run.wait();
    assert_eq!(run.signal, Some(Signal::INT.as_raw()));
    assert_eq!(run.screen().now(), "");
}

#[test]
fn a_terminal_that_was_stopped_does_not_stop_the_work() {
    let fake = waiting();
    let run = program(&fake).terminal(80).spawn();
    run.wait_on_screen(&format!("{APPROVAL} …"));
    // Ctrl-S.
    run.type_in("\x13");
    thread::sleep(Duration::from_millis(500));
    connect(&fake);
    let run = run.wait();
    run.assert_code(0);
    assert_eq!(run.stdout, CONNECTED);
}

#[test]
fn a_message_for_a_terminal_that_was_stopped_does_not_stop_the_work() {
    let fake = waiting();
    let run = program(&fake).arg("-v").terminal(80).spawn();
    run.wait_on_screen(&format!("{APPROVAL} …"));
    // Ctrl-S.
    run.type_in("\x13");
    thread::sleep(Duration::from_millis(500));
    fake.script(stays(status_json("Starting", json!({}))));
    fake.ring();
    run.wait_status_text("waiting for tailscaled to settle");
    assert!(!run.stderr().contains("Settling"), "{}", run.stderr());
    // Ctrl-Q.
    run.type_in("\x11");
    run.wait_on_screen("waiting for tailscaled to settle …");
    connect(&fake);
    let run = run.wait();
    run.assert_code(0);
    assert!(run.stderr.contains("Settling"), "{}", run.stderr);

    let fake = waiting();
    let run = program(&fake).arg("-v").terminal(80).spawn();
    run.wait_on_screen(&format!("{APPROVAL} …"));
    run.type_in("\x13");
    thread::sleep(Duration::from_millis(500));
    connect(&fake);
    run.wait().assert_code(0);
}

#[test]
fn a_job_in_the_background_has_no_live_line() {
    let fake = waiting();
    let program = env!("CARGO_BIN_EXE_tailscale-autoconnect");
    // With job control, as in a shell that is used by a person.
    let run = Run::new("/bin/sh")
        .args(["-c", "set -m; \"$@\" & wait $!", "sh", program, "--socket"])
        .arg(fake.socket())
        .terminal(80)
        .spawn();
    run.wait_status_text(APPROVAL);
    thread::sleep(Duration::from_millis(500));
    connect(&fake);
    let run = run.wait();
    run.assert_code(0);
    assert_eq!(run.stdout, CONNECTED);
    assert_eq!(live_lines(&run.screen()), Vec::<&String>::new());
}
