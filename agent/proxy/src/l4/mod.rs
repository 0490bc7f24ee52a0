//! Opaque bytes: recognising what is spoken, and copying what is not HTTP.

pub mod chunks;
pub mod copy;
pub mod detect;
pub mod learn;
pub mod pipe;
pub mod tcp;
