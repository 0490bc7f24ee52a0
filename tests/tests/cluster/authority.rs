//! Who gets which identity from the CA: asked by curl, in Istio's protocol, with tokens that the cluster itself makes.

use crate::Story;
use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::SignatureScheme;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;
use std::{collections::BTreeMap, time::SystemTime};
use tempfile::TempDir;
use weft_tests::cluster::{Cluster, Forward, SYSTEM};

/// The name in the controller's certificate.
const NAME: &str = "weft-controller.weft-system.svc";
const AUDIENCE: &str = "weft-controller";
/// gRPC's codes.
const OK: u32 = 0;
const INVALID_ARGUMENT: u32 = 3;
const PERMISSION_DENIED: u32 = 7;
const UNAUTHENTICATED: u32 = 16;

/// What is asked, and what must come of it.
struct Row<'a> {
    what: &'static str,
    token: &'a str,
    /// Namespace and service account.
    identity: (&'a str, &'a str),
    code: u32,
    /// The word of a refusal in metrics and in the log.
    reason: &'static str,
}

/// Each refusal has its code, its reason in the controller's log, and is counted.
pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    let ca = Ca::reach(story.cluster)?;
    let [here, there] = &story.nodes;
    let (mine, other) = (agent_token(story, here)?, agent_token(story, there)?);
    let client = pod_of(story.cluster, "e2e-web", "version=client")?;
    let workload = token(story.cluster, "e2e-web", "client", &["--audience", AUDIENCE], Some(&client))?;
    let agent = story.cluster.agents()?.remove(here).context("no agent")?;
    let audience = token(story.cluster, SYSTEM, "weft-agent", &["--audience", "elsewhere"], Some(&agent))?;
    let unbound = token(story.cluster, SYSTEM, "weft-agent", &["--audience", AUDIENCE], None)?;
    let row = |what, token, identity, code, reason| Row { what, token, identity, code, reason };
    let (client, web) = (("e2e-web", "client"), ("e2e-web", "web"));
    let mut rows = vec![
        row("a pod of its own node", &*mine, client, OK, ""),
        row("the same by the other node's agent", &other, web, OK, ""),
        row("a pod of another node", &mine, web, PERMISSION_DENIED, "pod_on_other_node"),
        row("a service account without a pod", &mine, ("e2e-web", "ghost"), PERMISSION_DENIED, "no_such_pod"),
        row("its own", &mine, (SYSTEM, "weft-agent"), PERMISSION_DENIED, "no_such_pod"),
        row("by a workload", &workload, client, PERMISSION_DENIED, "not_an_agent"),
        row("without a token", "", client, UNAUTHENTICATED, "token_missing"),
        row("with nonsense for a token", "nonsense", client, UNAUTHENTICATED, "token_invalid"),
        row("with another's token", &audience, client, UNAUTHENTICATED, "token_wrong_audience"),
        row("with a token of no pod", &unbound, client, UNAUTHENTICATED, "token_unbound"),
    ];
    let edge = ("e2e-web", "edge-weft");
    let expired;
    if story.cluster.is_bed() {
        expired = expire(story.cluster, &mine)?;
        rows.push(row("with an expired token", &expired, client, UNAUTHENTICATED, "token_expired"));
        // In mode AddressPool one node serves a Gateway.
        let owner = owner(story.cluster, "edge")?;
        let (owners, others) = if owner == *here { (&mine, &other) } else { (&other, &mine) };
        rows.push(row("a Gateway that it serves", owners, edge, OK, ""));
        rows.push(row("a Gateway of another node", others, edge, PERMISSION_DENIED, "gateway_not_served"));
    }
    let before = ca.refused()?;
    rows.iter().try_for_each(|row| ca.expect(row))?;
    let mismatch = ca.ask(&mine, web, client)?;
    ensure!(mismatch.code == INVALID_ARGUMENT, "a request for two identities: {mismatch:?}");
    let after = ca.refused()?;
    ca.counted_and_logged(&rows, &before, &after)
}

/// A token that says that it is this node's agent's.
pub(crate) fn agent_token(story: &Story<'_>, node: &str) -> Result<String> {
    let agent = story.cluster.agents()?.remove(node).context("no agent")?;
    token(story.cluster, SYSTEM, "weft-agent", &["--audience", AUDIENCE], Some(&agent))
}

/// The token of an agent that is gone is refused.
pub(crate) fn refused_when_gone(story: &Story<'_>, agent: &str, token: &str) -> Result<()> {
    let agent = format!("pod/{agent}");
    story.cluster.kubectl(&["-n", SYSTEM, "wait", "--for=delete", &agent, "--timeout=110s"])?;
    let row = Row {
        what: "with the token of a pod that is gone",
        token,
        identity: ("e2e-web", "client"),
        code: UNAUTHENTICATED,
        reason: "token_invalid",
    };
    Ca::reach(story.cluster)?.expect(&row)
}

fn token(
    cluster: &Cluster,
    namespace: &str,
    account: &str,
    audience: &[&str],
    pod: Option<&str>,
) -> Result<String> {
    let mut args = [&["-n", namespace, "create", "token", account][..], audience].concat();
    args.extend(pod.iter().flat_map(|pod| ["--bound-object-kind=Pod", "--bound-object-name", pod]));
    Ok(cluster.kubectl(&args)?.trim().to_owned())
}

fn pod_of(cluster: &Cluster, namespace: &str, selector: &str) -> Result<String> {
    cluster.kubectl(&[
        "-n",
        namespace,
        "get",
        "pods",
        "-l",
        selector,
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ])
}

/// The node that holds a Gateway's address.
fn owner(cluster: &Cluster, gateway: &str) -> Result<String> {
    let service = cluster.json(&["-n", "e2e-web", "get", "service", &format!("{gateway}-weft")])?;
    let owner = service["metadata"]["annotations"]["weft.dev/address-owner"].as_str();
    Ok(owner.with_context(|| service["metadata"].to_string())?.to_owned())
}

/// The same token, but its time is over: made with the test bed's own key, since a cluster makes none that expires soon.
fn expire(cluster: &Cluster, token: &str) -> Result<String> {
    let [head, claims, _] = token.split('.').collect::<Vec<_>>()[..] else {
        anyhow::bail!("a token of another kind")
    };
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    for (claim, ago) in [("iat", 7200), ("nbf", 7200), ("exp", 3600)] {
        claims[claim] = (now - ago).into();
    }
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = PrivateKeyDer::from_pem_file(cluster.bed_file("pki/sa.key")?)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key)?;
    let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).context("another key")?;
    let signature = fixed(&signer.sign(signed.as_bytes())?).context("no signature in DER")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// An ECDSA signature as JWTs have it (RFC 7518 §3.4: two numbers of 32 bytes), out of DER.
fn fixed(der: &[u8]) -> Option<[u8; 64]> {
    let [0x30, _, 0x02, first, rest @ ..] = der else { return None };
    let (r, rest) = rest.split_at_checked(usize::from(*first))?;
    let [0x02, second, s @ ..] = rest else { return None };
    let mut out = [0; 64];
    for (number, half) in [r, s.get(..usize::from(*second))?].into_iter().zip(out.chunks_mut(32)) {
        let digits = &number[number.len().saturating_sub(32)..]; // without the sign's zero
        half[32 - digits.len()..].copy_from_slice(digits);
    }
    Some(out)
}

/// The leader's issuing service.
struct Ca<'a> {
    cluster: &'a Cluster,
    leader: String,
    way: Forward,
    dir: TempDir,
}

#[derive(Debug)]
struct Answer {
    code: u32,
    message: String,
}

impl<'a> Ca<'a> {
    fn reach(cluster: &'a Cluster) -> Result<Self> {
        let leader = cluster.leader()?;
        let way = cluster.forward(SYSTEM, &leader, 15012)?;
        let dir = tempfile::tempdir()?;
        let root = ["-n", SYSTEM, "get", "configmap", "weft-ca-root", "-o", r"jsonpath={.data.root\.pem}"];
        std::fs::write(dir.path().join("root.pem"), cluster.kubectl(&root)?)?;
        Ok(Self { cluster, leader, way, dir })
    }

    fn expect(&self, row: &Row<'_>) -> Result<()> {
        let answer = self.ask(row.token, row.identity, row.identity)?;
        ensure!(answer.code == row.code, "{}: expected code {}, got {answer:?}", row.what, row.code);
        ensure!(answer.code == OK || !answer.message.is_empty(), "{}: refused without a word", row.what);
        Ok(())
    }

    /// `named`: in the certificate request. `wanted`: for whom the certificate is to be.
    fn ask(&self, token: &str, named: (&str, &str), wanted: (&str, &str)) -> Result<Answer> {
        let id = |(namespace, account)| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id(named).try_into()?)];
        let csr = params.serialize_request(&KeyPair::generate()?)?.pem()?;
        let body = self.dir.path().join("request");
        std::fs::write(&body, framed(&request(&csr, &id(wanted))))?;
        let url = format!(
            "https://{NAME}:{}/istio.v1.auth.IstioCertificateService/CreateCertificate",
            self.way.port
        );
        let resolve = format!("{NAME}:{}:127.0.0.1", self.way.port);
        let root = self.dir.path().join("root.pem").display().to_string();
        let (body, bearer) = (format!("@{}", body.display()), format!("authorization: Bearer {token}"));
        let mut args =
            vec!["curl", "-sS", "--http2", "--noproxy", "*", "--max-time", "30", "--resolve", &resolve];
        args.extend(["--cacert", &root, "-H", "content-type: application/grpc", "-H", "te: trailers"]);
        if !token.is_empty() {
            args.extend(["-H", &bearer]);
        }
        args.extend(["--data-binary", &body, "-o", "/dev/null", "-D", "-", &url]);
        // Who is refused is answered before its request is read to the end, and then its stream is reset: some versions of
        // curl call that an error (92), and when it comes early enough they do not show the answer.
        self.cluster.wait("an answer of the CA", || {
            let said = self.cluster.says(&args)?;
            let field = |name: &str| {
                let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim().to_owned());
                said.out.lines().find_map(value)
            };
            let code = field("grpc-status").with_context(|| format!("no grpc-status: {said:?}"))?;
            Ok(Answer { code: code.parse()?, message: field("grpc-message").unwrap_or_default() })
        })
    }

    /// How many calls were refused, by reason.
    fn refused(&self) -> Result<BTreeMap<String, u64>> {
        let page = self.cluster.page(&self.leader, "metrics")?;
        let one = |line: &str| {
            let (reason, count) =
                line.strip_prefix("weft_agent_calls_refused_total{reason=\"")?.split_once("\"} ")?;
            Some((reason.to_owned(), count.parse().ok()?))
        };
        Ok(page.lines().filter_map(one).collect())
    }

    fn counted_and_logged(
        &self,
        rows: &[Row<'_>],
        before: &BTreeMap<String, u64>,
        after: &BTreeMap<String, u64>,
    ) -> Result<()> {
        ensure!(self.cluster.leader()? == self.leader, "the leader has changed meanwhile");
        let log = self.cluster.kubectl(&["-n", SYSTEM, "logs", &self.leader])?;
        for Row { what, reason, .. } in rows.iter().filter(|row| !row.reason.is_empty()) {
            let count = |counts: &BTreeMap<String, u64>| counts.get(*reason).copied().unwrap_or_default();
            let asked = rows.iter().filter(|row| row.reason == *reason).count() as u64;
            let grown = count(after) - count(before);
            ensure!(grown >= asked, "{what}: {reason} was counted {grown} times: {after:?}");
            let line = log.lines().find(|line| line.contains("refused") && line.contains(reason));
            ensure!(line.is_some(), "{what}: no line with {reason} in the log of {}", self.leader);
        }
        Ok(())
    }
}

/// `IstioCertificateRequest`: csr (1), validity in seconds (3), metadata (4), which names the identity.
fn request(csr: &str, identity: &str) -> Vec<u8> {
    let value = field(3, identity.as_bytes());
    let entry = [field(1, b"ImpersonatedIdentity"), field(2, &value)].concat();
    let validity = [vec![3 << 3], varint(3600)].concat();
    [field(1, csr.as_bytes()), validity, field(4, &field(1, &entry))].concat()
}

/// A field of bytes in protobuf.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &varint(bytes.len()), bytes].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A message as gRPC sends it: not compressed, its length, itself.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, message].concat()
}
