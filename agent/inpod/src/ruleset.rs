//! PURE: what a pod excludes from capture → the nftables ruleset of its network namespace, as text for `nft -f`.
//!
//! Only a connection's first SYN decides, so connections that exist when a pod joins stay as they are. What
//! happens to it, with `tproxy` ([`Mechanism::Tproxy`]):
//!
//! ```text
//! the pod calls out            mangle_output: not exempt → `ct mark 0x111`, and with it `meta mark 0x111`
//!   (to SERVICE:80)              → routes.rs sends every packet of the connection to lo
//!                              mangle_prerouting, on lo: marked → `tproxy to :15001`
//!                                → accepted there; the socket's own address is SERVICE:80
//! the pod is called            mangle_prerouting, not on lo, not exempt: does a socket of the application listen?
//!   (to POD:8080)                yes → `tproxy to :15006`; the socket's own address is POD:8080
//!                                no  → RST
//! the agent calls the          mangle_prerouting, on lo, the agent's mark: `ct mark 0x111`
//!   application                  → the application's replies, addressed to the client, get `meta mark 0x111` in
//!   (from CLIENT to POD:8080)      mangle_output and come back over lo
//! strict                       unprotected, unprotected_output: what is older than the capture and came to a port on which the
//!                              application listens is reset, in both directions
//! guard_input, guard_output    what should have been captured by the above and was not is dropped
//! later                        a packet that no socket knows goes to the listener that its SYN went to
//! ```
//!
//! The last is for SYN cookies, by which a kernel answers SYNs without remembering them: under a flood, or always with
//! `net.ipv4.tcp_syncookies=2`, which any pod may ask for. Then it is the client's ACK that makes the connection. It has the
//! application's address and port, so left to itself it would make one of the application's own listener, past us.
//!
//! Addresses and ports stay as the application made them. That matters: `redirect` folds all destinations into one
//! local address, and then SYNs to one destination meet sockets in TIME_WAIT of another and are dropped, for
//! seconds, above some 500 new connections a second.
//!
//! Conntrack is used, without translation: to remember by its mark which connections go over lo (an outgoing packet
//! tells of its connection nothing else that a rule could see), and because it then knows every connection by its
//! true addresses: an application's own firewall in the pod sees what it saw before, and an agent of the version
//! that redirected finds the destination of a connection that it takes over.
//!
//! A kernel without `nft_tproxy` or `nft_fib_inet` gets the same table with `redirect` in NAT chains; with `nft_socket` dead
//! ports are refused there too.
//!
//! While the node has no agent, the holder lets the node's own addresses past capture to the ports of declared probes
//! ([`while_away`]): each table says in its sets which, so that the holder needs to know nothing of pods.
//!
//! Surprising, and known: a captured connection's socket on the agent's side has the *destination's* port as its
//! local one, in the pod. An application that begins to listen on 0.0.0.0:80 without SO_REUSEADDR while it has (or
//! had, for a minute) a connection to somebody's port 80 gets EADDRINUSE.

use crate::capture_config::{CaptureConfig, WhileAway};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Where the pod's outbound connections are captured.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where inbound connections other than HBONE are captured.
pub const INBOUND_PORT: u16 = 15006;
/// Where HBONE arrives; never captured.
pub const HBONE_PORT: u16 = 15008;
/// SO_MARK of every socket that the agent opens in a pod: such packets are skipped.
pub const AGENT_MARK: u32 = 0x539;
/// Mark (and conntrack mark) of connections whose packets go over `lo` although their destination is elsewhere: the pod's
/// captured calls, and the application's replies to the agent.
pub const LOCAL_MARK: u32 = 0x111;

const FIRST_SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn"; // ECE and CWR may be set on it (RFC 3168)
const LATER: &str = "tcp flags & (syn | rst | ack) == ack"; // with data or a FIN, too, it may answer a SYN cookie
const TCP: &str = "meta l4proto tcp"; // nft wants to see it in each rule with tproxy
const RESET: &str = "reject with tcp reset";

/// How a captured connection comes to the agent. In the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// As it is: addresses untouched, dead ports refused. Needs `nft_tproxy`, `nft_socket` and `nft_fib_inet`.
    Tproxy,
    /// Its destination rewritten; dead ports refused. Needs `nft_socket`.
    RedirectListening,
    /// Its destination rewritten; a dead port is noticed only by the agent, after the handshake.
    Redirect,
}

impl Mechanism {
    /// Best first.
    pub const ALL: [Self; 3] = [Self::Tproxy, Self::RedirectListening, Self::Redirect];

    /// The name in reports: `tproxy`, `redirect-listening`, `redirect`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tproxy => "tproxy",
            Self::RedirectListening => "redirect-listening",
            Self::Redirect => "redirect",
        }
    }
}

/// What the table does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// New connections are captured.
    Capture,
    /// New connections are not; those that were go on.
    Drain,
}

/// What the pod and its kernel are like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// How to capture.
    pub mechanism: Mechanism,
    /// Whether the pod has IPv6 at all.
    pub ipv6: bool,
    /// Whether redirected connections may live (an agent of an earlier version captured them). With the last NAT chain
    /// goes the kernel's address translation, and with it every such connection.
    pub translated: bool,
    /// TCP ports on which its application listens now. Of a connection that is older than the capture nothing else tells
    /// that the pod was called by it; asked for only where the pod is strict.
    pub listening: BTreeSet<u16>,
}

/// One transaction that replaces our table by the one described: no packet sees the pod without it.
#[must_use]
pub fn ruleset(config: &CaptureConfig, mode: Mode, pod: Surroundings) -> String {
    let mut table = Table { text: removal() + "table inet weft {\n", pod };
    table.loopback();
    match mode {
        Mode::Drain => table.mangle(&[], &[]),
        Mode::Capture => {
            table.exempt(config);
            table.unprotected(config);
            table.capture(config);
            table.guards();
        }
    }
    table.translation(mode);
    table.text + "}\n"
}

/// One transaction after which our table is gone, whether it was there or not.
#[must_use]
pub(crate) fn removal() -> String {
    // Deleting what is not there is an error.
    "add table inet weft\ndelete table inet weft\n".to_owned()
}

/// One transaction that takes back what [`while_away`] has done.
pub(crate) const NOBODY_PAST: &str = "flush chain inet weft while_away\n";

/// One transaction after which the node's own addresses reach the ports of declared probes directly, until the table is
/// replaced. Refused where there is no table, or one of a version that has no such chain.
#[must_use]
pub(crate) fn while_away(ipv6: bool) -> String {
    let mut text = NOBODY_PAST.to_owned();
    for family in if ipv6 { &["ip", "ip6"][..] } else { &["ip"] } {
        let from_node = format!("{family} saddr @node_{family}");
        text.push_str(&format!("add rule inet weft while_away {from_node} tcp dport @probed accept\n"));
    }
    text
}

/// The smallest transaction that a kernel refuses exactly when it lacks what `mechanism` needs. For a check only.
#[must_use]
pub(crate) fn probe(mechanism: Mechanism) -> Option<String> {
    let rule = match mechanism {
        Mechanism::Tproxy => "socket transparent <= 1 fib daddr type local tproxy to :1",
        Mechanism::RedirectListening => "socket wildcard <= 1 accept",
        Mechanism::Redirect => return None,
    };
    let hook = "type filter hook prerouting priority mangle";
    Some(format!("table inet weft-probe {{\nchain probe {{\n{hook}\n{FIRST_SYN} {rule}\n}}\n}}\n"))
}

struct Table {
    text: String,
    pod: Surroundings,
}

impl Table {
    /// A chain: where it hooks in (`None`: it is jumped to), and its rules.
    fn chain<R: AsRef<str>>(&mut self, name: &str, hook: Option<&str>, rules: &[R]) {
        let hook = hook.map(|hook| format!("type {hook}; policy accept")).into_iter();
        let lines: Vec<String> = hook.chain(rules.iter().map(|r| r.as_ref().to_owned())).collect();
        let body: String = lines.iter().map(|line| format!("    {line}\n")).collect();
        self.text.push_str(&format!("  chain {name} {{\n{body}  }}\n"));
    }

    fn tproxy(&self) -> bool {
        self.pod.mechanism == Mechanism::Tproxy
    }

    /// What holds while any captured connection lives: first SYNs that came over `lo`.
    fn loopback(&mut self) {
        let mut rules = vec![
            format!("tcp dport {{ {OUTBOUND_PORT}, {INBOUND_PORT} }} {RESET}"), // it would go in circles
            // The port that the client has for a captured connection, to the same addresses (see `transport::connect` of the
            // data plane, which takes another soon). Silence: an answer, addressed to the client, would reach just it.
            "ct state != new drop".to_owned(),
        ];
        if self.tproxy() {
            // Two effects. A socket in TIME_WAIT that has these addresses ends, in exchange for the listener, as nft_tproxy
            // does; the listener of 15008 is not transparent, so the rule stops there and the SYN goes on to the application.
            // A captured connection that has them is transparent: the rule goes on to its end.
            rules.push(format!("{TCP} tproxy to :{HBONE_PORT} drop"));
            self.chain(
                "to_agent",
                None,
                &[format!("{TCP} tproxy to :{OUTBOUND_PORT} accept"), RESET.to_owned()],
            );
        }
        rules.push(set_mark("ct"));
        self.chain("from_agent", None, &rules);
    }

    /// The two chains that mark; `arriving` and `leaving` are what capture adds: rules for first SYNs.
    fn mangle(&mut self, arriving: &[String], leaving: &[String]) {
        // The sender's mark is still there over lo only: crossing a veth clears it.
        let mut first = vec![format!("iifname lo {} goto from_agent", mark_is("meta", AGENT_MARK))];
        if self.tproxy() {
            // Either will do: a foreign rule that changed one must not bring the SYN to a listener of the application's, for
            // which a wildcard address is as good as its own.
            let kinds = ["meta", "ct"];
            first.extend(kinds.map(|kind| format!("iifname lo {} goto to_agent", mark_is(kind, LOCAL_MARK))));
        }
        first.extend_from_slice(arriving);
        self.chain("first_syn", None, &first);
        let hook = Some("filter hook prerouting priority -150");
        let mut rules = vec![format!("{FIRST_SYN} goto first_syn")];
        // A redirect needs no such rule: conntrack remembers where the SYN went, and a cookie is good for that port only.
        if self.text.contains("  chain later {") {
            rules.push(format!("{LATER} goto later"));
        }
        if self.text.contains("  chain datagrams {") {
            rules.push("iifname != lo meta l4proto udp goto datagrams".to_owned());
        }
        self.chain("mangle_prerouting", hook, &rules);
        let mut rules = vec!["oifname lo accept".to_owned()]; // it goes where the mark would send it
        rules.push(format!("{} accept", mark_is("meta", AGENT_MARK)));
        rules.extend_from_slice(leaving);
        // Where conntrack does not see the packet this does not match, and guard_output drops the SYN.
        rules.push(format!("{} {}", mark_is("ct", LOCAL_MARK), set_mark("meta")));
        self.chain("mangle_output", Some("route hook output priority -150"), &rules);
    }

    fn capture(&mut self, config: &CaptureConfig) {
        let own = format!("tcp dport {{ {OUTBOUND_PORT}, {INBOUND_PORT} }}");
        let mut arriving = vec![
            // Our plaintext ports are reached by capture only: a caller of its own would choose what the agent takes for the
            // original destination. One over lo that was redirected there has IPS_DST_NAT.
            format!("iifname lo {own} ct status & dnat == 0 {RESET}"),
            format!("iifname != lo {own} {RESET}"),
            // A client that takes the port of the agent's connection in its name (of a range that clients rarely take). Silence
            // again, until that connection ends or the client takes another port: the two would be one to the kernel, and an
            // answer would go over lo and end the agent's connection.
            format!("iifname != lo {} drop", mark_is("ct", LOCAL_MARK)),
            "jump exempt_inbound".to_owned(),
        ];
        match self.pod.mechanism {
            Mechanism::Tproxy => {
                self.listening();
                self.later(config);
                arriving.extend([
                    "socket wildcard <= 1 goto take".to_owned(),    // a listener
                    "socket transparent <= 1 goto twin".to_owned(), // what is no full socket
                    RESET.to_owned(),
                ]);
            }
            Mechanism::RedirectListening => arriving.extend([
                "socket wildcard <= 1 accept".to_owned(),
                "socket transparent <= 1 accept".to_owned(), // a twin: the agent finds out
                RESET.to_owned(),
            ]),
            Mechanism::Redirect => {}
        }
        let mut leaving = if self.tproxy() {
            vec![format!("{FIRST_SYN} jump exempt_outbound"), format!("{FIRST_SYN} {}", set_mark("ct"))]
        } else {
            Vec::new()
        };
        if config.strict {
            // Not a reset: by one the caller is told.
            leaving.insert(
                0,
                format!(
                    "tcp flags & rst == 0 tcp sport @older {} jump unprotected_output",
                    not_marked("ct", LOCAL_MARK)
                ),
            );
        }
        self.mangle(&arriving, &leaving);
    }

    /// What a strict pod does not take, besides new connections in clear.
    fn unprotected(&mut self, config: &CaptureConfig) {
        if config.drop_udp {
            let mut rules =
                vec!["iifname lo accept".to_owned(), "ct state established,related accept".to_owned()];
            rules.extend(
                exclusions(&config.inbound_ports, &config.inbound_cidrs, "saddr", self.pod.ipv6)
                    .into_iter()
                    .map(|rule| rule.replace("tcp dport", "udp dport")),
            );
            rules.push("drop".to_owned());
            self.chain("datagrams", None, &rules);
        }
        if !config.strict {
            return;
        }
        let ports = self.pod.listening.iter().map(u16::to_string).collect();
        self.set("older", "inet_service", ports);
        if !self.tproxy() {
            let rules = [
                "jump exempt_inbound".to_owned(),
                "ct status & dnat != 0 accept".to_owned(), // captured
                format!("tcp dport @older {RESET}"),
            ];
            self.chain("later", None, &rules);
        }
        // The other direction: a server that streams, or whose client only listens. What the agent has accepted in the
        // application's name is transparent.
        let mut rules = exclusions(&config.inbound_ports, &config.inbound_cidrs, "daddr", self.pod.ipv6);
        rules.iter_mut().for_each(|rule| *rule = rule.replace("tcp dport", "tcp sport"));
        if self.tproxy() {
            rules.push("socket transparent 1 accept".to_owned());
        }
        rules.push(RESET.to_owned());
        self.chain("unprotected_output", None, &rules);
    }

    /// Takes a SYN for which a socket of the application was found.
    fn listening(&mut self) {
        // Without a transparent listener `tproxy` does not match.
        self.chain("take", None, &[format!("{TCP} tproxy to :{INBOUND_PORT} accept"), RESET.to_owned()]);
        // The lookup found a socket in TIME_WAIT, or a handshake under way, with just these addresses, and says nothing
        // of a listener then. Left to itself, TIME_WAIT would hand the SYN to the application's listener, past us.
        let mut rules = vec![format!("{TCP} tproxy ip to ip daddr")];
        if self.pod.ipv6 {
            rules.push(format!("{TCP} tproxy ip6 to ip6 daddr"));
        }
        rules.extend([
            // If the application listens, nft_tproxy has now ended the TIME_WAIT in exchange for that listener, and has not
            // taken it, since it is not transparent: this lookup finds it.
            "socket wildcard <= 1 goto take".to_owned(),
            // It does not: TIME_WAIT ends in exchange for our listener, which is now the packet's socket.
            format!("{TCP} tproxy to :{INBOUND_PORT}"),
            format!("socket wildcard <= 1 {RESET}"),
            // A handshake under way: a SYN that comes again.
            "accept".to_owned(),
        ]);
        self.chain("twin", None, &rules);
    }

    /// Packets after the first SYN. `tproxy` leaves one to its connection if there is one, the application's own included.
    fn later(&mut self, config: &CaptureConfig) {
        let local = mark_is("meta", LOCAL_MARK);
        let mut rules = vec![
            format!("iifname lo {local} {TCP} tproxy to :{OUTBOUND_PORT} accept"),
            "jump exempt_inbound".to_owned(),
            // What the pod forwards (a VM's, a nested container's) has no socket here, and the kernel drops it if it gets one.
            "ct status & (snat | dnat) != 0 accept".to_owned(),
            format!("fib daddr type local {TCP} tproxy to :{INBOUND_PORT} accept"),
            // Neither a connection has it nor do we listen any more: a cookie outlives its listener by two minutes. A connection
            // of the application's has an address of its own; what has none is a listener.
            format!("fib daddr type local socket wildcard 1 {RESET}"),
        ];
        if config.strict {
            // Neither did our listener take it nor has it a connection that we have: it is older than the capture.
            rules.push(format!("fib daddr type local tcp dport @older {RESET}"));
        }
        self.chain("later", None, &rules);
    }

    /// Fail closed: a first SYN that the rules above should have taken.
    fn guards(&mut self) {
        let mut input = Vec::new();
        if self.tproxy() {
            // The packet's socket is the one that tproxy gave it.
            input.extend(["jump exempt_inbound", "socket transparent 1 accept", "drop"].map(str::to_owned));
        } else {
            // After the redirect it has our port.
            input.extend([
                "jump exempt_inbound".to_owned(),
                format!("tcp dport {INBOUND_PORT} accept"),
                "drop".to_owned(),
            ]);
        }
        self.chain("not_taken", None, &input);
        let rule = [format!("{FIRST_SYN} goto not_taken")];
        self.chain("guard_input", Some("filter hook input priority 0"), &rule);
        // Not at the output hook: a packet that was turned to `lo` still shows its old interface there.
        let rules = [format!("{FIRST_SYN} jump exempt_outbound"), format!("{FIRST_SYN} drop")];
        self.chain("guard_output", Some("filter hook postrouting priority 0"), &rules);
    }

    /// Chains that accept what is not captured, jumped to by capture and by the guard alike.
    fn exempt(&mut self, config: &CaptureConfig) {
        let inbound = [
            "iifname lo accept".to_owned(),
            format!("tcp dport {HBONE_PORT} accept"), // has a listener of its own
        ];
        let outbound = [
            // To itself: 127/8, ::1 and the pod's own addresses. Also what has just been turned there.
            "oifname lo accept".to_owned(),
            format!("{} accept", mark_is("meta", AGENT_MARK)),
        ];
        let excluded = |ports, cidrs, side| exclusions(ports, cidrs, side, self.pod.ipv6);
        let more = excluded(&config.inbound_ports, &config.inbound_cidrs, "saddr");
        let away = ["jump while_away".to_owned()];
        let rules: Vec<String> = inbound.into_iter().chain(more).chain(away).collect();
        let more = excluded(&config.outbound_ports, &config.outbound_cidrs, "daddr");
        let leaving: Vec<String> = outbound.into_iter().chain(more).collect();
        self.away(&config.while_away);
        self.chain("exempt_inbound", None, &rules);
        self.chain("exempt_outbound", None, &leaving);
    }

    /// The sets that [`while_away`] speaks of, and its chain, empty: an agent puts the table in place, so one is there.
    fn away(&mut self, away: &WhileAway) {
        let ports = away.ports.iter().map(u16::to_string);
        self.set("probed", "inet_service", ports.collect());
        let of = |v6: bool| away.node.iter().filter(move |ip| ip.is_ipv6() == v6).map(ToString::to_string);
        self.set("node_ip", "ipv4_addr", of(false).collect());
        if self.pod.ipv6 {
            self.set("node_ip6", "ipv6_addr", of(true).collect());
        }
        self.chain::<&str>("while_away", None, &[]);
    }

    fn set(&mut self, name: &str, kind: &str, elements: Vec<String>) {
        // `elements = { }` is a syntax error.
        let elements = match &*elements {
            [] => String::new(),
            all => format!(" elements = {{ {} }}", all.join(", ")),
        };
        self.text.push_str(&format!("  set {name} {{ type {kind};{elements} }}\n"));
    }

    /// The NAT chains: what captures where `tproxy` is missing, and what keeps redirected connections alive.
    fn translation(&mut self, mode: Mode) {
        if self.tproxy() && !self.pod.translated {
            return;
        }
        let redirected = !self.tproxy() && mode == Mode::Capture;
        for (chain, hook, exempt, port) in [
            ("nat_prerouting", "prerouting", "exempt_inbound", INBOUND_PORT),
            ("nat_output", "output", "exempt_outbound", OUTBOUND_PORT),
        ] {
            let rules = [format!("{FIRST_SYN} jump {exempt}"), format!("{FIRST_SYN} redirect to :{port}")];
            let hook = format!("nat hook {hook} priority -100");
            self.chain(chain, Some(&hook), if redirected { &rules } else { &[] });
        }
    }
}

fn exclusions(ports: &BTreeSet<u16>, cidrs: &BTreeSet<IpNet>, side: &str, ipv6: bool) -> Vec<String> {
    let mut rules = Vec::new();
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        rules.push(format!("tcp dport {{ {} }} accept", ports.join(", ")));
    }
    for cidr in cidrs {
        match cidr {
            IpNet::V4(net) => rules.push(format!("ip {side} {net} accept")),
            // Without IPv6 no such packet exists, and an nft without IPv6 would refuse the rule.
            IpNet::V6(net) if ipv6 => rules.push(format!("ip6 {side} {net} accept")),
            IpNet::V6(_) => {}
        }
    }
    rules
}

/// The bits 0xfff of the mark are ours; the others belong to the CNI.
fn mark_is(kind: &str, mark: u32) -> String {
    format!("{kind} mark & 0xfff == {mark:#x}")
}

fn not_marked(kind: &str, mark: u32) -> String {
    format!("{kind} mark & 0xfff != {mark:#x}")
}

fn set_mark(kind: &str) -> String {
    format!("{kind} mark set {kind} mark & 0xfffff000 | {LOCAL_MARK:#x}")
}

#[cfg(test)]
#[path = "ruleset/tests.rs"]
mod tests;
