//! The consumer with handlers inside the database's own transactions (level L2), on a real broker: effects are rows, counted by a connection of their own.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, unused_imports, unused_macros)]
#[path = "../transaction/base.rs"]
mod base;
#[allow(dead_code)]
#[path = "../consumer/world.rs"]
mod world;

mod away;
mod failing;
mod ground;
mod killed;
mod orders;
mod stored;
mod topics;
mod windows;

/// A member: started by the other tests, not by hand.
#[test]
#[ignore = "a process that the other tests start"]
fn member_process() {
    if let Ok(order) = std::env::var(killed::ORDER) {
        killed::run(&order);
    }
    if let Ok(order) = std::env::var(stored::ORDER) {
        stored::run(&order);
    }
}
