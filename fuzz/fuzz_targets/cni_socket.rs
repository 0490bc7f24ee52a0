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
        let added = asked.iter().any(|a| matches!(&a.command, Some(Command::Add(_))) && !a.actions.is_empty());
        let listed = asked.iter().any(|a| matches!(&a.command, Some(Command::Gc { .. })));
        planted(added && listed, "an ADD that is acted upon, and a GC beside it");
    }
);
