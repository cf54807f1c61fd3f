//! What is to be handled of a batch: what windows and records say, asked inside its transaction.

use std::collections::HashMap;
use std::time::Duration;

use super::core::Core;
use super::dialect::{Row, Source, Transact};
use super::link::{Tx, sorted};
use super::outcome::{Known, Spot, Work};
use super::records::Said;
use super::sealed::Sealed;
use super::trial::{Batch, Rules, Trial};
use super::windows::Verdict;
use crate::record::{ClaimOutcome, Sighting, Token};
use crate::store::sql::Fault;
use crate::window::{Sequenced, Sequences};
use crate::wrapper::OnConflict;

/// A message that may be handled.
pub(super) struct Ready {
    pub(super) token: Option<Token>,
    pub(super) attempt: u32,
}

/// What is to become of a message.
pub(super) enum Plan {
    Ready(Ready),
    Known(Known),
    Fenced,
}

/// Windows of producers, locked for this transaction.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) rows: HashMap<Source, (Row, Sequences, bool)>,
}

/// A message that is new to its window, or was tried before. A record knows better, if it has one.
fn tried(attempt: u32, rules: Rules) -> Plan {
    match attempt > rules.retry.max_attempts().get() {
        true => Plan::Known(Known::Dead { attempts: attempt - 1 }),
        false => Plan::Ready(Ready { token: None, attempt }),
    }
}

impl<DB: Sealed, W: Work<DB>> Trial<'_, DB, W> {
    /// Finds out what is to be handled, and remembers it.
    pub(super) async fn plan(&mut self, batch: &Batch<'_, W::Error>, places: &[usize]) -> Result<Vec<Plan>, Fault> {
        self.lock_sources(batch, places).await?;
        let mut plans = Vec::with_capacity(places.len());
        let mut asked: Vec<(usize, &Sighting)> = Vec::new();
        let verdicts = batch.held.look(batch.items, places);
        for (number, (&at, verdict)) in places.iter().zip(verdicts).enumerate() {
            let item = &batch.items[at];
            let mut attempt = item.attempt;
            let plan = match (&item.spot, verdict) {
                (_, Some(Verdict::Fenced)) => Plan::Fenced,
                (_, Some(Verdict::Finished)) => Plan::Known(Known::Redelivered(None)),
                (_, Some(Verdict::New { attempts })) => {
                    attempt = attempts.saturating_add(1);
                    tried(attempt, batch.rules)
                }
                (Some(Spot::Sequence { source, number, .. }), None) => match self.sources.look(source, *number) {
                    Sequenced::Seen => Plan::Known(Known::SameId(None)),
                    Sequenced::TooOld if self.core.settings.on_too_old != OnConflict::Handle => {
                        Plan::Known(Known::TooOld)
                    }
                    Sequenced::TooOld => Plan::Ready(Ready { token: None, attempt }),
                    Sequenced::New { attempts } => tried(attempts.saturating_add(1), batch.rules),
                },
                (Some(Spot::Position) | None, None) => Plan::Ready(Ready { token: None, attempt }),
            };
            if let (Plan::Ready(_), Some(sighting)) = (&plan, &item.record) {
                asked.push((number, sighting));
            }
            plans.push(plan);
        }
        if asked.is_empty() {
            return Ok(plans);
        }
        asked.sort_unstable_by_key(|(_, sighting)| sighting.key);
        let sightings: Vec<&Sighting> = asked.iter().map(|(_, sighting)| *sighting).collect();
        let said = self.core.admit(&mut self.tx, &sightings, batch.rules.retry.max_attempts(), self.brief).await?;
        for ((number, sighting), said) in asked.into_iter().zip(said) {
            let Some(plan) = plans.get_mut(number) else { continue };
            *plan = match said {
                Said::Ours { token, attempt } => {
                    self.wrote.records.push((sighting.clone(), token, attempt - 1));
                    Plan::Ready(Ready { token: Some(token), attempt })
                }
                Said::Not(ClaimOutcome::Conflict { .. }) if self.core.settings.on_conflict == OnConflict::Handle => {
                    self.core.counters.conflicts.one();
                    // Its window counts its attempts, if it has one.
                    match plan {
                        Plan::Ready(Ready { attempt, .. }) => Plan::Ready(Ready { token: None, attempt: *attempt }),
                        _ => continue,
                    }
                }
                Said::Not(said) => Plan::Known(known(said, sighting)),
            };
        }
        Ok(plans)
    }

    /// Locks the rows of the producers' sources, so that their numbers are decided one batch after the other.
    async fn lock_sources(&mut self, batch: &Batch<'_, W::Error>, places: &[usize]) -> Result<(), Fault> {
        let mut spans: Vec<(Source, u32)> = Vec::new();
        for &at in places {
            if let Some(Spot::Sequence { source, span, .. }) = &batch.items[at].spot {
                spans.push((*source, *span));
            }
        }
        if spans.is_empty() {
            return Ok(());
        }
        spans.sort_unstable();
        spans.dedup_by_key(|(source, _)| *source);
        let windows = self.core.lock_windows(&mut self.tx, &spans).await?;
        self.sources.rows.extend(windows.into_iter().map(|(row, window)| (row.source, (row, window, false))));
        Ok(())
    }
}

impl<DB: Sealed> Core<DB> {
    /// Locks the windows of producers' sources, with the spans that they are to have, until the transaction ends; makes those that are missing.
    pub(super) async fn lock_windows(
        &self,
        tx: &mut Tx<DB>,
        spans: &[(Source, u32)],
    ) -> Result<Vec<(Row, Sequences)>, Fault> {
        let sources: Vec<Source> = spans.iter().map(|(source, _)| *source).collect();
        let table = &self.settings.windows;
        let fault = |error: sqlx::Error| sorted::<DB::Dialect>(&error);
        let mut rows = DB::DIALECT.load(tx.conn()?, table, &sources).await.map_err(fault)?;
        if rows.len() < sources.len() {
            DB::DIALECT.plant(tx.conn()?, table, &sources).await.map_err(fault)?;
            rows = DB::DIALECT.load(tx.conn()?, table, &sources).await.map_err(fault)?;
        }
        let mut windows = Vec::with_capacity(rows.len());
        for row in rows {
            let span =
                spans.iter().find(|(source, _)| *source == row.source).map_or(Sequences::SPAN, |(_, span)| *span);
            let window = Sequences::restore(span, &row.state).map_err(|error| Fault::Corrupt(error.to_string()))?;
            windows.push((row, window));
        }
        Ok(windows)
    }
}

impl Sources {
    fn look(&self, source: &Source, number: u64) -> Sequenced {
        self.rows.get(source).map_or(Sequenced::TooOld, |(_, window, _)| window.look(number))
    }
}

/// What the record says.
fn known(said: ClaimOutcome, sighting: &Sighting) -> Known {
    match said {
        ClaimOutcome::Duplicate { first, .. } if first.origin == sighting.origin => Known::Redelivered(Some(first)),
        ClaimOutcome::Duplicate { first, .. } => Known::SameId(Some(first)),
        ClaimOutcome::InFlight { remaining } => Known::InFlight { remaining },
        ClaimOutcome::NotDue { remaining } => Known::NotDue { remaining },
        ClaimOutcome::Dead { attempts } => Known::Dead { attempts },
        ClaimOutcome::Conflict { first } => Known::Conflict { first },
        ClaimOutcome::Acquired(_) => Known::InFlight { remaining: Duration::ZERO },
    }
}
