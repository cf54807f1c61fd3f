//! The inbox on PostgreSQL, MariaDB and SQLite. What stands in its tables is read by connections of the tests' own.

#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(dead_code, unused_imports)]

#[path = "../support/mod.rs"]
mod support;

mod accept;
mod accept_consumer;
mod accept_faults;
#[path = "../transaction/base.rs"]
mod base;
mod model;
mod operate;
mod operate_desk;
mod operate_look;
mod operate_many;
mod retention;
mod schema;
mod work;
mod world;
