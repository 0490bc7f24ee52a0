//! Where spans go: an agent on the host's network has no cluster DNS, so that a Service's name is looked up in the world.

use weft_core::model::{ObjectKey, Snapshot};

/// An endpoint with the address of the Service that it names (`NAME.NAMESPACE.svc`, `NAME.NAMESPACE.svc.cluster.local`);
/// others stay as they are.
///
/// # Errors
/// Says why the Service cannot be reached by its address.
pub(super) fn resolve(endpoint: &str, snapshot: &Snapshot) -> Result<String, String> {
    let Some((service, uri)) =
        endpoint.parse::<http::Uri>().ok().and_then(|uri| Some((service(uri.host()?)?, uri)))
    else {
        return Ok(endpoint.to_owned());
    };
    if uri.scheme_str() == Some("https") {
        return Err("a Service's name works for http only: its certificate would not fit the address".into());
    }
    let found = snapshot.services.get(&service);
    let found = found.ok_or_else(|| format!("there is no Service {service} (yet)"))?;
    let ip = found.cluster_ips.first().ok_or_else(|| format!("Service {service} has no ClusterIP"))?;
    let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    let path = uri.path_and_query().map_or("", |path| path.as_str()).trim_end_matches('/');
    Ok(format!("{}://{host}{port}{path}", uri.scheme_str().unwrap_or("http")))
}

fn service(host: &str) -> Option<ObjectKey> {
    let host = host.trim_end_matches('.');
    let name = host.strip_suffix(".svc").or_else(|| host.strip_suffix(".svc.cluster.local"))?;
    let (name, namespace) = name.split_once('.')?;
    (!namespace.contains('.')).then(|| ObjectKey::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services_become_addresses() {
        let yaml = |name: &str, ip: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: weft-system}}\n\
                 spec: {{clusterIP: \"{ip}\", clusterIPs: [\"{ip}\"], ports: [{{port: 4317}}]}}\n---\n"
            )
        };
        let dir = tempfile::tempdir().unwrap();
        let text = yaml("jaeger", "10.96.0.7") + &yaml("six", "fd00::7") + &yaml("headless", "None");
        std::fs::write(dir.path().join("all.yaml"), text).unwrap();
        let snapshot = weft_k8s::FileProvider::new(dir.path()).load().snapshot;
        let check =
            |endpoint: &str, expected: Result<&str, &str>| match (resolve(endpoint, &snapshot), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{endpoint}"),
                (Err(said), Err(expected)) => assert!(said.contains(expected), "{endpoint}: {said}"),
                other => panic!("{endpoint}: {other:?}"),
            };
        check("http://jaeger.weft-system.svc.cluster.local:4317", Ok("http://10.96.0.7:4317"));
        check("http://jaeger.weft-system.svc:4317/x", Ok("http://10.96.0.7:4317/x"));
        check("http://six.weft-system.svc:4317", Ok("http://[fd00::7]:4317"));
        check("http://127.0.0.1:4317", Ok("http://127.0.0.1:4317"));
        check("http://otel.example.com:4317", Ok("http://otel.example.com:4317"));
        check("http://gone.weft-system.svc:4317", Err("no Service weft-system/gone"));
        check("http://headless.weft-system.svc:4317", Err("no ClusterIP"));
        check("https://jaeger.weft-system.svc:4317", Err("http only"));
    }
}
