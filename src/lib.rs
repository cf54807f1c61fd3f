//! hapax: handle every Kafka message once.

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "kafka")]
pub mod consumer;
pub mod frontier;
pub mod identity;
#[cfg(feature = "kafka")]
mod kafka;
mod level;
pub mod message;
pub mod record;
mod retry;
pub mod store;
mod wrapper;

pub use level::Level;
pub use retry::Retry;
#[cfg(feature = "json")]
pub use wrapper::AsJson;
pub use wrapper::{
    At, BatchDone, BuildError, CallError, Claim, Commit, Counts, Done, Each, EachError, ErrorClass, Failure, Fatal,
    Findings, Finished, HandleError, HandlerError, Kept, MIN_LEASE, Mode, OnConflict, Once, OnceBuilder, Stage, Unkept,
    Unsettled,
};
