//! The view of a message, and the plain one.

use std::rc::Rc;
use std::sync::Arc;

use hapax::message::{MessageView, Parts};

fn full() -> Parts {
    Parts::new("orders")
        .at(3, 42)
        .timestamp(1_700_000_000_000)
        .key("k")
        .payload("p")
        .header("a", "1")
        .null_header("b")
        .header("a", "2")
}

#[test]
fn parts_show_what_they_were_given() {
    let message = full();
    assert_eq!((message.topic(), message.partition(), message.offset()), ("orders", 3, 42));
    assert_eq!(MessageView::key(&message), Some(&b"k"[..]));
    assert_eq!(MessageView::payload(&message), Some(&b"p"[..]));
    assert_eq!(message.timestamp_ms(), Some(1_700_000_000_000));
    let bare = Parts::new("orders");
    assert_eq!((bare.partition(), bare.offset(), bare.timestamp_ms()), (-1, -1, None));
    assert_eq!((MessageView::key(&bare), MessageView::payload(&bare)), (None, None));
}

#[test]
fn the_last_header_of_a_name_counts() {
    let message = full();
    assert_eq!(MessageView::header(&message, "a"), Some(&b"2"[..]));
    assert_eq!(MessageView::header(&message, "A"), None, "names are compared byte for byte");
    assert_eq!(MessageView::header(&message, "b"), None);
    let hidden = full().null_header("a");
    assert_eq!(MessageView::header(&hidden, "a"), None, "a last one that is null hides those before it");
    let mut shown = Vec::new();
    message.for_each_header(&mut |name, value| shown.push((name.to_owned(), value.map(<[u8]>::to_vec))));
    let expected = [("a", Some(b"1".to_vec())), ("b", None), ("a", Some(b"2".to_vec()))];
    assert_eq!(shown, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn every_pointer_to_a_message_is_a_view_of_it() {
    fn copy(message: impl MessageView) -> Parts {
        Parts::copy_of(&message)
    }
    let boxed: Box<dyn MessageView> = Box::new(full());
    let shared: Arc<dyn MessageView + Send + Sync> = Arc::new(full());
    assert_eq!(copy(full()), full());
    assert_eq!(copy(&*boxed), full());
    assert_eq!(copy(boxed), full());
    assert_eq!(copy(shared), full());
    assert_eq!(copy(Rc::new(full())), full());
    let message = full();
    assert_eq!(copy(&message), message);
    let nested = &&message;
    assert_eq!(MessageView::header(nested, "a"), Some(&b"2"[..]));
}
