//! Dead letters and sending them back, on librdkafka's mock cluster, the real broker of `HAPAX_TEST_KAFKA`, and real stores.

#![cfg(all(feature = "kafka", feature = "memory", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod consuming;
mod killed;
mod redrive;
mod sending;
mod skips;
mod world;
