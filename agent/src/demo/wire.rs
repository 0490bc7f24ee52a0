//! Looking at the wire: a packet capture on the node's end of a pod's veth.

use crate::sandbox::{Pod, Process, Sandbox};
use anyhow::{Context, Result, bail};
use std::{fs, path::PathBuf, time::Duration};

/// What must not be seen in clear.
pub(super) const SECRET: &str = "weft-demo-secret-0123456789";

/// A running capture.
pub(super) struct Capture {
    process: Process,
    file: PathBuf,
}

/// What was captured.
#[derive(Debug)]
pub(super) struct Seen {
    /// TCP packets with payload.
    pub(super) packets: usize,
    /// Payloads that start a TLS application data record.
    pub(super) tls_records: usize,
    /// Packets with the secret.
    pub(super) secrets: usize,
    /// TCP packets with payload that neither come from nor go to the application's port.
    pub(super) elsewhere: usize,
    /// A hex dump of one payload's start.
    pub(super) sample: String,
}

impl Capture {
    pub(super) fn start(sandbox: &Sandbox, pod: &Pod) -> Result<Self> {
        let file = sandbox.dir().join("wire.pcap");
        let (node, log) = (&sandbox.nodes()[pod.node], sandbox.dir().join("tcpdump.log"));
        let path = file.to_str().context("path")?;
        let argv = ["tcpdump", "--immediate-mode", "-i", &pod.host_veth, "-U", "-s", "0", "-w", path, "tcp"];
        let mut process = Process::start(&node.netns, None, &argv, &[], &log)?;
        let listening = || fs::read_to_string(&log).unwrap_or_default().contains("listening on");
        Sandbox::wait_until("tcpdump to listen", Duration::from_secs(10), || {
            listening() || !process.is_running()
        })?;
        if !listening() {
            bail!("tcpdump (Debian package tcpdump) did not start: {}", process.log_tail());
        }
        Ok(Self { process, file })
    }

    /// Ends it. `port` is the application's.
    pub(super) fn finish(mut self, port: u16) -> Result<Seen> {
        self.process.stop(Duration::from_secs(10))?;
        Ok(read(&fs::read(&self.file)?, port))
    }
}

/// Reads a little-endian pcap file of Ethernet frames.
fn read(pcap: &[u8], port: u16) -> Seen {
    let mut seen = Seen { packets: 0, tls_records: 0, secrets: 0, elsewhere: 0, sample: String::new() };
    let mut rest = pcap.get(24..).unwrap_or_default();
    while let Some((header, tail)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((frame, tail)) = tail.split_at_checked(length) else { break };
        rest = tail;
        if let Some((ports, payload)) = tcp_payload(frame).filter(|(_, payload)| !payload.is_empty()) {
            seen.elsewhere += usize::from(ports.0 != port && ports.1 != port);
            seen.count(payload);
        }
    }
    seen
}

impl Seen {
    fn count(&mut self, payload: &[u8]) {
        self.packets += 1;
        self.secrets += usize::from(payload.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()));
        if payload.starts_with(&[0x17, 0x03, 0x03]) {
            self.tls_records += 1;
            if self.sample.is_empty() {
                let hex: Vec<String> = payload.iter().take(24).map(|b| format!("{b:02x}")).collect();
                self.sample = format!("{} …", hex.join(" "));
            }
        }
    }
}

/// (source port, destination port) and payload of a TCP segment over IPv4 or IPv6 without extension headers.
fn tcp_payload(frame: &[u8]) -> Option<((u16, u16), &[u8])> {
    let (ethernet, packet) = frame.split_at_checked(14)?;
    let (header, total) = match [ethernet[12], ethernet[13]] {
        [0x08, 0x00] => (
            usize::from(packet.first()? & 0xf) * 4,
            usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?])),
        ),
        [0x86, 0xdd] => (40, 40 + usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]))),
        _ => return None,
    };
    // A segment that offloading made longer than 64 KiB has a total length of 0: take all there is.
    let end = if total > header { total.min(packet.len()) } else { packet.len() };
    let tcp = packet.get(header..end)?;
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    Some(((port(0)?, port(2)?), tcp.get(offset..)?))
}
