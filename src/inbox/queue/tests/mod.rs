//! The queue on PostgreSQL, MariaDB and SQLite. What stands in its tables is read by connections of the tests' own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ending;
mod hearing;
mod keys;
mod losing;
mod taking;
#[path = "../../../../tests/inbox/world.rs"]
#[allow(dead_code, unreachable_pub)]
mod world;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::dialect::Sql;
use super::{Ask, End, How, Run, Take};
use crate::Inbox;
use crate::base::Base;
use crate::inbox::core::Core;
use crate::level::Level;
use crate::store::sql::Fault;
use crate::transaction::Committed;
use crate::transaction::sealed::Sealed;

/// Long enough never to run out by itself.
const LONG: Duration = Duration::from_secs(600);

/// A queue with tables of its own, and a table of effects.
struct Ground<DB: Base> {
    world: world::World<DB>,
    inbox: Inbox<DB>,
}

/// A message to be there.
#[derive(Clone, Copy)]
struct Row {
    lane: i64,
    lot: i64,
    turn: i64,
    priority: i64,
}

const READY: Row = Row { lane: 0, lot: 0, turn: 0, priority: 0 };

impl<DB: Base> Ground<DB> {
    async fn new() -> Self {
        let world = world::World::<DB>::sized(10).await;
        let inbox = world.inbox().await;
        let effects = format!("CREATE TABLE {}_effects (id BIGINT NOT NULL, lane BIGINT NOT NULL)", world.prefix);
        DB::run(&mut world.session().await, &effects).await.unwrap();
        Self { world, inbox }
    }

    fn core(&self) -> &Arc<Core<DB>> {
        &self.inbox.core
    }

    /// The id of message number `n`, from 0.
    fn id(&self, n: i64) -> i64 {
        self.core().ids().start + 1 + n
    }

    async fn run(&self, text: &str) -> u64 {
        self.world.run(text).await
    }

    /// Sets so many messages there, from number `first` on.
    async fn seed(&self, first: i64, rows: &[Row]) {
        let (number, messages, open) = (self.core().number, &self.core().tables.messages, &self.core().tables.open);
        for (chunk, rows) in rows.chunks(500).enumerate() {
            let mut wide = format!(
                "INSERT INTO {messages} (id, lane, log_offset, accepted, stamp, inbox, part, generation, priority, form, message_key, \
                 fingerprint, topic, record_key, headers, payload) VALUES "
            );
            let mut narrow = format!(
                "INSERT INTO {open} (id, lane, turn, run, inbox, generation, attempts, lot, priority, alone) VALUES "
            );
            for (at, row) in rows.iter().enumerate() {
                let n = first + (chunk * 500 + at) as i64;
                let (id, comma) = (self.id(n), if at == 0 { "" } else { ", " });
                let bytes = |bytes: &[u8]| <<DB as Sealed>::Dialect as Sql>::quoted_bytes(bytes);
                let key = bytes(&u128::from(id.cast_unsigned()).to_be_bytes());
                let payload = bytes(format!("payload {n}").as_bytes());
                let _ = write!(
                    wide,
                    "{comma}({id}, {}, {n}, 1, 7, {number}, 3, 1, {}, 0, {key}, {key}, 'orders', {}, NULL, {payload})",
                    row.lane,
                    row.priority,
                    bytes(&row.lane.to_be_bytes()),
                );
                let Row { lane, lot, turn, priority } = row;
                let _ = write!(narrow, "{comma}({id}, {lane}, {turn}, 0, {number}, 1, 0, {lot}, {priority}, 0)");
            }
            self.run(&wide).await;
            self.run(&narrow).await;
        }
    }

    async fn take(&self, most: usize) -> Take {
        self.core().take(&ask(most)).await.unwrap()
    }

    async fn run_of(&self, ask: &Ask) -> Run {
        self.core().take(ask).await.unwrap().run.expect("there is something to take")
    }

    /// Handles a run inside a transaction, as level L2 does: an effect for each that succeeds.
    async fn handle(&self, run: &Run, ends: &[End]) -> Result<(), Fault> {
        let core = self.core();
        let mut tx = core.begin().await?;
        if !core.hold(tx.conn()?, run, 1).await? {
            core.rollback(tx).await;
            return Err(Fault::Contended("not held".into()));
        }
        let rows: Vec<String> = ends
            .iter()
            .filter(|end| matches!(end.how, How::Succeeded))
            .map(|end| format!("({}, {})", run.taken[end.at].id, run.taken[end.at].lane))
            .collect();
        if !rows.is_empty() {
            let text = format!("INSERT INTO {}_effects (id, lane) VALUES {}", self.world.prefix, rows.join(", "));
            DB::run(tx.conn()?, &text).await.unwrap();
        }
        if let Err(fault) = core.finish(tx.conn()?, run, ends, true).await {
            core.rollback(tx).await;
            return Err(fault);
        }
        match core.commit(tx).await {
            Committed::Yes => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    async fn succeed(&self, run: &Run) {
        self.handle(run, &all(run, How::Succeeded)).await.unwrap();
    }

    async fn count(&self, end: &str, condition: &str) -> i64 {
        self.world.count(end, condition).await
    }

    /// Each of so many messages has one effect, and nothing is left to do.
    async fn all_done(&self, messages: i64) {
        assert_eq!(self.count("_open", "1 = 1").await, 0, "{}", DB::KIND);
        assert_eq!(self.count("_effects", "1 = 1").await, messages, "{}", DB::KIND);
        let text = format!("SELECT COUNT(DISTINCT id) FROM {}_effects", self.world.prefix);
        let distinct = DB::number(&mut self.world.session().await, &text).await.unwrap();
        assert_eq!(distinct, messages, "{}: some twice", DB::KIND);
        assert_eq!(self.count("_runs", "ended IS NULL").await, 0, "{}", DB::KIND);
    }
}

fn ask(most: usize) -> Ask {
    Ask { most, by_key: false, lease: LONG, owner: "a worker".into(), level: Level::L2 }
}

fn by_key(most: usize) -> Ask {
    Ask { by_key: true, ..ask(most) }
}

fn all(run: &Run, how: How) -> Vec<End> {
    (0..run.taken.len()).map(|at| End { at, how: how.clone() }).collect()
}

fn failed(retry_in: Duration) -> How {
    How::Failed { class: crate::inbox::rules::Class::Retryable, text: "no".into(), retry_in }
}
