//! Which GatewayClasses are ours, and `parametersRef`.

use super::{Problem, Reader, reason};
use crate::model::{
    CONTROLLER_NAME, Gateway, GatewayClass, GatewayParameters, GatewaySettings, Kind, ObjectKey,
    ParametersRef, Str, WrittenSettings,
};
use std::sync::Arc;

/// A class of ours with its settings.
pub(crate) type ResolvedClass<'a> = (&'a Arc<GatewayClass>, Result<Option<&'a GatewaySettings>, Problem>);

/// A class of ours: itself, and its settings if it is accepted. `None` for everybody else's, of which nothing is said.
pub(crate) fn resolve_class<'a>(reader: &Reader<'a>, name: &Str) -> Option<ResolvedClass<'a>> {
    let class = reader.class(name).filter(|c| &*c.controller == CONTROLLER_NAME)?;
    let settings = class.parameters_ref.as_ref().map(|p| settings(reader, p, None)).transpose();
    Some((class, settings))
}

/// What is in effect for a Gateway: its class's settings, overlaid by its own (`infrastructure.parametersRef`).
pub(super) fn resolve_parameters(
    reader: &Reader<'_>,
    gateway: &Gateway,
    class: Result<Option<&GatewaySettings>, Problem>,
) -> Result<Arc<GatewayParameters>, Problem> {
    let class = class
        .map_err(|p| Problem::new(p.reason, format!("GatewayClass {}: {}", gateway.class, p.message)))?;
    let reference = gateway.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref());
    let own = reference.map(|p| settings(reader, p, Some(&gateway.meta.key.namespace))).transpose()?;
    let parameters = GatewayParameters::new(class, own);
    parameters.map(Arc::new).map_err(|why| Problem::new(reason::INVALID_PARAMETERS, why))
}

/// `parametersRef` may name a `WeftGatewayConfig` or a ConfigMap that is there and right; anything else is
/// `InvalidParameters`.
fn settings<'a>(
    reader: &Reader<'a>,
    parameters: &ParametersRef,
    default_namespace: Option<&Str>,
) -> Result<&'a GatewaySettings, Problem> {
    let invalid = |why: String| Err(Problem::new(reason::INVALID_PARAMETERS, why));
    let kind = &parameters.kind;
    let is_config = &*kind.group == "weft.dev" && &*kind.kind == "WeftGatewayConfig";
    if !is_config && !kind.is(Kind::ConfigMap) {
        return invalid(format!(
            "parametersRef names {kind} \"{}\", which nothing here reads; use a WeftGatewayConfig of weft.dev or a \
             ConfigMap",
            parameters.name
        ));
    }
    let Some(namespace) = parameters.namespace.as_ref().or(default_namespace) else {
        return invalid(format!("parametersRef to {kind} \"{}\" needs a namespace", parameters.name));
    };
    let key = ObjectKey::new(namespace.clone(), parameters.name.clone());
    let found = if is_config {
        reader.gateway_config(&key).map(|c| Some(&c.settings))
    } else {
        reader.config_map(&key).map(|c| c.parameters.as_ref().map(WrittenSettings::settings))
    };
    match found {
        None => invalid(format!("parametersRef names {kind} {key}, which does not exist")),
        Some(None) => invalid(format!("{kind} {key} has no config.yaml")),
        Some(Some(Err(why))) => invalid(format!("{kind} {key}: {why}")),
        Some(Some(Ok(settings))) => Ok(settings),
    }
}
