//! Everything that the documents quote exists: log lines, messages, metrics, settings, commands, paths, names.

use std::{collections::BTreeSet, fs, path::Path, sync::LazyLock};

use crate::sources::{Sources, repository};

static SOURCES: LazyLock<Sources> = LazyLock::new(Sources::of_repository);

/// Terms of other programs, and examples.
const FOREIGN: &[&str] = &[
    "/tmp",
    "DeleteRecords",
    "Lock wait timeout exceeded",
    "MOVED",
    "OOM",
    "SMEMBERS",
    "TMPDIR",
    "TRYAGAIN",
    "cluster_handling/async_connection",
    "end - 1",
    "cluster-require-full-coverage",
    "https://app.example",
    "maxmemory-policy noeviction",
    "progress >= mark",
    "projectors/likes: Derive the count",
];
/// Commands of other programs.
const FOREIGN_COMMANDS: &[&str] = &["kill ", "openssl ", "redis-cli ", "ulimit "];

#[test]
fn quotes_in_documents_exist() {
    let mut documents = vec!["README.md".to_owned(), "SECURITY.md".to_owned()];
    documents
        .extend(SOURCES.files.iter().filter(|file| file.starts_with("docs/") && is_document(file)).cloned());
    documents.retain(|document| document != "docs/chaos-report.md");
    let mut missing = Vec::new();
    for document in documents {
        let text = fs::read_to_string(repository().join(&document)).unwrap();
        missing.extend(missing_quotes(&text).into_iter().map(|quote| format!("{document}: {quote}")));
    }
    assert!(missing.is_empty(), "not in the sources:\n{}", missing.join("\n"));
}

#[test]
fn links_between_documents_exist() {
    let mut broken = Vec::new();
    for document in SOURCES.files.iter().filter(|file| is_document(file)) {
        let path = repository().join(document);
        let text = fs::read_to_string(&path).unwrap();
        for target in links(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let has_anchor = || headings(&fs::read_to_string(&file).unwrap_or_default()).contains(anchor);
            if !file.exists() || (!anchor.is_empty() && !has_anchor()) {
                broken.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn metrics_and_settings_are_documented() {
    let operating = fs::read_to_string(repository().join("docs/operating.md")).unwrap();
    let is_metric = |literal: &&String| {
        (literal.starts_with("vidlog_") || literal.starts_with("projector_"))
            && ["_total", "_seconds"].iter().any(|suffix| literal.ends_with(suffix))
    };
    let metrics = SOURCES.literals.iter().filter(is_metric);
    let missing: BTreeSet<_> =
        metrics.chain(&SOURCES.variables).filter(|name| !operating.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "not in docs/operating.md: {missing:?}");
}

#[test]
fn glossary_types_are_defined() {
    let glossary = fs::read_to_string(repository().join("docs/glossary.md")).unwrap();
    let rows = glossary.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| term "));
    let mut checked = 0;
    for row in rows {
        let quotes = quotes(row.rsplit('|').nth(1).unwrap());
        let [name, file] = &quotes[..] else { panic!("a row names one item and its file: {row}") };
        assert!(Sources::items(file).contains(name), "{file} does not define {name}: {row}");
        checked += 1;
    }
    assert!(checked > 20, "{checked} rows");
}

#[test]
fn missing_quotes_are_found() {
    let text = "`store on fire`, `vidlog_fires_total`, `VIDLOG_FIRE`, `--fire`, `projectors fire`, `make fire`, `src/fire.rs`, \
                `Fire::new`, `GET /projections/{name}/fire`, `likes/view: the view is on fire: …`";
    assert_eq!(missing_quotes(text).len(), 10, "{:?}", missing_quotes(text));
    let text = "`kafka append failed`, `vidlog_commands_total`, `VIDLOG_LOG`, `--log`, `projectors status`, `make run`, \
                `src/append.rs`, `Keys::favorited`, `GET /projections/{name}/dead-letters`, `projectors list --json`";
    assert_eq!(missing_quotes(text), [""; 0]);
}

fn is_document(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "md")
}

fn missing_quotes(document: &str) -> Vec<String> {
    quotes(document).into_iter().filter(|quote| !exists(quote)).collect()
}

/// The code spans of a document, without its code blocks.
fn quotes(document: &str) -> Vec<String> {
    let mut text = String::new();
    for (index, part) in document.split("```").enumerate() {
        if index % 2 == 0 {
            text.push_str(part);
        }
    }
    let mut quotes = Vec::new();
    for paragraph in text.split("\n\n").flat_map(|paragraph| paragraph.split("\n|")) {
        let mut rest = paragraph;
        while let Some(start) = rest.find('`') {
            let fence = if rest[start..].starts_with("``") { "``" } else { "`" };
            let after = &rest[start + fence.len()..];
            let Some(end) = after.find(fence) else { panic!("a code span has no end: {paragraph}") };
            quotes.push(after[..end].split_whitespace().collect::<Vec<_>>().join(" "));
            rest = &after[end + fence.len()..];
        }
    }
    quotes
}

fn exists(quote: &str) -> bool {
    let is_foreign =
        FOREIGN.contains(&quote) || FOREIGN_COMMANDS.iter().any(|prefix| quote.starts_with(prefix));
    let mut words = quote.split_whitespace();
    let first = words.next().unwrap_or_default();
    is_foreign
        || match first {
            "make" => quote.split(' ').nth(1).is_some_and(is_make_target),
            "projectors" | "command-api" if quote.contains(' ') => words.all(is_command_word),
            _ if quote.contains("cargo test") => is_test(quote),
            _ if first.starts_with("VIDLOG_") => is_variable(first.split('=').next().unwrap_or_default()),
            _ if quote.contains(" --") || first.starts_with("--") => {
                quote.split(' ').filter(|word| word.starts_with("--")).all(is_flag)
            }
            _ if is_path(quote) => path_exists(quote),
            _ => is_text(quote),
        }
}

fn is_make_target(target: &str) -> bool {
    let makefile = fs::read_to_string(repository().join("Makefile")).unwrap();
    makefile.lines().any(|line| line.starts_with(&format!("{target}:")))
}

fn is_command_word(word: &str) -> bool {
    if word.starts_with("--") { is_flag(word) } else { SOURCES.subcommands.contains(word) }
}

fn is_flag(flag: &str) -> bool {
    SOURCES.flags.contains(flag) || ["--help", "--version"].contains(&flag)
}

fn is_variable(name: &str) -> bool {
    SOURCES.variables.contains(name) || SOURCES.texts.iter().any(|text| text.contains(name))
}

/// Whether a quote is meant as a file or a folder of the repository.
fn is_path(quote: &str) -> bool {
    let extensions = [".rs", ".lua", ".sql", ".md", ".toml", ".json", ".yaml"];
    !quote.contains(' ')
        && !quote.starts_with('/')
        && (extensions.iter().any(|extension| quote.ends_with(extension))
            || quote.ends_with('/') && !quote.contains("//")
            || quote.contains('/')
                && SOURCES.files.contains(&format!("{}/", quote.split('/').next().unwrap_or_default())))
}

/// Looks for files whose path ends with the quote. `*`, `<…>` and `{…}` stand for any text.
fn path_exists(quote: &str) -> bool {
    let parts = split_at_placeholders(quote);
    let (first, last) = (parts[0].as_str(), parts[parts.len() - 1].as_str());
    let ends = |file: &str| {
        file.trim_end_matches('/').ends_with(last.trim_end_matches('/'))
            && parts.iter().all(|part| file.contains(part.as_str()))
    };
    let starts = |file: &str| file.starts_with(first) || file.contains(&format!("/{first}"));
    quote.starts_with(".local/") || SOURCES.files.iter().any(|file| ends(file) && starts(file))
}

/// A message is in one string literal, or one for each part between colons. Of anything else each word is in the sources.
fn is_text(quote: &str) -> bool {
    let parts = split_at_placeholders(quote);
    let is_message =
        quote.contains(' ') && quote.starts_with(|first: char| first.is_lowercase() || first == '<');
    if is_message {
        let lines = parts.iter().flat_map(|part| part.split(": ")).map(|part| part.trim_end_matches(':'));
        let lines = lines.map(|line| line.trim_matches('['));
        lines.filter(|line| is_worth_a_search(line)).all(is_in_literal)
    } else {
        let is_separator = |character: char| !character.is_alphanumeric() && !"_-.".contains(character);
        let words = parts
            .iter()
            .flat_map(|part| part.split(is_separator))
            .map(|word| word.trim_matches(['.', '-', '_']));
        words
            .filter(|word| is_worth_a_search(word))
            .all(|word| is_in_literal(word) || is_in_text(word) || is_name(word))
    }
}

fn is_worth_a_search(part: &str) -> bool {
    part.chars().filter(char::is_ascii_alphabetic).count() > 2
}

fn is_in_literal(part: &str) -> bool {
    SOURCES.literals.iter().any(|literal| literal.contains(part))
}

fn is_in_text(part: &str) -> bool {
    SOURCES.texts.iter().any(|text| text.contains(part))
}

fn is_name(name: &str) -> bool {
    let in_workspace = format!("vidlog_{name}");
    SOURCES.identifiers.contains(name)
        || SOURCES.identifiers.contains(&in_workspace)
        || SOURCES.files.contains(&format!("{name}/"))
}

/// `cargo test -p PACKAGE FILTER`: some function's name contains the filter.
fn is_test(command: &str) -> bool {
    let arguments =
        command.split_once("cargo test").map_or("", |(_, arguments)| arguments).split_whitespace();
    arguments.filter(|argument| *argument != "-p").all(|argument| {
        is_in_text(&format!("name = \"{argument}\""))
            || SOURCES.identifiers.iter().any(|name| name.contains(argument))
    })
}

/// Splits a quote at what stands for other text: `…`, `*`, `<name>`, `{name}`, a number, `NAME`, the name of a projection.
fn split_at_placeholders(quote: &str) -> Vec<String> {
    let mut text = String::new();
    let mut closing = None;
    for character in quote.chars() {
        match (closing, character) {
            (Some(close), _) if character == close => closing = None,
            (Some(_), _) => {}
            (None, '<' | '{') => {
                closing = Some(if character == '<' { '>' } else { '}' });
                text.push('\0');
            }
            (None, '…' | '*' | '0'..='9') => text.push('\0'),
            (None, _) => text.push(character),
        }
    }
    let text = text.replace("NAME", "\0");
    let text = text.strip_prefix("likes").filter(|rest| rest.starts_with(['/', ':'])).unwrap_or(&text);
    text.split('\0').map(|part| part.trim_matches([' ', '"', '?', '='])).map(str::to_owned).collect()
}

/// The targets of the links that lead to files of this repository.
fn links(text: &str) -> Vec<&str> {
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(target, _)| target).filter(|target| !target.contains("://")).collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let titles = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let kept = |character: &char| character.is_alphanumeric() || [' ', '-', '_'].contains(character);
    titles.map(|title| title.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}
