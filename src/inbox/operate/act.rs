//! What was done is written down, with who and why.

use super::by::By;
use super::sql::{Row, Sql, Values};
use crate::inbox::core::Core;
use crate::inbox::message::MessageId;
use crate::record::Millis;
use crate::store::sql::Fault;
use crate::store::{StoreError, sql::Dialect};
use crate::transaction::Tx;
use crate::transaction::sealed::Sealed;

/// What an operator did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum What {
    /// Requeued a message.
    Requeue,
    /// Gave a message up.
    Skip,
    /// Put another payload in the place of a message's, and requeued it.
    Edit,
    /// Purged messages by hand.
    Purge,
    /// Paused the handler.
    Pause,
    /// Resumed the handler.
    Resume,
    /// Replayed messages.
    Replay,
    /// Erased messages.
    Erase,
}

impl What {
    const ALL: [Self; 8] =
        [Self::Requeue, Self::Skip, Self::Edit, Self::Purge, Self::Pause, Self::Resume, Self::Replay, Self::Erase];

    /// The number that the table keeps.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::Requeue => 1,
            Self::Skip => 2,
            Self::Edit => 3,
            Self::Purge => 4,
            Self::Pause => 5,
            Self::Resume => 6,
            Self::Replay => 7,
            Self::Erase => 8,
        }
    }

    fn of(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|what| what.code() == code)
    }

    /// The name as docs and logs write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requeue => "requeue",
            Self::Skip => "skip",
            Self::Edit => "edit",
            Self::Purge => "purge",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Replay => "replay",
            Self::Erase => "erase",
        }
    }

    /// What could not be done.
    pub(super) const fn operation(self) -> &'static str {
        match self {
            Self::Requeue => "requeue a message",
            Self::Skip => "skip a message",
            Self::Edit => "edit a message",
            Self::Purge => "purge messages",
            Self::Pause => "pause the handler",
            Self::Resume => "resume the handler",
            Self::Replay => "replay messages",
            Self::Erase => "erase messages",
        }
    }
}

/// One thing that an operator did. Kept for as long as the tables stand.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Act {
    /// Its number: ascending in time.
    pub number: i64,
    /// What was done.
    pub what: What,
    /// To which message, if it was one. It may have been purged since.
    pub message: Option<MessageId>,
    /// When, in milliseconds since 1970 by the database's clock.
    pub time: Millis,
    /// Who did it.
    pub who: String,
    /// Why.
    pub why: String,
    /// What came of it, as words for people: `generation=2`, or how many messages.
    pub detail: String,
}

pub(super) const COLUMNS: &str = "act, what, id, time, who, why, detail";

impl Act {
    pub(super) fn read(mut row: Row) -> Result<Self, Fault> {
        let number = row.int()?;
        let what = What::of(row.small()?)
            .ok_or_else(|| Fault::Corrupt("an act is there that this version of hapax does not know.".into()))?;
        Ok(Self {
            number,
            what,
            message: row.maybe_int()?.map(MessageId),
            time: row.int()?,
            who: row.text()?,
            why: row.text()?,
            detail: row.maybe_bytes()?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default(),
        })
    }

    /// A number that is named in its detail.
    pub(super) fn number_of(&self, name: &str) -> Option<i64> {
        self.word(name)?.parse().ok()
    }

    /// A word that is named in its detail.
    pub(super) fn word(&self, name: &str) -> Option<&str> {
        self.detail.split(' ').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|pair| pair.1)
    }
}

/// An act about to be written.
pub(super) struct New<'a> {
    pub(super) what: What,
    pub(super) id: Option<i64>,
    pub(super) by: &'a By,
    pub(super) handle: &'a [u8; 16],
    pub(super) now: Millis,
    pub(super) detail: &'a str,
}

/// Bits below the milliseconds in an act's number.
const SHIFT: u32 = 20;

/// A random number.
pub(super) fn random() -> Result<u64, Fault> {
    getrandom::u64().map_err(|error| Fault::Unavailable(format!("the system gives no random numbers ({error}).")))
}

impl<DB: Sealed> Core<DB> {
    /// A call's own id in the table.
    pub(super) fn handle_of(&self, by: &By, what: What) -> Result<[u8; 16], StoreError> {
        let two = || Ok([random()?, random()?]);
        two().map(|random| by.handle(random)).map_err(|fault: Fault| fault.error(DB::Dialect::NAME, what.operation()))
    }

    /// What was done before under this id. An error if that was something else.
    pub(super) async fn done_before(
        &self,
        tx: &mut Tx<DB>,
        what: What,
        id: Option<i64>,
        handle: &[u8; 16],
        lock: bool,
    ) -> Result<Option<Act>, Fault> {
        let mut values = Values::default();
        let request = values.bytes::<DB::Dialect>(Some(handle));
        let (acts, inbox) = (&self.tables.acts, self.number);
        let lock = if lock { DB::Dialect::LOCK } else { "" };
        let text = format!("SELECT {COLUMNS} FROM {acts} WHERE inbox = {inbox} AND request = {request}{lock}");
        let Some(row) = self.look(tx, values.into(text)).await?.pop() else { return Ok(None) };
        let act = Act::read(row)?;
        if act.what != what || act.message.map(|id| id.0) != id {
            return Err(Fault::Refused(format!(
                "this request's id was used for something else: {} at {}. Give each thing an id of its own.",
                act.what.name(),
                act.time
            )));
        }
        Ok(Some(act))
    }

    /// Writes an act down; gives its number. Contended if somebody else wrote one under the same id.
    pub(super) async fn write_act(&self, tx: &mut Tx<DB>, new: &New<'_>) -> Result<i64, Fault> {
        let number = (new.now << SHIFT) | (random()? >> (64 - SHIFT)).cast_signed();
        let mut values = Values::default();
        let who = values.text::<DB::Dialect>(new.by.who());
        let why = values.text::<DB::Dialect>(new.by.why());
        let request = values.bytes::<DB::Dialect>(Some(new.handle));
        let detail = values.text::<DB::Dialect>(new.detail);
        let id = new.id.map_or_else(|| "NULL".into(), |id| id.to_string());
        let tuple = format!(
            "{number}, {}, {id}, {}, {}, {who}, {why}, {request}, {detail}",
            new.what.code(),
            new.now,
            self.number
        );
        let columns = "act, what, id, time, inbox, who, why, request, detail";
        let text = DB::Dialect::added(&self.tables.acts, columns, &tuple);
        match self.alter(tx, values.into(text)).await? {
            0 => Err(Fault::Contended("the same was asked twice at once.".into())),
            _ => Ok(number),
        }
    }
}
