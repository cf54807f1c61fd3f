//! rdkafka's messages, seen as [`MessageView`]: what a loop of your own hands to the wrapper.
//!
//! Nothing is copied. rdkafka panics when it reads a header whose *name* is not UTF-8, which any producer may send;
//! here such a header is passed over, since no name can ask for it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedMessage};

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

/// Reads one header; `None` where rdkafka cannot.
fn header_at<H: Headers>(headers: &H, at: usize) -> Option<(&str, Option<&[u8]>)> {
    // Only a read of foreign memory behind a shared reference: nothing can be left half changed.
    let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(at))).ok()??;
    Some((header.key, header.value))
}
