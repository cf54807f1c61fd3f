//! Looks what is there before a partition is taken in, so that no offset is jumped to without a decision. [`resume`](super::resume) decides.
//!
//! `auto.offset.reset` is `error` for librdkafka, whatever the user set: a partition begins where it is told to here. What cannot be
//! looked at in time begins as librdkafka would begin it; if there is no valid offset, that comes back as an error, and is
//! decided then.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tracing::{debug, error, info, warn};

use super::finding::{Finding, Found, OnReset};
use super::look::{Looker, Place, Wanted, committed, pin, reader_config, restart};
use super::resume::{Look, Reset, Resume, Seen, by_reset, decide, out_of_range};
use super::windows::{Standing, Windowed};
use super::witness::{Mark, Samples, Witness, cluster_tag};
use crate::frontier::Epoch;
use crate::message::MessageView;
use crate::store::StoreError;

/// Findings kept for the summary.
const KEPT: usize = 1_000;
/// How soon another try is made to look where librdkafka stopped.
const AGAIN: Duration = Duration::from_millis(500);
/// How soon a fence is raised anew that another process raised, if the partition is still ours then.
const FENCED: Duration = Duration::from_secs(2);

/// A partition that may not be gone on with.
#[derive(Clone, Debug)]
pub(super) struct Discontinuity {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) finding: Finding,
}

/// Why partitions are not taken in.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// One may not be gone on with.
    Discontinuity(Discontinuity),
    /// Their windows could not be had.
    Windows(StoreError),
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
    /// Where its window stands, if it has one that ever moved.
    window: Option<i64>,
}

/// A partition that is ours, as far as messages were taken from it.
#[derive(Debug)]
struct Track {
    place: Place,
    /// The offset to come next; `None` if it has never been known.
    next: Option<i64>,
    /// Where it began.
    began: Option<i64>,
    samples: Samples,
    /// The same for its window, which moves before anything is committed.
    noted: Samples,
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
    /// Partitions whose fence was raised by another process, and when to raise it anew.
    fenced: HashMap<Place, Instant>,
}

/// What a consumer knows of where its partitions go on.
#[derive(Debug)]
pub(super) struct Continuity {
    reader: ClientConfig,
    reset: Reset,
    policy: OnReset,
    /// How long looking may take, of one rebalance.
    budget: Duration,
    /// Whoever keeps windows, if anybody does.
    windows: Option<Windowed>,
    state: Arc<Mutex<State>>,
}

impl Continuity {
    pub(super) fn new(
        client: &ClientConfig,
        reset: Reset,
        policy: OnReset,
        budget: Duration,
        windows: Option<Windowed>,
    ) -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        if let Some(Windowed { windows, .. }) = &windows {
            let state = Arc::downgrade(&state);
            windows.watch(Arc::new(move |topic, partition| {
                if let Some(state) = state.upgrade() {
                    lock(&state).fenced.entry((topic.to_owned(), partition)).or_insert_with(|| Instant::now() + FENCED);
                }
            }));
        }
        Self { reader: reader_config(client), reset, policy, budget, windows, state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Decides where each partition of an assignment begins, and writes it into the list, which is assigned next. Takes at
    /// most the budget, on the thread that polls; more only where windows are kept in a database that is away.
    pub(super) fn before_assign<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        list: &TopicPartitionList,
    ) -> Result<Vec<Begin>, Refusal> {
        let places: Vec<Place> =
            list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let standings = match &self.windows {
            Some(windows) => windows.raise(&places).map_err(Refusal::Windows)?,
            None => Vec::new(),
        };
        let standings: Vec<Standing> =
            standings.into_iter().chain(std::iter::repeat_with(Standing::default)).take(places.len()).collect();
        let began = Instant::now();
        let seen = self.look(client, &places, Some(&standings), began + self.budget);
        debug!(partitions = places.len(), took = ?began.elapsed(), "looked where partitions go on");
        let mut refused = None;
        let mut pins = TopicPartitionList::new();
        let mut begins = Vec::with_capacity(places.len());
        for ((place, seen), standing) in places.iter().zip(seen).zip(&standings) {
            let begin = match self.judge(place, seen, &mut pins) {
                Ok(begin) => Begin { at: begin.at.or(standing.next), window: standing.next, ..begin },
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
            Some(discontinuity) => Err(Refusal::Discontinuity(discontinuity)),
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
    ) -> Result<Vec<Moved>, Refusal> {
        let (places, nexts): (Vec<Place>, Vec<Option<i64>>) = {
            let mut state = self.lock();
            state.again = None;
            state.tracks.values().map(|track| (track.place.clone(), track.next)).unzip()
        };
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let until = Instant::now() + self.budget;
        let seen = self.look(client, &places, None, until);
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
            return Err(Refusal::Discontinuity(discontinuity));
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
        if let Some(windows) = &self.windows {
            // What still runs is not to be taken for messages of another topic.
            let falling: Vec<Place> = moved
                .iter()
                .filter(|own| falls(own))
                .map(|(_, moved)| (moved.topic.clone(), moved.partition))
                .collect();
            if !falling.is_empty() {
                windows.raise(&falling).map_err(Refusal::Windows)?;
            }
        }
        let (falling, rising): (Vec<_>, Vec<_>) = moved.into_iter().partition(falls);
        let mut state = self.lock();
        for (_, Moved { topic, partition, begin }) in rising {
            // Offsets are sparse anyway: what is in hand and what comes now are one row.
            let place = (topic, partition);
            state.tracks.values_mut().filter(|track| track.place == place).for_each(|track| track.next = begin.at);
        }
        Ok(falling.into_iter().map(|(_, moved)| moved).collect())
    }

    /// Another process raised the fence of partitions that are still ours after a while: one that had them before and was told late, or
    /// one that uses the same scope without being a member of the group. Raises it anew, and reads again from where the window stands.
    /// Answers with the partitions that begin anew. What was polled must have been taken in before.
    pub(super) fn after_fence<C: ConsumerContext>(&self, client: &BaseConsumer<C>) -> Result<Vec<Moved>, Refusal> {
        let Some(windows) = &self.windows else { return Ok(Vec::new()) };
        let mut moves = TopicPartitionList::new();
        let mut others = TopicPartitionList::new();
        let mut ours: Vec<(Place, Option<i64>)> = Vec::new();
        {
            let mut state = self.lock();
            let now = Instant::now();
            let state = &mut *state;
            if state.fenced.values().all(|due| *due > now) {
                return Ok(Vec::new());
            }
            for track in state.tracks.values() {
                match state.fenced.get(&track.place).is_some_and(|due| *due <= now) {
                    true => ours.push((track.place.clone(), track.began)),
                    false => {
                        let next = track.next.map_or(Offset::Invalid, Offset::Offset);
                        let _ = others.add_partition_offset(&track.place.0, track.place.1, next);
                    }
                }
            }
            state.fenced.retain(|_, due| *due > now);
        }
        if ours.is_empty() {
            return Ok(Vec::new());
        }
        let places: Vec<Place> = ours.iter().map(|(place, _)| place.clone()).collect();
        let standings = windows.raise(&places).map_err(Refusal::Windows)?;
        let mut moved = Vec::with_capacity(ours.len());
        for (((topic, partition), began), standing) in ours.into_iter().zip(standings) {
            warn!(
                topic,
                partition,
                next = standing.next,
                "another process raised the fence of a partition that is ours: it was told late that it is not its own any more, or it uses the same scope \
                 outside of this group; the partition is read again from its window on"
            );
            let at = standing.next.or(began);
            let _ = moves.add_partition_offset(&topic, partition, at.map_or(Offset::Invalid, Offset::Offset));
            let committed = self.lock().committed.get(&(topic.clone(), partition)).copied();
            let begin = Begin { committed, at, witness: None, window: standing.next };
            moved.push(Moved { topic, partition, begin });
        }
        if !restart(client, &moves, &others) {
            let again = Instant::now() + AGAIN;
            self.lock().fenced.extend(places.into_iter().map(|place| (place, again)));
            return Ok(Vec::new());
        }
        Ok(moved)
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
        let difference = seen.difference();
        if let Some(difference) = difference {
            self.tell(place, difference, false);
        }
        if let Some(finding) = resume.finding {
            self.tell(place, finding, resume.at.is_none());
            if resume.at.is_none() {
                return Err(Discontinuity { topic: place.0.clone(), partition: place.1, finding });
            }
        }
        if (resume.pin || difference.is_some())
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
        Ok(Begin { committed: resume.at.filter(|_| resume.continues), at: resume.at, witness, window: None })
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
        } else if finding.is_odd() {
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
        {
            let mut state = self.lock();
            state.tracks.retain(|_, track| track.place != place);
            let (samples, noted) = (Samples::after(begin.witness), Samples::after(begin.witness));
            let track = Track { place: place.clone(), next: begin.at, began: begin.at, samples, noted };
            state.tracks.insert(epoch, track);
        }
        let Some(Windowed { windows, .. }) = &self.windows else { return };
        let state = Arc::downgrade(&self.state);
        let note = move |next| {
            let state = state.upgrade()?;
            let mut state = lock(&state);
            let cluster = state.cluster;
            let witness = state.tracks.get_mut(&epoch)?.noted.below(next);
            Some(Mark { committed: next, cluster, witness }.to_string())
        };
        windows.begin(&place, epoch, begin.at.filter(|at| begin.window != Some(*at)), Arc::new(note));
        // What was heard of a fence before is of a window that is no more.
        self.lock().fenced.remove(&place);
    }

    /// An assignment is over.
    pub(super) fn over(&self, epoch: Epoch) {
        let place = self.lock().tracks.get(&epoch).map(|track| track.place.clone());
        // It may note how it stands, for which the track is needed.
        if let (Some(place), Some(Windowed { windows, .. })) = (place, &self.windows) {
            windows.over(&place);
        }
        self.lock().tracks.remove(&epoch);
    }

    /// Messages were taken in; this is the last one of a run of them.
    pub(super) fn took(&self, epoch: Epoch, message: &impl MessageView) {
        let mut state = self.lock();
        let (mute, noted) = (state.mute, self.windows.is_some());
        let Some(track) = state.tracks.get_mut(&epoch) else { return };
        track.next = Some(message.offset().saturating_add(1));
        if mute && !noted {
            return;
        }
        let witness = Witness::of(message);
        if !mute {
            track.samples.take(witness);
        }
        if noted {
            track.noted.take(witness);
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

    /// What is there; `None` for partitions of which the broker did not tell. Where a window has ever moved, it says where to go on.
    fn look<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        places: &[Place],
        standings: Option<&[Standing]>,
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
                Some(Seen { committed, mark, low, high, look: Look::Unread, cluster, known, instead_of: None })
            })
            .collect();
        // Beyond a window in this process's memory, others have handled what they committed.
        let durable = self.windows.as_ref().is_none_or(|Windowed { windows, .. }| windows.is_durable());
        for (seen, standing) in seen.iter_mut().zip(standings.unwrap_or_default()) {
            if let (Some(seen), Some(next)) = (seen, standing.next)
                && (durable || seen.committed.is_none_or(|committed| committed <= next))
            {
                seen.follow(next, standing.note.as_deref().and_then(Mark::parse));
            }
        }
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

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
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
