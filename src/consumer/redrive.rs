//! Sends dead letters back.

mod decide;
mod read;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::config::ConfigError;
use super::dead_letter::{connection, idempotent};
use super::letter::{LetterError, LetterInfo, Outgoing, Wire, redriven, unread};
use crate::identity::Key;
use crate::message::{MessageView, Parts};
use crate::record::Sighting;
use crate::store::{Batch, StoreError};
use crate::wrapper::Once;
use decide::{Decision, decide};
use read::{Read, Reader};

pub use decide::Skip;

const MAX_HOPS: u32 = 8;
/// How long the broker or the store may be away before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
        let mut run = Run { wishes: &self, wire, sent: HashSet::new(), done: Redriven::default() };
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

/// One run.
struct Run<'a> {
    wishes: &'a Redrive,
    wire: Wire,
    /// What was sent in this run, by identity: letters come twice.
    sent: HashSet<String>,
    done: Redriven,
}

/// A message that may be sent back.
struct Candidate<'a> {
    letter: &'a Parts,
    info: LetterInfo,
    message: Parts,
    sighting: Option<Sighting>,
}

impl Candidate<'_> {
    /// What makes two letters be of one message.
    fn identity(&self) -> String {
        match &self.sighting {
            Some(sighting) => sighting.key.to_string(),
            None => self.info.identity.clone(),
        }
    }
}

impl Run<'_> {
    /// Sends back what may be of these letters, and waits until it is acknowledged.
    async fn send_back(&mut self, read: &Read) -> Result<(), RedriveError> {
        let mut candidates = Vec::new();
        for letter in read {
            self.done.read += 1;
            match self.consider(letter) {
                Ok(Some(candidate)) => candidates.push(candidate),
                Ok(None) => self.done.filtered += 1,
                Err(skip) => self.skip(letter, skip),
            }
        }
        // Letters of one message: the latest death counts, lest its hops begin anew.
        let mut most: HashMap<String, (u32, usize)> = HashMap::new();
        for (at, candidate) in candidates.iter().enumerate() {
            let most = most.entry(candidate.identity()).or_default();
            *most = (*most).max((candidate.info.hops, at));
        }
        let mut requeue = Vec::new();
        let mut chosen = Vec::new();
        for (at, (candidate, decision)) in self.decisions(candidates).await?.into_iter().enumerate() {
            let identity = candidate.identity();
            let (hops, latest) = most.get(&identity).copied().unwrap_or((candidate.info.hops, at));
            match decision {
                Decision::Skip(skip) => self.skip(candidate.letter, skip),
                Decision::Send { .. } if hops >= self.wishes.max_hops => {
                    self.skip(candidate.letter, Skip::TooManyHops);
                }
                Decision::Send { .. } if at != latest => self.skip(candidate.letter, Skip::Repeated),
                Decision::Send { dead } => {
                    if !self.sent.insert(identity) {
                        self.skip(candidate.letter, Skip::Repeated);
                        continue;
                    }
                    requeue.extend(candidate.sighting.as_ref().filter(|_| dead).map(|sighting| sighting.key));
                    chosen.push(candidate);
                }
            }
        }
        self.done.sent += chosen.len() as u64;
        if self.wishes.dry_run {
            return Ok(());
        }
        // Before they are produced: a message that comes while its record is dead would be given up again.
        if let (Some(once), false) = (&self.wishes.once, requeue.is_empty()) {
            let keys: Batch<Key> = requeue.into_iter().collect();
            patiently(self.wishes.patience, || once.store().requeue(&keys)).await?;
        }
        self.produce(chosen).await
    }

    /// What to send of a letter, before the store is asked. `Ok(None)` if it is not wanted.
    fn consider<'l>(&self, letter: &'l Parts) -> Result<Option<Candidate<'l>>, Skip> {
        let wishes = self.wishes;
        let info = LetterInfo::read(letter).map_err(|error| {
            debug!(%error, "skipped");
            Skip::NotALetter
        })?;
        if wishes.only.as_ref().is_some_and(|wanted| !wanted(&info)) {
            return Ok(None);
        }
        let to = wishes.to.as_deref().unwrap_or(&info.topic);
        if to == wishes.from {
            return Err(Skip::Loop);
        }
        let message = redriven(letter, &info, to);
        let sighting = match wishes.once.as_ref().filter(|once| once.remembers()) {
            Some(once) => {
                let scope = once.scope();
                let other = |theirs: &Option<String>, ours| theirs.as_deref().is_some_and(|theirs| theirs != ours);
                if other(&info.group, scope.group()) || other(&info.handler, scope.handler()) {
                    return Err(Skip::OtherHandler);
                }
                self.identity(once, &message)?
            }
            None if info.key.is_some() => return Err(Skip::NoStore),
            None => None,
        };
        Ok(Some(Candidate { letter, info, message, sighting }))
    }

    /// What the store will know the message by, wherever it will stand.
    fn identity(&self, once: &Once, message: &Parts) -> Result<Option<Sighting>, Skip> {
        // Nobody knows its partition and offset yet. Two places that differ in both tell whether they matter.
        let at = |partition, offset| once.sighting(&unread(message, partition, offset)).map_err(|_| Skip::NoIdentity);
        let (one, two) = (at(0, 1)?, at(1, 2)?);
        match (one, two) {
            (Some(one), Some(two)) if one.key == two.key => Ok(Some(one)),
            (None, None) => Ok(None),
            _ if self.wishes.accept_repeats => Ok(None),
            _ => Err(Skip::PositionBound),
        }
    }

    /// Asks the store what became of the messages.
    async fn decisions<'l>(
        &self,
        candidates: Vec<Candidate<'l>>,
    ) -> Result<Vec<(Candidate<'l>, Decision)>, RedriveError> {
        let Some(once) = self.wishes.once.as_ref().filter(|once| once.remembers()) else {
            return Ok(candidates.into_iter().map(|candidate| (candidate, Decision::Send { dead: false })).collect());
        };
        let keys: Batch<Key> = candidates
            .iter()
            .flat_map(|candidate| [candidate.info.key, candidate.sighting.as_ref().map(|sighting| sighting.key)])
            .flatten()
            .collect();
        let records = patiently(self.wishes.patience, || once.store().get(&keys)).await?;
        let found: BTreeMap<Key, _> =
            keys.keys().zip(records).filter_map(|(key, record)| Some((key, record?))).collect();
        let decided = candidates.into_iter().map(|candidate| {
            let own = candidate.info.key.map(|key| (key, found.get(&key)));
            let next = candidate.sighting.as_ref().map(|sighting| (sighting, found.get(&sighting.key)));
            let decision = decide(own, next, self.wishes.accept_forgotten);
            (candidate, decision)
        });
        Ok(decided.collect())
    }

    /// Produces messages until each is acknowledged.
    async fn produce(&self, chosen: Vec<Candidate<'_>>) -> Result<(), RedriveError> {
        let mut names = Vec::with_capacity(chosen.len());
        let mut outgoing = Vec::with_capacity(chosen.len());
        for candidate in chosen {
            // Back to its own partition, where its key belongs; elsewhere the key says where.
            let partition = self.wishes.to.is_none().then_some(candidate.info.partition);
            let letter = candidate.letter;
            names.push(format!("{}[{}]@{}", letter.topic(), letter.partition(), letter.offset()));
            outgoing.push(Outgoing { parts: candidate.message, partition });
        }
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        while !outgoing.is_empty() {
            let results = self.wire.send(&outgoing).await;
            let mut again = Vec::new();
            let mut failed = None;
            for ((name, mut message), result) in names.into_iter().zip(outgoing).zip(results) {
                let Err(source) = result else { continue };
                if source.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownPartition)
                    && message.partition.is_some()
                {
                    // The topic has fewer partitions than it had.
                    message.partition = None;
                } else {
                    let source = Box::new(LetterError::of(message.parts.topic(), source));
                    let retryable = source.is_retryable();
                    failed = Some(RedriveError::Send { letter: name.clone(), source });
                    if !retryable {
                        break;
                    }
                }
                again.push((name, message));
            }
            if let Some(error) = failed {
                let retryable = matches!(&error, RedriveError::Send { source, .. } if source.is_retryable());
                if !retryable || began.elapsed() + pause > self.wishes.patience {
                    return Err(error);
                }
                warn!(%error, letters = again.len(), "tried again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            (names, outgoing) = again.into_iter().unzip();
        }
        Ok(())
    }

    fn skip(&mut self, letter: &Parts, skip: Skip) {
        warn!(
            topic = letter.topic(),
            partition = letter.partition(),
            offset = letter.offset(),
            "not sent back: {skip}"
        );
        *self.done.skipped.entry(skip).or_default() += 1;
    }
}

/// Asks the store until it answers, or patience ends.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    patience: Duration,
    ask: impl Fn() -> F,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match ask().await {
            Err(error) if error.is_retryable() && began.elapsed() + pause <= patience => {
                warn!(%error, "asked again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            answer => return answer,
        }
    }
}
