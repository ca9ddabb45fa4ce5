//! The modules of one crate as rustc sees them: a tree of scopes, and the paths that the code of each scope uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::Context;
use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Expr, ImplItem, Item, ItemImpl, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility,
    visit::{self, Visit},
};

/// The modules of a crate. Code under `#[cfg(test)]` is left out.
#[derive(Debug, Default)]
pub struct Modules {
    /// The source files, relative to the workspace.
    pub files: Vec<PathBuf>,
    /// The modules; the first is the crate's root.
    pub modules: Vec<Module>,
}

/// A module: the names in its scope, and the paths that its code uses.
#[derive(Debug, Default)]
pub struct Module {
    /// The index of the file that holds its code.
    pub file: usize,
    /// The index of the enclosing module; the root has none.
    pub parent: Option<usize>,
    /// The modules that it declares, by name.
    pub children: BTreeMap<String, usize>,
    /// The names of the items that it defines.
    pub items: BTreeSet<String>,
    /// The names that it imports, each with the path that it stands for.
    pub imports: BTreeMap<String, Vec<String>>,
    /// The paths whose content it imports with `*`.
    pub globs: Vec<Vec<String>>,
    /// The paths in its code. A re-export is none: it only gives an item a second name.
    pub paths: BTreeSet<Vec<String>>,
    /// The methods of its inherent `impl` blocks: path of the type, name of the method.
    pub methods: BTreeSet<(Vec<String>, String)>,
    /// The methods that its `impl` blocks call on `self` or `Self`: path of the type, name of the method.
    pub self_calls: BTreeSet<(Vec<String>, String)>,
}

impl Modules {
    /// Reads the crate whose root file is `root`. The names of its files are made relative to `workspace`.
    pub fn read(workspace: &Path, root: &Path) -> anyhow::Result<Self> {
        let folder = root.parent().context("a root file is in a folder")?.to_owned();
        let mut reader = Reader {
            workspace,
            modules: Self::default(),
            module: 0,
            folder,
            self_type: None,
            imported: Vec::new(),
            failure: None,
        };
        reader.modules.modules.push(Module::default());
        reader.read_file(root)?;
        match reader.failure {
            Some(failure) => Err(failure),
            None => Ok(reader.modules),
        }
    }
}

/// Visits the syntax tree of a crate, file by file, and fills in its modules.
struct Reader<'a> {
    workspace: &'a Path,
    modules: Modules,
    /// The module whose code is visited.
    module: usize,
    /// Where the files of its child modules are.
    folder: PathBuf,
    /// The type whose `impl` block is visited.
    self_type: Option<Vec<String>>,
    /// The paths of the `use` item that is visited.
    imported: Vec<Vec<String>>,
    /// The first error: a visitor cannot return one.
    failure: Option<anyhow::Error>,
}

impl Reader<'_> {
    fn current(&mut self) -> &mut Module {
        &mut self.modules.modules[self.module]
    }

    fn read_file(&mut self, path: &Path) -> anyhow::Result<()> {
        let source =
            std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        let syntax =
            syn::parse_file(&source).with_context(|| format!("failed to parse {}", path.display()))?;
        self.current().file = self.modules.files.len();
        self.modules.files.push(path.strip_prefix(self.workspace).unwrap_or(path).to_owned());
        self.visit_file(&syntax);
        Ok(())
    }

    fn read_child(&mut self, name: &str, item: &ItemMod) -> anyhow::Result<()> {
        let child = self.modules.modules.len();
        let (parent, file) = (self.module, self.current().file);
        self.current().children.insert(name.to_owned(), child);
        self.modules.modules.push(Module { file, parent: Some(parent), ..Module::default() });
        let folder = self.folder.join(name);
        let parent_folder = std::mem::replace(&mut self.folder, folder);
        self.module = child;
        let result = match &item.content {
            Some((_, items)) => {
                for item in items {
                    self.visit_item(item);
                }
                Ok(())
            }
            None => self.read_file(&file_of(&parent_folder, name)),
        };
        self.module = parent;
        self.folder = parent_folder;
        result
    }

    fn import(&mut self, prefix: &[String], tree: &UseTree) {
        let mut path = prefix.to_vec();
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.import(&path, &tree.tree);
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(&path, tree)),
            UseTree::Glob(_) => {
                self.current().globs.push(path.clone());
                path.push("*".to_owned());
                self.imported.push(path);
            }
            UseTree::Name(name) if name.ident == "self" => self.import_as(path.last().cloned(), path),
            UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.import_as(path.last().cloned(), path);
            }
            UseTree::Rename(rename) => {
                if rename.ident != "self" {
                    path.push(rename.ident.to_string());
                }
                self.import_as(Some(rename.rename.to_string()), path);
            }
        }
    }

    fn import_as(&mut self, name: Option<String>, path: Vec<String>) {
        self.imported.push(path.clone());
        // `use crate::x::{self}` inside of `x` and the like would resolve to themselves.
        if let Some(name) = name.filter(|name| path.len() > 1 || *name != path[0]) {
            self.current().imports.insert(name, path);
        }
    }

    /// Finds paths of two and more segments in what a macro is given: `crate::a::B`, `$crate::a::B`, `a::B`.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => path.push(ident.to_string()),
                TokenTree::Ident(ident) => {
                    self.found(std::mem::replace(&mut path, vec![ident.to_string()]));
                }
                TokenTree::Group(group) => {
                    self.found(std::mem::take(&mut path));
                    self.scan(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.found(std::mem::take(&mut path)),
            }
            colons = 0;
        }
        self.found(path);
    }

    fn found(&mut self, path: Vec<String>) {
        if path.len() > 1 {
            self.current().paths.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = attributes_and_name(item);
        if is_test(attributes) {
            return;
        }
        if let Some(name) = name {
            self.current().items.insert(name.to_string());
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let result = self.read_child(&item.ident.to_string(), item);
        self.failure = self.failure.take().or(result.err());
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            self.import(&[], &item.tree);
        }
        let imported = std::mem::take(&mut self.imported);
        if matches!(item.vis, Visibility::Inherited) {
            self.current().paths.extend(imported);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let self_type = match &*item.self_ty {
            syn::Type::Path(path) => Some(segments(&path.path)),
            _ => None,
        };
        if let (Some(self_type), None) = (&self_type, &item.trait_) {
            for method in &item.items {
                if let ImplItem::Fn(method) = method {
                    self.current().methods.insert((self_type.clone(), method.sig.ident.to_string()));
                }
            }
        }
        let outer = std::mem::replace(&mut self.self_type, self_type);
        visit::visit_item_impl(self, item);
        self.self_type = outer;
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Const(item) => &item.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if let (Expr::Path(receiver), Some(self_type)) = (&*call.receiver, self.self_type.clone())
            && receiver.path.is_ident("self")
        {
            self.current().self_calls.insert((self_type, call.method.to_string()));
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = segments(path);
        if let ([first, method], Some(self_type)) = (&segments[..], &self.self_type)
            && first == "Self"
        {
            let call = (self_type.clone(), method.clone());
            self.current().self_calls.insert(call);
        }
        if path.leading_colon.is_none() {
            self.current().paths.insert(segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast Macro) {
        self.visit_path(&invocation.path);
        self.scan(invocation.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.scan(list.tokens.clone());
        }
    }

    /// `pub(in crate::a)` is no use of `a`.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn segments(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

/// The file of a module that is declared in a file whose child modules are in `folder`.
fn file_of(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join(format!("{name}.rs"));
    if file.exists() { file } else { folder.join(name).join("mod.rs") }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let condition = match &attribute.meta {
            Meta::List(list) if list.path.is_ident("cfg") => list.tokens.to_string(),
            _ => return attribute.path().is_ident("test"),
        };
        condition == "test" || condition.starts_with("all (test") || condition.starts_with("all(test")
    })
}

fn attributes_and_name(item: &Item) -> (&[Attribute], Option<&syn::Ident>) {
    match item {
        Item::Const(item) => (&item.attrs, Some(&item.ident)),
        Item::Enum(item) => (&item.attrs, Some(&item.ident)),
        Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
        Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
        Item::Static(item) => (&item.attrs, Some(&item.ident)),
        Item::Struct(item) => (&item.attrs, Some(&item.ident)),
        Item::Trait(item) => (&item.attrs, Some(&item.ident)),
        Item::TraitAlias(item) => (&item.attrs, Some(&item.ident)),
        Item::Type(item) => (&item.attrs, Some(&item.ident)),
        Item::Union(item) => (&item.attrs, Some(&item.ident)),
        Item::Impl(item) => (&item.attrs, None),
        Item::Mod(item) => (&item.attrs, None),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    }
}
