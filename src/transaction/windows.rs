//! The windows of the partitions that this process holds.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::dialect::{NEVER, Row, Shift, Source};
use crate::window::{Known, Malformed, Moves, Window};

/// What note goes with a row whose `next` becomes this.
pub(crate) type Notes = Arc<dyn Fn(i64) -> Option<String> + Send + Sync>;

/// A partition's window, as this process holds it.
pub(crate) struct Held {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) source: Source,
    fence: i64,
    /// Held from computing what is to be written until that is known to be written or not.
    pub(super) moving: Arc<tokio::sync::Mutex<()>>,
    inner: Mutex<Inner>,
    /// Something was committed since it was taken, and nothing is left of what its former owner was in the middle of.
    calm: AtomicBool,
}

struct Inner {
    window: Window,
    /// Where it stood when it was taken.
    began: i64,
    /// It is known where reading began: the row says so, or whoever reads does.
    placed: bool,
    /// What was delivered since, as runs from and up to without; the last of them only.
    delivered: VecDeque<(i64, i64)>,
    /// The latest time of a finished message, in milliseconds; `None` if none is known.
    newest: Option<i64>,
    notes: Option<Notes>,
    fenced: bool,
    /// What a lost commit may have written.
    doubt: Option<Pending>,
    /// Something was committed since it was taken: nothing that is about to run is noted any more.
    proven: bool,
    /// What a former owner had in hand when it ended, or had failed; ascending.
    suspects: Vec<i64>,
    /// Suspects whose attempt is counted already, and not over.
    counted: Vec<i64>,
}

/// A look at a window.
pub(super) struct Looking<'a>(MutexGuard<'a, Inner>);

impl Looking<'_> {
    /// What is known of a message.
    pub(super) fn look(&self, offset: i64) -> Verdict {
        self.0.verdict(self.0.known(offset))
    }
}

/// Moves on their way into the table.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) moves: Moves,
    pub(super) newest: Option<i64>,
    pub(super) shift: Shift,
    /// Suspects whose attempts this counts, before they run.
    begins: Vec<i64>,
    /// Those whose attempts are over by this.
    ends: Vec<i64>,
    /// Messages were handled.
    proves: bool,
}

/// What a window says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To be handled; so many attempts failed.
    New { attempts: u32 },
    /// Finished before.
    Finished,
    /// Another process holds the partition.
    Fenced,
}

/// What stood in the table when a partition was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Below it all is finished; `None` where nothing ever was.
    pub(crate) next: Option<i64>,
    /// What was noted beside it.
    pub(crate) note: Option<String>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

/// How a note of ours begins: the latest time of a finished message.
const NEWEST: &str = "newest:";

impl Held {
    /// Takes what the table says, after the fence was raised.
    pub(super) fn of(topic: Arc<str>, partition: i32, row: &Row) -> Result<(Self, Standing), Malformed> {
        let next = (row.next > NEVER).then_some(row.next);
        let window = match next {
            Some(next) => Window::restore(next, &row.state)?,
            None => Window::restore(0, &row.state)?,
        };
        let note = row.note.as_deref().map(|note| String::from_utf8_lossy(note).into_owned());
        let newest = note.as_deref().and_then(|note| note.strip_prefix(NEWEST)).and_then(|text| text.parse().ok());
        let suspects = window.noted().collect();
        let inner = Inner {
            window,
            began: next.unwrap_or(0),
            placed: next.is_some(),
            newest,
            delivered: VecDeque::new(),
            notes: None,
            fenced: false,
            doubt: None,
            proven: false,
            suspects,
            counted: Vec::new(),
        };
        let held = Self {
            topic,
            partition,
            source: row.source,
            fence: row.fence,
            moving: Arc::default(),
            inner: Mutex::new(inner),
            calm: AtomicBool::new(false),
        };
        Ok((held, Standing { next, note }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a message delivered, in the order delivered.
    ///
    /// `false` if it comes behind one that was to come after it, and counts as finished only for that: what lies between two that were
    /// delivered one after the other is not waited for.
    pub(super) fn deliver(&self, offset: i64) -> bool {
        let mut inner = self.lock();
        let known = inner.window.deliver(offset);
        // What counts as finished only because it was missing stays a stray, however often it comes.
        let lost = known == Known::Finished;
        inner.note_delivered(offset, !lost) || !lost
    }

    /// What is known of a message.
    pub(super) fn look(&self, offset: i64) -> Verdict {
        self.looking().look(offset)
    }

    /// To look at many messages at once. Nothing moves meanwhile: not to be kept.
    pub(super) fn looking(&self) -> Looking<'_> {
        Looking(self.lock())
    }

    /// Whether a message that counts as finished can be another one than the one that was: at its offset stands one that is younger than
    /// all that were ever finished. Nor can it be told of one without a time that was finished before this process held the partition.
    pub(super) fn doubts(&self, offset: i64, stamp: Option<i64>) -> bool {
        let inner = self.lock();
        match (stamp, inner.newest) {
            (Some(stamp), Some(newest)) => stamp > newest,
            _ => offset < inner.began,
        }
    }

    pub(super) fn fence_off(&self) {
        self.lock().fenced = true;
    }

    /// Whether this row is still of the fence that this process raised.
    pub(super) fn stands(&self, row: &Row) -> bool {
        row.source == self.source && row.fence == self.fence
    }

    /// Whether a lost commit may have moved it.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.lock().doubt.is_some()
    }

    /// What to write for these moves; `None` if one of them is finished already. `moving` is held. Of the failed ones, 0 says that the attempt which
    /// [is counted](Self::is_counted) does not count.
    pub(super) fn pending(&self, finished: &[(i64, Option<i64>)], failed: &[(i64, u32)]) -> Option<Pending> {
        let inner = self.lock();
        let mut moves = Moves::with_room(finished.len());
        let mut newest = inner.newest;
        for (offset, stamp) in finished {
            if inner.window.is_finished(*offset) {
                return None;
            }
            moves.finish(*offset);
            newest = newest.max(*stamp);
        }
        for (offset, attempt) in failed {
            match *attempt {
                // What was counted before it ran has come to nothing.
                0 => moves.spare(*offset, inner.window.attempts(*offset).saturating_sub(1)),
                attempt => moves.fail(*offset, attempt),
            }
        }
        let row = inner.window.after(&moves);
        let note = match &inner.notes {
            Some(notes) => notes(row.next),
            None => newest.map(|newest| format!("{NEWEST}{newest}")),
        };
        let note = note.map(String::into_bytes);
        // Where nothing is finished yet, and nobody said where reading begins, nobody is told to read from the first offset that there can be.
        let next = if row.next == 0 && !inner.placed { NEVER } else { row.next };
        let shift = Shift { source: self.source, fence: self.fence, next, state: row.state, note };
        let is_over = |own: &i64| {
            finished.iter().any(|(offset, _)| offset == own) || failed.iter().any(|(offset, _)| offset == own)
        };
        let ends = inner.counted.iter().copied().filter(is_over).collect();
        let proves = !finished.is_empty() || failed.iter().any(|(_, attempt)| *attempt > 0);
        Some(Pending { moves, newest, shift, begins: Vec::new(), ends, proves })
    }

    /// Whether nothing is to be noted of what is about to run: one look at a flag.
    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Atomic::Relaxed)
    }

    /// Whether a former owner had this message in hand when it ended, or had failed.
    pub(super) fn is_suspect(&self, offset: i64) -> bool {
        !self.is_calm() && self.lock().is_suspect(offset)
    }

    /// Whether an attempt of this message is counted that is not over.
    pub(super) fn is_counted(&self, offset: i64) -> bool {
        !self.is_calm() && self.lock().counted.contains(&offset)
    }

    /// Whether it has to be noted that this message is about to run, of which `most` attempts may be.
    pub(super) fn must_note(&self, offset: i64, most: u32) -> bool {
        !self.is_calm() && self.lock().to_note(offset, most).is_some()
    }

    /// What to write before these run. `moving` is held.
    pub(super) fn caution(&self, offsets: &[i64], most: u32) -> Option<Pending> {
        let inner = self.lock();
        let (mut moves, mut begins) = (Moves::new(), Vec::new());
        for offset in offsets {
            let Some(attempt) = inner.to_note(*offset, most) else { continue };
            moves.fail(*offset, attempt);
            if attempt > 0 {
                begins.push(*offset);
            }
        }
        if moves.is_empty() {
            return None;
        }
        let row = inner.window.after(&moves);
        let next = if row.next == 0 && !inner.placed { NEVER } else { row.next };
        let shift = Shift { source: self.source, fence: self.fence, next, state: row.state, note: None };
        Some(Pending { moves, newest: inner.newest, shift, begins, ends: Vec::new(), proves: false })
    }

    /// What was written is committed.
    pub(super) fn apply(&self, pending: &Pending) {
        let mut inner = self.lock();
        self.applied(&mut inner, pending);
        inner.doubt = None;
    }

    fn applied(&self, inner: &mut Inner, pending: &Pending) {
        inner.apply(pending);
        self.calm.store(inner.proven && inner.suspects.is_empty(), Atomic::Relaxed);
    }

    /// What was written may be committed.
    pub(super) fn suspect(&self, pending: Pending) {
        self.lock().doubt = Some(pending);
    }

    /// It is known now what the table says: whether the doubtful moves were committed. `None`: another process has it, or changed it.
    pub(super) fn resolve(&self, row: Option<&Row>) -> Option<bool> {
        let mut inner = self.lock();
        let doubt = inner.doubt.take();
        let Some(row) = row.filter(|row| row.fence == self.fence) else {
            inner.fenced = true;
            return None;
        };
        let doubt = doubt?;
        if (row.next, &row.state) == (doubt.shift.next, &doubt.shift.state) {
            self.applied(&mut inner, &doubt);
            return Some(true);
        }
        Some(false)
    }

    /// Reading goes on from here, and nothing counts as delivered. Where that is above the mark, what lies between counts as finished; where it is
    /// below, nothing is known any more.
    pub(super) fn begin(&self, at: i64) {
        let mut inner = self.lock();
        match at.cmp(&inner.window.next()) {
            // Another topic under the same name.
            Ordering::Less => {
                inner.window.reset(at);
                inner.suspects.clear();
                inner.counted.clear();
            }
            Ordering::Equal => inner.window.restart(),
            Ordering::Greater => {
                inner.window.raise(at);
                inner.window.restart();
            }
        }
        inner.placed = true;
        inner.began = at;
        inner.delivered.clear();
    }

    pub(super) fn noted(&self, notes: Notes) {
        self.lock().notes = Some(notes);
    }
}

/// Runs of delivered offsets that are kept: of a topic with gaps, so many messages at least.
const RUNS: usize = 16_384;

impl Inner {
    /// Notes an offset delivered. `false` if it is the first time, and others behind it were delivered before; then it is noted only if
    /// `late` ones are.
    fn note_delivered(&mut self, offset: i64, late: bool) -> bool {
        match self.delivered.back_mut() {
            Some((_, end)) if *end == offset => *end = offset.saturating_add(1),
            Some((_, end)) if *end > offset => {
                let at = self.delivered.partition_point(|(_, end)| *end <= offset);
                let was = self.delivered.get(at).is_some_and(|(start, _)| *start <= offset);
                let oldest = self.delivered.front().map_or(0, |(start, _)| *start);
                if !was && offset >= self.began {
                    // What was forgotten cannot be told.
                    let forgotten = self.delivered.len() >= RUNS && offset < oldest;
                    if late || forgotten {
                        self.delivered.insert(at, (offset, offset.saturating_add(1)));
                    }
                    return forgotten;
                }
            }
            _ => {
                if self.delivered.len() >= RUNS {
                    self.delivered.pop_front();
                }
                self.delivered.push_back((offset, offset.saturating_add(1)));
            }
        }
        true
    }

    fn apply(&mut self, pending: &Pending) {
        self.window.apply(&pending.moves);
        self.newest = self.newest.max(pending.newest);
        self.proven |= pending.proves;
        let Self { window, suspects, .. } = self;
        suspects.retain(|own| !window.is_finished(*own));
        self.counted.extend(&pending.begins);
        if !pending.ends.is_empty() {
            self.counted.retain(|own| !pending.ends.contains(own));
        }
    }

    fn is_suspect(&self, offset: i64) -> bool {
        !self.suspects.is_empty() && self.suspects.binary_search(&offset).is_ok()
    }

    /// How many attempts are to be noted of a message before it runs; `None` if nothing is.
    fn to_note(&self, offset: i64, most: u32) -> Option<u32> {
        if self.fenced || self.window.is_finished(offset) {
            return None;
        }
        if !self.is_suspect(offset) {
            // What runs beside others is only known to have been in hand: that is no attempt yet.
            return (!self.proven && !self.window.is_noted(offset)).then_some(0);
        }
        let attempts = self.window.attempts(offset);
        (attempts < most && !self.counted.contains(&offset)).then_some(attempts + 1)
    }

    /// What is known of a message. An attempt that was counted before it ran has not failed yet.
    fn known(&self, offset: i64) -> Known {
        match self.window.known(offset) {
            Known::Unfinished { attempts } if !self.counted.is_empty() && self.counted.contains(&offset) => {
                Known::Unfinished { attempts: attempts.saturating_sub(1) }
            }
            known => known,
        }
    }

    const fn verdict(&self, known: Known) -> Verdict {
        match known {
            _ if self.fenced => Verdict::Fenced,
            Known::Finished => Verdict::Finished,
            Known::Unfinished { attempts } => Verdict::New { attempts },
        }
    }
}

type Partitions = HashMap<i32, Arc<Held>>;

/// All windows held.
#[derive(Debug, Default)]
pub(super) struct Windows {
    held: RwLock<HashMap<Arc<str>, Partitions>>,
    /// One at a time raises fences: a process is not to fence itself off.
    pub(super) taking: tokio::sync::Mutex<()>,
}

impl Windows {
    pub(super) fn get(&self, topic: &str, partition: i32) -> Option<Arc<Held>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.get(topic).and_then(|partitions| partitions.get(&partition)).cloned()
    }

    pub(super) fn put(&self, new: Arc<Held>) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = held.entry(Arc::clone(&new.topic)).or_default().insert(new.partition, new) {
            old.fence_off();
        }
    }

    pub(super) fn drop_held(&self, topic: &str, partition: i32) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(partitions) = held.get_mut(topic) {
            partitions.remove(&partition);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Held, Pending, Row, Verdict};
    use crate::window::Window;

    /// What the next owner holds after what stands in the table.
    fn taken(window: &Window) -> Held {
        let row = window.row();
        let row = Row { source: [1; 16], fence: 2, next: row.next, state: row.state, note: None };
        let (held, _) = Held::of("orders".into(), 0, &row).unwrap();
        (0..4).for_each(|offset| _ = held.deliver(offset));
        held
    }

    fn read(pending: &Pending) -> Window {
        Window::restore(pending.shift.next, &pending.shift.state).unwrap()
    }

    #[test]
    fn an_attempt_that_was_counted_and_came_to_nothing_is_taken_back() {
        let mut window = Window::at(0);
        (0..3).for_each(|offset| _ = window.fail(offset, 4));
        let held = taken(&window);
        assert!(!held.is_counted(0));
        let noted = held.caution(&[0, 1, 2, 3], 8).unwrap();
        held.apply(&noted);
        assert_eq!([0, 1, 2, 3].map(|offset| held.is_counted(offset)), [true, true, true, false]);
        assert_eq!([0, 1, 2, 3].map(|offset| read(&noted).attempts(offset)), [5, 5, 5, 0]);
        assert_eq!(held.look(1), Verdict::New { attempts: 4 }, "it has not failed");
        let spared = held.pending(&[], &[(1, 0), (2, 0)]).unwrap();
        held.apply(&spared);
        assert_eq!([0, 1, 2].map(|offset| read(&spared).attempts(offset)), [5, 4, 4]);
        assert_eq!(held.look(1), Verdict::New { attempts: 4 });
        assert!(!held.is_counted(1) && held.is_suspect(1) && held.must_note(1, 8), "it is counted anew when it runs");
        // Nothing ran: what comes beside it is still noted.
        held.deliver(4);
        assert!(held.must_note(4, 8));
        // However often it is given back, it is not used up.
        for _ in 0..20 {
            held.apply(&held.caution(&[1], 8).unwrap());
            held.apply(&held.pending(&[], &[(1, 0)]).unwrap());
        }
        let noted = held.caution(&[1], 8).unwrap();
        held.apply(&noted);
        assert_eq!(read(&noted).attempts(1), 5);
        held.apply(&held.pending(&[], &[(1, 5)]).unwrap());
        assert_eq!(held.look(1), Verdict::New { attempts: 5 }, "it failed");
        assert!(!held.must_note(4, 8), "what ran and ended proves that the process does not end at once");
    }
}
