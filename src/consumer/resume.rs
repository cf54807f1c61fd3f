//! Where a partition goes on, and whether that is where the group left off. Pure: what was seen in, a decision out.
//!
//! librdkafka jumps by itself, without a word, wherever the committed offset is missing or out of range. hapax has that turned off, looks at
//! what is there before it takes a partition in, and decides here.
//!
//! ```text
//!                 low            committed        high
//!   deleted ───────┤ messages that are there ├──── not written yet
//!     ▲ Deleted            ▲ OtherMessage             ▲ PastEnd
//! ```

use super::finding::{Finding, OnReset};
use super::witness::Mark;

/// What `auto.offset.reset` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    Earliest,
    Latest,
    Error,
}

impl Reset {
    /// Reads the setting; librdkafka knows three words for either end.
    pub(super) fn parse(value: &str) -> Option<Self> {
        match value.trim().to_ascii_lowercase().as_str() {
            "smallest" | "earliest" | "beginning" => Some(Self::Earliest),
            "largest" | "latest" | "end" => Some(Self::Latest),
            "error" => Some(Self::Error),
            _ => None,
        }
    }
}

/// What stands where the witness stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The same message.
    Same,
    /// Another one.
    Other,
    /// None.
    Gone,
    /// Not told in time, or not asked.
    Unread,
}

/// What is there of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// What the group has committed.
    pub(super) committed: Option<i64>,
    /// What that commit said, if hapax made it.
    pub(super) mark: Option<Mark>,
    /// The first offset there is.
    pub(super) low: i64,
    /// The next offset to be written.
    pub(super) high: i64,
    /// What stands where the witness stood.
    pub(super) look: Look,
    /// Which cluster this is.
    pub(super) cluster: Option<u32>,
    /// The highest offset that this process has committed here.
    pub(super) known: Option<i64>,
    /// `committed` and `mark` are of a window's row, and this is what the group has committed.
    pub(super) instead_of: Option<Option<i64>>,
}

impl Seen {
    /// A window's row says where to go on: it wins over the group's offset.
    pub(super) const fn follow(&mut self, next: i64, note: Option<Mark>) {
        self.instead_of = Some(self.committed);
        self.committed = Some(next);
        self.mark = note;
        // Offsets that were committed follow the window, and never lead.
        self.known = None;
    }

    /// Where a window and the group's offset differ.
    pub(super) fn difference(&self) -> Option<Finding> {
        let (next, committed) = (self.committed?, self.instead_of?);
        (committed != Some(next)).then_some(Finding::Window { next, committed })
    }

    /// The mark, if it was written with this very offset.
    fn own_mark(&self) -> Option<Mark> {
        self.mark.filter(|mark| Some(mark.committed) == self.committed)
    }

    /// Which message has to be looked at: it may still be there.
    pub(super) fn to_look_at(self) -> Option<i64> {
        let committed = self.committed.filter(|committed| (self.low..=self.high).contains(committed))?;
        let offset = self.own_mark()?.witness?.offset;
        (self.low..committed).contains(&offset).then_some(offset)
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resume {
    /// Where to begin; `None`: nowhere, since the consumer is to end.
    pub(super) at: Option<i64>,
    /// Whether that is where the group left off.
    pub(super) continues: bool,
    /// Commit it at once, so that a restart before the first commit begins there too, and passes nothing.
    pub(super) pin: bool,
    /// What to say.
    pub(super) finding: Option<Finding>,
}

/// Decides where a partition goes on.
pub(super) fn decide(seen: &Seen, reset: Reset, policy: OnReset) -> Resume {
    let Seen { low, high, .. } = *seen;
    let Some(next) = seen.committed else {
        return match reset {
            Reset::Earliest => by_reset(seen, reset, policy, Finding::FromFirst { low, high }),
            Reset::Latest if low == high => by_reset(seen, reset, policy, Finding::FromEnd { high }),
            Reset::Latest => by_reset(seen, reset, policy, Finding::Passed { low, high }),
            Reset::Error => by_reset(seen, reset, policy, Finding::NoOffset { low, high }),
        };
    };
    if let Some(finding) = out_of_range(next, low, high) {
        return by_reset(seen, reset, policy, finding);
    }
    let mark = seen.own_mark();
    let looked = mark.and_then(|mark| mark.witness);
    if let (Some(witness), Look::Other) = (looked, seen.look) {
        return by_reset(seen, reset, policy, Finding::OtherMessage { next, offset: witness.offset });
    }
    let proven = looked.is_some() && seen.look == Look::Same;
    // A copied mark still says where it comes from.
    let elsewhere =
        matches!((seen.mark.and_then(|mark| mark.cluster), seen.cluster), (Some(was), Some(is)) if was != is);
    let finding = if elsewhere && !proven {
        Some(Finding::OtherCluster { next })
    } else if let Some(from) = seen.known.filter(|known| *known > next) {
        Some(Finding::Rewound { from, to: next })
    } else {
        match (mark, looked, seen.look) {
            // A row may have been written by somebody's own loop, which leaves no mark.
            (None, ..) if seen.instead_of.is_some() => None,
            (None, ..) => Some(Finding::SetByOther { committed: next }),
            (Some(_), Some(witness), Look::Gone) => Some(Finding::Unproven { next, offset: witness.offset }),
            (Some(_), Some(_), Look::Unread) => Some(Finding::NotLookedAt),
            _ => None,
        }
    };
    let refused = policy == OnReset::Refuse && finding.is_some_and(|finding| finding.breaks());
    Resume { at: (!refused).then_some(next), continues: true, pin: false, finding }
}

/// Whether nothing can be fetched at `next`.
pub(super) const fn out_of_range(next: i64, low: i64, high: i64) -> Option<Finding> {
    if next < low {
        Some(Finding::Deleted { next, low, high })
    } else if next > high {
        Some(Finding::PastEnd { next, high })
    } else {
        None
    }
}

/// Where to begin if not where the group left off.
pub(super) fn by_reset(seen: &Seen, reset: Reset, policy: OnReset, finding: Finding) -> Resume {
    let at = match reset {
        _ if policy == OnReset::Refuse && finding.breaks() => None,
        Reset::Earliest => Some(seen.low),
        Reset::Latest => Some(seen.high),
        Reset::Error => None,
    };
    Resume { at, continues: false, pin: reset == Reset::Latest && at.is_some(), finding: Some(finding) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::witness::Witness;
    use super::*;

    const POLICIES: [OnReset; 3] = [OnReset::Refuse, OnReset::Warn, OnReset::Accept];
    const RESETS: [Reset; 3] = [Reset::Earliest, Reset::Latest, Reset::Error];

    fn seen(committed: Option<i64>, low: i64, high: i64) -> Seen {
        Seen { committed, mark: None, low, high, look: Look::Unread, cluster: None, known: None, instead_of: None }
    }

    /// Committed by hapax, in cluster 1, with the message before as its witness.
    fn own(committed: i64, low: i64, high: i64, look: Look) -> Seen {
        let witness = Some(Witness { offset: committed - 1, timestamp_ms: None, fingerprint: 1 });
        let mark = Some(Mark { committed, cluster: Some(1), witness });
        Seen { committed: Some(committed), mark, low, high, look, cluster: Some(1), known: None, instead_of: None }
    }

    fn finding(seen: &Seen, reset: Reset) -> Option<Finding> {
        decide(seen, reset, OnReset::Warn).finding
    }

    #[test]
    fn the_words_of_the_setting() {
        for (word, reset) in [
            ("earliest", Reset::Earliest),
            ("Beginning", Reset::Earliest),
            (" smallest", Reset::Earliest),
            ("latest", Reset::Latest),
            ("end", Reset::Latest),
            ("largest", Reset::Latest),
            ("error", Reset::Error),
        ] {
            assert_eq!(Reset::parse(word), Some(reset), "{word}");
        }
        assert_eq!(Reset::parse("none"), None);
    }

    #[test]
    fn a_group_that_goes_on_says_nothing() {
        for reset in RESETS {
            for policy in POLICIES {
                let resume = decide(&own(70, 10, 100, Look::Same), reset, policy);
                assert_eq!(resume, Resume { at: Some(70), continues: true, pin: false, finding: None });
            }
        }
    }

    #[test]
    fn a_window_wins_over_what_is_committed_and_the_difference_is_named() {
        for committed in [None, Some(10), Some(70), Some(95)] {
            let mut seen = Seen { known: Some(99), ..self::seen(committed, 0, 100) };
            seen.follow(70, own(70, 0, 100, Look::Same).mark);
            seen.look = Look::Same;
            let resume = decide(&seen, Reset::Latest, OnReset::Refuse);
            assert_eq!((resume.at, resume.continues, resume.finding), (Some(70), true, None), "{committed:?}");
            let named = (committed != Some(70)).then_some(Finding::Window { next: 70, committed });
            assert_eq!(seen.difference(), named);
            assert!(named.is_none_or(|finding| !finding.breaks()));
            assert_eq!(named.is_some_and(|finding| finding.is_odd()), committed == Some(95), "set forward by hand");
            // Its row says which topic it was, as a commit does.
            seen.look = Look::Other;
            let other = decide(&seen, Reset::Earliest, OnReset::Refuse);
            assert_eq!((other.at, other.finding), (None, Some(Finding::OtherMessage { next: 70, offset: 69 })));
            seen.high = 50;
            let past = decide(&seen, Reset::Earliest, OnReset::Accept);
            assert_eq!((past.at, past.finding), (Some(0), Some(Finding::PastEnd { next: 70, high: 50 })));
        }
        // A row without a note, as a loop of somebody's own leaves it.
        let mut bare = seen(Some(70), 0, 100);
        bare.follow(70, None);
        assert_eq!(decide(&bare, Reset::Earliest, OnReset::Refuse).finding, None);
    }

    #[test]
    fn without_an_offset() {
        let fresh = seen(None, 10, 100);
        for policy in POLICIES {
            let first = decide(&fresh, Reset::Earliest, policy);
            assert_eq!((first.at, first.pin), (Some(10), false), "all is delivered: nothing is lost");
            assert_eq!(first.finding, Some(Finding::FromFirst { low: 10, high: 100 }));
            let empty = decide(&seen(None, 100, 100), Reset::Latest, policy);
            assert_eq!((empty.at, empty.pin), (Some(100), true), "nothing is passed");
            assert_eq!(decide(&fresh, Reset::Error, policy).at, None, "there is nowhere to begin");
        }
        assert_eq!(decide(&fresh, Reset::Latest, OnReset::Refuse).at, None);
        let passed = decide(&fresh, Reset::Latest, OnReset::Accept);
        assert_eq!((passed.at, passed.pin, passed.continues), (Some(100), true, false));
        assert_eq!(passed.finding, Some(Finding::Passed { low: 10, high: 100 }));
    }

    #[test]
    fn offsets_out_of_range() {
        let deleted = own(5, 10, 100, Look::Unread);
        assert_eq!(finding(&deleted, Reset::Earliest), Some(Finding::Deleted { next: 5, low: 10, high: 100 }));
        assert_eq!(decide(&deleted, Reset::Earliest, OnReset::Warn).at, Some(10));
        assert_eq!(decide(&deleted, Reset::Latest, OnReset::Accept).at, Some(100));
        let past = own(101, 10, 100, Look::Unread);
        assert_eq!(finding(&past, Reset::Latest), Some(Finding::PastEnd { next: 101, high: 100 }));
        for seen in [deleted, past] {
            for reset in RESETS {
                assert_eq!(decide(&seen, reset, OnReset::Refuse).at, None);
            }
            assert_eq!(decide(&seen, Reset::Error, OnReset::Accept).at, None, "an error stays one");
        }
        for edge in [10, 100] {
            assert_eq!(finding(&own(edge, 10, 100, Look::Same), Reset::Error), None);
        }
    }

    #[test]
    fn what_the_witness_says() {
        let other = own(70, 10, 100, Look::Other);
        assert_eq!(finding(&other, Reset::Earliest), Some(Finding::OtherMessage { next: 70, offset: 69 }));
        assert_eq!(decide(&other, Reset::Earliest, OnReset::Refuse).at, None);
        let accepted = decide(&other, Reset::Earliest, OnReset::Accept);
        assert_eq!((accepted.at, accepted.continues), (Some(10), false), "another topic is read from its beginning");
        assert_eq!(
            finding(&own(70, 10, 100, Look::Gone), Reset::Error),
            Some(Finding::Unproven { next: 70, offset: 69 })
        );
        assert_eq!(finding(&own(70, 10, 100, Look::Unread), Reset::Error), Some(Finding::NotLookedAt));
        // A mark that was copied to another offset is not its witness.
        let mut copied = other;
        copied.committed = Some(71);
        assert_eq!(finding(&copied, Reset::Error), Some(Finding::SetByOther { committed: 71 }));
        assert_eq!(copied.to_look_at(), None);
    }

    #[test]
    fn another_cluster_is_named_unless_it_holds_the_same_messages() {
        for (look, named) in [(Look::Same, false), (Look::Gone, true), (Look::Unread, true)] {
            let moved = Seen { cluster: Some(2), ..own(70, 10, 100, look) };
            assert_eq!(finding(&moved, Reset::Error) == Some(Finding::OtherCluster { next: 70 }), named, "{look:?}");
            assert_eq!(decide(&moved, Reset::Error, OnReset::Refuse).at.is_none(), named);
            assert_eq!(decide(&moved, Reset::Error, OnReset::Accept).at, Some(70));
            let unknown = Seen { cluster: None, ..moved };
            assert_ne!(finding(&unknown, Reset::Error), Some(Finding::OtherCluster { next: 70 }));
        }
        // Tools that carry offsets over copy the mark, and change the offset.
        let carried = Seen { committed: Some(40), cluster: Some(2), ..own(70, 10, 100, Look::Unread) };
        assert_eq!(finding(&carried, Reset::Error), Some(Finding::OtherCluster { next: 40 }));
    }

    #[test]
    fn a_replay_is_named_and_goes_on() {
        let replay = Seen { known: Some(90), ..seen(Some(20), 10, 100) };
        for policy in POLICIES {
            let resume = decide(&replay, Reset::Error, policy);
            assert_eq!((resume.at, resume.finding), (Some(20), Some(Finding::Rewound { from: 90, to: 20 })));
        }
        assert_eq!(finding(&seen(Some(20), 10, 100), Reset::Error), Some(Finding::SetByOther { committed: 20 }));
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        let look = prop::sample::select(vec![Look::Same, Look::Other, Look::Gone, Look::Unread]);
        let mark = proptest::option::of((1..60_i64, 1..20_i64, proptest::option::of(0..2_u32), any::<bool>()));
        (
            proptest::option::of(0..60_i64),
            mark,
            0..50_i64,
            0..50_i64,
            look,
            proptest::option::of(0..2_u32),
            proptest::option::of(0..60_i64),
        )
            .prop_map(|(committed, mark, low, length, look, cluster, known)| {
                let mark = mark.map(|(at, back, cluster, witness)| {
                    let offset = (at - back).max(0);
                    let witness = witness.then_some(Witness { offset, timestamp_ms: None, fingerprint: 0 });
                    Mark { committed: at, cluster, witness }
                });
                Seen { committed, mark, low, high: low + length, look, cluster, known, instead_of: None }
            })
    }

    proptest! {
        #[test]
        fn whatever_is_there(seen in any_seen()) {
            for reset in RESETS {
                for policy in POLICIES {
                    let resume = decide(&seen, reset, policy);
                    let breaks = resume.finding.is_some_and(|finding| finding.breaks());
                    // It never begins where nothing can be fetched: librdkafka would have to jump.
                    if let Some(at) = resume.at {
                        prop_assert!((seen.low..=seen.high).contains(&at));
                        prop_assert!(!resume.continues || seen.committed == Some(at));
                        // Whatever is passed by has been named.
                        prop_assert!(at <= seen.committed.unwrap_or(seen.low).max(seen.low) || breaks || seen.low == seen.high);
                        prop_assert!(!resume.pin || at == seen.high);
                    } else {
                        prop_assert!(breaks && (policy == OnReset::Refuse || reset == Reset::Error));
                    }
                    prop_assert!(policy != OnReset::Refuse || resume.at.is_none() == breaks);
                    // What is said does not depend on who hears it, nor the start on whether it is only warned of.
                    prop_assert_eq!(resume.finding, decide(&seen, reset, OnReset::Accept).finding);
                    prop_assert_eq!(decide(&seen, reset, OnReset::Warn), decide(&seen, reset, OnReset::Accept));
                    prop_assert!(resume.finding.is_none_or(|finding| !finding.to_string().is_empty() && !finding.cure().is_empty()));
                }
            }
            if let Some(offset) = seen.to_look_at() {
                prop_assert!(seen.low <= offset && offset < seen.high);
            }
        }
    }
}
