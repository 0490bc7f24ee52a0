use super::{super::claims, *};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{convert::Infallible, net::Ipv4Addr, sync::Arc};

const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const SCRAPER: &str = "system:serviceaccount:monitoring:prometheus";

/// An API server that knows one scraper.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    away: bool,
    revoked: bool,
    asked: Vec<Value>,
}

impl Server {
    fn reviewer(&self) -> AccessReviewer {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let asked = serde_json::from_slice(&body).unwrap();
                Ok::<_, Infallible>(server.answer(head.uri.path(), asked))
            }
        });
        AccessReviewer::new(Client::new(service, "default"))
    }

    fn answer(&self, path: &str, mut review: Value) -> Response<Body> {
        let mut state = self.0.lock();
        state.asked.push(review.clone());
        if state.away {
            let mut response = Response::new(Body::from(b"{}".to_vec()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        }
        review["status"] = match path {
            "/apis/authentication.k8s.io/v1/tokenreviews" => who(&review["spec"]),
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
                let spec = &review["spec"];
                let scrapes = spec["nonResourceAttributes"] == json!({"path": "/metrics", "verb": "get"});
                let named = spec["user"] == SCRAPER && spec["groups"] == json!(["system:authenticated"]);
                json!({"allowed": scrapes && named && !state.revoked})
            }
            other => panic!("{other} is asked"),
        };
        Response::new(Body::from(review.to_string().into_bytes()))
    }

    fn questions(&self) -> usize {
        self.0.lock().asked.len()
    }
}

/// Believes a token's claims, for the audience that was asked for or its own.
fn who(spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap();
    let wanted = spec.get("audiences").cloned().unwrap_or_else(|| json!(["api"]));
    let account = |name| claims::tests::token(&claims_of(name, "api", 600)) == token;
    let ours = |name| claims::tests::token(&claims_of(name, AUDIENCE, 600)) == token;
    let names = [SCRAPER, "system:serviceaccount:shop:web"];
    match names.into_iter().find(|n| if wanted == json!([AUDIENCE]) { ours(n) } else { account(n) }) {
        Some(name) => json!({
            "authenticated": true,
            "audiences": wanted,
            "user": {"username": name, "uid": "u", "groups": ["system:authenticated"]},
        }),
        None => json!({"authenticated": false, "error": "invalid bearer token"}),
    }
}

/// The same second for a whole test: tokens are compared.
fn claims_of(name: &str, audience: &str, seconds: i64) -> Value {
    static START: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    let start = START.get_or_init(|| Timestamp::now().as_second());
    json!({"iss": "https://api", "sub": name, "aud": audience, "exp": start + seconds})
}

fn token(name: &str, audience: &str) -> String {
    claims::tests::token(&claims_of(name, audience, 600))
}

#[tokio::test]
async fn who_may_read_metrics_is_decided_by_the_api_server() {
    let server = Server::default();
    let reviewer = server.reviewer();
    let check = async |token: &str, path: &str, reason: Option<&str>, questions: usize| {
        let before = server.questions();
        let answer = reviewer.may_get(token, path, FROM).await;
        let said = answer.err().map(|denied| match denied {
            AccessDenied::Unknown(denied) => denied.reason(),
            AccessDenied::Forbidden { .. } => "forbidden",
        });
        assert_eq!(said, reason, "{token} {path}");
        assert_eq!(server.questions() - before, questions, "{token} {path}: questions to the API server");
    };
    check(&token(SCRAPER, "api"), "/metrics", None, 2).await;
    check(&token(SCRAPER, "api"), "/metrics", None, 0).await;
    check(&token(SCRAPER, AUDIENCE), "/metrics", None, 2).await;
    check(&token(SCRAPER, AUDIENCE), "/status", Some("forbidden"), 2).await;
    check(&token("system:serviceaccount:shop:web", "api"), "/metrics", Some("forbidden"), 2).await;
    check(&token("system:serviceaccount:shop:web", "api"), "/metrics", Some("forbidden"), 0).await;
    check(&token("system:serviceaccount:shop:forged", "api"), "/metrics", Some("token_invalid"), 1).await;
    check(&token(SCRAPER, "weft-controller"), "/metrics", Some("token_invalid"), 1).await;
    let old = claims::tests::token(&claims_of(SCRAPER, "api", -3600));
    check(&old, "/metrics", Some("token_expired"), 0).await;
    check("garbage", "/metrics", Some("token_invalid"), 0).await;
    check("", "/metrics", Some("token_invalid"), 0).await;
}

#[tokio::test(start_paused = true)]
async fn answers_hold_for_a_bounded_time_and_longer_while_the_api_server_is_away() {
    let server = Server::default();
    let reviewer = server.reviewer();
    let good = token(SCRAPER, AUDIENCE);
    let ask = async || reviewer.may_get(&good, "/metrics", FROM).await;
    server.0.lock().away = true;
    assert!(
        matches!(ask().await, Err(AccessDenied::Unknown(Denied::Unavailable(_)))),
        "nothing is known yet"
    );
    server.0.lock().away = false;
    assert_eq!(ask().await, Ok(()));
    // Away: the last answer holds, but not for ever.
    server.0.lock().away = true;
    tokio::time::advance(STALE - Duration::from_secs(1)).await;
    assert_eq!(ask().await, Ok(()));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(matches!(ask().await, Err(AccessDenied::Unknown(Denied::Unavailable(_)))));
    // Back: a right that is taken away is gone within a minute, and its answer is not remembered beside the new one.
    server.0.lock().away = false;
    assert_eq!(ask().await, Ok(()));
    server.0.lock().revoked = true;
    assert_eq!(ask().await, Ok(()), "for a minute");
    tokio::time::advance(FRESH).await;
    assert!(matches!(ask().await, Err(AccessDenied::Forbidden { .. })));
    server.0.lock().away = true;
    tokio::time::advance(REFUSED).await;
    assert!(ask().await.is_err(), "who was forbidden is not let in because nobody can be asked");
    // And given again, it holds again within seconds.
    (server.0.lock().away, server.0.lock().revoked) = (false, false);
    assert_eq!(ask().await, Ok(()));
}

/// Ten times what one address may ask, of tokens that only the API server can tell from good ones.
#[tokio::test(start_paused = true)]
async fn worthless_tokens_cost_the_api_server_little_and_scrapers_nothing() {
    let server = Server::default();
    let reviewer = server.reviewer();
    let good = token(SCRAPER, "api");
    assert_eq!(reviewer.may_get(&good, "/metrics", FROM).await, Ok(()));
    server.0.lock().asked.clear();
    let flooder = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 66));
    let (mut put_off, total) = (0, 10 * REVIEWS.burst);
    for n in 0..total {
        let garbage = token(&format!("system:serviceaccount:shop:forged-{n}"), "api");
        let answer = reviewer.may_get(&garbage, "/metrics", flooder).await;
        put_off += u32::from(answer == Err(AccessDenied::Unknown(Denied::TooMany)));
    }
    assert_eq!(put_off, total - REVIEWS.burst);
    assert_eq!(server.questions(), REVIEWS.burst as usize);
    // From the flooder's own address too: memory comes first.
    assert_eq!(reviewer.may_get(&good, "/metrics", flooder).await, Ok(()));
    tokio::time::advance(FRESH).await;
    assert_eq!(reviewer.may_get(&good, "/metrics", FROM).await, Ok(()));
    tokio::time::advance(Duration::from_secs(1)).await;
    server.0.lock().asked.clear();
    for n in 0..100 {
        let garbage = token(&format!("system:serviceaccount:shop:again-{n}"), "api");
        let _ = reviewer.may_get(&garbage, "/metrics", flooder).await;
    }
    assert!(server.questions() as u64 <= 32, "the burst at most: {}", server.questions());
}
