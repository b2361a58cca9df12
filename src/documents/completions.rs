//! The completions of the shells, in `units/completions/`, are what clap makes of the options.

use clap::{Arg, Command, ValueHint};
use clap_complete::{Generator, Shell};
use expect_test::expect_file;

use crate::cli::Options;

const NAME: &str = env!("CARGO_PKG_NAME");

fn completions(shell: Shell) -> String {
    let command = Options::definition();
    // clap_complete would offer hidden arguments too.
    let options = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let mut shown =
        Command::new(NAME).version(env!("CARGO_PKG_VERSION")).args(options.cloned().map(hinted));
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut shown, NAME, &mut out);
    String::from_utf8(out).expect("options are text")
}

/// Files are offered for paths, and nothing for other values.
fn hinted(option: Arg) -> Arg {
    match option.get_value_hint() {
        ValueHint::AnyPath => option.value_hint(ValueHint::FilePath),
        ValueHint::Unknown if option.get_action().takes_values() => {
            option.value_hint(ValueHint::Other)
        }
        _ => option,
    }
}

#[test]
fn the_completions_are_made_of_the_options() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/units/completions/");
        let file = folder.to_owned() + &shell.file_name(NAME);
        expect_file![file].assert_eq(&completions(shell));
    }
}
