//! Who a service-account token speaks for: TokenReview, with a short memory of good answers.

mod access;
mod claims;
mod known;

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, timeout};
use weft_control::{AuthFuture, Authenticate, Caller, Denied};

use self::{claims::Claims, known::Known};

pub use self::access::{AccessDenied, AccessReviewer};

/// The audience of agents' tokens.
const AUDIENCE: &str = "weft-controller";
/// How long a good answer counts: a token that is revoked, or whose pod is gone, works no longer than this.
const MEMORY: Duration = Duration::from_secs(60);
/// How many good answers are remembered.
const REMEMBERED: usize = 8192;
/// How long the API server may take.
const ANSWER: Duration = Duration::from_secs(8);
/// What a token bound to a pod says of it.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Asks the API server about tokens. Bad answers are not remembered: a caller that reads its token anew is let in at
/// once.
pub struct TokenReviewer {
    reviews: Api<TokenReview>,
    audiences: Vec<String>,
    known: Known<Caller>,
}

impl TokenReviewer {
    /// Reviews tokens that are made for the controller.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self::for_audiences(client, vec![AUDIENCE.to_owned()])
    }

    /// Reviews tokens that are made for any of `audiences`; ztunnel's are made for `istio-ca`.
    #[must_use]
    pub fn for_audiences(client: Client, audiences: Vec<String>) -> Self {
        Self { reviews: Api::all(client), audiences, known: Known::new(REMEMBERED, MEMORY) }
    }

    async fn review(&self, token: &str) -> Result<Caller, Denied> {
        // Taken before the question: the answer is at least as old.
        let asked = Instant::now();
        let spec = TokenReviewSpec { audiences: Some(self.audiences.clone()), token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let answer = timeout(ANSWER, self.reviews.create(&params, &review)).await;
        let unavailable = |reason: String| Denied::Unavailable(reason);
        let answer = answer
            .map_err(|_| unavailable(format!("the API server did not answer within {ANSWER:?}")))?
            // The error says what the API server said; it never repeats the request.
            .map_err(|e| unavailable(e.to_string()))?;
        let caller = caller(answer.status.unwrap_or_default(), &self.audiences)?;
        self.known.remember(token, asked, caller.clone());
        Ok(caller)
    }
}

impl Authenticate for TokenReviewer {
    fn recall(&self, token: &str) -> Option<Result<Caller, Denied>> {
        if let Some((_, caller)) = self.known.recall(token, Instant::now()) {
            return Some(Ok(caller));
        }
        let said = Claims::read(token).and_then(|c| c.of_account(&self.audiences, Timestamp::now()));
        said.err().map(Err)
    }

    fn authenticate<'a>(&'a self, token: &'a str) -> AuthFuture<'a> {
        Box::pin(self.review(token))
    }
}

/// What the API server's answer says.
fn caller(status: TokenReviewStatus, wanted: &[String]) -> Result<Caller, Denied> {
    if status.authenticated != Some(true) {
        return Err(refused(status.error.unwrap_or_default()));
    }
    // An answer without audiences comes from an authenticator that does not know of them: then the token is one for the
    // API server itself.
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|audience| wanted.contains(audience)) {
        return Err(Denied::WrongAudience(audiences.join(", ")));
    }
    let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
    let username = username.unwrap_or_default();
    let account = username.strip_prefix("system:serviceaccount:").and_then(|name| name.split_once(':'));
    let (namespace, service_account) =
        account.ok_or_else(|| Denied::Unbound(format!("{username} is no service account")))?;
    let extra: BTreeMap<String, Vec<String>> = extra.unwrap_or_default();
    let bound = |key: &str| {
        let value = extra.get(key).and_then(|values| values.first()).filter(|value| !value.is_empty());
        value.map(|value| value.as_str().into()).ok_or_else(|| Denied::Unbound(format!("no {key}")))
    };
    Ok(Caller {
        namespace: namespace.into(),
        service_account: service_account.into(),
        pod: bound(POD_NAME)?,
        pod_uid: bound(POD_UID)?,
        node: bound(NODE_NAME)?,
    })
}

/// The API server says why in words only.
fn refused(error: String) -> Denied {
    if error.contains("expired") {
        Denied::Expired
    } else if error.contains("audience") {
        Denied::WrongAudience(error)
    } else {
        Denied::Invalid(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{
        "authenticated": true,
        "audiences": ["weft-controller"],
        "user": {
            "username": "system:serviceaccount:weft-system:weft-agent",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["weft-agent-x7"],
                "authentication.kubernetes.io/pod-uid": ["u-1"],
                "authentication.kubernetes.io/node-name": ["n1"]
            }
        }
    }"#;

    fn check(edit: impl Fn(&mut serde_json::Value), reason: Option<&str>) {
        let mut status: serde_json::Value = serde_json::from_str(GOOD).unwrap();
        edit(&mut status);
        let status = serde_json::from_value(status).unwrap();
        let answer = caller(status, &[AUDIENCE.to_owned()]);
        assert_eq!(answer.as_ref().err().map(Denied::reason), reason, "{answer:?}");
    }

    #[test]
    fn says_who_a_token_speaks_for() {
        let status = serde_json::from_str(GOOD).unwrap();
        let caller = caller(status, &[AUDIENCE.to_owned()]).unwrap();
        let parts = [&caller.namespace, &caller.service_account, &caller.pod, &caller.pod_uid, &caller.node];
        assert_eq!(parts.map(|part| &**part), ["weft-system", "weft-agent", "weft-agent-x7", "u-1", "n1"]);
    }

    #[test]
    fn tells_why_a_token_is_not_good() {
        let error = |text: &'static str| {
            move |status: &mut serde_json::Value| {
                *status = serde_json::json!({"authenticated": false, "error": text});
            }
        };
        check(|_| {}, None);
        check(error("[invalid bearer token, service account token has expired]"), Some("token_expired"));
        let wrong = "token audiences [\"api\"] is invalid for the target audiences [\"weft-controller\"]";
        check(error(wrong), Some("token_wrong_audience"));
        check(error("[invalid bearer token, Token has been invalidated]"), Some("token_invalid"));
        check(|status| status["authenticated"] = false.into(), Some("token_invalid"));
        check(|status| *status = serde_json::json!({}), Some("token_invalid"));
        check(|status| status["audiences"] = serde_json::json!(["api"]), Some("token_wrong_audience"));
        check(|status| status["audiences"] = serde_json::json!([]), Some("token_wrong_audience"));
        check(|status| status["user"]["username"] = "admin".into(), Some("token_unbound"));
        check(|status| status["user"]["username"] = "system:serviceaccount:x".into(), Some("token_unbound"));
        let extra = |key: &'static str| {
            move |status: &mut serde_json::Value| {
                status["user"]["extra"].as_object_mut().unwrap().remove(key);
            }
        };
        for key in [POD_NAME, POD_UID, NODE_NAME] {
            check(extra(key), Some("token_unbound"));
        }
    }

    /// What was heard of a token is said at once, and what cannot be one of ours too; the rest is asked about.
    #[tokio::test]
    async fn knows_without_asking_whom_it_has_heard_of_and_who_cannot_be_meant() {
        let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            panic!("the API server is asked");
            #[allow(unreachable_code)]
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::empty()))
        });
        let reviewer = TokenReviewer::new(Client::new(nobody, "default"));
        let mut claims = claims::tests::good();
        claims["exp"] = (Timestamp::now().as_second() + 600).into();
        let token = claims::tests::token(&claims);
        assert_eq!(reviewer.recall(&token), None);
        let caller = caller(serde_json::from_str(GOOD).unwrap(), &[AUDIENCE.to_owned()]).unwrap();
        reviewer.known.remember(token.as_str(), Instant::now(), caller.clone());
        assert_eq!(reviewer.recall(&token), Some(Ok(caller)));
        claims["aud"] = "api".into();
        let other = claims::tests::token(&claims);
        assert_eq!(reviewer.recall(&other), Some(Err(Denied::WrongAudience("api".into()))));
        assert!(matches!(reviewer.recall("garbage"), Some(Err(Denied::Invalid(_)))));
    }
}
