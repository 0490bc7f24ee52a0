//! The provider against an API server.
