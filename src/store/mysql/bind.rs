//! Text for so many rows, and the values in the order in which the text asks for them.
//!
//! MySQL knows neither arrays nor numbered placeholders: a batch is written out, row by row or list by list.

use std::fmt::Write as _;
use std::sync::Arc;

use sqlx::mysql::MySqlArguments;
use sqlx::{Arguments, Error};

use crate::store::sql::{
    CREATE_EXPRS, Call, Column, Expr, Field, INSERT_EXPRS, Kind, REMEMBER_EXPRS, Scalar, Statement, Values,
};

/// Most rows in one statement.
pub(super) const LARGEST: usize = 512;

/// Of so many rows: how many the next statement takes, and for how many it is written. Sizes are powers of two.
pub(super) fn step(rows: usize) -> (usize, usize) {
    let up = rows.next_power_of_two().min(LARGEST);
    if rows >= up {
        (up, up)
    } else if up <= 16 || rows * 4 >= up * 3 {
        (rows, up)
    } else {
        (up / 2, up / 2)
    }
}

/// `text`, so many times, with commas.
pub(super) fn repeat(text: &str, size: usize) -> String {
    let mut list = String::with_capacity((text.len() + 1) * size);
    for number in 0..size {
        if number > 0 {
            list.push(',');
        }
        list.push_str(text);
    }
    list
}

/// Where a number is written into a text.
pub(super) fn token(number: usize) -> String {
    format!("{{{number}}}")
}

/// The text of a call. An insert's two single values, owner and lease, would have to be bound again for each row, which costs a
/// fifth of its speed. They are whole numbers, and the same in almost every call: they are written out, in decimal.
pub(super) fn written(call: &Call<'_>) -> Arc<str> {
    if call.statement != Statement::Insert {
        return Arc::clone(&call.text);
    }
    let mut text = call.text.to_string();
    for (number, scalar) in call.values.scalars.iter().enumerate() {
        if let Scalar::Int(value) = scalar {
            text = text.replace(&token(number), &value.to_string());
        }
    }
    text.into()
}

/// A batch as a table.
pub(super) fn source(fields: &[Field], size: usize) -> String {
    let value = |kind| match kind {
        Kind::Digest => "CAST(? AS BINARY(16))",
        Kind::Int => "CAST(? AS SIGNED)",
        Kind::Blob => "CAST(? AS BINARY)",
    };
    let mut text = String::from("(");
    for row in 0..size {
        text.push_str(if row == 0 { "SELECT " } else { " UNION ALL SELECT " });
        for (number, (name, kind)) in fields.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            let _ = if row == 0 {
                write!(text, "{comma}{} AS {name}", value(*kind))
            } else {
                write!(text, "{comma}{}", value(*kind))
            };
        }
    }
    text.push(')');
    text
}

/// All values of a call, in order.
pub(super) fn arguments(call: &Call<'_>) -> Result<MySqlArguments, Error> {
    let mut bound = Bound { arguments: MySqlArguments::default(), values: call.values };
    match call.statement {
        Statement::Insert => bound.tuples(INSERT_EXPRS, call.size)?,
        Statement::Remember => bound.tuples(REMEMBER_EXPRS, call.size)?,
        Statement::Create => bound.tuples(CREATE_EXPRS, call.size)?,
        Statement::Finish | Statement::Unremember | Statement::Prolong | Statement::Update => bound.rows(call.size)?,
        Statement::Read | Statement::PurgeDrop => {
            bound.scalars()?;
            bound.list(call.size)?;
        }
        Statement::FinishAlike => {
            bound.scalars()?;
            bound.list(call.size)?;
            bound.pairs(call.size)?;
        }
        Statement::PurgeEdge | Statement::PurgePick => bound.scalars()?,
    }
    Ok(bound.arguments)
}

struct Bound<'a> {
    arguments: MySqlArguments,
    values: &'a Values,
}

impl Bound<'_> {
    fn scalars(&mut self) -> Result<(), Error> {
        self.values.scalars.iter().try_for_each(|scalar| scalar_to(&mut self.arguments, scalar))
    }

    /// Rows for `VALUES`; the last one again and again where the text has more: it is ignored, being there.
    fn tuples(&mut self, exprs: &[Expr], size: usize) -> Result<(), Error> {
        let last = self.values.len.saturating_sub(1);
        for row in 0..size {
            for expr in exprs {
                match *expr {
                    Expr::Const(_) | Expr::Scalar(_) | Expr::Now | Expr::NowAndScalar(_) | Expr::Owner(_) => {}
                    Expr::Field(number) => {
                        if let Some(column) = self.values.columns.get(number) {
                            value_to(&mut self.arguments, column, Some(row.min(last)))?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Rows of a table; nulls where the text has more: they meet nothing.
    fn rows(&mut self, size: usize) -> Result<(), Error> {
        for row in 0..size {
            let row = (row < self.values.len).then_some(row);
            self.values.columns.iter().try_for_each(|column| value_to(&mut self.arguments, column, row))?;
        }
        Ok(())
    }

    /// The first column, for `IN`; the last value again where the text has more.
    fn list(&mut self, size: usize) -> Result<(), Error> {
        let last = self.values.len.saturating_sub(1);
        let Some(column) = self.values.columns.first() else { return Ok(()) };
        (0..size).try_for_each(|row| value_to(&mut self.arguments, column, Some(row.min(last))))
    }

    /// Key and fingerprint in one, for `IN`.
    fn pairs(&mut self, size: usize) -> Result<(), Error> {
        let [Column::Digests(keys), Column::Digests(prints)] = self.values.columns.as_slice() else { return Ok(()) };
        let last = self.values.len.saturating_sub(1);
        for row in 0..size {
            if let (Some(key), Some(print)) = (keys.get(row.min(last)), prints.get(row.min(last))) {
                let mut pair = [0; 32];
                pair[..16].copy_from_slice(key);
                pair[16..].copy_from_slice(print);
                self.arguments.add(pair.as_slice()).map_err(Error::Encode)?;
            }
        }
        Ok(())
    }
}

fn scalar_to(arguments: &mut MySqlArguments, scalar: &Scalar) -> Result<(), Error> {
    match scalar {
        Scalar::Int(number) => arguments.add(*number),
        Scalar::Blob(blob) => arguments.add(blob.as_slice()),
    }
    .map_err(Error::Encode)
}

fn value_to(arguments: &mut MySqlArguments, column: &Column, row: Option<usize>) -> Result<(), Error> {
    match column {
        Column::Digests(column) => arguments.add(row.and_then(|row| column.get(row)).map(<[u8; 16]>::as_slice)),
        Column::Ints(column) => arguments.add(row.and_then(|row| column.get(row)).copied()),
        Column::Blobs(column) => arguments.add(row.and_then(|row| column.get(row)).and_then(Option::as_deref)),
    }
    .map_err(Error::Encode)
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, step};

    #[test]
    fn every_batch_is_taken_in_few_steps() {
        for rows in 1..3000 {
            let (mut rest, mut steps) = (rows, 0);
            while rest > 0 {
                let (take, size) = step(rest);
                assert!(take >= 1 && take <= rest && take <= size && size <= LARGEST && size.is_power_of_two());
                assert!(size <= 16 || size * 3 <= take * 4, "{rows}: {take} of {size}");
                rest -= take;
                steps += 1;
            }
            assert!(steps <= rows / LARGEST + 6, "{rows}: {steps}");
        }
    }
}
