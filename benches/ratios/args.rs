//! The command line.

use lexopt::prelude::*;

use crate::figures::Failure;

pub const USAGE: &str = "\
cargo bench --bench ratios --features full -- [options]

  --only NAME    measure only figures whose name begins so; may be given again
  --rounds N     rounds of each figure, at least 1 (default 5)
  --batches N    batches of 512 in a round, at least 1 (default 40)
  --list         print the names and end
  --help         print this and end";

#[derive(Debug)]
pub struct Args {
    pub only: Vec<String>,
    pub rounds: usize,
    pub batches: usize,
    pub list: bool,
}

/// `None`: there is nothing to measure.
pub fn read() -> Result<Option<Args>, Failure> {
    let mut args = Args { only: Vec::new(), rounds: 5, batches: 40, list: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("only") => args.only.push(parser.value()?.string()?),
            Long("rounds") => args.rounds = parser.value()?.parse::<usize>()?.max(1),
            Long("batches") => args.batches = parser.value()?.parse::<usize>()?.max(1),
            Long("list") => args.list = true,
            Long("help") => {
                println!("{USAGE}");
                return Ok(None);
            }
            // What `cargo bench` adds by itself.
            Long("bench") => {}
            // `cargo test --all-targets` runs benches too: nothing to check here.
            Long("test") => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(args))
}
