//! How far messages were taken from each partition that is ours, and what is noted of that with commits and windows.

use std::sync::Arc;

use tracing::warn;

use super::{Begin, Continuity, Track, lock};
use crate::consumer::windows::Windowed;
use crate::consumer::witness::{Mark, Samples, Witness};
use crate::frontier::Epoch;
use crate::message::MessageView;

impl Continuity {
    /// An assignment begins.
    pub(in crate::consumer) fn begin(&self, epoch: Epoch, topic: &str, partition: i32, begin: &Begin) {
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
    pub(in crate::consumer) fn over(&self, epoch: Epoch) {
        let place = self.lock().tracks.get(&epoch).map(|track| track.place.clone());
        // It may note how it stands, for which the track is needed.
        if let (Some(place), Some(Windowed { windows, .. })) = (place, &self.windows) {
            windows.over(&place);
        }
        self.lock().tracks.remove(&epoch);
    }

    /// Messages were taken in; this is the last one of a run of them.
    pub(in crate::consumer) fn took(&self, epoch: Epoch, message: &impl MessageView) {
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
    pub(in crate::consumer) fn metadata(&self, epoch: Epoch, committed: i64) -> Option<String> {
        let mut state = self.lock();
        if state.mute {
            return None;
        }
        let cluster = state.cluster;
        let witness = state.tracks.get_mut(&epoch).and_then(|track| track.samples.below(committed));
        Some(Mark { committed, cluster, witness }.to_string())
    }

    /// The broker does not take so long a metadata: go on without.
    pub(in crate::consumer) fn mute(&self) {
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
    pub(in crate::consumer) fn committed(&self, topic: &str, partition: i32, offset: i64) {
        let mut state = self.lock();
        match state.committed.get_mut(&(topic.to_owned(), partition)) {
            Some(known) => *known = (*known).max(offset),
            None => {
                state.committed.insert((topic.to_owned(), partition), offset);
            }
        }
    }
}
