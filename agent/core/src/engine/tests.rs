//! Worlds in, conditions and selections out.

mod world;

mod budgets;
mod examples;
mod gateways;
mod incremental;
mod lint;
mod listeners;
mod material;
mod mesh;
mod overlap;
mod policies;
mod reach;
mod routes;
mod scale;
mod workloads;
