//! Gateways of this agent.
