//! A handler of many messages at once around an [`Once`]: claimed and settled each on its own, handled by one call.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::handling::{Drive, Few, Handed, Needs, debug_once, describe};
use crate::wrapper::drive::{Ended, Fault};
use crate::wrapper::{Described, Failure, HandlerError, Kept, Once};

/// A batch handler and how often it may run: what a consumer runs. Made by [`Once::batch`].
#[derive(Clone)]
pub struct Batch<F> {
    once: Once,
    handler: F,
    most: usize,
}

impl<F> fmt::Debug for Batch<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_once(f, "Batch", &self.once)
    }
}

impl Once {
    /// What a consumer runs: this wrapper around a `handler` that takes up to `most` messages at once (0 counts as 1).
    ///
    /// `handler` is an `async |batch: Vec<Handed>| -> Vec<Result<T, E>>`, which answers for each message, in the same order. Each
    /// message is claimed, settled and tried again on its own: one that fails does not make the others repeat. An answer of the wrong length,
    /// a panic and a time-out are a failed attempt of all. A batch is what is waiting, and never waits to be filled. Of one
    /// partition, or of one key, a batch has messages in their order; see [`Consumer::order`](crate::Consumer::order).
    ///
    /// A message that fails holds back those behind it in its partition or key that are not in the same call. Those that are had their turn in it: whether
    /// they may go on without it is for the handler to say. One that must keep the order even then answers with an error for them too.
    ///
    /// The guarantee is that of [`Once`].
    pub fn batch<F>(&self, most: usize, handler: F) -> Batch<F> {
        Batch { once: self.clone(), handler, most: most.max(1) }
    }
}

impl<F, Fut, T, E> Drive for Batch<F>
where
    F: Fn(Vec<Handed>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<Result<T, E>>> + Send + 'static,
    T: Kept + Send + 'static,
    E: HandlerError + Send + 'static,
{
    type Records = Once;

    fn records(&self) -> &Once {
        &self.once
    }

    fn needs(&self) -> Needs {
        Needs::of(&self.once, Some(self.most))
    }

    fn describe(&self) -> String {
        format!("{}, in batches of up to {}", describe(&self.once), self.most)
    }

    fn described(&self) -> Option<Described> {
        Some(self.once.described())
    }

    async fn run(this: Arc<Self>, messages: Few<Handed>) -> Few<Ended> {
        let messages: Vec<Handed> = messages.into_iter().collect();
        let expected = messages.len();
        let Some(claim) = messages.first().map(|first| first.claim.clone()) else { return Few::Many(Vec::new()) };
        let handler = async { Ok::<_, String>((this.handler)(messages).await) };
        let fault = match this.once.guarded(&claim, handler).await {
            Ok(results) if results.len() == expected => {
                let ended = results.into_iter().map(|result| this.once.ended(result.map_err(Failure::Error)));
                return Few::Many(ended.collect());
            }
            Ok(results) => {
                let text = format!("the batch handler answered for {} of {expected} messages", results.len());
                tracing::warn!("{text}: all of them count as failed");
                Fault::new("error", text)
            }
            Err(failure) => Fault::of(&failure),
        };
        Few::Many((0..expected).map(|_| Ended::Failed(fault.clone())).collect())
    }
}
