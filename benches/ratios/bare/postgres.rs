//! PostgreSQL: arrays into one statement.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use super::Bare;
use crate::data::Row;
use crate::figures::Failure;

pub struct Postgres {
    connection: PgConnection,
    insert: String,
    update: String,
}

async fn connect(url: &str) -> Result<PgConnection, Failure> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging().connect().await?)
}

impl Postgres {
    pub async fn open(url: &str, table: &str) -> Result<Self, Failure> {
        let mut connection = connect(url).await?;
        let create =
            format!("CREATE TABLE {table} (key bytea PRIMARY KEY, fingerprint bytea NOT NULL, number bigint NOT NULL)");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await?;
        Ok(Self {
            connection,
            insert: format!(
                "INSERT INTO {table} (key, fingerprint, number) SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) \
                 ON CONFLICT DO NOTHING"
            ),
            update: format!("UPDATE {table} SET number = $2 WHERE key = ANY($1)"),
        })
    }
}

#[async_trait]
impl Bare for Postgres {
    async fn insert(&mut self, rows: &[Row]) -> Result<usize, Failure> {
        let keys: Vec<&[u8]> = rows.iter().map(|row| &row.key[..]).collect();
        let fingerprints: Vec<&[u8]> = rows.iter().map(|row| &row.fingerprint[..]).collect();
        let numbers: Vec<i64> = rows.iter().map(|row| row.number).collect();
        let done = sqlx::query(AssertSqlSafe(self.insert.as_str()))
            .bind(keys)
            .bind(fingerprints)
            .bind(numbers)
            .execute(&mut self.connection)
            .await?;
        Ok(done.rows_affected() as usize)
    }

    async fn update(&mut self, rows: &[Row]) -> Result<usize, Failure> {
        let keys: Vec<&[u8]> = rows.iter().map(|row| &row.key[..]).collect();
        let done = sqlx::query(AssertSqlSafe(self.update.as_str()))
            .bind(keys)
            .bind(-1_i64)
            .execute(&mut self.connection)
            .await?;
        Ok(done.rows_affected() as usize)
    }
}

pub async fn drop_table(url: &str, table: &str) -> Result<(), Failure> {
    let mut connection = connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE {table}"))).execute(&mut connection).await?;
    Ok(connection.close().await?)
}
