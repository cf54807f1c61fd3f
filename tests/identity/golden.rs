//! Keys and fingerprints that another implementation computed (`oracle.py`). Stores out there hold such keys: if one of
//! these changes, an upgrade forgets everything.

use std::iter::Peekable;
use std::str::Lines;

use hapax::identity::{
    Blake3, DigestKind, FingerprintBy, Identify, Identity, InsecureMd5, Part, Scope, Sha256, by, digest, header,
    position, record_key, sequence,
};
use hapax::message::{MessageView, Parts};

const VECTORS: &str = include_str!("vectors.txt");

type Boxed = Box<dyn Identify>;

#[derive(Default)]
struct Vector {
    name: String,
    group: String,
    handler: String,
    tenant: Option<String>,
    secret: Option<Vec<u8>>,
    across: bool,
    message: Option<Parts>,
    topic: Option<String>,
    found: Vec<Boxed>,
    covers: FingerprintBy,
    needs_json: bool,
    encoded: String,
    key: String,
    fingerprint: String,
}

fn unescape(word: &str) -> Vec<u8> {
    if word == "%" {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let (digits, tail) = rest.split_at(2);
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap());
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    bytes
}

fn text(word: &str) -> String {
    String::from_utf8(unescape(word)).unwrap()
}

/// A value, which may be written as a pattern.
fn value(words: &[&str]) -> Vec<u8> {
    match words {
        ["%pattern", size] => (0..size.parse().unwrap()).map(|at: u32| (at % 251) as u8).collect(),
        [word] => unescape(word),
        _ => panic!("{words:?}"),
    }
}

fn find(kind: &str, words: &[&str], vector: &mut Vector) -> Boxed {
    match (kind, words) {
        ("header", [name, others @ ..]) => {
            Box::new(others.iter().fold(header(text(name)), |found, other| found.or_name(text(other))))
        }
        ("record_key", []) => Box::new(record_key()),
        ("position", []) => Box::new(position()),
        ("sequence", []) => Box::new(sequence()),
        ("sequence", [source, number]) => {
            Box::new(sequence().source_header(text(source)).sequence_header(text(number)))
        }
        #[cfg(feature = "json")]
        ("json", [pointer]) => Box::new(hapax::identity::json(text(pointer))),
        #[cfg(not(feature = "json"))]
        ("json", [_]) => {
            vector.needs_json = true;
            Box::new(position())
        }
        ("digest", [algorithm, parts @ ..]) => {
            Box::new(digest(algorithm_of(algorithm)).of(parts.iter().map(|part| part_of(part))))
        }
        ("text", [word]) => {
            let text = text(word);
            Box::new(by(move |_| Identity::text(&text)))
        }
        ("bytes", [word]) => {
            let bytes = unescape(word);
            Box::new(by(move |_| Identity::bytes(&bytes)))
        }
        ("integer", [word]) => {
            let integer: i128 = word.parse().unwrap();
            Box::new(by(move |_| integer))
        }
        ("and", []) => {
            let (second, first) = (vector.found.pop().unwrap(), vector.found.pop().unwrap());
            Box::new(first.and(second))
        }
        ("and_then", []) => {
            let (second, first) = (vector.found.pop().unwrap(), vector.found.pop().unwrap());
            Box::new(first.and_then(second))
        }
        ("or", []) => {
            let (second, first) = (vector.found.pop().unwrap(), vector.found.pop().unwrap());
            Box::new(first.or(second))
        }
        other => panic!("{other:?}"),
    }
}

fn algorithm_of(word: &str) -> DigestKind {
    match word {
        "sha256" => Sha256,
        "blake3" => Blake3,
        "md5" => InsecureMd5,
        other => panic!("{other}"),
    }
}

fn part_of(word: &str) -> Part {
    match word {
        "payload" => Part::Payload,
        "key" => Part::Key,
        other => Part::header(other.strip_prefix("header:").unwrap()),
    }
}

fn vector(lines: &mut Peekable<Lines<'_>>) -> Option<Vector> {
    while lines.peek()?.is_empty() || lines.peek()?.starts_with('#') {
        lines.next();
    }
    let mut vector = Vector { name: lines.next()?.strip_prefix("vector ").unwrap().to_owned(), ..Vector::default() };
    while let Some(line) = lines.next_if(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let message = vector.message.take().unwrap_or_else(|| Parts::new(""));
        let message = match &words[..] {
            ["group", name] => {
                vector.group = text(name);
                message
            }
            ["handler", name] => {
                vector.handler = text(name);
                message
            }
            ["tenant", name] => {
                vector.tenant = Some(text(name));
                message
            }
            ["secret", words @ ..] => {
                vector.secret = Some(value(words));
                message
            }
            ["across"] => {
                vector.across = true;
                message
            }
            ["topic", name] => {
                vector.topic = Some(text(name));
                Parts::new(text(name))
            }
            ["at", partition, offset] => message.at(partition.parse().unwrap(), offset.parse().unwrap()),
            ["key", words @ ..] => message.key(value(words)),
            ["payload", words @ ..] => message.payload(value(words)),
            ["header", name, word] => message.header(text(name), unescape(word)),
            ["null_header", name] => message.null_header(text(name)),
            ["find", kind, words @ ..] => {
                let found = find(kind, words, &mut vector);
                vector.found.push(found);
                message
            }
            ["covers", first, names @ ..] => {
                let start = match *first {
                    "payload" => FingerprintBy::payload(),
                    "nothing" => FingerprintBy::nothing(),
                    other => panic!("{other}"),
                };
                vector.covers = names.iter().fold(start, |covers, name| covers.and_header(text(name)));
                message
            }
            ["=", "encoded", hex] => {
                vector.encoded = (*hex).to_owned();
                message
            }
            ["=", "key", hex] => {
                vector.key = (*hex).to_owned();
                message
            }
            ["=", "fingerprint", hex] => {
                vector.fingerprint = (*hex).to_owned();
                message
            }
            other => panic!("{other:?}"),
        };
        vector.message = Some(message);
    }
    Some(vector)
}

fn vectors() -> Vec<Vector> {
    let mut lines = VECTORS.lines().peekable();
    std::iter::from_fn(|| vector(&mut lines)).collect()
}

fn scope(vector: &Vector) -> Scope {
    let mut scope = Scope::new(&vector.group, &vector.handler).unwrap();
    // Secret before tenant here; the order of the builder's calls must not matter.
    if let Some(secret) = &vector.secret {
        scope = scope.secret(secret).unwrap();
    }
    if let Some(tenant) = &vector.tenant {
        scope = scope.tenant(tenant).unwrap();
    }
    if vector.across { scope.across_topics() } else { scope }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_vectors_hold() {
    let vectors = vectors();
    assert!(vectors.len() >= 97, "a vector was lost: {} are left", vectors.len());
    for vector in vectors {
        if vector.needs_json {
            continue;
        }
        let name = &vector.name;
        let scope = scope(&vector);
        let [identify] = &vector.found[..] else { panic!("{name}: {} identities", vector.found.len()) };
        identify.validate().unwrap();
        let message = vector.message.as_ref().unwrap();
        let identity = identify.identity(message).unwrap_or_else(|error| panic!("{name}: {error}"));
        let key = match &vector.topic {
            Some(topic) => scope.key(&identity, topic),
            None => scope.key_of(&identity),
        };
        let fingerprint = scope.fingerprint(&vector.covers, message);
        assert_eq!(hex(identity.encoded()), vector.encoded, "{name}: the encoding changed");
        assert_eq!(key.to_string(), vector.key, "{name}: the key changed");
        assert_eq!(fingerprint.to_string(), vector.fingerprint, "{name}: the fingerprint changed");
        if vector.covers == FingerprintBy::payload() {
            assert_eq!(scope.fingerprint_of(message.payload()), fingerprint, "{name}");
        }
    }
}

/// Every vector stands for a case of its own, so equal keys would be a false duplicate, but for those that are meant.
#[test]
fn golden_keys_differ_where_the_cases_do() {
    let mut met = std::collections::HashMap::new();
    let mut equal = Vec::new();
    let vectors = vectors();
    for vector in vectors.iter().filter(|vector| !vector.name.starts_with("fingerprint")) {
        if let Some(before) = met.insert(&vector.key, &*vector.name) {
            equal.push((before, &*vector.name));
        }
    }
    let mut meant = [
        // A scope that spans topics has the keys of a call.
        ("header, no message", "header, across topics"),
        // What parts these two is the fingerprint.
        ("digest, md5, first of a collision", "digest, md5, second of a collision"),
        ("header", "header, other name of the same id"),
        ("header, other name of the same id", "or, first"),
        ("digest, sha256", "or, second"),
        ("record key", "or, first is null"),
        ("sequence", "sequence, as 8 bytes"),
        ("or, first is null", "or, first is empty"),
        ("or, first is empty", "or, half of an and"),
    ];
    equal.sort_unstable();
    meant.sort_unstable();
    assert_eq!(equal, meant);
}
