//! Where a partition goes on, on the real broker of `HAPAX_TEST_KAFKA`: offsets that are gone or out of range, recreated topics, replays, and stores
//! that forget too early.

#![cfg(feature = "full")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod deleted;
mod offsets;
mod recreated;
mod retention;
mod world;
