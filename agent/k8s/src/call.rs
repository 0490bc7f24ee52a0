//! One call to the API server: a deadline, and errors that say what to do next.

use kube::client::Body;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// No call takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Why a call did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// 404, or the namespace is going away: the object is gone, nothing is left to do.
    #[error("not found")]
    Gone,
    /// 409: the object is not the one that was read. Read it again.
    #[error("conflict: {0}")]
    Conflict(String),
    /// 403: a rule is missing in our ClusterRole. Ours to fix, try again seldom.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// 429 or 503 with `Retry-After`: nothing is to be sent for this long.
    #[error("the API server asks to wait {0:?}")]
    Throttled(Duration),
    /// Another 4xx: the request is bad. Ours to fix, trying it again unchanged does not help.
    #[error("refused with {code}: {message}")]
    Refused { code: u16, message: String },
    /// The API server or the way to it fails. Try again.
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
}

/// Sends `request` and gives the body of a successful answer.
pub(crate) async fn call(
    client: &kube::Client,
    request: http::Request<Vec<u8>>,
) -> Result<Vec<u8>, CallError> {
    match tokio::time::timeout(DEADLINE, send(client, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(CallError::Unavailable(format!("no answer within {DEADLINE:?}"))),
    }
}

/// Like [`call`], and reads the answer as JSON.
pub(crate) async fn call_json<T: DeserializeOwned>(
    client: &kube::Client,
    request: http::Request<Vec<u8>>,
) -> Result<T, CallError> {
    let body = call(client, request).await?;
    serde_json::from_slice(&body).map_err(|e| CallError::Unavailable(format!("cannot read its answer: {e}")))
}

async fn send(client: &kube::Client, request: http::Request<Vec<u8>>) -> Result<Vec<u8>, CallError> {
    let failed = |e: kube::Error| CallError::Unavailable(e.to_string());
    let response = client.send(request.map(Body::from)).await.map_err(failed)?;
    let (head, body) = response.into_parts();
    let body = body.collect_bytes().await.map_err(failed)?.to_vec();
    if head.status.is_success() { Ok(body) } else { Err(refusal(&head, &body)) }
}

/// The parts of `metav1.Status` that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    retry_after_seconds: Option<u64>,
}

fn refusal(head: &http::response::Parts, body: &[u8]) -> CallError {
    // Priority and fairness answers plain text, everything else a Status.
    let refusal = serde_json::from_slice(body).unwrap_or_else(|_| Refusal {
        message: String::from_utf8_lossy(&body[..body.len().min(512)]).into_owned(),
        details: None,
    });
    let message = refusal.message;
    let header = head.headers.get(http::header::RETRY_AFTER);
    let header = header.and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let wait = header.or_else(|| refusal.details?.retry_after_seconds);
    let wait = wait.map(|s| Duration::from_secs(s.clamp(1, 60)));
    match (head.status.as_u16(), wait) {
        (404 | 410, _) => CallError::Gone,
        // Admission says so with 403, which is no matter of RBAC.
        (403, _) if message.contains("because it is being terminated") => CallError::Gone,
        (403, _) => CallError::Forbidden(message),
        (409, _) => CallError::Conflict(message),
        (429, wait) => CallError::Throttled(wait.unwrap_or(Duration::from_secs(1))),
        (503, Some(wait)) => CallError::Throttled(wait),
        // Our token is read again by the client: this passes.
        (401, _) => CallError::Unavailable(format!("401: {message}")),
        (code @ 400..500, _) => CallError::Refused { code, message },
        (code, _) => CallError::Unavailable(format!("{code}: {message}")),
    }
}

/// `base` ± 20 %, so that replicas do not call at the same moment.
pub(crate) fn jittered(base: Duration) -> Duration {
    // Every RandomState has its own keys: a number for jitter, not for secrets.
    let draw = RandomState::new().hash_one(0_u8) % 401;
    base * u32::try_from(800 + draw).unwrap_or(1000) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: u16, retry_after: Option<&str>, body: &str, want: &str) {
        let mut response = http::Response::builder().status(code);
        if let Some(value) = retry_after {
            response = response.header("retry-after", value);
        }
        let (head, ()) = response.body(()).expect("a response").into_parts();
        assert_eq!(refusal(&head, body.as_bytes()).to_string(), want, "{code} {body}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        check(404, None, "{}", "not found");
        check(409, None, r#"{"message":"modified"}"#, "conflict: modified");
        check(403, None, r#"{"message":"cannot patch"}"#, "forbidden: cannot patch");
        check(
            403,
            None,
            r#"{"message":"unable to create new content in namespace x because it is being terminated"}"#,
            "not found",
        );
        check(429, Some("7"), "Too many requests", "the API server asks to wait 7s");
        check(429, None, r#"{"details":{"retryAfterSeconds":3}}"#, "the API server asks to wait 3s");
        check(429, Some("soon"), "", "the API server asks to wait 1s");
        check(503, Some("2"), "", "the API server asks to wait 2s");
        check(503, None, "down", "the API server does not answer: 503: down");
        check(422, None, r#"{"message":"bad"}"#, "refused with 422: bad");
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for _ in 0..1000 {
            let drawn = jittered(Duration::from_secs(10));
            assert!((8.0..=12.0).contains(&drawn.as_secs_f64()), "{drawn:?}");
        }
    }
}
