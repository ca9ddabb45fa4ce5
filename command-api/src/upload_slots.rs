//! Slots of concurrent uploads, shared out so that no sender takes all of them.
//!
//! An address gets at most a part of all slots, because accounts are free. An upload whose user is known takes a slot of
//! that user's share. The token may be the last part of a form, so a file
//! that precedes it takes an anonymous slot. There are few of those, and an address gets a part of them. A slot bounds the
//! bytes of its upload, so those limits bound the stored files of unknown senders too.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use metrics::counter;
use parking_lot::Mutex;
use thiserror::Error;
use vidlog_contract::{ApiError, Code};
use vidlog_rate_limits::ClientNetwork;

use crate::{config::CommandConfig, metrics::REFUSED_UPLOADS};

/// `Retry-After` of a refused upload. How long the others take is unknown; a phone's short video takes some seconds.
const RETRY_AFTER_S: u32 = 5;

/// Maximum numbers of slots.
#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    /// All slots.
    pub total: usize,
    /// Slots of a user.
    pub per_user: usize,
    /// Slots of an address.
    pub per_address: usize,
    /// Anonymous slots.
    pub anonymous: usize,
    /// Anonymous slots of an address.
    pub anonymous_per_address: usize,
}

/// The slots. Clones share them.
#[derive(Clone, Debug)]
pub struct UploadSlots(Arc<Slots>);

#[derive(Debug)]
struct Slots {
    limits: SlotLimits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    users: HashMap<i64, usize>,
    addresses: HashMap<ClientNetwork, usize>,
    anonymous: usize,
    anonymous_addresses: HashMap<ClientNetwork, usize>,
}

/// A slot of an upload, released on drop.
#[derive(Debug)]
pub struct UploadSlot {
    slots: UploadSlots,
    /// Address of the client, unless it is unknown.
    network: Option<ClientNetwork>,
    owner: Owner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    User(i64),
    Anonymous,
}

/// Why an upload gets no slot, or loses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SlotRefusal {
    /// The user has too many uploads.
    #[error("you have too many uploads at once; try again when one has ended")]
    User,
    /// The address has too many uploads.
    #[error("too many uploads from this address; try again in a moment")]
    Address,
    /// The address has too many anonymous uploads.
    #[error("too many uploads from this address; try again in a moment, with the token before the file")]
    AnonymousAddress,
    /// There are too many anonymous uploads.
    #[error("too many uploads right now; try again in a moment, with the token before the file")]
    Anonymous,
    /// There are too many uploads.
    #[error("too many uploads right now; try again in a moment")]
    Total,
}

impl SlotLimits {
    /// Returns the limits of the settings. An address gets half of all slots. A quarter of all slots is anonymous, and an
    /// address gets a quarter of those.
    pub fn of(config: &CommandConfig) -> Self {
        let anonymous = config.max_uploads.div_ceil(4);
        Self {
            total: config.max_uploads,
            per_user: config.max_uploads_per_user,
            per_address: config.max_uploads.div_ceil(2),
            anonymous,
            anonymous_per_address: anonymous.div_ceil(4),
        }
    }
}

impl UploadSlots {
    /// Creates free slots.
    pub fn new(limits: SlotLimits) -> Self {
        Self(Arc::new(Slots { limits, taken: Mutex::default() }))
    }

    /// Takes a slot of a user's share. Without a network, no limit of an address applies.
    pub fn take(&self, user: i64, network: Option<ClientNetwork>) -> Result<UploadSlot, SlotRefusal> {
        self.take_for(Owner::User(user), network)
    }

    /// Takes an anonymous slot. Without a network, no limit of an address applies.
    pub fn take_anonymous(&self, network: Option<ClientNetwork>) -> Result<UploadSlot, SlotRefusal> {
        self.take_for(Owner::Anonymous, network)
    }

    /// Returns the number of taken slots.
    pub fn in_use(&self) -> usize {
        self.0.taken.lock().total
    }

    fn take_for(&self, owner: Owner, network: Option<ClientNetwork>) -> Result<UploadSlot, SlotRefusal> {
        let limits = &self.0.limits;
        let mut taken = self.0.taken.lock();
        if taken.total >= limits.total {
            return Err(SlotRefusal::Total);
        }
        if network.as_ref().is_some_and(|network| is_full(&taken.addresses, network, limits.per_address)) {
            return Err(SlotRefusal::Address);
        }
        taken.add(owner, network.as_ref(), limits)?;
        if let Some(network) = &network {
            increment(&mut taken.addresses, network);
        }
        taken.total += 1;
        Ok(UploadSlot { slots: self.clone(), network, owner })
    }
}

impl UploadSlot {
    /// Returns whether the upload's user is unknown.
    pub fn is_anonymous(&self) -> bool {
        self.owner == Owner::Anonymous
    }

    /// Moves the slot to the share of a user. If that is exhausted, the slot remains as it was. It counts towards its
    /// address before and after.
    pub fn assign(&mut self, user: i64) -> Result<(), SlotRefusal> {
        let owner = Owner::User(user);
        if self.owner == owner {
            return Ok(());
        }
        let slots = Arc::clone(&self.slots.0);
        let mut taken = slots.taken.lock();
        taken.add(owner, self.network.as_ref(), &slots.limits)?;
        taken.remove(std::mem::replace(&mut self.owner, owner), self.network.as_ref());
        Ok(())
    }
}

impl Drop for UploadSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.taken.lock();
        taken.remove(self.owner, self.network.as_ref());
        if let Some(network) = &self.network {
            decrement(&mut taken.addresses, network);
        }
        taken.total -= 1;
    }
}

impl Taken {
    /// Counts a slot towards its owner.
    fn add(
        &mut self,
        owner: Owner,
        network: Option<&ClientNetwork>,
        limits: &SlotLimits,
    ) -> Result<(), SlotRefusal> {
        match owner {
            Owner::User(user) => {
                if is_full(&self.users, &user, limits.per_user) {
                    return Err(SlotRefusal::User);
                }
                increment(&mut self.users, &user);
            }
            Owner::Anonymous => {
                if self.anonymous >= limits.anonymous {
                    return Err(SlotRefusal::Anonymous);
                }
                if let Some(network) = network {
                    if is_full(&self.anonymous_addresses, network, limits.anonymous_per_address) {
                        return Err(SlotRefusal::AnonymousAddress);
                    }
                    increment(&mut self.anonymous_addresses, network);
                }
                self.anonymous += 1;
            }
        }
        Ok(())
    }

    fn remove(&mut self, owner: Owner, network: Option<&ClientNetwork>) {
        match owner {
            Owner::User(user) => decrement(&mut self.users, &user),
            Owner::Anonymous => {
                if let Some(network) = network {
                    decrement(&mut self.anonymous_addresses, network);
                }
                self.anonymous -= 1;
            }
        }
    }
}

impl SlotRefusal {
    /// Label in the metrics.
    const fn reason(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Address | Self::AnonymousAddress => "address",
            Self::Anonymous => "anonymous",
            Self::Total => "total",
        }
    }

    /// Returns the error of the refused upload, and counts it.
    pub(crate) fn into_error(self) -> ApiError {
        counter!(REFUSED_UPLOADS, "reason" => self.reason()).increment(1);
        let code = match self {
            Self::User | Self::Address | Self::AnonymousAddress => Code::TooManyRequests,
            Self::Anonymous | Self::Total => Code::Unavailable,
        };
        ApiError::new(code, self.to_string()).retry_after_s(RETRY_AFTER_S)
    }
}

fn is_full<K: Eq + Hash>(counts: &HashMap<K, usize>, key: &K, limit: usize) -> bool {
    counts.get(key).copied().unwrap_or_default() >= limit
}

/// Counts one more for a key.
fn increment<K: Clone + Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    *counts.entry(key.clone()).or_default() += 1;
}

/// Counts one less for a key, and forgets one without slots.
fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: SlotLimits =
        SlotLimits { total: 8, per_user: 2, per_address: 5, anonymous: 4, anonymous_per_address: 2 };

    fn network(number: u8) -> ClientNetwork {
        ClientNetwork::new(&number.to_string())
    }

    #[test]
    fn user_has_a_share() {
        let slots = UploadSlots::new(LIMITS);
        let (first, _second) = (slots.take(1, None).unwrap(), slots.take(1, None).unwrap());
        assert_eq!(slots.take(1, None).unwrap_err(), SlotRefusal::User);
        let _other = slots.take(2, None).unwrap();
        drop(first);
        let _third = slots.take(1, None).unwrap();
    }

    #[test]
    fn address_has_a_part_of_the_anonymous_slots() {
        let slots = UploadSlots::new(LIMITS);
        let _one = [
            slots.take_anonymous(Some(network(1))).unwrap(),
            slots.take_anonymous(Some(network(1))).unwrap(),
        ];
        assert_eq!(slots.take_anonymous(Some(network(1))).unwrap_err(), SlotRefusal::AnonymousAddress);
        let _others = [slots.take_anonymous(Some(network(2))).unwrap(), slots.take_anonymous(None).unwrap()];
        assert_eq!(slots.take_anonymous(Some(network(3))).unwrap_err(), SlotRefusal::Anonymous);
        let _users: Vec<_> = (0..4).map(|user| slots.take(user, None).unwrap()).collect();
        assert_eq!(slots.take(9, None).unwrap_err(), SlotRefusal::Total);
    }

    #[test]
    fn address_has_a_part_of_all_slots() {
        let slots = UploadSlots::new(LIMITS);
        let mut first = slots.take_anonymous(Some(network(1))).unwrap();
        let mut others: Vec<_> = (1..5).map(|user| slots.take(user, Some(network(1))).unwrap()).collect();
        assert_eq!(slots.take(5, Some(network(1))).unwrap_err(), SlotRefusal::Address);
        assert_eq!(slots.take_anonymous(Some(network(1))).unwrap_err(), SlotRefusal::Address);
        // The slot of a user still counts towards its address.
        first.assign(6).unwrap();
        assert_eq!(slots.take(5, Some(network(1))).unwrap_err(), SlotRefusal::Address);
        let _other = slots.take(5, Some(network(2))).unwrap();
        others.pop();
        let _next = slots.take(5, Some(network(1))).unwrap();
    }

    #[test]
    fn assigned_slot_is_no_longer_anonymous() {
        let slots = UploadSlots::new(LIMITS);
        let mut slot = slots.take_anonymous(Some(network(1))).unwrap();
        let _other = slots.take_anonymous(Some(network(1))).unwrap();
        assert_eq!(slots.take_anonymous(Some(network(1))).unwrap_err(), SlotRefusal::AnonymousAddress);
        slot.assign(1).unwrap();
        let _again = slots.take_anonymous(Some(network(1))).unwrap();
        let _second = slots.take(1, None).unwrap();
        let mut third = slots.take_anonymous(None).unwrap();
        assert_eq!(third.assign(1), Err(SlotRefusal::User));
        assert!(third.is_anonymous() && !slot.is_anonymous());
    }

    #[test]
    fn default_settings_leave_most_slots_to_known_users() {
        let config = CommandConfig {
            partitions: 12,
            replication: 1,
            command_mysql_connections: 1,
            max_upload_bytes: 200,
            max_uploads: 64,
            max_uploads_per_user: 4,
        };
        let limits = SlotLimits::of(&config);
        assert_eq!((limits.per_address, limits.anonymous, limits.anonymous_per_address), (32, 16, 4));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(i64, u8),
        TakeAnonymous(u8),
        Assign(usize, i64),
        Release(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4i64, 0..2u8).prop_map(|(user, address)| Step::Take(user, address)),
            (0..2u8).prop_map(Step::TakeAnonymous),
            (0..8usize, 0..4i64).prop_map(|(slot, user)| Step::Assign(slot, user)),
            (0..8usize).prop_map(Step::Release),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// No limit is ever exceeded, and nothing is left once all slots are released.
        #[test]
        fn slots_stay_within_their_limits(steps in steps()) {
            let slots = UploadSlots::new(LIMITS);
            let mut held: Vec<UploadSlot> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(user, address) => held.extend(slots.take(user, Some(network(address)))),
                    Step::TakeAnonymous(address) => held.extend(slots.take_anonymous(Some(network(address)))),
                    Step::Assign(slot, user) => {
                        _ = held.get_mut(slot).map(|slot| slot.assign(user));
                    }
                    Step::Release(slot) => held.truncate(slot),
                }
                let taken = slots.0.taken.lock();
                prop_assert_eq!(taken.total, held.len());
                prop_assert!(taken.total <= LIMITS.total && taken.anonymous <= LIMITS.anonymous);
                prop_assert!(taken.users.values().all(|count| *count <= LIMITS.per_user));
                prop_assert!(taken.addresses.values().all(|count| *count <= LIMITS.per_address));
                prop_assert!(
                    taken.anonymous_addresses.values().all(|count| *count <= LIMITS.anonymous_per_address)
                );
                prop_assert_eq!(taken.addresses.values().sum::<usize>(), taken.total);
                prop_assert_eq!(taken.anonymous + taken.users.values().sum::<usize>(), taken.total);
            }
            held.clear();
            let taken = slots.0.taken.lock();
            prop_assert_eq!((taken.total, taken.anonymous), (0, 0));
            prop_assert!(taken.users.is_empty() && taken.addresses.is_empty() && taken.anonymous_addresses.is_empty());
        }
    }
}
