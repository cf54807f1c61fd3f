//! Whether a message is sent back, by what the store says of it. Pure.

use std::fmt;

use crate::identity::Key;
use crate::record::{Record, Sighting, State};

/// Why a letter was not sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Skip {
    /// It is no dead letter.
    NotALetter,
    /// Another group or handler gave it up.
    OtherHandler,
    /// It came from the dead letter topic itself.
    Loop,
    /// It has been a dead letter too often.
    TooManyHops,
    /// Its message has a record, and no [`Redrive::known_to`](super::Redrive::known_to) names the store: it would be found dead there.
    NoStore,
    /// The message still has no usable identity, and would be given up again.
    NoIdentity,
    /// The message's identity is its position: each copy would be a new message.
    PositionBound,
    /// Another message with the same identity says something else: it would be given up again.
    Conflict,
    /// The message has succeeded since.
    Succeeded,
    /// The message is being handled, or waits for its retry, under the identity that it had.
    Busy,
    /// The store no longer knows the message, or never did.
    Forgotten,
    /// The same message was sent in this run: its letter came twice.
    Repeated,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotALetter => "not a dead letter",
            Self::OtherHandler => "given up by another group or handler: run it with that one's `Once`",
            Self::Loop => "it came from the dead letter topic itself: send it elsewhere with .to(…)",
            Self::TooManyHops => "it has been a dead letter too often: mend its handler, or raise .max_hops(…)",
            Self::NoStore => "it is dead in a store, and none was named: say .known_to(&once)",
            Self::NoIdentity => "it has no usable identity and would be given up again",
            Self::PositionBound => {
                "its identity is its position, so each copy would be a new message: identify by \
                 header(letter::REDRIVE_KEY).or(position()), or say .accept_repeats()"
            }
            Self::Conflict => "another message with its identity says something else: it would be given up again",
            Self::Succeeded => "it has succeeded since",
            Self::Busy => "it is being handled, or waits for its retry",
            Self::Forgotten => {
                "the store does not know it: see that it is the right one, or say .accept_forgotten() if it may be handled again"
            }
            Self::Repeated => "the same message was sent in this run",
        })
    }
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Send it back.
    Send {
        /// Its record is dead, and is to be requeued before.
        dead: bool,
    },
    Skip(Skip),
}

/// Decides by two records: the one that the letter names, and the one that the message will find when it is back. They are mostly one
/// and the same; another topic, or another identity since, makes them differ.
///
/// A record that was requeued and has not succeeded is of a run that died: whether its message was produced is not known, so it is
/// produced again, and the two copies are one message to the store.
pub(super) fn decide(
    own: Option<(Key, Option<&Record>)>,
    next: Option<(&Sighting, Option<&Record>)>,
    accept_forgotten: bool,
) -> Decision {
    let same = matches!((own, next), (Some((own, _)), Some((next, _))) if own == next.key);
    // By its old record, where it will not find that again: only what is dead there is sent.
    if let Some((_, record)) = own.filter(|_| !same) {
        match record.map(|record| record.state) {
            Some(State::Succeeded { .. }) => return Decision::Skip(Skip::Succeeded),
            Some(State::Processing { .. } | State::Failed { .. }) => return Decision::Skip(Skip::Busy),
            None if !accept_forgotten => return Decision::Skip(Skip::Forgotten),
            Some(State::Dead { .. }) | None => {}
        }
    }
    let Some((sighting, record)) = next else { return Decision::Send { dead: false } };
    let Some(record) = record else {
        let forgotten = same && !accept_forgotten;
        return if forgotten { Decision::Skip(Skip::Forgotten) } else { Decision::Send { dead: false } };
    };
    if record.fingerprint != sighting.fingerprint {
        return Decision::Skip(Skip::Conflict);
    }
    match record.state {
        State::Succeeded { .. } => Decision::Skip(Skip::Succeeded),
        State::Dead { .. } => Decision::Send { dead: true },
        State::Processing { .. } | State::Failed { .. } => Decision::Send { dead: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Fingerprint;
    use crate::record::{Fence, Origin, Owner};

    const OWN: Key = Key::from_bytes([1; 16]);
    const OTHER: Key = Key::from_bytes([2; 16]);
    const BODY: Fingerprint = Fingerprint::from_bytes([7; 16]);

    fn record(state: State) -> Record {
        Record {
            state,
            owner: Owner::new(1),
            fence: Fence::FIRST,
            attempts: 3,
            fingerprint: BODY,
            origin: Origin::default(),
            result: None,
        }
    }

    fn sighting(key: Key) -> Sighting {
        Sighting { key, fingerprint: BODY, origin: Origin::default() }
    }

    const DEAD: State = State::Dead { at: 0 };
    const FAILED: State = State::Failed { due: 0 };
    const PROCESSING: State = State::Processing { until: 0 };
    const SUCCEEDED: State = State::Succeeded { at: 0, late: false };

    #[test]
    fn by_the_record_that_it_had() {
        let same = |state: Option<State>, accept| {
            let record = state.map(record);
            decide(Some((OWN, record.as_ref())), Some((&sighting(OWN), record.as_ref())), accept)
        };
        assert_eq!(same(Some(DEAD), false), Decision::Send { dead: true });
        // Requeued by a run that died: the message may be there or not.
        assert_eq!(same(Some(FAILED), false), Decision::Send { dead: false });
        assert_eq!(same(Some(PROCESSING), false), Decision::Send { dead: false });
        assert_eq!(same(Some(SUCCEEDED), false), Decision::Skip(Skip::Succeeded));
        assert_eq!(same(Some(SUCCEEDED), true), Decision::Skip(Skip::Succeeded));
        assert_eq!(same(None, false), Decision::Skip(Skip::Forgotten));
        assert_eq!(same(None, true), Decision::Send { dead: false });
    }

    #[test]
    fn another_message_took_the_identity() {
        let mut taken = record(SUCCEEDED);
        taken.fingerprint = Fingerprint::from_bytes([8; 16]);
        let next = Some((&sighting(OWN), Some(&taken)));
        assert_eq!(decide(None, next, true), Decision::Skip(Skip::Conflict));
    }

    #[test]
    fn under_another_identity_than_it_had() {
        let (next, dead) = (sighting(OTHER), record(DEAD));
        let by = |own: Option<&Record>, found: Option<&Record>| decide(Some((OWN, own)), Some((&next, found)), false);
        // It stays dead under the old one, which nothing asks for any more.
        assert_eq!(by(Some(&dead), None), Decision::Send { dead: false });
        assert_eq!(by(Some(&dead), Some(&dead)), Decision::Send { dead: true });
        assert_eq!(by(Some(&dead), Some(&record(SUCCEEDED))), Decision::Skip(Skip::Succeeded));
        assert_eq!(by(Some(&record(SUCCEEDED)), None), Decision::Skip(Skip::Succeeded));
        assert_eq!(by(Some(&record(FAILED)), None), Decision::Skip(Skip::Busy));
        assert_eq!(by(None, None), Decision::Skip(Skip::Forgotten));
        // No identity any more: handled without a record.
        assert_eq!(decide(Some((OWN, Some(&dead))), None, false), Decision::Send { dead: false });
    }

    #[test]
    fn without_a_record() {
        assert_eq!(decide(None, None, false), Decision::Send { dead: false });
        assert_eq!(decide(None, Some((&sighting(OWN), None)), false), Decision::Send { dead: false });
        assert_eq!(decide(None, Some((&sighting(OWN), Some(&record(DEAD)))), false), Decision::Send { dead: true });
    }
}
