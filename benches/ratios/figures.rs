//! Rounds, medians, and the table.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use crate::args::Args;

pub type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ours,
    Bare,
}

/// What a figure must reach.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "each benchmark has its own kinds of bars")]
pub enum Bar {
    /// Ours to bare, at least.
    Ratio(f64),
    /// Nanoseconds of ours, at most.
    Nanos(f64),
    /// Ours to bare, at most: for what is better small.
    Most(f64),
    /// It is only stated.
    None,
}

/// What one side of one round did, and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub messages: usize,
    pub took: Duration,
}

impl Run {
    pub fn per_second(self) -> f64 {
        self.messages as f64 / self.took.as_secs_f64()
    }

    fn nanos(self) -> f64 {
        self.took.as_secs_f64() * 1e9 / self.messages as f64
    }
}

pub struct Figures {
    pub args: Args,
    /// Whether the processor time that each side takes, all threads together, is stated too: it is steadier than time on a busy machine.
    pub cpu: bool,
    missed: Vec<String>,
    /// All that could have been asked for.
    named: RefCell<BTreeSet<String>>,
    measured: usize,
}

/// Processor time of this process so far, in hundredths of a second; `None` where there is no `/proc`.
fn cpu() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name before it may hold anything, brackets too.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

impl Figures {
    pub fn new(args: Args) -> Self {
        Self { args, cpu: false, missed: Vec::new(), named: RefCell::default(), measured: 0 }
    }

    pub fn head(&self, what: &str) {
        if !self.args.list {
            println!("# {what}");
            println!("# name ours bare ratio");
        }
    }

    /// Whether a figure was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.named.borrow_mut().insert(name.to_owned());
        self.args.only.is_empty() || self.args.only.iter().any(|only| name.starts_with(only.as_str()))
    }

    /// Whether any of some figures that are measured together was asked for.
    #[allow(dead_code, reason = "not every benchmark has such figures")]
    pub fn wants_any(&self, names: &[impl AsRef<str>]) -> bool {
        // Each is asked for, since each is a figure's name.
        names.iter().filter(|name| self.wants(name.as_ref())).count() > 0
    }

    /// Measures a figure, unless it was not asked for.
    pub async fn measure(
        &mut self,
        name: &str,
        bar: Bar,
        mut side: impl AsyncFnMut(Side) -> Result<Run, Failure>,
    ) -> Result<(), Failure> {
        if !self.wants(name) {
            return Ok(());
        }
        if self.args.list {
            println!("{name}");
            return Ok(());
        }
        let mut rounds = Vec::new();
        let mut spent = [Vec::new(), Vec::new()];
        for round in 0..self.args.rounds {
            let named = |error: Failure| Failure::from(format!("{name}: {error}"));
            let mut timed = async |which| {
                let before = cpu();
                let run = side(which).await.map_err(named)?;
                if let (Some(before), Some(after)) = (before, cpu()) {
                    spent[usize::from(which == Side::Bare)].push((after - before) as f64 * 1e7 / run.messages as f64);
                }
                Ok::<Run, Failure>(run)
            };
            let (ours, bare);
            if round % 2 == 0 {
                ours = timed(Side::Ours).await?;
                bare = timed(Side::Bare).await?;
            } else {
                bare = timed(Side::Bare).await?;
                ours = timed(Side::Ours).await?;
            }
            rounds.push((ours, bare));
        }
        let of = |value: fn(&(Run, Run)) -> f64| median(rounds.iter().map(value).collect());
        let nanos = matches!(bar, Bar::Nanos(_));
        let (ours, bare) = if nanos {
            (of(|round| round.0.nanos()), of(|round| round.1.nanos()))
        } else {
            (of(|round| round.0.per_second()), of(|round| round.1.per_second()))
        };
        let ratio = of(|round| round.0.per_second() / round.1.per_second());
        self.state(name, ours, bare, ratio, bar);
        let [ours, bare] = spent;
        if self.cpu && !ours.is_empty() && !bare.is_empty() {
            println!("#   processor: {:.0} ns a message, {:.0} ns without", median(ours), median(bare));
        }
        Ok(())
    }

    /// States a figure that was measured in another way.
    pub fn state(&mut self, name: &str, ours: f64, bare: f64, ratio: f64, bar: Bar) {
        println!("{name} {ours:.0} {bare:.0} {ratio:.2}");
        self.measured += 1;
        let missed = match bar {
            Bar::Ratio(least) if ratio < least => Some(format!("{name} {ratio:.3} < {least}")),
            Bar::Most(most) if ratio > most => Some(format!("{name} {ratio:.3} > {most}")),
            Bar::Nanos(most) if ours > most => Some(format!("{name} {ours:.0} ns > {most}")),
            _ => None,
        };
        self.missed.extend(missed);
    }

    /// Says what the bars say; or that something was asked for that is not there.
    pub fn close(self, bench: &str) -> ExitCode {
        let named = self.named.into_inner();
        let nothing = |only: &&String| !named.iter().any(|name| name.starts_with(only.as_str()));
        let unknown: Vec<&str> = self.args.only.iter().filter(nothing).map(String::as_str).collect();
        if !unknown.is_empty() {
            let named: Vec<&str> = named.iter().map(String::as_str).collect();
            eprintln!("{bench}: no figure's name begins with {}; there are: {}", unknown.join(", "), named.join(", "));
            return ExitCode::from(2);
        }
        if self.args.list {
            return ExitCode::SUCCESS;
        }
        for missed in &self.missed {
            println!("# MISSED {missed}");
        }
        println!("{}", last(self.measured, named.len(), self.missed.len()));
        ExitCode::SUCCESS
    }
}

/// The last line: what was measured of all there is, and how many bars were missed.
pub fn last(measured: usize, named: usize, missed: usize) -> String {
    match (measured == named, missed) {
        (true, 0) => format!("# every bar is met: all {measured} figures were measured"),
        (false, 0) => format!("# every bar of what was measured is met: {measured} figures of {named}"),
        (_, missed) => format!("# {missed} bars are missed: {measured} figures of {named} were measured"),
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
