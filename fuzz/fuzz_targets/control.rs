//! Messages of agents to the controller, of the controller to agents, and requests for certificates.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_control::fuzzing::{agent_says, certificate_request, controller_says};
use weft_fuzz::{Bytes, planted};

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let kind = input.byte() % 3;
    if kind == 2 {
        let asked = certificate_request(input.0);
        planted(
            asked.is_some_and(|(who, csr)| who.len() < 30 && csr.len() > 8),
            "a short name with a long request",
        );
        return;
    }
    let messages = std::iter::from_fn(|| (!input.is_empty()).then(|| input.message()));
    if kind == 0 {
        let heard = agent_says(messages);
        let excepts =
            |tunnel: &TunnelPort| matches!(tunnel, TunnelPort::Application { except } if except.len() > 1);
        let tunnels = heard.captured.values().filter(|capture| excepts(&capture.tunnel)).count();
        planted(
            tunnels > 0 && !heard.applied.is_empty(),
            "a Gateway served, and a pod with two ports excepted",
        );
    } else if let Some(material) = controller_says(messages) {
        let both = material.secrets.len() > 1 && !material.config_maps.is_empty();
        planted(both, "two Secrets and a ConfigMap");
    }
});
