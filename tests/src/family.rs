//! Address families, as a cluster's pods and Services have them.

use serde_json::Value;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// As in 10.90.0.1.
    Ipv4,
    /// As in fd90::1.
    Ipv6,
}

impl Family {
    /// As in a Service's `ipFamilies` and an EndpointSlice's `addressType`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    /// The family of an address, or of a range of some.
    #[must_use]
    pub fn of(address: &str) -> Self {
        if address.contains(':') { Self::Ipv6 } else { Self::Ipv4 }
    }

    /// One of two: the first for IPv4.
    #[must_use]
    pub fn pick<T>(self, ipv4: T, ipv6: T) -> T {
        match self {
            Self::Ipv4 => ipv4,
            Self::Ipv6 => ipv6,
        }
    }

    /// The address of this family among those of a pod's status.
    #[must_use]
    pub fn pod_ip(self, pod: &Value) -> Option<&str> {
        let ips = pod["status"]["podIPs"].as_array()?;
        ips.iter().filter_map(|ip| ip["ip"].as_str()).find(|ip| Self::of(ip) == self)
    }
}

/// An address as it stands in a URL: one of IPv6 in brackets.
#[must_use]
pub fn host(address: &str) -> String {
    match Family::of(address) {
        Family::Ipv4 => address.to_owned(),
        Family::Ipv6 => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_told_apart_and_stand_in_urls() {
        for (address, family, in_url) in [
            ("10.90.0.1", Family::Ipv4, "10.90.0.1"),
            ("fd90::1", Family::Ipv6, "[fd90::1]"),
            ("::ffff:10.90.0.1", Family::Ipv6, "[::ffff:10.90.0.1]"),
        ] {
            assert_eq!((Family::of(address), &*host(address)), (family, in_url), "{address}");
        }
    }

    #[test]
    fn a_pods_address_is_found_by_its_family_whichever_is_first() {
        let pod = |ips: Value| json!({"status": {"podIPs": ips}});
        for (ips, family, expected) in [
            (json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]), Family::Ipv6, Some("fd00::1")),
            (json!([{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]), Family::Ipv4, Some("10.0.0.1")),
            (json!([{"ip": "10.0.0.1"}]), Family::Ipv6, None),
            (Value::Null, Family::Ipv4, None),
        ] {
            assert_eq!(family.pod_ip(&pod(ips.clone())), expected, "{ips}");
        }
    }
}
