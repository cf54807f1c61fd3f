//! An observer that feeds the `metrics` facade.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::metrics::{Counter, Gauge, Histogram, Label, Unit, counter, gauge, histogram};
use ::metrics::{describe_counter, describe_gauge, describe_histogram};

use super::{Circuit, Endings, Observed, Observer, Operation, Outcome, Place, Snapshot, Worked};

/// Feeds counters, gauges and histograms to the `metrics` facade: `.observer(Metrics::new())`.
///
/// Install the recorder (such as `metrics-exporter-prometheus`) before the consumer runs. One of these for each consumer.
///
/// | name | kind | labels beside `group` and `handler` | what |
/// |---|---|---|---|
/// | `hapax_messages_delivered_total` | counter | `topic` | messages from Kafka |
/// | `hapax_bytes_delivered_total` | counter | `topic` | their keys and payloads |
/// | `hapax_messages_finished_total` | counter | `topic`, `outcome`: `handled`, `redelivered`, `same_id`, `conflicts`, `dead` | messages that may be committed |
/// | `hapax_handler_seconds` | histogram | `topic`, `outcome`: see [`Outcome::name`] | handler calls |
/// | `hapax_retries_total` | counter | `topic` | handler calls that were no first attempt |
/// | `hapax_claims_total` | counter | `outcome`: `acquired`, `took_over`, `redelivered`, `same_id`, `in_flight`, `not_due`, `dead`, `conflicts` | what the store said to claims |
/// | `hapax_settles_total` | counter | `outcome`: `recorded`, `buried`, `late`, `refused` | what the store said to settles |
/// | `hapax_store_seconds` | histogram | `operation`: `claim`, `settle` | calls to the store |
/// | `hapax_store_batch` | histogram | `operation` | messages in a call to the store |
/// | `hapax_store_failures_total` | counter | `operation` | calls that failed |
/// | `hapax_late_results_total` | counter | | results of assignments that were over |
/// | `hapax_messages_fenced_total` | counter | | messages left to another process that has taken their partition: rolled back here |
/// | `hapax_messages_dropped_total` | counter | | messages dropped unfinished: they are delivered again |
/// | `hapax_dead_letters_total` | counter | | dead letters acknowledged by the broker |
/// | `hapax_dead_letter_failures_total` | counter | | dead letters that could not be produced, and are produced again |
/// | `hapax_rebalances_total` | counter | `kind`: `assigned`, `revoked`, `lost` | partitions that came and went |
/// | `hapax_revoke_seconds` | histogram | | how long handlers were waited for when partitions went |
/// | `hapax_pauses_total` | counter | | partitions that were paused |
/// | `hapax_commits_total` | counter | `result`: `accepted`, `refused` | commits |
/// | `hapax_circuit_open` | gauge | `what`: `store`, `downstream` | 1 while it is down |
/// | `hapax_messages_unfinished` | gauge | | messages delivered and unfinished |
/// | `hapax_handlers_running` | gauge | | handler calls that run |
/// | `hapax_claims_held` | gauge | | claims whose handlers have not begun |
/// | `hapax_messages_parked` | gauge | | messages that wait for a retry, or for another owner |
/// | `hapax_partitions_assigned` | gauge | | partitions that are ours |
/// | `hapax_partitions_paused` | gauge | | partitions that take nothing in |
/// | `hapax_lag` | gauge | `topic` | offsets from the frontier to the end of the partitions, where known |
/// | `hapax_frontier_behind` | gauge | `topic` | offsets from the frontier to what was delivered |
/// | `hapax_inbox_accepted_total` | counter | `outcome`: `new`, `duplicates`, `conflicts`, `redelivered`, `rejected`, `refused` | messages that an inbox was handed |
/// | `hapax_inbox_taken_total` | counter | | messages that a worker took, as often as it did |
/// | `hapax_inbox_worked_total` | counter | `outcome`: `succeeded`, `late`, `failed`, `dead`, `released`, `lost` (its lease had run out), `unsettled` | how they ended |
/// | `hapax_inbox_swept_total` | counter | | messages of workers that died, found by this one |
/// | `hapax_inbox_in_hand` | gauge | | messages in this worker's hands |
/// | `hapax_inbox_messages` | gauge | `state`: `received`, `processing`, `failed`, `dead` | messages of the inbox that have not succeeded |
/// | `hapax_inbox_oldest_seconds` | gauge | | age of the oldest message that waits for a worker, 0 if none does |
/// | `hapax_inbox_paused` | gauge | | 1 while an operator has paused the handler |
///
/// Those of an inbox come from a worker that has this as its observer (taken, worked, swept, in hand), and from `Inbox::watch` (the others).
///
/// `partition` is a label of those with `topic` if [`by_partition`](Self::by_partition) says so. What messages say, their keys and
/// their identities are never labels.
pub struct Metrics {
    by_partition: bool,
    cells: Mutex<Cells>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("by_partition", &self.by_partition).finish_non_exhaustive()
    }
}

/// Messages behind the end of the topic, where that is known, and behind what is committed.
type Behind = (Option<u64>, u64);

#[derive(Default)]
struct Cells {
    common: Vec<Label>,
    /// By topic, and by partition where that is asked for.
    places: HashMap<String, HashMap<Option<i32>, Cell>>,
}

/// What is counted for each topic. Handles are kept: to look one up costs more than to use it.
struct Cell {
    labels: Vec<Label>,
    delivered: Counter,
    bytes: Counter,
    retries: Counter,
    finished: Vec<(&'static str, Counter)>,
    runs: Vec<(Outcome, Histogram)>,
    lag: Gauge,
    behind: Gauge,
}

impl Metrics {
    /// With a topic label, without a partition label.
    #[must_use]
    pub fn new() -> Self {
        Self { by_partition: false, cells: Mutex::default() }
    }

    /// Adds the label `partition` where there is a label `topic`. As many series as partitions: think of your bill.
    #[must_use]
    pub const fn by_partition(mut self) -> Self {
        self.by_partition = true;
        self
    }

    fn cells(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, place: Place<'_>, put: impl FnOnce(&mut Cell)) {
        let partition = self.by_partition.then_some(place.partition);
        let cells = &mut *self.cells();
        if !cells.places.contains_key(place.topic) {
            cells.places.insert(place.topic.to_owned(), HashMap::new());
        }
        let Some(of_topic) = cells.places.get_mut(place.topic) else { return };
        put(of_topic.entry(partition).or_insert_with(|| Cell::new(&cells.common, place.topic, partition)));
    }

    fn labels(&self, name: &'static str, value: &'static str) -> Vec<Label> {
        let mut labels = self.cells().common.clone();
        labels.push(Label::from_static_parts(name, value));
        labels
    }

    fn count(&self, name: &'static str, n: u64) {
        counter!(name, self.cells().common.iter()).increment(n);
    }

    fn counts(&self, name: &'static str, named: impl Iterator<Item = (&'static str, u64)>) {
        for (outcome, n) in named {
            counter!(name, self.labels("outcome", outcome)).increment(n);
        }
    }

    fn called(&self, operation: Operation, messages: u64, took: std::time::Duration) {
        let labels = self.labels("operation", operation.name());
        histogram!("hapax_store_seconds", labels.iter()).record(took.as_secs_f64());
        histogram!("hapax_store_batch", labels.iter()).record(messages as f64);
    }

    fn worked(&self, worked: &Worked) {
        // All of them from the start: a rate wants its zero.
        for (outcome, n) in worked.all().filter(|(name, _)| !matches!(*name, "taken" | "swept")) {
            counter!("hapax_inbox_worked_total", self.labels("outcome", outcome)).increment(n);
        }
        self.count("hapax_inbox_taken_total", worked.taken);
        self.count("hapax_inbox_swept_total", worked.swept);
        let in_hand = gauge!("hapax_inbox_in_hand", self.cells().common.iter());
        in_hand.increment(worked.taken as f64);
        in_hand.decrement(worked.ended() as f64);
    }

    fn gauges(&self, snapshot: &Snapshot) {
        let set = |name: &'static str, value: usize| gauge!(name, self.cells().common.iter()).set(value as f64);
        set("hapax_messages_unfinished", snapshot.unfinished);
        set("hapax_handlers_running", snapshot.running);
        set("hapax_claims_held", snapshot.claimed);
        set("hapax_messages_parked", snapshot.parked);
        set("hapax_partitions_assigned", snapshot.partitions.len());
        set("hapax_partitions_paused", snapshot.paused());
        // Added up for each cell; cells whose partitions are gone fall to zero.
        let mut sums: HashMap<(&str, Option<i32>), Behind> = HashMap::new();
        for partition in &snapshot.partitions {
            let number = self.by_partition.then_some(partition.partition);
            let sum = sums.entry((&partition.topic, number)).or_default();
            sum.0 = partition.lag().map_or(sum.0, |lag| Some(sum.0.unwrap_or(0) + lag));
            sum.1 += partition.behind();
            self.at(Place { topic: &partition.topic, partition: partition.partition }, |_| {});
        }
        for (topic, of_topic) in &self.cells().places {
            for (number, cell) in of_topic {
                let (lag, behind) = sums.get(&(topic.as_str(), *number)).copied().unwrap_or((Some(0), 0));
                if let Some(lag) = lag {
                    cell.lag.set(lag as f64);
                }
                cell.behind.set(behind as f64);
            }
        }
    }
}

impl Cell {
    fn new(common: &[Label], topic: &str, partition: Option<i32>) -> Self {
        let mut labels = common.to_vec();
        labels.push(Label::new("topic", topic.to_owned()));
        labels.extend(partition.map(|partition| Label::new("partition", partition.to_string())));
        let finished = |outcome: &'static str| {
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("outcome", outcome));
            (outcome, counter!("hapax_messages_finished_total", labels))
        };
        // All of them from the start: a rate wants its zero.
        let all = Endings { handled: 1, redelivered: 1, same_id: 1, conflicts: 1, dead: 1 };
        Self {
            delivered: counter!("hapax_messages_delivered_total", labels.iter()),
            bytes: counter!("hapax_bytes_delivered_total", labels.iter()),
            retries: counter!("hapax_retries_total", labels.iter()),
            finished: all.named().map(|(name, _)| finished(name)).collect(),
            runs: Vec::new(),
            lag: gauge!("hapax_lag", labels.iter()),
            behind: gauge!("hapax_frontier_behind", labels.iter()),
            labels,
        }
    }

    fn ran(&mut self, outcome: Outcome) -> &Histogram {
        let at = self.runs.iter().position(|(own, _)| *own == outcome).unwrap_or_else(|| {
            let mut labels = self.labels.clone();
            labels.push(Label::from_static_parts("outcome", outcome.name()));
            self.runs.push((outcome, histogram!("hapax_handler_seconds", labels)));
            self.runs.len() - 1
        });
        &self.runs[at].1
    }
}

impl Observer for Metrics {
    fn on(&self, event: &Observed<'_>) {
        match event {
            Observed::Started { group, handler } => {
                describe();
                let group = Label::new("group", (*group).to_owned());
                self.cells().common = vec![group, Label::new("handler", (*handler).to_owned())];
                for what in [Circuit::Store, Circuit::Downstream] {
                    gauge!("hapax_circuit_open", self.labels("what", what.name())).set(0.0);
                }
            }
            Observed::Delivered { place, messages, bytes } => self.at(*place, |cell| {
                cell.delivered.increment(*messages);
                cell.bytes.increment(*bytes);
            }),
            Observed::Claimed { asked, answers, took } => {
                self.called(Operation::Claim, *asked, *took);
                self.counts("hapax_claims_total", answers.named());
            }
            Observed::Settled { answers, took } => {
                self.called(Operation::Settle, answers.total(), *took);
                self.counts("hapax_settles_total", answers.named());
            }
            Observed::StoreFailed { operation, messages, took } => {
                self.called(*operation, *messages, *took);
                counter!("hapax_store_failures_total", self.labels("operation", operation.name())).increment(1);
            }
            Observed::Ran(runs) => {
                for run in *runs {
                    self.at(run.place, |cell| {
                        cell.ran(run.outcome).record(run.took.as_secs_f64());
                        if run.attempt > 1 {
                            cell.retries.increment(1);
                        }
                    });
                }
            }
            Observed::Finished { place, counts } => self.at(*place, |cell| {
                for (name, n) in counts.named() {
                    cell.finished.iter().filter(|(own, _)| *own == name).for_each(|(_, counter)| counter.increment(n));
                }
            }),
            Observed::Late(n) => self.count("hapax_late_results_total", *n),
            Observed::Fenced(n) => self.count("hapax_messages_fenced_total", *n),
            Observed::Dropped(n) => self.count("hapax_messages_dropped_total", *n),
            Observed::DeadLettered(n) => self.count("hapax_dead_letters_total", *n),
            Observed::DeadLetterFailed(n) => self.count("hapax_dead_letter_failures_total", *n),
            Observed::Circuit { what, open } => {
                gauge!("hapax_circuit_open", self.labels("what", what.name())).set(f64::from(u8::from(*open)));
            }
            Observed::Assigned(places) => {
                let labels = self.labels("kind", "assigned");
                counter!("hapax_rebalances_total", labels).increment(places.len() as u64);
            }
            Observed::Revoked { places, lost, took, .. } => {
                let labels = self.labels("kind", if *lost { "lost" } else { "revoked" });
                counter!("hapax_rebalances_total", labels).increment(places.len() as u64);
                histogram!("hapax_revoke_seconds", self.cells().common.iter()).record(took.as_secs_f64());
            }
            Observed::Paused(places) => self.count("hapax_pauses_total", places.len() as u64),
            Observed::Resumed(_) => {}
            Observed::Committed { accepted, .. } => {
                let labels = self.labels("result", if *accepted { "accepted" } else { "refused" });
                counter!("hapax_commits_total", labels).increment(1);
            }
            Observed::Sampled(snapshot) => self.gauges(snapshot),
            Observed::Accepted(accepts) => {
                for (outcome, n) in accepts.all() {
                    counter!("hapax_inbox_accepted_total", self.labels("outcome", outcome)).increment(n);
                }
            }
            Observed::Worked(worked) => self.worked(worked),
            Observed::Inbox(snapshot) => {
                let states = [
                    ("received", snapshot.received),
                    ("processing", snapshot.processing),
                    ("failed", snapshot.failed),
                    ("dead", snapshot.dead),
                ];
                for (state, n) in states {
                    gauge!("hapax_inbox_messages", self.labels("state", state)).set(n as f64);
                }
                let common = &self.cells().common;
                let oldest = snapshot.oldest.map_or(0.0, |age| age.as_secs_f64());
                gauge!("hapax_inbox_oldest_seconds", common.iter()).set(oldest);
                gauge!("hapax_inbox_paused", common.iter()).set(f64::from(u8::from(snapshot.paused)));
            }
        }
    }
}

fn describe() {
    describe_counter!("hapax_messages_delivered_total", Unit::Count, "Messages from Kafka.");
    describe_counter!("hapax_bytes_delivered_total", Unit::Bytes, "Keys and payloads of messages from Kafka.");
    describe_counter!("hapax_messages_finished_total", Unit::Count, "Messages that may be committed, by outcome.");
    describe_counter!("hapax_retries_total", Unit::Count, "Handler calls that were no first attempt.");
    describe_counter!("hapax_claims_total", Unit::Count, "What the store said to claims.");
    describe_counter!("hapax_settles_total", Unit::Count, "What the store said to settles.");
    describe_counter!("hapax_store_failures_total", Unit::Count, "Calls to the store that failed.");
    describe_counter!("hapax_late_results_total", Unit::Count, "Results of assignments that were over.");
    describe_counter!(
        "hapax_messages_fenced_total",
        Unit::Count,
        "Messages left to another process that has taken their partition."
    );
    describe_counter!(
        "hapax_messages_dropped_total",
        Unit::Count,
        "Messages dropped unfinished, to be delivered again."
    );
    describe_counter!("hapax_dead_letters_total", Unit::Count, "Dead letters acknowledged by the broker.");
    describe_counter!("hapax_dead_letter_failures_total", Unit::Count, "Dead letters that could not be produced.");
    describe_counter!("hapax_rebalances_total", Unit::Count, "Partitions that came and went.");
    describe_counter!("hapax_pauses_total", Unit::Count, "Partitions that were paused.");
    describe_counter!("hapax_commits_total", Unit::Count, "Commits, by the broker's answer.");
    describe_histogram!("hapax_handler_seconds", Unit::Seconds, "Handler calls, by outcome.");
    describe_histogram!("hapax_store_seconds", Unit::Seconds, "Calls to the store.");
    describe_histogram!("hapax_store_batch", Unit::Count, "Messages in a call to the store.");
    describe_histogram!("hapax_revoke_seconds", Unit::Seconds, "Waits for handlers when partitions went.");
    describe_gauge!("hapax_circuit_open", Unit::Count, "1 while it is down.");
    describe_gauge!("hapax_messages_unfinished", Unit::Count, "Messages delivered and unfinished.");
    describe_gauge!("hapax_handlers_running", Unit::Count, "Handler calls that run.");
    describe_gauge!("hapax_claims_held", Unit::Count, "Claims whose handlers have not begun.");
    describe_gauge!("hapax_messages_parked", Unit::Count, "Messages that wait for a retry or for another owner.");
    describe_gauge!("hapax_partitions_assigned", Unit::Count, "Partitions that are ours.");
    describe_gauge!("hapax_partitions_paused", Unit::Count, "Partitions that take nothing in.");
    describe_gauge!("hapax_lag", Unit::Count, "Offsets from the frontier to the end, where known.");
    describe_gauge!("hapax_frontier_behind", Unit::Count, "Offsets from the frontier to what was delivered.");
    describe_counter!("hapax_inbox_accepted_total", Unit::Count, "Messages that an inbox was handed, by outcome.");
    describe_counter!("hapax_inbox_taken_total", Unit::Count, "Messages that a worker took.");
    describe_counter!("hapax_inbox_worked_total", Unit::Count, "Messages that a worker took, by how they ended.");
    describe_counter!("hapax_inbox_swept_total", Unit::Count, "Messages of workers that died.");
    describe_gauge!("hapax_inbox_in_hand", Unit::Count, "Messages in a worker's hands.");
    describe_gauge!("hapax_inbox_messages", Unit::Count, "Messages that have not succeeded, by state.");
    describe_gauge!("hapax_inbox_oldest_seconds", Unit::Seconds, "Age of the oldest message that waits for a worker.");
    describe_gauge!("hapax_inbox_paused", Unit::Count, "1 while an operator has paused the handler.");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use ::metrics::{
        CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, with_local_recorder,
    };

    use super::*;
    use crate::observe::{Accepts, Claims, InboxSnapshot, PartitionSnapshot, Run, Settles};

    /// What was recorded: `name{label=value,…}` and a sum.
    #[derive(Clone, Default)]
    struct Book(Arc<Mutex<BTreeMap<String, f64>>>);

    struct Line(Book, String);

    impl Line {
        fn change(&self, change: impl FnOnce(&mut f64)) {
            change(self.0.0.lock().unwrap().entry(self.1.clone()).or_default());
        }
    }

    impl CounterFn for Line {
        fn increment(&self, value: u64) {
            self.change(|sum| *sum += value as f64);
        }
        fn absolute(&self, value: u64) {
            self.change(|sum| *sum = value as f64);
        }
    }

    impl GaugeFn for Line {
        fn increment(&self, value: f64) {
            self.change(|sum| *sum += value);
        }
        fn decrement(&self, value: f64) {
            self.change(|sum| *sum -= value);
        }
        fn set(&self, value: f64) {
            self.change(|sum| *sum = value);
        }
    }

    impl HistogramFn for Line {
        fn record(&self, value: f64) {
            self.change(|sum| *sum += value);
        }
    }

    impl Book {
        fn line(&self, key: &Key) -> Arc<Line> {
            let labels: Vec<String> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            Arc::new(Line(self.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
        }

        fn get(&self, line: &str) -> Option<f64> {
            self.0.lock().unwrap().get(line).copied()
        }
    }

    impl Recorder for Book {
        fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
            self.0.lock().unwrap().insert(format!("described {}", name.as_str()), 0.0);
        }
        fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
            self.describe_counter(name, unit, what);
        }
        fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
            self.describe_counter(name, unit, what);
        }
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.line(key))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.line(key))
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(self.line(key))
        }
    }

    const ORDERS: Place<'static> = Place { topic: "orders", partition: 3 };

    fn some_of_all(metrics: &Metrics) {
        let second = Duration::from_secs(1);
        let run = |outcome, attempt| Run { place: ORDERS, messages: 1, attempt, outcome, took: second };
        let runs = [run(Outcome::Succeeded, 1), run(Outcome::Failed, 1), run(Outcome::Succeeded, 2)];
        let partition = PartitionSnapshot {
            delivered: Some(9),
            committable: Some(8),
            high_watermark: Some(20),
            paused: true,
            ..PartitionSnapshot::new("orders".into(), 3)
        };
        let snapshot = Snapshot { parked: 4, partitions: vec![partition], ..Snapshot::default() };
        let inbox =
            InboxSnapshot { received: 6, dead: 2, oldest: Some(second), paused: true, ..InboxSnapshot::default() };
        for event in [
            Observed::Started { group: "g", handler: "h" },
            Observed::Delivered { place: ORDERS, messages: 5, bytes: 50 },
            Observed::Delivered { place: ORDERS, messages: 1, bytes: 10 },
            Observed::Claimed {
                asked: 5,
                answers: Claims { acquired: 3, took_over: 1, same_id: 1, ..Claims::default() },
                took: second,
            },
            Observed::Settled { answers: Settles { recorded: 3, refused: 1, ..Settles::default() }, took: second },
            Observed::StoreFailed { operation: Operation::Claim, messages: 2, took: second },
            Observed::Ran(&runs),
            Observed::Finished { place: ORDERS, counts: Endings { handled: 3, same_id: 1, ..Endings::default() } },
            Observed::Late(2),
            Observed::Fenced(4),
            Observed::Dropped(3),
            Observed::DeadLettered(1),
            Observed::DeadLetterFailed(1),
            Observed::Circuit { what: Circuit::Store, open: true },
            Observed::Assigned(&[ORDERS]),
            Observed::Revoked { places: &[ORDERS], lost: true, left: 1, took: second },
            Observed::Paused(&[ORDERS]),
            Observed::Resumed(&[ORDERS]),
            Observed::Committed { partitions: 1, accepted: false },
            Observed::Sampled(&snapshot),
            Observed::Accepted(Accepts { new: 5, duplicates: 2, ..Accepts::default() }),
            Observed::Worked(Worked { taken: 9, ..Worked::default() }),
            Observed::Worked(Worked { succeeded: 3, failed: 2, dead: 1, lost: 1, swept: 4, ..Worked::default() }),
            Observed::Inbox(&inbox),
        ] {
            metrics.on(&event);
        }
    }

    #[test]
    fn every_kind_of_event_is_counted_under_its_name() {
        let book = Book::default();
        let metrics = Metrics::new();
        with_local_recorder(&book, || some_of_all(&metrics));
        let topic = "group=g,handler=h,topic=orders";
        let common = "group=g,handler=h";
        for (line, sum) in [
            (format!("hapax_messages_delivered_total{{{topic}}}"), 6.0),
            (format!("hapax_bytes_delivered_total{{{topic}}}"), 60.0),
            (format!("hapax_messages_finished_total{{{topic},outcome=handled}}"), 3.0),
            (format!("hapax_messages_finished_total{{{topic},outcome=same_id}}"), 1.0),
            (format!("hapax_handler_seconds{{{topic},outcome=succeeded}}"), 2.0),
            (format!("hapax_handler_seconds{{{topic},outcome=failed}}"), 1.0),
            (format!("hapax_retries_total{{{topic}}}"), 1.0),
            (format!("hapax_claims_total{{{common},outcome=acquired}}"), 3.0),
            (format!("hapax_claims_total{{{common},outcome=took_over}}"), 1.0),
            (format!("hapax_claims_total{{{common},outcome=same_id}}"), 1.0),
            (format!("hapax_settles_total{{{common},outcome=recorded}}"), 3.0),
            (format!("hapax_settles_total{{{common},outcome=refused}}"), 1.0),
            (format!("hapax_store_seconds{{{common},operation=claim}}"), 2.0),
            (format!("hapax_store_batch{{{common},operation=claim}}"), 7.0),
            (format!("hapax_store_batch{{{common},operation=settle}}"), 4.0),
            (format!("hapax_store_failures_total{{{common},operation=claim}}"), 1.0),
            (format!("hapax_late_results_total{{{common}}}"), 2.0),
            (format!("hapax_messages_fenced_total{{{common}}}"), 4.0),
            (format!("hapax_messages_dropped_total{{{common}}}"), 3.0),
            (format!("hapax_dead_letters_total{{{common}}}"), 1.0),
            (format!("hapax_dead_letter_failures_total{{{common}}}"), 1.0),
            (format!("hapax_rebalances_total{{{common},kind=assigned}}"), 1.0),
            (format!("hapax_rebalances_total{{{common},kind=lost}}"), 1.0),
            (format!("hapax_revoke_seconds{{{common}}}"), 1.0),
            (format!("hapax_pauses_total{{{common}}}"), 1.0),
            (format!("hapax_commits_total{{{common},result=refused}}"), 1.0),
            (format!("hapax_circuit_open{{{common},what=store}}"), 1.0),
            (format!("hapax_circuit_open{{{common},what=downstream}}"), 0.0),
            (format!("hapax_messages_parked{{{common}}}"), 4.0),
            (format!("hapax_partitions_assigned{{{common}}}"), 1.0),
            (format!("hapax_partitions_paused{{{common}}}"), 1.0),
            (format!("hapax_lag{{{topic}}}"), 12.0),
            (format!("hapax_frontier_behind{{{topic}}}"), 2.0),
            (format!("hapax_inbox_accepted_total{{{common},outcome=new}}"), 5.0),
            (format!("hapax_inbox_accepted_total{{{common},outcome=duplicates}}"), 2.0),
            (format!("hapax_inbox_accepted_total{{{common},outcome=refused}}"), 0.0),
            (format!("hapax_inbox_taken_total{{{common}}}"), 9.0),
            (format!("hapax_inbox_worked_total{{{common},outcome=succeeded}}"), 3.0),
            (format!("hapax_inbox_worked_total{{{common},outcome=failed}}"), 2.0),
            (format!("hapax_inbox_worked_total{{{common},outcome=lost}}"), 1.0),
            (format!("hapax_inbox_worked_total{{{common},outcome=late}}"), 0.0),
            (format!("hapax_inbox_swept_total{{{common}}}"), 4.0),
            (format!("hapax_inbox_in_hand{{{common}}}"), 2.0),
            (format!("hapax_inbox_messages{{{common},state=received}}"), 6.0),
            (format!("hapax_inbox_messages{{{common},state=dead}}"), 2.0),
            (format!("hapax_inbox_oldest_seconds{{{common}}}"), 1.0),
            (format!("hapax_inbox_paused{{{common}}}"), 1.0),
        ] {
            assert_eq!(book.get(&line), Some(sum), "{line}");
        }
        // What is recorded is described, and the other way round.
        let lines = book.0.lock().unwrap();
        let name = |line: &String| line.split('{').next().unwrap_or_default().to_owned();
        let described: std::collections::BTreeSet<String> =
            lines.keys().filter_map(|line| line.strip_prefix("described ").map(str::to_owned)).collect();
        let recorded: std::collections::BTreeSet<String> =
            lines.keys().filter(|line| !line.starts_with("described ")).map(name).collect();
        assert_eq!(described, recorded);
        let table = include_str!("metrics.rs");
        for name in &described {
            assert!(table.contains(&format!("/// | `{name}` |")), "{name} is missing from the table");
        }
        assert_eq!(table.matches("\n/// | `hapax_").count(), described.len(), "the table names what is not recorded");
    }

    #[test]
    fn a_partition_is_a_label_only_where_that_is_asked_for_and_falls_to_zero_when_it_goes() {
        let book = Book::default();
        let metrics = Metrics::new().by_partition();
        with_local_recorder(&book, || some_of_all(&metrics));
        let labels = "group=g,handler=h,topic=orders,partition=3";
        assert_eq!(book.get(&format!("hapax_messages_delivered_total{{{labels}}}")), Some(6.0));
        assert_eq!(book.get(&format!("hapax_lag{{{labels}}}")), Some(12.0));
        with_local_recorder(&book, || metrics.on(&Observed::Sampled(&Snapshot::default())));
        assert_eq!(book.get(&format!("hapax_lag{{{labels}}}")), Some(0.0));
        assert_eq!(book.get(&format!("hapax_frontier_behind{{{labels}}}")), Some(0.0));
    }
}
