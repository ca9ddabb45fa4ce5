//! Property of parking, on the stores themselves: whichever records fail, wherever batches end, whenever the process
//! crashes and parked keys are retried, the view finally equals the model.

use std::{collections::BTreeSet, time::Duration};

use proptest::{prelude::*, strategy::ValueTree};
use rdkafka::{
    Timestamp,
    message::{Header, OwnedHeaders, OwnedMessage},
};
use tokio::time::timeout;
use vidlog_events::{DecodeError, Envelope, Stream, Topics};
use vidlog_projectors::{
    dead_letters::{ApplyError, BatchApplier, DeadLetterQueue, Outcome, Retry},
    log::{Delivery, Log, Partition, Record},
    projections,
    store::{SharedStore, parked_key::ParkedKeyStore},
};

use crate::{
    folding::{assert_equals_model, partitions},
    support::{DEADLINE, TestSystem, case_runner, envelope, history, liked, unliked},
};

/// Number of histories.
const CASES: usize = 4;
const LENGTH: usize = 600;
/// Projections for which the order of events matters, in both stores, and one with two stages.
const PROJECTIONS: [&str; 4] = ["likes", "likes-table", "follows", "messages-table"];

/// How a history is folded.
#[derive(Clone, Debug)]
struct Case {
    events: Vec<Envelope>,
    /// The records that the folding program can't decode; the retrying one can.
    failing: BTreeSet<i64>,
    /// Sizes of batches.
    cuts: Vec<usize>,
    /// Delays after the start of a batch until the process crashes, in tenths of a millisecond; `None` without a crash.
    crashes: Vec<Option<u64>>,
    /// The batches after which parked records are retried.
    retries: BTreeSet<usize>,
}

#[tokio::test(flavor = "multi_thread")]
async fn views_equal_the_model_after_all_retries() {
    let mut runner = case_runner();
    for _ in 0..CASES {
        let case = case().new_tree(&mut runner).unwrap().current();
        let system = TestSystem::new().await;
        for projection in projections::ALL {
            let store = system.target.view(projection);
            let streams: Vec<_> = projection.streams().collect();
            for (partition, records) in partitions(&streams, &case.events) {
                if PROJECTIONS.contains(&projection.name()) {
                    fold(&system, &store, partition, &records, &case).await;
                } else {
                    let mut position = store.positions(&[partition]).await.unwrap().remove(0);
                    let end = i64::try_from(records.len()).unwrap();
                    store.apply(partition, &mut position, &records, end).await.unwrap();
                }
            }
            retry_all(&system, &store).await;
            assert!(store.parked().await.unwrap().is_empty(), "{projection:?}");
        }
        assert_equals_model(&system, &case.events).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_retry_of_an_unparked_key_does_not_begin() {
    for name in ["likes", "likes-table"] {
        let system = TestSystem::new().await;
        let store = system.target.view(projections::find(name).unwrap());
        let partition = Partition { stream: Stream::Likes, number: 0 };
        let records: Vec<_> = [liked(1, 1), unliked(1, 1)]
            .into_iter()
            .zip(0..)
            .map(|(event, offset)| Record { offset, envelope: envelope(event, 1_700_000_000_000 + offset) })
            .collect();
        let position = store.positions(&[partition]).await.unwrap().remove(0);
        let mut applier =
            BatchApplier::open(store.clone(), queue(&system), partition, position).await.unwrap();
        applier.apply(&[delivery(&system, partition, &records[0], &[0].into())]).await.unwrap();
        applier.align(1).await.unwrap();
        let (key, parked) = store.parked().await.unwrap().remove(&partition).unwrap().pop_first().unwrap();

        // A retry that has read the state of the parked key, and then is suspended.
        let suspended = ParkedKeyStore::new(store.clone(), partition, key);
        assert!(suspended.begin(&parked).await.unwrap().is_some());
        retry_all(&system, &store).await;
        applier.apply(&[delivery(&system, partition, &records[1], &[].into())]).await.unwrap();

        assert_eq!(suspended.begin(&parked).await.unwrap(), None, "{name}");
    }
}

fn case() -> impl Strategy<Value = Case> {
    let crash = prop::option::weighted(0.4, 0..60_u64);
    (
        history(LENGTH),
        prop::collection::btree_set(0..50_i64, 3..9),
        prop::collection::vec(1..9_usize, 1..8),
        prop::collection::vec(crash, 1..12),
        prop::collection::btree_set(0..12_usize, 0..3),
    )
        .prop_map(|(events, failing, cuts, crashes, retries)| Case {
            events,
            failing,
            cuts,
            crashes,
            retries,
        })
}

fn queue(system: &TestSystem) -> DeadLetterQueue {
    DeadLetterQueue::new(Log {
        brokers: system.log.kafka_brokers.clone(),
        topics: Topics::new(&system.stores.namespace),
    })
}

/// Folds a partition with programs that can't decode some records, and that crash.
async fn fold(
    system: &TestSystem,
    store: &SharedStore,
    partition: Partition,
    records: &[Record],
    case: &Case,
) {
    let queue = queue(system);
    let end = i64::try_from(records.len()).unwrap();
    let (mut cuts, mut crashes) = (case.cuts.iter().cycle(), case.crashes.iter().cycle());
    let (mut applied, mut runs) = (0, 0);
    'runs: loop {
        runs += 1;
        assert!(runs < 1000, "the fold does not end");
        // Every third program can decode all records.
        let failing = if runs % 3 == 0 { &BTreeSet::new() } else { &case.failing };
        let position = store.positions(&[partition]).await.unwrap().remove(0);
        let mut next = position.lowest();
        let mut applier =
            BatchApplier::open(store.clone(), queue.clone(), partition, position).await.unwrap();
        while next < end {
            let size = i64::try_from(*cuts.next().unwrap()).unwrap();
            let batch: Vec<_> = records
                .iter()
                .filter(|record| (next..next + size).contains(&record.offset))
                .map(|record| delivery(system, partition, record, failing))
                .collect();
            let limit =
                crashes.next().unwrap().map_or(DEADLINE, |tenths| Duration::from_micros(tenths * 100));
            match timeout(limit, applier.apply(&batch)).await {
                Ok(Ok(())) => {}
                // A crash, or a late write of an earlier run.
                Err(_) | Ok(Err(ApplyError::Store(_))) => continue 'runs,
                Ok(Err(error)) => panic!("{error}"),
            }
            next = (next + size).min(end);
            applied += 1;
            if case.retries.contains(&applied) {
                applier.align(next).await.unwrap();
                let parked = store.parked().await.unwrap().remove(&partition).unwrap_or_default();
                // An earlier run may have parked records that this one has not reached. A retry would wait for them.
                if parked.values().all(|parked| parked.last < next) {
                    retry_all(system, store).await;
                }
            }
        }
        applier.align(end).await.unwrap();
        return;
    }
}

async fn retry_all(system: &TestSystem, store: &SharedStore) {
    let retry = Retry::new(store.clone(), queue(system));
    for (partition, keys) in store.parked().await.unwrap() {
        for key in keys.keys() {
            assert_eq!(retry.key(partition, key).await.unwrap(), Outcome::Folded);
        }
    }
}

/// A record as a program receives it that can't decode some.
fn delivery(system: &TestSystem, partition: Partition, record: &Record, failing: &BTreeSet<i64>) -> Delivery {
    let encoded = record.envelope.encode().unwrap();
    let mut headers = OwnedHeaders::new();
    for (key, value) in &encoded.headers {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    let message = OwnedMessage::new(
        Some(encoded.value),
        Some(encoded.key.into_bytes()),
        Topics::new(&system.stores.namespace).name(partition.stream),
        Timestamp::CreateTime(encoded.timestamp_ms),
        partition.number,
        record.offset,
        Some(headers),
    );
    let decoded = if failing.contains(&record.offset) {
        Err(DecodeError::UnknownType { stream: partition.stream, name: "of a later version".to_owned() })
    } else {
        Ok(record.envelope.clone())
    };
    Delivery { message, decoded }
}
