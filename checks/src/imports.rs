//! Which file of a crate uses which other one, and the cycles among them.
//!
//! A file uses the file that defines an item that it names, however the item is re-exported. Neither a `mod`
//! line nor a re-export is a use by itself. Calls of a method on another value, and code that a macro generates, are not seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use crate::modules::Modules;

/// The uses among the files of one crate.
#[derive(Debug)]
pub struct Imports {
    files: Vec<PathBuf>,
    /// For each pair of files the names that the first uses of the second.
    edges: BTreeMap<(usize, usize), BTreeSet<String>>,
}

/// Files that use each other in a cycle.
#[derive(Debug)]
pub struct Cycle {
    /// The files.
    pub files: Vec<PathBuf>,
    /// The uses among them: the user, the used, and the names.
    pub edges: Vec<(PathBuf, PathBuf, BTreeSet<String>)>,
}

impl Imports {
    /// Reads the crate whose root file is `root`. The names of its files are made relative to `workspace`.
    pub fn of_target(workspace: &Path, root: &Path) -> anyhow::Result<Self> {
        let modules = Modules::read(workspace, root)?;
        let edges = edges(&modules);
        Ok(Self { files: modules.files, edges })
    }

    /// The number of files of the crate.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// The names that one file uses of another.
    pub fn names(&self, user: &str, used: &str) -> Vec<&str> {
        let is_edge = |&(from, to): &(usize, usize)| {
            self.files[from] == Path::new(user) && self.files[to] == Path::new(used)
        };
        self.edges
            .iter()
            .filter(|(edge, _)| is_edge(edge))
            .flat_map(|(_, names)| names)
            .map(String::as_str)
            .collect()
    }

    /// The cycles: the strongly connected components of more than one file.
    pub fn cycles(&self) -> Vec<Cycle> {
        let mut successors = vec![Vec::new(); self.files.len()];
        for &(from, to) in self.edges.keys() {
            successors[from].push(to);
        }
        let components = strongly_connected_components(&successors);
        components
            .into_iter()
            .filter(|component| component.len() > 1)
            .map(|component| self.cycle(&component))
            .collect()
    }

    fn cycle(&self, component: &[usize]) -> Cycle {
        let inside = |(from, to): &(usize, usize)| component.contains(from) && component.contains(to);
        let edges = self.edges.iter().filter(|(edge, _)| inside(edge));
        Cycle {
            files: component.iter().map(|&file| self.files[file].clone()).collect(),
            edges: edges
                .map(|(&(from, to), names)| (self.files[from].clone(), self.files[to].clone(), names.clone()))
                .collect(),
        }
    }
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (from, to, names) in &self.edges {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            writeln!(f, "  {} -> {}: {}", from.display(), to.display(), names.join(", "))?;
        }
        Ok(())
    }
}

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Module(usize),
    Item { file: usize, name: String },
    External,
}

fn edges(modules: &Modules) -> BTreeMap<(usize, usize), BTreeSet<String>> {
    let mut edges = BTreeMap::<_, BTreeSet<String>>::new();
    let mut add = |from: usize, to: usize, name: String| {
        if from != to {
            edges.entry((from, to)).or_default().insert(name);
        }
    };
    let methods = methods(modules);
    for (index, module) in modules.modules.iter().enumerate() {
        for path in &module.paths {
            if let Target::Item { file, name } = resolve(modules, index, path, &mut BTreeSet::new()) {
                add(module.file, file, name);
            }
        }
        for (self_type, method) in &module.self_calls {
            let self_type = resolve(modules, index, self_type, &mut BTreeSet::new());
            for &file in methods.get(&(self_type, method)).into_iter().flatten() {
                add(module.file, file, format!("{method}()"));
            }
        }
    }
    edges
}

/// The files that define each inherent method of the crate's types.
fn methods(modules: &Modules) -> BTreeMap<(Target, &String), BTreeSet<usize>> {
    let mut methods = BTreeMap::<_, BTreeSet<usize>>::new();
    for (index, module) in modules.modules.iter().enumerate() {
        for (self_type, method) in &module.methods {
            let self_type = resolve(modules, index, self_type, &mut BTreeSet::new());
            if self_type != Target::External {
                methods.entry((self_type, method)).or_default().insert(module.file);
            }
        }
    }
    methods
}

/// The names that were looked up on the way to the present one, so that imports in a circle end.
type Visited = BTreeSet<(usize, String, bool)>;

fn resolve(modules: &Modules, scope: usize, path: &[String], visited: &mut Visited) -> Target {
    let mut module = scope;
    for (index, name) in path.iter().enumerate() {
        let is_last = index + 1 == path.len();
        let next = match name.as_str() {
            "crate" => Some(Target::Module(0)),
            "self" => Some(Target::Module(module)),
            "super" => modules.modules[module].parent.map(Target::Module),
            _ => lookup(modules, module, name, is_last, visited),
        };
        match next {
            Some(Target::Module(next)) => module = next,
            Some(target) => return target,
            // The first name is another crate, or a local variable. A later one is made by a macro of the module.
            None if index == 0 => return Target::External,
            None => return Target::Item { file: modules.modules[module].file, name: name.clone() },
        }
    }
    Target::Module(module)
}

/// Looks a name up in a module: a path's last name is an item sooner than a module, any other the reverse.
fn lookup(
    modules: &Modules,
    module: usize,
    name: &str,
    is_last: bool,
    visited: &mut Visited,
) -> Option<Target> {
    if !visited.insert((module, name.to_owned(), is_last)) {
        return None;
    }
    let scope = &modules.modules[module];
    let child = scope.children.get(name).map(|&child| Target::Module(child));
    let item = scope.items.contains(name).then(|| Target::Item { file: scope.file, name: name.to_owned() });
    let own = if is_last { item.or(child) } else { child.or(item) };
    own.or_else(|| scope.imports.get(name).map(|path| resolve(modules, module, path, visited))).or_else(
        || {
            scope.globs.iter().find_map(|glob| match resolve(modules, module, glob, visited) {
                Target::Module(used) => lookup(modules, used, name, is_last, visited),
                _ => None,
            })
        },
    )
}

/// Tarjan's algorithm.
fn strongly_connected_components(successors: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut search = Search { successors, order: vec![None; successors.len()], ..Search::default() };
    for node in 0..successors.len() {
        if search.order[node].is_none() {
            search.visit(node);
        }
    }
    search.components
}

#[derive(Default)]
struct Search<'a> {
    successors: &'a [Vec<usize>],
    /// When each node was visited.
    order: Vec<Option<usize>>,
    visits: usize,
    stack: Vec<usize>,
    components: Vec<Vec<usize>>,
}

impl Search<'_> {
    /// Returns the earliest visit that is reachable from the node among those on the stack.
    fn visit(&mut self, node: usize) -> usize {
        let own = self.visits;
        self.visits += 1;
        self.order[node] = Some(own);
        self.stack.push(node);
        let mut lowest = own;
        for &next in &self.successors[node] {
            match self.order[next] {
                None => lowest = lowest.min(self.visit(next)),
                Some(order) if self.stack.contains(&next) => lowest = lowest.min(order),
                Some(_) => {}
            }
        }
        if lowest == own {
            let start = self.stack.iter().position(|&other| other == node).unwrap_or_default();
            let mut component = self.stack.split_off(start);
            component.sort_unstable();
            self.components.push(component);
        }
        lowest
    }
}
