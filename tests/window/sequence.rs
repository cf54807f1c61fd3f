//! The window of a producer's source against a set of what was handled.

use std::collections::{BTreeMap, BTreeSet};

use hapax::window::{Sequenced, Sequences};
use proptest::prelude::*;

#[derive(Debug)]
struct Naive {
    span: u64,
    seen: BTreeSet<u64>,
    failed: BTreeMap<u64, u32>,
    floor: u64,
}

impl Naive {
    fn look(&self, number: u64) -> Sequenced {
        match self.failed.get(&number) {
            Some(attempts) => Sequenced::New { attempts: *attempts },
            None if number < self.floor => Sequenced::TooOld,
            None if self.seen.contains(&number) => Sequenced::Seen,
            None => Sequenced::New { attempts: 0 },
        }
    }

    fn moved(&mut self) {
        if let Some(high) = self.seen.last() {
            self.floor = self.floor.max(high.saturating_sub(self.span - 1));
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    See(Number),
    Fail(Number),
    Wait(Number),
    Restore(u32),
}

/// Numbers that matter: near the highest, near the floor, far above.
#[derive(Clone, Debug)]
enum Number {
    Above(u64),
    Below(u64),
    AtFloor(i64),
    Fixed(u64),
}

impl Number {
    fn of(&self, naive: &Naive) -> u64 {
        let high = naive.seen.last().copied().unwrap_or(0);
        match self {
            Self::Above(by) => high.saturating_add(*by),
            Self::Below(by) => high.saturating_sub(*by),
            Self::AtFloor(by) => naive.floor.saturating_add_signed(*by),
            Self::Fixed(number) => *number,
        }
    }
}

fn number() -> impl Strategy<Value = Number> {
    let fixed = [0, 1, 63, 64, 4_095, 4_096, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX];
    prop_oneof![
        12 => (0_u64..4).prop_map(Number::Above),
        2 => (4_u64..200).prop_map(Number::Above),
        8 => (0_u64..200).prop_map(Number::Below),
        3 => (-3_i64..4).prop_map(Number::AtFloor),
        1 => proptest::sample::select(fixed.to_vec()).prop_map(Number::Fixed),
    ]
}

fn span() -> impl Strategy<Value = u32> {
    proptest::sample::select(&[0_u32, 1, 64, 65, 128, 192, 4_096, 65_536, u32::MAX][..])
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![10 => number().prop_map(Event::See), 2 => number().prop_map(Event::Fail), 1 => number().prop_map(Event::Wait), 1 => span().prop_map(Event::Restore)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn it_knows_what_a_set_knows_over_restarts(
        first in span(),
        events in proptest::collection::vec(event(), 0..250),
        probes in proptest::collection::vec(number(), 20),
    ) {
        let mut window = Sequences::new(first);
        let mut naive =
            Naive { span: window.span(), seen: BTreeSet::new(), failed: BTreeMap::new(), floor: 0 };
        for event in events {
            match event {
                Event::See(number) => {
                    let number = number.of(&naive);
                    let known = naive.look(number);
                    prop_assert_eq!(window.see(number), known, "{}", number);
                    if matches!(known, Sequenced::New { .. }) {
                        naive.failed.remove(&number);
                        if number >= naive.floor {
                            naive.seen.insert(number);
                        }
                        naive.moved();
                    }
                }
                Event::Fail(number) => {
                    let number = number.of(&naive);
                    let known = naive.look(number);
                    let Sequenced::New { attempts } = known else {
                        prop_assert!(!window.fail(number, 1));
                        continue;
                    };
                    prop_assert!(window.fail(number, attempts + 1));
                    prop_assert!(window.fail(number, attempts), "they do not fall");
                    naive.failed.insert(number, attempts + 1);
                }
                Event::Wait(number) => {
                    let number = number.of(&naive);
                    let news = matches!(naive.look(number), Sequenced::New { .. }) && !naive.failed.contains_key(&number);
                    prop_assert_eq!(window.wait(number), news);
                    if news {
                        naive.failed.insert(number, 0);
                    }
                }
                Event::Restore(span) => {
                    let bytes = window.encode();
                    prop_assert!(bytes.len() <= Sequences::longest(window.span() as u32, naive.failed.len()));
                    window = Sequences::restore(span, &bytes).unwrap();
                    prop_assert!(window.span() >= 64 && window.span() <= u64::from(Sequences::MOST_SPAN));
                    naive.span = window.span();
                    naive.moved();
                }
            }
            prop_assert_eq!(window.high(), naive.seen.last().copied());
        }
        let same = Sequences::restore(window.span() as u32, &window.encode()).unwrap();
        prop_assert_eq!(&same, &window);
        for number in probes {
            let number = number.of(&naive);
            prop_assert_eq!(window.look(number), naive.look(number), "{}", number);
        }
    }
}

#[test]
fn a_failed_one_is_not_passed_into_oblivion() {
    let mut window = Sequences::new(64);
    window.fail(5, 1);
    (6..10_000).for_each(|number| assert_eq!(window.see(number), Sequenced::New { attempts: 0 }));
    assert_eq!((window.look(5), window.look(4)), (Sequenced::New { attempts: 1 }, Sequenced::TooOld));
    let mut window = Sequences::restore(64, &window.encode()).unwrap();
    assert_eq!(window.see(5), Sequenced::New { attempts: 1 });
    assert_eq!(window.look(5), Sequenced::TooOld);
}

#[test]
fn nor_is_one_that_waits() {
    let mut window = Sequences::new(64);
    assert!(window.wait(5) && !window.wait(5));
    (6..10_000).for_each(|number| assert_eq!(window.see(number), Sequenced::New { attempts: 0 }));
    assert!(!window.wait(4), "nobody knows any more");
    let mut window = Sequences::restore(64, &window.encode()).unwrap();
    assert_eq!(window.look(5), Sequenced::New { attempts: 0 });
    assert!(window.fail(5, 1) && !window.wait(5));
    assert_eq!(window.see(5), Sequenced::New { attempts: 1 });
    assert_eq!((window.see(5), window.wait(5)), (Sequenced::TooOld, false));
}

#[test]
fn a_longer_span_does_not_make_up_what_is_forgotten() {
    let mut window = Sequences::new(64);
    (0..1_000).for_each(|number| {
        window.see(number);
    });
    let window = Sequences::restore(4_096, &window.encode()).unwrap();
    assert_eq!((window.look(935), window.look(936)), (Sequenced::TooOld, Sequenced::Seen));
}

#[test]
fn failed_ones_are_bounded() {
    let mut window = Sequences::new(64);
    for number in 0..=Sequences::MOST_FAILED as u64 {
        assert!(window.fail(number, 1));
    }
    window.see(1_000_000);
    assert_eq!(window.look(0), Sequenced::TooOld, "the lowest was forgotten");
    assert_eq!(window.look(1), Sequenced::New { attempts: 1 });
    assert!(window.encode().len() <= Sequences::longest(64, Sequences::MOST_FAILED));
}

#[test]
fn the_bytes_stay_as_they_are() {
    let mut window = Sequences::new(64);
    assert!(window.encode().is_empty());
    [0, 1, 2, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24].into_iter().for_each(|n| {
        window.see(n);
    });
    window.fail(3, 2);
    // 24 and the 24 below it; missing: 2, from the lowest 3 on; 3, from 5 on by 1; and 3 failed twice. That is no shorter than the bits.
    assert_eq!(window.encode(), [1, 2, 24, 24, 0b0010_0111, 0b1111_1110, 0xff, 1, 1, 3, 2]);
    (25..60).for_each(|number| {
        window.see(number);
    });
    assert_eq!(window.encode(), [1, 1, 59, 59, 2, 3, 1, 1, 2, 1, 3, 2]);
    assert_eq!(window.row().next, 60);
}
