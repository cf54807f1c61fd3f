//! Taking messages in, in PostgreSQL.

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgArguments, PgConnection, PgDatabaseError};
use sqlx::{Arguments, AssertSqlSafe, Error, Row as _};

use super::blame;
use super::dialect::{LOOK, Row, Sql, Stands, stands};
use crate::inbox::tables::Tables;
use crate::record::Origin;
use crate::store::postgres::Postgres;
use crate::transaction::Transact;

fn add<'q, T>(arguments: &mut PgArguments, values: impl Iterator<Item = T>) -> Result<(), Error>
where
    Vec<T>: sqlx::Encode<'q, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + 'q,
{
    arguments.add(values.collect::<Vec<T>>()).map_err(Error::Encode)
}

/// Messages and their open rows in one statement. Arrays are unnested side by side in what is selected: as a table they would be stored first.
async fn insert(
    conn: &mut PgConnection,
    tables: &Tables,
    inbox: i32,
    rows: &[&Row<'_>],
    longest: usize,
    unless: &str,
) -> Result<u64, Error> {
    let text = format!(
        "WITH m AS (INSERT INTO {} (id, lane, log_offset, accepted, stamp, not_before, inbox, part, generation, priority, form, \
         message_key, fingerprint, topic, record_key, headers, payload) \
         SELECT unnest($1::bigint[]), unnest($2::bigint[]), unnest($3::bigint[]), {}, unnest($4::bigint[]), unnest($5::bigint[]), {inbox}, \
         unnest($6::integer[]), 1, unnest($7::smallint[]), unnest($8::smallint[]), unnest($9::bytea[]), unnest($10::bytea[]), \
         unnest($11::text[]), unnest($12::bytea[]), unnest($13::bytea[]), unnest($14::bytea[]){unless} \
         RETURNING id, lane, not_before, priority) \
         INSERT INTO {} (id, lane, turn, run, inbox, generation, attempts, lot, priority, alone) \
         SELECT id, lane, coalesce(not_before, priority), 0, {inbox}, 1, 0, CASE WHEN not_before IS NULL THEN 0 ELSE 1 END, priority, 0 FROM m",
        tables.messages,
        Postgres.clock(),
        tables.open,
    );
    let mut inserted = 0;
    let mut rest = rows;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|row| {
            bytes += row.bytes();
            bytes <= longest
        });
        let fits = fits.count().max(1);
        let (rows, later) = rest.split_at(fits);
        rest = later;
        let mut a = PgArguments::default();
        add(&mut a, rows.iter().map(|row| row.id))?;
        add(&mut a, rows.iter().map(|row| row.lane))?;
        add(&mut a, rows.iter().map(|row| row.offset))?;
        add(&mut a, rows.iter().map(|row| row.stamp))?;
        add(&mut a, rows.iter().map(|row| row.not_before))?;
        add(&mut a, rows.iter().map(|row| row.partition))?;
        add(&mut a, rows.iter().map(|row| row.priority))?;
        add(&mut a, rows.iter().map(|row| row.form))?;
        add(&mut a, rows.iter().map(|row| &row.key[..]))?;
        add(&mut a, rows.iter().map(|row| &row.fingerprint[..]))?;
        add(&mut a, rows.iter().map(|row| row.topic))?;
        add(&mut a, rows.iter().map(|row| row.record_key))?;
        add(&mut a, rows.iter().map(|row| row.headers.as_deref()))?;
        add(&mut a, rows.iter().map(|row| row.payload))?;
        let query = sqlx::query_with(AssertSqlSafe(text.clone()), a);
        inserted += query.execute(&mut *conn).await?.rows_affected();
    }
    Ok(inserted)
}

impl Sql for Postgres {
    const STATEMENT: usize = 16 << 20;
    // Neither a message of its protocol nor a row may have a gibibyte.
    const TAKES: usize = 1_000_000_000;

    fn is_own(error: &dyn DatabaseError) -> bool {
        let column = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::column);
        let fills = column.is_some_and(blame::may_be_null);
        error.code().is_some_and(|code| blame::postgres(&code) && (code != "23502" || fills))
    }

    async fn insert(
        &self,
        conn: &mut PgConnection,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
        longest: usize,
    ) -> Result<u64, Error> {
        insert(conn, tables, inbox, rows, longest, " ON CONFLICT (message_key) DO NOTHING").await
    }

    /// What may meet a row that stands is inserted twice, first for show: half as fast.
    async fn insert_new(
        &self,
        conn: &mut PgConnection,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
        longest: usize,
    ) -> Result<bool, Error> {
        match insert(conn, tables, inbox, rows, longest, "").await {
            Ok(inserted) if inserted == rows.len() as u64 => Ok(true),
            // A rule or a trigger of the table's owner kept some away.
            Ok(_) => self.back_to_batch(conn).await.map(|()| false),
            Err(error) if error.as_database_error().is_some_and(DatabaseError::is_unique_violation) => {
                self.back_to_batch(conn).await.map(|()| false)
            }
            Err(error) => Err(error),
        }
    }

    async fn look(&self, conn: &mut PgConnection, tables: &Tables, keys: &[[u8; 16]]) -> Result<Vec<Stands>, Error> {
        let text = format!("SELECT {LOOK} FROM {} WHERE message_key = ANY ($1::bytea[])", tables.messages);
        let mut a = PgArguments::default();
        add(&mut a, keys.iter().map(|key| &key[..]))?;
        let rows = sqlx::query_with(AssertSqlSafe(text), a).fetch_all(conn).await?;
        rows.iter().map(|row| stands!(row)).collect()
    }
}
