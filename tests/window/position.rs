//! The window of a partition against a set of what finished.

use std::collections::{BTreeMap, BTreeSet};

use hapax::frontier::{Epoch, Frontier};
use hapax::window::{Known, Moves, Window};
use proptest::prelude::*;

/// A partition's log, what finished of it, and how far it was delivered since the last restart.
#[derive(Debug)]
struct Naive {
    log: Vec<i64>,
    finished: BTreeSet<i64>,
    attempts: BTreeMap<i64, u32>,
    /// Where this life began, and the last offset delivered in it.
    from: i64,
    delivered: Option<i64>,
}

impl Naive {
    /// One above the last message of the finished prefix of what is below `end`.
    fn mark(&self, end: i64) -> i64 {
        let prefix = self.log.iter().filter(|offset| **offset >= self.from && **offset < end);
        let last = prefix.take_while(|offset| self.finished.contains(offset)).last();
        last.map_or(self.from, |offset| offset + 1)
    }

    /// The highest the mark may be: below whatever is unfinished, delivered or not, and above nothing but what finished.
    fn most(&self) -> i64 {
        let open = self.log.iter().find(|offset| **offset >= self.from && !self.finished.contains(offset));
        let below = self.finished.range(self.from..open.copied().unwrap_or(i64::MAX).max(self.from));
        below.last().map_or(self.from, |offset| offset + 1)
    }

    fn undelivered(&self) -> Option<i64> {
        let from = self.delivered.map_or(self.from, |last| last + 1);
        self.log.iter().copied().find(|offset| *offset >= from)
    }

    fn open(&self) -> Vec<i64> {
        let Some(last) = self.delivered else { return Vec::new() };
        let delivered = self.log.iter().copied().filter(|offset| (self.from..=last).contains(offset));
        delivered.filter(|offset| !self.finished.contains(offset)).collect()
    }

    fn restart(&mut self, next: i64) {
        self.from = next;
        self.delivered = None;
    }

    fn agree(&self, window: &Window) -> Result<(), TestCaseError> {
        let seen = self.delivered.map_or(self.from, |last| last + 1);
        let (least, most) = (self.mark(seen), self.most());
        prop_assert!(least <= window.next() && window.next() <= most, "{least} {} {most}", window.next());
        for offset in &self.log {
            let finished = self.finished.contains(offset) || *offset < self.from;
            prop_assert_eq!(window.is_finished(*offset), finished, "{}", offset);
            if !finished {
                let attempts = self.attempts.get(offset).copied().unwrap_or(0);
                prop_assert_eq!(window.known(*offset), Known::Unfinished { attempts }, "{}", offset);
            }
        }
        prop_assert!(window.encode().len() <= Window::longest(self.log.len()));
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Event {
    Deliver(usize),
    Finish(usize),
    FinishFirst,
    /// A result of an earlier assignment, of something not delivered again yet.
    FinishLate(usize),
    Fail(usize),
    /// A batch: computed, and committed or rolled back; something is delivered meanwhile.
    Batch {
        picks: Vec<(usize, bool)>,
        commits: bool,
    },
    /// Written and read again; or kept in memory, and read again from the mark.
    Restart {
        restored: bool,
    },
    /// Compaction takes a message away.
    Compact(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let picks = proptest::collection::vec((any::<usize>(), proptest::bool::weighted(0.8)), 0..6);
    prop_oneof![
        6 => (1_usize..6).prop_map(Event::Deliver),
        4 => any::<usize>().prop_map(Event::Finish),
        4 => Just(Event::FinishFirst),
        1 => any::<usize>().prop_map(Event::FinishLate),
        2 => any::<usize>().prop_map(Event::Fail),
        3 => (picks, any::<bool>()).prop_map(|(picks, commits)| Event::Batch { picks, commits }),
        2 => any::<bool>().prop_map(|restored| Event::Restart { restored }),
        1 => any::<usize>().prop_map(Event::Compact),
    ]
}

fn log() -> impl Strategy<Value = Vec<i64>> {
    let gap = prop_oneof![8 => Just(1_i64), 3 => 2_i64..6, 1 => 6_i64..100_000];
    let first = prop_oneof![Just(0_i64), 0_i64..1_000, Just(i64::MAX - 20_000_000)];
    (first, proptest::collection::vec(gap, 1..80)).prop_map(|(first, gaps)| {
        let mut at = first;
        let mut next = |gap| {
            at += gap;
            at - gap
        };
        gaps.into_iter().map(&mut next).collect()
    })
}

fn pick(from: &[i64], number: usize) -> Option<i64> {
    from.get(number % from.len().max(1)).copied()
}

fn deliver(window: &mut Window, naive: &mut Naive) -> Result<(), TestCaseError> {
    if let Some(offset) = naive.undelivered() {
        naive.delivered = Some(offset);
        let known = window.deliver(offset);
        prop_assert_eq!(known == Known::Finished, naive.finished.contains(&offset), "{}", offset);
        prop_assert_eq!(window.deliver(offset), known, "again");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn it_knows_what_a_set_knows_over_restarts(
        log in log(),
        events in proptest::collection::vec(event(), 0..120),
    ) {
        let first = log[0];
        let mut naive = Naive { log, finished: BTreeSet::new(), attempts: BTreeMap::new(), from: first, delivered: None };
        let mut window = Window::at(first);
        for event in events {
            let before = window.next();
            match event {
                Event::Deliver(count) => {
                    for _ in 0..count {
                        deliver(&mut window, &mut naive)?;
                    }
                }
                Event::Finish(number) => {
                    if let Some(offset) = pick(&naive.open(), number) {
                        prop_assert!(window.finish(offset));
                        prop_assert!(!window.finish(offset), "again");
                        naive.finished.insert(offset);
                        naive.attempts.remove(&offset);
                    }
                }
                Event::FinishFirst => {
                    if let Some(offset) = naive.open().first().copied() {
                        prop_assert!(window.finish(offset));
                        naive.finished.insert(offset);
                        naive.attempts.remove(&offset);
                    }
                }
                Event::FinishLate(number) => {
                    let late: Vec<i64> = naive.log.iter().copied().filter(|at| *at >= naive.from).collect();
                    if let Some(offset) = pick(&late, number) {
                        prop_assert_eq!(window.finish(offset), naive.finished.insert(offset));
                        naive.attempts.remove(&offset);
                    }
                }
                Event::Fail(number) => {
                    if let Some(offset) = pick(&naive.open(), number) {
                        let attempts = naive.attempts.entry(offset).or_default();
                        *attempts += 1;
                        prop_assert!(window.fail(offset, *attempts));
                        prop_assert!(window.fail(offset, 1), "they do not fall");
                    }
                }
                Event::Batch { picks, commits } => {
                    let open = naive.open();
                    let mut moves = Moves::new();
                    let mut then = (naive.finished.clone(), naive.attempts.clone());
                    for (number, succeeds) in picks {
                        let Some(offset) = pick(&open, number) else { break };
                        if then.0.contains(&offset) {
                            continue;
                        }
                        if succeeds {
                            moves.finish(offset);
                            then.0.insert(offset);
                            then.1.remove(&offset);
                        } else {
                            let attempts = then.1.entry(offset).or_default();
                            *attempts += 1;
                            moves.fail(offset, *attempts);
                        }
                    }
                    let (row, same) = (window.after(&moves), window.clone());
                    prop_assert_eq!(&window, &same, "computing changes nothing");
                    deliver(&mut window, &mut naive)?;
                    if commits {
                        window.apply(&moves);
                        (naive.finished, naive.attempts) = then;
                        let restored = Window::restore(row.next, &row.state).unwrap();
                        for offset in naive.log.iter().filter(|offset| naive.delivered.is_none_or(|last| **offset < last)) {
                            prop_assert_eq!(restored.known(*offset), window.known(*offset), "{}", offset);
                        }
                    }
                }
                Event::Restart { restored } => {
                    if restored {
                        let row = window.row();
                        window = Window::restore(row.next, &row.state).unwrap();
                        prop_assert_eq!(window.row(), row, "what was read is written alike");
                    } else {
                        window.restart();
                    }
                    naive.restart(window.next());
                    prop_assert_eq!(window.unfinished(), 0);
                }
                Event::Compact(number) => {
                    let row = window.row();
                    window = Window::restore(row.next, &row.state).unwrap();
                    naive.restart(window.next());
                    let left: Vec<i64> = naive.log.iter().copied().filter(|at| *at >= naive.from).collect();
                    if let Some(offset) = pick(&left, number) {
                        naive.log.retain(|at| *at != offset);
                    }
                    if naive.log.is_empty() {
                        return Ok(());
                    }
                }
            }
            prop_assert!(window.next() >= before, "the mark fell");
            prop_assert_eq!(window.unfinished(), naive.open().len());
            naive.agree(&window)?;
        }
        // Read to the end, nothing holds the mark but what is unfinished.
        while naive.undelivered().is_some() {
            deliver(&mut window, &mut naive)?;
        }
        naive.agree(&window)?;
        for offset in naive.open() {
            window.finish(offset);
            naive.finished.insert(offset);
        }
        naive.agree(&window)?;
        // What finished or failed and was compacted away before it came again may stand above.
        let above = |last: Option<&i64>| last.is_some_and(|last| *last >= window.next());
        if !above(naive.finished.last()) && !above(naive.attempts.keys().last()) {
            prop_assert!(window.encode().is_empty(), "all is below the mark");
        }
    }

    /// While a partition is held, the mark is what may be committed: what the row says and what Kafka has do not differ by themselves.
    #[test]
    fn the_mark_is_the_offset_to_commit(
        log in log(),
        events in proptest::collection::vec((any::<usize>(), any::<bool>()), 0..300),
    ) {
        let mut frontier = Frontier::new(Epoch::new(1));
        let mut window = Window::at(log[0]);
        let mut slots = Vec::new();
        let mut rest = log.iter().copied();
        let mut most = 0;
        for (number, delivers) in events {
            if delivers {
                let Some(offset) = rest.next() else { continue };
                window.deliver(offset);
                slots.push((offset, frontier.deliver(offset).unwrap()));
            } else if !slots.is_empty() {
                let (offset, slot) = slots.swap_remove(number % slots.len());
                window.finish(offset);
                frontier.finish(slot);
            }
            prop_assert_eq!(window.next(), frontier.committable().unwrap_or(log[0]));
            prop_assert_eq!(window.unfinished(), frontier.unfinished());
            most = most.max(window.unfinished());
            prop_assert!(window.runs() <= window.unfinished(), "a run has an unfinished one before it");
            prop_assert!(window.encode().len() <= Window::longest(most));
        }
    }
}

#[test]
fn what_vanished_holds_nothing_up() {
    let mut window = Window::at(0);
    (0..5).for_each(|offset| assert_eq!(window.deliver(offset), Known::Unfinished { attempts: 0 }));
    window.fail(1, 3);
    for offset in [0, 2, 4] {
        window.finish(offset);
    }
    let mut window = Window::restore(window.next(), &window.encode()).unwrap();
    assert_eq!((window.next(), window.attempts(1)), (1, 3));
    // 1 and 3 were compacted away.
    assert_eq!(window.deliver(2), Known::Finished);
    assert_eq!((window.next(), window.attempts(1)), (3, 0));
    assert_eq!(window.deliver(4), Known::Finished);
    assert_eq!(window.next(), 5);
    assert!(window.encode().is_empty());
}

#[test]
fn an_offset_in_a_gap_is_a_message_like_any_other() {
    let mut window = Window::at(0);
    window.deliver(0);
    window.deliver(9);
    assert_eq!(window.deliver(5), Known::Unfinished { attempts: 0 });
    window.finish(0);
    window.finish(9);
    assert_eq!(window.next(), 1);
    window.finish(5);
    assert_eq!(window.next(), 10);
}

#[test]
fn a_mark_raised_by_hand_wins() {
    let mut window = Window::at(0);
    (0..10).for_each(|offset| {
        window.deliver(offset);
    });
    window.fail(2, 1);
    [3, 4, 7].into_iter().for_each(|offset| {
        window.finish(offset);
    });
    let raised = Window::restore(4, &window.encode()).unwrap();
    assert_eq!((raised.next(), raised.attempts(2), raised.is_finished(7)), (5, 0, true));
    let lowered = Window::restore(0, &raised.encode()).unwrap();
    assert_eq!((lowered.next(), lowered.is_finished(4), lowered.is_finished(7)), (0, false, true));
}

#[test]
fn raising_keeps_what_is_finished_above() {
    let mut window = Window::at(0);
    (0..20).for_each(|offset| {
        window.deliver(offset);
    });
    window.fail(3, 2);
    window.fail(12, 1);
    [1, 9, 10, 15].into_iter().for_each(|offset| {
        window.finish(offset);
    });
    window.raise(10);
    assert_eq!((window.next(), window.unfinished(), window.attempts(3), window.attempts(12)), (11, 0, 0, 1));
    assert!(window.is_finished(15) && !window.is_finished(11));
    window.raise(2);
    assert_eq!(window.next(), 11);
}

#[test]
fn what_is_no_offset_leaves_no_trace() {
    let mut window = Window::at(-5);
    assert_eq!(window.next(), 0);
    for offset in [-1, i64::MIN, i64::MAX] {
        assert_eq!(window.deliver(offset), Known::Unfinished { attempts: 0 }, "{offset}");
        assert!(!window.finish(offset) && !window.fail(offset, 1) && !window.is_finished(offset), "{offset}");
    }
    assert_eq!(window, Window::at(0));
    window.deliver(i64::MAX - 1);
    window.finish(i64::MAX - 1);
    assert_eq!(window.next(), i64::MAX);
}

#[test]
fn the_bytes_stay_as_they_are() {
    let mut window = Window::at(1_000);
    (1_000..1_010).for_each(|offset| {
        window.deliver(offset);
    });
    window.fail(1_001, 2);
    window.fail(1_004, 300);
    [1_000, 1_002, 1_003, 1_007].into_iter().for_each(|offset| {
        window.finish(offset);
    });
    let row = window.row();
    assert_eq!(row.next, 1_001);
    // Two runs: 1,002 and one more, 3 further 1,007. Two failed: 1,001 twice, 3 further 300 times.
    assert_eq!(row.state, [1, 2, 0xea, 0x07, 1, 3, 0, 2, 0xe9, 0x07, 2, 3, 0xac, 0x02]);
}
