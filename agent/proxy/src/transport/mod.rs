//! Ways to other pods: plain TCP from the source's own sockets, and HBONE (mutual TLS, HTTP/2 CONNECT).
//!
//! - [`connect`]: TCP in the right network namespace, from the right address;
//! - [`tls`]: both sides' handshakes and who was at the other end;
//! - [`stream`]: one tunnel stream as bytes; [`tunnel`]: the client's HTTP/2 connection; [`pool`]: which tunnel;
//! - `pulse`: whether the other end of a tunnel lives;
//! - [`way`]: to which port of the pod it goes;
//! - [`answer`]: why the other agent could not connect;
//! - [`accept`]: the server side; `unproved`: those of its connections whose client is not known yet.

pub mod accept;
pub mod answer;
pub mod connect;
pub mod handshakes;
pub mod metered;
pub mod pool;
pub(crate) mod pulse;
pub mod stream;
pub mod tls;
pub mod tunnel;
pub(crate) mod unproved;
pub mod way;

/// Window of one tunnel stream.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// Window of the whole tunnel: four streams' worth, because with equal windows one stream whose reader stands
/// still takes all of it, and the tunnel stops.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest DATA frame: few, large TLS writes.
pub const FRAME_SIZE: u32 = 1 << 20;
/// Bytes that one tunnel may hold unsent per stream.
pub const SEND_BUFFER: usize = 1 << 20;
/// What small DATA frames may cost a receiver before h2 ends the tunnel with ENHANCE_YOUR_CALM: each unread frame of
/// n < 256 bytes takes 256 − n. h2's own default (half the connection window) ends after 33,000 unread one-byte
/// frames, which a database reaches. This allows 263,000; and our readers take frames out of h2 as they come
/// (see [`stream`]), so that only a stream that HTTP leaves unread counts at all.
pub const DATA_FRAME_BUDGET: usize = 64 << 20;
