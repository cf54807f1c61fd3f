//! The consumer, on librdkafka's mock cluster and on the real broker of `HAPAX_TEST_KAFKA`.

#![cfg(all(feature = "kafka", feature = "memory", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod commit;
mod dedup;
mod flow;
mod gate;
mod log;
mod observe;
mod order;
mod rebalance;
mod refusals;
mod retry;
mod signal;
mod views;
mod windows;
mod world;
