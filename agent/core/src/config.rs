//! What the data plane reads.
