//! What a certificate signing request says, for issuers that hear it from others.

use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use weft_core::model::SpiffeId;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509CertificationRequest},
};

use crate::ca::CaError;

/// Reads the PEM text of one request.
///
/// # Errors
/// When there is none: the fault of who asks.
pub fn csr_from_pem(text: &[u8]) -> Result<CertificateSigningRequestDer<'static>, CaError> {
    CertificateSigningRequestDer::from_pem_slice(text)
        .map_err(|e| CaError::Csr(format!("no PEM certificate request: {e}")))
}

/// Checks that a request names nobody, or only `identity`. The names would be ignored anyway; but who asks for one
/// identity in the request and for another beside it is confused, or hopes that we are.
///
/// # Errors
/// [`CaError::Csr`] with the name that differs.
pub fn csr_names_only(csr: &CertificateSigningRequestDer<'_>, identity: &SpiffeId) -> Result<(), CaError> {
    let (_, request) =
        X509CertificationRequest::from_der(csr).map_err(|e| CaError::Csr(format!("not PKCS#10: {e}")))?;
    let expected = identity.to_string();
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            if !matches!(name, GeneralName::URI(uri) if *uri == expected) {
                return Err(CaError::Csr(format!("it names {name}, but {expected} is asked for")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IssueRequest, key::SecretKey};

    #[test]
    fn a_request_may_name_only_who_it_is_for() {
        let web = SpiffeId::new("cluster.local", "shop", "web");
        let csr = SecretKey::generate().unwrap().csr(&web).unwrap();
        assert!(csr_names_only(&csr, &web).is_ok());
        let refused = csr_names_only(&csr, &SpiffeId::new("cluster.local", "shop", "cart"));
        assert!(
            matches!(refused, Err(CaError::Csr(why)) if why.contains("sa/web") && why.contains("sa/cart"))
        );
        let request =
            IssueRequest { csr: csr.clone(), identity: web, ttl: std::time::Duration::from_secs(60) };
        assert_eq!(csr_from_pem(request.csr_pem().as_bytes()).unwrap(), csr);
        assert!(csr_from_pem(b"nothing").is_err());
    }
}
