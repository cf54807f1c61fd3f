//! Taking messages in, in SQLite.

use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, Error, Row as _};

use super::dialect::{LOOK, Row, Sql, Stands, parts, stands};
use crate::inbox::tables::Tables;
use crate::record::Origin;
use crate::store::sqlite::Sqlite;
use crate::transaction::Transact;

/// Rows of one statement.
const ROWS: usize = 512;

fn tuples(tuple: &str, size: usize) -> String {
    let mut text = String::with_capacity((tuple.len() + 1) * size);
    for number in 0..size {
        if number > 0 {
            text.push(',');
        }
        text.push_str(tuple);
    }
    text
}

impl Sql for Sqlite {
    async fn insert_messages(
        &self,
        conn: &mut SqliteConnection,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
    ) -> Result<u64, Error> {
        let tuple = format!("(?,?,?,{},?,?,{inbox},?,1,?,?,?,?,?,?,?,?)", self.clock());
        let mut inserted = 0;
        for rows in parts(rows, ROWS) {
            let text = format!(
                "INSERT INTO {} (id, lane, log_offset, accepted, stamp, not_before, inbox, part, generation, priority, form, \
                 message_key, fingerprint, topic, record_key, headers, payload) VALUES {} ON CONFLICT (message_key) DO NOTHING",
                tables.messages,
                tuples(&tuple, rows.len()),
            );
            let mut a = SqliteArguments::default();
            let mut add = |row: &Row<'_>| {
                a.add(row.id)?;
                a.add(row.lane)?;
                a.add(row.offset)?;
                a.add(row.stamp)?;
                a.add(row.not_before)?;
                a.add(row.partition)?;
                a.add(row.priority)?;
                a.add(row.form)?;
                a.add(row.key.to_vec())?;
                a.add(row.fingerprint.to_vec())?;
                a.add(row.topic.to_owned())?;
                a.add(row.record_key.map(<[u8]>::to_vec))?;
                a.add(row.headers.clone())?;
                a.add(row.payload.map(<[u8]>::to_vec))
            };
            rows.iter().try_for_each(|row| add(row)).map_err(Error::Encode)?;
            inserted += sqlx::query_with(AssertSqlSafe(text), a).execute(&mut *conn).await?.rows_affected();
        }
        Ok(inserted)
    }

    async fn insert_open(
        &self,
        conn: &mut SqliteConnection,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
    ) -> Result<(), Error> {
        let tuple = format!("(?,?,?,0,{inbox},1,0,?,?,0)");
        for rows in parts(rows, ROWS) {
            let text = format!(
                "INSERT INTO {} (id, lane, turn, run, inbox, generation, attempts, lot, priority, alone) VALUES {}",
                tables.open,
                tuples(&tuple, rows.len()),
            );
            let mut a = SqliteArguments::default();
            let mut add = |row: &Row<'_>| {
                a.add(row.id)?;
                a.add(row.lane)?;
                a.add(row.turn())?;
                a.add(row.lot())?;
                a.add(row.priority)
            };
            rows.iter().try_for_each(|row| add(row)).map_err(Error::Encode)?;
            sqlx::query_with(AssertSqlSafe(text), a).execute(&mut *conn).await?;
        }
        Ok(())
    }

    async fn look(
        &self,
        conn: &mut SqliteConnection,
        tables: &Tables,
        keys: &[[u8; 16]],
    ) -> Result<Vec<Stands>, Error> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(ROWS) {
            // Sizes are powers of two, so that few statements are kept prepared; nulls meet nothing.
            let size = keys.len().next_power_of_two();
            let text = format!("SELECT {LOOK} FROM {} WHERE message_key IN ({})", tables.messages, tuples("?", size));
            let mut a = SqliteArguments::default();
            (0..size).try_for_each(|at| a.add(keys.get(at).map(|key| key.to_vec()))).map_err(Error::Encode)?;
            let rows = sqlx::query_with(AssertSqlSafe(text), a).fetch_all(&mut *conn).await?;
            for row in &rows {
                let stands: Result<Stands, Error> = stands!(row);
                found.push(stands?);
            }
        }
        Ok(found)
    }
}
