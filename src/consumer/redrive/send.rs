//! One run: letters in, messages out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::decide::{Decision, Skip, decide};
use super::read::Read;
use super::{Redrive, RedriveError, Redriven};
use crate::consumer::letter::{LetterError, LetterInfo, Outgoing, Wire, redriven, unread};
use crate::identity::Key;
use crate::message::{MessageView, Parts};
use crate::record::Sighting;
use crate::store::{Batch, StoreError};
use crate::wrapper::Once;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// One run.
pub(super) struct Run<'a> {
    wishes: &'a Redrive,
    wire: Wire,
    /// What was sent in this run, by identity: letters come twice.
    sent: HashSet<String>,
    pub(super) done: Redriven,
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

impl<'a> Run<'a> {
    pub(super) fn new(wishes: &'a Redrive, wire: Wire) -> Self {
        Self { wishes, wire, sent: HashSet::new(), done: Redriven::default() }
    }
}

impl Run<'_> {
    /// Sends back what may be of these letters, and waits until it is acknowledged.
    pub(super) async fn send_back(&mut self, read: &Read) -> Result<(), RedriveError> {
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
