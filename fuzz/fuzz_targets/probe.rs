//! What a kubelet's connection asks of a strict pod.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_fuzz::planted;
use weft_proxy::fuzzing::probe_head;

fuzz_target!(|data: &[u8]| {
    let Some((target, forwarded)) = probe_head(data) else { return };
    let text = std::str::from_utf8(&forwarded).expect("text");
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert_eq!(lines[0], format!("GET {target} HTTP/1.1"));
    assert_eq!(lines.iter().filter(|l| l.to_ascii_lowercase().starts_with("host:")).count(), 1, "{text}");
    let small = lines[1..].iter().any(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    planted(small, "a name in lower case");
});
