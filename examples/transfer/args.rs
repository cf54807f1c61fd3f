//! The flags.

use std::ffi::OsString;
use std::time::Duration;

use crate::flags::{Flag, Given, describe};

const FLAGS: &[Flag] = &[
    ("brokers", "HOST:PORT,…", "a real Kafka (default: a mock cluster in this process)"),
    (
        "database",
        "URL",
        "where accounts, ledger and hapax's rows are: sqlite:PATH, postgres://…, mysql://… (default: SQLite in a temporary folder)",
    ),
    (
        "dedup",
        "on|off",
        "off: the same service without hapax's memory; it must end with doubled transfers (default: on)",
    ),
    ("handler", "each|batch", "one transfer at a time, or all that are new at once (default: each)"),
    ("transfers", "N", "how many (default: 12000); for each hundred, 25 are produced again"),
    ("kills", "N", "how often the service is killed with SIGKILL (default: 20)"),
    ("pauses", "N", "how often it is stopped until another has taken its place (default: 2)"),
    ("seconds", "N", "over how long that is spread (default: 60); it takes longer where the service does"),
    (
        "work-ms",
        "N",
        "how long a transfer takes inside its transaction, so that many a kill finds one open (default: 1)",
    ),
    ("seed", "N", "which transfers, and what happens when (default: 1)"),
];

/// What the mock cluster keeps in a partition is bounded: 5 MiB.
const MOCK_HOLDS: u64 = 100_000;

pub fn help() -> String {
    format!(
        "Moves money between 1,000 accounts, once for each transfer, while the service that moves it is killed and stopped.\n\n\
         Usage: cargo run --release --example transfer -- [FLAGS]\n\n{}\n\
         The last line says OK and the exit code is 0 only if every transfer was applied once and the balances say so; it is 1 if not, and 2\n\
         if nothing could be started. PostgreSQL, MySQL and MariaDB are built in by --features postgres and --features mysql.",
        describe(FLAGS)
    )
}

#[derive(Clone, Debug)]
pub struct Args {
    pub brokers: Option<String>,
    pub database: Option<String>,
    pub dedup: bool,
    pub batches: bool,
    pub transfers: u64,
    pub kills: u64,
    pub pauses: u64,
    pub length: Duration,
    pub work: Duration,
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
        batches: given.one_of("handler", &[("each", false), ("batch", true)], false)?,
        transfers: number("transfers", 100, 10_000_000, 12_000)?,
        kills: number("kills", 0, 1_000, 20)?,
        pauses: number("pauses", 0, 100, 2)?,
        length: Duration::from_secs(number("seconds", 1, 86_400, 60)?),
        work: given.millis("work-ms", 0)?.unwrap_or(Duration::from_millis(1)),
        seed: number("seed", 0, u64::MAX, 1)?,
    };
    if args.brokers.is_none() && args.transfers > MOCK_HOLDS {
        return Err(format!(
            "--transfers {}: the mock cluster holds {MOCK_HOLDS} at most; ask for fewer, or give --brokers",
            args.transfers
        ));
    }
    Ok(Some(args))
}
