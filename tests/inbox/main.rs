//! The inbox on PostgreSQL, MariaDB and SQLite. What stands in its tables is read by connections of the tests' own.

#![cfg(all(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(dead_code, unused_imports)]

#[path = "../support/mod.rs"]
mod support;

mod accept;
mod accept_blame;
mod accept_consumer;
mod accept_faults;
#[path = "../transaction/base.rs"]
mod base;
mod cut;
mod erasure;
mod model;
mod operate;
mod operate_desk;
mod operate_look;
mod operate_many;
mod pick_up;
mod retention;
mod schema;
mod stopped;
mod watch;
mod work;
mod work_faults;
mod work_killed;
mod work_outside;
mod world;

/// A worker: started by the other tests, not by hand.
#[test]
#[ignore = "a process that the other tests start"]
fn worker_process() {
    if let Ok(order) = std::env::var(work_killed::ORDER) {
        work_killed::run(&order);
    }
}
