//! The metrics of the command API: every name on this page.

/// Histogram: seconds from an append to the broker's answer, by `stream`.
pub(crate) const APPEND_SECONDS: &str = "vidlog_append_seconds";
/// Counter: commands, by `command` and `outcome` (`ok`, or the name of the answer's code).
pub(crate) const COMMANDS: &str = "vidlog_commands_total";
/// Histogram: seconds from a command's arrival to its answer, by `command`.
pub(crate) const COMMAND_SECONDS: &str = "vidlog_command_seconds";
/// Counter: answers of successful commands whose positions could not be recorded for later readers.
pub(crate) const UNRECORDED_POSITIONS: &str = "vidlog_unrecorded_positions_total";
/// Counter: events that the relay appended from the outbox.
pub(crate) const RELAYED_EVENTS: &str = "vidlog_relayed_events_total";
/// Counter: handlers that panicked. Each is a fault of ours.
pub(crate) const PANICS: &str = "vidlog_command_panics_total";
/// Counter: uploads whose outcome was appended, by `outcome`, the type of its event.
pub(crate) const MEDIA_OUTCOMES: &str = "vidlog_media_outcomes_total";
/// Histogram: seconds that ffmpeg and the object store took for an upload, once it was its turn.
pub(crate) const MEDIA_SECONDS: &str = "vidlog_media_seconds";
/// Counter: attempts at an upload that failed and are made again.
pub(crate) const MEDIA_FAULTS: &str = "vidlog_media_faults_total";
/// Counter: records that the media worker skipped because they can't be read.
pub(crate) const MEDIA_UNREADABLE_RECORDS: &str = "vidlog_media_unreadable_records_total";
