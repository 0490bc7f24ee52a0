//! The house rules that a machine can check: purity of weft-core, licences, sizes, unsafe.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the workspace").to_owned()
}

fn cargo(args: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO")).args(args).current_dir(root()).output()?;
    ensure!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Our Rust sources.
fn sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && name != "target" && name != "fuzz" {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for dir in ["agent", "certs", "cni-plugin", "tests"] {
        walk(&root().join(dir), &mut found);
    }
    assert!(found.len() > 40, "the walk found only {} files", found.len());
    found
}

#[test]
fn core_has_no_io_dependency() -> Result<()> {
    let tree = cargo(&[
        "tree",
        "--locked",
        "-p",
        "weft-core",
        "-e",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{lib}",
    ])?;
    let crates: Vec<&str> = tree.lines().map(|l| l.split_whitespace().next().unwrap_or("")).collect();
    ensure!(crates.contains(&"http") && crates.contains(&"regex_automata"), "the tree looks wrong: {tree}");
    let banned = [
        "tokio",
        "mio",
        "hyper",
        "h2",
        "rustls",
        "kube",
        "kube_client",
        "rand",
        "socket2",
        "nix",
        "async_executor",
        "getrandom",
    ];
    for name in banned {
        ensure!(!crates.contains(&name), "weft-core depends on {name}: it must stay pure");
    }
    Ok(())
}

#[test]
fn licences_are_allowed() -> Result<()> {
    let deny = fs::read_to_string(root().join("deny.toml"))?;
    let list = deny
        .split("allow = [")
        .nth(1)
        .and_then(|s| s.split(']').next())
        .context("deny.toml: licenses.allow")?;
    let allowed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    let mut packages = Vec::new();
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let told = cargo(&["metadata", "--locked", "--format-version", "1", "--manifest-path", manifest])?;
        let metadata: serde_json::Value = serde_json::from_str(&told)?;
        packages.extend(metadata["packages"].as_array().context("packages")?.iter().cloned());
    }
    ensure!(packages.len() > 300, "only {} packages", packages.len());
    for package in &packages {
        let expression = package["license"].as_str().unwrap_or("none");
        // Each alternative of an OR is enough; every part of an AND is needed.
        let fine = expression.replace('/', " OR ").split(" OR ").any(|alternative| {
            alternative.split(" AND ").all(|l| allowed.contains(&l.trim_matches(['(', ')', ' '])))
        });
        ensure!(
            fine,
            "{} {} has licence {expression}, not allowed by deny.toml",
            package["name"],
            package["version"]
        );
    }
    Ok(())
}

#[test]
fn files_fit_a_sitting() -> Result<()> {
    for path in sources() {
        let text = fs::read_to_string(&path)?;
        let is_test = path.components().any(|c| c.as_os_str() == "tests") || path.ends_with("tests.rs");
        let lines = text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).count();
        ensure!(
            is_test || lines <= 800,
            "{}: {lines} lines before its tests; split it by what it knows",
            path.display()
        );
    }
    Ok(())
}

#[test]
fn unsafe_lives_in_inpod_only() -> Result<()> {
    for path in sources() {
        let text = fs::read_to_string(&path)?;
        let uses = text.lines().any(|l| {
            let code = l.split("//").next().unwrap_or("");
            ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|u| code.contains(u) && !code.contains('"'))
        });
        ensure!(!uses || path.starts_with(root().join("agent/inpod")), "unsafe code in {}", path.display());
    }
    Ok(())
}

/// The names of all test functions in our sources.
fn tests_by_name() -> Result<std::collections::BTreeSet<String>> {
    let mut names = std::collections::BTreeSet::new();
    for path in sources() {
        let text = fs::read_to_string(&path)?;
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[") {
                marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            } else if let Some(rest) = line.split("fn ").nth(1).filter(|_| marked) {
                names.insert(rest.split(['(', '<']).next().unwrap_or_default().to_owned());
                marked = false;
            } else {
                marked = false;
            }
        }
    }
    Ok(names)
}

#[test]
fn every_budget_has_a_test_that_floods_it() -> Result<()> {
    let tests = tests_by_name()?;
    ensure!(
        tests.contains("every_budget_has_a_test_that_floods_it"),
        "the search for tests finds not even itself"
    );
    for budget in weft_core::budget::ALL {
        ensure!(tests.contains(budget.flood), "budget {}: no test is named {}", budget.name, budget.flood);
    }
    Ok(())
}

/// `WEFT_BLESS=1 cargo test -p weft-tests --test house` writes the table into the page.
#[test]
fn the_page_of_budgets_shows_the_table() -> Result<()> {
    let path = root().join("docs/budgets.md");
    let page = fs::read_to_string(&path)?;
    let begin = page.find("| budget |").context("docs/budgets.md: the table")?;
    let wanted = format!("{}{}", &page[..begin], weft_core::budget::table());
    if std::env::var_os("WEFT_BLESS").is_some() {
        fs::write(&path, &wanted)?;
    }
    ensure!(
        fs::read_to_string(&path)? == wanted,
        "docs/budgets.md does not end with the table of weft_core::budget: run this test with WEFT_BLESS=1"
    );
    Ok(())
}

/// Names and versions of a lock file.
fn locked(path: &str) -> Result<std::collections::BTreeSet<(String, String)>> {
    let text = fs::read_to_string(root().join(path))?;
    let lines: Vec<&str> = text.lines().collect();
    let value = |line: &str, key: &str| {
        line.strip_prefix(key).map(|rest| rest.trim_matches([' ', '=', '"']).to_owned())
    };
    let pair = |two: &[&str]| Some((value(two[0], "name")?, value(two[1], "version")?));
    let found: std::collections::BTreeSet<_> = lines.windows(2).filter_map(pair).collect();
    ensure!(found.len() > 100, "{path}: only {} packages", found.len());
    Ok(found)
}

/// `cp Cargo.lock fuzz/ && cargo metadata --manifest-path fuzz/Cargo.toml >/dev/null` brings it back in step.
#[test]
fn what_is_fuzzed_is_what_ships() -> Result<()> {
    let own = ["arbitrary", "derive_arbitrary", "libfuzzer-sys", "weft-fuzz"];
    let ships = locked("Cargo.lock")?;
    for package in locked("fuzz/Cargo.lock")? {
        let (name, version) = &package;
        ensure!(
            ships.contains(&package) || own.contains(&name.as_str()),
            "fuzz/Cargo.lock has {name} {version}, Cargo.lock has not"
        );
    }
    Ok(())
}

#[test]
fn every_fuzz_target_has_seeds_and_a_planted_bug() -> Result<()> {
    let fuzz = root().join("fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml"))?;
    let mut targets = 0;
    for entry in fs::read_dir(fuzz.join("fuzz_targets"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).context("a name")?;
        let seeds =
            fs::read_dir(fuzz.join("seeds").join(name)).with_context(|| format!("{name}: no seeds"))?;
        ensure!(seeds.count() > 1, "{name}: one seed or none");
        ensure!(fs::read_to_string(&path)?.contains("planted("), "{name}: no planted bug");
        ensure!(manifest.contains(&format!("name = \"{name}\"")), "{name}: not in fuzz/Cargo.toml");
        targets += 1;
    }
    ensure!(targets > 10, "only {targets} fuzz targets");
    Ok(())
}
