//! What the run prints.

use std::fmt;

use crate::{
    bounds::{MAX_P99_RATIO, megabytes, object_growth, p99_ratio, violations},
    results::{Mode, Results},
};

/// Failed calls of users that are listed per phase.
const MAX_LISTED_FAILURES: usize = 5;

/// The report of a run.
pub(crate) struct Report<'a>(pub(crate) &'a Results);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(results) = self;
        writeln!(
            f,
            "\n{:<28} {:>6} {:>6} {:>8} {:>8} {:>6}",
            "USERS BESIDE", "CALLS", "FAILED", "P50 MS", "P99 MS", "RATIO"
        )?;
        for phase in &results.phases {
            let experience = &phase.experience;
            let [p50, p99] = [50, 99].map(|percent| experience.percentile(percent).as_secs_f64() * 1000.0);
            let (calls, failed) = (experience.times.len(), experience.failures.len());
            let ratio = results.phases.first().map_or(1.0, |quiet| p99_ratio(quiet, phase));
            writeln!(f, "{:<28} {calls:>6} {failed:>6} {p50:>8.1} {p99:>8.1} {ratio:>6.2}", phase.name)?;
            for failure in experience.failures.iter().take(MAX_LISTED_FAILURES) {
                writeln!(f, "    {failure}")?;
            }
        }
        writeln!(f, "\nATTACKS")?;
        for (phase, (attack, tally)) in
            results.phases.iter().flat_map(|phase| phase.tallies.iter().map(move |tally| (phase, tally)))
        {
            let together = if phase.tallies.len() > 1 { " (all at once)" } else { "" };
            writeln!(f, "{}{together}: {tally}", attack.name())?;
        }
        let peak = results.peak();
        writeln!(f, "\n{:<28} {:>10} {:>10} {:>10}", "MB", "BEFORE", "HIGHEST", "AFTER")?;
        let rows = [
            ("Redis", results.before.redis, peak.redis, results.after.redis),
            ("the server's memory", results.before.memory, peak.memory, results.after.memory),
            ("object store", results.before.objects, peak.objects, results.after.objects),
        ];
        for (what, before, highest, after) in rows {
            let [before, highest, after] = [before, highest, after].map(megabytes);
            writeln!(f, "{what:<28} {before:>10.1} {highest:>10.1} {after:>10.1}")?;
        }
        let uploads =
            (megabytes(results.uploaded_bytes), megabytes(object_growth(results.before, results.after)));
        writeln!(f, "users uploaded {:.1} MB; the object store grew by {:.1} MB", uploads.0, uploads.1)?;
        let violations = violations(results);
        for violation in &violations {
            writeln!(f, "EXCEEDED {violation}")?;
        }
        let times = if results.mode == Mode::Full {
            format!(", p99 within {MAX_P99_RATIO} times")
        } else {
            String::new()
        };
        if violations.is_empty() {
            writeln!(f, "all bounds held: no call of a user failed{times}")?;
        }
        Ok(())
    }
}
