//! Node number leases are claimed, renewed, lost and released, and no id repeats.

use std::collections::HashSet;

use futures::future::try_join_all;
use vidlog_command_api::{
    ids::{IdGenerator, NODES},
    lease::{claim, release, renew},
};
use vidlog_schemas::MIGRATOR;
use vidlog_service_kit::clock::Clock;

use crate::support::{World, until};

const NOW: i64 = 1_800_000_000_000;
const LEASE_MS: i64 = 30_000;

async fn setup() -> World {
    let world = World::new().await;
    MIGRATOR.run(&world.mysql).await.unwrap();
    world
}

/// Generates up to `most` ids, or as many as the lease allows.
fn take(ids: &IdGenerator, most: usize) -> Vec<i64> {
    (0..most).map_while(|_| ids.next().ok()).collect()
}

fn assert_all_differ(ids: &[i64]) {
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
}

#[tokio::test]
async fn concurrent_claims_get_the_lowest_free_numbers() {
    let world = setup().await;
    let held = try_join_all((0..8).map(|_| claim(&world.mysql, NOW))).await.unwrap();
    let mut nodes: Vec<_> = held.iter().map(|held| held.as_ref().unwrap().lease.node).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, (0..8).collect::<Vec<_>>());

    let third = held.iter().flatten().find(|held| held.lease.node == 3).unwrap();
    release(&world.mysql, third, NOW + 5).await.unwrap();
    let next = claim(&world.mysql, NOW + 5).await.unwrap().unwrap();
    assert_eq!((next.lease.node, next.lease.from_ms), (3, NOW + 5));
}

#[tokio::test]
async fn claims_fail_when_all_numbers_are_leased() {
    let world = setup().await;
    for _ in 0..NODES {
        assert!(claim(&world.mysql, NOW).await.unwrap().is_some());
    }
    assert!(claim(&world.mysql, NOW).await.unwrap().is_none());
    assert!(claim(&world.mysql, NOW + LEASE_MS).await.unwrap().is_some());
}

#[tokio::test]
async fn only_the_holder_can_renew_a_lease() {
    let world = setup().await;
    let first = claim(&world.mysql, NOW).await.unwrap().unwrap();
    assert_eq!(renew(&world.mysql, &first, NOW + 60_000).await.unwrap(), Some(NOW + 60_000));
    assert!(claim(&world.mysql, NOW + LEASE_MS).await.unwrap().unwrap().lease.node != first.lease.node);

    // The lease expires, and another instance claims the number.
    let second = claim(&world.mysql, NOW + 60_000).await.unwrap().unwrap();
    assert_eq!((second.lease.node, second.lease.from_ms), (first.lease.node, NOW + 60_000));
    assert_eq!(renew(&world.mysql, &first, NOW + 90_000).await.unwrap(), None);
    release(&world.mysql, &first, NOW).await.unwrap();
    assert!(renew(&world.mysql, &second, NOW + 95_000).await.unwrap().is_some());
}

#[tokio::test]
async fn ids_never_collide_despite_clock_jumps() {
    let world = setup().await;
    let clocks = [Clock::fixed(NOW), Clock::fixed(NOW)];
    let generators = clocks.clone().map(IdGenerator::new);
    for ids in &generators {
        ids.start_lease(claim(&world.mysql, NOW).await.unwrap().unwrap().lease);
    }
    let mut all = Vec::new();
    for step in [0, 0, -5_000, 3, -1] {
        for (clock, ids) in clocks.iter().zip(&generators) {
            clock.set(clock.now_ms() + step);
            all.extend(take(ids, 1_000));
        }
    }
    assert_eq!(all.len(), 10_000);
    assert_all_differ(&all);
}

#[tokio::test]
async fn unreleased_lease_repeats_no_id_across_clocks() {
    let world = setup().await;
    // The first holder's clock is an hour ahead when it crashes.
    let ahead = IdGenerator::new(Clock::fixed(NOW + 3_600_000));
    ahead.start_lease(claim(&world.mysql, NOW + 3_600_000).await.unwrap().unwrap().lease);
    let before = take(&ahead, 100_000);

    // No instance can claim the number before the lease expires by its own clock.
    let other = claim(&world.mysql, NOW).await.unwrap().unwrap().lease;
    assert_eq!(other.node, 1);
    let later = NOW + 3_600_000 + LEASE_MS;
    let next = claim(&world.mysql, later).await.unwrap().unwrap().lease;
    assert_eq!(next.node, 0);
    // Then the next holder's clock is set back to the correct time.
    let behind = IdGenerator::new(Clock::fixed(NOW));
    behind.start_lease(next);
    let after = take(&behind, 100_000);
    assert!(before.iter().max() < after.iter().min());
}

#[tokio::test]
async fn expired_lease_taken_over_repeats_no_id() {
    let world = setup().await;
    let slow = IdGenerator::new(Clock::fixed(NOW));
    slow.start_lease(claim(&world.mysql, NOW).await.unwrap().unwrap().lease);
    // The lease has expired by the clock of an instance that is ahead, but not by that of the holder.
    let fast = IdGenerator::new(Clock::fixed(NOW + LEASE_MS));
    fast.start_lease(claim(&world.mysql, NOW + LEASE_MS).await.unwrap().unwrap().lease);
    let mut all = take(&fast, 10_000);
    all.extend(take(&slow, usize::MAX));
    assert_all_differ(&all);
    assert!(slow.next().is_err());
}

#[tokio::test]
async fn stopping_instance_releases_its_number() {
    let (world, api) = World::with_api().await;
    let last = api.state.ids.next().unwrap();
    assert_eq!(holders(&world).await, 1);
    api.stop().await;
    assert_eq!(holders(&world).await, 0);
    let api = world.ready_api().await;
    let next = api.state.ids.next().unwrap();
    assert!(next > last);
    assert_eq!(node_of(next), node_of(last));
}

#[tokio::test]
async fn instance_that_lost_its_lease_claims_another() {
    let (world, api) = World::with_api().await;
    let last = api.state.ids.next().unwrap();
    assert_eq!(node_of(last), 0);
    let steal = sqlx::query("UPDATE node_leases SET holder = 'thief' WHERE node = 0");
    steal.execute(&world.mysql).await.unwrap();
    until("the instance has another number", async || api.state.ids.next().is_ok_and(|id| node_of(id) == 1))
        .await;
    assert!(api.state.ids.next().unwrap() > last);
    assert_eq!(holders(&world).await, 2);
}

async fn holders(world: &World) -> i64 {
    let held = "SELECT COUNT(*) FROM node_leases WHERE holder <> ''";
    sqlx::query_scalar(held).fetch_one(&world.mysql).await.unwrap()
}

const fn node_of(id: i64) -> i64 {
    (id >> 6) & 63
}
