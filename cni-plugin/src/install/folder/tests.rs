use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::os::unix::fs::{PermissionsExt, symlink};
use tempfile::TempDir;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"0.4.0","name":"net","type":"bridge"}"#;

fn entry() -> Value {
    json!({ "type": PLUGIN })
}

/// Plans and does it, and checks that then nothing is left to do.
fn ensure(dir: &Path, drop_in: bool) -> Result<(Way, String), String> {
    let wish = Wish { entry: &entry(), drop_in, exact: true };
    let first = plan(dir, &wish).map_err(|e| e.to_string())?;
    carry_out(dir, &first.steps).unwrap();
    let again = plan(dir, &wish).unwrap();
    assert_eq!((&again.file, again.way, again.steps), (&first.file, first.way, Vec::new()));
    Ok((first.way, first.file.strip_prefix(dir).unwrap().display().to_string()))
}

/// Path and text of every file, sorted.
fn all(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(all(&path));
        } else {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn the_first_file_counts_and_everything_is_taken_out_again() {
    let with = |more: &str| LIST.replace("\"plugins\"", &format!("{more},\"plugins\""));
    let inlined = with(r#""loadOnlyInlinedPlugins":"True""#);
    let without_plugins = r#"{"cniVersion":"1.0.0","name":"net"}"#;
    type Case<'a> = (&'a [(&'a str, &'a str)], bool, Result<(Way, &'a str), &'a str>);
    // (files, drop-in wished, way and file)
    let cases: [Case<'_>; 14] = [
        (&[], true, Err("no network configuration is there yet")),
        (&[("10-a.conflist.bak", LIST), ("readme", "x")], false, Err("no network")),
        (&[("10-a.conflist", LIST), ("05-b.conflist", LIST)], false, Ok((Way::Edited, "05-b.conflist"))),
        (&[("10-a.conflist", LIST)], true, Ok((Way::DropIn, "net/90-weft.conf"))),
        (&[("10-a.conflist", &inlined)], true, Ok((Way::Edited, "10-a.conflist"))),
        (&[("10-a.conflist", &LIST.replace("net", "../net"))], true, Ok((Way::Edited, "10-a.conflist"))),
        // Only a libcni that reads drop-ins can use such a list at all.
        (&[("10-a.conflist", without_plugins)], false, Ok((Way::DropIn, "net/90-weft.conf"))),
        (&[("10-a.conf", SINGLE)], false, Ok((Way::Derived, "00-weft-10-a.conflist"))),
        (&[("10-a.json", SINGLE)], true, Ok((Way::Derived, "00-weft-10-a.conflist"))),
        (&[("00-a.conf", SINGLE)], false, Ok((Way::Derived, "0-weft-00-a.conflist"))),
        // As the runtime does: the first file counts even when it is broken.
        (
            &[("10-a.conflist", "{"), ("20-b.conflist", LIST)],
            false,
            Err("10-a.conflist: it is not a JSON object"),
        ),
        (&[("10-a.conf", LIST)], false, Err("10-a.conf: its plugins")),
        (&[("10-a.conflist", ""), ("20", "")], true, Err("10-a.conflist")),
        (
            &[("10-a.conflist", &LIST.replace("1.0.0", "0.1.0"))],
            true,
            Err("10-a.conflist: its cniVersion \"0.1.0\""),
        ),
    ];
    for (files, drop_in, want) in cases {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let before = all(dir.path());
        match (ensure(dir.path(), drop_in), want) {
            (Ok((way, file)), Ok(want)) => assert_eq!((way, file.as_str()), want, "{files:?}"),
            (Err(why), Err(want)) => assert!(why.starts_with(want), "{files:?}: {why}"),
            (got, want) => panic!("{files:?}: {got:?}, not {want:?}"),
        }
        assert_eq!(take_out(dir.path()), Vec::<String>::new());
        assert_eq!(all(dir.path()), before, "{files:?}");
        assert!(!dir.path().join("net").exists());
    }
}

#[test]
fn a_file_keeps_its_mode_and_a_link_stays_a_link() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("10-a.conflist");
    fs::write(&path, LIST).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    ensure(dir.path(), false).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let elsewhere = TempDir::new().unwrap();
    fs::rename(&path, elsewhere.path().join("real")).unwrap();
    fs::write(elsewhere.path().join("real"), LIST).unwrap();
    symlink(elsewhere.path().join("real"), &path).unwrap();
    assert_eq!(ensure(dir.path(), false).unwrap(), (Way::Derived, "00-weft-10-a.conflist".into()));
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&path).unwrap(), LIST);
    // With the file that it was made from goes what was made of it.
    fs::remove_file(&path).unwrap();
    let wish = Wish { entry: &entry(), drop_in: false, exact: true };
    let Err(NotYet::Nothing(leftover)) = plan(dir.path(), &wish) else { panic!() };
    carry_out(dir.path(), &leftover).unwrap();
    assert_eq!(all(dir.path()), []);
}

#[test]
fn ways_replace_each_other() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("10-a.conflist");
    fs::write(&path, LIST).unwrap();
    let (edited, drop_in) = (dir.path().join("10-a.conflist"), dir.path().join("net/90-weft.conf"));
    let named = || {
        let edited = fs::read_to_string(&edited).unwrap_or_default().contains(PLUGIN);
        (edited, drop_in.exists())
    };
    for (wish, want) in
        [(false, (true, false)), (true, (false, true)), (false, (true, false)), (true, (false, true))]
    {
        ensure(dir.path(), wish).unwrap();
        assert_eq!(named(), want, "drop-in: {wish}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), LIST);
    // Another CNI comes, and is first; its network has another name.
    fs::write(dir.path().join("05-b.conflist"), LIST.replace("net", "other")).unwrap();
    assert_eq!(ensure(dir.path(), true).unwrap().1, "other/90-weft.conf");
    assert_eq!(named(), (false, false));
    // And replaces itself by a single plugin.
    fs::remove_file(dir.path().join("05-b.conflist")).unwrap();
    fs::write(dir.path().join("05-b.conf"), SINGLE).unwrap();
    assert_eq!(ensure(dir.path(), true).unwrap().1, "00-weft-05-b.conflist");
    assert!(!dir.path().join("other").exists());
    // Its change is followed.
    fs::write(dir.path().join("05-b.conf"), SINGLE.replace("bridge", "ptp")).unwrap();
    ensure(dir.path(), true).unwrap();
    assert!(fs::read_to_string(dir.path().join("00-weft-05-b.conflist")).unwrap().contains("ptp"));
}

#[test]
fn a_file_that_changed_after_it_was_read_is_not_overwritten() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("10-a.conflist");
    fs::write(&path, LIST).unwrap();
    let planned = plan(dir.path(), &Wish { entry: &entry(), drop_in: false, exact: true }).unwrap();
    let newer = LIST.replace("bridge", "newer");
    fs::write(&path, &newer).unwrap();
    let refused = carry_out(dir.path(), &planned.steps).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StaleNetworkFileHandle);
    assert_eq!(all(dir.path()), [(path.display().to_string(), newer)], "and nothing is left lying about");
}

#[test]
fn backups_of_others_do_not_bring_us_back() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("10-a.conflist"), LIST).unwrap();
    ensure(dir.path(), false).unwrap();
    // As Cilium does with what it finds.
    fs::rename(dir.path().join("10-a.conflist"), dir.path().join("10-a.conflist.cilium_bak")).unwrap();
    fs::write(dir.path().join("05-cilium.conflist"), LIST).unwrap();
    ensure(dir.path(), false).unwrap();
    assert_eq!(take_out(dir.path()), Vec::<String>::new());
    assert!(all(dir.path()).iter().all(|(_, text)| text == LIST));
}

proptest! {
    #[test]
    fn a_derived_name_goes_first(name in "[!-~&&[^/]]{1,12}\\.(conf|json|conflist)") {
        prop_assume!(name.as_str() > "!-weft-"); // nobody's name starts so
        prop_assert!(name_before(&name) < name);
    }
}
