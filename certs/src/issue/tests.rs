use jiff::Timestamp;

use super::*;
use crate::key::SecretKey;

fn request(identity: SpiffeId) -> IssueRequest {
    let csr = SecretKey::generate().unwrap().csr(&identity).unwrap();
    IssueRequest { csr, identity, ttl: Duration::from_secs(3600) }
}

#[tokio::test]
async fn local_issuer_signs_its_own_trust_domain_only() {
    let ca = Ca::create("cluster.local", Timestamp::now()).unwrap();
    let bundle = ca.bundle().clone();
    let issuer = LocalIssuer::new(ca, "cluster.local");
    let issued = issuer.issue(request(SpiffeId::new("cluster.local", "a", "b"))).await.unwrap();
    assert_eq!((issued.chain.len(), &issued.bundle), (1, &bundle));

    let error = issuer.issue(request(SpiffeId::new("other.example", "a", "b"))).await.unwrap_err();
    assert!(matches!(error, IssueError::Denied { .. }), "{error}");
    let broken =
        IssueRequest { csr: vec![1, 2, 3].into(), ..request(SpiffeId::new("cluster.local", "a", "b")) };
    let error = issuer.issue(broken).await.unwrap_err();
    assert_eq!((error.fault(), error.retry()), (Fault::Caller, Retry::Seldom));
}

#[tokio::test]
async fn reads_the_chain_of_istios_service() {
    let ca = Ca::create("cluster.local", Timestamp::now()).unwrap();
    let root = ca.bundle().to_pem();
    let issuer = LocalIssuer::new(ca, "cluster.local");
    let wanted = request(SpiffeId::new("cluster.local", "a", "b"));
    assert!(wanted.csr_pem().starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
    let issued = issuer.issue(wanted).await.unwrap();
    let leaf = pem::encode("CERTIFICATE", &issued.chain[0]).to_string();
    let both = leaf.clone() + &root;
    for texts in [vec![leaf.as_str(), &root], vec![both.as_str()]] {
        assert_eq!(IssuedCertificate::from_pem_chain(texts).unwrap(), issued);
    }
    for texts in [vec![leaf.as_str()], vec![root.as_str()], vec![], vec!["nonsense"]] {
        assert!(matches!(IssuedCertificate::from_pem_chain(texts), Err(IssueError::BadAnswer { .. })));
    }
}
