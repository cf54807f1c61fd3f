//! The seam between the consumer and whatever handles its messages.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::message::Message;
use super::windows::Windows;
use crate::engine::{Config, Conflicts};
use crate::retry::Retry;
use crate::wrapper::drive::{Ended, Own, Records};
use crate::wrapper::{Claim, Described, Mode, Once};

pub use crate::engine::Ending;

/// Why a message cannot finish and the consumer has to end.
pub(super) type Failure = Box<dyn Error + Send + Sync>;

/// What [`Consumer::run`](super::Consumer::run) drives.
///
/// [`Once::each`](crate::Once::each), [`Once::batch`](crate::Once::batch) and [`plain`](super::plain()) make one. Not to be implemented
/// elsewhere yet: it will change.
pub trait Handling: Drive {}

impl<H: Drive> Handling for H {}

/// A message and its claim: what a batch handler is given of each.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Handed {
    /// The message.
    pub message: Message,
    /// The claim that it is handled under.
    pub claim: Claim,
    /// What it must stay in order with, among those of the same call; `None` if with nothing.
    #[cfg_attr(not(feature = "sql"), allow(dead_code))]
    pub(crate) row: Option<u64>,
    /// What its handling keeps of it, if that remembers it by itself.
    #[cfg_attr(not(feature = "sql"), allow(dead_code))]
    pub(crate) own: Option<Own>,
}

/// One, or many: so that one costs no allocation.
#[derive(Debug)]
pub enum Few<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Few<T> {
    /// The first; `None` if there is none.
    pub(super) fn first(self) -> Option<T> {
        match self {
            Self::One(one) => Some(one),
            Self::Many(many) => many.into_iter().next(),
        }
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<std::option::IntoIter<T>, std::vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        let (one, many) = match self {
            Self::One(one) => (Some(one), Vec::new()),
            Self::Many(many) => (None, many),
        };
        one.into_iter().chain(many)
    }
}

/// What a handling asks of the engine.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// How often and when failed messages are tried again, where the consumer was not told.
    pub retry: Retry,
    /// What happens to conflicts.
    pub conflicts: Conflicts,
    /// Settle before the handler runs: at most once.
    pub settle_first: bool,
    /// Messages that one call takes at most; `None` for handlers of one message.
    pub batch: Option<usize>,
    /// Whether it keeps what is given up, so that it may be passed without a dead letter.
    pub keeps_dead: bool,
}

impl Needs {
    pub(super) fn of(once: &Once, batch: Option<usize>) -> Self {
        let settle_first = once.mode() == Mode::AtMostOnce;
        Self { retry: once.retry(), conflicts: once.conflicts(), settle_first, batch, keeps_dead: true }
    }

    /// Sets what the engine has to know.
    pub(super) fn fill(&self, retry: &Retry, config: &mut Config) {
        config.max_attempts = retry.max_attempts().get();
        config.retries = retry.is_in_place();
        config.conflicts = self.conflicts;
        config.settle_first = self.settle_first;
        config.batch = self.batch;
    }
}

/// What the pump drives. Public so that it can stand in bounds, and out of reach.
pub trait Drive: Send + Sync + 'static {
    /// Whoever remembers the messages.
    type Records: Records;

    /// Whoever remembers the messages.
    fn records(&self) -> &Self::Records;

    /// What it asks of the engine.
    fn needs(&self) -> Needs;

    /// How often and when failed messages are tried again: the consumer's word, which wins over [`Needs::retry`].
    fn retry(&self, _: &Retry) {}

    /// Mode, level, store and warnings, for the start-up report.
    fn describe(&self) -> String;

    /// What it is set to, if it remembers messages.
    fn described(&self) -> Option<Described>;

    /// Whoever keeps windows of the partitions, if anybody does.
    fn windows(&self) -> Option<Arc<dyn Windows>> {
        None
    }

    /// Runs the handler: of one message, or with [`Needs::batch`] of all of these. Answers for each, in the same order. Panics are caught.
    fn run(this: Arc<Self>, messages: Few<Handed>) -> impl Future<Output = Few<Ended>> + Send + 'static;
}

/// Mode, level, store and warnings of a wrapper.
pub(super) fn describe(once: &Once) -> String {
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

/// Shows what has no `Debug` of its own.
pub(super) fn debug_once(f: &mut fmt::Formatter<'_>, name: &str, once: &Once) -> fmt::Result {
    f.debug_struct(name).field("once", once).finish_non_exhaustive()
}
