//! Partitions that begin anew while they are ours: where librdkafka stopped, and where another process raised the fence.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};
use tracing::warn;

use super::{Begin, Continuity, Moved, Refusal};
use crate::consumer::look::{Place, pin, restart};
use crate::consumer::resume::{by_reset, decide, out_of_range};

/// How soon another try is made to look where librdkafka stopped.
const AGAIN: Duration = Duration::from_millis(500);

impl Continuity {
    /// Librdkafka stopped where it would have jumped. Decides about every partition that is ours, and fetches on from elsewhere where that
    /// is allowed. What was polled must have been taken in before. Answers with partitions whose offsets fall, so that they begin anew.
    ///
    /// What is in hand may not be anywhere else any more: `finish` is called, to wait for it, before anything of it would be dropped.
    pub(in crate::consumer) fn after_reset<C: ConsumerContext>(
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
        if let Some(windows) = &self.windows {
            // What still runs is not to be taken for messages of another topic.
            let falling: Vec<Place> = moved
                .iter()
                .filter(|own| falls(own))
                .map(|(_, moved)| (moved.topic.clone(), moved.partition))
                .collect();
            if !falling.is_empty() {
                match windows.raise(&falling) {
                    Ok(raised) => _ = raised.map_err(Refusal::Windows)?,
                    Err(_) => {
                        self.lock().again = Some(Instant::now() + AGAIN);
                        return Ok(Vec::new());
                    }
                }
            }
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

    /// Another process raised the fence of partitions that are still ours after a while: one that had them before and was told late, or
    /// one that uses the same scope without being a member of the group. Raises it anew, and reads again from where the window stands.
    /// Answers with the partitions that begin anew. What was polled must have been taken in before.
    pub(in crate::consumer) fn after_fence<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
    ) -> Result<Vec<Moved>, Refusal> {
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
        let standings = match windows.raise(&places) {
            Ok(standings) => standings.map_err(Refusal::Windows)?,
            Err(_) => {
                // Until then its messages are refused, and none has an effect.
                self.fenced_again(places);
                return Ok(Vec::new());
            }
        };
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
            self.fenced_again(places);
            return Ok(Vec::new());
        }
        Ok(moved)
    }

    fn fenced_again(&self, places: Vec<Place>) {
        let again = Instant::now() + AGAIN;
        self.lock().fenced.extend(places.into_iter().map(|place| (place, again)));
    }

    /// Librdkafka stopped somewhere: [`after_reset`](Self::after_reset) is due.
    pub(in crate::consumer) fn stopped(&self) {
        self.lock().again.get_or_insert_with(Instant::now);
    }

    /// When [`after_reset`](Self::after_reset) is due, if at all.
    pub(in crate::consumer) fn due(&self) -> Option<Instant> {
        self.lock().again
    }
}
