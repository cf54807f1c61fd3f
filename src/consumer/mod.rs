//! Nothing but the handler: hapax runs the Kafka consumer.
//!
//! ```no_run
//! # #[cfg(feature = "memory")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use hapax::consumer::{Consumer, Message};
//! use hapax::identity::header;
//! use hapax::store::MemoryStore;
//! use hapax::{Claim, Once, Order, shutdown_signal};
//!
//! async fn ship(message: &Message, idempotency_key: String) -> Result<(), std::io::Error> {
//!     println!("{:?} under {idempotency_key}", message.payload());
//!     Ok(())
//! }
//!
//! let once = Once::builder(MemoryStore::new()).scope("orders", "ship").identify(header("message-id")).build().await?;
//! let mut kafka = rdkafka::ClientConfig::new();
//! kafka.set("bootstrap.servers", "localhost:9092").set("group.id", "orders");
//!
//! let summary = Consumer::new(kafka)
//!     .topics(["orders"])
//!     .order(Order::Key)
//!     .concurrency(256)
//!     .run(once.each(async |m: Message, claim: Claim| ship(&m, claim.idempotency_key()).await), shutdown_signal())
//!     .await?;
//! println!("{summary}");
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! One OS thread polls Kafka and hands batches to one task, the pump. What to do next is decided there by one engine without clock or I/O:
//! which messages are claimed, which handlers run side by side, what is tried again, what may be committed.
//!
//! - **Order**: [by partition](Order::Partition), [by key](Order::Key), or [none](Order::Unordered); within it up to
//!   [`concurrency`](Consumer::concurrency) handlers run side by side. What waits holds up only what must come after it.
//! - **Commits**: only the finished prefix of a partition, about once a second, and at once when a partition is revoked or the
//!   consumer ends. Never below what the broker has, never for a partition that is no longer ours. A last commit that is refused for a reason that
//!   may pass is asked for again, for 10 seconds at most (a quarter of `max.poll.interval.ms`, if that is less). `enable.auto.commit` and
//!   `enable.auto.offset.store` are refused where they are on.
//! - **Back-pressure**: messages in hand are bounded in [number](Consumer::max_messages) and in [bytes](Consumer::max_bytes), for each
//!   [partition](Consumer::partition_messages) and for all. What is full is paused, and polling goes on; so a handler may take longer than
//!   `max.poll.interval.ms` without costing the membership.
//! - **Rebalance** (eager, cooperative and KIP-848, static members too): of revoked partitions no further message is begun, the running
//!   handlers are waited for, at most for the [drain deadline](Consumer::drain_deadline), and what is finished is committed before the partition
//!   goes. When partitions are *lost*, nothing is committed, and what their running handlers come to is decided by their claim, never by
//!   this consumer's memory.
//! - **Resets and replays**: where the group's offset is gone or out of range, or the topic was deleted and made again under its name, that is
//!   noticed before anything is handled, and [refused, warned of or accepted](Consumer::on_reset). `auto.offset.reset` never jumps in silence.
//! - **Transactions**: where effects are in PostgreSQL, MySQL, MariaDB or SQLite, [`Once::transactional`](crate::Once::transactional) has a handler run inside
//!   the transaction that remembers the message (level L2). Its windows say where partitions go on, and win over the group's offsets.
//! - **A store that is away**: partitions fill up and are paused, nothing is committed, nothing is lost, no attempt is used up.

mod assignment;
mod batch;
mod bell;
mod builder;
mod committer;
mod config;
mod context;
mod continuity;
mod dead_letter;
mod each;
mod error;
mod finding;
mod gate;
mod handling;
mod hush;
mod in_windows;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod inbox;
mod joining;
pub mod letter;
mod link;
mod look;
mod memory;
mod message;
mod monitor;
mod observe;
mod places;
mod plain;
mod pump;
mod redrive;
mod report;
mod resume;
mod retention;
mod run;
mod signal;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod stored;
mod summary;
mod thread;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod transactional;
mod windows;
mod witness;

pub use batch::Batch;
pub use builder::Consumer;
pub use config::ConfigError;
pub use dead_letter::{DeadLetter, DeadLetterError};
pub use each::Each;
pub use error::ConsumerError;
pub use finding::{Finding, Found, OnReset};
pub use handling::{Ending, Handed, Handling};
pub use in_windows::{InWindows, KeepWindows};
pub use memory::MemoryWindows;
pub use message::Message;
pub use monitor::Monitor;
pub use plain::{Plain, plain};
#[cfg(feature = "simulator")]
#[doc(hidden)]
pub use pump::dry_run;
pub use redrive::{Redrive, RedriveError, Redriven, Skip, redrive};
pub use signal::shutdown_signal;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use stored::{StoredWindows, StoredWindowsBuilder};
pub use summary::{PartitionSummary, Summary};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use transactional::{AllAtOnce, InTransaction, OneByOne};

pub use crate::engine::Order;
