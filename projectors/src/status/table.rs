//! Formats the status as a table.

use std::{collections::BTreeMap, fmt};

use super::{PartitionStatus, ProjectionStatus, State, Status};

const HEADINGS: [&str; 11] = [
    "PROJECTION",
    "GENERATION",
    "PARTITION",
    "POSITION",
    "END",
    "LAG",
    "BEHIND",
    "STATE",
    "RECORDS/S",
    "DEAD LETTERS",
    "INSTANCE",
];
/// Cell of an absent or unavailable value.
const ABSENT: &str = "-";

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        for projection in &self.projections {
            rows.extend(projection.partitions.iter().map(|partition| row(projection, partition)));
        }
        let widths: Vec<usize> = (0..HEADINGS.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
            .collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        for projection in &self.projections {
            notes(f, projection)?;
        }
        for unknown in &self.unknown {
            writeln!(f, "unavailable: {unknown}")?;
        }
        Ok(())
    }
}

fn row(projection: &ProjectionStatus, partition: &PartitionStatus) -> [String; 11] {
    [
        projection.name.to_owned(),
        cell(projection.generation.as_ref()),
        partition.partition.clone(),
        cell(partition.position.as_ref()),
        cell(partition.end.as_ref()),
        cell(partition.lag.as_ref()),
        partition.lag_seconds.map_or(ABSENT.to_owned(), duration),
        match partition.state {
            State::Unassigned => "no instance runs it",
            state => state.name(),
        }
        .to_owned(),
        partition.records_per_second.map_or(ABSENT.to_owned(), |rate| format!("{rate:.1}")),
        cell(partition.dead_letters.as_ref()),
        cell(partition.instance.as_ref()),
    ]
}

/// Writes reasons and errors below the table, as they are too long for a column.
fn notes(f: &mut fmt::Formatter<'_>, projection: &ProjectionStatus) -> fmt::Result {
    let name = projection.name;
    if let Some(why) = &projection.unknown {
        writeln!(f, "{name}: positions unavailable: {why}")?;
    }
    if projection.partitions.is_empty() {
        writeln!(f, "{name}: no partitions: Kafka is unavailable, or the topics do not exist yet")?;
    }
    // Partitions with the same note share one line.
    let mut notes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for PartitionStatus { partition, state, why, last_error, .. } in &projection.partitions {
        let why = why.as_ref().map(|why| format!("{}: {why}", state.name()));
        let error = last_error
            .as_ref()
            .map(|error| format!("last error, {} ago: {}", duration(error.seconds_ago), error.message));
        for note in why.into_iter().chain(error) {
            notes.entry(note).or_default().push(partition);
        }
    }
    for (note, partitions) in notes {
        if partitions.len() == projection.partitions.len() {
            writeln!(f, "{name}: {note}")?;
        } else {
            writeln!(f, "{name} {}: {note}", partitions.join(", "))?;
        }
    }
    Ok(())
}

fn cell(value: Option<&impl ToString>) -> String {
    value.map_or(ABSENT.to_owned(), ToString::to_string)
}

/// Formats a duration in its largest suitable unit.
fn duration(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{seconds:.1} s"),
        ..3600.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::LastError;

    fn partition(number: i32, state: State) -> PartitionStatus {
        PartitionStatus {
            partition: format!("likes:{number}"),
            position: Some(1041),
            end: Some(1041),
            lag: Some(0),
            lag_seconds: Some(0.0),
            state,
            why: None,
            records_per_second: Some(12.34),
            instance: Some("host/17".to_owned()),
            dead_letters: Some(0),
            last_error: None,
        }
    }

    #[test]
    fn what_is_known_stands_in_columns_and_what_is_long_below() {
        let error = LastError { message: "Redis: broken pipe".to_owned(), seconds_ago: 187.0 };
        let waiting = || {
            let why = Some("failed to read the view's position from the store".to_owned());
            PartitionStatus { why, ..partition(2, State::Waiting) }
        };
        let behind = PartitionStatus {
            position: Some(17),
            lag: Some(1024),
            lag_seconds: Some(7260.0),
            dead_letters: Some(3),
            last_error: Some(error),
            ..partition(1, State::Running)
        };
        let lost = PartitionStatus {
            position: None,
            lag: None,
            lag_seconds: None,
            records_per_second: None,
            instance: None,
            ..partition(0, State::Unassigned)
        };
        let projection =
            |name, partitions| ProjectionStatus { name, generation: Some(1), unknown: None, partitions };
        let away = ProjectionStatus {
            unknown: Some("Redis: connection refused".to_owned()),
            ..projection("feed", vec![lost])
        };
        let status = Status {
            projections: vec![
                projection("likes", vec![partition(0, State::Running), behind]),
                projection("likes-table", vec![waiting(), waiting()]),
                away,
                projection("works", vec![]),
            ],
            unknown: vec!["Kafka timed out".to_owned()],
        };
        insta::assert_snapshot!(status);
        insta::assert_json_snapshot!(status.projections[0].partitions[1]);
    }
}
