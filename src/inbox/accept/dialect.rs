//! What each database does in its own way to take messages in.

use std::future::Future;

use sqlx::Error;

use crate::inbox::tables::Tables;
use crate::record::Origin;
use crate::store::sql::Conn;
use crate::transaction::Transact;

/// Longest statement, in bytes of its values: below what servers take at once by default.
pub(crate) const BYTES: usize = 4 << 20;

/// A message to insert.
#[derive(Clone, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) id: i64,
    pub(crate) lane: i64,
    pub(crate) offset: i64,
    pub(crate) stamp: Option<i64>,
    pub(crate) not_before: Option<i64>,
    pub(crate) partition: i32,
    pub(crate) priority: i16,
    pub(crate) form: i16,
    pub(crate) key: [u8; 16],
    pub(crate) fingerprint: [u8; 16],
    pub(crate) topic: &'a str,
    pub(crate) record_key: Option<&'a [u8]>,
    pub(crate) headers: Option<Vec<u8>>,
    pub(crate) payload: Option<&'a [u8]>,
}

impl Row<'_> {
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.headers.as_ref().map_or(0, Vec::len);
        256 + headers + self.record_key.map_or(0, <[u8]>::len) + self.payload.map_or(0, <[u8]>::len)
    }

    /// Ready, or waiting for its time.
    pub(crate) fn lot(&self) -> i16 {
        i16::from(self.not_before.is_some())
    }

    pub(crate) fn turn(&self) -> i64 {
        self.not_before.unwrap_or(i64::from(self.priority))
    }
}

/// A message that stands.
#[derive(Clone, Debug)]
pub(crate) struct Stands {
    pub(crate) id: i64,
    pub(crate) key: [u8; 16],
    pub(crate) fingerprint: [u8; 16],
    pub(crate) origin: Origin,
    pub(crate) accepted: i64,
}

/// Inside a transaction. Rows come in ascending order of their ids, no key twice among them.
pub(crate) trait Sql: Transact {
    /// Inserts messages, leaves alone those whose key stands, and says how many it inserted.
    fn insert_messages(
        &self,
        conn: &mut Conn<Self>,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Inserts the open rows of messages that are new.
    fn insert_open(
        &self,
        conn: &mut Conn<Self>,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads whose these keys are.
    fn look(
        &self,
        conn: &mut Conn<Self>,
        tables: &Tables,
        keys: &[[u8; 16]],
    ) -> impl Future<Output = Result<Vec<Stands>, Error>> + Send;
}

/// What `look` reads, for [`stands`].
pub(super) const LOOK: &str = "id, message_key, fingerprint, topic, part, log_offset, accepted";

/// Reads a row of [`LOOK`].
macro_rules! stands {
    ($row:expr) => {{
        let row = $row;
        let sixteen = |at: usize| -> Result<[u8; 16], sqlx::Error> {
            let bytes: &[u8] = row.try_get(at)?;
            bytes.try_into().map_err(|_| sqlx::Error::Decode("a digest has 16 bytes".into()))
        };
        let topic: &str = row.try_get(3)?;
        Ok(Stands {
            id: row.try_get(0)?,
            key: sixteen(1)?,
            fingerprint: sixteen(2)?,
            origin: Origin { topic: topic.into(), partition: row.try_get(4)?, offset: row.try_get(5)? },
            accepted: row.try_get(6)?,
        })
    }};
}
pub(super) use stands;

/// Parts of a batch whose sizes are powers of two, so that few statements are kept prepared, and whose values are not too long.
#[cfg_attr(not(any(feature = "mysql", feature = "sqlite")), allow(dead_code))]
pub(super) fn parts<'r, 'a>(rows: &'r [&'r Row<'a>], most: usize) -> impl Iterator<Item = &'r [&'r Row<'a>]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(most).take_while(|row| {
            bytes += row.bytes();
            bytes <= BYTES
        });
        let fits = fits.count().max(1);
        let take = if fits.is_power_of_two() { fits } else { fits.next_power_of_two() / 2 };
        let (part, later) = rest.split_at_checked(take)?;
        rest = later;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::{Row, parts};

    fn row(payload: &[u8]) -> Row<'_> {
        Row {
            id: 0,
            lane: 0,
            offset: 0,
            stamp: None,
            not_before: None,
            partition: 0,
            priority: 0,
            form: 0,
            key: [0; 16],
            fingerprint: [0; 16],
            topic: "t",
            record_key: None,
            headers: None,
            payload: Some(payload),
        }
    }

    #[test]
    fn parts_are_powers_of_two_and_not_too_long() {
        let (small, large) = (vec![0; 10], vec![0; 3 << 20]);
        for many in 0..1300 {
            let rows: Vec<_> = (0..many).map(|at| row(if at % 300 == 299 { &large } else { &small })).collect();
            let rows: Vec<_> = rows.iter().collect();
            let sizes: Vec<_> = parts(&rows, 512).map(<[_]>::len).collect();
            assert_eq!(sizes.iter().sum::<usize>(), many);
            assert!(sizes.iter().all(|size| size.is_power_of_two() && *size <= 512));
        }
        let rows: Vec<_> = (0..8).map(|_| row(&large)).collect();
        assert_eq!(parts(&rows.iter().collect::<Vec<_>>(), 512).count(), 8);
    }
}
