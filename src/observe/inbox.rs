//! An inbox at one moment.

use std::fmt;
use std::time::Duration;

use super::snapshot::{Maybe, Text};

/// How an inbox stands at one moment: what a health endpoint can serve. `Display` writes it as one line of JSON. Told by `Inbox::watch`, and answered by
/// `Inbox::snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxSnapshot {
    /// The consumer group.
    pub group: String,
    /// The handler's name.
    pub handler: String,
    /// Messages accepted, and never tried in this generation.
    pub received: u64,
    /// Messages in the hands of workers, all of them together.
    pub processing: u64,
    /// Messages tried without success; to be tried again.
    pub failed: u64,
    /// Messages given up.
    pub dead: u64,
    /// How long ago the oldest message was accepted that is nobody's, and neither finished nor waits for its first time; by the database's clock. `None` if
    /// there is none. The oldest by its id: where several processes accept, about that.
    pub oldest: Option<Duration>,
    /// Whether an operator paused the handler.
    pub paused: bool,
}

impl InboxSnapshot {
    /// Messages that are neither succeeded nor dead.
    #[must_use]
    pub const fn backlog(&self) -> u64 {
        self.received + self.processing + self.failed
    }
}

impl fmt::Display for InboxSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{\"group\":{},\"handler\":{}", Text(&self.group), Text(&self.handler))?;
        write!(f, ",\"backlog\":{},\"received\":{}", self.backlog(), self.received)?;
        write!(f, ",\"processing\":{},\"failed\":{},\"dead\":{}", self.processing, self.failed, self.dead)?;
        let oldest = self.oldest.map(|age| age.as_millis());
        write!(f, ",\"oldest_ms\":{},\"paused\":{}}}", Maybe(oldest), self.paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_json() {
        let snapshot = InboxSnapshot {
            group: "a\"b".into(),
            handler: "h".into(),
            received: 3,
            processing: 2,
            failed: 1,
            dead: 9,
            oldest: Some(Duration::from_millis(1500)),
            paused: true,
        };
        assert_eq!(snapshot.backlog(), 6);
        assert_eq!(
            snapshot.to_string(),
            r#"{"group":"a\"b","handler":"h","backlog":6,"received":3,"processing":2,"failed":1,"dead":9,"oldest_ms":1500,"paused":true}"#
        );
        assert!(InboxSnapshot::default().to_string().contains(r#""oldest_ms":null,"paused":false"#));
    }
}
