//! PostgreSQL: arrays into one statement. Each side in a schema of its own.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Pool, Postgres};

use super::{Base, ORIGIN, Place, Row, variable};
use crate::figures::Failure;
use crate::kinds::unique;

const URL: &str = "HAPAX_TEST_POSTGRES";

fn options() -> Result<PgConnectOptions, Failure> {
    let options: PgConnectOptions = variable(URL).ok_or("no PostgreSQL")?.parse()?;
    Ok(options.disable_statement_logging())
}

impl Base for Postgres {
    const WORD: &'static str = "postgres";
    type Clean = String;

    fn is_there() -> bool {
        variable(URL).is_some()
    }

    async fn make(_: bool) -> Result<(Pool<Self>, String), Failure> {
        let schema = unique();
        let mut admin = options()?.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).execute(&mut admin).await?;
        admin.close().await?;
        let pool = PgPoolOptions::new().max_connections(8);
        let pool = pool.connect_with(options()?.options([("search_path", schema.as_str())])).await?;
        Ok((pool, schema))
    }

    async fn clean(schema: String) -> Result<(), Failure> {
        let mut admin = options()?.connect().await?;
        sqlx::raw_sql("SET client_min_messages = warning").execute(&mut admin).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).execute(&mut admin).await?;
        Ok(admin.close().await?)
    }

    async fn tables(conn: &mut PgConnection) -> Result<(), Failure> {
        let sql = "CREATE TABLE effects (id bigserial PRIMARY KEY, message bytea NOT NULL, amount bigint NOT NULL, note bytea NOT NULL);
                   CREATE TABLE processed (id bytea PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())";
        Ok(sqlx::raw_sql(sql).execute(conn).await.map(drop)?)
    }

    async fn effects(conn: &mut PgConnection, rows: &[Row<'_>]) -> sqlx::Result<()> {
        let ids: Vec<&[u8]> = rows.iter().map(|row| row.id).collect();
        let amounts: Vec<i64> = rows.iter().map(|row| row.amount).collect();
        let notes: Vec<&[u8]> = rows.iter().map(|row| row.note).collect();
        let sql =
            "INSERT INTO effects (message, amount, note) SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[])";
        sqlx::query(sql).bind(ids).bind(amounts).bind(notes).execute(conn).await.map(drop)
    }

    async fn effect(conn: &mut PgConnection, row: Row<'_>) -> sqlx::Result<()> {
        let sql = "INSERT INTO effects (message, amount, note) VALUES ($1, $2, $3)";
        sqlx::query(sql).bind(row.id).bind(row.amount).bind(row.note).execute(conn).await.map(drop)
    }

    async fn process(conn: &mut PgConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Vec<u8>>> {
        let ids: Vec<&[u8]> = rows.iter().map(|row| row.id).collect();
        let sql = "INSERT INTO processed (id) SELECT * FROM unnest($1::bytea[]) ON CONFLICT DO NOTHING RETURNING id";
        sqlx::query_scalar(sql).bind(ids).fetch_all(conn).await
    }

    async fn process_one(conn: &mut PgConnection, row: Row<'_>) -> sqlx::Result<bool> {
        let sql = "INSERT INTO processed (id) VALUES ($1) ON CONFLICT DO NOTHING";
        Ok(sqlx::query(sql).bind(row.id).execute(conn).await?.rows_affected() == 1)
    }

    async fn run(conn: &mut PgConnection, sql: &'static str) -> sqlx::Result<()> {
        sqlx::raw_sql(sql).execute(conn).await.map(drop)
    }

    async fn number(conn: &mut PgConnection, sql: &'static str) -> sqlx::Result<i64> {
        sqlx::query_scalar(sql).fetch_one(conn).await
    }

    async fn logged(place: &Place<Self>) -> Result<i64, Failure> {
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
        Ok(Self::number(&mut *place.pool.acquire().await?, sql).await?)
    }

    async fn kept(place: &Place<Self>) -> Result<i64, Failure> {
        let sql = "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class \
                   WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'";
        Ok(Self::number(&mut *place.pool.acquire().await?, sql).await?)
    }

    async fn remember(conn: &mut PgConnection, part: u8, rows: usize) -> Result<(), Failure> {
        let sql = "INSERT INTO hapax_records (message_key, fingerprint, owner, fence, time, attempts, state, origin) \
                   SELECT set_byte(decode(md5(n::text), 'hex'), 0, $1), decode(md5(n::text), 'hex'), 1, 1, \
                          (extract(epoch FROM now()) * 1000)::bigint, 1, 2, $2 \
                   FROM generate_series(1, $3) AS n ORDER BY 1";
        let query = sqlx::query(sql).bind(i32::from(part)).bind(ORIGIN).bind(i64::try_from(rows)?);
        Ok(query.execute(conn).await.map(drop)?)
    }
}
