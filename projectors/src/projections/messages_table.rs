//! Tables `messages` and `conversations`.
//!
//! A message's `create_ms` is the time of its event, but always later than that of the conversation's
//! previous message: clients poll with the last `create_ms` that they received. All messages of a
//! conversation have one record key, so every fold sees them in the same order.

use std::collections::{BTreeMap, HashSet};

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{Event, MessageEvent};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::{batch, rows::MessageRow};

const CONVERSATIONS: &str = concat!(
    "SELECT low_id, high_id, last_ms FROM ",
    vidlog_schemas::batch!("low_id", "high_id"),
    " STRAIGHT_JOIN conversations USING (low_id, high_id)"
);
const MESSAGES: &str = concat!(
    "SELECT message_id FROM ",
    vidlog_schemas::batch!("message_id"),
    " STRAIGHT_JOIN messages USING (message_id)"
);

/// The smaller and the larger user id of a conversation.
type Conversation = (i64, i64);

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    async move {
        let sent = sent(records);
        if sent.is_empty() {
            return Ok(());
        }
        let existing = load(&mut *connection, &sent).await?;
        write(connection, project(sent, existing)).await
    }
    .boxed()
}

/// Existing rows of a batch's conversations and messages.
#[derive(Default)]
struct ExistingRows {
    last_ms: BTreeMap<Conversation, i64>,
    messages: HashSet<i64>,
}

/// Returns the messages of a batch; `create_ms` is the event's time.
fn sent(records: &[Record]) -> Vec<MessageRow> {
    let row = |record: &Record| {
        let Event::Message(event) = &record.envelope.event else {
            return None;
        };
        match event {
            MessageEvent::MessageSent(sent) => Some(MessageRow {
                message_id: sent.message_id.get(),
                from_user_id: sent.from_user_id.get(),
                to_user_id: sent.to_user_id.get(),
                content: sent.content.reveal().clone(),
                create_ms: record.envelope.time_ms,
            }),
        }
    };
    records.iter().filter_map(row).collect()
}

fn conversation(message: &MessageRow) -> Conversation {
    let (from, to) = (message.from_user_id, message.to_user_id);
    (from.min(to), from.max(to))
}

/// Drops repeated messages and sets each `create_ms`.
fn project(sent: Vec<MessageRow>, mut existing: ExistingRows) -> Vec<MessageRow> {
    let mut rows = Vec::with_capacity(sent.len());
    for mut message in sent {
        if !existing.messages.insert(message.message_id) {
            continue;
        }
        let last_ms = existing.last_ms.entry(conversation(&message)).or_insert(0);
        message.create_ms = message.create_ms.max(*last_ms + 1);
        *last_ms = message.create_ms;
        rows.push(message);
    }
    rows
}

async fn load(connection: &mut MySqlConnection, sent: &[MessageRow]) -> sqlx::Result<ExistingRows> {
    let conversations: HashSet<Conversation> = sent.iter().map(conversation).collect();
    let last: Vec<(i64, i64, i64)> =
        sqlx::query_as(CONVERSATIONS).bind(batch::pairs(&conversations)).fetch_all(&mut *connection).await?;
    let ids = batch::ids(sent.iter().map(|message| &message.message_id));
    let messages: Vec<i64> = sqlx::query_scalar(MESSAGES).bind(ids).fetch_all(connection).await?;
    Ok(ExistingRows {
        last_ms: last.into_iter().map(|(low, high, last_ms)| ((low, high), last_ms)).collect(),
        messages: messages.into_iter().collect(),
    })
}

async fn write(connection: &mut MySqlConnection, rows: Vec<MessageRow>) -> sqlx::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    QueryBuilder::new(
        "INSERT INTO messages (low_id, high_id, create_ms, message_id, from_user_id, to_user_id, content) ",
    )
    .push_values(&rows, |mut values, row| {
        let (low, high) = conversation(row);
        values
            .push_bind(low)
            .push_bind(high)
            .push_bind(row.create_ms)
            .push_bind(row.message_id)
            .push_bind(row.from_user_id)
            .push_bind(row.to_user_id)
            .push_bind(&row.content);
    })
    .build()
    .execute(&mut *connection)
    .await?;

    let newest: BTreeMap<Conversation, &MessageRow> =
        rows.iter().map(|row| (conversation(row), row)).collect();
    QueryBuilder::new(
        "INSERT INTO conversations (low_id, high_id, last_message_id, last_from_id, last_content, last_ms) ",
    )
    .push_values(newest, |mut values, ((low, high), row)| {
        values
            .push_bind(low)
            .push_bind(high)
            .push_bind(row.message_id)
            .push_bind(row.from_user_id)
            .push_bind(&row.content)
            .push_bind(row.create_ms);
    })
    .push(
        " ON DUPLICATE KEY UPDATE
            last_message_id = VALUES(last_message_id), last_from_id = VALUES(last_from_id),
            last_content = VALUES(last_content), last_ms = VALUES(last_ms)",
    )
    .build()
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(message_id: i64, create_ms: i64) -> MessageRow {
        MessageRow { message_id, from_user_id: 2, to_user_id: 1, content: "hi".to_owned(), create_ms }
    }

    #[test]
    fn times_rise_strictly_and_repeats_are_dropped() {
        let existing = ExistingRows { last_ms: [((1, 2), 100)].into(), messages: [9].into() };
        let rows = project(
            vec![message(1, 50), message(2, 50), message(9, 200), message(1, 300), message(3, 200)],
            existing,
        );
        let times: Vec<_> = rows.iter().map(|row| (row.message_id, row.create_ms)).collect();
        assert_eq!(times, [(1, 101), (2, 102), (3, 200)]);
    }
}
