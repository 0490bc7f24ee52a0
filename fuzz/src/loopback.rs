//! The real HTTP server on a thread whose clock stands still, with [`crate::origin`] behind it.

use crate::{
    origin::{self, Log, Seen},
    paths::{decoded, resolved},
};
use std::net::SocketAddr;
use tokio::runtime::{Builder, LocalOptions};
use weft_proxy::{
    fuzzing::{ADMIN, EXACT, PUBLIC, Served, serve_bytes},
    http::HttpVersion,
};

/// Runs `work` on a runtime of its own, where time passes only while nothing else can go on.
///
/// # Panics
/// When there is no runtime.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        Builder::new_current_thread().enable_all().start_paused(true).build_local(LocalOptions::default());
    runtime.expect("a runtime").block_on(work)
}

/// Serves one connection; gives what the upstreams have read, and what the server says of it.
#[must_use]
pub fn serve(bytes: &[u8], cut: usize, version: Option<HttpVersion>) -> (Vec<Seen>, Served) {
    let log = Log::default();
    let upstreams = log.clone();
    let served = run(serve_bytes(bytes, cut, version, move |to, io| {
        tokio::task::spawn_local(origin::serve(to, io, upstreams.clone()));
    }));
    let seen = log.borrow().clone();
    (seen, served)
}

/// What upstreams have read is what the server has counted, and each request is where its target belongs.
///
/// # Panics
/// When that is not so.
pub fn check(seen: &[Seen], served: &Served) {
    assert!(
        seen.len() as u64 <= served.counted,
        "{} requests counted, upstreams read {seen:?}",
        served.counted
    );
    for one in seen {
        let belongs = belongs(&one.target);
        assert_eq!(one.to, belongs, "{} belongs to {belongs}: {one:?}", one.target);
    }
}

/// Where the routes send this target, read as an application would.
fn belongs(target: &str) -> SocketAddr {
    let path = resolved(&decoded(target.split('?').next().unwrap_or_default()));
    let is_admin = path.strip_prefix("/admin").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match path.as_str() {
        "/exact" => EXACT.into(),
        _ if is_admin => ADMIN.into(),
        _ => PUBLIC.into(),
    }
}
