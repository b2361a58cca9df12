//! The key is seen by nobody: not in arguments, environments, output or files.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tailnet_harness::{
    FakeCli, Finished, KeyFile, Node, PATIENCE, Running, Tailnet, cmdline_of, environ_of,
    scan_files_for, scan_processes_for, watch_processes_for,
};

use crate::{assert_joined, program};

/// The part of a key that is secret; what stands before it is its name.
fn secret_of(key: &str) -> &str {
    let secret = key.rsplit('-').next().unwrap_or(key);
    assert!(secret.len() >= 32, "no secret part in the key");
    secret
}

/// The places in what a run said where the secret, or eight letters of it, can be read.
fn seen_in_output(run: &Finished, secret: &str) -> Vec<String> {
    let sent = run.notifications.iter().map(|one| one.text.as_str());
    let pieces: Vec<&str> = (0..=secret.len() - 8).map(|at| &secret[at..at + 8]).collect();
    [run.stdout.as_str(), run.stderr.as_str()]
        .into_iter()
        .chain(sent)
        .flat_map(str::lines)
        .filter(|line| pieces.iter().any(|piece| line.contains(piece)))
        .map(str::to_owned)
        .collect()
}

/// Nothing is left of the secret when the run has ended.
fn assert_unseen(run: &Finished, node: &Node, secret: &str) {
    assert_eq!(seen_in_output(run, secret), Vec::<String>::new());
    assert_eq!(scan_processes_for(secret), Vec::<String>::new());
    for dir in [run.dir(), node.dir()] {
        assert_eq!(scan_files_for(dir, secret), Vec::<std::path::PathBuf>::new());
    }
    assert_eq!(run.left_behind, Vec::<u32>::new());
}

/// Waits until the control server holds a register back, and returns the command that sent it.
fn command_in_flight(tailnet: &Tailnet, run: &Running) -> u32 {
    tailnet.wait_until(|state| state.registers.with_key >= 1, "the key to arrive");
    let children = run.wait_children();
    assert_eq!(children.len(), 1, "{children:?}");
    children[0]
}

#[test]
fn the_key_is_in_no_process_no_output_and_no_file_of_a_join() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    tailnet.policy(json!({ "register_delay_ms": 1000 }));
    let key = tailnet.single_use_key();
    let (file, secret) = (KeyFile::new(&key), secret_of(&key));
    let watch = watch_processes_for(secret);
    let run = program(&tailnet, &node, &file).arg("-vv").spawn();

    let command = command_in_flight(&tailnet, &run);
    assert!(cmdline_of(command).contains(&"up".to_owned()));
    let run = run.wait();
    let watched = watch.stop();
    assert_joined(&run, &tailnet, &node, &key);
    assert_eq!(watched.found, Vec::<String>::new());
    assert!(watched.rounds >= 5, "{} rounds", watched.rounds);
    assert_unseen(&run, &node, secret);
}

#[test]
fn the_key_is_in_no_process_no_output_and_no_file_of_a_refusal() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let key = tailnet.single_use_key();
    tailnet.revoke_key(&key);
    let (file, secret) = (KeyFile::new(&key), secret_of(&key));
    let watch = watch_processes_for(secret);
    let run = program(&tailnet, &node, &file).args(["-vv", "--json"]).run();
    let watched = watch.stop();
    run.assert_code(77);
    assert!(tailnet.state().key(&key).attempts >= 1);
    assert_eq!(watched.found, Vec::<String>::new());
    assert!(watched.rounds >= 5, "{} rounds", watched.rounds);
    assert_unseen(&run, &node, secret);
}

#[test]
fn a_key_that_the_control_server_repeats_is_hidden() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let key = tailnet.single_use_key();
    tailnet.policy(json!({ "refuse_all": format!("invalid key: {key} is not valid") }));
    let file = KeyFile::new(&key);
    let run = program(&tailnet, &node, &file).args(["-vv", "--json"]).run();
    run.assert_code(77);
    let sentence =
        "the control server refused the auth key: invalid key: [key hidden] is not valid";
    assert!(run.stderr.contains(sentence), "{}", run.stderr);
    assert!(run.json()["message"].as_str().is_some_and(|text| text.contains(sentence)));
    assert_eq!(seen_in_output(&run, secret_of(&key)), Vec::<String>::new());
}

/// The control servers of old have keys that look like nothing in particular.
const PLAIN_KEY: &str = "4e1243bd22c66e76c2ba9eddc1f91394e57f9f83a2b1c0d9";

/// A command that repeats its key like this, where `$key` stands, and exits with this code.
fn repeating(text: &str, code: i32) -> FakeCli {
    FakeCli::script(&format!(
        "key=$(cat \"${{3#--auth-key=file:}}\")\n[ -n \"$key\" ] || exit 99\n\
         printf '%s\\n' \"{text}\"\nprintf '%s\\n' \"{text}\" >&2\nexit {code}"
    ))
}

/// A run with a command that repeats the key, on a fresh node, ends like this and hides it.
fn hides_what_the_command_repeats(text: &str, command_code: i32, code: i32) {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let (file, cli) = (KeyFile::new(PLAIN_KEY), repeating(text, command_code));
    let run = program(&tailnet, &node, &file)
        .tailscale(cli.path())
        .args(["-vv", "--json", "--timeout", "4s"])
        .run();
    run.assert_code(code);
    assert!(run.stderr.contains("tailscale up: "), "{}", run.stderr);
    assert_unseen(&run, &node, PLAIN_KEY);
}

#[test]
fn a_key_that_the_command_repeats_is_hidden() {
    hides_what_the_command_repeats("backend error: invalid key: $key", 1, 77);
    hides_what_the_command_repeats("something with $key", 1, 78);
    hides_what_the_command_repeats("flag provided but not defined: $key", 2, 78);
    hides_what_the_command_repeats("Access denied: $key", 1, 77);
}

#[test]
fn a_key_is_hidden_even_where_a_long_text_is_cut_within_it() {
    for before in [147, 171, 179] {
        let text = format!("backend error: invalid key: {}$key", "x".repeat(before));
        hides_what_the_command_repeats(&text, 1, 77);
    }
}

#[test]
fn the_command_gets_neither_the_notify_socket_nor_other_files_than_the_key() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let (file, cli) = (KeyFile::new(tailnet.single_use_key()), FakeCli::hanging());
    let run = program(&tailnet, &node, &file).tailscale(cli.path()).spawn();
    cli.wait_calls(1);
    let command = run.wait_children()[0];
    // Until then the shell has files of its own open.
    wait_for_command(command, "sleep");
    let has_socket = |pid| environ_of(pid).iter().any(|one| one.starts_with("NOTIFY_SOCKET="));
    assert!(has_socket(run.pid()));
    assert!(!has_socket(command), "{:?}", environ_of(command));
    assert!(environ_of(command).iter().any(|one| one.starts_with("PATH=")));

    let inherited = open_files("self");
    let own: Vec<_> = open_files(&command.to_string())
        .into_iter()
        .filter(|file| file != "/dev/null" && !inherited.contains(file))
        .map(|file| file.split([' ', '[']).next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(own, ["/memfd:auth-key", "pipe:", "pipe:"]);
}

/// What the files are that a process has open, sorted.
fn open_files(pid: &str) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let target = |fd: fs::DirEntry| fs::read_link(fd.path()).ok();
    let mut files: Vec<_> =
        open.flatten().filter_map(target).map(|file| file.to_string_lossy().into_owned()).collect();
    files.sort_unstable();
    files
}

/// Waits until a process has become this program.
fn wait_for_command(pid: u32, program: &str) {
    let deadline = Instant::now() + PATIENCE;
    while cmdline_of(pid).first().is_none_or(|name| name != program) {
        assert!(Instant::now() < deadline, "{:?}", cmdline_of(pid));
        thread::sleep(Duration::from_millis(2));
    }
}
