//! What a consumer is set to: which settings are refused, and which are added.

use std::time::Duration;

use rdkafka::ClientConfig;

use super::dead_letter::DeadLetter;
use super::finding::OnReset;
use super::resume::Reset;
use super::windows::Windowed;
use crate::engine::Order;
use crate::retry::Retry;

/// Kafka's own default of `max.poll.interval.ms`.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);
/// For how long the brokers are asked where partitions go on.
const LOOK: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(10);
const COMMIT_EVERY: Duration = Duration::from_secs(1);
const COMMIT_AFTER: u64 = 50_000;
const CONCURRENCY: usize = 64;
const MESSAGES: usize = 16_384;
const BYTES: usize = 64 << 20;
const PARTITION_MESSAGES: usize = 4_096;
/// More messages in hand than this cannot be numbered.
const MOST_MESSAGES: usize = 1 << 30;
/// What a KIP-848 group takes from the broker, and librdkafka therefore refuses.
const CLASSIC_ONLY: [&str; 4] =
    ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms", "group.protocol.type"];

/// A setting with which the consumer does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem} {cure}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The setting.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub cure: &'static str,
}

fn refuse(setting: &'static str, problem: impl Into<String>, cure: &'static str) -> ConfigError {
    ConfigError { setting, problem: problem.into(), cure }
}

/// What the user asked of [`Consumer`](super::Consumer), unchecked.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    pub(super) client: ClientConfig,
    pub(super) topics: Vec<String>,
    pub(super) options: Options,
    pub(super) dead_letter: Option<DeadLetter>,
    pub(super) drain: Option<Duration>,
}

/// How messages are handled, whatever the client is set to.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) order: Order,
    pub(super) concurrency: usize,
    pub(super) step_aside: bool,
    /// `None`: what the handling says.
    pub(super) retry: Option<Retry>,
    /// `None`: by the handling's level.
    pub(super) on_reset: Option<OnReset>,
    /// Messages that may be delivered and unfinished, in all partitions.
    pub(super) max_messages: usize,
    /// Bytes of messages that may be alive.
    pub(super) max_bytes: usize,
    /// Unfinished messages from which on a partition is paused.
    pub(super) partition_messages: usize,
    pub(super) commit_every: Duration,
    /// Commit early when this many messages finished.
    pub(super) commit_after: u64,
}

impl Options {
    const fn new() -> Self {
        Self {
            order: Order::Partition,
            concurrency: CONCURRENCY,
            step_aside: false,
            retry: None,
            on_reset: None,
            max_messages: MESSAGES,
            max_bytes: BYTES,
            partition_messages: PARTITION_MESSAGES,
            commit_every: COMMIT_EVERY,
            commit_after: COMMIT_AFTER,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("concurrency", self.concurrency, "is 0, so no handler could ever run."),
            ("max_messages", self.max_messages, "is 0, so no message could ever be taken in."),
            ("max_bytes", self.max_bytes, "is 0, so no message could ever be taken in."),
            ("partition_messages", self.partition_messages, "is 0, so no message could ever be taken in."),
        ];
        for (setting, value, problem) in at_least_one {
            if value == 0 {
                return Err(refuse(setting, problem, "Give at least 1, or leave it out."));
            }
        }
        if self.max_messages > MOST_MESSAGES {
            return Err(refuse(
                "max_messages",
                format!("is {}, and so many messages are not kept in hand.", self.max_messages),
                "Give at most 1,073,741,824; a few thousand keep any handler busy.",
            ));
        }
        if self.commit_every.is_zero() {
            return Err(refuse("commit_every", "is zero.", "Give the time between two commits, such as one second."));
        }
        if self.commit_after == 0 {
            return Err(refuse("commit_after", "is 0.", "Give at least 1, or leave it out."));
        }
        Ok(())
    }
}

impl Wishes {
    pub(super) const fn new(client: ClientConfig) -> Self {
        Self { client, topics: Vec::new(), options: Options::new(), dead_letter: None, drain: None }
    }

    /// Checks everything that can be checked without a broker.
    pub(super) fn check(mut self) -> Result<Settings, ConfigError> {
        let group = self.given("group.id").map(str::to_owned).ok_or_else(|| {
            refuse("group.id", "is missing, so there is nobody to commit for.", "Name the consumer group.")
        })?;
        let brokers = ["bootstrap.servers", "metadata.broker.list", "test.mock.num.brokers"];
        if brokers.iter().all(|name| self.given(name).is_none()) {
            return Err(refuse("bootstrap.servers", "is missing.", "Give at least one broker as HOST:PORT."));
        }
        if self.topics.is_empty() || self.topics.iter().any(String::is_empty) {
            return Err(refuse("topics", "are missing or empty.", "Name at least one with .topics([\"…\"])."));
        }
        if let Some(topic) = self.topics.iter().find(|topic| topic.contains('\0')) {
            return Err(refuse(
                "topics",
                format!("name {topic:?}, which no topic can be called."),
                "Correct the name.",
            ));
        }
        self.off("enable.auto.commit", "commits what was delivered, handled or not, and so loses messages.")?;
        self.off("auto.commit.enable", "commits what was delivered, handled or not, and so loses messages.")?;
        self.off("enable.auto.offset.store", "stores what was delivered, handled or not, and so loses messages.")?;
        self.client.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        let backoff_set = self.client.get("fetch.queue.backoff.ms").is_some();
        if !backoff_set {
            self.client.set("fetch.queue.backoff.ms", "10");
        }
        self.options.check()?;
        if let Some(dead_letter) = &self.dead_letter {
            dead_letter.check(&self.topics)?;
        }
        self.protocol()?;
        let reset = match self.given("auto.offset.reset") {
            // librdkafka's own default passes what is there.
            None => Reset::Earliest,
            Some(value) => Reset::parse(value).ok_or_else(|| {
                refuse(
                    "auto.offset.reset",
                    format!("is {value:?}."),
                    "Set it to earliest, latest or error, or leave it out.",
                )
            })?,
        };
        // No jump but those that are decided here.
        self.client.set("auto.offset.reset", "error");
        let poll_interval = self.millis("max.poll.interval.ms")?.unwrap_or(MAX_POLL_INTERVAL);
        if self.drain.is_some_and(|drain| drain > poll_interval / 2) {
            return Err(refuse(
                "drain_deadline",
                "is more than half of max.poll.interval.ms: a slow drain would cost the membership.",
                "Shorten it, or raise max.poll.interval.ms.",
            ));
        }
        Ok(Settings {
            drain: self.drain.unwrap_or(DRAIN.min(poll_interval / 2)),
            commit_wait: DRAIN.min(poll_interval / 4),
            look: LOOK.min(poll_interval / 4),
            windows: None,
            reset,
            stall: self.stall()?,
            group,
            backoff_set,
            topics: self.topics,
            options: self.options,
            dead_letter: self.dead_letter,
            client: self.client,
        })
    }

    fn given(&self, name: &str) -> Option<&str> {
        self.client.get(name).filter(|value| !value.trim().is_empty())
    }

    fn off(&self, name: &'static str, why: &str) -> Result<(), ConfigError> {
        match self.client.get(name).map(str::trim) {
            None | Some("false" | "f" | "0") => Ok(()),
            Some(value) => Err(refuse(
                name,
                format!("is {value:?}: {why}"),
                "Remove it or set it to false; hapax commits what is finished.",
            )),
        }
    }

    /// KIP-848: the broker keeps the times and assigns the partitions.
    fn protocol(&self) -> Result<(), ConfigError> {
        if !self.given("group.protocol").is_some_and(|protocol| protocol.trim().eq_ignore_ascii_case("consumer")) {
            return Ok(());
        }
        match CLASSIC_ONLY.into_iter().find(|name| self.client.get(name).is_some()) {
            None => Ok(()),
            Some(name) => Err(refuse(
                name,
                "is set together with group.protocol=consumer, where the broker decides about it.",
                "Remove it, and set it for the group at the broker (group.remote.assignor chooses the assignor), or set group.protocol=classic.",
            )),
        }
    }

    fn millis(&self, name: &'static str) -> Result<Option<Duration>, ConfigError> {
        let Some(value) = self.client.get(name) else { return Ok(None) };
        match value.trim().parse::<u64>() {
            Ok(ms) if ms > 0 => Ok(Some(Duration::from_millis(ms))),
            _ => Err(refuse(name, format!("is {value:?}."), "Give a number of milliseconds above 0.")),
        }
    }

    /// For how long nobody gets this member's partitions after it was killed; `None` where a restart takes them back at once.
    fn stall(&self) -> Result<Option<Duration>, ConfigError> {
        let session = self.millis("session.timeout.ms")?.unwrap_or(SESSION_TIMEOUT);
        // With the protocol of KIP-848 the broker refuses the restart of a killed static member until its session is over.
        let by_broker = self.given("group.protocol").is_some_and(|own| own.eq_ignore_ascii_case("consumer"));
        Ok((by_broker || self.given("group.instance.id").is_none()).then_some(session))
    }
}

impl Settings {
    /// Level L2 says that no effect repeats and none is made up: messages of a transaction that is aborted later must not be handled.
    pub(super) fn reads_committed(&self) -> Result<(), ConfigError> {
        match self.client.get("isolation.level").map(str::trim) {
            Some(level) if level.eq_ignore_ascii_case("read_uncommitted") => Err(refuse(
                "isolation.level",
                "is read_uncommitted: messages of transactions that producers abort would have effects, in a database at level L2.",
                "Remove it, or set it to read_committed, which is librdkafka's default.",
            )),
            _ => Ok(()),
        }
    }
}

/// What was asked, checked and complete.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) client: ClientConfig,
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) options: Options,
    pub(super) dead_letter: Option<DeadLetter>,
    /// For how long running handlers are waited for.
    pub(super) drain: Duration,
    /// For how long a synchronous commit is waited for.
    pub(super) commit_wait: Duration,
    /// Whether the user set `fetch.queue.backoff.ms`.
    pub(super) backoff_set: bool,
    pub(super) stall: Option<Duration>,
    /// What the user's `auto.offset.reset` says.
    pub(super) reset: Reset,
    /// For how long the brokers are asked where partitions go on.
    pub(super) look: Duration,
    /// Whoever keeps windows, once the handling is known.
    pub(super) windows: Option<Windowed>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(settings: &[(&str, &str)]) -> Wishes {
        let mut client = ClientConfig::new();
        client.set("group.id", "g").set("bootstrap.servers", "localhost:1");
        for (name, value) in settings {
            client.set(*name, *value);
        }
        let mut wishes = Wishes::new(client);
        wishes.topics = vec!["orders".into()];
        wishes
    }

    fn refused(wishes: Wishes) -> &'static str {
        let error = wishes.check().expect_err("must be refused");
        assert!(!error.cure.is_empty() && error.to_string().contains(error.setting), "{error}");
        error.setting
    }

    #[test]
    fn automatic_commits_are_refused() {
        for value in ["true", "True", "1", "yes", ""] {
            for name in ["enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store"] {
                assert_eq!(refused(wishes(&[(name, value)])), name, "{value:?}");
            }
        }
        for value in ["false", "f", "0"] {
            assert!(wishes(&[("enable.auto.commit", value), ("enable.auto.offset.store", value)]).check().is_ok());
        }
    }

    #[test]
    fn what_is_unset_becomes_safe() {
        let settings = wishes(&[]).check().expect("complete");
        for (name, value) in
            [("enable.auto.commit", "false"), ("enable.auto.offset.store", "false"), ("fetch.queue.backoff.ms", "10")]
        {
            assert_eq!(settings.client.get(name), Some(value), "{name}");
        }
        assert!(!settings.backoff_set);
        assert_eq!(settings.drain, Duration::from_secs(10));
        assert_eq!(settings.stall, Some(Duration::from_secs(45)));
    }

    #[test]
    fn librdkafka_never_resets_an_offset_by_itself() {
        for (value, reset) in [
            (None, Reset::Earliest),
            (Some("latest"), Reset::Latest),
            (Some("smallest"), Reset::Earliest),
            (Some("error"), Reset::Error),
        ] {
            let settings = value
                .map_or_else(|| wishes(&[]), |value| wishes(&[("auto.offset.reset", value)]))
                .check()
                .expect("complete");
            assert_eq!((settings.reset, settings.client.get("auto.offset.reset")), (reset, Some("error")));
        }
        assert_eq!(refused(wishes(&[("auto.offset.reset", "never")])), "auto.offset.reset");
    }

    #[test]
    fn what_the_user_set_stays() {
        let settings = wishes(&[
            ("fetch.queue.backoff.ms", "250"),
            ("group.instance.id", "a"),
            ("max.poll.interval.ms", "8000"),
            ("session.timeout.ms", "6000"),
        ])
        .check()
        .expect("complete");
        assert_eq!(settings.client.get("fetch.queue.backoff.ms"), Some("250"));
        assert!(settings.backoff_set);
        assert_eq!(settings.drain, Duration::from_secs(4), "never so long that it costs the membership");
        assert_eq!(settings.stall, None, "static members come back to their own partitions");
        let new = wishes(&[("group.protocol", "consumer"), ("group.instance.id", "a")]).check().expect("complete");
        assert_eq!(new.stall, Some(Duration::from_secs(45)), "but not by every protocol");
        let named = wishes(&[("session.timeout.ms", "6000")]).check().expect("complete");
        assert_eq!(named.stall, Some(Duration::from_secs(6)));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(refused(wishes(&[("group.id", " ")])), "group.id");
        assert_eq!(refused(wishes(&[("bootstrap.servers", "")])), "bootstrap.servers");
        let mut none = wishes(&[]);
        none.topics.clear();
        assert_eq!(refused(none), "topics");
        let mut empty = wishes(&[]);
        empty.topics.push(String::new());
        assert_eq!(refused(empty), "topics");
    }

    #[test]
    fn times_that_cannot_be_kept_are_refused() {
        let mut long = wishes(&[("max.poll.interval.ms", "10000")]);
        long.drain = Some(Duration::from_millis(5_001));
        assert_eq!(refused(long), "drain_deadline");
        let mut never = wishes(&[]);
        never.options.commit_every = Duration::ZERO;
        assert_eq!(refused(never), "commit_every");
        assert_eq!(refused(wishes(&[("max.poll.interval.ms", "soon")])), "max.poll.interval.ms");
        assert_eq!(refused(wishes(&[("session.timeout.ms", "0")])), "session.timeout.ms");
    }

    #[test]
    fn bounds_that_let_nothing_through_are_refused() {
        type Change = fn(&mut Options);
        let zero: [(&str, Change); 6] = [
            ("concurrency", |options| options.concurrency = 0),
            ("max_messages", |options| options.max_messages = 0),
            ("max_bytes", |options| options.max_bytes = 0),
            ("partition_messages", |options| options.partition_messages = 0),
            ("commit_after", |options| options.commit_after = 0),
            ("max_messages", |options| options.max_messages = usize::MAX),
        ];
        for (setting, change) in zero {
            let mut wishes = wishes(&[]);
            change(&mut wishes.options);
            assert_eq!(refused(wishes), setting);
        }
        let mut least = wishes(&[]);
        let one = &mut least.options;
        (one.concurrency, one.max_messages, one.max_bytes, one.partition_messages, one.commit_after) = (1, 1, 1, 1, 1);
        assert!(least.check().is_ok());
    }

    #[test]
    fn what_the_broker_decides_in_a_kip_848_group_is_refused() {
        for name in CLASSIC_ONLY {
            for protocol in ["consumer", "CONSUMER"] {
                assert_eq!(refused(wishes(&[("group.protocol", protocol), (name, "6000")])), name);
            }
            assert!(wishes(&[("group.protocol", "classic"), (name, "6000")]).check().is_ok());
        }
        assert!(wishes(&[("group.protocol", "consumer")]).check().is_ok());
    }

    #[test]
    fn level_l2_does_not_read_what_may_be_aborted() {
        for level in ["read_uncommitted", " READ_UNCOMMITTED "] {
            let settings = wishes(&[("isolation.level", level)]).check().expect("fine below L2");
            assert_eq!(settings.reads_committed().expect_err("must be refused").setting, "isolation.level");
        }
        assert!(wishes(&[]).check().expect("complete").reads_committed().is_ok());
        let set = wishes(&[("isolation.level", "read_committed")]).check().expect("complete");
        assert!(set.reads_committed().is_ok());
    }

    #[test]
    fn names_that_no_topic_can_have_are_refused() {
        let mut odd = wishes(&[]);
        odd.topics.push("or\0ders".into());
        assert_eq!(refused(odd), "topics");
    }
}
