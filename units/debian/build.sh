#!/usr/bin/env bash
# Builds the Debian package, with the manual page and the completions that the program prints of
# itself. What is given goes to `cargo deb`: --install, --target TRIPLE, --output FILE …
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

# Where [package.metadata.deb] in Cargo.toml takes them from. They don't stay there: a later `cargo
# deb` by itself fails, and so names this script, rather than packaging what is out of date.
generated=target/units-debian-build.sh
trap 'rm -rf -- "$generated"' EXIT
mkdir -p -- "$generated"
for what in man bash zsh fish; do
    cargo run --release --locked --quiet -- --generate "$what" >"$generated/$what"
done
cargo deb --locked "$@"
