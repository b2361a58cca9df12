//! What the project's documents say, for tests that compare it with the program.

mod architecture;
mod completions;
pub mod manual;

/// The cells of the table of `document` that begins with this header.
pub fn table<'a>(document: &'a str, header: &str) -> Vec<Vec<&'a str>> {
    let rows = document
        .lines()
        .skip_while(|line| *line != header)
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(str::trim).collect()
    })
    .collect()
}

#[test]
fn security_md_gives_a_reason_for_every_dependency() {
    let manifest = include_str!("../Cargo.toml").lines();
    let mut dependencies: Vec<_> = manifest
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .collect();
    let rows = table(include_str!("../SECURITY.md"), "| crate | why | features that are off |");
    let mut explained: Vec<_> = rows.iter().flat_map(|row| row[0].split(", ")).collect();
    dependencies.sort();
    explained.sort();
    assert_eq!(explained, dependencies);
}

/// Cargo.toml says both.
#[test]
fn the_documents_name_the_owner_of_the_repository_and_the_maintainer() {
    let repository = env!("CARGO_PKG_REPOSITORY").strip_prefix("https://github.com/").unwrap();
    let flake = format!("\"github:{repository}\"");
    assert!(include_str!("../README.md").contains(&flake), "{flake}");
    let verify = format!("--repo {repository}\n");
    assert!(include_str!("../SECURITY.md").contains(&verify), "{verify}");
    let line = |text: &'static str, start| text.lines().find_map(|line| line.strip_prefix(start));
    let maintainer =
        line(include_str!("../Cargo.toml"), "maintainer = ").unwrap().trim_matches('"');
    let newest = line(include_str!("../units/debian/changelog"), " -- ").unwrap();
    assert!(newest.starts_with(&format!("{maintainer}  ")), "{maintainer}: {newest}");
}
