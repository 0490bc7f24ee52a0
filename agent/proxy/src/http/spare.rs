//! A request's head, kept for another try while the first one is under way. Nearly always it is thrown away: so it costs one
//! allocation, where a clone of the map would count references up and down for every name and value.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts};

/// See the module. Extensions are not kept.
#[derive(Debug)]
pub(crate) struct Spare {
    method: Method,
    uri: Uri,
    version: Version,
    fields: usize,
    /// For each field [`Lengths`], then name and value.
    bytes: Vec<u8>,
}

/// What stands before a field: length of its name, length of its value, whether the value is sensitive.
const LENGTHS: usize = 2 + 4 + 1;

impl Spare {
    /// Copies a head.
    pub(crate) fn of(parts: &Parts) -> Self {
        let size =
            parts.headers.iter().map(|(name, value)| LENGTHS + name.as_str().len() + value.len()).sum();
        let mut bytes = Vec::with_capacity(size);
        let mut fields = 0;
        for (name, value) in &parts.headers {
            // Names and values are far shorter: a head is (`Limits::head_bytes_max`).
            let (Ok(of_name), Ok(of_value)) =
                (u16::try_from(name.as_str().len()), u32::try_from(value.len()))
            else {
                continue;
            };
            bytes.extend_from_slice(&of_name.to_ne_bytes());
            bytes.extend_from_slice(&of_value.to_ne_bytes());
            bytes.push(u8::from(value.is_sensitive()));
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(value.as_bytes());
            fields += 1;
        }
        Self { method: parts.method.clone(), uri: parts.uri.clone(), version: parts.version, fields, bytes }
    }

    /// The head as it was.
    pub(crate) fn into_parts(self) -> Parts {
        let mut headers = HeaderMap::with_capacity(self.fields);
        let mut rest = &self.bytes[..];
        while let Some((lengths, behind)) = rest.split_at_checked(LENGTHS) {
            let [n0, n1, v0, v1, v2, v3, sensitive] = *lengths else { break };
            let name = usize::from(u16::from_ne_bytes([n0, n1]));
            let value = u32::from_ne_bytes([v0, v1, v2, v3]) as usize;
            let Some((field, behind)) = behind.split_at_checked(name + value) else { break };
            rest = behind;
            // Both were such before.
            if let (Ok(name), Ok(mut value)) =
                (HeaderName::from_lowercase(&field[..name]), HeaderValue::from_bytes(&field[name..]))
            {
                value.set_sensitive(sensitive == 1);
                headers.append(name, value);
            }
        }
        let mut parts = Request::new(()).into_parts().0;
        (parts.method, parts.uri, parts.version, parts.headers) =
            (self.method, self.uri, self.version, headers);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Another try says what the first one said.
        #[test]
        fn a_spare_head_is_the_head(
            fields in prop::collection::vec(("[a-z0-9-]{1,40}", "[ -~\\x80-\\xff]{0,60}", any::<bool>()), 0..40),
            path in "/[a-z]{0,20}",
        ) {
            let mut request = Request::builder().method("POST").uri(path).version(Version::HTTP_2);
            for (name, value, sensitive) in &fields {
                let mut value = HeaderValue::from_bytes(value.trim().as_bytes()).unwrap();
                value.set_sensitive(*sensitive);
                request = request.header(name, value);
            }
            let parts = request.body(()).unwrap().into_parts().0;
            let again = Spare::of(&parts).into_parts();
            prop_assert_eq!(&again.headers, &parts.headers);
            let sensitive = |parts: &Parts| parts.headers.values().map(HeaderValue::is_sensitive).collect::<Vec<_>>();
            prop_assert_eq!(sensitive(&again), sensitive(&parts));
            prop_assert_eq!((again.method, again.uri, again.version), (parts.method, parts.uri, parts.version));
        }
    }
}
