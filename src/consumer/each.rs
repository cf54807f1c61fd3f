//! A handler of single messages around an [`Once`]: claim, run, settle.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::handling::{Drive, Few, Handed, Needs, debug_once, describe};
use super::message::Message;
use crate::wrapper::drive::Ended;
use crate::wrapper::{Claim, Described, HandlerError, Kept, Once};

/// A handler of single messages and how often it may run: what a consumer runs. Made by [`Once::each`].
#[derive(Clone)]
pub struct Each<F> {
    once: Once,
    handler: F,
}

impl<F> fmt::Debug for Each<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_once(f, "Each", &self.once)
    }
}

impl Once {
    /// What a consumer runs: this wrapper around `handler`, for each message it delivers.
    ///
    /// `handler` is an `async |message: Message, claim: Claim| -> Result<T, E>`. It may run for many messages side by side, as
    /// [`Consumer::order`](crate::Consumer::order) and [`Consumer::concurrency`](crate::Consumer::concurrency) say. A panic is a failed
    /// attempt. The guarantee is that of [`Once`].
    pub fn each<F>(&self, handler: F) -> Each<F> {
        Each { once: self.clone(), handler }
    }
}

impl<F, Fut, T, E> Drive for Each<F>
where
    F: Fn(Message, Claim) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Kept + Send + 'static,
    E: HandlerError + Send + 'static,
{
    type Records = Once;

    fn records(&self) -> &Once {
        &self.once
    }

    fn needs(&self) -> Needs {
        Needs::of(&self.once, None)
    }

    fn describe(&self) -> String {
        describe(&self.once)
    }

    fn described(&self) -> Option<Described> {
        Some(self.once.described())
    }

    fn run(this: Arc<Self>, messages: Few<Handed>) -> impl Future<Output = Few<Ended>> + Send + 'static {
        let handed = messages.first();
        async move {
            let Some(Handed { message, claim, .. }) = handed else { return Few::Many(Vec::new()) };
            let shown = claim.shown();
            // Called in here, so that a panic of the call is caught like one of the future.
            let handler = async { (this.handler)(message, claim).await };
            let result = this.once.guarded(&shown, handler).await;
            Few::One(this.once.ended(result))
        }
    }
}
