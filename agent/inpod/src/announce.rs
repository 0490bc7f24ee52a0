//! Addresses of Gateways that this node holds, in the host's network: added to the interface of the node's own address and
//! announced to the neighbours by gratuitous ARP.
//!
//! What was added is written to a file first, so that an agent that starts anew takes away what it no longer shall hold.
//! An agent that ends leaves everything as it is: its successor serves the same addresses.

use crate::sys;
use futures_util::TryStreamExt;
use rtnetlink::{
    Error as NetlinkError, Handle,
    packet_route::{address::AddressAttribute, link::LinkAttribute},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};
use tokio::sync::Mutex;

/// Ethernet type of ARP, and of IPv4 within it.
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IP: u16 = 0x0800;
/// Some switches and neighbours miss one.
const ANNOUNCEMENTS: usize = 3;

/// An address that could not be held. Worth a retry with the next change.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// None of the node's own addresses is on an interface here.
    #[error("no interface has one of this node's own addresses ({0}): Gateway addresses cannot be announced")]
    NoInterface(String),
    /// The kernel's answer.
    #[error("{what}: {source}")]
    Kernel {
        /// Which request.
        what: String,
        /// The answer.
        source: NetlinkError,
    },
    /// The netlink or packet socket, or the file of addresses.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Where addresses go.
#[derive(Clone, Debug)]
struct Interface {
    index: u32,
    mac: Vec<u8>,
}

/// Holds addresses. One per node; call it in the host's network namespace.
#[derive(Debug)]
pub struct Announcer {
    file: PathBuf,
    /// What was added and not taken away; `None` until the file is read.
    held: Mutex<Option<BTreeSet<IpAddr>>>,
}

impl Announcer {
    /// `file` remembers what was added.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { file, held: Mutex::new(None) }
    }

    /// Adds and announces what is wanted and not held, takes away what is held and not wanted. `own` are the node's own
    /// addresses, which are never touched.
    ///
    /// # Errors
    /// The first that failed; what came before it is done.
    pub async fn hold(&self, own: &[IpAddr], wanted: BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
        let mut guard = self.held.lock().await;
        let held = guard.get_or_insert_with(|| self.read());
        if *held == wanted {
            return Ok(());
        }
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| self.io("the netlink socket", e))?;
        let serving = tokio::spawn(connection);
        let result = self.change(&handle, own, held, &wanted).await;
        serving.abort();
        result
    }

    async fn change(
        &self,
        handle: &Handle,
        own: &[IpAddr],
        held: &mut BTreeSet<IpAddr>,
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<(), AnnounceError> {
        for ip in held.difference(wanted).copied().collect::<Vec<_>>() {
            if !own.contains(&ip) {
                remove(handle, ip).await?;
            }
            held.remove(&ip);
            tracing::info!("address {ip}: given up");
        }
        let new: Vec<IpAddr> = wanted.difference(held).copied().collect();
        if !new.is_empty() {
            let interface = interface(handle, own).await?;
            for ip in new {
                // Written before it is done: an address too many in the file does no harm.
                held.insert(ip);
                self.write(held)?;
                if let Err(error) = add(handle, interface.index, ip).await {
                    held.remove(&ip);
                    return Err(error);
                }
                if let IpAddr::V4(ip) = ip {
                    gratuitous_arp(&interface, ip).map_err(|e| self.io(&format!("announcing {ip}"), e))?;
                }
                tracing::info!("address {ip}: held and announced");
            }
        }
        self.write(held)
    }

    fn read(&self) -> BTreeSet<IpAddr> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn write(&self, held: &BTreeSet<IpAddr>) -> Result<(), AnnounceError> {
        let text: String = held.iter().map(|ip| format!("{ip}\n")).collect();
        let next = self.file.with_extension("next");
        let written = std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &self.file));
        written.map_err(|e| self.io(&self.file.display().to_string(), e))
    }

    #[allow(clippy::unused_self, reason = "reads as a method of the announcer's errors")]
    fn io(&self, what: &str, source: io::Error) -> AnnounceError {
        AnnounceError::Io { what: what.to_owned(), source }
    }
}

const fn prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

async fn add(handle: &Handle, index: u32, ip: IpAddr) -> Result<(), AnnounceError> {
    match handle.address().add(index, ip, prefix(ip)).execute().await {
        Err(NetlinkError::NetlinkError(e)) if e.raw_code().abs() == libc::EEXIST => Ok(()),
        done => done.map_err(|source| AnnounceError::Kernel { what: format!("adding address {ip}"), source }),
    }
}

async fn remove(handle: &Handle, ip: IpAddr) -> Result<(), AnnounceError> {
    let kernel = |source| AnnounceError::Kernel { what: format!("removing address {ip}"), source };
    let mut all =
        handle.address().get().set_address_filter(ip).set_prefix_length_filter(prefix(ip)).execute();
    while let Some(message) = all.try_next().await.map_err(kernel)? {
        match handle.address().del(message).execute().await {
            Err(NetlinkError::NetlinkError(e)) if e.raw_code().abs() == libc::EADDRNOTAVAIL => {}
            done => done.map_err(kernel)?,
        }
    }
    Ok(())
}

/// The interface that has one of the node's own addresses.
async fn interface(handle: &Handle, own: &[IpAddr]) -> Result<Interface, AnnounceError> {
    let kernel = |source| AnnounceError::Kernel { what: "listing addresses".to_owned(), source };
    let mut all = handle.address().get().execute();
    let mut index = None;
    while let Some(message) = all.try_next().await.map_err(kernel)? {
        let is_own = |a: &AddressAttribute| match a {
            AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => own.contains(ip),
            _ => false,
        };
        if message.attributes.iter().any(is_own) {
            index = Some(message.header.index);
        }
    }
    let named = || own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let index = index.ok_or_else(|| AnnounceError::NoInterface(named()))?;
    let kernel = |source| AnnounceError::Kernel { what: format!("reading interface {index}"), source };
    let mut links = handle.link().get().match_index(index).execute();
    let link = links.try_next().await.map_err(kernel)?.ok_or_else(|| AnnounceError::NoInterface(named()))?;
    let mac = link.attributes.into_iter().find_map(|a| match a {
        LinkAttribute::Address(mac) => Some(mac),
        _ => None,
    });
    Ok(Interface { index, mac: mac.unwrap_or_default() })
}

/// RFC 5227 §3: an ARP announcement, so that neighbours that knew another node by this address learn ours.
fn announcement(mac: &[u8; 6], ip: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[0..2].copy_from_slice(&1_u16.to_be_bytes()); // Ethernet
    packet[2..4].copy_from_slice(&ETH_P_IP.to_be_bytes());
    packet[4] = 6;
    packet[5] = 4;
    packet[6..8].copy_from_slice(&1_u16.to_be_bytes()); // request
    packet[8..14].copy_from_slice(mac);
    packet[14..18].copy_from_slice(&ip.octets());
    packet[24..28].copy_from_slice(&ip.octets());
    packet
}

fn gratuitous_arp(interface: &Interface, ip: Ipv4Addr) -> io::Result<()> {
    // An interface without an Ethernet address (a tunnel) has no neighbours to tell.
    let Ok(mac) = <&[u8; 6]>::try_from(&interface.mac[..]) else { return Ok(()) };
    let protocol = i32::from(ETH_P_ARP.to_be());
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(protocol)))?;
    let everybody = sys::ethernet_broadcast(ETH_P_ARP, interface.index)?;
    for _ in 0..ANNOUNCEMENTS {
        socket.send_to(&announcement(mac, ip), &everybody)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_names_the_address_twice() {
        let packet = announcement(&[2, 0, 0, 0, 0, 7], Ipv4Addr::new(10, 90, 1, 5));
        assert_eq!(packet[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(packet[8..18], [2, 0, 0, 0, 0, 7, 10, 90, 1, 5]);
        assert_eq!(packet[18..], [0, 0, 0, 0, 0, 0, 10, 90, 1, 5]);
    }
}
