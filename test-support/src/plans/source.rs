//! Finds the SQL statements in the source.

/// A statement in the source.
pub(super) struct Statement {
    pub(super) file: String,
    /// The text, with `{…}` where values are formatted into it. A statement that is put together from several literals is
    /// known by the first of them.
    pub(super) sql: String,
}

impl Statement {
    /// Whether an executed statement is this one.
    pub(super) fn matches(&self, executed: &str) -> bool {
        let mut rest = executed;
        let mut is_first = true;
        for part in literal_parts(&self.sql) {
            match rest.find(part) {
                Some(at) if at == 0 || !is_first => rest = &rest[at + part.len()..],
                _ => return false,
            }
            is_first = false;
        }
        true
    }
}

/// The text between the `{…}`.
fn literal_parts(sql: &str) -> impl Iterator<Item = &str> {
    sql.split('{').enumerate().map(|(number, part)| {
        if number == 0 { part } else { part.split_once('}').map_or(part, |(_, rest)| rest) }
    })
}

/// Replaces each run of blanks by one.
pub(super) fn normalize(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a statement reads rows: INSERTs address theirs by primary key.
pub(super) fn is_checked(sql: &str) -> bool {
    let reads = ["SELECT ", "UPDATE ", "DELETE "].iter().any(|verb| sql.starts_with(verb));
    reads && !sql.contains("_LOCK(") && (!sql.starts_with("SELECT ") || sql.contains(" FROM"))
}

/// Returns the statements in the string literals of a file, without its unit tests.
pub(super) fn statements(file: &str, text: &str) -> Vec<Statement> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let sql = string_literals(&code).into_iter().map(|literal| normalize(&literal));
    sql.filter(|sql| is_checked(sql)).map(|sql| Statement { file: file.to_owned(), sql }).collect()
}

fn string_literals(code: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut characters = code.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            // A quote as a character literal.
            '\'' if characters.peek() == Some(&'"') => _ = characters.next(),
            '"' => {
                let mut literal = String::new();
                while let Some(character) = characters.next().filter(|character| *character != '"') {
                    match character {
                        // An escape; at the end of a line it continues the literal on the next.
                        '\\' => literal.extend(characters.next().filter(|escaped| *escaped != '\n')),
                        _ => literal.push(character),
                    }
                }
                literals.push(literal);
            }
            _ => {}
        }
    }
    literals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_found_in_literals() {
        let code = "let a = \"SELECT x \\\n     FROM {table} WHERE y = ?\"; // no \"SELECT z FROM t\"\n\
                    // \"SELECT z FROM t\"\nlet quote = '\"'; b(\"INSERT INTO t\");\n#[cfg(test)] \"SELECT z FROM t\"";
        let found = statements("f.rs", code);
        let sql: Vec<_> = found.iter().map(|statement| statement.sql.as_str()).collect();
        assert_eq!(sql, ["SELECT x FROM {table} WHERE y = ?", "SELECT z FROM t"]);
        assert!(found[0].matches("SELECT x FROM checkpoints WHERE y = ? AND z"));
        assert!(!found[0].matches("EXPLAIN SELECT x FROM checkpoints WHERE y = ?"));
        assert!(!found[0].matches("SELECT x FROM checkpoints WHERE z = ?"));
    }
}
