//! Batches of ids as one parameter of a SQL statement.
//!
//! A statement that joins a batch has one text and one plan for any number of ids: a lookup in an index for each. Row
//! constructors do not: for `DELETE … WHERE (a, b) IN ((1, 2))` with a single tuple, MariaDB scans and locks the whole
//! table.

use std::fmt::Write as _;

/// The table expression of a batch of ids, or of pairs of ids, with the given column names. Its parameter is the text from
/// [`ids`] or [`pairs`].
///
/// Put it first and `STRAIGHT_JOIN` the table after it: the optimizer does not know how small the batch is.
#[macro_export]
macro_rules! batch {
    ($column:literal) => {
        concat!("JSON_TABLE(?, '$[*]' COLUMNS (", $column, " BIGINT PATH '$')) AS batch")
    };
    ($first:literal, $second:literal) => {
        concat!(
            "JSON_TABLE(?, '$[*]' COLUMNS (",
            $first,
            " BIGINT PATH '$[0]', ",
            $second,
            " BIGINT PATH '$[1]')) AS batch"
        )
    };
}

/// Returns the parameter of a batch of ids.
pub fn ids<'a>(ids: impl IntoIterator<Item = &'a i64>) -> String {
    list(ids, |text, id| write!(text, "{id}"))
}

/// Returns the parameter of a batch of pairs of ids.
pub fn pairs<'a>(pairs: impl IntoIterator<Item = &'a (i64, i64)>) -> String {
    list(pairs, |text, (first, second)| write!(text, "[{first},{second}]"))
}

fn list<T>(items: impl IntoIterator<Item = T>, write: impl Fn(&mut String, T) -> std::fmt::Result) -> String {
    let mut text = String::from("[");
    for item in items {
        if text.len() > 1 {
            text.push(',');
        }
        // Writing to a string cannot fail.
        let _ = write(&mut text, item);
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_is_a_json_array() {
        assert_eq!(ids(&[]), "[]");
        assert_eq!(ids(&[1, -2]), "[1,-2]");
        assert_eq!(pairs(&[(1, 2), (3, i64::MAX)]), "[[1,2],[3,9223372036854775807]]");
    }
}
