//! The queue in PostgreSQL.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgListener, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Error, Pool, Row as _};

use super::dialect::{OFFERED, Offered, Place, Sql, asked, contents, free, hex, tuples};
use super::listen::Listener;
use crate::inbox::message::{COLUMNS, Content};
use crate::inbox::tables::Tables;
use crate::store::postgres::Postgres;

impl Sql for Postgres {
    const CLOCK_MS: &'static str = "(SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint)";
    // A statement sees what was committed before it began: whoever waited for his turn to take must see what the one before took. And rows are
    // looked up, whatever the statistics say of a table that was empty a moment ago.
    const PRELUDE: &'static str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL enable_seqscan = off; \
        SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_bitmapscan = off; \
        SET LOCAL enable_sort = off; SET LOCAL jit = off; ";

    fn quoted_bytes(bytes: &[u8]) -> String {
        format!("decode('{}', 'hex')", hex(bytes))
    }

    fn quoted_text(text: &str) -> String {
        format!("convert_from(decode('{}', 'hex'), 'UTF8')", hex(text.as_bytes()))
    }

    fn appended(column: &str, bytes: &[u8]) -> String {
        format!("coalesce({column}, ''::bytea) || {}", Self::quoted_bytes(bytes))
    }

    fn row_table(names: &[&str], rows: &[Vec<i64>]) -> String {
        // Typed by a row that is left out: small numbers would be of a smaller type.
        let typed = vec!["0::bigint"; names.len()].join(", ");
        format!(
            "(SELECT * FROM (VALUES ({typed}), {}) AS v ({names}) OFFSET 1)",
            tuples(rows),
            names = names.join(", ")
        )
    }

    asked!(PgConnection, PgRow);

    async fn read_free(
        &self,
        conn: &mut PgConnection,
        tables: &Tables,
        inbox: i32,
        behind: Place,
        most: i64,
    ) -> Result<Vec<Offered>, Error> {
        let columns = format!("{OFFERED}, {COLUMNS}");
        let text = free(tables, inbox, &columns, ["$1", "$2", "$3"]) + " FOR UPDATE OF o SKIP LOCKED";
        let query = sqlx::query(AssertSqlSafe(text)).bind(behind.turn).bind(behind.id).bind(most);
        let mut topic = Arc::from("");
        let read = |row: &PgRow| {
            let mut numbers = [0_i64; 6];
            for (at, number) in numbers.iter_mut().enumerate() {
                *number = row.try_get_unchecked(at)?;
            }
            Ok((numbers, Content::read(row, 6, &mut topic)?))
        };
        query.fetch_all(conn).await?.iter().map(read).collect()
    }

    async fn read_wide(&self, conn: &mut PgConnection, tables: &Tables, ids: &[i64]) -> Result<Vec<Content>, Error> {
        let text = format!("SELECT {COLUMNS} FROM {} AS m WHERE m.id = ANY ($1::bigint[])", tables.messages);
        contents!(sqlx::query(AssertSqlSafe(text)).bind(ids).fetch_all(conn).await?)
    }

    fn notice(channel: &str) -> Option<String> {
        Some(format!("NOTIFY \"{channel}\""))
    }

    fn ear(pool: &Pool<sqlx::Postgres>, channel: String) -> Listener {
        // A connection beside the pool: workers on one pool that each keep one of its own for good would leave it none.
        let own = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = own.connect_lazy_with((*pool.connect_options()).clone());
        Listener::hearing(Ear { pool, channel, open: None, opening: None })
    }
}

/// One connection that listens.
pub(super) struct Ear {
    pool: Pool<sqlx::Postgres>,
    channel: String,
    open: Option<PgListener>,
    /// It is being opened: goes on where whoever waited for it was dropped.
    opening: Option<BoxFuture<'static, Result<PgListener, Error>>>,
}

impl Ear {
    /// Waits for a notice. `Ok` too when it has just begun to listen: there may have been one before.
    pub(super) async fn heard(&mut self) -> Result<(), Error> {
        match &mut self.open {
            Some(open) => {
                // `None`: the connection was lost, and notices may have been.
                if open.try_recv().await?.is_some() {
                    while let Some(Ok(Some(_))) = futures_util::FutureExt::now_or_never(open.try_recv()) {}
                }
                Ok(())
            }
            None => {
                let opening = self.opening.get_or_insert_with(|| {
                    let (pool, channel) = (self.pool.clone(), self.channel.clone());
                    Box::pin(async move {
                        let mut open = PgListener::connect_with(&pool).await?;
                        open.listen(&channel).await?;
                        Ok(open)
                    })
                });
                let opened = opening.await;
                self.opening = None;
                self.open = Some(opened?);
                Ok(())
            }
        }
    }

    /// Begins anew.
    pub(super) fn forget(&mut self) {
        (self.open, self.opening) = (None, None);
    }
}
