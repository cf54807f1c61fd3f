//! A consumer's state at one moment.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a consumer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Phase {
    /// It has not begun to run.
    #[default]
    Waiting,
    /// It runs.
    Running,
    /// It was told to end, and finishes what runs.
    Closing,
    /// It has ended.
    Ended,
}

impl Phase {
    /// `waiting`, `running`, `closing`, `ended`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Closing => "closing",
            Self::Ended => "ended",
        }
    }
}

/// A consumer's state at one moment: what a health endpoint can serve. `Display` writes it as one line of JSON.
///
/// While the consumer is busy it is at most about 100 ms old; while nothing happens, nothing changes. [`polled`](Self::polled) is always
/// of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The consumer group.
    pub group: String,
    /// What the consumer is doing.
    pub phase: Phase,
    /// For how long it has run.
    pub running_for: Duration,
    /// How long ago Kafka was polled last; `None` before the first time. Grows beyond a second only if the consumer's own thread is
    /// stuck, or waits for handlers in a rebalance.
    pub polled: Option<Duration>,
    /// Messages delivered and unfinished, in all partitions.
    pub unfinished: usize,
    /// Handler calls that run.
    pub running: usize,
    /// Claims held whose handlers have not begun.
    pub claimed: usize,
    /// Messages that wait for a retry, or for another owner.
    pub parked: usize,
    /// The store could not be asked the last time: everything waits for it.
    pub store_down: bool,
    /// Handlers said that what they need is down: everything waits for it.
    pub downstream_down: bool,
    /// Partitions that are ours, in order.
    pub partitions: Vec<PartitionSnapshot>,
    /// What was done since the start.
    pub totals: Totals,
}

/// A partition that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionSnapshot {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
    /// Messages delivered and unfinished.
    pub unfinished: usize,
    /// The offset of the last message delivered.
    pub delivered: Option<i64>,
    /// The frontier: the offset that may be committed.
    pub committable: Option<i64>,
    /// What the broker has as committed, as far as is known.
    pub committed: Option<i64>,
    /// The offset that the next message produced will get, as far as is known: librdkafka tells it once a second.
    pub high_watermark: Option<i64>,
    /// Whether it takes nothing in: too much is unfinished, or something is down.
    pub paused: bool,
}

impl PartitionSnapshot {
    /// A partition of which nothing is known.
    #[must_use]
    pub const fn new(topic: Arc<str>, partition: i32) -> Self {
        Self {
            topic,
            partition,
            unfinished: 0,
            delivered: None,
            committable: None,
            committed: None,
            high_watermark: None,
            paused: false,
        }
    }

    /// The first offset that is not finished, as far as is known.
    #[must_use]
    pub fn frontier(&self) -> Option<i64> {
        self.committable.max(self.committed)
    }

    /// Offsets between the frontier and the end of the partition, where both are known. Offsets, not messages: compaction and
    /// transactions leave gaps, and a transaction's end takes an offset of its own, so that this may never be zero. Behind a
    /// transactional producer the last such offset is not committed until a message follows it: Kafka's own tools show a lag of 1 or more too,
    /// and behind a tail of aborted transactions one of all their offsets.
    #[must_use]
    pub fn lag(&self) -> Option<u64> {
        Some(u64::try_from(self.high_watermark? - self.frontier()?).unwrap_or(0))
    }

    /// Offsets between the frontier and what was delivered: what a crash now would have delivered again, but for the last commit.
    #[must_use]
    pub fn behind(&self) -> u64 {
        let (Some(delivered), Some(frontier)) = (self.delivered, self.frontier()) else {
            return self.unfinished as u64;
        };
        u64::try_from(delivered + 1 - frontier).unwrap_or(0)
    }
}

/// What a consumer has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Messages delivered.
    pub delivered: u64,
    /// Messages whose handlers succeeded.
    pub handled: u64,
    /// Not handled: the same topic, partition and offset had been.
    pub redelivered: u64,
    /// Not handled: another message with the same identity had been.
    pub same_id: u64,
    /// Not handled: another message with the same identity says something else.
    pub conflicts: u64,
    /// Given up.
    pub dead: u64,
    /// Commits that the broker said yes to.
    pub commits: u64,
    /// Commits that failed, or were not answered in time.
    pub failed_commits: u64,
}

/// How well a consumer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// It polls, and nothing it needs is down.
    Well,
    /// It polls, and waits for something that is down: restarting it does not help.
    Waiting(&'static str),
    /// It has not polled for longer than it may, or has ended: restarting it may help.
    Stuck(&'static str),
}

impl Snapshot {
    /// How well the consumer is, where Kafka is to be polled at least this often; `max.poll.interval.ms` is a good choice.
    #[must_use]
    pub fn health(&self, poll_within: Duration) -> Health {
        match self.phase {
            Phase::Ended => Health::Stuck("the consumer has ended"),
            Phase::Waiting => Health::Waiting("the consumer has not begun"),
            _ if self.polled.unwrap_or(self.running_for) > poll_within => Health::Stuck("Kafka is not polled"),
            _ if self.store_down => Health::Waiting("the store is down"),
            _ if self.downstream_down => Health::Waiting("what the handlers need is down"),
            _ => Health::Well,
        }
    }

    /// Offsets behind the end of all partitions; `None` if it is not known of any.
    #[must_use]
    pub fn lag(&self) -> Option<u64> {
        self.partitions.iter().filter_map(PartitionSnapshot::lag).reduce(|sum, lag| sum + lag)
    }

    /// Partitions that take nothing in.
    #[must_use]
    pub fn paused(&self) -> usize {
        self.partitions.iter().filter(|partition| partition.paused).count()
    }
}

/// One line of JSON.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"group\":{},\"phase\":\"{}\"", Text(&self.group), self.phase.name())?;
        write!(f, ",\"running_ms\":{}", self.running_for.as_millis())?;
        write!(f, ",\"polled_ms_ago\":{}", Maybe(self.polled.map(|ago| ago.as_millis())))?;
        write!(f, ",\"unfinished\":{},\"running\":{}", self.unfinished, self.running)?;
        write!(f, ",\"claimed\":{},\"parked\":{}", self.claimed, self.parked)?;
        write!(f, ",\"store_down\":{},\"downstream_down\":{}", self.store_down, self.downstream_down)?;
        write!(f, ",\"lag\":{}", Maybe(self.lag()))?;
        let t = &self.totals;
        write!(f, ",\"totals\":{{\"delivered\":{},\"handled\":{}", t.delivered, t.handled)?;
        write!(f, ",\"redelivered\":{},\"same_id\":{}", t.redelivered, t.same_id)?;
        write!(f, ",\"conflicts\":{},\"dead\":{}", t.conflicts, t.dead)?;
        write!(f, ",\"commits\":{},\"failed_commits\":{}}}", t.commits, t.failed_commits)?;
        f.write_str(",\"partitions\":[")?;
        for (at, p) in self.partitions.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{{\"topic\":{},\"partition\":{}", Text(&p.topic), p.partition)?;
            write!(f, ",\"unfinished\":{},\"paused\":{}", p.unfinished, p.paused)?;
            write!(f, ",\"delivered\":{},\"committable\":{}", Maybe(p.delivered), Maybe(p.committable))?;
            write!(f, ",\"committed\":{},\"high_watermark\":{}", Maybe(p.committed), Maybe(p.high_watermark))?;
            write!(f, ",\"lag\":{}}}", Maybe(p.lag()))?;
        }
        f.write_str("]}")
    }
}

pub(super) struct Maybe<T>(pub(super) Option<T>);

impl<T: fmt::Display> fmt::Display for Maybe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("null"),
        }
    }
}

/// A JSON string.
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(at: i32) -> PartitionSnapshot {
        PartitionSnapshot {
            unfinished: 3,
            delivered: Some(9),
            committable: Some(7),
            committed: Some(5),
            high_watermark: Some(27),
            paused: at == 1,
            ..PartitionSnapshot::new("or\"ders".into(), at)
        }
    }

    #[test]
    fn lag_counts_from_the_frontier() {
        let known = partition(0);
        assert_eq!((known.frontier(), known.lag(), known.behind()), (Some(7), Some(20), 3));
        // Nothing is finished yet in this assignment: what the broker has is the frontier.
        let fresh = PartitionSnapshot { committable: None, ..partition(0) };
        assert_eq!((fresh.lag(), fresh.behind()), (Some(22), 5));
        let unknown = PartitionSnapshot::new("t".into(), 0);
        assert_eq!((unknown.lag(), unknown.behind()), (None, 0));
        // A watermark of a second ago may be behind the frontier.
        let ahead = PartitionSnapshot { high_watermark: Some(6), ..partition(0) };
        assert_eq!(ahead.lag(), Some(0));
    }

    #[test]
    fn health_tells_what_a_restart_mends() {
        let second = Duration::from_secs(1);
        let well = Snapshot { phase: Phase::Running, polled: Some(Duration::ZERO), ..Snapshot::default() };
        assert_eq!(well.health(second), Health::Well);
        let silent = Snapshot { polled: Some(2 * second), store_down: true, ..well.clone() };
        assert!(matches!(silent.health(second), Health::Stuck(_)));
        let down = Snapshot { store_down: true, ..well.clone() };
        assert_eq!(down.health(second), Health::Waiting("the store is down"));
        let never = Snapshot { polled: None, running_for: 2 * second, ..well.clone() };
        assert!(matches!(never.health(second), Health::Stuck(_)));
        let ended = Snapshot { phase: Phase::Ended, ..well };
        assert!(matches!(ended.health(second), Health::Stuck(_)));
    }

    #[cfg(feature = "json")]
    #[test]
    fn it_is_shown_as_json() {
        let snapshot = Snapshot {
            group: "a \"group\"\n\\".into(),
            phase: Phase::Running,
            polled: Some(Duration::from_millis(12)),
            unfinished: 6,
            partitions: vec![partition(0), partition(1), PartitionSnapshot::new("new".into(), 2)],
            totals: Totals { handled: 4, ..Totals::default() },
            ..Snapshot::default()
        };
        let text = snapshot.to_string();
        assert!(!text.contains('\n'));
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["group"], "a \"group\"\n\\");
        assert_eq!((&json["polled_ms_ago"], &json["lag"]), (&12.into(), &40.into()));
        assert_eq!(json["partitions"][1]["topic"], "or\"ders");
        assert_eq!((&json["partitions"][0]["paused"], &json["partitions"][1]["paused"]), (&false.into(), &true.into()));
        assert!(json["partitions"][2]["lag"].is_null());
        assert_eq!(json["totals"]["handled"], 4);
        let none: serde_json::Value = serde_json::from_str(&Snapshot::default().to_string()).expect("JSON");
        assert_eq!(none["partitions"].as_array().map(Vec::len), Some(0));
        assert!(none["polled_ms_ago"].is_null());
    }
}
