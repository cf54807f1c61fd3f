//! What is refused before the first message.

use hapax::identity::{
    FingerprintBy, Identify, IdentityConfigError, MAX_NAME_BYTES, MIN_SECRET_BYTES, Part, Scope, Sha256, by, digest,
    header, position, record_key,
};

#[test]
fn header_names_are_checked() {
    for name in ["message-id", "ce_id", "x", "Größe", "with space", &*"n".repeat(MAX_NAME_BYTES)] {
        assert_eq!(header(name).validate(), Ok(()), "{name}");
    }
    let empty = IdentityConfigError::EmptyName { what: "header name" };
    let not_plain = IdentityConfigError::NameNotPlain { what: "header name" };
    assert_eq!(header("").validate(), Err(empty.clone()));
    for name in [" id", "id ", "id\n", "\0", "a\u{7f}b", "\u{a0}id"] {
        assert_eq!(header(name).validate(), Err(not_plain.clone()), "{name:?}");
    }
    let size = MAX_NAME_BYTES + 1;
    let long = IdentityConfigError::NameTooLong { what: "header name", size, cap: MAX_NAME_BYTES };
    assert_eq!(header("n".repeat(size)).validate(), Err(long));
    assert_eq!(header("id").or_name("").validate(), Err(empty.clone()));
    for twice in [header("id").or_name("id"), header("id").or_name("x").or_name("x")] {
        assert_eq!(twice.validate(), Err(IdentityConfigError::Repeated { what: "header name" }));
    }
    assert_eq!(FingerprintBy::payload().and_header("").validate(), Err(empty));
    assert_eq!(FingerprintBy::payload().and_header("a").and_header("b").validate(), Ok(()));
    assert!(FingerprintBy::payload().and_header("a").and_header("a").validate().is_err());
}

#[test]
fn digests_need_parts_and_each_once() {
    let of = |parts: &[Part]| digest(Sha256).of(parts.iter().cloned()).validate();
    assert_eq!(digest(Sha256).validate(), Ok(()));
    assert_eq!(of(&[Part::Payload, Part::Key, Part::header("a"), Part::header("b")]), Ok(()));
    assert_eq!(of(&[]), Err(IdentityConfigError::NoParts));
    assert!(matches!(of(&[Part::Key, Part::Key]), Err(IdentityConfigError::Repeated { .. })));
    assert!(matches!(of(&[Part::header("a"), Part::header("a")]), Err(IdentityConfigError::Repeated { .. })));
    assert!(matches!(of(&[Part::header("")]), Err(IdentityConfigError::EmptyName { .. })));
}

#[test]
fn combinations_check_both_sides() {
    assert!(header("").or(position()).validate().is_err());
    assert!(position().or(header("")).validate().is_err());
    assert!(header("").and(position()).validate().is_err());
    assert!(position().and(header("")).validate().is_err());
    assert_eq!(position().and(record_key()).or(by(|_| "x")).validate(), Ok(()));
}

#[test]
fn scopes_need_names() {
    let empty = |what| Some(IdentityConfigError::EmptyName { what });
    assert_eq!(Scope::new("", "h").err(), empty("consumer group"));
    assert_eq!(Scope::new("g", "").err(), empty("handler"));
    assert_eq!(Scope::new("g", "h").unwrap().tenant("").err(), empty("tenant"));
    let long = "n".repeat(MAX_NAME_BYTES + 1);
    for refused in [Scope::new(&*long, "h"), Scope::new("g", &*long), Scope::new("g", "h").unwrap().tenant(&*long)] {
        assert!(matches!(refused, Err(IdentityConfigError::NameTooLong { size: 1025, cap: 1024, .. })), "{refused:?}");
    }
    let scope = Scope::new("g", "h").unwrap().tenant("t").unwrap().across_topics();
    assert_eq!(
        (scope.group(), scope.handler(), scope.tenant_name(), scope.spans_topics()),
        ("g", "h", Some("t"), true)
    );
}

#[test]
fn secrets_have_a_least_length() {
    let scope = || Scope::new("g", "h").unwrap();
    assert!(scope().secret([1; MIN_SECRET_BYTES]).is_ok());
    let error = scope().secret([1; MIN_SECRET_BYTES - 1]).unwrap_err();
    assert_eq!(error, IdentityConfigError::SecretTooShort { size: 15, least: 16 });
    assert!(error.to_string().contains("random"), "{error}");
}
