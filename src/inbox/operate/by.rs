//! Who does something, and why.

use std::fmt;

/// Bytes of a name.
const WHO: usize = 255;
/// Bytes of a reason.
const WHY: usize = 1024;
/// Bytes of a request's id that are kept as they are.
const REQUEST: usize = 200;

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
    request: Option<Vec<u8>>,
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
        let id = id.as_ref();
        let mut kept = Vec::with_capacity(id.len().min(REQUEST) + 1);
        if id.len() <= REQUEST {
            kept.push(b'=');
            kept.extend_from_slice(id);
        } else {
            kept.push(b'#');
            kept.extend_from_slice(blake3::hash(id).as_bytes());
        }
        self.request = Some(kept);
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
    pub(super) fn handle(&self, random: [u64; 2]) -> Vec<u8> {
        self.request.clone().unwrap_or_else(|| {
            let mut own = vec![b'*'];
            own.extend(random.iter().flat_map(|half| half.to_be_bytes()));
            own
        })
    }
}

/// The caller's id, if the table's is one and is a text.
pub(super) fn given(handle: &[u8]) -> Option<String> {
    let (first, rest) = handle.split_first()?;
    (*first == b'=').then(|| String::from_utf8_lossy(rest).into_owned())
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
            .field("request", &self.request.as_deref().map(String::from_utf8_lossy))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{By, given};

    #[test]
    fn requests_are_told_apart() {
        let by = |id: &[u8]| By::new("ada", "test").request(id).handle([0, 0]);
        assert_eq!(given(&by(b"a")).as_deref(), Some("a"));
        assert_eq!(given(&by(&[b'x'; 200])).map(|id| id.len()), Some(200));
        let (one, two) = (by(&[b'x'; 201]), by(&[b'x'; 202]));
        assert!(one != two && one.len() == 33 && given(&one).is_none());
        let own = |random| By::new("ada", "test").handle(random);
        assert!(own([1, 2]) != own([1, 3]) && given(&own([1, 2])).is_none());
        // What a caller gives is never taken for one of ours.
        assert_ne!(by(&own([1, 2])), own([1, 2]));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let by = By::new("é".repeat(200), "a\0b");
        assert_eq!((by.who().len(), by.why()), (254, "ab"));
    }
}
