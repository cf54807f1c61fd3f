//! Handlers inside a transaction of the user's own database, as the consumer drives them: level L2.
//!
//! ```text
//!   pump ── a batch ──▶ worker: a thread with a set of local tasks ── transaction/ ──▶ BEGIN … handler … COMMIT
//!        ◀─ what became of each ─────────────────────────────────────────────────────
//! ```
//!
//! What a handler awaits borrows the transaction's connection, and whether such a future may move between threads cannot be shown on stable
//! Rust. So it does not: batches go to a few threads of our own, which poll them where they are, within the runtime that the consumer runs
//! in. A batch that nobody waits for any more is dropped where it waits, and rolled back.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use sqlx::Database;

use super::handling::{Drive, Few, Handed, Needs};
use super::look::Place;
use super::message::Message;
use super::windows::{Fenced, Note, Raising, Standing, Windows};
use crate::engine::{self, Answer, Cause, Ending, Settled, Ticket};
use crate::frontier::Epoch;
use crate::identity::{IdentityError, Key};
use crate::message::MessageView;
use crate::record::{Seen, SettleOutcome};
use crate::retry::Retry;
use crate::store::StoreError;
use crate::store::sql::Fault as DatabaseFault;
use crate::threads::Threads;
use crate::transaction::seam::{Buried, Core, Held, Item, Known, Outcome, Pinned, Prepared, Rules, Work};
use crate::transaction::{Transactional, TransactionalDatabase};
use crate::wrapper::drive::{Call, ClaimReply, Ended, Fault, Hands, Own, Records, SettleReply, Unfinished, given_up};
use crate::wrapper::{At, Claim, Described, ErrorClass, HandleError, HandlerError};

/// What is asked again about a partition that another process holds: the group will take it away, or give it anew.
pub(super) const FENCED: Duration = Duration::from_secs(1);

impl<DB: TransactionalDatabase> Transactional<DB> {
    /// What a consumer runs: `handler` for each message, inside the transaction that remembers it. Level L2.
    ///
    /// `handler` is an `async |message: Message, tx: &mut PgConnection| -> Result<T, E>` (or `&mut MySqlConnection`, `&mut SqliteConnection`): an `AsyncFn` with the type of
    /// its parameters written out. One that ends in `?` and `Ok(())` says its error's type too: `Ok::<_, sqlx::Error>(())`. What it writes through `tx` is committed together with what is remembered of the message, or not at
    /// all: no effect in that database repeats, and none is lost.
    ///
    /// What is waiting goes into one transaction, [512 messages](crate::transaction::TransactionalBuilder::batch_size) at most, one handler after the other. One that fails is
    /// rolled back by itself; its attempt is recorded, the later ones of its partition (or key, as
    /// [`Consumer::order`](crate::Consumer::order) says) wait behind it, and the others go on and commit. A panic or a time-out
    /// rolls the whole transaction back; the others are run again without it.
    ///
    /// Savepoints cost as much as small statements do. So each message has one only until 256 messages in a row went well: then a batch runs
    /// without, and is run again with savepoints if one of its messages fails. So a handler should fail seldom, or it is slower.
    ///
    /// So a handler may run more than once for one message, with all but one of its runs rolled back. **What it does elsewhere than through
    /// `tx`** (a request, another connection, a file) is not undone, and may happen again: level L2 holds in that database alone.
    ///
    /// A handler must not end the transaction (`COMMIT`, `ROLLBACK`, or what commits by itself, such as MySQL's `CREATE TABLE`): that is noticed, and
    /// the message is given up; so are those that ran without a savepoint in the same transaction. Where there is a window alone, what such a handler
    /// committed of the messages before it may be handled again: level L2 holds for handlers that leave the transaction alone. It must return the errors of its statements: one that PostgreSQL refused spoils the transaction. It should not
    /// wait for anything slow: the transaction holds its locks meanwhile.
    ///
    /// A message whose handler loses its connection four times in a row, while the database answers otherwise, has failed: it writes what the server does not
    /// take (MySQL's `max_allowed_packet`), or leaves its transaction idle for longer than the server allows.
    ///
    /// Attempts are counted by the database when they fail. A message that takes the process down with it is counted where there is a window of its
    /// partition: what is in hand before the first commit after an assignment is noted there, which costs nothing later. A new owner that finds such
    /// a note runs those messages one by one, and counts the attempt of each before it begins. So that message ends one or two processes more than it has
    /// attempts, and then is given up, alone. With records alone it is *not* counted: it comes again and again until somebody looks.
    ///
    /// # Cancel safety
    ///
    /// A handler is dropped where it waits when its partition is lost, or when the drain deadline has passed; its transaction is rolled back.
    pub fn each<F, T, E>(&self, handler: F) -> InTransaction<DB, OneByOne<F, T, E>>
    where
        F: AsyncFn(Message, &mut DB::Connection) -> Result<T, E> + Send + Sync + 'static,
        T: 'static,
        E: HandlerError + 'static,
    {
        InTransaction::new(self, OneByOne { handler, returns: PhantomData })
    }

    /// What a consumer runs: `handler` for all messages that are waiting and new, at once, inside the transaction that remembers them. Level L2.
    ///
    /// `handler` is an `async |messages: &[Message], tx: &mut PgConnection| -> Result<(), E>`, made for bulk inserts. It is given those that are not known
    /// as handled, of one partition (or key) in their order, [512](crate::transaction::TransactionalBuilder::batch_size) at most; never none. Its error is one of all of
    /// them: they are rolled back, and halves of them are tried, down to the one that fails, which then counts an attempt.
    ///
    /// Everything else is as with [`each`](Self::each), cancel safety too.
    pub fn batch<F, E>(&self, handler: F) -> InTransaction<DB, AllAtOnce<F, E>>
    where
        F: AsyncFn(&[Message], &mut DB::Connection) -> Result<(), E> + Send + Sync + 'static,
        E: HandlerError + 'static,
    {
        InTransaction::new(self, AllAtOnce { handler, returns: PhantomData })
    }
}

/// A handler inside a transaction: what a consumer runs. Made by [`Transactional::each`] and [`Transactional::batch`]. Level L2.
pub struct InTransaction<DB: TransactionalDatabase, S> {
    core: Arc<Core<DB>>,
    records: Remembering<DB>,
    shape: S,
    /// The consumer's.
    retry: OnceLock<Retry>,
}

impl<DB: TransactionalDatabase, S> fmt::Debug for InTransaction<DB, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTransaction").field("core", &self.core).finish_non_exhaustive()
    }
}

impl<DB: TransactionalDatabase, S> InTransaction<DB, S> {
    pub(super) fn new(once: &Transactional<DB>, shape: S) -> Self {
        let core = Arc::clone(&once.core);
        let records = Remembering::new(&core);
        Self { core, records, shape, retry: OnceLock::new() }
    }
}

/// A handler of one message, with what it returns.
pub struct OneByOne<F, T, E> {
    handler: F,
    returns: PhantomData<fn() -> (T, E)>,
}

/// A handler of many messages, with what it returns.
pub struct AllAtOnce<F, E> {
    handler: F,
    returns: PhantomData<fn() -> E>,
}

impl<F, T, E> fmt::Debug for OneByOne<F, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneByOne").finish_non_exhaustive()
    }
}

impl<F, E> fmt::Debug for AllAtOnce<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllAtOnce").finish_non_exhaustive()
    }
}

/// How a handler takes its messages. Public so that it can stand in bounds, and out of reach.
pub trait Shape<DB: Database>: Send + Sync + 'static {
    /// How it fails.
    type Error: HandlerError;

    /// What it leaves of each message.
    type Left;

    /// Whether it takes all at once.
    const TOGETHER: bool;

    /// Whether its statements are this crate's own, none of which ends the transaction, and it answers with the error of each that is refused.
    const ENDS_NOTHING: bool = false;

    /// Called before each batch of so many messages, outside its transaction.
    fn ready(&self, _messages: usize) -> impl Future<Output = Result<(), StoreError>> {
        std::future::ready(Ok(()))
    }

    /// Runs it.
    fn call(
        &self,
        messages: &[Message],
        conn: &mut DB::Connection,
        into: &mut Vec<Self::Left>,
    ) -> impl Future<Output = Result<(), Self::Error>>;

    /// What the database is, where an error says nothing of the messages.
    fn fault(&self, _: &Self::Error) -> Option<Nobodys> {
        None
    }

    /// Whether a window may pass a message that this was left of.
    fn passes(&self, _: &Self::Left) -> bool {
        true
    }

    /// What was left, once it is committed, to whoever drives the message.
    fn came(&self, _: Self::Left) -> Came {
        Came::Well
    }

    /// What it is, where more is to be said than that it handles messages in transactions.
    fn described(&self, described: Described) -> Described {
        described
    }
}

/// An error of the database that says nothing of the messages that were on their way.
#[derive(Debug)]
pub struct Nobodys(pub(super) DatabaseFault);

/// How a message came out of a handler that ended well.
#[derive(Debug)]
pub enum Came {
    /// Handled.
    Well,
    /// Not handled: another message with its identity was.
    Duplicate,
    /// Not handled: another message with its identity said something else.
    Conflict {
        /// That one.
        first: Seen,
    },
    /// Handled, and nothing was to be done.
    Ended(Ending),
    /// Given up.
    Fault(Box<Fault>),
}

impl<DB, F, T, E> Shape<DB> for OneByOne<F, T, E>
where
    DB: Database,
    F: AsyncFn(Message, &mut DB::Connection) -> Result<T, E> + Send + Sync + 'static,
    T: 'static,
    E: HandlerError + 'static,
{
    type Error = E;
    type Left = ();

    const TOGETHER: bool = false;

    async fn call(&self, messages: &[Message], conn: &mut DB::Connection, into: &mut Vec<()>) -> Result<(), E> {
        for message in messages {
            (self.handler)(message.clone(), conn).await?;
            into.push(());
        }
        Ok(())
    }
}

impl<DB, F, E> Shape<DB> for AllAtOnce<F, E>
where
    DB: Database,
    F: AsyncFn(&[Message], &mut DB::Connection) -> Result<(), E> + Send + Sync + 'static,
    E: HandlerError + 'static,
{
    type Error = E;
    type Left = ();

    const TOGETHER: bool = true;

    async fn call(&self, messages: &[Message], conn: &mut DB::Connection, into: &mut Vec<()>) -> Result<(), E> {
        (self.handler)(messages, conn).await?;
        into.resize(messages.len(), ());
        Ok(())
    }
}

/// A handler and the messages of one batch.
struct Working<'a, S> {
    shape: &'a S,
    messages: &'a [Message],
}

impl<DB: Database, S: Shape<DB>> Work<DB> for Working<'_, S> {
    type Value = S::Left;
    type Error = S::Error;

    fn together(&self) -> bool {
        S::TOGETHER
    }

    fn ends_nothing(&self) -> bool {
        S::ENDS_NOTHING
    }

    async fn ready(&self, messages: usize) -> Result<(), StoreError> {
        self.shape.ready(messages).await
    }

    fn passes(&self, left: &S::Left) -> bool {
        self.shape.passes(left)
    }

    fn fault(&self, error: &S::Error) -> Option<DatabaseFault> {
        self.shape.fault(error).map(|Nobodys(fault)| fault)
    }

    async fn run(&self, places: &[usize], conn: &mut DB::Connection, into: &mut Vec<S::Left>) -> Result<(), S::Error> {
        let in_a_row = places.windows(2).all(|pair| matches!(pair, [a, b] if a + 1 == *b));
        match (places.first(), in_a_row) {
            (Some(first), true) => {
                let messages = self.messages.get(*first..first + places.len()).unwrap_or_default();
                self.shape.call(messages, conn, into).await
            }
            _ => {
                let messages: Vec<Message> = places.iter().filter_map(|at| self.messages.get(*at).cloned()).collect();
                self.shape.call(&messages, conn, into).await
            }
        }
    }
}

/// What is kept of a message in hand.
struct Kept {
    item: Item,
    /// Why it has no identity, if it has none.
    refused: Option<IdentityError>,
    /// Attempts that the database counted of a message that it has as dead; 0 if none are known.
    dead_after: AtomicU32,
    /// Another process was found to have its partition.
    fenced: AtomicBool,
    /// The message it is in conflict with.
    first: OnceLock<Seen>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("item", &self.item).finish_non_exhaustive()
    }
}

impl Kept {
    fn of<DB: TransactionalDatabase>(core: &Core<DB>, message: &dyn MessageView, held: Pinned) -> Arc<Self> {
        let (item, refused) = match core.prepare_under(message, held) {
            Prepared::Item(item) => (item, None),
            Prepared::Refused(error, item) => (item, Some(error)),
        };
        Arc::new(Self {
            item,
            refused,
            dead_after: AtomicU32::new(0),
            fenced: AtomicBool::new(false),
            first: OnceLock::new(),
        })
    }

    /// The same that a claim would have been answered.
    fn answered(&self, known: &Known) -> Ended {
        match known {
            Known::Dead { attempts } => self.dead_after.store(*attempts, Ordering::Relaxed),
            Known::Conflict { first } => _ = self.first.set(first.clone()),
            _ => {}
        }
        Ended::Answered(known.answer())
    }
}

impl<DB: TransactionalDatabase, S: Shape<DB>> InTransaction<DB, S> {
    async fn handle(&self, handed: Vec<Handed>) -> Vec<Ended> {
        let mut kept = Vec::with_capacity(handed.len());
        let mut items = Vec::with_capacity(handed.len());
        let mut messages = Vec::with_capacity(handed.len());
        for Handed { message, claim, row, own } in handed {
            // The pump gives back what it was given.
            let own = own.and_then(|own| own.downcast::<Kept>().ok());
            let own = own.unwrap_or_else(|| Kept::of(&self.core, &message, Pinned::To(None)));
            if own.refused.is_none() {
                items.push(Item { row, attempt: claim.attempt(), ..own.item.clone() });
                messages.push(message);
            }
            kept.push(own);
        }
        let work = Working { shape: &self.shape, messages: &messages };
        let outcomes = match (items.is_empty(), self.shape.ready(items.len()).await) {
            (true, _) => Vec::new(),
            (false, Err(error)) => items.iter().map(|_| Outcome::Unknown(error.clone())).collect(),
            (false, Ok(())) => {
                let retry = self.retry.get().copied().unwrap_or_else(|| self.core.retry());
                self.core.run(&items, &work, Rules { bury: false, retry }).await
            }
        };
        self.hear_of_fences(&items, &outcomes);
        let mut outcomes = outcomes.into_iter();
        let mut ended = |kept: &Arc<Kept>| match &kept.refused {
            Some(_) => Ended::Answered(Answer::Refused),
            None => outcomes.next().map_or(Ended::NotBegun, |outcome| match outcome {
                // Passed, as the policy for such numbers says; conflicts have one of their own.
                Outcome::Known(Known::TooOld) if self.core.skips_too_old() => Ended::Finished(Ending::Conflict),
                Outcome::Handled(left) => match self.shape.came(left) {
                    Came::Well => Ended::Succeeded(None),
                    Came::Duplicate => kept.answered(&Known::SameId(None)),
                    Came::Conflict { first } => kept.answered(&Known::Conflict { first }),
                    Came::Ended(ending) => Ended::Finished(ending),
                    Came::Fault(fault) => Ended::Failed(fault),
                },
                outcome => ended(kept, outcome),
            }),
        };
        kept.iter().map(&mut ended).collect()
    }

    /// Tells whoever watches of partitions that another process has taken.
    fn hear_of_fences(&self, items: &[Item], outcomes: &[Outcome<S::Left, S::Error>]) {
        let mut last = None;
        for (item, outcome) in items.iter().zip(outcomes) {
            let place = (&*item.origin.topic, item.origin.partition);
            if matches!(outcome, Outcome::Fenced) && last != Some(place) {
                last = Some(place);
                self.records.hear_of_fence(item);
            }
        }
    }
}

/// What became of a message, as the pump hears it.
fn ended<T, E: HandlerError>(kept: &Kept, outcome: Outcome<T, E>) -> Ended {
    match outcome {
        Outcome::Handled(_) => Ended::Succeeded(None),
        Outcome::Known(known) => kept.answered(&known),
        Outcome::Failed(failed) => {
            let mut fault = failed.fault();
            fault.attempt = Some(failed.attempt);
            fault.retry_in = Some(failed.retry_in);
            Ended::Failed(fault)
        }
        Outcome::NotBegun => Ended::NotBegun,
        // Nothing of it was written. The group takes the partition away soon, or has given it anew: until then it waits, and counts once.
        Outcome::Fenced if kept.fenced.swap(true, Ordering::Relaxed) => {
            Ended::Answered(Answer::InFlight { remaining: FENCED })
        }
        Outcome::Fenced => Ended::Fenced(FENCED),
        Outcome::Unknown(error) => Ended::Unknown(Box::new(error)),
    }
}

impl<DB: TransactionalDatabase, S: Shape<DB>> Drive for InTransaction<DB, S> {
    type Records = Remembering<DB>;

    fn records(&self) -> &Remembering<DB> {
        &self.records
    }

    fn needs(&self) -> Needs {
        let (retry, conflicts) = (self.core.retry(), self.core.conflicts());
        // A window passes what is given up, and keeps nothing of it.
        let keeps_dead = self.core.keeps_records();
        Needs { retry, conflicts, settle_first: false, batch: Some(self.core.most()), keeps_dead }
    }

    fn retry(&self, retry: &Retry) {
        let _ = self.retry.set(*retry);
    }

    fn describe(&self) -> String {
        format!("in transactions of up to {} messages, level L2", self.core.most())
    }

    fn described(&self) -> Option<Described> {
        Some(self.shape.described(self.core.described()))
    }

    fn windows(&self) -> Option<Arc<dyn Windows>> {
        self.core.holds_partitions().then(|| self.records.windows())
    }

    async fn run(this: Arc<Self>, messages: Few<Handed>) -> Few<Ended> {
        let messages: Vec<Handed> = messages.into_iter().collect();
        let expected = messages.len();
        let threads = Arc::clone(&this.records.threads);
        match threads.run(move || async move { this.handle(messages).await }).await {
            Ok(ended) => Few::Many(ended),
            // The batch was dropped with its thread, or panicked outside of the handler.
            Err(_) => {
                let lost = || {
                    let text = "the batch was lost: the thread that it ran on is gone, or it panicked";
                    // Nothing of it was committed, and none of it is to blame.
                    let fault = *Fault::new("panic", text);
                    Ended::Failed(Box::new(Fault { class: ErrorClass::Unavailable, ..fault }))
                };
                Few::Many((0..expected).map(|_| lost()).collect())
            }
        }
    }
}

/// What is remembered of messages by the transactions that handle them.
pub struct Remembering<DB: TransactionalDatabase> {
    pub(super) core: Arc<Core<DB>>,
    pub(super) bound: Arc<Bound>,
    pub(super) threads: Arc<Threads>,
}

impl<DB: TransactionalDatabase> Remembering<DB> {
    pub(super) fn new(core: &Arc<Core<DB>>) -> Self {
        Self { core: Arc::clone(core), bound: Arc::default(), threads: Arc::default() }
    }

    /// The windows of its partitions.
    pub(super) fn windows(&self) -> Arc<dyn Windows> {
        let Self { core, bound, threads } = self;
        Arc::new(Partitions { core: Arc::clone(core), bound: Arc::clone(bound), threads: Arc::clone(threads) })
    }

    /// A message was refused since another process has its partition: tells whoever watches.
    pub(super) fn hear_of_fence(&self, item: &Item) {
        // What belongs to an assignment that is over says nothing of the one that stands.
        if let Pinned::To(Some(held)) = &item.held
            && self.bound.is_bound(held)
        {
            self.bound.fenced(&item.origin.topic, item.origin.partition);
        }
    }
}

impl<DB: TransactionalDatabase> fmt::Debug for Remembering<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remembering").finish_non_exhaustive()
    }
}

/// A message in hand, as the pump keeps it.
#[derive(Debug)]
pub struct InHand(Arc<Kept>);

impl<DB: TransactionalDatabase> Records for Remembering<DB> {
    type State = InHand;

    fn look(&self, message: &dyn MessageView, epoch: Epoch) -> (engine::Subject, InHand) {
        (engine::Subject::Own, InHand(Kept::of(&self.core, message, Pinned::To(self.bound.held(epoch)))))
    }

    fn claim(&self, _: &mut dyn Hands<InHand>, tickets: &[Ticket], _: NonZeroU32) -> Call<ClaimReply> {
        // Never asked for: nothing has a claim.
        ClaimReply::granted(tickets)
    }

    fn claimed(&self, _: &mut dyn Hands<InHand>, reply: ClaimReply) -> Result<Vec<(Ticket, Answer)>, StoreError> {
        reply.into_granted()
    }

    fn unclaimed(&self, _: &mut dyn Hands<InHand>, _: &[Ticket]) {}

    fn claim_of(&self, state: &InHand, attempt: u32) -> Claim {
        Claim::bare(state.0.item.key().unwrap_or_else(|| Key::from_bytes([0; 16])), attempt)
    }

    fn own(&self, state: &InHand) -> Option<Own> {
        Some(Arc::clone(&state.0) as Arc<dyn Any + Send + Sync>)
    }

    fn begun(&self, _: &mut InHand) {}

    fn succeeded(&self, _: &mut InHand, _: Option<Bytes>) {}

    fn failed(&self, _: &mut InHand, _: bool) {}

    fn not_begun(&self, _: &mut InHand) {}

    /// What is given up is dead in the database, and its window goes past it.
    fn settle(
        &self,
        hands: &mut dyn Hands<InHand>,
        ends: &[(Ticket, engine::Verdict)],
        _: NonZeroU32,
    ) -> Call<SettleReply> {
        let core = Arc::clone(&self.core);
        let (mut tickets, mut items) = (Vec::with_capacity(ends.len()), Vec::with_capacity(ends.len()));
        for (ticket, _) in ends {
            if let Some(InHand(kept)) = hands.hand(*ticket) {
                tickets.push(*ticket);
                items.push(kept.item.clone());
            }
        }
        let buried = self.threads.run(move || async move { core.bury(&items).await });
        Box::pin(async move {
            let answer = buried.await.unwrap_or_else(|_| Err(gone("give messages up")));
            SettleReply::of(tickets, answer.map(|buried| buried.into_iter().map(outcome).collect()))
        })
    }

    fn settled(&self, _: &mut dyn Hands<InHand>, reply: SettleReply) -> Result<Vec<(Ticket, Settled)>, StoreError> {
        reply.into_answers()
    }

    fn finished(&self, _: Ending, _: u64) {}

    fn put_down(&self, _: InHand) {}

    fn key(&self, state: &InHand) -> Option<Key> {
        state.0.item.key()
    }

    fn attempts(&self, state: &InHand) -> Option<u32> {
        Some(state.0.dead_after.load(Ordering::Relaxed)).filter(|attempts| *attempts > 0)
    }

    fn explain(&self, _: &dyn MessageView, state: &InHand, cause: Cause, last: Option<&Fault>) -> Unfinished {
        let kept = &state.0;
        let at = || At(kept.item.origin.clone());
        match (cause, &kept.refused, kept.first.get()) {
            (Cause::Identity, Some(error), _) => {
                Box::new(HandleError::<String>::Identity { at: at(), error: error.clone() })
            }
            (Cause::Conflict, _, Some(first)) => {
                Box::new(HandleError::<String>::Conflict { at: at(), first: first.clone() })
            }
            _ => given_up(cause, last),
        }
    }

    async fn finish(&self, _: Duration) -> u64 {
        // Nothing is owed: what is remembered was committed with its effects.
        0
    }
}

fn outcome(buried: Buried) -> SettleOutcome {
    match buried {
        Buried::Recorded => SettleOutcome::Settled,
        Buried::Refused => SettleOutcome::Refused,
    }
}

/// Which window each assignment has: one window's word says nothing of what was delivered under another.
#[derive(Default)]
pub(super) struct Bound {
    held: RwLock<HashMap<Epoch, Arc<Held>>>,
    watcher: OnceLock<Fenced>,
}

impl Bound {
    pub(super) fn held(&self, epoch: Epoch) -> Option<Arc<Held>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).get(&epoch).cloned()
    }

    /// Whether an assignment that stands has this very window.
    fn is_bound(&self, held: &Arc<Held>) -> bool {
        let bound = self.held.read().unwrap_or_else(PoisonError::into_inner);
        bound.values().any(|own| Arc::ptr_eq(own, held))
    }

    fn bind(&self, (topic, partition): &Place, epoch: Epoch, now: Option<Arc<Held>>) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, own| &*own.topic != topic || own.partition != *partition);
        if let Some(now) = now {
            held.insert(epoch, now);
        }
    }

    fn fenced(&self, topic: &str, partition: i32) {
        if let Some(watcher) = self.watcher.get() {
            watcher(topic, partition);
        }
    }
}

/// The windows of partitions.
struct Partitions<DB: TransactionalDatabase> {
    core: Arc<Core<DB>>,
    bound: Arc<Bound>,
    threads: Arc<Threads>,
}

fn named(places: &[Place]) -> Vec<(Arc<str>, i32)> {
    places.iter().map(|(topic, partition)| (topic.as_str().into(), *partition)).collect()
}

impl<DB: TransactionalDatabase> Windows for Partitions<DB> {
    fn assigned<'a>(&'a self, places: &'a [Place]) -> Raising<'a> {
        let (core, places) = (Arc::clone(&self.core), named(places));
        let standings = self.threads.run(move || async move { core.assigned(&places).await });
        Box::pin(async move {
            let standings = standings.await.unwrap_or_else(|_| Err(gone("read windows")))?;
            Ok(standings.into_iter().map(|own| Standing { next: own.next, note: own.note }).collect())
        })
    }

    fn begin(&self, place: &Place, epoch: Epoch, at: Option<i64>, note: Note) {
        let (topic, partition) = place;
        if let Some(at) = at {
            self.core.reads_from(topic, *partition, at);
        }
        self.core.noted(topic, *partition, note);
        self.bound.bind(place, epoch, self.core.window(topic, *partition));
    }

    fn over(&self, place: &Place) {
        self.bound.bind(place, Epoch::new(0), None);
        self.core.revoked(&named(std::slice::from_ref(place)));
    }

    fn watch(&self, fenced: Fenced) {
        let _ = self.bound.watcher.set(fenced);
    }
}

pub(super) fn gone(operation: &'static str) -> StoreError {
    StoreError::unavailable("database", operation, "the thread that asked it is gone, or it panicked")
}
