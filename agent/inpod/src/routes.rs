//! Policy routing inside a pod: marked packets are delivered locally, whatever their destination.
//!
//! They are the packets of the pod's captured calls, on their way to the agent's socket, and the application's replies to
//! the agent, which connected with the client's address as source. `ip rule fwmark 0x111/0xfff lookup 100` and
//! `local default dev lo table 100` keep them in the pod.

use crate::{error_list::ErrorList, ruleset::LOCAL_MARK};
use futures_util::TryStreamExt;
use rtnetlink::{
    Error as NetlinkError, Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use std::{
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

/// Our routing table in a pod.
const TABLE: u32 = 100;
/// Just before `main` (32766).
const PREFERENCE: u32 = 32764;
/// The mark's bits that are ours.
const MARK_MASK: u32 = 0xfff;
/// `lo` is interface 1 in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// A routing request that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The netlink socket cannot be used.
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
    /// The kernel's answer.
    #[error("{what}: {source}")]
    Kernel {
        /// Which request.
        what: &'static str,
        /// The answer.
        source: NetlinkError,
    },
}

/// Adds rule and route for each family. Idempotent. Call it inside the pod's namespace.
pub(crate) fn add(ipv6: bool) -> Result<(), RouteError> {
    with_netlink(async |handle| {
        for family in families(ipv6) {
            add_route(&handle, *family).await?;
            if find_rules(&handle, *family).await?.is_empty() {
                add_rule(&handle, *family).await?;
            }
        }
        Ok(())
    })?
}

/// Removes them; what is not there is no error. Call it inside the pod's namespace.
pub(crate) fn remove(ipv6: bool) -> Result<(), ErrorList<RouteError>> {
    let done = with_netlink(async |handle| {
        let mut results = Vec::new();
        for family in families(ipv6) {
            results.push(delete_rules(&handle, *family).await);
            let gone = handle.route().del(route(*family)).execute().await;
            results.push(tolerate(gone, "route del", &[libc::ESRCH, libc::ENOENT]));
        }
        ErrorList::collect(results)
    });
    done.unwrap_or_else(|e| ErrorList::collect([Err(e)]))
}

const fn families(ipv6: bool) -> &'static [AddressFamily] {
    if ipv6 { &[AddressFamily::Inet, AddressFamily::Inet6] } else { &[AddressFamily::Inet] }
}

/// A runtime of its own: the netlink socket must be made on this thread, which is inside the namespace.
fn with_netlink<R, F: Future<Output = R>>(work: impl FnOnce(Handle) -> F) -> Result<R, RouteError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let serving = tokio::spawn(connection);
        let result = work(handle).await;
        serving.abort();
        Ok(result)
    })
}

async fn add_route(handle: &Handle, family: AddressFamily) -> Result<(), RouteError> {
    let added = handle.route().add(route(family)).execute().await;
    tolerate(added, "route add local default dev lo table 100", &[libc::EEXIST])
}

async fn add_rule(handle: &Handle, family: AddressFamily) -> Result<(), RouteError> {
    let mut request = handle
        .rule()
        .add()
        .table_id(TABLE)
        .priority(PREFERENCE)
        .fw_mark(LOCAL_MARK)
        .action(RuleAction::ToTable);
    let message = request.message_mut();
    message.header.family = family;
    message.attributes.push(RuleAttribute::FwMask(MARK_MASK));
    tolerate(request.execute().await, "rule add fwmark 0x111/0xfff lookup 100", &[libc::EEXIST])
}

async fn find_rules(handle: &Handle, family: AddressFamily) -> Result<Vec<RuleMessage>, RouteError> {
    let version =
        if family == AddressFamily::Inet6 { rtnetlink::IpVersion::V6 } else { rtnetlink::IpVersion::V4 };
    let rules: Vec<RuleMessage> = handle
        .rule()
        .get(version)
        .execute()
        .try_collect()
        .await
        .map_err(|source| RouteError::Kernel { what: "rule list", source })?;
    Ok(rules.into_iter().filter(is_ours).collect())
}

async fn delete_rules(handle: &Handle, family: AddressFamily) -> Result<(), RouteError> {
    for rule in find_rules(handle, family).await? {
        let gone = handle.rule().del(rule).execute().await;
        tolerate(gone, "rule del", &[libc::ENOENT, libc::ESRCH])?;
    }
    Ok(())
}

fn is_ours(rule: &RuleMessage) -> bool {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    has(&RuleAttribute::FwMark(LOCAL_MARK)) && has(&RuleAttribute::Priority(PREFERENCE))
}

fn route(family: AddressFamily) -> RouteMessage {
    if family == AddressFamily::Inet6 {
        RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .kind(RouteType::Local)
            .output_interface(LOOPBACK_INDEX)
            .table_id(TABLE)
            .build()
    } else {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(LOOPBACK_INDEX)
            .table_id(TABLE)
            .build()
    }
}

fn tolerate(
    result: Result<(), NetlinkError>,
    what: &'static str,
    harmless: &[i32],
) -> Result<(), RouteError> {
    match result {
        Err(NetlinkError::NetlinkError(e)) if harmless.contains(&-e.raw_code()) => Ok(()),
        Err(source) => Err(RouteError::Kernel { what, source }),
        Ok(()) => Ok(()),
    }
}
