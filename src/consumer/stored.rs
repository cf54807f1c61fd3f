//! Windows in a database, for handlers whose effects are elsewhere: level L1.
//!
//! ```text
//!   assigned ─▶ fence raised, row read: seek there
//!   message ─▶ window in memory: finished? no I/O ─▶ handler ─▶ row WHERE fence, with all that has ended meanwhile ─▶ commit of the offset
//!                                                              nobody raised it? finished · raised? left to the new owner
//! ```

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::Pool;
use tracing::warn;

use super::in_windows::{Keep, KeepWindows};
use super::transactional::{FENCED, Remembering, gone};
use super::windows::Windows;
use crate::engine::{Answer, Cause, Ending, Settled, Subject, Ticket, Verdict};
use crate::frontier::Epoch;
use crate::identity::{Fingerprint, Key, Scope, position};
use crate::level::Level;
use crate::message::MessageView;
use crate::record::SettleOutcome;
use crate::store::{Report, StoreError};
use crate::transaction::seam::{self, Core, Item, Pinned, Prepared};
use crate::transaction::{TransactionalBuilder, TransactionalDatabase};
use crate::wrapper::drive::{Call, ClaimReply, Fault, Hands, Records, SettleReply, Unfinished, given_up};
use crate::wrapper::{BuildError, Claim, Described, Once};

/// For how long a database that does not answer is asked again in one call. The consumer asks anew after that, and takes nothing in meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is finished of each partition, in one row of a database for each, while the effects are elsewhere: level L1. Clones share it.
///
/// Made for [`Plain::windows`](super::Plain::windows), for handlers that call a service, write a file or another database. Where the effects are in
/// *this* database, [`Once::transactional`](crate::Once::transactional) does better: no effect repeats there.
///
/// A row is moved once the handlers have succeeded, for all that have ended meanwhile at once, and before the offset is committed:
/// one small transaction for as much as is waiting, however many messages that is. What finished out of order is kept as a compact set above
/// the row's mark.
///
/// # What it gives
///
/// - Nothing is lost: a message that is not in the row as finished is handled again by whoever has the partition next.
/// - **No redelivery is handled again** once its row has moved: not after a rebalance, a lost commit, offsets that were reset or set back by
///   hand, or a group that was deleted. A new owner reads from where the row stands; see [`Finding`](super::Finding).
/// - **An effect may repeat** when the process is killed, or stands still until others have its partitions, between the effect and the move of the
///   row: at most what was in flight, and what had ended since the last move. That is what level L1 is.
/// - What was *produced again*, at another offset, is another message here. [`Once::each`](crate::Once::each), with a record for each message, stops
///   that; windows and the records of a store are not combined at this level, but only [at L2](crate::transaction::TransactionalBuilder::identify).
/// - A process whose partitions were taken while it stood still moves no row any more: its messages are left to the new owner, and
///   [counted and named](crate::observe::Observed::Fenced).
/// - A topic that was deleted and made again is [refused](super::Consumer::on_reset), not skipped.
///
/// Attempts that fail are counted in the row. So are those of a message that ends the process: what is in hand before the first move of a row after an
/// assignment is noted there, and if the process ends before that, whoever comes next counts the attempt of each of them before it runs.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn main_() -> Result<(), Box<dyn std::error::Error>> {
/// use hapax::consumer::{Consumer, Message, StoredWindows, plain, shutdown_signal};
/// use rdkafka::ClientConfig;
///
/// # async fn notify(_: &[u8]) -> Result<(), String> { Ok(()) }
/// let pool = sqlx::PgPool::connect("postgres://localhost/orders").await?;
/// let windows = StoredWindows::builder(pool).scope("orders", "notify").build().await?;
/// let handler = plain(async |message: Message| notify(message.payload().unwrap_or_default()).await).windows(&windows);
///
/// let mut kafka = ClientConfig::new();
/// kafka.set("bootstrap.servers", "localhost:9092").set("group.id", "orders");
/// Consumer::new(kafka).topics(["orders"]).run(handler, shutdown_signal()).await?;
/// # Ok(())
/// # }
/// ```
pub struct StoredWindows<DB: TransactionalDatabase> {
    core: Arc<Core<DB>>,
}

impl<DB: TransactionalDatabase> Clone for StoredWindows<DB> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<DB: TransactionalDatabase> fmt::Debug for StoredWindows<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredWindows").field("core", &self.core).finish_non_exhaustive()
    }
}

impl<DB: TransactionalDatabase> StoredWindows<DB> {
    /// Starts to configure windows in the database of `pool`, which is yours: `sqlx::PgPool`, `MySqlPool` or `SqlitePool`.
    pub fn builder(pool: Pool<DB>) -> StoredWindowsBuilder<DB> {
        StoredWindowsBuilder { inner: Once::transactional(pool).identify(position()).store_patience(PATIENCE) }
    }

    /// What the start-up check of the database found.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.core.report
    }

    /// The guarantee level: always L1.
    #[must_use]
    pub const fn level(&self) -> Level {
        Level::L1
    }
}

/// Configures [`StoredWindows`]; made by [`StoredWindows::builder`].
#[must_use = "nothing is built before `build`"]
pub struct StoredWindowsBuilder<DB: TransactionalDatabase> {
    inner: TransactionalBuilder<DB>,
}

impl<DB: TransactionalDatabase> fmt::Debug for StoredWindowsBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredWindowsBuilder").finish_non_exhaustive()
    }
}

impl<DB: TransactionalDatabase> StoredWindowsBuilder<DB> {
    /// Sets whose windows they are: consumer group and handler. This or [`in_scope`](Self::in_scope) is needed. Another handler of the same
    /// topics has windows of its own.
    pub fn scope(self, group: impl Into<String>, handler: impl Into<String>) -> Self {
        Self { inner: self.inner.scope(group, handler) }
    }

    /// Sets whose windows they are, with all that a [`Scope`] can say.
    pub fn in_scope(self, scope: Scope) -> Self {
        Self { inner: self.inner.in_scope(scope) }
    }

    /// Sets the name of the table of windows. Default: `hapax_windows`. `table`, or `schema.table`.
    pub fn with_table(self, name: impl Into<String>) -> Self {
        Self { inner: self.inner.with_windows_table(name) }
    }

    /// Sets how long a statement waits for a lock that somebody holds. Default: 1 s. MySQL counts whole seconds; SQLite waits as long as the
    /// pool's own `busy_timeout` says.
    ///
    /// A process that stands still between the write of a partition's row and its commit keeps that row locked until the database ends its session, and
    /// the partition's next owner cannot take it before. The database's own limit bounds that, where it is set for these sessions:
    /// `idle_in_transaction_session_timeout` in PostgreSQL, `idle_transaction_timeout` in MariaDB, `wait_timeout` in MySQL.
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        Self { inner: self.inner.lock_timeout(timeout) }
    }

    /// Does not create the table; it must be there. Default: it is created if it is missing.
    pub fn without_schema_creation(self) -> Self {
        Self { inner: self.inner.without_schema_creation() }
    }

    /// Starts even if the check finds settings that break the promise. They are logged, and readable from
    /// [`StoredWindows::report`]. Default: refuse.
    pub fn accept_unsafe_settings(self) -> Self {
        Self { inner: self.inner.accept_unsafe_settings() }
    }

    /// Checks the settings, makes the table, and looks for unsafe settings in the database.
    ///
    /// # Errors
    ///
    /// [`BuildError`]. Retryable only where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: building again does what is left.
    pub async fn build(self) -> Result<StoredWindows<DB>, BuildError> {
        Ok(StoredWindows { core: self.inner.build().await?.core })
    }
}

impl<DB: TransactionalDatabase> Keep for StoredWindows<DB> {
    type Keeper = Stored<DB>;

    fn keeper(&self) -> Arc<Stored<DB>> {
        Arc::new(Stored(Remembering::new(&self.core)))
    }

    fn windows_of(keeper: &Arc<Stored<DB>>) -> Arc<dyn Windows> {
        keeper.0.windows()
    }

    fn describe(&self) -> String {
        format!(
            "windows in {}, level L1: what was in flight at a crash repeats",
            self.described().map_or("", |own| own.store)
        )
    }

    fn described(&self) -> Option<Described> {
        Some(Described { level: Some(Level::L1), ..self.core.described() })
    }
}

impl<DB: TransactionalDatabase> KeepWindows for StoredWindows<DB> {}

/// Remembers messages by the rows of their partitions.
#[derive(Debug)]
pub struct Stored<DB: TransactionalDatabase>(Remembering<DB>);

/// A message in hand.
pub struct InHand {
    item: Item,
    /// Which attempt it is, from 1, over all processes.
    attempt: u32,
    /// How many it may have.
    most: u32,
    /// Given up, after so many attempts.
    dead_after: Option<u32>,
}

impl fmt::Debug for InHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InHand").field("origin", &self.item.origin).finish_non_exhaustive()
    }
}

impl InHand {
    /// What tells it from others in hand.
    fn key(&self) -> Key {
        let mut bytes = [0; 16];
        let (partition, offset) = bytes.split_at_mut(8);
        if let Pinned::To(Some(held)) = &self.item.held {
            partition.copy_from_slice(held.source.first_chunk::<8>().unwrap_or(&[0; 8]));
        }
        offset.copy_from_slice(&self.item.origin.offset.to_be_bytes());
        Key::from_bytes(bytes)
    }
}

impl<DB: TransactionalDatabase> Records for Stored<DB> {
    type State = InHand;

    fn look(&self, message: &dyn MessageView, epoch: Epoch) -> (Subject, InHand) {
        let prepared = self.0.core.prepare_under(message, Pinned::To(self.0.bound.held(epoch)));
        let (Prepared::Item(item) | Prepared::Refused(_, item)) = prepared;
        let hand = InHand { item, attempt: 0, most: u32::MAX, dead_after: None };
        // Claimed, without a call, when its turn comes: so that its end is settled.
        (Subject::Known { key: hand.key(), fingerprint: Fingerprint::from_bytes([0; 16]) }, hand)
    }

    fn claim(&self, hands: &mut dyn Hands<InHand>, tickets: &[Ticket], attempts: NonZeroU32) -> Call<ClaimReply> {
        let most = attempts.get();
        let mut new = Vec::new();
        for ticket in tickets {
            if let Some(hand) = hands.hand(*ticket) {
                hand.most = most;
                if self.0.core.must_note(&hand.item, most) {
                    new.push(hand.item.clone());
                }
            }
        }
        let granted = ClaimReply::granted(tickets);
        if new.is_empty() {
            return granted;
        }
        let core = Arc::clone(&self.0.core);
        let noted = self.0.threads.run(move || async move { core.about_to_run(&new, most).await });
        Box::pin(async move {
            match noted.await.unwrap_or_else(|_| Err(gone("note what is about to run"))) {
                Ok(()) => granted.await,
                Err(error) => ClaimReply::failed(error),
            }
        })
    }

    fn claimed(&self, hands: &mut dyn Hands<InHand>, reply: ClaimReply) -> Result<Vec<(Ticket, Answer)>, StoreError> {
        let mut answers = reply.into_granted()?;
        let mut last = None;
        for (ticket, answer) in &mut answers {
            let Some(hand) = hands.hand(*ticket) else { continue };
            *answer = match self.0.core.verdict(&hand.item) {
                seam::Verdict::Finished => Answer::Redelivered,
                // The group takes the partition away soon, or has given it anew.
                seam::Verdict::Fenced => {
                    let place = (Arc::clone(&hand.item.origin.topic), hand.item.origin.partition);
                    if last.as_ref() != Some(&place) {
                        self.0.hear_of_fence(&hand.item);
                        last = Some(place);
                    }
                    Answer::InFlight { remaining: FENCED }
                }
                seam::Verdict::New { attempts } if attempts >= hand.most => {
                    hand.dead_after = Some(attempts);
                    Answer::Dead
                }
                seam::Verdict::New { attempts } => {
                    hand.attempt = attempts.saturating_add(1);
                    Answer::Acquired { attempt: hand.attempt }
                }
            };
        }
        Ok(answers)
    }

    fn unclaimed(&self, _: &mut dyn Hands<InHand>, _: &[Ticket]) {}

    fn claim_of(&self, hand: &InHand, attempt: u32) -> Claim {
        Claim::bare(hand.key(), attempt)
    }

    fn begun(&self, _: &mut InHand) {}

    fn succeeded(&self, _: &mut InHand, _: Option<Bytes>) {}

    fn failed(&self, _: &mut InHand, _: bool) {}

    fn not_begun(&self, _: &mut InHand) {}

    fn settle(&self, hands: &mut dyn Hands<InHand>, ends: &[(Ticket, Verdict)], _: NonZeroU32) -> Call<SettleReply> {
        let (mut tickets, mut items, mut noted) = (Vec::with_capacity(ends.len()), Vec::new(), Vec::new());
        // Which of those that are to be noted each one is.
        let mut places = Vec::with_capacity(ends.len());
        for (ticket, verdict) in ends {
            let Some(hand) = hands.hand(*ticket) else { continue };
            let ended = match verdict {
                Verdict::Succeeded | Verdict::Dead => Some(seam::Ended::Finished),
                Verdict::Failed { .. } => Some(seam::Ended::Failed(hand.attempt)),
                // As a store does, it takes back what was counted before it ran.
                Verdict::Released => self.0.core.is_counted(&hand.item).then_some(seam::Ended::Failed(0)),
            };
            tickets.push(*ticket);
            // One that is given back is nobody's any more, whoever has the partition.
            places.push(ended.filter(|_| *verdict != Verdict::Released).map(|_| items.len()));
            if let Some(ended) = ended {
                items.push(hand.item.clone());
                noted.push(ended);
            }
        }
        let Remembering { core, threads, .. } = &self.0;
        let core = Arc::clone(core);
        let answer = (!items.is_empty()).then(|| threads.run(move || async move { core.note(&items, &noted).await }));
        Box::pin(async move {
            let answer = match answer {
                Some(answer) => answer.await.unwrap_or_else(|_| Err(gone("move windows"))),
                None => Ok(Vec::new()),
            };
            let outcome = |stands: &[bool], place: &Option<usize>| match place.map(|place| stands.get(place)) {
                Some(Some(false)) => SettleOutcome::Refused,
                _ => SettleOutcome::Settled,
            };
            SettleReply::of(tickets, answer.map(|stands| places.iter().map(|place| outcome(&stands, place)).collect()))
        })
    }

    fn settled(&self, hands: &mut dyn Hands<InHand>, reply: SettleReply) -> Result<Vec<(Ticket, Settled)>, StoreError> {
        let mut answers = reply.into_answers()?;
        let (mut last, mut fenced) = (None, 0_u64);
        for (ticket, answer) in answers.iter_mut().filter(|(_, answer)| *answer == Settled::Refused) {
            *answer = Settled::Fenced;
            fenced += 1;
            let Some(hand) = hands.hand(*ticket) else { continue };
            let place = (Arc::clone(&hand.item.origin.topic), hand.item.origin.partition);
            if last.as_ref() != Some(&place) {
                self.0.hear_of_fence(&hand.item);
                last = Some(place);
            }
        }
        if let Some((topic, partition)) = last {
            warn!(
                %topic,
                partition,
                messages = fenced,
                "another process has taken a partition: what was handled here and is not in its window is left to the new owner"
            );
        }
        Ok(answers)
    }

    fn finished(&self, _: Ending, _: u64) {}

    fn put_down(&self, _: InHand) {}

    fn key(&self, _: &InHand) -> Option<Key> {
        None
    }

    fn attempts(&self, hand: &InHand) -> Option<u32> {
        hand.dead_after
    }

    fn explain(&self, _: &dyn MessageView, _: &InHand, cause: Cause, last: Option<&Fault>) -> Unfinished {
        given_up(cause, last)
    }

    async fn finish(&self, _: Duration) -> u64 {
        // Nothing is owed: what the windows have not heard is handled again.
        0
    }
}
