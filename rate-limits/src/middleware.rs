//! The middleware of a limited route.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::Response,
};
use parking_lot::Mutex;
use vidlog_contract::{Admission, Admit, ApiError, Params, limits};

use crate::{
    address::network_name,
    gcra::Decision,
    headers,
    limit::Class,
    limiter::{Bucket, RateLimiter},
};

/// The limits of a route, the state of its middleware.
#[derive(Clone)]
pub struct RouteLimits {
    limiter: RateLimiter,
    class: Class,
}

/// The network of a call's client, an extension of its request. Absent if it is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientNetwork(Arc<str>);

impl ClientNetwork {
    /// Returns the network with a name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }
}

/// Middleware: lets the handler's extractor charge the limits, and adds the `RateLimit` headers to the response.
pub async fn limit(State(route): State<RouteLimits>, mut request: Request, next: Next) -> Response {
    let call = Arc::new(route.call(&request));
    request.extensions_mut().insert(Admission::new(call.clone()));
    if let Some(network) = call.network.clone() {
        request.extensions_mut().insert(network);
    }
    let mut response = next.run(request).await;
    headers::add(response.headers_mut(), &call.charged.lock());
    response
}

/// The limits of one call.
struct CallLimits {
    route: RouteLimits,
    /// Unknown if an unexpected proxy forwarded the call: then no limit of an address applies.
    network: Option<ClientNetwork>,
    /// The buckets that the call was charged to.
    charged: Mutex<Vec<(Bucket, Decision)>>,
}

impl RouteLimits {
    /// Returns the limits of a route whose calls are of a class.
    pub fn new(limiter: &RateLimiter, class: Class) -> Self {
        Self { limiter: limiter.clone(), class }
    }

    fn call(&self, request: &Request) -> CallLimits {
        // Without a socket, as in a test, all callers have one address.
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip());
        let address = self.limiter.config().proxies().client_address(peer, request.headers());
        if address.is_none() {
            self.limiter.report_unattributed();
        }
        let network = address.map(|address| ClientNetwork(network_name(address).into()));
        CallLimits { route: self.clone(), network, charged: Mutex::default() }
    }
}

impl CallLimits {
    /// The buckets that the call has not been charged to yet.
    fn uncharged(&self, caller: Option<i64>, params: &Params) -> Vec<Bucket> {
        let RouteLimits { limiter, class } = &self.route;
        let network = self.network.as_ref().map(|network| &network.0);
        let address = network.and_then(|network| limiter.bucket(class.of_address(), network));
        let mut buckets = Vec::from_iter(address);
        if let (Some(limit), Some(caller)) = (class.of_user(), caller) {
            buckets.extend(limiter.bucket(limit, caller));
        }
        // A login with a longer name fails without a look-up. Normalizing it for its bucket would cost more than that.
        if let (Class::Login, Ok(username)) = (class, params.limited_text("username", limits::USERNAME)) {
            buckets.extend(limiter.account_bucket(username));
        }
        let charged = self.charged.lock();
        buckets.retain(|bucket| charged.iter().all(|(other, _)| other.limit != bucket.limit));
        buckets
    }
}

impl Admit for CallLimits {
    fn admit<'a>(
        &'a self,
        caller: Option<i64>,
        params: &'a Params,
    ) -> Pin<Box<dyn Future<Output = Result<(), ApiError>> + Send + 'a>> {
        Box::pin(async move {
            let buckets = self.uncharged(caller, params);
            if buckets.is_empty() {
                return Ok(());
            }
            let charged = self.route.limiter.charge(buckets).await;
            let admitted = charged.iter().try_for_each(|(bucket, decision)| bucket.require(*decision));
            self.charged.lock().extend(charged);
            admitted
        })
    }
}
