//! The command line.

use lexopt::prelude::*;

use crate::figures::Failure;

pub const USAGE: &str = "\
cargo bench --bench consumer --features full -- [options]

  --only NAME    measure only figures whose name begins so; may be given again
  --rounds N     rounds of each figure, at least 1 (default 5)
  --messages N   messages of the fast figures, at least 10,000 (default 1,000,000); slower ones take a part of it
  --list         print the names and end
  --help         print this and end";

#[derive(Debug)]
pub struct Args {
    pub only: Vec<String>,
    pub rounds: usize,
    pub messages: usize,
    pub list: bool,
    /// This process is the one whose memory is measured.
    pub memory_of: Option<String>,
}

/// `None`: there is nothing to measure.
pub fn read() -> Result<Option<Args>, Failure> {
    let mut args = Args { only: Vec::new(), rounds: 5, messages: 1_000_000, list: false, memory_of: None };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("only") => args.only.push(parser.value()?.string()?),
            Long("rounds") => args.rounds = parser.value()?.parse::<usize>()?.max(1),
            Long("messages") => args.messages = parser.value()?.parse::<usize>()?.max(10_000),
            Long("list") => args.list = true,
            Long("memory-of") => args.memory_of = Some(parser.value()?.string()?),
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
