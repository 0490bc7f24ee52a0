//! Doors for the fuzz targets (`fuzz/`): what reads the bytes of a stranger here and is private. Only in their build.

pub use crate::http::fuzzing::{ADMIN, EXACT, PUBLIC, Served, serve_bytes};
pub use crate::inbound::probe::fuzzing::probe_head;
pub use crate::transport::accept::fuzzing::{Connect, LOCAL, connects};
