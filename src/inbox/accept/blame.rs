//! Whose fault an error of the database is.
//!
//! A message is given up for what is wrong with itself and for nothing else: an error that comes with whatever is sent says nothing of the message
//! that was just on its way. So this lists what is a message's own, and everything else is the database's:
//!
//! | | a message's own: given up | the database's |
//! |---|---|---|
//! | PostgreSQL | class 22 (data: too long, out of range, not of the server's encoding), `23502`, `23514`, `54000` | all others |
//! | MySQL, MariaDB | 1048, 1118, 1153, 1197, 1264 to 1266, 1292, 1300, 1301, 1366, 1367, 1406, 3140, 3819, 4025 | all others |
//! | SQLite | 18 (too big), 20 (type), 275 (check), 1299 (not null), 3091 (type) | all others |
//!
//! What is the database's: locks, deadlocks, a lost connection, a full disk and a read-only server are waited out; a missing right, a missing table or
//! column, ids that are given twice and whatever is not known end the consumer with an error that says so, and no message is given up.
//!
//! A null where none may be (`23502`, 1299) is a message's own in a column that is null for some messages and not for others; in any other
//! column, it comes with all of them.
//!
//! An error of many rows at once is found by halving the batch, down to the one it belongs to.

use crate::store::sql::Fault;

/// Whether it depends on the message if this column is null.
#[cfg_attr(not(any(feature = "postgres", feature = "sqlite")), allow(dead_code))]
pub(super) fn may_be_null(column: &str) -> bool {
    matches!(column, "stamp" | "not_before" | "record_key" | "headers" | "payload")
}

/// PostgreSQL's SQLSTATE.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
pub(super) fn postgres(code: &str) -> bool {
    code.starts_with("22") || matches!(code, "23502" | "23514" | "54000")
}

/// MySQL's and MariaDB's number.
#[cfg_attr(not(feature = "mysql"), allow(dead_code))]
pub(super) const fn mysql(number: u16) -> bool {
    match number {
        // Null where none may be; a row, a packet or a transaction's log larger than the server takes.
        1048 | 1118 | 1153 | 1197 => true,
        // Out of range, cut, of another type; text that is none; a value larger than a packet.
        1264..=1266 | 1292 | 1300 | 1301 | 1366 | 1367 | 1406 | 3140 => true,
        // A check of the table's owner: MySQL's, MariaDB's.
        3819 | 4025 => true,
        _ => false,
    }
}

/// SQLite's extended code.
#[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
pub(super) const fn sqlite(code: u32) -> bool {
    match code {
        // A check, a null where none may be, a type of a strict table.
        275 | 1299 | 3091 => true,
        // Too big, of another type.
        _ => matches!(code & 0xff, 18 | 20),
    }
}

/// Ids that were drawn stand already.
pub(super) fn ids_taken() -> Fault {
    let text = "ids were drawn that other messages have, as happens when a table comes from an older backup than the others: in the row of this inbox \
                in the table of handlers, set next_id above the largest id of its messages.";
    Fault::Refused(text.into())
}

#[cfg(test)]
mod tests {
    use super::{may_be_null, mysql, postgres, sqlite};

    #[test]
    fn what_comes_with_any_message_is_nobodys() {
        // Outages, locks, deadlocks, out of room, read-only, rights, missing tables and columns, a full transaction, ids given twice, unknown.
        for code in [
            "08006", "57P01", "57014", "40001", "40P01", "55P03", "53100", "53200", "53300", "58030", "25006", "25P02",
            "42501", "42P01", "42703", "3F000", "3D000", "28P01", "23505", "23503", "0A000", "26000", "XX000", "XX001",
            "P0001", "",
        ] {
            assert!(!postgres(code), "{code}");
        }
        for number in [
            0, 1021, 1030, 1036, 1040, 1041, 1044, 1045, 1047, 1049, 1053, 1054, 1062, 1099, 1114, 1142, 1146, 1180,
            1205, 1206, 1213, 1226, 1227, 1290, 1317, 1452, 1461, 1792, 1836, 1927, 1969, 2006, 2013, 3024,
        ] {
            assert!(!mysql(number), "{number}");
        }
        // Generic, busy (and its kin), locked, out of memory, read-only, interrupted, input and output, damaged, full, cannot open, keys.
        for code in [1, 5, 261, 517, 6, 262, 7, 8, 264, 1032, 9, 10, 266, 11, 13, 14, 17, 19, 787, 1555, 2067, 26, 0] {
            assert!(!sqlite(code), "{code}");
        }
    }

    #[test]
    fn what_a_message_says_is_its_own() {
        for code in ["22001", "22003", "22021", "22P05", "23502", "23514", "54000"] {
            assert!(postgres(code), "{code}");
        }
        for number in [1048, 1118, 1153, 1197, 1264, 1300, 1366, 1406, 3819, 4025] {
            assert!(mysql(number), "{number}");
        }
        for code in [18, 20, 275, 1299, 3091] {
            assert!(sqlite(code), "{code}");
        }
        assert!(may_be_null("payload") && !may_be_null("tenant"));
    }
}
