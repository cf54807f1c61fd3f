//! Who does something, and why.

use std::fmt;

/// Bytes of a name.
const WHO: usize = 255;
/// Bytes of a reason.
const WHY: usize = 1024;
/// Who does something to the inbox, and why: kept with what was done, for as long as the tables stand.
///
/// ```
/// use hapax::inbox::By;
///
/// let by = By::new("ada", "the address service is back: fixed in 1.4.2").request("ticket-4711");
/// assert_eq!(by.who(), "ada");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct By {
    who: String,
    why: String,
    request: Option<[u8; 16]>,
}

impl By {
    /// Names who does it, and why. Cut at 255 and 1024 bytes.
    #[must_use]
    pub fn new(who: impl Into<String>, why: impl Into<String>) -> Self {
        Self { who: cut(who.into(), WHO), why: cut(why.into(), WHY), request: None }
    }

    /// Gives what is asked an id of the caller's own: asked again under it, the call does nothing more and answers what the first one did, however
    /// much later. One id belongs to one thing: used for another, the call is refused with an error. A call that changed nothing leaves
    /// no trace, and may be asked again under the same id.
    #[must_use]
    pub fn request(mut self, id: impl AsRef<[u8]>) -> Self {
        let [low, _] = halves(blake3::derive_key("hapax inbox v1 request", id.as_ref()));
        self.request = Some(low);
        self
    }

    /// Who.
    #[must_use]
    pub fn who(&self) -> &str {
        &self.who
    }

    /// Why.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// What the table knows the call by: the caller's id, or one that no other call has, so that a commit whose reply was lost is found again.
    pub(super) fn handle(&self, random: [u64; 2]) -> [u8; 16] {
        let [high, low] = random;
        self.request.unwrap_or_else(|| ((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
    }
}

fn halves(hash: [u8; 32]) -> [[u8; 16]; 2] {
    let (halves, _) = hash.as_chunks::<16>();
    [halves.first().copied().unwrap_or_default(), halves.last().copied().unwrap_or_default()]
}

fn cut(mut text: String, most: usize) -> String {
    // No database takes it in a text.
    text.retain(|character| character != '\0');
    text.truncate(text.floor_char_boundary(most));
    text
}

impl fmt::Debug for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("By")
            .field("who", &self.who)
            .field("why", &self.why)
            .field("request", &self.request.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::By;

    #[test]
    fn requests_are_told_apart() {
        let by = |id: &str| By::new("ada", "test").request(id).handle([1, 2]);
        assert_eq!(by("a"), by("a"));
        assert_ne!(by("a"), by("b"));
        assert_eq!(by("a"), By::new("bob", "another").request("a").handle([3, 4]));
        let own = |random| By::new("ada", "test").handle(random);
        assert_ne!(own([1, 2]), own([1, 3]));
        assert_ne!(own([1, 2]), own([2, 2]));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let by = By::new("é".repeat(200), "a\0b");
        assert_eq!((by.who().len(), by.why()), (254, "ab"));
    }
}
