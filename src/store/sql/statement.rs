//! The statements, written once for all dialects.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::dialect::Dialect;
use super::name::TableName;
use super::rows::{Kind, Values, fence_bits, owner_bits};
use crate::identity::Key;
use crate::record::{self, Extend, Owner, Sighting, Terms};
use crate::store::cells::{Change, Ending};
use crate::store::{Ask, Keyed, Retention};

/// A column of the batch that a statement joins: its name there, and its kind.
pub(crate) type Field = (&'static str, Kind);

/// A value in an insert.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expr {
    /// As written.
    Const(&'static str),
    /// A single value, by number from 0.
    Scalar(usize),
    /// The store's clock.
    Now,
    /// The store's clock and a single value.
    NowAndScalar(usize),
    /// Whoever owns this transaction: a single value, by number from 0, unless the transaction itself says who it is.
    Owner(usize),
    /// A column of the batch, by number from 0.
    Field(usize),
}

/// A statement's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Statement {
    Insert,
    Finish,
    FinishAlike,
    /// As succeeded at once: the effect commits with it.
    Remember,
    /// Takes back what [`Remember`](Self::Remember) wrote in the same transaction.
    Unremember,
    Prolong,
    Update,
    Create,
    Read,
    PurgeEdge,
    PurgePick,
    PurgeDrop,
}

/// Something to write, for any number of rows. Each may be repeated when its outcome is not known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Write<'a> {
    /// First claims.
    Insert { terms: &'a Terms, asks: &'a [&'a Ask] },
    /// Endings of claims that are held.
    Finish(&'a [&'a Ending]),
    /// Messages whose effects commit with their records.
    Remember { owner: Owner, sightings: &'a [&'a Sighting] },
    /// Messages of the same transaction that did not succeed after all.
    Unremember(&'a [&'a Ending]),
    /// Longer leases of claims that are held.
    Prolong(&'a [&'a Extend]),
    /// Records in place of those that stand.
    Update(&'a [&'a Change]),
    /// Records where none stands.
    Create(&'a [&'a Change]),
}

impl<'a> Write<'a> {
    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Insert { asks, .. } => asks.len(),
            Self::Finish(endings) | Self::Unremember(endings) => endings.len(),
            Self::Remember { sightings, .. } => sightings.len(),
            Self::Prolong(claims) => claims.len(),
            Self::Update(changes) | Self::Create(changes) => changes.len(),
        }
    }

    /// The first `at` rows, and the others.
    pub(crate) fn split(self, at: usize) -> (Self, Self) {
        match self {
            Self::Insert { terms, asks } => {
                let (a, b) = asks.split_at(at);
                (Self::Insert { terms, asks: a }, Self::Insert { terms, asks: b })
            }
            Self::Finish(endings) => {
                let (a, b) = endings.split_at(at);
                (Self::Finish(a), Self::Finish(b))
            }
            Self::Remember { owner, sightings } => {
                let (a, b) = sightings.split_at(at);
                (Self::Remember { owner, sightings: a }, Self::Remember { owner, sightings: b })
            }
            Self::Unremember(endings) => {
                let (a, b) = endings.split_at(at);
                (Self::Unremember(a), Self::Unremember(b))
            }
            Self::Prolong(claims) => {
                let (a, b) = claims.split_at(at);
                (Self::Prolong(a), Self::Prolong(b))
            }
            Self::Update(changes) => {
                let (a, b) = changes.split_at(at);
                (Self::Update(a), Self::Update(b))
            }
            Self::Create(changes) => {
                let (a, b) = changes.split_at(at);
                (Self::Create(a), Self::Create(b))
            }
        }
    }

    pub(crate) fn statement(&self) -> Statement {
        match self {
            Self::Insert { .. } => Statement::Insert,
            Self::Finish(endings) if alike(endings) => Statement::FinishAlike,
            Self::Finish(_) => Statement::Finish,
            Self::Remember { .. } => Statement::Remember,
            Self::Unremember(_) => Statement::Unremember,
            Self::Prolong(_) => Statement::Prolong,
            Self::Update(_) => Statement::Update,
            Self::Create(_) => Statement::Create,
        }
    }

    pub(crate) fn key(&self, row: usize) -> Option<Key> {
        match self {
            Self::Insert { asks, .. } => asks.get(row).map(|ask| ask.key()),
            Self::Finish(endings) | Self::Unremember(endings) => endings.get(row).map(|ending| ending.key),
            Self::Remember { sightings, .. } => sightings.get(row).map(|sighting| sighting.key),
            Self::Prolong(claims) => claims.get(row).map(|claim| claim.key),
            Self::Update(changes) | Self::Create(changes) => changes.get(row).map(|change| change.key),
        }
    }

    /// What the statement takes, in the order of its fields.
    pub(crate) fn values(&self) -> Values {
        let rows = Values::rows(self.len());
        match *self {
            Self::Insert { terms, asks } => rows
                .scalar(owner_bits(terms.owner))
                .scalar(record::millis(terms.lease))
                .digests(asks.iter().map(|ask| *ask.sighting.key.as_bytes()))
                .digests(asks.iter().map(|ask| *ask.sighting.fingerprint.as_bytes()))
                .blobs(asks.iter().map(|ask| Some(ask.sighting.origin.to_bytes().into()))),
            Self::Finish(endings) => match endings.first() {
                Some(first) if alike(endings) => rows
                    .scalar(i64::from(first.code))
                    .scalar(first.delay)
                    .scalar(i64::from(first.attempts))
                    .scalar(owner_bits(first.token.owner))
                    .scalar(fence_bits(first.token.fence))
                    .digests(endings.iter().map(|ending| *ending.key.as_bytes()))
                    .digests(endings.iter().map(|ending| *ending.fingerprint.as_bytes())),
                _ => each(rows, endings),
            },
            Self::Remember { owner, sightings } => rows
                .scalar(owner_bits(owner))
                .digests(sightings.iter().map(|sighting| *sighting.key.as_bytes()))
                .digests(sightings.iter().map(|sighting| *sighting.fingerprint.as_bytes()))
                .blobs(sightings.iter().map(|sighting| Some(sighting.origin.to_bytes().into()))),
            Self::Unremember(endings) => each(rows, endings),
            Self::Prolong(claims) => rows
                .digests(claims.iter().map(|claim| *claim.key.as_bytes()))
                .ints(claims.iter().map(|claim| owner_bits(claim.token.owner)))
                .ints(claims.iter().map(|claim| fence_bits(claim.token.fence)))
                .ints(claims.iter().map(|claim| record::millis(claim.lease))),
            Self::Update(changes) => {
                // Without a stamp a change creates; the engine keeps the two apart.
                let before = |change: &&Change| change.before.unwrap_or_else(|| change.after.stamp());
                rows.digests(changes.iter().map(|change| *change.key.as_bytes()))
                    .ints(changes.iter().map(|change| i64::from(before(change).state)))
                    .ints(changes.iter().map(|change| owner_bits(before(change).owner)))
                    .ints(changes.iter().map(|change| fence_bits(before(change).fence)))
                    .ints(changes.iter().map(|change| before(change).time))
                    .ints(changes.iter().map(|change| i64::from(change.after.state.code())))
                    .ints(changes.iter().map(|change| owner_bits(change.after.owner)))
                    .ints(changes.iter().map(|change| fence_bits(change.after.fence)))
                    .ints(changes.iter().map(|change| change.after.state.time()))
                    .ints(changes.iter().map(|change| i64::from(change.after.attempts)))
                    .blobs(changes.iter().map(|change| change.after.result.clone()))
            }
            Self::Create(changes) => rows
                .digests(changes.iter().map(|change| *change.key.as_bytes()))
                .digests(changes.iter().map(|change| *change.after.fingerprint.as_bytes()))
                .ints(changes.iter().map(|change| i64::from(change.after.state.code())))
                .ints(changes.iter().map(|change| i64::from(change.after.attempts)))
                .ints(changes.iter().map(|change| owner_bits(change.after.owner)))
                .ints(changes.iter().map(|change| fence_bits(change.after.fence)))
                .ints(changes.iter().map(|change| change.after.state.time()))
                .blobs(changes.iter().map(|change| Some(change.after.origin.to_bytes().into())))
                .blobs(changes.iter().map(|change| change.after.result.clone())),
        }
    }
}

/// Endings that differ.
fn each(rows: Values, endings: &[&Ending]) -> Values {
    rows.digests(endings.iter().map(|ending| *ending.key.as_bytes()))
        .digests(endings.iter().map(|ending| *ending.fingerprint.as_bytes()))
        .ints(endings.iter().map(|ending| owner_bits(ending.token.owner)))
        .ints(endings.iter().map(|ending| fence_bits(ending.token.fence)))
        .ints(endings.iter().map(|ending| i64::from(ending.code)))
        .ints(endings.iter().map(|ending| ending.delay))
        .ints(endings.iter().map(|ending| i64::from(ending.attempts)))
        .blobs(endings.iter().map(|ending| ending.result.clone()))
}

/// Whether endings differ in nothing but their keys, and keep no results: most batches.
fn alike(endings: &[&Ending]) -> bool {
    endings.split_first().is_some_and(|(first, others)| {
        first.result.is_none()
            && others.iter().all(|other| {
                other.result.is_none()
                    && (other.token, other.code, other.delay, other.attempts)
                        == (first.token, first.code, first.delay, first.attempts)
            })
    })
}

pub(crate) const INSERT_COLUMNS: &[&str] =
    &["message_key", "fingerprint", "state", "attempts", "owner", "fence", "time", "origin"];
pub(crate) const INSERT_FIELDS: &[Field] = &[("k", Kind::Digest), ("f", Kind::Digest), ("o", Kind::Blob)];
pub(crate) const INSERT_EXPRS: &[Expr] = &[
    Expr::Field(0),
    Expr::Field(1),
    Expr::Const("0"),
    Expr::Const("1"),
    Expr::Scalar(0),
    Expr::Const("1"),
    Expr::NowAndScalar(1),
    Expr::Field(2),
];

/// In the columns of a first claim, with their fields.
pub(crate) const REMEMBER_EXPRS: &[Expr] = &[
    Expr::Field(0),
    Expr::Field(1),
    Expr::Const("2"),
    Expr::Const("1"),
    Expr::Owner(0),
    Expr::Const("1"),
    Expr::Now,
    Expr::Field(2),
];

pub(crate) const CREATE_COLUMNS: &[&str] =
    &["message_key", "fingerprint", "state", "attempts", "owner", "fence", "time", "origin", "result"];
pub(crate) const CREATE_FIELDS: &[Field] = &[
    ("k", Kind::Digest),
    ("f", Kind::Digest),
    ("s", Kind::Int),
    ("n", Kind::Int),
    ("w", Kind::Int),
    ("x", Kind::Int),
    ("t", Kind::Int),
    ("o", Kind::Blob),
    ("r", Kind::Blob),
];
pub(crate) const CREATE_EXPRS: &[Expr] = &[
    Expr::Field(0),
    Expr::Field(1),
    Expr::Field(2),
    Expr::Field(3),
    Expr::Field(4),
    Expr::Field(5),
    Expr::Field(6),
    Expr::Field(7),
    Expr::Field(8),
];

/// A key and the fingerprint that must stand with it.
pub(crate) const PAIR_FIELDS: &[Field] = &[("k", Kind::Digest), ("f", Kind::Digest)];
const FINISH_FIELDS: &[Field] = &[
    ("k", Kind::Digest),
    ("f", Kind::Digest),
    ("w", Kind::Int),
    ("x", Kind::Int),
    ("s", Kind::Int),
    ("d", Kind::Int),
    ("n", Kind::Int),
    ("r", Kind::Blob),
];
const PROLONG_FIELDS: &[Field] = &[("k", Kind::Digest), ("w", Kind::Int), ("x", Kind::Int), ("d", Kind::Int)];
const UPDATE_FIELDS: &[Field] = &[
    ("k", Kind::Digest),
    ("s0", Kind::Int),
    ("w0", Kind::Int),
    ("x0", Kind::Int),
    ("t0", Kind::Int),
    ("s", Kind::Int),
    ("w", Kind::Int),
    ("x", Kind::Int),
    ("t", Kind::Int),
    ("n", Kind::Int),
    ("r", Kind::Blob),
];

/// What [`Statement::Update`] and its like are made of.
pub(crate) struct Join<'a> {
    /// The batch.
    pub(crate) fields: &'a [Field],
    /// What must hold, besides equal keys; columns are those of `h`, fields those of `u`.
    pub(crate) on: String,
    /// What is set: column and expression.
    pub(crate) set: Vec<(&'static str, String)>,
}

/// The statements' texts, made when first needed.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    made: RwLock<HashMap<(Statement, usize), Arc<str>>>,
}

impl Texts {
    /// The text for so many rows.
    pub(crate) fn get<D: Dialect>(
        &self,
        dialect: &D,
        table: &TableName,
        patience: Duration,
        statement: Statement,
        size: usize,
    ) -> Arc<str> {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner).get(&(statement, size)).cloned();
        made.unwrap_or_else(|| {
            let text: Arc<str> = render(dialect, &table.quoted(D::QUOTE), patience, statement, size).into();
            let mut texts = self.made.write().unwrap_or_else(PoisonError::into_inner);
            texts.entry((statement, size)).or_insert(text).clone()
        })
    }
}

fn render<D: Dialect>(dialect: &D, table: &str, patience: Duration, statement: Statement, size: usize) -> String {
    let now = dialect.now(patience);
    let int = |number| D::placeholder(number, Kind::Int);
    match statement {
        Statement::Insert => D::insert(table, INSERT_COLUMNS, INSERT_EXPRS, INSERT_FIELDS, 2, &now, size),
        Statement::Remember => D::insert(table, INSERT_COLUMNS, REMEMBER_EXPRS, INSERT_FIELDS, 1, &now, size),
        Statement::Create => D::insert(table, CREATE_COLUMNS, CREATE_EXPRS, CREATE_FIELDS, 0, &now, size),
        Statement::FinishAlike => {
            let set = vec![
                ("state", int(1)),
                ("time", format!("{now} + {}", int(2))),
                ("attempts", int(3)),
                ("result", "NULL".to_owned()),
            ];
            let on = format!("state = 0 AND owner = {} AND fence = {}", int(4), int(5));
            D::update_alike(table, &set, &on, 6, size)
        }
        Statement::Finish | Statement::Unremember => {
            let set = vec![
                ("state", "u.s".to_owned()),
                ("time", format!("{now} + u.d")),
                ("attempts", "u.n".to_owned()),
                ("result", "u.r".to_owned()),
            ];
            let state = if statement == Statement::Finish { 0 } else { 2 };
            let on = format!("h.fingerprint = u.f AND h.state = {state} AND h.owner = u.w AND h.fence = u.x");
            D::update(table, &Join { fields: FINISH_FIELDS, on, set }, size)
        }
        Statement::Prolong => {
            let set = vec![("time", format!("{}(h.time, {now} + u.d)", D::GREATEST))];
            let on = "h.state = 0 AND h.owner = u.w AND h.fence = u.x".to_owned();
            D::update(table, &Join { fields: PROLONG_FIELDS, on, set }, size)
        }
        Statement::Update => {
            // The clock is named so that what a dialect ties to it (how long to wait for locks) holds here too.
            let set = vec![
                ("state", "u.s".to_owned()),
                ("owner", "u.w".to_owned()),
                ("fence", "u.x".to_owned()),
                ("time", format!("CASE WHEN {now} IS NULL THEN NULL ELSE u.t END")),
                ("attempts", "u.n".to_owned()),
                ("result", "u.r".to_owned()),
            ];
            let on = "h.state = u.s0 AND h.owner = u.w0 AND h.fence = u.x0 AND h.time = u.t0".to_owned();
            D::update(table, &Join { fields: UPDATE_FIELDS, on, set }, size)
        }
        Statement::Read => D::read(table, &now, size),
        Statement::PurgeEdge => format!(
            "SELECT message_key FROM {table} WHERE message_key > {} ORDER BY message_key LIMIT 1 OFFSET {}",
            D::placeholder(1, Kind::Blob),
            int(2),
        ),
        Statement::PurgePick => format!(
            "SELECT message_key FROM {table} WHERE message_key > {} AND message_key <= {} AND {} LIMIT {}",
            D::placeholder(1, Kind::Blob),
            D::placeholder(2, Kind::Blob),
            expired::<D>(&now, 3),
            int(6),
        ),
        Statement::PurgeDrop => {
            format!("DELETE FROM {table} WHERE {} AND message_key {}", expired::<D>(&now, 1), D::among(4, size))
        }
    }
}

/// Past retention, by the state's own time.
fn expired<D: Dialect>(now: &str, first: usize) -> String {
    let int = |number| D::placeholder(number, Kind::Int);
    format!(
        "time <= {now} - CASE WHEN state IN (2, 3) THEN {} WHEN state = 4 THEN {} ELSE {} END",
        int(first),
        int(first + 1),
        int(first + 2),
    )
}

/// What [`expired`] takes.
pub(crate) fn keeps(values: Values, retention: &Retention) -> Values {
    values
        .scalar(record::millis(retention.succeeded))
        .scalar(record::millis(retention.dead))
        .scalar(record::millis(retention.unsettled))
}

/// `INSERT … SELECT … ON CONFLICT DO NOTHING`, as PostgreSQL and SQLite write it.
pub(crate) fn insert_select<D: Dialect>(
    table: &str,
    columns: &[&str],
    exprs: &[Expr],
    fields: &[Field],
    scalars: usize,
    now: &str,
    size: usize,
) -> String {
    let exprs: Vec<String> = exprs
        .iter()
        .map(|expr| match *expr {
            Expr::Const(text) => text.to_owned(),
            Expr::Scalar(number) | Expr::Owner(number) => D::placeholder(number + 1, Kind::Int),
            Expr::Now => now.to_owned(),
            Expr::NowAndScalar(number) => format!("{now} + {}", D::placeholder(number + 1, Kind::Int)),
            Expr::Field(number) => format!("u.{}", fields.get(number).map_or("", |field| field.0)),
        })
        .collect();
    let [insert, end] = D::IGNORING;
    format!(
        "{insert} INTO {table} ({}) SELECT {} FROM {} AS u WHERE true{end}",
        columns.join(", "),
        exprs.join(", "),
        D::source(fields, scalars + 1, size),
    )
}

/// `UPDATE … FROM …`, as PostgreSQL and SQLite write it.
pub(crate) fn update_from<D: Dialect>(table: &str, join: &Join<'_>, size: usize) -> String {
    let set: Vec<String> = join.set.iter().map(|(column, value)| format!("{column} = {value}")).collect();
    format!(
        "UPDATE {table} AS h SET {} FROM {} AS u WHERE h.message_key = u.k AND {}",
        set.join(", "),
        D::source(join.fields, 1, size),
        join.on,
    )
}

/// An update of pairs of key and fingerprint to one and the same, as PostgreSQL and SQLite write it.
pub(crate) fn update_alike<D: Dialect>(
    table: &str,
    set: &[(&'static str, String)],
    on: &str,
    first: usize,
    size: usize,
) -> String {
    let set: Vec<String> = set.iter().map(|(column, value)| format!("{column} = {value}")).collect();
    format!(
        "UPDATE {table} AS h SET {} FROM {} AS u WHERE h.message_key = u.k AND h.fingerprint = u.f AND {on}",
        set.join(", "),
        D::source(PAIR_FIELDS, first, size),
    )
}
