//! `or`, `and`, closures, boxes.

use std::sync::Arc;

use hapax::identity::{
    Encoder, Field, Identify, Identity, IdentityError, IntoIdentity, Sha256, by, digest, header, position, record_key,
};
use hapax::message::{MessageView, Parts};

use crate::order;

#[test]
fn or_takes_the_second_only_where_the_first_is_absent() {
    let identify = header("id").or(record_key());
    let key = record_key().identity(&order()).unwrap();
    assert_eq!(identify.identity(&order()), Ok(key.clone()));
    assert_eq!(identify.identity(&order().header("id", "")), Ok(key.clone()));
    assert_eq!(identify.identity(&order().null_header("id")), Ok(key));
    let with = order().header("id", "7");
    assert_eq!(identify.identity(&with), header("id").identity(&with));
}

#[test]
fn or_does_not_pass_by_an_oversize_or_refused_identity() {
    let long = order().header("id", vec![0; 5000]);
    let oversize = header("id").or(record_key()).identity(&long);
    assert!(matches!(oversize, Err(IdentityError::Oversize { .. })), "{oversize:?}");
    let refused = by(|_| Err::<Identity, _>(IdentityError::refused("too old"))).or(record_key());
    assert_eq!(refused.identity(&order()), Err(IdentityError::Refused { reason: "too old" }));
}

#[test]
fn or_leaves_nothing_of_a_first_that_failed_halfway() {
    let identify = record_key().and(header("id")).or(position());
    assert_eq!(identify.identity(&order()), position().identity(&order()));
    // Also behind something that was written before, and where it had grown large.
    let long = order().key(vec![1; 2000]);
    let identify = position().and(record_key().and(header("id")).or(digest(Sha256)));
    let expected = position().and(digest(Sha256)).identity(&long).unwrap();
    assert_eq!(identify.identity(&long).unwrap(), expected);
    assert_eq!((expected.components(), identify.identity(&long).unwrap().components()), (2, 2));
}

#[test]
fn or_of_two_absent_ones_speaks_of_the_first() {
    let identify = header("message-id").or(header("id"));
    let error = identify.identity(&order()).unwrap_err();
    assert_eq!(error, IdentityError::Missing { field: Field::Header("message-id".into()) });
    let long = order().header("id", vec![0; 5000]);
    assert!(matches!(identify.identity(&long), Err(IdentityError::Oversize { .. })));
}

#[test]
fn and_needs_both() {
    let identify = header("id").and(record_key());
    assert_eq!(identify.identity(&order()), Err(IdentityError::Missing { field: Field::Header("id".into()) }));
    let keyless = Parts::new("t").header("id", "7");
    assert_eq!(identify.identity(&keyless), Err(IdentityError::Missing { field: Field::RecordKey }));
    let both = order().header("id", "7");
    let joined = header("id").identity(&both).unwrap().and(&record_key().identity(&both).unwrap());
    assert_eq!(identify.identity(&both), joined);
}

#[test]
fn and_is_ordered_and_associative() {
    let message = order().header("a", "1").header("b", "2").header("c", "3");
    let of = |identify: &dyn Identify| identify.identity(&message).unwrap();
    assert_ne!(of(&header("a").and(header("b"))), of(&header("b").and(header("a"))));
    assert_eq!(of(&header("a").and(header("b")).and(header("c"))), of(&header("a").and(header("b").and(header("c")))));
}

#[test]
fn boxed_shared_and_borrowed_ones_do_the_same() {
    let plain = header("id").or(digest(Sha256));
    let message = order();
    let expected = plain.identity(&message);
    let boxed: Box<dyn Identify> = Box::new(plain.clone());
    let shared: Arc<dyn Identify> = Arc::new(plain.clone());
    assert_eq!(boxed.identity(&message), expected);
    assert_eq!(shared.identity(&message), expected);
    let borrowed: &dyn Identify = &plain;
    assert_eq!(Identify::identity(&borrowed, &message), expected);
    // Chosen at run time and combined further.
    let chosen = boxed.or(position());
    assert_eq!(chosen.identity(&message), expected);
    let bad: Box<dyn Identify> = Box::new(header(""));
    assert!(bad.validate().is_err());
}

#[test]
fn a_closure_may_give_anything_that_is_an_identity() {
    let message = order();
    let of = |identify: &dyn Identify| identify.identity(&message);
    assert_eq!(of(&by(|_| "a")), Identity::text("a"));
    assert_eq!(of(&by(|_| String::from("a"))), Identity::text("a"));
    assert_eq!(of(&by(|_| vec![1_u8, 2])), Identity::bytes(&[1, 2]));
    assert_eq!(of(&by(|_| [1_u8, 2])), Identity::bytes(&[1, 2]));
    assert_eq!(of(&by(|m| m.offset())), Ok(Identity::integer(42)));
    assert_eq!(of(&by(|m| Some(m.partition()))), Ok(Identity::integer(3)));
    assert_eq!(of(&by(|m| Identity::bytes(m.key().unwrap_or_default()))), Identity::bytes(b"customer-7"));
    let pair = Identity::text("a").unwrap().and(&Identity::integer(1));
    assert_eq!(of(&by(|_| ("a", 1))), pair);
    assert_eq!(of(&by(|_| "a").and(by(|_| 1))), pair);
}

#[test]
fn values_turn_into_identities() {
    assert_eq!(7_u8.into_identity(), 7_i64.into_identity());
    assert_ne!(7_u8.into_identity(), "7".into_identity());
    assert_ne!(u64::MAX.into_identity(), (-1_i64).into_identity());
    assert_eq!(u64::MAX.into_identity(), i128::from(u64::MAX).into_identity());
    assert_eq!((&String::from("a")).into_identity(), "a".into_identity());
    let identity = Identity::text("a").unwrap();
    assert_eq!((&identity).into_identity(), Ok(identity.clone()));
    assert_eq!(Identity::text("").into_identity(), Err(IdentityError::Empty { field: Field::Value }));
    assert!("a".into_identity().unwrap().encoded().ends_with(b"a"));
}

#[test]
fn an_identity_of_your_own_writes_typed_components() {
    #[derive(Debug)]
    struct Envelope;
    impl Identify for Envelope {
        fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
            let payload = message.payload().ok_or(IdentityError::refused("tombstone"))?;
            let (kind, id) = payload.split_first().ok_or(IdentityError::refused("no envelope"))?;
            into.integer(*kind)?;
            into.bytes(id)
        }
    }
    let message = order().payload([9, 1, 2, 3]);
    let identity = Envelope.identity(&message).unwrap();
    assert_eq!(identity, Identity::integer(9).and(&Identity::bytes(&[1, 2, 3]).unwrap()).unwrap());
    assert_eq!(identity.components(), 2);
    assert_eq!(Envelope.identity(&order().payload([9])), Err(IdentityError::Empty { field: Field::Value }));
}

#[test]
fn integers_keep_all_their_bits() {
    for integer in [0, 1, -1, i128::from(u64::MAX), 1 << 64, i128::MIN, i128::MAX] {
        let mut encoder = Encoder::new();
        encoder.integer(integer).unwrap();
        assert_eq!(encoder.finish(), Ok(Identity::integer(integer)));
        assert!(Identity::integer(integer).encoded().ends_with(&integer.to_be_bytes()));
    }
}

#[test]
fn a_failed_component_leaves_the_encoder_as_it_was() {
    let mut encoder = Encoder::new();
    encoder.text("a").unwrap();
    assert!(encoder.bytes(&vec![0; 5000]).is_err());
    assert!(encoder.text("").is_err());
    assert_eq!(encoder.components(), 1);
    assert_eq!(encoder.finish(), Identity::text("a"));
}
