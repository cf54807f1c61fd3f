//! MariaDB and MySQL: a statement of many rows.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, MySqlConnection};

use super::{Bare, repeated};
use crate::data::Row;
use crate::figures::Failure;

pub struct Mariadb {
    connection: MySqlConnection,
    table: String,
    /// The statements, with the number of rows they are for.
    insert: (usize, String),
    update: (usize, String),
}

async fn connect(url: &str) -> Result<MySqlConnection, Failure> {
    let options: sqlx::mysql::MySqlConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging().connect().await?)
}

impl Mariadb {
    pub async fn open(url: &str, table: &str) -> Result<Self, Failure> {
        let mut connection = connect(url).await?;
        let create = format!(
            "CREATE TABLE {table} (k BINARY(16) NOT NULL PRIMARY KEY, fingerprint BINARY(16) NOT NULL, number BIGINT NOT NULL)"
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await?;
        Ok(Self { connection, table: table.to_owned(), insert: (0, String::new()), update: (0, String::new()) })
    }
}

#[async_trait]
impl Bare for Mariadb {
    async fn insert(&mut self, rows: &[Row]) -> Result<usize, Failure> {
        if self.insert.0 != rows.len() {
            let head = format!("INSERT IGNORE INTO {} (k, fingerprint, number) VALUES ", self.table);
            self.insert = (rows.len(), repeated(&head, "(?,?,?)", rows.len(), ""));
        }
        let mut query = sqlx::query(AssertSqlSafe(self.insert.1.as_str()));
        for row in rows {
            query = query.bind(&row.key[..]).bind(&row.fingerprint[..]).bind(row.number);
        }
        Ok(query.execute(&mut self.connection).await?.rows_affected() as usize)
    }

    async fn update(&mut self, rows: &[Row]) -> Result<usize, Failure> {
        if self.update.0 != rows.len() {
            let head = format!("UPDATE {} SET number = ? WHERE k IN (", self.table);
            self.update = (rows.len(), repeated(&head, "?", rows.len(), ")"));
        }
        let mut query = sqlx::query(AssertSqlSafe(self.update.1.as_str())).bind(-1_i64);
        for row in rows {
            query = query.bind(&row.key[..]);
        }
        Ok(query.execute(&mut self.connection).await?.rows_affected() as usize)
    }
}

pub async fn drop_table(url: &str, table: &str) -> Result<(), Failure> {
    let mut connection = connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE {table}"))).execute(&mut connection).await?;
    Ok(connection.close().await?)
}
