//! Mesh identity (interface only on this commit; the `certs` branch fills it).
#![allow(missing_docs)]
#[derive(Clone, Debug)]
pub struct IdentityHandle;
