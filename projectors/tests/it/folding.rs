//! Properties of every projection, on the stores themselves: batch boundaries do not matter, and folding twice equals
//! folding once. The expected state is the audit's model, which shares no code with the projections.

use std::collections::BTreeMap;

use proptest::{prelude::*, strategy::ValueTree};
use vidlog_events::{Envelope, Stream};
use vidlog_projectors::{
    audit::{self, Model},
    log::{Partition, Record},
    projections,
    store::StoreError,
};

use crate::support::{TestSystem, case_runner, history};

/// Number of histories.
const CASES: usize = 12;
const LENGTH: usize = 120;
/// Less than a history takes, so that the model sorts in a temporary file.
const MODEL_MEMORY: usize = 4000;

#[tokio::test]
async fn batch_boundaries_do_not_change_views() {
    for (events, cuts) in cases() {
        let system = TestSystem::new().await;
        fold_in_batches(&system, &events, &cuts).await;
        assert_equals_model(&system, &events).await;
    }
}

#[tokio::test]
async fn replayed_batches_are_no_ops() {
    for (events, cuts) in cases() {
        assert_twice_equals_once(&TestSystem::new().await, &events, &cuts).await;
    }
}

#[tokio::test]
async fn noncontiguous_batch_is_rejected() {
    let system = TestSystem::new().await;
    let (events, _) = cases().remove(0);
    for projection in projections::ALL {
        let store = system.target.view(projection);
        let stream = projection.streams().next().unwrap();
        let partition = Partition { stream, number: 0 };
        let empty = store.positions(&[partition]).await.unwrap().remove(0);
        let mut ahead = empty.clone();
        store.apply(partition, &mut ahead, &[], 5).await.unwrap();
        store.align(partition, &mut ahead, 5).await.unwrap();
        assert_eq!(ahead.lowest(), 5, "{projection:?}");

        // The store has no position of this partition, as if it had lost the writes of the runner.
        let lost = Partition { stream, number: 1 };
        store.positions(&[lost]).await.unwrap();
        let records: Vec<_> = events
            .iter()
            .filter(|envelope| envelope.event.stream() == stream)
            .zip(5..)
            .map(|(envelope, offset)| Record { offset, envelope: envelope.clone() })
            .collect();
        let next = 5 + i64::try_from(records.len()).unwrap();
        let mut position = ahead.clone();
        let refused = match store.apply(lost, &mut position, &records, next).await {
            // A Redis batch without writes changes no shard; aligning does.
            Ok(()) => store.align(lost, &mut ahead.clone(), next).await,
            refused => refused,
        };
        assert!(matches!(refused, Err(StoreError::Behind { stored: 0 })), "{projection:?}: {refused:?}");
        assert_eq!(store.positions(&[lost]).await.unwrap().remove(0), empty, "{projection:?}");
    }
}

/// Histories with the sizes of the batches that they are cut into.
pub(crate) fn cases() -> Vec<(Vec<Envelope>, Vec<usize>)> {
    let mut runner = case_runner();
    let strategy = (history(LENGTH), prop::collection::vec(1..9_usize, 1..8));
    (0..CASES).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Folds a history in batches, most of them more than once.
pub(crate) async fn assert_twice_equals_once(system: &TestSystem, events: &[Envelope], cuts: &[usize]) {
    for projection in projections::ALL {
        let store = system.target.view(projection);
        for (partition, records) in partitions(&projection.streams().collect::<Vec<_>>(), events) {
            let mut position = store.positions(&[partition]).await.unwrap().remove(0);
            let mut earlier = Vec::new();
            for batch in batches(&records, cuts) {
                let next = batch.last().map_or(0, |record| record.offset + 1);
                earlier.push((position.clone(), batch, next));
                store.apply(partition, &mut position, batch, next).await.unwrap();
                // A zombie writer writes its last batch.
                for (position, batch, next) in earlier.iter().rev().take(3) {
                    store.apply(partition, &mut position.clone(), batch, *next).await.unwrap();
                }
            }
        }
    }
    assert_equals_model(system, events).await;
}

async fn fold_in_batches(system: &TestSystem, events: &[Envelope], cuts: &[usize]) {
    for projection in projections::ALL {
        let store = system.target.view(projection);
        for (partition, records) in partitions(&projection.streams().collect::<Vec<_>>(), events) {
            let mut position = store.positions(&[partition]).await.unwrap().remove(0);
            for batch in batches(&records, cuts) {
                let next = batch.last().map_or(0, |record| record.offset + 1);
                store.apply(partition, &mut position, batch, next).await.unwrap();
            }
            let end = i64::try_from(records.len()).unwrap();
            store.align(partition, &mut position, end).await.unwrap();
            assert_eq!(store.positions(&[partition]).await.unwrap().remove(0).lowest(), end);
        }
    }
}

/// Distributes events to two partitions per stream by key, as Kafka does.
pub(crate) fn partitions(streams: &[Stream], events: &[Envelope]) -> BTreeMap<Partition, Vec<Record>> {
    let mut partitions: BTreeMap<Partition, Vec<Record>> = BTreeMap::new();
    for envelope in events.iter().filter(|envelope| streams.contains(&envelope.event.stream())) {
        let number = i32::from(envelope.event.key().bytes().fold(0_u8, u8::wrapping_add) % 2);
        let records = partitions.entry(Partition { stream: envelope.event.stream(), number }).or_default();
        let offset = i64::try_from(records.len()).unwrap();
        records.push(Record { offset, envelope: envelope.clone() });
    }
    partitions
}

fn batches<'a>(records: &'a [Record], cuts: &[usize]) -> Vec<&'a [Record]> {
    let mut rest = records;
    let mut batches = Vec::new();
    for size in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (batch, left) = rest.split_at((*size).min(rest.len()));
        batches.push(batch);
        rest = left;
    }
    batches
}

pub(crate) async fn assert_equals_model(system: &TestSystem, events: &[Envelope]) {
    let mut model = Model::new(MODEL_MEMORY);
    for envelope in events {
        model.fold(envelope).unwrap();
    }
    let differences = audit::compare_with_model(&system.target, &projections::ALL, model).await.unwrap();
    assert!(differences.is_empty(), "{differences:#?}\nof {events:#?}");
}
