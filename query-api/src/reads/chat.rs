//! The messages of a conversation.

use vidlog_contract::objects::Message;
use vidlog_read_models::{ReadError, ReadModels, Source};
use vidlog_schemas::rows::MessageRow;

use super::list::ListPage;
use crate::paging::{Page, SortKey};

/// The requested messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chat {
    /// The caller.
    pub(crate) caller: i64,
    /// The other user of the conversation.
    pub(crate) peer: i64,
    /// If set, only the peer's messages strictly later than this; else the messages of both.
    pub(crate) after_ms: Option<i64>,
}

/// Reads messages, oldest first; `None` if the peer does not exist. A page of the history holds the newest messages. A
/// page of new messages holds the oldest, because the client polls with the time of the last one.
pub(crate) async fn messages(
    models: &ReadModels,
    source: Source,
    chat: Chat,
    page: Page,
) -> Result<Option<ListPage<Message>>, ReadError> {
    let rows = async {
        match chat.after_ms {
            None => history(models, chat, page).await,
            Some(after_ms) => new_messages(models, chat, after_ms, page).await,
        }
    };
    let (exists, mut rows) = tokio::try_join!(models.user_exists(source, chat.peer), rows)?;
    if !exists {
        return Ok(None);
    }
    let next = page.truncate(&mut rows, |row| SortKey { score: row.create_ms, id: row.message_id });
    if chat.after_ms.is_none() {
        rows.reverse();
    }
    Ok(Some((rows.into_iter().map(message).collect(), next)))
}

/// Reads the history of both users, newest first.
async fn history(models: &ReadModels, chat: Chat, page: Page) -> Result<Vec<MessageRow>, ReadError> {
    let query = sqlx::query_as(
        "SELECT message_id, from_user_id, to_user_id, content, create_ms FROM messages
         WHERE low_id = ? AND high_id = ? AND create_ms < ? ORDER BY create_ms DESC LIMIT ?",
    )
    .bind(chat.caller.min(chat.peer))
    .bind(chat.caller.max(chat.peer))
    .bind(page.after.map_or(i64::MAX, |after| after.score))
    .bind(page.fetch_limit() as u64);
    models.tables.run_for(chat.caller, query.fetch_all(models.tables.pool())).await
}

/// Reads the peer's messages after a time, oldest first.
async fn new_messages(
    models: &ReadModels,
    chat: Chat,
    after_ms: i64,
    page: Page,
) -> Result<Vec<MessageRow>, ReadError> {
    let query = sqlx::query_as(
        "SELECT message_id, from_user_id, to_user_id, content, create_ms FROM messages
         WHERE low_id = ? AND high_id = ? AND create_ms > ? AND from_user_id = ? ORDER BY create_ms LIMIT ?",
    )
    .bind(chat.caller.min(chat.peer))
    .bind(chat.caller.max(chat.peer))
    .bind(page.after.map_or(after_ms, |after| after.score.max(after_ms)))
    .bind(chat.peer)
    .bind(page.fetch_limit() as u64);
    models.tables.run_for(chat.caller, query.fetch_all(models.tables.pool())).await
}

fn message(row: MessageRow) -> Message {
    Message {
        id: row.message_id,
        to_user_id: row.to_user_id,
        from_user_id: row.from_user_id,
        content: row.content,
        create_time: row.create_ms,
    }
}
