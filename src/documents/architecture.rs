//! What CONTRIBUTING.md says of the modules is what their imports say, and there is no circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::table;

const CONTRIBUTING: &str = include_str!("../../CONTRIBUTING.md");

/// Modules that use no other, and that any other may use. The picture and the table leave them out.
const LEAVES: [&str; 3] = ["file_system", "redact", "server"];

/// For tests alone.
const OF_TESTS: [&str; 2] = ["documents", "samples"];

/// Which module uses which.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files of the program, without those that are tests.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of src") {
        let path = entry.expect("an entry of it").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
        match stem {
            _ if stem == "tests" || stem.ends_with("_tests") => {}
            _ if path.is_dir() => found.extend(files(&path)),
            _ => found.push(path),
        }
    }
    found
}

/// The top-level module that a file belongs to.
fn module_of(file: &Path) -> String {
    let path = file.strip_prefix(source()).expect("a file of src").with_extension("");
    let first = path.components().next().expect("a name");
    first.as_os_str().to_str().expect("a name").to_owned()
}

/// The code of a file, without its tests and its comments.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a file of src");
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut lines = code.lines();
    let mut kept = String::new();
    while let Some(line) = lines.next() {
        match line.trim() {
            "#[cfg(test)]" => {
                lines.next();
            }
            comment if comment.starts_with("//") => {}
            _ => kept.push_str(&(line.to_owned() + "\n")),
        }
    }
    kept
}

/// The names that stand right behind `mark` in the code.
fn names_after<'a>(code: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    code.split(mark).skip(1).map(move |rest| {
        let end = rest.find(|sign: char| !is_of_a_name(sign)).unwrap_or(rest.len());
        assert!(end > 0, "this test does not know: {mark}{}", &rest[..rest.len().min(40)]);
        &rest[..end]
    })
}

fn is_of_a_name(sign: char) -> bool {
    sign == '_' || sign.is_ascii_alphanumeric()
}

fn graph() -> Graph {
    let mut graph = Graph::new();
    for file in files(&source()) {
        let (module, code) = (module_of(&file), code_of(&file));
        if OF_TESTS.contains(&module.as_str()) {
            continue;
        }
        let mut used: BTreeSet<String> = names_after(&code, "crate::").map(Into::into).collect();
        if module == "main" {
            // It names the modules, and so needs no `crate::`.
            let modules = names_after(&code, "\nmod ");
            used.extend(
                modules.filter(|name| code.contains(&format!(" {name}::"))).map(Into::into),
            );
        }
        graph.entry(module).or_default().extend(used);
    }
    for (module, used) in &mut graph {
        used.remove(module);
    }
    graph
}

fn without_leaves(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    graph.retain(|module, _| !LEAVES.contains(&module.as_str()));
    for used in graph.values_mut() {
        used.retain(|module| !LEAVES.contains(&module.as_str()));
    }
    graph
}

/// All that a module uses, also by way of others.
fn reached(graph: &Graph, module: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![module];
    while let Some(module) = next.pop() {
        for used in graph.get(module).into_iter().flatten() {
            if reached.insert(used.clone()) {
                next.push(used);
            }
        }
    }
    reached
}

/// The same without what a module uses also by way of another.
fn reduced(graph: &Graph) -> Graph {
    let is_needed = |used: &BTreeSet<String>, name: &String| {
        !used.iter().any(|other| reached(graph, other).contains(name))
    };
    let reduce = |used: &BTreeSet<String>| {
        used.iter().filter(|name| is_needed(used, name)).cloned().collect()
    };
    let mut reduced: Graph =
        graph.iter().map(|(module, used)| (module.clone(), reduce(used))).collect();
    reduced.retain(|_, used| !used.is_empty());
    reduced
}

#[test]
fn no_module_uses_itself_by_way_of_others() {
    let graph = graph();
    for module in graph.keys() {
        let reached = reached(&graph, module);
        assert!(!reached.contains(module), "{module} uses {reached:?}");
    }
    for leaf in LEAVES {
        assert_eq!(graph[leaf], BTreeSet::new(), "{leaf}");
    }
}

#[test]
fn the_picture_is_what_the_imports_say() {
    let (_, picture) = CONTRIBUTING.split_once("```mermaid\nflowchart").expect("the picture");
    let (picture, _) = picture.split_once("```").expect("its end");
    let mut drawn = Graph::new();
    for (module, used) in picture.lines().filter_map(|line| line.split_once(" --> ")) {
        let used = used.split(" & ").map(|name| name.trim().to_owned());
        drawn.entry(module.trim().to_owned()).or_default().extend(used);
    }
    assert_eq!(drawn, reduced(&without_leaves(&graph())));
}

#[test]
fn the_table_of_the_modules_is_what_the_imports_say() {
    let rows = table(CONTRIBUTING, "| module | what it does | uses |");
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(Into::into).collect()
    };
    let documented: Graph = rows
        .iter()
        .flat_map(|row| names(row[0]).into_iter().map(|module| (module, names(row[2]))))
        .collect();
    let mut graph = without_leaves(&graph());
    graph.extend(LEAVES.map(|leaf| (leaf.to_owned(), BTreeSet::new())));
    for (module, used) in &graph {
        assert_eq!(documented.get(module), Some(used), "{module}");
    }
    assert_eq!(documented.len(), graph.len());
}

#[test]
fn the_state_table_has_every_situation() {
    let code = code_of(&source().join("policy/situation.rs"));
    let (_, code) = code.split_once("pub enum Situation {\n").expect("the situations");
    let (code, _) = code.split_once("\n}").expect("their end");
    // Variants stand at the first step of indentation; their fields may stand deeper.
    let variants = code.lines().filter_map(|line| line.strip_prefix("    "));
    let variants = variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let names = variants.filter_map(|line| line.split([',', '(', ' ']).next());
    let defined: BTreeSet<&str> = names.collect();
    let rows = table(CONTRIBUTING, "| situation | tailscaled shows | a run does |");
    let documented = rows.iter().flat_map(|row| row[0].split('`').skip(1).step_by(2));
    assert_eq!(documented.collect::<BTreeSet<_>>(), defined);
}
