//! What a consumer needs of whoever remembers its messages: many of them claimed and settled by one call, each on its own way.
//!
//! ```text
//!   look ─▶ claim … claimed ─▶ claim_of, begun ─▶ succeeded, failed ─▶ settle … settled ─▶ put_down
//! ```
//!
//! A call to the store is made of a beginning, a future that owns all it needs, and an end; the messages stay where the consumer keeps
//! them, so that whatever happens to the future, nothing about them is forgotten.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Claim;
use super::class::{ErrorClass, Failure, HandlerError};
use super::done::{HandleError, Stage};
use crate::engine::{self, Answer, Cause, Ending, Settled, Ticket};
use crate::frontier::Epoch;
use crate::identity::Key;
use crate::message::MessageView;
use crate::record::{ClaimOutcome, SettleOutcome};
use crate::store::StoreError;

/// Longest text of a failure that is kept, in bytes.
const TEXT: usize = 1024;

/// Why a message cannot finish and the consumer has to end.
pub(crate) type Unfinished = Box<dyn Error + Send + Sync>;

/// A call to the store on its way. Owns all it needs.
pub(crate) type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How one message's handler ended.
#[derive(Debug)]
pub enum Ended {
    /// Well, with this to be kept for duplicates.
    Succeeded(Option<Bytes>),
    /// It failed.
    Failed(Box<Fault>),
    /// Whatever handled it remembered it by itself.
    #[allow(dead_code)]
    Finished(Ending),
    /// It was not handled, since whatever remembers it by itself says this.
    #[allow(dead_code)]
    Answered(Answer),
    /// Another process has its partition, and nothing that was done of it here stands: it is asked about again after so long.
    #[allow(dead_code)]
    Fenced(Duration),
    /// Its turn did not come: one before it in its row failed in the same call.
    #[allow(dead_code)]
    NotBegun,
    /// Whatever remembers it could not be asked; nothing was done.
    #[allow(dead_code)]
    Unknown(Box<StoreError>),
}

/// Why an attempt failed, as text.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Whether it may succeed later.
    pub class: ErrorClass,
    /// What kind of failure it was: `error`, `panic`, `timeout`.
    pub kind: &'static str,
    /// Its text, cut short.
    pub text: String,
    /// Which attempt it was, from 1, where whatever handled it counts by itself.
    pub attempt: Option<u32>,
    /// How long until it is due, where whatever handled it says so.
    pub retry_in: Option<Duration>,
}

impl Fault {
    pub(crate) fn of<E: HandlerError>(failure: &Failure<E>) -> Box<Self> {
        let kind = match failure {
            Failure::Error(_) => "error",
            Failure::Panicked(_) => "panic",
            Failure::TimedOut(_) => "timeout",
        };
        let mut text = failure.to_string();
        text.truncate(text.floor_char_boundary(TEXT));
        Box::new(Self { class: failure.class(), kind, text, attempt: None, retry_in: None })
    }

    pub(crate) fn new(kind: &'static str, text: impl Into<String>) -> Box<Self> {
        let text = text.into();
        Box::new(Self { class: ErrorClass::Retryable, kind, text, attempt: None, retry_in: None })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is kept of a message by whatever handles it and remembers it by itself.
pub(crate) type Own = Arc<dyn Any + Send + Sync>;

/// Where the consumer keeps what is remembered of its messages.
pub trait Hands<S> {
    /// What is remembered of a message.
    fn hand(&mut self, ticket: Ticket) -> Option<&mut S>;
}

/// A message that a claim was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) key: Key,
    pub(super) ticket: Ticket,
    /// Where it stood among those given.
    pub(super) place: u32,
}

/// What came of asking for claims.
#[derive(Debug)]
pub struct ClaimReply {
    /// Those asked for, in the order of their keys, which is that of the answers.
    pub(super) asked: Vec<Asked>,
    /// Those in another hand of this process.
    pub(super) busy: Vec<Ticket>,
    pub(super) sent: Instant,
    pub(super) answer: Result<Vec<ClaimOutcome>, StoreError>,
}

impl ClaimReply {
    /// Nobody was asked: all are free.
    pub(crate) fn granted(tickets: &[Ticket]) -> Call<Self> {
        let busy = tickets.to_vec();
        Box::pin(async { Self { asked: Vec::new(), busy, sent: Instant::now(), answer: Ok(Vec::new()) } })
    }

    /// It could not be noted that they are about to run.
    #[cfg_attr(not(feature = "sql"), allow(dead_code))]
    pub(crate) fn failed(error: StoreError) -> Self {
        Self { asked: Vec::new(), busy: Vec::new(), sent: Instant::now(), answer: Err(error) }
    }

    /// Those that nobody was asked about.
    pub(crate) fn into_granted(self) -> Result<Vec<(Ticket, Answer)>, StoreError> {
        self.answer?;
        Ok(self.busy.into_iter().map(|ticket| (ticket, Answer::Acquired { attempt: 1 })).collect())
    }
}

/// What came of settling.
#[derive(Debug)]
pub struct SettleReply {
    pub(super) tickets: Vec<Ticket>,
    /// Those whose claim is gone already.
    pub(super) unheld: Vec<Ticket>,
    pub(super) answer: Result<Vec<SettleOutcome>, StoreError>,
}

impl SettleReply {
    /// What was said of these, in the same order.
    pub(crate) const fn of(tickets: Vec<Ticket>, answer: Result<Vec<SettleOutcome>, StoreError>) -> Self {
        Self { tickets, unheld: Vec::new(), answer }
    }

    /// What was said of each.
    pub(crate) fn into_answers(self) -> Result<Vec<(Ticket, Settled)>, StoreError> {
        Ok(self.tickets.into_iter().zip(self.answer?.into_iter().map(Settled::from)).collect())
    }
}

impl From<SettleOutcome> for Settled {
    fn from(outcome: SettleOutcome) -> Self {
        match outcome {
            SettleOutcome::Settled => Self::Recorded,
            SettleOutcome::Buried => Self::Buried,
            SettleOutcome::Late => Self::Late,
            SettleOutcome::Refused => Self::Refused,
        }
    }
}

/// Whoever remembers messages: a store with its wrapper, or nobody.
pub trait Records: Send + Sync + 'static {
    /// What is remembered here of a message from its delivery to its end.
    type State: Send + 'static;

    /// What the message is to the store. Called in the order delivered; `epoch` is its assignment's.
    fn look(&self, message: &dyn MessageView, epoch: Epoch) -> (engine::Subject, Self::State);

    /// The same for messages of one partition, one after the other: what is the same for all of them is found once.
    fn look_row<M: MessageView>(
        &self,
        messages: impl Iterator<Item = M>,
        epoch: Epoch,
        mut seen: impl FnMut(M, engine::Subject, Self::State),
    ) {
        for message in messages {
            let (subject, state) = self.look(&message, epoch);
            seen(message, subject, state);
        }
    }

    /// Asks for claims, once.
    fn claim(&self, hands: &mut dyn Hands<Self::State>, tickets: &[Ticket], attempts: NonZeroU32) -> Call<ClaimReply>;

    /// Notes what came of it: an answer for each message, in the order asked but for those in another hand, or why there is none.
    fn claimed(
        &self,
        hands: &mut dyn Hands<Self::State>,
        reply: ClaimReply,
    ) -> Result<Vec<(Ticket, Answer)>, StoreError>;

    /// Notes that a call to claim was lost: no claim of these is known.
    fn unclaimed(&self, hands: &mut dyn Hands<Self::State>, tickets: &[Ticket]);

    /// The claim to give to a handler.
    fn claim_of(&self, state: &Self::State, attempt: u32) -> Claim;

    /// What whatever handles the message keeps of it, if it remembers it by itself.
    fn own(&self, _: &Self::State) -> Option<Own> {
        None
    }

    /// Notes that the handler of a message runs.
    fn begun(&self, state: &mut Self::State);

    /// Notes that it ended well.
    fn succeeded(&self, state: &mut Self::State, result: Option<Bytes>);

    /// Notes that it did not; `burnt` if that costs an attempt.
    fn failed(&self, state: &mut Self::State, burnt: bool);

    /// Notes that its turn did not come.
    fn not_begun(&self, state: &mut Self::State);

    /// Tells how claims end, once.
    fn settle(
        &self,
        hands: &mut dyn Hands<Self::State>,
        ends: &[(Ticket, engine::Verdict)],
        attempts: NonZeroU32,
    ) -> Call<SettleReply>;

    /// Notes what came of it: an answer for each message, in any order, or why there is none.
    fn settled(
        &self,
        hands: &mut dyn Hands<Self::State>,
        reply: SettleReply,
    ) -> Result<Vec<(Ticket, Settled)>, StoreError>;

    /// Counts messages that finished.
    fn finished(&self, ending: Ending, messages: u64);

    /// Lets a message go, wherever it is. What the store has not heard is owed to it.
    fn put_down(&self, state: Self::State);

    /// Lets messages go.
    fn put_down_all(&self, states: impl Iterator<Item = Self::State>) {
        states.for_each(|state| self.put_down(state));
    }

    /// What the store knows the message by; `None` if it has no record.
    fn key(&self, state: &Self::State) -> Option<Key>;

    /// Attempts that the store counted of a message that it has as dead.
    fn attempts(&self, state: &Self::State) -> Option<u32>;

    /// Why a message may not be passed.
    fn explain(&self, message: &dyn MessageView, state: &Self::State, cause: Cause, last: Option<&Fault>)
    -> Unfinished;

    /// Tells the store what it has not heard, for at most so long. Answers how many messages are left.
    fn finish(&self, longest: Duration) -> impl Future<Output = u64> + Send;
}

/// A message that may not be passed.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error("{0}: `Retry::none` ends the consumer here; set another `Retry`")]
    Failed(String),
    #[error("its attempts are used up, and nothing keeps it when it is passed; the last one: {0}")]
    Attempts(String),
    #[error("it never will succeed, and nothing keeps it when it is passed: {0}")]
    Fatal(String),
    #[error("it was given up before: the store has it as dead")]
    Dead,
    #[error("it has no usable identity")]
    Identity,
    #[error("its identity was used by a message that says something else")]
    Conflict,
}

/// Why a message may not be passed, where nothing more is known.
pub(crate) fn given_up(cause: Cause, last: Option<&Fault>) -> Unfinished {
    let text = || last.map_or_else(|| "its failure was not seen here".to_owned(), |fault| fault.text.clone());
    Box::new(match cause {
        Cause::Failed => GivenUp::Failed(text()),
        Cause::Attempts => GivenUp::Attempts(text()),
        Cause::Fatal => GivenUp::Fatal(text()),
        Cause::DeadBefore => GivenUp::Dead,
        Cause::Identity => GivenUp::Identity,
        Cause::Conflict => GivenUp::Conflict,
    })
}

/// Why the consumer ends when the store refuses for good.
pub(crate) fn refused(stage: Stage, error: StoreError) -> Unfinished {
    Box::new(HandleError::<String>::Store { stage, error })
}

/// Remembers nothing: every delivery is handled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Records for Nobody {
    type State = ();

    fn look(&self, _: &dyn MessageView, _: Epoch) -> (engine::Subject, ()) {
        (engine::Subject::Bare, ())
    }

    fn claim(&self, _: &mut dyn Hands<()>, tickets: &[Ticket], _: NonZeroU32) -> Call<ClaimReply> {
        ClaimReply::granted(tickets)
    }

    fn claimed(&self, _: &mut dyn Hands<()>, reply: ClaimReply) -> Result<Vec<(Ticket, Answer)>, StoreError> {
        reply.into_granted()
    }

    fn unclaimed(&self, _: &mut dyn Hands<()>, _: &[Ticket]) {}

    fn claim_of(&self, (): &(), attempt: u32) -> Claim {
        Claim::bare(Key::from_bytes([0; 16]), attempt)
    }

    fn begun(&self, (): &mut ()) {}

    fn succeeded(&self, (): &mut (), _: Option<Bytes>) {}

    fn failed(&self, (): &mut (), _: bool) {}

    fn not_begun(&self, (): &mut ()) {}

    fn settle(&self, _: &mut dyn Hands<()>, ends: &[(Ticket, engine::Verdict)], _: NonZeroU32) -> Call<SettleReply> {
        let tickets: Vec<Ticket> = ends.iter().map(|(ticket, _)| *ticket).collect();
        let answer = Ok(vec![SettleOutcome::Settled; tickets.len()]);
        Box::pin(async { SettleReply::of(tickets, answer) })
    }

    fn settled(&self, _: &mut dyn Hands<()>, reply: SettleReply) -> Result<Vec<(Ticket, Settled)>, StoreError> {
        reply.into_answers()
    }

    fn finished(&self, _: Ending, _: u64) {}

    fn put_down(&self, (): ()) {}

    fn key(&self, (): &()) -> Option<Key> {
        None
    }

    fn attempts(&self, (): &()) -> Option<u32> {
        None
    }

    fn explain(&self, _: &dyn MessageView, (): &(), cause: Cause, last: Option<&Fault>) -> Unfinished {
        given_up(cause, last)
    }

    async fn finish(&self, _: Duration) -> u64 {
        0
    }
}
