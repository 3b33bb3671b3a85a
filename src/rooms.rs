//! The order of the rooms, held by a test: a room uses rooms above it, and no two files of a room use each other.
//!
//! Read from the `use` lines and paths of the source as text; what the compiler resolves through methods and traits is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the ground up. Rooms on one line do not use each other either.
const ROOMS: [&[&str]; 18] = [
    &["error", "panics", "text"],
    &["parquet"],
    &["spec"],
    &["hooks"],
    &["nn"],
    &["model"],
    &["sae"],
    &["metric"],
    &["task"],
    &["run"],
    &["scores"],
    &["circuit"],
    &["check"],
    &["methods"],
    &["plot"],
    &["many"],
    &["lab"],
    &["prelude"],
];

/// Where circles are still being taken apart.
const UNFINISHED: [&str; 4] = [
    "methods::attribution::edges",
    "methods::exact_edges",
    "methods::measure",
    "model::families",
];

/// The path of a module, without the crate: `["run", "sweep"]`.
type Module = Vec<String>;

/// The source of the library without comments and tests, by module.
fn sources() -> BTreeMap<Module, String> {
    fn walk(folder: &Path, module: &Module, found: &mut BTreeMap<Module, String>) {
        for entry in fs::read_dir(folder).expect("a folder of the source") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let is_the_binary =
                module.is_empty() && ["cli", "main", "lib", "rooms"].contains(&name.as_str());
            if is_the_binary || name == "tests" {
                continue;
            }
            let mut inner = module.clone();
            if name != "mod" {
                inner.push(name);
            }
            if path.is_dir() {
                walk(&path, &inner, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.insert(inner, code(&fs::read_to_string(&path).expect("it reads")));
            }
        }
    }
    let mut found = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    walk(&root, &Module::new(), &mut found);
    found
}

/// Without comments, and without what stands from the first test module on.
fn code(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_test = line.starts_with("#[cfg(") && line.contains("test");
        if is_test
            && lines
                .peek()
                .is_some_and(|next| next.contains("mod ") && next.ends_with('{'))
        {
            break;
        }
        kept.push_str(line.split("//").next().unwrap_or_default());
        kept.push('\n');
    }
    kept
}

/// The paths in a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![
            path.split("::")
                .map(|part| part.trim().to_owned())
                .collect(),
        ];
    };
    let inner = rest.trim_end().strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut branches) = (0, vec![String::new()]);
    for c in inner.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            branches.push(String::new());
        } else if let Some(branch) = branches.last_mut() {
            branch.push(c);
        }
    }
    let branches = branches.iter().filter(|branch| !branch.trim().is_empty());
    branches
        .flat_map(|branch| paths(&format!("{prefix}{}", branch.trim())))
        .collect()
}

/// What one module says of others.
#[derive(Default)]
struct Mentions {
    /// Paths, and whether they are exported again.
    paths: Vec<(Vec<String>, bool)>,
}

impl Mentions {
    fn of(source: &str) -> Self {
        let mut found = Mentions::default();
        let mut rest = String::new();
        for statement in source.split_inclusive(';') {
            let start = statement.rfind("use ").filter(|&at| {
                let before = statement[..at].trim_end();
                before.is_empty()
                    || before.ends_with([';', '}', ')', ']', '{'])
                    || before.ends_with("pub")
            });
            let Some(at) = start else {
                rest.push_str(statement);
                continue;
            };
            let before = statement[..at].trim_end();
            let is_exported =
                before.ends_with("pub") || before.ends_with(')') && before.contains("pub(");
            rest.push_str(before);
            let tree = statement[at + 4..].trim_end_matches(';');
            found
                .paths
                .extend(paths(tree).into_iter().map(|path| (path, is_exported)));
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in rest
            .split(|c: char| !is_word(c))
            .filter(|word| word.contains("::"))
        {
            let path = word.split("::").map(str::to_owned).collect();
            found.paths.push((path, false));
        }
        found
    }
}

/// The modules that a path of `from` leads to, through what modules export again.
fn resolve(
    from: &Module,
    path: &[String],
    sources: &BTreeMap<Module, String>,
    exports: &BTreeMap<(Module, String), (Module, Vec<String>)>,
) -> Option<Module> {
    let mut parts = path.iter().peekable();
    let mut at = match parts.peek()?.as_str() {
        "crate" => Module::new(),
        "self" | "super" => from.clone(),
        first => {
            let child = [from.as_slice(), &[first.to_owned()]].concat();
            if !sources.contains_key(&child) {
                return None;
            }
            from.clone()
        }
    };
    while let Some(part) = parts.next_if(|part| ["crate", "self", "super"].contains(&part.as_str()))
    {
        if part == "super" {
            at.pop();
        }
    }
    for part in parts {
        let child = [at.as_slice(), std::slice::from_ref(part)].concat();
        if sources.contains_key(&child) {
            at = child;
            continue;
        }
        if let Some((module, path)) = exports.get(&(at.clone(), part.clone())) {
            return resolve(module, path, sources, exports).or(Some(at));
        }
        break;
    }
    Some(at).filter(|at| !at.is_empty())
}

/// Which modules each module uses; that it exports what its own children have is no use of them.
fn uses() -> BTreeMap<Module, BTreeSet<Module>> {
    let sources = sources();
    let mentions: BTreeMap<&Module, Mentions> = sources
        .iter()
        .map(|(module, source)| (module, Mentions::of(source)))
        .collect();
    let mut exports = BTreeMap::new();
    for (&module, mentions) in &mentions {
        for (path, _) in mentions
            .paths
            .iter()
            .filter(|(_, is_exported)| *is_exported)
        {
            let name = path.last().expect("a path has a name").clone();
            exports.insert((module.clone(), name), (module.clone(), path.clone()));
        }
    }
    let of = |(&module, mentions): (&&Module, &Mentions)| {
        let used = mentions.paths.iter().filter_map(|(path, is_exported)| {
            let to = resolve(module, path, &sources, &exports)?;
            let is_own_child = *is_exported && to.starts_with(module);
            (to != *module && !is_own_child).then_some(to)
        });
        (module.clone(), used.collect())
    };
    mentions.iter().map(of).collect()
}

fn name(module: &Module) -> String {
    module.join("::")
}

#[test]
fn a_room_uses_rooms_above_it() {
    let rank = |module: &Module| {
        ROOMS
            .iter()
            .position(|rooms| rooms.contains(&module[0].as_str()))
    };
    let mut wrong = Vec::new();
    for (module, used) in uses() {
        let own = rank(&module).unwrap_or_else(|| panic!("no room is called {}", module[0]));
        for other in used {
            let is_same = other[0] == module[0];
            if !is_same && rank(&other).is_none_or(|rank| rank >= own) {
                wrong.push(format!("{} uses {}", name(&module), name(&other)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_two_files_use_each_other() {
    let uses = uses();
    assert!(
        uses.values().map(BTreeSet::len).sum::<usize>() > 500,
        "uses are found"
    );
    let mut circles = Vec::new();
    for (module, used) in &uses {
        for other in used.iter().filter(|other| *other > module) {
            let is_known = UNFINISHED
                .iter()
                .any(|start| name(module).starts_with(start));
            if !is_known && uses.get(other).is_some_and(|back| back.contains(module)) {
                circles.push(format!("{} and {}", name(module), name(other)));
            }
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn paths_are_read_from_use_trees_and_code() {
    let found =
        Mentions::of("pub use a::{b, c::{d, e as f}};\nuse super::g;\nfn h() { crate::i::j(); }");
    let shown: Vec<(String, bool)> = found
        .paths
        .iter()
        .map(|(path, out)| (path.join("::"), *out))
        .collect();
    let expected = [
        ("a::b", true),
        ("a::c::d", true),
        ("a::c::e", true),
        ("super::g", false),
        ("crate::i::j", false),
    ];
    assert_eq!(shown, expected.map(|(path, out)| (path.to_owned(), out)));
}
