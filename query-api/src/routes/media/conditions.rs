//! What a request wants of a file: all, a part, or nothing that it does not have (RFC 9110, 13 and 14).

use std::ops::Range;

use axum::http::{
    HeaderMap, HeaderName,
    header::{IF_NONE_MATCH, IF_RANGE, RANGE},
};

/// What a request wants of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It has the file already.
    Nothing,
    /// All of it.
    Whole,
    /// A part, which is not empty.
    Part(Range<u64>),
    /// A part that is not there.
    Impossible,
}

/// What a request wants of a file with a size and a quoted entity tag, which may be empty.
pub(super) fn wanted(headers: &HeaderMap, size: u64, e_tag: &str) -> Wanted {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(IF_NONE_MATCH).is_some_and(|tags| is_among(e_tag, tags)) {
        return Wanted::Nothing;
    }
    match (text(RANGE), text(IF_RANGE)) {
        (None, _) => Wanted::Whole,
        // A part only fits to what the client has if it is the very same. Dates are never exact enough.
        (Some(_), Some(tag)) if tag != e_tag || !is_strong(e_tag) => Wanted::Whole,
        (Some(range), _) => part(range, size),
    }
}

/// An entity tag as it stands in a header. Some stores give it without the quotes.
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

/// A range that is malformed is ignored, and several ranges are answered with all of the file: both are allowed.
fn part(range: &str, size: u64) -> Wanted {
    let Some((unit, range)) = range.split_once('=') else { return Wanted::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let range = match (first, number(first), last, number(last)) {
        ("", _, _, Some(count)) => size.saturating_sub(count)..size,
        (_, Some(first), "", _) => first..size,
        (_, Some(first), _, Some(last)) if first <= last => first..size.min(last.saturating_add(1)),
        _ => return Wanted::Whole,
    };
    if range.is_empty() { Wanted::Impossible } else { Wanted::Part(range) }
}

fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // What does not fit is beyond any end.
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TAG: &str = "\"a\"";

    fn given(pairs: &[(HeaderName, &str)]) -> Wanted {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        wanted(&headers.collect(), 100, TAG)
    }

    #[test]
    fn one_range_is_a_part() {
        for (range, expected) in [
            ("bytes=0-9", 0..10),
            ("bytes=90-", 90..100),
            ("bytes=90-500", 90..100),
            ("bytes=0-99999999999999999999999", 0..100),
            ("bytes=-10", 90..100),
            ("bytes=-500", 0..100),
            ("Bytes=99-99", 99..100),
        ] {
            assert_eq!(given(&[(RANGE, range)]), Wanted::Part(expected), "{range}");
        }
    }

    #[test]
    fn a_range_beyond_the_end_is_impossible() {
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(given(&[(RANGE, range)]), Wanted::Impossible, "{range}");
        }
        let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=-5"))]);
        assert_eq!(wanted(&headers, 0, TAG), Wanted::Impossible);
    }

    #[test]
    fn anything_else_is_the_whole() {
        for range in
            ["bytes=0-1,5-6", "bytes=9-5", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "lines=1-2", "0-1"]
        {
            assert_eq!(given(&[(RANGE, range)]), Wanted::Whole, "{range}");
        }
        assert_eq!(given(&[]), Wanted::Whole);
    }

    #[test]
    fn what_the_client_has_is_not_sent() {
        for tags in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert_eq!(given(&[(IF_NONE_MATCH, tags), (RANGE, "bytes=0-1")]), Wanted::Nothing, "{tags}");
        }
        assert_eq!(given(&[(IF_NONE_MATCH, "\"b\"")]), Wanted::Whole);
    }

    #[test]
    fn a_part_is_only_sent_of_what_the_client_knows() {
        assert_eq!(given(&[(RANGE, "bytes=0-1"), (IF_RANGE, TAG)]), Wanted::Part(0..2));
        for other in ["\"b\"", "W/\"a\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(given(&[(RANGE, "bytes=0-1"), (IF_RANGE, other)]), Wanted::Whole, "{other}");
        }
    }

    #[test]
    fn a_tag_is_quoted() {
        assert_eq!(quoted("1-2-3"), "\"1-2-3\"");
        assert_eq!(quoted("\"1\""), "\"1\"");
        assert_eq!(quoted("W/\"1\""), "W/\"1\"");
    }
}
