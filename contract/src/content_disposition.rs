//! Parses the `Content-Disposition` header of a form part: `form-data; name="data"; filename="a.mp4"`.
//!
//! The form's parser searches the header for `name=`, so it also finds it in a quoted file name, such as
//! `filename="my name=x.mp4"; name="data"`. This one parses the parameters in order.

use thiserror::Error;

/// A header that is not a valid `Content-Disposition` of a form part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("invalid Content-Disposition")]
pub struct InvalidHeader;

/// Returns the part's name: the first `name` parameter, or `None` without one.
///
/// Follows RFC 7578: the parameters come in any order, their names are case-insensitive, and a value is a token or a
/// quoted string with backslash escapes. Also accepts unquoted values with blanks, which some clients send.
pub fn part_name(header: &[u8]) -> Result<Option<String>, InvalidHeader> {
    let (disposition, mut rest) = split_at_semicolon(header);
    if !disposition.trim_ascii().eq_ignore_ascii_case(b"form-data") {
        return Err(InvalidHeader);
    }
    let mut name = None;
    while !rest.is_empty() {
        let parameter = rest.trim_ascii_start();
        let end = parameter.iter().position(|byte| matches!(byte, b';' | b'=')).unwrap_or(parameter.len());
        let (key, after_key) = (parameter[..end].trim_ascii_end(), &parameter[end..]);
        match after_key.split_first() {
            Some((b'=', value)) => {
                let value = value.trim_ascii_start();
                let (value, after_value) =
                    if value.first() == Some(&b'"') { quoted(&value[1..])? } else { unquoted(value)? };
                if name.is_none() && key.eq_ignore_ascii_case(b"name") {
                    name = Some(String::from_utf8(value).map_err(|_| InvalidHeader)?);
                }
                rest = after_value;
            }
            // Extra semicolons separate nothing.
            Some((_, after_semicolon)) if key.is_empty() => rest = after_semicolon,
            None if key.is_empty() => break,
            _ => return Err(InvalidHeader),
        }
    }
    Ok(name)
}

/// Reads a quoted string after its opening quote; returns its content and the text after the next semicolon.
fn quoted(text: &[u8]) -> Result<(Vec<u8>, &[u8]), InvalidHeader> {
    let mut content = Vec::new();
    let mut bytes = text.iter().enumerate();
    while let Some((index, byte)) = bytes.next() {
        match byte {
            b'\\' => content.push(*bytes.next().ok_or(InvalidHeader)?.1),
            b'"' => {
                let (blanks, rest) = split_at_semicolon(&text[index + 1..]);
                return if blanks.trim_ascii().is_empty() { Ok((content, rest)) } else { Err(InvalidHeader) };
            }
            other => content.push(*other),
        }
    }
    Err(InvalidHeader)
}

/// Reads an unquoted value; returns it and the text after the next semicolon.
fn unquoted(text: &[u8]) -> Result<(Vec<u8>, &[u8]), InvalidHeader> {
    let (value, rest) = split_at_semicolon(text);
    let value = value.trim_ascii_end();
    if value.is_empty() || value.contains(&b'"') {
        return Err(InvalidHeader);
    }
    Ok((value.to_vec(), rest))
}

fn split_at_semicolon(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b';') {
        Some(index) => (&text[..index], &text[index + 1..]),
        None => (text, b""),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn name(header: &str) -> Result<Option<String>, InvalidHeader> {
        part_name(header.as_bytes())
    }

    #[test]
    fn name_is_found_in_every_valid_form() {
        for header in [
            r#"form-data; name="data""#,
            r#"form-data; filename="my name=x.mp4"; name="data""#,
            r#"form-data; filename="a; name=\"title\".mp4"; name="data""#,
            r#"form-data; filename="\\"; name="data""#,
            r"form-data; filename*=UTF-8''name%3Dx.mp4; name=data",
            r#"form-data; nickname="title"; name="data""#,
            r#"form-data; name="data"; name="title""#,
            r#"Form-Data;NAME="data";filename="x""#,
            "form-data ; name = data ; filename = my video.mp4",
            "form-data\t;\tname\t=\t\"data\"\t;",
            r#"form-data;; name="d\ata""#,
            "form-data; filename=\"пример name=x.mp4\"; name=data",
        ] {
            assert_eq!(name(header).unwrap().as_deref(), Some("data"), "{header}");
        }
    }

    #[test]
    fn header_without_name_has_none() {
        for header in
            ["form-data", "form-data;", r#"form-data; filename="name=data""#, "form-data; name*=data"]
        {
            assert_eq!(name(header), Ok(None), "{header}");
        }
    }

    #[test]
    fn invalid_header_is_an_error() {
        for header in [
            "",
            "attachment; name=data",
            r#"form-data; name="data"#,
            r#"form-data; name="data\"#,
            r#"form-data; name="data" x"#,
            r#"form-data; name=da"ta"#,
            "form-data; name=",
            "form-data; name",
            "form-data; filename=; name=data",
        ] {
            assert_eq!(name(header), Err(InvalidHeader), "{header}");
        }
        assert_eq!(part_name(b"form-data; name=\"\xff\""), Err(InvalidHeader));
    }

    /// A parameter with random case, blanks and escapes around a random value.
    fn parameter(key: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let blanks = || "[ \t]{0,2}";
        let escapes = vec(any::<bool>(), 40);
        (value, escapes, any::<bool>(), [blanks(), blanks(), blanks(), blanks()]).prop_map(
            move |(value, escapes, upper, [a, b, c, d])| {
                let key = if upper { key.to_uppercase() } else { key.to_owned() };
                let quoted: String = value
                    .chars()
                    .zip(escapes)
                    .map(|(char, escape)| {
                        let escape = matches!(char, '"' | '\\') || (escape && char.is_ascii());
                        if escape { format!("\\{char}") } else { char.to_string() }
                    })
                    .collect();
                format!("{a}{key}{b}={c}\"{quoted}\"{d}")
            },
        )
    }

    proptest! {
        #[test]
        fn name_is_independent_of_other_parameters(
            expected in "[a-z]{1,10}",
            (before, after) in (
                vec(parameter("filename", r#"[ -~é字]{0,20}(;|"|\\| name="?)[ -~]{0,8}"#), 0..3),
                vec(parameter("x", "[ -~]{0,20}"), 0..3),
            ),
            blank in "[ \t]?",
        ) {
            let name = format!("{blank}Name{blank}=\"{expected}\"");
            let parameters: Vec<_> = before.into_iter().chain([name]).chain(after).collect();
            let header = format!("form-data{blank};{}", parameters.join(";"));
            prop_assert_eq!(part_name(header.as_bytes()), Ok(Some(expected)), "{}", header);
        }

        #[test]
        fn any_header_is_parsed_without_panic(header in vec(any::<u8>(), 0..80)) {
            let _ = part_name(&[b"form-data;".as_slice(), &header].concat());
        }
    }
}
