//! How the consumer tells what happens: nothing is computed where nobody listens.
//!
//! A [`Probe`] is what every part holds; a [`Watch`] is the pump's own, which gathers a turn's worth before it tells.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tracing::{Instrument, Span};

use super::handling::{Few, Handed};
use super::message::Message;
use super::monitor::{Board, Monitor};
use super::summary::Tally;
use crate::ErrorClass;
use crate::engine::{self, Ending};
use crate::observe::{
    Circuit, Claims, Endings, Observed, Observer, Operation, Outcome, Phase, Place, Process, Run, Settles,
};
use crate::wrapper::drive::Ended;

/// Time between two lookings of the monitor's board, while anything happens.
const POST: Duration = Duration::from_millis(100);
/// Time between two samples for observers, while anything happens.
const SAMPLE: Duration = Duration::from_secs(1);

/// A topic's name and a partition.
pub(super) type Spot = (Arc<str>, i32);

/// Tells observers and the monitor. Cheap to clone. By default nobody listens.
#[derive(Clone, Default)]
pub(super) struct Probe {
    observers: Arc<[Arc<dyn Observer>]>,
    group: Arc<str>,
    /// Whether claims have keys worth telling: not without a store.
    keyed: bool,
    board: Arc<Board>,
    /// Handler calls that ended, wherever they did, until the pump tells.
    runs: Arc<Mutex<Vec<RunRecord>>>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("observers", &self.observers.len()).finish_non_exhaustive()
    }
}

impl Probe {
    /// Adds an observer.
    pub(super) fn add(&mut self, observer: impl Observer) {
        let more: Arc<dyn Observer> = Arc::new(observer);
        self.observers = self.observers.iter().cloned().chain([more]).collect();
        self.board.watch();
    }

    /// The same observers, for another consumer.
    pub(super) fn another(&self) -> Self {
        let other = Self { observers: Arc::clone(&self.observers), ..Self::default() };
        if other.is_on() {
            other.board.watch();
        }
        other
    }

    /// A monitor of this consumer.
    pub(super) fn monitor(&self) -> Monitor {
        self.board.watch();
        Monitor { board: Arc::clone(&self.board) }
    }

    /// Whether anybody wants to see the consumer's state now and then.
    pub(super) fn is_watched(&self) -> bool {
        self.board.is_watched()
    }

    /// Whether anybody hears of what happens.
    pub(super) fn is_on(&self) -> bool {
        !self.observers.is_empty()
    }

    fn tell(&self, event: &Observed<'_>) {
        self.observers.iter().for_each(|observer| observer.on(event));
    }

    fn tell_places(&self, spots: &[Spot], event: impl FnOnce(&[Place<'_>])) {
        if self.is_on() && !spots.is_empty() {
            let places: Vec<Place<'_>> =
                spots.iter().map(|(topic, partition)| Place { topic, partition: *partition }).collect();
            event(&places);
        }
    }

    /// The consumer starts; `handler` is `None` without a store.
    pub(super) fn started(&mut self, group: &str, handler: Option<&str>) {
        self.group = group.into();
        self.keyed = handler.is_some();
        let handler = handler.unwrap_or_default();
        self.board.begin(group, Instant::now());
        self.tell(&Observed::Started { group, handler });
    }

    /// The consumer was told to end.
    pub(super) fn closing(&self) {
        self.board.enter(Phase::Closing);
    }

    /// The consumer has ended.
    pub(super) fn ended(&self) {
        self.board.enter(Phase::Ended);
    }

    /// Kafka was polled.
    pub(super) fn polled(&self, now: Instant) {
        self.board.polled(now);
    }

    /// What the Kafka thread has counted so far.
    pub(super) fn totals(&self, delivered: u64, commits: u64, failed_commits: u64) {
        self.board.totals(delivered, commits, failed_commits);
    }

    /// The offset behind a partition's last message.
    pub(super) fn watermark(&self, topic: &str, partition: i32, offset: i64) {
        self.board.watermark(topic, partition, offset);
    }

    /// Messages of one partition came.
    pub(super) fn delivered(&self, topic: &str, partition: i32, messages: u64, bytes: u64) {
        if self.is_on() {
            self.tell(&Observed::Delivered { place: Place { topic, partition }, messages, bytes });
        }
    }

    /// Partitions are ours.
    pub(super) fn assigned(&self, spots: &[Spot]) {
        self.tell_places(spots, |places| self.tell(&Observed::Assigned(places)));
    }

    /// Partitions went.
    pub(super) fn revoked(&self, spots: &[Spot], lost: bool, left: u64, took: Duration) {
        self.tell_places(spots, |places| self.tell(&Observed::Revoked { places, lost, left, took }));
    }

    /// Partitions take nothing in.
    pub(super) fn paused(&self, spots: &[Spot]) {
        self.tell_places(spots, |places| self.tell(&Observed::Paused(places)));
    }

    /// Partitions take messages in again.
    pub(super) fn resumed(&self, spots: &[Spot]) {
        self.tell_places(spots, |places| self.tell(&Observed::Resumed(places)));
    }

    /// The broker answered a commit, or did not in time.
    pub(super) fn committed(&self, partitions: usize, accepted: bool) {
        if self.is_on() {
            self.tell(&Observed::Committed { partitions: partitions as u64, accepted });
        }
    }

    /// A look at a handler call that is about to begin; at nothing, where nobody looks.
    #[inline]
    pub(super) fn sight(&self, messages: &Few<Handed>) -> Sight {
        if self.is_on() || Process::is_enabled() { self.make_sight(messages) } else { Sight(None) }
    }

    #[cold]
    fn make_sight(&self, messages: &Few<Handed>) -> Sight {
        let (first, count) = match messages {
            Few::One(one) => (one, 1),
            Few::Many(many) => match many.first() {
                Some(first) => (first, many.len()),
                None => return Sight(None),
            },
        };
        let Handed { message, claim, .. } = first;
        let key = claim.idempotency_key();
        let mut process = Process::new(&self.group, message, claim.attempt()).messages(count);
        if self.keyed {
            process = process.idempotency_key(&key);
        }
        let span = self.observers.iter().find_map(|observer| observer.span(&process)).unwrap_or_else(|| process.span());
        let record = self.is_on().then(|| RunRecord {
            message: message.clone(),
            messages: count as u64,
            attempt: claim.attempt(),
            outcome: Outcome::Aborted,
            took: Duration::ZERO,
        });
        Sight(Some(Box::new(Seen { span, began: Instant::now(), record, runs: Arc::clone(&self.runs) })))
    }

    /// What the pump tells through.
    pub(super) fn watch(&self) -> Watch {
        Watch {
            on: self.is_on(),
            posts: self.is_watched(),
            probe: self.clone(),
            finished: Vec::new(),
            late: 0,
            fenced: 0,
            dropped: 0,
            post: Rhythm::new(POST),
            sample: Rhythm::new(SAMPLE),
            store_down: false,
            downstream_down: false,
        }
    }
}

/// A look at a handler call.
pub(super) struct Sight(Option<Box<Seen>>);

struct Seen {
    span: Span,
    began: Instant,
    record: Option<RunRecord>,
    runs: Arc<Mutex<Vec<RunRecord>>>,
}

impl Sight {
    /// Awaits the handler inside of its span, and notes how it ends. Made of combinators: an `async fn` would keep room for it twice.
    pub(super) fn at(self, running: impl Future<Output = Few<Ended>>) -> impl Future<Output = Few<Ended>> {
        let span = self.0.as_ref().map_or_else(Span::none, |seen| seen.span.clone());
        running.instrument(span).inspect(move |ended| {
            if let Some(mut seen) = self.0 {
                seen.ended(ended);
            }
        })
    }
}

impl Seen {
    fn ended(&mut self, ended: &Few<Ended>) {
        let outcome = match ended {
            Few::One(one) => outcome(one),
            Few::Many(many) => {
                many.iter().map(outcome).find(|own| *own != Outcome::Succeeded).unwrap_or(Outcome::Succeeded)
            }
        };
        Process::ended(&self.span, outcome);
        if let Some(record) = &mut self.record {
            record.outcome = outcome;
        }
    }
}

impl Drop for Seen {
    /// However the call ended: dropped where it waited, it was aborted.
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        record.took = self.began.elapsed();
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

fn outcome(ended: &Ended) -> Outcome {
    match ended {
        // What was not handled has not failed either.
        Ended::Succeeded(_) | Ended::Finished(_) | Ended::Answered(_) | Ended::Fenced(_) | Ended::NotBegun => {
            Outcome::Succeeded
        }
        Ended::Unknown(_) => Outcome::Unavailable,
        Ended::Failed(fault) => match (fault.kind, fault.class) {
            ("panic", _) => Outcome::Panicked,
            ("timeout", _) => Outcome::TimedOut,
            (_, ErrorClass::Retryable) => Outcome::Failed,
            (_, ErrorClass::Fatal) => Outcome::Fatal,
            (_, ErrorClass::Unavailable) => Outcome::Unavailable,
        },
    }
}

/// Something that is done so often at most, and once more after the last change.
#[derive(Debug)]
struct Rhythm {
    every: Duration,
    next: Option<Instant>,
    owed: bool,
}

impl Rhythm {
    const fn new(every: Duration) -> Self {
        Self { every, next: None, owed: false }
    }

    /// Something changed, or time passed: whether to do it now.
    fn beat(&mut self, now: Instant) -> bool {
        let due = self.next.is_none_or(|next| next <= now);
        self.owed = !due;
        if due {
            self.next = Some(now + self.every);
        }
        due
    }

    fn wake_at(&self) -> Option<Instant> {
        self.next.filter(|_| self.owed)
    }
}

struct RunRecord {
    message: Message,
    messages: u64,
    attempt: u32,
    outcome: Outcome,
    took: Duration,
}

impl RunRecord {
    fn told(&self) -> Run<'_> {
        let Self { message, messages, attempt, outcome, took } = self;
        Run { place: place(message), messages: *messages, attempt: *attempt, outcome: *outcome, took: *took }
    }
}

/// What the pump tells, gathered over a turn.
pub(super) struct Watch {
    /// Observers are there.
    on: bool,
    /// Observers or a monitor are there.
    posts: bool,
    probe: Probe,
    /// One for each partition that finished anything in this turn.
    finished: Vec<(Message, Endings)>,
    late: u64,
    fenced: u64,
    dropped: u64,
    post: Rhythm,
    sample: Rhythm,
    store_down: bool,
    downstream_down: bool,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("on", &self.on).finish_non_exhaustive()
    }
}

impl Watch {
    /// Whether anybody hears of what happens: if not, the other calls need not be made.
    #[inline]
    pub(super) const fn is_on(&self) -> bool {
        self.on
    }

    /// A message is finished.
    pub(super) fn finished(&mut self, message: &Message, ending: Ending) {
        if !self.on {
            return;
        }
        let here = (message.partition(), message.topic());
        // Messages of one partition come in a row.
        let at = self.finished.iter().rposition(|(known, _)| (known.partition(), known.topic()) == here);
        let at = at.unwrap_or_else(|| {
            self.finished.push((message.clone(), Endings::default()));
            self.finished.len() - 1
        });
        let counts = &mut self.finished[at].1;
        let count = match ending {
            Ending::Handled => &mut counts.handled,
            Ending::Redelivered => &mut counts.redelivered,
            Ending::SameId => &mut counts.same_id,
            Ending::Conflict => &mut counts.conflicts,
            Ending::Dead => &mut counts.dead,
        };
        *count += 1;
    }

    /// The store answered a call to claim.
    pub(super) fn claimed(&self, asked: usize, answers: Claims, took: Duration) {
        if self.on {
            self.probe.tell(&Observed::Claimed { asked: asked as u64, answers, took });
        }
    }

    /// The store answered a call to settle.
    pub(super) fn settled(&self, answers: Settles, took: Duration) {
        if self.on {
            self.probe.tell(&Observed::Settled { answers, took });
        }
    }

    /// The store could not be asked.
    pub(super) fn store_failed(&self, operation: Operation, messages: usize, took: Duration) {
        if self.on {
            self.probe.tell(&Observed::StoreFailed { operation, messages: messages as u64, took });
        }
    }

    /// The broker acknowledged dead letters.
    pub(super) fn dead_lettered(&self, messages: usize) {
        if self.on {
            self.probe.tell(&Observed::DeadLettered(messages as u64));
        }
    }

    /// Dead letters could not be produced.
    pub(super) fn dead_letter_failed(&self, messages: usize) {
        if self.on {
            self.probe.tell(&Observed::DeadLetterFailed(messages as u64));
        }
    }

    /// Results came of an assignment that is over.
    pub(super) const fn late(&mut self, messages: u64) {
        self.late += messages;
    }

    /// Messages were left to another process.
    pub(super) const fn fenced(&mut self, messages: u64) {
        self.fenced += messages;
    }

    /// Messages were dropped unfinished.
    pub(super) const fn dropped(&mut self, messages: u64) {
        self.dropped += messages;
    }

    /// The end of a turn: tells what was gathered, and puts up the state if that is due.
    #[inline]
    pub(super) fn turn(&mut self, look: impl FnOnce() -> (engine::Snapshot, Tally)) {
        if self.posts {
            self.tell(Instant::now(), look);
        }
    }

    fn tell(&mut self, now: Instant, look: impl FnOnce() -> (engine::Snapshot, Tally)) {
        if self.on {
            self.tell_gathered();
        }
        let sample = self.on && self.sample.beat(now);
        if !self.post.beat(now) && !sample {
            return;
        }
        let (engine, tally) = look();
        let (store_down, downstream_down) = (engine.store_down, engine.downstream_down);
        self.probe.board.post(engine, tally);
        if !self.on {
            return;
        }
        for (what, known, open) in [
            (Circuit::Store, &mut self.store_down, store_down),
            (Circuit::Downstream, &mut self.downstream_down, downstream_down),
        ] {
            if std::mem::replace(known, open) != open {
                self.probe.tell(&Observed::Circuit { what, open });
            }
        }
        if sample {
            self.probe.tell(&Observed::Sampled(&self.probe.board.snapshot(now)));
        }
    }

    fn tell_gathered(&mut self) {
        let records = std::mem::take(&mut *self.probe.runs.lock().unwrap_or_else(PoisonError::into_inner));
        if !records.is_empty() {
            let runs: Vec<Run<'_>> = records.iter().map(RunRecord::told).collect();
            self.probe.tell(&Observed::Ran(&runs));
        }
        for (message, counts) in self.finished.drain(..) {
            self.probe.tell(&Observed::Finished { place: place(&message), counts });
        }
        for (count, event) in [
            (std::mem::take(&mut self.late), Observed::Late as fn(u64) -> Observed<'static>),
            (std::mem::take(&mut self.fenced), Observed::Fenced),
            (std::mem::take(&mut self.dropped), Observed::Dropped),
        ] {
            if count > 0 {
                self.probe.tell(&event(count));
            }
        }
    }

    /// When [`turn`](Self::turn) is to be called again although nothing happens.
    #[inline]
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.posts { self.post.wake_at().into_iter().chain(self.sample.wake_at()).min() } else { None }
    }
}

fn place(message: &Message) -> Place<'_> {
    Place { topic: message.topic(), partition: message.partition() }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::Claim;
    use crate::consumer::message::{Filling, Row};
    use crate::identity::Key;
    use crate::message::Parts;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Observer for Heard {
        fn on(&self, event: &Observed<'_>) {
            let text = match event {
                Observed::Finished { place, counts } => format!("{place} {} {}", counts.handled, counts.same_id),
                Observed::Ran(runs) => format!("ran {}", runs.len()),
                Observed::Sampled(snapshot) => format!("sampled {}", snapshot.parked),
                Observed::Circuit { what, open } => format!("{} {open}", what.name()),
                other => format!("{other:?}"),
            };
            self.0.lock().unwrap().push(text);
        }
    }

    fn messages() -> Vec<Message> {
        let mut filling = Filling::default();
        for n in 0..6 {
            filling.push(&Parts::new("t").at(n % 2, i64::from(n)));
        }
        filling.seal().flat_map(Row::messages).collect()
    }

    fn handed(message: &Message, attempt: u32) -> Few<Handed> {
        let claim = Claim::bare(Key::from_bytes([7; 16]), attempt);
        Few::One(Handed { message: message.clone(), claim, row: None, own: None })
    }

    /// A handler call that ends so, at once.
    fn run(probe: &Probe, message: &Message, end: impl FnOnce() -> Ended) {
        let running = probe.sight(&handed(message, 1)).at(async { Few::One(end()) });
        assert!(running.now_or_never().is_some());
    }

    fn state(parked: usize, store_down: bool) -> (engine::Snapshot, Tally) {
        (engine::Snapshot { parked, store_down, ..engine::Snapshot::default() }, Tally::default())
    }

    #[test]
    fn a_turn_is_told_at_once_and_partition_by_partition() {
        let heard = Arc::new(Heard::default());
        let mut probe = Probe::default();
        probe.add(Arc::clone(&heard));
        let mut watch = probe.watch();
        assert!(watch.is_on());
        for message in messages() {
            run(&probe, &message, || Ended::Succeeded(None));
            watch.finished(&message, if message.offset() == 3 { Ending::SameId } else { Ending::Handled });
        }
        watch.late(2);
        let now = Instant::now();
        watch.tell(now, || state(1, true));
        let first = std::mem::take(&mut *heard.0.lock().unwrap());
        assert_eq!(first, ["ran 6", "t[0] 3 0", "t[1] 2 1", "Late(2)", "store true", "sampled 1"]);
        // Nothing is told twice; the state is looked at again when its time has come, and once more after the last change.
        watch.tell(now + Duration::from_millis(50), || unreachable!("too early"));
        assert!(heard.0.lock().unwrap().is_empty());
        assert_eq!(watch.wake_at(), Some(now + POST));
        watch.tell(now + POST, || state(0, false));
        assert_eq!(std::mem::take(&mut *heard.0.lock().unwrap()), ["store false"]);
        assert_eq!(watch.wake_at(), Some(now + SAMPLE));
        watch.tell(now + SAMPLE, || state(3, false));
        assert_eq!(std::mem::take(&mut *heard.0.lock().unwrap()), ["sampled 3"]);
        assert_eq!(watch.wake_at(), None, "nothing is owed: the pump may sleep");
    }

    #[test]
    fn a_monitor_alone_gathers_nothing_and_sees_the_state() {
        let probe = Probe::default();
        let monitor = probe.monitor();
        let mut watch = probe.watch();
        assert!(!watch.is_on());
        for message in messages() {
            watch.finished(&message, Ending::Handled);
            run(&probe, &message, || Ended::Succeeded(None));
        }
        assert!(watch.finished.is_empty() && probe.runs.lock().unwrap().is_empty());
        watch.turn(|| state(4, true));
        assert_eq!((monitor.snapshot().parked, monitor.snapshot().store_down), (4, true));
    }

    #[test]
    fn where_nobody_looks_nothing_is_looked_at() {
        let mut watch = Probe::default().watch();
        watch.turn(|| unreachable!("nobody looks"));
        assert_eq!(watch.wake_at(), None);
    }

    #[test]
    fn the_first_observer_with_a_span_makes_it() {
        struct Silent;
        impl Observer for Silent {}
        struct Own;
        impl Observer for Own {
            fn span(&self, process: &Process<'_>) -> Option<Span> {
                assert_eq!((process.group, process.attempt, process.messages), ("g", 2, 1));
                Some(tracing::error_span!("own"))
            }
        }
        let mut probe = Probe::default();
        probe.add(Silent);
        probe.add(Own);
        probe.started("g", Some("h"));
        let subscriber = tracing_subscriber::fmt().with_writer(std::io::sink).finish();
        tracing::subscriber::with_default(subscriber, || {
            let Sight(seen) = probe.sight(&handed(&messages()[0], 2));
            assert_eq!(seen.expect("seen").span.metadata().map(|meta| meta.name()), Some("own"));
            let Sight(none) = Probe::default().sight(&handed(&messages()[0], 1));
            assert!(none.is_none(), "DEBUG is off");
        });
    }

    #[test]
    fn however_a_call_ends_that_is_what_is_told() {
        use crate::wrapper::drive::Fault;
        #[derive(Default)]
        struct Ends(Mutex<Vec<&'static str>>);
        impl Observer for Ends {
            fn on(&self, event: &Observed<'_>) {
                if let Observed::Ran(runs) = event {
                    self.0.lock().unwrap().extend(runs.iter().map(|run| run.outcome.name()));
                }
            }
        }
        let ends = Arc::new(Ends::default());
        let mut probe = Probe::default();
        probe.add(Arc::clone(&ends));
        let message = messages().remove(0);
        for (kind, class) in [
            ("error", ErrorClass::Retryable),
            ("error", ErrorClass::Fatal),
            ("error", ErrorClass::Unavailable),
            ("panic", ErrorClass::Retryable),
            ("timeout", ErrorClass::Retryable),
        ] {
            run(&probe, &message, || Ended::Failed(Box::new(Fault { class, ..*Fault::new(kind, "x") })));
        }
        drop(probe.sight(&handed(&message, 1)).at(std::future::pending()));
        let many = || Few::Many(vec![Ended::Succeeded(None), Ended::Failed(Fault::new("error", "x"))]);
        let two = Few::Many(handed(&message, 1).into_iter().chain(handed(&message, 1)).collect());
        assert!(probe.sight(&two).at(async { many() }).now_or_never().is_some());
        probe.watch().turn(|| state(0, false));
        let told = std::mem::take(&mut *ends.0.lock().unwrap());
        assert_eq!(told, ["failed", "fatal", "unavailable", "panicked", "timed_out", "aborted", "failed"]);
    }
}
