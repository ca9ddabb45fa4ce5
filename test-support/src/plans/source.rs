//! Finds the SQL statements in the source.

/// A statement in the source.
pub(super) struct Statement {
    pub(super) file: String,
    /// The text, with `{…}` where values are formatted into it. A statement that is put together from several literals at
    /// run time is known by the first of them.
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

/// The string literals of code. Those of a `concat!` are one, with `{}` for each macro, or parameter of a
/// macro, between them.
fn string_literals(code: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut rest = code;
    let mut concat: Option<Concat> = None;
    while let Some(character) = rest.chars().next() {
        if concat.is_none()
            && let Some(inside) = rest.strip_prefix("concat!(")
        {
            concat = Some(Concat { text: String::new(), depth: 1 });
            rest = inside;
            continue;
        }
        rest = &rest[character.len_utf8()..];
        match (character, &mut concat) {
            // A quote as a character literal.
            ('\'', _) if rest.starts_with('"') => rest = &rest[1..],
            ('"', concat) => {
                let literal;
                (literal, rest) = string_literal(rest);
                match concat {
                    Some(concat) if concat.depth == 1 => concat.text.push_str(&literal),
                    Some(_) => {}
                    None => literals.push(literal),
                }
            }
            ('$', Some(concat)) if concat.depth == 1 => concat.text.push_str("{}"),
            ('(', Some(concat)) => {
                concat.text.push_str(if concat.depth == 1 { "{}" } else { "" });
                concat.depth += 1;
            }
            (')', Some(inner)) => {
                inner.depth -= 1;
                if inner.depth == 0 {
                    literals.extend(concat.take().map(|concat| concat.text));
                }
            }
            _ => {}
        }
    }
    literals
}

/// A `concat!` that has not ended.
struct Concat {
    text: String,
    /// The number of open parentheses.
    depth: usize,
}

/// Returns the literal after its opening quote, and what follows it.
fn string_literal(code: &str) -> (String, &str) {
    let mut literal = String::new();
    let mut characters = code.chars();
    while let Some(character) = characters.next().filter(|character| *character != '"') {
        match character {
            // An escape; at the end of a line it continues the literal on the next.
            '\\' => literal.extend(characters.next().filter(|escaped| *escaped != '\n')),
            _ => literal.push(character),
        }
    }
    (literal, characters.as_str())
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

    #[test]
    fn concatenated_literals_are_one_statement() {
        let code = "const A: &str = concat!(\n\"UPDATE \", batch!(\"a\", \"b\"), \" SET c = (\", now!(), \") + ?\");\n\"DELETE FROM t\"";
        let found = statements("f.rs", code);
        let sql: Vec<_> = found.iter().map(|statement| statement.sql.as_str()).collect();
        assert_eq!(sql, ["UPDATE {} SET c = ({}) + ?", "DELETE FROM t"]);
        assert!(found[0].matches("UPDATE x SET c = (NOW()) + ?"));
        assert!(!found[0].matches("UPDATE x SET d = (NOW()) + ?"));
        let found = statements("f.rs", "concat!(\"SELECT \", $id, \" FROM \", $table, \" WHERE a = ?\")");
        assert_eq!(found[0].sql, "SELECT {} FROM {} WHERE a = ?");
    }
}
