//! Differences between two views, as operators read them.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{line::LineKey, merge::Pair};

/// Number of differences that are listed; further ones are only counted.
const MAX_LISTED: usize = 1000;
/// Bytes of differing members that are listed per key.
const MAX_LISTED_BYTES: usize = 400;

/// A Redis key or a MySQL row that differs between two views.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The Redis key as it is in the first generation, or the MySQL table and primary key.
    pub name: String,
    /// What the view should have; `None` if the key or row should not exist. Of a key: its size and the
    /// members that differ.
    pub expected: Option<String>,
    /// What the view has; `None` if the key or row is missing.
    pub found: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{}: expected {}, found {}", self.name, show(&self.expected), show(&self.found))
    }
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Number of keys and rows that were expected.
    pub(crate) lines: usize,
    /// Number of keys and rows that differ.
    pub(crate) count: usize,
    /// First differences.
    pub(crate) differences: Vec<Difference>,
}

/// Finds the differences in merged lines, and combines those of one Redis key.
#[derive(Default)]
pub(crate) struct DifferenceCollector {
    compared: Compared,
    last: Option<Group>,
}

impl DifferenceCollector {
    /// Adds the next line, whether it differs or not.
    pub(crate) fn add(&mut self, (key, expected, found): Pair<LineKey>) {
        if let Some(last) = self.last.take_if(|last| !last.key.is_of_same_name(&key)) {
            self.close(last);
        }
        self.last.get_or_insert_with(|| Group::new(key.clone())).add(&key, expected, found);
    }

    /// Ends the comparison and returns its result.
    pub(crate) fn finish(mut self) -> Compared {
        if let Some(last) = self.last.take() {
            self.close(last);
        }
        self.compared
    }

    fn close(&mut self, group: Group) {
        self.compared.lines += usize::from(group.expected.members > 0);
        if group.differs {
            self.compared.count += 1;
            if self.compared.differences.len() < MAX_LISTED {
                self.compared.differences.push(group.into_difference());
            }
        }
    }
}

/// Combines differing lines by Redis key. Sizes are those of the keys by name, expected and found.
pub(crate) fn combine(
    lines: &BTreeMap<LineKey, (Option<String>, Option<String>)>,
    sizes: &BTreeMap<String, (usize, usize)>,
) -> Vec<Difference> {
    let mut groups: Vec<Group> = Vec::new();
    for (key, (expected, found)) in lines {
        if groups.last().is_none_or(|last| !last.key.is_of_same_name(key)) {
            groups.push(Group::new(key.clone()));
        }
        if let Some(group) = groups.last_mut() {
            group.add(key, expected.clone(), found.clone());
        }
    }
    for group in &mut groups {
        if let Some((expected, found)) = sizes.get(&group.key.to_string()) {
            group.expected.members = group.expected.members.max(*expected);
            group.found.members = group.found.members.max(*found);
        }
    }
    groups.into_iter().map(Group::into_difference).collect()
}

/// The lines of one Redis key, or one row.
struct Group {
    key: LineKey,
    expected: Side,
    found: Side,
    differs: bool,
}

#[derive(Default)]
struct Side {
    members: usize,
    /// The members that differ, as far as they are listed.
    listed: String,
    unlisted: usize,
}

impl Group {
    fn new(key: LineKey) -> Self {
        Self { key, expected: Side::default(), found: Side::default(), differs: false }
    }

    fn add(&mut self, key: &LineKey, expected: Option<String>, found: Option<String>) {
        let differs = expected != found;
        self.differs |= differs;
        for (side, content) in [(&mut self.expected, expected), (&mut self.found, found)] {
            if let Some(content) = content {
                side.members += 1;
                if differs {
                    side.list(key, &content);
                }
            }
        }
    }

    fn into_difference(self) -> Difference {
        let is_key = self.key.redis().is_some();
        let describe = |side: Side| (side.members > 0).then(|| side.describe(is_key));
        Difference {
            name: self.key.to_string(),
            expected: describe(self.expected),
            found: describe(self.found),
        }
    }
}

impl Side {
    fn list(&mut self, key: &LineKey, content: &str) {
        if self.listed.len() >= MAX_LISTED_BYTES {
            self.unlisted += 1;
            return;
        }
        if !self.listed.is_empty() {
            self.listed.push(' ');
        }
        if let Some((_, member)) = key.redis() {
            self.listed.push_str(&String::from_utf8_lossy(member));
            if !content.is_empty() {
                self.listed.push('=');
            }
        }
        let kept = content.floor_char_boundary(MAX_LISTED_BYTES);
        self.listed.push_str(&content[..kept]);
        if kept < content.len() {
            self.listed.push('…');
        }
    }

    fn describe(self, is_key: bool) -> String {
        let Self { members, listed, unlisted } = self;
        let more = if unlisted > 0 { format!(" and {unlisted} more") } else { String::new() };
        match (is_key, listed.is_empty()) {
            (false, _) => listed,
            (true, true) => format!("{members} members"),
            (true, false) => format!("{members} members with {listed}{more}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(pairs: &[(LineKey, Option<&str>, Option<&str>)]) -> (usize, usize, Vec<String>) {
        let mut collector = DifferenceCollector::default();
        for (key, expected, found) in pairs {
            collector.add((key.clone(), expected.map(str::to_owned), found.map(str::to_owned)));
        }
        let Compared { lines, count, differences } = collector.finish();
        (lines, count, differences.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn missing_wrong_and_superfluous_lines_differ() {
        let row = |id| LineKey::row("users", &[id]);
        let (lines, count, differences) = collect(&[
            (row(1), Some("same"), Some("same")),
            (row(2), Some("a"), Some("b")),
            (row(3), Some("a"), None),
            (row(4), None, Some("b")),
        ]);
        assert_eq!((lines, count), (3, 3));
        assert_eq!(
            differences,
            [
                "users/2: expected a, found b",
                "users/3: expected a, found nothing",
                "users/4: expected nothing, found b",
            ]
        );
    }

    #[test]
    fn members_of_a_key_are_one_difference() {
        let (lines, count, differences) = collect(&[
            (LineKey::member("a", "1"), Some(""), Some("")),
            (LineKey::member("a", "2"), None, Some("")),
            (LineKey::member("b", "1"), Some("7"), Some("8")),
            (LineKey::member("b", "2"), Some("7"), Some("7")),
            (LineKey::member("c", "1"), Some(""), None),
            (LineKey::member("d", "1"), Some(""), Some("")),
        ]);
        assert_eq!((lines, count), (4, 3));
        assert_eq!(
            differences,
            [
                "a: expected 1 members, found 2 members with 2",
                "b: expected 2 members with 1=7, found 2 members with 1=8",
                "c: expected 1 members with 1, found nothing",
            ]
        );
    }

    #[test]
    fn further_members_and_differences_are_counted() {
        let members =
            (100_000..200_000).map(|member| (LineKey::member("a", member.to_string()), None, Some("")));
        let rows = (1..=2000).map(|row| (LineKey::row("users", &[row]), None, Some("x")));
        let (lines, count, differences) = collect(&members.chain(rows).collect::<Vec<_>>());
        assert_eq!((lines, count, differences.len()), (0, 2001, MAX_LISTED));
        assert!(differences[0].starts_with("a: expected nothing, found 100000 members with 100000 100001 "));
        assert!(differences[0].ends_with(" and 99942 more"), "{}", differences[0]);
    }

    #[test]
    fn combined_lines_show_the_sizes_of_their_keys() {
        let lines = BTreeMap::from([
            (LineKey::member("a", "1"), (None, Some("5".to_owned()))),
            (LineKey::member("b", "1"), (None, Some(String::new()))),
            (LineKey::row("users", &[1]), (Some("x".to_owned()), None)),
        ]);
        let sizes = BTreeMap::from([("a".to_owned(), (2, 3)), ("b".to_owned(), (0, 1))]);
        let combined: Vec<_> = combine(&lines, &sizes).iter().map(ToString::to_string).collect();
        assert_eq!(
            combined,
            [
                "a: expected 2 members, found 3 members with 1=5",
                "b: expected nothing, found 1 members with 1",
                "users/1: expected x, found nothing",
            ]
        );
    }
}
