//! Identities that stand in a JSON payload.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::encode::{Encoder, Piece, tag};
use super::error::{Field, IdentityConfigError, IdentityError, JsonKind};
use super::source::present;
use super::{Identify, MAX_NAME_BYTES};
use crate::message::MessageView;

/// The largest payload that [`json`] searches, in bytes, unless [`Json::max_bytes`] says otherwise.
pub const MAX_JSON_BYTES: usize = 4 << 20;

/// JSON parsers stop at 128 levels; nobody points that deep.
const MAX_DEPTH: usize = 64;

/// The string or the integer that a JSON pointer (RFC 6901) such as `/order/id` or `/items/0/id` finds in the payload.
///
/// - A string counts with its unescaped content; Unicode form, case and white space count.
/// - An integer counts if it fits 64 bits, signed or unsigned; `7` is not the string `"7"`.
/// - No value, and `null`, are absent. Booleans, other numbers (parsers round them differently), arrays and objects are errors.
/// - A member name on the way that stands twice in one object is an error, since parsers disagree which one counts.
/// - The payload must be one JSON document in UTF-8 and is read to its end, without building a tree. A null payload is absent.
///   A payload that is not JSON is an error that `.or(…)` does not pass by.
///
/// The pointer is part of the identity. Whether it is a pointer at all is checked by [`Identify::validate`].
#[must_use]
pub fn json(pointer: impl Into<Arc<str>>) -> Json {
    let pointer = pointer.into();
    let path = parse(&pointer);
    Json { pointer, path, max_bytes: MAX_JSON_BYTES }
}

/// An identity out of a JSON payload; made by [`json`].
#[derive(Debug, Clone)]
pub struct Json {
    pointer: Arc<str>,
    path: Result<Vec<String>, &'static str>,
    max_bytes: usize,
}

impl Json {
    /// The largest payload that is searched, in bytes: [`MAX_JSON_BYTES`] unless set. A larger one is
    /// [`IdentityError::Oversize`].
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }
}

impl Identify for Json {
    fn identify(&self, message: &dyn MessageView, into: &mut Encoder) -> Result<(), IdentityError> {
        let path = self.path.as_ref().map_err(|reason| IdentityError::Refused { reason })?;
        let payload = present(message.payload(), || Field::Payload)?;
        if payload.len() > self.max_bytes {
            let (size, cap) = (payload.len(), self.max_bytes);
            return Err(IdentityError::Oversize { field: Field::Payload, size, cap });
        }
        let mut search = Search { pointer: &self.pointer, into, outcome: Outcome::Absent };
        // Strings that are skipped are not looked into: what is not UTF-8 has to be found first.
        let payload = str::from_utf8(payload).map_err(|fault| not_utf8(payload, fault.valid_up_to()))?;
        let mut document = serde_json::Deserializer::from_str(payload);
        Step { path, search: &mut search }
            .deserialize(&mut document)
            .and_then(|()| document.end())
            .map_err(|fault| IdentityError::NotJson { line: fault.line(), column: fault.column() })?;
        match search.outcome {
            Outcome::Absent => Err(IdentityError::Missing { field: Field::Json(Arc::clone(&self.pointer)) }),
            Outcome::Written => Ok(()),
            Outcome::Failed(error) => Err(error),
        }
    }

    fn validate(&self) -> Result<(), IdentityConfigError> {
        match &self.path {
            Ok(_) => Ok(()),
            Err(reason) => Err(IdentityConfigError::Pointer { pointer: Arc::clone(&self.pointer), reason }),
        }
    }
}

/// The error for a payload whose first `valid` bytes are UTF-8 and no more.
fn not_utf8(payload: &[u8], valid: usize) -> IdentityError {
    let before = payload.get(..valid).unwrap_or_default();
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    let column = 1 + before.iter().rev().take_while(|byte| **byte != b'\n').count();
    IdentityError::NotJson { line, column }
}

/// The reference tokens of a pointer, unescaped.
fn parse(pointer: &str) -> Result<Vec<String>, &'static str> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    if pointer.len() > MAX_NAME_BYTES {
        return Err("it is too long");
    }
    let rest = pointer.strip_prefix('/').ok_or("it must begin with `/`, as in `/order/id`")?;
    let path = rest.split('/').map(unescape).collect::<Result<Vec<_>, _>>()?;
    if path.len() > MAX_DEPTH {
        return Err("it goes deeper than 64 levels");
    }
    Ok(path)
}

fn unescape(token: &str) -> Result<String, &'static str> {
    let mut plain = String::with_capacity(token.len());
    let mut letters = token.chars();
    while let Some(letter) = letters.next() {
        plain.push(match letter {
            '~' => match letters.next() {
                Some('0') => '~',
                Some('1') => '/',
                _ => return Err("after `~` stands `0` (for `~`) or `1` (for `/`)"),
            },
            other => other,
        });
    }
    Ok(plain)
}

/// An array index as RFC 6901 has it: digits, no leading zero.
fn index(token: &str) -> Option<usize> {
    let plain = token == "0" || !token.starts_with('0');
    if plain && token.bytes().all(|digit| digit.is_ascii_digit()) { token.parse().ok() } else { None }
}

enum Outcome {
    Absent,
    Written,
    Failed(IdentityError),
}

struct Search<'a> {
    pointer: &'a Arc<str>,
    into: &'a mut Encoder,
    outcome: Outcome,
}

impl Search<'_> {
    fn field(&self) -> Field {
        Field::Json(Arc::clone(self.pointer))
    }

    fn text(&mut self, text: &str) {
        if text.is_empty() {
            self.outcome = Outcome::Failed(IdentityError::Empty { field: self.field() });
            return;
        }
        self.write(tag::JSON_TEXT, Piece::Prefixed(text.as_bytes()));
    }

    fn integer(&mut self, integer: impl Into<i128>) {
        self.write(tag::JSON_INTEGER, Piece::Fixed(&integer.into().to_be_bytes()));
    }

    fn write(&mut self, tag: u8, value: Piece<'_>) {
        let pointer = self.pointer;
        let pieces = [Piece::Prefixed(pointer.as_bytes()), value];
        self.outcome = match self.into.component(tag, &pieces, || Field::Json(Arc::clone(pointer))) {
            Ok(()) => Outcome::Written,
            Err(error) => Outcome::Failed(error),
        };
    }

    fn refuse(&mut self, found: JsonKind) {
        self.outcome = Outcome::Failed(IdentityError::JsonType { pointer: Arc::clone(self.pointer), found });
    }
}

/// One value of the document and what is left of the path from there.
struct Step<'s, 'a> {
    path: &'a [String],
    search: &'s mut Search<'a>,
}

impl<'de> DeserializeSeed<'de> for Step<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        if self.path.is_empty() {
            self.search.text(text);
        }
        Ok(())
    }

    fn visit_i64<E>(self, integer: i64) -> Result<(), E> {
        if self.path.is_empty() {
            self.search.integer(integer);
        }
        Ok(())
    }

    fn visit_u64<E>(self, integer: u64) -> Result<(), E> {
        if self.path.is_empty() {
            self.search.integer(integer);
        }
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        if self.path.is_empty() {
            self.search.refuse(JsonKind::Number);
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        if self.path.is_empty() {
            self.search.refuse(JsonKind::Bool);
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let Some((token, rest)) = self.path.split_first() else {
            // With serde_json's `arbitrary_precision`, which any crate of the build may turn on, a number comes as a map.
            match Value::deserialize(MapAccessDeserializer::new(map))? {
                Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                    (Some(integer), _) => self.search.integer(integer),
                    (_, Some(integer)) => self.search.integer(integer),
                    _ => self.search.refuse(JsonKind::Number),
                },
                _ => self.search.refuse(JsonKind::Object),
            }
            return Ok(());
        };
        let mut met = false;
        while let Some(this) = map.next_key_seed(NameIs(token))? {
            if !this {
                map.next_value::<IgnoredAny>()?;
            } else if met {
                map.next_value::<IgnoredAny>()?;
                let pointer = Arc::clone(self.search.pointer);
                self.search.outcome = Outcome::Failed(IdentityError::JsonRepeated { pointer });
            } else {
                met = true;
                map.next_value_seed(Step { path: rest, search: &mut *self.search })?;
            }
        }
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<(), S::Error> {
        let Some((token, rest)) = self.path.split_first() else {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            self.search.refuse(JsonKind::Array);
            return Ok(());
        };
        if let Some(index) = index(token) {
            for _ in 0..index {
                if seq.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(());
                }
            }
            if seq.next_element_seed(Step { path: rest, search: &mut *self.search })?.is_none() {
                return Ok(());
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Reads a member name without keeping it.
struct NameIs<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for NameIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
