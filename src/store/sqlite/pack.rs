//! A batch as one blob, and a reading as one text.
//!
//! SQLite has no arrays, and every bound value and every returned row is a step between threads. So a batch is bound as rows of
//! fixed width and taken apart by `substr`, and records come back as one line of hexadecimal text.

use std::fmt::Write as _;

use crate::identity::Key;
use crate::record::Record;
use crate::store::sql::{Column, Field, Kind, Raw, Reading, Values};

const DIGEST: usize = 16;
const INT: usize = 20;
const OFFSET: usize = 10;
/// Offset and length; no length is null.
const BLOB: usize = 2 * OFFSET;

/// Rows of one statement.
pub(super) const ROWS: usize = 512;
/// Longest blob that stands in the rows themselves.
const EVEN: usize = 512;

/// How blobs are packed, as the statement's size: 1 where rows point at them, and 2 and their length where all of them are
/// of one length and stand in the rows, as the origins of a batch from one topic do. That saves a third of an insert.
pub(super) fn shape(values: &Values) -> usize {
    let blobs = values.columns.iter().filter_map(|column| match column {
        Column::Blobs(blobs) => Some(blobs),
        Column::Digests(_) | Column::Ints(_) => None,
    });
    let mut lengths = blobs.flatten().map(|blob| blob.as_ref().map(bytes::Bytes::len));
    match lengths.next() {
        Some(Some(length)) if length <= EVEN && lengths.all(|other| other == Some(length)) => 2 + length,
        _ => 1,
    }
}

const fn width(kind: Kind, shape: usize) -> usize {
    match kind {
        Kind::Digest => DIGEST,
        Kind::Int => INT,
        Kind::Blob if shape >= 2 => shape - 2,
        Kind::Blob => BLOB,
    }
}

/// The packed rows, what they point at, and their number, as a table.
pub(super) fn source(fields: &[Field], first: usize, shape: usize) -> String {
    let (packed, count, heap) = (first, first + 1, first + 2);
    let stride: usize = fields.iter().map(|(_, kind)| width(*kind, shape)).sum();
    let mut text = String::from("(SELECT ");
    let mut at = 1;
    for (number, (name, kind)) in fields.iter().enumerate() {
        let comma = if number == 0 { "" } else { ", " };
        let part = |at: usize, width: usize| format!("substr(?{packed}, column1 * {stride} + {at}, {width})");
        let value = match kind {
            Kind::Digest => part(at, DIGEST),
            Kind::Int => format!("CAST({} AS INTEGER)", part(at, INT)),
            Kind::Blob if shape >= 2 => part(at, shape - 2),
            Kind::Blob => {
                // A length of blanks is null, and substr of null is null.
                let (offset, length) = (part(at, OFFSET), part(at + OFFSET, OFFSET));
                format!(
                    "substr(?{heap}, CAST({offset} AS INTEGER), CAST(nullif({length}, x'20202020202020202020') AS INTEGER))"
                )
            }
        };
        let _ = write!(text, "{comma}{value} AS {name}");
        at += width(*kind, shape);
    }
    text.push_str(" FROM (VALUES ");
    for row in 0..ROWS {
        let comma = if row == 0 { "" } else { "," };
        let _ = write!(text, "{comma}({row})");
    }
    let _ = write!(text, ") LIMIT ?{count})");
    text
}

/// Rows of fixed width, and what they point at, if they do.
pub(super) fn pack(values: &Values, shape: usize) -> (Vec<u8>, Option<Vec<u8>>) {
    let stride: usize = values.columns.iter().map(|column| width(kind(column), shape)).sum();
    let mut packed = Vec::with_capacity(stride * values.len);
    // Never empty: a part of an empty blob is null.
    let mut heap = vec![0];
    for row in 0..values.len {
        for column in &values.columns {
            match column {
                Column::Digests(column) => packed.extend(column.get(row).into_iter().flatten()),
                Column::Ints(column) => digits::<INT>(&mut packed, column.get(row).copied().unwrap_or(0)),
                Column::Blobs(column) => match column.get(row).and_then(Option::as_ref) {
                    Some(blob) if shape >= 2 => packed.extend_from_slice(blob),
                    Some(blob) => {
                        digits::<OFFSET>(&mut packed, place(heap.len() + 1));
                        digits::<OFFSET>(&mut packed, place(blob.len()));
                        heap.extend_from_slice(blob);
                    }
                    None => packed.extend_from_slice(&[b' '; BLOB]),
                },
            }
        }
    }
    let points = shape < 2 && values.columns.iter().any(|column| kind(column) == Kind::Blob);
    (packed, points.then_some(heap))
}

const fn kind(column: &Column) -> Kind {
    match column {
        Column::Digests(_) => Kind::Digest,
        Column::Ints(_) => Kind::Int,
        Column::Blobs(_) => Kind::Blob,
    }
}

fn place(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number in decimal, right-aligned in blanks.
fn digits<const WIDTH: usize>(packed: &mut Vec<u8>, number: i64) {
    let mut text = [b' '; WIDTH];
    let mut rest = number.unsigned_abs();
    let mut at = WIDTH;
    loop {
        at -= 1;
        text[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 || at == 0 {
            break;
        }
    }
    if number < 0 && at > 0 {
        text[at - 1] = b'-';
    }
    packed.extend_from_slice(&text);
}

/// All records of a reading, as one text: fields end with `,` and records with `;`.
pub(super) fn line() -> String {
    let plain = ["state", "attempts", "owner", "fence", "time"];
    let plain: Vec<String> = plain.iter().map(|column| format!("h.{column}")).collect();
    format!(
        "group_concat(hex(h.message_key) || ',' || hex(h.fingerprint) || ',' || {} || ',' || hex(h.origin) || ',' || \
         CASE WHEN h.result IS NULL THEN '-' ELSE hex(h.result) END, ';')",
        plain.join(" || ',' || ")
    )
}

/// Reads what [`line()`] wrote; `None` if this crate did not write the records.
pub(super) fn parse(now: i64, line: Option<&str>) -> Option<Reading> {
    let records = line.unwrap_or_default().split(';').filter(|record| !record.is_empty()).map(parse_record);
    Some(Reading { now, records: records.collect::<Option<Vec<_>>>()? })
}

fn parse_record(line: &str) -> Option<(Key, Record)> {
    let mut fields = line.split(',');
    let key = unhex(fields.next()?)?;
    let fingerprint = unhex(fields.next()?)?;
    let mut int = || fields.next()?.parse::<i64>().ok();
    let (state, attempts, owner, fence, time) = (int()?, int()?, int()?, int()?, int()?);
    let origin = unhex(fields.next()?)?;
    let result = match fields.next()? {
        "-" => None,
        hex => Some(unhex(hex)?),
    };
    let raw = Raw {
        key: &key,
        fingerprint: &fingerprint,
        state,
        attempts,
        owner,
        fence,
        time,
        origin: &origin,
        result: result.as_deref(),
    };
    raw.decode()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::{INT, digits, unhex};

    #[test]
    fn numbers_are_fixed_width() {
        for number in [0, 1, -1, 42, i64::MAX, i64::MIN] {
            let mut text = Vec::new();
            digits::<INT>(&mut text, number);
            assert_eq!(text.len(), INT);
            assert_eq!(String::from_utf8(text).unwrap().trim().parse(), Ok(number));
        }
    }

    #[test]
    fn hexadecimal_is_read() {
        assert_eq!(unhex("00FF7a"), None);
        assert_eq!(unhex("00FF7A"), Some(vec![0, 255, 0x7a]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex(""), Some(vec![]));
    }
}
