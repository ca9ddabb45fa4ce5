//! Conditional and range requests (RFC 9110, sections 13 and 14).

use std::ops::Range;

use axum::http::{
    HeaderMap, HeaderName,
    header::{IF_NONE_MATCH, IF_RANGE, RANGE},
};

/// The part of a file that a response contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// Nothing: the client has this version (304).
    NotModified,
    /// The whole file (200).
    Whole,
    /// A non-empty range (206).
    Part(Range<u64>),
    /// No byte of the range exists (416).
    Unsatisfiable,
}

/// Selects the part of a file with a size and a quoted entity tag, which may be empty.
pub(super) fn select(headers: &HeaderMap, size: u64, e_tag: &str) -> Selection {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(IF_NONE_MATCH).is_some_and(|tags| is_among(e_tag, tags)) {
        return Selection::NotModified;
    }
    match (text(RANGE), text(IF_RANGE)) {
        (None, _) => Selection::Whole,
        // If-Range requires a strong match. A date has a resolution of seconds, so it never matches.
        (Some(_), Some(tag)) if tag != e_tag || !is_strong(e_tag) => Selection::Whole,
        (Some(range), _) => part(range, size),
    }
}

/// Returns an entity tag in quotes. Some stores return it without them.
pub(super) fn quoted(e_tag: &str) -> String {
    if e_tag.ends_with('"') { e_tag.to_owned() } else { format!("\"{e_tag}\"") }
}

fn is_among(e_tag: &str, tags: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    tags.trim() == "*" || (!e_tag.is_empty() && tags.split(',').any(|tag| opaque(tag) == opaque(e_tag)))
}

fn is_strong(e_tag: &str) -> bool {
    e_tag.starts_with('"')
}

/// Parses a `Range` header. RFC 9110 allows the whole file for a malformed range and for several ranges.
fn part(range: &str, size: u64) -> Selection {
    let Some((unit, range)) = range.split_once('=') else { return Selection::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Selection::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Selection::Whole;
    }
    let range = match (first, number(first), last, number(last)) {
        ("", _, _, Some(count)) => size.saturating_sub(count)..size,
        (_, Some(first), "", _) => first..size,
        (_, Some(first), _, Some(last)) if first <= last => first..size.min(last.saturating_add(1)),
        _ => return Selection::Whole,
    };
    if range.is_empty() { Selection::Unsatisfiable } else { Selection::Part(range) }
}

fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // A number that does not fit is after the end of any file.
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TAG: &str = "\"a\"";

    fn given(pairs: &[(HeaderName, &str)]) -> Selection {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        select(&headers.collect(), 100, TAG)
    }

    #[test]
    fn single_range_is_a_part() {
        for (range, expected) in [
            ("bytes=0-9", 0..10),
            ("bytes=90-", 90..100),
            ("bytes=90-500", 90..100),
            ("bytes=0-99999999999999999999999", 0..100),
            ("bytes=-10", 90..100),
            ("bytes=-500", 0..100),
            ("Bytes=99-99", 99..100),
        ] {
            assert_eq!(given(&[(RANGE, range)]), Selection::Part(expected), "{range}");
        }
    }

    #[test]
    fn range_after_the_end_is_unsatisfiable() {
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(given(&[(RANGE, range)]), Selection::Unsatisfiable, "{range}");
        }
        let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=-5"))]);
        assert_eq!(select(&headers, 0, TAG), Selection::Unsatisfiable);
    }

    #[test]
    fn malformed_and_multiple_ranges_are_the_whole() {
        for range in
            ["bytes=0-1,5-6", "bytes=9-5", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "lines=1-2", "0-1"]
        {
            assert_eq!(given(&[(RANGE, range)]), Selection::Whole, "{range}");
        }
        assert_eq!(given(&[]), Selection::Whole);
    }

    #[test]
    fn matching_if_none_match_is_not_modified() {
        for tags in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert_eq!(
                given(&[(IF_NONE_MATCH, tags), (RANGE, "bytes=0-1")]),
                Selection::NotModified,
                "{tags}"
            );
        }
        assert_eq!(given(&[(IF_NONE_MATCH, "\"b\"")]), Selection::Whole);
    }

    #[test]
    fn if_range_needs_a_strong_match() {
        assert_eq!(given(&[(RANGE, "bytes=0-1"), (IF_RANGE, TAG)]), Selection::Part(0..2));
        for other in ["\"b\"", "W/\"a\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(given(&[(RANGE, "bytes=0-1"), (IF_RANGE, other)]), Selection::Whole, "{other}");
        }
    }

    #[test]
    fn tag_is_quoted() {
        assert_eq!(quoted("1-2-3"), "\"1-2-3\"");
        assert_eq!(quoted("\"1\""), "\"1\"");
        assert_eq!(quoted("W/\"1\""), "W/\"1\"");
    }
}
