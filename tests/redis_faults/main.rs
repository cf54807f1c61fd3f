//! The Redis store against real servers that are healthy, cut off, hung, restarted, killed, demoted, full and misconfigured,
//! alone, in a cluster, and behind sentinels.
//!
//! That it follows the rules at all is the conformance suite's matter (`tests/conformance`).

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod claims;
#[cfg(feature = "redis-cluster")]
mod cluster;
mod common;
mod forgetting;
mod links;
#[cfg(feature = "redis-sentinel")]
mod sentinel;
mod settings;
