//! The start-up report: one screen in the log that says what this consumer does, what may repeat, and what a crash of it costs.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::engine::Order;
use crate::identity::OnMissing;
use crate::level::Level;
use crate::wrapper::{Described, Mode, OnConflict};

/// All that the report says.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) group: &'a str,
    /// `group.instance.id`.
    pub(super) instance: Option<&'a str>,
    /// `group.protocol=consumer`.
    pub(super) new_protocol: bool,
    pub(super) topics: &'a [String],
    pub(super) order: Order,
    pub(super) step_aside: bool,
    pub(super) concurrency: usize,
    /// Messages in one handler call at most, for batch handlers.
    pub(super) batch: Option<usize>,
    /// `None`: handled at least once, without a store.
    pub(super) once: Option<&'a Described>,
    pub(super) attempts: u32,
    pub(super) retries: bool,
    /// The dead letter topic.
    pub(super) dead_letter: Option<&'a str>,
    /// What happens to resets.
    pub(super) on_reset: Option<&'a str>,
    pub(super) partition_messages: usize,
    pub(super) max_messages: usize,
    pub(super) max_bytes: usize,
    pub(super) commit_every: Duration,
    pub(super) commit_after: u64,
    pub(super) drain: Duration,
    /// The session time-out that a crash of this member costs; `None` where a restart takes its partitions back at once.
    pub(super) stall: Option<Duration>,
    /// `fetch.queue.backoff.ms` was set here, not by the user.
    pub(super) backoff_set_here: bool,
}

impl Report<'_> {
    fn guarantee(&self) -> String {
        let Some(once) = self.once else {
            return "at least once, without a store: an effect repeats with every redelivery and every copy".into();
        };
        let lease = Span(once.lease);
        let may_repeat = match (once.mode, once.level) {
            (Mode::AtLeastOnce, _) => {
                return "at least once: an effect repeats with every redelivery and every copy".into();
            }
            (Mode::AtMostOnce, _) => {
                return "at most once: no effect repeats as long as the store remembers; what fails or crashes is LOST"
                    .into();
            }
            (Mode::Deduplicated, Some(Level::L0)) => format!(
                "an effect may repeat after a lease that ran out ({lease}, renewed while the handler runs), a crash between effect and \
                 settle, or a store that forgot (restart, failover, eviction)"
            ),
            (Mode::Deduplicated, Some(Level::L2)) => "no effect repeats in that database".into(),
            // Windows, and no claims.
            (Mode::Deduplicated, Some(Level::L1)) if once.lease.is_zero() => {
                "an effect may repeat after a crash, or a stand-still, between effect and the move of its window".into()
            }
            (Mode::Deduplicated, Some(Level::L3)) => "no effect repeats at a resource that honours the key".into(),
            (Mode::Deduplicated, _) => format!(
                "an effect may repeat after a lease that ran out ({lease}, renewed while the handler runs), or a crash between effect and \
                 settle"
            ),
        };
        let level = once.level.map(|level| format!("level {level}: ")).unwrap_or_default();
        format!("nothing is lost; {level}{may_repeat}")
    }

    fn identity(once: &Described) -> String {
        let missing = match once.on_missing {
            OnMissing::Reject => "without one: given up",
            OnMissing::HandleWithoutDedup => "without one: handled, not remembered",
        };
        let conflict = match once.on_conflict {
            OnConflict::Stop => "same one, other contents: given up",
            OnConflict::Skip => "same one, other contents: skipped",
            OnConflict::Handle => "same one, other contents: handled, not remembered",
        };
        format!("{} in the scope ({}, {}); {missing}; {conflict}", once.identity, once.group, once.handler)
    }

    fn handlers(&self) -> String {
        let order = match self.order {
            Order::Partition => "in the order of the partition",
            Order::Key => "in the order of the record key (null keys: in any order)",
            Order::Unordered => "in any order",
        };
        let mut text = format!("{order}, up to {} at once", Count(self.concurrency as u64));
        if let Some(batch) = self.batch {
            let _ = write!(text, ", up to {} messages each", Count(batch as u64));
        }
        if let Some(timeout) = self.once.and_then(|once| once.handler_timeout) {
            let _ = write!(text, ", dropped after {}", Span(timeout));
        }
        text
    }

    fn failures(&self) -> String {
        let attempts = match self.attempts {
            _ if !self.retries => "the first failure ends the consumer".to_owned(),
            u32::MAX => "tried again without end".to_owned(),
            n => format!("up to {n} attempts"),
        };
        let aside = match (self.retries, self.step_aside) {
            (false, _) => "",
            (true, true) => ", others go on meanwhile (this breaks the order)",
            (true, false) if self.order == Order::Unordered => ", others go on meanwhile",
            (true, false) => ", what is behind it in order waits",
        };
        let dead = match self.dead_letter {
            Some(topic) => format!("given up to the topic {topic}"),
            None if self.once.is_some() => "given up as dead in the store".to_owned(),
            None => "given up: the consumer ends".to_owned(),
        };
        format!("{attempts}{aside}; then {dead}")
    }

    fn member(&self) -> String {
        let protocol = if self.new_protocol { ", protocol of KIP-848" } else { "" };
        match self.instance {
            Some(instance) => format!("{instance} (static){protocol}"),
            None => format!("dynamic{protocol}"),
        }
    }

    fn crash(&self) -> String {
        match self.stall {
            Some(stall) if self.new_protocol => format!(
                "if this member is killed, nobody gets its partitions for the session time-out ({}, or what the broker says), its own \
                 restart neither, static or not, which waits for them: set a shorter group.consumer.session.timeout.ms at the broker",
                Span(stall)
            ),
            Some(stall) => format!(
                "if this member is killed, nobody gets its partitions for {} (session.timeout.ms): set group.instance.id, so that its \
                 restart gets them back at once, or a shorter session.timeout.ms",
                Span(stall)
            ),
            None => "a restart of this member gets its partitions back at once".into(),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, text: &dyn fmt::Display| writeln!(f, "  {name:<10} {text}");
        line("group", &self.group)?;
        line("member", &self.member())?;
        line("topics", &self.topics.join(", "))?;
        line("guarantee", &self.guarantee())?;
        if let Some(once) = self.once {
            if once.mode != Mode::AtLeastOnce {
                let (succeeded, dead) = (once.retention.succeeded, once.retention.dead);
                if succeeded == Duration::MAX {
                    line("store", &format_args!("{}; forgets nothing by itself", once.store))?;
                } else {
                    let kept = (Span(succeeded), Span(dead));
                    line(
                        "store",
                        &format_args!(
                            "{}; remembers what succeeded for {}, what is dead for {}",
                            once.store, kept.0, kept.1
                        ),
                    )?;
                }
                line("identity", &Self::identity(once))?;
            }
            for finding in &once.findings {
                line("WARNING", finding)?;
            }
        }
        line("handlers", &self.handlers())?;
        line("failures", &self.failures())?;
        if let Some(on_reset) = self.on_reset {
            line("resets", &on_reset)?;
        }
        line(
            "bounds",
            &format_args!(
                "{} messages and {} in hand, {} messages of one partition; librdkafka's own queues beside",
                Count(self.max_messages as u64),
                Bytes(self.max_bytes as u64),
                Count(self.partition_messages as u64)
            ),
        )?;
        line(
            "commits",
            &format_args!("every {}, or after {} messages", Span(self.commit_every), Count(self.commit_after)),
        )?;
        line("drain", &format_args!("running handlers are waited for up to {} when partitions go", Span(self.drain)))?;
        if self.backoff_set_here {
            line(
                "fetch",
                &"fetch.queue.backoff.ms is set to 10: with librdkafka's 1000 a full queue stops the fetcher for a second",
            )?;
        }
        line("crash", &self.crash())
    }
}

/// A duration in the largest unit that says it exactly.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if self.0.subsec_nanos() != 0 {
            return write!(f, "{:?}", self.0);
        }
        match seconds {
            s if s >= 2 * 86_400 && s % 86_400 == 0 => write!(f, "{} days", s / 86_400),
            s if s >= 2 * 3_600 && s % 3_600 == 0 => write!(f, "{} hours", s / 3_600),
            s if s >= 120 && s % 60 == 0 => write!(f, "{} min", s / 60),
            s => write!(f, "{s} s"),
        }
    }
}

/// A number with its thousands set apart.
struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        if self.0 >= MIB && self.0.is_multiple_of(MIB) {
            write!(f, "{} MiB", self.0 / MIB)
        } else {
            write!(f, "{} bytes", Count(self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Retention;

    fn described(mode: Mode, level: Option<Level>) -> Described {
        Described {
            group: "orders".into(),
            handler: "ship".into(),
            mode,
            level,
            store: "sqlite",
            retention: Retention::default(),
            identity: "Header { name: \"message-id\" }".into(),
            on_missing: OnMissing::Reject,
            on_conflict: OnConflict::Stop,
            lease: Duration::from_secs(60),
            handler_timeout: None,
            findings: vec!["synchronous: is NORMAL. Set FULL.".into()],
        }
    }

    fn report<'a>(topics: &'a [String], once: Option<&'a Described>) -> Report<'a> {
        Report {
            group: "orders",
            instance: None,
            new_protocol: false,
            topics,
            order: Order::Key,
            step_aside: false,
            concurrency: 1_000,
            batch: None,
            once,
            attempts: 8,
            retries: true,
            dead_letter: Some("orders.dead"),
            on_reset: Some("refused"),
            partition_messages: 4_096,
            max_messages: 20_000,
            max_bytes: 64 << 20,
            commit_every: Duration::from_secs(1),
            commit_after: 50_000,
            drain: Duration::from_millis(2_500),
            stall: Some(Duration::from_secs(45)),
            backoff_set_here: true,
        }
    }

    #[test]
    fn it_says_what_runs_what_may_repeat_and_what_a_crash_costs() {
        let topics = ["orders".to_owned(), "refunds".to_owned()];
        let once = described(Mode::Deduplicated, Some(Level::L1));
        let text = report(&topics, Some(&once)).to_string();
        for line in [
            "  group      orders\n",
            "  member     dynamic\n",
            "  topics     orders, refunds\n",
            "  guarantee  nothing is lost; level L1: an effect may repeat after a lease that ran out (60 s, renewed while the handler runs), or a \
             crash between effect and settle\n",
            "  store      sqlite; remembers what succeeded for 14 days, what is dead for 90 days\n",
            "  identity   Header { name: \"message-id\" } in the scope (orders, ship); without one: given up; same one, other contents: given up\n",
            "  WARNING    synchronous: is NORMAL. Set FULL.\n",
            "  handlers   in the order of the record key (null keys: in any order), up to 1,000 at once\n",
            "  failures   up to 8 attempts, what is behind it in order waits; then given up to the topic orders.dead\n",
            "  resets     refused\n",
            "  bounds     20,000 messages and 64 MiB in hand, 4,096 messages of one partition; librdkafka's own queues beside\n",
            "  commits    every 1 s, or after 50,000 messages\n",
            "  drain      running handlers are waited for up to 2.5s when partitions go\n",
            "  fetch      fetch.queue.backoff.ms is set to 10",
            "  crash      if this member is killed, nobody gets its partitions for 45 s (session.timeout.ms): set group.instance.id",
        ] {
            assert!(text.contains(line), "{line} is missing from\n{text}");
        }
        assert!(text.lines().count() <= 24, "one screen");
    }

    #[test]
    fn every_mode_says_what_it_is() {
        let says = |once: Option<Described>, what: &str| {
            let text = report(&[], once.as_ref()).to_string();
            assert!(text.contains(what), "{what} is missing from\n{text}");
            text
        };
        let plain = says(None, "guarantee  at least once, without a store");
        assert!(!plain.contains("identity") && !plain.contains("  store"));
        says(Some(described(Mode::AtMostOnce, None)), "LOST");
        let bare = says(Some(described(Mode::AtLeastOnce, None)), "guarantee  at least once: an effect repeats");
        assert!(!bare.contains("identity"), "nothing is remembered");
        says(Some(described(Mode::Deduplicated, Some(Level::L0))), "level L0: an effect may repeat after");
        says(Some(described(Mode::Deduplicated, Some(Level::L0))), "a store that forgot");
        let mut once = described(Mode::Deduplicated, Some(Level::L2));
        once.retention = Retention { succeeded: Duration::MAX, dead: Duration::MAX, unsettled: Duration::MAX };
        let text = says(Some(once), "level L2: no effect repeats in that database");
        assert!(text.contains("; forgets nothing by itself\n"), "{text}");
    }

    #[test]
    fn a_static_member_has_no_stall_and_each_policy_its_words() {
        let topics = ["orders".to_owned()];
        let of = |change: fn(&mut Report<'_>)| {
            let mut report = report(&topics, None);
            change(&mut report);
            report.to_string()
        };
        let member = of(|report| (report.instance, report.stall) = (Some("a"), None));
        assert!(member.contains("  member     a (static)\n") && member.contains("gets its partitions back at once"));
        let new = of(|report| report.new_protocol = true);
        assert!(new.contains("KIP-848") && new.contains("group.consumer.session.timeout.ms"));
        assert!(of(|report| report.retries = false).contains("the first failure ends the consumer"));
        assert!(of(|report| report.step_aside = true).contains("this breaks the order"));
        assert!(of(|report| report.order = Order::Unordered).contains("others go on meanwhile; then"));
        assert!(of(|report| report.dead_letter = None).contains("given up: the consumer ends"));
        assert!(of(|report| report.attempts = u32::MAX).contains("without end"));
        assert!(of(|report| report.batch = Some(500)).contains("up to 500 messages each"));
        assert!(of(|report| report.max_bytes = 1_000).contains("1,000 bytes"));
    }

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(
            [0, 12, 999, 1_000, 1_234_567].map(|n| Count(n).to_string()),
            ["0", "12", "999", "1,000", "1,234,567"]
        );
        let spans = [1, 60, 119, 120, 121, 7_200, 90_000, 172_800].map(|s| Span(Duration::from_secs(s)).to_string());
        assert_eq!(spans, ["1 s", "60 s", "119 s", "2 min", "121 s", "2 hours", "25 hours", "2 days"]);
    }
}
