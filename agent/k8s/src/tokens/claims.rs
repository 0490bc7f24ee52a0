//! What a token says of itself. It proves nothing, but who does not even say the right thing needs no question to the API
//! server, which anybody on the network could make us ask.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Deserialize;
use weft_control::Denied;

/// Longer texts are no tokens, in bytes.
const TOKEN_MAX: usize = 16 * 1024;
/// Clocks differ: a token counts as expired only when it has been for so long, in seconds.
const LEEWAY: i64 = 60;
/// Of a stranger's words so many characters are repeated.
const QUOTED: usize = 64;

/// The claims that are looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    iss: String,
    sub: String,
    aud: Audiences,
    /// Seconds, which the standard allows to have a fraction.
    exp: f64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

impl Claims {
    /// Reads a JSON Web Token in its compact form, unverified.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(token: &str) -> Result<Self, Denied> {
        let no_token = |what: &str| Denied::Invalid(format!("it is no JSON Web Token: {what}"));
        if token.len() > TOKEN_MAX {
            return Err(Denied::Invalid(format!("it has {} bytes", token.len())));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(no_token("it has not three parts"));
        };
        let header: Header = part(header).ok_or_else(|| no_token("its header cannot be read"))?;
        if header.alg.eq_ignore_ascii_case("none") || signature.is_empty() {
            return Err(no_token("it is not signed"));
        }
        let claims: Self = part(claims).ok_or_else(|| no_token("its claims cannot be read"))?;
        if claims.iss.is_empty() {
            return Err(no_token("it names no issuer"));
        }
        Ok(claims)
    }

    /// Whether the time is over that it gives itself.
    pub(super) fn expired(&self, now: Timestamp) -> bool {
        self.exp < (now.as_second() - LEEWAY) as f64
    }

    /// Whether it is for one of these.
    pub(super) fn is_for<S: AsRef<str>>(&self, wanted: &[S]) -> bool {
        self.audiences().iter().any(|audience| wanted.iter().any(|wanted| wanted.as_ref() == audience))
    }

    /// Whether it can be a service account's, for one of `wanted`, now.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn of_account<S: AsRef<str>>(&self, wanted: &[S], now: Timestamp) -> Result<(), Denied> {
        if !self.is_for(wanted) {
            let said: String = self.audiences().join(", ").chars().take(QUOTED).collect();
            return Err(Denied::WrongAudience(said));
        }
        if self.expired(now) {
            return Err(Denied::Expired);
        }
        if !self.sub.starts_with("system:serviceaccount:") {
            return Err(Denied::Invalid("it is no service account's".to_owned()));
        }
        Ok(())
    }

    fn audiences(&self) -> &[String] {
        match &self.aud {
            Audiences::One(one) => std::slice::from_ref(one),
            Audiences::Many(many) => many,
        }
    }
}

fn part<T: for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_800_000_000;

    /// A token with these claims that nobody has signed.
    pub(crate) fn token(claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2lnbmF0dXJl", part(&json!({"alg": "RS256", "kid": "k"})), part(claims))
    }

    pub(crate) fn good() -> Value {
        json!({
            "iss": "https://kubernetes.default.svc",
            "sub": "system:serviceaccount:weft-system:weft-agent",
            "aud": ["weft-controller"],
            "exp": NOW + 3600,
        })
    }

    fn check(token: &str, reason: Option<&str>) {
        let now = Timestamp::from_second(NOW).unwrap();
        let said = Claims::read(token).and_then(|claims| claims.of_account(&["weft-controller"], now));
        assert_eq!(said.as_ref().err().map(Denied::reason), reason, "{token}: {said:?}");
    }

    #[test]
    fn what_cannot_be_an_agents_token_is_refused_unasked() {
        let with = |field: &str, value: Value| {
            let mut claims = good();
            claims[field] = value;
            token(&claims)
        };
        check(&token(&good()), None);
        check(&with("aud", json!("weft-controller")), None);
        check(&with("aud", json!(["api", "weft-controller"])), None);
        check(&with("exp", json!(NOW - LEEWAY)), None);
        check(&with("exp", json!(NOW as f64 + 0.5)), None);
        check(&with("exp", json!(NOW - LEEWAY - 1)), Some("token_expired"));
        check(&with("aud", json!(["https://kubernetes.default.svc"])), Some("token_wrong_audience"));
        check(&with("aud", json!([])), Some("token_wrong_audience"));
        for (field, value) in [
            ("aud", json!(7)),
            ("exp", json!("soon")),
            ("exp", Value::Null),
            ("iss", json!("")),
            ("iss", Value::Null),
            ("sub", json!("admin")),
            ("sub", Value::Null),
        ] {
            check(&with(field, value), Some("token_invalid"));
        }
        let signed = token(&good());
        let (rest, _) = signed.rsplit_once('.').unwrap();
        let (_, claims) = rest.split_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for garbage in [
            "",
            "garbage",
            ".",
            "..",
            "a.b.c",
            rest,
            &format!("{rest}."),
            &format!("{signed}.more"),
            &format!("{none}.{claims}.c2ln"),
            &"x".repeat(TOKEN_MAX + 1),
            "\u{0}.\u{7f}.é",
        ] {
            check(garbage, Some("token_invalid"));
        }
    }

    #[test]
    fn a_strangers_words_are_not_repeated_at_length() {
        let mut claims = good();
        claims["aud"] = json!(["a".repeat(5000)]);
        let now = Timestamp::from_second(NOW).unwrap();
        let said = Claims::read(&token(&claims)).unwrap().of_account(&["weft-controller"], now);
        assert!(said.unwrap_err().to_string().len() < 200);
    }
}
