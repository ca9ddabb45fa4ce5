//! The parameters of a call.
//!
//! Clients repeat parameters: in the query, and again in an urlencoded body. The query counts before the body, and
//! of what is repeated in one of them the first. Parameters that nobody asks for are never looked at, so that
//! nonsense in them is no error.

use std::{collections::HashMap, ops::RangeInclusive};

use percent_encoding::percent_decode;

use crate::{error::ApiError, limits, numbers::integral};

/// What an `action_type` of 1 or 2 asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// 1: like, follow, comment, send.
    Do,
    /// 2: take that back.
    Undo,
}

/// The parameters of a call, by name.
#[derive(Clone, Debug, Default)]
pub struct Params {
    values: HashMap<String, Result<String, Unreadable>>,
}

#[derive(Clone, Copy, Debug)]
enum Unreadable {
    NotUtf8,
    HasNul,
}

impl Params {
    /// The parameters of a query and an urlencoded body, either of which may be empty.
    pub fn parse(query: &[u8], form: &[u8]) -> Self {
        let mut params = Self::default();
        for pair in query.split(|byte| *byte == b'&').chain(form.split(|byte| *byte == b'&')) {
            let mut parts = pair.splitn(2, |byte| *byte == b'=');
            let name = form_decode(parts.next().unwrap_or_default());
            if let Ok(name) = str::from_utf8(&name) {
                params.add(name, &form_decode(parts.next().unwrap_or_default()));
            }
        }
        params
    }

    /// Adds a decoded parameter, such as a field of a multipart body, unless there is one of its name.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        if name.is_empty() || self.values.contains_key(name) {
            return;
        }
        let value = match str::from_utf8(value) {
            Err(_) => Err(Unreadable::NotUtf8),
            Ok(text) if text.contains('\0') => Err(Unreadable::HasNul),
            Ok(text) => Ok(text.to_owned()),
        };
        self.values.insert(name.to_owned(), value);
    }

    /// A parameter that may be missing. An empty one counts as missing.
    pub fn optional(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.values.get(name) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(Err(Unreadable::NotUtf8)) => Err(ApiError::invalid(format!("{name} is not valid UTF-8"))),
            Some(Err(Unreadable::HasNul)) => Err(ApiError::invalid(format!("{name} contains a NUL"))),
        }
    }

    /// A parameter that must be there.
    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.optional(name)?.ok_or_else(|| ApiError::invalid(format!("{name} is missing")))
    }

    /// An id that must be there, in 1..=[`limits::MAX_ID`].
    pub fn id(&self, name: &str) -> Result<i64, ApiError> {
        let text = self.required(name)?;
        integral(text)
            .filter(|id| (1..=limits::MAX_ID).contains(id))
            .ok_or_else(|| ApiError::invalid(format!("{name} is not an id")))
    }

    /// An id that may be missing.
    pub fn optional_id(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.optional(name)? {
            None => Ok(None),
            Some(_) => self.id(name).map(Some),
        }
    }

    /// A text with a number of characters within limits, exactly as it was sent.
    pub fn limited_text(&self, name: &str, limits: RangeInclusive<usize>) -> Result<&str, ApiError> {
        let text = self.required(name)?;
        if limits.contains(&text.chars().count()) {
            return Ok(text);
        }
        let (min, max) = limits.into_inner();
        Err(ApiError::invalid(format!("{name} must have {min} to {max} characters")))
    }

    /// A whole number within bounds that may be missing.
    pub fn optional_number(&self, name: &str, bounds: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.optional(name)? else {
            return Ok(None);
        };
        if let Some(number) = integral(text).filter(|number| bounds.contains(number)) {
            return Ok(Some(number));
        }
        let (min, max) = bounds.into_inner();
        Err(ApiError::invalid(format!("{name} must be a whole number from {min} to {max}")))
    }

    /// `action_type`: 1 or 2.
    pub fn action_type(&self) -> Result<Action, ApiError> {
        match integral(self.required("action_type")?) {
            Some(1) => Ok(Action::Do),
            Some(2) => Ok(Action::Undo),
            _ => Err(ApiError::invalid("action_type must be 1 or 2")),
        }
    }
}

/// Decodes `application/x-www-form-urlencoded` bytes. A `%` that begins no escape stands for itself.
fn form_decode(bytes: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = bytes.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn query(text: &str) -> Params {
        Params::parse(text.as_bytes(), b"")
    }

    fn code<T>(result: Result<T, ApiError>) -> Option<Code> {
        result.err().map(|error| error.code)
    }

    #[test]
    fn the_query_counts_before_the_body_and_the_first_before_the_second() {
        let params = Params::parse(b"a=1&a=2&b=3", b"b=4&c=5&c=6");
        assert_eq!(params.required("a"), Ok("1"));
        assert_eq!(params.required("b"), Ok("3"));
        assert_eq!(params.required("c"), Ok("5"));
    }

    #[test]
    fn what_is_missing_is_an_error_only_where_it_is_needed() {
        let params = query("empty=&novalue&=x&&");
        for name in ["empty", "novalue", "missing"] {
            assert_eq!(params.optional(name), Ok(None));
            assert_eq!(params.optional_id(name), Ok(None));
            assert_eq!(code(params.required(name)), Some(Code::InvalidParameter));
            assert_eq!(code(params.id(name)), Some(Code::InvalidParameter));
        }
    }

    #[test]
    fn text_is_decoded_and_otherwise_kept_as_it_was_sent() {
        let params = query("t=%20a+b%2B%F0%9F%98%80=%zz%25%0a&%74u=x");
        assert_eq!(params.required("t"), Ok(" a b+😀=%zz%\n"));
        assert_eq!(params.required("tu"), Ok("x"));
    }

    #[test]
    fn text_that_is_not_utf_8_or_has_a_nul_is_refused_if_anyone_asks_for_it() {
        let params = query("bad=%ff&nul=a%00b&surrogate=%ed%a0%80&good=1&%ff=2");
        assert_eq!(params.optional("bad").unwrap_err().message, "bad is not valid UTF-8");
        assert_eq!(params.optional("nul").unwrap_err().message, "nul contains a NUL");
        assert_eq!(code(params.optional_id("bad")), Some(Code::InvalidParameter));
        assert_eq!(code(params.optional("surrogate")), Some(Code::InvalidParameter));
        assert_eq!(params.required("good"), Ok("1"));
    }

    #[test]
    fn ids_may_be_written_with_an_exponent() {
        assert_eq!(query("id=4.5e+15").id("id"), Ok(4_500_000_000_000_000));
        assert_eq!(query("id=4.5e%2B15").id("id"), Ok(4_500_000_000_000_000));
        assert_eq!(query("id=9007199254740991").id("id"), Ok(limits::MAX_ID));
    }

    #[test]
    fn ids_are_whole_positive_and_exact_in_a_double() {
        for id in [
            "0",
            "-1",
            "9007199254740992",
            "9.1e15",
            "1.5",
            "abc",
            "1%20",
            "%EF%BC%91",
            "99999999999999999999",
        ] {
            assert_eq!(code(query(&format!("id={id}")).id("id")), Some(Code::InvalidParameter), "{id}");
            assert_eq!(
                code(query(&format!("id={id}")).optional_id("id")),
                Some(Code::InvalidParameter),
                "{id}"
            );
        }
    }

    #[test]
    fn limits_count_characters() {
        let text = "字".repeat(32);
        let params = query(&format!("ok={text}&long={text}x&empty="));
        assert_eq!(params.limited_text("ok", 1..=32), Ok(text.as_str()));
        assert_eq!(
            params.limited_text("long", 1..=32).unwrap_err().message,
            "long must have 1 to 32 characters"
        );
        assert_eq!(code(params.limited_text("empty", 1..=32)), Some(Code::InvalidParameter));
    }

    #[test]
    fn numbers_are_whole_and_within_bounds() {
        assert_eq!(query("limit=30").optional_number("limit", 1..=500), Ok(Some(30)));
        assert_eq!(query("limit=").optional_number("limit", 1..=500), Ok(None));
        for limit in ["0", "501", "x", "1.5"] {
            let result = query(&format!("limit={limit}")).optional_number("limit", 1..=500);
            assert_eq!(code(result), Some(Code::InvalidParameter), "{limit}");
        }
    }

    #[test]
    fn an_action_is_1_or_2() {
        assert_eq!(query("action_type=1").action_type(), Ok(Action::Do));
        assert_eq!(query("action_type=2").action_type(), Ok(Action::Undo));
        for text in ["", "action_type=", "action_type=3", "action_type=like"] {
            assert_eq!(code(query(text).action_type()), Some(Code::InvalidParameter), "{text}");
        }
    }

    #[test]
    fn fields_of_a_multipart_body_are_added_behind_the_query() {
        let mut params = query("token=a");
        params.add("token", b"b");
        params.add("title", "Ünder".as_bytes());
        params.add("title", b"second");
        assert_eq!(params.required("token"), Ok("a"));
        assert_eq!(params.required("title"), Ok("Ünder"));
    }
}
