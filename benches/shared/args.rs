//! The command line that the benchmarks have in common.

use std::fmt::Write as _;
use std::process::ExitCode;

use lexopt::prelude::*;
use tokio::runtime::Runtime;

use crate::figures::{Failure, Figures};

/// An option that takes a number.
#[derive(Debug)]
pub struct Number {
    pub name: &'static str,
    pub what: &'static str,
    pub least: usize,
    pub default: usize,
}

#[derive(Debug)]
pub struct Args {
    pub only: Vec<String>,
    pub rounds: usize,
    pub list: bool,
    /// This process is the one whose memory is measured.
    pub memory_of: Option<String>,
    numbers: Vec<(&'static str, usize)>,
}

impl Args {
    /// What an option of the benchmark's own says.
    pub fn number(&self, name: &str) -> usize {
        self.numbers.iter().find(|(own, _)| *own == name).map_or(0, |(_, number)| *number)
    }
}

/// Reads the command line and makes a runtime; or says with which code to end at once.
pub fn begin(bench: &str, numbers: &[Number]) -> Result<(Args, Runtime), ExitCode> {
    let args = match read(bench, numbers, lexopt::Parser::from_env()) {
        Ok(Some(args)) => args,
        Ok(None) => return Err(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("{bench}: {error}\n\n{}", usage(bench, numbers));
            return Err(ExitCode::from(2));
        }
    };
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => Ok((args, runtime)),
        Err(error) => {
            eprintln!("{bench}: no runtime: {error}");
            Err(ExitCode::FAILURE)
        }
    }
}

/// Measures all figures. With `cpu`, the processor time that a message takes stands behind each.
pub fn measure(
    bench: &str,
    (args, runtime): (Args, Runtime),
    cpu: bool,
    measure: impl AsyncFnOnce(&mut Figures) -> Result<(), Failure>,
) -> ExitCode {
    let mut figures = Figures::new(args);
    figures.cpu = cpu;
    match runtime.block_on(measure(&mut figures)) {
        Ok(()) => figures.close(bench),
        Err(error) => {
            eprintln!("{bench}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(bench: &str, numbers: &[Number]) -> String {
    let mut text = format!(
        "cargo bench --bench {bench} --features full -- [options]\n\n  \
         --only NAME      measure only figures whose name begins so; may be given again\n  \
         --rounds N       rounds of each figure, at least 1 (default 5)\n"
    );
    for Number { name, what, least, default } in numbers {
        let option = format!("--{name} N");
        let _ = writeln!(text, "  {option:<16} {what}, at least {least} (default {default})");
    }
    text + "  --list           print the names and end\n  --help           print this and end"
}

/// `None`: there is nothing to measure.
pub fn read(bench: &str, numbers: &[Number], mut parser: lexopt::Parser) -> Result<Option<Args>, Failure> {
    let given = numbers.iter().map(|number| (number.name, number.default)).collect();
    let mut args = Args { only: Vec::new(), rounds: 5, list: false, memory_of: None, numbers: given };
    while let Some(arg) = parser.next()? {
        let own = match &arg {
            Long(name) => numbers.iter().find(|number| number.name == *name),
            _ => None,
        };
        if let Some(number) = own {
            let value = parser.value()?.parse::<usize>()?.max(number.least);
            args.numbers.iter_mut().filter(|(name, _)| *name == number.name).for_each(|(_, own)| *own = value);
            continue;
        }
        match arg {
            Long("only") => args.only.push(parser.value()?.string()?),
            Long("rounds") => args.rounds = parser.value()?.parse::<usize>()?.max(1),
            Long("list") => args.list = true,
            Long("memory-of") => args.memory_of = Some(parser.value()?.string()?),
            Long("help") => {
                println!("{}", usage(bench, numbers));
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
