//! What happens inside the transaction: messages become rows.

use std::collections::HashMap;
use std::fmt;

use super::Oversize;
use super::dialect::{Row, Sql, Stands};
use crate::identity::{Encoder, IdentityError, OnMissing};
use crate::inbox::core::Core;
use crate::inbox::message::{Form, Headers, MessageId};
use crate::message::MessageView;
use crate::record::{Origin, Seen};
use crate::store::StoreError;
use crate::store::sql::{Conn, Fault};
use crate::transaction::sealed::Sealed;
use crate::wrapper::{ErrorClass, HandlerError, OnConflict};

/// Longest name of a topic, in bytes. Kafka's own are shorter.
const TOPIC: usize = 255;
/// Waiting rows from here on wait for something else than a time.
const LATEST: i64 = (1 << 62) - 1;

/// What became of a message in the transaction.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "kafka"), allow(unreachable_pub, reason = "the consumer names it"))]
pub enum Brought {
    New(MessageId),
    /// The same message stands, under this id.
    Duplicate(MessageId),
    /// A message with this identity stands that says something else.
    Conflict {
        first: Seen,
        id: MessageId,
        /// Whether it is passed, as the policy says.
        skipped: bool,
    },
    /// It cannot be taken in.
    Refused(Refusal),
}

/// Why a message cannot be taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "kafka"), allow(unreachable_pub, reason = "the consumer names it"))]
pub enum Refusal {
    Identity(IdentityError),
    /// Bytes of its payload.
    TooLarge {
        bytes: usize,
        most: usize,
    },
    /// Its topic's name is longer than any of Kafka's.
    Topic,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(error) => error.fmt(f),
            Self::TooLarge { bytes, most } => write!(
                f,
                "its payload has {bytes} bytes, and the inbox keeps {most}: raise `largest_payload`, or choose `Oversize::LeaveOut`"
            ),
            Self::Topic => write!(f, "its topic's name has more than {TOPIC} bytes"),
        }
    }
}

impl Brought {
    /// Whether its window may pass it.
    pub(crate) const fn passes(&self) -> bool {
        match self {
            Self::New(_) | Self::Duplicate(_) => true,
            Self::Conflict { skipped, .. } => *skipped,
            Self::Refused(_) => false,
        }
    }
}

/// A statement that failed.
#[derive(Debug)]
#[cfg_attr(not(feature = "kafka"), allow(unreachable_pub, reason = "the consumer names it"))]
pub struct BringError(Fault);

impl From<Fault> for BringError {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl BringError {
    pub(crate) fn error(&self, store: &'static str) -> StoreError {
        self.0.error(store, "accept a message")
    }
}

impl fmt::Display for BringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl HandlerError for BringError {
    fn class(&self) -> ErrorClass {
        match self.0 {
            // Maybe for what one message says: which shows when it is alone.
            Fault::Refused(_) | Fault::Corrupt(_) => ErrorClass::Retryable,
            _ => ErrorClass::Unavailable,
        }
    }

    fn is_contention(&self) -> bool {
        matches!(self.0, Fault::Contended(_) | Fault::Locked(_))
    }
}

/// A message on its way into the table.
struct Parcel<'a> {
    row: Row<'a>,
    /// Which of the batch it is.
    at: usize,
}

impl Parcel<'_> {
    /// Where it was delivered. What has no position stays in the order of the batch.
    fn place(&self) -> (&str, i32, i64) {
        (self.row.topic, self.row.partition, self.row.offset)
    }
}

impl<DB: Sealed> Core<DB> {
    /// Takes these messages in, inside a transaction, and says of each what became of it. [`ready`](Core::ready) must have been called for them.
    pub(crate) async fn bring<M: MessageView>(
        &self,
        messages: &[M],
        conn: &mut Conn<DB::Dialect>,
        into: &mut Vec<Brought>,
    ) -> Result<(), BringError> {
        let ids = self.some_ids(messages.len())?;
        let mut brought: Vec<Option<Brought>> = Vec::with_capacity(messages.len());
        let mut parcels: Vec<Parcel<'_>> = Vec::with_capacity(messages.len());
        for (at, message) in messages.iter().enumerate() {
            match self.row(message) {
                Ok(row) => {
                    brought.push(None);
                    parcels.push(Parcel { row, at });
                }
                Err(refusal) => brought.push(Some(Brought::Refused(refusal))),
            }
        }
        // A batch in the order of keys comes key by key: what came first is worked first all the same.
        parcels.sort_by(|a, b| a.place().cmp(&b.place()));
        for (parcel, id) in parcels.iter_mut().zip(ids) {
            parcel.row.id = id;
        }
        // Conflicts that are to be handled all the same go in once more, each under its position.
        let mut rest = self.round(parcels, conn, &mut brought, true).await?;
        if !rest.is_empty() {
            for parcel in &mut rest {
                parcel.row.key = self.place_key(&messages[parcel.at]).unwrap_or_else(|| self.random_key());
            }
            self.round(rest, conn, &mut brought, false).await?;
        }
        if brought.iter().any(|brought| matches!(brought, Some(Brought::New(_)))) {
            self.notify(conn).await.map_err(|error| Self::fault(&error))?;
        }
        into.reserve(brought.len());
        for brought in brought {
            into.push(brought.ok_or_else(|| Fault::Corrupt("a message was left out of its batch.".into()))?);
        }
        Ok(())
    }

    /// Inserts what is new. Answers with conflicts that are to go in under other keys, in the first round.
    async fn round<'a>(
        &self,
        parcels: Vec<Parcel<'a>>,
        conn: &mut Conn<DB::Dialect>,
        brought: &mut [Option<Brought>],
        first: bool,
    ) -> Result<Vec<Parcel<'a>>, Fault> {
        let fault = |error: sqlx::Error| Self::fault(&error);
        let mut keys: HashMap<[u8; 16], usize> = HashMap::with_capacity(parcels.len());
        let mut rows: Vec<&Row<'_>> = Vec::with_capacity(parcels.len());
        for (at, parcel) in parcels.iter().enumerate() {
            keys.entry(parcel.row.key).or_insert_with(|| {
                rows.push(&parcel.row);
                at
            });
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let tables = &self.tables;
        let inserted = DB::DIALECT.insert_messages(conn, tables, self.number, &rows).await.map_err(fault)?;
        let mut stood: HashMap<[u8; 16], Stands> = HashMap::new();
        if inserted != rows.len() as u64 {
            let wanted: Vec<[u8; 16]> = rows.iter().map(|row| row.key).collect();
            for stands in DB::DIALECT.look(conn, tables, &wanted).await.map_err(fault)? {
                stood.insert(stands.key, stands);
            }
            if rows.iter().any(|row| !stood.contains_key(&row.key)) {
                return Err(Fault::Contended("a message that stood was purged meanwhile.".into()));
            }
            rows.retain(|row| stood.get(&row.key).is_some_and(|stands| stands.id == row.id));
            if rows.len() as u64 != inserted {
                return Err(Fault::Contended("other messages stand than were inserted.".into()));
            }
        }
        if !rows.is_empty() {
            DB::DIALECT.insert_open(conn, tables, self.number, &rows).await.map_err(fault)?;
        }
        let mut again = Vec::new();
        let mut ends = Vec::with_capacity(parcels.len());
        for parcel in &parcels {
            let row = &parcel.row;
            let twin = keys.get(&row.key).and_then(|at| parcels.get(*at)).map(|twin| &twin.row);
            let (id, fingerprint, origin, accepted) = match (stood.get(&row.key), twin) {
                (Some(stands), _) => (stands.id, stands.fingerprint, stands.origin.clone(), stands.accepted),
                (None, Some(twin)) => {
                    let origin = Origin { topic: twin.topic.into(), partition: twin.partition, offset: twin.offset };
                    (twin.id, twin.fingerprint, origin, 0)
                }
                (None, None) => return Err(Fault::Corrupt("a message was left out of its batch.".into())),
            };
            let policy = self.settings.on_conflict;
            ends.push(if id == row.id {
                Some(Brought::New(MessageId(id)))
            } else if fingerprint == row.fingerprint {
                Some(Brought::Duplicate(MessageId(id)))
            } else if first && policy == OnConflict::Handle {
                None
            } else {
                let seen = Seen { origin, at: accepted };
                Some(Brought::Conflict { first: seen, id: MessageId(id), skipped: policy == OnConflict::Skip })
            });
        }
        for (parcel, end) in parcels.into_iter().zip(ends) {
            match end {
                Some(end) => brought[parcel.at] = Some(end),
                None => again.push(parcel),
            }
        }
        Ok(again)
    }

    /// A message's row.
    fn row<'m, M: MessageView>(&self, message: &'m M) -> Result<Row<'m>, Refusal> {
        let (settings, intake) = (&self.settings, &self.settings.intake);
        let topic = message.topic();
        if topic.len() > TOPIC {
            return Err(Refusal::Topic);
        }
        let key = match settings.identify.identity(message) {
            Ok(identity) => *self.scope.key(&identity, topic).as_bytes(),
            Err(error) if settings.on_missing == OnMissing::Reject => return Err(Refusal::Identity(error)),
            Err(_) => self.place_key(message).unwrap_or_else(|| self.random_key()),
        };
        let payload = message.payload();
        let bytes = payload.map_or(0, <[u8]>::len);
        let left_out = match (intake.leave_out, bytes > intake.largest, intake.oversize) {
            (true, ..) => payload.is_some(),
            (false, false, _) => false,
            (false, true, Oversize::LeaveOut) => true,
            (false, true, Oversize::Reject) => return Err(Refusal::TooLarge { bytes, most: intake.largest }),
        };
        let form = if left_out { Form::LeftOut } else { Form::Whole };
        Ok(Row {
            id: 0,
            lane: self.lane(topic, message.key(), message.partition()),
            offset: message.offset(),
            stamp: message.timestamp_ms(),
            not_before: intake.not_before.as_ref().and_then(|due| due(message)).map(|due| due.clamp(0, LATEST)),
            partition: message.partition(),
            priority: intake.priority.as_ref().map_or(0, |priority| priority(message)),
            form: form.number(),
            key,
            fingerprint: *self.scope.fingerprint(&settings.fingerprint, message).as_bytes(),
            topic,
            record_key: message.key(),
            headers: Headers::pack(message),
            payload: if left_out { None } else { payload },
        })
    }

    /// What a message is known by that has no identity of its own; `None` if it has no position either.
    fn place_key<M: MessageView>(&self, message: &M) -> Option<[u8; 16]> {
        if message.partition() < 0 || message.offset() < 0 {
            return None;
        }
        let mut into = Encoder::new();
        into.text("inbox position").ok()?;
        into.text(message.topic()).ok()?;
        into.integer(message.partition()).ok()?;
        into.integer(message.offset()).ok()?;
        Some(*self.scope.key_of(&into.finish().ok()?).as_bytes())
    }

    fn random_key(&self) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.base.random().to_be_bytes());
        key[8..].copy_from_slice(&self.base.random().to_be_bytes());
        key
    }
}
