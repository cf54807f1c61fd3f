//! Which client settings are refused, and which are added.

use std::time::Duration;

use rdkafka::ClientConfig;

/// Kafka's own default of `max.poll.interval.ms`.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);
const DRAIN: Duration = Duration::from_secs(10);
const COMMIT_EVERY: Duration = Duration::from_secs(1);
const COMMIT_AFTER: u64 = 50_000;
const INTAKE: usize = 2_048;

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
    pub(super) commit_every: Duration,
    pub(super) commit_after: u64,
    pub(super) drain: Option<Duration>,
    pub(super) intake: usize,
}

impl Wishes {
    pub(super) const fn new(client: ClientConfig) -> Self {
        Self {
            client,
            topics: Vec::new(),
            commit_every: COMMIT_EVERY,
            commit_after: COMMIT_AFTER,
            drain: None,
            intake: INTAKE,
        }
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
        self.off("enable.auto.commit", "commits what was delivered, handled or not, and so loses messages.")?;
        self.off("auto.commit.enable", "commits what was delivered, handled or not, and so loses messages.")?;
        self.off("enable.auto.offset.store", "stores what was delivered, handled or not, and so loses messages.")?;
        self.client.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        let backoff_set = self.client.get("fetch.queue.backoff.ms").is_some();
        if !backoff_set {
            self.client.set("fetch.queue.backoff.ms", "10");
        }
        if self.commit_every.is_zero() {
            return Err(refuse("commit_every", "is zero.", "Give the time between two commits, such as one second."));
        }
        if self.intake == 0 {
            return Err(refuse("intake", "is zero, so no message could ever be taken in.", "Give at least 1."));
        }
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
            stall: self.stall()?,
            group,
            backoff_set,
            topics: self.topics,
            commit_every: self.commit_every,
            commit_after: self.commit_after.max(1),
            intake: self.intake,
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
        Ok(self.given("group.instance.id").is_none().then_some(session))
    }
}

/// What was asked, checked and complete.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) client: ClientConfig,
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) commit_every: Duration,
    /// Commit early when this many messages finished.
    pub(super) commit_after: u64,
    /// For how long running handlers are waited for.
    pub(super) drain: Duration,
    /// For how long a synchronous commit is waited for.
    pub(super) commit_wait: Duration,
    /// Unfinished messages that one partition may have.
    pub(super) intake: usize,
    /// Whether the user set `fetch.queue.backoff.ms`.
    pub(super) backoff_set: bool,
    pub(super) stall: Option<Duration>,
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
        never.commit_every = Duration::ZERO;
        assert_eq!(refused(never), "commit_every");
        let mut none = wishes(&[]);
        none.intake = 0;
        assert_eq!(refused(none), "intake");
        assert_eq!(refused(wishes(&[("max.poll.interval.ms", "soon")])), "max.poll.interval.ms");
        assert_eq!(refused(wishes(&[("session.timeout.ms", "0")])), "session.timeout.ms");
    }
}
