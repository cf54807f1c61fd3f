//! Numbers as LEB128, and lists of runs of them: what windows are written as.

use super::Malformed;

/// The layout that is written, and the only one that is read.
const VERSION: u8 = 1;

/// Most bytes of one number.
pub(super) const LONGEST: usize = 10;

/// Begins the bytes of a window.
pub(super) fn begin() -> Vec<u8> {
    vec![VERSION]
}

/// Seven bits a byte, the lowest first.
pub(super) fn put(into: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        into.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

/// Reads what was written, and trusts none of it.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `None` for no bytes at all, which say that there is nothing to know.
    pub(super) fn of(bytes: &'a [u8]) -> Result<Option<Self>, Malformed> {
        match bytes {
            [] => Ok(None),
            [VERSION, rest @ ..] => Ok(Some(Self { rest })),
            [version, ..] => Err(Malformed::Version(*version)),
        }
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0_u64;
        for at in 0..LONGEST {
            let (byte, rest) = self.rest.split_first().ok_or(Malformed::Cut)?;
            self.rest = rest;
            let low = u64::from(byte & 0x7f);
            let shift = 7 * at as u32;
            // The tenth byte has room for one bit.
            if low.leading_zeros() < shift {
                return Err(Malformed::Number);
            }
            number |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed::Number)
    }

    /// A number of items of which each takes at least `least` bytes: no more than there can be, so that nobody can ask for memory by
    /// a number alone.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, Malformed> {
        let count = self.number()?;
        let most = self.rest.len() / least.max(1);
        usize::try_from(count).ok().filter(|count| *count <= most).ok_or(Malformed::Cut)
    }

    /// The next bytes, as they are.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Malformed::Cut)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Ends: nothing may be left.
    pub(super) const fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Left(self.rest.len())) }
    }
}

/// Writes ascending numbers with a small number beside each.
pub(super) fn put_pairs(into: &mut Vec<u8>, pairs: impl ExactSizeIterator<Item = (u64, u32)>) {
    put(into, pairs.len() as u64);
    let mut before = 0;
    for (number, beside) in pairs {
        put(into, number - before);
        put(into, u64::from(beside));
        before = number;
    }
}

/// Reads what [`put_pairs`] wrote.
pub(super) fn pairs(from: &mut Reader<'_>) -> Result<Vec<(u64, u32)>, Malformed> {
    let count = from.count(2)?;
    let mut pairs = Vec::with_capacity(count);
    let mut before = 0_u64;
    for at in 0..count {
        let step = from.number()?;
        if at > 0 && step == 0 {
            return Err(Malformed::Order);
        }
        before = before.checked_add(step).ok_or(Malformed::Number)?;
        let beside = u32::try_from(from.number()?).map_err(|_| Malformed::Number)?;
        pairs.push((before, beside));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let numbers = [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), i64::MAX as u64, u64::MAX - 1, u64::MAX];
        let mut bytes = begin();
        numbers.iter().for_each(|number| put(&mut bytes, *number));
        let mut reader = Reader::of(&bytes).unwrap().unwrap();
        for number in numbers {
            assert_eq!(reader.number(), Ok(number));
        }
        assert_eq!(reader.end(), Ok(()));
        let mut longest = Vec::new();
        put(&mut longest, u64::MAX);
        assert_eq!(longest.len(), LONGEST);
    }

    #[test]
    fn a_number_that_is_too_large_or_does_not_end_is_refused() {
        let read = |bytes: &[u8]| Reader { rest: bytes }.number();
        assert_eq!(read(&[0xff; 10]), Err(Malformed::Number));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), Err(Malformed::Number));
        assert_eq!(read(&[0x80]), Err(Malformed::Cut));
        assert_eq!(read(&[]), Err(Malformed::Cut));
    }
}
