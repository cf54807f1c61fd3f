//! The databases, each with its statements: what the handlers run on either side, and what the loops by hand run beside it.

pub mod mariadb;
pub mod postgres;
pub mod sqlite;

use hapax::TransactionalDatabase;
use hapax::message::MessageView;
use sqlx::Pool;

use crate::figures::Failure;

/// What a handler writes for a message.
#[derive(Clone, Copy, Debug)]
pub struct Row<'m> {
    pub id: &'m [u8],
    pub amount: i64,
    pub note: &'m [u8],
}

impl<'m> Row<'m> {
    pub fn of<M: MessageView + ?Sized>(message: &'m M) -> Self {
        Self {
            id: message.header("message-id").unwrap_or_default(),
            amount: message.offset(),
            note: message.payload().unwrap_or_default(),
        }
    }
}

/// What a handler writes for many.
pub fn rows<'m, M: MessageView + 'm>(messages: impl IntoIterator<Item = &'m M>) -> Vec<Row<'m>> {
    messages.into_iter().map(Row::of).collect()
}

/// A database. Both sides have the same tables of effects, without an index but the primary key, which is a number; `processed` is what the
/// loops by hand remember.
#[allow(async_fn_in_trait, reason = "nobody spawns them")]
pub trait Base: TransactionalDatabase + sqlx::Database {
    const WORD: &'static str;
    /// What has to be undone at the end.
    type Clean;

    /// Whether the environment names one.
    fn is_there() -> bool;

    /// A schema, database or file of its own, empty. `checkpoints`: its log may be cut while it is worked on.
    async fn make(checkpoints: bool) -> Result<(Pool<Self>, Self::Clean), Failure>;

    async fn clean(clean: Self::Clean) -> Result<(), Failure>;

    /// Makes the tables.
    async fn tables(conn: &mut Self::Connection) -> Result<(), Failure>;

    /// One effect for each, in one statement.
    async fn effects(conn: &mut Self::Connection, rows: &[Row<'_>]) -> sqlx::Result<()>;

    async fn effect(conn: &mut Self::Connection, row: Row<'_>) -> sqlx::Result<()>;

    /// Ids that are not there yet, in one statement. Answers which those are.
    async fn process(conn: &mut Self::Connection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Vec<u8>>>;

    /// One id. Answers whether it was new.
    async fn process_one(conn: &mut Self::Connection, row: Row<'_>) -> sqlx::Result<bool>;

    async fn run(conn: &mut Self::Connection, sql: &'static str) -> sqlx::Result<()>;

    async fn number(conn: &mut Self::Connection, sql: &'static str) -> sqlx::Result<i64>;

    /// Bytes that were ever written to the log.
    async fn logged(place: &Place<Self>) -> Result<i64, Failure>;

    /// Bytes that all tables take.
    async fn kept(place: &Place<Self>) -> Result<i64, Failure>;

    /// Part `part` of the records of so many messages that were handled, in the order of their keys.
    async fn remember(conn: &mut Self::Connection, part: u8, rows: usize) -> Result<(), Failure>;
}

/// A place for one side of one round.
pub struct Place<B: Base> {
    pub pool: Pool<B>,
    clean: B::Clean,
}

impl<B: Base> Place<B> {
    pub async fn new() -> Result<Self, Failure> {
        Self::make(true).await
    }

    pub async fn make(checkpoints: bool) -> Result<Self, Failure> {
        let (pool, clean) = B::make(checkpoints).await?;
        B::tables(&mut *pool.acquire().await?).await?;
        Ok(Self { pool, clean })
    }

    /// How many effects there are.
    pub async fn effects(&self) -> Result<usize, Failure> {
        self.number("SELECT COUNT(*) FROM effects").await
    }

    pub async fn number(&self, sql: &'static str) -> Result<usize, Failure> {
        Ok(usize::try_from(B::number(&mut *self.pool.acquire().await?, sql).await?)?)
    }

    pub async fn close(self) -> Result<(), Failure> {
        self.pool.close().await;
        B::clean(self.clean).await
    }
}

/// The variable's value, if there is one.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The origin of a record that nobody made.
const ORIGIN: &[u8] = b"\0\0\0\0\0\0\0\0\0\0\0\x01orders";
