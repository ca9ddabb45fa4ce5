//! The audit of views that go on while it reads them.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use redis::cmd;
use vidlog_events::Stream;
use vidlog_projectors::{
    audit::{Lines, Model, Report, touched},
    desired_state,
    log::{Partition, Record},
    operator::Operator,
    projections,
    rebuild::Rebuild,
    view::Projection,
};

use crate::{
    folding::cases,
    support::{Running, World, envelope, liked, made_up, until},
};

const T: i64 = 1_700_000_000_000;

fn projection(name: &str) -> Projection {
    projections::find(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_audited_while_they_go_on() {
    let world = World::new().await;
    let running = Running::start(&world);
    // What is never written to again.
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
        // One that is never written to again, two that are all the time.
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
async fn what_is_folded_of_the_dead_letters_meanwhile_is_no_difference() {
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
async fn a_view_that_is_being_rebuilt_is_not_held_for_an_audit() {
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
async fn what_an_event_may_write_to_is_named() {
    let world = World::new().await;
    let keys = &world.target.keys;
    for (events, _) in cases() {
        let (mut model, mut before) = (Model::default(), Lines::new());
        for (envelope, offset) in events.iter().zip(0..) {
            let named: BTreeSet<_> = touched(keys, &envelope.event).into_iter().collect();
            // By the projections.
            let record = [Record { offset, envelope: envelope.clone() }];
            for projection in projections::ALL {
                let written = world.target.view(projection).members_written(&record);
                let written: BTreeSet<_> = written.into_iter().map(|(key, _)| key).collect();
                assert!(written.is_subset(&named), "{projection:?}: {written:?} of {envelope:?}");
            }
            // By the model.
            model.fold(envelope);
            let after = model.lines(keys);
            let changed = |(name, line): &(&String, &String)| before.get(*name) != Some(*line);
            let new = after.iter().filter(changed).map(|(name, _)| name);
            let gone = before.keys().filter(|name| !after.contains_key(*name));
            for name in new.chain(gone).filter(|name| name.starts_with(&world.stores.namespace)) {
                assert!(named.iter().any(|key| key.name == *name), "{name} of {envelope:?}");
            }
            before = after;
        }
    }
}
