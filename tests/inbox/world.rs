//! An inbox on a database of its own tables.

use std::time::Duration;

use hapax::identity::header;
use hapax::message::Parts;
use hapax::{Inbox, InboxBuilder};
use sqlx::Pool;

use crate::base::{Base, Site};
use crate::support::unique;

/// A database, and names that no other test uses.
pub struct World<DB: Base> {
    pub site: Site,
    pub pool: Pool<DB>,
    /// What the inbox's tables begin with.
    pub prefix: String,
    /// A connection beside the pool, to look with: a new one for each look costs more than the look.
    beside: tokio::sync::Mutex<Option<DB::Connection>>,
}

impl<DB: Base> World<DB> {
    pub async fn new() -> Self {
        Self::sized(8).await
    }

    /// With so many connections.
    pub async fn sized(connections: u32) -> Self {
        let site = DB::site();
        let pool = DB::pool(&site, connections).await;
        Self::over(site, pool, unique("i"))
    }

    /// With these tables.
    pub fn over(site: Site, pool: Pool<DB>, prefix: String) -> Self {
        Self { site, pool, prefix, beside: tokio::sync::Mutex::default() }
    }

    /// A builder with what tests want, over a pool.
    pub fn builder_over(&self, pool: &Pool<DB>) -> InboxBuilder<DB> {
        Inbox::builder(pool.clone())
            .scope("tests", &self.prefix)
            .identify(header("id"))
            .lock_timeout(Duration::from_secs(2))
            .store_patience(Duration::from_secs(40))
            .with_tables(&self.prefix)
    }

    pub fn builder(&self) -> InboxBuilder<DB> {
        self.builder_over(&self.pool)
    }

    /// A process of its own, as far as the database can tell.
    pub async fn inbox(&self) -> Inbox<DB> {
        self.builder().build().await.unwrap()
    }

    /// A connection beside the pool.
    pub async fn session(&self) -> DB::Connection {
        DB::session(&self.site).await
    }

    /// One of the inbox's tables: `""`, `"_open"`, `"_runs"`, ….
    pub fn table(&self, end: &str) -> String {
        format!("{}{end}", self.prefix)
    }

    /// Looks, beside the pool.
    pub async fn numbers(&self, text: &str) -> Vec<i64> {
        let mut beside = self.beside.lock().await;
        if let Some(conn) = beside.as_mut()
            && let Ok(numbers) = DB::numbers(conn, text).await
        {
            return numbers;
        }
        // Not open yet, or its server was killed.
        *beside = None;
        let mut conn = self.session().await;
        let numbers = DB::numbers(&mut conn, text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
        *beside = Some(conn);
        numbers
    }

    pub async fn number(&self, text: &str) -> i64 {
        self.numbers(text).await[0]
    }

    /// How many rows meet a condition.
    pub async fn count(&self, end: &str, condition: &str) -> i64 {
        self.number(&format!("SELECT COUNT(*) FROM {} WHERE {condition}", self.table(end))).await
    }

    /// Changes something, by a session of its own.
    pub async fn run(&self, text: &str) -> u64 {
        DB::run(&mut self.session().await, text).await.unwrap_or_else(|error| panic!("{text}: {error}"))
    }
}

/// The bytes of a commit, as clients send them.
pub fn is_commit(bytes: &[u8]) -> bool {
    bytes.ends_with(b"COMMIT") || bytes.ends_with(b"COMMIT\0")
}

/// A message with an id and a key, at an offset.
pub fn message(id: i64, key: &str, partition: i32, offset: i64) -> Parts {
    let message = Parts::new("orders").at(partition, offset).timestamp(1_700_000_000_000 + id).key(key);
    message.header("id", id.to_string()).payload(format!("order {id}"))
}
