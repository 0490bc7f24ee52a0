//! What an answer says about its endpoint.

use http::StatusCode;

/// `RESOURCE_EXHAUSTED` and `UNAVAILABLE` of gRPC.
const RESOURCE_EXHAUSTED: u16 = 8;
const UNAVAILABLE: u16 = 14;

/// What an answer says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is well, whatever it thinks of the request.
    Good,
    /// It has more to do than it can.
    TooBusy,
    /// It cannot serve.
    ServerError,
    /// Nothing yet: gRPC tells at the end of its answer.
    Open,
}

impl Answer {
    /// By status, and `grpc-status` if it is known by now. `grpc`: it will come if it has not.
    #[must_use]
    pub fn of(status: StatusCode, grpc: bool, grpc_status: Option<u16>) -> Self {
        match (status, grpc_status) {
            (StatusCode::TOO_MANY_REQUESTS, _) | (_, Some(RESOURCE_EXHAUSTED)) => Self::TooBusy,
            (_, Some(UNAVAILABLE)) => Self::ServerError,
            (status, _) if status.is_server_error() => Self::ServerError,
            (_, None) if grpc => Self::Open,
            _ => Self::Good,
        }
    }
}
