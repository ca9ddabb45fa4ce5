//! The media worker.

mod lost_answers;
mod publish_times;
mod queue;
mod support;
mod worker;

pub(crate) use self::support::{mysql_at, new_jobs, upload_of};
