//! Counts the ledger and the balances against what was produced. Pure: evidence in, verdict out.

use std::collections::{BTreeMap, BTreeSet};

use crate::money::{OPENING, Transfer};

/// A row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub transfer: Transfer,
    /// Which process wrote it.
    pub member: i64,
    /// Partition and offset of the message.
    pub place: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Transfers that were not applied.
    pub lost: usize,
    /// Applications beyond the first of a transfer.
    pub doubled: usize,
    /// Those of them of one and the same message, delivered again.
    pub redelivered: usize,
    /// What was applied and not produced, or otherwise than produced.
    pub strange: usize,
    /// Accounts whose balance is not what the ledger says.
    pub wrong_balances: usize,
    pub total: i64,
}

impl Verdict {
    pub const fn is_good(&self, before: i64) -> bool {
        self.lost == 0 && self.doubled == 0 && self.strange == 0 && self.wrong_balances == 0 && self.total == before
    }
}

pub fn judge(produced: &BTreeMap<String, Transfer>, ledger: &[Entry], balances: &BTreeMap<i64, i64>) -> Verdict {
    let mut verdict = Verdict { total: balances.values().sum(), ..Verdict::default() };
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut expected: BTreeMap<i64, i64> = balances.keys().map(|account| (*account, OPENING)).collect();
    for Entry { transfer, place, .. } in ledger {
        places.entry(&transfer.id).or_default().push(place);
        *expected.entry(transfer.source).or_default() -= transfer.cents;
        *expected.entry(transfer.target).or_default() += transfer.cents;
        if produced.get(&transfer.id) != Some(transfer) {
            verdict.strange += 1;
        }
    }
    verdict.lost = produced.keys().filter(|id| !places.contains_key(id.as_str())).count();
    for all in places.values() {
        let distinct: BTreeSet<_> = all.iter().collect();
        verdict.doubled += all.len() - 1;
        verdict.redelivered += all.len() - distinct.len();
    }
    let wrong = |(account, balance): &(&i64, &i64)| balances.get(account) != Some(balance);
    verdict.wrong_balances = expected.iter().filter(wrong).count();
    verdict
}

/// Of the processes that were killed: how many had just changed balances in a transaction that was not committed, and all the changes that
/// were undone. `begun` is what each process noted outside of the database.
pub fn undone(begun: &BTreeMap<i64, Vec<String>>, ledger: &[Entry], killed: &[i64]) -> (usize, usize) {
    let mut kept: BTreeSet<(i64, &str)> = BTreeSet::new();
    for entry in ledger {
        kept.insert((entry.member, &entry.transfer.id));
    }
    let is_undone = |member: i64, id: &str| !kept.contains(&(member, id));
    let open = |member: &&i64| {
        let last = begun.get(member).and_then(|ids| ids.last());
        last.is_some_and(|id| is_undone(**member, id))
    };
    let all = begun.iter().map(|(member, ids)| ids.iter().filter(|id| is_undone(*member, id)).count()).sum();
    (killed.iter().filter(open).count(), all)
}
