//! Decisions to tables: what the data plane reads.

mod endpoints;
mod frontend;
mod gateway;
mod label;
mod rules;
mod slot;

pub(crate) use self::{
    endpoints::{EndpointSource, View, compile_endpoints, is_doubtful},
    frontend::{SlotOf, compile_frontends},
    gateway::compile_gateway,
    rules::{CompiledRules, compile_rules},
    slot::{CompiledSlot, SlotKind, SlotRoute, Verdict, compile_slot},
};
