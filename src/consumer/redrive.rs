//! Sends dead letters back.

mod decide;
mod read;
mod send;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use tracing::info;

use super::config::ConfigError;
use super::dead_letter::{connection, idempotent};
use super::letter::{LetterError, LetterInfo, Wire};
use crate::store::StoreError;
use crate::wrapper::Once;
use read::Reader;
use send::Run;

pub use decide::Skip;

const MAX_HOPS: u32 = 8;
/// How long the broker or the store may be away before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends dead letters back to where they came from, each as a new generation; the first half of a sentence that [`Redrive::run`] ends.
///
/// `client` holds the consumer's own settings: those that say how to reach the cluster are used.
///
/// ```no_run
/// # use hapax::{Once, redrive};
/// # async fn example(once: Once, kafka: rdkafka::ClientConfig) -> Result<(), Box<dyn std::error::Error>> {
/// let done = redrive(kafka)
///     .from("orders.dead")
///     .known_to(&once) // built as in the consumer
///     .only(|letter| letter.error.as_deref().is_some_and(|error| error.contains("no such address")))
///     .run()
///     .await?;
/// println!("{done}");
/// # Ok(())
/// # }
/// ```
pub fn redrive(client: ClientConfig) -> Redrive {
    Redrive {
        client,
        from: String::new(),
        to: None,
        group: None,
        once: None,
        only: None,
        max_hops: MAX_HOPS,
        from_beginning: false,
        dry_run: false,
        accept_forgotten: false,
        accept_repeats: false,
        patience: PATIENCE,
    }
}

/// Which letters are wanted.
type Choice = Arc<dyn Fn(&LetterInfo) -> bool + Send + Sync>;

/// A wish to send dead letters back; made by [`redrive`](redrive()).
///
/// # What it does
///
/// It reads the dead letter topic from where it last stopped up to its end at the start. For each letter, in this order: the record of its
/// message is requeued in the store (dead becomes due, with its attempts forgotten); the message is produced by an idempotent producer,
/// with its key, payload and own headers, to the partition it came from; and when the broker has acknowledged it, the letter's
/// offset is committed.
///
/// # Again, and after a crash
///
/// A process that dies on the way leaves letters whose offsets are not committed, and running again sends those again. That repeats
/// no effect, at the level of the store: the copies have one identity, and a message whose record has succeeded is not sent
/// at all. Messages without a record (no [`Once`] was named, it remembers nothing, or the message has no identity) are sent *at least once*, and
/// handled as often as they are sent.
///
/// Where the identity is the message's [`position`](crate::identity::position) each copy would be a new message. Such letters are
/// skipped ([`Skip::PositionBound`]); with `header(letter::REDRIVE_KEY).or(position())` as its identity a consumer knows
/// the copies for one, and they are sent.
///
/// Every consumer group that reads the topic gets the message once more. One that handled it knows so if it deduplicates by an identity
/// in the message. Where others read the topic that do not, send back to a topic of your own, with [`to`](Self::to).
///
/// Run one at a time for a dead letter topic and group.
#[derive(Clone)]
#[must_use = "nothing is sent back before `run`"]
pub struct Redrive {
    client: ClientConfig,
    from: String,
    to: Option<String>,
    group: Option<String>,
    once: Option<Once>,
    only: Option<Choice>,
    max_hops: u32,
    from_beginning: bool,
    dry_run: bool,
    accept_forgotten: bool,
    accept_repeats: bool,
    patience: Duration,
}

impl Redrive {
    /// Names the dead letter topic. Needed.
    pub fn from(mut self, topic: impl Into<String>) -> Self {
        self.from = topic.into();
        self
    }

    /// Sends to this topic instead of to each message's own. Never the dead letter topic.
    ///
    /// Under a scope that does not span topics the message has another identity there than it had.
    pub fn to(mut self, topic: impl Into<String>) -> Self {
        self.to = Some(topic.into());
        self
    }

    /// Names the group whose committed offsets tell how far letters were sent back. Default: `hapax-redrive.` and the dead letter
    /// topic. Not the group of a consumer that runs.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Names the wrapper that handles the messages: its store holds their records, and its scope and identity tell whether the message that
    /// is sent back has the identity that it had. Only letters of its group and handler are sent.
    pub fn known_to(mut self, once: &Once) -> Self {
        self.once = Some(once.clone());
        self
    }

    /// Sends only those letters that the closure says yes to. The others are passed: to see them again, say
    /// [`from_beginning`](Self::from_beginning) or name another group.
    pub fn only(mut self, wanted: impl Fn(&LetterInfo) -> bool + Send + Sync + 'static) -> Self {
        self.only = Some(Arc::new(wanted));
        self
    }

    /// Does not send back what has been a dead letter this often. Default: 8.
    pub const fn max_hops(mut self, most: u32) -> Self {
        self.max_hops = most;
        self
    }

    /// Reads all letters, also those that were sent back or passed before. Messages whose records are no longer dead are told by them:
    /// without records everything is sent again.
    pub const fn from_beginning(mut self) -> Self {
        self.from_beginning = true;
        self
    }

    /// Only looks what would be done: requeues, sends and commits nothing.
    pub const fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Sends messages whose record the store no longer has. Default: skipped, since the message may have succeeded before it was
    /// forgotten, or the store may be the wrong one.
    pub const fn accept_forgotten(mut self) -> Self {
        self.accept_forgotten = true;
        self
    }

    /// Sends messages whose identity is their position: each copy is a new message, handled by itself. Default: skipped.
    pub const fn accept_repeats(mut self) -> Self {
        self.accept_repeats = true;
        self
    }

    /// Sets how long the broker or the store may be away before it gives up. Default: 60 s.
    pub const fn patience(mut self, longest: Duration) -> Self {
        self.patience = longest;
        self
    }

    /// Sends the letters back that are in the topic now.
    ///
    /// # Errors
    ///
    /// [`RedriveError`]. Running again is safe, and goes on where it stopped.
    ///
    /// # Cancel safety
    ///
    /// As a crash: letters that were sent and not committed are sent again by the next run.
    // Not an `async fn`: that it is `Send` is said here.
    pub fn run(self) -> impl Future<Output = Result<Redriven, RedriveError>> + Send {
        self.go()
    }

    async fn go(self) -> Result<Redriven, RedriveError> {
        self.check()?;
        let group = self.group.clone().unwrap_or_else(|| format!("hapax-redrive.{}", self.from));
        let connection = connection(&self.client);
        let wire =
            Wire::new(idempotent(connection.clone())?).map_err(|source| self.kafka("make a producer", source))?;
        let mut reader = Reader::open(connection, &self.from, &group, self.from_beginning, self.patience).await?;
        info!(topic = self.from, group, letters = reader.left(), dry_run = self.dry_run, "sending dead letters back");
        let mut run = Run::new(&self, wire);
        while let Some((read, next)) = reader.next().await? {
            run.send_back(&read).await?;
            if !self.dry_run {
                reader.commit(next).await?;
            }
        }
        reader.close().await;
        info!(summary = %run.done, "dead letters were sent back");
        Ok(run.done)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |problem: String, cure| Err(ConfigError { setting: "redrive", problem, cure });
        if self.from.is_empty() {
            return refuse("no dead letter topic is named.".into(), "Say .from(\"orders.dead\").");
        }
        if self.to.as_ref() == Some(&self.from) {
            let problem = format!("`{}` is both read and written to: letters would go round for ever.", self.from);
            return refuse(problem, "Send back to another topic, or leave .to(…) out.");
        }
        if self.to.as_deref() == Some("") || self.group.as_deref() == Some("") {
            return refuse("a topic or group is empty.".into(), "Name it, or leave it out.");
        }
        let own_group = self.client.get("group.id").filter(|own| !own.is_empty());
        if own_group.is_some() && own_group == self.group.as_deref() {
            let problem = "the group is the consumer's own.".to_owned();
            return refuse(problem, "Name another, or leave .group(…) out.");
        }
        Ok(())
    }

    fn kafka(&self, what: &'static str, source: KafkaError) -> RedriveError {
        RedriveError::Kafka { what, topic: self.from.clone(), source }
    }
}

impl fmt::Debug for Redrive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redrive")
            .field("from", &self.from)
            .field("to", &self.to)
            .field("group", &self.group)
            .field("once", &self.once)
            .field("only", &self.only.is_some())
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

/// Why sending back ended early. What was acknowledged before is committed, but for at most the last few hundred letters; those
/// are sent again by the next run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedriveError {
    /// A setting was refused; nothing was read. Not retryable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Letters could not be read, or their offsets not committed. Retryable, as far as the broker's reason is.
    #[error("could not {what} for topic `{topic}`: {source}")]
    Kafka {
        /// What was to be done.
        what: &'static str,
        /// The dead letter topic.
        topic: String,
        /// rdkafka's error.
        source: KafkaError,
    },
    /// The broker did not answer for as long as patience lasts. Retryable.
    #[error("topic `{topic}` could not be read on for {waited:?}")]
    Stalled {
        /// The dead letter topic.
        topic: String,
        /// How long that was waited for.
        waited: Duration,
    },
    /// The dead letter topic does not exist. Not retryable.
    #[error("there is no topic `{topic}`: name the dead letter topic with .from(…)")]
    NoTopic {
        /// Its name.
        topic: String,
    },
    /// A message could not be produced. Retryable where [`LetterError::is_retryable`]; otherwise it stands in the way until it is left out
    /// with [`Redrive::only`].
    #[error("the letter at {letter} could not be sent back: {source}")]
    Send {
        /// Where the letter stands.
        letter: String,
        /// Why.
        source: Box<LetterError>,
    },
    /// The store could not be asked. Retryable where [`StoreError::is_retryable`].
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RedriveError {
    /// Whether the same call may get further later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Kafka { .. } | Self::Stalled { .. } => true,
            Self::Send { source, .. } => source.is_retryable(),
            Self::Store(error) => error.is_retryable(),
            Self::Config(_) | Self::NoTopic { .. } => false,
        }
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Redriven {
    /// Messages read from the dead letter topic.
    pub read: u64,
    /// Messages sent back; with [`Redrive::dry_run`], those that would be.
    pub sent: u64,
    /// Letters that [`Redrive::only`] left out.
    pub filtered: u64,
    /// Letters that were not sent, by reason.
    pub skipped: BTreeMap<Skip, u64>,
}

impl Redriven {
    /// Letters that were not sent, whatever the reason.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped.values().sum()
    }
}

impl fmt::Display for Redriven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read={} sent={} filtered={} skipped={}", self.read, self.sent, self.filtered, self.skipped())?;
        self.skipped.iter().try_for_each(|(skip, count)| write!(f, "; {count}: {skip}"))
    }
}
