//! What agents and the controller say to each other.
