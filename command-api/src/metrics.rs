//! All metric names of the command API and the media worker.

/// Histogram: seconds from an append to the broker's response, by `stream`.
pub(crate) const APPEND_SECONDS: &str = "vidlog_append_seconds";
/// Counter: commands, by `command` and `outcome` (`ok`, or the name of the error code).
pub(crate) const COMMANDS: &str = "vidlog_commands_total";
/// Histogram: seconds from a command's arrival to its response, by `command`.
pub(crate) const COMMAND_SECONDS: &str = "vidlog_command_seconds";
/// Counter: uploads that got no slot, lost it or were too slow, by `reason`.
pub(crate) const REFUSED_UPLOADS: &str = "vidlog_refused_uploads_total";
/// Counter: events whose positions could not be recorded for read-your-writes.
pub(crate) const UNRECORDED_POSITIONS: &str = "vidlog_unrecorded_positions_total";
/// Counter: events that the relay appended from the outbox.
pub(crate) const RELAYED_EVENTS: &str = "vidlog_relayed_events_total";
/// Gauge: outbox entries that can't be appended because the entry is at fault.
pub(crate) const OUTBOX_FAILED_ENTRIES: &str = "vidlog_outbox_failed_entries";
/// Counter: handlers that panicked. Each is a bug.
pub(crate) const PANICS: &str = "vidlog_command_panics_total";
/// Counter: uploads whose outcome was appended, by `outcome`, the type of its event.
pub(crate) const MEDIA_OUTCOMES: &str = "vidlog_media_outcomes_total";
/// Histogram: seconds of ffmpeg and object store work per upload, without the time in the queue.
pub(crate) const MEDIA_SECONDS: &str = "vidlog_media_seconds";
/// Counter: tries to process an upload that failed.
pub(crate) const MEDIA_FAULTS: &str = "vidlog_media_faults_total";
/// Gauge: uploads without an outcome, by `reason` of the last failure, or `queued`.
pub(crate) const MEDIA_WAITING: &str = "vidlog_media_waiting_uploads";
/// Gauge: seconds since the oldest of them was enqueued, by the same `reason`.
pub(crate) const MEDIA_OLDEST_SECONDS: &str = "vidlog_media_oldest_upload_seconds";
/// Counter: records that the media worker skipped because they do not decode.
pub(crate) const MEDIA_UNREADABLE_RECORDS: &str = "vidlog_media_unreadable_records_total";
