//! `CreateCertificate`: the CA signs for the pods and Gateways of the caller's node.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Response, Status};
use weft_certs::{CaError, SpiffeId, csr_from_pem, csr_names_only};

use super::Shared;
use crate::{
    auth::{Caller, Refusal},
    istio::{IstioCertificateRequest, IstioCertificateResponse},
};

/// The life of a certificate when the caller wishes none.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked whether a Gateway is served by now.
const EARLY_PACE: Duration = Duration::from_millis(50);

pub(super) async fn create(
    shared: Arc<Shared>,
    caller: Caller,
    request: Request<IstioCertificateRequest>,
) -> Result<Response<IstioCertificateResponse>, Status> {
    let request = request.into_inner();
    let identity = wanted(&shared, &caller, &request).inspect_err(|status| {
        shared.counters.count("refused_bad_request");
        tracing::warn!(node = %caller.node, error = status.message(), "certificate request refused");
    })?;
    if let Err(refusal) = permitted(&shared, &caller, &identity).await {
        return Err(shared.refuse(&caller, Some(&identity), &refusal));
    }
    let place = timeout(shared.config.limits.step, shared.quotas.acquire(&caller.node)).await;
    let Ok(Some(place)) = place else {
        shared.counters.count("refused_too_many");
        tracing::warn!(node = %caller.node, %identity, reason = "too_many", "certificate refused");
        return Err(Status::resource_exhausted("this node asks for too many certificates; try again later"));
    };
    let signing = {
        let (shared, identity) = (shared.clone(), identity.clone());
        // Two signatures checked and one made: half a millisecond that no other stream should wait for.
        tokio::task::spawn_blocking(move || {
            let _place = place;
            sign(&shared, &request, &identity)
        })
    };
    let signed = signing.await.map_err(|_| Status::internal("signing panicked"))?;
    match signed {
        Ok(cert_chain) => {
            shared.counters.count("signed");
            tracing::info!(node = %caller.node, %identity, "certificate signed");
            Ok(Response::new(IstioCertificateResponse { cert_chain }))
        }
        Err(status) => {
            shared.counters.count("refused_not_signed");
            tracing::warn!(node = %caller.node, %identity, error = status.message(), "certificate not signed");
            Err(status)
        }
    }
}

/// Whether the caller may have it. An agent may see a moment earlier than we do that a Gateway is served on its node.
async fn permitted(shared: &Shared, caller: &Caller, identity: &SpiffeId) -> Result<(), Refusal> {
    let until = Instant::now() + shared.config.limits.early;
    loop {
        match shared.config.authorize.may_have(caller, identity) {
            Err(Refusal::GatewayNotServed(_)) if Instant::now() < until => sleep(EARLY_PACE).await,
            decided => return decided,
        }
    }
}

/// For whom the certificate is, as far as the request says so without contradiction.
fn wanted(shared: &Shared, caller: &Caller, request: &IstioCertificateRequest) -> Result<SpiffeId, Status> {
    let named = request.impersonated().map_err(|e| Status::invalid_argument(e.to_string()))?;
    let own = || {
        let trust_domain = shared.config.identity.trust_domain.clone();
        SpiffeId::new(trust_domain, caller.namespace.clone(), caller.service_account.clone())
    };
    let identity = named.unwrap_or_else(own);
    let checked = csr_from_pem(request.csr.as_bytes()).and_then(|csr| csr_names_only(&csr, &identity));
    checked.map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(identity)
}

fn sign(
    shared: &Shared,
    request: &IstioCertificateRequest,
    identity: &SpiffeId,
) -> Result<Vec<String>, Status> {
    let ca = shared.config.ca.borrow().clone();
    let ca = ca.ok_or_else(|| Status::unavailable("there is no CA yet"))?;
    let wish = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0);
    let ttl = wish.map_or(LIFE, Duration::from_secs);
    let csr = csr_from_pem(request.csr.as_bytes());
    let signed = csr.and_then(|csr| ca.sign(&csr, identity, ttl, shared.config.clock.now()));
    match signed {
        Ok(certificate) => Ok(certificate.to_pem_chain()),
        Err(error @ CaError::Csr(_)) => Err(Status::invalid_argument(error.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}
