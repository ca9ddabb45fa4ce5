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
use vidlog_contract::{Admission, Admit, ApiError, Params};

use crate::{
    address::network,
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

/// The network of a call's client, an extension of its request.
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
    request.extensions_mut().insert(call.network.clone());
    let mut response = next.run(request).await;
    headers::add(response.headers_mut(), &call.charged.lock());
    response
}

/// The limits of one call.
struct CallLimits {
    route: RouteLimits,
    network: ClientNetwork,
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
        CallLimits {
            route: self.clone(),
            network: ClientNetwork(network(address).into()),
            charged: Mutex::default(),
        }
    }
}

impl CallLimits {
    /// The buckets that the call has not been charged to yet.
    fn uncharged(&self, caller: Option<i64>, params: &Params) -> Vec<Bucket> {
        let RouteLimits { limiter, class } = &self.route;
        let mut buckets = limiter.bucket(class.of_address(), &self.network.0).into_iter().collect::<Vec<_>>();
        if let (Some(limit), Some(caller)) = (class.of_user(), caller) {
            buckets.extend(limiter.bucket(limit, caller));
        }
        if let (Class::Login, Ok(Some(username))) = (class, params.optional("username")) {
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
