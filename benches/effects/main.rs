//! What effects once cost, as ratios to loops that are written by hand.
//!
//! ```text
//! cargo bench --bench effects --features full -- [--rounds N] [--messages N] [--remembered N] [--only NAME]… [--list]
//! ```
//!
//! One line a figure: `name ours bare ratio`, in messages per second, each the median of all rounds; the ratio is the median of each
//! round's own ratio. In a round both sides run one after the other, in changing order, on new tables and new messages, 512 in a batch;
//! what they work on is prepared outside the timed part. For each database (`sqlite_…`, `postgres_…`, `mariadb_…`):
//!
//! | figure | ours | against |
//! |---|---|---|
//! | `window` | a batch handler that bulk-inserts its effects, position only | the same bulk inserts without deduplication |
//! | `records` | the same with a record for each message | bulk inserts of effects and of ids that are unique |
//! | `window_records` | both | the same |
//! | `each`, `each_records` | a handler of one message, 512 in a transaction; with position, or with records (the first messages each under a savepoint) | the same inserts in the same transactions, without deduplication and without savepoints |
//! | `savepoints` | these inserts by hand, each under a savepoint | without |
//! | `remembered` | `records` with 20 million identities in the table | with a twentieth of them |
//! | `hand_written_batch` | the consumer, with records and a batch handler | on the same Kafka, for each poll of 512: one transaction, ids that are unique, effects of those that were new, one asynchronous commit |
//! | `hand_written` | the consumer, with records and a handler of one message | for each message: a transaction, its id, its effect, commit |
//! | `…_wal_bytes`, `…_table_bytes` | bytes a message: written to the log, and kept by all tables | the same loops by hand |
//!
//! Ids are 128 bits in no order, as UUIDs are: what finds them again is as scattered for either side. Ids that ascend would be in the loop by
//! hand's favour, whose index then grows at its end; here the key is a digest of the identity, and any id is as good as any other.
//!
//! The loops by hand remember an id and a time for each message, and know no conflict, no attempts, and no answer to a message that fails.
//!
//! Services come from the environment (`scripts/services env`); without them only SQLite is measured, and without Kafka no consumer.

#![allow(missing_docs, clippy::print_stdout)]

#[path = "../shared/args.rs"]
mod args;
#[allow(dead_code)]
#[path = "../ratios/bare/mod.rs"]
mod bare;
mod batches;
#[allow(dead_code)]
#[path = "../ratios/data.rs"]
mod data;
mod database;
mod direct;
#[allow(dead_code)]
#[path = "../ratios/figures.rs"]
mod figures;
mod growth;
mod kafka;
#[allow(dead_code)]
#[path = "../ratios/kinds.rs"]
mod kinds;
#[allow(dead_code)]
#[path = "../consumer/loops.rs"]
mod loops;
#[allow(dead_code)]
#[path = "../consumer/ours.rs"]
mod ours;
mod remembered;
#[allow(dead_code)]
#[path = "../consumer/topics.rs"]
mod topics;

use std::process::ExitCode;

use args::Number;
use database::Base;
use figures::{Failure, Figures};
use topics::Topics;

/// The options of this benchmark.
const NUMBERS: &[Number] = &[
    Number {
        name: "messages",
        what: "messages of a round, where they are bulk-inserted; others take a part of it",
        least: 4_096,
        default: 200_000,
    },
    Number {
        name: "remembered",
        what: "identities that the larger table holds for `remembered`",
        least: 1_000,
        default: 20_000_000,
    },
];

fn main() -> ExitCode {
    match args::begin("effects", NUMBERS) {
        Ok(begun) => args::measure("effects", begun, true, measure),
        Err(code) => code,
    }
}

async fn measure(figures: &mut Figures) -> Result<(), Failure> {
    let given = |name: &'static str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let brokers = given("HAPAX_TEST_KAFKA");
    let services = ["HAPAX_TEST_POSTGRES", "HAPAX_TEST_MARIADB", "HAPAX_TEST_KAFKA"];
    let without: Vec<&str> = services.into_iter().filter(|name| given(name).is_none()).collect();
    if !without.is_empty() && !figures.args.list {
        println!("# without {}: run scripts/services up, then eval \"$(scripts/services env)\"", without.join(", "));
    }
    let (rounds, messages) = (figures.args.rounds, figures.args.number("messages"));
    figures.head(&format!(
        "rounds {rounds}, messages {messages} of {} bytes in batches of {}",
        topics::PAYLOAD,
        data::BATCH
    ));
    let mut topics = brokers.as_deref().map(Topics::new);
    let measured = all(figures, &mut topics).await;
    if let Some(topics) = topics {
        topics.clean().await?;
    }
    measured
}

async fn all(figures: &mut Figures, topics: &mut Option<Topics>) -> Result<(), Failure> {
    one::<sqlx::Sqlite>(figures, topics).await?;
    one::<sqlx::Postgres>(figures, topics).await?;
    one::<sqlx::MySql>(figures, topics).await
}

/// All figures of a database, if it is there.
async fn one<B: Base>(figures: &mut Figures, topics: &mut Option<Topics>) -> Result<(), Failure> {
    if !B::is_there() {
        return Ok(());
    }
    direct::measure::<B>(figures).await?;
    growth::measure::<B>(figures).await?;
    if let Some(topics) = topics {
        kafka::measure::<B>(figures, topics).await?;
    }
    remembered::measure::<B>(figures).await
}
