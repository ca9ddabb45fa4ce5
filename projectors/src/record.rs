//! A record that was read and decoded.

use vidlog_events::Envelope;

/// An event at its place in a partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The place.
    pub offset: i64,
    /// The event.
    pub envelope: Envelope,
}
