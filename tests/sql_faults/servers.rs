//! PostgreSQL and MariaDB behind one face, so that one test runs against both.

use std::sync::Arc;
use std::time::Duration;

use hapax::store::{DedupStore, MysqlStore, PostgresStore, Report, Retention, StoreError};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, PgConnection, Row};

use crate::support::{ThrowawayMariadb, ThrowawayPostgres, service, unique};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    Mariadb,
}

/// Settings of a store.
#[derive(Clone, Copy, Debug)]
pub struct Tune {
    pub timeout: Duration,
    pub lock_timeout: Duration,
    pub retention: Option<Retention>,
}

impl Default for Tune {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), lock_timeout: Duration::from_secs(20), retention: None }
    }
}

macro_rules! tuned {
    ($store:expr, $table:expr, $tune:expr) => {{
        let store = $store.with_table($table)?.with_timeout($tune.timeout).with_lock_timeout($tune.lock_timeout);
        let store = store.with_retention($tune.retention.unwrap_or_default());
        Ok(Arc::new(store) as Arc<dyn DedupStore>)
    }};
}

impl Kind {
    pub fn url(self) -> String {
        service(match self {
            Self::Postgres => "HAPAX_TEST_POSTGRES",
            Self::Mariadb => "HAPAX_TEST_MARIADB",
        })
    }

    /// A store on connections of its own.
    pub async fn open(self, url: &str, table: &str, tune: Tune) -> Result<Arc<dyn DedupStore>, StoreError> {
        match self {
            Self::Postgres => tuned!(PostgresStore::connect(url).await?, table, tune),
            Self::Mariadb => tuned!(MysqlStore::connect(url).await?, table, tune),
        }
    }

    /// A store on a user's pool, whose connections begin with a statement.
    pub async fn pooled(self, url: &str, table: &str, connections: u32, begin: &'static str) -> Arc<dyn DedupStore> {
        let tune = Tune::default();
        let store: Result<_, StoreError> = match self {
            Self::Postgres => {
                let options = PgPoolOptions::new().max_connections(connections).after_connect(move |conn, _| {
                    Box::pin(async move { sqlx::raw_sql(begin).execute(conn).await.map(drop) })
                });
                async { tuned!(PostgresStore::new(options.connect(url).await.unwrap()), table, tune) }.await
            }
            Self::Mariadb => {
                let options = MySqlPoolOptions::new().max_connections(connections).after_connect(move |conn, _| {
                    Box::pin(async move { sqlx::raw_sql(begin).execute(conn).await.map(drop) })
                });
                async { tuned!(MysqlStore::new(options.connect(url).await.unwrap()), table, tune) }.await
            }
        };
        store.unwrap()
    }

    /// A store with a table of its own, made.
    pub async fn fresh(self) -> (Arc<dyn DedupStore>, String) {
        let table = unique("r");
        let store = self.open(&self.url(), &table, Tune::default()).await.unwrap();
        store.ensure_schema().await.unwrap();
        (store, table)
    }

    /// A connection beside the store.
    pub async fn session(self, url: &str) -> Session {
        match self {
            Self::Postgres => Session::Postgres(PgConnection::connect(url).await.unwrap()),
            Self::Mariadb => Session::Mariadb(MySqlConnection::connect(url).await.unwrap()),
        }
    }

    /// A key as a literal.
    pub fn literal(self, key: hapax::identity::Key) -> String {
        match self {
            Self::Postgres => format!("'\\x{key}'::bytea"),
            Self::Mariadb => format!("x'{key}'"),
        }
    }

    pub fn throwaway(self, settings: &[(&str, &str)]) -> Throwaway {
        match self {
            Self::Postgres => Throwaway::Postgres(ThrowawayPostgres::start(settings)),
            Self::Mariadb => Throwaway::Mariadb(ThrowawayMariadb::start(settings)),
        }
    }
}

/// A connection that runs whatever a test needs.
pub enum Session {
    Postgres(PgConnection),
    Mariadb(MySqlConnection),
}

impl Session {
    pub async fn run(&mut self, sql: &str) {
        self.try_run(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub async fn try_run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(conn) => sqlx::raw_sql(sql).execute(conn).await.map(drop),
            Self::Mariadb(conn) => sqlx::raw_sql(sql).execute(conn).await.map(drop),
        }
    }

    /// One number.
    pub async fn number(&mut self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(conn) => sqlx::query(sql).fetch_one(conn).await.unwrap().get(0),
            Self::Mariadb(conn) => sqlx::query(sql).fetch_one(conn).await.unwrap().get(0),
        }
    }

    /// Ends every other connection of this user, with the server's own last words.
    pub async fn end_others(&mut self, marked: &str) {
        match self {
            Self::Postgres(conn) => {
                sqlx::query(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()",
                )
                .bind(marked.to_owned())
                .execute(conn)
                .await
                .unwrap();
            }
            Self::Mariadb(conn) => {
                let rows =
                    sqlx::query("SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND db = ?")
                        .bind(marked.to_owned())
                        .fetch_all(&mut *conn)
                        .await
                        .unwrap();
                for row in rows {
                    let id: i64 = row.get(0);
                    // It may be gone by now.
                    let _ = sqlx::raw_sql(AssertSqlSafe(format!("KILL {id}"))).execute(&mut *conn).await;
                }
            }
        }
    }
}

/// A server of the test's own.
pub enum Throwaway {
    Postgres(ThrowawayPostgres),
    Mariadb(ThrowawayMariadb),
}

impl Throwaway {
    pub fn url(&self) -> String {
        match self {
            Self::Postgres(server) => server.url(),
            Self::Mariadb(server) => server.url(),
        }
    }

    pub fn kill9(&mut self) {
        match self {
            Self::Postgres(server) => server.kill9(),
            Self::Mariadb(server) => server.kill9(),
        }
    }

    pub fn stop(&mut self) {
        match self {
            Self::Postgres(server) => server.stop(),
            Self::Mariadb(server) => server.stop(),
        }
    }

    pub fn restart(&mut self) {
        match self {
            Self::Postgres(server) => server.restart(),
            Self::Mariadb(server) => server.restart(),
        }
    }
}

/// The findings that forbid a start, by name.
pub fn errors(report: &Report) -> Vec<&'static str> {
    report.errors().map(|finding| finding.setting).collect()
}

/// One test on both servers.
macro_rules! both {
    ($(#[$attribute:meta])* async fn $name:ident($kind:ident: Kind) $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn body($kind: Kind) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn postgres() {
                body(Kind::Postgres).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn mariadb() {
                body(Kind::Mariadb).await;
            }
        }
    };
}

pub(crate) use both;
