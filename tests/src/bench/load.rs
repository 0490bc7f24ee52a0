//! Load generators and what they report.

use super::place::{Place, argv};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fs, path::Path, time::Duration};

/// What a load generator counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Load {
    /// Requests (connections, handshakes) that succeeded.
    pub requests: u64,
    /// Those that failed, whatever the reason.
    pub errors: u64,
    /// Seconds that the load lasted.
    pub seconds: f64,
    /// Payload bytes, where the tool counts them.
    #[serde(default)]
    pub bytes: u64,
    /// Median latency in microseconds, 0 when not measured.
    #[serde(default)]
    pub p50_us: f64,
    /// 99th percentile.
    #[serde(default)]
    pub p99_us: f64,
    /// Every good request of a fixed schedule: when it was due (`CLOCK_MONOTONIC`) and its latency, in ns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub each: Vec<(u64, u64)>,
}

/// A run of wrk.
#[derive(Clone, Debug)]
pub(super) struct Wrk<'a> {
    /// URL.
    pub url: String,
    /// Connections.
    pub connections: u32,
    /// Threads.
    pub threads: u32,
    /// Seconds, whole.
    pub seconds: u64,
    /// `Connection: close` on every request.
    pub close: bool,
    /// `(host, path)` pairs sent in turn; the URL's own when empty.
    pub mix: &'a [(String, String)],
    /// Where the script may be written.
    pub dir: &'a Path,
}

/// What wrk runs at its end: one line of JSON on standard output.
const REPORT: &str = r#"
done = function(s, latency)
  local e = s.errors
  io.write(string.format('JSON{"requests":%d,"errors":%d,"seconds":%.6f,"bytes":%d,"p50_us":%.1f,"p99_us":%.1f}\n',
    s.requests - e.status, e.connect + e.read + e.write + e.status + e.timeout, s.duration / 1e6, s.bytes,
    latency:percentile(50), latency:percentile(99)))
end
"#;

impl Wrk<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// When wrk cannot run or prints something else.
    pub(super) fn run(&self, place: &Place) -> Result<Load> {
        let script = self.dir.join(format!("wrk-{}.lua", if self.mix.is_empty() { "plain" } else { "mix" }));
        fs::write(&script, format!("{}{REPORT}", self.mix_script()))?;
        let (t, c, d) = (format!("-t{}", self.threads), format!("-c{}", self.connections), self.seconds);
        let duration = format!("-d{d}s");
        let mut words =
            vec!["wrk", &t, &c, &duration, "--latency", "-s", script.to_str().context("path")?, &self.url];
        if self.close {
            words.extend(["-H", "Connection: close"]);
        }
        let text = place.run(&argv(&words), Duration::from_secs(d + 60))?.ok()?;
        let json = text.lines().find_map(|l| l.strip_prefix("JSON"));
        serde_json::from_str(json.with_context(|| format!("wrk printed {text}"))?).context("wrk's report")
    }

    /// Requests are rendered once, so that the mix costs wrk one table lookup a request.
    fn mix_script(&self) -> String {
        if self.mix.is_empty() {
            return String::new();
        }
        let lines: String =
            self.mix.iter().map(|(host, path)| format!("  {{{host:?}, {path:?}}},\n")).collect();
        format!(
            "local mix = {{\n{lines}}}\nlocal rendered, n = {{}}, 0\n\
             init = function() for i, m in ipairs(mix) do rendered[i] = wrk.format('GET', m[2], {{['Host'] = m[1]}}) end end\n\
             request = function() n = n % #rendered + 1; return rendered[n] end\n"
        )
    }
}

/// h2load: `args` besides the duration and the URL.
///
/// # Errors
/// When h2load cannot run or prints something else.
pub(super) fn h2load(place: &Place, args: &[&str], seconds: u64, url: &str) -> Result<Load> {
    let duration = format!("-D{seconds}");
    let mut words = vec!["h2load", &duration, "--warm-up-time=0"];
    words.extend(args);
    words.push(url);
    let text = place.run(&argv(&words), Duration::from_secs(seconds + 60))?.ok()?;
    parse_h2load(&text, seconds).with_context(|| format!("h2load printed {text}"))
}

fn parse_h2load(text: &str, seconds: u64) -> Result<Load> {
    let line = |start: &str| {
        text.lines().find_map(|l| l.strip_prefix(start)).with_context(|| format!("no line `{start}`"))
    };
    let number_before = |line: &str, word: &str| -> Result<u64> {
        let found = line.split(',').find_map(|part| part.trim().strip_suffix(word));
        Ok(found.with_context(|| format!("no number of `{word}`"))?.trim().parse()?)
    };
    let (requests, codes) = (line("requests:")?, line("status codes:")?);
    let good = number_before(codes, " 2xx")?;
    let mut errors = 0;
    for word in [" failed", " errored", " timeout"] {
        errors += number_before(requests, word)?;
    }
    for word in [" 3xx", " 4xx", " 5xx"] {
        errors += number_before(codes, word)?;
    }
    Ok(Load { requests: good, errors, seconds: seconds as f64, ..Load::default() })
}

/// iperf3 towards `ip:port`; `requests` stays 0, `bytes` is what the receiver got.
///
/// # Errors
/// When iperf3 cannot run or fails.
pub(super) fn iperf(place: &Place, ip: &str, port: u16, args: &[&str], seconds: u64) -> Result<Load> {
    let (time, port) = (seconds.to_string(), port.to_string());
    let mut words = vec!["iperf3", "-J", "-c", ip, "-p", &port, "-t", &time];
    words.extend(args);
    let output = place.run(&argv(&words), Duration::from_secs(seconds + 60))?;
    let json: serde_json::Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("iperf3 printed {}{}", output.stdout, output.stderr))?;
    if let Some(error) = json["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let sum = &json["end"]["sum_received"];
    let field = |name: &str| sum[name].as_f64().with_context(|| format!("iperf3 gave no {name}"));
    Ok(Load { bytes: field("bytes")? as u64, seconds: field("seconds")?, ..Load::default() })
}

/// One of our own tools ([`super::tools`]), which print a [`Load`] (or what else `T` is) as JSON.
///
/// # Errors
/// When it fails.
pub(super) fn own<T: DeserializeOwned>(place: &Place, args: &[&str], limit: Duration) -> Result<T> {
    let me = std::env::current_exe()?;
    let mut words = vec![me.to_str().context("path")?, "tool"];
    words.extend(args);
    let text = place.run(&argv(&words), limit)?.ok()?;
    serde_json::from_str(&text).with_context(|| format!("{args:?} printed {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_h2load() -> Result<()> {
        let text = "finished in 1.01s, 400.00 req/s, 26.75KB/s\n\
            requests: 403 total, 402 started, 401 done, 400 succeeded, 1 failed, 1 errored, 0 timeout\n\
            status codes: 400 2xx, 0 3xx, 2 4xx, 1 5xx\n";
        let load = parse_h2load(text, 1)?;
        assert_eq!((load.requests, load.errors), (400, 5));
        assert!(parse_h2load("nothing", 1).is_err());
        Ok(())
    }
}
