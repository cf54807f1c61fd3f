//! Partitions that were assigned while the database that keeps their windows was away: they begin once it has answered.
//!
//! Meanwhile they are ours for the group, which is polled on, and nothing of them is fetched, handled or committed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};
use tracing::warn;

use super::{Continuity, Moved, Refusal};
use crate::consumer::assignment;
use crate::consumer::look::{Place, pin, restart};
use crate::consumer::windows::{Asking, Standing};

impl Continuity {
    /// Takes in what was answered since. Answers with the partitions that begin now. What was polled must have been taken in before.
    pub(in crate::consumer) fn after_windows<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
    ) -> Result<Vec<Moved>, Refusal> {
        let mut answered = Vec::new();
        let mut unpaused = TopicPartitionList::new();
        {
            let mut state = self.lock();
            if state.awaited.is_empty() {
                return Ok(Vec::new());
            }
            for asking in std::mem::take(&mut state.awaited) {
                match asking.answer(Duration::ZERO) {
                    Some(answer) => answered.push((asking, answer)),
                    None => state.awaited.push(asking),
                }
            }
            for asking in state.awaited.iter_mut().filter(|asking| !asking.paused) {
                asking.paused = true;
                asking.wanted.iter().for_each(|(topic, partition)| _ = unpaused.add_partition(topic, *partition));
            }
        }
        // What comes all the same is dropped: it has no epoch.
        if unpaused.count() > 0
            && let Err(error) = client.pause(&unpaused)
        {
            warn!(%error, "partitions could not be paused");
        }
        let mut moved = Vec::new();
        for (asking, answer) in answered {
            moved.extend(self.begin_late(client, asking, answer.map_err(Refusal::Windows)?)?);
        }
        Ok(moved)
    }

    fn begin_late<C: ConsumerContext>(
        &self,
        client: &BaseConsumer<C>,
        asking: Asking,
        standings: Vec<Standing>,
    ) -> Result<Vec<Moved>, Refusal> {
        let Asking { places, wanted, paused, .. } = asking;
        let (places, standings): (Vec<Place>, Vec<Standing>) =
            places.into_iter().zip(standings).filter(|(place, _)| wanted.contains(place)).unzip();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let (begins, pins) = self.decide_all(client, &places, standings.clone())?;
        let (mut moves, mut others) = (TopicPartitionList::new(), TopicPartitionList::new());
        for ((topic, partition), begin) in places.iter().zip(&begins) {
            let _ = moves.add_partition_offset(topic, *partition, begin.at.map_or(Offset::Invalid, Offset::Offset));
        }
        {
            let state = self.lock();
            for track in state.tracks.values() {
                let next = track.next.map_or(Offset::Invalid, Offset::Offset);
                let _ = others.add_partition_offset(&track.place.0, track.place.1, next);
            }
            for (topic, partition) in state.awaited.iter().flat_map(|asking| &asking.wanted) {
                let _ = others.add_partition_offset(topic, *partition, Offset::Invalid);
            }
        }
        if !restart(client, &moves, &others) {
            let mut again = Asking::answered(places, standings);
            again.paused = paused;
            self.lock().awaited.push(again);
            return Ok(Vec::new());
        }
        if let Err(error) = client.resume(&moves) {
            warn!(%error, "partitions could not be resumed");
        }
        pin(client, &pins);
        let moved = |((topic, partition), begin)| Moved { topic, partition, begin };
        Ok(places.into_iter().zip(begins).map(moved).collect())
    }

    /// Partitions go, or come anew: what was asked for them is not waited for any more. Answers with those that are paused.
    pub(in crate::consumer) fn forget(&self, places: &[Place]) -> Vec<assignment::Place> {
        let mut state = self.lock();
        if state.awaited.is_empty() {
            return Vec::new();
        }
        let gone: HashSet<&Place> = places.iter().collect();
        let mut paused = Vec::new();
        for asking in &mut state.awaited {
            let was = asking.paused;
            asking.wanted.retain(|place| {
                let stays = !gone.contains(place);
                if !stays && was {
                    paused.push((Arc::from(place.0.as_str()), place.1));
                }
                stays
            });
        }
        state.awaited.retain(|asking| !asking.wanted.is_empty());
        paused
    }

    /// Those that wait.
    pub(in crate::consumer) fn awaited(&self) -> Vec<Place> {
        self.lock().awaited.iter().flat_map(|asking| asking.wanted.iter().cloned()).collect()
    }
}
