//! What is done to one message, and to the handler.

use super::act::{New, What};
use super::by::By;
use super::lock::{EDITED, ERASED, Found};
use super::outcome::{Requeued, Skipped, Switched};
use super::sql::{Sql, Values, listed};
use crate::inbox::core::Core;
use crate::inbox::message::MessageId;
use crate::inbox::rules::{Class, Lot, State};
use crate::record::Millis;
use crate::store::StoreError;
use crate::store::sql::Fault;
use crate::transaction::sealed::Sealed;
use crate::transaction::{Committed, Tx};

/// What is to be done to one message.
#[derive(Clone, Copy, Debug)]
enum Deed<'a> {
    Requeue,
    Skip,
    Edit(&'a [u8]),
}

impl Deed<'_> {
    const fn what(&self) -> What {
        match self {
            Self::Requeue => What::Requeue,
            Self::Skip => What::Skip,
            Self::Edit(_) => What::Edit,
        }
    }

    /// A request's id belongs to one payload, not to several.
    fn digest(&self) -> String {
        match self {
            Self::Edit(payload) => {
                let hash = blake3::derive_key("hapax inbox v1 edit", payload);
                format!(" payload={}", hash[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            Self::Requeue | Self::Skip => String::new(),
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
enum Came {
    /// Done, now or under the same request before; in this generation.
    Did(u32),
    /// It is so already.
    Already(u32),
    Held(Millis),
    Succeeded,
    Erased,
    Unknown,
}

impl From<Came> for Requeued {
    fn from(came: Came) -> Self {
        match came {
            Came::Did(generation) => Self::Requeued { generation },
            Came::Already(generation) => Self::Waiting { generation },
            Came::Held(until) => Self::Processing { until },
            Came::Succeeded => Self::Succeeded,
            Came::Erased => Self::Erased,
            Came::Unknown => Self::Unknown,
        }
    }
}

impl From<Came> for Skipped {
    fn from(came: Came) -> Self {
        match came {
            Came::Did(_) => Self::Skipped,
            // What is erased is dead, or succeeded.
            Came::Already(_) | Came::Erased => Self::Dead,
            Came::Held(until) => Self::Processing { until },
            Came::Succeeded => Self::Succeeded,
            Came::Unknown => Self::Unknown,
        }
    }
}

impl<DB: Sealed> Core<DB> {
    pub(super) async fn requeue(&self, id: MessageId, by: &By) -> Result<Requeued, StoreError> {
        Ok(self.deed(id.0, Deed::Requeue, by).await?.into())
    }

    pub(super) async fn skip(&self, id: MessageId, by: &By) -> Result<Skipped, StoreError> {
        Ok(self.deed(id.0, Deed::Skip, by).await?.into())
    }

    pub(super) async fn edit(&self, id: MessageId, payload: &[u8], by: &By) -> Result<Requeued, StoreError> {
        Ok(self.deed(id.0, Deed::Edit(payload), by).await?.into())
    }

    async fn deed(&self, id: i64, deed: Deed<'_>, by: &By) -> Result<Came, StoreError> {
        let handle = self.handle_of(by, deed.what())?;
        let mut asking = self.base.asking(deed.what().operation());
        loop {
            match self.deed_once(id, deed, by, &handle).await {
                Ok(came) => return Ok(came),
                Err(fault) => asking.wait(fault).await?,
            }
        }
    }

    async fn deed_once(&self, id: i64, deed: Deed<'_>, by: &By, handle: &[u8; 16]) -> Result<Came, Fault> {
        let mut tx = self.begin().await?;
        let (came, wrote) = self.deed_in(&mut tx, id, deed, by, handle).await?;
        if !wrote {
            self.rollback(tx).await;
            return Ok(came);
        }
        // Not known to be committed, it is asked again, and finds its own act if there is one.
        self.settled(tx).await.map(|()| came)
    }

    /// Commits. Where it is not known whether it did, that is an error too: what is asked again must be safe to repeat.
    pub(in crate::inbox) async fn settled(&self, tx: Tx<DB>) -> Result<(), Fault> {
        match self.commit(tx).await {
            Committed::Yes => Ok(()),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }

    /// What came of it, and whether anything is to be committed.
    async fn deed_in(
        &self,
        tx: &mut Tx<DB>,
        id: i64,
        deed: Deed<'_>,
        by: &By,
        handle: &[u8; 16],
    ) -> Result<(Came, bool), Fault> {
        let what = deed.what();
        let (now, found) = self.lock(tx, &[id]).await?;
        // Only now: whoever asks for the same at once holds the message's lock until his act is there.
        if let Some(before) = self.done_before(tx, what, Some(id), handle, false).await? {
            let asked = deed.digest();
            if before.word("payload") != asked.strip_prefix(" payload=") {
                return Err(Fault::Refused("this request's id was used with another payload.".into()));
            }
            let generation = before.number_of("generation").and_then(|number| u32::try_from(number).ok());
            return Ok((Came::Did(generation.unwrap_or(0)), false));
        }
        let Some(found) = found.first() else { return Ok((Came::Unknown, false)) };
        let generation = found.standing.generation;
        if found.standing.open.is_none() {
            return Ok((Came::Succeeded, false));
        }
        if let Some(until) = found.until {
            return Ok((Came::Held(until), false));
        }
        if found.form == ERASED {
            return Ok((Came::Erased, false));
        }
        let generation = match deed {
            Deed::Skip => match found.standing.skip(now) {
                Ok(_) => {
                    self.bury(tx, &[found], now, by).await?;
                    generation
                }
                // Neither held nor succeeded.
                Err(_) => return Ok((Came::Already(generation), false)),
            },
            Deed::Requeue => match found.standing.requeue() {
                Ok(_) => self.renew(tx, found).await?,
                Err(_) => return Ok((Came::Already(generation), false)),
            },
            Deed::Edit(payload) => {
                if found.state() == State::Received && self.says(tx, found, payload).await? {
                    return Ok((Came::Already(generation), false));
                }
                let generation = self.renew(tx, found).await?;
                self.write_edit(tx, found, generation, payload, now, by).await?;
                generation
            }
        };
        let detail = format!("generation={generation}{}", deed.digest());
        let new = New { what, id: Some(id), by, handle, now, detail: &detail };
        self.write_act(tx, &new).await?;
        if !matches!(deed, Deed::Skip) {
            self.notify(tx.conn()?).await.map_err(|error| Self::fault(&error))?;
        }
        Ok((Came::Did(generation), true))
    }

    /// Opens the next generation. One that was received keeps its turn; anything else is due at once.
    async fn renew(&self, tx: &mut Tx<DB>, found: &Found) -> Result<u32, Fault> {
        let generation = found.standing.generation.saturating_add(1);
        self.next_generation(tx, &[found]).await?;
        let set = match found.state() {
            State::Received => "generation = generation + 1",
            _ => "generation = generation + 1, lot = 0, turn = priority, attempts = 0",
        };
        self.move_open(tx, &[found], set).await?;
        Ok(generation)
    }

    pub(super) async fn next_generation(&self, tx: &mut Tx<DB>, found: &[&Found]) -> Result<(), Fault> {
        let ids = listed(found.iter().map(|found| found.id));
        let text = format!("UPDATE {} SET generation = generation + 1 WHERE id IN ({ids})", self.tables.messages);
        let changed = self.alter(tx, text).await?;
        match changed == found.len() as u64 {
            true => Ok(()),
            false => Err(Fault::Contended("a message was purged meanwhile.".into())),
        }
    }

    /// Gives up messages that are open and in nobody's hands, and says in their history who did it.
    pub(super) async fn bury(&self, tx: &mut Tx<DB>, found: &[&Found], now: Millis, by: &By) -> Result<(), Fault> {
        self.move_open(tx, found, &format!("lot = {}, turn = {now}", Lot::Dead.code())).await?;
        for some in found.chunks(64) {
            let ids = listed(some.iter().map(|found| found.id));
            let mut values = Values::default();
            let who = values.text::<DB::Dialect>(by.who());
            let why = values.text::<DB::Dialect>(by.why());
            let (attempts, messages) = (&self.tables.attempts, &self.tables.messages);
            // An attempt of nobody's, behind those that were made.
            let text = format!(
                "INSERT INTO {attempts} (id, generation, attempt, inbox, run, began, ended, class, owner, text) \
                 SELECT m.id, m.generation, COALESCE(MAX(a.attempt), 0) + 1, m.inbox, 0, {now}, {now}, {}, {who}, {why} \
                 FROM {messages} m LEFT JOIN {attempts} a ON a.id = m.id AND a.generation = m.generation \
                 WHERE m.id IN ({ids}) GROUP BY m.id, m.generation, m.inbox",
                Class::Skipped.code(),
            );
            self.alter(tx, values.into(text)).await?;
        }
        let lanes: Vec<i64> = found.iter().map(|found| found.lane).collect();
        self.wake_lanes(tx.conn()?, &lanes).await.map(drop)
    }

    /// Whether this is what stands in the place of the message's payload.
    async fn says(&self, tx: &mut Tx<DB>, found: &Found, payload: &[u8]) -> Result<bool, Fault> {
        let (edits, id) = (&self.tables.edits, found.id);
        let text = format!("SELECT payload FROM {edits} WHERE id = {id} ORDER BY generation DESC LIMIT 1");
        let Some(mut row) = self.look(tx, text).await?.pop() else { return Ok(false) };
        Ok(row.maybe_bytes()?.as_deref() == Some(payload))
    }

    async fn write_edit(
        &self,
        tx: &mut Tx<DB>,
        found: &Found,
        generation: u32,
        payload: &[u8],
        now: Millis,
        by: &By,
    ) -> Result<(), Fault> {
        let mut values = Values::default();
        let who = values.text::<DB::Dialect>(by.who());
        let why = values.text::<DB::Dialect>(by.why());
        let payload = values.bytes::<DB::Dialect>(Some(payload));
        let text = format!(
            "INSERT INTO {} (id, generation, inbox, time, who, why, payload) \
             VALUES ({}, {generation}, {}, {now}, {who}, {why}, {payload})",
            self.tables.edits, found.id, self.number,
        );
        self.alter(tx, values.into(text)).await?;
        let text = format!("UPDATE {} SET form = {EDITED} WHERE id = {}", self.tables.messages, found.id);
        self.alter(tx, text).await.map(drop)
    }

    /// Pauses or resumes the handler.
    pub(super) async fn switch(&self, pause: bool, by: &By) -> Result<Switched, StoreError> {
        let what = if pause { What::Pause } else { What::Resume };
        let handle = self.handle_of(by, what)?;
        let mut asking = self.base.asking(what.operation());
        loop {
            match self.switch_once(pause, what, by, &handle).await {
                Ok(switched) => return Ok(switched),
                Err(fault) => asking.wait(fault).await?,
            }
        }
    }

    async fn switch_once(&self, pause: bool, what: What, by: &By, handle: &[u8; 16]) -> Result<Switched, Fault> {
        let mut tx = self.begin().await?;
        let (handlers, inbox, lock) = (&self.tables.handlers, self.number, DB::Dialect::LOCK);
        let text = format!("SELECT paused, {} FROM {handlers} WHERE inbox = {inbox}{lock}", self.clock());
        let Some(mut row) = self.look(&mut tx, text).await?.pop() else {
            return Err(Fault::Corrupt("the inbox's own row is gone.".into()));
        };
        let (paused, now) = (row.int()? != 0, row.int()?);
        let before = self.done_before(&mut tx, what, None, handle, false).await?;
        if before.is_some() || paused == pause {
            self.rollback(tx).await;
            return Ok(if before.is_some() { Switched::Switched } else { Switched::Already });
        }
        let text = format!("UPDATE {handlers} SET paused = {} WHERE inbox = {inbox}", i32::from(pause));
        self.alter(&mut tx, text).await?;
        self.write_act(&mut tx, &New { what, id: None, by, handle, now, detail: "" }).await?;
        if !pause {
            self.notify(tx.conn()?).await.map_err(|error| Self::fault(&error))?;
        }
        self.settled(tx).await.map(|()| Switched::Switched)
    }
}
