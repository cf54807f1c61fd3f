//! The consumer on a real broker, by each group protocol: classic with `range` (eager), classic with `cooperative-sticky`, and
//! KIP-848 (`group.protocol=consumer`).
//!
//! Each test runs its scenario by all three protocols side by side, since most of the time is spent waiting for sessions to run
//! out. Members are tasks of this process, or processes of their own (this binary run again) that can be killed and stopped.
//! Effects are lines in a file; what is committed is what the broker tells another client.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod fenced;
mod ground;
mod groups;
mod killed;
mod member;
mod offsets;
mod ordering;
mod outages;
mod revoked;
mod unreadable;

/// A member: started by the other tests, not by hand.
#[test]
#[ignore = "a process that the other tests start"]
fn member_process() {
    if let Ok(order) = std::env::var(member::ORDER) {
        member::run(&order);
    }
}
