//! Accounts and ledger. The ledger has no unique index: a transfer that is applied twice is seen twice.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use crate::database::{Database, on};
use crate::judge::Entry;
use crate::money::{ACCOUNTS, OPENING, Transfer};

/// `run` tells the rows of one run of this program from those of another one in the same database.
const TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS transfer_account (
        run bigint NOT NULL, id bigint NOT NULL, balance bigint NOT NULL, PRIMARY KEY (run, id))",
    "CREATE TABLE IF NOT EXISTS transfer_ledger (
        run bigint NOT NULL, id varchar(32) NOT NULL, source bigint NOT NULL, target bigint NOT NULL, cents bigint NOT NULL,
        member bigint NOT NULL, place varchar(64) NOT NULL)",
];

/// An open connection, with or without a transaction around it.
pub trait Books: Send {
    /// Moves the money, and says so in the ledger.
    fn apply(
        &mut self,
        run: i64,
        transfer: &Transfer,
        member: i64,
        place: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

macro_rules! books {
    ($connection:ty, $move:literal, $note:literal) => {
        impl Books for $connection {
            async fn apply(
                &mut self,
                run: i64,
                transfer: &Transfer,
                member: i64,
                place: &str,
            ) -> Result<(), sqlx::Error> {
                let Transfer { id, source, target, cents } = transfer;
                for (account, change) in [(source, -cents), (target, *cents)] {
                    let moved = sqlx::query($move).bind(change).bind(run).bind(account).execute(&mut *self).await?;
                    if moved.rows_affected() != 1 {
                        return Err(sqlx::Error::RowNotFound);
                    }
                }
                let note = sqlx::query($note).bind(run).bind(id).bind(source).bind(target).bind(cents);
                note.bind(member).bind(place).execute(&mut *self).await?;
                Ok(())
            }
        }
    };
}

books!(
    SqliteConnection,
    "UPDATE transfer_account SET balance = balance + ? WHERE run = ? AND id = ?",
    "INSERT INTO transfer_ledger (run, id, source, target, cents, member, place) VALUES (?, ?, ?, ?, ?, ?, ?)"
);
#[cfg(feature = "mysql")]
books!(
    sqlx::MySqlConnection,
    "UPDATE transfer_account SET balance = balance + ? WHERE run = ? AND id = ?",
    "INSERT INTO transfer_ledger (run, id, source, target, cents, member, place) VALUES (?, ?, ?, ?, ?, ?, ?)"
);
#[cfg(feature = "postgres")]
books!(
    sqlx::PgConnection,
    "UPDATE transfer_account SET balance = balance + $1 WHERE run = $2 AND id = $3",
    "INSERT INTO transfer_ledger (run, id, source, target, cents, member, place) VALUES ($1, $2, $3, $4, $5, $6, $7)"
);

/// What the parent process sees and does: opens accounts before, counts during and after.
pub struct Bank {
    pub database: Database,
    pub run: i64,
}

impl Bank {
    pub async fn open(url: &str, run: i64) -> Result<Self, String> {
        let bank = Self { database: Database::open(url, "transfer").await?, run };
        let made = async {
            for table in TABLES {
                bank.execute(table.to_owned()).await?;
            }
            let mut accounts = String::from("INSERT INTO transfer_account (run, id, balance) VALUES ");
            for id in 0..ACCOUNTS {
                let _ = write!(accounts, "{}({run}, {id}, {OPENING})", if id == 0 { "" } else { ", " });
            }
            bank.execute(accounts).await
        };
        made.await.map_err(|e: sqlx::Error| {
            format!("--database: {e}; this user has to be allowed to make tables and to write to them")
        })?;
        Ok(bank)
    }

    async fn execute(&self, statement: String) -> Result<(), sqlx::Error> {
        on!(&self.database, pool => sqlx::query(AssertSqlSafe(statement)).execute(pool).await.map(|_| ()))
    }

    /// Transfers in the ledger: all, or those of one process.
    pub async fn applied(&self, member: Option<i64>) -> Result<u64, sqlx::Error> {
        let own = member.map(|member| format!(" AND member = {member}")).unwrap_or_default();
        let statement = format!("SELECT count(*) FROM transfer_ledger WHERE run = {}{own}", self.run);
        let count: i64 =
            on!(&self.database, pool => sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(pool).await?);
        Ok(count.unsigned_abs())
    }

    pub async fn balances(&self) -> Result<BTreeMap<i64, i64>, sqlx::Error> {
        let statement = format!("SELECT id, balance FROM transfer_account WHERE run = {}", self.run);
        let rows: Vec<(i64, i64)> =
            on!(&self.database, pool => sqlx::query_as(AssertSqlSafe(statement)).fetch_all(pool).await?);
        Ok(rows.into_iter().collect())
    }

    pub async fn ledger(&self) -> Result<Vec<Entry>, sqlx::Error> {
        let statement =
            format!("SELECT id, source, target, cents, member, place FROM transfer_ledger WHERE run = {}", self.run);
        macro_rules! entries {
            ($pool:expr) => {
                sqlx::query(AssertSqlSafe(statement))
                    .fetch_all($pool)
                    .await?
                    .iter()
                    .map(|row| {
                        let transfer = Transfer {
                            id: row.try_get(0)?,
                            source: row.try_get(1)?,
                            target: row.try_get(2)?,
                            cents: row.try_get(3)?,
                        };
                        Ok(Entry { transfer, member: row.try_get(4)?, place: row.try_get(5)? })
                    })
                    .collect()
            };
        }
        on!(&self.database, pool => entries!(pool))
    }

    /// A process that is stopped inside of a SQLite transaction keeps everybody else out of the file, and nobody could take its place:
    /// while this is held it is inside of none.
    pub async fn nobody_writes(&self) -> Result<Option<SqliteConnection>, sqlx::Error> {
        #[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(irrefutable_let_patterns))]
        let Database::Sqlite(pool) = &self.database else { return Ok(None) };
        let mut connection = pool.connect_options().as_ref().clone().connect().await?;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await?;
        Ok(Some(connection))
    }

    pub async fn let_write(&self, held: Option<SqliteConnection>) -> Result<(), sqlx::Error> {
        let Some(mut connection) = held else { return Ok(()) };
        sqlx::query("ROLLBACK").execute(&mut connection).await?;
        connection.close().await
    }

    /// Takes this run's accounts and ledger out of a database that is not its own. What hapax remembers stays until it is purged.
    pub async fn clean_up(&self) {
        for table in ["transfer_ledger", "transfer_account"] {
            let _ = self.execute(format!("DELETE FROM {table} WHERE run = {}", self.run)).await;
        }
    }
}
