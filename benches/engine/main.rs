//! What a message costs without Kafka: in the engine itself, which is nothing but events in and commands out, and in all that is around it
//! from the batch's buffer to the message's end (`pump_…`; see [`pump`]). On one thread.
//!
//! `cargo bench --bench engine --features full [-- MODE [MESSAGES] | --list]` prints `engine_MODE ns_per_message` or `pump_MODE …`. Times are noisy; instruction counts are not:
//! `scripts/instructions` runs one mode under callgrind.

mod pump;

use std::hint::black_box;
use std::time::{Duration, Instant};

use hapax::engine::{Answer, Arrival, Assigned, Command, Config, Engine, Event, Order, Ran, Settled, Subject, Ticket};
use hapax::frontier::Epoch;
use hapax::identity::{Fingerprint, Key};

/// One way to be driven.
struct Mode {
    name: &'static str,
    order: Order,
    /// Whether messages have records.
    known: bool,
    /// Partitions that are assigned, each with messages in turn.
    partitions: u64,
    /// Messages that come together, of one partition.
    batch: usize,
}

const fn mode(name: &'static str, order: Order, known: bool) -> Mode {
    Mode { name, order, known, partitions: 4, batch: 512 }
}

const MODES: [Mode; 7] = [
    mode("plain", Order::Partition, false),
    mode("partition", Order::Partition, true),
    mode("key", Order::Key, true),
    mode("unordered", Order::Unordered, true),
    mode("plain_unordered", Order::Unordered, false),
    // What many partitions cost where messages come a few at a time, as they do when there is nothing to catch up with.
    Mode { batch: 8, ..mode("plain_by_eight", Order::Partition, false) },
    Mode { batch: 8, partitions: 500, ..mode("plain_by_eight_of_500", Order::Partition, false) },
];

/// Everything around the engine: says yes to all that it asks, at once.
struct Driver {
    engine: Engine,
    now: Duration,
    free: Vec<Ticket>,
    next: u32,
    events: Vec<Event>,
    commands: Vec<Command>,
    finished: usize,
}

impl Driver {
    fn new(order: Order, partitions: u64) -> Self {
        let engine = Engine::new(Config { order, ..Config::default() });
        let mut driver = Self {
            engine,
            now: Duration::ZERO,
            free: Vec::new(),
            next: 0,
            events: Vec::new(),
            commands: Vec::new(),
            finished: 0,
        };
        let assigned = |n: u64| Assigned {
            topic: "orders".into(),
            partition: i32::try_from(n).unwrap_or(0),
            epoch: Epoch::new(n),
            committed: None,
        };
        driver.feed(Event::Assigned((1..=partitions).map(assigned).collect()));
        driver
    }

    fn ticket(&mut self) -> Ticket {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            Ticket(self.next - 1)
        })
    }

    fn feed(&mut self, event: Event) {
        self.events.push(event);
        while let Some(event) = self.events.pop() {
            self.now += Duration::from_micros(100);
            self.engine.handle(self.now, event, &mut self.commands);
            for command in std::mem::take(&mut self.commands) {
                match command {
                    Command::Claim(tickets) => {
                        let answers = tickets.into_iter().map(|ticket| (ticket, Answer::Acquired { attempt: 1 }));
                        self.events.push(Event::Claimed(answers.collect()));
                    }
                    Command::Run(starts) => {
                        let ends = starts.into_iter().map(|start| (start.ticket, Ran::Succeeded));
                        self.events.push(Event::Ran(ends.collect()));
                    }
                    Command::Settle(told) => {
                        let answers = told.into_iter().map(|(ticket, _)| (ticket, Settled::Recorded));
                        self.events.push(Event::Settled(answers.collect()));
                    }
                    Command::Finished(finished) => {
                        self.finished += finished.len();
                        self.free.extend(finished.into_iter().map(|(ticket, _)| ticket));
                    }
                    Command::Commit(positions) => self.events.push(Event::Committed { positions, accepted: true }),
                    other => {
                        black_box(other);
                    }
                }
            }
        }
    }
}

fn run(mode: &Mode, messages: usize) -> Duration {
    let mut driver = Driver::new(mode.order, mode.partitions);
    let began = Instant::now();
    let mut at = 0_u64;
    while driver.finished < messages {
        let arrivals = (0..mode.batch)
            .map(|_| {
                let n = at;
                at += 1;
                let mut key = [0; 16];
                key[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
                let known = Subject::Known { key: Key::from_bytes(key), fingerprint: Fingerprint::from_bytes(key) };
                Arrival {
                    ticket: driver.ticket(),
                    epoch: Epoch::new(1 + (n / mode.batch as u64) % mode.partitions),
                    offset: i64::try_from(n).unwrap_or(i64::MAX),
                    lane: Some(n % 1_000),
                    subject: if mode.known { known } else { Subject::Bare },
                }
            })
            .collect();
        driver.feed(Event::Delivered(arrivals));
    }
    began.elapsed()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if std::env::args().any(|arg| arg == "--list") {
        MODES.iter().map(|mode| mode.name).chain(pump::MODES).for_each(|mode| println!("{mode}"));
        return;
    }
    let messages = args.get(1).and_then(|text| text.parse().ok()).unwrap_or(2_000_000);
    for mode in MODES.iter().filter(|mode| args.first().is_none_or(|name| name == mode.name)) {
        let took = run(mode, messages);
        println!("engine_{} {:.0}", mode.name, took.as_nanos() as f64 / messages as f64);
    }
    // What needs a service is run where it is named.
    let named = pump::WITH_REDIS.into_iter().filter(|mode| args.first().is_some_and(|name| name == mode));
    for mode in pump::MODES.into_iter().filter(|mode| args.first().is_none_or(|name| name == mode)).chain(named) {
        match pump::run(mode, messages as u64) {
            Some(took) => println!("{mode} {:.0}", took.as_nanos() as f64 / messages as f64),
            None => eprintln!("engine: {mode} needs HAPAX_TEST_REDIS: see scripts/services"),
        }
    }
}
