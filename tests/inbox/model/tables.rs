//! The same calls on real tables, whose rows are read by a connection of the test's own.

use std::collections::BTreeMap;

use hapax::Inbox;
use hapax::inbox::bare::Held;
use hapax::inbox::rules::{Lot, NOBODY, Open, State};
use hapax::inbox::{Accepted, By, MessageId, Requeued, Skipped, Switched, Which};
use hapax::store::Retention;
use proptest::prelude::*;
use proptest::sample::Index;

use super::pure::{DUE, HOUR, One, Pure, RETRY, not_before, priority};
use super::{Call, Checked, How, Some as Meant};
use crate::base::Base;
use crate::operate_desk::big;
use crate::support::unique;
use crate::world::{World, message};

/// Waiting rows from here on wait behind their lane, which the rules call ready.
const FAR: i64 = 1 << 62;

fn by() -> By {
    By::new("ada", "a model")
}

pub struct Tables<DB: Base> {
    inboxes: [Inbox<DB>; 2],
    conn: DB::Connection,
    prefix: String,
    number: i64,
    pure: Pure,
    runs: Vec<Held>,
    /// The keys of what was produced, by identity.
    produced: Vec<u8>,
    /// The next offset.
    next: i64,
    /// Ids that were given, and which of them are nobody's any more.
    ever: Vec<i64>,
}

impl<DB: Base> Tables<DB> {
    pub async fn open(world: &World<DB>, by_key: bool) -> Self {
        let handler = unique("h");
        let nothing = Retention::default().succeeded(std::time::Duration::ZERO).dead(std::time::Duration::ZERO);
        let build = async || {
            let builder = world.builder().scope("model", &handler).with_retention(nothing);
            let builder = builder.priority(|message| priority(message.offset()));
            builder.not_before(|message| not_before(message.offset())).build().await.unwrap()
        };
        let inboxes = [build().await, build().await];
        let mut conn = world.session().await;
        let text = format!("SELECT CAST(MAX(inbox) AS {}) FROM {}", big::<DB>(), world.table("_handlers"));
        let number = DB::number(&mut conn, &text).await.unwrap();
        let (prefix, pure) = (world.prefix.clone(), Pure::new(by_key));
        let (runs, produced, ever) = (Vec::new(), Vec::new(), Vec::new());
        Self { inboxes, conn, prefix, number, pure, runs, produced, next: 0, ever }
    }

    fn process(&self, who: bool) -> &Inbox<DB> {
        &self.inboxes[usize::from(who)]
    }

    async fn run(&mut self, text: &str) {
        DB::run(&mut self.conn, text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
    }

    /// Columns of a table's rows, by the first of them, in one statement.
    async fn rows(&mut self, end: &str, columns: &[&str]) -> BTreeMap<i64, Vec<i64>> {
        let (table, inbox, big) = (format!("{}{end}", self.prefix), self.number, big::<DB>());
        let first = columns[0];
        let column = |(place, name): (usize, &&str)| {
            format!(
                "SELECT {first} AS k, {place} AS place, CAST({name} AS {big}) AS v FROM {table} WHERE inbox = {inbox}"
            )
        };
        let all: Vec<String> = columns.iter().enumerate().map(column).collect();
        let text = format!("SELECT v FROM ({}) AS cells ORDER BY k, place", all.join(" UNION ALL "));
        let cells = DB::numbers(&mut self.conn, &text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
        cells.chunks(columns.len()).map(|row| (row[0], row[1..].to_vec())).collect()
    }

    /// All rows are what the rules say.
    pub async fn compare(&mut self, after: &Call) -> Checked {
        let wide = self.rows("", &["id", "generation", "form"]).await;
        let form = |one: &One| match (one.erased, &one.edited) {
            (true, _) => 2,
            (false, Some(_)) => 3,
            (false, None) => 0,
        };
        let rows = |(id, one): (&i64, &One)| (*id, vec![i64::from(one.standing.generation), form(one)]);
        let want: BTreeMap<i64, Vec<i64>> = self.pure.messages.iter().map(rows).collect();
        prop_assert_eq!(wide, want, "messages, their generations and forms after {:?}", after);

        let columns = ["id", "lot", "turn", "priority", "attempts", "alone", "run", "generation"];
        let mut rows = self.rows("_open", &columns).await;
        for (id, one) in &self.pure.messages {
            let is = rows.remove(id).map(|row| {
                let behind = row[0] == 1 && row[1] >= FAR;
                let lot = if behind { Lot::Ready } else { Lot::from_code(row[0] as i16).unwrap() };
                let rank = match lot {
                    Lot::Ready if behind => row[2],
                    Lot::Ready => row[1],
                    Lot::Waiting | Lot::Dead => 0,
                };
                assert_eq!(row[6], i64::from(one.standing.generation), "both rows of a message know its generation");
                Open { lot, rank, priority: row[2] as i16, attempts: row[3] as u32, alone: row[4] != 0, run: row[5] }
            });
            prop_assert_eq!(is, self.pure.open(*id), "message {} after {:?}", id, after);
        }
        prop_assert!(rows.is_empty(), "open rows of messages that are not there: {rows:?} after {after:?}");

        let runs = self.rows("_runs", &["run", "CASE WHEN ended IS NULL THEN 0 ELSE 1 END"]).await;
        let stands = self.pure.runs.iter().filter(|run| !run.forgotten);
        let want: BTreeMap<i64, Vec<i64>> = stands.map(|run| (run.number, vec![i64::from(run.ended)])).collect();
        prop_assert_eq!(runs, want, "runs, and whether they ended, after {:?}", after);

        let base = self.number << 40;
        let key = format!("(id - {base}) * 10000 + generation * 100 + attempt");
        let attempts = self.rows("_attempts", &[&key, "class"]).await;
        let key = |(id, generation, attempt): &(i64, u32, u32)| {
            (id - base) * 10_000 + i64::from(*generation) * 100 + i64::from(*attempt)
        };
        let want: BTreeMap<i64, Vec<i64>> =
            self.pure.attempts.iter().map(|(at, class)| (key(at), vec![i64::from(class.code())])).collect();
        prop_assert_eq!(attempts, want, "attempts and their classes after {:?}", after);
        Ok(())
    }

    /// What operators are told at the end.
    pub async fn look_over(&mut self) -> Checked {
        let inbox = &self.inboxes[1];
        let census = inbox.census().await.unwrap();
        let told = [census.received, census.processing, census.failed, census.succeeded, census.dead];
        for (state, told) in State::ALL.into_iter().zip(told) {
            let of = self.pure.messages.iter().filter(|(_, one)| one.standing.state() == state);
            let want: Vec<i64> = of.map(|(id, _)| *id).collect();
            let listed = inbox.list(state).limit(1_000).await.unwrap();
            prop_assert_eq!(listed.iter().map(|message| message.id.0).collect::<Vec<_>>(), want, "{}", state);
            prop_assert_eq!(told, listed.len() as u64, "{}", state);
        }
        Ok(())
    }

    pub async fn go(&mut self, call: &Call) -> Checked {
        match call {
            Call::Accept(lanes) => {
                let first = self.produced.len();
                self.produced.extend(lanes);
                self.accept(&(first..self.produced.len()).collect::<Vec<_>>()).await
            }
            Call::Again(which) if !self.produced.is_empty() => {
                self.accept(&which.iter().map(|which| which.index(self.produced.len())).collect::<Vec<_>>()).await
            }
            Call::Take { who, most, inside } => self.take(*who, *most, *inside).await,
            Call::End { who, run, inside, how } if !self.runs.is_empty() => {
                self.end(*who, run.index(self.runs.len()), *inside, how).await
            }
            Call::Sweep { who, run } if !self.runs.is_empty() => self.sweep(*who, run.index(self.runs.len())).await,
            Call::Due => {
                let (prefix, number) = (&self.prefix, self.number);
                let text = format!(
                    "UPDATE {prefix}_open SET turn = {DUE} WHERE inbox = {number} AND lot = 1 AND turn < {FAR}"
                );
                self.run(&text).await;
                self.pure.due();
                Ok(())
            }
            Call::Forget { who } => {
                let purged = self.process(*who).purge(10_000).await.unwrap();
                prop_assert_eq!((purged.removed, purged.more), (self.pure.forget(), false));
                Ok(())
            }
            Call::Requeue(which) => self.requeue(which, None).await,
            Call::Edit(which, payload) => self.requeue(which, Some(&format!("edited {payload}"))).await,
            Call::Skip(which) => self.skip(which).await,
            Call::Replay(some) => {
                let said = self.inboxes[0].replay(self.meant(some), by()).await.unwrap();
                let want = self.pure.replay(&self.which(some));
                prop_assert_eq!(
                    (said.replayed, said.open, said.erased),
                    (want.done, want.open + want.held, want.erased)
                );
                Ok(())
            }
            Call::Erase(some) => {
                let said = self.inboxes[0].erase(self.meant(some), by()).await.unwrap();
                let want = self.pure.erase(&self.which(some));
                prop_assert_eq!((said.erased, said.buried, said.processing), (want.done, want.buried, want.held));
                Ok(())
            }
            Call::Purge(some) => {
                let said = self.inboxes[1].purge_these(self.meant(some), by()).await.unwrap();
                let want = self.pure.purge(&self.which(some));
                prop_assert_eq!((said.removed, said.open), (want.done, want.open));
                Ok(())
            }
            Call::Pause(paused) => {
                let inbox = self.process(*paused);
                let said = if *paused { inbox.pause(by()).await } else { inbox.resume(by()).await };
                let want = if *paused == self.pure.paused { Switched::Already } else { Switched::Switched };
                prop_assert_eq!(said.unwrap(), want);
                self.pure.paused = *paused;
                Ok(())
            }
            Call::Again(_) | Call::End { .. } | Call::Sweep { .. } => Ok(()),
        }
    }

    /// These identities come, each at an offset of its own.
    async fn accept(&mut self, identities: &[usize]) -> Checked {
        let mut batch = Vec::new();
        for identity in identities {
            let (number, lane) = (i64::try_from(*identity).unwrap(), self.produced[*identity]);
            batch.push(message(number, &format!("k{lane}"), 0, self.next));
            self.next += 1;
        }
        let first = self.next - i64::try_from(batch.len()).unwrap();
        let ended = self.inboxes[0].accept_batch(&batch).await;
        for ((identity, offset), outcome) in identities.iter().zip(first..).zip(&ended.outcomes) {
            let payload = format!("order {identity}");
            let stands = self.pure.messages.iter().find(|(_, one)| one.payload == payload).map(|(id, _)| *id);
            match (outcome, stands) {
                (Ok(Accepted::New(id)), None) => {
                    prop_assert!(self.ever.last().is_none_or(|last| *last < id.0), "ids ascend");
                    self.ever.push(id.0);
                    self.pure.messages.insert(id.0, One::accepted(self.produced[*identity], offset, payload));
                }
                // Erased or not: it is known.
                (Ok(Accepted::Duplicate(id)), Some(stands)) => prop_assert_eq!(id.0, stands),
                (outcome, stands) => prop_assert!(false, "{outcome:?}, and {stands:?} stands"),
            }
        }
        prop_assert_eq!(ended.commits[0].offset, self.next);
        Ok(())
    }

    async fn take(&mut self, who: bool, most: usize, inside: bool) -> Checked {
        let want = self.pure.choose(most);
        let run = self.process(who).bare_take(most, self.pure.by_key, inside, HOUR).await.unwrap();
        let taken: Vec<_> = run.iter().flat_map(Held::taken).collect();
        prop_assert_eq!(taken.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), want.clone(), "what is taken");
        let Some(run) = run else { return Ok(()) };
        prop_assert_eq!(taken, self.pure.took(run.number(), inside, &want));
        for (id, payload) in want.iter().zip(run.payloads()) {
            let one = &self.pure.messages[id];
            let want = one.edited.as_ref().unwrap_or(&one.payload);
            prop_assert_eq!(payload, Some(want.as_bytes()), "the payload of {}", id);
        }
        self.runs.push(run);
        Ok(())
    }

    async fn end(&mut self, who: bool, at: usize, inside: bool, how: &[How]) -> Checked {
        let ends = self.pure.ends(at, how, inside);
        let run = &self.runs[at];
        if inside {
            let done = self.process(who).bare_finish(run, &ends).await.unwrap();
            prop_assert_eq!(done, self.pure.finish(at, &ends));
        } else if !ends.is_empty() {
            // What is not said stays in the run's hands.
            let last = ends.len() == self.pure.runs[at].taken.len();
            let wrote = self.process(who).bare_conclude(run, &ends, last).await.unwrap();
            prop_assert_eq!(wrote, self.pure.conclude(at, &ends, last), "of {:?}", ends);
        }
        Ok(())
    }

    async fn sweep(&mut self, who: bool, at: usize) -> Checked {
        let (number, prefix) = (self.runs[at].number(), &self.prefix);
        self.run(&format!("UPDATE {prefix}_runs SET lease = 1 WHERE run = {number} AND ended IS NULL")).await;
        let swept = self.process(who).bare_sweep(&RETRY).await.unwrap();
        prop_assert_eq!(swept, self.pure.sweep(at), "what is lost of run {}", number);
        Ok(())
    }

    /// One of all ids there ever were.
    fn one(&self, which: &Index) -> i64 {
        if self.ever.is_empty() { NOBODY } else { self.ever[which.index(self.ever.len())] }
    }

    async fn requeue(&mut self, which: &Index, payload: Option<&str>) -> Checked {
        let id = self.one(which);
        let said = match payload {
            Some(payload) => self.inboxes[1].edit_and_requeue(MessageId(id), payload, by()).await,
            None => self.inboxes[1].requeue(MessageId(id), by()).await,
        };
        let said = match said.unwrap() {
            Requeued::Processing { .. } => Requeued::Processing { until: 0 },
            said => said,
        };
        prop_assert_eq!(said, self.pure.requeue(id, payload), "of {}", id);
        Ok(())
    }

    async fn skip(&mut self, which: &Index) -> Checked {
        let id = self.one(which);
        let said = match self.inboxes[0].skip(MessageId(id), by()).await.unwrap() {
            Skipped::Processing { .. } => Skipped::Processing { until: 0 },
            said => said,
        };
        prop_assert_eq!(said, self.pure.skip(id), "of {}", id);
        Ok(())
    }

    fn offsets(&self, from: &Index, many: i64) -> std::ops::RangeInclusive<i64> {
        let from = from.index(usize::try_from(self.next).unwrap() + 1) as i64;
        from..=from + many
    }

    /// What an operator asks for.
    fn meant(&self, some: &Meant) -> Which {
        match some {
            Meant::Lane(lane) => Which::keys([format!("k{lane}")]),
            Meant::Offsets(from, many) => Which::topic("orders").offsets(0, self.offsets(from, *many)),
        }
    }

    /// Which messages that is. What was erased has no key any more.
    fn which(&self, some: &Meant) -> Vec<i64> {
        let is = |one: &One| match some {
            Meant::Lane(lane) => one.lane == *lane && !one.erased,
            Meant::Offsets(from, many) => self.offsets(from, *many).contains(&one.offset),
        };
        self.pure.messages.iter().filter(|(_, one)| is(one)).map(|(id, _)| *id).collect()
    }
}
