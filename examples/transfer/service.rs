//! The service: what you would write. It runs in a process of its own, which does not know that it will be killed.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hapax::consumer::OnReset;
use hapax::identity::{Identify as _, header, position};
use hapax::{Consumer, Message, Once, Summary, TransactionalDatabase, shutdown_signal};
use sqlx::Pool;

use crate::bank::Books;
use crate::broker::Kafka;
use crate::children;
use crate::database::{Database, on};
use crate::flags::{Flag, Given};
use crate::money::{ID, Transfer};

/// The word that makes this program the service.
pub const COMMAND: &str = "service";

const FLAGS: &[Flag] = &[
    ("kafka", "NAME=VALUE…", "settings of the Kafka client, a line each"),
    ("topic", "NAME", "what to read"),
    ("database", "URL", "where the accounts are"),
    ("run", "N", "whose accounts"),
    ("on-reset", "refuse|warn", "where the group's offset is gone"),
    ("member", "N", "the number of this process in the ledger"),
    ("trace", "FILE", "what was begun"),
    ("dedup", "on|off", "with hapax's memory or without"),
    ("handler", "each|batch", "one at a time, or all that are new"),
    ("work-ms", "N", "how long a transfer takes"),
];

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Effect and memory in one transaction, which hapax begins and commits.
async fn once<DB>(
    pool: Pool<DB>,
    consumer: Consumer,
    group: &str,
    together: bool,
    teller: Arc<Teller>,
) -> Result<Summary, Failure>
where
    DB: TransactionalDatabase,
    DB::Connection: Books,
{
    let once = Once::transactional(pool)
        .scope(group, "transfer")
        .identify(position().and_then(header(ID))) // a window against redelivery, a record against what is produced again
        .build()
        .await?;
    let summary = if together {
        let all = async move |messages: &[Message], tx: &mut DB::Connection| {
            for message in messages {
                teller.transfer(message, tx).await?;
            }
            Ok::<_, Failure>(())
        };
        consumer.run(once.batch(all), shutdown_signal()).await?
    } else {
        let each = async move |message: Message, tx: &mut DB::Connection| teller.transfer(&message, tx).await;
        consumer.run(once.each(each), shutdown_signal()).await?
    };
    Ok(summary)
}

/// Without hapax's memory: the same transaction for each message, and what is delivered again is applied again.
macro_rules! without {
    ($pool:expr, $consumer:expr, $teller:expr) => {{
        let (pool, teller) = ($pool, $teller);
        let handler = move |message: Message| {
            let (pool, teller) = (pool.clone(), Arc::clone(&teller));
            async move {
                let mut transaction = pool.begin().await?;
                teller.transfer(&message, &mut *transaction).await?;
                transaction.commit().await?;
                Ok::<(), Failure>(())
            }
        };
        $consumer.run(hapax::plain(handler), shutdown_signal()).await
    }};
}

pub async fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    children::live(run(words)).await
}

async fn run(words: impl IntoIterator<Item = OsString>) -> Result<String, Failure> {
    let given = Given::read(FLAGS, None, words)?.ok_or("the parent process starts this")?;
    let number = |name| given.number(name, 0, u64::MAX).map(|number| number.unwrap_or(0));
    let teller = Arc::new(Teller {
        run: i64::try_from(number("run")?)?,
        member: i64::try_from(number("member")?)?,
        work: Duration::from_millis(number("work-ms")?),
        trace: File::options().append(true).create(true).open(Path::new(&given.needed("trace", "FILE")?))?,
    });
    let kafka = Kafka::settings(&given.needed("kafka", "NAME=VALUE")?);
    let group = kafka.get("group.id").unwrap_or("transfers").to_owned();
    let policies = [("refuse", OnReset::Refuse), ("warn", OnReset::Warn)];
    let consumer = Consumer::new(kafka).topics([given.needed("topic", "transfers")?]).on_reset(given.one_of(
        "on-reset",
        &policies,
        OnReset::Refuse,
    )?);
    let database = Database::open(&given.needed("database", "sqlite:bank.db")?, "transfer").await?;
    let together = given.one_of("handler", &[("each", false), ("batch", true)], false)?;
    let summary = if given.one_of("dedup", &[("on", true), ("off", false)], true)? {
        on!(database, pool => once(pool, consumer, &group, together, teller).await)?
    } else {
        on!(database, pool => without!(pool, consumer, teller))?
    };
    let (delivered, handled, duplicates) = (summary.delivered, summary.handled, summary.duplicates());
    Ok(format!("delivered={delivered} handled={handled} duplicates={duplicates}"))
}

/// Who moves the money.
struct Teller {
    run: i64,
    member: i64,
    work: Duration,
    trace: File,
}

impl Teller {
    /// The effect: what must happen once for each transfer, in a transaction that somebody else commits.
    async fn transfer(&self, message: &Message, books: &mut impl Books) -> Result<(), Failure> {
        let transfer = Transfer::read(message).ok_or("this is no transfer")?;
        let place = format!("{}/{}", message.partition(), message.offset());
        books.apply(self.run, &transfer, self.member, &place).await?;
        // For the judge: had the effect, and is not committed yet.
        (&self.trace).write_all(format!("{}\n", transfer.id).as_bytes())?;
        if !self.work.is_zero() {
            tokio::time::sleep(self.work).await;
        }
        Ok(())
    }
}
