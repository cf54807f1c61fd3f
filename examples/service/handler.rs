//! What is done with a message: the part that is yours.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hapax::message::MessageView;
use hapax::{Claim, Message, inbox};

use crate::args::Work;
use crate::effects::{Effect, Effects, Table, WorkError};
use crate::injection::Wrong;

#[derive(Clone)]
pub struct Handler {
    work: Arc<Work>,
    member: Arc<str>,
    /// Effects of this process.
    done: Arc<AtomicU64>,
    /// How often which message went wrong in this process: in a transaction there is no claim that tells the attempt.
    wrong: Arc<Mutex<HashMap<String, u32>>>,
}

impl Handler {
    pub fn new(work: Work, member: &str) -> Self {
        Self { work: Arc::new(work), member: member.into(), done: Arc::default(), wrong: Arc::default() }
    }

    /// The effect in a database of its own: levels L0 and L1.
    pub async fn handle(&self, message: &Message, claim: &Claim, effects: &Effects) -> Result<(), WorkError> {
        let effect = effect(message, claim);
        self.goes_wrong(&effect.id, claim.attempt())?;
        self.handle_effect(&effect, effects).await
    }

    /// The effect in the transaction that hapax commits together with what it remembers: level L2.
    pub async fn handle_in(&self, message: &Message, transaction: &mut impl Table) -> Result<(), WorkError> {
        let id = id(message);
        let attempt = self.attempt(&id, false);
        if let Err(wrong) = self.goes_wrong(&id, attempt) {
            self.attempt(&id, true);
            return Err(wrong);
        }
        self.work_in(message, attempt, transaction).await
    }

    /// The same with a message out of the inbox, which knows its attempt.
    pub async fn handle_stored(&self, message: &inbox::Message, transaction: &mut impl Table) -> Result<(), WorkError> {
        self.goes_wrong(&id(message), message.attempt())?;
        self.work_in(message, message.attempt(), transaction).await
    }

    /// The same, with the effect in a database of its own: level L1.
    pub async fn handle_outside(
        &self,
        message: &inbox::Message,
        claim: &Claim,
        effects: &Effects,
    ) -> Result<(), WorkError> {
        let effect = effect(message, claim);
        self.goes_wrong(&effect.id, claim.attempt())?;
        self.handle_effect(&effect, effects).await
    }

    async fn handle_effect(&self, effect: &Effect, effects: &Effects) -> Result<(), WorkError> {
        self.half_of_the_delay().await;
        effects.insert(effect, &self.member).await?;
        self.done().await
    }

    async fn work_in(
        &self,
        message: &(impl MessageView + Sync),
        attempt: u32,
        transaction: &mut impl Table,
    ) -> Result<(), WorkError> {
        self.half_of_the_delay().await;
        let (id, lane, offset) = (id(message), lane(message.key()), message.offset());
        let effect = Effect { claim: id.clone(), id, fence: 0, attempt: i64::from(attempt), lane, offset };
        transaction.insert(&effect, &self.member).await.map_err(WorkError::Effects)?;
        self.done().await
    }

    fn goes_wrong(&self, id: &str, attempt: u32) -> Result<(), WorkError> {
        match self.work.injection.of(id, attempt) {
            Some(Wrong::Fails) => Err(WorkError::Injected),
            Some(Wrong::NeverSucceeds) => Err(WorkError::Hopeless),
            Some(Wrong::Panics) => {
                self.attempt(id, true);
                panic!("this attempt panics on purpose")
            }
            None => Ok(()),
        }
    }

    /// Which attempt at this message it is; it may have gone wrong.
    fn attempt(&self, id: &str, wrong: bool) -> u32 {
        let mut all = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong {
            *all.entry(id.to_owned()).or_default() += 1;
        }
        all.get(id).copied().unwrap_or(0) + 1
    }

    /// Behind the effect.
    async fn done(&self) -> Result<(), WorkError> {
        if self.work.kill_after == Some(self.done.fetch_add(1, Ordering::Relaxed) + 1) {
            // As a crash would: the effect happened, and nothing knows of it.
            std::process::abort();
        }
        self.half_of_the_delay().await;
        Ok(())
    }

    async fn half_of_the_delay(&self) {
        if !self.work.delay.is_zero() {
            tokio::time::sleep(self.work.delay / 2).await;
        }
    }
}

fn effect(message: &impl MessageView, claim: &Claim) -> Effect {
    Effect {
        id: id(message),
        claim: claim.idempotency_key(),
        fence: i64::try_from(claim.fence().get()).unwrap_or(i64::MAX),
        attempt: i64::from(claim.attempt()),
        lane: lane(message.key()),
        offset: message.offset(),
    }
}

/// The message's key, as text.
fn lane(key: Option<&[u8]>) -> String {
    String::from_utf8_lossy(key.unwrap_or_default()).into_owned()
}

/// The message's own id, or its place where it has none.
fn id(message: &impl MessageView) -> String {
    match message.header("message-id") {
        Some(id) => String::from_utf8_lossy(id).into_owned(),
        None => format!("{}/{}/{}", message.topic(), message.partition(), message.offset()),
    }
}
