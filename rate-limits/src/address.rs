//! The address of a client behind trusted proxies.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName};
use clap::ValueEnum;
use vidlog_service_kit::serve::network;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// The header to which proxies append the address of their client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`
    XForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

/// The trusted proxies between the clients and this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proxies {
    pub(crate) trusted_hops: usize,
    pub(crate) header: ForwardedHeader,
}

impl Proxies {
    /// Returns the address of the client that the first trusted proxy saw.
    ///
    /// Each proxy appends an entry, so the last `trusted_hops` entries are by trusted proxies, and a client can forge
    /// only entries before them. If an entry is missing or names no address, the nearest trusted proxy that is known
    /// counts as the client.
    ///
    /// `None` if a proxy forwarded the call that is not among the trusted ones: without trusted hops, a peer in the own
    /// network that sends a forwarding header is one. Its address is that of all clients.
    pub(crate) fn client_address(self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let is_forwarded = [X_FORWARDED_FOR, FORWARDED].iter().any(|name| headers.contains_key(name));
        if self.trusted_hops == 0 && is_forwarded && is_private(peer) {
            return None;
        }
        let name = match self.header {
            ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
            ForwardedHeader::Forwarded => FORWARDED,
        };
        let values = headers.get_all(name).into_iter().rev();
        let entries = values
            .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|entry| !entry.is_empty());
        let addresses = entries.take(self.trusted_hops).map_while(|entry| {
            let entry = std::str::from_utf8(entry).ok()?;
            match self.header {
                ForwardedHeader::XForwardedFor => parse_node(entry),
                ForwardedHeader::Forwarded => parse_forwarded(entry),
            }
        });
        Some(addresses.last().unwrap_or(peer))
    }
}

/// Whether an address cannot be that of a client on the internet.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_private() || address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_unique_local() || address.is_loopback() || address.is_unicast_link_local()
        }
    }
}

/// Returns the name of the network that is limited.
pub(crate) fn network_name(address: IpAddr) -> String {
    match network(address) {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(network) => format!("{network}/64"),
    }
}

/// Parses an element of `Forwarded`, such as `for="[2001:db8::1]:80";proto=https`.
fn parse_forwarded(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        name.trim().eq_ignore_ascii_case("for").then(|| parse_node(value))?
    })
}

/// Parses an address with or without a port; IPv6 with or without brackets.
fn parse_node(node: &str) -> Option<IpAddr> {
    let bracketed = || node.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    node.parse()
        .ok()
        .or_else(|| node.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(bracketed)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const PUBLIC_PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

    fn header(name: ForwardedHeader) -> HeaderName {
        HeaderName::from_static(match name {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        })
    }

    fn names() -> impl Strategy<Value = ForwardedHeader> {
        prop_oneof![Just(ForwardedHeader::XForwardedFor), Just(ForwardedHeader::Forwarded)]
    }

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u16; 8]>().prop_map(IpAddr::from)]
    }

    /// An entry as a proxy writes it, in one of the forms that exist.
    fn entry(name: ForwardedHeader, address: IpAddr, form: u8) -> String {
        let node = match (address, form % 3) {
            (address, 0) if name == ForwardedHeader::XForwardedFor => address.to_string(),
            (address, 2) => SocketAddr::new(address, 4711).to_string(),
            (IpAddr::V4(address), _) => address.to_string(),
            (IpAddr::V6(address), _) => format!("[{address}]"),
        };
        match name {
            ForwardedHeader::XForwardedFor => node,
            ForwardedHeader::Forwarded if form < 100 => format!("for=\"{node}\""),
            ForwardedHeader::Forwarded => format!("proto=https; For = \"{node}\";by=_proxy"),
        }
    }

    proptest! {
        /// Whatever a client sends, the address is the one that the first trusted proxy saw.
        #[test]
        fn client_cannot_forge_its_address(
            name in names(),
            forged in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..3),
            trusted in prop::collection::vec((addresses(), any::<u8>(), any::<bool>()), 1..4),
        ) {
            let mut lines: Vec<Vec<u8>> =
                forged.into_iter().filter(|bytes| HeaderValue::from_bytes(bytes).is_ok()).collect();
            for (address, form, own_line) in &trusted {
                let entry = entry(name, *address, *form);
                match lines.last_mut().filter(|_| !own_line) {
                    Some(line) => line.extend_from_slice(format!(", {entry}").as_bytes()),
                    None => lines.push(entry.into_bytes()),
                }
            }
            let headers = lines.iter().map(|line| (header(name), HeaderValue::from_bytes(line).unwrap()));
            let headers: HeaderMap = headers.fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            });
            let proxies = Proxies { trusted_hops: trusted.len(), header: name };
            prop_assert_eq!(proxies.client_address(PEER, &headers), Some(trusted[0].0));
            let untrusted = Proxies { trusted_hops: 0, header: name };
            prop_assert_eq!(untrusted.client_address(PUBLIC_PEER, &headers), Some(PUBLIC_PEER));
            prop_assert_eq!(untrusted.client_address(PEER, &headers), None);
        }

        /// Also an entry that a proxy damaged names an address or none.
        #[test]
        fn any_headers_name_an_address(
            name in names(),
            hops in 0..4_usize,
            address in addresses(),
            lines in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "([0-9a-f:.]{0,15}|[fF]or ?=|[\"\\[\\],;= ]){0,8}".prop_map(String::into_bytes),
            ], 0..3),
        ) {
            let mut headers = HeaderMap::new();
            for line in lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok()) {
                headers.append(header(name), line);
            }
            let proxies = Proxies { trusted_hops: hops, header: name };
            match proxies.client_address(address, &headers) {
                Some(found) => {
                    prop_assert!(hops > 0 || found == address);
                    prop_assert!(network_name(found).trim_end_matches("/64").parse::<IpAddr>().is_ok());
                }
                // The address of an unexpected proxy.
                None => prop_assert!(hops == 0 && is_private(address) && !headers.is_empty()),
            }
        }

        #[test]
        fn addresses_of_a_network_share_its_limit(segments in any::<[u16; 8]>(), host in any::<[u16; 4]>()) {
            let mut other = segments;
            other[4..].copy_from_slice(&host);
            // An IPv4-mapped address is one of IPv4.
            prop_assume!(segments[..4] != [0; 4]);
            prop_assert_eq!(network_name(segments.into()), network_name(other.into()));
            other[3] ^= 1;
            prop_assert_ne!(network_name(segments.into()), network_name(other.into()));
        }
    }

    fn address(hops: usize, name: ForwardedHeader, values: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header(name), HeaderValue::from_str(value).unwrap());
        }
        Proxies { trusted_hops: hops, header: name }.client_address(PEER, &headers).unwrap().to_string()
    }

    #[test]
    fn missing_or_unreadable_entry_ends_at_the_nearest_proxy() {
        use ForwardedHeader::{Forwarded, XForwardedFor};
        assert_eq!(address(1, XForwardedFor, &[]), "10.0.0.1");
        assert_eq!(address(2, XForwardedFor, &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(address(2, XForwardedFor, &["unknown, 192.0.2.1"]), "192.0.2.1");
        assert_eq!(address(3, XForwardedFor, &["192.0.2.9", "nonsense, 192.0.2.1,, "]), "192.0.2.1");
        assert_eq!(address(1, Forwarded, &["for=_hidden"]), "10.0.0.1");
        assert_eq!(address(1, Forwarded, &["for=192.0.2.2;by=x, proto=https"]), "10.0.0.1");
        // The header that is not configured does not count.
        let mut headers = HeaderMap::new();
        headers.append("forwarded", HeaderValue::from_static("for=192.0.2.2"));
        let proxies = Proxies { trusted_hops: 1, header: XForwardedFor };
        assert_eq!(proxies.client_address(PEER, &headers), Some(PEER));
    }

    #[test]
    fn proxy_without_trusted_hops_has_no_client_address() {
        let proxies = Proxies { trusted_hops: 0, header: ForwardedHeader::Forwarded };
        let forwarded = HeaderMap::from_iter([(X_FORWARDED_FOR, HeaderValue::from_static("192.0.2.1"))]);
        for peer in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fd00::1", "fe80::1", "::ffff:172.16.0.1"]
        {
            let peer = peer.parse().unwrap();
            assert_eq!(proxies.client_address(peer, &forwarded), None);
            assert_eq!(proxies.client_address(peer, &HeaderMap::new()), Some(peer));
        }
        for peer in ["203.0.113.1", "2001:db8::1", "::ffff:203.0.113.1"] {
            let peer = peer.parse().unwrap();
            assert_eq!(proxies.client_address(peer, &forwarded), Some(peer));
        }
    }

    #[test]
    fn mapped_ipv4_address_is_one_of_ipv4() {
        assert_eq!(network_name("::ffff:192.0.2.1".parse().unwrap()), "192.0.2.1");
        assert_eq!(network_name("2001:db8:1:2:3::4".parse().unwrap()), "2001:db8:1:2::/64");
    }
}
