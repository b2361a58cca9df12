//! What the generated tests have in common.

use proptest::collection::vec;
use proptest::prelude::*;

/// Any text, with the control characters that proptest leaves out of its own.
pub fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => any::<char>().prop_map(String::from),
        1 => proptest::sample::select(&["\n", "\r\n", "\0", "\u{1b}[", "\u{85}", "\"", "\\", " ", ": "][..])
            .prop_map(str::to_owned),
    ];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}
