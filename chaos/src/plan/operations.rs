//! What a seed decides of what operators do, and of what they have to see to.

use std::ops::{Range, RangeInclusive};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use vidlog_events::Stream;
use vidlog_projectors::{
    projections,
    view::{Fold, Projection},
};

use super::{PROJECTOR_POINTS, REGULAR, impair, millis, store};
use crate::fault::{Cut, Failpoint, Fault, Form, Planned, Poison, Process, Then};

/// How long after its beginning a rebuild is cut off: mostly while it folds and compares, else when it has switched.
const CUT_MS: [Range<u64>; 3] = [0..1_500, 500..3_000, 1_000..10_000];
/// So many records one right after the other stop their projections.
const RUN: RangeInclusive<usize> = 26..=30;
/// Streams that few projections fold: of a run each has to be discarded, record by record.
const STREAMS_OF_RUNS: [Stream; 4] = [Stream::Likes, Stream::Follows, Stream::Comments, Stream::Messages];

/// Points of a rebuild of a view in Redis, around its switch.
pub(super) const REDIS_SWITCH_POINTS: [&str; 2] = ["redis-switch-before", "redis-switch-after"];
/// The same of a view in MySQL.
pub(super) const MYSQL_SWITCH_POINTS: [&str; 2] = ["mysql-switch-before", "mysql-switch-after"];
/// Points of a discard.
pub(super) const DISCARD_POINTS: [&str; 3] = ["discard-after", "unpark-before", "unpark-after"];

/// Bad records where a view is folded anew, every other time: what waits is then told of two generations.
pub(super) fn poison_of_rebuilt(faults: &[Planned], rng: &mut StdRng) -> Option<Planned> {
    let rebuilt = faults.iter().find_map(|planned| match planned.fault {
        Fault::Rebuild { projection, .. } => Some((projections::find(projection)?, planned.at)),
        _ => None,
    });
    let (projection, at) = rebuilt.filter(|_| rng.random_bool(0.5))?;
    let stream = projection.streams().next()?;
    Some(Planned {
        at: at.mul_f64(rng.random_range(0.0..1.2)),
        fault: Fault::Poison(Poison { stream, ..single(rng) }),
    })
}

/// What may happen to an operator's command, soon after it was given.
pub(super) fn interference(operation: &Planned, rng: &mut StdRng) -> Option<Planned> {
    if rng.random_bool(0.5) {
        return None;
    }
    let (process, store) = (Process::Operator, store(rng));
    let fault = match impair(rng) {
        Fault::Impair { condition, lasting, .. } if rng.random_bool(0.6) => {
            Fault::Impair { process, store, condition, lasting }
        }
        _ => Fault::Reset { process, store },
    };
    Some(Planned { at: operation.at + millis(rng, 0..2_500), fault })
}

pub(super) fn rebuild(rng: &mut StdRng) -> Fault {
    let projection = projection(rng);
    let (points, own): (&[&'static str], _) = match projection.fold {
        Fold::Redis(_) => (&REDIS_SWITCH_POINTS, "redis-"),
        Fold::MySql(_) => (&MYSQL_SWITCH_POINTS, "mysql-"),
    };
    let cut = match rng.random_range(0..10) {
        0..2 => None,
        2..5 => {
            let range = CUT_MS[rng.random_range(0..CUT_MS.len())].clone();
            Some(Cut::After(millis(rng, range)))
        }
        5..9 => points.choose(rng).map(|point| Cut::At(Failpoint { point, time: 1 })),
        _ => {
            let folding: Vec<_> = PROJECTOR_POINTS.iter().filter(|point| point.starts_with(own)).collect();
            folding.choose(rng).map(|point| Cut::At(Failpoint { point, time: rng.random_range(1..=6) }))
        }
    };
    let then = [Then::Resumed, Then::Dropped, Then::Left][rng.random_range(0..3)];
    Fault::Rebuild { projection: projection.name(), cut, then }
}

pub(super) fn pause(rng: &mut StdRng) -> Fault {
    Fault::Pause {
        projection: projection(rng).name(),
        lasting: millis(rng, 300..3_000),
        killed: rng.random_bool(0.6).then(|| rng.random_range(0..REGULAR)),
    }
}

/// A few records, mostly only one.
pub(super) fn single(rng: &mut StdRng) -> Poison {
    let stream = *Stream::ALL.choose(rng).unwrap_or(&Stream::Likes);
    let records = if rng.random_bool(0.7) { 1 } else { 2 };
    let is_cut = rng.random_bool(0.5);
    let cut = match rng.random_range(0..3) {
        _ if !is_cut => None,
        0 => Some(Cut::After(millis(rng, 100..1_500))),
        _ => DISCARD_POINTS.choose(rng).map(|point| Cut::At(Failpoint { point, time: 1 })),
    };
    let discarded = (is_cut || rng.random_bool(0.5)).then(|| millis(rng, 300..3_000));
    Poison { discarded, cut, ..poison(stream, records, rng) }
}

/// So many that their projections stop.
pub(super) fn run(rng: &mut StdRng) -> Poison {
    let stream = *STREAMS_OF_RUNS.choose(rng).unwrap_or(&Stream::Likes);
    let records = rng.random_range(RUN);
    poison(stream, records, rng)
}

fn poison(stream: Stream, records: usize, rng: &mut StdRng) -> Poison {
    let form = Form::ALL[rng.random_range(0..Form::ALL.len())];
    Poison { stream, entity: rng.random_range(0..100), records, form, discarded: None, cut: None }
}

fn projection(rng: &mut StdRng) -> Projection {
    projections::ALL[rng.random_range(0..projections::ALL.len())]
}
