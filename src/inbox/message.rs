//! A message out of the inbox.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::{ColumnIndex, Decode, Error, Row, Type};

use crate::message::MessageView;

/// Which message of an inbox: a number of this crate's own, ascending along each partition. No two messages of one database's tables share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub i64);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What became of a message's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Form {
    /// They stand as they came.
    #[default]
    Whole,
    /// The payload was left out: it is in its topic, at the message's position, for as long as the topic keeps it.
    LeftOut,
    /// Key, headers and payload were erased by an operator; the identity stays.
    Erased,
    /// An operator put another payload in the place of the original, which stays beside it.
    Edited,
}

impl Form {
    /// As it stands in the table.
    pub(crate) const fn number(self) -> i16 {
        match self {
            Self::Whole => 0,
            Self::LeftOut => 1,
            Self::Erased => 2,
            Self::Edited => 3,
        }
    }

    /// `None` where nothing of ours is.
    pub(crate) const fn of(number: i16) -> Option<Self> {
        match number {
            0 => Some(Self::Whole),
            1 => Some(Self::LeftOut),
            2 => Some(Self::Erased),
            3 => Some(Self::Edited),
            _ => None,
        }
    }
}

/// A message out of the inbox: owned, `Send`, and cheap to clone.
///
/// `Debug` shows where it came from and how long its parts are, never what they say.
#[derive(Clone)]
pub struct Message {
    content: Arc<Content>,
}

/// All of a message, as it is read from the tables.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) id: MessageId,
    pub(crate) generation: u32,
    pub(crate) attempt: u32,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Kafka's, in milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
    /// The database's, in milliseconds since 1970.
    pub(crate) accepted: i64,
    pub(crate) form: Form,
    pub(crate) key: Option<Bytes>,
    pub(crate) payload: Option<Bytes>,
    pub(crate) headers: Headers,
}

/// What [`Content::read`] reads, in its order, of messages that are called `m`.
pub(crate) const COLUMNS: &str = "m.id, m.generation, m.topic, m.part, m.log_offset, m.stamp, m.accepted, m.form, m.record_key, m.payload, m.headers";

impl Content {
    /// Reads [`COLUMNS`], of which the first is this one. Its attempt is still to be said. `before`: the topic of the row before, as a rule the
    /// same.
    pub(crate) fn read<'r, R>(row: &'r R, first: usize, before: &mut Arc<str>) -> Result<Self, Error>
    where
        R: Row,
        usize: ColumnIndex<R>,
        i64: Decode<'r, R::Database> + Type<R::Database>,
        i32: Decode<'r, R::Database> + Type<R::Database>,
        i16: Decode<'r, R::Database> + Type<R::Database>,
        &'r str: Decode<'r, R::Database> + Type<R::Database>,
        Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    {
        let ours = |what: &'static str| Error::Decode(what.into());
        let generation: i32 = row.try_get(first + 1)?;
        let topic: &str = row.try_get(first + 2)?;
        if **before != *topic {
            *before = topic.into();
        }
        let key: Option<Vec<u8>> = row.try_get(first + 8)?;
        let payload: Option<Vec<u8>> = row.try_get(first + 9)?;
        Ok(Self {
            id: MessageId(row.try_get(first)?),
            generation: u32::try_from(generation).map_err(|_| ours("a generation is negative"))?,
            attempt: 0,
            topic: Arc::clone(before),
            partition: row.try_get(first + 3)?,
            offset: row.try_get(first + 4)?,
            timestamp: row.try_get(first + 5)?,
            accepted: row.try_get(first + 6)?,
            form: Form::of(row.try_get(first + 7)?).ok_or_else(|| ours("an unknown form of a message"))?,
            key: key.map(Bytes::from),
            payload: payload.map(Bytes::from),
            headers: Headers::unpack(row.try_get(first + 10)?).ok_or_else(|| ours("headers are not packed"))?,
        })
    }
}

impl Message {
    pub(crate) fn new(content: Content) -> Self {
        Self { content: Arc::new(content) }
    }

    /// Which message of the inbox it is.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.content.id
    }

    /// Which life of the message this is, from 1: one more each time that an operator brought it back.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.content.generation
    }

    /// Which attempt of this generation this is, from 1. Counted in the database before the handler runs.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.content.attempt
    }

    /// The topic it came from.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.content.topic
    }

    /// The partition, counted from 0.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.content.partition
    }

    /// The offset in its partition, counted from 0.
    #[must_use]
    pub fn offset(&self) -> i64 {
        self.content.offset
    }

    /// The record's timestamp in milliseconds since 1970-01-01 UTC, if it has one. Producers choose it: never a clock.
    #[must_use]
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.content.timestamp
    }

    /// When the inbox accepted it, in milliseconds since 1970-01-01 UTC by the database's clock.
    #[must_use]
    pub fn accepted_ms(&self) -> i64 {
        self.content.accepted
    }

    /// What became of its parts.
    #[must_use]
    pub fn form(&self) -> Form {
        self.content.form
    }

    /// The record key; `None` if it is null, which is not the same as empty, or was erased.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.content.key.as_deref()
    }

    /// The payload; `None` if it is null (a tombstone), which is not the same as empty, or is not there: see [`form`](Self::form).
    /// Where an operator edited it, what he put there.
    #[must_use]
    pub fn payload(&self) -> Option<&[u8]> {
        self.content.payload.as_deref()
    }

    /// The value of the last header `name`; `None` if there is none, or if that one is null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.content.headers.last(name)
    }

    /// Every header, in the order of the record. A null value is `None`.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.content.headers.iter()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = &*self.content;
        f.debug_struct("Message")
            .field("id", &content.id.0)
            .field("generation", &content.generation)
            .field("attempt", &content.attempt)
            .field("topic", &content.topic)
            .field("partition", &content.partition)
            .field("offset", &content.offset)
            .field("key_bytes", &content.key.as_ref().map(Bytes::len))
            .field("payload_bytes", &content.payload.as_ref().map(Bytes::len))
            .field("headers", &self.headers().count())
            .finish_non_exhaustive()
    }
}

crate::message::views_itself!(Message);

/// Headers in one buffer, as they stand in the table: for each, the length of its name (4 bytes, big-endian), its name, the length of its
/// value (4 bytes; all ones: null), its value.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Headers(Bytes);

/// The length of a value that is null.
const NULL: u32 = u32::MAX;

impl Headers {
    /// Those of a message; `None` if it has none.
    pub(crate) fn pack(message: &(impl MessageView + ?Sized)) -> Option<Vec<u8>> {
        let mut packed = Vec::new();
        message.for_each_header(&mut |name, value| {
            // Kafka's own lengths are of 32 bits with a sign.
            packed.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
            packed.extend(name.as_bytes());
            packed.extend(value.map_or(NULL, |value| u32::try_from(value.len()).unwrap_or(NULL)).to_be_bytes());
            packed.extend(value.unwrap_or_default());
        });
        (!packed.is_empty()).then_some(packed)
    }

    /// What stands in the table; `None` if it is not what this crate writes.
    pub(crate) fn unpack(packed: Option<Vec<u8>>) -> Option<Self> {
        let packed = packed.unwrap_or_default();
        let mut rest = &packed[..];
        while !rest.is_empty() {
            (_, _, rest) = first(rest)?;
        }
        Some(Self(packed.into()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (name, value, later) = first(rest)?;
            rest = later;
            Some((name, value))
        })
    }

    fn last(&self, name: &str) -> Option<&[u8]> {
        self.iter().filter(|(own, _)| *own == name).last()?.1
    }
}

/// A header's name and value, and what is behind it.
type First<'p> = (&'p str, Option<&'p [u8]>, &'p [u8]);

/// The first header, and what is behind it.
fn first(packed: &[u8]) -> Option<First<'_>> {
    let (length, rest) = packed.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (value, rest) = match u32::from_be_bytes(*length) {
        NULL => (None, rest),
        length => {
            let (value, rest) = rest.split_at_checked(length as usize)?;
            (Some(value), rest)
        }
    };
    Some((std::str::from_utf8(name).ok()?, value, rest))
}

#[cfg(test)]
mod tests {
    use super::Headers;
    use crate::message::Parts;

    #[test]
    fn headers_come_back_as_they_went() {
        let message = Parts::new("t").header("a", "1").null_header("b").header("a", "").header("", "x");
        let headers = Headers::unpack(Headers::pack(&message)).unwrap();
        let found: Vec<_> = headers.iter().collect();
        assert_eq!(found, [("a", Some(&b"1"[..])), ("b", None), ("a", Some(b"")), ("", Some(b"x"))]);
        assert_eq!(headers.last("a"), Some(&b""[..]));
        assert_eq!(headers.last("b"), None);
        assert_eq!(Headers::pack(&Parts::new("t")), None);
        assert_eq!(Headers::unpack(None).unwrap().iter().count(), 0);
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let packed = Headers::pack(&Parts::new("t").header("name", "value")).unwrap();
        for end in 1..packed.len() {
            assert!(Headers::unpack(Some(packed[..end].to_vec())).is_none(), "{end}");
        }
        assert!(Headers::unpack(Some(vec![0, 0, 0, 1, 0xff, 0, 0, 0, 0])).is_none());
    }
}
