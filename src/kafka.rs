//! rdkafka's messages, seen as [`MessageView`]: what a loop of your own hands to the wrapper.
//!
//! Nothing is copied. rdkafka panics when it reads a header whose *name* is not UTF-8, which any producer may send;
//! here such a header is passed over, since no name can ask for it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders, OwnedMessage};

use crate::identity::Stamp;
use crate::message::MessageView;

macro_rules! view {
    ($($type:ty),*) => {$(
        impl MessageView for $type {
            fn topic(&self) -> &str {
                Message::topic(self)
            }
            fn partition(&self) -> i32 {
                Message::partition(self)
            }
            fn offset(&self) -> i64 {
                Message::offset(self)
            }
            fn timestamp_ms(&self) -> Option<i64> {
                Message::timestamp(self).to_millis()
            }
            fn key(&self) -> Option<&[u8]> {
                Message::key(self)
            }
            fn payload(&self) -> Option<&[u8]> {
                Message::payload(self)
            }
            fn header(&self, name: &str) -> Option<&[u8]> {
                let headers = Message::headers(self)?;
                (0..headers.count()).rev().find_map(|at| header_at(headers, at).filter(|(own, _)| *own == name))?.1
            }
            fn for_each_header(&self, show: &mut dyn FnMut(&str, Option<&[u8]>)) {
                let Some(headers) = Message::headers(self) else { return };
                (0..headers.count()).filter_map(|at| header_at(headers, at)).for_each(|(name, value)| show(name, value));
            }
        }
    )*};
}

view!(BorrowedMessage<'_>, OwnedMessage);

impl Stamp {
    /// Adds this stamp to the headers of a message to be sent, behind those that are there: a stamp that came with what was read stays, and
    /// no longer counts.
    ///
    /// ```
    /// use hapax::identity::Stamper;
    /// use rdkafka::message::OwnedHeaders;
    /// use rdkafka::producer::FutureRecord;
    ///
    /// let stamper = Stamper::new("orders-outbox")?;
    /// let headers = stamper.stamp(4711).onto(OwnedHeaders::new());
    /// let record: FutureRecord<'_, str, str> = FutureRecord::to("orders").payload("one coffee").headers(headers);
    /// # drop(record);
    /// # Ok::<(), hapax::identity::IdentityConfigError>(())
    /// ```
    #[must_use]
    pub fn onto(&self, headers: OwnedHeaders) -> OwnedHeaders {
        let add = |headers: OwnedHeaders, (key, value)| headers.insert(Header { key, value: Some(value) });
        self.pairs().into_iter().fold(headers, add)
    }
}

/// Reads one header; `None` where rdkafka cannot.
fn header_at<H: Headers>(headers: &H, at: usize) -> Option<(&str, Option<&[u8]>)> {
    // Only a read of foreign memory behind a shared reference: nothing can be left half changed.
    let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(at))).ok()??;
    Some((header.key, header.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What rdkafka does when the name of the second header is not UTF-8.
    struct Foreign;

    impl Headers for Foreign {
        fn count(&self) -> usize {
            3
        }

        fn try_get(&self, at: usize) -> Option<Header<'_, &[u8]>> {
            match at {
                0 => Some(Header { key: "id", value: Some(b"first") }),
                1 => panic!("called `Result::unwrap()` on an `Err` value: Utf8Error"),
                2 => Some(Header { key: "id", value: None }),
                _ => None,
            }
        }
    }

    #[test]
    fn a_header_whose_name_is_not_utf8_is_passed_over() {
        assert_eq!(header_at(&Foreign, 0), Some(("id", Some(&b"first"[..]))));
        assert_eq!(header_at(&Foreign, 1), None);
        assert_eq!(header_at(&Foreign, 2), Some(("id", None)));
        assert_eq!(header_at(&Foreign, 3), None);
    }

    #[test]
    fn the_last_header_of_a_name_counts_even_if_it_is_null() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "id", value: Some("first") })
            .insert(Header { key: "other", value: Some("x") })
            .insert(Header { key: "id", value: Some("last") })
            .insert(Header { key: "none", value: Some("x") })
            .insert(Header::<&str> { key: "none", value: None });
        let message = OwnedMessage::new(None, None, "t".into(), rdkafka::Timestamp::NotAvailable, 0, 0, Some(headers));
        assert_eq!(message.header("id"), Some(&b"last"[..]));
        assert_eq!((message.header("none"), message.header("missing"), message.header("ID")), (None, None, None));
        let mut shown = 0;
        message.for_each_header(&mut |_, _| shown += 1);
        assert_eq!(shown, 5);
        let stamp = crate::identity::Stamper::new("step").unwrap().following(&message).unwrap();
        let stamped =
            stamp.onto(OwnedHeaders::new().insert(Header { key: "hapax-sequence", value: Some("of upstream") }));
        let sent = OwnedMessage::new(None, None, "u".into(), rdkafka::Timestamp::NotAvailable, 0, 0, Some(stamped));
        let (source, number) = crate::identity::sequence().of(&sent).unwrap();
        assert_eq!((source, number), (crate::identity::Identity::bytes(b"step/t/0").unwrap(), 0));
        let bare = OwnedMessage::new(None, None, "t".into(), rdkafka::Timestamp::NotAvailable, 0, 0, None);
        assert_eq!((bare.header("id"), bare.timestamp_ms()), (None, None));
    }
}
