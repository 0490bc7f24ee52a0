//! Who may read a page of ours: TokenReview says who asks, SubjectAccessReview whether that one may, as Kubernetes' own
//! components decide about their `/metrics`. Answers are remembered, the good ones also while the API server is away.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use weft_control::{Denied, Quota, Quotas};
use weft_core::budget;

use super::{claims::Claims, known::Known, refused};

/// The audience of tokens that are made for reading our pages and are good for nothing else.
const AUDIENCE: &str = "weft-metrics";
/// How long a good answer counts without being asked for again.
const FRESH: Duration = Duration::from_secs(60);
/// How long it counts while the API server does not answer.
const STALE: Duration = Duration::from_secs(600);
/// How long it counts that somebody may not.
const REFUSED: Duration = Duration::from_secs(10);
/// Scrapers that are remembered, and others.
const REMEMBERED: (usize, usize) = (64, 1024);
/// How long the API server may take for both answers: scrapers wait ten seconds.
const ANSWER: Duration = Duration::from_secs(5);
/// Callers about whom the API server is asked at once.
const QUESTIONS: usize = 8;
/// Those of one address.
const REVIEWS: Quota = Quota { at_once: 1, waiting: 4, burst: 32, rate: budget::PAGE_REVIEWS.size() as u32 };

/// Why somebody may not read a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessDenied {
    /// Nobody knows who asks.
    #[error("{0}")]
    Unknown(Denied),
    /// It is known who asks, and that is nobody who may.
    #[error("{user} has no right to `get` the nonResourceURL {path}")]
    Forbidden {
        /// Name of the user, as the API server says it.
        user: String,
        /// The page.
        path: String,
    },
}

/// Asks the API server about readers of pages.
pub struct AccessReviewer {
    tokens: Api<TokenReview>,
    access: Api<SubjectAccessReview>,
    allowed: Known<()>,
    forbidden: Known<AccessDenied>,
    reviews: Quotas<IpAddr>,
    questions: Semaphore,
}

impl AccessReviewer {
    /// A reviewer that knows nobody yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            tokens: Api::all(client.clone()),
            access: Api::all(client),
            allowed: Known::new(REMEMBERED.0, STALE),
            forbidden: Known::new(REMEMBERED.1, REFUSED),
            reviews: Quotas::new(REVIEWS),
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// Whether the bearer of `token`, who calls from `from`, may `get` the page `path`.
    ///
    /// # Errors
    /// Why not.
    pub async fn may_get(&self, token: &str, path: &str, from: IpAddr) -> Result<(), AccessDenied> {
        let claims = Claims::read(token).map_err(AccessDenied::Unknown)?;
        if claims.expired(Timestamp::now()) {
            return Err(AccessDenied::Unknown(Denied::Expired));
        }
        let known = self.allowed.recall((token, path), Instant::now());
        if known.is_some_and(|(age, ())| age < FRESH) {
            return Ok(());
        }
        if let Some((_, denied)) = self.forbidden.recall((token, path), Instant::now()) {
            return Err(denied);
        }
        match self.review((token, claims.is_for(&[AUDIENCE])), path, from).await {
            // Nobody says that this has changed.
            Err(AccessDenied::Unknown(Denied::Unavailable(_) | Denied::TooMany)) if known.is_some() => Ok(()),
            answer => answer,
        }
    }

    async fn review(
        &self,
        (token, ours): (&str, bool),
        path: &str,
        from: IpAddr,
    ) -> Result<(), AccessDenied> {
        let too_many = || AccessDenied::Unknown(Denied::TooMany);
        let asking = async {
            let _turn = self.reviews.wait(&from).await.ok_or_else(too_many)?;
            if !self.reviews.charge(&from) {
                return Err(too_many());
            }
            // The semaphore is never closed.
            let _question = self.questions.acquire().await.ok();
            // Taken before the question: the answer is at least as old.
            let asked = Instant::now();
            let answer = self.ask((token, ours), path).await;
            match &answer {
                Ok(()) => self.allowed.remember((token, path), asked, ()),
                Err(AccessDenied::Unknown(Denied::Unavailable(_) | Denied::TooMany)) => {}
                Err(denied) => {
                    self.allowed.forget((token, path));
                    self.forbidden.remember((token, path), asked, denied.clone());
                }
            }
            answer
        };
        timeout(ANSWER, asking).await.unwrap_or_else(|_| {
            let late = format!("the API server did not answer within {ANSWER:?}");
            Err(AccessDenied::Unknown(Denied::Unavailable(late)))
        })
    }

    async fn ask(&self, (token, ours): (&str, bool), path: &str) -> Result<(), AccessDenied> {
        let user = self.who(token, ours).await.map_err(AccessDenied::Unknown)?;
        let attributes = NonResourceAttributes { path: Some(path.to_owned()), verb: Some("get".to_owned()) };
        let spec = SubjectAccessReviewSpec {
            user: user.username.clone(),
            groups: user.groups,
            uid: user.uid,
            extra: user.extra,
            non_resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = self.access.create(&PostParams::default(), &review).await.map_err(unavailable)?;
        if answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)) {
            return Ok(());
        }
        let user = user.username.unwrap_or_default();
        Err(AccessDenied::Forbidden { user, path: path.to_owned() })
    }

    /// Tokens for our audience are reviewed for it, others for the API server's own, which every pod has.
    async fn who(&self, token: &str, ours: bool) -> Result<UserInfo, Denied> {
        let audiences = ours.then(|| vec![AUDIENCE.to_owned()]);
        let spec = TokenReviewSpec { audiences, token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self.tokens.create(&PostParams::default(), &review).await;
        // The error says what the API server said; it never repeats the request.
        let status = answer.map_err(|e| Denied::Unavailable(e.to_string()))?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(refused(status.error.unwrap_or_default()));
        }
        let said = status.audiences.unwrap_or_default();
        if ours && !said.iter().any(|audience| audience == AUDIENCE) {
            return Err(Denied::WrongAudience(said.join(", ")));
        }
        Ok(status.user.unwrap_or_default())
    }
}

fn unavailable(error: kube::Error) -> AccessDenied {
    AccessDenied::Unknown(Denied::Unavailable(error.to_string()))
}

#[cfg(test)]
mod tests;
