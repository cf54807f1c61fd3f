//! What the inbox costs, as ratios to what is written by hand.
//!
//! ```text
//! cargo bench --bench inbox --features full -- [--rounds N] [--messages N] [--grown N] [--only NAME]… [--list]
//! ```
//!
//! One line a figure: `name ours bare ratio`, in messages per second, each the median of all rounds; the ratio is the median of each
//! round's own ratio. In a round both sides run one after the other, in changing order, on tables of their own that are filled
//! outside the timed part. For each database (`sqlite_…`, `postgres_…`, `mariadb_…`):
//!
//! | figure | ours | against |
//! |---|---|---|
//! | `accept` | poll batches of 512, each with its identity, its window and its open row, in one transaction | in one table with a unique identity and the index by which open work is found: begin, one multi-row insert of the same, commit |
//! | `accept_grown` | the same with 10 million succeeded messages in the table | with none |
//! | `accept_wal_bytes`, `accept_table_bytes` | bytes a message: written to the log, and kept by all tables | the same by hand |
//! | `work` | one worker at level L2, 512 in a batch, a handler that does nothing, from start to stop | in one table with the index it needs, for each 512: begin, `SELECT … LIMIT 512 FOR UPDATE SKIP LOCKED`, update, commit |
//! | `work_hand_written` | the same | one message in each transaction, by hand |
//! | `by_key` | the same in the order of keys, a thousand of them | without order |
//! | `workers_8` | eight workers | one |
//! | `grown` | the same with 10 million succeeded messages in the table | with none |
//!
//! Identities are like UUIDs, which come in no order: over ascending ones an index is written at its end alone, which digests, as the inbox keeps them,
//! cannot have.
//!
//! The table by hand keeps a state and a time, and knows no attempts, no lease, no failure, no history and no priority.
//!
//! Services come from the environment (`scripts/services env`); without them only SQLite is measured.

#![allow(missing_docs, clippy::print_stdout)]

mod accept;
#[path = "../shared/args.rs"]
mod args;
#[allow(dead_code)]
#[path = "../ratios/bare/mod.rs"]
mod bare;
#[allow(dead_code)]
#[path = "../ratios/data.rs"]
mod data;
#[allow(dead_code)]
#[path = "../effects/database/mod.rs"]
mod database;
#[allow(dead_code)]
#[path = "../ratios/figures.rs"]
mod figures;
mod hand;
#[allow(dead_code)]
#[path = "../ratios/kinds.rs"]
mod kinds;
mod work;

use std::process::ExitCode;

use accept::Taking;
use args::Number;
use figures::{Failure, Figures};

/// An identity as producers choose them: random, so that the index over them is written all over, on either side.
pub fn uuid(n: usize) -> String {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let (high, low) = (mix(n as u64 ^ 0x9e37_79b9_7f4a_7c15), mix(n as u64 ^ 0xd6e8_feb8_6659_fd93));
    let part = |number: u64, from: u32, digits: u32| (number >> from) & ((1 << (4 * digits)) - 1);
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        part(high, 32, 8),
        part(high, 16, 4),
        part(high, 0, 3),
        part(low, 48, 3),
        part(low, 0, 12)
    )
}

/// Bytes of a payload.
pub const PAYLOAD: usize = 200;

/// The options of this benchmark.
const NUMBERS: &[Number] = &[
    Number { name: "messages", what: "messages of a round; one by one, a part of it", least: 4_096, default: 100_000 },
    Number {
        name: "grown",
        what: "succeeded messages that the table holds for `grown`",
        least: 1_000,
        default: 10_000_000,
    },
];

fn main() -> ExitCode {
    match args::begin("inbox", NUMBERS) {
        Ok(begun) => args::measure("inbox", begun, true, measure),
        Err(code) => code,
    }
}

async fn measure(figures: &mut Figures) -> Result<(), Failure> {
    let (rounds, messages) = (figures.args.rounds, figures.args.number("messages"));
    figures.head(&format!("rounds {rounds}, messages {messages} of {PAYLOAD} bytes in batches of {}", data::BATCH));
    one::<sqlx::Sqlite>(figures).await?;
    one::<sqlx::Postgres>(figures).await?;
    one::<sqlx::MySql>(figures).await
}

/// All figures of a database, if it is there.
async fn one<B: Taking>(figures: &mut Figures) -> Result<(), Failure> {
    if !B::is_there() {
        println!("# without {}: run scripts/services up, then eval \"$(scripts/services env)\"", B::WORD);
        return Ok(());
    }
    accept::measure::<B>(figures).await?;
    work::measure::<B>(figures).await
}
