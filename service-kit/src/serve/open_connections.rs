//! The open connections of a server, and which of them makes room for a new one.
//!
//! Room is shared by networks: a new connection replaces one of the network that has the most, so one address can't keep
//! others out, however many connections it opens and whatever it does with them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::peers::Peers;

/// A network loses no busy connection while it has at most one in this many of all connections, 64 by default: more than
/// a phone opens, so that phones keep theirs when all of them together exceed the limit.
const PROTECTED_SHARE: usize = 64;

/// The open connections by network. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenConnections(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    networks: HashMap<IpAddr, Network>,
}

#[derive(Debug, Default)]
struct Network {
    /// All connections, also those that are about to open or to close.
    count: usize,
    /// Those that can be closed: idle ones first, in the order in which they became what they are.
    closable: BTreeMap<(Activeness, u64), Closer>,
}

/// Whether a connection can be closed without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Activeness {
    /// It has no request.
    Idle,
    /// The head of a request is arriving.
    Head,
    /// A request is being handled, or data is being sent.
    Busy,
}

/// Closes a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Closer {
    /// Closes it once it has no request.
    pub(super) close: CancellationToken,
    /// Closes it at once.
    pub(super) abort: CancellationToken,
}

/// A connection's entry; dropping it removes it.
#[derive(Debug)]
pub(super) struct Entry {
    connections: OpenConnections,
    network: IpAddr,
    closer: Closer,
    /// Absent until the connection has begun.
    key: Option<(Activeness, u64)>,
}

impl OpenConnections {
    /// Counts a connection of a network. It can be closed once its activity is recorded.
    pub(super) fn add(&self, network: IpAddr, closer: Closer) -> Entry {
        self.entries().networks.entry(network).or_default().count += 1;
        Entry { connections: self.clone(), network, closer, key: None }
    }

    /// Closes a connection to make room for another, new one. Returns what the closed one was, or `None` if the new one
    /// must be refused.
    ///
    /// An idle connection is closed first, of the network that has the most of those with at least as many connections
    /// as the network of the new one. A busy one is closed if its network still has at least as many afterwards, and only
    /// if the peers are clients: a proxy's connections are those of many clients.
    pub(super) fn make_room(&self, new: &Entry, limit: usize, peers: Peers) -> Option<Activeness> {
        let mut entries = self.entries();
        let own = entries.networks.get(&new.network).map_or(0, |network| network.count);
        let first = |network: &Network| network.closable.keys().next().copied();
        let idle = entries
            .networks
            .values_mut()
            .filter(|network| network.count + 1 >= own)
            .filter(|network| first(network).is_some_and(|(activeness, _)| activeness == Activeness::Idle))
            .max_by_key(|network| (network.count, Reverse(first(network))));
        let chosen = match (idle, peers) {
            (Some(network), _) => network,
            (None, Peers::Proxies) => return None,
            (None, Peers::Clients) => entries
                .networks
                .values_mut()
                .filter(|network| network.count > own && network.count > limit / PROTECTED_SHARE)
                .filter(|network| !network.closable.is_empty())
                .max_by_key(|network| network.count)?,
        };
        let ((activeness, _), closer) = chosen.closable.pop_first()?;
        match activeness {
            Activeness::Idle => closer.close.cancel(),
            Activeness::Head | Activeness::Busy => closer.abort.cancel(),
        }
        Some(activeness)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Returns the network of the connection.
    pub(super) const fn network(&self) -> IpAddr {
        self.network
    }

    /// Returns what closes the connection.
    pub(super) const fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Records what the connection does. No effect if it is what it was, or once the connection was chosen to close.
    pub(super) fn set(&mut self, activeness: Activeness) {
        let mut entries = self.connections.entries();
        let number = entries.next;
        entries.next += 1;
        let Some(network) = entries.networks.get_mut(&self.network) else { return };
        let closer = match self.key {
            None => self.closer.clone(),
            Some((present, _)) if present == activeness => return,
            Some(key) => match network.closable.remove(&key) {
                Some(closer) => closer,
                None => return,
            },
        };
        self.key = Some((activeness, number));
        network.closable.insert((activeness, number), closer);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut entries = self.connections.entries();
        if let Some(network) = entries.networks.get_mut(&self.network) {
            network.count -= 1;
            if let Some(key) = self.key {
                network.closable.remove(&key);
            }
            if network.count == 0 {
                entries.networks.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn network(number: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, number).into()
    }

    fn open(connections: &OpenConnections, number: u8, activeness: Activeness) -> Entry {
        let mut entry = connections.add(network(number), Closer::default());
        entry.set(activeness);
        entry
    }

    fn is_closed(entry: &Entry) -> (bool, bool) {
        (entry.closer.close.is_cancelled(), entry.closer.abort.is_cancelled())
    }

    #[test]
    fn network_with_the_most_connections_makes_room() {
        use Activeness::{Busy, Head, Idle};
        let connections = OpenConnections::default();
        let _small = [open(&connections, 1, Idle), open(&connections, 2, Busy)];
        let large = [Busy, Idle, Head, Idle].map(|activeness| open(&connections, 3, activeness));
        let new = connections.add(network(4), Closer::default());
        let make_room = || connections.make_room(&new, 4, Peers::Clients);
        assert_eq!([make_room(), make_room()], [Some(Idle), Some(Idle)]);
        assert_eq!((is_closed(&large[1]), is_closed(&large[3])), ((true, false), (true, false)));
        // An idle connection goes first, also of a smaller network.
        assert_eq!([make_room(), make_room(), make_room()], [Some(Idle), Some(Head), Some(Busy)]);
        assert_eq!((is_closed(&large[2]), is_closed(&large[0])), ((false, true), (false, true)));
        // The last one is not above the new one's network.
        assert_eq!(make_room(), None);
    }

    #[test]
    fn network_with_the_most_connections_gets_no_more() {
        use Activeness::{Busy, Idle};
        let connections = OpenConnections::default();
        let _others = [open(&connections, 1, Idle), open(&connections, 2, Idle)];
        let _large: Vec<_> = (0..8).map(|_| open(&connections, 3, Busy)).collect();
        let new = connections.add(network(3), Closer::default());
        assert_eq!(connections.make_room(&new, 8, Peers::Clients), None);
        // It replaces its own.
        let own = open(&connections, 3, Idle);
        assert_eq!(connections.make_room(&new, 8, Peers::Clients), Some(Idle));
        assert_eq!(is_closed(&own), (true, false));
    }

    #[test]
    fn busy_connections_of_proxies_and_small_networks_stay() {
        let connections = OpenConnections::default();
        let _large: Vec<_> = (0..8).map(|_| open(&connections, 3, Activeness::Busy)).collect();
        let new = connections.add(network(4), Closer::default());
        assert_eq!(connections.make_room(&new, 8, Peers::Proxies), None);
        assert_eq!(connections.make_room(&new, 8 * PROTECTED_SHARE, Peers::Clients), None);
        assert_eq!(
            connections.make_room(&new, 8 * PROTECTED_SHARE - 1, Peers::Clients),
            Some(Activeness::Busy)
        );
    }

    #[test]
    fn connection_chosen_to_close_is_not_chosen_again() {
        let connections = OpenConnections::default();
        let new = connections.add(network(4), Closer::default());
        let mut closing = open(&connections, 3, Activeness::Idle);
        assert!(connections.make_room(&new, 1, Peers::Clients).is_some());
        closing.set(Activeness::Busy);
        closing.set(Activeness::Idle);
        assert_eq!(connections.make_room(&new, 1, Peers::Clients), None);
        drop((closing, new));
        assert!(connections.entries().networks.is_empty());
    }
}
