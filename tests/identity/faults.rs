//! Tests named after the faults they would let in.

use std::collections::HashSet;

use hapax::identity::{
    Blake3, Encoder, Field, FingerprintBy, Identify, Identity, IdentityError, InsecureMd5, MAX_IDENTITY_BYTES,
    OnMissing, Part, Scope, Sha256, by, digest, header, position, record_key,
};
use hapax::message::{MessageView, Parts};

use crate::{fingerprint, key, order, scope};

fn missing(field: Field) -> IdentityError {
    IdentityError::Missing { field }
}

fn empty(field: Field) -> IdentityError {
    IdentityError::Empty { field }
}

// F23

#[test]
fn f23_a_tombstone_has_no_digest() {
    for kind in [Sha256, Blake3, InsecureMd5] {
        for part in [vec![Part::Payload], vec![Part::Key, Part::Payload]] {
            let tombstone = Parts::new("accounts").at(0, 1).key("customer-7");
            assert_eq!(digest(kind).of(part).identity(&tombstone), Err(missing(Field::Payload)));
        }
    }
}

#[cfg(feature = "json")]
#[test]
fn f23_a_tombstone_has_no_json_identity() {
    let tombstone = Parts::new("accounts").at(0, 1).key("customer-7");
    assert_eq!(hapax::identity::json("/id").identity(&tombstone), Err(missing(Field::Payload)));
}

#[test]
fn f23_tombstones_of_one_key_are_told_apart_where_the_user_asks_for_it() {
    let identify = digest(Sha256).or(position());
    let (first, second) =
        (Parts::new("accounts").at(0, 1).key("customer-7"), Parts::new("accounts").at(0, 9).key("customer-7"));
    assert_ne!(key(&identify, &first).unwrap(), key(&identify, &second).unwrap());
    assert_eq!(key(&identify, &first).unwrap(), key(&identify, &first.clone()).unwrap());
}

#[test]
fn f23_updates_of_one_key_conflict_instead_of_vanishing() {
    let (created, changed) = (order().payload("v1"), order().payload("v2"));
    assert_eq!(key(&record_key(), &created).unwrap(), key(&record_key(), &changed).unwrap());
    assert_ne!(fingerprint(&created), fingerprint(&changed));
    let deleted = Parts::new("orders").at(3, 44).key("customer-7");
    assert_ne!(fingerprint(&created), fingerprint(&deleted));
}

// F24

#[test]
fn f24_the_same_id_with_another_payload_has_another_fingerprint() {
    let message = order().header("id", "1");
    let (same, other) = (order().at(0, 7).header("id", "1"), order().header("id", "1").payload("something else"));
    let identify = header("id");
    assert_eq!(key(&identify, &message).unwrap(), key(&identify, &other).unwrap());
    assert_eq!(fingerprint(&message), fingerprint(&same));
    assert_ne!(fingerprint(&message), fingerprint(&other));
}

#[test]
fn f24_null_and_empty_payloads_have_different_fingerprints() {
    let (null, empty) = (Parts::new("t"), Parts::new("t").payload(""));
    for covers in [FingerprintBy::payload(), FingerprintBy::payload().and_header("x")] {
        assert_ne!(scope().fingerprint(&covers, &null), scope().fingerprint(&covers, &empty));
    }
    assert_ne!(scope().fingerprint_of(None), scope().fingerprint_of(Some(&[])));
}

#[test]
fn f24_a_fingerprint_covers_what_was_chosen_and_nothing_else() {
    let scope = scope();
    let one = Parts::new("t").payload("a").header("type", "paid").header("sent-at", "1");
    let resent = Parts::new("t").payload("a").header("type", "paid").header("sent-at", "2");
    let refund = Parts::new("t").payload("a").header("type", "refund").header("sent-at", "1");
    let untyped = Parts::new("t").payload("a").header("sent-at", "1");
    let blank = untyped.clone().header("type", "");
    let typed = FingerprintBy::payload().and_header("type");
    let of = |message: &Parts| scope.fingerprint(&typed, message);
    assert_eq!(of(&one), of(&resent));
    let all: HashSet<_> = [&one, &refund, &untyped, &blank].map(of).into();
    assert_eq!(all.len(), 4);
    assert_eq!(
        scope.fingerprint(&FingerprintBy::payload(), &one),
        scope.fingerprint(&FingerprintBy::payload(), &refund)
    );
    let nothing = FingerprintBy::nothing();
    assert_eq!(scope.fingerprint(&nothing, &one), scope.fingerprint(&nothing, &Parts::new("t").payload("b")));
    let only = FingerprintBy::nothing().and_header("type");
    assert_eq!(
        scope.fingerprint(&only, &one),
        scope.fingerprint(&only, &Parts::new("t").payload("b").header("type", "paid"))
    );
    assert_ne!(scope.fingerprint(&only, &one), scope.fingerprint(&only, &refund));
}

#[test]
fn f24_header_values_cannot_move_between_covered_headers() {
    let covers = FingerprintBy::nothing().and_header("a").and_header("b");
    let of = |a: &str, b: &str| scope().fingerprint(&covers, &Parts::new("t").header("a", a).header("b", b));
    assert_ne!(of("xy", "z"), of("x", "yz"));
    // What announces the second header (`33`, length, `b`), moved from one value to the other.
    assert_ne!(of("x\u{33}\u{1}b", "z"), of("x", "\u{33}\u{1}bz"));
}

// F25

#[test]
fn f25_values_of_different_types_are_different_identities() {
    let value = "7";
    let message = Parts::new("7").at(7, 7).key(value).payload(value).header("7", value);
    let mut keys = HashSet::new();
    let scope = scope();
    let mut add = |identify: &dyn Identify| assert!(keys.insert(scope.key(&identify.identity(&message).unwrap(), "7")));
    add(&header("7"));
    add(&record_key());
    add(&position());
    add(&by(|_| "7"));
    add(&by(|_| b"7"));
    add(&by(|_| 7));
    add(&by(|_| ("7", "7")));
    for kind in [Sha256, Blake3, InsecureMd5] {
        add(&digest(kind));
        add(&digest(kind).of([Part::Key]));
        add(&digest(kind).of([Part::header("7")]));
        add(&digest(kind).of([Part::Payload, Part::Key]));
        add(&digest(kind).of([Part::Key, Part::Payload]));
    }
    #[cfg(feature = "json")]
    add(&hapax::identity::json(""));
    assert!(keys.len() >= 22);
}

#[test]
fn f25_one_id_in_two_headers_is_two_identities_unless_said_to_be_one() {
    let (old, new) = (Parts::new("t").header("id", "7"), Parts::new("t").header("message-id", "7"));
    let apart = header("message-id").or(header("id"));
    assert_ne!(key(&apart, &old).unwrap(), key(&apart, &new).unwrap());
    let one = header("message-id").or_name("id");
    assert_eq!(key(&one, &old).unwrap(), key(&one, &new).unwrap());
}

#[test]
fn f25_a_position_names_its_topic_even_across_topics() {
    let scope = scope().across_topics();
    let of = |topic: &str| {
        let message = Parts::new(topic).at(0, 1);
        scope.key(&position().identity(&message).unwrap(), topic)
    };
    assert_ne!(of("orders"), of("refunds"));
    assert_eq!(of("orders"), of("orders"));
}

#[test]
fn f25_topics_part_ids_unless_the_scope_spans_them() {
    let id = Identity::text("7").unwrap();
    assert_ne!(scope().key(&id, "orders"), scope().key(&id, "orders.retry"));
    assert_ne!(scope().key(&id, "orders"), scope().key_of(&id));
    let across = scope().across_topics();
    assert_eq!(across.key(&id, "orders"), across.key(&id, "orders.retry"));
    assert_eq!(across.key(&id, "orders"), across.key_of(&id));
    assert_eq!(across.key_of(&id), scope().key_of(&id));
}

#[test]
fn f25_a_message_that_was_never_in_a_partition_has_no_position() {
    let positions = [Parts::new("t"), Parts::new("t").at(-1, 5), Parts::new("t").at(0, -1001), Parts::new("").at(0, 5)];
    for message in positions {
        assert_eq!(position().identity(&message), Err(missing(Field::Position)), "{message:?}");
    }
}

// F26

/// Two blocks of 64 bytes with one MD5 (Xie and Feng).
pub(crate) fn md5_pair() -> [Vec<u8>; 2] {
    let mut words: [u32; 16] = [
        0x6165_300e,
        0x87a7_9a55,
        0xf7c6_0bd0,
        0x34fe_bd0b,
        0x6503_cf04,
        0x854f_709e,
        0xfb0f_c034,
        0x874c_9c65,
        0x2f94_cc40,
        0x15a1_2deb,
        0x5c15_f4a3,
        0x4907_86bb,
        0x6d65_8673,
        0xa434_1f7d,
        0x8fd7_5920,
        0xefd1_8d5a,
    ];
    let block = |words: &[u32; 16]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let first = block(&words);
    words[5] ^= 1 << 10;
    words[10] ^= 1 << 31;
    [first, block(&words)]
}

#[test]
fn f26_an_md5_collision_is_one_identity_with_two_fingerprints() {
    let [first, second] = md5_pair();
    assert_ne!(first, second);
    for suffix in ["", ", to be shipped to Ada"] {
        let with = |block: &[u8]| order().payload([block, suffix.as_bytes()].concat());
        let (one, other) = (with(&first), with(&second));
        assert_eq!(key(&digest(InsecureMd5), &one).unwrap(), key(&digest(InsecureMd5), &other).unwrap());
        assert_ne!(fingerprint(&one), fingerprint(&other), "the second message would vanish as a duplicate");
        for kind in [Sha256, Blake3] {
            assert_ne!(key(&digest(kind), &one).unwrap(), key(&digest(kind), &other).unwrap());
        }
    }
}

#[test]
fn f26_the_default_digest_is_not_md5() {
    assert_eq!(hapax::identity::DigestKind::default(), Sha256);
}

// F28

#[test]
fn f28_what_text_columns_confuse_are_different_keys() {
    let prefix = "p".repeat(191);
    let vectors = [
        "order-1".to_owned(),
        "ORDER-1".to_owned(),
        "Order-1".to_owned(),
        "order-1 ".to_owned(),
        " order-1".to_owned(),
        "order-1\0".to_owned(),
        "order-1\t".to_owned(),
        "órder-1".to_owned(),
        "o\u{301}rder-1".to_owned(),
        "ordér-1".to_owned(),
        "straße".to_owned(),
        "strasse".to_owned(),
        "STRASSE".to_owned(),
        prefix.clone(),
        format!("{prefix}a"),
        format!("{prefix}b"),
        format!("{prefix}{prefix}a"),
        format!("{prefix}{prefix}b"),
        "NULL".to_owned(),
        "0".to_owned(),
    ];
    let in_header: HashSet<_> =
        vectors.iter().map(|id| key(&header("id"), &Parts::new("t").header("id", &**id)).unwrap()).collect();
    let in_key: HashSet<_> =
        vectors.iter().map(|id| key(&record_key(), &Parts::new("t").key(&**id)).unwrap()).collect();
    let given: HashSet<_> = vectors.iter().map(|id| scope().key_of(&Identity::text(id).unwrap())).collect();
    assert_eq!((in_header.len(), in_key.len(), given.len()), (vectors.len(), vectors.len(), vectors.len()));
}

// F29

#[test]
fn f29_a_missing_id_is_an_error_that_names_it_and_the_cure() {
    let cases: [(&dyn Identify, Field); 4] = [
        (&header("message-id"), Field::Header("message-id".into())),
        (&record_key(), Field::RecordKey),
        (&digest(Sha256), Field::Payload),
        (&digest(Sha256).of([Part::header("h")]), Field::Header("h".into())),
    ];
    for (identify, field) in cases {
        let error = identify.identity(&Parts::new("t")).unwrap_err();
        assert_eq!(error, missing(field.clone()));
        let text = error.to_string();
        assert!(text.contains(&field.to_string()) && text.contains(".or("), "{text}");
    }
    assert_eq!(
        header("id").identity(&Parts::new("t").null_header("id")),
        Err(missing(Field::Header("id".into()))),
        "a null header is no header"
    );
}

#[test]
fn f29_an_empty_id_is_never_the_shared_key() {
    let message = Parts::new("t").key("").payload("").header("id", "");
    assert_eq!(header("id").identity(&message), Err(empty(Field::Header("id".into()))));
    assert_eq!(record_key().identity(&message), Err(empty(Field::RecordKey)));
    assert_eq!(digest(Blake3).identity(&message), Err(empty(Field::Payload)));
    assert_eq!(digest(Blake3).of([Part::header("id")]).identity(&message), Err(empty(Field::Header("id".into()))));
    assert_eq!(Identity::text(""), Err(empty(Field::Value)));
    assert_eq!(Identity::bytes(&[]), Err(empty(Field::Value)));
    assert_eq!(by(|_| String::new()).identity(&message), Err(empty(Field::Value)));
    assert_eq!(by(|_| None::<String>).identity(&message), Err(missing(Field::Value)));
    assert_eq!(Encoder::new().finish(), Err(empty(Field::Whole)));
}

#[test]
fn f29_an_identity_of_your_own_that_writes_nothing_is_empty() {
    #[derive(Debug)]
    struct Silent;
    impl Identify for Silent {
        fn identify(&self, _: &dyn MessageView, _: &mut Encoder) -> Result<(), IdentityError> {
            Ok(())
        }
    }
    let message = order();
    assert_eq!(Silent.identity(&message), Err(empty(Field::Whole)));
    // Beside another one it must not vanish either: all messages of one key would be one.
    assert_eq!(record_key().and(Silent).identity(&message), Err(empty(Field::Whole)));
    assert_eq!(Silent.and(record_key()).identity(&message), Err(empty(Field::Whole)));
    assert_eq!(Silent.or(record_key()).identity(&message), record_key().identity(&message));
    // What the first wrote before it failed does not count for the second.
    let halfway = record_key().and(header("id"));
    assert_eq!(halfway.or(Silent).identity(&message), Err(missing(Field::Header("id".into()))));
}

#[test]
fn f29_an_oversize_id_is_refused_with_its_size() {
    // Tag, length of the name (1), name (2), length of the value (2).
    let fits = MAX_IDENTITY_BYTES - 6;
    let message = |size: usize| Parts::new("t").header("id", vec![b'x'; size]);
    assert_eq!(header("id").identity(&message(fits)).unwrap().encoded().len(), MAX_IDENTITY_BYTES);
    let error = header("id").identity(&message(fits + 1)).unwrap_err();
    let field = Field::Header("id".into());
    assert_eq!(error, IdentityError::Oversize { field, size: MAX_IDENTITY_BYTES + 1, cap: MAX_IDENTITY_BYTES });
    assert!(error.to_string().contains("digest("), "{error}");

    let long = vec![b'x'; 100_000];
    let oversize = |result: Result<Identity, IdentityError>| matches!(result, Err(IdentityError::Oversize { .. }));
    assert!(oversize(record_key().identity(&Parts::new("t").key(long.clone()))));
    assert!(oversize(Identity::bytes(&long)));
    assert!(oversize(by(move |_| long.clone()).identity(&Parts::new("t"))));
    assert!(oversize(position().identity(&Parts::new("t".repeat(5000)).at(0, 0))));
    // Two that fit alone and not together.
    let half = Identity::bytes(&[b'x'; 3000]).unwrap();
    assert!(oversize(half.clone().and(&half)));
    let twice = header("id").and(header("id"));
    assert!(oversize(twice.identity(&message(3000))));
}

#[test]
fn f29_a_digest_takes_any_size() {
    let large = Parts::new("t").payload(vec![0; 3 << 20]);
    let larger = Parts::new("t").payload(vec![0; (3 << 20) + 1]);
    for kind in [Sha256, Blake3, InsecureMd5] {
        assert_ne!(key(&digest(kind), &large).unwrap(), key(&digest(kind), &larger).unwrap());
    }
}

#[test]
fn f29_nul_and_what_is_not_utf8_are_kept_byte_for_byte() {
    let ids: [&[u8]; 9] = [b"a", b"a\0", b"\0a", b"\0", b"\0\0", b"\xff", b"\xff\xfe", b"\xef\xbf\xbd", b"a\0b"];
    let keys: HashSet<_> = ids
        .iter()
        .flat_map(|id| {
            let message = Parts::new("t").header("id", *id).key(*id).payload(*id);
            [
                key(&header("id"), &message).unwrap(),
                key(&record_key(), &message).unwrap(),
                key(&digest(Sha256), &message).unwrap(),
            ]
        })
        .collect();
    assert_eq!(keys.len(), 3 * ids.len());
}

#[test]
fn f29_missing_ids_are_rejected_unless_told_otherwise() {
    assert_eq!(OnMissing::default(), OnMissing::Reject);
}

#[test]
fn f29_errors_and_debug_show_nothing_of_a_message() {
    let spy = "s3cret-4711";
    let message = Parts::new("t").at(0, 0).key(spy).payload(spy).header("id", spy);
    let scope = scope().secret(format!("{spy}{spy}")).unwrap();
    let identity = header("id").identity(&message).unwrap();
    let mut encoder = Encoder::new();
    header("id").identify(&message, &mut encoder).unwrap();
    let mut shown = vec![
        format!("{message:?}"),
        format!("{identity:?}"),
        format!("{encoder:?}"),
        format!("{scope:?}"),
        format!("{:?}", scope.key(&identity, "t")),
    ];
    let long = Parts::new("t").header("id", spy.repeat(1000));
    let error = header("id").identity(&long).unwrap_err();
    shown.extend([error.to_string(), format!("{error:?}")]);
    #[cfg(feature = "json")]
    {
        let error = hapax::identity::json("/id").identity(&message).unwrap_err();
        shown.extend([error.to_string(), format!("{error:?}")]);
    }
    for text in shown {
        assert!(!text.contains("s3cret") && !text.contains("4711"), "{text}");
        let bytes = format!("{:?}", spy.as_bytes());
        assert!(!text.contains(bytes.trim_matches(['[', ']'])), "{text}");
    }
}

// F45

#[test]
fn f45_two_groups_have_different_keys_for_one_message() {
    let message = order().header("id", "7");
    let scopes = [
        Scope::new("payments", "charge").unwrap(),
        Scope::new("ledger", "charge").unwrap(),
        Scope::new("payments", "mail").unwrap(),
        Scope::new("charge", "payments").unwrap(),
        Scope::new("payments", "charge").unwrap().tenant("acme").unwrap(),
        Scope::new("payments", "charge").unwrap().tenant("globex").unwrap(),
        Scope::new("payments", "charge").unwrap().secret("0123456789abcdef").unwrap(),
        Scope::new("payments", "charge").unwrap().secret("0123456789abcdeF").unwrap(),
    ];
    let identity = header("id").identity(&message).unwrap();
    for across in [false, true] {
        let keys: HashSet<_> = scopes
            .iter()
            .map(|scope| if across { scope.clone().across_topics() } else { scope.clone() })
            .map(|scope| scope.key(&identity, "orders"))
            .collect();
        assert_eq!(keys.len(), scopes.len());
    }
}

#[test]
fn f45_keys_outlive_the_process() {
    // Nothing random, nothing of the clock: a second scope of the same names gives the same key.
    let identity = Identity::text("7").unwrap();
    let again = || Scope::new("g", "h").unwrap().tenant("t").unwrap().secret("0123456789abcdef").unwrap();
    assert_eq!(again().key(&identity, "orders"), again().key(&identity, "orders"));
    let other_way = Scope::new("g", "h").unwrap().secret("0123456789abcdef").unwrap().tenant("t").unwrap();
    assert_eq!(again().key(&identity, "orders"), other_way.key(&identity, "orders"));
}

#[test]
fn f45_a_secret_keys_fingerprints_too() {
    let plain = scope();
    let secret = scope().secret("0123456789abcdef").unwrap();
    assert_ne!(plain.fingerprint_of(Some(b"a")), secret.fingerprint_of(Some(b"a")));
    assert_ne!(plain.fingerprint_of(None), secret.fingerprint_of(None));
    let covers = FingerprintBy::payload().and_header("id");
    assert_ne!(plain.fingerprint(&covers, &order()), secret.fingerprint(&covers, &order()));
}
