//! What you would write: a consumer that stores, and a worker that handles. Each runs in processes of its own, which do not know that they will be
//! killed.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::time::Duration;

use hapax::consumer::OnReset;
use hapax::identity::{Identify, header, position};
use hapax::{BuildError, Consumer, Inbox, Retry, TransactionalDatabase, inbox, shutdown_signal};
use sqlx::Pool;

use crate::broker::Kafka;
use crate::children;
use crate::database::{Database, on};
use crate::flags::{Flag, Given};
use crate::ledger::Books;
use crate::orders::{ID, Order};

/// The words that make this program one of them.
pub const CONSUMER: &str = "consumer";
pub const WORKER: &str = "worker";

/// How long a worker that was killed keeps what it had taken.
const LEASE: Duration = Duration::from_secs(2);
/// Attempts before an order is given up. One that fails twice by itself may be in the hands of each worker that is killed too, and is to succeed all the same.
const ATTEMPTS: u32 = 8;

const FLAGS: &[Flag] = &[
    ("kafka", "NAME=VALUE…", "settings of the Kafka client, a line each"),
    ("topic", "NAME", "what to read, and the consumer group"),
    ("database", "URL", "where inbox and customers are"),
    ("run", "N", "whose customers"),
    ("on-reset", "refuse|warn", "where the group's offset is gone"),
    ("member", "N", "the number of this process in the ledger"),
    ("dedup", "on|off", "what makes two orders the same: their id, or their position"),
    ("version", "N", "1 does not know every currency, 2 does"),
];

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The inbox: consumer, workers and operator open the same.
pub async fn open<DB: TransactionalDatabase>(
    pool: Pool<DB>,
    group: &str,
    dedup: bool,
) -> Result<Inbox<DB>, BuildError> {
    let identity: Box<dyn Identify> = if dedup { Box::new(header(ID)) } else { Box::new(position()) };
    Inbox::builder(pool).scope(group, "charge").identify(identity).build().await
}

/// Kafka to table, a poll batch in one transaction.
async fn consume<DB: TransactionalDatabase>(inbox: Inbox<DB>, consumer: Consumer) -> Result<String, Failure> {
    let summary = consumer.run(inbox.accept(), shutdown_signal()).await?;
    Ok(summary.to_string())
}

/// Table to effect: one after the other for each customer, and the effect in the transaction that says that it is done.
async fn work<DB>(inbox: Inbox<DB>, clerk: Clerk) -> Result<String, Failure>
where
    DB: TransactionalDatabase,
    DB::Connection: Books,
{
    let handler = async move |order: inbox::Message, tx: &mut DB::Connection| clerk.charge(&order, tx).await;
    let worker = inbox.worker().order(inbox::Order::Key).lease(LEASE);
    let worker = worker.retry(Retry::exponential(Duration::from_millis(50)).attempts(ATTEMPTS));
    let summary = worker.run(handler, shutdown_signal()).await?;
    Ok(summary.to_string())
}

/// Who charges the customers.
struct Clerk {
    run: i64,
    worker: i64,
    version: u64,
}

impl Clerk {
    /// The effect: what must happen once for each order, in a transaction that somebody else commits.
    async fn charge(&self, message: &inbox::Message, books: &mut impl Books) -> Result<(), Failure> {
        let order = Order::read(message).ok_or("this is no order")?;
        if !order.is_known(self.version > 1) {
            return Err(format!("no such currency: {}", order.currency).into());
        }
        books.charge(self.run, &order, message.offset(), message.attempt(), self.worker).await?;
        // What fails behind the effect takes the effect back.
        if message.attempt() <= order.stumbles {
            return Err("the bank does not answer".into());
        }
        Ok(())
    }
}

pub fn command(word: &OsStr) -> Option<&'static str> {
    [CONSUMER, WORKER].into_iter().find(|command| word == *command)
}

pub async fn main(command: &'static str, words: impl IntoIterator<Item = OsString>) -> ExitCode {
    children::live(run(command, words)).await
}

async fn run(command: &str, words: impl IntoIterator<Item = OsString>) -> Result<String, Failure> {
    let given = Given::read(FLAGS, None, words)?.ok_or("the parent process starts this")?;
    let number = |name| given.number(name, 0, u64::MAX).map(|number| number.unwrap_or(0));
    let topic = given.needed("topic", "orders")?;
    let dedup = given.one_of("dedup", &[("on", true), ("off", false)], true)?;
    let database = Database::open(&given.needed("database", "sqlite:orders.db")?, "inbox").await?;
    if command == WORKER {
        let run = i64::try_from(number("run")?)?;
        let clerk = Clerk { run, worker: i64::try_from(number("member")?)?, version: number("version")? };
        return on!(database, pool => work(open(pool, &topic, dedup).await?, clerk).await);
    }
    let policies = [("refuse", OnReset::Refuse), ("warn", OnReset::Warn)];
    let consumer = Consumer::new(Kafka::settings(&given.needed("kafka", "NAME=VALUE")?))
        .topics([&topic])
        .on_reset(given.one_of("on-reset", &policies, OnReset::Refuse)?);
    on!(database, pool => consume(open(pool, &topic, dedup).await?, consumer).await)
}
