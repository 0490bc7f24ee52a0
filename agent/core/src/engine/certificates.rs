//! What is to be said of listeners' certificates, for people who ask and for Events: it changes with the time alone.

use super::Engine;
use crate::{
    expiry::CertificateRemark,
    model::{Kind, ObjectRef, Str},
};

/// Something to say of a listener's certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerRemark {
    /// The Gateway, or the ListenerSet that the listener is of.
    pub object: ObjectRef,
    /// The listener's name.
    pub listener: Str,
    /// What.
    pub remark: CertificateRemark,
}

impl Engine {
    /// What is to be said at this moment (Unix seconds) of the certificates of listeners that serve, ascending. Costs a walk
    /// over all listeners.
    #[must_use]
    pub fn certificate_remarks(&self, now: i64) -> Vec<ListenerRemark> {
        let mut all = Vec::new();
        for (key, gateway) in &self.state.gateways {
            for listener in gateway.listeners.iter().filter(|l| l.serves()) {
                let Some(tls) = &listener.tls else { continue };
                let object = match &listener.attach.id.set {
                    Some(set) => ObjectRef { kind: Kind::ListenerSet, key: set.clone() },
                    None => ObjectRef { kind: Kind::Gateway, key: key.clone() },
                };
                let remarks = tls.remarks(listener.attach.hostname.as_ref(), now).into_iter();
                all.extend(remarks.map(|remark| ListenerRemark {
                    object: object.clone(),
                    listener: listener.attach.id.name.clone(),
                    remark,
                }));
            }
        }
        all.sort();
        all
    }
}
