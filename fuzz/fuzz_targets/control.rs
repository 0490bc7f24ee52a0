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
        let late = heard.applied.values().any(|gateway| gateway.mark.generation > 100);
        planted(late, "a Gateway of a high generation");
    } else if let Some(material) = controller_says(messages) {
        planted(material.secrets.len() > 1, "two Secrets");
    }
});
