//! Gathers the evidence, and says what the judge makes of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::end::DRAIN;
use super::{Counts, Run};
use crate::Sabotage;
use crate::judge::{self, Effect, Entry, Evidence, Line, Stored, Time, Verdict};
use crate::letters;
use crate::schedule::LEASE;

/// What an inbox calls the lot of messages that are dead.
const DEAD: u8 = 2;

impl Run<'_> {
    pub(super) fn judge(&mut self, produced: BTreeSet<String>) -> Verdict {
        self.sabotage();
        let hopeless = produced.iter().filter(|id| self.injection.is_fatal(id)).cloned().collect();
        let mut evidence = Evidence {
            produced,
            hopeless,
            letters: Some(if self.subject.is_inbox() {
                self.dead()
            } else {
                letters::read(self.ground.kafka().bootstrap(), &self.letters())
            }),
            effects: self.effects(),
            transactional: self.subject.is_transactional(),
            lines: if self.subject.outside { self.claims() } else { Vec::new() },
            inbox: self
                .subject
                .is_inbox()
                .then(|| Stored { accepted: self.count("hapax_inbox"), open: self.left_open() }),
            faults: std::mem::take(&mut self.faults),
            lease: u64::try_from(LEASE.as_micros()).unwrap_or(0),
            one_writer: !self.store.is_server(),
        };
        for path in self.files("journal") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let pid = text.lines().next().and_then(|line| line.rsplit(' ').next()?.parse().ok());
            // Without a first line it never got as far as asking the store.
            if let Some(pid) = pid {
                evidence.lines.extend(judge::read_journal(pid, &text));
            }
        }
        judge::judge(&evidence)
    }

    /// Shows that the judge can tell.
    pub(super) fn sabotage(&self) {
        match self.orders.sabotage {
            Some(Sabotage::Double) => {
                let columns = "id, claim, fence, member, pid, attempt, lane, log_offset";
                self.sql(&format!(
                    "INSERT INTO effect ({columns}, at) SELECT {columns}, at + 1000 FROM effect ORDER BY at LIMIT 1"
                ));
            }
            Some(Sabotage::Remove) => {
                let first = self.sql("SELECT id FROM effect ORDER BY at LIMIT 1");
                self.sql(&format!("DELETE FROM effect WHERE id = '{}'", first[0][0]));
            }
            Some(Sabotage::Reorder) => {
                // The first one of its key comes behind all the others.
                let first = self.sql("SELECT min(nth) FROM effect");
                let last = self.sql("SELECT max(nth) + 1 FROM effect");
                self.sql(&format!("UPDATE effect SET nth = {} WHERE nth = {}", last[0][0], first[0][0]));
            }
            Some(Sabotage::Lose | Sabotage::NoDedup) | None => {}
        }
    }

    pub(super) fn effects(&self) -> Vec<Effect> {
        let rows = self.sql("SELECT id, claim, fence, pid, at, lane, log_offset, nth FROM effect");
        let effect = |row: &[String]| {
            let mut columns = row.iter();
            Some(Effect {
                id: columns.next()?.clone(),
                key: columns.next()?.clone(),
                fence: columns.next()?.parse().ok()?,
                pid: columns.next()?.parse().ok()?,
                at: columns.next()?.parse().ok()?,
                lane: columns.next()?.clone(),
                offset: columns.next()?.parse().ok()?,
                nth: columns.next()?.parse().ok()?,
            })
        };
        rows.iter().map(|row| effect(row).unwrap_or_else(|| panic!("a row of effects: {row:?}"))).collect()
    }

    /// What the inbox has of the runs under which there were effects, as a journal would tell it. Which messages a run finished, the attempts tell: those that
    /// did not succeed are among them.
    fn claims(&self) -> Vec<Line> {
        let runs = self.stored("SELECT run, began, lease, coalesce(ended, 0) FROM hapax_inbox_runs");
        let number = |row: &[String], at: usize| -> Option<u64> { row.get(at)?.parse().ok() };
        let runs: HashMap<u64, [Time; 3]> = runs
            .iter()
            .filter_map(|row| {
                let [run, began, lease, ended] = [0, 1, 2, 3].map(|at| number(row, at));
                Some((run?, [began? * 1000, lease? * 1000, ended? * 1000]))
            })
            .collect();
        // Failed or lost: the message's place tells whose it is.
        let failed = self.stored(&format!(
            "SELECT a.run, m.log_offset, {} FROM hapax_inbox_attempts a JOIN hapax_inbox m ON m.id = a.id",
            self.text_of("m.record_key"),
        ));
        let failed: HashSet<Vec<String>> = failed.into_iter().collect();
        let mut lines = Vec::new();
        for effect in self.effects() {
            let Some([began, lease, ended]) = runs.get(&effect.fence).copied() else { continue };
            let (pid, fence, key) = (effect.pid, effect.fence, || effect.key.clone());
            let length = u64::try_from(LEASE.as_micros()).unwrap_or(0);
            lines.push(Line { at: began, pid, entry: Entry::Claimed { key: key(), fence, asked: began } });
            let asked = lease.saturating_sub(length).max(began);
            lines.push(Line { at: asked, pid, entry: Entry::Extended { key: key(), fence, asked } });
            let failed = failed.contains(&vec![fence.to_string(), effect.offset.to_string(), effect.lane.clone()]);
            if ended > 0 && !failed {
                lines.push(Line {
                    at: ended,
                    pid,
                    entry: Entry::Settled { key: key(), fence, success: true, dead: false },
                });
            }
        }
        lines
    }

    /// A column of bytes, as text.
    fn text_of(&self, column: &str) -> String {
        match self.subject.server {
            "postgres" => format!("convert_from({column}, 'UTF8')"),
            "mariadb" => format!("CONVERT({column} USING utf8mb4)"),
            _ => format!("CAST({column} AS text)"),
        }
    }

    /// The ids of the messages that are dead in the inbox.
    fn dead(&self) -> BTreeSet<String> {
        let text = self.text_of("payload");
        let rows = self.stored(&format!(
            "SELECT {text} FROM hapax_inbox_open o JOIN hapax_inbox m ON m.inbox = o.inbox AND m.id = o.id WHERE o.lot = {DEAD}"
        ));
        let id = |row: &[String]| Some(row.first()?.split('"').nth(3)?.to_owned());
        rows.iter().map(|row| id(row).unwrap_or_else(|| panic!("a payload with an id: {row:?}"))).collect()
    }

    /// Messages in the inbox that are neither done nor dead.
    pub(super) fn left_open(&self) -> usize {
        self.count(&format!("hapax_inbox_open WHERE lot <> {DEAD}"))
    }

    fn count(&self, of: &str) -> usize {
        self.stored(&format!("SELECT count(*) FROM {of}"))[0][0].parse().expect("a number")
    }

    /// In the database that has the effects.
    fn sql(&self, statement: &str) -> Vec<Vec<String>> {
        if self.subject.is_transactional() { self.store.sql(statement) } else { self.ground.sql(statement) }
    }

    /// In the inbox's.
    fn stored(&self, statement: &str) -> Vec<Vec<String>> {
        self.store.sql(statement)
    }

    pub(super) fn files(&self, kind: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.folder).expect("the run's folder can be read");
        files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|own| own == kind)).collect()
    }

    /// Times that partitions came to a member or went from it.
    pub(super) fn rebalances(&self) -> usize {
        let journals = self.files("journal").into_iter().filter_map(|path| fs::read_to_string(path).ok());
        let is_one = |line: &&str| line.split(' ').nth(1).is_some_and(|what| matches!(what, "assigned" | "revoked"));
        journals.map(|journal| journal.lines().filter(is_one).count()).sum()
    }

    /// The dead letter topic.
    pub(super) fn letters(&self) -> String {
        format!("{}.dead", self.topic)
    }

    pub(super) fn print(&self, verdict: &Verdict, drained: Option<Duration>) -> bool {
        let mut complaints = judge::complaints(verdict);
        for broken in &self.broken {
            let _ = writeln!(complaints, "broken: {broken}");
        }
        if drained.is_none() {
            let _ = writeln!(complaints, "what was left after the last fault stayed as much for {DRAIN:?}");
        }
        let good = complaints.is_empty() && verdict.is_good();
        eprint!("{complaints}");
        self.say(&format!("doubled effects by cause: {:?}; given up: {}", verdict.causes, verdict.dead));
        let memory = self.subject.memory.map(|memory| format!(" memory={memory}")).unwrap_or_default();
        let order =
            if self.subject.is_inbox() { format!(" out_of_order={}", verdict.out_of_order) } else { String::new() };
        let Counts { kills, pauses, store_restarts, relay_cuts } = self.counts;
        println!(
            "FAULTS store={} level={}{} kills={kills} pauses={pauses} rebalances={} store_restarts={store_restarts} relay_cuts={relay_cuts} \
             distinct={} effects={} lost={} doubled={} explained={}{order} max_stall_s={:.1} {}",
            self.subject.server,
            self.subject.level(),
            memory,
            self.rebalances(),
            verdict.distinct,
            verdict.effects,
            verdict.lost.len(),
            verdict.doubled,
            verdict.explained,
            verdict.max_stall as f64 / 1e6,
            if good { "OK" } else { "FAILED" }
        );
        good
    }
}
