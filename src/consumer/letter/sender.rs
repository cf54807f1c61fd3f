//! Producing letters, and telling what came of it.

use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tracing::{debug, error, info, warn};

use super::format::{GivenUp, Sender, hops_before, write};
use crate::consumer::error::unsaid;
use crate::consumer::hush::Hush;
use crate::message::{MessageView, Parts};

/// Why a letter, or a message to be sent back, could not be produced.
///
/// The message it is about is not lost: it is not settled and not committed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LetterError {
    /// The broker is away or busy, or did not acknowledge in time: it may have been written all the same. Retryable.
    #[error("topic `{topic}` could not be written to for now: {source}")]
    Unavailable {
        /// Where it was to go.
        topic: String,
        /// rdkafka's error.
        source: KafkaError,
    },
    /// Kafka refuses it for good. Not retryable without a change.
    #[error("topic `{topic}` cannot be written to: {source}. {cure}")]
    Refused {
        /// Where it was to go.
        topic: String,
        /// What to do.
        cure: &'static str,
        /// rdkafka's error.
        source: KafkaError,
    },
    /// The topic does not exist. Not retryable without a change.
    #[error(
        "topic `{topic}` does not exist. Create it, or say `.create(partitions, replication)` of the dead letter topic."
    )]
    NoTopic {
        /// Its name.
        topic: String,
    },
    /// The topic is compacted: a letter would remove earlier ones of the same key. Not retryable without a change.
    #[error(
        "topic `{topic}` is compacted: letters of the same key would remove each other. Set its cleanup.policy to delete."
    )]
    Compacted {
        /// Its name.
        topic: String,
    },
    /// The message came from the dead letter topic itself: it would go round for ever. Not retryable without a change.
    #[error(
        "topic `{topic}` is read by this consumer and is its dead letter topic: leave it out of the topics, or choose another dead letter topic."
    )]
    Loop {
        /// Its name.
        topic: String,
    },
    /// The message was given up and sent back too often. Not retryable without a change.
    #[error(
        "the message at {message} has been a dead letter {hops} times: mend its handler, or raise `max_hops` ({most})."
    )]
    TooManyHops {
        /// Where it stood.
        message: String,
        /// How often it has been a dead letter.
        hops: u32,
        /// How often it may be.
        most: u32,
    },
}

impl LetterError {
    /// Whether the same may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(in crate::consumer) fn of(topic: &str, source: KafkaError) -> Self {
        use RDKafkaErrorCode as Code;
        let topic = topic.to_owned();
        let cure = match source.rdkafka_error_code() {
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => return Self::NoTopic { topic },
            Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize) => {
                "Raise max.message.bytes of the topic: a letter is its message and up to about 2 KiB of headers."
            }
            Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
                "Give the consumer's user the right to write to it."
            }
            Some(Code::InvalidTopic) => "Choose a name that Kafka takes for a topic.",
            Some(Code::InvalidRecord | Code::PolicyViolation | Code::InvalidTimestamp) => {
                "Look at the topic's settings (cleanup.policy, message.timestamp.*): they do not take such a message."
            }
            Some(Code::UnsupportedForMessageFormat | Code::UnsupportedCompressionType) => {
                "The broker is too old, or lacks the compression asked for."
            }
            _ => return Self::Unavailable { topic, source },
        };
        Self::Refused { topic, cure, source }
    }
}

/// A message to be produced.
#[derive(Debug)]
pub(in crate::consumer) struct Outgoing {
    /// Topic, key, payload, headers and timestamp. Without a timestamp it gets the time of being produced.
    pub(in crate::consumer) parts: Parts,
    /// Where it goes; `None` leaves it to the partitioner.
    pub(in crate::consumer) partition: Option<i32>,
}

type Client = FutureProducer<Log>;

/// An idempotent producer that outlives its own fatal errors.
pub(in crate::consumer) struct Wire {
    config: ClientConfig,
    client: Mutex<Option<Client>>,
}

impl Wire {
    /// Makes the producer. Connects to nothing yet.
    pub(in crate::consumer) fn new(config: ClientConfig) -> Result<Self, KafkaError> {
        let client = Client::from_config_and_context(&config, Log::default()).map_err(unsaid)?;
        Ok(Self { config, client: Mutex::new(Some(client)) })
    }

    fn client(&self) -> Result<Client, KafkaError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let new = Client::from_config_and_context(&self.config, Log::default()).map_err(unsaid)?;
        Ok(client.insert(new).clone())
    }

    /// After a fatal error an idempotent producer refuses everything: the next call gets a new one.
    fn replace_if_fatal(&self, used: Client) {
        let Some((code, reason)) = used.client().fatal_error() else { return };
        warn!(%code, "the producer of letters ended and is made anew: {reason}");
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if client.as_ref().is_some_and(|current| current.client().fatal_error().is_some()) {
            dispose(client.take());
        }
        drop(client);
        dispose(Some(used));
    }

    /// Produces all of them at once, in order, and waits until the broker has acknowledged or refused each.
    ///
    /// Dropped, it leaves each produced or not.
    pub(in crate::consumer) async fn send(&self, outgoing: &[Outgoing]) -> Vec<Result<(), KafkaError>> {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return outgoing.iter().map(|_| Err(error.clone())).collect(),
        };
        let sent: Vec<_> = outgoing.iter().map(|outgoing| enqueue(&client, outgoing)).collect();
        let reports = sent.into_iter().map(async |sent| match sent?.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(error),
            Err(_) => Err(KafkaError::Canceled),
        });
        let results = join_all(reports).await;
        if results.iter().any(Result::is_err) {
            self.replace_if_fatal(client);
        }
        results
    }
}

fn enqueue(
    client: &Client,
    outgoing: &Outgoing,
) -> Result<rdkafka::producer::future_producer::DeliveryFuture, KafkaError> {
    let parts = &outgoing.parts;
    let mut headers = OwnedHeaders::new();
    parts.for_each_header(&mut |key, value| {
        headers = std::mem::take(&mut headers).insert(Header { key, value });
    });
    let record = FutureRecord {
        topic: parts.topic(),
        partition: outgoing.partition,
        payload: MessageView::payload(parts),
        key: MessageView::key(parts),
        timestamp: parts.timestamp_ms(),
        headers: Some(headers),
    };
    client.send_result(record).map_err(|(error, _)| error)
}

impl Drop for Wire {
    fn drop(&mut self) {
        dispose(self.client.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

/// Dropping a producer joins its thread and flushes, which may take half a second: not on a thread that runs futures.
fn dispose(client: Option<Client>) {
    if let Some(client) = client {
        // Where no thread can be had, the closure and the client in it are dropped here.
        let _ = std::thread::Builder::new().name("hapax-letters-end".into()).spawn(move || drop(client));
    }
}

/// Brings librdkafka's log into `tracing`.
#[derive(Default)]
pub(in crate::consumer) struct Log(Hush);

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                error!(facility, "librdkafka: {message}");
            }
            RDKafkaLogLevel::Warning => warn!(facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => info!(facility, "librdkafka: {message}"),
            RDKafkaLogLevel::Debug => debug!(facility, "librdkafka: {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.kafka(&error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for Log {}

/// Produces dead letters; made by [`DeadLetter::connect`](super::super::DeadLetter::connect). Cheap to clone.
///
/// [`Consumer`](super::super::Consumer) has one of its own. This is for a loop of your own, around
/// [`Once::handle`](crate::Once::handle): send the letter where that answers [`Done::Dead`](crate::Done::Dead), and commit
/// once it is acknowledged.
#[derive(Clone, Debug)]
pub struct LetterSender {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wire: Wire,
    topic: String,
    sender: Sender,
    max_hops: u32,
    /// Partitions of the topic; 0 as long as that is not known.
    partitions: AtomicI32,
    look: Look,
}

/// Asks the broker about the topic.
type LookFn = dyn Fn() -> Result<i32, LetterError> + Send + Sync;

struct Look(Arc<LookFn>);

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Look")
    }
}

impl LetterSender {
    pub(in crate::consumer) fn new(
        wire: Wire,
        topic: String,
        sender: Terms,
        look: impl Fn() -> Result<i32, LetterError> + Send + Sync + 'static,
    ) -> Self {
        let Terms { group, handler, error_text, keep_timestamp, max_hops } = sender;
        let sender = Sender { group, handler, error_text, keep_timestamp };
        let look = Look(Arc::new(look));
        Self { shared: Arc::new(Shared { wire, topic, sender, max_hops, partitions: AtomicI32::new(0), look }) }
    }

    /// The dead letter topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.shared.topic
    }

    /// Looks whether the topic is there.
    ///
    /// # Errors
    ///
    /// [`LetterError`]: retryable if the broker could not be asked.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn check(&self) -> Result<(), LetterError> {
        let look = Arc::clone(&self.shared.look.0);
        let looked = tokio::task::spawn_blocking(move || look()).await;
        let partitions = looked.unwrap_or_else(|_| {
            Err(LetterError::Unavailable { topic: self.shared.topic.clone(), source: KafkaError::Canceled })
        })?;
        self.shared.partitions.store(partitions, Ordering::Relaxed);
        Ok(())
    }

    /// Produces the letter of one message, and waits until the broker has acknowledged it.
    ///
    /// # Errors
    ///
    /// [`LetterError`]: retryable where [`LetterError::is_retryable`] says so; a letter may then come twice, with the same
    /// [`IDENTITY`](super::IDENTITY).
    ///
    /// # Cancel safety
    ///
    /// Dropped, the letter may have been produced or not: send it again.
    pub async fn send(&self, message: &impl MessageView, given_up: &GivenUp) -> Result<(), LetterError> {
        self.send_all([(message as &dyn MessageView, given_up)]).await.pop().unwrap_or(Ok(()))
    }

    /// Produces letters all at once; answers for each in their order.
    pub(in crate::consumer) async fn send_all<'m>(
        &self,
        letters: impl IntoIterator<Item = (&'m dyn MessageView, &'m GivenUp)>,
    ) -> Vec<Result<(), LetterError>> {
        // Letters are written before anything is awaited: the messages need not live longer.
        let written: Vec<Result<(Parts, i32), LetterError>> =
            letters.into_iter().map(|(message, given_up)| self.write(message, given_up)).collect();
        self.produce(written).await
    }

    pub(in crate::consumer) fn write(
        &self,
        message: &dyn MessageView,
        given_up: &GivenUp,
    ) -> Result<(Parts, i32), LetterError> {
        let shared = &*self.shared;
        if message.topic() == shared.topic {
            return Err(LetterError::Loop { topic: shared.topic.clone() });
        }
        let hops = hops_before(message);
        if hops >= shared.max_hops {
            let message = format!("{}[{}]@{}", message.topic(), message.partition(), message.offset());
            return Err(LetterError::TooManyHops { message, hops, most: shared.max_hops });
        }
        Ok((write(message, given_up, &shared.sender, &shared.topic), message.partition()))
    }

    pub(in crate::consumer) async fn produce(
        &self,
        written: Vec<Result<(Parts, i32), LetterError>>,
    ) -> Vec<Result<(), LetterError>> {
        let unknown = self.shared.partitions.load(Ordering::Relaxed) <= 0;
        let checked = if unknown { self.check().await } else { Ok(()) };
        let partitions = self.shared.partitions.load(Ordering::Relaxed).max(1);
        let mut results = Vec::with_capacity(written.len());
        let mut outgoing = Vec::with_capacity(written.len());
        for letter in written {
            let ready = letter.and_then(|letter| checked.clone().map(|()| letter));
            results.push(ready.map(|(parts, partition)| {
                // Keys go where the partitioner puts them; null keys stay together as they were.
                let partition = MessageView::key(&parts).is_none().then_some(partition.max(0) % partitions);
                outgoing.push(Outgoing { parts, partition });
            }));
        }
        let mut sent = self.shared.wire.send(&outgoing).await.into_iter();
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            if let Some(Err(error)) = sent.next() {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition) {
                    // It was made again, with fewer: look before the next letter.
                    self.shared.partitions.store(0, Ordering::Relaxed);
                }
                *result = Err(LetterError::of(&self.shared.topic, error));
            }
        }
        results
    }
}

/// What a [`LetterSender`] is told of who sends.
#[derive(Clone, Debug)]
pub(in crate::consumer) struct Terms {
    pub(in crate::consumer) group: Option<String>,
    pub(in crate::consumer) handler: Option<String>,
    pub(in crate::consumer) error_text: usize,
    pub(in crate::consumer) keep_timestamp: bool,
    pub(in crate::consumer) max_hops: u32,
}
