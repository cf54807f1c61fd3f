//! What a worker does next: pure, with the time passed in.
//!
//! ```text
//!   idle ─look▶ taking ─▶ queued ─▶ busy ─▶ ended        units: a whole run inside a transaction, a message outside of one
//!    ▲  pause, bell, due    │ one run ahead, if handlers are fast
//!    └──────────────────────┘ nothing while what handlers need is down, but one message to find out
//! ```

use std::time::Duration;

use crate::pace::{Breaker, Pace};

/// Time since the worker began.
pub(super) type Time = Duration;

/// After so long without news, another one tries whether what handlers need is back.
const PATIENT: Duration = Duration::from_secs(5);
/// The first wait of a worker that found nothing; it doubles.
const FIRST: Duration = Duration::from_millis(5);
/// The longest, where the database tells nobody of what came.
const LONGEST: Duration = Duration::from_millis(250);
/// The longest, where it does: a bell may be missed while a connection is made anew.
const BELLED: Duration = Duration::from_secs(1);
/// Between two steps of retention that found all there was.
const RETAIN: Duration = Duration::from_secs(30);
/// Between two that did not.
const RETAIN_ON: Duration = Duration::from_millis(20);

/// What a desk is set to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    /// Units that may be busy at once. At least 1.
    pub(super) capacity: usize,
    /// Whether a unit is a whole run; otherwise it is a message.
    pub(super) whole: bool,
    /// Whether messages wait for others, so that what ends may let others be taken.
    pub(super) by_key: bool,
    /// Messages in one run at most. At least 1.
    pub(super) batch: usize,
    /// Nothing is taken that cannot begin at once.
    pub(super) single: bool,
    pub(super) lease: Duration,
    /// Whether the database rings when something comes.
    pub(super) belled: bool,
    /// How long to wait before it looks again; where nothing is said, longer each time.
    pub(super) poll: Option<Duration>,
    /// Whether what is past retention is to leave.
    pub(super) retains: bool,
}

/// Something to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Take so many messages at most.
    Take { most: usize },
    /// Begin the run that waits.
    Begin,
    /// Give back what has not begun.
    Release,
    /// Look for runs whose lease is over.
    Sweep,
    /// Let some of what is past retention leave.
    Retain,
}

/// The state of a worker.
#[derive(Debug)]
pub(super) struct Desk {
    config: Config,
    now: Time,
    pace: Pace,
    /// Units that are taken and have not begun.
    queued: usize,
    busy: usize,
    /// Runs of which not all is written, where units are messages.
    open: usize,
    /// What was taken last, or runs, may take the process down: nothing is to be in hand beside it.
    suspect: bool,
    /// It has begun.
    suspect_begun: bool,
    /// When it was taken.
    suspect_since: Time,
    /// Units that went on beside it when it began after all.
    beside: usize,
    taking: bool,
    sweeping: bool,
    retaining: bool,
    releasing: bool,
    stopping: bool,
    /// Something came, or may be taken now, since the last look began.
    rung: bool,
    /// Looks in a row that found nothing.
    empty: u32,
    look_at: Time,
    sweep_at: Time,
    retain_at: Time,
    /// What handlers need.
    downstream: Breaker,
    /// When it last failed.
    tripped: Time,
    /// When somebody last tried.
    tried: Time,
    store: Breaker,
}

impl Desk {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            now: Time::ZERO,
            pace: Pace::new(config.batch),
            queued: 0,
            busy: 0,
            open: 0,
            suspect: false,
            suspect_begun: false,
            suspect_since: Time::ZERO,
            beside: 0,
            taking: false,
            sweeping: false,
            retaining: false,
            releasing: false,
            stopping: false,
            rung: false,
            empty: 0,
            look_at: Time::ZERO,
            sweep_at: Time::ZERO,
            retain_at: RETAIN_ON,
            downstream: Breaker::default(),
            tripped: Time::ZERO,
            tried: Time::ZERO,
            store: Breaker::default(),
        }
    }

    /// What is to be done now, if anything; each is to be begun before the next is asked for.
    pub(super) fn next(&mut self, now: Time) -> Option<Act> {
        self.at(now);
        // Outside of transactions each run gives back what it has.
        let waits = self.config.whole || (self.suspect && !self.suspect_begun);
        if waits && self.queued > 0 && !self.releasing && (self.stopping || self.is_down()) {
            self.releasing = true;
            return Some(Act::Release);
        }
        if self.stopping {
            return None;
        }
        let room = match self.suspect {
            // One that hangs is not waited for for ever.
            true => self.busy == 0 || self.now >= self.suspect_since + self.config.lease,
            false => self.busy < self.config.capacity,
        };
        if waits && self.queued > 0 && !self.releasing && room {
            self.suspect_begun = self.suspect;
            if self.suspect {
                self.beside = self.busy;
            }
            if self.config.whole {
                self.queued -= 1;
                self.busy += 1;
            }
            return Some(Act::Begin);
        }
        if !self.sweeping && self.sweep_at <= self.now && !self.store.is_open(self.now) {
            self.sweeping = true;
            return Some(Act::Sweep);
        }
        if self.config.retains && !self.retaining && self.retain_at <= self.now && !self.store.is_open(self.now) {
            self.retaining = true;
            return Some(Act::Retain);
        }
        let most = self.most();
        if most == 0 || (self.look_at > self.now && !self.rung) {
            return None;
        }
        self.taking = true;
        self.rung = false;
        Some(Act::Take { most })
    }

    /// It is so late. To be said before whatever happens then.
    pub(super) fn at(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// How many messages may be taken now.
    fn most(&self) -> usize {
        let held_back = self.downstream.is_open(self.now) || self.store.is_open(self.now);
        if self.taking || self.queued > 0 || self.suspect || held_back {
            return 0;
        }
        if self.downstream.is_tripped() {
            // One message finds out, once the others are back.
            let alone = self.busy == 0;
            // One that hangs is not waited for for ever.
            return usize::from(alone || (self.busy < self.config.capacity && self.now >= self.tried + PATIENT));
        }
        let ahead = if self.config.single { 0 } else { self.pace.ahead() };
        let free = self.config.capacity.saturating_sub(self.busy);
        let most = match self.config.whole {
            true if free == 0 => ahead,
            true => ahead.max(1),
            false => free.saturating_add(ahead),
        };
        // What nobody could be asked about is tried with little.
        if self.store.is_tripped() { most.min(1) } else { most.min(self.config.batch) }
    }

    /// When to ask [`next`](Self::next) again, if nothing happens before.
    pub(super) fn wake(&self) -> Option<Time> {
        if self.stopping {
            return None;
        }
        let sweep = (!self.sweeping).then_some(self.sweep_at.max(self.held_until(&self.store)));
        let retain =
            (self.config.retains && !self.retaining).then_some(self.retain_at.max(self.held_until(&self.store)));
        let look = (!self.taking && self.queued == 0 && !self.suspect).then(|| {
            let look = if self.rung { Time::ZERO } else { self.look_at };
            let probe = match self.downstream.is_tripped() && self.busy > 0 {
                true => self.tried + PATIENT,
                false => Time::ZERO,
            };
            look.max(self.held_until(&self.store)).max(self.held_until(&self.downstream)).max(probe)
        });
        // What is only waiting for room is woken by what ends.
        let look = look.filter(|look| *look > self.now || self.most() > 0);
        let suspect = (self.suspect && !self.suspect_begun && self.queued > 0 && !self.releasing)
            .then(|| self.suspect_since + self.config.lease);
        [sweep, retain, look, suspect].into_iter().flatten().min()
    }

    fn held_until(&self, breaker: &Breaker) -> Time {
        if breaker.is_open(self.now) { breaker.until() } else { Time::ZERO }
    }

    /// A run of so many messages was taken, with so many asked for. `suspect`: a run with its message was lost before, and the message may be why. It
    /// begins when nothing else is in hand, by [`Act::Begin`], and nothing is taken before it has ended: nobody else is to burn an attempt with it.
    pub(super) fn took(&mut self, messages: usize, most: usize, suspect: bool) {
        self.taking = false;
        self.tried = self.now;
        self.suspect = suspect;
        self.suspect_begun = false;
        if suspect {
            self.suspect_since = self.now;
            self.beside = 0;
        }
        self.store.succeed();
        self.empty = 0;
        self.queued += if self.config.whole { 1 } else { messages };
        self.open += usize::from(!self.config.whole);
        // A run that is not full is all there was.
        self.look_at = if messages < most { self.now + FIRST } else { self.now };
    }

    /// There was nothing to take; something waits that is due in so long.
    pub(super) fn nothing(&mut self, due: Option<Duration>, random: u64) {
        self.taking = false;
        self.store.succeed();
        let longest = if self.config.belled { BELLED } else { LONGEST };
        let pause = self.config.poll.unwrap_or(FIRST.saturating_mul(1 << self.empty.min(10)).min(longest));
        let pause = pause - crate::retry::share(pause / 4, random);
        self.empty = self.empty.saturating_add(1);
        // What is due and could not be taken is locked by somebody.
        let due = due.filter(|due| !due.is_zero() || self.empty <= 1);
        self.look_at = self.now + due.map_or(pause, |due| due.min(pause));
    }

    /// The database could not be asked. Answers for how long it is left alone.
    pub(super) fn take_failed(&mut self, random: u64) -> Duration {
        self.taking = false;
        self.rung = true;
        self.store.fail(self.now, random)
    }

    /// Something came.
    pub(super) fn rang(&mut self) {
        self.rung = true;
        self.empty = 0;
    }

    /// The database gave the look up in favour of another's.
    pub(super) fn contended(&mut self, random: u64) {
        self.taking = false;
        self.look_at = self.now + crate::retry::share(2 * FIRST, random);
    }

    /// All of a run is written, where units are messages.
    pub(super) fn closed(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// A message's handler begins, outside of a transaction.
    pub(super) fn began(&mut self) {
        self.queued = self.queued.saturating_sub(1);
        self.busy += 1;
    }

    /// So many queued units are given back.
    pub(super) fn released(&mut self, units: usize) {
        self.queued = self.queued.saturating_sub(units);
        self.releasing = false;
        self.cleared();
    }

    /// What was suspected has ended, or is given back.
    fn cleared(&mut self) {
        self.suspect &= self.in_hand() > self.beside;
    }

    /// A unit ended: so many messages, which took so long.
    pub(super) fn ended(&mut self, messages: usize, took: Duration) {
        let parallel = if self.config.whole { 1 } else { self.busy };
        self.busy = self.busy.saturating_sub(1);
        self.cleared();
        self.pace.ran(u32::try_from(messages).unwrap_or(u32::MAX), took, parallel);
        // Others of its lane may be taken.
        self.rung |= self.config.by_key;
    }

    /// A handler said, of something that it began `ago`, whether what it needs is there. Answers whether that is news.
    pub(super) fn heard(&mut self, available: bool, ago: Duration, random: u64) -> bool {
        let was = self.downstream.is_tripped();
        if !available {
            self.downstream.fail(self.now, random);
            self.tripped = self.now;
            self.tried = self.now;
            self.rung = true;
            return !was;
        }
        // What began before it went down proves nothing.
        if was && self.now.saturating_sub(ago) >= self.tripped {
            self.downstream.succeed();
            self.rung = true;
            return true;
        }
        false
    }

    /// Runs were looked for whose lease is over; so many messages were in them. `None`: the database could not be asked.
    pub(super) fn swept(&mut self, lost: Option<u64>, random: u64) {
        self.sweeping = false;
        match lost {
            Some(0) => {}
            Some(_) => self.rang(),
            None => _ = self.store.fail(self.now, random),
        }
        let every = (self.config.lease / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
        // Workers that began together go apart.
        self.sweep_at = self.now + every - crate::retry::share(every / 4, random);
    }

    /// A step of retention was done. `more`: it stopped before the end.
    pub(super) fn retained(&mut self, more: bool) {
        self.retaining = false;
        self.retain_at = self.now + if more { RETAIN_ON } else { RETAIN };
    }

    /// Begins nothing more.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether all is done, after [`stop`](Self::stop).
    pub(super) fn is_done(&self) -> bool {
        let in_hand = self.in_hand() + self.open;
        self.stopping && in_hand == 0 && !self.taking && !self.sweeping && !self.retaining
    }

    /// Whether what handlers need is down: what has not begun is given back.
    pub(super) fn is_down(&self) -> bool {
        self.downstream.is_open(self.now)
    }

    /// Whether the last that was heard of the database is that it cannot be asked.
    pub(super) const fn store_is_down(&self) -> bool {
        self.store.is_tripped()
    }

    /// Units that have begun, and those that have not.
    pub(super) const fn in_hand(&self) -> usize {
        self.busy + self.queued
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn desk(whole: bool, capacity: usize, batch: usize) -> Desk {
        let lease = Duration::from_secs(30);
        let config = Config {
            capacity,
            whole,
            by_key: false,
            batch,
            single: false,
            lease,
            belled: false,
            poll: None,
            retains: false,
        };
        let mut desk = Desk::new(config);
        assert_eq!(desk.next(Time::ZERO), Some(Act::Sweep), "whoever died before is looked for first");
        desk.swept(Some(0), 0);
        desk
    }

    #[test]
    fn a_run_is_taken_and_begun_and_one_more_waits() {
        let mut desk = desk(true, 1, 512);
        assert_eq!(desk.next(MS), Some(Act::Take { most: 32 }));
        assert_eq!(desk.next(MS), None, "one take at a time");
        desk.took(32, 32, false);
        assert_eq!(desk.next(MS), Some(Act::Begin));
        assert_eq!(desk.next(MS), Some(Act::Take { most: 32 }), "one ahead");
        desk.took(32, 32, false);
        assert_eq!(desk.next(MS), None, "no more than one");
        desk.ended(32, MS);
        assert_eq!(desk.next(2 * MS), Some(Act::Begin));
        assert_eq!(desk.next(2 * MS), Some(Act::Take { most: 128 }), "fast handlers get more");
    }

    #[test]
    fn slow_handlers_have_nothing_taken_ahead() {
        let mut desk = desk(true, 1, 512);
        assert_eq!(desk.next(MS), Some(Act::Take { most: 32 }));
        desk.took(32, 32, false);
        assert_eq!(desk.next(MS), Some(Act::Begin));
        desk.ended(32, Duration::from_secs(32));
        assert_eq!(desk.next(33 * MS), Some(Act::Take { most: 1 }));
        desk.took(1, 1, false);
        assert_eq!(desk.next(33 * MS), Some(Act::Begin));
        assert_eq!(desk.next(33 * MS), None, "others may take it");
    }

    #[test]
    fn messages_outside_are_taken_for_those_that_are_free() {
        let mut desk = desk(false, 4, 512);
        assert_eq!(desk.next(MS), Some(Act::Take { most: 36 }));
        desk.took(6, 36, false);
        (0..4).for_each(|_| desk.began());
        assert_eq!(desk.next(9 * MS), None, "two are queued");
        desk.ended(1, Duration::from_secs(10));
        desk.began();
        desk.ended(1, Duration::from_secs(10));
        desk.began();
        assert_eq!(desk.next(20 * MS), None, "as many as may run do");
        desk.ended(1, Duration::from_secs(10));
        assert_eq!(desk.next(20 * MS), Some(Act::Take { most: 1 }));
    }

    #[test]
    fn who_finds_nothing_waits_longer_and_longer_until_something_comes() {
        let mut desk = desk(true, 1, 512);
        let mut now = MS;
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert!(matches!(desk.next(now), Some(Act::Take { .. })));
            desk.nothing(None, 0);
            assert_eq!(desk.next(now), None);
            let wake = desk.wake().unwrap();
            waits.push((wake - now).as_millis());
            now = wake;
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 250, 250, 250]);
        assert!(matches!(desk.next(now), Some(Act::Take { .. })));
        desk.nothing(Some(3 * MS), 0);
        assert_eq!(desk.wake(), Some(now + 3 * MS), "something is due before");
        desk.rang();
        assert!(matches!(desk.next(now), Some(Act::Take { .. })), "something came");
        desk.rang();
        desk.nothing(None, 0);
        assert!(matches!(desk.next(now), Some(Act::Take { .. })), "something came while it looked");
    }

    #[test]
    fn what_is_down_is_left_alone_and_found_out_with_one_message() {
        let mut desk = desk(true, 2, 512);
        desk.next(MS);
        desk.took(32, 32, false);
        assert_eq!(desk.next(MS), Some(Act::Begin));
        assert_eq!(desk.next(MS), Some(Act::Take { most: 32 }));
        desk.took(32, 32, false);
        assert_eq!(desk.next(MS), Some(Act::Begin));
        desk.next(MS);
        desk.took(32, 32, false);
        assert!(desk.heard(false, Duration::ZERO, u64::MAX), "news");
        desk.ended(32, MS);
        assert!(!desk.heard(false, Duration::ZERO, u64::MAX), "the same");
        assert_eq!(desk.next(MS), Some(Act::Release), "what waits is given back");
        desk.released(1);
        assert_eq!(desk.next(30 * MS), None);
        assert_eq!(desk.next(51 * MS), None, "one is still busy");
        assert!(!desk.heard(true, 51 * MS, 0), "it began before");
        desk.ended(32, MS);
        assert_eq!(desk.next(51 * MS), Some(Act::Take { most: 1 }));
        desk.took(1, 1, false);
        assert_eq!(desk.next(51 * MS), Some(Act::Begin));
        assert_eq!(desk.next(51 * MS), None, "one finds out");
        assert!(desk.heard(true, Duration::ZERO, 0));
        desk.ended(1, MS);
        assert!(matches!(desk.next(52 * MS), Some(Act::Take { most }) if most > 1));
    }

    #[test]
    fn a_handler_that_hangs_keeps_nobody_from_finding_out() {
        let mut desk = desk(false, 2, 512);
        desk.next(MS);
        desk.took(2, 34, false);
        (0..2).for_each(|_| desk.began());
        assert!(desk.heard(false, Duration::ZERO, u64::MAX));
        desk.ended(1, MS);
        let late = MS + PATIENT;
        let acts = |desk: &mut Desk, now| std::iter::from_fn(|| desk.next(now)).collect::<Vec<_>>();
        assert!(!acts(&mut desk, late - MS).contains(&Act::Take { most: 1 }), "it may end yet");
        assert!(acts(&mut desk, late).contains(&Act::Take { most: 1 }));
    }

    #[test]
    fn a_suspect_waits_for_one_that_hangs_no_longer_than_its_lease() {
        let mut desk = desk(true, 2, 512);
        desk.next(MS);
        desk.took(32, 32, false);
        assert_eq!(desk.next(MS), Some(Act::Begin));
        desk.next(MS);
        desk.took(1, 1, true);
        let begins = |desk: &mut Desk, now| std::iter::from_fn(|| desk.next(now)).any(|act| act == Act::Begin);
        assert!(!begins(&mut desk, 2 * MS), "nothing else is to be in hand");
        let late = MS + desk.config.lease;
        assert!(desk.wake().unwrap() <= late);
        assert!(begins(&mut desk, late));
        desk.ended(1, MS);
        assert!(!desk.suspect, "it has ended");
    }

    #[test]
    fn a_store_that_cannot_be_asked_is_asked_again_later() {
        let mut desk = desk(true, 1, 512);
        assert!(matches!(desk.next(MS), Some(Act::Take { .. })));
        assert_eq!(desk.take_failed(u64::MAX), 50 * MS);
        assert!(desk.store_is_down());
        assert_eq!(desk.next(50 * MS), None);
        assert_eq!(desk.wake(), Some(51 * MS));
        assert_eq!(desk.next(51 * MS), Some(Act::Take { most: 1 }));
        desk.nothing(None, 0);
        assert!(!desk.store_is_down());
    }

    #[test]
    fn sweeps_come_again_and_what_they_find_is_looked_for() {
        let mut desk = desk(true, 1, 512);
        desk.next(MS);
        desk.nothing(None, 0);
        assert_eq!(desk.next(Duration::from_secs(5)), Some(Act::Sweep));
        let Some(Act::Take { .. }) = desk.next(Duration::from_secs(5)) else { panic!("its time has come too") };
        desk.nothing(None, 0);
        desk.swept(Some(3), 0);
        assert!(matches!(desk.next(Duration::from_secs(5)), Some(Act::Take { .. })));
    }

    #[test]
    fn who_stops_gives_back_what_has_not_begun_and_waits_for_the_rest() {
        let mut desk = desk(true, 1, 512);
        desk.next(MS);
        desk.took(32, 32, false);
        assert_eq!(desk.next(MS), Some(Act::Begin));
        desk.next(MS);
        desk.took(32, 32, false);
        desk.stop();
        assert_eq!(desk.next(MS), Some(Act::Release));
        assert_eq!(desk.next(MS), None);
        desk.released(1);
        assert!(!desk.is_done() && desk.wake().is_none());
        desk.ended(32, MS);
        assert!(desk.is_done());
    }

    #[test]
    fn what_may_take_the_process_down_is_alone_in_it() {
        for whole in [true, false] {
            let mut desk = desk(whole, 4, 512);
            assert!(matches!(desk.next(MS), Some(Act::Take { .. })));
            desk.took(1, 36, false);
            match whole {
                true => assert_eq!(desk.next(MS), Some(Act::Begin)),
                false => desk.began(),
            }
            assert!(matches!(desk.next(MS + FIRST), Some(Act::Take { .. })));
            desk.took(1, 36, true);
            assert_eq!(desk.next(2 * FIRST), None, "it waits for the other");
            desk.ended(1, MS);
            assert_eq!(desk.next(2 * FIRST), Some(Act::Begin));
            if !whole {
                assert_eq!(desk.next(2 * FIRST), None, "it is about to begin");
                desk.began();
            }
            desk.rang();
            assert_eq!(desk.next(3 * FIRST), None, "and nothing is taken beside it");
            desk.ended(1, MS);
            assert!(matches!(desk.next(3 * FIRST), Some(Act::Take { .. })));
            desk.took(1, 36, true);
            desk.stop();
            assert_eq!(desk.next(4 * FIRST), Some(Act::Release), "given back by whoever has it");
        }
    }

    #[test]
    fn retention_goes_on_beside() {
        let lease = Duration::from_secs(30);
        let config = Config {
            capacity: 1,
            whole: true,
            by_key: false,
            batch: 8,
            single: false,
            lease,
            belled: true,
            poll: None,
            retains: true,
        };
        let mut desk = Desk::new(config);
        assert_eq!(desk.next(Time::ZERO), Some(Act::Sweep));
        assert!(matches!(desk.next(Time::ZERO), Some(Act::Take { .. })));
        assert_eq!(desk.next(RETAIN_ON), Some(Act::Retain));
        assert_eq!(desk.next(RETAIN_ON), None);
        desk.retained(true);
        assert_eq!(desk.next(2 * RETAIN_ON), Some(Act::Retain));
        desk.retained(false);
        assert_eq!(desk.next(10 * RETAIN_ON), None);
        assert_eq!(desk.next(3 * RETAIN_ON + RETAIN), Some(Act::Retain));
    }
}
