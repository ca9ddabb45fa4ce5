//! The parameters of a request.
//!
//! Clients repeat parameters: in the query, and again in the body. The query takes precedence over the body, and the
//! first value over later ones; an empty value counts as missing. A parameter is validated when a handler reads it, so an invalid unknown parameter is
//! no error.

use std::{collections::HashMap, ops::RangeInclusive};

use percent_encoding::percent_decode;

use crate::{error::ApiError, limits, numbers::integral};

/// The value of `action_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// 1: like, follow, comment, send.
    Do,
    /// 2: undo that.
    Undo,
}

/// The parameters of a request, by name.
#[derive(Clone, Debug, Default)]
pub struct Params {
    values: HashMap<String, Result<String, InvalidText>>,
}

#[derive(Clone, Copy, Debug)]
enum InvalidText {
    NotUtf8,
    HasNul,
}

impl Params {
    /// Parses a query.
    pub fn from_query(query: &str) -> Self {
        let mut params = Self::default();
        params.add_urlencoded(query.as_bytes());
        params
    }

    /// Adds urlencoded parameters after those that are present.
    pub(crate) fn add_urlencoded(&mut self, text: &[u8]) {
        for pair in text.split(|byte| *byte == b'&') {
            let mut parts = pair.splitn(2, |byte| *byte == b'=');
            let name = form_decode(parts.next().unwrap_or_default());
            if let Ok(name) = str::from_utf8(&name) {
                self.add(name, &form_decode(parts.next().unwrap_or_default()));
            }
        }
    }

    /// Adds a decoded parameter, such as a field of a multipart body, unless its name is present already. An empty value
    /// counts as missing.
    pub fn add(&mut self, name: &str, value: &[u8]) {
        if name.is_empty() || value.is_empty() || self.values.contains_key(name) {
            return;
        }
        let value = match str::from_utf8(value) {
            Err(_) => Err(InvalidText::NotUtf8),
            Ok(text) if text.contains('\0') => Err(InvalidText::HasNul),
            Ok(text) => Ok(text.to_owned()),
        };
        self.values.insert(name.to_owned(), value);
    }

    /// Returns an optional parameter.
    pub fn optional(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.values.get(name) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(InvalidText::NotUtf8)) => Err(ApiError::invalid(format!("{name} is not valid UTF-8"))),
            Some(Err(InvalidText::HasNul)) => Err(ApiError::invalid(format!("{name} contains a NUL"))),
        }
    }

    /// Returns a required parameter.
    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        self.optional(name)?.ok_or_else(|| ApiError::invalid(format!("{name} is missing")))
    }

    /// Returns a required id, in 1..=[`limits::MAX_ID`].
    pub fn id(&self, name: &str) -> Result<i64, ApiError> {
        let text = self.required(name)?;
        integral(text)
            .filter(|id| (1..=limits::MAX_ID).contains(id))
            .ok_or_else(|| ApiError::invalid(format!("{name} is not an id")))
    }

    /// Returns an optional id.
    pub fn optional_id(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.optional(name)? {
            None => Ok(None),
            Some(_) => self.id(name).map(Some),
        }
    }

    /// Returns a required text whose number of characters is within limits, exactly as sent.
    pub fn limited_text(&self, name: &str, limits: RangeInclusive<usize>) -> Result<&str, ApiError> {
        let text = self.required(name)?;
        if limits.contains(&text.chars().count()) {
            return Ok(text);
        }
        let (min, max) = limits.into_inner();
        Err(ApiError::invalid(format!("{name} must have {min} to {max} characters")))
    }

    /// Returns a [`Params::limited_text`] of one line: without control characters.
    pub fn limited_line(&self, name: &str, limits: RangeInclusive<usize>) -> Result<&str, ApiError> {
        let line = self.limited_text(name, limits)?;
        if line.chars().any(char::is_control) {
            return Err(ApiError::invalid(format!(
                "{name} contains a control character or line break; remove it"
            )));
        }
        Ok(line)
    }

    /// Returns a [`Params::limited_text`] of several lines: without control characters but line breaks and tabs.
    pub fn limited_lines(&self, name: &str, limits: RangeInclusive<usize>) -> Result<&str, ApiError> {
        let lines = self.limited_text(name, limits)?;
        if lines.chars().any(|char| char.is_control() && !matches!(char, '\n' | '\r' | '\t')) {
            return Err(ApiError::invalid(format!(
                "{name} contains a control character other than line breaks and tabs; remove it"
            )));
        }
        Ok(lines)
    }

    /// Returns an optional whole number within bounds.
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

    /// Returns the required `action_type`.
    pub fn action_type(&self) -> Result<Action, ApiError> {
        match integral(self.required("action_type")?) {
            Some(1) => Ok(Action::Do),
            Some(2) => Ok(Action::Undo),
            _ => Err(ApiError::invalid("action_type must be 1 or 2")),
        }
    }
}

/// Decodes `application/x-www-form-urlencoded` bytes. A `%` that starts no escape is a literal.
fn form_decode(bytes: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = bytes.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::error::Code;

    /// Encodes text as clients do: each byte that is not plain is escaped, others if wanted.
    fn encode(text: &str, escapes: &[bool]) -> String {
        let escaped = |(byte, escape): (u8, &bool)| match byte {
            b' ' if !escape => "+".to_owned(),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' if !escape => {
                char::from(byte).to_string()
            }
            other if *escape => format!("%{other:02x}"),
            other => format!("%{other:02X}"),
        };
        text.bytes().zip(escapes.iter().cycle()).map(escaped).collect()
    }

    /// A decoder that looks at one byte after the other.
    fn decode_naively(text: &[u8]) -> Vec<u8> {
        let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
        let (mut decoded, mut index) = (Vec::new(), 0);
        while let Some(byte) = text.get(index) {
            index += 1;
            decoded.push(match (byte, digit(text.get(index)), digit(text.get(index + 1))) {
                (b'%', Some(high), Some(low)) => {
                    index += 2;
                    u8::try_from(16 * high + low).unwrap()
                }
                (b'+', ..) => b' ',
                (other, ..) => *other,
            });
        }
        decoded
    }

    /// The first value of a name that is not empty.
    fn first<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
        pairs
            .iter()
            .find(|(other, value)| other == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    proptest! {
        #[test]
        fn parameters_round_trip_as_urlencoded_text(
            pairs in vec(("[abc &=%+字]{1,2}", "[^\0]{0,8}"), 0..8),
            escapes in vec(any::<bool>(), 1..40),
            split in any::<prop::sample::Index>(),
        ) {
            let join = |pairs: &[(String, String)]| {
                let pair = |(name, value): &(String, String)| {
                    format!("{}={}", encode(name, &escapes), encode(value, &escapes))
                };
                pairs.iter().map(pair).collect::<Vec<_>>().join("&")
            };
            let (before, after) = pairs.split_at(split.index(pairs.len() + 1));
            let mut params = Params::from_query(&join(before));
            params.add_urlencoded(join(after).as_bytes());
            for (name, _) in &pairs {
                prop_assert_eq!(params.optional(name), Ok(first(&pairs, name)));
            }
            let names: std::collections::BTreeSet<_> =
                pairs.iter().map(|(name, _)| name).filter(|name| first(&pairs, name).is_some()).collect();
            prop_assert_eq!(params.values.len(), names.len());
        }

        #[test]
        fn any_value_is_decoded_or_an_error(value in vec(prop_oneof![any::<u8>(), Just(b'%'), Just(b'0')], 1..20)) {
            prop_assume!(!value.contains(&b'&'));
            let mut params = Params::default();
            params.add_urlencoded(&[b"a=".as_slice(), &value].concat());
            let expected = String::from_utf8(decode_naively(&value)).ok().filter(|text| !text.contains('\0'));
            prop_assert_eq!(params.required("a").ok(), expected.as_deref());
        }

        #[test]
        fn any_value_respects_its_bounds(query in "a=(\\PC{0,40}|[0-9.eE+-]{0,24}|%0[0-9a-f][^&]{0,9})", max in 1..600_i64) {
            let params = Params::from_query(&query);
            if let Ok(id) = params.id("a") {
                prop_assert!((1..=limits::MAX_ID).contains(&id));
                prop_assert_eq!(params.optional_id("a"), Ok(Some(id)));
            }
            if let Ok(Some(number)) = params.optional_number("a", 1..=max) {
                prop_assert!((1..=max).contains(&number));
            }
            if let Ok(text) = params.limited_text("a", 2..=5) {
                prop_assert!((2..=5).contains(&text.chars().count()));
                let controls: String = text.chars().filter(|char| char.is_control()).collect();
                prop_assert_eq!(params.limited_line("a", 2..=5).is_ok(), controls.is_empty());
                prop_assert_eq!(params.limited_lines("a", 2..=5).is_ok(), controls.trim_matches(['\n', '\r', '\t']).is_empty());
            }
            _ = params.action_type();
        }
    }

    fn query(text: &str) -> Params {
        Params::from_query(text)
    }

    fn code<T>(result: Result<T, ApiError>) -> Option<Code> {
        result.err().map(|error| error.code)
    }

    #[test]
    fn query_wins_over_body_and_first_value_over_later() {
        let mut params = query("a=1&a=2&b=3&d=");
        params.add_urlencoded(b"b=4&c=5&c=6&d=7");
        assert_eq!(params.required("a"), Ok("1"));
        assert_eq!(params.required("b"), Ok("3"));
        assert_eq!(params.required("c"), Ok("5"));
        assert_eq!(params.required("d"), Ok("7"), "an empty value is none");
    }

    #[test]
    fn missing_parameter_is_an_error_only_if_required() {
        let params = query("empty=&novalue&=x&&");
        for name in ["empty", "novalue", "missing"] {
            assert_eq!(params.optional(name), Ok(None));
            assert_eq!(params.optional_id(name), Ok(None));
            assert_eq!(code(params.required(name)), Some(Code::InvalidParameter));
            assert_eq!(code(params.id(name)), Some(Code::InvalidParameter));
        }
    }

    #[test]
    fn text_is_decoded_and_otherwise_unchanged() {
        let params = query("t=%20a+b%2B%F0%9F%98%80=%zz%25%0a&%74u=x");
        assert_eq!(params.required("t"), Ok(" a b+😀=%zz%\n"));
        assert_eq!(params.required("tu"), Ok("x"));
    }

    #[test]
    fn invalid_text_is_an_error_when_read() {
        let params = query("bad=%ff&nul=a%00b&surrogate=%ed%a0%80&good=1&%ff=2");
        assert_eq!(params.optional("bad").unwrap_err().message, "bad is not valid UTF-8");
        assert_eq!(params.optional("nul").unwrap_err().message, "nul contains a NUL");
        assert_eq!(code(params.optional_id("bad")), Some(Code::InvalidParameter));
        assert_eq!(code(params.optional("surrogate")), Some(Code::InvalidParameter));
        assert_eq!(params.required("good"), Ok("1"));
    }

    #[test]
    fn ids_may_have_an_exponent() {
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
    fn control_characters_are_refused() {
        let params = query(
            "tab=a%09b&crlf=a%0d%0a%0ab&bell=a%07&escape=%1b%5b1m&delete=%7f&c1=a%c2%85b&plain=a%20%e2%80%8b",
        );
        for name in ["tab", "crlf"] {
            assert_eq!(code(params.limited_line(name, 1..=32)), Some(Code::InvalidParameter), "{name}");
            assert_eq!(params.limited_lines(name, 1..=32), params.required(name));
        }
        for name in ["bell", "escape", "delete", "c1"] {
            assert_eq!(code(params.limited_line(name, 1..=32)), Some(Code::InvalidParameter), "{name}");
            assert_eq!(code(params.limited_lines(name, 1..=32)), Some(Code::InvalidParameter), "{name}");
        }
        assert_eq!(params.limited_line("plain", 1..=32), Ok("a \u{200b}"));
        assert_eq!(code(params.limited_line("plain", 1..=2)), Some(Code::InvalidParameter));
        assert_eq!(code(params.limited_lines("plain", 1..=2)), Some(Code::InvalidParameter));
    }

    #[test]
    fn numbers_are_whole_and_bounded() {
        assert_eq!(query("limit=30").optional_number("limit", 1..=500), Ok(Some(30)));
        assert_eq!(query("limit=").optional_number("limit", 1..=500), Ok(None));
        for limit in ["0", "501", "x", "1.5"] {
            let result = query(&format!("limit={limit}")).optional_number("limit", 1..=500);
            assert_eq!(code(result), Some(Code::InvalidParameter), "{limit}");
        }
    }

    #[test]
    fn action_is_1_or_2() {
        assert_eq!(query("action_type=1").action_type(), Ok(Action::Do));
        assert_eq!(query("action_type=2").action_type(), Ok(Action::Undo));
        for text in ["", "action_type=", "action_type=3", "action_type=like"] {
            assert_eq!(code(query(text).action_type()), Some(Code::InvalidParameter), "{text}");
        }
    }

    #[test]
    fn added_fields_follow_the_query() {
        let mut params = query("token=a");
        params.add("token", b"b");
        params.add("title", "Ünder".as_bytes());
        params.add("title", b"second");
        assert_eq!(params.required("token"), Ok("a"));
        assert_eq!(params.required("title"), Ok("Ünder"));
    }
}
