//! What connects to a server.

use std::net::{IpAddr, Ipv6Addr};

/// What connects to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Clients: each address is one of them, or some.
    Clients,
    /// Proxies: each has connections of many clients.
    Proxies,
}

/// Returns what counts as one client: an IPv4 address, or the /64 of an IPv6 address, all of which one subscriber has.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}
