//! The proxies that are compared: how each is configured and started.
//!
//! All get the same job: HTTP/1.1 and h2c on `http` (h2c alone on `h2c` where a peer cannot tell them apart), TLS 1.3
//! with an ECDSA P-256 certificate on `https`, kept upstream connections, no session tickets, no access log unless the
//! scenario has one.

mod envoy;
mod haproxy;
mod nginx;
mod weft;

use super::place::Place;
use ::weft::sandbox::{Process, Sandbox};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub(super) enum Who {
    Direct,
    Weft,
    Envoy,
    Nginx,
    Haproxy,
}

impl Who {
    /// Everyone, in the order of the tables.
    pub(super) const ALL: [Self; 5] = [Self::Direct, Self::Weft, Self::Envoy, Self::Nginx, Self::Haproxy];

    /// Name in tables and results.
    #[must_use]
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Weft => "weft",
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Ports of the backends.
pub(super) const BACKEND: Ports = Ports { http: 9000, https: 9443, h2c: 9002 };

/// Where somebody listens, all on 127.0.0.1 of the benchmark's namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// HTTP.
    pub http: u16,
    /// HTTPS.
    pub https: u16,
    /// HTTP/2 in clear, to the gRPC backend.
    pub h2c: u16,
}

impl Ports {
    /// Each participant has a hundred.
    #[must_use]
    pub(super) const fn of(who: Who) -> Self {
        let base = 10_000 + 100 * who as u16;
        match who {
            Who::Direct => BACKEND,
            _ => Self { http: base, https: base + 1, h2c: base + 2 },
        }
    }
}

/// How many routes, and of what shape. All lead to the same backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Routes {
    /// Everything, one route.
    One,
    /// Hosts × path prefixes of each.
    Hosts(usize, usize),
    /// Path prefixes of any host.
    Prefixes(usize),
}

impl Routes {
    /// `(host, path prefix)` of every route; no host is any host.
    #[must_use]
    pub(super) fn all(self) -> Vec<(Option<String>, String)> {
        match self {
            Self::One => vec![(None, "/".into())],
            Self::Hosts(hosts, paths) => (0..hosts)
                .flat_map(|h| {
                    (0..paths).map(move |p| (Some(format!("h{h:05}.bench.test")), format!("/p{p:05}")))
                })
                .collect(),
            Self::Prefixes(n) => (0..n).map(|p| (None, format!("/p{p:05}"))).collect(),
        }
    }

    /// Requests that use up to 128 routes, evenly spread over the whole list; empty for [`Routes::One`].
    #[must_use]
    pub(super) fn mix(self) -> Vec<(String, String)> {
        if self == Self::One {
            return Vec::new();
        }
        let all = self.all();
        let step = (all.len() / 128).max(1);
        all.into_iter()
            .step_by(step)
            .map(|(host, path)| (host.unwrap_or_else(|| "bench.test".into()), format!("{path}/item")))
            .collect()
    }
}

/// What a proxy is to serve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup<'a> {
    /// Worker threads or processes.
    pub workers: usize,
    /// Routes.
    pub routes: Routes,
    /// Access log to a file.
    pub log: bool,
    /// Certificate, key (both PEM).
    pub certificate: (&'a Path, &'a Path),
    /// Directory of this participant in this scenario; empty.
    pub dir: &'a Path,
    /// The build of Weft that takes part.
    pub weft: &'a Path,
}

impl Setup<'_> {
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// Starts a participant and waits until it serves; [`Who::Direct`] has nothing to start.
///
/// # Errors
/// When it does not serve within 60 s; the error carries the end of its log.
pub(super) fn start(who: Who, place: &Place, setup: &Setup<'_>) -> Result<Option<Process>> {
    let argv = match who {
        Who::Direct => return Ok(None),
        Who::Weft => weft::prepare(setup)?,
        Who::Envoy => envoy::prepare(setup)?,
        Who::Nginx => nginx::prepare(setup)?,
        Who::Haproxy => haproxy::prepare(setup)?,
    };
    let (ports, log) = (Ports::of(who), setup.dir.join("output.log"));
    let mut process =
        place.serve(&argv, ports.http, &log).with_context(|| format!("start {}", who.name()))?;
    let mix = setup.routes.mix();
    let (host, path) = mix.last().map_or(("bench.test", "/"), |(h, p)| (h, p));
    let url = format!("http://127.0.0.1:{}{path}", ports.http);
    let host = format!("Host: {host}");
    let query =
        super::place::argv(&["curl", "-s", "-f", "-o", "/dev/null", "--noproxy", "*", "-H", &host, &url]);
    let what = format!("{} to serve {url}", who.name());
    Sandbox::wait_until(&what, Duration::from_secs(60), || {
        !process.is_running() || place.run(&query, Duration::from_secs(20)).is_ok_and(|o| o.code == 0)
    })
    .with_context(|| process.log_tail())?;
    if !process.is_running() {
        anyhow::bail!("{} ended: {}", who.name(), process.log_tail());
    }
    Ok(Some(process))
}

/// The nginx behind all of them: 128 bytes on every path, 1 KiB and 64 KiB from files.
///
/// # Errors
/// File system.
pub(super) fn backend(setup: &Setup<'_>, place: &Place) -> Result<Vec<Process>> {
    let argv = nginx::backend(setup)?;
    let nginx = place.serve(&argv, BACKEND.http, &setup.dir.join("backend.log"))?;
    let listen = format!("127.0.0.1:{}", BACKEND.h2c);
    let me = std::env::current_exe()?;
    let argv = super::place::argv(&[me.to_str().context("path")?, "tool", "h2c", "--listen", &listen]);
    let grpc = place.serve(&argv, BACKEND.h2c, &setup.dir.join("h2c.log"))?;
    Ok(vec![nginx, grpc])
}

pub(super) use nginx::file_server;

/// Version line of each program, for the report.
#[must_use]
pub(super) fn versions() -> Vec<(String, String)> {
    let weft = crate::weft_binary().map(|p| p.display().to_string()).unwrap_or_default();
    let envoy = envoy::binary().map(|p| p.display().to_string()).unwrap_or_default();
    let line = |program: &str, args: &[&str]| -> String {
        let Ok(output) = std::process::Command::new(program).args(args).output() else { return "-".into() };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().find(|l| l.contains(|c: char| c.is_ascii_digit())).unwrap_or("-").trim().to_owned()
    };
    [
        ("weft", line(&weft, &["--version"])),
        ("Envoy", line(&envoy, &["--version"])),
        ("nginx", line("nginx", &["-v"])),
        ("HAProxy", line("haproxy", &["-v"])),
        ("wrk", line("wrk", &["-v"])),
        ("h2load", line("h2load", &["--version"])),
        ("iperf3", line("iperf3", &["--version"])),
    ]
    .map(|(name, version)| (name.to_owned(), version))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_their_number_and_a_spread_mix() {
        for (routes, count) in [
            (Routes::One, 1),
            (Routes::Hosts(500, 2), 1000),
            (Routes::Hosts(500, 20), 10_000),
            (Routes::Prefixes(1000), 1000),
        ] {
            assert_eq!(routes.all().len(), count);
            let mix = routes.mix();
            assert!(mix.len() <= 143, "{}", mix.len());
            assert_eq!(mix.is_empty(), routes == Routes::One);
        }
    }
}
