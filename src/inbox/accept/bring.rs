//! What happens inside the transaction: messages become rows.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;

use super::dialect::{Row, Sql, Stands, bytes_beside};
use super::{Oversize, blame};
use crate::identity::{Encoder, IdentityError, OnMissing};
use crate::inbox::core::Core;
use crate::inbox::message::{Form, Headers, MessageId};
use crate::inbox::schema::Sql as _;
use crate::message::MessageView;
use crate::record::{Origin, Seen};
use crate::store::StoreError;
use crate::store::sql::{Conn, Fault};
use crate::transaction::sealed::Sealed;
use crate::transaction::sorted;
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
    /// The database takes no message as large: bytes of all its parts.
    NoRoom {
        bytes: usize,
        most: usize,
        cure: &'static str,
    },
    /// Its topic's name is none of Kafka's.
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
            Self::NoRoom { bytes, most, cure } => {
                write!(
                    f,
                    "its key, headers and payload have {bytes} bytes, and the database takes {most} at once: {cure}"
                )
            }
            Self::Topic => write!(f, "its topic's name has more than {TOPIC} bytes, or a zero in it"),
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
pub struct BringError {
    fault: Fault,
    /// It comes of what a message says: see [`blame`].
    own: bool,
}

impl From<Fault> for BringError {
    fn from(fault: Fault) -> Self {
        Self { fault, own: false }
    }
}

impl BringError {
    fn of<D: Sql>(error: &sqlx::Error) -> Self {
        let own = match error {
            sqlx::Error::Encode(_) => true,
            sqlx::Error::Database(said) => D::is_own(said.as_ref()),
            _ => false,
        };
        // Whose identity stands is left alone: what is given twice is an id.
        // Of a row that is not found an insert alone tells: what it opened is not what it inserted.
        let twice = matches!(error, sqlx::Error::RowNotFound)
            || error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation);
        Self { fault: if twice { blame::ids_taken() } else { sorted::<D>(error) }, own }
    }

    /// What the database is, where this says nothing of a message.
    pub(crate) fn fault(&self) -> Option<Fault> {
        (!self.own).then(|| self.fault.clone())
    }

    pub(crate) fn error(&self, store: &'static str) -> StoreError {
        self.fault.error(store, "accept a message")
    }
}

impl fmt::Display for BringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

impl HandlerError for BringError {
    fn class(&self) -> ErrorClass {
        // Of which message it is shows when it is alone; it comes again however often that is tried.
        if self.own { ErrorClass::Fatal } else { ErrorClass::Unavailable }
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
            self.notify(conn).await.map_err(|error| BringError::of::<DB::Dialect>(&error))?;
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
    ) -> Result<Vec<Parcel<'a>>, BringError> {
        let fault = |error: sqlx::Error| BringError::of::<DB::Dialect>(&error);
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
        let room = self.room.statement;
        // Where messages came twice lately, some of these may have, too.
        let try_new = first && !self.repeats.load(Ordering::Relaxed);
        let inserted =
            match try_new && DB::DIALECT.insert_new(conn, tables, self.number, &rows, room).await.map_err(fault)? {
                true => rows.len() as u64,
                false => {
                    let inserted = DB::DIALECT.insert(conn, tables, self.number, &rows, room).await.map_err(fault)?;
                    if first {
                        self.repeats.store(inserted != rows.len() as u64, Ordering::Relaxed);
                    }
                    inserted
                }
            };
        let mut stood: HashMap<[u8; 16], Stands> = HashMap::new();
        if inserted != rows.len() as u64 {
            let wanted: Vec<[u8; 16]> = rows.iter().map(|row| row.key).collect();
            for stands in DB::DIALECT.look(conn, tables, &wanted).await.map_err(fault)? {
                stood.insert(stands.key, stands);
            }
            if rows.iter().any(|row| !stood.contains_key(&row.key)) {
                rows.retain(|row| !stood.contains_key(&row.key));
                return Err(self.why_missing(conn, &rows).await);
            }
            rows.retain(|row| stood.get(&row.key).is_some_and(|stands| stands.id == row.id));
            if rows.len() as u64 != inserted {
                return Err(Fault::Contended("other messages stand than were inserted.".into()).into());
            }
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
                (None, None) => return Err(Fault::Corrupt("a message was left out of its batch.".into()).into()),
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

    /// Why these rows were not inserted, although no others stand in their place.
    async fn why_missing(&self, conn: &mut Conn<DB::Dialect>, rows: &[&Row<'_>]) -> BringError {
        let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
        let text = format!("SELECT id FROM {} WHERE id IN ({})", self.tables.messages, ids.join(", "));
        match DB::DIALECT.numbers(conn, text, &[]).await {
            Ok(found) if found.is_empty() => {}
            Ok(_) => return blame::ids_taken().into(),
            Err(error) => return BringError::of::<DB::Dialect>(&error),
        }
        match DB::DIALECT.insert_strictly(conn, &self.tables, self.number, rows, self.room.statement).await {
            Ok(()) => Fault::Contended("a message that stood was purged meanwhile.".into()).into(),
            // Somebody else's has come to stand there.
            Err(error) if error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation) => {
                Fault::Contended("others accepted the same messages.".into()).into()
            }
            Err(error) => BringError::of::<DB::Dialect>(&error),
        }
    }

    /// A message's row.
    fn row<'m, M: MessageView>(&self, message: &'m M) -> Result<Row<'m>, Refusal> {
        let (settings, intake) = (&self.settings, &self.settings.intake);
        let topic = message.topic();
        if topic.len() > TOPIC || topic.contains('\0') {
            return Err(Refusal::Topic);
        }
        let key = match settings.identify.identity(message) {
            Ok(identity) => *self.scope.key(&identity, topic).as_bytes(),
            Err(error) if settings.on_missing == OnMissing::Reject => return Err(Refusal::Identity(error)),
            Err(_) => self.place_key(message).unwrap_or_else(|| self.random_key()),
        };
        let payload = message.payload();
        let bytes = payload.map_or(0, <[u8]>::len);
        let headers = Headers::pack(message);
        // All of it goes in one statement, or not at all.
        let beside = bytes_beside(topic, headers.as_deref(), message.key());
        let no_room = |bytes| Refusal::NoRoom { bytes, most: self.room.message, cure: DB::Dialect::MORE_ROOM };
        if beside > self.room.message {
            return Err(no_room(beside));
        }
        let too_large = bytes > intake.largest;
        let left_out = match (intake.leave_out, too_large || beside + bytes > self.room.message, intake.oversize) {
            (true, ..) => payload.is_some(),
            (false, false, _) => false,
            (false, true, Oversize::LeaveOut) => true,
            (false, true, Oversize::Reject) if too_large => {
                return Err(Refusal::TooLarge { bytes, most: intake.largest });
            }
            (false, true, Oversize::Reject) => return Err(no_room(beside + bytes)),
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
            headers,
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
