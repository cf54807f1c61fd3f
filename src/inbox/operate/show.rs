//! One message, with all that is known of it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use super::act::{self, Act};
use super::lock::OPEN;
use super::read::{ATTEMPT, Listed, MESSAGE, read_attempt, read_message};
use super::sql::Row;
use crate::inbox::core::Core;
use crate::inbox::message::{Form, Headers, MessageId};
use crate::inbox::queue::list::{self, Ending};
use crate::inbox::rules::{Class, NOBODY};
use crate::record::Millis;
use crate::store::StoreError;
use crate::store::sql::Fault;
use crate::transaction::sealed::Sealed;

const SHOW: &str = "show a message";

/// How an attempt ended. Closed: match on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// Not yet: its run's lease lasts until then, in milliseconds since 1970 by the database's clock.
    Running {
        /// The end of the lease.
        until: Millis,
    },
    /// The handler came through.
    Succeeded {
        /// After its run had been taken over (level L1): the effect may have happened twice.
        late: bool,
    },
    /// It failed, was lost with its process, or was given up by an operator.
    Failed {
        /// What kind of failure.
        class: Class,
        /// What the handler said, cut at 1 KiB; for [`Class::Skipped`] why. Empty after an erasure.
        text: String,
    },
    /// It was taken, and given back before its handler began: no attempt.
    Released,
}

/// One attempt at a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// In which life of the message.
    pub generation: u32,
    /// Which attempt of that generation, from 1.
    pub attempt: u32,
    /// The number of the run; 0 where an operator gave the message up.
    pub run: i64,
    /// The worker; or who gave it up.
    pub owner: String,
    /// When its run began, in milliseconds since 1970 by the database's clock.
    pub began: Millis,
    /// When it ended; `None` while it runs.
    pub ended: Option<Millis>,
    /// How it ended.
    pub end: AttemptEnd,
}

/// A payload that an operator put in the place of the one before.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Edit {
    /// The generation that it was put there for, and those after.
    pub generation: u32,
    /// When, in milliseconds since 1970 by the database's clock.
    pub time: Millis,
    /// Who did it.
    pub who: String,
    /// Why.
    pub why: String,
    /// The payload; `None` after an erasure.
    pub payload: Option<Vec<u8>>,
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edit")
            .field("generation", &self.generation)
            .field("time", &self.time)
            .field("who", &self.who)
            .field("why", &self.why)
            .field("payload_bytes", &self.payload.as_ref().map(Vec::len))
            .finish()
    }
}

/// A message with all that is known of it; made by [`Inbox::show`](crate::Inbox::show). `Debug` shows neither headers nor payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shown {
    /// How it stands; also reached through this type itself.
    pub message: Listed,
    /// Kafka's headers, in their order. A null value is `None`.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// What a handler is given: the payload as it came, or as it was edited last. `None` if it is null or not here: see [`Listed::form`].
    pub payload: Option<Vec<u8>>,
    /// The payload as it came from Kafka.
    pub original: Option<Vec<u8>>,
    /// What operators put in its place, the first one first.
    pub edits: Vec<Edit>,
    /// Every attempt that is still known, the first one first. Kept as long as the message, but for successes of earlier generations, whose runs are forgotten after
    /// the retention of what has succeeded.
    pub history: Vec<Attempt>,
    /// What operators did to it by itself, the latest first; at most 100.
    pub acts: Vec<Act>,
}

impl Shown {
    /// The payload as a text, with what is no text replaced; empty if there is none.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.payload.as_deref().unwrap_or_default())
    }
}

impl Deref for Shown {
    type Target = Listed;

    fn deref(&self) -> &Listed {
        &self.message
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown")
            .field("message", &self.message)
            .field("headers", &self.headers.len())
            .field("payload_bytes", &self.payload.as_ref().map(Vec::len))
            .field("edits", &self.edits)
            .field("history", &self.history)
            .field("acts", &self.acts)
            .finish_non_exhaustive()
    }
}

impl<DB: Sealed> Core<DB> {
    pub(super) async fn show(&self, id: MessageId) -> Result<Option<Shown>, StoreError> {
        let refuse = |fault: Fault| self.refuse(SHOW, &fault);
        let (tables, inbox, number) = (&self.tables, self.number, id.0);
        let text = format!(
            "SELECT {MESSAGE}, {OPEN}, m.headers, m.payload FROM {} m LEFT JOIN {} o ON o.lane = m.lane AND o.id = m.id \
             WHERE m.id = {number} AND m.inbox = {inbox}",
            tables.messages, tables.open,
        );
        let Some(mut row) = self.read(SHOW, text.into()).await?.pop() else { return Ok(None) };
        let (message, run, headers, original) = read_whole(&mut row).map_err(refuse)?;
        let mut found = [(message, run)];
        self.complete(&mut found).await?;
        let [(message, _)] = found;

        let text = format!(
            "SELECT generation, time, who, why, payload FROM {} WHERE id = {number} ORDER BY generation",
            tables.edits
        );
        let edits = self.read(SHOW, text.into()).await?.into_iter().map(read_edit);
        let edits: Vec<Edit> = edits.collect::<Result<_, _>>().map_err(refuse)?;

        let text = format!(
            "SELECT {} FROM {} WHERE id = {number} AND inbox = {inbox} ORDER BY act DESC LIMIT 100",
            act::COLUMNS,
            tables.acts
        );
        let acts = self.read(SHOW, text.into()).await?.into_iter().map(Act::read);
        let acts = acts.collect::<Result<_, _>>().map_err(refuse)?;

        let payload = match (message.form, edits.last()) {
            (Form::Edited, Some(edit)) => edit.payload.clone(),
            _ => original.clone(),
        };
        let history = self.history(number, run).await?;
        Ok(Some(Shown { message, headers, payload, original, edits, history, acts }))
    }

    /// What failed has rows of its own; what succeeded is listed by its run.
    async fn history(&self, id: i64, holder: i64) -> Result<Vec<Attempt>, StoreError> {
        let refuse = |fault: Fault| self.refuse(SHOW, &fault);
        let mut history = Vec::new();
        let text = format!("SELECT {ATTEMPT} FROM {} WHERE id = {id}", self.tables.attempts);
        for row in self.read(SHOW, text.into()).await? {
            let (_, failed) = read_attempt(row).map_err(refuse)?;
            history.push(Attempt {
                generation: failed.generation,
                attempt: failed.attempt,
                run: failed.run,
                owner: failed.owner,
                began: failed.began,
                ended: Some(failed.ended),
                end: AttemptEnd::Failed { class: failed.class, text: failed.text },
            });
        }
        let text = format!(
            "SELECT run, owner, began, lease, ended, taken, done FROM {} WHERE inbox = {} AND low <= {id} AND high >= {id}",
            self.tables.runs, self.number,
        );
        for row in self.read(SHOW, text.into()).await? {
            history.extend(read_run(row, id, holder).map_err(refuse)?);
        }
        history.sort_by_key(|attempt| (attempt.generation, attempt.began, attempt.attempt, attempt.ended));
        Ok(history)
    }
}

type Whole = (Listed, i64, Vec<(String, Option<Vec<u8>>)>, Option<Vec<u8>>);

fn read_whole(row: &mut Row) -> Result<Whole, Fault> {
    let (message, run) = read_message(row)?;
    // What of an open row that is not there was left unread.
    let [headers, original] = row.last_two()?;
    let headers = Headers::unpack(headers)
        .ok_or_else(|| Fault::Corrupt("a message's headers are not what this crate writes.".into()))?;
    let headers = headers.iter().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect();
    Ok((message, run, headers, original))
}

fn read_edit(mut row: Row) -> Result<Edit, Fault> {
    Ok(Edit {
        generation: row.small()?,
        time: row.int()?,
        who: row.text()?,
        why: row.text()?,
        payload: row.maybe_bytes()?,
    })
}

/// What a run says of a message, beside what has a row of its own.
fn read_run(mut row: Row, id: i64, holder: i64) -> Result<Vec<Attempt>, Fault> {
    let odd = || Fault::Corrupt("a run lists its messages in a way that this version does not know.".into());
    let (run, owner, began, lease, ended) = (row.int()?, row.text()?, row.int()?, row.int()?, row.maybe_int()?);
    let taken = list::unpack(&row.bytes()?).ok_or_else(odd)?;
    let done = list::unpack(&row.maybe_bytes()?.unwrap_or_default()).ok_or_else(odd)?;
    let mut attempts = Vec::new();
    let mut add = |generation, attempt, end, ended| {
        attempts.push(Attempt { generation, attempt, run, owner: owner.clone(), began, ended, end });
    };
    for entry in done.iter().filter(|entry| entry.id == id) {
        let end = match Ending::of(entry.value).ok_or_else(odd)? {
            Ending::Succeeded => AttemptEnd::Succeeded { late: false },
            Ending::Late => AttemptEnd::Succeeded { late: true },
            Ending::Released => AttemptEnd::Released,
            Ending::Failed | Ending::Dead => continue,
        };
        add(entry.generation, entry.attempt, end, ended);
    }
    if run == holder && holder != NOBODY {
        for entry in taken.iter().filter(|entry| entry.id == id) {
            add(entry.generation, entry.attempt, AttemptEnd::Running { until: lease }, None);
        }
    }
    Ok(attempts)
}
