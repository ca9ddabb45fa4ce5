use vidlog_checks::imports::Imports;

#[test]
fn imports_in_both_directions_are_a_cycle() {
    let imports = read(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use super::a::A; use crate::c::C; pub struct B;"),
        ("c.rs", "pub struct C;"),
    ]);
    assert_eq!(cycles(&imports), ["  a.rs -> b.rs: B\n  b.rs -> a.rs: A\n"]);
}

#[test]
fn parent_and_child_are_a_cycle() {
    let imports = read(&[
        ("lib.rs", "mod parent;"),
        ("parent.rs", "mod child; use child::Child; pub struct Parent;"),
        ("parent/child.rs", "use super::Parent; pub struct Child;"),
    ]);
    assert_eq!(
        cycles(&imports),
        ["  parent.rs -> parent/child.rs: Child\n  parent/child.rs -> parent.rs: Parent\n"]
    );
}

#[test]
fn each_cycle_is_one_component() {
    let imports = read(&[
        ("lib.rs", "mod a; mod b; mod c; mod d; mod e;"),
        ("a.rs", "use crate::b::X; pub struct X;"),
        ("b.rs", "use crate::c::X as Y; use crate::d::X as Z; pub struct X;"),
        ("c.rs", "use crate::a::X as Y; pub struct X;"),
        ("d.rs", "use crate::e::X as Y; pub struct X;"),
        ("e.rs", "use crate::d::X as Y; pub struct X;"),
    ]);
    let files: Vec<_> = imports.cycles().iter().map(|cycle| cycle.files.len()).collect();
    assert_eq!(files, [2, 3]);
}

#[test]
fn declarations_and_re_exports_are_no_use() {
    let imports = read(&[
        ("lib.rs", "pub mod parent; pub use parent::Child;"),
        ("parent.rs", "mod child; pub use child::{Child, other::*}; pub struct Parent;"),
        ("parent/child.rs", "pub mod other; use super::Parent; pub struct Child;"),
        ("parent/child/other.rs", "use crate::parent::Parent; pub struct Other;"),
    ]);
    assert_eq!(cycles(&imports), [""; 0]);
}

#[test]
fn re_exported_item_belongs_to_its_definition() {
    let imports = read(&[
        ("lib.rs", "mod facade; mod user;"),
        ("facade.rs", "mod inner; pub use inner::{Named as Renamed, deep::*};"),
        ("facade/inner.rs", "pub mod deep; pub struct Named;"),
        ("facade/inner/deep.rs", "pub struct Globbed;"),
        ("user.rs", "use super::facade::{self, Renamed}; fn f(_: facade::Globbed) {}"),
    ]);
    assert_eq!(imports.names("user.rs", "facade/inner.rs"), ["Named"]);
    assert_eq!(imports.names("user.rs", "facade/inner/deep.rs"), ["Globbed"]);
    assert_eq!(imports.names("user.rs", "facade.rs"), [""; 0]);
}

#[test]
fn paths_in_code_and_macros_are_uses() {
    let imports = read(&[
        ("lib.rs", "mod a; mod b; macro_rules! each { () => { $crate::b::expanded() } }"),
        (
            "a.rs",
            "use super::b;
             #[derive(Clone)] #[serde(skip_serializing_if(b::attribute))]
             struct A { field: b::Field }
             fn f() -> Option<b::Returned> { println!(\"{}\", b::printed(1)); crate::b::Type::new().call(b::CONST) }",
        ),
        ("b.rs", "pub struct Field; pub struct Returned; pub struct Type; generate!(printed, CONST);"),
    ]);
    let names = ["CONST", "Field", "Returned", "Type", "attribute", "printed"];
    assert_eq!(imports.names("a.rs", "b.rs"), names);
    assert_eq!(imports.names("lib.rs", "b.rs"), ["expanded"]);
}

#[test]
fn method_in_another_file_is_a_use() {
    let imports = read(&[
        ("lib.rs", "mod engine;"),
        (
            "engine.rs",
            "mod part; pub struct Engine; impl Engine { fn run(&self) { self.step(); Self::stop(); self.own() } fn own(&self) {} }",
        ),
        ("engine/part.rs", "use super::Engine; impl Engine { pub fn step(&self) {} pub fn stop() {} }"),
    ]);
    assert_eq!(imports.names("engine.rs", "engine/part.rs"), ["step()", "stop()"]);
    assert_eq!(imports.cycles().len(), 1);
}

#[test]
fn test_code_is_left_out() {
    let imports = read(&[
        ("lib.rs", "mod a; mod b; #[cfg(test)] mod missing_file;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        (
            "b.rs",
            "pub struct B;
             impl B { #[cfg(test)] fn of(_: crate::a::A) {} }
             #[cfg(all(test, unix))] use crate::a::A;
             #[cfg(test)] mod tests { use crate::a::A; }",
        ),
    ]);
    assert_eq!(cycles(&imports), [""; 0]);
}

/// Reads a crate of these files.
fn read(files: &[(&str, &str)]) -> Imports {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    Imports::of_target(folder.path(), &folder.path().join("lib.rs")).unwrap()
}

fn cycles(imports: &Imports) -> Vec<String> {
    imports.cycles().iter().map(ToString::to_string).collect()
}
