//! Which GatewayClasses are ours, and `parametersRef`.

use super::{Problem, Reader, reason};
use crate::model::{CONTROLLER_NAME, GatewayClass, Kind, ObjectKey, ParametersRef, Str};
use std::sync::Arc;

/// A class of ours: itself, and whether it is accepted. `None` for everybody else's, of which nothing is said.
pub(crate) fn resolve_class<'a>(
    reader: &Reader<'a>,
    name: &Str,
) -> Option<(&'a Arc<GatewayClass>, Result<(), Problem>)> {
    let class = reader.class(name).filter(|c| &*c.controller == CONTROLLER_NAME)?;
    let accepted = class.parameters_ref.as_ref().map_or(Ok(()), |p| check_parameters(reader, p, None));
    Some((class, accepted))
}

/// `parametersRef` may name a `WeftGatewayConfig` or a ConfigMap that is there; anything else is `InvalidParameters`.
pub(super) fn check_parameters(
    reader: &Reader<'_>,
    parameters: &ParametersRef,
    default_namespace: Option<&Str>,
) -> Result<(), Problem> {
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
    let found = if is_config { reader.has_gateway_config(&key) } else { reader.config_map(&key).is_some() };
    if found { Ok(()) } else { invalid(format!("parametersRef names {kind} {key}, which does not exist")) }
}
