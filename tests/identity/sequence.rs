//! A producer's source and number; windows, and what asks for them.

use hapax::identity::{
    Field, Identify, Identity, IdentityConfigError, IdentityError, Stamper, WindowBy, header, position, sequence,
};
use hapax::message::Parts;
use hapax::window::Sequences;

use crate::order;

fn stamped(source: &str, number: &[u8]) -> Parts {
    order().header("hapax-source", source).header("hapax-sequence", number)
}

#[test]
fn it_is_source_and_number_however_written() {
    let read = |number: &[u8]| sequence().of(&stamped("outbox", number)).map(|(_, number)| number);
    let cases: [(&[u8], u64); 9] = [
        (b"0", 0),
        (b"007", 7),
        (b"4711", 4711),
        (b"12345678", 12_345_678),
        (b"9223372036854775808", 1 << 63),
        (b"18446744073709551615", u64::MAX),
        (&[0, 0, 0, 0, 0, 0, 0, 7], 7),
        (&[0xff; 8], u64::MAX),
        (b"1234567:", u64::from_be_bytes(*b"1234567:")),
    ];
    for (written, number) in cases {
        assert_eq!(read(written), Ok(number), "{written:?}");
    }
    assert_eq!(sequence().of(&stamped("outbox", b"7")).unwrap().0, Identity::bytes(b"outbox").unwrap());
    let identity = |source, number: &[u8]| sequence().identity(&stamped(source, number)).unwrap();
    assert_eq!(identity("a", b"7"), identity("a", &7_u64.to_be_bytes()));
    assert_ne!(identity("a", b"7"), identity("b", b"7"));
    assert_ne!(identity("a", b"7"), identity("a", b"8"));
}

#[test]
fn what_is_no_number_is_malformed_and_not_passed_by() {
    let malformed = Err(IdentityError::Malformed { field: Field::Header("hapax-sequence".into()) });
    for written in [
        &b"-1"[..],
        b"+7",
        b" 7",
        b"7 ",
        b"1.5",
        b"x",
        b"18446744073709551616",
        b"999999999999999999999",
        &[0; 7],
        &[0; 9],
    ] {
        let message = stamped("outbox", written).header("id", "a");
        assert_eq!(sequence().identity(&message).map(drop), malformed, "{written:?}");
        assert_eq!(sequence().or(header("id")).identity(&message).map(drop), malformed, "{written:?}");
    }
    let missing = |name: &str| Some(IdentityError::Missing { field: Field::Header(name.into()) });
    let bare = order().header("id", "a");
    assert_eq!(sequence().identity(&bare).err(), missing("hapax-source"));
    assert_eq!(sequence().identity(&bare.clone().header("hapax-source", "s")).err(), missing("hapax-sequence"));
    assert_eq!(sequence().or(header("id")).identity(&bare), header("id").identity(&bare));
    let empty = IdentityError::Empty { field: Field::Header("hapax-source".into()) };
    assert_eq!(sequence().of(&stamped("", b"7")).err(), Some(empty));
    let long = sequence().of(&stamped(&"s".repeat(5_000), b"7"));
    assert!(matches!(long, Err(IdentityError::Oversize { field: Field::Header(_), .. })), "{long:?}");
}

#[test]
fn a_window_is_asked_for_by_what_begins_with_one() {
    let position_window = |identify: &dyn Identify| matches!(identify.window(), Some(WindowBy::Position));
    let sequence_window = |identify: &dyn Identify| matches!(identify.window(), Some(WindowBy::Sequence(_)));
    assert!(position_window(&position()) && !position().records());
    assert!(sequence_window(&sequence()) && !sequence().records());
    let both = position().and_then(header("id"));
    assert!(position_window(&both) && both.records());
    let boxed: Box<dyn Identify> = Box::new(sequence().span(128).and_then(header("id")));
    assert!(sequence_window(&boxed) && boxed.records());
    let Some(WindowBy::Sequence(by)) = boxed.window() else { panic!("{boxed:?}") };
    assert_eq!((by.get_span(), sequence().get_span()), (128, Sequences::SPAN));
    for plain in [
        Box::new(header("id")) as Box<dyn Identify>,
        Box::new(position().or(header("id"))),
        Box::new(position().and(header("id"))),
    ] {
        assert!(plain.window().is_none() && plain.records(), "{plain:?}");
    }
    let message = order().header("id", "a");
    assert_eq!(both.identity(&message), header("id").identity(&message), "the record is the second's alone");
    assert!(both.identity(&order()).is_err(), "nothing falls back to the window");
}

#[test]
fn a_window_is_checked_before_the_first_message() {
    assert_eq!(position().and_then(header("id")).validate(), Ok(()));
    assert_eq!(header("a").and_then(header("b")).validate(), Err(IdentityConfigError::NoWindow));
    assert!(position().and_then(header("")).validate().is_err());
    assert!(sequence().source_header(" ").validate().is_err());
    assert!(sequence().sequence_header("").validate().is_err());
    let twice = sequence().source_header("a").sequence_header("a").validate();
    assert_eq!(twice, Err(IdentityConfigError::Repeated { what: "header name" }));
    for span in [0, Sequences::MOST_SPAN + 1] {
        assert!(matches!(sequence().span(span).validate(), Err(IdentityConfigError::Span { .. })), "{span}");
    }
    assert_eq!(sequence().span(Sequences::MOST_SPAN).validate(), Ok(()));
}

#[test]
fn a_stamp_is_read_back() {
    let stamper = Stamper::new("billing").unwrap();
    let with = |stamp: &hapax::identity::Stamp, message: Parts| {
        stamp.pairs().into_iter().fold(message, |message, (name, value)| message.header(name, value))
    };
    for number in [0, 7, u64::MAX] {
        let message = with(&stamper.stamp(number), Parts::new("invoices"));
        assert_eq!(sequence().of(&message), Ok((Identity::bytes(b"billing").unwrap(), number)));
    }
    // What is made again of the same message has the same stamp; of another one, another.
    let stamp = stamper.following(&order()).unwrap();
    assert_eq!(stamp, stamper.following(&order()).unwrap());
    for other in [order().at(3, 43), order().at(4, 42), Parts::new("refunds").at(3, 42)] {
        assert_ne!(stamp, stamper.following(&other).unwrap());
    }
    // The stamp that came with what was read no longer counts.
    let twice = with(&stamp, with(&stamper.stamp(1), Parts::new("invoices")));
    assert_eq!(sequence().of(&twice).unwrap().1, 42);
    let own = stamper.headers("outbox", "row").unwrap();
    let message = with(&own.stamp(5), Parts::new("invoices"));
    assert_eq!(sequence().source_header("outbox").sequence_header("row").of(&message).unwrap().1, 5);
    assert_eq!(own.following(&Parts::new("orders")), Err(IdentityError::Missing { field: Field::Position }));
    assert!(Stamper::new("").is_err() && own.clone().headers("a", "a").is_err() && own.headers("", "b").is_err());
}
