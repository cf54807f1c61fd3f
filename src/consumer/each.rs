//! [`Once::each`](crate::Once::each) as what a consumer drives.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::handling::{Ending, Failure, Handling};
use super::message::Message;
use crate::wrapper::{Claim, Each, Finished, HandlerError, Kept, Mode};

impl<F, Fut, T, E> Handling for Each<F>
where
    F: Fn(Message, Claim) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send,
    T: Kept + Send,
    E: HandlerError + Send + Sync + 'static,
{
    async fn handle(
        &self,
        messages: &[Message],
        stop: &CancellationToken,
        finished: &mut (dyn FnMut(usize, Ending) + Send),
    ) -> Result<(), (usize, Failure)> {
        let finished = |at: usize, how: Finished<E>| {
            let ending = match &how {
                Finished::Handled => Ending::Handled,
                Finished::Duplicate { first } => {
                    let same = messages.get(at).is_some_and(|message| {
                        (message.topic(), message.partition(), message.offset())
                            == (&*first.topic, first.partition, first.offset)
                    });
                    if same { Ending::Redelivered } else { Ending::SameId }
                }
                Finished::Conflict { .. } => Ending::Conflict,
                Finished::Dead { .. } => Ending::Dead,
            };
            finished(at, ending);
        };
        self.handle_each(messages, stop, finished).await.map_err(|error| {
            let place = error.place;
            (place, Box::new(error) as Box<dyn Error + Send + Sync>)
        })
    }

    async fn finish(&self, longest: Duration) -> u64 {
        let left = self.once().settle_pending(longest).await;
        left.handled.len() as u64 + left.claims as u64
    }

    fn describe(&self) -> impl fmt::Display + Send {
        let once = self.once();
        let store = once.store().describe().store;
        let mut text = match (once.mode(), once.level()) {
            (Mode::AtLeastOnce, _) => "at least once, without a store: effects repeat with every redelivery".to_owned(),
            (Mode::AtMostOnce, _) => format!("at most once, store {store}: what fails is lost"),
            (Mode::Deduplicated, Some(level)) => format!("deduplicated, level {level}, store {store}"),
            (Mode::Deduplicated, None) => format!("deduplicated, store {store}"),
        };
        for finding in once.report().warnings() {
            text.push_str("; warning: ");
            text.push_str(&finding.to_string());
        }
        text
    }
}
