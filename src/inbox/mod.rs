//! The inbox: a local table of messages, with a state machine, history and an operator's hand.
//!
//! ```text
//!   Kafka ─▶ accept: a poll batch in one transaction ─▶ the table ─▶ workers: batches, handler in the transaction (L2) or lease and token (L1)
//!            window and identity: each message once         ▲
//!                                                           └── an operator: list, show, requeue, skip, edit, replay, erase
//! ```
//!
//! ```no_run
//! # #[cfg(all(feature = "kafka", feature = "sqlite"))]
//! # async fn example(pool: sqlx::SqlitePool, consumer: hapax::Consumer) -> Result<(), Box<dyn std::error::Error>> {
//! use hapax::identity::header;
//! use hapax::inbox::{self, By, Inbox, Order, State};
//! use hapax::shutdown_signal;
//! use sqlx::SqliteConnection;
//!
//! let inbox = Inbox::builder(pool).scope("orders", "fulfil").identify(header("order-id")).build().await?;
//!
//! // One process, or several: Kafka to table. In a loop of your own: `accept_batch`.
//! consumer.run(inbox.accept(), shutdown_signal()).await?;
//!
//! // Others: table to effect, in the transaction that says that the message is done.
//! let handler = async |order: inbox::Message, tx: &mut SqliteConnection| {
//!     sqlx::query("INSERT INTO parcel (content) VALUES (?)").bind(order.payload()).execute(tx).await
//! };
//! inbox.worker().order(Order::Key).run(handler, shutdown_signal()).await?;
//!
//! // And an operator, whose acts are written down.
//! for dead in inbox.list(State::Dead).limit(50).await? {
//!     inbox.requeue(dead.id, By::new("ada", "fixed in 1.4.2")).await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # A message's life
//!
//! *Received* until a worker takes it; *processing* while one has it; then *succeeded*, or *failed* until it is tried again, or *dead* when its
//! attempts are used up or its failure is fatal. See [`State`]. Only an operator brings back what is dead or succeeded, as a new generation.
//!
//! # The tables
//!
//! Wide rows that are only added, and a narrow table of what is open, from which a finished message is deleted. **A message without an open row has
//! succeeded.** The open table is as large as the backlog, nothing wide is updated, and ten million succeeded rows cost a worker nothing. See
//! `migrations/*/0003_inbox.sql` and `0004_inbox_operators.sql`. They have a version, and are made and brought up to date when an inbox is [built](InboxBuilder::build).
//!
//! Ids are this crate's own. Those of inbox *n* begin at *n* · 2^40, so `id` alone finds a message, and a scan of one inbox is a range of ids.

// Rooms: `accept` takes messages in; `queue` takes, holds, finishes and sweeps; `worker` runs handlers over it; `operate` is the operator's hand;
// `retention` forgets; `rules` are the pure rules. All add functions to `core::Core`, which `Inbox` shares.
//
// What differs between databases is in a trait of the room's own, `Sql: Transact` (`Transact` is the dialect with its transactions), implemented for
// `store::{postgres::Postgres, mysql::Mysql, sqlite::Sqlite}` in the room's `postgres.rs`, `mysql.rs` and `sqlite.rs`. `Sql` below gathers them, and
// is implied wherever a function is generic over `DB: Sealed`: there, `DB::DIALECT.any_function(…)`.

#![allow(dead_code, reason = "tests and single features alone ask for some of it")]

mod accept;
#[cfg(feature = "simulator")]
#[doc(hidden)]
pub mod bare;
mod builder;
pub(crate) mod core;
mod message;
mod operate;
mod queue;
mod retention;
#[cfg(feature = "simulator")]
pub mod rules;
#[cfg(not(feature = "simulator"))]
#[allow(unreachable_pub, reason = "in the open for the simulator")]
mod rules;
mod schema;
mod tables;
mod worker;

use std::fmt;
use std::sync::Arc;

pub use accept::{AcceptBatch, AcceptCounts, AcceptError, Accepted, Oversize};
#[cfg(feature = "kafka")]
pub(crate) use accept::{BringError, Brought, Refusal};
pub use builder::InboxBuilder;
pub use message::{Form, Message, MessageId};
pub use operate::{
    Act, Acts, Attempt, AttemptEnd, By, Census, Cursor, Edit, Erased, FailedAttempt, Holder, List, Listed, Page,
    Removed, Replayed, Requeued, Shown, Skipped, States, Switched, What, Which,
};
pub use rules::{Class, State};
pub use worker::{Order, WorkError, WorkSummary, Worker};

use crate::store::Report;
use crate::store::sql::Dialect;
use crate::transaction::TransactionalDatabase;
use crate::transaction::sealed::Sealed;

/// All that the rooms ask of a dialect.
pub(crate) trait Sql: schema::Sql + accept::Sql + queue::Sql + operate::Sql + retention::Sql {}

impl<D: schema::Sql + accept::Sql + queue::Sql + operate::Sql + retention::Sql> Sql for D {}

/// A local table of messages: accepted from Kafka in batches, worked by any number of processes. Cheap to clone; clones share everything.
///
/// Made by [`Inbox::builder`].
pub struct Inbox<DB: TransactionalDatabase> {
    pub(crate) core: Arc<core::Core<DB>>,
}

impl<DB: TransactionalDatabase> Clone for Inbox<DB> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<DB: TransactionalDatabase> fmt::Debug for Inbox<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("database", &<DB as Sealed>::Dialect::NAME)
            .field("tables", &format_args!("{}", self.core.tables.prefix))
            .field("scope", &self.core.scope)
            .finish_non_exhaustive()
    }
}

impl<DB: TransactionalDatabase> Inbox<DB> {
    /// What the start-up check of the database found.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.core.report
    }
}
