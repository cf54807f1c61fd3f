//! The wrapper around any loop: outcomes, faults, leases, cancellation. Effects are counted outside the crate.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod probe;

mod batch;
mod build;
mod calls;
mod cancel;
mod faults;
mod lease;
mod single;
