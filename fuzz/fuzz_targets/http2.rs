//! HTTP/2 frames through the real server, with a strict HTTP/1.1 server of another make behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_fuzz::{Bytes, frames, loopback, planted};
use weft_proxy::http::HttpVersion;

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let (mode, cut) = (input.byte(), usize::from(input.byte()));
    let bytes = if mode & 2 == 0 { frames::connection(input.0) } else { input.0.to_vec() };
    let version = (mode & 1 == 1).then_some(HttpVersion::Http2);
    let (seen, served) = loopback::serve(&bytes, cut, version);
    loopback::check(&seen, &served);
    let long = seen.iter().any(|s| s.whole && s.body.len() > 2);
    planted(long, "a whole body of three bytes");
});
