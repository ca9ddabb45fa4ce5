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
    let mut lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    if lists.any(|tags| is_among(e_tag, tags)) {
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

/// Returns whether a list has an entity tag, weak or strong.
fn is_among(e_tag: &str, tags: &str) -> bool {
    let own = opaque_tags(e_tag).next();
    tags.trim() == "*" || own.is_some_and(|own| opaque_tags(tags).any(|tag| tag == own))
}

/// The entity tags of a list without their quotes. A tag may contain commas, but no quotes.
fn opaque_tags(list: &str) -> impl Iterator<Item = &str> {
    list.split('"').skip(1).step_by(2)
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
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const TAG: &str = "\"a\"";

    /// The bytes of a file that a range names, one by one; `None` if the range is malformed.
    fn model(first: Option<u64>, last: Option<u64>, size: u64) -> Option<Vec<u64>> {
        let is_named = |byte: &u64| match (first, last) {
            (Some(first), Some(last)) => first <= *byte && *byte <= last,
            (Some(first), None) => first <= *byte,
            (None, Some(count)) => size - *byte <= count,
            (None, None) => false,
        };
        let is_malformed =
            first.is_none() && last.is_none() || first.zip(last).is_some_and(|(first, last)| first > last);
        (!is_malformed).then(|| (0..size).filter(is_named).collect())
    }

    fn numbers() -> impl Strategy<Value = Option<u64>> {
        prop_oneof![Just(None), (0..70_u64).prop_map(Some), any::<u64>().prop_map(Some)]
    }

    /// An entity tag in quotes, weak or strong, which may contain commas.
    fn tags() -> impl Strategy<Value = (bool, String)> {
        (any::<bool>(), "\"[!#-~]{0,3}\"|\"[a,]{0,3}\"")
    }

    fn as_sent((is_weak, tag): &(bool, String)) -> String {
        if *is_weak { format!("W/{tag}") } else { tag.clone() }
    }

    proptest! {
        #[test]
        fn range_selects_exactly_its_bytes(first in numbers(), last in numbers(), size in 0..60_u64, zeros in "0{0,3}") {
            let number = |number: Option<u64>| number.map(|number| format!("{zeros}{number}")).unwrap_or_default();
            let range = format!("bytes={}-{}", number(first), number(last));
            let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_str(&range).unwrap())]);
            let expected = match model(first, last, size) {
                None => Selection::Whole,
                Some(bytes) => match (bytes.first(), bytes.last()) {
                    (Some(first), Some(last)) => Selection::Part(*first..last + 1),
                    _ => Selection::Unsatisfiable,
                },
            };
            prop_assert_eq!(select(&headers, size, TAG), expected, "{}", range);
        }

        #[test]
        fn any_headers_select_bytes_of_the_file(
            values in vec((prop::sample::select(vec![RANGE, IF_RANGE, IF_NONE_MATCH]), prop_oneof![
                vec(any::<u8>(), 0..20),
                "bytes=[0-9, -]{0,24}".prop_map(String::into_bytes),
                "(W/|\"[a-z,]{0,2}\"|, ?|\\*){0,4}".prop_map(String::into_bytes),
            ]), 0..4),
            size in prop_oneof![0..20_u64, any::<u64>()],
            e_tag in prop_oneof![Just(String::new()), tags().prop_map(|tag| as_sent(&tag))],
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in values {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(name, value);
                }
            }
            if let Selection::Part(range) = select(&headers, size, &e_tag) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }

        #[test]
        fn if_none_match_compares_weakly_with_every_tag(
            own in tags(),
            others in vec((tags(), " ?, ?"), 0..4),
            own_lines in 1..3_usize,
        ) {
            let mut headers = HeaderMap::new();
            let lines = others.chunks(others.len().div_ceil(own_lines).max(1));
            for line in lines {
                let list: String = line.iter().map(|(tag, separator)| as_sent(tag) + separator).collect();
                headers.append(IF_NONE_MATCH, HeaderValue::from_str(&list).unwrap());
            }
            let is_listed = others.iter().any(|((_, tag), _)| *tag == own.1);
            let expected = if is_listed { Selection::NotModified } else { Selection::Whole };
            prop_assert_eq!(select(&headers, 10, &as_sent(&own)), expected, "{:?}", headers);
        }

        #[test]
        fn if_range_compares_strongly(own in tags(), other in tags(), same in any::<bool>()) {
            let other = if same { own.clone() } else { other };
            let matches = own == other && !own.0;
            let other = as_sent(&other);
            let headers = [(RANGE, "bytes=0-1"), (IF_RANGE, other.as_str())];
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_str(value).unwrap()));
            let expected = if matches { Selection::Part(0..2) } else { Selection::Whole };
            prop_assert_eq!(select(&HeaderMap::from_iter(headers), 10, &as_sent(&own)), expected);
        }
    }

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
