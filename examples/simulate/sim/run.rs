//! Runs seeds, and says what came of them.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::flaws::Flaws;
use super::history::Violation;
use super::plan::Plan;
use super::world::World;

#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub flaws: Flaws,
    /// Keep what engines are told and answer, and all of the history.
    pub verbose: bool,
    /// Go on after a seed that failed.
    pub go_on: bool,
}

/// What came of one seed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub messages: u64,
    pub events: u64,
    pub effects: u64,
    /// Effects beyond a message's first, and how many might have been.
    pub repeated: u64,
    pub explained: u64,
    pub crashes: u64,
    pub violation: Option<Violation>,
    /// The last of the history, or all of it; the settings first.
    pub trace: Vec<String>,
}

/// Lines of the history that a failing seed prints.
const TAIL: usize = 60;

/// Runs one seed.
pub fn seed(seed: u64, options: &Options) -> Report {
    let plan = Plan::new(seed);
    let messages = plan.messages.len() as u64;
    let mut world = World::new(plan, options.flaws, options.verbose);
    let panicked = catch_unwind(AssertUnwindSafe(|| world.live())).err();
    let mut violation = world.violation.take();
    if let Some(panic) = panicked {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
        violation = Some(Violation { invariant: "panic", text });
    }
    let mut trace = Vec::new();
    if options.verbose || violation.is_some() {
        trace.push(world.plan.summary());
        if options.verbose {
            trace.extend(
                (0..)
                    .zip(&world.plan.messages)
                    .map(|(number, message): (u32, _)| format!("message {number}: {message:?}")),
            );
        }
        let lines = match &world.verbose {
            Some(lines) => lines.clone(),
            None => {
                let history = &world.history;
                history[history.len().saturating_sub(TAIL)..].iter().map(ToString::to_string).collect()
            }
        };
        trace.extend(lines);
    }
    Report {
        seed,
        messages,
        events: world.events,
        effects: world.checker.effects,
        repeated: world.checker.repeated,
        explained: world.checker.explained,
        crashes: world.crashes,
        violation,
        trace,
    }
}

/// What a failing seed prints.
pub fn explain(report: &Report, flaws: Flaws) -> String {
    let mut text = String::new();
    let Some(violation) = &report.violation else { return text };
    for line in &report.trace {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "invariant: {}", violation.invariant);
    let _ = writeln!(text, "what: {}", violation.text);
    let flaw = if flaws == Flaws::default() { String::new() } else { format!(" --flaw {}", flaws.name()) };
    let _ = writeln!(
        text,
        "replay: cargo run --release --features full --example simulate -- --seed {}{flaw} --trace",
        report.seed
    );
    text
}

/// What came of many.
#[derive(Debug, Default)]
pub struct Total {
    pub seeds: u64,
    pub messages: u64,
    pub events: u64,
    pub effects: u64,
    pub repeated: u64,
    pub explained: u64,
    pub crashes: u64,
    pub took: Duration,
    /// The lowest seed that failed.
    pub failed: Option<Report>,
    /// All that failed.
    pub failures: Vec<(u64, Violation)>,
}

/// Runs a range of seeds on so many threads, until one fails.
pub fn many(from: u64, to: u64, threads: usize, options: &Options) -> Total {
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Total::default());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut own = Total::default();
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= to {
                        break;
                    }
                    let report = seed(at, options);
                    own.add(&report);
                    if let Some(violation) = &report.violation {
                        own.failures.push((at, violation.clone()));
                        stop.store(!options.go_on, Ordering::Relaxed);
                        if own.failed.is_none() {
                            own.failed = Some(report);
                        }
                    }
                }
                if let Ok(mut total) = total.lock() {
                    total.join(own);
                }
            });
        }
    });
    let mut total = total.into_inner().unwrap_or_default();
    total.took = began.elapsed();
    total
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.messages += report.messages;
        self.events += report.events;
        self.effects += report.effects;
        self.repeated += report.repeated;
        self.explained += report.explained;
        self.crashes += report.crashes;
    }

    fn join(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.messages += other.messages;
        self.events += other.events;
        self.effects += other.effects;
        self.repeated += other.repeated;
        self.explained += other.explained;
        self.crashes += other.crashes;
        self.failures.extend(other.failures);
        self.failures.sort_by_key(|(seed, _)| *seed);
        let later = |one: &Report| self.failed.as_ref().is_none_or(|first| one.seed < first.seed);
        if other.failed.as_ref().is_some_and(later) {
            self.failed = other.failed;
        }
    }
}
