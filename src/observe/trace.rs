//! The trace context that a message's headers carry: W3C `traceparent` and `tracestate`.

use std::fmt;

use crate::message::MessageView;

/// Which trace a message belongs to, as its producer said in the header `traceparent` (W3C Trace Context, level 1).
///
/// hapax depends on no tracing system: it reads the header, and puts `trace_id` and `parent_span_id` into its span's fields. To make the
/// span a child in OpenTelemetry, see [`Observer::span`](super::Observer::span).
///
/// ```
/// use hapax::message::Parts;
/// use hapax::observe::TraceContext;
///
/// let message = Parts::new("orders").header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
/// let context = TraceContext::of(&message).expect("well formed");
/// assert_eq!(format!("{:032x}", context.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert!(context.is_sampled());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TraceContext {
    /// The trace. Never zero.
    pub trace_id: u128,
    /// The producer's span: the parent of what happens here. Never zero.
    pub parent_id: u64,
    /// The flags; bit 0 says that the producer's trace is recorded.
    pub flags: u8,
}

/// Bytes of a version 00 header: `00-` trace id `-` parent id `-` flags.
const LENGTH: usize = 55;

impl TraceContext {
    /// That of a message; `None` if it has none, or one that is malformed.
    #[must_use]
    pub fn of(message: &(impl MessageView + ?Sized)) -> Option<Self> {
        Self::parse(message.header("traceparent")?)
    }

    /// Reads a `traceparent`, as strictly as the standard asks: lower-case digits, no zero ids. Of later versions what this one knows is
    /// read.
    #[must_use]
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (head, rest) = header.split_at_checked(LENGTH)?;
        let version = hex(head.get(..2)?)?;
        let more_is_well_formed = rest.is_empty() || (version > 0 && rest.first() == Some(&b'-'));
        if version == 0xff || !more_is_well_formed || [2, 35, 52].iter().any(|at| head.get(*at) != Some(&b'-')) {
            return None;
        }
        let trace_id = hex(head.get(3..35)?)?;
        let parent_id = u64::try_from(hex(head.get(36..52)?)?).ok()?;
        let flags = u8::try_from(hex(head.get(53..55)?)?).ok()?;
        (trace_id != 0 && parent_id != 0).then_some(Self { trace_id, parent_id, flags })
    }

    /// Whether the producer's trace is recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}

/// The header's own form, of version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.parent_id, self.flags)
    }
}

fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Parts;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_well_formed_is_read_and_written_alike() {
        let context = TraceContext::parse(GOOD.as_bytes()).expect("well formed");
        assert_eq!(context.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(context.parent_id, 0xb7ad_6b71_6920_3331);
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), GOOD);
        let unsampled = GOOD.replace("-01", "-00");
        assert!(!TraceContext::parse(unsampled.as_bytes()).expect("well formed").is_sampled());
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        for header in [GOOD.replacen("00", "01", 1), format!("{}-more", GOOD.replacen("00", "cc", 1))] {
            let context = TraceContext::parse(header.as_bytes()).expect(&header);
            assert_eq!(context.parent_id, 0xb7ad_6b71_6920_3331);
        }
        assert_eq!(TraceContext::parse(format!("{}more", GOOD.replacen("00", "cc", 1)).as_bytes()), None);
    }

    #[test]
    fn what_is_malformed_is_no_context() {
        let zero_trace = GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let zero_parent = GOOD.replace("b7ad6b7169203331", &"0".repeat(16));
        let bad = [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("{GOOD} "),
            &GOOD.to_uppercase(),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "0g", 1),
            &GOOD.replacen('-', "_", 1),
            &GOOD.replace("-01", "_01"),
            &GOOD.replace("b7ad", "b7a-"),
            &GOOD.replace("-01", "-0x"),
            &zero_trace,
            &zero_parent,
        ];
        for header in bad {
            assert_eq!(TraceContext::parse(header.as_bytes()), None, "{header}");
        }
        assert_eq!(TraceContext::parse(&[0xff; LENGTH]), None);
        // Cut anywhere, with any byte changed to any other: never a panic, and never an id of zero.
        for at in 0..GOOD.len() {
            for byte in 0..=u8::MAX {
                let mut header = GOOD.as_bytes().to_vec();
                header[at] = byte;
                let found = TraceContext::parse(&header);
                assert!(found.is_none_or(|context| context.trace_id != 0 && context.parent_id != 0));
            }
            assert_eq!(TraceContext::parse(&GOOD.as_bytes()[..at]), None);
        }
    }

    #[test]
    fn the_last_header_counts() {
        let message = Parts::new("t").header("traceparent", "nonsense").header("traceparent", GOOD);
        assert_eq!(TraceContext::of(&message).map(|context| context.to_string()).as_deref(), Some(GOOD));
        assert_eq!(TraceContext::of(&message.header("traceparent", "nonsense")), None);
        assert_eq!(TraceContext::of(&Parts::new("t")), None);
    }
}
