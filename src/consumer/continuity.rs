//! Looks what is there before a partition is taken in, so that no offset is jumped to without a decision. [`resume`](super::resume) decides.
//!
//! `auto.offset.reset` is `error` for librdkafka, whatever the user set: a partition begins where it is told to here. What cannot be
//! looked at in time begins as librdkafka would begin it; if there is no valid offset, that comes back as an error, and is
//! decided then.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tracing::{debug, error, info, warn};

use super::finding::{Finding, Found, OnReset};
use super::look::{Looker, Place, Wanted, committed, pin, reader_config, restart};
use super::resume::{Look, Reset, Resume, Seen, by_reset, decide, out_of_range};
use super::witness::{Mark, Samples, Witness, cluster_tag};
use crate::frontier::Epoch;
use crate::message::MessageView;

/// Findings kept for the summary.
const KEPT: usize = 1_000;
/// How soon another try is made to look where librdkafka stopped.
const AGAIN: Duration = Duration::from_millis(500);

/// A partition that may not be gone on with.
#[derive(Clone, Debug)]
pub(super) struct Discontinuity {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) finding: Finding,
}

/// Where a partition begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Begin {
    /// What the broker has as committed, if that is where it begins.
    pub(super) committed: Option<i64>,
    /// The offset of its first message, at the least; `None` if that is left to librdkafka.
    pub(super) at: Option<i64>,
    /// The message before, if it is still the one that was handled.
    witness: Option<Witness>,
}

/// A partition that is ours, as far as messages were taken from it.
#[derive(Debug)]
struct Track {
    place: Place,
    /// The offset to come next; `None` if it has never been known.
    next: Option<i64>,
    samples: Samples,
}

/// A partition that begins anew, elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) begin: Begin,
}

#[derive(Debug, Default)]
struct State {
    cluster: Option<u32>,
    tracks: HashMap<Epoch, Track>,
    /// What this process committed.
    committed: HashMap<Place, i64>,
    said: HashSet<(Place, Finding)>,
    found: Vec<Found>,
    /// The broker does not take so much metadata.
    mute: bool,
    /// When to look again where librdkafka stopped.
    again: Option<Instant>,
}

/// What a consumer knows of where its partitions go on.
#[derive(Debug)]
pub(super) struct Continuity {
    reader: ClientConfig,
    reset: Reset,
    policy: OnReset,
    /// How long looking may take, of one rebalance.
    budget: Duration,
    state: Mutex<State>,
}

impl Continuity {
    pub(super) fn new(client: &ClientConfig, reset: Reset, policy: OnReset, budget: Duration) -> Self {
        Self { reader: reader_config(client), reset, policy, budget, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides where each partition of an assignment begins, and writes it into the list, which is assigned next. Takes at
    /// most the budget, on the thread that polls.
    pub(super) fn before_assign<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        list: &TopicPartitionList,
    ) -> Result<Vec<Begin>, Discontinuity> {
        let places: Vec<Place> =
            list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let seen = self.look(client, &places, began + self.budget);
        debug!(partitions = places.len(), took = ?began.elapsed(), "looked where partitions go on");
        let mut refused = None;
        let mut pins = TopicPartitionList::new();
        let mut begins = Vec::with_capacity(places.len());
        for (place, seen) in places.iter().zip(seen) {
            let begin = match self.judge(place, seen, &mut pins) {
                Ok(begin) => begin,
                Err(discontinuity) => {
                    refused.get_or_insert(discontinuity);
                    Begin::default()
                }
            };
            if let (Some(at), Some(mut element)) = (begin.at, list.find_partition(&place.0, place.1))
                && let Err(error) = element.set_offset(Offset::Offset(at))
            {
                warn!(%error, "an offset could not be set");
            }
            begins.push(begin);
        }
        match refused {
            Some(discontinuity) => Err(discontinuity),
            None => {
                pin(client, &pins);
                Ok(begins)
            }
        }
    }

    /// Librdkafka stopped where it would have jumped. Decides about every partition that is ours, and fetches on from elsewhere where that
    /// is allowed. What was polled must have been taken in before. Answers with partitions whose offsets fall, so that they begin anew.
    ///
    /// What is in hand may not be anywhere else any more: `finish` is called, to wait for it, before anything of it would be dropped.
    pub(super) fn after_reset<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        finish: impl FnOnce(),
    ) -> Result<Vec<Moved>, Discontinuity> {
        let (places, nexts): (Vec<Place>, Vec<Option<i64>>) = {
            let mut state = self.lock();
            state.again = None;
            state.tracks.values().map(|track| (track.place.clone(), track.next)).unzip()
        };
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let until = Instant::now() + self.budget;
        let seen = self.look(client, &places, until);
        let mut moves = TopicPartitionList::new();
        let mut others = TopicPartitionList::new();
        let mut pins = TopicPartitionList::new();
        let mut moved = Vec::new();
        let mut refused = None;
        for ((place, known), seen) in places.iter().zip(nexts).zip(&seen) {
            let next = known.map_or(Offset::Invalid, Offset::Offset);
            let Some(seen) = *seen else {
                // It stands still, or goes on: nothing is passed either way.
                let _ = others.add_partition_offset(&place.0, place.1, next);
                self.lock().again = Some(Instant::now() + AGAIN);
                continue;
            };
            let resume = match known.map(|next| out_of_range(next, seen.low, seen.high)) {
                Some(None) => {
                    let _ = others.add_partition_offset(&place.0, place.1, next);
                    continue;
                }
                Some(Some(finding)) => by_reset(&seen, self.reset, self.policy, finding),
                None => decide(&seen, self.reset, self.policy),
            };
            match self.say(place, &seen, resume, &mut pins) {
                Ok(begin) => {
                    let at = begin.at.map_or(next, Offset::Offset);
                    let _ = moves.add_partition_offset(&place.0, place.1, at);
                    moved.push((known, Moved { topic: place.0.clone(), partition: place.1, begin }));
                }
                Err(discontinuity) => {
                    refused.get_or_insert(discontinuity);
                }
            }
        }
        let falls = |(known, moved): &(Option<i64>, Moved)| moved.begin.at < *known;
        if refused.is_some() || moved.iter().any(falls) {
            finish();
        }
        if let Some(discontinuity) = refused {
            return Err(discontinuity);
        }
        if moved.is_empty() && self.lock().again.is_none() {
            // What was out of range is within it again: fetching has to be begun again all the same.
            std::mem::swap(&mut moves, &mut others);
        }
        if moves.count() > 0 && !restart(client, &moves, &others) {
            self.lock().again = Some(Instant::now() + AGAIN);
            return Ok(Vec::new());
        }
        pin(client, &pins);
        let (falling, rising): (Vec<_>, Vec<_>) = moved.into_iter().partition(falls);
        let mut state = self.lock();
        for (_, Moved { topic, partition, begin }) in rising {
            // Offsets are sparse anyway: what is in hand and what comes now are one row.
            let place = (topic, partition);
            state.tracks.values_mut().filter(|track| track.place == place).for_each(|track| track.next = begin.at);
        }
        Ok(falling.into_iter().map(|(_, moved)| moved).collect())
    }

    /// Librdkafka stopped somewhere: [`after_reset`](Self::after_reset) is due.
    pub(super) fn stopped(&self) {
        self.lock().again.get_or_insert_with(Instant::now);
    }

    /// When [`after_reset`](Self::after_reset) is due, if at all.
    pub(super) fn due(&self) -> Option<Instant> {
        self.lock().again
    }

    fn judge(&self, place: &Place, seen: Option<Seen>, pins: &mut TopicPartitionList) -> Result<Begin, Discontinuity> {
        match seen {
            Some(seen) => self.say(place, &seen, decide(&seen, self.reset, self.policy), pins),
            None => {
                self.tell(place, Finding::NotLookedAt, false);
                Ok(Begin::default())
            }
        }
    }

    /// Says what was found, and how it goes on.
    fn say(
        &self,
        place: &Place,
        seen: &Seen,
        resume: Resume,
        pins: &mut TopicPartitionList,
    ) -> Result<Begin, Discontinuity> {
        if let Some(finding) = resume.finding {
            self.tell(place, finding, resume.at.is_none());
            if resume.at.is_none() {
                return Err(Discontinuity { topic: place.0.clone(), partition: place.1, finding });
            }
        }
        if resume.pin
            && let Some(at) = resume.at
        {
            let _ = pins.add_partition_offset(&place.0, place.1, Offset::Offset(at));
            if let Some(mut element) = pins.find_partition(&place.0, place.1) {
                element.set_metadata(Mark { committed: at, cluster: seen.cluster, witness: None }.to_string());
            }
        }
        match resume.finding {
            Some(Finding::Rewound { to, .. }) => _ = self.lock().committed.insert(place.clone(), to),
            _ if !resume.continues => _ = self.lock().committed.remove(place),
            _ => {}
        }
        let witness = seen.mark.and_then(|mark| mark.witness).filter(|_| resume.continues && seen.look == Look::Same);
        Ok(Begin { committed: resume.at.filter(|_| resume.continues), at: resume.at, witness })
    }

    /// Once for each finding.
    fn tell(&self, place: &Place, finding: Finding, refused: bool) {
        let mut state = self.lock();
        if !state.said.insert((place.clone(), finding)) && !refused {
            return;
        }
        if state.said.len() > KEPT {
            state.said.clear();
        }
        let (topic, partition) = (place.0.as_str(), place.1);
        if state.found.len() < KEPT {
            state.found.push(Found { topic: topic.to_owned(), partition, finding });
        }
        drop(state);
        if refused {
            error!(topic, partition, "{finding}; the consumer ends. {}", finding.cure());
        } else if finding.breaks() && self.policy != OnReset::Accept {
            warn!(topic, partition, "{finding}; goes on, as the policy for resets says");
        } else if matches!(finding, Finding::NotLookedAt | Finding::Unproven { .. }) {
            warn!(topic, partition, "{finding}");
        } else {
            info!(topic, partition, "{finding}");
        }
    }

    /// What was found so far.
    pub(super) fn found(&self) -> Vec<Found> {
        self.lock().found.clone()
    }

    /// An assignment begins.
    pub(super) fn begin(&self, epoch: Epoch, topic: &str, partition: i32, begin: &Begin) {
        let place = (topic.to_owned(), partition);
        let mut state = self.lock();
        state.tracks.retain(|_, track| track.place != place);
        state.tracks.insert(epoch, Track { place, next: begin.at, samples: Samples::after(begin.witness) });
    }

    /// An assignment is over.
    pub(super) fn over(&self, epoch: Epoch) {
        self.lock().tracks.remove(&epoch);
    }

    /// Messages were taken in; this is the last one of a run of them.
    pub(super) fn took(&self, epoch: Epoch, message: &impl MessageView) {
        let mut state = self.lock();
        let mute = state.mute;
        let Some(track) = state.tracks.get_mut(&epoch) else { return };
        track.next = Some(message.offset().saturating_add(1));
        if !mute {
            track.samples.take(Witness::of(message));
        }
    }

    /// What a commit is to carry as its metadata.
    pub(super) fn metadata(&self, epoch: Epoch, committed: i64) -> Option<String> {
        let mut state = self.lock();
        if state.mute {
            return None;
        }
        let cluster = state.cluster;
        let witness = state.tracks.get_mut(&epoch).and_then(|track| track.samples.below(committed));
        Some(Mark { committed, cluster, witness }.to_string())
    }

    /// The broker does not take so long a metadata: go on without.
    pub(super) fn mute(&self) {
        let mut state = self.lock();
        if !state.mute {
            state.mute = true;
            drop(state);
            warn!(
                "the broker's offset.metadata.max.bytes is too low for what hapax writes with a commit (about 100 bytes): a topic that is deleted and made \
                 again may not be told from the old one"
            );
        }
    }

    /// The broker said yes to a commit.
    pub(super) fn committed(&self, topic: &str, partition: i32, offset: i64) {
        let mut state = self.lock();
        match state.committed.get_mut(&(topic.to_owned(), partition)) {
            Some(known) => *known = (*known).max(offset),
            None => {
                state.committed.insert((topic.to_owned(), partition), offset);
            }
        }
    }

    /// What is there; `None` for partitions of which the broker did not tell.
    fn look<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        places: &[Place],
        until: Instant,
    ) -> Vec<Option<Seen>> {
        let looker = match Looker::start(self.reader.clone(), places.to_vec(), until) {
            Ok(looker) => looker,
            Err(error) => {
                warn!(%error, "no thread could be started that looks where partitions go on");
                return vec![None; places.len()];
            }
        };
        let committed = match committed(client, places, until) {
            Ok(committed) => committed,
            Err(error) => {
                warn!(%error, "the group's committed offsets were not told");
                return vec![None; places.len()];
            }
        };
        let Some(bounds) = looker.bounds(until) else { return vec![None; places.len()] };
        let cluster = self.cluster(client);
        let known: Vec<Option<i64>> = {
            let state = self.lock();
            places.iter().map(|place| state.committed.get(place).copied()).collect()
        };
        let mut seen: Vec<Option<Seen>> = places
            .iter()
            .zip(known)
            .map(|(place, known)| {
                let (committed, mark) = *committed.get(place)?;
                let (low, high) = *bounds.get(place)?;
                Some(Seen { committed, mark, low, high, look: Look::Unread, cluster, known })
            })
            .collect();
        look_at_witnesses(looker, places, &mut seen, until);
        seen
    }

    fn cluster<C: ConsumerContext>(&self, client: &BaseConsumer<C>) -> Option<u32> {
        // It came with the metadata that any client has fetched by now.
        let known = self.lock().cluster;
        let cluster =
            known.or_else(|| client.client().fetch_cluster_id(Duration::from_millis(50)).map(|id| cluster_tag(&id)));
        self.lock().cluster = cluster;
        cluster
    }
}

fn look_at_witnesses(looker: Looker, places: &[Place], seen: &mut [Option<Seen>], until: Instant) {
    let mut wanted = Vec::new();
    for (at, (place, seen)) in places.iter().zip(seen.iter_mut()).enumerate() {
        let Some(seen) = seen else { continue };
        let Some(witness) = seen.mark.and_then(|mark| mark.witness) else { continue };
        match seen.to_look_at() {
            Some(_) => wanted.push(Wanted { at, place: place.clone(), witness }),
            None => seen.look = Look::Gone,
        }
    }
    for (at, look) in looker.read(wanted, until) {
        if let Some(Some(seen)) = seen.get_mut(at) {
            seen.look = look;
        }
    }
}
