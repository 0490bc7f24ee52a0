//! Certificates from the controller, or from whoever speaks Istio's CA protocol at its place.

use std::{path::PathBuf, time::Duration};

use http::uri::PathAndQuery;
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_prost::ProstCodec;
use weft_certs::{IssueError, IssueFuture, IssueRequest, IssuedCertificate, Issuer};

use super::connect::bearer;
use crate::istio::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse};

/// The largest answer, in bytes: a chain and a bundle of roots.
const ANSWER_MAX: usize = 1 << 20;
/// How long an answer may take. The store's own deadline is longer.
const ANSWER: Duration = Duration::from_secs(8);

/// Asks over the client's connection of the moment.
pub(super) struct RemoteIssuer {
    pub(super) channel: watch::Receiver<Option<Channel>>,
    pub(super) token: PathBuf,
    pub(super) server_name: String,
    pub(super) wait: Duration,
}

impl Issuer for RemoteIssuer {
    fn issue(&self, request: IssueRequest) -> IssueFuture<'_> {
        Box::pin(self.ask(request))
    }
}

impl RemoteIssuer {
    async fn ask(&self, request: IssueRequest) -> Result<IssuedCertificate, IssueError> {
        let unavailable = |reason: String| IssueError::Unavailable { reason };
        let channel = self.channel().await.ok_or_else(|| {
            unavailable(format!("no connection to {} within {:?}", self.server_name, self.wait))
        })?;
        let seconds = i64::try_from(request.ttl.as_secs()).unwrap_or(i64::MAX);
        let message = IstioCertificateRequest::on_behalf(request.csr_pem(), seconds, &request.identity);
        let mut call = Request::new(message);
        let token = bearer(&self.token).await.map_err(|e| IssueError::Local { reason: e.to_string() })?;
        call.metadata_mut().insert("authorization", token);
        call.set_timeout(ANSWER);
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(ANSWER_MAX);
        let asked = async {
            grpc.ready().await.map_err(|e| unavailable(e.to_string()))?;
            let codec = ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
            let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
            grpc.unary(call, path, codec).await.map_err(|status| refused(&status))
        };
        let answer = timeout(ANSWER, asked).await.map_err(|_| IssueError::TimedOut(ANSWER))??;
        IssuedCertificate::from_pem_chain(answer.get_ref().cert_chain.iter().map(String::as_str))
    }

    /// The connection, when there is one.
    async fn channel(&self) -> Option<Channel> {
        let mut channel = self.channel.clone();
        let found = timeout(self.wait, channel.wait_for(Option::is_some)).await.ok()?.ok()?;
        found.clone()
    }
}

fn refused(status: &Status) -> IssueError {
    let reason = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument => IssueError::BadRequest { reason },
        Code::PermissionDenied | Code::Unauthenticated => IssueError::Denied { reason },
        code => IssueError::Unavailable { reason: format!("{code:?}: {reason}") },
    }
}
