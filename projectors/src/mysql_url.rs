//! A MySQL address, and those of databases beside the one that it names.

use anyhow::bail;

/// An address, taken apart at its database.
pub(crate) struct MySqlUrl<'a> {
    server: &'a str,
    database: &'a str,
    parameters: &'a str,
}

impl<'a> MySqlUrl<'a> {
    /// Takes an address apart; it has to name a database.
    pub(crate) fn read(url: &'a str) -> anyhow::Result<Self> {
        let (path, parameters) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        match path.rsplit_once('/') {
            Some((server, database)) if !database.is_empty() && !server.ends_with('/') => {
                Ok(Self { server, database, parameters })
            }
            _ => bail!("the MySQL address names no database"),
        }
    }

    /// The database.
    pub(crate) const fn database(&self) -> &str {
        self.database
    }

    /// The name of a database beside it.
    pub(crate) fn beside(&self, what: &str) -> String {
        format!("{}_{what}", self.database)
    }

    /// The same address, of another database.
    pub(crate) fn with_database(&self, database: &str) -> String {
        format!("{}/{database}{}", self.server, self.parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_an_address_is_found_and_replaced() {
        let url = MySqlUrl::read("mysql://u:p@h:1/vidlog?x=/y").unwrap();
        assert_eq!(url.database(), "vidlog");
        assert_eq!(url.with_database(&url.beside("next")), "mysql://u:p@h:1/vidlog_next?x=/y");
        assert!(MySqlUrl::read("mysql://u:p@h:1").is_err());
        assert!(MySqlUrl::read("mysql://u:p@h:1/").is_err());
    }
}
