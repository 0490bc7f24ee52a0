//! Frames of plugins to the agent, with and without descriptors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_cni::protocol::Command;
use weft_fuzz::{planted, sockets};
use weft_inpod::fuzzing::cni_calls;

fuzz_target!(
    init: sockets::isolate(),
    |data: &[u8]| {
        let all = sockets::sent(data);
        let asked = sockets::run(cni_calls(&all));
        let digit = |name: &str| name.bytes().any(|b| b.is_ascii_digit());
        let named =
            asked.iter().any(|a| matches!(&a.command, Some(Command::Add(of)) if digit(&of.pod.name)) && !a.actions.is_empty());
        planted(named, "an ADD that is acted upon, of a pod with a digit in its name");
    }
);
