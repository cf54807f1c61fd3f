//! The engine, step by step. What happens in a world full of faults is the simulator's to find out.

use std::collections::{HashSet, VecDeque};

use super::*;
use crate::identity::Fingerprint;

fn ms(n: u64) -> Time {
    Time::from_millis(n)
}

/// An engine with one partition for each epoch, and what it said.
struct Bench {
    engine: Engine,
    now: Time,
    said: Vec<Command>,
    next: u32,
}

impl Bench {
    fn new(config: Config, partitions: u64) -> Self {
        let mut bench = Self { engine: Engine::new(config), now: Time::ZERO, said: Vec::new(), next: 0 };
        let assigned = |n| Assigned {
            topic: "orders".into(),
            partition: i32::try_from(n).unwrap(),
            epoch: Epoch::new(n),
            committed: None,
        };
        bench.tell(Event::Assigned((1..=partitions).map(assigned).collect()));
        bench
    }

    fn tell(&mut self, event: Event) {
        self.said.clear();
        self.engine.handle(self.now, event, &mut self.said);
    }

    fn at(&mut self, now: Time) {
        self.now = now;
        self.tell(Event::Tick);
    }

    /// Delivers messages as (offset, key of the lane, identity).
    fn deliver(&mut self, epoch: u64, messages: &[(i64, u64, u8)]) -> Vec<Ticket> {
        let known =
            |id: u8| Subject::Known { key: Key::from_bytes([id; 16]), fingerprint: Fingerprint::from_bytes([0; 16]) };
        self.arrive(epoch, messages.iter().map(|(offset, lane, id)| (*offset, *lane, known(*id))))
    }

    /// The same with more identities than fit into a byte.
    fn deliver_numbered(&mut self, epoch: u64, messages: &[(i64, u64, u64)]) -> Vec<Ticket> {
        let known = |id: u64| Subject::Known {
            key: Key::from_bytes(u128::from(id).to_be_bytes()),
            fingerprint: Fingerprint::from_bytes([0; 16]),
        };
        self.arrive(epoch, messages.iter().map(|(offset, lane, id)| (*offset, *lane, known(*id))))
    }

    /// Delivers messages that are remembered by whatever handles them, as (offset, key of the lane).
    fn deliver_own(&mut self, epoch: u64, messages: &[(i64, u64)]) -> Vec<Ticket> {
        self.arrive(epoch, messages.iter().map(|(offset, lane)| (*offset, *lane, Subject::Own)))
    }

    fn arrive(&mut self, epoch: u64, messages: impl Iterator<Item = (i64, u64, Subject)>) -> Vec<Ticket> {
        let arrivals: Vec<Arrival> = messages
            .map(|(offset, lane, subject)| {
                let ticket = Ticket(self.next);
                self.next += 1;
                Arrival { ticket, epoch: Epoch::new(epoch), offset, lane: Some(lane), subject }
            })
            .collect();
        let tickets = arrivals.iter().map(|arrival| arrival.ticket).collect();
        self.tell(Event::Delivered(arrivals));
        tickets
    }

    fn claims(&self) -> Vec<Ticket> {
        self.said
            .iter()
            .flat_map(|said| if let Command::Claim(tickets) = said { tickets.clone() } else { vec![] })
            .collect()
    }

    fn starts(&self) -> Vec<(Ticket, bool)> {
        let starts = |said: &Command| if let Command::Run(starts) = said { starts.clone() } else { vec![] };
        self.said.iter().flat_map(starts).map(|start| (start.ticket, start.chained)).collect()
    }

    fn settles(&self) -> Vec<(Ticket, Verdict)> {
        self.said.iter().flat_map(|said| if let Command::Settle(told) = said { told.clone() } else { vec![] }).collect()
    }

    fn finished(&self) -> Vec<(Ticket, Ending)> {
        self.said.iter().flat_map(|said| if let Command::Finished(own) = said { own.clone() } else { vec![] }).collect()
    }

    fn commits(&self) -> Vec<i64> {
        let offsets = |own: &[Position]| own.iter().map(|position| position.offset).collect::<Vec<_>>();
        self.said.iter().flat_map(|said| if let Command::Commit(own) = said { offsets(own) } else { vec![] }).collect()
    }

    fn grant(&mut self, tickets: &[Ticket]) {
        self.tell(Event::Claimed(tickets.iter().map(|ticket| (*ticket, Answer::Acquired { attempt: 1 })).collect()));
    }

    fn ran(&mut self, how: Ran, tickets: &[Ticket]) {
        self.tell(Event::Ran(tickets.iter().map(|ticket| (*ticket, how)).collect()));
    }

    fn record(&mut self) {
        let told = self.settles();
        self.tell(Event::Settled(told.into_iter().map(|(ticket, _)| (ticket, Settled::Recorded)).collect()));
    }
}

#[test]
fn a_message_from_delivery_to_commit() {
    let mut bench = Bench::new(Config::default(), 1);
    let tickets = bench.deliver(1, &[(3, 0, 1), (9, 0, 2)]);
    assert_eq!(bench.claims(), tickets, "claimed together");
    bench.grant(&tickets);
    assert_eq!(bench.starts(), [(tickets[0], false), (tickets[1], true)], "one chain, in order");
    bench.ran(Ran::Succeeded, &tickets[..1]);
    assert_eq!(bench.settles(), [(tickets[0], Verdict::Succeeded)]);
    assert!(bench.finished().is_empty(), "not before the store has heard");
    bench.record();
    assert_eq!(bench.finished(), [(tickets[0], Ending::Handled)]);
    assert!(bench.commits().is_empty(), "not before its time");
    bench.at(ms(1_000));
    assert_eq!(bench.commits(), [4]);
    bench.ran(Ran::Succeeded, &tickets[1..]);
    bench.record();
    bench.at(ms(2_500));
    assert!(bench.commits().is_empty(), "the broker owes an answer");
    let position = Position { topic: "orders".into(), partition: 1, epoch: Epoch::new(1), offset: 4 };
    bench.tell(Event::Committed { positions: vec![position], accepted: false });
    assert_eq!(bench.commits(), [10], "a refused commit is made up for by the next");
    assert_eq!(bench.engine.snapshot().unfinished, 0);
}

#[test]
fn a_lease_that_ran_out_before_the_turn_is_claimed_anew() {
    let mut bench = Bench::new(Config::default(), 1);
    let t = bench.deliver(1, &[(0, 0, 1), (1, 0, 2), (2, 0, 3)]);
    bench.grant(&t);
    bench.tell(Event::Ran(vec![(t[0], Ran::Succeeded), (t[1], Ran::Lost), (t[2], Ran::Lost)]));
    assert!(bench.starts().is_empty(), "they are not begun with what they have");
    let told = [(t[0], Verdict::Succeeded), (t[1], Verdict::Released), (t[2], Verdict::Released)];
    assert_eq!(bench.settles(), told);
    // One of them was taken over meanwhile.
    let answers = [(t[0], Settled::Recorded), (t[1], Settled::Refused), (t[2], Settled::Recorded)];
    bench.tell(Event::Settled(answers.to_vec()));
    assert_eq!(bench.claims(), t[1..]);
    bench.tell(Event::Claimed(vec![(t[1], Answer::Redelivered), (t[2], Answer::Acquired { attempt: 1 })]));
    assert_eq!(bench.finished().last(), Some(&(t[1], Ending::Redelivered)));
    assert_eq!(bench.starts(), [(t[2], false)]);
}

#[test]
fn what_was_handled_and_is_anothers_by_now_is_neither_finished_nor_committed() {
    let mut bench = Bench::new(Config::default(), 1);
    let t = bench.deliver(1, &[(0, 0, 1), (1, 0, 2)]);
    bench.grant(&t);
    bench.ran(Ran::Succeeded, &t);
    assert_eq!(bench.settles(), [(t[0], Verdict::Succeeded), (t[1], Verdict::Succeeded)]);
    bench.tell(Event::Settled(t.iter().map(|ticket| (*ticket, Settled::Fenced)).collect()));
    assert!(bench.finished().is_empty(), "{:?}", bench.said);
    assert_eq!(bench.claims(), t, "asked again: the partition may be ours anew");
    let remaining = ms(1_000);
    bench.tell(Event::Claimed(t.iter().map(|ticket| (*ticket, Answer::InFlight { remaining })).collect()));
    bench.at(ms(1_500));
    assert!(bench.commits().is_empty() && bench.starts().is_empty(), "{:?}", bench.said);
    bench.tell(Event::Revoke { epochs: vec![Epoch::new(1)], lost: true, by: ms(2_000) });
    assert_eq!(bench.engine.snapshot(), Snapshot::default(), "left to whoever has it now");
}

#[test]
fn what_was_handled_and_comes_back_from_another_is_begun_anew() {
    for order in [Order::Partition, Order::Key, Order::Unordered] {
        let mut bench = Bench::new(Config { order, concurrency: 4, ..Config::default() }, 1);
        let t = bench.deliver(1, &[(0, 7, 1)]);
        bench.grant(&t);
        bench.ran(Ran::Succeeded, &t);
        bench.tell(Event::Settled(vec![(t[0], Settled::Fenced)]));
        assert_eq!(bench.claims(), t, "{order:?}");
        // Its lane is gone, and what comes next may have its number.
        let next = bench.deliver(1, &[(1, 8, 2)]);
        bench.grant(&t);
        assert_eq!(bench.starts(), [(t[0], false)], "{order:?}");
        assert_eq!(bench.claims(), next, "{order:?}");
        bench.grant(&next);
        assert_eq!(bench.starts(), [(next[0], false)], "{order:?}");
        bench.ran(Ran::Succeeded, &[t[0], next[0]]);
        bench.record();
        assert_eq!(bench.finished(), [(t[0], Ending::Handled), (next[0], Ending::Handled)], "{order:?}");
    }
}

#[test]
fn what_is_given_back_is_named_once_although_its_number_stands_in_its_lane_twice() {
    let mut bench = Bench::new(Config::default(), 1);
    let t = bench.deliver(1, &[(0, 0, 1), (1, 0, 2), (2, 0, 3)]);
    let acquired = Answer::Acquired { attempt: 1 };
    bench.tell(Event::Claimed(vec![(t[0], acquired), (t[1], Answer::SameId), (t[2], acquired)]));
    assert_eq!(
        bench.finished(),
        [(t[1], Ending::SameId)],
        "out of turn: its place in the lane stays until its turn comes"
    );
    // Its number is given to a message further back, which is claimed while the first one runs.
    bench.next = t[1].0;
    assert_eq!(bench.deliver(1, &[(3, 0, 4)]), [t[1]]);
    bench.grant(&t[1..2]);
    bench.tell(Event::Ran(vec![(t[0], Ran::Failed { retry_in: ms(10), attempt: None }), (t[2], Ran::NotBegun)]));
    let mut told = bench.settles();
    told.sort_by_key(|(ticket, _)| *ticket);
    let failed = Verdict::Failed { retry_in: ms(10) };
    assert_eq!(told, [(t[0], failed), (t[1], Verdict::Released), (t[2], Verdict::Released)]);
}

#[test]
fn the_lane_of_a_twin_that_stepped_aside_is_forgotten() {
    let config = Config { order: Order::Key, step_aside: true, ..Config::default() };
    let mut bench = Bench::new(config, 1);
    let t = bench.deliver(1, &[(0, 7, 1), (1, 8, 1)]);
    assert_eq!(bench.claims(), t[..1], "the other one says the same, and waits for it");
    bench.grant(&t[..1]);
    bench.ran(Ran::Succeeded, &t[..1]);
    bench.record();
    assert_eq!(bench.finished(), [(t[1], Ending::SameId), (t[0], Ending::Handled)]);
    let lanes = |bench: &Bench| bench.engine.parts.iter().flatten().map(|part| part.lanes.len()).sum::<usize>();
    assert_eq!(lanes(&bench), 0);
}

#[test]
fn a_failed_message_holds_its_key_and_no_other() {
    let config = Config { order: Order::Key, concurrency: 8, ..Config::default() };
    let mut bench = Bench::new(config, 1);
    let t = bench.deliver(1, &[(0, 7, 1), (1, 7, 2), (2, 8, 3)]);
    assert_eq!(bench.claims().len(), 3);
    bench.grant(&t);
    assert_eq!(bench.starts(), [(t[0], false), (t[1], true), (t[2], false)]);
    bench.tell(Event::Ran(vec![(t[0], Ran::Failed { retry_in: ms(100), attempt: None }), (t[1], Ran::NotBegun)]));
    let told = [(t[0], Verdict::Failed { retry_in: ms(100) }), (t[1], Verdict::Released)];
    assert_eq!(bench.settles(), told, "what is behind it is given back");
    bench.record();
    assert!(bench.claims().is_empty(), "t1 is behind t0, which waits");
    bench.ran(Ran::Succeeded, &t[2..]);
    bench.record();
    assert_eq!(bench.finished(), [(t[2], Ending::Handled)]);
    assert_eq!(bench.engine.wake_at(), Some(ms(100)));
    bench.at(ms(100));
    assert_eq!(bench.claims(), t[..2]);
    bench.tell(Event::Claimed(vec![(t[0], Answer::Acquired { attempt: 2 }), (t[1], Answer::Acquired { attempt: 1 })]));
    assert_eq!(bench.starts(), [(t[0], false), (t[1], true)]);
    bench.ran(Ran::Succeeded, &t[..2]);
    bench.record();
    assert_eq!(bench.finished().len(), 2);
}

#[test]
fn of_two_with_one_identity_the_second_waits_for_the_first() {
    let mut bench = Bench::new(Config { order: Order::Unordered, ..Config::default() }, 1);
    let t = bench.deliver(1, &[(0, 1, 5), (1, 2, 5), (2, 3, 6)]);
    assert_eq!(bench.claims(), [t[0], t[2]]);
    bench.grant(&[t[0], t[2]]);
    bench.ran(Ran::Succeeded, &[t[0], t[2]]);
    bench.record();
    assert!(bench.finished().contains(&(t[1], Ending::SameId)), "{:?}", bench.finished());
}

#[test]
fn slow_lanes_leave_nothing_claimed_behind_them() {
    let mut bench = Bench::new(Config { concurrency: 100, ..Config::default() }, 2);
    let first = bench.deliver(1, &[(0, 0, 1)]);
    bench.grant(&first);
    bench.now = ms(10_000);
    bench.ran(Ran::Succeeded, &first);
    bench.record();
    let messages: Vec<(i64, u64, u8)> = (1..50).map(|n| (i64::from(n), 0, n)).collect();
    let t = bench.deliver(1, &messages);
    assert_eq!(bench.claims(), t[..1], "ten seconds each: one that a handler is free for, and none ahead");
    bench.grant(&t[..1]);
    assert!(bench.claims().is_empty());
}

#[test]
fn revoked_partitions_are_drained_and_lost_ones_commit_nothing() {
    for lost in [false, true] {
        let mut bench = Bench::new(Config { concurrency: 1, ..Config::default() }, 1);
        let t = bench.deliver(1, &[(0, 0, 1), (1, 0, 2), (2, 0, 3)]);
        bench.grant(&t);
        bench.ran(Ran::Succeeded, &t[..1]);
        bench.record();
        bench.tell(Event::Revoke { epochs: vec![Epoch::new(1)], lost, by: ms(500) });
        let answered = |said: &Command| match said {
            Command::Revoked { commit, .. } => Some(commit.iter().map(|p| p.offset).collect::<Vec<_>>()),
            _ => None,
        };
        assert_eq!(bench.said.iter().find_map(answered), lost.then(Vec::new), "waits for what runs, unless lost");
        bench.tell(Event::Ran(vec![(t[1], Ran::Succeeded), (t[2], Ran::NotBegun)]));
        assert_eq!(bench.settles(), [(t[1], Verdict::Succeeded), (t[2], Verdict::Released)]);
        bench.record();
        assert_eq!(bench.said.iter().find_map(answered), (!lost).then(|| vec![2]));
        assert!(bench.said.iter().any(|said| matches!(said, Command::Dropped(own) if own == &t[2..])));
        assert_eq!(bench.engine.snapshot(), Snapshot::default());
    }
}

#[test]
fn handlers_that_do_not_end_in_time_are_dropped() {
    let mut bench = Bench::new(Config::default(), 1);
    let t = bench.deliver(1, &[(0, 0, 1)]);
    bench.grant(&t);
    bench.tell(Event::Close { by: ms(500) });
    assert_eq!(bench.engine.wake_at(), Some(ms(500)));
    bench.at(ms(500));
    assert!(bench.said.iter().any(|said| matches!(said, Command::Abort(own) if *own == t)), "{:?}", bench.said);
    assert!(bench.said.iter().any(|said| matches!(said, Command::Closed { left: 1, .. })), "{:?}", bench.said);
    bench.ran(Ran::Aborted, &t);
    assert_eq!(bench.settles(), [(t[0], Verdict::Failed { retry_in: Time::ZERO })]);
}

#[test]
fn what_was_begun_again_and_again_runs_alone() {
    let mut bench = Bench::new(Config { order: Order::Unordered, max_attempts: 4, ..Config::default() }, 1);
    let t = bench.deliver(1, &[(0, 0, 1), (1, 0, 2)]);
    bench.tell(Event::Claimed(vec![(t[0], Answer::Acquired { attempt: 3 }), (t[1], Answer::Acquired { attempt: 1 })]));
    assert!(bench.starts().is_empty(), "{:?}", bench.said);
    assert_eq!(bench.settles(), [(t[0], Verdict::Released), (t[1], Verdict::Released)]);
    bench.record();
    assert_eq!(bench.claims(), t[..1], "alone");
    bench.tell(Event::Claimed(vec![(t[0], Answer::Acquired { attempt: 3 })]));
    assert_eq!(bench.starts(), [(t[0], false)]);
    bench.ran(Ran::Succeeded, &t[..1]);
    bench.record();
    assert_eq!(bench.claims(), t[1..], "the others after it");
}

#[test]
fn a_store_that_is_away_is_asked_again_with_one_message() {
    let mut bench = Bench::new(Config { order: Order::Unordered, ..Config::default() }, 1);
    let t = bench.deliver(1, &[(0, 0, 1), (1, 0, 2)]);
    bench.tell(Event::ClaimFailed { tickets: t.clone(), random: 0 });
    assert!(bench.claims().is_empty() && bench.engine.snapshot().store_down);
    bench.at(ms(25));
    assert_eq!(bench.claims(), t[..1]);
    bench.at(partition::PATIENCE);
    assert!(bench.said.iter().any(|said| matches!(said, Command::Pause(_))), "{:?}", bench.said);
    bench.grant(&t[..1]);
    assert_eq!(bench.claims(), t[1..]);
    assert!(bench.said.iter().any(|said| matches!(said, Command::Resume(_))), "{:?}", bench.said);
}

#[test]
fn what_is_down_burns_no_attempts() {
    let mut bench = Bench::new(Config { order: Order::Unordered, ..Config::default() }, 1);
    let t = bench.deliver(1, &[(0, 0, 1)]);
    bench.grant(&t);
    bench.ran(Ran::Unavailable { random: 0 }, &t);
    assert_eq!(bench.settles(), [(t[0], Verdict::Released)]);
    bench.record();
    let late = bench.deliver(1, &[(1, 0, 2)]);
    assert!(bench.claims().is_empty());
    bench.at(ms(25));
    assert_eq!(bench.claims().len(), 1, "one to try it with");
    let tried = bench.claims();
    bench.grant(&tried);
    bench.ran(Ran::Succeeded, &tried);
    assert_eq!(bench.claims().len(), 1, "it is back");
    assert_eq!(late.len(), 1);
}

#[test]
fn a_dead_letter_is_acknowledged_before_the_settle() {
    let config = Config { on_dead: OnDead::Letter, max_attempts: 2, ..Config::default() };
    let mut bench = Bench::new(config, 1);
    let t = bench.deliver(1, &[(0, 0, 1)]);
    bench.grant(&t);
    bench.ran(Ran::Fatal, &t);
    assert!(bench.settles().is_empty());
    assert!(bench.said.iter().any(|said| matches!(said, Command::DeadLetter(own) if own == &[(t[0], Cause::Fatal)])));
    bench.tell(Event::DeadLetterFailed { tickets: t.clone(), random: 0 });
    assert!(bench.settles().is_empty());
    bench.at(ms(25));
    assert!(bench.said.iter().any(|said| matches!(said, Command::DeadLetter(_))), "again");
    bench.tell(Event::DeadLettered(t.clone()));
    assert_eq!(bench.settles(), [(t[0], Verdict::Dead)]);
    bench.record();
    assert_eq!(bench.finished(), [(t[0], Ending::Dead)]);
}

#[test]
fn a_full_partition_is_paused_when_it_stays_full() {
    let mut bench = Bench::new(Config { partition_messages: 4, ..Config::default() }, 1);
    let t = bench.deliver(1, &[(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 0, 4)]);
    bench.grant(&t);
    assert_eq!(bench.engine.wake_at(), Some(partition::PATIENCE));
    bench.at(partition::PATIENCE);
    assert!(bench.said.iter().any(|said| matches!(said, Command::Pause(_))));
    bench.ran(Ran::Succeeded, &t[..2]);
    bench.record();
    assert!(bench.said.iter().any(|said| matches!(said, Command::Resume(_))));
}

#[test]
fn a_full_partition_that_moves_on_is_paused_only_if_it_takes_the_room_of_the_others() {
    let is_paused = |messages: usize, finished: usize| {
        let mut bench = Bench::new(Config { messages, partition_messages: 32, ..Config::default() }, 1);
        let all: Vec<(i64, u64, u8)> = (0..40).map(|n| (i64::from(n), 0, n + 1)).collect();
        let t = bench.deliver(1, &all);
        bench.grant(&t);
        bench.ran(Ran::Succeeded, &t[..finished]);
        bench.record();
        bench.at(partition::PATIENCE);
        bench.said.iter().any(|said| matches!(said, Command::Pause(_)))
    };
    assert!(is_paused(1_000, 0), "it stands still");
    assert!(!is_paused(1_000, 4), "there is room for the others");
    assert!(is_paused(44, 4), "there is not");
}

#[test]
fn a_batch_handler_gets_what_is_there() {
    let config = Config { order: Order::Key, batch: Some(3), concurrency: 1, ..Config::default() };
    let mut bench = Bench::new(config, 1);
    let t = bench.deliver(1, &[(0, 1, 1), (1, 1, 2), (2, 2, 3), (3, 3, 4)]);
    bench.grant(&t[..bench.claims().len()]);
    let starts = bench.starts();
    assert_eq!(starts.len(), 3);
    assert_eq!(starts.iter().filter(|(_, chained)| !chained).count(), 1, "one call: {starts:?}");
    bench.tell(Event::Ran(vec![
        (t[0], Ran::Succeeded),
        (t[1], Ran::Failed { retry_in: ms(5), attempt: None }),
        (t[2], Ran::Succeeded),
    ]));
    assert_eq!(bench.starts().len() + bench.claims().len(), 1, "the next call: {:?}", bench.said);
}

/// What a handler in a transaction says, of a batch of one partition.
mod own {
    use super::*;

    fn bench(config: Config) -> Bench {
        Bench::new(Config { batch: Some(512), concurrency: 1, ..config }, 1)
    }

    fn letters(bench: &Bench) -> Vec<(Ticket, Cause)> {
        let letters = |said: &Command| if let Command::DeadLetter(own) = said { own.clone() } else { vec![] };
        bench.said.iter().flat_map(letters).collect()
    }

    fn attempts(bench: &Bench) -> Vec<u32> {
        let starts = |said: &Command| if let Command::Run(starts) = said { starts.clone() } else { vec![] };
        bench.said.iter().flat_map(starts).map(|start| start.attempt).collect()
    }

    #[test]
    fn nothing_is_claimed_and_nothing_settled() {
        let mut bench = bench(Config::default());
        let t = bench.deliver_own(1, &[(0, 0), (1, 0), (2, 0), (3, 0)]);
        assert!(bench.claims().is_empty());
        assert_eq!(bench.starts().iter().map(|(ticket, _)| *ticket).collect::<Vec<_>>(), t);
        bench.tell(Event::Ran(vec![
            (t[0], Ran::Answered(Answer::Redelivered)),
            (t[1], Ran::Succeeded),
            (t[2], Ran::Answered(Answer::SameId)),
            (t[3], Ran::Succeeded),
        ]));
        let endings = [Ending::Redelivered, Ending::Handled, Ending::SameId, Ending::Handled];
        assert_eq!(bench.finished(), t.into_iter().zip(endings).collect::<Vec<_>>());
        assert!(bench.settles().is_empty());
        bench.at(ms(1_000));
        assert_eq!(bench.commits(), [4]);
    }

    #[test]
    fn what_is_elsewhere_or_not_due_waits_and_burns_no_attempt() {
        let mut bench = bench(Config { order: Order::Key, max_attempts: 2, ..Config::default() });
        let t = bench.deliver_own(1, &[(0, 1), (1, 2), (2, 1)]);
        bench.tell(Event::Ran(vec![
            (t[0], Ran::Answered(Answer::InFlight { remaining: Time::ZERO })),
            (t[2], Ran::NotBegun),
            (t[1], Ran::Answered(Answer::NotDue { remaining: ms(700) })),
        ]));
        assert!(bench.starts().is_empty() && bench.finished().is_empty(), "{:?}", bench.said);
        assert_eq!(bench.engine.snapshot().parked, 2);
        for look in 0..20 {
            let at = bench.engine.wake_at().unwrap();
            bench.at(at);
            if at >= ms(700) {
                break;
            }
            assert_eq!((bench.starts()[0].0, attempts(&bench)[0]), (t[0], 1), "look {look}");
            bench.tell(Event::Ran(vec![
                (t[0], Ran::Answered(Answer::InFlight { remaining: Time::ZERO })),
                (t[2], Ran::NotBegun),
            ]));
        }
        assert_eq!(bench.now, ms(700));
        assert_eq!((bench.starts(), attempts(&bench)), (vec![(t[1], false)], vec![1]));
    }

    #[test]
    fn the_number_of_an_attempt_is_the_durable_one() {
        let mut bench = bench(Config { max_attempts: 5, ..Config::default() });
        let t = bench.deliver_own(1, &[(0, 0)]);
        assert_eq!(attempts(&bench), [1], "nothing else is known here");
        bench.ran(Ran::Failed { retry_in: ms(10), attempt: Some(4) }, &t);
        assert!(bench.settles().is_empty() && letters(&bench).is_empty());
        bench.at(ms(10));
        assert_eq!(attempts(&bench), [5], "three of them were elsewhere");
        bench.ran(Ran::Failed { retry_in: ms(10), attempt: Some(5) }, &t);
        assert_eq!(bench.settles(), [(t[0], Verdict::Dead)]);
        bench.record();
        assert_eq!(bench.finished(), [(t[0], Ending::Dead)]);
    }

    #[test]
    fn given_up_is_settled_after_its_letter_whatever_the_cause() {
        let causes = [
            (Ran::Fatal, Cause::Fatal),
            (Ran::Failed { retry_in: ms(1), attempt: Some(8) }, Cause::Attempts),
            (Ran::Answered(Answer::Dead), Cause::DeadBefore),
            (Ran::Answered(Answer::Conflict), Cause::Conflict),
            (Ran::Answered(Answer::Refused), Cause::Identity),
        ];
        for (how, cause) in causes {
            let mut bench = bench(Config { on_dead: OnDead::Letter, ..Config::default() });
            let t = bench.deliver_own(1, &[(0, 0), (1, 0)]);
            bench.tell(Event::Ran(vec![(t[0], how), (t[1], Ran::NotBegun)]));
            assert_eq!((letters(&bench), bench.settles()), (vec![(t[0], cause)], vec![]));
            assert!(bench.starts().is_empty(), "what is behind it waits");
            bench.tell(Event::DeadLettered(t[..1].to_vec()));
            assert_eq!((bench.settles(), bench.starts()), (vec![(t[0], Verdict::Dead)], vec![]), "{cause:?}");
            bench.tell(Event::SettleFailed { tickets: t[..1].to_vec(), random: 0 });
            bench.at(ms(30));
            assert_eq!(bench.settles(), [(t[0], Verdict::Dead)], "until it is heard");
            bench.record();
            assert_eq!((bench.finished(), bench.starts()), (vec![(t[0], Ending::Dead)], vec![(t[1], false)]));
        }
    }

    #[test]
    fn without_a_letter_the_record_has_to_keep_it_or_the_consumer_ends() {
        for (how, stops) in [
            (Ran::Fatal, None),
            (Ran::Answered(Answer::Dead), None),
            (Ran::Answered(Answer::Conflict), Some(Cause::Conflict)),
            (Ran::Answered(Answer::Refused), Some(Cause::Identity)),
        ] {
            let mut bench = bench(Config::default());
            let t = bench.deliver_own(1, &[(0, 0)]);
            bench.ran(how, &t);
            let stop = |said: &Command| if let Command::Stop { cause, .. } = said { Some(*cause) } else { None };
            assert_eq!(bench.said.iter().find_map(stop), stops, "{how:?}");
            let told = if stops.is_none() { vec![(t[0], Verdict::Dead)] } else { vec![] };
            assert_eq!(bench.settles(), told);
        }
    }

    #[test]
    fn what_was_fenced_off_is_tried_again_and_dropped_where_it_is_not_ours() {
        let mut bench = bench(Config::default());
        let t = bench.deliver_own(1, &[(0, 0), (1, 0)]);
        bench.tell(Event::Ran(vec![(t[0], Ran::Fatal), (t[1], Ran::NotBegun)]));
        bench.tell(Event::Settled(vec![(t[0], Settled::Refused)]));
        assert_eq!(bench.starts().len(), 2, "its turn comes again: {:?}", bench.said);
        bench.tell(Event::Revoke { epochs: vec![Epoch::new(1)], lost: true, by: ms(500) });
        bench.tell(Event::Ran(vec![(t[0], Ran::Fatal), (t[1], Ran::Answered(Answer::Redelivered))]));
        assert!(bench.settles().is_empty() && bench.finished().is_empty(), "{:?}", bench.said);
        assert!(bench.said.iter().any(|said| matches!(said, Command::Dropped(own) if own.len() == 2)));
        assert_eq!(bench.engine.snapshot(), Snapshot::default());
    }

    #[test]
    fn a_database_that_is_away_is_tried_with_one_and_burns_nothing() {
        let mut bench = bench(Config { order: Order::Unordered, max_attempts: 1, ..Config::default() });
        let t = bench.deliver_own(1, &[(0, 0), (1, 0), (2, 0)]);
        bench.ran(Ran::Unavailable { random: 0 }, &t);
        assert!(bench.starts().is_empty() && bench.engine.snapshot().downstream_down);
        bench.at(ms(25));
        assert_eq!(bench.starts().len(), 1, "{:?}", bench.said);
        let tried = [bench.starts()[0].0];
        bench.ran(Ran::Answered(Answer::Redelivered), &tried);
        assert!(bench.engine.snapshot().downstream_down, "nobody was asked");
        assert_eq!(bench.starts().len(), 1);
        let tried = [bench.starts()[0].0];
        bench.ran(Ran::Succeeded, &tried);
        assert!(!bench.engine.snapshot().downstream_down);
    }
}

/// Handlers of one partition end at once, of another one never: what of that is claimed meanwhile.
#[test]
fn behind_a_slow_handler_little_is_claimed() {
    let mut bench = Bench::new(Config { concurrency: 2, ..Config::default() }, 2);
    let messages = |first: u64| (0..2_000).map(|n| (n, 0, first + n as u64)).collect::<Vec<_>>();
    let (mut held, mut finished) = (0, 0);
    let mut due = VecDeque::new();
    let slow: HashSet<Ticket> = bench.deliver_numbered(1, &messages(0)).into_iter().collect();
    for step in 0..10_000 {
        let claims = bench.claims();
        if !claims.is_empty() {
            held += claims.iter().filter(|ticket| slow.contains(ticket)).count();
            let acquired = |ticket| (ticket, Answer::Acquired { attempt: 1 });
            due.push_back(Event::Claimed(claims.into_iter().map(acquired).collect()));
        }
        let started = bench.starts().into_iter().map(|(ticket, _)| ticket);
        let quick: Vec<_> =
            started.filter(|ticket| !slow.contains(ticket)).map(|ticket| (ticket, Ran::Succeeded)).collect();
        if !quick.is_empty() {
            due.push_back(Event::Ran(quick));
        }
        let told = bench.settles();
        if !told.is_empty() {
            due.push_back(Event::Settled(told.into_iter().map(|(ticket, _)| (ticket, Settled::Recorded)).collect()));
        }
        finished += bench.finished().len();
        bench.now = Time::from_micros(step * 200);
        if step == 10 {
            bench.deliver_numbered(2, &messages(1 << 32));
        } else {
            bench.tell(due.pop_front().unwrap_or(Event::Tick));
        }
    }
    assert_eq!(finished, 2_000, "the other partition goes on");
    assert!((1..=33).contains(&held), "{held} claims age behind a handler that does not end");
}

#[test]
fn of_many_lanes_each_has_one_claimed_ahead() {
    const LANES: usize = 20;
    let config = Config { order: Order::Key, concurrency: LANES, claims: 16, ..Config::default() };
    let mut bench = Bench::new(config, 1);
    let messages: Vec<(i64, u64, u64)> = (0..600_u64).map(|n| (n as i64, n % LANES as u64, n)).collect();
    bench.deliver_numbered(1, &messages);
    let lane = |ticket: &Ticket| ticket.0 as usize % LANES;
    let mut claimed = [0; LANES];
    let mut begun: Vec<VecDeque<Ticket>> = vec![VecDeque::new(); LANES];
    for round in 1..=8 {
        // The store answers at once, and handlers take 10 ms.
        let (mut asked, mut told) = (Vec::new(), Vec::new());
        loop {
            asked.extend(bench.claims());
            told.extend(bench.settles());
            bench.starts().iter().for_each(|(ticket, _)| begun[lane(ticket)].push_back(*ticket));
            if !asked.is_empty() {
                let asked = std::mem::take(&mut asked);
                asked.iter().for_each(|ticket| claimed[lane(ticket)] += 1);
                bench.grant(&asked);
            } else if !told.is_empty() {
                let answers = told.drain(..).map(|(ticket, _)| (ticket, Settled::Recorded)).collect();
                bench.tell(Event::Settled(answers));
            } else {
                break;
            }
        }
        assert!(begun.iter().all(|lane| !lane.is_empty()), "round {round}: a lane stands still");
        if round > 4 {
            assert!(claimed.iter().all(|claimed| *claimed > 1), "round {round}: {claimed:?}");
        }
        bench.now += ms(10);
        let ended: Vec<Ticket> = begun.iter_mut().filter_map(VecDeque::pop_front).collect();
        ended.iter().for_each(|ticket| claimed[lane(ticket)] -= 1);
        bench.ran(Ran::Succeeded, &ended);
    }
}

#[test]
fn at_most_once_what_is_down_costs_the_message_that_found_it_and_no_other() {
    let mut bench = Bench::new(Config { settle_first: true, ..Config::default() }, 1);
    let t = bench.deliver(1, &[(0, 0, 1), (1, 0, 2)]);
    bench.grant(&t);
    bench.record();
    assert_eq!(bench.starts().len(), 2);
    bench.tell(Event::Ran(vec![(t[0], Ran::Unavailable { random: 0 }), (t[1], Ran::NotBegun)]));
    assert_eq!(bench.finished(), [(t[0], Ending::Dead)], "it is not told as a duplicate of itself");
    assert!(bench.starts().is_empty(), "what is down is left alone");
    bench.at(ms(100));
    assert_eq!(bench.starts(), [(t[1], false)], "the next one is tried when it may be back");
    bench.ran(Ran::Succeeded, &t[1..]);
    assert_eq!(bench.finished(), [(t[1], Ending::Handled)]);
}
