//! The guarantee levels.

use std::fmt;

/// What a mode or store guarantees. No level loses a message; they differ in when an effect may repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Claim in a store that may forget (Redis, memory). An effect repeats after a lease that ran out, a crash
    /// between effect and settle, and a failover, restart or eviction that forgot a claim.
    L0,
    /// Claim in a durable SQL store, effect elsewhere. An effect repeats after a lease that ran out, and a crash
    /// between effect and settle.
    L1,
    /// Effect and record in one SQL transaction. No effect repeats in that database.
    L2,
    /// Claim, and identity and fence handed to the resource as its idempotency key. No effect repeats at a resource that honours it.
    L3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L0 => "L0",
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
        })
    }
}
