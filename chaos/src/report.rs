//! Reports on seeds: on the console and as a document.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use crate::{instance::Crash, run::OperatorStats, seed::Outcome};

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for planned in &self.plan.faults {
            writeln!(f, "    {planned}")?;
        }
        let failpoints = self.plan.failpoints();
        if !failpoints.is_empty() {
            writeln!(f, "    failpoints: {failpoints} ({} reached)", self.reached().count())?;
        }
        let counts = self.counts;
        writeln!(
            f,
            "    {} commands: {} acknowledged, {} refused, {} unknown",
            counts.sent, counts.acknowledged, counts.refused, counts.unknown,
        )?;
        writeln!(
            f,
            "    {} records, {} keys and rows compared, {} differ; {:.1} s",
            self.records,
            self.lines,
            self.differences,
            self.took.as_secs_f64(),
        )?;
        if self.operator != OperatorStats::default() {
            writeln!(f, "    {}", self.operator)?;
        }
        for refusal in &self.refusals {
            writeln!(f, "    refused, {refusal}")?;
        }
        if self.violations.is_empty() {
            return writeln!(f, "    seed {}: passed", self.seed);
        }
        for violation in &self.violations {
            writeln!(f, "    VIOLATION: {violation}")?;
        }
        writeln!(f, "    seed {}: FAILED; `make chaos SEED={}` repeats it", self.seed, self.seed)
    }
}

impl Outcome {
    fn reached(&self) -> impl Iterator<Item = &'static str> {
        self.crashes.iter().filter_map(|(_, crash)| match crash {
            Crash::Failpoint(failpoint) => Some(failpoint.point),
            Crash::Unexpected(_) => None,
        })
    }
}

/// The report on a run of several seeds, in Markdown.
pub(crate) fn document(date: &str, commit: &str, outcomes: &[Outcome]) -> Result<String, fmt::Error> {
    let failed = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).count();
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    let mut text = String::new();
    writeln!(text, "# Fault harness: report\n")?;
    writeln!(
        text,
        "Written by `make chaos`, on {date}, at commit {commit}. What a seed does, and what is verified after it:"
    )?;
    writeln!(text, "[ADR 0015](adr/0015-a-fault-harness.md). `make chaos SEED=n` repeats a seed.\n")?;
    writeln!(text, "- {} seeds, {failed} failed.", outcomes.len())?;
    writeln!(
        text,
        "- {} commands sent: {} acknowledged, {} refused, {} with an unknown outcome; {}.",
        sum(|outcome| outcome.counts.sent),
        sum(|outcome| outcome.counts.acknowledged),
        sum(|outcome| outcome.counts.refused),
        sum(|outcome| outcome.counts.unknown),
        if failed == 0 {
            "the log has every acknowledged command at the answered position"
        } else {
            "see the failed seeds"
        },
    )?;
    writeln!(
        text,
        "- {} records folded; {} keys and rows compared with an independent fold of the log, {} differ.",
        sum(|outcome| outcome.records),
        sum(|outcome| outcome.lines),
        sum(|outcome| outcome.differences),
    )?;
    writeln!(
        text,
        "- {} faults; crashes by failpoint: {}.",
        sum(|outcome| outcome.plan.faults.len()),
        reached(outcomes)
    )?;
    writeln!(
        text,
        "- Operator: {}.\n",
        outcomes.iter().map(|outcome| outcome.operator).sum::<OperatorStats>()
    )?;
    writeln!(
        text,
        "| seed | faults | sent | acknowledged | refused | unknown | records | lines | differences | s |"
    )?;
    writeln!(text, "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    for outcome in outcomes {
        row(&mut text, outcome)?;
    }
    for outcome in outcomes.iter().filter(|outcome| !outcome.violations.is_empty()) {
        writeln!(text, "\n## Seed {} failed\n", outcome.seed)?;
        for violation in &outcome.violations {
            writeln!(text, "- {violation}")?;
        }
    }
    Ok(text)
}

fn row(text: &mut String, outcome: &Outcome) -> fmt::Result {
    let mut faults: Vec<_> = outcome.plan.faults.iter().map(ToString::to_string).collect();
    faults.extend(outcome.crashes.iter().filter_map(|(process, crash)| match crash {
        Crash::Failpoint(failpoint) => Some(format!("{process} crashed at {failpoint}")),
        Crash::Unexpected(_) => None,
    }));
    let counts = outcome.counts;
    writeln!(
        text,
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} |",
        outcome.seed,
        faults.join("<br>"),
        counts.sent,
        counts.acknowledged,
        counts.refused,
        counts.unknown,
        outcome.records,
        outcome.lines,
        outcome.differences,
        outcome.took.as_secs_f64(),
    )
}

/// The number of crashes at each failpoint.
fn reached(outcomes: &[Outcome]) -> String {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for point in outcomes.iter().flat_map(Outcome::reached) {
        *times.entry(point).or_default() += 1;
    }
    let list: Vec<_> = times.into_iter().map(|(point, times)| format!("{point} {times}")).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}
