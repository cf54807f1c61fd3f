//! Records inside a transaction, by the statements and rules of the store.

use std::num::NonZeroU32;
use std::time::Duration;

use super::core::Core;
use super::link::{Tx, sorted};
use super::sealed::Sealed;
use crate::identity::Key;
use crate::record::{self, ClaimOutcome, Fence, Millis, Record, Sighting, State, Terms, Token};
use crate::store::cells::{Change, Ending};
use crate::store::sql::{Call, Dialect, Fault, Statement, Values, Write};

/// What a record says of a message.
#[derive(Clone, Debug)]
pub(super) enum Said {
    /// Remembered as succeeded, in this transaction: to be handled.
    Ours { token: Token, attempt: u32 },
    /// Not to be handled now.
    Not(ClaimOutcome),
}

impl<DB: Sealed> Core<DB> {
    async fn write(&self, tx: &mut Tx<DB>, write: Write<'_>, brief: bool) -> Result<u64, Fault> {
        let mut count = 0;
        let mut rest = write;
        while rest.len() > 0 {
            let (take, size) = DB::Dialect::step(rest.len());
            let (now, later) = rest.split(take);
            rest = later;
            let values = now.values();
            let size = DB::Dialect::shape(&values, size);
            let statement = now.statement();
            // An insert has but one plan. One that joins may have a bad one by the time the table has grown.
            let keep = matches!(statement, Statement::Remember | Statement::Create);
            let call = Call { statement, text: self.text(statement, size, brief), values: &values, size, keep };
            let written = DB::DIALECT.execute(tx.conn()?, call).await;
            count += written.map_err(|error| sorted::<DB::Dialect>(&error))?;
        }
        Ok(count)
    }

    fn text(&self, statement: Statement, size: usize, brief: bool) -> std::sync::Arc<str> {
        let [usual, short] = &self.texts;
        let texts = if brief { short } else { usual };
        texts.get(&DB::DIALECT, &self.settings.records, self.patience(brief), statement, size)
    }

    /// Remembers messages as succeeded where nothing stands; says how many.
    pub(super) async fn remember(&self, tx: &mut Tx<DB>, sightings: &[&Sighting], brief: bool) -> Result<u64, Fault> {
        let owner = tx.owner;
        self.write(tx, Write::Remember { owner, sightings }, brief).await
    }

    /// The records of these keys, which ascend, and the clock.
    pub(super) async fn read(
        &self,
        tx: &mut Tx<DB>,
        keys: &[Key],
        brief: bool,
    ) -> Result<(Millis, Vec<Option<Record>>), Fault> {
        let mut records = vec![None; keys.len()];
        let (mut now, mut done) = (0, 0);
        while done < keys.len() {
            let (take, size) = DB::Dialect::step(keys.len() - done);
            let some = &keys[done..done + take];
            let values = Values::rows(some.len()).keys(some);
            let size = DB::Dialect::shape(&values, size);
            let text = self.text(Statement::Read, size, brief);
            let call = Call { statement: Statement::Read, text, values: &values, size, keep: false };
            let reading = DB::DIALECT.fetch(tx.conn()?, call).await;
            let Some(reading) = reading.map_err(|error| sorted::<DB::Dialect>(&error))? else {
                return Err(Fault::Corrupt(
                    "a row does not hold what this crate writes. Run check() to see what is wrong.".into(),
                ));
            };
            now = reading.now;
            for (key, record) in reading.records {
                if let Ok(place) = some.binary_search(&key) {
                    records[done + place] = Some(record);
                }
            }
            done += take;
        }
        Ok((now, records))
    }

    /// Remembers messages as succeeded, where that may be: they are new, or failed and due. Answers for each, in order; keys ascend.
    pub(super) async fn admit(
        &self,
        tx: &mut Tx<DB>,
        sightings: &[&Sighting],
        max_attempts: NonZeroU32,
        brief: bool,
    ) -> Result<Vec<Said>, Fault> {
        let owner = tx.owner;
        let fresh = Said::Ours { token: Token { owner, fence: Fence::FIRST }, attempt: 1 };
        if self.remember(tx, sightings, brief).await? == sightings.len() as u64 {
            return Ok(vec![fresh; sightings.len()]);
        }
        let keys: Vec<Key> = sightings.iter().map(|sighting| sighting.key).collect();
        let (now, records) = self.read(tx, &keys, brief).await?;
        // Claimed for no time at all, and settled in the same breath.
        let terms = Terms { owner, lease: Duration::ZERO, max_attempts };
        let mut said = Vec::with_capacity(sightings.len());
        let mut changes = Vec::new();
        for (sighting, record) in sightings.iter().zip(&records) {
            let Some(record) = record else {
                // It was there a moment ago, and was purged.
                return Err(Fault::Contended("a record was purged meanwhile.".into()));
            };
            if record.owner == owner {
                said.push(fresh.clone());
                continue;
            }
            let step = record::claim(Some(record), sighting, &terms, now);
            if let Some(mut after) = step.write {
                if let ClaimOutcome::Acquired(_) = step.outcome {
                    after.state = State::Succeeded { at: now, late: false };
                }
                changes.push(Change { key: sighting.key, before: Some(record.stamp()), after, now });
            }
            said.push(match step.outcome {
                ClaimOutcome::Acquired(grant) => Said::Ours { token: grant.token, attempt: grant.attempt },
                other => Said::Not(other),
            });
        }
        self.swap(tx, &changes, brief).await?;
        Ok(said)
    }

    /// Writes changes, all or none.
    pub(super) async fn swap(&self, tx: &mut Tx<DB>, changes: &[Change], brief: bool) -> Result<(), Fault> {
        let (update, create): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|change| change.before.is_some());
        let written = self.write(tx, Write::Update(&update), brief).await?
            + self.write(tx, Write::Create(&create), brief).await?;
        match written == changes.len() as u64 {
            true => Ok(()),
            false => Err(Fault::Contended("others moved the same records.".into())),
        }
    }

    /// Takes back what this transaction remembered; says how many of these there were.
    pub(super) async fn take_back(&self, tx: &mut Tx<DB>, endings: &mut [Ending], brief: bool) -> Result<u64, Fault> {
        endings.sort_unstable_by_key(|ending| ending.key);
        let endings: Vec<&Ending> = endings.iter().collect();
        self.write(tx, Write::Unremember(&endings), brief).await
    }
}

/// How a message that was remembered did not succeed after all. Without `attempts` of its own it was never begun.
pub(super) fn ending(sighting: &Sighting, token: Token, attempts: u32, state: State) -> Ending {
    Ending {
        key: sighting.key,
        fingerprint: sighting.fingerprint,
        token,
        code: state.code(),
        delay: state.time(),
        attempts,
        result: None,
    }
}
