//! How a consumer is set.

use std::time::Duration;

use rdkafka::ClientConfig;

use super::config::Wishes;
use super::dead_letter::DeadLetter;
use super::finding::OnReset;
use super::monitor::Monitor;
use super::observe::Probe;
use crate::engine::Order;
use crate::observe::Observer;
use crate::retry::Retry;

/// A Kafka consumer that handles each message once. See the [module](super) for what it does.
///
/// Nonsense is not refused here but by [`run`](Self::run), before the broker is touched: see [`ConfigError`](super::ConfigError).
#[derive(Debug)]
#[must_use = "a consumer does nothing until it runs"]
pub struct Consumer {
    pub(super) wishes: Wishes,
    pub(super) probe: Probe,
}

impl Clone for Consumer {
    fn clone(&self) -> Self {
        Self { wishes: self.wishes.clone(), probe: self.probe.another() }
    }
}

impl Consumer {
    /// A consumer with rdkafka's own settings: `group.id` and `bootstrap.servers` at least.
    ///
    /// Added where they are not set: `enable.auto.commit=false`, `enable.auto.offset.store=false`, and `fetch.queue.backoff.ms=10`, without which
    /// librdkafka stops fetching for a second whenever its queue is full.
    pub fn new(client: ClientConfig) -> Self {
        Self { wishes: Wishes::new(client), probe: Probe::default() }
    }

    /// Which topics to read. A name that begins with `^` is a regular expression, as in librdkafka.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.wishes.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Which messages wait for which. Default: [`Order::Partition`].
    pub const fn order(mut self, order: Order) -> Self {
        self.wishes.options.order = order;
        self
    }

    /// How many handler calls may run at once, over all partitions. Default: 64. At least 1.
    ///
    /// They are futures that wait side by side, not threads: a handler that computes for long or blocks belongs into
    /// `tokio::task::spawn_blocking`. By partition, no more run than there are partitions.
    pub const fn concurrency(mut self, handlers: usize) -> Self {
        self.wishes.options.concurrency = handlers;
        self
    }

    /// Lets what is behind a failed message in its partition or key go on while that waits for its retry. **Breaks the order** for
    /// messages that fail. Default: a message that waits holds what has to come after it.
    pub const fn step_aside(mut self) -> Self {
        self.wishes.options.step_aside = true;
        self
    }

    /// How often a message whose handler failed is tried, and when. Default: what the handling was built with (see
    /// [`OnceBuilder::retry`](crate::OnceBuilder::retry)), else [`Retry::default`].
    ///
    /// Attempts are counted by the store before the handler runs, so that one that took the process with it counts.
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.wishes.options.retry = Some(retry);
        self
    }

    /// Sends what is given up to a dead letter topic before it is passed: messages whose attempts are used up or that fail for good, that have no usable
    /// identity, or that are in conflict with another of the same identity. Default: they are dead in the store and passed; what the store
    /// cannot know ends the consumer.
    ///
    /// A message is settled as dead and committed only once the broker has acknowledged its letter. Where the topic cannot be written to for now, its
    /// partition (or key) waits, and nothing is lost; where it never can (too large, not authorised, a loop), the consumer ends and says
    /// what to do. At the start the topic is looked at, for 10 seconds at most.
    pub fn dead_letter(mut self, dead_letter: DeadLetter) -> Self {
        self.wishes.dead_letter = Some(dead_letter);
        self
    }

    /// What to do where a partition does not go on where the group left off: its offset is gone or out of range, or the topic was deleted
    /// and made again. See [`Finding`](super::Finding). Default: [`OnReset::Refuse`] where the handling's level is L1 or higher, [`OnReset::Warn`] else.
    ///
    /// librdkafka would jump in silence. Here its `auto.offset.reset` is always `error`: where each partition begins is looked at when it is
    /// assigned (for 5 seconds at most), and *your* `auto.offset.reset` counts only where this policy allows it. Where you set none it is
    /// `earliest`, so that nothing is passed.
    ///
    /// Each commit carries about 100 bytes of metadata: offset, time and fingerprint of a message below it. By that a topic that was
    /// recreated, or another cluster, is told from the one that was read. An offset that a person commits with a tool carries none, and is
    /// taken as meant: that, or one run with [`OnReset::Accept`], is how to go on after a refusal.
    ///
    /// What is not noticed: a topic that is deleted and made again so quickly that no member hears of it, and that has grown past the old offset by
    /// then. Where [`position`](crate::identity::position) is the identity, the messages of a recreated topic have the identities of old
    /// ones, and come out as conflicts: change the handler's name in the scope.
    ///
    /// With [`OnReset::Refuse`] a store whose [`Retention`](crate::store::Retention) is shorter than a topic's is an error at start-up, else a warning.
    pub const fn on_reset(mut self, on_reset: OnReset) -> Self {
        self.wishes.options.on_reset = Some(on_reset);
        self
    }

    /// How many messages may be delivered and unfinished, over all partitions. Default: 16,384. At least 1.
    ///
    /// A hard bound. When it is reached, all partitions are paused, and polling goes on.
    pub const fn max_messages(mut self, messages: usize) -> Self {
        self.wishes.options.max_messages = messages;
        self
    }

    /// How many bytes of messages may be in memory here, over all partitions. Default: 64 MiB. At least 1.
    ///
    /// Counted are the buffers that messages were copied into, each as long as any of its messages lives (1,024 messages or 1 MiB at most, or one
    /// larger message): keys, payloads, headers, and about 64 bytes for each message. The bound is exceeded by at most one message. Not counted: what
    /// buffers hold in reserve (up to as much again, and 4 MiB of empty ones), and messages that handlers keep after they finished.
    /// A message that waits for a retry is moved to a buffer of its own.
    ///
    /// librdkafka has its own queue on top of that, bounded by its `queued.max.messages.kbytes` (64 MiB by default) plus one fetch of
    /// `fetch.message.max.bytes` for each partition, as it is sent: where messages compress well it takes many times as much, and a lower
    /// `fetch.message.max.bytes` bounds it. What a process takes at most is therefore about the sum of both, and the reserve.
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.wishes.options.max_bytes = bytes;
        self
    }

    /// From how many unfinished messages on a partition is full: paused as long as it stands still, or takes the room of the others. Default:
    /// 4,096. At least 1.
    ///
    /// Not a hard bound: a few batches of 1,024 may be on their way, and a partition that moves on goes beyond it while there is room.
    /// [`max_messages`](Self::max_messages) is.
    pub const fn partition_messages(mut self, messages: usize) -> Self {
        self.wishes.options.partition_messages = messages;
        self
    }

    /// Time between two commits while partitions are owned. Default: one second.
    ///
    /// A member that is killed leaves at most so much behind to be delivered again; the store knows that it was handled.
    pub const fn commit_every(mut self, every: Duration) -> Self {
        self.wishes.options.commit_every = every;
        self
    }

    /// Commit earlier when so many messages finished. Default: 50,000. At least 1.
    pub const fn commit_after(mut self, messages: u64) -> Self {
        self.wishes.options.commit_after = messages;
        self
    }

    /// Tells `observer` what happens; several may be given. Without any, nothing of it is computed. Clones tell the same observers.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.probe.add(observer);
        self
    }

    /// A look at this consumer, from before it runs until after it has ended: for a health endpoint. It does not see clones of the consumer
    /// that are made after it.
    pub fn monitor(&self) -> Monitor {
        self.probe.monitor()
    }

    /// How long running handlers are waited for when their partition is revoked or the consumer ends. Default: 10 seconds,
    /// but never more than half of `max.poll.interval.ms`.
    ///
    /// A handler that takes longer is dropped where it waits; its message is delivered again, to whoever gets the partition.
    ///
    /// What a store that is away has not heard by then is told to it for as long again. So give a process twice this time and a few seconds
    /// (Kubernetes: `terminationGracePeriodSeconds`) before it is killed.
    pub const fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.wishes.drain = Some(deadline);
        self
    }
}
