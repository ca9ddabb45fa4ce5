//! Parsing of Redis URLs: a server, or the seed nodes of a cluster.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisResult};

/// A parsed Redis URL.
pub(crate) enum Address {
    Single(ConnectionInfo),
    Cluster(Seeds),
}

/// The nodes of a cluster that are asked for the others, and the connection settings of all nodes.
pub(crate) struct Seeds {
    pub(crate) endpoints: Vec<Endpoint>,
    settings: ConnectionInfo,
}

/// The host and port of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Parses a URL: `redis://…` and `rediss://…` are servers; `redis-cluster://user:password@host:port,…/` is a cluster,
    /// `rediss-cluster://…` one with TLS.
    pub(crate) fn parse(url: &str) -> RedisResult<Self> {
        let cluster = [("redis-cluster://", "redis"), ("rediss-cluster://", "rediss")]
            .into_iter()
            .find_map(|(prefix, scheme)| Some((scheme, url.strip_prefix(prefix)?)));
        match cluster {
            Some((scheme, rest)) => Ok(Self::Cluster(Seeds::parse(scheme, rest)?)),
            None => Ok(Self::Single(url.into_connection_info()?)),
        }
    }
}

impl Seeds {
    fn parse(scheme: &str, rest: &str) -> RedisResult<Self> {
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
        let at = if user.is_empty() { "" } else { "@" };
        let mut infos = Vec::new();
        for host in hosts.split(',') {
            let info = format!("{scheme}://{user}{at}{host}{path}").into_connection_info()?;
            if info.redis_settings().db() != 0 {
                return Err((ErrorKind::InvalidClientConfig, "a Redis Cluster has no databases").into());
            }
            infos.push(info);
        }
        let endpoints = infos.iter().filter_map(|info| Endpoint::of(info.addr())).collect();
        let settings = infos.pop().ok_or((ErrorKind::InvalidClientConfig, "the URL names no node"))?;
        Ok(Self { endpoints, settings })
    }

    /// The connection settings of a node: those of the seeds, with its endpoint.
    pub(crate) fn info(&self, endpoint: &Endpoint) -> ConnectionInfo {
        let Endpoint { host, port } = endpoint.clone();
        let address = match self.settings.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.settings.clone().set_addr(address)
    }
}

impl Endpoint {
    /// Parses the `host:port` of a redirection. Without a host it is that of the replying node.
    pub(crate) fn parse(text: &str, replying: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() { &replying.host } else { host };
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }

    fn of(address: &ConnectionAddr) -> Option<Self> {
        match address {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some(Self { host: host.clone(), port: *port })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(url: &str) -> Vec<String> {
        match Address::parse(url).unwrap() {
            Address::Cluster(seeds) => seeds.endpoints.iter().map(ToString::to_string).collect(),
            Address::Single(_) => Vec::new(),
        }
    }

    #[test]
    fn scheme_selects_server_or_cluster() {
        assert!(endpoints("redis://127.0.0.1:6379/").is_empty());
        assert_eq!(endpoints("redis-cluster://one:7000,two/"), ["one:7000", "two:6379"]);
        assert_eq!(endpoints("redis-cluster://one:7000"), ["one:7000"]);
        assert!(Address::parse("redis-cluster://").is_err());
        assert!(Address::parse("redis-cluster://one:7000/1").is_err(), "only database 0");
    }

    #[test]
    fn nodes_inherit_the_settings_of_the_seeds() {
        let Address::Cluster(seeds) =
            Address::parse("rediss-cluster://ada:p%40ss@one:7000,two:7001/?protocol=resp3").unwrap()
        else {
            panic!("not a cluster")
        };
        let other = Endpoint { host: "three".to_owned(), port: 7002 };
        let info = seeds.info(&other);
        assert_eq!(Endpoint::of(info.addr()), Some(other));
        assert!(matches!(info.addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
        assert_eq!(info.redis_settings().username(), Some("ada"));
        assert_eq!(info.redis_settings().password(), Some("p@ss"));
    }

    #[test]
    fn redirection_without_host_uses_replying_node() {
        let replying = Endpoint { host: "one".to_owned(), port: 1 };
        assert_eq!(Endpoint::parse(":7000", &replying).unwrap().to_string(), "one:7000");
        assert_eq!(Endpoint::parse("::1:7000", &replying).unwrap().host, "::1");
        assert_eq!(Endpoint::parse("nothing", &replying), None);
    }
}
