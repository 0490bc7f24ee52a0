//! Frames of an agent to the holder, with and without descriptors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_fuzz::{planted, sockets};
use weft_inpod::fuzzing::converse;

fuzz_target!(
    init: sockets::isolate(),
    |data: &[u8]| {
        let held = converse(&sockets::sent(data));
        assert!(held.groups.iter().all(|members| (1..=128).contains(members)), "{held:?}");
        let wide = held.groups.iter().any(|members| *members > 2);
        planted(wide, "a group of three");
    }
);
