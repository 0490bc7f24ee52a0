//! PURE: what a pod excludes from capture → the nftables ruleset of its network namespace.
//!
//! ```text
//! mangle_prerouting  (filter, -150)  agent → application over lo: remember the connection (ct mark 0x111)
//! mangle_output      (route,  -150)  the application's replies on it: mark 0x111, so that routes.rs keeps them
//! nat_prerouting     (nat,    -100)  first SYN from outside → 15006
//! nat_output         (nat,    -100)  first SYN of the pod   → 15001
//! guard_input        (filter, 0)     at input: a SYN that should have been redirected and was not is dropped
//! guard_output       (filter, 0)     at postrouting: the same, outward
//! ```
//!
//! Only a connection's first SYN is looked at, so connections that exist when a pod joins stay as they are.
//! The guards make capture fail closed by construction: a packet that conntrack does not track (`notrack`,
//! a table of somebody else) is dropped instead of leaving in clear. A SYN that is redirected while nobody
//! listens is refused by the kernel.

use ipnet::IpNet;
use nftables::{
    batch::Batch,
    expr::{
        BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix,
        SetItem,
    },
    schema::{Chain, NfListObject, Nftables, Rule, Table},
    stmt::{JumpTarget, Mangle, Match, NAT, Operator, Reject, RejectType, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Where the pod's outbound connections are redirected to.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where inbound connections other than HBONE are redirected to.
pub const INBOUND_PORT: u16 = 15006;
/// Where HBONE arrives; never redirected.
pub const HBONE_PORT: u16 = 15008;
/// SO_MARK of every socket that the agent opens in a pod: such packets are skipped.
pub const AGENT_MARK: u32 = 0x539;
/// Mark (and conntrack mark) of connections from the agent to the application: their replies are kept local.
pub const REPLY_MARK: u32 = 0x111;

/// The bits of the mark that are ours; the others belong to the CNI.
const MASK: u32 = 0xfff;
pub(crate) const TABLE: &str = "weft";
/// FIN|SYN|RST|ACK and SYN of the TCP flags. ECE and CWR may be set on a first SYN (RFC 3168).
const FLAGS_LOOKED_AT: u32 = 0x17;
const FLAG_SYN: u32 = 0x02;
/// IPS_DST_NAT of `linux/netfilter/nf_conntrack_common.h`.
const CT_STATUS_DNAT: u32 = 1 << 5;
/// More entries than this in one annotation are refused: it bounds the transaction.
const MAX_ENTRIES: usize = 256;

/// What of a pod's traffic is left alone. From the pod's annotations `weft.dev/exclude-…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureConfig {
    /// `exclude-inbound-ports`: ports of the pod that are reached directly.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub inbound_ports: BTreeSet<u16>,
    /// `exclude-outbound-ports`: destination ports that the pod reaches directly.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub outbound_ports: BTreeSet<u16>,
    /// `exclude-inbound-cidrs`: sources that reach the pod directly.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub inbound_cidrs: BTreeSet<IpNet>,
    /// `exclude-outbound-cidrs`: destinations that the pod reaches directly.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub outbound_cidrs: BTreeSet<IpNet>,
}

/// An annotation that says nothing usable. The rest of the configuration holds; the entry captures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: \"{entry}\" {reason}")]
pub struct InvalidAnnotation {
    /// The annotation's name.
    pub annotation: String,
    /// The part that is wrong.
    pub entry: String,
    /// Why.
    pub reason: &'static str,
}

impl CaptureConfig {
    /// Reads `weft.dev/exclude-{inbound,outbound}-{ports,cidrs}`: comma-separated ports or CIDRs (an address
    /// stands for itself). Invalid entries are reported and left out, so that a typo captures too much rather
    /// than too little.
    pub fn from_annotations<'a>(
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> (Self, Vec<InvalidAnnotation>) {
        let known: BTreeMap<&str, &str> = annotations.into_iter().collect();
        let mut invalid = Vec::new();
        let config = Self {
            inbound_ports: entries(&known, "weft.dev/exclude-inbound-ports", port, &mut invalid),
            outbound_ports: entries(&known, "weft.dev/exclude-outbound-ports", port, &mut invalid),
            inbound_cidrs: entries(&known, "weft.dev/exclude-inbound-cidrs", cidr, &mut invalid),
            outbound_cidrs: entries(&known, "weft.dev/exclude-outbound-cidrs", cidr, &mut invalid),
        };
        (config, invalid)
    }
}

/// What the table does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// New connections are redirected.
    Capture,
    /// New connections are not; those that were go on. The NAT chains must stay while they live: with the last
    /// chain goes the kernel's address translation, and with it every redirected connection.
    Drain,
}

/// One transaction that replaces our table by the one described. `ipv6`: whether the pod has IPv6 at all.
#[must_use]
pub fn ruleset(config: &CaptureConfig, mode: Mode, ipv6: bool) -> Nftables<'static> {
    let mut build = Build { batch: replaced_table(), ipv6 };
    build.chain("mangle_prerouting", NfChainType::Filter, NfHook::Prerouting, -150);
    build.chain("mangle_output", NfChainType::Route, NfHook::Output, -150);
    build.chain("nat_prerouting", NfChainType::NAT, NfHook::Prerouting, -100);
    build.chain("nat_output", NfChainType::NAT, NfHook::Output, -100);
    build.marks();
    if mode == Mode::Capture {
        build.exempt("exempt_inbound", Side::Inbound, &config.inbound_ports, &config.inbound_cidrs);
        build.exempt("exempt_outbound", Side::Outbound, &config.outbound_ports, &config.outbound_cidrs);
        build.chain("guard_input", NfChainType::Filter, NfHook::Input, 0);
        // Not at the output hook: a packet that nat_output has turned to `lo` still shows its old interface there.
        build.chain("guard_output", NfChainType::Filter, NfHook::Postrouting, 0);
        build.own_ports();
        build.capture("nat_prerouting", "exempt_inbound", redirect(INBOUND_PORT));
        build.capture("nat_output", "exempt_outbound", redirect(OUTBOUND_PORT));
        build.capture("guard_input", "exempt_inbound", Statement::Drop(None));
        build.capture("guard_output", "exempt_outbound", Statement::Drop(None));
    }
    build.batch.to_nftables()
}

/// One transaction after which our table is gone, whether it was there or not.
#[must_use]
pub(crate) fn removal() -> Nftables<'static> {
    let mut batch = Batch::new();
    batch.add(table()); // deleting what is not there is an error
    batch.delete(table());
    batch.to_nftables()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Inbound,
    Outbound,
}

struct Build {
    batch: Batch<'static>,
    ipv6: bool,
}

impl Build {
    fn chain(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
        self.batch.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
    }

    fn rule(&mut self, chain: &'static str, statements: Vec<Statement<'static>>) {
        self.batch.add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: TABLE.into(),
            chain: chain.into(),
            expr: statements.into(),
            ..Rule::default()
        }));
    }

    fn marks(&mut self) {
        // Only packets over lo still carry the sender's mark here: crossing a veth clears it.
        self.rule("mangle_prerouting", vec![mark_is(MetaKey::Mark, AGENT_MARK), set_ct_mark()]);
        self.rule("mangle_output", vec![mark_is_not(AGENT_MARK), ct_mark_is(REPLY_MARK), set_meta_mark()]);
    }

    /// Our plaintext ports are reached by redirect only: a caller of its own would choose what the agent takes
    /// for the original destination, or send the agent in circles.
    fn own_ports(&mut self) {
        let ports = BTreeSet::from([OUTBOUND_PORT, INBOUND_PORT]);
        let reset = || Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)));
        // From outside before the redirect, which would make a call to 15001 one to 15006.
        let outside = iface(MetaKey::Iifname, Operator::NEQ);
        self.rule("mangle_prerouting", vec![outside, first_syn(), port_in(&ports), reset()]);
        // From the pod itself (and from the agent) after it.
        self.rule("guard_input", vec![first_syn(), port_in(&ports), not_redirected(), reset()]);
    }

    /// A chain that accepts what is not captured, jumped to by the redirect and by the guard alike.
    fn exempt(&mut self, name: &'static str, side: Side, ports: &BTreeSet<u16>, cidrs: &BTreeSet<IpNet>) {
        self.batch.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: name.into(),
            ..Chain::default()
        }));
        let allow = |this: &mut Self, condition| this.rule(name, vec![condition, Statement::Accept(None)]);
        match side {
            Side::Inbound => {
                allow(self, iface(MetaKey::Iifname, Operator::EQ));
                // After the redirect the guard sees our port; 15008 is never redirected.
                allow(self, port_in(&BTreeSet::from([INBOUND_PORT, HBONE_PORT])));
            }
            Side::Outbound => {
                // To itself: 127/8, ::1 and the pod's own addresses. Also what has just been redirected.
                allow(self, iface(MetaKey::Oifname, Operator::EQ));
                allow(self, mark_is(MetaKey::Mark, AGENT_MARK));
            }
        }
        if !ports.is_empty() {
            allow(self, port_in(ports));
        }
        let field = if side == Side::Inbound { "saddr" } else { "daddr" };
        let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) = cidrs.iter().partition(|c| matches!(c, IpNet::V4(_)));
        for cidr in v4 {
            allow(self, address_in("ip", field, cidr));
        }
        // Without IPv6 no such packet exists, and an nft without IPv6 would refuse the rule.
        let v6 = if self.ipv6 { v6 } else { Vec::new() };
        for cidr in v6 {
            allow(self, address_in("ip6", field, cidr));
        }
    }

    fn capture(&mut self, chain: &'static str, exempt: &'static str, verdict: Statement<'static>) {
        let jump = Statement::Jump(JumpTarget { target: exempt.into() });
        self.rule(chain, vec![first_syn(), jump]);
        self.rule(chain, vec![first_syn(), verdict]);
    }
}

fn table() -> NfListObject<'static> {
    NfListObject::Table(Table { family: NfFamily::INet, name: TABLE.into(), handle: None })
}

/// Add, delete, add: idempotent whether the table exists or not, and one transaction, so that no packet sees
/// the pod without it.
fn replaced_table() -> Batch<'static> {
    let mut batch = Batch::new();
    batch.add(table());
    batch.delete(table());
    batch.add(table());
    batch
}

const fn redirect(port: u16) -> Statement<'static> {
    Statement::Redirect(Some(NAT {
        addr: None,
        family: None,
        port: Some(Expression::Number(port as u32)),
        flags: None,
    }))
}

fn first_syn() -> Statement<'static> {
    compare(and(payload("tcp", "flags"), FLAGS_LOOKED_AT), Operator::EQ, Expression::Number(FLAG_SYN))
}

/// The packet comes from (or goes to) `lo`, or does not.
fn iface(key: MetaKey, op: Operator) -> Statement<'static> {
    compare(meta(key), op, Expression::String("lo".into()))
}

fn port_in(ports: &BTreeSet<u16>) -> Statement<'static> {
    let items = ports.iter().map(|p| SetItem::Element(Expression::Number(u32::from(*p)))).collect();
    compare(payload("tcp", "dport"), Operator::EQ, Expression::Named(NamedExpression::Set(items)))
}

fn address_in(protocol: &'static str, field: &'static str, cidr: &IpNet) -> Statement<'static> {
    let prefix = Prefix {
        addr: Box::new(Expression::String(cidr.network().to_string().into())),
        len: u32::from(cidr.prefix_len()),
    };
    compare(payload(protocol, field), Operator::EQ, Expression::Named(NamedExpression::Prefix(prefix)))
}

fn mark_is(key: MetaKey, mark: u32) -> Statement<'static> {
    compare(and(meta(key), MASK), Operator::EQ, Expression::Number(mark))
}

fn mark_is_not(mark: u32) -> Statement<'static> {
    compare(and(meta(MetaKey::Mark), MASK), Operator::NEQ, Expression::Number(mark))
}

fn ct_mark_is(mark: u32) -> Statement<'static> {
    compare(and(ct_mark(), MASK), Operator::EQ, Expression::Number(mark))
}

/// The connection's destination was not rewritten (`ct status` has no IPS_DST_NAT).
fn not_redirected() -> Statement<'static> {
    compare(and(ct("status"), CT_STATUS_DNAT), Operator::EQ, Expression::Number(0))
}

/// `ct mark set ct mark & ~0xfff | 0x111`
fn set_ct_mark() -> Statement<'static> {
    Statement::Mangle(Mangle { key: ct_mark(), value: marked(ct_mark()) })
}

/// `meta mark set meta mark & ~0xfff | 0x111`
fn set_meta_mark() -> Statement<'static> {
    Statement::Mangle(Mangle { key: meta(MetaKey::Mark), value: marked(meta(MetaKey::Mark)) })
}

fn marked(value: Expression<'static>) -> Expression<'static> {
    Expression::BinaryOperation(Box::new(BinaryOperation::OR(vec![
        and(value, !MASK),
        Expression::Number(REPLY_MARK),
    ])))
}

fn compare(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn and(value: Expression<'static>, mask: u32) -> Expression<'static> {
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(value, Expression::Number(mask))))
}

const fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn ct_mark() -> Expression<'static> {
    ct("mark")
}

fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    })))
}

fn entries<T: Ord>(
    annotations: &BTreeMap<&str, &str>,
    name: &'static str,
    parse: fn(&str) -> Result<T, &'static str>,
    invalid: &mut Vec<InvalidAnnotation>,
) -> BTreeSet<T> {
    let value = annotations.get(name).copied().unwrap_or_default();
    let mut found = BTreeSet::new();
    for entry in value.split(',').map(str::trim).filter(|e| !e.is_empty()) {
        let parsed =
            if found.len() < MAX_ENTRIES { parse(entry) } else { Err("is one entry too many (256)") };
        match parsed {
            Ok(value) => {
                found.insert(value);
            }
            Err(reason) => {
                let entry = entry.chars().take(64).collect();
                invalid.push(InvalidAnnotation { annotation: name.into(), entry, reason });
                if found.len() >= MAX_ENTRIES {
                    break;
                }
            }
        }
    }
    found
}

fn port(entry: &str) -> Result<u16, &'static str> {
    entry.parse().ok().filter(|p| *p > 0).ok_or("is not a port from 1 to 65535")
}

fn cidr(entry: &str) -> Result<IpNet, &'static str> {
    let net = entry
        .parse::<IpNet>()
        .or_else(|_| entry.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "is not a CIDR or address")?;
    Ok(net.trunc())
}

#[cfg(test)]
#[path = "ruleset/tests.rs"]
mod tests;
