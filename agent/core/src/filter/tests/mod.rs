//! Tests of filters.

mod cors;
mod edits;
mod paths;
