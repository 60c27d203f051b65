//! [`Data`]: the file that nodes share, as one more process that reads and writes it.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::Connection;

use crate::PATIENCE;

/// Rows by id, of the entity `items`.
pub type Rows = HashMap<String, String>;

/// A connection to the file.
pub struct Data(Connection);

impl Data {
    /// The file of nodes that have been started.
    pub fn open(path: &Path) -> Self {
        let connection = Connection::open(path).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        Self(connection)
    }

    /// All that there is: the truth that clients are to hold in the end.
    pub fn rows(&self) -> Rows {
        let mut statement = self
            .0
            .prepare_cached("SELECT id, body FROM entities WHERE entity = 'items'")
            .unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Writes rows, all at once, of which no node knows.
    pub fn write(&mut self, rows: impl IntoIterator<Item = (u32, String)>) {
        let transaction = self.0.transaction().unwrap();
        for (id, body) in rows {
            let sql = "INSERT OR REPLACE INTO entities (entity, id, body) VALUES ('items', ?1, ?2)";
            let mut statement = transaction.prepare_cached(sql).unwrap();
            statement.execute([&id.to_string(), &body]).unwrap();
        }
        transaction.commit().unwrap();
    }
}
