//! The frontier against a naive model, and by example.

use std::collections::BTreeSet;

use hapax::frontier::{Epoch, Finish, Frontier, Slot};
use proptest::prelude::*;

/// What the frontier must say, computed from everything that ever happened.
#[derive(Default)]
struct Naive {
    delivered: Vec<i64>,
    finished: BTreeSet<i64>,
}

impl Naive {
    fn prefix(&self) -> &[i64] {
        let len = self.delivered.iter().take_while(|offset| self.finished.contains(offset)).count();
        &self.delivered[..len]
    }

    fn committable(&self) -> Option<i64> {
        self.prefix().last().map(|offset| offset + 1)
    }

    fn unfinished(&self) -> usize {
        self.delivered.len() - self.finished.len()
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// Deliver the offset this far above the last one.
    Deliver(i64),
    /// Finish one of the delivered, chosen by a number.
    Finish(usize),
    /// Finish the first unfinished one: what a sequential handler does.
    FinishFirst,
    /// Finish something of the epoch before.
    FinishOld(usize),
    /// The partition was revoked and assigned again, to go on at a lower offset than the last one delivered.
    Reassign(i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1i64..5).prop_map(Event::Deliver),
        1 => (5i64..10_000).prop_map(Event::Deliver),
        4 => any::<usize>().prop_map(Event::Finish),
        4 => Just(Event::FinishFirst),
        1 => any::<usize>().prop_map(Event::FinishOld),
        1 => (0i64..20).prop_map(Event::Reassign),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn f12_only_the_finished_prefix_over_random_gaps(
        start in 0i64..1_000,
        events in proptest::collection::vec(event(), 0..200),
    ) {
        let mut epoch = Epoch::new(7);
        let mut frontier = Frontier::new(epoch);
        let mut naive = Naive::default();
        let mut slots: Vec<(i64, Slot)> = Vec::new();
        let mut old: Vec<Slot> = Vec::new();
        let mut next = start;
        let mut floor = None;
        for event in events {
            match event {
                Event::Deliver(gap) => {
                    next += gap;
                    slots.push((next, frontier.deliver(next).expect("in order")));
                    naive.delivered.push(next);
                }
                Event::Finish(pick) => {
                    if let Some(&(offset, slot)) = slots.get(pick % slots.len().max(1)) {
                        let before = naive.committable();
                        let first_time = naive.finished.insert(offset);
                        let expected = match (first_time, naive.committable() != before) {
                            (false, _) => Finish::Again,
                            (true, true) => Finish::Moved,
                            (true, false) => Finish::Waiting,
                        };
                        prop_assert_eq!(frontier.finish(slot), expected);
                    }
                }
                Event::FinishFirst => {
                    let first = slots.iter().find(|(offset, _)| !naive.finished.contains(offset));
                    if let Some(&(offset, slot)) = first {
                        naive.finished.insert(offset);
                        prop_assert_eq!(frontier.finish(slot), Finish::Moved);
                    }
                }
                Event::FinishOld(pick) => {
                    if let Some(&slot) = old.get(pick % old.len().max(1)) {
                        prop_assert_eq!(frontier.finish(slot), Finish::Stale);
                    }
                }
                Event::Reassign(back) => {
                    epoch = epoch.next();
                    frontier.restart(epoch);
                    old.extend(slots.drain(..).map(|(_, slot)| slot));
                    naive = Naive::default();
                    next = (next - back).max(0);
                    floor = None;
                }
            }
            prop_assert_eq!(frontier.committable(), naive.committable());
            prop_assert_eq!(frontier.unfinished(), naive.unfinished());
            prop_assert!(frontier.committable() >= floor, "fell back");
            floor = frontier.committable();
        }
    }

    #[test]
    fn whatever_the_order_all_finished_means_all_committable(
        gaps in proptest::collection::vec(1i64..100, 1..100),
        order in any::<u64>(),
    ) {
        let mut frontier = Frontier::new(Epoch::new(0));
        let mut offset = 0;
        let mut slots: Vec<Slot> = Vec::new();
        for gap in gaps {
            offset += gap;
            slots.push(frontier.deliver(offset).expect("in order"));
        }
        // A permutation from the number: a small generator, so that a failure shrinks.
        let mut state = order | 1;
        while !slots.is_empty() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pick = (state >> 33) as usize % slots.len();
            frontier.finish(slots.swap_remove(pick));
        }
        prop_assert_eq!(frontier.committable(), Some(offset + 1));
        prop_assert_eq!(frontier.unfinished(), 0);
    }
}

#[test]
fn f12_never_past_a_gap() {
    let mut frontier = Frontier::new(Epoch::new(1));
    let slots: Vec<Slot> = [3, 4, 9, 10, 17].map(|offset| frontier.deliver(offset).unwrap()).into();
    assert_eq!(frontier.committable(), None);
    assert_eq!(frontier.finish(slots[3]), Finish::Waiting);
    assert_eq!(frontier.committable(), None, "nothing before 10 is finished");
    assert_eq!(frontier.finish(slots[0]), Finish::Moved);
    assert_eq!(frontier.committable(), Some(4));
    assert_eq!(frontier.finish(slots[1]), Finish::Moved);
    assert_eq!(frontier.committable(), Some(5), "9 is the next one delivered, and unfinished");
    assert_eq!(frontier.finish(slots[2]), Finish::Moved);
    assert_eq!(frontier.committable(), Some(11));
    assert_eq!((frontier.unfinished(), frontier.delivered()), (1, Some(17)));
}

#[test]
fn f10_an_earlier_ownership_leaves_nothing() {
    let mut frontier = Frontier::new(Epoch::new(1));
    let early: Vec<Slot> = (100..110).map(|offset| frontier.deliver(offset).unwrap()).collect();
    for slot in &early[..5] {
        frontier.finish(*slot);
    }
    assert_eq!(frontier.committable(), Some(105));

    // The partition goes away and comes back; the broker's committed offset is lower than what was delivered before.
    frontier.restart(frontier.epoch().next());
    assert_eq!(frontier.committable(), None, "what an earlier ownership finished may not be committed");
    let slot = frontier.deliver(103).unwrap();
    for late in &early {
        assert_eq!(frontier.finish(*late), Finish::Stale);
    }
    assert_eq!(frontier.committable(), None);
    assert_eq!(frontier.unfinished(), 1);
    assert_eq!(frontier.finish(slot), Finish::Moved);
    assert_eq!(frontier.committable(), Some(104));
}

#[test]
fn a_message_delivered_again_in_one_epoch_gets_no_second_place() {
    let mut frontier = Frontier::new(Epoch::new(1));
    assert!(frontier.deliver(-1).is_none());
    let slot = frontier.deliver(5).unwrap();
    assert!(frontier.deliver(5).is_none());
    assert!(frontier.deliver(4).is_none());
    assert_eq!(frontier.unfinished(), 1);
    assert_eq!(frontier.finish(slot), Finish::Moved);
    assert_eq!(frontier.finish(slot), Finish::Again);
    assert_eq!(frontier.committable(), Some(6));
}

#[test]
fn the_largest_offset_does_not_overflow() {
    let mut frontier = Frontier::new(Epoch::new(u64::MAX));
    let slot = frontier.deliver(i64::MAX).unwrap();
    assert_eq!(frontier.finish(slot), Finish::Moved);
    assert_eq!(frontier.committable(), Some(i64::MAX));
    assert_eq!(frontier.epoch().next(), Epoch::new(u64::MAX));
}

#[test]
fn a_million_messages_leave_nothing_behind() {
    let mut frontier = Frontier::new(Epoch::new(1));
    let mut window = std::collections::VecDeque::new();
    for offset in 0..1_000_000 {
        window.push_back(frontier.deliver(offset * 3).unwrap());
        if window.len() == 512 {
            for slot in window.drain(..).rev() {
                frontier.finish(slot);
            }
            assert_eq!(frontier.committable(), Some(offset * 3 + 1));
        }
    }
    assert_eq!(frontier.unfinished(), window.len());
}
