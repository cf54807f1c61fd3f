//! The engine in a seeded world: see `examples/simulate/sim`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../examples/simulate/sim/mod.rs"]
mod sim;
