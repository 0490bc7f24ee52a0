use std::{os::unix::fs::PermissionsExt, sync::Barrier, thread};

use super::*;

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn open(dir: &Path) -> Ca {
    Ca::load_or_create(dir, "cluster.local", now()).unwrap()
}

#[test]
fn is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("not/there/yet");
    let first = open(&dir);
    assert_eq!(open(&dir).bundle(), first.bundle());
    for file in [CERTIFICATE, KEY] {
        assert_eq!(fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [LOCK, CERTIFICATE, KEY], "no temporary file stays");
}

#[test]
fn starters_at_once_end_with_one_ca() {
    // flock(2) is per open file: threads that each open it exclude one another as processes do.
    let dir = tempfile::tempdir().unwrap();
    let barrier = Barrier::new(8);
    let bundles: Vec<_> = thread::scope(|scope| {
        let start = || {
            barrier.wait();
            open(dir.path()).bundle().clone()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(bundles.iter().all(|bundle| *bundle == bundles[0]));
}

#[test]
fn a_crash_between_the_two_files_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let key = open(dir.path()).key().der().to_vec();
    fs::remove_file(dir.path().join(CERTIFICATE)).unwrap();
    assert_eq!(open(dir.path()).key().der(), key);
}

#[test]
fn what_is_broken_is_not_replaced() {
    // (file to write, its text or none to remove it, what the error says)
    let table = [
        (KEY, None, "ca.key is missing"),
        (KEY, Some("nonsense"), "private key"),
        (CERTIFICATE, Some("nonsense"), "no certificate"),
        (ROOTS, Some("nonsense"), "holds no certificate"),
    ];
    for (file, text, says) in table {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        let path = dir.path().join(file);
        match text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = Ca::load_or_create(dir.path(), "cluster.local", now()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn further_roots_are_trusted() {
    let (dir, old) = (tempfile::tempdir().unwrap(), Ca::create("cluster.local", now()).unwrap());
    let root = open(dir.path()).bundle().clone();
    fs::write(dir.path().join(ROOTS), old.bundle().to_pem()).unwrap();
    assert_eq!(*open(dir.path()).bundle(), root.with(old.bundle()));
}
