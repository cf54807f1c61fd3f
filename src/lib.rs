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
pub mod store;

pub use level::Level;
