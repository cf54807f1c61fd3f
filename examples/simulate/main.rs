//! Runs the engine in a seeded world in which everything goes wrong, and checks that nothing is lost or doubled.
//!
//! ```text
//! cargo run --release --features full --example simulate -- --seeds 0..10000
//! cargo run --release --features full --example simulate -- --seed 4711 --trace
//! cargo run --release --features full --example simulate -- --flaws
//! ```
//!
//! `--seeds A..B` runs a range on all cores (`--threads N`); `--seed N --trace` prints one seed's whole history with what each engine was told and
//! answered; `--go-on` lists all that fail; `--flaws` builds bugs in, one after the other, and prints how many seeds each took to be found; `--flaw NAME` builds one into the seeds given.

mod sim;

use std::process::ExitCode;

use sim::flaws::{self, Flaws};
use sim::run::{self, Options};

const USAGE: &str = "simulate [--seeds A..B] [--threads N] [--go-on] [--flaw NAME] | --seed N [--trace] [--flaw NAME] | --flaws [--most N]";

struct Arguments {
    from: u64,
    to: u64,
    threads: usize,
    one: Option<u64>,
    flaws: bool,
    most: u64,
    options: Options,
}

fn arguments() -> Result<Arguments, lexopt::Error> {
    use lexopt::prelude::{Long, ValueExt};
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut given =
        Arguments { from: 0, to: 10_000, threads, one: None, flaws: false, most: 5_000, options: Options::default() };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seeds") => {
                let range = parser.value()?.string()?;
                let (from, to) = range.split_once("..").ok_or("--seeds A..B")?;
                given.from = from.parse().map_err(|_| "--seeds A..B")?;
                given.to = to.parse().map_err(|_| "--seeds A..B")?;
            }
            Long("seed") => given.one = Some(parser.value()?.parse()?),
            Long("threads") => given.threads = parser.value()?.parse()?,
            Long("trace") => given.options.verbose = true,
            Long("go-on") => given.options.go_on = true,
            Long("flaws") => given.flaws = true,
            Long("most") => given.most = parser.value()?.parse()?,
            Long("flaw") => {
                let name = parser.value()?.string()?;
                let named = Flaws::all().into_iter().find(|flaws| flaws.name() == name);
                given.options.flaws = named.ok_or("no such flaw")?;
            }
            Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(given)
}

fn main() -> ExitCode {
    let given = match arguments() {
        Ok(given) => given,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if given.flaws {
        let found: Vec<_> = Flaws::all().into_iter().map(|flaws| (flaws, flaws::hunt(flaws, given.most))).collect();
        print!("{}", flaws::table(&found));
        let all = found.iter().all(|(_, found)| found.is_some());
        return if all { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if let Some(seed) = given.one {
        let report = run::seed(seed, &given.options);
        if report.violation.is_some() {
            print!("{}", run::explain(&report, given.options.flaws));
            println!("FAILED seed={seed}");
            return ExitCode::FAILURE;
        }
        report.trace.iter().for_each(|line| println!("{line}"));
        println!(
            "OK seed={seed} messages={} events={} effects={} repeated={} explained={} crashes={}",
            report.messages, report.events, report.effects, report.repeated, report.explained, report.crashes
        );
        return ExitCode::SUCCESS;
    }
    let total = run::many(given.from, given.to, given.threads, &given.options);
    if let Some(report) = total.failed {
        print!("{}", run::explain(&report, given.options.flaws));
        if given.options.go_on {
            total.failures.iter().for_each(|(seed, one)| println!("seed {seed}: {}: {}", one.invariant, one.text));
            println!("{} of {} failed", total.failures.len(), total.seeds);
        }
        println!("FAILED seed={}", report.seed);
        return ExitCode::FAILURE;
    }
    let seconds = total.took.as_secs_f64();
    println!(
        "OK seeds={} messages={} events={} effects={} repeated={} explained={} crashes={} seconds={seconds:.1} threads={} seeds_per_second={:.0} per_core={:.0}",
        total.seeds,
        total.messages,
        total.events,
        total.effects,
        total.repeated,
        total.explained,
        total.crashes,
        given.threads,
        total.seeds as f64 / seconds,
        total.seeds as f64 / seconds / given.threads as f64
    );
    ExitCode::SUCCESS
}
