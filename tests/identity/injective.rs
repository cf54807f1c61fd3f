//! Whatever was encoded can be decoded to exactly what it was, by a decoder of its own: so no two identities share bytes.

use hapax::identity::{
    Blake3, DigestKind, Identify, Identity, InsecureMd5, Part, Scope, Sha256, by, digest, header, position, record_key,
    sequence,
};
use hapax::message::Parts;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::decode::{self, Component, DigestOf};

/// Texts full of what others use as separators, of bytes that are tags and lengths here, and of ordinary letters.
fn nasty(most: usize) -> impl Strategy<Value = String> {
    let letter = prop_oneof![
        4 => prop::sample::select(vec!['a', 'b', ':', '|', '/', ',', ';', '-', '.', ' ', '\0', '\u{1}', '\u{2}', '\u{4}', '\u{10}', '\u{11}', '%', '~', '"', '\\']),
        1 => any::<char>(),
    ];
    vec(letter, 1..most).prop_map(String::from_iter)
}

fn nasty_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![nasty(20).prop_map(String::into_bytes), vec(any::<u8>(), 1..300)]
}

fn name() -> impl Strategy<Value = String> {
    nasty(12)
}

/// A component, and the identity that the crate makes of it.
fn component() -> impl Strategy<Value = (Component, Identity)> {
    prop_oneof![
        nasty(200).prop_map(|text| {
            let identity = Identity::text(&text).unwrap();
            (Component::Text(text), identity)
        }),
        nasty_bytes().prop_map(|bytes| {
            let identity = Identity::bytes(&bytes).unwrap();
            (Component::Bytes(bytes), identity)
        }),
        any::<i128>().prop_map(|integer| (Component::Integer(integer), Identity::integer(integer))),
        (name(), nasty_bytes()).prop_map(|(name, value)| {
            let message = Parts::new("t").header(name.clone(), value.clone());
            let identity = header(name.clone()).identity(&message).unwrap();
            (Component::Header { name, value }, identity)
        }),
        nasty_bytes().prop_map(|key| {
            let identity = record_key().identity(&Parts::new("t").key(key.clone())).unwrap();
            (Component::RecordKey(key), identity)
        }),
        (nasty(30), 0..=i32::MAX, 0..=i64::MAX).prop_map(|(topic, partition, offset)| {
            let identity = position().identity(&Parts::new(topic.clone()).at(partition, offset)).unwrap();
            (Component::Position { topic, partition, offset }, identity)
        }),
        (nasty_bytes(), any::<u64>()).prop_map(|(source, number)| {
            let message =
                Parts::new("t").header("hapax-source", source.clone()).header("hapax-sequence", number.to_string());
            (Component::Sequence { source, number }, sequence().identity(&message).unwrap())
        }),
        (prop::sample::select(vec![Sha256, Blake3, InsecureMd5]), 0..3_u8, name(), nasty_bytes())
            .prop_map(digest_component),
        json_component(),
    ]
}

fn digest_component((kind, part, name, value): (DigestKind, u8, String, Vec<u8>)) -> (Component, Identity) {
    let message = Parts::new("t");
    let (message, part, of) = match part {
        0 => (message.payload(value.clone()), Part::Payload, DigestOf::Payload),
        1 => (message.key(value.clone()), Part::Key, DigestOf::Key),
        _ => (message.header(name.clone(), value.clone()), Part::header(name.clone()), DigestOf::Header(name)),
    };
    let identity = digest(kind).of([part]).identity(&message).unwrap();
    // The digest itself is checked by the golden vectors; here it is the frame that matters.
    let size = if kind == InsecureMd5 { 16 } else { 32 };
    let digest = identity.encoded()[identity.encoded().len() - size..].to_vec();
    let algorithm = match kind {
        Sha256 => 1,
        Blake3 => 2,
        InsecureMd5 => 3,
    };
    (Component::Digest { algorithm, part: of, digest }, identity)
}

#[cfg(feature = "json")]
fn json_component() -> BoxedStrategy<(Component, Identity)> {
    use hapax::identity::json;

    fn located(member: &str, value: serde_json::Value) -> (String, Identity) {
        let pointer = format!("/{}", member.replace('~', "~0").replace('/', "~1"));
        let payload = serde_json::json!({ member: value }).to_string();
        let identity = json(pointer.clone()).identity(&Parts::new("t").payload(payload)).unwrap();
        (pointer, identity)
    }
    prop_oneof![
        (nasty(20), nasty(40)).prop_map(|(member, text)| {
            let (pointer, identity) = located(&member, text.clone().into());
            (Component::JsonText { pointer, text }, identity)
        }),
        (nasty(20), any::<i64>()).prop_map(|(member, integer)| {
            let (pointer, identity) = located(&member, integer.into());
            (Component::JsonInteger { pointer, integer: integer.into() }, identity)
        }),
        (nasty(20), any::<u64>()).prop_map(|(member, integer)| {
            let (pointer, identity) = located(&member, integer.into());
            (Component::JsonInteger { pointer, integer: integer.into() }, identity)
        }),
    ]
    .boxed()
}

#[cfg(not(feature = "json"))]
fn json_component() -> BoxedStrategy<(Component, Identity)> {
    any::<i128>().prop_map(|integer| (Component::Integer(integer), Identity::integer(integer))).boxed()
}

/// A few components, and all of them joined.
fn joined() -> impl Strategy<Value = (Vec<Component>, Identity)> {
    vec(component(), 1..5).prop_map(|all| {
        let (components, identities): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let identity = identities.into_iter().reduce(|joined, next| joined.and(&next).unwrap()).unwrap();
        (components, identity)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn f25_every_identity_decodes_to_what_it_was((components, identity) in joined()) {
        prop_assert_eq!(identity.components(), components.len());
        prop_assert_eq!(decode::components(identity.encoded()), Some(components));
    }

    #[test]
    fn f25_every_key_decodes_to_topic_and_identity((components, identity) in joined(), topic in nasty(300)) {
        let scope = Scope::new("g", "h").unwrap();
        let topicless = decode::key(&scope.clone().across_topics().encoded_key(&identity, &topic));
        prop_assert_eq!(decode::key(&scope.encoded_key(&identity, &topic)), Some((Some(topic), components.clone())));
        prop_assert_eq!(topicless, Some((None, components)));
    }

    #[test]
    fn f25_every_scope_decodes_to_its_names(group in nasty(150), handler in nasty(20), tenant in prop::option::of(nasty(20))) {
        let mut scope = Scope::new(&group, &handler).unwrap();
        if let Some(tenant) = &tenant {
            scope = scope.tenant(tenant).unwrap();
        }
        prop_assert_eq!(decode::scope(&scope.encoded()), Some(decode::Names { group, handler, tenant }));
    }

    /// What is hashed is what is decoded above: the key follows the encoding, for short and long ones.
    #[test]
    fn f25_keys_are_equal_if_and_only_if_the_encodings_are((_, one) in joined(), (_, other) in joined(), long in 1..600_usize) {
        let scope = Scope::new("g", "h").unwrap();
        let topic = "t".repeat(long);
        let longer = "t".repeat(long + 1);
        prop_assert_eq!(scope.key(&one, &topic) == scope.key(&other, &topic), one == other);
        prop_assert_ne!(scope.key(&one, &topic), scope.key(&one, &longer));
        prop_assert_eq!(scope.key(&one, &topic), scope.clone().key(&one.clone(), &topic));
    }

    /// F27: one joined text, cut in two places, in every pair of fields that stand side by side.
    #[test]
    fn f27_no_field_can_borrow_from_the_next(text in vec(prop::sample::select(vec!["a", "b", ":", "|", "/", "\0", "\u{1}", "\u{4}", "é"]), 3..12), cuts in any::<(prop::sample::Index, prop::sample::Index)>()) {
        let cut = |at: usize| (text[..at].concat(), text[at..].concat());
        let (first, second) = (1 + cuts.0.index(text.len() - 1), 1 + cuts.1.index(text.len() - 1));
        prop_assume!(first != second);
        let ((a1, a2), (b1, b2)) = (cut(first), cut(second));
        let whole = text.concat();

        let id = Identity::text("7").unwrap();
        let scope = |group: &str, handler: &str| Scope::new(group, handler).unwrap();
        prop_assert_ne!(scope(&a1, &a2).key(&id, "t"), scope(&b1, &b2).key(&id, "t"), "group and handler");

        let tenant = |handler: &str, tenant: &str| scope("g", handler).tenant(tenant).unwrap();
        prop_assert_ne!(tenant(&a1, &a2).key(&id, "t"), tenant(&b1, &b2).key(&id, "t"), "handler and tenant");
        prop_assert_ne!(tenant(&a1, &a2).key(&id, "t"), scope("g", &whole).key(&id, "t"), "tenant or none");

        let usual = scope("g", "h");
        let of = |topic: &str, text: &str| usual.key(&Identity::text(text).unwrap(), topic);
        prop_assert_ne!(of(&a1, &a2), of(&b1, &b2), "topic and identity");
        prop_assert_ne!(of(&a1, &a2), usual.key_of(&Identity::text(&whole).unwrap()), "topic or none");

        let named = |name: &str, value: &str| {
            usual.key(&header(name).identity(&Parts::new("t").header(name, value)).unwrap(), "t")
        };
        prop_assert_ne!(named(&a1, &a2), named(&b1, &b2), "header name and value");

        let both = |one: &str, other: &str| {
            let (one, other) = (one.to_owned(), other.to_owned());
            let identify = by(move |_| one.clone()).and(by(move |_| other.clone()));
            usual.key(&identify.identity(&Parts::new("t")).unwrap(), "t")
        };
        prop_assert_ne!(both(&a1, &a2), both(&b1, &b2), "two texts");
        prop_assert_ne!(both(&a1, &a2), usual.key(&Identity::text(&whole).unwrap(), "t"), "two texts or one");
    }
}

/// F27's own vector: tag none and key `x:y`, against tag `x` and key `y`.
#[test]
fn f27_tag_and_key_do_not_run_together() {
    let message = |tag: Option<&str>, key: &str| {
        let message = Parts::new("t").key(key);
        match tag {
            Some(tag) => message.header("tag", tag),
            None => message,
        }
    };
    let identify = header("tag").and(record_key()).or(record_key());
    let one = crate::key(&identify, &message(None, "x:y")).unwrap();
    let other = crate::key(&identify, &message(Some("x"), "y")).unwrap();
    assert_ne!(one, other);
}
