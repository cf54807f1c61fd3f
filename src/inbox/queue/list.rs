//! Which messages a run took, and how each ended: a few bytes for a whole run of neighbours.
//!
//! A list is any number of chunks, one behind another; each is written by one statement, which appends it. A chunk is a byte `1`, the number
//! of its groups, and the groups: a first id, how many ids follow it without a gap, and what all of them share. Numbers are of 7 bits a byte; ids
//! are differences to the id before, signed.

/// One message in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: i64,
    pub(crate) generation: u32,
    pub(crate) attempt: u32,
    /// In `taken`: its turn. In `done`: an [`Ending`]'s code.
    pub(crate) value: i64,
}

/// How a message of a run ended, as `done` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Succeeded,
    /// Succeeded, after the run had been taken over.
    Late,
    /// To be tried again, or given up: there is a row of the attempt.
    Failed,
    Dead,
    /// Never begun: no attempt.
    Released,
}

impl Ending {
    pub(crate) const fn code(self) -> i64 {
        match self {
            Self::Succeeded => 0,
            Self::Late => 1,
            Self::Failed => 2,
            Self::Dead => 3,
            Self::Released => 4,
        }
    }

    pub(crate) const fn of(code: i64) -> Option<Self> {
        match code {
            0 => Some(Self::Succeeded),
            1 => Some(Self::Late),
            2 => Some(Self::Failed),
            3 => Some(Self::Dead),
            4 => Some(Self::Released),
            _ => None,
        }
    }
}

const VERSION: u8 = 1;

fn put(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    into.push(number.to_le_bytes()[0]);
}

fn get(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Small numbers of either sign, as small numbers.
const fn folded(number: i64) -> u64 {
    (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned()
}

const fn unfolded(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

/// One chunk; nothing for no entries.
pub(crate) fn pack(entries: &[Entry]) -> Vec<u8> {
    if entries.is_empty() {
        return Vec::new();
    }
    let follows = |a: &Entry, b: &Entry| {
        a.id.checked_add(1) == Some(b.id) && (a.generation, a.attempt, a.value) == (b.generation, b.attempt, b.value)
    };
    let groups: Vec<&[Entry]> = entries.chunk_by(follows).collect();
    let mut packed = vec![VERSION];
    put(&mut packed, groups.len() as u64);
    let mut before = 0_i64;
    for group in groups {
        let [first, ..] = group else { continue };
        put(&mut packed, folded(first.id.wrapping_sub(before)));
        put(&mut packed, group.len() as u64);
        put(&mut packed, u64::from(first.generation));
        put(&mut packed, u64::from(first.attempt));
        put(&mut packed, folded(first.value));
        before = group.last().map_or(first.id, |last| last.id);
    }
    packed
}

/// All entries of a list; `None` if it is not what this crate writes.
pub(crate) fn unpack(mut packed: &[u8]) -> Option<Vec<Entry>> {
    /// More than any run may take; keeps a damaged list from filling the memory.
    const MOST: u64 = 1 << 24;
    let mut entries = Vec::new();
    while let Some((&version, rest)) = packed.split_first() {
        if version != VERSION {
            return None;
        }
        packed = rest;
        let groups = get(&mut packed)?;
        let mut before = 0_i64;
        for _ in 0..groups {
            let first = before.wrapping_add(unfolded(get(&mut packed)?));
            let count = get(&mut packed)?;
            let generation = u32::try_from(get(&mut packed)?).ok()?;
            let attempt = u32::try_from(get(&mut packed)?).ok()?;
            let value = unfolded(get(&mut packed)?);
            if count == 0 || count > MOST || entries.len() as u64 + count > MOST {
                return None;
            }
            for number in 0..count.cast_signed() {
                let id = first.checked_add(number)?;
                entries.push(Entry { id, generation, attempt, value });
                before = id;
            }
        }
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(id: i64) -> Entry {
        Entry { id, generation: 1, attempt: 1, value: 0 }
    }

    #[test]
    fn neighbours_cost_nothing() {
        let base = 7 << 40;
        let entries: Vec<Entry> = (0..512).map(|n| entry(base + n)).collect();
        assert!(pack(&entries).len() <= 16);
        assert_eq!(unpack(&pack(&entries)).unwrap(), entries);
        assert!(pack(&[]).is_empty());
        assert_eq!(unpack(&[]), Some(Vec::new()));
    }

    #[test]
    fn chunks_add_up() {
        let mut packed = pack(&[entry(5), entry(3)]);
        packed.extend(pack(&[entry(4)]));
        assert_eq!(unpack(&packed).unwrap(), [entry(5), entry(3), entry(4)]);
    }

    #[test]
    fn damage_is_seen() {
        let packed = pack(&[entry(1 << 40), entry(5)]);
        for end in 1..packed.len() {
            assert_eq!(unpack(&packed[..end]), None, "{end}");
        }
        assert_eq!(unpack(&[2]), None);
        assert_eq!(unpack(&[1, 1, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 1, 0]), None);
    }

    proptest! {
        #[test]
        fn lists_come_back(entries in prop::collection::vec(
            (any::<i64>(), any::<u32>(), any::<u32>(), any::<i64>())
                .prop_map(|(id, generation, attempt, value)| Entry { id, generation, attempt, value }), 0..40)
        ) {
            prop_assert_eq!(unpack(&pack(&entries)).unwrap(), entries);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = unpack(&bytes);
        }
    }
}
