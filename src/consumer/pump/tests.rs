//! The pump on a paused clock: a store that fails on command behind it, and a Kafka thread played by hand before it.

mod desk;
mod faults;
mod leases;
mod order;
mod own;
mod retry;

#[allow(dead_code, unreachable_pub)]
#[path = "../../../tests/wrapper/probe.rs"]
mod probe;
