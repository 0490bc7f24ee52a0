//! Processes inside a sandbox's namespaces.

use super::net::Netns;
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A running process; killed on drop unless detached.
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    log: PathBuf,
}

/// What a finished program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a program that succeeded.
    ///
    /// # Errors
    /// With both outputs when the exit code is not 0.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("exit code {}\n{}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

impl Process {
    /// Starts `argv` inside `netns`; both outputs are appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        netns: &Netns,
        cpu: Option<usize>,
        argv: &[&str],
        env: &[(String, String)],
        log: &Path,
    ) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = command(netns, cpu, argv)
            .envs(env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", argv.join(" ")))?;
        Ok(Self { child: Some(child), log: log.into() })
    }

    /// Process id. `nsenter` replaces itself by the program, so this is the program's own.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    /// The last 40 lines of its output.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        let pid = i32::try_from(self.pid())?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
        let start = Instant::now();
        while self.is_running() {
            if start.elapsed() > limit {
                bail!(
                    "process {pid} still runs {limit:?} after SIGTERM; the end of its log:\n{}",
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets it live after us.
    pub fn detach(&mut self) {
        drop(self.child.take());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program inside `netns` to its end, on one CPU if given.
///
/// # Errors
/// When it cannot be started or runs longer than `limit`.
pub fn run(netns: &Netns, cpu: Option<usize>, argv: &[&str], limit: Duration) -> Result<Output> {
    let mut child = command(netns, cpu, argv)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", argv.join(" ")))?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let late = start.elapsed() > limit;
        if late || super::is_interrupted() {
            let _ = child.kill();
            let _ = child.wait();
            super::check_interrupt()?;
            bail!("`{}` ran longer than {limit:?}", argv.join(" "));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |handle: std::thread::JoinHandle<String>| handle.join().unwrap_or_default();
    Ok(Output { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) })
}

fn reader(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn command(netns: &Netns, cpu: Option<usize>, argv: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    // A group of its own: Ctrl-C is for us, who end it in order.
    command.process_group(0);
    command.arg(format!("--net={}", netns.path().display())).arg("--");
    if let Some(cpu) = cpu {
        command.args(["taskset", "--cpu-list", &cpu.to_string()]);
    }
    command.args(argv);
    command
}
