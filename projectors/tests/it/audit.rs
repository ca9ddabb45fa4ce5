//! Audits of views that change during the audit.

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
    support::{Running, TestSystem, envelope, liked, random_history, until},
};

const T: i64 = 1_700_000_000_000;

fn projection(name: &str) -> Projection {
    projections::find(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_audited_under_load() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    // No later event changes these keys.
    system.append(&[envelope(liked(900, 901), T)]).await;
    let rounds = AtomicUsize::new(0);
    let operator = Operator::open(&system.log, &system.stores).unwrap();
    let audited = ["likes", "works", "likes-table"].map(projection);
    let audit = async || operator.audit(&audited).await.unwrap();
    let auditing = async {
        let mut records = Vec::new();
        for _ in 0..2 {
            let now = rounds.load(Ordering::Relaxed);
            until("more events are appended", async || rounds.load(Ordering::Relaxed) > now + 5).await;
            let report = audit().await;
            assert!(report.differences.is_empty(), "{:#?}", report.differences);
            records.push(report.records);
        }
        assert!(records.is_sorted_by(|one, next| one < next), "the log grows: {records:?}");
        // No later event changes the first; events change the others all the time.
        let keys = &system.target.keys;
        let planted = [keys.favorites(901), keys.favorites(1), keys.works(100)];
        for key in &planted {
            let plant = cmd("ZADD").arg(key).arg(7).arg(777_777).take();
            assert_eq!(system.target.redis.query::<i64>(&plant).await.unwrap(), 1);
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
        () = load(&system, &rounds) => unreachable!(),
    }
    running.stop().await;
}

/// Planted members of one key; run by hand with two million.
pub(crate) const MANY_MEMBERS: i64 = 100_000;

/// Adds members that no event adds, from a million on.
pub(crate) async fn plant_members(system: &TestSystem, key: &Key, count: i64) {
    let members: Vec<i64> = (1_000_000..1_000_000 + count).collect();
    for members in members.chunks(10_000) {
        let plants: Vec<_> = members.chunks(1000).map(|some| cmd("SADD").arg(key).arg(some).take()).collect();
        system.target.redis.pipeline(&plants).await.unwrap();
    }
}

/// Parses the size of a key in a difference: "7 members", or "7 members with" those that differ.
pub(crate) fn size(side: Option<&String>) -> i64 {
    side.unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_many_members_is_audited_under_load() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    let (likes, rounds) = (projection("likes"), AtomicUsize::new(0));
    let operator = Operator::open(&system.log, &system.stores).unwrap();
    // The load likes its video all the time.
    let key = system.target.keys.likers(1);
    let auditing = async {
        until("events are appended", async || rounds.load(Ordering::Relaxed) > 5).await;
        plant_members(&system, &key, MANY_MEMBERS).await;
        let report = operator.audit(&[likes]).await.unwrap();
        // The projection counts the planted members, so the author's total differs too.
        let author = system.target.keys.favorited(101);
        let names: BTreeSet<_> = report.differences.iter().map(|difference| &difference.name).collect();
        assert!(names.iter().all(|name| **name == key.name || **name == author.name), "{names:?}");
        let difference = report.differences.iter().find(|difference| difference.name == key.name).unwrap();
        let (expected, found) = (size(difference.expected.as_ref()), size(difference.found.as_ref()));
        assert_eq!((&difference.name, found - expected), (&key.name, MANY_MEMBERS), "{difference}");
        assert!(difference.to_string().len() < 1000, "{difference}");
    };
    tokio::select! {
        () = auditing => {},
        () = load(&system, &rounds) => unreachable!(),
    }
    running.stop().await;
}

/// Appends events until it is dropped, and parks two keys that many events change.
async fn load(system: &TestSystem, rounds: &AtomicUsize) {
    let events = random_history(2000);
    for chunk in events.chunks(10).cycle() {
        system.append(chunk).await;
        let video = match rounds.fetch_add(1, Ordering::Relaxed) {
            8 => 5,
            30 => 4,
            _ => continue,
        };
        system.append_garbage(Stream::Likes, &video.to_string()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discards_during_an_audit_are_no_difference() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    let (likes, videos) = (projection("likes"), 1..=6);
    for video in videos.clone() {
        system.append_garbage(Stream::Likes, &video.to_string()).await;
        let behind: Vec<_> = (1..=300).map(|user| envelope(liked(video, user), T + user)).collect();
        system.append(&behind).await;
    }
    let operator = Operator::open(&system.log, &system.stores).unwrap();
    let waiting = async || operator.dead_letters(likes).await.unwrap().as_array().unwrap().clone();
    until("all records are parked", async || {
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
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    let (likes, rounds) = (projection("likes"), AtomicUsize::new(0));
    let operator = Operator::open(&system.log, &system.stores).unwrap();
    let audited = async {
        until("events are appended", async || rounds.load(Ordering::Relaxed) > 5).await;
        // Owns the view's lock.
        let _rebuild = Rebuild::begin(&system.log, &system.stores, likes).await.unwrap();
        match operator.audit(&[likes]).await {
            Ok(report) => assert!(report.differences.is_empty(), "{:#?}", report.differences),
            Err(error) => assert!(error.to_string().contains("another process rebuilds it"), "{error:#}"),
        }
    };
    tokio::select! {
        () = audited => {},
        () = load(&system, &rounds) => unreachable!(),
    }
    let all = desired_state::read(&system.target.mysql).await.unwrap();
    assert_eq!(all.get("likes"), None, "the audit held nothing");
    running.stop().await;
}

#[tokio::test]
async fn touched_lines_include_all_that_an_event_changes() {
    let system = TestSystem::new().await;
    let keys = &system.target.keys;
    for (events, _) in cases() {
        let mut before = BTreeMap::new();
        for (number, envelope) in events.iter().enumerate() {
            let touched: BTreeSet<_> = touched(keys, &envelope.event).into_iter().collect();
            // The members that the projections write.
            let offset = i64::try_from(number).unwrap();
            let record = [Record { offset, envelope: envelope.clone() }];
            for projection in projections::ALL {
                let written = system.target.view(projection).members_written(&record);
                let written: BTreeSet<_> =
                    written.into_iter().map(|(key, member)| LineKey::member(&key.name, member)).collect();
                assert!(written.is_subset(&touched), "{projection:?}: {written:?} of {envelope:?}");
            }
            // The lines that change in the model.
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
