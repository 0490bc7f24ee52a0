//! Doors for the fuzz targets (`fuzz/`): what reads a peer's messages here and is private. Only in their build.

use std::{collections::BTreeMap, fmt::Debug};

use prost::Message;

use crate::{
    convert::{material_from_map, reached_from_wire, reached_to_wire},
    delta::{Bounds, Chunk, Mirror, diff},
    istio::IstioCertificateRequest,
    report::{Applied, Captured, Material, Reached},
    wire::{Down, DownBody, Up, UpBody},
};

/// Small, so that they are met.
const BOUNDS: Bounds = Bounds { entries: 16, bytes: 4096 };

/// What a controller knows of an agent after its messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// Node and instance, if it said who it is.
    pub hello: Option<(String, String)>,
    /// Gateways served.
    pub applied: Applied,
    /// Pods captured.
    pub captured: Captured,
    /// Budgets reached.
    pub reached: Reached,
}

/// Takes an agent's messages, up to the first that is malformed, as its session does.
#[must_use]
pub fn agent_says<'m>(messages: impl Iterator<Item = &'m [u8]>) -> Heard {
    let mut heard = Heard::default();
    let (mut applied, mut captured) = (Mirror::new(BOUNDS), Mirror::new(BOUNDS));
    for message in messages {
        let Ok(up) = Up::decode(message) else { return heard };
        again(&up);
        let taken = match up.body {
            Some(UpBody::Hello(hello)) => {
                heard.hello = Some((hello.node, hello.instance));
                Ok(())
            }
            Some(UpBody::Applied(chunk)) => take(&mut applied, chunk, &mut heard.applied),
            Some(UpBody::Captured(chunk)) => take(&mut captured, chunk, &mut heard.captured),
            Some(UpBody::Reached(reached)) => {
                reached_from_wire(reached).map(|reached| heard.reached = reached)
            }
            Some(UpBody::Heartbeat(_)) | None => Ok(()),
        };
        if taken.is_err() {
            return heard;
        }
        let back = reached_from_wire(reached_to_wire(&heard.reached)).expect("what was taken can be said");
        assert_eq!(back, heard.reached);
    }
    heard
}

/// Takes a controller's messages, up to the first that is malformed, as an agent's session does. Gives what the agent has
/// then, if a change was complete.
#[must_use]
pub fn controller_says<'m>(messages: impl Iterator<Item = &'m [u8]>) -> Option<Material> {
    let (mut mirror, mut entries, mut whole) = (Mirror::new(BOUNDS), BTreeMap::new(), None);
    for message in messages {
        let Ok(down) = Down::decode(message) else { return whole };
        again(&down);
        if let Some(DownBody::Material(chunk)) = down.body {
            if take(&mut mirror, chunk, &mut entries).is_err() {
                return whole;
            }
            let material = material_from_map(&entries);
            assert_eq!(material.secrets.len() + material.config_maps.len(), entries.len());
            whole = Some(material);
        }
    }
    whole
}

/// Reads a request for a certificate: for whom, and the CSR.
#[must_use]
pub fn certificate_request(message: &[u8]) -> Option<(String, String)> {
    let request = IstioCertificateRequest::decode(message).ok()?;
    let identity = request.impersonated().ok()??;
    let text = identity.to_string();
    let said = request.metadata.as_ref()?.fields.values().any(|v| v.string.as_deref() == Some(&text));
    assert!(said, "an identity that nobody asked for: {text}");
    Some((text, request.csr))
}

/// A change, and what is kept when it is complete: within bounds, and the same again when it is sent on.
fn take<C>(
    mirror: &mut Mirror<C>,
    chunk: C,
    whole: &mut BTreeMap<C::Key, C::Value>,
) -> Result<(), crate::delta::Malformed>
where
    C: Chunk + PartialEq + Debug,
    C::Key: Debug,
    C::Value: Debug + Clone,
{
    if !mirror.take(chunk)? {
        return Ok(());
    }
    whole.clone_from(mirror.entries());
    assert!(whole.len() <= BOUNDS.entries);
    let mut second = Mirror::new(Bounds { entries: usize::MAX, bytes: usize::MAX });
    for chunk in diff::<C>(None, whole) {
        second.take(again(&chunk)).expect("what was taken can be sent on");
    }
    assert_eq!(second.entries(), whole);
    Ok(())
}

/// Encoded and decoded, a message is the same.
fn again<M: Message + Default + PartialEq + Debug>(message: &M) -> M {
    let again = M::decode(message.encode_to_vec().as_slice()).expect("our own message");
    assert!(again == *message, "{again:?} is not {message:?}");
    again
}
