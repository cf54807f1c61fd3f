//! What each database does in its own way to take messages in.

use std::future::Future;

use sqlx::Error;
use sqlx::error::DatabaseError;

use crate::inbox::tables::Tables;
use crate::record::Origin;
use crate::store::sql::{Conn, TableName};
use crate::transaction::Transact;

/// Bytes of a row's fixed parts, and of what the client sends with them.
const ROW: usize = 256;

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
        bytes_beside(self.topic, self.headers.as_deref(), self.record_key) + self.payload.map_or(0, <[u8]>::len)
    }

    /// Ready, or waiting for its time.
    pub(crate) fn lot(&self) -> i16 {
        i16::from(self.not_before.is_some())
    }

    pub(crate) fn turn(&self) -> i64 {
        self.not_before.unwrap_or(i64::from(self.priority))
    }
}

/// What a row takes of a statement beside its payload, in bytes.
pub(super) fn bytes_beside(topic: &str, headers: Option<&[u8]>, key: Option<&[u8]>) -> usize {
    ROW + topic.len() + headers.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len)
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
    /// Bytes of the rows of one statement, where the database takes as many.
    const STATEMENT: usize = 4 << 20;
    /// Bytes that it takes at once at most, whatever it is set to.
    const TAKES: usize;
    /// Asks how many it takes as it is set, where that can be set.
    const ASK_ROOM: Option<&'static str> = None;
    /// What to do about a message that is larger.
    const MORE_ROOM: &'static str = "choose `Oversize::LeaveOut`, or send less";

    /// Whether an error is that of a message, and says nothing of others: see [`blame`](super::blame).
    fn is_own(error: &dyn DatabaseError) -> bool;

    /// Where too long a value would be cut without a word: counts the columns of a message that hold any value, all three of them.
    fn roomy(_messages: &TableName) -> Option<String> {
        None
    }

    /// Inserts messages and their open rows, leaves alone those whose key stands, and says how many it inserted. No more than so many bytes in one
    /// statement, but for a single row.
    fn insert(
        &self,
        conn: &mut Conn<Self>,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
        bytes: usize,
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// The same where none of them stands, as a rule, if that is cheaper; `false` where one does, or it is not: nothing was done then. To be called
    /// first in a batch's transaction.
    fn insert_new(
        &self,
        _conn: &mut Conn<Self>,
        _tables: &Tables,
        _inbox: i32,
        _rows: &[&Row<'_>],
        _bytes: usize,
    ) -> impl Future<Output = Result<bool, Error>> + Send {
        async { Ok(false) }
    }

    /// Where [`insert`](Self::insert) passes over what it cannot insert: inserts these, and says what is wrong.
    fn insert_strictly(
        &self,
        _conn: &mut Conn<Self>,
        _tables: &Tables,
        _inbox: i32,
        _rows: &[&Row<'_>],
        _bytes: usize,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }

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

/// Rows of one statement that names each value by a question mark.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(super) const ROWS: usize = 512;

/// So many tuples.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(super) fn tuples(tuple: &str, size: usize) -> String {
    vec![tuple; size].join(",")
}

/// Inserts messages, and says how many: see [`by_question_marks`].
#[cfg(any(feature = "mysql", feature = "sqlite"))]
macro_rules! inserted {
    ($self:ident, $conn:ident, ($tables:ident, $inbox:ident), $rows:ident, $longest:ident, $arguments:ty, ($insert:literal, $unless:literal)) => {{
        // Told once for all rows: each would work it out anew.
        let (clock, now) = $self.accepted(&mut *$conn).await?;
        let tuple = format!("(?,?,?,{clock},?,?,{},?,1,?,?,?,?,?,?,?,?)", $inbox);
        let mut inserted = 0;
        for rows in parts($rows, ROWS, $longest) {
            let text = format!(
                "{} INTO {} (id, lane, log_offset, accepted, stamp, not_before, inbox, part, generation, priority, form, \
                 message_key, fingerprint, topic, record_key, headers, payload) VALUES {}{}",
                $insert,
                $tables.messages,
                tuples(&tuple, rows.len()),
                $unless,
            );
            let mut a = <$arguments>::default();
            let mut add = |row: &Row<'_>| {
                a.add(row.id)?;
                a.add(row.lane)?;
                a.add(row.offset)?;
                if let Some(now) = now {
                    a.add(now)?;
                }
                a.add(row.stamp)?;
                a.add(row.not_before)?;
                a.add(row.partition)?;
                a.add(row.priority)?;
                a.add(row.form)?;
                a.add(&row.key[..])?;
                a.add(&row.fingerprint[..])?;
                a.add(row.topic)?;
                a.add(row.record_key)?;
                a.add(row.headers.as_deref())?;
                a.add(row.payload)
            };
            rows.iter().try_for_each(|row| add(row)).map_err(Error::Encode)?;
            inserted += sqlx::query_with(AssertSqlSafe(text), a).execute(&mut *$conn).await?.rows_affected();
        }
        Ok(inserted)
    }};
}
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(super) use inserted;

/// The statements of [`Sql`], for clients of which each value is named by a question mark. `$insert` begins the insert of messages and `$unless` ends it, so that those
/// whose key stands are left alone; `$open` begins that of their open rows.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
macro_rules! by_question_marks {
    ($conn:ty, $arguments:ty, $insert:literal, $unless:literal, $open:literal) => {
        async fn insert(
            &self,
            conn: &mut $conn,
            tables: &Tables,
            inbox: i32,
            rows: &[&Row<'_>],
            longest: usize,
        ) -> Result<u64, Error> {
            let inserted: Result<u64, Error> =
                async { inserted!(self, conn, (tables, inbox), rows, longest, $arguments, ($insert, $unless)) }.await;
            let inserted = inserted?;
            // Whatever stands under these ids is new.
            let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
            let mut text = format!(
                "{} INTO {} (id, lane, turn, run, inbox, generation, attempts, lot, priority, alone) \
                 SELECT id, lane, COALESCE(not_before, priority), 0, inbox, 1, 0, CASE WHEN not_before IS NULL THEN 0 ELSE 1 END, priority, 0 \
                 FROM {} WHERE ",
                $open, tables.open, tables.messages
            );
            among(&mut text, &ids);
            let opened = sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *conn).await?.rows_affected();
            if opened != inserted {
                // Others stand under these ids, which were drawn twice: they would be handled again.
                return Err(Error::RowNotFound);
            }
            Ok(inserted)
        }

        async fn look(&self, conn: &mut $conn, tables: &Tables, keys: &[[u8; 16]]) -> Result<Vec<Stands>, Error> {
            let mut found = Vec::with_capacity(keys.len());
            for keys in keys.chunks(ROWS) {
                // Sizes are powers of two, so that few statements are kept prepared; nulls meet nothing.
                let size = keys.len().next_power_of_two();
                let marks = tuples("?", size);
                let text = format!("SELECT {LOOK} FROM {} WHERE message_key IN ({marks})", tables.messages);
                let mut a = <$arguments>::default();
                (0..size).try_for_each(|at| a.add(keys.get(at).map(|key| &key[..]))).map_err(Error::Encode)?;
                let rows = sqlx::query_with(AssertSqlSafe(text), a).fetch_all(&mut *conn).await?;
                for row in &rows {
                    let stands: Result<Stands, Error> = stands!(row);
                    found.push(stands?);
                }
            }
            Ok(found)
        }
    };
}
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(super) use by_question_marks;

/// Parts of a batch whose sizes are powers of two, so that few statements are kept prepared, and whose values are not too long.
#[cfg_attr(not(any(feature = "mysql", feature = "sqlite")), allow(dead_code))]
pub(super) fn parts<'r, 'a>(
    rows: &'r [&'r Row<'a>],
    most: usize,
    longest: usize,
) -> impl Iterator<Item = &'r [&'r Row<'a>]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(most).take_while(|row| {
            bytes += row.bytes();
            bytes <= longest
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
            let sizes: Vec<_> = parts(&rows, 512, 4 << 20).map(<[_]>::len).collect();
            assert_eq!(sizes.iter().sum::<usize>(), many);
            assert!(sizes.iter().all(|size| size.is_power_of_two() && *size <= 512));
        }
        let rows: Vec<_> = (0..8).map(|_| row(&large)).collect();
        assert_eq!(parts(&rows.iter().collect::<Vec<_>>(), 512, 4 << 20).count(), 8);
        assert_eq!(parts(&rows.iter().collect::<Vec<_>>(), 512, 13 << 20).count(), 2);
        assert_eq!(parts(&rows.iter().collect::<Vec<_>>(), 512, 0).count(), 8);
    }
}
