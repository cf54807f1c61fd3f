//! The consumer, on librdkafka's mock cluster and on the real broker of `HAPAX_TEST_KAFKA`.

#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod commit;
mod flow;
mod refusals;
mod world;
