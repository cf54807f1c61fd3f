//! Counts the ledger and the customers' accounts against what was produced. Pure: evidence in, verdict out.

use std::collections::{BTreeMap, BTreeSet};

use crate::orders::Produced;

/// A row of the ledger: an order's effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The how manyeth row it is, as the database counts.
    pub nth: i64,
    pub id: String,
    pub customer: i64,
    pub cents: i64,
    /// Of the message: orders of one customer are in one partition.
    pub offset: i64,
    /// Which attempt had the effect.
    pub attempt: i64,
    pub worker: i64,
}

/// What the inbox says of itself at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub accepted: u64,
    pub succeeded: u64,
    pub dead: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Orders with an effect.
    pub succeeded: u64,
    /// Those of them that needed more than one attempt.
    pub retried: u64,
    /// Orders without an effect.
    pub lost: u64,
    /// Effects beyond the first of an order.
    pub doubled: u64,
    /// Effects behind that of a later order of the same customer.
    pub out_of_order: u64,
    /// What is wrong beyond that, in words.
    pub wrong: Vec<String>,
}

impl Verdict {
    pub const fn is_good(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.out_of_order == 0 && self.wrong.is_empty()
    }
}

/// `spent` is each customer's account.
pub fn judge(produced: &Produced, ledger: &[Entry], spent: &BTreeMap<i64, i64>, inbox: Standing) -> Verdict {
    let mut verdict = Verdict::default();
    let mut rows: Vec<&Entry> = ledger.iter().collect();
    rows.sort_by_key(|entry| entry.nth);
    let (mut seen, mut expected) = (BTreeSet::new(), BTreeMap::<i64, i64>::new());
    let (mut furthest, mut strange, mut early) = (BTreeMap::<i64, i64>::new(), 0, 0);
    for entry in rows {
        *expected.entry(entry.customer).or_default() += entry.cents;
        let order = produced.orders.get(&entry.id);
        let Some(order) = order.filter(|order| (order.customer, order.cents) == (entry.customer, entry.cents)) else {
            strange += 1;
            continue;
        };
        if !seen.insert(&entry.id) {
            verdict.doubled += 1;
        } else if entry.attempt > 1 {
            verdict.retried += 1;
        }
        // Brought back by an operator, it is a new generation with attempts of its own, behind what did not wait for the dead.
        if entry.id == produced.poison {
            continue;
        }
        early += u64::from(entry.attempt <= i64::from(order.stumbles));
        let furthest = furthest.entry(entry.customer).or_insert(i64::MIN);
        verdict.out_of_order += u64::from(entry.offset < *furthest);
        *furthest = entry.offset.max(*furthest);
    }
    verdict.succeeded = seen.len() as u64;
    verdict.lost = produced.orders.len() as u64 - verdict.succeeded;
    let accounts = expected.keys().chain(spent.keys()).collect::<BTreeSet<_>>().into_iter();
    let of = |accounts: &BTreeMap<i64, i64>, customer| accounts.get(customer).copied().unwrap_or(0);
    let unequal = accounts.filter(|customer| of(&expected, customer) != of(spent, customer)).count();
    let mut complain = |count: u64, what: &str| {
        if count > 0 {
            verdict.wrong.push(format!("{count} {what}"));
        }
    };
    complain(strange, "effects were of no order that was produced");
    complain(early, "effects were of an attempt that must have failed");
    complain(unequal as u64, "customers' accounts are not what the ledger says");
    complain(inbox.dead, "orders are still dead");
    for (says, count, what) in
        [(inbox.accepted, produced.orders.len() as u64, "accepted"), (inbox.succeeded, verdict.succeeded, "succeeded")]
    {
        if says != count {
            verdict.wrong.push(format!("the inbox says that {says} orders were {what}, and there are {count}"));
        }
    }
    verdict
}
