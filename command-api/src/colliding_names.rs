//! The command `colliding-names`: lists accounts whose names look the same.
//!
//! Only versions that compared names without case alone could create them, or an instance of such a version during the
//! upgrade.

use std::fmt::Write as _;

use anyhow::Context;
use vidlog_service_kit::{config::Stores, mysql};

use crate::accounts::appearances::{Colliding, colliding, normalize_all};

/// Normalizes the names of accounts of an earlier version, and returns the list of those that collide, as text.
pub async fn list(stores: &Stores) -> anyhow::Result<String> {
    let pool = mysql::open(stores.mysql_url.reveal(), 1).context("failed to parse the MySQL URL")?;
    normalize_all(&pool).await.context(
        "failed to normalize user names; start this version of command-api first, it migrates the tables",
    )?;
    Ok(table(&colliding(&pool).await.context("failed to read the accounts")?))
}

/// Formats accounts as a table. Names are quoted, and characters that display nothing escaped, to tell them apart.
fn table(accounts: &[Colliding]) -> String {
    if accounts.is_empty() {
        return "no names collide\n".to_owned();
    }
    let mut text = format!("{:<20} {:>16} {:<14} {}\n", "APPEARANCE", "USER ID", "LOGIN WITH", "NAME");
    for account in accounts {
        let login = if account.has_appearance { "any spelling" } else { "this name only" };
        let (appearance, name) = (format!("{:?}", account.appearance), format!("{:?}", account.username));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{appearance:<20} {:>16} {login:<14} {name}", account.user_id);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let account = |user_id, username: &str, has_appearance| Colliding {
            appearance: "ada".to_owned(),
            user_id,
            username: username.to_owned(),
            has_appearance,
        };
        let accounts = [account(7, "Ada", true), account(1_234_567_890_123_456, "a\u{200b}da ", false)];
        assert_eq!(
            table(&accounts),
            "APPEARANCE                    USER ID LOGIN WITH     NAME\n\
             \"ada\"                               7 any spelling   \"Ada\"\n\
             \"ada\"                1234567890123456 this name only \"a\\u{200b}da \"\n"
        );
        assert_eq!(table(&[]), "no names collide\n");
    }
}
