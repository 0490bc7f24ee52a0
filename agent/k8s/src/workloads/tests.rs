//! Slices and their publisher.
