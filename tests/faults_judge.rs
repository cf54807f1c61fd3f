//! The judges of `scripts/faults`, of `examples/transfer` and of `examples/inbox`: what they must find, and what they must let pass. A run that ends well shows
//! nothing about that. And the last word of the benchmarks, and the help of `scripts/faults`, which say nothing true by themselves either.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../benches/shared/args.rs"]
#[allow(dead_code, missing_docs)]
mod args;
#[path = "../benches/ratios/figures.rs"]
#[allow(dead_code, missing_docs)]
mod figures;
#[path = "../examples/inbox/judge.rs"]
mod inbox;
#[path = "../examples/faults/judge.rs"]
#[allow(dead_code)]
mod judge;
/// What the other judges judge.
#[path = "../examples/transfer/money.rs"]
#[allow(dead_code)]
mod money;
#[path = "../examples/inbox/orders.rs"]
#[allow(dead_code)]
mod orders;
#[path = "../examples/shared/random.rs"]
#[allow(dead_code)]
mod random;
#[path = "../examples/transfer/judge.rs"]
mod transfer;

use std::collections::BTreeSet;

use judge::{Effect, Entry, Evidence, Fault, Line, Pid, Stored, Time, Verdict, What, judge, read_journal};

const SECOND: Time = 1_000_000;
const LEASE: Time = 3 * SECOND;

/// Evidence told in seconds.
#[derive(Default)]
struct Case(Evidence);

impl Case {
    fn new(ids: &[&str]) -> Self {
        Self(Evidence { produced: set(ids), lease: LEASE, ..Evidence::default() })
    }

    fn line(mut self, at: f64, pid: Pid, entry: Entry) -> Self {
        self.0.lines.push(Line { at: time(at), pid, entry });
        self
    }

    fn claimed(self, at: f64, pid: Pid, id: &str, fence: u64) -> Self {
        self.line(at, pid, Entry::Claimed { key: key(id), fence, asked: time(at) - 1_000 })
    }

    fn settled(self, at: f64, pid: Pid, id: &str, fence: u64, success: bool) -> Self {
        self.line(at, pid, Entry::Settled { key: key(id), fence, success, dead: false })
    }

    fn effect(mut self, at: f64, pid: Pid, id: &str, fence: u64) -> Self {
        let nth = self.0.effects.len() as u64;
        let (id, key) = (id.to_owned(), key(id));
        self.0.effects.push(Effect { id, key, fence, pid, at: time(at), lane: String::new(), offset: 0, nth });
        self
    }

    /// The next row of the table.
    fn row(mut self, id: &str, lane: &str, offset: i64) -> Self {
        let at = self.0.effects.len() as f64;
        self = self.effect(at, 1, id, 0);
        let last = self.0.effects.last_mut().unwrap();
        (last.lane, last.offset) = (lane.to_owned(), offset);
        self
    }

    fn fault(mut self, from: f64, to: f64, what: What) -> Self {
        self.0.faults.push(Fault { from: time(from), to: time(to), what });
        self
    }

    fn hopeless(mut self, ids: &[&str]) -> Self {
        self.0.hopeless = set(ids);
        self
    }

    fn verdict(&self) -> Verdict {
        judge(&self.0)
    }

    /// One effect doubled, for this cause.
    fn is_explained_by(&self, cause: &str) {
        let verdict = self.verdict();
        assert!(verdict.is_good(), "{verdict:#?}");
        assert_eq!((verdict.doubled, verdict.explained), (1, 1));
        assert_eq!(verdict.causes.get(cause), Some(&1), "{:?}", verdict.causes);
    }

    fn is_refused_for(&self, words: &str) {
        let verdict = self.verdict();
        assert!(!verdict.is_good());
        assert!(verdict.wrong.iter().chain(&verdict.lost).any(|wrong| wrong.contains(words)), "{verdict:#?}");
    }
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn time(seconds: f64) -> Time {
    100 * SECOND + (seconds * SECOND as f64) as Time
}

fn key(id: &str) -> String {
    format!("key of {id}")
}

/// Claimed and done by 1, then by 2, `gap` seconds later.
fn twice(gap: f64) -> Case {
    Case::new(&["a"]).claimed(1.0, 1, "a", 1).effect(1.1, 1, "a", 1).claimed(1.0 + gap, 2, "a", 2).effect(
        1.1 + gap,
        2,
        "a",
        2,
    )
}

#[test]
fn who_was_paused_with_the_only_lock_stopped_all() {
    let case = |one_writer, from, to| {
        let mut case = twice(10.0).fault(from, to, What::Paused(3));
        case.0.one_writer = one_writer;
        case
    };
    case(true, 1.2, 10.9).is_explained_by("locked out");
    let words = "nothing hindered its member";
    case(false, 1.2, 10.9).is_refused_for(words);
    // It began after the settle, as others show, or somebody wrote meanwhile, or it was shorter than a lease.
    case(true, 7.0, 10.9).is_refused_for(words);
    case(true, 1.2, 2.0).is_refused_for(words);
    case(true, 1.2, 10.9).claimed(5.0, 4, "b", 7).is_refused_for(words);
}

#[test]
fn one_effect_each_is_good() {
    let case = Case::new(&["a", "b"]).claimed(1.0, 1, "a", 1).effect(1.1, 1, "a", 1).settled(1.2, 1, "a", 1, true);
    let case = case.claimed(1.0, 1, "b", 1).effect(4.0, 1, "b", 1);
    let verdict = case.verdict();
    assert!(verdict.is_good());
    assert_eq!((verdict.distinct, verdict.effects, verdict.doubled), (2, 2, 0));
    assert_eq!(verdict.max_stall, time(4.0) - time(1.1));
}

#[test]
fn a_message_without_effect_is_lost() {
    let verdict = Case::new(&["a", "b"]).claimed(1.0, 1, "a", 1).effect(1.1, 1, "a", 1).verdict();
    assert_eq!(verdict.lost, ["b"]);
    assert!(!verdict.is_good());
}

#[test]
fn an_effect_that_nobody_asked_for_is_wrong() {
    Case::new(&[]).claimed(1.0, 1, "a", 1).effect(1.1, 1, "a", 1).is_refused_for("nobody produced");
}

#[test]
fn what_never_succeeds_must_be_dead_without_effect() {
    let dead = |at| Line { at: time(at), pid: 1, entry: Entry::Dead { key: key("a") } };
    let mut case = Case::new(&["a"]).hopeless(&["a"]);
    case.is_refused_for("but 0 are dead");
    case.0.lines.push(dead(1.0));
    assert!(case.verdict().is_good());
    assert_eq!(case.verdict().dead, 1);
    case.claimed(0.5, 1, "a", 1).effect(0.6, 1, "a", 1).is_refused_for("never succeeds");
    // Given up, and should not have been.
    let mut case = Case::new(&["b"]);
    case.0.lines.push(dead(1.0));
    assert_eq!(case.verdict().lost, ["b"]);
}

#[test]
fn dead_letters_are_those_that_never_succeed() {
    let mut case = Case::new(&["a", "b"]).hopeless(&["a"]).claimed(1.0, 1, "b", 1).effect(1.1, 1, "b", 1);
    case.0.lines.push(Line { at: time(1.0), pid: 1, entry: Entry::Dead { key: key("a") } });
    case.0.letters = Some(set(&["a"]));
    assert!(case.verdict().is_good());
    case.0.letters = Some(set(&[]));
    assert_eq!(case.verdict().lost, ["a"]);
    case.0.letters = Some(set(&["a", "b"]));
    case.is_refused_for("a dead letter of b");
}

#[test]
fn a_kill_between_effect_and_settle_explains() {
    twice(3.5).fault(1.2, 1e9, What::Killed(1)).is_explained_by("killed");
}

#[test]
fn a_stop_explains_whichever_effect_came_first() {
    twice(4.0).fault(1.15, 12.0, What::Paused(1)).is_explained_by("paused");
    // Stopped between claim and effect: the other one was quicker.
    let case = Case::new(&["a"]).claimed(1.0, 1, "a", 1).claimed(4.5, 2, "a", 2).effect(4.6, 2, "a", 2);
    let case = case.settled(4.7, 2, "a", 2, true).effect(12.1, 1, "a", 1);
    case.fault(1.05, 12.0, What::Paused(1)).is_explained_by("paused");
    case_of_nobody_hindered().is_refused_for("nothing hindered");
}

fn case_of_nobody_hindered() -> Case {
    Case::new(&["a"]).claimed(1.0, 1, "a", 1).claimed(4.5, 2, "a", 2).effect(4.6, 2, "a", 2).effect(12.1, 1, "a", 1)
}

#[test]
fn a_store_out_of_reach_and_a_starved_machine_explain() {
    twice(3.5).fault(0.9, 5.0, What::StoreLink(1)).is_explained_by("cut off");
    twice(3.5).fault(1.2, 4.0, What::StoreDown).is_explained_by("store down");
    twice(3.5).line(4.4, 1, Entry::Stalled { since: time(1.2) }).is_explained_by("starved");
}

#[test]
fn somebody_elses_trouble_explains_nothing() {
    for what in [What::Killed(2), What::Paused(3), What::StoreLink(2)] {
        twice(3.5).fault(1.2, 1e9, what).is_refused_for("nothing hindered");
    }
    twice(3.5).line(4.4, 2, Entry::Stalled { since: time(1.2) }).is_refused_for("nothing hindered");
    twice(3.5).is_refused_for("nothing hindered");
}

#[test]
fn trouble_before_or_long_after_explains_nothing() {
    twice(3.5).fault(0.1, 0.9, What::StoreLink(1)).is_refused_for("nothing hindered");
    // A settle that took so long was no victim of the kill.
    twice(20.0).fault(15.0, 1e9, What::Killed(1)).is_refused_for("nothing hindered");
}

#[test]
fn nobody_may_claim_within_a_lease() {
    twice(1.5).fault(1.2, 1e9, What::Killed(1)).is_refused_for("the lease ran until");
    // Renewed at 2.0: it runs until 5.0.
    let renewed = Entry::Extended { key: key("a"), fence: 1, asked: time(2.0) };
    twice(3.5).line(2.001, 1, renewed.clone()).fault(2.2, 1e9, What::Killed(1)).is_refused_for("the lease ran until");
    twice(4.5).line(2.001, 1, renewed).fault(2.2, 1e9, What::Killed(1)).is_explained_by("killed");
}

#[test]
fn nobody_may_claim_what_the_store_has_as_succeeded() {
    let case = twice(9.0).settled(1.2, 1, "a", 1, true);
    case.is_refused_for("acknowledged its success");
    case.fault(1.3, 1e9, What::Killed(1)).is_refused_for("acknowledged its success");
}

#[test]
fn only_an_emptied_store_may_forget() {
    let forgotten = || {
        // Fences begin anew.
        let case = Case::new(&["a"]).claimed(1.0, 1, "a", 1).effect(1.1, 1, "a", 1).settled(1.2, 1, "a", 1, true);
        case.claimed(6.0, 1, "a", 1).effect(6.1, 1, "a", 1).settled(6.2, 1, "a", 1, true)
    };
    forgotten().fault(5.0, 5.0, What::StoreEmptied).is_explained_by("forgotten");
    forgotten().fault(4.9, 5.1, What::StoreDown).is_refused_for("");
    forgotten().fault(0.5, 0.5, What::StoreEmptied).is_refused_for("");
    forgotten().fault(7.0, 7.0, What::StoreEmptied).is_refused_for("");
}

#[test]
fn an_effect_that_was_given_back_needs_a_reason() {
    twice(0.5).settled(1.3, 1, "a", 1, false).is_refused_for("given back");
    twice(0.5).settled(1.3, 1, "a", 1, false).fault(1.05, 1.2, What::Paused(1)).is_explained_by("paused");
}

#[test]
fn effects_without_a_claim_are_refused() {
    let case = Case::new(&["a"]).effect(1.0, 1, "a", 0).effect(9.0, 2, "a", 0);
    case.fault(1.1, 1e9, What::Killed(1)).is_refused_for("without a claim");
}

fn transactional(mut case: Case) -> Case {
    case.0.transactional = true;
    case
}

#[test]
fn nothing_explains_a_second_effect_where_effect_and_memory_commit_together() {
    let once = || transactional(Case::new(&["a", "b"]).effect(1.0, 1, "a", 0).effect(2.0, 2, "b", 0));
    assert!(once().verdict().is_good());
    for what in [What::Killed(1), What::Paused(1), What::StoreLink(1), What::StoreDown, What::StoreEmptied] {
        let twice = once().effect(9.0, 2, "a", 0).fault(0.9, 12.0, what);
        twice.is_refused_for("a twice");
        assert_eq!((twice.verdict().doubled, twice.verdict().explained), (1, 0));
    }
    // Nor does what would be a good cause at level L1.
    transactional(twice(3.5).fault(1.2, 1e9, What::Killed(1))).is_refused_for("commit together");
    let lost = transactional(Case::new(&["a", "b"]).effect(1.0, 1, "a", 0)).verdict();
    assert_eq!((lost.lost.as_slice(), lost.is_good()), (&["b".to_owned()][..], false));
}

#[test]
fn without_claims_the_letters_say_what_is_dead() {
    let mut case = transactional(Case::new(&["a", "b"]).hopeless(&["a"]).effect(1.0, 1, "b", 0));
    case.is_refused_for("but 0 are dead");
    case.0.letters = Some(set(&["a"]));
    assert_eq!((case.verdict().dead, case.verdict().is_good()), (1, true));
    case.0.letters = Some(set(&["a", "b"]));
    case.is_refused_for("a dead letter of b");
}

/// What an inbox holds at the end, where all went well.
fn stored(mut case: Case) -> Case {
    case.0.transactional = true;
    case.0.inbox = Some(Stored { accepted: case.0.produced.len(), open: 0 });
    case
}

#[test]
fn an_inbox_keeps_the_order_of_each_key() {
    let in_order = || stored(Case::new(&["a", "b", "c", "d"]).row("a", "x", 3).row("b", "y", 1).row("c", "x", 7));
    // Keys go their own ways, and a partition's offsets are nobody else's.
    let case = in_order().row("d", "y", 2);
    assert!(case.verdict().is_good(), "{:#?}", case.verdict());
    let case = in_order().row("d", "x", 5);
    case.is_refused_for("d of x at offset 5 behind c at offset 7");
    assert_eq!(case.verdict().out_of_order, 1);
    // It is the database's order that counts, in whatever order the rows come back.
    let mut case = in_order().row("d", "y", 2);
    case.0.effects.reverse();
    assert!(case.verdict().is_good());
    // Elsewhere nothing is said about order.
    let mut case = in_order().row("d", "x", 5);
    case.0.inbox = None;
    assert!(case.verdict().is_good());
}

#[test]
fn each_row_behind_a_later_one_of_its_key_is_out_of_order() {
    let case = stored(Case::new(&["a", "b", "c"]).row("c", "x", 9).row("a", "x", 3).row("b", "x", 4));
    assert_eq!(case.verdict().out_of_order, 2);
    // The same message twice is doubled, and in its order.
    let case = stored(Case::new(&["a"]).row("a", "x", 3).row("a", "x", 3));
    assert_eq!((case.verdict().out_of_order, case.verdict().doubled), (0, 1));
    case.is_refused_for("a twice");
}

#[test]
fn outside_of_transactions_first_effects_have_their_order_and_others_a_cause() {
    // Its first owner was stopped between claim and effect, and went on when others had done it, and the next of its key.
    let late = || {
        let mut case = Case::new(&["a", "b"]).claimed(1.0, 1, "a", 1).claimed(4.5, 2, "a", 2).claimed(5.0, 2, "b", 3);
        case = case.effect(4.6, 2, "a", 2).effect(5.1, 2, "b", 3).effect(12.1, 1, "a", 1);
        for (nth, effect) in case.0.effects.iter_mut().enumerate() {
            let offset = if effect.id == "a" { 3 } else { 4 };
            (effect.lane, effect.offset, effect.nth) = ("x".into(), offset, nth as u64);
        }
        case.0.inbox = Some(Stored { accepted: 2, open: 0 });
        case.0.letters = Some(set(&[]));
        case
    };
    let good = late().fault(1.05, 12.0, What::Paused(1));
    assert!(good.verdict().is_good(), "{:#?}", good.verdict());
    assert_eq!((good.verdict().out_of_order, good.verdict().doubled, good.verdict().explained), (0, 1, 1));
    // Not without a cause,
    late().is_refused_for("nothing hindered");
    // and not where effect and memory commit together.
    let mut case = late().fault(1.05, 12.0, What::Paused(1));
    case.0.transactional = true;
    case.is_refused_for("a of x at offset 3 behind b at offset 4");
    // A first effect has its place, cause or no cause.
    let mut case = late().fault(1.05, 12.0, What::Paused(1));
    (case.0.effects[0].nth, case.0.effects[1].nth) = (1, 0);
    case.is_refused_for("a of x at offset 3 behind b at offset 4");
    assert_eq!(case.verdict().out_of_order, 1);
}

#[test]
fn an_inbox_holds_each_message_once_and_nothing_stays_open() {
    let good = || stored(Case::new(&["a"]).row("a", "x", 3));
    assert!(good().verdict().is_good());
    for accepted in [0, 2] {
        let mut case = good();
        case.0.inbox = Some(Stored { accepted, open: 0 });
        case.is_refused_for(&format!("the inbox has accepted {accepted}"));
    }
    let mut case = good();
    case.0.inbox = Some(Stored { accepted: 1, open: 1 });
    case.is_refused_for("1 messages are still open");
}

#[test]
fn three_effects_need_two_causes() {
    let three = twice(3.5).claimed(9.0, 3, "a", 3).effect(9.1, 3, "a", 3).fault(1.2, 1e9, What::Killed(1));
    let verdict = three.verdict();
    assert_eq!((verdict.doubled, verdict.explained, verdict.is_good()), (2, 1, false));
    let verdict = three.fault(4.7, 1e9, What::Killed(2)).verdict();
    assert_eq!((verdict.doubled, verdict.explained, verdict.is_good()), (2, 2, true));
}

#[test]
fn journals_are_read_as_the_service_writes_them() {
    let text = "7 start 42\n\
                8 claimed abc fence=2 attempt=3 took_over=true asked=6\n\
                9 extended abc fence=2 asked=8\n\
                10 settled abc fence=2 succeeded Late\n\
                11 settled abc fence=2 succeeded Refused\n\
                12 settled abc fence=2 failed Buried\n\
                13 settled abc fence=2 dead Settled\n\
                14 settled abc fence=2 dead Refused\n\
                15 settled abc fence=2 released Settled\n\
                16 dead abc\n\
                20 stalled since=17\n\
                21 claimed abc fen";
    let key = || "abc".to_owned();
    let settled = |success, dead| Entry::Settled { key: key(), fence: 2, success, dead };
    let expected = [
        (8, Entry::Claimed { key: key(), fence: 2, asked: 6 }),
        (9, Entry::Extended { key: key(), fence: 2, asked: 8 }),
        (10, settled(true, false)),
        (11, settled(false, false)),
        (12, settled(false, true)),
        (13, settled(false, true)),
        (14, settled(false, false)),
        (15, settled(false, false)),
        (16, Entry::Dead { key: key() }),
        (20, Entry::Stalled { since: 17 }),
    ];
    assert_eq!(read_journal(42, text), expected.map(|(at, entry)| Line { at, pid: 42, entry }));
}

mod transfers {
    use std::collections::BTreeMap;

    use crate::money::{ACCOUNTS, OPENING, PARTITIONS, Transfer};
    use crate::random::Random;
    use crate::transfer::{Entry, Verdict, judge, undone};

    /// A hundred transfers, each applied once, and the balances that come of it.
    struct Bank {
        produced: BTreeMap<String, Transfer>,
        ledger: Vec<Entry>,
        balances: BTreeMap<i64, i64>,
    }

    impl Bank {
        fn new() -> Self {
            let mut random = Random::new(7);
            let mut bank = Self {
                produced: BTreeMap::new(),
                ledger: Vec::new(),
                balances: (0..ACCOUNTS).map(|account| (account, OPENING)).collect(),
            };
            for number in 1..=100 {
                let (partition, transfer) = Transfer::draw(number, &mut random);
                assert!((0..PARTITIONS).contains(&partition));
                assert_ne!(transfer.source, transfer.target);
                bank.produced.insert(transfer.id.clone(), transfer.clone());
                bank.apply(&transfer, 1, &format!("{partition}/{number}"));
            }
            bank
        }

        fn apply(&mut self, transfer: &Transfer, member: i64, place: &str) {
            self.ledger.push(Entry { transfer: transfer.clone(), member, place: place.into() });
            *self.balances.get_mut(&transfer.source).unwrap() -= transfer.cents;
            *self.balances.get_mut(&transfer.target).unwrap() += transfer.cents;
        }

        fn verdict(&self) -> Verdict {
            judge(&self.produced, &self.ledger, &self.balances)
        }
    }

    const BEFORE: i64 = ACCOUNTS * OPENING;

    #[test]
    fn each_transfer_once_is_good() {
        let verdict = Bank::new().verdict();
        assert_eq!(verdict, Verdict { total: BEFORE, ..Verdict::default() });
        assert!(verdict.is_good(BEFORE));
        // Money that came from nowhere before the end is found as well.
        assert!(!verdict.is_good(BEFORE - 1));
    }

    #[test]
    fn a_transfer_that_was_not_applied_is_lost() {
        let mut bank = Bank::new();
        let (_, transfer) = Transfer::draw(101, &mut Random::new(8));
        bank.produced.insert(transfer.id.clone(), transfer);
        assert_eq!((bank.verdict().lost, bank.verdict().is_good(BEFORE)), (1, false));
    }

    #[test]
    fn a_transfer_that_was_applied_again_is_doubled_by_its_cause() {
        let mut bank = Bank::new();
        let first = bank.ledger[0].clone();
        bank.apply(&first.transfer, 2, &first.place);
        let verdict = bank.verdict();
        // The balances agree with the ledger, and the total has not moved: the doubled row alone tells.
        assert_eq!((verdict.doubled, verdict.redelivered, verdict.wrong_balances, verdict.total), (1, 1, 0, BEFORE));
        assert!(!verdict.is_good(BEFORE));
        bank.apply(&first.transfer, 2, "elsewhere/1");
        assert_eq!((bank.verdict().doubled, bank.verdict().redelivered), (2, 1));
    }

    #[test]
    fn what_nobody_produced_and_what_was_changed_is_strange() {
        let mut bank = Bank::new();
        let (_, unknown) = Transfer::draw(500, &mut Random::new(9));
        bank.apply(&unknown, 1, "0/0");
        assert_eq!((bank.verdict().strange, bank.verdict().is_good(BEFORE)), (1, false));
        let mut bank = Bank::new();
        bank.ledger[0].transfer.cents += 1;
        assert_eq!((bank.verdict().strange, bank.verdict().wrong_balances), (1, 2));
    }

    #[test]
    fn half_a_transfer_is_found_in_the_balances() {
        let mut bank = Bank::new();
        *bank.balances.get_mut(&3).unwrap() -= 5;
        let verdict = bank.verdict();
        assert_eq!((verdict.wrong_balances, verdict.total, verdict.is_good(BEFORE)), (1, BEFORE - 5, false));
        // Even where the sum is right.
        *bank.balances.get_mut(&4).unwrap() += 5;
        assert_eq!((bank.verdict().wrong_balances, bank.verdict().total), (2, BEFORE));
        assert!(!bank.verdict().is_good(BEFORE));
    }

    #[test]
    fn a_kill_that_found_a_transaction_open_is_told_from_one_that_did_not() {
        let bank = Bank::new();
        let ids = |numbers: &[u32]| numbers.iter().map(|number| format!("t{number:07}")).collect::<Vec<_>>();
        // 1 wrote the ledger; 2 and 3 had begun what 1 has finished.
        let begun = [(1, ids(&[98, 99, 100])), (2, ids(&[7, 8])), (3, ids(&[9]))].into_iter().collect();
        assert_eq!(undone(&begun, &bank.ledger, &[1, 2]), (1, 3));
        assert_eq!(undone(&begun, &bank.ledger, &[1]), (0, 3));
        assert_eq!(undone(&begun, &bank.ledger, &[2, 3, 4]), (2, 3));
    }
}

mod orders_in_an_inbox {
    use std::collections::BTreeMap;

    use crate::inbox::{Entry, Standing, Verdict, judge};
    use crate::orders::{Order, Produced, draw};

    /// Three hundred orders, each with its effect, in order, but for the poison one, which comes last.
    struct Shop {
        produced: Produced,
        ledger: Vec<Entry>,
        spent: BTreeMap<i64, i64>,
        inbox: Standing,
    }

    impl Shop {
        fn new() -> Self {
            let (produced, sent) = draw(300, 20, 7);
            assert!(sent.len() as u64 == 300 + produced.copies && produced.copies > 0);
            let orders: Vec<Order> = produced.orders.values().cloned().collect();
            let poison = orders.iter().position(|order| order.id == produced.poison).unwrap();
            let inbox = Standing { accepted: 300, succeeded: 300, dead: 0 };
            let mut shop = Self { produced, ledger: Vec::new(), spent: BTreeMap::new(), inbox };
            for at in (0..orders.len()).filter(|at| *at != poison).chain([poison]) {
                shop.charge(&orders[at], at as i64, i64::from(orders[at].stumbles) + 1);
            }
            shop
        }

        fn charge(&mut self, order: &Order, offset: i64, attempt: i64) {
            let nth = self.ledger.len() as i64 + 1;
            let Order { id, customer, cents, .. } = order.clone();
            *self.spent.entry(customer).or_default() += cents;
            self.ledger.push(Entry { nth, id, customer, cents, offset, attempt, worker: 1 });
        }

        fn verdict(&self) -> Verdict {
            judge(&self.produced, &self.ledger, &self.spent, self.inbox)
        }

        /// Two orders of one customer, the earlier one first.
        fn of_one_customer(&self) -> (usize, usize) {
            let rows = &self.ledger[..self.ledger.len() - 1];
            let same =
                |at: usize| Some((at, at + 1 + rows[at + 1..].iter().position(|b| b.customer == rows[at].customer)?));
            (0..rows.len()).find_map(same).unwrap()
        }

        fn is_refused_for(&self, words: &str) {
            let verdict = self.verdict();
            assert!(!verdict.is_good() && verdict.wrong.iter().any(|wrong| wrong.contains(words)), "{verdict:?}");
        }
    }

    #[test]
    fn each_order_once_is_good() {
        let shop = Shop::new();
        let verdict = shop.verdict();
        assert!(verdict.is_good(), "{verdict:?}");
        let stumbling = shop.produced.orders.values().filter(|order| order.stumbles > 0).count() as u64;
        assert_eq!((verdict.succeeded, verdict.retried), (300, stumbling));
        assert!(stumbling > 0);
    }

    #[test]
    fn an_order_without_effect_is_lost_and_one_with_two_is_doubled() {
        let mut shop = Shop::new();
        let last = shop.ledger.pop().unwrap();
        *shop.spent.get_mut(&last.customer).unwrap() -= last.cents;
        assert_eq!((shop.verdict().lost, shop.verdict().is_good()), (1, false));
        let mut shop = Shop::new();
        let order = shop.produced.orders[&shop.ledger[5].id].clone();
        // However late, and at another offset: the accounts agree with the ledger, and the doubled row alone tells.
        shop.charge(&order, 1_000, 3);
        let verdict = shop.verdict();
        assert_eq!((verdict.doubled, verdict.lost, verdict.wrong.len(), verdict.is_good()), (1, 0, 0, false));
    }

    #[test]
    fn orders_of_one_customer_have_their_order_and_others_have_none() {
        let mut shop = Shop::new();
        let (a, b) = shop.of_one_customer();
        (shop.ledger[a].nth, shop.ledger[b].nth) = (shop.ledger[b].nth, shop.ledger[a].nth);
        assert_eq!((shop.verdict().out_of_order, shop.verdict().is_good()), (1, false));
        // The order in which rows come back says nothing.
        let mut shop = Shop::new();
        shop.ledger.reverse();
        assert!(shop.verdict().is_good());
    }

    #[test]
    fn what_nobody_ordered_and_wrong_accounts_are_found() {
        let mut shop = Shop::new();
        shop.ledger[3].cents += 1;
        shop.is_refused_for("no order that was produced");
        shop.is_refused_for("1 customers' accounts");
        let mut shop = Shop::new();
        *shop.spent.values_mut().next().unwrap() -= 1;
        shop.is_refused_for("1 customers' accounts");
    }

    #[test]
    fn an_effect_of_an_attempt_that_had_to_fail_is_found() {
        let mut shop = Shop::new();
        let failing = shop.ledger.iter().position(|entry| entry.attempt > 1).unwrap();
        shop.ledger[failing].attempt = 1;
        shop.is_refused_for("an attempt that must have failed");
    }

    #[test]
    fn the_inbox_must_agree_and_nothing_may_stay_dead() {
        let inbox = |accepted, succeeded, dead| {
            let mut shop = Shop::new();
            shop.inbox = Standing { accepted, succeeded, dead };
            shop
        };
        inbox(301, 300, 0).is_refused_for("301 orders were accepted, and there are 300");
        inbox(300, 299, 0).is_refused_for("299 orders were succeeded, and there are 300");
        inbox(300, 300, 1).is_refused_for("1 orders are still dead");
    }
}

/// What a benchmark of three figures ends with, asked for these.
fn benched(flags: &[&str]) -> (std::process::ExitCode, Vec<&'static str>) {
    let args = args::read("trial", &[], lexopt::Parser::from_args(flags)).unwrap().unwrap();
    let mut figures = figures::Figures::new(args);
    let mut measured = Vec::new();
    for name in ["redis_claim", "redis_settle", "plain"] {
        if figures.wants_any(&[name]) {
            measured.push(name);
            if !figures.args.list {
                figures.state(name, 1.0, 1.0, 1.0, figures::Bar::Ratio(0.5));
            }
        }
    }
    (figures.close("trial"), measured)
}

#[test]
fn a_benchmark_that_measured_nothing_does_not_end_well() {
    let code = |code: u8| format!("{:?}", std::process::ExitCode::from(code));
    for (flags, wanted, measured) in [
        (&[][..], 0, &["redis_claim", "redis_settle", "plain"][..]),
        (&["--only", "redis"], 0, &["redis_claim", "redis_settle"]),
        (&["--only", "redis_s", "--only", "plain"], 0, &["redis_settle", "plain"]),
        (&["--only", "rediss"], 2, &[]),
        (&["--only", "plain", "--only", "no_such"], 2, &["plain"]),
        (&["--list", "--only", "no_such"], 2, &[]),
    ] {
        let (ended, names) = benched(flags);
        assert_eq!((format!("{ended:?}"), &names[..]), (code(wanted), measured), "{flags:?}");
    }
}

#[test]
fn a_benchmarks_last_line_says_of_what_it_speaks() {
    assert_eq!(figures::last(3, 3, 0), "# every bar is met: all 3 figures were measured");
    assert_eq!(figures::last(1, 3, 0), "# every bar of what was measured is met: 1 figures of 3");
    assert!(!figures::last(3, 3, 1).contains("every bar"));
}

/// A `cargo` of the test's own leaves a mark: nothing is built for a few words.
#[cfg(unix)]
#[test]
fn the_help_of_scripts_faults_names_its_flags_and_builds_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let (cargo, mark) = (folder.path().join("cargo"), folder.path().join("built"));
    std::fs::write(&cargo, format!("#!/bin/sh\ntouch '{}'\nexit 1\n", mark.display())).unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let source = std::fs::read_to_string(root.join("examples/faults/main.rs")).unwrap();
    let flags: Vec<&str> = source.split("Long(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(flags.len() > 5, "{flags:?}");
    for asked in [&["--help"][..], &["-h"], &["--debug", "--help"], &["--seconds", "5", "--help"]] {
        let told =
            std::process::Command::new(root.join("scripts/faults")).args(asked).env("PATH", &path).output().unwrap();
        let text = String::from_utf8(told.stdout).unwrap();
        assert!(
            told.status.success() && text.starts_with("Holds hapax") && text.contains("Usage: "),
            "{asked:?}: {text}"
        );
        for flag in flags.iter().filter(|flag| !["help", "bench"].contains(flag)) {
            assert!(text.contains(&format!("\n  --{flag} ")), "{asked:?} does not tell of --{flag}");
        }
        assert!(!mark.exists(), "{asked:?} builds");
    }
}
