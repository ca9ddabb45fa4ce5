//! Fails if files of one crate import each other in a cycle; `make check` runs it.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::Context;
use serde_json::Value;
use vidlog_checks::imports::Imports;

fn main() -> anyhow::Result<ExitCode> {
    let metadata = workspace_metadata()?;
    let root = PathBuf::from(metadata["workspace_root"].as_str().context("cargo names no workspace root")?);
    let mut files = 0;
    let mut cycles = 0;
    for (package, target_root) in targets(&metadata) {
        let imports = Imports::of_target(&root, &target_root)?;
        files += imports.file_count();
        for cycle in imports.cycles() {
            cycles += 1;
            print!("module cycle in {package}:\n{cycle}");
        }
    }
    println!("{files} files, {cycles} module cycles");
    Ok(if cycles == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn workspace_metadata() -> anyhow::Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .context("failed to run cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("failed to parse the output of cargo metadata")
}

/// The root files of all libraries and programs by package.
fn targets(metadata: &Value) -> Vec<(String, PathBuf)> {
    let mut targets = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_test = target["kind"].as_array().into_iter().flatten().any(|kind| kind == "test");
            if let (false, Some(root), Some(name)) =
                (is_test, target["src_path"].as_str(), package["name"].as_str())
            {
                targets.insert(PathBuf::from(root), name.to_owned());
            }
        }
    }
    targets.into_iter().map(|(root, name)| (name, root)).collect()
}
