//! What a run keeps in the state directory for the next one: nobody else's business, and nothing
//! that a login depends on.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tailnet_harness::{KeyFile, Node, Run, Tailnet};

use crate::joined::dead_key;
use crate::put_back::killed_after_the_replacement;
use crate::settings::set;
use crate::{assert_joined, program};

/// A new node from which a key was refused, and a file with that key.
fn refused() -> (Tailnet, Node, KeyFile, String) {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let key = dead_key(&tailnet);
    let file = KeyFile::new(&key);
    program(&tailnet, &node, &file).run().assert_code(77);
    (tailnet, node, file, key)
}

/// The files that runs have left, of which there is one at least.
fn kept(node: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.kept_by_runs()).expect("there is a state directory");
    let files: Vec<_> = entries
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.is_file())
        .collect();
    assert!(!files.is_empty(), "nothing was kept");
    files
}

/// No part of the key is to be found in what was kept, which nobody else may read.
fn assert_secret(node: &Node, key: &str) {
    let secret = &key[key.len() - 40..];
    for path in kept(node) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        let bytes = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for part in (0..secret.len() - 8).map(|at| &secret[at..at + 8]) {
            assert!(!text.contains(part), "{} shows {part:?}", path.display());
        }
    }
}

#[test]
fn what_is_kept_of_a_refused_key_does_not_show_it() {
    let (_tailnet, node, _file, key) = refused();
    assert_secret(&node, &key);
}

#[test]
fn what_is_kept_of_a_login_does_not_show_the_key() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    set(&node, &["--webclient"]);
    let key = tailnet.single_use_key();
    tailnet.fault("down");
    killed_after_the_replacement(&program(&tailnet, &node, &KeyFile::new(&key)), &node);
    assert_secret(&node, &key);
}

/// A good key in this file joins, although something is wrong with the state directory: that is
/// said.
fn joins_all_the_same(tailnet: &Tailnet, node: &Node, file: &KeyFile, with: impl Fn(Run) -> Run) {
    let key = tailnet.single_use_key();
    file.swap(&key);
    let run = with(program(tailnet, node, file)).run();
    assert_joined(&run, tailnet, node, &key);
    assert!(run.stderr.contains("state"), "{}", run.stderr);
}

#[test]
fn a_record_that_makes_no_sense_is_said_and_ignored() {
    for nonsense in [&b"{"[..], b"[]", b"\x00\xff", &[b'['; 1 << 20]] {
        let (tailnet, node, file, _) = refused();
        for path in kept(&node) {
            fs::write(path, nonsense).unwrap();
        }
        joins_all_the_same(&tailnet, &node, &file, |run| run);
    }
}

/// What a run and a check say of a node whose record was changed so.
fn said_after(change: impl Fn(&mut serde_json::Value)) -> [String; 2] {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let file = KeyFile::new(tailnet.single_use_key());
    program(&tailnet, &node, &file).run().assert_code(0);
    for path in kept(&node).iter().filter(|path| path.extension().is_some_and(|end| end == "json"))
    {
        let mut record = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        change(&mut record);
        fs::write(path, record.to_string()).unwrap();
    }
    let run = program(&tailnet, &node, &file).run();
    run.assert_code(0);
    let check = program(&tailnet, &node, &file).arg("--check").run();
    check.assert_code(0);
    [run.stderr, check.stdout.split_whitespace().collect::<Vec<_>>().join(" ")]
}

#[test]
fn a_state_that_was_copied_from_another_machine_is_said() {
    let copied = "made on another machine";
    for said in said_after(|_| ()) {
        assert!(!said.contains(copied), "{said}");
    }
    let said = said_after(|record| {
        let machine = &mut record["last"]["machine"];
        assert_eq!(machine.as_str().map(str::len), Some(32));
        *machine = "0123456789abcdef0123456789abcdef".into();
    });
    for said in said {
        assert!(said.contains(copied), "{said}");
    }
}

#[test]
fn a_state_directory_that_cannot_be_written_is_said_and_done_without() {
    let (tailnet, node, file) = (Tailnet::start(), Node::start(), KeyFile::absent());
    joins_all_the_same(&tailnet, &node, &file, |run| {
        run.env("STATE_DIRECTORY", "/proc/nonexistent/state")
    });
}

#[test]
fn the_first_of_several_state_directories_is_used() {
    let (tailnet, node) = (Tailnet::start(), Node::start());
    let file = KeyFile::new(dead_key(&tailnet));
    let folders = ["first", "second"].map(|name| node.dir().join(name));
    for folder in &folders {
        fs::create_dir(folder).unwrap();
        fs::set_permissions(folder, Permissions::from_mode(0o700)).unwrap();
    }
    let both = folders.each_ref().map(|folder| folder.display().to_string());
    let run = program(&tailnet, &node, &file).env("STATE_DIRECTORY", both.join(":"));
    run.run().assert_code(77);
    let kept = folders.map(|folder| fs::read_dir(folder).unwrap().count());
    assert!(kept[0] > 0 && kept[1] == 0, "{kept:?}");
}
