//! One database under test: pools, tables of its own, and effects that are counted where they are.

use std::future::Future;
use std::time::Duration;

use hapax::TransactionalDatabase;
use hapax::message::Parts;
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection, MySql, MySqlConnection, PgConnection, Pool, Postgres, Sqlite, SqliteConnection};
use tempfile::TempDir;

use crate::support::{service, unique};

/// Where a database is: a URL, or a file of a folder that goes with it.
pub struct Site {
    pub url: String,
    _folder: Option<TempDir>,
}

impl Site {
    pub fn at(url: String) -> Self {
        Self { url, _folder: None }
    }
}

/// A database that tests are written for once.
pub trait Base: TransactionalDatabase {
    const KIND: &'static str;

    /// The service, or a new file.
    fn site() -> Site;

    fn pool(site: &Site, connections: u32) -> impl Future<Output = Pool<Self>>;

    /// A connection beside the pool.
    fn session(site: &Site) -> impl Future<Output = Self::Connection>;

    /// Runs statements without values; gives what the last one changed.
    fn run(conn: &mut Self::Connection, text: &str) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    fn number(conn: &mut Self::Connection, text: &str) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;

    fn numbers(conn: &mut Self::Connection, text: &str) -> impl Future<Output = Result<Vec<i64>, sqlx::Error>> + Send;

    fn text(conn: &mut Self::Connection, text: &str) -> impl Future<Output = Result<String, sqlx::Error>> + Send;

    /// One effect of a message: a row that nothing keeps from standing twice.
    fn effect(
        conn: &mut Self::Connection,
        table: &str,
        message: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

macro_rules! base {
    ($db:ty, $conn:ty, $name:literal, $values:literal, $site:expr, $pool:expr, $session:expr) => {
        impl Base for $db {
            const KIND: &'static str = $name;

            fn site() -> Site {
                $site
            }

            async fn pool(site: &Site, connections: u32) -> Pool<Self> {
                let open: fn(&Site, u32) -> _ = $pool;
                open(site, connections).await.unwrap()
            }

            async fn session(site: &Site) -> $conn {
                let open: fn(&Site) -> _ = $session;
                open(site).await.unwrap()
            }

            async fn run(conn: &mut $conn, text: &str) -> Result<u64, sqlx::Error> {
                Ok(sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(conn).await?.rows_affected())
            }

            async fn number(conn: &mut $conn, text: &str) -> Result<i64, sqlx::Error> {
                sqlx::query_scalar(AssertSqlSafe(text.to_owned())).persistent(false).fetch_one(conn).await
            }

            async fn numbers(conn: &mut $conn, text: &str) -> Result<Vec<i64>, sqlx::Error> {
                sqlx::query_scalar(AssertSqlSafe(text.to_owned())).persistent(false).fetch_all(conn).await
            }

            async fn text(conn: &mut $conn, text: &str) -> Result<String, sqlx::Error> {
                sqlx::query_scalar(AssertSqlSafe(text.to_owned())).persistent(false).fetch_one(conn).await
            }

            async fn effect(conn: &mut $conn, table: &str, message: i64) -> Result<(), sqlx::Error> {
                let text = format!("INSERT INTO {table} (message) VALUES {}", $values);
                sqlx::query(AssertSqlSafe(text)).bind(message).execute(conn).await.map(drop)
            }
        }
    };
}

/// A server that was killed takes a while to answer again.
const ACQUIRE: Duration = Duration::from_secs(10);

fn sqlite(site: &Site) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(&site.url)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(20))
}

base!(
    Postgres,
    PgConnection,
    "postgres",
    "($1)",
    Site::at(service("HAPAX_TEST_POSTGRES")),
    |site, size| {
        let url = site.url.clone();
        async move { PgPoolOptions::new().max_connections(size).acquire_timeout(ACQUIRE).connect(&url).await }
    },
    |site| {
        let url = site.url.clone();
        async move { PgConnection::connect(&url).await }
    }
);
base!(
    MySql,
    MySqlConnection,
    "mysql",
    "(?)",
    Site::at(service("HAPAX_TEST_MYSQL")),
    |site, size| {
        let url = site.url.clone();
        async move { MySqlPoolOptions::new().max_connections(size).acquire_timeout(ACQUIRE).connect(&url).await }
    },
    |site| {
        let url = site.url.clone();
        async move { MySqlConnection::connect(&url).await }
    }
);
base!(
    Sqlite,
    SqliteConnection,
    "sqlite",
    "(?)",
    {
        let folder = tempfile::tempdir().unwrap();
        Site { url: folder.path().join("db").display().to_string(), _folder: Some(folder) }
    },
    |site, size| SqlitePoolOptions::new().max_connections(size).acquire_timeout(ACQUIRE).connect_with(sqlite(site)),
    |site| {
        let options = sqlite(site);
        async move { SqliteConnection::connect_with(&options).await }
    }
);

/// Runs a case on every database.
macro_rules! everywhere {
    ($(#[$attribute:meta])* async fn $name:ident<$db:ident>() $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn case<$db: $crate::base::Base>() $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                case::<sqlx::Postgres>().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mysql() {
                case::<sqlx::MySql>().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                case::<sqlx::Sqlite>().await;
            }
        }
    };
}

pub(crate) use everywhere;

/// Runs a case on every database that has a server.
macro_rules! everywhere_served {
    ($(#[$attribute:meta])* async fn $name:ident<$db:ident>() $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn case<$db: $crate::base::Base>() $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                case::<sqlx::Postgres>().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mariadb() {
                case::<sqlx::MySql>().await;
            }
        }
    };
}

pub(crate) use everywhere_served;

/// Tables that no other test uses.
#[derive(Clone, Debug)]
pub struct Tables {
    pub records: String,
    pub windows: String,
    pub effects: String,
}

impl Tables {
    /// Makes the effects' table; hapax makes its own.
    pub async fn make<DB: Base>(conn: &mut DB::Connection) -> Self {
        let name = unique("t");
        let tables = Self { records: format!("{name}_r"), windows: format!("{name}_w"), effects: format!("{name}_e") };
        DB::run(conn, &format!("CREATE TABLE {} (message BIGINT NOT NULL)", tables.effects)).await.unwrap();
        tables
    }

    /// Each of these messages has one effect, and no others have any.
    pub async fn judge<DB: Base>(&self, conn: &mut DB::Connection, messages: impl Iterator<Item = i64>) {
        let found = DB::numbers(conn, &format!("SELECT message FROM {} ORDER BY message", self.effects)).await.unwrap();
        let wanted: std::collections::BTreeSet<i64> = messages.collect();
        let lost: Vec<_> = wanted.iter().filter(|message| found.binary_search(message).is_err()).collect();
        let doubled: Vec<_> = found.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        let foreign: Vec<_> = found.iter().filter(|message| !wanted.contains(message)).collect();
        assert!(
            lost.is_empty() && doubled.is_empty() && foreign.is_empty(),
            "{}: lost={lost:?} doubled={doubled:?} foreign={foreign:?}",
            DB::KIND
        );
    }
}

/// A message with an id, at an offset.
pub fn message(id: i64, partition: i32, offset: i64) -> Parts {
    let message = Parts::new("orders").at(partition, offset).timestamp(1_700_000_000_000 + id);
    message.header("id", id.to_string()).payload(format!("order {id}"))
}

/// Which message it is.
pub fn id_of(message: &impl hapax::message::MessageView) -> i64 {
    std::str::from_utf8(message.header("id").unwrap()).unwrap().parse().unwrap()
}
