//! Opaque bytes: recognising what is spoken, and copying what is not HTTP.

pub mod learn;
