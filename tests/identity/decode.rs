//! A decoder of the encoding, written from the table in the rustdoc. What can be decoded without doubt cannot collide.

/// One component, as the table lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Component {
    Text(String),
    Bytes(Vec<u8>),
    Integer(i128),
    Header { name: String, value: Vec<u8> },
    RecordKey(Vec<u8>),
    JsonText { pointer: String, text: String },
    JsonInteger { pointer: String, integer: i128 },
    Position { topic: String, partition: i32, offset: i64 },
    Digest { algorithm: u8, part: DigestOf, digest: Vec<u8> },
    Sequence { source: Vec<u8>, number: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DigestOf {
    Payload,
    Key,
    Header(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) group: String,
    pub(crate) handler: String,
    pub(crate) tenant: Option<String>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn length(&mut self) -> Option<usize> {
        let mut length = 0_u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            length |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                // One length, one spelling.
                return (byte != 0 || shift == 0).then_some(usize::try_from(length).ok()?);
            }
        }
        None
    }

    fn prefixed(&mut self) -> Option<Vec<u8>> {
        let length = self.length()?;
        self.take(length).map(<[u8]>::to_vec)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.prefixed()?).ok()
    }

    fn integer(&mut self) -> Option<i128> {
        self.fixed().map(i128::from_be_bytes)
    }
}

pub(crate) fn components(encoded: &[u8]) -> Option<Vec<Component>> {
    let mut reader = Reader(encoded);
    let mut all = Vec::new();
    while !reader.0.is_empty() {
        all.push(component(&mut reader)?);
    }
    Some(all)
}

fn component(reader: &mut Reader<'_>) -> Option<Component> {
    Some(match reader.byte()? {
        0x01 => Component::Text(reader.text()?),
        0x02 => Component::Bytes(reader.prefixed()?),
        0x03 => Component::Integer(reader.integer()?),
        0x04 => Component::Header { name: reader.text()?, value: reader.prefixed()? },
        0x05 => Component::RecordKey(reader.prefixed()?),
        0x06 => Component::JsonText { pointer: reader.text()?, text: reader.text()? },
        0x07 => Component::JsonInteger { pointer: reader.text()?, integer: reader.integer()? },
        0x08 => Component::Position {
            topic: reader.text()?,
            partition: i32::from_be_bytes(reader.fixed()?),
            offset: i64::from_be_bytes(reader.fixed()?),
        },
        0x09 => {
            let algorithm = reader.byte()?;
            let part = match reader.byte()? {
                1 => DigestOf::Payload,
                2 => DigestOf::Key,
                3 => DigestOf::Header(reader.text()?),
                _ => return None,
            };
            let size = match algorithm {
                1 | 2 => 32,
                3 => 16,
                _ => return None,
            };
            Component::Digest { algorithm, part, digest: reader.take(size)?.to_vec() }
        }
        0x0a => Component::Sequence { source: reader.prefixed()?, number: u64::from_be_bytes(reader.fixed()?) },
        _ => return None,
    })
}

/// What a key is the hash of: the topic, if it is part of the key, and the identity.
pub(crate) fn key(encoded: &[u8]) -> Option<(Option<String>, Vec<Component>)> {
    let mut reader = Reader(encoded);
    (reader.byte()? == 0x01).then_some(())?;
    let topic = match reader.byte()? {
        0x10 => None,
        0x11 => Some(reader.text()?),
        _ => return None,
    };
    Some((topic, components(reader.0)?))
}

pub(crate) fn scope(encoded: &[u8]) -> Option<Names> {
    let mut reader = Reader(encoded);
    (reader.byte()? == 0x01).then_some(())?;
    (reader.byte()? == 0x21).then_some(())?;
    let group = reader.text()?;
    (reader.byte()? == 0x22).then_some(())?;
    let handler = reader.text()?;
    let tenant = if reader.0.is_empty() {
        None
    } else {
        (reader.byte()? == 0x23).then_some(())?;
        Some(reader.text()?)
    };
    reader.0.is_empty().then_some(Names { group, handler, tenant })
}
