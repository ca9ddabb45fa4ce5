//! Differences as they are kept.

use crate::audit::Difference;

/// Bytes of a content that are kept: a key can have millions of members.
const KEPT: usize = 400;

/// A difference, of whose long contents only a part is left: where they begin to differ.
pub(super) fn shortened(difference: Difference) -> Difference {
    let Difference { name, expected, found } = difference;
    let equal = |(expected, found): (&String, &String)| {
        expected.bytes().zip(found.bytes()).take_while(|(expected, found)| expected == found).count()
    };
    let equal = expected.as_ref().zip(found.as_ref()).map_or(0, equal);
    let from = equal.saturating_sub(KEPT / 2);
    let shorten = |content: Option<String>| content.map(|content| part(content, from));
    Difference { expected: shorten(expected), found: shorten(found), name }
}

fn part(content: String, from: usize) -> String {
    if content.len() <= KEPT {
        return content;
    }
    let (from, to) = (content.floor_char_boundary(from), content.floor_char_boundary(from + KEPT));
    let part = content.get(from..to).unwrap_or_default();
    format!("{part} (bytes {from} to {to} of {})", content.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(members: impl Iterator<Item = u32>) -> String {
        members.map(|member| member.to_string()).collect::<Vec<_>>().join(" ")
    }

    fn difference(expected: Option<String>, found: Option<String>) -> Difference {
        Difference { name: "key".to_owned(), expected, found }
    }

    #[test]
    fn of_long_contents_the_part_is_kept_in_which_they_differ() {
        let all = members(1000..3000);
        let one_less = members((1000..3000).filter(|member| *member != 2500));
        let Difference { expected, found, .. } = shortened(difference(Some(all), Some(one_less)));
        let (expected, found) = (expected.unwrap(), found.unwrap());
        assert!(expected.contains(" 2499 2500 2501 "), "{expected}");
        assert!(found.contains(" 2499 2501 "), "{found}");
        assert!(found.ends_with("of 9994)"), "{found}");
        assert!(expected.len() < KEPT + 50 && found.len() < KEPT + 50);
    }

    #[test]
    fn what_is_short_or_ends_early_is_kept_too() {
        let short = || Some(members(1000..1010));
        assert_eq!(shortened(difference(short(), None)), difference(short(), None));
        let Difference { expected, found, .. } = shortened(difference(short(), Some(members(1000..3000))));
        assert_eq!(expected, short());
        assert!(found.unwrap().ends_with("(bytes 0 to 400 of 9999)"));
        let whole = members(1000..3000);
        let begun = whole.get(..6000).map(str::to_owned);
        let Difference { expected, .. } = shortened(difference(begun, Some(whole)));
        assert!(expected.unwrap().ends_with("(bytes 5800 to 6000 of 6000)"));
        let umlauts = Some("ä".repeat(1000));
        let Difference { found, .. } = shortened(difference(Some(format!("{}b", "ä".repeat(501))), umlauts));
        assert!(found.unwrap().contains("(bytes 802 to 1202 of 2000)"));
    }
}
