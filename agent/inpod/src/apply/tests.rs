use super::*;
use nix::sched::{CloneFlags, unshare};
use std::{fs, os::unix::fs::PermissionsExt};
use tempfile::TempDir;

/// An `nft` that refuses whatever contains one of these words, as the program does when the kernel lacks a module.
fn lacking(dir: &TempDir, words: &[&str]) -> Nft {
    let program = dir.path().join("nft");
    let patterns: String = words.iter().map(|word| format!("*\"{word}\"*) exit 1;;\n")).collect();
    let script = format!(
        "#!/bin/sh\ntext=$(cat)\ncase \"$text\" in\n{patterns}esac\nprintf '%s\\n' \"$text\" | exec nft \"$@\"\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Nft { program }
}

/// In a namespace that ends with the thread. Needs root.
fn in_new_namespace<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: run them as root");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

#[test]
fn what_the_kernel_lacks_is_done_without() {
    fn check(words: &[&str], wanted: Result<Mechanism, ()>) {
        let dir = TempDir::new().unwrap();
        let nft = lacking(&dir, words);
        let (found, table) = in_new_namespace(|| {
            let found = apply_best(&nft, &CaptureConfig::default(), Mode::Capture);
            (found, Nft::default().run(&[], "list ruleset\n").unwrap())
        });
        assert_eq!(found.as_ref().map_err(drop).copied(), wanted, "without {words:?}: {found:?}");
        for word in words.iter().filter(|_| wanted.is_ok()) {
            assert!(!table.contains(word), "{word} in {table}");
        }
        assert!(wanted.is_err() || table.contains("guard_output"), "{table}");
    }
    check(&[], Ok(Mechanism::Tproxy));
    check(&["tproxy"], Ok(Mechanism::RedirectListening));
    check(&["tproxy", "socket"], Ok(Mechanism::Redirect));
    // Refused for a reason of its own: no worse capture for that.
    check(&["guard_output"], Err(()));
}

#[test]
fn a_table_that_translates_is_recognised() {
    let nft = Nft::default();
    in_new_namespace(|| {
        assert!(!nft.translates().unwrap(), "no table");
        let config = CaptureConfig::default();
        apply_here(&nft, Mechanism::Tproxy, &config, Mode::Capture).unwrap();
        nft.run(&[], "table ip nat {\nchain c {\ntype nat hook output priority 0\n}\n}\n").unwrap();
        assert!(!nft.translates().unwrap(), "somebody else's");
        apply_here(&nft, Mechanism::Redirect, &config, Mode::Capture).unwrap();
        assert!(nft.translates().unwrap());
        apply_here(&nft, Mechanism::Tproxy, &config, Mode::Drain).unwrap();
        assert!(nft.translates().unwrap(), "it is kept");
    });
}

#[test]
fn a_program_that_is_not_there_or_complains_is_told() {
    let missing = Nft { program: "/nonexistent/nft".into() };
    assert!(matches!(missing.run(&[], ""), Err(ApplyError::Program(_))));
    let complaint = Nft::default().run(&["--check"], "nonsense\n");
    assert!(
        matches!(&complaint, Err(ApplyError::Refused(said)) if said.contains("nonsense")),
        "{complaint:?}"
    );
}
