//! User cards: the fields that responses include for each user.

use vidlog_events::{Envelope, Event, UserEvent};
use vidlog_projection_engine::view::RedisWrites;
use vidlog_schemas::Keys;

pub(super) fn project(keys: &Keys, envelope: &Envelope, writes: &mut RedisWrites) {
    let Event::User(event) = &envelope.event else {
        return;
    };
    match event {
        UserEvent::UserRegistered(registered) => writes.create_hash(
            keys.user_card(registered.user_id.get()),
            &[("name", registered.name.reveal().clone()), ("registered_ms", envelope.time_ms.to_string())],
        ),
    }
}
