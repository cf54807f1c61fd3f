//! What the consumer costs on a real Kafka, as ratios to loops that are written by hand.
//!
//! ```text
//! cargo bench --bench consumer --features full -- [--rounds N] [--messages N] [--only NAME]… [--list]
//! ```
//!
//! One line a figure: `name ours bare ratio`, in messages per second, each the median of all rounds; the ratio is the median of each
//! round's own ratio. In a round both sides run one after the other, in changing order, in new groups and on new tables. Timed from the
//! first message handled to the last one settled, so that joining the group counts for neither side.
//!
//! | figure | against |
//! |---|---|
//! | `plain`, `position_memory` (a window), `position_memory_records`, `duplicates_cached` | a `BaseConsumer` loop that reads the same parts of each message and commits once a second |
//! | `header_STORE` | the slower of that loop, and of claims and settles of the same number of keys by hand, 512 at a time |
//! | `slow_by_key` | concurrency ÷ 10 ms; `slow_by_key_timer`: against 1,000 tasks that do nothing but wait 10 ms |
//! | `hand_written_redis` | `StreamConsumer`, `SET NX EX`, handler, commit, one message at a time |
//! | `hand_written_pipelined` | poll up to 512, one pipeline of `SET NX`, handlers, one commit: loses what it claimed when it is killed |
//! | `latency_STORE_p50`, `_p99` | microseconds at 100 messages a second: ours less a bare loop's, against one round trip to the store |
//! | `memory_MIB` | peak memory with a backlog of 1 GB and handlers that wait, against the stated bound and librdkafka's |
//!
//! Behind each figure stands the processor time that a message takes on either side, the group's coming and going included.
//!
//! Services come from the environment (`scripts/services env`); Kafka is needed.

#![allow(missing_docs, clippy::print_stdout)]

#[path = "../shared/args.rs"]
mod args;
#[allow(dead_code)]
#[path = "../ratios/bare/mod.rs"]
mod bare;
#[allow(dead_code)]
#[path = "../ratios/data.rs"]
mod data;
#[allow(dead_code)]
#[path = "../ratios/figures.rs"]
mod figures;
#[allow(dead_code)]
#[path = "../ratios/kinds.rs"]
mod kinds;
mod latency;
mod loops;
mod memory;
mod modes;
mod ours;
mod slow;
mod topics;

use std::process::ExitCode;

use args::Number;
use figures::{Failure, Figures};

/// The options of this benchmark.
const NUMBERS: &[Number] = &[Number {
    name: "messages",
    what: "messages of the fast figures; slower ones take a part of it",
    least: 10_000,
    default: 1_000_000,
}];

fn main() -> ExitCode {
    let (args, runtime) = match args::begin("consumer", NUMBERS) {
        Ok(begun) => begun,
        Err(code) => return code,
    };
    let Some(brokers) = std::env::var("HAPAX_TEST_KAFKA").ok().filter(|brokers| !brokers.is_empty()) else {
        eprintln!(
            "consumer: HAPAX_TEST_KAFKA is not set: run scripts/services up, then eval \"$(scripts/services env)\""
        );
        return ExitCode::FAILURE;
    };
    if let Some(topic) = &args.memory_of {
        return match runtime.block_on(memory::child(&brokers, topic)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("consumer: {error}");
                ExitCode::FAILURE
            }
        };
    }
    args::measure("consumer", (args, runtime), true, async |figures| measure(figures, &brokers).await)
}

async fn measure(figures: &mut Figures, brokers: &str) -> Result<(), Failure> {
    let (rounds, messages) = (figures.args.rounds, figures.args.number("messages"));
    figures.head(&format!(
        "rounds {rounds}, messages {messages} of {} bytes, {} partitions",
        topics::PAYLOAD,
        topics::PARTITIONS
    ));
    let mut topics = topics::Topics::new(brokers);
    let mut measured = modes::measure(figures, &mut topics).await;
    if measured.is_ok() {
        measured = slow::measure(figures, &mut topics).await;
    }
    if measured.is_ok() {
        measured = latency::measure(figures, &mut topics).await;
    }
    if measured.is_ok() {
        measured = memory::measure(figures, &mut topics).await;
    }
    topics.clean().await?;
    measured
}
