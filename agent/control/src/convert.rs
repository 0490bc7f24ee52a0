//! Wire messages to values and back.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use prost::Message;
use weft_core::{
    config::Transport,
    model::{
        CaBundle, Capture, ConfigMap, KeyPair, Meta, ObjectKey, PrivateKey, Secret, SecretData, Str,
        TunnelPort, Validity,
    },
};

use crate::{
    delta::{Chunk, Malformed, Opened},
    parameters,
    report::{AppliedGateway, BudgetReached, Material, Reached, Watermark},
    wire,
};

/// Kubernetes' bounds of names.
const NAMESPACE_MAX: usize = 63;
const NAME_MAX: usize = 253;
/// Addresses of one pod; Kubernetes knows two.
const ADDRESSES_MAX: usize = 16;
/// Longer texts of a peer are cut: they are for people.
const TEXT_MAX: usize = 1024;

fn key_to_wire(key: &ObjectKey) -> wire::Key {
    wire::Key { namespace: key.namespace.to_string(), name: key.name.to_string() }
}

fn key(key: Option<wire::Key>) -> Result<ObjectKey, Malformed> {
    let fits = |key: &wire::Key| {
        let (namespace, name) = (key.namespace.len(), key.name.len());
        (1..=NAMESPACE_MAX).contains(&namespace) && (1..=NAME_MAX).contains(&name)
    };
    let key = key.filter(fits).ok_or(Malformed::Part { what: "a namespaced name" })?;
    Ok(ObjectKey::new(key.namespace, key.name))
}

fn text(text: &str) -> Str {
    text.chars().take(TEXT_MAX).collect::<String>().into()
}

/// Adds a message to a list; gives its size.
fn push<M: Message>(list: &mut Vec<M>, message: M) -> usize {
    // The tag and the length prefix take a few bytes more.
    let size = message.encoded_len() + 6;
    list.push(message);
    size
}

impl Chunk for wire::Applied {
    type Key = ObjectKey;
    type Value = AppliedGateway;

    fn set(&mut self, key: &ObjectKey, value: &AppliedGateway) -> usize {
        push(&mut self.gateways, gateway_to_wire(key, value))
    }

    fn unset(&mut self, key: &ObjectKey) -> usize {
        push(&mut self.removed, key_to_wire(key))
    }

    fn mark(&mut self, full: bool, more: bool) {
        (self.full, self.more) = (full, more);
    }

    fn open(self) -> Result<Opened<ObjectKey, AppliedGateway>, Malformed> {
        let set: Result<_, _> = self.gateways.into_iter().map(gateway).collect();
        let unset: Result<_, _> = self.removed.into_iter().map(|k| key(Some(k))).collect();
        Ok(Opened { full: self.full, more: self.more, set: set?, unset: unset? })
    }
}

fn gateway_to_wire(key: &ObjectKey, value: &AppliedGateway) -> wire::GatewayApplied {
    let sets = value.mark.sets.iter();
    let unbound = value.unbound.iter();
    wire::GatewayApplied {
        gateway: Some(key_to_wire(key)),
        uid: value.mark.uid.to_string(),
        generation: value.mark.generation,
        sets: sets
            .map(|(set, generation)| wire::SetApplied {
                set: Some(key_to_wire(set)),
                generation: *generation,
            })
            .collect(),
        placement: value.mark.placement,
        unbound: unbound
            .map(|((port, transport), reason)| wire::Unbound {
                port: u32::from(*port),
                udp: *transport == Transport::Udp,
                reason: reason.to_string(),
            })
            .collect(),
        unusable: value
            .unusable
            .iter()
            .map(|(address, reason)| wire::Unusable {
                address: address.to_string(),
                reason: reason.to_string(),
            })
            .collect(),
    }
}

fn gateway(applied: wire::GatewayApplied) -> Result<(ObjectKey, AppliedGateway, usize), Malformed> {
    let size = applied.encoded_len();
    let sets = applied.sets.into_iter().map(|s| Ok((key(s.set)?, s.generation)));
    let unbound = applied.unbound.into_iter().map(|u| {
        let port = u16::try_from(u.port).map_err(|_| Malformed::Part { what: "a port" })?;
        let transport = if u.udp { Transport::Udp } else { Transport::Tcp };
        Ok(((port, transport), text(&u.reason)))
    });
    let unusable = applied.unusable.into_iter().map(|u| {
        let address = u.address.parse().map_err(|_| Malformed::Part { what: "an address" })?;
        Ok((address, text(&u.reason)))
    });
    let mark = Watermark {
        uid: text(&applied.uid),
        generation: applied.generation,
        sets: sets.collect::<Result<_, _>>()?,
        placement: applied.placement,
    };
    let value = AppliedGateway {
        mark,
        unbound: unbound.collect::<Result<_, _>>()?,
        unusable: unusable.collect::<Result<_, _>>()?,
    };
    Ok((key(applied.gateway)?, value, size))
}

impl Chunk for wire::Captured {
    type Key = ObjectKey;
    type Value = Capture;

    fn set(&mut self, key: &ObjectKey, capture: &Capture) -> usize {
        let application = match &capture.tunnel {
            TunnelPort::Hbone => None,
            TunnelPort::Application { except } => {
                Some(wire::ApplicationPorts { except: except.iter().copied().map(u32::from).collect() })
            }
        };
        let (pod, uid) = (Some(key_to_wire(key)), capture.uid.to_string());
        let addresses = capture.addresses.iter().take(ADDRESSES_MAX).map(ToString::to_string).collect();
        push(&mut self.pods, wire::CapturedPod { pod, uid, application, addresses })
    }

    fn unset(&mut self, key: &ObjectKey) -> usize {
        push(&mut self.removed, key_to_wire(key))
    }

    fn mark(&mut self, full: bool, more: bool) {
        (self.full, self.more) = (full, more);
    }

    fn open(self) -> Result<Opened<ObjectKey, Capture>, Malformed> {
        let pod = |pod: wire::CapturedPod| {
            let size = pod.encoded_len();
            let tunnel = pod.application.map_or(Ok(TunnelPort::Hbone), tunnel)?;
            let parsed = pod.addresses.iter().take(ADDRESSES_MAX).map(|a| a.parse());
            let addresses: Result<Vec<IpAddr>, _> = parsed.collect();
            let addresses = addresses.map_err(|_| Malformed::Part { what: "an address" })?;
            Ok((key(pod.pod)?, Capture { uid: text(&pod.uid), tunnel, addresses }, size))
        };
        let set: Result<_, _> = self.pods.into_iter().map(pod).collect();
        let unset: Result<_, _> = self.removed.into_iter().map(|k| key(Some(k))).collect();
        Ok(Opened { full: self.full, more: self.more, set: set?, unset: unset? })
    }
}

/// Budgets that an agent may report at once; more say nothing that matters.
const REACHED_MAX: usize = 1024;

pub(crate) fn reached_to_wire(reached: &Reached) -> wire::Reached {
    let one = |reached: &BudgetReached| wire::BudgetReached {
        workload: Some(key_to_wire(&reached.workload)),
        gateway: reached.gateway,
        budget: reached.budget.name.to_owned(),
        times: reached.times,
    };
    wire::Reached { budgets: reached.iter().take(REACHED_MAX).map(one).collect() }
}

/// Budgets that this build does not know are left out: the agent is newer.
pub(crate) fn reached_from_wire(reached: wire::Reached) -> Result<Reached, Malformed> {
    if reached.budgets.len() > REACHED_MAX {
        return Err(Malformed::Part { what: "so many budgets" });
    }
    let one = |one: wire::BudgetReached| {
        let workload = key(one.workload)?;
        let budget = weft_core::budget::named(&one.budget);
        Ok(budget.map(|budget| BudgetReached { workload, gateway: one.gateway, budget, times: one.times }))
    };
    reached.budgets.into_iter().filter_map(|budget| one(budget).transpose()).collect()
}

fn tunnel(ports: wire::ApplicationPorts) -> Result<TunnelPort, Malformed> {
    let except = ports.except.into_iter().map(u16::try_from).collect::<Result<Vec<_>, _>>();
    Ok(TunnelPort::application(except.map_err(|_| Malformed::Part { what: "a port" })?))
}

/// Names one object of a [`Material`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MaterialKind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

/// One object of a [`Material`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MaterialValue {
    /// A Secret.
    Secret(Arc<Secret>),
    /// A ConfigMap.
    ConfigMap(Arc<ConfigMap>),
}

/// A [`Material`] as one map, which is how it travels.
pub(crate) type MaterialMap = BTreeMap<(MaterialKind, ObjectKey), MaterialValue>;

/// As one map, without labels and annotations.
pub(crate) fn material_to_map(material: &Material) -> MaterialMap {
    let secrets = material.secrets.iter().map(|(key, secret)| {
        let value = Secret { meta: bare(&secret.meta), ..(**secret).clone() };
        ((MaterialKind::Secret, key.clone()), MaterialValue::Secret(Arc::new(value)))
    });
    let config_maps = material.config_maps.iter().map(|(key, map)| {
        let value = ConfigMap { meta: bare(&map.meta), ..(**map).clone() };
        ((MaterialKind::ConfigMap, key.clone()), MaterialValue::ConfigMap(Arc::new(value)))
    });
    secrets.chain(config_maps).collect()
}

/// Back from one map.
pub(crate) fn material_from_map(map: &MaterialMap) -> Material {
    let mut material = Material::default();
    for ((_, key), value) in map {
        match value {
            MaterialValue::Secret(secret) => {
                material.secrets.insert(key.clone(), secret.clone());
            }
            MaterialValue::ConfigMap(map) => {
                material.config_maps.insert(key.clone(), map.clone());
            }
        }
    }
    material
}

/// Labels and annotations stay behind: kubectl keeps a copy of a whole Secret in an annotation.
fn bare(meta: &Meta) -> Meta {
    let (labels, annotations, origin) = Default::default();
    Meta { labels, annotations, origin, ..meta.clone() }
}

impl Chunk for wire::Material {
    type Key = (MaterialKind, ObjectKey);
    type Value = MaterialValue;

    fn set(&mut self, id: &Self::Key, value: &MaterialValue) -> usize {
        let (meta, broken) = match value {
            MaterialValue::Secret(secret) => (&secret.meta, &secret.broken),
            MaterialValue::ConfigMap(map) => (&map.meta, &map.broken),
        };
        let (content, parameters) = match value {
            MaterialValue::Secret(secret) => (Some(secret_to_wire(&secret.data)), None),
            MaterialValue::ConfigMap(map) => {
                let parameters = map.parameters.as_ref().map(|p| parameters::to_wire(p.settings()));
                (map.ca.as_ref().map(config_map_to_wire), parameters)
            }
        };
        let object = wire::MaterialObject {
            id: Some(id_to_wire(id)),
            uid: meta.uid.to_string(),
            generation: meta.generation,
            created: meta.created,
            content,
            parameters,
            broken: broken.as_ref().map(ToString::to_string),
        };
        push(&mut self.objects, object)
    }

    fn unset(&mut self, id: &Self::Key) -> usize {
        push(&mut self.removed, id_to_wire(id))
    }

    fn mark(&mut self, full: bool, more: bool) {
        (self.full, self.more) = (full, more);
    }

    fn open(self) -> Result<Opened<Self::Key, MaterialValue>, Malformed> {
        let set: Result<_, _> = self.objects.into_iter().map(material_object).collect();
        let unset: Result<_, _> = self.removed.into_iter().map(|id| material_id(Some(id))).collect();
        Ok(Opened { full: self.full, more: self.more, set: set?, unset: unset? })
    }
}

fn id_to_wire((kind, key): &(MaterialKind, ObjectKey)) -> wire::MaterialKey {
    wire::MaterialKey { config_map: *kind == MaterialKind::ConfigMap, key: Some(key_to_wire(key)) }
}

fn material_id(id: Option<wire::MaterialKey>) -> Result<(MaterialKind, ObjectKey), Malformed> {
    let id = id.ok_or(Malformed::Part { what: "the name of an object" })?;
    let kind = if id.config_map { MaterialKind::ConfigMap } else { MaterialKind::Secret };
    Ok((kind, key(id.key)?))
}

fn secret_to_wire(data: &SecretData) -> wire::Content {
    match data {
        SecretData::Tls(pair) => wire::Content::Tls(wire::KeyPair {
            chain: pair.chain.clone(),
            key: pair.key.expose().to_vec(),
            names: pair.names.iter().map(ToString::to_string).collect(),
            not_before: pair.validity.not_before,
            not_after: pair.validity.not_after,
        }),
        SecretData::Ca(bundle) => wire::Content::Ca(wire::Certificates { der: bundle.0.to_vec() }),
        SecretData::Invalid(why) => wire::Content::Invalid(why.to_string()),
    }
}

fn config_map_to_wire(ca: &Result<CaBundle, Str>) -> wire::Content {
    match ca {
        Ok(bundle) => wire::Content::Ca(wire::Certificates { der: bundle.0.to_vec() }),
        Err(why) => wire::Content::Invalid(why.to_string()),
    }
}

type MaterialEntry = ((MaterialKind, ObjectKey), MaterialValue, usize);

fn material_object(object: wire::MaterialObject) -> Result<MaterialEntry, Malformed> {
    let size = object.encoded_len();
    let id = material_id(object.id)?;
    let meta = Meta {
        key: id.1.clone(),
        uid: text(&object.uid),
        generation: object.generation,
        created: object.created,
        labels: Default::default(),
        annotations: Default::default(),
        origin: None,
    };
    let broken = object.broken.as_deref().map(text);
    let value = match id.0 {
        MaterialKind::Secret => {
            let data = secret_data(object.content);
            MaterialValue::Secret(Arc::new(Secret { meta, data, broken }))
        }
        MaterialKind::ConfigMap => {
            let ca = match object.content {
                Some(wire::Content::Ca(ca)) => Some(Ok(CaBundle(Arc::new(ca.der)))),
                Some(wire::Content::Invalid(why)) => Some(Err(text(&why))),
                Some(wire::Content::Tls(_)) | None => None,
            };
            let parameters = object.parameters.map(parameters::from_wire).transpose()?.map(Into::into);
            MaterialValue::ConfigMap(Arc::new(ConfigMap { meta, ca, broken, parameters }))
        }
    };
    Ok((id, value, size))
}

fn secret_data(content: Option<wire::Content>) -> SecretData {
    match content {
        // `take`: a message that wipes itself on drop cannot be taken apart.
        Some(wire::Content::Tls(mut pair)) => SecretData::Tls(Arc::new(KeyPair {
            chain: std::mem::take(&mut pair.chain),
            key: PrivateKey::new(std::mem::take(&mut pair.key)),
            names: pair.names.iter().map(|name| text(name)).collect(),
            validity: Validity { not_before: pair.not_before, not_after: pair.not_after },
        })),
        Some(wire::Content::Ca(ca)) => SecretData::Ca(CaBundle(Arc::new(ca.der))),
        Some(wire::Content::Invalid(why)) => SecretData::Invalid(text(&why)),
        None => SecretData::Invalid("holds something that this version does not know".into()),
    }
}
