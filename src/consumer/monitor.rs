//! A look into a consumer that runs.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::summary::Tally;
use crate::engine;
use crate::observe::{PartitionSnapshot, Phase, Snapshot, Totals};

/// A look into a consumer that runs: made by [`Consumer::monitor`](super::Consumer::monitor) before it does. Cheap to clone; clones
/// look at the same consumer.
///
/// ```no_run
/// # use std::time::Duration;
/// # fn example(consumer: hapax::Consumer) {
/// use hapax::observe::Health;
///
/// let monitor = consumer.monitor();
/// // … in the handler of GET /health:
/// let snapshot = monitor.snapshot();
/// let status = match snapshot.health(Duration::from_secs(60)) {
///     Health::Well | Health::Waiting(_) => 200,
///     Health::Stuck(_) => 503,
/// };
/// println!("{status} {snapshot}"); // one line of JSON
/// # }
/// ```
#[derive(Clone)]
pub struct Monitor {
    pub(super) board: Arc<Board>,
}

impl Monitor {
    /// The consumer's state. Never waits: it is what the consumer put up last, at most about 100 ms ago while it is busy.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.board.snapshot(Instant::now())
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("phase", &self.board.phase()).finish_non_exhaustive()
    }
}

/// Where the consumer puts up its state.
#[derive(Debug)]
pub(super) struct Board {
    born: Instant,
    /// Somebody looks: it is worth putting something up.
    watched: AtomicBool,
    phase: AtomicU8,
    /// When it began to run, and when Kafka was polled last: nanoseconds since `born`, plus 1; 0 before the first time.
    began: AtomicU64,
    polled: AtomicU64,
    delivered: AtomicU64,
    commits: AtomicU64,
    failed_commits: AtomicU64,
    posted: Mutex<Posted>,
}

#[derive(Debug, Default)]
struct Posted {
    group: String,
    engine: engine::Snapshot,
    tally: Tally,
    watermarks: HashMap<Arc<str>, HashMap<i32, i64>>,
}

const PHASES: [Phase; 4] = [Phase::Waiting, Phase::Running, Phase::Closing, Phase::Ended];

impl Default for Board {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            watched: AtomicBool::new(false),
            phase: AtomicU8::new(0),
            began: AtomicU64::new(0),
            polled: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            failed_commits: AtomicU64::new(0),
            posted: Mutex::default(),
        }
    }
}

impl Board {
    fn posted(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody will look.
    pub(super) fn watch(&self) {
        self.watched.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    fn stamp(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_nanos()).unwrap_or(u64::MAX - 1) + 1
    }

    fn since(&self, stamp: &AtomicU64, now: Instant) -> Option<Duration> {
        let stamp = stamp.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.born).saturating_sub(Duration::from_nanos(stamp)))
    }

    /// The consumer begins to run.
    pub(super) fn begin(&self, group: &str, now: Instant) {
        group.clone_into(&mut self.posted().group);
        self.began.store(self.stamp(now), Ordering::Relaxed);
        self.enter(Phase::Running);
    }

    /// It never goes back to an earlier phase.
    pub(super) fn enter(&self, phase: Phase) {
        let number = PHASES.iter().position(|own| *own == phase).unwrap_or_default();
        self.phase.fetch_max(u8::try_from(number).unwrap_or_default(), Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        PHASES.get(usize::from(self.phase.load(Ordering::Relaxed))).copied().unwrap_or_default()
    }

    /// Kafka was polled.
    pub(super) fn polled(&self, now: Instant) {
        self.polled.store(self.stamp(now), Ordering::Relaxed);
    }

    /// What the Kafka thread has counted.
    pub(super) fn totals(&self, delivered: u64, commits: u64, failed_commits: u64) {
        self.delivered.store(delivered, Ordering::Relaxed);
        self.commits.store(commits, Ordering::Relaxed);
        self.failed_commits.store(failed_commits, Ordering::Relaxed);
    }

    /// The offset behind a partition's last message.
    pub(super) fn watermark(&self, topic: &str, partition: i32, offset: i64) {
        let watermarks = &mut self.posted().watermarks;
        if !watermarks.contains_key(topic) {
            watermarks.insert(topic.into(), HashMap::new());
        }
        if let Some(of_topic) = watermarks.get_mut(topic) {
            let known = of_topic.entry(partition).or_insert(offset);
            // A topic that was deleted and made again begins below.
            *known = offset;
        }
    }

    /// Puts up what the engine and the pump know.
    pub(super) fn post(&self, engine: engine::Snapshot, tally: Tally) {
        let mut posted = self.posted();
        posted.engine = engine;
        posted.tally = tally;
    }

    /// What was put up.
    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let posted = self.posted();
        let Posted { group, engine, tally, watermarks } = &*posted;
        let partition = |own: &engine::PartitionState| PartitionSnapshot {
            unfinished: own.unfinished,
            delivered: own.delivered,
            committable: own.committable,
            committed: own.committed,
            high_watermark: watermarks.get(&own.topic).and_then(|known| known.get(&own.partition)).copied(),
            paused: own.paused,
            ..PartitionSnapshot::new(Arc::clone(&own.topic), own.partition)
        };
        let mut partitions: Vec<PartitionSnapshot> = engine.partitions.iter().map(partition).collect();
        partitions.sort_unstable_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Snapshot {
            group: group.clone(),
            phase: self.phase(),
            running_for: self.since(&self.began, now).unwrap_or_default(),
            polled: self.since(&self.polled, now),
            unfinished: engine.unfinished,
            running: engine.running,
            claimed: engine.claimed,
            parked: engine.parked,
            store_down: engine.store_down,
            downstream_down: engine.downstream_down,
            partitions,
            totals: Totals {
                delivered: self.delivered.load(Ordering::Relaxed),
                handled: tally.handled,
                redelivered: tally.redelivered,
                same_id: tally.same_id,
                conflicts: tally.conflicts,
                dead: tally.dead,
                commits: self.commits.load(Ordering::Relaxed),
                failed_commits: self.failed_commits.load(Ordering::Relaxed),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::PartitionState;
    use crate::frontier::Epoch;

    #[test]
    fn what_is_put_up_is_seen_in_order_with_its_watermark() {
        let board = Board::default();
        let monitor = Monitor { board: Arc::new(board) };
        let board = &monitor.board;
        assert_eq!(monitor.snapshot().phase, Phase::Waiting);
        assert_eq!(monitor.snapshot().polled, None);
        let now = Instant::now();
        board.begin("g", now);
        board.polled(now);
        board.watermark("orders", 0, 40);
        board.watermark("orders", 0, 50);
        board.totals(9, 2, 1);
        let state = |partition| PartitionState {
            topic: "orders".into(),
            partition,
            epoch: Epoch::new(1),
            unfinished: 2,
            committable: Some(30),
            committed: Some(10),
            delivered: Some(31),
            paused: partition == 1,
        };
        let engine = engine::Snapshot {
            partitions: vec![state(1), state(0)],
            parked: 2,
            store_down: true,
            ..engine::Snapshot::default()
        };
        board.post(engine, Tally { handled: 7, ..Tally::default() });
        let later = now + Duration::from_secs(3);
        let seen = board.snapshot(later);
        assert_eq!((seen.group.as_str(), seen.phase, seen.parked, seen.store_down), ("g", Phase::Running, 2, true));
        assert_eq!((seen.polled, seen.running_for), (Some(Duration::from_secs(3)), Duration::from_secs(3)));
        let places: Vec<_> = seen.partitions.iter().map(|own| (own.partition, own.lag(), own.paused)).collect();
        assert_eq!(places, [(0, Some(20), false), (1, None, true)]);
        assert_eq!((seen.totals.handled, seen.totals.delivered, seen.totals.failed_commits), (7, 9, 1));
    }

    #[test]
    fn phases_go_forward_only() {
        let board = Board::default();
        board.enter(Phase::Ended);
        board.enter(Phase::Closing);
        board.begin("g", Instant::now());
        assert_eq!(board.phase(), Phase::Ended);
    }
}
