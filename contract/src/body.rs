//! The body of a POST, read as parameters.

use std::{borrow::Cow, fmt, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{
        DefaultBodyLimit, FromRequest, Multipart, Request,
        rejection::{BytesRejection, FailedToBufferBody},
    },
    http::{
        HeaderMap,
        header::{CONTENT_DISPOSITION, CONTENT_TYPE},
    },
};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::{content_disposition::part_name, error::ApiError, limits, params::Params};

/// The longest time that a body may take to arrive. A slower one only holds a request slot.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the body of a request up to its limit, even without a Content-Length, and adds its parameters.
///
/// Accepts urlencoded forms, multipart forms and flat JSON objects, by Content-Type. An empty body has no parameters,
/// whatever its type. Any other body is an error: ignoring it would drop parameters silently.
pub(crate) async fn add_parameters(
    params: &mut Params,
    headers: &HeaderMap,
    request: Request,
) -> Result<(), ApiError> {
    let body = read(request).await?;
    if body.is_empty() {
        return Ok(());
    }
    match media_type(headers).as_str() {
        "application/x-www-form-urlencoded" => add_form(params, &body),
        "multipart/form-data" => add_multipart(params, headers, body).await,
        "application/json" => add_json(params, &body),
        _ => Err(ApiError::invalid(
            "the body must be application/x-www-form-urlencoded, multipart/form-data or application/json",
        )),
    }
}

async fn read(mut request: Request) -> Result<Bytes, ApiError> {
    DefaultBodyLimit::max(limits::FORM_BYTES).apply(&mut request);
    let body = timeout(BODY_TIMEOUT, Bytes::from_request(request, &()));
    let body = body.await.map_err(|_| ApiError::invalid("the body did not arrive in time"))?;
    body.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            ApiError::too_large(limits::FORM_BYTES as u64)
        }
        _ => ApiError::invalid("the body ended early"),
    })
}

/// Returns the media type in lower case, without its parameters; empty if there is none.
fn media_type(headers: &HeaderMap) -> String {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (media_type, _) = content_type.split_once(';').unwrap_or((content_type, ""));
    media_type.trim().to_ascii_lowercase()
}

/// Every text parses as urlencoded. So a name with a character that must be escaped reveals a body of another type: a
/// client that sets no Content-Type may send JSON as urlencoded.
fn add_form(params: &mut Params, body: &[u8]) -> Result<(), ApiError> {
    let is_plain = |byte: &u8| !byte.is_ascii_control() && !b"{}<>\"".contains(byte);
    let has_plain_name =
        |pair: &[u8]| pair.split(|byte| *byte == b'=').next().is_none_or(|name| name.iter().all(is_plain));
    if !body.split(|byte| *byte == b'&').all(has_plain_name) {
        return Err(ApiError::invalid("the body is not application/x-www-form-urlencoded"));
    }
    params.add_urlencoded(body);
    Ok(())
}

async fn add_multipart(params: &mut Params, headers: &HeaderMap, body: Bytes) -> Result<(), ApiError> {
    let malformed = || ApiError::invalid("the body is not multipart/form-data");
    let mut request = Request::new(Body::from(body));
    *request.headers_mut() = headers.clone();
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|_| ApiError::invalid("the Content-Type has no boundary"))?;
    while let Some(part) = form.next_field().await.map_err(|_| malformed())? {
        let header = part.headers().get(CONTENT_DISPOSITION).map(|header| part_name(header.as_bytes()));
        let name = header.transpose().map_err(|_| malformed())?.flatten().unwrap_or_default();
        params.add(&name, &part.bytes().await.map_err(|_| malformed())?);
    }
    Ok(())
}

fn add_json(params: &mut Params, body: &[u8]) -> Result<(), ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    json.deserialize_map(FlatObject(params))
        .and_then(|()| json.end())
        .map_err(|error| ApiError::invalid(format!("the body is not a flat JSON object: {error}")))
}

/// Adds the members of a flat JSON object to the parameters, in their order. Numbers keep their digits.
struct FlatObject<'a>(&'a mut Params);

impl<'de> Visitor<'de> for FlatObject<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings, numbers and booleans")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<(), M::Error> {
        while let Some((name, value)) = members.next_entry::<Cow<'de, str>, &'de RawValue>()? {
            let text = match value.get() {
                "null" => continue,
                text if text.starts_with('"') => {
                    serde_json::from_str(text).map_err(serde::de::Error::custom)?
                }
                nested if nested.starts_with(['{', '[']) => {
                    return Err(serde::de::Error::custom(format!("{name} is nested")));
                }
                scalar => scalar.to_owned(),
            };
            self.0.add(&name, text.as_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::error::Code;

    fn parse_now(content_type: &str, body: impl Into<Body>) -> Result<Params, ApiError> {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(parse(content_type, body))
    }

    fn scalars() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[^\0]{0,10}".prop_map(Value::from),
            ".{0,5}".prop_map(Value::from),
        ]
    }

    fn values() -> impl Strategy<Value = Value> {
        prop_oneof![4 => scalars(), 1 => vec(scalars(), 0..2).prop_map(Value::from), 1 => Just(json!({}))]
    }

    fn is_flat_object(json: &Value) -> bool {
        json.as_object()
            .is_some_and(|members| members.values().all(|value| !value.is_array() && !value.is_object()))
    }

    /// The text that a parameter has for a JSON value; `None` if it counts as missing.
    fn text_of(value: &Value) -> Option<String> {
        match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            other => Some(other.to_string()),
        }
    }

    /// The first value of each name, by a list.
    fn first_values(pairs: &[(String, Option<String>)]) -> Vec<(&str, &str)> {
        let mut found: Vec<(&str, &str)> = vec![("query", "1")];
        for (name, value) in pairs {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty() && !name.is_empty())
                && found.iter().all(|(other, _)| other != name)
            {
                found.push((name, value));
            }
        }
        found
    }

    fn check(params: &Params, pairs: &[(String, Option<String>)]) -> Result<(), TestCaseError> {
        for (name, value) in first_values(pairs) {
            let is_text = !value.contains('\0');
            prop_assert_eq!(params.optional(name).ok(), is_text.then_some(Some(value)), "{}", name);
        }
        for (name, _) in
            pairs.iter().filter(|(name, _)| first_values(pairs).iter().all(|(other, _)| other != name))
        {
            prop_assert_eq!(params.optional(name), Ok(None));
        }
        Ok(())
    }

    /// A part of a multipart form, with a file name that may look like other parameters.
    fn part(name: &str, file_name: Option<&str>, file_name_first: bool, content: &[u8]) -> Vec<u8> {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let name = format!("; name=\"{}\"", escape(name));
        let file_name =
            file_name.map(|file_name| format!("; filename=\"{}\"", escape(file_name))).unwrap_or_default();
        let parameters = if file_name_first { file_name + &name } else { name + &file_name };
        let head = format!("--boundary\r\nContent-Disposition: form-data{parameters}\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    }

    proptest! {
        #[test]
        fn flat_json_objects_round_trip(members in vec(("[a-c字\"]{0,2}|query", scalars()), 0..8), blank in "[ \n\t\r]{0,2}") {
            let member = |(name, value): &(String, Value)| format!("{blank}{}{blank}:{blank}{value}", json!(name));
            let body = format!("{{{}{blank}}}", members.iter().map(member).collect::<Vec<_>>().join(","));
            let params = parse_now("application/json", body.clone()).unwrap();
            let pairs: Vec<_> = members.iter().map(|(name, value)| (name.clone(), text_of(value))).collect();
            check(&params, &pairs)?;
        }

        #[test]
        fn only_flat_json_objects_are_accepted(members in vec(("[a-c]{1,2}", values()), 0..4), is_wrapped in any::<bool>()) {
            let object = Value::from(Map::from_iter(members));
            let expected = is_flat_object(&object) && !is_wrapped;
            let body = if is_wrapped { json!([object]) } else { object };
            prop_assert_eq!(parse_now("application/json", body.to_string()).is_ok(), expected);
        }

        #[test]
        fn damaged_json_is_accepted_only_if_it_is_json(
            members in vec(("[a-c]{1,2}", scalars()), 0..4),
            place in any::<prop::sample::Index>(),
            byte in prop_oneof![any::<u8>(), prop::sample::select(&b"{}[]\",:\\ 0e"[..])],
        ) {
            let mut body = Value::from(Map::from_iter(members)).to_string().into_bytes();
            let place = place.index(body.len());
            body[place] = byte;
            // A number that is too large for a double is valid JSON, but serde_json has no value for it.
            prop_assume!(!body.iter().any(|byte| matches!(byte, b'e' | b'E')));
            let json = serde_json::from_slice::<Value>(&body);
            // Valid JSON, but serde_json has no value for it.
            prop_assume!(!json.as_ref().is_err_and(|error| error.to_string().contains("out of range")));
            let expected = json.is_ok_and(|json| is_flat_object(&json));
            let text = String::from_utf8_lossy(&body).into_owned();
            prop_assert_eq!(parse_now("application/json", body).is_ok(), expected, "{}", text);
        }

        #[test]
        fn multipart_forms_round_trip(
            parts in vec(("[a-c字 ;\"\\\\]{0,2}|query", prop::option::of("[a-z字]{0,4}( name=|; name=\"x|\"|\\\\)[a-z\"]{0,4}"), any::<bool>(), "[^\0]{0,12}"), 0..6),
        ) {
            let mut body = Vec::new();
            for (name, file_name, file_name_first, content) in &parts {
                body.extend(part(name, file_name.as_deref(), *file_name_first, content.as_bytes()));
            }
            body.extend(b"--boundary--\r\n");
            let params = parse_now("multipart/form-data; boundary=boundary", body).unwrap();
            let pairs: Vec<_> = parts.iter().map(|(name, .., content)| (name.clone(), Some(content.clone()))).collect();
            check(&params, &pairs)?;
        }

        #[test]
        fn any_body_is_parsed_without_panic(
            content_type in prop::sample::select(&[
                "application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "multipart/form-data; boundary=\"",
            ][..]),
            chunks in vec(prop_oneof![
                vec(any::<u8>(), 0..30),
                Just(b"--b\r\n".to_vec()),
                Just(b"\r\n--b--".to_vec()),
                Just(b"Content-Disposition: form-data; name=a\r\n\r\n".to_vec()),
                Just(b"{\"a\":".to_vec()),
            ], 0..6),
        ) {
            let body = chunks.concat();
            let is_empty = body.is_empty();
            match parse_now(content_type, body) {
                Ok(params) => prop_assert_eq!(params.required("query"), Ok("1")),
                Err(error) => prop_assert!(!is_empty && error.code == Code::InvalidParameter),
            }
        }
    }

    async fn parse(content_type: &str, body: impl Into<Body>) -> Result<Params, ApiError> {
        let request = Request::post("/").header(CONTENT_TYPE, content_type).body(body.into()).unwrap();
        let headers = request.headers().clone();
        let mut params = Params::from_query("query=1");
        add_parameters(&mut params, &headers, request).await.map(|()| params)
    }

    async fn json(body: &'static str) -> Result<Params, ApiError> {
        parse("application/json; charset=utf-8", body).await
    }

    #[tokio::test]
    async fn json_members_are_parameters() {
        let params = json(
            r#" {"text": "a\n\"b\" 字 \ud83d\ude00", "id": 4.5e+15, "big": 9007199254740993, "yes": true,
                 "text": "second", "query": 2, "n\u0061me": "x"} "#,
        );
        let params = params.await.unwrap();
        for (name, value) in [
            ("text", "a\n\"b\" 字 😀"),
            ("big", "9007199254740993"),
            ("yes", "true"),
            ("query", "1"),
            ("name", "x"),
        ] {
            assert_eq!(params.required(name), Ok(value));
        }
        assert_eq!(params.id("id"), Ok(4_500_000_000_000_000));
        assert_eq!(params.id("big").unwrap_err().code, Code::InvalidParameter);
    }

    #[tokio::test]
    async fn null_and_empty_strings_are_missing() {
        let params = json(r#"{"a": null, "b": "", "a": "1", "b": 2}"#).await.unwrap();
        assert_eq!((params.required("a"), params.required("b")), (Ok("1"), Ok("2")));
        assert_eq!(json("{}").await.unwrap().optional("a"), Ok(None));
    }

    #[tokio::test]
    async fn other_json_is_an_error() {
        for body in [
            "[]",
            "1",
            "null",
            "\"a\"",
            "{",
            "{\"a\": 1",
            "{\"a\": {}}",
            "{\"a\": [1]}",
            "{\"a\": 1} x",
            "a=1",
            "{\"a\": 01}",
            "{'a': 1}",
            "{\"a\": \"\\ud800\"}",
            " ",
        ] {
            assert_eq!(json(body).await.unwrap_err().code, Code::InvalidParameter, "{body}");
        }
        let bytes = parse("application/json", &b"{\"a\": \"\xff\"}"[..]).await;
        assert_eq!(bytes.unwrap_err().code, Code::InvalidParameter);
    }

    #[tokio::test]
    async fn text_with_a_nul_is_an_error_when_read() {
        let params = json(r#"{"a": "x\u0000"}"#).await.unwrap();
        assert_eq!(params.optional("a").unwrap_err().code, Code::InvalidParameter);
    }

    #[tokio::test]
    async fn multipart_fields_are_parameters() {
        let body = "--b\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nline 1\nline 2\r\n\
            --b\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nsecond\r\n\
            --b\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\n2\r\n--b--\r\n";
        let params = parse("multipart/form-data; boundary=b", body).await.unwrap();
        assert_eq!(params.required("text"), Ok("line 1\nline 2"));
        assert_eq!(params.required("query"), Ok("1"));
        for (content_type, body) in [
            ("multipart/form-data", body),
            ("multipart/form-data; boundary=c", body),
            ("multipart/form-data; boundary=b", "a=1"),
            ("multipart/form-data; boundary=b", &body[..body.len() - 12]),
        ] {
            let error = parse(content_type, body).await.unwrap_err();
            assert_eq!(error.code, Code::InvalidParameter, "{content_type} {body}");
        }
    }

    #[tokio::test]
    async fn other_bodies_declared_as_urlencoded_are_errors() {
        let form = "application/x-www-form-urlencoded";
        let params = parse(form, "a=%7B1%7D&b=a+b&flag&query=2").await.unwrap();
        assert_eq!((params.required("a"), params.required("b")), (Ok("{1}"), Ok("a b")));
        assert_eq!(params.required("query"), Ok("1"));
        for body in [
            "{\"a\": 1}",
            "{\"a\": \"x=1\"}",
            "<a b=\"1\">",
            "--b\r\nContent-Disposition: form-data; name=\"a\"",
        ] {
            assert_eq!(parse(form, body).await.unwrap_err().code, Code::InvalidParameter, "{body}");
        }
    }

    #[tokio::test]
    async fn body_of_another_type_is_an_error_unless_empty() {
        for content_type in
            ["text/plain", "application/octet-stream", "application/jsonx", "", "multipart/mixed"]
        {
            assert_eq!(parse(content_type, "a=1").await.unwrap_err().code, Code::InvalidParameter);
            parse(content_type, "").await.unwrap();
        }
        for content_type in ["application/json", "multipart/form-data", "APPLICATION/X-WWW-Form-urlencoded"] {
            parse(content_type, "").await.unwrap();
        }
        let request = Request::post("/").body(Body::from("a=1")).unwrap();
        let error = add_parameters(&mut Params::default(), &HeaderMap::new(), request).await.unwrap_err();
        assert_eq!(error.code, Code::InvalidParameter);
    }
}
