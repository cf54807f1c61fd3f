//! The flags.

use std::ffi::OsString;

use crate::flags::{Flag, Given, describe};

const FLAGS: &[Flag] = &[
    ("brokers", "HOST:PORT,…", "a real Kafka (default: a mock cluster in this process)"),
    (
        "database",
        "URL",
        "where inbox, ledger and customers are: sqlite:PATH, postgres://…, mysql://… (default: SQLite in a temporary folder)",
    ),
    (
        "dedup",
        "on|off",
        "off: what makes two orders the same is their position, not their id; it must end with doubled orders (default: on)",
    ),
    ("orders", "N", "how many (default: 20000); for each hundred, 5 are produced again"),
    ("failing", "N", "of a hundred orders, those that fail once or twice before they succeed (default: 5)"),
    ("workers", "N", "how many worker processes (default: 2)"),
    ("kills", "N", "how often a process is killed with SIGKILL: the consumer first, then workers (default: 3)"),
    ("seed", "N", "which orders, and who is killed (default: 1)"),
];

/// What the mock cluster keeps in a partition is bounded: 5 MiB.
const MOCK_HOLDS: u64 = 100_000;

pub fn help() -> String {
    format!(
        "Stores orders in an inbox while nobody works, then works the backlog, each order once, while consumer and workers are killed.\n\n\
         Usage: cargo run --release --example inbox -- [FLAGS]\n\n{}\n\
         The last line says OK and the exit code is 0 only if every order had its effect once, in the order of its customer, and none is left; it\n\
         is 1 if not, and 2 if nothing could be started. PostgreSQL, MySQL and MariaDB are built in by --features postgres and --features mysql.",
        describe(FLAGS)
    )
}

#[derive(Clone, Debug)]
pub struct Args {
    pub brokers: Option<String>,
    pub database: Option<String>,
    pub dedup: bool,
    pub orders: u64,
    pub failing: u64,
    pub workers: u64,
    pub kills: u64,
    pub seed: u64,
}

/// What the flags ask for; `None` for `--help`.
pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Option<Args>, String> {
    let Some(given) = Given::read(FLAGS, None, words)? else { return Ok(None) };
    let number = |name, least, most, default| given.number(name, least, most).map(|number| number.unwrap_or(default));
    let args = Args {
        brokers: given.text("brokers").map(str::to_owned),
        database: given.text("database").map(str::to_owned),
        dedup: given.one_of("dedup", &[("on", true), ("off", false)], true)?,
        orders: number("orders", 100, 10_000_000, 20_000)?,
        failing: number("failing", 0, 100, 5)?,
        workers: number("workers", 1, 100, 2)?,
        kills: number("kills", 0, 100, 3)?,
        seed: number("seed", 0, u64::MAX, 1)?,
    };
    if args.brokers.is_none() && args.orders > MOCK_HOLDS {
        return Err(format!(
            "--orders {}: the mock cluster holds {MOCK_HOLDS} at most; ask for fewer, or give --brokers",
            args.orders
        ));
    }
    Ok(Some(args))
}
