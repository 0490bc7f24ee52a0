//! HTTP/1 through the real server, with a strict server of another make behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_fuzz::{Bytes, loopback, planted};
use weft_proxy::http::HttpVersion;

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let (mode, cut) = (input.byte(), usize::from(input.byte()));
    // As a Gateway does, or as ALPN has said.
    let version = (mode & 1 == 1).then_some(HttpVersion::Http1);
    let (seen, served) = loopback::serve(input.0, cut, version);
    loopback::check(&seen, &served);
    let long = seen.iter().any(|s| s.whole && s.body.len() > 2);
    planted(long, "a whole body of three bytes");
});
