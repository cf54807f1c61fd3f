//! What hapax costs, as ratios to bare loops that do the same work by hand.
//!
//! ```text
//! cargo bench --bench ratios --features full -- [--rounds N] [--batches N] [--only NAME]… [--list]
//! ```
//!
//! One line a figure: `name ours bare ratio`. Both sides are messages (of the `_ns` figure: nanoseconds) as the median of
//! all rounds; the ratio is the median of each round's own ratio. In a round both sides run one after the other, in changing order,
//! on new keys and new tables; what they work on is prepared outside the timed part. Services come from the environment
//! (`scripts/services env`); without them only the embedded stores are measured. The consumer has a benchmark of its own.

#![allow(missing_docs, clippy::print_stdout)]

#[path = "../shared/args.rs"]
mod args;
mod bare;
mod batched;
mod cached;
mod data;
mod figures;
mod filter;
mod kinds;
mod stores;

use std::process::ExitCode;

use args::Number;
use figures::{Failure, Figures};
use kinds::Kind;

/// The options of this benchmark.
const NUMBERS: &[Number] = &[Number { name: "batches", what: "batches of 512 in a round", least: 1, default: 40 }];

fn main() -> ExitCode {
    match args::begin("ratios", NUMBERS) {
        Ok(begun) => args::measure("ratios", begun, false, measure),
        Err(code) => code,
    }
}

async fn measure(figures: &mut Figures) -> Result<(), Failure> {
    let (kinds, without) = Kind::available();
    if !without.is_empty() {
        println!(
            "# embedded only, without {}: run scripts/services up, then eval \"$(scripts/services env)\"",
            without.join(", ")
        );
    }
    let (rounds, batches) = (figures.args.rounds, figures.args.number("batches"));
    figures.head(&format!("rounds {rounds}, batches {batches} of {}", data::BATCH));
    cached::duplicate(figures).await?;
    for kind in &kinds {
        stores::measure(figures, kind).await?;
    }
    for kind in &kinds {
        filter::measure(figures, kind).await?;
    }
    for kind in kinds.iter().filter(|kind| kind.is_remote()) {
        batched::measure(figures, kind).await?;
    }
    Ok(())
}
