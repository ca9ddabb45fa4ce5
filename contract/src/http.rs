//! HTTP rules that hold for every path of an API.

use std::{str::FromStr, time::Duration};

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, Uri, header::RETRY_AFTER},
    middleware::map_request,
};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Response headers that scripts of another origin can read. A new response header that clients use goes here.
const EXPOSED_HEADERS: [HeaderName; 6] = [
    HeaderName::from_static("vidlog-position"),
    HeaderName::from_static("vidlog-stale"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    RETRY_AFTER,
];
/// How long a browser caches a preflight response. A removed origin keeps its access for this long.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_mins(10);

/// The origins that may call the API from a browser: `*`, or a comma-separated list of `scheme://host[:port]`. May be
/// empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<HeaderValue>);

/// A text that is no list of origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give * or origins of the form scheme://host[:port] in lower case, separated by commas")]
pub struct OriginsError;

impl FromStr for Origins {
    type Err = OriginsError;

    fn from_str(text: &str) -> Result<Self, OriginsError> {
        let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
        let parse =
            |origin| HeaderValue::from_str(origin).ok().filter(|_| origin == "*" || is_origin(origin));
        origins.map(|origin| parse(origin).ok_or(OriginsError)).collect::<Result<_, _>>().map(Self)
    }
}

/// Returns whether a browser may send a text as its `Origin`: scheme and host in lower case, without user and path.
fn is_origin(text: &str) -> bool {
    let uri = text.parse::<Uri>().ok();
    let parts = uri.as_ref().and_then(|uri| uri.scheme_str().zip(uri.authority()));
    parts.is_some_and(|(scheme, authority)| format!("{scheme}://{authority}") == text)
        && !text.contains(|c: char| c == '@' || c.is_ascii_uppercase())
}

/// Adds CORS headers for a list of origins, and answers preflight requests. Adds nothing for an empty list.
///
/// Credentials in the sense of CORS (cookies) are never allowed: a token is a parameter or a header, which a script of
/// another origin must have received itself.
pub fn allow_origins(router: Router, origins: &Origins) -> Router {
    if origins.0.is_empty() {
        return router;
    }
    let allowed = if origins.0.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.0.clone())
    };
    router.layer(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED_HEADERS)
            .max_age(PREFLIGHT_MAX_AGE),
    )
}

/// Makes consecutive slashes in a path count as one: users type base addresses by hand.
///
/// Wraps the router, because a layer of its own would run after the route is chosen.
pub fn merge_slashes(router: Router) -> Router {
    Router::new().fallback_service(router).layer(map_request(async |mut request: Request| {
        if let Some(uri) = with_single_slashes(request.uri()) {
            *request.uri_mut() = uri;
        }
        request
    }))
}

/// Returns the URI with single slashes, if it has consecutive ones.
fn with_single_slashes(uri: &Uri) -> Option<Uri> {
    if !uri.path().contains("//") {
        return None;
    }
    let mut target = String::with_capacity(uri.path().len());
    for character in uri.path().chars() {
        if character != '/' || !target.ends_with('/') {
            target.push(character);
        }
    }
    if let Some(query) = uri.query() {
        target.extend(["?", query]);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::HeaderMap, response::Response, routing::get};
    use tower::ServiceExt;

    use super::*;

    fn router() -> Router {
        Router::new().route("/a/b/", get(async |uri: Uri| uri.to_string()))
    }

    async fn send(router: Router, request: Request) -> Response {
        router.oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn consecutive_slashes_count_as_one() {
        for path in ["/a/b/", "//a/b/", "/a///b//", "//a//b//?c=//&d", "http://host//a/b/"] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            assert_eq!(send(merge_slashes(router()), request).await.status(), 200, "{path}");
        }
        let other = Request::get("//a/").body(Body::empty()).unwrap();
        assert_eq!(send(merge_slashes(router()), other).await.status(), 404);
        let uri = with_single_slashes(&"//a//b//?c=//&d".parse().unwrap());
        assert_eq!(uri.unwrap(), "/a/b/?c=//&d");
    }

    /// Sends a request of an origin, and returns the status and headers.
    async fn call(origins: &str, method: Method, origin: &str) -> (u16, HeaderMap) {
        let request = Request::builder()
            .method(method)
            .uri("/a/b/")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,idempotency-key")
            .body(Body::empty())
            .unwrap();
        let response = send(allow_origins(router(), &origins.parse().unwrap()), request).await;
        (response.status().as_u16(), response.headers().clone())
    }

    #[tokio::test]
    async fn listed_origins_are_allowed() {
        let list = "https://a.example,http://localhost:3000";
        let (status, headers) = call(list, Method::OPTIONS, "http://localhost:3000").await;
        assert_eq!(status, 200);
        assert_eq!(headers["access-control-allow-origin"], "http://localhost:3000");
        assert_eq!(headers["access-control-allow-headers"], "authorization,idempotency-key");
        assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
        let (status, headers) = call(list, Method::GET, "https://a.example").await;
        assert_eq!(
            (status, &headers["access-control-allow-origin"]),
            (200, &"https://a.example".parse().unwrap())
        );
        let exposed = headers["access-control-expose-headers"].to_str().unwrap();
        for name in EXPOSED_HEADERS {
            assert!(exposed.contains(name.as_str()), "{name}");
        }
        assert!(headers["vary"].to_str().unwrap().contains("origin"));
    }

    #[tokio::test]
    async fn other_origins_are_not_allowed() {
        for (origins, origin) in [
            ("https://a.example", "https://b.example"),
            ("https://a.example", "https://a.example.b"),
            ("", "https://a.example"),
        ] {
            for method in [Method::OPTIONS, Method::GET] {
                let (_, headers) = call(origins, method, origin).await;
                assert!(!headers.contains_key("access-control-allow-origin"), "{origins} {origin}");
            }
        }
        assert_eq!(call("", Method::OPTIONS, "https://a.example").await.0, 405);
    }

    #[tokio::test]
    async fn any_origin_is_allowed_without_credentials() {
        for method in [Method::OPTIONS, Method::GET] {
            let (_, headers) = call("https://a.example,*", method, "https://b.example").await;
            assert_eq!(headers["access-control-allow-origin"], "*");
            assert!(!headers.contains_key("access-control-allow-credentials"));
        }
    }

    #[test]
    fn text_that_no_browser_sends_is_no_origin() {
        for text in
            ["a.example", "https://", "https://a.example/", "https://A.example", "https://u@a.example", "**"]
        {
            assert_eq!(text.parse::<Origins>(), Err(OriginsError), "{text}");
        }
        for (text, count) in
            [("", 0), ("*", 1), ("https://a.example, http://localhost:3000,http://[::1]:80,", 3)]
        {
            assert_eq!(text.parse::<Origins>().unwrap().0.len(), count);
        }
    }
}
