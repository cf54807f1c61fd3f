//! The queue in SQLite. One transaction writes at a time: that is lock enough.

use std::sync::Arc;

use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Error, Row as _};

use super::dialect::{OFFERED, Offered, Place, Sql, among, asked, contents, free, hex, tuples};
use crate::inbox::message::{COLUMNS, Content, Form, Headers, MessageId};
use crate::inbox::tables::Tables;
use crate::store::sqlite::Sqlite;

/// So many messages come as one text: each row is handed from thread to thread by itself, and each of its values copied by itself, which takes longer
/// than to write and read them as text.
const TOGETHER: usize = 512;
/// A key, headers or a payload of more bytes do not come with others.
const LONG: usize = 2048;
/// An open row's numbers, and a message's. Its topic is the last, since it may hold anything but the zero that ends it.
const OPEN: &str = "%d,%d,%d,%d,%d,%d,";
const WIDE: &str = "%d,%d,%d,%d,%s,%d,%d,%s,%s,%s,%s";

/// The text of a message that is called `m`, behind the numbers that `format` and `numbers` name.
fn text(format: &str, numbers: &str) -> String {
    let bytes = |column: &str| format!("CASE WHEN length({column}) > {LONG} THEN '' ELSE quote({column}) END");
    format!(
        "printf('{format}{WIDE}', {numbers}m.id, m.generation, m.part, m.log_offset, m.stamp, m.accepted, m.form, {}, {}, {}, m.topic) AS t",
        bytes("m.record_key"),
        bytes("m.payload"),
        bytes("m.headers"),
    )
}

/// The texts of these rows as one.
fn joined(rows: &str) -> String {
    format!("SELECT group_concat(t, char(0)) FROM ({rows})")
}

/// A row was changed by somebody else.
fn unread() -> Error {
    Error::Decode("an open row's message is gone, or holds what this crate does not write".into())
}

/// Bytes as they are quoted: nothing if they are too long, or are none.
fn unquoted(text: &str) -> Option<Option<Vec<u8>>> {
    if text == "NULL" {
        return Some(None);
    }
    let digits = text.strip_prefix("X'")?.strip_suffix('\'')?.as_bytes();
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    };
    let byte = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
    digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>().map(Some)
}

/// A row's numbers before its message, and that, if its bytes came with it: otherwise its id. `before`: the topic of the row before, as a rule the same.
fn read<const N: usize>(text: &str, before: &mut Arc<str>) -> Option<([i64; N], Result<Content, i64>)> {
    let mut parts = text.splitn(N + 11, ',');
    let mut part = || parts.next();
    let number = |part: &str| part.parse::<i64>().ok();
    let mut numbers = [0; N];
    for at in &mut numbers {
        *at = number(part()?)?;
    }
    let id = number(part()?)?;
    let generation = u32::try_from(number(part()?)?).ok()?;
    let partition = i32::try_from(number(part()?)?).ok()?;
    let offset = number(part()?)?;
    let timestamp = match part()? {
        "" => None,
        some => Some(number(some)?),
    };
    let accepted = number(part()?)?;
    let form = i16::try_from(number(part()?)?).ok().and_then(Form::of)?;
    let (key, payload, headers) = (unquoted(part()?), unquoted(part()?), unquoted(part()?));
    let topic = part()?;
    let (Some(key), Some(payload), Some(headers)) = (key, payload, headers) else { return Some((numbers, Err(id))) };
    if **before != *topic {
        *before = topic.into();
    }
    let content = Content {
        id: MessageId(id),
        generation,
        attempt: 0,
        topic: Arc::clone(before),
        partition,
        offset,
        timestamp,
        accepted,
        form,
        key: key.map(Into::into),
        payload: payload.map(Into::into),
        headers: Headers::unpack(headers)?,
    };
    Some((numbers, Ok(content)))
}

/// Reads [`joined`] rows; messages that do not come with the others by themselves.
async fn read_joined<const N: usize>(
    conn: &mut SqliteConnection,
    tables: &Tables,
    rows: String,
    arguments: SqliteArguments,
) -> Result<Vec<([i64; N], Content)>, Error> {
    // What has nothing bound names its rows: no other statement is the same.
    let row = sqlx::query_with(AssertSqlSafe(rows), arguments).persistent(N > 0).fetch_one(&mut *conn).await?;
    let Some(text) = row.try_get_unchecked::<Option<&str>, _>(0)? else { return Ok(Vec::new()) };
    let mut topic = Arc::from("");
    let rows: Option<Vec<_>> = text.split('\0').map(|row| read::<N>(row, &mut topic)).collect();
    let rows = rows.ok_or_else(unread)?;
    let mut apart: Vec<i64> = rows.iter().filter_map(|(_, wide)| wide.as_ref().err().copied()).collect();
    let mut found = Vec::new();
    if !apart.is_empty() {
        apart.sort_unstable();
        let mut text = format!("SELECT {COLUMNS} FROM {} AS m WHERE ", tables.messages);
        among(&mut text, &apart);
        let read: Result<Vec<Content>, Error> = contents!(sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(conn).await?);
        found = read?;
        found.sort_unstable_by_key(|wide| wide.id);
    }
    let mut found = found.into_iter().peekable();
    // In the order of ids, as they were found.
    let mut rows = rows;
    let id = |wide: &Result<Content, i64>| wide.as_ref().map_or_else(|id| *id, |wide| wide.id.0);
    rows.sort_unstable_by_key(|(_, wide)| id(wide));
    let whole = |(numbers, wide): ([i64; N], Result<Content, i64>)| match wide {
        Ok(wide) => Some((numbers, wide)),
        Err(id) => Some((numbers, found.next_if(|wide| wide.id.0 == id)?)),
    };
    rows.into_iter().map(whole).collect::<Option<Vec<_>>>().ok_or_else(unread)
}

impl Sql for Sqlite {
    const CLOCK_MS: &'static str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";
    const LOCK_ROWS: &'static str = "";

    fn skip_locked(&self) -> &'static str {
        ""
    }

    fn quoted_text(text: &str) -> String {
        format!("CAST(x'{}' AS TEXT)", hex(text.as_bytes()))
    }

    fn appended(column: &str, bytes: &[u8]) -> String {
        // What is joined counts as text, whatever its bytes are.
        format!("CAST(coalesce({column}, x'') || {} AS BLOB)", Self::quoted_bytes(bytes))
    }

    fn row_table(names: &[&str], rows: &[Vec<i64>]) -> String {
        let named: Vec<String> =
            names.iter().enumerate().map(|(at, name)| format!("column{} AS {name}", at + 1)).collect();
        format!("(SELECT {} FROM (VALUES {}))", named.join(", "), tuples(rows))
    }

    asked!(SqliteConnection, SqliteRow);

    async fn hold(&self, conn: &mut SqliteConnection, update: String) -> Result<u64, Error> {
        // What is counted as changed after a savepoint is what was changed before it: so the rows are.
        let text = format!("{update} RETURNING 1; SAVEPOINT hapax_handler");
        Ok(sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(conn).await?.len() as u64)
    }

    async fn read_free(
        &self,
        conn: &mut SqliteConnection,
        tables: &Tables,
        inbox: i32,
        behind: Place,
        most: i64,
    ) -> Result<Vec<Offered>, Error> {
        let columns = text(OPEN, &format!("{OFFERED}, "));
        let rows = joined(&free(tables, inbox, &columns, ["?", "?", "?"]));
        let (mut behind, mut offered): (Place, Vec<Offered>) = (behind, Vec::new());
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        loop {
            let limit = (most - offered.len()).min(TOGETHER);
            let mut arguments = SqliteArguments::default();
            let mut add = || {
                arguments.add(behind.turn)?;
                arguments.add(behind.id)?;
                arguments.add(i64::try_from(limit)?)
            };
            add().map_err(Error::Encode)?;
            let mut part: Vec<Offered> = read_joined(conn, tables, rows.clone(), arguments).await?;
            // A message that is gone has no id.
            if part.iter().any(|([_, id, ..], wide)| wide.id.0 != *id) {
                return Err(unread());
            }
            part.sort_unstable_by_key(|([turn, id, ..], _)| (*turn, *id));
            let all = part.len() < limit;
            if let Some(([turn, id, ..], _)) = part.last() {
                behind = Place { turn: *turn, id: *id };
            }
            match offered.is_empty() {
                true => offered = part,
                false => offered.extend(part),
            }
            if all || offered.len() >= most {
                return Ok(offered);
            }
        }
    }

    async fn read_wide(
        &self,
        conn: &mut SqliteConnection,
        tables: &Tables,
        ids: &[i64],
    ) -> Result<Vec<Content>, Error> {
        let mut wide = Vec::with_capacity(ids.len());
        for ids in ids.chunks(TOGETHER) {
            let mut rows = format!("SELECT {} FROM {} AS m WHERE ", text("", ""), tables.messages);
            among(&mut rows, ids);
            let part = read_joined::<0>(conn, tables, joined(&rows), SqliteArguments::default()).await?;
            wide.extend(part.into_iter().map(|([], wide)| wide));
        }
        Ok(wide)
    }
}
