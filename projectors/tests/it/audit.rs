//! Audits of views that are written to meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use redis::cmd;
use vidlog_events::{Envelope, Stream};
use vidlog_projectors::{
    audit::{Model, Report, touched},
    comparison::LineKey,
    desired_state,
    log::{Partition, Record},
    operator::Operator,
    projections,
    rebuild::Rebuild,
    view::Projection,
};
use vidlog_schemas::{Keys, keys::Key};

use crate::{
    folding::cases,
    support::{Running, World, envelope, liked, made_up, until},
};

const T: i64 = 1_700_000_000_000;

fn projection(name: &str) -> Projection {
    projections::find(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_audited_under_load() {
    let world = World::new().await;
    let running = Running::start(&world);
    // Never written to again.
    world.append(&[envelope(liked(900, 901), T)]).await;
    let rounds = AtomicUsize::new(0);
    let operator = Operator::open(&world.log, &world.stores).unwrap();
    let audited = ["likes", "works", "likes-table"].map(projection);
    let audit = async || operator.audit(&audited).await.unwrap();
    let auditing = async {
        let mut records = Vec::new();
        for _ in 0..2 {
            let now = rounds.load(Ordering::Relaxed);
            until("more is appended", async || rounds.load(Ordering::Relaxed) > now + 5).await;
            let report = audit().await;
            assert!(report.differences.is_empty(), "{:#?}", report.differences);
            records.push(report.records);
        }
        assert!(records.is_sorted_by(|one, next| one < next), "it grew meanwhile: {records:?}");
        // The first is never written to again, the others all the time.
        let keys = &world.target.keys;
        let planted = [keys.favorites(901), keys.favorites(1), keys.works(100)];
        for key in &planted {
            let plant = cmd("ZADD").arg(key).arg(7).arg(777_777).take();
            assert_eq!(world.target.redis.query::<i64>(&plant).await.unwrap(), 1);
        }
        let report: Report = audit().await;
        let found: BTreeSet<_> =
            report.differences.iter().map(|difference| difference.name.clone()).collect();
        assert_eq!(found, planted.map(|key| key.name).into(), "{:#?}", report.differences);
        for difference in &report.differences {
            assert!(difference.found.as_ref().is_some_and(|found| found.contains("777777=7")));
        }
    };
    tokio::select! {
        () = auditing => {},
        () = load(&world, &rounds) => unreachable!(),
    }
    running.stop().await;
}

/// Members that one key gets in addition; with two million of them this test was run by hand.
pub(crate) const MANY_MEMBERS: i64 = 100_000;

/// Adds members that no event accounts for, from a million on.
pub(crate) async fn plant_members(world: &World, key: &Key, count: i64) {
    let members: Vec<i64> = (1_000_000..1_000_000 + count).collect();
    for members in members.chunks(10_000) {
        let plants: Vec<_> = members.chunks(1000).map(|some| cmd("SADD").arg(key).arg(some).take()).collect();
        world.target.redis.all(&plants).await.unwrap();
    }
}

/// The size of a key in a difference: it is shown as "7 members", or as "7 members with" those that differ.
pub(crate) fn size(side: Option<&String>) -> i64 {
    side.unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_many_members_is_audited_under_load() {
    let world = World::new().await;
    let running = Running::start(&world);
    let (likes, rounds) = (projection("likes"), AtomicUsize::new(0));
    let operator = Operator::open(&world.log, &world.stores).unwrap();
    // Its video is liked all the time.
    let key = world.target.keys.likers(1);
    let auditing = async {
        until("something is appended", async || rounds.load(Ordering::Relaxed) > 5).await;
        plant_members(&world, &key, MANY_MEMBERS).await;
        let report = operator.audit(&[likes]).await.unwrap();
        // The projection counts what it finds in the key, so the author's total differs too.
        let author = world.target.keys.favorited(101);
        let names: BTreeSet<_> = report.differences.iter().map(|difference| &difference.name).collect();
        assert!(names.iter().all(|name| **name == key.name || **name == author.name), "{names:?}");
        let difference = report.differences.iter().find(|difference| difference.name == key.name).unwrap();
        let (expected, found) = (size(difference.expected.as_ref()), size(difference.found.as_ref()));
        assert_eq!((&difference.name, found - expected), (&key.name, MANY_MEMBERS), "{difference}");
        assert!(difference.to_string().len() < 1000, "{difference}");
    };
    tokio::select! {
        () = auditing => {},
        () = load(&world, &rounds) => unreachable!(),
    }
    running.stop().await;
}

/// Appends without end. Keys that much is done to are parked on the way.
async fn load(world: &World, rounds: &AtomicUsize) {
    let events = made_up(2000);
    for chunk in events.chunks(10).cycle() {
        world.append(chunk).await;
        let video = match rounds.fetch_add(1, Ordering::Relaxed) {
            8 => 5,
            30 => 4,
            _ => continue,
        };
        world.append_garbage(Stream::Likes, &video.to_string()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discards_during_an_audit_are_no_difference() {
    let world = World::new().await;
    let running = Running::start(&world);
    let (likes, videos) = (projection("likes"), 1..=6);
    for video in videos.clone() {
        world.append_garbage(Stream::Likes, &video.to_string()).await;
        let behind: Vec<_> = (1..=300).map(|user| envelope(liked(video, user), T + user)).collect();
        world.append(&behind).await;
    }
    let operator = Operator::open(&world.log, &world.stores).unwrap();
    let waiting = async || operator.dead_letters(likes).await.unwrap().as_array().unwrap().clone();
    until("all of it waits", async || {
        let all = waiting().await;
        all.len() == videos.clone().count() && all.iter().all(|key| key["waiting"] == 301)
    })
    .await;

    let is_done = AtomicBool::new(false);
    let discarding = async {
        for key in waiting().await {
            let number = key["partition"].as_str().and_then(|name| name.strip_prefix("likes:")).unwrap();
            let partition = Partition { stream: Stream::Likes, number: number.parse().unwrap() };
            operator.discard(likes, partition, key["first_offset"].as_i64().unwrap()).await.unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
    };
    let auditing = async {
        while !is_done.load(Ordering::Relaxed) {
            match operator.audit(&[likes]).await {
                Ok(report) => assert!(report.differences.is_empty(), "{:#?}", report.differences),
                Err(error) => assert!(error.to_string().contains("run it again"), "{error:#}"),
            }
        }
    };
    tokio::join!(discarding, auditing);
    let report = operator.audit(&[likes]).await.unwrap();
    assert!(report.differences.is_empty(), "{:#?}", report.differences);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_does_not_hold_a_view_under_rebuild() {
    let world = World::new().await;
    let running = Running::start(&world);
    let (likes, rounds) = (projection("likes"), AtomicUsize::new(0));
    let operator = Operator::open(&world.log, &world.stores).unwrap();
    let audited = async {
        until("something is appended", async || rounds.load(Ordering::Relaxed) > 5).await;
        // It has the view's lock.
        let _rebuild = Rebuild::begin(&world.log, &world.stores, likes).await.unwrap();
        match operator.audit(&[likes]).await {
            Ok(report) => assert!(report.differences.is_empty(), "{:#?}", report.differences),
            Err(error) => assert!(error.to_string().contains("as it is being rebuilt"), "{error:#}"),
        }
    };
    tokio::select! {
        () = audited => {},
        () = load(&world, &rounds) => unreachable!(),
    }
    let all = desired_state::read(&world.target.mysql).await.unwrap();
    assert_eq!(all.get("likes"), None, "nothing was ever asked of it");
    running.stop().await;
}

#[tokio::test]
async fn touched_lines_include_all_that_an_event_changes() {
    let world = World::new().await;
    let keys = &world.target.keys;
    for (events, _) in cases() {
        let mut before = BTreeMap::new();
        for (number, envelope) in events.iter().enumerate() {
            let touched: BTreeSet<_> = touched(keys, &envelope.event).into_iter().collect();
            // By the projections.
            let offset = i64::try_from(number).unwrap();
            let record = [Record { offset, envelope: envelope.clone() }];
            for projection in projections::ALL {
                let written = world.target.view(projection).members_written(&record);
                let written: BTreeSet<_> =
                    written.into_iter().map(|(key, member)| LineKey::member(&key.name, member)).collect();
                assert!(written.is_subset(&touched), "{projection:?}: {written:?} of {envelope:?}");
            }
            // By the model.
            let after = lines(keys, &events[..=number]);
            let changed = |(key, content): &(&LineKey, &String)| before.get(*key) != Some(*content);
            let new = after.iter().filter(changed).map(|(key, _)| key);
            let gone = before.keys().filter(|key| !after.contains_key(*key));
            for key in new.chain(gone).filter(|key| key.redis().is_some()) {
                assert!(touched.contains(key), "{key:?} of {envelope:?}");
            }
            before = after;
        }
    }
}

fn lines(keys: &Keys, events: &[Envelope]) -> BTreeMap<LineKey, String> {
    const MEMORY: usize = 1 << 20;
    let mut model = Model::new(MEMORY);
    for envelope in events {
        model.fold(envelope).unwrap();
    }
    let lines = model.into_lines(&projections::ALL, keys, MEMORY).unwrap();
    lines.sorted().unwrap().collect::<Result<_, _>>().unwrap()
}
