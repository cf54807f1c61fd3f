//! A record as the bytes of one key's value, and how its age is told.
//!
//! ```text
//!  0 version   1 state code   2 owner (8)   10 fence (8)   18 time (8)   26 written (8)   34 ttl (8)
//! 42 attempts (4)   46 fingerprint (16)   62 has a result   63 length of origin (2)   65 origin, result
//! ```
//!
//! Numbers are big-endian, times are milliseconds. `written` is when the value was written and `time` is the time of
//! its state, both on the record's own time line; `ttl` is the time to live that it was written with. So what a key has
//! left to live tells what time it is on that line: `written + (ttl - left)`. Every deciding difference is measured by
//! the server's clock. Where the line begins is taken from the server's clock as the client knows it, and is for show.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::identity::Fingerprint;
use crate::record::{self, Fence, Millis, Origin, Owner, Record, Stamp, State, Token};
use crate::store::Retention;

const VERSION: u8 = 1;
/// Version, state code, owner, fence: what a held claim is known by.
const HOLD: usize = 18;
/// The same and the time of the state: what a stamp says.
const STAMP: usize = 26;
const WRITTEN: usize = 26;
const TTL: usize = 34;
const ATTEMPTS: usize = 42;
const FINGERPRINT: usize = 46;
const HAS_RESULT: usize = 62;
const ORIGIN_LEN: usize = 63;
const ORIGIN: usize = 65;

/// A hundred years. Longer durations are cut: the server adds them to its own clock, and scripts count in doubles.
const LONGEST: Millis = 100 * 366 * 24 * 60 * 60 * 1000;

/// A duration in milliseconds that neither the server nor a script overflows at.
pub(super) fn capped(duration: Duration) -> Millis {
    record::millis(duration).min(LONGEST)
}

/// What a value is to say.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) state: State,
    pub(super) token: Token,
    pub(super) attempts: u32,
    pub(super) fingerprint: Fingerprint,
    pub(super) origin: &'a Origin,
    pub(super) result: Option<&'a [u8]>,
}

impl<'a> Draft<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        Self {
            state: record.state,
            token: record.token(),
            attempts: record.attempts,
            fingerprint: record.fingerprint,
            origin: &record.origin,
            result: record.result.as_deref(),
        }
    }

    /// Writes the value into `out`, which is emptied first, and says how long its key is to live.
    pub(super) fn pack(&self, out: &mut Vec<u8>, now: Millis, retention: &Retention) -> Millis {
        let keep = capped(retention.of(self.state));
        let (time, ttl) = if self.state.is_final() {
            (self.state.time(), keep)
        } else {
            let span = self.state.time().saturating_sub(now).clamp(0, LONGEST);
            (now + span, keep + span)
        };
        let ttl = ttl.max(1);
        out.clear();
        hold(out, self.state.code(), self.token);
        out.extend_from_slice(&time.to_be_bytes());
        out.extend_from_slice(&now.to_be_bytes());
        out.extend_from_slice(&ttl.to_be_bytes());
        out.extend_from_slice(&self.attempts.to_be_bytes());
        out.extend_from_slice(self.fingerprint.as_bytes());
        out.push(u8::from(self.result.is_some()));
        let topic = kept_topic(self.origin);
        if topic.is_empty() {
            out.extend_from_slice(&0_u16.to_be_bytes());
        } else {
            // At most 261: see `Origin::MAX_TOPIC`.
            let len = u16::try_from(12 + topic.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&self.origin.partition.to_be_bytes());
            out.extend_from_slice(&self.origin.offset.to_be_bytes());
            out.extend_from_slice(topic);
        }
        if let Some(result) = self.result {
            out.extend_from_slice(result);
        }
        ttl
    }
}

/// The topic as [`Origin::to_bytes`] keeps it.
fn kept_topic(origin: &Origin) -> &[u8] {
    &origin.topic.as_bytes()[..origin.topic.floor_char_boundary(Origin::MAX_TOPIC)]
}

/// The first bytes of a value with this state and token.
pub(super) fn hold(out: &mut Vec<u8>, code: u8, token: Token) {
    out.push(VERSION);
    out.push(code);
    out.extend_from_slice(&token.owner.get().to_be_bytes());
    out.extend_from_slice(&token.fence.get().to_be_bytes());
}

/// The first bytes of the value that a stamp was read from.
pub(super) fn stamp(stamp: &Stamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(STAMP);
    hold(&mut out, stamp.state, Token { owner: stamp.owner, fence: stamp.fence });
    out.extend_from_slice(&stamp.time.to_be_bytes());
    out
}

/// A value as read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed<'a>(&'a [u8]);

impl<'a> Packed<'a> {
    /// `None` for anything this version did not write.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let packed = Self(bytes);
        let whole = bytes.len() >= ORIGIN
            && bytes[0] == VERSION
            && State::from_code(bytes[1], 0).is_some()
            && bytes[HAS_RESULT] <= 1
            && bytes.len() >= packed.result_start()
            && packed.ttl() > 0
            && (bytes[HAS_RESULT] == 1 || bytes.len() == packed.result_start());
        whole.then_some(packed)
    }

    fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        // `new` has looked at the length; a shorter slice would read as zeros.
        if let Some(bytes) = self.0.get(at..at + N) {
            array.copy_from_slice(bytes);
        }
        array
    }

    fn number(self, at: usize) -> Millis {
        Millis::from_be_bytes(self.array(at))
    }

    pub(super) fn state(self) -> State {
        let time = self.number(HOLD);
        State::from_code(self.0[1], time).unwrap_or(State::Processing { until: time })
    }

    pub(super) fn token(self) -> Token {
        let owner = Owner::new(u64::from_be_bytes(self.array(2)));
        Token { owner, fence: Fence::new(u64::from_be_bytes(self.array(10))) }
    }

    pub(super) fn attempts(self) -> u32 {
        u32::from_be_bytes(self.array(ATTEMPTS))
    }

    pub(super) fn fingerprint(self) -> Fingerprint {
        Fingerprint::from_bytes(self.array(FINGERPRINT))
    }

    fn written(self) -> Millis {
        self.number(WRITTEN)
    }

    fn ttl(self) -> Millis {
        self.number(TTL)
    }

    fn result_start(self) -> usize {
        ORIGIN + usize::from(u16::from_be_bytes(self.array(ORIGIN_LEN)))
    }

    fn result(self) -> Option<&'a [u8]> {
        if self.0[HAS_RESULT] == 1 { self.0.get(self.result_start()..) } else { None }
    }

    /// Whether it is from there.
    pub(super) fn is_from(self, origin: &Origin) -> bool {
        let kept = self.0.get(ORIGIN..self.result_start()).unwrap_or_default();
        let topic = kept_topic(origin);
        match kept.get(12..) {
            None => topic.is_empty(),
            Some(kept_topic) => {
                kept_topic == topic
                    && kept[..4] == origin.partition.to_be_bytes()
                    && kept[4..12] == origin.offset.to_be_bytes()
            }
        }
    }

    /// When it was written, and for how long.
    pub(super) fn line(self) -> Line {
        Line { written: self.written(), ttl: self.ttl() }
    }
}

/// A record's own time line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    written: Millis,
    ttl: Millis,
}

impl Line {
    /// The time on it, from what `PTTL` answered. `guess` is the server's clock as the client knows it:
    /// it serves for a key that somebody has made to live for ever.
    pub(super) fn now(self, left: Millis, guess: Millis) -> Millis {
        let age = if left < 0 { guess.saturating_sub(self.written) } else { self.ttl.saturating_sub(left) };
        self.written.saturating_add(age.max(0))
    }

    /// How much of the time to live is left by the client's guess, at least a millisecond.
    pub(super) fn left(self, guess: Millis) -> Millis {
        let age = guess.saturating_sub(self.written);
        self.ttl.saturating_sub(age).clamp(1, self.ttl)
    }
}

/// Reads records, and shares the topic's name among those that are from the same one.
#[derive(Debug, Default)]
pub(super) struct Reader {
    topic: Arc<str>,
}

impl Reader {
    /// `None` for anything this version did not write.
    pub(super) fn read(&mut self, bytes: Vec<u8>) -> Option<Record> {
        let packed = Packed::new(&bytes)?;
        let (state, token, attempts, fingerprint) =
            (packed.state(), packed.token(), packed.attempts(), packed.fingerprint());
        let (start, has_result) = (packed.result_start(), packed.result().is_some());
        let origin = self.origin(bytes.get(ORIGIN..start)?)?;
        // Takes the buffer over: the result is not copied.
        let result = has_result.then(|| Bytes::from(bytes).slice(start..));
        Some(Record { state, owner: token.owner, fence: token.fence, attempts, fingerprint, origin, result })
    }

    fn origin(&mut self, bytes: &[u8]) -> Option<Origin> {
        let Some(topic) = bytes.get(12..) else { return Origin::from_bytes(bytes) };
        if topic == self.topic.as_bytes() {
            let (partition, rest) = bytes.split_first_chunk::<4>()?;
            let (offset, _) = rest.split_first_chunk::<8>()?;
            return Some(Origin {
                topic: Arc::clone(&self.topic),
                partition: i32::from_be_bytes(*partition),
                offset: i64::from_be_bytes(*offset),
            });
        }
        let origin = Origin::from_bytes(bytes)?;
        self.topic = Arc::clone(&origin.topic);
        Some(origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(state: State, result: Option<&'static [u8]>, topic: &str) -> Record {
        Record {
            state,
            owner: Owner::new(0xfedc_ba98_7654_3210),
            fence: Fence::new(u64::MAX),
            attempts: 7,
            fingerprint: Fingerprint::from_bytes([9; 16]),
            origin: Origin { topic: topic.into(), partition: 3, offset: i64::MAX },
            result: result.map(Bytes::from_static),
        }
    }

    #[test]
    fn what_is_packed_is_read_back() {
        let mut bytes = Vec::new();
        let mut reader = Reader::default();
        let states = [
            State::Processing { until: 5_000 },
            State::Failed { due: 1_000 },
            State::Succeeded { at: 900, late: false },
            State::Succeeded { at: 900, late: true },
            State::Dead { at: 1_000 },
        ];
        for state in states {
            for result in [None, Some(&b""[..]), Some(&b"\x00\xffdone"[..])] {
                for topic in ["", "orders", "orders", "other"] {
                    let mut record = record(state, result, topic);
                    if topic.is_empty() {
                        record.origin = Origin::default();
                    }
                    Draft::of(&record).pack(&mut bytes, 1_000, &Retention::default());
                    assert_eq!(reader.read(bytes.clone()), Some(record.clone()));
                    assert_eq!(&bytes[..STAMP], stamp(&record.stamp()));
                    assert!(Packed::new(&bytes).is_some_and(|packed| packed.is_from(&record.origin)));
                }
            }
        }
    }

    #[test]
    fn a_topic_too_long_is_cut_as_origins_are() {
        let long = record(State::Dead { at: 1 }, None, &"ä".repeat(200));
        let mut bytes = Vec::new();
        Draft::of(&long).pack(&mut bytes, 1, &Retention::default());
        let read = Reader::default().read(bytes.clone()).expect("it is whole");
        assert_eq!(Some(&read.origin), Origin::from_bytes(&long.origin.to_bytes()).as_ref());
        assert!(Packed::new(&bytes).is_some_and(|packed| packed.is_from(&long.origin)));
    }

    #[test]
    fn what_is_left_to_live_tells_the_time() {
        let record = record(State::Processing { until: 31_000 }, None, "orders");
        let mut bytes = Vec::new();
        let retention = Retention::default().unsettled(Duration::from_secs(60));
        let ttl = Draft::of(&record).pack(&mut bytes, 1_000, &retention);
        assert_eq!(ttl, 90_000);
        let packed = Packed::new(&bytes).expect("just packed").line();
        assert_eq!(packed.now(90_000, 0), 1_000);
        assert_eq!(packed.now(60_000, 0), 31_000, "the lease is over when only the retention is left");
        assert_eq!(packed.now(100_000, 0), 1_000, "time does not run backwards");
        assert_eq!(packed.now(-1, 11_000), 11_000, "a key without an end goes by the guess");
    }

    #[test]
    fn endless_durations_are_cut() {
        let record = record(State::Processing { until: Millis::MAX }, None, "");
        let mut bytes = Vec::new();
        let retention = Retention::default().unsettled(Duration::MAX);
        let ttl = Draft::of(&record).pack(&mut bytes, 1_000, &retention);
        assert_eq!(ttl, 2 * LONGEST);
        assert!(ttl < 1 << 53, "a script counts in doubles");
        let none = Retention::default().succeeded(Duration::ZERO);
        let record = self::record(State::Succeeded { at: 0, late: false }, None, "");
        assert_eq!(Draft::of(&record).pack(&mut bytes, 1_000, &none), 1, "PX 0 would be refused");
    }

    #[test]
    fn foreign_values_are_not_read() {
        let mut bytes = Vec::new();
        Draft::of(&record(State::Dead { at: 1 }, None, "t")).pack(&mut bytes, 1, &Retention::default());
        let mut reader = Reader::default();
        for cut in 0..bytes.len() {
            assert_eq!(reader.read(bytes[..cut].to_vec()), None, "cut to {cut}");
        }
        for (at, byte) in [(0, 2), (1, 5), (HAS_RESULT, 2)] {
            let mut other = bytes.clone();
            other[at] = byte;
            assert_eq!(reader.read(other), None);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(reader.read(longer), None, "no result is said to follow");
        assert_eq!(reader.read(b"1".to_vec()), None);
    }
}
