//! Statements that all three databases understand, with what they take and give.
//!
//! Numbers are this crate's own and stand in the text; bytes and texts are bound. Nothing here is asked often enough to be kept prepared.

#[cfg(any(feature = "postgres", feature = "mysql"))]
use sqlx::Column as _;
use sqlx::{AssertSqlSafe, Error, Row as _, TypeInfo, ValueRef};

use crate::store::sql::{Conn, Dialect, Fault, Kind};
use crate::transaction::Transact;

/// A value that is bound.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Bytes(Option<Vec<u8>>),
    Text(String),
}

/// Values on their way into a statement. They are bound in the order in which they stand in its text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values(Vec<Value>);

impl Values {
    /// Adds bytes; gives what stands for them in the text.
    pub(crate) fn bytes<D: Dialect>(&mut self, value: Option<&[u8]>) -> String {
        self.0.push(Value::Bytes(value.map(<[u8]>::to_vec)));
        D::placeholder(self.0.len(), Kind::Blob)
    }

    /// Adds a text; gives what stands for it.
    pub(crate) fn text<D: Sql>(&mut self, value: &str) -> String {
        self.0.push(Value::Text(value.to_owned()));
        D::text_at(self.0.len())
    }

    /// Turns a text into a statement.
    pub(crate) fn into(self, text: String) -> Ask {
        Ask { text, values: self.0 }
    }
}

/// A statement.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) text: String,
    pub(crate) values: Vec<Value>,
}

impl From<String> for Ask {
    fn from(text: String) -> Self {
        Self { text, values: Vec::new() }
    }
}

/// What stands in a column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Bytes(Vec<u8>),
    Text(String),
}

/// A row, read from left to right.
#[derive(Clone, Debug)]
pub(crate) struct Row(std::vec::IntoIter<Cell>);

fn odd() -> Fault {
    Fault::Corrupt("a row of the inbox does not hold what this crate writes.".into())
}

impl Row {
    /// The next column: a number.
    pub(crate) fn int(&mut self) -> Result<i64, Fault> {
        self.maybe_int()?.ok_or_else(odd)
    }

    /// The next column: a number that fits.
    pub(crate) fn small<T: TryFrom<i64>>(&mut self) -> Result<T, Fault> {
        T::try_from(self.int()?).map_err(|_| odd())
    }

    /// The next column: a number, or null.
    pub(crate) fn maybe_int(&mut self) -> Result<Option<i64>, Fault> {
        match self.0.next() {
            Some(Cell::Null) => Ok(None),
            Some(Cell::Int(number)) => Ok(Some(number)),
            _ => Err(odd()),
        }
    }

    /// The next column: bytes, or null. A database may not tell them from a text.
    pub(crate) fn maybe_bytes(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        match self.0.next() {
            Some(Cell::Null) => Ok(None),
            Some(Cell::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Cell::Text(text)) => Ok(Some(text.into_bytes())),
            _ => Err(odd()),
        }
    }

    /// The last two columns, whatever stands before them: bytes, or null.
    pub(crate) fn last_two(&mut self) -> Result<[Option<Vec<u8>>; 2], Fault> {
        let skip = self.0.len().checked_sub(2).ok_or_else(odd)?;
        for _ in 0..skip {
            self.0.next();
        }
        Ok([self.maybe_bytes()?, self.maybe_bytes()?])
    }

    /// The next column: bytes.
    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, Fault> {
        self.maybe_bytes()?.ok_or_else(odd)
    }

    /// The next column: a text.
    pub(crate) fn text(&mut self) -> Result<String, Fault> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }
}

/// What each database does in its own way here.
pub(crate) trait Sql: Transact {
    /// Locks what is read until the transaction ends.
    const LOCK: &'static str;
    /// A join that is done from left to right.
    const JOIN: &'static str;

    /// The placeholder of a text.
    fn text_at(number: usize) -> String;

    /// An insert that adds nothing, and counts nothing, where such a row stands.
    fn added(table: &str, columns: &str, tuple: &str) -> String;

    /// Runs a statement that changes something; says how many rows.
    fn alter(&self, conn: &mut Conn<Self>, ask: Ask) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Reads rows.
    fn look(&self, conn: &mut Conn<Self>, ask: Ask) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;
}

/// The two functions that differ by nothing but types; the others as given.
macro_rules! sql {
    ($dialect:ty, $db:ident, $conn:ty, $cell:path, { $($own:tt)* }) => {
        impl Sql for $dialect {
            $($own)*

            async fn alter(&self, conn: &mut $conn, ask: Ask) -> Result<u64, Error> {
                let query = sqlx::query::<sqlx::$db>(AssertSqlSafe(ask.text)).persistent(false);
                let query = ask.values.into_iter().fold(query, |query, value| match value {
                    Value::Bytes(bytes) => query.bind(bytes),
                    Value::Text(text) => query.bind(text),
                });
                Ok(query.execute(conn).await?.rows_affected())
            }

            async fn look(&self, conn: &mut $conn, ask: Ask) -> Result<Vec<Row>, Error> {
                let query = sqlx::query::<sqlx::$db>(AssertSqlSafe(ask.text)).persistent(false);
                let query = ask.values.into_iter().fold(query, |query, value| match value {
                    Value::Bytes(bytes) => query.bind(bytes),
                    Value::Text(text) => query.bind(text),
                });
                let rows = query.fetch_all(conn).await?;
                let row = |row| (0..sqlx::Row::len(row)).map(|at| $cell(row, at)).collect::<Result<Vec<_>, _>>();
                rows.iter().map(|found| Ok(Row(row(found)?.into_iter()))).collect()
            }
        }
    };
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;

    fn cell(row: &sqlx::postgres::PgRow, at: usize) -> Result<Cell, Error> {
        if row.try_get_raw(at)?.is_null() {
            return Ok(Cell::Null);
        }
        Ok(match row.try_column(at)?.type_info().name() {
            "INT2" => Cell::Int(row.try_get::<i16, _>(at)?.into()),
            "INT4" => Cell::Int(row.try_get::<i32, _>(at)?.into()),
            "INT8" => Cell::Int(row.try_get(at)?),
            "BYTEA" => Cell::Bytes(row.try_get(at)?),
            _ => Cell::Text(row.try_get(at)?),
        })
    }

    sql!(crate::store::postgres::Postgres, Postgres, sqlx::PgConnection, cell, {
        const LOCK: &'static str = " FOR UPDATE";
        const JOIN: &'static str = "JOIN";
        fn text_at(number: usize) -> String {
            format!("${number}::text")
        }

        fn added(table: &str, columns: &str, tuple: &str) -> String {
            format!("INSERT INTO {table} ({columns}) VALUES ({tuple}) ON CONFLICT DO NOTHING")
        }
    });
}

#[cfg(feature = "mysql")]
mod mysql {
    use super::*;

    fn cell(row: &sqlx::mysql::MySqlRow, at: usize) -> Result<Cell, Error> {
        if row.try_get_raw(at)?.is_null() {
            return Ok(Cell::Null);
        }
        let name = row.try_column(at)?.type_info().name();
        Ok(match name {
            _ if name.contains("INT") && name.contains("UNSIGNED") => {
                let number: u64 = row.try_get(at)?;
                Cell::Int(i64::try_from(number).unwrap_or(i64::MAX))
            }
            _ if name.contains("INT") => Cell::Int(row.try_get(at)?),
            _ => Cell::Bytes(row.try_get(at)?),
        })
    }

    sql!(crate::store::mysql::Mysql, MySql, sqlx::MySqlConnection, cell, {
        const LOCK: &'static str = " FOR UPDATE";
        const JOIN: &'static str = "STRAIGHT_JOIN";
        fn text_at(_number: usize) -> String {
            "?".into()
        }

        // Every value is bounded, and none is null that must not be: nothing is let through as a warning.
        fn added(table: &str, columns: &str, tuple: &str) -> String {
            format!("INSERT IGNORE INTO {table} ({columns}) VALUES ({tuple})")
        }
    });
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;

    fn cell(row: &sqlx::sqlite::SqliteRow, at: usize) -> Result<Cell, Error> {
        let raw = row.try_get_raw(at)?;
        if raw.is_null() {
            return Ok(Cell::Null);
        }
        Ok(match raw.type_info().name() {
            "INTEGER" | "BOOLEAN" => Cell::Int(row.try_get_unchecked(at)?),
            "TEXT" => Cell::Text(row.try_get_unchecked(at)?),
            _ => Cell::Bytes(row.try_get_unchecked(at)?),
        })
    }

    sql!(crate::store::sqlite::Sqlite, Sqlite, sqlx::SqliteConnection, cell, {
        // Whoever writes has the whole file.
        const LOCK: &'static str = "";
        const JOIN: &'static str = "CROSS JOIN";
        fn text_at(number: usize) -> String {
            format!("?{number}")
        }

        fn added(table: &str, columns: &str, tuple: &str) -> String {
            format!("INSERT INTO {table} ({columns}) VALUES ({tuple}) ON CONFLICT DO NOTHING")
        }
    });
}

/// Numbers with commas between them.
pub(crate) fn listed(numbers: impl IntoIterator<Item = i64>) -> String {
    numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
}
