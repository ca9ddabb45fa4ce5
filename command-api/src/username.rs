//! User names: which are valid, and which are the same.
//!
//! A name is stored and displayed as typed. Names with one appearance are the same name: a second account cannot have it.

use icu_normalizer::ComposingNormalizer;
use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{BidiControl, DefaultIgnorableCodePoint, GeneralCategory, WhiteSpace},
};
use thiserror::Error;

/// Displays nothing, but Unicode has it among the symbols.
const BRAILLE_PATTERN_BLANK: char = '\u{2800}';

/// Why a text cannot be the name of a new user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidUsername {
    /// It contains a control character, or a line or paragraph separator.
    #[error("username contains a control character or line break; remove it")]
    Control,
    /// It contains a character that changes the direction of the text around the name.
    #[error("username contains an invisible character that changes the direction of text; remove it")]
    BidiControl,
    /// It displays nothing.
    #[error("username has no visible character")]
    Invisible,
}

/// Checks the name of a new user. Names of existing users may be invalid.
pub fn validate(username: &str) -> Result<(), InvalidUsername> {
    let bidi_controls = CodePointSetData::new::<BidiControl>();
    if username.chars().any(|char| char.is_control() || matches!(char, '\u{2028}' | '\u{2029}')) {
        Err(InvalidUsername::Control)
    } else if username.chars().any(|char| bidi_controls.contains(char)) {
        Err(InvalidUsername::BidiControl)
    } else if appearance(username).is_empty() {
        Err(InvalidUsername::Invisible)
    } else {
        Ok(())
    }
}

/// Returns the form in which names that look the same are equal; empty for a name that displays nothing.
///
/// It is NFKC without case, without characters that display nothing, with single blanks between words. One step of the
/// mapping can make another one possible, so it is repeated until it changes nothing. That is after three rounds at the
/// most: case mapping and NFKC are stable after two, and the rest only removes characters.
///
/// Names with the same [`username_key`] have the same appearance, because the mapping begins with the key.
pub fn appearance(username: &str) -> String {
    let mut appearance = simplify(username);
    loop {
        let simpler = simplify(&appearance);
        if simpler == appearance {
            return appearance;
        }
        appearance = simpler;
    }
}

/// Returns the name without case. It was the only form of comparison in the first version, and its column is unique.
///
/// Maps to upper case first, so that letters with several lower-case forms, such as the final sigma, are equal.
pub fn username_key(username: &str) -> String {
    username.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// Returns the name as the rate limits count it: the same for all names that log in to one account.
pub fn account_key(username: &str) -> Vec<u8> {
    appearance(username).into_bytes()
}

fn simplify(username: &str) -> String {
    let visible: String = username_key(username).chars().filter(|char| !is_hidden(*char)).collect();
    let normalized = ComposingNormalizer::new_nfkc().normalize(&visible);
    let words = normalized.split(is_blank).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

fn is_blank(char: char) -> bool {
    CodePointSetData::new::<WhiteSpace>().contains(char) || char == BRAILLE_PATTERN_BLANK
}

/// Controls, joiners, fillers, selectors, and similar characters without a glyph of their own.
fn is_hidden(char: char) -> bool {
    let category = || CodePointMapData::<GeneralCategory>::new().get(char);
    CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(char)
        || (!is_blank(char) && matches!(category(), GeneralCategory::Control | GeneralCategory::Format))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Letters whose case mapping or normalization has several steps, blanks, and characters that display nothing.
    const SPECIAL: &[char] = &[
        'a',
        'Z',
        'İ',
        'ı',
        'ß',
        'ẞ',
        'ς',
        'ΐ',
        'ſ',
        'K',
        'ﬁ',
        'ǅ',
        'Ａ',
        '𝚤',
        '①',
        'ﷺ',
        'ゝ',
        'ｶ',
        'ﾞ',
        '각',
        'ᄀ',
        'ᅡ',
        '¨',
        'ͅ',
        '\u{301}',
        '\u{307}',
        '\u{323}',
        '\u{34f}',
        '\u{ad}',
        '\u{200b}',
        '\u{200d}',
        '\u{fe0f}',
        '\u{e0041}',
        ' ',
        '\u{a0}',
        '\u{3000}',
        '\u{2800}',
        '\u{3164}',
        '\t',
        '\u{7}',
        '\u{fff9}',
        '\u{1f3ac}',
    ];

    fn names() -> impl Strategy<Value = String> {
        let char = prop_oneof![prop::sample::select(SPECIAL), any::<char>()];
        prop::collection::vec(char, 0..32).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn appearance_is_a_normal_form(name in names()) {
            let appearance = appearance(&name);
            prop_assert_eq!(super::appearance(&appearance), appearance.as_str());
            // The width of the column: 64 characters of 33 bytes.
            prop_assert!(appearance.len() <= 33 * name.chars().count());
            prop_assert_eq!(super::appearance(&username_key(&name)), appearance.as_str());
        }

        #[test]
        fn spelling_does_not_change_the_appearance(
            name in names(),
            words in any::<prop::sample::Index>(),
            hidden in prop::sample::select(&['\u{200b}', '\u{ad}', '\u{2060}', '\u{e0041}', '\u{7}'][..]),
            blank in prop::sample::select(&[" ", "   ", "\u{a0}", "\u{3000}", "\u{2800}", "\u{2003} "][..]),
        ) {
            let expected = appearance(&name);
            prop_assert_eq!(appearance(&name.to_lowercase()), appearance(&name.to_uppercase()));
            prop_assert_eq!(appearance(&format!("{blank}{name}{blank}")), expected.as_str());
            prop_assert_eq!(appearance(&name.replace(' ', blank)), expected.as_str());
            let boundaries: Vec<_> = name.char_indices().map(|(index, _)| index).chain([name.len()]).collect();
            let mut with_hidden = name.clone();
            with_hidden.insert(boundaries[words.index(boundaries.len())], hidden);
            prop_assert_eq!(appearance(&with_hidden), expected.as_str());
        }

        #[test]
        fn valid_name_displays_something(name in names()) {
            let has_glyph = |char: char| !is_blank(char) && !is_hidden(char);
            if validate(&name).is_ok() {
                prop_assert!(name.chars().any(has_glyph));
                prop_assert!(!name.chars().any(char::is_control));
                prop_assert!(!appearance(&name).is_empty());
            }
        }
    }

    #[test]
    fn case_variants_of_every_character_are_equal() {
        for char in '\0'..=char::MAX {
            let upper: String = char.to_uppercase().collect();
            let lower: String = char.to_lowercase().collect();
            if upper == lower {
                continue;
            }
            let expected = appearance(&char.to_string());
            assert_eq!((appearance(&upper), appearance(&lower)), (expected.clone(), expected), "{char:?}");
        }
    }

    #[test]
    fn names_that_look_the_same_are_equal() {
        for (one, other) in [
            ("Ada", "aDA"),
            ("ΟΔΟΣ", "οδος"),
            ("οδοσ", "οδος"),
            ("ſam", "SAM"),
            ("straße", "STRASSE"),
            ("STRAẞE", "strasse"),
            ("ａｄａ", "ADA"),
            ("①", "1"),
            ("ﬁlm", "film"),
            ("Zoe\u{308}", "zoë"),
            ("e\u{34f}\u{301}", "É"),
            ("ｶﾞ", "ガ"),
            (" ada", "ada\u{3000}"),
            ("ada \u{a0}  lovelace", "Ada Lovelace"),
            ("a\u{2800}b", "a b"),
            ("a\tb", "a b"),
            ("a\u{200b}d\u{ad}a\u{fe0f}", "ada"),
            ("a\u{202e}da", "ada"),
            ("a\u{7}da", "ada"),
        ] {
            assert_eq!(appearance(one), appearance(other), "{one:?} {other:?}");
        }
        for (one, other) in [("ada", "adá"), ("ada", "a da"), ("ada", "ada1"), ("O", "0"), ("ада", "ada")]
        {
            assert_ne!(appearance(one), appearance(other), "{one:?} {other:?}");
        }
    }

    #[test]
    fn key_ignores_only_case() {
        assert_eq!(username_key("ΟΔΟΣ"), username_key("οδος"));
        for (one, other) in [("ada", "ada "), ("ada", "adá"), ("ada", "ａｄａ")] {
            assert_ne!(username_key(one), username_key(other), "{one} {other}");
        }
    }

    #[test]
    fn every_visible_text_is_a_name() {
        for name in [
            "a",
            "Zoë 🎬",
            " ada ",
            "شاهین\u{200c}ها",
            "👨\u{200d}👩\u{200d}👧",
            "❤\u{fe0f}",
            "字",
            "\u{301}",
            "¨",
        ] {
            assert_eq!(validate(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn controls_and_invisible_names_are_refused() {
        for name in ["a\0", "a\tb", "a\n", "\r\n", "\u{7f}", "a\u{85}b", "a\u{2028}b", "\u{2029}"] {
            assert_eq!(validate(name), Err(InvalidUsername::Control), "{name:?}");
        }
        for name in ["a\u{202e}b", "\u{200f}a", "\u{2066}a\u{2069}", "\u{61c}", "\u{202a}\u{202c}"] {
            assert_eq!(validate(name), Err(InvalidUsername::BidiControl), "{name:?}");
        }
        for name in [
            " ",
            "\u{3000}",
            "\u{200b}",
            "\u{200d}\u{fe0f}",
            "\u{2800}",
            "\u{3164}",
            "\u{ffa0}",
            "\u{115f}",
            "\u{ad} \u{2060}",
            "\u{e0041}",
            "\u{fff9}",
        ] {
            assert_eq!(validate(name), Err(InvalidUsername::Invisible), "{name:?}");
        }
    }
}
