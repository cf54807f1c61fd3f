//! The reference: records moved by the pure rules, on a clock that is told when it ticks.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use hapax::identity::{Fingerprint, Key};
use hapax::record::{
    self, ClaimOutcome, Extend, ExtendOutcome, Fence, Millis, Origin, Owner, Record, RequeueOutcome, Settle,
    SettleOutcome, Sighting, Step, Terms, Token, Verdict,
};
use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

/// Messages in a life.
pub const MESSAGES: u8 = 6;
pub const OWNERS: u64 = 3;
pub const HOUR: Duration = Duration::from_secs(3600);
pub const BRIEF: Duration = Duration::from_millis(1);

/// Which of the tokens that a message ever had.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    Current,
    /// The one granted so many grants before the last.
    Old(usize),
    /// An owner's, with the record's fence.
    Foreign(u64),
}

/// How a claim is ended.
#[derive(Clone, Debug)]
pub enum Ending {
    Succeeded,
    Failed { brief: Option<bool>, limit: u32 },
    Released,
    Dead,
}

/// One call to the store. Which of two handles it goes through is given with each.
#[derive(Clone, Debug)]
pub enum Call {
    /// Of each message: whether another body, and whether to read first.
    Claim {
        owner: u64,
        brief: bool,
        limit: u32,
        messages: BTreeMap<u8, (bool, bool)>,
    },
    Settle {
        messages: BTreeMap<u8, (Shown, Ending, bool)>,
    },
    Extend {
        messages: BTreeMap<u8, (Shown, bool)>,
    },
    Requeue {
        messages: Vec<u8>,
    },
    /// The last call again, as after a lost reply.
    Again,
}

#[derive(Clone, Debug)]
pub struct Move {
    pub handle: usize,
    pub call: Call,
}

/// A call with everything filled in, keys aside.
#[derive(Clone, Debug)]
pub enum Asked {
    Nothing,
    Claim { terms: Terms, asks: Vec<(u8, Sighting, bool)> },
    Settle(Vec<(u8, Settle)>),
    Extend(Vec<(u8, Extend)>),
    Requeue(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    Nothing,
    Claim(Vec<ClaimOutcome>),
    Settle(Vec<SettleOutcome>),
    Extend(Vec<ExtendOutcome>),
    Requeue(Vec<RequeueOutcome>),
}

/// All records, and the last call.
#[derive(Clone, Debug)]
pub struct Lives {
    pub records: BTreeMap<u8, Record>,
    granted: BTreeMap<u8, Vec<Token>>,
    now: Millis,
    pub asked: Asked,
    pub answered: Answered,
    /// Whether the call may have begun something brief that must be waited for.
    pub brief: bool,
}

pub fn sighting(message: u8, other_body: bool) -> Sighting {
    Sighting {
        // Stands for a key of the test's own.
        key: Key::from_bytes([message; 16]),
        fingerprint: Fingerprint::from_bytes([u8::from(other_body); 16]),
        origin: Origin { topic: "orders".into(), partition: message.into(), offset: i64::from(message) * 1000 },
    }
}

/// One claim has one result: none, an empty one, or bytes.
fn result(token: Token) -> Option<Bytes> {
    let number = token.owner.get() * 7 + token.fence.get();
    match number % 3 {
        0 => None,
        1 => Some(Bytes::new()),
        _ => Some(Bytes::from_static(&[0xf0; 20])),
    }
}

fn limit(limit: u32) -> NonZeroU32 {
    NonZeroU32::new(limit).unwrap()
}

impl Lives {
    fn token(&self, message: u8, shown: Shown) -> Token {
        let none = Token { owner: Owner::new(77), fence: Fence::FIRST };
        let current = self.records.get(&message).map_or(none, Record::token);
        match shown {
            Shown::Current => current,
            Shown::Old(back) => {
                self.granted.get(&message).and_then(|granted| granted.iter().rev().nth(back)).copied().unwrap_or(none)
            }
            Shown::Foreign(owner) => Token { owner: Owner::new(100 + owner), ..current },
        }
    }

    /// The attempt that a claim with this token was, as its owner would know it.
    fn attempt(&self, message: u8) -> u32 {
        self.records.get(&message).map_or(1, |record| record.attempts.max(1))
    }

    fn fill_in(&self, call: &Call) -> Asked {
        let lease = |brief: bool| if brief { BRIEF } else { HOUR };
        match call {
            Call::Claim { owner, brief, limit: most, messages } => Asked::Claim {
                terms: Terms { owner: Owner::new(100 + owner), lease: lease(*brief), max_attempts: limit(*most) },
                asks: messages
                    .iter()
                    .map(|(message, (other_body, read_first))| (*message, sighting(*message, *other_body), *read_first))
                    .collect(),
            },
            Call::Settle { messages } => {
                let settles = messages.iter().map(|(message, (shown, ending, other_body))| {
                    let verdict = match ending {
                        Ending::Succeeded => Verdict::Succeeded { result: result(self.token(*message, *shown)) },
                        Ending::Failed { brief, limit: most } => Verdict::Failed {
                            retry_in: brief.map_or(Duration::ZERO, lease),
                            max_attempts: limit(*most),
                        },
                        Ending::Released => Verdict::Released,
                        Ending::Dead => Verdict::Dead,
                    };
                    let sighting = sighting(*message, *other_body);
                    let (token, attempt) = (self.token(*message, *shown), self.attempt(*message));
                    (*message, Settle { sighting, token, attempt, verdict })
                });
                Asked::Settle(settles.collect())
            }
            Call::Extend { messages } => {
                let extends = messages.iter().map(|(message, (shown, brief))| {
                    let key = sighting(*message, false).key;
                    (*message, Extend { key, token: self.token(*message, *shown), lease: lease(*brief) })
                });
                Asked::Extend(extends.collect())
            }
            Call::Requeue { messages } => Asked::Requeue(messages.clone()),
            Call::Again => self.asked.clone(),
        }
    }

    fn step<T>(&mut self, message: u8, rule: impl FnOnce(Option<&Record>, Millis) -> Step<T>) -> T {
        let step = rule(self.records.get(&message), self.now);
        if let Some(record) = step.write {
            self.records.insert(message, record);
        }
        step.outcome
    }

    fn go(&mut self, call: &Call) {
        // What was brief is over by now: the machine has waited for it.
        self.now += 10;
        self.asked = self.fill_in(call);
        let is_brief = |duration: Duration| duration == BRIEF;
        let (answered, brief) = match self.asked.clone() {
            Asked::Nothing => (Answered::Nothing, false),
            Asked::Claim { terms, asks } => {
                let mut outcomes = Vec::new();
                for (message, sighting, _) in asks {
                    let outcome = self.step(message, |record, now| record::claim(record, &sighting, &terms, now));
                    if let ClaimOutcome::Acquired(grant) = &outcome {
                        self.granted.entry(message).or_default().push(grant.token);
                    }
                    outcomes.push(outcome);
                }
                (Answered::Claim(outcomes), is_brief(terms.lease))
            }
            Asked::Settle(settles) => {
                let brief = settles.iter().any(
                    |(_, settle)| matches!(settle.verdict, Verdict::Failed { retry_in, .. } if is_brief(retry_in)),
                );
                let outcomes = settles
                    .iter()
                    .map(|(message, settle)| self.step(*message, |record, now| record::settle(record, settle, now)));
                (Answered::Settle(outcomes.collect()), brief)
            }
            Asked::Extend(extends) => {
                let brief = extends.iter().any(|(_, extend)| is_brief(extend.lease));
                let outcomes = extends
                    .iter()
                    .map(|(message, extend)| self.step(*message, |record, now| record::extend(record, extend, now)));
                (Answered::Extend(outcomes.collect()), brief)
            }
            Asked::Requeue(messages) => {
                let outcomes = messages.iter().map(|message| self.step(*message, record::requeue));
                (Answered::Requeue(outcomes.collect()), false)
            }
        };
        self.answered = answered;
        self.brief = brief;
    }
}

fn shown() -> impl Strategy<Value = Shown> {
    prop_oneof![
        6 => Just(Shown::Current),
        3 => (0..3_usize).prop_map(Shown::Old),
        1 => (0..OWNERS).prop_map(Shown::Foreign),
    ]
}

fn endings() -> impl Strategy<Value = Ending> {
    prop_oneof![
        2 => Just(Ending::Succeeded),
        4 => (any::<Option<bool>>(), 1..5_u32).prop_map(|(brief, limit)| Ending::Failed { brief, limit }),
        2 => Just(Ending::Released),
        1 => Just(Ending::Dead),
    ]
}

fn calls() -> impl Strategy<Value = Call> {
    let some = 1..=usize::from(MESSAGES);
    let rarely = || prop::bool::weighted(0.08);
    prop_oneof![
        6 => (0..OWNERS, any::<bool>(), 1..5_u32, btree_map(0..MESSAGES, (rarely(), any::<bool>()), some.clone()))
            .prop_map(|(owner, brief, limit, messages)| Call::Claim { owner, brief, limit, messages }),
        5 => btree_map(0..MESSAGES, (shown(), endings(), rarely()), some.clone())
            .prop_map(|messages| Call::Settle { messages }),
        2 => btree_map(0..MESSAGES, (shown(), any::<bool>()), some.clone())
            .prop_map(|messages| Call::Extend { messages }),
        1 => btree_set(0..MESSAGES, some)
            .prop_map(|messages| Call::Requeue { messages: messages.into_iter().collect() }),
        2 => Just(Call::Again),
    ]
}

impl ReferenceStateMachine for Lives {
    type State = Self;
    type Transition = Move;

    fn init_state() -> BoxedStrategy<Self> {
        let (asked, answered) = (Asked::Nothing, Answered::Nothing);
        let (records, granted) = Default::default();
        Just(Self { records, granted, now: 0, asked, answered, brief: false }).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Move> {
        (0..2_usize, calls()).prop_map(|(handle, call)| Move { handle, call }).boxed()
    }

    fn apply(mut state: Self, step: &Move) -> Self {
        state.go(&step.call);
        state
    }
}
