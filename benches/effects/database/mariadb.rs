//! MariaDB: a statement of many rows. Each side in a database of its own.

use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, MySql, MySqlConnection, Pool};

use super::{Base, ORIGIN, Place, Row, variable};
use crate::bare::repeated;
use crate::figures::Failure;
use crate::kinds::unique;

const URL: &str = "HAPAX_TEST_MARIADB";

fn options() -> Result<MySqlConnectOptions, Failure> {
    let options: MySqlConnectOptions = variable(URL).ok_or("no MariaDB")?.parse()?;
    Ok(options.disable_statement_logging())
}

impl Base for MySql {
    const WORD: &'static str = "mariadb";
    type Clean = String;

    fn is_there() -> bool {
        variable(URL).is_some()
    }

    async fn make(_: bool) -> Result<(Pool<Self>, String), Failure> {
        let database = unique();
        let mut admin = options()?.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {database}"))).execute(&mut admin).await?;
        admin.close().await?;
        let pool = MySqlPoolOptions::new().max_connections(8);
        Ok((pool.connect_with(options()?.database(&database)).await?, database))
    }

    async fn clean(database: String) -> Result<(), Failure> {
        let mut admin = options()?.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {database}"))).execute(&mut admin).await?;
        Ok(admin.close().await?)
    }

    async fn tables(conn: &mut MySqlConnection) -> Result<(), Failure> {
        let sql = "CREATE TABLE effects (id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, message VARBINARY(64) NOT NULL, \
                   amount BIGINT NOT NULL, note VARBINARY(1024) NOT NULL)";
        Self::run(conn, sql).await?;
        let sql = "CREATE TABLE processed (id VARBINARY(64) NOT NULL PRIMARY KEY, at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)";
        Ok(Self::run(conn, sql).await?)
    }

    async fn effects(conn: &mut MySqlConnection, rows: &[Row<'_>]) -> sqlx::Result<()> {
        let sql = repeated("INSERT INTO effects (message, amount, note) VALUES ", "(?,?,?)", rows.len(), "");
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for row in rows {
            query = query.bind(row.id).bind(row.amount).bind(row.note);
        }
        query.execute(conn).await.map(drop)
    }

    async fn effect(conn: &mut MySqlConnection, row: Row<'_>) -> sqlx::Result<()> {
        let sql = "INSERT INTO effects (message, amount, note) VALUES (?,?,?)";
        sqlx::query(sql).bind(row.id).bind(row.amount).bind(row.note).execute(conn).await.map(drop)
    }

    async fn process(conn: &mut MySqlConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Vec<u8>>> {
        let sql = repeated("INSERT IGNORE INTO processed (id) VALUES ", "(?)", rows.len(), " RETURNING id");
        let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
        for row in rows {
            query = query.bind(row.id);
        }
        query.fetch_all(conn).await
    }

    async fn process_one(conn: &mut MySqlConnection, row: Row<'_>) -> sqlx::Result<bool> {
        let sql = "INSERT IGNORE INTO processed (id) VALUES (?)";
        Ok(sqlx::query(sql).bind(row.id).execute(conn).await?.rows_affected() == 1)
    }

    async fn run(conn: &mut MySqlConnection, sql: &'static str) -> sqlx::Result<()> {
        sqlx::raw_sql(sql).execute(conn).await.map(drop)
    }

    async fn number(conn: &mut MySqlConnection, sql: &'static str) -> sqlx::Result<i64> {
        sqlx::query_scalar(sql).fetch_one(conn).await
    }

    async fn logged(place: &Place<Self>) -> Result<i64, Failure> {
        let sql = "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status \
                   WHERE variable_name = 'INNODB_LSN_CURRENT'";
        Ok(Self::number(&mut *place.pool.acquire().await?, sql).await?)
    }

    async fn kept(place: &Place<Self>) -> Result<i64, Failure> {
        let sql = "SELECT CAST(SUM(file_size) AS SIGNED) FROM information_schema.innodb_sys_tablespaces \
                   WHERE name LIKE CONCAT(DATABASE(), '/%')";
        Ok(Self::number(&mut *place.pool.acquire().await?, sql).await?)
    }

    async fn remember(conn: &mut MySqlConnection, part: u8, rows: usize) -> Result<(), Failure> {
        let sql = format!(
            "INSERT INTO hapax_records (message_key, fingerprint, owner, fence, time, attempts, state, origin) \
             SELECT CONCAT(UNHEX('{part:02x}'), SUBSTR(UNHEX(MD5(seq)), 2)), UNHEX(MD5(seq)), 1, 1, \
                    UNIX_TIMESTAMP() * 1000, 1, 2, ? FROM seq_1_to_{rows} ORDER BY 1"
        );
        Ok(sqlx::query(AssertSqlSafe(sql)).bind(ORIGIN).execute(conn).await.map(drop)?)
    }
}
