//! hapax (Greek ἅπαξ, once) makes a Kafka consumer handle every message once.
//!
//! It stands between an rdkafka consumer with manual offset commits and the business logic. For every delivered message it
//! decides whether the message was handled before, is being handled now, or is new; it runs the handler for new ones only,
//! remembers the outcome, and says which offsets may be committed.
//!
//! ```
//! use hapax::identity::{Identify, Sha256, digest, header};
//! use hapax::message::Parts;
//! use hapax::store::MemoryStore;
//! use hapax::Once;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let once = Once::builder(MemoryStore::new())
//!     .scope("payments", "charge") // consumer group, handler
//!     .identify(header("message-id").or(digest(Sha256))) // what makes two messages the same
//!     .build()
//!     .await?;
//!
//! let message = Parts::new("orders").at(0, 7).payload("one coffee").header("message-id", "7d0c");
//! let done = once.handle(&message, async |_claim| Ok::<_, String>(())).await?;
//! assert!(done.may_commit());
//! # Ok(())
//! # }
//! ```
//!
//! # Ways in
//!
//! - Around a loop of your own: [`Once::handle`], [`Once::handle_batch`]. rdkafka's borrowed and owned messages are
//!   [`MessageView`](message::MessageView)s.
//! - Without Kafka: [`Once::call`], for an interface that has to be idempotent.
//! - With the consumer of this crate (feature `kafka`): [`Consumer`] runs [`Once::each`], or a [`plain()`] handler with or without windows.
//! - In the transactions of your own SQL database: `Once::transactional`, around any loop or in the consumer.
//! - Stored first and worked later: `Inbox`, a table in that database, with workers, history and an operator's hand.
//!
//! # Guarantee levels
//!
//! No level loses a message. They differ in when an effect may repeat; see [`Level`].
//!
//! | level | how | an effect may repeat after |
//! |---|---|---|
//! | L0 | claim in Redis or memory | a lease that ran out; a crash between effect and settle; a failover, restart or eviction that forgot a claim |
//! | L1 | claim in a SQL store, a window of each partition there, or a run of the inbox; effect elsewhere | a lease that ran out; a crash between effect and settle |
//! | L2 | effect and memory in one SQL transaction: `Once::transactional`, or out of the `Inbox` | nothing, in that database |
//! | L3 | any, and [`Claim::idempotency_key`] handed to a resource that honours it | nothing, at that resource |
//!
//! # Features
//!
//! | feature | what |
//! |---|---|
//! | `default` | `kafka`, `memory`, `sqlite`, `json` |
//! | `kafka` | the consumer, and rdkafka's messages as `MessageView`s |
//! | `memory`, `sqlite`, `postgres`, `mysql` (and MariaDB), `redis`, `redis-cluster`, `redis-sentinel` | [stores](store); the SQL ones bring `Once::transactional` and the inbox |
//! | `json` | identities out of JSON payloads |
//! | `cache`, `bloom` | layers over any store |
//! | `metrics` | counters through the `metrics` facade |
//! | `conformance` | the checks for a store of your own |
//! | `full` | all of these |
//! | `kafka-tls`, `kafka-tls-vendored`, `kafka-gzip`, `kafka-zstd`, `redis-tls-rustls`, `redis-tls-native`, `sql-tls-rustls`, `sql-tls-native` | TLS and compression, passed through to the clients |
//!
//! `conformance` and `simulator` are outside semantic versioning.
//!
//! # What it is not
//!
//! Not Kafka's own transactions, which cover what goes from Kafka to Kafka; not a stream processor; not a job queue. A fence or a
//! lease alone does not keep a slow handler from repeating an effect at a remote system: only L2 and L3 do.
//!
//! # The map
//!
//! [`identity`] says what makes two messages the same, [`record`] is one record's life and [`window`] what is remembered of a sequence, as pure
//! rules, [`store`] keeps records, [`Once`] wraps handlers, [`Transactional`] lets them share the database's transactions, [`inbox`] is the local
//! message table, [`consumer`] is the rdkafka side with [`frontier`] deciding what may be committed, and [`observe`] says what is told of all that.

#![cfg_attr(not(test), forbid(unsafe_code))]
#![cfg_attr(test, deny(unsafe_code))]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![cfg_attr(docsrs, feature(doc_cfg))]

/// Tests in here share helpers with those in `tests/`.
#[cfg(test)]
extern crate self as hapax;
#[cfg(all(test, feature = "postgres", feature = "mysql", feature = "sqlite"))]
#[path = "../tests/transaction/base.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, missing_docs, missing_debug_implementations)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod base;
#[cfg(all(test, feature = "postgres", feature = "mysql", feature = "sqlite"))]
#[path = "../tests/support/mod.rs"]
mod support;

#[cfg(feature = "kafka")]
pub mod consumer;
#[cfg(feature = "simulator")]
pub mod engine;
#[cfg(all(feature = "kafka", not(feature = "simulator")))]
#[allow(unreachable_pub, dead_code, reason = "in the open for the simulator")]
mod engine;
pub mod frontier;
pub mod identity;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub mod inbox;
#[cfg(feature = "kafka")]
mod kafka;
mod level;
pub mod message;
pub mod observe;
#[cfg(any(feature = "kafka", feature = "simulator", feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod pace;
pub mod record;
mod retry;
pub mod store;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod threads;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod transaction;
pub mod window;
mod wrapper;

#[cfg(feature = "kafka")]
pub use consumer::{
    Batch, Consumer, ConsumerError, DeadLetter, Each, Handed, Message, Order, Summary, plain, redrive, shutdown_signal,
};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use inbox::{Inbox, InboxBuilder};
pub use level::Level;
pub use retry::Retry;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use transaction::{
    Assigned, Misuse, TransactBatch, TransactError, Transacted, Transactional, TransactionalBuilder,
    TransactionalDatabase,
};
#[cfg(feature = "json")]
pub use wrapper::AsJson;
pub use wrapper::{
    At, BatchDone, BuildError, CallError, Claim, Commit, Counts, Done, ErrorClass, Failure, Fatal, Findings,
    HandleError, HandlerError, Kept, MIN_LEASE, Mode, OnConflict, Once, OnceBuilder, Stage, Unavailable, Unkept,
    Unsettled,
};

/// What ends a consumer or a worker, and what tells a handler that its lease is lost: tokio-util's, so that no dependency of your own is needed to make one.
pub use tokio_util::sync::CancellationToken;

/// The README's code is compiled with the tests.
#[cfg(all(doctest, feature = "kafka", feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
