//! Looks what is there before a partition is taken in, so that no offset is jumped to without a decision. [`resume`](super::resume) decides.
//!
//! `auto.offset.reset` is `error` for librdkafka, whatever the user set: a partition begins where it is told to here. What cannot be
//! looked at in time begins as librdkafka would begin it; if there is no valid offset, that comes back as an error, and is
//! decided then.

mod again;
mod awaited;
mod tracks;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tracing::{debug, error, info, warn};

use super::finding::{Finding, Found, OnReset};
use super::look::{Looker, Place, Wanted, committed, pin, reader_config};
use super::resume::{Look, Reset, Resume, Seen, decide};
use super::windows::{Asking, Standing, Windowed};
use super::witness::{Mark, Samples, Witness, cluster_tag};
use crate::frontier::Epoch;
use crate::store::StoreError;

/// Findings kept for the summary.
const KEPT: usize = 1_000;
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
    /// Partitions that were assigned while the database that keeps their windows was away.
    awaited: Vec<Asking>,
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
    /// most the budget, on the thread that polls, and a moment more where windows are kept: what has no answer from a database that is away begins
    /// later: [`after_windows`](Self::after_windows).
    pub(super) fn before_assign<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        list: &TopicPartitionList,
    ) -> Result<Vec<Option<Begin>>, Refusal> {
        let places: Vec<Place> =
            list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        // What was asked before was asked under another assignment.
        let _ = self.forget(&places);
        let standings = match &self.windows {
            Some(windows) => match windows.raise(&places) {
                Ok(standings) => standings.map_err(Refusal::Windows)?,
                Err(asking) => {
                    self.lock().awaited.push(asking);
                    return Ok(vec![None; places.len()]);
                }
            },
            None => Vec::new(),
        };
        let (begins, pins) = self.decide_all(client, &places, standings)?;
        for (place, begin) in places.iter().zip(&begins) {
            if let (Some(at), Some(mut element)) = (begin.at, list.find_partition(&place.0, place.1))
                && let Err(error) = element.set_offset(Offset::Offset(at))
            {
                warn!(%error, "an offset could not be set");
            }
        }
        pin(client, &pins);
        Ok(begins.into_iter().map(Some).collect())
    }

    /// Decides where each of these begins, whose windows stand so. Answers also with offsets to commit at once.
    fn decide_all<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        places: &[Place],
        standings: Vec<Standing>,
    ) -> Result<(Vec<Begin>, TopicPartitionList), Refusal> {
        let standings: Vec<Standing> =
            standings.into_iter().chain(std::iter::repeat_with(Standing::default)).take(places.len()).collect();
        let began = Instant::now();
        let seen = self.look(client, places, Some(&standings), began + self.budget);
        debug!(partitions = places.len(), took = ?began.elapsed(), "looked where partitions go on");
        let mut refused = None;
        let mut pins = TopicPartitionList::new();
        let mut begins = Vec::with_capacity(places.len());
        for ((place, seen), standing) in places.iter().zip(seen).zip(&standings) {
            begins.push(match self.judge(place, seen, &mut pins) {
                Ok(begin) => Begin { at: begin.at.or(standing.next), window: standing.next, ..begin },
                Err(discontinuity) => {
                    refused.get_or_insert(discontinuity);
                    Begin::default()
                }
            });
        }
        match refused {
            Some(discontinuity) => Err(Refusal::Discontinuity(discontinuity)),
            None => Ok((begins, pins)),
        }
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
