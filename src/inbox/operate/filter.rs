//! Which messages are meant.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use super::sql::{Sql, Values, listed};
use crate::inbox::message::MessageId;
use crate::inbox::rules::Class;
use crate::record::Millis;

/// From and to, both included.
type Span = (i64, i64);

fn span(range: impl RangeBounds<i64>) -> Span {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(from) => from.saturating_add(1),
        Bound::Unbounded => i64::MIN,
    };
    let to = match range.end_bound() {
        Bound::Included(to) => *to,
        Bound::Excluded(to) => to.saturating_sub(1),
        Bound::Unbounded => i64::MAX,
    };
    (from, to)
}

/// What must hold of a message. All of it.
#[derive(Clone, Default)]
pub(super) struct Filter {
    pub(super) ids: Option<Vec<i64>>,
    pub(super) topic: Option<String>,
    pub(super) partition: Option<i32>,
    pub(super) offsets: Option<Span>,
    pub(super) accepted: Option<Span>,
    pub(super) keys: Option<Vec<Vec<u8>>>,
    pub(super) identity: Option<[u8; 16]>,
    pub(super) class: Option<Class>,
}

impl Filter {
    pub(super) fn set_ids(&mut self, ids: impl IntoIterator<Item = MessageId>) {
        let mut ids: Vec<i64> = ids.into_iter().map(|id| id.0).collect();
        ids.sort_unstable();
        ids.dedup();
        self.ids = Some(ids);
    }

    pub(super) fn set_offsets(&mut self, partition: i32, offsets: impl RangeBounds<i64>) {
        self.partition = Some(partition);
        self.offsets = Some(span(offsets));
    }

    pub(super) fn set_accepted(&mut self, times: impl RangeBounds<Millis>) {
        self.accepted = Some(span(times));
    }

    pub(super) fn set_keys<K: Into<Vec<u8>>>(&mut self, keys: impl IntoIterator<Item = K>) {
        let mut keys: Vec<Vec<u8>> = keys.into_iter().map(Into::into).collect();
        keys.sort_unstable();
        keys.dedup();
        self.keys = Some(keys);
    }

    /// Conditions on a message `m`, each with `AND` before it; but for its ids, which are looked up.
    pub(super) fn conditions<D: Sql>(&self, values: &mut Values, attempts: &str) -> String {
        let mut text = String::new();
        let mut add = |condition: String| {
            text.push_str(" AND ");
            text.push_str(&condition);
        };
        let between = |column: &str, span: Option<Span>| match span {
            // The smallest number there is cannot be written in all of them.
            Some((from, to)) => format!("m.{column} >= {} AND m.{column} <= {to}", from.max(-i64::MAX)),
            None => "1 = 1".to_owned(),
        };
        if let Some(key) = &self.identity {
            add(format!("m.message_key = {}", values.bytes::<D>(Some(key))));
        }
        if let Some(topic) = &self.topic {
            add(format!("m.topic = {}", values.text::<D>(topic)));
        }
        if let Some(partition) = self.partition {
            add(format!("m.part = {partition}"));
        }
        if self.offsets.is_some() {
            add(between("log_offset", self.offsets));
        }
        if self.accepted.is_some() {
            add(between("accepted", self.accepted));
        }
        match self.keys.as_deref() {
            None => {}
            Some([]) => add("1 = 0".into()),
            Some(keys) => {
                let keys: Vec<String> = keys.iter().map(|key| values.bytes::<D>(Some(key))).collect();
                add(format!("m.record_key IN ({})", keys.join(", ")));
            }
        }
        if let Some(class) = self.class {
            add(format!(
                "(SELECT a.class FROM {attempts} a WHERE a.id = m.id ORDER BY a.generation DESC, a.attempt DESC LIMIT 1) = {}",
                class.code()
            ));
        }
        text
    }

    /// Equal for equal filters: a request's id belongs to one of them.
    pub(super) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("hapax inbox v1 which");
        let mut add = |name: &str, parts: &[&[u8]]| {
            hasher.update(name.as_bytes());
            for part in parts {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        };
        if let Some(ids) = &self.ids {
            add("ids", &[listed(ids.iter().copied()).as_bytes()]);
        }
        if let Some(topic) = &self.topic {
            add("topic", &[topic.as_bytes()]);
        }
        if let Some(partition) = self.partition {
            add("partition", &[&partition.to_le_bytes()]);
        }
        for (name, span) in [("offsets", self.offsets), ("accepted", self.accepted)] {
            if let Some((from, to)) = span {
                add(name, &[&from.to_le_bytes(), &to.to_le_bytes()]);
            }
        }
        if let Some(keys) = &self.keys {
            add("keys", &keys.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        let hash = hasher.finalize().to_hex();
        hash.as_str().get(..16).unwrap_or_default().to_owned()
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys: they may be what is to be erased.
        f.debug_struct("Filter")
            .field("ids", &self.ids.as_ref().map(Vec::len))
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("offsets", &self.offsets)
            .field("accepted", &self.accepted)
            .field("keys", &self.keys.as_ref().map(Vec::len))
            .field("identity", &self.identity.is_some())
            .field("class", &self.class)
            .finish()
    }
}

/// Which messages a [replay](crate::Inbox::replay), an [erasure](crate::Inbox::erase) or a [purge](crate::Inbox::purge_these) is about. All that is
/// said must hold.
///
/// ```
/// use hapax::inbox::{MessageId, Which};
///
/// # let (monday, tuesday) = (1_700_000_000_000, 1_700_086_400_000);
/// let _ = Which::ids([MessageId(7)]);
/// let _ = Which::topic("orders").offsets(3, 1000..2000);
/// let _ = Which::topic("orders").accepted(monday..tuesday);
/// let _ = Which::keys(["customer-7", "customer-9"]);
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is chosen before it is handed on"]
pub struct Which {
    pub(super) filter: Filter,
}

impl Which {
    /// These messages.
    pub fn ids(ids: impl IntoIterator<Item = MessageId>) -> Self {
        let mut filter = Filter::default();
        filter.set_ids(ids);
        Self { filter }
    }

    /// The messages of a topic.
    pub fn topic(topic: impl Into<String>) -> Self {
        Self { filter: Filter { topic: Some(topic.into()), ..Filter::default() } }
    }

    /// The messages with these keys, as they came from Kafka, of all topics unless [`of_topic`](Self::of_topic) names one. No index knows of keys: the
    /// inbox is read from end to end, in small steps.
    pub fn keys<K: Into<Vec<u8>>>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut filter = Filter::default();
        filter.set_keys(keys);
        Self { filter }
    }

    /// Only those of this topic.
    pub fn of_topic(mut self, topic: impl Into<String>) -> Self {
        self.filter.topic = Some(topic.into());
        self
    }

    /// Only those of this partition, at these offsets.
    pub fn offsets(mut self, partition: i32, offsets: impl RangeBounds<i64>) -> Self {
        self.filter.set_offsets(partition, offsets);
        self
    }

    /// Only those accepted at these times, in milliseconds since 1970 by the database's clock.
    pub fn accepted(mut self, times: impl RangeBounds<Millis>) -> Self {
        self.filter.set_accepted(times);
        self
    }

    /// Only those with this key.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.filter.set_keys([key.into()]);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::{MessageId, Which, span};

    #[test]
    fn ranges_are_closed() {
        assert_eq!(span(3..5), (3, 4));
        assert_eq!(span(3..=5), (3, 5));
        assert_eq!(span(..), (i64::MIN, i64::MAX));
        assert_eq!(span((std::ops::Bound::Excluded(3), std::ops::Bound::Unbounded)), (4, i64::MAX));
    }

    #[test]
    fn a_digest_tells_choices_apart() {
        let all = [
            Which::topic("a"),
            Which::topic("b"),
            Which::topic("a").offsets(0, 1..5),
            Which::topic("a").offsets(1, 1..5),
            Which::topic("a").accepted(1..5),
            Which::keys(["a"]),
            Which::keys(["a", "b"]),
            Which::keys(["ab"]),
            Which::ids([MessageId(1)]),
            Which::ids([MessageId(1), MessageId(2)]),
        ];
        let digests: std::collections::BTreeSet<String> = all.iter().map(|which| which.filter.digest()).collect();
        assert_eq!(digests.len(), all.len());
        assert_eq!(Which::ids([MessageId(2), MessageId(1), MessageId(2)]).filter.digest(), all[9].filter.digest());
    }

    #[test]
    fn keys_are_not_shown() {
        assert!(!format!("{:?}", Which::keys(["secret"])).contains("secret"));
    }
}
