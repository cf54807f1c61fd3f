//! Taking messages in, in PostgreSQL.

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgArguments, PgConnection};
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

impl Sql for Postgres {
    const STATEMENT: usize = 16 << 20;
    // Neither a message of its protocol nor a row may have a gibibyte.
    const TAKES: usize = 1_000_000_000;

    fn is_own(error: &dyn DatabaseError) -> bool {
        error.code().is_some_and(|code| blame::postgres(&code))
    }

    async fn insert_messages(
        &self,
        conn: &mut PgConnection,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
        longest: usize,
    ) -> Result<u64, Error> {
        let text = format!(
            "INSERT INTO {} (id, lane, log_offset, accepted, stamp, not_before, inbox, part, generation, priority, form, \
             message_key, fingerprint, topic, record_key, headers, payload) \
             SELECT i, l, o, c.now, s, n, {inbox}, p, 1, r, f, k, g, t, y, h, d \
             FROM (SELECT {} AS now) AS c, unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::integer[], \
             $7::smallint[], $8::smallint[], $9::bytea[], $10::bytea[], $11::text[], $12::bytea[], $13::bytea[], $14::bytea[]) \
             AS v (i, l, o, s, n, p, r, f, k, g, t, y, h, d) ON CONFLICT (message_key) DO NOTHING",
            tables.messages,
            self.clock(),
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

    async fn insert_open(
        &self,
        conn: &mut PgConnection,
        tables: &Tables,
        inbox: i32,
        rows: &[&Row<'_>],
    ) -> Result<(), Error> {
        let text = format!(
            "INSERT INTO {} (id, lane, turn, run, inbox, generation, attempts, lot, priority, alone) \
             SELECT i, l, u, 0, {inbox}, 1, 0, o, r, 0 \
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::smallint[], $5::smallint[]) AS v (i, l, u, o, r)",
            tables.open,
        );
        let mut a = PgArguments::default();
        add(&mut a, rows.iter().map(|row| row.id))?;
        add(&mut a, rows.iter().map(|row| row.lane))?;
        add(&mut a, rows.iter().map(|row| row.turn()))?;
        add(&mut a, rows.iter().map(|row| row.lot()))?;
        add(&mut a, rows.iter().map(|row| row.priority))?;
        sqlx::query_with(AssertSqlSafe(text), a).execute(conn).await.map(drop)
    }

    async fn look(&self, conn: &mut PgConnection, tables: &Tables, keys: &[[u8; 16]]) -> Result<Vec<Stands>, Error> {
        let text = format!("SELECT {LOOK} FROM {} WHERE message_key = ANY ($1::bytea[])", tables.messages);
        let mut a = PgArguments::default();
        add(&mut a, keys.iter().map(|key| &key[..]))?;
        let rows = sqlx::query_with(AssertSqlSafe(text), a).fetch_all(conn).await?;
        rows.iter().map(|row| stands!(row)).collect()
    }
}
