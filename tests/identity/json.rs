//! Identities in JSON payloads.

use hapax::identity::{Field, Identify, Identity, IdentityConfigError, IdentityError, JsonKind, json, record_key};
use hapax::message::Parts;
use proptest::prelude::*;
use serde_json::Value;

fn find(pointer: &str, payload: impl Into<Vec<u8>>) -> Result<Identity, IdentityError> {
    json(pointer).identity(&Parts::new("t").payload(payload))
}

fn missing(pointer: &str) -> Result<Identity, IdentityError> {
    Err(IdentityError::Missing { field: Field::Json(pointer.into()) })
}

#[test]
fn rfc6901_examples_point_where_they_should() {
    // Section 5 of RFC 6901.
    let document = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
    for (pointer, number) in [
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ("/k\"l", 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ] {
        let same = find(pointer, format!(r#"{{"x":[true],{}"#, &document[1..]));
        assert_eq!(find(pointer, document), same);
        let expected = number.to_string();
        assert!(format!("{:02x}", same.unwrap().encoded().last().unwrap()).ends_with(&expected), "{pointer}");
    }
    assert!(find("/foo/0", document).unwrap().encoded().ends_with(b"\x03bar"));
    assert!(find("/foo/1", document).unwrap().encoded().ends_with(b"\x03baz"));
    assert_eq!(find("/foo/2", document), missing("/foo/2"));
    assert_eq!(find("/foo/-", document), missing("/foo/-"));
    assert_eq!(find("/foo/00", document), missing("/foo/00"));
    assert_eq!(find("/foo/01", document), missing("/foo/01"));
    assert_eq!(find("/foo/+1", document), missing("/foo/+1"));
    assert_eq!(find("/foo/99999999999999999999", document), missing("/foo/99999999999999999999"));
    assert_eq!(find("", "\"whole\"").unwrap().components(), 1);
}

#[test]
fn absent_values_are_missing() {
    for payload in [
        "{}",
        "[]",
        r#"{"a":{}}"#,
        r#"{"a":null}"#,
        r#"{"a":"text"}"#,
        r#"{"a":7}"#,
        "7",
        "null",
        r#"{"a":{"b":null}}"#,
    ] {
        assert_eq!(find("/a/b", payload), missing("/a/b"), "{payload}");
    }
    assert_eq!(find("/a", r#"{"a":""}"#), Err(IdentityError::Empty { field: Field::Json("/a".into()) }));
    let identify = json("/a").or(record_key());
    let key = Parts::new("t").key("k");
    for payload in [r#"{"b":1}"#, r#"{"a":null}"#, r#"{"a":""}"#] {
        assert_eq!(identify.identity(&key.clone().payload(payload)), record_key().identity(&key), "{payload}");
    }
    assert_eq!(identify.identity(&key), record_key().identity(&key), "a tombstone falls back if the user says so");
}

#[test]
fn what_could_collapse_is_refused() {
    for (value, found) in [
        ("true", JsonKind::Bool),
        ("false", JsonKind::Bool),
        ("1.0", JsonKind::Number),
        ("1e3", JsonKind::Number),
        ("-0", JsonKind::Number),
        ("18446744073709551616", JsonKind::Number),
        ("-9223372036854775809", JsonKind::Number),
        ("9007199254740993.0", JsonKind::Number),
        ("[]", JsonKind::Array),
        ("[1,2]", JsonKind::Array),
        ("{}", JsonKind::Object),
        (r#"{"x":{"y":[1]}}"#, JsonKind::Object),
    ] {
        let error = find("/id", format!(r#"{{"id":{value}}}"#));
        assert_eq!(error, Err(IdentityError::JsonType { pointer: "/id".into(), found }), "{value}");
        assert!(
            json("/id")
                .or(record_key())
                .identity(&Parts::new("t").key("k").payload(format!(r#"{{"id":{value}}}"#)))
                .is_err()
        );
    }
}

#[test]
fn integers_of_64_bits_are_exact() {
    let of = |text: &str| find("/id", format!(r#"{{"id":{text}}}"#)).unwrap();
    let all = [
        "0",
        "1",
        "-1",
        "9007199254740992",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "-9223372036854775808",
    ];
    for (at, one) in all.iter().enumerate() {
        for other in &all[at + 1..] {
            assert_ne!(of(one), of(other));
        }
        assert_ne!(of(one), of(&format!("\"{one}\"")), "a string of digits is no integer");
    }
}

#[test]
fn a_name_that_stands_twice_on_the_way_is_refused() {
    let repeated = |payload: &str| {
        assert_eq!(find("/a/b", payload), Err(IdentityError::JsonRepeated { pointer: "/a/b".into() }), "{payload}");
    };
    repeated(r#"{"a":{"b":"1","b":"2"}}"#);
    repeated(r#"{"a":{"b":"1","b":"1"}}"#);
    repeated(r#"{"a":{"b":"1"},"a":{"b":"2"}}"#);
    repeated(r#"{"a":{"b":"1"},"x":0,"a":null}"#);
    repeated(r#"{"a":{"b":"1","\u0062":"2"}}"#);
    repeated(r#"{"a":{"b":null,"b":"2"}}"#);
    // Off the way it harms nobody.
    assert!(find("/a/b", r#"{"x":1,"x":2,"a":{"b":"1","c":{"b":1,"b":2}}}"#).is_ok());
}

#[test]
fn what_is_not_one_json_document_is_refused() {
    let cases: [&[u8]; 16] = [
        b"{",
        b"{\"id\":\"1\"",
        b"{\"id\":\"1\"} x",
        b"{\"id\":\"1\"}{\"id\":\"2\"}",
        b"{'id':1}",
        b"{\"id\":01}",
        b"{\"id\":\"\xff\"}",
        b"{\"id\":\"\\ud800\"}",
        b"\xef\xbb\xbf{\"id\":\"1\"}",
        b"{\"id\":\"a\nb\"}",
        b"{\"id\":\"1\",}",
        b"nul",
        b"{\"id\":NaN}",
        b"\0",
        b"{\"id\":\"1\"}\0",
        b"plain text",
    ];
    for payload in cases {
        let error = find("/id", payload);
        assert!(matches!(error, Err(IdentityError::NotJson { .. })), "{payload:?}: {error:?}");
        let falling = json("/id").or(record_key()).identity(&Parts::new("t").key("k").payload(payload));
        assert_eq!(falling, error, "malformed does not fall through");
    }
    let error = |payload: &[u8]| find("/id", payload).unwrap_err();
    assert_eq!(error(b"{\n  \"x\":\"\xff\", \"id\":1}"), IdentityError::NotJson { line: 2, column: 8 });
    assert_eq!(error(b"{\n  \"x\":!, \"id\":1}"), IdentityError::NotJson { line: 2, column: 7 });
    assert_eq!(find("/id", ""), Err(IdentityError::Empty { field: Field::Payload }));
}

#[test]
fn f29_a_huge_payload_is_not_parsed() {
    let payload = format!(r#"{{"id":"1","x":"{}"}}"#, "x".repeat(1000));
    let size = payload.len();
    let message = Parts::new("t").payload(payload);
    assert!(json("/id").max_bytes(size).identity(&message).is_ok());
    let error = json("/id").max_bytes(size - 1).identity(&message);
    assert_eq!(error, Err(IdentityError::Oversize { field: Field::Payload, size, cap: size - 1 }));
    let over = Parts::new("t").payload(vec![b' '; hapax::identity::MAX_JSON_BYTES + 1]);
    assert!(matches!(json("/id").identity(&over), Err(IdentityError::Oversize { .. })));
    let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(5000));
    assert!(matches!(find("/id", long), Err(IdentityError::Oversize { field: Field::Json(_), .. })));
}

#[test]
fn f29_deep_payloads_neither_overflow_nor_pass() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        // Off the way it is skipped, on the way it is refused; the stack holds.
        let aside = format!(r#"{{"x":{deep},"id":"1"}}"#);
        let _ = find("/id", aside);
        let on = format!(r#"{{"id":{deep}}}"#);
        assert!(find("/id", on).is_err());
    }
}

#[test]
fn pointers_are_checked() {
    for pointer in ["", "/", "/a", "/a/0", "/a~0b~1c", "//"] {
        assert_eq!(json(pointer).validate(), Ok(()), "{pointer}");
    }
    for pointer in ["id", "a/b", "$.id", "#/id", "/a~", "/a~2", "/~~0"] {
        let error = json(pointer).validate();
        assert!(matches!(error, Err(IdentityConfigError::Pointer { .. })), "{pointer}: {error:?}");
        assert!(find(pointer, r#"{"id":"1"}"#).is_err(), "{pointer} must not work unchecked either");
    }
    assert!(json("/a".repeat(64)).validate().is_ok());
    assert!(json("/a".repeat(65)).validate().is_err());
    assert!(json(format!("/{}", "a".repeat(2000))).validate().is_err());
}

#[test]
fn the_pointer_is_part_of_the_identity() {
    let payload = r#"{"a":"1","b":"1"}"#;
    assert_ne!(find("/a", payload), find("/b", payload));
}

fn document() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["a", "b", "0", "1", "~", "/", "", "é"]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::from),
        ".{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..5)
                .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

fn not_json(found: &Result<Identity, IdentityError>) -> bool {
    matches!(found, Err(IdentityError::NotJson { .. }))
}

fn refused(found: &Result<Identity, IdentityError>, kind: Option<JsonKind>) -> bool {
    matches!(found, Err(IdentityError::JsonType { found, .. }) if kind.is_none_or(|kind| kind == *found))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// serde_json's own pointer says the same, by another way: through the whole document as a tree.
    #[test]
    fn agrees_with_the_tree(document in document(), tokens in prop::collection::vec(prop::sample::select(vec!["a", "b", "0", "1", "~0", "~1", "", "é", "-"]), 0..4)) {
        let pointer: String = tokens.iter().flat_map(|token| ["/", token]).collect();
        let found = find(&pointer, document.to_string());
        match document.pointer(&pointer) {
            None | Some(Value::Null) => prop_assert_eq!(found, missing(&pointer)),
            Some(Value::String(text)) if text.is_empty() => prop_assert_eq!(found, Err(IdentityError::Empty { field: Field::Json((&*pointer).into()) })),
            Some(Value::String(text)) => prop_assert!(found.unwrap().encoded().ends_with(text.as_bytes())),
            Some(Value::Number(number)) if number.is_f64() => prop_assert!(refused(&found, Some(JsonKind::Number))),
            Some(Value::Number(number)) => {
                let integer = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from)).unwrap();
                prop_assert!(found.unwrap().encoded().ends_with(&integer.to_be_bytes()));
            }
            Some(_) => prop_assert!(refused(&found, None)),
        }
    }

    /// Anything at all: an answer or an error, never a panic.
    #[test]
    fn f29_any_bytes_get_an_answer(payload in prop::collection::vec(any::<u8>(), 0..200), pointer in "(/[ab01~]{0,3}){0,3}") {
        let _ = find(&pointer, payload);
    }

    /// Near-JSON: a real document with one byte changed.
    #[test]
    fn f29_a_broken_document_gets_an_answer(document in document(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut payload = document.to_string().into_bytes();
        let at = at.index(payload.len());
        payload[at] = byte;
        let found = find("/a", payload.clone());
        // What serde_json reads as a tree, we may only refuse for a repeated name or a type.
        if serde_json::from_slice::<Value>(&payload).is_ok() {
            prop_assert!(!not_json(&found));
        }
        // What it cannot even skip, or is not UTF-8, must not give an identity.
        let text = str::from_utf8(&payload);
        if !text.is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()) {
            prop_assert!(not_json(&found), "{:?}", found);
        }
    }
}
