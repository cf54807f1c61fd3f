//! Looking without touching: no transaction, no lock, and pages that neither miss nor repeat what stands still.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::ops::{Deref, RangeBounds};
use std::pin::Pin;
use std::str::FromStr;

use sqlx::pool::PoolConnection;

use super::act::{self, Act};
use super::filter::Filter;
use super::lock::{OPEN, read_open};
use super::outcome::Census;
use super::sql::{Ask, Row, Sql, Values, listed};
use crate::identity::Key;
use crate::inbox::Inbox;
use crate::inbox::core::Core;
use crate::inbox::message::{Form, MessageId};
use crate::inbox::rules::{Class, Lot, NOBODY, Standing, State};
use crate::record::Millis;
use crate::store::StoreError;
use crate::store::sql::{Dialect, Fault};
use crate::transaction::TransactionalDatabase;
use crate::transaction::sealed::Sealed;

const LIST: &str = "list messages";
const ACTS: &str = "list what was done";
const COUNT: &str = "count messages";
/// Messages of a page, unless told otherwise.
const LIMIT: usize = 100;
/// Messages of the largest page.
const MOST: usize = 10_000;
/// Messages that one statement looks through where succeeded ones are listed.
const SPAN: i64 = 20_000;
/// From here on a turn is no time: the message waits for an earlier one of its lane.
const BEHIND: i64 = 1 << 62;

/// A connection that is closed when its future is dropped in the middle of a statement.
struct Borrowed<DB: Sealed>(Option<PoolConnection<DB>>);

impl<DB: Sealed> Drop for Borrowed<DB> {
    fn drop(&mut self) {
        if let Some(conn) = &mut self.0
            && !DB::Dialect::SURVIVES_CANCEL
        {
            conn.close_on_drop();
        }
    }
}

impl<DB: Sealed> Core<DB> {
    /// Reads outside of any transaction.
    pub(in crate::inbox) async fn read(&self, operation: &'static str, ask: Ask) -> Result<Vec<Row>, StoreError> {
        let mut asking = self.base.asking(operation);
        loop {
            match self.read_once(ask.clone()).await {
                Ok(rows) => return Ok(rows),
                Err(fault) => asking.wait(fault).await?,
            }
        }
    }

    async fn read_once(&self, ask: Ask) -> Result<Vec<Row>, Fault> {
        let fault = |error: sqlx::Error| Self::fault(&error);
        let mut link = Borrowed::<DB>(Some(self.pool.acquire().await.map_err(fault)?));
        let Some(conn) = &mut link.0 else { return Err(fault(sqlx::Error::WorkerCrashed)) };
        let rows = DB::DIALECT.look(conn, ask).await.map_err(fault);
        if rows.as_ref().err().is_none_or(Fault::spares_connection) {
            drop(link.0.take());
        }
        rows
    }

    /// An error of what was read.
    pub(in crate::inbox) fn refuse(&self, operation: &'static str, fault: &Fault) -> StoreError {
        fault.error(DB::Dialect::NAME, operation)
    }
}

/// States that are asked for: one, or several.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct States(u8);

const fn bit(state: State) -> u8 {
    match state {
        State::Received => 1,
        State::Processing => 2,
        State::Failed => 4,
        State::Succeeded => 8,
        State::Dead => 16,
    }
}

impl States {
    /// Whether a state is among them.
    #[must_use]
    pub const fn has(self, state: State) -> bool {
        self.0 & bit(state) != 0
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(State::ALL.into_iter().filter(|state| self.has(*state))).finish()
    }
}

impl From<State> for States {
    fn from(state: State) -> Self {
        Self(bit(state))
    }
}

impl<const N: usize> From<[State; N]> for States {
    fn from(states: [State; N]) -> Self {
        states.into_iter().collect()
    }
}

impl FromIterator<State> for States {
    fn from_iter<I: IntoIterator<Item = State>>(states: I) -> Self {
        Self(states.into_iter().fold(0, |all, state| all | bit(state)))
    }
}

/// Where a page ends. Shown and parsed as a number, to be handed on by a user interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor(i64);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cursor {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    items: Vec<T>,
    next: Option<Cursor>,
}

impl<T> Page<T> {
    /// Where the next page begins; `None` if this one was the last.
    #[must_use]
    pub const fn next(&self) -> Option<Cursor> {
        self.next
    }

    /// What is on it.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.items
    }
}

impl<T> Deref for Page<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> IntoIterator for Page<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Page<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

/// Who is processing a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The number of the run.
    pub run: i64,
    /// The worker.
    pub owner: String,
    /// The end of its lease, in milliseconds since 1970 by the database's clock. A run that is over without having ended is taken back by any
    /// worker, soon after this.
    pub until: Millis,
}

/// An attempt that failed, was lost, or that an operator put an end to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedAttempt {
    /// In which life of the message.
    pub generation: u32,
    /// Which attempt of that generation.
    pub attempt: u32,
    /// When it began, in milliseconds since 1970 by the database's clock.
    pub began: Millis,
    /// When it ended.
    pub ended: Millis,
    /// What kind of failure it was.
    pub class: Class,
    /// What the handler said, cut at 1 KiB; empty after an erasure.
    pub text: String,
    /// The worker; for [`Class::Skipped`] who skipped it.
    pub owner: String,
    /// The number of the run; 0 for [`Class::Skipped`].
    pub run: i64,
}

pub(super) const ATTEMPT: &str = "id, generation, attempt, began, ended, class, text, owner, run";

/// Reads the columns of [`ATTEMPT`].
pub(super) fn read_attempt(mut row: Row) -> Result<(i64, FailedAttempt), Fault> {
    let id = row.int()?;
    let (generation, attempt, began, ended) = (row.small()?, row.small()?, row.int()?, row.int()?);
    let class = Class::from_code(row.small()?)
        .ok_or_else(|| Fault::Corrupt("an attempt is there that ended in no known way.".into()))?;
    let (text, owner, run) = (row.text()?, row.text()?, row.int()?);
    Ok((id, FailedAttempt { generation, attempt, began, ended, class, text, owner, run }))
}

/// A message as it stands, without its headers and payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// Which message.
    pub id: MessageId,
    /// What it is in.
    pub state: State,
    /// Which life of the message this is, from 1.
    pub generation: u32,
    /// Attempts begun in this generation; 0 once it has succeeded.
    pub attempts: u32,
    /// Where it came from.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Kafka's time, in milliseconds since 1970, if it has one.
    pub timestamp_ms: Option<i64>,
    /// When it was accepted, in milliseconds since 1970 by the database's clock.
    pub accepted_ms: Millis,
    /// Kafka's key; `None` if it is null, or was erased.
    pub key: Option<Vec<u8>>,
    /// Bytes of the payload as it came; `None` if it is null, or not here: see [`form`](Self::form).
    pub payload_bytes: Option<u64>,
    /// What became of its parts.
    pub form: Form,
    /// The smaller, the earlier.
    pub priority: i16,
    /// Received or failed: not before this, in milliseconds since 1970. `None` if it may be taken as soon as it is its turn.
    pub due: Option<Millis>,
    /// Dead: since when.
    pub died: Option<Millis>,
    /// Processing: who does.
    pub holder: Option<Holder>,
    /// The last attempt that failed, of whichever generation.
    pub last_failure: Option<FailedAttempt>,
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed")
            .field("id", &self.id.0)
            .field("state", &self.state)
            .field("generation", &self.generation)
            .field("attempts", &self.attempts)
            .field("from", &format_args!("{}[{}]@{}", self.topic, self.partition, self.offset))
            .field("key_bytes", &self.key.as_ref().map(Vec::len))
            .field("payload_bytes", &self.payload_bytes)
            .field("class", &self.last_failure.as_ref().map(|failure| failure.class))
            .finish_non_exhaustive()
    }
}

/// What is read of a message; then [`OPEN`], whose columns are null where there is no such row.
pub(super) const MESSAGE: &str = "m.id, m.generation, m.topic, m.part, m.log_offset, m.stamp, m.accepted, m.record_key, \
                                  length(m.payload), m.form, m.priority, o.id";

/// Reads [`MESSAGE`] and [`OPEN`]; what is left is the run that holds it.
pub(super) fn read_message(row: &mut Row) -> Result<(Listed, i64), Fault> {
    let id = MessageId(row.int()?);
    let generation = row.small()?;
    let mut listed = Listed {
        id,
        state: State::Succeeded,
        generation,
        attempts: 0,
        topic: row.text()?,
        partition: row.small()?,
        offset: row.int()?,
        timestamp_ms: row.maybe_int()?,
        accepted_ms: row.int()?,
        key: row.maybe_bytes()?,
        payload_bytes: row.maybe_int()?.and_then(|bytes| u64::try_from(bytes).ok()),
        form: Form::of(row.small()?)
            .ok_or_else(|| Fault::Corrupt("a message is there in a form that this version does not know.".into()))?,
        priority: row.small()?,
        due: None,
        died: None,
        holder: None,
        last_failure: None,
    };
    if row.maybe_int()?.is_none() {
        return Ok((listed, NOBODY));
    }
    let open = read_open(row)?;
    listed.state = Standing { generation, open: Some(open) }.state();
    listed.attempts = open.attempts;
    match open.lot {
        Lot::Waiting if open.rank < BEHIND => listed.due = Some(open.rank),
        Lot::Dead => listed.died = Some(open.rank),
        _ => {}
    }
    Ok((listed, open.run))
}

/// A list of messages; made by [`Inbox::list`]. Await it.
#[derive(Debug)]
#[must_use = "nothing is listed before it is awaited"]
pub struct List<'a, DB: TransactionalDatabase> {
    inbox: &'a Inbox<DB>,
    states: States,
    filter: Filter,
    limit: usize,
    after: i64,
}

impl<'a, DB: TransactionalDatabase> List<'a, DB> {
    pub(super) fn new(inbox: &'a Inbox<DB>, states: States) -> Self {
        Self { inbox, states, filter: Filter::default(), limit: LIMIT, after: 0 }
    }

    /// Only messages of this topic.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.filter.topic = Some(topic.into());
        self
    }

    /// Only messages of this partition, at these offsets.
    pub fn offsets(mut self, partition: i32, offsets: impl RangeBounds<i64>) -> Self {
        self.filter.set_offsets(partition, offsets);
        self
    }

    /// Only messages with this key, as it came from Kafka.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.filter.set_keys([key.into()]);
        self
    }

    /// Only messages whose last failed attempt, of whichever generation, ended like this.
    pub fn class(mut self, class: Class) -> Self {
        self.filter.class = Some(class);
        self
    }

    /// Only messages accepted at these times, in milliseconds since 1970 by the database's clock.
    pub fn accepted(mut self, times: impl RangeBounds<Millis>) -> Self {
        self.filter.set_accepted(times);
        self
    }

    /// Only the message with this identity: see [`Inbox::key_of`].
    pub fn identity(mut self, key: Key) -> Self {
        self.filter.identity = Some(*key.as_bytes());
        self
    }

    /// Sets how many messages a page has at most. Default: 100; at most 10,000. 0 counts as 1.
    pub fn limit(mut self, most: usize) -> Self {
        self.limit = most.clamp(1, MOST);
        self
    }

    /// Goes on behind a page: [`Page::next`].
    pub fn after(mut self, cursor: impl Into<Option<Cursor>>) -> Self {
        self.after = cursor.into().map_or(0, |cursor| cursor.0);
        self
    }

    async fn page(self) -> Result<Page<Listed>, StoreError> {
        let core = &self.inbox.core;
        let mut found = match self.states.has(State::Succeeded) {
            true => self.by_message().await?,
            false => self.by_open(self.limit).await?,
        };
        let next = (found.len() >= self.limit).then(|| found.last().map(|(message, _)| Cursor(message.id.0))).flatten();
        core.complete(&mut found).await?;
        Ok(Page { items: found.into_iter().map(|(message, _)| message).collect(), next })
    }

    /// What must hold of an open row `o`.
    fn open_states(&self) -> String {
        let states = State::ALL.into_iter().filter(|state| self.states.has(*state));
        let conditions: Vec<&str> = states
            .filter_map(|state| match state {
                State::Received => Some("(o.lot IN (0, 1) AND o.run = 0 AND o.attempts = 0)"),
                State::Processing => Some("(o.lot IN (0, 1) AND o.run <> 0)"),
                State::Failed => Some("(o.lot IN (0, 1) AND o.run = 0 AND o.attempts > 0)"),
                State::Dead => Some("o.lot = 2"),
                State::Succeeded => None,
            })
            .collect();
        if conditions.is_empty() { "1 = 0".into() } else { conditions.join(" OR ") }
    }

    /// From the open rows: as many as the backlog.
    async fn by_open(&self, limit: usize) -> Result<Vec<(Listed, i64)>, StoreError> {
        let core = &self.inbox.core;
        let tables = &core.tables;
        let mut values = Values::default();
        let conditions = self.filter.conditions::<DB::Dialect>(&mut values, &tables.attempts);
        let text = format!(
            "SELECT {MESSAGE}, {OPEN} FROM {} o JOIN {} m ON m.id = o.id \
             WHERE o.inbox = {} AND ({}) AND o.id > {}{conditions} ORDER BY o.id LIMIT {limit}",
            tables.open,
            tables.messages,
            core.number,
            self.open_states(),
            self.after,
        );
        core.listed(LIST, values.into(text)).await
    }

    /// From the messages, in spans, since what has succeeded has no row but that.
    async fn by_message(&self) -> Result<Vec<(Listed, i64)>, StoreError> {
        let core = &self.inbox.core;
        let tables = &core.tables;
        let ids = core.ids();
        let mut from = self.after.max(ids.start);
        let mut found = Vec::new();
        loop {
            // An identity is looked up.
            let edge = match self.filter.identity {
                Some(_) => None,
                None => core.edge(LIST, from, SPAN).await?,
            };
            let mut values = Values::default();
            let conditions = self.filter.conditions::<DB::Dialect>(&mut values, &tables.attempts);
            let text = format!(
                "SELECT {MESSAGE}, {OPEN} FROM {} m LEFT JOIN {} o ON o.lane = m.lane AND o.id = m.id \
                 WHERE m.id > {from} AND m.id <= {} AND m.inbox = {} AND (o.id IS NULL OR {}){conditions} \
                 ORDER BY m.id LIMIT {}",
                tables.messages,
                tables.open,
                edge.unwrap_or(ids.end),
                core.number,
                self.open_states(),
                self.limit - found.len(),
            );
            found.extend(core.listed(LIST, values.into(text)).await?);
            match edge {
                Some(edge) if found.len() < self.limit => from = edge,
                _ => return Ok(found),
            }
        }
    }
}

impl<'a, DB: TransactionalDatabase> IntoFuture for List<'a, DB> {
    type Output = Result<Page<Listed>, StoreError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.page())
    }
}

impl<DB: Sealed> Core<DB> {
    /// Messages, each with the run that holds it.
    pub(super) async fn listed(&self, operation: &'static str, ask: Ask) -> Result<Vec<(Listed, i64)>, StoreError> {
        let rows = self.read(operation, ask).await?;
        let rows = rows.into_iter().map(|mut row| read_message(&mut row));
        rows.collect::<Result<_, _>>().map_err(|fault| self.refuse(operation, &fault))
    }

    /// Adds who holds messages, and what failed last.
    pub(super) async fn complete(&self, found: &mut [(Listed, i64)]) -> Result<(), StoreError> {
        let refuse = |fault: Fault| self.refuse(LIST, &fault);
        let mut runs: Vec<i64> = found.iter().map(|(_, run)| *run).filter(|run| *run != NOBODY).collect();
        runs.sort_unstable();
        runs.dedup();
        for some in runs.chunks(500) {
            let some = listed(some.iter().copied());
            let text = format!(
                "SELECT run, owner, lease FROM {} WHERE inbox = {} AND run IN ({some})",
                self.tables.runs, self.number
            );
            for mut row in self.read(LIST, text.into()).await? {
                let mut holder = || Ok(Holder { run: row.int()?, owner: row.text()?, until: row.int()? });
                let holder = holder().map_err(refuse)?;
                for (message, _) in found.iter_mut().filter(|(_, run)| *run == holder.run) {
                    message.holder = Some(holder.clone());
                }
            }
        }
        let ids: Vec<i64> = found.iter().map(|(message, _)| message.id.0).collect();
        for some in ids.chunks(500) {
            let some = listed(some.iter().copied());
            let text = format!(
                "SELECT {ATTEMPT} FROM {} WHERE id IN ({some}) ORDER BY id, generation, attempt",
                self.tables.attempts
            );
            for row in self.read(LIST, text.into()).await? {
                let (id, failure) = read_attempt(row).map_err(refuse)?;
                // Pages ascend by id; the last one stays.
                if let Ok(at) = found.binary_search_by_key(&id, |(message, _)| message.id.0)
                    && let Some((message, _)) = found.get_mut(at)
                {
                    message.last_failure = Some(failure);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn census(&self) -> Result<Census, StoreError> {
        let ids = self.ids();
        let (open, messages, inbox) = (&self.tables.open, &self.tables.messages, self.number);
        let count = |condition: &str| format!("COUNT(CASE WHEN {condition} THEN 1 END)");
        // One statement: one moment.
        let text = format!(
            "SELECT (SELECT COUNT(*) FROM {messages} WHERE id >= {} AND id < {}), COUNT(*), {}, {}, {} FROM {open} WHERE inbox = {inbox}",
            ids.start,
            ids.end,
            count("lot = 2"),
            count("lot <> 2 AND run <> 0"),
            count("lot <> 2 AND run = 0 AND attempts > 0"),
        );
        let mut census = Census::default();
        for mut row in self.read(COUNT, text.into()).await? {
            let mut number = || row.int().map(i64::cast_unsigned).map_err(|fault| self.refuse(COUNT, &fault));
            let (all, open) = (number()?, number()?);
            (census.dead, census.processing, census.failed) = (number()?, number()?, number()?);
            census.succeeded = all.saturating_sub(open);
            census.received = open.saturating_sub(census.dead + census.processing + census.failed);
        }
        Ok(census)
    }
}

/// What operators did, the latest first; made by [`Inbox::acts`]. Await it.
#[derive(Debug)]
#[must_use = "nothing is listed before it is awaited"]
pub struct Acts<'a, DB: TransactionalDatabase> {
    inbox: &'a Inbox<DB>,
    message: Option<i64>,
    limit: usize,
    after: i64,
}

impl<'a, DB: TransactionalDatabase> Acts<'a, DB> {
    pub(super) fn new(inbox: &'a Inbox<DB>) -> Self {
        Self { inbox, message: None, limit: LIMIT, after: i64::MAX }
    }

    /// Only what was done to this message by itself, not to a range that it was in.
    pub fn of(mut self, message: MessageId) -> Self {
        self.message = Some(message.0);
        self
    }

    /// Sets how many a page has at most. Default: 100; at most 10,000. 0 counts as 1.
    pub fn limit(mut self, most: usize) -> Self {
        self.limit = most.clamp(1, MOST);
        self
    }

    /// Goes on behind a page: [`Page::next`].
    pub fn after(mut self, cursor: impl Into<Option<Cursor>>) -> Self {
        self.after = cursor.into().map_or(i64::MAX, |cursor| cursor.0);
        self
    }

    async fn page(self) -> Result<Page<Act>, StoreError> {
        let core = &self.inbox.core;
        let of = self.message.map(|id| format!(" AND id = {id}")).unwrap_or_default();
        let text = format!(
            "SELECT {} FROM {} WHERE inbox = {} AND act < {}{of} ORDER BY act DESC LIMIT {}",
            act::COLUMNS,
            core.tables.acts,
            core.number,
            self.after,
            self.limit,
        );
        let rows = core.read(ACTS, text.into()).await?;
        let items: Vec<Act> =
            rows.into_iter().map(Act::read).collect::<Result<_, _>>().map_err(|fault| core.refuse(ACTS, &fault))?;
        let next = (items.len() >= self.limit).then(|| items.last().map(|act| Cursor(act.number))).flatten();
        Ok(Page { items, next })
    }
}

impl<'a, DB: TransactionalDatabase> IntoFuture for Acts<'a, DB> {
    type Output = Result<Page<Act>, StoreError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.page())
    }
}
