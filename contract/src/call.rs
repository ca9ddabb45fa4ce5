//! A request as a handler receives it: its parameters and its caller.

use axum::{
    extract::{FromRef, FromRequest, Request},
    http::{
        HeaderMap, Method,
        header::{AUTHORIZATION, CONTENT_LENGTH},
    },
};

use crate::{admission::Admission, body, error::ApiError, limits, params::Params, token::Tokens};

/// Any request but an upload.
///
/// Extraction fails if the body is too large, a token is present that does not verify, or a rate limit is exceeded. An
/// anonymous request is accepted; [`Call::caller`] rejects it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The parameters of the query, then of the body.
    pub params: Params,
    /// The headers.
    pub headers: HeaderMap,
    caller: Option<i64>,
}

impl Call {
    /// Returns the caller, or an error for an anonymous request.
    pub fn caller(&self) -> Result<i64, ApiError> {
        self.caller.ok_or_else(|| ApiError::unauthenticated("token is missing; log in"))
    }

    /// Returns the caller; `None` for an anonymous request.
    pub const fn viewer(&self) -> Option<i64> {
        self.caller
    }
}

impl<S> FromRequest<S> for Call
where
    S: Send + Sync,
    Tokens: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, ApiError> {
        check_content_length(request.headers(), limits::FORM_BYTES as u64)?;
        let headers = std::mem::take(request.headers_mut());
        let admission = Admission::of(request.extensions());
        let mut params = Params::from_query(request.uri().query().unwrap_or_default());
        if request.method() == Method::POST {
            body::add_parameters(&mut params, &headers, request).await?;
        }
        let caller = authenticate(&params, &headers, &Tokens::from_ref(state))?;
        admission.admit(caller, &params).await?;
        Ok(Self { params, headers, caller })
    }
}

/// Authenticates a request by the parameter `token`, else by `Authorization: Bearer`.
///
/// Returns `None` for an anonymous request. A token that is present but does not verify is an error.
pub fn authenticate(params: &Params, headers: &HeaderMap, tokens: &Tokens) -> Result<Option<i64>, ApiError> {
    let token = match params.optional("token")? {
        Some(token) => Some(token),
        None => bearer(headers)?,
    };
    token.map(|token| tokens.verify(token)).transpose()
}

/// Rejects a body whose Content-Length exceeds a limit, before any of it is read.
pub fn check_content_length(headers: &HeaderMap, limit_bytes: u64) -> Result<(), ApiError> {
    let Some(length) = headers.get(CONTENT_LENGTH) else {
        return Ok(());
    };
    let length: Option<u64> = length.to_str().ok().and_then(|length| length.parse().ok());
    match length {
        Some(length) if length <= limit_bytes => Ok(()),
        _ => Err(ApiError::too_large(limit_bytes)),
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(header) = headers.get(AUTHORIZATION) else {
        return Ok(None);
    };
    let header = header.to_str().map_err(|_| ApiError::unauthenticated("the token is not valid; log in"))?;
    let (scheme, token) = header.split_once(' ').unwrap_or((header, ""));
    // Another scheme is meant for a proxy in between.
    Ok(Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()))
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, Bytes},
        http::header::CONTENT_TYPE,
    };

    use super::*;
    use crate::error::Code;

    const FORM: &str = "application/x-www-form-urlencoded";

    #[derive(Clone)]
    struct App(Tokens);

    impl FromRef<App> for Tokens {
        fn from_ref(app: &App) -> Self {
            app.0.clone()
        }
    }

    fn app() -> App {
        App(Tokens::parse("a:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", || 1_700_000_000_000).unwrap())
    }

    fn get(query: &str) -> axum::http::request::Builder {
        Request::get(format!("/?{query}"))
    }

    fn post_form(query: &str) -> axum::http::request::Builder {
        Request::post(format!("/?{query}"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
    }

    async fn call(request: Request) -> Result<Call, ApiError> {
        Call::from_request(request, &app()).await
    }

    async fn code(request: Request) -> Option<Code> {
        call(request).await.err().map(|error| error.code)
    }

    #[tokio::test]
    async fn query_parameters_win_over_form_parameters() {
        let call = call(post_form("a=1").body(Body::from("a=2&b=3")).unwrap()).await.unwrap();
        assert_eq!(call.params.required("a"), Ok("1"));
        assert_eq!(call.params.required("b"), Ok("3"));
    }

    #[tokio::test]
    async fn body_of_a_get_is_ignored() {
        let request = get("a=1").header(CONTENT_TYPE, FORM).body(Body::from("b=3&token=x")).unwrap();
        let call = call(request).await.unwrap();
        assert_eq!(call.params.optional("b"), Ok(None));
        assert_eq!(call.viewer(), None);
    }

    #[tokio::test]
    async fn json_body_may_contain_the_token() {
        let json = format!(r#"{{"token": "{}", "a": 2, "b": 3}}"#, app().0.sign(7).unwrap());
        let request =
            Request::post("/?a=1").header(CONTENT_TYPE, "application/json").body(json.into()).unwrap();
        let call = call(request).await.unwrap();
        assert_eq!((call.caller(), call.params.required("a")), (Ok(7), Ok("1")));
        assert_eq!(call.params.required("b"), Ok("3"));
    }

    #[tokio::test]
    async fn body_of_another_type_is_an_error() {
        let request =
            Request::post("/?a=1").header(CONTENT_TYPE, "text/plain").body(Body::from("b=2")).unwrap();
        assert_eq!(code(request).await, Some(Code::InvalidParameter));
    }

    #[tokio::test]
    async fn large_body_is_rejected_by_its_content_length() {
        let request = |length: usize| {
            post_form("").header(CONTENT_LENGTH, length).body(Body::from_stream(never())).unwrap()
        };
        let result =
            tokio::time::timeout(std::time::Duration::from_secs(1), call(request(64 * 1024 + 1))).await;
        assert_eq!(
            result.expect("a response before the body is read").unwrap_err().code,
            Code::PayloadTooLarge
        );
        let whole =
            post_form("").header(CONTENT_LENGTH, 64 * 1024).body(Body::from(vec![b'a'; 64 * 1024])).unwrap();
        assert_eq!(code(whole).await, None);
    }

    #[tokio::test]
    async fn large_body_without_content_length_is_rejected() {
        let request = post_form("").body(Body::from(vec![b'a'; 64 * 1024 + 1])).unwrap();
        assert_eq!(code(request).await, Some(Code::PayloadTooLarge));
    }

    #[tokio::test]
    async fn missing_or_empty_token_is_anonymous() {
        let requests = [
            get("").body(Body::empty()).unwrap(),
            get("token=").body(Body::empty()).unwrap(),
            get("").header(AUTHORIZATION, "Bearer").body(Body::empty()).unwrap(),
            get("").header(AUTHORIZATION, "Bearer ").body(Body::empty()).unwrap(),
            get("").header(AUTHORIZATION, "Basic dXNlcjpwYXNz").body(Body::empty()).unwrap(),
        ];
        for request in requests {
            let call = call(request).await.unwrap();
            assert_eq!(call.viewer(), None);
            assert_eq!(call.caller().unwrap_err().code, Code::Unauthenticated);
        }
    }

    #[tokio::test]
    async fn token_is_a_parameter_or_a_bearer() {
        let (seven, eight) = (app().0.sign(7).unwrap(), app().0.sign(8).unwrap());
        let bearer = format!("bearer {eight}");
        let requests = [
            (7, get(&format!("token={seven}")).body(Body::empty()).unwrap()),
            (7, post_form("").body(Body::from(format!("token={seven}"))).unwrap()),
            (8, get("").header(AUTHORIZATION, &bearer).body(Body::empty()).unwrap()),
            (8, get("token=").header(AUTHORIZATION, &bearer).body(Body::empty()).unwrap()),
            (7, get(&format!("token={seven}")).header(AUTHORIZATION, &bearer).body(Body::empty()).unwrap()),
        ];
        for (user, request) in requests {
            assert_eq!(call(request).await.unwrap().caller(), Ok(user));
        }
    }

    #[tokio::test]
    async fn token_that_does_not_verify_is_an_error() {
        let bearer = format!("Bearer {}", app().0.sign(8).unwrap());
        let requests = [
            get("token=forged").body(Body::empty()).unwrap(),
            get("token=%ff").header(AUTHORIZATION, &bearer).body(Body::empty()).unwrap(),
            get("token=forged").header(AUTHORIZATION, &bearer).body(Body::empty()).unwrap(),
            get("").header(AUTHORIZATION, "Bearer forged").body(Body::empty()).unwrap(),
            get("").header(AUTHORIZATION, b"Bearer \xff".as_slice()).body(Body::empty()).unwrap(),
        ];
        for request in requests {
            assert!(matches!(code(request).await, Some(Code::Unauthenticated | Code::InvalidParameter)));
        }
    }

    fn never() -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> {
        futures::stream::pending()
    }
}
