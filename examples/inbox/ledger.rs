//! Customers and ledger. In the ledger no order is unique: one that has its effect twice is seen twice.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Row as _};

use crate::database::{Database, on};
use crate::judge::Entry;
use crate::orders::Order;

/// `run` tells the rows of one run of this program from those of another one in the same database. A row's number is the database's own.
const CUSTOMERS: &str = "CREATE TABLE IF NOT EXISTS inbox_customer (
    run bigint NOT NULL, id bigint NOT NULL, spent bigint NOT NULL, PRIMARY KEY (run, id))";
const LEDGER: &str = "CREATE TABLE IF NOT EXISTS inbox_ledger (
    NTH, run bigint NOT NULL, id varchar(32) NOT NULL, customer bigint NOT NULL, cents bigint NOT NULL,
    log_offset bigint NOT NULL, attempt bigint NOT NULL, worker bigint NOT NULL)";

/// An open connection, with or without a transaction around it.
pub trait Books: Send {
    /// The effect: charges the customer, and says so in the ledger.
    fn charge(
        &mut self,
        run: i64,
        order: &Order,
        offset: i64,
        attempt: u32,
        worker: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

macro_rules! books {
    ($connection:ty, $spend:literal, $note:literal) => {
        impl Books for $connection {
            async fn charge(
                &mut self,
                run: i64,
                order: &Order,
                offset: i64,
                attempt: u32,
                worker: i64,
            ) -> Result<(), sqlx::Error> {
                let spent = sqlx::query($spend).bind(order.cents).bind(run).bind(order.customer);
                if spent.execute(&mut *self).await?.rows_affected() != 1 {
                    return Err(sqlx::Error::RowNotFound);
                }
                let note = sqlx::query($note).bind(run).bind(&order.id).bind(order.customer).bind(order.cents);
                note.bind(offset).bind(i64::from(attempt)).bind(worker).execute(&mut *self).await?;
                Ok(())
            }
        }
    };
}

books!(
    SqliteConnection,
    "UPDATE inbox_customer SET spent = spent + ? WHERE run = ? AND id = ?",
    "INSERT INTO inbox_ledger (run, id, customer, cents, log_offset, attempt, worker) VALUES (?, ?, ?, ?, ?, ?, ?)"
);
#[cfg(feature = "mysql")]
books!(
    sqlx::MySqlConnection,
    "UPDATE inbox_customer SET spent = spent + ? WHERE run = ? AND id = ?",
    "INSERT INTO inbox_ledger (run, id, customer, cents, log_offset, attempt, worker) VALUES (?, ?, ?, ?, ?, ?, ?)"
);
#[cfg(feature = "postgres")]
books!(
    sqlx::PgConnection,
    "UPDATE inbox_customer SET spent = spent + $1 WHERE run = $2 AND id = $3",
    "INSERT INTO inbox_ledger (run, id, customer, cents, log_offset, attempt, worker) VALUES ($1, $2, $3, $4, $5, $6, $7)"
);

/// What the parent process sees: it opens customers before, counts during and after.
pub struct Ledger {
    pub database: Database,
    pub run: i64,
}

impl Ledger {
    pub async fn open(url: &str, run: i64) -> Result<Self, String> {
        let ledger = Self { database: Database::open(url, "inbox").await?, run };
        let nth = match &ledger.database {
            Database::Sqlite(_) => "nth integer PRIMARY KEY AUTOINCREMENT",
            #[cfg(feature = "postgres")]
            Database::Postgres(_) => "nth bigserial PRIMARY KEY",
            #[cfg(feature = "mysql")]
            Database::Mysql(_) => "nth bigint NOT NULL AUTO_INCREMENT PRIMARY KEY",
        };
        let made = async {
            ledger.execute(CUSTOMERS.to_owned()).await?;
            ledger.execute(LEDGER.replace("NTH", nth)).await?;
            let rows: Vec<String> = (0..crate::orders::CUSTOMERS).map(|id| format!("({run}, {id}, 0)")).collect();
            ledger.execute(format!("INSERT INTO inbox_customer (run, id, spent) VALUES {}", rows.join(", "))).await
        };
        made.await.map_err(|e: sqlx::Error| {
            format!("--database: {e}; this user has to be allowed to make tables and to write to them")
        })?;
        Ok(ledger)
    }

    async fn execute(&self, statement: String) -> Result<(), sqlx::Error> {
        on!(&self.database, pool => sqlx::query(AssertSqlSafe(statement)).execute(pool).await.map(|_| ()))
    }

    pub async fn spent(&self) -> Result<BTreeMap<i64, i64>, sqlx::Error> {
        let statement = format!("SELECT id, spent FROM inbox_customer WHERE run = {}", self.run);
        let rows: Vec<(i64, i64)> =
            on!(&self.database, pool => sqlx::query_as(AssertSqlSafe(statement)).fetch_all(pool).await?);
        Ok(rows.into_iter().collect())
    }

    pub async fn entries(&self) -> Result<Vec<Entry>, sqlx::Error> {
        let columns = "nth, id, customer, cents, log_offset, attempt, worker";
        let statement = format!("SELECT {columns} FROM inbox_ledger WHERE run = {}", self.run);
        macro_rules! entries {
            ($pool:expr) => {
                sqlx::query(AssertSqlSafe(statement))
                    .fetch_all($pool)
                    .await?
                    .iter()
                    .map(|row| {
                        Ok(Entry {
                            nth: row.try_get(0)?,
                            id: row.try_get(1)?,
                            customer: row.try_get(2)?,
                            cents: row.try_get(3)?,
                            offset: row.try_get(4)?,
                            attempt: row.try_get(5)?,
                            worker: row.try_get(6)?,
                        })
                    })
                    .collect()
            };
        }
        on!(&self.database, pool => entries!(pool))
    }

    /// Takes this run's customers and ledger out of a database that is not its own. What hapax remembers stays until it is purged.
    pub async fn clean_up(&self) {
        for table in ["inbox_ledger", "inbox_customer"] {
            let _ = self.execute(format!("DELETE FROM {table} WHERE run = {}", self.run)).await;
        }
    }
}
