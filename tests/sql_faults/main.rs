//! The SQL stores against real servers that are healthy, cut off, locked, misconfigured, restarted and killed.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod agree;
mod common;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(all(feature = "postgres", feature = "mysql"))]
mod contend;
#[cfg(all(feature = "postgres", feature = "mysql"))]
mod cut_off;
#[cfg(all(feature = "postgres", feature = "mysql"))]
mod servers;
#[cfg(all(feature = "postgres", feature = "mysql"))]
mod settings;
