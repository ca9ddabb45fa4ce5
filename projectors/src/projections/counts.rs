//! Changes of the counts that a table's projection keeps beside its rows.
//!
//! Every change is that of a row between the start and the end of the batch, read and written in one transaction, so the
//! counts equal the rows whenever a batch is repeated or cut differently.

use std::collections::BTreeMap;

use sqlx::{MySqlConnection, QueryBuilder};

/// A table of counts: the primary key, then the counts.
pub(super) struct CountTable<const N: usize> {
    /// The start of the statement that adds to the counts.
    pub(super) insert: &'static str,
    /// The end of it.
    pub(super) add: &'static str,
}

/// Changes of the counts of some entities, by id.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes<const N: usize>(BTreeMap<i64, [i64; N]>);

impl<const N: usize> Default for Changes<N> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<const N: usize> Changes<N> {
    /// Adds to the counts of an entity.
    pub(super) fn add(&mut self, id: i64, by: [i64; N]) {
        let counts = self.0.entry(id).or_insert([0; N]);
        for (count, by) in counts.iter_mut().zip(by) {
            *count += by;
        }
    }

    /// Writes the changes, in one statement.
    ///
    /// Partitions may change the counts of one user at the same time. Each locks them in the order of the ids and as its
    /// last rows, so that they wait for each other without a deadlock, and not for long.
    pub(super) async fn write(
        mut self,
        connection: &mut MySqlConnection,
        table: &CountTable<N>,
    ) -> sqlx::Result<()> {
        self.0.retain(|_, counts| counts.iter().any(|count| *count != 0));
        if self.0.is_empty() {
            return Ok(());
        }
        QueryBuilder::new(table.insert)
            .push_values(self.0, |mut values, (id, counts)| {
                values.push_bind(id);
                for count in counts {
                    values.push_bind(count);
                }
            })
            .push(table.add)
            .build()
            .execute(connection)
            .await?;
        Ok(())
    }
}
