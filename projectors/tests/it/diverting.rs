//! Laws of diverting, on the stores themselves: whichever records fail, wherever the log is cut, whenever the process
//! dies and whenever what waits is retried, the view comes to what the model says.

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
    support::{DEADLINE, World, case_runner, envelope, history, liked, unliked},
};

/// Histories that the law is tried on.
const CASES: usize = 4;
const LENGTH: usize = 600;
/// Those of which the order of events matters, in both stores, and the one with two stages.
const PROJECTIONS: [&str; 4] = ["likes", "likes-table", "follows", "messages-table"];

/// How a history is folded.
#[derive(Clone, Debug)]
struct Case {
    events: Vec<Envelope>,
    /// The records that the program which folds can't read; the one that retries can.
    failing: BTreeSet<i64>,
    /// Sizes of batches.
    cuts: Vec<usize>,
    /// How long the process lives while a batch is taken in, in tenths of a millisecond; `None` if it does not die.
    deaths: Vec<Option<u64>>,
    /// The batches after which parked records are retried.
    retries: BTreeSet<usize>,
}

#[tokio::test(flavor = "multi_thread")]
async fn views_equal_the_model_after_all_retries() {
    let mut runner = case_runner();
    for _ in 0..CASES {
        let case = case().new_tree(&mut runner).unwrap().current();
        let world = World::new().await;
        for projection in projections::ALL {
            let sink = world.target.view(projection);
            let streams: Vec<_> = projection.streams().collect();
            for (partition, records) in partitions(&streams, &case.events) {
                if PROJECTIONS.contains(&projection.name()) {
                    fold(&world, &sink, partition, &records, &case).await;
                } else {
                    let mut position = sink.positions(&[partition]).await.unwrap().remove(0);
                    let end = i64::try_from(records.len()).unwrap();
                    sink.apply(partition, &mut position, &records, end).await.unwrap();
                }
            }
            retry_all(&world, &sink).await;
            assert!(sink.parked().await.unwrap().is_empty(), "{projection:?}");
        }
        assert_equals_model(&world, &case.events).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_retry_of_an_unparked_key_does_not_begin() {
    for name in ["likes", "likes-table"] {
        let world = World::new().await;
        let sink = world.target.view(projections::find(name).unwrap());
        let partition = Partition { stream: Stream::Likes, number: 0 };
        let records: Vec<_> = [liked(1, 1), unliked(1, 1)]
            .into_iter()
            .zip(0..)
            .map(|(event, offset)| Record { offset, envelope: envelope(event, 1_700_000_000_000 + offset) })
            .collect();
        let position = sink.positions(&[partition]).await.unwrap().remove(0);
        let mut applier = BatchApplier::open(sink.clone(), post(&world), partition, position).await.unwrap();
        applier.apply(&[delivery(&world, partition, &records[0], &[0].into())]).await.unwrap();
        applier.align(1).await.unwrap();
        let (key, parked) = sink.parked().await.unwrap().remove(&partition).unwrap().pop_first().unwrap();

        // A retry that has read the state of the parked key, and then is suspended.
        let slept = ParkedKeyStore::new(sink.clone(), partition, key);
        assert!(slept.begin(&parked).await.unwrap().is_some());
        retry_all(&world, &sink).await;
        applier.apply(&[delivery(&world, partition, &records[1], &[].into())]).await.unwrap();

        assert_eq!(slept.begin(&parked).await.unwrap(), None, "{name}");
    }
}

fn case() -> impl Strategy<Value = Case> {
    let death = prop::option::weighted(0.4, 0..60_u64);
    (
        history(LENGTH),
        prop::collection::btree_set(0..50_i64, 3..9),
        prop::collection::vec(1..9_usize, 1..8),
        prop::collection::vec(death, 1..12),
        prop::collection::btree_set(0..12_usize, 0..3),
    )
        .prop_map(|(events, failing, cuts, deaths, retries)| Case {
            events,
            failing,
            cuts,
            deaths,
            retries,
        })
}

fn post(world: &World) -> DeadLetterQueue {
    DeadLetterQueue::new(Log {
        brokers: world.log.kafka_brokers.clone(),
        topics: Topics::new(&world.stores.namespace),
    })
}

/// Folds a partition by programs of which some can't read some records, and that die now and then.
async fn fold(world: &World, sink: &SharedStore, partition: Partition, records: &[Record], case: &Case) {
    let post = post(world);
    let end = i64::try_from(records.len()).unwrap();
    let (mut cuts, mut deaths) = (case.cuts.iter().cycle(), case.deaths.iter().cycle());
    let (mut taken, mut lives) = (0, 0);
    'lives: loop {
        lives += 1;
        assert!(lives < 1000, "it never ends");
        // Now and then it is the program that can read all of them.
        let failing = if lives % 3 == 0 { &BTreeSet::new() } else { &case.failing };
        let position = sink.positions(&[partition]).await.unwrap().remove(0);
        let mut next = position.lowest();
        let mut applier = BatchApplier::open(sink.clone(), post.clone(), partition, position).await.unwrap();
        while next < end {
            let size = i64::try_from(*cuts.next().unwrap()).unwrap();
            let batch: Vec<_> = records
                .iter()
                .filter(|record| (next..next + size).contains(&record.offset))
                .map(|record| delivery(world, partition, record, failing))
                .collect();
            let life = deaths.next().unwrap().map_or(DEADLINE, |tenths| Duration::from_micros(tenths * 100));
            match timeout(life, applier.apply(&batch)).await {
                Ok(Ok(())) => {}
                // It died, or what an earlier life had sent arrived late.
                Err(_) | Ok(Err(ApplyError::Store(_))) => continue 'lives,
                Ok(Err(error)) => panic!("{error}"),
            }
            next = (next + size).min(end);
            taken += 1;
            if case.retries.contains(&taken) {
                applier.align(next).await.unwrap();
                let parked = sink.parked().await.unwrap().remove(&partition).unwrap_or_default();
                // A life that died may have diverted more than this one has come to yet. A retry would wait for it.
                if parked.values().all(|parked| parked.last < next) {
                    retry_all(world, sink).await;
                }
            }
        }
        applier.align(end).await.unwrap();
        return;
    }
}

async fn retry_all(world: &World, sink: &SharedStore) {
    let retry = Retry::new(sink.clone(), post(world));
    for (partition, keys) in sink.parked().await.unwrap() {
        for key in keys.keys() {
            assert_eq!(retry.key(partition, key).await.unwrap(), Outcome::Folded);
        }
    }
}

/// A record as a program reads it that knows nothing of some.
fn delivery(world: &World, partition: Partition, record: &Record, failing: &BTreeSet<i64>) -> Delivery {
    let encoded = record.envelope.encode().unwrap();
    let mut headers = OwnedHeaders::new();
    for (key, value) in &encoded.headers {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    let message = OwnedMessage::new(
        Some(encoded.value),
        Some(encoded.key.into_bytes()),
        Topics::new(&world.stores.namespace).name(partition.stream),
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
