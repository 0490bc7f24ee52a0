//! PEM text (RFC 7468). Decoding is in `rustls-pki-types`; only the encoder is ours, so that a key passes
//! through no buffer that is not wiped.

use zeroize::Zeroizing;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// One PEM block in lines of 64 characters.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    // The exact size at once: a growing String would leave pieces of a key behind.
    let body = der.len().div_ceil(3) * 4;
    let mut text = Zeroizing::new(String::with_capacity(body + body / 64 + 2 * label.len() + 40));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            push_group(&mut text, group);
        }
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// Base64 of one to three bytes, padded.
fn push_group(text: &mut String, group: &[u8]) {
    let byte = |i: usize| group.get(i).copied().map_or(0, u32::from);
    let word = byte(0) << 16 | byte(1) << 8 | byte(2);
    for i in 0..4 {
        let sextet = (word >> (18 - 6 * i)) & 0x3f;
        text.push(if i <= group.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls_pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    proptest! {
        #[test]
        fn decodes_to_what_was_encoded(der in proptest::collection::vec(any::<u8>(), 1..400)) {
            let text = encode("CERTIFICATE", &der);
            let back = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
            prop_assert_eq!(back.as_ref(), &der[..]);
            prop_assert!(text.lines().all(|l| l.len() <= 64));
        }
    }
}
