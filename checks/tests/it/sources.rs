//! What the repository's sources define: names, string literals, flags, commands.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};

/// What the sources define.
#[derive(Default)]
pub(crate) struct Sources {
    /// Every file, relative to the repository.
    pub(crate) files: BTreeSet<String>,
    /// Every identifier of Rust code.
    pub(crate) identifiers: BTreeSet<String>,
    /// Every string literal of Rust code outside of `tests/`, with a NUL for each placeholder.
    pub(crate) literals: Vec<String>,
    /// The content of all other files except documents.
    pub(crate) texts: Vec<String>,
    /// The flags of all programs but the fault harness, such as `--ops-listen`.
    pub(crate) flags: BTreeSet<String>,
    /// The environment variables of these flags.
    pub(crate) variables: BTreeSet<String>,
    /// The names of their subcommands, such as `dead-letters`.
    pub(crate) subcommands: BTreeSet<String>,
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

impl Sources {
    pub(crate) fn of_repository() -> Self {
        let mut sources = Self::default();
        let repository = repository();
        sources.read_folder(&repository, &repository);
        sources
    }

    fn read_folder(&mut self, repository: &Path, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(repository).unwrap().to_str().unwrap().to_owned();
            if ["target", ".git", ".local"].contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                self.files.insert(format!("{name}/"));
                self.read_folder(repository, &path);
            } else {
                self.read_file(&name, &path);
            }
        }
    }

    fn read_file(&mut self, name: &str, path: &Path) {
        self.files.insert(name.to_owned());
        let Ok(text) = fs::read_to_string(path) else { return };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => {
                let is_test = name.contains("/tests/");
                let syntax = syn::parse_file(&text).unwrap();
                if !name.starts_with("chaos/") {
                    self.read_command_line(&syntax.items);
                }
                self.read_tokens(text.parse().unwrap(), is_test);
            }
            Some("md" | "lock") => {}
            _ => self.texts.push(text),
        }
    }

    fn read_tokens(&mut self, tokens: TokenStream, is_test: bool) {
        let mut is_doc = false;
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.read_tokens(group.stream(), is_test),
                TokenTree::Ident(ident) => {
                    is_doc = ident == "doc";
                    self.identifiers.insert(ident.to_string());
                }
                TokenTree::Literal(literal) if !is_doc && !is_test => {
                    if let Ok(literal) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                        self.literals.push(without_placeholders(&literal.value()));
                    }
                }
                TokenTree::Literal(_) | TokenTree::Punct(_) => {}
            }
        }
    }

    /// Reads the derives of clap.
    fn read_command_line(&mut self, items: &[syn::Item]) {
        for item in items {
            match item {
                syn::Item::Mod(item) => {
                    self.read_command_line(item.content.as_ref().map_or(&[], |(_, items)| items));
                }
                syn::Item::Struct(item) => self.read_fields(&item.fields),
                syn::Item::Enum(item) => {
                    let is_command = attribute(&item.attrs, "derive").contains("Subcommand");
                    for variant in &item.variants {
                        self.read_fields(&variant.fields);
                        if is_command {
                            self.subcommands.insert(kebab_case(&variant.ident.to_string()));
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn read_fields(&mut self, fields: &syn::Fields) {
        for field in fields {
            let argument = attribute(&field.attrs, "arg");
            let Some(name) = field.ident.as_ref().filter(|_| argument.contains("long")) else { continue };
            self.flags.insert(format!("--{}", name.to_string().replace('_', "-")));
            if let Some(variable) = argument.split('"').find(|part| part.starts_with("VIDLOG_")) {
                self.variables.insert(variable.to_owned());
            }
        }
    }

    /// The names of the items that a Rust file defines.
    pub(crate) fn items(file: &str) -> BTreeSet<String> {
        let text = fs::read_to_string(repository().join(file)).unwrap_or_default();
        let mut tokens = text.parse::<TokenStream>().unwrap().into_iter().peekable();
        let mut items = BTreeSet::new();
        while let Some(token) = tokens.next() {
            let keywords = ["struct", "enum", "trait", "type", "fn", "const", "static", "mod", "macro_rules"];
            if let TokenTree::Ident(keyword) = token
                && keywords.iter().any(|name| keyword == name)
                && let Some(TokenTree::Ident(name)) = tokens.peek()
            {
                items.insert(name.to_string());
            }
        }
        items
    }
}

fn attribute(attributes: &[syn::Attribute], name: &str) -> String {
    let lists = attributes.iter().filter_map(|attribute| attribute.meta.require_list().ok());
    lists.filter(|list| list.path.is_ident(name)).map(|list| list.tokens.to_string()).collect()
}

fn kebab_case(name: &str) -> String {
    let mut kebab = String::new();
    for character in name.chars() {
        if character.is_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.extend(character.to_lowercase());
    }
    kebab
}

fn without_placeholders(literal: &str) -> String {
    let mut text = String::new();
    let mut depth = 0_u32;
    for character in literal.chars() {
        match character {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                text.push('\0');
            }
            _ if depth == 0 => text.push(character),
            _ => {}
        }
    }
    text
}
