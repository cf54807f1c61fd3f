//! The rules by themselves, in any order of any moves.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const RETRY: Retry = Retry::exponential(Duration::from_millis(100)).attempts(3);

#[derive(Clone, Copy, Debug)]
enum Act {
    Take(i64),
    Succeed(i64),
    Late(u32),
    Fail(i64, Class, u64),
    Lose(i64, u64),
    Release(i64),
    Due,
    Skip,
    Requeue,
    Replay,
    Wait(i64),
}

fn acts() -> impl Strategy<Value = Act> {
    let run = || 1..4_i64;
    let class = || (0..Class::ALL.len()).prop_map(|at| Class::ALL[at]);
    prop_oneof![
        6 => run().prop_map(Act::Take),
        2 => run().prop_map(Act::Succeed),
        1 => (1..4_u32).prop_map(Act::Late),
        4 => (run(), class(), any::<u64>()).prop_map(|(run, class, random)| Act::Fail(run, class, random)),
        2 => (run(), any::<u64>()).prop_map(|(run, random)| Act::Lose(run, random)),
        1 => run().prop_map(Act::Release),
        3 => Just(Act::Due),
        1 => Just(Act::Skip),
        1 => Just(Act::Requeue),
        1 => Just(Act::Replay),
        3 => (0..300_i64).prop_map(Act::Wait),
    ]
}

fn go(standing: &Standing, act: Act, now: Millis) -> Moved {
    match act {
        Act::Take(run) => standing.take(run),
        Act::Succeed(run) => standing.succeed(run),
        Act::Late(generation) => standing.succeed_late(generation),
        Act::Fail(run, class, random) => standing.fail(run, class, &RETRY, random, now),
        Act::Lose(run, random) => standing.lose(run, &RETRY, random, now),
        Act::Release(run) => standing.release(run),
        Act::Due => standing.due(now),
        Act::Skip => standing.skip(now),
        Act::Requeue => standing.requeue(),
        Act::Replay => standing.replay(5),
        Act::Wait(_) => Ok(*standing),
    }
}

fn is_operators(act: Act) -> bool {
    matches!(act, Act::Requeue | Act::Replay)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Final states are left by an operator alone, who opens the next generation; nobody else does; and there is no way back to received.
    #[test]
    fn states_move_forward_only(not_before in proptest::option::of(0..500_i64), acts in prop::collection::vec(acts(), 1..60)) {
        let mut standing = Standing::accepted(5, not_before, 0);
        let mut now = 0;
        for act in acts {
            if let Act::Wait(ms) = act {
                now += ms;
                continue;
            }
            let before = standing;
            let Ok(after) = go(&before, act, now) else { continue };
            standing = after;
            if is_operators(act) {
                prop_assert_eq!(after.generation, before.generation + 1);
                prop_assert_eq!(after.state(), State::Received);
                continue;
            }
            prop_assert_eq!(after.generation, before.generation);
            let late = matches!(act, Act::Late(_));
            prop_assert!(!before.state().is_final() || (late && before.state() == State::Dead), "{:?} leaves {}", act, before.state());
            let allowed = match (before.state(), after.state()) {
                (State::Received, State::Processing) => matches!(act, Act::Take(_)),
                (State::Received, State::Received) => matches!(act, Act::Due),
                (State::Failed, State::Processing) => matches!(act, Act::Take(_)),
                (State::Failed, State::Failed) => matches!(act, Act::Due),
                // Only what counts as no attempt goes back to where it came from.
                (State::Processing, State::Received) => {
                    matches!(act, Act::Release(_) | Act::Fail(_, Class::Unavailable, _))
                }
                (State::Processing, State::Failed | State::Dead) => {
                    matches!(act, Act::Fail(..) | Act::Lose(..) | Act::Release(_))
                }
                (State::Received | State::Failed, State::Dead) => matches!(act, Act::Skip),
                (State::Processing, State::Succeeded) => matches!(act, Act::Succeed(_)) || late,
                (_, State::Succeeded) => late,
                _ => false,
            };
            prop_assert!(allowed, "{act:?} moves {} to {}", before.state(), after.state());
        }
    }

    /// Attempts never fall within a generation except where none was made, are bounded, and count before the handler.
    #[test]
    fn attempts_are_counted_when_taken(acts in prop::collection::vec(acts(), 1..80)) {
        let mut standing = Standing::accepted(0, None, 0);
        let mut now = 0;
        // What each generation's history says, without asking the standing.
        let mut burnt = 0;
        for act in acts {
            if let Act::Wait(ms) = act {
                now += ms;
            }
            let Ok(after) = go(&standing, act, now) else { continue };
            match act {
                Act::Take(_) => burnt += 1,
                Act::Release(_) | Act::Fail(_, Class::Unavailable, _) => burnt -= 1,
                Act::Requeue | Act::Replay => burnt = 0,
                _ => {}
            }
            standing = after;
            if let Some(open) = after.open {
                prop_assert_eq!(open.attempts, burnt, "after {:?}", act);
                prop_assert!(open.attempts <= RETRY.max_attempts().get());
                let tries = open.attempts < RETRY.max_attempts().get() || open.run != NOBODY || open.lot == Lot::Dead;
                prop_assert!(tries, "its attempts are used up, and it is {}", after.state());
            }
        }
    }

    /// What a run that does not hold a message asks for changes nothing, and two runs never hold it.
    #[test]
    fn a_stale_run_moves_nothing(acts in prop::collection::vec(acts(), 1..80)) {
        let mut standing = Standing::accepted(0, None, 0);
        let mut now = 0;
        let mut holder: Option<i64> = None;
        for act in acts {
            if let Act::Wait(ms) = act {
                now += ms;
            }
            let moved = go(&standing, act, now);
            let asks = match act {
                Act::Succeed(run) | Act::Fail(run, ..) | Act::Lose(run, _) | Act::Release(run) => Some(run),
                _ => None,
            };
            if let Some(run) = asks {
                prop_assert_eq!(moved.is_ok(), holder == Some(run), "{:?}, held by {:?}", act, holder);
                prop_assert!(moved.is_ok() || moved == Err(Unmoved::Stale));
            }
            if let Act::Take(_) = act {
                prop_assert!(moved.is_err() || holder.is_none(), "{act:?} takes what {holder:?} holds");
            }
            if holder.is_some() && !matches!(act, Act::Late(_)) && asks.is_none() && !matches!(act, Act::Wait(_)) {
                prop_assert!(moved.is_err(), "{act:?} moves what {holder:?} holds");
            }
            let Ok(after) = moved else { continue };
            holder = match act {
                Act::Take(run) => Some(run),
                Act::Wait(_) => holder,
                _ => None,
            };
            prop_assert_eq!(after.open.map_or(NOBODY, |open| open.run), holder.unwrap_or(NOBODY));
            standing = after;
        }
    }

    /// The row says where it belongs: ready by priority, waiting by due time, dead since when.
    #[test]
    fn ranks_fit_their_lots(acts in prop::collection::vec(acts(), 1..60)) {
        let mut standing = Standing::accepted(7, None, 0);
        let mut now = 0;
        for act in acts {
            if let Act::Wait(ms) = act {
                now += ms;
            }
            let Ok(after) = go(&standing, act, now) else { continue };
            if let Some(open) = after.open {
                match open.lot {
                    Lot::Ready => prop_assert_eq!(open.rank, i64::from(open.priority)),
                    Lot::Waiting => {
                        prop_assert_eq!(open.run, NOBODY);
                        let changed = standing.open.is_none_or(|before| before.lot != Lot::Waiting);
                        prop_assert!(!changed || (now..=now + 30_000).contains(&open.rank));
                    }
                    Lot::Dead => {
                        prop_assert_eq!(open.run, NOBODY);
                        prop_assert!(open.rank <= now);
                    }
                }
                let by_itself = open.alone || open.lot == Lot::Dead;
                prop_assert!(!matches!(act, Act::Lose(..)) || by_itself, "lost, and not alone");
            }
            prop_assert_eq!(after.record_state(now).map(record::State::name), match after.state() {
                State::Received => None,
                other => Some(other.name()),
            });
            standing = after;
        }
    }

    /// In key order nothing is chosen with an earlier one of its lane outside, and what is chosen of a lane is in order.
    #[test]
    fn lanes_are_kept(
        rows in prop::collection::vec((0..4_i64, 0..3_i64, 0..20_u8, 0..5_u8), 0..40),
        most in 0..12_usize,
    ) {
        // Number, lane, rank; some are alone; some are not among the candidates.
        let all: Vec<(Candidate, i64, bool)> = rows
            .iter()
            .enumerate()
            .map(|(at, (lane, rank, alone, out))| {
                (Candidate { id: at as i64, lane: *lane, alone: *alone == 0 }, *rank, *out == 0)
            })
            .collect();
        let mut sorted: Vec<_> = all.iter().filter(|(.., out)| !out).collect();
        sorted.sort_by_key(|(row, rank, _)| (*rank, row.id));
        let candidates: Vec<Candidate> = sorted.iter().map(|(row, ..)| *row).collect();
        let barrier = |lane: i64| all.iter().filter(|(row, _, out)| *out && row.lane == lane).map(|(row, ..)| row.id).min();
        let chosen = choose(true, most, &candidates, barrier);
        prop_assert!(chosen.len() <= most.max(1));
        prop_assert!(most > 0 || chosen.is_empty());
        let mut last: HashMap<i64, i64> = HashMap::new();
        for row in &chosen {
            let before = all.iter().filter(|(other, ..)| other.lane == row.lane && other.id < row.id).count();
            let taken = chosen.iter().filter(|other| other.lane == row.lane && other.id < row.id).count();
            prop_assert_eq!(before, taken, "{:?} goes before an earlier one of its lane", row);
            prop_assert!(last.insert(row.lane, row.id).is_none_or(|last| last < row.id), "{:?} out of order", chosen);
            prop_assert!(!row.alone || chosen.len() == 1, "{:?} is not alone", row);
        }
        // Nothing is left without a reason.
        let first = candidates.iter().any(|row| barrier(row.lane).is_none_or(|barrier| barrier > row.id));
        prop_assert_eq!(!chosen.is_empty(), first && most > 0);
        if !chosen.iter().any(|row| row.alone) && chosen.len() < most {
            for row in &candidates {
                let blocked = all.iter().any(|(other, _, out)| {
                    other.lane == row.lane && other.id <= row.id && (*out || other.alone)
                });
                prop_assert!(blocked || chosen.contains(row), "{row:?} is left");
            }
        }
    }

    #[test]
    fn without_order_ranks_are_kept(alone in prop::collection::vec(0..6_u8, 0..30), most in 0..12_usize) {
        let rows: Vec<Candidate> = alone
            .iter()
            .enumerate()
            .map(|(at, alone)| Candidate { id: at as i64, lane: 0, alone: *alone == 0 })
            .collect();
        let chosen = choose(false, most, &rows, |_| Some(0));
        let want: Vec<Candidate> = match rows.first() {
            _ if most == 0 => Vec::new(),
            Some(first) if first.alone => vec![*first],
            _ => rows.iter().filter(|row| !row.alone).take(most).copied().collect(),
        };
        prop_assert_eq!(chosen, want);
    }
}

#[test]
fn a_lanes_turn_goes_to_its_earliest() {
    let row = |id, lane| Candidate { id, lane, alone: false };
    // 9 has the better rank, and lies behind 4.
    let chosen = choose(true, 10, &[row(9, 1), row(3, 2), row(4, 1)], |_| None);
    assert_eq!(chosen.iter().map(|row| row.id).collect::<Vec<_>>(), [4, 3, 9]);
    let chosen = choose(true, 10, &[row(9, 1), row(3, 2), row(4, 1)], |lane| (lane == 1).then_some(5));
    assert_eq!(chosen.iter().map(|row| row.id).collect::<Vec<_>>(), [4, 3]);
}

#[test]
fn codes_are_what_tables_keep() {
    assert_eq!([Lot::Ready, Lot::Waiting, Lot::Dead].map(Lot::code), [0, 1, 2]);
    assert_eq!(
        (0..4).map(Lot::from_code).collect::<Vec<_>>(),
        [Some(Lot::Ready), Some(Lot::Waiting), Some(Lot::Dead), None]
    );
    assert!(Class::ALL.iter().map(|class| class.code()).eq(0..7));
    assert!(Class::ALL.iter().all(|class| Class::from_code(class.code()) == Some(*class)));
    assert_eq!(Class::from_code(7), None);
}
