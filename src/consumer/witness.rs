//! What a commit says of the messages below it, so that another topic of the same name is told from this one. Pure.
//!
//! rdkafka tells no topic id. So each commit carries, in its metadata, a *witness*: offset, timestamp and fingerprint of one message below
//! the committed offset. Whoever gets the partition next looks whether that message is still there. A deleted and
//! recreated topic has another message at that offset, or none.
//!
//! ```text
//!   hapax1:120034:5f0c1a2b:120033:1767225600000:8b1a9953c4611296a827abf8c47804d7
//!          │      │        │      │             └ 128 bits of BLAKE3 over key, payload and headers
//!          │      │        │      └ timestamp, or `-`
//!          │      │        └ the witness's offset
//!          │      └ which cluster, or `-`
//!          └ the offset committed: a copy of the text at another offset is known for one
//! ```

use std::collections::VecDeque;
use std::fmt;

use crate::message::MessageView;

/// How the text begins. Another layout gets another number.
const HEAD: &str = "hapax1";
/// Samples kept of one partition.
const KEPT: usize = 32;
/// Bytes of one part of a message that are hashed, so that a huge message costs no more than a large one.
const HASHED: usize = 64 << 10;

/// One message, as another copy of it would be recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) offset: i64,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) fingerprint: u128,
}

impl Witness {
    pub(super) fn of(message: &(impl MessageView + ?Sized)) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: Option<&[u8]>| {
            // Length first, and null apart from empty: no two messages are written alike.
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hasher.update(&length.to_le_bytes());
            let bytes = bytes.unwrap_or_default();
            hasher.update(bytes.get(..HASHED).unwrap_or(bytes));
        };
        part(message.key());
        part(message.payload());
        message.for_each_header(&mut |name, value| {
            part(Some(name.as_bytes()));
            part(value);
        });
        let mut fingerprint = [0; 16];
        hasher.finalize_xof().fill(&mut fingerprint);
        Self {
            offset: message.offset(),
            timestamp_ms: message.timestamp_ms(),
            fingerprint: u128::from_be_bytes(fingerprint),
        }
    }
}

/// Which cluster an offset was committed in: 32 bits of its id's hash.
pub(super) fn cluster_tag(id: &str) -> u32 {
    let hash = blake3::hash(id.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// The metadata of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The offset that it was committed with.
    pub(super) committed: i64,
    pub(super) cluster: Option<u32>,
    pub(super) witness: Option<Witness>,
}

impl Mark {
    /// Reads the metadata of a commit. `None`: written by somebody else, by another version, or damaged.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        if parts.next() != Some(HEAD) {
            return None;
        }
        let committed = offset(parts.next()?)?;
        let cluster = given(parts.next()?, |hex| hex_of(hex, 8).and_then(|tag| u32::try_from(tag).ok()))?;
        let witness = match parts.next() {
            None => None,
            Some(at) => Some(Witness {
                offset: offset(at).filter(|at| *at < committed)?,
                timestamp_ms: given(parts.next()?, |ms| ms.parse().ok())?,
                fingerprint: hex_of(parts.next()?, 32)?,
            }),
        };
        parts.next().is_none().then_some(Self { committed, cluster, witness })
    }
}

fn offset(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// `Some(None)` for `-`.
#[allow(clippy::option_option)]
fn given<T>(text: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "-" { Some(None) } else { read(text).map(Some) }
}

fn hex_of(text: &str, digits: usize) -> Option<u128> {
    let right = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if right { u128::from_str_radix(text, 16).ok() } else { None }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HEAD}:{}:", self.committed)?;
        match self.cluster {
            Some(tag) => write!(f, "{tag:08x}")?,
            None => f.write_str("-")?,
        }
        let Some(Witness { offset, timestamp_ms, fingerprint }) = self.witness else { return Ok(()) };
        write!(f, ":{offset}:")?;
        match timestamp_ms {
            Some(ms) => write!(f, "{ms}")?,
            None => f.write_str("-")?,
        }
        write!(f, ":{fingerprint:032x}")
    }
}

/// Messages of one partition of which one may become the witness of a commit.
///
/// Which message will be the last of the finished prefix is not known when it is delivered, and its bytes are gone when it is. So
/// one message of each run that is delivered is looked at, and a commit names the last of them that is below it.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// The last one that is below everything committed from now on.
    below: Option<Witness>,
    /// Later ones, in ascending order.
    later: VecDeque<Witness>,
}

impl Samples {
    /// Begins with the witness of an earlier commit, which has been found to be true.
    pub(super) const fn after(below: Option<Witness>) -> Self {
        Self { below, later: VecDeque::new() }
    }

    /// Takes in a message that was delivered after all those before.
    pub(super) fn take(&mut self, witness: Witness) {
        if self.later.len() == KEPT {
            // Nothing is committed for long: keep some of them, near and far.
            let mut keep = false;
            self.later.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.later.push_back(witness);
    }

    /// The last one below `committed`. Offsets asked for never fall.
    pub(super) fn below(&mut self, committed: i64) -> Option<Witness> {
        while let Some(first) = self.later.front()
            && first.offset < committed
        {
            self.below = self.later.pop_front();
        }
        self.below.filter(|witness| witness.offset < committed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Parts;

    fn witness() -> impl Strategy<Value = Witness> {
        (0..i64::MAX, proptest::option::of(any::<i64>()), any::<u128>())
            .prop_map(|(offset, timestamp_ms, fingerprint)| Witness { offset, timestamp_ms, fingerprint })
    }

    proptest! {
        #[test]
        fn a_mark_is_read_as_it_was_written(
            above in 1..1_000_i64,
            cluster in proptest::option::of(any::<u32>()),
            witness in proptest::option::of(witness()),
        ) {
            let committed = witness.map_or(0, |witness| witness.offset).saturating_add(above);
            let mark = Mark { committed, cluster, witness };
            prop_assume!(witness.is_none_or(|witness| witness.offset < committed));
            let text = mark.to_string();
            prop_assert!(text.len() <= 120, "{text}");
            prop_assert_eq!(Mark::parse(&text), Some(mark));
        }

        #[test]
        fn nothing_damaged_is_taken_for_a_mark(
            witness in witness(),
            cut in any::<prop::sample::Index>(),
            noise in any::<String>(),
        ) {
            prop_assume!(witness.offset < i64::MAX);
            let mark = Mark { committed: witness.offset + 1, cluster: Some(7), witness: Some(witness) };
            let text = mark.to_string();
            let cut = &text[..cut.index(text.len())];
            // What is cut off at the cluster's end is a mark without a witness, and says nothing that is not so.
            prop_assert!(Mark::parse(cut).is_none_or(|found| found.witness.is_none()), "{}", cut);
            prop_assert_eq!(Mark::parse(&format!("{text}:")), None);
            prop_assert_eq!(Mark::parse(&noise).map(|found| found.to_string()), Mark::parse(&noise).map(|_| noise.clone()));
        }

        #[test]
        fn a_witness_is_always_below_the_commit_and_never_far_from_it(
            steps in prop::collection::vec((1..4_i64, any::<bool>()), 1..300),
        ) {
            let mut samples = Samples::default();
            let (mut next, mut committed, mut seen) = (0, 0, Vec::new());
            for (gap, commit) in steps {
                let offset = next + gap - 1;
                samples.take(Witness { offset, timestamp_ms: None, fingerprint: offset as u128 });
                seen.push(offset);
                next = offset + 1;
                if commit {
                    committed = committed.max(next - (gap * 7) % next);
                    let found = samples.below(committed);
                    prop_assert!(found.is_none_or(|found| found.offset < committed && seen.contains(&found.offset)));
                    prop_assert_eq!(samples.below(committed), found, "asking again changes nothing");
                }
                prop_assert!(samples.later.len() <= KEPT);
            }
            prop_assert_eq!(samples.below(next).map(|found| found.offset), seen.last().copied());
        }
    }

    #[test]
    fn every_part_counts() {
        let base = || Parts::new("t").at(0, 7).timestamp(5).key("k").payload("p").header("a", "1");
        let same = Witness::of(&base());
        assert_eq!(Witness::of(&base()), same);
        let others = [
            base().key("l"),
            base().key(""),
            base().payload("q"),
            base().payload(""),
            base().header("b", "1"),
            base().header("a", "1"),
            base().null_header("a"),
            Parts::new("t").at(0, 7).timestamp(5).payload("p").header("a", "1"),
            Parts::new("t").at(0, 7).timestamp(5).key("kp").header("a", "1"),
            Parts::new("t").at(0, 7).timestamp(5).key("k").payload("p").null_header("a"),
        ];
        for other in others {
            assert_ne!(Witness::of(&other).fingerprint, same.fingerprint, "{other:?}");
        }
        assert_eq!(
            Witness::of(&base().at(3, 9)).fingerprint,
            same.fingerprint,
            "where it stands is told by the offset"
        );
        // A large payload is told by its beginning and its length.
        let large = |last: usize| Witness::of(&base().payload(vec![1; (HASHED << 1) + last])).fingerprint;
        assert_ne!(large(0), large(1));
    }

    #[test]
    fn the_layout_stays() {
        let witness = Witness::of(&Parts::new("t").at(0, 120_033).timestamp(1_767_225_600_000).key("k").payload("p"));
        let mark =
            Mark { committed: 120_034, cluster: Some(cluster_tag("MkU3OEVBNTcwNTJENDM2Qg")), witness: Some(witness) };
        let text = mark.to_string();
        assert_eq!(text, "hapax1:120034:70396f40:120033:1767225600000:a486e4921ccd7394ab35c548d6ba75f8");
        assert_eq!(Mark::parse(&text), Some(mark));
        assert_eq!(Mark::parse("hapax1:5:-"), Some(Mark { committed: 5, cluster: None, witness: None }));
        for foreign in
            ["", "hapax1", "hapax2:5:-", "hapax1:5", "hapax1:-1:-", "hapax1:+5:-", "hapax1:5:-:5:-:0", "offset 5"]
        {
            assert_eq!(Mark::parse(foreign), None, "{foreign:?}");
        }
    }
}
