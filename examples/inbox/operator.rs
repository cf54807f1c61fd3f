//! The operator's hand, for whichever database it is.

use async_trait::async_trait;
use hapax::inbox::{AttemptEnd, By, MessageId, Requeued, State};
use hapax::{Inbox, TransactionalDatabase};
use sqlx::Pool;

use crate::judge::Standing;
use crate::service::{self, Failure};

/// A dead message, as an operator sees it.
pub struct Dead {
    pub id: MessageId,
    /// What it is, in words.
    pub described: String,
    /// What became of each attempt.
    pub history: Vec<String>,
}

#[async_trait]
pub trait Hand: Send + Sync {
    /// How many messages there are of what, and how many are neither done nor dead.
    async fn standing(&self) -> Result<(Standing, u64), Failure>;
    async fn dead(&self) -> Result<Vec<Dead>, Failure>;
    async fn requeue(&self, id: MessageId, by: By) -> Result<Requeued, Failure>;
}

/// A hand on the inbox that consumers and workers share.
pub async fn hand<DB: TransactionalDatabase>(
    pool: Pool<DB>,
    group: &str,
    dedup: bool,
) -> Result<Box<dyn Hand>, Failure> {
    Ok(Box::new(service::open(pool, group, dedup).await?))
}

#[async_trait]
impl<DB: TransactionalDatabase> Hand for Inbox<DB> {
    async fn standing(&self) -> Result<(Standing, u64), Failure> {
        let census = self.census().await?;
        let standing = Standing { accepted: census.all(), succeeded: census.succeeded, dead: census.dead };
        Ok((standing, census.backlog()))
    }

    async fn dead(&self) -> Result<Vec<Dead>, Failure> {
        let mut all = Vec::new();
        for one in self.list(State::Dead).limit(50).await? {
            // It may have been moved meanwhile, by another operator.
            let Some(shown) = self.show(one.id).await? else { continue };
            let headers = shown.headers.iter().map(|(name, value)| {
                format!("{name}: {}", String::from_utf8_lossy(value.as_deref().unwrap_or_default()))
            });
            let described = format!(
                "message {} of {}[{}]@{}, {}, {}",
                shown.id,
                shown.topic,
                shown.partition,
                shown.offset,
                headers.collect::<Vec<_>>().join(", "),
                shown.text()
            );
            let history = shown.history.iter().map(|attempt| {
                let took = attempt.ended.map_or(0, |ended| ended - attempt.began);
                format!("attempt {} by {}, {took} ms: {}", attempt.attempt, attempt.owner, in_words(&attempt.end))
            });
            all.push(Dead { id: one.id, described, history: history.collect() });
        }
        Ok(all)
    }

    async fn requeue(&self, id: MessageId, by: By) -> Result<Requeued, Failure> {
        Ok(Inbox::requeue(self, id, by).await?)
    }
}

fn in_words(end: &AttemptEnd) -> String {
    match end {
        AttemptEnd::Running { .. } => "still running".into(),
        AttemptEnd::Succeeded { .. } => "succeeded".into(),
        AttemptEnd::Failed { class, text } => format!("{class:?}: {text}"),
        AttemptEnd::Released => "given back".into(),
    }
}
