//! Values of a batch, column by column, as statements take them; and records as statements give them.

use bytes::Bytes;
use sqlx::{ColumnIndex, Decode, Row, Type};

use crate::identity::{Fingerprint, Key};
use crate::record::{Fence, Millis, Origin, Owner, Record, State};

/// What a column or a single value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Exactly 16 bytes.
    Digest,
    /// A whole number.
    Int,
    /// Bytes, or null.
    Blob,
}

/// One column of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Column {
    Digests(Vec<[u8; 16]>),
    Ints(Vec<i64>),
    Blobs(Vec<Option<Bytes>>),
}

/// A value that a statement takes once.
#[derive(Clone, Debug)]
pub(crate) enum Scalar {
    Int(i64),
    Blob(Vec<u8>),
}

/// Everything a statement takes: single values first, then the batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    pub(crate) scalars: Vec<Scalar>,
    pub(crate) columns: Vec<Column>,
    /// Rows in each column.
    pub(crate) len: usize,
}

impl Values {
    pub(crate) fn rows(len: usize) -> Self {
        Self { scalars: Vec::new(), columns: Vec::new(), len }
    }

    pub(crate) fn scalar(mut self, value: i64) -> Self {
        self.scalars.push(Scalar::Int(value));
        self
    }

    pub(crate) fn blob(mut self, value: Vec<u8>) -> Self {
        self.scalars.push(Scalar::Blob(value));
        self
    }

    pub(crate) fn digests(mut self, values: impl Iterator<Item = [u8; 16]>) -> Self {
        self.columns.push(Column::Digests(values.collect()));
        self
    }

    pub(crate) fn ints(mut self, values: impl Iterator<Item = i64>) -> Self {
        self.columns.push(Column::Ints(values.collect()));
        self
    }

    pub(crate) fn blobs(mut self, values: impl Iterator<Item = Option<Bytes>>) -> Self {
        self.columns.push(Column::Blobs(values.collect()));
        self
    }

    pub(crate) fn keys(self, keys: &[Key]) -> Self {
        self.digests(keys.iter().map(|key| *key.as_bytes()))
    }
}

/// The store's clock, and the records that stand, in any order.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) now: Millis,
    pub(crate) records: Vec<(Key, Record)>,
}

/// Reads what a dialect's `read` selects: the clock, then a record's columns, null where nothing stands at all. `None` if a
/// record is not of this crate's making. `numbers` gives a row's state and attempts.
pub(crate) fn reading<'r, R: Row>(
    rows: &'r [R],
    numbers: impl Fn(&'r R) -> Result<(i64, i64), sqlx::Error>,
) -> Result<Option<Reading>, sqlx::Error>
where
    usize: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
{
    let Some(first) = rows.first() else { return Err(sqlx::Error::RowNotFound) };
    let mut reading = Reading { now: first.try_get(0)?, records: Vec::with_capacity(rows.len()) };
    if rows.len() == 1 && first.try_get::<Option<&[u8]>, _>(1)?.is_none() {
        return Ok(Some(reading));
    }
    for row in rows {
        let (state, attempts) = numbers(row)?;
        let raw = Raw {
            key: row.try_get(1)?,
            fingerprint: row.try_get(2)?,
            state,
            attempts,
            owner: row.try_get(5)?,
            fence: row.try_get(6)?,
            time: row.try_get(7)?,
            origin: row.try_get(8)?,
            result: row.try_get(9)?,
        };
        let Some(record) = raw.decode() else { return Ok(None) };
        reading.records.push(record);
    }
    Ok(Some(reading))
}

/// A record's columns as a server gives them.
#[derive(Clone, Debug)]
pub(crate) struct Raw<'r> {
    pub(crate) key: &'r [u8],
    pub(crate) fingerprint: &'r [u8],
    pub(crate) state: i64,
    pub(crate) attempts: i64,
    pub(crate) owner: i64,
    pub(crate) fence: i64,
    pub(crate) time: i64,
    pub(crate) origin: &'r [u8],
    pub(crate) result: Option<&'r [u8]>,
}

impl Raw<'_> {
    /// The record; `None` if this crate did not write it.
    pub(crate) fn decode(&self) -> Option<(Key, Record)> {
        let record = Record {
            state: State::from_code(u8::try_from(self.state).ok()?, self.time)?,
            owner: Owner::new(self.owner.cast_unsigned()),
            fence: Fence::new(self.fence.cast_unsigned()),
            attempts: u32::try_from(self.attempts).ok()?,
            fingerprint: Fingerprint::from_slice(self.fingerprint)?,
            origin: Origin::from_bytes(self.origin)?,
            result: self.result.map(Bytes::copy_from_slice),
        };
        Some((Key::from_slice(self.key)?, record))
    }
}

/// An owner as SQL keeps it: the same 64 bits, signed.
pub(crate) const fn owner_bits(owner: Owner) -> i64 {
    owner.get().cast_signed()
}

/// A fence as SQL keeps it.
pub(crate) const fn fence_bits(fence: Fence) -> i64 {
    fence.get().cast_signed()
}
