//! What is done with a message: the part that is yours.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hapax::{Claim, Message};

use crate::args::Work;
use crate::effects::{Effects, WorkError};
use crate::injection::Wrong;

#[derive(Clone)]
pub struct Handler {
    work: Arc<Work>,
    effects: Effects,
    /// Effects of this process.
    done: Arc<AtomicU64>,
}

impl Handler {
    pub fn new(work: Work, effects: Effects) -> Self {
        Self { work: Arc::new(work), effects, done: Arc::default() }
    }

    pub async fn handle(&self, message: &Message, claim: &Claim) -> Result<(), WorkError> {
        let id = id(message);
        match self.work.injection.of(&id, claim.attempt()) {
            Some(Wrong::Fails) => return Err(WorkError::Injected),
            Some(Wrong::NeverSucceeds) => return Err(WorkError::Hopeless),
            Some(Wrong::Panics) => panic!("this attempt panics on purpose"),
            None => {}
        }
        self.half_of_the_delay().await;
        self.effects.add(&id, claim).await?;
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

/// The message's own id, or its place where it has none.
fn id(message: &Message) -> String {
    match message.header("message-id") {
        Some(id) => String::from_utf8_lossy(id).into_owned(),
        None => format!("{}/{}/{}", message.topic(), message.partition(), message.offset()),
    }
}
