//! What the leader says by Events that no condition says: labels and annotations that mean nothing or are overruled, and
//! routes that take requests of another namespace's, and certificates that end.

use super::world::Pipeline;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;
use weft_core::{
    budget,
    engine::{ListenerRemark, Overlap},
    model::{Kind, Labels, Namespace, ObjectKey, ObjectRef, Pod, Snapshot, Str},
    remarks::{self, Remark, Weight, Words},
};
use weft_k8s::Recorder;

/// Overlaps are looked for this often at most: it is a walk over every route.
const OVERLAPS_EVERY: Duration = Duration::from_secs(5);
/// How often certificates are looked at for the time's sake, in seconds.
const CERTIFICATES_EVERY: i64 = 60 * 60;
/// How often what is still so is told again, in seconds: an Event is there for an hour.
const CERTIFICATES_AGAIN: i64 = 24 * 60 * 60;
/// Where Weft is: its own pods have annotations of their own.
const SYSTEM: &str = "weft-system";

/// Something to say of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Word {
    pub(super) object: ObjectRef,
    pub(super) uid: Str,
    pub(super) reason: &'static str,
    pub(super) note: String,
}

/// What was said of a pod: reasons and words.
type SaidOfPod = BTreeSet<(&'static str, String)>;

/// What has been said.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    /// The namespaces and pods that it is about.
    seen: Snapshot,
    /// What was said of the pods of each namespace.
    of_pods: BTreeMap<Str, BTreeMap<ObjectKey, SaidOfPod>>,
    /// The routes that overlaps were looked for in, and when.
    routes: Snapshot,
    looked: Option<Instant>,
    overlaps: BTreeSet<Overlap>,
    /// When certificates were looked at (Unix seconds), of which Gateways and Secrets, and what was said.
    certificates: (i64, Snapshot, BTreeSet<Word>),
}

impl Remarks {
    /// Tells what is new. Who does not lead says nothing, and remembers nothing: the next leader says it.
    pub(super) fn tell(&mut self, pipeline: &Pipeline, events: &Recorder, leads: bool) {
        if !leads {
            *self = Self::default();
            return;
        }
        let snapshot = pipeline.snapshot();
        let mut words = self.labels(snapshot);
        if self.may_look(snapshot, Instant::now()) {
            words.extend(self.routes(snapshot, pipeline.overlaps()));
        }
        let now = jiff::Timestamp::now().as_second();
        if self.may_look_at_certificates(snapshot, now) {
            words.extend(self.certificates(snapshot, pipeline.certificate_remarks(now)));
        }
        for Word { object, uid, reason, note } in words {
            tracing::warn!("{object}: {note}");
            events.warn(&object, &uid, "v1", (reason, note));
        }
    }

    /// What is new of namespaces and pods. Costs what has changed.
    pub(super) fn labels(&mut self, now: &Snapshot) -> Vec<Word> {
        let mut out = Vec::new();
        let before = std::mem::replace(
            &mut self.seen,
            Snapshot { namespaces: now.namespaces.clone(), pods: now.pods.clone(), ..Snapshot::default() },
        );
        let same = |a: &std::sync::Arc<Namespace>, b: &std::sync::Arc<Namespace>| {
            a.meta.labels == b.meta.labels && a.meta.annotations == b.meta.annotations
        };
        let mut around: BTreeSet<Str> = BTreeSet::new();
        before.namespaces.differences(&now.namespaces, same, |name, was, is| {
            around.insert(name.clone());
            let Some(is) = is else { return drop(self.of_pods.remove(name)) };
            let known = was.map(|was| remarks::of_namespace(&words(&was.meta.labels, &was.meta.annotations)));
            let all = remarks::of_namespace(&words(&is.meta.labels, &is.meta.annotations));
            let new = all
                .into_iter()
                .filter(|r| r.weight == Weight::Fault && !known.iter().flatten().any(|k| k == r));
            let object = ObjectRef { kind: Kind::Namespace, key: ObjectKey::new("", name.clone()) };
            out.extend(new.map(|r| Word {
                object: object.clone(),
                uid: is.meta.uid.clone(),
                reason: r.reason,
                note: r.message,
            }));
        });
        let mut pods: BTreeMap<ObjectKey, Option<std::sync::Arc<Pod>>> = BTreeMap::new();
        let same = |a: &std::sync::Arc<Pod>, b: &std::sync::Arc<Pod>| {
            a.meta.uid == b.meta.uid
                && a.meta.labels == b.meta.labels
                && a.meta.annotations == b.meta.annotations
        };
        before.pods.differences(&now.pods, same, |key, _, is| drop(pods.insert(key.clone(), is.cloned())));
        for name in around {
            let first = ObjectKey::new(name.clone(), "");
            let here = now.pods.range(first..).take_while(|(key, _)| key.namespace == name);
            pods.extend(here.map(|(key, pod)| (key.clone(), Some(pod.clone()))));
        }
        for (key, pod) in pods {
            out.extend(self.pod(&key, pod.as_deref(), now));
        }
        out
    }

    /// What is new of a pod. Of pods of one namespace no more than a few are told: the rest is alike, or a flood.
    fn pod(&mut self, key: &ObjectKey, pod: Option<&Pod>, now: &Snapshot) -> Vec<Word> {
        let space = now.namespaces.get(&key.namespace);
        let around = space.map(|n| words(&n.meta.labels, &n.meta.annotations)).unwrap_or_default();
        let found = match pod {
            Some(pod) if &*key.namespace != SYSTEM => {
                remarks::of_pod(&words(&pod.meta.labels, &pod.meta.annotations), &around)
            }
            _ => Vec::new(),
        };
        let faults: Vec<Remark> = found.into_iter().filter(|r| r.weight == Weight::Fault).collect();
        let Some(pod) = pod.filter(|_| !faults.is_empty()) else {
            if let Some(pods) = self.of_pods.get_mut(&key.namespace) {
                pods.remove(key);
            }
            return Vec::new();
        };
        let pods = self.of_pods.entry(key.namespace.clone()).or_default();
        let full = pods.len() >= budget::REMARKED_PODS.size();
        if full && !pods.contains_key(key) {
            return Vec::new();
        }
        let said = pods.entry(key.clone()).or_default();
        let was = std::mem::replace(said, faults.iter().map(|r| (r.reason, r.message.clone())).collect());
        let new = faults.into_iter().filter(|r| !was.contains(&(r.reason, r.message.clone())));
        let object = ObjectRef { kind: Kind::Pod, key: key.clone() };
        let mut out: Vec<Word> = new
            .map(|r| Word {
                object: object.clone(),
                uid: pod.meta.uid.clone(),
                reason: r.reason,
                note: r.message,
            })
            .collect();
        if pods.len() == budget::REMARKED_PODS.size() && !full {
            let uid = space.map(|n| n.meta.uid.clone()).unwrap_or_else(|| "".into());
            let note = format!(
                "budget {}: {} pods here have labels or annotations that say what is not so; of further ones nothing is said \
                 by Events, `weft check` names all",
                budget::REMARKED_PODS.name,
                budget::REMARKED_PODS.bound
            );
            let object = ObjectRef { kind: Kind::Namespace, key: ObjectKey::new("", key.namespace.clone()) };
            out.push(Word { object, uid, reason: "BudgetReached", note });
        }
        out
    }

    /// Whether overlaps are to be looked for: something that they come of has changed, and it is not long ago enough.
    fn may_look(&mut self, now: &Snapshot, at: Instant) -> bool {
        let was = &self.routes;
        let same = was.routes.is(&now.routes)
            && was.gateways.is(&now.gateways)
            && was.listener_sets.is(&now.listener_sets)
            && was.classes.is(&now.classes);
        !same && self.looked.is_none_or(|looked| at.duration_since(looked) >= OVERLAPS_EVERY)
    }

    /// Whether certificates are to be looked at: one may have come, or the time has gone on.
    fn may_look_at_certificates(&mut self, snapshot: &Snapshot, now: i64) -> bool {
        let (looked, was, said) = &mut self.certificates;
        let same = was.gateways.is(&snapshot.gateways)
            && was.listener_sets.is(&snapshot.listener_sets)
            && was.classes.is(&snapshot.classes)
            && was.secrets.is(&snapshot.secrets);
        let day = |at: i64| at.div_euclid(CERTIFICATES_AGAIN);
        if day(now) != day(*looked) {
            said.clear();
        } else if same && now - *looked < CERTIFICATES_EVERY {
            return false;
        }
        *looked = now;
        *was = Snapshot {
            gateways: snapshot.gateways.clone(),
            listener_sets: snapshot.listener_sets.clone(),
            classes: snapshot.classes.clone(),
            secrets: snapshot.secrets.clone(),
            ..Snapshot::default()
        };
        true
    }

    /// What is new of listeners' certificates.
    fn certificates(&mut self, snapshot: &Snapshot, remarks: Vec<ListenerRemark>) -> Vec<Word> {
        let word = |ListenerRemark { object, listener, remark }: ListenerRemark| {
            let uid = match object.kind {
                Kind::ListenerSet => snapshot.listener_sets.get(&object.key)?.meta.uid.clone(),
                _ => snapshot.gateways.get(&object.key)?.meta.uid.clone(),
            };
            let (reason, remedy) = (remark.fault.reason(), remark.fault.remedy());
            Some(Word {
                object,
                uid,
                reason,
                note: format!("listener {listener}: {}: {remedy}", remark.message),
            })
        };
        let now: BTreeSet<Word> = remarks.into_iter().filter_map(word).collect();
        let before = std::mem::replace(&mut self.certificates.2, now);
        self.certificates.2.difference(&before).cloned().collect()
    }

    /// What is new of routes: both are told.
    pub(super) fn routes(&mut self, now: &Snapshot, overlaps: Vec<Overlap>) -> Vec<Word> {
        self.looked = Some(Instant::now());
        self.routes = Snapshot {
            routes: now.routes.clone(),
            gateways: now.gateways.clone(),
            listener_sets: now.listener_sets.clone(),
            classes: now.classes.clone(),
            ..Snapshot::default()
        };
        let overlaps: BTreeSet<Overlap> = overlaps.into_iter().collect();
        let before = std::mem::replace(&mut self.overlaps, overlaps);
        let uids: BTreeMap<ObjectRef, Str> = now
            .routes
            .iter()
            .map(|((kind, key), route)| {
                (ObjectRef { kind: kind.kind(), key: key.clone() }, route.meta.uid.clone())
            })
            .collect();
        let new = self.overlaps.iter().filter(|overlap| !before.contains(overlap));
        let word = |object: &ObjectRef, note: &str| {
            let uid = uids.get(object)?.clone();
            Some(Word { object: object.clone(), uid, reason: "RouteOverlap", note: note.to_owned() })
        };
        new.flat_map(|o| [word(&o.taker, &o.message), word(&o.loser, &o.message)]).flatten().collect()
    }
}

fn words<'a>(labels: &'a Labels, annotations: &'a Labels) -> Words<'a> {
    let pairs = |map: &'a Labels| map.iter().map(|(k, v)| (&**k, &**v)).collect::<Vec<_>>();
    Words::new(pairs(labels), pairs(annotations))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use weft_core::model::{Meta, TunnelPort};

    fn meta(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Meta {
        Meta {
            key: ObjectKey::new(namespace, name),
            uid: format!("uid-{name}").into(),
            generation: 1,
            created: 0,
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            annotations: Labels::new(),
            origin: None,
        }
    }

    fn namespace(world: &mut Snapshot, name: &str, labels: &[(&str, &str)]) {
        world.namespaces.insert(name.into(), Arc::new(Namespace { meta: meta("", name, labels) }));
    }

    fn pod(world: &mut Snapshot, namespace: &str, name: &str, labels: &[(&str, &str)]) {
        let pod = Pod {
            meta: meta(namespace, name, labels),
            ips: Vec::new(),
            proved: Vec::new(),
            service_account: "default".into(),
            node: None,
            host_network: false,
            captured: None,
            tunnel: TunnelPort::default(),
            finished: false,
            probes: Arc::default(),
        };
        world.pods.insert(ObjectKey::new(namespace, name), Arc::new(pod));
    }

    fn said(words: &[Word]) -> Vec<String> {
        words.iter().map(|w| format!("{} {}", w.object, w.reason)).collect()
    }

    /// E10: nobody was told that a certificate ends.
    #[test]
    fn a_certificate_that_ends_is_told_once_a_day_to_its_gateway() {
        use weft_core::{
            expiry::{CertificateRemark, Fault},
            model::{FromNamespaces, Gateway},
        };
        let mut world = Snapshot::default();
        let gateway = Gateway {
            meta: meta("shop", "edge", &[]),
            class: "weft".into(),
            listeners: Vec::new(),
            addresses: Vec::new(),
            infrastructure: None,
            allowed_listeners: FromNamespaces::None,
            backend_client_certificate: None,
            frontend_tls: None,
            default_scope: None,
        };
        let object = ObjectRef { kind: Kind::Gateway, key: gateway.meta.key.clone() };
        world.gateways.insert(object.key.clone(), Arc::new(gateway));
        let ends = || {
            let secret = ObjectKey::new("shop", "cert");
            let message = "the certificate of Secret shop/cert ends at 2026-12-24T00:00:00Z".to_owned();
            let remark = CertificateRemark { fault: Fault::EndsSoon, secret, message };
            vec![ListenerRemark { object: object.clone(), listener: "https".into(), remark }]
        };
        let mut remarks = Remarks::default();
        let mut look = |at: i64, now: Vec<ListenerRemark>| {
            remarks.may_look_at_certificates(&world, at).then(|| said(&remarks.certificates(&world, now)))
        };
        let told = || Some(vec!["Gateway shop/edge CertificateExpiresSoon".to_owned()]);
        let (day, hour) = (CERTIFICATES_AGAIN, CERTIFICATES_EVERY);
        assert_eq!(look(10 * day, ends()), told());
        assert_eq!(look(10 * day + 1, ends()), None, "nothing has changed, and no time has gone by");
        assert_eq!(look(10 * day + hour, ends()), Some(Vec::new()), "it was told");
        assert_eq!(look(11 * day, ends()), told(), "the Event of yesterday is gone");
        assert_eq!(look(11 * day + hour, Vec::new()), Some(Vec::new()), "renewed");
        assert_eq!(look(11 * day + 2 * hour, ends()), told());
    }

    /// E3, B6: nobody was told that a word means nothing, or counts for nothing.
    #[test]
    fn each_new_fault_is_told_once_to_the_object_that_has_it() {
        let (mut remarks, mut world) = (Remarks::default(), Snapshot::default());
        let mut check =
            |world: &Snapshot, expected: &[&str]| assert_eq!(said(&remarks.labels(world)), expected);
        namespace(&mut world, "shop", &[("weft.dev/mesh", "enabled"), ("weft.dev/mtls", "STRICT")]);
        namespace(&mut world, "weft-system", &[]);
        pod(&mut world, "shop", "web", &[("weft.dev/mtls", "permissive")]);
        pod(&mut world, "weft-system", "weft-agent", &[("weft.dev/config-checksum", "a")]);
        check(&world, &["Namespace shop UnknownMtls", "Pod shop/web MtlsOverruled"]);
        check(&world, &[]);
        pod(&mut world, "shop", "cart", &[("weft.dev/mseh", "enabled")]);
        check(&world, &["Pod shop/cart UnknownName"]);
        namespace(&mut world, "shop", &[("weft.dev/mesh", "enabled")]);
        check(&world, &[]);
        // Again so: told again.
        namespace(&mut world, "shop", &[("weft.dev/mtls", "strict")]);
        check(&world, &["Pod shop/web MtlsOverruled"]);
        world.pods.clear();
        check(&world, &[]);
    }

    #[test]
    fn a_flood_of_wrong_labels_is_told_of_a_few_pods_and_of_the_namespace() {
        let bound = budget::REMARKED_PODS.size();
        let (mut remarks, mut world) = (Remarks::default(), Snapshot::default());
        namespace(&mut world, "evil", &[]);
        namespace(&mut world, "shop", &[]);
        for n in 0..10 * bound {
            pod(&mut world, "evil", &format!("p{n:04}"), &[("weft.dev/mtls", "on")]);
        }
        let words = remarks.labels(&world);
        assert_eq!(words.len(), bound + 1, "{:?}", said(&words));
        assert_eq!(words.last().map(|w| w.reason), Some("BudgetReached"));
        assert!(words.last().unwrap().note.contains(budget::REMARKED_PODS.name));
        assert_eq!(remarks.of_pods["evil"].len(), bound);
        pod(&mut world, "shop", "web", &[("weft.dev/mtls", "on")]);
        assert_eq!(
            said(&remarks.labels(&world)),
            ["Pod shop/web UnknownMtls"],
            "another tenant is told as before"
        );
    }

    /// A9: nothing said that a tenant's route takes another team's requests.
    #[test]
    fn both_routes_of_an_overlap_are_told_once() {
        use weft_core::model::{Route, RouteKind};
        let (mut remarks, mut world) = (Remarks::default(), Snapshot::default());
        let object = |key: &str| {
            let (namespace, name) = key.split_once('/').unwrap();
            ObjectRef { kind: Kind::HttpRoute, key: ObjectKey::new(namespace, name) }
        };
        for key in ["shop/web", "evil/web"] {
            let ObjectKey { namespace, name } = object(key).key;
            let route = Route {
                meta: meta(&namespace, &name, &[]),
                kind: RouteKind::Http,
                parents: Vec::new(),
                hostnames: Vec::new(),
                rules: Vec::new(),
                use_default_gateways: None,
            };
            world.routes.insert((RouteKind::Http, route.meta.key.clone()), Arc::new(route));
        }
        let overlap =
            Overlap { taker: object("evil/web"), loser: object("shop/web"), message: "takes".into() };
        assert!(remarks.may_look(&world, Instant::now()));
        let words = remarks.routes(&world, vec![overlap.clone()]);
        assert_eq!(said(&words), ["HTTPRoute evil/web RouteOverlap", "HTTPRoute shop/web RouteOverlap"]);
        assert!(!remarks.may_look(&world, Instant::now()), "nothing has changed");
        assert_eq!(remarks.routes(&world, vec![overlap]), []);
    }
}
