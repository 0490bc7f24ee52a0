use super::*;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const LIST: &str = r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"bridge"}]}"#;
/// A test that waits longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node's folders, and an installer at work on it.
struct Node {
    dir: TempDir,
    config: InstallConfig,
}

impl Node {
    fn new(chaining: Chaining) -> Self {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        let config = InstallConfig {
            conf_dir: at("net.d"),
            bin_dir: at("bin"),
            plugin_source: at("source"),
            run_dir: at("run"),
            state_dir: at("state"),
            cache_dir: at("cache"),
            proc_root: at("proc"),
            chaining,
            look: Duration::from_millis(100),
            reload_pause: Duration::ZERO,
        };
        for made in [&config.conf_dir, &config.run_dir, &config.state_dir] {
            fs::create_dir(made).unwrap();
        }
        fs::write(&config.plugin_source, "#!program 1").unwrap();
        Self { dir, config }
    }

    fn start(&self) -> InstallHandle {
        Installer::new(self.config.clone()).start().unwrap()
    }

    fn list(&self) -> PathBuf {
        self.config.conf_dir.join("10-net.conflist")
    }

    fn program(&self) -> PathBuf {
        self.config.bin_dir.join(PLUGIN)
    }

    fn names_us(&self) -> bool {
        fs::read_to_string(self.list()).is_ok_and(|text| text.contains(PLUGIN))
    }
}

/// Waits until the status is so.
fn wait(handle: &InstallHandle, what: &str, until: impl Fn(&Installed) -> bool) -> Installed {
    let mut installed = handle.installed();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let seen = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, installed.wait_for(|i| until(i))).await.map(|r| r.map(|i| i.clone()))
    });
    seen.unwrap_or_else(|_| panic!("not {what}: {:?}", handle.installed().borrow())).unwrap()
}

/// Waits for what no status tells.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        thread::yield_now();
    }
}

fn inserted(installed: &Installed) -> bool {
    installed.state == State::Inserted
}

#[test]
fn it_waits_for_the_cni_and_takes_itself_out_again() {
    let node = Node::new(Chaining::Auto);
    let handle = node.start();
    wait(
        &handle,
        "waiting",
        |i| matches!(&i.state, State::Waiting { why } if why.contains("no network configuration")),
    );
    assert_eq!(fs::read_to_string(node.program()).unwrap(), "#!program 1", "the program comes first");
    assert_eq!(fs::metadata(node.program()).unwrap().permissions().mode() & 0o7777, 0o755);
    fs::write(node.list(), LIST).unwrap();
    let now = wait(&handle, "inserted", inserted);
    assert_eq!((now.way, now.file, now.reinserted), (Some(Way::Edited), Some(node.list()), 0));
    let value: Value = serde_json::from_str(&fs::read_to_string(node.list()).unwrap()).unwrap();
    assert_eq!(value["cniVersion"], "1.1.0", "the author's version stays");
    assert_eq!(
        value["plugins"][1],
        json!({ "type": PLUGIN, "runDir": node.config.run_dir,
        "stateDir": node.config.state_dir, "statusFollowsAgent": false })
    );

    for dir in [&node.config.run_dir, &node.config.state_dir] {
        fs::write(enrolment_path(dir), "{}").unwrap();
    }
    handle.uninstall().unwrap();
    assert_eq!(fs::read_to_string(node.list()).unwrap(), LIST);
    assert!(!node.program().exists());
    assert!(
        !enrolment_path(&node.config.run_dir).exists() && !enrolment_path(&node.config.state_dir).exists()
    );
    Installer::new(node.config.clone()).uninstall().expect("again is no error");
    let nowhere = InstallConfig { conf_dir: node.dir.path().join("nowhere"), ..node.config.clone() };
    Installer::new(nowhere).uninstall().expect("nothing to remove is no error");
}

#[test]
fn it_comes_back_when_another_cni_rewrites_its_file_but_does_not_spin() {
    let node = Node::new(Chaining::Edit);
    fs::write(node.list(), LIST).unwrap();
    let handle = node.start();
    let since = wait(&handle, "inserted", inserted).since;
    assert!(since.is_some());
    // Written whole, as well-behaved CNIs do; then again and again.
    let rewrite = || {
        let beside = node.config.conf_dir.join("10-net.new");
        fs::write(&beside, LIST).unwrap();
        fs::rename(beside, node.list()).unwrap();
    };
    rewrite();
    wait(&handle, "put back", |i| i.reinserted == 1);
    wait_until("the file names us", || node.names_us());
    let is_overridden = |i: &Installed| matches!(i.state, State::Overridden { .. });
    let mut last = 1;
    loop {
        rewrite();
        let now = wait(&handle, "put back or given up", |i| is_overridden(i) || i.reinserted > last);
        if is_overridden(&now) {
            break;
        }
        last = now.reinserted;
        wait_until("the file names us", || node.names_us());
    }
    assert!(last >= 5, "a burst is answered");
    assert!(!node.names_us());
    handle.stop();
    assert!(node.program().exists(), "stopping leaves everything in place");
}

#[test]
fn what_is_lost_is_put_back() {
    let node = Node::new(Chaining::Edit);
    fs::write(node.list(), LIST).unwrap();
    let handle = node.start();
    wait(&handle, "inserted", inserted);
    fs::remove_file(node.program()).unwrap();
    wait_until("the program is back", || files::is_program(&node.program()));
    // The folder is replaced.
    fs::remove_dir_all(&node.config.conf_dir).unwrap();
    wait(&handle, "waiting", |i| matches!(i.state, State::Waiting { .. }));
    fs::create_dir(&node.config.conf_dir).unwrap();
    fs::write(node.list(), LIST).unwrap();
    wait(&handle, "inserted again", inserted);
    assert!(node.names_us());
}

#[test]
fn a_new_agents_program_and_entry_replace_the_old() {
    let node = Node::new(Chaining::Edit);
    fs::create_dir(&node.config.bin_dir).unwrap();
    // One that runs at the moment cannot be written to, only replaced.
    fs::copy("/bin/sleep", node.program()).unwrap();
    let mut running = std::process::Command::new(node.program()).arg("1000").spawn().unwrap();
    let old =
        format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"a"}},{{"type":"{PLUGIN}"}}]}}"#);
    fs::write(node.list(), &old).unwrap();
    let handle = node.start();
    wait(&handle, "inserted", inserted);
    let entry_is_new = || fs::read_to_string(node.list()).unwrap().contains("statusFollowsAgent");
    assert!(entry_is_new());
    assert_eq!(fs::read_to_string(node.program()).unwrap(), "#!program 1");
    running.kill().unwrap();
    running.wait().unwrap();
    // A successor's entry and program are none of the old agent's business.
    fs::write(node.program(), "#!program 2").unwrap();
    fs::write(node.list(), &old).unwrap();
    fs::write(node.config.conf_dir.join("05-first.conflist"), LIST).unwrap();
    wait(&handle, "in the new first file", |i| {
        i.file.as_ref().is_some_and(|f| f.ends_with("05-first.conflist"))
    });
    assert!(!entry_is_new());
    assert_eq!(fs::read_to_string(node.program()).unwrap(), "#!program 2");
}

#[test]
fn without_a_program_nothing_names_it() {
    let node = Node::new(Chaining::Edit);
    fs::write(node.list(), LIST).unwrap();
    let handle = node.start();
    wait(&handle, "inserted", inserted);
    fs::remove_file(&node.config.plugin_source).unwrap();
    fs::remove_file(node.program()).unwrap();
    wait(
        &handle,
        "waiting",
        |i| matches!(&i.state, State::Waiting { why } if why.contains("cannot be installed")),
    );
    assert_eq!(fs::read_to_string(node.list()).unwrap(), LIST);
    fs::write(&node.config.plugin_source, "#!program 3").unwrap();
    wait(&handle, "inserted", inserted);
}

#[test]
fn a_drop_in_that_takes_no_effect_gives_way_to_an_edit() {
    let node = Node::new(Chaining::DropIn);
    fs::write(node.list(), LIST).unwrap();
    let handle = node.start();
    assert_eq!(wait(&handle, "inserted", inserted).way, Some(Way::DropIn));
    assert!(!node.names_us());
    let (at, witness) = (SystemTime::now(), handle.witness());
    witness.saw_add(at);
    assert_eq!(wait(&handle, "told", |i| i.last_add.is_some()).last_add, Some(at));
    let missed = |seconds| {
        let since = handle.installed().borrow().since.unwrap();
        witness.missed("pod shop/cart", since + Duration::from_secs(seconds));
    };
    missed(0); // the runtime may not have looked by then
    missed(1000);
    wait(&handle, "edited", |i| inserted(i) && i.way == Some(Way::Edited));
    assert!(node.names_us() && !node.config.conf_dir.join("net").exists());
    // Nothing is left to try: it is said, until an ADD comes.
    missed(1000);
    wait(&handle, "overridden", |i| matches!(&i.state, State::Overridden { why } if why.contains("cart")));
    witness.saw_add(at);
    wait(&handle, "fine again", inserted);
    handle.uninstall().unwrap();
    assert_eq!(fs::read_to_string(node.list()).unwrap(), LIST);
}
