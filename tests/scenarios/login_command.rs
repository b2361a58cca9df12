//! The `tailscale` command: what it is called with, and what becomes of one that is missing,
//! hangs, talks without end or is stopped.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tailnet_harness::{Binaries, FakeCli, Finished, KeyFile, Node, Run, Running, Signal, Tailnet};

use crate::{assert_joined, program};

/// A fresh node, and a key for it in a file.
struct Set {
    tailnet: Tailnet,
    node: Node,
    key: String,
    file: KeyFile,
}

impl Set {
    fn fresh() -> Self {
        let tailnet = Tailnet::start();
        let node = Node::start();
        node.wait_state("NeedsLogin");
        let key = tailnet.single_use_key();
        let file = KeyFile::new(&key);
        Self { tailnet, node, key, file }
    }

    fn program(&self, cli: &FakeCli) -> Run {
        program(&self.tailnet, &self.node, &self.file).tailscale(cli.path())
    }

    /// The program with the real command.
    fn real(&self) -> Run {
        program(&self.tailnet, &self.node, &self.file)
    }

    /// A command that does this first, and from then on is the real one.
    fn at_first(&self, what: &str) -> FakeCli {
        let real = self.node.cli();
        FakeCli::script(&format!(
            "if [ -e \"$0.called\" ]; then exec '{}' \"$@\"; fi\n: >\"$0.called\"\n{what}",
            real.display()
        ))
    }

    fn assert_untouched(&self) {
        let state = self.tailnet.state();
        assert_eq!((state.registers.total, state.key(&self.key).attempts), (0, 0));
        assert_eq!(self.node.backend_state(), "NeedsLogin");
    }

    /// The lock on the key file is free and the key is good: another run joins with it.
    fn assert_a_later_run_joins(&self) {
        let run = self.real().run();
        assert_joined(&run, &self.tailnet, &self.node, &self.key);
        assert!(
            !run.statuses().iter().any(|status| status.contains("another tailscale-autoconnect")),
            "{:?}",
            run.statuses()
        );
    }
}

#[test]
fn a_command_that_is_missing_is_named() {
    let set = Set::fresh();
    let cli = FakeCli::missing();
    let run = set.program(&cli).run();
    run.assert_code(78);
    let sentence = format!("the tailscale command was not found ({})", cli.path().display());
    assert!(run.stderr.contains(&sentence), "{}", run.stderr);
    assert!(run.stderr.contains("name the command with --tailscale"), "{}", run.stderr);
    set.assert_untouched();
}

#[test]
fn a_command_that_cannot_be_run_is_named_with_the_reason() {
    let set = Set::fresh();
    let cli = FakeCli::printing("", "", 0);
    fs::set_permissions(cli.path(), Permissions::from_mode(0o644)).unwrap();
    let run = set.program(&cli).run();
    run.assert_code(78);
    let sentence = format!("the tailscale command {} cannot be run", cli.path().display());
    assert!(run.stderr.contains(&sentence), "{}", run.stderr);
    assert!(run.stderr.contains("Permission denied"), "{}", run.stderr);
    set.assert_untouched();
}

/// What is there is no `tailscale`: that is said soon.
fn is_no_tailscale(command: &Path, words: &str) {
    let set = Set::fresh();
    let run = set.real().tailscale(command).run();
    run.assert_code(78);
    assert!(run.stderr.contains(words), "{}", run.stderr);
    set.assert_untouched();
}

#[test]
fn a_command_that_finds_nothing_to_run_is_named() {
    let cli = FakeCli::printing("", "", 127);
    is_no_tailscale(cli.path(), &cli.path().display().to_string());
}

#[test]
fn the_daemon_in_the_place_of_the_command_is_named() {
    is_no_tailscale(&Binaries::chosen().tailscaled(), "tailscaled");
}

#[test]
fn a_flag_that_the_command_does_not_know_is_named() {
    let set = Set::fresh();
    let run = set.real().up_flags(["--no-such-flag"]).run();
    run.assert_code(78);
    let sentence = "`tailscale up` does not take the flags that it was given";
    assert!(run.stderr.contains(sentence), "{}", run.stderr);
    assert!(run.stderr.contains("-no-such-flag"), "{}", run.stderr);
    assert!(run.stderr.contains("or update tailscale"), "{}", run.stderr);
    set.assert_untouched();
}

#[test]
fn a_value_that_the_command_cannot_use_is_quoted() {
    let set = Set::fresh();
    let run = set.real().up_flags(["--netfilter-mode=nonsense"]).run();
    run.assert_code(78);
    assert!(run.stderr.contains("nonsense"), "{}", run.stderr);
    set.assert_untouched();
}

#[test]
fn the_command_is_called_with_the_key_in_a_file_of_its_own_and_the_flags_as_they_are() {
    let set = Set::fresh();
    let cli = FakeCli::script(&format!("exec '{}' \"$@\"", set.node.cli().display()));
    let flags = ["--hostname=by-flag", "--accept-dns=false", "--shields-up"];
    let run = set.program(&cli).up_flags(flags).run();
    assert_joined(&run, &set.tailnet, &set.node, &set.key);
    assert_eq!(set.node.prefs()["Hostname"], "by-flag");
    assert_eq!(set.node.prefs()["ShieldsUp"], true);

    let calls = cli.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    let (key, rest) = (&calls[0][2], [&calls[0][..2], &calls[0][3..]].concat());
    let descriptor = key.strip_prefix("--auth-key=file:/proc/self/fd/");
    assert!(descriptor.is_some_and(|number| number.parse::<u32>().is_ok()), "{key}");
    let mut expected = vec![
        format!("--socket={}", set.node.socket().display()),
        "up".to_owned(),
        "--reset".to_owned(),
        format!("--login-server={}", set.tailnet.url()),
    ];
    expected.extend(flags.map(str::to_owned));
    assert_eq!(rest, expected);
}

#[test]
fn odd_flags_reach_the_command_untouched() {
    let set = Set::fresh();
    let cli = FakeCli::hanging();
    let flags = [
        "--hostname=it's \"$HOME\" * ; x",
        "--operator",
        "",
        "-ssh",
        "--of-a-version-to-come",
        "tskey",
        "--another=\u{fc}",
        "--",
    ];
    let run = set.program(&cli).up_flags(flags).spawn();
    let calls = cli.wait_calls(1);
    assert_eq!(calls[0][5..], flags);
    drop(run);
    set.assert_untouched();
}

#[test]
fn a_command_that_does_nothing_is_ended_after_thirty_seconds_and_called_again() {
    let set = Set::fresh();
    let cli = set.at_first("exec sleep 3600");
    let run = set.program(&cli).limit(Duration::from_secs(60)).run();
    assert_joined(&run, &set.tailnet, &set.node, &set.key);
    assert!(run.elapsed >= Duration::from_secs(30), "{:?}", run.elapsed);
    let warning = "`tailscale up` had no effect, and was stopped";
    assert!(run.stderr.contains(warning), "{}", run.stderr);
    assert!(
        run.statuses().contains(
            &"the login failed and is tried again in 1 s: nothing came of `tailscale up`"
        ),
        "{:?}",
        run.statuses()
    );
    assert_eq!(cli.calls().len(), 2);
    assert_eq!(set.tailnet.state().registers.with_key, 1);
}

#[test]
fn the_time_limit_ends_a_command_that_does_not_want_to_end() {
    let set = Set::fresh();
    for cli in [FakeCli::hanging(), FakeCli::stubborn()] {
        let run = set.program(&cli).args(["--timeout", "1s"]).run();
        run.assert_code(75);
        assert!(run.elapsed < Duration::from_secs(8), "{:?}", run.elapsed);
        let sentence = "not connected within the time limit: logging in";
        assert!(run.stderr.contains(sentence), "{}", run.stderr);
        assert_eq!(run.left_behind, Vec::<u32>::new());
        assert_eq!(cli.calls().len(), 1);
    }
    set.assert_untouched();
    set.assert_a_later_run_joins();
}

#[test]
fn a_wrapper_is_ended_with_what_it_has_started() {
    let set = Set::fresh();
    let cli = FakeCli::script("sleep 3600\nexit 1");
    let run = set.program(&cli).args(["--timeout", "1s"]).run();
    run.assert_code(75);
    assert_eq!(run.left_behind, Vec::<u32>::new());
}

#[test]
fn a_command_that_talks_without_end_is_listened_to_in_little_memory() {
    let set = Set::fresh();
    for talk in ["exec yes talk", "exec yes talk >&2", "yes talk & exec yes talk >&2"] {
        let cli = FakeCli::script(talk);
        let run = set.program(&cli).args(["-v", "--timeout", "2s"]).spawn();
        cli.wait_calls(1);
        thread::sleep(Duration::from_secs(1));
        let memory = run.peak_rss_kib();
        assert!(memory < 64 * 1024, "{memory} KiB");
        let run = run.wait();
        run.assert_code(75);
        assert!(run.elapsed < Duration::from_secs(10), "{:?}", run.elapsed);
        assert!(run.output().len() < 128 * 1024, "{} bytes", run.output().len());
    }
    set.assert_untouched();
}

#[test]
fn a_command_that_fails_at_length_is_quoted_in_short() {
    let set = Set::fresh();
    let cli = FakeCli::script("head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1");
    let run = set.program(&cli).args(["--timeout", "60s"]).run();
    // Its third complaint is believed.
    run.assert_code(78);
    assert!(run.stderr.contains("the login did not finish: xxx"), "{}", run.stderr.len());
    assert!(run.stderr.len() < 8 * 1024, "{} bytes", run.stderr.len());
    assert!(run.statuses().iter().all(|status| status.len() < 400));
    set.assert_untouched();
}

/// It died by this signal, soon after it was sent, and has told systemd.
fn assert_died(run: Running, signal: Signal, number: i32) -> Finished {
    let sent = Instant::now();
    run.signal(signal);
    let run = run.wait();
    assert_eq!((run.code, run.signal), (None, Some(number)));
    // A second is what it has; the rest is for the machine.
    assert!(sent.elapsed() < Duration::from_millis(2500), "{:?}", sent.elapsed());
    assert!(run.notifications.iter().any(|one| one.get("STOPPING") == Some("1")));
    assert_eq!(run.left_behind, Vec::<u32>::new());
    assert_eq!((run.ready_at(), run.stdout.as_str()), (None, ""));
    run
}

#[test]
fn a_signal_in_the_middle_of_a_login_ends_all_and_frees_the_key() {
    let set = Set::fresh();
    for (signal, number) in [(Signal::TERM, 15), (Signal::INT, 2), (Signal::HUP, 1)] {
        for cli in [FakeCli::hanging(), FakeCli::stubborn()] {
            let run = set.program(&cli).spawn();
            cli.wait_calls(1);
            run.wait_status_text("logging in");
            assert_died(run, signal, number);
        }
    }
    set.assert_untouched();
    set.assert_a_later_run_joins();
}

#[test]
fn a_signal_while_the_control_server_has_the_key_loses_nothing() {
    let set = Set::fresh();
    set.tailnet.policy(json!({ "register_delay_ms": 1000 }));
    let run = set.real().spawn();
    set.tailnet.wait_until(|state| state.registers.with_key == 1, "the key to arrive");
    assert_died(run, Signal::TERM, 15);
    set.assert_a_later_run_joins();
}

#[test]
fn a_signal_while_the_key_file_is_waited_for_ends_the_wait() {
    let set = Set::fresh();
    set.file.remove();
    let run = set.real().spawn();
    run.wait_status_text("(missing)");
    assert_died(run, Signal::TERM, 15);
    set.assert_untouched();
}
