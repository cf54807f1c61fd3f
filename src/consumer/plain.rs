//! A handler with nothing around it: at least once.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::handling::{Drive, Few, Handed, Needs};
use super::message::Message;
use crate::engine::Conflicts;
use crate::retry::Retry;
use crate::wrapper::drive::{Ended, Fault, Nobody};
use crate::wrapper::{Described, HandlerError, caught};

/// A handler without a store: what a consumer runs. Made by [`plain`].
#[derive(Clone)]
pub struct Plain<F> {
    handler: F,
}

impl<F> fmt::Debug for Plain<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plain").finish_non_exhaustive()
    }
}

/// What a consumer runs without a store: `handler` for every delivery, at least once.
///
/// `handler` is an `async |message: Message| -> Result<(), E>`. Nothing is lost: order, commits, retries and dead letters are those of any
/// other handling. But nothing is remembered either, so every redelivery and every re-produced copy has its effect again, attempts are
/// counted anew by whoever gets the partition next, and a message that is given up ends the consumer unless there is a dead letter topic.
/// Below level L0.
pub const fn plain<F>(handler: F) -> Plain<F> {
    Plain { handler }
}

impl<F, Fut, E> Drive for Plain<F>
where
    F: Fn(Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: HandlerError + Send + 'static,
{
    type Records = Nobody;

    fn records(&self) -> &Nobody {
        &Nobody
    }

    fn needs(&self) -> Needs {
        Needs {
            retry: Retry::default(),
            conflicts: Conflicts::GiveUp,
            settle_first: false,
            batch: None,
            keeps_dead: false,
        }
    }

    fn describe(&self) -> String {
        "at least once, without a store: effects repeat with every redelivery".to_owned()
    }

    fn described(&self) -> Option<Described> {
        None
    }

    fn run(this: Arc<Self>, messages: Few<Handed>) -> impl Future<Output = Few<Ended>> + Send + 'static {
        // The claim stays behind: the future is moved for each message, and is as large as what it holds.
        let message = messages.first().map(|handed| handed.message);
        async move {
            let Some(message) = message else { return Few::Many(Vec::new()) };
            // Called in here, so that a panic of the call is caught like one of the future.
            let handler = async { (this.handler)(message).await };
            Few::One(match caught(handler).await {
                Ok(()) => Ended::Succeeded(None),
                Err(failure) => Ended::Failed(Fault::of(&failure)),
            })
        }
    }
}
