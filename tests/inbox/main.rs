//! The inbox on PostgreSQL, MariaDB and SQLite. What stands in its tables is read by connections of the tests' own.

#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(dead_code, unused_imports)]

#[path = "../support/mod.rs"]
mod support;

#[path = "../transaction/base.rs"]
mod base;
mod schema;
mod world;
