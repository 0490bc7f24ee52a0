use super::*;
use serde_json::json;

fn object(kind: Kind, name: &str, content: &Value) -> Raw {
    let mut value = json!({
        "apiVersion": "v1",
        "kind": kind.as_str(),
        "metadata": {"name": name, "namespace": "tenant", "uid": "u"},
    });
    if let (Some(value), Some(content)) = (value.as_object_mut(), content.as_object()) {
        value.extend(content.clone());
    }
    Raw(value)
}

/// What is said of an object; nothing when it is kept.
fn check(kind: Kind, content: &Value, want: Option<&str>) {
    let item = admit(Watched::Model(kind), "v1", object(kind, "a", content), false).expect("it has a name");
    assert_eq!(item.refused(), want.is_some(), "{:?}", item.problems);
    assert_eq!(item.body.is_some(), want.is_none());
    let said: Vec<String> = item.problems.iter().map(|p| format!("{} {}", p.object, p.reason)).collect();
    assert_eq!(said, want.map(str::to_owned).into_iter().collect::<Vec<_>>());
}

#[test]
fn objects_larger_than_their_budget_are_refused_by_name() {
    let ten_times = "x".repeat(10 * OBJECT_TEXT.size());
    let ports = json!([{"port": 80}]);
    let large =
        "Service tenant/a has 5120 KiB of what Weft reads; the budget object-text is 512 KiB for each object";
    check(Kind::Service, &json!({"spec": {"ports": ports, "externalName": ten_times}}), Some(large));
    check(Kind::Service, &json!({"spec": {"ports": ports}}), None);
    // A list of many small things counts as what it is.
    let many: Vec<Value> = (0..100_000).map(|_| json!({"addresses": ["192.0.2.1"]})).collect();
    let large = "EndpointSlice tenant/a has 2929 KiB of what Weft reads; the budget object-text is 512 KiB for each object";
    check(Kind::EndpointSlice, &json!({"addressType": "IPv4", "endpoints": many}), Some(large));
    // Others' data in a ConfigMap is no matter of Weft's: it is dropped, however large.
    check(Kind::ConfigMap, &json!({"data": {"movie": ten_times}, "binaryData": {"b": ten_times}}), None);
    let large = "ConfigMap tenant/a has 5120 KiB of what Weft reads; the budget object-text is 512 KiB for each object";
    check(Kind::ConfigMap, &json!({"data": {"ca.crt": ten_times}}), Some(large));
}
