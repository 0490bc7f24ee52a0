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
        let longer = |command: &Option<Command>| matches!(command, Some(Command::Add(of)) if of.pod.name.len() > 3);
        let acted = asked.iter().any(|a| longer(&a.command) && !a.actions.is_empty());
        planted(acted, "an ADD that is acted upon, of a pod with a longer name");
    }
);
